//! Patterns over kernel names.

/// Whether `name` matches `pattern`, where `*` stands for any text and `?` for one character.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go on when a match fails: after the last star, one character further.
    let mut retry: Option<(usize, usize)> = None;
    while let Some(&c) = name.get(n) {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(&q) if q == '?' || q == c => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((after, at)) => {
                    retry = Some((after, at + 1));
                    p = after;
                    n = at + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, name) in
            [("*", ""), ("rms_*", "rms_norm_f32"), ("*f32", "rms_norm_f32"), ("*_v?", "a_v2"), ("a*b*c", "axbxbc"), ("abc", "abc")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("", "a"), ("rms", "rms_norm"), ("*x", "abc"), ("?", ""), ("a*b*c", "axbxb"), ("abc?", "abc")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}

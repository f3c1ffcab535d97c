//! Searches for the scale (and minimum) of a group of values with the least weighted squared error.

/// Groups whose values are all smaller than this become zero: the smallest positive half is 6e-8.
pub(super) const NEGLIGIBLE: f32 = 1e-15;

/// Nearest integer, ties to even, for magnitudes below 2^22: adding 1.5 * 2^23 leaves no bits for a fraction. Unlike
/// `f32::round_ties_even` it vectorises on every target.
#[inline(always)]
pub(super) fn nearest(v: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (v + SHIFT) - SHIFT
}

/// The code of `v` for an inverse scale.
#[inline(always)]
pub(super) fn code(v: f32, inverse: f32, low: f32, high: f32) -> f32 {
    let v = v * inverse;
    // Comparisons instead of `f32::clamp`, which spends instructions on NaN; here a NaN becomes `low`.
    let v = if v > low { v } else { low };
    nearest(if v < high { v } else { high })
}

/// Sum over the positions of a group. Eight partial sums let the loop use vector registers, which a strictly ordered float sum forbids.
#[inline(always)]
fn sum<const N: usize>(term: impl Fn(usize) -> f32) -> f32 {
    const { assert!(N.is_multiple_of(8)) };
    let mut partial = [0.0f32; 8];
    for chunk in 0..N / 8 {
        for (lane, partial) in partial.iter_mut().enumerate() {
            *partial += term(8 * chunk + lane);
        }
    }
    partial.iter().sum()
}

/// Weighted squared error of `scale * q - min` with the best codes in `low..=high`.
pub(super) fn error<const N: usize>(x: &[f32; N], w: &[f32; N], scale: f32, min: f32, low: f32, high: f32) -> f32 {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    sum::<N>(|i| {
        let diff = scale * code(x[i] + min, inverse, low, high) - min - x[i];
        w[i] * diff * diff
    })
}

/// Best `scale` for `x = scale * q` with integer `q` in `low..=high`, where `low` has the larger magnitude.
///
/// Tries inverse scales around the one that gives the peak the code `low`; for each, the scale that is optimal for its codes follows by
/// least squares.
pub(super) fn fit_symmetric<const N: usize>(x: &[f32; N], w: &[f32; N], low: f32, high: f32) -> f32 {
    let peak = x.iter().fold(0.0, |peak: f32, &v| if v.abs() > peak.abs() { v } else { peak });
    if peak.abs() < NEGLIGIBLE {
        return 0.0;
    }
    let (mut scale, mut gain) = (peak / low, 0.0);
    for step in -9i8..=9 {
        let inverse = (low + 0.1 * f32::from(step)) / peak;
        let q: [f32; N] = std::array::from_fn(|i| code(x[i], inverse, low, high));
        let xq = sum::<N>(|i| w[i] * q[i] * x[i]);
        let qq = sum::<N>(|i| w[i] * q[i] * q[i]);
        if qq > 0.0 && xq * xq > gain * qq {
            (scale, gain) = (xq / qq, xq * xq / qq);
        }
    }
    scale
}

/// Best `(scale, min)` for `x = scale * q - min` with integer `q` in `0..=high` and `scale, min >= 0`.
///
/// Tries inverse scales around `high / range`; for each, scale and minimum follow by weighted least squares on its codes.
pub(super) fn fit_affine<const N: usize>(x: &[f32; N], w: &[f32; N], high: f32) -> (f32, f32) {
    let (lo, hi) = x.iter().fold((0.0f32, f32::NEG_INFINITY), |(lo, hi), &v| (lo.min(v), hi.max(v)));
    let range = hi - lo;
    if range < NEGLIGIBLE {
        return (0.0, -lo);
    }
    let sum_w = sum::<N>(|i| w[i]);
    let sum_x = sum::<N>(|i| w[i] * x[i]);
    let mut best = (range / high, -lo);
    let mut least = error(x, w, best.0, best.1, 0.0, high);
    for step in -10i8..=10 {
        let inverse = (high + 0.1 * f32::from(step)) / range;
        let q: [f32; N] = std::array::from_fn(|i| code(x[i] - lo, inverse, 0.0, high));
        let q1 = sum::<N>(|i| w[i] * q[i]);
        let q2 = sum::<N>(|i| w[i] * q[i] * q[i]);
        let xq = sum::<N>(|i| w[i] * q[i] * x[i]);
        let det = sum_w * q2 - q1 * q1;
        if det <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * xq - sum_x * q1) / det;
        let mut min = (q1 * xq - q2 * sum_x) / det;
        if min < 0.0 {
            // A minimum is stored as a non-negative number that is subtracted.
            (scale, min) = (xq / q2, 0.0);
        }
        if scale <= 0.0 {
            continue;
        }
        let error = error(x, w, scale, min, 0.0, high);
        if error < least {
            (best, least) = ((scale, min), error);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_is_round_ties_even() {
        for i in -4_000..=4_000 {
            let v = i as f32 * 0.25;
            assert_eq!(nearest(v), v.round_ties_even(), "{v}");
        }
        assert_eq!(nearest(4_194_303.0), 4_194_303.0);
    }

    #[test]
    fn a_representable_group_is_found_exactly() {
        let x: [f32; 32] = std::array::from_fn(|i| 0.5 * (i % 16) as f32 - 2.0);
        let (scale, min) = fit_affine(&x, &[1.0; 32], 15.0);
        assert!((scale - 0.5).abs() < 1e-6 && (min - 2.0).abs() < 1e-5, "{scale} {min}");
        let x: [f32; 16] = std::array::from_fn(|i| 0.25 * (i as f32 * 4.0 - 32.0));
        assert!((fit_symmetric(&x, &[1.0; 16], -32.0, 31.0) - 0.25).abs() < 1e-7);
    }
}

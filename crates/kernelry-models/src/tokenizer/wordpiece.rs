//! BERT's tokenizer: text is cleaned, cut at white space and punctuation, and each word is spelt greedily by the longest tokens.
//!
//! A GGUF file writes a token that begins a word as `▁word` and one that continues it as plain text, where the original
//! vocabulary has `word` and `##word`.

use kernelry::{Error, Result};
use regex::Regex;
use unicode_normalization::UnicodeNormalization;

use super::vocab::Vocab;

/// Words longer than this many characters become the unknown token, as in the original implementation.
const LONGEST_WORD: usize = 100;

const CJK: &str = r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B920}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}";
const PUNCTUATION: &str = r"\p{P}!-/:-@\[-`{-~";

/// Compiled expressions.
pub(crate) struct WordPiece {
    dropped: Regex,
    marks: Regex,
    words: Regex,
    lowercase: bool,
}

impl WordPiece {
    pub(crate) fn new(lowercase: bool) -> Result<WordPiece> {
        let compile = |source: &str| Regex::new(source).map_err(|e| Error::invalid("tokenizer", format!("wordpiece: {e}")));
        Ok(WordPiece {
            dropped: compile(r"[\p{Cc}\p{Cf}\p{Co}\x{FFFD}--[\t\n\r]]+")?,
            marks: compile(r"\p{Mn}+")?,
            words: compile(&format!(r"[{PUNCTUATION}{CJK}]|[^\s{PUNCTUATION}{CJK}]+"))?,
            lowercase,
        })
    }

    pub(crate) fn encode(&self, vocab: &Vocab, unknown: u32, text: &str, out: &mut Vec<u32>) {
        let mut text = self.dropped.replace_all(text, "").into_owned();
        if self.lowercase {
            let decomposed: String = text.nfd().collect();
            text = self.marks.replace_all(&decomposed, "").to_lowercase();
        }
        let mut spelt = String::new();
        for word in self.words.find_iter(&text) {
            let word = word.as_str();
            let begin = out.len();
            if word.chars().count() > LONGEST_WORD {
                out.push(unknown);
                continue;
            }
            spelt.clear();
            spelt.push('▁');
            spelt.push_str(word);
            let mut rest = spelt.as_str();
            while !rest.is_empty() {
                let longest = rest.char_indices().rev().map(|(at, c)| at + c.len_utf8()).find_map(|end| {
                    let piece = rest.get(..end).filter(|&p| p != "▁")?;
                    Some((vocab.id(piece)?, end))
                });
                let Some((id, end)) = longest else {
                    out.truncate(begin);
                    out.push(unknown);
                    break;
                };
                out.push(id);
                rest = rest.get(end..).unwrap_or_default();
            }
        }
    }
}

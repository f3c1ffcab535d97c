//! What a tokenizer is made from: the `tokenizer.ggml.*` keys of a GGUF file as a plain struct.

use kernelry::gguf::GgufFile;
use kernelry::{Error, Result};

/// Kind of a vocabulary entry (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// A piece of ordinary text.
    Normal,
    /// Stands for text the vocabulary cannot spell.
    Unknown,
    /// Has a meaning of its own, such as end of turn; never produced from ordinary text.
    Control,
    /// Added by the model's author; matched as a whole before the pieces are merged.
    UserDefined,
    /// A hole in the vocabulary.
    Unused,
    /// One byte, written `<0xNN>`.
    Byte,
}

impl TokenKind {
    /// The kind stored as this number in a GGUF file.
    pub fn from_gguf(value: i64) -> Option<TokenKind> {
        Some(match value {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }
}

/// Everything that defines a tokenizer. Optional lists are empty when the file does not have them.
#[derive(Clone, Debug, Default)]
pub struct TokenizerSpec {
    /// Algorithm: `gpt2`, `llama`, `gemma4` or `bert`.
    pub model: String,
    /// Pre-tokenizer of byte-level BPE; see [`pre_tokenizers`](super::pre_tokenizers) for the known names.
    pub pre: Option<String>,
    /// Text of each token, the index is the id.
    pub tokens: Vec<String>,
    /// Score of each token (`llama` only): the higher one merges first.
    pub scores: Vec<f32>,
    /// Kind of each token as stored, see [`TokenKind`]; empty means that all are normal.
    pub token_types: Vec<i32>,
    /// Merges `left right` in order of rank (`gpt2` and `gemma4`).
    pub merges: Vec<String>,
    /// Beginning of sequence; for `bert` the classification token.
    pub bos: Option<u32>,
    /// End of sequence; for `bert` the separator.
    pub eos: Option<u32>,
    /// End of turn.
    pub eot: Option<u32>,
    /// End of message (a turn that goes on after a tool has answered).
    pub eom: Option<u32>,
    /// Unknown token.
    pub unk: Option<u32>,
    /// Padding token.
    pub pad: Option<u32>,
    /// Put `bos` first; the default depends on the model.
    pub add_bos: Option<bool>,
    /// Put `eos` last; the default depends on the model.
    pub add_eos: Option<bool>,
    /// Put a space before the text (`llama` only); default true.
    pub add_space_prefix: Option<bool>,
    /// Lower the case and strip accents (`bert` only); default true.
    pub lowercase: Option<bool>,
}

/// A metadata error that names the key at fault.
pub(crate) fn bad(key: &str, problem: impl Into<String>) -> Error {
    Error::format("gguf", format!("tokenizer.ggml.{key}"), problem)
}

impl TokenizerSpec {
    /// Reads the `tokenizer.ggml.*` keys of a file. Keys that it does not have stay unset; [`Tokenizer::new`](super::Tokenizer::new)
    /// says which of them it needs.
    ///
    /// # Errors
    /// [`Error::Format`] that names the key, for a key of another type than expected and for a file without `tokenizer.ggml.model` or
    /// `tokenizer.ggml.tokens`.
    pub fn from_gguf(file: &GgufFile) -> Result<TokenizerSpec> {
        let id = |key: &str| -> Result<Option<u32>> {
            // Some converters write an absent token as the largest number or as −1.
            let value: Option<i64> = file.find(&format!("tokenizer.ggml.{key}_token_id"))?;
            Ok(value.filter(|&v| v != -1 && v != i64::from(u32::MAX)).map(|v| u32::try_from(v).unwrap_or(u32::MAX)))
        };
        let flag = |key: &str| file.find::<bool>(&format!("tokenizer.ggml.{key}"));
        let strings = |key: &str| -> Result<Option<Vec<String>>> {
            let found: Option<&[String]> = file.find(&format!("tokenizer.ggml.{key}"))?;
            Ok(found.map(<[String]>::to_vec))
        };
        let bert = file.get::<&str>("tokenizer.ggml.model")? == "bert";
        Ok(TokenizerSpec {
            model: file.get::<&str>("tokenizer.ggml.model")?.to_owned(),
            pre: file.find::<&str>("tokenizer.ggml.pre")?.map(str::to_owned),
            tokens: strings("tokens")?.ok_or_else(|| bad("tokens", "missing"))?,
            scores: file.find("tokenizer.ggml.scores")?.unwrap_or_default(),
            token_types: file.find("tokenizer.ggml.token_type")?.unwrap_or_default(),
            merges: strings("merges")?.unwrap_or_default(),
            bos: if bert { id("cls")?.or(id("bos")?) } else { id("bos")? },
            // The key of the separator has always been misspelt in files.
            eos: if bert { id("seperator")?.or(id("eos")?) } else { id("eos")? },
            eot: id("eot")?,
            eom: id("eom")?,
            unk: id("unknown")?,
            pad: id("padding")?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            lowercase: flag("normalizer.lowercase")?,
        })
    }

    /// Checks lengths and ids, and gives the kind of each token.
    pub(crate) fn kinds(&self) -> Result<Vec<TokenKind>> {
        let n = self.tokens.len();
        if n == 0 {
            return Err(bad("tokens", "got an empty vocabulary, expected at least one token"));
        }
        if u32::try_from(n).is_err() {
            return Err(bad("tokens", format!("got {n} tokens, expected at most {}", u32::MAX)));
        }
        for (key, len) in [("token_type", self.token_types.len()), ("scores", self.scores.len())] {
            if len != 0 && len != n {
                return Err(bad(key, format!("got {len} entries, expected {n}, one for each token")));
            }
        }
        let ids = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("eot_token_id", self.eot),
            ("eom_token_id", self.eom),
            ("unknown_token_id", self.unk),
            ("padding_token_id", self.pad),
        ];
        for (key, id) in ids {
            if let Some(id) = id
                && id as usize >= n
            {
                return Err(bad(key, format!("got {id}, expected an id below {n}")));
            }
        }
        if self.token_types.is_empty() {
            return Ok(vec![TokenKind::Normal; n]);
        }
        let kind = |(id, &value): (usize, &i32)| {
            TokenKind::from_gguf(i64::from(value)).ok_or_else(|| bad("token_type", format!("token {id}: got {value}, expected 1 to 6")))
        };
        self.token_types.iter().enumerate().map(kind).collect()
    }
}

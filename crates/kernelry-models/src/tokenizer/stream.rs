//! Decoding token by token: a character whose bytes are spread over several tokens is held back until it is whole.

use kernelry::Result;

use super::{TokenKind, Tokenizer};

/// Decodes one token at a time. Made by [`Tokenizer::decode_stream`].
#[derive(Debug)]
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_control: bool,
    pending: Vec<u8>,
}

impl<'t> DecodeStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, skip_control: bool) -> DecodeStream<'t> {
        DecodeStream { tokenizer, skip_control, pending: Vec::new() }
    }

    /// The text that is certain after one more token; empty while a character is incomplete. Bytes that cannot become UTF-8 any more
    /// come out as U+FFFD.
    ///
    /// # Errors
    /// [`kernelry::Error::InvalidArgument`] for an id outside the vocabulary; the stream is then unchanged.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let mut text = String::new();
        self.push_into(id, &mut text)?;
        Ok(text)
    }

    /// [`push`](Self::push) that appends to a string.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_into(&mut self, id: u32, text: &mut String) -> Result<()> {
        if self.tokenizer.kind(id)? == TokenKind::Control && self.skip_control {
            return Ok(());
        }
        self.tokenizer.token_to_piece(id, &mut self.pending)?;
        take_text(&mut self.pending, text);
        Ok(())
    }

    /// What was held back, as U+FFFD: the text ended inside a character.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Moves all of `bytes` that is certain to `text`: whole characters, and U+FFFD for what no continuation can complete.
fn take_text(bytes: &mut Vec<u8>, text: &mut String) {
    let mut used = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        used += chunk.valid().len();
        let invalid = chunk.invalid();
        let at_end = used + invalid.len() == bytes.len();
        if at_end && is_prefix(invalid) {
            break;
        }
        if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            used += invalid.len();
        }
    }
    bytes.drain(..used);
}

/// Can these bytes, which are not UTF-8 as they stand, become one character?
fn is_prefix(bytes: &[u8]) -> bool {
    // A decoder reports the longest well-formed prefix of a character as one chunk, so that only its length tells a truncated one.
    let wanted = match bytes.first() {
        Some(0xC2..=0xDF) => 2,
        Some(0xE0..=0xEF) => 3,
        Some(0xF0..=0xF4) => 4,
        _ => return false,
    };
    bytes.len() < wanted
}

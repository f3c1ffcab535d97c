//! When a text ends, and which part of it may already be shown.
//!
//! A stop string may be spread over several tokens, so text that could be its beginning is held back until it is certain. Characters
//! whose bytes are spread over several tokens are held back by the decoder ([`DecodeStream`]).

use kernelry::Result;

use crate::tokenizer::{DecodeStream, Tokenizer};

/// What ends a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopConditions {
    /// Tokens that end it; they are not part of the text. [`Tokenizer::end_of_generation`] has those of a model.
    pub tokens: Vec<u32>,
    /// Texts that end it; neither they nor what follows is part of the text. Empty strings are ignored.
    pub strings: Vec<String>,
    /// Most tokens.
    pub max_tokens: Option<usize>,
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A token of [`StopConditions::tokens`].
    Token(u32),
    /// A text of [`StopConditions::strings`].
    Text(String),
    /// [`StopConditions::max_tokens`] was reached.
    Length,
}

/// What one more token means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopStep {
    /// Text that is now certain and may be shown.
    pub text: String,
    /// Set when the text has ended; nothing may be pushed after that.
    pub reason: Option<StopReason>,
}

/// Decodes the tokens of one text and watches for its end.
#[derive(Debug)]
pub struct StopWatch<'t> {
    decoder: DecodeStream<'t>,
    conditions: StopConditions,
    held: String,
    tokens: usize,
    ended: Option<StopReason>,
}

impl<'t> StopWatch<'t> {
    /// Watches a text that continues a prompt. Control tokens do not show in the text.
    pub fn new(tokenizer: &'t Tokenizer, mut conditions: StopConditions) -> StopWatch<'t> {
        conditions.strings.retain(|s| !s.is_empty());
        let ended = (conditions.max_tokens == Some(0)).then_some(StopReason::Length);
        StopWatch { decoder: tokenizer.decode_stream(true), conditions, held: String::new(), tokens: 0, ended }
    }

    /// Why the text has ended, if it has. With a limit of no tokens it has from the start.
    pub fn ended(&self) -> Option<&StopReason> {
        self.ended.as_ref()
    }

    /// Tokens pushed so far, the one that ended the text included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Takes one more token. After the end this changes nothing and returns the reason again.
    ///
    /// # Errors
    /// [`kernelry::Error::InvalidArgument`] for an id outside the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<StopStep> {
        if self.ended.is_some() {
            return Ok(StopStep { text: String::new(), reason: self.ended.clone() });
        }
        if self.conditions.tokens.contains(&id) {
            self.tokens += 1;
            return Ok(self.end(StopReason::Token(id)));
        }
        let before = self.held.len();
        self.decoder.push_into(id, &mut self.held)?;
        self.tokens += 1;
        if let Some(step) = self.find_string(before) {
            return Ok(step);
        }
        if self.conditions.max_tokens.is_some_and(|max| self.tokens >= max) {
            return Ok(self.end(StopReason::Length));
        }
        let certain = self.held.len() - self.possible_prefix();
        let rest = self.held.split_off(certain);
        Ok(StopStep { text: std::mem::replace(&mut self.held, rest), reason: None })
    }

    /// The text that was held back when generation ends for another reason, such as a full context.
    pub fn finish(&mut self) -> String {
        self.held.push_str(&self.decoder.finish());
        std::mem::take(&mut self.held)
    }

    fn end(&mut self, reason: StopReason) -> StopStep {
        self.ended = Some(reason.clone());
        StopStep { text: self.finish(), reason: Some(reason) }
    }

    /// The stop string that begins first in the held text; of those that begin together, the longest.
    fn find_string(&mut self, before: usize) -> Option<StopStep> {
        if self.held.len() == before {
            return None;
        }
        let found = self.conditions.strings.iter().filter_map(|s| Some((self.held.find(s.as_str())?, s)));
        let (at, string) = found.min_by_key(|&(at, s)| (at, std::cmp::Reverse(s.len())))?;
        let reason = StopReason::Text(string.clone());
        self.held.truncate(at);
        self.ended = Some(reason.clone());
        Some(StopStep { text: std::mem::take(&mut self.held), reason: Some(reason) })
    }

    /// Bytes at the end of the held text that may begin a stop string.
    fn possible_prefix(&self) -> usize {
        let longest = |stop: &String| {
            let starts = stop.char_indices().map(|(at, _)| at).skip(1);
            starts.filter(|&len| stop.get(..len).is_some_and(|prefix| self.held.ends_with(prefix))).last().unwrap_or(0)
        };
        self.conditions.strings.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::tokenizer::TokenizerSpec;

    /// One token for each byte, the id is the byte; 256 is a control token.
    fn bytes() -> Tokenizer {
        let mut tokens: Vec<String> = (0..=255u8).map(|b| format!("<0x{b:02X}>")).collect();
        tokens.push("<end>".into());
        let mut token_types = vec![6; 256];
        token_types.push(3);
        let scores = vec![0.0; 257];
        Tokenizer::new(TokenizerSpec { model: "llama".into(), tokens, token_types, scores, ..Default::default() }).unwrap()
    }

    /// The pieces shown after each byte, and why it ended.
    fn run(text: &str, strings: &[&str], max_tokens: Option<usize>) -> (Vec<String>, Option<StopReason>) {
        let tokenizer = bytes();
        let strings = strings.iter().map(|s| (*s).to_owned()).collect();
        let mut watch = StopWatch::new(&tokenizer, StopConditions { tokens: vec![256], strings, max_tokens });
        let mut shown = Vec::new();
        for id in text.bytes().map(u32::from).chain([256]) {
            let step = watch.push(id).unwrap();
            shown.push(step.text);
            if step.reason.is_some() {
                return (shown, step.reason);
            }
        }
        (shown, None)
    }

    #[test]
    fn without_stop_strings_text_is_shown_at_once() {
        let (shown, reason) = run("abc", &[], None);
        assert_eq!(shown, ["a", "b", "c", ""]);
        assert_eq!(reason, Some(StopReason::Token(256)));
    }

    #[test]
    fn possible_beginnings_are_held_back() {
        let (shown, reason) = run("xENy", &["END"], None);
        assert_eq!(shown, ["x", "", "", "ENy", ""]);
        assert_eq!(reason, Some(StopReason::Token(256)));
        let (shown, reason) = run("EENDx", &["END"], None);
        assert_eq!(shown, ["", "E", "", ""]);
        assert_eq!(reason, Some(StopReason::Text("END".into())));
    }

    #[test]
    fn the_end_shows_what_was_held() {
        assert_eq!(run("abEN", &["END"], None).0.concat(), "abEN");
        let (shown, reason) = run("abEND", &["END"], Some(4));
        assert_eq!(shown.concat(), "abEN");
        assert_eq!(reason, Some(StopReason::Length));
    }

    #[test]
    fn the_earliest_stop_wins_and_then_the_longest() {
        assert_eq!(run("1abc", &["bc", "abc"], None).1, Some(StopReason::Text("abc".into())));
        assert_eq!(run("aab", &["b", "ab", "aab"], None), (vec!["".into(), "".into(), "".into()], Some(StopReason::Text("aab".into()))));
    }

    #[test]
    fn characters_are_held_until_whole() {
        let (shown, _) = run("é€😀", &[], None);
        assert_eq!(shown, ["", "é", "", "", "€", "", "", "", "😀", ""]);
        let (shown, reason) = run("a😀b", &["😀"], None);
        assert_eq!(shown.concat(), "a");
        assert_eq!(reason, Some(StopReason::Text("😀".into())));
    }

    #[test]
    fn a_limit_of_nothing_ends_at_once() {
        let tokenizer = bytes();
        let mut watch = StopWatch::new(&tokenizer, StopConditions { max_tokens: Some(0), ..Default::default() });
        assert_eq!(watch.ended(), Some(&StopReason::Length));
        assert_eq!(watch.push(65).unwrap(), StopStep { text: String::new(), reason: Some(StopReason::Length) });
        assert_eq!(watch.tokens(), 0);
    }

    #[test]
    fn a_limit_inside_a_character_shows_a_replacement() {
        assert_eq!(run("a😀", &[], Some(3)).0.concat(), "a\u{FFFD}");
    }

    #[test]
    fn an_unknown_id_is_an_error() {
        let tokenizer = bytes();
        let mut watch = StopWatch::new(&tokenizer, StopConditions::default());
        let error = watch.push(300).unwrap_err().to_string();
        assert!(error.contains("got 300, expected an id below 257"), "{error}");
    }
}

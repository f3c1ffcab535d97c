//! Tokenizers as GGUF files define them: byte-level BPE (`gpt2`), SentencePiece BPE (`llama`), BPE over SentencePiece pieces (`gemma4`)
//! and WordPiece (`bert`). The metadata of the file is all that is needed.
//!
//! ```no_run
//! # use kernelry_models::tokenizer::{Specials, Tokenizer, TokenizerSpec};
//! # fn main() -> kernelry::Result<()> {
//! # let spec = TokenizerSpec::default();
//! let tokenizer = Tokenizer::new(spec)?;
//! let ids = tokenizer.encode("Hello", Specials::AsText)?;
//! assert_eq!(tokenizer.decode(&ids, true)?, "Hello");
//! # Ok(())
//! # }
//! ```

mod bpe;
mod pre;
mod spec;
mod spm;
mod stream;
mod vocab;
mod wordpiece;

use std::borrow::Cow;
use std::fmt;

use aho_corasick::{AhoCorasick, MatchKind};
use kernelry::{Error, Result};

pub use pre::pre_tokenizers;
pub use spec::{TokenKind, TokenizerSpec};
pub use stream::DecodeStream;

use bpe::{Merges, Scratch};
use pre::PreTokenizer;
use spec::bad;
use vocab::Vocab;
use wordpiece::WordPiece;

/// Which tokens may be recognised by their text while encoding.
///
/// Text from a user must not be able to spell control tokens: `<|im_end|>` in a question would end the turn. A rendered chat template
/// is the place for [`Specials::Parse`]; pass what users wrote through [`Tokenizer::guard`] before it goes into the template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Specials {
    /// Control and user-defined tokens are recognised.
    Parse,
    /// User-defined tokens are recognised, control tokens are plain text (what llama.cpp does when it does not parse specials).
    UserDefined,
    /// Both are plain text, except user-defined tokens made of white space only, which carry no meaning but spacing.
    AsText,
}

/// A character that is never text (a Unicode noncharacter): put into the spelling of a special token it keeps it from being
/// recognised, and it is dropped again while encoding.
const GUARD: char = '\u{FDD0}';

enum Algorithm {
    /// Byte-level BPE: merges work on bytes, written as printable characters.
    ByteLevel { merges: Merges, pre: PreTokenizer, bytes: [Option<u32>; 256] },
    /// BPE by rank over characters, spaces written `▁`, cut at newlines.
    Pieces { merges: Merges, bytes: [Option<u32>; 256] },
    /// SentencePiece BPE by score, spaces written `▁`.
    Scores { scores: Vec<f32>, bytes: [Option<u32>; 256] },
    /// WordPiece.
    WordPiece { model: WordPiece, unknown: u32 },
}

/// Special tokens found by their text, the leftmost first and the longest of those.
struct Matcher {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl Matcher {
    fn new(vocab: &Vocab, wanted: impl Fn(TokenKind, &str) -> bool) -> Result<Option<Matcher>> {
        let matches = |&(id, token): &(u32, &String)| !token.is_empty() && vocab.kind(id).is_some_and(|kind| wanted(kind, token));
        let (ids, texts): (Vec<u32>, Vec<&String>) = (0u32..).zip(&vocab.tokens).filter(matches).unzip();
        if ids.is_empty() {
            return Ok(None);
        }
        // Runs of spaces are user-defined tokens in some vocabularies, written ▁ or, by later converters, as the spaces they match.
        let patterns = texts.into_iter().map(|t| if t.chars().all(|c| c == '▁') { t.replace('▁', " ") } else { t.clone() });
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns);
        let automaton = automaton.map_err(|e| bad("tokens", format!("special tokens: {e}")))?;
        Ok(Some(Matcher { automaton, ids }))
    }
}

/// Text to ids and back. Immutable after construction and shared freely between threads.
pub struct Tokenizer {
    vocab: Vocab,
    algorithm: Algorithm,
    model: String,
    control_and_user: Option<Matcher>,
    user: Option<Matcher>,
    spacing: Option<Matcher>,
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    space_prefix: bool,
    end_of_generation: Vec<u32>,
    warnings: Vec<String>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("model", &self.model).field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

/// Texts of tokens that end a turn or the text in published models; files often name only one of them in their metadata.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<turn|>",
    "<|eot|>",
    "<|user|>",
    "<EOT>",
    "_<EOT>",
    "<｜end▁of▁sentence｜>",
];

impl Tokenizer {
    /// Builds a tokenizer.
    ///
    /// # Errors
    /// [`Error::Format`] that names the metadata key: an unknown model or pre-tokenizer, lists whose lengths differ, ids outside the
    /// vocabulary, merges of tokens that do not exist, a vocabulary without the tokens that its model needs.
    pub fn new(mut spec: TokenizerSpec) -> Result<Tokenizer> {
        let vocab = Vocab::new(&mut spec)?;
        let mut warnings = Vec::new();
        let (algorithm, add_bos, add_eos) = match spec.model.as_str() {
            "gpt2" => {
                let name = spec.pre.clone().unwrap_or_else(|| {
                    warnings
                        .push("tokenizer.ggml.pre is missing: using `default`, words may be cut differently than in training".to_owned());
                    "default".to_owned()
                });
                let pre = PreTokenizer::new(&name)?;
                let merges = required_merges(&vocab, &spec)?;
                let bytes = std::array::from_fn(|byte| {
                    let c = bpe::byte_char(u8::try_from(byte).ok()?)?;
                    vocab.id(c.encode_utf8(&mut [0; 4]))
                });
                let add_bos = pre.add_bos;
                (Algorithm::ByteLevel { merges, pre, bytes }, add_bos, false)
            }
            "gemma4" => (Algorithm::Pieces { merges: required_merges(&vocab, &spec)?, bytes: vocab.byte_tokens() }, true, false),
            "llama" => {
                let scores = std::mem::take(&mut spec.scores);
                if scores.is_empty() {
                    return Err(bad("scores", "got none, expected one for each token of a `llama` vocabulary"));
                }
                if let Some(id) = scores.iter().position(|s| s.is_nan()) {
                    return Err(bad("scores", format!("token {id}: got NaN, expected a number")));
                }
                (Algorithm::Scores { scores, bytes: vocab.byte_tokens() }, true, false)
            }
            "bert" => {
                let unknown = spec
                    .unk
                    .or_else(|| vocab.id("[UNK]"))
                    .ok_or_else(|| bad("unknown_token_id", "missing, expected one for a `bert` vocabulary"))?;
                spec.unk = Some(unknown);
                spec.bos = spec.bos.or_else(|| vocab.id("[CLS]"));
                spec.eos = spec.eos.or_else(|| vocab.id("[SEP]"));
                (Algorithm::WordPiece { model: WordPiece::new(spec.lowercase.unwrap_or(true))?, unknown }, true, true)
            }
            other => return Err(bad("model", format!("got `{other}`, expected gpt2, llama, gemma4 or bert"))),
        };
        if matches!(algorithm, Algorithm::Scores { .. } | Algorithm::Pieces { .. }) {
            spec.unk = spec.unk.or_else(|| (0u32..).zip(&vocab.kinds).find(|(_, k)| **k == TokenKind::Unknown).map(|(id, _)| id));
        }
        let special = |kind| matches!(kind, TokenKind::Control | TokenKind::UserDefined);
        let spacing = |text: &str| text.chars().all(|c| c.is_whitespace() || c == '▁');
        let mut end_of_generation: Vec<u32> = [spec.eos, spec.eot, spec.eom].into_iter().flatten().collect();
        let named = END_TEXTS.iter().filter_map(|text| vocab.id(text)).filter(|&id| vocab.kind(id).is_some_and(special));
        end_of_generation.extend(named.collect::<Vec<_>>());
        end_of_generation.sort_unstable();
        end_of_generation.dedup();
        Ok(Tokenizer {
            control_and_user: Matcher::new(&vocab, |kind, _| special(kind))?,
            user: Matcher::new(&vocab, |kind, _| kind == TokenKind::UserDefined)?,
            spacing: Matcher::new(&vocab, |kind, text| kind == TokenKind::UserDefined && spacing(text))?,
            bos: spec.bos,
            eos: spec.eos,
            unk: spec.unk,
            pad: spec.pad,
            add_bos: spec.add_bos.unwrap_or(add_bos),
            add_eos: spec.add_eos.unwrap_or(add_eos),
            space_prefix: spec.add_space_prefix.unwrap_or(true) && matches!(algorithm, Algorithm::Scores { .. }),
            end_of_generation,
            warnings,
            model: spec.model,
            vocab,
            algorithm,
        })
    }

    /// Number of tokens. A model's logits row may be longer: ids from here on have no text and must not be sampled.
    pub fn vocab_size(&self) -> usize {
        self.vocab.tokens.len()
    }

    /// The algorithm, as the file names it.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Padding.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Does [`encode_prompt`](Self::encode_prompt) put `bos` first?
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }

    /// Ids after which a model has nothing more to say: end of sequence, of turn and of message, sorted.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// What was assumed because the file does not say it.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The id of a token's exact text.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocab.id(text)
    }

    /// The token as the vocabulary writes it, with `Ġ`, `▁` or `<0x0A>`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an id outside the vocabulary.
    pub fn raw_token(&self, id: u32) -> Result<&str> {
        self.vocab.tokens.get(id as usize).map(String::as_str).ok_or_else(|| self.out_of_range(id))
    }

    /// The kind of a token.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an id outside the vocabulary.
    pub fn kind(&self, id: u32) -> Result<TokenKind> {
        self.vocab.kind(id).ok_or_else(|| self.out_of_range(id))
    }

    fn out_of_range(&self, id: u32) -> Error {
        Error::invalid("tokenizer", format!("id: got {id}, expected an id below {}", self.vocab_size()))
    }

    /// The words that `text` is cut into before merging; one word for an algorithm that does not cut.
    pub fn words(&self, text: &str) -> Vec<String> {
        match &self.algorithm {
            Algorithm::ByteLevel { pre, .. } => {
                let mut words = Vec::new();
                pre.split(text, &mut |word| words.push(word.to_owned()));
                words
            }
            Algorithm::Pieces { .. } => newline_runs(text).map(str::to_owned).collect(),
            Algorithm::Scores { .. } | Algorithm::WordPiece { .. } => vec![text.to_owned()],
        }
    }

    /// Encodes `text` alone: no beginning or end of sequence is added.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for text that the vocabulary cannot spell and has no unknown token for.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let mut out = Vec::with_capacity(text.len() / 3 + 4);
        let matcher = match specials {
            Specials::Parse => &self.control_and_user,
            Specials::UserDefined => &self.user,
            Specials::AsText => &self.spacing,
        };
        let mut scratch = Scratch::default();
        let mut fragment = |text: Option<&str>, out: &mut Vec<u32>| {
            let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(()) };
            let text = if text.contains(GUARD) { Cow::Owned(text.replace(GUARD, "")) } else { Cow::Borrowed(text) };
            self.encode_fragment(&text, &mut scratch, out)
        };
        let mut at = 0;
        if let Some(matcher) = matcher {
            for found in matcher.automaton.find_iter(text) {
                fragment(text.get(at..found.start()), &mut out)?;
                out.extend(matcher.ids.get(found.pattern().as_usize()));
                at = found.end();
            }
        }
        fragment(text.get(at..), &mut out)?;
        Ok(out)
    }

    /// [`encode`](Self::encode) of a prompt: `bos` first and `eos` last where the file asks for them. A `bos` that the text itself begins
    /// with, as many chat templates do, is not doubled.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, specials)?;
        if let Some(bos) = self.bos.filter(|_| self.add_bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        if let Some(eos) = self.eos.filter(|_| self.add_eos)
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
        }
        Ok(ids)
    }

    fn encode_fragment(&self, text: &str, scratch: &mut Scratch, out: &mut Vec<u32>) -> Result<()> {
        match &self.algorithm {
            Algorithm::ByteLevel { merges, pre, bytes } => {
                let mut missing = None;
                let mut spelling = String::new();
                pre.split(text, &mut |word| {
                    if pre.ignore_merges {
                        spelling.clear();
                        spelling.extend(word.bytes().filter_map(bpe::byte_char));
                        if let Some(id) = self.vocab.id(&spelling) {
                            out.push(id);
                            return;
                        }
                    }
                    let ids = word.bytes().filter_map(|byte| {
                        let id = bytes.get(usize::from(byte)).copied().flatten().or(self.unk);
                        if id.is_none() {
                            missing = missing.or(Some(byte));
                        }
                        id
                    });
                    scratch.merge(merges, ids, out);
                });
                missing.map_or(Ok(()), |byte| Err(self.unspellable(byte)))
            }
            Algorithm::Pieces { merges, bytes } => {
                let text = text.replace(' ', "▁");
                let mut ids = Vec::new();
                for line in newline_runs(&text) {
                    ids.clear();
                    let mut buffer = [0; 4];
                    for c in line.chars() {
                        let c = &*c.encode_utf8(&mut buffer);
                        match self.vocab.id(c) {
                            Some(id) => ids.push(id),
                            None => self.spell_bytes(c, bytes, &mut ids)?,
                        }
                    }
                    scratch.merge(merges, ids.drain(..), out);
                }
                Ok(())
            }
            Algorithm::Scores { scores, bytes } => {
                let prefix = if self.space_prefix { "▁" } else { "" };
                let text = format!("{prefix}{}", text.replace(' ', "▁"));
                let mut result = Ok(());
                spm::merge(&self.vocab, scores, &text, &mut |piece| match self.vocab.id(piece) {
                    Some(id) => out.push(id),
                    None if result.is_ok() => result = self.spell_bytes(piece, bytes, out),
                    None => {}
                });
                result
            }
            Algorithm::WordPiece { model, unknown } => {
                model.encode(&self.vocab, *unknown, text, out);
                Ok(())
            }
        }
    }

    /// Byte tokens of `text`, or one unknown token if the vocabulary lacks one of them.
    fn spell_bytes(&self, text: &str, bytes: &[Option<u32>; 256], out: &mut Vec<u32>) -> Result<()> {
        let begin = out.len();
        for byte in text.bytes() {
            let Some(id) = bytes.get(usize::from(byte)).copied().flatten() else {
                out.truncate(begin);
                out.push(self.unk.ok_or_else(|| self.unspellable(byte))?);
                break;
            };
            out.push(id);
        }
        Ok(())
    }

    fn unspellable(&self, byte: u8) -> Error {
        Error::invalid(
            "tokenizer",
            format!("text: got byte {byte:#04x}, expected bytes that the vocabulary can spell (it has no unknown token)"),
        )
    }

    /// Makes `text` safe to put into a chat template that is then encoded with [`Specials::Parse`]: whatever spells a special token in it
    /// will be encoded as plain text. The mark that does this is removed while encoding.
    pub fn guard<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let text = if text.contains(GUARD) { Cow::Owned(text.replace(GUARD, "")) } else { Cow::Borrowed(text) };
        let Some(matcher) = &self.control_and_user else { return text };
        let spacing = |found: &aho_corasick::Match| text.get(found.range()).is_some_and(|t| t.chars().all(char::is_whitespace));
        let mut guarded = String::new();
        let mut at = 0;
        // Overlapping candidates are all broken up: the search goes on one character after the start of each find.
        let mut from = 0;
        while let Some(found) = matcher.automaton.find(aho_corasick::Input::new(text.as_ref()).span(from..text.len())) {
            let first = text.get(found.start()..).and_then(|t| t.chars().next()).map_or(1, char::len_utf8);
            from = found.start() + first;
            if !spacing(&found) {
                guarded.push_str(text.get(at..from).unwrap_or_default());
                guarded.push(GUARD);
                at = from;
            }
        }
        if at == 0 {
            return text;
        }
        guarded.push_str(text.get(at..).unwrap_or_default());
        Cow::Owned(guarded)
    }

    /// Appends the bytes that a token stands for. Control tokens stand for their own text. The bytes of one token need not be whole
    /// characters.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an id outside the vocabulary.
    pub fn token_to_piece(&self, id: u32, out: &mut Vec<u8>) -> Result<()> {
        let token = self.raw_token(id)?;
        let kind = self.kind(id)?;
        if matches!(kind, TokenKind::Control | TokenKind::UserDefined) {
            // A user-defined run of ▁ stands for spaces; elsewhere ▁ may be part of the token's name.
            let spaces = kind == TokenKind::UserDefined && token.chars().all(|c| c == '▁');
            out.extend_from_slice(if spaces { Cow::Owned(token.replace('▁', " ")) } else { Cow::Borrowed(token) }.as_bytes());
            return Ok(());
        }
        match &self.algorithm {
            Algorithm::ByteLevel { .. } => {
                for c in token.chars() {
                    match bpe::char_byte(c) {
                        Some(byte) => out.push(byte),
                        None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
            Algorithm::Pieces { .. } | Algorithm::Scores { .. } => match byte_value(token) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(token.replace('▁', " ").as_bytes()),
            },
            Algorithm::WordPiece { .. } => out.extend_from_slice(token.replace('▁', " ").as_bytes()),
        }
        Ok(())
    }

    /// Bytes of a sequence of tokens, without control tokens if `skip_control`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an id outside the vocabulary.
    pub fn decode_bytes(&self, ids: &[u32], skip_control: bool) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        // The space that encoding puts before the text is not part of it.
        let mut strip = self.space_prefix || matches!(self.algorithm, Algorithm::WordPiece { .. });
        for &id in ids {
            let control = self.kind(id)? == TokenKind::Control;
            if control && skip_control {
                continue;
            }
            let begin = out.len();
            self.token_to_piece(id, &mut out)?;
            if strip && !control {
                strip = false;
                if out.get(begin) == Some(&b' ') {
                    out.remove(begin);
                }
            }
        }
        Ok(out)
    }

    /// Text of a sequence of tokens, without control tokens if `skip_control`. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_control: bool) -> Result<String> {
        let bytes = self.decode_bytes(ids, skip_control)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// A decoder that takes one token at a time and continues a text: no leading space is removed. Control tokens are skipped if
    /// `skip_control`.
    pub fn decode_stream(&self, skip_control: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_control)
    }
}

fn required_merges(vocab: &Vocab, spec: &TokenizerSpec) -> Result<Merges> {
    if spec.merges.is_empty() && vocab.tokens.len() > 256 {
        return Err(bad(
            "merges",
            format!("got none, expected the merges of a `{}` vocabulary of {} tokens", spec.model, vocab.tokens.len()),
        ));
    }
    Merges::new(vocab, &spec.merges)
}

/// The value of a byte token `<0xNN>`.
fn byte_value(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Runs of newlines and runs of everything else, in order.
fn newline_runs(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let newline = rest.starts_with('\n');
        let end = rest.find(|c| (c == '\n') != newline).unwrap_or(rest.len());
        let (run, after) = rest.split_at_checked(end)?;
        rest = after;
        if run.is_empty() { None } else { Some(run) }
    })
}

#[cfg(test)]
mod tests;

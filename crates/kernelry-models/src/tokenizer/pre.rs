//! Pre-tokenizers: how text is cut into words before byte-level BPE merges inside each word.
//!
//! A pre-tokenizer is a list of regular expressions. Each one cuts every piece left by the one before it into its matches and the text
//! between them. The published expressions use one look-around, `\s+(?!\S)|\s+`: a run of white space leaves its last character to the
//! word that follows. Here it is written `\s+` and the last character is given back after the match, so that an engine without
//! backtracking can be used: time is linear in the text whatever the text is.

use kernelry::{Error, Result};
use regex::Regex;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::spec::bad;

const CONTRACTION: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const GPT2_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const CASED_UPPER: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+";
const CASED_LOWER: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*";
const PUNCTUATED: &str =
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+"##;
/// The scripts with upper and lower case, as the first DeepSeek tokenizers list them.
const CASED_SCRIPTS: &str = r"A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃";

/// One family of pre-tokenizers that share their expressions.
struct Entry {
    /// Values of `tokenizer.ggml.pre` that select it.
    names: &'static [&'static str],
    /// The expressions.
    stages: fn() -> Vec<String>,
    /// A word that is a token is taken whole, whatever the merges say.
    ignore_merges: bool,
    /// `bos` is put first unless the file says otherwise.
    add_bos: bool,
    /// Text is brought into normalisation form C first.
    nfc: bool,
}

const fn entry(names: &'static [&'static str], stages: fn() -> Vec<String>) -> Entry {
    Entry { names, stages, ignore_merges: false, add_bos: false, nfc: false }
}

/// Letters with one optional character before them, digits, punctuation with newlines after it, newlines, spaces: the shape that
/// cl100k introduced.
fn cl100k(letters: &str, digits: &str, not_punctuation: &str) -> Vec<String> {
    vec![format!(r"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s{not_punctuation}]+[\r\n]*|\s*[\r\n]+|\s+")]
}

/// The shape that o200k introduced: words break where the case rises.
fn o200k(digits: &str, contraction: &str) -> Vec<String> {
    vec![format!(r"{CASED_UPPER}{contraction}|{CASED_LOWER}{contraction}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+")]
}

fn owned(stages: &[&str]) -> Vec<String> {
    stages.iter().map(|s| (*s).to_owned()).collect()
}

static ENTRIES: &[Entry] = &[
    entry(&["default"], || owned(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"])),
    entry(
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "gigachat",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "granite-docling",
        ],
        || owned(&[GPT2_WORDS]),
    ),
    Entry {
        ignore_merges: true,
        add_bos: true,
        ..entry(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"], || {
            cl100k(r"\p{L}", r"\p{N}{1,3}", r"\p{L}\p{N}")
        })
    },
    entry(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], || cl100k(r"\p{L}", r"\p{N}{1,3}", r"\p{L}\p{N}")),
    Entry { nfc: true, ..entry(&["qwen2", "deepseek-r1-qwen"], || cl100k(r"\p{L}", r"\p{N}", r"\p{L}\p{N}")) },
    Entry { nfc: true, ..entry(&["qwen35"], || cl100k(r"[\p{L}\p{M}]", r"\p{N}", r"\p{L}\p{M}\p{N}")) },
    entry(&["stablelm2", "hunyuan", "megrez", "kormo", "f2llmv2", "grok-2", "solar-open"], || cl100k(r"\p{L}", r"\p{N}", r"\p{L}\p{N}")),
    entry(&["seed-coder"], || {
        vec![format!(r"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+")]
    }),
    Entry {
        ignore_merges: true,
        ..entry(&["minicpm5"], || {
            let mut stages = owned(&[r"\p{N}{1,3}"]);
            stages.extend(cl100k(r"\p{L}", r"\p{N}+", r"\p{L}\p{N}"));
            stages
        })
    },
    entry(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], || o200k(r"\p{N}{1,3}", &format!("{CONTRACTION}?"))),
    Entry { ignore_merges: true, add_bos: true, ..entry(&["tekken"], || o200k(r"\p{N}", "")) },
    entry(&["starcoder", "smollm", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], || owned(&[r"\p{N}", GPT2_WORDS])),
    entry(&["falcon"], || owned(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2_WORDS, "[0-9][0-9][0-9]"])),
    entry(&["deepseek-llm"], || {
        vec![
            r"[\r\n]".to_owned(),
            format!(r"\s?[{CASED_SCRIPTS}]+"),
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+".to_owned(),
            r"\s+$".to_owned(),
            r"[一-龥ࠀ-一가-\x{D7FF}]+".to_owned(),
            r"\p{N}+".to_owned(),
        ]
    }),
    entry(&["deepseek-coder"], || owned(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-\x{D7FF}]+", r"\p{N}"])),
    entry(&["deepseek-v3", "hunyuan-dense", "joyai-llm"], || owned(&[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", PUNCTUATED])),
    entry(&["poro-chat", "bloom", "gpt3-finnish"], || owned(&[r" ?[^(\s|.,!?…。，、।۔،)]+"])),
    entry(&["viking"], || owned(&[r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"])),
];

/// Every value of `tokenizer.ggml.pre` that is understood.
pub fn pre_tokenizers() -> impl Iterator<Item = &'static str> {
    ENTRIES.iter().flat_map(|e| e.names.iter().copied())
}

struct Stage {
    regex: Regex,
    /// Does a run of white space give its last character back, and may that run end in a newline?
    tail: Tail,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// The expression has no alternative for white space.
    None,
    /// Newlines have an alternative of their own, so that a run that ends in one is not the white-space alternative.
    NotNewline,
    /// Any run.
    Any,
}

/// A compiled pre-tokenizer.
pub(crate) struct PreTokenizer {
    stages: Vec<Stage>,
    pub(crate) ignore_merges: bool,
    pub(crate) add_bos: bool,
    nfc: bool,
}

impl PreTokenizer {
    pub(crate) fn new(name: &str) -> Result<PreTokenizer> {
        let Some(entry) = ENTRIES.iter().find(|e| e.names.contains(&name)) else {
            let known: Vec<_> = pre_tokenizers().collect();
            return Err(bad("pre", format!("got `{name}`, expected one of {}", known.join(", "))));
        };
        let compile = |source: String| {
            let tail = match (source.ends_with(r"|\s+"), source.contains(r"[\r\n]+|\s+")) {
                (false, _) => Tail::None,
                (true, false) => Tail::Any,
                (true, true) => Tail::NotNewline,
            };
            let regex = Regex::new(&source).map_err(|e| Error::invalid("tokenizer", format!("pre-tokenizer `{name}`: {e}")))?;
            Ok(Stage { regex, tail })
        };
        let stages = (entry.stages)().into_iter().map(compile).collect::<Result<_>>()?;
        Ok(PreTokenizer { stages, ignore_merges: entry.ignore_merges, add_bos: entry.add_bos, nfc: entry.nfc })
    }

    /// Calls `word` with each word of `text`, in order.
    pub(crate) fn split(&self, text: &str, word: &mut dyn FnMut(&str)) {
        if self.nfc && is_nfc_quick(text.chars()) != IsNormalized::Yes {
            let text: String = text.nfc().collect();
            split_from(&self.stages, &text, word);
        } else {
            split_from(&self.stages, text, word);
        }
    }
}

fn split_from(stages: &[Stage], text: &str, word: &mut dyn FnMut(&str)) {
    let Some((stage, rest)) = stages.split_first() else {
        if !text.is_empty() {
            word(text);
        }
        return;
    };
    let mut at = 0;
    let mut search = 0;
    while let Some(found) = stage.regex.find_at(text, search) {
        let mut end = found.end();
        if end < text.len()
            && let Some(last) = found.as_str().chars().next_back()
            && stage.tail.applies(last)
            && last.len_utf8() < found.len()
        {
            end -= last.len_utf8();
        }
        if end == found.start() {
            break; // no expression of the table matches nothing; this only keeps a faulty one from looping
        }
        for piece in [text.get(at..found.start()), text.get(found.start()..end)].into_iter().flatten().filter(|p| !p.is_empty()) {
            split_from(rest, piece, word);
        }
        at = end;
        search = end;
    }
    if let Some(piece) = text.get(at..).filter(|p| !p.is_empty()) {
        split_from(rest, piece, word);
    }
}

impl Tail {
    fn applies(self, last: char) -> bool {
        match self {
            Tail::None => false,
            Tail::NotNewline => last.is_whitespace() && last != '\n' && last != '\r',
            Tail::Any => last.is_whitespace(),
        }
    }
}

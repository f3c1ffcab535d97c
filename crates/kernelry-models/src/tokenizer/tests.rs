#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn bytes() -> Vec<String> {
    (0..=255u8).map(|b| bpe::byte_char(b).unwrap().to_string()).collect()
}

fn gpt2(extra: &[&str], merges: &[&str]) -> TokenizerSpec {
    let mut tokens = bytes();
    tokens.extend(extra.iter().map(|t| (*t).to_owned()));
    let merges = merges.iter().map(|m| (*m).to_owned()).collect();
    TokenizerSpec { model: "gpt2".into(), pre: Some("gpt-2".into()), tokens, merges, ..Default::default() }
}

fn llama() -> TokenizerSpec {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(["▁", "a", "b", "ab", "▁a", "▁ab"].map(str::to_owned));
    let mut token_types = vec![2, 3, 3];
    token_types.extend([6; 256]);
    token_types.extend([1; 6]);
    let mut scores = vec![0.0; 259];
    scores.extend([-3.0, -4.0, -5.0, -1.0, -0.5, -2.0]);
    TokenizerSpec { model: "llama".into(), tokens, token_types, scores, bos: Some(1), eos: Some(2), ..Default::default() }
}

#[test]
fn byte_characters_are_a_bijection() {
    for byte in 0..=255u8 {
        assert_eq!(bpe::char_byte(bpe::byte_char(byte).unwrap()), Some(byte));
    }
    assert_eq!(bpe::byte_char(b' '), Some('Ġ'));
    assert_eq!(bpe::byte_char(b'\n'), Some('Ċ'));
    assert_eq!(bpe::char_byte('\u{144}'), None);
}

#[test]
fn defects_of_metadata_name_the_key() {
    let base = || gpt2(&["he"], &["h e"]);
    let cases: Vec<(&str, TokenizerSpec)> = vec![
        ("tokenizer.ggml.model: got `rwkv`", TokenizerSpec { model: "rwkv".into(), ..base() }),
        ("tokenizer.ggml.pre: got `nonsense`", TokenizerSpec { pre: Some("nonsense".into()), ..base() }),
        ("tokenizer.ggml.tokens: got an empty", TokenizerSpec { tokens: vec![], ..base() }),
        ("tokenizer.ggml.token_type: got 3 entries, expected 257", TokenizerSpec { token_types: vec![1; 3], ..base() }),
        ("tokenizer.ggml.token_type: token 0: got 9", TokenizerSpec { token_types: vec![9; 257], ..base() }),
        ("tokenizer.ggml.scores: got 2 entries", TokenizerSpec { scores: vec![0.0; 2], ..base() }),
        ("tokenizer.ggml.bos_token_id: got 257", TokenizerSpec { bos: Some(257), ..base() }),
        ("tokenizer.ggml.eot_token_id: got 4294967295", TokenizerSpec { eot: Some(u32::MAX), ..base() }),
        ("merge 0: `zz` is not in the vocabulary", gpt2(&["he"], &["zz e"])),
        ("merge 1: `eh` is not in the vocabulary", gpt2(&["he"], &["h e", "e h"])),
        ("merge 0: got `he`", gpt2(&["he"], &["he"])),
        ("merge 0: got ``", gpt2(&["he"], &[""])),
        ("tokenizer.ggml.merges: got none", gpt2(&["he"], &[])),
        ("tokenizer.ggml.scores: got none", TokenizerSpec { scores: vec![], ..llama() }),
        ("tokenizer.ggml.scores: token 7: got NaN", {
            let mut spec = llama();
            spec.scores[7] = f32::NAN;
            spec
        }),
        ("tokenizer.ggml.unknown_token_id: missing", TokenizerSpec { model: "bert".into(), ..base() }),
    ];
    for (expected, spec) in cases {
        let error = Tokenizer::new(spec).unwrap_err().to_string();
        assert!(error.contains(expected), "got `{error}`, expected `{expected}`");
    }
}

#[test]
fn a_missing_pre_tokenizer_is_a_warning() {
    let tokenizer = Tokenizer::new(TokenizerSpec { pre: None, ..gpt2(&["he"], &["h e"]) }).unwrap();
    assert_eq!(tokenizer.warnings().len(), 1);
    assert!(Tokenizer::new(gpt2(&["he"], &["h e"])).unwrap().warnings().is_empty());
}

#[test]
fn every_pre_tokenizer_compiles_and_loses_nothing() {
    let text = "It's 12345 x\u{301}y\r\n\n  日本語 ÀÉ don't\t$%& \u{1F600} ";
    for name in pre_tokenizers() {
        let tokenizer = Tokenizer::new(TokenizerSpec { pre: Some(name.into()), ..gpt2(&["he"], &["h e"]) }).unwrap();
        assert_eq!(tokenizer.words(text).concat(), text, "{name}");
    }
}

#[test]
fn the_lowest_rank_merges_first() {
    let tokenizer = Tokenizer::new(gpt2(&["bc", "ab", "abc"], &["b c", "a b", "a bc"])).unwrap();
    assert_eq!(tokenizer.encode("abc", Specials::AsText).unwrap(), [258]);
    let tokenizer = Tokenizer::new(gpt2(&["bc", "ab", "abc"], &["a b", "b c", "a bc"])).unwrap();
    assert_eq!(tokenizer.encode("abc", Specials::AsText).unwrap(), [257, u32::from(b'c')]);
}

#[test]
fn scores_decide_in_sentencepiece() {
    let tokenizer = Tokenizer::new(llama()).unwrap();
    // ▁a (-0.5) merges before ab (-1), then ▁ab.
    assert_eq!(tokenizer.encode("ab", Specials::AsText).unwrap(), [264]);
    assert_eq!(tokenizer.encode_prompt("ab", Specials::AsText).unwrap(), [1, 264]);
    assert_eq!(tokenizer.encode_prompt("<s>ab", Specials::Parse).unwrap(), [1, 264]);
    // No token for é: its two bytes.
    assert_eq!(tokenizer.encode("é", Specials::AsText).unwrap(), [259, 3 + 0xC3, 3 + 0xA9]);
    assert_eq!(tokenizer.decode(&[259, 3 + 0xC3, 3 + 0xA9], true).unwrap(), "é");
    let plain = Tokenizer::new(TokenizerSpec { add_space_prefix: Some(false), ..llama() }).unwrap();
    assert_eq!(plain.encode("ab", Specials::AsText).unwrap(), [262]);
}

#[test]
fn ids_past_the_vocabulary_are_errors() {
    let tokenizer = Tokenizer::new(llama()).unwrap();
    let n = tokenizer.vocab_size() as u32;
    assert!(tokenizer.decode(&[n], true).unwrap_err().to_string().contains(&format!("got {n}, expected an id below {n}")));
    assert!(tokenizer.raw_token(u32::MAX).is_err());
    assert!(tokenizer.kind(n).is_err());
    let mut stream = tokenizer.decode_stream(true);
    assert_eq!(stream.push(3 + 0xC3).unwrap(), "");
    assert!(stream.push(n).is_err());
    assert_eq!(stream.push(3 + 0xA9).unwrap(), "é");
}

#[test]
fn streams_replace_what_can_not_become_text() {
    let tokenizer = Tokenizer::new(llama()).unwrap();
    let run = |bytes: &[u8]| {
        let mut stream = tokenizer.decode_stream(true);
        let mut out: Vec<String> = bytes.iter().map(|&b| stream.push(3 + u32::from(b)).unwrap()).collect();
        out.push(stream.finish());
        out
    };
    assert_eq!(run(&[0xFF, b'a']), ["\u{FFFD}", "a", ""]);
    assert_eq!(run(&[0xE2, 0x82, b'a']), ["", "", "\u{FFFD}a", ""]);
    assert_eq!(run(&[0xE0, 0x80]), ["", "\u{FFFD}\u{FFFD}", ""]);
    assert_eq!(run(&[0xF0, 0x9F, 0x98]), ["", "", "", "\u{FFFD}"]);
}

#[test]
fn guarded_text_spells_no_special_token() {
    let mut spec = gpt2(&["he", "<|a|>", "|><|", "<t>", "  "], &["h e"]);
    spec.token_types = vec![1; 257];
    spec.token_types.extend([3, 3, 4, 4]);
    let tokenizer = Tokenizer::new(spec).unwrap();
    let special = |ids: &[u32]| ids.iter().filter(|&&id| (257..260).contains(&id)).count();
    for text in ["<|a|>", "<|a|><|a|>", "x<|a|", "<t><|a|>|><|", "plain", "\u{FDD0}<|a|>", "<|\u{FDD0}a|>", "a  b"] {
        let guarded = tokenizer.encode(&tokenizer.guard(text), Specials::Parse).unwrap();
        assert_eq!(special(&guarded), 0, "{text:?}");
        assert_eq!(guarded, tokenizer.encode(&text.replace('\u{FDD0}', ""), Specials::AsText).unwrap(), "{text:?}");
    }
    assert_eq!(tokenizer.encode("<t><|a|>", Specials::Parse).unwrap(), [259, 257]);
    assert_eq!(special(&tokenizer.encode("<t><|a|>", Specials::UserDefined).unwrap()), 1);
    assert_eq!(tokenizer.encode("  ", Specials::AsText).unwrap(), [260]);
    assert_eq!(tokenizer.decode(&[257, 259, 65], true).unwrap(), "<t>A");
}

#[test]
fn long_words_and_runs_take_linear_memory_and_time() {
    let tokenizer =
        Tokenizer::new(TokenizerSpec { pre: Some("llama-bpe".into()), ..gpt2(&["aa", "aaaa", "ĠĠ"], &["a a", "aa aa", "Ġ Ġ"]) }).unwrap();
    for text in ["a".repeat(1 << 20), " ".repeat(1 << 20), "\n".repeat(1 << 20), "'".repeat(1 << 20), " \n".repeat(1 << 19) + "x"] {
        let ids = tokenizer.encode(&text, Specials::Parse).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    let tokenizer = Tokenizer::new(llama()).unwrap();
    let text = "ab".repeat(1 << 18);
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text, Specials::Parse).unwrap(), false).unwrap(), text);
}

/// Time to load a vocabulary of 150 000 and to encode with it; run with `cargo test --release -- --ignored --nocapture time_to_load`.
#[test]
#[ignore = "a measurement"]
fn time_to_load() {
    let mut tokens = bytes();
    let mut merges = Vec::new();
    let letters: Vec<String> = tokens.iter().filter(|t| t.chars().all(|c| c.is_ascii_lowercase() || c == 'Ġ')).cloned().collect();
    let mut level = letters.clone();
    while tokens.len() < 150_000 {
        let mut next = Vec::new();
        for (left, right) in level.iter().flat_map(|l| letters.iter().map(move |r| (l, r))).take(150_000 - tokens.len()) {
            merges.push(format!("{left} {right}"));
            next.push(format!("{left}{right}"));
        }
        tokens.extend(next.iter().cloned());
        level = next;
    }
    let spec = TokenizerSpec { model: "gpt2".into(), pre: Some("llama-bpe".into()), tokens, merges, ..Default::default() };
    let start = std::time::Instant::now();
    let tokenizer = Tokenizer::new(spec).unwrap();
    println!("load: {:?}", start.elapsed());
    let text = "the quick brown fox jumps over the lazy dog, and 12345 more; ".repeat(20_000);
    let start = std::time::Instant::now();
    let ids = tokenizer.encode(&text, Specials::Parse).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("encode: {:.1} MB/s, {} tokens", text.len() as f64 / 1e6 / seconds, ids.len());
}

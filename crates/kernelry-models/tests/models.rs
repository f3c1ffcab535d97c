//! Whole models against `transformers`: the same logits, the same greedy tokens, however the prompt is cut.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kernelry::gguf::GgufFile;
use kernelry::registry::Registry;
use kernelry::safetensors::SafeTensors;
use kernelry::{Context, Device, Error};
use kernelry_models::sampler::{Sampler, SamplingParams};
use kernelry_models::stop::{StopConditions, StopReason};
use kernelry_models::{Generator, Model, ModelOptions};

const NAMES: [&str; 4] = ["llama", "llama_tied", "qwen2", "qwen3"];

fn path(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny").join(name)
}

struct Tiny {
    model: Model,
    prompt: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

fn load(name: &str, options: ModelOptions) -> Tiny {
    load_on(&Context::cpu(), name, options)
}

fn load_on(ctx: &Context, name: &str, options: ModelOptions) -> Tiny {
    let model = Model::open(&path(&format!("{name}.gguf")), ctx, options).unwrap();
    let expected = SafeTensors::open(path(&format!("{name}.safetensors"))).unwrap();
    let ids = |key: &str| {
        let bytes = expected.tensor_bytes(key).unwrap();
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    Tiny { model, prompt: ids("prompt"), logits: expected.read_f32("logits").unwrap(), greedy: ids("greedy") }
}

/// Largest difference over the largest expected value.
fn relative_error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(scale > 0.1, "flat logits prove nothing");
    got.iter().zip(expected).fold(0.0f32, |m, (g, e)| m.max((g - e).abs())) / scale
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}

#[test]
fn logits_of_every_position_equal_those_of_transformers() {
    for name in NAMES {
        let tiny = load(name, ModelOptions::precise());
        let got = tiny.model.session().unwrap().append_all(&tiny.prompt).unwrap();
        let error = relative_error(&got, &tiny.logits);
        assert!(error <= 1e-4, "{name}: {error}");
    }
}

#[test]
fn sixty_four_greedy_tokens_equal_those_of_transformers() {
    for name in NAMES {
        let tiny = load(name, ModelOptions::precise());
        let mut session = tiny.model.session().unwrap();
        let mut token = argmax(session.append(&tiny.prompt).unwrap());
        let mut tokens = vec![token];
        while tokens.len() < tiny.greedy.len() {
            token = argmax(session.append(&[token]).unwrap());
            tokens.push(token);
        }
        assert_eq!(tokens, tiny.greedy, "{name}");
    }
}

/// The texts of GPU kernels run whole models too. A device that maps no files has the projections of a block stacked.
#[test]
fn the_emulator_writes_the_same_tokens() {
    let ctx = Context::new(Device::open("emulator").expect("a C++ compiler"), Registry::new());
    for name in NAMES {
        let tiny = load_on(&ctx, name, ModelOptions::precise());
        let mut session = tiny.model.session().unwrap();
        let mut token = argmax(session.append(&tiny.prompt).unwrap());
        for (i, &expected) in tiny.greedy.iter().take(5).enumerate() {
            assert_eq!(token, expected, "{name}: token {i}");
            token = argmax(session.append(&[token]).unwrap());
        }
    }
}

#[test]
fn any_split_of_a_prompt_gives_the_same_logits() {
    for name in NAMES {
        let tiny = load(name, ModelOptions::precise());
        let (prompt, vocab) = (&tiny.prompt, tiny.model.config().vocab);
        let expected = &tiny.logits[(prompt.len() - 1) * vocab..];
        for cuts in [&[][..], &[1], &[20], &[2, 3, 10], &[7, 14], &(1..prompt.len()).collect::<Vec<_>>()[..]] {
            let mut session = tiny.model.session().unwrap();
            let mut last = Vec::new();
            let ends = cuts.iter().copied().chain([prompt.len()]);
            let mut start = 0;
            for end in ends {
                last = session.append(&prompt[start..end]).unwrap().to_vec();
                start = end;
            }
            let error = relative_error(&last, expected);
            assert!(error <= 1e-4, "{name} cut at {cuts:?}: {error}");
        }
        for batch in [1, 2, 5, 20, 21] {
            let small = load(name, ModelOptions::precise().with_batch(batch));
            let got = small.model.session().unwrap().append_all(&small.prompt).unwrap();
            assert!(relative_error(&got, &tiny.logits) <= 1e-4, "{name} in batches of {batch}");
        }
    }
}

#[test]
fn the_fast_mode_with_half_precision_caches_stays_close() {
    for name in NAMES {
        let tiny = load(name, ModelOptions::default());
        let got = tiny.model.session().unwrap().append_all(&tiny.prompt).unwrap();
        let error = relative_error(&got, &tiny.logits);
        // These files are f32, so the caches alone are rounded.
        assert!(error <= 5e-3 && error > 0.0, "{name}: {error}");
    }
}

#[test]
fn sessions_are_independent_and_can_be_cut_back() {
    let tiny = load("qwen3", ModelOptions::precise());
    let mut a = tiny.model.session().unwrap();
    let first = a.append(&tiny.prompt).unwrap().to_vec();
    let mut b = tiny.model.session().unwrap();
    b.append(&[5, 6, 7]).unwrap();
    a.append(&[3]).unwrap();
    a.truncate(tiny.prompt.len() - 2).unwrap();
    let again = a.append(&tiny.prompt[tiny.prompt.len() - 2..]).unwrap().to_vec();
    assert!(relative_error(&again, &first) <= 1e-5);
    assert!(a.truncate(1000).is_err());
}

#[test]
fn a_replayed_step_gives_the_bits_of_the_first() {
    let tiny = load("llama", ModelOptions::precise());
    let mut session = tiny.model.session().unwrap();
    session.append(&tiny.prompt).unwrap();
    let first = session.append(&[9]).unwrap().to_vec();
    for _ in 0..3 {
        session.append(&[4]).unwrap();
        session.truncate(tiny.prompt.len()).unwrap();
        assert_eq!(session.append(&[9]).unwrap(), first);
    }
    let mut fresh = tiny.model.session().unwrap();
    fresh.append(&tiny.prompt).unwrap();
    assert_eq!(fresh.append(&[9]).unwrap(), first);
}

#[test]
fn wrong_prompts_are_errors_and_leave_the_session_as_it_was() {
    let tiny = load("llama", ModelOptions::precise().with_context(Some(24)));
    let mut session = tiny.model.session().unwrap();
    for (tokens, word) in [(vec![], "none"), (vec![120], "120"), (vec![0; 25], "25 tokens")] {
        let error = session.append(&tokens).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(session.is_empty());
    }
    session.append(&tiny.prompt).unwrap();
    for _ in 0..3 {
        session.append(&[1]).unwrap();
    }
    assert!(matches!(session.append(&[1]), Err(Error::InvalidArgument { .. })), "the context is full");
    let too_large = ModelOptions::default().with_context(Some(1 << 20));
    assert!(Model::open(&path("llama.gguf"), &Context::cpu(), too_large).is_err());
}

#[test]
fn damaged_files_are_errors_that_name_what_is_wrong() {
    let bytes = std::fs::read(path("qwen3.gguf")).unwrap();
    let ctx = Context::cpu();
    for len in (0..bytes.len()).step_by(997) {
        let Ok(file) = GgufFile::from_bytes(&bytes[..len]) else { continue };
        assert!(Generator::load(&file, &ctx, ModelOptions::default(), &mut |_, _| ()).is_err(), "{len} bytes");
    }
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect(from);
        let mut bytes = bytes.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        GgufFile::from_bytes(bytes).and_then(|file| Model::load(&file, &ctx, ModelOptions::default(), &mut |_, _| ())).err().expect(to)
    };
    let unknown = replaced("qwen3", "qwerk").to_string();
    assert!(unknown.contains("qwerk") && unknown.contains("llama"), "{unknown}");
    let missing = replaced("blk.1.ffn_down.weight", "blk.1.ffn_dawn.weight").to_string();
    assert!(missing.contains("blk.1.ffn_down.weight"), "{missing}");
    let key = replaced("qwen3.block_count", "qwen3.black_count").to_string();
    assert!(key.contains("qwen3.block_count"), "{key}");
}

#[test]
fn generation_is_reproducible_and_ends_where_it_must() {
    let file = GgufFile::open(path("qwen3.gguf")).unwrap();
    let mut generator = Generator::load(&file, &Context::cpu(), ModelOptions::precise(), &mut |_, _| ()).unwrap();
    let tiny = load("qwen3", ModelOptions::precise());
    let limit = |n| StopConditions { max_tokens: Some(n), ..StopConditions::default() };
    let ends = generator.tokenizer().end_of_generation().to_vec();
    let mut run = |sampling: SamplingParams, n: usize| generator.generate(&tiny.prompt, sampling, limit(n), &mut |_| true).unwrap();
    let greedy = run(SamplingParams::greedy(), 64);
    let expected: Vec<u32> = match tiny.greedy.iter().position(|t| ends.contains(t)) {
        Some(end) => tiny.greedy[..=end].to_vec(),
        None => tiny.greedy.clone(),
    };
    assert_eq!(greedy.tokens, expected);
    assert_eq!(run(SamplingParams::greedy(), 3).reason, Some(StopReason::Length));
    assert!(run(SamplingParams::greedy(), 0).tokens.is_empty());
    let at = |seed| SamplingParams { seed: Some(seed), ..SamplingParams::at_temperature(1.0) };
    let first = run(at(7), 20).tokens;
    assert_eq!(run(at(7), 20).tokens, first);
    assert_ne!(run(at(8), 20).tokens, first);
    let mut pieces = 0;
    let stopped = generator.generate(&tiny.prompt, SamplingParams::greedy(), limit(50), &mut |_| {
        pieces += 1;
        pieces < 3
    });
    assert!(stopped.unwrap().reason.is_none());
}

/// Tokens after a prompt, each drawn by the host from the whole row.
fn drawn_from_rows(model: &Model, prompt: &[u32], sampling: &SamplingParams, vocab: usize, n: usize) -> Vec<u32> {
    let mut session = model.session().unwrap();
    let mut sampler = Sampler::new(sampling.clone()).unwrap();
    sampler.observe_prompt(prompt);
    let mut row = session.append(prompt).unwrap().to_vec();
    let mut tokens = Vec::new();
    while tokens.len() < n {
        tokens.push(sampler.sample(&mut row[..vocab]).unwrap());
        row = session.append(&tokens[tokens.len() - 1..]).unwrap().to_vec();
    }
    tokens
}

/// What is generated does not depend on where the row of logits is cut down to those that matter.
fn generated_tokens_are_those_of_whole_rows(ctx: &Context, n: usize, seeds: std::ops::Range<u64>) {
    let file = GgufFile::open(path("qwen3.gguf")).unwrap();
    let mut generator = Generator::load(&file, ctx, ModelOptions::precise(), &mut |_, _| ()).unwrap();
    let prompt = load("qwen3", ModelOptions::precise()).prompt;
    let vocab = generator.tokenizer().vocab_size().min(generator.model().config().vocab);
    let ends = generator.tokenizer().end_of_generation().to_vec();
    let favourite = load("qwen3", ModelOptions::precise()).greedy[0];
    let d = SamplingParams::default;
    let sets = [
        d(),
        SamplingParams::greedy(),
        SamplingParams { temperature: 1.5, top_k: 20, top_p: 1.0, ..d() },
        SamplingParams { temperature: 1.2, top_k: 200, top_p: 0.97, min_p: 0.02, ..d() },
        SamplingParams { temperature: 3.0, top_k: 1, ..d() },
        SamplingParams { temperature: 2.0, top_k: vocab, ..d() },
        SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.2, temperature: 1.1, ..d() },
        SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.2, temperature: 1.1, top_k: 10, ..d() },
        SamplingParams { repetition_penalty: 1.1, top_k: 0, ..d() },
        SamplingParams { presence_penalty: 0.6, frequency_penalty: 0.31, ..SamplingParams::greedy() },
        SamplingParams { logit_bias: vec![(5, 3.0), (favourite, f32::NEG_INFINITY), (5, 2.5)], temperature: 1.3, ..d() },
        SamplingParams { logit_bias: vec![(7, 100.0)], ..SamplingParams::greedy() },
        d(),
    ];
    let mut distinct = std::collections::BTreeSet::new();
    for sampling in sets {
        for seed in seeds.clone() {
            let sampling = SamplingParams { seed: Some(seed), ..sampling.clone() };
            let mut expected = drawn_from_rows(generator.model(), &prompt, &sampling, vocab, n);
            if let Some(end) = expected.iter().position(|t| ends.contains(t)) {
                expected.truncate(end + 1);
            }
            let limit = StopConditions { max_tokens: Some(n), ..StopConditions::default() };
            let got = generator.generate(&prompt, sampling.clone(), limit, &mut |_| true).unwrap();
            assert_eq!(got.tokens, expected, "{sampling:?}");
            distinct.insert(got.tokens);
        }
    }
    assert!(distinct.len() > 5, "the parameters hardly change what is written: {distinct:?}");
}

#[test]
fn candidates_of_the_device_give_the_tokens_of_whole_rows() {
    generated_tokens_are_those_of_whole_rows(&Context::cpu(), 24, 1..5);
}

#[test]
fn candidates_of_the_emulator_give_the_tokens_of_whole_rows() {
    let ctx = Context::new(Device::open("emulator").expect("a C++ compiler"), Registry::new());
    generated_tokens_are_those_of_whole_rows(&ctx, 4, 1..2);
}

#[test]
fn the_device_selects_the_highest_logits() {
    let tiny = load("llama", ModelOptions::precise());
    let mut session = tiny.model.session().unwrap();
    let vocab = session.model().config().vocab;
    session.append(&tiny.prompt).unwrap();
    let len = session.len();
    for (of, k) in [(vocab, 5), (vocab, 6), (vocab / 2, 6), (100, 100), (1, 1)] {
        session.truncate(len).unwrap();
        let row = session.append(&[9]).unwrap()[..of].to_vec();
        let mut order: Vec<u32> = (0..of as u32).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        session.truncate(len).unwrap();
        let got = session.append_choice(9, of, k).unwrap();
        assert_eq!(got.iter().map(|c| c.id).collect::<Vec<_>>(), order[..k], "{k} of the first {of}");
        assert!(got.iter().all(|c| c.logit == row[c.id as usize]), "{got:?}");
        assert_eq!(session.len(), len + 1);
    }
    let stranger = SamplingParams { logit_bias: vec![(vocab as u32, 1.0)], ..SamplingParams::default() };
    assert!(matches!(session.penalise(&stranger, &[]), Err(Error::InvalidArgument { .. })));
    for (of, k) in [(0, 1), (vocab + 1, 1), (vocab, 0), (10, 11), (vocab, 257)] {
        assert!(matches!(session.append_choice(9, of, k), Err(Error::InvalidArgument { .. })), "{k} of the first {of}");
    }
}

/// A model whose logits are NaN after one token: the choice of the device has no answer, and the error is that of the whole row.
#[test]
fn rows_that_cannot_be_sampled_are_errors_however_the_choice_is_made() {
    let mut bytes = std::fs::read(path("llama.gguf")).unwrap();
    let file = GgufFile::from_bytes(bytes.clone()).unwrap();
    let tiny = load("llama", ModelOptions::precise());
    let token = tiny.greedy[0];
    assert!(file.find_tensor("output.weight").is_some(), "the embedding is used at the input alone");
    let (start, len) = file.tensor_range("token_embd.weight").unwrap();
    let row = len / tiny.model.config().vocab;
    bytes[start + row * token as usize..][..row].fill(0xff);
    let file = GgufFile::from_bytes(bytes).unwrap();
    let mut generator = Generator::load(&file, &Context::cpu(), ModelOptions::precise(), &mut |_, _| ()).unwrap();
    assert!(!tiny.prompt.contains(&token));
    let limit = || StopConditions { max_tokens: Some(5), ..StopConditions::default() };
    let penalised = SamplingParams { frequency_penalty: 0.1, ..SamplingParams::greedy() };
    for sampling in [SamplingParams::greedy(), SamplingParams { top_k: 1, ..SamplingParams::default() }, penalised] {
        let error = generator.generate(&tiny.prompt, sampling, limit(), &mut |_| true).unwrap_err().to_string();
        assert_eq!(error, "[sample] logits: got NaN at id 0, expected numbers below infinity");
    }
    let session = generator.session();
    session.truncate(0).unwrap();
    session.append(&tiny.prompt).unwrap();
    assert_eq!(session.append_greedy(token, 100).unwrap(), None);
    assert!(session.last_logits().unwrap()[0].is_nan());
}

#[test]
fn the_device_chooses_the_highest_logit() {
    let tiny = load("llama", ModelOptions::precise());
    let mut session = tiny.model.session().unwrap();
    let vocab = session.model().config().vocab;
    session.append(&tiny.prompt).unwrap();
    let len = session.len();
    for of in [vocab, vocab / 2, 1] {
        session.truncate(len).unwrap();
        let expected = argmax(&session.append(&[9]).unwrap()[..of]);
        session.truncate(len).unwrap();
        assert_eq!(session.append_greedy(9, of).unwrap(), Some(expected), "the first {of}");
        assert_eq!(argmax(&session.last_logits().unwrap()[..of]), expected);
    }
    for of in [0, vocab + 1] {
        assert!(matches!(session.append_greedy(9, of), Err(Error::InvalidArgument { .. })), "the first {of}");
    }
}

//! The model in the box: our tokenizer and forward pass against those of the libraries that made it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kernelry::Context;
use kernelry_models::sampler::SamplingParams;
use kernelry_models::stop::StopConditions;
use kernelry_models::tokenizer::Specials;
use kernelry_models::{Generator, ModelOptions, box_model};

#[derive(serde::Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    prompt: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    top_ids: Vec<u32>,
    top_logits: Vec<f32>,
}

fn generator(options: ModelOptions) -> Generator {
    Generator::load(&box_model().unwrap(), &Context::cpu(), options, &mut |_, _| ()).unwrap()
}

#[test]
fn ids_logits_and_greedy_tokens_equal_those_of_torch() {
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/box.json")).unwrap();
    assert!(fixture.cases.len() >= 3);
    let mut generator = generator(ModelOptions::precise());
    for case in fixture.cases {
        assert_eq!(generator.tokenizer().encode_prompt(&case.prompt, Specials::AsText).unwrap(), case.ids, "{}", case.prompt);
        generator.session().truncate(0).unwrap();
        let logits = generator.session().append(&case.ids).unwrap();
        for (id, expected) in case.top_ids.iter().zip(&case.top_logits) {
            let got = logits[*id as usize];
            assert!((got - expected).abs() <= 1e-4 * expected.abs(), "{}: token {id}: got {got}, expected {expected}", case.prompt);
        }
        let limit = StopConditions { max_tokens: Some(case.greedy.len()), ..StopConditions::default() };
        let written = generator.generate(&case.ids, SamplingParams::greedy(), limit, &mut |_| true).unwrap();
        assert_eq!(written.tokens, case.greedy, "{}", case.prompt);
    }
}

#[test]
fn the_fast_mode_agrees_on_the_next_token() {
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/box.json")).unwrap();
    let mut generator = generator(ModelOptions::default());
    for case in fixture.cases {
        generator.session().truncate(0).unwrap();
        let logits = generator.session().append(&case.ids).unwrap();
        let best = (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
        assert_eq!(best as u32, case.top_ids[0], "{}", case.prompt);
    }
}

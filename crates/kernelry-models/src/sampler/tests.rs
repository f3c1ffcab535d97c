#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

fn params(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> SamplingParams {
    SamplingParams { temperature, top_k, top_p, min_p, seed: Some(1), ..SamplingParams::greedy() }
}

fn sample(params: SamplingParams, logits: &[f32]) -> Result<u32> {
    Sampler::new(params)?.sample(&mut logits.to_vec())
}

/// Probabilities by the text of the module: sorts everything, f64 throughout.
fn reference(logits: &[f32], p: &SamplingParams) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).filter(|&i| logits[i] > f32::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    if p.top_k > 0 {
        order.truncate(p.top_k);
    }
    let max = f64::from(logits[order[0]]);
    let weight = |i: usize, t: f64| ((f64::from(logits[i]) - max) / t).exp();
    if p.top_p < 1.0 {
        let total: f64 = order.iter().map(|&i| weight(i, 1.0)).sum();
        let mut sum = 0.0;
        let kept = order.iter().position(|&i| {
            sum += weight(i, 1.0) / total;
            sum >= f64::from(p.top_p)
        });
        order.truncate(kept.map_or(order.len(), |k| k + 1));
    }
    if p.min_p > 0.0 {
        let cut = logits[order[0]] + p.min_p.ln();
        order.retain(|&i| logits[i] >= cut);
    }
    let total: f64 = order.iter().map(|&i| weight(i, f64::from(p.temperature))).sum();
    let mut out = vec![0.0; logits.len()];
    for &i in &order {
        out[i] = weight(i, f64::from(p.temperature)) / total;
    }
    out
}

/// The `k` highest logits above −infinity by a sort of all, which keeps equals in order.
fn highest(logits: &[f32], k: usize) -> Vec<Candidate> {
    let all = (0u32..).zip(logits).map(|(id, &logit)| Candidate { logit, id });
    let mut order: Vec<Candidate> = all.filter(|c| c.logit > f32::NEG_INFINITY).collect();
    order.sort_by(|a, b| b.logit.partial_cmp(&a.logit).unwrap());
    order.truncate(k);
    order
}

/// What the sampler would draw from, by the code under test.
fn distribution(logits: &[f32], p: &SamplingParams) -> Vec<f64> {
    let mut sampler = Sampler::new(p.clone()).unwrap();
    let max = row_max(logits).unwrap();
    sampler.gather(logits, max);
    sampler.draw(max).unwrap();
    let mut out = vec![0.0; logits.len()];
    let total = *sampler.weights.last().unwrap();
    let mut before = 0.0;
    for (c, &sum) in sampler.candidates.iter().zip(&sampler.weights) {
        out[c.id as usize] = (sum - before) / total;
        before = sum;
    }
    out
}

proptest! {
    #[test]
    fn distribution_equals_the_plain_one(
        quarters in prop::collection::vec(-60i32..40, 1..400),
        temperature in 0.2f32..3.0,
        top_k in prop_oneof![Just(0usize), 1usize..50, 300usize..500],
        top_p in prop_oneof![Just(1.0f32), 0.05f32..0.99],
        min_p in prop_oneof![Just(0.0f32), 0.001f32..1.0],
    ) {
        // Quarters make ties common. Some tokens are forbidden.
        let logits: Vec<f32> = quarters.iter().map(|&q| if q == -60 { f32::NEG_INFINITY } else { q as f32 / 4.0 }).collect();
        prop_assume!(logits.iter().any(|&x| x > f32::NEG_INFINITY));
        let p = params(temperature, top_k, top_p, min_p);
        let (got, expected) = (distribution(&logits, &p), reference(&logits, &p));
        // A sum that hits top_p but for rounding may keep one token more or less.
        let kept = |d: &[f64]| d.iter().filter(|&&x| x > 0.0).count();
        let borderline = {
            let nudge = |by: f32| kept(&reference(&logits, &SamplingParams { top_p: (p.top_p * by).min(1.0), ..p.clone() }));
            top_p < 1.0 && nudge(0.999_998) != nudge(1.000_002)
        };
        if !borderline {
            for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
                prop_assert!((g - e).abs() < 1e-9, "token {i}: got {g}, expected {e}");
            }
        }
    }

    #[test]
    fn top_k_is_the_head_of_a_stable_sort(halves in prop::collection::vec(-9i32..9, 1..3000), k in 1usize..200) {
        // Zeros of both signs are equal.
        let logits: Vec<f32> = halves.iter().enumerate().map(|(i, &h)| if i % 2 == 0 { h as f32 / 2.0 } else { -(h as f32) / 2.0 }).collect();
        let mut out = Vec::new();
        select_top_k(&logits, k, &mut out);
        prop_assert_eq!(out, highest(&logits, k));
    }

    #[test]
    fn candidates_give_the_tokens_of_the_whole_row(
        quarters in prop::collection::vec(-40i32..30, 2..3000),
        temperature in prop_oneof![Just(0.0f32), 0.2f32..3.0],
        top_k in 1usize..300,
        top_p in prop_oneof![Just(1.0f32), 0.05f32..0.99],
        min_p in prop_oneof![Just(0.0f32), 0.001f32..1.0],
        seed in any::<u64>(),
    ) {
        let logits: Vec<f32> = quarters.iter().map(|&q| if q < -30 { f32::NEG_INFINITY } else { -q as f32 / -4.0 }).collect();
        prop_assume!(logits.iter().any(|&x| x > f32::NEG_INFINITY));
        let p = SamplingParams { seed: Some(seed), ..params(temperature, top_k, top_p, min_p) };
        let Some(k) = p.candidates(logits.len()) else {
            prop_assert!(top_k >= logits.len());
            return Ok(());
        };
        let (mut whole, mut part) = (Sampler::new(p.clone()).unwrap(), Sampler::new(p).unwrap());
        let best = highest(&logits, k);
        for draw in 0..20 {
            let expected = whole.sample(&mut logits.clone()).unwrap();
            prop_assert_eq!(part.sample_from(&best).unwrap(), expected, "draw {}", draw);
        }
        prop_assert_eq!(part.rng.draws, whole.rng.draws);
    }

    #[test]
    fn exponential_is_accurate(x in -87.0f32..=0.0) {
        let (got, expected) = (f64::from(exp_nonpositive(x)), f64::from(x).exp());
        prop_assert!(((got - expected) / expected).abs() < 4e-7, "exp({x}): got {got:e}, expected {expected:e}");
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = (0..12).map(|i| (i as f32 * 1.7).sin() * 2.0).collect();
    for p in [params(1.0, 0, 1.0, 0.0), params(0.6, 5, 1.0, 0.0), params(1.5, 0, 0.8, 0.0), params(0.9, 8, 0.95, 0.1)] {
        let expected = reference(&logits, &p);
        let mut sampler = Sampler::new(p.clone()).unwrap();
        let draws = 40_000;
        let mut counts = vec![0u32; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(&mut logits.clone()).unwrap() as usize] += 1;
        }
        let mut chi = 0.0;
        let mut freedom = -1i32;
        for (&count, &e) in counts.iter().zip(&expected) {
            if e == 0.0 {
                assert_eq!(count, 0, "a token that was cut was drawn: {p:?}");
                continue;
            }
            let e = e * f64::from(draws);
            chi += (f64::from(count) - e).powi(2) / e;
            freedom += 1;
        }
        // 1 in 100 000 for these degrees of freedom, by the Wilson-Hilferty approximation.
        let k = f64::from(freedom.max(1));
        let limit = k * (1.0 - 2.0 / (9.0 * k) + 4.265 * (2.0 / (9.0 * k)).sqrt()).powi(3);
        assert!(chi < limit, "{p:?}: chi-square {chi} of {freedom} degrees of freedom, limit {limit}, seed 1");
    }
}

#[test]
fn the_lowest_id_wins_ties() {
    assert_eq!(sample(SamplingParams::greedy(), &[1.0, 3.0, 3.0, 2.0]).unwrap(), 1);
    assert_eq!(sample(SamplingParams::greedy(), &[-0.0, 0.0]).unwrap(), 0);
    assert_eq!(sample(params(1.0, 1, 1.0, 0.0), &[1.0, 3.0, 3.0, 2.0]).unwrap(), 1);
    assert_eq!(sample(params(1.0, 0, 1e-6, 0.0), &[1.0, 3.0, 3.0, 2.0]).unwrap(), 1);
}

#[test]
fn bad_rows_are_errors_whatever_the_position() {
    for n in [1usize, 31, 32, 33, 100] {
        for at in [0, n / 2, n - 1] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut row = vec![0.5; n];
                row[at] = bad;
                for p in [SamplingParams::greedy(), params(1.0, 3, 1.0, 0.0), params(1.0, 0, 0.9, 0.0), params(1.0, 0, 1.0, 0.0)] {
                    let error = sample(p, &row).unwrap_err().to_string();
                    assert!(error.contains(&format!("at id {at}")), "{error}");
                }
            }
        }
        assert!(sample(SamplingParams::greedy(), &vec![f32::NEG_INFINITY; n]).is_err());
    }
    assert!(sample(SamplingParams::greedy(), &[]).is_err());
}

#[test]
fn candidates_are_for_parameters_that_look_at_no_other_logit() {
    let d = SamplingParams::default;
    let cases = [
        (SamplingParams::greedy(), Some(1)),
        (SamplingParams { top_k: 7, ..SamplingParams::greedy() }, Some(1)),
        (d(), Some(50)),
        (SamplingParams { top_p: 1.0, min_p: 0.1, top_k: 99, ..d() }, Some(99)),
        (SamplingParams { top_k: 100, ..d() }, None),
        (SamplingParams { top_k: 0, ..d() }, None),
        (SamplingParams { repetition_penalty: 1.1, ..d() }, Some(50)),
        (SamplingParams { logit_bias: vec![(3, 1.0)], ..SamplingParams::greedy() }, Some(1)),
    ];
    for (p, expected) in cases {
        assert_eq!(p.candidates(100), expected, "{p:?}");
    }
    let mut whole = Sampler::new(SamplingParams { top_k: 0, ..d() }).unwrap();
    assert!(
        whole.sample_from(&[Candidate { logit: 1.0, id: 0 }]).unwrap_err().to_string().starts_with("[sample] candidates: got parameters")
    );
    assert!(Sampler::new(d()).unwrap().sample_from(&[]).unwrap_err().to_string().starts_with("[sample] candidates: got none"));
}

#[test]
fn forbidden_tokens_are_never_drawn() {
    let p = SamplingParams { logit_bias: vec![(0, f32::NEG_INFINITY), (2, f32::NEG_INFINITY)], ..params(1.0, 0, 1.0, 0.0) };
    let mut sampler = Sampler::new(p.clone()).unwrap();
    for _ in 0..100 {
        assert_eq!(sampler.sample(&mut [9.0, 0.0, 9.0]).unwrap(), 1);
    }
    assert!(Sampler::new(p).unwrap().sample(&mut [1.0]).unwrap_err().to_string().contains("got id 2"));
}

#[test]
fn biases_of_one_token_add_up_first() {
    // 1 is lost beside 2^25, but not in the sum of both biases.
    let big = 33_554_432.0;
    let p = SamplingParams { logit_bias: vec![(0, big), (1, 2.0), (0, -big), (0, 1.0)], ..SamplingParams::greedy() };
    let mut sampler = Sampler::new(p).unwrap();
    let mut row = [0.5, 0.0, 1.0];
    assert_eq!(sampler.sample(&mut row).unwrap(), 1);
    assert_eq!(row, [1.5, 2.0, 1.0]);
}

#[test]
fn penalties_apply_in_order() {
    let p = SamplingParams { repetition_penalty: 2.0, frequency_penalty: 0.5, presence_penalty: 0.25, ..SamplingParams::greedy() };
    let mut sampler = Sampler::new(p).unwrap();
    sampler.observe_prompt(&[0, 1, 1]);
    sampler.observe(2);
    sampler.observe(2);
    sampler.observe(3);
    let mut row = [4.0, -4.0, 5.25, 0.5, 3.0];
    assert_eq!(sampler.sample(&mut row).unwrap(), 4);
    assert_eq!(row, [2.0, -8.0, 2.0, -0.5, 3.0]);
}

#[test]
fn a_seed_repeats_the_draws() {
    let logits: Vec<f32> = (0..50).map(|i| (i as f32).cos()).collect();
    let draws = |seed| -> Vec<u32> {
        let mut sampler = Sampler::new(SamplingParams { seed: Some(seed), ..SamplingParams::at_temperature(1.0) }).unwrap();
        (0..40).map(|_| sampler.sample(&mut logits.clone()).unwrap()).collect()
    };
    assert_eq!(draws(7), draws(7));
    assert_ne!(draws(7), draws(8));
    let random = Sampler::new(SamplingParams::default()).unwrap();
    assert_ne!(random.seed(), Sampler::new(SamplingParams::default()).unwrap().seed());
}

#[test]
fn parameters_outside_their_range_are_named() {
    let d = SamplingParams::default;
    let cases = [
        ("temperature", SamplingParams { temperature: -1.0, ..d() }),
        ("temperature", SamplingParams { temperature: f32::NAN, ..d() }),
        ("top_p", SamplingParams { top_p: 0.0, ..d() }),
        ("min_p", SamplingParams { min_p: 1.5, ..d() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..d() }),
        ("frequency_penalty", SamplingParams { frequency_penalty: f32::INFINITY, ..d() }),
        ("presence_penalty", SamplingParams { presence_penalty: f32::NAN, ..d() }),
        ("logit_bias of 5", SamplingParams { logit_bias: vec![(5, f32::INFINITY)], ..d() }),
    ];
    for (name, p) in cases {
        let error = Sampler::new(p).unwrap_err().to_string();
        assert!(error.starts_with(&format!("[sample] {name}: got ")), "{error}");
    }
}

#[test]
fn log_probabilities_sum_to_one() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32 / 100.0).collect();
    let all = top_logprobs(&logits, 1000).unwrap();
    let sum: f64 = all.iter().map(|&(_, p)| f64::from(p).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    assert!(all.windows(2).all(|w| w[0].1 >= w[1].1));
    assert!((logprob(&logits, all[3].0).unwrap() - all[3].1).abs() < 1e-6);
    assert!(logprob(&logits, 1000).is_err());
    assert_eq!(top_logprobs(&logits, 0).unwrap(), []);
}

/// Time for each token with a vocabulary of 150 000; run with `cargo test --release -- --ignored --nocapture sampler`.
#[test]
#[ignore = "a measurement"]
fn time_per_token() {
    let logits: Vec<f32> = (0..150_000u64).map(|i| (mix(i) >> 40) as f32 / (1 << 24) as f32 * 20.0 - 10.0).collect();
    for (name, p) in [
        ("greedy", SamplingParams::greedy()),
        ("top-k 40", params(0.8, 40, 1.0, 0.0)),
        ("top-k 40, top-p 0.95, min-p 0.05", params(0.8, 40, 0.95, 0.05)),
        ("top-p 0.9", params(0.8, 0, 0.9, 0.0)),
        ("min-p 0.05", params(0.8, 0, 1.0, 0.05)),
        ("everything", params(0.8, 0, 1.0, 0.0)),
    ] {
        let mut sampler = Sampler::new(p).unwrap();
        let mut row = logits.clone();
        let mut times: Vec<_> = (0..51)
            .map(|_| {
                let start = std::time::Instant::now();
                sampler.sample(&mut row).unwrap();
                start.elapsed()
            })
            .collect();
        times.sort();
        println!("{name}: median {:?}", times[25]);
    }
}

//! Sampling against the distribution it samples from.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kernelry::ops::sampling::{Candidates, MAX_CANDIDATES, NO_TOKEN, SoftmaxSample};
use kernelry::{Buffer, Context, DType};

struct Sampler {
    ctx: Context,
    x: Buffer,
    token: Buffer,
    logprob: Buffer,
}

impl Sampler {
    fn new(logits: &[f32]) -> Sampler {
        let ctx = Context::cpu();
        let x = ctx.upload(logits, &[logits.len()]).unwrap();
        let (token, logprob) = (ctx.zeros(DType::U32, &[1]).unwrap(), ctx.zeros(DType::F32, &[1]).unwrap());
        Sampler { ctx, x, token, logprob }
    }

    fn draw(&self, temperature: f32, u: f32) -> (usize, f32) {
        let mut encoder = self.ctx.encoder();
        SoftmaxSample { x: &self.x, token: &self.token, logprob: &self.logprob, temperature, u }.encode(&mut encoder).unwrap();
        encoder.run().unwrap();
        (self.token.to_vec::<u32>().unwrap()[0] as usize, self.logprob.to_vec::<f32>().unwrap()[0])
    }
}

fn probabilities(logits: &[f32], temperature: f32) -> Vec<f64> {
    let y: Vec<f64> = logits.iter().map(|v| f64::from(*v) / f64::from(temperature)).collect();
    let top = y.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
    let e: Vec<f64> = y.iter().map(|v| (v - top).exp()).collect();
    let total: f64 = e.iter().sum();
    e.iter().map(|e| e / total).collect()
}

#[test]
fn tokens_are_where_the_cumulative_distribution_passes_u() {
    let seed = 11;
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for n in [1, 5, 1000, 262_144] {
        let mut logits: Vec<f32> = (0..n).map(|_| (0..12).map(|_| rng.f32()).sum::<f32>() - 6.0).collect();
        for i in (3..n).step_by(7) {
            logits[i] = f32::NEG_INFINITY;
        }
        let sampler = Sampler::new(&logits);
        for temperature in [0.01, 0.7, 1.0, 10.0] {
            let p = probabilities(&logits, temperature);
            let cdf: Vec<f64> = p
                .iter()
                .scan(0.0, |sum, p| {
                    *sum += p;
                    Some(*sum)
                })
                .collect();
            for i in 0..20 {
                let u = if i == 19 { 0.999_999_94 } else { i as f32 / 19.0 };
                let (token, logprob) = sampler.draw(temperature, u);
                let (below, above) = (if token == 0 { 0.0 } else { cdf[token - 1] }, cdf[token]);
                let inside = below - 1e-5 <= f64::from(u) && f64::from(u) <= above + 1e-5 && p[token] > 0.0;
                assert!(inside, "n={n} temperature={temperature} u={u}: token {token} spans {below} to {above}");
                assert!(
                    (f64::from(logprob) - p[token].ln()).abs() <= 1e-4 * p[token].ln().abs().max(1.0),
                    "{logprob} and {}",
                    p[token].ln()
                );
            }
        }
    }
}

/// Evenly spaced `u` must hit each token about as often as its probability says.
#[test]
fn evenly_spaced_draws_follow_the_distribution() {
    let logits = [0.3f32, -1.0, 2.0, 0.0, 1.1, f32::NEG_INFINITY, -0.4];
    let sampler = Sampler::new(&logits);
    let p = probabilities(&logits, 0.8);
    let draws = 1000;
    let mut counts = [0.0f64; 7];
    for i in 0..draws {
        counts[sampler.draw(0.8, (i as f32 + 0.5) / draws as f32).0] += 1.0;
    }
    assert_eq!(counts[5], 0.0);
    // Each count is within one of its expectation, so the statistic is far below what random draws would give.
    let chi2: f64 = counts.iter().zip(&p).filter(|(_, p)| **p > 0.0).map(|(c, p)| (c - p * 1000.0).powi(2) / (p * 1000.0)).sum();
    assert!(chi2 < 0.5, "chi-square {chi2}, counts {counts:?}");
}

/// Indices and values of the `k` candidates of each row.
fn candidates(logits: &[f32], rows: usize, k: usize) -> kernelry::Result<Vec<(Vec<u32>, Vec<f32>)>> {
    let ctx = Context::cpu();
    let cols = logits.len() / rows;
    let x = ctx.upload(logits, &[rows, cols])?;
    let best = ctx.zeros(DType::U32, &[rows, 2, k])?;
    let scratch = ctx.zeros(DType::U32, &[Candidates::scratch_len(rows, cols, k)])?;
    let mut encoder = ctx.encoder();
    Candidates { x: &x, best: &best, scratch: &scratch }.encode(&mut encoder)?;
    encoder.run()?;
    let words = best.to_vec::<u32>()?;
    Ok(words.chunks(2 * k).map(|row| (row[..k].to_vec(), row[k..].iter().map(|bits| f32::from_bits(*bits)).collect())).collect())
}

#[test]
fn candidates_are_the_first_of_the_sorted_row() {
    let seed = 5;
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for (rows, cols, k) in [(1, 1, 1), (3, 50, 7), (2, 2048, 256), (2, 9001, 64), (1, 152_064, 50)] {
        // Coarse values have ties, at the cut too.
        for coarse in [false, true] {
            let draw = |rng: &mut fastrand::Rng| if coarse { rng.i32(-8..8) as f32 } else { rng.f32() * 8.0 - 4.0 };
            let logits: Vec<f32> = (0..rows * cols).map(|i| if i % 5 == 1 { f32::NEG_INFINITY } else { draw(&mut rng) }).collect();
            for (row, (ids, values)) in logits.chunks(cols).zip(candidates(&logits, rows, k).unwrap()) {
                let mut order: Vec<usize> = (0..cols).filter(|i| row[*i] > f32::NEG_INFINITY).collect();
                order.sort_by(|a, b| row[*b].partial_cmp(&row[*a]).unwrap().then(a.cmp(b)));
                for i in 0..k {
                    let expected = order.get(i).map_or((NO_TOKEN, f32::NEG_INFINITY), |at| (*at as u32, row[*at]));
                    assert_eq!((ids[i], values[i]), expected, "rows={rows} cols={cols} k={k} coarse={coarse}, candidate {i}");
                }
            }
        }
    }
}

#[test]
fn rows_without_an_answer_have_no_candidates() {
    let sane = vec![1.0f32; 5000];
    let mut nan = sane.clone();
    nan[4999] = f32::NAN;
    let mut infinite = sane.clone();
    infinite[2048] = f32::INFINITY;
    let rows = [nan, infinite, vec![f32::NEG_INFINITY; 5000], sane].concat();
    let found = candidates(&rows, 4, 3).unwrap();
    for (ids, values) in &found[..3] {
        assert!(ids.iter().all(|id| *id == NO_TOKEN) && values.iter().all(|v| v.is_nan()), "{ids:?} {values:?}");
    }
    assert_eq!(found[3], (vec![0, 1, 2], vec![1.0; 3]));
}

#[test]
fn candidates_refuse_what_does_not_fit() {
    let text = |rows, cols, k| candidates(&vec![0.0; rows * cols], rows, k).map(drop).unwrap_err().to_string();
    assert_eq!(text(1, 5, 6), "[candidates_f32] k: got 6, expected at most 256 and at most cols = 5");
    let most = MAX_CANDIDATES as usize + 1;
    assert_eq!(text(1, 3000, most), "[candidates_f32] k: got 257, expected at most 256 and at most cols = 3000");
    let ctx = Context::cpu();
    let x = ctx.zeros(DType::F32, &[2, 5000]).unwrap();
    let refused = |best: &[usize], scratch: usize| {
        let (best, scratch) = (ctx.zeros(DType::U32, best).unwrap(), ctx.zeros(DType::U32, &[scratch]).unwrap());
        let mut encoder = ctx.encoder();
        let error = Candidates { x: &x, best: &best, scratch: &scratch }.encode(&mut encoder).unwrap_err().to_string();
        assert_eq!(encoder.finish().unwrap().launches(), 0);
        error
    };
    assert_eq!(refused(&[2, 2, 4], 47), "[candidates] scratch: got 47 elements, expected at least 48");
    assert_eq!(refused(&[2, 5], 100), "[candidates] best: got [2, 5], expected 2 rows of 2 k");
}

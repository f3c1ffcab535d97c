//! Properties of attention and of the cache writers that no single launch shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use half::f16;
use kernelry::catalogue::StepU32;
use kernelry::ops::attention::Attention;
use kernelry::ops::kv_cache::{KvCacheStore, KvCacheWrite};
use kernelry::{Buffer, Context, DType, Device, Registry};

fn normal(rng: &mut fastrand::Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| (0..12).map(|_| rng.f32()).sum::<f32>() - 6.0).collect()
}

struct Shape {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    capacity: usize,
}

const SHAPE: Shape = Shape { n_heads: 6, n_kv_heads: 2, head_dim: 64, capacity: 200 };

/// A cache that holds NaN, so that a slot read before it is written shows.
fn cache(ctx: &Context, s: &Shape, dtype: DType) -> Buffer {
    let shape = [s.n_kv_heads, s.capacity, s.head_dim];
    let len = shape.iter().product();
    match dtype {
        DType::F32 => ctx.upload(&vec![f32::NAN; len], &shape).unwrap(),
        _ => ctx.upload(&vec![f16::NAN; len], &shape).unwrap(),
    }
}

/// Runs tokens `start ..` through the cache and gives their attention.
fn pass(ctx: &Context, s: &Shape, caches: (&Buffer, &Buffer), start: usize, [q, k, v]: [&[f32]; 3], window: u32) -> Vec<f32> {
    let seq_len = k.len() / (s.n_kv_heads * s.head_dim);
    let kv = [seq_len, s.n_kv_heads, s.head_dim];
    let (k, v) = (ctx.upload(k, &kv).unwrap(), ctx.upload(v, &kv).unwrap());
    let rows = [seq_len, s.n_heads, s.head_dim];
    let (q, out) = (ctx.upload(q, &rows).unwrap(), ctx.zeros(DType::F32, &rows).unwrap());
    let mut encoder = ctx.encoder();
    KvCacheWrite { k: &k, v: &v, k_cache: caches.0, v_cache: caches.1, position: StepU32::new(start as u32) }.encode(&mut encoder).unwrap();
    let kv_seq_len = StepU32::new((start + seq_len) as u32);
    Attention { q: &q, k: caches.0, v: caches.1, out: &out, kv_seq_len, scale: 0.125, window, softcap: 0.0 }.encode(&mut encoder).unwrap();
    encoder.run().unwrap();
    out.to_vec().unwrap()
}

/// Prefill of a whole prompt against any cut of it into chunks, and against one token at a time.
fn chunks_agree(dtype: DType, window: u32) {
    let (ctx, s, seq_len) = (Context::cpu(), SHAPE, 150);
    let seed = 7;
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (q_row, kv_row) = (s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim);
    let (q, k, v) = (normal(&mut rng, seq_len * q_row), normal(&mut rng, seq_len * kv_row), normal(&mut rng, seq_len * kv_row));
    let run = |cuts: &[usize]| -> Vec<f32> {
        let (keys, values) = (cache(&ctx, &s, dtype), cache(&ctx, &s, dtype));
        let mut out = Vec::new();
        for cut in cuts.windows(2) {
            let (a, b) = (cut[0], cut[1]);
            let range = |x: &[f32], row: usize| x[a * row..b * row].to_vec();
            out.extend(pass(&ctx, &s, (&keys, &values), a, [&range(&q, q_row), &range(&k, kv_row), &range(&v, kv_row)], window));
        }
        out
    };
    let whole = run(&[0, seq_len]);
    assert!(whole.iter().all(|v| v.is_finite()));
    // A query meets the same blocks of keys however the prompt is cut: not a bit may differ.
    assert_eq!(whole, run(&[0, 17, 64, 65, 149, seq_len]));
    let one_by_one = run(&(0..=seq_len).collect::<Vec<_>>());
    for (a, b) in whole.iter().zip(&one_by_one) {
        assert!((a - b).abs() <= 1e-5, "{a} and {b}");
    }
}

#[test]
fn a_prompt_may_be_cut_anywhere() {
    chunks_agree(DType::F32, 0);
    chunks_agree(DType::F16, 0);
    chunks_agree(DType::F32, 40);
    chunks_agree(DType::F16, 1);
}

#[test]
fn a_replayed_step_equals_a_recorded_one() {
    let (ctx, s) = (Context::cpu(), SHAPE);
    let mut rng = fastrand::Rng::with_seed(8);
    let (q_row, kv_row) = (s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim);
    let step = ctx.upload(&[0u32, 0], &[2]).unwrap();
    let (keys, values) = (cache(&ctx, &s, DType::F16), cache(&ctx, &s, DType::F16));
    let (keys2, values2) = (cache(&ctx, &s, DType::F16), cache(&ctx, &s, DType::F16));
    let q = ctx.zeros(DType::F32, &[1, s.n_heads, s.head_dim]).unwrap();
    let out = ctx.zeros(DType::F32, &[1, s.n_heads, s.head_dim]).unwrap();
    let k = ctx.zeros(DType::F32, &[1, s.n_kv_heads, s.head_dim]).unwrap();
    let v = ctx.zeros(DType::F32, &[1, s.n_kv_heads, s.head_dim]).unwrap();
    let mut encoder = ctx.encoder();
    encoder.set_step(&step).unwrap();
    let position = StepU32::from_step(0, s.capacity as u32 - 1);
    KvCacheWrite { k: &k, v: &v, k_cache: &keys, v_cache: &values, position }.encode(&mut encoder).unwrap();
    let kv_seq_len = StepU32::from_step(1, s.capacity as u32);
    Attention { q: &q, k: &keys, v: &values, out: &out, kv_seq_len, scale: 0.125, window: 0, softcap: 0.0 }.encode(&mut encoder).unwrap();
    let graph = encoder.finish().unwrap();
    for token in 0..70 {
        let (qs, ks, vs) = (normal(&mut rng, q_row), normal(&mut rng, kv_row), normal(&mut rng, kv_row));
        q.write(&qs).unwrap();
        k.write(&ks).unwrap();
        v.write(&vs).unwrap();
        step.write(&[token as u32, token as u32 + 1]).unwrap();
        graph.run().unwrap();
        assert_eq!(out.to_vec::<f32>().unwrap(), pass(&ctx, &s, (&keys2, &values2), token, [&qs, &ks, &vs], 0), "token {token}");
    }
}

/// One token whose keys are split over blocks, recorded with the length in the step buffer, against one pass on the CPU.
#[test]
fn a_token_in_partitions_equals_one_pass() {
    let ctx = Context::new(Device::open("emulator").expect("a C++ compiler"), Registry::new());
    let cpu = Context::cpu();
    let units = ctx.device().info().units as usize;
    for (dtype, head_dim) in [(DType::F16, 64), (DType::F32, 80)] {
        // Few blocks and many keys, so that there are partitions at all; some have no key while the cache is young.
        let s = Shape { n_heads: 3, n_kv_heads: 1, head_dim, capacity: 128 * 2 * units };
        let mut rng = fastrand::Rng::with_seed(9);
        let (q_row, kv_row) = (s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim);
        let (keys, values) = (cache(&ctx, &s, dtype), cache(&ctx, &s, dtype));
        let (keys2, values2) = (cache(&cpu, &s, dtype), cache(&cpu, &s, dtype));
        let step = ctx.upload(&[0u32], &[1]).unwrap();
        let (q, out) = (ctx.zeros(DType::F32, &[1, 3, head_dim]).unwrap(), ctx.zeros(DType::F32, &[1, 3, head_dim]).unwrap());
        let mut encoder = ctx.encoder();
        encoder.set_step(&step).unwrap();
        let kv_seq_len = StepU32::from_step(0, s.capacity as u32);
        Attention { q: &q, k: &keys, v: &values, out: &out, kv_seq_len, scale: 0.125, window: 50, softcap: 0.0 }
            .encode(&mut encoder)
            .unwrap();
        let graph = encoder.finish().unwrap();
        assert_eq!(graph.launches(), 2, "the partitions and their merge");
        let mut at = 0;
        for tokens in [1, 30, 100] {
            let (qs, ks, vs) = (normal(&mut rng, tokens * q_row), normal(&mut rng, tokens * kv_row), normal(&mut rng, tokens * kv_row));
            let expected = pass(&cpu, &s, (&keys2, &values2), at, [&qs, &ks, &vs], 50);
            let last = &qs[(tokens - 1) * q_row..];
            pass(&ctx, &s, (&keys, &values), at, [&qs, &ks, &vs], 50);
            at += tokens;
            q.write(last).unwrap();
            step.write(&[at as u32]).unwrap();
            graph.run().unwrap();
            for (a, b) in out.to_vec::<f32>().unwrap().iter().zip(&expected[(tokens - 1) * q_row..]) {
                assert!((a - b).abs() <= 2e-5 + 1e-4 * b.abs(), "{dtype} after {at} tokens: {a} and {b}");
            }
        }
    }
}

#[test]
fn a_ring_keeps_the_newest_tokens() {
    let ctx = Context::cpu();
    let (heads, dim, cap, seq_len) = (2, 8, 5, 12);
    let src: Vec<f32> = (0..seq_len * heads * dim).map(|i| i as f32).collect();
    let tokens = ctx.upload(&src, &[seq_len, heads, dim]).unwrap();
    let whole = ctx.zeros(DType::F32, &[heads, cap, dim]).unwrap();
    let (k2, v2) = (ctx.zeros(DType::F32, &[heads, cap, dim]).unwrap(), ctx.zeros(DType::F32, &[heads, cap, dim]).unwrap());
    let mut encoder = ctx.encoder();
    KvCacheStore { src: &tokens, cache: &whole, position: StepU32::new(3), ring: true }.encode(&mut encoder).unwrap();
    for t in 0..seq_len {
        let token = tokens.rows(t, 1).unwrap();
        let write = KvCacheWrite { k: &token, v: &token, k_cache: &k2, v_cache: &v2, position: StepU32::new(3 + t as u32) };
        write.encode_ring(&mut encoder).unwrap();
    }
    encoder.run().unwrap();
    let got = whole.to_vec::<f32>().unwrap();
    assert_eq!(got, k2.to_vec::<f32>().unwrap());
    assert_eq!(got, v2.to_vec::<f32>().unwrap());
    // Absolute position 14, the last, is in slot 4.
    assert_eq!(got[4 * dim], ((seq_len - 1) * heads * dim) as f32);
}

#[test]
fn tokens_beyond_a_cache_are_refused() {
    let ctx = Context::cpu();
    let tokens = ctx.zeros(DType::F32, &[4, 2, 8]).unwrap();
    let (k, v) = (ctx.zeros(DType::F16, &[2, 6, 8]).unwrap(), ctx.zeros(DType::F16, &[2, 6, 8]).unwrap());
    let write = |position| KvCacheWrite { k: &tokens, v: &tokens, k_cache: &k, v_cache: &v, position };
    let mut encoder = ctx.encoder();
    assert!(write(StepU32::new(2)).encode(&mut encoder).is_ok());
    let error = write(StepU32::new(3)).encode(&mut encoder).unwrap_err().to_string();
    assert_eq!(error, "[kv_cache_write] position + tokens: got 7, expected at most 6 cache slots");
    assert!(write(StepU32::new(3)).encode_ring(&mut encoder).is_ok());
    let same = KvCacheWrite { k: &tokens, v: &tokens, k_cache: &k, v_cache: &k, position: StepU32::new(0) };
    assert!(same.encode(&mut encoder).is_err(), "one cache for keys and values");
    let wide = ctx.zeros(DType::F16, &[2, 6, 16]).unwrap();
    let wrong = KvCacheWrite { k: &tokens, v: &tokens, k_cache: &wide, v_cache: &v, position: StepU32::new(0) };
    assert!(wrong.encode(&mut encoder).is_err(), "a cache of wider heads");
}

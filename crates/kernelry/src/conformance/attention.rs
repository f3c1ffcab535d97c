//! References and cases of attention: two-pass softmax in f64, one query at a time.

use super::case::push;
use super::{Cases, Input, Reference, Tolerance};
use crate::DType;
use crate::catalogue::StepU32;
use crate::ops::attention::{
    AttentionDecodeParams, AttentionPrefillParams, ScaleMaskSoftmaxParams, SdpaDecodeParams, SdpaParams, SdpaSlidingParams,
};

pub(crate) mod mask;
pub(crate) mod split;

/// What is computed, in the terms of the definition.
struct Problem {
    batch: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    seq_len: usize,
    keys: usize,
    capacity: usize,
    scale: f64,
    softcap: f64,
    causal: bool,
    window: usize,
    token_major: bool,
}

/// Softmax of `scores` times the value rows `first ..`.
fn weighted(scores: &[f64], value: impl Fn(usize) -> f64) -> f64 {
    let top = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
    if top == f64::NEG_INFINITY && !scores.iter().any(|s| s.is_nan()) {
        return 0.0;
    }
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().enumerate().map(|(j, w)| w * value(j)).sum::<f64>() / sum
}

fn attention(r: &mut Reference<'_>, p: &Problem, tolerance: impl Fn(&[f64]) -> Tolerance) {
    let (q, k, v) = (r.f64s("q"), r.f64s("k"), r.f64s("v"));
    let d = p.head_dim;
    let mut out = vec![(0.0, Tolerance::EXACT); q.len()];
    for b in 0..p.batch {
        for h in 0..p.n_heads {
            let head = (b * p.n_kv_heads + h / (p.n_heads / p.n_kv_heads)) * p.capacity * d;
            for i in 0..p.seq_len {
                let row = if p.token_major { (b * p.seq_len + i) * p.n_heads + h } else { (b * p.n_heads + h) * p.seq_len + i };
                let position = p.keys + i - p.seq_len.min(p.keys + i);
                let attended: Vec<usize> =
                    (0..p.keys).filter(|&j| !p.causal || j <= position).filter(|&j| p.window == 0 || position < j + p.window).collect();
                let scores: Vec<f64> = attended
                    .iter()
                    .map(|&j| {
                        let dot: f64 = (0..d).map(|x| q[row * d + x] * k[head + j * d + x]).sum();
                        let s = dot * p.scale;
                        if p.softcap > 0.0 { p.softcap * (s / p.softcap).tanh() } else { s }
                    })
                    .collect();
                let bound = tolerance(&v[head..head + p.keys * d]);
                for x in 0..d {
                    out[row * d + x] = (weighted(&scores, |j| v[head + attended[j] * d + x]), bound);
                }
            }
        }
    }
    r.expect_each("out", out);
}

/// The bound of the class: absolute and relative, for bf16 with the largest value of the head.
fn bound(dtype: DType) -> impl Fn(&[f64]) -> Tolerance {
    move |values| match dtype {
        DType::BF16 => Tolerance::rel(2e-2, 1e-2 * values.iter().fold(0.0, |m, v| v.abs().max(m))),
        _ => Tolerance::rel(1e-4, 2e-5),
    }
}

pub(crate) fn sdpa(r: &mut Reference<'_>) {
    let p: SdpaParams = r.params();
    let keys = p.kv_seq_len.max() as usize;
    let problem = Problem {
        batch: p.batch as usize,
        n_heads: p.n_heads as usize,
        n_kv_heads: p.n_kv_heads as usize,
        head_dim: p.head_dim as usize,
        seq_len: p.seq_len as usize,
        keys,
        capacity: if p.kv_capacity == 0 { keys } else { p.kv_capacity as usize },
        scale: f64::from(p.scale),
        softcap: 0.0,
        causal: p.do_causal != 0,
        window: 0,
        token_major: false,
    };
    let dtype = r.dtype("q");
    attention(r, &problem, bound(dtype));
}

pub(crate) fn sdpa_sliding(r: &mut Reference<'_>) {
    let p: SdpaSlidingParams = r.params();
    let keys = p.kv_seq_len.max() as usize;
    let problem = Problem {
        batch: p.batch as usize,
        n_heads: p.n_heads as usize,
        n_kv_heads: p.n_kv_heads as usize,
        head_dim: p.head_dim as usize,
        seq_len: p.seq_len as usize,
        keys,
        capacity: if p.kv_capacity == 0 { keys } else { p.kv_capacity as usize },
        scale: f64::from(p.scale),
        softcap: 0.0,
        causal: true,
        window: p.window_size as usize + 1,
        token_major: false,
    };
    let dtype = r.dtype("q");
    attention(r, &problem, bound(dtype));
}

pub(crate) fn sdpa_sliding_cases(c: &mut Cases) {
    let dtype = if c.kernel() == "sdpa_sliding" { DType::F32 } else { DType::BF16 };
    let mut add = |[batch, n_heads, n_kv_heads, head_dim, seq_len, keys, capacity, window_size]: [u32; 8]| {
        let params = SdpaSlidingParams {
            batch,
            n_heads,
            n_kv_heads,
            head_dim,
            seq_len,
            kv_capacity: capacity,
            window_size,
            scale: 1.0 / (head_dim as f32).sqrt(),
            kv_seq_len: StepU32::new(keys),
        };
        let slots = if capacity == 0 { keys } else { capacity };
        let values = || cache(dtype, slots, head_dim, keys, Input::Normal(1.0));
        let label = format!("B={batch} H={n_heads}/{n_kv_heads} D={head_dim} Sq={seq_len} n={keys} cap={capacity} window={window_size}");
        c.add(label, params).input("k", values()).input("v", values());
    };
    add([2, 6, 2, 40, 5, 9, 12, 3]);
    add([1, 1, 1, 1, 1, 1, 0, 1]);
    add([1, 2, 1, 64, 33, 65, 70, 0]);
    add([1, 4, 2, 80, 67, 131, 140, 31]);
    add([1, 2, 1, 96, 130, 130, 0, 63]);
    add([1, 2, 2, 128, 65, 200, 200, 64]);
    add([1, 2, 1, 256, 3, 70, 70, u32::MAX]);
    add([1, 1, 1, 256, 200, 264, 270, 70]);
    add([1, 1, 1, 512, 70, 170, 170, 40]);
    if c.intensity >= 2 {
        // A window of all keys: causal attention.
        let params = SdpaSlidingParams {
            batch: 1,
            n_heads: 16,
            n_kv_heads: 8,
            head_dim: 256,
            seq_len: 576,
            kv_capacity: 1024,
            window_size: 1024,
            scale: 0.0625,
            kv_seq_len: StepU32::new(576),
        };
        c.add("prefill of 576", params);
    }
}

pub(crate) fn sdpa_decode(r: &mut Reference<'_>) {
    let p: SdpaDecodeParams = r.params();
    let problem = Problem {
        batch: 1,
        n_heads: p.n_heads as usize,
        n_kv_heads: p.n_kv_heads as usize,
        head_dim: p.head_dim as usize,
        seq_len: 1,
        keys: p.kv_seq_len.max() as usize,
        capacity: p.kv_capacity as usize,
        scale: f64::from(p.scale),
        softcap: 0.0,
        causal: false,
        window: 0,
        token_major: false,
    };
    attention(r, &problem, bound(DType::F32));
}

/// A causal problem of one sequence with token-major queries.
fn causal(p: AttentionPrefillParams) -> Problem {
    Problem {
        batch: 1,
        n_heads: p.n_heads as usize,
        n_kv_heads: p.n_kv_heads as usize,
        head_dim: p.head_dim as usize,
        seq_len: p.seq_len as usize,
        keys: p.kv_seq_len.max() as usize,
        capacity: p.kv_capacity as usize,
        scale: f64::from(p.scale),
        softcap: f64::from(p.softcap),
        causal: true,
        window: p.window as usize,
        token_major: true,
    }
}

pub(crate) fn decode(r: &mut Reference<'_>) {
    let AttentionDecodeParams { n_heads, n_kv_heads, head_dim, kv_capacity, window, scale, softcap, kv_seq_len } = r.params();
    let one = AttentionPrefillParams { seq_len: 1, n_heads, n_kv_heads, head_dim, kv_capacity, window, scale, softcap, kv_seq_len };
    attention(r, &causal(one), bound(DType::F32));
}

pub(crate) fn prefill(r: &mut Reference<'_>) {
    let problem = causal(r.params());
    attention(r, &problem, bound(DType::F32));
}

/// A cache `[heads, capacity, head_dim]` with values in the slots below `keys`, and NaN in the others: they must never be read.
fn cache(dtype: DType, capacity: u32, head_dim: u32, keys: u32, valid: Input) -> Input {
    let (head, used) = ((capacity * head_dim) as usize, (keys * head_dim) as usize);
    Input::custom(move |rng, bytes| {
        let size = dtype.size();
        let mut data = valid.make(rng, dtype, bytes / size);
        let mut nan = Vec::new();
        push(&mut nan, dtype, f64::NAN);
        for head in data.chunks_mut(head * size) {
            head[used * size..].chunks_mut(size).for_each(|e| e.copy_from_slice(&nan));
        }
        data
    })
}

pub(crate) fn sdpa_cases(c: &mut Cases) {
    let dtype = if c.kernel() == "sdpa" { DType::F32 } else { DType::BF16 };
    // The first case is what the launch checks are tried on: nothing in it is zero.
    let rows: &[[u32; 8]] = &[
        // batch, n_heads, n_kv_heads, head_dim, seq_len, keys, capacity, causal
        [2, 6, 2, 40, 5, 9, 12, 1],
        [1, 1, 1, 1, 1, 1, 1, 0],
        [1, 2, 1, 7, 3, 3, 0, 1],
        [2, 4, 4, 33, 31, 33, 40, 1],
        [1, 8, 1, 64, 33, 65, 70, 0],
        [1, 2, 2, 72, 65, 65, 65, 1],
        [1, 3, 1, 80, 1, 63, 64, 0],
        [1, 16, 2, 256, 2, 129, 130, 1],
        [1, 2, 1, 512, 4, 64, 64, 0],
        [1, 4, 2, 96, 67, 131, 140, 1],
        [1, 4, 2, 64, 1, 1025, 1030, 1],
        [2, 1, 1, 256, 193, 321, 340, 1],
        [1, 2, 1, 160, 129, 127, 127, 0],
        [1, 2, 1, 512, 129, 161, 161, 1],
        [1, 1, 1, 264, 65, 95, 100, 0],
    ];
    for &[batch, n_heads, n_kv_heads, head_dim, seq_len, keys, capacity, do_causal] in rows {
        let label = format!("B={batch} H={n_heads}/{n_kv_heads} D={head_dim} Sq={seq_len} n={keys} cap={capacity} causal={do_causal}");
        let params = SdpaParams {
            batch,
            n_heads,
            n_kv_heads,
            head_dim,
            seq_len,
            kv_capacity: capacity,
            do_causal,
            scale: 1.0 / (head_dim as f32).sqrt(),
            kv_seq_len: StepU32::new(keys),
        };
        let slots = if capacity == 0 { keys } else { capacity };
        let values = || cache(dtype, slots, head_dim, keys, Input::Normal(1.0));
        c.add(label, params).input("k", values()).input("v", values());
    }
    let plain = |scale| SdpaParams {
        batch: 1,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 64,
        seq_len: 3,
        kv_capacity: 37,
        do_causal: 0,
        scale,
        kv_seq_len: StepU32::new(37),
    };
    let equal = || Input::Values(vec![1.0]);
    c.add("equal scores give uniform weights", plain(1.0)).input("k", equal()).input("v", Input::Integers(-4, 4));
    c.add("scale 0", plain(0.0));
    // |scores| of about a thousand and below -70000: no overflow, no NaN.
    c.add("large scores", plain(16.0)).input("q", Input::Normal(8.0));
    // Integers, so that scores of this size are still exact.
    c.add("very negative scores", plain(-20.0)).input("q", Input::Integers(8, 9)).input("k", Input::Integers(8, 9));
    if c.intensity >= 2 {
        let params = SdpaParams {
            batch: 1,
            n_heads: 16,
            n_kv_heads: 8,
            head_dim: 256,
            seq_len: 576,
            kv_capacity: 1024,
            do_causal: 1,
            scale: 0.0625,
            kv_seq_len: StepU32::new(576),
        };
        c.add("prefill of 576", params);
    }
    for seq_len in [1, 512] {
        let params = SdpaParams {
            batch: 1,
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 128,
            seq_len,
            kv_capacity: 4096,
            do_causal: 1,
            scale: 0.088,
            kv_seq_len: StepU32::new(4096),
        };
        c.bench(format!("H=32/8 D=128 Sq={seq_len} n=4096"), params);
    }
    for (n_kv_heads, head_dim) in [(4, 128), (4, 256), (2, 512)] {
        let params = SdpaParams {
            batch: 1,
            n_heads: 16,
            n_kv_heads,
            head_dim,
            seq_len: 8192,
            kv_capacity: 8192,
            do_causal: 1,
            scale: 1.0 / (head_dim as f32).sqrt(),
            kv_seq_len: StepU32::new(8192),
        };
        c.bench(format!("S=8192 H=16/{n_kv_heads} D={head_dim}"), params).on_gpus();
    }
}

pub(crate) fn sdpa_decode_cases(c: &mut Cases) {
    let rows: &[(u32, u32, u32, u32, u32)] = &[
        // n_heads, n_kv_heads, head_dim, keys, capacity
        (6, 2, 64, 33, 40),
        (1, 1, 32, 1, 1),
        (8, 8, 96, 31, 31),
        (8, 1, 128, 32, 64),
        (2, 1, 512, 127, 128),
        (14, 2, 64, 1023, 1024),
        (4, 2, 128, 1537, 1600),
    ];
    for &(n_heads, n_kv_heads, head_dim, keys, kv_capacity) in rows {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let params = SdpaDecodeParams { n_heads, n_kv_heads, head_dim, kv_capacity, scale, kv_seq_len: StepU32::new(keys) };
        let values = || cache(DType::F32, kv_capacity, head_dim, keys, Input::Normal(1.0));
        c.add(format!("H={n_heads}/{n_kv_heads} D={head_dim} n={keys} cap={kv_capacity}"), params)
            .input("k", values())
            .input("v", values());
    }
    if c.intensity >= 2 {
        let kv_seq_len = StepU32::new(8192);
        c.add("long", SdpaDecodeParams { n_heads: 32, n_kv_heads: 8, head_dim: 128, kv_capacity: 8192, scale: 0.088, kv_seq_len });
    }
    for head_dim in [128, 256] {
        let kv_seq_len = StepU32::new(4096);
        let params = SdpaDecodeParams { n_heads: 32, n_kv_heads: 8, head_dim, kv_capacity: 4096, scale: 0.088, kv_seq_len };
        c.bench(format!("H=32/8 D={head_dim} n=4096"), params);
    }
}

fn cache_dtype(kernel: &str) -> DType {
    match kernel {
        name if name.contains("_bf16kv") => DType::BF16,
        name if name.contains("_f16kv") => DType::F16,
        _ => DType::F32,
    }
}

pub(crate) fn decode_cases(c: &mut Cases) {
    let dtype = cache_dtype(c.kernel());
    let params = |n_heads, n_kv_heads, head_dim: u32, keys, kv_capacity, window, softcap| AttentionDecodeParams {
        n_heads,
        n_kv_heads,
        head_dim,
        kv_capacity,
        window,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap,
        kv_seq_len: StepU32::new(keys),
    };
    let rows: &[(u32, u32, u32, u32, u32, u32, f32)] = &[
        // n_heads, n_kv_heads, head_dim, keys, capacity, window, softcap
        (6, 2, 64, 33, 40, 0, 0.0),
        (1, 1, 8, 1, 1, 0, 0.0),
        (4, 2, 10, 21, 32, 0, 0.0),
        (2, 1, 13, 40, 50, 7, 0.0),
        (5, 1, 24, 3, 3, 2, 0.0),
        (8, 8, 72, 31, 31, 0, 0.0),
        (8, 1, 80, 32, 64, 0, 50.0),
        (3, 1, 88, 64, 65, 0, 0.0),
        (12, 4, 96, 65, 100, 1, 0.0),
        (4, 2, 128, 127, 128, 100, 0.0),
        (14, 2, 64, 511, 1024, 0, 0.0),
        (9, 3, 64, 1025, 1100, 1000, 0.0),
        (4, 2, 128, 1537, 1600, 0, 5.0),
        (2, 1, 512, 600, 600, 513, 0.0),
        (71, 1, 64, 70, 70, 0, 0.0),
    ];
    for &(h, hkv, d, n, cap, window, softcap) in rows {
        let values = || cache(dtype, cap, d, n, Input::Normal(1.0));
        let label = format!("H={h}/{hkv} D={d} n={n} cap={cap} window={window} softcap={softcap}");
        c.add(label, params(h, hkv, d, n, cap, window, softcap)).input("k", values()).input("v", values());
    }
    if c.intensity >= 2 {
        c.add("long", params(32, 8, 128, 8192, 8192, 0, 0.0));
    }
    for (d, n) in [(64, 32768), (128, 4096), (128, 32768)] {
        c.bench(format!("H=16/4 D={d} n={n}"), params(16, 4, d, n, n, 0, 0.0));
    }
    for (n_kv_heads, d) in [(4, 256), (2, 512)] {
        c.bench(format!("H=16/{n_kv_heads} D={d} n=32768"), params(16, n_kv_heads, d, 32768, 32768, 0, 0.0)).on_gpus();
    }
}

pub(crate) fn prefill_cases(c: &mut Cases) {
    let dtype = cache_dtype(c.kernel());
    let params = |seq_len, n_heads, n_kv_heads, head_dim: u32, keys, kv_capacity, window, softcap| AttentionPrefillParams {
        seq_len,
        n_heads,
        n_kv_heads,
        head_dim,
        kv_capacity,
        window,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap,
        kv_seq_len: StepU32::new(keys),
    };
    let rows: &[([u32; 7], f32)] = &[
        // seq_len, n_heads, n_kv_heads, head_dim, keys, capacity, window, softcap
        ([5, 6, 2, 64, 9, 12, 0], 0.0),
        ([1, 1, 1, 8, 1, 1, 0], 0.0),
        ([21, 4, 2, 10, 21, 32, 0], 0.0),
        ([9, 2, 1, 13, 40, 50, 7], 0.0),
        ([2, 2, 1, 16, 3, 3, 1], 0.0),
        ([31, 4, 1, 64, 31, 40, 0], 0.0),
        ([33, 4, 4, 72, 64, 64, 0], 30.0),
        ([65, 3, 1, 80, 131, 140, 17], 0.0),
        ([67, 14, 2, 64, 67, 128, 0], 0.0),
        ([16, 2, 2, 128, 1016, 1024, 0], 0.0),
        ([70, 2, 1, 256, 200, 256, 64], 0.0),
        ([4, 2, 1, 512, 700, 700, 0], 0.0),
        ([3, 71, 1, 64, 5, 8, 0], 0.0),
        ([257, 1, 1, 256, 289, 300, 0], 0.0),
        ([130, 2, 2, 192, 131, 131, 40], 20.0),
        ([20, 2, 1, 250, 40, 40, 0], 0.0),
        ([129, 2, 1, 512, 209, 240, 0], 0.0),
        ([65, 1, 1, 320, 97, 97, 33], 5.0),
    ];
    for &([seq_len, h, hkv, d, n, cap, window], softcap) in rows {
        let values = || cache(dtype, cap, d, n, Input::Normal(1.0));
        let label = format!("S={seq_len} H={h}/{hkv} D={d} n={n} cap={cap} window={window} softcap={softcap}");
        c.add(label, params(seq_len, h, hkv, d, n, cap, window, softcap)).input("k", values()).input("v", values());
    }
    if c.intensity >= 2 {
        c.add("prefill of 512", params(512, 32, 8, 128, 512, 512, 0, 0.0));
    }
    for (d, n) in [(64, 8192), (128, 512), (128, 8192)] {
        c.bench(format!("S={n} H=16/4 D={d}"), params(n, 16, 4, d, n, n, 0, 0.0));
    }
    for (n_kv_heads, d) in [(4, 256), (2, 512)] {
        c.bench(format!("S=8192 H=16/{n_kv_heads} D={d}"), params(8192, 16, n_kv_heads, d, 8192, 8192, 0, 0.0)).on_gpus();
    }
}

pub(crate) fn scale_mask_softmax(r: &mut Reference<'_>) {
    let p: ScaleMaskSoftmaxParams = r.params();
    let (input, mask) = (r.f64s("input"), r.f64s("mask"));
    let cols = p.cols as usize;
    let mut expected = Vec::new();
    for (i, row) in input.chunks(cols).enumerate() {
        let mask = &mask[i % p.seq_len as usize * cols..][..cols];
        let t: Vec<f64> = row.iter().zip(mask).map(|(x, m)| x * f64::from(p.scale) + m).collect();
        let top = t.iter().fold(f64::NEG_INFINITY, |m, &t| m.max(t));
        let sum: f64 = t.iter().map(|t| (t - top).exp()).sum();
        if top == f64::NEG_INFINITY {
            expected.extend(t.iter().map(|_| (0.0, Tolerance::EXACT)));
        } else {
            expected.extend(t.iter().map(|t| ((t - top).exp() / sum, Tolerance::abs(1e-6))));
        }
    }
    r.expect_each("out", expected);
}

pub(crate) fn scale_mask_softmax_cases(c: &mut Cases) {
    let vectors = c.kernel().ends_with("_v4");
    let mut add = |rows: u32, cols: u32, seq_len: u32| {
        if vectors && !cols.is_multiple_of(4) {
            return;
        }
        let params = ScaleMaskSoftmaxParams { rows, cols, seq_len, scale: 0.125 };
        // The first query attends nothing, the second one key, the others all but a part.
        let mask = Input::custom(move |rng, bytes| {
            let mut data = Vec::with_capacity(bytes);
            for q in 0..seq_len {
                for k in 0..cols {
                    let blocked = match q {
                        0 if seq_len > 1 => true,
                        1 => k != cols / 2,
                        _ => k % 7 == 3,
                    };
                    push(&mut data, DType::BF16, if blocked { f64::NEG_INFINITY } else { f64::from(rng.i32(-2..3)) });
                }
            }
            data
        });
        c.add(format!("rows={rows} cols={cols} seq_len={seq_len}"), params).input("mask", mask).input("input", Input::Normal(8.0));
    };
    for cols in [4, 1, 3, 8, 33, 64, 255, 256, 257, 260, 2455, 2456] {
        add(6, cols, 3);
    }
    add(1, 4, 1);
    add(32, 128, 8);
    let params = ScaleMaskSoftmaxParams { rows: 4, cols: 36, seq_len: 2, scale: 1.0 };
    c.add("in place", params).in_place("out", "input").input("mask", Input::Values(vec![0.0, 0.0, f64::NEG_INFINITY]));
    if c.intensity >= 2 {
        c.add("model shape", ScaleMaskSoftmaxParams { rows: 16 * 512, cols: 2456, seq_len: 512, scale: 1.0 });
    }
}

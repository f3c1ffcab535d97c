//! References and cases of attention in partitions, and of their merge.

use super::super::case::push;
use super::super::{Cases, Input, Reference, Tolerance};
use super::{cache, cache_dtype};
use crate::DType;
use crate::catalogue::StepU32;
use crate::ops::attention::{FlashAttnReduceParams, FlashAttnVecParams};

/// Maximum of a partition without keys, half the lowest f32: exp of anything minus it is no NaN.
const FLOOR: f64 = -1.701_411_73e38;

/// Partitions of the bench shapes, where so many are allowed.
const BENCH_PARTITIONS: u32 = 66;

/// Most partitions of a head.
fn most_partitions(dim: u32) -> u32 {
    if matches!(dim, 256 | 512) { 32 } else { 128 }
}

/// Accumulator, sum and maximum of one query over one partition.
fn part(p: &FlashAttnVecParams, [q, k, v]: [&[f64]; 3], (i, h): (usize, usize), g: usize) -> (Vec<f64>, f64, f64) {
    let (d, keys, seq_len) = (p.head_dim as usize, p.kv_seq_len.max() as i64, i64::from(p.seq_len));
    let head = h / (p.n_heads / p.n_kv_heads) as usize * p.kv_capacity as usize * d;
    let q = &q[(h * p.seq_len as usize + i) * d..][..d];
    let position = keys - seq_len + i as i64;
    let attended: Vec<usize> = (0..keys)
        .filter(|&j| p.mask_type == 0 || j <= position)
        .filter(|&j| p.mask_type != 2 || p.sliding_window == 0 || position - j < i64::from(p.sliding_window))
        .map(|j| j as usize)
        .filter(|&j| j / 32 % p.nwg as usize == g)
        .collect();
    let scores: Vec<f64> = attended
        .iter()
        .map(|&j| {
            let dot: f64 = q.iter().zip(&k[head + j * d..]).map(|(q, k)| q * k).sum();
            let (s, cap) = (dot * f64::from(p.scale), f64::from(p.softcap));
            if cap > 0.0 { cap * (s / cap).tanh() } else { s }
        })
        .collect();
    let top = scores.iter().fold(FLOOR, |m, &s| m.max(s));
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let o = (0..d).map(|x| weights.iter().zip(&attended).map(|(w, j)| w * v[head + j * d + x]).sum()).collect();
    (o, weights.iter().sum(), top)
}

pub(crate) fn partitions(r: &mut Reference<'_>) {
    let p: FlashAttnVecParams = r.params();
    let (q, k, v) = (r.f64s("q"), r.f64s("k"), r.f64s("v"));
    let (d, parts) = (p.head_dim as usize, p.nwg as usize);
    let largest = v.iter().filter(|v| !v.is_nan()).fold(0.0f64, |m, v| v.abs().max(m));
    let rows: Vec<(usize, usize)> = (0..p.seq_len as usize).flat_map(|i| (0..p.n_heads as usize).map(move |h| (i, h))).collect();
    if parts == 1 {
        let bound = Tolerance::abs(1e-4 * largest);
        let row = |at| {
            let (o, l, _) = part(&p, [&q, &k, &v], at, 0);
            o.into_iter().map(move |o| (if l == 0.0 { 0.0 } else { o / l }, bound))
        };
        r.expect_each("out", rows.into_iter().flat_map(row).collect());
        return;
    }
    let mut expected = vec![(0.0, Tolerance::EXACT); rows.len() * parts * (d + 2)];
    let base = rows.len() * parts * d;
    for (rho, &at) in rows.iter().enumerate() {
        for g in 0..parts {
            let (o, l, m) = part(&p, [&q, &k, &v], at, g);
            // What is not normalised is off by as much more as the weights are.
            let bound = Tolerance::abs(1e-4 * largest * l.max(1.0));
            for (x, o) in o.into_iter().enumerate() {
                expected[((rho * d / 4 + x / 4) * parts + g) * 4 + x % 4] = (o, if l == 0.0 { Tolerance::EXACT } else { bound });
            }
            let pair = base + 2 * (rho * parts + g);
            expected[pair] = (l, Tolerance::rel(1e-4, 0.0));
            expected[pair + 1] = (m, if l == 0.0 { Tolerance::rel(1e-7, 0.0) } else { Tolerance::rel(2e-6, 2e-6) });
        }
    }
    r.expect_each("partial", expected);
}

pub(crate) fn partition_cases(c: &mut Cases) {
    let dtype = cache_dtype(c.kernel());
    let dim: u32 = c.kernel().rsplit("dk").next().and_then(|d| d.parse().ok()).unwrap_or(0);
    let params =
        |[seq_len, n_heads, n_kv_heads, keys, kv_capacity, nwg, mask_type, sliding_window]: [u32; 8], softcap| FlashAttnVecParams {
            n_heads,
            n_kv_heads,
            head_dim: dim,
            kv_capacity,
            seq_len,
            mask_type,
            sliding_window,
            nwg,
            scale: 1.0 / (dim as f32).sqrt(),
            softcap,
            kv_seq_len: StepU32::new(keys),
        };
    let rows: [([u32; 8], f32); 14] = [
        // seq_len, n_heads, n_kv_heads, keys, capacity, nwg, mask_type, window; softcap
        ([2, 6, 2, 70, 80, 3, 2, 37], 5.0),
        ([1, 1, 1, 1, 1, 1, 0, 0], 0.0),
        ([1, 4, 1, 31, 32, 1, 1, 0], 0.0),
        ([1, 8, 1, 33, 40, 2, 1, 0], 0.0),
        // More partitions than blocks.
        ([1, 2, 2, 65, 65, 32, 1, 0], 0.0),
        // The first query attends one key.
        ([4, 3, 1, 4, 7, 2, 1, 0], 0.0),
        ([3, 4, 4, 64, 64, 1, 0, 0], 0.0),
        ([1, 10, 1, 127, 130, 2, 0, 0], 30.0),
        ([8, 4, 2, 300, 320, 4, 2, 100], 0.0),
        ([1, 9, 1, 511, 600, 5, 2, 128], 0.0),
        ([1, 4, 2, 1025, 1030, 8, 1, 0], 0.0),
        ([1, 17, 1, 600, 600, 1, 2, 1], 0.0),
        ([1, 2, 1, 4200, 4200, 32, 1, 0], 0.0),
        ([1, 4, 1, 3500, 3600, 128, 1, 0], 0.0),
    ];
    let most = most_partitions(dim);
    for (mut row, softcap) in rows {
        row[5] = row[5].min(most);
        let [seq_len, h, hkv, keys, cap, nwg, mask, window] = row;
        let values = || cache(dtype, cap, dim, keys, Input::Normal(1.0));
        let label = format!("Sq={seq_len} H={h}/{hkv} n={keys} cap={cap} nwg={nwg} mask={mask} window={window} softcap={softcap}");
        let case = c.add(label, params(row, softcap)).input("k", values()).input("v", values());
        case.without(if nwg == 1 { "partial" } else { "out" });
    }
    // Queries whose largest element f16 does not hold, and scores that decide for one key.
    let mut large = params([1, 4, 2, 70, 70, 1, 1, 0], 0.0);
    large.scale = 1e-6;
    c.add("large queries", large).input("q", Input::Normal(1e5)).without("partial");
    let mut small = params([1, 4, 2, 70, 70, 1, 1, 0], 0.0);
    small.scale = 1e6;
    c.add("small queries", small).input("q", Input::Normal(1e-6)).without("partial");
    if c.intensity >= 2 {
        c.add("long", params([1, 32, 8, 8192, 8192, 32, 1, 0], 0.0)).without("out");
    }
    let nwg = most.min(BENCH_PARTITIONS);
    for keys in [4096, 32768] {
        c.bench(format!("H=16/4 n={keys} nwg={nwg}"), params([1, 16, 4, keys, keys, nwg, 1, 0], 0.0)).without("out");
    }
    if dim == 512 {
        c.bench(format!("H=16/2 n=32768 nwg={nwg}"), params([1, 16, 2, 32768, 32768, nwg, 1, 0], 0.0)).without("out").on_gpus();
    }
}

pub(crate) fn reduce(r: &mut Reference<'_>) {
    let p: FlashAttnReduceParams = r.params();
    let partial = r.f64s("partial");
    let (rows, parts) = (p.rows as usize, p.nwg as usize);
    let d = partial.len() / (rows * parts) - 2;
    let mut expected = Vec::new();
    for rho in 0..rows {
        let pair = |g: usize| rows * parts * d + 2 * (rho * parts + g);
        let top = (0..parts).map(|g| partial[pair(g) + 1]).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = (0..parts).map(|g| (partial[pair(g) + 1] - top).exp()).collect();
        let sum: f64 = weights.iter().enumerate().map(|(g, w)| w * partial[pair(g)]).sum();
        for x in 0..d {
            let terms = weights.iter().enumerate().map(|(g, w)| w * partial[((rho * d / 4 + x / 4) * parts + g) * 4 + x % 4]);
            let (total, size) = terms.fold((0.0, 0.0), |(t, s), v: f64| (t + v, s + v.abs()));
            // Relative to what is added up: terms of both signs may cancel.
            expected.push(if sum == 0.0 { (0.0, Tolerance::EXACT) } else { (total / sum, Tolerance::abs(1e-6 * size / sum)) });
        }
    }
    r.expect_each("out", expected);
}

pub(crate) fn reduce_cases(c: &mut Cases) {
    let dim: usize = match c.kernel() {
        name if name.contains("dv256") => 256,
        name => name.rsplit("dk").next().and_then(|d| d.parse().ok()).unwrap_or(0),
    };
    let counts: &[u32] = if c.kernel().ends_with("nwg32") { &[32] } else { &[3, 1, 2, 16, 31, 32, 100] };
    let most = most_partitions(dim as u32);
    for &nwg in counts.iter().filter(|&&nwg| nwg <= most) {
        for rows in [5, 1, 33] {
            // Some partitions are empty, and the second row has no key at all.
            let partial = Input::custom(move |rng, bytes| {
                let (rows, nwg) = (rows as usize, nwg as usize);
                let mut data = Input::Normal(3.0).make(rng, DType::F32, rows * nwg * dim);
                let empty = |rho: usize, g: usize| rho == 1 || (g % 3 == 2 && nwg > 2);
                for rho in 0..rows {
                    for g in 0..nwg {
                        if empty(rho, g) {
                            for x in 0..dim {
                                let at = ((rho * dim / 4 + x / 4) * nwg + g) * 4 + x % 4;
                                data[4 * at..4 * at + 4].fill(0);
                            }
                        }
                    }
                }
                for rho in 0..rows {
                    for g in 0..nwg {
                        let (l, m) = if empty(rho, g) { (0.0, FLOOR) } else { (1.0 + 40.0 * rng.f64(), 20.0 * rng.f64() - 10.0) };
                        push(&mut data, DType::F32, l);
                        push(&mut data, DType::F32, m);
                    }
                }
                assert_eq!(data.len(), bytes);
                data
            });
            c.add(format!("rows={rows} nwg={nwg}"), FlashAttnReduceParams { rows, nwg }).input("partial", partial);
        }
    }
    if counts.len() > 1 {
        // What follows the partitions of a token.
        let nwg = most.min(BENCH_PARTITIONS);
        c.bench(format!("rows=16 nwg={nwg}"), FlashAttnReduceParams { rows: 16, nwg }).on_gpus();
    }
}

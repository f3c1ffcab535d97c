//! References and cases of the rope family.

use super::{Case, Cases, Input, Reference, Tolerance};
use crate::DType;
use crate::catalogue::StepU32;
use crate::ops::rope::{
    HeadNormRopeBatchParams, HeadNormRopeParams, HeadNormRopeTableParams, RopeCachedParams, RopeMode, RopeMultiParams, RopeParams,
    inv_freq, multi_inv_freq,
};

/// The f32 angle of a pair: a product, then a division, each rounded.
fn angle(position: f64, frequency: f64, factor: Option<f64>) -> f64 {
    let product = position as f32 * frequency as f32;
    f64::from(factor.map_or(product, |f| product / f as f32))
}

/// Rotates a head: pair `p` is `at(p)` and turns by `angles[p]`. Gives values and `|x0| + |x1|` of each element's pair (zero where
/// nothing turned).
fn rotate(head: &[f64], angles: &[f64], at: impl Fn(usize) -> (usize, usize)) -> Vec<(f64, f64)> {
    let mut out: Vec<(f64, f64)> = head.iter().map(|&v| (v, 0.0)).collect();
    for (p, angle) in angles.iter().enumerate() {
        let ((i, j), (sin, cos)) = (at(p), angle.sin_cos());
        let size = head[i].abs() + head[j].abs();
        out[i] = (head[i] * cos - head[j] * sin, size);
        out[j] = (head[i] * sin + head[j] * cos, size);
    }
    out
}

/// The angles of all pairs at a position.
fn angles(position: u32, frequencies: &[f64], factors: &[f64]) -> Vec<f64> {
    frequencies.iter().enumerate().map(|(p, &f)| angle(f64::from(position), f, factors.get(p).copied())).collect()
}

/// Expects what [`rotate`] gave. What does not turn is copied: no tolerance there.
fn expect_rotated(r: &mut Reference<'_>, rotated: Vec<(f64, f64)>) {
    let ulps = if r.dtype("out") == DType::F32 { 0.0 } else { 1.0 };
    let bound = |size: f64| if size == 0.0 { Tolerance::EXACT } else { Tolerance::abs(3e-6 * size).plus_ulps(ulps) };
    r.expect_each("out", rotated.into_iter().map(|(y, size)| (y, bound(size))).collect());
}

pub(crate) fn rope(r: &mut Reference<'_>) {
    let p: RopeParams = r.params();
    let adjacent = !r.kernel().contains("neox");
    let (x, positions, frequencies, factors) = (r.f64s("x"), r.u32s("positions"), r.f64s("inv_freq"), r.f64s("factors"));
    let mut rotated = Vec::new();
    for (row, head) in x.chunks(p.head_dim as usize).enumerate() {
        let angles = angles(positions[row / p.n_heads as usize], &frequencies, &factors);
        rotated.extend(rotate(head, &angles, |p| if adjacent { (2 * p, 2 * p + 1) } else { (p, p + head.len() / 2) }));
    }
    expect_rotated(r, rotated);
}

pub(crate) fn rope_cached(r: &mut Reference<'_>) {
    let p: RopeCachedParams = r.params();
    let angles = angles(r.u32s("positions")[0], &r.f64s("inv_freq"), &r.f64s("factors"));
    let (dim, cap) = (p.head_dim as usize, p.cache_cap as usize);
    let rotated = |x: &[f64]| -> Vec<(f64, f64)> {
        x.chunks(dim).flat_map(|head| rotate(head, &angles, |i| if p.split == 0 { (2 * i, 2 * i + 1) } else { (i, i + dim / 2) })).collect()
    };
    expect_rotated(r, rotated(&r.f64s("q")));
    let ulps = if r.dtype("k_cache") == DType::F32 { 0.0 } else { 1.0 };
    let still = |x: Vec<f64>| x.into_iter().map(|v| (v, 0.0)).collect::<Vec<_>>();
    for (cache, heads) in [("k_cache", rotated(&r.f64s("k"))), ("v_cache", still(r.f64s("v")))] {
        let mut all: Vec<(f64, Tolerance)> = r.f64s(cache).into_iter().map(|v| (v, Tolerance::EXACT)).collect();
        for (i, (value, size)) in heads.into_iter().enumerate() {
            // What is only moved is rounded to the nearest, as the expected value is.
            let bound = if size == 0.0 { Tolerance::EXACT } else { Tolerance::abs(3e-6 * size).plus_ulps(ulps) };
            all[(i / dim * cap + p.seq_pos.max() as usize) * dim + i % dim] = (value, bound);
        }
        r.expect_each(cache, all);
    }
}

/// The axis of a pair, spelt out for each mode.
fn axis(p: &RopeMultiParams, pair: u32) -> usize {
    let s = [p.section_0, p.section_1, p.section_2, p.section_3];
    let at = pair % if p.mode == 24 { s[0] + s[1] } else { s.iter().sum() };
    match p.mode {
        24 => usize::from(at >= s[0]),
        8 if at < s[0] => 0,
        8 if at < s[0] + s[1] => 1,
        8 if at < s[0] + s[1] + s[2] => 2,
        8 => 3,
        _ if at.is_multiple_of(3) && at < 3 * s[0] => 0,
        _ if at % 3 == 1 && at < 3 * s[1] => 1,
        _ if at % 3 == 2 && at < 3 * s[2] => 2,
        _ => 3,
    }
}

pub(crate) fn rope_multi(r: &mut Reference<'_>) {
    let p: RopeMultiParams = r.params();
    let (x, positions, frequencies) = (r.f64s("x"), r.f64s("positions"), r.f64s("inv_freq"));
    let (half, seq_len) = (p.rope_dim as usize / 2, p.seq_len as usize);
    let mut rotated = Vec::new();
    for (row, head) in x.chunks(p.head_dim as usize).enumerate() {
        let at = |pair: usize| positions[axis(&p, pair as u32) * seq_len + row / p.n_heads as usize];
        let angles: Vec<f64> = (0..half).map(|pair| angle(at(pair), frequencies[pair], None)).collect();
        rotated.extend(rotate(head, &angles, |pair| (pair, pair + half)));
    }
    expect_rotated(r, rotated);
}

/// `x / sqrt(mean(x²) + eps) · weight`; ones stand for a weight that was left out.
fn normalise(r: &Reference<'_>, head: &[f64], eps: f32) -> Vec<f64> {
    let mean = head.iter().map(|v| v * v).sum::<f64>() / head.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    let weight = if r.has("weight") { r.f64s("weight") } else { vec![1.0; head.len()] };
    head.iter().zip(weight).map(|(v, w)| v * scale * w).collect()
}

/// Bound of a normalised and rotated head.
fn head_tolerance(head: &[f64]) -> Tolerance {
    Tolerance::abs(1e-5 * head.iter().fold(0.0, |m, v| v.abs().max(m)) + 1e-6)
}

/// Expects these heads, rounded to bf16 from f32.
fn expect_rounded(r: &mut Reference<'_>, heads: &[Vec<f64>]) {
    let each = |head: &Vec<f64>| head.iter().map(|&v| (v, head_tolerance(head).plus_ulps(1.0))).collect::<Vec<_>>();
    r.expect_each("out", heads.iter().flat_map(each).collect());
}

pub(crate) fn head_norm_rope_batch(r: &mut Reference<'_>) {
    let p: HeadNormRopeBatchParams = r.params();
    let (x, positions, frequencies, factors) = (r.f64s("x"), r.u32s("positions"), r.f64s("inv_freq"), r.f64s("factors"));
    let frequencies = &frequencies[..p.half_rope as usize];
    let mut heads: Vec<Vec<f64>> = Vec::new();
    for (row, head) in x.chunks(p.head_dim as usize).enumerate() {
        let angles = angles(positions[row / p.n_heads as usize], frequencies, &factors);
        let rotated = rotate(&normalise(r, head, p.eps), &angles, |pair| (pair, pair + head.len() / 2));
        heads.push(rotated.into_iter().map(|(y, _)| y).collect());
    }
    expect_rounded(r, &heads);
}

pub(crate) fn head_norm_rope_table(r: &mut Reference<'_>) {
    let p: HeadNormRopeTableParams = r.params();
    let (x, cos, sin, half) = (r.f64s("x"), r.f64s("cos"), r.f64s("sin"), p.half_rope as usize);
    let mut heads: Vec<Vec<f64>> = Vec::new();
    for head in x.chunks(p.head_dim as usize) {
        let n = normalise(r, head, p.eps);
        let mut y = n.clone();
        for i in 0..half {
            y[i] = n[i] * cos[i] - n[i + half] * sin[i];
            y[i + half] = n[i] * sin[i] + n[i + half] * cos[i];
        }
        heads.push(y);
    }
    expect_rounded(r, &heads);
}

pub(crate) fn head_norm_rope(r: &mut Reference<'_>) {
    let p: HeadNormRopeParams = r.params();
    let (dim, heads, seq_len) = (p.head_dim as usize, p.n_heads as usize, p.seq_len as usize);
    let (x, positions, frequencies, factors) = (r.f64s("x"), r.u32s("positions"), r.f64s("inv_freq"), r.f64s("factors"));
    let frequencies = &frequencies[..p.half_rope as usize];
    let mut rows = Vec::new();
    for (row, head) in x.chunks(dim).enumerate() {
        let angles = angles(positions[row / heads], frequencies, &factors);
        let rotated = rotate(&normalise(r, head, p.eps), &angles, |pair| (pair, pair + dim / 2));
        rows.push(rotated.into_iter().map(|(y, _)| y).collect::<Vec<f64>>());
    }
    let each = |row: &Vec<f64>| row.iter().map(|&v| (v, head_tolerance(row))).collect::<Vec<_>>();
    let permuted = || (0..heads).flat_map(|h| (0..seq_len).map(move |t| t * heads + h));
    r.expect_each("out", rows.iter().flat_map(each).collect());
    if r.has("out_perm") {
        r.expect_each("out_perm", permuted().flat_map(|row| each(&rows[row])).collect());
    }
    if r.has("out_bf16") {
        let order: Vec<usize> = if p.bf16_permuted == 1 { permuted().collect() } else { (0..rows.len()).collect() };
        let rounded = order.into_iter().flat_map(|row| each(&rows[row])).map(|(v, t)| (v, t.plus_ulps(1.0))).collect();
        r.expect_each("out_bf16", rounded);
    }
}

/// Positions that a table of f32 frequencies makes hard, and 0, which proves nothing alone.
const POSITIONS: [u32; 6] = [0, 1, 7, 4095, 131_071, 1_048_575];

fn tables(case: &mut Case, base: f64, dim: u32, pairs: u32, factors: bool) -> &mut Case {
    case.input("positions", Input::Words(POSITIONS.to_vec()));
    let table = inv_freq(base, dim as usize, pairs.max(1) as usize).unwrap_or_default();
    case.input("inv_freq", Input::Values(table.into_iter().map(f64::from).collect()));
    if factors { case.input("factors", Input::Values(vec![1.0, 2.0, 8.0, 1e30])) } else { case.without("factors") }
}

pub(crate) fn rope_cached_cases(c: &mut Cases) {
    let shapes = [(1, 1, 2, 2), (3, 1, 30, 30), (4, 2, 64, 64), (32, 8, 128, 128), (2, 2, 256, 64), (7, 3, 512, 512), (1, 1, 72, 4)];
    for (n_heads, n_kv_heads, head_dim, rope_dim) in shapes {
        for (split, factors, cache_cap, pos, position) in
            [(0, false, 1, 0, 0), (1, true, 5, 4, 4095), (0, true, 7, 2, 131_071), (1, false, 3, 1, 7)]
        {
            let seq_pos = StepU32::new(pos);
            let p = RopeCachedParams { n_heads, n_kv_heads, head_dim, rope_dim, split, cache_cap, seq_pos };
            let label =
                format!("heads={n_heads}/{n_kv_heads} head_dim={head_dim} rope_dim={rope_dim} split={split} cap={cache_cap} pos={pos}");
            tables(c.add(label, p), 1e4, head_dim, rope_dim / 2, factors).input("positions", Input::Words(vec![position]));
        }
    }
    let seq_pos = StepU32::new(3);
    let p = RopeCachedParams { n_heads: 4, n_kv_heads: 2, head_dim: 64, rope_dim: 64, split: 0, cache_cap: 4, seq_pos };
    tables(c.add("in place", p), 1e6, 64, 32, false).input("positions", Input::Words(vec![7])).in_place("out", "q");
    let seq_pos = StepU32::new(4095);
    let p = RopeCachedParams { n_heads: 32, n_kv_heads: 8, head_dim: 128, rope_dim: 128, split: 0, cache_cap: 4096, seq_pos };
    c.bench("heads=32/8 head_dim=128 cap=4096", p);
}

pub(crate) fn rope_cases(c: &mut Cases) {
    let partial = c.kernel().contains("neox");
    for (head_dim, rope_dim) in [(2, 2), (4, 4), (30, 30), (64, 64), (72, 72), (128, 128), (256, 256), (512, 128), (256, 64), (64, 2)] {
        if rope_dim != head_dim && !partial {
            continue;
        }
        for (seq_len, n_heads) in [(1, 1), (6, 1), (7, 3)] {
            for factors in [false, true] {
                let label = format!("head_dim={head_dim} rope_dim={rope_dim} seq_len={seq_len} n_heads={n_heads} factors={factors}");
                tables(c.add(label, RopeParams { seq_len, n_heads, head_dim, rope_dim }), 1e4, head_dim, rope_dim / 2, factors);
            }
        }
    }
    tables(c.add("in place", RopeParams { seq_len: 5, n_heads: 2, head_dim: 64, rope_dim: 64 }), 1e6, 64, 32, false).in_place("out", "x");
    for seq_len in [1, 512] {
        let p = RopeParams { seq_len, n_heads: 32, head_dim: 128, rope_dim: 128 };
        tables(c.bench(format!("seq_len={seq_len} n_heads=32 head_dim=128"), p), 1e4, 128, 64, false);
    }
}

/// Head widths, and how many pairs turn.
fn head_shapes() -> impl Iterator<Item = (u32, u32)> {
    let halves = |head_dim: u32| [0, head_dim / 8, head_dim / 4, head_dim / 2].map(|half| (head_dim, half));
    [2, 6, 12, 64, 128, 256, 512, 2080].into_iter().flat_map(halves)
}

pub(crate) fn head_norm_rope_batch_cases(c: &mut Cases) {
    let params = |seq_len, head_dim, half_rope| HeadNormRopeBatchParams { seq_len, n_heads: 3, head_dim, half_rope, eps: 1e-6 };
    for (head_dim, half_rope) in head_shapes() {
        let label = format!("head_dim={head_dim} half_rope={half_rope}");
        tables(c.add(label, params(6, head_dim, half_rope)), 1e4, head_dim, half_rope, head_dim == 128);
    }
    tables(c.add("without weight", params(6, 64, 32)), 1e6, 64, 32, false).without("weight");
    tables(c.add("in place", params(6, 64, 16)), 1e6, 64, 16, true).in_place("out", "x");
    for seq_len in [1, 512] {
        tables(c.bench(format!("seq_len={seq_len} n_heads=3 head_dim=256"), params(seq_len, 256, 128)), 1e4, 256, 128, false);
    }
}

pub(crate) fn head_norm_rope_table_cases(c: &mut Cases) {
    let params = |n_heads, head_dim, half_rope| HeadNormRopeTableParams { n_heads, head_dim, half_rope, eps: 1e-6 };
    fn turned(case: &mut Case) -> &mut Case {
        let turn = |f: fn(f64) -> f64| Input::Values((0..256).map(|i| f(f64::from(i) * 1.7)).collect());
        case.input("cos", turn(f64::cos)).input("sin", turn(f64::sin))
    }
    for (head_dim, half_rope) in head_shapes() {
        turned(c.add(format!("head_dim={head_dim} half_rope={half_rope}"), params(3, head_dim, half_rope)));
    }
    turned(c.add("without weight", params(3, 64, 32))).without("weight");
    turned(c.add("in place", params(3, 64, 16))).in_place("out", "x");
    turned(c.bench("n_heads=16 head_dim=256", params(16, 256, 128)));
}

pub(crate) fn rope_multi_cases(c: &mut Cases) {
    let cases: [(RopeMode, [u32; 4], u32, u32); 10] = [
        (RopeMode::Blocks, [1, 0, 0, 0], 2, 2),
        (RopeMode::Blocks, [16, 24, 24, 0], 128, 128),
        (RopeMode::Blocks, [3, 2, 2, 1], 64, 16),
        (RopeMode::Blocks, [1, 2, 0, 0], 20, 16),
        (RopeMode::Interleaved, [11, 11, 10, 0], 256, 64),
        (RopeMode::Interleaved, [24, 20, 20, 0], 128, 128),
        (RopeMode::Interleaved, [2, 1, 1, 0], 30, 10),
        (RopeMode::Interleaved, [0, 3, 0, 5], 64, 32),
        (RopeMode::Vision, [18, 18, 0, 0], 72, 72),
        (RopeMode::Vision, [5, 11, 7, 7], 32, 32),
    ];
    // Axes that differ, beyond and before the start.
    let positions = [0.0, 1.0, -3.0, 4095.0, 17.0, 131_071.0, 2.0, -1.0, 5.0, 99.0, 40.0];
    let filled = |case: &mut Case, (mode, sections, rope_dim): (RopeMode, [u32; 4], u32)| {
        let table = multi_inv_freq(1e4, mode, sections, rope_dim as usize).unwrap_or_default();
        case.input("positions", Input::Values(positions.to_vec()));
        case.input("inv_freq", Input::Values(table.into_iter().map(f64::from).collect()));
    };
    let params = |seq_len, n_heads, mode: RopeMode, [section_0, section_1, section_2, section_3]: [u32; 4], head_dim, rope_dim| {
        let mode = mode.code();
        RopeMultiParams { seq_len, n_heads, head_dim, rope_dim, mode, section_0, section_1, section_2, section_3 }
    };
    for (mode, sections, head_dim, rope_dim) in cases {
        for (seq_len, n_heads) in [(1, 1), (7, 3)] {
            let label = format!("{mode:?} {sections:?} head_dim={head_dim} rope_dim={rope_dim} seq_len={seq_len} n_heads={n_heads}");
            filled(c.add(label, params(seq_len, n_heads, mode, sections, head_dim, rope_dim)), (mode, sections, rope_dim));
        }
    }
    let (mode, sections) = (RopeMode::Interleaved, [11, 11, 10, 0]);
    let case = c.add("in place", params(5, 2, mode, sections, 256, 64)).in_place("out", "x");
    filled(case, (mode, sections, 64));
    for seq_len in [1, 512] {
        let label = format!("seq_len={seq_len} n_heads=16 head_dim=256 rope_dim=64");
        filled(c.bench(label, params(seq_len, 16, mode, sections, 256, 64)), (mode, sections, 64));
    }
}

pub(crate) fn head_norm_rope_cases(c: &mut Cases) {
    let four = c.kernel().ends_with("_v2");
    for (head_dim, half_rope) in head_shapes().filter(|(head_dim, _)| !four || head_dim % 4 == 0) {
        let p = HeadNormRopeParams { seq_len: 6, n_heads: 3, head_dim, half_rope, eps: 1e-6, bf16_permuted: half_rope % 2 };
        tables(c.add(format!("head_dim={head_dim} half_rope={half_rope}"), p), 1e4, head_dim, half_rope, head_dim == 128);
    }
    let p = HeadNormRopeParams { seq_len: 5, n_heads: 2, head_dim: 64, half_rope: 32, eps: 1e-5, bf16_permuted: 1 };
    let plain = tables(c.add("without weight and copies", p), 1e6, 64, 32, false);
    plain.without("weight").without("out_bf16").without("out_perm");
    tables(c.add("in place, both copies permuted", p), 1e6, 64, 32, true).in_place("out", "x");
    for seq_len in [1, 512] {
        let p = HeadNormRopeParams { seq_len, n_heads: 16, head_dim: 256, half_rope: 128, eps: 1e-6, bf16_permuted: 0 };
        let case = tables(c.bench(format!("seq_len={seq_len} n_heads=16 head_dim=256"), p), 1e4, 256, 128, false);
        case.without("out_bf16").without("out_perm");
    }
}

//! References and cases of the rope family.

use super::{Case, Cases, Input, Reference, Tolerance};
use crate::DType;
use crate::ops::rope::{HeadNormRopeParams, RopeParams, inv_freq};

/// The f32 angle of a pair: a product, then a division, each rounded.
fn angle(position: u32, frequency: f64, factor: Option<f64>) -> f64 {
    let product = position as f32 * frequency as f32;
    f64::from(factor.map_or(product, |f| product / f as f32))
}

/// Rotates a head; gives values and `|x0| + |x1|` of each element's pair (zero where nothing turned).
fn rotate(head: &[f64], position: u32, frequencies: &[f64], factors: &[f64], adjacent: bool) -> Vec<(f64, f64)> {
    let mut out: Vec<(f64, f64)> = head.iter().map(|&v| (v, 0.0)).collect();
    for (p, &frequency) in frequencies.iter().enumerate() {
        let (i, j) = if adjacent { (2 * p, 2 * p + 1) } else { (p, p + head.len() / 2) };
        let (sin, cos) = angle(position, frequency, factors.get(p).copied()).sin_cos();
        let size = head[i].abs() + head[j].abs();
        out[i] = (head[i] * cos - head[j] * sin, size);
        out[j] = (head[i] * sin + head[j] * cos, size);
    }
    out
}

pub(crate) fn rope(r: &mut Reference<'_>) {
    let p: RopeParams = r.params();
    let adjacent = !r.kernel().contains("neox");
    let (x, positions, frequencies, factors) = (r.f64s("x"), r.u32s("positions"), r.f64s("inv_freq"), r.f64s("factors"));
    let ulps = if r.dtype("out") == DType::F32 { 0.0 } else { 1.0 };
    let mut expected = Vec::new();
    for (row, head) in x.chunks(p.head_dim as usize).enumerate() {
        let rotated = rotate(head, positions[row / p.n_heads as usize], &frequencies, &factors, adjacent);
        // What does not turn is copied: no tolerance there.
        expected.extend(
            rotated
                .into_iter()
                .map(|(y, size)| (y, if size == 0.0 { Tolerance::EXACT } else { Tolerance::abs(3e-6 * size).plus_ulps(ulps) })),
        );
    }
    r.expect_each("out", expected);
}

pub(crate) fn head_norm_rope(r: &mut Reference<'_>) {
    let p: HeadNormRopeParams = r.params();
    let (dim, heads, seq_len) = (p.head_dim as usize, p.n_heads as usize, p.seq_len as usize);
    let (x, positions, frequencies, factors) = (r.f64s("x"), r.u32s("positions"), r.f64s("inv_freq"), r.f64s("factors"));
    let frequencies = &frequencies[..p.half_rope as usize];
    let weight = if r.has("weight") { r.f64s("weight") } else { vec![1.0; dim] };
    let mut rows = Vec::new();
    for (row, head) in x.chunks(dim).enumerate() {
        let mean = head.iter().map(|v| v * v).sum::<f64>() / dim as f64;
        let scale = 1.0 / (mean + f64::from(p.eps)).sqrt();
        let normed: Vec<f64> = head.iter().zip(&weight).map(|(v, w)| v * scale * w).collect();
        let y: Vec<f64> = rotate(&normed, positions[row / heads], frequencies, &factors, false).into_iter().map(|(y, _)| y).collect();
        rows.push(y);
    }
    let tolerance = |row: &[f64]| Tolerance::abs(1e-5 * row.iter().fold(0.0, |m, v| v.abs().max(m)) + 1e-6);
    let each = |row: &Vec<f64>| row.iter().map(|&v| (v, tolerance(row))).collect::<Vec<_>>();
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

fn tables(case: &mut Case, base: f64, dim: u32, pairs: u32, factors: bool) {
    case.input("positions", Input::Words(POSITIONS.to_vec()));
    let table = inv_freq(base, dim as usize, pairs.max(1) as usize).unwrap_or_default();
    case.input("inv_freq", Input::Values(table.into_iter().map(f64::from).collect()));
    if factors {
        case.input("factors", Input::Values(vec![1.0, 2.0, 8.0, 1e30]));
    } else {
        case.without("factors");
    }
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
    tables(c.add("in place", RopeParams { seq_len: 5, n_heads: 2, head_dim: 64, rope_dim: 64 }), 1e6, 64, 32, false);
    if let Some(last) = c.last() {
        last.in_place("out", "x");
    }
}

pub(crate) fn head_norm_rope_cases(c: &mut Cases) {
    let four = c.kernel().ends_with("_v2");
    for head_dim in [2, 6, 12, 64, 128, 256, 512] {
        if four && head_dim % 4 != 0 {
            continue;
        }
        for half_rope in [0, head_dim / 8, head_dim / 4, head_dim / 2] {
            let p = HeadNormRopeParams { seq_len: 6, n_heads: 3, head_dim, half_rope, eps: 1e-6, bf16_permuted: half_rope % 2 };
            tables(c.add(format!("head_dim={head_dim} half_rope={half_rope}"), p), 1e4, head_dim, half_rope, head_dim == 128);
        }
    }
    let p = HeadNormRopeParams { seq_len: 5, n_heads: 2, head_dim: 64, half_rope: 32, eps: 1e-5, bf16_permuted: 1 };
    tables(c.add("without weight and copies", p), 1e6, 64, 32, false);
    if let Some(last) = c.last() {
        last.without("weight").without("out_bf16").without("out_perm");
    }
    tables(c.add("in place, both copies permuted", p), 1e6, 64, 32, true);
    if let Some(last) = c.last() {
        last.in_place("out", "x");
    }
}

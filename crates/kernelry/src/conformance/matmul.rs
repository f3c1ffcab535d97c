//! References and cases of products with weights that are not quantised.

use half::{bf16, f16};

use super::{Cases, Input, Reference, Tolerance};
use crate::DType;
use crate::ops::matmul::{BatchedMatmulParams, MatmulParams};

fn dot(x: &[f64], w: &[f64]) -> (f64, f64) {
    x.iter().zip(w).fold((0.0, 0.0), |(sum, unit), (x, w)| (sum + x * w, unit + (x * w).abs()))
}

/// Error of an f32 sum of `k` products whose magnitudes add up to `unit`.
fn sum_error(k: usize, unit: f64) -> f64 {
    (8.0 + (k as f64).sqrt()) * unit * (-22f64).exp2()
}

fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
}

pub(crate) fn batched(r: &mut Reference<'_>) {
    let p: BatchedMatmulParams = r.params();
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let (mut x, w) = (r.f64s("x"), r.f64s("weight"));
    match r.kernel() {
        "hf2q_dense_mm_bf16_f32_tensor" => x.iter_mut().for_each(|v| *v = bf16::from_f32(*v as f32).to_f64()),
        "hf2q_dense_mm_f16_f32_tensor" => x.iter_mut().for_each(|v| *v = f16::from_f32(*v as f32).to_f64()),
        _ => {}
    }
    let loose = r.kernel().ends_with("_v2");
    let group = (p.batch / p.weights) as usize;
    let mut expected = Vec::new();
    for (row, x) in x.chunks(k).enumerate() {
        let matrix = row / m / group;
        for w in w[matrix * n * k..(matrix + 1) * n * k].chunks(k) {
            let (sum, unit) = dot(x, w);
            let rounding = if loose { 4.0 * (-8f64).exp2() * (k as f64).sqrt() * rms(x) * rms(w) } else { 0.0 };
            expected.push((sum, Tolerance::abs(sum_error(k, unit).max(rounding))));
        }
    }
    r.expect_each("out", expected);
}

pub(crate) fn single(r: &mut Reference<'_>) {
    let p: MatmulParams = r.params();
    let k = p.k as usize;
    let (x, w) = (r.f64s("x"), r.f64s("weight"));
    let ulps = if r.dtype("out") == DType::F16 { 1.0 } else { 0.0 };
    let mut expected = Vec::new();
    for x in x.chunks(k) {
        for w in w.chunks(k) {
            let (sum, unit) = dot(x, w);
            expected.push((sum, Tolerance::abs(sum_error(k, unit)).plus_ulps(ulps)));
        }
    }
    r.expect_each("out", expected);
}

/// Row lengths: a lone element, partial tiles, and widths of models and of attention.
const LENGTHS: [u32; 12] = [1, 2, 3, 4, 31, 32, 33, 64, 72, 197, 384, 4096];
const OUTPUTS: [u32; 8] = [1, 2, 7, 35, 63, 64, 65, 130];

/// Every length with some row and output counts; all combinations at intensity 3.
fn sizes(c: &Cases, rows: &[u32]) -> Vec<(u32, u32, u32)> {
    let mut list = Vec::new();
    for (i, k) in LENGTHS.into_iter().enumerate() {
        if c.intensity >= 3 {
            list.extend(rows.iter().flat_map(|&m| OUTPUTS.map(|n| (m, n, k))));
        } else {
            list.push((rows[i % rows.len()], OUTPUTS[(5 * i) % OUTPUTS.len()], k));
            list.push((rows[(i + 2) % rows.len()], OUTPUTS[(5 * i + 3) % OUTPUTS.len()], k));
        }
    }
    list
}

/// Five rows of which the third is NaN.
fn nan_row(k: u32) -> Input {
    let mut values = vec![1.0; 2 * k as usize];
    values.extend(vec![f64::NAN; k as usize]);
    values.extend(vec![-2.0; 2 * k as usize]);
    Input::Values(values)
}

pub(crate) fn batched_cases(c: &mut Cases) {
    let rows: &[u32] = if c.kernel().contains("gemv") { &[1, 2, 5] } else { &[1, 7, 31, 33, 129] };
    for (m, n, k) in sizes(c, rows) {
        c.add(format!("m={m} n={n} k={k}"), BatchedMatmulParams { m, n, k, batch: 1, weights: 1 });
    }
    for (weights, batch) in [(1, 4), (2, 8), (8, 16), (3, 3)] {
        let p = BatchedMatmulParams { m: 3, n: 5, k: 37, batch, weights };
        c.add(format!("{batch} inputs over {weights} matrices"), p);
    }
    let p = BatchedMatmulParams { m: 35, n: 67, k: 100, batch: 2, weights: 1 };
    c.add("exact", p).input("weight", Input::Integers(-4, 4)).input("x", Input::Integers(-4, 4)).exact();
    let p = BatchedMatmulParams { m: 5, n: 9, k: 40, batch: 1, weights: 1 };
    c.add("a row of NaN", p).input("x", nan_row(40));
    if c.intensity >= 2 {
        c.add("a model's projection", BatchedMatmulParams { m: rows[rows.len() - 1], n: 1152, k: 1152, batch: 1, weights: 1 });
    }
    let m = if c.kernel().contains("gemv") { 1 } else { 512 };
    c.bench(format!("m={m} n=4096 k=4096"), BatchedMatmulParams { m, n: 4096, k: 4096, batch: 1, weights: 1 });
    for m in if m == 1 { &[1][..] } else { &[512, 4096] } {
        let p = BatchedMatmulParams { m: *m, n: 14336, k: 4096, batch: 1, weights: 1 };
        c.bench(format!("m={m} n=14336 k=4096"), p).on_gpus();
    }
}

pub(crate) fn single_cases(c: &mut Cases) {
    let rows: &[u32] = if c.kernel().contains("matvec") { &[1] } else { &[1, 2, 31, 33, 65] };
    for (m, n, k) in sizes(c, rows) {
        c.add(format!("m={m} n={n} k={k}"), MatmulParams { m, n, k });
    }
    let p = MatmulParams { m: rows[rows.len() - 1], n: 67, k: 100 };
    c.add("exact", p).input("weight", Input::Integers(-4, 4)).input("x", Input::Integers(-4, 4)).exact();
    if rows.len() > 1 {
        c.add("a row of NaN", MatmulParams { m: 5, n: 9, k: 40 }).input("x", nan_row(40));
        c.add("beyond f16", MatmulParams { m: 2, n: 3, k: 8 })
            .input("x", Input::Values(vec![200.0]))
            .input("weight", Input::Values(vec![200.0]));
    }
    if c.intensity >= 2 {
        c.add("a router", MatmulParams { m: 1, n: 256, k: 2048 });
    }
    let m = if c.kernel().contains("matvec") { 1 } else { 512 };
    c.bench(format!("m={m} n=4096 k=4096"), MatmulParams { m, n: 4096, k: 4096 });
    for m in if m == 1 { &[1][..] } else { &[512, 4096] } {
        c.bench(format!("m={m} n=14336 k=4096"), MatmulParams { m: *m, n: 14336, k: 4096 }).on_gpus();
    }
}

//! References and cases of norms with several results or several steps.

use super::{plain, row_tolerance, shapes};
use crate::DType::{BF16, F32};
use crate::conformance::{Cases, Input, Reference, Tolerance};
use crate::ops::norm::{
    ExpertNormParams, ExpertScaledNormParams, L2NormParams, L2NormScaleParams, NormParams, PermutedNormParams, ScaledNormParams,
};

/// Rows of an operand.
fn rows_of(r: &Reference<'_>, name: &str, dim: u32) -> Vec<Vec<f64>> {
    r.f64s(name).chunks(dim as usize).map(<[f64]>::to_vec).collect()
}

/// `x / sqrt(mean(x²) + eps) · weight`.
fn rms(x: &[f64], eps: f32, weight: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let root = (mean + f64::from(eps)).sqrt();
    x.iter().zip(weight).map(|(v, w)| v / root * w).collect()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// The factors of a row: one for all, or one each.
fn factors(r: &Reference<'_>, dim: u32) -> Vec<f64> {
    let s = r.f64s("s");
    (0..dim as usize).map(|i| if s.len() == 1 { s[0] } else { s[i] }).collect()
}

fn multiply(x: Vec<f64>, s: &[f64]) -> Vec<f64> {
    x.into_iter().zip(s).map(|(x, s)| x * s).collect()
}

/// Expects these rows within `widen` times the bound of one norm.
fn expect_rows(r: &mut Reference<'_>, name: &str, rows: &[Vec<f64>], widen: f64) {
    let dtype = r.dtype(name);
    let each = rows.iter().flat_map(|row| {
        let mut tolerance = row_tolerance(dtype, row);
        if dtype == F32 {
            tolerance.abs = (tolerance.abs - 1e-6) * widen + 1e-6;
        }
        row.iter().map(move |&v| (v, tolerance))
    });
    r.expect_each(name, each.collect());
}

pub(crate) fn dual(r: &mut Reference<'_>) {
    let (dim, eps, order): (u32, f32, Option<(usize, usize)>) = if r.kernel().ends_with("perm") {
        let p: PermutedNormParams = r.params();
        (p.dim, p.eps, Some((p.seq_len as usize, p.n_heads as usize)))
    } else {
        let p: NormParams = r.params();
        (p.dim, p.eps, None)
    };
    let ones = vec![1.0; dim as usize];
    let rows: Vec<_> = rows_of(r, "x", dim).iter().map(|x| rms(x, eps, &ones)).collect();
    expect_rows(r, "out", &rows, 1.0);
    let copy: Vec<_> = match order {
        None => rows,
        Some((seq_len, heads)) => (0..heads).flat_map(|h| (0..seq_len).map(move |t| t * heads + h)).map(|i| rows[i].clone()).collect(),
    };
    expect_rows(r, "out_bf16", &copy, 1.0);
}

pub(crate) fn triple(r: &mut Reference<'_>) {
    let p: NormParams = r.params();
    let x = rows_of(r, "x", p.dim);
    for (out, weight) in [("out_a", "weight_a"), ("out_b", "weight_b"), ("out_c", "weight_c")] {
        let weight = r.f64s(weight);
        let rows: Vec<_> = x.iter().map(|x| rms(x, p.eps, &weight)).collect();
        expect_rows(r, out, &rows, 1.0);
    }
}

fn l2_rows(r: &Reference<'_>, dim: u32, eps: f32, scale: f64) -> Vec<Vec<f64>> {
    let normed = |x: Vec<f64>| {
        let root = (x.iter().map(|v| v * v).sum::<f64>() + f64::from(eps)).sqrt();
        x.into_iter().map(|v| v / root * scale).collect()
    };
    rows_of(r, "x", dim).into_iter().map(normed).collect()
}

pub(crate) fn l2(r: &mut Reference<'_>) {
    let p: L2NormParams = r.params();
    let rows = l2_rows(r, p.dim, p.eps, 1.0);
    expect_rows(r, "out", &rows, 1.0);
}

pub(crate) fn l2_scale(r: &mut Reference<'_>) {
    let p: L2NormScaleParams = r.params();
    let rows = l2_rows(r, p.dim, p.eps, f64::from(p.scale));
    expect_rows(r, "out", &rows, 1.0);
}

/// One norm with a residual before or after it, and a factor where there is one.
pub(crate) fn norm_add(r: &mut Reference<'_>) {
    let scaled = r.kernel().contains("scalar");
    let (dim, eps) = if scaled {
        let p: ScaledNormParams = r.params();
        (p.dim, p.eps)
    } else {
        let p: NormParams = r.params();
        (p.dim, p.eps)
    };
    let weight = if r.kernel().contains("no_weight") { vec![1.0; dim as usize] } else { r.f64s("weight") };
    let s = if scaled { factors(r, dim) } else { vec![1.0; dim as usize] };
    let adds_first = r.kernel().starts_with("fused_residual");
    let (residual, x) = (rows_of(r, "residual", dim), rows_of(r, "x", dim));
    let row = |(residual, x): (&Vec<f64>, &Vec<f64>)| {
        let y = if adds_first { rms(&add(residual, x), eps, &weight) } else { add(residual, &rms(x, eps, &weight)) };
        multiply(y, &s)
    };
    let rows: Vec<_> = residual.iter().zip(&x).map(row).collect();
    if r.dtype("out") == BF16 {
        // The f32 sum has the error of f32, which a rounding to fewer bits does not hide where terms cancel.
        let bound = |row: &[f64]| Tolerance { ulps: 1.0, ..row_tolerance(F32, row) };
        r.expect_each("out", rows.iter().flat_map(|row| row.iter().map(|&v| (v, bound(row))).collect::<Vec<_>>()).collect());
    } else {
        expect_rows(r, "out", &rows, 1.0);
    }
}

pub(crate) fn post_attn_triple(r: &mut Reference<'_>) {
    let p: NormParams = r.params();
    let (hidden, attn, post) = (rows_of(r, "hidden", p.dim), rows_of(r, "attn_out", p.dim), r.f64s("weight_post"));
    let sums: Vec<_> = hidden.iter().zip(&attn).map(|(h, a)| add(h, &rms(a, p.eps, &post))).collect();
    expect_rows(r, "residual_out", &sums, 1.0);
    for (out, weight) in [("out_a", "weight_a"), ("out_b", "weight_b"), ("out_c", "weight_c")] {
        let weight = r.f64s(weight);
        let rows: Vec<_> = sums.iter().map(|x| rms(x, p.eps, &weight)).collect();
        expect_rows(r, out, &rows, 3.0);
    }
}

/// `Σ_k w_k · y_k` of every row.
fn expert_sums(r: &Reference<'_>, dim: u32, top_k: u32) -> Vec<Vec<f64>> {
    let (y, weights, dim) = (r.f64s("experts"), r.f64s("weights"), dim as usize);
    let row = |(y, w): (&[f64], &[f64])| (0..dim).map(|i| w.iter().enumerate().map(|(k, w)| w * y[k * dim + i]).sum()).collect();
    y.chunks(dim * top_k as usize).zip(weights.chunks(top_k as usize)).map(row).collect()
}

pub(crate) fn end_layer(r: &mut Reference<'_>) {
    let (dim, eps, branch) = if r.kernel().contains("wsum") {
        let p: ExpertScaledNormParams = r.params();
        (p.dim, p.eps, expert_sums(r, p.dim, p.top_k))
    } else {
        let p: ScaledNormParams = r.params();
        (p.dim, p.eps, rows_of(r, "e", p.dim))
    };
    let (weight_e, weight, s) = (r.f64s("weight_e"), r.f64s("weight"), factors(r, dim));
    let sums: Vec<_> = rows_of(r, "base", dim).iter().zip(&branch).map(|(b, e)| add(b, &rms(e, eps, &weight_e))).collect();
    let out = |(residual, c): (&Vec<f64>, &Vec<f64>)| multiply(add(residual, &rms(c, eps, &weight)), &s);
    let rows: Vec<_> = rows_of(r, "residual", dim).iter().zip(&sums).map(out).collect();
    expect_rows(r, "mlp_down", &sums, 1.0);
    expect_rows(r, "out", &rows, 3.0);
}

pub(crate) fn expert_norm_add(r: &mut Reference<'_>) {
    let p: ExpertNormParams = r.params();
    let weight = r.f64s("weight");
    let own = r.kernel().contains("dnorm").then(|| r.f64s("weight_residual"));
    let residual = rows_of(r, "residual", p.dim);
    let sums = expert_sums(r, p.dim, p.top_k);
    let row = |(residual, e): (&Vec<f64>, &Vec<f64>)| {
        let kept = own.as_ref().map_or_else(|| residual.clone(), |w| rms(residual, p.eps, w));
        add(&kept, &rms(e, p.eps, &weight))
    };
    let rows: Vec<_> = residual.iter().zip(&sums).map(row).collect();
    expect_rows(r, "out", &rows, 1.0);
}

pub(crate) fn plain_cases(c: &mut Cases) {
    super::norm_shapes(c);
}

pub(crate) fn dual_cases(c: &mut Cases) {
    plain_cases(c);
    c.add("in place", plain(3, 64)).in_place("out", "x");
}

pub(crate) fn permuted_cases(c: &mut Cases) {
    let params = |seq_len, n_heads, dim| PermutedNormParams { seq_len, n_heads, dim, eps: 1e-6 };
    for dim in super::dims(c) {
        c.add(format!("dim={dim}"), params(3, 2, dim));
    }
    c.add("one position", params(1, 5, 64));
    c.add("one head", params(5, 1, 64));
    c.add("in place", params(7, 3, 64)).in_place("out", "x");
    c.bench("seq_len=1 n_heads=8 dim=256", params(1, 8, 256));
    c.bench("seq_len=512 n_heads=8 dim=256", params(512, 8, 256));
}

pub(crate) fn l2_cases(c: &mut Cases) {
    let params = |rows, dim| L2NormParams { rows, dim, eps: 1e-6 };
    shapes(c, params);
    c.add("a zero row", params(2, 64)).input("x", Input::Values(vec![0.0]));
    c.add("large values", params(2, 64)).input("x", Input::Normal(1e3));
    c.add("in place", params(3, 64)).in_place("out", "x");
}

pub(crate) fn l2_scale_cases(c: &mut Cases) {
    // The scale of queries 128 wide.
    let params = |rows, dim| L2NormScaleParams { rows, dim, eps: 1e-6, scale: 0.088_388_35 };
    shapes(c, params);
    c.add("in place", params(3, 64)).in_place("out", "x");
}

pub(crate) fn residual_cases(c: &mut Cases) {
    super::norm_add_cases(c);
}

fn scaled(rows: u32, dim: u32, scalar_is_vector: u32) -> ScaledNormParams {
    ScaledNormParams { rows, dim, eps: 1e-6, scalar_is_vector }
}

/// Every shape with one factor, some with a vector of them.
fn with_both_factors(c: &mut Cases) {
    shapes(c, |rows, dim| scaled(rows, dim, 0));
    for dim in [4, 12, 64, 2816, 5376] {
        c.add(format!("a factor for each of {dim}"), scaled(2, dim, 1));
    }
}

pub(crate) fn scaled_cases(c: &mut Cases) {
    with_both_factors(c);
    c.add("in place of the residual", scaled(3, 64, 1)).in_place("out", "residual");
    c.add("in place of x", scaled(3, 64, 0)).in_place("out", "x");
}

pub(crate) fn post_attn_cases(c: &mut Cases) {
    shapes(c, plain);
    c.add("in place", plain(3, 64)).in_place("residual_out", "hidden");
}

pub(crate) fn end_layer_cases(c: &mut Cases) {
    with_both_factors(c);
    c.add("in place of base and residual", scaled(3, 64, 0)).in_place("mlp_down", "base").in_place("out", "residual");
    c.add("in place of e", scaled(3, 64, 1)).in_place("mlp_down", "e");
}

/// Shapes with experts: of Gemma, one expert, many.
fn expert_shapes() -> [(u32, u32, u32); 6] {
    [(1, 4, 1), (3, 12, 2), (2, 64, 8), (1, 2816, 8), (2, 5376, 3), (5, 32, 70)]
}

pub(crate) fn expert_end_layer_cases(c: &mut Cases) {
    let params = |rows, dim, top_k, scalar_is_vector| ExpertScaledNormParams { rows, dim, top_k, eps: 1e-6, scalar_is_vector };
    for (rows, dim, top_k) in expert_shapes() {
        for vector in [0, 1] {
            c.add(format!("rows={rows} dim={dim} top_k={top_k} vector={vector}"), params(rows, dim, top_k, vector));
        }
    }
    c.add("in place", params(3, 64, 4, 0)).in_place("mlp_down", "base").in_place("out", "residual");
    c.bench("rows=1 dim=2816 top_k=8", params(1, 2816, 8, 0));
    c.bench("rows=512 dim=2816 top_k=8", params(512, 2816, 8, 0));
}

pub(crate) fn expert_cases(c: &mut Cases) {
    let params = |rows, dim, top_k| ExpertNormParams { rows, dim, top_k, eps: 1e-6 };
    for (rows, dim, top_k) in expert_shapes().into_iter().chain([(3, 31, 2), (1, 1, 1), (2, 33, 8)]) {
        c.add(format!("rows={rows} dim={dim} top_k={top_k}"), params(rows, dim, top_k));
    }
    c.add("in place", params(3, 64, 4)).in_place("out", "residual");
    // A weight of zero hides no NaN.
    let nan = params(2, 64, 2);
    c.add("an expert of weight zero gives NaN", nan)
        .input("experts", Input::Values([vec![f64::NAN; 64], vec![1.0; 64], vec![0.5; 128]].concat()))
        .input("weights", Input::Values(vec![0.0, 1.0, 0.25, 0.5]));
    c.bench("rows=1 dim=2816 top_k=8", params(1, 2816, 8));
    c.bench("rows=512 dim=2816 top_k=8", params(512, 2816, 8));
}

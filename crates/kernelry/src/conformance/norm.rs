//! References and cases of the norm family.

pub(crate) mod blocks;

use super::{Cases, Input, Reference, Tolerance};
use crate::DType;
use crate::catalogue::Params;
use crate::ops::norm::NormParams;

/// Tolerance of a row: relative to its largest element for f32, one unit in the last place for 16-bit outputs.
fn row_tolerance(dtype: DType, row: &[f64]) -> Tolerance {
    match dtype {
        DType::F32 => Tolerance::abs(1e-5 * row.iter().fold(0.0, |m, v| v.abs().max(m)) + 1e-6),
        _ => Tolerance::ulps(1.0),
    }
}

/// All RMS norms: which operands there are decides which one it is.
pub(crate) fn norm(r: &mut Reference<'_>) {
    let p: NormParams = r.params();
    let dim = p.dim as usize;
    let name = r.kernel().to_owned();
    let x = r.f64s("x");
    let weight = if name.contains("no_scale") { vec![1.0; dim] } else { r.f64s("weight") };
    let residual = if name.starts_with("fused") { r.f64s("residual") } else { vec![0.0; x.len()] };
    let factor = if name.contains("mul") { r.f64s("s") } else { vec![1.0; x.len()] };
    let adds_first = name.starts_with("fused_residual");
    let (mut expected, mut sums) = (Vec::new(), Vec::new());
    for row in 0..p.rows as usize {
        let at = |i: usize| row * dim + i;
        let u: Vec<f64> = (0..dim).map(|i| x[at(i)] + if adds_first { residual[at(i)] } else { 0.0 }).collect();
        let mean = u.iter().map(|v| v * v).sum::<f64>() / dim as f64;
        let scale = 1.0 / (mean + f64::from(p.eps)).sqrt();
        let after = |i: usize| if adds_first { 0.0 } else { residual[at(i)] };
        let y: Vec<f64> = (0..dim).map(|i| u[i] * scale * weight[i] * factor[at(i)] + after(i)).collect();
        let tolerance = row_tolerance(r.dtype("out"), &y);
        expected.extend(y.into_iter().map(|v| (v, tolerance)));
        sums.extend(u.into_iter().map(|v| (v, Tolerance::ulps(0.5))));
    }
    r.expect_each("out", expected);
    if adds_first && r.has("sum_out") {
        r.expect_each("sum_out", sums);
    }
}

pub(crate) fn layer_norm(r: &mut Reference<'_>) {
    let p: NormParams = r.params();
    let (x, weight, bias) = (r.f64s("x"), r.f64s("weight"), r.f64s("bias"));
    let mut expected = Vec::new();
    for row in x.chunks(p.dim as usize) {
        let mean = row.iter().sum::<f64>() / f64::from(p.dim);
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / f64::from(p.dim);
        let scale = 1.0 / (variance + f64::from(p.eps)).sqrt();
        let y: Vec<f64> = row.iter().zip(weight.iter().zip(&bias)).map(|(v, (w, b))| (v - mean) * scale * w + b).collect();
        let tolerance = row_tolerance(DType::F32, &y);
        expected.extend(y.into_iter().map(|v| (v, tolerance)));
    }
    r.expect_each("out", expected);
}

/// Row lengths around vector widths, and those of models; only multiples of four for names that load four elements at once.
fn dims(c: &Cases) -> impl Iterator<Item = u32> + use<> {
    let four = c.kernel().ends_with("_v2");
    let dims = [1, 4, 8, 12, 16, 31, 32, 33, 72, 256, 512, 1152, 2816, 5120, 8196];
    dims.into_iter().filter(move |dim| !four || dim % 4 == 0)
}

/// Cases of every row kernel; `params(rows, dim)` makes the parameters.
fn shapes<P: Params>(c: &mut Cases, params: impl Fn(u32, u32) -> P) {
    for dim in dims(c) {
        for rows in [1, 3] {
            c.add(format!("rows={rows} dim={dim}"), params(rows, dim));
        }
    }
    if c.intensity > 1 {
        c.add("many rows", params(4096, 256));
    }
    for rows in [1, 512] {
        c.bench(format!("rows={rows} dim=4096"), params(rows, 4096));
    }
    c.bench("rows=8192 dim=4096", params(8192, 4096)).on_gpus();
}

fn plain(rows: u32, dim: u32) -> NormParams {
    NormParams { rows, dim, eps: 1e-6 }
}

fn norm_shapes(c: &mut Cases) {
    // A layer norm of one element is its bias: 0 / sqrt(eps) would only magnify rounding.
    shapes(c, plain);
    c.add("a zero row", plain(2, 64)).input("x", Input::Values(vec![0.0]));
    c.add("small values", plain(2, 64)).input("x", Input::Normal(1e-4));
    c.add("large values", plain(2, 64)).input("x", Input::Normal(1e4));
}

pub(crate) fn norm_cases(c: &mut Cases) {
    norm_shapes(c);
    c.add("in place", NormParams { rows: 3, dim: 64, eps: 1e-5 }).in_place("out", "x");
}

pub(crate) fn norm_add_cases(c: &mut Cases) {
    norm_shapes(c);
    c.add("in place of the residual", NormParams { rows: 3, dim: 64, eps: 1e-5 }).in_place("out", "residual");
    c.add("in place of x", NormParams { rows: 3, dim: 64, eps: 1e-5 }).in_place("out", "x");
}

pub(crate) fn residual_norm_cases(c: &mut Cases) {
    norm_shapes(c);
    c.add("sum in place of the residual", NormParams { rows: 3, dim: 64, eps: 1e-5 }).in_place("sum_out", "residual");
    c.add("sum in place of x", NormParams { rows: 3, dim: 64, eps: 1e-5 }).in_place("sum_out", "x");
    c.add("without the sum", NormParams { rows: 3, dim: 64, eps: 1e-5 }).without("sum_out");
}

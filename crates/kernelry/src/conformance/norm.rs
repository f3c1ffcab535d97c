//! References and cases of the norm family.

use super::{Cases, Reference, Tolerance};
use crate::DType;
use crate::ops::norm::NormParams;

/// Tolerance of a row: relative to its largest element for f32, one unit in the last place for 16-bit outputs.
fn row_tolerance(dtype: DType, row: &[f64]) -> Tolerance {
    match dtype {
        DType::F32 => Tolerance::abs(1e-5 * row.iter().fold(0.0, |m, v| v.abs().max(m)) + 1e-6),
        _ => Tolerance::ulps(1.0),
    }
}

pub(crate) fn rms_norm(r: &mut Reference<'_>) {
    let p: NormParams = r.params();
    let (x, weight) = (r.f64s("x"), r.f64s("weight"));
    let mut expected = Vec::new();
    for row in x.chunks(p.dim as usize) {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / f64::from(p.dim);
        let scale = 1.0 / (mean + f64::from(p.eps)).sqrt();
        let y: Vec<f64> = row.iter().zip(&weight).map(|(v, w)| v * scale * w).collect();
        let tolerance = row_tolerance(r.dtype("out"), &y);
        expected.extend(y.into_iter().map(|v| (v, tolerance)));
    }
    r.expect_each("out", expected);
}

pub(crate) fn rms_norm_cases(c: &mut Cases) {
    for dim in [1, 4, 12, 16, 31, 32, 33, 72, 256, 512, 1152, 2816, 8196] {
        for rows in [1, 3] {
            if c.kernel().ends_with("_v2") && dim % 4 != 0 {
                continue;
            }
            c.add(format!("rows={rows} dim={dim}"), NormParams { rows, dim, eps: 1e-6 });
        }
    }
    c.add("in place", NormParams { rows: 3, dim: 64, eps: 1e-5 }).in_place("out", "x");
}

//! Comparing a result with what the reference expects.

use half::{bf16, f16};

use super::case::get;
use crate::DType;

/// Allowed error of one element: `abs + rel·|expected| + ulps·ulp(expected)`, where the expected value is first rounded to the dtype of
/// the output if `ulps` is used. NaN must meet NaN, an infinity the same infinity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub abs: f64,
    /// Part relative to the expected value.
    pub rel: f64,
    /// Units in the last place of the output's dtype.
    pub ulps: f64,
}

impl Tolerance {
    /// The value rounded to the output's dtype, and nothing else (`-0 = +0`).
    pub const EXACT: Tolerance = Tolerance { abs: 0.0, rel: 0.0, ulps: 0.0 };

    /// An absolute bound.
    pub const fn abs(abs: f64) -> Tolerance {
        Tolerance { abs, rel: 0.0, ulps: 0.0 }
    }

    /// An absolute and a relative bound.
    pub const fn rel(rel: f64, abs: f64) -> Tolerance {
        Tolerance { abs, rel, ulps: 0.0 }
    }

    /// Units in the last place.
    pub const fn ulps(ulps: f64) -> Tolerance {
        Tolerance { abs: 0.0, rel: 0.0, ulps }
    }

    /// The same with `ulps` units in the last place on top, for outputs that are rounded once more when stored.
    pub const fn plus_ulps(self, ulps: f64) -> Tolerance {
        Tolerance { ulps: self.ulps + ulps, ..self }
    }
}

/// `value` rounded to `dtype`.
fn round(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::F32 => f64::from(value as f32),
        // Through f32: the kernels round an f32 result.
        DType::F16 => f16::from_f32(value as f32).to_f64(),
        DType::BF16 => bf16::from_f32(value as f32).to_f64(),
        _ => value,
    }
}

/// Distance to the next value of `dtype` at `value`.
fn ulp(dtype: DType, value: f64) -> f64 {
    let (mantissa, min_exponent) = match dtype {
        DType::F32 => (23, -126),
        DType::F16 => (10, -14),
        DType::BF16 => (7, -126),
        _ => return 1.0,
    };
    let exponent = if value == 0.0 { min_exponent } else { (value.abs().log2().floor() as i32).max(min_exponent) };
    f64::from(exponent - mantissa).exp2()
}

/// The first element that is off, described.
pub(super) fn first_mismatch(dtype: DType, got: &[u8], expected: &[(f64, Tolerance)]) -> Option<String> {
    let mut worst: Option<(f64, String)> = None;
    let mut count = 0usize;
    for (i, &(value, tolerance)) in expected.iter().enumerate() {
        let actual = get(got, dtype, i);
        let rounded = round(dtype, value);
        let allowed =
            tolerance.abs + tolerance.rel * value.abs() + if tolerance.ulps > 0.0 { tolerance.ulps * ulp(dtype, rounded) } else { 0.0 };
        // Judged against the exact value where that is within the bound, so that rounding it first costs nothing.
        let error = (actual - rounded).abs().min((actual - value).abs());
        let right =
            if rounded.is_nan() || actual.is_nan() { rounded.is_nan() && actual.is_nan() } else { actual == rounded || error <= allowed };
        if !right {
            count += 1;
            let excess = if error.is_finite() { error / allowed.max(1e-300) } else { f64::INFINITY };
            if worst.as_ref().is_none_or(|(e, _)| excess > *e) {
                worst = Some((excess, format!("element {i}: got {actual:?}, expected {rounded:?} within {allowed:.3e}")));
            }
        }
    }
    worst.map(|(_, text)| format!("{count} of {} elements are off; worst: {text}", expected.len()))
}

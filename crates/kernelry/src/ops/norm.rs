//! Normalisation of rows, alone and with a residual addition.
//!
//! RMS norm (Zhang and Sennrich, 2019): `y = x / sqrt(mean(x²) + eps) · weight` over the last dimension, in this order of products.
//! Weights multiply as given; models that train `1 + w` have the 1 folded in when they are loaded.

mod blocks;
mod launchers;

pub use blocks::{ExpertNormParams, ExpertScaledNormParams, L2NormParams, L2NormScaleParams, PermutedNormParams, ScaledNormParams};
pub use launchers::{
    ExpertOutputs, ExpertSumNormAdd, FusedPostAttnTripleNorm, FusedPostFfNorm2EndLayer, L2Norm, RmsNormNoScaleDual, RmsNormTriple,
};

use super::{rows_and_cols, unsupported};
use crate::DType::{BF16, F16, F32};
use crate::backend::cpu::CpuFn;
use crate::backend::cpu::norm as cpu;
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder, Text};
use crate::conformance::norm as oracle;
use crate::{Buffer, DType, Encoder, Error, Result, bf16, f16, kernel_text};

const TEXT: Text = kernel_text!("norm.h");

crate::params! {
    /// Parameters of kernels that normalise rows.
    pub struct NormParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        dim: u32,
        /// added to the mean square inside the root
        eps: f32,
    }
}

/// Threads of a row, which keep 16 elements each. Few rows leave most of a GPU idle: what counts is the time of one row.
fn row_threads(rows: u32, dim: u32) -> u32 {
    let each = if rows <= 128 { 4 } else { 16 };
    (dim / each).checked_next_power_of_two().unwrap_or(1024).clamp(64, 1024)
}

/// A row kernel: one thread group a row.
fn row_kernel(name: &str, summary: &'static str) -> KernelBuilder {
    let entry = Kernel::builder(name, Family::Norm, summary)
        .params::<NormParams>()
        .text(TEXT, "")
        .check(|p: &NormParams| {
            if p.eps.is_finite() && p.eps >= 0.0 {
                Ok(())
            } else {
                Err(format!("eps: got {}, expected a finite value of at least 0", p.eps))
            }
        })
        .geometry(|p: &NormParams| Geometry::linear(p.rows, row_threads(p.rows, p.dim)))
        .flops(|p: &NormParams| 4.0 * f64::from(p.rows) * f64::from(p.dim));
    if !name.ends_with("_v2") {
        return entry;
    }
    // These names load four elements at a time and demand rows that allow it.
    entry
        .check(|p: &NormParams| if p.dim.is_multiple_of(4) { Ok(()) } else { Err(format!("dim: got {}, expected a multiple of 4", p.dim)) })
}

/// Numerical class and bound by the dtype of the output.
fn class_of(entry: KernelBuilder, dtype: DType) -> KernelBuilder {
    match dtype {
        F32 => entry.class("f32", "|err| ≤ 1e-5·max|y_row| + 1e-6"),
        _ => entry.class("f32, one rounding to the dtype of the rows", "1 ulp of the rounded f64 result"),
    }
}

const RMS: &str = "y = x / sqrt(mean(x²) + eps) · w";
const RMS_NO_SCALE: &str = "y = x / sqrt(mean(x²) + eps)";
const RMS_MUL: &str = "y = x / sqrt(mean(x²) + eps) · w · s";

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut list = Vec::new();
    let weighted: [(&str, DType, DType, CpuFn); 4] = [
        ("rms_norm_f32", F32, F32, cpu::rms_norm::<f32, f32>),
        ("rms_norm_f32_v2", F32, F32, cpu::rms_norm::<f32, f32>),
        ("rms_norm_f16", F16, F32, cpu::rms_norm::<f16, f32>),
        ("rms_norm_bf16", BF16, BF16, cpu::rms_norm::<bf16, bf16>),
    ];
    for (name, dtype, weight, run) in weighted {
        let entry = class_of(row_kernel(name, RMS), dtype).input("x", dtype, "rows dim").input("weight", weight, "dim");
        list.push(entry.output("out", dtype, "rows dim").may_alias(&["x"]).cpu(run).tested(oracle::norm, oracle::norm_cases).build());
    }
    let plain: [(&str, DType, CpuFn); 3] = [
        ("rms_norm_no_scale_f32", F32, cpu::rms_norm_no_scale::<f32>),
        ("rms_norm_no_scale_f32_v2", F32, cpu::rms_norm_no_scale::<f32>),
        ("rms_norm_no_scale_bf16", BF16, cpu::rms_norm_no_scale::<bf16>),
    ];
    for (name, dtype, run) in plain {
        let entry = class_of(row_kernel(name, RMS_NO_SCALE), dtype).input("x", dtype, "rows dim");
        list.push(entry.output("out", dtype, "rows dim").may_alias(&["x"]).cpu(run).tested(oracle::norm, oracle::norm_cases).build());
    }
    let multiplied: [(&str, DType, DType, CpuFn); 3] = [
        ("rms_norm_mul_f32", F32, F32, cpu::rms_norm_mul::<f32, f32>),
        ("rms_norm_mul_f16", F16, F32, cpu::rms_norm_mul::<f16, f32>),
        ("rms_norm_mul_bf16", BF16, BF16, cpu::rms_norm_mul::<bf16, bf16>),
    ];
    for (name, dtype, weight, run) in multiplied {
        let entry = class_of(row_kernel(name, RMS_MUL), dtype).input("x", dtype, "rows dim").input("weight", weight, "dim");
        let entry = entry.input("s", dtype, "rows dim").output("out", dtype, "rows dim").may_alias(&["x"]);
        list.push(entry.cpu(run).tested(oracle::norm, oracle::norm_cases).build());
    }
    for name in ["fused_norm_add_f32", "fused_norm_add_f32_v2"] {
        list.push(
            class_of(row_kernel(name, "out = residual + rms(x)·w"), F32)
                .input("residual", F32, "rows dim")
                .input("x", F32, "rows dim")
                .input("weight", F32, "dim")
                .output("out", F32, "rows dim")
                .may_alias(&["residual", "x"])
                .cpu(cpu::blocks::norm_add::<f32>)
                .tested(oracle::norm, oracle::norm_add_cases)
                .build(),
        );
    }
    list.push(
        class_of(row_kernel("fused_residual_norm_f32", "u = residual + x, y = rms(u)·w, u stored where asked"), F32)
            .input("residual", F32, "rows dim")
            .input("x", F32, "rows dim")
            .input("weight", F32, "dim")
            .output("out", F32, "rows dim")
            .output("sum_out", F32, "rows dim")
            .optional()
            .may_alias(&["residual", "x"])
            // Two rows in, two out: measured as models use it, with the sum.
            .bytes(|p: &NormParams| 4.0 * f64::from(p.dim) * (4.0 * f64::from(p.rows) + 1.0))
            .cpu(cpu::fused_residual_norm_f32)
            .tested(oracle::norm, oracle::residual_norm_cases)
            .build(),
    );
    list.push(
        class_of(row_kernel("layer_norm_f32", "y = (x - mean) / sqrt(var + eps) · w + b, biased variance"), F32)
            .input("x", F32, "rows dim")
            .input("weight", F32, "dim")
            .input("bias", F32, "dim")
            .output("out", F32, "rows dim")
            .may_alias(&["x"])
            .cpu(cpu::layer_norm_f32)
            .tested(oracle::layer_norm, oracle::norm_cases)
            .build(),
    );
    list.extend(blocks::kernels());
    list
}

/// `out = x / sqrt(mean(x²) + eps) · weight` over the last dimension. `out` may be `x`.
pub struct RmsNorm<'a> {
    /// `[rows, dim]`, f32, f16 or bf16.
    pub x: &'a Buffer,
    /// `[dim]`: f32 for f32 and f16 rows, bf16 for bf16 rows.
    pub weight: &'a Buffer,
    /// `[rows, dim]`, dtype of `x`.
    pub out: &'a Buffer,
    /// Added to the mean square; finite, at least 0.
    pub eps: f32,
}

impl RmsNorm<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, dim) = rows_and_cols("rms_norm", "x", self.x)?;
        let name = match self.x.dtype() {
            F32 if dim.is_multiple_of(4) => "rms_norm_f32_v2",
            F32 => "rms_norm_f32",
            F16 => "rms_norm_f16",
            BF16 => "rms_norm_bf16",
            other => return Err(unsupported("rms_norm", "x", other, "f32, f16 or bf16")),
        };
        encoder.launch(name, &[Some(self.x), Some(self.weight), Some(self.out)], &NormParams { rows, dim, eps: self.eps })
    }
}

/// `out = x / sqrt(mean(x²) + eps)` over the last dimension. `out` may be `x`.
pub struct RmsNormNoScale<'a> {
    /// `[rows, dim]`, f32 or bf16.
    pub x: &'a Buffer,
    /// `[rows, dim]`, dtype of `x`.
    pub out: &'a Buffer,
    /// Added to the mean square; finite, at least 0.
    pub eps: f32,
}

impl RmsNormNoScale<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, dim) = rows_and_cols("rms_norm_no_scale", "x", self.x)?;
        let name = match self.x.dtype() {
            F32 if dim.is_multiple_of(4) => "rms_norm_no_scale_f32_v2",
            F32 => "rms_norm_no_scale_f32",
            BF16 => "rms_norm_no_scale_bf16",
            other => return Err(unsupported("rms_norm_no_scale", "x", other, "f32 or bf16")),
        };
        encoder.launch(name, &[Some(self.x), Some(self.out)], &NormParams { rows, dim, eps: self.eps })
    }
}

/// `out = x / sqrt(mean(x²) + eps) · weight · s`, rounded once. `out` may be `x`.
pub struct RmsNormMul<'a> {
    /// `[rows, dim]`, f32, f16 or bf16.
    pub x: &'a Buffer,
    /// `[dim]`: f32 for f32 and f16 rows, bf16 for bf16 rows.
    pub weight: &'a Buffer,
    /// `[rows, dim]`, dtype of `x`.
    pub s: &'a Buffer,
    /// `[rows, dim]`, dtype of `x`.
    pub out: &'a Buffer,
    /// Added to the mean square; finite, at least 0.
    pub eps: f32,
}

impl RmsNormMul<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, dim) = rows_and_cols("rms_norm_mul", "x", self.x)?;
        let name = match self.x.dtype() {
            F32 => "rms_norm_mul_f32",
            F16 => "rms_norm_mul_f16",
            BF16 => "rms_norm_mul_bf16",
            other => return Err(unsupported("rms_norm_mul", "x", other, "f32, f16 or bf16")),
        };
        let args = [Some(self.x), Some(self.weight), Some(self.s), Some(self.out)];
        encoder.launch(name, &args, &NormParams { rows, dim, eps: self.eps })
    }
}

/// `out = (residual + rms(x) · weight) · scale`: Gemma's norm after a branch. `out` may be `residual` or `x`.
pub struct FusedNormAdd<'a> {
    /// `[rows, dim]` f32 or bf16.
    pub residual: &'a Buffer,
    /// `[rows, dim]`, dtype of `residual`, normalised alone.
    pub x: &'a Buffer,
    /// `[dim]`, dtype of `residual`; only bf16 rows may go without.
    pub weight: Option<&'a Buffer>,
    /// f32 factor of the whole sum, `[1]` or `[dim]`, for f32 rows.
    pub scale: Option<&'a Buffer>,
    /// `[rows, dim]`, dtype of `residual`.
    pub out: &'a Buffer,
    /// Added to the mean square; finite, at least 0.
    pub eps: f32,
}

impl FusedNormAdd<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, dim) = rows_and_cols("fused_norm_add", "x", self.x)?;
        let (head, out) = ([Some(self.residual), Some(self.x)], Some(self.out));
        let params = NormParams { rows, dim, eps: self.eps };
        let name = match (self.x.dtype(), self.weight, self.scale) {
            (F32, Some(_), Some(s)) => {
                let args = [head[0], head[1], self.weight, Some(s), out];
                return encoder.launch("fused_norm_add_scalar_f32", &args, &ScaledNormParams::of(rows, dim, self.eps, s));
            }
            (F32, Some(_), None) if dim.is_multiple_of(4) => "fused_norm_add_f32_v2",
            (F32, Some(_), None) => "fused_norm_add_f32",
            (BF16, Some(_), None) => "fused_norm_add_bf16",
            (BF16, None, None) => return encoder.launch("fused_norm_add_no_weight_bf16", &[head[0], head[1], out], &params),
            (F32, None, _) => return Err(Error::invalid("fused_norm_add", "weight: got none, expected one for f32 rows")),
            (BF16, _, Some(_)) => return Err(Error::invalid("fused_norm_add", "scale: got one, expected none for bf16 rows")),
            (other, ..) => return Err(unsupported("fused_norm_add", "x", other, "f32 or bf16")),
        };
        encoder.launch(name, &[head[0], head[1], self.weight, out], &params)
    }
}

/// `u = residual + x; out = rms(u) · weight · scale`: the residual addition and the next norm of a pre-norm model in one pass.
pub struct FusedResidualNorm<'a> {
    /// `[rows, dim]` f32.
    pub residual: &'a Buffer,
    /// `[rows, dim]` f32.
    pub x: &'a Buffer,
    /// `[dim]` f32.
    pub weight: &'a Buffer,
    /// `[rows, dim]` f32.
    pub out: &'a Buffer,
    /// `[rows, dim]` f32 for `u`, if it is wanted and there is no `scale`; may be `residual` or `x`.
    pub sum_out: Option<&'a Buffer>,
    /// f32 factor of the result, `[1]` or `[dim]`.
    pub scale: Option<&'a Buffer>,
    /// Added to the mean square; finite, at least 0.
    pub eps: f32,
}

impl FusedResidualNorm<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, dim) = rows_and_cols("fused_residual_norm", "x", self.x)?;
        if let Some(s) = self.scale {
            if self.sum_out.is_some() {
                return Err(Error::invalid("fused_residual_norm", "sum_out: got a buffer, expected none with a scale"));
            }
            let args = [Some(self.residual), Some(self.x), Some(self.weight), Some(s), Some(self.out)];
            return encoder.launch("fused_residual_norm_scalar_f32", &args, &ScaledNormParams::of(rows, dim, self.eps, s));
        }
        let args = [Some(self.residual), Some(self.x), Some(self.weight), Some(self.out), self.sum_out];
        encoder.launch("fused_residual_norm_f32", &args, &NormParams { rows, dim, eps: self.eps })
    }
}

/// `out = (x - mean) / sqrt(var + eps) · weight + bias` over the last dimension, with the biased variance. `out` may be `x`.
pub struct LayerNorm<'a> {
    /// `[rows, dim]` f32.
    pub x: &'a Buffer,
    /// `[dim]` f32.
    pub weight: &'a Buffer,
    /// `[dim]` f32.
    pub bias: &'a Buffer,
    /// `[rows, dim]` f32.
    pub out: &'a Buffer,
    /// Added to the variance; finite, at least 0.
    pub eps: f32,
}

impl LayerNorm<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, dim) = rows_and_cols("layer_norm", "x", self.x)?;
        let args = [Some(self.x), Some(self.weight), Some(self.bias), Some(self.out)];
        encoder.launch("layer_norm_f32", &args, &NormParams { rows, dim, eps: self.eps })
    }
}

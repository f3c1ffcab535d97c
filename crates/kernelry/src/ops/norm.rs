//! RMS normalisation: `y = x / sqrt(mean(x²) + eps) · weight` over the last dimension (Zhang and Sennrich, 2019).

use super::{rows_and_cols, unsupported};
use crate::backend::cpu::norm as cpu;
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder};
use crate::conformance::norm as oracle;
use crate::{Buffer, DType, Encoder, Result};

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

/// A row kernel: one thread group a row.
fn row_kernel(name: &str, summary: &'static str) -> KernelBuilder {
    Kernel::builder(name, Family::Norm, summary)
        .params::<NormParams>()
        .check(|p: &NormParams| {
            if p.eps.is_finite() && p.eps >= 0.0 {
                Ok(())
            } else {
                Err(format!("eps: got {}, expected a finite value of at least 0", p.eps))
            }
        })
        .geometry(|p: &NormParams| Geometry::linear(p.rows, p.dim.next_power_of_two().clamp(32, 256)))
        .flops(|p: &NormParams| 4.0 * f64::from(p.rows) * f64::from(p.dim))
}

const F32_BOUND: &str = "|err| ≤ 1e-5·max|y_row| + 1e-6";

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    use DType::F32;
    let mut list = Vec::new();
    for name in ["rms_norm_f32", "rms_norm_f32_v2"] {
        let entry = row_kernel(name, "y = x / sqrt(mean(x²) + eps) · w")
            .input("x", F32, "rows dim")
            .input("weight", F32, "dim")
            .output("out", F32, "rows dim")
            .may_alias(&["x"])
            .class("f32", F32_BOUND)
            .cpu(cpu::rms_norm_f32);
        list.push(multiple_of_four(name, entry).tested(oracle::rms_norm, oracle::rms_norm_cases).build());
    }
    list
}

/// `_v2` names load four elements at a time and demand rows that allow it.
fn multiple_of_four(name: &str, entry: KernelBuilder) -> KernelBuilder {
    if !name.ends_with("_v2") {
        return entry;
    }
    entry
        .check(|p: &NormParams| if p.dim.is_multiple_of(4) { Ok(()) } else { Err(format!("dim: got {}, expected a multiple of 4", p.dim)) })
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
            DType::F32 if dim % 4 == 0 => "rms_norm_f32_v2",
            DType::F32 => "rms_norm_f32",
            DType::F16 => "rms_norm_f16",
            DType::BF16 => "rms_norm_bf16",
            other => return Err(unsupported("rms_norm", "x", other, "f32, f16 or bf16")),
        };
        encoder.launch(name, &[Some(self.x), Some(self.weight), Some(self.out)], &NormParams { rows, dim, eps: self.eps })
    }
}

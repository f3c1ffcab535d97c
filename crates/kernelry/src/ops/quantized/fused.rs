//! Products of one row fused with the norm before them, a gate, or the addition behind them: a decode step has a launch less for each.

use super::entries::{MUL_MV, PRODUCT_FAST, product_flops};
use super::{FORMATS, Format};
use crate::DType::{F32, U8};
use crate::catalogue::{Family, Geometry, Kernel, find};
use crate::conformance::quantized as oracle;
use crate::ops::linear::Weight;
use crate::ops::size;
use crate::{Buffer, Context, Encoder, Error, Result};

crate::params! {
    /// Parameters of `fused_norm_mul_mv_*`.
    pub struct MulMvNormParams {
        /// outputs
        n: u32,
        /// length of a row, at most 8192
        k: u32,
        /// 1: the product; 2: silu(first n weight rows) · next n
        gates: u32,
        /// added to the mean square inside the root
        eps: f32,
    }
}

crate::params! {
    /// Parameters of `fused_mul_mv_add_*`.
    pub struct MulMvAddParams {
        /// outputs
        n: u32,
        /// length of a row
        k: u32,
    }
}

/// The longest row whose activations stay in the threadgroup memory of every GPU.
const LONGEST_ROW: u32 = 8192;

fn check_norm(p: &MulMvNormParams) -> Result<(), String> {
    if !(1..=2).contains(&p.gates) {
        return Err(format!("gates: got {}, expected 1 or 2", p.gates));
    }
    if p.k > LONGEST_ROW {
        return Err(format!("k: got {}, expected at most {LONGEST_ROW}", p.k));
    }
    if p.eps.is_finite() && p.eps >= 0.0 { Ok(()) } else { Err(format!("eps: got {}, expected a finite value of at least 0", p.eps)) }
}

/// 16 weight rows a group of one warp, which leaves the most memory to the activations.
fn one_row(n: u32) -> Geometry {
    Geometry { groups: [n.div_ceil(16), 1, 1], threads: [32, 1, 1] }
}

pub(super) fn kernels() -> Vec<Kernel> {
    FORMATS.iter().flat_map(|format| [norm(format), add(format)]).collect()
}

fn norm(format: &'static Format) -> Kernel {
    let summary = "y[n] = Σ_k u[k] · w[n,k], u = x / sqrt(mean(x²) + eps) · norm; with two matrices silu(y₁) · y₂";
    Kernel::builder(format!("fused_norm_mul_mv_{}_f32", format.suffix), Family::Quantized, summary)
        .params::<MulMvNormParams>()
        .input("weight", U8, format.gated)
        .input("x", F32, "k")
        .input("norm", F32, "k")
        .output("out", F32, "n")
        .check(check_norm)
        .check(move |p: &MulMvNormParams| format.check_k(p.k))
        .class(PRODUCT_FAST.0, "|err| ≤ (5e-6·Σ|u|·A) carried through the gate")
        .flops(|p: &MulMvNormParams| product_flops(1, p.n, p.k) * f64::from(p.gates))
        .text(MUL_MV, format.instances.mul_mv_fused)
        .geometry(|p: &MulMvNormParams| one_row(p.n))
        .tested(oracle::fused_norm, oracle::fused_norm_cases)
        .build()
}

fn add(format: &'static Format) -> Kernel {
    Kernel::builder(format!("fused_mul_mv_add_{}_f32", format.suffix), Family::Quantized, "y[n] = r[n] + Σ_k x[k] · w[n,k]")
        .params::<MulMvAddParams>()
        .input("weight", U8, format.matrix)
        .input("x", F32, "k")
        .input("residual", F32, "n")
        .output("out", F32, "n")
        .may_alias(&["residual"])
        .check(move |p: &MulMvAddParams| format.check_k(p.k))
        .class(PRODUCT_FAST.0, PRODUCT_FAST.1)
        .flops(|p: &MulMvAddParams| product_flops(1, p.n, p.k))
        .text(MUL_MV, format.instances.mul_mv_fused)
        .geometry(|p: &MulMvAddParams| one_row(p.n))
        .tested(oracle::fused_add, oracle::fused_add_cases)
        .build()
}

/// The format of the weight, and its rows and columns.
fn operands(op: &str, weight: &Weight) -> Result<(&'static Format, u32, u32)> {
    let kind = weight.kind();
    let format = Format::of(kind).ok_or_else(|| Error::invalid(op, format!("weight: got {kind}, expected a type in blocks")))?;
    Ok((format, size(op, "weight", weight.rows())?, size(op, "weight", weight.cols())?))
}

/// `out = rms(x) · norm · weightᵀ` for one row, and `out = silu(a) · b` of the two halves of that where it is gated: one launch of what
/// [`RmsNorm`](crate::ops::norm::RmsNorm), [`Linear`](crate::ops::linear::Linear) and [`SiluMul`](crate::ops::activation::SiluMul) do in three.
/// See [`NormLinear::supports`] for where it can be had.
pub struct NormLinear<'a> {
    /// `[cols_out, cols_in]` in blocks; gated, the matrix of the gate above the one of what it gates.
    pub weight: &'a Weight,
    /// `[cols_in]`, f32; leading dimensions are 1.
    pub x: &'a Buffer,
    /// `[cols_in]` f32.
    pub norm: &'a Buffer,
    /// Added to the mean square; finite, at least 0.
    pub eps: f32,
    /// Whether the weight is two matrices.
    pub gated: bool,
    /// `[cols_out]`, half of it if gated, f32.
    pub out: &'a Buffer,
}

impl NormLinear<'_> {
    /// Whether the device of `ctx` can do this with `weight`: GPUs can, with blocks and at most 8192 inputs.
    pub fn supports(ctx: &Context, weight: &Weight) -> bool {
        weight.cols() <= LONGEST_ROW as usize && has_kernel(ctx, "fused_norm_mul_mv", weight)
    }

    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`]; [`Error::InvalidArgument`] for a weight that is not in blocks or a gated one of an odd number of rows.
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let op = "norm_linear";
        let (format, rows, k) = operands(op, self.weight)?;
        let gates = if self.gated { 2 } else { 1 };
        if rows % gates != 0 {
            return Err(Error::invalid(op, format!("weight: got {rows} rows, expected an even number where it is gated")));
        }
        let params = MulMvNormParams { n: rows / gates, k, gates, eps: self.eps };
        let args = [Some(self.weight.buffer()), Some(self.x), Some(self.norm), Some(self.out)];
        encoder.launch(&format!("fused_norm_mul_mv_{}_f32", format.suffix), &args, &params)
    }
}

/// `out = residual + x · weightᵀ` for one row. `out` may be `residual`. See [`LinearAdd::supports`] for where it can be had.
pub struct LinearAdd<'a> {
    /// `[cols_out, cols_in]` in blocks.
    pub weight: &'a Weight,
    /// `[cols_in]`, f32; leading dimensions are 1.
    pub x: &'a Buffer,
    /// `[cols_out]` f32.
    pub residual: &'a Buffer,
    /// `[cols_out]` f32.
    pub out: &'a Buffer,
}

impl LinearAdd<'_> {
    /// Whether the device of `ctx` can do this with `weight`: GPUs can, with blocks.
    pub fn supports(ctx: &Context, weight: &Weight) -> bool {
        has_kernel(ctx, "fused_mul_mv_add", weight)
    }

    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`]; [`Error::InvalidArgument`] for a weight that is not in blocks.
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (format, n, k) = operands("linear_add", self.weight)?;
        let args = [Some(self.weight.buffer()), Some(self.x), Some(self.residual), Some(self.out)];
        encoder.launch(&format!("fused_mul_mv_add_{}_f32", format.suffix), &args, &MulMvAddParams { n, k })
    }
}

/// Whether the device has a kernel. GPUs do; a CPU, where a launch costs next to nothing, does not.
fn has_kernel(ctx: &Context, prefix: &str, weight: &Weight) -> bool {
    let kernel = Format::of(weight.kind()).and_then(|format| find(&format!("{prefix}_{}_f32", format.suffix)));
    kernel.is_some_and(|kernel| ctx.device().support(kernel).supported)
}

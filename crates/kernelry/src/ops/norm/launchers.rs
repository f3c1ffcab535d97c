//! Typed launchers of norms with several results or several steps.

use super::NormParams;
use super::blocks::{ExpertNormParams, ExpertScaledNormParams, L2NormParams, L2NormScaleParams, PermutedNormParams, ScaledNormParams};
use crate::DType::{BF16, F16, F32};
use crate::ops::{rows_and_cols, size, unsupported};
use crate::{Buffer, Encoder, Error, Result};

/// `out = x / sqrt(mean(x²) + eps)`, and the same rounded to bf16: the value norm of Gemma, which attention reads. `out` may be `x`.
pub struct RmsNormNoScaleDual<'a> {
    /// `[rows, dim]` f32; `[seq_len, n_heads, dim]` with `permuted`.
    pub x: &'a Buffer,
    /// Shape of `x`, f32.
    pub out: &'a Buffer,
    /// bf16: shape of `x`, or `[n_heads, seq_len, dim]` with `permuted`.
    pub out_bf16: &'a Buffer,
    /// Whether heads come before positions in `out_bf16`.
    pub permuted: bool,
    /// Added to the mean square; finite, at least 0.
    pub eps: f32,
}

impl RmsNormNoScaleDual<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "rms_norm_no_scale_dual";
        let args = [Some(self.x), Some(self.out), Some(self.out_bf16)];
        if !self.permuted {
            let (rows, dim) = rows_and_cols(OP, "x", self.x)?;
            return encoder.launch("rms_norm_no_scale_f32_dual", &args, &NormParams { rows, dim, eps: self.eps });
        }
        let [seq_len, n_heads, dim] = *self.x.shape() else {
            return Err(Error::invalid(OP, format!("x: got shape {:?}, expected [seq_len, n_heads, dim]", self.x.shape())));
        };
        let (seq_len, n_heads, dim) = (size(OP, "x", seq_len)?, size(OP, "x", n_heads)?, size(OP, "x", dim)?);
        encoder.launch("rms_norm_no_scale_f32_dual_perm", &args, &PermutedNormParams { seq_len, n_heads, dim, eps: self.eps })
    }
}

/// `outs[j] = x / sqrt(mean(x²) + eps) · weights[j]`: three norms of one row.
pub struct RmsNormTriple<'a> {
    /// `[rows, dim]` f32.
    pub x: &'a Buffer,
    /// `[dim]` f32 each.
    pub weights: [&'a Buffer; 3],
    /// `[rows, dim]` f32 each.
    pub outs: [&'a Buffer; 3],
    /// Added to the mean square; finite, at least 0.
    pub eps: f32,
}

impl RmsNormTriple<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, dim) = rows_and_cols("rms_norm_triple", "x", self.x)?;
        let ([wa, wb, wc], [a, b, c]) = (self.weights, self.outs);
        let args = [Some(self.x), Some(wa), Some(wb), Some(wc), Some(a), Some(b), Some(c)];
        encoder.launch("rms_norm_f32_triple", &args, &NormParams { rows, dim, eps: self.eps })
    }
}

/// `out = x / sqrt(Σ x² + eps)`, rounded, times `scale`: the norm of queries and keys before a gated delta rule. `out` may be `x`.
pub struct L2Norm<'a> {
    /// `[rows, dim]`, f32, f16 or bf16.
    pub x: &'a Buffer,
    /// `[rows, dim]`, dtype of `x`.
    pub out: &'a Buffer,
    /// Factor of the result, for f32 rows.
    pub scale: Option<f32>,
    /// Added to the sum of squares; finite, at least 0.
    pub eps: f32,
}

impl L2Norm<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, dim) = rows_and_cols("l2_norm", "x", self.x)?;
        let args = [Some(self.x), Some(self.out)];
        let name = match (self.x.dtype(), self.scale) {
            (F32, Some(scale)) => {
                return encoder.launch("l2_norm_scale_f32", &args, &L2NormScaleParams { rows, dim, eps: self.eps, scale });
            }
            (F32, None) => "l2_norm_f32",
            (F16, None) => "l2_norm_f16",
            (BF16, None) => "l2_norm_bf16",
            (F16 | BF16, Some(_)) => return Err(Error::invalid("l2_norm", "scale: got one, expected none for 16-bit rows")),
            (other, _) => return Err(unsupported("l2_norm", "x", other, "f32, f16 or bf16")),
        };
        encoder.launch(name, &args, &L2NormParams { rows, dim, eps: self.eps })
    }
}

/// `residual_out = hidden + rms(attn_out) · weight_post`, and `outs[j] = rms(residual_out) · weights[j]`: everything between attention
/// and the router, the dense part and the experts of a Gemma layer. `residual_out` may be `hidden`.
pub struct FusedPostAttnTripleNorm<'a> {
    /// `[rows, dim]` f32.
    pub hidden: &'a Buffer,
    /// `[rows, dim]` f32.
    pub attn_out: &'a Buffer,
    /// `[dim]` f32.
    pub weight_post: &'a Buffer,
    /// `[dim]` f32 each.
    pub weights: [&'a Buffer; 3],
    /// `[rows, dim]` f32.
    pub residual_out: &'a Buffer,
    /// `[rows, dim]` f32 each.
    pub outs: [&'a Buffer; 3],
    /// Added to the mean squares; finite, at least 0.
    pub eps: f32,
}

impl FusedPostAttnTripleNorm<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, dim) = rows_and_cols("fused_post_attn_triple_norm", "hidden", self.hidden)?;
        let name = if dim.is_multiple_of(4) { "fused_post_attn_triple_norm_f32_v2" } else { "fused_post_attn_triple_norm_f32" };
        let ([wa, wb, wc], [a, b, c]) = (self.weights, self.outs);
        let args = [self.hidden, self.attn_out, self.weight_post, wa, wb, wc, self.residual_out, a, b, c].map(Some);
        encoder.launch(name, &args, &NormParams { rows, dim, eps: self.eps })
    }
}

/// What the experts of each row gave, before they are added up.
#[derive(Clone, Copy)]
pub enum ExpertOutputs<'a> {
    /// `[rows, dim]` f32: their weighted sum.
    Sum(&'a Buffer),
    /// `[rows, top_k, dim]` f32, and weights `[rows, top_k]` f32. Rows must be a multiple of four long.
    Each(&'a Buffer, &'a Buffer),
}

/// `mlp_down = base + rms(e) · weight_e`, `out = (residual + rms(mlp_down) · weight) · scale`: the end of a Gemma layer with experts.
/// `mlp_down` may be `base`, or the sum of the experts; `out` may be `residual`.
pub struct FusedPostFfNorm2EndLayer<'a> {
    /// `[rows, dim]` f32: the normalised output of the dense part.
    pub base: &'a Buffer,
    /// `e`, or what it is the sum of.
    pub experts: ExpertOutputs<'a>,
    /// `[rows, dim]` f32.
    pub residual: &'a Buffer,
    /// `[dim]` f32.
    pub weight_e: &'a Buffer,
    /// `[dim]` f32.
    pub weight: &'a Buffer,
    /// f32, `[1]` or `[dim]`.
    pub scale: &'a Buffer,
    /// `[rows, dim]` f32.
    pub mlp_down: &'a Buffer,
    /// `[rows, dim]` f32.
    pub out: &'a Buffer,
    /// Added to the mean squares; finite, at least 0.
    pub eps: f32,
}

impl FusedPostFfNorm2EndLayer<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, dim) = rows_and_cols("fused_post_ff_norm2_endlayer", "residual", self.residual)?;
        let tail = [self.residual, self.weight_e, self.weight, self.scale, self.mlp_down, self.out].map(Some);
        let [residual, weight_e, weight, scale, down, out] = tail;
        let params = ScaledNormParams::of(rows, dim, self.eps, self.scale);
        match self.experts {
            ExpertOutputs::Sum(e) => {
                let name = if dim.is_multiple_of(4) { "fused_post_ff_norm2_endlayer_f32_v2" } else { "fused_post_ff_norm2_endlayer_f32" };
                encoder.launch(name, &[Some(self.base), Some(e), residual, weight_e, weight, scale, down, out], &params)
            }
            ExpertOutputs::Each(y, w) => {
                let top_k = top_k_of("fused_post_ff_norm2_endlayer", w, rows)?;
                let ScaledNormParams { eps, scalar_is_vector, .. } = params;
                let args = [Some(y), Some(w), Some(self.base), residual, weight_e, weight, scale, down, out];
                let params = ExpertScaledNormParams { rows, dim, top_k, eps, scalar_is_vector };
                encoder.launch("fused_moe_wsum_post_ff_norm2_endlayer_f32_v2", &args, &params)
            }
        }
    }
}

/// Experts of a row, from their weights.
fn top_k_of(op: &str, weights: &Buffer, rows: u32) -> Result<u32> {
    size(op, "weights", weights.len() / (rows as usize).max(1))
}

/// `out = r + rms(Σ_k w_k · y_k) · weight`, where `r` is the residual, or its norm times `weight_residual`. `out` may be `residual`.
pub struct ExpertSumNormAdd<'a> {
    /// `[rows, top_k, dim]` f32.
    pub experts: &'a Buffer,
    /// `[rows, top_k]` f32.
    pub weights: &'a Buffer,
    /// `[rows, dim]` f32.
    pub residual: &'a Buffer,
    /// `[dim]` f32, if the residual is normalised.
    pub weight_residual: Option<&'a Buffer>,
    /// `[dim]` f32.
    pub weight: &'a Buffer,
    /// `[rows, dim]` f32.
    pub out: &'a Buffer,
    /// Added to the mean squares; finite, at least 0.
    pub eps: f32,
}

impl ExpertSumNormAdd<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, dim) = rows_and_cols("expert_sum_norm_add", "residual", self.residual)?;
        let params = ExpertNormParams { rows, dim, top_k: top_k_of("expert_sum_norm_add", self.weights, rows)?, eps: self.eps };
        let [y, w, residual, weight, out] = [self.experts, self.weights, self.residual, self.weight, self.out].map(Some);
        match self.weight_residual {
            None => encoder.launch("fused_moe_wsum_norm_add_f32", &[y, w, residual, weight, out], &params),
            own => encoder.launch("fused_moe_wsum_dnorm_add_f32", &[y, w, residual, own, weight, out], &params),
        }
    }
}

//! Names of the catalogue that no backend implements yet. They answer `BackendUnsupported`; an entry in a family's file replaces the row.

use crate::catalogue::{Family, Kernel};

/// Adds an entry for each name that its family has not defined.
pub(super) fn extend(kernels: &mut Vec<Kernel>) {
    let defined: hashbrown::HashSet<String> = kernels.iter().map(|k| k.name().to_owned()).collect();
    for &(name, family, summary) in NAMES.iter().filter(|(name, ..)| !defined.contains(*name)) {
        let entry = Kernel::builder(name, family, summary);
        kernels.push(if name == "placeholder" { entry.without_entry_point().build() } else { entry.build() });
    }
}

#[rustfmt::skip]
const NAMES: &[(&str, Family, &str)] = &[
    ("placeholder", Family::Quantized, "no function: asking for its pipeline is an error"),
    ("rms_norm_no_scale_f32_dual", Family::Norm, "y = x / sqrt(mean(x²) + eps)"),
    ("rms_norm_f32_triple", Family::Norm, "three RMS norms of one row with one root"),
    ("fused_post_attn_triple_norm_f32", Family::Norm, "u = hidden + rms(attn)·w, and three norms of u"),
    ("fused_post_attn_triple_norm_f32_v2", Family::Norm, "u = hidden + rms(attn)·w, and three norms of u"),
    ("fused_post_ff_norm2_endlayer_f32", Family::Norm, "h = (residual + rms(base + rms(e)·w2)·w3) · s"),
    ("fused_post_ff_norm2_endlayer_f32_v2", Family::Norm, "h = (residual + rms(base + rms(e)·w2)·w3) · s"),
    ("fused_moe_wsum_post_ff_norm2_endlayer_f32_v2", Family::Norm, "h = (residual + rms(base + rms(e)·w2)·w3) · s"),
    ("rms_norm_no_scale_f32_dual_perm", Family::Norm, "y = x / sqrt(mean(x²) + eps)"),
    ("l2_norm_f32", Family::Norm, "y = x / sqrt(Σx² + eps)"),
    ("l2_norm_f16", Family::Norm, "y = x / sqrt(Σx² + eps)"),
    ("l2_norm_bf16", Family::Norm, "y = x / sqrt(Σx² + eps)"),
    ("l2_norm_scale_f32", Family::Norm, "y = x / sqrt(Σx² + eps) · scale"),
    ("rope_multi_f32", Family::Rope, "rotates (p, p + R/2) by positions of several axes"),
    ("rope_multi_bf16", Family::Rope, "rotates (p, p + R/2) by positions of several axes"),
    ("fused_norm_add_bf16", Family::Norm, "out = residual + rms(x)·w"),
    ("fused_norm_add_no_weight_bf16", Family::Norm, "out = residual + rms(x)"),
    ("fused_head_norm_rope_bf16", Family::Rope, "RMS norm of each head, then its rotation"),
    ("fused_head_norm_rope_batch_bf16", Family::Rope, "RMS norm of each head, then its rotation"),
    ("fused_residual_norm_scalar_f32", Family::Norm, "y = rms(residual + x)·w · s"),
    ("fused_norm_add_scalar_f32", Family::Norm, "out = (residual + rms(x)·w) · s"),
    ("fused_moe_wsum_norm_add_f32", Family::Norm, "out = residual + rms(Σ_k w_k·y_k)·w"),
    ("fused_moe_wsum_dnorm_add_f32", Family::Norm, "out = rms(residual)·w_res + rms(Σ_k w_k·y_k)·w_moe"),
];

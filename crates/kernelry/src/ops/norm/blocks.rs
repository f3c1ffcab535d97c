//! Norms with several results, L2 norms, and the norms, additions and sums of experts between the parts of a layer in one launch.
//!
//! Each gives the bits of the chain of kernels that it replaces, on the device it runs on: `rms(x)_i = x_i · r(x)`, rounded, times the
//! weight, rounded, plus the residual. A second norm reads what the first one stored.

use super::{NormParams, class_of};
use crate::DType::{BF16, F16, F32};
use crate::backend::cpu::CpuFn;
use crate::backend::cpu::norm::blocks as cpu;
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder, Params};
use crate::conformance::norm::blocks as oracle;
use crate::{Buffer, DType, bf16, f16};

crate::params! {
    /// Parameters of norms whose 16-bit copy has heads and positions exchanged.
    pub struct PermutedNormParams {
        /// number of positions
        seq_len: u32,
        /// rows of a position
        n_heads: u32,
        /// elements of a row
        dim: u32,
        /// added to the mean square inside the root
        eps: f32,
    }
}

crate::params! {
    /// Parameters of L2 norms.
    pub struct L2NormParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        dim: u32,
        /// added to the sum of squares inside the root
        eps: f32,
    }
}

crate::params! {
    /// Parameters of the scaled L2 norm.
    pub struct L2NormScaleParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        dim: u32,
        /// added to the sum of squares inside the root
        eps: f32,
        /// factor of the normalised row
        scale: f32,
    }
}

crate::params! {
    /// Parameters of norms with a factor for the result.
    pub struct ScaledNormParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        dim: u32,
        /// added to the mean square inside the root
        eps: f32,
        /// 1: s has one factor for each element of a row, 0: one for all
        scalar_is_vector: u32,
    }
}

crate::params! {
    /// Parameters of norms of the weighted sum of expert outputs.
    pub struct ExpertNormParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        dim: u32,
        /// experts of a row
        top_k: u32,
        /// added to the mean square inside the root
        eps: f32,
    }
}

crate::params! {
    /// Parameters of norms of the weighted sum of expert outputs, with a factor for the result.
    pub struct ExpertScaledNormParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        dim: u32,
        /// experts of a row
        top_k: u32,
        /// added to the mean square inside the root
        eps: f32,
        /// 1: s has one factor for each element of a row, 0: one for all
        scalar_is_vector: u32,
    }
}

/// What all parameter blocks of row kernels have.
trait Rows: Params {
    /// Rows, elements of a row, and eps.
    fn row(&self) -> (u32, u32, f32);
    /// The kind of factor, where there is one.
    fn vector_flag(&self) -> u32 {
        0
    }
}

macro_rules! rows {
    ($($params:ty: $rows:expr, $flag:expr;)*) => {
        $(impl Rows for $params {
            fn row(&self) -> (u32, u32, f32) {
                let rows: fn(&$params) -> u32 = $rows;
                (rows(self), self.dim, self.eps)
            }
            fn vector_flag(&self) -> u32 {
                let flag: fn(&$params) -> u32 = $flag;
                flag(self)
            }
        })*
    };
}
rows! {
    NormParams: |p| p.rows, |_| 0;
    PermutedNormParams: |p| p.seq_len.saturating_mul(p.n_heads), |_| 0;
    L2NormParams: |p| p.rows, |_| 0;
    L2NormScaleParams: |p| p.rows, |_| 0;
    ScaledNormParams: |p| p.rows, |p| p.scalar_is_vector;
    ExpertNormParams: |p| p.rows, |_| 0;
    ExpertScaledNormParams: |p| p.rows, |p| p.scalar_is_vector;
}

impl ScaledNormParams {
    /// With the kind of factor that `scale` has.
    pub(super) fn of(rows: u32, dim: u32, eps: f32, scale: &Buffer) -> ScaledNormParams {
        ScaledNormParams { rows, dim, eps, scalar_is_vector: u32::from(scale.len() > 1) }
    }
}

/// A factor of the whole result: one element, or one for each of a row.
const FACTOR: &str = "1+(dim-1)*scalar_is_vector";

/// A row kernel with `flops` operations an element, one thread group a row.
fn row_kernel<P: Rows>(name: &str, summary: &'static str, flops: f64) -> KernelBuilder {
    let by_four = name.ends_with("_v2");
    Kernel::builder(name, Family::Norm, summary)
        .params::<P>()
        .check(move |p: &P| {
            let (_, dim, eps) = p.row();
            if !eps.is_finite() || eps < 0.0 {
                return Err(format!("eps: got {eps}, expected a finite value of at least 0"));
            }
            if p.vector_flag() > 1 {
                return Err(format!("scalar_is_vector: got {}, expected 0 or 1", p.vector_flag()));
            }
            // These names load four elements at a time and demand rows that allow it.
            if by_four && !dim.is_multiple_of(4) {
                return Err(format!("dim: got {dim}, expected a multiple of 4"));
            }
            Ok(())
        })
        .geometry(|p: &P| Geometry::linear(p.row().0, p.row().1.checked_next_power_of_two().unwrap_or(256).clamp(32, 256)))
        .flops(move |p: &P| flops * f64::from(p.row().0) * f64::from(p.row().1))
}

/// A kernel whose second norm magnifies what the first one rounded.
fn two_steps<P: Rows>(name: &str, summary: &'static str, flops: f64) -> KernelBuilder {
    row_kernel::<P>(name, summary, flops).class("f32", "|err| ≤ 3e-5·max|y_row| + 1e-6")
}

const TRIPLE: &str = "h = hidden + rms(attn_out)·w_post, and rms(h) times each of three weights";
const END_LAYER: &str = "c = base + rms(e)·w_e, out = (residual + rms(c)·w)·s";

/// Catalogue entries.
pub(super) fn kernels() -> Vec<Kernel> {
    let mut list = several_results();
    list.extend(l2_norms());
    list.extend(with_residual());
    list.extend(end_of_layer());
    list.extend(expert_sums());
    list
}

fn several_results() -> Vec<Kernel> {
    let dual = "y = x / sqrt(mean(x²) + eps), and y rounded to bf16";
    vec![
        class_of(row_kernel::<NormParams>("rms_norm_no_scale_f32_dual", dual, 4.0), F32)
            .input("x", F32, "rows dim")
            .output("out", F32, "rows dim")
            .may_alias(&["x"])
            .output("out_bf16", BF16, "rows dim")
            .cpu(cpu::rms_norm_no_scale_dual)
            .tested(oracle::dual, oracle::dual_cases)
            .build(),
        class_of(
            row_kernel::<PermutedNormParams>(
                "rms_norm_no_scale_f32_dual_perm",
                "y = x / sqrt(mean(x²) + eps), and y rounded to bf16 as [n_heads, seq_len, dim]",
                4.0,
            ),
            F32,
        )
        .input("x", F32, "seq_len n_heads dim")
        .output("out", F32, "seq_len n_heads dim")
        .may_alias(&["x"])
        .output("out_bf16", BF16, "n_heads seq_len dim")
        .cpu(cpu::rms_norm_no_scale_dual_perm)
        .tested(oracle::dual, oracle::permuted_cases)
        .build(),
        class_of(row_kernel::<NormParams>("rms_norm_f32_triple", "y_j = x / sqrt(mean(x²) + eps) · w_j for three weights", 6.0), F32)
            .input("x", F32, "rows dim")
            .input("weight_a", F32, "dim")
            .input("weight_b", F32, "dim")
            .input("weight_c", F32, "dim")
            .output("out_a", F32, "rows dim")
            .output("out_b", F32, "rows dim")
            .output("out_c", F32, "rows dim")
            .cpu(cpu::rms_norm_triple)
            .tested(oracle::triple, oracle::plain_cases)
            .build(),
    ]
}

fn l2_norms() -> Vec<Kernel> {
    let plain: [(&str, DType, CpuFn); 3] = [
        ("l2_norm_f32", F32, cpu::l2_norm::<f32>),
        ("l2_norm_f16", F16, cpu::l2_norm::<f16>),
        ("l2_norm_bf16", BF16, cpu::l2_norm::<bf16>),
    ];
    let mut list = Vec::new();
    for (name, dtype, run) in plain {
        list.push(
            class_of(row_kernel::<L2NormParams>(name, "y = x / sqrt(Σ x² + eps)", 3.0), dtype)
                .input("x", dtype, "rows dim")
                .output("out", dtype, "rows dim")
                .may_alias(&["x"])
                .cpu(run)
                .tested(oracle::l2, oracle::l2_cases)
                .build(),
        );
    }
    list.push(
        class_of(row_kernel::<L2NormScaleParams>("l2_norm_scale_f32", "y = x / sqrt(Σ x² + eps), rounded, times scale", 4.0), F32)
            .check(
                |p: &L2NormScaleParams| {
                    if p.scale.is_finite() { Ok(()) } else { Err(format!("scale: got {}, expected a finite value", p.scale)) }
                },
            )
            .input("x", F32, "rows dim")
            .output("out", F32, "rows dim")
            .may_alias(&["x"])
            .cpu(cpu::l2_norm_scale)
            .tested(oracle::l2_scale, oracle::l2_scale_cases)
            .build(),
    );
    list
}

/// One norm and a residual, in bf16 or with a factor for the result.
fn with_residual() -> Vec<Kernel> {
    let rounded = |name: &str, summary| {
        row_kernel::<NormParams>(name, summary, 5.0)
            .class("f32, one rounding to bf16", "1 ulp of the rounded f64 result and 1e-5·max|y_row| + 1e-6 where terms cancel")
            .input("residual", BF16, "rows dim")
            .input("x", BF16, "rows dim")
    };
    let scaled = |name: &str, summary| {
        let entry = class_of(row_kernel::<ScaledNormParams>(name, summary, 6.0), F32);
        let entry = entry.input("residual", F32, "rows dim").input("x", F32, "rows dim").input("weight", F32, "dim");
        entry.input("s", F32, FACTOR).output("out", F32, "rows dim").may_alias(&["residual", "x"])
    };
    vec![
        rounded("fused_norm_add_bf16", "out = residual + rms(x)·w")
            .input("weight", BF16, "dim")
            .output("out", BF16, "rows dim")
            .may_alias(&["residual", "x"])
            .cpu(cpu::norm_add::<bf16>)
            .tested(oracle::norm_add, oracle::residual_cases)
            .build(),
        rounded("fused_norm_add_no_weight_bf16", "out = residual + rms(x)")
            .output("out", BF16, "rows dim")
            .may_alias(&["residual", "x"])
            .cpu(cpu::norm_add_no_weight::<bf16>)
            .tested(oracle::norm_add, oracle::residual_cases)
            .build(),
        scaled("fused_norm_add_scalar_f32", "out = (residual + rms(x)·w)·s")
            .cpu(cpu::norm_add_scalar)
            .tested(oracle::norm_add, oracle::scaled_cases)
            .build(),
        scaled("fused_residual_norm_scalar_f32", "u = residual + x, out = rms(u)·w·s")
            .cpu(cpu::residual_norm_scalar)
            .tested(oracle::norm_add, oracle::scaled_cases)
            .build(),
    ]
}

/// Two norms a launch, around attention and the feed-forward part.
fn end_of_layer() -> Vec<Kernel> {
    let mut list = Vec::new();
    for name in ["fused_post_attn_triple_norm_f32", "fused_post_attn_triple_norm_f32_v2"] {
        list.push(
            two_steps::<NormParams>(name, TRIPLE, 11.0)
                .input("hidden", F32, "rows dim")
                .input("attn_out", F32, "rows dim")
                .input("weight_post", F32, "dim")
                .input("weight_a", F32, "dim")
                .input("weight_b", F32, "dim")
                .input("weight_c", F32, "dim")
                .output("residual_out", F32, "rows dim")
                .may_alias(&["hidden"])
                .output("out_a", F32, "rows dim")
                .output("out_b", F32, "rows dim")
                .output("out_c", F32, "rows dim")
                .cpu(cpu::post_attn_triple)
                .tested(oracle::post_attn_triple, oracle::post_attn_cases)
                .build(),
        );
    }
    for name in ["fused_post_ff_norm2_endlayer_f32", "fused_post_ff_norm2_endlayer_f32_v2"] {
        list.push(
            two_steps::<ScaledNormParams>(name, END_LAYER, 11.0)
                .input("base", F32, "rows dim")
                .input("e", F32, "rows dim")
                .input("residual", F32, "rows dim")
                .input("weight_e", F32, "dim")
                .input("weight", F32, "dim")
                .input("s", F32, FACTOR)
                .output("mlp_down", F32, "rows dim")
                .may_alias(&["base", "e"])
                .output("out", F32, "rows dim")
                .may_alias(&["residual"])
                .cpu(cpu::post_ff_end_layer)
                .tested(oracle::end_layer, oracle::end_layer_cases)
                .build(),
        );
    }
    list
}

/// Kernels that form the weighted sum of the experts of a row first.
fn expert_sums() -> Vec<Kernel> {
    let add = |name: &str, summary| {
        let entry = class_of(row_kernel::<ExpertNormParams>(name, summary, 8.0), F32);
        let entry = entry.flops(|p: &ExpertNormParams| f64::from(p.rows) * f64::from(p.dim) * (2.0 * f64::from(p.top_k) + 8.0));
        entry.input("experts", F32, "rows top_k dim").input("weights", F32, "rows top_k").input("residual", F32, "rows dim")
    };
    vec![
        two_steps::<ExpertScaledNormParams>(
            "fused_moe_wsum_post_ff_norm2_endlayer_f32_v2",
            "e = Σ_k w_k·y_k, c = base + rms(e)·w_e, out = (residual + rms(c)·w)·s",
            11.0,
        )
        .flops(|p: &ExpertScaledNormParams| f64::from(p.rows) * f64::from(p.dim) * (2.0 * f64::from(p.top_k) + 11.0))
        .input("experts", F32, "rows top_k dim")
        .input("weights", F32, "rows top_k")
        .input("base", F32, "rows dim")
        .input("residual", F32, "rows dim")
        .input("weight_e", F32, "dim")
        .input("weight", F32, "dim")
        .input("s", F32, FACTOR)
        .output("mlp_down", F32, "rows dim")
        .may_alias(&["base"])
        .output("out", F32, "rows dim")
        .may_alias(&["residual"])
        .cpu(cpu::expert_sum_end_layer)
        .tested(oracle::end_layer, oracle::expert_end_layer_cases)
        .build(),
        add("fused_moe_wsum_norm_add_f32", "out = residual + rms(Σ_k w_k·y_k)·w")
            .input("weight", F32, "dim")
            .output("out", F32, "rows dim")
            .may_alias(&["residual"])
            .cpu(cpu::expert_sum_norm_add)
            .tested(oracle::expert_norm_add, oracle::expert_cases)
            .build(),
        add("fused_moe_wsum_dnorm_add_f32", "out = rms(residual)·w_res + rms(Σ_k w_k·y_k)·w")
            .input("weight_residual", F32, "dim")
            .input("weight", F32, "dim")
            .output("out", F32, "rows dim")
            .may_alias(&["residual"])
            .cpu(cpu::expert_sum_norms)
            .tested(oracle::expert_norm_add, oracle::expert_cases)
            .build(),
    ]
}

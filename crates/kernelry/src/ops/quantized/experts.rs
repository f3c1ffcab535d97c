//! Products of each token with the weights of its experts.
//!
//! Few tokens take `mul_mv_id`, one matrix-vector product for each (token, slot). Many take two launches: `map0` lists the
//! (token, slot) pairs of each expert, then `mul_mm_id` multiplies the gathered rows of each expert by tiles.

use super::entries::{PRODUCT_FAST, product_flops};
use super::{FORMATS, Format};
use crate::DType::{F32, I32, U8, U32};
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder};

crate::params! {
    /// Parameters of `kernel_mul_mv_id_*`: row `r` of the output is token `r / top_k` times expert `ids[r]`.
    pub struct MulMvIdParams {
        /// bytes from one expert's weights to the next
        expert_stride: u64,
        /// number of tokens
        n_tokens: u32,
        /// experts of a token
        top_k: u32,
        /// number of experts
        n_experts: u32,
        /// weight rows of an expert, the outputs of an input row
        n: u32,
        /// length of a row
        k: u32,
        /// not used: keeps the size a multiple of 8
        reserved: u32,
    }
}

crate::params! {
    /// Parameters of `kernel_mul_mm_id_*`.
    pub struct MulMmIdParams {
        /// bytes from one expert's weights to the next
        expert_stride: u64,
        /// number of tokens
        n_tokens: u32,
        /// experts of a token: 1 or 8
        top_k: u32,
        /// number of experts
        n_experts: u32,
        /// weight rows of an expert, the outputs of an input row
        n: u32,
        /// length of a row
        k: u32,
        /// input rows of a token: 1 if all its experts share one, or top_k
        x_slots: u32,
    }
}

crate::params! {
    /// Parameters of `kernel_mul_mm_id_map0_*`.
    pub struct ExpertMapParams {
        /// number of tokens
        n_tokens: u32,
        /// experts of a token, as the name says
        top_k: u32,
        /// number of experts
        n_experts: u32,
    }
}

const ROUTED: &str = "y[r,n] = Σ_k x[r / top_k, k] · w[ids[r],n,k], NaN for an unknown expert";
const ROUTED_SWIGLU: &str = "y[r,n] = Σ_k silu(gate[r,k]) · up[r,k] · w[ids[r],n,k], NaN for an unknown expert";
const GROUPED: &str = "y[t,u,n] = Σ_k x[t,k] · w[e,n,k] for each (t, u) in the list of expert e; all NaN if the map is not valid";
const MAP: &str =
    "for each expert the pairs t·top_k + u with ids[t,u] = e, in order; bit 31 of every count if an id is unknown or repeated";

/// Catalogue entries of expert products.
pub(super) fn kernels() -> Vec<Kernel> {
    let mut list = Vec::new();
    for format in FORMATS {
        list.push(mat_vec(format, ""));
        if format.nr2 {
            list.push(mat_vec(format, "_nr2"));
        }
        if format.suffix == "q4_0" {
            list.push(mat_vec(format, "_swiglu"));
        }
        list.push(mat_mat(format, ""));
        list.push(mat_mat(format, "_tensor"));
    }
    list.extend([1, 8].map(map));
    list
}

/// The weights of an expert are whole, and aligned as its blocks are.
fn check_stack(format: &Format, stride: u64, n: u32, k: u32) -> Result<(), String> {
    format.check_k(k)?;
    let ty = format.ty;
    let matrix = u64::from(n) * (u64::from(k) / ty.block_len() as u64) * ty.block_bytes() as u64;
    // Blocks start where the largest power of two that divides their size allows, up to 16 bytes.
    let align = 1u64 << ty.block_bytes().trailing_zeros().min(4);
    if stride >= matrix && stride.is_multiple_of(align) {
        return Ok(());
    }
    Err(format!("expert_stride: got {stride}, expected at least {matrix} and a multiple of {align}"))
}

fn check_routing(top_k: u32, n_experts: u32, n_tokens: u32) -> Result<(), String> {
    if top_k == 0 || top_k > n_experts {
        return Err(format!("top_k: got {top_k}, expected 1 to n_experts = {n_experts}"));
    }
    let rows = u64::from(top_k) * u64::from(n_tokens);
    if rows > i32::MAX as u64 { Err(format!("n_tokens·top_k: got {rows}, expected at most {}", i32::MAX)) } else { Ok(()) }
}

fn mat_vec(format: &'static Format, variant: &str) -> Kernel {
    let swiglu = variant == "_swiglu";
    let name = format!("kernel_mul_mv_id_{}_f32{variant}", format.suffix);
    let entry = Kernel::builder(name, Family::Quantized, if swiglu { ROUTED_SWIGLU } else { ROUTED }).params::<MulMvIdParams>().input(
        "weight",
        U8,
        format.experts,
    );
    let entry = if swiglu {
        entry.input("gate", F32, "n_tokens*top_k k").input("up", F32, "n_tokens*top_k k")
    } else {
        entry.input("x", F32, "n_tokens k")
    };
    entry
        .input("ids", U32, "n_tokens*top_k")
        .output("out", F32, "n_tokens*top_k n")
        .check(move |p: &MulMvIdParams| check_stack(format, p.expert_stride, p.n, p.k))
        .check(|p: &MulMvIdParams| check_routing(p.top_k, p.n_experts, p.n_tokens))
        .class(PRODUCT_FAST.0, PRODUCT_FAST.1)
        .fast_math()
        .flops(|p: &MulMvIdParams| product_flops(p.n_tokens, p.n, p.k) * f64::from(p.top_k))
        .geometry(|p: &MulMvIdParams| Geometry {
            groups: [p.n_tokens.saturating_mul(p.top_k), p.n.div_ceil(8).min(65_535), 1],
            threads: [32, 2, 1],
        })
        .build()
}

fn mat_mat(format: &'static Format, variant: &str) -> Kernel {
    let name = format!("kernel_mul_mm_id_{}{variant}_f32", format.suffix);
    let class = if variant.is_empty() { super::entries::W16 } else { super::entries::W16A16 };
    grouped(Kernel::builder(name, Family::Quantized, GROUPED).params::<MulMmIdParams>().input("weight", U8, format.experts))
        .check(move |p: &MulMmIdParams| check_stack(format, p.expert_stride, p.n, p.k))
        .class(class.0, class.1)
        .fast_math()
        .build()
}

fn grouped(entry: KernelBuilder) -> KernelBuilder {
    entry
        .input("x", F32, "n_tokens*x_slots k")
        .input("counts", U32, "n_experts")
        .input("list", I32, "n_experts n_tokens")
        .output("out", F32, "n_tokens*top_k n")
        .check(|p: &MulMmIdParams| check_routing(p.top_k, p.n_experts, p.n_tokens))
        .check(|p: &MulMmIdParams| check_top_k(p.top_k, &[1, 8]))
        .check(|p: &MulMmIdParams| {
            let right = p.x_slots == 1 || p.x_slots == p.top_k;
            if right { Ok(()) } else { Err(format!("x_slots: got {}, expected 1 or top_k = {}", p.x_slots, p.top_k)) }
        })
        .flops(|p: &MulMmIdParams| product_flops(p.n_tokens, p.n, p.k) * f64::from(p.top_k))
        .geometry(|p: &MulMmIdParams| Geometry {
            groups: [p.n_tokens.div_ceil(32), p.n.div_ceil(64).min(65_535), p.n_experts.min(65_535)],
            threads: [128, 1, 1],
        })
}

fn check_top_k(top_k: u32, allowed: &[u32]) -> Result<(), String> {
    if allowed.contains(&top_k) { Ok(()) } else { Err(format!("top_k: got {top_k}, expected one of {allowed:?}")) }
}

fn map(top_k: u32) -> Kernel {
    Kernel::builder(format!("kernel_mul_mm_id_map0_ne20_{top_k}"), Family::Quantized, MAP)
        .params::<ExpertMapParams>()
        .input("ids", U32, "n_tokens top_k")
        .output("counts", U32, "n_experts")
        .in_out("list", I32, "n_experts n_tokens")
        .check(move |p: &ExpertMapParams| check_top_k(p.top_k, &[top_k]))
        .check(|p: &ExpertMapParams| check_routing(p.top_k, p.n_experts, p.n_tokens))
        .class("integers", "exact; entries of a list beyond its count are unspecified")
        .geometry(|p: &ExpertMapParams| Geometry::linear(p.n_experts, 32))
        .build()
}

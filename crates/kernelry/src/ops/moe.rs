//! Mixture of experts: routing, gated activation and the weighted combination of expert outputs.
//!
//! The `moe_swiglu_*` kernels gate with the tanh form of **GELU** in spite of their names; models that gate with SiLU use
//! `silu_mul_f32`. Routers take experts in descending score, the lower index first among equals; a row with a NaN or +inf score, or
//! with nothing but -inf, gives ids `0..k` and NaN weights.

use crate::DType::{BF16, F32, U32};
use crate::backend::cpu::CpuFn;
use crate::backend::cpu::{activation as flat, moe as cpu};
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder};
use crate::conformance::moe as oracle;
use crate::{DType, bf16};

crate::params! {
    /// Parameters of routers.
    pub struct RouterParams {
        /// number of tokens
        n_tokens: u32,
        /// number of experts
        n_experts: u32,
        /// experts of a token
        top_k: u32,
    }
}

crate::params! {
    /// Parameters of `moe_gate`, the router that normalises and projects its input.
    pub struct GateParams {
        /// number of tokens
        n_tokens: u32,
        /// elements of a token
        dim: u32,
        /// number of experts
        n_experts: u32,
        /// experts of a token
        top_k: u32,
        /// added to the mean square inside the root
        eps: f32,
        /// 1: weights are divided by their sum once more after scaling
        renorm_after_scale: u32,
    }
}

crate::params! {
    /// Parameters of flat gates.
    pub struct FlatParams {
        /// number of elements
        n: u32,
    }
}

crate::params! {
    /// Parameters of gates over expert rows whose halves are gate and up.
    pub struct GluParams {
        /// number of tokens
        n_tokens: u32,
        /// expert slots of a token
        top_k: u32,
        /// elements of each half
        ffn: u32,
    }
}

crate::params! {
    /// Parameters of combinations of expert outputs.
    pub struct CombineParams {
        /// number of tokens
        n_tokens: u32,
        /// expert slots of a token
        top_k: u32,
        /// elements of a token
        dim: u32,
    }
}

crate::params! {
    /// Parameters of `moe_accumulate`.
    pub struct AccumulateParams {
        /// number of elements
        n: u32,
        /// weight of the addend
        weight: f32,
    }
}

crate::params! {
    /// Parameters of `naive_matvec_f32`.
    pub struct MatvecParams {
        /// rows of the matrix
        n: u32,
        /// columns of the matrix
        k: u32,
    }
}

fn entry(name: &str, summary: &'static str) -> KernelBuilder {
    Kernel::builder(name, Family::Moe, summary).class("f32", "|err| ≤ 1e-6 + 1e-5·|y|")
}

fn bf16_entry(name: &str, summary: &'static str) -> KernelBuilder {
    entry(name, summary).class("f32, one rounding to bf16", "1 ulp of the rounded f64 result")
}

fn at_most(name: &str, value: u32, limit: u32) -> Result<(), String> {
    if value <= limit { Ok(()) } else { Err(format!("{name}: got {value}, expected at most {limit}")) }
}

/// A router: `top_k` of `n_experts`.
fn router(name: &str, summary: &'static str) -> KernelBuilder {
    entry(name, summary)
        .params::<RouterParams>()
        .class("f32", "ids exact, weights |err| ≤ 1e-6 + 1e-5·|w|")
        .check(|p: &RouterParams| at_most("top_k", p.top_k, p.n_experts.min(64)))
        .geometry(|p: &RouterParams| Geometry::linear(p.n_tokens, 128))
        .flops(|p: &RouterParams| 5.0 * f64::from(p.n_tokens) * f64::from(p.n_experts))
}

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut list = routers();
    list.extend(gates());
    list.extend(combinations());
    list
}

fn routers() -> Vec<Kernel> {
    let mut list = vec![
        router("moe_softmax_topk_f32", "ids, w = top-k of p = softmax(logits), w = p / Σ p")
            .input("logits", F32, "n_tokens n_experts")
            .output("ids", U32, "n_tokens top_k")
            .output("weights", F32, "n_tokens top_k")
            .cpu(cpu::softmax_topk)
            .tested(oracle::route, oracle::router_cases)
            .build(),
        entry("moe_gate", "ids, w = top-k of l = rms(x)·norm_w · routerᵀ, w = softmax over the chosen · scale")
            .params::<GateParams>()
            .class("f32", "ids exact, weights |err| ≤ 1e-5 + 1e-4·|w|")
            .check(|p: &GateParams| at_most("top_k", p.top_k, p.n_experts.min(64)))
            .check(|p: &GateParams| at_most("n_experts", p.n_experts, 512))
            .check(|p: &GateParams| at_most("renorm_after_scale", p.renorm_after_scale, 1))
            .check(|p: &GateParams| if p.eps.is_finite() { Ok(()) } else { Err(format!("eps: got {}, expected a finite value", p.eps)) })
            .input("x", BF16, "n_tokens dim")
            .input("router", F32, "n_experts dim")
            .input("norm_weight", F32, "dim")
            .input("scale", F32, "n_experts")
            .output("ids", U32, "n_tokens top_k")
            .output("weights", F32, "n_tokens top_k")
            .geometry(|p: &GateParams| Geometry::linear(p.n_tokens, 256))
            .flops(|p: &GateParams| 2.0 * f64::from(p.n_tokens) * f64::from(p.n_experts) * f64::from(p.dim))
            .cpu(cpu::gate)
            .tested(oracle::gate, oracle::gate_cases)
            .build(),
        router("moe_gather_topk_weights", "ids = order[..k], w = probs / Σ probs · scale")
            .input("probs", F32, "n_tokens n_experts")
            .input("order", U32, "n_tokens n_experts")
            .input("scale", F32, "n_experts")
            .output("ids", U32, "n_tokens top_k")
            .output("weights", F32, "n_tokens top_k")
            .cpu(cpu::gather_topk_weights)
            .tested(oracle::gather, oracle::gather_cases)
            .build(),
    ];
    let fused = ["fused_moe_routing_f32", "fused_moe_routing_f32_v2", "fused_moe_routing_f32_v3"];
    for name in fused.into_iter().chain(["fused_moe_routing_batch_f32", "fused_moe_routing_batch_f32_v3"]) {
        let entry = router(name, "ids, w = top-k of p = softmax(logits), w = p / Σ p · per_expert_scale");
        let entry = if name.contains("batch") {
            entry
        } else {
            entry.check(|p: &RouterParams| if p.n_tokens <= 1 { Ok(()) } else { Err(format!("n_tokens: got {}, expected 1", p.n_tokens)) })
        };
        list.push(
            entry
                .input("logits", F32, "n_tokens n_experts")
                .input("per_expert_scale", F32, "n_experts")
                .output("ids", U32, "n_tokens top_k")
                .output("weights", F32, "n_tokens top_k")
                .cpu(cpu::fused_routing)
                .tested(oracle::route, oracle::router_cases)
                .build(),
        );
    }
    list
}

fn gates() -> Vec<Kernel> {
    let mut list = Vec::new();
    let flat: [(&str, DType, CpuFn); 2] =
        [("fused_gelu_mul", F32, flat::gelu_mul::<f32>), ("fused_gelu_mul_bf16", BF16, flat::gelu_mul::<bf16>)];
    for (name, dtype, run) in flat {
        let make = if dtype == BF16 { bf16_entry } else { entry };
        list.push(
            make(name, "y = gelu(gate) · up, tanh form")
                .params::<FlatParams>()
                .input("gate", dtype, "n")
                .input("up", dtype, "n")
                .output("out", dtype, "n")
                .may_alias(&["gate", "up"])
                .geometry(|p: &FlatParams| Geometry::elements(p.n))
                .flops(|p: &FlatParams| 11.0 * f64::from(p.n))
                .cpu(run)
                .tested(oracle::gelu_mul, oracle::gelu_mul_cases)
                .build(),
        );
    }
    list.push(
        entry("moe_swiglu_fused", "y = gelu(gu[..n]) · gu[n..] (GELU despite the name)")
            .params::<FlatParams>()
            .input("gate_up", F32, "2*n")
            .output("out", F32, "n")
            .may_alias(&["gate_up"])
            .build(),
    );
    let rows: [(&str, DType, CpuFn); 3] = [
        ("moe_swiglu_batch", F32, cpu::gelu_glu::<f32>),
        ("moe_swiglu_seq", F32, cpu::gelu_glu::<f32>),
        ("moe_swiglu_seq_bf16", BF16, cpu::gelu_glu::<bf16>),
    ];
    for (name, dtype, run) in rows {
        let make = if dtype == BF16 { bf16_entry } else { entry };
        let mut builder = make(name, "y = gelu(gate) · up of the two halves of each row (GELU despite the name)").params::<GluParams>();
        if name == "moe_swiglu_batch" {
            builder = builder
                .check(|p: &GluParams| if p.n_tokens <= 1 { Ok(()) } else { Err(format!("n_tokens: got {}, expected 1", p.n_tokens)) });
        }
        list.push(
            builder
                .input("gate_up", dtype, "n_tokens top_k 2*ffn")
                .output("out", dtype, "n_tokens top_k ffn")
                .geometry(|p: &GluParams| Geometry::elements(p.n_tokens.saturating_mul(p.top_k).saturating_mul(p.ffn)))
                .flops(|p: &GluParams| 11.0 * f64::from(p.n_tokens) * f64::from(p.top_k) * f64::from(p.ffn))
                .cpu(run)
                .tested(oracle::gelu_mul, oracle::glu_cases)
                .build(),
        );
    }
    list.push(
        entry("moe_swiglu_seq_backward_f32", "gradient of gelu(gate) · up with respect to both halves")
            .params::<GluParams>()
            .class("f32", "|err| ≤ 1e-5 + 1e-4·|y|")
            .input("gate_up", F32, "n_tokens top_k 2*ffn")
            .input("dout", F32, "n_tokens top_k ffn")
            .output("dgate_up", F32, "n_tokens top_k 2*ffn")
            .may_alias(&["gate_up"])
            .build(),
    );
    list
}

fn combinations() -> Vec<Kernel> {
    let combine = |name: &str, summary: &'static str| {
        entry(name, summary)
            .params::<CombineParams>()
            .geometry(|p: &CombineParams| Geometry::linear(p.n_tokens, 256))
            .flops(|p: &CombineParams| 2.0 * f64::from(p.n_tokens) * f64::from(p.top_k) * f64::from(p.dim))
    };
    let mut list = Vec::new();
    let sums: [(&str, DType, CpuFn); 3] = [
        ("moe_weighted_sum", F32, cpu::combine::<f32>),
        ("moe_weighted_sum_seq", F32, cpu::combine::<f32>),
        ("moe_weighted_sum_seq_bf16_input", BF16, cpu::combine::<bf16>),
    ];
    for (name, dtype, run) in sums {
        let mut builder = combine(name, "out[t] = Σ_j w[t, j] · y[t, j], ascending j");
        if name == "moe_weighted_sum" {
            builder = builder
                .check(|p: &CombineParams| if p.n_tokens <= 1 { Ok(()) } else { Err(format!("n_tokens: got {}, expected 1", p.n_tokens)) });
        }
        list.push(
            builder
                .input("y", dtype, "n_tokens top_k dim")
                .input("weights", F32, "n_tokens top_k")
                .output("out", F32, "n_tokens dim")
                .cpu(run)
                .tested(oracle::combine, oracle::combine_cases)
                .build(),
        );
    }
    list.push(
        combine("moe_weighted_reduce_f32", "out = Σ_j w_j·y_j + σ(shared_logit) · y_shared + residual")
            .input("weights", F32, "n_tokens top_k")
            .input("y", F32, "n_tokens top_k dim")
            .input("shared_logit", F32, "n_tokens")
            .input("y_shared", F32, "n_tokens dim")
            .input("residual", F32, "n_tokens dim")
            .optional()
            .output("out", F32, "n_tokens dim")
            .may_alias(&["residual", "y_shared"])
            .cpu(cpu::combine_shared)
            .tested(oracle::combine, oracle::combine_shared_cases)
            .build(),
    );
    list.push(
        combine("moe_weighted_sum_seq_backward_outputs_f32", "dy[t, j] = w[t, j] · dout[t]")
            .input("weights", F32, "n_tokens top_k")
            .input("dout", F32, "n_tokens dim")
            .output("dy", F32, "n_tokens top_k dim")
            .build(),
    );
    list.push(
        combine("moe_weighted_sum_seq_backward_weights_f32", "dw[t, j] = Σ_d y[t, j, d] · dout[t, d]")
            .input("y", F32, "n_tokens top_k dim")
            .input("dout", F32, "n_tokens dim")
            .output("dweights", F32, "n_tokens top_k")
            .build(),
    );
    list.push(
        entry("zero_buffer", "x = 0")
            .params::<FlatParams>()
            .class("fill", "exact bits")
            .output("out", F32, "n")
            .geometry(|p: &FlatParams| Geometry::elements(p.n))
            .cpu(cpu::zero)
            .tested(oracle::zero, oracle::flat_cases)
            .build(),
    );
    list.push(
        entry("moe_accumulate", "acc += weight · y")
            .params::<AccumulateParams>()
            .check(
                |p: &AccumulateParams| {
                    if p.weight.is_finite() { Ok(()) } else { Err(format!("weight: got {}, expected a finite value", p.weight)) }
                },
            )
            .input("y", F32, "n")
            .in_out("acc", F32, "n")
            .geometry(|p: &AccumulateParams| Geometry::elements(p.n))
            .flops(|p: &AccumulateParams| 2.0 * f64::from(p.n))
            .cpu(cpu::accumulate)
            .tested(oracle::accumulate, oracle::accumulate_cases)
            .build(),
    );
    list.push(
        entry("naive_matvec_f32", "out[n] = Σ_k W[n, k] · x[k]")
            .params::<MatvecParams>()
            .class("f32", "|err| ≤ 1e-5 + 1e-5·|y|")
            .input("weight", F32, "n k")
            .input("x", F32, "k")
            .output("out", F32, "n")
            .build(),
    );
    list
}

//! Gated DeltaNet (Yang et al., 2024): the recurrence, its chunked form, and the convolution, gates and norm around it.
//!
//! ```text
//! S ← αS;  m = S k;  S ← S + β (v - m) kᵀ;  o = S q
//! ```
//! The recurrent kernels take `g ≥ 0` with `α = exp(-g)` and map value head `h` to key head `h mod n_k`; the chunked kernels take
//! `ℓ = -g` and map it to `h / (n_v / n_k)`. Both orders are in use: GGUF files hold value heads in the first.

use crate::DType::{BF16, F32};
use crate::catalogue::{Family, Kernel, KernelBuilder};

crate::params! {
    /// Parameters of kernels over rows.
    pub struct ScanParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        cols: u32,
    }
}

crate::params! {
    /// Parameters of the convolution with state.
    pub struct SsmConvParams {
        /// number of sequences
        n_seqs: u32,
        /// tokens of a sequence
        seq_len: u32,
        /// number of channels
        channels: u32,
        /// taps of a channel, at least 2
        taps: u32,
    }
}

crate::params! {
    /// Parameters of the triangular solve.
    pub struct TriSolveParams {
        /// number of systems
        batch: u32,
        /// rows and columns of the triangle
        n: u32,
        /// right-hand sides
        m: u32,
    }
}

crate::params! {
    /// Parameters of `compute_g_beta_f32`.
    pub struct GBetaParams {
        /// number of tokens
        n_tokens: u32,
        /// value heads
        n_heads: u32,
    }
}

crate::params! {
    /// Parameters of the recurrent kernels.
    pub struct DeltaParams {
        /// number of sequences
        n_seqs: u32,
        /// tokens of a sequence
        seq_len: u32,
        /// key heads
        n_k_heads: u32,
        /// value heads, a multiple of the key heads
        n_v_heads: u32,
        /// width of a key
        k_dim: u32,
        /// width of a value
        v_dim: u32,
        /// 0: key head h mod n_k_heads; 1: key head h / (n_v_heads / n_k_heads)
        block_heads: u32,
        /// factor on the output; 0 stands for 1
        q_scale: f32,
    }
}

crate::params! {
    /// Parameters of the chunked kernels. Chunks have 64 tokens.
    pub struct ChunkParams {
        /// number of sequences
        batch: u32,
        /// tokens of a sequence, a multiple of 64
        seq_len: u32,
        /// key heads
        n_k_heads: u32,
        /// value heads, a multiple of the key heads
        n_v_heads: u32,
        /// width of a key: 64, 128, 192 or 256
        k_dim: u32,
        /// width of a value: 64, 128, 192 or 256
        v_dim: u32,
        /// 0: key head h mod n_k_heads; 1: key head h / (n_v_heads / n_k_heads)
        block_heads: u32,
        /// factor on the output
        scale: f32,
    }
}

crate::params! {
    /// Parameters of `ssm_norm_gate_f32`.
    pub struct NormGateParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        dim: u32,
        /// added to the mean square inside the root
        eps: f32,
    }
}

const EXACT_F32: &str = "|err| ≤ 1e-6 + 1e-5·|y|";

fn entry(name: &str, summary: &'static str) -> KernelBuilder {
    Kernel::builder(name, Family::DeltaNet, summary).class("f32", EXACT_F32)
}

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut list = helpers();
    list.extend(recurrent());
    list.extend(chunked());
    list
}

fn helpers() -> Vec<Kernel> {
    let mut list = Vec::new();
    for (suffix, dtype) in [("f32", F32), ("bf16", BF16)] {
        let named = |base: &str, summary: &'static str| {
            let builder = entry(&format!("{base}_{suffix}"), summary);
            if dtype == BF16 { builder.class("f32, one rounding to bf16", "1 ulp of the rounded f64 result") } else { builder }
        };
        list.push(
            named("cumsum", "y[i] = Σ_{j ≤ i} x[j]")
                .params::<ScanParams>()
                .input("x", dtype, "rows cols")
                .output("out", dtype, "rows cols")
                .may_alias(&["x"])
                .build(),
        );
        let conv = |base: &str, summary: &'static str| {
            let at_least_two =
                |p: &SsmConvParams| if p.taps >= 2 { Ok(()) } else { Err(format!("taps: got {}, expected at least 2", p.taps)) };
            named(base, summary).params::<SsmConvParams>().check(at_least_two)
        };
        list.push(
            conv("ssm_conv_forward", "y = silu(Σ_j w[c, j] · e[t + j, c]), e = state followed by x")
                .input("x", dtype, "n_seqs seq_len channels")
                .input("weight", dtype, "channels taps")
                .input("state", dtype, "n_seqs channels taps-1")
                .output("out", dtype, "n_seqs seq_len channels")
                .build(),
        );
        list.push(
            conv("ssm_conv_state_update", "state = the last K - 1 inputs, oldest first")
                .class("copy", "exact bits")
                .input("x", dtype, "n_seqs seq_len channels")
                .input("state", dtype, "n_seqs channels taps-1")
                .output("next_state", dtype, "n_seqs channels taps-1")
                .build(),
        );
        list.push(
            named("tri_solve_lower_unit", "X = L⁻¹ B, L unit lower triangular, its strict lower part alone read")
                .params::<TriSolveParams>()
                .class("f32", "‖LX - B‖∞ ≤ 1e-4·max(1, ‖B‖∞) in f32, 1e-2 in bf16")
                .input("l", dtype, "batch n n")
                .input("b", dtype, "batch n m")
                .output("x", dtype, "batch n m")
                .may_alias(&["b"])
                .build(),
        );
    }
    list.push(
        entry("compute_g_beta_f32", "g = softplus(a + dt_bias) · (-ssm_a), β = σ(b)")
            .params::<GBetaParams>()
            .input("a_logit", F32, "n_tokens n_heads")
            .input("b_logit", F32, "n_tokens n_heads")
            .input("dt_bias", F32, "n_heads")
            .input("ssm_a", F32, "n_heads")
            .output("g", F32, "n_tokens n_heads")
            .may_alias(&["a_logit"])
            .output("beta", F32, "n_tokens n_heads")
            .may_alias(&["b_logit"])
            .build(),
    );
    list.push(
        entry("ssm_norm_gate_f32", "y = x / sqrt(mean(x²) + eps)·w · silu(z)")
            .params::<NormGateParams>()
            .check(|p: &NormGateParams| {
                if p.eps.is_finite() && p.eps >= 0.0 {
                    Ok(())
                } else {
                    Err(format!("eps: got {}, expected a finite value of at least 0", p.eps))
                }
            })
            .input("x", F32, "rows dim")
            .input("z", F32, "rows dim")
            .input("weight", F32, "dim")
            .output("out", F32, "rows dim")
            .may_alias(&["x", "z"])
            .build(),
    );
    list
}

fn check_heads(n_k_heads: u32, n_v_heads: u32, block_heads: u32) -> Result<(), String> {
    if n_k_heads == 0 || !n_v_heads.is_multiple_of(n_k_heads) {
        return Err(format!("n_v_heads: got {n_v_heads}, expected a multiple of {n_k_heads} key heads"));
    }
    if block_heads > 1 { Err(format!("block_heads: got {block_heads}, expected 0 or 1")) } else { Ok(()) }
}

fn recurrent() -> Vec<Kernel> {
    let names = ["gated_delta_net_f32", "gated_delta_net_decode_f32_1", "gated_delta_net_decode_f32_2", "gated_delta_net_decode_f32_4"];
    let make = |name: &'static str| {
        let suffix = name.strip_prefix("gated_delta_net_decode_f32_").and_then(|s| s.parse::<u32>().ok());
        entry(name, "S = αS + β(v - αSk)kᵀ, o = Sq, token by token")
            .params::<DeltaParams>()
            .class("f32", "|err| ≤ 1e-5 to 32 tokens, 1e-4 to 4096, for unit keys and queries")
            .check(|p: &DeltaParams| check_heads(p.n_k_heads, p.n_v_heads, p.block_heads))
            .check(move |p: &DeltaParams| match suffix {
                Some(lanes) if p.k_dim != 32 * lanes => Err(format!("k_dim: got {}, expected {}", p.k_dim, 32 * lanes)),
                _ if p.k_dim > 256 || p.v_dim > 256 => {
                    Err(format!("k_dim and v_dim: got {} and {}, expected at most 256", p.k_dim, p.v_dim))
                }
                _ => Ok(()),
            })
            .check(
                |p: &DeltaParams| {
                    if p.q_scale.is_finite() { Ok(()) } else { Err(format!("q_scale: got {}, expected a finite value", p.q_scale)) }
                },
            )
            .input("q", F32, "n_seqs seq_len n_k_heads k_dim")
            .input("k", F32, "n_seqs seq_len n_k_heads k_dim")
            .input("v", F32, "n_seqs seq_len n_v_heads v_dim")
            .input("g", F32, "n_seqs seq_len n_v_heads")
            .input("beta", F32, "n_seqs seq_len n_v_heads")
            .input("state_in", F32, "n_seqs n_v_heads v_dim k_dim")
            .output("state_out", F32, "n_seqs n_v_heads v_dim k_dim")
            .may_alias(&["state_in"])
            .output("out", F32, "n_seqs seq_len n_v_heads v_dim")
            .build()
    };
    names.into_iter().map(make).collect()
}

fn chunked() -> Vec<Kernel> {
    let chunk = |name: &str, summary: &'static str| {
        entry(name, summary)
            .params::<ChunkParams>()
            .class(
                "bf16 operands rounded where flash-linear-attention rounds them",
                "f32: 1e-4 + 1e-3·|y|; bf16: 2 ulp on 99.9 %, never worse than 5e-3 + 2e-2·|y|",
            )
            .check(|p: &ChunkParams| check_heads(p.n_k_heads, p.n_v_heads, p.block_heads))
            .check(|p: &ChunkParams| {
                if p.seq_len.is_multiple_of(64) { Ok(()) } else { Err(format!("seq_len: got {}, expected a multiple of 64", p.seq_len)) }
            })
            .check(|p: &ChunkParams| {
                let fits = |d: u32| d.is_multiple_of(64) && d <= 256;
                if fits(p.k_dim) && fits(p.v_dim) {
                    return Ok(());
                }
                Err(format!("k_dim and v_dim: got {} and {}, expected multiples of 64 up to 256", p.k_dim, p.v_dim))
            })
            .check(
                |p: &ChunkParams| {
                    if p.scale.is_finite() { Ok(()) } else { Err(format!("scale: got {}, expected a finite value", p.scale)) }
                },
            )
    };
    const KEYS: &str = "batch seq_len n_k_heads k_dim";
    const VALUES: &str = "batch seq_len n_v_heads v_dim";
    const GATES: &str = "batch seq_len n_v_heads";
    const BLOCKS: &str = "batch seq_len n_v_heads 64";
    const STATE: &str = "batch n_v_heads v_dim k_dim";
    vec![
        chunk("chunk_local_cumsum_g_f32", "G[i] = Σ ℓ[j] from the start of the chunk to i")
            .class("f32", EXACT_F32)
            .input("log_decay", F32, GATES)
            .output("cumulative", F32, GATES)
            .may_alias(&["log_decay"])
            .build(),
        chunk("gated_delta_net_kkt_bf16", "A[i, j] = exp(G_i - G_j) · (β_i k_i) · k_j below the diagonal, else 0")
            .input("k", BF16, KEYS)
            .input("beta", F32, GATES)
            .input("cumulative", F32, GATES)
            .output("a", F32, BLOCKS)
            .build(),
        chunk("chunk_tri_solve_invert_f32", "(I + strict lower triangle of A)⁻¹ of each 64 × 64 block")
            .class("f32", "|err| ≤ 1e-5 for |A_ij| ≤ 0.5")
            .input("a", F32, BLOCKS)
            .output("a_inverse", F32, BLOCKS)
            .may_alias(&["a"])
            .build(),
        chunk("gated_delta_net_recompute_wu_bf16", "u = A⁻¹ (β v), w = A⁻¹ (β k exp(G))")
            .input("k", BF16, KEYS)
            .input("v", BF16, VALUES)
            .input("beta", F32, GATES)
            .input("cumulative", F32, GATES)
            .input("a_inverse", F32, BLOCKS)
            .output("u", BF16, VALUES)
            .output("w", BF16, "batch seq_len n_v_heads k_dim")
            .build(),
        chunk("gated_delta_net_chunk_inter_state_bf16", "S at the start of each chunk, v_new = u - w Sᵀ, and the last S")
            .input("k", BF16, KEYS)
            .input("w", BF16, "batch seq_len n_v_heads k_dim")
            .input("u", BF16, VALUES)
            .input("cumulative", F32, GATES)
            .input("h0", F32, STATE)
            .output("h", BF16, "batch seq_len/64 n_v_heads v_dim k_dim")
            .output("v_new", BF16, VALUES)
            .output("final_state", F32, STATE)
            .may_alias(&["h0"])
            .build(),
        chunk("gated_delta_net_chunk_o_bf16", "o = scale · (exp(G_i) q hᵀ + Σ_{j ≤ i} exp(G_i - G_j)(q · k_j) v_new_j)")
            .input("q", BF16, KEYS)
            .input("k", BF16, KEYS)
            .input("v_new", BF16, VALUES)
            .input("h", BF16, "batch seq_len/64 n_v_heads v_dim k_dim")
            .input("cumulative", F32, GATES)
            .output("out", BF16, VALUES)
            .build(),
    ]
}

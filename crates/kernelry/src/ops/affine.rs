//! Affine-quantised weights (MLX): `w = q·scale + bias` per group along a row, and quantise-dequantise passes.
//!
//! The codes of a row form one little-endian bit stream: code `k` occupies bits `[bits·k, bits·k + bits)`.

use crate::DType::{BF16, F32, U8, U32};
use crate::catalogue::{Family, Kernel, KernelBuilder};

crate::params! {
    /// Parameters of packed-affine products.
    pub struct AffineMatmulParams {
        /// byte offset of the expert's codes (`_expert` only)
        expert_offset: u64,
        /// byte offset of the expert's scales (`_expert` only)
        scales_offset: u64,
        /// byte offset of the expert's biases (`_expert` only)
        biases_offset: u64,
        /// input rows
        m: u32,
        /// outputs of a row
        n: u32,
        /// length of a row
        k: u32,
        /// codes that share a scale and a bias
        group_size: u32,
        /// bits of a code
        bits: u32,
        /// bytes of a packed row
        row_bytes: u32,
        /// experts in the stack; 1 for a plain matrix
        n_experts: u32,
        /// experts of a token; 1 for a plain matrix
        top_k: u32,
    }
}

crate::params! {
    /// Parameters of packed-affine embedding gathers.
    pub struct AffineGatherParams {
        /// number of ids
        n_tokens: u32,
        /// rows of the table
        vocab: u32,
        /// elements of a row
        dim: u32,
        /// codes that share a scale and a bias
        group_size: u32,
    }
}

crate::params! {
    /// Parameters of passes over groups.
    pub struct QdqParams {
        /// number of elements
        n: u32,
        /// elements of a group
        group_size: u32,
        /// number of codes, 2^bits
        n_bins: u32,
    }
}

crate::params! {
    /// Parameters of block quantise-dequantise passes.
    pub struct BlockQdqParams {
        /// number of elements, a multiple of 32
        n: u32,
    }
}

crate::params! {
    /// Parameters of products in the training layout.
    pub struct QmmParams {
        /// input rows
        m: u32,
        /// outputs of a row
        n: u32,
        /// length of a row
        k: u32,
        /// codes that share a scale and a bias
        group_size: u32,
    }
}

fn entry(name: &str, summary: &'static str) -> KernelBuilder {
    Kernel::builder(name, Family::Affine, summary)
}

fn expect(holds: bool, name: &str, got: u32, expected: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{name}: got {got}, expected {expected}")) }
}

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut list = packed();
    list.extend(passes());
    list.extend(training_layout());
    list
}

fn packed() -> Vec<Kernel> {
    const GROUPS: &str = "n_experts n cdiv(k, max(group_size, 1))";
    let product = |name: &str, bits: &'static [u32], summary: &'static str| {
        entry(name, summary)
            .params::<AffineMatmulParams>()
            .check(move |p: &AffineMatmulParams| expect(bits.contains(&p.bits), "bits", p.bits, &format!("one of {bits:?}")))
            .check(|p: &AffineMatmulParams| expect(p.group_size > 0, "group_size", p.group_size, "at least 1"))
            .check(|p: &AffineMatmulParams| {
                let needed = (u64::from(p.k) * u64::from(p.bits)).div_ceil(8);
                expect(u64::from(p.row_bytes) >= needed, "row_bytes", p.row_bytes, &format!("at least {needed}"))
            })
            .check(|p: &AffineMatmulParams| expect((1..=p.n_experts).contains(&p.top_k), "top_k", p.top_k, "1 to the number of experts"))
    };
    const BOTH: (&str, &str) = ("BF-BOTH: weights and activations rounded to bf16", "|err| ≤ 5e-6·Σ|x|·(2^bits - 1)|s| + |b|");
    const ACT: (&str, &str) = ("BF-ACT: activations rounded to bf16", "|err| ≤ 5e-6·Σ|x|·(2^bits - 1)|s| + |b|");
    let finish = |builder: KernelBuilder, dtype| {
        builder
            .input("x", dtype, "m k")
            .input("codes", U8, "n_experts n row_bytes")
            .input("scales", BF16, GROUPS)
            .input("biases", BF16, GROUPS)
            .output("out", dtype, "m n")
            .build()
    };
    let mut list = vec![
        finish(product("quantized_matmul", &[4, 6, 8], "y = x · (q·s + b)ᵀ, packed codes").class(BOTH.0, BOTH.1), F32),
        finish(product("quantized_matmul_simd", &[4, 8], "y = x · (q·s + b)ᵀ, packed codes").class(ACT.0, ACT.1), F32),
        finish(product("quantized_matmul_simd_bf16", &[4, 8], "y = x · (q·s + b)ᵀ, bf16 in and out").class(ACT.0, ACT.1), BF16),
        finish(
            product("quantized_matmul_simd_bf16_expert", &[4, 8], "y = x · (q·s + b)ᵀ of one expert of a stack").class(ACT.0, ACT.1),
            BF16,
        ),
        product("quantized_matmul_id", &[4, 6, 8], "y[t, u] = x[t] · (q·s + b)ᵀ of expert ids[t, u], NaN for an unknown expert")
            .class(BOTH.0, BOTH.1)
            .input("x", F32, "m k")
            .input("codes", U8, "n_experts n row_bytes")
            .input("scales", BF16, GROUPS)
            .input("biases", BF16, GROUPS)
            .input("ids", U32, "m top_k")
            .output("out", F32, "m top_k n")
            .build(),
    ];
    for (name, codes, multiple) in [("embedding_gather_4bit", "vocab dim/2", 8), ("embedding_gather_6bit", "vocab 3*dim/4", 4)] {
        list.push(
            entry(name, "out[i] = q·s + b of row ids[i], zeros beyond the table")
                .params::<AffineGatherParams>()
                .class("f32", "exact")
                .check(move |p: &AffineGatherParams| {
                    expect(p.dim.is_multiple_of(multiple), "dim", p.dim, &format!("a multiple of {multiple}"))
                })
                .check(|p: &AffineGatherParams| {
                    expect(p.group_size > 0 && p.dim.is_multiple_of(p.group_size), "group_size", p.group_size, "a divisor of dim")
                })
                .input("codes", U8, codes)
                .input("scales", BF16, "vocab dim/group_size")
                .input("biases", BF16, "vocab dim/group_size")
                .input("ids", U32, "n_tokens")
                .output("out", F32, "n_tokens dim")
                .build(),
        );
    }
    list
}

fn passes() -> Vec<Kernel> {
    let mut list = Vec::new();
    for (name, summary) in
        [("qdq_q4_0_f32", "x quantised to Q4_0 blocks and back"), ("qdq_q8_0_f32", "x quantised to Q8_0 blocks and back")]
    {
        list.push(
            entry(name, summary)
                .params::<BlockQdqParams>()
                .class("f32, separate roundings", "exact")
                .check(|p: &BlockQdqParams| expect(p.n.is_multiple_of(32), "n", p.n, "a multiple of 32"))
                .input("x", F32, "n")
                .output("out", F32, "n")
                .may_alias(&["x"])
                .build(),
        );
    }
    let group = |name: &str, summary: &'static str| {
        entry(name, summary)
            .params::<QdqParams>()
            .class("f32", "|err| ≤ 2e-6·Σ|terms|")
            .check(|p: &QdqParams| {
                let fits = p.group_size.is_power_of_two() && (2..=1024).contains(&p.group_size);
                expect(fits, "group_size", p.group_size, "a power of two from 2 to 1024")
            })
            .check(|p: &QdqParams| expect(p.group_size > 0 && p.n.is_multiple_of(p.group_size), "n", p.n, "a multiple of group_size"))
    };
    list.push(
        group("qdq_affine_init_f32", "s = (max - min) / (n_bins - 1), b = min, q = round((w - b) / s) of each group")
            .class("f32", "exact")
            .check(|p: &QdqParams| expect((2..=256).contains(&p.n_bins), "n_bins", p.n_bins, "2 to 256"))
            .input("w", F32, "n")
            .output("scales", F32, "n/group_size")
            .output("biases", F32, "n/group_size")
            .output("codes", U8, "n")
            .build(),
    );
    list.push(
        group("qdq_affine_forward_f32", "y = q·s + b")
            .class("f32", "1 ulp of the larger of |q·s| and |b|")
            .input("codes", U8, "n")
            .input("scales", F32, "n/group_size")
            .input("biases", F32, "n/group_size")
            .output("out", F32, "n")
            .build(),
    );
    list.push(
        group("qdq_affine_backward_scales_f32", "ds = Σ q·dy over a group")
            .input("codes", U8, "n")
            .input("dy", F32, "n")
            .output("dscales", F32, "n/group_size")
            .build(),
    );
    list.push(
        group("qdq_affine_backward_biases_f32", "db = Σ dy over a group")
            .input("dy", F32, "n")
            .output("dbiases", F32, "n/group_size")
            .build(),
    );
    list
}

fn training_layout() -> Vec<Kernel> {
    let names = [
        ("qmm_affine_t_f32", 0),
        ("qmm_affine_t_f32_tiled", 32),
        ("qmm_affine_t_f32_simd", 32),
        ("qmm_affine_t_f32_simd4", 32),
        ("qmm_affine_t_f32_simd4_gs64", 64),
        ("qmm_affine_t_packed_simd4_b4", 32),
    ];
    let make = |(name, group): (&'static str, u32)| {
        let codes = if name.contains("packed") { "n k/2" } else { "n k" };
        entry(name, "y = x · (q·s + b)ᵀ, f32 scales and biases")
            .params::<QmmParams>()
            .class("F32", "|err| ≤ 5e-6·Σ|x|·((2^bits - 1)|s| + |b|)")
            .check(move |p: &QmmParams| {
                let fits =
                    if group == 0 { p.group_size.is_power_of_two() && (2..=1024).contains(&p.group_size) } else { p.group_size == group };
                let expected = if group == 0 { "a power of two from 2 to 1024".to_owned() } else { group.to_string() };
                expect(fits, "group_size", p.group_size, &expected)
            })
            .check(|p: &QmmParams| expect(p.group_size > 0 && p.k.is_multiple_of(p.group_size), "k", p.k, "a multiple of group_size"))
            .flops(|p: &QmmParams| 2.0 * f64::from(p.m) * f64::from(p.n) * f64::from(p.k))
            .input("x", F32, "m k")
            .input("codes", U8, codes)
            .input("scales", F32, "n k/group_size")
            .input("biases", F32, "n k/group_size")
            .output("out", F32, "m n")
            .build()
    };
    names.into_iter().map(make).collect()
}

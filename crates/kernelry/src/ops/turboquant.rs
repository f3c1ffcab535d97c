//! Key and value caches rotated by a randomised Hadamard transform and quantised by codebook.
//!
//! `R x = H (S x) / √D` with fixed signs `S` and the Sylvester matrix `H`; a row is stored as codebook indices of `R x` scaled to unit
//! variance, with its norm (one for D = 256, one a half for D = 512).

use crate::DType::{F16, F32, U8};
use crate::catalogue::{Family, Kernel, KernelBuilder, StepU32};
use crate::registry::{ConstantType, ConstantValue};

crate::params! {
    /// Parameters of the Walsh-Hadamard kernels.
    pub struct FwhtParams {
        /// number of rows
        n_rows: u32,
        /// elements of a row
        head_dim: u32,
    }
}

crate::params! {
    /// Parameters of the encoders.
    pub struct EncodeParams {
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a row
        head_dim: u32,
        /// allocated positions
        cache_capacity: u32,
        /// bits of an index: 4, 5, 6 or 8
        codebook_bits: u32,
        /// 1: the slot is taken modulo the capacity
        is_sliding: u32,
        /// scale of D = 512 rows on encode and decode
        scale_factor_d512: f32,
        /// position to write
        write_pos: StepU32,
    }
}

crate::params! {
    /// Parameters of the decoders.
    pub struct DecodeParams {
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a row
        head_dim: u32,
        /// allocated positions
        cache_capacity: u32,
        /// bits of an index: 4, 5, 6 or 8
        codebook_bits: u32,
        /// positions to read
        n_tokens: u32,
        /// scale of D = 512 rows on encode and decode
        scale_factor_d512: f32,
        /// first position to read
        start_pos: StepU32,
    }
}

crate::params! {
    /// Parameters of decode attention over compressed caches.
    pub struct TqAttentionParams {
        /// query heads
        n_heads: u32,
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a row
        head_dim: u32,
        /// allocated positions
        kv_capacity: u32,
        /// 0 or 1: all valid keys, 2: the newest of the window
        mask_type: u32,
        /// keys of the window; 0 for no window
        sliding_window: u32,
        /// partitions of the keys
        nwg: u32,
        /// sub-groups of a partition
        nsg: u32,
        /// bits of an index: 5, 6 or 8
        codebook_bits: u32,
        /// 1: the kernel rotates the query itself
        fuse_fwht_pre: u32,
        /// factor on the scores
        scale: f32,
        /// scores are capped at this by tanh; 0 for no cap
        softcap: f32,
        /// scale of D = 512 rows on encode and decode
        scale_factor_d512: f32,
        /// always 0
        reserved: u32,
        /// valid positions
        kv_seq_len: StepU32,
        /// slot of the oldest position
        ring_start: StepU32,
    }
}

crate::params! {
    /// Parameters of the merge of partial results that also rotates back.
    pub struct TqReduceParams {
        /// rows of partial results
        n_rows: u32,
        /// elements of a row
        head_dim: u32,
        /// partitions
        nwg: u32,
    }
}

const NORMS: &str = "n_kv_heads cache_capacity head_dim/256";

fn entry(name: &str, summary: &'static str) -> KernelBuilder {
    Kernel::builder(name, Family::Turboquant, summary)
}

fn expect(holds: bool, name: &str, got: u32, expected: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{name}: got {got}, expected {expected}")) }
}

fn scale_factor(v: f32) -> Result<(), String> {
    if v.is_finite() && v > 0.0 { Ok(()) } else { Err(format!("scale_factor_d512: got {v}, expected a finite value above 0")) }
}

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut list = Vec::new();
    for dim in [256u32, 512] {
        list.extend(rotations(dim));
        list.extend(encoders(dim));
        list.extend(attention(dim));
    }
    list.extend(decoders());
    list
}

fn rotations(dim: u32) -> Vec<Kernel> {
    let bases = [
        ("fwht_standalone_f32", "y = H x / √D"),
        ("fwht_sign_premult_f32", "y = H (S x) / √D"),
        ("fwht_sign_undo_f32", "y = S (H x) / √D"),
    ];
    let make = |(base, summary): (&str, &'static str)| {
        entry(&format!("{base}_d{dim}"), summary)
            .params::<FwhtParams>()
            .class("f32", "|err| ≤ 2e-6·‖x‖")
            .noop_if_zero("n_rows")
            .check(move |p: &FwhtParams| expect(p.head_dim == dim, "head_dim", p.head_dim, &dim.to_string()))
            .in_out("x", F32, "n_rows head_dim")
            .build()
    };
    bases.into_iter().map(make).collect()
}

fn encoders(dim: u32) -> Vec<Kernel> {
    let encoder = |base: &str, bits: &'static [u32], summary: &'static str| {
        entry(&format!("{base}_d{dim}"), summary)
            .params::<EncodeParams>()
            .class("f32", "norms 2e-6 relative, indices exact but for values within 1e-5·(1 + |u|) of a boundary")
            .check(move |p: &EncodeParams| expect(p.head_dim == dim, "head_dim", p.head_dim, &dim.to_string()))
            .check(move |p: &EncodeParams| {
                expect(bits.contains(&p.codebook_bits), "codebook_bits", p.codebook_bits, &format!("one of {bits:?}"))
            })
            .check(|p: &EncodeParams| expect(p.is_sliding <= 1, "is_sliding", p.is_sliding, "0 or 1"))
            .check(|p: &EncodeParams| scale_factor(p.scale_factor_d512))
            .check(|p: &EncodeParams| {
                let inside = p.is_sliding == 1 || p.write_pos.max() < p.cache_capacity;
                expect(inside, "write_pos", p.write_pos.max(), &format!("less than {}", p.cache_capacity))
            })
    };
    const NIBBLES: &str = "n_kv_heads cache_capacity head_dim/2";
    const BYTES: &str = "n_kv_heads cache_capacity head_dim";
    const ROW: &str = "n_kv_heads head_dim";
    let one = |b: KernelBuilder, shape| b.input("src", F32, ROW).in_out("packed", U8, shape).in_out("norms", F32, NORMS).build();
    let dual = |b: KernelBuilder, shape| {
        b.input("k", F32, ROW)
            .input("v", F32, ROW)
            .in_out("k_packed", U8, shape)
            .in_out("k_norms", F32, NORMS)
            .in_out("v_packed", U8, shape)
            .in_out("v_norms", F32, NORMS)
            .build()
    };
    let fast = "index of each coordinate of R x, two in a byte";
    let wide = "index of each coordinate of R x, one in a byte";
    let raw = "index of each coordinate of x, which is not rotated";
    vec![
        one(encoder("hadamard_quantize_kv_fast", &[4], fast), NIBBLES),
        dual(encoder("hadamard_quantize_kv_fast_dual", &[4], fast), NIBBLES),
        one(encoder("hadamard_quantize_kv_hb", &[5, 6, 8], wide), BYTES),
        dual(encoder("hadamard_quantize_kv_hb_dual", &[5, 6, 8], wide), BYTES),
        one(encoder("kv_quantize_v_no_fwht", &[5, 6, 8], raw), BYTES),
        encoder("kv_copy_kf16_quantize_v_no_fwht", &[5, 6, 8], "k to f16, v to indices without rotation")
            .input("k", F32, ROW)
            .input("v", F32, ROW)
            .in_out("k_cache", F16, BYTES)
            .in_out("v_packed", U8, BYTES)
            .in_out("v_norms", F32, NORMS)
            .build(),
    ]
}

fn decoders() -> Vec<Kernel> {
    let decoder = |name: &'static str, bits: &'static [u32], packed: &'static str| {
        entry(name, "y = codebook[index] · σ, in the domain in which it was stored")
            .params::<DecodeParams>()
            .class("f32", "|err| ≤ 1e-6·|y|")
            .noop_if_zero("n_tokens")
            .check(|p: &DecodeParams| expect(matches!(p.head_dim, 256 | 512), "head_dim", p.head_dim, "256 or 512"))
            .check(move |p: &DecodeParams| {
                expect(bits.contains(&p.codebook_bits), "codebook_bits", p.codebook_bits, &format!("one of {bits:?}"))
            })
            .check(move |p: &DecodeParams| expect(name.ends_with("_seq") || p.n_tokens == 1, "n_tokens", p.n_tokens, "1"))
            .check(|p: &DecodeParams| scale_factor(p.scale_factor_d512))
            .check(|p: &DecodeParams| {
                let end = u64::from(p.start_pos.max()) + u64::from(p.n_tokens);
                expect(
                    end <= u64::from(p.cache_capacity),
                    "start_pos",
                    p.start_pos.max(),
                    &format!("room for {} in {}", p.n_tokens, p.cache_capacity),
                )
            })
            .input("packed", U8, packed)
            .input("norms", F32, NORMS)
            .output("out", F32, "n_kv_heads n_tokens head_dim")
            .build()
    };
    vec![
        decoder("tq_dequantize_kv", &[4], "n_kv_heads cache_capacity head_dim/2"),
        decoder("tq_dequantize_hb_kv", &[5, 6, 8], "n_kv_heads cache_capacity head_dim"),
        decoder("tq_dequantize_hb_kv_seq", &[5, 6, 8], "n_kv_heads cache_capacity head_dim"),
    ]
}

fn attention(dim: u32) -> Vec<Kernel> {
    const CACHE: &str = "n_kv_heads kv_capacity head_dim";
    const CACHE_NORMS: &str = "n_kv_heads kv_capacity head_dim/256";
    let attend = |base: &str, summary: &'static str| {
        entry(&format!("{base}_dk{dim}"), summary)
            .params::<TqAttentionParams>()
            .class("f32", "NRMSE ≤ 5e-3 against attention over the decoded caches")
            .check(move |p: &TqAttentionParams| expect(p.head_dim == dim, "head_dim", p.head_dim, &dim.to_string()))
            .check(|p: &TqAttentionParams| {
                expect(p.n_kv_heads > 0 && p.n_heads.is_multiple_of(p.n_kv_heads), "n_heads", p.n_heads, "a multiple of n_kv_heads")
            })
            .check(|p: &TqAttentionParams| expect(matches!(p.codebook_bits, 5 | 6 | 8), "codebook_bits", p.codebook_bits, "5, 6 or 8"))
            .check(|p: &TqAttentionParams| expect((1..=32).contains(&p.nwg), "nwg", p.nwg, "1 to 32"))
            .check(|p: &TqAttentionParams| expect(matches!(p.nsg, 1 | 2 | 4), "nsg", p.nsg, "1, 2 or 4"))
            .check(|p: &TqAttentionParams| expect(p.mask_type <= 2, "mask_type", p.mask_type, "0, 1 or 2"))
            .check(|p: &TqAttentionParams| scale_factor(p.scale_factor_d512))
            .check(|p: &TqAttentionParams| {
                let valid = (1..=p.kv_capacity).contains(&p.kv_seq_len.max());
                expect(valid, "kv_seq_len", p.kv_seq_len.max(), &format!("1 to {}", p.kv_capacity))
            })
            .check(|p: &TqAttentionParams| {
                expect(p.ring_start.max() < p.kv_capacity, "ring_start", p.ring_start.max(), &format!("less than {}", p.kv_capacity))
            })
            .constant(50, "codebook_bits", ConstantType::I32, Some(ConstantValue::I32(8)))
    };
    const PARTIAL: &str = "n_heads nwg head_dim+2";
    vec![
        attend("flash_attn_vec_tq_hb", "partial softmax(q kᵀ · scale) v over codebook keys and values")
            .check(|p: &TqAttentionParams| expect(p.fuse_fwht_pre <= 1, "fuse_fwht_pre", p.fuse_fwht_pre, "0 or 1"))
            .input("q", F32, "n_heads head_dim")
            .input("k_packed", U8, CACHE)
            .input("k_norms", F32, CACHE_NORMS)
            .input("v_packed", U8, CACHE)
            .input("v_norms", F32, CACHE_NORMS)
            .output("partial", F32, PARTIAL)
            .build(),
        attend("flash_attn_vec_hybrid", "partial softmax(q kᵀ · scale) v over f16 keys and codebook values")
            .check(|p: &TqAttentionParams| expect(p.fuse_fwht_pre == 0, "fuse_fwht_pre", p.fuse_fwht_pre, "0"))
            .constant(51, "v_is_f16", ConstantType::I32, Some(ConstantValue::I32(0)))
            .input("q", F32, "n_heads head_dim")
            .input("k", F16, CACHE)
            .input("v_packed", U8, CACHE)
            .input("v_norms", F32, CACHE_NORMS)
            .output("partial", F32, PARTIAL)
            .build(),
        entry(&format!("flash_attn_vec_reduce_tq_hb_undo_dk{dim}"), "out = S (H merged / √D) of partial results")
            .params::<TqReduceParams>()
            .class("f32", "|err| ≤ 1e-5")
            .check(move |p: &TqReduceParams| expect(p.head_dim == dim, "head_dim", p.head_dim, &dim.to_string()))
            .check(|p: &TqReduceParams| expect((1..=32).contains(&p.nwg), "nwg", p.nwg, "1 to 32"))
            .input("partial", F32, "n_rows nwg head_dim+2")
            .output("out", F32, "n_rows head_dim")
            .build(),
    ]
}

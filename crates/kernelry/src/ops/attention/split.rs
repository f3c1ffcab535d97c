//! Decode attention whose keys are dealt out to partitions, and the kernels that merge the partitions.
//!
//! A partition leaves `o`, not normalised, relative to its maximum `m`, and the sum `l` of its weights. For row `rho = i · n_heads + h`,
//! four elements `v` of the head, element `c` of them and partition `g`, `o` is at `((rho · head_dim/4 + v) · nwg + g) · 4 + c`; then, from
//! `rows · head_dim · nwg` on, `l` at `rho · 2 · nwg + 2 g` and `m` behind it.

use super::{check_floats, check_heads, check_keys, check_queries, product};
use crate::DType;
use crate::catalogue::{Family, Geometry, Kernel, StepU32};

crate::params! {
    /// Parameters of decode attention in partitions.
    pub struct FlashAttnVecParams {
        /// query heads
        n_heads: u32,
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a head, those of the name
        head_dim: u32,
        /// slots of a KV head
        kv_capacity: u32,
        /// queries, which are the last tokens of the cache
        seq_len: u32,
        /// 0 all keys, 1 causal, 2 causal and windowed
        mask_type: u32,
        /// keys attended with mask type 2, the query's own included; 0 for all
        sliding_window: u32,
        /// partitions, 1 to 32; 1 writes the result itself
        nwg: u32,
        /// factor of the scores
        scale: f32,
        /// scores become softcap · tanh(score / softcap); 0 for none
        softcap: f32,
        /// valid keys
        kv_seq_len: StepU32,
    }
}

crate::params! {
    /// Parameters of decode attention of one token over a ring.
    pub struct FlashAttnRingParams {
        /// query heads
        n_heads: u32,
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a head, those of the name
        head_dim: u32,
        /// slots of a KV head
        kv_capacity: u32,
        /// 0 or 1 all keys, 2 windowed
        mask_type: u32,
        /// newest keys attended with mask type 2; 0 for all
        sliding_window: u32,
        /// factor of the scores
        scale: f32,
        /// valid keys
        kv_seq_len: StepU32,
        /// slot of the oldest key: 0 unless the ring is full
        ring_start: StepU32,
    }
}

crate::params! {
    /// Parameters of the merge of partitions.
    pub struct FlashAttnReduceParams {
        /// query rows
        rows: u32,
        /// partitions, 1 to 32
        nwg: u32,
    }
}

fn check_dim(got: u32, expected: u32) -> Result<(), String> {
    if got == expected { Ok(()) } else { Err(format!("head_dim: got {got}, expected {expected}")) }
}

fn check_partitions(nwg: u32) -> Result<(), String> {
    if (1..=32).contains(&nwg) { Ok(()) } else { Err(format!("nwg: got {nwg}, expected 1 to 32")) }
}

fn check_mask(mask_type: u32) -> Result<(), String> {
    if mask_type <= 2 { Ok(()) } else { Err(format!("mask_type: got {mask_type}, expected 0, 1 or 2")) }
}

fn main_entry(name: &'static str, dim: u32, cache: DType) -> Kernel {
    Kernel::builder(name, Family::Attention, "partition g of: o = softmax(softcap(scale · q kᵀ)) v; blocks of 32 keys dealt round")
        .params::<FlashAttnVecParams>()
        .input("q", DType::F32, "n_heads seq_len head_dim")
        .input("k", cache, "n_kv_heads kv_capacity head_dim")
        .input("v", cache, "n_kv_heads kv_capacity head_dim")
        .output("out", DType::F32, "seq_len n_heads head_dim")
        .optional()
        .output("partial", DType::F32, "seq_len*n_heads*nwg*(head_dim+2)")
        .optional()
        .check(move |p: &FlashAttnVecParams| {
            check_heads(p.n_heads, p.n_kv_heads, p.head_dim, 1)?;
            check_dim(p.head_dim, dim)?;
            check_keys(p.kv_seq_len.max(), p.kv_capacity)?;
            check_queries(p.seq_len, p.kv_seq_len.max())?;
            check_mask(p.mask_type)?;
            check_partitions(p.nwg)?;
            check_floats(p.scale, p.softcap)
        })
        .class("f32 accumulation; queries may be rounded to f16", "|err| ≤ 1e-2, and 1e-4·max|v| against queries rounded alike")
        .flops(|p: &FlashAttnVecParams| 4.0 * product(&[p.seq_len, p.n_heads, p.head_dim, p.kv_seq_len.max()]))
        .bytes(move |p: &FlashAttnVecParams| {
            2.0 * product(&[p.n_kv_heads, p.head_dim, p.kv_seq_len.max()]) * cache.size() as f64
                + 8.0 * product(&[p.seq_len, p.n_heads, p.head_dim])
        })
        .geometry(|p: &FlashAttnVecParams| Geometry { groups: [p.seq_len, p.n_heads, p.nwg], threads: [32, 1, 1] })
        .build()
}

fn reduce_entry(name: &'static str, dim: u32, only_32: bool) -> Kernel {
    let (partial, out) = if dim == 256 { ("rows*nwg*258", "rows 256") } else { ("rows*nwg*514", "rows 512") };
    Kernel::builder(name, Family::Attention, "out = Σ_g w_g o_g / Σ_g w_g l_g, w_g = exp(m_g − max m); zero where no key was attended")
        .params::<FlashAttnReduceParams>()
        .input("partial", DType::F32, partial)
        .output("out", DType::F32, out)
        .check(move |p: &FlashAttnReduceParams| {
            if only_32 && p.nwg != 32 {
                return Err(format!("nwg: got {}, expected 32", p.nwg));
            }
            check_partitions(p.nwg)
        })
        .class("f32", "relative 1e-6")
        .flops(move |p: &FlashAttnReduceParams| 2.0 * product(&[p.rows, p.nwg, dim]))
        .geometry(|p: &FlashAttnReduceParams| Geometry::linear(p.rows, 32 * p.nwg.clamp(1, 32)))
        .build()
}

fn ring_entry(name: &'static str, partitions: u32) -> Kernel {
    let entry = Kernel::builder(name, Family::Attention, "o = softmax(scale · q kᵀ) v of one token over an f16 ring")
        .params::<FlashAttnRingParams>()
        .input("q", DType::F32, "n_heads head_dim")
        .input("k", DType::F16, "n_kv_heads kv_capacity head_dim")
        .input("v", DType::F16, "n_kv_heads kv_capacity head_dim")
        .check(|p: &FlashAttnRingParams| {
            check_heads(p.n_heads, p.n_kv_heads, p.head_dim, 1)?;
            check_dim(p.head_dim, 256)?;
            check_keys(p.kv_seq_len.max(), p.kv_capacity)?;
            check_mask(p.mask_type)?;
            let start = p.ring_start.max();
            // A slot that comes from the step buffer is known by its bound alone.
            let partial = p.kv_seq_len.slot().is_none() && p.ring_start.slot().is_none() && p.kv_seq_len.max() < p.kv_capacity;
            if start >= p.kv_capacity || (partial && start != 0) {
                let expected = if partial { "0 for a ring that is not full".to_owned() } else { format!("less than {}", p.kv_capacity) };
                return Err(format!("ring_start: got {start}, expected {expected}"));
            }
            check_floats(p.scale, 0.0)
        })
        .class("f32 accumulation; queries may be rounded to f16", "|err| ≤ 1e-2, and 1e-4·max|v| against queries rounded alike")
        .flops(|p: &FlashAttnRingParams| 4.0 * product(&[p.n_heads, p.head_dim, p.kv_seq_len.max()]))
        .bytes(|p: &FlashAttnRingParams| {
            4.0 * product(&[p.n_kv_heads, p.head_dim, p.kv_seq_len.max()]) + 8.0 * product(&[p.n_heads, p.head_dim])
        })
        .geometry(move |p: &FlashAttnRingParams| Geometry { groups: [1, p.n_heads, partitions], threads: [32, 1, 1] });
    if partitions == 1 {
        entry.output("out", DType::F32, "n_heads head_dim").build()
    } else {
        entry.output("partial", DType::F32, "n_heads*32*(head_dim+2)").build()
    }
}

/// Catalogue entries of attention in partitions.
pub(super) fn kernels() -> Vec<Kernel> {
    vec![
        main_entry("flash_attn_vec_dk256", 256, DType::F32),
        main_entry("flash_attn_vec_dk512", 512, DType::F32),
        main_entry("flash_attn_vec_f16kv_dk256", 256, DType::F16),
        main_entry("flash_attn_vec_f16kv_dk512", 512, DType::F16),
        reduce_entry("flash_attn_vec_reduce_dk256", 256, false),
        reduce_entry("flash_attn_vec_reduce_dk512", 512, false),
        ring_entry("flash_attn_vec_peer_port_f16_dk256_dv256", 1),
        ring_entry("flash_attn_vec_peer_port_f16_nwg32_dk256_dv256", 32),
        reduce_entry("flash_attn_vec_peer_port_f16_reduce_dv256_nwg32", 256, true),
    ]
}

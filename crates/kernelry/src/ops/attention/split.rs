//! Decode attention whose keys are dealt out to partitions, and the kernels that merge the partitions.
//!
//! A partition leaves `o`, not normalised, relative to its maximum `m`, and the sum `l` of its weights. For row `rho = i · n_heads + h`,
//! four elements `v` of the head, element `c` of them and partition `g`, `o` is at `((rho · head_dim/4 + v) · nwg + g) · 4 + c`; then, from
//! `rows · head_dim · nwg` on, `l` at `rho · 2 · nwg + 2 g` and `m` behind it.

use half::{bf16, f16};

use super::{
    Attention, AttentionDecodeParams, DECODE, DECODE_HEADS, check_floats, check_heads, check_keys, check_queries, head_blocks, product,
};
use crate::DType::{self, BF16, F16, F32};
use crate::backend::cpu::{CpuFn, attention as cpu};
use crate::catalogue::{Family, Geometry, Kernel, StepU32, Text};
use crate::conformance::attention::split as oracle;
use crate::{Encoder, Result, kernel_text};

const MMA: Text = kernel_text!("attention/decode_mma.h");
/// Query heads of a block that decodes on the matrix unit.
const MMA_HEADS: u32 = 8;
/// Most partitions: 32 for wide heads, as the interface of these kernels has it, and for narrow ones as many as keep a GPU busy with few KV heads.
const fn most_partitions(head_dim: u32) -> u32 {
    if head_dim < 256 { 128 } else { 32 }
}

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
        /// partitions, 1 to 128, to 32 for heads of 256 and 512; 1 writes the result itself
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
        /// partitions, 1 to 128, to 32 for heads of 256 and 512
        nwg: u32,
    }
}

/// Blocks that keep the memory of a unit busy.
const BLOCKS_OF_UNIT: u32 = 2;
/// Fewest keys that are worth a partition.
const KEYS_OF_PARTITION: u32 = 128;

/// The main kernel and the merge for single tokens of these heads, if there are such.
fn pair(head_dim: u32, cache: DType) -> Option<(&'static str, &'static str)> {
    let &(main, ..) = MAINS.iter().find(|(_, dim, dtype, _)| (*dim, *dtype) == (head_dim, cache))?;
    let &(merge, ..) = REDUCES.iter().find(|(_, dim, only_32, _)| *dim == head_dim && !only_32)?;
    Some((main, merge))
}

/// Partitions for one token. They follow from the capacity, not from the keys in it, so that a recorded step, which may have any number of
/// keys, gives what the same step gives when it is encoded anew.
fn partitions(units: u32, blocks: u32, kv_capacity: u32, head_dim: u32) -> u32 {
    (units * BLOCKS_OF_UNIT / blocks.max(1)).min(kv_capacity / KEYS_OF_PARTITION).clamp(1, most_partitions(head_dim))
}

/// Records a single token in partitions, or nothing (false) where one pass does as well.
pub(super) fn encode(op: &Attention<'_>, p: &AttentionDecodeParams, encoder: &mut Encoder) -> Result<bool> {
    let info = encoder.context().device().info();
    let cache = op.k.dtype();
    let Some((main, merge)) = pair(p.head_dim, cache).filter(|_| info.backend != "cpu") else { return Ok(false) };
    let nwg = partitions(info.units, head_blocks(p.n_heads, p.n_kv_heads, block(cache).1), p.kv_capacity, p.head_dim);
    if nwg == 1 {
        return Ok(false);
    }
    let &AttentionDecodeParams { n_heads, n_kv_heads, head_dim, kv_capacity, window, scale, softcap, kv_seq_len } = p;
    let mask_type = if window == 0 { 1 } else { 2 };
    let params = FlashAttnVecParams {
        n_heads,
        n_kv_heads,
        head_dim,
        kv_capacity,
        seq_len: 1,
        mask_type,
        sliding_window: window,
        nwg,
        scale,
        softcap,
        kv_seq_len,
    };
    let partial = encoder.scratch(n_heads as usize * nwg as usize * (head_dim as usize + 2))?;
    encoder.launch(main, &[Some(op.q), Some(op.k), Some(op.v), None, Some(&partial)], &params)?;
    encoder.launch(merge, &[Some(&partial), Some(op.out)], &FlashAttnReduceParams { rows: n_heads, nwg })?;
    Ok(true)
}

/// Text, query heads of a block and its threads.
fn block(cache: DType) -> (Text, u32, u32) {
    if cache == DType::F32 { (DECODE, DECODE_HEADS, 256) } else { (MMA, MMA_HEADS, 128) }
}

fn check_dim(got: u32, expected: u32) -> Result<(), String> {
    if got == expected { Ok(()) } else { Err(format!("head_dim: got {got}, expected {expected}")) }
}

fn check_partitions(nwg: u32, head_dim: u32) -> Result<(), String> {
    let most = most_partitions(head_dim);
    if (1..=most).contains(&nwg) { Ok(()) } else { Err(format!("nwg: got {nwg}, expected 1 to {most}")) }
}

fn check_mask(mask_type: u32) -> Result<(), String> {
    if mask_type <= 2 { Ok(()) } else { Err(format!("mask_type: got {mask_type}, expected 0, 1 or 2")) }
}

fn main_entry(name: &'static str, dim: u32, cache: DType, line: &'static str) -> Kernel {
    let run: CpuFn = match cache {
        DType::F32 => cpu::partitions::<f32>,
        DType::F16 => cpu::partitions::<f16>,
        _ => cpu::partitions::<bf16>,
    };
    let (text, heads, threads) = block(cache);
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
            check_partitions(p.nwg, dim)?;
            check_floats(p.scale, p.softcap)
        })
        .class("f32 accumulation; queries may be rounded to f16", "|err| ≤ 1e-2, and 1e-4·max|v| against queries rounded alike")
        .flops(|p: &FlashAttnVecParams| 4.0 * product(&[p.seq_len, p.n_heads, p.head_dim, p.kv_seq_len.max()]))
        .bytes(move |p: &FlashAttnVecParams| {
            2.0 * product(&[p.n_kv_heads, p.head_dim, p.kv_seq_len.max()]) * cache.size() as f64
                + 8.0 * product(&[p.seq_len, p.n_heads, p.head_dim])
        })
        .geometry(move |p: &FlashAttnVecParams| Geometry {
            groups: [p.seq_len, head_blocks(p.n_heads, p.n_kv_heads, heads), p.nwg],
            threads: [threads, 1, 1],
        })
        .cpu(run)
        .text(text, line)
        .tested(oracle::partitions, oracle::partition_cases)
        .build()
}

fn reduce_entry(name: &'static str, dim: u32, only_32: bool, line: &'static str) -> Kernel {
    let (partial, out, run): (_, _, CpuFn) = match dim {
        64 => ("rows*nwg*66", "rows 64", cpu::reduce::<64>),
        80 => ("rows*nwg*82", "rows 80", cpu::reduce::<80>),
        96 => ("rows*nwg*98", "rows 96", cpu::reduce::<96>),
        128 => ("rows*nwg*130", "rows 128", cpu::reduce::<128>),
        256 => ("rows*nwg*258", "rows 256", cpu::reduce::<256>),
        _ => ("rows*nwg*514", "rows 512", cpu::reduce::<512>),
    };
    Kernel::builder(name, Family::Attention, "out = Σ_g w_g o_g / Σ_g w_g l_g, w_g = exp(m_g − max m); zero where no key was attended")
        .params::<FlashAttnReduceParams>()
        .input("partial", DType::F32, partial)
        .output("out", DType::F32, out)
        .check(move |p: &FlashAttnReduceParams| {
            if only_32 && p.nwg != 32 {
                return Err(format!("nwg: got {}, expected 32", p.nwg));
            }
            check_partitions(p.nwg, dim)
        })
        .class("f32", "relative 1e-6")
        .flops(move |p: &FlashAttnReduceParams| 2.0 * product(&[p.rows, p.nwg, dim]))
        // Four elements a warp.
        .geometry(move |p: &FlashAttnReduceParams| Geometry::linear(p.rows.saturating_mul(dim / 4).div_ceil(8).min(1 << 20), 256))
        .cpu(run)
        .text(DECODE, line)
        .tested(oracle::reduce, oracle::reduce_cases)
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

/// Name, elements of a head, dtype of the cache, instance.
const MAINS: [(&str, u32, DType, &str); 18] = [
    ("flash_attn_vec_dk64", 64, F32, "FLASH_ATTN_VEC(flash_attn_vec_dk64, float, 64)\n"),
    ("flash_attn_vec_dk80", 80, F32, "FLASH_ATTN_VEC(flash_attn_vec_dk80, float, 128)\n"),
    ("flash_attn_vec_dk96", 96, F32, "FLASH_ATTN_VEC(flash_attn_vec_dk96, float, 128)\n"),
    ("flash_attn_vec_dk128", 128, F32, "FLASH_ATTN_VEC(flash_attn_vec_dk128, float, 128)\n"),
    ("flash_attn_vec_dk256", 256, F32, "FLASH_ATTN_VEC(flash_attn_vec_dk256, float, 256)\n"),
    ("flash_attn_vec_dk512", 512, F32, "FLASH_ATTN_VEC(flash_attn_vec_dk512, float, 512)\n"),
    ("flash_attn_vec_f16kv_dk64", 64, F16, "FLASH_ATTN_VEC_MMA(flash_attn_vec_f16kv_dk64, kn_f16, 64)\n"),
    ("flash_attn_vec_f16kv_dk80", 80, F16, "FLASH_ATTN_VEC_MMA_DEEP(flash_attn_vec_f16kv_dk80, kn_f16, 80)\n"),
    ("flash_attn_vec_f16kv_dk96", 96, F16, "FLASH_ATTN_VEC_MMA_DEEP(flash_attn_vec_f16kv_dk96, kn_f16, 96)\n"),
    ("flash_attn_vec_f16kv_dk128", 128, F16, "FLASH_ATTN_VEC_MMA(flash_attn_vec_f16kv_dk128, kn_f16, 128)\n"),
    ("flash_attn_vec_f16kv_dk256", 256, F16, "FLASH_ATTN_VEC_MMA(flash_attn_vec_f16kv_dk256, kn_f16, 256)\n"),
    ("flash_attn_vec_f16kv_dk512", 512, F16, "FLASH_ATTN_VEC_MMA(flash_attn_vec_f16kv_dk512, kn_f16, 512)\n"),
    ("flash_attn_vec_bf16kv_dk64", 64, BF16, "FLASH_ATTN_VEC_MMA(flash_attn_vec_bf16kv_dk64, kn_bf16, 64)\n"),
    ("flash_attn_vec_bf16kv_dk80", 80, BF16, "FLASH_ATTN_VEC_MMA(flash_attn_vec_bf16kv_dk80, kn_bf16, 80)\n"),
    ("flash_attn_vec_bf16kv_dk96", 96, BF16, "FLASH_ATTN_VEC_MMA(flash_attn_vec_bf16kv_dk96, kn_bf16, 96)\n"),
    ("flash_attn_vec_bf16kv_dk128", 128, BF16, "FLASH_ATTN_VEC_MMA(flash_attn_vec_bf16kv_dk128, kn_bf16, 128)\n"),
    ("flash_attn_vec_bf16kv_dk256", 256, BF16, "FLASH_ATTN_VEC_MMA(flash_attn_vec_bf16kv_dk256, kn_bf16, 256)\n"),
    ("flash_attn_vec_bf16kv_dk512", 512, BF16, "FLASH_ATTN_VEC_MMA(flash_attn_vec_bf16kv_dk512, kn_bf16, 512)\n"),
];

/// Name, elements of a head, whether there are always 32 partitions, instance.
const REDUCES: [(&str, u32, bool, &str); 7] = [
    ("flash_attn_vec_reduce_dk64", 64, false, "FLASH_ATTN_REDUCE(flash_attn_vec_reduce_dk64, 64)\n"),
    ("flash_attn_vec_reduce_dk80", 80, false, "FLASH_ATTN_REDUCE(flash_attn_vec_reduce_dk80, 80)\n"),
    ("flash_attn_vec_reduce_dk96", 96, false, "FLASH_ATTN_REDUCE(flash_attn_vec_reduce_dk96, 96)\n"),
    ("flash_attn_vec_reduce_dk128", 128, false, "FLASH_ATTN_REDUCE(flash_attn_vec_reduce_dk128, 128)\n"),
    ("flash_attn_vec_reduce_dk256", 256, false, "FLASH_ATTN_REDUCE(flash_attn_vec_reduce_dk256, 256)\n"),
    ("flash_attn_vec_reduce_dk512", 512, false, "FLASH_ATTN_REDUCE(flash_attn_vec_reduce_dk512, 512)\n"),
    (
        "flash_attn_vec_peer_port_f16_reduce_dv256_nwg32",
        256,
        true,
        "FLASH_ATTN_REDUCE(flash_attn_vec_peer_port_f16_reduce_dv256_nwg32, 256)\n",
    ),
];

/// Catalogue entries of attention in partitions.
pub(super) fn kernels() -> Vec<Kernel> {
    let mut list: Vec<Kernel> = MAINS.iter().map(|&(name, dim, cache, line)| main_entry(name, dim, cache, line)).collect();
    list.extend(REDUCES.iter().map(|&(name, dim, only_32, line)| reduce_entry(name, dim, only_32, line)));
    list.push(ring_entry("flash_attn_vec_peer_port_f16_dk256_dv256", 1));
    list.push(ring_entry("flash_attn_vec_peer_port_f16_nwg32_dk256_dv256", 32));
    list
}

//! Tiled prefill attention with masks, strides and tile classes.

use super::{check_floats, check_heads, pairs, product};
use crate::DType;
use crate::catalogue::{Family, Geometry, Kernel};
use crate::registry::ConstantType;

crate::params! {
    /// Parameters of tiled attention. Strides are in elements; the last dimension is contiguous.
    pub struct SteelAttentionParams {
        /// elements between sequences of `q`
        q_batch_stride: u64,
        /// elements between heads of `q`
        q_head_stride: u64,
        /// elements between positions of `q`
        q_seq_stride: u64,
        /// elements between sequences of `k` and `v`
        kv_batch_stride: u64,
        /// elements between heads of `k` and `v`; a cache has its capacity here
        kv_head_stride: u64,
        /// elements between positions of `k` and `v`
        kv_seq_stride: u64,
        /// elements between sequences of `out`
        out_batch_stride: u64,
        /// elements between heads of `out`
        out_head_stride: u64,
        /// elements between positions of `out`
        out_seq_stride: u64,
        /// elements between sequences of the mask; 0 for one mask
        mask_batch_stride: u64,
        /// elements between heads of the mask; 0 for one mask
        mask_head_stride: u64,
        /// elements between rows of the mask
        mask_row_stride: u64,
        /// sequences
        batch: u32,
        /// query heads
        n_heads: u32,
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a head, those of the name
        head_dim: u32,
        /// queries
        q_len: u32,
        /// keys
        k_len: u32,
        /// position of the first query, for the causal rule
        q_offset: u32,
        /// factor of the scores
        scale: f32,
    }
}

/// Slot and name of each compile-time switch. The launcher derives those of alignment from the shape.
const SWITCHES: [(u32, &str); 5] = [(200, "align_q"), (201, "align_k"), (300, "has_mask"), (301, "do_causal"), (303, "has_blk")];

/// A row of the table: dtype in the name, dtype, query rows, key columns, head, groups of lanes.
type Tile = (&'static str, DType, u32, u32, u32, u32);

const TILES: [Tile; 5] = [
    ("float32", DType::F32, 32, 16, 256, 4),
    ("bfloat16", DType::BF16, 32, 16, 256, 4),
    ("float16", DType::F16, 32, 16, 256, 4),
    ("bfloat16", DType::BF16, 8, 8, 512, 1),
    ("float16", DType::F16, 8, 8, 512, 1),
];

/// Catalogue entries of the tiled kernels.
pub(super) fn kernels() -> Vec<Kernel> {
    let mut list = Vec::new();
    for tile in TILES {
        for bool_mask in [false, true] {
            list.push(entry(tile, bool_mask));
        }
    }
    list
}

fn entry((text, dtype, bq, bk, head_dim, wm): Tile, bool_mask: bool) -> Kernel {
    let mask = if bool_mask { "bool_" } else { text };
    let name = format!("steel_attention_{text}_bq{bq}_bk{bk}_bd{head_dim}_wm{wm}_wn1_mask{mask}");
    let bound = match dtype {
        DType::F32 => "|err| ≤ 2e-5 + 1e-4·|o|",
        DType::F16 => "|err| ≤ 1e-3 + 5e-3·|o|",
        _ => "|err| ≤ 5e-3 + 2e-2·|o|",
    };
    let (mask_dtype, blk) =
        (if bool_mask { DType::U8 } else { dtype }, if bq == 32 { "cdiv(q_len,32) cdiv(k_len,16)" } else { "cdiv(q_len,8) cdiv(k_len,8)" });
    let mut entry = Kernel::builder(name, Family::Attention, "o = softmax(scale · q kᵀ + mask) v, tiled; tile classes skip what is masked")
        .params::<SteelAttentionParams>()
        .input("q", dtype, "(batch-1)*q_batch_stride+(n_heads-1)*q_head_stride+(q_len-1)*q_seq_stride+head_dim")
        .input("k", dtype, "(batch-1)*kv_batch_stride+(n_kv_heads-1)*kv_head_stride+(k_len-1)*kv_seq_stride+head_dim")
        .input("v", dtype, "(batch-1)*kv_batch_stride+(n_kv_heads-1)*kv_head_stride+(k_len-1)*kv_seq_stride+head_dim")
        .output("out", dtype, "(batch-1)*out_batch_stride+(n_heads-1)*out_head_stride+(q_len-1)*out_seq_stride+head_dim")
        .input("mask", mask_dtype, "(batch-1)*mask_batch_stride+(n_heads-1)*mask_head_stride+(q_len-1)*mask_row_stride+k_len")
        .optional()
        .input("blk", DType::U8, blk)
        .optional()
        .check(move |p: &SteelAttentionParams| {
            check_heads(p.n_heads, p.n_kv_heads, p.head_dim, 1)?;
            if p.head_dim != head_dim {
                return Err(format!("head_dim: got {}, expected {head_dim}", p.head_dim));
            }
            let end = u64::from(p.q_offset) + u64::from(p.q_len);
            if p.q_offset > 0 && end > u64::from(p.k_len) {
                return Err(format!("q_offset + q_len: got {end}, expected at most k_len = {}", p.k_len));
            }
            check_floats(p.scale, 0.0)
        })
        .class("f32 accumulation", bound)
        .flops(|p: &SteelAttentionParams| 4.0 * product(&[p.batch, p.n_heads, p.head_dim]) * pairs(p.q_len, p.k_len, false, 0))
        .geometry(move |p: &SteelAttentionParams| Geometry { groups: [p.q_len.div_ceil(bq), p.n_heads, p.batch], threads: [32, wm, 1] });
    for (slot, name) in SWITCHES {
        entry = entry.constant(slot, name, ConstantType::Bool, None);
    }
    entry.build()
}

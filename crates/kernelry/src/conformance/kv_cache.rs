//! References and cases of the cache writers: every element is followed from its source to its slot.

use half::f16;

use super::{Cases, Input, Reference};
use crate::DType;
use crate::catalogue::StepU32;
use crate::ops::kv_cache::{KvFlatCopyParams, KvSeqCopyParams, KvTokenCopyParams};

/// Element `i` of `src`, as the bytes that a cache of dtype `to` holds.
fn converted(src: &[u8], from: DType, to: DType, i: usize) -> Vec<u8> {
    let at = &src[i * from.size()..(i + 1) * from.size()];
    match (from, to) {
        (DType::F32, DType::F16) => {
            let value = f32::from_ne_bytes([at[0], at[1], at[2], at[3]]);
            f16::from_f32_const(value).to_ne_bytes().to_vec()
        }
        (DType::BF16, DType::F32) => (u32::from(u16::from_ne_bytes([at[0], at[1]])) << 16).to_ne_bytes().to_vec(),
        _ => at.to_vec(),
    }
}

/// Expects the cache as it was, with element `from` of the source at `to` for each pair.
fn expect_moves(r: &mut Reference<'_>, src: &str, cache: &str, moves: &[(usize, usize)]) {
    let (from_type, to_type) = (r.dtype(src), r.dtype(cache));
    let mut bytes = r.bytes(cache).to_vec();
    for &(from, to) in moves {
        let size = to_type.size();
        bytes[to * size..(to + 1) * size].copy_from_slice(&converted(r.bytes(src), from_type, to_type, from));
    }
    r.expect_bits(cache, bytes);
}

fn expect_streams(r: &mut Reference<'_>, moves: &[(usize, usize)]) {
    if r.kernel().ends_with("_kv_dual") {
        expect_moves(r, "src_k", "k_cache", moves);
        expect_moves(r, "src_v", "v_cache", moves);
    } else {
        expect_moves(r, "src", "cache", moves);
    }
}

pub(crate) fn flat_copy(r: &mut Reference<'_>) {
    let p: KvFlatCopyParams = r.params();
    let mut moves = Vec::new();
    for t in 0..u64::from(p.n_new) {
        let slot = (u64::from(p.write_pos.max()) + t) % u64::from(p.cache_cap);
        moves.extend((0..p.row as usize).map(|i| (t as usize * p.row as usize + i, slot as usize * p.row as usize + i)));
    }
    expect_streams(r, &moves);
}

pub(crate) fn flat_cases(c: &mut Cases) {
    let params = |row, n_new, cache_cap, is_sliding, write_pos| KvFlatCopyParams {
        row,
        n_new,
        cache_cap,
        is_sliding,
        write_pos: StepU32::new(write_pos),
    };
    c.add("one element", params(1, 1, 1, 0, 0));
    for (row, n_new, cap, pos) in [(33, 3, 8, 5), (64, 1, 7, 6), (2048, 17, 64, 3)] {
        c.add(format!("row={row} n_new={n_new} cap={cap} pos={pos}"), params(row, n_new, cap, 0, pos));
    }
    for (n_new, cap, pos) in [(3, 8, 7), (8, 8, 3), (5, 8, 803), (1, 1, u32::MAX)] {
        c.add(format!("ring n_new={n_new} cap={cap} pos={pos}"), params(5, n_new, cap, 1, pos));
    }
    // Payloads of NaN move unchanged.
    c.add("random bits", params(64, 3, 8, 0, 2)).input("src", Input::Bytes);
    if c.intensity >= 2 {
        c.add("ring prefill", params(2048, 1024, 1024, 1, 3431));
    }
}

pub(crate) fn token_copy(r: &mut Reference<'_>) {
    let p: KvTokenCopyParams = r.params();
    let (dim, cap) = (p.head_dim as usize, p.cache_cap as usize);
    let mut moves = Vec::new();
    for h in 0..p.n_kv_heads as usize {
        moves.extend((0..dim).map(|d| (h * dim + d, (h * cap + p.seq_pos.max() as usize) * dim + d)));
    }
    expect_streams(r, &moves);
}

/// Values at which rounding to f16 is easy to get wrong: ties, the overflow threshold, subnormals, signed zeros, infinities.
fn rounding_edges() -> Input {
    let subnormal = f64::from(2.0f32.powi(-24));
    Input::Values(vec![
        65519.0,
        f64::from(65519.996_f32),
        65520.0,
        -65520.0,
        1e-8,
        subnormal,
        0.5 * subnormal,
        1.5 * subnormal,
        2.5 * subnormal,
        2049.0,
        2051.0,
        -0.0,
        0.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::from(2.0f32.powi(-14)),
        f64::from(2.0f32.powi(-14) - 2.0f32.powi(-25)),
        1e-40,
    ])
}

fn add_edges(case: &mut super::Case, dual: bool) {
    if dual {
        case.input("src_k", rounding_edges()).input("src_v", rounding_edges());
    } else {
        case.input("src", rounding_edges());
    }
}

pub(crate) fn token_cases(c: &mut Cases) {
    let dual = c.kernel().ends_with("_kv_dual");
    let params = |n_kv_heads, head_dim, cache_cap, pos| KvTokenCopyParams { n_kv_heads, head_dim, cache_cap, seq_pos: StepU32::new(pos) };
    for (heads, dim, cap, pos) in [(1, 1, 1, 0), (3, 33, 5, 4), (2, 64, 7, 0), (8, 256, 64, 63), (2, 512, 33, 17)] {
        c.add(format!("heads={heads} head_dim={dim} cap={cap} pos={pos}"), params(heads, dim, cap, pos));
    }
    add_edges(c.add("rounding edges", params(2, 18, 3, 1)), dual);
    if c.intensity >= 2 {
        c.add("ring of 1024", params(8, 256, 1024, 1023));
    }
    c.bench("heads=8 head_dim=128 cap=4096", params(8, 128, 4096, 4095));
}

pub(crate) fn seq_copy(r: &mut Reference<'_>) {
    let p: KvSeqCopyParams = r.params();
    let (heads, dim, cap) = (p.n_kv_heads as usize, p.head_dim as usize, p.cache_cap as usize);
    let head_major = r.kernel().ends_with("head_major");
    let mut moves = Vec::new();
    for t in 0..p.n_tokens as usize {
        let slot = ((u64::from(p.seq_pos_start.max()) + t as u64) % cap as u64) as usize;
        let token = p.src_tok_offset as usize + t;
        for h in 0..heads {
            let from = if head_major { h * p.n_src as usize + token } else { token * heads + h };
            moves.extend((0..dim).map(|d| (from * dim + d, (h * cap + slot) * dim + d)));
        }
    }
    expect_streams(r, &moves);
}

pub(crate) fn seq_cases(c: &mut Cases) {
    let dual = c.kernel().ends_with("_kv_dual");
    let params = |n_kv_heads, head_dim, cache_cap, n_tokens, n_src, src_tok_offset, start| KvSeqCopyParams {
        n_kv_heads,
        head_dim,
        cache_cap,
        n_tokens,
        n_src,
        src_tok_offset,
        seq_pos_start: StepU32::new(start),
    };
    c.add("one element", params(1, 1, 1, 1, 1, 0, 0));
    c.add("all tokens", params(3, 33, 9, 5, 5, 0, 4));
    c.add("an offset in the source", params(2, 64, 8, 3, 7, 4, 1));
    c.add("the ring wraps", params(2, 64, 8, 6, 6, 0, 5));
    c.add("a full ring far along", params(2, 40, 8, 8, 19, 11, 803 + 11));
    c.add("the last position of 32 bits", params(1, 8, 8, 1, 1, 0, u32::MAX));
    add_edges(c.add("rounding edges", params(2, 18, 4, 2, 2, 0, 1)), dual);
    if c.intensity >= 2 {
        c.add("prefill into a ring", params(8, 256, 1024, 1024, 4096, 3072, 3072));
    }
    c.bench("heads=8 head_dim=128 cap=4096 tokens=512", params(8, 128, 4096, 512, 512, 0, 0));
}

//! Writes into key and value caches on the CPU: rows move as slices, heads in parallel where there is enough to move.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::CpuCall;
use super::parallel::for_rows;
use crate::Element;
use crate::ops::kv_cache::{KvFlatCopyParams, KvSeqCopyParams, KvTokenCopyParams};

/// An element of a source that can be stored in a cache of `D`.
pub(crate) trait StoreAs<D>: Element {
    /// Stores a row.
    fn store(src: &[Self], dst: &mut [D]);
}

impl<T: Element> StoreAs<T> for T {
    fn store(src: &[T], dst: &mut [T]) {
        dst.copy_from_slice(src);
    }
}

impl StoreAs<f16> for f32 {
    fn store(src: &[f32], dst: &mut [f16]) {
        dst.convert_from_f32_slice(src);
    }
}

impl StoreAs<f32> for bf16 {
    fn store(src: &[bf16], dst: &mut [f32]) {
        for (d, s) in dst.iter_mut().zip(src) {
            *d = f32::from_bits(u32::from(s.to_bits()) << 16);
        }
    }
}

/// Nanoseconds that a copy of `elements` takes, about: eight bytes a nanosecond.
fn nanos(elements: usize) -> usize {
    elements / 2
}

pub(crate) fn flat_copy<T: Element>(call: &CpuCall<'_>) {
    let p: KvFlatCopyParams = call.params();
    let (row, cap, n) = (p.row as usize, p.cache_cap as usize, p.n_new as usize);
    let start = p.write_pos.get(call.step()) as usize % cap;
    let src = call.input::<T>(0);
    let cache = call.output::<T>(1);
    // At most two runs of slots: up to the end of the cache, and from its start.
    let first = n.min(cap - start);
    let (head, tail) = cache.split_at_mut(start * row);
    let copy = |dst: &mut [T], from: usize| for_rows(dst, row, nanos(row), |t, dst| dst.copy_from_slice(&src[(from + t) * row..][..row]));
    copy(&mut tail[..first * row], 0);
    copy(&mut head[..(n - first) * row], first);
}

fn token_stream<S: StoreAs<D>, D: Element>(call: &CpuCall<'_>, src: usize, dst: usize) {
    let p: KvTokenCopyParams = call.params();
    let (dim, cap) = (p.head_dim as usize, p.cache_cap as usize);
    let slot = p.seq_pos.get(call.step()) as usize;
    let src = call.input::<S>(src);
    for_rows(call.output::<D>(dst), cap * dim, nanos(dim), |h, head| {
        S::store(&src[h * dim..(h + 1) * dim], &mut head[slot * dim..(slot + 1) * dim]);
    });
}

pub(crate) fn token_copy<S: StoreAs<D>, D: Element>(call: &CpuCall<'_>) {
    token_stream::<S, D>(call, 0, 1);
}

pub(crate) fn token_copy_dual<S: StoreAs<D>, D: Element>(call: &CpuCall<'_>) {
    token_stream::<S, D>(call, 0, 2);
    token_stream::<S, D>(call, 1, 3);
}

fn seq_stream<S: StoreAs<D>, D: Element>(call: &CpuCall<'_>, src: usize, dst: usize, head_major: bool) {
    let p: KvSeqCopyParams = call.params();
    let (heads, dim, cap, n) = (p.n_kv_heads as usize, p.head_dim as usize, p.cache_cap as usize, p.n_tokens as usize);
    let (first, n_src) = (p.src_tok_offset as usize, p.n_src as usize);
    let start = p.seq_pos_start.get(call.step()) as usize % cap;
    let src = call.input::<S>(src);
    for_rows(call.output::<D>(dst), cap * dim, nanos(n * dim), |h, head| {
        for t in 0..n {
            let slot = if start + t < cap { start + t } else { start + t - cap };
            let from = if head_major { h * n_src + first + t } else { (first + t) * heads + h };
            S::store(&src[from * dim..(from + 1) * dim], &mut head[slot * dim..(slot + 1) * dim]);
        }
    });
}

pub(crate) fn seq_copy<S: StoreAs<D>, D: Element>(call: &CpuCall<'_>) {
    seq_stream::<S, D>(call, 0, 1, false);
}

pub(crate) fn seq_copy_dual<S: StoreAs<D>, D: Element>(call: &CpuCall<'_>) {
    seq_stream::<S, D>(call, 0, 2, false);
    seq_stream::<S, D>(call, 1, 3, false);
}

pub(crate) fn seq_copy_head_major<S: StoreAs<D>, D: Element>(call: &CpuCall<'_>) {
    seq_stream::<S, D>(call, 0, 1, true);
}

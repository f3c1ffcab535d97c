//! Scaled dot-product attention on the CPU.
//!
//! All query heads that share a KV head are rows of one tile, together with some query positions, so that each key and value row is
//! loaded once a tile. A tile runs over blocks of keys with the online softmax (Milakov and Gimelshein, 2018): scores of a block by
//! register-blocked dot products, then `o = o · c + p · V` by register-blocked updates. Blocks start at multiples of [`BLOCK`], so a
//! query row meets the same blocks however the queries are cut into tiles. Where there is one tile of positions, as when decoding, the
//! keys are cut into parts of [`SPLIT`] whose partial results are merged; the cut depends on the shape alone, so the result does not
//! depend on the number of threads.
// Loops over register tiles read best by index, and unroll.
#![allow(clippy::needless_range_loop)]

use std::cell::RefCell;

use super::CpuCall;
use super::parallel::for_ranges;
use super::vector::{Isa, VectorKernel, Vectored, dispatch};
use crate::ops::attention::{AttentionDecodeParams, AttentionPrefillParams, SdpaDecodeParams, SdpaParams};

mod mask;
mod partition;
mod sliding;
mod softmax;
pub(crate) use mask::mask;
pub(crate) use partition::{partitions, reduce};
pub(crate) use sliding::sdpa_sliding;
pub(crate) use softmax::scale_mask_softmax;

/// Keys of a block.
const BLOCK: usize = 64;
/// Keys of a part, where keys are cut into parts.
const SPLIT: usize = 512;
/// Query rows of a tile, unless one position alone has more.
const ROWS: usize = 64;
/// Finite start of the running maximum: `exp(-inf - FLOOR)` is zero and not NaN.
const FLOOR: f32 = -f32::MAX / 2.0;

/// What is computed, whatever the kernel's name.
struct Attention<'a, Q, K> {
    q: &'a [Q],
    k: &'a [K],
    v: &'a [K],
    batch: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    seq_len: usize,
    /// Valid keys.
    keys: usize,
    /// Slots of a KV head.
    capacity: usize,
    scale: f32,
    /// 0 for none.
    softcap: f32,
    causal: bool,
    /// A query attends the last `window` keys up to its own; 0 for all.
    window: usize,
    /// Whether positions come before heads in queries and outputs.
    token_major: bool,
}

impl<Q: Vectored, K: Vectored> Attention<'_, Q, K> {
    /// First element of a query or output row.
    fn row(&self, b: usize, head: usize, position: usize) -> usize {
        let row = if self.token_major {
            (b * self.seq_len + position) * self.n_heads + head
        } else {
            (b * self.n_heads + head) * self.seq_len + position
        };
        row * self.head_dim
    }

    /// The keys that a query attends.
    fn attended(&self, position: usize) -> (usize, usize) {
        if !self.causal {
            return (0, self.keys);
        }
        // Aligned at the end: the last query sees every key.
        let end = (self.keys + position + 1).saturating_sub(self.seq_len).min(self.keys);
        (if self.window == 0 { 0 } else { end.saturating_sub(self.window) }, end)
    }

    fn run(&self, out: &mut [Q]) {
        let group = self.n_heads / self.n_kv_heads;
        let positions = (ROWS / group).clamp(1, self.seq_len);
        let tiles = self.seq_len.div_ceil(positions);
        let begin = self.attended(0).0 / BLOCK * BLOCK;
        let span = self.keys.saturating_sub(begin);
        let parts = if tiles == 1 { span.div_ceil(SPLIT).max(1) } else { 1 };
        let heads = self.batch * self.n_kv_heads;
        let rows = positions * group;
        // A partial result: accumulator, maximum and sum of each row.
        let partial_len = rows * (self.head_dim + 2);
        let mut partials = if parts > 1 { vec![0.0f32; heads * parts * partial_len] } else { Vec::new() };
        let nanos = 1 + rows * (span / parts).min(self.keys) * self.head_dim / 16;
        let (shared_out, shared_partials) = (Shared::new(out), Shared::new(&mut partials));
        // Late tiles attend more keys than early ones: they come first, so that no thread ends up with one alone.
        for_ranges(heads * tiles * parts, nanos, |range| {
            for task in range {
                let (part, head, tile) = (task % parts, task / parts % heads, tiles - 1 - task / parts / heads);
                let (b, g) = (head / self.n_kv_heads, head % self.n_kv_heads);
                let first = tile * positions;
                let tile = Tile {
                    a: self,
                    b,
                    g,
                    first,
                    positions: positions.min(self.seq_len - first),
                    keys: if parts == 1 { (0, self.keys) } else { (begin + part * SPLIT, (begin + (part + 1) * SPLIT).min(self.keys)) },
                    out: shared_out,
                    partial: if parts == 1 {
                        &mut []
                    } else {
                        // SAFETY: tasks have disjoint parts.
                        unsafe { shared_partials.slice((head * parts + part) * partial_len, partial_len) }
                    },
                };
                dispatch(tile);
            }
        });
        if parts > 1 {
            for_ranges(heads * self.seq_len * group, parts * self.head_dim / 4, |range| {
                for task in range {
                    let (head, row) = (task / (self.seq_len * group), task % (self.seq_len * group));
                    let (b, g) = (head / self.n_kv_heads, head % self.n_kv_heads);
                    let at = self.row(b, g * group + row % group, row / group);
                    // SAFETY: tasks have disjoint rows.
                    let out = unsafe { shared_out.slice(at, self.head_dim) };
                    let partials = partials[head * parts * partial_len..][..parts * partial_len].chunks(partial_len);
                    merge(partials.map(|p| &p[row * (self.head_dim + 2)..][..self.head_dim + 2]), out);
                }
            });
        }
    }
}

/// Merges partial results of one row: accumulator, maximum, sum.
fn merge<'a, Q: Vectored>(parts: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [Q]) {
    let dim = out.len();
    // NaN is lost here and comes back through the sums.
    let m = parts.clone().fold(FLOOR, |m, p| m.max(p[dim]));
    let weights = parts.clone().map(|p| (p[dim] - m).exp());
    let l: f32 = parts.clone().zip(weights.clone()).map(|(p, w)| p[dim + 1] * w).sum();
    let scale = if l == 0.0 { 0.0 } else { 1.0 / l };
    SCRATCH.with_borrow_mut(|sum| {
        sum.clear();
        sum.resize(dim, 0.0);
        for (p, w) in parts.zip(weights) {
            for (s, v) in sum.iter_mut().zip(p) {
                *s += v * w;
            }
        }
        for (o, s) in out.iter_mut().zip(sum.iter()) {
            *o = Q::narrow(if l == 0.0 { 0.0 } else { s * scale });
        }
    });
}

/// A slice of which tasks take disjoint parts.
struct Shared<T> {
    ptr: *mut T,
    len: usize,
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        *self
    }
}
impl<T> Copy for Shared<T> {}

// SAFETY: the parts that are made of it are exclusive slices of `T: Send`, disjoint by the contract of `slice`.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn new(slice: &mut [T]) -> Shared<T> {
        Shared { ptr: slice.as_mut_ptr(), len: slice.len() }
    }

    /// # Safety
    /// The slice that this was made of lives, and no other part of it that is in use overlaps this one.
    unsafe fn slice<'a>(self, at: usize, len: usize) -> &'a mut [T] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: in bounds, and exclusive by contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(at), len) }
    }
}

thread_local! {
    /// Queries, accumulators and scores of a tile; grows to the largest tile and stays.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Some positions of all query heads of one KV head, over some keys.
struct Tile<'a, Q, K> {
    a: &'a Attention<'a, Q, K>,
    b: usize,
    g: usize,
    first: usize,
    positions: usize,
    keys: (usize, usize),
    out: Shared<Q>,
    /// Empty if the tile sees all keys and writes the result itself.
    partial: &'a mut [f32],
}

impl<Q: Vectored, K: Vectored> VectorKernel for Tile<'_, Q, K> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let a = self.a;
        let group = a.n_heads / a.n_kv_heads;
        let (dim, rows) = (a.head_dim, group * self.positions);
        // Rows of queries and accumulators are padded to whole vectors.
        let stride = dim.next_multiple_of(I::LANES);
        // Taken out and put back, not borrowed in a closure: that would be compiled without the features of this function.
        let mut scratch = SCRATCH.take();
        scratch.clear();
        scratch.resize(rows * (2 * stride + BLOCK + 3), 0.0);
        let (q, rest) = scratch.split_at_mut(rows * stride);
        let (o, rest) = rest.split_at_mut(rows * stride);
        let (s, rest) = rest.split_at_mut(rows * BLOCK);
        let (m, rest) = rest.split_at_mut(rows);
        let (l, c) = rest.split_at_mut(rows);
        m.fill(FLOOR);
        for row in 0..rows {
            let from = a.row(self.b, self.g * group + row % group, self.first + row / group);
            for (d, s) in q[row * stride..].iter_mut().zip(&a.q[from..from + dim]) {
                *d = s.widen();
            }
        }
        let head = (self.b * a.n_kv_heads + self.g) * a.capacity * dim;
        let k = &a.k[head..head + a.keys * dim];
        let v = &a.v[head..head + a.keys * dim];
        let begin = (a.attended(self.first).0 / BLOCK * BLOCK).max(self.keys.0);
        let end = a.attended(self.first + self.positions - 1).1.min(self.keys.1);
        let mut at = begin;
        while at < end {
            let n = BLOCK.min(end - at);
            scores(isa, q, stride, &k[at * dim..(at + n) * dim], dim, s);
            for row in 0..rows {
                let (lo, hi) = a.attended(self.first + row / group);
                let range = (lo.saturating_sub(at).min(n), hi.saturating_sub(at).min(n));
                let p = &mut s[row * BLOCK..(row + 1) * BLOCK];
                c[row] = softmax_block(isa, p, range, a.scale, a.softcap, &mut m[row], &mut l[row]);
            }
            accumulate(isa, s, c, &v[at * dim..(at + n) * dim], dim, o, stride);
            at += n;
        }
        for row in 0..rows {
            let o = &o[row * stride..row * stride + dim];
            if self.partial.is_empty() {
                let to = a.row(self.b, self.g * group + row % group, self.first + row / group);
                // SAFETY: every row of the output belongs to one tile.
                let out = unsafe { self.out.slice(to, dim) };
                let scale = 1.0 / l[row];
                for (y, o) in out.iter_mut().zip(o) {
                    *y = Q::narrow(if l[row] == 0.0 { 0.0 } else { o * scale });
                }
            } else {
                let partial = &mut self.partial[row * (dim + 2)..(row + 1) * (dim + 2)];
                partial[..dim].copy_from_slice(o);
                partial[dim] = m[row];
                partial[dim + 1] = l[row];
            }
        }
        SCRATCH.set(scratch);
    }
}

/// Calls `$f::<_, _, M>` for the largest M of 4 to 1 that both the rows left and the registers allow, until no row is left.
macro_rules! row_groups {
    ($rows:expr, $isa:ty, |$row:ident, $m:ident| $body:expr) => {
        let mut $row = 0;
        while $row < $rows {
            let left = ($rows - $row).min(<$isa>::TILE_ROWS);
            match left {
                1 => {
                    const $m: usize = 1;
                    $body
                }
                2 => {
                    const $m: usize = 2;
                    $body
                }
                3 => {
                    const $m: usize = 3;
                    $body
                }
                _ => {
                    const $m: usize = 4;
                    $body
                }
            }
            $row += left.min(4);
        }
    };
}

/// Dot products of all query rows with the key rows of a block: `s[row, key]`.
#[inline(always)]
fn scores<I: Isa, K: Vectored>(isa: I, q: &[f32], stride: usize, k: &[K], dim: usize, s: &mut [f32]) {
    let (rows, keys) = (q.len() / stride, k.len() / dim);
    for first in (0..keys).step_by(4) {
        // The last group repeats its last key, and drops those results.
        let key: [&[K]; 4] = std::array::from_fn(
            #[inline(always)]
            |j| {
                let key = (first + j).min(keys - 1);
                &k[key * dim..(key + 1) * dim]
            },
        );
        row_groups!(rows, I, |row, M| {
            let dots = dots::<I, K, M>(isa, &q[row * stride..(row + M) * stride], stride, key, dim);
            for (i, dots) in dots.iter().enumerate() {
                // `first + 4 ≤ BLOCK`: the block is a multiple of four.
                s[(row + i) * BLOCK + first..][..4].copy_from_slice(dots);
            }
        });
    }
}

/// `M` query rows by four key rows.
#[inline(always)]
fn dots<I: Isa, K: Vectored, const M: usize>(isa: I, q: &[f32], stride: usize, k: [&[K]; 4], dim: usize) -> [[f32; 4]; M] {
    assert!(q.len() >= M * stride && stride >= dim.next_multiple_of(I::LANES) && k.iter().all(|k| k.len() >= dim));
    let mut acc = [[isa.splat(0.0); 4]; M];
    let full = dim / I::LANES * I::LANES;
    let mut at = 0;
    while at < stride {
        // SAFETY: key rows have `dim` elements and padded query rows `stride`, which `at + LANES` does not pass.
        unsafe {
            let keys: [I::F; 4] = if at < full {
                [
                    K::load(isa, k[0].as_ptr().add(at)),
                    K::load(isa, k[1].as_ptr().add(at)),
                    K::load(isa, k[2].as_ptr().add(at)),
                    K::load(isa, k[3].as_ptr().add(at)),
                ]
            } else {
                let n = dim - at;
                [
                    isa.load_part(k[0].as_ptr().add(at), n),
                    isa.load_part(k[1].as_ptr().add(at), n),
                    isa.load_part(k[2].as_ptr().add(at), n),
                    isa.load_part(k[3].as_ptr().add(at), n),
                ]
            };
            for m in 0..M {
                let query = isa.load(q.as_ptr().add(m * stride + at));
                for j in 0..4 {
                    acc[m][j] = isa.fma(query, keys[j], acc[m][j]);
                }
            }
        }
        at += I::LANES;
    }
    let mut out = [[0.0; 4]; M];
    for m in 0..M {
        out[m] = isa.sum4(acc[m]);
    }
    out
}

/// Turns the scores of one row and block into weights relative to the new maximum, zero outside `range`; updates maximum and sum.
/// Gives the factor by which what was accumulated before shrinks.
#[inline(always)]
fn softmax_block<I: Isa>(isa: I, s: &mut [f32], range: (usize, usize), scale: f32, softcap: f32, m: &mut f32, l: &mut f32) -> f32 {
    let (lo, hi) = range;
    if lo >= hi {
        s.fill(0.0);
        return 1.0;
    }
    let s: &mut [f32] = &mut s[..BLOCK];
    s[..lo].fill(f32::NEG_INFINITY);
    s[hi..].fill(f32::NEG_INFINITY);
    if softcap > 0.0 {
        for s in &mut s[lo..hi] {
            *s = softcap * (*s * scale / softcap).tanh();
        }
    }
    let factor = isa.splat(if softcap > 0.0 { 1.0 } else { scale });
    let mut top = isa.splat(FLOOR);
    let mut sum = isa.splat(0.0);
    let ptr = s.as_mut_ptr();
    // SAFETY: every access is within the `BLOCK` elements, a multiple of the lanes.
    unsafe {
        let mut i = 0;
        while i < BLOCK {
            // A masked score stays -inf whatever the sign of the scale.
            let x = isa.load(ptr.add(i));
            let x = if i >= lo && i + I::LANES <= hi { isa.mul(x, factor) } else { masked_scale(isa, x, factor, i, lo, hi) };
            isa.store(ptr.add(i), x);
            top = isa.max(top, x);
            i += I::LANES;
        }
        let new = m.max(isa.max_lane(top));
        let shift = isa.splat(new);
        let mut i = 0;
        while i < BLOCK {
            let p = isa.exp(isa.sub(isa.load(ptr.add(i)), shift));
            isa.store(ptr.add(i), p);
            sum = isa.add(sum, p);
            i += I::LANES;
        }
        let factor = (*m - new).exp();
        *l = *l * factor + isa.sum(sum);
        *m = new;
        factor
    }
}

/// A vector that reaches out of `lo..hi`: what lies outside is -inf.
#[inline(always)]
fn masked_scale<I: Isa>(isa: I, x: I::F, factor: I::F, i: usize, lo: usize, hi: usize) -> I::F {
    let mut lanes = [0.0f32; 16];
    // SAFETY: a vector has at most 16 lanes.
    unsafe {
        isa.store(lanes.as_mut_ptr(), isa.mul(x, factor));
        for (j, lane) in lanes.iter_mut().enumerate() {
            if i + j < lo || i + j >= hi {
                *lane = f32::NEG_INFINITY;
            }
        }
        isa.load(lanes.as_ptr())
    }
}

/// `o[row] = o[row] · c[row] + Σ s[row, key] · v[key]`.
#[inline(always)]
fn accumulate<I: Isa, K: Vectored>(isa: I, s: &[f32], c: &[f32], v: &[K], dim: usize, o: &mut [f32], stride: usize) {
    let rows = c.len();
    let full = dim / I::LANES * I::LANES;
    let mut at = 0;
    while at + 4 * I::LANES <= full {
        row_groups!(rows, I, |row, M| update::<I, K, M, 4>(isa, s, c, v, dim, o, stride, row, at, I::LANES));
        at += 4 * I::LANES;
    }
    while at < full {
        row_groups!(rows, I, |row, M| update::<I, K, M, 1>(isa, s, c, v, dim, o, stride, row, at, I::LANES));
        at += I::LANES;
    }
    if at < dim {
        row_groups!(rows, I, |row, M| update::<I, K, M, 1>(isa, s, c, v, dim, o, stride, row, at, dim - at));
    }
}

/// `M` rows by `N` vectors of the accumulator, of which the value rows have `width` elements left in the last.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn update<I: Isa, K: Vectored, const M: usize, const N: usize>(
    isa: I,
    s: &[f32],
    c: &[f32],
    v: &[K],
    dim: usize,
    o: &mut [f32],
    stride: usize,
    row: usize,
    at: usize,
    width: usize,
) {
    let keys = v.len() / dim;
    assert!(keys <= BLOCK && s.len() >= (row + M) * BLOCK && c.len() >= row + M && o.len() >= (row + M) * stride);
    assert!(at + N * I::LANES <= stride && at + (N - 1) * I::LANES + width <= dim && width <= I::LANES);
    // SAFETY: the assertions above keep every access in its slice.
    unsafe {
        let (s, o) = (s.as_ptr().add(row * BLOCK), o.as_mut_ptr().add(row * stride + at));
        let mut acc = [[isa.splat(0.0); N]; M];
        for m in 0..M {
            let shrink = isa.splat(c[row + m]);
            for n in 0..N {
                acc[m][n] = isa.mul(isa.load(o.add(m * stride + n * I::LANES)), shrink);
            }
        }
        let mut value = v.as_ptr().add(at);
        for key in 0..keys {
            let mut values = [isa.splat(0.0); N];
            for n in 0..N {
                let p = value.add(n * I::LANES);
                values[n] = if width == I::LANES { K::load(isa, p) } else { isa.load_part(p, width) };
            }
            for m in 0..M {
                let weight = isa.splat(*s.add(m * BLOCK + key));
                for n in 0..N {
                    acc[m][n] = isa.fma(weight, values[n], acc[m][n]);
                }
            }
            value = value.wrapping_add(dim);
        }
        for m in 0..M {
            for n in 0..N {
                isa.store(o.add(m * stride + n * I::LANES), acc[m][n]);
            }
        }
    }
}

pub(crate) fn sdpa<T: Vectored>(call: &CpuCall<'_>) {
    let p: SdpaParams = call.params();
    let keys = p.kv_seq_len.get(call.step()) as usize;
    let capacity = if p.kv_capacity == 0 { p.kv_seq_len.max() } else { p.kv_capacity };
    let attention = Attention::<T, T> {
        q: call.input(0),
        k: call.input(1),
        v: call.input(2),
        batch: p.batch as usize,
        n_heads: p.n_heads as usize,
        n_kv_heads: p.n_kv_heads as usize,
        head_dim: p.head_dim as usize,
        seq_len: p.seq_len as usize,
        keys,
        capacity: capacity as usize,
        scale: p.scale,
        softcap: 0.0,
        causal: p.do_causal != 0,
        window: 0,
        token_major: false,
    };
    attention.run(call.output(3));
}

pub(crate) fn sdpa_decode(call: &CpuCall<'_>) {
    let p: SdpaDecodeParams = call.params();
    let attention = Attention::<f32, f32> {
        q: call.input(0),
        k: call.input(1),
        v: call.input(2),
        batch: 1,
        n_heads: p.n_heads as usize,
        n_kv_heads: p.n_kv_heads as usize,
        head_dim: p.head_dim as usize,
        seq_len: 1,
        keys: p.kv_seq_len.get(call.step()) as usize,
        capacity: p.kv_capacity as usize,
        scale: p.scale,
        softcap: 0.0,
        causal: false,
        window: 0,
        token_major: false,
    };
    attention.run(call.output(3));
}

pub(crate) fn decode<K: Vectored>(call: &CpuCall<'_>) {
    let p: AttentionDecodeParams = call.params();
    let attention = Attention::<f32, K> {
        q: call.input(0),
        k: call.input(1),
        v: call.input(2),
        batch: 1,
        n_heads: p.n_heads as usize,
        n_kv_heads: p.n_kv_heads as usize,
        head_dim: p.head_dim as usize,
        seq_len: 1,
        keys: p.kv_seq_len.get(call.step()) as usize,
        capacity: p.kv_capacity as usize,
        scale: p.scale,
        softcap: p.softcap,
        causal: true,
        window: p.window as usize,
        token_major: true,
    };
    attention.run(call.output(3));
}

pub(crate) fn prefill<K: Vectored>(call: &CpuCall<'_>) {
    let p: AttentionPrefillParams = call.params();
    let attention = Attention::<f32, K> {
        q: call.input(0),
        k: call.input(1),
        v: call.input(2),
        batch: 1,
        n_heads: p.n_heads as usize,
        n_kv_heads: p.n_kv_heads as usize,
        head_dim: p.head_dim as usize,
        seq_len: p.seq_len as usize,
        keys: p.kv_seq_len.get(call.step()) as usize,
        capacity: p.kv_capacity as usize,
        scale: p.scale,
        softcap: p.softcap,
        causal: true,
        window: p.window as usize,
        token_major: true,
    };
    attention.run(call.output(3));
}

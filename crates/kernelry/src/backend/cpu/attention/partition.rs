//! Decode attention whose keys are dealt out to partitions, and the merge of the partitions.

use super::{CpuCall, FLOOR, Shared};
use crate::backend::cpu::parallel::{for_ranges, for_rows};
use crate::backend::cpu::vector::{Isa, VectorKernel, Vectored, dispatch};
use crate::ops::attention::{FlashAttnReduceParams, FlashAttnVecParams};

/// Keys of a block; block `b` belongs to partition `b mod nwg`.
const BLOCK: usize = 32;

/// One query row over the blocks of one partition.
struct Part<'a, K> {
    q: &'a [f32],
    /// Keys and values of the head, those that exist.
    k: &'a [K],
    v: &'a [K],
    /// Keys attended.
    range: (usize, usize),
    part: usize,
    parts: usize,
    scale: f32,
    softcap: f32,
    /// Accumulator, as long as the head.
    o: &'a mut [f32],
    max: &'a mut f32,
    sum: &'a mut f32,
}

impl<K: Vectored> VectorKernel for Part<'_, K> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let dim = self.q.len();
        let (lo, hi) = self.range;
        let first = lo / BLOCK;
        let mut block = first + (self.part + self.parts - first % self.parts) % self.parts;
        while block * BLOCK < hi {
            let (from, to) = ((block * BLOCK).max(lo), ((block + 1) * BLOCK).min(hi));
            let mut scores = [0.0f32; BLOCK];
            let mut top = *self.max;
            for (s, key) in scores.iter_mut().zip(from..to) {
                let dot = dot(isa, self.q, &self.k[key * dim..(key + 1) * dim]) * self.scale;
                *s = if self.softcap > 0.0 { self.softcap * (dot / self.softcap).tanh() } else { dot };
                top = top.max(*s);
            }
            let shrink = (*self.max - top).exp();
            *self.max = top;
            *self.sum *= shrink;
            for o in self.o.iter_mut() {
                *o *= shrink;
            }
            for (s, key) in scores.iter().zip(from..to) {
                let weight = (s - top).exp();
                *self.sum += weight;
                add(isa, weight, &self.v[key * dim..(key + 1) * dim], self.o);
            }
            block += self.parts;
        }
    }
}

#[inline(always)]
fn dot<I: Isa, K: Vectored>(isa: I, q: &[f32], k: &[K]) -> f32 {
    let full = q.len().min(k.len()) / I::LANES * I::LANES;
    let mut acc = isa.splat(0.0);
    for i in (0..full).step_by(I::LANES) {
        // SAFETY: `i + LANES` does not pass the length of either.
        unsafe {
            acc = isa.fma(isa.load(q.as_ptr().add(i)), K::load(isa, k.as_ptr().add(i)), acc);
        }
    }
    let mut sum = isa.sum(acc);
    for (q, k) in q[full..].iter().zip(&k[full..]) {
        sum += q * k.widen();
    }
    sum
}

/// `o += weight · v`.
#[inline(always)]
fn add<I: Isa, K: Vectored>(isa: I, weight: f32, v: &[K], o: &mut [f32]) {
    let full = o.len().min(v.len()) / I::LANES * I::LANES;
    let factor = isa.splat(weight);
    for i in (0..full).step_by(I::LANES) {
        // SAFETY: `i + LANES` does not pass the length of either.
        unsafe {
            let at = o.as_mut_ptr().add(i);
            isa.store(at, isa.fma(factor, K::load(isa, v.as_ptr().add(i)), isa.load(at)));
        }
    }
    for (o, v) in o[full..].iter_mut().zip(&v[full..]) {
        *o += weight * v.widen();
    }
}

pub(crate) fn partitions<K: Vectored>(call: &CpuCall<'_>) {
    let p: FlashAttnVecParams = call.params();
    let (heads, dim, seq_len, parts) = (p.n_heads as usize, p.head_dim as usize, p.seq_len as usize, p.nwg as usize);
    let (q, k, v) = (call.input::<f32>(0), call.input::<K>(1), call.input::<K>(2));
    let (keys, capacity, group) = (p.kv_seq_len.get(call.step()) as usize, p.kv_capacity as usize, heads / p.n_kv_heads as usize);
    let at = if parts == 1 { 3 } else { 4 };
    if !call.has(at) {
        return;
    }
    let out = Shared::new(call.output::<f32>(at));
    for_ranges(seq_len * heads * parts, keys.div_ceil(parts) * dim / 4, |range| {
        let mut o = vec![0.0f32; dim];
        for task in range {
            let (row, part) = (task / parts, task % parts);
            let (i, h) = (row / heads, row % heads);
            let hi = if p.mask_type == 0 { keys } else { (keys + i + 1).saturating_sub(seq_len).min(keys) };
            let window = if p.mask_type == 2 { p.sliding_window as usize } else { 0 };
            let lo = if window == 0 { 0 } else { hi.saturating_sub(window) };
            let (from, kv) = ((h * seq_len + i) * dim, h / group * capacity * dim);
            let (mut max, mut sum) = (FLOOR, 0.0f32);
            o.fill(0.0);
            dispatch(Part {
                q: &q[from..from + dim],
                k: &k[kv..kv + keys * dim],
                v: &v[kv..kv + keys * dim],
                range: (lo, hi),
                part,
                parts,
                scale: p.scale,
                softcap: p.softcap,
                o: &mut o,
                max: &mut max,
                sum: &mut sum,
            });
            if parts == 1 {
                // SAFETY: every row belongs to one task.
                let out = unsafe { out.slice(row * dim, dim) };
                for (y, o) in out.iter_mut().zip(&o) {
                    *y = if sum == 0.0 { 0.0 } else { o / sum };
                }
                continue;
            }
            for (v, o) in o.chunks(4).enumerate() {
                // SAFETY: these elements of the row belong to this partition alone.
                unsafe { out.slice(((row * dim / 4 + v) * parts + part) * 4, o.len()) }.copy_from_slice(o);
            }
            // SAFETY: as above.
            let pair = unsafe { out.slice(seq_len * heads * dim * parts + 2 * (row * parts + part), 2) };
            pair.copy_from_slice(&[sum, max]);
        }
    });
}

/// Merges partitions of rows of `DIM` elements.
pub(crate) fn reduce<const DIM: usize>(call: &CpuCall<'_>) {
    let p: FlashAttnReduceParams = call.params();
    let (rows, parts) = (p.rows as usize, p.nwg as usize);
    let partial = call.input::<f32>(0);
    let pairs = &partial[rows * DIM * parts..];
    for_rows(call.output::<f32>(1), DIM, parts * DIM / 8, |row, out| {
        let pairs = &pairs[2 * row * parts..][..2 * parts];
        // NaN is lost here and comes back through the sums.
        let top = pairs.iter().skip(1).step_by(2).fold(FLOOR, |m, &v| m.max(v));
        let mut sum = 0.0f32;
        out.fill(0.0);
        for (g, pair) in pairs.chunks_exact(2).enumerate() {
            let weight = (pair[1] - top).exp();
            sum += weight * pair[0];
            for (v, out) in out.chunks_mut(4).enumerate() {
                for (o, x) in out.iter_mut().zip(&partial[((row * DIM / 4 + v) * parts + g) * 4..][..4]) {
                    *o += weight * x;
                }
            }
        }
        for o in out {
            *o = if sum == 0.0 { 0.0 } else { *o / sum };
        }
    });
}

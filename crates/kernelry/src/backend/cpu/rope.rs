//! Rotations. Sines and cosines are taken in f64 of the f32 angle, once a position and pair, and serve all heads of the position.

use super::CpuCall;
use super::norm::blocks::{round_rows, row_before_permute};
use super::norm::{inverse_rms, scale, widen};
use super::parallel::for_rows;
use super::scratch::with_scratch;
use super::vector::Vectored;
use crate::bf16;
use crate::ops::rope::{HeadNormRopeBatchParams, HeadNormRopeParams, HeadNormRopeTableParams, RopeMultiParams, RopeParams};

/// Nanoseconds of the sine and cosine of one pair, about.
const TRIG: usize = 25;

/// Cosine and sine of the angle of a pair.
type Turn = (f32, f32);

fn turn_by(angle: f32) -> Turn {
    let (sin, cos) = f64::from(angle).sin_cos();
    (cos as f32, sin as f32)
}

/// The turns of every pair at a position.
fn turns(position: u32, inv_freq: &[f32], factors: &[f32], table: &mut Vec<Turn>) {
    table.extend(inv_freq.iter().enumerate().map(|(p, f)| {
        let angle = position as f32 * f;
        // The division comes after the product, as its own rounding.
        turn_by(factors.get(p).map_or(angle, |factor| angle / factor))
    }));
}

#[inline(always)]
fn turn(x0: f32, x1: f32, (cos, sin): Turn) -> (f32, f32) {
    (x0 * cos - x1 * sin, x0 * sin + x1 * cos)
}

/// Turns the pairs `(p, p + offset)`.
fn turn_apart<T: Vectored>(head: &mut [T], offset: usize, table: &[Turn]) {
    let (low, high) = head.split_at_mut(offset);
    for ((a, b), &angle) in low.iter_mut().zip(high).zip(table) {
        let (y0, y1) = turn(a.widen(), b.widen(), angle);
        (*a, *b) = (T::narrow(y0), T::narrow(y1));
    }
}

/// Calls `rotate(head, table)` for every head of binding `out`, which holds binding 0 then; `table_at(position, table)` fills a table.
fn rotate_heads<T: Vectored>(
    call: &CpuCall<'_>,
    out: usize,
    (n_heads, head_dim, pairs): (u32, u32, usize),
    table_at: impl Fn(usize, &mut Vec<Turn>) + Sync,
    rotate: impl Fn(&mut [T], &[Turn]) + Sync,
) {
    let dim = head_dim as usize;
    let row_len = n_heads as usize * dim;
    let (x, out) = call.in_place::<T>(0, out);
    for_rows(out, row_len, row_len + TRIG * pairs, |s, row| {
        if let Some(x) = x {
            row.copy_from_slice(&x[s * row_len..(s + 1) * row_len]);
        }
        let mut table = Vec::with_capacity(pairs);
        table_at(s, &mut table);
        row.chunks_mut(dim).for_each(|head| rotate(head, &table));
    });
}

/// Bindings x, positions, inv_freq, factors, out.
fn rotate_by_position<T: Vectored>(call: &CpuCall<'_>, rotate: impl Fn(&mut [T], &[Turn]) + Sync) {
    let p: RopeParams = call.params();
    let (positions, inv_freq, factors) = (call.input::<u32>(1), call.input::<f32>(2), call.input::<f32>(3));
    let sizes = (p.n_heads, p.head_dim, inv_freq.len());
    rotate_heads(call, 4, sizes, |s, table| turns(positions[s], inv_freq, factors, table), rotate);
}

pub(crate) fn adjacent<T: Vectored>(call: &CpuCall<'_>) {
    rotate_by_position::<T>(call, |head, table| {
        for (pair, &angle) in head.chunks_exact_mut(2).zip(table) {
            let (y0, y1) = turn(pair[0].widen(), pair[1].widen(), angle);
            (pair[0], pair[1]) = (T::narrow(y0), T::narrow(y1));
        }
    });
}

/// Pairs are always half a head apart, however few of them turn.
pub(crate) fn split_half<T: Vectored>(call: &CpuCall<'_>) {
    rotate_by_position::<T>(call, |head, table| turn_apart(head, head.len() / 2, table));
}

/// Bindings x, positions, inv_freq, out. Pairs are half of what turns apart.
pub(crate) fn multi<T: Vectored>(call: &CpuCall<'_>) {
    let p: RopeMultiParams = call.params();
    let (positions, inv_freq, seq_len) = (call.input::<i32>(1), call.input::<f32>(2), p.seq_len as usize);
    let table_at = |s: usize, table: &mut Vec<Turn>| {
        let angle = |(pair, f): (usize, &f32)| positions[p.axis_of(pair as u32) * seq_len + s] as f32 * f;
        table.extend(inv_freq.iter().enumerate().map(|pair| turn_by(angle(pair))));
    };
    let offset = p.rope_dim as usize / 2;
    rotate_heads::<T>(call, 3, (p.n_heads, p.head_dim, offset), table_at, |head, table| turn_apart(head, offset, table));
}

/// Where the kernels that normalise heads find their operands.
struct HeadNorm<'a, T> {
    weight: &'a [T],
    eps: f32,
    n_heads: usize,
    dim: usize,
    /// Distance of the elements of a pair.
    offset: usize,
}

impl<T: Vectored> HeadNorm<'_, T> {
    /// Normalises and rotates binding 0 to `out`. `pairs` of a head turn, by what `table_at(position, table)` gives.
    fn run(&self, x: Option<&[T]>, out: &mut [T], pairs: usize, table_at: impl Fn(usize, &mut Vec<Turn>) + Sync) {
        let (dim, row_len) = (self.dim, self.n_heads * self.dim);
        for_rows(out, row_len, 2 * row_len + TRIG * pairs, |s, row| {
            let mut table = Vec::with_capacity(pairs);
            table_at(s, &mut table);
            with_scratch(2 * dim, |buffer| {
                let (wide, normed) = buffer.split_at_mut(dim);
                for (h, head) in row.chunks_mut(dim).enumerate() {
                    let at = s * row_len + h * dim;
                    widen(x.map_or(&*head, |x| &x[at..at + dim]), wide);
                    scale(wide, inverse_rms(wide, self.eps), self.weight, normed);
                    turn_apart(normed, self.offset, &table);
                    head.iter_mut().zip(&*normed).for_each(|(y, v)| *y = T::narrow(*v));
                }
            });
        });
    }
}

/// Bindings x, weight, positions, inv_freq, factors, out, out_bf16, out_perm.
pub(crate) fn fused_head_norm_rope(call: &CpuCall<'_>) {
    let p: HeadNormRopeParams = call.params();
    let (n_heads, dim, seq_len) = (p.n_heads as usize, p.head_dim as usize, p.seq_len as usize);
    let (positions, inv_freq, factors) = (call.input::<u32>(2), call.input::<f32>(3), call.input::<f32>(4));
    let inv_freq = &inv_freq[..p.half_rope as usize];
    let (x, out) = call.in_place::<f32>(0, 5);
    let norm = HeadNorm { weight: call.input(1), eps: p.eps, n_heads, dim, offset: dim / 2 };
    norm.run(x, out, inv_freq.len(), |s, table| turns(positions[s], inv_freq, factors, table));
    round_rows(out, call.output::<bf16>(6), dim, (p.bf16_permuted == 1).then_some((seq_len, n_heads)));
    for_rows(call.output::<f32>(7), dim, dim / 4, |row, copy| {
        let from = row_before_permute(row, seq_len, n_heads) * dim;
        copy.copy_from_slice(&out[from..from + dim]);
    });
}

/// Bindings x, weight, positions, inv_freq, factors, out.
pub(crate) fn fused_head_norm_rope_batch_bf16(call: &CpuCall<'_>) {
    let p: HeadNormRopeBatchParams = call.params();
    let (positions, inv_freq, factors) = (call.input::<u32>(2), call.input::<f32>(3), call.input::<f32>(4));
    let inv_freq = &inv_freq[..p.half_rope as usize];
    let (x, out) = call.in_place::<bf16>(0, 5);
    let dim = p.head_dim as usize;
    let norm = HeadNorm { weight: call.input(1), eps: p.eps, n_heads: p.n_heads as usize, dim, offset: dim / 2 };
    norm.run(x, out, inv_freq.len(), |s, table| turns(positions[s], inv_freq, factors, table));
}

/// Bindings x, weight, cos, sin, out. Pairs are as far apart as there are turning ones.
pub(crate) fn fused_head_norm_rope_bf16(call: &CpuCall<'_>) {
    let p: HeadNormRopeTableParams = call.params();
    let (cos, sin, pairs) = (call.input::<f32>(2), call.input::<f32>(3), p.half_rope as usize);
    let (x, out) = call.in_place::<bf16>(0, 4);
    let norm = HeadNorm { weight: call.input(1), eps: p.eps, n_heads: p.n_heads as usize, dim: p.head_dim as usize, offset: pairs };
    norm.run(x, out, pairs, |_, table| table.extend(cos.iter().copied().zip(sin.iter().copied()).take(pairs)));
}

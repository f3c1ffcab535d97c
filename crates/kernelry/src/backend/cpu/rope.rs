//! Rotations. Sines and cosines are taken in f64 of the f32 angle, once a position and pair, and serve all heads of the position.

use super::CpuCall;
use super::parallel::for_rows;
use super::vector::Vectored;
use crate::bf16;
use crate::ops::rope::{HeadNormRopeParams, RopeParams};

/// Nanoseconds of the sine and cosine of one pair, about.
const TRIG: usize = 25;

/// `(cos, sin)` of every pair at a position.
fn angles(position: u32, inv_freq: &[f32], factors: &[f32], table: &mut Vec<(f32, f32)>) {
    table.clear();
    table.extend(inv_freq.iter().enumerate().map(|(p, f)| {
        let angle = position as f32 * f;
        // The division comes after the product, as its own rounding.
        let angle = factors.get(p).map_or(angle, |factor| angle / factor);
        let (sin, cos) = f64::from(angle).sin_cos();
        (cos as f32, sin as f32)
    }));
}

#[inline(always)]
fn turn(x0: f32, x1: f32, (cos, sin): (f32, f32)) -> (f32, f32) {
    (x0 * cos - x1 * sin, x0 * sin + x1 * cos)
}

/// Calls `rotate(head, table)` for every head of `out`, which holds the input then.
fn rotate_heads<T: Vectored>(call: &CpuCall<'_>, rotate: impl Fn(&mut [T], &[(f32, f32)]) + Sync) {
    let p: RopeParams = call.params();
    let dim = p.head_dim as usize;
    let row_len = p.n_heads as usize * dim;
    let (positions, inv_freq, factors) = (call.input::<u32>(1), call.input::<f32>(2), call.input::<f32>(3));
    let (x, out) = call.in_place::<T>(0, 4);
    for_rows(out, row_len, row_len + TRIG * inv_freq.len(), |s, row| {
        if let Some(x) = x {
            row.copy_from_slice(&x[s * row_len..(s + 1) * row_len]);
        }
        let mut table = Vec::with_capacity(inv_freq.len());
        angles(positions[s], &inv_freq[..p.rope_dim as usize / 2], factors, &mut table);
        row.chunks_mut(dim).for_each(|head| rotate(head, &table));
    });
}

pub(crate) fn adjacent<T: Vectored>(call: &CpuCall<'_>) {
    rotate_heads::<T>(call, |head, table| {
        for (pair, &angle) in head.chunks_exact_mut(2).zip(table) {
            let (y0, y1) = turn(pair[0].widen(), pair[1].widen(), angle);
            (pair[0], pair[1]) = (T::narrow(y0), T::narrow(y1));
        }
    });
}

/// Pairs are always half a head apart, however few of them turn.
pub(crate) fn split_half<T: Vectored>(call: &CpuCall<'_>) {
    rotate_heads::<T>(call, |head, table| {
        let (low, high) = head.split_at_mut(head.len() / 2);
        for ((a, b), &angle) in low.iter_mut().zip(high).zip(table) {
            let (y0, y1) = turn(a.widen(), b.widen(), angle);
            (*a, *b) = (T::narrow(y0), T::narrow(y1));
        }
    });
}

/// Bindings x, weight, positions, inv_freq, factors, out, out_bf16, out_perm.
pub(crate) fn fused_head_norm_rope(call: &CpuCall<'_>) {
    let p: HeadNormRopeParams = call.params();
    let (dim, heads, seq_len) = (p.head_dim as usize, p.n_heads as usize, p.seq_len as usize);
    let row_len = heads * dim;
    let weight = call.input::<f32>(1);
    let (positions, inv_freq, factors) = (call.input::<u32>(2), call.input::<f32>(3), call.input::<f32>(4));
    let (x, out) = call.in_place::<f32>(0, 5);
    for_rows(out, row_len, 2 * row_len + TRIG * inv_freq.len(), |s, row| {
        if let Some(x) = x {
            row.copy_from_slice(&x[s * row_len..(s + 1) * row_len]);
        }
        let mut table = Vec::with_capacity(inv_freq.len());
        angles(positions[s], &inv_freq[..p.half_rope as usize], factors, &mut table);
        for head in row.chunks_mut(dim) {
            let mut lanes = [0.0f32; 16];
            for chunk in head.chunks(16) {
                for (lane, v) in lanes.iter_mut().zip(chunk) {
                    *lane += v * v;
                }
            }
            let r = 1.0 / (lanes.iter().sum::<f32>() / dim as f32 + p.eps).sqrt();
            if weight.is_empty() {
                head.iter_mut().for_each(|v| *v *= r);
            } else {
                head.iter_mut().zip(weight).for_each(|(v, w)| *v = *v * r * w);
            }
            let (low, high) = head.split_at_mut(dim / 2);
            for ((a, b), &angle) in low.iter_mut().zip(high).zip(&table) {
                (*a, *b) = turn(*a, *b, angle);
            }
        }
    });
    // Row (t, h) of the copies stands at (h, t) where they are permuted.
    let row_at = |row: usize, permuted: bool| if permuted { (row % seq_len) * heads + row / seq_len } else { row };
    for_rows(call.output::<bf16>(6), dim, dim, |i, copy| {
        let from = row_at(i, p.bf16_permuted == 1) * dim;
        copy.iter_mut().zip(&out[from..from + dim]).for_each(|(c, v)| *c = bf16::from_f32(*v));
    });
    for_rows(call.output::<f32>(7), dim, dim / 4, |i, copy| {
        let from = row_at(i, true) * dim;
        copy.copy_from_slice(&out[from..from + dim]);
    });
}

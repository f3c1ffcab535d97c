//! Activations as the cores want them.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::format::STEP;
use crate::backend::cpu::simd::Order;

/// Elements below which preparing them is not worth a second thread.
const SERIAL: usize = 1 << 17;

/// A cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Elements that start where a cache line does: vectors of them never straddle two, which takes twice as long to load.
pub(super) struct Aligned<T>(Vec<Line>, PhantomData<T>);

impl<T: Pod> Aligned<T> {
    /// Zeros, a whole number of lines of them.
    fn zeros(len: usize) -> Aligned<T> {
        debug_assert!((len * size_of::<T>()).is_multiple_of(size_of::<Line>()));
        Aligned(vec![Line::zeroed(); len * size_of::<T>() / size_of::<Line>()], PhantomData)
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.0)
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Rows of activations in 8 bits: `x ≈ scale · code`, one scale for each 32 values.
pub(super) struct Rounded {
    /// `[m, padded / 4]`, four signed bytes in each; zero past the end of a row.
    pub codes: Aligned<u32>,
    /// `[m, padded / group]`: a scale of a block, twice if groups are of 16.
    pub scales: Vec<f32>,
    /// Sums of the codes of each group, laid out as `scales`.
    pub sums: Vec<i32>,
    /// Row length, a whole number of steps.
    pub padded: usize,
}

/// Rounds one block of up to 32 values. Returns its scale: NaN if a value is not finite, zero if all are too small to matter.
#[inline(always)]
fn round_block(x: &[f32], codes: &mut [i8]) -> f32 {
    // Bits of absolute values order as the values do, with infinity and NaN on top; the loop stays in integers and vectorises.
    let largest = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    if largest >= f32::INFINITY.to_bits() {
        codes.fill(0);
        return f32::NAN;
    }
    let largest = f32::from_bits(largest);
    if largest < 1e-36 {
        codes.fill(0);
        return 0.0;
    }
    let inverse = 127.0 / largest;
    for (q, v) in codes.iter_mut().zip(x) {
        // Adding 1.5 · 2^23 leaves the nearest integer in the low bits, ties to even.
        *q = (v * inverse + 12_582_912.0).to_bits() as i8;
    }
    largest / 127.0
}

fn round_row(x: &[f32], group: usize, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let per_block = 32 / group;
    for (b, block) in x.chunks(32).enumerate() {
        let q = &mut codes[32 * b..32 * b + block.len()];
        let scale = round_block(block, q);
        let q = &codes[32 * b..32 * b + 32];
        for (i, part) in q.chunks(group).enumerate() {
            scales[b * per_block + i] = scale;
            sums[b * per_block + i] = part.iter().map(|&q| i32::from(q)).sum();
        }
    }
}

impl Rounded {
    /// Brings the codes into an order of weights with vectors of so many lanes.
    pub(super) fn reorder(&mut self, order: Order, lanes: usize) {
        if order == Order::Natural {
            return;
        }
        let from: [usize; STEP / 4] = std::array::from_fn(|i| order.value(lanes, i / lanes, i % lanes) / 4);
        for step in self.codes.chunks_exact_mut(STEP / 4) {
            let natural: [u32; STEP / 4] = std::array::from_fn(|i| step[i]);
            for (code, from) in step.iter_mut().zip(from) {
                *code = natural[from];
            }
        }
    }
}

/// Rounds `x [m, k]`. `k` is a multiple of 32, `group` is 32 or 16.
pub(super) fn round(x: &[f32], m: usize, k: usize, group: usize) -> Rounded {
    let padded = k.next_multiple_of(STEP);
    let groups = padded / group;
    let mut out = Rounded { codes: Aligned::zeros(m * padded / 4), scales: vec![0.0; m * groups], sums: vec![0; m * groups], padded };
    let codes: &mut [i8] = bytemuck::cast_slice_mut(&mut out.codes);
    let rows = x[..m * k].chunks(k).zip(codes.chunks_mut(padded));
    let rows = rows.zip(out.scales.chunks_mut(groups)).zip(out.sums.chunks_mut(groups));
    if m * k < SERIAL {
        rows.for_each(|(((x, codes), scales), sums)| round_row(x, group, codes, scales, sums));
    } else {
        rows.par_bridge().for_each(|(((x, codes), scales), sums)| round_row(x, group, codes, scales, sums));
    }
    out
}

/// Rows of f32 activations in the order in which codes are widened.
pub(super) struct Shuffled {
    /// `[m, padded]`: for each vector of codes the values of the lowest bytes of its lanes, then those of the second, third and fourth. Zero
    /// past the end of a row.
    pub values: Aligned<f32>,
    /// `[m, padded / group]`: sum of each group.
    pub sums: Vec<f32>,
    /// Row length, a whole number of steps.
    pub padded: usize,
}

/// Reorders `x [m, k]`.
pub(super) fn shuffle(x: &[f32], m: usize, k: usize, group: usize, order: Order, lanes: usize) -> Shuffled {
    let padded = k.next_multiple_of(STEP);
    let mut out = Shuffled { values: Aligned::zeros(m * padded), sums: vec![0.0; m * padded / group], padded };
    // Where the four values of a lane come from.
    let from: [usize; STEP / 4] = std::array::from_fn(|i| order.value(lanes, i / lanes, i % lanes));
    for ((x, values), sums) in x[..m * k].chunks(k).zip(out.values.chunks_mut(padded)).zip(out.sums.chunks_mut(padded / group)) {
        for (part, values) in x.chunks(STEP).zip(values.chunks_exact_mut(STEP)) {
            let mut whole = [0.0f32; STEP];
            whole[..part.len()].copy_from_slice(part);
            for (vector, from) in values.chunks_exact_mut(4 * lanes).zip(from.chunks_exact(lanes)) {
                for (l, &from) in from.iter().enumerate() {
                    for i in 0..4 {
                        vector[lanes * i + l] = whole[from + i];
                    }
                }
            }
        }
        for (part, sum) in x.chunks(group).zip(sums) {
            // Four chains, so that this does not wait for each addition.
            let mut four = [0.0f32; 4];
            for quad in part.chunks_exact(4) {
                for (sum, v) in four.iter_mut().zip(quad) {
                    *sum += v;
                }
            }
            *sum = (four[0] + four[1]) + (four[2] + four[3]);
        }
    }
    out
}

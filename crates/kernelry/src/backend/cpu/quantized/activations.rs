//! Activations as the cores want them.

use rayon::prelude::*;

use super::format::STEP;
use crate::backend::cpu::simd::Order;

/// Elements below which preparing them is not worth a second thread.
const SERIAL: usize = 1 << 17;

/// Rows of activations in 8 bits: `x ≈ scale · code`, one scale for each 32 values. Codes are from -127 to 127.
pub(super) struct Rounded {
    /// `[rows, padded / 4]`, four signed bytes in each; zero past the end of a row.
    pub codes: Vec<u32>,
    /// `[rows, padded / group]`: a scale of a block, twice if groups are of 16.
    pub scales: Vec<f32>,
    /// Sums of the codes of each group, laid out as `scales`.
    pub sums: Vec<i32>,
    /// Row length, a whole number of steps.
    pub padded: usize,
}

/// Largest magnitude of up to 32 values; `None` if one is not finite.
#[inline(always)]
fn largest(x: &[f32]) -> Option<f32> {
    // Bits of absolute values order as the values do, with infinity and NaN on top; the loop stays in integers and vectorises.
    let bits = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    (bits < f32::INFINITY.to_bits()).then(|| f32::from_bits(bits))
}

/// Rounds one block of up to 32 values. Returns its scale: NaN if a value is not finite, zero if all are too small to matter.
#[inline(always)]
fn round_block(x: &[f32], [codes]: [&mut [i8]; 1]) -> [f32; 1] {
    let Some(largest) = largest(x) else { return [f32::NAN] };
    if largest < 1e-36 {
        return [0.0];
    }
    let inverse = 127.0 / largest;
    for (q, v) in codes.iter_mut().zip(x) {
        // Adding 1.5 · 2^23 leaves the nearest integer in the low bits, ties to even.
        *q = (v * inverse + 12_582_912.0).to_bits() as i8;
    }
    [largest / 127.0]
}

/// Takes the last seven bits from an integer, as a digit from -64 to 63.
#[inline(always)]
fn digit(v: i32) -> (i32, i8) {
    let digit = ((v + 64) & 127) - 64;
    ((v - digit) >> 7, digit as i8)
}

/// As [`round_block`], to integers of three digits, the first of which counts most. Scales are powers of two, so that integers stay exact.
#[inline(always)]
fn digits_block(x: &[f32], [high, mid, low]: [&mut [i8]; 3]) -> [f32; 3] {
    // What three digits reach, the first being at most 127.
    const LARGEST: f32 = (127 << 14) as f32;
    let Some(largest) = largest(x) else { return [f32::NAN; 3] };
    // 2^(20 - e) for a largest value from 2^e on; of values below 2^-107 less is kept.
    let power = |e: i32| f32::from_bits(((127 + e).clamp(1, 254) as u32) << 23);
    let e = (largest.to_bits() >> 23) as i32 - 127;
    let up = if largest * power(20 - e) > LARGEST { power(19 - e) } else { power(20 - e) };
    for (((v, high), mid), low) in x.iter().zip(high).zip(mid).zip(low) {
        let (rest, last) = digit((v * up).round_ties_even() as i32);
        let (first, second) = digit(rest);
        (*high, *mid, *low) = (first as i8, second, last);
    }
    [16384.0 / up, 128.0 / up, 1.0 / up]
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
    rows(x, m, k, group, round_block)
}

/// `x [m, k]` as integers of 21 bits for each 32 values, in three digits: rows `3 i ..` are the digits of row `i` and add up to it. What is lost
/// is at most a two-millionth of the largest of 32 values, less than sums in f32 lose.
pub(super) fn digits(x: &[f32], m: usize, k: usize, group: usize) -> Rounded {
    rows(x, m, k, group, digits_block)
}

/// `D` rows of codes for each row, made block by block: `block` fills codes that are zero, and returns their scales.
#[inline(always)]
fn rows<const D: usize>(x: &[f32], m: usize, k: usize, group: usize, block: impl Fn(&[f32], [&mut [i8]; D]) -> [f32; D] + Sync) -> Rounded {
    let padded = k.next_multiple_of(STEP);
    let (groups, per_block) = (padded / group, 32 / group);
    let mut out = Rounded { codes: vec![0; D * m * padded / 4], scales: vec![0.0; D * m * groups], sums: vec![0; D * m * groups], padded };
    let codes: &mut [i8] = bytemuck::cast_slice_mut(&mut out.codes);
    let rows = x[..m * k].chunks(k).zip(codes.chunks_mut(D * padded));
    let rows = rows.zip(out.scales.chunks_mut(D * groups)).zip(out.sums.chunks_mut(D * groups));
    let row = |(((x, codes), scales), sums): (((&[f32], &mut [i8]), &mut [f32]), &mut [i32])| {
        let mut lines = codes.chunks_mut(padded);
        let mut lines: [&mut [i8]; D] = std::array::from_fn(|_| lines.next().unwrap_or_default());
        for (b, x) in x.chunks(32).enumerate() {
            let parts = lines.each_mut().map(|line| &mut line[32 * b..32 * b + x.len()]);
            let found = block(x, parts);
            for (d, scale) in found.into_iter().enumerate() {
                for (i, part) in lines[d][32 * b..32 * b + 32].chunks(group).enumerate() {
                    let at = d * groups + b * per_block + i;
                    scales[at] = scale;
                    sums[at] = part.iter().map(|&q| i32::from(q)).sum();
                }
            }
        }
    };
    if m * k < SERIAL {
        rows.for_each(row);
    } else {
        rows.par_bridge().for_each(row);
    }
    out
}

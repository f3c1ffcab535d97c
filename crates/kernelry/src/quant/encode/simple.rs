//! Quantisers of the formats with blocks of 32.

use half::f16;

use super::search;
use crate::quant::decode::IQ4_VALUES;

/// Reciprocal with 1/0 taken as 0, so that an all-zero block gets all-equal codes.
fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The value of largest magnitude, with its sign; the first of several.
fn signed_peak(x: &[f32; 32]) -> f32 {
    x.iter().fold(x[0], |peak, &v| if v.abs() > peak.abs() { v } else { peak })
}

fn min_max(x: &[f32; 32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &v| (lo.min(v), hi.max(v)))
}

fn put_half(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Low four bits of 32 codes: values 0..16 in the low nibbles, 16..32 in the high ones.
fn put_nibbles(qs: &mut [u8], codes: &[u8; 32]) {
    for (j, byte) in qs.iter_mut().enumerate() {
        *byte = (codes[j] & 15) | (codes[j + 16] << 4);
    }
}

fn put_fifth_bits(mask: &mut [u8], codes: &[u8; 32]) {
    let bits = codes.iter().enumerate().fold(0u32, |bits, (j, &q)| bits | (u32::from(q >> 4) << j));
    mask.copy_from_slice(&bits.to_le_bytes());
}

/// Codes of a format without a minimum: the peak gets the most negative code.
fn codes_around_zero(x: &[f32; 32], levels: f32) -> (f32, [u8; 32]) {
    let d = signed_peak(x) / -levels;
    let inverse = reciprocal(d);
    let largest = (2.0 * levels - 1.0) as u8;
    (d, x.map(|v| ((v * inverse + (levels + 0.5)) as u8).min(largest)))
}

/// Codes of a format with a minimum.
fn codes_above_minimum(x: &[f32; 32], largest: u8) -> (f32, f32, [u8; 32]) {
    let (lo, hi) = min_max(x);
    let d = (hi - lo) / f32::from(largest);
    let inverse = reciprocal(d);
    (d, lo, x.map(|v| (((v - lo) * inverse + 0.5) as u8).min(largest)))
}

pub(super) fn encode_block_q4_0(x: &[f32; 32], block: &mut [u8; 18]) {
    let (d, codes) = codes_around_zero(x, 8.0);
    put_half(block, 0, d);
    put_nibbles(&mut block[2..], &codes);
}

pub(super) fn encode_block_q4_1(x: &[f32; 32], block: &mut [u8; 20]) {
    let (d, m, codes) = codes_above_minimum(x, 15);
    put_half(block, 0, d);
    put_half(block, 2, m);
    put_nibbles(&mut block[4..], &codes);
}

pub(super) fn encode_block_q5_0(x: &[f32; 32], block: &mut [u8; 22]) {
    let (d, codes) = codes_around_zero(x, 16.0);
    put_half(block, 0, d);
    put_fifth_bits(&mut block[2..6], &codes);
    put_nibbles(&mut block[6..], &codes);
}

pub(super) fn encode_block_q5_1(x: &[f32; 32], block: &mut [u8; 24]) {
    let (d, m, codes) = codes_above_minimum(x, 31);
    put_half(block, 0, d);
    put_half(block, 2, m);
    put_fifth_bits(&mut block[4..8], &codes);
    put_nibbles(&mut block[8..], &codes);
}

pub(super) fn encode_block_q8_0(x: &[f32; 32], block: &mut [u8; 34]) {
    let d = signed_peak(x).abs() / 127.0;
    let inverse = reciprocal(d);
    put_half(block, 0, d);
    for (byte, &v) in block[2..].iter_mut().zip(x) {
        *byte = (v * inverse).round() as i8 as u8;
    }
}

/// Code of the table value nearest to `v / 2 - 128`, by `v`: all midpoints of the table are multiples of one half.
const NEAREST_IQ4: [u8; 512] = {
    let mut table = [0; 512];
    let (mut v, mut code) = (0, 0);
    while v < 512 {
        // Doubled midpoint between this code and the next.
        while code < 15 && v as i32 - 256 >= IQ4_VALUES[code] as i32 + IQ4_VALUES[code + 1] as i32 {
            code += 1;
        }
        table[v] = code as u8;
        v += 1;
    }
    table
};

/// Code of the table value nearest to `v`.
fn nearest_iq4(v: f32) -> u8 {
    NEAREST_IQ4[((2.0 * v + 256.0) as i32).clamp(0, 511) as usize]
}

pub(super) fn encode_block_iq4_nl(x: &[f32; 32], block: &mut [u8; 18]) {
    let weights = x.map(|v| v * v);
    let peak = signed_peak(x);
    let mut best = (0.0, 0.0);
    if peak.abs() > search::NEGLIGIBLE {
        // The table is not symmetric: the peak may do better at either end.
        for end in [IQ4_VALUES[0], IQ4_VALUES[15]] {
            for step in -7i8..=7 {
                let inverse = (f32::from(end) + f32::from(step)) / peak;
                let (mut xq, mut qq) = (0.0f32, 0.0f32);
                for (&v, &w) in x.iter().zip(&weights) {
                    let q = f32::from(IQ4_VALUES[usize::from(nearest_iq4(v * inverse))]);
                    xq += w * v * q;
                    qq += w * q * q;
                }
                // Least squares for these codes: the error falls by xq^2 / qq from that of a zero scale.
                if qq > 0.0 && xq * xq > best.1 * qq {
                    best = (xq / qq, xq * xq / qq);
                }
            }
        }
        if best.0 == 0.0 {
            best.0 = peak / f32::from(IQ4_VALUES[0]);
        }
    }
    put_half(block, 0, best.0);
    let inverse = reciprocal(f16::from_f32(best.0).to_f32());
    put_nibbles(&mut block[2..], &x.map(|v| nearest_iq4(v * inverse)));
}

//! Quantisers of the formats with super-blocks of 256.
//!
//! Every sub-block gets the scale (and minimum) of least weighted error by itself. The largest of them fix the half-precision factors
//! of the super-block; the integer scales are then chosen once more, among the neighbours of the rounded ones, by the error that the
//! decoded values really have.

use half::f16;

use super::search::{self, code, fit_affine, fit_symmetric, nearest};

/// Rounds to the precision in which a factor is stored.
fn as_half(v: f32) -> f32 {
    f16::from_f32(v).to_f32()
}

fn put_half(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// `v / d` as an integer code, 0 if there is no scale.
fn scale_code(v: f32, d: f32, low: f32, high: f32) -> f32 {
    if d == 0.0 { 0.0 } else { nearest((v / d).max(low).min(high)) }
}

/// A super-block with 6-bit scales and minima of eight sub-blocks and codes in `0..=high`.
struct Affine {
    d: f32,
    dmin: f32,
    scales: [u8; 8],
    mins: [u8; 8],
    codes: [u8; 256],
}

fn fit_super_block(x: &[f32; 256], high: f32) -> Affine {
    let (groups, _) = x.as_chunks::<32>();
    let mut weights = [[0.0; 32]; 8];
    let (mut scales, mut mins) = ([0.0f32; 8], [0.0f32; 8]);
    for (g, x) in groups.iter().enumerate() {
        // Large weights matter more to the product with activations; the root mean square keeps small ones from being ignored.
        let rms = (x.iter().map(|v| v * v).sum::<f32>() / 32.0).sqrt();
        weights[g] = x.map(|v| rms + v.abs());
        (scales[g], mins[g]) = fit_affine(x, &weights[g], high);
    }
    let d = as_half(scales.iter().fold(0.0f32, |a, &b| a.max(b)) / 63.0);
    let dmin = as_half(mins.iter().fold(0.0f32, |a, &b| a.max(b)) / 63.0);
    let mut out = Affine { d, dmin, scales: [0; 8], mins: [0; 8], codes: [0; 256] };
    for (g, x) in groups.iter().enumerate() {
        let scale = scale_code(scales[g], d, 0.0, 63.0);
        let min = scale_code(mins[g], dmin, 0.0, 63.0);
        let mut best = (f32::INFINITY, 0.0, 0.0);
        for scale in neighbours(scale, 0.0, 63.0) {
            for min in neighbours(min, 0.0, 63.0) {
                let error = search::error(x, &weights[g], d * scale, dmin * min, 0.0, high);
                if error < best.0 {
                    best = (error, scale, min);
                }
            }
        }
        let (_, scale, min) = best;
        (out.scales[g], out.mins[g]) = (scale as u8, min as u8);
        let inverse = if d * scale == 0.0 { 0.0 } else { 1.0 / (d * scale) };
        for (q, &v) in out.codes[32 * g..].iter_mut().zip(x) {
            *q = code(v + dmin * min, inverse, 0.0, high) as u8;
        }
    }
    out
}

/// A scale code and the two next to it, inside the range.
fn neighbours(centre: f32, low: f32, high: f32) -> impl Iterator<Item = f32> {
    [0.0, -1.0, 1.0].into_iter().map(move |step| centre + step).filter(move |v| (low..=high).contains(v))
}

/// Eight 6-bit (scale, minimum) pairs in 12 bytes.
fn pack_scales(scales: &[u8; 8], mins: &[u8; 8], packed: &mut [u8]) {
    for i in 0..4 {
        packed[i] = scales[i] | ((scales[4 + i] >> 4) << 6);
        packed[4 + i] = mins[i] | ((mins[4 + i] >> 4) << 6);
        packed[8 + i] = (scales[4 + i] & 15) | ((mins[4 + i] & 15) << 4);
    }
}

/// Low nibbles of pairs of sub-blocks: byte `i` of run `r` holds values `64 r + i` and `64 r + 32 + i`.
fn pack_nibbles(codes: &[u8; 256], qs: &mut [u8]) {
    for (run, bytes) in qs.chunks_exact_mut(32).enumerate() {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (codes[64 * run + i] & 15) | ((codes[64 * run + 32 + i] & 15) << 4);
        }
    }
}

pub(super) fn encode_block_q4_k(x: &[f32; 256], block: &mut [u8; 144]) {
    let fit = fit_super_block(x, 15.0);
    put_half(block, 0, fit.d);
    put_half(block, 2, fit.dmin);
    pack_scales(&fit.scales, &fit.mins, &mut block[4..16]);
    pack_nibbles(&fit.codes, &mut block[16..]);
}

pub(super) fn encode_block_q5_k(x: &[f32; 256], block: &mut [u8; 176]) {
    let fit = fit_super_block(x, 31.0);
    put_half(block, 0, fit.d);
    put_half(block, 2, fit.dmin);
    pack_scales(&fit.scales, &fit.mins, &mut block[4..16]);
    for (i, byte) in block[16..48].iter_mut().enumerate() {
        *byte = (0..8).fold(0, |bits, g| bits | ((fit.codes[32 * g + i] >> 4) << g));
    }
    pack_nibbles(&fit.codes, &mut block[48..]);
}

pub(super) fn encode_block_q6_k(x: &[f32; 256], block: &mut [u8; 210]) {
    let (groups, _) = x.as_chunks::<16>();
    let mut scales = [0.0f32; 16];
    for (scale, x) in scales.iter_mut().zip(groups) {
        *scale = fit_symmetric(x, &x.map(|v| v * v), -32.0, 31.0);
    }
    let peak = scales.iter().fold(0.0, |peak: f32, &s| if s.abs() > peak.abs() { s } else { peak });
    let d = as_half(peak / -128.0);
    put_half(block, 208, d);
    let mut codes = [0u8; 256];
    for (g, x) in groups.iter().enumerate() {
        let weights = x.map(|v| v * v);
        let mut best = (f32::INFINITY, 0.0);
        for scale in neighbours(scale_code(scales[g], d, -128.0, 127.0), -128.0, 127.0) {
            let error = search::error(x, &weights, d * scale, 0.0, -32.0, 31.0);
            if error < best.0 {
                best = (error, scale);
            }
        }
        let scale = best.1;
        block[192 + g] = scale as i8 as u8;
        let inverse = if d * scale == 0.0 { 0.0 } else { 1.0 / (d * scale) };
        for (q, &v) in codes[16 * g..].iter_mut().zip(x) {
            *q = (code(v, inverse, -32.0, 31.0) + 32.0) as u8;
        }
    }
    for half in 0..2 {
        let codes = &codes[128 * half..];
        for l in 0..32 {
            block[64 * half + l] = (codes[l] & 15) | ((codes[64 + l] & 15) << 4);
            block[64 * half + 32 + l] = (codes[32 + l] & 15) | ((codes[96 + l] & 15) << 4);
            block[128 + 32 * half + l] = (0..4).fold(0, |bits, g| bits | ((codes[32 * g + l] >> 4) << (2 * g)));
        }
    }
}

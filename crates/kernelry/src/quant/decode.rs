//! One decoder per block format: the definition that tests, loaders and tools share.
//!
//! Each product of scale factors and code is exact in f32 and at most one rounding happens per value (the final addition in the
//! formats with a minimum), so the result is uniquely defined: it does not depend on fused multiply-add or on the order of factors.
//! Scales are widened to f32 before anything is done with them.
//!
//! Source of the layouts: `ggml-common.h` and `ggml-quants.c` of ggml; checked against the Python package `gguf`.

use half::f16;

/// The non-linear 4-bit code book of [`IQ4_NL`](super::GgmlType::IQ4_NL) and [`IQ4_XS`](super::GgmlType::IQ4_XS). Frozen by the file
/// format; it contains no zero.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of FP4 E2M1, by code.
pub const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The little-endian half at byte `at`, widened.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 4-bit codes of a block of 32: low nibbles are values 0..16, high nibbles values 16..32.
#[inline(always)]
fn nibbles(qs: &[u8], mut store: impl FnMut(usize, u8)) {
    for (j, &byte) in qs.iter().enumerate() {
        store(j, byte & 15);
        store(j + 16, byte >> 4);
    }
}

/// `Q4_0`: `d * (q - 8)`.
#[inline]
pub fn decode_block_q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], |j, q| out[j] = d * (f32::from(q) - 8.0));
}

/// `Q4_1`: `d * q + m`.
#[inline]
pub fn decode_block_q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], |j, q| out[j] = d * f32::from(q) + m);
}

/// `Q5_0`: `d * (q - 16)`; bit `j` of the mask is the fifth bit of value `j`.
#[inline]
pub fn decode_block_q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    nibbles(&block[6..], |j, q| out[j] = d * (f32::from(q | fifth_bit(high, j)) - 16.0));
}

/// `Q5_1`: `d * q + m`.
#[inline]
pub fn decode_block_q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    nibbles(&block[8..], |j, q| out[j] = d * f32::from(q | fifth_bit(high, j)) + m);
}

#[inline(always)]
fn fifth_bit(high: u32, j: usize) -> u8 {
    (((high >> j) & 1) << 4) as u8
}

/// `Q8_0`: `d * q`.
#[inline]
pub fn decode_block_q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (o, &q) in out.iter_mut().zip(&block[2..]) {
        *o = d * f32::from(q as i8);
    }
}

/// `Q8_1`: `d * q`. The second half, `d` times the sum of the codes, serves integer dot products and is not needed here.
#[inline]
pub fn decode_block_q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (o, &q) in out.iter_mut().zip(&block[4..]) {
        *o = d * f32::from(q as i8);
    }
}

/// `Q8_K`: `d * q` with an f32 scale; the partial sums at the end are not needed here.
#[inline]
pub fn decode_block_q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (o, &q) in out.iter_mut().zip(&block[4..260]) {
        *o = d * f32::from(q as i8);
    }
}

/// `IQ4_NL`: `d * table[q]`.
#[inline]
pub fn decode_block_iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], |j, q| out[j] = d * f32::from(IQ4_VALUES[usize::from(q)]));
}

/// `IQ4_XS`: `d * (scale - 32) * table[q]`, a 6-bit scale per 32 values.
#[inline]
pub fn decode_block_iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let scales_high = u16::from_le_bytes([block[2], block[3]]);
    for (g, run) in out.chunks_exact_mut(32).enumerate() {
        let low = (block[4 + g / 2] >> (4 * (g % 2))) & 15;
        let high = ((scales_high >> (2 * g)) & 3) as u8;
        let scale = d * (f32::from(low | (high << 4)) - 32.0);
        nibbles(&block[8 + 16 * g..24 + 16 * g], |j, q| run[j] = scale * f32::from(IQ4_VALUES[usize::from(q)]));
    }
}

/// `MXFP4`: `2^(e - 127) * fp4[q]`; the table holds doubled values, so the scale is halved.
#[inline]
pub fn decode_block_mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let e = u32::from(block[0]);
    // Half of 2^(e-127) is subnormal for the two smallest exponents.
    let half_scale = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
    nibbles(&block[1..], |j, q| out[j] = half_scale * f32::from(MXFP4_VALUES[usize::from(q)]));
}

/// 2-bit codes in runs of 128 values: byte `l` of a run of 32 bytes holds values `l`, `32 + l`, `64 + l`, `96 + l`.
#[inline(always)]
fn two_bit_code(qs: &[u8], k: usize) -> u8 {
    (qs[32 * (k / 128) + k % 32] >> (2 * ((k % 128) / 32))) & 3
}

/// `Q2_K`: `d * scale * q - dmin * min`, 4-bit scale and minimum per 16 values.
#[inline]
pub fn decode_block_q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (i, run) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(block[i] & 15);
        let min = dmin * f32::from(block[i] >> 4);
        for (j, o) in run.iter_mut().enumerate() {
            *o = scale * f32::from(two_bit_code(&block[16..80], 16 * i + j)) - min;
        }
    }
}

/// `Q3_K`: `d * (scale - 32) * q` with `q` in -4..=3, a 6-bit scale per 16 values.
#[inline]
pub fn decode_block_q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 108);
    let (high_mask, qs, scales) = (&block[..32], &block[32..96], &block[96..108]);
    for (i, run) in out.chunks_exact_mut(16).enumerate() {
        let low = (scales[i % 8] >> (4 * (i / 8))) & 15;
        let high = (scales[8 + i % 4] >> (2 * (i / 4))) & 3;
        let scale = d * (f32::from(low | (high << 4)) - 32.0);
        for (j, o) in run.iter_mut().enumerate() {
            let k = 16 * i + j;
            let third_bit = (high_mask[k % 32] >> (k / 32)) & 1;
            *o = scale * (f32::from(two_bit_code(qs, k) | (third_bit << 2)) - 4.0);
        }
    }
}

/// The eight 6-bit (scale, minimum) pairs that `Q4_K` and `Q5_K` pack into 12 bytes.
#[inline]
pub fn unpack_scales_k4(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        mins[i] = packed[4 + i] & 63;
        scales[4 + i] = (packed[8 + i] & 15) | ((packed[i] >> 6) << 4);
        mins[4 + i] = (packed[8 + i] >> 4) | ((packed[4 + i] >> 6) << 4);
    }
    (scales, mins)
}

/// Scale and minimum, widened, of each of the eight sub-blocks of `Q4_K` and `Q5_K`.
#[inline(always)]
fn scales_k4(block: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let mut packed = [0; 12];
    packed.copy_from_slice(&block[4..16]);
    let (scales, mins) = unpack_scales_k4(&packed);
    (scales.map(|s| d * f32::from(s)), mins.map(|m| dmin * f32::from(m)))
}

/// `Q4_K`: `d * scale * q - dmin * min`, 6-bit scale and minimum per 32 values.
#[inline]
pub fn decode_block_q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scales, mins) = scales_k4(block);
    for (g, run) in out.chunks_exact_mut(32).enumerate() {
        let qs = &block[16 + 32 * (g / 2)..];
        for (o, &byte) in run.iter_mut().zip(qs) {
            *o = scales[g] * f32::from((byte >> (4 * (g % 2))) & 15) - mins[g];
        }
    }
}

/// `Q5_K`: as `Q4_K`, with bit `g` of high byte `i` the fifth bit of value `32 g + i`.
#[inline]
pub fn decode_block_q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scales, mins) = scales_k4(block);
    let high = &block[16..48];
    for (g, run) in out.chunks_exact_mut(32).enumerate() {
        let qs = &block[48 + 32 * (g / 2)..];
        for ((o, &byte), &bits) in run.iter_mut().zip(qs).zip(high) {
            let q = ((byte >> (4 * (g % 2))) & 15) | (((bits >> g) & 1) << 4);
            *o = scales[g] * f32::from(q) - mins[g];
        }
    }
}

/// `Q6_K`: `d * scale * (q - 32)`, a signed 8-bit scale per 16 values.
#[inline]
pub fn decode_block_q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for (g, run) in out.chunks_exact_mut(32).enumerate() {
        // Runs of 32: the low nibbles of 64 bytes are runs 0 and 1 of a half, their high nibbles runs 2 and 3.
        let (half, quarter) = (g / 4, g % 4);
        let low = &block[64 * half + 32 * (quarter % 2)..];
        let high = &block[128 + 32 * half..];
        for (l, ((o, &lo), &hi)) in run.iter_mut().zip(low).zip(high).enumerate() {
            let q = ((lo >> (4 * (quarter / 2))) & 15) | (((hi >> (2 * quarter)) & 3) << 4);
            let scale = d * f32::from(block[192 + 2 * g + l / 16] as i8);
            *o = scale * (f32::from(q) - 32.0);
        }
    }
}

/// `TQ1_0`: `d * (q - 1)`, five base-3 digits to a byte (four in the last four bytes).
#[inline]
pub fn decode_block_tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let d = half_at(block, 52);
    // The digits are stored as a fraction of 256, most significant first: multiplying by 3^n drops n digits.
    let digit = |byte: u8, n: usize| (u16::from(byte.wrapping_mul(POWERS[n])) * 3) >> 8;
    let mut store = |at: usize, bytes: &[u8], digits: usize| {
        for n in 0..digits {
            for (j, &byte) in bytes.iter().enumerate() {
                out[at + n * bytes.len() + j] = d * (f32::from(digit(byte, n)) - 1.0);
            }
        }
    };
    store(0, &block[..32], 5);
    store(160, &block[32..48], 5);
    store(240, &block[48..52], 4);
}

/// `TQ2_0`: `d * (q - 1)`, 2-bit codes.
#[inline]
pub fn decode_block_tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at(block, 64);
    for (k, o) in out.iter_mut().enumerate() {
        *o = d * (f32::from(two_bit_code(&block[..64], k)) - 1.0);
    }
}

//! Many rows of activations: panels of decoded weights for the tiles of [`gemm`](crate::backend::cpu::dense::gemm).

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::round;
use super::dequant::{decode_step, steps};
use super::format::{Blocks, STEP};
use super::{Mode, Problem};
use crate::backend::cpu::dense::gemm::{
    FLOAT_K_BLOCK, FLOAT_WORDS_PER_ROW, Packed, Panel, Shape, TilePlace, float_rows, float_tile, product,
};
use crate::backend::cpu::simd::Simd;

/// Bytes of the largest [`STEP`] of a format: eight blocks of Q8_0.
const LARGEST_STEP: usize = 8 * 34;

pub(super) fn run<F: Blocks>(problem: &Problem<'_>, y: &mut [f32]) {
    let &Problem { x, m, n, k, mode, level, .. } = problem;
    let shape = Shape { batch: 1, m, n, k };
    match mode {
        Mode::Precise => {
            let x = Packed::new(level, bytemuck::cast_slice(x), k, shape);
            product(level, shape, &Precise::<F> { weights: problem.weights, k, x, format: PhantomData }, y);
        }
        Mode::Fast => {
            let rounded = round(x, m, k, F::GROUP);
            let groups = rounded.padded / F::GROUP;
            // One scale for each block of 32, whatever the groups of the weights.
            let scales: Vec<f32> = rounded.scales.iter().step_by(32 / F::GROUP).copied().collect();
            let sums: Vec<f32> = rounded.sums.iter().zip(&rounded.scales).map(|(sum, scale)| *sum as f32 * scale).collect();
            let part = |len: usize| Shape { k: len, ..shape };
            let source = Fast::<F> {
                weights: problem.weights,
                k,
                codes: Packed::new(level, &rounded.codes, rounded.padded / 4, part(k / 4)),
                scales: Packed::new(level, bytemuck::cast_slice(&scales), rounded.padded / 32, part(k / 32)),
                sums: Packed::new(level, bytemuck::cast_slice(&sums), groups, part(k / F::GROUP)),
                format: PhantomData,
            };
            product(level, shape, &source, y);
        }
    }
}

/// Weights widened to f32.
struct Precise<'a, F> {
    weights: &'a [u8],
    k: usize,
    x: Packed,
    format: PhantomData<F>,
}

impl<F: Blocks> Panel for Precise<'_, F> {
    const K_BLOCK: usize = FLOAT_K_BLOCK;
    const WORDS_PER_ROW: usize = FLOAT_WORDS_PER_ROW;

    #[inline(always)]
    fn rows<S: Simd>() -> usize {
        float_rows::<S>()
    }

    #[inline(always)]
    fn fill<S: Simd>(&self, s: S, panel: &mut [f32], _batch: usize, row: usize, k: Range<usize>) {
        let row_bytes = F::FORMAT.row_bytes(self.k);
        let bytes = &self.weights[row * row_bytes..(row + 1) * row_bytes][F::FORMAT.row_bytes(k.start)..];
        steps!(F, bytes, k.len(), |at, p| {
            let out = &mut panel[at..at + STEP];
            // SAFETY: `p` is a whole step, `out` holds one.
            unsafe { decode_step::<S, F>(s, p, out.as_mut_ptr()) };
        });
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const VECTORS: usize>(&self, s: S, place: TilePlace<'_>) {
        // SAFETY: the caller's.
        unsafe { float_tile::<S, VECTORS>(s, &self.x, &place) };
    }
}

/// Values along `k` that are decoded at a time.
const K_BLOCK: usize = 1024;
/// Bytes between rows of a panel: codes, then scales, then minima, and a line so that rows fall into different sets of the cache.
const SCALES_AT: usize = K_BLOCK;
const ROW_BYTES: usize = K_BLOCK + 2 * 4 * K_BLOCK / 16 + 64;

/// Weights as bytes, with the scales and offsets of their groups beside them.
struct Fast<'a, F> {
    weights: &'a [u8],
    k: usize,
    /// Four codes in each element.
    codes: Packed,
    scales: Packed,
    sums: Packed,
    format: PhantomData<F>,
}

impl<F: Blocks> Panel for Fast<'_, F> {
    const K_BLOCK: usize = K_BLOCK;
    const WORDS_PER_ROW: usize = ROW_BYTES / 4;

    #[inline(always)]
    fn rows<S: Simd>() -> usize {
        if S::LANES == 16 { 6 } else { 4 }
    }

    #[inline(always)]
    fn fill<S: Simd>(&self, s: S, panel: &mut [f32], _batch: usize, row: usize, k: Range<usize>) {
        let row_bytes = F::FORMAT.row_bytes(self.k);
        let bytes = &self.weights[row * row_bytes..(row + 1) * row_bytes][F::FORMAT.row_bytes(k.start)..];
        let (codes, factors) = panel.split_at_mut(SCALES_AT / 4);
        let (scales, offsets) = factors.split_at_mut(K_BLOCK / 16);
        let codes: &mut [u8] = bytemuck::cast_slice_mut(codes);
        steps!(F, bytes, k.len(), |at, p| {
            let codes = &mut codes[at..at + STEP];
            let groups = at / F::GROUP..(at + STEP) / F::GROUP;
            let (scales, offsets) = (&mut scales[groups.clone()], &mut offsets[groups]);
            let zero = s.h_splat(-F::zero::<S>() as f32);
            // SAFETY: `p` is a whole step; the slices have room for its codes, and for the factors of its groups.
            unsafe {
                let mut c = 0;
                while c < STEP / (4 * S::LANES) {
                    let q = F::codes(s, p, c);
                    codes.as_mut_ptr().add(4 * S::LANES * c).cast::<S::B>().write_unaligned(q);
                    c += 1;
                }
                let (a, b) = F::scales(s, p);
                s.h_store(scales.as_mut_ptr(), a);
                if F::GROUP == 16 {
                    s.h_store(scales.as_mut_ptr().add(8), b);
                    s.h_store(offsets.as_mut_ptr(), s.h_mul(a, zero));
                    s.h_store(offsets.as_mut_ptr().add(8), s.h_mul(b, zero));
                } else {
                    s.h_store(offsets.as_mut_ptr(), if F::HAS_MIN { b } else { s.h_mul(a, zero) });
                }
            }
        });
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const VECTORS: usize>(&self, s: S, place: TilePlace<'_>) {
        // SAFETY: the caller's.
        unsafe {
            if S::LANES == 16 {
                self.tile_of::<S, 6, VECTORS>(s, &place);
            } else {
                self.tile_of::<S, 4, VECTORS>(s, &place);
            }
        }
    }
}

impl<F: Blocks> Fast<'_, F> {
    /// # Safety
    /// As [`Panel::tile`].
    #[inline(always)]
    unsafe fn tile_of<S: Simd, const ROWS: usize, const VECTORS: usize>(&self, s: S, place: &TilePlace<'_>) {
        let width = VECTORS * S::LANES;
        let per_block = 32 / F::GROUP;
        let has_offset = F::HAS_MIN || F::zero::<S>() != 0;
        // SAFETY: the caller vouches for the panel and the output; the packed activations hold the tile's columns for all of `k`.
        unsafe {
            let mut acc = place.load::<S, ROWS, VECTORS>(s);
            let panel = place.panel.as_ptr().cast::<u8>();
            let codes = self.codes.at(place.batch, place.column, place.k.start / 4).cast::<u8>();
            let x_scales = self.scales.at(place.batch, place.column, place.k.start / 32);
            let x_sums = self.sums.at(place.batch, place.column, place.k.start / F::GROUP);
            for block in 0..(place.k.end - place.k.start) / 32 {
                let mut x_scale = [s.zero(); VECTORS];
                for (v, scale) in x_scale.iter_mut().enumerate() {
                    *scale = s.load(x_scales.add(block * width + v * S::LANES));
                }
                for part in 0..per_block {
                    let group = block * per_block + part;
                    let mut products = [[s.int_zero(); VECTORS]; ROWS];
                    let w = panel.add(group * F::GROUP);
                    let x = codes.add(group * F::GROUP * width);
                    for j in 0..F::GROUP / 4 {
                        let mut values = [s.load_bytes(x.add(4 * j * width)); VECTORS];
                        for (v, value) in values.iter_mut().enumerate().skip(1) {
                            *value = s.load_bytes(x.add(4 * (j * width + v * S::LANES)));
                        }
                        for (r, row) in products.iter_mut().enumerate() {
                            let q = s.broadcast4(w.add(r * ROW_BYTES + 4 * j));
                            for (sum, value) in row.iter_mut().zip(values) {
                                *sum = if F::SIGNED { s.dot::<true>(*sum, q, value) } else { s.dot::<false>(*sum, q, value) };
                            }
                        }
                    }
                    let factors = panel.add(SCALES_AT).cast::<f32>().add(group);
                    for (r, row) in products.iter().enumerate() {
                        let scale = s.splat(*factors.add(r * ROW_BYTES / 4));
                        for v in 0..VECTORS {
                            acc[r][v] = s.fma(s.int_to_float(row[v]), s.mul(scale, x_scale[v]), acc[r][v]);
                        }
                    }
                    if has_offset {
                        for v in 0..VECTORS {
                            let sums = s.load(x_sums.add(group * width + v * S::LANES));
                            for (r, row) in acc.iter_mut().enumerate() {
                                let offset = s.splat(*factors.add(K_BLOCK / 16 + r * ROW_BYTES / 4));
                                row[v] = s.fma(offset, sums, row[v]);
                            }
                        }
                    }
                }
            }
            place.store(s, acc);
        }
    }
}

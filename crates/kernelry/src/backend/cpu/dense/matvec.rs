//! Few rows of activations: bound by the bandwidth of the weights.

use std::ops::Range;

use super::Weight;
use super::gemm::{Output, Shape, SharedMut};
use crate::backend::cpu::parallel::for_ranges;
use crate::backend::cpu::simd::{Kernel, Level, Simd, dispatch};

pub(super) fn run<W: Weight, O: Output>(level: Level, shape: Shape, weights: &[W], x: &[f32], y: &mut [O]) {
    let out = SharedMut::new(y);
    // About 16 multiply-adds in a nanosecond, less where the weights come from memory.
    let nanos = shape.k * shape.m.div_ceil(2) / 8;
    for_ranges(shape.batch * shape.n, nanos, |rows| dispatch(level, Task { shape, weights, x, rows, out }));
}

/// A range of rows of all weight matrices, with all rows of activations of each.
struct Task<'a, W, O> {
    shape: Shape,
    weights: &'a [W],
    x: &'a [f32],
    rows: Range<usize>,
    out: SharedMut<'a, O>,
}

impl<W: Weight, O: Output> Kernel for Task<'_, W, O> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Shape { m, n, k, .. } = self.shape;
        for row in self.rows.clone() {
            let w = &self.weights[row * k..(row + 1) * k];
            let (batch, row) = (row / n, row % n);
            let mut at = 0;
            while at < m {
                // SAFETY: `R` rows of activations are left from `at`, and column `row` of this product is this task's.
                unsafe {
                    match m - at {
                        4.. => self.group::<S, 4>(s, w, batch * m + at, row),
                        2..=3 => self.group::<S, 2>(s, w, batch * m + at, row),
                        _ => self.group::<S, 1>(s, w, batch * m + at, row),
                    }
                }
                at += match m - at {
                    4.. => 4,
                    2..=3 => 2,
                    _ => 1,
                };
            }
        }
    }
}

impl<W: Weight, O: Output> Task<'_, W, O> {
    /// Multiplies a row of weights with `R` rows of activations from row `first` of all.
    ///
    /// # Safety
    /// They exist, and no other thread writes their elements of column `row`.
    #[inline(always)]
    unsafe fn group<S: Simd, const R: usize>(&self, s: S, w: &[W], first: usize, row: usize) {
        let (n, k) = (self.shape.n, self.shape.k);
        let x = self.x[first * k..(first + R) * k].as_ptr();
        let mut acc = [[s.zero(); 2]; R];
        let mut i = 0;
        // SAFETY: every read ends at `k` at the latest, inside the row of weights and inside each of the rows of activations.
        unsafe {
            while i + 2 * S::LANES <= k {
                let weights = [W::load(s, w.as_ptr().add(i)), W::load(s, w.as_ptr().add(i + S::LANES))];
                for (r, sums) in acc.iter_mut().enumerate() {
                    sums[0] = s.fma(weights[0], s.load(x.add(r * k + i)), sums[0]);
                    sums[1] = s.fma(weights[1], s.load(x.add(r * k + i + S::LANES)), sums[1]);
                }
                i += 2 * S::LANES;
            }
            while i < k {
                let part = (k - i).min(S::LANES);
                let mut weights = [0.0f32; 16];
                for (wide, w) in weights.iter_mut().zip(&w[i..i + part]) {
                    *wide = w.widen();
                }
                let weights = s.load(weights.as_ptr());
                for (r, sums) in acc.iter_mut().enumerate() {
                    sums[0] = s.fma(weights, s.load_n(x.add(r * k + i), part), sums[0]);
                }
                i += part;
            }
            for (r, [a, b]) in acc.into_iter().enumerate() {
                self.out.write((first + r) * n + row, O::from_f32(s.sum(s.add(a, b))));
            }
        }
    }
}

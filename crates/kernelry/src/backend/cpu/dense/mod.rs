//! Compute cores of matmul with dense weights, f32, f16 or bf16: `y[b, m, n] = Σ_k x[b, m, k] · w[b / g, n, k]`, where `g` consecutive
//! batches of `x` share one of the weights. Operands are widened to f32, products summed in f32.

pub(crate) mod gemm;
pub(crate) mod kernels;
mod matvec;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;

use gemm::{FLOAT_K_BLOCK, FLOAT_WORDS_PER_ROW, Output, Packed, Panel, Shape, TilePlace, float_rows, float_tile, product};
use half::{bf16, f16};

use super::quantized::Route;
use super::simd::convert::Half;
use super::simd::{Level, Simd};

/// Element type of weights.
pub(crate) trait Weight: Copy + Send + Sync + 'static {
    /// Widens, exactly.
    fn widen(self) -> f32;
    /// Widens `S::LANES` values.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F;
}

impl Weight for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::F {
        // SAFETY: the caller's.
        unsafe { s.load(p) }
    }
}

macro_rules! half_weight {
    ($($t:ty),*) => { $(
        impl Weight for $t {
            #[inline(always)]
            fn widen(self) -> f32 {
                Half::widen(self)
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const $t) -> S::F {
                // SAFETY: the caller's.
                unsafe { Half::load(s, p) }
            }
        }
    )* };
}
half_weight!(f16, bf16);

/// What is done to activations before they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rounding {
    /// Nothing.
    None,
    /// Each is rounded to f16, to nearest even; what is too large becomes infinite.
    F16,
    /// Each is rounded to bf16, to nearest even.
    Bf16,
}

/// Rows of activations for one matrix up to which reading each weight in turn is faster than tiles. Measured.
const VECTOR_ROWS: usize = 6;

/// A batch of products with dense weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem<'a, W> {
    /// `[weight_batch, n, k]`.
    pub weights: &'a [W],
    /// `[batch, m, k]`.
    pub x: &'a [f32],
    /// Number of weight matrices; it divides `batch`.
    pub weight_batch: usize,
    /// Number of products.
    pub batch: usize,
    /// Rows of activations of each product.
    pub m: usize,
    /// Rows of a weight matrix.
    pub n: usize,
    /// Length of both.
    pub k: usize,
    /// What is done to activations.
    pub rounding: Rounding,
    /// Which core runs.
    pub route: Route,
    /// Instructions to use: [`Level::detect`] but in tests.
    pub level: Level,
}

/// Computes `y [batch, m, n]`, on several threads if it is worth it. Elements past the end are left alone.
///
/// # Panics
/// If a slice is shorter than the sizes say, or `weight_batch` does not divide `batch`. Launchers check both.
pub(crate) fn matmul<W: Weight, O: Output>(problem: &Problem<'_, W>, y: &mut [O]) {
    let &Problem { weights, x, weight_batch, batch, n, k, level, .. } = problem;
    if weight_batch == 0 || batch * problem.m * n == 0 {
        return;
    }
    assert!(batch.is_multiple_of(weight_batch), "weight_batch divides batch");
    // Batches that share weights are so many more rows of activations of one product: they follow each other in `x` and in `y`.
    let m = batch / weight_batch * problem.m;
    let shape = Shape { batch: weight_batch, m, n, k };
    let (x, y) = (&x[..weight_batch * m * k], &mut y[..weight_batch * m * n]);
    assert!(weights.len() >= weight_batch * n * k, "slices hold what the sizes say");
    let x = rounded(x, problem.rounding);
    let vector = match problem.route {
        Route::Auto => m <= VECTOR_ROWS,
        Route::Vector => true,
        Route::Matrix => false,
    };
    if vector || k == 0 {
        matvec::run(level, shape, weights, &x, y);
    } else {
        let x = Packed::new(level, bytemuck::cast_slice(&x), k, shape);
        product(level, shape, &Floats { weights, n, k, x }, y);
    }
}

/// As [`matmul`], for one product with f16 activations, which are widened.
///
/// # Panics
/// As [`matmul`].
pub(crate) fn matmul_f16(level: Level, weights: &[f16], x: &[f16], (m, n, k): (usize, usize, usize), y: &mut [f16]) {
    let mut wide = vec![0.0; m * k];
    super::simd::convert::widen(&x[..m * k], &mut wide);
    let problem = Problem { weights, x: &wide, weight_batch: 1, batch: 1, m, n, k, rounding: Rounding::None, route: Route::Auto, level };
    matmul(&problem, y);
}

/// Activations as they are multiplied.
fn rounded(x: &[f32], rounding: Rounding) -> Cow<'_, [f32]> {
    fn through<H: Half>(x: &[f32]) -> Vec<f32> {
        let mut narrow = vec![H::narrow(0.0); x.len()];
        let mut out = vec![0.0; x.len()];
        super::simd::convert::narrow(x, &mut narrow);
        super::simd::convert::widen(&narrow, &mut out);
        out
    }
    match rounding {
        Rounding::None => Cow::Borrowed(x),
        Rounding::F16 => Cow::Owned(through::<f16>(x)),
        Rounding::Bf16 => Cow::Owned(through::<bf16>(x)),
    }
}

/// Panels of dense weights, widened.
struct Floats<'a, W> {
    weights: &'a [W],
    n: usize,
    k: usize,
    x: Packed,
}

impl<W: Weight> Panel for Floats<'_, W> {
    const K_BLOCK: usize = FLOAT_K_BLOCK;
    const WORDS_PER_ROW: usize = FLOAT_WORDS_PER_ROW;

    #[inline(always)]
    fn rows<S: Simd>() -> usize {
        float_rows::<S>()
    }

    #[inline(always)]
    fn fill<S: Simd>(&self, s: S, panel: &mut [f32], batch: usize, row: usize, k: Range<usize>) {
        let start = (batch * self.n + row) * self.k;
        let row = &self.weights[start + k.start..start + k.end];
        let (mut from, mut to) = (row.chunks_exact(S::LANES), panel[..row.len()].chunks_exact_mut(S::LANES));
        for (f, t) in (&mut from).zip(&mut to) {
            // SAFETY: both chunks have `S::LANES` elements.
            unsafe { s.store(t.as_mut_ptr(), W::load(s, f.as_ptr())) };
        }
        for (f, t) in from.remainder().iter().zip(to.into_remainder()) {
            *t = f.widen();
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const VECTORS: usize>(&self, s: S, place: TilePlace<'_>) {
        // SAFETY: the caller's.
        unsafe { float_tile::<S, VECTORS>(s, &self.x, &place) };
    }
}

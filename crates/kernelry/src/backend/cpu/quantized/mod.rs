//! Compute cores of matmul with weights in GGML blocks: `y[m, n] = Σ_k x[m, k] · w[n, k]`.
//!
//! Few rows of `x` take [`matvec`]: each row of weights is read once, decoded in registers and multiplied with up to four rows of
//! activations. Many take the tiles of [`gemm`](super::dense::gemm): a panel of weights is decoded into the cache once and multiplied with
//! all of them. In both, a row of the output depends on its own row of `x` alone.

mod activations;
mod dequant;
mod format;
pub(crate) mod kernels;
mod matvec;
mod panel;
#[cfg(test)]
mod tests;

pub(crate) use dequant::dequantize_f16;
pub(crate) use format::Format;

use super::simd::Level;
use format::with_format;

/// What happens to the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// They stay f32, products are summed in f32.
    Precise,
    /// They are rounded to 8 bits, with one scale for each 32 values of a row; products are summed in integers. The error of a result is
    /// that of the rounding: a normalised mean squared error of about 3e-5. A block with a NaN or an infinity makes its row NaN.
    Fast,
}

/// Which core runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Route {
    /// The faster one.
    Auto,
    /// Always the one for few rows: the result of a row does not depend on the number of rows.
    Vector,
    /// Always the one for many rows.
    Matrix,
}

/// Rows of activations up to which reading each weight in turn is faster than decoding panels. Measured.
const VECTOR_ROWS: usize = 6;

/// One product of activations with a quantised matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem<'a> {
    /// Format of `weights`.
    pub format: Format,
    /// `[n, k]` in blocks, rows packed.
    pub weights: &'a [u8],
    /// `[m, k]`.
    pub x: &'a [f32],
    /// Rows of activations.
    pub m: usize,
    /// Rows of weights: outputs.
    pub n: usize,
    /// Length of both, a whole number of blocks.
    pub k: usize,
    /// Rounding of activations.
    pub mode: Mode,
    /// Which core runs.
    pub route: Route,
    /// Instructions to use: [`Level::detect`] but in tests.
    pub level: Level,
}

/// Computes `y [m, n]`, on several threads if it is worth it. Elements of `y` past `m · n` are left alone.
///
/// # Panics
/// If a slice is shorter than the sizes say, or `k` is not a whole number of blocks. Launchers check both.
pub(crate) fn matmul(problem: &Problem<'_>, y: &mut [f32]) {
    let &Problem { format, weights, x, m, n, k, route, .. } = problem;
    assert!(k.is_multiple_of(format.block_len()), "k is a whole number of blocks");
    assert!(weights.len() >= n * format.row_bytes(k) && x.len() >= m * k && y.len() >= m * n, "slices hold what the sizes say");
    if m == 0 || n == 0 {
        return;
    }
    let vector = match route {
        Route::Auto => m <= VECTOR_ROWS,
        Route::Vector => true,
        Route::Matrix => false,
    };
    let y = &mut y[..m * n];
    with_format!(format, F => if vector { matvec::run::<F>(problem, y) } else { panel::run::<F>(problem, y) });
}

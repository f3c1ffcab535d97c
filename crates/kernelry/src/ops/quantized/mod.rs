//! Products with weights stored in GGML blocks, `Y = X · Wᵀ`, and the expansion of such weights to f16.
//!
//! A weight is `n` rows of `k` values; a row is `k / block_len` blocks, exactly the bytes of a GGUF file. Three shapes of kernel
//! compute the same product: `mul_mv` one input row at a time, `mul_mv_ext` 2 to 8 rows that share each decoded weight, `mul_mm` any
//! number of rows by tiles.
//!
//! In math mode [`Fast`](crate::registry::Math::Fast) a CPU rounds each block of an input row to signed 8-bit integers with one f32
//! scale `d = max|x| / 127` and sums integer products: an element of the result then moves by at most `Σ |w|·d/2`. A GPU computes the same in
//! both modes; [`QuantizedMatmul`] then takes kernels that round input rows to f16.

mod entries;
mod experts;
mod formats;
mod fused;
mod launcher;

pub(crate) use entries::kernels;
pub use experts::{ExpertMapParams, MulMmIdParams, MulMvIdParams};
pub(crate) use formats::{FORMATS, Format};
pub use fused::{LinearAdd, MulMvAddParams, MulMvNormParams, NormLinear};
pub use launcher::QuantizedMatmul;
pub(crate) use launcher::record_fast;

crate::params! {
    /// Parameters of `kernel_mul_mv_*`: `ne12·ne13` independent products that share `ne02·(ne13/r3)` weight matrices. Product
    /// `(i3, i2)` uses the matrix `i2/r2 + (i3/r3)·ne02`.
    pub struct MulMvParams {
        /// input rows of a product
        m: u32,
        /// weight rows, the outputs of an input row
        n: u32,
        /// length of a row
        k: u32,
        /// inner batch of the input
        ne12: u32,
        /// outer batch of the input
        ne13: u32,
        /// inner batch of the weight
        ne02: u32,
        /// consecutive inner batches that share a weight: ne12 / ne02
        r2: u32,
        /// consecutive outer batches that share a weight
        r3: u32,
    }
}

crate::params! {
    /// Parameters of `kernel_mul_mm_*`: as [`MulMvParams`], with rows and batches of the input at strides.
    pub struct MulMmParams {
        /// elements from one input row to the next: at least k, packed or a multiple of 8
        x_row_stride: u64,
        /// elements from one input batch to the next: at least k, packed or a multiple of 8
        x_batch_stride: u64,
        /// input rows of a product
        m: u32,
        /// weight rows, the outputs of an input row
        n: u32,
        /// length of a row
        k: u32,
        /// inner batch of the input
        ne12: u32,
        /// outer batch of the input
        ne13: u32,
        /// inner batch of the weight
        ne02: u32,
        /// consecutive inner batches that share a weight: ne12 / ne02
        r2: u32,
        /// consecutive outer batches that share a weight
        r3: u32,
    }
}

crate::params! {
    /// Parameters of `kernel_mul_mv_ext_*`: one weight for all batches.
    pub struct MulMvExtParams {
        /// input rows of a batch, 2 to 8
        m: u32,
        /// weight rows, the outputs of an input row
        n: u32,
        /// length of a row
        k: u32,
        /// batches
        batch: u32,
    }
}

crate::params! {
    /// Parameters of `*_perm021`: the input is attention output, stored head by head; the length of a row is `n_heads·head_dim`.
    pub struct Perm021Params {
        /// input rows of a batch
        m: u32,
        /// weight rows, the outputs of an input row
        n: u32,
        /// heads
        n_heads: u32,
        /// elements of a head, a multiple of 32
        head_dim: u32,
        /// batches, which share the weight
        batch: u32,
    }
}

crate::params! {
    /// Parameters of `hf2q_dequant_*_to_f16`.
    pub struct DequantParams {
        /// weight rows
        n: u32,
        /// length of a row
        k: u32,
    }
}

impl MulMvParams {
    /// One product of `m` rows.
    pub const fn single(m: u32, n: u32, k: u32) -> MulMvParams {
        MulMvParams { m, n, k, ne12: 1, ne13: 1, ne02: 1, r2: 1, r3: 1 }
    }
}

impl MulMmParams {
    /// One product of `m` packed rows.
    pub const fn single(m: u32, n: u32, k: u32) -> MulMmParams {
        let (row, batch) = (k as u64, m as u64 * k as u64);
        MulMmParams { x_row_stride: row, x_batch_stride: batch, m, n, k, ne12: 1, ne13: 1, ne02: 1, r2: 1, r3: 1 }
    }
}

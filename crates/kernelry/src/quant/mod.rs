//! Block formats of quantised weights: the table of GGML types, decoders and quantisers.
//!
//! ```
//! use kernelry::quant::{GgmlType, dequantize_to_vec, quantize};
//!
//! let weights: Vec<f32> = (0..256).map(|i| (i as f32 * 0.1).sin()).collect();
//! let blocks = quantize(GgmlType::Q4_K, &weights)?;
//! assert_eq!(blocks.len(), GgmlType::Q4_K.row_bytes(256)?);
//! let decoded = dequantize_to_vec(GgmlType::Q4_K, &blocks)?;
//! assert!(weights.iter().zip(&decoded).all(|(w, d)| (w - d).abs() < 0.1));
//! # Ok::<(), kernelry::Error>(())
//! ```

pub mod decode;
mod dequantize;
mod encode;
mod repack;
mod types;

pub use dequantize::{dequantize, dequantize_row, dequantize_to_vec};
pub use encode::{quantize, quantize_into};
pub use repack::repack;
pub use types::GgmlType;

/// `n` zeros, or an error where the allocator would abort the process.
fn zeros<T: Clone + Default>(n: usize) -> crate::Result<Vec<T>> {
    let mut out = Vec::new();
    let bytes = (n as u64).saturating_mul(size_of::<T>() as u64);
    out.try_reserve_exact(n).map_err(|e| crate::Error::Allocation { bytes, reason: e.to_string() })?;
    out.resize(n, T::default());
    Ok(out)
}

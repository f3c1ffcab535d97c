//! Operations by family: catalogue entries and typed launchers.
//!
//! A launcher is a struct with named fields; `encode` checks the arguments against the catalogue entry and records the launch. Every
//! launcher fails with [`Error::InvalidArgument`], [`Error::UnsupportedDType`] or [`Error::DeviceMismatch`] for wrong arguments, and
//! [`Error::BackendUnsupported`] where the device lacks the kernel; then nothing was
//! recorded.

pub mod activation;
pub mod affine;
pub mod attention;
pub mod delta_net;
pub mod elementwise;
pub mod kv_cache;
pub mod layout;
pub mod linear;
pub mod matmul;
pub mod moe;
pub mod norm;
pub mod quantized;
pub mod rope;
pub mod sampling;
pub mod train;
pub mod turboquant;

use crate::catalogue::{Family, Kernel};
use crate::{Buffer, DType, Error, Result};

/// Every catalogue entry. Called once a process.
pub(crate) fn all() -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::with_capacity(360);
    kernels.extend(norm::kernels());
    kernels.extend(rope::kernels());
    kernels.extend(activation::kernels());
    kernels.extend(kv_cache::kernels());
    kernels.extend(attention::kernels());
    kernels.extend(affine::kernels());
    kernels.extend(moe::kernels());
    kernels.extend(delta_net::kernels());
    kernels.extend(train::kernels());
    kernels.extend(turboquant::kernels());
    kernels.extend(quantized::kernels());
    kernels.extend(matmul::kernels());
    kernels.extend(layout::kernels());
    kernels.extend(elementwise::kernels());
    kernels.extend(sampling::kernels());
    let without_function = Kernel::builder("placeholder", Family::Quantized, "no function: asking for its pipeline is an error");
    kernels.push(without_function.without_entry_point().build());
    kernels
}

/// A size as kernels take it.
pub(crate) fn size(op: &str, what: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::invalid(op, format!("{what}: got {value}, expected at most {}", u32::MAX)))
}

/// Rows and length of the last dimension; a vector is one row.
pub(crate) fn rows_and_cols(op: &str, what: &str, buffer: &Buffer) -> Result<(u32, u32)> {
    let cols = buffer.shape().last().copied().unwrap_or(1);
    Ok((size(op, what, buffer.len() / cols.max(1))?, size(op, what, cols)?))
}

/// The error for a dtype that no kernel of the operation takes.
pub(crate) fn unsupported(op: &str, what: &str, got: DType, expected: &str) -> Error {
    Error::UnsupportedDType { op: op.to_owned(), what: what.to_owned(), got, expected: expected.to_owned() }
}

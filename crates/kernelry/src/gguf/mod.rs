//! GGUF files: metadata and tensors of quantised models.
//!
//! [`GgufFile`] validates everything once when it is opened, so that later accesses cannot fail for the fault of the file;
//! [`GgufWriter`] makes such files. Layout: the GGUF specification of ggml, versions 2 and 3, little endian.
//!
//! ```
//! use kernelry::gguf::{GgufFile, GgufWriter};
//! use kernelry::quant::GgmlType;
//!
//! let mut writer = GgufWriter::new();
//! writer.set("general.architecture", "llama")?.tensor("output.weight", GgmlType::F32, &[2, 1])?;
//! let bytes = writer.to_bytes(&[&[0, 0, 128, 63, 0, 0, 0, 64]])?;
//!
//! let file = GgufFile::from_bytes(bytes)?;
//! assert_eq!(file.get_str("general.architecture")?, "llama");
//! assert_eq!(file.tensor("output.weight")?.shape, [2, 1]);
//! assert_eq!(file.tensor_f32("output.weight")?, [1.0, 2.0]);
//! # Ok::<(), kernelry::Error>(())
//! ```

mod cursor;
mod file;
mod value;
mod writer;

use crate::quant::GgmlType;

pub use file::{GgufFile, Limits, TensorInfo};
pub use value::{Array, FromValue, Value, ValueType};
pub use writer::{GgufStream, GgufWriter};

/// `GGUF` as a little-endian number.
const MAGIC: u32 = 0x4655_4747;

/// Alignment of the data section and of each tensor in it, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The key that sets the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";

fn fault(item: impl std::fmt::Display, problem: impl Into<String>) -> crate::Error {
    crate::Error::format("gguf", item.to_string(), problem)
}

/// `value` rounded up to a multiple of `alignment`, a power of two.
fn align_up(value: u64, alignment: u64) -> Option<u64> {
    Some(value.checked_add(alignment - 1)? & !(alignment - 1))
}

/// Bytes of a tensor's data; `shape` has the fastest dimension last.
///
/// Reader and writer share this rule. Zeros count as ones while overflow is checked, so that neither a zero nor the order of
/// dimensions hides a shape whose rows or strides could not be computed.
fn data_bytes(ty: GgmlType, shape: &[usize]) -> Result<usize, String> {
    let k = shape.last().copied().unwrap_or(1);
    if !k.is_multiple_of(ty.block_len()) {
        return Err(format!("rows of {k} values, expected a multiple of {} ({ty})", ty.block_len()));
    }
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim.max(1)));
    let bytes = elements.and_then(|elements| elements.div_ceil(ty.block_len()).checked_mul(ty.block_bytes()));
    let bytes = bytes.ok_or_else(|| format!("shape {shape:?} has too many bytes"))?;
    Ok(if shape.contains(&0) { 0 } else { bytes })
}

//! Tensors of safetensors files, in host memory.

use std::path::Path;

use kernelry::safetensors::{NewTensor, SafeTensors, StoredType, save};
use kernelry::{Buffer, Context, DType, Error};
use serde::Serialize;

use crate::failure::{CliResult, Failure};

/// A tensor in host memory.
pub(crate) struct HostTensor {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// What a person wants to see of a result.
#[derive(Serialize)]
pub(crate) struct Summary {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// Over finite elements.
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
    pub(crate) mean: Option<f64>,
    /// Elements that are NaN or infinite.
    pub(crate) not_finite: usize,
}

impl HostTensor {
    pub(crate) fn download(name: &str, buffer: &Buffer) -> CliResult<HostTensor> {
        let mut bytes = vec![0; buffer.byte_len()];
        buffer.read_bytes(&mut bytes)?;
        Ok(HostTensor { name: name.to_owned(), dtype: buffer.dtype(), shape: buffer.shape().to_vec(), bytes })
    }

    /// A buffer with these elements, which must be of type `expected`.
    pub(crate) fn upload(&self, ctx: &Context, op: &str, expected: DType) -> CliResult<Buffer> {
        if self.dtype != expected {
            let what = self.name.clone();
            return Err(Error::UnsupportedDType { op: op.to_owned(), what, got: self.dtype, expected: expected.to_string() }.into());
        }
        Ok(Buffer::from_bytes(ctx.device(), &self.bytes, self.dtype, &self.shape)?)
    }

    pub(crate) fn summary(&self) -> Summary {
        let (mut min, mut max, mut sum, mut count, mut not_finite) = (f64::INFINITY, f64::NEG_INFINITY, 0.0, 0usize, 0usize);
        for bytes in self.bytes.chunks_exact(self.dtype.size()) {
            let value = widen(self.dtype, bytes);
            if !value.is_finite() {
                not_finite += 1;
                continue;
            }
            min = min.min(value);
            max = max.max(value);
            sum += value;
            count += 1;
        }
        let some = |v: f64| (count > 0).then_some(v);
        let (name, shape) = (self.name.clone(), self.shape.clone());
        Summary { name, dtype: self.dtype, shape, min: some(min), max: some(max), mean: some(sum / count.max(1) as f64), not_finite }
    }
}

/// One element, little-endian as in the file.
fn widen(dtype: DType, bytes: &[u8]) -> f64 {
    let word = bytes.iter().rev().fold(0u64, |w, &b| w << 8 | u64::from(b));
    match dtype {
        DType::F32 => f64::from(f32::from_bits(word as u32)),
        DType::F16 => kernelry::f16::from_bits(word as u16).to_f64(),
        DType::BF16 => kernelry::bf16::from_bits(word as u16).to_f64(),
        DType::I8 => f64::from(word as u8 as i8),
        DType::I32 => f64::from(word as u32 as i32),
        DType::I64 => word as i64 as f64,
        _ => word as f64,
    }
}

/// Every tensor of a file.
pub(crate) fn read(path: &Path) -> CliResult<Vec<HostTensor>> {
    let broken = |e: Error| Failure::file(path, &e);
    let file = SafeTensors::open(path).map_err(broken)?;
    let mut tensors = Vec::new();
    for info in file.tensors() {
        // Kernels take masks as bytes.
        let dtype = if info.ty == StoredType::Bool { DType::U8 } else { info.dtype().map_err(broken)? };
        let bytes = file.tensor_bytes(&info.name).map_err(broken)?.to_vec();
        tensors.push(HostTensor { name: info.name.clone(), dtype, shape: info.shape.clone(), bytes });
    }
    Ok(tensors)
}

/// Writes a file of these tensors, whole or not at all.
pub(crate) fn write(path: &Path, tensors: &[HostTensor]) -> CliResult {
    let list: Vec<NewTensor<'_>> =
        tensors.iter().map(|t| NewTensor { name: &t.name, dtype: t.dtype, shape: &t.shape, bytes: &t.bytes }).collect();
    save(path, &list, &[]).map_err(|e| Failure::file(path, &e))
}

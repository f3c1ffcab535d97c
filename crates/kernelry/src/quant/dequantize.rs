//! Whole rows and tensors of blocks to f32.

use rayon::prelude::*;

use super::{GgmlType, decode};
use crate::{Error, Result};

/// Values given to one thread at a time: a multiple of every block length, and enough to be worth it.
const CHUNK: usize = 1 << 14;

/// Calls `$run` with the block decoder of a type, as a generic function of `(bytes, out)`.
macro_rules! with_decoder {
    ($ty:expr, $run:ident, $otherwise:expr, $($args:expr),*) => {
        match $ty {
            GgmlType::F32 => $run($($args,)* |b: &[u8; 4], o: &mut [f32; 1]| o[0] = f32::from_le_bytes(*b)),
            GgmlType::F64 => $run($($args,)* |b: &[u8; 8], o: &mut [f32; 1]| o[0] = f64::from_le_bytes(*b) as f32),
            GgmlType::F16 => $run($($args,)* |b: &[u8; 2], o: &mut [f32; 1]| o[0] = half::f16::from_le_bytes(*b).to_f32()),
            GgmlType::BF16 => $run($($args,)* |b: &[u8; 2], o: &mut [f32; 1]| o[0] = half::bf16::from_le_bytes(*b).to_f32()),
            GgmlType::I8 => $run($($args,)* |b: &[u8; 1], o: &mut [f32; 1]| o[0] = f32::from(b[0] as i8)),
            GgmlType::I16 => $run($($args,)* |b: &[u8; 2], o: &mut [f32; 1]| o[0] = f32::from(i16::from_le_bytes(*b))),
            GgmlType::I32 => $run($($args,)* |b: &[u8; 4], o: &mut [f32; 1]| o[0] = i32::from_le_bytes(*b) as f32),
            GgmlType::I64 => $run($($args,)* |b: &[u8; 8], o: &mut [f32; 1]| o[0] = i64::from_le_bytes(*b) as f32),
            GgmlType::Q4_0 => $run($($args,)* decode::decode_block_q4_0),
            GgmlType::Q4_1 => $run($($args,)* decode::decode_block_q4_1),
            GgmlType::Q5_0 => $run($($args,)* decode::decode_block_q5_0),
            GgmlType::Q5_1 => $run($($args,)* decode::decode_block_q5_1),
            GgmlType::Q8_0 => $run($($args,)* decode::decode_block_q8_0),
            GgmlType::Q8_1 => $run($($args,)* decode::decode_block_q8_1),
            GgmlType::Q2_K => $run($($args,)* decode::decode_block_q2_k),
            GgmlType::Q3_K => $run($($args,)* decode::decode_block_q3_k),
            GgmlType::Q4_K => $run($($args,)* decode::decode_block_q4_k),
            GgmlType::Q5_K => $run($($args,)* decode::decode_block_q5_k),
            GgmlType::Q6_K => $run($($args,)* decode::decode_block_q6_k),
            GgmlType::Q8_K => $run($($args,)* decode::decode_block_q8_k),
            GgmlType::IQ4_NL => $run($($args,)* decode::decode_block_iq4_nl),
            GgmlType::IQ4_XS => $run($($args,)* decode::decode_block_iq4_xs),
            GgmlType::TQ1_0 => $run($($args,)* decode::decode_block_tq1_0),
            GgmlType::TQ2_0 => $run($($args,)* decode::decode_block_tq2_0),
            GgmlType::MXFP4 => $run($($args,)* decode::decode_block_mxfp4),
            _ => $otherwise,
        }
    };
}

fn decode_blocks<const BB: usize, const QK: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&[u8; BB], &mut [f32; QK])) {
    for (block, values) in bytes.as_chunks::<BB>().0.iter().zip(out.as_chunks_mut::<QK>().0) {
        decode(block, values);
    }
}

fn decode_parallel<const BB: usize, const QK: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&[u8; BB], &mut [f32; QK]) + Sync) {
    if out.len() <= CHUNK {
        return decode_blocks(bytes, out, decode);
    }
    out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK / QK * BB)).for_each(|(out, bytes)| decode_blocks(bytes, out, &decode));
}

impl GgmlType {
    /// Whether [`dequantize`] knows this type.
    pub fn can_dequantize(self) -> bool {
        fn known<const BB: usize, const QK: usize>(_: impl Fn(&[u8; BB], &mut [f32; QK])) -> bool {
            true
        }
        with_decoder!(self, known, false,)
    }
}

fn unsupported(ty: GgmlType) -> Error {
    Error::invalid("dequantize", format!("type: got {ty}, expected one with a decoder"))
}

/// Decodes the blocks of `bytes` into `out`, on all threads of the current rayon pool.
///
/// The values equal those of the Python package `gguf` exactly. Integers and F64 are converted with one rounding.
///
/// # Errors
/// [`Error::InvalidArgument`] if the type has no decoder, `bytes` is not a whole number of blocks, or `out` has another length than
/// the values in `bytes`.
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    if !ty.can_dequantize() {
        return Err(unsupported(ty));
    }
    let elements = ty.elements_in(bytes.len())?;
    if elements != out.len() {
        return Err(Error::invalid("dequantize", format!("out: got {} values, expected {elements} ({ty})", out.len())));
    }
    with_decoder!(ty, decode_parallel, return Err(unsupported(ty)), bytes, out);
    Ok(())
}

/// [`dequantize`] into a fresh vector.
///
/// # Errors
/// As [`dequantize`], and [`Error::Allocation`].
pub fn dequantize_to_vec(ty: GgmlType, bytes: &[u8]) -> Result<Vec<f32>> {
    if !ty.can_dequantize() {
        return Err(unsupported(ty));
    }
    let mut out = super::zeros(ty.elements_in(bytes.len())?)?;
    dequantize(ty, bytes, &mut out)?;
    Ok(out)
}

/// Decodes row `row` of a matrix whose rows have `out.len()` values, on the calling thread.
///
/// # Errors
/// [`Error::InvalidArgument`] if the type has no decoder, a row is not a whole number of blocks, or `bytes` ends before the row does.
pub fn dequantize_row(ty: GgmlType, bytes: &[u8], row: usize, out: &mut [f32]) -> Result<()> {
    let row_bytes = ty.row_bytes(out.len())?;
    let range = row.checked_mul(row_bytes).and_then(|start| Some(start..start.checked_add(row_bytes)?));
    let Some(blocks) = range.and_then(|range| bytes.get(range)) else {
        return Err(Error::invalid(
            "dequantize",
            format!("row: got {row} in {} bytes, expected one of rows of {row_bytes} bytes", bytes.len()),
        ));
    };
    with_decoder!(ty, decode_blocks, return Err(unsupported(ty)), blocks, out);
    Ok(())
}

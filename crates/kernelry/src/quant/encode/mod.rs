//! Quantisers: f32 to blocks.

mod k_quants;
mod search;
mod simple;

use half::{bf16, f16};
use rayon::prelude::*;

use super::GgmlType;
use crate::{Error, Result};

/// Values given to one thread at a time: a multiple of every block length.
const CHUNK: usize = 1 << 13;

/// Calls `$run` with the block encoder of a type and the offsets of the half-precision fields that must come out finite.
macro_rules! with_encoder {
    ($ty:expr, $run:ident, $otherwise:expr, $($args:expr),*) => {
        match $ty {
            GgmlType::F32 => $run($($args,)* &[], |x: &[f32; 1], b: &mut [u8; 4]| *b = x[0].to_le_bytes()),
            GgmlType::F16 => $run($($args,)* &[], |x: &[f32; 1], b: &mut [u8; 2]| *b = f16::from_f32(x[0]).to_le_bytes()),
            GgmlType::BF16 => $run($($args,)* &[], |x: &[f32; 1], b: &mut [u8; 2]| *b = bf16::from_f32(x[0]).to_le_bytes()),
            GgmlType::Q4_0 => $run($($args,)* &[0], simple::encode_block_q4_0),
            GgmlType::Q4_1 => $run($($args,)* &[0, 2], simple::encode_block_q4_1),
            GgmlType::Q5_0 => $run($($args,)* &[0], simple::encode_block_q5_0),
            GgmlType::Q5_1 => $run($($args,)* &[0, 2], simple::encode_block_q5_1),
            GgmlType::Q8_0 => $run($($args,)* &[0], simple::encode_block_q8_0),
            GgmlType::IQ4_NL => $run($($args,)* &[0], simple::encode_block_iq4_nl),
            GgmlType::Q4_K => $run($($args,)* &[0, 2], k_quants::encode_block_q4_k),
            GgmlType::Q5_K => $run($($args,)* &[0, 2], k_quants::encode_block_q5_k),
            GgmlType::Q6_K => $run($($args,)* &[208], k_quants::encode_block_q6_k),
            _ => $otherwise,
        }
    };
}

/// Why a chunk could not be encoded; positions are relative to the chunk.
enum Fault {
    NotFinite { at: usize },
    ScaleOverflow { block_at: usize },
}

fn encode_blocks<const QK: usize, const BB: usize>(
    x: &[f32],
    out: &mut [u8],
    scales: &[usize],
    encode: impl Fn(&[f32; QK], &mut [u8; BB]),
) -> Result<(), Fault> {
    for (i, (values, block)) in x.as_chunks::<QK>().0.iter().zip(out.as_chunks_mut::<BB>().0).enumerate() {
        if QK > 1
            && let Some(j) = values.iter().position(|v| !v.is_finite())
        {
            return Err(Fault::NotFinite { at: i * QK + j });
        }
        encode(values, block);
        if scales.iter().any(|&at| !f16::from_le_bytes([block[at], block[at + 1]]).is_finite()) {
            return Err(Fault::ScaleOverflow { block_at: i * QK });
        }
    }
    Ok(())
}

fn encode_parallel<const QK: usize, const BB: usize>(
    x: &[f32],
    out: &mut [u8],
    scales: &[usize],
    encode: impl Fn(&[f32; QK], &mut [u8; BB]) + Sync,
) -> Result<()> {
    let chunks = x.par_chunks(CHUNK).zip(out.par_chunks_mut(CHUNK / QK * BB)).enumerate();
    chunks.try_for_each(|(i, (x, out))| {
        encode_blocks(x, out, scales, &encode).map_err(|fault| match fault {
            Fault::NotFinite { at } => Error::invalid(
                "quantize",
                format!("x[{}]: got {}, expected a finite value", i * CHUNK + at, x.get(at).unwrap_or(&f32::NAN)),
            ),
            Fault::ScaleOverflow { block_at } => {
                let start = i * CHUNK + block_at;
                Error::invalid("quantize", format!("x[{start}..{}]: got values too large for a half-precision scale", start + QK))
            }
        })
    })
}

impl GgmlType {
    /// Whether [`quantize`] knows this type.
    pub fn can_quantize(self) -> bool {
        fn known<const QK: usize, const BB: usize>(_: &[usize], _: impl Fn(&[f32; QK], &mut [u8; BB])) -> bool {
            true
        }
        with_encoder!(self, known, false,)
    }
}

fn unsupported(ty: GgmlType) -> Error {
    Error::invalid("quantize", format!("type: got {ty}, expected one with a quantiser"))
}

/// Encodes `x` into the blocks of `out`, on all threads of the current rayon pool.
///
/// `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1` and `Q8_0` equal those of the Python package `gguf` bit for bit. `IQ4_NL` and the K-quants search for
/// the scales that minimise the squared error, weighted towards large values as ggml does. `F16` and `BF16` round to nearest even.
///
/// # Errors
/// [`Error::InvalidArgument`] if the type has no quantiser, `x` is not a whole number of blocks, `out` has another length than the
/// blocks of `x`, or, for block types, a value is not finite or too large for the scale of its block. Then `out` is partly written.
pub fn quantize_into(ty: GgmlType, x: &[f32], out: &mut [u8]) -> Result<()> {
    if !ty.can_quantize() {
        return Err(unsupported(ty));
    }
    let bytes = ty.row_bytes(x.len())?;
    if bytes != out.len() {
        return Err(Error::invalid("quantize", format!("out: got {} bytes, expected {bytes} ({ty})", out.len())));
    }
    with_encoder!(ty, encode_parallel, Err(unsupported(ty)), x, out)
}

/// [`quantize_into`] a fresh vector.
///
/// # Errors
/// As [`quantize_into`], and [`Error::Allocation`].
pub fn quantize(ty: GgmlType, x: &[f32]) -> Result<Vec<u8>> {
    if !ty.can_quantize() {
        return Err(unsupported(ty));
    }
    let mut out = crate::quant::zeros(ty.row_bytes(x.len())?)?;
    quantize_into(ty, x, &mut out)?;
    Ok(out)
}

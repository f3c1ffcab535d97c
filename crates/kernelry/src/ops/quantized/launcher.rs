//! The typed launcher.

use super::{Format, MulMmParams, MulMvExtParams, MulMvParams};
use crate::ops::rows_and_cols;
use crate::quant::GgmlType;
use crate::{Buffer, Encoder, Error, Result};

/// `out = x · weightᵀ` with a weight in GGML blocks.
///
/// One input row is a matrix-vector product; 2 to 8 rows share each decoded weight; more go through tiles.
pub struct QuantizedMatmul<'a> {
    /// `[n, row_bytes]` or flat, u8: `n` rows of blocks as a GGUF file stores them.
    pub weight: &'a Buffer,
    /// Type of the blocks: Q4_0, Q8_0, Q5_1, IQ4_NL, Q4_K, Q5_K or Q6_K.
    pub format: GgmlType,
    /// `[m, k]`, f32; a vector is one row, leading dimensions count as rows.
    pub x: &'a Buffer,
    /// `[m, n]`, f32.
    pub out: &'a Buffer,
    /// Multiplies each row on its own, so that a row's result does not depend by a bit on how many rows are computed together. Slower
    /// for many rows.
    pub row_invariant: bool,
}

impl QuantizedMatmul<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`]; [`Error::InvalidArgument`] for a format without kernels.
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let op = "quantized_matmul";
        let Some(format) = Format::of(self.format) else {
            let known: Vec<_> = super::FORMATS.iter().map(|f| f.ty.name()).collect();
            return Err(Error::invalid(op, format!("format: got {}, expected one of {}", self.format, known.join(", "))));
        };
        let (m, k) = rows_and_cols(op, "x", self.x)?;
        let (out_rows, n) = rows_and_cols(op, "out", self.out)?;
        if out_rows != m {
            return Err(Error::invalid(op, format!("out: got {out_rows} rows, expected {m} as x has")));
        }
        let expected = self.format.row_bytes(k as usize)?.checked_mul(n as usize);
        if expected != Some(self.weight.byte_len()) {
            let got = self.weight.byte_len();
            return Err(Error::invalid(op, format!("weight: got {got} bytes, expected {n} rows of {k} values in {}", self.format)));
        }
        let args = [Some(self.weight), Some(self.x), Some(self.out)];
        let s = format.suffix;
        match m {
            _ if m == 1 || self.row_invariant => {
                let variant = if format.nr2 { "_nr2" } else { "" };
                encoder.launch(&format!("kernel_mul_mv_{s}_f32{variant}"), &args, &MulMvParams::single(m, n, k))
            }
            2..=8 => {
                // Rows per pass: all of them up to five, else what leaves the fewest idle in the last pass.
                let r1 = [2, 3, 4, 5, 3, 4, 4].get(m as usize - 2).copied().unwrap_or(4);
                encoder.launch(&format!("kernel_mul_mv_ext_{s}_f32_r1_{r1}"), &args, &MulMvExtParams { m, n, k, batch: 1 })
            }
            _ => encoder.launch(&format!("kernel_mul_mm_{s}_f32"), &args, &MulMmParams::single(m, n, k)),
        }
    }
}

//! The typed launcher.

use super::{DequantParams, Format, MulMmParams, MulMvExtParams, MulMvParams};
use crate::DType;
use crate::catalogue::Kernel;
use crate::ops::rows_and_cols;
use crate::quant::GgmlType;
use crate::registry::Math;
use crate::{Buffer, Encoder, Error, Result};

/// Input rows from which expanding a weight to f16 costs less than decoding it in every tile.
const EXPAND_ROWS: u32 = 256;
/// Largest weight that is expanded, in bytes of f16.
const EXPAND_BYTES: usize = 512 << 20;

/// `out = x · weightᵀ` with a weight in GGML blocks.
///
/// One input row is a matrix-vector product; 2 to 8 rows share each decoded weight; more go through tiles. In math mode
/// [`Fast`](Math::Fast) a GPU rounds the input of tiles to f16, each row times a power of two that fits it, and expands the weight
/// to f16 first where there are hundreds of rows.
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
            _ if encoder.math() == Math::Precise || encoder.context().device().info().backend == "cpu" => {
                encoder.launch(&format!("kernel_mul_mm_{s}_f32"), &args, &MulMmParams::single(m, n, k))
            }
            _ if m < EXPAND_ROWS || n as usize * k as usize > EXPAND_BYTES / 2 => {
                encoder.launch(&format!("kernel_mul_mm_{s}_tensor_v2_f32"), &args, &MulMmParams::single(m, n, k))
            }
            _ => {
                let words = (n as usize * k as usize).div_ceil(2);
                let expanded = encoder.scratch(words)?.view_as(DType::F16, &[n as usize, k as usize])?;
                encoder.launch(&format!("hf2q_dequant_{s}_to_f16"), &[Some(self.weight), Some(&expanded)], &DequantParams { n, k })?;
                let args = [Some(&expanded), Some(self.x), Some(self.out)];
                encoder.launch("hf2q_mul_mm_tensor_v2_f16", &args, &MulMmParams::single(m, n, k))
            }
        }
    }
}

/// What `kernel`, a product of many rows, computes, by [`QuantizedMatmul`] in math mode fast.
pub(crate) fn record_fast(kernel: &'static Kernel, encoder: &mut Encoder, args: &[Option<&Buffer>], params: &[u8]) -> Result<()> {
    let p: MulMmParams = bytemuck::pod_read_unaligned(params);
    let format = super::FORMATS.iter().find(|f| kernel.name() == format!("kernel_mul_mm_{}_f32", f.suffix));
    let (Some(format), &[Some(weight), Some(x), Some(out)]) = (format, args) else {
        return Err(Error::invalid(kernel.name(), "launcher: got another kernel, expected a product of many rows"));
    };
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let (x, out) = (x.reshape(&[m, k])?, out.reshape(&[m, n])?);
    let math = encoder.math();
    encoder.set_math(Math::Fast);
    let done = QuantizedMatmul { weight, format: format.ty, x: &x, out: &out, row_invariant: false }.encode(encoder);
    encoder.set_math(math);
    done
}

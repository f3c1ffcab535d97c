//! A matrix of a model, whatever it is stored as, and its product with activations.

use super::matmul::DenseMatmul;
use super::quantized::{Format, QuantizedMatmul};
use crate::backend::Capability;
use crate::gguf::GgufFile;
use crate::quant::{GgmlType, dequantize, repack};
use crate::{Buffer, Context, DType, Encoder, Error, Result, f16};

/// A weight matrix of `rows` outputs and `cols` inputs, in a form that kernels multiply: Q4_0, Q8_0, Q5_1, IQ4_NL, Q4_K, Q5_K and Q6_K
/// blocks, or f32, f16 or bf16 values.
#[derive(Clone)]
pub struct Weight {
    buffer: Buffer,
    kind: GgmlType,
    rows: usize,
    cols: usize,
}

/// Element type of a tensor that is not quantised.
fn dense_dtype(kind: GgmlType) -> Option<DType> {
    match kind {
        GgmlType::F32 => Some(DType::F32),
        GgmlType::F16 => Some(DType::F16),
        GgmlType::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Dtype and shape of the buffer of such a matrix, if kernels multiply this type.
fn layout(kind: GgmlType, rows: usize, cols: usize) -> Result<Option<(DType, [usize; 2])>> {
    if let Some(dtype) = dense_dtype(kind) {
        return Ok(Some((dtype, [rows, cols])));
    }
    Ok(if Format::of(kind).is_some() { Some((DType::U8, [rows, kind.row_bytes(cols)?])) } else { None })
}

impl Weight {
    /// A matrix in a buffer: u8 blocks, or `[rows, cols]` values of the dtype that `kind` names.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a type that no kernel multiplies, or a buffer of another size; [`Error::UnsupportedDType`].
    pub fn new(buffer: Buffer, kind: GgmlType, rows: usize, cols: usize) -> Result<Weight> {
        let Some((dtype, shape)) = layout(kind, rows, cols)? else {
            return Err(Error::invalid("weight", format!("type: got {kind}, expected one that kernels multiply")));
        };
        if buffer.dtype() != dtype {
            return Err(super::unsupported("weight", "buffer", buffer.dtype(), &dtype.to_string()));
        }
        Ok(Weight { buffer: buffer.reshape(&shape)?, kind, rows, cols })
    }

    /// A matrix from the bytes of any type that can be decoded. Q5_0 and Q4_1 become Q5_1, and Q3_K becomes Q6_K, without a change of
    /// any weight; other types that kernels do not multiply become f16, or f32 where a weight is beyond f16.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the bytes are not `rows · cols` values of this type or the type cannot be decoded, and what
    /// allocating gives.
    pub fn from_bytes(ctx: &Context, bytes: &[u8], kind: GgmlType, rows: usize, cols: usize) -> Result<Weight> {
        if kind.row_bytes(cols)?.checked_mul(rows) != Some(bytes.len()) {
            return Err(Error::invalid("weight", format!("bytes: got {}, expected {rows} rows of {cols} values in {kind}", bytes.len())));
        }
        if let Some((dtype, shape)) = layout(kind, rows, cols)? {
            let buffer = Buffer::from_bytes(ctx.device(), bytes, dtype, &shape)?;
            return Ok(Weight { buffer, kind, rows, cols });
        }
        if let Some((kind, bytes)) = repack(kind, bytes) {
            return Weight::from_bytes(ctx, &bytes, kind, rows, cols);
        }
        let mut values = vec![0.0f32; rows * cols];
        dequantize(kind, bytes, &mut values)?;
        let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
        if halves.iter().zip(&values).all(|(h, v)| h.is_finite() || !v.is_finite()) {
            return Ok(Weight { buffer: ctx.upload(&halves, &[rows, cols])?, kind: GgmlType::F16, rows, cols });
        }
        Ok(Weight { buffer: ctx.upload(&values, &[rows, cols])?, kind: GgmlType::F32, rows, cols })
    }

    /// A matrix of a GGUF file: mapped without a copy where kernels multiply its type and the device can, converted as by
    /// [`Weight::from_bytes`] otherwise.
    ///
    /// # Errors
    /// As [`Weight::from_bytes`]; [`Error::Format`] if the file has no such tensor or it is not a matrix.
    pub fn from_gguf(ctx: &Context, file: &GgufFile, name: &str) -> Result<Weight> {
        let info = file.tensor(name)?;
        let &[rows, cols] = &info.shape[..] else {
            return Err(Error::format("gguf", format!("tensor `{name}`"), format!("got shape {:?}, expected a matrix", info.shape)));
        };
        match layout(info.ty, rows, cols)? {
            Some((dtype, shape)) => {
                let buffer = Buffer::from_file(ctx.device(), file.mapping(), info.range.start, dtype, &shape)?;
                Ok(Weight { buffer, kind: info.ty, rows, cols })
            }
            None => Weight::from_bytes(ctx, file.tensor_bytes(name)?, info.ty, rows, cols),
        }
    }

    /// Matrices of a GGUF file one below the other in one buffer: what one product with it gives is what the products with each give, side by
    /// side. `None` where they cannot be stacked as they are stored, being of different types or widths or of a type that no kernel multiplies,
    /// and where the device would map the file: there they take no memory, and stacked they would.
    ///
    /// # Errors
    /// As [`Weight::from_gguf`].
    pub fn stacked_from_gguf(ctx: &Context, file: &GgufFile, names: &[&str]) -> Result<Option<Weight>> {
        if ctx.device().probe(Capability::FileMapping)? {
            return Ok(None);
        }
        let tensors = names.iter().map(|name| file.tensor(name)).collect::<Result<Vec<_>>>()?;
        let Some((kind, &[_, cols])) = tensors.first().map(|t| (t.ty, &t.shape[..])) else { return Ok(None) };
        let mut rows = 0;
        for tensor in &tensors {
            match tensor.shape[..] {
                [own, width] if tensor.ty == kind && width == cols => rows += own,
                _ => return Ok(None),
            }
        }
        if layout(kind, rows, cols)?.is_none() {
            return Ok(None);
        }
        let bytes = names.iter().map(|name| file.tensor_bytes(name)).collect::<Result<Vec<_>>>()?.concat();
        Weight::from_bytes(ctx, &bytes, kind, rows, cols).map(Some)
    }

    /// `rows` outputs from `start` on, in the same memory.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are fewer.
    pub fn slice(&self, start: usize, rows: usize) -> Result<Weight> {
        Ok(Weight { buffer: self.buffer.rows(start, rows)?, kind: self.kind, rows, cols: self.cols })
    }

    /// The stored matrix: `[rows, row_bytes]` of u8, or `[rows, cols]`.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }
    /// How it is stored.
    pub fn kind(&self) -> GgmlType {
        self.kind
    }
    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// `out = x · weightᵀ`: the product of a linear layer. Activations are not rounded, except by what the encoder's math mode `fast` does
/// to products with GGML blocks.
pub struct Linear<'a> {
    /// `[cols_out, cols_in]`.
    pub weight: &'a Weight,
    /// `[rows, cols_in]`, f32; a vector is one row, leading dimensions count as rows.
    pub x: &'a Buffer,
    /// `[rows, cols_out]`, f32.
    pub out: &'a Buffer,
}

impl Linear<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let op = "linear";
        let (x_cols, out_cols) = (self.x.shape().last().copied(), self.out.shape().last().copied());
        if x_cols != Some(self.weight.cols) {
            return Err(Error::invalid(op, format!("x: got shape {:?}, expected rows of {}", self.x.shape(), self.weight.cols)));
        }
        if out_cols != Some(self.weight.rows) {
            return Err(Error::invalid(op, format!("out: got shape {:?}, expected rows of {}", self.out.shape(), self.weight.rows)));
        }
        let Weight { buffer: weight, kind: format, .. } = self.weight;
        if dense_dtype(*format).is_none() {
            return QuantizedMatmul { weight, format: *format, x: self.x, out: self.out, row_invariant: false }.encode(encoder);
        }
        let rows = |b: &Buffer, cols: usize| b.reshape(&[b.len() / cols.max(1), cols]);
        let (x, out) = (rows(self.x, self.weight.cols)?, rows(self.out, self.weight.rows)?);
        DenseMatmul { weight, x: &x, out: &out }.encode(encoder)
    }
}

//! Native kernels of the family: batches and strides here, the arithmetic in the cores.

use crate::backend::cpu::{CpuCall, CpuFn, parallel};
use crate::f16;
use crate::ops::quantized::{DequantParams, MulMmParams, MulMvExtParams, MulMvParams};
use crate::quant::{GgmlType, dequantize};

/// The kernels of one format.
pub(crate) struct CpuKernels {
    pub(crate) mul_mv: CpuFn,
    pub(crate) mul_mv_ext: CpuFn,
    pub(crate) mul_mm: CpuFn,
    pub(crate) dequant: CpuFn,
}

impl CpuKernels {
    /// Kernels of the type with this id.
    pub(crate) const fn of<const TYPE: u32>() -> CpuKernels {
        CpuKernels { mul_mv: mul_mv::<TYPE>, mul_mv_ext: mul_mv_ext::<TYPE>, mul_mm: mul_mm::<TYPE>, dequant: dequant::<TYPE> }
    }
}

/// The type with this id; ids come from the table of formats.
const fn block_type<const TYPE: u32>() -> GgmlType {
    match GgmlType::from_id(TYPE) {
        Some(ty) => ty,
        None => GgmlType::F32,
    }
}

/// `out[m, n] = x[m] · w[n]` for rows of `x` that start `x_stride` elements apart.
fn product<const TYPE: u32>(weight: &[u8], x: &[f32], x_stride: usize, k: usize, out: &mut [f32], n: usize) {
    let ty = block_type::<TYPE>();
    let row_bytes = k / ty.block_len() * ty.block_bytes();
    let m = out.len() / n;
    let mut columns = vec![0.0f32; out.len()];
    parallel::for_rows(&mut columns, m, m * k, |row, column| {
        let mut w = vec![0.0f32; k];
        if dequantize(ty, &weight[row * row_bytes..(row + 1) * row_bytes], &mut w).is_ok() {
            for (r, y) in column.iter_mut().enumerate() {
                *y = dot(&w, &x[r * x_stride..r * x_stride + k]);
            }
        }
    });
    for (r, y) in out.chunks_mut(n).enumerate() {
        for (c, y) in y.iter_mut().enumerate() {
            *y = columns[c * m + r];
        }
    }
}

/// Sixteen partial sums in a fixed order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum()
}

/// Products of a batch: input `(i3, i2)` with the weight `i2/r2 + (i3/r3)·ne02`.
fn batched<const TYPE: u32>(call: &CpuCall<'_>, p: &MulMmParams) {
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let (weight, x, out) = (call.input::<u8>(0), call.input::<f32>(1), call.output::<f32>(2));
    let matrix_bytes = n * (k / block_type::<TYPE>().block_len() * block_type::<TYPE>().block_bytes());
    let (row_stride, batch_stride) = (p.x_row_stride as usize, p.x_batch_stride as usize);
    for (z, out) in out.chunks_mut(m * n).enumerate() {
        let (i2, i3) = (z as u32 % p.ne12, z as u32 / p.ne12);
        let matrix = (i2 / p.r2) as usize + (i3 / p.r3) as usize * p.ne02 as usize;
        product::<TYPE>(&weight[matrix * matrix_bytes..(matrix + 1) * matrix_bytes], &x[z * batch_stride..], row_stride, k, out, n);
    }
}

fn mul_mv<const TYPE: u32>(call: &CpuCall<'_>) {
    let p: MulMvParams = call.params();
    let MulMvParams { m, n, k, ne12, ne13, ne02, r2, r3 } = p;
    let strides = (u64::from(k), u64::from(m) * u64::from(k));
    batched::<TYPE>(call, &MulMmParams { x_row_stride: strides.0, x_batch_stride: strides.1, m, n, k, ne12, ne13, ne02, r2, r3 });
}

fn mul_mm<const TYPE: u32>(call: &CpuCall<'_>) {
    batched::<TYPE>(call, &call.params());
}

/// One weight for all batches, whose rows follow each other: a single product of all rows.
fn mul_mv_ext<const TYPE: u32>(call: &CpuCall<'_>) {
    let p: MulMvExtParams = call.params();
    let (n, k) = (p.n as usize, p.k as usize);
    product::<TYPE>(call.input(0), call.input(1), k, k, call.output(2), n);
}

fn dequant<const TYPE: u32>(call: &CpuCall<'_>) {
    let p: DequantParams = call.params();
    let ty = block_type::<TYPE>();
    let k = p.k as usize;
    let row_bytes = k / ty.block_len() * ty.block_bytes();
    let weight = call.input::<u8>(0);
    parallel::for_rows(call.output::<f16>(1), k, k, |row, out| {
        let mut w = vec![0.0f32; k];
        if dequantize(ty, &weight[row * row_bytes..(row + 1) * row_bytes], &mut w).is_ok() {
            for (o, w) in out.iter_mut().zip(w) {
                *o = f16::from_f32(w);
            }
        }
    });
}

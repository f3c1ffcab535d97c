//! Native kernels of the family: formats, batches and strides here, the arithmetic in the cores.

use std::borrow::Cow;

use super::{Format, Mode, Problem, Route, dequantize_f16, matmul};
use crate::backend::cpu::simd::Level;
use crate::backend::cpu::{CpuCall, CpuFn};
use crate::ops::quantized::{DequantParams, MulMmParams, MulMvExtParams, MulMvParams};
use crate::quant::GgmlType;
use crate::registry::Math;

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

/// The format of the type with this id; an id without one stops the build.
const fn format<const TYPE: u32>() -> Format {
    const {
        match GgmlType::from_id(TYPE) {
            Some(GgmlType::Q4_0) => Format::Q4_0,
            Some(GgmlType::Q8_0) => Format::Q8_0,
            Some(GgmlType::Q5_1) => Format::Q5_1,
            Some(GgmlType::IQ4_NL) => Format::Iq4Nl,
            Some(GgmlType::Q4_K) => Format::Q4K,
            Some(GgmlType::Q5_K) => Format::Q5K,
            Some(GgmlType::Q6_K) => Format::Q6K,
            _ => unreachable!(),
        }
    }
}

fn mode(call: &CpuCall<'_>) -> Mode {
    match call.math() {
        Math::Precise => Mode::Precise,
        Math::Fast => Mode::Fast,
    }
}

/// Rows of a product one after the other: `x` itself if they are, else a copy.
pub(crate) fn packed_rows(x: &[f32], m: usize, k: usize, row_stride: usize) -> Cow<'_, [f32]> {
    if row_stride == k || m == 1 {
        return Cow::Borrowed(&x[..m * k]);
    }
    let mut rows = Vec::with_capacity(m * k);
    x.chunks(row_stride).take(m).for_each(|row| rows.extend_from_slice(&row[..k]));
    Cow::Owned(rows)
}

/// Products of a batch: input `(i3, i2)` with the weight `i2/r2 + (i3/r3)·ne02`.
fn batched<const TYPE: u32>(call: &CpuCall<'_>, p: &MulMmParams, route: Route) {
    let format = format::<TYPE>();
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let (weights, x, out) = (call.input::<u8>(0), call.input::<f32>(1), call.output::<f32>(2));
    let matrix_bytes = n * format.row_bytes(k);
    let (row_stride, batch_stride) = (p.x_row_stride as usize, p.x_batch_stride as usize);
    for (z, out) in out.chunks_mut(m * n).enumerate() {
        let (i2, i3) = (z as u32 % p.ne12, z as u32 / p.ne12);
        let matrix = (i2 / p.r2) as usize + (i3 / p.r3) as usize * p.ne02 as usize;
        let weights = &weights[matrix * matrix_bytes..(matrix + 1) * matrix_bytes];
        let x = packed_rows(&x[z * batch_stride..], m, k, row_stride);
        matmul(&Problem { format, weights, x: &x, m, n, k, mode: mode(call), route, level: Level::detect() }, out);
    }
}

/// One matrix-vector product for each row, whatever the number of rows.
fn mul_mv<const TYPE: u32>(call: &CpuCall<'_>) {
    let MulMvParams { m, n, k, ne12, ne13, ne02, r2, r3 } = call.params();
    let (x_row_stride, x_batch_stride) = (u64::from(k), u64::from(m) * u64::from(k));
    batched::<TYPE>(call, &MulMmParams { x_row_stride, x_batch_stride, m, n, k, ne12, ne13, ne02, r2, r3 }, Route::Vector);
}

fn mul_mm<const TYPE: u32>(call: &CpuCall<'_>) {
    batched::<TYPE>(call, &call.params(), Route::Matrix);
}

/// One weight for all batches, whose rows follow each other: a single product of all rows.
fn mul_mv_ext<const TYPE: u32>(call: &CpuCall<'_>) {
    let p: MulMvExtParams = call.params();
    let (m, n, k) = (p.batch as usize * p.m as usize, p.n as usize, p.k as usize);
    let problem = Problem {
        format: format::<TYPE>(),
        weights: call.input(0),
        x: call.input(1),
        m,
        n,
        k,
        mode: mode(call),
        route: Route::Vector,
        level: Level::detect(),
    };
    matmul(&problem, call.output(2));
}

fn dequant<const TYPE: u32>(call: &CpuCall<'_>) {
    let p: DequantParams = call.params();
    dequantize_f16(Level::detect(), format::<TYPE>(), call.input(0), p.n as usize, p.k as usize, call.output(1));
}

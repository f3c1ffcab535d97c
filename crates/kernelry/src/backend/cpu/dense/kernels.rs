//! Native kernels of the family: dtypes and batches here, the arithmetic in the cores.

use super::{Problem, Rounding, Weight, matmul, matmul_f16};
use crate::backend::cpu::CpuCall;
use crate::backend::cpu::quantized::Route;
use crate::backend::cpu::quantized::kernels::packed_rows;
use crate::backend::cpu::simd::Level;
use crate::dtype::Element;
use crate::ops::matmul::{BatchedMatmulParams, MatmulParams};
use crate::ops::quantized::MulMmParams;
use crate::{bf16, f16};

fn batched<W: Weight + Element>(call: &CpuCall<'_>, rounding: Rounding, route: Route) {
    let p: BatchedMatmulParams = call.params();
    let problem = Problem {
        weights: call.input::<W>(0),
        x: call.input(1),
        weight_batch: p.weights as usize,
        batch: p.batch as usize,
        m: p.m as usize,
        n: p.n as usize,
        k: p.k as usize,
        rounding,
        route,
        level: Level::detect(),
    };
    matmul(&problem, call.output::<f32>(2));
}

pub(crate) fn dense_mm_f32(call: &CpuCall<'_>) {
    batched::<f32>(call, Rounding::None, Route::Auto);
}

pub(crate) fn dense_mm_bf16(call: &CpuCall<'_>) {
    batched::<bf16>(call, Rounding::None, Route::Auto);
}

pub(crate) fn dense_mm_bf16_rounded(call: &CpuCall<'_>) {
    batched::<bf16>(call, Rounding::Bf16, Route::Auto);
}

pub(crate) fn dense_mm_f16_rounded(call: &CpuCall<'_>) {
    batched::<f16>(call, Rounding::F16, Route::Auto);
}

pub(crate) fn gemv_bf16(call: &CpuCall<'_>) {
    batched::<bf16>(call, Rounding::None, Route::Vector);
}

/// Batched product with strided input.
pub(crate) fn mul_mm_f16(call: &CpuCall<'_>) {
    let p: MulMmParams = call.params();
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let (weights, x) = (call.input::<f16>(0), call.input::<f32>(1));
    let (row_stride, batch_stride) = (p.x_row_stride as usize, p.x_batch_stride as usize);
    for (z, out) in call.output::<f32>(2).chunks_mut(m * n).enumerate() {
        let (i2, i3) = (z as u32 % p.ne12, z as u32 / p.ne12);
        let matrix = (i2 / p.r2) as usize + (i3 / p.r3) as usize * p.ne02 as usize;
        let x = packed_rows(&x[z * batch_stride..], m, k, row_stride);
        single(&weights[matrix * n * k..(matrix + 1) * n * k], &x, (m, n, k), out);
    }
}

/// One product, by whichever core is faster.
fn single<W: Weight>(weights: &[W], x: &[f32], (m, n, k): (usize, usize, usize), out: &mut [f32]) {
    let (rounding, route, level) = (Rounding::None, Route::Auto, Level::detect());
    matmul(&Problem { weights, x, weight_batch: 1, batch: 1, m, n, k, rounding, route, level }, out);
}

pub(crate) fn gemm_f16(call: &CpuCall<'_>) {
    let p: MatmulParams = call.params();
    let shape = (p.m as usize, p.n as usize, p.k as usize);
    matmul_f16(Level::detect(), call.input(0), call.input(1), shape, call.output(2));
}

fn matvec<W: Weight + Element>(call: &CpuCall<'_>) {
    let p: MatmulParams = call.params();
    single(call.input::<W>(0), call.input(1), (p.m as usize, p.n as usize, p.k as usize), call.output(2));
}

pub(crate) fn matvec_f32(call: &CpuCall<'_>) {
    matvec::<f32>(call);
}

pub(crate) fn matvec_f16(call: &CpuCall<'_>) {
    matvec::<f16>(call);
}

pub(crate) fn matvec_bf16(call: &CpuCall<'_>) {
    matvec::<bf16>(call);
}

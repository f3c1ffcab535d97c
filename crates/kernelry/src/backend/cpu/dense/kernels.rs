//! Native kernels of the family.

use crate::backend::cpu::{CpuCall, parallel};
use crate::dtype::Element;
use crate::ops::matmul::{BatchedMatmulParams, MatmulParams};
use crate::ops::quantized::MulMmParams;
use crate::{bf16, f16};

/// A weight element, widened exactly.
trait Widen: Element + Copy + Sync {
    fn widen(self) -> f32;
}
impl Widen for f32 {
    fn widen(self) -> f32 {
        self
    }
}
impl Widen for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}
impl Widen for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

fn dot<T: Widen>(w: &[T], x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (w, x) in w.chunks(16).zip(x.chunks(16)) {
        for ((lane, w), x) in lanes.iter_mut().zip(w).zip(x) {
            *lane += w.widen() * x;
        }
    }
    lanes.iter().sum()
}

/// `out[r, n] = x[r] · w[n]`, rows of `out` in parallel where there are several, else its elements.
fn product<T: Widen>(weight: &[T], x: &[f32], k: usize, out: &mut [f32], n: usize) {
    if out.len() == n {
        parallel::for_rows(out, 1, k, |c, y| y[0] = dot(&weight[c * k..(c + 1) * k], x));
        return;
    }
    parallel::for_rows(out, n, n * k, |r, row| {
        for (c, y) in row.iter_mut().enumerate() {
            *y = dot(&weight[c * k..(c + 1) * k], &x[r * k..(r + 1) * k]);
        }
    });
}

fn batched<T: Widen>(call: &CpuCall<'_>, x: &[f32]) {
    let p: BatchedMatmulParams = call.params();
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let weight = call.input::<T>(0);
    let group = (p.batch / p.weights) as usize;
    for (b, out) in call.output::<f32>(2).chunks_mut(m * n).enumerate() {
        let w = b / group * n * k;
        product(&weight[w..w + n * k], &x[b * m * k..(b + 1) * m * k], k, out, n);
    }
}

pub(crate) fn dense_mm_f32(call: &CpuCall<'_>) {
    batched::<f32>(call, call.input(1));
}

pub(crate) fn dense_mm_bf16(call: &CpuCall<'_>) {
    batched::<bf16>(call, call.input(1));
}

pub(crate) fn dense_mm_bf16_rounded(call: &CpuCall<'_>) {
    let x: Vec<f32> = call.input::<f32>(1).iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
    batched::<bf16>(call, &x);
}

pub(crate) fn dense_mm_f16_rounded(call: &CpuCall<'_>) {
    let x: Vec<f32> = call.input::<f32>(1).iter().map(|v| f16::from_f32(*v).to_f32()).collect();
    batched::<f16>(call, &x);
}

/// Batched product with strided input: rows are gathered where they are not packed.
pub(crate) fn mul_mm_f16(call: &CpuCall<'_>) {
    let p: MulMmParams = call.params();
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let (weight, x) = (call.input::<f16>(0), call.input::<f32>(1));
    let (row_stride, batch_stride) = (p.x_row_stride as usize, p.x_batch_stride as usize);
    let mut packed = Vec::new();
    for (z, out) in call.output::<f32>(2).chunks_mut(m * n).enumerate() {
        let (i2, i3) = (z as u32 % p.ne12, z as u32 / p.ne12);
        let matrix = (i2 / p.r2) as usize + (i3 / p.r3) as usize * p.ne02 as usize;
        let x = &x[z * batch_stride..];
        let rows = if row_stride == k {
            &x[..m * k]
        } else {
            packed.clear();
            (0..m).for_each(|r| packed.extend_from_slice(&x[r * row_stride..r * row_stride + k]));
            &packed
        };
        product(&weight[matrix * n * k..(matrix + 1) * n * k], rows, k, out, n);
    }
}

pub(crate) fn gemm_f16(call: &CpuCall<'_>) {
    let p: MatmulParams = call.params();
    let x: Vec<f32> = call.input::<f16>(1).iter().map(|v| v.to_f32()).collect();
    let out = call.output::<f16>(2);
    let mut y = vec![0.0f32; out.len()];
    product(call.input::<f16>(0), &x, p.k as usize, &mut y, p.n as usize);
    out.iter_mut().zip(y).for_each(|(o, y)| *o = f16::from_f32(y));
}

fn matvec<T: Widen>(call: &CpuCall<'_>) {
    let p: MatmulParams = call.params();
    product(call.input::<T>(0), call.input(1), p.k as usize, call.output(2), p.n as usize);
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

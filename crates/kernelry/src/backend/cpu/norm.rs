//! Normalisation of rows: widened to f32, summed in a fixed order, rounded once when stored. Rows run in parallel.

use super::CpuCall;
use super::parallel::{for_rows, for_rows2};
use super::scratch::with_scratch;
use super::vector::{Isa, VectorKernel, Vectored, dispatch};
use crate::ops::norm::NormParams;

/// Nanoseconds of a row, about: two passes over cached elements.
const fn row_cost(dim: usize) -> usize {
    dim / 4 + 10
}

/// Sixteen partial sums: one order, whatever the instruction set or thread.
#[inline(always)]
fn sum_by(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = row.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        *lane += f(v);
    }
    lanes.iter().sum()
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    1.0 / (sum_by(row, |v| v * v) / row.len() as f32 + eps).sqrt()
}

/// `x · r · weight`, then a step with the element of another operand, then stored.
struct Scale<'a, T, W, F> {
    x: &'a [f32],
    eps: f32,
    weight: &'a [W],
    out: &'a mut [T],
    last: F,
}

impl<T: Vectored, W: Vectored, F: Fn(usize, f32) -> f32> VectorKernel for Scale<'_, T, W, F> {
    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        let r = inverse_rms(self.x, self.eps);
        if self.weight.is_empty() {
            for (i, (y, &x)) in self.out.iter_mut().zip(self.x).enumerate() {
                *y = T::narrow((self.last)(i, x * r));
            }
        } else {
            for (i, ((y, &x), &w)) in self.out.iter_mut().zip(self.x).zip(self.weight).enumerate() {
                *y = T::narrow((self.last)(i, x * r * w.widen()));
            }
        }
    }
}

/// Widens a row.
fn widen<T: Vectored>(row: &[T], out: &mut [f32]) {
    for (o, v) in out.iter_mut().zip(row) {
        *o = v.widen();
    }
}

/// Row `r` of an input, or what stands in the output where both are one buffer.
fn row_of<'a, T>(input: Option<&'a [T]>, r: usize, dim: usize, own: &'a [T]) -> &'a [T] {
    input.map_or(own, |x| x.get(r * dim..(r + 1) * dim).unwrap_or(own))
}

/// Bindings x, weight, out.
pub(crate) fn rms_norm<T: Vectored, W: Vectored>(call: &CpuCall<'_>) {
    normalise::<T, W>(call, call.input(1), 2);
}

/// Bindings x, out.
pub(crate) fn rms_norm_no_scale<T: Vectored>(call: &CpuCall<'_>) {
    normalise::<T, f32>(call, &[], 1);
}

fn normalise<T: Vectored, W: Vectored>(call: &CpuCall<'_>, weight: &[W], out: usize) {
    let p: NormParams = call.params();
    let dim = p.dim as usize;
    let (x, out) = call.in_place::<T>(0, out);
    for_rows(out, dim, row_cost(dim), |r, row| {
        with_scratch(dim, |buffer| {
            widen(row_of(x, r, dim, row), buffer);
            dispatch(Scale { x: buffer, eps: p.eps, weight, out: row, last: |_, v| v });
        });
    });
}

/// Bindings x, weight, s, out.
pub(crate) fn rms_norm_mul<T: Vectored, W: Vectored>(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    let dim = p.dim as usize;
    let (weight, s) = (call.input::<W>(1), call.input::<T>(2));
    let (x, out) = call.in_place::<T>(0, 3);
    for_rows(out, dim, row_cost(dim), |r, row| {
        with_scratch(dim, |buffer| {
            widen(row_of(x, r, dim, row), buffer);
            let s = &s[r * dim..(r + 1) * dim];
            dispatch(Scale { x: buffer, eps: p.eps, weight, out: row, last: |i: usize, v| v * s[i].widen() });
        });
    });
}

/// Bindings residual, x, weight, out; `out` may be `residual` or `x`.
pub(crate) fn fused_norm_add_f32(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    let dim = p.dim as usize;
    let weight = call.input::<f32>(2);
    let (residual_is_out, x_is_out) = (call.identical(0, 3), call.identical(1, 3));
    let (residual, x) = (call.input::<f32>(0), call.input::<f32>(1));
    for_rows(call.output::<f32>(3), dim, row_cost(dim), |r, row| {
        with_scratch(2 * dim, |buffer| {
            let (normed, added) = buffer.split_at_mut(dim);
            normed.copy_from_slice(row_of((!x_is_out).then_some(x), r, dim, row));
            added.copy_from_slice(row_of((!residual_is_out).then_some(residual), r, dim, row));
            let added = &*added;
            dispatch(Scale { x: normed, eps: p.eps, weight, out: row, last: |i, v| added[i] + v });
        });
    });
}

/// Bindings residual, x, weight, out, sum_out; `sum_out` may be left out, or be `residual` or `x`.
pub(crate) fn fused_residual_norm_f32(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    let dim = p.dim as usize;
    let weight = call.input::<f32>(2);
    let (residual_is_sum, x_is_sum) = (call.identical(0, 4), call.identical(1, 4));
    let (residual, x) = (call.input::<f32>(0), call.input::<f32>(1));
    let (out, sum_out) = (call.output::<f32>(3), call.output::<f32>(4));
    // The sum is formed from both operands before anything is written, and read by the norm from where it was stored.
    let row = |r: usize, out: &mut [f32], sum: &mut [f32]| {
        for i in 0..dim {
            let a = if residual_is_sum { sum[i] } else { residual[r * dim + i] };
            let b = if x_is_sum { sum[i] } else { x[r * dim + i] };
            sum[i] = a + b;
        }
        dispatch(Scale { x: sum, eps: p.eps, weight, out, last: |_, v| v });
    };
    if call.has(4) {
        for_rows2(out, dim, sum_out, dim, row_cost(dim), |r, out, sum| row(r, out, sum));
    } else {
        for_rows(out, dim, row_cost(dim), |r, out| with_scratch(dim, |sum| row(r, out, sum)));
    }
}

/// Bindings x, weight, bias, out. Two passes: the variance is summed from differences to the mean.
pub(crate) fn layer_norm_f32(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    let dim = p.dim as usize;
    let (weight, bias) = (call.input::<f32>(1), call.input::<f32>(2));
    let (x, out) = call.in_place::<f32>(0, 3);
    for_rows(out, dim, 2 * row_cost(dim), |r, row| {
        with_scratch(dim, |buffer| {
            buffer.copy_from_slice(row_of(x, r, dim, row));
            let mean = sum_by(buffer, |v| v) / dim as f32;
            buffer.iter_mut().for_each(|v| *v -= mean);
            dispatch(Scale { x: buffer, eps: p.eps, weight, out: row, last: |i, v| v + bias[i] });
        });
    });
}

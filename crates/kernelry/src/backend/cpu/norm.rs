//! Normalisation of rows: widened to f32, summed in a fixed order, rounded once when stored. Rows run in parallel.

pub(crate) mod blocks;

use super::CpuCall;
use super::parallel::{for_rows, for_rows_of};
use super::scratch::with_scratch;
use super::vector::{Isa, VectorKernel, Vectored, dispatch};
use crate::ops::norm::NormParams;

/// Nanoseconds of a row, about: two passes over cached elements.
const fn row_cost(dim: usize) -> usize {
    dim / 4 + 10
}

/// Sixteen partial sums: one order, whatever the instruction set or thread.
struct SumBy<'a, F> {
    row: &'a [f32],
    f: F,
    sum: &'a mut f32,
}

impl<F: Fn(f32) -> f32> VectorKernel for SumBy<'_, F> {
    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        let mut lanes = [0.0f32; 16];
        let chunks = self.row.chunks_exact(16);
        let tail = chunks.remainder();
        for chunk in chunks {
            for (lane, &v) in lanes.iter_mut().zip(chunk) {
                *lane += (self.f)(v);
            }
        }
        for (lane, &v) in lanes.iter_mut().zip(tail) {
            *lane += (self.f)(v);
        }
        *self.sum = lanes.iter().sum();
    }
}

fn sum_of_squares(row: &[f32]) -> f32 {
    let mut sum = 0.0;
    dispatch(SumBy { row, f: |v| v * v, sum: &mut sum });
    sum
}

/// `1 / sqrt(mean(x²) + eps)`.
pub(super) fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(row) / row.len() as f32 + eps).sqrt()
}

/// `last(x · r · weight, other)`, stored. An empty weight stands for ones; what takes no other operand passes `x` again.
struct Scale<'a, T, W, U, F> {
    x: &'a [f32],
    r: f32,
    weight: &'a [W],
    other: &'a [U],
    out: &'a mut [T],
    last: F,
}

impl<T: Vectored, W: Vectored, U: Vectored, F: Fn(f32, f32) -> f32> VectorKernel for Scale<'_, T, W, U, F> {
    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        let operands = self.out.iter_mut().zip(self.x).zip(self.other);
        if self.weight.is_empty() {
            for ((y, &x), &u) in operands {
                *y = T::narrow((self.last)(x * self.r, u.widen()));
            }
        } else {
            for (((y, &x), &u), &w) in operands.zip(self.weight) {
                *y = T::narrow((self.last)(x * self.r * w.widen(), u.widen()));
            }
        }
    }
}

/// `out = x · r · weight`.
pub(super) fn scale<T: Vectored, W: Vectored>(x: &[f32], r: f32, weight: &[W], out: &mut [T]) {
    dispatch(Scale { x, r, weight, other: x, out, last: |v, _| v });
}

/// `out = other + x · r · weight`.
fn scale_add<T: Vectored, W: Vectored>(x: &[f32], r: f32, weight: &[W], other: &[f32], out: &mut [T]) {
    dispatch(Scale { x, r, weight, other, out, last: |v, a| a + v });
}

/// Widens a row.
pub(super) fn widen<T: Vectored>(row: &[T], out: &mut [f32]) {
    for (o, v) in out.iter_mut().zip(row) {
        *o = v.widen();
    }
}

/// Input `src`, unless it is the identical buffer of output `dst`.
fn unless_same<'a, T: Vectored>(call: &CpuCall<'a>, src: usize, dst: usize) -> Option<&'a [T]> {
    (!call.identical(src, dst)).then(|| call.input(src))
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
    rows(call, out, p.dim as usize, |x, out: &mut [T]| scale(x, inverse_rms(x, p.eps), weight, out));
}

/// Maps rows of binding 0, widened, to rows of binding `out`, which may be the same.
fn rows<T: Vectored>(call: &CpuCall<'_>, out: usize, dim: usize, f: impl Fn(&[f32], &mut [T]) + Sync) {
    let (x, out) = call.in_place::<T>(0, out);
    for_rows(out, dim, row_cost(dim), |r, row| {
        with_scratch(dim, |buffer| {
            widen(row_of(x, r, dim, row), buffer);
            f(buffer, row);
        });
    });
}

/// Bindings x, weight, s, out.
pub(crate) fn rms_norm_mul<T: Vectored, W: Vectored>(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    let dim = p.dim as usize;
    let (weight, s) = (call.input::<W>(1), call.input::<T>(2));
    let (x, out) = call.in_place::<T>(0, 3);
    for_rows(out, dim, row_cost(dim), |r, out| {
        with_scratch(dim, |x_row| {
            widen(row_of(x, r, dim, out), x_row);
            let other = &s[r * dim..(r + 1) * dim];
            dispatch(Scale { x: x_row, r: inverse_rms(x_row, p.eps), weight, other, out, last: |v, s| v * s });
        });
    });
}

/// Bindings residual, x, weight, out, sum_out; `sum_out` may be left out, or be `residual` or `x`.
pub(crate) fn fused_residual_norm_f32(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    let dim = p.dim as usize;
    let weight = call.input::<f32>(2);
    let (residual, x) = (unless_same::<f32>(call, 0, 4), unless_same::<f32>(call, 1, 4));
    let outs = [call.output::<f32>(3), call.output::<f32>(4)];
    for_rows_of(outs, dim, row_cost(dim), |r, [out, sum]| {
        with_scratch(dim, |u| {
            // Formed from both operands before anything is written: the stored sum may be one of them.
            for ((u, a), b) in u.iter_mut().zip(row_of(residual, r, dim, sum)).zip(row_of(x, r, dim, sum)) {
                *u = a + b;
            }
            sum.iter_mut().zip(&*u).for_each(|(s, u)| *s = *u);
            scale(u, inverse_rms(u, p.eps), weight, out);
        });
    });
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
            let mut sum = 0.0;
            dispatch(SumBy { row: buffer, f: |v| v, sum: &mut sum });
            let mean = sum / dim as f32;
            buffer.iter_mut().for_each(|v| *v -= mean);
            scale_add(buffer, inverse_rms(buffer, p.eps), weight, bias, row);
        });
    });
}

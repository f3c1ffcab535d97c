//! Activations: elementwise maps over chunks that stay in the first cache, and row softmax.

use super::CpuCall;
use super::math::{exp, sigmoid, tanh};
use super::parallel::{for_chunks, for_rows};
use super::scratch::with_scratch;
use super::vector::{Isa, VectorKernel, Vectored, dispatch};
use crate::ops::activation::{SoftcapParams, SoftmaxParams};

/// Elements of a chunk.
const CHUNK: usize = 2048;

/// `out[i] = f(a[i], b[i])` on widened elements.
struct Map<'a, T, F> {
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [T],
    f: F,
}

impl<T: Vectored, F: Fn(f32, f32) -> f32> VectorKernel for Map<'_, T, F> {
    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        for ((o, &a), &b) in self.out.iter_mut().zip(self.a).zip(self.b) {
            *o = T::narrow((self.f)(a, b));
        }
    }
}

fn widen<T: Vectored>(from: &[T], to: &mut [f32]) {
    for (t, v) in to.iter_mut().zip(from) {
        *t = v.widen();
    }
}

/// Maps bindings 0 and 1 to binding 2, which may be either of them.
fn binary<T: Vectored>(call: &CpuCall<'_>, f: impl Fn(f32, f32) -> f32 + Sync) {
    let (a_is_out, b_is_out) = (call.identical(0, 2), call.identical(1, 2));
    let (a, b) = (call.input::<T>(0), call.input::<T>(1));
    for_chunks(call.output::<T>(2), CHUNK, 1, |start, out| {
        with_scratch(2 * out.len(), |buffer| {
            let (x, y) = buffer.split_at_mut(out.len());
            let range = start..start + out.len();
            widen(if a_is_out { out } else { &a[range.clone()] }, x);
            // Two names of one input that is not the output are two equal slices.
            widen(if b_is_out { out } else { &b[range] }, y);
            dispatch(Map { a: x, b: y, out, f: &f });
        });
    });
}

/// Maps binding 0 to binding 1, which may be the same.
fn unary<T: Vectored>(call: &CpuCall<'_>, f: impl Fn(f32) -> f32 + Sync) {
    let (x, out) = call.in_place::<T>(0, 1);
    for_chunks(out, CHUNK, 1, |start, out| {
        with_scratch(out.len(), |buffer| {
            widen(x.map_or(&*out, |x| &x[start..start + out.len()]), buffer);
            dispatch(Map { a: buffer, b: buffer, out, f: |v, _| f(v) });
        });
    });
}

pub(crate) fn sigmoid_mul<T: Vectored>(call: &CpuCall<'_>) {
    binary::<T>(
        call,
        #[inline(always)]
        |x, gate| x * sigmoid(gate),
    );
}

pub(crate) fn silu_mul(call: &CpuCall<'_>) {
    binary::<f32>(
        call,
        #[inline(always)]
        |gate, up| gate * sigmoid(gate) * up,
    );
}

/// The tanh form of GELU.
#[inline(always)]
pub(super) fn gelu_of(x: f32) -> f32 {
    let t = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    // `1 + tanh t = 2σ(2t)` without the cancellation for negative t.
    x * sigmoid(2.0 * t)
}

pub(crate) fn gelu<T: Vectored>(call: &CpuCall<'_>) {
    unary::<T>(call, gelu_of);
}

pub(crate) fn gelu_mul<T: Vectored>(call: &CpuCall<'_>) {
    binary::<T>(
        call,
        #[inline(always)]
        |gate, up| gelu_of(gate) * up,
    );
}

pub(crate) fn softcap<T: Vectored>(call: &CpuCall<'_>) {
    let p: SoftcapParams = call.params();
    unary::<T>(
        call,
        #[inline(always)]
        |x| tanh(x / p.cap) * p.cap,
    );
}

/// `e_j = exp(x_j - max)` in place; gives their sum.
struct Exponentials<'a> {
    row: &'a mut [f32],
    max: f32,
    sum: &'a mut f32,
}

impl VectorKernel for Exponentials<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        let mut lanes = [0.0f32; 16];
        let mut chunks = self.row.chunks_exact_mut(16);
        for chunk in &mut chunks {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *v = exp(*v - self.max);
                *lane += *v;
            }
        }
        for (lane, v) in lanes.iter_mut().zip(chunks.into_remainder()) {
            *v = exp(*v - self.max);
            *lane += *v;
        }
        *self.sum = lanes.iter().sum();
    }
}

pub(crate) fn softmax<T: Vectored>(call: &CpuCall<'_>) {
    let p: SoftmaxParams = call.params();
    let cols = p.cols as usize;
    let (x, out) = call.in_place::<T>(0, 1);
    for_rows(out, cols, 2 * cols, |r, row| {
        with_scratch(cols, |buffer| {
            widen(x.map_or(&*row, |x| &x[r * cols..(r + 1) * cols]), buffer);
            // A NaN must reach the sum: it is not larger than anything, so it is looked for.
            let max = buffer.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
            let mut sum = 0.0;
            dispatch(Exponentials { row: buffer, max, sum: &mut sum });
            let scale = 1.0 / sum;
            dispatch(Map { a: buffer, b: buffer, out: row, f: |e, _| e * scale });
        });
    });
}

//! Sums, products and casts on the CPU. 16-bit elements go through f32 in blocks that stay in registers or the first-level cache.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::CpuCall;
use super::parallel::{for_chunks, for_rows};
use crate::Element;
use crate::ops::elementwise::{AddBiasParams, ScalarMulParams};

/// Elements of a task, at least.
const GRAIN: usize = 4096;
/// Elements that are widened at once.
const BLOCK: usize = 128;

/// A 16-bit float.
pub(crate) trait Half: Element {
    fn widen(src: &[Self], dst: &mut [f32]);
    /// Rounds to nearest even; NaN stays NaN.
    fn narrow(src: &[f32], dst: &mut [Self]);
}

impl Half for f16 {
    fn widen(src: &[f16], dst: &mut [f32]) {
        src.convert_to_f32_slice(dst);
    }
    fn narrow(src: &[f32], dst: &mut [f16]) {
        dst.convert_from_f32_slice(src);
    }
}

impl Half for bf16 {
    fn widen(src: &[bf16], dst: &mut [f32]) {
        dst.iter_mut().zip(src).for_each(|(d, s)| *d = f32::from_bits(u32::from(s.to_bits()) << 16));
    }
    fn narrow(src: &[f32], dst: &mut [bf16]) {
        // Without a branch, so that it becomes vector code.
        for (d, s) in dst.iter_mut().zip(src) {
            let bits = s.to_bits();
            let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
            let quiet = bits >> 16 | 0x40;
            *d = bf16::from_bits(if s.is_nan() { quiet } else { rounded } as u16);
        }
    }
}

/// The two operands of a block: what is `None` is in the output.
fn operands<'a, T: Element>(call: &CpuCall<'a>) -> (Option<&'a [T]>, Option<&'a [T]>, &'a mut [T]) {
    // An input that is the identical buffer of the output is given as an empty slice; a size of zero was rejected.
    let given = |x: &'a [T]| if x.is_empty() { None } else { Some(x) };
    (given(call.input(0)), given(call.input(1)), call.output(2))
}

fn binary_f32(call: &CpuCall<'_>, f: impl Fn(f32, f32) -> f32 + Sync) {
    let (a, b, out) = operands::<f32>(call);
    for_chunks(out, GRAIN, 1, |at, out| {
        let (a, b) = (a.map(|a| &a[at..at + out.len()]), b.map(|b| &b[at..at + out.len()]));
        match (a, b) {
            (Some(a), Some(b)) => out.iter_mut().zip(a).zip(b).for_each(|((o, a), b)| *o = f(*a, *b)),
            (Some(a), None) => out.iter_mut().zip(a).for_each(|(o, a)| *o = f(*a, *o)),
            (None, Some(b)) => out.iter_mut().zip(b).for_each(|(o, b)| *o = f(*o, *b)),
            (None, None) => out.iter_mut().for_each(|o| *o = f(*o, *o)),
        }
    });
}

pub(crate) fn add_f32(call: &CpuCall<'_>) {
    binary_f32(call, |a, b| a + b);
}

pub(crate) fn mul_f32(call: &CpuCall<'_>) {
    binary_f32(call, |a, b| a * b);
}

fn binary<T: Half>(call: &CpuCall<'_>, f: impl Fn(f32, f32) -> f32 + Sync) {
    let (a, b, out) = operands::<T>(call);
    for_chunks(out, GRAIN, 1, |at, out| {
        let (mut x, mut y) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
            let (at, n) = (at + i * BLOCK, out.len());
            let (x, y) = (&mut x[..n], &mut y[..n]);
            T::widen(a.map_or(&*out, |a| &a[at..at + n]), x);
            T::widen(b.map_or(&*out, |b| &b[at..at + n]), y);
            x.iter_mut().zip(y).for_each(|(x, y)| *x = f(*x, *y));
            T::narrow(x, out);
        }
    });
}

pub(crate) fn add<T: Half>(call: &CpuCall<'_>) {
    binary::<T>(call, |a, b| a + b);
}

pub(crate) fn mul<T: Half>(call: &CpuCall<'_>) {
    binary::<T>(call, |a, b| a * b);
}

pub(crate) fn widen<T: Half>(call: &CpuCall<'_>) {
    let x = call.input::<T>(0);
    for_chunks(call.output::<f32>(1), GRAIN, 1, |at, out| T::widen(&x[at..at + out.len()], out));
}

pub(crate) fn narrow<T: Half>(call: &CpuCall<'_>) {
    let x = call.input::<f32>(0);
    for_chunks(call.output::<T>(1), GRAIN, 1, |at, out| T::narrow(&x[at..at + out.len()], out));
}

pub(crate) fn scalar_mul_f32(call: &CpuCall<'_>) {
    let p: ScalarMulParams = call.params();
    let (x, out) = call.in_place::<f32>(0, 1);
    for_chunks(out, GRAIN, 1, |at, out| match x {
        Some(x) => out.iter_mut().zip(&x[at..]).for_each(|(o, x)| *o = x * p.scalar),
        None => out.iter_mut().for_each(|o| *o *= p.scalar),
    });
}

pub(crate) fn scalar_mul<T: Half>(call: &CpuCall<'_>) {
    let p: ScalarMulParams = call.params();
    let (x, out) = call.in_place::<T>(0, 1);
    for_chunks(out, GRAIN, 1, |at, out| {
        let mut block = [0.0f32; BLOCK];
        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
            let at = at + i * BLOCK;
            let block = &mut block[..out.len()];
            T::widen(x.map_or(&*out, |x| &x[at..at + out.len()]), block);
            block.iter_mut().for_each(|v| *v *= p.scalar);
            T::narrow(block, out);
        }
    });
}

pub(crate) fn add_bias(call: &CpuCall<'_>) {
    let p: AddBiasParams = call.params();
    let cols = p.cols as usize;
    let bias = call.input::<f32>(1);
    let (x, out) = call.in_place::<f32>(0, 2);
    for_rows(out, cols, cols / 4, |r, out| match x {
        Some(x) => out.iter_mut().zip(&x[r * cols..]).zip(bias).for_each(|((o, x), b)| *o = x + b),
        None => out.iter_mut().zip(bias).for_each(|(o, b)| *o += b),
    });
}

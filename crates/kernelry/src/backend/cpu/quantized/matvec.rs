//! Few rows of activations: bound by the bandwidth of the weights.

use std::ops::Range;

use super::activations::{Rounded, Shuffled, round, shuffle};
use super::format::{Blocks, STEP};
use super::{Mode, Problem};
use crate::backend::cpu::dense::gemm::SharedMut;
use crate::backend::cpu::parallel::for_ranges;
use crate::backend::cpu::simd::{Kernel, Simd, dispatch};

/// Bytes of the largest [`STEP`] of a format: eight blocks of Q8_0.
const LARGEST_STEP: usize = 8 * 34;

/// Activations of a call.
enum Input {
    Fast(Rounded, Vec<f32>),
    Precise(Shuffled),
}

/// Lanes of a level, for the order of the activations.
struct Lanes;
impl Kernel for Lanes {
    type Out = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

pub(super) fn run<F: Blocks>(problem: &Problem<'_>, y: &mut [f32]) {
    let &Problem { x, m, n, k, mode, level, .. } = problem;
    let input = match mode {
        Mode::Fast => {
            let x = round(x, m, k, F::GROUP);
            let sums = x.sums.iter().zip(&x.scales).map(|(sum, scale)| *sum as f32 * scale).collect();
            Input::Fast(x, sums)
        }
        Mode::Precise => Input::Precise(shuffle(x, m, k, F::GROUP, dispatch(level, Lanes))),
    };
    let out = SharedMut::new(y);
    // About a nanosecond for 32 values and row.
    for_ranges(n, k * m.div_ceil(2) / 16, |rows| {
        let task = Task::<F> { problem, input: &input, rows, out, format: std::marker::PhantomData };
        dispatch(level, task);
    });
}

/// A range of weight rows with all rows of activations.
struct Task<'a, F> {
    problem: &'a Problem<'a>,
    input: &'a Input,
    rows: Range<usize>,
    out: SharedMut<'a, f32>,
    format: std::marker::PhantomData<F>,
}

impl<F: Blocks> Kernel for Task<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let &Problem { weights, m, n, k, .. } = self.problem;
        let row_bytes = F::FORMAT.row_bytes(k);
        for row in self.rows.clone() {
            let w = &weights[row * row_bytes..(row + 1) * row_bytes];
            // The last blocks of a row that is not a whole number of steps, followed by blocks of zeros.
            let mut tail = [0u8; LARGEST_STEP];
            let rest = &w[k / STEP * F::STEP_BYTES..];
            tail[..rest.len()].copy_from_slice(rest);
            let w = Row { start: w.as_ptr(), full: k / STEP, tail: tail.as_ptr(), steps: k.div_ceil(STEP) };
            let mut at = 0;
            while at < m {
                // SAFETY: `w` describes a whole row; rows `at ..` of the input exist as many as the const argument says, and element
                // `[i, row]` of the output belongs to this task.
                unsafe {
                    match m - at {
                        4.. => self.group::<S, 4>(s, &w, &mut at, row, n),
                        2..=3 => self.group::<S, 2>(s, &w, &mut at, row, n),
                        _ => self.group::<S, 1>(s, &w, &mut at, row, n),
                    }
                }
            }
        }
    }
}

/// A row of weights.
struct Row {
    start: *const u8,
    full: usize,
    tail: *const u8,
    steps: usize,
}

impl Row {
    /// [`STEP`] values.
    ///
    /// # Safety
    /// `step < self.steps`.
    #[inline(always)]
    unsafe fn step<F: Blocks>(&self, step: usize) -> *const u8 {
        // SAFETY: `full` steps are in the row itself.
        if step < self.full { unsafe { self.start.add(step * F::STEP_BYTES) } } else { self.tail }
    }
}

/// Expands `$part` for each vector of a step, with a constant index.
macro_rules! vectors {
    ($S:ident, $c:ident => $part:expr) => {{
        {
            const $c: usize = 0;
            $part
        }
        {
            const $c: usize = 1;
            $part
        }
        {
            const $c: usize = 2;
            $part
        }
        {
            const $c: usize = 3;
            $part
        }
        if $S::LANES == 8 {
            {
                const $c: usize = 4;
                $part
            }
            {
                const $c: usize = 5;
                $part
            }
            {
                const $c: usize = 6;
                $part
            }
            {
                const $c: usize = 7;
                $part
            }
        }
    }};
}

impl<F: Blocks> Task<'_, F> {
    /// Multiplies one row of weights with `R` rows of activations, from row `at`, which it advances.
    ///
    /// # Safety
    /// Those rows exist, and no other thread writes their elements of column `row`.
    #[inline(always)]
    unsafe fn group<S: Simd, const R: usize>(&self, s: S, w: &Row, at: &mut usize, row: usize, n: usize) {
        // SAFETY: the caller's.
        let sums = unsafe {
            match self.input {
                Input::Fast(x, sums) => fast::<S, F, R>(s, w, x, sums, *at),
                Input::Precise(x) => precise::<S, F, R>(s, w, x, *at),
            }
        };
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: the element exists, and the caller vouches for its being ours.
            unsafe { self.out.write((*at + i) * n + row, sum) };
        }
        *at += R;
    }
}

/// Adds what the minima, or the zero of the codes, contribute: their products with the sums of the activations.
///
/// # Safety
/// `sums` holds the groups of this step.
#[inline(always)]
unsafe fn add_offsets<S: Simd, F: Blocks>(s: S, (a, b): (S::H, S::H), sums: *const f32, acc: S::H) -> S::H {
    // SAFETY: the caller's.
    unsafe {
        if F::GROUP == 16 {
            s.h_fma(b, s.h_load(sums.add(8)), s.h_fma(a, s.h_load(sums), acc))
        } else if F::HAS_MIN {
            s.h_fma(b, s.h_load(sums), acc)
        } else if F::zero::<S>() != 0 {
            s.h_fma(a, s.h_load(sums), acc)
        } else {
            acc
        }
    }
}

/// Scales of the lanes of vector `c`.
#[inline(always)]
fn lane_scales<S: Simd, F: Blocks>(s: S, (a, b): (S::H, S::H), c: usize) -> S::F {
    if F::GROUP == 16 { s.spread16(a, b, c) } else { s.spread(a, c) }
}

/// The result of a row from its two parts.
#[inline(always)]
fn finish<S: Simd, F: Blocks, const R: usize>(s: S, acc: [S::F; R], offsets: [S::H; R]) -> [f32; R] {
    let factor = if F::HAS_MIN { 1.0 } else { -F::zero::<S>() as f32 };
    let mut out = [0.0; R];
    for r in 0..R {
        out[r] = s.sum(acc[r]);
        if factor != 0.0 {
            out[r] += factor * s.h_sum(offsets[r]);
        }
    }
    out
}

/// # Safety
/// `w` is a row of the format, and rows `at .. at + R` of `x` exist and are as long.
#[inline(always)]
unsafe fn fast<S: Simd, F: Blocks, const R: usize>(s: S, w: &Row, x: &Rounded, sums: &[f32], at: usize) -> [f32; R] {
    let groups = x.padded / F::GROUP;
    let (mut acc, mut offsets) = ([s.zero(); R], [s.h_splat(0.0); R]);
    let codes = x.codes[at * x.padded / 4..].as_ptr().cast::<u8>();
    let (scales, sums) = (x.scales[at * groups..].as_ptr(), sums[at * groups..].as_ptr());
    // SAFETY: steps are inside the row of weights, and inside the padded rows of activations.
    unsafe {
        for step in 0..w.steps {
            let p = w.step::<F>(step);
            let (a, b) = F::scales(s, p);
            let mut factors = [(a, b); R];
            for r in 0..R {
                let at = r * groups + step * (STEP / F::GROUP);
                offsets[r] = add_offsets::<S, F>(s, (a, b), sums.add(at), offsets[r]);
                factors[r].0 = s.h_mul(a, s.h_load(scales.add(at)));
                if F::GROUP == 16 {
                    factors[r].1 = s.h_mul(b, s.h_load(scales.add(at + 8)));
                }
            }
            let x_step = codes.add(step * STEP);
            vectors!(S, C => {
                let q = F::codes(s, p, C);
                for r in 0..R {
                    let v = s.load_bytes(x_step.add(r * x.padded + 4 * S::LANES * C));
                    let products = if F::SIGNED { s.dot::<true>(s.int_zero(), q, v) } else { s.dot::<false>(s.int_zero(), q, v) };
                    acc[r] = s.fma(s.int_to_float(products), lane_scales::<S, F>(s, factors[r], C), acc[r]);
                }
            });
        }
    }
    finish::<S, F, R>(s, acc, offsets)
}

/// # Safety
/// As [`fast`].
#[inline(always)]
unsafe fn precise<S: Simd, F: Blocks, const R: usize>(s: S, w: &Row, x: &Shuffled, at: usize) -> [f32; R] {
    let groups = x.padded / F::GROUP;
    let (mut acc, mut offsets) = ([s.zero(); R], [s.h_splat(0.0); R]);
    let (values, sums) = (x.values[at * x.padded..].as_ptr(), x.sums[at * groups..].as_ptr());
    // SAFETY: as in `fast`.
    unsafe {
        for step in 0..w.steps {
            let p = w.step::<F>(step);
            let factors = F::scales(s, p);
            for (r, offset) in offsets.iter_mut().enumerate() {
                *offset = add_offsets::<S, F>(s, factors, sums.add(r * groups + step * (STEP / F::GROUP)), *offset);
            }
            let x_step = values.add(step * STEP);
            vectors!(S, C => {
                let q = F::codes(s, p, C);
                let scale = lane_scales::<S, F>(s, factors, C);
                let w = if F::SIGNED {
                    [s.quarter::<true>(q, 0), s.quarter::<true>(q, 1), s.quarter::<true>(q, 2), s.quarter::<true>(q, 3)]
                } else {
                    [s.quarter::<false>(q, 0), s.quarter::<false>(q, 1), s.quarter::<false>(q, 2), s.quarter::<false>(q, 3)]
                };
                for (r, acc) in acc.iter_mut().enumerate() {
                    let v = x_step.add(r * x.padded + 4 * S::LANES * C);
                    let mut sum = s.mul(w[0], s.load(v));
                    sum = s.fma(w[1], s.load(v.add(S::LANES)), sum);
                    sum = s.fma(w[2], s.load(v.add(2 * S::LANES)), sum);
                    sum = s.fma(w[3], s.load(v.add(3 * S::LANES)), sum);
                    *acc = s.fma(sum, scale, *acc);
                }
            });
        }
    }
    finish::<S, F, R>(s, acc, offsets)
}

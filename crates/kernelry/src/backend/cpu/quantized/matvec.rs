//! Few rows of activations: bound by the bandwidth of the weights.
// Loops over register tiles read best by index, and unroll.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::{Rounded, digits, round};
use super::format::{Blocks, STEP};
use super::{Mode, Problem};
use crate::backend::cpu::dense::gemm::SharedMut;
use crate::backend::cpu::parallel::for_ranges;
use crate::backend::cpu::simd::{Kernel, Order, Simd, dispatch};

/// Bytes of the largest [`STEP`] of a format: eight blocks of Q8_0.
const LARGEST_STEP: usize = 8 * 34;

/// Lanes of a level and the order of a format there.
struct Layout<F>(PhantomData<F>);
impl<F: Blocks> Kernel for Layout<F> {
    type Out = (usize, Order);
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (usize, Order) {
        (S::LANES, F::order::<S>())
    }
}

pub(super) fn run<F: Blocks>(problem: &Problem<'_>, y: &mut [f32]) {
    let &Problem { x, m, n, k, mode, level, .. } = problem;
    let (lanes, order) = dispatch(level, Layout::<F>(PhantomData));
    // Precise activations are three rows of digits, each as a row of rounded ones, whose results add up.
    let mut x = match mode {
        Mode::Fast => round(x, m, k, F::GROUP),
        Mode::Precise => digits(x, m, k, F::GROUP),
    };
    x.reorder(order, lanes);
    let sums: Vec<f32> = x.sums.iter().zip(&x.scales).map(|(sum, scale)| *sum as f32 * scale).collect();
    let out = SharedMut::new(y);
    // About a nanosecond for 32 values and row.
    for_ranges(n, k * m.div_ceil(2) / 16, |rows| {
        let task = Task::<F> { problem, x: &x, sums: &sums, rows, out, format: PhantomData };
        dispatch(level, task);
    });
}

/// A range of weight rows with all rows of activations.
struct Task<'a, F> {
    problem: &'a Problem<'a>,
    x: &'a Rounded,
    /// Sums of the values that the codes of each group stand for.
    sums: &'a [f32],
    rows: Range<usize>,
    out: SharedMut<'a, f32>,
    format: PhantomData<F>,
}

impl<F: Blocks> Kernel for Task<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let &Problem { weights, m, k, mode, .. } = self.problem;
        let row_bytes = F::FORMAT.row_bytes(k);
        let (full, steps) = (k / STEP, k.div_ceil(STEP));
        // The last blocks of rows that are not a whole number of steps, followed by blocks of zeros.
        let mut tail = [0u8; LARGEST_STEP];
        for at in self.rows.clone() {
            let w = &weights[at * row_bytes..(at + 1) * row_bytes];
            let rest = &w[full * F::STEP_BYTES..];
            tail[..rest.len()].copy_from_slice(rest);
            let row = Row { start: w.as_ptr(), full, tail: tail.as_ptr() };
            let mut i = 0;
            while i < m {
                // SAFETY: `row` describes a whole row of `steps` steps; rows `i .. i + size` of the activations exist, and column `at` of the
                // output belongs to this task.
                i += unsafe {
                    match (mode, m - i) {
                        (Mode::Fast, 4..) => self.write(products::<S, F, 4>(s, row, steps, self.x, self.sums, i), i, at),
                        (Mode::Fast, 2..) => self.write(products::<S, F, 2>(s, row, steps, self.x, self.sums, i), i, at),
                        (Mode::Fast, _) => self.write(products::<S, F, 1>(s, row, steps, self.x, self.sums, i), i, at),
                        // Where there are registers for the sums of two rows.
                        (Mode::Precise, 2..) if S::LANES == 16 => {
                            let [a, b, c, d, e, f] = products::<S, F, 6>(s, row, steps, self.x, self.sums, 3 * i);
                            self.write([a + (b + c), d + (e + f)], i, at)
                        }
                        (Mode::Precise, _) => {
                            let [a, b, c] = products::<S, F, 3>(s, row, steps, self.x, self.sums, 3 * i);
                            self.write([a + (b + c)], i, at)
                        }
                    }
                };
            }
        }
    }
}

impl<F: Blocks> Task<'_, F> {
    /// Writes the results of one row of weights for rows of activations from row `i`. Gives their number.
    ///
    /// # Safety
    /// Those rows of activations exist, and no other thread writes their elements of this column.
    #[inline(always)]
    unsafe fn write<const R: usize>(&self, sums: [f32; R], i: usize, column: usize) -> usize {
        for (j, sum) in sums.into_iter().enumerate() {
            // SAFETY: the element exists, and the caller vouches for its being ours.
            unsafe { self.out.write((i + j) * self.problem.n + column, sum) };
        }
        R
    }
}

/// A row of weights.
#[derive(Clone, Copy)]
struct Row {
    start: *const u8,
    full: usize,
    tail: *const u8,
}

impl Row {
    /// [`STEP`] values.
    ///
    /// # Safety
    /// The row has that step.
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

/// Adds what the minima, or the `zero` of the codes, contribute: their products with the sums of the activations.
///
/// # Safety
/// `sums` holds the groups of this step.
#[inline(always)]
unsafe fn add_offsets<S: Simd, F: Blocks>(s: S, zero: i32, (a, b): (S::H, S::H), sums: *const f32, acc: S::H) -> S::H {
    // SAFETY: the caller's.
    unsafe {
        if F::HAS_MIN {
            s.h_fma(b, s.h_load(sums), acc)
        } else if zero == 0 {
            acc
        } else if F::GROUP == 16 {
            s.h_fma(b, s.h_load(sums.add(8)), s.h_fma(a, s.h_load(sums), acc))
        } else {
            s.h_fma(a, s.h_load(sums), acc)
        }
    }
}

/// Whether the scales of vector `c` are those of the one before it, and of the one after it.
#[inline(always)]
fn shared_scales<S: Simd, F: Blocks>(c: usize) -> (bool, bool) {
    let pairs = F::order::<S>() == Order::Blocks;
    (pairs && !c.is_multiple_of(2), pairs && c.is_multiple_of(2))
}

/// Scales of the lanes of vector `c`.
#[inline(always)]
fn lane_scales<S: Simd, F: Blocks>(s: S, (a, b): (S::H, S::H), c: usize) -> S::F {
    if F::GROUP == 16 { s.spread16(a, b, c) } else { s.spread(a, c, F::order::<S>()) }
}

/// The result from its two parts.
#[inline(always)]
fn finish<S: Simd, F: Blocks>(s: S, zero: i32, acc: S::F, offsets: S::H) -> f32 {
    let factor = if F::HAS_MIN { 1.0 } else { -zero as f32 };
    if factor == 0.0 { s.sum(acc) } else { s.sum(acc) + factor * s.h_sum(offsets) }
}

/// Products of a row of weights with rows of codes.
///
/// # Safety
/// `row` is one of the format of `steps` steps, and rows `at .. at + R` of `x` exist and are as long.
#[inline(always)]
unsafe fn products<S: Simd, F: Blocks, const R: usize>(s: S, row: Row, steps: usize, x: &Rounded, sums: &[f32], at: usize) -> [f32; R] {
    let (groups, zero) = (x.padded / F::GROUP, F::zero::<S>());
    let (mut acc, mut offsets) = ([s.zero(); R], [s.h_splat(0.0); R]);
    let codes = x.codes[at * x.padded / 4..].as_ptr().cast::<u8>();
    let (scales, sums) = (x.scales[at * groups..].as_ptr(), sums[at * groups..].as_ptr());
    // SAFETY: steps are inside the row of weights, and inside the padded rows of activations.
    unsafe {
        for step in 0..steps {
            let p = row.step::<F>(step);
            let (a, b) = F::scales(s, p);
            let mut factors = [(a, b); R];
            for r in 0..R {
                let at = r * groups + step * (STEP / F::GROUP);
                offsets[r] = add_offsets::<S, F>(s, zero, (a, b), sums.add(at), offsets[r]);
                factors[r].0 = s.h_mul(a, s.h_load(scales.add(at)));
                if F::GROUP == 16 {
                    factors[r].1 = s.h_mul(b, s.h_load(scales.add(at + 8)));
                }
            }
            let x_step = codes.add(step * STEP);
            let mut products = [s.int_zero(); R];
            vectors!(S, C => {
                let (continued, continues) = shared_scales::<S, F>(C);
                let q = F::bytes(s, F::raw(s, p, C));
                for r in 0..R {
                    let v = s.load_bytes(x_step.add(r * x.padded + 4 * S::LANES * C));
                    let before = if continued { products[r] } else { s.int_zero() };
                    products[r] = if F::SIGNED { s.dot::<true>(before, q, v) } else { s.dot::<false>(before, q, v) };
                    if !continues {
                        acc[r] = s.fma(s.int_to_float(products[r]), lane_scales::<S, F>(s, factors[r], C), acc[r]);
                    }
                }
            });
        }
    }
    std::array::from_fn(|r| finish::<S, F>(s, zero, acc[r], offsets[r]))
}

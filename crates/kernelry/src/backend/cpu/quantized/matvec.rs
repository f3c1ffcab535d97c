//! Few rows of activations: bound by the bandwidth of the weights.
// Loops over register tiles read best by index, and unroll.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::{Rounded, Shuffled, round, shuffle};
use super::format::{Blocks, STEP};
use super::{Mode, Problem};
use crate::backend::cpu::dense::gemm::SharedMut;
use crate::backend::cpu::parallel::for_ranges;
use crate::backend::cpu::simd::{Kernel, Order, Simd, dispatch};

/// Bytes of the largest [`STEP`] of a format: eight blocks of Q8_0.
const LARGEST_STEP: usize = 8 * 34;

/// Most steps of a row that [`Task::single`] takes before it goes on to the next one: 32 KiB of activations, which stay in the first cache
/// beside the weights that pass through.
const PART_STEPS: usize = 32;
/// Rows that go through a part before the next part is taken.
const BAND: usize = 32;
/// How far ahead weights are asked for, at least. The processor's own guesses end at each page.
const AHEAD_BYTES: usize = 4096;

/// Activations of a call.
enum Input {
    Fast(Rounded, Vec<f32>),
    Precise(Shuffled),
}

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
    let input = match mode {
        Mode::Fast => {
            let mut x = round(x, m, k, F::GROUP);
            x.reorder(order, lanes);
            let sums = x.sums.iter().zip(&x.scales).map(|(sum, scale)| *sum as f32 * scale).collect();
            Input::Fast(x, sums)
        }
        Mode::Precise => Input::Precise(shuffle(x, m, k, F::GROUP, order, lanes)),
    };
    let out = SharedMut::new(y);
    // About a nanosecond for 32 values and row.
    for_ranges(n, k * m.div_ceil(2) / 16, |rows| {
        let task = Task::<F> { problem, input: &input, rows, out, format: PhantomData };
        dispatch(level, task);
    });
}

/// A range of weight rows with all rows of activations.
struct Task<'a, F> {
    problem: &'a Problem<'a>,
    input: &'a Input,
    rows: Range<usize>,
    out: SharedMut<'a, f32>,
    format: PhantomData<F>,
}

impl<F: Blocks> Kernel for Task<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if let (Input::Precise(x), 16, 1) = (self.input, S::LANES, self.problem.m) {
            return self.single(s, x);
        }
        // As many rows of weights at a time as there are registers for the sums of: they share the loads of activations, which for
        // several rows of those are the bottleneck. Activations in 8 bits are loaded four times faster.
        match (self.input, S::LANES) {
            (Input::Fast(..), _) => self.rows::<S, 1, true>(s),
            (Input::Precise(..), 16) => self.rows::<S, 4, false>(s),
            (Input::Precise(..), _) => self.rows::<S, 2, false>(s),
        }
    }
}

impl<F: Blocks> Task<'_, F> {
    #[inline(always)]
    fn rows<S: Simd, const W: usize, const FAST: bool>(&self, s: S) {
        let &Problem { weights, m, k, .. } = self.problem;
        let (row_bytes, end) = (F::FORMAT.row_bytes(k), self.rows.end);
        let (full, steps) = (k / STEP, k.div_ceil(STEP));
        // The last blocks of rows that are not a whole number of steps, followed by blocks of zeros.
        let mut tails = [[0u8; LARGEST_STEP]; W];
        let mut first = self.rows.start;
        while first < end {
            let mut tile = [Row { start: weights.as_ptr(), full, tail: weights.as_ptr() }; W];
            for (j, (row, tail)) in tile.iter_mut().zip(&mut tails).enumerate() {
                // Where there are fewer rows, the last one again.
                let at = (first + j).min(end - 1) * row_bytes;
                let w = &weights[at..at + row_bytes];
                let rest = &w[full * F::STEP_BYTES..];
                tail[..rest.len()].copy_from_slice(rest);
                *row = Row { start: w.as_ptr(), full, tail: tail.as_ptr() };
            }
            let mut at = 0;
            while at < m {
                // SAFETY: `tile` describes whole rows of `steps` steps; rows `at .. at + size` of the input exist, and the elements
                // `first ..` of the output's rows belong to this task.
                at += unsafe {
                    match self.input {
                        Input::Fast(x, sums) if FAST => match m - at {
                            4.. => self.write(fast::<S, F, W, 4>(s, &tile, steps, x, sums, at), at, first),
                            2.. => self.write(fast::<S, F, W, 2>(s, &tile, steps, x, sums, at), at, first),
                            _ => self.write(fast::<S, F, W, 1>(s, &tile, steps, x, sums, at), at, first),
                        },
                        Input::Precise(x) if !FAST => match m - at {
                            1 => self.write(precise_few::<S, F, W, 1>(s, &tile, steps, x, at), at, first),
                            2 => self.write(precise_few::<S, F, W, 2>(s, &tile, steps, x, at), at, first),
                            3 => self.write(precise_few::<S, F, W, 3>(s, &tile, steps, x, at), at, first),
                            left => {
                                let rows = left.min(MANY);
                                let sums = precise_many::<S, F, W>(s, &tile, steps, x, at, rows);
                                for (i, sums) in sums.into_iter().enumerate().take(rows) {
                                    self.write([sums], at + i, first);
                                }
                                rows
                            }
                        },
                        // The caller chose by the input.
                        _ => return,
                    }
                };
            }
            first += W;
        }
    }

    /// One row of activations, with one row of weights after the other: the weights are one stream, which is what memory is fastest at.
    #[inline(always)]
    fn single<S: Simd>(&self, s: S, x: &Shuffled) {
        let &Problem { weights, k, .. } = self.problem;
        let row_bytes = F::FORMAT.row_bytes(k);
        let (full, steps) = (k / STEP, k.div_ceil(STEP));
        // Parts of about one length.
        let part = steps.div_ceil(steps.div_ceil(PART_STEPS).max(1)).max(1);
        let ahead = Some(row_bytes * AHEAD_BYTES.div_ceil((part * F::STEP_BYTES).max(1)));
        let mut tail = [0u8; LARGEST_STEP];
        for first in self.rows.clone().step_by(BAND) {
            let mut sums = [([[s.zero()]], [[s.h_splat(0.0)]]); BAND];
            let band = first..self.rows.end.min(first + BAND);
            for from in (0..steps).step_by(part) {
                for (row, (acc, offsets)) in band.clone().zip(&mut sums) {
                    let w = &weights[row * row_bytes..(row + 1) * row_bytes];
                    let to = steps.min(from + part);
                    if to > full {
                        let rest = &w[full * F::STEP_BYTES..];
                        tail[..rest.len()].copy_from_slice(rest);
                    }
                    let row = [Row { start: w.as_ptr(), full, tail: tail.as_ptr() }];
                    // SAFETY: a whole row of `steps` steps, and the one row of activations.
                    unsafe { precise_part::<S, F, 1, 1>(s, &row, from..to, x, 0, ahead, acc, offsets) };
                }
            }
            for (row, (acc, offsets)) in band.zip(sums) {
                let sum = finish::<S, F>(s, F::value_zero::<S>(), acc[0][0], offsets[0][0]);
                // SAFETY: the output has the rows of this task, which no other one writes.
                unsafe { self.out.write(row, sum) };
            }
        }
    }

    /// Writes results of rows of activations from row `at` and of rows of weights from row `first`, those that are in this task's range.
    /// Gives the number of rows of activations.
    ///
    /// # Safety
    /// Those rows of activations exist, and no other thread writes their elements of the columns from `first` to the end of the range.
    #[inline(always)]
    unsafe fn write<const W: usize, const R: usize>(&self, sums: [[f32; W]; R], at: usize, first: usize) -> usize {
        for (i, sums) in sums.into_iter().enumerate() {
            for (column, sum) in (first..self.rows.end).zip(sums) {
                // SAFETY: the element exists, and the caller vouches for its being ours.
                unsafe { self.out.write((at + i) * self.problem.n + column, sum) };
            }
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

/// # Safety
/// `tile` holds rows of the format of `steps` steps, and rows `at .. at + R` of `x` exist and are as long.
#[inline(always)]
unsafe fn fast<S: Simd, F: Blocks, const W: usize, const R: usize>(
    s: S,
    tile: &[Row; W],
    steps: usize,
    x: &Rounded,
    sums: &[f32],
    at: usize,
) -> [[f32; W]; R] {
    let (groups, zero) = (x.padded / F::GROUP, F::zero::<S>());
    let (mut acc, mut offsets) = ([[s.zero(); R]; W], [[s.h_splat(0.0); R]; W]);
    let codes = x.codes[at * x.padded / 4..].as_ptr().cast::<u8>();
    let (scales, sums) = (x.scales[at * groups..].as_ptr(), sums[at * groups..].as_ptr());
    // SAFETY: steps are inside the rows of weights, and inside the padded rows of activations.
    unsafe {
        for step in 0..steps {
            for n in 0..W {
                let p = tile[n].step::<F>(step);
                let (a, b) = F::scales(s, p);
                let mut factors = [(a, b); R];
                for r in 0..R {
                    let at = r * groups + step * (STEP / F::GROUP);
                    offsets[n][r] = add_offsets::<S, F>(s, zero, (a, b), sums.add(at), offsets[n][r]);
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
                            acc[n][r] = s.fma(s.int_to_float(products[r]), lane_scales::<S, F>(s, factors[r], C), acc[n][r]);
                        }
                    }
                });
            }
        }
    }
    let mut out = [[0.0; W]; R];
    for (r, out) in out.iter_mut().enumerate() {
        for (n, out) in out.iter_mut().enumerate() {
            *out = finish::<S, F>(s, zero, acc[n][r], offsets[n][r]);
        }
    }
    out
}

/// Everything in registers: for few rows of activations.
///
/// # Safety
/// As [`fast`].
#[inline(always)]
unsafe fn precise_few<S: Simd, F: Blocks, const W: usize, const R: usize>(
    s: S,
    tile: &[Row; W],
    steps: usize,
    x: &Shuffled,
    at: usize,
) -> [[f32; W]; R] {
    let (mut acc, mut offsets) = ([[s.zero(); R]; W], [[s.h_splat(0.0); R]; W]);
    // SAFETY: the caller's.
    unsafe { precise_part::<S, F, W, R>(s, tile, 0..steps, x, at, None, &mut acc, &mut offsets) };
    let mut out = [[0.0; W]; R];
    for (r, out) in out.iter_mut().enumerate() {
        for (n, out) in out.iter_mut().enumerate() {
            *out = finish::<S, F>(s, F::value_zero::<S>(), acc[n][r], offsets[n][r]);
        }
    }
    out
}

/// Adds the products of some steps; asks for the weights that are so many bytes further on.
///
/// # Safety
/// As [`fast`], for those steps.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the state of a loop")]
unsafe fn precise_part<S: Simd, F: Blocks, const W: usize, const R: usize>(
    s: S,
    tile: &[Row; W],
    steps: Range<usize>,
    x: &Shuffled,
    at: usize,
    ahead: Option<usize>,
    acc: &mut [[S::F; R]; W],
    offsets: &mut [[S::H; R]; W],
) {
    let (groups, zero) = (x.padded / F::GROUP, F::value_zero::<S>());
    let (values, sums) = (x.values[at * x.padded..].as_ptr(), x.sums[at * groups..].as_ptr());
    // SAFETY: as in `fast`.
    unsafe {
        for step in steps {
            let mut p = [tile[0].start; W];
            let mut factors = [(s.h_splat(0.0), s.h_splat(0.0)); W];
            for n in 0..W {
                p[n] = tile[n].step::<F>(step);
                if let Some(ahead) = ahead {
                    ask_for::<S, F>(s, tile[n].start.wrapping_add(step * F::STEP_BYTES + ahead));
                }
                factors[n] = F::scales(s, p[n]);
                for r in 0..R {
                    let sums = sums.add(r * groups + step * (STEP / F::GROUP));
                    offsets[n][r] = add_offsets::<S, F>(s, zero, factors[n], sums, offsets[n][r]);
                }
            }
            let x_step = values.add(step * STEP);
            vectors!(S, C => {
                let mut packed = [F::packed(s, F::raw(s, p[0], C)); W];
                for n in 1..W {
                    packed[n] = F::packed(s, F::raw(s, p[n], C));
                }
                let mut sums = [[s.zero(); R]; W];
                for i in 0..4 {
                    let mut v = [s.zero(); R];
                    for r in 0..R {
                        v[r] = s.load(x_step.add(r * x.padded + (4 * C + i) * S::LANES));
                    }
                    for n in 0..W {
                        let w = F::value(s, packed[n], i);
                        for r in 0..R {
                            sums[n][r] = if i == 0 { s.mul(w, v[r]) } else { s.fma(w, v[r], sums[n][r]) };
                        }
                    }
                }
                for n in 0..W {
                    let scale = lane_scales::<S, F>(s, factors[n], C);
                    for r in 0..R {
                        acc[n][r] = s.fma(sums[n][r], scale, acc[n][r]);
                    }
                }
            });
        }
    }
}

/// Asks for the cache lines of a step.
#[inline(always)]
fn ask_for<S: Simd, F: Blocks>(s: S, p: *const u8) {
    let mut line = 0;
    while line < F::STEP_BYTES {
        s.prefetch(p.wrapping_add(line));
        line += 64;
    }
}

/// Rows of activations that [`precise_many`] takes.
const MANY: usize = 8;

/// As [`precise_few`], with the same bits, for `rows` rows from row `at`: weights are decoded once and stay in registers while all of the
/// rows pass by.
///
/// # Safety
/// As [`precise_few`], for all of the rows, which are [`MANY`] at most.
#[inline(always)]
unsafe fn precise_many<S: Simd, F: Blocks, const W: usize>(
    s: S,
    tile: &[Row; W],
    steps: usize,
    x: &Shuffled,
    at: usize,
    rows: usize,
) -> [[f32; W]; MANY] {
    let (groups, zero) = (x.padded / F::GROUP, F::value_zero::<S>());
    // The same step of the rows that are next.
    let ahead = W * F::FORMAT.row_bytes(x.padded);
    let (mut acc, mut offsets) = ([[s.zero(); W]; MANY], [[s.h_splat(0.0); W]; MANY]);
    let (values, sums) = (x.values[at * x.padded..].as_ptr(), x.sums[at * groups..].as_ptr());
    // SAFETY: as in `fast`.
    unsafe {
        for step in 0..steps {
            let mut p = [tile[0].start; W];
            let mut factors = [(s.h_splat(0.0), s.h_splat(0.0)); W];
            for n in 0..W {
                p[n] = tile[n].step::<F>(step);
                ask_for::<S, F>(s, p[n].wrapping_add(ahead));
                factors[n] = F::scales(s, p[n]);
            }
            if F::HAS_MIN || zero != 0 {
                for (r, offsets) in offsets.iter_mut().enumerate().take(rows) {
                    let sums = sums.add(r * groups + step * (STEP / F::GROUP));
                    for n in 0..W {
                        offsets[n] = add_offsets::<S, F>(s, zero, factors[n], sums, offsets[n]);
                    }
                }
            }
            let x_step = values.add(step * STEP);
            vectors!(S, C => {
                let mut w = [[s.zero(); 4]; W];
                let mut scales = [s.zero(); W];
                for n in 0..W {
                    let packed = F::packed(s, F::raw(s, p[n], C));
                    for i in 0..4 {
                        w[n][i] = F::value(s, packed, i);
                    }
                    scales[n] = lane_scales::<S, F>(s, factors[n], C);
                }
                let v = x_step.add(4 * C * S::LANES);
                let mut pairs = acc[..rows].chunks_exact_mut(2);
                for (i, acc) in (&mut pairs).enumerate() {
                    multiply::<S, W, 2>(s, &w, &scales, v.add(2 * i * x.padded), x.padded, acc);
                }
                multiply::<S, W, 1>(s, &w, &scales, v.wrapping_add((rows - 1) * x.padded), x.padded, pairs.into_remainder());
            });
        }
    }
    let mut out = [[0.0; W]; MANY];
    for (r, out) in out.iter_mut().enumerate().take(rows) {
        for (n, out) in out.iter_mut().enumerate() {
            *out = finish::<S, F>(s, zero, acc[r][n], offsets[r][n]);
        }
    }
    out
}

/// Adds the products of a vector of codes of `W` rows with `R` rows of activations, `stride` values apart, to as many rows of sums; does
/// nothing where those are fewer.
///
/// # Safety
/// `4 · LANES` values of each row can be read, if there are so many sums.
#[inline(always)]
unsafe fn multiply<S: Simd, const W: usize, const R: usize>(
    s: S,
    w: &[[S::F; 4]; W],
    scales: &[S::F; W],
    x: *const f32,
    stride: usize,
    acc: &mut [[S::F; W]],
) {
    let Some(acc) = acc.first_chunk_mut::<R>() else { return };
    let mut sums = [[s.zero(); R]; W];
    for i in 0..4 {
        let mut v = [s.zero(); R];
        for (r, v) in v.iter_mut().enumerate() {
            // SAFETY: the caller's.
            *v = unsafe { s.load(x.add(r * stride + i * S::LANES)) };
        }
        for n in 0..W {
            for r in 0..R {
                sums[n][r] = if i == 0 { s.mul(w[n][0], v[r]) } else { s.fma(w[n][i], v[r], sums[n][r]) };
            }
        }
    }
    for n in 0..W {
        for r in 0..R {
            acc[r][n] = s.fma(sums[n][r], scales[n], acc[r][n]);
        }
    }
}

//! Splitting work over threads, where it is worth it.

use std::ops::Range;

use rayon::prelude::*;

/// Work below which a launch stays on the calling thread, in units of about a nanosecond: waking another thread costs some
/// microseconds, and a decode step of a small model makes hundreds of launches.
const SERIAL_WORK: usize = 40_000;

/// Number of tasks for `items` that take about `nanos` nanoseconds each.
fn tasks(items: usize, nanos: usize) -> usize {
    let threads = rayon::current_num_threads();
    let work = items.saturating_mul(nanos.max(1));
    if threads == 1 || items < 2 || work < SERIAL_WORK {
        return 1;
    }
    // Several tasks a thread even out cores that are busy with something else; none shorter than half the threshold.
    (work / (SERIAL_WORK / 2)).clamp(2, threads * 4).min(items)
}

/// Calls `f` on ranges that cover `0..items`, in parallel if `items · nanos` is worth it.
pub(crate) fn for_ranges(items: usize, nanos: usize, f: impl Fn(Range<usize>) + Sync) {
    let tasks = tasks(items, nanos);
    if tasks <= 1 {
        f(0..items);
        return;
    }
    let chunk = items.div_ceil(tasks);
    (0..items.div_ceil(chunk)).into_par_iter().for_each(|t| f(t * chunk..((t + 1) * chunk).min(items)));
}

/// Calls `f(row, elements)` for each row of `out`, in parallel if `rows · nanos` is worth it.
pub(crate) fn for_rows<T: Send>(out: &mut [T], row_len: usize, nanos: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let row_len = row_len.max(1);
    let tasks = tasks(out.len() / row_len, nanos);
    if tasks <= 1 {
        out.chunks_mut(row_len).enumerate().for_each(|(r, row)| f(r, row));
        return;
    }
    let chunk = (out.len() / row_len).div_ceil(tasks);
    out.par_chunks_mut(chunk * row_len).enumerate().for_each(|(t, rows)| {
        rows.chunks_mut(row_len).enumerate().for_each(|(r, row)| f(t * chunk + r, row));
    });
}

/// As [`for_rows`] over two outputs with as many rows each.
pub(crate) fn for_rows2<A: Send, B: Send>(
    a: &mut [A],
    a_len: usize,
    b: &mut [B],
    b_len: usize,
    nanos: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let (a_len, b_len) = (a_len.max(1), b_len.max(1));
    let tasks = tasks(a.len() / a_len, nanos);
    let chunk = (a.len() / a_len).div_ceil(tasks.max(1)).max(1);
    let run = |t: usize, a: &mut [A], b: &mut [B]| {
        a.chunks_mut(a_len).zip(b.chunks_mut(b_len)).enumerate().for_each(|(r, (x, y))| f(t * chunk + r, x, y));
    };
    if tasks <= 1 {
        run(0, a, b);
        return;
    }
    a.par_chunks_mut(chunk * a_len).zip(b.par_chunks_mut(chunk * b_len)).enumerate().for_each(|(t, (x, y))| run(t, x, y));
}

/// As [`for_rows`], but hands out whole groups of consecutive elements: `f(first_element, elements)`, at most `grain` at a time.
pub(crate) fn for_chunks<T: Send>(out: &mut [T], grain: usize, nanos_per_element: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    for_rows(out, grain, nanos_per_element.saturating_mul(grain).max(1), |i, chunk| f(i * grain, chunk));
}

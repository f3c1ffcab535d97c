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

/// As [`for_rows`] over outputs of one type with as many rows each; an output that was left out gives empty rows.
pub(crate) fn for_rows_of<T: Send, const N: usize>(
    outs: [&mut [T]; N],
    row_len: usize,
    nanos: usize,
    f: impl Fn(usize, [&mut [T]; N]) + Sync,
) {
    let row_len = row_len.max(1);
    let rows_in = |outs: &[&mut [T]; N]| outs.iter().map(|o| o.len()).max().unwrap_or(0) / row_len;
    let run = |first: usize, outs: [&mut [T]; N]| {
        let rows = rows_in(&outs);
        let mut each = outs.map(|o| o.chunks_mut(row_len));
        (0..rows).for_each(|r| f(first + r, each.each_mut().map(|rows| rows.next().unwrap_or_default())));
    };
    let rows = rows_in(&outs);
    let tasks = tasks(rows, nanos);
    if tasks <= 1 {
        run(0, outs);
        return;
    }
    let chunk = rows.div_ceil(tasks);
    let mut pieces = outs.map(|o| o.chunks_mut(chunk * row_len));
    let starts = (0..rows).step_by(chunk);
    let list: Vec<_> = starts.map(|first| (first, pieces.each_mut().map(|p| p.next().unwrap_or_default()))).collect();
    list.into_par_iter().for_each(|(first, outs)| run(first, outs));
}

/// As [`for_rows`], but hands out whole groups of consecutive elements: `f(first_element, elements)`, at most `grain` at a time.
pub(crate) fn for_chunks<T: Send>(out: &mut [T], grain: usize, nanos_per_element: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    for_rows(out, grain, nanos_per_element.saturating_mul(grain).max(1), |i, chunk| f(i * grain, chunk));
}

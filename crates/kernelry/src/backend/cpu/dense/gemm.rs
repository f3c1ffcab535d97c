//! Tiled products `y[b, m, n] = Σ_k x[b, m, k] · w[b, n, k]` for many rows of activations.
//!
//! The lanes of a vector are rows of activations, which are packed once per call into tiles `[k][lanes]`. Weights are brought into a panel
//! of a few rows, which stays in the second-level cache while all tiles pass by, and are broadcast element by element. So a weight is
//! decoded once for up to 512 rows of activations, needs no transposition, and no lane ever meets another one's data. A panel need not
//! hold floats: what is in it, and the inner loop over it, is the business of a [`Panel`].

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

use crate::backend::cpu::parallel::for_ranges;
use crate::backend::cpu::simd::{Kernel, Level, Simd, dispatch};

/// Sizes of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Independent products.
    pub batch: usize,
    /// Rows of activations.
    pub m: usize,
    /// Rows of weights.
    pub n: usize,
    /// Length of both.
    pub k: usize,
}

/// A slice that several threads write at different places.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: access is unsafe, and its callers vouch that no element is touched by two threads.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Takes the slice for as long as it may be written.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// It exists, and no other thread touches it.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, at: usize, v: T) {
        debug_assert!(at < self.len);
        // SAFETY: the caller's.
        unsafe { self.start.add(at).write(v) };
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// It exists, and nothing else touches it while the result lives.
    #[inline(always)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        debug_assert!(range.end <= self.len);
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Element type of a result.
pub(crate) trait Output: Copy + Send + Sync + 'static {
    /// Rounds once, to nearest, ties to even.
    fn from_f32(v: f32) -> Self;
}

impl Output for f32 {
    #[inline(always)]
    fn from_f32(v: f32) -> f32 {
        v
    }
}

impl Output for half::f16 {
    #[inline(always)]
    fn from_f32(v: f32) -> half::f16 {
        half::f16::from_f32(v)
    }
}

/// Vectors of activation rows of a full tile.
const TILE_VECTORS: usize = 2;

/// Activations as 32-bit words in tiles: `[batch][tile][k][rows of the tile]`. A tile has two vectors of rows, the last one of a batch only
/// one if that holds what is left; rows that do not exist are zero.
pub(crate) struct Packed {
    words: Vec<u32>,
    m: usize,
    k: usize,
    lanes: usize,
    batch_len: usize,
}

impl Packed {
    /// Packs `x [batch · m, k]` with rows `stride` words apart.
    pub(crate) fn new(level: Level, x: &[u32], stride: usize, shape: Shape) -> Packed {
        struct Lanes;
        impl Kernel for Lanes {
            type Out = usize;
            #[inline(always)]
            fn run<S: Simd>(self, _: S) -> usize {
                S::LANES
            }
        }
        let Shape { batch, m, k, .. } = shape;
        let lanes = dispatch(level, Lanes);
        let batch_len = m.next_multiple_of(lanes) * k;
        let mut words = vec![0u32; batch * batch_len];
        let tiles = m.div_ceil(TILE_VECTORS * lanes);
        let out = SharedMut::new(&mut words);
        for_ranges(batch * tiles, TILE_VECTORS * lanes * k / 2, |range| {
            for i in range {
                let (b, first) = (i / tiles, i % tiles * TILE_VECTORS * lanes);
                let width = tile_width(m, first, lanes);
                let start = b * batch_len + first * k;
                // SAFETY: tiles follow each other, and each is packed by one task.
                let out = unsafe { out.slice(start..start + width * k) };
                let rows = &x[(b * m + first) * stride..];
                pack_tile(rows, stride, width.min(m - first), k, width, out);
            }
        });
        Packed { words, m, k, lanes, batch_len }
    }

    /// Address of element `k` of the tile that starts with row `column`.
    #[inline(always)]
    pub(crate) fn at(&self, batch: usize, column: usize, k: usize) -> *const f32 {
        let at = batch * self.batch_len + column * self.k + k * tile_width(self.m, column, self.lanes);
        self.words[at..].as_ptr().cast()
    }
}

/// Rows of the tile that starts with row `first`.
#[inline(always)]
fn tile_width(m: usize, first: usize, lanes: usize) -> usize {
    if m - first <= lanes { lanes } else { TILE_VECTORS * lanes }
}

/// Transposes rows into `[k][width]`.
fn pack_tile(rows: &[u32], stride: usize, count: usize, k: usize, width: usize, out: &mut [u32]) {
    // So many columns at a time that what is written stays in the first-level cache until all rows have been there.
    const COLUMNS: usize = 128;
    for start in (0..k).step_by(COLUMNS) {
        let columns = COLUMNS.min(k - start);
        for r in 0..count {
            let row = &rows[r * stride + start..][..columns];
            for (line, v) in out[start * width..].chunks_exact_mut(width).zip(row) {
                line[r] = *v;
            }
        }
    }
}

/// Where a tile is computed.
pub(crate) struct TilePlace<'a> {
    /// Index of the product.
    pub batch: usize,
    /// First row of activations.
    pub column: usize,
    /// Elements that are in the panel.
    pub k: Range<usize>,
    /// First row of the tile in the panel.
    pub panel: &'a [f32],
    /// Sums so far, `[rows][columns]`, at the tile's first element.
    sums: *mut f32,
    /// Elements between rows of the sums.
    stride: usize,
    /// True if there are no sums yet.
    first: bool,
}

impl TilePlace<'_> {
    /// The sums so far.
    ///
    /// # Safety
    /// The tile has that size.
    #[inline(always)]
    pub(crate) unsafe fn load<S: Simd, const ROWS: usize, const VECTORS: usize>(&self, s: S) -> [[S::F; VECTORS]; ROWS] {
        let mut acc = [[s.zero(); VECTORS]; ROWS];
        if !self.first {
            for (r, row) in acc.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    // SAFETY: the caller's.
                    *sum = unsafe { s.load(self.sums.add(r * self.stride + v * S::LANES)) };
                }
            }
        }
        acc
    }

    /// Puts the sums back.
    ///
    /// # Safety
    /// The tile has that size.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd, const ROWS: usize, const VECTORS: usize>(&self, s: S, acc: [[S::F; VECTORS]; ROWS]) {
        for (r, row) in acc.into_iter().enumerate() {
            for (v, sum) in row.into_iter().enumerate() {
                // SAFETY: the caller's.
                unsafe { s.store(self.sums.add(r * self.stride + v * S::LANES), sum) };
            }
        }
    }
}

/// Weights of a product, brought into panels.
pub(crate) trait Panel: Sync {
    /// Elements along `k` of a panel.
    const K_BLOCK: usize;
    /// 32-bit words of a row of a panel.
    const WORDS_PER_ROW: usize;

    /// Rows of a tile.
    fn rows<S: Simd>() -> usize;

    /// Fills one row of a panel with elements `k` of weight row `row`.
    fn fill<S: Simd>(&self, s: S, panel: &mut [f32], batch: usize, row: usize, k: Range<usize>);

    /// Adds the products of a tile: [`Panel::rows`] rows of the panel with `VECTORS` vectors of activation rows.
    ///
    /// # Safety
    /// The panel was filled for `place`, and the sums have room.
    unsafe fn tile<S: Simd, const VECTORS: usize>(&self, s: S, place: TilePlace<'_>);
}

/// Rows of activations that a panel is used for before it is decoded again.
const COLUMNS_PER_TASK: usize = 512;
/// Rows of weights of a panel: a multiple of the rows of every tile.
const ROWS_PER_TASK: usize = 96;

/// Computes a product into `y [batch, m, n]`.
pub(crate) fn product<P: Panel, O: Output>(level: Level, shape: Shape, panel: &P, y: &mut [O]) {
    let Shape { batch, m, n, k } = shape;
    let columns = m.div_ceil(COLUMNS_PER_TASK);
    // Small products are cut finer, so that every thread has some.
    let mut rows = ROWS_PER_TASK;
    while rows > 12 && n.div_ceil(rows) * columns * batch < 4 * rayon::current_num_threads() {
        rows = (rows / 2).next_multiple_of(12);
    }
    let blocks = n.div_ceil(rows);
    let out = SharedMut::new(y);
    // About 50 multiply-adds in a nanosecond.
    let nanos = rows.min(n).saturating_mul(m.min(COLUMNS_PER_TASK)).saturating_mul(k) / 50;
    for_ranges(batch * blocks * columns, nanos, |tasks| {
        dispatch(level, Task { shape, panel, out, tasks, rows, blocks, columns });
    });
}

/// Some of the blocks of a product.
struct Task<'a, P, O> {
    shape: Shape,
    panel: &'a P,
    out: SharedMut<'a, O>,
    tasks: Range<usize>,
    rows: usize,
    blocks: usize,
    columns: usize,
}

thread_local! {
    /// Panel and sums of the thread, kept between calls.
    static SCRATCH: Cell<Vec<[f32; 16]>> = const { Cell::new(Vec::new()) };
}

impl<P: Panel, O: Output> Kernel for Task<'_, P, O> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Shape { m, n, .. } = self.shape;
        let mut scratch = SCRATCH.take();
        for task in self.tasks.clone() {
            // Blocks that share a panel's weights are apart, those that share activations follow each other.
            let (block, outer) = (task % self.blocks, task / self.blocks);
            let (column, batch) = (outer % self.columns * COLUMNS_PER_TASK, outer / self.columns);
            let rows = block * self.rows..((block + 1) * self.rows).min(n);
            self.block(s, &mut scratch, batch, rows, column..(column + COLUMNS_PER_TASK).min(m));
        }
        SCRATCH.set(scratch);
    }
}

impl<P: Panel, O: Output> Task<'_, P, O> {
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, scratch: &mut Vec<[f32; 16]>, batch: usize, rows: Range<usize>, columns: Range<usize>) {
        let Shape { m, n, k, .. } = self.shape;
        let tile_rows = P::rows::<S>();
        let padded = rows.len().next_multiple_of(tile_rows);
        // A line more, so that elements of one column fall into different sets of the cache.
        let stride = columns.len().next_multiple_of(16) + 16;
        let panel_len = (padded * P::WORDS_PER_ROW).next_multiple_of(16);
        let lines = (panel_len + padded * stride) / 16;
        if scratch.len() < lines {
            scratch.resize(lines, [0.0; 16]);
        }
        let (panel, sums) = scratch.as_flattened_mut()[..16 * lines].split_at_mut(panel_len);
        for start in (0..k).step_by(P::K_BLOCK) {
            let k = start..(start + P::K_BLOCK).min(k);
            for (r, row) in panel.chunks_exact_mut(P::WORDS_PER_ROW).take(padded).enumerate() {
                if r < rows.len() {
                    self.panel.fill(s, row, batch, rows.start + r, k.clone());
                } else {
                    row.fill(0.0);
                }
            }
            let mut column = columns.start;
            while column < columns.end {
                let width = tile_width(m, column, S::LANES);
                for r in (0..padded).step_by(tile_rows) {
                    let sums = sums[r * stride + (column - columns.start)..].as_mut_ptr();
                    let place =
                        TilePlace { batch, column, k: k.clone(), panel: &panel[r * P::WORDS_PER_ROW..], sums, stride, first: start == 0 };
                    // SAFETY: the panel has been filled, and the sums have `padded` rows of `stride`, a whole number of vectors.
                    unsafe {
                        if width == S::LANES {
                            self.panel.tile::<S, 1>(s, place);
                        } else {
                            self.panel.tile::<S, TILE_VECTORS>(s, place);
                        }
                    }
                }
                column += width;
            }
        }
        for (c, column) in columns.enumerate() {
            let at = (batch * m + column) * n + rows.start;
            // SAFETY: this block of the output is this task's.
            let out = unsafe { self.out.slice(at..at + rows.len()) };
            for (r, v) in out.iter_mut().enumerate() {
                *v = O::from_f32(sums[r * stride + c]);
            }
        }
    }
}

/// Elements along `k` of a panel of floats: 12 rows of it and a tile of activations share the first- and second-level caches.
pub(crate) const FLOAT_K_BLOCK: usize = 512;
/// A line more than the elements, so that rows fall into different sets of the cache.
pub(crate) const FLOAT_WORDS_PER_ROW: usize = FLOAT_K_BLOCK + 16;

/// Rows of a tile of floats: as many as the registers hold sums of two vectors for.
#[inline(always)]
pub(crate) fn float_rows<S: Simd>() -> usize {
    if S::LANES == 16 { 12 } else { 6 }
}

/// [`Panel::tile`] for panels of floats.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn float_tile<S: Simd, const VECTORS: usize>(s: S, x: &Packed, place: &TilePlace<'_>) {
    // SAFETY: the caller's.
    unsafe {
        if S::LANES == 16 {
            float_tile_of::<S, 12, VECTORS>(s, x, place);
        } else {
            float_tile_of::<S, 6, VECTORS>(s, x, place);
        }
    }
}

/// # Safety
/// As [`Panel::tile`].
#[inline(always)]
unsafe fn float_tile_of<S: Simd, const ROWS: usize, const VECTORS: usize>(s: S, x: &Packed, place: &TilePlace<'_>) {
    // SAFETY: the caller vouches for the panel and the sums; the packed activations hold the tile's rows for all of `k`.
    unsafe {
        let mut acc = place.load::<S, ROWS, VECTORS>(s);
        let mut w = place.panel.as_ptr();
        let mut x = x.at(place.batch, place.column, place.k.start);
        for _ in place.k.clone() {
            let mut values = [s.load(x); VECTORS];
            for (v, value) in values.iter_mut().enumerate().skip(1) {
                *value = s.load(x.add(v * S::LANES));
            }
            for (r, row) in acc.iter_mut().enumerate() {
                let weight = s.splat(*w.add(r * FLOAT_WORDS_PER_ROW));
                for (sum, value) in row.iter_mut().zip(values) {
                    *sum = s.fma(weight, value, *sum);
                }
            }
            w = w.add(1);
            x = x.add(VECTORS * S::LANES);
        }
        place.store(s, acc);
    }
}

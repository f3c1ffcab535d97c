//! Copies, permutations and gathers on the CPU: whole rows as slices, true transpositions in square tiles.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::CpuCall;
use super::parallel::for_rows;
use crate::Element;
use crate::ops::layout::{
    EmbeddingGatherParams, GatherParams, GetRowsParams, OffsetCopyParams, PermuteParams, StridedCopyParams, TransposeParams,
};
use crate::quant::{GgmlType, dequantize_row};

/// Rows and columns of a tile that is transposed at once: both sides of it stay in the first-level cache.
const TILE: usize = 32;

/// Nanoseconds that moving `elements` takes, about.
fn nanos(elements: usize) -> usize {
    elements / 2
}

fn scale_row(row: &mut [f32], scale: f32) {
    if scale != 1.0 {
        row.iter_mut().for_each(|v| *v *= scale);
    }
}

pub(crate) fn embedding_gather_scale(call: &CpuCall<'_>) {
    let p: EmbeddingGatherParams = call.params();
    let len = p.row_len as usize;
    let id = p.token_id.get(call.step()) as usize;
    let out = call.output::<f32>(1);
    out.copy_from_slice(&call.input::<f32>(0)[id * len..(id + 1) * len]);
    scale_row(out, p.scale);
}

/// An element type that a row of f32 can be made of.
pub(crate) trait Widen: Element {
    fn widen(src: &[Self], dst: &mut [f32]);
}

impl Widen for f32 {
    fn widen(src: &[f32], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }
}
impl Widen for f16 {
    fn widen(src: &[f16], dst: &mut [f32]) {
        src.convert_to_f32_slice(dst);
    }
}
impl Widen for bf16 {
    fn widen(src: &[bf16], dst: &mut [f32]) {
        dst.iter_mut().zip(src).for_each(|(d, s)| *d = f32::from_bits(u32::from(s.to_bits()) << 16));
    }
}

/// Calls `decode(id, row)` for the ids within the table; other rows are zero.
fn gather_rows(call: &CpuCall<'_>, decode: impl Fn(usize, &mut [f32]) + Sync) {
    let p: GetRowsParams = call.params();
    let ids = call.input::<u32>(1);
    let len = p.row_len as usize;
    for_rows(call.output::<f32>(2), len, len, |t, row| {
        if ids[t] < p.n_rows {
            decode(ids[t] as usize, row);
            scale_row(row, p.scale);
        } else {
            row.fill(0.0);
        }
    });
}

pub(crate) fn get_rows<T: Widen>(call: &CpuCall<'_>) {
    let table = call.input::<T>(0);
    gather_rows(call, |id, row| T::widen(&table[id * row.len()..(id + 1) * row.len()], row));
}

fn get_blocks(call: &CpuCall<'_>, kind: GgmlType) {
    let table = call.input::<u8>(0);
    // The decoder cannot fail: row length and table size were checked when the launch was recorded.
    gather_rows(call, |id, row| dequantize_row(kind, table, id, row).unwrap_or(()));
}

macro_rules! get_blocks {
    ($($name:ident => $kind:ident),*) => {
        $(pub(crate) fn $name(call: &CpuCall<'_>) { get_blocks(call, GgmlType::$kind); })*
    };
}
get_blocks! {
    get_rows_q4_0 => Q4_0, get_rows_q8_0 => Q8_0, get_rows_q5_1 => Q5_1, get_rows_iq4_nl => IQ4_NL,
    get_rows_q4_k => Q4_K, get_rows_q5_k => Q5_K, get_rows_q6_k => Q6_K
}

/// Bits that move into bits of `D`.
pub(crate) trait MoveTo<D>: Element {
    fn move_row(src: &[Self], dst: &mut [D]);
}

impl<T: Element> MoveTo<T> for T {
    fn move_row(src: &[T], dst: &mut [T]) {
        dst.copy_from_slice(src);
    }
}

/// bf16 to f32: the upper half of the word.
impl MoveTo<u32> for u16 {
    fn move_row(src: &[u16], dst: &mut [u32]) {
        dst.iter_mut().zip(src).for_each(|(d, s)| *d = u32::from(*s) << 16);
    }
}

pub(crate) fn permute_021<S: MoveTo<D>, D: Element>(call: &CpuCall<'_>) {
    let p: PermuteParams = call.params();
    let (n0, n1, len) = (p.dim0 as usize, p.dim1 as usize, p.dim2 as usize);
    let x = call.input::<S>(0);
    for_rows(call.output::<D>(1), len, nanos(len) + 4, |row, out| {
        let (b, a) = (row / n0, row % n0);
        S::move_row(&x[(a * n1 + b) * len..][..len], out);
    });
}

/// Columns `first ..` of `x [rows, cols]` as the rows of `out`.
fn transpose_band<T: Copy>(x: &[T], rows: usize, cols: usize, first: usize, out: &mut [T]) {
    for r in (0..rows).step_by(TILE) {
        let depth = TILE.min(rows - r);
        for (c, out) in out.chunks_mut(rows).enumerate() {
            let column = x[r * cols + first + c..].iter().step_by(cols);
            for (o, v) in out[r..r + depth].iter_mut().zip(column) {
                *o = *v;
            }
        }
    }
}

fn transpose<T: Element>(x: &[T], rows: usize, cols: usize, out: &mut [T]) {
    // The last band may be narrower.
    for_rows(out, TILE * rows, rows * TILE, |band, out| transpose_band(x, rows, cols, band * TILE, out));
}

pub(crate) fn transpose_2d<T: Element>(call: &CpuCall<'_>) {
    let p: TransposeParams = call.params();
    transpose(call.input::<T>(0), p.rows as usize, p.cols as usize, call.output(1));
}

pub(crate) fn transpose_last2(call: &CpuCall<'_>) {
    let p: PermuteParams = call.params();
    let (rows, cols) = (p.dim1 as usize, p.dim2 as usize);
    let (x, out) = (call.input::<u16>(0), call.output::<u16>(1));
    if p.dim0 < 8 {
        // Few matrices: each in parallel.
        for (x, out) in x.chunks(rows * cols).zip(out.chunks_mut(rows * cols)) {
            transpose(x, rows, cols, out);
        }
        return;
    }
    for_rows(out, rows * cols, rows * cols, |i, out| {
        let x = &x[i * rows * cols..][..rows * cols];
        for (band, out) in out.chunks_mut(TILE * rows).enumerate() {
            transpose_band(x, rows, cols, band * TILE, out);
        }
    });
}

pub(crate) fn gather(call: &CpuCall<'_>) {
    let p: GatherParams = call.params();
    let (src, ids) = (call.input::<u32>(0), call.input::<u32>(1));
    let len = p.row_len as usize;
    for_rows(call.output::<u32>(2), len, nanos(len) + 4, |i, row| {
        let id = ids[i].min(p.n_rows - 1) as usize;
        row.copy_from_slice(&src[id * len..(id + 1) * len]);
    });
}

pub(crate) fn strided_copy(call: &CpuCall<'_>) {
    let p: StridedCopyParams = call.params();
    let src = call.input::<u32>(0);
    let (row_stride, col_stride, cols) = (p.row_stride as usize, p.col_stride as usize, p.cols as usize);
    for_rows(call.output::<u32>(1), cols, cols, |r, row| {
        let src = &src[r * row_stride..];
        match col_stride {
            1 => row.copy_from_slice(&src[..cols]),
            0 => row.fill(src[0]),
            stride => row.iter_mut().zip(src.iter().step_by(stride)).for_each(|(o, v)| *o = *v),
        }
    });
}

pub(crate) fn offset_copy(call: &CpuCall<'_>) {
    let p: OffsetCopyParams = call.params();
    let src = &call.input::<u32>(0)[p.src_offset as usize..];
    for_rows(&mut call.output::<u32>(1)[p.dst_offset as usize..], 4096, nanos(4096), |i, chunk| {
        chunk.copy_from_slice(&src[i * 4096..][..chunk.len()]);
    });
}

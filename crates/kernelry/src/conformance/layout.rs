//! References and cases of copies, permutations and gathers: every element is followed from where it is to where it belongs.

use super::{Cases, Input, Reference, Tolerance};
use crate::catalogue::StepU32;
use crate::ops::layout::{
    EmbeddingGatherParams, GatherParams, GetRowsParams, OffsetCopyParams, PermuteParams, StridedCopyParams, TransposeParams,
};
use crate::quant::{GgmlType, dequantize_to_vec};

/// Expects `out[i]` to hold the bits of element `from(i)` of `src`, widened if the output is.
fn expect_moved(r: &mut Reference<'_>, src: &str, len: usize, from: impl Fn(usize) -> usize) {
    let (size, widened) = (r.dtype(src).size(), r.dtype("out").size());
    let bytes = r.bytes(src);
    let mut out = Vec::with_capacity(len * widened);
    for i in 0..len {
        // bf16 to f32 puts zeros below the bits; bytes are little-endian here.
        out.resize(out.len() + widened - size, 0);
        out.extend_from_slice(&bytes[from(i) * size..(from(i) + 1) * size]);
    }
    r.expect_bits("out", out);
}

pub(crate) fn permute_021(r: &mut Reference<'_>) {
    let p: PermuteParams = r.params();
    let (n0, n1, n2) = (p.dim0 as usize, p.dim1 as usize, p.dim2 as usize);
    expect_moved(r, "x", n0 * n1 * n2, |i| {
        let (b, a, c) = (i / (n0 * n2), i / n2 % n0, i % n2);
        (a * n1 + b) * n2 + c
    });
}

pub(crate) fn transpose_last2(r: &mut Reference<'_>) {
    let p: PermuteParams = r.params();
    let (n0, n1, n2) = (p.dim0 as usize, p.dim1 as usize, p.dim2 as usize);
    expect_moved(r, "x", n0 * n1 * n2, |i| {
        let (a, c, b) = (i / (n1 * n2), i / n1 % n2, i % n1);
        (a * n1 + b) * n2 + c
    });
}

pub(crate) fn permute_cases(c: &mut Cases) {
    let shapes = [[3, 5, 7], [1, 1, 1], [1, 33, 65], [65, 1, 33], [33, 31, 1], [9, 32, 64], [2, 67, 67]];
    for [dim0, dim1, dim2] in shapes {
        // Random bits: NaN payloads must survive.
        c.add(format!("[{dim0}, {dim1}, {dim2}]"), PermuteParams { dim0, dim1, dim2 }).input("x", Input::Bytes);
    }
    if c.intensity >= 2 {
        c.add("tokens and heads", PermuteParams { dim0: 2455, dim1: 16, dim2: 256 });
    }
}

pub(crate) fn transpose_2d(r: &mut Reference<'_>) {
    let p: TransposeParams = r.params();
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    expect_moved(r, "x", rows * cols, |i| i % rows * cols + i / rows);
}

pub(crate) fn transpose_cases(c: &mut Cases) {
    for (rows, cols) in [(3, 5), (1, 1), (1, 257), (257, 1), (31, 32), (33, 32), (32, 33), (67, 131)] {
        c.add(format!("[{rows}, {cols}]"), TransposeParams { rows, cols }).input("x", Input::Bytes);
    }
    if c.intensity >= 2 {
        c.add("model shape", TransposeParams { rows: 2048, cols: 6144 });
    }
}

pub(crate) fn gather(r: &mut Reference<'_>) {
    let p: GatherParams = r.params();
    let ids = r.u32s("ids");
    let len = p.row_len as usize;
    expect_moved(r, "src", ids.len() * len, |i| ids[i / len].min(p.n_rows - 1) as usize * len + i % len);
}

pub(crate) fn gather_cases(c: &mut Cases) {
    for (n_rows, row_len, n_ids) in [(5, 3, 4), (1, 1, 1), (7, 64, 33), (128, 1, 65), (100, 257, 16)] {
        let ids = Input::Words(vec![0, n_rows - 1, n_rows, u32::MAX, n_rows / 2, n_rows / 2]);
        let params = GatherParams { n_rows, row_len, n_ids };
        c.add(format!("rows={n_rows} len={row_len} ids={n_ids}"), params).input("src", Input::Bytes).input("ids", ids);
    }
    if c.intensity >= 2 {
        c.add("model shape", GatherParams { n_rows: 4096, row_len: 1024, n_ids: 4096 }).input("ids", Input::Integers(0, 4095));
    }
}

pub(crate) fn strided_copy(r: &mut Reference<'_>) {
    let p: StridedCopyParams = r.params();
    let cols = p.cols as usize;
    let (row_stride, col_stride) = (p.row_stride as usize, p.col_stride as usize);
    expect_moved(r, "src", p.rows as usize * cols, |i| i / cols * row_stride + i % cols * col_stride);
}

pub(crate) fn strided_copy_cases(c: &mut Cases) {
    for (rows, cols, row_stride, col_stride) in [(3, 5, 7, 1), (1, 1, 0, 0), (33, 65, 1, 33), (5, 4, 0, 3), (5, 4, 3, 0), (64, 32, 40, 2)] {
        let params = StridedCopyParams { row_stride, col_stride, rows, cols };
        c.add(format!("[{rows}, {cols}] strides {row_stride}, {col_stride}"), params).input("src", Input::Bytes);
    }
    if c.intensity >= 2 {
        c.add("model shape", StridedCopyParams { row_stride: 8192, col_stride: 1, rows: 2048, cols: 2048 });
    }
}

pub(crate) fn offset_copy(r: &mut Reference<'_>) {
    let p: OffsetCopyParams = r.params();
    let mut out = r.bytes("dst").to_vec();
    let (from, to, len) = (p.src_offset as usize * 4, p.dst_offset as usize * 4, p.count as usize * 4);
    out[to..to + len].copy_from_slice(&r.bytes("src")[from..from + len]);
    r.expect_bits("dst", out);
}

pub(crate) fn offset_copy_cases(c: &mut Cases) {
    for (src_offset, dst_offset, count) in [(3, 5, 7), (0, 0, 1), (0, 4095, 4097), (100, 0, 10_000)] {
        let params = OffsetCopyParams { src_offset, dst_offset, count };
        c.add(format!("{count} from {src_offset} to {dst_offset}"), params).input("src", Input::Bytes);
    }
    if c.intensity >= 2 {
        c.add("model shape", OffsetCopyParams { src_offset: 2048 * 4095, dst_offset: 0, count: 2048 * 1024 });
    }
}

pub(crate) fn embedding_gather_scale(r: &mut Reference<'_>) {
    let p: EmbeddingGatherParams = r.params();
    let (len, id) = (p.row_len as usize, p.token_id.max() as usize);
    let table = r.f64s("table");
    r.expect("out", table[id * len..(id + 1) * len].iter().map(|v| v * f64::from(p.scale)), Tolerance::EXACT);
}

pub(crate) fn embedding_gather_scale_cases(c: &mut Cases) {
    for (n_rows, row_len, id) in [(5, 33, 2), (1, 1, 0), (7, 2816, 6), (64, 256, 0)] {
        let params = EmbeddingGatherParams { n_rows, row_len, scale: 53.066, token_id: StepU32::new(id) };
        c.add(format!("rows={n_rows} len={row_len} id={id}"), params);
    }
}

/// The type of the table, from the kernel's name.
fn table_type(kernel: &str) -> GgmlType {
    let name = kernel.strip_prefix("get_rows_").and_then(|name| name.strip_suffix("_f32")).unwrap_or("f32");
    GgmlType::from_name(&name.to_uppercase()).unwrap_or(GgmlType::F32)
}

pub(crate) fn get_rows(r: &mut Reference<'_>) {
    let p: GetRowsParams = r.params();
    let len = p.row_len as usize;
    // Block decoders have an oracle of their own, the Python package `gguf`; what is checked here is which row goes where.
    let table = dequantize_to_vec(table_type(r.kernel()), r.bytes("table")).unwrap_or_default();
    let mut out = Vec::new();
    for id in r.u32s("ids") {
        if id < p.n_rows {
            out.extend(table[id as usize * len..(id as usize + 1) * len].iter().map(|&v| f64::from(v) * f64::from(p.scale)));
        } else {
            out.extend(std::iter::repeat_n(0.0, len));
        }
    }
    r.expect("out", out, Tolerance::EXACT);
}

pub(crate) fn get_rows_cases(c: &mut Cases) {
    let block = table_type(c.kernel()).block_len() as u32;
    for (n_rows, blocks, n_ids, scale) in [(5, 3, 4, 53.066), (1, 1, 1, 1.0), (9, 8, 33, 1.0), (130, 2, 6, -0.5)] {
        let ids = Input::Words(vec![0, n_rows - 1, n_rows, u32::MAX, n_rows / 2, n_rows / 2]);
        let params = GetRowsParams { n_rows, row_len: block * blocks, n_ids, scale };
        c.add(format!("rows={n_rows} len={} ids={n_ids} scale={scale}", block * blocks), params).input("ids", ids);
    }
    if c.intensity >= 2 {
        let params = GetRowsParams { n_rows: 4096, row_len: 2816 / block * block, n_ids: 512, scale: 1.0 };
        c.add("prefill", params).input("ids", Input::Integers(0, 4095));
    }
}

//! Copies, permutations, gathers and embedding rows. Bits move unchanged unless a name says otherwise.

use super::elementwise::{MAP_THREADS, MAP_TILE, map};
use super::linear::Weight;
use super::{rows_and_cols, size, unsupported};
use crate::backend::cpu::{CpuFn, layout as cpu};
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder, StepU32, Text};
use crate::conformance::layout as oracle;
use crate::quant::GgmlType;
use crate::{Buffer, DType, Encoder, Error, Result, kernel_text};

const TEXT: Text = kernel_text!("layout.h");
const GET_ROWS: Text = kernel_text!("quantized/get_rows.h");

crate::params! {
    /// Parameters of one scaled embedding row.
    pub struct EmbeddingGatherParams {
        /// rows of the table
        n_rows: u32,
        /// elements of a row
        row_len: u32,
        /// factor of the result
        scale: f32,
        /// the row
        token_id: StepU32,
    }
}

crate::params! {
    /// Parameters of gathered rows of a table.
    pub struct GetRowsParams {
        /// rows of the table
        n_rows: u32,
        /// elements of a row
        row_len: u32,
        /// rows to gather
        n_ids: u32,
        /// factor of the result
        scale: f32,
    }
}

crate::params! {
    /// Parameters of permutations: the input is `[dim0, dim1, dim2]`.
    pub struct PermuteParams {
        /// first dimension of the input
        dim0: u32,
        /// second dimension of the input
        dim1: u32,
        /// third dimension of the input
        dim2: u32,
    }
}

crate::params! {
    /// Parameters of a matrix transposition.
    pub struct TransposeParams {
        /// rows of the input
        rows: u32,
        /// columns of the input
        cols: u32,
    }
}

crate::params! {
    /// Parameters of a gather of rows by clamped index.
    pub struct GatherParams {
        /// rows of the source
        n_rows: u32,
        /// elements of a row
        row_len: u32,
        /// rows to gather
        n_ids: u32,
    }
}

crate::params! {
    /// Parameters of a strided copy.
    pub struct StridedCopyParams {
        /// elements between rows of the source
        row_stride: u64,
        /// elements between columns of the source
        col_stride: u64,
        /// rows of the result
        rows: u32,
        /// columns of the result
        cols: u32,
    }
}

crate::params! {
    /// Parameters of a copy between offsets.
    pub struct OffsetCopyParams {
        /// first element of the source
        src_offset: u64,
        /// first element of the destination
        dst_offset: u64,
        /// elements to copy
        count: u64,
    }
}

crate::params! {
    /// Parameters of the split of fused projections.
    pub struct QkvSplitParams {
        /// rows
        seq_len: u32,
        /// columns of the first part
        q_dim: u32,
        /// columns of the second part
        k_dim: u32,
        /// columns of the third part
        v_dim: u32,
    }
}

crate::params! {
    /// Parameters of repeated heads.
    pub struct RepeatTiledParams {
        /// tokens
        seq_len: u32,
        /// heads of the source
        n_groups: u32,
        /// heads of the result, a multiple of `n_groups`
        n_heads: u32,
        /// elements of a head
        head_dim: u32,
    }
}

fn product(sizes: &[u32]) -> u64 {
    sizes.iter().fold(1u64, |n, &d| n.saturating_mul(u64::from(d)))
}

fn elements(n: u64) -> Geometry {
    Geometry::elements(n.min(u64::from(u32::MAX)) as u32)
}

/// Groups of threads that move `n` rows of `row_len` elements: x along a row, four elements a thread; y over rows.
pub(super) fn row_blocks(n: u32, row_len: u32) -> Geometry {
    let across = row_len.div_ceil(4).clamp(1, 256).next_power_of_two();
    let down = (256 / across).min(n.clamp(1, 256).next_power_of_two()).max(64u32.div_ceil(across));
    Geometry { groups: [n.div_ceil(down), 1, 1], threads: [across, down, 1] }
}

/// Square tiles of elements of `bytes` bytes that cover a matrix.
fn tiles(rows: u32, cols: u32, bytes: u32) -> Geometry {
    let side = 128 / bytes;
    Geometry { groups: [rows.div_ceil(side).saturating_mul(cols.div_ceil(side)), 1, 1], threads: [32, 8, 1] }
}

fn copy(name: impl Into<String>, summary: &'static str) -> KernelBuilder {
    Kernel::builder(name, Family::Layout, summary).class("copy", "bits move unchanged")
}

fn check_scale(scale: f32) -> Result<(), String> {
    if scale.is_finite() { Ok(()) } else { Err(format!("scale: got {scale}, expected a finite value")) }
}

/// A table format: kernel name, type, dtype and shape of its buffer, CPU function.
type TableRow = (&'static str, GgmlType, DType, &'static str, CpuFn);

const TABLES: &[TableRow] = &[
    ("get_rows_f32_f32", GgmlType::F32, DType::F32, "n_rows row_len", cpu::get_rows::<f32>),
    ("get_rows_f16_f32", GgmlType::F16, DType::F16, "n_rows row_len", cpu::get_rows::<half::f16>),
    ("get_rows_bf16_f32", GgmlType::BF16, DType::BF16, "n_rows row_len", cpu::get_rows::<half::bf16>),
    ("get_rows_q4_0_f32", GgmlType::Q4_0, DType::U8, "n_rows row_len/32*18", cpu::get_rows_q4_0),
    ("get_rows_q8_0_f32", GgmlType::Q8_0, DType::U8, "n_rows row_len/32*34", cpu::get_rows_q8_0),
    ("get_rows_q5_1_f32", GgmlType::Q5_1, DType::U8, "n_rows row_len/32*24", cpu::get_rows_q5_1),
    ("get_rows_iq4_nl_f32", GgmlType::IQ4_NL, DType::U8, "n_rows row_len/32*18", cpu::get_rows_iq4_nl),
    ("get_rows_q4_K_f32", GgmlType::Q4_K, DType::U8, "n_rows row_len/256*144", cpu::get_rows_q4_k),
    ("get_rows_q5_K_f32", GgmlType::Q5_K, DType::U8, "n_rows row_len/256*176", cpu::get_rows_q5_k),
    ("get_rows_q6_K_f32", GgmlType::Q6_K, DType::U8, "n_rows row_len/256*210", cpu::get_rows_q6_k),
];

fn get_rows_entry(&(name, ty, dtype, shape, run): &TableRow) -> Kernel {
    let row_bytes = ty.block_bytes() as f64 / ty.block_len() as f64;
    Kernel::builder(name, Family::Layout, "out[t, i] = table[ids[t], i] · scale; zeros where ids[t] ≥ n_rows")
        .params::<GetRowsParams>()
        .input("table", dtype, shape)
        .input("ids", DType::U32, "n_ids")
        .output("out", DType::F32, "n_ids row_len")
        .check(move |p: &GetRowsParams| {
            let block = ty.block_len() as u32;
            if !p.row_len.is_multiple_of(block) {
                return Err(format!("row_len: got {}, expected a multiple of {block}", p.row_len));
            }
            check_scale(p.scale)
        })
        .class("exact", "the decoded value times the scale, rounded once")
        .bytes(move |p: &GetRowsParams| product(&[p.n_ids, p.row_len]) as f64 * (4.0 + row_bytes) + 4.0 * f64::from(p.n_ids))
        .text(GET_ROWS, "")
        .geometry(|p: &GetRowsParams| Geometry { groups: [p.n_ids, p.row_len.div_ceil(2048).min(65_535), 1], threads: [256, 1, 1] })
        .cpu(run)
        .tested(oracle::get_rows, oracle::get_rows_cases)
        .build()
}

fn embedding_entries() -> Vec<Kernel> {
    let one = Kernel::builder("embedding_gather_scale_f32", Family::Layout, "out[i] = table[token_id, i] · scale")
        .params::<EmbeddingGatherParams>()
        .input("table", DType::F32, "n_rows row_len")
        .output("out", DType::F32, "row_len")
        .check(|p: &EmbeddingGatherParams| {
            if p.token_id.max() >= p.n_rows {
                return Err(format!("token_id: got {}, expected less than n_rows = {}", p.token_id.max(), p.n_rows));
            }
            check_scale(p.scale)
        })
        .class("exact", "the product rounded once")
        .bytes(|p: &EmbeddingGatherParams| 8.0 * f64::from(p.row_len))
        .geometry(|p: &EmbeddingGatherParams| map(p.row_len))
        .text(TEXT, "")
        .cpu(cpu::embedding_gather_scale)
        .tested(oracle::embedding_gather_scale, oracle::embedding_gather_scale_cases)
        .build();
    // The batch form is the gather of an f32 table under its older name.
    let batch = get_rows_entry(&("embedding_gather_scale_batch_f32", GgmlType::F32, DType::F32, "n_rows row_len", cpu::get_rows::<f32>));
    vec![one, batch]
}

fn permute_entries() -> Vec<Kernel> {
    use DType::{BF16, F16, F32};
    let mut list = Vec::new();
    let permutes: [(&str, DType, DType, CpuFn); 3] = [
        ("permute_021_bf16", BF16, BF16, cpu::permute_021::<u16, u16>),
        ("permute_021_f32", F32, F32, cpu::permute_021::<u32, u32>),
        ("permute_021_bf16_to_f32", BF16, F32, cpu::permute_021::<u16, u32>),
    ];
    for (name, from, to, run) in permutes {
        let entry = copy(name, "out[b, a, c] = x[a, b, c]: the first two axes change places")
            .params::<PermuteParams>()
            .input("x", from, "dim0 dim1 dim2")
            .output("out", to, "dim1 dim0 dim2")
            .geometry(|p: &PermuteParams| {
                let Geometry { groups: [shares, ..], threads } = row_blocks(p.dim0, p.dim2);
                Geometry { groups: [p.dim1.saturating_mul(shares), 1, 1], threads }
            })
            .text(TEXT, "");
        list.push(entry.cpu(run).tested(oracle::permute_021, oracle::permute_cases).build());
    }
    for (name, dtype) in [("transpose_last2_bf16", BF16), ("transpose_last2_f16", F16)] {
        let entry = copy(name, "out[a, c, b] = x[a, b, c]: the last two axes change places")
            .params::<PermuteParams>()
            .input("x", dtype, "dim0 dim1 dim2")
            .output("out", dtype, "dim0 dim2 dim1")
            .geometry(|p: &PermuteParams| {
                let Geometry { groups: [x, ..], threads } = tiles(p.dim1, p.dim2, 2);
                Geometry { groups: [x, p.dim0.min(65_535), 1], threads }
            })
            .text(TEXT, "");
        list.push(entry.cpu(cpu::transpose_last2).tested(oracle::transpose_last2, oracle::permute_cases).build());
    }
    for (name, dtype, run) in
        [("transpose_2d_f32", F32, cpu::transpose_2d::<u32> as CpuFn), ("transpose_2d_f16", F16, cpu::transpose_2d::<u16>)]
    {
        let entry = copy(name, "out[c, r] = x[r, c]")
            .params::<TransposeParams>()
            .input("x", dtype, "rows cols")
            .output("out", dtype, "cols rows")
            .geometry(move |p: &TransposeParams| tiles(p.rows, p.cols, dtype.size() as u32))
            .text(TEXT, "");
        list.push(entry.cpu(run).tested(oracle::transpose_2d, oracle::transpose_cases).build());
    }
    list
}

fn copy_entries() -> Vec<Kernel> {
    use DType::{F32, U32};
    vec![
        copy("gather_f32", "out[i, :] = src[min(ids[i], n_rows − 1), :]")
            .params::<GatherParams>()
            .input("src", F32, "n_rows row_len")
            .input("ids", U32, "n_ids")
            .output("out", F32, "n_ids row_len")
            .bytes(|p: &GatherParams| 8.0 * product(&[p.n_ids, p.row_len]) as f64 + 4.0 * f64::from(p.n_ids))
            .geometry(|p: &GatherParams| row_blocks(p.n_ids, p.row_len))
            .text(TEXT, "")
            .cpu(cpu::gather)
            .tested(oracle::gather, oracle::gather_cases)
            .build(),
        copy("strided_copy_f32", "out[r, c] = src[r · row_stride + c · col_stride]")
            .params::<StridedCopyParams>()
            .input("src", F32, "(rows-1)*row_stride+(cols-1)*col_stride+1")
            .output("out", F32, "rows cols")
            .bytes(|p: &StridedCopyParams| 8.0 * product(&[p.rows, p.cols]) as f64)
            .geometry(|p: &StridedCopyParams| tiles(p.rows, p.cols, 4))
            .text(TEXT, "")
            .cpu(cpu::strided_copy)
            .tested(oracle::strided_copy, oracle::strided_copy_cases)
            .build(),
        copy("offset_copy_f32", "dst[dst_offset + i] = src[src_offset + i], i < count")
            .params::<OffsetCopyParams>()
            .input("src", F32, "src_offset+count")
            .in_out("dst", F32, "dst_offset+count")
            .noop_if_zero("count")
            .bytes(|p: &OffsetCopyParams| 8.0 * p.count as f64)
            .geometry(|p: &OffsetCopyParams| {
                Geometry::linear(u32::try_from(p.count.div_ceil(u64::from(MAP_TILE))).unwrap_or(u32::MAX), MAP_THREADS)
            })
            .text(TEXT, "")
            .cpu(cpu::offset_copy)
            .tested(oracle::offset_copy, oracle::offset_copy_cases)
            .build(),
    ]
}

fn split_entries() -> Vec<Kernel> {
    use DType::F32;
    vec![
        copy("qkv_split_f32", "q, k, v = columns [0, q_dim), [q_dim, q_dim + k_dim) and the rest of x")
            .params::<QkvSplitParams>()
            .input("x", F32, "seq_len q_dim+k_dim+v_dim")
            .output("q", F32, "seq_len q_dim")
            .output("k", F32, "seq_len k_dim")
            .output("v", F32, "seq_len v_dim")
            .geometry(|p: &QkvSplitParams| {
                let row = p.q_dim.saturating_add(p.k_dim).saturating_add(p.v_dim);
                elements(product(&[p.seq_len, row]))
            })
            .build(),
        copy("repeat_tiled_f32", "out[t, h, d] = x[t, h mod n_groups, d]")
            .params::<RepeatTiledParams>()
            .input("x", F32, "seq_len n_groups head_dim")
            .output("out", F32, "seq_len n_heads head_dim")
            .check(|p: &RepeatTiledParams| {
                if p.n_groups != 0 && !p.n_heads.is_multiple_of(p.n_groups) {
                    return Err(format!("n_heads: got {}, expected a multiple of n_groups = {}", p.n_heads, p.n_groups));
                }
                Ok(())
            })
            .geometry(|p: &RepeatTiledParams| elements(product(&[p.seq_len, p.n_heads, p.head_dim])))
            .build(),
    ]
}

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut list = embedding_entries();
    list.extend(TABLES.iter().map(get_rows_entry));
    list.extend(permute_entries());
    list.extend(copy_entries());
    list.extend(split_entries());
    list
}

/// Rows of a table by ids on the device, widened and scaled: the token embedding. An id beyond the table gives a row of zeros.
pub struct GetRows<'a> {
    /// `[n_rows, row_len]`, in any form that kernels multiply.
    pub table: &'a Weight,
    /// `[n_ids]`, u32.
    pub ids: &'a Buffer,
    /// `[n_ids, row_len]`, f32.
    pub out: &'a Buffer,
    /// Factor of the result: 1, or `sqrt(hidden)` for Gemma, rounded as the model wants it.
    pub scale: f32,
}

impl GetRows<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "get_rows";
        let kind = self.table.kind();
        let Some(&(name, ..)) = TABLES.iter().find(|row| row.1 == kind) else {
            let known: Vec<String> = TABLES.iter().map(|row| row.1.to_string()).collect();
            return Err(Error::invalid(OP, format!("table: got {kind}, expected one of {}", known.join(", "))));
        };
        let (n_rows, row_len) = (size(OP, "table", self.table.rows())?, size(OP, "table", self.table.cols())?);
        let (n_ids, out_len) = rows_and_cols(OP, "out", self.out)?;
        if out_len != row_len {
            return Err(Error::invalid(OP, format!("out: got rows of {out_len}, expected {row_len}")));
        }
        if self.ids.len() != n_ids as usize {
            return Err(Error::invalid(OP, format!("ids: got {} ids, expected {n_ids}", self.ids.len())));
        }
        let params = GetRowsParams { n_rows, row_len, n_ids, scale: self.scale };
        encoder.launch(name, &[Some(self.table.buffer()), Some(self.ids), Some(self.out)], &params)
    }
}

/// One scaled row of an f32 table, by an id that the host or the step buffer knows.
pub struct EmbeddingGather<'a> {
    /// `[n_rows, row_len]`, f32.
    pub table: &'a Buffer,
    /// The row.
    pub token_id: StepU32,
    /// `[row_len]`, f32.
    pub out: &'a Buffer,
    /// Factor of the result.
    pub scale: f32,
}

impl EmbeddingGather<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (n_rows, row_len) = rows_and_cols("embedding_gather", "table", self.table)?;
        let params = EmbeddingGatherParams { n_rows, row_len, scale: self.scale, token_id: self.token_id };
        encoder.launch("embedding_gather_scale_f32", &[Some(self.table), Some(self.out)], &params)
    }
}

/// Three dimensions of a buffer.
fn dims3(op: &str, buffer: &Buffer) -> Result<PermuteParams> {
    match *buffer.shape() {
        [a, b, c] => Ok(PermuteParams { dim0: size(op, "x", a)?, dim1: size(op, "x", b)?, dim2: size(op, "x", c)? }),
        _ => Err(Error::invalid(op, format!("x: got shape {:?}, expected three dimensions", buffer.shape()))),
    }
}

/// `[a, b, c]` to `[b, a, c]`: tokens and heads change places.
pub struct Permute021<'a> {
    /// `[a, b, c]`, f32 or bf16.
    pub x: &'a Buffer,
    /// `[b, a, c]`, dtype of `x`, or f32 for bf16.
    pub out: &'a Buffer,
}

impl Permute021<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "permute_021";
        let name = match (self.x.dtype(), self.out.dtype()) {
            (DType::F32, _) => "permute_021_f32",
            (DType::BF16, DType::F32) => "permute_021_bf16_to_f32",
            (DType::BF16, _) => "permute_021_bf16",
            (other, _) => return Err(unsupported(OP, "x", other, "f32 or bf16")),
        };
        encoder.launch(name, &[Some(self.x), Some(self.out)], &dims3(OP, self.x)?)
    }
}

/// Transposes the last two dimensions: a matrix of f32 or f16, or a stack of matrices of f16 or bf16.
pub struct Transpose<'a> {
    /// `[rows, cols]`, f32 or f16; or `[n, rows, cols]`, f16 or bf16.
    pub x: &'a Buffer,
    /// `[cols, rows]` or `[n, cols, rows]`, dtype of `x`.
    pub out: &'a Buffer,
}

impl Transpose<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "transpose";
        let args = [Some(self.x), Some(self.out)];
        match (self.x.dtype(), self.x.shape()) {
            (dtype @ (DType::F32 | DType::F16), &[rows, cols]) => {
                let name = if dtype == DType::F32 { "transpose_2d_f32" } else { "transpose_2d_f16" };
                encoder.launch(name, &args, &TransposeParams { rows: size(OP, "x", rows)?, cols: size(OP, "x", cols)? })
            }
            (DType::F16, _) => encoder.launch("transpose_last2_f16", &args, &dims3(OP, self.x)?),
            (DType::BF16, _) => encoder.launch("transpose_last2_bf16", &args, &dims3(OP, self.x)?),
            (other, shape) => Err(unsupported(OP, "x", other, if shape.len() == 2 { "f32 or f16" } else { "f16 or bf16" })),
        }
    }
}

/// Gathers rows; an index beyond the source takes its last row.
pub struct Gather<'a> {
    /// `[n_rows, row_len]`, f32.
    pub src: &'a Buffer,
    /// `[n_ids]`, u32.
    pub ids: &'a Buffer,
    /// `[n_ids, row_len]`, f32.
    pub out: &'a Buffer,
}

impl Gather<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (n_rows, row_len) = rows_and_cols("gather", "src", self.src)?;
        let params = GatherParams { n_rows, row_len, n_ids: size("gather", "ids", self.ids.len())? };
        encoder.launch("gather_f32", &[Some(self.src), Some(self.ids), Some(self.out)], &params)
    }
}

/// Makes a strided view contiguous. A stride of 0 repeats.
pub struct StridedCopy<'a> {
    /// f32, at least as long as the strides reach.
    pub src: &'a Buffer,
    /// `[rows, cols]`, f32.
    pub out: &'a Buffer,
    /// Elements between rows of the source.
    pub row_stride: u64,
    /// Elements between columns of the source.
    pub col_stride: u64,
}

impl StridedCopy<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, cols) = rows_and_cols("strided_copy", "out", self.out)?;
        let params = StridedCopyParams { row_stride: self.row_stride, col_stride: self.col_stride, rows, cols };
        encoder.launch("strided_copy_f32", &[Some(self.src), Some(self.out)], &params)
    }
}

/// Copies `count` elements between offsets. Zero elements are a successful no-op.
pub struct OffsetCopy<'a> {
    /// f32.
    pub src: &'a Buffer,
    /// First element of the source.
    pub src_offset: usize,
    /// f32; may be the buffer of `src` where the ranges are disjoint.
    pub dst: &'a Buffer,
    /// First element of the destination.
    pub dst_offset: usize,
    /// Elements to copy.
    pub count: usize,
}

impl OffsetCopy<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        // Views of exactly what moves, so that only that counts as read and written.
        let view = |buffer: &Buffer, what: &str, offset: usize| -> Result<Buffer> {
            let end = offset.checked_add(self.count).filter(|&end| end <= buffer.len());
            if end.is_none() {
                let what = format!("{what}: got {} elements, expected at least {offset} + {}", buffer.len(), self.count);
                return Err(Error::invalid("offset_copy", what));
            }
            buffer.slice(offset * buffer.dtype().size(), self.count)
        };
        let (src, dst) = (view(self.src, "src", self.src_offset)?, view(self.dst, "dst", self.dst_offset)?);
        let params = OffsetCopyParams { src_offset: 0, dst_offset: 0, count: self.count as u64 };
        encoder.launch("offset_copy_f32", &[Some(&src), Some(&dst)], &params)
    }
}

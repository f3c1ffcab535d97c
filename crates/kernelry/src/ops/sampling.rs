//! Arg-max, top-k, sorting, and sampling over logits.

use super::{rows_and_cols, size};
use crate::backend::cpu::sampling as cpu;
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder, Text};
use crate::conformance::sampling as oracle;
use crate::{Buffer, DType, Encoder, Error, Result, kernel_text};

const TEXT: Text = kernel_text!("sampling.h");
const SORT_TEXT: Text = kernel_text!("sampling/sort.h");
const CANDIDATES_TEXT: Text = kernel_text!("sampling/candidates.h");

/// Elements that a group of threads sorts, of a row of any length.
pub(crate) const SORT_ROOM: u32 = 2048;

/// Index that stands for "no element": a poisoned row must not look like a token.
pub const NO_TOKEN: u32 = u32::MAX;

/// Largest `k` of [`TopK`].
pub const MAX_TOP_K: u32 = 128;

/// Largest `k` of [`Candidates`].
pub const MAX_CANDIDATES: u32 = 256;

crate::params! {
    /// Parameters of kernels over rows.
    pub struct RowsParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        cols: u32,
    }
}

crate::params! {
    /// Parameters of sampling.
    pub struct SoftmaxSampleParams {
        /// number of logits
        n: u32,
        /// temperature, above 0
        temperature: f32,
        /// uniform number in [0, 1)
        u: f32,
    }
}

crate::params! {
    /// Parameters of top-k.
    pub struct TopKParams {
        /// number of elements
        n: u32,
        /// elements to select, at most 128
        k: u32,
    }
}

crate::params! {
    /// Parameters of the selection of candidates.
    pub struct CandidatesParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        cols: u32,
        /// elements to select, at most 256
        k: u32,
    }
}

crate::params! {
    /// Parameters of bias and penalties.
    pub struct LogitPenaltiesParams {
        /// number of logits
        n: u32,
        /// divides logits of tokens that were seen, multiplies those below 0; finite, above 0
        repetition: f32,
        /// subtracted once for each time that a token was generated
        frequency: f32,
        /// subtracted if a token was generated
        presence: f32,
    }
}

/// A power of two of threads, up to 1024, for a row with `each` elements a thread.
fn threads(cols: u32, each: u32) -> u32 {
    cols.div_ceil(each).min(1024).next_power_of_two().max(64)
}

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    use DType::{F32, U32};
    vec![
        Kernel::builder("argsort_desc_f32", Family::Sampling, "ids = order of x by value descending, then index; NaN last")
            .params::<RowsParams>()
            .input("x", F32, "rows cols")
            .output("ids", U32, "rows cols")
            .class("exact", "a permutation, ties by index")
            .geometry(|p: &RowsParams| Geometry::linear(p.rows.saturating_mul(p.cols.div_ceil(SORT_ROOM)), threads(p.cols, 2)))
            .text(SORT_TEXT, "")
            .cpu(cpu::argsort_desc)
            .tested(oracle::argsort_desc, oracle::argsort_desc_cases)
            .build(),
        Kernel::builder("argmax_f32", Family::Sampling, "index and value of the largest element of each row, ties to the lowest index")
            .params::<RowsParams>()
            .input("x", F32, "rows cols")
            .output("index", U32, "rows")
            .output("value", F32, "rows")
            .class("exact", "index 0xFFFFFFFF and value NaN for a row with NaN or +inf, or of -inf alone")
            .geometry(|p: &RowsParams| Geometry::linear(p.rows, threads(p.cols, 4)))
            .text(TEXT, "")
            .cpu(cpu::argmax)
            .tested(oracle::argmax, oracle::argmax_cases)
            .build(),
        Kernel::builder(
            "softmax_sample_f32",
            Family::Sampling,
            "smallest i with Σ_{j≤i} p_j > u, p = softmax(x / temperature); and ln p_i",
        )
        .params::<SoftmaxSampleParams>()
        .input("x", F32, "n")
        .output("token", U32, "1")
        .output("logprob", F32, "1")
        .check(|p: &SoftmaxSampleParams| {
            if !(p.temperature.is_finite() && p.temperature > 0.0) {
                return Err(format!("temperature: got {}, expected a finite value above 0", p.temperature));
            }
            if !(0.0..1.0).contains(&p.u) {
                return Err(format!("u: got {}, expected at least 0 and less than 1", p.u));
            }
            Ok(())
        })
        .class("f32", "CDF[token-1] - 1e-5 ≤ u ≤ CDF[token] + 1e-5; token 0xFFFFFFFF for NaN, +inf, or -inf alone")
        .flops(|p: &SoftmaxSampleParams| 5.0 * f64::from(p.n))
        .geometry(|p: &SoftmaxSampleParams| Geometry::linear(1, threads(p.n, 4).min(512)))
        .text(TEXT, "")
        .cpu(cpu::softmax_sample)
        .tested(oracle::softmax_sample, oracle::softmax_sample_cases)
        .build(),
        Kernel::builder("top_k_f32", Family::Sampling, "the k largest elements, descending, ties to the lowest index; never NaN")
            .params::<TopKParams>()
            .input("x", F32, "n")
            .output("indices", U32, "k")
            .output("values", F32, "k")
            .check(|p: &TopKParams| {
                if p.k > MAX_TOP_K.min(p.n) {
                    return Err(format!("k: got {}, expected at most {MAX_TOP_K} and at most n = {}", p.k, p.n));
                }
                Ok(())
            })
            .class("exact", "slots without an element: index 0xFFFFFFFF, value -inf")
            .geometry(|p: &TopKParams| Geometry::linear(1, threads(p.n, 2)))
            .text(SORT_TEXT, "")
            .cpu(cpu::top_k)
            .tested(oracle::top_k, oracle::top_k_cases)
            .build(),
        candidates("candidates_f32", "the k best of each 2048 columns of a row, as keys that ascend as values descend, and columns")
            .input("x", F32, "rows cols")
            .output("keys", U32, "rows k cdiv(cols,2048)")
            .output("ids", U32, "rows k cdiv(cols,2048)")
            .class("exact", "ties by column; NaN and +inf have key 0; key and column 0xFFFFFFFF where fewer than k are above -inf")
            .geometry(|p: &CandidatesParams| Geometry::linear(p.rows.saturating_mul(p.cols.div_ceil(SORT_ROOM)), SORT_ROOM / 4))
            .cpu(cpu::candidates)
            .tested(oracle::candidates, oracle::candidates_cases)
            .build(),
        candidates("candidates_merge_f32", "columns and values of the k best among what candidates_f32 selected, ties by column")
            .input("keys", U32, "rows k cdiv(cols,2048)")
            .input("ids", U32, "rows k cdiv(cols,2048)")
            .output("best", U32, "rows 2 k")
            .class("exact", "k columns, then the bits of k values; column 0xFFFFFFFF where there is none, in all places for NaN or +inf")
            .geometry(|p: &CandidatesParams| Geometry::linear(p.rows, 512))
            .cpu(cpu::candidates_merge)
            .tested(oracle::candidates_merge, oracle::candidates_merge_cases)
            .build(),
        Kernel::builder(
            "logit_penalties_f32",
            Family::Sampling,
            "y = x + bias, less for tokens generated, weaker for tokens seen; counts a token",
        )
        .params::<LogitPenaltiesParams>()
        .input("x", F32, "n")
        .input("bias", F32, "n")
        .input("token", U32, "1")
        .in_out("seen", U32, "n")
        .output("y", F32, "n")
        .check(|p: &LogitPenaltiesParams| {
            if !(p.repetition.is_finite() && p.repetition > 0.0) {
                return Err(format!("repetition: got {}, expected a finite value above 0", p.repetition));
            }
            Ok(())
        })
        .class("exact", "each operation rounded to f32")
        .flops(|p: &LogitPenaltiesParams| 5.0 * f64::from(p.n))
        .geometry(|p: &LogitPenaltiesParams| Geometry::linear(p.n.div_ceil(1024), 256))
        .text(CANDIDATES_TEXT, "")
        .cpu(cpu::logit_penalties)
        .tested(oracle::logit_penalties, oracle::logit_penalties_cases)
        .build(),
    ]
}

fn candidates(name: &'static str, summary: &'static str) -> KernelBuilder {
    Kernel::builder(name, Family::Sampling, summary)
        .params::<CandidatesParams>()
        .check(|p: &CandidatesParams| {
            if p.k > MAX_CANDIDATES.min(p.cols) {
                return Err(format!("k: got {}, expected at most {MAX_CANDIDATES} and at most cols = {}", p.k, p.cols));
            }
            Ok(())
        })
        .text(CANDIDATES_TEXT, "")
}

/// Index and value of the largest element of each row. Ties go to the lowest index. A row with NaN or +inf, or of -inf alone, gives
/// [`NO_TOKEN`] and NaN.
pub struct Argmax<'a> {
    /// `[rows, cols]` or `[cols]`, f32.
    pub x: &'a Buffer,
    /// `[rows]`, u32.
    pub index: &'a Buffer,
    /// `[rows]`, f32.
    pub value: &'a Buffer,
}

impl Argmax<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, cols) = rows_and_cols("argmax", "x", self.x)?;
        encoder.launch("argmax_f32", &[Some(self.x), Some(self.index), Some(self.value)], &RowsParams { rows, cols })
    }
}

/// Indices of each row in descending order of value; equal values by index, NaN after everything.
pub struct ArgsortDesc<'a> {
    /// `[rows, cols]` or `[cols]`, f32.
    pub x: &'a Buffer,
    /// Shape of `x`, u32.
    pub ids: &'a Buffer,
}

impl ArgsortDesc<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, cols) = rows_and_cols("argsort_desc", "x", self.x)?;
        encoder.launch("argsort_desc_f32", &[Some(self.x), Some(self.ids)], &RowsParams { rows, cols })
    }
}

/// Draws a token from `softmax(x / temperature)` by inverse CDF in index order.
pub struct SoftmaxSample<'a> {
    /// Logits `[n]`, f32; -inf has probability zero.
    pub x: &'a Buffer,
    /// `[1]`, u32; [`NO_TOKEN`] for logits with NaN or +inf, or of -inf alone.
    pub token: &'a Buffer,
    /// `[1]`, f32: natural logarithm of the token's probability; NaN with [`NO_TOKEN`].
    pub logprob: &'a Buffer,
    /// Finite, above 0.
    pub temperature: f32,
    /// Uniform number in `[0, 1)`, drawn by the host.
    pub u: f32,
}

impl SoftmaxSample<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let n = size("softmax_sample", "x", self.x.len())?;
        let params = SoftmaxSampleParams { n, temperature: self.temperature, u: self.u };
        encoder.launch("softmax_sample_f32", &[Some(self.x), Some(self.token), Some(self.logprob)], &params)
    }
}

/// The `k` largest elements, descending; ties go to the lowest index. NaN is never selected: slots that are left have index
/// [`NO_TOKEN`] and value -inf.
pub struct TopK<'a> {
    /// `[n]`, f32.
    pub x: &'a Buffer,
    /// `[k]`, u32, `k` at most [`MAX_TOP_K`].
    pub indices: &'a Buffer,
    /// `[k]`, f32.
    pub values: &'a Buffer,
}

impl TopK<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (n, k) = (size("top_k", "x", self.x.len())?, size("top_k", "indices", self.indices.len())?);
        if self.values.len() != self.indices.len() {
            return Err(Error::invalid("top_k", format!("values: got {} elements, expected {k}", self.values.len())));
        }
        encoder.launch("top_k_f32", &[Some(self.x), Some(self.indices), Some(self.values)], &TopKParams { n, k })
    }
}

/// The `k` largest elements of each row, descending, ties to the lowest index (both zeros are equal): what a sampler needs to draw among the `k` most
/// probable tokens, without the row. Rows of a vocabulary take two launches that use many multiprocessors, unlike [`TopK`].
///
/// -inf is never selected. A row with NaN or +inf, or with -inf alone, has [`NO_TOKEN`] everywhere.
pub struct Candidates<'a> {
    /// `[rows, cols]` or `[cols]`, f32.
    pub x: &'a Buffer,
    /// `[rows, 2, k]` or `[2, k]`, u32, `k` at most [`MAX_CANDIDATES`] and `cols`: `k` indices, then the bits of `k` values, so that one read fetches
    /// both. Where a row has fewer, the index is [`NO_TOKEN`] and the value -inf; in a row without an answer NaN. Zeros are positive.
    pub best: &'a Buffer,
    /// u32, at least [`scratch_len`](Candidates::scratch_len) elements, contents unspecified.
    pub scratch: &'a Buffer,
}

impl Candidates<'_> {
    /// Elements of scratch memory that a selection needs.
    pub fn scratch_len(rows: usize, cols: usize, k: usize) -> usize {
        rows.saturating_mul(k).saturating_mul(cols.div_ceil(SORT_ROOM as usize)).saturating_mul(2)
    }

    /// Records two launches.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (rows, cols) = rows_and_cols("candidates", "x", self.x)?;
        let each = self.best.len() / 2 / rows as usize;
        if each * 2 * rows as usize != self.best.len() {
            return Err(Error::invalid("candidates", format!("best: got {:?}, expected {rows} rows of 2 k", self.best.shape())));
        }
        let params = CandidatesParams { rows, cols, k: size("candidates", "best", each)? };
        let half = Self::scratch_len(rows as usize, cols as usize, each) / 2;
        if self.scratch.len() < 2 * half {
            return Err(Error::invalid(
                "candidates",
                format!("scratch: got {} elements, expected at least {}", self.scratch.len(), 2 * half),
            ));
        }
        let (keys, ids) = (self.scratch.slice(0, half)?, self.scratch.slice(half * self.scratch.dtype().size(), half)?);
        encoder.launch("candidates_f32", &[Some(self.x), Some(&keys), Some(&ids)], &params)?;
        encoder.launch("candidates_merge_f32", &[Some(&keys), Some(&ids), Some(self.best)], &params)
    }
}

/// Bias and penalties of a row of logits: `bias` is added; `frequency` times the count and `presence` are subtracted from tokens that were generated;
/// tokens that were seen, in a prompt or because they were generated, are divided by `repetition`, or multiplied below 0.
pub struct LogitPenalties<'a> {
    /// `[n]`, f32.
    pub x: &'a Buffer,
    /// `[n]`, f32; 0 where there is none.
    pub bias: &'a Buffer,
    /// `[1]`, u32: the token that has just been generated, which counts. One from `n` on does not.
    pub token: &'a Buffer,
    /// `[n]`, u32: 0 for a token never seen, or 1 and how often it was generated. Brought up to date.
    pub seen: &'a Buffer,
    /// `[n]`, f32.
    pub y: &'a Buffer,
    /// Finite, above 0; 1 does nothing.
    pub repetition: f32,
    /// 0 does nothing.
    pub frequency: f32,
    /// 0 does nothing.
    pub presence: f32,
}

impl LogitPenalties<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let LogitPenalties { x, bias, token, seen, y, repetition, frequency, presence } = *self;
        let params = LogitPenaltiesParams { n: size("logit_penalties", "x", x.len())?, repetition, frequency, presence };
        encoder.launch("logit_penalties_f32", &[Some(x), Some(bias), Some(token), Some(seen), Some(y)], &params)
    }
}

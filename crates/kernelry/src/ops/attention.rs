//! Scaled dot-product attention: direct, over a cache, and the row kernel of the unfused form.
//!
//! Query head `h` reads KV head `h / (n_heads / n_kv_heads)`. Scores, weights and sums are f32 whatever the inputs are. Causal means
//! aligned at the end: query `i` of `seq_len` is at position `n - seq_len + i` of `n` keys. Slots of a cache from `n` on are never read.

use super::activation::{SOFTMAX_TEXT, softmax_rows};
use super::{size, unsupported};
use crate::backend::cpu::{CpuFn, attention as cpu};
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder, StepU32, Text};
use crate::conformance::attention as oracle;
use crate::{Buffer, DType, Encoder, Error, Result, kernel_text};

mod mask;
mod split;
mod tiled;
pub use mask::{AttentionMask, AttentionMaskParams};
pub use split::{FlashAttnReduceParams, FlashAttnRingParams, FlashAttnVecParams};
pub use tiled::SteelAttentionParams;

const PREFILL: Text = kernel_text!("attention/prefill.h");
const PREFILL_MMA: Text = kernel_text!("attention/prefill_mma.h");
const DECODE: Text = kernel_text!("attention/decode.h");

/// Widest head that the tiled kernels of 16-bit keys put on the matrix unit.
const MMA_HEAD_DIM: u32 = 128;
/// Query heads of a block that decodes with f32 products.
const DECODE_HEADS: u32 = 4;

/// Largest head that any kernel of the family takes.
const MAX_HEAD_DIM: u32 = 512;

crate::params! {
    /// Parameters of direct attention.
    pub struct SdpaParams {
        /// sequences
        batch: u32,
        /// query heads
        n_heads: u32,
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// queries of a sequence
        seq_len: u32,
        /// slots of a KV head; 0 means `kv_seq_len`
        kv_capacity: u32,
        /// 1 if a query attends no later key, else 0
        do_causal: u32,
        /// factor of the scores
        scale: f32,
        /// valid keys
        kv_seq_len: StepU32,
    }
}

crate::params! {
    /// Parameters of direct causal attention over a window.
    pub struct SdpaSlidingParams {
        /// sequences
        batch: u32,
        /// query heads
        n_heads: u32,
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// queries of a sequence
        seq_len: u32,
        /// slots of a KV head; 0 means `kv_seq_len`
        kv_capacity: u32,
        /// keys attended before the query's own: one less than the window of every other kernel
        window_size: u32,
        /// factor of the scores
        scale: f32,
        /// valid keys
        kv_seq_len: StepU32,
    }
}

crate::params! {
    /// Parameters of direct attention of one query.
    pub struct SdpaDecodeParams {
        /// query heads
        n_heads: u32,
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// slots of a KV head
        kv_capacity: u32,
        /// factor of the scores
        scale: f32,
        /// valid keys
        kv_seq_len: StepU32,
    }
}

crate::params! {
    /// Parameters of attention of one token over a cache.
    pub struct AttentionDecodeParams {
        /// query heads
        n_heads: u32,
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// slots of a KV head
        kv_capacity: u32,
        /// keys attended, the query's own included; 0 for all
        window: u32,
        /// factor of the scores
        scale: f32,
        /// scores become softcap · tanh(score / softcap); 0 for none
        softcap: f32,
        /// valid keys, those of the new token included
        kv_seq_len: StepU32,
    }
}

crate::params! {
    /// Parameters of causal attention of several tokens over a cache.
    pub struct AttentionPrefillParams {
        /// new tokens
        seq_len: u32,
        /// query heads
        n_heads: u32,
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// slots of a KV head
        kv_capacity: u32,
        /// keys attended, the query's own included; 0 for all
        window: u32,
        /// factor of the scores
        scale: f32,
        /// scores become softcap · tanh(score / softcap); 0 for none
        softcap: f32,
        /// valid keys, those of the new tokens included
        kv_seq_len: StepU32,
    }
}

crate::params! {
    /// Parameters of scale, mask and softmax.
    pub struct ScaleMaskSoftmaxParams {
        /// rows, all heads of one query after all of another head
        rows: u32,
        /// keys
        cols: u32,
        /// queries: row `r` takes row `r mod seq_len` of the mask
        seq_len: u32,
        /// factor of the scores
        scale: f32,
    }
}

/// Limits that every kernel of the family has. Sizes of zero are refused by shape.
fn check_heads(n_heads: u32, n_kv_heads: u32, head_dim: u32, multiple: u32) -> Result<(), String> {
    if n_kv_heads != 0 && !n_heads.is_multiple_of(n_kv_heads) {
        return Err(format!("n_heads: got {n_heads}, expected a multiple of n_kv_heads = {n_kv_heads}"));
    }
    if head_dim > MAX_HEAD_DIM || !head_dim.is_multiple_of(multiple) {
        let what = if multiple == 1 { String::new() } else { format!("a multiple of {multiple}, ") };
        return Err(format!("head_dim: got {head_dim}, expected {what}at most {MAX_HEAD_DIM}"));
    }
    Ok(())
}

fn check_keys(keys: u32, capacity: u32) -> Result<(), String> {
    if keys == 0 || keys > capacity {
        return Err(format!("kv_seq_len: got {keys}, expected 1 to kv_capacity = {capacity}"));
    }
    Ok(())
}

fn check_queries(seq_len: u32, keys: u32) -> Result<(), String> {
    if seq_len > keys { Err(format!("seq_len: got {seq_len}, expected at most kv_seq_len = {keys}")) } else { Ok(()) }
}

fn check_floats(scale: f32, softcap: f32) -> Result<(), String> {
    if !scale.is_finite() {
        return Err(format!("scale: got {scale}, expected a finite value"));
    }
    if !(softcap.is_finite() && softcap >= 0.0) {
        return Err(format!("softcap: got {softcap}, expected a finite value of at least 0"));
    }
    Ok(())
}

fn product(sizes: &[u32]) -> f64 {
    sizes.iter().map(|&n| f64::from(n)).product()
}

/// Query-key pairs of one head and sequence.
fn pairs(seq_len: u32, keys: u32, causal: bool, window: u32) -> f64 {
    let (s, n) = (f64::from(seq_len), f64::from(keys));
    let all = if causal { s * n - s * (s - 1.0) / 2.0 } else { s * n };
    if window == 0 { all } else { all.min(s * f64::from(window)) }
}

/// Keys that some query attends.
fn keys_read(seq_len: u32, keys: u32, window: u32) -> u32 {
    if window == 0 { keys } else { keys.min(window.saturating_add(seq_len - seq_len.min(1))) }
}

/// A block for 128 queries of a head where the matrix unit does the work, for 64 where f32 products do.
fn tiles(queries: u32, n_heads: u32, batch: u32, mma: bool) -> Geometry {
    Geometry { groups: [queries.div_ceil(if mma { 128 } else { 64 }), n_heads, batch], threads: [256, 1, 1] }
}

/// Blocks for all query heads, `heads` that share a KV head in each.
fn head_blocks(n_heads: u32, n_kv_heads: u32, heads: u32) -> u32 {
    let n_kv_heads = n_kv_heads.max(1);
    n_kv_heads * (n_heads / n_kv_heads).div_ceil(heads)
}

const F32_BOUND: &str = "|err| ≤ 2e-5 + 1e-4·|o|";

fn sdpa_entry(name: &'static str, dtype: DType, run: CpuFn, (text, line): (Text, &'static str)) -> Kernel {
    let bound = if dtype == DType::F32 { F32_BOUND } else { "|err| ≤ 1e-2·max|v| + 2e-2·|o|" };
    Kernel::builder(name, Family::Attention, "o = softmax(scale · q kᵀ) v; causal aligned at the end")
        .params::<SdpaParams>()
        .input("q", dtype, "batch n_heads seq_len head_dim")
        .input("k", dtype, "batch n_kv_heads max(kv_capacity,kv_seq_len) head_dim")
        .input("v", dtype, "batch n_kv_heads max(kv_capacity,kv_seq_len) head_dim")
        .output("out", dtype, "batch n_heads seq_len head_dim")
        .check(|p: &SdpaParams| {
            let keys = p.kv_seq_len.max();
            check_heads(p.n_heads, p.n_kv_heads, p.head_dim, 1)?;
            check_keys(keys, if p.kv_capacity == 0 { keys } else { p.kv_capacity })?;
            if p.do_causal > 1 {
                return Err(format!("do_causal: got {}, expected 0 or 1", p.do_causal));
            }
            if p.do_causal == 1 {
                check_queries(p.seq_len, keys)?;
            }
            check_floats(p.scale, 0.0)
        })
        .class("f32 accumulation", bound)
        .flops(|p: &SdpaParams| {
            4.0 * product(&[p.batch, p.n_heads, p.head_dim]) * pairs(p.seq_len, p.kv_seq_len.max(), p.do_causal == 1, 0)
        })
        .bytes(move |p: &SdpaParams| {
            let rows = product(&[p.n_heads, p.seq_len]) + product(&[p.n_kv_heads, p.kv_seq_len.max()]);
            2.0 * product(&[p.batch, p.head_dim]) * rows * dtype.size() as f64
        })
        .geometry(move |p: &SdpaParams| tiles(p.seq_len, p.n_heads, p.batch, dtype != DType::F32 && p.head_dim <= MMA_HEAD_DIM))
        .cpu(run)
        .text(text, line)
        .tested(oracle::sdpa, oracle::sdpa_cases)
        .build()
}

fn sliding_entry(name: &'static str, dtype: DType, run: CpuFn, (text, line): (Text, &'static str)) -> Kernel {
    let bound = if dtype == DType::F32 { F32_BOUND } else { "|err| ≤ 1e-2·max|v| + 2e-2·|o|" };
    Kernel::builder(name, Family::Attention, "o = softmax(scale · q kᵀ) v, causal, over the query's own key and window_size before it")
        .params::<SdpaSlidingParams>()
        .input("q", dtype, "batch n_heads seq_len head_dim")
        .input("k", dtype, "batch n_kv_heads max(kv_capacity,kv_seq_len) head_dim")
        .input("v", dtype, "batch n_kv_heads max(kv_capacity,kv_seq_len) head_dim")
        .output("out", dtype, "batch n_heads seq_len head_dim")
        .check(|p: &SdpaSlidingParams| {
            let keys = p.kv_seq_len.max();
            check_heads(p.n_heads, p.n_kv_heads, p.head_dim, 1)?;
            check_keys(keys, if p.kv_capacity == 0 { keys } else { p.kv_capacity })?;
            check_queries(p.seq_len, keys)?;
            check_floats(p.scale, 0.0)
        })
        .class("f32 accumulation", bound)
        .flops(|p: &SdpaSlidingParams| {
            let window = p.window_size.saturating_add(1);
            4.0 * product(&[p.batch, p.n_heads, p.head_dim]) * pairs(p.seq_len, p.kv_seq_len.max(), true, window)
        })
        .geometry(move |p: &SdpaSlidingParams| tiles(p.seq_len, p.n_heads, p.batch, dtype != DType::F32 && p.head_dim <= MMA_HEAD_DIM))
        .cpu(run)
        .text(text, line)
        .tested(oracle::sdpa_sliding, oracle::sdpa_sliding_cases)
        .build()
}

fn cache_bindings(entry: KernelBuilder, cache: DType, queries: &'static str) -> KernelBuilder {
    entry
        .input("q", DType::F32, queries)
        .input("k", cache, "n_kv_heads kv_capacity head_dim")
        .input("v", cache, "n_kv_heads kv_capacity head_dim")
        .output("out", DType::F32, queries)
        .class("f32 accumulation", F32_BOUND)
}

fn decode_entry(name: &'static str, cache: DType, run: CpuFn, line: &'static str) -> Kernel {
    let entry = Kernel::builder(name, Family::Attention, "o = softmax(softcap(scale · q kᵀ)) v over the last `window` keys of a cache")
        .params::<AttentionDecodeParams>()
        .check(|p: &AttentionDecodeParams| {
            check_heads(p.n_heads, p.n_kv_heads, p.head_dim, 1)?;
            check_keys(p.kv_seq_len.max(), p.kv_capacity)?;
            check_floats(p.scale, p.softcap)
        })
        .flops(|p: &AttentionDecodeParams| 4.0 * product(&[p.n_heads, p.head_dim, keys_read(1, p.kv_seq_len.max(), p.window)]))
        .bytes(move |p: &AttentionDecodeParams| {
            2.0 * product(&[p.n_heads, p.head_dim, 4])
                + 2.0 * product(&[p.n_kv_heads, p.head_dim, keys_read(1, p.kv_seq_len.max(), p.window)]) * cache.size() as f64
        })
        .text(DECODE, line)
        .geometry(|p: &AttentionDecodeParams| Geometry {
            groups: [1, head_blocks(p.n_heads, p.n_kv_heads, DECODE_HEADS), 1],
            threads: [256, 1, 1],
        });
    cache_bindings(entry, cache, "n_heads head_dim").cpu(run).tested(oracle::decode, oracle::decode_cases).build()
}

fn prefill_entry(name: &'static str, cache: DType, run: CpuFn, (text, line): (Text, &'static str)) -> Kernel {
    let summary = "o = softmax(softcap(scale · q kᵀ)) v, causal, over the last `window` keys up to each query's own";
    let entry = Kernel::builder(name, Family::Attention, summary)
        .params::<AttentionPrefillParams>()
        .check(|p: &AttentionPrefillParams| {
            check_heads(p.n_heads, p.n_kv_heads, p.head_dim, 1)?;
            check_keys(p.kv_seq_len.max(), p.kv_capacity)?;
            check_queries(p.seq_len, p.kv_seq_len.max())?;
            check_floats(p.scale, p.softcap)
        })
        .flops(|p: &AttentionPrefillParams| 4.0 * product(&[p.n_heads, p.head_dim]) * pairs(p.seq_len, p.kv_seq_len.max(), true, p.window))
        .bytes(move |p: &AttentionPrefillParams| {
            2.0 * product(&[p.seq_len, p.n_heads, p.head_dim, 4])
                + 2.0 * product(&[p.n_kv_heads, p.head_dim, keys_read(p.seq_len, p.kv_seq_len.max(), p.window)]) * cache.size() as f64
        })
        .text(text, line)
        .geometry(move |p: &AttentionPrefillParams| tiles(p.seq_len, p.n_heads, 1, cache != DType::F32 && p.head_dim <= MMA_HEAD_DIM));
    cache_bindings(entry, cache, "seq_len n_heads head_dim").cpu(run).tested(oracle::prefill, oracle::prefill_cases).build()
}

fn softmax_entry(name: &'static str) -> Kernel {
    let vectors = name.ends_with("_v4");
    Kernel::builder(name, Family::Attention, "out = softmax(input · scale + mask) over each row; zeros where all is masked")
        .params::<ScaleMaskSoftmaxParams>()
        .input("input", DType::F32, "rows cols")
        .input("mask", DType::BF16, "seq_len cols")
        .output("out", DType::F32, "rows cols")
        .may_alias(&["input"])
        .check(move |p: &ScaleMaskSoftmaxParams| {
            if p.seq_len != 0 && !p.rows.is_multiple_of(p.seq_len) {
                return Err(format!("rows: got {}, expected a multiple of seq_len = {}", p.rows, p.seq_len));
            }
            if vectors && !p.cols.is_multiple_of(4) {
                return Err(format!("cols: got {}, expected a multiple of 4", p.cols));
            }
            check_floats(p.scale, 0.0)
        })
        .class("f32", "|err| ≤ 1e-6; masked rows are zero")
        .flops(|p: &ScaleMaskSoftmaxParams| 6.0 * product(&[p.rows, p.cols]))
        .geometry(|p: &ScaleMaskSoftmaxParams| softmax_rows(p.rows, p.cols))
        .text(SOFTMAX_TEXT, "")
        .cpu(cpu::scale_mask_softmax)
        .tested(oracle::scale_mask_softmax, oracle::scale_mask_softmax_cases)
        .build()
}

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    use DType::{BF16, F16, F32};
    use half::{bf16, f16};
    let decode = Kernel::builder("sdpa_decode", Family::Attention, "o = softmax(scale · q kᵀ) v of one query over all keys")
        .params::<SdpaDecodeParams>()
        .check(|p: &SdpaDecodeParams| {
            check_heads(p.n_heads, p.n_kv_heads, p.head_dim, 32)?;
            check_keys(p.kv_seq_len.max(), p.kv_capacity)?;
            check_floats(p.scale, 0.0)
        })
        .flops(|p: &SdpaDecodeParams| 4.0 * product(&[p.n_heads, p.head_dim, p.kv_seq_len.max()]))
        .bytes(|p: &SdpaDecodeParams| 8.0 * (product(&[p.n_heads, p.head_dim]) + product(&[p.n_kv_heads, p.head_dim, p.kv_seq_len.max()])))
        .text(DECODE, "SDPA_DECODE(sdpa_decode)\n")
        .geometry(|p: &SdpaDecodeParams| Geometry {
            groups: [1, head_blocks(p.n_heads, p.n_kv_heads, DECODE_HEADS), 1],
            threads: [256, 1, 1],
        });
    let mut list = vec![
        sdpa_entry("sdpa", F32, cpu::sdpa::<f32>, (PREFILL, "SDPA(sdpa, float)\n")),
        sdpa_entry("sdpa_bf16", BF16, cpu::sdpa::<bf16>, (PREFILL_MMA, "SDPA_MMA(sdpa_bf16, kn_bf16)\n")),
        cache_bindings(decode, F32, "n_heads head_dim")
            .cpu(cpu::sdpa_decode)
            .tested(oracle::sdpa_decode, oracle::sdpa_decode_cases)
            .build(),
        decode_entry("attention_decode_f32", F32, cpu::decode::<f32>, "ATTENTION_DECODE(attention_decode_f32, float)\n"),
        decode_entry("attention_decode_f16kv", F16, cpu::decode::<f16>, "ATTENTION_DECODE(attention_decode_f16kv, kn_f16)\n"),
        decode_entry("attention_decode_bf16kv", BF16, cpu::decode::<bf16>, "ATTENTION_DECODE(attention_decode_bf16kv, kn_bf16)\n"),
        prefill_entry("attention_prefill_f32", F32, cpu::prefill::<f32>, (PREFILL, "ATTENTION_PREFILL(attention_prefill_f32, float)\n")),
        prefill_entry(
            "attention_prefill_f16kv",
            F16,
            cpu::prefill::<f16>,
            (PREFILL_MMA, "ATTENTION_PREFILL_MMA(attention_prefill_f16kv, kn_f16)\n"),
        ),
        prefill_entry(
            "attention_prefill_bf16kv",
            BF16,
            cpu::prefill::<bf16>,
            (PREFILL_MMA, "ATTENTION_PREFILL_MMA(attention_prefill_bf16kv, kn_bf16)\n"),
        ),
        softmax_entry("scale_mask_softmax_f32"),
        softmax_entry("scale_mask_softmax_f32_v4"),
    ];
    list.extend(mask::kernels());
    list.extend(tiled::kernels());
    list.extend(split::kernels());
    list.extend([
        sliding_entry("sdpa_sliding", F32, cpu::sdpa_sliding::<f32>, (PREFILL, "SDPA_SLIDING(sdpa_sliding, float)\n")),
        sliding_entry(
            "sdpa_sliding_bf16",
            BF16,
            cpu::sdpa_sliding::<bf16>,
            (PREFILL_MMA, "SDPA_SLIDING_MMA(sdpa_sliding_bf16, kn_bf16)\n"),
        ),
    ]);
    list
}

/// `N` dimensions of a buffer.
fn dims<const N: usize>(op: &str, what: &str, buffer: &Buffer) -> Result<[u32; N]> {
    let shape = buffer.shape();
    if shape.len() != N {
        return Err(Error::invalid(op, format!("{what}: got shape {shape:?}, expected {N} dimensions")));
    }
    let mut out = [0; N];
    for (out, &dim) in out.iter_mut().zip(shape) {
        *out = size(op, what, dim)?;
    }
    Ok(out)
}

fn expect<const N: usize>(op: &str, what: &str, buffer: &Buffer, expected: [u32; N]) -> Result<()> {
    let got = dims::<N>(op, what, buffer)?;
    if got == expected { Ok(()) } else { Err(Error::invalid(op, format!("{what}: got shape {got:?}, expected {expected:?}"))) }
}

/// Causal attention of new tokens over a head-major cache that already holds their keys and values.
pub struct Attention<'a> {
    /// Queries `[seq_len, n_heads, head_dim]`, f32.
    pub q: &'a Buffer,
    /// Key cache `[n_kv_heads, kv_capacity, head_dim]`, f32, f16 or bf16.
    pub k: &'a Buffer,
    /// Value cache, shape and dtype of `k`.
    pub v: &'a Buffer,
    /// Shape of `q`, f32.
    pub out: &'a Buffer,
    /// Valid keys, those of the new tokens included.
    pub kv_seq_len: StepU32,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Keys that a query attends, its own included; 0 for all.
    pub window: u32,
    /// Scores become `softcap · tanh(score / softcap)`; 0 for none.
    pub softcap: f32,
}

impl Attention<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "attention";
        let [seq_len, n_heads, head_dim] = dims(OP, "q", self.q)?;
        let [n_kv_heads, kv_capacity, _] = dims(OP, "k", self.k)?;
        expect(OP, "k", self.k, [n_kv_heads, kv_capacity, head_dim])?;
        expect(OP, "v", self.v, [n_kv_heads, kv_capacity, head_dim])?;
        expect(OP, "out", self.out, [seq_len, n_heads, head_dim])?;
        let Attention { kv_seq_len, scale, window, softcap, .. } = *self;
        let (decode, prefill) = match self.k.dtype() {
            DType::F32 => ("attention_decode_f32", "attention_prefill_f32"),
            DType::F16 => ("attention_decode_f16kv", "attention_prefill_f16kv"),
            DType::BF16 => ("attention_decode_bf16kv", "attention_prefill_bf16kv"),
            other => return Err(unsupported(OP, "k", other, "f32, f16 or bf16")),
        };
        let args = [Some(self.q), Some(self.k), Some(self.v), Some(self.out)];
        if seq_len == 1 {
            let params = AttentionDecodeParams { n_heads, n_kv_heads, head_dim, kv_capacity, window, scale, softcap, kv_seq_len };
            if split::encode(self, &params, encoder)? {
                return Ok(());
            }
            return encoder.launch(decode, &args, &params);
        }
        let params = AttentionPrefillParams { seq_len, n_heads, n_kv_heads, head_dim, kv_capacity, window, scale, softcap, kv_seq_len };
        encoder.launch(prefill, &args, &params)
    }
}

/// Attention on packed head-major tensors, causal or not.
pub struct Sdpa<'a> {
    /// Queries `[batch, n_heads, seq_len, head_dim]`, f32 or bf16.
    pub q: &'a Buffer,
    /// Keys `[batch, n_kv_heads, kv_capacity, head_dim]`, dtype of `q`.
    pub k: &'a Buffer,
    /// Values, shape and dtype of `k`.
    pub v: &'a Buffer,
    /// Shape and dtype of `q`.
    pub out: &'a Buffer,
    /// Valid keys.
    pub kv_seq_len: StepU32,
    /// Factor of the scores.
    pub scale: f32,
    /// Whether a query attends no later key; the last query is at the last key.
    pub causal: bool,
}

impl Sdpa<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "sdpa";
        let [batch, n_heads, seq_len, head_dim] = dims(OP, "q", self.q)?;
        let [_, n_kv_heads, kv_capacity, _] = dims(OP, "k", self.k)?;
        expect(OP, "k", self.k, [batch, n_kv_heads, kv_capacity, head_dim])?;
        expect(OP, "v", self.v, [batch, n_kv_heads, kv_capacity, head_dim])?;
        expect(OP, "out", self.out, [batch, n_heads, seq_len, head_dim])?;
        let Sdpa { kv_seq_len, scale, .. } = *self;
        let args = [Some(self.q), Some(self.k), Some(self.v), Some(self.out)];
        let name = match self.q.dtype() {
            DType::F32 => "sdpa",
            DType::BF16 => "sdpa_bf16",
            other => return Err(unsupported(OP, "q", other, "f32 or bf16")),
        };
        if name == "sdpa" && batch == 1 && seq_len == 1 && head_dim.is_multiple_of(32) {
            let params = SdpaDecodeParams { n_heads, n_kv_heads, head_dim, kv_capacity, scale, kv_seq_len };
            return encoder.launch("sdpa_decode", &args, &params);
        }
        let do_causal = u32::from(self.causal);
        let params = SdpaParams { batch, n_heads, n_kv_heads, head_dim, seq_len, kv_capacity, do_causal, scale, kv_seq_len };
        encoder.launch(name, &args, &params)
    }
}

/// `out = softmax(input · scale + mask)` over each row. `out` may be `input`.
pub struct ScaleMaskSoftmax<'a> {
    /// Scores `[n_heads, seq_len, cols]`, f32.
    pub input: &'a Buffer,
    /// Additive mask `[seq_len, cols]`, bf16: 0 to attend, -inf to block.
    pub mask: &'a Buffer,
    /// Shape of `input`, f32.
    pub out: &'a Buffer,
    /// Factor of the scores.
    pub scale: f32,
}

impl ScaleMaskSoftmax<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "scale_mask_softmax";
        let (rows, cols) = super::rows_and_cols(OP, "input", self.input)?;
        let [seq_len, _] = dims(OP, "mask", self.mask)?;
        expect(OP, "mask", self.mask, [seq_len, cols])?;
        // Vectors of four need aligned bases.
        let aligned = self.input.byte_offset().is_multiple_of(16)
            && self.out.byte_offset().is_multiple_of(16)
            && self.mask.byte_offset().is_multiple_of(8);
        let name = if cols.is_multiple_of(4) && aligned { "scale_mask_softmax_f32_v4" } else { "scale_mask_softmax_f32" };
        let params = ScaleMaskSoftmaxParams { rows, cols, seq_len, scale: self.scale };
        encoder.launch(name, &[Some(self.input), Some(self.mask), Some(self.out)], &params)
    }
}

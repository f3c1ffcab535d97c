//! Writes into key and value caches: pure data movement, with one rounding at most.
//!
//! A cache is head-major, `[n_kv_heads, cache_cap, head_dim]`, except for the two flat copies, whose cache is token-major. A ring cache
//! holds absolute position `p` in slot `p mod cache_cap`.

use super::layout::row_blocks;
use super::{size, unsupported};
use crate::backend::cpu::{CpuFn, kv_cache as cpu};
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder, StepU32, Text};
use crate::conformance::kv_cache as oracle;
use crate::{Buffer, DType, Encoder, Error, Result, kernel_text};

const TEXT: Text = kernel_text!("kv_cache.h");

crate::params! {
    /// Parameters of copies into a token-major cache.
    pub struct KvFlatCopyParams {
        /// elements of a token
        row: u32,
        /// tokens to write
        n_new: u32,
        /// tokens that the cache has room for
        cache_cap: u32,
        /// 1 if slots are taken modulo `cache_cap`, else 0
        is_sliding: u32,
        /// slot of the first token
        write_pos: StepU32,
    }
}

crate::params! {
    /// Parameters of copies of one token into a head-major cache.
    pub struct KvTokenCopyParams {
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// slots of a head
        cache_cap: u32,
        /// slot to write, already wrapped on a ring
        seq_pos: StepU32,
    }
}

crate::params! {
    /// Parameters of copies of several tokens into a head-major cache.
    pub struct KvSeqCopyParams {
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// slots of a head
        cache_cap: u32,
        /// tokens to write
        n_tokens: u32,
        /// tokens in the source
        n_src: u32,
        /// source token to start at
        src_tok_offset: u32,
        /// position of the first token; its slot is this modulo `cache_cap`
        seq_pos_start: StepU32,
    }
}

fn check_flat(p: &KvFlatCopyParams) -> Result<(), String> {
    let last = u64::from(p.write_pos.max()) + u64::from(p.n_new);
    if p.is_sliding > 1 {
        return Err(format!("is_sliding: got {}, expected 0 or 1", p.is_sliding));
    }
    if p.n_new > p.cache_cap {
        return Err(format!("n_new: got {}, expected at most cache_cap = {}", p.n_new, p.cache_cap));
    }
    if p.is_sliding == 0 && last > u64::from(p.cache_cap) {
        return Err(format!("write_pos + n_new: got {last}, expected at most cache_cap = {}", p.cache_cap));
    }
    Ok(())
}

fn check_token(p: &KvTokenCopyParams) -> Result<(), String> {
    let pos = p.seq_pos.max();
    if pos < p.cache_cap { Ok(()) } else { Err(format!("seq_pos: got {pos}, expected less than cache_cap = {}", p.cache_cap)) }
}

fn check_seq(p: &KvSeqCopyParams) -> Result<(), String> {
    let last = u64::from(p.src_tok_offset) + u64::from(p.n_tokens);
    // Two tokens of one launch would race for a slot.
    if p.n_tokens > p.cache_cap {
        return Err(format!("n_tokens: got {}, expected at most cache_cap = {}", p.n_tokens, p.cache_cap));
    }
    if last > u64::from(p.n_src) {
        return Err(format!("src_tok_offset + n_tokens: got {last}, expected at most n_src = {}", p.n_src));
    }
    Ok(())
}

/// Bytes that move for `elements` elements.
fn moved(elements: [u32; 3], src: DType, dst: DType, streams: usize) -> f64 {
    elements.iter().map(|&n| f64::from(n)).product::<f64>() * ((src.size() + dst.size()) * streams) as f64
}

/// Groups of threads over `rows` rows of `len` elements, for each stream.
fn launches(rows: u32, len: u32, streams: u32) -> Geometry {
    let Geometry { groups: [x, ..], threads } = row_blocks(rows, len);
    Geometry { groups: [x, 1, streams], threads }
}

/// Adds the source and cache bindings: one stream, or keys and values.
fn streams(mut entry: KernelBuilder, dual: bool, src: (DType, &'static str), cache: (DType, &'static str)) -> KernelBuilder {
    let (sources, caches): (&[&str], &[&str]) = if dual { (&["src_k", "src_v"], &["k_cache", "v_cache"]) } else { (&["src"], &["cache"]) };
    for name in sources {
        entry = entry.input(name, src.0, src.1);
    }
    for name in caches {
        entry = entry.in_out(name, cache.0, cache.1);
    }
    entry.text(TEXT, "").class("copy", "bits move unchanged; f32 to f16 is rounded to nearest even, bf16 to f32 is exact")
}

const HEAD_MAJOR: &str = "n_kv_heads cache_cap head_dim";

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    use DType::{BF16, F16, F32};
    let mut list = Vec::new();
    for (name, ty, run) in
        [("kv_cache_copy", BF16, cpu::flat_copy::<half::bf16> as CpuFn), ("kv_cache_copy_f32", F32, cpu::flat_copy::<f32>)]
    {
        let entry =
            Kernel::builder(name, Family::KvCache, "cache[(write_pos + t) mod cache_cap, i] = src[t, i]; no wrap unless is_sliding")
                .params::<KvFlatCopyParams>()
                .check(check_flat)
                .noop_if_zero("n_new")
                .bytes(move |p: &KvFlatCopyParams| moved([p.row, p.n_new, 1], ty, ty, 1))
                .geometry(|p: &KvFlatCopyParams| launches(p.n_new, p.row, 1));
        let entry = streams(entry, false, (ty, "n_new row"), (ty, "cache_cap row"));
        list.push(entry.cpu(run).tested(oracle::flat_copy, oracle::flat_cases).build());
    }
    for dual in [false, true] {
        let n = if dual { 2 } else { 1 };
        let suffix = if dual { "_kv_dual" } else { "" };
        let pick = |single: CpuFn, both: CpuFn| if dual { both } else { single };
        type Row = (&'static str, DType, DType, CpuFn);
        let token: [Row; 2] = [
            ("kv_cache_copy_batch_f32", F32, F32, pick(cpu::token_copy::<f32, f32>, cpu::token_copy_dual::<f32, f32>)),
            ("kv_cache_copy_batch_f32_to_f16", F32, F16, pick(cpu::token_copy::<f32, half::f16>, cpu::token_copy_dual::<f32, half::f16>)),
        ];
        for (name, src, dst, run) in token {
            let entry = Kernel::builder(format!("{name}{suffix}"), Family::KvCache, "cache[h, seq_pos, d] = src[h, d]")
                .params::<KvTokenCopyParams>()
                .check(check_token)
                .bytes(move |p: &KvTokenCopyParams| moved([p.n_kv_heads, p.head_dim, 1], src, dst, n))
                .geometry(move |p: &KvTokenCopyParams| launches(p.n_kv_heads, p.head_dim, n as u32));
            let entry = streams(entry, dual, (src, "n_kv_heads head_dim"), (dst, HEAD_MAJOR));
            list.push(entry.cpu(run).tested(oracle::token_copy, oracle::token_cases).build());
        }
        let mut seq: Vec<Row> = vec![
            ("kv_cache_copy_seq_f32", F32, F32, pick(cpu::seq_copy::<f32, f32>, cpu::seq_copy_dual::<f32, f32>)),
            ("kv_cache_copy_seq_f32_to_f16", F32, F16, pick(cpu::seq_copy::<f32, half::f16>, cpu::seq_copy_dual::<f32, half::f16>)),
        ];
        if !dual {
            seq.push(("kv_cache_copy_seq_bf16", BF16, F32, cpu::seq_copy::<half::bf16, f32>));
            seq.push(("kv_cache_copy_seq_bf16_to_bf16_head_major", BF16, BF16, cpu::seq_copy_head_major::<half::bf16, half::bf16>));
        }
        for (name, src, dst, run) in seq {
            let head_major = name.ends_with("head_major");
            let (summary, shape) = if head_major {
                ("cache[h, (seq_pos_start + t) mod cache_cap, d] = src[h, src_tok_offset + t, d]", "n_kv_heads n_src head_dim")
            } else {
                ("cache[h, (seq_pos_start + t) mod cache_cap, d] = src[src_tok_offset + t, h, d]", "n_src n_kv_heads head_dim")
            };
            let entry = Kernel::builder(format!("{name}{suffix}"), Family::KvCache, summary)
                .params::<KvSeqCopyParams>()
                .check(check_seq)
                .noop_if_zero("n_tokens")
                .bytes(move |p: &KvSeqCopyParams| moved([p.n_kv_heads, p.head_dim, p.n_tokens], src, dst, n))
                .geometry(move |p: &KvSeqCopyParams| launches(p.n_kv_heads.saturating_mul(p.n_tokens), p.head_dim, n as u32));
            let entry = streams(entry, dual, (src, shape), (dst, HEAD_MAJOR));
            list.push(entry.cpu(run).tested(oracle::seq_copy, oracle::seq_cases).build());
        }
    }
    list
}

/// Three dimensions of a buffer.
fn dims3(op: &str, what: &str, buffer: &Buffer) -> Result<[u32; 3]> {
    match *buffer.shape() {
        [a, b, c] => Ok([size(op, what, a)?, size(op, what, b)?, size(op, what, c)?]),
        _ => Err(Error::invalid(op, format!("{what}: got shape {:?}, expected three dimensions", buffer.shape()))),
    }
}

fn expect_dims(op: &str, what: &str, got: [u32; 3], expected: [u32; 3]) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::invalid(op, format!("{what}: got shape {got:?}, expected {expected:?}")))
}

/// Where the tokens of a launch come from and go to on a cache that may be a ring.
struct Placement {
    n_tokens: u32,
    src_tok_offset: u32,
    start: StepU32,
}

/// On a ring only the newest `cache_cap` tokens are written, each slot once. Elsewhere every token must fit.
fn place(op: &str, seq_len: u32, cache_cap: u32, position: StepU32, ring: bool) -> Result<Placement> {
    if !ring {
        let end = u64::from(position.max()) + u64::from(seq_len);
        if end > u64::from(cache_cap) {
            return Err(Error::invalid(op, format!("position + tokens: got {end}, expected at most {cache_cap} cache slots")));
        }
    }
    let n_tokens = seq_len.min(cache_cap);
    let skipped = seq_len - n_tokens;
    let start = match (skipped, position.slot()) {
        (0, _) => position,
        (_, None) => StepU32::new(
            position
                .max()
                .checked_add(skipped)
                .ok_or_else(|| Error::invalid(op, format!("position: got {}, expected at most {}", position.max(), u32::MAX - skipped)))?,
        ),
        (_, Some(_)) => {
            let what = format!("tokens: got {seq_len} at a position from the step buffer, expected at most {cache_cap} cache slots");
            return Err(Error::invalid(op, what));
        }
    };
    Ok(Placement { n_tokens, src_tok_offset: skipped, start })
}

/// Writes the keys and values of new tokens into head-major caches.
pub struct KvCacheWrite<'a> {
    /// New keys `[seq_len, n_kv_heads, head_dim]`, f32.
    pub k: &'a Buffer,
    /// New values, shape of `k`.
    pub v: &'a Buffer,
    /// Key cache `[n_kv_heads, cache_cap, head_dim]`, f32 or f16.
    pub k_cache: &'a Buffer,
    /// Value cache, shape and dtype of `k_cache`.
    pub v_cache: &'a Buffer,
    /// Position of the first token.
    pub position: StepU32,
}

impl KvCacheWrite<'_> {
    /// Records the write into slots `position ..`, all of which must exist.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        self.record(encoder, false)
    }

    /// Records the write into a ring: position `p` goes to slot `p mod cache_cap`, and of more tokens than slots the newest are kept.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode_ring(&self, encoder: &mut Encoder) -> Result<()> {
        self.record(encoder, true)
    }

    fn record(&self, encoder: &mut Encoder, ring: bool) -> Result<()> {
        const OP: &str = "kv_cache_write";
        let [seq_len, n_kv_heads, head_dim] = dims3(OP, "k", self.k)?;
        let [cache_heads, cache_cap, cache_dim] = dims3(OP, "k_cache", self.k_cache)?;
        expect_dims(OP, "v", dims3(OP, "v", self.v)?, [seq_len, n_kv_heads, head_dim])?;
        expect_dims(OP, "k_cache", [cache_heads, cache_cap, cache_dim], [n_kv_heads, cache_cap, head_dim])?;
        expect_dims(OP, "v_cache", dims3(OP, "v_cache", self.v_cache)?, [n_kv_heads, cache_cap, head_dim])?;
        let narrow = match self.k_cache.dtype() {
            DType::F32 => false,
            DType::F16 => true,
            other => return Err(unsupported(OP, "k_cache", other, "f32 or f16")),
        };
        let Placement { n_tokens, src_tok_offset, start } = place(OP, seq_len, cache_cap, self.position, ring)?;
        let args = [Some(self.k), Some(self.v), Some(self.k_cache), Some(self.v_cache)];
        if seq_len == 1 && !ring {
            let name = if narrow { "kv_cache_copy_batch_f32_to_f16_kv_dual" } else { "kv_cache_copy_batch_f32_kv_dual" };
            return encoder.launch(name, &args, &KvTokenCopyParams { n_kv_heads, head_dim, cache_cap, seq_pos: start });
        }
        let name = if narrow { "kv_cache_copy_seq_f32_to_f16_kv_dual" } else { "kv_cache_copy_seq_f32_kv_dual" };
        let params = KvSeqCopyParams { n_kv_heads, head_dim, cache_cap, n_tokens, n_src: seq_len, src_tok_offset, seq_pos_start: start };
        encoder.launch(name, &args, &params)
    }
}

/// Writes one stream of new tokens into a head-major cache.
pub struct KvCacheStore<'a> {
    /// New rows: `[seq_len, n_kv_heads, head_dim]`, f32 or bf16; into a bf16 cache `[n_kv_heads, seq_len, head_dim]`, bf16.
    pub src: &'a Buffer,
    /// `[n_kv_heads, cache_cap, head_dim]`: f32 or f16 for an f32 source, f32 or bf16 for a bf16 source.
    pub cache: &'a Buffer,
    /// Position of the first token.
    pub position: StepU32,
    /// Whether slots are taken modulo `cache_cap`; of more tokens than slots the newest are kept then.
    pub ring: bool,
}

impl KvCacheStore<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "kv_cache_store";
        let name = match (self.src.dtype(), self.cache.dtype()) {
            (DType::F32, DType::F32) => "kv_cache_copy_seq_f32",
            (DType::F32, DType::F16) => "kv_cache_copy_seq_f32_to_f16",
            (DType::BF16, DType::F32) => "kv_cache_copy_seq_bf16",
            (DType::BF16, DType::BF16) => "kv_cache_copy_seq_bf16_to_bf16_head_major",
            (DType::F32, other) => return Err(unsupported(OP, "cache", other, "f32 or f16")),
            (DType::BF16, other) => return Err(unsupported(OP, "cache", other, "f32 or bf16")),
            (other, _) => return Err(unsupported(OP, "src", other, "f32 or bf16")),
        };
        let src = dims3(OP, "src", self.src)?;
        let [n_kv_heads, cache_cap, head_dim] = dims3(OP, "cache", self.cache)?;
        let head_major = name.ends_with("head_major");
        let n_src = if head_major { src[1] } else { src[0] };
        expect_dims(OP, "src", src, if head_major { [n_kv_heads, n_src, head_dim] } else { [n_src, n_kv_heads, head_dim] })?;
        let Placement { n_tokens, src_tok_offset, start } = place(OP, n_src, cache_cap, self.position, self.ring)?;
        let params = KvSeqCopyParams { n_kv_heads, head_dim, cache_cap, n_tokens, n_src, src_tok_offset, seq_pos_start: start };
        encoder.launch(name, &[Some(self.src), Some(self.cache)], &params)
    }
}

/// Appends rows to a token-major cache.
pub struct KvCacheAppend<'a> {
    /// `[n_new, row]`, f32 or bf16.
    pub src: &'a Buffer,
    /// `[cache_cap, row]`, dtype of `src`.
    pub cache: &'a Buffer,
    /// Slot of the first row.
    pub position: StepU32,
    /// Whether slots are taken modulo `cache_cap`.
    pub ring: bool,
}

impl KvCacheAppend<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "kv_cache_append";
        let (n_new, row) = super::rows_and_cols(OP, "src", self.src)?;
        let (cache_cap, cache_row) = super::rows_and_cols(OP, "cache", self.cache)?;
        if row != cache_row {
            return Err(Error::invalid(OP, format!("cache: got rows of {cache_row}, expected {row}")));
        }
        let name = match self.src.dtype() {
            DType::F32 => "kv_cache_copy_f32",
            DType::BF16 => "kv_cache_copy",
            other => return Err(unsupported(OP, "src", other, "f32 or bf16")),
        };
        let params = KvFlatCopyParams { row, n_new, cache_cap, is_sliding: u32::from(self.ring), write_pos: self.position };
        encoder.launch(name, &[Some(self.src), Some(self.cache)], &params)
    }
}

//! The rotation of one token fused with the write into the caches: what a decode step does between its projections and its attention.

use super::{F16, F32, RopeStyle, TEXT, U32, check_dims, heads_of, oracle, rotation_launch};
use crate::catalogue::{Family, Geometry, Kernel, StepU32};
use crate::ops::kv_cache::KvCacheWrite;
use crate::ops::{size, unsupported};
use crate::{Buffer, DType, Encoder, Error, Result};

crate::params! {
    /// Parameters of the rotation of one token with the write into its caches.
    pub struct RopeCachedParams {
        /// query heads
        n_heads: u32,
        /// key and value heads
        n_kv_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// rotated elements of a head, an even number
        rope_dim: u32,
        /// 0: pairs are (2p, 2p + 1), 1: (p, p + head_dim / 2)
        split: u32,
        /// slots of a head
        cache_cap: u32,
        /// slot to write
        seq_pos: StepU32,
    }
}

fn check(p: &RopeCachedParams) -> Result<(), String> {
    check_dims(p.head_dim, p.rope_dim)?;
    if p.split > 1 {
        return Err(format!("split: got {}, expected 0 or 1", p.split));
    }
    if p.seq_pos.max() >= p.cache_cap {
        return Err(format!("seq_pos: got {}, expected less than cache_cap = {}", p.seq_pos.max(), p.cache_cap));
    }
    Ok(())
}

fn heads(p: &RopeCachedParams) -> u32 {
    p.n_heads.saturating_add(p.n_kv_heads.saturating_mul(2))
}

/// One head a thread: what counts is how long the longest thread takes.
fn cached_launch(heads: u32, head_dim: u32) -> Geometry {
    let Geometry { groups: [x, _, z], threads } = rotation_launch(1, heads, head_dim);
    Geometry { groups: [x, heads.div_ceil(threads[1]).clamp(1, 65_535), z], threads }
}

pub(super) fn kernels() -> Vec<Kernel> {
    let entry = |(name, cache): (&str, DType)| {
        Kernel::builder(name, Family::Rope, "q and k of one token rotated, k and v written to slot seq_pos of their caches")
            .params::<RopeCachedParams>()
            .check(check)
            .geometry(|p: &RopeCachedParams| cached_launch(heads(p), p.head_dim))
            .text(TEXT, "")
            .flops(|p: &RopeCachedParams| 3.0 * f64::from(heads(p)) * f64::from(p.rope_dim))
            .input("q", F32, "n_heads head_dim")
            .input("k", F32, "n_kv_heads head_dim")
            .input("v", F32, "n_kv_heads head_dim")
            .input("positions", U32, "1")
            .input("inv_freq", F32, "rope_dim/2")
            .input("factors", F32, "rope_dim/2")
            .optional()
            .output("out", F32, "n_heads head_dim")
            .may_alias(&["q"])
            .in_out("k_cache", cache, "n_kv_heads cache_cap head_dim")
            .in_out("v_cache", cache, "n_kv_heads cache_cap head_dim")
            .class("f32, f32 angle, one rounding when stored", "|err| ≤ 3e-6·(|x0| + |x1|) for the f32 angle, 1 ulp in f16; v exact")
            .tested(oracle::rope_cached, oracle::rope_cached_cases)
            .build()
    };
    [("rope_kv_copy_f32", F32), ("rope_kv_copy_f32_to_f16", F16)].map(entry).into()
}

/// Rotates the query and key heads of one token by its position and writes keys and values to slot `position` of their caches. `out` may be `q`.
/// One launch where the device has the kernel, else a launch for each part, which leaves the rotated keys in `k`.
pub struct RopeCacheWrite<'a> {
    /// `[1, n_heads, head_dim]`, f32.
    pub q: &'a Buffer,
    /// `[1, n_kv_heads, head_dim]`, f32; may be overwritten.
    pub k: &'a Buffer,
    /// Shape of `k`, f32.
    pub v: &'a Buffer,
    /// `[1]` u32.
    pub positions: &'a Buffer,
    /// `[rope_dim / 2]` f32, from [`inv_freq`](super::inv_freq); its length says how much of a head turns.
    pub inv_freq: &'a Buffer,
    /// `[rope_dim / 2]` f32 that divide the angles.
    pub factors: Option<&'a Buffer>,
    /// Shape of `q`, f32.
    pub out: &'a Buffer,
    /// Key cache `[n_kv_heads, cache_cap, head_dim]`, f32 or f16.
    pub k_cache: &'a Buffer,
    /// Value cache, shape and dtype of `k_cache`.
    pub v_cache: &'a Buffer,
    /// Slot of the token.
    pub position: StepU32,
    /// Which elements turn together.
    pub style: RopeStyle,
}

impl RopeCacheWrite<'_> {
    /// Records the launches.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "rope_cache_write";
        if encoder.context().device().info().backend == "cpu" {
            let &RopeCacheWrite { q, k, v, positions, inv_freq, factors, out, k_cache, v_cache, position, style } = self;
            super::Rope { x: q, positions, inv_freq, factors, out, style }.encode(encoder)?;
            super::Rope { x: k, positions, inv_freq, factors, out: k, style }.encode(encoder)?;
            return KvCacheWrite { k, v, k_cache, v_cache, position }.encode(encoder);
        }
        let (seq_len, n_heads, head_dim) = heads_of(OP, self.q)?;
        let (_, n_kv_heads, _) = heads_of(OP, self.k)?;
        if seq_len != 1 {
            return Err(Error::invalid(OP, format!("q: got {seq_len} tokens, expected 1")));
        }
        let &[_, cache_cap, _] = self.k_cache.shape() else {
            return Err(Error::invalid(OP, format!("k_cache: got {} dimensions, expected 3", self.k_cache.shape().len())));
        };
        let name = match self.k_cache.dtype() {
            F32 => "rope_kv_copy_f32",
            F16 => "rope_kv_copy_f32_to_f16",
            other => return Err(unsupported(OP, "k_cache", other, "f32 or f16")),
        };
        let params = RopeCachedParams {
            n_heads,
            n_kv_heads,
            head_dim,
            rope_dim: size(OP, "inv_freq", 2 * self.inv_freq.len())?,
            split: u32::from(self.style == RopeStyle::SplitHalf),
            cache_cap: size(OP, "k_cache", cache_cap)?,
            seq_pos: self.position,
        };
        let inputs = [Some(self.q), Some(self.k), Some(self.v), Some(self.positions), Some(self.inv_freq), self.factors];
        let outputs = [Some(self.out), Some(self.k_cache), Some(self.v_cache)];
        encoder.launch(name, &[&inputs[..], &outputs[..]].concat(), &params)
    }
}

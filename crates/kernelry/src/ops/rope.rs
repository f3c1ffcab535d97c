//! Rotary position embedding (Su et al., 2021), alone and fused with the norm of each head.
//!
//! Pair `p` turns by `a = position · inv_freq[p] / factor[p]`: `(x0, x1) → (x0·cos a - x1·sin a, x0·sin a + x1·cos a)`. The table of
//! frequencies is made on the host in f64 and rounded once, so that every kernel and device turns by the same angle.

mod cached;
mod multi;

pub use cached::{RopeCacheWrite, RopeCachedParams};
pub use multi::{RopeMode, RopeMulti, RopeMultiParams, multi_inv_freq};

use super::{size, unsupported};
use crate::DType::{BF16, F16, F32, U32};
use crate::backend::cpu::CpuFn;
use crate::backend::cpu::rope as cpu;
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder, Text};
use crate::conformance::rope as oracle;
use crate::{Buffer, DType, Encoder, Error, Result, bf16, f16, kernel_text};

const TEXT: Text = kernel_text!("rope.h");

crate::params! {
    /// Parameters of rotations.
    pub struct RopeParams {
        /// number of positions
        seq_len: u32,
        /// heads of a position, rows of x that share it
        n_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// rotated elements of a head, an even number
        rope_dim: u32,
    }
}

crate::params! {
    /// Parameters of the fused head norm and rotation.
    pub struct HeadNormRopeParams {
        /// number of positions
        seq_len: u32,
        /// heads of a position
        n_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// rotated pairs of a head; 0 for the norm alone
        half_rope: u32,
        /// added to the mean square inside the root
        eps: f32,
        /// 1: the bf16 copy is [n_heads, seq_len, head_dim], 0: [seq_len, n_heads, head_dim]
        bf16_permuted: u32,
    }
}

crate::params! {
    /// Parameters of the head norm and rotation of bf16 heads at several positions.
    pub struct HeadNormRopeBatchParams {
        /// number of positions
        seq_len: u32,
        /// heads of a position
        n_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// rotated pairs of a head; 0 for the norm alone
        half_rope: u32,
        /// added to the mean square inside the root
        eps: f32,
    }
}

crate::params! {
    /// Parameters of the head norm and rotation of one position by tables of cosines and sines.
    pub struct HeadNormRopeTableParams {
        /// number of heads
        n_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// rotated pairs of a head, and the distance of their elements; 0 for the norm alone
        half_rope: u32,
        /// added to the mean square inside the root
        eps: f32,
    }
}

/// What every head norm with a rotation demands.
fn check_head_norm(head_dim: u32, half_rope: u32, eps: f32) -> Result<(), String> {
    if !head_dim.is_multiple_of(2) || half_rope > head_dim / 2 {
        return Err(format!("half_rope: got {half_rope}, expected at most half of an even head_dim, which is {head_dim}"));
    }
    if !eps.is_finite() || eps < 0.0 {
        return Err(format!("eps: got {eps}, expected a finite value of at least 0"));
    }
    Ok(())
}

/// Frequencies `base^(-2p/denominator)` of `pairs` pairs, computed in f64 and rounded once.
///
/// # Errors
/// [`Error::InvalidArgument`] for a base that is not finite and positive, or zero sizes.
pub fn inv_freq(base: f64, denominator: usize, pairs: usize) -> Result<Vec<f32>> {
    if !base.is_finite() || base <= 0.0 {
        return Err(Error::invalid("inv_freq", format!("base: got {base}, expected a finite value above 0")));
    }
    if denominator == 0 || pairs == 0 {
        return Err(Error::invalid("inv_freq", format!("denominator and pairs: got {denominator} and {pairs}, expected at least 1")));
    }
    Ok((0..pairs).map(|p| base.powf(-2.0 * p as f64 / denominator as f64) as f32).collect())
}

fn check_dims(head_dim: u32, rope_dim: u32) -> Result<(), String> {
    if !head_dim.is_multiple_of(2) {
        return Err(format!("head_dim: got {head_dim}, expected an even number"));
    }
    if rope_dim == 0 || rope_dim > head_dim || !rope_dim.is_multiple_of(2) {
        return Err(format!("rope_dim: got {rope_dim}, expected an even number up to {head_dim}"));
    }
    Ok(())
}

/// Positions in x, shares of their heads in y: a thread takes a pair through up to four heads at once.
fn rotation_launch(seq_len: u32, n_heads: u32, head_dim: u32) -> Geometry {
    let across = (head_dim / 2).clamp(1, 256).next_power_of_two();
    let down = (128 / across).min(n_heads.clamp(1, 128).next_power_of_two()).max(64u32.div_ceil(across));
    Geometry { groups: [seq_len, n_heads.div_ceil(4 * down).clamp(1, 65_535), 1], threads: [across, down, 1] }
}

/// Positions in x, shares of their heads in y: about two heads a warp.
fn head_launch(seq_len: u32, n_heads: u32) -> Geometry {
    Geometry { groups: [seq_len, n_heads.div_ceil(8).clamp(1, 65_535), 1], threads: [128, 1, 1] }
}

fn rotation(name: &str, dtype: DType, summary: &'static str) -> KernelBuilder {
    let entry = Kernel::builder(name, Family::Rope, summary)
        .params::<RopeParams>()
        .check(|p: &RopeParams| check_dims(p.head_dim, p.rope_dim))
        .geometry(|p: &RopeParams| rotation_launch(p.seq_len, p.n_heads, p.head_dim))
        .text(TEXT, "")
        .flops(|p: &RopeParams| 3.0 * f64::from(p.seq_len) * f64::from(p.n_heads) * f64::from(p.rope_dim))
        .input("x", dtype, "seq_len*n_heads head_dim")
        .input("positions", U32, "seq_len")
        .input("inv_freq", F32, "rope_dim/2")
        .input("factors", F32, "rope_dim/2")
        .optional()
        .output("out", dtype, "seq_len*n_heads head_dim")
        .may_alias(&["x"])
        .tested(oracle::rope, oracle::rope_cases);
    match dtype {
        F32 => entry.class("f32, f32 angle", "|err| ≤ 3e-6·(|x0| + |x1|) for the f32 angle"),
        _ => entry.class("f32, one rounding when stored", "1 ulp of the rounded f64 result and 3e-6·(|x0| + |x1|)"),
    }
}

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut list = Vec::new();
    const ADJACENT: &str = "rotates (x[2p], x[2p + 1]) by position · inv_freq[p]";
    const SPLIT: &str = "rotates (x[p], x[p + D/2]) by position · inv_freq[p]";
    let adjacent: [(&str, DType, CpuFn); 3] =
        [("rope_f32", F32, cpu::adjacent::<f32>), ("rope_f16", F16, cpu::adjacent::<f16>), ("rope_bf16", BF16, cpu::adjacent::<bf16>)];
    for (name, dtype, run) in adjacent {
        let entry = rotation(name, dtype, ADJACENT).check(|p: &RopeParams| {
            if p.rope_dim == p.head_dim { Ok(()) } else { Err(format!("rope_dim: got {}, expected {}", p.rope_dim, p.head_dim)) }
        });
        list.push(entry.cpu(run).build());
    }
    let split: [(&str, DType, CpuFn); 2] =
        [("rope_neox_f32", F32, cpu::split_half::<f32>), ("rope_neox_bf16", BF16, cpu::split_half::<bf16>)];
    for (name, dtype, run) in split {
        list.push(rotation(name, dtype, SPLIT).cpu(run).build());
    }
    for name in ["fused_head_norm_rope_f32", "fused_head_norm_rope_f32_v2"] {
        let four = name.ends_with("_v2");
        list.push(
            Kernel::builder(name, Family::Rope, "n = rms(x)·w of each head, rotated as (n[p], n[p + D/2])")
                .params::<HeadNormRopeParams>()
                .class("f32, f32 angle", "|err| ≤ 1e-5·max|y_row| + 1e-6")
                .check(|p: &HeadNormRopeParams| check_head_norm(p.head_dim, p.half_rope, p.eps))
                .check(|p: &HeadNormRopeParams| {
                    if p.bf16_permuted > 1 {
                        return Err(format!("bf16_permuted: got {}, expected 0 or 1", p.bf16_permuted));
                    }
                    Ok(())
                })
                .check(move |p: &HeadNormRopeParams| {
                    if four && !p.head_dim.is_multiple_of(4) {
                        return Err(format!("head_dim: got {}, expected a multiple of 4", p.head_dim));
                    }
                    Ok(())
                })
                .geometry(|p: &HeadNormRopeParams| head_launch(p.seq_len, p.n_heads))
                .text(TEXT, "")
                .flops(|p: &HeadNormRopeParams| 7.0 * f64::from(p.seq_len) * f64::from(p.n_heads) * f64::from(p.head_dim))
                .input("x", F32, "seq_len n_heads head_dim")
                .input("weight", F32, "head_dim")
                .optional()
                .input("positions", U32, "seq_len")
                .input("inv_freq", F32, "max(half_rope, 1)")
                .input("factors", F32, "max(half_rope, 1)")
                .optional()
                .output("out", F32, "seq_len n_heads head_dim")
                .may_alias(&["x"])
                .output("out_bf16", BF16, "seq_len*n_heads head_dim")
                .optional()
                .output("out_perm", F32, "n_heads seq_len head_dim")
                .optional()
                .cpu(cpu::fused_head_norm_rope)
                .tested(oracle::head_norm_rope, oracle::head_norm_rope_cases)
                .build(),
        );
    }
    list.extend(rounded_head_norms());
    list.extend(multi::kernels());
    list.extend(cached::kernels());
    list
}

/// The head norm and rotation of bf16 heads: normalised values stay f32 until they are stored.
fn rounded_head_norms() -> Vec<Kernel> {
    const BOUND: &str = "1 ulp of the rounded f64 result and 1e-5·max|y_row| + 1e-6 where terms cancel";
    let entry = |name: &str, summary| Kernel::builder(name, Family::Rope, summary).class("f32, f32 angle, one rounding to bf16", BOUND);
    let batch = entry("fused_head_norm_rope_batch_bf16", "n = rms(x)·w of each head, rotated as (n[p], n[p + D/2])")
        .params::<HeadNormRopeBatchParams>()
        .check(|p: &HeadNormRopeBatchParams| check_head_norm(p.head_dim, p.half_rope, p.eps))
        .geometry(|p: &HeadNormRopeBatchParams| head_launch(p.seq_len, p.n_heads))
        .text(TEXT, "")
        .flops(|p: &HeadNormRopeBatchParams| 7.0 * f64::from(p.seq_len) * f64::from(p.n_heads) * f64::from(p.head_dim))
        .input("x", BF16, "seq_len n_heads head_dim")
        .input("weight", BF16, "head_dim")
        .optional()
        .input("positions", U32, "seq_len")
        .input("inv_freq", F32, "max(half_rope, 1)")
        .input("factors", F32, "max(half_rope, 1)")
        .optional()
        .output("out", BF16, "seq_len n_heads head_dim")
        .may_alias(&["x"])
        .cpu(cpu::fused_head_norm_rope_batch_bf16)
        .tested(oracle::head_norm_rope_batch, oracle::head_norm_rope_batch_cases);
    let table = entry("fused_head_norm_rope_bf16", "n = rms(x)·w of each head, rotated as (n[p], n[p + half_rope]) by tables")
        .params::<HeadNormRopeTableParams>()
        .check(|p: &HeadNormRopeTableParams| check_head_norm(p.head_dim, p.half_rope, p.eps))
        .geometry(|p: &HeadNormRopeTableParams| head_launch(1, p.n_heads))
        .text(TEXT, "")
        .flops(|p: &HeadNormRopeTableParams| 7.0 * f64::from(p.n_heads) * f64::from(p.head_dim))
        .input("x", BF16, "n_heads head_dim")
        .input("weight", BF16, "head_dim")
        .optional()
        .input("cos", F32, "max(half_rope, 1)")
        .input("sin", F32, "max(half_rope, 1)")
        .output("out", BF16, "n_heads head_dim")
        .may_alias(&["x"])
        .cpu(cpu::fused_head_norm_rope_bf16)
        .tested(oracle::head_norm_rope_table, oracle::head_norm_rope_table_cases);
    vec![batch.build(), table.build()]
}

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(2p, 2p + 1)`: Llama files in GGUF.
    Adjacent,
    /// `(p, p + head_dim / 2)`: NeoX, Qwen, Gemma.
    SplitHalf,
}

/// Rotates every head by its position. `out` may be `x`.
pub struct Rope<'a> {
    /// `[seq_len, n_heads, head_dim]`: f32, f16 or bf16; f32 or bf16 for split halves.
    pub x: &'a Buffer,
    /// `[seq_len]` u32.
    pub positions: &'a Buffer,
    /// `[rope_dim / 2]` f32, from [`inv_freq`]; its length says how much of a head turns.
    pub inv_freq: &'a Buffer,
    /// `[rope_dim / 2]` f32 that divide the angles.
    pub factors: Option<&'a Buffer>,
    /// Shape and dtype of `x`.
    pub out: &'a Buffer,
    /// Which elements turn together.
    pub style: RopeStyle,
}

impl Rope<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (seq_len, n_heads, head_dim) = heads_of("rope", self.x)?;
        let rope_dim = size("rope", "inv_freq", 2 * self.inv_freq.len())?;
        let name = match (self.style, self.x.dtype()) {
            (RopeStyle::Adjacent, F32) => "rope_f32",
            (RopeStyle::Adjacent, F16) => "rope_f16",
            (RopeStyle::Adjacent, BF16) => "rope_bf16",
            (RopeStyle::SplitHalf, F32) => "rope_neox_f32",
            (RopeStyle::SplitHalf, BF16) => "rope_neox_bf16",
            (_, other) => return Err(unsupported("rope", "x", other, "f32, bf16, or f16 with adjacent pairs")),
        };
        let args = [Some(self.x), Some(self.positions), Some(self.inv_freq), self.factors, Some(self.out)];
        encoder.launch(name, &args, &RopeParams { seq_len, n_heads, head_dim, rope_dim })
    }
}

/// RMS norm of every head, then its rotation by split halves. `out` may be `x`.
pub struct HeadNormRope<'a> {
    /// `[seq_len, n_heads, head_dim]`, f32 or bf16.
    pub x: &'a Buffer,
    /// `[head_dim]`, dtype of `x`, if the norm has a weight.
    pub weight: Option<&'a Buffer>,
    /// `[seq_len]` u32.
    pub positions: &'a Buffer,
    /// Frequencies f32, one a rotated pair, from [`inv_freq`] with the head width as denominator.
    pub inv_freq: &'a Buffer,
    /// As many f32 that divide the angles.
    pub factors: Option<&'a Buffer>,
    /// Shape and dtype of `x`.
    pub out: &'a Buffer,
    /// Added to the mean square; finite, at least 0.
    pub eps: f32,
}

impl HeadNormRope<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "fused_head_norm_rope";
        let (seq_len, n_heads, head_dim) = heads_of(OP, self.x)?;
        let (half_rope, eps) = (size(OP, "inv_freq", self.inv_freq.len())?, self.eps);
        let args = [Some(self.x), self.weight, Some(self.positions), Some(self.inv_freq), self.factors, Some(self.out), None, None];
        let name = match self.x.dtype() {
            F32 if head_dim.is_multiple_of(4) => "fused_head_norm_rope_f32_v2",
            F32 => "fused_head_norm_rope_f32",
            BF16 => {
                let params = HeadNormRopeBatchParams { seq_len, n_heads, head_dim, half_rope, eps };
                return encoder.launch("fused_head_norm_rope_batch_bf16", &args[..6], &params);
            }
            other => return Err(unsupported(OP, "x", other, "f32 or bf16")),
        };
        encoder.launch(name, &args, &HeadNormRopeParams { seq_len, n_heads, head_dim, half_rope, eps, bf16_permuted: 0 })
    }
}

/// Sizes of `[seq_len, n_heads, head_dim]`.
fn heads_of(op: &str, x: &Buffer) -> Result<(u32, u32, u32)> {
    match *x.shape() {
        [seq_len, n_heads, head_dim] => Ok((size(op, "x", seq_len)?, size(op, "x", n_heads)?, size(op, "x", head_dim)?)),
        _ => Err(Error::invalid(op, format!("x: got shape {:?}, expected [seq_len, n_heads, head_dim]", x.shape()))),
    }
}

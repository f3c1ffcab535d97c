//! Rotation by positions of several axes: time, height and width of images and video (Wang et al., 2024, "M-RoPE"), in blocks or
//! interleaved, and the two axes of vision towers.
//!
//! Pairs are `(p, p + rope_dim/2)`: rotated are the first `rope_dim` elements, the rest is copied. The axis of pair `p` follows from
//! `p mod Z`, where `Z` is the sum of the sections.

use super::{TEXT, check_dims, heads_of, inv_freq, oracle, rotation_launch};
use crate::DType::{BF16, F32, I32};
use crate::backend::cpu::CpuFn;
use crate::backend::cpu::rope as cpu;
use crate::catalogue::{Family, Kernel};
use crate::ops::{size, unsupported};
use crate::{Buffer, DType, Encoder, Error, Result, bf16};

crate::params! {
    /// Parameters of rotations by several axes.
    pub struct RopeMultiParams {
        /// number of positions
        seq_len: u32,
        /// heads of a position
        n_heads: u32,
        /// elements of a head
        head_dim: u32,
        /// rotated elements of a head, an even number
        rope_dim: u32,
        /// 8: sections in blocks, 40: interleaved, 24: two axes of vision towers
        mode: u32,
        /// pairs of axis 0
        section_0: u32,
        /// pairs of axis 1
        section_1: u32,
        /// pairs of axis 2
        section_2: u32,
        /// pairs of axis 3
        section_3: u32,
    }
}

/// How pairs are given to axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeMode {
    /// Blocks: the first section has axis 0, the next axis 1, and so on (Qwen2-VL).
    Blocks,
    /// Interleaved: every third pair has axis 0, 1 or 2 while its section lasts, the rest axis 3 (Qwen3-VL).
    Interleaved,
    /// Two axes, each with frequencies from the start; all of a head turns (vision towers of Qwen).
    Vision,
}

impl RopeMode {
    pub(crate) const fn code(self) -> u32 {
        match self {
            RopeMode::Blocks => 8,
            RopeMode::Interleaved => 40,
            RopeMode::Vision => 24,
        }
    }

    const fn from_code(code: u32) -> Option<RopeMode> {
        match code {
            8 => Some(RopeMode::Blocks),
            40 => Some(RopeMode::Interleaved),
            24 => Some(RopeMode::Vision),
            _ => None,
        }
    }
}

impl RopeMultiParams {
    fn sections(&self) -> [u64; 4] {
        [self.section_0, self.section_1, self.section_2, self.section_3].map(u64::from)
    }

    /// The axis whose positions turn this pair; 0 for parameters that were refused.
    pub(crate) fn axis_of(&self, pair: u32) -> usize {
        let [a, b, c, d] = self.sections();
        let sum = if self.mode == RopeMode::Vision.code() { a + b } else { a + b + c + d };
        let Some(at) = u64::from(pair).checked_rem(sum) else { return 0 };
        match RopeMode::from_code(self.mode) {
            Some(RopeMode::Interleaved) => match at % 3 {
                axis if at < 3 * [a, b, c][axis as usize] => axis as usize,
                _ => 3,
            },
            Some(RopeMode::Vision) => usize::from(at >= a),
            _ => [a, a + b, a + b + c].iter().filter(|&&end| at >= end).count(),
        }
    }

    fn check(&self) -> Result<(), String> {
        check_dims(self.head_dim, self.rope_dim)?;
        let [a, b, c, d] = self.sections();
        match RopeMode::from_code(self.mode) {
            None => Err(format!("mode: got {}, expected 8, 24 or 40", self.mode)),
            Some(RopeMode::Vision) if self.rope_dim != self.head_dim => {
                Err(format!("rope_dim: got {}, expected {} in mode 24", self.rope_dim, self.head_dim))
            }
            Some(RopeMode::Vision) if a + b != u64::from(self.head_dim / 2) => {
                Err(format!("sections: got {a} + {b}, expected {} in mode 24", self.head_dim / 2))
            }
            Some(_) if a + b + c + d == 0 => Err("sections: got none, expected at least one pair".into()),
            Some(_) => Ok(()),
        }
    }
}

/// The frequency of every pair. For text and interleaved sections `base^(-2p/rope_dim)`; for vision towers each axis starts again, with
/// half of the head as denominator.
///
/// # Errors
/// As [`inv_freq`].
pub fn multi_inv_freq(base: f64, mode: RopeMode, sections: [u32; 4], rope_dim: usize) -> Result<Vec<f32>> {
    match mode {
        RopeMode::Blocks | RopeMode::Interleaved => inv_freq(base, rope_dim, rope_dim / 2),
        RopeMode::Vision => {
            let [rows, cols] = [sections[0], sections[1]].map(|s| s as usize);
            let table = inv_freq(base, rope_dim / 2, rows.max(cols))?;
            Ok([&table[..rows], &table[..cols]].concat())
        }
    }
}

/// Catalogue entries.
pub(super) fn kernels() -> Vec<Kernel> {
    let dtypes: [(&str, DType, CpuFn); 2] = [("rope_multi_f32", F32, cpu::multi::<f32>), ("rope_multi_bf16", BF16, cpu::multi::<bf16>)];
    let entry = |(name, dtype, run): (&str, DType, CpuFn)| {
        let entry = Kernel::builder(name, Family::Rope, "rotates (x[p], x[p + R/2]) by position[axis of p] · inv_freq[p]");
        let entry = match dtype {
            F32 => entry.class("f32, f32 angle", "|err| ≤ 3e-6·(|x0| + |x1|) for the f32 angle"),
            _ => entry.class("f32, one rounding when stored", "1 ulp of the rounded f64 result and 3e-6·(|x0| + |x1|)"),
        };
        entry
            .params::<RopeMultiParams>()
            .check(RopeMultiParams::check)
            .geometry(|p: &RopeMultiParams| rotation_launch(p.seq_len, p.n_heads, p.head_dim))
            .text(TEXT, "")
            .flops(|p: &RopeMultiParams| 3.0 * f64::from(p.seq_len) * f64::from(p.n_heads) * f64::from(p.rope_dim))
            .input("x", dtype, "seq_len*n_heads head_dim")
            .input("positions", I32, "4 seq_len")
            .input("inv_freq", F32, "rope_dim/2")
            .output("out", dtype, "seq_len*n_heads head_dim")
            .may_alias(&["x"])
            .cpu(run)
            .tested(oracle::rope_multi, oracle::rope_multi_cases)
            .build()
    };
    dtypes.map(entry).into()
}

/// Rotates every head by the positions of several axes. `out` may be `x`.
///
/// Text gives all axes the same position. Interleaved sections can leave pairs to axis 3, where other implementations read axis 0: give
/// both the same positions to match them.
pub struct RopeMulti<'a> {
    /// `[seq_len, n_heads, head_dim]`, f32 or bf16.
    pub x: &'a Buffer,
    /// `[4, seq_len]` i32: time, height, width and a further axis, or row and column for vision towers.
    pub positions: &'a Buffer,
    /// `[rope_dim / 2]` f32, from [`multi_inv_freq`].
    pub inv_freq: &'a Buffer,
    /// Shape and dtype of `x`.
    pub out: &'a Buffer,
    /// How pairs are given to axes.
    pub mode: RopeMode,
    /// Pairs of each axis.
    pub sections: [u32; 4],
}

impl RopeMulti<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let (seq_len, n_heads, head_dim) = heads_of("rope_multi", self.x)?;
        let name = match self.x.dtype() {
            F32 => "rope_multi_f32",
            BF16 => "rope_multi_bf16",
            other => return Err(unsupported("rope_multi", "x", other, "f32 or bf16")),
        };
        if self.positions.len() != 4 * seq_len as usize {
            let got = self.positions.shape();
            return Err(Error::invalid("rope_multi", format!("positions: got shape {got:?}, expected [4, {seq_len}]")));
        }
        let [section_0, section_1, section_2, section_3] = self.sections;
        let rope_dim = size("rope_multi", "inv_freq", 2 * self.inv_freq.len())?;
        let mode = self.mode.code();
        let params = RopeMultiParams { seq_len, n_heads, head_dim, rope_dim, mode, section_0, section_1, section_2, section_3 };
        encoder.launch(name, &[Some(self.x), Some(self.positions), Some(self.inv_freq), Some(self.out)], &params)
    }
}

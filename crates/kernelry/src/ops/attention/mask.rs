//! Additive attention masks: 0 where a key is attended, -inf where not.

use super::super::{size, unsupported};
use crate::backend::cpu::{CpuFn, attention as cpu};
use crate::catalogue::{Family, Geometry, Kernel, StepU32, Text};
use crate::conformance::attention::mask as oracle;
use crate::{Buffer, DType, Encoder, Error, Result, kernel_text};

const TEXT: Text = kernel_text!("attention/mask.h");

crate::params! {
    /// Parameters of the mask builder.
    pub struct AttentionMaskParams {
        /// queries
        q_len: u32,
        /// keys
        k_len: u32,
        /// 1 if a query attends no later key, else 0
        causal: u32,
        /// keys attended up to the query's own, that included; 0 for no limit
        window: u32,
        /// position of the first query
        q_offset: StepU32,
    }
}

/// Catalogue entries of the mask builder.
pub(super) fn kernels() -> Vec<Kernel> {
    let rows: [(&str, DType, CpuFn); 2] =
        [("attention_mask_f16", DType::F16, cpu::mask::<half::f16>), ("attention_mask_bf16", DType::BF16, cpu::mask::<half::bf16>)];
    let entry = |(name, dtype, run): (&'static str, DType, CpuFn)| {
        Kernel::builder(
            name,
            Family::Attention,
            "mask[i, k] = 0 if (k ≤ q or not causal) and (q − k < window or no window), else −inf; q = i + q_offset",
        )
        .params::<AttentionMaskParams>()
        .output("mask", dtype, "q_len k_len")
        .check(|p: &AttentionMaskParams| if p.causal > 1 { Err(format!("causal: got {}, expected 0 or 1", p.causal)) } else { Ok(()) })
        .class("exact", "bits of 0 or -inf")
        .geometry(|p: &AttentionMaskParams| Geometry::linear(p.q_len, p.k_len.next_power_of_two().clamp(32, 256)))
        .cpu(run)
        .text(TEXT, "")
        .tested(oracle::mask, oracle::mask_cases)
        .build()
    };
    rows.map(entry).into()
}

/// Builds the additive mask of a causal or windowed attention. One mask serves all heads and layers of its kind.
pub struct AttentionMask<'a> {
    /// `[q_len, k_len]`, f16 or bf16.
    pub mask: &'a Buffer,
    /// Position of the first query; the first key is at position 0.
    pub q_offset: StepU32,
    /// Whether a query attends no later key.
    pub causal: bool,
    /// Keys attended up to the query's own, that included; at least 1. It does not limit later keys.
    pub window: Option<u32>,
}

impl AttentionMask<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "attention_mask";
        let &[q_len, k_len] = self.mask.shape() else {
            return Err(Error::invalid(OP, format!("mask: got shape {:?}, expected two dimensions", self.mask.shape())));
        };
        if self.window == Some(0) {
            return Err(Error::invalid(OP, "window: got 0, expected at least 1"));
        }
        let name = match self.mask.dtype() {
            DType::F16 => "attention_mask_f16",
            DType::BF16 => "attention_mask_bf16",
            other => return Err(unsupported(OP, "mask", other, "f16 or bf16")),
        };
        let params = AttentionMaskParams {
            q_len: size(OP, "mask", q_len)?,
            k_len: size(OP, "mask", k_len)?,
            causal: u32::from(self.causal),
            window: self.window.unwrap_or(0),
            q_offset: self.q_offset,
        };
        encoder.launch(name, &[Some(self.mask)], &params)
    }
}

//! Gates, GELU, softcap and softmax.

use super::elementwise::map;
use super::{rows_and_cols, size, unsupported};
use crate::DType::{BF16, F16, F32};
use crate::backend::cpu::CpuFn;
use crate::backend::cpu::activation as cpu;
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder, Text};
use crate::conformance::activation as oracle;
use crate::{Buffer, DType, Encoder, Result, bf16, f16, kernel_text};

const TEXT: Text = kernel_text!("activation.h");
/// Softmax of rows, with scale and mask too.
pub(super) const SOFTMAX_TEXT: Text = kernel_text!("softmax.h");

crate::params! {
    /// Parameters of elementwise activations.
    pub struct ActivationParams {
        /// number of elements
        n: u32,
    }
}

crate::params! {
    /// Parameters of the softcap.
    pub struct SoftcapParams {
        /// number of elements
        n: u32,
        /// bound of the result, above 0
        cap: f32,
    }
}

crate::params! {
    /// Parameters of row softmax.
    pub struct SoftmaxParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        cols: u32,
    }
}

fn entry(name: &str, dtype: DType, summary: &'static str) -> KernelBuilder {
    let entry = Kernel::builder(name, Family::Activation, summary);
    match dtype {
        F32 => entry.class("f32", "|err| ≤ 1e-6 + 2e-6·|y|"),
        _ => entry.class("f32, one rounding when stored", "1 ulp of the rounded f64 result"),
    }
}

/// One group of threads a row of a softmax, with about eight elements a thread.
pub(super) fn softmax_rows(rows: u32, cols: u32) -> Geometry {
    Geometry::linear(rows, cols.div_ceil(8).clamp(64, 1024).next_power_of_two())
}

fn elementwise(name: &str, dtype: DType, summary: &'static str, flops: f64) -> KernelBuilder {
    entry(name, dtype, summary)
        .params::<ActivationParams>()
        .geometry(|p: &ActivationParams| map(p.n))
        .text(TEXT, "")
        .flops(move |p: &ActivationParams| flops * f64::from(p.n))
}

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut list = Vec::new();
    let sigmoid: [(&str, DType, CpuFn); 2] =
        [("sigmoid_mul_f32", F32, cpu::sigmoid_mul::<f32>), ("sigmoid_mul_bf16", BF16, cpu::sigmoid_mul::<bf16>)];
    for (name, dtype, run) in sigmoid {
        list.push(
            elementwise(name, dtype, "y = x · σ(gate)", 5.0)
                .input("x", dtype, "n")
                .input("gate", dtype, "n")
                .output("out", dtype, "n")
                .may_alias(&["x", "gate"])
                .cpu(run)
                .tested(oracle::gated, oracle::sigmoid_mul_cases)
                .build(),
        );
    }
    list.push(
        elementwise("silu_mul_f32", F32, "y = gate · σ(gate) · up", 6.0)
            .input("gate", F32, "n")
            .input("up", F32, "n")
            .output("out", F32, "n")
            .may_alias(&["gate", "up"])
            .cpu(cpu::silu_mul)
            .tested(oracle::gated, oracle::silu_mul_cases)
            .build(),
    );
    let gelu: [(&str, DType, CpuFn); 3] =
        [("gelu_f32", F32, cpu::gelu::<f32>), ("gelu_f16", F16, cpu::gelu::<f16>), ("gelu_bf16", BF16, cpu::gelu::<bf16>)];
    for (name, dtype, run) in gelu {
        list.push(
            elementwise(name, dtype, "y = x/2 · (1 + tanh(√(2/π)(x + 0.044715x³)))", 10.0)
                .input("x", dtype, "n")
                .output("out", dtype, "n")
                .may_alias(&["x"])
                .cpu(run)
                .tested(oracle::gelu, oracle::gelu_cases)
                .build(),
        );
    }
    let softcap: [(&str, DType, CpuFn); 3] = [
        ("softcap_f32", F32, cpu::softcap::<f32>),
        ("softcap_f16", F16, cpu::softcap::<f16>),
        ("softcap_bf16", BF16, cpu::softcap::<bf16>),
    ];
    for (name, dtype, run) in softcap {
        list.push(
            entry(name, dtype, "y = tanh(x / cap) · cap")
                .params::<SoftcapParams>()
                .check(|p: &SoftcapParams| {
                    if p.cap.is_finite() && p.cap > 0.0 {
                        Ok(())
                    } else {
                        Err(format!("cap: got {}, expected a finite value above 0", p.cap))
                    }
                })
                .geometry(|p: &SoftcapParams| map(p.n))
                .text(TEXT, "")
                .flops(|p: &SoftcapParams| 8.0 * f64::from(p.n))
                .input("x", dtype, "n")
                .output("out", dtype, "n")
                .may_alias(&["x"])
                .cpu(run)
                .tested(oracle::softcap, oracle::softcap_cases)
                .build(),
        );
    }
    let softmax: [(&str, DType, CpuFn); 3] = [
        ("softmax_f32", F32, cpu::softmax::<f32>),
        ("softmax_f16", F16, cpu::softmax::<f16>),
        ("softmax_bf16", BF16, cpu::softmax::<bf16>),
    ];
    for (name, dtype, run) in softmax {
        let bound = match dtype {
            F32 => "|err| ≤ 1e-6 and 1e-5·y",
            F16 => "|err| ≤ 6e-8 + 2⁻¹⁰·y",
            _ => "1 ulp of the rounded f64 result",
        };
        list.push(
            Kernel::builder(name, Family::Activation, "y = exp(x - max) / Σ exp(x - max) over rows")
                .class("f32, one rounding when stored", bound)
                .params::<SoftmaxParams>()
                .geometry(|p: &SoftmaxParams| softmax_rows(p.rows, p.cols))
                .text(SOFTMAX_TEXT, "")
                .flops(|p: &SoftmaxParams| 5.0 * f64::from(p.rows) * f64::from(p.cols))
                .input("x", dtype, "rows cols")
                .output("out", dtype, "rows cols")
                .may_alias(&["x"])
                .cpu(run)
                .tested(oracle::softmax, oracle::softmax_cases)
                .build(),
        );
    }
    list
}

/// Picks the name by dtype.
fn by_dtype(op: &str, dtype: DType, names: &[(DType, &'static str)]) -> Result<&'static str> {
    let expected = || names.iter().map(|(d, _)| d.name()).collect::<Vec<_>>().join(" or ");
    names.iter().find(|(d, _)| *d == dtype).map(|(_, n)| *n).ok_or_else(|| unsupported(op, "x", dtype, &expected()))
}

/// `out = x · σ(gate)`. `out` may be `x` or `gate`.
pub struct SigmoidMul<'a> {
    /// `[..]`, f32 or bf16.
    pub x: &'a Buffer,
    /// As many elements of the same dtype.
    pub gate: &'a Buffer,
    /// As many elements of the same dtype.
    pub out: &'a Buffer,
}

impl SigmoidMul<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let name = by_dtype("sigmoid_mul", self.x.dtype(), &[(F32, "sigmoid_mul_f32"), (BF16, "sigmoid_mul_bf16")])?;
        let n = size("sigmoid_mul", "x", self.x.len())?;
        encoder.launch(name, &[Some(self.x), Some(self.gate), Some(self.out)], &ActivationParams { n })
    }
}

/// `out = silu(gate) · up`: the activation of a gated feed-forward block. `out` may be `gate` or `up`.
pub struct SiluMul<'a> {
    /// `[..]` f32.
    pub gate: &'a Buffer,
    /// As many elements, f32.
    pub up: &'a Buffer,
    /// As many elements, f32.
    pub out: &'a Buffer,
}

impl SiluMul<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let n = size("silu_mul", "gate", self.gate.len())?;
        encoder.launch("silu_mul_f32", &[Some(self.gate), Some(self.up), Some(self.out)], &ActivationParams { n })
    }
}

/// `out = gelu(x)` in the tanh form. `out` may be `x`.
pub struct Gelu<'a> {
    /// `[..]`, f32, f16 or bf16.
    pub x: &'a Buffer,
    /// As many elements of the same dtype.
    pub out: &'a Buffer,
}

impl Gelu<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let name = by_dtype("gelu", self.x.dtype(), &[(F32, "gelu_f32"), (F16, "gelu_f16"), (BF16, "gelu_bf16")])?;
        let n = size("gelu", "x", self.x.len())?;
        encoder.launch(name, &[Some(self.x), Some(self.out)], &ActivationParams { n })
    }
}

/// `out = tanh(x / cap) · cap`. `out` may be `x`.
pub struct Softcap<'a> {
    /// `[..]`, f32, f16 or bf16.
    pub x: &'a Buffer,
    /// As many elements of the same dtype.
    pub out: &'a Buffer,
    /// Bound of the result; finite, above 0.
    pub cap: f32,
}

impl Softcap<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let name = by_dtype("softcap", self.x.dtype(), &[(F32, "softcap_f32"), (F16, "softcap_f16"), (BF16, "softcap_bf16")])?;
        let n = size("softcap", "x", self.x.len())?;
        encoder.launch(name, &[Some(self.x), Some(self.out)], &SoftcapParams { n, cap: self.cap })
    }
}

/// Softmax over the last dimension. `out` may be `x`. A row of nothing but -inf, or one with a NaN or +inf, gives NaN.
pub struct Softmax<'a> {
    /// `[rows, cols]`, f32, f16 or bf16.
    pub x: &'a Buffer,
    /// `[rows, cols]`, dtype of `x`.
    pub out: &'a Buffer,
}

impl Softmax<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let name = by_dtype("softmax", self.x.dtype(), &[(F32, "softmax_f32"), (F16, "softmax_f16"), (BF16, "softmax_bf16")])?;
        let (rows, cols) = rows_and_cols("softmax", "x", self.x)?;
        encoder.launch(name, &[Some(self.x), Some(self.out)], &SoftmaxParams { rows, cols })
    }
}

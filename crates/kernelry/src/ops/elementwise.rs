//! Sums, products and casts, element by element.

use super::{rows_and_cols, size, unsupported};
use crate::backend::cpu::{CpuFn, elementwise as cpu};
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder, Text};
use crate::conformance::elementwise as oracle;
use crate::{Buffer, DType, Encoder, Error, Result, kernel_text};

const TEXT: Text = kernel_text!("elementwise.h");

crate::params! {
    /// Parameters of kernels over `n` elements.
    pub struct ElementwiseParams {
        /// number of elements
        n: u32,
    }
}

crate::params! {
    /// Parameters of a product with a scalar.
    pub struct ScalarMulParams {
        /// number of elements
        n: u32,
        /// the factor, f32 whatever the elements are
        scalar: f32,
    }
}

crate::params! {
    /// Parameters of a sum of rows and a vector.
    pub struct AddBiasParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        cols: u32,
    }
}

/// Elements of a group of threads in `kernels/map.h`.
pub(super) const MAP_TILE: u32 = 2048;
/// Threads of a group there.
pub(super) const MAP_THREADS: u32 = 256;

/// Launch of an elementwise map of `n` elements.
pub(super) fn map(n: u32) -> Geometry {
    Geometry::linear(n.div_ceil(MAP_TILE), MAP_THREADS)
}

fn entry(name: &'static str, summary: &'static str) -> KernelBuilder {
    Kernel::builder(name, Family::Elementwise, summary)
        .params::<ElementwiseParams>()
        .class("exact", "computed in f32, rounded once")
        .flops(|p: &ElementwiseParams| f64::from(p.n))
        .geometry(|p: &ElementwiseParams| map(p.n))
        .text(TEXT, "")
}

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    use DType::{BF16, F16, F32};
    let mut list = Vec::new();
    let binary: [(&str, DType, CpuFn); 6] = [
        ("elementwise_add_f32", F32, cpu::add_f32),
        ("elementwise_add_f16", F16, cpu::add::<half::f16>),
        ("elementwise_add_bf16", BF16, cpu::add::<half::bf16>),
        ("elementwise_mul_f32", F32, cpu::mul_f32),
        ("elementwise_mul_f16", F16, cpu::mul::<half::f16>),
        ("elementwise_mul_bf16", BF16, cpu::mul::<half::bf16>),
    ];
    for (name, dtype, run) in binary {
        let summary = if name.contains("_add_") { "out = a + b" } else { "out = a · b" };
        let entry = entry(name, summary).input("a", dtype, "n").input("b", dtype, "n").output("out", dtype, "n").may_alias(&["a", "b"]);
        list.push(entry.cpu(run).tested(oracle::binary, oracle::binary_cases).build());
    }
    let casts: [(&str, DType, DType, CpuFn); 4] = [
        ("cast_f16_to_f32", F16, F32, cpu::widen::<half::f16>),
        ("cast_bf16_to_f32", BF16, F32, cpu::widen::<half::bf16>),
        ("cast_f32_to_f16", F32, F16, cpu::narrow::<half::f16>),
        ("cast_f32_to_bf16", F32, BF16, cpu::narrow::<half::bf16>),
    ];
    for (name, from, to, run) in casts {
        let entry = entry(name, "out = x in another dtype").input("x", from, "n").output("out", to, "n");
        list.push(entry.cpu(run).tested(oracle::cast, oracle::cast_cases).build());
    }
    for (name, dtype, run) in
        [("scalar_mul_f32", F32, cpu::scalar_mul_f32 as CpuFn), ("scalar_mul_bf16", BF16, cpu::scalar_mul::<half::bf16>)]
    {
        let entry = Kernel::builder(name, Family::Elementwise, "out = x · scalar")
            .params::<ScalarMulParams>()
            .input("x", dtype, "n")
            .output("out", dtype, "n")
            .may_alias(&["x"])
            .check(
                |p: &ScalarMulParams| {
                    if p.scalar.is_finite() { Ok(()) } else { Err(format!("scalar: got {}, expected a finite value", p.scalar)) }
                },
            )
            .class("exact", "computed in f32, rounded once")
            .flops(|p: &ScalarMulParams| f64::from(p.n))
            .geometry(|p: &ScalarMulParams| map(p.n))
            .text(TEXT, "");
        list.push(entry.cpu(run).tested(oracle::scalar_mul, oracle::scalar_mul_cases).build());
    }
    let bias = Kernel::builder("add_bias_f32", Family::Elementwise, "out[r, c] = x[r, c] + bias[c]")
        .params::<AddBiasParams>()
        .input("x", F32, "rows cols")
        .input("bias", F32, "cols")
        .output("out", F32, "rows cols")
        .may_alias(&["x"])
        .class("exact", "rounded once")
        .flops(|p: &AddBiasParams| f64::from(p.rows) * f64::from(p.cols))
        .geometry(|p: &AddBiasParams| Geometry::linear(p.rows.saturating_mul(p.cols.div_ceil(MAP_TILE)), MAP_THREADS))
        .text(TEXT, "");
    list.push(bias.cpu(cpu::add_bias).tested(oracle::add_bias, oracle::add_bias_cases).build());
    list
}

/// The kernel of that operation for elements of `dtype`.
fn named(op: &str, dtype: DType, names: [(DType, &'static str); 3]) -> Result<&'static str> {
    let found = names.iter().find(|(d, _)| *d == dtype).map(|(_, name)| *name);
    found.ok_or_else(|| unsupported(op, "a", dtype, "f32, f16 or bf16"))
}

/// All three have one number of elements.
fn same_len(op: &str, a: &Buffer, others: [(&str, &Buffer); 2]) -> Result<u32> {
    for (what, buffer) in others {
        if buffer.len() != a.len() {
            return Err(Error::invalid(op, format!("{what}: got {} elements, expected {}", buffer.len(), a.len())));
        }
    }
    size(op, "a", a.len())
}

/// `out = a + b`. `out` may be `a` or `b`.
pub struct Add<'a> {
    /// f32, f16 or bf16.
    pub a: &'a Buffer,
    /// As many elements as `a`, of its dtype.
    pub b: &'a Buffer,
    /// As many elements as `a`, of its dtype.
    pub out: &'a Buffer,
}

impl Add<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        use DType::{BF16, F16, F32};
        let names = [(F32, "elementwise_add_f32"), (F16, "elementwise_add_f16"), (BF16, "elementwise_add_bf16")];
        let name = named("add", self.a.dtype(), names)?;
        let n = same_len("add", self.a, [("b", self.b), ("out", self.out)])?;
        encoder.launch(name, &[Some(self.a), Some(self.b), Some(self.out)], &ElementwiseParams { n })
    }
}

/// `out = a · b`, element by element. `out` may be `a` or `b`.
pub struct Mul<'a> {
    /// f32, f16 or bf16.
    pub a: &'a Buffer,
    /// As many elements as `a`, of its dtype.
    pub b: &'a Buffer,
    /// As many elements as `a`, of its dtype.
    pub out: &'a Buffer,
}

impl Mul<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        use DType::{BF16, F16, F32};
        let names = [(F32, "elementwise_mul_f32"), (F16, "elementwise_mul_f16"), (BF16, "elementwise_mul_bf16")];
        let name = named("mul", self.a.dtype(), names)?;
        let n = same_len("mul", self.a, [("b", self.b), ("out", self.out)])?;
        encoder.launch(name, &[Some(self.a), Some(self.b), Some(self.out)], &ElementwiseParams { n })
    }
}

/// `out = x · scalar`. `out` may be `x`.
pub struct ScalarMul<'a> {
    /// f32 or bf16.
    pub x: &'a Buffer,
    /// As many elements as `x`, of its dtype.
    pub out: &'a Buffer,
    /// Finite. Stays f32 for bf16 elements.
    pub scalar: f32,
}

impl ScalarMul<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "scalar_mul";
        let name = match self.x.dtype() {
            DType::F32 => "scalar_mul_f32",
            DType::BF16 => "scalar_mul_bf16",
            other => return Err(unsupported(OP, "x", other, "f32 or bf16")),
        };
        let n = same_len(OP, self.x, [("out", self.out), ("out", self.out)])?;
        encoder.launch(name, &[Some(self.x), Some(self.out)], &ScalarMulParams { n, scalar: self.scalar })
    }
}

/// Converts between f32 and a 16-bit dtype; narrowing rounds to nearest even.
pub struct Cast<'a> {
    /// f32, f16 or bf16.
    pub x: &'a Buffer,
    /// As many elements as `x`: f16 or bf16 for f32, and f32 for the others.
    pub out: &'a Buffer,
}

impl Cast<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        const OP: &str = "cast";
        let name = match (self.x.dtype(), self.out.dtype()) {
            (DType::F16, DType::F32) => "cast_f16_to_f32",
            (DType::BF16, DType::F32) => "cast_bf16_to_f32",
            (DType::F32, DType::F16) => "cast_f32_to_f16",
            (DType::F32, DType::BF16) => "cast_f32_to_bf16",
            (DType::F32, other) => return Err(unsupported(OP, "out", other, "f16 or bf16")),
            (DType::F16 | DType::BF16, other) => return Err(unsupported(OP, "out", other, "f32")),
            (other, _) => return Err(unsupported(OP, "x", other, "f32, f16 or bf16")),
        };
        let n = same_len(OP, self.x, [("out", self.out), ("out", self.out)])?;
        encoder.launch(name, &[Some(self.x), Some(self.out)], &ElementwiseParams { n })
    }
}

/// `out[r, c] = x[r, c] + bias[c]`. `out` may be `x`.
pub struct AddBias<'a> {
    /// `[rows, cols]`, f32; leading dimensions count as rows.
    pub x: &'a Buffer,
    /// `[cols]`, f32.
    pub bias: &'a Buffer,
    /// Shape of `x`, f32.
    pub out: &'a Buffer,
}

impl AddBias<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let cols = size("add_bias", "bias", self.bias.len())?;
        let (rows, x_cols) = rows_and_cols("add_bias", "x", self.x)?;
        if x_cols != cols {
            return Err(Error::invalid("add_bias", format!("bias: got {cols} elements, expected {x_cols}")));
        }
        encoder.launch("add_bias_f32", &[Some(self.x), Some(self.bias), Some(self.out)], &AddBiasParams { rows, cols })
    }
}

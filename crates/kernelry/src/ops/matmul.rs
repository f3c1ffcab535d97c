//! Products with weights that are not quantised, `Y = X · Wᵀ`.

use crate::backend::cpu::CpuFn;
use crate::backend::cpu::dense::kernels as cpu;
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder, Text};
use crate::conformance::matmul as oracle;
use crate::{Buffer, DType, Encoder, Error, Result, kernel_text};

use super::quantized::MulMmParams;
use super::size;

crate::params! {
    /// Parameters of the batched products: `batch` inputs over `weights` matrices, consecutive inputs sharing one.
    pub struct BatchedMatmulParams {
        /// rows of an input
        m: u32,
        /// weight rows, the outputs of an input row
        n: u32,
        /// length of a row
        k: u32,
        /// inputs
        batch: u32,
        /// weight matrices, a divisor of batch
        weights: u32,
    }
}

crate::params! {
    /// Parameters of the products of one input with one matrix.
    pub struct MatmulParams {
        /// rows of the input
        m: u32,
        /// weight rows, the outputs of an input row
        n: u32,
        /// length of a row
        k: u32,
    }
}

/// Many rows of 16-bit values on the matrix unit, many rows in f32, and few rows.
const MM: Text = kernel_text!("matmul/dense_mm.h");
const MM_F32: Text = kernel_text!("matmul/dense_f32.h");
const MV: Text = kernel_text!("matmul/dense_mv.h");

const BATCHED: &str = "y[b,m,n] = Σ_k x[b,m,k] · w[b/g,n,k], g = batch / weights";
const SINGLE: &str = "y[m,n] = Σ_k x[m,k] · w[n,k]";
const F32_BOUND: &str = "|err| ≤ (8 + √k)·2⁻²²·Σ|x·w|";
const F16_BOUND: &str = "|err| ≤ (8 + √k)·2⁻²²·Σ|x·w| + 1 ulp";

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    use DType::{BF16, F16, F32};
    let mut list = Vec::new();
    let many: [(_, _, _, CpuFn); 5] = [
        ("hf2q_dense_mm_bf16_f32_tensor", BF16, "bf16 weights, activations rounded to bf16, f32 sums", cpu::dense_mm_bf16_rounded),
        (
            "hf2q_dense_mm_bf16_f32_tensor_v2",
            BF16,
            "bf16 weights, activations f32 or rounded to no less than bf16, f32 sums",
            cpu::dense_mm_bf16,
        ),
        ("hf2q_dense_mm_f16_f32_tensor", F16, "f16 weights, activations rounded to f16, f32 sums", cpu::dense_mm_f16_rounded),
        ("hf2q_dense_mm_f32_f32_tensor", F32, "f32, never less", cpu::dense_mm_f32),
        ("hf2q_dense_gemv_bf16_f32_4", BF16, "bf16 weights, f32 activations, f32 sums", cpu::gemv_bf16),
    ];
    for (name, weight, class, run) in many {
        let bound = if name.ends_with("_v2") { "|err| ≤ 4·2⁻⁸·√k·rms(x)·rms(w)" } else { F32_BOUND };
        list.push(batched(name, weight, class, bound, run));
    }
    let one: [(_, _, _, _, CpuFn); 5] = [
        ("dense_gemm_f16", F16, F16, "f16, f32 sums, result rounded once", cpu::gemm_f16),
        ("dense_matvec_f16", F16, F16, "f16, f32 sums, result rounded once", cpu::gemm_f16),
        ("dense_matvec_f16w_f32io", F32, F16, "f16 weights, f32 activations, f32 sums", cpu::matvec_f16),
        ("dense_matvec_bf16w_f32io", F32, BF16, "bf16 weights, f32 activations, f32 sums", cpu::matvec_bf16),
        ("dense_matvec_f32", F32, F32, "f32", cpu::matvec_f32),
    ];
    for (name, x, weight, class, run) in one {
        list.push(single(name, x, weight, class, run));
    }
    list
}

fn batched(name: &str, weight: DType, class: &'static str, bound: &'static str, run: CpuFn) -> Kernel {
    let entry = Kernel::builder(name, Family::Matmul, BATCHED)
        .params::<BatchedMatmulParams>()
        .input("weight", weight, "weights n k")
        .input("x", DType::F32, "batch m k")
        .output("out", DType::F32, "batch m n")
        .check(|p: &BatchedMatmulParams| {
            if p.weights > 0 && p.batch.is_multiple_of(p.weights) {
                Ok(())
            } else {
                Err(format!("weights: got {}, expected a divisor of batch = {}", p.weights, p.batch))
            }
        })
        .class(class, bound)
        .flops(|p: &BatchedMatmulParams| flops(p.m, p.n, p.k) * f64::from(p.batch));
    let entry = if name.contains("gemv") {
        entry.text(MV, "").geometry(|p: &BatchedMatmulParams| few_rows(p.n, p.m.div_ceil(4).saturating_mul(p.batch)))
    } else if weight == DType::F32 {
        entry.text(MM_F32, "").geometry(|p: &BatchedMatmulParams| tiles(p.n, p.m.div_ceil(64).saturating_mul(p.batch)))
    } else {
        entry
            .text(MM, "")
            .geometry(|p: &BatchedMatmulParams| tiles(p.n, row_tiles(p.m).saturating_mul(p.batch)))
            .scratch_bytes(|p: &BatchedMatmulParams| prepared(p.m, p.n, p.k, p.batch, true))
    };
    entry.cpu(run).tested(oracle::batched, oracle::batched_cases).build()
}

fn single(name: &str, x: DType, weight: DType, class: &'static str, run: CpuFn) -> Kernel {
    let bound = if x == DType::F16 { F16_BOUND } else { F32_BOUND };
    let entry = Kernel::builder(name, Family::Matmul, SINGLE)
        .params::<MatmulParams>()
        .input("weight", weight, "n k")
        .input("x", x, "m k")
        .output("out", x, "m n")
        .class(class, bound)
        .flops(|p: &MatmulParams| flops(p.m, p.n, p.k));
    let entry = if name.contains("matvec") {
        one_row(entry)
    } else {
        entry
            .text(MM, "")
            .geometry(|p: &MatmulParams| tiles(p.n, row_tiles(p.m)))
            .scratch_bytes(|p: &MatmulParams| prepared(p.m, p.n, p.k, 1, false))
    };
    entry.cpu(run).tested(oracle::single, oracle::single_cases).build()
}

fn one_row(entry: KernelBuilder) -> KernelBuilder {
    entry
        .check(|p: &MatmulParams| if p.m == 1 { Ok(()) } else { Err(format!("m: got {}, expected 1", p.m)) })
        .text(MV, "")
        .geometry(|p: &MatmulParams| few_rows(p.n, 1))
}

/// Tiles of 128 outputs, a block each.
fn tiles(n: u32, row_tiles: u32) -> Geometry {
    Geometry { groups: [n.div_ceil(128), row_tiles.min(65_535), 1], threads: [256, 1, 1] }
}

/// Tiles of 32 input rows, of 128 where there are more than 64.
fn row_tiles(m: u32) -> u32 {
    m.div_ceil(if m <= 64 { 32 } else { 128 })
}

/// Bytes in which the path of `dense_wgmma.h` prepares its operands, as its text lays them out: a head, sums of parts where there are few tiles, and
/// where inputs are rounded those in 16 bits, by tiles of 128 rows, and a factor for each row. None where it does not take the sizes, or
/// where few rows are better off with small tiles.
pub(super) fn prepared(m: u32, n: u32, k: u32, batch: u32, rounded: bool) -> f64 {
    const HEAD: f64 = 1024.0;
    const FEW: f64 = 96.0;
    const PART: f64 = 65_536.0;
    if m <= 64 || !k.is_multiple_of(64) {
        return 0.0;
    }
    let tiles = f64::from(m.div_ceil(128)) * f64::from(batch);
    let parts = if tiles * f64::from(n.div_ceil(128)) <= FEW { 2.0 * FEW * PART } else { 0.0 };
    let inputs = if rounded { tiles * 128.0 * (2.0 * f64::from(k) + 4.0) } else { 0.0 };
    HEAD + parts + inputs
}

/// Eight outputs a block.
fn few_rows(n: u32, passes: u32) -> Geometry {
    Geometry { groups: [n.div_ceil(8), passes.min(65_535), 1], threads: [128, 1, 1] }
}

fn flops(m: u32, n: u32, k: u32) -> f64 {
    2.0 * f64::from(m) * f64::from(n) * f64::from(k)
}

/// `y[b, m, n] = Σ_k x[b, m, k] · w[b / g, n, k]`: batches of rows times one matrix each, consecutive batches sharing one where there
/// are fewer matrices (grouped-query attention). Activations keep at least 10 bits of mantissa (bf16: 7), which a CPU does
/// not make use of.
pub struct DenseMatmul<'a> {
    /// `[n, k]` or `[weights, n, k]`: f32, f16 or bf16.
    pub weight: &'a Buffer,
    /// `[m, k]` or `[batch, m, k]`, f32.
    pub x: &'a Buffer,
    /// `[m, n]` or `[batch, m, n]`, f32.
    pub out: &'a Buffer,
}

impl DenseMatmul<'_> {
    /// Records the launch.
    ///
    /// # Errors
    /// See [`crate::ops`].
    pub fn encode(&self, encoder: &mut Encoder) -> Result<()> {
        let op = "dense_matmul";
        let [weights, n, k] = matrices(op, "weight", self.weight)?;
        let [batch, m, x_k] = matrices(op, "x", self.x)?;
        if x_k != k {
            return Err(Error::invalid(op, format!("x: got rows of {x_k}, expected {k}")));
        }
        let args = [Some(self.weight), Some(self.x), Some(self.out)];
        let name = match (self.weight.dtype(), m * batch) {
            (DType::F32, 1) => "dense_matvec_f32",
            (DType::F16, 1) => "dense_matvec_f16w_f32io",
            (DType::BF16, 1) => "dense_matvec_bf16w_f32io",
            (DType::F32, _) => "hf2q_dense_mm_f32_f32_tensor",
            (DType::F16, _) => "hf2q_mul_mm_tensor_v2_f16",
            (DType::BF16, _) if m <= 8 => "hf2q_dense_gemv_bf16_f32_4",
            (DType::BF16, _) => "hf2q_dense_mm_bf16_f32_tensor_v2",
            (other, _) => return Err(super::unsupported(op, "weight", other, "f32, f16 or bf16")),
        };
        let n32 = |what: &str, v: usize| size(op, what, v);
        let (m, n, k, batch, weights) = (n32("x", m)?, n32("weight", n)?, n32("weight", k)?, n32("x", batch)?, n32("weight", weights)?);
        if name.contains("matvec") {
            return encoder.launch(name, &args, &MatmulParams { m, n, k });
        }
        if self.weight.dtype() == DType::F16 {
            let shared = batch / weights.max(1);
            return encoder.launch(name, &args, &MulMmParams { ne12: batch, ne02: weights, r2: shared, ..MulMmParams::single(m, n, k) });
        }
        encoder.launch(name, &args, &BatchedMatmulParams { m, n, k, batch, weights })
    }
}

/// A buffer as a stack of matrices.
fn matrices(op: &str, what: &str, buffer: &Buffer) -> Result<[usize; 3]> {
    match *buffer.shape() {
        [k] => Ok([1, 1, k]),
        [m, k] => Ok([1, m, k]),
        [b, m, k] => Ok([b, m, k]),
        _ => Err(Error::invalid(op, format!("{what}: got shape {:?}, expected at most 3 dimensions", buffer.shape()))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::prepared;
    use crate::catalogue;

    #[test]
    fn memory_is_given_where_the_text_takes_it_and_as_it_lays_it_out() {
        let text = catalogue::find("hf2q_dense_mm_bf16_f32_tensor").unwrap().gpu_text().unwrap();
        for line in ["#define DENSE_PARTS 1024u\n", "#define DENSE_FEW 96u\n", "#define DENSE_PART_BYTES 65536u\n"] {
            assert!(text.contains(line), "{line}");
        }
        assert_eq!(prepared(64, 4096, 4096, 1, true), 0.0);
        assert_eq!(prepared(512, 4096, 4100, 1, true), 0.0);
        // 3 x 32 tiles are few, and one more is not.
        let rows = 3.0 * 128.0;
        assert_eq!(prepared(257, 4096, 64, 1, true), 1024.0 + 192.0 * 65_536.0 + rows * 132.0);
        assert_eq!(prepared(257, 4097, 64, 1, true), 1024.0 + rows * 132.0);
        assert_eq!(prepared(65, 4097, 64, 3, false), 1024.0);
    }
}

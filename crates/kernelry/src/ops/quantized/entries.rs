//! Catalogue entries of the family, made from the table of formats.

use super::{DequantParams, FORMATS, Format, MulMmParams, MulMvExtParams, MulMvParams, Perm021Params};
use crate::DType;
use crate::backend::cpu::dense::kernels::mul_mm_f16;
use crate::catalogue::{Family, Geometry, Kernel, KernelBuilder, Text};
use crate::conformance::quantized as oracle;
use crate::kernel_text;
use crate::ops::matmul::prepared;
use crate::registry::ConstantType;

pub(super) const MUL_MV: Text = kernel_text!("quantized/mul_mv.h");
const MUL_MM: Text = kernel_text!("quantized/mul_mm.h");
const TO_F16: Text = kernel_text!("quantized/to_f16.h");

const PRODUCT: &str = "y[m,n] = Σ_k x[m,k] · w[n,k]";
/// Numerical class and error bound.
pub(super) type Class = (&'static str, &'static str);

pub(super) const PRODUCT_FAST: Class = (
    "F32: exact weights, f32 activations, f32 sums; A8 in math mode fast: activations rounded to 8 bits per block",
    "|err| ≤ 5e-6·Σ|x|·A, A the largest magnitude of a code in its block; fast: plus Σ|w|·max|x_block|/254",
);
pub(super) const W16: Class = (
    "W16: weights at least as exact as f16, f32 activations, f32 sums; A8 in math mode fast",
    "between the product of exact and of f16-rounded weights, |err| ≤ 2e-5·Σ|x|·A; fast: plus Σ|w|·max|x_block|/254",
);
pub(super) const W16A16: Class = (
    "W16A16: weights and activations at least as exact as f16, f32 sums; A8 in math mode fast",
    "between the product of exact and of f16-rounded operands, |err| ≤ 2e-5·Σ|x|·A; fast: plus Σ|w|·max|x_block|/254",
);
const W16A32: Class = (
    "W16A32r: weights at least as exact as f16, activations f32 or rounded to 10 mantissa bits or more, f32 sums; A8 in math mode fast",
    "between the product of exact and of f16-rounded weights, |err| ≤ (2⁻¹⁰ + 2e-5)·Σ|x|·A; fast: plus Σ|w|·max|x_block|/254",
);
const F16_A32: Class =
    ("W16A32r: f16 weights, activations f32 or rounded to 10 mantissa bits or more, f32 sums", "|err| ≤ (2⁻¹⁰ + 2e-5)·Σ|x·w|");

/// The largest extent of a launch grid in y and z.
const GRID_YZ: u32 = 65_535;

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut list = Vec::new();
    for format in FORMATS {
        list.push(mat_vec(format, ""));
        if format.nr2 {
            list.push(mat_vec(format, "_nr2"));
        }
        list.extend((2..=5).map(|r1| small_batch(format, r1)));
        list.push(mat_mat(format, "", W16));
        list.push(mat_mat(format, "_tensor", W16A16));
        list.push(mat_mat(format, "_tensor_v2", W16A32));
        list.push(dequant(format));
    }
    list.push(f16_mat_mat());
    list.extend(FORMATS.iter().filter(|f| ["q4_0", "q8_0", "q6_K"].contains(&f.suffix)).map(|f| head_major(Some(f))));
    list.push(head_major(None));
    list.extend(super::fused::kernels());
    list.extend(super::experts::kernels());
    list
}

/// Batches divide evenly over weights.
fn check_batch(ne12: u32, ne13: u32, ne02: u32, r2: u32, r3: u32) -> Result<(), String> {
    if r2 == 0 || u64::from(ne02) * u64::from(r2) != u64::from(ne12) {
        return Err(format!("r2: got {r2}, expected ne12 / ne02 = {ne12} / {ne02} without remainder"));
    }
    if r3 == 0 || !ne13.is_multiple_of(r3) {
        return Err(format!("r3: got {r3}, expected a divisor of ne13 = {ne13}"));
    }
    Ok(())
}

fn mat_vec(format: &'static Format, variant: &str) -> Kernel {
    let name = format!("kernel_mul_mv_{}_f32{variant}", format.suffix);
    let lines = if variant.is_empty() { format.instances.mul_mv } else { format.instances.mul_mv_nr2 };
    Kernel::builder(name, Family::Quantized, PRODUCT)
        .params::<MulMvParams>()
        .input("weight", DType::U8, format.stack)
        .input("x", DType::F32, "ne12*ne13 m k")
        .output("out", DType::F32, "ne12*ne13 m n")
        .check(move |p: &MulMvParams| format.check_k(p.k))
        .check(|p: &MulMvParams| check_batch(p.ne12, p.ne13, p.ne02, p.r2, p.r3))
        .constant(700, "ne12", ConstantType::I32, None)
        .constant(701, "r2", ConstantType::I32, None)
        .constant(702, "r3", ConstantType::I32, None)
        .class(PRODUCT_FAST.0, PRODUCT_FAST.1)
        .fast_math()
        .flops(|p: &MulMvParams| product_flops(p.m, p.n, p.k) * f64::from(p.ne12) * f64::from(p.ne13))
        .text(MUL_MV, lines)
        .geometry(|p: &MulMvParams| few_rows(p.n, p.m.div_ceil(2).saturating_mul(p.ne12).saturating_mul(p.ne13)))
        .cpu(format.cpu.mul_mv)
        .tested(oracle::mul_mv, oracle::mul_mv_cases)
        .build()
}

/// 16 weight rows a group of two warps.
pub(super) fn few_rows(n: u32, passes: u32) -> Geometry {
    Geometry { groups: [n.div_ceil(16), passes.min(GRID_YZ), 1], threads: [64, 1, 1] }
}

fn small_batch(format: &'static Format, r1: u32) -> Kernel {
    let name = format!("kernel_mul_mv_ext_{}_f32_r1_{r1}", format.suffix);
    Kernel::builder(name, Family::Quantized, PRODUCT)
        .params::<MulMvExtParams>()
        .input("weight", DType::U8, format.matrix)
        .input("x", DType::F32, "batch m k")
        .output("out", DType::F32, "batch m n")
        .check(move |p: &MulMvExtParams| format.check_k(p.k))
        .check(|p: &MulMvExtParams| if (2..=8).contains(&p.m) { Ok(()) } else { Err(format!("m: got {}, expected 2 to 8", p.m)) })
        .constant(600, "nsg", ConstantType::I32, None)
        .constant(601, "nxpsg", ConstantType::I32, None)
        .class(PRODUCT_FAST.0, PRODUCT_FAST.1)
        .fast_math()
        .flops(|p: &MulMvExtParams| product_flops(p.m, p.n, p.k) * f64::from(p.batch))
        .text(MUL_MV, format.instances.mul_mv_ext.get(r1 as usize - 2).copied().unwrap_or_default())
        // Two for 16 weight rows: some devices halve k between them.
        .geometry(|p: &MulMvExtParams| {
            let Geometry { groups: [x, y, z], threads } = few_rows(p.n, p.batch);
            Geometry { groups: [x.saturating_mul(2), y, z], threads }
        })
        .cpu(format.cpu.mul_mv_ext)
        .tested(oracle::mul_mv_ext, oracle::mul_mv_ext_cases)
        .build()
}

fn mat_mat(format: &'static Format, variant: &str, class: Class) -> Kernel {
    let lines = match variant {
        "_tensor" => format.instances.mul_mm_tensor,
        "_tensor_v2" => format.instances.mul_mm_tensor_v2,
        _ => format.instances.mul_mm,
    };
    tiled(&format!("kernel_mul_mm_{}{variant}_f32", format.suffix), DType::U8, format.stack)
        .text(MUL_MM, lines)
        .check(move |p: &MulMmParams| format.check_k(p.k))
        .class(class.0, class.1)
        .fast_math()
        .cpu(format.cpu.mul_mm)
        .tested(oracle::mul_mm, oracle::mul_mm_cases)
        .build()
}

/// `format` is `None` for f16 weights.
fn head_major(format: Option<&'static Format>) -> Kernel {
    let (suffix, dtype, shape) = match format {
        Some(f) => (f.suffix, DType::U8, f.head_major),
        None => ("f16", DType::F16, "n n_heads*head_dim"),
    };
    let name = format!("kernel_mul_mm_{suffix}_tensor_bf16_perm021");
    Kernel::builder(name, Family::Quantized, "y[b,m,n] = Σ_h,d x[b,h,m,d] · w[n, h·head_dim + d]")
        .params::<Perm021Params>()
        .input("weight", dtype, shape)
        .input("x", DType::BF16, "batch n_heads m head_dim")
        .output("out", DType::F32, "batch m n")
        .check(|p: &Perm021Params| {
            let right = p.head_dim > 0 && p.head_dim.is_multiple_of(32);
            if right { Ok(()) } else { Err(format!("head_dim: got {}, expected a multiple of 32", p.head_dim)) }
        })
        .check(move |p: &Perm021Params| {
            let k = p.n_heads.checked_mul(p.head_dim).ok_or_else(|| "n_heads·head_dim: overflows".to_owned())?;
            format.map_or(Ok(()), |f| f.check_k(k))
        })
        .class(W16A16.0, W16A16.1)
        .flops(|p: &Perm021Params| product_flops(p.m, p.n, p.n_heads) * f64::from(p.head_dim) * f64::from(p.batch))
        .geometry(|p: &Perm021Params| tiles(p.m, p.n, p.batch))
        .build()
}

fn f16_mat_mat() -> Kernel {
    tiled("hf2q_mul_mm_tensor_v2_f16", DType::F16, "ne02*(ne13/r3) n k")
        .text(MUL_MM, "MUL_MM_F16(hf2q_mul_mm_tensor_v2_f16)")
        .scratch_bytes(|p: &MulMmParams| {
            let pieces = p.x_row_stride.is_multiple_of(4) && p.x_batch_stride.is_multiple_of(4);
            if pieces { prepared(p.m, p.n, p.k, p.ne12.saturating_mul(p.ne13), true) } else { 0.0 }
        })
        .class(F16_A32.0, F16_A32.1)
        .cpu(mul_mm_f16)
        .tested(oracle::mul_mm_f16, oracle::mul_mm_f16_cases)
        .build()
}

/// Tiles of 128 outputs by 32 input rows, 128 where there are more than 64.
fn tiles(m: u32, n: u32, batches: u32) -> Geometry {
    let rows = m.div_ceil(if m <= 64 { 32 } else { 128 });
    Geometry { groups: [n.div_ceil(128), rows.saturating_mul(batches).min(GRID_YZ), 1], threads: [256, 1, 1] }
}

/// A product of many rows with strided input.
fn tiled(name: &str, weight: DType, stack: &'static str) -> KernelBuilder {
    Kernel::builder(name, Family::Quantized, PRODUCT)
        .params::<MulMmParams>()
        .input("weight", weight, stack)
        .input("x", DType::F32, "(ne12*ne13-1)*x_batch_stride+(m-1)*x_row_stride+k")
        .output("out", DType::F32, "ne12*ne13 m n")
        .check(|p: &MulMmParams| check_batch(p.ne12, p.ne13, p.ne02, p.r2, p.r3))
        .check(check_strides)
        .flops(|p: &MulMmParams| product_flops(p.m, p.n, p.k) * f64::from(p.ne12) * f64::from(p.ne13))
        .geometry(|p: &MulMmParams| tiles(p.m, p.n, p.ne12.saturating_mul(p.ne13)))
}

/// Rows are packed, or start at multiples of 32 bytes.
fn check_strides(p: &MulMmParams) -> Result<(), String> {
    let k = u64::from(p.k);
    for (what, stride, packed) in [("x_row_stride", p.x_row_stride, k), ("x_batch_stride", p.x_batch_stride, u64::from(p.m) * k)] {
        if stride < k || (stride != packed && !stride.is_multiple_of(8)) {
            return Err(format!("{what}: got {stride}, expected {packed}, or at least k = {k} and a multiple of 8"));
        }
    }
    Ok(())
}

fn dequant(format: &'static Format) -> Kernel {
    Kernel::builder(format!("hf2q_dequant_{}_to_f16", format.suffix), Family::Quantized, "out[n,k] = f16(w[n,k])")
        .params::<DequantParams>()
        .input("weight", DType::U8, format.matrix)
        .output("out", DType::F16, "n k")
        .check(move |p: &DequantParams| format.check_k(p.k))
        .check(|p: &DequantParams| {
            let groups = u64::from(p.n) * u64::from(p.k) / 16;
            if groups <= u64::from(u32::MAX) { Ok(()) } else { Err(format!("n·k/16: got {groups}, expected at most {}", u32::MAX)) }
        })
        .class("exact f32 weight, rounded once", "exact")
        .text(TO_F16, format.instances.dequant)
        .geometry(|p: &DequantParams| {
            let groups = (u64::from(p.n) * u64::from(p.k) / 8).div_ceil(256);
            Geometry::linear(u32::try_from(groups).unwrap_or(u32::MAX), 256)
        })
        .cpu(format.cpu.dequant)
        .tested(oracle::dequant, oracle::dequant_cases)
        .build()
}

pub(super) fn product_flops(m: u32, n: u32, k: u32) -> f64 {
    2.0 * f64::from(m) * f64::from(n) * f64::from(k)
}

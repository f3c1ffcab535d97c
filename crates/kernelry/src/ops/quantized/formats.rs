//! The block formats that have kernels.

use crate::backend::cpu::quantized::kernels::CpuKernels;
use crate::quant::GgmlType;

/// A block format as kernel names and shapes need it.
pub(crate) struct Format {
    /// The type of tensors in this format.
    pub(crate) ty: GgmlType,
    /// Its part of kernel names.
    pub(crate) suffix: &'static str,
    /// Shape of a stack of matrices, over [`MulMvParams`](super::MulMvParams).
    pub(crate) stack: &'static str,
    /// Shape of one matrix.
    pub(crate) matrix: &'static str,
    /// Shape of the matrices one below the other, over [`MulMvNormParams`](super::MulMvNormParams).
    pub(crate) gated: &'static str,
    /// Shape of the matrices of all experts, over [`MulMvIdParams`](super::MulMvIdParams).
    pub(crate) experts: &'static str,
    /// Shape of one matrix over [`Perm021Params`](super::Perm021Params).
    pub(crate) head_major: &'static str,
    /// Whether a variant with two rows per group exists.
    pub(crate) nr2: bool,
    /// Native kernels.
    pub(crate) cpu: CpuKernels,
    /// Lines that make its kernels of the texts.
    pub(crate) instances: Instances,
}

/// Instance lines of the GPU texts, by name.
pub(crate) struct Instances {
    pub(crate) mul_mv: &'static str,
    pub(crate) mul_mv_nr2: &'static str,
    /// With 2 to 5 rows a pass.
    pub(crate) mul_mv_ext: [&'static str; 4],
    /// After a norm, and before an addition.
    pub(crate) mul_mv_fused: &'static str,
    pub(crate) mul_mm: &'static str,
    pub(crate) mul_mm_tensor: &'static str,
    pub(crate) mul_mm_tensor_v2: &'static str,
    pub(crate) dequant: &'static str,
}

/// One line: a macro of a text with a kernel name and the decoder of the format.
macro_rules! instance {
    ($macro:literal, $prefix:literal, $suffix:literal, $rest:literal, $ty:ident) => {
        concat!($macro, "(", $prefix, $suffix, $rest, ", Blk", stringify!($ty), ")")
    };
}

macro_rules! formats {
    ($($ty:ident, $suffix:literal, $len:literal, $bytes:literal, $nr2:literal;)*) => {
        &[$(Format {
            ty: GgmlType::$ty,
            suffix: $suffix,
            stack: concat!("ne02*(ne13/r3) n k/", $len, "*", $bytes),
            matrix: concat!("n k/", $len, "*", $bytes),
            gated: concat!("gates*n k/", $len, "*", $bytes),
            experts: concat!("(n_experts-1)*expert_stride+n*(k/", $len, "*", $bytes, ")"),
            head_major: concat!("n n_heads*head_dim/", $len, "*", $bytes),
            nr2: $nr2,
            cpu: CpuKernels::of::<{ GgmlType::$ty as u32 }>(),
            instances: Instances {
                mul_mv: instance!("MUL_MV", "kernel_mul_mv_", $suffix, "_f32", $ty),
                mul_mv_nr2: instance!("MUL_MV", "kernel_mul_mv_", $suffix, "_f32_nr2", $ty),
                mul_mv_ext: [
                    instance!("MUL_MV_EXT", "kernel_mul_mv_ext_", $suffix, "_f32_r1_2", $ty),
                    instance!("MUL_MV_EXT", "kernel_mul_mv_ext_", $suffix, "_f32_r1_3", $ty),
                    instance!("MUL_MV_EXT", "kernel_mul_mv_ext_", $suffix, "_f32_r1_4", $ty),
                    instance!("MUL_MV_EXT", "kernel_mul_mv_ext_", $suffix, "_f32_r1_5", $ty),
                ],
                mul_mv_fused: concat!(
                    "MUL_MV_FUSED(fused_norm_mul_mv_", $suffix, "_f32, fused_mul_mv_add_", $suffix, "_f32, Blk", stringify!($ty), ")"
                ),
                mul_mm: instance!("MUL_MM", "kernel_mul_mm_", $suffix, "_f32", $ty),
                mul_mm_tensor: instance!("MUL_MM_HALF", "kernel_mul_mm_", $suffix, "_tensor_f32", $ty),
                mul_mm_tensor_v2: instance!("MUL_MM_HALF", "kernel_mul_mm_", $suffix, "_tensor_v2_f32", $ty),
                dequant: instance!("DEQUANT", "hf2q_dequant_", $suffix, "_to_f16", $ty),
            },
        }),*]
    };
}

/// Type, name, values per block, bytes per block, whether it has a `_nr2` variant.
pub(crate) const FORMATS: &[Format] = formats! {
    Q4_0, "q4_0", 32, 18, false;
    Q8_0, "q8_0", 32, 34, true;
    Q5_1, "q5_1", 32, 24, false;
    IQ4_NL, "iq4_nl", 32, 18, false;
    Q4_K, "q4_K", 256, 144, false;
    Q5_K, "q5_K", 256, 176, false;
    Q6_K, "q6_K", 256, 210, true;
};

impl Format {
    /// The format of a tensor type, if products with it have kernels.
    pub(crate) fn of(ty: GgmlType) -> Option<&'static Format> {
        FORMATS.iter().find(|f| f.ty == ty)
    }

    /// Rows are whole blocks.
    pub(crate) fn check_k(&self, k: u32) -> Result<(), String> {
        let unit = self.ty.block_len();
        if (k as usize).is_multiple_of(unit) { Ok(()) } else { Err(format!("k: got {k}, expected a multiple of {unit}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_agree_with_the_table_of_types() {
        for f in FORMATS {
            assert_eq!(f.matrix, format!("n k/{}*{}", f.ty.block_len(), f.ty.block_bytes()));
            assert!(f.suffix.eq_ignore_ascii_case(f.ty.name()));
        }
    }
}

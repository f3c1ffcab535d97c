//! The table of GGML tensor types.

use std::fmt;

use crate::{Error, Result};

macro_rules! ggml_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $block_len:literal, $block_bytes:literal;)*) => {
        /// Storage type of a tensor in a GGUF file, as ggml numbers them.
        ///
        /// A type is a block of [`block_len`](GgmlType::block_len) consecutive values of one row in
        /// [`block_bytes`](GgmlType::block_bytes) bytes. All of them can be listed and read raw; which ones can be decoded or encoded
        /// is said by [`can_dequantize`](GgmlType::can_dequantize) and [`can_quantize`](GgmlType::can_quantize).
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u32)]
        pub enum GgmlType { $($(#[$doc])* $variant = $id,)* }

        impl GgmlType {
            /// Every type, by ascending id.
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$variant),*];

            /// The type of that id, as stored in a GGUF file.
            pub const fn from_id(id: u32) -> Option<GgmlType> {
                match id { $($id => Some(GgmlType::$variant),)* _ => None }
            }

            /// Name as ggml writes it, such as `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self { $(GgmlType::$variant => stringify!($variant),)* }
            }

            /// Values per block; a row is a whole number of blocks.
            pub const fn block_len(self) -> usize {
                match self { $(GgmlType::$variant => $block_len,)* }
            }

            /// Bytes per block.
            pub const fn block_bytes(self) -> usize {
                match self { $(GgmlType::$variant => $block_bytes,)* }
            }
        }
    };
}

ggml_types! {
    /// IEEE binary32.
    F32 = 0, 1, 4;
    /// IEEE binary16.
    F16 = 1, 1, 2;
    /// 4-bit codes, one scale per 32 values.
    Q4_0 = 2, 32, 18;
    /// 4-bit codes, scale and minimum per 32 values.
    Q4_1 = 3, 32, 20;
    /// 5-bit codes, one scale per 32 values.
    Q5_0 = 6, 32, 22;
    /// 5-bit codes, scale and minimum per 32 values.
    Q5_1 = 7, 32, 24;
    /// 8-bit codes, one scale per 32 values.
    Q8_0 = 8, 32, 34;
    /// 8-bit codes, scale and scaled sum per 32 values; a format of activations.
    Q8_1 = 9, 32, 36;
    /// 2-bit codes, 4-bit scale and minimum per 16 values, super-blocks of 256.
    Q2_K = 10, 256, 84;
    /// 3-bit codes, 6-bit scale per 16 values, super-blocks of 256.
    Q3_K = 11, 256, 110;
    /// 4-bit codes, 6-bit scale and minimum per 32 values, super-blocks of 256.
    Q4_K = 12, 256, 144;
    /// 5-bit codes, 6-bit scale and minimum per 32 values, super-blocks of 256.
    Q5_K = 13, 256, 176;
    /// 6-bit codes, 8-bit scale per 16 values, super-blocks of 256.
    Q6_K = 14, 256, 210;
    /// 8-bit codes, one f32 scale and sixteen partial sums per 256 values; a format of activations.
    Q8_K = 15, 256, 292;
    /// About 2 bits, lattice codebook.
    IQ2_XXS = 16, 256, 66;
    /// About 2.3 bits, lattice codebook.
    IQ2_XS = 17, 256, 74;
    /// About 3 bits, lattice codebook.
    IQ3_XXS = 18, 256, 98;
    /// About 1.6 bits, lattice codebook.
    IQ1_S = 19, 256, 50;
    /// 4-bit codes into a non-linear table, one scale per 32 values.
    IQ4_NL = 20, 32, 18;
    /// About 3.4 bits, lattice codebook.
    IQ3_S = 21, 256, 110;
    /// About 2.5 bits, lattice codebook.
    IQ2_S = 22, 256, 82;
    /// 4-bit codes into a non-linear table, 6-bit scale per 32 values, super-blocks of 256.
    IQ4_XS = 23, 256, 136;
    /// Signed byte.
    I8 = 24, 1, 1;
    /// Signed 16-bit integer.
    I16 = 25, 1, 2;
    /// Signed 32-bit integer.
    I32 = 26, 1, 4;
    /// Signed 64-bit integer.
    I64 = 27, 1, 8;
    /// IEEE binary64.
    F64 = 28, 1, 8;
    /// About 1.75 bits, lattice codebook.
    IQ1_M = 29, 256, 56;
    /// bfloat16.
    BF16 = 30, 1, 2;
    /// Ternary codes, five to a byte.
    TQ1_0 = 34, 256, 54;
    /// Ternary codes, four to a byte.
    TQ2_0 = 35, 256, 66;
    /// OCP microscaling FP4 (E2M1), one E8M0 scale per 32 values.
    MXFP4 = 39, 32, 17;
    /// FP4 (E2M1), one E4M3 scale per 16 values.
    NVFP4 = 40, 64, 36;
    /// 1-bit codes, one scale per 128 values.
    Q1_0 = 41, 128, 18;
}

impl GgmlType {
    /// Id as stored in a GGUF file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The type of that name, in any case: `q4_k` and `Q4_K` are the same.
    pub fn from_name(name: &str) -> Option<GgmlType> {
        GgmlType::ALL.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// Name of a type that ggml has withdrawn, for error texts: its id is never used again and its files cannot be read.
    pub const fn withdrawn(id: u32) -> Option<&'static str> {
        match id {
            4 => Some("Q4_2"),
            5 => Some("Q4_3"),
            31 => Some("Q4_0_4_4"),
            32 => Some("Q4_0_4_8"),
            33 => Some("Q4_0_8_8"),
            36 => Some("IQ4_NL_4_4"),
            37 => Some("IQ4_NL_4_8"),
            38 => Some("IQ4_NL_8_8"),
            _ => None,
        }
    }

    /// Whether several values share a block, so that a single value has no bytes of its own.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Average storage per value, in bits.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// Bytes of a row of `k` values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `k` is not a whole number of blocks, or the size overflows.
    pub fn row_bytes(self, k: usize) -> Result<usize> {
        if !k.is_multiple_of(self.block_len()) {
            return Err(Error::invalid(self.name(), format!("row length: got {k}, expected a multiple of {}", self.block_len())));
        }
        (k / self.block_len())
            .checked_mul(self.block_bytes())
            .ok_or_else(|| Error::invalid(self.name(), format!("row length: got {k}, expected a size that fits in memory")))
    }

    /// Values held by `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `bytes` is not a whole number of blocks, or the count overflows.
    pub fn elements_in(self, bytes: usize) -> Result<usize> {
        if !bytes.is_multiple_of(self.block_bytes()) {
            return Err(Error::invalid(self.name(), format!("bytes: got {bytes}, expected a multiple of {}", self.block_bytes())));
        }
        (bytes / self.block_bytes())
            .checked_mul(self.block_len())
            .ok_or_else(|| Error::invalid(self.name(), format!("bytes: got {bytes}, expected a count that fits in memory")))
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

//! Element types of buffers.

use std::fmt;

/// Element type of a [`Buffer`](crate::Buffer).
///
/// Quantised weights are stored as raw blocks with dtype [`DType::U8`]; which block format they hold is a property of the kernel
/// that reads them (see [`crate::quant`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// Unsigned byte; also the dtype of quantised blocks and boolean masks.
    U8,
    /// Signed byte.
    I8,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 32-bit integer: ids and rotary positions.
    U32,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer, host use only.
    I64,
    /// Unsigned 64-bit integer, host use only.
    U64,
}

impl DType {
    /// Every dtype, in declaration order.
    pub const ALL: [DType; 10] =
        [DType::F32, DType::F16, DType::BF16, DType::U8, DType::I8, DType::U16, DType::U32, DType::I32, DType::I64, DType::U64];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::U8 | DType::I8 => 1,
            DType::F16 | DType::BF16 | DType::U16 => 2,
            DType::F32 | DType::U32 | DType::I32 => 4,
            DType::I64 | DType::U64 => 8,
        }
    }

    /// Lower-case name, as in `f32`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U8 => "u8",
            DType::I8 => "i8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U64 => "u64",
        }
    }

    /// The dtype of that name.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that is the element of some [`DType`].
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The dtype whose elements have this representation.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($ty:ty => $dtype:ident),* $(,)?) => { $(impl Element for $ty { const DTYPE: DType = DType::$dtype; })* };
}
elements! {
    f32 => F32, half::f16 => F16, half::bf16 => BF16, u8 => U8, i8 => I8, u16 => U16, u32 => U32, i32 => I32, i64 => I64, u64 => U64,
}

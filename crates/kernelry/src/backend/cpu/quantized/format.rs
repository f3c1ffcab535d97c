//! The block formats as the vector units read them: codes of 256 values at a time, and the scales of their sub-blocks.

use crate::backend::cpu::simd::{Order, Simd};

/// A GGML block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    /// 32 values: scale, signed 4-bit codes.
    Q4_0,
    /// 32 values: scale, signed 8-bit codes.
    Q8_0,
    /// 32 values: scale and minimum, 5-bit codes.
    Q5_1,
    /// 32 values: scale, 4-bit indices into a fixed table.
    Iq4Nl,
    /// 256 values: 8 sub-blocks with 6-bit scales and minima, 4-bit codes.
    Q4K,
    /// 256 values: 8 sub-blocks with 6-bit scales and minima, 5-bit codes.
    Q5K,
    /// 256 values: 16 sub-blocks with 8-bit scales, signed 6-bit codes.
    Q6K,
}

impl Format {
    /// Every format.
    #[cfg(test)]
    pub(crate) const ALL: [Format; 7] = [Format::Q4_0, Format::Q8_0, Format::Q5_1, Format::Iq4Nl, Format::Q4K, Format::Q5K, Format::Q6K];

    /// Values in a block.
    pub(crate) const fn block_len(self) -> usize {
        match self {
            Format::Q4_0 | Format::Q8_0 | Format::Q5_1 | Format::Iq4Nl => 32,
            Format::Q4K | Format::Q5K | Format::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            Format::Q4_0 | Format::Iq4Nl => 18,
            Format::Q8_0 => 34,
            Format::Q5_1 => 24,
            Format::Q4K => 144,
            Format::Q5K => 176,
            Format::Q6K => 210,
        }
    }

    /// Bytes of a row of `k` values, which is a whole number of blocks.
    pub(crate) const fn row_bytes(self, k: usize) -> usize {
        k / self.block_len() * self.block_bytes()
    }
}

/// Runs `$body` with the type `$F` of the format `$format`.
macro_rules! with_format {
    ($format:expr, $F:ident => $body:expr) => {
        match $format {
            $crate::backend::cpu::quantized::format::Format::Q4_0 => {
                type $F = $crate::backend::cpu::quantized::format::Q4_0;
                $body
            }
            $crate::backend::cpu::quantized::format::Format::Q8_0 => {
                type $F = $crate::backend::cpu::quantized::format::Q8_0;
                $body
            }
            $crate::backend::cpu::quantized::format::Format::Q5_1 => {
                type $F = $crate::backend::cpu::quantized::format::Q5_1;
                $body
            }
            $crate::backend::cpu::quantized::format::Format::Iq4Nl => {
                type $F = $crate::backend::cpu::quantized::format::Iq4Nl;
                $body
            }
            $crate::backend::cpu::quantized::format::Format::Q4K => {
                type $F = $crate::backend::cpu::quantized::format::Q4K;
                $body
            }
            $crate::backend::cpu::quantized::format::Format::Q5K => {
                type $F = $crate::backend::cpu::quantized::format::Q5K;
                $body
            }
            $crate::backend::cpu::quantized::format::Format::Q6K => {
                type $F = $crate::backend::cpu::quantized::format::Q6K;
                $body
            }
        }
    };
}
pub(crate) use with_format;

/// Values that one step of a kernel takes: one block of the large formats, eight of the small ones.
pub(crate) const STEP: usize = 256;

/// How a format is read. A value is `scale · (code - zero)`, or `scale · code + minimum` for formats that have one.
pub(crate) trait Blocks: Copy + Send + Sync + 'static {
    /// The format.
    const FORMAT: Format;
    /// True if codes are signed bytes, which [`Blocks::codes`] gives with [`Simd::SIGNED_BIAS`] added; else they are at most 127.
    const SIGNED: bool = false;
    /// What is subtracted from unsigned codes.
    const ZERO: i32 = 0;
    /// True if sub-blocks have a minimum.
    const HAS_MIN: bool = false;
    /// Values that share a scale: 32, or 16 with `scales` giving those of values 0..128 and 128..256.
    const GROUP: usize = 32;
    /// Bytes of [`STEP`] values.
    const STEP_BYTES: usize = STEP / Self::FORMAT.block_len() * Self::FORMAT.block_bytes();

    /// What is to be subtracted from the codes that [`Blocks::codes`] gives.
    #[inline(always)]
    fn zero<S: Simd>() -> i32 {
        if Self::SIGNED { S::SIGNED_BIAS } else { Self::ZERO }
    }

    /// Codes `4 · LANES · c ..` of 256.
    ///
    /// # Safety
    /// [`Blocks::STEP_BYTES`] bytes can be read at `p`.
    unsafe fn codes<S: Simd>(s: S, p: *const u8, c: usize) -> S::B;

    /// Order of [`Blocks::raw`].
    #[inline(always)]
    fn order<S: Simd>() -> Order {
        Order::Natural
    }

    /// Vector `c` of the codes of 256 values, in the layout that is quickest to decode.
    ///
    /// # Safety
    /// As [`Blocks::codes`].
    #[inline(always)]
    unsafe fn raw<S: Simd>(s: S, p: *const u8, c: usize) -> S::B {
        // SAFETY: the caller's.
        unsafe { Self::codes(s, p, c) }
    }

    /// What [`Blocks::codes`] would give for what [`Blocks::raw`] gave, but for the order.
    #[inline(always)]
    fn bytes<S: Simd>(_s: S, raw: S::B) -> S::B {
        raw
    }

    /// What [`Blocks::value`] takes for what [`Blocks::raw`] gave.
    #[inline(always)]
    fn packed<S: Simd>(_s: S, raw: S::B) -> S::B {
        raw
    }

    /// Byte `i` of each lane's four as floats.
    #[inline(always)]
    fn value<S: Simd>(s: S, packed: S::B, i: usize) -> S::F {
        if Self::SIGNED { s.quarter::<true>(packed, i) } else { s.quarter::<false>(packed, i) }
    }

    /// What is to be subtracted from the floats of [`Blocks::value`].
    #[inline(always)]
    fn value_zero<S: Simd>() -> i32 {
        Self::zero::<S>()
    }

    /// Scales of the eight sub-blocks and their minima (zero if the format has none), or the scales of sixteen.
    ///
    /// # Safety
    /// As [`Blocks::codes`].
    unsafe fn scales<S: Simd>(s: S, p: *const u8) -> (S::H, S::H);
}

/// See [`Format::Q4_0`].
#[derive(Clone, Copy)]
pub(crate) struct Q4_0;
/// See [`Format::Q8_0`].
#[derive(Clone, Copy)]
pub(crate) struct Q8_0;
/// See [`Format::Q5_1`].
#[derive(Clone, Copy)]
pub(crate) struct Q5_1;
/// See [`Format::Iq4Nl`].
#[derive(Clone, Copy)]
pub(crate) struct Iq4Nl;
/// See [`Format::Q4K`].
#[derive(Clone, Copy)]
pub(crate) struct Q4K;
/// See [`Format::Q5K`].
#[derive(Clone, Copy)]
pub(crate) struct Q5K;
/// See [`Format::Q6K`].
#[derive(Clone, Copy)]
pub(crate) struct Q6K;

/// What the codes of IQ4_NL stand for, fixed by the file format.
const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The methods for vectors of a format of the layout of Q4_0 whose codes stand for the values of a table.
macro_rules! table_values {
    ($table:expr) => {
        #[inline(always)]
        fn order<S: Simd>() -> Order {
            S::BLOCK_ORDER
        }
        #[inline(always)]
        unsafe fn raw<S: Simd>(s: S, p: *const u8, c: usize) -> S::B {
            // SAFETY: the caller's.
            unsafe { s.block_nibbles(p, c) }
        }
        #[inline(always)]
        fn packed<S: Simd>(s: S, raw: S::B) -> S::B {
            s.table_codes(raw, &const { $table })
        }
        #[inline(always)]
        fn value<S: Simd>(s: S, packed: S::B, i: usize) -> S::F {
            s.table_quarter(packed, i, &const { $table })
        }
        #[inline(always)]
        fn value_zero<S: Simd>() -> i32 {
            0
        }
    };
}

/// The method for floats of a format with codes of five bits, whatever is above them.
macro_rules! small_values {
    () => {
        #[inline(always)]
        fn value<S: Simd>(s: S, packed: S::B, i: usize) -> S::F {
            s.small_quarter(packed, i)
        }
    };
}

impl Blocks for Q4_0 {
    const FORMAT: Format = Format::Q4_0;
    const ZERO: i32 = 8;
    #[inline(always)]
    unsafe fn codes<S: Simd>(s: S, p: *const u8, c: usize) -> S::B {
        // SAFETY: the caller's; blocks `c · LANES / 8 ..` are among the eight.
        unsafe { s.nibbles(p.add(18 * (c * S::LANES / 8) + 2), 18) }
    }
    table_values!([-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7]);
    #[inline(always)]
    fn bytes<S: Simd>(s: S, raw: S::B) -> S::B {
        s.low_nibbles(raw)
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(s: S, p: *const u8) -> (S::H, S::H) {
        // SAFETY: the caller's.
        (unsafe { s.h_f16::<18>(p) }, s.h_splat(0.0))
    }
}

impl Blocks for Iq4Nl {
    const FORMAT: Format = Format::Iq4Nl;
    const SIGNED: bool = true;
    #[inline(always)]
    unsafe fn codes<S: Simd>(s: S, p: *const u8, c: usize) -> S::B {
        // SAFETY: the caller's.
        s.lookup(unsafe { Q4_0::codes(s, p, c) }, &IQ4_NL)
    }
    table_values!(IQ4_NL);
    #[inline(always)]
    fn bytes<S: Simd>(s: S, raw: S::B) -> S::B {
        s.lookup(s.low_nibbles(raw), &IQ4_NL)
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(s: S, p: *const u8) -> (S::H, S::H) {
        // SAFETY: the caller's.
        unsafe { Q4_0::scales(s, p) }
    }
}

impl Blocks for Q8_0 {
    const FORMAT: Format = Format::Q8_0;
    const SIGNED: bool = true;
    #[inline(always)]
    unsafe fn codes<S: Simd>(s: S, p: *const u8, c: usize) -> S::B {
        // SAFETY: the caller's.
        unsafe { s.signed_bytes(p.add(34 * (c * S::LANES / 8) + 2), 34) }
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(s: S, p: *const u8) -> (S::H, S::H) {
        // SAFETY: the caller's.
        (unsafe { s.h_f16::<34>(p) }, s.h_splat(0.0))
    }
}

impl Blocks for Q5_1 {
    const FORMAT: Format = Format::Q5_1;
    const HAS_MIN: bool = true;
    #[inline(always)]
    unsafe fn codes<S: Simd>(s: S, p: *const u8, c: usize) -> S::B {
        // SAFETY: the caller's.
        unsafe {
            let block = p.add(24 * (c * S::LANES / 8));
            s.add_fifth_bits(s.nibbles(block.add(8), 24), block.add(4), 24)
        }
    }
    small_values!();
    #[inline(always)]
    unsafe fn scales<S: Simd>(s: S, p: *const u8) -> (S::H, S::H) {
        // SAFETY: the caller's.
        unsafe { s.h_f16_pairs::<24>(p) }
    }
}

/// Scales and negated minima of the eight sub-blocks of Q4_K and Q5_K: six bits each, packed in 12 bytes after the two halves.
///
/// # Safety
/// 16 bytes can be read.
#[inline(always)]
unsafe fn packed_scales<S: Simd>(s: S, p: *const u8) -> (S::H, S::H) {
    // SAFETY: the caller's.
    let head = unsafe { p.cast::<[u8; 16]>().read_unaligned() };
    let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
    let (a, b, c) = (word(4), word(8), word(12));
    let pack = |low: u32, high: u32| u64::from(low) | (u64::from(high) << 32);
    let scales = pack(a & 0x3f3f_3f3f, (c & 0x0f0f_0f0f) | ((a >> 2) & 0x3030_3030));
    let minima = pack(b & 0x3f3f_3f3f, ((c >> 4) & 0x0f0f_0f0f) | ((b >> 2) & 0x3030_3030));
    // Minima are negated by the sign bit of their half.
    let half = |i: usize| u16::from_le_bytes([head[i], head[i + 1]]);
    (s.h_mul(s.h_bytes(scales), s.h_splat_f16(half(0))), s.h_mul(s.h_bytes(minima), s.h_splat_f16(half(2) ^ 0x8000)))
}

impl Blocks for Q4K {
    const FORMAT: Format = Format::Q4K;
    const HAS_MIN: bool = true;
    #[inline(always)]
    unsafe fn codes<S: Simd>(s: S, p: *const u8, c: usize) -> S::B {
        // SAFETY: the caller's.
        unsafe { s.run_nibbles(p.add(16), c) }
    }
    #[inline(always)]
    fn order<S: Simd>() -> Order {
        S::RUN_ORDER
    }
    #[inline(always)]
    unsafe fn raw<S: Simd>(s: S, p: *const u8, c: usize) -> S::B {
        // SAFETY: the caller's.
        unsafe { s.half_runs(p.add(16), c) }
    }
    #[inline(always)]
    fn bytes<S: Simd>(s: S, raw: S::B) -> S::B {
        s.low_nibbles(raw)
    }
    #[inline(always)]
    fn value<S: Simd>(s: S, packed: S::B, i: usize) -> S::F {
        s.nibble_quarter(packed, i)
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(s: S, p: *const u8) -> (S::H, S::H) {
        // SAFETY: the caller's.
        unsafe { packed_scales(s, p) }
    }
}

impl Blocks for Q5K {
    const FORMAT: Format = Format::Q5K;
    const HAS_MIN: bool = true;
    #[inline(always)]
    unsafe fn codes<S: Simd>(s: S, p: *const u8, c: usize) -> S::B {
        // SAFETY: the caller's.
        unsafe { s.add_bit_planes(s.run_nibbles(p.add(48), c), p.add(16), c) }
    }
    #[inline(always)]
    fn order<S: Simd>() -> Order {
        S::RUN_ORDER
    }
    #[inline(always)]
    unsafe fn raw<S: Simd>(s: S, p: *const u8, c: usize) -> S::B {
        // SAFETY: the caller's.
        unsafe { s.half_runs_of_five(p.add(48), p.add(16), c) }
    }
    #[inline(always)]
    fn bytes<S: Simd>(s: S, raw: S::B) -> S::B {
        s.low_fives(raw)
    }
    small_values!();
    #[inline(always)]
    unsafe fn scales<S: Simd>(s: S, p: *const u8) -> (S::H, S::H) {
        // SAFETY: the caller's.
        unsafe { packed_scales(s, p) }
    }
}

impl Blocks for Q6K {
    const FORMAT: Format = Format::Q6K;
    const ZERO: i32 = 32;
    const GROUP: usize = 16;
    #[inline(always)]
    unsafe fn codes<S: Simd>(s: S, p: *const u8, c: usize) -> S::B {
        // SAFETY: the caller's.
        unsafe { s.six_bits(p, c) }
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(s: S, p: *const u8) -> (S::H, S::H) {
        // SAFETY: the caller's; the last 18 bytes of the block are the scales and the half.
        let (low, high, d) = unsafe {
            let word = |at: usize| u64::from_le(p.add(at).cast::<u64>().read_unaligned());
            (word(192), word(200), s.h_splat_f16(u16::from_le(p.add(208).cast::<u16>().read_unaligned())))
        };
        (s.h_mul(s.h_signed(low), d), s.h_mul(s.h_signed(high), d))
    }
}

//! SIMD levels of the host, chosen at run time, and the vector operations that the compute cores are written in.
//!
//! A core is a type that implements [`Kernel`] with a `run` that is generic over [`Simd`]; [`dispatch`] compiles it once for each level
//! and calls the one asked for. Vectors have 8 lanes of f32 on every level but AVX-512, where they have 16.

pub(crate) mod convert;
pub(crate) mod math;
mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use std::sync::OnceLock;

pub(crate) use portable::Portable;

/// A set of vector instructions. The order is from least to most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Level {
    /// What every machine of the target architecture has; loops over short arrays, which the compiler may turn into vectors.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI, and everything of AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON, which every machine of the architecture has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// NEON with dot products of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl Level {
    /// The best level of this machine. Detected once.
    pub(crate) fn detect() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::supported().last().copied().unwrap_or(Level::Portable))
    }

    /// Every level that this machine supports, least capable first.
    pub(crate) fn supported() -> &'static [Level] {
        static ALL: OnceLock<Vec<Level>> = OnceLock::new();
        ALL.get_or_init(|| {
            #[allow(unused_mut, reason = "other architectures have one level")]
            let mut levels = vec![Level::Portable];
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                    levels.push(Level::Avx2);
                    if is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512vl")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vnni")
                    {
                        levels.push(Level::Avx512);
                    }
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                levels.push(Level::Neon);
                if std::arch::is_aarch64_feature_detected!("dotprod") {
                    levels.push(Level::NeonDot);
                }
            }
            levels
        })
    }

    /// This level if the machine has it, else the best it has below.
    fn clamped(self) -> Level {
        Level::supported().iter().copied().rfind(|l| *l <= self).unwrap_or(Level::Portable)
    }

    /// Lower-case name, as in `avx512`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot => "neon+dotprod",
        }
    }
}

/// A computation that is compiled once for each level.
pub(crate) trait Kernel {
    /// What it returns.
    type Out;
    /// Runs it. Implementations are `#[inline(always)]`, and so is everything they call that is generic over `S`: only then is it
    /// compiled with the instructions of the level.
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

/// Runs `kernel` with the instructions of `level`, or of the best level below it that this machine has.
pub(crate) fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Out {
    match level.clamped() {
        Level::Portable => kernel.run(Portable),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `clamped` returns only levels that were detected.
        Level::Avx2 => unsafe { avx2::run(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512 => unsafe { avx512::run(kernel) },
        #[cfg(target_arch = "aarch64")]
        Level::Neon => neon::run(kernel),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Level::NeonDot => unsafe { neon::run_dot(kernel) },
    }
}

/// Which of 256 codes are in which vector, in the layout that is quickest to decode.
///
/// Byte `i` of lane `l` of vector `c`, where a vector has 16 lanes in all but the first order, is the code of value:
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `4 · LANES · c + 4 · l + i`.
    Natural,
    /// `128 · (c / 2) + 32 · (l / 4) + 16 · (c % 2) + 4 · (l % 4) + i`: vectors `2c` and `2c + 1` are the low and the high nibbles of four
    /// blocks of 16 bytes, and so have the same scales.
    Blocks,
    /// `128 · (c / 2) + 64 · (l / 8) + 32 · (c % 2) + 4 · (l % 8) + i`: the low and the high nibbles of two runs of 32 bytes.
    Runs,
}

impl Order {
    /// The value of the lowest byte of lane `l` of vector `c`; those of the others follow.
    pub(crate) const fn value(self, lanes: usize, c: usize, l: usize) -> usize {
        match self {
            Order::Natural => 4 * (lanes * c + l),
            Order::Blocks => 128 * (c / 2) + 32 * (l / 4) + 16 * (c % 2) + 4 * (l % 4),
            Order::Runs => 128 * (c / 2) + 64 * (l / 8) + 32 * (c % 2) + 4 * (l % 8),
        }
    }
}

/// Vector operations of one level. A value of the type proves that the machine has its instructions.
///
/// `F` holds [`Simd::LANES`] f32, `I` as many i32, `B` four times as many bytes: the codes of `LANES / 8` blocks of 32. `H` holds eight f32
/// on every level: the scales of eight blocks. Pointers need no alignment.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// f32 vector.
    type F: Copy;
    /// i32 vector.
    type I: Copy;
    /// Byte vector.
    type B: Copy;
    /// Eight f32.
    type H: Copy;
    /// f32 lanes of `F`: 8 or 16.
    const LANES: usize;
    /// What is added to signed codes so that [`Simd::dot`] can multiply them; the caller subtracts it from the sum again.
    const SIGNED_BIAS: i32;
    /// Rows of four sums that fit the registers.
    const TILE_ROWS: usize = 2;
    /// Order of [`Simd::block_nibbles`].
    const BLOCK_ORDER: Order = Order::Natural;
    /// Order of [`Simd::half_runs`].
    const RUN_ORDER: Order = Order::Natural;

    /// All lanes zero.
    fn zero(self) -> Self::F;
    /// All lanes `v`.
    fn splat(self, v: f32) -> Self::F;
    /// Sum.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// Difference.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// Product.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// Quotient.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where the level has the instruction.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Larger of each lane; `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Smaller of each lane; `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Absolute value.
    fn abs(self, a: Self::F) -> Self::F;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `a · 2^n` for integral `n` in `-300..=300`, correct for subnormal results and for overflow.
    fn scale_by_power(self, a: Self::F, n: Self::F) -> Self::F;
    /// Sum of all lanes, in a fixed order.
    fn sum(self, a: Self::F) -> f32;
    /// Sums of the lanes of four vectors, each in a fixed order.
    #[inline(always)]
    fn sum4(self, v: [Self::F; 4]) -> [f32; 4] {
        let [a, b, c, d] = v;
        [self.sum(a), self.sum(b), self.sum(c), self.sum(d)]
    }
    /// Largest lane; unspecified with NaN.
    #[inline(always)]
    fn max_lane(self, a: Self::F) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        // SAFETY: no vector has more lanes.
        unsafe { self.store(lanes.as_mut_ptr(), a) };
        let mut max = f32::NEG_INFINITY;
        for lane in lanes {
            max = if lane > max { lane } else { max };
        }
        max
    }
    /// Loads [`Simd::LANES`] values.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Loads `n <= LANES` values, the others are zero.
    ///
    /// # Safety
    /// `n` values can be read.
    unsafe fn load_n(self, p: *const f32, n: usize) -> Self::F;
    /// Stores [`Simd::LANES`] values.
    ///
    /// # Safety
    /// They can be written.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    /// Loads and widens IEEE halves.
    ///
    /// # Safety
    /// [`Simd::LANES`] of them can be read.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Rounds to IEEE halves, ties to even, and stores them.
    ///
    /// # Safety
    /// [`Simd::LANES`] of them can be written.
    unsafe fn store_f16(self, p: *mut u16, v: Self::F);
    /// Loads and widens bfloat16.
    ///
    /// # Safety
    /// [`Simd::LANES`] of them can be read.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F;
    /// Rounds to bfloat16, ties to even, NaN stays NaN, and stores them.
    ///
    /// # Safety
    /// [`Simd::LANES`] of them can be written.
    unsafe fn store_bf16(self, p: *mut u16, v: Self::F);

    /// All lanes zero.
    fn int_zero(self) -> Self::I;
    /// Nearest f32 of each lane.
    fn int_to_float(self, a: Self::I) -> Self::F;
    /// Loads [`Simd::LANES`] i32.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn int_load(self, p: *const i32) -> Self::I;
    /// Four bytes, repeated over the whole vector.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn broadcast4(self, p: *const u8) -> Self::B;
    /// Loads `4 · LANES` bytes.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load_bytes(self, p: *const u8) -> Self::B;
    /// Asks for the cache line of an address that will be read soon. Any address will do.
    #[inline(always)]
    fn prefetch(self, _p: *const u8) {}
    /// Adds to each lane the products of its four bytes: `codes` unsigned and at most 127, or with `SIGNED` signed codes plus
    /// [`Simd::SIGNED_BIAS`]; `x` signed, not -128.
    fn dot<const SIGNED: bool>(self, acc: Self::I, codes: Self::B, x: Self::B) -> Self::I;
    /// Byte `i` of each lane's four as a float: unsigned, or with `SIGNED` signed unless there is a bias.
    fn quarter<const SIGNED: bool>(self, codes: Self::B, i: usize) -> Self::F;
    /// As [`Simd::quarter`] for nibbles, whatever is above them.
    #[inline(always)]
    fn nibble_quarter(self, codes: Self::B, i: usize) -> Self::F {
        self.quarter::<false>(codes, i)
    }
    /// As [`Simd::quarter`] for codes of five bits, as [`Simd::half_runs_of_five`] gives them too.
    #[inline(always)]
    fn small_quarter(self, codes: Self::B, i: usize) -> Self::F {
        self.quarter::<false>(codes, i)
    }
    /// Nibbles for [`Simd::table_quarter`] with the same table.
    #[inline(always)]
    fn table_codes(self, codes: Self::B, table: &[i8; 16]) -> Self::B {
        self.lookup(codes, table)
    }
    /// What `table` has for byte `i` of each lane's four, as a float. No bias is added.
    #[inline(always)]
    fn table_quarter(self, codes: Self::B, i: usize, _table: &[i8; 16]) -> Self::F {
        const { assert!(Self::SIGNED_BIAS == 0, "a level with a bias looks floats up") };
        self.quarter::<true>(codes, i)
    }
    /// [`Simd::LANES`] bytes as floats: unsigned, or with `SIGNED` signed unless there is a bias.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn widen_codes<const SIGNED: bool>(self, p: *const u8) -> Self::F;

    /// For each block of 32: 16 bytes at `p` (the second block, where there is one, at `p + stride`), low nibbles, then high ones.
    ///
    /// # Safety
    /// The bytes can be read.
    unsafe fn nibbles(self, p: *const u8, stride: usize) -> Self::B;
    /// Vector `c` of the codes of eight blocks of 18 bytes: 2 bytes, then 16 with two nibbles each. Bits above a nibble may be anything.
    ///
    /// # Safety
    /// 144 bytes can be read.
    #[inline(always)]
    unsafe fn block_nibbles(self, p: *const u8, c: usize) -> Self::B {
        // SAFETY: the caller's.
        unsafe { self.nibbles(p.add(18 * (c * Self::LANES / 8) + 2), 18) }
    }
    /// As [`Simd::run_nibbles`], in another order. Bits above a nibble may be anything.
    ///
    /// # Safety
    /// 128 bytes can be read.
    #[inline(always)]
    unsafe fn half_runs(self, p: *const u8, c: usize) -> Self::B {
        // SAFETY: the caller's.
        unsafe { self.run_nibbles(p, c) }
    }
    /// Clears what is above the nibble in each byte of the two above.
    #[inline(always)]
    fn low_nibbles(self, codes: Self::B) -> Self::B {
        codes
    }
    /// Five bits for each of 256 codes, in the order of [`Simd::half_runs`]: nibbles as there, and a fifth bit as in
    /// [`Simd::add_bit_planes`]. Bits above may be anything.
    ///
    /// # Safety
    /// 128 bytes can be read at `p`, 32 at `planes`.
    #[inline(always)]
    unsafe fn half_runs_of_five(self, p: *const u8, planes: *const u8, c: usize) -> Self::B {
        const { assert!(matches!(Self::RUN_ORDER, Order::Natural), "the order of a level with its own is its own") };
        // SAFETY: the caller's.
        unsafe { self.add_bit_planes(self.run_nibbles(p, c), planes, c) }
    }
    /// Clears what is above the fifth bit of each byte of that.
    #[inline(always)]
    fn low_fives(self, codes: Self::B) -> Self::B {
        codes
    }
    /// For each block 32 signed bytes, plus [`Simd::SIGNED_BIAS`].
    ///
    /// # Safety
    /// The bytes can be read.
    unsafe fn signed_bytes(self, p: *const u8, stride: usize) -> Self::B;
    /// Replaces each code in `0..16` by the signed value in `table`, plus [`Simd::SIGNED_BIAS`].
    fn lookup(self, codes: Self::B, table: &[i8; 16]) -> Self::B;
    /// For each block 32 bits at `p`, little-endian: adds 16 to code `j` if bit `j` is set.
    ///
    /// # Safety
    /// The bytes can be read.
    unsafe fn add_fifth_bits(self, codes: Self::B, p: *const u8, stride: usize) -> Self::B;
    /// Vector `c` of the 256 codes whose nibbles are in four runs of 32 bytes at `p`: low nibbles of a run, then high ones.
    ///
    /// # Safety
    /// 128 bytes can be read.
    unsafe fn run_nibbles(self, p: *const u8, c: usize) -> Self::B;
    /// Adds 16 to code `i` of group `g` of 32 of vector `c` if bit `g` of byte `i` at `p` is set.
    ///
    /// # Safety
    /// 32 bytes can be read.
    unsafe fn add_bit_planes(self, codes: Self::B, p: *const u8, c: usize) -> Self::B;
    /// Vector `c` of the 256 six-bit codes of a Q6_K block at `p`.
    ///
    /// # Safety
    /// 192 bytes can be read.
    unsafe fn six_bits(self, p: *const u8, c: usize) -> Self::B;

    /// Eight f32.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn h_load(self, p: *const f32) -> Self::H;
    /// Stores eight f32.
    ///
    /// # Safety
    /// They can be written.
    unsafe fn h_store(self, p: *mut f32, v: Self::H);
    /// All lanes `v`.
    fn h_splat(self, v: f32) -> Self::H;
    /// All lanes a half with these bits.
    fn h_splat_f16(self, bits: u16) -> Self::H;
    /// Product.
    fn h_mul(self, a: Self::H, b: Self::H) -> Self::H;
    /// `a * b + c`.
    fn h_fma(self, a: Self::H, b: Self::H, c: Self::H) -> Self::H;
    /// Sum of the eight, in a fixed order.
    fn h_sum(self, a: Self::H) -> f32;
    /// Eight halves, `stride` bytes apart.
    ///
    /// # Safety
    /// `8 · stride` bytes can be read.
    unsafe fn h_f16<const STRIDE: usize>(self, p: *const u8) -> Self::H;
    /// The first and the second halves of eight blocks of `STRIDE` bytes.
    ///
    /// # Safety
    /// As [`Simd::h_f16`].
    #[inline(always)]
    unsafe fn h_f16_pairs<const STRIDE: usize>(self, p: *const u8) -> (Self::H, Self::H) {
        const { assert!(STRIDE >= 4) };
        // SAFETY: the caller's; a block has both.
        unsafe { (self.h_f16::<STRIDE>(p), self.h_f16::<STRIDE>(p.wrapping_add(2))) }
    }
    /// Eight unsigned bytes, the lowest first.
    fn h_bytes(self, bytes: u64) -> Self::H;
    /// Eight signed bytes.
    fn h_signed(self, bytes: u64) -> Self::H;
    /// For vector `c` of 256 codes: the scale of each lane, given those of the eight blocks of 32.
    fn spread(self, scales: Self::H, c: usize, order: Order) -> Self::F;
    /// The same, given the scales of sixteen blocks of 16, in natural order.
    fn spread16(self, low: Self::H, high: Self::H, c: usize) -> Self::F;
}

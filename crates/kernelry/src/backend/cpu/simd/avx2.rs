//! AVX2 with FMA and F16C: 8 lanes.

use std::arch::x86_64::*;

use super::{Kernel, Order, Simd};

/// Proof that the machine has AVX2, FMA and F16C. Only [`run`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Runs a kernel on this level.
///
/// # Safety
/// The machine has the features named below.
#[target_feature(enable = "avx,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx2(()))
}

/// Methods without preconditions.
macro_rules! safe {
    ($(fn $name:ident($($a:ident: $t:ty),*) -> $r:ty = $body:expr;)*) => { $(
        #[inline(always)]
        fn $name(self, $($a: $t),*) -> $r {
            // SAFETY: the token proves that the machine has the instructions.
            unsafe { $body }
        }
    )* };
}

/// Methods that read or write memory.
macro_rules! memory {
    ($(fn $name:ident($($a:ident: $t:ty),*) $(-> $r:ty)? = $body:expr;)*) => { $(
        #[inline(always)]
        unsafe fn $name(self, $($a: $t),*) $(-> $r)? {
            // SAFETY: the token proves that the machine has the instructions; the memory is the caller's duty.
            unsafe { $body }
        }
    )* };
}

/// Sums of the lanes of four vectors.
///
/// # Safety
/// The machine has AVX.
#[inline(always)]
pub(super) unsafe fn sum4_of_8(v: [__m256; 4]) -> [f32; 4] {
    // SAFETY: the caller's; both types are four f32.
    unsafe {
        let all = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
        let sums = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
        std::mem::transmute::<__m128, [f32; 4]>(sums)
    }
}

#[rustfmt::skip] // One line per operation reads as a table.
impl Simd for Avx2 {
    type F = __m256;
    type I = __m256i;
    type B = __m256i;
    type H = __m256;
    const LANES: usize = 8;
    const SIGNED_BIAS: i32 = 0;

    safe! {
        fn zero() -> __m256 = _mm256_setzero_ps();
        fn splat(v: f32) -> __m256 = _mm256_set1_ps(v);
        fn add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        fn sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        fn mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        fn div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        fn max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        fn min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        fn abs(a: __m256) -> __m256 = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        fn round(a: __m256) -> __m256 = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        fn scale_by_power(a: __m256, n: __m256) -> __m256 = {
            // Two factors, because one power of two cannot reach from the largest to the smallest value.
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let p = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias)));
            let q = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias)));
            _mm256_mul_ps(_mm256_mul_ps(a, p), q)
        };
        fn sum(a: __m256) -> f32 = {
            let v = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        };
        fn sum4(v: [__m256; 4]) -> [f32; 4] = sum4_of_8(v);
        fn max_lane(v: __m256) -> f32 = {
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        };
        fn int_zero() -> __m256i = _mm256_setzero_si256();
        fn int_to_float(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
        fn lookup(codes: __m256i, table: &[i8; 16]) -> __m256i =
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), codes);
        fn h_splat(v: f32) -> __m256 = _mm256_set1_ps(v);
        fn h_splat_f16(bits: u16) -> __m256 = _mm256_cvtph_ps(_mm_set1_epi16(bits as i16));
        fn h_mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        fn h_fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        fn h_bytes(bytes: u64) -> __m256 = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64)));
        fn h_signed(bytes: u64) -> __m256 = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes as i64)));
        fn spread(scales: __m256, c: usize, _order: Order) -> __m256 = _mm256_permutevar8x32_ps(scales, _mm256_set1_epi32(c as i32));
        fn spread16(low: __m256, high: __m256, c: usize) -> __m256 = {
            let lane = 2 * (c as i32 % 4);
            let index = _mm256_set_epi32(lane + 1, lane + 1, lane + 1, lane + 1, lane, lane, lane, lane);
            _mm256_permutevar8x32_ps(if c < 4 { low } else { high }, index)
        };
    }

    #[inline(always)]
    fn h_sum(self, a: __m256) -> f32 {
        self.sum(a)
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the token proves that the machine has the instructions.
        unsafe {
            // The instruction multiplies unsigned by signed bytes and adds pairs in 16 bits: 2 · 128 · 127 fits.
            let (u, s) = if SIGNED { (_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes)) } else { (codes, x) };
            _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    fn quarter<const SIGNED: bool>(self, codes: __m256i, i: usize) -> __m256 {
        // SAFETY: the token proves that the machine has the instructions.
        unsafe {
            let top = match i {
                0 => _mm256_slli_epi32::<24>(codes),
                1 => _mm256_slli_epi32::<16>(codes),
                2 => _mm256_slli_epi32::<8>(codes),
                _ => codes,
            };
            // Unsigned codes are at most 127.
            _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(top))
        }
    }

    #[inline(always)]
    unsafe fn widen_codes<const SIGNED: bool>(self, p: *const u8) -> __m256 {
        // SAFETY: the token proves that the machine has the instructions; the memory is the caller's duty.
        // Unsigned codes are at most 127.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }

    memory! {
        fn load(p: *const f32) -> __m256 = _mm256_loadu_ps(p);
        fn load_n(p: *const f32, n: usize) -> __m256 = {
            let mut v = [0.0f32; 8];
            std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n.min(8));
            _mm256_loadu_ps(v.as_ptr())
        };
        fn store(p: *mut f32, v: __m256) = _mm256_storeu_ps(p, v);
        fn load_f16(p: *const u16) -> __m256 = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
        fn store_f16(p: *mut u16, v: __m256) =
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
        fn load_bf16(p: *const u16) -> __m256 =
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))));
        fn store_bf16(p: *mut u16, v: __m256) = {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let high = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(high, high));
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed))
        };
        fn int_load(p: *const i32) -> __m256i = _mm256_loadu_si256(p.cast());
        fn broadcast4(p: *const u8) -> __m256i = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
        fn load_bytes(p: *const u8) -> __m256i = _mm256_loadu_si256(p.cast());
        fn nibbles(p: *const u8, _stride: usize) -> __m256i = {
            let low = _mm_loadu_si128(p.cast());
            let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), _mm_srli_epi16::<4>(low));
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        };
        fn signed_bytes(p: *const u8, _stride: usize) -> __m256i = _mm256_loadu_si256(p.cast());
        fn add_fifth_bits(codes: __m256i, p: *const u8, _stride: usize) -> __m256i = {
            let word = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
            let spread = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(word, spread), bit), bit);
            _mm256_or_si256(codes, _mm256_and_si256(set, _mm256_set1_epi8(16)))
        };
        fn run_nibbles(p: *const u8, c: usize) -> __m256i = {
            let bytes = _mm256_loadu_si256(p.add(32 * (c / 2)).cast());
            let bytes = if c % 2 == 1 { _mm256_srli_epi16::<4>(bytes) } else { bytes };
            _mm256_and_si256(bytes, _mm256_set1_epi8(15))
        };
        fn add_bit_planes(codes: __m256i, p: *const u8, c: usize) -> __m256i = {
            let bit = _mm256_set1_epi8((1u8 << c) as i8);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_loadu_si256(p.cast()), bit), bit);
            _mm256_or_si256(codes, _mm256_and_si256(set, _mm256_set1_epi8(16)))
        };
        fn six_bits(p: *const u8, c: usize) -> __m256i = {
            let (h, g) = (c / 4, c % 4);
            let low = _mm256_loadu_si256(p.add(64 * h + 32 * (g % 2)).cast());
            let low = if g >= 2 { _mm256_srli_epi16::<4>(low) } else { low };
            let high = _mm256_loadu_si256(p.add(128 + 32 * h).cast());
            let high = match g {
                0 => _mm256_slli_epi16::<4>(high),
                1 => _mm256_slli_epi16::<2>(high),
                2 => high,
                _ => _mm256_srli_epi16::<2>(high),
            };
            _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)), _mm256_and_si256(high, _mm256_set1_epi8(0x30)))
        };
        fn h_load(p: *const f32) -> __m256 = _mm256_loadu_ps(p);
        fn h_store(p: *mut f32, v: __m256) = _mm256_storeu_ps(p, v);
    }

    #[inline(always)]
    unsafe fn h_f16<const STRIDE: usize>(self, p: *const u8) -> __m256 {
        // SAFETY: the token proves that the machine has the instructions; the memory is the caller's duty.
        unsafe {
            let at = |i: usize| p.add(i * STRIDE).cast::<i16>().read_unaligned();
            _mm256_cvtph_ps(_mm_set_epi16(at(7), at(6), at(5), at(4), at(3), at(2), at(1), at(0)))
        }
    }
}

//! AVX-512 with VNNI: 16 lanes, two blocks of 32 codes in a byte vector.

use std::arch::x86_64::*;

use super::avx2::sum4_of_8;
use super::{Kernel, Order, Simd};

/// Proof that the machine has the features of [`run`], which alone makes one.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Runs a kernel on this level.
///
/// # Safety
/// The machine has the features named below.
#[target_feature(enable = "avx,avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx512(()))
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

/// `low` in lanes 0..8, `high` in lanes 8..16.
macro_rules! halves {
    ($low:expr, $high:expr) => {
        _mm512_set_epi32($high, $high, $high, $high, $high, $high, $high, $high, $low, $low, $low, $low, $low, $low, $low, $low)
    };
}

/// `v`, of which the optimiser knows nothing. Without this it takes permutations and shifts by constant vectors apart into those of parts,
/// and the loads before them too: several times as many instructions.
///
/// # Safety
/// The machine has AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn opaque(mut v: __m512i) -> __m512i {
    // SAFETY: there is no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
    v
}

/// Byte `i` of each lane to the bottom; others stay above it.
///
/// # Safety
/// The machine has AVX-512.
#[inline(always)]
unsafe fn shift_to(codes: __m512i, i: usize) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        match i {
            0 => codes,
            1 => _mm512_srli_epi32::<8>(codes),
            2 => _mm512_srli_epi32::<16>(codes),
            _ => _mm512_srli_epi32::<24>(codes),
        }
    }
}

/// Sum of the halves of a vector.
///
/// # Safety
/// The machine has AVX-512 F and DQ.
#[inline(always)]
unsafe fn fold(v: __m512) -> __m256 {
    // SAFETY: the caller's.
    unsafe { _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)) }
}

#[rustfmt::skip] // One line per operation reads as a table.
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type H = __m256;
    const LANES: usize = 16;
    const SIGNED_BIAS: i32 = 128;
    const TILE_ROWS: usize = 4;
    const BLOCK_ORDER: Order = Order::Blocks;
    const RUN_ORDER: Order = Order::Runs;

    safe! {
        fn zero() -> __m512 = _mm512_setzero_ps();
        fn splat(v: f32) -> __m512 = _mm512_set1_ps(v);
        fn add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        fn mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        fn max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        fn min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        fn abs(a: __m512) -> __m512 = _mm512_abs_ps(a);
        fn round(a: __m512) -> __m512 = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        fn scale_by_power(a: __m512, n: __m512) -> __m512 = _mm512_scalef_ps(a, n);
        fn sum4(v: [__m512; 4]) -> [f32; 4] = sum4_of_8([fold(v[0]), fold(v[1]), fold(v[2]), fold(v[3])]);
        fn max_lane(v: __m512) -> f32 = _mm512_reduce_max_ps(v);
        fn low_fives(codes: __m512i) -> __m512i = _mm512_and_si512(codes, _mm512_set1_epi8(31));
        fn low_nibbles(codes: __m512i) -> __m512i = _mm512_and_si512(codes, _mm512_set1_epi8(15));
        fn int_zero() -> __m512i = _mm512_setzero_si512();
        fn int_to_float(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        fn lookup(codes: __m512i, table: &[i8; 16]) -> __m512i = {
            let biased = _mm_xor_si128(_mm_loadu_si128(table.as_ptr().cast()), _mm_set1_epi8(i8::MIN));
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(biased), codes)
        };
        fn h_splat(v: f32) -> __m256 = _mm256_set1_ps(v);
        fn h_splat_f16(bits: u16) -> __m256 = _mm256_cvtph_ps(_mm_set1_epi16(bits as i16));
        fn h_mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        fn h_fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        fn h_sum(a: __m256) -> f32 = {
            let v = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        };
        fn h_bytes(bytes: u64) -> __m256 = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64)));
        fn h_signed(bytes: u64) -> __m256 = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes as i64)));
        fn spread(scales: __m256, c: usize, order: Order) -> __m512 = {
            let (c, pair) = (c as i32, 4 * (c as i32 / 2));
            let index = match order {
                Order::Natural => halves!(2 * c, 2 * c + 1),
                Order::Blocks => _mm512_add_epi32(_mm512_set1_epi32(pair), _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0)),
                Order::Runs => halves!(pair + c % 2, pair + c % 2 + 2),
            };
            _mm512_permutexvar_ps(index, _mm512_castps256_ps512(scales))
        };
        fn spread16(low: __m256, high: __m256, c: usize) -> __m512 = {
            let f = 4 * (c as i32 % 2);
            let index = _mm512_set_epi32(f + 3, f + 3, f + 3, f + 3, f + 2, f + 2, f + 2, f + 2, f + 1, f + 1, f + 1, f + 1, f, f, f, f);
            _mm512_permutexvar_ps(index, _mm512_castps256_ps512(if c < 2 { low } else { high }))
        };
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: the token proves that the machine has the instructions.
        self.h_sum(unsafe { fold(a) })
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: it is no access, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, acc: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the token proves that the machine has the instructions.
        unsafe { _mm512_dpbusd_epi32(acc, codes, x) }
    }

    #[inline(always)]
    fn quarter<const SIGNED: bool>(self, codes: __m512i, i: usize) -> __m512 {
        // SAFETY: the token proves that the machine has the instructions.
        unsafe {
            let code = shift_to(codes, i);
            _mm512_cvtepi32_ps(if i == 3 { code } else { _mm512_and_si512(code, _mm512_set1_epi32(255)) })
        }
    }

    #[inline(always)]
    fn nibble_quarter(self, codes: __m512i, i: usize) -> __m512 {
        self.table_quarter(codes, i, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
    }

    #[inline(always)]
    fn small_quarter(self, codes: __m512i, i: usize) -> __m512 {
        // SAFETY: the token proves that the machine has the instructions.
        unsafe {
            let low = _mm512_set_ps(15., 14., 13., 12., 11., 10., 9., 8., 7., 6., 5., 4., 3., 2., 1., 0.);
            let high = _mm512_add_ps(low, _mm512_set1_ps(16.0));
            // The permutation looks at five bits of each lane.
            _mm512_permutex2var_ps(low, shift_to(codes, i), high)
        }
    }

    #[inline(always)]
    fn table_codes(self, codes: __m512i, _table: &[i8; 16]) -> __m512i {
        codes
    }

    #[inline(always)]
    fn table_quarter(self, codes: __m512i, i: usize, table: &[i8; 16]) -> __m512 {
        // SAFETY: the token proves that the machine has the instructions.
        unsafe {
            let table = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(table.as_ptr().cast())));
            // The permutation looks at four bits of each lane.
            _mm512_permutexvar_ps(shift_to(codes, i), table)
        }
    }

    #[inline(always)]
    unsafe fn widen_codes<const SIGNED: bool>(self, p: *const u8) -> __m512 {
        // SAFETY: the token proves that the machine has the instructions; the memory is the caller's duty.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    memory! {
        fn load(p: *const f32) -> __m512 = _mm512_loadu_ps(p);
        fn load_n(p: *const f32, n: usize) -> __m512 = _mm512_maskz_loadu_ps(((1u32 << n.min(16)) - 1) as u16, p);
        fn store(p: *mut f32, v: __m512) = _mm512_storeu_ps(p, v);
        fn load_f16(p: *const u16) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
        fn store_f16(p: *mut u16, v: __m512) =
            _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v));
        fn load_bf16(p: *const u16) -> __m512 =
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))));
        fn store_bf16(p: *mut u16, v: __m512) = {
            // Not the bf16 instruction, which flushes subnormals.
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept)))
        };
        fn int_load(p: *const i32) -> __m512i = _mm512_loadu_si512(p.cast());
        fn broadcast4(p: *const u8) -> __m512i = _mm512_set1_epi32(p.cast::<i32>().read_unaligned());
        fn load_bytes(p: *const u8) -> __m512i = _mm512_loadu_si512(p.cast());
        fn nibbles(p: *const u8, stride: usize) -> __m512i = {
            let first = _mm512_broadcast_i32x4(_mm_loadu_si128(p.cast()));
            let both = _mm512_mask_broadcast_i32x4(first, 0xff00, _mm_loadu_si128(p.add(stride).cast()));
            let shifts = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
            _mm512_and_si512(_mm512_srlv_epi64(opaque(both), shifts), _mm512_set1_epi8(15))
        };
        fn block_nibbles(p: *const u8, c: usize) -> __m512i = {
            // Four blocks are 72 bytes: words 1 to 8 of each 9 of two vectors, the second of which starts 8 bytes after the first.
            let index = _mm512_set_epi16(
                63, 62, 61, 60, 59, 58, 57, 56, 54, 53, 52, 51, 50, 49, 48, 47, 17, 16, 15, 14, 13, 12, 11, 10, 8, 7, 6, 5, 4, 3, 2, 1,
            );
            let p = p.add(72 * (c / 2));
            let four = _mm512_permutex2var_epi16(_mm512_loadu_si512(p.cast()), opaque(index), _mm512_loadu_si512(p.add(8).cast()));
            if c % 2 == 1 { _mm512_srli_epi32::<4>(four) } else { four }
        };
        fn half_runs(p: *const u8, c: usize) -> __m512i = {
            let runs = _mm512_loadu_si512(p.add(64 * (c / 2)).cast());
            if c % 2 == 1 { _mm512_srli_epi32::<4>(runs) } else { runs }
        };
        fn half_runs_of_five(p: *const u8, planes: *const u8, c: usize) -> __m512i = {
            let runs = _mm512_loadu_si512(p.add(64 * (c / 2)).cast());
            let runs = if c % 2 == 1 { _mm512_srli_epi32::<4>(runs) } else { runs };
            // Planes 0 to 3 are below the fifth bit, planes 4 to 7 are not.
            let (planes, late) = (_mm512_broadcast_i64x4(_mm256_loadu_si256(planes.cast())), c as i32 % 2);
            let high = if c < 2 {
                _mm512_sllv_epi32(planes, halves!(4 - late, 2 - late))
            } else {
                _mm512_srlv_epi32(planes, halves!(late, 2 + late))
            };
            // The nibbles of the first, all else of the second.
            opaque(_mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(15), runs, high))
        };
        fn signed_bytes(p: *const u8, stride: usize) -> __m512i = {
            let first = _mm512_castsi256_si512(_mm256_loadu_si256(p.cast()));
            let both = _mm512_inserti64x4::<1>(first, _mm256_loadu_si256(p.add(stride).cast()));
            _mm512_xor_si512(both, _mm512_set1_epi8(i8::MIN))
        };
        fn add_fifth_bits(codes: __m512i, p: *const u8, stride: usize) -> __m512i = {
            let low = u64::from(u32::from_le(p.cast::<u32>().read_unaligned()));
            let high = u64::from(u32::from_le(p.add(stride).cast::<u32>().read_unaligned()));
            _mm512_mask_add_epi8(codes, low | (high << 32), codes, _mm512_set1_epi8(16))
        };
        fn run_nibbles(p: *const u8, c: usize) -> __m512i = {
            let both = _mm512_broadcast_i64x4(_mm256_loadu_si256(p.add(32 * c).cast()));
            let shifts = _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0);
            _mm512_and_si512(_mm512_srlv_epi64(opaque(both), shifts), _mm512_set1_epi8(15))
        };
        fn add_bit_planes(codes: __m512i, p: *const u8, c: usize) -> __m512i = {
            let planes = _mm512_broadcast_i64x4(_mm256_loadu_si256(p.cast()));
            let bit = 0x0101_0101u32 << (2 * c);
            let set = _mm512_test_epi8_mask(planes, halves!(bit as i32, (bit << 1) as i32));
            _mm512_mask_add_epi8(codes, set, codes, _mm512_set1_epi8(16))
        };
        fn six_bits(p: *const u8, c: usize) -> __m512i = {
            let (h, late) = (c / 2, c % 2 == 1);
            let low = _mm512_loadu_si512(p.add(64 * h).cast());
            let low = if late { _mm512_srli_epi16::<4>(low) } else { low };
            let planes = _mm512_broadcast_i64x4(_mm256_loadu_si256(p.add(128 + 32 * h).cast()));
            let high = if late {
                _mm512_srlv_epi32(planes, halves!(0, 2))
            } else {
                _mm512_sllv_epi32(planes, halves!(4, 2))
            };
            // Else the halves of a code are put together again for each byte that is taken from it.
            opaque(_mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi8(15)), _mm512_and_si512(high, _mm512_set1_epi8(0x30))))
        };
        fn h_load(p: *const f32) -> __m256 = _mm256_loadu_ps(p);
        fn h_store(p: *mut f32, v: __m256) = _mm256_storeu_ps(p, v);
    }

    #[inline(always)]
    unsafe fn h_f16_pairs<const STRIDE: usize>(self, p: *const u8) -> (__m256, __m256) {
        const { assert!(STRIDE == 24, "no other format has pairs") };
        // SAFETY: the token proves that the machine has the instructions; 192 bytes can be read.
        unsafe {
            // Words 0, 12, .. 84 and the ones after them, of 96: six blocks start in the first two vectors, two in the third.
            let index = _mm512_castsi256_si512(_mm256_set_epi16(21, 9, 61, 49, 37, 25, 13, 1, 20, 8, 60, 48, 36, 24, 12, 0));
            let (a, b, c) = (_mm512_loadu_si512(p.cast()), _mm512_loadu_si512(p.add(64).cast()), _mm512_loadu_si512(p.add(128).cast()));
            let six = _mm512_permutex2var_epi16(a, index, b);
            let halves = _mm512_mask_permutexvar_epi16(six, 0xc0c0, index, c);
            let both = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
            (_mm512_castps512_ps256(both), _mm512_extractf32x8_ps::<1>(both))
        }
    }

    #[inline(always)]
    unsafe fn h_f16<const STRIDE: usize>(self, p: *const u8) -> __m256 {
        // SAFETY: the token proves that the machine has the instructions; the memory is the caller's duty. Both loads end within the
        // `8 · STRIDE` bytes that the caller vouches for: STRIDE is 18 at least where the first branch is taken.
        unsafe {
            if STRIDE == 18 {
                // Eight halves at words 0, 9, .. 63 of 128 bytes: one permutation of two vectors.
                let index = _mm512_castsi128_si512(_mm_set_epi16(63, 54, 45, 36, 27, 18, 9, 0));
                let (a, b) = (_mm512_loadu_si512(p.cast()), _mm512_loadu_si512(p.add(64).cast()));
                _mm256_cvtph_ps(_mm512_castsi512_si128(_mm512_permutex2var_epi16(a, index, b)))
            } else {
                let at = |i: usize| p.add(i * STRIDE).cast::<i16>().read_unaligned();
                _mm256_cvtph_ps(_mm_set_epi16(at(7), at(6), at(5), at(4), at(3), at(2), at(1), at(0)))
            }
        }
    }
}

//! NEON, which every `aarch64` machine has: 8 lanes in two registers. Conversions of halves and dot products of bytes are written in assembly:
//! the types of the former and the intrinsics of the latter are not in stable Rust.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Kernel, Order, Simd};

/// Proof of NEON, and with `DOT` of the dot product instructions. Only [`run`] and [`run_dot`] make one.
#[derive(Clone, Copy)]
pub(super) struct Neon<const DOT: bool>(());

/// Runs a kernel on the level without dot products.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Neon::<false>(()))
}

/// Runs a kernel on the level with dot products.
///
/// # Safety
/// The machine has the `dotprod` feature.
pub(super) unsafe fn run_dot<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Neon::<true>(()))
}

type F = [float32x4_t; 2];
type I = [int32x4_t; 2];
type B = [uint8x16_t; 2];

/// Methods without preconditions.
macro_rules! safe {
    ($(fn $name:ident($($a:ident: $t:ty),*) -> $r:ty = $body:expr;)*) => { $(
        #[inline(always)]
        #[allow(unused_unsafe, reason = "which intrinsics are safe depends on the version of the compiler")]
        fn $name(self, $($a: $t),*) -> $r {
            // SAFETY: every machine of the target has the instructions.
            unsafe { $body }
        }
    )* };
}

/// Methods that read or write memory.
macro_rules! memory {
    ($(fn $name:ident($($a:ident: $t:ty),*) $(-> $r:ty)? = $body:expr;)*) => { $(
        #[inline(always)]
        unsafe fn $name(self, $($a: $t),*) $(-> $r)? {
            // SAFETY: every machine of the target has the instructions; the memory is the caller's duty.
            unsafe { $body }
        }
    )* };
}

/// An intrinsic for each half.
macro_rules! both {
    ($f:ident($a:expr)) => {{
        let a = $a;
        [$f(a[0]), $f(a[1])]
    }};
    ($f:ident($a:expr, $b:expr)) => {{
        let (a, b) = ($a, $b);
        [$f(a[0], b[0]), $f(a[1], b[1])]
    }};
    ($f:ident($a:expr, $b:expr, $c:expr)) => {{
        let (a, b, c) = ($a, $b, $c);
        [$f(a[0], b[0], c[0]), $f(a[1], b[1], c[1])]
    }};
}

/// Eight halves widened.
#[inline(always)]
fn widen_halves(h: uint16x8_t) -> F {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: instructions of every machine of the target, on registers alone.
    unsafe {
        asm!("fcvtl {low:v}.4s, {h:v}.4h", "fcvtl2 {high:v}.4s, {h:v}.8h", h = in(vreg) h, low = out(vreg) low, high = lateout(vreg) high,
            options(pure, nomem, nostack, preserves_flags));
    }
    [low, high]
}

/// Eight floats rounded to halves, to nearest, ties to even.
#[inline(always)]
fn narrow_halves(v: F) -> uint16x8_t {
    let mut h: uint16x8_t;
    // SAFETY: as above; the mode of rounding is the default.
    unsafe {
        asm!("fcvtn {h:v}.4h, {low:v}.4s", "fcvtn2 {h:v}.8h, {high:v}.4s", h = out(vreg) h, low = in(vreg) v[0], high = in(vreg) v[1],
            options(pure, nomem, nostack, preserves_flags));
    }
    h
}

/// Adds to each lane the products of its four signed bytes.
#[inline(always)]
fn dot_signed<const DOT: bool>(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: a token with `DOT` proves that the machine has the instruction; the rest every machine of the target has.
    #[allow(unused_unsafe, reason = "which intrinsics are safe depends on the version of the compiler")]
    unsafe {
        if DOT {
            let mut acc = acc;
            asm!(".arch_extension dotprod", "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b", acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags));
            acc
        } else {
            // Two products fit 16 bits: 2 · 128 · 127.
            let (low, high) = (vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
            vpadalq_s16(acc, vpaddq_s16(low, high))
        }
    }
}

/// Sixteen where a bit of `mask` is set in the byte.
#[inline(always)]
fn sixteen_where(bytes: uint8x16_t, mask: uint8x16_t) -> uint8x16_t {
    // SAFETY: every machine of the target has the instructions.
    #[allow(unused_unsafe, reason = "which intrinsics are safe depends on the version of the compiler")]
    unsafe {
        vandq_u8(vtstq_u8(bytes, mask), vdupq_n_u8(16))
    }
}

#[rustfmt::skip] // One line per operation reads as a table.
impl<const DOT: bool> Simd for Neon<DOT> {
    type F = F;
    type I = I;
    type B = B;
    type H = F;
    const LANES: usize = 8;
    const SIGNED_BIAS: i32 = 0;

    safe! {
        fn zero() -> F = [vdupq_n_f32(0.0); 2];
        fn splat(v: f32) -> F = [vdupq_n_f32(v); 2];
        fn add(a: F, b: F) -> F = both!(vaddq_f32(a, b));
        fn sub(a: F, b: F) -> F = both!(vsubq_f32(a, b));
        fn mul(a: F, b: F) -> F = both!(vmulq_f32(a, b));
        fn div(a: F, b: F) -> F = both!(vdivq_f32(a, b));
        fn fma(a: F, b: F, c: F) -> F = both!(vfmaq_f32(c, a, b));
        // Not the instructions for maximum and minimum: those keep a NaN.
        fn max(a: F, b: F) -> F = both!(vbslq_f32(both!(vcgtq_f32(a, b)), a, b));
        fn min(a: F, b: F) -> F = both!(vbslq_f32(both!(vcltq_f32(a, b)), a, b));
        fn abs(a: F) -> F = both!(vabsq_f32(a));
        fn round(a: F) -> F = both!(vrndnq_f32(a));
        fn scale_by_power(a: F, n: F) -> F = {
            // Two factors, because one power of two cannot reach from the largest to the smallest value.
            let n = both!(vcvtq_s32_f32(n));
            let half = [vshrq_n_s32::<1>(n[0]), vshrq_n_s32::<1>(n[1])];
            let rest = both!(vsubq_s32(n, half));
            let bias = vdupq_n_s32(127);
            let power = |e: int32x4_t| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(e, bias)));
            [
                vmulq_f32(vmulq_f32(a[0], power(half[0])), power(rest[0])),
                vmulq_f32(vmulq_f32(a[1], power(half[1])), power(rest[1])),
            ]
        };
        fn sum(a: F) -> f32 = total(a);
        fn sum4(v: [F; 4]) -> [f32; 4] = {
            let halves = [vaddq_f32(v[0][0], v[0][1]), vaddq_f32(v[1][0], v[1][1]), vaddq_f32(v[2][0], v[2][1]), vaddq_f32(v[3][0], v[3][1])];
            let all = vpaddq_f32(vpaddq_f32(halves[0], halves[1]), vpaddq_f32(halves[2], halves[3]));
            let mut sums = [0.0; 4];
            vst1q_f32(sums.as_mut_ptr(), all);
            sums
        };
        fn max_lane(a: F) -> f32 = vmaxvq_f32(vmaxq_f32(a[0], a[1]));
        fn int_zero() -> I = [vdupq_n_s32(0); 2];
        fn int_to_float(a: I) -> F = both!(vcvtq_f32_s32(a));
        fn lookup(codes: B, table: &[i8; 16]) -> B = {
            let table = vld1q_u8(table.as_ptr().cast());
            [vqtbl1q_u8(table, codes[0]), vqtbl1q_u8(table, codes[1])]
        };
        fn h_splat(v: f32) -> F = [vdupq_n_f32(v); 2];
        fn h_splat_f16(bits: u16) -> F = widen_halves(vdupq_n_u16(bits));
        fn h_mul(a: F, b: F) -> F = both!(vmulq_f32(a, b));
        fn h_fma(a: F, b: F, c: F) -> F = both!(vfmaq_f32(c, a, b));
        fn h_sum(a: F) -> f32 = total(a);
        fn h_bytes(bytes: u64) -> F = {
            let wide = vmovl_u8(vcreate_u8(bytes));
            [vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide))), vcvtq_f32_u32(vmovl_high_u16(wide))]
        };
        fn h_signed(bytes: u64) -> F = {
            let wide = vmovl_s8(vcreate_s8(bytes));
            [vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))]
        };
        fn spread(scales: F, c: usize, _order: Order) -> F = [vdupq_n_f32(lanes(scales)[c]); 2];
        fn spread16(low: F, high: F, c: usize) -> F = {
            let scales = lanes(if c < 4 { low } else { high });
            [vdupq_n_f32(scales[2 * (c % 4)]), vdupq_n_f32(scales[2 * (c % 4) + 1])]
        };
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, acc: I, codes: B, x: B) -> I {
        // SAFETY: every machine of the target has the instructions. Unsigned codes are at most 127.
        #[allow(unused_unsafe, reason = "which intrinsics are safe depends on the version of the compiler")]
        unsafe {
            [
                dot_signed::<DOT>(acc[0], vreinterpretq_s8_u8(codes[0]), vreinterpretq_s8_u8(x[0])),
                dot_signed::<DOT>(acc[1], vreinterpretq_s8_u8(codes[1]), vreinterpretq_s8_u8(x[1])),
            ]
        }
    }

    #[inline(always)]
    fn quarter<const SIGNED: bool>(self, codes: B, i: usize) -> F {
        // SAFETY: every machine of the target has the instructions. Unsigned codes are at most 127.
        #[allow(unused_unsafe, reason = "which intrinsics are safe depends on the version of the compiler")]
        unsafe {
            let words = both!(vreinterpretq_s32_u8(codes));
            let top = match i {
                0 => [vshlq_n_s32::<24>(words[0]), vshlq_n_s32::<24>(words[1])],
                1 => [vshlq_n_s32::<16>(words[0]), vshlq_n_s32::<16>(words[1])],
                2 => [vshlq_n_s32::<8>(words[0]), vshlq_n_s32::<8>(words[1])],
                _ => words,
            };
            [vcvtq_f32_s32(vshrq_n_s32::<24>(top[0])), vcvtq_f32_s32(vshrq_n_s32::<24>(top[1]))]
        }
    }

    #[inline(always)]
    unsafe fn widen_codes<const SIGNED: bool>(self, p: *const u8) -> F {
        // SAFETY: the caller's. Unsigned codes are at most 127.
        self.h_signed(u64::from_le(unsafe { p.cast::<u64>().read_unaligned() }))
    }

    memory! {
        fn load(p: *const f32) -> F = [vld1q_f32(p), vld1q_f32(p.add(4))];
        fn load_n(p: *const f32, n: usize) -> F = {
            let mut v = [0.0f32; 8];
            std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n.min(8));
            [vld1q_f32(v.as_ptr()), vld1q_f32(v.as_ptr().add(4))]
        };
        fn store(p: *mut f32, v: F) = {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
        };
        fn load_f16(p: *const u16) -> F = widen_halves(vld1q_u16(p));
        fn store_f16(p: *mut u16, v: F) = vst1q_u16(p, narrow_halves(v));
        fn load_bf16(p: *const u16) -> F = {
            let v = vld1q_u16(p);
            [vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(v))), vreinterpretq_f32_u32(vshll_high_n_u16::<16>(v))]
        };
        fn store_bf16(p: *mut u16, v: F) = {
            let bits = both!(vreinterpretq_u32_f32(v));
            let odd = [vandq_u32(vshrq_n_u32::<16>(bits[0]), vdupq_n_u32(1)), vandq_u32(vshrq_n_u32::<16>(bits[1]), vdupq_n_u32(1))];
            let half = [vdupq_n_u32(0x7fff); 2];
            let rounded = both!(vaddq_u32(bits, both!(vaddq_u32(odd, half))));
            let quiet = both!(vorrq_u32(bits, [vdupq_n_u32(0x0040_0000); 2]));
            let kept = both!(vbslq_u32(both!(vceqq_f32(v, v)), rounded, quiet));
            vst1q_u16(p, vcombine_u16(vshrn_n_u32::<16>(kept[0]), vshrn_n_u32::<16>(kept[1])));
        };
        fn int_load(p: *const i32) -> I = [vld1q_s32(p), vld1q_s32(p.add(4))];
        fn broadcast4(p: *const u8) -> B = [vreinterpretq_u8_u32(vdupq_n_u32(p.cast::<u32>().read_unaligned())); 2];
        fn load_bytes(p: *const u8) -> B = bytes_at(p);
        fn nibbles(p: *const u8, _stride: usize) -> B = {
            let bytes = vld1q_u8(p);
            [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)]
        };
        fn signed_bytes(p: *const u8, _stride: usize) -> B = bytes_at(p);
        fn add_fifth_bits(codes: B, p: *const u8, _stride: usize) -> B = {
            let bits = vcombine_u8(vcreate_u8(0x8040_2010_0804_0201), vcreate_u8(0x8040_2010_0804_0201));
            let bytes = [vcombine_u8(vdup_n_u8(*p), vdup_n_u8(*p.add(1))), vcombine_u8(vdup_n_u8(*p.add(2)), vdup_n_u8(*p.add(3)))];
            both!(vorrq_u8(codes, both!(sixteen_where(bytes, [bits; 2]))))
        };
        fn run_nibbles(p: *const u8, c: usize) -> B = {
            let bytes = bytes_at(p.add(32 * (c / 2)));
            if c % 2 == 1 {
                [vshrq_n_u8::<4>(bytes[0]), vshrq_n_u8::<4>(bytes[1])]
            } else {
                both!(vandq_u8(bytes, [vdupq_n_u8(15); 2]))
            }
        };
        fn add_bit_planes(codes: B, p: *const u8, c: usize) -> B = {
            let planes = bytes_at(p);
            both!(vorrq_u8(codes, both!(sixteen_where(planes, [vdupq_n_u8(1 << c); 2]))))
        };
        fn six_bits(p: *const u8, c: usize) -> B = {
            let (h, g) = (c / 4, c % 4);
            let low = bytes_at(p.add(64 * h + 32 * (g % 2)));
            let low = if g >= 2 {
                [vshrq_n_u8::<4>(low[0]), vshrq_n_u8::<4>(low[1])]
            } else {
                both!(vandq_u8(low, [vdupq_n_u8(15); 2]))
            };
            let high = bytes_at(p.add(128 + 32 * h));
            let high = match g {
                0 => [vshlq_n_u8::<4>(high[0]), vshlq_n_u8::<4>(high[1])],
                1 => [vshlq_n_u8::<2>(high[0]), vshlq_n_u8::<2>(high[1])],
                2 => high,
                _ => [vshrq_n_u8::<2>(high[0]), vshrq_n_u8::<2>(high[1])],
            };
            both!(vorrq_u8(low, both!(vandq_u8(high, [vdupq_n_u8(0x30); 2]))))
        };
        fn h_load(p: *const f32) -> F = [vld1q_f32(p), vld1q_f32(p.add(4))];
        fn h_store(p: *mut f32, v: F) = {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
        };
    }

    #[inline(always)]
    unsafe fn h_f16<const STRIDE: usize>(self, p: *const u8) -> F {
        // SAFETY: every machine of the target has the instructions; the memory is the caller's duty.
        unsafe {
            let at = |i: usize| p.add(i * STRIDE).cast::<u16>().read_unaligned();
            let halves = [at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)];
            widen_halves(vld1q_u16(halves.as_ptr()))
        }
    }
}

/// Sum of the lanes.
#[inline(always)]
fn total(a: F) -> f32 {
    // SAFETY: every machine of the target has the instructions.
    #[allow(unused_unsafe, reason = "which intrinsics are safe depends on the version of the compiler")]
    unsafe {
        let v = vaddq_f32(a[0], a[1]);
        let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
        vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
    }
}

/// 32 bytes.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn bytes_at(p: *const u8) -> B {
    // SAFETY: the caller's.
    unsafe { [vld1q_u8(p), vld1q_u8(p.add(16))] }
}

/// The lanes as an array.
#[inline(always)]
fn lanes(v: F) -> [f32; 8] {
    let mut lanes = [0.0; 8];
    // SAFETY: the array has eight elements.
    unsafe {
        vst1q_f32(lanes.as_mut_ptr(), v[0]);
        vst1q_f32(lanes.as_mut_ptr().add(4), v[1]);
    }
    lanes
}

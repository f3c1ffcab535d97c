//! The level without intrinsics: short arrays and plain loops, the twin that all others are tested beside.

use super::{Order, Simd};

/// Instructions that every machine of the target has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const L: usize = 8;

#[inline(always)]
fn each<T: Copy, U: Copy, R>(a: [T; L], b: [U; L], f: impl Fn(T, U) -> R) -> [R; L] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Fused where the target has an instruction for it; elsewhere `mul_add` would be a library call.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

/// Pairwise, as the vector levels do it.
#[inline(always)]
fn total(a: [f32; L]) -> f32 {
    ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
}

/// Copies `N` values.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn get<T: Copy, const N: usize>(p: *const T) -> [T; N] {
    // SAFETY: the caller's; arrays have the layout of their elements.
    unsafe { p.cast::<[T; N]>().read_unaligned() }
}

/// Stores `N` values.
///
/// # Safety
/// They can be written.
#[inline(always)]
unsafe fn put<T: Copy, const N: usize>(p: *mut T, v: [T; N]) {
    // SAFETY: the caller's; arrays have the layout of their elements.
    unsafe { p.cast::<[T; N]>().write_unaligned(v) }
}

impl Simd for Portable {
    type F = [f32; L];
    type I = [i32; L];
    type B = [u8; 4 * L];
    type H = [f32; 8];
    const LANES: usize = L;
    const SIGNED_BIAS: i32 = 0;

    #[inline(always)]
    fn zero(self) -> Self::F {
        [0.0; L]
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        [v; L]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| multiply_add(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn scale_by_power(self, a: Self::F, n: Self::F) -> Self::F {
        // Two factors, because one power of two cannot reach from the largest to the smallest value.
        each(a, n, |a, n| {
            let n = n as i32;
            let half = n >> 1;
            let power = |e: i32| f32::from_bits(((e + 127) << 23) as u32);
            a * power(half) * power(n - half)
        })
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        total(a)
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        // SAFETY: the caller's.
        unsafe { get(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> Self::F {
        let mut v = [0.0; L];
        // SAFETY: the caller's; `n` is at most the length of the array.
        unsafe { std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n.min(L)) };
        v
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        // SAFETY: the caller's.
        unsafe { put(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller's.
        unsafe { get::<u16, L>(p) }.map(|h| half::f16::from_bits(h).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: Self::F) {
        // SAFETY: the caller's.
        unsafe { put(p, v.map(|v| half::f16::from_f32(v).to_bits())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller's.
        unsafe { get::<u16, L>(p) }.map(|h| f32::from_bits(u32::from(h) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: Self::F) {
        // SAFETY: the caller's.
        unsafe { put(p, v.map(|v| half::bf16::from_f32(v).to_bits())) }
    }

    #[inline(always)]
    fn int_zero(self) -> Self::I {
        [0; L]
    }
    #[inline(always)]
    fn int_to_float(self, a: Self::I) -> Self::F {
        a.map(|v| v as f32)
    }
    #[inline(always)]
    unsafe fn int_load(self, p: *const i32) -> Self::I {
        // SAFETY: the caller's.
        unsafe { get(p) }
    }
    #[inline(always)]
    unsafe fn broadcast4(self, p: *const u8) -> Self::B {
        // SAFETY: the caller's.
        let four: [u8; 4] = unsafe { get(p) };
        std::array::from_fn(|i| four[i % 4])
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Self::B {
        // SAFETY: the caller's.
        unsafe { get(p) }
    }
    #[inline(always)]
    fn dot<const SIGNED: bool>(self, acc: Self::I, codes: Self::B, x: Self::B) -> Self::I {
        // Unsigned codes are at most 127, so that both kinds are read as signed bytes.
        std::array::from_fn(|l| acc[l] + (0..4).map(|i| i32::from(codes[4 * l + i] as i8) * i32::from(x[4 * l + i] as i8)).sum::<i32>())
    }
    #[inline(always)]
    fn quarter<const SIGNED: bool>(self, codes: Self::B, i: usize) -> Self::F {
        std::array::from_fn(|l| f32::from(codes[4 * l + i] as i8))
    }
    #[inline(always)]
    unsafe fn widen_codes<const SIGNED: bool>(self, p: *const u8) -> Self::F {
        // SAFETY: the caller's.
        let codes: [u8; L] = unsafe { get(p) };
        codes.map(|c| f32::from(c as i8))
    }

    #[inline(always)]
    unsafe fn nibbles(self, p: *const u8, _stride: usize) -> Self::B {
        // SAFETY: the caller's.
        let bytes: [u8; 16] = unsafe { get(p) };
        std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
    }
    #[inline(always)]
    unsafe fn signed_bytes(self, p: *const u8, _stride: usize) -> Self::B {
        // SAFETY: the caller's.
        unsafe { get(p) }
    }
    #[inline(always)]
    fn lookup(self, codes: Self::B, table: &[i8; 16]) -> Self::B {
        codes.map(|c| table[usize::from(c & 15)] as u8)
    }
    #[inline(always)]
    unsafe fn add_fifth_bits(self, codes: Self::B, p: *const u8, _stride: usize) -> Self::B {
        // SAFETY: the caller's.
        let bits = u32::from_le_bytes(unsafe { get(p) });
        std::array::from_fn(|j| codes[j] | ((((bits >> j) & 1) as u8) << 4))
    }
    #[inline(always)]
    unsafe fn run_nibbles(self, p: *const u8, c: usize) -> Self::B {
        // SAFETY: the caller's.
        let bytes: [u8; 32] = unsafe { get(p.add(32 * (c / 2))) };
        bytes.map(|b| (b >> (4 * (c % 2))) & 15)
    }
    #[inline(always)]
    unsafe fn add_bit_planes(self, codes: Self::B, p: *const u8, c: usize) -> Self::B {
        // SAFETY: the caller's.
        let planes: [u8; 32] = unsafe { get(p) };
        std::array::from_fn(|i| codes[i] | (((planes[i] >> c) & 1) << 4))
    }
    #[inline(always)]
    unsafe fn six_bits(self, p: *const u8, c: usize) -> Self::B {
        let (h, g) = (c / 4, c % 4);
        // SAFETY: the caller's.
        let (low, high): ([u8; 32], [u8; 32]) = unsafe { (get(p.add(64 * h + 32 * (g % 2))), get(p.add(128 + 32 * h))) };
        std::array::from_fn(|i| ((low[i] >> (4 * (g / 2))) & 15) | (((high[i] >> (2 * g)) & 3) << 4))
    }

    #[inline(always)]
    unsafe fn h_load(self, p: *const f32) -> Self::H {
        // SAFETY: the caller's.
        unsafe { get(p) }
    }
    #[inline(always)]
    unsafe fn h_store(self, p: *mut f32, v: Self::H) {
        // SAFETY: the caller's.
        unsafe { put(p, v) }
    }
    #[inline(always)]
    fn h_splat(self, v: f32) -> Self::H {
        [v; 8]
    }
    #[inline(always)]
    fn h_splat_f16(self, bits: u16) -> Self::H {
        [half::f16::from_bits(bits).to_f32(); 8]
    }
    #[inline(always)]
    fn h_mul(self, a: Self::H, b: Self::H) -> Self::H {
        self.mul(a, b)
    }
    #[inline(always)]
    fn h_fma(self, a: Self::H, b: Self::H, c: Self::H) -> Self::H {
        self.fma(a, b, c)
    }
    #[inline(always)]
    fn h_sum(self, a: Self::H) -> f32 {
        total(a)
    }
    #[inline(always)]
    unsafe fn h_f16<const STRIDE: usize>(self, p: *const u8) -> Self::H {
        std::array::from_fn(|i| {
            // SAFETY: the caller's.
            let bits = u16::from_le_bytes(unsafe { get(p.add(i * STRIDE)) });
            half::f16::from_bits(bits).to_f32()
        })
    }
    #[inline(always)]
    fn h_bytes(self, bytes: u64) -> Self::H {
        bytes.to_le_bytes().map(f32::from)
    }
    #[inline(always)]
    fn h_signed(self, bytes: u64) -> Self::H {
        bytes.to_le_bytes().map(|b| f32::from(b as i8))
    }
    #[inline(always)]
    fn spread(self, scales: Self::H, c: usize, _order: Order) -> Self::F {
        [scales[c]; L]
    }
    #[inline(always)]
    fn spread16(self, low: Self::H, high: Self::H, c: usize) -> Self::F {
        let scales = if c < 4 { low } else { high };
        std::array::from_fn(|l| scales[2 * (c % 4) + l / 4])
    }
}

//! Vectors of f32, for kernels that are written once and compiled for each instruction set.
//!
//! A kernel implements [`VectorKernel`]; [`dispatch`] runs it with the widest [`Isa`] of this machine. Everything a kernel calls on the
//! way must be `#[inline(always)]`, so that it is compiled with the features of the function it ends up in. A closure that is handed to
//! a function of another crate (`map`, `with`, `for_each`) is compiled without them, and each vector operation in it becomes a call.

use half::{bf16, f16};

use crate::Element;

/// An instruction set. A value of it proves that this machine has the instructions.
pub(crate) trait Isa: Copy + 'static {
    /// A vector of [`Isa::LANES`] floats.
    type V: Copy;
    /// Floats of a vector, at most 16.
    const LANES: usize;
    /// Rows of four accumulators that fit the register file.
    const ROWS: usize;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, rounded once where the instruction set can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger one; `b` where one is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `exp`, to two units in the last place, of arguments up to 88; zero below the normal range. NaN stays NaN.
    fn exp(self, x: Self::V) -> Self::V;
    /// Sum of the lanes.
    fn sum(self, v: Self::V) -> f32;
    /// Sums of the lanes of four vectors.
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4];
    /// Largest lane; unspecified with NaN.
    fn max_lane(self, v: Self::V) -> f32;

    /// # Safety
    /// `p` is valid for reads of `LANES` elements.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is valid for writes of `LANES` elements.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// # Safety
    /// `p` is valid for reads of `LANES` elements.
    unsafe fn load_f16(self, p: *const f16) -> Self::V;
    /// # Safety
    /// `p` is valid for reads of `LANES` elements.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;

    /// The first `n` elements, and zeros.
    ///
    /// # Safety
    /// `p` is valid for reads of `n` elements, `n` is less than `LANES`.
    #[inline(always)]
    unsafe fn load_part<T: Vectored>(self, p: *const T, n: usize) -> Self::V {
        let mut full = [T::zeroed(); 16];
        // SAFETY: `n < LANES ≤ 16` elements are readable, and `full` has 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, full.as_mut_ptr(), n);
            T::load(self, full.as_ptr())
        }
    }
}

/// An element type that loads as a vector of f32.
pub(crate) trait Vectored: Element {
    /// `LANES` elements, widened.
    ///
    /// # Safety
    /// `p` is valid for reads of `LANES` elements.
    unsafe fn load<I: Isa>(isa: I, p: *const Self) -> I::V;
    /// One element, widened.
    fn widen(self) -> f32;
    /// Rounded to nearest even.
    fn narrow(x: f32) -> Self;
}

impl Vectored for f32 {
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, p: *const f32) -> I::V {
        // SAFETY: as promised by the caller.
        unsafe { isa.load(p) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
}

impl Vectored for f16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, p: *const f16) -> I::V {
        // SAFETY: as promised by the caller.
        unsafe { isa.load_f16(p) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> f16 {
        f16::from_f32(x)
    }
}

impl Vectored for bf16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, p: *const bf16) -> I::V {
        // SAFETY: as promised by the caller.
        unsafe { isa.load_bf16(p) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

/// Work that is written for any instruction set.
pub(crate) trait VectorKernel {
    /// Does it. Implementations are `#[inline(always)]`.
    fn run<I: Isa>(self, isa: I);
}

/// Runs `kernel` with the widest instructions of this machine.
pub(crate) fn dispatch(kernel: impl VectorKernel) {
    #[cfg(target_arch = "x86_64")]
    if let Some(isa) = x86::Avx512::detect() {
        // SAFETY: the machine has the features.
        return unsafe { x86::run_avx512(kernel, isa) };
    } else if let Some(isa) = x86::Avx2::detect() {
        // SAFETY: the machine has the features.
        return unsafe { x86::run_avx2(kernel, isa) };
    }
    kernel.run(Portable);
}

/// Coefficients of `(exp(r) - 1 - r) / r²` on `|r| ≤ ln 2 / 2`, highest power first (after Cephes, `expf`).
const EXP_POLY: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
/// `ln 2` in two parts, so that `n · LN2.0` is exact.
const LN2: (f32, f32) = (355.0 / 512.0, -2.121_944_4e-4);

/// Four lanes in plain Rust, which compilers turn into the 128-bit vectors that every supported machine has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Portable {
    #[inline(always)]
    fn zip(a: [f32; 4], b: [f32; 4], f: impl Fn(f32, f32) -> f32) -> [f32; 4] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }
}

impl Isa for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const ROWS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        // Without an instruction for it, a fused multiply-add is a function call.
        let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
        std::array::from_fn(|i| if fused { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] })
    }
    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn exp(self, x: [f32; 4]) -> [f32; 4] {
        x.map(|x| if x < -87.3 { 0.0 } else { x.exp() })
    }
    #[inline(always)]
    fn sum(self, v: [f32; 4]) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    fn sum4(self, v: [[f32; 4]; 4]) -> [f32; 4] {
        v.map(|v| self.sum(v))
    }
    #[inline(always)]
    fn max_lane(self, v: [f32; 4]) -> f32 {
        v[0].max(v[2]).max(v[1].max(v[3]))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; 4] {
        // SAFETY: as promised by the caller; the read has no alignment.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: [f32; 4]) {
        // SAFETY: as promised by the caller; the write has no alignment.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> [f32; 4] {
        // SAFETY: as promised by the caller.
        unsafe { p.cast::<[f16; 4]>().read_unaligned() }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> [f32; 4] {
        // SAFETY: as promised by the caller.
        unsafe { p.cast::<[bf16; 4]>().read_unaligned() }.map(Vectored::widen)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::{EXP_POLY, Isa, LN2, VectorKernel};

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    pub(super) unsafe fn run_avx512(kernel: impl VectorKernel, isa: Avx512) {
        kernel.run(isa);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn run_avx2(kernel: impl VectorKernel, isa: Avx2) {
        kernel.run(isa);
    }

    /// Sums of the lanes of four vectors of eight.
    #[inline(always)]
    fn sum4_of_8(v: [__m256; 4]) -> [f32; 4] {
        // SAFETY: only called by the instruction sets below, which include AVX.
        unsafe {
            let all = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
            let sums = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
            std::mem::transmute::<__m128, [f32; 4]>(sums)
        }
    }

    /// Sum of the halves of a vector of sixteen.
    #[inline(always)]
    fn fold(v: __m512) -> __m256 {
        // SAFETY: only called by AVX-512 below.
        unsafe { _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)) }
    }

    /// AVX-512 with byte, word, double-word and narrow-vector forms.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512(());

    impl Avx512 {
        pub(super) fn detect() -> Option<Avx512> {
            let found = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            found.then_some(Avx512(()))
        }
    }

    // SAFETY of every arithmetic block below: a value of the type exists only where its features were detected.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Isa for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        const ROWS: usize = 4;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn exp(self, x: __m512) -> __m512 {
            unsafe {
                // Below -104 the result rounds to zero; without the limit, -inf would become NaN.
                let x = _mm512_max_ps(_mm512_set1_ps(-104.0), x);
                let n = _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
                let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2.0), x);
                let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2.1), r);
                let mut p = _mm512_set1_ps(EXP_POLY[0]);
                for c in &EXP_POLY[1..] {
                    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
                }
                let p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, _mm512_add_ps(r, _mm512_set1_ps(1.0)));
                _mm512_scalef_ps(p, n)
            }
        }
        #[inline(always)]
        fn sum(self, v: __m512) -> f32 {
            unsafe { _mm512_reduce_add_ps(v) }
        }
        #[inline(always)]
        fn sum4(self, v: [__m512; 4]) -> [f32; 4] {
            // No closure: it would be compiled without the features of the function around it.
            let [a, b, c, d] = v;
            sum4_of_8([fold(a), fold(b), fold(c), fold(d)])
        }
        #[inline(always)]
        fn max_lane(self, v: __m512) -> f32 {
            unsafe { _mm512_reduce_max_ps(v) }
        }
        #[inline(always)]
        unsafe fn load(self, p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_f16(self, p: *const f16) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16(self, p: *const bf16) -> __m512 {
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
        }
    }

    /// AVX2 with fused multiply-add and half-precision conversion.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    impl Avx2 {
        pub(super) fn detect() -> Option<Avx2> {
            let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            found.then_some(Avx2(()))
        }
    }

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Isa for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const ROWS: usize = 2;

        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        fn exp(self, x: __m256) -> __m256 {
            unsafe {
                // The smallest argument with a normal result; what is below it becomes zero.
                let low = _mm256_set1_ps(-87.3);
                let zero = _mm256_cmp_ps::<_CMP_LT_OQ>(x, low);
                let x = _mm256_max_ps(low, x);
                let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
                    x,
                    _mm256_set1_ps(std::f32::consts::LOG2_E),
                ));
                let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2.0), x);
                let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2.1), r);
                let mut p = _mm256_set1_ps(EXP_POLY[0]);
                for c in &EXP_POLY[1..] {
                    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
                }
                let p = _mm256_fmadd_ps(_mm256_mul_ps(r, r), p, _mm256_add_ps(r, _mm256_set1_ps(1.0)));
                let exponent = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
                _mm256_andnot_ps(zero, _mm256_mul_ps(p, _mm256_castsi256_ps(exponent)))
            }
        }
        #[inline(always)]
        fn sum(self, v: __m256) -> f32 {
            unsafe {
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
            }
        }
        #[inline(always)]
        fn sum4(self, v: [__m256; 4]) -> [f32; 4] {
            sum4_of_8(v)
        }
        #[inline(always)]
        fn max_lane(self, v: __m256) -> f32 {
            unsafe {
                let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
            }
        }
        #[inline(always)]
        unsafe fn load(self, p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_f16(self, p: *const f16) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16(self, p: *const bf16) -> __m256 {
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a [f32], &'a mut [f32]);

    impl VectorKernel for Exp<'_> {
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            for (x, y) in self.0.chunks_exact(16).zip(self.1.chunks_exact_mut(16)) {
                for i in (0..16).step_by(I::LANES) {
                    // SAFETY: the lanes divide 16.
                    unsafe { isa.store(y.as_mut_ptr().add(i), isa.exp(isa.load(x.as_ptr().add(i)))) };
                }
            }
        }
    }

    fn check(run: impl Fn(Exp<'_>)) {
        let mut x: Vec<f32> = (0..100_000).map(|i| -87.0 + i as f32 * 0.00174).collect();
        x.splice(0..4, [f32::NEG_INFINITY, -1e30, f32::NAN, 0.0]);
        let mut y = vec![0.0; x.len()];
        run(Exp(&x, &mut y));
        assert_eq!((y[0], y[1], y[3]), (0.0, 0.0, 1.0));
        assert!(y[2].is_nan());
        for (x, y) in x.iter().zip(&y).skip(4) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(*y) - exact).abs() <= 2.0 * exact * f64::from(f32::EPSILON), "exp({x}) = {y}, expected {exact}");
        }
    }

    #[test]
    fn exp_is_accurate_on_every_instruction_set() {
        check(|e| e.run(Portable));
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(isa) = x86::Avx2::detect() {
                // SAFETY: the machine has the features.
                check(|e| unsafe { x86::run_avx2(e, isa) });
            }
            if let Some(isa) = x86::Avx512::detect() {
                // SAFETY: the machine has the features.
                check(|e| unsafe { x86::run_avx512(e, isa) });
            }
        }
    }
}

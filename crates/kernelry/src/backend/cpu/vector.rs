//! What kernels of rows and attention add to the vector operations of [`simd`](super::simd): elements of any float type, and `exp`.
//!
//! A kernel implements [`VectorKernel`]; [`dispatch`] runs it with the widest instructions of this machine. Everything a kernel calls on the
//! way must be `#[inline(always)]`, so that it is compiled with the features of the function it ends up in. A closure that is handed to
//! a function of another crate (`map`, `with`, `for_each`) is compiled without them, and each vector operation in it becomes a call.

use half::{bf16, f16};

use super::simd::{self, Kernel, Level, Simd, math};
use crate::Element;

/// The vector operations of one level, and a few made of them.
pub(crate) trait Isa: Simd {
    /// `exp`, as [`math::exp`].
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        math::exp(self, x)
    }

    /// The first `n` elements, and zeros.
    ///
    /// # Safety
    /// `p` is valid for reads of `n` elements, `n` is less than `LANES`.
    #[inline(always)]
    unsafe fn load_part<T: Vectored>(self, p: *const T, n: usize) -> Self::F {
        let mut full = [T::zeroed(); 16];
        // SAFETY: `n < LANES ≤ 16` elements are readable, and `full` has 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, full.as_mut_ptr(), n);
            T::load(self, full.as_ptr())
        }
    }
}

impl<S: Simd> Isa for S {}

/// An element type that loads as a vector of f32.
pub(crate) trait Vectored: Element {
    /// `LANES` elements, widened.
    ///
    /// # Safety
    /// `p` is valid for reads of `LANES` elements.
    unsafe fn load<I: Isa>(isa: I, p: *const Self) -> I::F;
    /// One element, widened.
    fn widen(self) -> f32;
    /// Rounded to nearest even.
    fn narrow(x: f32) -> Self;
}

impl Vectored for f32 {
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, p: *const f32) -> I::F {
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
    unsafe fn load<I: Isa>(isa: I, p: *const f16) -> I::F {
        // SAFETY: as promised by the caller.
        unsafe { isa.load_f16(p.cast()) }
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
    unsafe fn load<I: Isa>(isa: I, p: *const bf16) -> I::F {
        // SAFETY: as promised by the caller.
        unsafe { isa.load_bf16(p.cast()) }
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

struct Work<K>(K);

impl<K: VectorKernel> Kernel for Work<K> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.run(simd);
    }
}

/// Runs `kernel` with the widest instructions of this machine.
pub(crate) fn dispatch(kernel: impl VectorKernel) {
    simd::dispatch(Level::detect(), Work(kernel));
}

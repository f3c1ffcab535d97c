//! Rows of 16-bit floats to and from f32. Narrowing rounds to nearest, ties to even; NaN stays NaN.

use half::{bf16, f16};

use super::{Kernel, Level, Simd, dispatch};

/// The two 16-bit float types.
pub(crate) trait Half: Copy + Send + Sync + 'static + bytemuck::Pod {
    /// Widens, exactly.
    fn widen(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn narrow(v: f32) -> Self;
    /// Widens `S::LANES` values.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load<S: Simd>(simd: S, p: *const Self) -> S::F;
    /// Narrows `S::LANES` values.
    ///
    /// # Safety
    /// They can be written.
    unsafe fn store<S: Simd>(simd: S, p: *mut Self, v: S::F);
}

macro_rules! half {
    ($t:ty, $load:ident, $store:ident) => {
        impl Half for $t {
            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn narrow(v: f32) -> $t {
                <$t>::from_f32(v)
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, p: *const $t) -> S::F {
                // SAFETY: the caller's.
                unsafe { simd.$load(p.cast()) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(simd: S, p: *mut $t, v: S::F) {
                // SAFETY: the caller's.
                unsafe { simd.$store(p.cast(), v) }
            }
        }
    };
}
half!(f16, load_f16, store_f16);
half!(bf16, load_bf16, store_bf16);

struct Widen<'a, H>(&'a [H], &'a mut [f32]);

impl<H: Half> Kernel for Widen<'_, H> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (mut from, mut to) = (self.0.chunks_exact(S::LANES), self.1.chunks_exact_mut(S::LANES));
        for (f, t) in (&mut from).zip(&mut to) {
            // SAFETY: both chunks have `S::LANES` elements.
            unsafe { simd.store(t.as_mut_ptr(), H::load(simd, f.as_ptr())) };
        }
        for (f, t) in from.remainder().iter().zip(to.into_remainder()) {
            *t = f.widen();
        }
    }
}

struct Narrow<'a, H>(&'a [f32], &'a mut [H]);

impl<H: Half> Kernel for Narrow<'_, H> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (mut from, mut to) = (self.0.chunks_exact(S::LANES), self.1.chunks_exact_mut(S::LANES));
        for (f, t) in (&mut from).zip(&mut to) {
            // SAFETY: both chunks have `S::LANES` elements.
            unsafe { H::store(simd, t.as_mut_ptr(), simd.load(f.as_ptr())) };
        }
        for (f, t) in from.remainder().iter().zip(to.into_remainder()) {
            *t = H::narrow(*f);
        }
    }
}

/// Widens `from` into `to`, as far as the shorter goes.
pub(crate) fn widen<H: Half>(from: &[H], to: &mut [f32]) {
    widen_at(Level::detect(), from, to);
}

/// Narrows `from` into `to`, as far as the shorter goes.
pub(crate) fn narrow<H: Half>(from: &[f32], to: &mut [H]) {
    narrow_at(Level::detect(), from, to);
}

/// [`widen`] on a given level.
pub(crate) fn widen_at<H: Half>(level: Level, from: &[H], to: &mut [f32]) {
    let n = from.len().min(to.len());
    dispatch(level, Widen(&from[..n], &mut to[..n]));
}

/// [`narrow`] on a given level.
pub(crate) fn narrow_at<H: Half>(level: Level, from: &[f32], to: &mut [H]) {
    let n = from.len().min(to.len());
    dispatch(level, Narrow(&from[..n], &mut to[..n]));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use half::{bf16, f16};

    use super::*;

    /// Every half widens exactly, on every level.
    #[test]
    fn widening_is_exact() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let mut wide = vec![0.0f32; bits.len()];
        for &level in Level::supported() {
            widen_at(level, bytemuck::cast_slice::<u16, f16>(&bits), &mut wide);
            for (b, w) in bits.iter().zip(&wide) {
                let want = f16::from_bits(*b).to_f32();
                assert!(w.to_bits() == want.to_bits() || (w.is_nan() && want.is_nan()), "{level:?} f16 {b:#x}: {w} {want}");
            }
            widen_at(level, bytemuck::cast_slice::<u16, bf16>(&bits), &mut wide);
            for (b, w) in bits.iter().zip(&wide) {
                let want = f32::from_bits(u32::from(*b) << 16);
                assert!(w.to_bits() == want.to_bits() || (w.is_nan() && want.is_nan()), "{level:?} bf16 {b:#x}: {w} {want}");
            }
        }
    }

    /// Around every half and every midpoint between two, narrowing gives the nearest, ties to even; all levels agree.
    #[test]
    fn narrowing_rounds_to_nearest_even() {
        let mut values = Vec::new();
        for bits in 0..=u16::MAX {
            let (a, b) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits.wrapping_add(1)).to_f32());
            let middle = ((f64::from(a) + f64::from(b)) / 2.0) as f32;
            values.extend([a, middle, middle.next_up(), middle.next_down()]);
            let c = f32::from_bits(u32::from(bits) << 16);
            let d = f32::from_bits((u32::from(bits) << 16) | 0x8000);
            values.extend([c, d, f32::from_bits(d.to_bits() + 1), f32::from_bits(d.to_bits() - 1)]);
        }
        values.extend([65504.0, 65519.99, 65520.0, 1e30, -1e30, f32::MIN_POSITIVE, 1e-45, 5.9e-8, 2.98e-8, 2.99e-8]);
        values.extend([f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::NEG_INFINITY, f32::MAX]);
        let (mut narrow16, mut brain) = (vec![f16::ZERO; values.len()], vec![bf16::ZERO; values.len()]);
        for &level in Level::supported() {
            narrow_at(level, &values, &mut narrow16);
            narrow_at(level, &values, &mut brain);
            for ((v, h), b) in values.iter().zip(&narrow16).zip(&brain) {
                if v.is_nan() {
                    assert!(h.is_nan() && b.is_nan(), "{level:?} {:#x}", v.to_bits());
                    continue;
                }
                assert_eq!(h.to_bits(), f16::from_f32(*v).to_bits(), "{level:?} f16 of {v:e}");
                let bits = v.to_bits();
                let want = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
                assert_eq!(u32::from(b.to_bits()), want, "{level:?} bf16 of {v:e}");
            }
        }
    }
}

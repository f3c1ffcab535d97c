//! Vector functions and reductions that several families use.
//!
//! Reductions use four vectors of partial sums in a fixed order, so that a result depends on the level and on the data only.

use super::{Kernel, Level, Simd, dispatch};

/// e^x, at most 2 ulp; overflows to infinity above 88.72, reaches zero through subnormals below -87.3; NaN stays NaN.
///
/// Reduction by multiples of ln 2 in two parts, then the polynomial of Cephes' `expf` (S. Moshier).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // The constant comes first: where `x` is NaN these return their second operand.
    let x = s.min(s.splat(89.0), s.max(s.splat(-104.5), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let p = s.fma(s.splat(1.987_569_1e-4), r, s.splat(1.398_199_9e-3));
    let p = s.fma(p, r, s.splat(8.333_452e-3));
    let p = s.fma(p, r, s.splat(4.166_579_6e-2));
    let p = s.fma(p, r, s.splat(1.666_666_5e-1));
    let p = s.fma(p, r, s.splat(0.5));
    let y = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    s.scale_by_power(y, n)
}

/// Sum of products.
#[inline(always)]
pub(crate) fn dot_in<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (pa, pb) = (a.as_ptr(), b.as_ptr());
    let mut acc = [s.zero(); 4];
    let mut i = 0;
    // SAFETY: every read ends at `n` at the latest, which is within both slices.
    unsafe {
        while i + 4 * S::LANES <= n {
            for (j, lane) in acc.iter_mut().enumerate() {
                *lane = s.fma(s.load(pa.add(i + j * S::LANES)), s.load(pb.add(i + j * S::LANES)), *lane);
            }
            i += 4 * S::LANES;
        }
        while i < n {
            let left = (n - i).min(S::LANES);
            acc[0] = s.fma(s.load_n(pa.add(i), left), s.load_n(pb.add(i), left), acc[0]);
            i += left;
        }
    }
    s.sum(s.add(s.add(acc[0], acc[2]), s.add(acc[1], acc[3])))
}

/// Sum.
#[inline(always)]
pub(crate) fn sum_in<S: Simd>(s: S, a: &[f32]) -> f32 {
    let (n, p) = (a.len(), a.as_ptr());
    let mut acc = [s.zero(); 4];
    let mut i = 0;
    // SAFETY: every read ends at `n` at the latest.
    unsafe {
        while i + 4 * S::LANES <= n {
            for (j, lane) in acc.iter_mut().enumerate() {
                *lane = s.add(s.load(p.add(i + j * S::LANES)), *lane);
            }
            i += 4 * S::LANES;
        }
        while i < n {
            let left = (n - i).min(S::LANES);
            acc[0] = s.add(s.load_n(p.add(i), left), acc[0]);
            i += left;
        }
    }
    s.sum(s.add(s.add(acc[0], acc[2]), s.add(acc[1], acc[3])))
}

/// Largest value, NaN if there is one, negative infinity for none.
#[inline(always)]
pub(crate) fn max_in<S: Simd>(s: S, a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut best = s.splat(f32::NEG_INFINITY);
    // A NaN in either operand of a vector maximum may be dropped; zero times anything finite is zero, and NaN otherwise only for NaN
    // and infinity, which the scalar pass below tells apart.
    let mut odd = s.zero();
    let chunks = a.chunks_exact(S::LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        // SAFETY: the chunk has `S::LANES` elements.
        let v = unsafe { s.load(chunk.as_ptr()) };
        best = s.max(best, v);
        odd = s.fma(v, s.zero(), odd);
    }
    // SAFETY: 16 is the largest number of lanes.
    unsafe { s.store(lanes.as_mut_ptr(), best) };
    if s.sum(odd).is_nan() && a.iter().any(|v| v.is_nan()) {
        return f32::NAN;
    }
    if s.sum(odd).is_nan() {
        return a.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |m, v| if v.is_nan() || m.is_nan() { f32::NAN } else { m.max(*v) })
}

struct Dot<'a>(&'a [f32], &'a [f32]);
impl Kernel for Dot<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        dot_in(simd, self.0, self.1)
    }
}

struct Sum<'a>(&'a [f32]);
impl Kernel for Sum<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        sum_in(simd, self.0)
    }
}

struct Max<'a>(&'a [f32]);
impl Kernel for Max<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        max_in(simd, self.0)
    }
}

struct Exp<'a>(&'a mut [f32]);
impl Kernel for Exp<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut chunks = self.0.chunks_exact_mut(S::LANES);
        for chunk in &mut chunks {
            // SAFETY: the chunk has `S::LANES` elements.
            unsafe { simd.store(chunk.as_mut_ptr(), exp(simd, simd.load(chunk.as_ptr()))) };
        }
        let tail = chunks.into_remainder();
        let mut lanes = [0.0f32; 16];
        // SAFETY: the tail is shorter than a vector, and the array holds the longest vector.
        unsafe {
            let v = exp(simd, simd.load_n(tail.as_ptr(), tail.len()));
            simd.store(lanes.as_mut_ptr(), v);
        }
        for (t, v) in tail.iter_mut().zip(lanes) {
            *t = v;
        }
    }
}

/// Sum of products of two rows, as far as the shorter goes.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_at(Level::detect(), a, b)
}

/// Sum of a row.
pub(crate) fn sum(a: &[f32]) -> f32 {
    sum_at(Level::detect(), a)
}

/// Largest value of a row: NaN if it has one, negative infinity if it is empty.
pub(crate) fn max(a: &[f32]) -> f32 {
    max_at(Level::detect(), a)
}

/// e^x of each element, in place, with the accuracy of [`exp`].
pub(crate) fn exp_row(a: &mut [f32]) {
    exp_row_at(Level::detect(), a);
}

/// [`dot()`] on a given level.
pub(crate) fn dot_at(level: Level, a: &[f32], b: &[f32]) -> f32 {
    dispatch(level, Dot(a, b))
}

/// [`sum`] on a given level.
pub(crate) fn sum_at(level: Level, a: &[f32]) -> f32 {
    dispatch(level, Sum(a))
}

/// [`max`] on a given level.
pub(crate) fn max_at(level: Level, a: &[f32]) -> f32 {
    dispatch(level, Max(a))
}

/// [`exp_row`] on a given level.
pub(crate) fn exp_row_at(level: Level, a: &mut [f32]) {
    dispatch(level, Exp(a));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    /// Error in units of the last place of the f32 result.
    fn ulps(got: f32, want: f64) -> f64 {
        let near = (want as f32).abs();
        let ulp = f64::from(near.next_up() - near);
        (f64::from(got) - want).abs() / ulp
    }

    #[test]
    fn exp_is_within_two_ulp() {
        let inputs: Vec<f32> = (-104_000..88_700).step_by(3).map(|i| i as f32 * 1e-3 + 3e-5).collect();
        for &level in Level::supported() {
            let mut out = inputs.clone();
            exp_row_at(level, &mut out);
            for (x, y) in inputs.iter().zip(&out) {
                let error = ulps(*y, f64::from(*x).exp());
                assert!(error <= 2.0, "{level:?} exp({x}) = {y:e}, {error} ulp");
            }
        }
    }

    #[test]
    fn exp_keeps_special_values() {
        for &level in Level::supported() {
            // Nineteen elements: a whole vector and a tail on every level.
            let mut v = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 88.73, 1e30, -1e30, -105.0];
            v.extend_from_within(..);
            v.push(f32::NAN);
            exp_row_at(level, &mut v);
            for part in [&v[..9], &v[9..18]] {
                assert!(part[0].is_nan());
                assert_eq!(part[1..], [f32::INFINITY, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY, 0.0, 0.0], "{level:?}");
            }
            assert!(v[18].is_nan());
        }
    }

    #[test]
    fn reductions_of_integers_are_exact() {
        for n in [0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 131] {
            let a: Vec<f32> = (0..n).map(|i| ((i * 7 + 3) % 19) as f32 - 9.0).collect();
            let b: Vec<f32> = (0..n).map(|i| ((i * 5 + 1) % 13) as f32 - 6.0).collect();
            let want: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            let total: f32 = a.iter().sum();
            let largest = a.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for &level in Level::supported() {
                assert_eq!(dot_at(level, &a, &b), want, "{level:?} {n}");
                assert_eq!(sum_at(level, &a), total, "{level:?} {n}");
                assert_eq!(max_at(level, &a), largest, "{level:?} {n}");
            }
        }
    }

    #[test]
    fn maximum_keeps_nan_and_infinities() {
        for &level in Level::supported() {
            for n in [1usize, 8, 20, 40] {
                for at in [0, n / 2, n - 1] {
                    let mut v = vec![-1.0f32; n];
                    v[at] = f32::NAN;
                    assert!(max_at(level, &v).is_nan(), "{level:?} {n} {at}");
                    v[at] = f32::INFINITY;
                    assert_eq!(max_at(level, &v), f32::INFINITY);
                    v[at] = f32::NEG_INFINITY;
                    assert_eq!(max_at(level, &v), if n == 1 { f32::NEG_INFINITY } else { -1.0 });
                }
            }
        }
    }
}

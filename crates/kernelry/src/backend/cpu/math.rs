//! Elementary functions as branch-free arithmetic, so that loops over them become vector code inside
//! [`dispatch`](super::vector::dispatch). Argument reductions and polynomials are those of Cephes.

/// `1.5 · 2^23`: adding it rounds a float below `2^22` to the nearest integer, which then stands in its low bits.
const ROUND: f32 = 12_582_912.0;

/// `exp`, to two units in the last place; zero below the normal range, infinity above, NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    // n is at most 128: scaling in two steps keeps each power of two in range.
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = bits >> 1;
    let power = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    let y = y * power(half) * power(bits.wrapping_sub(half));
    let y = if x > 88.722_84 { f32::INFINITY } else { y };
    if x < -87.336_54 { 0.0 } else { y }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh`, to four units in the last place; exactly ±1 from 9.02 on.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = -5.704_988_7e-3;
    let p = p * z + 2.063_908_8e-2;
    let p = p * z - 5.373_971_6e-2;
    let p = p * z + 1.333_144_2e-1;
    let p = p * z - 3.333_328e-1;
    let small = (x + x * z * p).copysign(x);
    let a = x.abs();
    let large = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    let large = if a > 9.02 { 1.0 } else { large };
    // A NaN fails both comparisons and leaves through `small`.
    if a >= 0.625 { large.copysign(x) } else { small }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error in units of the last place over normal results.
    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, from: f32, to: f32) -> f64 {
        let steps = 400_000;
        let mut worst: f64 = 0.0;
        for i in 0..=steps {
            let x = from + (to - from) * i as f32 / steps as f32;
            let y = exact(f64::from(x));
            let ulp = f64::from((y as f32).abs().max(f32::MIN_POSITIVE)).log2().floor().exp2() * f64::from(f32::EPSILON);
            worst = worst.max((f64::from(f(x)) - y).abs() / ulp);
        }
        worst
    }

    #[test]
    fn exp_is_within_two_ulp() {
        let w = worst(exp, f64::exp, -87.0, 88.7);
        assert!(w <= 2.0, "{w}");
        assert_eq!((exp(0.0), exp(-1e30), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(89.0).is_infinite() && exp(f32::INFINITY).is_infinite() && exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_four_ulp() {
        let w = worst(tanh, f64::tanh, -12.0, 12.0);
        assert!(w <= 4.0, "{w}");
        assert_eq!((tanh(1e30), tanh(f32::NEG_INFINITY), tanh(-0.0).to_bits()), (1.0, -1.0, (-0.0f32).to_bits()));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_has_its_limits() {
        assert_eq!((sigmoid(0.0), sigmoid(200.0), sigmoid(-200.0)), (0.5, 1.0, 0.0));
        assert!(sigmoid(f32::NAN).is_nan());
    }
}

//! The limits of a device, measured.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::catalogue::Cost;
use crate::{Context, DType, Result};

/// What a device can do at best, measured in this process.
#[derive(Clone, Copy, Debug, serde::Deserialize, serde::Serialize)]
#[non_exhaustive]
pub struct Roofline {
    /// Bytes per second of a copy, reads and writes both counted.
    pub copy_bytes_per_second: f64,
    /// Bytes per second of reading, where it could be measured apart.
    pub read_bytes_per_second: Option<f64>,
    /// f32 multiply-adds per second times two, where it could be measured. Kernels that multiply in 8 or 16 bits can exceed it.
    pub f32_flops_per_second: Option<f64>,
    /// The same of products of 16-bit values with f32 sums in the matrix unit, where there is one.
    pub matrix16_flops_per_second: Option<f64>,
}

/// Which limit bounds a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Limit {
    /// Moving all of its bytes.
    Copy,
    /// Reading what it reads.
    Read,
    /// f32 multiply-adds.
    F32,
    /// Products of 16-bit values in the matrix unit.
    Matrix16,
}

/// Bytes of one operand of the bandwidth measurements: more than any cache.
const BYTES: usize = 256 << 20;
/// Each limit is the best of the runs in this time: a limit is what is possible, not what is usual.
const TIME: Duration = Duration::from_millis(400);

impl Roofline {
    /// Measures the device of `ctx`, in about a second. Needs half a gigabyte of its memory, two on a GPU.
    ///
    /// # Errors
    /// [`Error::Allocation`](crate::Error::Allocation) or [`Error::Execution`](crate::Error::Execution).
    pub fn measure(ctx: &Context) -> Result<Roofline> {
        match ctx.device().info().backend.as_str() {
            "cpu" => host_roofline(ctx),
            "emulator" => Ok(Roofline { copy_bytes_per_second: copy_rate(ctx)?, ..Roofline::NONE }),
            _ => super::gpu::measure(ctx),
        }
    }

    /// No limit is known.
    pub(super) const NONE: Roofline =
        Roofline { copy_bytes_per_second: 0.0, read_bytes_per_second: None, f32_flops_per_second: None, matrix16_flops_per_second: None };

    /// The shortest time in seconds in which the work can be done, and what bounds it: the longest of reading `read` of its bytes, of
    /// moving all of them (both only if they are in memory and not in a cache), and of its arithmetic, with 16-bit products in the
    /// `matrix` unit or else with f32. `None` if no limit applies or none was measured.
    pub fn least_seconds(&self, cost: Cost, read: f64, in_memory: bool, matrix: bool) -> Option<(f64, Limit)> {
        let moving = [
            (self.copy_bytes_per_second > 0.0).then(|| (cost.bytes / self.copy_bytes_per_second, Limit::Copy)),
            self.read_bytes_per_second.map(|rate| (read / rate, Limit::Read)),
        ];
        let moving = moving.into_iter().flatten().filter(|_| in_memory);
        let matrix = self.matrix16_flops_per_second.filter(|_| matrix).map(|rate| (rate, Limit::Matrix16));
        let computing = matrix.or(self.f32_flops_per_second.map(|rate| (rate, Limit::F32))).filter(|_| cost.flops > 0.0);
        // What is in a cache is bound by a bandwidth that is not known, unless its arithmetic says more.
        let computing = computing.filter(|_| in_memory || cost.flops > 16.0 * cost.bytes);
        let computing = computing.map(|(rate, limit)| (cost.flops / rate, limit));
        moving.chain(computing).max_by(|a, b| a.0.total_cmp(&b.0))
    }
}

/// Bytes per second of the backend's own copies.
fn copy_rate(ctx: &Context) -> Result<f64> {
    let (src, dst) = (ctx.zeros(DType::F32, &[BYTES / 4])?, ctx.zeros(DType::F32, &[BYTES / 4])?);
    let mut encoder = ctx.encoder();
    encoder.copy(&src, &dst)?;
    let graph = encoder.finish()?;
    Ok(2.0 * BYTES as f64 / best_seconds(|| graph.run())?)
}

fn host_roofline(ctx: &Context) -> Result<Roofline> {
    let (src, dst) = (ctx.zeros(DType::F32, &[BYTES / 4])?, ctx.zeros(DType::F32, &[BYTES / 4])?);
    let src = src.host_slice::<f32>()?;
    let mut dst = dst.host_slice_mut::<f32>()?;
    let copy = best_seconds(|| {
        dst.par_chunks_mut(PART).zip(src.par_chunks(PART)).for_each(|(d, s)| d.copy_from_slice(s));
        Ok(())
    })?;
    let read = best_seconds(|| {
        src.par_chunks(PART).for_each(host::sum);
        Ok(())
    })?;
    Ok(Roofline {
        copy_bytes_per_second: 2.0 * BYTES as f64 / copy,
        read_bytes_per_second: Some(BYTES as f64 / read),
        f32_flops_per_second: Some(host_fma_rate()),
        matrix16_flops_per_second: None,
    })
}

/// Elements that one task of the host measurements handles: small enough to balance, large enough to stream.
const PART: usize = 1 << 20;

/// The shortest of the runs that fit in [`TIME`], after one to warm up.
fn best_seconds(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let (mut best, started) = (f64::INFINITY, Instant::now());
    loop {
        let begin = Instant::now();
        run()?;
        best = best.min(begin.elapsed().as_secs_f64());
        if started.elapsed() > TIME {
            return Ok(best);
        }
    }
}

/// Multiply-adds in flight: more than the latency of the units times their number, and few enough for sixteen registers.
const CHAINS: usize = 12;
const ROUNDS: usize = 1 << 14;

/// Two loops for one instruction set: reading all of a slice, and `CHAINS` independent chains of `ROUNDS` multiply-adds, which returns
/// the operations done. Written with intrinsics: what the compiler makes of plain loops is what is to be measured against them.
macro_rules! host_loops {
    ($sum:ident, $fma:ident, $lanes:literal, $feature:literal, $load:ident, $splat:ident, $madd:expr) => {
        #[target_feature(enable = $feature)]
        pub(super) fn $sum(part: &[f32]) {
            let mut sums = [$splat(0.0); 8];
            for chunk in part.chunks_exact(8 * $lanes) {
                for (sum, values) in sums.iter_mut().zip(chunk.chunks_exact($lanes)) {
                    // SAFETY: `values` has as many elements as are loaded.
                    let values = unsafe { $load(values.as_ptr()) };
                    *sum = $madd(values, values, *sum);
                }
            }
            black_box(sums);
        }

        #[target_feature(enable = $feature)]
        pub(super) fn $fma(x: f32) -> f64 {
            let mut chains = [$splat(x); CHAINS];
            let (a, b) = ($splat(black_box(0.999)), $splat(black_box(1e-3)));
            for _ in 0..ROUNDS {
                for chain in &mut chains {
                    *chain = $madd(*chain, a, b);
                }
            }
            black_box(chains);
            (2 * CHAINS * $lanes * ROUNDS) as f64
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod host {
    use std::arch::x86_64::{
        _mm_add_ps, _mm_loadu_ps, _mm_mul_ps, _mm_set1_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_set1_ps,
    };

    use super::{CHAINS, ROUNDS, black_box};
    host_loops!(sum_avx512, fma_avx512, 16, "avx512f", _mm512_loadu_ps, _mm512_set1_ps, _mm512_fmadd_ps);
    host_loops!(sum_avx2, fma_avx2, 8, "avx2,fma", _mm256_loadu_ps, _mm256_set1_ps, _mm256_fmadd_ps);
    host_loops!(sum_sse2, fma_sse2, 4, "sse2", _mm_loadu_ps, _mm_set1_ps, |a, b, c| _mm_add_ps(_mm_mul_ps(a, b), c));

    pub(super) fn sum(part: &[f32]) {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was detected.
            unsafe { sum_avx512(part) }
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the features were detected.
            unsafe { sum_avx2(part) }
        } else {
            // SAFETY: every processor of this architecture has SSE2.
            unsafe { sum_sse2(part) }
        }
    }

    pub(super) fn fma(x: f32) -> f64 {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was detected.
            unsafe { fma_avx512(x) }
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the features were detected.
            unsafe { fma_avx2(x) }
        } else {
            // SAFETY: as above.
            unsafe { fma_sse2(x) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod host {
    use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32, vld1q_f32};

    use super::{CHAINS, ROUNDS, black_box};
    host_loops!(sum_neon, fma_neon, 4, "neon", vld1q_f32, vdupq_n_f32, |a, b, c| vfmaq_f32(c, a, b));

    pub(super) fn sum(part: &[f32]) {
        // SAFETY: every processor of this architecture has NEON.
        unsafe { sum_neon(part) }
    }

    pub(super) fn fma(x: f32) -> f64 {
        // SAFETY: as above.
        unsafe { fma_neon(x) }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod host {
    use super::{CHAINS, ROUNDS, black_box};

    pub(super) fn sum(part: &[f32]) {
        black_box(part.chunks(8).map(|c| c.iter().sum::<f32>()).sum::<f32>());
    }

    pub(super) fn fma(x: f32) -> f64 {
        let mut chains = [x; CHAINS];
        let (a, b) = (black_box(0.999), black_box(1e-3));
        for _ in 0..ROUNDS {
            chains.iter_mut().for_each(|c| *c = *c * a + b);
        }
        black_box(chains);
        (2 * CHAINS * ROUNDS) as f64
    }
}

/// f32 operations per second of all threads together, the best of several runs.
fn host_fma_rate() -> f64 {
    let tasks = rayon::current_num_threads() * 16;
    let mut best = 0.0f64;
    let started = Instant::now();
    while started.elapsed() < TIME {
        let begin = Instant::now();
        let done: f64 = (0..tasks).into_par_iter().map(|t| host::fma(t as f32)).sum();
        best = best.max(done / begin.elapsed().as_secs_f64());
    }
    best
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Limit, Roofline};
    use crate::Context;
    use crate::catalogue::Cost;

    const LIMITS: Roofline = Roofline {
        copy_bytes_per_second: 100.0,
        read_bytes_per_second: Some(50.0),
        f32_flops_per_second: Some(1000.0),
        matrix16_flops_per_second: Some(4000.0),
    };

    fn least(bytes: f64, read: f64, flops: f64, in_memory: bool) -> Option<(f64, Limit)> {
        LIMITS.least_seconds(Cost { bytes, flops }, read, in_memory, false)
    }

    #[test]
    fn the_tightest_limit_counts() {
        assert_eq!(least(200.0, 90.0, 100.0, true), Some((2.0, Limit::Copy)));
        assert_eq!(least(200.0, 150.0, 100.0, true), Some((3.0, Limit::Read)));
        assert_eq!(least(200.0, 20.0, 100.0, true), Some((2.0, Limit::Copy)));
        assert_eq!(least(100.0, 45.0, 5000.0, true), Some((5.0, Limit::F32)));
    }

    #[test]
    fn kernels_of_the_matrix_unit_have_its_limit() {
        let cost = Cost { bytes: 100.0, flops: 8000.0 };
        assert_eq!(LIMITS.least_seconds(cost, 45.0, true, true), Some((2.0, Limit::Matrix16)));
        assert_eq!(LIMITS.least_seconds(cost, 150.0, true, true), Some((3.0, Limit::Read)));
        // Without one, f32 is all there is.
        let none = Roofline { matrix16_flops_per_second: None, ..LIMITS };
        assert_eq!(none.least_seconds(cost, 45.0, true, true), Some((8.0, Limit::F32)));
        assert_eq!(Roofline::NONE.least_seconds(cost, 45.0, true, true), None);
    }

    #[test]
    fn caches_have_no_memory_limit() {
        assert_eq!(least(200.0, 100.0, 100.0, false), None);
        assert_eq!(least(100.0, 50.0, 5000.0, false), Some((5.0, Limit::F32)));
    }

    #[test]
    fn the_host_has_limits() {
        let r = Roofline::measure(&Context::cpu()).unwrap();
        let (read, flops) = (r.read_bytes_per_second.unwrap(), r.f32_flops_per_second.unwrap());
        // Wide bounds that a wrong unit or a loop that was optimised away would leave.
        assert!((1e8..1e13).contains(&r.copy_bytes_per_second), "{r:?}");
        assert!((1e8..1e13).contains(&read), "{r:?}");
        assert!((1e8..1e15).contains(&flops), "{r:?}");
    }
}

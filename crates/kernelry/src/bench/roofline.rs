//! The limits of a device, measured.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::catalogue::Cost;
use crate::{Context, DType, Result};

/// What a device can do at best, measured in this process.
#[derive(Clone, Copy, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Roofline {
    /// Bytes per second of a copy, reads and writes both counted.
    pub copy_bytes_per_second: f64,
    /// Bytes per second of reading, where it could be measured apart.
    pub read_bytes_per_second: Option<f64>,
    /// f32 multiply-adds per second times two, where it could be measured. Kernels that multiply in 8 or 16 bits can exceed it.
    pub f32_flops_per_second: Option<f64>,
}

/// Bytes of one operand of the bandwidth measurements: more than any cache.
const BYTES: usize = 256 << 20;
/// Each limit is the best of the runs in this time: a limit is what is possible, not what is usual.
const TIME: Duration = Duration::from_millis(400);

impl Roofline {
    /// Measures the device of `ctx`, in about a second. Needs half a gigabyte of its memory.
    ///
    /// # Errors
    /// [`Error::Allocation`](crate::Error::Allocation) or [`Error::Execution`](crate::Error::Execution).
    pub fn measure(ctx: &Context) -> Result<Roofline> {
        let src = ctx.zeros(DType::F32, &[BYTES / 4])?;
        let dst = ctx.zeros(DType::F32, &[BYTES / 4])?;
        let host = ctx.device().info().backend == "cpu";
        let copy = if host {
            let src = src.host_slice::<f32>()?;
            let mut dst = dst.host_slice_mut::<f32>()?;
            best_seconds(|| {
                dst.par_chunks_mut(PART).zip(src.par_chunks(PART)).for_each(|(d, s)| d.copy_from_slice(s));
                Ok(())
            })?
        } else {
            let mut encoder = ctx.encoder();
            encoder.copy(&src, &dst)?;
            let graph = encoder.finish()?;
            best_seconds(|| graph.run())?
        };
        let mut roofline =
            Roofline { copy_bytes_per_second: 2.0 * BYTES as f64 / copy, read_bytes_per_second: None, f32_flops_per_second: None };
        if host {
            let src = src.host_slice::<f32>()?;
            let read = best_seconds(|| {
                black_box(src.par_chunks(PART).map(host::sum).reduce(|| 0, |a, b| a ^ b));
                Ok(())
            })?;
            roofline.read_bytes_per_second = Some(BYTES as f64 / read);
            roofline.f32_flops_per_second = Some(host_fma_rate());
        }
        Ok(roofline)
    }

    /// The shortest time in which the work can be done: the longest of reading `read` of its bytes, of moving all of them (both only
    /// if they are in memory and not in a cache), and of its arithmetic. `None` if no limit applies or none was measured.
    pub fn least_seconds(&self, cost: Cost, read: f64, in_memory: bool) -> Option<f64> {
        let reading = self.read_bytes_per_second.map_or(0.0, |rate| read / rate);
        let moving = in_memory.then(|| reading.max(cost.bytes / self.copy_bytes_per_second));
        let computing = self.f32_flops_per_second.filter(|_| cost.flops > 0.0).map(|rate| cost.flops / rate);
        match (moving, computing) {
            (Some(a), Some(b)) => Some(a.max(b)),
            // What is in a cache is bound by a bandwidth that is not known, unless its arithmetic says more.
            (None, Some(b)) => (cost.flops > 16.0 * cost.bytes).then_some(b),
            (a, None) => a,
        }
    }
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

/// Multiply-adds in flight: the latency of the unit times its width, on every core there is, and few enough for its registers.
const CHAINS: usize = 12;
const ROUNDS: usize = 1 << 14;

macro_rules! host_loops {
    ($sum:ident, $fma:ident, $lanes:literal $(, $feature:literal)?) => {
        /// Reads all of `part`.
        $(#[target_feature(enable = $feature)])?
        pub(super) fn $sum(part: &[f32]) -> u32 {
            let mut lanes = [0u32; 64];
            for chunk in part.chunks_exact(64) {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane ^= value.to_bits();
                }
            }
            lanes.iter().fold(0, |a, b| a ^ b)
        }

        /// `CHAINS` independent chains of `ROUNDS` multiply-adds, `lanes` wide. Returns the operations done.
        $(#[target_feature(enable = $feature)])?
        pub(super) fn $fma(x: f32) -> f64 {
            let mut chains = [[x; $lanes]; CHAINS];
            let (a, b) = (black_box(0.999_f32), black_box(1e-3_f32));
            for _ in 0..ROUNDS {
                for chain in &mut chains {
                    for lane in chain {
                        *lane = multiply_add(*lane, a, b);
                    }
                }
            }
            black_box(chains);
            (2 * CHAINS * $lanes * ROUNDS) as f64
        }
    };
}

/// Fused where the target has an instruction for it; elsewhere the call of a library function would be measured.
#[inline(always)]
fn multiply_add(x: f32, a: f32, b: f32) -> f32 {
    if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) { x.mul_add(a, b) } else { x * a + b }
}

#[cfg(target_arch = "x86_64")]
mod host {
    use super::{CHAINS, ROUNDS, black_box, multiply_add};
    host_loops!(sum_avx512, fma_avx512, 16, "avx512f");
    host_loops!(sum_avx2, fma_avx2, 8, "avx2,fma");
    // Without the instruction `mul_add` is a library call: the loop below multiplies and adds.
    fn sum_plain(part: &[f32]) -> u32 {
        part.iter().fold(0, |a, b| a ^ b.to_bits())
    }
    fn fma_plain(x: f32) -> f64 {
        let mut chains = [[x; 4]; CHAINS];
        let (a, b) = (black_box(0.999_f32), black_box(1e-3_f32));
        for _ in 0..ROUNDS {
            chains.iter_mut().flatten().for_each(|lane| *lane = *lane * a + b);
        }
        black_box(chains);
        (2 * CHAINS * 4 * ROUNDS) as f64
    }

    pub(super) fn sum(part: &[f32]) -> u32 {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was detected.
            unsafe { sum_avx512(part) }
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the features were detected.
            unsafe { sum_avx2(part) }
        } else {
            sum_plain(part)
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
            fma_plain(x)
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod host {
    use super::{CHAINS, ROUNDS, black_box, multiply_add};
    host_loops!(sum, fma, 4);
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
    use super::Roofline;
    use crate::Context;
    use crate::catalogue::Cost;

    const LIMITS: Roofline =
        Roofline { copy_bytes_per_second: 100.0, read_bytes_per_second: Some(50.0), f32_flops_per_second: Some(1000.0) };

    fn least(bytes: f64, read: f64, flops: f64, in_memory: bool) -> Option<f64> {
        LIMITS.least_seconds(Cost { bytes, flops }, read, in_memory)
    }

    #[test]
    fn the_tightest_limit_counts() {
        assert_eq!(least(200.0, 100.0, 100.0, true), Some(2.0));
        assert_eq!(least(200.0, 150.0, 100.0, true), Some(3.0));
        assert_eq!(least(200.0, 20.0, 100.0, true), Some(2.0));
        assert_eq!(least(100.0, 50.0, 5000.0, true), Some(5.0));
    }

    #[test]
    fn caches_have_no_memory_limit() {
        assert_eq!(least(200.0, 100.0, 100.0, false), None);
        assert_eq!(least(100.0, 50.0, 5000.0, false), Some(5.0));
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

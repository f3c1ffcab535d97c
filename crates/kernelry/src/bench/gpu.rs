//! The limits of a GPU, measured by kernels that do nothing else.

use super::roofline::Roofline;
use crate::catalogue::{Geometry, Text, standalone};
use crate::registry::Pipeline;
use crate::{Buffer, Context, DType, Encoder, Result};

const TEXT: Text = crate::kernel_text!("roofline.h");

/// The text of the kernels that measure the limits of a GPU, which are in no catalogue entry, and their names.
pub fn limit_kernels() -> (String, [&'static str; 4]) {
    (standalone(&TEXT), ["roofline_read", "roofline_copy", "roofline_fma", "roofline_matrix"])
}

/// Bytes read by the bandwidth measurements: many times what the caches hold, and long against the start of a launch.
const BYTES: usize = 1 << 30;
/// Timings of each limit, of which the best counts.
const TIMINGS: usize = 24;
/// Launches in a timing.
const LAUNCHES: usize = 4;

/// Rounds of a launch.
const FMA_ROUNDS: u32 = 4096;
const MATRIX_ROUNDS: u32 = 512;
/// Operations of a thread in a round, and of a warp in a round of the matrix unit.
const FMA_ROUND: f64 = 256.0;
const MATRIX_ROUND: f64 = (1 << 20) as f64;

/// The limits of a GPU. One whose kernel cannot be had, as on a machine that cannot compile, is left out.
pub(super) fn measure(ctx: &Context) -> Result<Roofline> {
    let units = ctx.device().info().units.max(1);
    let src = ctx.zeros(DType::F32, &[BYTES / 4])?;
    let dst = ctx.zeros(DType::F32, &[BYTES / 4])?;
    let bytes = BYTES as f64;
    let copying = Streaming { name: "roofline_copy", src: &src, dst: &dst, groups: units * 4 };
    let reading = Streaming { name: "roofline_read", ..copying };
    let own_copy = best_seconds(ctx, |encoder| encoder.copy(&src, &dst))?;
    let copy = copying.best_seconds(ctx)?.map_or(own_copy, |s| s.min(own_copy));
    let read = reading.best_seconds(ctx)?;
    let groups = units * 8;
    let threads = f64::from(groups) * 256.0;
    let f32s = seconds_of_products(ctx, "roofline_fma", groups, FMA_ROUNDS, &dst)?;
    let matrix = seconds_of_products(ctx, "roofline_matrix", groups, MATRIX_ROUNDS, &dst)?;
    Ok(Roofline {
        copy_bytes_per_second: 2.0 * bytes / copy,
        read_bytes_per_second: read.map(|s| bytes / s),
        f32_flops_per_second: f32s.map(|s| FMA_ROUND * f64::from(FMA_ROUNDS) * threads / s),
        matrix16_flops_per_second: matrix.map(|s| MATRIX_ROUND * f64::from(MATRIX_ROUNDS) * threads / 32.0 / s),
    })
}

/// The pipeline of one of the kernels, if this device can compile it.
fn pipeline(ctx: &Context, name: &str) -> Result<Option<Pipeline>> {
    let registry = ctx.registry();
    registry.register_source(name, limit_kernels().0)?;
    let pipeline = registry.get_pipeline(name, ctx.device());
    registry.unregister(name)?;
    Ok(pipeline.ok())
}

/// A kernel that goes once through `src`.
#[derive(Clone, Copy)]
struct Streaming<'a> {
    name: &'static str,
    src: &'a Buffer,
    dst: &'a Buffer,
    groups: u32,
}

impl Streaming<'_> {
    fn record(&self, pipeline: &Pipeline, encoder: &mut Encoder) -> Result<()> {
        let pieces = (self.src.byte_len() / 16) as u32;
        encoder.launch_raw(pipeline, &[self.src, self.dst], None, &pieces.to_ne_bytes(), Geometry::linear(self.groups, 512))
    }

    fn best_seconds(&self, ctx: &Context) -> Result<Option<f64>> {
        let Some(pipeline) = pipeline(ctx, self.name)? else { return Ok(None) };
        best_seconds(ctx, |encoder| self.record(&pipeline, encoder)).map(Some)
    }
}

fn record_products(pipeline: &Pipeline, groups: u32, rounds: u32, out: &Buffer, encoder: &mut Encoder) -> Result<()> {
    encoder.launch_raw(pipeline, &[out], None, &rounds.to_ne_bytes(), Geometry::linear(groups, 256))
}

fn seconds_of_products(ctx: &Context, name: &str, groups: u32, rounds: u32, out: &Buffer) -> Result<Option<f64>> {
    let Some(pipeline) = pipeline(ctx, name)? else { return Ok(None) };
    best_seconds(ctx, |encoder| record_products(&pipeline, groups, rounds, out, encoder)).map(Some)
}

/// The shortest time of one of what `record` records.
fn best_seconds(ctx: &Context, record: impl Fn(&mut Encoder) -> Result<()>) -> Result<f64> {
    let mut encoder = ctx.encoder();
    for _ in 0..LAUNCHES {
        record(&mut encoder)?;
    }
    let times = super::measure::timings(&encoder.finish()?, TIMINGS)?;
    Ok(times.into_iter().fold(f64::INFINITY, f64::min) / LAUNCHES as f64)
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::{Streaming, pipeline, record_products};
    use crate::backend::emulator::EmulatorOptions;
    use crate::{Buffer, Context, DType, Device, Registry};

    /// None where no C++ compiler is, unless it is required.
    fn emulator() -> Option<Context> {
        let ctx = Context::new(Device::emulator(EmulatorOptions::default()).ok()?, Registry::new());
        let works = pipeline(&ctx, "roofline_fma").unwrap().is_some();
        assert!(works || std::env::var_os("KERNELRY_REQUIRE_TOOLS").is_none(), "roofline.h does not compile");
        works.then_some(ctx)
    }

    /// Words that no two pieces share, with a tail after the unrolled loop of each thread.
    fn words(ctx: &Context) -> (Vec<u32>, Buffer) {
        let pieces = 2 * 512 * 8 * 2 + 777;
        let words: Vec<u32> = (0..4 * pieces as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let buffer = ctx.upload(&words, &[words.len()]).unwrap();
        (words, buffer)
    }

    #[test]
    fn all_is_read() {
        let Some(ctx) = emulator() else { return };
        let (words, src) = words(&ctx);
        let dst = ctx.zeros(DType::U32, &[2 * 512]).unwrap();
        let streaming = Streaming { name: "roofline_read", src: &src, dst: &dst, groups: 2 };
        let mut encoder = ctx.encoder();
        streaming.record(&pipeline(&ctx, streaming.name).unwrap().unwrap(), &mut encoder).unwrap();
        encoder.run().unwrap();
        let all = |words: &[u32]| words.iter().fold(0, |s, w| s ^ w);
        assert_eq!(all(&dst.to_vec::<u32>().unwrap()), all(&words));
    }

    #[test]
    fn all_is_copied() {
        let Some(ctx) = emulator() else { return };
        let (words, src) = words(&ctx);
        let dst = ctx.zeros(DType::U32, &[words.len()]).unwrap();
        let streaming = Streaming { name: "roofline_copy", src: &src, dst: &dst, groups: 2 };
        let mut encoder = ctx.encoder();
        streaming.record(&pipeline(&ctx, streaming.name).unwrap().unwrap(), &mut encoder).unwrap();
        encoder.run().unwrap();
        assert_eq!(dst.to_vec::<u32>().unwrap(), words);
    }

    #[test]
    fn products_are_done() {
        let Some(ctx) = emulator() else { return };
        let sums = |name: &str, rounds: u32| {
            let out = ctx.zeros(DType::F32, &[256]).unwrap();
            let mut encoder = ctx.encoder();
            record_products(&pipeline(&ctx, name).unwrap().unwrap(), 1, rounds, &out, &mut encoder).unwrap();
            encoder.run().unwrap();
            out.to_vec::<f32>().unwrap()
        };
        // 16 chains that end at 2, to the last bit after 4 rounds of 8 halvings.
        assert_eq!(sums("roofline_fma", 4), [32.0; 256]);
        // A round adds the same again to every sum, up to their rounding.
        let (one, three) = (sums("roofline_matrix", 1), sums("roofline_matrix", 3));
        for (one, three) in one.iter().zip(&three) {
            assert!(*one > 1000.0 && (three - 3.0 * one).abs() < 1e-4 * three, "{one} {three}");
        }
    }
}

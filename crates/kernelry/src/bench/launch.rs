//! What a launch costs besides the work of its kernel: recording it, handing it to the device, replaying it.
//!
//! All but one of the steps are measured on a chain of sums over one group of threads, each of which reads what the one before wrote, so
//! that no two run at the same time.

use std::time::{Duration, Instant};

use super::measure::{Budget, timings};
use super::stats::Stats;
use crate::catalogue::{self, Cost, Params};
use crate::ops::elementwise::{Add, ElementwiseParams};
use crate::ops::quantized::{MulMvParams, QuantizedMatmul};
use crate::quant::GgmlType;
use crate::{Buffer, Context, DType, Encoder, Error, Graph, Result};

/// Launches of a chain: many times what a submission costs, and fewer than a device takes before it makes the host wait.
const LAUNCHES: u32 = 512;
/// The same where a launch takes longer than its overhead, as on the emulator.
const FEW_LAUNCHES: u32 = 16;
/// Elements of a sum, and rows and columns of the product.
const SIZE: usize = 256;

const SUM: &str = "elementwise_add_f32";
const PRODUCT: &str = "kernel_mul_mv_q4_0_f32";

/// A part of the cost of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LaunchStep {
    /// Time of the host to record a sum into an encoder.
    Record,
    /// The same of a product with a quantised weight, whose launcher chooses among kernels.
    RecordProduct,
    /// Time of the host to hand what was recorded to the device, without waiting for it.
    Submit,
    /// Recording, submission and execution, until the last launch is done.
    Run,
    /// Time of a launch in a graph that is replayed, by the clock of the device where it has one.
    Node,
    /// Time of the host to start the replay of a whole graph.
    Replay,
}

/// What was measured of a step.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LaunchCost {
    /// Seconds of a launch; for [`LaunchStep::Replay`] of a graph.
    pub time: Stats,
    /// Launches in one timing.
    pub launches: usize,
    /// Work of that which is timed.
    pub cost: Cost,
}

impl LaunchStep {
    /// Every step, in the order of a launch's life.
    pub const ALL: [LaunchStep; 6] =
        [LaunchStep::Record, LaunchStep::RecordProduct, LaunchStep::Submit, LaunchStep::Run, LaunchStep::Node, LaunchStep::Replay];

    /// What is launched, and the step, in the form of bench shapes.
    pub const fn text(self) -> &'static str {
        match self {
            LaunchStep::Record => "n=256 step=record",
            LaunchStep::RecordProduct => "m=1 n=256 k=256 step=record",
            LaunchStep::Submit => "n=256 step=submit",
            LaunchStep::Run => "n=256 step=run",
            LaunchStep::Node => "n=256 step=node",
            LaunchStep::Replay => "n=256 step=replay",
        }
    }

    /// Name of the kernel that is launched.
    pub const fn kernel(self) -> &'static str {
        if matches!(self, LaunchStep::RecordProduct) { PRODUCT } else { SUM }
    }

    /// Measures it.
    ///
    /// # Errors
    /// [`Error::BackendUnsupported`] where the device lacks the kernel, [`Error::Allocation`], [`Error::Execution`].
    pub fn measure(self, ctx: &Context, budget: Budget) -> Result<LaunchCost> {
        if self == LaunchStep::RecordProduct {
            let product = Product::new(ctx)?;
            let record = || recorded(ctx, LAUNCHES, |encoder| product.record(encoder));
            record()?;
            let timings = sampled(budget, || Ok(record()?.0))?;
            return self.cost(&timings, LAUNCHES, 1, &MulMvParams::single(1, SIZE as u32, SIZE as u32));
        }
        let sum = Sum::new(ctx)?;
        let launches = sum.launches(ctx, budget)?;
        let record = || recorded(ctx, launches, |encoder| sum.record(encoder));
        let timings = match self {
            LaunchStep::Record | LaunchStep::RecordProduct => sampled(budget, || Ok(record()?.0)),
            LaunchStep::Submit => sampled(budget, || {
                let (_, encoder) = record()?;
                let begin = Instant::now();
                let submission = encoder.submit()?;
                let time = begin.elapsed();
                submission.wait().map(|()| time)
            }),
            LaunchStep::Run => sampled(budget, || {
                let begin = Instant::now();
                record()?.1.run()?;
                Ok(begin.elapsed())
            }),
            LaunchStep::Node => replayed(&record()?.1.finish()?, budget),
            LaunchStep::Replay => {
                let graph = record()?.1.finish()?;
                sampled(budget, || {
                    let begin = Instant::now();
                    let submission = graph.submit()?;
                    let time = begin.elapsed();
                    submission.wait().map(|()| time)
                })
            }
        }?;
        let (timed, work) = if self == LaunchStep::Replay { (1, launches) } else { (launches, 1) };
        self.cost(&timings, timed, work, &ElementwiseParams { n: SIZE as u32 })
    }

    /// The cost of one of `launches` that a timing covers; what is timed does the work of `work` launches.
    fn cost<P: Params>(self, timings: &[f64], launches: u32, work: u32, params: &P) -> Result<LaunchCost> {
        let one: Vec<f64> = timings.iter().map(|t| t / f64::from(launches)).collect();
        let cost = catalogue::find(self.kernel()).map_or_else(|| Ok(Cost::default()), |kernel| kernel.cost(bytemuck::bytes_of(params)))?;
        let cost = Cost { bytes: cost.bytes * f64::from(work), flops: cost.flops * f64::from(work) };
        Ok(LaunchCost { time: Stats::new(&one), launches: launches as usize, cost })
    }
}

/// Operands of a sum in place.
struct Sum {
    total: Buffer,
    addend: Buffer,
}

impl Sum {
    fn new(ctx: &Context) -> Result<Sum> {
        Ok(Sum { total: ctx.zeros(DType::F32, &[SIZE])?, addend: ctx.zeros(DType::F32, &[SIZE])? })
    }

    fn record(&self, encoder: &mut Encoder) -> Result<()> {
        Add { a: &self.total, b: &self.addend, out: &self.total }.encode(encoder)
    }

    /// How many launches a chain has, so that several fit into the time.
    fn launches(&self, ctx: &Context, budget: Budget) -> Result<u32> {
        let run = || {
            let begin = Instant::now();
            recorded(ctx, FEW_LAUNCHES, |encoder| self.record(encoder))?.1.run()?;
            Ok::<_, Error>(begin.elapsed())
        };
        // The first one builds the kernel.
        run()?;
        let many = run()? * (LAUNCHES / FEW_LAUNCHES) * budget.min_samples.max(1) as u32;
        Ok(if many > budget.time { FEW_LAUNCHES } else { LAUNCHES })
    }
}

/// Operands of a product with a weight in blocks.
struct Product {
    weight: Buffer,
    x: Buffer,
    out: Buffer,
}

impl Product {
    fn new(ctx: &Context) -> Result<Product> {
        let bytes = GgmlType::Q4_0.row_bytes(SIZE)?;
        let vector = || ctx.zeros(DType::F32, &[SIZE]);
        Ok(Product { weight: ctx.zeros(DType::U8, &[SIZE, bytes])?, x: vector()?, out: vector()? })
    }

    fn record(&self, encoder: &mut Encoder) -> Result<()> {
        let Product { weight, x, out } = self;
        QuantizedMatmul { weight, format: GgmlType::Q4_0, x, out, row_invariant: false }.encode(encoder)
    }
}

/// An encoder with `launches` of what `record` records, and the time that took.
fn recorded(ctx: &Context, launches: u32, record: impl Fn(&mut Encoder) -> Result<()>) -> Result<(Duration, Encoder)> {
    let begin = Instant::now();
    let mut encoder = ctx.encoder();
    for _ in 0..launches {
        record(&mut encoder)?;
    }
    Ok((begin.elapsed(), encoder))
}

/// Timings of replays, by the clock of the device where it has one.
fn replayed(graph: &Graph, budget: Budget) -> Result<Vec<f64>> {
    graph.run()?;
    let begin = Instant::now();
    graph.run()?;
    let runs = budget.time.div_duration_f64(begin.elapsed().max(Duration::from_nanos(1))) as usize;
    timings(graph, runs.min(budget.max_samples).max(budget.min_samples).max(1))
}

/// Timings in seconds, after one that does not count.
fn sampled(budget: Budget, mut timing: impl FnMut() -> Result<Duration>) -> Result<Vec<f64>> {
    timing()?;
    let (started, mut timings) = (Instant::now(), Vec::new());
    while timings.len() < budget.min_samples.max(1) || (started.elapsed() < budget.time && timings.len() < budget.max_samples) {
        timings.push(timing()?.as_secs_f64());
    }
    Ok(timings)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Budget, FEW_LAUNCHES, LAUNCHES, LaunchStep, Product, Sum, recorded};
    use crate::{Context, Encoder};
    use std::time::Duration;

    #[test]
    fn every_step_is_measured() {
        let ctx = Context::cpu();
        let budget = Budget { time: Duration::from_millis(5), min_samples: 3, max_samples: 50 };
        for step in LaunchStep::ALL {
            let measured = step.measure(&ctx, budget).unwrap();
            let time = measured.time;
            assert!((3..=50).contains(&time.samples) && 0.0 < time.p10 && time.p10 <= time.p50, "{step:?}: {time:?}");
            assert!(measured.cost.bytes > 0.0 && measured.cost.flops > 0.0, "{step:?}");
            let chain = [FEW_LAUNCHES as usize, LAUNCHES as usize];
            assert!(if step == LaunchStep::Replay { measured.launches == 1 } else { chain.contains(&measured.launches) }, "{step:?}");
        }
    }

    #[test]
    fn what_is_launched_is_the_named_kernel_in_a_chain() {
        let ctx = Context::cpu();
        let (sum, product) = (Sum::new(&ctx).unwrap(), Product::new(&ctx).unwrap());
        for step in LaunchStep::ALL {
            let record =
                |encoder: &mut Encoder| if step == LaunchStep::RecordProduct { product.record(encoder) } else { sum.record(encoder) };
            let mut names = Encoder::of_names(&ctx);
            record(&mut names).unwrap();
            assert_eq!(names.into_names(), [step.kernel()]);
            let graph = recorded(&ctx, 3, record).unwrap().1.finish().unwrap();
            assert_eq!((graph.launches(), graph.barriers()), (3, 2), "{step:?}");
        }
    }
}

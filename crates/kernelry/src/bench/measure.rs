//! Timing launches.

use std::time::{Duration, Instant};

use super::shapes::is_gpu;
use super::{BenchShape, Limit, Roofline, Stats};
use crate::catalogue::{Access, Kernel};
use crate::conformance::{dims_of, make_periodic_inputs};
use crate::registry::{Constants, Options};
use crate::{Buffer, Context, Error, Graph, Result};

/// Working sets below this stay in a cache whatever one does.
const CACHED: f64 = (1 << 20) as f64;
/// Larger working sets are copied until together they exceed every cache.
const COLD: f64 = (512u64 << 20) as f64;
/// Copies at most, on the host and on GPUs, where they cost less: enough of the smallest working set to exceed a cache.
const MAX_COPIES: [usize; 2] = [64, 256];
/// One timing covers at least this long, so that the clock and the submission do not count.
const SAMPLE: Duration = Duration::from_micros(400);
/// The same by the clock of a device: some of what it runs takes microseconds, and its clock rates settle over milliseconds.
const DEVICE_SAMPLE: Duration = Duration::from_millis(4);
/// Random operands repeat after so many elements, a number that no dimension divides.
const PERIOD: usize = 2_000_003;

/// How long to measure one shape.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Time for the timings of one shape, without setting up.
    pub time: Duration,
    /// Timings at least, even if they take longer; a launch that takes ten times the budget is timed once.
    pub min_samples: usize,
    /// Timings at most.
    pub max_samples: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { time: Duration::from_millis(300), min_samples: 5, max_samples: 1000 }
    }
}

/// Where the operands of a measured launch were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Residency {
    /// In memory: launches go round copies of the operands that together exceed every cache.
    Memory,
    /// In a cache: the operands are small, and are the same at each launch. The memory roofline does not bound such a launch.
    Cache,
}

/// What was measured for one shape.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Measurement {
    /// Seconds of one launch.
    pub time: Stats,
    /// Bytes moved per second, by the median.
    pub bytes_per_second: f64,
    /// Arithmetic operations per second, by the median.
    pub flops_per_second: f64,
    /// Share of the roofline, 1 for all of it; `None` if no limit that was measured bounds the launch.
    pub roofline: Option<f64>,
    /// The limit that bounds the launch.
    pub limit: Option<Limit>,
    /// Where the operands were.
    pub residency: Residency,
    /// Launches in one timing.
    pub launches: usize,
}

/// Measures `kernel` at `shape`.
///
/// # Errors
/// [`Error::BackendUnsupported`] where the device lacks the kernel, [`Error::Allocation`], [`Error::Execution`].
pub fn measure(ctx: &Context, kernel: &'static Kernel, shape: &BenchShape, roofline: &Roofline, budget: Budget) -> Result<Measurement> {
    let cost = shape.cost;
    let residency = if cost.bytes < CACHED { Residency::Cache } else { Residency::Memory };
    let max_copies = MAX_COPIES[usize::from(is_gpu(&ctx.device().info().backend))];
    let copies = match residency {
        Residency::Cache => 1,
        Residency::Memory => ((COLD / cost.bytes).ceil() as usize).clamp(1, max_copies),
    };
    let sets = operands(ctx, kernel, shape, copies)?;
    let (launches, timings) = time_launches(ctx, kernel, shape, &sets, budget)?;
    let time = Stats::new(&timings);
    let seconds = time.p50.max(1e-12);
    let least = roofline.least_seconds(cost, shape.read, residency == Residency::Memory, uses_matrix_unit(kernel));
    Ok(Measurement {
        time,
        bytes_per_second: cost.bytes / seconds,
        flops_per_second: cost.flops / seconds,
        roofline: least.map(|(least, _)| least / seconds),
        limit: least.map(|(_, limit)| limit),
        residency,
        launches,
    })
}

/// Whether the text of a kernel has products for the matrix unit.
fn uses_matrix_unit(kernel: &Kernel) -> bool {
    kernel.gpu_text().is_some_and(|text| text.contains("kn_mma<") || text.contains("Wgmma<"))
}

/// Times of `runs` runs of a graph in seconds: by the clock of the device, or of the host where it has none.
pub(super) fn timings(graph: &Graph, runs: usize) -> Result<Vec<f64>> {
    if let Some(times) = graph.run_timed(runs)? {
        return Ok(times.iter().map(Duration::as_secs_f64).collect());
    }
    (0..runs).map(|_| timed(graph).map(|t| t.as_secs_f64())).collect()
}

/// Time of a run by the clock of the host.
fn timed(graph: &Graph) -> Result<Duration> {
    let begin = Instant::now();
    graph.run()?;
    Ok(begin.elapsed())
}

/// How many launches one timing covers, and the timings of one launch in seconds.
fn time_launches(
    ctx: &Context,
    kernel: &'static Kernel,
    shape: &BenchShape,
    sets: &[Operands],
    budget: Budget,
) -> Result<(usize, Vec<f64>)> {
    let first = record(ctx, kernel, shape, sets, 1)?;
    let cold = timed(&first)?;
    if cold > 10 * budget.time {
        // Warming up does not change what takes this long.
        return Ok((1, vec![cold.as_secs_f64()]));
    }
    if let Some(once) = first.run_timed(1)? {
        let once = once.first().copied().unwrap_or(cold).max(Duration::from_nanos(500));
        // Whole rounds over the copies, so that each timing meets the same memory.
        let launches = DEVICE_SAMPLE.div_duration_f64(once).ceil().clamp(1.0, 4096.0) as usize;
        let launches = launches.next_multiple_of(sets.len());
        let graph = record(ctx, kernel, shape, sets, launches)?;
        let samples = budget.time.div_duration_f64(once * launches as u32) as usize;
        let samples = samples.max(budget.min_samples).min(budget.max_samples).max(1);
        return Ok((launches, timings(&graph, samples)?.into_iter().map(|t| t / launches as f64).collect()));
    }
    let once = timed(&first)?;
    let launches = (SAMPLE.as_secs_f64() / once.as_secs_f64().max(1e-9)).ceil().clamp(1.0, 4096.0) as usize;
    // Whole rounds over the copies, so that each sample meets the same memory; for long launches a graph for each copy, in turn.
    let launches = if launches > 1 { launches.next_multiple_of(sets.len()) } else { launches };
    let graphs: Vec<Graph> = if launches > 1 {
        vec![record(ctx, kernel, shape, sets, launches)?]
    } else {
        sets.chunks(1).map(|set| record(ctx, kernel, shape, set, 1)).collect::<Result<_>>()?
    };
    let mut timings = Vec::new();
    let started = Instant::now();
    for graph in graphs.iter().cycle() {
        timings.push(timed(graph)?.as_secs_f64() / launches as f64);
        let enough = timings.len() >= budget.min_samples && started.elapsed() >= budget.time;
        if enough || timings.len() >= budget.max_samples {
            break;
        }
    }
    Ok((launches, timings))
}

type Operands = Vec<Option<Buffer>>;

fn operands(ctx: &Context, kernel: &'static Kernel, shape: &BenchShape, copies: usize) -> Result<Vec<Operands>> {
    let case = &shape.case;
    let data = make_periodic_inputs(kernel, case, 42, PERIOD)?;
    let mut sets: Vec<Operands> = Vec::new();
    for _ in 0..copies {
        let mut set: Operands = Vec::new();
        for (i, (binding, bytes)) in kernel.bindings().iter().zip(&data).enumerate() {
            let aliased = case.alias.iter().any(|(out, _)| *out == binding.name());
            let dims = dims_of(kernel, i, &case.params)?;
            set.push(match bytes {
                Some(_) if aliased => None,
                // Zeroed, not unspecified: the pages are there before the first timing.
                Some(_) if binding.access() == Access::Write => Some(ctx.zeros(binding.dtype(), &dims)?),
                // The device copies faster than the host hands over.
                Some(bytes) => match sets.first().and_then(|first| first.get(i)).and_then(Option::as_ref) {
                    Some(first) => {
                        let copy = ctx.zeros(binding.dtype(), &dims)?;
                        let mut encoder = ctx.encoder();
                        encoder.copy(first, &copy)?;
                        encoder.run()?;
                        Some(copy)
                    }
                    None => Some(Buffer::from_bytes(ctx.device(), bytes, binding.dtype(), &dims)?),
                },
                None => None,
            });
        }
        for (out, input) in &case.alias {
            if let (Some(o), Some(i)) = (kernel.binding_index(out), kernel.binding_index(input)) {
                let shared = set.get(i).cloned().flatten();
                if let Some(slot) = set.get_mut(o) {
                    *slot = shared;
                }
            }
        }
        sets.push(set);
    }
    Ok(sets)
}

/// Records `launches` launches that go round `sets`.
fn record(ctx: &Context, kernel: &'static Kernel, shape: &BenchShape, sets: &[Operands], launches: usize) -> Result<Graph> {
    let case = &shape.case;
    let constants = Constants::new(kernel.name(), case.constants.iter().copied())?;
    let pipeline = ctx.registry().get_with(kernel.name(), ctx.device(), &constants, Options::with_math(case.math))?;
    let mut encoder = ctx.encoder();
    for set in sets.iter().cycle().take(launches) {
        let args: Vec<Option<&Buffer>> = set.iter().map(Option::as_ref).collect();
        match case.launcher {
            Some(launcher) => launcher(kernel, &mut encoder, &args, &case.params)?,
            None => encoder.launch_pipeline(&pipeline, &args, &case.params)?,
        }
    }
    let graph = encoder.finish()?;
    if graph.launches() < launches {
        return Err(Error::invalid(kernel.name(), "bench shape: got one that launches nothing, expected work"));
    }
    Ok(graph)
}

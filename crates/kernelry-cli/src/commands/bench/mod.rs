//! `kernelry bench`.

mod row;

use std::time::Duration;

use kernelry::Context;
use kernelry::bench::{BenchShape, Budget, Roofline, measure, shapes};
use kernelry::catalogue::Kernel;
use kernelry::registry::Math;
use row::{CSV_HEADER, Entry, limit_name, residency_name};
use serde::Serialize;

use super::bench_model::{self, Format, Plan};
use super::bench_origin::Origin;
use crate::device::{DeviceArg, Selection};
use crate::failure::{CliResult, Failure};
use crate::model::ModelArg;
use crate::output::Output;
use crate::progress;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    device: DeviceArg,
    /// Time for each shape, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    time: u64,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print comma-separated values
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    whole: WholeModel,
}

/// Measure a whole model instead, in the columns of llama-bench
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Whole models")]
struct WholeModel {
    #[command(flatten)]
    model: ModelArg,
    /// Tokens of the prompt test, or of several separated by commas; 0 for none. Asks for a whole model, the one in the box without
    /// --model [default: 512, or none with -n]
    #[arg(short = 'p', long = "prompt", value_name = "N", value_delimiter = ',')]
    prompt: Vec<usize>,
    /// Tokens of the generation test, likewise [default: 128, or none with -p]
    #[arg(short = 'n', long = "generate", value_name = "N", value_delimiter = ',')]
    generate: Vec<usize>,
    /// Repeats of each test
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    repeats: u16,
    /// Format of the results
    #[arg(short = 'o', long, value_enum, default_value_t = Format::Md)]
    output: Format,
}

impl WholeModel {
    fn asked_for(&self) -> bool {
        self.model.model.is_some() || !self.prompt.is_empty() || !self.generate.is_empty()
    }
}

/// What is printed with `--json`, and what stands under `bench/`, before the rows.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    origin: Origin,
    roofline: Roofline,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    if args.whole.asked_for() {
        let whole = &args.whole;
        if !args.selection.globs.is_empty() || args.selection.family.is_some() {
            return Err(Failure::usage("got kernels and a whole model (--model, -p or -n), expected one of them"));
        }
        let format = if args.json {
            Format::Json
        } else if args.csv {
            Format::Csv
        } else {
            whole.output
        };
        return bench_model::run(
            &Plan {
                model: &whole.model,
                device: &args.device,
                prompt: if whole.prompt.is_empty() && whole.generate.is_empty() { &[512] } else { &whole.prompt },
                generate: if whole.prompt.is_empty() && whole.generate.is_empty() { &[128] } else { &whole.generate },
                repeats: usize::from(whole.repeats),
                format,
            },
            out,
        );
    }
    let chosen = args.selection.kernels()?;
    let (device, ctx) = args.device.open()?;
    let backend = ctx.device().info().backend.clone();
    let mut work: Vec<(&'static Kernel, BenchShape)> = Vec::new();
    for kernel in chosen.iter().filter(|k| ctx.device().support(k).supported) {
        work.extend(shapes(kernel, &backend).into_iter().map(|s| (*kernel, s)));
    }
    if work.is_empty() {
        return Err(Failure::runtime(format!("device {device} can measure none of the {} kernels", chosen.len()))
            .hint("`kernelry list --available` shows what it has"));
    }
    let bar = progress::items(work.len());
    bar.set_message("limits of the device");
    let roofline = Roofline::measure(&ctx)?;
    let mut table = Text::default();
    if args.csv {
        out.line(CSV_HEADER)?;
    } else if !args.json {
        bar.suspend(|| heading(out, &ctx, &roofline))?;
    }
    let budget = Budget { time: Duration::from_millis(args.time), ..Budget::default() };
    let mut entries = Vec::new();
    for (kernel, shape) in &work {
        bar.set_message(format!("{} {}", kernel.name(), shape.text()));
        // One kernel that fails says nothing of the others.
        let entry = Entry::new(&backend, kernel, shape, measure(&ctx, kernel, shape, &roofline, budget));
        if args.csv {
            bar.suspend(|| out.line(entry.csv()).and_then(|()| out.flush()))?;
        } else if !args.json {
            bar.suspend(|| table.print(out, &entry))?;
        }
        entries.push(entry);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        out.json_with_rows(&Report { origin: Origin::new(ctx.device()), roofline }, "results", &entries)?;
    }
    let failed = entries.iter().filter(|e| matches!(e, Entry::Failed(_))).count();
    if failed > 0 {
        out.flush()?;
        return Err(Failure::runtime(format!("{failed} of {} shapes could not be measured", entries.len())));
    }
    Ok(())
}

fn heading(out: &mut Output, ctx: &Context, roofline: &Roofline) -> CliResult {
    let mut limits = vec![format!("copy {:.1} GB/s", roofline.copy_bytes_per_second / 1e9)];
    limits.extend(roofline.read_bytes_per_second.map(|r| format!("read {:.1} GB/s", r / 1e9)));
    limits.extend(roofline.f32_flops_per_second.map(|r| format!("f32 {:.1} GFLOP/s", r / 1e9)));
    limits.extend(roofline.matrix16_flops_per_second.map(|r| format!("16-bit matrix unit {:.1} TFLOP/s", r / 1e12)));
    out.line(format!("{}: {}", out.bold(&ctx.device().info().name), limits.join(", ")))?;
    if cfg!(debug_assertions) {
        out.line("This is a debug build: its figures mean nothing.")?;
    }
    out.flush()
}

/// The table for people, printed row by row while it is measured.
#[derive(Default)]
struct Text {
    kernel: Option<String>,
}

impl Text {
    fn print(&mut self, out: &mut Output, entry: &Entry) -> CliResult {
        if self.kernel.is_none() {
            out.line("")?;
            let header = format!(
                "{:44} {:>10} {:>10} {:>10} {:>9} {:>10} {:>7} {:8}  {}",
                "kernel / shape", "p10 µs", "p50 µs", "p90 µs", "GB/s", "GFLOP/s", "roof %", "of", "operands"
            );
            out.line(out.bold(&header))?;
        }
        let (kernel, shape, math) = match entry {
            Entry::Measured(row) => (&row.kernel, &row.shape, row.math),
            Entry::Failed(row) => (&row.kernel, &row.shape, row.math),
        };
        if self.kernel.as_ref() != Some(kernel) {
            out.line(kernel)?;
            self.kernel = Some(kernel.clone());
        }
        let shape = if math == Math::Fast { format!("{shape} fast") } else { shape.clone() };
        match entry {
            Entry::Failed(failed) => out.line(format!("  {shape:42} {} {}", out.red("failed:"), failed.error))?,
            Entry::Measured(row) => {
                let roofline = row.roofline_pct.map_or_else(|| "-".into(), |p| format!("{p:.1}"));
                out.line(format!(
                    "  {:42} {:10.2} {:10.2} {:10.2} {:9.2} {:10.2} {roofline:>7} {:8}  {}",
                    shape,
                    row.p10_us,
                    row.p50_us,
                    row.p90_us,
                    row.gb_s,
                    row.gflop_s,
                    row.limit.map_or("", limit_name),
                    residency_name(row.residency)
                ))?;
            }
        }
        out.flush()
    }
}

//! `kernelry bench`.

use std::time::Duration;

use kernelry::Context;
use kernelry::bench::{BenchShape, Budget, Measurement, Residency, Roofline, measure, shapes};
use kernelry::catalogue::Kernel;
use kernelry::registry::Math;
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

/// One measured shape, the same fields in JSON and CSV.
#[derive(Serialize)]
struct Row {
    kernel: &'static str,
    family: &'static str,
    backend: String,
    shape: String,
    math: Math,
    samples: usize,
    launches: usize,
    p10_us: f64,
    p50_us: f64,
    p90_us: f64,
    mean_us: f64,
    stddev_us: f64,
    bytes: f64,
    flops: f64,
    gb_s: f64,
    gflop_s: f64,
    roofline_pct: Option<f64>,
    residency: Residency,
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
    let mut work: Vec<(&'static Kernel, BenchShape)> = Vec::new();
    for kernel in chosen.iter().filter(|k| ctx.device().support(k).supported) {
        work.extend(shapes(kernel).into_iter().map(|s| (*kernel, s)));
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
    let mut rows = Vec::new();
    for (kernel, shape) in &work {
        bar.set_message(format!("{} {}", kernel.name(), shape.text()));
        let row = row(&ctx, kernel, shape, &measure(&ctx, kernel, shape, &roofline, budget)?);
        if args.csv {
            bar.suspend(|| out.line(csv(&row)).and_then(|()| out.flush()))?;
        } else if !args.json {
            bar.suspend(|| table.print(out, &row))?;
        }
        rows.push(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        out.json_with_rows(&Report { origin: Origin::new(ctx.device().info()), roofline }, "results", &rows)?;
    }
    Ok(())
}

fn row(ctx: &Context, kernel: &'static Kernel, shape: &BenchShape, m: &Measurement) -> Row {
    let us = |seconds: f64| seconds * 1e6;
    Row {
        kernel: kernel.name(),
        family: kernel.family().name(),
        backend: ctx.device().info().backend.clone(),
        shape: shape.text().to_owned(),
        math: shape.math(),
        samples: m.time.samples,
        launches: m.launches,
        p10_us: us(m.time.p10),
        p50_us: us(m.time.p50),
        p90_us: us(m.time.p90),
        mean_us: us(m.time.mean),
        stddev_us: us(m.time.stddev),
        bytes: shape.cost().bytes,
        flops: shape.cost().flops,
        gb_s: m.bytes_per_second / 1e9,
        gflop_s: m.flops_per_second / 1e9,
        roofline_pct: m.roofline.map(|r| r * 100.0),
        residency: m.residency,
    }
}

fn heading(out: &mut Output, ctx: &Context, roofline: &Roofline) -> CliResult {
    let mut limits = vec![format!("copy {:.1} GB/s", roofline.copy_bytes_per_second / 1e9)];
    limits.extend(roofline.read_bytes_per_second.map(|r| format!("read {:.1} GB/s", r / 1e9)));
    limits.extend(roofline.f32_flops_per_second.map(|r| format!("f32 {:.1} GFLOP/s", r / 1e9)));
    out.line(format!("{}: {}", out.bold(&ctx.device().info().name), limits.join(", ")))?;
    if cfg!(debug_assertions) {
        out.line("This is a debug build: its figures mean nothing.")?;
    }
    out.flush()
}

/// The table for people, printed row by row while it is measured.
#[derive(Default)]
struct Text {
    kernel: Option<&'static str>,
}

impl Text {
    fn print(&mut self, out: &mut Output, row: &Row) -> CliResult {
        if self.kernel.is_none() {
            out.line("")?;
            let header = format!(
                "{:44} {:>10} {:>10} {:>10} {:>9} {:>10} {:>7}  {}",
                "kernel / shape", "p10 µs", "p50 µs", "p90 µs", "GB/s", "GFLOP/s", "roof %", "operands"
            );
            out.line(out.bold(&header))?;
        }
        if self.kernel != Some(row.kernel) {
            out.line(row.kernel)?;
            self.kernel = Some(row.kernel);
        }
        let shape = if row.math == Math::Fast { format!("{} fast", row.shape) } else { row.shape.clone() };
        let place = match row.residency {
            Residency::Memory => "memory",
            Residency::Cache => "cache",
        };
        let roofline = row.roofline_pct.map_or_else(|| "-".into(), |p| format!("{p:.1}"));
        out.line(format!(
            "  {:42} {:10.2} {:10.2} {:10.2} {:9.2} {:10.2} {roofline:>7}  {place}",
            shape, row.p10_us, row.p50_us, row.p90_us, row.gb_s, row.gflop_s
        ))?;
        out.flush()
    }
}

const CSV_HEADER: &str = "kernel,family,backend,shape,math,samples,launches,p10_us,p50_us,p90_us,mean_us,stddev_us,bytes,flops,gb_s,gflop_s,roofline_pct,residency";

fn csv(r: &Row) -> String {
    let math = if r.math == Math::Fast { "fast" } else { "precise" };
    let residency = if r.residency == Residency::Memory { "memory" } else { "cache" };
    let roofline = r.roofline_pct.map_or_else(String::new, |p| format!("{p:.2}"));
    let times = [r.p10_us, r.p50_us, r.p90_us, r.mean_us, r.stddev_us].map(|t| format!("{t:.3}")).join(",");
    format!(
        "{},{},{},{},{math},{},{},{times},{},{},{:.4},{:.4},{roofline},{residency}",
        r.kernel,
        r.family,
        r.backend,
        csv_field(&r.shape),
        r.samples,
        r.launches,
        r.bytes,
        r.flops,
        r.gb_s,
        r.gflop_s
    )
}

/// Quotes a field that would not survive as it is.
fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::csv_field;

    #[test]
    fn fields_with_commas_are_quoted() {
        assert_eq!(csv_field("m=1 n=2"), "m=1 n=2");
        assert_eq!(csv_field("a, \"b\""), "\"a, \"\"b\"\"\"");
    }
}

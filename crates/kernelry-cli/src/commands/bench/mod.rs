//! `kernelry bench`.

mod compare;
mod draft;
mod html;
mod row;

use std::path::{Path, PathBuf};
use std::time::Duration;

use compare::Other;
use draft::Draft;
use kernelry::backend::DeviceInfo;
use kernelry::bench::{BenchShape, Budget, LaunchStep, Roofline, measure, shapes};
use kernelry::catalogue::Kernel;
use row::{CSV_HEADER, Entry, LAUNCH, limit_name, residency_name, shape_text};
use serde::{Deserialize, Serialize};

use super::bench_cold;
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
    /// Measure what a launch costs, and no kernels: recording it, handing it to the device, replaying it; without GLOB and --family that
    /// is part of every run
    #[arg(long, conflicts_with_all = ["globs", "family"])]
    launch: bool,
    /// Time for each shape, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    time: u64,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print comma-separated values
    #[arg(long)]
    csv: bool,
    /// Write the figures and a roofline plot to a self-contained HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the figures beside those of FILE: peers, or an earlier --json of ours [default: peers on this device]
    #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with_all = ["json", "csv"])]
    compare: Option<Option<PathBuf>>,
    /// Take the figures from an earlier --json instead of measuring
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "time"])]
    from: Option<PathBuf>,
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
    /// Measure processes that write one token instead, from their start: kernels from a pack (KERNELRY_PACK, or one that is compiled for
    /// this), from the cache on disk, and from source
    #[arg(long, conflicts_with_all = ["globs", "family", "launch", "time", "csv", "html", "compare", "from", "prompt", "generate", "output"])]
    cold_start: bool,
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
#[derive(Deserialize, Serialize)]
struct Report {
    #[serde(flatten)]
    origin: Origin,
    roofline: Roofline,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    if args.whole.cold_start {
        return bench_cold::run(&args.whole.model, &args.device, usize::from(args.whole.repeats), args.json, out);
    }
    if args.whole.asked_for() {
        let whole = &args.whole;
        if !args.selects_all() || args.launch {
            return Err(Failure::usage("got kernels and a whole model (--model, -p or -n), expected one of them"));
        }
        if args.html.is_some() || args.compare.is_some() || args.from.is_some() {
            return Err(Failure::usage("--html, --compare and --from are for kernels, got a whole model (--model, -p or -n)"));
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
    // What the command cannot do, it says before it measures.
    let html = args.html.as_deref().map(Draft::new).transpose()?;
    let mut shown = Shown { format: args.format(), table: Text::default() };
    let (report, entries) = match &args.from {
        Some(path) => {
            let (report, mut entries) = earlier(path)?;
            entries.retain(|entry| match entry.family() {
                LAUNCH => args.measures_launches(),
                _ => !args.launch && chosen.iter().any(|k| k.name() == entry.kernel()),
            });
            let other = args.other(&report.origin.device)?;
            shown.begin(out, &report)?;
            entries.iter().try_for_each(|entry| shown.entry(out, entry))?;
            (report, Figures { entries, other })
        }
        None => measured(args, &chosen, &mut shown, out)?,
    };
    let Figures { entries, other } = entries;
    if args.json {
        out.json_with_rows(&report, "results", &entries)?;
    }
    if let Some(other) = other {
        other.print(&entries, out)?;
    }
    out.flush()?;
    if let Some(html) = html {
        html.write(&html::render(&report, &entries)?)?;
    }
    let failed = entries.iter().filter(|e| e.measured().is_none()).count();
    if failed > 0 {
        return Err(Failure::runtime(format!("{failed} of {} shapes could not be measured", entries.len())));
    }
    Ok(())
}

/// The rows, and what they are compared with.
struct Figures {
    entries: Vec<Entry>,
    other: Option<Other>,
}

/// How rows are shown while they come.
#[derive(Clone, Copy, PartialEq)]
enum RowFormat {
    Text,
    Csv,
    /// All at the end.
    Json,
}

impl Args {
    fn selects_all(&self) -> bool {
        self.selection.globs.is_empty() && self.selection.family.is_none()
    }

    fn measures_launches(&self) -> bool {
        self.launch || self.selects_all()
    }

    fn format(&self) -> RowFormat {
        match (self.json, self.csv) {
            (true, _) => RowFormat::Json,
            (_, true) => RowFormat::Csv,
            _ => RowFormat::Text,
        }
    }

    fn other(&self, device: &DeviceInfo) -> CliResult<Option<Other>> {
        self.compare.as_ref().map(|path| Other::open(path.as_deref(), &device.name, &device.backend)).transpose()
    }
}

/// Figures of an earlier run.
fn earlier(path: &Path) -> CliResult<(Report, Vec<Entry>)> {
    let broken =
        |reason: String| Failure::runtime(format!("{}: {reason}", path.display())).hint("expected an output of `kernelry bench --json`");
    let text = std::fs::read_to_string(path).map_err(|e| Failure::runtime(format!("{}: {e}", path.display())))?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
    let report = Report::deserialize(&value).map_err(|e| broken(e.to_string()))?;
    let rows = value.get("results").ok_or_else(|| broken("got no list `results`".into()))?;
    let entries = Vec::<Entry>::deserialize(rows).map_err(|e| broken(format!("results: {e}")))?;
    Ok((report, entries))
}

fn measured(args: &Args, chosen: &[&'static Kernel], shown: &mut Shown, out: &mut Output) -> CliResult<(Report, Figures)> {
    let (device, ctx) = args.device.open()?;
    let info = ctx.device().info();
    let other = args.other(info)?;
    let mut work: Vec<(&'static Kernel, BenchShape)> = Vec::new();
    for kernel in chosen.iter().filter(|k| !args.launch && ctx.device().support(k).supported) {
        work.extend(shapes(kernel, &info.backend).into_iter().map(|s| (*kernel, s)));
    }
    let steps: &[LaunchStep] = if args.measures_launches() { &LaunchStep::ALL } else { &[] };
    if work.is_empty() && steps.is_empty() {
        return Err(Failure::runtime(format!("device {device} can measure none of the {} kernels", chosen.len()))
            .hint("`kernelry list --available` shows what it has"));
    }
    let bar = progress::items(steps.len() + work.len());
    bar.set_message("limits of the device");
    let report = Report { roofline: Roofline::measure(&ctx)?, origin: Origin::new(ctx.device()) };
    bar.suspend(|| shown.begin(out, &report))?;
    let budget = Budget { time: Duration::from_millis(args.time), ..Budget::default() };
    let mut entries = Vec::new();
    let mut add = |entry: Entry| {
        bar.suspend(|| shown.entry(out, &entry))?;
        entries.push(entry);
        bar.inc(1);
        Ok::<_, Failure>(())
    };
    for step in steps {
        bar.set_message(format!("{LAUNCH} {}", step.text()));
        add(Entry::launch(&info.backend, *step, step.measure(&ctx, budget)))?;
    }
    for (kernel, shape) in &work {
        bar.set_message(format!("{} {}", kernel.name(), shape.text()));
        // One kernel that fails says nothing of the others.
        add(Entry::new(&info.backend, kernel, shape, measure(&ctx, kernel, shape, &report.roofline, budget)))?;
    }
    bar.finish_and_clear();
    Ok((report, Figures { entries, other }))
}

/// Rows as they come.
struct Shown {
    format: RowFormat,
    table: Text,
}

impl Shown {
    fn begin(&self, out: &mut Output, report: &Report) -> CliResult {
        match self.format {
            RowFormat::Csv => out.line(CSV_HEADER),
            RowFormat::Text => heading(out, report),
            RowFormat::Json => Ok(()),
        }
    }

    fn entry(&mut self, out: &mut Output, entry: &Entry) -> CliResult {
        match self.format {
            RowFormat::Csv => out.line(entry.csv()).and_then(|()| out.flush()),
            RowFormat::Text => self.table.print(out, entry),
            RowFormat::Json => Ok(()),
        }
    }
}

/// The limits in words.
fn limits(roofline: &Roofline) -> Vec<String> {
    let mut limits = vec![format!("copy {:.1} GB/s", roofline.copy_bytes_per_second / 1e9)];
    limits.extend(roofline.read_bytes_per_second.map(|r| format!("read {:.1} GB/s", r / 1e9)));
    limits.extend(roofline.f32_flops_per_second.map(|r| format!("f32 {:.1} GFLOP/s", r / 1e9)));
    limits.extend(roofline.matrix16_flops_per_second.map(|r| format!("16-bit matrix unit {:.1} TFLOP/s", r / 1e12)));
    limits
}

fn heading(out: &mut Output, report: &Report) -> CliResult {
    out.line(format!("{}: {}", out.bold(&report.origin.device.name), limits(&report.roofline).join(", ")))?;
    if report.origin.build == "debug" {
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
        let shape = shape_text(shape, math);
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

//! `kernelry bench --model`: whole models, in the columns of llama-bench.

use std::time::Instant;

use kernelry_models::Generator;
use serde::Serialize;

use crate::device::DeviceArg;
use crate::failure::{CliResult, Failure};
use crate::interrupt;
use crate::model::ModelArg;
use crate::output::Output;

/// How results are printed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Format {
    Md,
    Csv,
    Json,
    Jsonl,
}

/// What is measured.
pub(crate) struct Plan<'a> {
    pub(crate) model: &'a ModelArg,
    pub(crate) device: &'a DeviceArg,
    pub(crate) prompt: usize,
    pub(crate) generate: usize,
    pub(crate) repeats: usize,
    pub(crate) format: Format,
}

/// A test, with the field names of llama-bench.
#[derive(Serialize)]
struct Row {
    model_filename: String,
    model_type: String,
    model_size: u64,
    model_n_params: u64,
    backends: String,
    n_threads: usize,
    n_batch: usize,
    type_k: String,
    n_prompt: usize,
    n_gen: usize,
    avg_ns: f64,
    stddev_ns: f64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
}

pub(crate) fn run(plan: &Plan<'_>, out: &mut Output) -> CliResult {
    let (device, ctx) = plan.device.open()?;
    let mut generator = plan.model.load(&ctx)?;
    let capacity = generator.session().capacity();
    if plan.prompt.max(plan.generate) > capacity || plan.prompt.max(plan.generate) == 0 {
        return Err(Failure::usage(format!(
            "-p and -n: got {} and {}, expected one of them above 0 and neither above the context of {capacity}",
            plan.prompt, plan.generate
        )));
    }
    let mut rows = Vec::new();
    for (n_prompt, n_gen) in [(plan.prompt, 0), (0, plan.generate)] {
        if n_prompt + n_gen > 0 {
            rows.push(measure(plan, &mut generator, &device, n_prompt, n_gen)?);
        }
    }
    print(plan.format, &rows, out)
}

/// One untimed run, then the repeats.
fn measure(plan: &Plan<'_>, generator: &mut Generator, device: &str, n_prompt: usize, n_gen: usize) -> CliResult<Row> {
    let vocab = generator.tokenizer().vocab_size().max(1) as u32;
    let token = |i: usize| (i as u32).wrapping_mul(2_654_435_761) % vocab;
    let prompt: Vec<u32> = (0..n_prompt).map(token).collect();
    let mut samples = Vec::new();
    for repeat in 0..=plan.repeats {
        interrupt::check()?;
        let session = generator.session();
        session.truncate(0)?;
        let started = Instant::now();
        if n_gen == 0 {
            session.append(&prompt)?;
        }
        for i in 0..n_gen {
            session.append(&[token(i)])?;
        }
        if repeat > 0 {
            samples.push(started.elapsed().as_nanos() as u64);
        }
    }
    let tokens = (n_prompt + n_gen) as f64;
    let times: Vec<f64> = samples.iter().map(|&ns| ns as f64).collect();
    let speeds: Vec<f64> = times.iter().map(|ns| tokens * 1e9 / ns).collect();
    let ((avg_ns, stddev_ns), (avg_ts, stddev_ts)) = (mean_and_deviation(&times), mean_and_deviation(&speeds));
    let model = generator.model();
    let config = model.config();
    Ok(Row {
        model_filename: plan.model.path().display().to_string(),
        model_type: format!("{} {}", config.architecture.name(), config.name.as_deref().unwrap_or("")).trim().to_owned(),
        model_size: model.weight_bytes(),
        model_n_params: model.parameters(),
        backends: device.to_owned(),
        n_threads: kernelry::Config::from_env().threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        n_batch: model.options().batch,
        type_k: model.options().kv_type.dtype().to_string(),
        n_prompt,
        n_gen,
        avg_ns,
        stddev_ns,
        avg_ts,
        stddev_ts,
        samples_ns: samples,
    })
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, variance.sqrt())
}

impl Row {
    fn test(&self) -> String {
        if self.n_gen == 0 { format!("pp{}", self.n_prompt) } else { format!("tg{}", self.n_gen) }
    }
}

fn print(format: Format, rows: &[Row], out: &mut Output) -> CliResult {
    match format {
        Format::Json => out.json(&rows),
        Format::Jsonl => rows.iter().try_for_each(|row| match serde_json::to_string(row) {
            Ok(line) => out.line(line),
            Err(e) => Err(Failure::runtime(e.to_string())),
        }),
        Format::Csv => {
            out.line(
                "model_filename,model_type,model_size,model_n_params,backends,n_threads,n_prompt,n_gen,avg_ns,stddev_ns,avg_ts,stddev_ts",
            )?;
            rows.iter().try_for_each(|r| {
                out.line(format!(
                    "\"{}\",\"{}\",{},{},{},{},{},{},{:.0},{:.0},{:.6},{:.6}",
                    r.model_filename.replace('"', "\"\""),
                    r.model_type.replace('"', "\"\""),
                    r.model_size,
                    r.model_n_params,
                    r.backends,
                    r.n_threads,
                    r.n_prompt,
                    r.n_gen,
                    r.avg_ns,
                    r.stddev_ns,
                    r.avg_ts,
                    r.stddev_ts
                ))
            })
        }
        Format::Md => {
            out.line("| model | size | params | backend | threads | test | t/s |")?;
            out.line("| --- | ---: | ---: | --- | ---: | ---: | ---: |")?;
            rows.iter().try_for_each(|r| {
                out.line(format!(
                    "| {} | {:.2} MiB | {:.2} M | {} | {} | {} | {:.2} ± {:.2} |",
                    r.model_type,
                    r.model_size as f64 / (1 << 20) as f64,
                    r.model_n_params as f64 / 1e6,
                    r.backends,
                    r.n_threads,
                    r.test(),
                    r.avg_ts,
                    r.stddev_ts
                ))
            })
        }
    }
}

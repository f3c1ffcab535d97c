//! `kernelry bench --model`: whole models, in the columns of llama-bench.

use std::time::Instant;

use kernelry::Device;
use kernelry_models::Generator;
use serde::Serialize;

use super::bench_origin::Origin;
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
    pub(crate) prompt: &'a [usize],
    pub(crate) generate: &'a [usize],
    pub(crate) repeats: usize,
    pub(crate) format: Format,
}

/// A test, with the field names of llama-bench.
#[derive(Serialize)]
struct Row {
    build_commit: Option<String>,
    command: String,
    cpu_info: String,
    model_filename: String,
    model_type: String,
    model_size: u64,
    model_n_params: u64,
    backends: String,
    n_threads: u32,
    n_batch: usize,
    type_k: String,
    n_prompt: usize,
    n_gen: usize,
    avg_ns: f64,
    stddev_ns: f64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
}

pub(crate) fn run(plan: &Plan<'_>, out: &mut Output) -> CliResult {
    let (_, ctx) = plan.device.open()?;
    let device = ctx.device().clone();
    let mut generator = plan.model.load(&ctx)?;
    let capacity = generator.session().capacity();
    let tests: Vec<(usize, usize)> = plan.prompt.iter().map(|&p| (p, 0)).chain(plan.generate.iter().map(|&n| (0, n))).collect();
    let longest = tests.iter().map(|&(p, n)| p.max(n)).max().unwrap_or(0);
    if longest == 0 {
        return Err(Failure::usage("nothing to measure: -p and -n are both 0"));
    }
    if longest > capacity {
        return Err(Failure::usage(format!("-p and -n: got {longest} tokens, expected at most {capacity}, the context")));
    }
    interrupt::listen();
    let mut rows = Vec::new();
    for (n_prompt, n_gen) in tests {
        if n_prompt + n_gen > 0 {
            rows.push(measure(plan, &mut generator, &device, n_prompt, n_gen)?);
        }
    }
    print(plan.format, &rows, out)
}

/// One untimed run, then the repeats.
fn measure(plan: &Plan<'_>, generator: &mut Generator, device: &Device, n_prompt: usize, n_gen: usize) -> CliResult<Row> {
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
        // Greedy generation, but with tokens known beforehand: random weights would repeat one for ever.
        for i in 0..n_gen {
            interrupt::check()?;
            session.append_greedy(token(i), vocab as usize)?;
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
    let (origin, device) = (Origin::new(device), device.info());
    Ok(Row {
        build_commit: origin.commit,
        command: origin.command,
        cpu_info: device.name.clone(),
        model_filename: plan.model.path().display().to_string(),
        model_type: format!("{} {} {}", config.architecture.name(), params(model.parameters()).replace(' ', ""), plan.model.file_type()?),
        model_size: model.weight_bytes(),
        model_n_params: model.parameters(),
        backends: device.backend.to_uppercase(),
        n_threads: device.units,
        n_batch: model.options().batch,
        type_k: model.options().kv_type.dtype().to_string(),
        n_prompt,
        n_gen,
        avg_ns,
        stddev_ns,
        avg_ts,
        stddev_ts,
        samples_ns: samples,
        samples_ts: speeds,
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
            out.line(md(["model", "size", "params", "backend", "threads", "test", "t/s"].map(str::to_owned)))?;
            out.line(RULE)?;
            rows.iter().try_for_each(|r| {
                let (size, params) = (size(r.model_size), params(r.model_n_params));
                let rate = format!("{:.2} ± {:.2}", r.avg_ts, r.stddev_ts);
                out.line(md([r.model_type.clone(), size, params, r.backends.clone(), r.n_threads.to_string(), r.test(), rate]))
            })
        }
    }
}

const RULE: &str =
    "| ------------------------------ | ---------: | ---------: | ---------- | ------: | ------------: | -------------------: |";

fn md([model, size, params, backend, threads, test, rate]: [String; 7]) -> String {
    format!("| {model:30} | {size:>10} | {params:>10} | {backend:10} | {threads:>7} | {test:>13} | {rate:>20} |")
}

/// A number of weights: `6.74 B`.
fn params(n: u64) -> String {
    if n >= 1_000_000_000 { format!("{:.2} B", n as f64 / 1e9) } else { format!("{:.2} M", n as f64 / 1e6) }
}

fn size(bytes: u64) -> String {
    let mib = bytes as f64 / (1u64 << 20) as f64;
    if mib >= 1024.0 { format!("{:.2} GiB", mib / 1024.0) } else { format!("{mib:.2} MiB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_llama_bench_prints_them() {
        assert_eq!(params(6_738_415_616), "6.74 B");
        assert_eq!(params(135_000_000), "135.00 M");
        assert_eq!(size(3_825_806_912), "3.56 GiB");
        assert_eq!(size(100 << 20), "100.00 MiB");
    }

    #[test]
    fn rows_line_up_with_the_rule() {
        let cells = ["llama 6.74B Q4_0", "3.56 GiB", "6.74 B", "CPU", "8", "pp512", "79.20 ± 0.21"].map(str::to_owned);
        assert_eq!(md(cells).chars().count(), RULE.chars().count());
    }
}

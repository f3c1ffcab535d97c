//! `kernelry check`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use kernelry::Context;
use kernelry::catalogue::Kernel;
use kernelry::conformance::{Outcome, case_labels, check_rejections, run_kernel};
use serde::Serialize;

use crate::device::{DeviceArg, Selection};
use crate::failure::{CliResult, Failure};
use crate::output::Output;
use crate::progress;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    device: DeviceArg,
    /// Seed of the inputs: the same seed gives the same inputs
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Only the case of this number
    #[arg(long, value_name = "N")]
    case: Option<usize>,
    /// How many sizes to try: 1 is quick, 4 is thorough
    #[arg(long, value_name = "1..4", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4))]
    intensity: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct KernelReport {
    kernel: &'static str,
    family: &'static str,
    passed: bool,
    cases: usize,
    seconds: f64,
    failures: Vec<CaseFailure>,
}

#[derive(Serialize)]
struct CaseFailure {
    /// Number of the case; none where wrong arguments were accepted.
    case: Option<usize>,
    label: String,
    problem: String,
    repro: String,
}

#[derive(Serialize)]
struct Report {
    device: String,
    seed: u64,
    intensity: u32,
    passed: usize,
    failed: usize,
    /// Kernels that were asked for and that the device does not have.
    unavailable: Vec<&'static str>,
    cases: usize,
    seconds: f64,
    kernels: Vec<KernelReport>,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    let chosen = args.selection.kernels()?;
    let (device, ctx) = args.device.open()?;
    let (kernels, missing): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|k| ctx.device().support(k).supported);
    if let Some(first) = missing.first().filter(|_| kernels.is_empty()) {
        let reason = ctx.device().support(first).reason;
        return Err(Failure::runtime(format!("device {device} has none of the {} kernels: {}: {reason}", missing.len(), first.name())));
    }
    if let Some(case) = args.case
        && !kernels.iter().any(|k| case < case_labels(k, args.intensity).len())
    {
        let most = kernels.iter().map(|k| case_labels(k, args.intensity).len()).max().unwrap_or(0);
        return Err(Failure::usage(format!("case: got {case}, expected less than {most} at intensity {}", args.intensity)));
    }
    let bar = progress::items(kernels.len());
    let started = Instant::now();
    let mut reports = Vec::new();
    for kernel in kernels {
        bar.set_message(kernel.name());
        let report = check(args, &ctx, &device, kernel);
        if !args.json {
            bar.suspend(|| print(out, &report))?;
        }
        reports.push(report);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let failed = reports.iter().filter(|r| !r.passed).count();
    let report = Report {
        device,
        seed: args.seed,
        intensity: args.intensity,
        passed: reports.len() - failed,
        failed,
        unavailable: missing.iter().map(|k| k.name()).collect(),
        cases: reports.iter().map(|r| r.cases).sum(),
        seconds: started.elapsed().as_secs_f64(),
        kernels: reports,
    };
    if args.json {
        out.json(&report)?;
    } else {
        summary(out, &report)?;
    }
    out.flush()?;
    if failed > 0 { Err(Failure::reported()) } else { Ok(()) }
}

fn check(args: &Args, ctx: &Context, device: &str, kernel: &'static Kernel) -> KernelReport {
    let started = Instant::now();
    let repro = |outcome: &Outcome| match args.intensity {
        1 => outcome.repro(device),
        n => format!("{} --intensity {n}", outcome.repro(device)),
    };
    let again = || format!("kernelry check {} --device {device} --seed {}", kernel.name(), args.seed);
    let whole = |label: &str, problem: String| CaseFailure { case: None, label: label.to_owned(), problem, repro: again() };
    let mut failures = Vec::new();
    let mut cases = 0;
    // A panic is a defect of the kernel or of its reference: it fails this kernel and not the run.
    match catch_unwind(AssertUnwindSafe(|| run_kernel(ctx, kernel, args.seed, args.intensity, args.case))) {
        Ok(outcomes) => {
            cases = outcomes.len();
            for outcome in &outcomes {
                if let Some(problem) = &outcome.failure {
                    let (label, problem) = (outcome.label.clone(), problem.clone());
                    failures.push(CaseFailure { case: Some(outcome.case), label, problem, repro: repro(outcome) });
                }
            }
        }
        Err(_) => failures.push(whole("panic", "the kernel or its reference panicked".into())),
    }
    if !kernel.is_tested() {
        failures.push(whole("cases", "the kernel has no reference or no cases".into()));
    } else if args.case.is_none() {
        match catch_unwind(AssertUnwindSafe(|| check_rejections(ctx, kernel))) {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => failures.push(whole("wrong arguments", problem)),
            Err(_) => failures.push(whole("wrong arguments", "wrong arguments made it panic".into())),
        }
    }
    KernelReport {
        kernel: kernel.name(),
        family: kernel.family().name(),
        passed: failures.is_empty(),
        cases,
        seconds: started.elapsed().as_secs_f64(),
        failures,
    }
}

fn print(out: &mut Output, report: &KernelReport) -> CliResult {
    let word = if report.passed { out.green("ok  ") } else { out.red("FAIL") };
    let plural = if report.cases == 1 { "" } else { "s" };
    out.line(format!("{word} {:44} {:4} case{plural} {:8.3} s", report.kernel, report.cases, report.seconds))?;
    for failure in &report.failures {
        let place = failure.case.map_or_else(|| failure.label.clone(), |n| format!("case {n} ({})", failure.label));
        out.line(format!("     {place}: {}", failure.problem))?;
        out.line(format!("     {}", failure.repro))?;
    }
    // Each line when it is known, also through a pipe.
    out.flush()
}

fn summary(out: &mut Output, report: &Report) -> CliResult {
    let words = [
        format!("{} passed", report.passed),
        if report.failed > 0 { out.red(&format!("{} failed", report.failed)) } else { "0 failed".into() },
        format!("{} not available", report.unavailable.len()),
    ];
    out.line(format!("{} on {}: {} cases, seed {}, {:.1} s", words.join(", "), report.device, report.cases, report.seed, report.seconds))
}

//! The conformance suite as named tests: every catalogue entry on the device named by `KERNELRY_DEVICE` (default `cpu`).
//!
//! `KERNELRY_TEST_SEED` replays a seed, `KERNELRY_TEST_INTENSITY` (1 to 4) adds sizes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use kernelry::conformance::{check_rejections, run_kernel};
use kernelry::{Context, Device, Registry, catalogue};
use libtest_mimic::{Arguments, Failed, Trial};

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Known failures of a device: `kernel  reason`, one a line. A kernel in the list must fail.
fn known_failures(device: &str) -> Vec<(String, String)> {
    let text = include_str!("known_failures.txt");
    let rows = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    rows.filter_map(|l| {
        let mut fields = l.splitn(3, char::is_whitespace);
        let (on, kernel, reason) = (fields.next()?, fields.next()?, fields.next().unwrap_or(""));
        (on == device).then(|| (kernel.to_owned(), reason.trim().to_owned()))
    })
    .collect()
}

fn main() {
    let mut args = Arguments::from_args();
    // The kernels themselves use all cores.
    args.test_threads.get_or_insert(2);
    let name = std::env::var("KERNELRY_DEVICE").unwrap_or_else(|_| "cpu".into());
    let ctx = Arc::new(Context::new(Device::open(&name).expect("the device opens"), Registry::new()));
    let (seed, intensity) = (env("KERNELRY_TEST_SEED", 42), env("KERNELRY_TEST_INTENSITY", 1) as u32);
    let known = known_failures(&name);
    let mut trials = Vec::new();
    for kernel in catalogue::builtin().iter().filter(|k| ctx.device().support(k).supported) {
        let expected = known.iter().find(|(k, _)| k == kernel.name()).map(|(_, reason)| reason.clone());
        let (on, device) = (ctx.clone(), name.clone());
        let run = move || -> Result<(), Failed> {
            if !kernel.is_tested() {
                return Err("implemented without a reference and cases".into());
            }
            let outcomes = run_kernel(&on, kernel, seed, intensity, None);
            let failures: Vec<String> = outcomes
                .iter()
                .filter_map(|o| Some(format!("case {} ({}): {}\n  {}", o.case, o.label, o.failure.as_ref()?, o.repro(&device))))
                .collect();
            match (failures.is_empty(), expected) {
                (true, None) => Ok(()),
                (true, Some(reason)) => Err(format!("passes, but is listed as a known failure: {reason}").into()),
                (false, Some(_)) => Ok(()),
                (false, None) => Err(failures.join("\n").into()),
            }
        };
        trials.push(Trial::test(format!("{}::{}", kernel.family(), kernel.name()), run));
        let on = ctx.clone();
        let rejects = move || check_rejections(&on, kernel).map_err(Failed::from);
        trials.push(Trial::test(format!("{}::{}::rejects", kernel.family(), kernel.name()), rejects));
    }
    libtest_mimic::run(&args, trials).exit();
}

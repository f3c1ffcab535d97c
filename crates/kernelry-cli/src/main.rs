//! The `kernelry` command line.
//!
//! Exit codes: 0 success; 1 a failure at run time (a missing file, a broken model, a failed check); 2 wrong usage (an unknown kernel, a
//! bad parameter, a bad flag); 130 interrupted.

mod cli;
mod commands;
mod device;
mod failure;
mod glob;
mod interrupt;
mod model;
mod output;
mod progress;
mod tensors;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match commands::dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

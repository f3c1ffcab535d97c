//! One file for each verb.

pub(crate) mod bench;
mod bench_cold;
mod bench_model;
mod bench_origin;
pub(crate) mod cache;
pub(crate) mod check;
pub(crate) mod compile;
pub(crate) mod doctor;
mod file_type;
pub(crate) mod generate;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod list;
mod params;
pub(crate) mod quantize;
pub(crate) mod run;
pub(crate) mod synthesize;

use clap::CommandFactory;

use crate::cli::{Cli, Command};
use crate::failure::CliResult;
use crate::output::{self, Output};

/// Runs the command of the command line.
pub(crate) fn dispatch(cli: Cli) -> CliResult {
    output::set_color(cli.color);
    if let Some(threads) = cli.threads {
        kernelry::backend::cpu::set_threads(usize::from(threads))?;
    }
    let out = &mut Output::new();
    match cli.command {
        Command::List(args) => list::run(&args, out),
        Command::Info(args) => info::run(&args, out),
        Command::Run(args) => run::run(&args, out),
        Command::Check(args) => check::run(&args, out),
        Command::Bench(args) => bench::run(&args, out),
        Command::Inspect(args) => inspect::run(&args, out),
        Command::Quantize(args) => quantize::run(&args, out),
        Command::Synthesize(args) => synthesize::run(&args, out),
        Command::Generate(args) => generate::run(&args, out),
        Command::Compile(args) => compile::run(&args, out),
        Command::Cache(args) => cache::run(&args, out),
        Command::Doctor(args) => doctor::run(&args, out),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "kernelry", &mut script);
            out.write(&script)
        }
    }?;
    out.flush()
}

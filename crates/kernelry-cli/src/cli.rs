//! Arguments.

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::commands;

/// Kernels for quantised language models: list, run, check and measure them; generate text from GGUF files
#[derive(Debug, Parser)]
#[command(name = "kernelry", version, propagate_version = true, max_term_width = 110, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Colours: on a terminal unless NO_COLOR is set, always, or never
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub(crate) color: Color,
    /// Worker threads of the CPU backend [default: KERNELRY_THREADS, or all]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 success, 1 failure at run time, 2 wrong usage, 130 interrupted.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the kernels, and which backends have them
    List(commands::list::Args),
    /// Show everything that is known of a kernel
    Info(commands::info::Args),
    Run(commands::run::Args),
    /// Check kernels against slow references
    Check(commands::check::Args),
    /// Measure kernels against the limits of the device
    Bench(commands::bench::Args),
    Inspect(commands::inspect::Args),
    Quantize(commands::quantize::Args),
    Synthesize(commands::synthesize::Args),
    Generate(Box<commands::generate::Args>),
    Compile(commands::compile::Args),
    Cache(commands::cache::Args),
    /// Show versions, devices, backends, packs, the cache and settings
    Doctor(commands::doctor::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

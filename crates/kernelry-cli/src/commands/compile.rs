//! `kernelry compile`.

use std::path::PathBuf;

use kernelry::backend::{OfflineCompiler, offline_compiler};
use kernelry::registry::{PackBuilder, PackReport};

use crate::device::Selection;
use crate::failure::{CliResult, Failure};
use crate::output::{Output, human_bytes};
use crate::{interrupt, progress};

/// Compile kernels ahead of time into a pack; needs a compiler (NVRTC, or C++ for the emulator) and no device
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Architectures: sm_90a and its like, or emulator
    #[arg(long, value_name = "A", required = true, value_delimiter = ',')]
    arch: Vec<String>,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    if args.out.file_name().is_none() || args.out.is_dir() {
        return Err(Failure::usage(format!("--out {}: not the name of a file", args.out.display())));
    }
    let chosen = args.selection.kernels()?;
    // Without a pattern everything that can be compiled is meant; what was named must be in the pack.
    let (kernels, without): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|k| k.gpu_text().is_some() && k.has_entry_point());
    if kernels.is_empty() || without.iter().any(|k| args.selection.globs.iter().any(|glob| glob == k.name())) {
        let name = without.first().map_or("", |k| k.name());
        return Err(Failure::runtime(format!("kernel `{name}` has no text to compile")));
    }
    let compilers = args.arch.iter().map(|arch| compiler(arch)).collect::<CliResult<Vec<_>>>()?;
    interrupt::listen();
    let bar = progress::items(0);
    let step = |all: usize, name: &str| {
        bar.set_length(all as u64);
        bar.set_message(name.to_owned());
        bar.inc(1);
    };
    let builder = PackBuilder { compilers: &compilers, kernels: &kernels, progress: &step, stop: &interrupt::requested };
    let built = builder.write(&args.out);
    bar.finish_and_clear();
    interrupt::check()?;
    let report = built.map_err(|e| Failure::runtime(e.to_string()))?;
    if args.json {
        return out.json(&report);
    }
    print(&report, out)
}

fn compiler(arch: &str) -> CliResult<Box<dyn OfflineCompiler>> {
    let hint = "`kernelry doctor` shows which compilers are here";
    offline_compiler(arch).map_err(|e| Failure::from(e).hint(hint))
}

fn print(report: &PackReport, out: &mut Output) -> CliResult {
    let rows: Vec<Vec<String>> = report
        .kernels
        .iter()
        .map(|k| {
            let cell = |value: fn(&kernelry::backend::Resources) -> String| k.resources.as_ref().map_or_else(|| "-".into(), value);
            let spills = cell(|r| match (r.spills(), r.spill_store_bytes, r.spill_load_bytes) {
                (false, ..) => "none".into(),
                (true, stores, loads) => format!("{stores} B out, {loads} B in"),
            });
            let spills = if k.resources.as_ref().is_some_and(|r| r.spills()) { out.red(&spills) } else { spills };
            vec![k.kernel.clone(), k.arch.clone(), cell(|r| r.registers.to_string()), cell(|r| human_bytes(r.shared_bytes.into())), spills]
        })
        .collect();
    out.table(&["kernel", "arch", "registers", "shared", "spills"], rows)?;
    let (kernels, modules) = (report.kernels.len(), report.modules);
    out.line("")?;
    out.line(format!("{}: {kernels} kernels in {modules} modules, {}", report.path.display(), human_bytes(report.bytes)))
}

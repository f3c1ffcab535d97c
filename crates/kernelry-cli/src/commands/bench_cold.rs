//! `kernelry bench --cold-start`: from the start of a process to its first token.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use kernelry::bench::Stats;
use serde::Serialize;

use super::bench_origin::{self, Origin};
use crate::device::DeviceArg;
use crate::failure::{CliResult, Failure};
use crate::model::ModelArg;
use crate::output::Output;
use crate::{interrupt, progress};

/// What each process is asked for.
const PROMPT: &str = "Ownership is";

/// What stands before the rows.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    origin: Origin,
    model: PathBuf,
    /// What each process runs.
    process: String,
}

/// Where the kernels of a process come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kernels {
    /// Functions of the binary.
    Native,
    /// A pack, on a machine without a compiler and with nothing on the disk.
    Pack,
    /// The cache on disk, which a process before has filled.
    Cache,
    /// Source: nothing is on the disk.
    Source,
}

/// Time to the first token, in milliseconds.
#[derive(Serialize)]
struct Row {
    kernels: Kernels,
    samples: usize,
    p10_ms: f64,
    p50_ms: f64,
    p90_ms: f64,
    samples_ms: Vec<f64>,
}

pub(crate) fn run(model: &ModelArg, device: &DeviceArg, repeats: usize, json: bool, out: &mut Output) -> CliResult {
    // The device is closed again: a process that starts while another has it open would find the driver awake.
    let (name, origin) = device.open().map(|(name, ctx)| (name, Origin::new(ctx.device())))?;
    let mut arguments: Vec<OsString> =
        ["generate", PROMPT, "-n", "1", "--temperature", "0", "--no-echo", "--device", &name].map(Into::into).into();
    arguments.extend(model.arguments());
    let process = bench_origin::command(arguments.iter().map(|a| a.to_string_lossy().into_owned()));
    let folder = Folder::new()?;
    let starts = Starts { arguments, folder: &folder.0, threads: origin.threads_of_host() };
    let sources: &[Kernels] = match origin.device.backend.as_str() {
        "cpu" => &[Kernels::Native],
        _ => &[Kernels::Pack, Kernels::Cache, Kernels::Source],
    };
    interrupt::listen();
    let bar = progress::items(sources.len() * (repeats + 1));
    let mut rows = Vec::new();
    for &kernels in sources {
        let arch = if origin.device.backend == "emulator" { "emulator" } else { &origin.device.arch };
        bar.set_message(format!("{kernels:?}").to_lowercase());
        let pack = if kernels == Kernels::Pack { Some(starts.pack(arch)?) } else { None };
        let mut samples_ms = Vec::new();
        for repeat in 0..=repeats {
            interrupt::check()?;
            let seconds = starts.first_token(starts.process(kernels, pack.as_deref(), repeat)?)?;
            // The first one brings files into memory, and fills the cache on disk.
            if repeat > 0 {
                samples_ms.push(seconds * 1e3);
            }
            bar.inc(1);
        }
        let Stats { samples, p10, p50, p90, .. } = Stats::new(&samples_ms);
        rows.push(Row { kernels, samples, p10_ms: p10, p50_ms: p50, p90_ms: p90, samples_ms });
    }
    bar.finish_and_clear();
    if json {
        return out.json_with_rows(&Report { origin, model: model.path(), process }, "results", &rows);
    }
    out.line(format!("{}: {process}", out.bold(&origin.device.name)))?;
    let cells = rows.iter().map(|r| {
        let times = [r.p10_ms, r.p50_ms, r.p90_ms].map(|ms| format!("{ms:.1}"));
        std::iter::once(format!("{:?}", r.kernels).to_lowercase()).chain(times).collect()
    });
    out.table(&["kernels from", "p10 ms", "p50 ms", "p90 ms"], cells)
}

/// A folder of this process, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> CliResult<Folder> {
        let path = std::env::temp_dir().join(format!("kernelry-cold-start-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| Failure::runtime(format!("{}: {e}", path.display())))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts processes of this binary.
struct Starts<'a> {
    arguments: Vec<OsString>,
    folder: &'a Path,
    /// Worker threads of the CPU backend, where that is measured.
    threads: Option<u32>,
}

impl Starts<'_> {
    fn command(&self) -> CliResult<Command> {
        let binary = std::env::current_exe().map_err(|e| Failure::runtime(format!("the path of this binary: {e}")))?;
        let mut command = Command::new(binary);
        command.stdin(Stdio::null());
        if let Some(threads) = self.threads {
            command.env("KERNELRY_THREADS", threads.to_string());
        }
        Ok(command)
    }

    /// The packs that the environment names, or one of all kernels.
    fn pack(&self, arch: &str) -> CliResult<OsString> {
        if let Some(packs) = std::env::var_os("KERNELRY_PACK").filter(|packs| !packs.is_empty()) {
            return Ok(packs);
        }
        let path = self.folder.join("kernels.kpack");
        let compiled = self.command()?.args(["compile", "--arch", arch, "--out"]).arg(&path).stdout(Stdio::null()).output();
        let compiled = compiled.map_err(|e| Failure::runtime(format!("kernelry compile: {e}")))?;
        if compiled.status.success() { Ok(path.into()) } else { Err(failed("compile", &compiled.stderr)) }
    }

    /// A process that finds its kernels nowhere but there.
    fn process(&self, kernels: Kernels, pack: Option<&OsStr>, repeat: usize) -> CliResult<Command> {
        let mut command = self.command()?;
        command.args(&self.arguments).env_remove("KERNELRY_PACK");
        match kernels {
            Kernels::Native => {}
            Kernels::Pack => {
                command.env("KERNELRY_CACHE", "off").env("KERNELRY_NVRTC", self.folder.join("nonexistent"));
                command.envs(pack.map(|pack| ("KERNELRY_PACK", pack)));
            }
            Kernels::Cache => {
                command.env("KERNELRY_CACHE", self.folder.join("cache"));
            }
            Kernels::Source => {
                command.env("KERNELRY_CACHE", self.folder.join(format!("empty-{repeat}")));
            }
        }
        Ok(command)
    }

    /// Seconds from the start of a process to the first byte that it writes.
    fn first_token(&self, mut process: Command) -> CliResult<f64> {
        let broken = |e: std::io::Error| Failure::runtime(format!("kernelry generate: {e}"));
        let errors = self.folder.join("stderr");
        process.stdout(Stdio::piped()).stderr(File::create(&errors).map_err(broken)?);
        let begin = Instant::now();
        let mut child = process.spawn().map_err(broken)?;
        let mut first = [0];
        let read = child.stdout.as_mut().map_or(Ok(0), |stdout| stdout.read(&mut first));
        let seconds = begin.elapsed().as_secs_f64();
        let status = child.wait_with_output().map_err(broken)?.status;
        if status.success() && read.map_err(broken)? > 0 {
            return Ok(seconds);
        }
        Err(failed("generate", &std::fs::read(&errors).unwrap_or_default()))
    }
}

/// A process that failed, in its own words.
fn failed(verb: &str, stderr: &[u8]) -> Failure {
    let text = String::from_utf8_lossy(stderr);
    Failure::runtime(format!("kernelry {verb}: {}", text.trim().trim_start_matches("error: ")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Kernels, Starts};
    use std::ffi::OsStr;
    use std::path::Path;

    #[test]
    fn a_process_finds_its_kernels_in_one_place() {
        let starts = Starts { arguments: vec!["generate".into()], folder: Path::new("/f"), threads: Some(3) };
        // None: the variable is taken away, or stays as it is.
        let variables = |kernels, repeat| {
            let process = starts.process(kernels, (kernels == Kernels::Pack).then_some(OsStr::new("p.kpack")), repeat).unwrap();
            assert_eq!(process.get_args().collect::<Vec<_>>(), ["generate"]);
            let get = |name: &str| process.get_envs().find(|(n, _)| *n == name).and_then(|(_, v)| Some(v?.to_str()?.to_owned()));
            assert_eq!(get("KERNELRY_THREADS").as_deref(), Some("3"));
            assert!(process.get_envs().any(|(n, v)| n == "KERNELRY_PACK" && (v.is_some() == (kernels == Kernels::Pack))));
            ["KERNELRY_PACK", "KERNELRY_CACHE", "KERNELRY_NVRTC"].map(|name| get(name).unwrap_or_default())
        };
        assert_eq!(variables(Kernels::Native, 1), ["", "", ""]);
        assert_eq!(variables(Kernels::Pack, 1), ["p.kpack", "off", "/f/nonexistent"]);
        assert_eq!(variables(Kernels::Cache, 0), ["", "/f/cache", ""]);
        assert_eq!(variables(Kernels::Cache, 1), variables(Kernels::Cache, 0));
        assert_eq!(variables(Kernels::Source, 1), ["", "/f/empty-1", ""]);
        assert_ne!(variables(Kernels::Source, 2), variables(Kernels::Source, 1));
    }
}

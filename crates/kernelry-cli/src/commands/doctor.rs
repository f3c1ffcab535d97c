//! `kernelry doctor`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kernelry::backend::{BuildTarget, DeviceInfo};
use kernelry::registry::{DiskCache, PackState};
use kernelry::{BACKENDS, Device, Registry, backend_state, catalogue};
use serde::Serialize;

use crate::failure::CliResult;
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
    build: &'static str,
    cpu: Option<String>,
    simd: Vec<&'static str>,
    cores: usize,
    threads: u32,
    memory_bytes: Option<u64>,
    kernels: usize,
    backends: BTreeMap<&'static str, Backend>,
    nvrtc: Nvrtc,
    packs: Vec<PackInfo>,
    cache: Cache,
    settings: BTreeMap<&'static str, Option<String>>,
}

#[derive(Serialize)]
struct Backend {
    available: bool,
    state: String,
    kernels: usize,
    device: Option<DeviceInfo>,
}

/// The compiler for NVIDIA GPUs, which needs no GPU.
#[derive(Serialize)]
struct Nvrtc {
    available: bool,
    state: String,
    path: Option<PathBuf>,
    version: Option<String>,
    archs: Vec<String>,
}

#[derive(Serialize)]
struct PackInfo {
    label: String,
    creator: Option<String>,
    targets: Vec<BuildTarget>,
    kernels: usize,
    /// How many of them were made from this build's texts.
    current: usize,
    problem: Option<String>,
}

#[derive(Serialize)]
struct Cache {
    folder: Option<PathBuf>,
    entries: usize,
    bytes: u64,
    damaged: usize,
    /// Why it cannot be used, or not be written.
    problem: Option<String>,
}

/// Variables that the library and the command line read.
const SETTINGS: &[(&str, &str)] = &[
    ("KERNELRY_DEVICE", "default device"),
    ("KERNELRY_THREADS", "worker threads of the CPU backend"),
    ("KERNELRY_CACHE", "folder of the cache of compiled texts, or off"),
    ("KERNELRY_PACK", "packs of compiled kernels"),
    ("KERNELRY_NVRTC", "NVRTC's library or its folder"),
    ("KERNELRY_FORCE_SERIAL", "a barrier after each launch"),
    ("NO_COLOR", "no colours"),
];

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    let report = examine();
    if args.json {
        return out.json(&report);
    }
    let rows = |pairs: Vec<(&str, String)>| pairs.into_iter().map(|(k, v)| vec![format!("  {k}"), v]).collect::<Vec<_>>();
    out.line(out.bold(&format!("kernelry {}", report.version)))?;
    let simd = if report.simd.is_empty() { "none detected".to_owned() } else { report.simd.join(" ") };
    let memory = report.memory_bytes.map_or_else(|| "unknown".into(), crate::output::human_bytes);
    let pairs = vec![
        ("system", format!("{} {}, {} build", report.os, report.arch, report.build)),
        ("cpu", report.cpu.clone().unwrap_or_else(|| "unknown".into())),
        ("simd", simd),
        ("threads", format!("{} of {} cores", report.threads, report.cores)),
        ("memory", memory),
        ("kernels", format!("{} in the catalogue", report.kernels)),
    ];
    out.table(&["", ""], rows(pairs))?;
    out.line("")?;
    out.line(out.bold("Backends"))?;
    let backends: Vec<Vec<String>> = BACKENDS
        .iter()
        .filter_map(|name| {
            let b = report.backends.get(name)?;
            let mark = if b.available { out.green("yes") } else { out.dim("no") };
            let kernels = if b.available { b.kernels.to_string() } else { "-".into() };
            Some(vec![format!("  {name}"), mark, kernels, b.state.clone()])
        })
        .collect();
    out.table(&["  backend", "usable", "kernels", "state"], backends)?;
    out.line("")?;
    out.line(out.bold("Compiled kernels"))?;
    out.table(&["", ""], rows(compiled(&report)))?;
    out.line("")?;
    out.line(out.bold("Settings"))?;
    let settings: Vec<Vec<String>> = SETTINGS
        .iter()
        .map(|(name, meaning)| {
            let value = report.settings.get(name).cloned().flatten();
            vec![format!("  {name}"), value.unwrap_or_else(|| "not set".into()), (*meaning).to_owned()]
        })
        .collect();
    out.table(&["  variable", "value", "meaning"], settings)
}

/// Lines on compilers and what they made.
fn compiled(report: &Report) -> Vec<(&'static str, String)> {
    let mut lines = vec![("nvrtc", report.nvrtc.state.clone())];
    if report.packs.is_empty() {
        lines.push(("packs", "none".into()));
    }
    for pack in &report.packs {
        let targets: Vec<String> = pack.targets.iter().map(|t| format!("{} {}", t.backend, t.arch)).collect();
        let made = format!("{}: {} kernels for {}, {} from this build's texts", pack.label, pack.kernels, targets.join(", "), pack.current);
        lines.push(("pack", pack.problem.as_ref().map_or(made, |p| format!("{}: unusable: {p}", pack.label))));
    }
    let cache = &report.cache;
    let Some(folder) = &cache.folder else {
        lines.push(("cache", "off".into()));
        return lines;
    };
    let size = crate::output::human_bytes(cache.bytes);
    let state = cache.problem.as_ref().map_or_else(|| "usable".to_owned(), |p| format!("cannot be used: {p}"));
    lines.push(("cache", format!("{}: {state}, {} entries, {size}, {} damaged", folder.display(), cache.entries, cache.damaged)));
    lines
}

fn examine_nvrtc() -> Nvrtc {
    match kernelry::backend::cuda::nvrtc::Nvrtc::find() {
        Ok(found) => {
            let (major, minor) = found.version();
            let (archs, problem) = match found.supported() {
                Ok(archs) => (archs.iter().map(|a| format!("sm_{a}")).collect(), String::new()),
                Err(e) => (Vec::new(), format!(": {e}")),
            };
            let state = format!("{major}.{minor} at {}{problem}", found.path().display());
            let available = problem.is_empty();
            Nvrtc { available, state, path: Some(found.path().to_owned()), version: Some(format!("{major}.{minor}")), archs }
        }
        Err(e) => Nvrtc { available: false, state: e.to_string(), path: None, version: None, archs: Vec::new() },
    }
}

fn examine_pack(state: &PackState) -> PackInfo {
    match &state.pack {
        Ok(pack) => PackInfo {
            label: state.label.clone(),
            creator: Some(pack.creator().to_owned()),
            targets: pack.targets().to_vec(),
            kernels: pack.len(),
            current: pack.current(),
            problem: None,
        },
        Err(e) => PackInfo {
            label: state.label.clone(),
            creator: None,
            targets: Vec::new(),
            kernels: 0,
            current: 0,
            problem: Some(e.to_string()),
        },
    }
}

fn examine_cache(cache: Option<&DiskCache>) -> Cache {
    let Some(cache) = cache else { return Cache { folder: None, entries: 0, bytes: 0, damaged: 0, problem: None } };
    let entries = cache.entries(false);
    let problem = entries.as_ref().err().map(ToString::to_string).or_else(|| cache.write_problem());
    let entries = entries.unwrap_or_default();
    Cache {
        folder: Some(cache.dir().to_owned()),
        entries: entries.len(),
        bytes: entries.iter().map(|e| e.bytes).sum(),
        damaged: entries.iter().filter(|e| e.problem.is_some()).count(),
        problem,
    }
}

fn examine() -> Report {
    let registry = Registry::new();
    let mut backends = BTreeMap::new();
    let mut threads = 0;
    for &name in BACKENDS {
        let device = Device::open(name).ok();
        let kernels = device.as_ref().map_or(0, |d| catalogue::builtin().iter().filter(|k| d.support(k).supported).count());
        let info = device.as_ref().map(|d| d.info().clone());
        if name == "cpu" {
            threads = info.as_ref().map_or(0, |i| i.units);
        }
        backends.insert(name, Backend { available: device.is_some(), state: backend_state(name), kernels, device: info });
    }
    Report {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        cpu: proc_field("/proc/cpuinfo", "model name"),
        simd: simd(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        threads,
        memory_bytes: proc_field("/proc/meminfo", "MemTotal")
            .and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok())
            .and_then(|kib| kib.checked_mul(1024)),
        kernels: catalogue::builtin().len(),
        backends,
        nvrtc: examine_nvrtc(),
        packs: registry.packs().iter().map(examine_pack).collect(),
        cache: examine_cache(registry.disk_cache()),
        settings: SETTINGS.iter().map(|(name, _)| (*name, std::env::var(name).ok())).collect(),
    }
}

/// The first `key: value` of a file of the Linux kernel; nothing elsewhere.
fn proc_field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.split_once(':').filter(|(k, _)| k.trim() == key).map(|(_, v)| v.trim().to_owned()))
}

/// Instruction sets that this processor has, of those that matter here.
fn simd() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! detect {
        ($detected:ident: $($feature:tt),*) => { $( if std::arch::$detected!($feature) { found.push($feature); } )* };
    }
    #[cfg(target_arch = "x86_64")]
    detect!(is_x86_feature_detected: "sse4.2", "avx", "avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16");
    #[cfg(target_arch = "aarch64")]
    detect!(is_aarch64_feature_detected: "neon", "dotprod", "fp16", "bf16", "i8mm", "sve");
    found
}

//! Making packs.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::pack::{HEADER, KernelRecord, MAGIC, Manifest, ModuleRecord, VERSION};
use super::source::Source;
use super::{Constants, Options, Pack};
use crate::atomic_file::AtomicFile;
use crate::backend::{Artefact, OfflineCompiler, Resources, Unit};
use crate::catalogue::Kernel;
use crate::{Error, Result};

/// A kernel of a pack.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PackedKernel {
    /// Kernel name.
    pub kernel: String,
    /// Architecture.
    pub arch: String,
    /// What it takes of the device, where the compiler tells.
    pub resources: Option<Resources>,
}

/// What [`PackBuilder::write`] made.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PackReport {
    /// The file.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// Number of artefacts: kernels with one text share one.
    pub modules: usize,
    /// The kernels, architecture by architecture in the order of the catalogue.
    pub kernels: Vec<PackedKernel>,
    /// Kernels that were asked for and have no text.
    pub without_text: Vec<String>,
}

/// One text for one compiler.
struct Job<'a> {
    target: usize,
    text: &'a str,
    names: &'a [&'a str],
}

/// Compiles kernels into a pack.
pub struct PackBuilder<'a> {
    /// One for each architecture.
    pub compilers: &'a [Box<dyn OfflineCompiler>],
    /// The kernels; those without a text are left out and reported.
    pub kernels: &'a [&'static Kernel],
    /// Called as texts are compiled, with the number of texts in all and a kernel of the one that is done.
    pub progress: &'a (dyn Fn(usize, &str) + Sync),
    /// Asked before each text: true gives up.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

impl PackBuilder<'_> {
    /// Compiles in parallel, writes the file, opens it again and looks for every kernel in it. A file that fails that is not kept, and
    /// one that was there before is replaced by a good one only.
    ///
    /// # Errors
    /// [`Error::Compilation`] with the compiler's message, naming all kernels that failed; [`Error::Format`] if a kernel is missing in what
    /// was made; [`Error::InvalidArgument`] if there is nothing to compile or it was stopped; [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<PackReport> {
        let mut texts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        let mut without_text = Vec::new();
        for kernel in self.kernels {
            match kernel.gpu_text() {
                Some(text) if kernel.has_entry_point() => texts.entry(text).or_default().push(kernel.name()),
                _ => without_text.push(kernel.name().to_owned()),
            }
        }
        let jobs: Vec<Job<'_>> =
            (0..self.compilers.len()).flat_map(|target| texts.iter().map(move |(text, names)| Job { target, text, names })).collect();
        if jobs.is_empty() {
            return Err(Error::invalid("compile", format!("none of the {} kernels has a text to compile", self.kernels.len())));
        }
        let artefacts = self.compile(&jobs)?;
        let checked = path.with_file_name(format!(".{}.unchecked", path.file_name().unwrap_or_default().to_string_lossy()));
        let outcome = self.store(&checked, &jobs, &artefacts).and_then(|()| self.check(&checked, &jobs)).and_then(|()| {
            let bytes = std::fs::metadata(&checked).map_err(|e| Error::io(&checked, e))?.len();
            std::fs::rename(&checked, path).map_err(|e| Error::io(path, e))?;
            Ok(bytes)
        });
        if outcome.is_err() {
            // The error that led here is the one to report.
            let _ = std::fs::remove_file(&checked);
        }
        Ok(PackReport {
            path: path.to_owned(),
            bytes: outcome?,
            modules: jobs.len(),
            kernels: self.packed(&jobs, &artefacts),
            without_text,
        })
    }

    fn compile(&self, jobs: &[Job<'_>]) -> Result<Vec<Artefact>> {
        let compile = |job: &Job<'_>| {
            if (self.stop)() {
                return Err("stopped".to_owned());
            }
            let (Some(compiler), Some(name)) = (self.compilers.get(job.target), job.names.first()) else {
                return Err("no compiler".into());
            };
            let made = compiler.compile(&Unit::new(name, job.text, &Constants::NONE, Options::default()));
            (self.progress)(jobs.len(), name);
            made.and_then(|made| if made.bytes.is_empty() { Err("the compiler made nothing".into()) } else { Ok(made) })
        };
        let results: Vec<Result<Artefact, String>> = jobs.par_iter().map(compile).collect();
        if (self.stop)() {
            return Err(Error::invalid("compile", "stopped before everything was compiled"));
        }
        let failed: Vec<(&Job<'_>, &String)> = jobs.iter().zip(&results).filter_map(|(job, r)| Some((job, r.as_ref().err()?))).collect();
        if let Some(&(job, message)) = failed.first() {
            let others: Vec<String> = failed.iter().skip(1).map(|(job, _)| self.describe(job)).collect();
            let others = if others.is_empty() { String::new() } else { format!("\n{} more failed: {}", others.len(), others.join(", ")) };
            let name = job.names.first().copied().unwrap_or_default().to_owned();
            return Err(Error::Compilation { name, key: self.arch(job.target), message: format!("{message}{others}") });
        }
        Ok(results.into_iter().flatten().collect())
    }

    fn store(&self, path: &Path, jobs: &[Job<'_>], artefacts: &[Artefact]) -> Result<()> {
        let (mut modules, mut kernels, mut offset) = (Vec::new(), Vec::new(), 0);
        for (module, (job, artefact)) in jobs.iter().zip(artefacts).enumerate() {
            let bytes = artefact.bytes.len() as u64;
            modules.push(ModuleRecord { offset, bytes, hash: blake3::hash(&artefact.bytes).to_hex().to_string() });
            offset += bytes;
            let source = blake3::Hash::from_bytes(Source::hash_of(job.text)).to_hex().to_string();
            kernels.extend(job.names.iter().map(|name| KernelRecord {
                key: (*name).to_owned(),
                options: Options::default(),
                source: source.clone(),
                target: job.target,
                module,
            }));
        }
        let targets = self.compilers.iter().map(|c| c.target().clone()).collect();
        let manifest = Manifest { creator: concat!("kernelry ", env!("CARGO_PKG_VERSION")).into(), targets, modules, kernels };
        let manifest = serde_json::to_vec(&manifest).map_err(|e| Error::io(path, e.into()))?;
        let mut head = Vec::with_capacity(HEADER);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&[0; 4]);
        head.extend_from_slice(&(manifest.len() as u64).to_le_bytes());
        head.extend_from_slice(blake3::hash(&manifest).as_bytes());
        let mut file = AtomicFile::create(path)?;
        let parts = [head.as_slice(), &manifest].into_iter().chain(artefacts.iter().map(|a| a.bytes.as_slice()));
        for part in parts {
            file.write_all(part).map_err(|e| Error::io(path, e))?;
        }
        file.commit()
    }

    /// Opens what was written and looks up every kernel.
    fn check(&self, path: &Path, jobs: &[Job<'_>]) -> Result<()> {
        let pack = Pack::open(path)?;
        let broken = |problem: String| Error::format("kpack", "check of what was written", problem);
        let expected: usize = jobs.iter().map(|job| job.names.len()).sum();
        if pack.len() != expected {
            return Err(broken(format!("got {} kernels, expected {expected}", pack.len())));
        }
        let mut names: BTreeMap<(usize, usize), Vec<&str>> = BTreeMap::new();
        for record in pack.records() {
            names.entry((record.target, record.module)).or_default().push(&record.key);
        }
        for ((target, module), names) in names {
            let artefact = pack.artefact(module).map_err(broken)?;
            let compiler = self.compilers.get(target).ok_or_else(|| broken("no compiler".into()))?;
            let missing =
                compiler.missing(&artefact, &names).map_err(|e| broken(format!("{} ({}): {e}", names.join(", "), self.arch(target))))?;
            if !missing.is_empty() {
                return Err(broken(format!("{}: the artefact has no {}", self.arch(target), missing.join(", "))));
            }
        }
        Ok(())
    }

    fn packed(&self, jobs: &[Job<'_>], artefacts: &[Artefact]) -> Vec<PackedKernel> {
        let mut rows = Vec::new();
        for target in 0..self.compilers.len() {
            for kernel in self.kernels {
                let found = jobs.iter().zip(artefacts).find(|(job, _)| job.target == target && job.names.contains(&kernel.name()));
                if let Some((_, artefact)) = found {
                    let resources = artefact.resources.get(kernel.name()).cloned();
                    rows.push(PackedKernel { kernel: kernel.name().to_owned(), arch: self.arch(target), resources });
                }
            }
        }
        rows
    }

    fn arch(&self, target: usize) -> String {
        self.compilers.get(target).map_or_else(String::new, |c| c.target().arch.clone())
    }

    fn describe(&self, job: &Job<'_>) -> String {
        format!("{} ({})", job.names.join(" "), self.arch(job.target))
    }
}

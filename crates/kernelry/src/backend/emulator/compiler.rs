//! Compiles kernel texts with the system's C++ compiler.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::module::EmulatorModule;
use crate::backend::{Compiler, Module, Target, Unit};
use crate::registry::Options;
use crate::{Error, Result};

/// A text that contains this only works on warps of 32 lanes.
const WARP_32_ONLY: &str = "KN_WARP_32_ONLY";

/// `-fsanitize=thread` makes the compiler show every load and store; the prelude answers it instead of a run-time library. The
/// optimiser must not merge or widen accesses, for then the shown ones would not be those of the text.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-g1",
    // With version 5, GNU as takes the name of the first `#line` for that of the file.
    "-gdwarf-4",
    "-w",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-fno-store-merging",
    "-fno-thread-jumps",
];

/// The folder that debug information names as that of the sources, wherever the compiler ran: what is stored must not depend on it.
pub(super) const PLACE: &str = "/kernelry";

#[derive(Clone)]
pub(super) struct CxxCompiler {
    program: PathBuf,
    warp: u32,
    undefined: bool,
    version: String,
    toolchain: String,
}

impl CxxCompiler {
    /// Finds `$CXX`, `c++`, `g++` or `clang++` and asks for its version.
    pub(super) fn find(warp: u32, undefined: bool) -> Result<CxxCompiler> {
        let named = std::env::var("CXX").ok().filter(|c| !c.is_empty());
        let candidates: Vec<String> = named.into_iter().chain(["c++", "g++", "clang++"].map(String::from)).collect();
        for program in &candidates {
            let Ok(output) = Command::new(program).arg("--version").output() else { continue };
            if !output.status.success() {
                continue;
            }
            let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned();
            let toolchain = format!(
                "{version}; {}; in {PLACE}; warp {warp}; undefined {undefined}; {}; {}",
                FLAGS.join(" "),
                Target::Emulator.prelude_hash(),
                std::env::consts::ARCH
            );
            return Ok(CxxCompiler { program: program.into(), warp, undefined, version, toolchain });
        }
        Err(Error::DeviceNotFound {
            device: "emulator".into(),
            reason: format!("no C++ compiler, looked for {}: install one or name it in CXX", candidates.join(", ")),
        })
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    fn run(&self, folder: &Path, arguments: &[&std::ffi::OsStr]) -> Result<(), String> {
        let output = Command::new(&self.program).args(arguments).current_dir(folder).output();
        let output = output.map_err(|e| format!("{}: {e}", self.program.display()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

impl Compiler for CxxCompiler {
    fn toolchain(&self) -> &str {
        &self.toolchain
    }

    fn compile(&self, unit: &Unit<'_>) -> Result<Vec<u8>, String> {
        let warp = if unit.text.contains(WARP_32_ONLY) { 32 } else { self.warp };
        let scratch = Scratch::new().map_err(|e| format!("scratch folder: {e}"))?;
        let (source, object, library) = (scratch.path("text.cpp"), scratch.path("text.o"), scratch.path("text.so"));
        std::fs::write(&source, Target::Emulator.translation_unit(unit)).map_err(|e| format!("{}: {e}", source.display()))?;
        let mut arguments: Vec<std::ffi::OsString> = FLAGS.iter().map(Into::into).collect();
        arguments.push(format!("-DKN_WARP={warp}u").into());
        arguments.push(format!("-ffile-prefix-map={}={PLACE}", scratch.folder().display()).into());
        arguments.push("-fsanitize=thread".into());
        arguments.push("-fsanitize=alignment".into());
        if self.undefined {
            arguments.push("-fsanitize=undefined".into());
            arguments.push("-fno-sanitize=vptr".into());
        }
        for argument in ["-c".as_ref(), source.as_os_str(), "-o".as_ref(), object.as_os_str()] {
            arguments.push(argument.to_owned());
        }
        let arguments: Vec<&std::ffi::OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        self.run(scratch.folder(), &arguments)?;
        self.run(scratch.folder(), &["-shared".as_ref(), object.as_os_str(), "-o".as_ref(), library.as_os_str(), "-lm".as_ref()])?;
        std::fs::read(&library).map_err(|e| format!("{}: {e}", library.display()))
    }

    fn effective(&self, _options: Options) -> Options {
        // Texts compute the same in every math mode.
        Options::default()
    }

    fn load(&self, artefact: &[u8]) -> Result<Arc<dyn Module>, String> {
        Ok(Arc::new(EmulatorModule::load(artefact)?))
    }
}

/// A folder that is removed when it is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> std::io::Result<Scratch> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = std::env::temp_dir();
        loop {
            let path = base.join(format!("kernelry-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Scratch(path)),
                // Left by a process of the same number that was killed: take the next name.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

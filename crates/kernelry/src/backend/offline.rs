//! Compiling for a device that need not be here: what packs are made with.

use std::collections::BTreeMap;

use super::{Compiler, Unit};
use crate::device::Device;
use crate::{Error, Result};

/// What a compiled text was made for, and by what.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BuildTarget {
    /// Backend name.
    pub backend: String,
    /// Architecture as the backend names it.
    pub arch: String,
    /// Compiler name and build, options and architecture.
    pub toolchain: String,
    /// Hash of what is compiled in front of every text; see [`Target::prelude_hash`](super::Target::prelude_hash).
    pub prelude: String,
}

/// What one kernel of a compiled text takes of a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Resources {
    /// Kernel name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Stack of a thread in bytes.
    pub stack_bytes: u32,
    /// Bytes that a thread stores because registers ran out.
    pub spill_store_bytes: u32,
    /// Bytes that a thread loads back.
    pub spill_load_bytes: u32,
}

impl Resources {
    /// Whether registers ran out.
    pub fn spills(&self) -> bool {
        self.spill_store_bytes > 0 || self.spill_load_bytes > 0
    }
}

/// A compiled text with what its compiler tells of it.
#[derive(Clone, Debug, Default)]
pub struct Artefact {
    /// What a device loads.
    pub bytes: Vec<u8>,
    /// Resources by kernel name, where the compiler tells.
    pub resources: BTreeMap<String, Resources>,
}

/// Compiles kernel texts for one architecture without loading them.
pub trait OfflineCompiler: Send + Sync {
    /// What it compiles for.
    fn target(&self) -> &BuildTarget;
    /// Compiles a whole text.
    ///
    /// # Errors
    /// The compiler's message, pointing at the lines of `unit.text`.
    fn compile(&self, unit: &Unit<'_>) -> Result<Artefact, String>;
    /// Those of `names` that are not functions of the artefact.
    ///
    /// # Errors
    /// What is wrong with the artefact as a whole.
    fn missing(&self, artefact: &[u8], names: &[&str]) -> Result<Vec<String>, String>;
}

/// The compiler for an architecture: `sm_90a` and its like by NVRTC, or `emulator`.
///
/// # Errors
/// [`Error::InvalidArgument`] for a name that this build has no compiler for, [`Error::DeviceNotFound`] if the compiler is not installed.
pub fn offline_compiler(arch: &str) -> Result<Box<dyn OfflineCompiler>> {
    #[cfg(feature = "cuda")]
    if arch.starts_with("sm_") {
        return Ok(Box::new(super::cuda::nvrtc::CubinCompiler::new(super::cuda::nvrtc::Nvrtc::find()?, arch)?));
    }
    #[cfg(feature = "emulator")]
    if arch == "emulator" {
        return Ok(Box::new(DeviceCompiler::new(Device::open(arch)?, super::Target::Emulator.prelude_hash())?));
    }
    Err(Error::invalid("compile", format!("architecture: got `{arch}`, expected `sm_90a` or its like, or `emulator`")))
}

/// Compiles for a device that is here, with its own compiler.
pub struct DeviceCompiler {
    device: Device,
    target: BuildTarget,
}

impl DeviceCompiler {
    /// The compiler of `device`; `prelude` is the hash of what it puts in front of texts.
    ///
    /// # Errors
    /// [`Error::DeviceNotFound`] if the device has no compiler.
    pub fn new(device: Device, prelude: String) -> Result<DeviceCompiler> {
        let info = device.info();
        let Some(compiler) = device.backend().compiler() else {
            return Err(Error::DeviceNotFound { device: info.name.clone(), reason: "it has no compiler for kernel texts".into() });
        };
        let toolchain = compiler.toolchain().to_owned();
        let target = BuildTarget { backend: info.backend.clone(), arch: info.arch.clone(), toolchain, prelude };
        Ok(DeviceCompiler { device, target })
    }

    fn compiler(&self) -> Result<&dyn Compiler, String> {
        self.device.backend().compiler().ok_or_else(|| "the device has no compiler".into())
    }
}

impl OfflineCompiler for DeviceCompiler {
    fn target(&self) -> &BuildTarget {
        &self.target
    }

    fn compile(&self, unit: &Unit<'_>) -> Result<Artefact, String> {
        Ok(Artefact { bytes: self.compiler()?.compile(unit)?, resources: BTreeMap::new() })
    }

    fn missing(&self, artefact: &[u8], names: &[&str]) -> Result<Vec<String>, String> {
        let module = self.compiler()?.load(artefact)?;
        Ok(names.iter().filter(|name| module.function(name).is_err()).map(|&name| name.to_owned()).collect())
    }
}

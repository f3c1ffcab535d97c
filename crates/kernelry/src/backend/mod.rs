//! The device abstraction: what a backend must do, and nothing that ops or models may see of one.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dialect;
#[cfg(feature = "emulator")]
pub mod emulator;
mod offline;

pub use dialect::Target;
pub use offline::{Artefact, BuildTarget, DeviceCompiler, OfflineCompiler, Resources, offline_compiler};

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use crate::catalogue::Kernel;
use crate::commands::Commands;
use crate::registry::{Constants, Options};
use crate::{FileMap, Result};

/// Raw memory of one device. Contents are bytes; dtype and shape live in [`Buffer`](crate::Buffer).
pub trait Memory: Send + Sync {
    /// Bytes.
    fn len(&self) -> usize;
    /// True for no bytes, which never happens: empty allocations are rejected before.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Address for the host, where the host can reach this memory. It stays valid for `len()` bytes while `self` lives.
    fn host_ptr(&self) -> Option<*mut u8>;
    /// False for read-only mappings.
    fn writable(&self) -> bool;
    /// Copies bytes to the host. The caller has made sure that the range is inside and that no launch writes it.
    ///
    /// # Errors
    /// [`Error::Execution`](crate::Error::Execution) if the device fails.
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()>;
    /// Copies bytes from the host, with the same duties.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn write(&self, offset: usize, bytes: &[u8]) -> Result<()>;
    /// The backend's own type.
    fn as_any(&self) -> &dyn Any;
}

/// A compiled or native function, ready to launch on the device that made it.
pub trait Executable: Send + Sync {
    /// The backend's own type.
    fn as_any(&self) -> &dyn Any;

    /// Whether launches take the scratch memory of the catalogue entry.
    fn takes_scratch(&self) -> bool {
        false
    }
}

/// A compiled text, from which functions are taken.
pub trait Module: Send + Sync {
    /// The function of that name.
    ///
    /// # Errors
    /// The compiler's or loader's message.
    fn function(&self, entry: &str) -> Result<Arc<dyn Executable>, String>;
}

/// What is handed to a compiler.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Unit<'a> {
    /// Name for messages.
    pub name: &'a str,
    /// The whole kernel text.
    pub text: &'a str,
    /// Constants to specialise with.
    pub constants: &'a Constants,
    /// Options.
    pub options: Options,
}

impl<'a> Unit<'a> {
    /// A unit from its parts.
    pub fn new(name: &'a str, text: &'a str, constants: &'a Constants, options: Options) -> Unit<'a> {
        Unit { name, text, constants, options }
    }
}

/// Compiles kernel texts for one device.
pub trait Compiler: Send + Sync {
    /// Compiler name and build, and the architecture: part of the content key of everything stored.
    fn toolchain(&self) -> &str;
    /// Compiles a whole text.
    ///
    /// # Errors
    /// The compiler's message, pointing at the lines of `unit.text`.
    fn compile(&self, unit: &Unit<'_>) -> Result<Vec<u8>, String>;
    /// Loads what [`Compiler::compile`] made, now or in an earlier process, or what a pack holds. Devices that can load but not compile
    /// have a compiler too, whose `compile` says why it cannot.
    ///
    /// # Errors
    /// The loader's message; a stored artefact is then compiled again.
    fn load(&self, artefact: &[u8]) -> Result<Arc<dyn Module>, String>;
    /// Those of the options that change what this compiler makes; others are set to their defaults, so that they share what is stored.
    fn effective(&self, options: Options) -> Options {
        options
    }
    /// Whether [`Compiler::load`] takes what was made for `target`, in a pack that came from elsewhere.
    ///
    /// # Errors
    /// Why not, in words.
    fn accepts(&self, target: &BuildTarget) -> Result<(), String> {
        if target.toolchain == self.toolchain() {
            return Ok(());
        }
        Err(format!("made by `{}`, expected `{}`", target.toolchain, self.toolchain()))
    }
}

/// Whether a backend has a kernel, and why not.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Support {
    /// True if it can be launched.
    pub supported: bool,
    /// Why not, in words; empty if it can.
    pub reason: String,
}

impl Support {
    /// It can be launched.
    pub fn yes() -> Support {
        Support { supported: true, reason: String::new() }
    }
    /// It cannot, because.
    pub fn no(reason: impl Into<String>) -> Support {
        Support { supported: false, reason: reason.into() }
    }
}

/// What a device says of itself.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Backend name: `cpu`, `cuda`, `metal`, `emulator`.
    pub backend: String,
    /// Human name.
    pub name: String,
    /// Architecture or instruction set that kernels are chosen for.
    pub arch: String,
    /// Largest single allocation in bytes.
    pub max_allocation: u64,
    /// Compute units or threads that run kernels.
    pub units: u32,
    /// Version of the driver, where the device has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
}

impl DeviceInfo {
    /// Describes a device.
    pub fn new(
        backend: impl Into<String>,
        name: impl Into<String>,
        arch: impl Into<String>,
        max_allocation: u64,
        units: u32,
    ) -> DeviceInfo {
        DeviceInfo { backend: backend.into(), name: name.into(), arch: arch.into(), max_allocation, units, driver: None }
    }

    /// Adds the version of the driver.
    pub fn with_driver(mut self, version: impl Into<String>) -> DeviceInfo {
        self.driver = Some(version.into());
        self
    }
}

/// An optional ability of a device that callers may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// Kernels that use a hardware matrix unit.
    MatrixUnits,
    /// Files can be mapped as buffers without a copy.
    FileMapping,
    /// Kernel texts can be compiled on this machine.
    RuntimeCompilation,
}

/// Work handed to a device.
pub trait Pending: Send {
    /// Returns when the work is done.
    ///
    /// # Errors
    /// [`Error::Execution`](crate::Error::Execution) if it failed on the device.
    fn wait(self: Box<Self>) -> Result<()>;
}

/// A recorded command list, prepared for running many times.
pub trait Replay: Send + Sync {
    /// Runs it once.
    ///
    /// # Errors
    /// As [`Backend::submit`].
    fn run(&self) -> Result<Box<dyn Pending>>;
    /// Runs it `runs` times after one run to start with, back to back, and gives the time of each by the clock of the device, in which
    /// submission does not count. `None` where the device has no clock of its own: nothing was run then.
    ///
    /// # Errors
    /// As [`Backend::submit`].
    fn run_timed(&self, _runs: usize) -> Result<Option<Vec<Duration>>> {
        Ok(None)
    }
}

/// A device's driver. Ops and models never know which one they run on.
pub trait Backend: Send + Sync {
    /// What the device is.
    fn info(&self) -> &DeviceInfo;
    /// Whether it has a kernel of the catalogue.
    fn support(&self, kernel: &Kernel) -> Support;
    /// Whether it has an optional ability. Only "not available" is false; anything else that goes wrong is an error.
    ///
    /// # Errors
    /// Whatever made the probe fail.
    fn probe(&self, capability: Capability) -> Result<bool>;
    /// Allocates `bytes > 0` bytes, zeroed if asked.
    ///
    /// # Errors
    /// [`Error::Allocation`](crate::Error::Allocation).
    fn allocate(&self, bytes: usize, zeroed: bool) -> Result<Box<dyn Memory>>;
    /// Maps a range of a file without a copy, where the device can; `None` where the caller must upload.
    ///
    /// # Errors
    /// [`Error::Allocation`](crate::Error::Allocation) if the mapping fails though the device can map.
    fn map(&self, file: &FileMap, offset: usize, len: usize) -> Result<Option<Box<dyn Memory>>>;
    /// The implementation that needs no text, if this backend has one.
    fn native(&self, kernel: &Kernel, constants: &Constants, options: Options) -> Option<Arc<dyn Executable>>;
    /// The compiler for kernel texts, if this backend has one.
    fn compiler(&self) -> Option<&dyn Compiler>;
    /// Runs a command list. Access rules between commands are given by its barriers.
    ///
    /// # Errors
    /// [`Error::Execution`](crate::Error::Execution) if the work cannot be enqueued.
    fn submit(&self, commands: &Arc<Commands>) -> Result<Box<dyn Pending>>;
    /// Prepares a command list for many runs.
    ///
    /// # Errors
    /// As [`Backend::submit`].
    fn prepare(&self, commands: &Arc<Commands>) -> Result<Box<dyn Replay>>;
}

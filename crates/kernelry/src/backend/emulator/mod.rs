//! The emulator: kernel texts for GPUs, compiled by the system's C++ compiler and run on the CPU, one fiber a GPU thread.
//!
//! It exists to find what a GPU hides. Fibers are resumed in a seeded order; every access is checked for range, alignment and
//! initialisation; unordered accesses to one element are reported as races, with both lines of the text and both threads; so are barriers
//! and shuffles that not all threads reach. Warps can be 8, 16, 32 or 64 wide.

mod block;
mod compiler;
mod fault;
mod fiber;
mod launch;
mod module;
mod schedule;
mod watch;

use std::sync::Arc;

use compiler::CxxCompiler;
use launch::LaunchState;
use module::EmulatorKernel;

use super::cpu::HostMemory;
use super::{Backend, Capability, Compiler, DeviceInfo, Executable, Memory, Pending, Replay, Support};
use crate::catalogue::Kernel;
use crate::commands::{Command, Commands, Launch};
use crate::registry::{Constants, Options};
use crate::{Error, FileMap, Result};

/// How the emulator runs kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmulatorOptions {
    /// Seed of every schedule.
    pub seed: u64,
    /// Lanes of a warp: 8, 16, 32 or 64. Texts that only work with 32 get 32.
    pub warp: u32,
    /// Compiles with checks for undefined behaviour (shifts, signed overflow, local array bounds).
    pub undefined: bool,
}

impl Default for EmulatorOptions {
    fn default() -> EmulatorOptions {
        EmulatorOptions { seed: 0, warp: 32, undefined: false }
    }
}

/// The emulator as a backend.
pub struct EmulatorBackend {
    info: DeviceInfo,
    options: EmulatorOptions,
    compiler: CxxCompiler,
}

impl EmulatorBackend {
    /// Finds a C++ compiler and opens the emulator.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a warp width that is none of 8, 16, 32 and 64; [`Error::DeviceNotFound`] without a compiler.
    pub fn new(options: EmulatorOptions) -> Result<EmulatorBackend> {
        if ![8, 16, 32, 64].contains(&options.warp) {
            return Err(Error::invalid("emulator", format!("warp: got {}, expected 8, 16, 32 or 64", options.warp)));
        }
        let compiler = CxxCompiler::find(options.warp, options.undefined)?;
        let units = u32::try_from(rayon::current_num_threads()).unwrap_or(u32::MAX);
        let name = format!("emulator (warp {}, seed {})", options.warp, options.seed);
        let info = DeviceInfo::new("emulator", name, format!("warp{}", options.warp), isize::MAX as u64, units);
        Ok(EmulatorBackend { info, options, compiler })
    }

    /// One line for `doctor`.
    pub(crate) fn describe() -> String {
        match CxxCompiler::find(32, false) {
            Ok(compiler) => format!("available: {}", compiler.version()),
            Err(error) => error.to_string(),
        }
    }

    fn execute(&self, commands: &Commands) -> Result<()> {
        for command in commands.list() {
            match command {
                Command::Launch(launch) => self.launch(launch)?,
                Command::Copy { src, dst } => super::cpu::copy(src, dst)?,
                Command::Zero { dst } => super::cpu::zero(dst)?,
                Command::Barrier => {}
            }
        }
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let name = launch.pipeline.name();
        let failed = |message: String| Error::Execution { device: "emulator".into(), message };
        let Some(kernel) = launch.pipeline.executable().as_any().downcast_ref::<EmulatorKernel>() else {
            return Err(failed(format!("[{name}] is not a kernel of the emulator")));
        };
        let state = LaunchState::new(kernel, launch, kernel.warp)?;
        // Launches that differ get schedules that differ, and the same launch the same ones.
        let hash = blake3::hash(&[name.as_bytes(), &launch.params].concat());
        let seed = self.options.seed ^ hash.as_bytes().iter().take(8).fold(0u64, |n, &b| n << 8 | u64::from(b));
        state
            .run(seed)
            .map_err(|what| failed(format!("[{name}] {what} (KERNELRY_EMULATOR_SEED={}, warp width {})", self.options.seed, kernel.warp)))
    }
}

struct Done;

impl Pending for Done {
    fn wait(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct EmulatorReplay {
    backend: EmulatorBackend,
    commands: Arc<Commands>,
}

impl Replay for EmulatorReplay {
    fn run(&self) -> Result<Box<dyn Pending>> {
        self.backend.execute(&self.commands)?;
        Ok(Box::new(Done))
    }
}

impl Backend for EmulatorBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn support(&self, kernel: &Kernel) -> Support {
        match (kernel.text.is_some(), kernel.has_entry_point()) {
            (true, _) => Support::yes(),
            (false, true) => Support::no("no kernel text yet"),
            (false, false) => Support::no("kernel has no entry point"),
        }
    }

    fn probe(&self, capability: Capability) -> Result<bool> {
        Ok(capability == Capability::RuntimeCompilation)
    }

    fn allocate(&self, bytes: usize, zeroed: bool) -> Result<Box<dyn Memory>> {
        Ok(Box::new(HostMemory::new(bytes, zeroed)?))
    }

    fn map(&self, _file: &FileMap, _offset: usize, _len: usize) -> Result<Option<Box<dyn Memory>>> {
        // A mapping may lie at any address; device memory does not, and kernels rely on that.
        Ok(None)
    }

    fn native(&self, _kernel: &Kernel, _constants: &Constants, _options: Options) -> Option<Arc<dyn Executable>> {
        None
    }

    fn compiler(&self) -> Option<&dyn Compiler> {
        Some(&self.compiler)
    }

    fn submit(&self, commands: &Arc<Commands>) -> Result<Box<dyn Pending>> {
        self.execute(commands)?;
        Ok(Box::new(Done))
    }

    fn prepare(&self, commands: &Arc<Commands>) -> Result<Box<dyn Replay>> {
        let backend = EmulatorBackend { info: self.info.clone(), options: self.options, compiler: self.compiler.clone() };
        Ok(Box::new(EmulatorReplay { backend, commands: commands.clone() }))
    }
}

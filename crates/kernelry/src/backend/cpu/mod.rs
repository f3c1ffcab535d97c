//! The CPU backend: native Rust, chosen by SIMD level at run time, on rayon's threads.

pub(crate) mod activation;
pub(crate) mod attention;
mod call;
pub(crate) mod dense;
pub(crate) mod elementwise;
pub(crate) mod kv_cache;
pub(crate) mod layout;
pub(crate) mod math;
mod memory;
#[cfg(feature = "emulator")]
pub(crate) use memory::HostMemory;
pub(crate) mod moe;
pub(crate) mod norm;
pub(crate) mod parallel;
pub(crate) mod quantized;
pub(crate) mod rope;
pub(crate) mod sampling;
pub(crate) mod scratch;
#[allow(dead_code, reason = "vector operations for families that do not use them yet")]
pub(crate) mod simd;
pub(crate) mod vector;

use std::any::Any;
use std::sync::Arc;

pub use call::{CpuCall, CpuFn};

use crate::backend::{Backend, Capability, Compiler, DeviceInfo, Executable, Memory, Pending, Replay, Support};
use crate::catalogue::Kernel;
use crate::commands::{Command, Commands, LaunchArg};
use crate::registry::{Constants, Options};
use crate::{Error, FileMap, Result};

/// Native kernels on the host's cores. Launches run one after the other, each on as many threads as it is worth.
pub struct CpuBackend {
    info: DeviceInfo,
}

/// Sets the number of worker threads of this process, once, before the first kernel runs. Without this call it is `KERNELRY_THREADS`, or
/// all that the machine has.
///
/// # Errors
/// [`Error::InvalidArgument`] for zero threads, or if the threads run already.
pub fn set_threads(threads: usize) -> Result<()> {
    if threads == 0 {
        return Err(Error::invalid("set_threads", "threads: got 0, expected at least 1"));
    }
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    built.map_err(|e| Error::invalid("set_threads", format!("threads: got {threads}, expected a call before the first kernel runs ({e})")))
}

/// One line for `doctor`: instruction set and threads.
pub(crate) fn describe() -> String {
    format!("{} threads, {}", threads(), simd_name())
}

/// Worker threads, started as the environment says unless they run already.
fn threads() -> usize {
    if let Some(threads) = crate::Config::from_env().threads {
        // An error means that whoever started the threads before this has decided.
        let _ = set_threads(threads);
    }
    rayon::current_num_threads()
}

fn simd_name() -> String {
    std::env::consts::ARCH.to_owned()
}

impl CpuBackend {
    /// Opens the CPU.
    pub fn new() -> CpuBackend {
        let threads = u32::try_from(threads()).unwrap_or(u32::MAX);
        let name = format!("CPU ({threads} threads)");
        CpuBackend { info: DeviceInfo::new("cpu", name, simd_name(), isize::MAX as u64, threads) }
    }
}

impl Default for CpuBackend {
    fn default() -> CpuBackend {
        CpuBackend::new()
    }
}

struct CpuExecutable {
    run: CpuFn,
    constants: Constants,
    options: Options,
}

impl Executable for CpuExecutable {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Work that is already done.
struct Done;

impl Pending for Done {
    fn wait(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct CpuReplay(Arc<Commands>);

impl Replay for CpuReplay {
    fn run(&self) -> Result<Box<dyn Pending>> {
        execute(&self.0)?;
        Ok(Box::new(Done))
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn support(&self, kernel: &Kernel) -> Support {
        match (kernel.cpu, kernel.has_entry_point()) {
            (Some(_), _) => Support::yes(),
            (None, true) => Support::no("not implemented on this backend"),
            (None, false) => Support::no("kernel has no entry point"),
        }
    }

    fn probe(&self, capability: Capability) -> Result<bool> {
        Ok(matches!(capability, Capability::FileMapping))
    }

    fn allocate(&self, bytes: usize, zeroed: bool) -> Result<Box<dyn Memory>> {
        Ok(Box::new(memory::HostMemory::new(bytes, zeroed)?))
    }

    fn map(&self, file: &FileMap, offset: usize, len: usize) -> Result<Option<Box<dyn Memory>>> {
        Ok(memory::MappedMemory::new(file, offset, len).map(|m| Box::new(m) as Box<dyn Memory>))
    }

    fn native(&self, kernel: &Kernel, constants: &Constants, options: Options) -> Option<Arc<dyn Executable>> {
        Some(Arc::new(CpuExecutable { run: kernel.cpu?, constants: *constants, options }))
    }

    fn compiler(&self) -> Option<&dyn Compiler> {
        None
    }

    fn submit(&self, commands: &Arc<Commands>) -> Result<Box<dyn Pending>> {
        execute(commands)?;
        Ok(Box::new(Done))
    }

    fn prepare(&self, commands: &Arc<Commands>) -> Result<Box<dyn Replay>> {
        Ok(Box::new(CpuReplay(commands.clone())))
    }
}

/// Runs a list in order. Commands run one after the other, so barriers need no action. The caller holds the locks of all storages.
fn execute(commands: &Commands) -> Result<()> {
    for command in commands.list() {
        match command {
            Command::Launch(launch) => {
                let Some(kernel) = launch.pipeline.executable().as_any().downcast_ref::<CpuExecutable>() else {
                    return Err(Error::Execution {
                        device: "cpu".into(),
                        message: format!("{} is not a CPU kernel", launch.pipeline.label()),
                    });
                };
                let call = CpuCall::new(launch, &kernel.constants, kernel.options)?;
                (kernel.run)(&call);
            }
            Command::Copy { src, dst } => copy(src, dst)?,

            Command::Zero { dst } => zero(dst)?,
            Command::Barrier => {}
        }
    }
    Ok(())
}

/// Copies between ranges of host memory.
pub(crate) fn copy(src: &LaunchArg, dst: &LaunchArg) -> Result<()> {
    let (from, to) = (host_range(src)?, host_range(dst)?);
    // SAFETY: both ranges are live, have one length (checked when recorded) and do not overlap (likewise).
    unsafe { std::ptr::copy_nonoverlapping(from, to, src.range().len()) };
    Ok(())
}

/// Zeroes a range of host memory.
pub(crate) fn zero(dst: &LaunchArg) -> Result<()> {
    // SAFETY: the range is live and writable (checked when recorded).
    unsafe { std::ptr::write_bytes(host_range(dst)?, 0, dst.range().len()) };
    Ok(())
}

/// Start of an argument in host memory.
fn host_range(arg: &LaunchArg) -> Result<*mut u8> {
    match arg.memory().host_ptr() {
        Some(base) if arg.range().end <= arg.memory().len() => Ok(base.wrapping_add(arg.range().start)),
        _ => Err(Error::Execution { device: "cpu".into(), message: "an argument is not in host memory".into() }),
    }
}

//! NVIDIA GPUs. Compiling for one needs NVRTC alone, and neither a GPU nor a driver.
//!
//! Everything of a device runs in order on one stream, so barriers need no action. Graphs are captured once and replayed with one call.

mod cubin;
mod driver;
mod memory;
mod module;
pub mod nvrtc;
mod nvrtc_find;

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys;
use driver::{Gpu, Graph, check};
use memory::CudaMemory;
use module::{CudaCompiler, CudaKernel};
use smallvec::SmallVec;

use super::{Backend, Capability, Compiler, DeviceInfo, Executable, Memory, Pending, Replay, Support};
use crate::catalogue::{Kernel, ParamKind};
use crate::encoder::{Command, Commands, Launch, LaunchArg};
use crate::registry::{Constants, Options};
use crate::{Error, FileMap, Result};

/// One NVIDIA GPU.
pub struct CudaBackend {
    info: DeviceInfo,
    gpu: Arc<Gpu>,
    compiler: CudaCompiler,
}

impl CudaBackend {
    /// Opens GPU `index` of this machine.
    ///
    /// # Errors
    /// [`Error::DeviceNotFound`] with the reason: no driver, one that is too old, no such GPU, or one below compute capability 8.0.
    pub fn new(index: u32) -> Result<CudaBackend> {
        let gpu = Arc::new(Gpu::open(i32::try_from(index).unwrap_or(i32::MAX))?);
        let compiler = CudaCompiler::new(&gpu);
        let info = DeviceInfo::new("cuda", gpu.name.clone(), compiler.arch(), gpu.memory, gpu.units).with_driver(driver::version());
        Ok(CudaBackend { info, gpu, compiler })
    }

    /// One line for `doctor`.
    pub(crate) fn describe() -> String {
        match CudaBackend::new(0) {
            Ok(backend) => {
                let version = driver::start().unwrap_or(0);
                let nvrtc = if backend.compiler.can_compile() { "NVRTC found" } else { "no NVRTC: kernels from packs alone" };
                let (info, gib) = (&backend.info, backend.gpu.memory >> 30);
                format!("available: {}, {}, {gib} GiB, CUDA {}.{}, {nvrtc}", info.name, info.arch, version / 1000, version % 1000 / 10)
            }
            Err(Error::DeviceNotFound { reason, .. }) => reason,
            Err(error) => error.to_string(),
        }
    }
}

fn failed(message: String) -> Error {
    Error::Execution { device: "cuda".into(), message }
}

/// Device address of an argument; null for one that was left out.
fn address(arg: Option<&LaunchArg>) -> Result<sys::CUdeviceptr> {
    let Some(arg) = arg else { return Ok(0) };
    match arg.memory().as_any().downcast_ref::<CudaMemory>() {
        Some(memory) if arg.range().end <= memory.len() => Ok(memory.at(arg.range().start)),
        _ => Err(failed("an argument is not in the memory of this GPU".into())),
    }
}

fn enqueue(commands: &Commands, stream: sys::CUstream) -> Result<()> {
    for command in commands.list() {
        match command {
            Command::Launch(launch) => enqueue_launch(launch, stream)?,
            Command::Copy { src, dst } => {
                let (from, to) = (address(Some(src))?, address(Some(dst))?);
                // SAFETY: both ranges are live and of one length (checked when recorded).
                check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, src.range().len(), stream) })?;
            }
            Command::Zero { dst } => {
                // SAFETY: the range is live and writable (checked when recorded).
                check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(address(Some(dst))?, 0, dst.range().len(), stream) })?;
            }
            Command::Barrier => {}
        }
    }
    Ok(())
}

fn enqueue_launch(launch: &Launch, stream: sys::CUstream) -> Result<()> {
    let name = launch.pipeline.name();
    let Some(kernel) = launch.pipeline.executable().as_any().downcast_ref::<CudaKernel>() else {
        return Err(failed(format!("[{name}] is not a CUDA kernel")));
    };
    let mut addresses: SmallVec<[sys::CUdeviceptr; 10]> = SmallVec::new();
    for arg in &launch.args {
        addresses.push(address(arg.as_ref())?);
    }
    if launch.pipeline.entry().is_some_and(|e| e.params().fields.iter().any(|f| f.kind == ParamKind::Step)) {
        addresses.push(address(launch.step.as_ref())?);
    }
    // Aligned as the struct of scalars may be, and never empty: a struct without members has one byte.
    let mut params = [0u64; 32];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut params);
    let Some(slot) = bytes.get_mut(..launch.params.len()) else {
        return Err(failed(format!("[{name}] parameters: got {} bytes, expected at most 256", launch.params.len())));
    };
    slot.copy_from_slice(&launch.params);
    let mut pointers: SmallVec<[*mut c_void; 12]> = addresses.iter_mut().map(|a| std::ptr::from_mut(a).cast()).collect();
    pointers.push(params.as_mut_ptr().cast());
    let [gx, gy, gz] = launch.geometry.groups;
    let gx = gx.checked_next_multiple_of(kernel.cluster).unwrap_or(u32::MAX);
    let [bx, by, bz] = kernel.threads.map_or(launch.geometry.threads, |threads| [threads, 1, 1]);
    let threads = u64::from(bx) * u64::from(by) * u64::from(bz);
    if threads == 0 || threads > u64::from(kernel.max_threads) {
        return Err(failed(format!("[{name}] threads of a block: got {bx} x {by} x {bz}, expected 1 to {}", kernel.max_threads)));
    }
    if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX.unsigned_abs() || gy > 65535 || gz > 65535 {
        return Err(failed(format!("[{name}] grid: got {gx} x {gy} x {gz}, expected at least 1, and y and z at most 65535")));
    }
    let (shared, arguments) = (kernel.dynamic_shared, pointers.as_mut_ptr());
    // SAFETY: the kernel takes one pointer a slot and the struct of scalars, as the dialect says; the driver copies all of them before
    // it returns. The buffers have been checked against the catalogue entry, and live as long as the recorded commands.
    let status = unsafe { sys::cuLaunchKernel(kernel.function, gx, gy, gz, bx, by, bz, shared, stream, arguments, std::ptr::null_mut()) };
    check("cuLaunchKernel", status).map_err(|e| failed(format!("[{name}] {e}")))
}

/// Submitted work. The commands are kept until it is done.
struct CudaPending {
    gpu: Arc<Gpu>,
    _commands: Arc<Commands>,
}

impl Pending for CudaPending {
    fn wait(self: Box<Self>) -> Result<()> {
        self.gpu.synchronize()
    }
}

struct CudaReplay {
    gpu: Arc<Gpu>,
    graph: Graph,
    commands: Arc<Commands>,
}

impl Replay for CudaReplay {
    fn run(&self) -> Result<Box<dyn Pending>> {
        self.gpu.launch_graph(&self.graph)?;
        Ok(Box::new(CudaPending { gpu: self.gpu.clone(), _commands: self.commands.clone() }))
    }

    fn run_timed(&self, runs: usize) -> Result<Option<Vec<Duration>>> {
        self.gpu.time_graph(&self.graph, runs).map(Some)
    }
}

impl Drop for CudaReplay {
    fn drop(&mut self) {
        // The graph goes first, then what it uses.
        let _ = self.gpu.synchronize();
    }
}

impl Backend for CudaBackend {
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
        Ok(match capability {
            Capability::MatrixUnits => true,
            Capability::RuntimeCompilation => self.compiler.can_compile(),
            Capability::FileMapping => false,
        })
    }

    fn allocate(&self, bytes: usize, zeroed: bool) -> Result<Box<dyn Memory>> {
        Ok(Box::new(CudaMemory::new(&self.gpu, bytes, zeroed)?))
    }

    fn map(&self, _file: &FileMap, _offset: usize, _len: usize) -> Result<Option<Box<dyn Memory>>> {
        Ok(None)
    }

    fn native(&self, _kernel: &Kernel, _constants: &Constants, _options: Options) -> Option<Arc<dyn Executable>> {
        None
    }

    fn compiler(&self) -> Option<&dyn Compiler> {
        Some(&self.compiler)
    }

    fn submit(&self, commands: &Arc<Commands>) -> Result<Box<dyn Pending>> {
        self.gpu.enter()?;
        enqueue(commands, self.gpu.stream())?;
        Ok(Box::new(CudaPending { gpu: self.gpu.clone(), _commands: commands.clone() }))
    }

    fn prepare(&self, commands: &Arc<Commands>) -> Result<Box<dyn Replay>> {
        let graph = self.gpu.capture(|stream| enqueue(commands, stream))?;
        Ok(Box::new(CudaReplay { gpu: self.gpu.clone(), graph, commands: commands.clone() }))
    }
}

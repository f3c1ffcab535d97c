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
use crate::commands::{Command, Commands, Launch, LaunchArg};
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

fn enqueue(gpu: &Gpu, commands: &Commands, stream: sys::CUstream) -> Result<()> {
    // Whether the command before is a launch of this list. Barriers are not commands to a stream.
    let mut after_launch = false;
    for command in commands.list().iter().filter(|c| !matches!(c, Command::Barrier)) {
        let chain = std::mem::replace(&mut after_launch, matches!(command, Command::Launch(_)));
        match command {
            Command::Launch(launch) => enqueue_launch(gpu, commands, launch, chain, stream)?,
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

/// Whether a launch may begin before the one in front of it has ended: its kernel waits by itself, and what it reads before that is written by no
/// command of the list.
fn may_chain(kernel: &CudaKernel, commands: &Commands, launch: &Launch) -> bool {
    let Some(ahead) = kernel.chained else { return false };
    let read_ahead = |slot: usize| u32::try_from(slot).is_ok_and(|slot| ahead.checked_shr(slot).unwrap_or(0) & 1 != 0);
    launch.args.iter().enumerate().all(|(slot, arg)| !read_ahead(slot) || arg.as_ref().is_none_or(|arg| !commands.writes(arg)))
}

fn enqueue_launch(gpu: &Gpu, commands: &Commands, launch: &Launch, chain: bool, stream: sys::CUstream) -> Result<()> {
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
    // Without scratch memory a kernel that could have some takes another path, and needs nothing prepared.
    let aligned = launch.args.iter().zip(&addresses).all(|(arg, at)| at.is_multiple_of(16) || arg.as_ref().is_none_or(LaunchArg::writes));
    let prepare = kernel.prepare.as_ref().filter(|_| launch.scratch.is_some() && aligned);
    if kernel.prepare.is_some() {
        addresses.push(if prepare.is_some() { address(launch.scratch.as_ref())? } else { 0 });
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
    let chain = chain && may_chain(kernel, commands, launch);
    let started = |e| failed(format!("[{name}] {e}"));
    if let Some(prepare) = prepare {
        let grid = [prepare.blocks.saturating_mul(gpu.units), 1, 1];
        start(stream, prepare.function, (grid, [prepare.threads, 1, 1]), 0, chain, &mut pointers).map_err(started)?;
    }
    let [gx, gy, gz] = launch.geometry.groups;
    let gx = gx.checked_next_multiple_of(kernel.cluster).unwrap_or(u32::MAX);
    let whole = gpu.units / kernel.cluster * kernel.cluster;
    let gx = kernel.resident.map_or(gx, |blocks| gx.min(blocks.saturating_mul(whole)));
    let [gx, gy, gz] = if prepare.is_some() { [whole, 1, 1] } else { [gx, gy, gz] };
    let [bx, by, bz] = kernel.threads.map_or(launch.geometry.threads, |threads| [threads, 1, 1]);
    let threads = u64::from(bx) * u64::from(by) * u64::from(bz);
    if threads == 0 || threads > u64::from(kernel.max_threads) {
        return Err(failed(format!("[{name}] threads of a block: got {bx} x {by} x {bz}, expected 1 to {}", kernel.max_threads)));
    }
    if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX.unsigned_abs() || gy > 65535 || gz > 65535 {
        return Err(failed(format!("[{name}] grid: got {gx} x {gy} x {gz}, expected at least 1, and y and z at most 65535")));
    }
    let chain = if prepare.is_some() { kernel.chained.is_some() } else { chain };
    start(stream, kernel.function, ([gx, gy, gz], [bx, by, bz]), kernel.dynamic_shared, chain, &mut pointers).map_err(started)
}

/// Launches `function` with `pointers` to its operands. One that is chained may begin before what is in front of it has ended.
fn start(
    stream: sys::CUstream,
    function: sys::CUfunction,
    ([gx, gy, gz], [bx, by, bz]): ([u32; 3], [u32; 3]),
    shared: u32,
    chain: bool,
    pointers: &mut [*mut c_void],
) -> Result<()> {
    let mut early = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: gx,
        gridDimY: gy,
        gridDimZ: gz,
        blockDimX: bx,
        blockDimY: by,
        blockDimZ: bz,
        sharedMemBytes: shared,
        hStream: stream,
        attrs: &mut early,
        numAttrs: u32::from(chain),
    };
    // SAFETY: the kernel takes one pointer a slot, the scratch memory if it has any, and the struct of scalars, as the dialect says; the driver
    // copies all of them, and the attribute, before it returns. The buffers have been checked against the catalogue entry, and live as long
    // as the recorded commands.
    check("cuLaunchKernelEx", unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) })
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
        enqueue(&self.gpu, commands, self.gpu.stream())?;
        Ok(Box::new(CudaPending { gpu: self.gpu.clone(), _commands: commands.clone() }))
    }

    fn prepare(&self, commands: &Arc<Commands>) -> Result<Box<dyn Replay>> {
        let graph = self.gpu.capture(|stream| enqueue(&self.gpu, commands, stream))?;
        Ok(Box::new(CudaReplay { gpu: self.gpu.clone(), graph, commands: commands.clone() }))
    }
}

//! The driver: found before it is called, every failure a value that names the call.

use std::ffi::{CStr, CString, c_void};
use std::sync::OnceLock;
use std::time::Duration;

use cudarc::driver::sys;
use parking_lot::Mutex;

use crate::{Error, Result};

/// What is called. `cudarc` panics on a symbol that a driver lacks, so all are looked up once, before the first call.
const SYMBOLS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDeviceGetDefaultMemPool",
    "cuCtxSetCurrent",
    "cuMemPoolSetAttribute",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// Versions before this lack what kernels and graphs need.
const OLDEST: i32 = 12000;
/// Bytes of one half of the staging memory.
const STAGE: usize = 8 << 20;

/// Turns a status into an error that names the call.
pub(super) fn check(call: &str, status: sys::CUresult) -> Result<()> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(Error::Execution { device: "cuda".into(), message: format!("{call}: {}", describe(status)) })
}

fn describe(status: sys::CUresult) -> String {
    let text = |get: unsafe fn(sys::CUresult, *mut *const std::ffi::c_char) -> sys::CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the driver leaves a string that it owns, or null.
        unsafe {
            let _ = get(status, &mut text);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    };
    format!("{} ({}): {}", text(sys::cuGetErrorName), status as u32, text(sys::cuGetErrorString))
}

/// Loads and starts the driver, once in the process.
///
/// # Errors
/// Why it cannot be used, in words.
pub(super) fn start() -> Result<i32, String> {
    static STARTED: OnceLock<Result<i32, String>> = OnceLock::new();
    STARTED.get_or_init(try_start).clone()
}

/// Version of the driver in words: its own number, where the system tells it, and the newest CUDA that it serves.
pub(super) fn version() -> String {
    let cuda = start().map_or_else(|_| "unknown".into(), |v| format!("CUDA {}.{}", v / 1000, v % 1000 / 10));
    let module = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    module_version(&module).map_or(cuda.clone(), |own| format!("{own}, {cuda}"))
}

/// The number in what the kernel module says of itself: `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 ...`.
fn module_version(text: &str) -> Option<&str> {
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c == '.' || c.is_ascii_digit());
    text.lines().next()?.split_whitespace().find(is_version)
}

fn try_start() -> Result<i32, String> {
    // SAFETY: loading a library runs its initialisers; the driver's have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver: libcuda was not found in the library path".into());
    }
    // SAFETY: the library is present, so this does not panic.
    let library = unsafe { sys::culib() };
    for name in SYMBOLS {
        let symbol = CString::new(*name).map_err(|e| e.to_string())?;
        // SAFETY: only looked up, not called.
        if unsafe { library.get::<*const c_void>(symbol.as_bytes_with_nul()) }.is_err() {
            return Err(format!("the NVIDIA driver lacks {name}: version 12.0 or later is needed"));
        }
    }
    // SAFETY: the symbols are there.
    unsafe {
        check("cuInit", sys::cuInit(0)).map_err(|e| e.to_string())?;
        let mut version = 0;
        check("cuDriverGetVersion", sys::cuDriverGetVersion(&mut version)).map_err(|e| e.to_string())?;
        if version < OLDEST {
            return Err(format!("the NVIDIA driver is for CUDA {}.{}: 12.0 or later is needed", version / 1000, version % 1000 / 10));
        }
        Ok(version)
    }
}

/// Half of the staging memory, and the event after its last copy.
struct Stage {
    memory: *mut u8,
    event: sys::CUevent,
}

/// An opened GPU: its context, the one stream on which everything runs in order, and pinned memory for copies.
pub(super) struct Gpu {
    context: sys::CUcontext,
    device: sys::CUdevice,
    stream: sys::CUstream,
    /// A stream on which command lists are captured, one at a time.
    capture: Mutex<SendPtr<sys::CUstream>>,
    staging: Mutex<(usize, [Stage; 2])>,
    pub(super) name: String,
    pub(super) capability: (i32, i32),
    pub(super) memory: u64,
    pub(super) units: u32,
}

/// A driver handle, which any thread may use.
pub(super) struct SendPtr<T>(pub(super) T);
// SAFETY: handles of the driver may be used from any thread that has made the context current.
unsafe impl<T> Send for SendPtr<T> {}
// SAFETY: as above; the driver locks for itself.
unsafe impl<T> Sync for SendPtr<T> {}

// SAFETY: handles may be used from any thread; the staging memory is behind a lock.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens device `index`.
    pub(super) fn open(index: i32) -> Result<Gpu> {
        let absent = |reason: String| Error::DeviceNotFound { device: format!("cuda:{index}"), reason };
        start().map_err(absent)?;
        // SAFETY: the driver is started; every pointer is to a live variable of the type that the call fills.
        unsafe {
            let mut count = 0;
            check("cuDeviceGetCount", sys::cuDeviceGetCount(&mut count))?;
            if index < 0 || index >= count {
                return Err(absent(format!("this machine has {count} NVIDIA GPUs")));
            }
            let mut device = 0;
            check("cuDeviceGet", sys::cuDeviceGet(&mut device, index))?;
            let attribute = |which: sys::CUdevice_attribute| -> Result<i32> {
                let mut value = 0;
                check("cuDeviceGetAttribute", sys::cuDeviceGetAttribute(&mut value, which, device))?;
                Ok(value)
            };
            use sys::CUdevice_attribute::{
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
                CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as UNITS,
            };
            let capability = (attribute(MAJOR)?, attribute(MINOR)?);
            if capability < (8, 0) {
                return Err(absent(format!("compute capability {}.{}: 8.0 or later is needed", capability.0, capability.1)));
            }
            let mut name = [0; 128];
            check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr(), 127, device))?;
            let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
            let mut memory = 0;
            check("cuDeviceTotalMem", sys::cuDeviceTotalMem_v2(&mut memory, device))?;
            let units = attribute(UNITS)?.unsigned_abs();
            let mut context = std::ptr::null_mut();
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
            check("cuCtxSetCurrent", sys::cuCtxSetCurrent(context))?;
            let mut pool = std::ptr::null_mut();
            check("cuDeviceGetDefaultMemPool", sys::cuDeviceGetDefaultMemPool(&mut pool, device))?;
            // Freed memory stays with the pool: the next allocation is a lookup.
            let mut keep = u64::MAX;
            let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            check("cuMemPoolSetAttribute", sys::cuMemPoolSetAttribute(pool, threshold, std::ptr::from_mut(&mut keep).cast()))?;
            let (stream, capture) = (new_stream()?, new_stream()?);
            let stages = [new_stage()?, new_stage()?];
            let memory = memory as u64;
            Ok(Gpu {
                context,
                device,
                stream,
                capture: Mutex::new(SendPtr(capture)),
                staging: Mutex::new((0, stages)),
                name,
                capability,
                memory,
                units,
            })
        }
    }

    /// Makes the context that of this thread: before every other call.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream is ours.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Copies host bytes to the device through pinned memory, two halves in turn, without waiting for the last of them.
    pub(super) fn upload(&self, to: sys::CUdeviceptr, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        let mut staging = self.staging.lock();
        for (i, chunk) in bytes.chunks(STAGE).enumerate() {
            let (turn, stages) = &mut *staging;
            let [even, odd] = stages;
            let stage = if *turn % 2 == 0 { even } else { odd };
            *turn += 1;
            // SAFETY: the half is free once its last copy is done; it has room for a chunk; the target range was checked by the caller.
            unsafe {
                check("cuEventSynchronize", sys::cuEventSynchronize(stage.event))?;
                std::ptr::copy_nonoverlapping(chunk.as_ptr(), stage.memory, chunk.len());
                let to = to + (i * STAGE) as u64;
                check("cuMemcpyHtoDAsync", sys::cuMemcpyHtoDAsync_v2(to, stage.memory.cast(), chunk.len(), self.stream))?;
                check("cuEventRecord", sys::cuEventRecord(stage.event, self.stream))?;
            }
        }
        Ok(())
    }

    /// Copies device bytes to the host, after everything that was submitted.
    pub(super) fn download(&self, from: sys::CUdeviceptr, out: &mut [u8]) -> Result<()> {
        self.enter()?;
        let staging = self.staging.lock();
        let [stage, _] = &staging.1;
        for (i, chunk) in out.chunks_mut(STAGE).enumerate() {
            // SAFETY: as in `upload`; the stream orders this copy after the last use of the half, and we wait for it.
            unsafe {
                let from = from + (i * STAGE) as u64;
                check("cuMemcpyDtoHAsync", sys::cuMemcpyDtoHAsync_v2(stage.memory.cast(), from, chunk.len(), self.stream))?;
                check("cuStreamSynchronize", sys::cuStreamSynchronize(self.stream))?;
                std::ptr::copy_nonoverlapping(stage.memory, chunk.as_mut_ptr(), chunk.len());
            }
        }
        Ok(())
    }

    /// Captures what `enqueue` puts on the stream that it is given, as an executable graph.
    pub(super) fn capture(&self, enqueue: impl FnOnce(sys::CUstream) -> Result<()>) -> Result<Graph> {
        self.enter()?;
        let capture = self.capture.lock();
        // SAFETY: the stream is used under its lock alone; every handle that is made is destroyed or handed on.
        unsafe {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            check("cuStreamBeginCapture", sys::cuStreamBeginCapture_v2(capture.0, mode))?;
            let enqueued = enqueue(capture.0);
            let mut graph = std::ptr::null_mut();
            let ended = check("cuStreamEndCapture", sys::cuStreamEndCapture(capture.0, &mut graph));
            let instantiated = enqueued.and(ended).and_then(|()| {
                let mut executable = std::ptr::null_mut();
                check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0))?;
                Ok(Graph(executable))
            });
            if !graph.is_null() {
                let _ = sys::cuGraphDestroy(graph);
            }
            instantiated
        }
    }

    pub(super) fn launch_graph(&self, graph: &Graph) -> Result<()> {
        self.enter()?;
        // SAFETY: the graph was made in this context.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.0, self.stream) })
    }

    /// Runs a graph `runs` times after one run to start with, and gives the times between events on the stream. While the first runs, the
    /// others are submitted: the device never waits for the host.
    pub(super) fn time_graph(&self, graph: &Graph, runs: usize) -> Result<Vec<Duration>> {
        self.enter()?;
        let events = (0..=runs).map(|_| Event::new()).collect::<Result<Vec<_>>>()?;
        self.launch_graph(graph)?;
        for (i, event) in events.iter().enumerate() {
            if i > 0 {
                self.launch_graph(graph)?;
            }
            // SAFETY: the event and the stream are live.
            check("cuEventRecord", unsafe { sys::cuEventRecord(event.0, self.stream) })?;
        }
        self.synchronize()?;
        let between = |pair: &[Event]| {
            let [begin, end] = pair else { return Ok(Duration::ZERO) };
            let mut milliseconds = 0.0f32;
            // SAFETY: both events have been recorded and reached; the result is a variable of the type that the call fills.
            check("cuEventElapsedTime", unsafe { sys::cuEventElapsedTime(&mut milliseconds, begin.0, end.0) })?;
            Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
        };
        events.windows(2).map(between).collect()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        // SAFETY: nothing uses the handles any more; at the end of a process the driver may be gone, and its errors say nothing useful.
        unsafe {
            let _ = sys::cuStreamSynchronize(self.stream);
            for stage in &self.staging.get_mut().1 {
                let _ = sys::cuEventDestroy_v2(stage.event);
                let _ = sys::cuMemFreeHost(stage.memory.cast());
            }
            let _ = sys::cuStreamDestroy_v2(self.capture.get_mut().0);
            let _ = sys::cuStreamDestroy_v2(self.stream);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// # Safety
/// A context is current.
unsafe fn new_stream() -> Result<sys::CUstream> {
    let mut stream = std::ptr::null_mut();
    // Not ordered with the legacy default stream, which other libraries in the process may use.
    // SAFETY: promised by the caller.
    check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32) })?;
    Ok(stream)
}

/// # Safety
/// A context is current.
unsafe fn new_stage() -> Result<Stage> {
    let (mut memory, mut event) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: promised by the caller.
    unsafe {
        check("cuMemHostAlloc", sys::cuMemHostAlloc(&mut memory, STAGE, 0))?;
        check("cuEventCreate", sys::cuEventCreate(&mut event, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32))?;
    }
    Ok(Stage { memory: memory.cast(), event })
}

/// A point on a stream, with its time.
struct Event(sys::CUevent);

impl Event {
    /// A context is current.
    fn new() -> Result<Event> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the result is a variable of the type that the call fills; without a context the call fails.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, sys::CUevent_flags::CU_EVENT_DEFAULT as u32) })?;
        Ok(Event(event))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by us; the driver frees it once it has been reached.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// A captured command list.
pub(super) struct Graph(sys::CUgraphExec);
// SAFETY: as for every handle.
unsafe impl Send for Graph {}
// SAFETY: launching a graph from several threads is serialised by the driver.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by us; a graph that still runs is destroyed after it has ended.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::module_version;

    #[test]
    fn the_number_of_the_kernel_module() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@host)\nGCC version: 12.2.0\n";
        assert_eq!(module_version(open), Some("580.65.06"));
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.12  Wed Sep 20 09:35:17 UTC 2023\n";
        assert_eq!(module_version(closed), Some("535.104.12"));
        assert_eq!(module_version(""), None);
    }
}

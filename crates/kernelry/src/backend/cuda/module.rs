//! Compiling texts for the device, and loading what was compiled.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::{Gpu, check};
use super::nvrtc::Nvrtc;
use crate::backend::{BuildTarget, Compiler, Executable, Module, Unit};
use crate::registry::Options;

pub(super) struct CudaCompiler {
    gpu: Arc<Gpu>,
    arch: String,
    /// Without NVRTC, kernels come from packs alone.
    nvrtc: Result<Nvrtc, String>,
    toolchain: String,
}

impl CudaCompiler {
    pub(super) fn new(gpu: &Arc<Gpu>) -> CudaCompiler {
        let (major, minor) = gpu.capability;
        // The variants with `a` have the instructions of that chip alone, which only texts for it use.
        let suffix = if matches!(major, 9 | 10) { "a" } else { "" };
        let arch = format!("sm_{major}{minor}{suffix}");
        let nvrtc = Nvrtc::find().map_err(|e| e.to_string());
        let toolchain = nvrtc.as_ref().map_or_else(|_| format!("no nvrtc; {arch}"), |n| n.toolchain(&arch));
        CudaCompiler { gpu: gpu.clone(), arch, nvrtc, toolchain }
    }

    pub(super) fn arch(&self) -> &str {
        &self.arch
    }

    pub(super) fn can_compile(&self) -> bool {
        self.nvrtc.is_ok()
    }
}

impl Compiler for CudaCompiler {
    fn toolchain(&self) -> &str {
        &self.toolchain
    }

    fn compile(&self, unit: &Unit<'_>) -> Result<Vec<u8>, String> {
        Ok(self.nvrtc.as_ref().map_err(Clone::clone)?.compile(unit, &self.arch)?.image)
    }

    fn effective(&self, _options: Options) -> Options {
        // Texts compute the same in every math mode.
        Options::default()
    }

    fn accepts(&self, target: &BuildTarget) -> Result<(), String> {
        super::nvrtc::accepts(target, &self.arch)
    }

    fn load(&self, artefact: &[u8]) -> Result<Arc<dyn Module>, String> {
        self.gpu.enter().map_err(|e| e.to_string())?;
        let mut module = std::ptr::null_mut();
        // The driver finds the end of an image from its headers, so one that is cut off must not reach it.
        super::nvrtc::cubin_kernels(artefact)?;
        let words = super::nvrtc::cubin_words(artefact)?;
        // SAFETY: the image is whole, as far as its tables say; the driver copies it.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, artefact.as_ptr().cast()) }).map_err(|e| e.to_string())?;
        Ok(Arc::new(CudaModule { loaded: Arc::new(Loaded { gpu: self.gpu.clone(), module }), words }))
    }
}

struct Loaded {
    gpu: Arc<Gpu>,
    module: sys::CUmodule,
}

// SAFETY: handles of the driver may be used from any thread that has made the context current.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_ok() {
            // SAFETY: loaded by us, and nothing that was submitted uses it any more.
            let _ = unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

struct CudaModule {
    loaded: Arc<Loaded>,
    /// What the text says of its kernels.
    words: BTreeMap<String, u32>,
}

impl CudaModule {
    /// The driver's handle of a function.
    fn handle(&self, entry: &str) -> Result<sys::CUfunction, String> {
        let name = CString::new(entry).map_err(|e| e.to_string())?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in zero, and the result is a variable of the type that the call fills.
        check("cuModuleGetFunction", unsafe { sys::cuModuleGetFunction(&mut function, self.loaded.module, name.as_ptr()) })
            .map_err(|e| format!("{entry}: {e}"))?;
        Ok(function)
    }
}

impl Module for CudaModule {
    fn function(&self, entry: &str) -> Result<Arc<dyn Executable>, String> {
        self.loaded.gpu.enter().map_err(|e| e.to_string())?;
        let word = |what: &str| self.words.get(&format!("{entry}_{what}")).copied();
        let prepare = match (word("prepare_threads"), word("prepare_resident")) {
            (Some(threads), Some(blocks)) => Some(Prepare { function: self.handle(&format!("{entry}_prepare"))?, threads, blocks }),
            _ => None,
        };
        let function = self.handle(entry)?;
        let mut max_threads = 0;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        // SAFETY: the function belongs to the loaded module, and the result is a variable of the type that the call fills.
        check("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(&mut max_threads, attribute, function) })
            .map_err(|e| format!("{entry}: {e}"))?;
        let dynamic_shared = word("dynamic_shared").unwrap_or(0);
        if dynamic_shared != 0 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(dynamic_shared).unwrap_or(i32::MAX);
            // SAFETY: the function belongs to the loaded module.
            check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(function, attribute, bytes) })
                .map_err(|e| format!("{entry}: {e}"))?;
        }
        Ok(Arc::new(CudaKernel {
            _loaded: self.loaded.clone(),
            function,
            max_threads: max_threads.unsigned_abs(),
            dynamic_shared,
            threads: word("threads"),
            cluster: word("cluster").unwrap_or(1).max(1),
            resident: word("resident"),
            chained: word("chained").map(|_| word("ahead").unwrap_or(0)),
            prepare,
        }))
    }
}

/// A kernel, ready to launch.
pub(super) struct CudaKernel {
    _loaded: Arc<Loaded>,
    pub(super) function: sys::CUfunction,
    pub(super) max_threads: u32,
    /// Bytes of threadgroup memory that are given at launch.
    pub(super) dynamic_shared: u32,
    /// Threads of a block, where they are not those of the catalogue entry.
    pub(super) threads: Option<u32>,
    /// Blocks that work together: the grid is a multiple of so many in x.
    pub(super) cluster: u32,
    /// Blocks that stay on each multiprocessor and share the work of the grid's x among them, whatever the catalogue entry says.
    pub(super) resident: Option<u32>,
    /// For a kernel that waits by itself for the one before it: bits of the slots that it may read before that.
    pub(super) chained: Option<u32>,
    /// The kernel that goes before it where there is scratch memory, which both take.
    pub(super) prepare: Option<Prepare>,
}

/// The kernel that prepares operands for another in scratch memory.
pub(super) struct Prepare {
    pub(super) function: sys::CUfunction,
    pub(super) threads: u32,
    /// Blocks on each multiprocessor.
    pub(super) blocks: u32,
}

// SAFETY: as for `Loaded`.
unsafe impl Send for CudaKernel {}
// SAFETY: as for `Loaded`.
unsafe impl Sync for CudaKernel {}

impl Executable for CudaKernel {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn takes_scratch(&self) -> bool {
        self.prepare.is_some()
    }
}

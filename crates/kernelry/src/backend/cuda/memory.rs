//! Device memory from the driver's stream-ordered pool.

use std::any::Any;
use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::{Gpu, check};
use crate::backend::Memory;
use crate::{Error, Result};

pub(super) struct CudaMemory {
    gpu: Arc<Gpu>,
    start: sys::CUdeviceptr,
    len: usize,
}

impl CudaMemory {
    pub(super) fn new(gpu: &Arc<Gpu>, len: usize, zeroed: bool) -> Result<CudaMemory> {
        if len == 0 {
            return Err(Error::Allocation { bytes: 0, reason: "got zero bytes".into() });
        }
        gpu.enter()?;
        let mut start = 0;
        // SAFETY: `start` is a variable of the type that the call fills.
        let status = unsafe { sys::cuMemAllocAsync(&mut start, len, gpu.stream()) };
        check("cuMemAllocAsync", status).map_err(|e| Error::Allocation { bytes: len as u64, reason: e.to_string() })?;
        let memory = CudaMemory { gpu: gpu.clone(), start, len };
        if zeroed {
            // SAFETY: the range is the allocation.
            check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(start, 0, len, gpu.stream()) })?;
        }
        Ok(memory)
    }

    /// Address of a byte. The caller stays inside.
    pub(super) fn at(&self, offset: usize) -> sys::CUdeviceptr {
        self.start + offset as u64
    }

    fn check_range(&self, op: &str, offset: usize, len: usize) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        Err(Error::invalid(op, format!("range: got {len} bytes at {offset}, expected it inside {} bytes", self.len)))
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: allocated in `new`; the stream frees it after all that was submitted before.
            let _ = unsafe { sys::cuMemFreeAsync(self.start, self.gpu.stream()) };
        }
    }
}

impl Memory for CudaMemory {
    fn len(&self) -> usize {
        self.len
    }
    fn host_ptr(&self) -> Option<*mut u8> {
        None
    }
    fn writable(&self) -> bool {
        true
    }
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check_range("read", offset, out.len())?;
        self.gpu.download(self.at(offset), out)
    }
    fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check_range("write", offset, bytes.len())?;
        self.gpu.upload(self.at(offset), bytes)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

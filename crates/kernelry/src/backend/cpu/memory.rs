//! Host memory: aligned allocations and file mappings.

use std::alloc::Layout;
use std::any::Any;

use crate::backend::Memory;
use crate::{Error, FileMap, Result};

/// Alignment of allocations: a cache line, and the widest vector register.
const ALIGN: usize = 64;

pub(crate) struct HostMemory {
    ptr: *mut u8,
    layout: Layout,
}

// SAFETY: the pointer is owned; who may touch the bytes is decided by the lock of the storage that owns this memory.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    pub(crate) fn new(bytes: usize, zeroed: bool) -> Result<HostMemory> {
        let failed = |reason: &str| Error::Allocation { bytes: bytes as u64, reason: reason.to_owned() };
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|_| failed("the size is beyond the address space"))?;
        if bytes == 0 {
            return Err(failed("got zero bytes"));
        }
        // SAFETY: the layout has a size greater than zero.
        let ptr = unsafe { std::alloc::alloc_zeroed(layout) };
        if ptr.is_null() {
            return Err(failed("out of memory"));
        }
        // Fresh pages are zero for free, and reading memory that nothing wrote would be undefined: "unspecified" is zeros here too.
        let _ = zeroed;
        Ok(HostMemory { ptr, layout })
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { std::alloc::dealloc(self.ptr, self.layout) };
    }
}

impl Memory for HostMemory {
    fn len(&self) -> usize {
        self.layout.size()
    }
    fn host_ptr(&self) -> Option<*mut u8> {
        Some(self.ptr)
    }
    fn writable(&self) -> bool {
        true
    }
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        check_range("read", self.len(), offset, out.len())?;
        // SAFETY: the range is inside; the caller holds the storage's lock, so nobody writes.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr.add(offset), out.as_mut_ptr(), out.len()) };
        Ok(())
    }
    fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        check_range("write", self.len(), offset, bytes.len())?;
        // SAFETY: the range is inside; the caller holds the storage's lock exclusively.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr.add(offset), bytes.len()) };
        Ok(())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

pub(super) struct MappedMemory {
    file: FileMap,
    offset: usize,
    len: usize,
}

impl MappedMemory {
    /// `None` if the range leaves the file.
    pub(super) fn new(file: &FileMap, offset: usize, len: usize) -> Option<MappedMemory> {
        file.as_bytes().get(offset..offset.checked_add(len)?)?;
        Some(MappedMemory { file: file.clone(), offset, len })
    }
}

impl Memory for MappedMemory {
    fn len(&self) -> usize {
        self.len
    }
    fn host_ptr(&self) -> Option<*mut u8> {
        // Never written: `writable` is false and every writer checks it.
        self.file.as_bytes().get(self.offset..).map(|b| b.as_ptr().cast_mut())
    }
    fn writable(&self) -> bool {
        false
    }
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        check_range("read", self.len, offset, out.len())?;
        if let Some(bytes) = self.file.as_bytes().get(self.offset + offset..self.offset + offset + out.len()) {
            out.copy_from_slice(bytes);
        }
        Ok(())
    }
    fn write(&self, _offset: usize, _bytes: &[u8]) -> Result<()> {
        Err(Error::invalid("write", "buffer: got a read-only mapping, expected a writable buffer"))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn check_range(op: &str, have: usize, offset: usize, len: usize) -> Result<()> {
    if offset.checked_add(len).is_some_and(|end| end <= have) {
        return Ok(());
    }
    Err(Error::invalid(op, format!("range: got {len} bytes at {offset}, expected it inside {have} bytes")))
}

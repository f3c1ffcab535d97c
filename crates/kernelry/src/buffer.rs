//! Buffers: typed, shaped views of device memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::RawRwLock;
use parking_lot::lock_api::RawRwLock as _;

use crate::backend::Memory;
use crate::device::Device;
use crate::dtype::Element;
use crate::{DType, Error, FileMap, Result};

/// Dimensions of a buffer, slowest first.
pub(crate) type Shape = smallvec::SmallVec<[usize; 4]>;

/// One allocation of a device, shared by all views of it.
pub(crate) struct Storage {
    id: u64,
    device: Device,
    memory: Box<dyn Memory>,
    /// Held shared by launches that read and by host readers, exclusively by launches that write and by host writers.
    lock: RawRwLock,
    /// Host slices alive: a launch that meets one reports it instead of waiting for the thread that may be itself.
    host_guards: AtomicUsize,
}

impl Storage {
    pub(crate) fn new(device: &Device, memory: Box<dyn Memory>) -> Arc<Storage> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Storage {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            device: device.clone(),
            memory,
            lock: RawRwLock::INIT,
            host_guards: AtomicUsize::new(0),
        })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn memory(&self) -> &dyn Memory {
        self.memory.as_ref()
    }

    /// Locks for a submitted command list. Waits for other submissions; a host slice in the way is an error, since its owner may be
    /// this very thread.
    pub(crate) fn lock_for_launch(&self, exclusive: bool) -> Result<()> {
        loop {
            if if exclusive { self.lock.try_lock_exclusive() } else { self.lock.try_lock_shared() } {
                return Ok(());
            }
            if self.host_guards.load(Ordering::Acquire) > 0 {
                return Err(Error::invalid("submit", "buffer: got one with a host slice alive, expected none"));
            }
            std::thread::yield_now();
        }
    }

    /// # Safety
    /// The caller holds the lock in that mode.
    pub(crate) unsafe fn unlock_for_launch(&self, exclusive: bool) {
        // SAFETY: promised by the caller.
        unsafe {
            if exclusive {
                self.lock.unlock_exclusive();
            } else {
                self.lock.unlock_shared();
            }
        }
    }
}

/// A view of device memory: shared storage, dtype, shape and byte offset. Cloning shares the storage.
#[derive(Clone)]
pub struct Buffer {
    storage: Arc<Storage>,
    dtype: DType,
    shape: Shape,
    offset: usize,
}

impl Buffer {
    fn with_memory(device: &Device, memory: Box<dyn Memory>, dtype: DType, shape: &[usize]) -> Buffer {
        Buffer { storage: Storage::new(device, memory), dtype, shape: Shape::from_slice(shape), offset: 0 }
    }

    /// Allocates a zeroed buffer.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for zero elements or a size that overflows, [`Error::Allocation`] if the device has no room.
    pub fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Result<Buffer> {
        let bytes = byte_len("allocate", dtype, shape)?;
        Ok(Buffer::with_memory(device, device.backend().allocate(bytes, true)?, dtype, shape))
    }

    /// Allocates a buffer whose contents are unspecified, for outputs that a launch will write in full.
    ///
    /// # Errors
    /// As [`Buffer::zeros`].
    pub fn uninit(device: &Device, dtype: DType, shape: &[usize]) -> Result<Buffer> {
        let bytes = byte_len("allocate", dtype, shape)?;
        Ok(Buffer::with_memory(device, device.backend().allocate(bytes, false)?, dtype, shape))
    }

    /// Uploads `data` into a buffer of that shape.
    ///
    /// # Errors
    /// As [`Buffer::zeros`], and [`Error::InvalidArgument`] if the element count differs.
    pub fn from_slice<T: Element>(device: &Device, data: &[T], shape: &[usize]) -> Result<Buffer> {
        Buffer::from_bytes(device, bytemuck::cast_slice(data), T::DTYPE, shape)
    }

    /// Uploads bytes that hold elements of `dtype`.
    ///
    /// # Errors
    /// As [`Buffer::from_slice`].
    pub fn from_bytes(device: &Device, bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Buffer> {
        let expected = byte_len("upload", dtype, shape)?;
        if bytes.len() != expected {
            return Err(Error::invalid("upload", format!("data: got {} bytes, expected {expected} for {dtype} {shape:?}", bytes.len())));
        }
        let buffer = Buffer::uninit(device, dtype, shape)?;
        buffer.storage.memory().write(0, bytes)?;
        Ok(buffer)
    }

    /// A read-only buffer over a range of a mapped file: without a copy where the device can, uploaded elsewhere.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the range leaves the file or is not aligned to the dtype, or as [`Buffer::zeros`].
    pub fn from_file(device: &Device, file: &FileMap, offset: usize, dtype: DType, shape: &[usize]) -> Result<Buffer> {
        let len = byte_len("map file", dtype, shape)?;
        let bytes = offset.checked_add(len).and_then(|end| file.as_bytes().get(offset..end));
        let Some(bytes) = bytes else {
            let have = file.as_bytes().len();
            return Err(Error::invalid("map file", format!("range: got {len} bytes at {offset}, expected it inside {have} bytes")));
        };
        if bytes.as_ptr().align_offset(dtype.size()) == 0
            && let Some(memory) = device.backend().map(file, offset, len)?
        {
            return Ok(Buffer::with_memory(device, memory, dtype, shape));
        }
        Buffer::from_bytes(device, bytes, dtype, shape)
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        &self.storage.device
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Dimensions, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Elements of the view.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Always false: empty buffers cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of the view.
    pub fn byte_len(&self) -> usize {
        self.len() * self.dtype.size()
    }
    /// Byte offset of the view in its allocation.
    pub fn byte_offset(&self) -> usize {
        self.offset
    }
    /// Bytes of the whole allocation behind the view.
    pub fn allocation_len(&self) -> usize {
        self.storage.memory().len()
    }
    /// False for read-only file mappings.
    pub fn is_writable(&self) -> bool {
        self.storage.memory().writable()
    }
    /// Whether both views share an allocation.
    pub fn same_storage(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }

    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Byte range of the view in its allocation.
    pub(crate) fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.byte_len()
    }

    /// A one-dimensional view of `len` elements, `byte_offset` bytes into this view. Offsets of views of views add up.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is empty, leaves this view or is not aligned to the element size.
    pub fn slice(&self, byte_offset: usize, len: usize) -> Result<Buffer> {
        let size = self.dtype.size();
        let inside = len.checked_mul(size).and_then(|n| n.checked_add(byte_offset)).is_some_and(|end| end <= self.byte_len());
        if len == 0 || !inside {
            return Err(Error::invalid(
                "slice",
                format!("range: got {len} elements at byte {byte_offset}, expected it inside {} bytes", self.byte_len()),
            ));
        }
        if !byte_offset.is_multiple_of(size) {
            return Err(Error::invalid("slice", format!("byte offset: got {byte_offset}, expected a multiple of {size}")));
        }
        Ok(Buffer { storage: self.storage.clone(), dtype: self.dtype, shape: Shape::from_slice(&[len]), offset: self.offset + byte_offset })
    }

    /// The rows `start..start + count` of the slowest dimension.
    ///
    /// # Errors
    /// As [`Buffer::slice`].
    pub fn rows(&self, start: usize, count: usize) -> Result<Buffer> {
        let rows = self.shape.first().copied().unwrap_or(0);
        let row_len: usize = self.shape.iter().skip(1).product();
        if count == 0 || start.checked_add(count).is_none_or(|end| end > rows) {
            return Err(Error::invalid("rows", format!("rows: got {start}+{count}, expected them inside {rows}")));
        }
        let view = self.slice(start * row_len * self.dtype.size(), count * row_len)?;
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = count;
        }
        view.reshape(&shape)
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the element count differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Buffer> {
        let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if len != Some(self.len()) {
            return Err(Error::invalid(
                "reshape",
                format!("shape: got {shape:?}, expected {} elements as {:?}", self.len(), &self.shape[..]),
            ));
        }
        Ok(Buffer { shape: Shape::from_slice(shape), ..self.clone() })
    }

    /// The start of this view as other elements: how the pool hands out parts of byte allocations.
    pub(crate) fn view_as(&self, dtype: DType, shape: &[usize]) -> Result<Buffer> {
        let bytes = byte_len("view", dtype, shape)?;
        if bytes > self.byte_len() || !self.offset.is_multiple_of(dtype.size()) {
            return Err(Error::invalid("view", format!("shape: got {dtype} {shape:?}, expected at most {} bytes", self.byte_len())));
        }
        Ok(Buffer { dtype, shape: Shape::from_slice(shape), ..self.clone() })
    }

    /// Checks that the element type of the view is `T`.
    fn expect_dtype<T: Element>(&self, op: &str) -> Result<()> {
        if self.dtype == T::DTYPE {
            return Ok(());
        }
        Err(Error::UnsupportedDType { op: op.to_owned(), what: "buffer".into(), got: self.dtype, expected: T::DTYPE.to_string() })
    }

    /// Copies the elements to the host.
    ///
    /// # Errors
    /// [`Error::UnsupportedDType`] if `T` is not the element type, [`Error::Execution`] if the device fails.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.expect_dtype::<T>("read")?;
        let mut out = vec![T::zeroed(); self.len()];
        self.read_bytes(bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// Copies the raw bytes of the view to the host; `out` must be as long as the view.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the length differs, [`Error::Execution`] if the device fails.
    pub fn read_bytes(&self, out: &mut [u8]) -> Result<()> {
        self.check_len("read", out.len())?;
        self.storage.lock_for_launch(false)?;
        let result = self.storage.memory().read(self.offset, out);
        // SAFETY: locked two lines above in the same mode.
        unsafe { self.storage.unlock_for_launch(false) };
        result
    }

    /// Overwrites the elements from the host.
    ///
    /// # Errors
    /// [`Error::UnsupportedDType`], or [`Error::InvalidArgument`] if the length differs or the buffer is read-only.
    pub fn write<T: Element>(&self, data: &[T]) -> Result<()> {
        self.expect_dtype::<T>("write")?;
        self.write_bytes(bytemuck::cast_slice(data))
    }

    /// Overwrites the raw bytes of the view.
    ///
    /// # Errors
    /// As [`Buffer::write`].
    pub fn write_bytes(&self, bytes: &[u8]) -> Result<()> {
        self.check_len("write", bytes.len())?;
        self.check_writable("write")?;
        self.storage.lock_for_launch(true)?;
        let result = self.storage.memory().write(self.offset, bytes);
        // SAFETY: locked two lines above in the same mode.
        unsafe { self.storage.unlock_for_launch(true) };
        result
    }

    fn check_len(&self, op: &str, got: usize) -> Result<()> {
        if got == self.byte_len() {
            return Ok(());
        }
        Err(Error::invalid(op, format!("data: got {got} bytes, expected {} for {} {:?}", self.byte_len(), self.dtype, &self.shape[..])))
    }

    fn check_writable(&self, op: &str) -> Result<()> {
        if self.is_writable() { Ok(()) } else { Err(Error::invalid(op, "buffer: got a read-only mapping, expected a writable buffer")) }
    }

    fn host_ptr<T: Element>(&self, op: &str) -> Result<*mut T> {
        self.expect_dtype::<T>(op)?;
        let base = self.storage.memory().host_ptr();
        let base = base.ok_or_else(|| Error::invalid(op, "buffer: got device memory, expected memory that the host can reach"))?;
        // The view lies inside the allocation, so the offset does.
        let ptr = base.wrapping_add(self.offset).cast::<T>();
        if ptr.align_offset(align_of::<T>()) != 0 {
            return Err(Error::invalid(op, format!("buffer: got an address that is not aligned to {} bytes", align_of::<T>())));
        }
        Ok(ptr)
    }

    /// Borrows the elements on the host without a copy, where the host can reach the memory. Launches that write the allocation fail
    /// while the slice lives.
    ///
    /// # Errors
    /// [`Error::UnsupportedDType`], or [`Error::InvalidArgument`] if the memory is not the host's or is being written.
    pub fn host_slice<T: Element>(&self) -> Result<HostSlice<'_, T>> {
        let ptr = self.host_ptr::<T>("host slice")?;
        if !self.storage.lock.try_lock_shared() {
            return Err(Error::invalid("host slice", "buffer: got one that is being written, expected an idle one"));
        }
        self.storage.host_guards.fetch_add(1, Ordering::AcqRel);
        Ok(HostSlice { buffer: self, ptr })
    }

    /// Borrows the elements mutably on the host without a copy. Launches that touch the allocation fail while the slice lives.
    ///
    /// # Errors
    /// As [`Buffer::host_slice`], and for read-only mappings.
    pub fn host_slice_mut<T: Element>(&self) -> Result<HostSliceMut<'_, T>> {
        self.check_writable("host slice")?;
        let ptr = self.host_ptr::<T>("host slice")?;
        if !self.storage.lock.try_lock_exclusive() {
            return Err(Error::invalid("host slice", "buffer: got one that is in use, expected an idle one"));
        }
        self.storage.host_guards.fetch_add(1, Ordering::AcqRel);
        Ok(HostSliceMut { buffer: self, ptr })
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} {:?} at {}+{})", self.dtype, &self.shape[..], self.storage.id, self.offset)
    }
}

/// A shared host borrow of a buffer's elements.
pub struct HostSlice<'a, T: Element> {
    buffer: &'a Buffer,
    ptr: *mut T,
}

impl<T: Element> std::ops::Deref for HostSlice<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the pointer is aligned and covers `len` elements of live memory; the shared lock keeps writers out.
        unsafe { std::slice::from_raw_parts(self.ptr, self.buffer.len()) }
    }
}

impl<T: Element> Drop for HostSlice<'_, T> {
    fn drop(&mut self) {
        self.buffer.storage.host_guards.fetch_sub(1, Ordering::AcqRel);
        // SAFETY: the constructor took the lock in this mode.
        unsafe { self.buffer.storage.lock.unlock_shared() };
    }
}

/// An exclusive host borrow of a buffer's elements.
pub struct HostSliceMut<'a, T: Element> {
    buffer: &'a Buffer,
    ptr: *mut T,
}

impl<T: Element> std::ops::Deref for HostSliceMut<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the pointer is aligned and covers `len` elements of live memory; the exclusive lock keeps everyone else out.
        unsafe { std::slice::from_raw_parts(self.ptr, self.buffer.len()) }
    }
}

impl<T: Element> std::ops::DerefMut for HostSliceMut<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.buffer.len()) }
    }
}

impl<T: Element> Drop for HostSliceMut<'_, T> {
    fn drop(&mut self) {
        self.buffer.storage.host_guards.fetch_sub(1, Ordering::AcqRel);
        // SAFETY: the constructor took the lock in this mode.
        unsafe { self.buffer.storage.lock.unlock_exclusive() };
    }
}

/// Bytes of `shape` elements of `dtype`, at least one.
fn byte_len(op: &str, dtype: DType, shape: &[usize]) -> Result<usize> {
    let bytes = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d));
    match bytes {
        Some(0) => Err(Error::invalid(op, format!("shape: got {shape:?}, expected at least one element"))),
        Some(n) if n <= isize::MAX as usize => Ok(n),
        _ => Err(Error::Allocation { bytes: u64::MAX, reason: format!("the size of {dtype} {shape:?} overflows") }),
    }
}

//! A compiled text: a shared object whose kernels have one signature.

use std::any::Any;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::compiler::{PLACE, Scratch};
use super::fiber::{Fiber, Host};
use crate::backend::{Executable, Module};

/// `name(buffers, params, fiber)`.
pub(super) type KernelFn = unsafe extern "C" fn(*const *mut c_void, *const c_void, *mut Fiber);
/// Where the module keeps the fiber that runs on this OS thread.
pub(super) type SlotFn = unsafe extern "C" fn() -> *mut *mut Fiber;

struct Loaded {
    /// Dropped before the file that it was loaded from.
    library: libloading::Library,
    scratch: Scratch,
    slot: SlotFn,
    warp: u32,
    /// Addresses of the object: constants live here, and its start is what code addresses are relative to.
    range: [usize; 2],
    /// Lines found so far, by code address.
    places: Mutex<HashMap<usize, String>>,
}

pub(super) struct EmulatorModule(Arc<Loaded>);

pub(super) struct EmulatorKernel {
    loaded: Arc<Loaded>,
    pub(super) run: KernelFn,
    /// Threads that the text allows in a block.
    pub(super) max_threads: u32,
    /// Blocks that share the work of the grid's x among them, where the text says so: those of a GPU of one multiprocessor.
    pub(super) resident: Option<u32>,
    /// Lanes of a warp that the text was compiled for.
    pub(super) warp: u32,
}

impl EmulatorModule {
    pub(super) fn load(artefact: &[u8]) -> Result<EmulatorModule, String> {
        let scratch = Scratch::new().map_err(|e| format!("scratch folder: {e}"))?;
        let path = scratch.path("text.so");
        std::fs::write(&path, artefact).map_err(|e| format!("{}: {e}", path.display()))?;
        // SAFETY: the object was made by our compiler from a text behind our prelude; it has no initialisers that do anything.
        let library = unsafe { libloading::Library::new(&path) }.map_err(|e| e.to_string())?;
        let mut range: [*const c_char; 2] = [std::ptr::null(); 2];
        // SAFETY: the prelude declares these two functions with these types.
        let (slot, warp) = unsafe {
            let attach = library.get::<unsafe extern "C" fn(*const Host, *mut *const c_char)>(b"kn_attach\0");
            attach.map_err(|e| e.to_string())?(&Host::TABLE, range.as_mut_ptr());
            let warp = **library.get::<*const u32>(b"kn_warp_width\0").map_err(|e| e.to_string())?;
            (*library.get::<SlotFn>(b"kn_current_slot\0").map_err(|e| e.to_string())?, warp)
        };
        let range = range.map(|p| p as usize);
        Ok(EmulatorModule(Arc::new(Loaded { library, scratch, slot, warp, range, places: Mutex::default() })))
    }
}

impl Module for EmulatorModule {
    fn function(&self, entry: &str) -> Result<Arc<dyn Executable>, String> {
        let missing = |_| format!("the text has no kernel `{entry}`");
        let library = &self.0.library;
        // SAFETY: `KN_KERNEL` declares both symbols with these types for every kernel, and the block symbol exists for kernels only.
        let (run, max_threads) = unsafe {
            let max_threads = library.get::<*const u32>(format!("{entry}_block\0").as_bytes()).map_err(missing)?;
            let run = library.get::<KernelFn>(format!("{entry}\0").as_bytes()).map_err(missing)?;
            (*run, **max_threads)
        };
        // SAFETY: `KN_RESIDENT` declares the symbol with this type.
        let resident = unsafe { library.get::<*const u32>(format!("{entry}_resident\0").as_bytes()).ok().map(|blocks| **blocks) };
        Ok(Arc::new(EmulatorKernel { loaded: self.0.clone(), run, max_threads, resident, warp: self.0.warp }))
    }
}

impl Executable for EmulatorKernel {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl EmulatorKernel {
    /// The place of the current fiber on this OS thread.
    pub(super) fn slot(&self) -> *mut *mut Fiber {
        // SAFETY: the function takes nothing and returns the address of a thread-local of the loaded module.
        unsafe { (self.loaded.slot)() }
    }

    /// Whether an address is in the object itself.
    pub(super) fn contains(&self, address: usize) -> bool {
        (self.loaded.range[0]..self.loaded.range[1]).contains(&address)
    }

    /// A code address relative to the start of the object, and back.
    pub(super) fn relative(&self, code: usize) -> u32 {
        code.wrapping_sub(self.loaded.range[0]) as u32
    }

    pub(super) fn absolute(&self, code: u32) -> usize {
        self.loaded.range[0].wrapping_add(code as usize)
    }

    /// File and line of a return address: the first frame, inlined ones included, that is not in the prelude.
    pub(super) fn place(&self, code: usize) -> String {
        let mut places = self.loaded.places.lock();
        places.entry(code).or_insert_with(|| self.look_up(code)).clone()
    }

    fn look_up(&self, code: usize) -> String {
        let offset = code.wrapping_sub(self.loaded.range[0]).wrapping_sub(1);
        lines_of(&self.loaded.scratch.path("text.so"), offset).unwrap_or_else(|| format!("+{offset:#x}"))
    }
}

/// Asks binutils' `addr2line`, which comes with the compiler.
fn lines_of(object: &Path, offset: usize) -> Option<String> {
    let output = Command::new("addr2line").arg("-i").arg("-e").arg(object).arg(format!("{offset:#x}")).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let clean = |line: &str| {
        let line = line.split(" (").next().unwrap_or(line);
        // Names given by `#line` are shown in the folder of the sources.
        line.strip_prefix(PLACE).unwrap_or(line).trim_start_matches('/').to_owned()
    };
    let lines: Vec<String> = text.lines().map(clean).filter(|l| !l.starts_with("??")).collect();
    let own = lines.iter().find(|l| !l.starts_with("prelude.h") && !l.starts_with("common.h"));
    own.or(lines.first()).cloned()
}

/// A name that the text gave, for messages.
///
/// # Safety
/// `name` is a NUL-terminated string that lives as long as the module.
pub(super) unsafe fn name_of(name: *const c_char) -> String {
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

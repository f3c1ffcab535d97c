//! What a compiled text and the host share: the fiber's identity and the functions that a text calls.

use std::ffi::{c_char, c_void};

use corosensei::Yielder;

use super::block::{Block, Wait};
use super::fault::{Fault, Site};
use super::watch::Kind;

/// One GPU thread. The first part is `KnFiber` of the prelude, field by field; the rest is the host's.
#[repr(C)]
pub(super) struct Fiber {
    pub(super) group: [u32; 3],
    pub(super) thread: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) grid: [u32; 3],
    pub(super) linear: u32,
    pub(super) pad: u32,
    pub(super) stack_low: usize,
    pub(super) stack_size: usize,
    pub(super) state: *mut Block,
    pub(super) yielder: *const Yielder<(), ()>,
}

/// `KnHost` of the prelude.
#[repr(C)]
pub(super) struct Host {
    access: unsafe extern "C" fn(*mut Fiber, *const c_void, u32, u32, *const c_void),
    barrier: unsafe extern "C" fn(*mut Fiber, u32, *const c_void),
    warp_sync: unsafe extern "C" fn(*mut Fiber, *const c_void),
    shuffle: unsafe extern "C" fn(*mut Fiber, u32, u32, *const c_void) -> u32,
    gather: unsafe extern "C" fn(*mut Fiber, *const u32, u32, *mut u32, *const c_void),
    shared: unsafe extern "C" fn(*mut Fiber, *const c_char, u64, u64) -> *mut c_void,
    undefined: unsafe extern "C" fn(*mut Fiber, *const c_char, *const c_char, u32, *const c_void),
}

impl Host {
    pub(super) const TABLE: Host = Host { access, barrier, warp_sync, shuffle, gather, shared, undefined };
}

impl Fiber {
    fn site(&self, code: *const c_void) -> Site {
        // SAFETY: `state` is the block that runs this fiber; it outlives it.
        let block = unsafe { (*self.state).number };
        Site { thread: self.linear, block, code: code as usize }
    }

    /// Gives control to the scheduler until it resumes this fiber.
    fn wait(&self, wait: Wait) {
        // SAFETY: the scheduler is suspended in `resume` and holds no reference into the block; the yielder is this fiber's own.
        unsafe {
            (*self.state).wait(self.linear, wait);
            (*self.yielder).suspend(());
        }
    }

    /// Reports a fault and never returns: the scheduler drops the fiber where it stands.
    fn stop(&self, fault: Fault) -> ! {
        // SAFETY: as in `wait`.
        unsafe { (*self.state).fault = Some(fault) };
        loop {
            self.wait(Wait::Stopped);
        }
    }
}

// All of these run on the fiber's stack and may never return, so they hold nothing that would have to be dropped.
//
// SAFETY of each: the prelude passes the fiber that runs, which `Block::run` made and keeps alive.

unsafe extern "C" fn access(fiber: *mut Fiber, address: *const c_void, bytes: u32, kind: u32, code: *const c_void) {
    // SAFETY: see above; no other reference to the block is in use while a fiber runs.
    let (fiber, block) = unsafe { (&*fiber, &mut *(*fiber).state) };
    if let Err(fault) = block.access(fiber.linear, address as usize, bytes as usize, Kind::from_u32(kind), fiber.site(code)) {
        fiber.stop(fault);
    }
}

unsafe extern "C" fn barrier(fiber: *mut Fiber, all: u32, code: *const c_void) {
    // SAFETY: see above.
    let fiber = unsafe { &*fiber };
    fiber.wait(Wait::Barrier { all: all != 0, code: code as usize });
}

unsafe extern "C" fn warp_sync(fiber: *mut Fiber, code: *const c_void) {
    // SAFETY: see above.
    let fiber = unsafe { &*fiber };
    fiber.wait(Wait::Warp { shuffle: None, code: code as usize });
}

unsafe extern "C" fn shuffle(fiber: *mut Fiber, value: u32, lane: u32, code: *const c_void) -> u32 {
    // SAFETY: see above.
    let fiber = unsafe { &*fiber };
    fiber.wait(Wait::Warp { shuffle: Some((value, lane)), code: code as usize });
    // SAFETY: as above; the scheduler has left the result.
    unsafe { (*fiber.state).shuffled(fiber.linear) }
}

/// Hands `count` words of each lane to all lanes of a warp of 32: `all` has `count` words a lane.
unsafe extern "C" fn gather(fiber: *mut Fiber, words: *const u32, count: u32, all: *mut u32, code: *const c_void) {
    // SAFETY: see above.
    let fiber = unsafe { &*fiber };
    // SAFETY: as in `access`; the prelude passes `count` words, and room for 32 times as many.
    let (block, words) = unsafe { (&mut *fiber.state, std::slice::from_raw_parts(words, count as usize)) };
    let turn = block.hand_over(fiber.linear, words);
    // The scheduler treats it as a shuffle with lane 31, which a warp of fewer lanes has not.
    fiber.wait(Wait::Warp { shuffle: Some((0, 31)), code: code as usize });
    // SAFETY: as above, and anew, for other fibers have run meanwhile.
    let (block, all) = unsafe { (&*fiber.state, std::slice::from_raw_parts_mut(all, 32 * count as usize)) };
    block.handed_over(fiber.linear, turn, all);
}

unsafe extern "C" fn shared(fiber: *mut Fiber, name: *const c_char, bytes: u64, element: u64) -> *mut c_void {
    // SAFETY: as in `access`.
    let (fiber, block) = unsafe { (&*fiber, &mut *(*fiber).state) };
    match block.shared(name, bytes as usize, element as usize) {
        Ok(array) => array.cast(),
        Err(fault) => fiber.stop(fault),
    }
}

unsafe extern "C" fn undefined(fiber: *mut Fiber, what: *const c_char, file: *const c_char, line: u32, code: *const c_void) {
    // SAFETY: see above.
    let fiber = unsafe { &*fiber };
    fiber.stop(Fault::Undefined { what, file, line, at: fiber.site(code) });
}

//! A cache hit allocates nothing. The counting allocator is why this test has a binary of its own.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kernelry::registry::{Constants, Options};
use kernelry::{Device, Registry};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's duties are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_cache_hit_allocates_nothing() {
    let (registry, device) = (Registry::new(), Device::cpu());
    let constants = [(700, 3)];
    let name = "kernel_mul_mv_q4_0_f32";
    let warm = || {
        let plain = registry.get_pipeline("rms_norm_f32", &device).unwrap();
        let id = registry.get_by_id(plain.kernel_id(), &device, &Constants::NONE, Options::default()).unwrap();
        let special = registry.get_pipeline_with_constants(name, &device, &[], &constants);
        (plain, id, special)
    };
    let first = warm();
    let before = COUNT.get();
    let second = warm();
    assert_eq!(COUNT.get() - before, 0);
    assert!(first.0 == second.0 && first.1 == second.1);
    assert!(first.2.is_ok() && second.2.is_ok());
    assert!(before > 0, "the counter counts");
}

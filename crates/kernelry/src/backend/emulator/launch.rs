//! One launch: its buffers with their shadow, and its blocks on the host's threads.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rayon::prelude::*;

use super::block::Block;
use super::module::EmulatorKernel;
use super::schedule::Schedule;
use super::watch::Shadow;
use crate::catalogue::{Access, ParamKind};
use crate::commands::{Launch, LaunchArg};
use crate::{Error, Result};

/// The bytes of one binding.
pub(super) struct Region {
    pub(super) name: String,
    pub(super) start: usize,
    pub(super) end: usize,
    /// Bytes of an element.
    pub(super) element: usize,
    /// Nothing may be read before the kernel has written it.
    pub(super) starts_unwritten: bool,
    /// Only what may be written has one: readers alone never race.
    pub(super) shadow: Option<Shadow>,
}

impl Region {
    pub(super) fn holds(&self, address: usize, bytes: usize) -> bool {
        address >= self.start && address.checked_add(bytes).is_some_and(|end| end <= self.end)
    }
}

pub(super) struct LaunchState<'a> {
    pub(super) kernel: &'a EmulatorKernel,
    pub(super) regions: Vec<Region>,
    /// Buffer addresses in slot order, null for those left out.
    pub(super) pointers: Vec<*mut c_void>,
    pub(super) params: Vec<u8>,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) warp: u32,
}

// SAFETY: the pointers are used by fibers alone, whose accesses are checked against the regions; the storages are locked for the launch.
unsafe impl Sync for LaunchState<'_> {}

impl<'a> LaunchState<'a> {
    pub(super) fn new(kernel: &'a EmulatorKernel, launch: &Launch, warp: u32) -> Result<LaunchState<'a>> {
        let name = launch.pipeline.name();
        let entry = launch.pipeline.entry();
        let failed = |message: String| Error::Execution { device: "emulator".into(), message: format!("[{name}] {message}") };
        let (mut grid, block) = (launch.geometry.groups, launch.geometry.threads);
        if let (Some(blocks), Some(x)) = (kernel.resident, grid.first_mut()) {
            *x = blocks.min(*x);
        }
        let threads = block.iter().try_fold(1u32, |n, &d| n.checked_mul(d)).unwrap_or(u32::MAX);
        if threads == 0 || threads > kernel.max_threads.min(1024) {
            return Err(failed(format!("threads of a block: got {block:?}, expected 1 to {}", kernel.max_threads.min(1024))));
        }
        if grid.contains(&0) {
            return Err(failed(format!("grid: got {grid:?}, expected at least one block")));
        }
        let mut state = LaunchState { kernel, regions: Vec::new(), pointers: Vec::new(), params: Vec::new(), grid, block, warp };
        for (i, arg) in launch.args.iter().enumerate() {
            let binding = entry.and_then(|e| e.bindings().get(i));
            let label = binding.map_or_else(|| format!("buffer {i}"), |b| b.name().to_owned());
            let element = binding.map_or(1, |b| b.dtype().size());
            let access = binding.map(|b| b.access());
            state.bind(arg.as_ref(), label, element, access).map_err(failed)?;
        }
        if entry.is_some_and(|e| e.params().fields.iter().any(|f| f.kind == ParamKind::Step)) {
            state.bind(launch.step.as_ref(), "step".into(), 4, Some(Access::Read)).map_err(failed)?;
        }
        state.params = launch.params.to_vec();
        // A struct without members still has a size.
        state.params.resize(state.params.len().max(16), 0);
        state.share_aliases();
        Ok(state)
    }

    fn bind(&mut self, arg: Option<&LaunchArg>, name: String, element: usize, access: Option<Access>) -> Result<(), String> {
        let Some(arg) = arg else {
            self.pointers.push(std::ptr::null_mut());
            return Ok(());
        };
        let range = arg.range();
        let base = arg.memory().host_ptr().filter(|_| range.end <= arg.memory().len());
        let base = base.ok_or_else(|| format!("{name}: got memory that the host cannot reach"))?;
        let start = base.wrapping_add(range.start);
        self.pointers.push(start.cast());
        self.regions.push(Region {
            name,
            start: start as usize,
            end: start as usize + range.len(),
            element,
            starts_unwritten: access == Some(Access::Write),
            shadow: arg.writes().then(|| Shadow::new(range.len(), element)),
        });
        Ok(())
    }

    /// An input that is the same memory as an output is seen as the output, which then starts written.
    fn share_aliases(&mut self) {
        let writable: Vec<(usize, usize)> = self.regions.iter().filter(|r| r.shadow.is_some()).map(|r| (r.start, r.end)).collect();
        let overlaps = |r: &Region, o: &(usize, usize)| r.start < o.1 && o.0 < r.end;
        let read: Vec<(usize, usize)> = self.regions.iter().filter(|r| r.shadow.is_none()).map(|r| (r.start, r.end)).collect();
        for region in self.regions.iter_mut().filter(|r| r.shadow.is_some()) {
            region.starts_unwritten &= !read.iter().any(|o| overlaps(region, o));
        }
        self.regions.retain(|r| r.shadow.is_some() || !writable.iter().any(|o| overlaps(r, o)));
    }

    /// Threads of a block.
    pub(super) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// Position of a block in the grid.
    pub(super) fn group(&self, number: u64) -> [u32; 3] {
        let [x, y, _] = self.grid.map(u64::from);
        [(number % x) as u32, (number / x % y) as u32, (number / x / y) as u32]
    }

    /// Where an address is, in terms of the buffer nearest to it.
    pub(super) fn nearest(&self, address: usize) -> String {
        let distance = |r: &&Region| if address < r.start { r.start - address } else { (address + 1).saturating_sub(r.end) };
        let Some(region) = self.regions.iter().min_by_key(distance) else { return format!("address {address:#x}") };
        let (name, len) = (&region.name, region.end - region.start);
        match distance(&region) {
            0 => format!("byte {} of `{name}`, which has {len}", address - region.start),
            d if d > 1 << 20 => format!("address {address:#x}, far from every buffer"),
            _ if address < region.start => format!("{} bytes before `{name}`", region.start - address),
            _ => format!("byte {} of `{name}`, which has {len}", address - region.start),
        }
    }

    /// Runs all blocks, in a seeded order, several at a time.
    ///
    /// # Errors
    /// The first fault that any of them found, in words.
    pub(super) fn run(&self, seed: u64) -> Result<(), String> {
        thread_local! {
            static BLOCK: RefCell<Option<Box<Block>>> = const { RefCell::new(None) };
        }
        let blocks: usize = self.grid.iter().map(|&d| d as usize).product();
        let mut order: Vec<u32> = (0..blocks as u32).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut order);
        let (next, stop, failure) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
        let workers = rayon::current_num_threads().min(blocks).max(1);
        (0..workers).into_par_iter().for_each(|_| {
            // Taken, not borrowed: rayon may run another launch on this thread while this one waits.
            let mut block = BLOCK.take().unwrap_or_else(|| Box::new(Block::new()));
            block.begin(self);
            while !stop.load(Ordering::Relaxed) {
                let Some(&number) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                let mixed = seed ^ u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let mut schedule = Schedule::new(mixed, self.threads() as usize, self.warp as usize);
                if let Err(fault) = block.run(u64::from(number), &mut schedule) {
                    stop.store(true, Ordering::Relaxed);
                    failure.lock().get_or_insert_with(|| fault.describe(self));
                }
            }
            BLOCK.set(Some(block));
        });
        failure.into_inner().map_or(Ok(()), Err)
    }
}

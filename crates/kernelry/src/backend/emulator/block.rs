//! One block: its fibers, its schedule, its threadgroup memory.

use std::ffi::{CStr, c_char};

use corosensei::stack::{DefaultStack, Stack};
use corosensei::{Coroutine, CoroutineResult};

use super::fault::{Elsewhere, Fault, Site, Space};
use super::fiber::Fiber;
use super::launch::LaunchState;
use super::schedule::Schedule;
use super::watch::{Kind, Shadow, Stamp};

/// Threadgroup memory that every target has.
pub(super) const SHARED_LIMIT: usize = 32 << 10;
/// Unused bytes between threadgroup arrays, so that an index beyond one does not land in the next.
const SHARED_GAP: usize = 64;
/// Words that a thread can hand to its warp at once.
const HANDED: usize = 8;
const STACK: usize = 128 << 10;

/// What a fiber waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Wait {
    Nothing,
    Barrier { all: bool, code: usize },
    Warp { shuffle: Option<(u32, u32)>, code: usize },
    Returned,
    Stopped,
}

struct SharedArray {
    name: *const c_char,
    offset: usize,
    bytes: usize,
    element: usize,
    shadow: Shadow,
}

type Thread = Coroutine<(), (), (), DefaultStack>;

/// The state of a block while it runs. Fibers and scheduler take turns on one OS thread, and reach it by pointer.
pub(super) struct Block {
    /// Number of the block in the grid.
    pub(super) number: u64,
    pub(super) fault: Option<Fault>,
    /// A read of threadgroup memory that nothing had written. If a write that nothing orders follows, the race is the better report, so
    /// this one waits for the next barrier.
    unwritten: Option<Fault>,
    launch: *const LaunchState<'static>,
    warp: u32,
    waits: Vec<Wait>,
    fibers: Vec<*mut Fiber>,
    shuffled: Vec<u32>,
    /// Words that threads hand to their warp, by thread, in turns: a lane may be one exchange ahead of those that still read the last.
    handed: [Vec<[u32; HANDED]>; 2],
    turns: Vec<bool>,
    /// Barriers passed: all of them, and those that cover device memory.
    epochs: [u32; 2],
    warp_epochs: Vec<u32>,
    arrays: Vec<SharedArray>,
    arena: Box<[u128]>,
    stacks: Vec<DefaultStack>,
}

impl Block {
    pub(super) fn new() -> Block {
        let gaps = 64 * SHARED_GAP;
        Block {
            number: 0,
            fault: None,
            unwritten: None,
            launch: std::ptr::null(),
            warp: 32,
            waits: Vec::new(),
            fibers: Vec::new(),
            shuffled: Vec::new(),
            handed: [Vec::new(), Vec::new()],
            turns: Vec::new(),
            epochs: [0; 2],
            warp_epochs: Vec::new(),
            arrays: Vec::new(),
            arena: vec![0; (SHARED_LIMIT + gaps) / size_of::<u128>()].into_boxed_slice(),
            stacks: Vec::new(),
        }
    }

    /// A worker turns to another launch: its threadgroup arrays are others.
    pub(super) fn begin(&mut self, launch: &LaunchState<'_>) {
        self.arrays.clear();
        self.launch = std::ptr::from_ref(launch).cast();
        self.warp = launch.warp;
    }

    fn launch(&self) -> &LaunchState<'static> {
        // SAFETY: set by `begin` to a launch that outlives every call of `run`.
        unsafe { &*self.launch }
    }

    fn reset(&mut self, number: u64, threads: usize) {
        self.number = number;
        self.fault = None;
        self.unwritten = None;
        self.waits.clear();
        self.waits.resize(threads, Wait::Nothing);
        self.fibers.clear();
        self.fibers.resize(threads, std::ptr::null_mut());
        self.shuffled.clear();
        self.shuffled.resize(threads, 0);
        self.handed.iter_mut().for_each(|h| h.resize(threads, [0; HANDED]));
        self.turns.clear();
        self.turns.resize(threads, false);
        self.epochs = [0; 2];
        self.warp_epochs.clear();
        self.warp_epochs.resize(threads.div_ceil(self.warp as usize), 0);
        for array in &mut self.arrays {
            array.shadow.clear(array.bytes);
        }
        // Threadgroup memory starts as NaN.
        self.arena.fill(u128::MAX);
    }

    /// Runs block `number` of the launch that `begin` named.
    ///
    /// # Errors
    /// The first fault; the fibers are dropped where they stood.
    pub(super) fn run(&mut self, number: u64, schedule: &mut Schedule) -> Result<(), Fault> {
        let launch: *const LaunchState<'static> = self.launch;
        // SAFETY: as in `launch`; a pointer, so that `self` stays free.
        let launch = unsafe { &*launch };
        let threads = launch.threads() as usize;
        self.reset(number, threads);
        // Fibers reach the block by this pointer while the scheduler does: from here on everything goes through it.
        let state: *mut Block = self;
        let mut coroutines = Vec::with_capacity(threads);
        for linear in 0..threads {
            // SAFETY: no fiber runs.
            match unsafe { Block::start(state, launch, linear as u32) } {
                Some(coroutine) => coroutines.push(coroutine),
                None => break,
            }
        }
        // SAFETY: `state` is valid for this call, and only this OS thread uses it.
        let block = unsafe {
            if coroutines.len() == threads {
                Block::schedule(state, launch, &mut coroutines, schedule);
            }
            &mut *state
        };
        if coroutines.len() < threads {
            block.fault = Some(Fault::NoStack { threads: threads as u32 });
        }
        for mut coroutine in coroutines {
            if !coroutine.done() {
                // SAFETY: the frames on the stack are C++ without destructors and callbacks that hold nothing to drop.
                unsafe { coroutine.force_reset() };
            }
            block.stacks.push(coroutine.into_stack());
        }
        block.fault.take().or(block.unwritten.take()).map_or(Ok(()), Err)
    }

    /// The fiber of one thread; `None` if there is no memory for its stack.
    ///
    /// # Safety
    /// `state` is valid, outlives the coroutine, and nobody else uses it during this call.
    unsafe fn start(state: *mut Block, launch: &'static LaunchState<'static>, linear: u32) -> Option<Thread> {
        // SAFETY: promised by the caller.
        let (spare, number) = unsafe { ((*state).stacks.pop(), (*state).number) };
        let stack = match spare {
            Some(stack) => stack,
            None => DefaultStack::new(STACK).ok()?,
        };
        let (low, high) = (stack.limit().get(), stack.base().get());
        let [x, y, _] = launch.block;
        let thread = [linear % x, linear / x % y, linear / x / y];
        let group = launch.group(number);
        Some(Coroutine::with_stack(stack, move |yielder, ()| {
            let mut fiber = Fiber {
                group,
                thread,
                block: launch.block,
                grid: launch.grid,
                linear,
                pad: 0,
                stack_low: low,
                stack_size: high - low,
                state,
                yielder,
            };
            let fiber: *mut Fiber = &mut fiber;
            // SAFETY: scheduler and fibers take turns; the buffers are those that the launch was checked with, and every access is
            // checked before it is made.
            unsafe {
                let fibers = &mut (*state).fibers;
                if let Some(slot) = fibers.get_mut(linear as usize) {
                    *slot = fiber;
                }
                *launch.kernel.slot() = fiber;
                (launch.kernel.run)(launch.pointers.as_ptr(), launch.params.as_ptr().cast(), fiber);
            }
        }))
    }

    /// Resumes fibers until all have returned or one has failed.
    ///
    /// # Safety
    /// `state` is the block that the coroutines were started with, and nobody but them and this call uses it.
    unsafe fn schedule(state: *mut Block, launch: &LaunchState<'_>, coroutines: &mut [Thread], schedule: &mut Schedule) {
        let slot = launch.kernel.slot();
        let mut returned = 0;
        while returned < coroutines.len() {
            // SAFETY: no fiber runs, so nobody else looks at the block.
            let block = unsafe { &mut *state };
            if block.fault.is_some() {
                return;
            }
            let Some(next) = schedule.next(&block.waits) else {
                block.fault = Some(block.stuck());
                return;
            };
            let (Some(coroutine), Some(&fiber)) = (coroutines.get_mut(next), block.fibers.get(next)) else { return };
            // SAFETY: the slot is this OS thread's; a fiber that has not begun sets it itself.
            unsafe { *slot = fiber };
            let result = coroutine.resume(());
            // SAFETY: as above; the reference from before the switch is not used again.
            let block = unsafe { &mut *state };
            match result {
                CoroutineResult::Return(()) => {
                    if let Some(wait) = block.waits.get_mut(next) {
                        *wait = Wait::Returned;
                    }
                    returned += 1;
                }
                CoroutineResult::Yield(()) => block.release(next),
            }
        }
    }

    pub(super) fn wait(&mut self, linear: u32, wait: Wait) {
        if let Some(slot) = self.waits.get_mut(linear as usize) {
            *slot = wait;
        }
    }

    pub(super) fn shuffled(&self, linear: u32) -> u32 {
        self.shuffled.get(linear as usize).copied().unwrap_or(0)
    }

    /// Keeps the words of a thread for its warp, and says in which turn.
    pub(super) fn hand_over(&mut self, linear: u32, words: &[u32]) -> usize {
        let Some(turn) = self.turns.get_mut(linear as usize) else { return 0 };
        *turn = !*turn;
        let turn = usize::from(*turn);
        if let Some(slot) = self.handed.get_mut(turn).and_then(|h| h.get_mut(linear as usize)) {
            slot.iter_mut().zip(words).for_each(|(slot, word)| *slot = *word);
        }
        turn
    }

    /// The words of all lanes of the thread's warp.
    pub(super) fn handed_over(&self, linear: u32, turn: usize, all: &mut [u32]) {
        let width = self.warp as usize;
        let lanes = self.handed.get(turn).into_iter().flatten().skip(linear as usize / width * width).take(width);
        let count = all.len() / width;
        for (to, from) in all.chunks_exact_mut(count).zip(lanes) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    }

    /// After thread `last` has begun to wait: frees its warp or the block if it was the last to arrive.
    fn release(&mut self, last: usize) {
        match self.waits.get(last) {
            Some(Wait::Barrier { .. }) => self.release_block(),
            Some(Wait::Warp { .. }) => self.release_warp(last / self.warp as usize),
            _ => {}
        }
    }

    fn release_block(&mut self) {
        let Some(&Wait::Barrier { all, code }) = self.waits.first() else { return };
        if !self.waits.iter().all(|w| matches!(w, Wait::Barrier { .. })) {
            return;
        }
        for (i, wait) in self.waits.iter().enumerate() {
            if let Wait::Barrier { code: other, .. } = *wait
                && other != code
                && self.launch().kernel.place(other) != self.launch().kernel.place(code)
            {
                let at = Site { thread: 0, block: self.number, code };
                self.fault = Some(Fault::Divergence { what: "barrier", at, other: i as u32, elsewhere: Elsewhere::Waits { code: other } });
                return;
            }
        }
        self.fault = self.unwritten.take();
        self.epochs[0] = self.epochs[0].wrapping_add(1);
        if all {
            self.epochs[1] = self.epochs[1].wrapping_add(1);
        }
        self.waits.fill(Wait::Nothing);
    }

    fn release_warp(&mut self, warp: usize) {
        let width = self.warp as usize;
        let first = warp * width;
        let lanes = width.min(self.waits.len() - first);
        let Some(waits) = self.waits.get(first..first + lanes) else { return };
        if !waits.iter().all(|w| matches!(w, Wait::Warp { .. })) {
            return;
        }
        let Some(&Wait::Warp { shuffle: kind, code }) = waits.first() else { return };
        let site = |lane: usize, code: usize| Site { thread: (first + lane) as u32, block: self.number, code };
        let mut values = [0u32; 64];
        for (lane, wait) in waits.iter().enumerate() {
            let Wait::Warp { shuffle, code: other } = *wait else { return };
            if shuffle.is_some() != kind.is_some()
                || (other != code && self.launch().kernel.place(other) != self.launch().kernel.place(code))
            {
                let elsewhere = Elsewhere::Waits { code: other };
                self.fault = Some(Fault::Divergence { what: "warp exchange", at: site(0, code), other: (first + lane) as u32, elsewhere });
                return;
            }
            if let (Some((value, _)), Some(slot)) = (shuffle, values.get_mut(lane)) {
                *slot = value;
            }
        }
        for lane in 0..lanes {
            let Some(&Wait::Warp { shuffle, code }) = self.waits.get(first + lane) else { return };
            if let Some((_, from)) = shuffle {
                let Some(&value) = values.get(from as usize).filter(|_| (from as usize) < lanes) else {
                    self.fault = Some(Fault::ShuffleLane { lane: from, lanes: lanes as u32, at: site(lane, code) });
                    return;
                };
                if let Some(slot) = self.shuffled.get_mut(first + lane) {
                    *slot = value;
                }
            }
        }
        // A shuffle moves a value; it does not order memory.
        if let (None, Some(epoch)) = (kind, self.warp_epochs.get_mut(warp)) {
            *epoch = epoch.wrapping_add(1);
        }
        if let Some(waits) = self.waits.get_mut(first..first + lanes) {
            waits.fill(Wait::Nothing);
        }
    }

    /// Nobody can run, yet not all have returned: some wait for threads that will not come.
    fn stuck(&self) -> Fault {
        let waiting = self.waits.iter().enumerate().find_map(|(i, w)| match *w {
            Wait::Barrier { code, .. } => Some((i, "barrier", code)),
            Wait::Warp { code, .. } => Some((i, "warp exchange", code)),
            _ => None,
        });
        let (thread, what, code) = waiting.unwrap_or((0, "barrier", 0));
        let width = self.warp as usize;
        let peers = if what == "barrier" {
            0..self.waits.len()
        } else {
            thread / width * width..self.waits.len().min((thread / width + 1) * width)
        };
        let elsewhere = |&i: &usize| {
            let same = matches!(
                (self.waits.get(i), what),
                (Some(Wait::Barrier { .. }), "barrier") | (Some(Wait::Warp { .. }), "warp exchange") | (None, _)
            );
            !same
        };
        let other = peers.clone().find(elsewhere);
        let other = other.unwrap_or(thread);
        let elsewhere = match self.waits.get(other) {
            Some(&(Wait::Barrier { code, .. } | Wait::Warp { code, .. })) => Elsewhere::Waits { code },
            _ => Elsewhere::Returned,
        };
        Fault::Divergence { what, at: Site { thread: thread as u32, block: self.number, code }, other: other as u32, elsewhere }
    }

    /// The threadgroup array of that name: made at the first call in a launch, the same for all threads of a block.
    pub(super) fn shared(&mut self, name: *const c_char, bytes: usize, element: usize) -> Result<*mut u8, Fault> {
        // SAFETY: names are literals of the module.
        let same = |other: *const c_char| other == name || unsafe { CStr::from_ptr(other) == CStr::from_ptr(name) };
        let found = self.arrays.iter().find(|a| a.bytes == bytes && same(a.name)).map(|a| a.offset);
        let offset = match found {
            Some(offset) => offset,
            None => {
                let used: usize = self.arrays.iter().map(|a| a.bytes).sum();
                let offset = self.arrays.last().map_or(SHARED_GAP, |a| (a.offset + a.bytes).next_multiple_of(16) + SHARED_GAP);
                if used + bytes > SHARED_LIMIT || offset + bytes + SHARED_GAP > self.arena.len() * 16 {
                    return Err(Fault::SharedSize { bytes: used + bytes, limit: SHARED_LIMIT });
                }
                self.arrays.push(SharedArray { name, offset, bytes, element, shadow: Shadow::new(bytes, element) });
                offset
            }
        };
        Ok(self.arena.as_mut_ptr().cast::<u8>().wrapping_add(offset))
    }

    /// Checks one access before it is made.
    pub(super) fn access(&mut self, thread: u32, address: usize, bytes: usize, kind: Kind, at: Site) -> Result<(), Fault> {
        match self.check(thread, address, bytes, kind, at) {
            Err(fault) if !matches!(fault, Fault::Race { .. }) => Err(self.unwritten.take().unwrap_or(fault)),
            outcome => outcome,
        }
    }

    fn check(&mut self, thread: u32, address: usize, bytes: usize, kind: Kind, at: Site) -> Result<(), Fault> {
        if bytes.is_power_of_two() && !address.is_multiple_of(bytes) {
            return Err(Fault::Misaligned { address, bytes, kind, at });
        }
        let code = self.launch().kernel.relative(at.code);
        let arena = self.arena.as_ptr() as usize;
        if (arena..arena + self.arena.len() * 16).contains(&address) {
            let offset = address - arena;
            let array = self.arrays.iter().find(|a| offset >= a.offset && offset + bytes <= a.offset + a.bytes);
            let Some(array) = array else { return Err(Fault::OutOfRange { address, bytes, kind, at }) };
            let (offset, space) = (offset - array.offset, Space::Shared { name: array.name, element: array.element });
            if kind == Kind::Read && array.shadow.unwritten(offset, bytes) {
                self.unwritten.get_or_insert(Fault::Unwritten { space, offset, at });
            }
            let warp_epoch = self.warp_epochs.get((thread / self.warp) as usize).copied().unwrap_or(0);
            let now = Stamp::new(thread, 0, self.epochs[0], warp_epoch, kind == Kind::Atomic);
            return match array.shadow.access(offset, bytes, kind, now, code, self.warp) {
                None => Ok(()),
                Some((offset, earlier)) => Err(Fault::Race { space, offset, kind, at, earlier: earlier.in_block(self.number) }),
            };
        }
        let launch = self.launch();
        let Some((i, region)) = launch.regions.iter().enumerate().find(|(_, r)| r.holds(address, bytes)) else {
            // Constant tables of the text.
            if kind == Kind::Read && launch.kernel.contains(address) {
                return Ok(());
            }
            return Err(Fault::OutOfRange { address, bytes, kind, at });
        };
        let (space, offset) = (Space::Buffer(i), address - region.start);
        let Some(shadow) = &region.shadow else {
            return if kind == Kind::Read { Ok(()) } else { Err(Fault::ReadOnly { space, offset, kind, at }) };
        };
        if kind == Kind::Read && region.starts_unwritten && shadow.unwritten(offset, bytes) {
            return Err(Fault::Unwritten { space, offset, at });
        }
        let now = Stamp::new(thread, self.number, self.epochs[1], 0, kind == Kind::Atomic);
        match shadow.access(offset, bytes, kind, now, code, self.warp) {
            None => Ok(()),
            Some((offset, earlier)) => Err(Fault::Race { space, offset, kind, at, earlier }),
        }
    }
}

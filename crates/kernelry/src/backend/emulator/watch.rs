//! Shadow memory: who touched which element last, and whether anything orders the accesses.
//!
//! Two accesses to one element, one of them a write, are a race unless something orders them: they are of one thread; or of one block with
//! a barrier between them that covers the memory; or, in threadgroup memory, of one warp with a warp synchronisation between them.
//! Blocks are never ordered. Atomic accesses do not race with each other.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// What an access does. The numbers are those of the prelude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Atomic,
}

impl Kind {
    pub(super) fn from_u32(kind: u32) -> Kind {
        match kind {
            0 => Kind::Read,
            1 => Kind::Write,
            _ => Kind::Atomic,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Atomic => "atomic update",
        }
    }
}

/// Who accessed, and when: 1 valid, 1 atomic, 10 thread, 24 block, 14 barriers passed, 14 warp synchronisations passed. The counts wrap;
/// after 16384 barriers without a touch an old access may look like one of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(u64);

impl Stamp {
    pub(super) fn new(thread: u32, block: u64, epoch: u32, warp_epoch: u32, atomic: bool) -> Stamp {
        let flags = 1 << 63 | u64::from(atomic) << 62;
        Stamp(
            flags
                | u64::from(thread & 0x3ff) << 52
                | (block & 0xff_ffff) << 28
                | u64::from(epoch & 0x3fff) << 14
                | u64::from(warp_epoch & 0x3fff),
        )
    }
    fn get(word: &AtomicU64) -> Option<Stamp> {
        let word = word.load(SeqCst);
        (word != 0).then_some(Stamp(word))
    }
    pub(super) fn thread(self) -> u32 {
        (self.0 >> 52) as u32 & 0x3ff
    }
    pub(super) fn block(self) -> u64 {
        self.0 >> 28 & 0xff_ffff
    }
    fn epoch(self) -> u64 {
        self.0 >> 14 & 0x3fff
    }
    fn warp_epoch(self) -> u64 {
        self.0 & 0x3fff
    }
    fn atomic(self) -> bool {
        self.0 >> 62 & 1 == 1
    }

    /// Whether an earlier access `self` is ordered before `now`.
    fn ordered_before(self, now: Stamp, warp: u32) -> bool {
        if self.block() != now.block() {
            return false;
        }
        self.thread() == now.thread()
            || self.epoch() != now.epoch()
            || (self.thread() / warp == now.thread() / warp && self.warp_epoch() != now.warp_epoch())
    }
}

/// An earlier access that nothing orders before the present one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conflict {
    pub(super) kind: Kind,
    pub(super) stamp: Stamp,
    /// Return address in the module, relative to its start.
    pub(super) code: u32,
}

impl Conflict {
    /// The same, for threadgroup memory, whose stamps leave the block out.
    pub(super) fn in_block(self, block: u64) -> Conflict {
        Conflict { stamp: Stamp(self.stamp.0 | (block & 0xff_ffff) << 28), ..self }
    }
}

/// Last write and the last two readers of one element.
#[derive(Default)]
struct Cell {
    write: AtomicU64,
    reads: [AtomicU64; 2],
    write_code: AtomicU32,
    read_codes: [AtomicU32; 2],
}

/// Shadow of one range of memory, a cell for each `1 << shift` bytes. Several OS threads may use it at once: sequentially consistent
/// words make sure that of two conflicting accesses at least the later one sees the other.
pub(super) struct Shadow {
    cells: Box<[Cell]>,
    shift: u32,
}

impl Shadow {
    pub(super) fn new(bytes: usize, element: usize) -> Shadow {
        let shift = element.max(1).trailing_zeros();
        let count = bytes.div_ceil(1 << shift).max(1);
        let layout = std::alloc::Layout::array::<Cell>(count).unwrap_or(std::alloc::Layout::new::<Cell>());
        // SAFETY: the layout is not empty, and all-zero bytes are a `Cell`; `Box` frees with the layout of the same slice. Zeroed
        // allocation keeps untouched shadow from using memory.
        let cells = unsafe {
            let start = std::alloc::alloc_zeroed(layout).cast::<Cell>();
            if start.is_null() {
                std::alloc::handle_alloc_error(layout);
            }
            Box::from_raw(std::ptr::slice_from_raw_parts_mut(start, layout.size() / size_of::<Cell>()))
        };
        Shadow { cells, shift }
    }

    /// Forgets everything in the first `bytes`.
    pub(super) fn clear(&mut self, bytes: usize) {
        for cell in self.cells.iter_mut().take(bytes.div_ceil(1 << self.shift)) {
            *cell = Cell::default();
        }
    }

    /// Whether anything in the range was never written.
    pub(super) fn unwritten(&self, offset: usize, bytes: usize) -> bool {
        self.range(offset, bytes).any(|cell| cell.write.load(SeqCst) == 0)
    }

    fn range(&self, offset: usize, bytes: usize) -> impl Iterator<Item = &Cell> {
        let first = offset >> self.shift;
        let last = (offset + bytes.max(1) - 1) >> self.shift;
        self.cells.get(first..=last).unwrap_or_default().iter()
    }

    /// Records an access. Gives the first conflict and the element's byte offset, if there is one.
    pub(super) fn access(&self, offset: usize, bytes: usize, kind: Kind, now: Stamp, code: u32, warp: u32) -> Option<(usize, Conflict)> {
        let first = offset >> self.shift;
        for (i, cell) in self.range(offset, bytes).enumerate() {
            if let Some(conflict) = cell.access(kind, now, code, warp) {
                return Some(((first + i) << self.shift, conflict));
            }
        }
        None
    }
}

impl Cell {
    fn access(&self, kind: Kind, now: Stamp, code: u32, warp: u32) -> Option<Conflict> {
        if kind == Kind::Read {
            let last = self.reads[0].load(SeqCst);
            if last != 0 && (Stamp(last).thread() != now.thread() || Stamp(last).block() != now.block()) {
                self.reads[1].store(last, SeqCst);
                self.read_codes[1].store(self.read_codes[0].load(SeqCst), SeqCst);
            }
            self.reads[0].store(now.0, SeqCst);
            self.read_codes[0].store(code, SeqCst);
            let write = Stamp::get(&self.write)?;
            return self.conflicting_write(write, self.write_code.load(SeqCst), now, kind, warp);
        }
        let previous = self.write.swap(now.0, SeqCst);
        let previous_code = self.write_code.swap(code, SeqCst);
        if previous != 0
            && let Some(conflict) = self.conflicting_write(Stamp(previous), previous_code, now, kind, warp)
        {
            return Some(conflict);
        }
        for (read, read_code) in self.reads.iter().zip(&self.read_codes) {
            if let Some(stamp) = Stamp::get(read)
                && !stamp.ordered_before(now, warp)
            {
                return Some(Conflict { kind: Kind::Read, stamp, code: read_code.load(SeqCst) });
            }
        }
        None
    }

    fn conflicting_write(&self, earlier: Stamp, code: u32, now: Stamp, kind: Kind, warp: u32) -> Option<Conflict> {
        if earlier.ordered_before(now, warp) || (earlier.atomic() && kind == Kind::Atomic) {
            return None;
        }
        Some(Conflict { kind: if earlier.atomic() { Kind::Atomic } else { Kind::Write }, stamp: earlier, code })
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Shadow, Stamp};

    /// Whether the second of two accesses (thread, block, barriers, warp synchronisations) is reported.
    fn reported(first: (Kind, Stamp), second: (Kind, Stamp)) -> bool {
        let shadow = Shadow::new(64, 4);
        assert!(shadow.access(8, 4, first.0, first.1, 0, 32).is_none());
        shadow.access(8, 4, second.0, second.1, 0, 32).is_some()
    }

    #[test]
    fn only_unordered_conflicts_are_races() {
        let at = |thread, block, epoch, warp| Stamp::new(thread, block, epoch, warp, false);
        let atomic = |thread| Stamp::new(thread, 0, 0, 0, true);
        assert!(reported((Kind::Write, at(0, 0, 0, 0)), (Kind::Read, at(1, 0, 0, 0))));
        assert!(reported((Kind::Read, at(0, 0, 0, 0)), (Kind::Write, at(1, 0, 0, 0))));
        assert!(reported((Kind::Write, at(0, 0, 0, 0)), (Kind::Write, at(1, 0, 0, 0))));
        assert!(!reported((Kind::Read, at(0, 0, 0, 0)), (Kind::Read, at(1, 0, 0, 0))));
        assert!(!reported((Kind::Write, at(1, 0, 0, 0)), (Kind::Read, at(1, 0, 0, 0))), "one thread");
        assert!(!reported((Kind::Write, at(0, 0, 0, 0)), (Kind::Read, at(1, 0, 1, 0))), "a barrier between");
        assert!(!reported((Kind::Write, at(0, 0, 0, 0)), (Kind::Read, at(31, 0, 0, 1))), "a warp synchronisation between");
        assert!(reported((Kind::Write, at(0, 0, 0, 0)), (Kind::Read, at(32, 0, 0, 1))), "of another warp");
        assert!(reported((Kind::Write, at(0, 0, 0, 0)), (Kind::Write, at(0, 1, 1, 0))), "blocks are never ordered");
        assert!(!reported((Kind::Atomic, atomic(0)), (Kind::Atomic, atomic(1))));
        assert!(reported((Kind::Atomic, atomic(0)), (Kind::Read, at(1, 0, 0, 0))));
    }
}

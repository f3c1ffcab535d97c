//! What encoders record and backends run.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::access::RangeAccess;
use crate::buffer::Storage;
use crate::catalogue::Geometry;
use crate::registry::Pipeline;
use crate::{Lease, Result};

/// One buffer argument of a recorded launch.
#[derive(Clone)]
pub struct LaunchArg {
    pub(crate) storage: Arc<Storage>,
    pub(crate) range: Range<usize>,
    pub(crate) write: bool,
}

impl LaunchArg {
    /// The memory behind the argument.
    pub fn memory(&self) -> &dyn crate::backend::Memory {
        self.storage.memory()
    }
    /// The bytes that the kernel may touch: offset in the memory, and end.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
    /// Whether the kernel may write them.
    pub fn writes(&self) -> bool {
        self.write
    }

    pub(crate) fn access(&self) -> RangeAccess {
        RangeAccess { storage: self.storage.id(), begin: self.range.start, end: self.range.end, write: self.write }
    }
}

/// A recorded launch. Its arguments have been checked.
#[non_exhaustive]
pub struct Launch {
    /// What runs.
    pub pipeline: Pipeline,
    /// Buffers in binding order; `None` for optional ones that were left out.
    pub args: SmallVec<[Option<LaunchArg>; 6]>,
    /// Parameter block.
    pub params: SmallVec<[u8; 96]>,
    /// The step buffer, if a parameter is read from it.
    pub step: Option<LaunchArg>,
    /// Scratch memory, if the kernel takes any.
    pub scratch: Option<LaunchArg>,
    /// GPU geometry.
    pub geometry: Geometry,
}

/// One recorded command.
#[non_exhaustive]
pub enum Command {
    /// A kernel.
    Launch(Box<Launch>),
    /// Copies bytes between ranges that do not overlap.
    Copy {
        /// Source.
        src: LaunchArg,
        /// Destination, as long as the source.
        dst: LaunchArg,
    },
    /// Sets bytes to zero.
    Zero {
        /// Destination.
        dst: LaunchArg,
    },
    /// Everything before is visible to everything after.
    Barrier,
}

/// A recorded command list.
#[derive(Default)]
pub struct Commands {
    pub(crate) list: Vec<Command>,
    /// Every allocation that the list touches, by id, and whether it is written.
    storages: Vec<(Arc<Storage>, bool)>,
    /// Memory between the launches of one operation, the last the largest, and memory within a launch, likewise.
    pub(crate) scratch: Vec<Lease>,
    pub(crate) launch_scratch: Vec<Lease>,
}

impl Commands {
    /// The commands in order.
    pub fn list(&self) -> &[Command] {
        &self.list
    }

    /// Whether any command of the list writes to the allocation behind `arg`.
    pub fn writes(&self, arg: &LaunchArg) -> bool {
        self.storages
            .binary_search_by_key(&arg.storage.id(), |(s, _)| s.id())
            .is_ok_and(|i| self.storages.get(i).is_some_and(|(_, write)| *write))
    }

    pub(crate) fn touch(&mut self, arg: &LaunchArg) {
        match self.storages.binary_search_by_key(&arg.storage.id(), |(s, _)| s.id()) {
            Ok(i) => {
                if let Some((_, write)) = self.storages.get_mut(i) {
                    *write |= arg.write;
                }
            }
            Err(i) => self.storages.insert(i, (arg.storage.clone(), arg.write)),
        }
    }

    /// Locks every allocation in order of id, so that two submissions cannot wait for each other.
    pub(crate) fn lock(&self) -> Result<StorageLocks<'_>> {
        let mut locks = StorageLocks { storages: &self.storages, held: 0 };
        for (storage, write) in &self.storages {
            storage.lock_for_launch(*write)?;
            locks.held += 1;
        }
        Ok(locks)
    }
}

/// Allocations locked for a submission; dropped, they are free.
pub(crate) struct StorageLocks<'a> {
    storages: &'a [(Arc<Storage>, bool)],
    held: usize,
}

impl Drop for StorageLocks<'_> {
    fn drop(&mut self) {
        for (storage, write) in self.storages.iter().take(self.held) {
            // SAFETY: the first `held` locks were taken in these modes.
            unsafe { storage.unlock_for_launch(*write) };
        }
    }
}

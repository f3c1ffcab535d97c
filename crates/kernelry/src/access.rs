//! Which launches must wait for which: conflicts between byte ranges.

use hashbrown::HashMap;
use smallvec::SmallVec;

/// A half-open byte range of one allocation, and whether it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeAccess {
    pub(crate) storage: u64,
    pub(crate) begin: usize,
    pub(crate) end: usize,
    pub(crate) write: bool,
}

impl RangeAccess {
    /// Two accesses conflict if their ranges meet and one of them writes.
    pub(crate) fn conflicts(&self, other: &RangeAccess) -> bool {
        self.storage == other.storage && (self.write || other.write) && self.begin < other.end && other.begin < self.end
    }
}

/// Byte ranges in order, apart from each other.
#[derive(Debug, Default)]
struct Ranges(SmallVec<[(usize, usize); 2]>);

impl Ranges {
    fn meet(&self, access: &RangeAccess) -> bool {
        let first = self.0.partition_point(|&(_, end)| end <= access.begin);
        self.0.get(first).is_some_and(|&(begin, _)| begin < access.end)
    }

    fn add(&mut self, access: &RangeAccess) {
        // What it touches becomes part of it.
        let from = self.0.partition_point(|&(_, end)| end < access.begin);
        let to = self.0.partition_point(|&(begin, _)| begin <= access.end);
        let joined = self.0.drain(from..to).fold((access.begin, access.end), |a, b| (a.0.min(b.0), a.1.max(b.1)));
        self.0.insert(from, joined);
    }
}

/// What was accessed of one allocation.
#[derive(Debug, Default)]
struct Accessed {
    read: Ranges,
    written: Ranges,
}

/// Collects the accesses since the last barrier and says when the next launch needs one. Lists of independent launches are long, so what one
/// costs does not grow with how many came before.
#[derive(Debug, Default)]
pub(crate) struct AccessTracker {
    since_barrier: HashMap<u64, Accessed>,
    /// A launch without declared accesses ran since the last barrier: nothing may be assumed about it.
    opaque: bool,
}

impl AccessTracker {
    /// Takes the accesses of the next launch (`None`: not declared). True if a barrier must come before it.
    pub(crate) fn next(&mut self, accesses: Option<&[RangeAccess]>) -> bool {
        let needs_barrier = match accesses {
            Some(accesses) => self.opaque || accesses.iter().any(|a| self.conflicts(a)),
            None => self.opaque || !self.since_barrier.is_empty(),
        };
        if needs_barrier {
            self.barrier();
        }
        match accesses {
            Some(accesses) => {
                for access in accesses {
                    let accessed = self.since_barrier.entry(access.storage).or_default();
                    if access.write { &mut accessed.written } else { &mut accessed.read }.add(access);
                }
            }
            None => self.opaque = true,
        }
        needs_barrier
    }

    fn conflicts(&self, access: &RangeAccess) -> bool {
        let accessed = self.since_barrier.get(&access.storage);
        accessed.is_some_and(|before| before.written.meet(access) || (access.write && before.read.meet(access)))
    }

    /// Everything before is visible to everything after.
    pub(crate) fn barrier(&mut self) {
        self.since_barrier.clear();
        self.opaque = false;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Vec<RangeAccess>> {
        let one = (0u64..3, 0usize..32, 1usize..12, any::<bool>());
        prop::collection::vec(one.prop_map(|(storage, begin, len, write)| RangeAccess { storage, begin, end: begin + len, write }), 1..4)
    }

    /// Byte by byte: 0 untouched, 1 read, 2 written.
    #[derive(Default)]
    struct Bitmap(std::collections::HashMap<(u64, usize), u8>);

    impl Bitmap {
        fn conflicts(&self, accesses: &[RangeAccess]) -> bool {
            accesses.iter().any(|a| {
                (a.begin..a.end).any(|i| {
                    let state = self.0.get(&(a.storage, i)).copied().unwrap_or(0);
                    state == 2 || (state == 1 && a.write)
                })
            })
        }
        fn add(&mut self, accesses: &[RangeAccess]) {
            for a in accesses {
                for i in a.begin..a.end {
                    let state = self.0.entry((a.storage, i)).or_insert(0);
                    *state = (*state).max(if a.write { 2 } else { 1 });
                }
            }
        }
    }

    proptest! {
        #[test]
        fn barriers_equal_a_bitmap_model(launches in prop::collection::vec(ranges(), 1..24)) {
            let (mut tracker, mut model) = (AccessTracker::default(), Bitmap::default());
            for launch in &launches {
                let expected = model.conflicts(launch);
                prop_assert_eq!(tracker.next(Some(launch)), expected);
                if expected {
                    model = Bitmap::default();
                }
                model.add(launch);
            }
        }
    }

    #[test]
    fn a_launch_without_declared_accesses_is_a_full_barrier_on_both_sides() {
        let read = [RangeAccess { storage: 1, begin: 0, end: 4, write: false }];
        let mut tracker = AccessTracker::default();
        assert!(!tracker.next(Some(&read)));
        assert!(tracker.next(None));
        assert!(tracker.next(Some(&read)));
        assert!(!tracker.next(Some(&read)));
    }

    #[test]
    fn adjacent_slices_do_not_conflict() {
        let mut tracker = AccessTracker::default();
        assert!(!tracker.next(Some(&[RangeAccess { storage: 1, begin: 0, end: 4, write: true }])));
        assert!(!tracker.next(Some(&[RangeAccess { storage: 1, begin: 4, end: 8, write: true }])));
        assert!(tracker.next(Some(&[RangeAccess { storage: 1, begin: 7, end: 9, write: false }])));
    }
}

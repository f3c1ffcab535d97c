//! Which launches must wait for which: conflicts between byte ranges.

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

/// Collects the accesses since the last barrier and says when the next launch needs one.
#[derive(Debug, Default)]
pub(crate) struct AccessTracker {
    since_barrier: Vec<RangeAccess>,
    /// A launch without declared accesses ran since the last barrier: nothing may be assumed about it.
    opaque: bool,
}

impl AccessTracker {
    /// Takes the accesses of the next launch (`None`: not declared). True if a barrier must come before it.
    pub(crate) fn next(&mut self, accesses: Option<&[RangeAccess]>) -> bool {
        let needs_barrier = match accesses {
            Some(accesses) => self.opaque || accesses.iter().any(|a| self.since_barrier.iter().any(|b| a.conflicts(b))),
            None => self.opaque || !self.since_barrier.is_empty(),
        };
        if needs_barrier {
            self.barrier();
        }
        match accesses {
            Some(accesses) => self.since_barrier.extend_from_slice(accesses),
            None => self.opaque = true,
        }
        needs_barrier
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

//! The order in which fibers run: seeded, and meaner than a GPU's.

use super::block::Wait;

/// How the next fiber is chosen among those that can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The lowest thread first.
    Forward,
    /// The highest thread first.
    Reverse,
    /// Any, drawn anew at every turn.
    Random,
    /// One warp runs as far as it can before any other thread moves.
    WarpAhead(usize),
    /// One lane of each warp moves only when nothing else can.
    LaneLags(usize),
}

/// The schedule of a block.
pub(super) struct Schedule {
    order: Order,
    warp: usize,
    rng: fastrand::Rng,
    /// Threads in the order of this round; a turn goes to the first that can run from `at` on.
    round: Vec<usize>,
    at: usize,
}

impl Schedule {
    /// The schedule of one block of one launch. Equal seeds give equal schedules.
    pub(super) fn new(seed: u64, threads: usize, warp: usize) -> Schedule {
        let mut rng = fastrand::Rng::with_seed(seed);
        let order = match rng.usize(..5) {
            0 => Order::Forward,
            1 => Order::Reverse,
            2 => Order::Random,
            3 => Order::WarpAhead(rng.usize(..threads.div_ceil(warp).max(1))),
            _ => Order::LaneLags(rng.usize(..warp)),
        };
        let mut round: Vec<usize> = (0..threads).collect();
        if order == Order::Reverse {
            round.reverse();
        }
        Schedule { order, warp, rng, round, at: threads }
    }

    /// The thread whose turn it is; `None` if none can run.
    pub(super) fn next(&mut self, waits: &[Wait]) -> Option<usize> {
        let can_run = |&i: &usize| waits.get(i) == Some(&Wait::Nothing);
        if let Order::WarpAhead(w) = self.order
            && let Some(i) = (w * self.warp..((w + 1) * self.warp).min(waits.len())).find(can_run)
        {
            return Some(i);
        }
        let lags = |i: usize| matches!(self.order, Order::LaneLags(lane) if i % self.warp == lane);
        for _ in 0..2 {
            while let Some(&i) = self.round.get(self.at) {
                self.at += 1;
                if can_run(&i) && !lags(i) {
                    return Some(i);
                }
            }
            self.at = 0;
            if !matches!(self.order, Order::Forward | Order::Reverse) {
                self.rng.shuffle(&mut self.round);
            }
        }
        self.round.iter().copied().find(can_run)
    }
}

#[cfg(test)]
mod tests {
    use super::{Schedule, Wait};

    #[test]
    fn every_order_runs_every_thread() {
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, 70, 32);
            let mut waits = [Wait::Nothing; 70];
            for _ in 0..70 {
                let next = schedule.next(&waits).unwrap_or(usize::MAX);
                assert_eq!(waits.get(next), Some(&Wait::Nothing), "seed {seed}");
                waits[next] = Wait::Returned;
            }
            assert_eq!(schedule.next(&waits), None);
        }
    }
}

//! Which snap goes first: the one whose bytes save the least waiting.
//!
//! ```text
//!                    what a reload costs     1 + FIXED_BYTES / bytes
//! worth of a byte = --------------------- = -------------------------
//!                   wait for the next query     max(gap, idle)
//! ```
//!
//! The gap between queries is known from the second query on. It is what resists scans: what was asked for once
//! waits long, however fresh it is, and in a loop all gaps are alike, so that what is there stays. Idle time is
//! what follows a shift: a short gap of long ago counts for nothing. Chosen by replay, see `replay.rs` and
//! `docs/decisions/0007-eviction-order.md`.

/// How long a snap is taken to wait that has no second query yet: longer than those that are in use.
const GAP_UNKNOWN_MS: u64 = 60 * 60 * 1000;
/// A reload costs a little whatever its size, about as much as these bytes. So small snaps are worth more a byte.
const FIXED_BYTES: f64 = (10 << 20) as f64;
/// The newest gap counts a quarter: one odd query changes little, a new habit shows after a few.
const GAP_SHARE: u64 = 4;

/// When a snap was asked for. 24 bytes, kept as long as the snap is, also while it is on no disk and in no memory.
///
/// Only [`History::query`] changes it: what maintenance does to a snap is no access. Moments are milliseconds of
/// a clock that never jumps; one that lies in the future counts as now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    last_ms: u64,
    /// Mean time between queries, the newer ones counting more. Says nothing before the second query.
    gap_ms: u64,
    queries: u32,
}

const _: () = assert!(size_of::<History>() == 24, "it is kept for every snap");

impl History {
    /// A snap that nobody has asked for yet: its time runs from here. That is when it was made, or found at
    /// start-up.
    pub const fn begin(now_ms: u64) -> History {
        History { last_ms: now_ms, gap_ms: 0, queries: 0 }
    }

    /// A snap that was asked for in an earlier process, as that has noted it.
    pub(crate) const fn restored(last_ms: u64, gap_ms: u64, queries: u32) -> History {
        History { last_ms, gap_ms, queries }
    }

    /// Somebody asks for the snap.
    pub fn query(&mut self, now_ms: u64) {
        let gap = now_ms.saturating_sub(self.last_ms);
        self.gap_ms = match self.queries {
            0 => 0,
            1 => gap,
            _ => self.gap_ms - self.gap_ms / GAP_SHARE + gap / GAP_SHARE,
        };
        self.queries = self.queries.saturating_add(1);
        self.last_ms = self.last_ms.max(now_ms);
    }

    /// How long ago the last query was, or the beginning if there was none.
    pub fn idle_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.last_ms)
    }

    /// How many queries there were.
    pub fn queries(&self) -> u32 {
        self.queries
    }

    /// When the last query was, if there was one.
    pub(crate) fn queried_at_ms(&self) -> Option<u64> {
        (self.queries > 0).then_some(self.last_ms)
    }

    /// The mean time between queries; 0 before the second one.
    pub(crate) fn gap_ms(&self) -> u64 {
        self.gap_ms
    }

    /// How long the next query is likely to be away. Never 0.
    fn wait_ms(&self, now_ms: u64) -> u64 {
        let idle = self.idle_ms(now_ms);
        let wait = if self.queries < 2 { GAP_UNKNOWN_MS.saturating_add(idle) } else { self.gap_ms.max(idle) };
        wait.max(1)
    }
}

/// The place in the order, lowest first to go. All superseded snaps stand before all others.
///
/// It is a number so that comparing is cheap: positive floats sort as their bits do.
pub(super) fn rank(history: &History, bytes: u64, superseded: bool, now_ms: u64) -> u64 {
    let cost = 1.0 + FIXED_BYTES / bytes.max(1) as f64;
    let worth = cost / history.wait_ms(now_ms) as f64;
    const CURRENT: u64 = 1 << 63;
    worth.to_bits() | if superseded { 0 } else { CURRENT }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GIB, KIB, MIB};

    fn asked_at(moments: &[u64]) -> History {
        let mut history = History::begin(0);
        moments.iter().for_each(|moment| history.query(*moment));
        history
    }

    fn first_of(now_ms: u64, snaps: &[(&History, u64)]) -> usize {
        let ranks = snaps.iter().map(|(history, bytes)| rank(history, *bytes, false, now_ms));
        ranks.enumerate().min_by_key(|(_, rank)| *rank).unwrap().0
    }

    #[test]
    fn a_fresh_scan_goes_before_what_is_asked_for_again_and_again() {
        let (steady, scanned) = (asked_at(&[1_000, 61_000, 121_000]), asked_at(&[170_000]));
        assert_eq!(first_of(180_000, &[(&steady, GIB), (&scanned, GIB)]), 1);
    }

    #[test]
    fn of_two_that_were_asked_for_once_the_older_goes_first() {
        let (old, new) = (asked_at(&[1_000]), asked_at(&[600_000]));
        assert_eq!(first_of(700_000, &[(&new, GIB), (&old, GIB)]), 1);
    }

    #[test]
    fn a_habit_that_ended_does_not_count_for_long() {
        let (former, present) = (asked_at(&[1_000, 2_000, 3_000]), asked_at(&[500_000, 800_000]));
        assert_eq!(first_of(1_000_000, &[(&present, GIB), (&former, GIB)]), 1);
    }

    #[test]
    fn in_a_loop_what_is_there_stays() {
        // Each is asked for every 100 s. The next one to be asked for has waited longest and is not the first to go.
        let histories: Vec<_> = (0..10).map(|i| asked_at(&[i * 10_000, 100_000 + i * 10_000])).collect();
        let ranks: Vec<_> = histories.iter().map(|history| rank(history, GIB, false, 199_000)).collect();
        assert!(ranks.iter().all(|rank| *rank == ranks[0]), "{ranks:?}");
    }

    #[test]
    fn of_two_alike_the_larger_goes_first_and_large_ones_are_nearly_alike() {
        let history = asked_at(&[1_000, 2_000]);
        assert_eq!(first_of(5_000, &[(&history, MIB), (&history, GIB)]), 1);
        // A minute more or less of waiting outweighs any difference between large ones.
        let longer = asked_at(&[1_000, 100_000]);
        let shorter = asked_at(&[1_000, 70_000]);
        assert_eq!(first_of(100_001, &[(&shorter, 64 * GIB), (&longer, GIB)]), 1);
    }

    #[test]
    fn an_older_generation_goes_before_everything_current() {
        let (busy, idle) = (asked_at(&[1, 2, 3, 4]), asked_at(&[1]));
        assert!(rank(&busy, KIB, true, 5) < rank(&idle, 64 * GIB, false, u64::MAX));
    }

    #[test]
    fn moments_out_of_order_and_extreme_ones_do_no_harm() {
        let mut history = asked_at(&[1_000, u64::MAX, 5, 7]);
        assert_eq!(history.idle_ms(6), 0);
        for now in [0, 1, u64::MAX] {
            history.query(now);
            for bytes in [0, 1, u64::MAX] {
                assert!(rank(&history, bytes, false, now) > rank(&history, bytes, true, now));
            }
        }
    }
}

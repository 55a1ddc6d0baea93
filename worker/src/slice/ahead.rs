//! Memory for the next piece of an image, made ready by another thread while this piece is filled.
//!
//! First touch of fresh memory costs a producer as much as the copy. Where a core has nothing to do, the reaper's thread takes
//! the first touch off it: what it has touched it leaves as spare pages. Where all cores copy it would only take
//! their time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::snap::reaper::ReaperInbox;

/// Knows whether a core is free, and who touches memory there.
pub(crate) struct Ahead {
    reaper: ReaperInbox,
    cores: usize,
    /// How many threads copy into images or pieces now: only a guess of what they leave free, so in no order with
    /// anything.
    producers: AtomicUsize,
}

impl Ahead {
    pub(crate) fn new(reaper: ReaperInbox, cores: usize) -> Ahead {
        Ahead { reaper, cores, producers: AtomicUsize::new(0) }
    }

    /// The calling thread copies as long as this is kept.
    pub(crate) fn producing(self: &Arc<Ahead>) -> Producing {
        self.producers.fetch_add(1, Ordering::Relaxed);
        Producing(self.clone())
    }

    /// An image has begun a piece: has memory for another one made ready, if a core is free for that.
    pub(crate) fn piece_begun(&self, piece_bytes: usize) {
        if self.has_free_core() {
            self.reaper.prepare(piece_bytes);
        }
    }

    fn has_free_core(&self) -> bool {
        self.producers.load(Ordering::Relaxed) < self.cores
    }
}

/// A thread that copies.
pub(crate) struct Producing(Arc<Ahead>);

impl Drop for Producing {
    fn drop(&mut self) {
        self.0.producers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::budget::memory::{MemoryBudget, MemoryUse};
    use crate::snap::reaper::Reaper;

    const PIECE: usize = 4 << 20;

    fn wait_until(done: impl Fn() -> bool) -> bool {
        let give_up = Instant::now() + Duration::from_secs(9); // Before spare pages go by themselves.
        while !done() && Instant::now() < give_up {
            std::thread::yield_now();
        }
        done()
    }

    #[test]
    fn two_pieces_are_ready_at_most_and_none_beyond_the_budget() {
        let budget = MemoryBudget::new(8 * PIECE as u64, 0);
        let reaper = Reaper::new(budget.clone());
        let ahead = Ahead::new(reaper.inbox(), 2);
        let spares = || budget.counts().spares as usize / PIECE;
        ahead.piece_begun(PIECE);
        assert!(wait_until(|| spares() == 1));
        for _ in 0..5 {
            ahead.piece_begun(PIECE);
        }
        reaper.settle();
        assert_eq!((spares(), budget.counts().images), (2, 0));
        let all = budget.take(MemoryUse::Mapped, 8 * PIECE as u64, None).unwrap();
        ahead.piece_begun(PIECE);
        reaper.settle();
        assert_eq!(spares(), 0);
        drop(all);
    }

    #[test]
    fn nothing_is_made_ready_where_all_cores_copy() {
        let ahead = Arc::new(Ahead::new(Reaper::new(MemoryBudget::new(0, 0)).inbox(), 2));
        let first = ahead.producing();
        assert!(ahead.has_free_core());
        let second = ahead.producing();
        assert!(!ahead.has_free_core());
        drop(first);
        assert!(ahead.has_free_core());
        drop(second);
    }
}

//! What the first leases after a start wait for, and what lets it go first.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

/// For so long altogether the reading of manifests lets others go first. Longer, and a cache that is busy from its first
/// moment would not know for long what it has.
const LET_GO_MAX: Duration = Duration::from_millis(100);

/// What somebody waits for while the manifests are still being read: that reading takes all cores for a while, and is
/// what nobody waits for as long as there is something here.
pub(crate) struct Urgent(Mutex<State>);

struct State {
    /// Each hangs up when it has ended. None when all manifests were read.
    under_way: Option<Vec<Receiver<Infallible>>>,
    /// What is left of [`LET_GO_MAX`].
    left: Duration,
}

impl Default for Urgent {
    fn default() -> Urgent {
        Urgent(Mutex::new(State { under_way: Some(Vec::new()), left: LET_GO_MAX }))
    }
}

impl Urgent {
    /// Something has begun that somebody waits for, and that hangs up when it has ended.
    pub(crate) fn begin(&self, ended: Receiver<Infallible>) {
        if let Some(under_way) = &mut self.lock().under_way {
            under_way.retain(is_under_way);
            under_way.push(ended);
        }
    }

    /// Waits until nothing is under way, as long as there is time left for that.
    pub(crate) fn let_go_first(&self) {
        let begun = Instant::now();
        let end = begun + self.lock().left;
        while let Some(first) = self.first() {
            if first.recv_deadline(end).is_err() && Instant::now() >= end {
                break;
            }
        }
        let mut state = self.lock();
        // Threads that waited at once have not waited twice.
        state.left = state.left.min(end.saturating_duration_since(Instant::now()));
    }

    /// There will be no more waiting.
    pub(crate) fn end(&self) {
        self.lock().under_way = None;
    }

    /// One that is still under way.
    fn first(&self) -> Option<Receiver<Infallible>> {
        let mut state = self.lock();
        let under_way = state.under_way.as_mut()?;
        under_way.retain(is_under_way);
        under_way.first().cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_under_way(ended: &Receiver<Infallible>) -> bool {
    ended.try_recv() == Err(TryRecvError::Empty)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crossbeam_channel::bounded;

    use super::*;

    #[test]
    fn what_is_under_way_goes_first_and_not_for_ever() {
        let urgent = Urgent::default();
        urgent.let_go_first();
        let (going, ended) = bounded(0);
        urgent.begin(ended);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| urgent.let_go_first());
            drop(going);
            waiter.join().unwrap();
        });
        assert!(urgent.first().is_none());
        let (_hangs, ended) = bounded(0);
        urgent.begin(ended);
        urgent.let_go_first();
        assert_eq!(urgent.lock().left, Duration::ZERO);
        // And never again: this would wait for ever otherwise.
        urgent.let_go_first();
        urgent.end();
        assert!(urgent.first().is_none());
    }
}

//! A commit's outcome, on its way to somebody who waits for it and may leave.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::scan::patience::{Impatience, Patience};
use crate::snap::commit::CommitError;

/// What came of a commit.
pub(crate) type Outcome = Result<(), CommitError>;

/// The commit's end.
pub(crate) struct Tell {
    slot: Arc<Mutex<Slot>>,
    /// Hangs up when the outcome is there.
    _line: Sender<Infallible>,
}

/// The end of whoever waits.
pub(crate) struct Told {
    slot: Arc<Mutex<Slot>>,
    line: Receiver<Infallible>,
}

enum Slot {
    Awaited,
    There(Outcome),
    /// Nobody waits any more.
    Left,
}

/// Makes the two ends.
pub(crate) fn outcome() -> (Tell, Told) {
    let (sender, line) = bounded(0);
    let slot = Arc::new(Mutex::new(Slot::Awaited));
    (Tell { slot: slot.clone(), _line: sender }, Told { slot, line })
}

impl Tell {
    /// Tells it, or gives it back if nobody waits any more.
    pub(crate) fn tell(self, outcome: Outcome) -> Result<(), Outcome> {
        let mut slot = lock(&self.slot);
        if let Slot::Left = *slot {
            return Err(outcome);
        }
        *slot = Slot::There(outcome);
        Ok(())
    }
}

impl Told {
    /// Waits for it. Whoever waits no longer has not heard it, and the commit is told so.
    pub(crate) fn wait(self, patience: &Patience) -> Result<Outcome, Impatience> {
        let received = patience.receive(&self.line);
        match std::mem::replace(&mut *lock(&self.slot), Slot::Left) {
            Slot::There(outcome) => Ok(outcome),
            // The thread has gone without a word: the cache was closed over it.
            Slot::Awaited | Slot::Left => received.map(|_| Err(CommitError::Closed)),
        }
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_outcome_is_heard_once_or_given_back() {
        let (tell, told) = outcome();
        assert!(tell.tell(Err(CommitError::Closed)).is_ok());
        assert!(matches!(told.wait(&Patience::until(Some(Instant::now()))), Ok(Err(CommitError::Closed))));

        let (tell, told) = outcome();
        assert!(matches!(told.wait(&Patience::until(Some(Instant::now()))), Err(Impatience::Late)));
        assert!(matches!(tell.tell(Err(CommitError::Closed)), Err(Err(CommitError::Closed))));
    }
}

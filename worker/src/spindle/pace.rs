//! How fast the disks are read for what nobody waits for, by all threads together.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::never;

use crate::scan::patience::{Impatience, Patience};

/// Keeps a rate: whoever reads waits until what was read before has had its time.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes a second; none is as fast as it goes.
    rate: Option<u64>,
    /// When the next one may begin.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(rate: Option<u64>) -> Pace {
        Pace { rate, next: Mutex::new(None) }
    }

    /// Waits for the turn of so many bytes.
    ///
    /// # Errors
    /// The caller's patience ends before.
    pub(crate) fn wait(&self, bytes: u64, patience: &Patience) -> Result<(), Impatience> {
        patience.check()?;
        let Some(turn) = self.turn(bytes) else { return Ok(()) };
        let wait = Patience {
            deadline: Some(patience.deadline.map_or(turn, |deadline| deadline.min(turn))),
            ..patience.clone()
        };
        match wait.receive(&never::<()>()) {
            Err(Impatience::Cancelled) => Err(Impatience::Cancelled),
            _ => patience.check(),
        }
    }
    /// Takes a turn for so many bytes, and says when it is. None if there is no rate to keep.
    pub(crate) fn turn(&self, bytes: u64) -> Option<Instant> {
        let time = Duration::from_secs_f64(bytes as f64 / self.rate?.max(1) as f64);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let turn = next.unwrap_or(now).max(now);
        *next = Some(turn + time);
        Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::cancel::CancelToken;

    #[test]
    fn all_threads_together_keep_the_rate() {
        let pace = Pace::new(Some(1_000_000));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..5).for_each(|_| pace.wait(10_000, &Patience::default()).unwrap());
                });
            }
        });
        // 20 x 10 ms, of which the last need not be waited for.
        assert!(begun.elapsed() >= Duration::from_millis(190), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_wait_ends_with_the_callers_patience() {
        let pace = Pace::new(Some(1));
        pace.wait(1 << 40, &Patience::default()).unwrap();
        let soon = Some(Instant::now() + Duration::from_millis(5));
        assert_eq!(pace.wait(1, &Patience::until(soon)), Err(Impatience::Late));
        let cancel = CancelToken::new();
        cancel.cancel();
        let patience = Patience { cancel: Some(cancel), ..Patience::default() };
        assert_eq!(pace.wait(1, &patience), Err(Impatience::Cancelled));
    }
}

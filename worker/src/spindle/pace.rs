//! How fast the disks are read for what nobody waits for, by all threads together.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::never;

use crate::scan::patience::{Impatience, Patience};

/// Keeps a rate: whoever reads waits until what was read before has had its time.
#[derive(Debug)]
pub(crate) struct Pace {
    /// None is as fast as it goes.
    tab: Option<Mutex<Tab>>,
    begun: Instant,
}

/// What was taken and is not paid off: before it is, nothing more begins.
///
/// No more than so many bytes a second, over any span and but for one helping. It saves nothing up: after a pause it is no
/// faster than before. A plain value, without a clock.
#[derive(Debug)]
struct Tab {
    bytes_per_second: u64,
    /// When what was taken is paid off, on the clock of whoever takes.
    paid_at: Duration,
}

impl Pace {
    /// So many bytes a second; none is as fast as it goes.
    pub(crate) fn new(rate: Option<u64>) -> Pace {
        Pace { tab: rate.map(|rate| Mutex::new(Tab::new(rate))), begun: Instant::now() }
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
        let mut tab = self.tab.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.begun.elapsed();
        Some(self.begun + now + tab.take(now, bytes))
    }
}

impl Tab {
    fn new(bytes_per_second: u64) -> Tab {
        Tab { bytes_per_second: bytes_per_second.max(1), paid_at: Duration::ZERO }
    }

    /// Takes a helping, and says how long to wait before it is begun.
    fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let begin = self.paid_at.max(now);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        self.paid_at = begin.saturating_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        begin - now
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

    const MIB: u64 = 1 << 20;

    /// Goal: the rate is kept over every span of time, however helpings and pauses fall. Method: a clock of its own, some
    /// hours of helpings from a fixed seed, and each pair of moments compared.
    #[test]
    fn the_rate_is_kept_over_every_span() {
        let (rate, seed) = (20 * MIB, 7);
        println!("seed {seed}");
        let mut random = seed;
        let mut next = |below: u64| {
            random =
                u64::wrapping_mul(random, 6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let (mut pace, mut now, mut taken) = (Tab::new(rate), Duration::ZERO, Vec::new());
        for _ in 0..500 {
            let bytes = next(4 * MIB) + 1;
            now += pace.take(now, bytes);
            taken.push((now, bytes));
            // Reading takes time, too, and sometimes there is nothing to read for long.
            now += Duration::from_micros(if next(20) == 0 { next(60_000_000) } else { next(100_000) });
        }
        for first in 0..taken.len() {
            let mut sum = 0;
            for (at, bytes) in &taken[first..] {
                // All but the last helping must have been paid off by the time the last one begins.
                let span = (*at - taken[first].0).as_nanos();
                assert!(u128::from(sum) * 1_000_000_000 <= (span + 500) * u128::from(rate), "from {first}");
                sum += bytes;
            }
        }
    }

    #[test]
    fn a_helping_waits_for_the_one_before_and_a_pause_saves_nothing_up() {
        let (second, mut pace) = (Duration::from_secs(1), Tab::new(MIB));
        assert_eq!(pace.take(Duration::ZERO, MIB), Duration::ZERO);
        assert_eq!(pace.take(Duration::ZERO, 2 * MIB), second);
        assert_eq!(pace.take(second, MIB), 2 * second);
        assert_eq!(pace.take(100 * second, MIB), Duration::ZERO);
        assert_eq!(pace.take(100 * second, 1), second);
    }
}

//! Spreads bytes over time: what was taken must be paid off before more is.

use std::time::Duration;

/// No more than so many bytes a second, over any span and but for one helping. It saves nothing up: after a pause it is
/// no faster than before. A plain value, without a clock.
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// When what was taken is paid off, on the clock of whoever takes.
    paid_at: Duration,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Pace {
        assert!(bytes_per_second > 0, "nothing would ever be paid off");
        Pace { bytes_per_second, paid_at: Duration::ZERO }
    }

    /// Takes a helping, and says how long to wait before it is begun.
    pub(crate) fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let begin = self.paid_at.max(now);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        self.paid_at = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        begin - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (mut pace, mut now, mut taken) = (Pace::new(rate), Duration::ZERO, Vec::new());
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
        let (second, mut pace) = (Duration::from_secs(1), Pace::new(MIB));
        assert_eq!(pace.take(Duration::ZERO, MIB), Duration::ZERO);
        assert_eq!(pace.take(Duration::ZERO, 2 * MIB), second);
        assert_eq!(pace.take(second, MIB), 2 * second);
        assert_eq!(pace.take(100 * second, MIB), Duration::ZERO);
        assert_eq!(pace.take(100 * second, 1), second);
    }
}

//! How long something took, many times: counted in steps that double.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Up to a microsecond, up to two, up to four: the last but one ends at 2^38 microseconds, three days.
const STEPS: usize = 40;

/// How long something took, many times. Step `n` holds what took less than 2^n microseconds and not less than half of
/// that; the last one all that took longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WaitTimes {
    /// How often it happened.
    pub count: u64,
    /// How long all of it took, in microseconds.
    pub sum_us: u64,
    /// How often it fell into each step, as far as there is anything.
    pub steps: Vec<u64>,
}

impl WaitTimes {
    /// The same, and so many more that took no time.
    pub(super) fn with_instant(mut self, count: u64) -> WaitTimes {
        if count > 0 {
            self.count += count;
            match self.steps.first_mut() {
                Some(first) => *first += count,
                None => self.steps.push(count),
            }
        }
        self
    }

    /// What the given part of them, 0.5 or 0.99 say, did not exceed: the end of its step. Nothing without any.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let total: u64 = self.steps.iter().sum();
        let wanted = ((part.clamp(0.0, 1.0) * total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let step = self.steps.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(Duration::from_micros(1 << step))
    }
}

/// Counts how long something takes. Written by whoever has waited; each number publishes nothing but itself.
pub(crate) struct WaitMeter {
    pub(super) sum_us: AtomicU64,
    pub(super) steps: [AtomicU64; STEPS],
    #[cfg(feature = "metrics")]
    pub(super) twin: metrics::Histogram,
}

impl Default for WaitMeter {
    fn default() -> WaitMeter {
        WaitMeter {
            sum_us: AtomicU64::new(0),
            steps: [const { AtomicU64::new(0) }; STEPS],
            #[cfg(feature = "metrics")]
            twin: metrics::Histogram::noop(),
        }
    }
}

impl WaitMeter {
    pub(crate) fn took(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(micros, Ordering::Relaxed);
        self.steps[step_of(micros)].fetch_add(1, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.twin.record(took.as_secs_f64());
    }

    pub(crate) fn times(&self) -> WaitTimes {
        let mut steps: Vec<u64> = self.steps.iter().map(|step| step.load(Ordering::Relaxed)).collect();
        steps.truncate(steps.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1));
        WaitTimes { count: steps.iter().sum(), sum_us: self.sum_us.load(Ordering::Relaxed), steps }
    }
}

fn step_of(micros: u64) -> usize {
    ((u64::BITS - micros.leading_zeros()) as usize).min(STEPS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_falls_into_the_step_that_ends_above_it() {
        for (micros, step) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1023, 10), (1024, 11)] {
            assert_eq!(step_of(micros), step, "{micros}");
            assert!(micros < 1 << step, "{micros}");
        }
        assert_eq!(step_of(u64::MAX), STEPS - 1);
    }

    #[test]
    fn a_quantile_is_the_end_of_its_step() {
        let meter = WaitMeter::default();
        assert_eq!(meter.times().quantile(0.5), None);
        for micros in [0, 3, 3, 3, 900] {
            meter.took(Duration::from_micros(micros));
        }
        let times = meter.times();
        assert_eq!((times.count, times.sum_us, times.steps.len()), (5, 909, 11));
        for (part, micros) in [(0.0, 1), (0.2, 1), (0.5, 4), (0.8, 4), (0.81, 1024), (1.0, 1024)] {
            assert_eq!(times.quantile(part), Some(Duration::from_micros(micros)), "{part}");
        }
    }
}

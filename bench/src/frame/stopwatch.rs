//! Wall time and processor time of the part of a run that counts.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Measures what is inside [`Stopwatch::time`], and nothing else of a run.
#[derive(Debug, Default)]
pub(crate) struct Stopwatch {
    pub(super) spent: Option<Spent>,
}

/// What the timed part of a run took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spent {
    pub(crate) wall: Duration,
    /// Of all threads of the process, user and system together.
    pub(crate) processor: Duration,
}

impl Stopwatch {
    /// Does the work and counts its time. Called again, it adds up.
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let processor_before = processor_time();
        let started = Instant::now();
        let result = work();
        let wall = started.elapsed();
        let processor = processor_time().saturating_sub(processor_before);
        let before = self.spent.unwrap_or(Spent { wall: Duration::ZERO, processor: Duration::ZERO });
        self.spent = Some(Spent { wall: before.wall + wall, processor: before.processor + processor });
        result
    }

    /// Nothing if the run timed nothing.
    pub(crate) fn spent(self) -> Option<Spent> {
        self.spent
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).expect("processor time is not negative"),
        u32::try_from(time.tv_nsec).expect("nanoseconds are below a second"),
    )
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn only_what_is_inside_counts_and_sleep_costs_no_processor_time() {
        let mut stopwatch = Stopwatch::default();
        sleep(Duration::from_millis(20));
        let answer = stopwatch.time(|| {
            sleep(Duration::from_millis(5));
            42
        });
        stopwatch.time(|| sleep(Duration::from_millis(5)));
        assert_eq!(answer, 42);
        let spent = stopwatch.spent().unwrap();
        assert!(spent.wall >= Duration::from_millis(10), "{spent:?}");
    }

    #[test]
    fn an_unused_stopwatch_says_so() {
        assert_eq!(Stopwatch::default().spent(), None);
    }
}

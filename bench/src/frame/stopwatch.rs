//! Wall time and processor time of the part of a run that counts.

use std::fs;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Measures what is inside [`Stopwatch::time`], and nothing else of a run.
#[derive(Debug, Default)]
pub(crate) struct Stopwatch {
    pub(super) spent: Option<Spent>,
    /// A process that does a part of the work.
    other: Option<u32>,
}

/// What the timed part of a run took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spent {
    pub(crate) wall: Duration,
    /// Of all threads of the process, user and system together.
    pub(crate) processor: Duration,
    /// The same of the other process, if there is one, in steps of a hundredth of a second.
    pub(crate) elsewhere: Duration,
}

impl Stopwatch {
    /// Counts the processor time of that process, too.
    pub(crate) fn beside(&mut self, process: u32) {
        self.other = Some(process);
    }

    /// Does the work and counts its time. Called again, it adds up.
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let elsewhere = || self.other.map_or(Duration::ZERO, processor_time_of);
        let (processor_before, elsewhere_before) = (processor_time(), elsewhere());
        let started = Instant::now();
        let result = work();
        let wall = started.elapsed();
        let processor = processor_time().saturating_sub(processor_before);
        let elsewhere = elsewhere().saturating_sub(elsewhere_before);
        let before = self.spent.unwrap_or_default();
        self.spent = Some(Spent {
            wall: before.wall + wall,
            processor: before.processor + processor,
            elsewhere: before.elsewhere + elsewhere,
        });
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

/// Nothing of a process that has gone.
fn processor_time_of(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the program's name, which may have anything in it, 11 fields come before the two.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ is 100 wherever Linux runs.
    Duration::from_millis(ticks * 10)
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
    fn the_other_process_counts_by_itself() {
        let mut stopwatch = Stopwatch::default();
        stopwatch.beside(std::process::id());
        stopwatch.time(|| {
            let started = Instant::now();
            while processor_time_of(std::process::id()) < Duration::from_millis(30)
                || started.elapsed() < Duration::from_millis(60)
            {
                std::hint::black_box(started.elapsed());
            }
        });
        assert!(stopwatch.spent().unwrap().elsewhere > Duration::ZERO);
        assert_eq!(processor_time_of(u32::MAX), Duration::ZERO, "there is no such process");
    }

    #[test]
    fn an_unused_stopwatch_says_so() {
        assert_eq!(Stopwatch::default().spent(), None);
    }
}

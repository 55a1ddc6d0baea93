//! A limit and a subject, run in turn.

use std::error::Error;
use std::io;
use std::time::Duration;

use super::prime::{Primer, Steadiness};
use super::statistics::Summary;
use super::stopwatch::{Spent, Stopwatch};

/// What a case is called and what it is held to.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) bench: &'static str,
    pub(crate) name: String,
    /// What the limit does, in two words.
    pub(crate) against: &'static str,
    /// The ratio that we want. Missing it is shown, and fails nothing.
    pub(crate) goal: Option<f64>,
    /// How much memory the timed part touches that was not touched before. The primer sees to it.
    pub(crate) fresh_bytes: u64,
    /// Whether the timed part keeps one thread busy and waits for nothing. Then processor time that
    /// falls behind wall time means that the thread was interrupted, and the run is taken again.
    pub(crate) is_one_busy_thread: bool,
}

/// A busy thread that had less of the time than this was interrupted.
const BUSY_SHARE: f64 = 0.97;

/// How often a run is taken again. After that it counts as it is, and is marked unsteady.
const REPEATS_MAX: u32 = 5;

/// The two sides of a case. Each run does all the work once.
///
/// A run times only what counts; what comes before and after it on the stopwatch (making buffers,
/// summing up what was written) is free. It returns a checksum of its answer, which the frame
/// compares.
pub(crate) trait Pair {
    /// What both sides work through in one run. Rates are in these bytes.
    fn bytes(&self) -> u64;

    /// The answers that are right, found on another road than the runs take.
    fn expected(&self) -> Answers;

    /// The least work that anybody could do for the same end.
    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure>;

    /// What we made.
    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure>;
}

/// A checksum of what each side found. They are equal where both sides find the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answers {
    pub(crate) limit: u64,
    pub(crate) subject: u64,
}

/// Why a case has no figures. A run that errs is not a fast run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Run(Box<dyn Error + Send + Sync>),
    #[error("the {side} answered {found:#018x}, expected {expected:#018x}")]
    Answer { side: &'static str, found: u64, expected: u64 },
    #[error("the {side} timed nothing")]
    Untimed { side: &'static str },
}

impl Failure {
    /// A failure that only the benchmark itself can see.
    pub(crate) fn because(reason: impl Into<String>) -> Failure {
        Failure::Run(reason.into().into())
    }

    /// The message, and those of what caused it.
    pub(crate) fn in_full(&self) -> String {
        let mut text = self.to_string();
        let Failure::Run(error) = self else { return text };
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// A blanket impl would take in `Failure` itself.
macro_rules! failure_from {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                Failure::Run(error.into())
            }
        }
    )*};
}

failure_from!(
    io::Error,
    pelton::FormatError,
    pelton::EncodeError,
    pelton::CacheError,
    pelton::LoadError,
    pelton::LeaseError,
    pelton::RegionError,
    pelton::ScanError,
    pelton::FlushError,
    pelton::SyncError,
    pelton::CloseError,
    pelton::ParcelError,
    pelton::nexus::DialError,
    pelton::nexus::feed::FeedError,
    pelton::nexus::peer::FetchError,
);

/// What all runs of a case came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) limit: SideFigures,
    pub(crate) subject: SideFigures,
    /// Subject's rate over limit's rate, pair by pair.
    pub(crate) ratio: Summary,
    pub(crate) answers: Answers,
    /// How many runs count though memory was slow to come, or though they were interrupted.
    pub(crate) unsteady: u32,
}

/// Medians of one side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SideFigures {
    /// In bytes per second.
    pub(crate) rate: f64,
    /// In seconds for each byte, all threads together.
    pub(crate) processor_cost: f64,
    /// The same of the other process, if there is one.
    pub(crate) elsewhere_cost: f64,
}

/// Runs limit and subject in turn: once to warm up, then `runs` times.
///
/// # Errors
/// The first run that errs, answers wrong or times nothing, warm-up included.
pub(crate) fn run(
    case: &Case,
    pair: &mut impl Pair,
    runs: u32,
    primer: &mut Primer,
) -> Result<Outcome, Failure> {
    assert!(runs > 0);
    let expected = pair.expected();
    let mut unsteady = 0;
    let mut limits = Vec::new();
    let mut subjects = Vec::new();
    for run in 0..=runs {
        let (limit, limit_steadiness) =
            sample(case, primer, "limit", expected.limit, |stopwatch| pair.limit(stopwatch))?;
        let (subject, subject_steadiness) =
            sample(case, primer, "subject", expected.subject, |stopwatch| pair.subject(stopwatch))?;
        if run == 0 {
            continue;
        }
        limits.push(limit);
        subjects.push(subject);
        for steadiness in [limit_steadiness, subject_steadiness] {
            unsteady += u32::from(steadiness == Steadiness::Unsteady);
        }
    }
    let ratios = limits.iter().zip(&subjects).map(|(limit, subject)| ratio(*limit, *subject));
    Ok(Outcome {
        limit: SideFigures::of(&limits, pair.bytes()),
        subject: SideFigures::of(&subjects, pair.bytes()),
        ratio: Summary::of(ratios),
        answers: expected,
        unsteady,
    })
}

/// Takes one run of one side, as often as it needs to be one that counts.
fn sample(
    case: &Case,
    primer: &mut Primer,
    side: &'static str,
    expected: u64,
    mut run: impl FnMut(&mut Stopwatch) -> Result<u64, Failure>,
) -> Result<(Spent, Steadiness), Failure> {
    let mut repeats = 0;
    loop {
        let memory = primer.before_sample(case.fresh_bytes);
        let mut stopwatch = Stopwatch::default();
        let found = run(&mut stopwatch)?;
        if found != expected {
            return Err(Failure::Answer { side, found, expected });
        }
        let spent = match stopwatch.spent() {
            Some(spent) if !spent.wall.is_zero() => spent,
            _ => return Err(Failure::Untimed { side }),
        };
        if !(case.is_one_busy_thread && spent.was_interrupted()) {
            return Ok((spent, memory));
        }
        if repeats == REPEATS_MAX {
            return Ok((spent, Steadiness::Unsteady));
        }
        repeats += 1;
    }
}

impl Spent {
    fn was_interrupted(self) -> bool {
        self.processor.as_secs_f64() < BUSY_SHARE * self.wall.as_secs_f64()
    }
}

/// Both sides do the same bytes, so the ratio of the rates is that of the times, upside down.
fn ratio(limit: Spent, subject: Spent) -> f64 {
    limit.wall.as_secs_f64() / subject.wall.as_secs_f64()
}

impl SideFigures {
    fn of(samples: &[Spent], bytes: u64) -> SideFigures {
        let bytes = bytes as f64;
        let cost = |time: fn(&Spent) -> Duration| {
            Summary::of(samples.iter().map(|spent| time(spent).as_secs_f64() / bytes)).median
        };
        SideFigures {
            rate: Summary::of(samples.iter().map(|spent| bytes / spent.wall.as_secs_f64())).median,
            processor_cost: cost(|spent| spent.processor),
            elsewhere_cost: cost(|spent| spent.elsewhere),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;
    use crate::frame::knobs::{Knobs, Size};

    const BOTH: Answers = Answers { limit: 49_995_000, subject: 49_995_000 };

    /// Sums the same numbers forwards and backwards, and writes down whose turn it was.
    struct SumBothWays {
        numbers: Vec<u64>,
        expected: Answers,
        turns: String,
        subject_times: bool,
    }

    impl SumBothWays {
        fn new() -> SumBothWays {
            let numbers: Vec<u64> = (0..10_000).collect();
            SumBothWays { numbers, expected: BOTH, turns: String::new(), subject_times: true }
        }
    }

    impl Pair for SumBothWays {
        fn bytes(&self) -> u64 {
            80_000
        }

        fn expected(&self) -> Answers {
            self.expected
        }

        fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
            self.turns.push('L');
            Ok(stopwatch.time(|| black_box(&self.numbers).iter().sum()))
        }

        fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
            self.turns.push('S');
            let numbers = black_box(&self.numbers);
            if !self.subject_times {
                return Ok(numbers.iter().rev().sum());
            }
            Ok(stopwatch.time(|| numbers.iter().rev().sum()))
        }
    }

    fn case() -> Case {
        Case {
            bench: "test",
            name: "sum".to_owned(),
            against: "sum",
            goal: None,
            fresh_bytes: 0,
            is_one_busy_thread: false,
        }
    }

    fn primer() -> Primer {
        let settings = ["prime_bytes=1MiB", "probe_bytes=1MiB"].map(|text| text.parse().unwrap());
        let mut primer = Primer::new(&mut Knobs::new(Size::Small, settings));
        primer.start();
        primer
    }

    #[test]
    fn sides_take_turns_after_one_pair_that_is_not_counted() {
        let mut pair = SumBothWays::new();
        let outcome = run(&case(), &mut pair, 3, &mut primer()).unwrap();
        assert_eq!(pair.turns, "LSLSLSLS");
        assert_eq!(outcome.answers, BOTH);
        assert!(outcome.ratio.min <= outcome.ratio.median && outcome.ratio.median <= outcome.ratio.max);
        assert!(outcome.limit.rate > 0.0 && outcome.subject.rate > 0.0);
    }

    #[test]
    fn a_wrong_answer_of_either_side_fails_the_case() {
        for side in ["limit", "subject"] {
            let mut pair = SumBothWays::new();
            match side {
                "limit" => pair.expected.limit += 1,
                _ => pair.expected.subject += 1,
            }
            let failure = run(&case(), &mut pair, 1, &mut primer()).unwrap_err();
            assert_eq!(
                failure.to_string(),
                format!("the {side} answered 0x0000000002fadcf8, expected 0x0000000002fadcf9"),
            );
        }
    }

    #[test]
    fn a_side_that_timed_nothing_fails_the_case() {
        let mut pair = SumBothWays::new();
        pair.subject_times = false;
        let failure = run(&case(), &mut pair, 1, &mut primer()).unwrap_err();
        assert_eq!(failure.to_string(), "the subject timed nothing");
    }

    /// Its first subject runs look as if others had had the processor.
    struct Interrupted {
        sum: SumBothWays,
        interruptions: u32,
    }

    impl Pair for Interrupted {
        fn bytes(&self) -> u64 {
            self.sum.bytes()
        }

        fn expected(&self) -> Answers {
            self.sum.expected()
        }

        fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
            let answer = self.sum.limit(stopwatch)?;
            stopwatch.spent = Some(spent(10, 10));
            Ok(answer)
        }

        fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
            let answer = self.sum.subject(stopwatch)?;
            let is_interrupted = self.interruptions > 0;
            self.interruptions -= u32::from(is_interrupted);
            stopwatch.spent = Some(if is_interrupted { spent(15, 10) } else { spent(10, 10) });
            Ok(answer)
        }
    }

    fn spent(wall: u64, processor: u64) -> Spent {
        let (wall, processor) = (Duration::from_millis(wall), Duration::from_millis(processor));
        Spent { wall, processor, ..Spent::default() }
    }

    #[test]
    fn an_interrupted_run_of_a_busy_thread_is_taken_again() {
        let case = Case { is_one_busy_thread: true, ..case() };
        let mut pair = Interrupted { sum: SumBothWays::new(), interruptions: 2 };
        let outcome = run(&case, &mut pair, 1, &mut primer()).unwrap();
        assert_eq!(pair.sum.turns, "LSSSLS");
        assert_eq!((outcome.ratio.median, outcome.unsteady), (1.0, 0));

        // One that always is ends, and says so.
        let mut pair = Interrupted { sum: SumBothWays::new(), interruptions: u32::MAX };
        let outcome = run(&case, &mut pair, 1, &mut primer()).unwrap();
        assert_eq!(outcome.unsteady, 1);
    }

    #[test]
    fn a_case_that_may_wait_is_not_taken_again() {
        let mut pair = Interrupted { sum: SumBothWays::new(), interruptions: u32::MAX };
        let outcome = run(&case(), &mut pair, 1, &mut primer()).unwrap();
        assert_eq!((pair.sum.turns.as_str(), outcome.unsteady), ("LSLS", 0));
    }

    #[test]
    fn a_subject_that_takes_twice_as_long_has_ratio_one_half() {
        assert_eq!(ratio(spent(10, 10), spent(20, 10)), 0.5);
        let figures =
            SideFigures::of(&[spent(1000, 2000), spent(2000, 4000), spent(500, 1000)], 4_000_000_000);
        assert_eq!(figures, SideFigures { rate: 4e9, processor_cost: 0.5e-9, elsewhere_cost: 0.0 });
    }
}

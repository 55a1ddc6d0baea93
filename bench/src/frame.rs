//! How every benchmark measures and prints.
//!
//! ```text
//! Knobs -> Primer -> for each case:  warm up | probe limit probe subject | probe limit ... -> Report
//!                                    (1 pair)         (pair 1)                (pair 2)
//! ```
//!
//! What must stay true: a run whose answer is wrong is a failed case, never a figure; limit and
//! subject take turns; nothing is timed while memory is slow to come (see [`Primer`]).
mod gauge;
mod knobs;
mod machine;
mod memory;
mod pairs;
mod prime;
mod report;
mod resident;
mod statistics;
mod stopwatch;

use std::io;

pub(crate) use gauge::{Gauge, GaugeCase};
pub(crate) use knobs::{Knobs, Setting, Size};
pub(crate) use machine::machine;
pub(crate) use memory::Memory;
pub(crate) use pairs::{Answers, Case, Failure, Pair};
pub(crate) use prime::Primer;
pub(crate) use report::{Format, Report};
pub(crate) use resident::watch_memory;
pub(crate) use stopwatch::Stopwatch;

use report::Row;

/// Runs the cases of all benchmarks of one call.
pub(crate) struct Frame {
    seed: u64,
    runs: u32,
    only: Option<String>,
    primer: Primer,
    report: Report,
    cases_run: u32,
    cases_failed: u32,
}

impl Frame {
    /// Primes the memory and says how that went.
    pub(crate) fn new(
        seed: u64,
        runs: u32,
        only: Option<String>,
        mut primer: Primer,
        report: Report,
    ) -> io::Result<Frame> {
        let primed = primer.start();
        report.say(primed)?;
        report.head()?;
        Ok(Frame { seed, runs, only, primer, report, cases_run: 0, cases_failed: 0 })
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Tells people something about the cases that follow.
    pub(crate) fn say(&self, line: &str) -> io::Result<()> {
        self.report.say(line)
    }

    /// Runs one case and prints its row. `build` makes the data, untimed, and not at all if the
    /// case was not asked for.
    ///
    /// # Errors
    /// Only if the row could not be written. A case that fails has a row that says so.
    pub(crate) fn case<P: Pair>(
        &mut self,
        case: Case,
        build: impl FnOnce() -> Result<P, Failure>,
    ) -> io::Result<()> {
        if self.only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
            return Ok(());
        }
        self.cases_run += 1;
        let outcome = build().and_then(|mut pair| pairs::run(&case, &mut pair, self.runs, &mut self.primer));
        self.cases_failed += u32::from(outcome.is_err());
        self.report.row(Row { case, seed: self.seed, runs: self.runs, outcome })
    }

    /// Measures something else than speed, once, and prints its row.
    ///
    /// # Errors
    /// Only if the row could not be written.
    pub(crate) fn gauge(
        &mut self,
        case: GaugeCase,
        measure: impl FnOnce() -> Result<Gauge, Failure>,
    ) -> io::Result<()> {
        if self.only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
            return Ok(());
        }
        self.cases_run += 1;
        let outcome = measure();
        self.cases_failed += u32::from(outcome.is_err());
        self.report.gauge(&case, self.seed, outcome)
    }

    /// Prints what stands below the table, and says whether every case passed.
    pub(crate) fn finish(self) -> io::Result<bool> {
        self.report.foot()?;
        self.report.say(self.primer.summary())?;
        if self.cases_run == 0 {
            self.report.say("no case has that name: nothing was run")?;
        }
        Ok(self.cases_run > 0 && self.cases_failed == 0)
    }
}

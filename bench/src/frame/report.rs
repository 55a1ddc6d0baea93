//! Results, for people and for scripts.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use super::gauge::{Gauge, GaugeCase};
use super::pairs::{Answers, Case, Failure, Outcome};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// All on stdout.
    Table,
    /// One line for each case on stdout, what only people want on stderr.
    Json,
}

/// Prints. Rows come as cases end, so that a long run shows where it is.
pub(crate) struct Report {
    format: Format,
    /// Shown below the table: it would not fit into a row, and one looks at it rarely.
    answers: Vec<(String, Answers)>,
    /// The same for what a second process has taken.
    elsewhere: Vec<String>,
    unsteady_rows: u32,
}

/// One case and what it came to.
pub(crate) struct Row {
    pub(crate) case: Case,
    pub(crate) seed: u64,
    pub(crate) runs: u32,
    pub(crate) outcome: Result<Outcome, Failure>,
}

const HEAD: &str = "\
case                     against         GB/s s/GB  limit s/GB  ratio spread    goal verdict
------------------------ ------------- ------ ---- ------ ---- ------ --------- ---- -------";

const LEGEND: &str = "\
GB/s, s/GB: bytes and processor seconds, of the subject, then of the limit; 1 GB is 10^9 bytes.
ratio: subject to limit, median of all pairs; spread: the lowest and the highest.";

impl Report {
    pub(crate) fn new(format: Format) -> Report {
        Report { format, answers: Vec::new(), elsewhere: Vec::new(), unsteady_rows: 0 }
    }

    /// A line for people.
    pub(crate) fn say(&self, line: impl fmt::Display) -> io::Result<()> {
        match self.format {
            Format::Table => writeln!(io::stdout(), "{line}"),
            Format::Json => writeln!(io::stderr(), "{line}"),
        }
    }

    pub(crate) fn head(&self) -> io::Result<()> {
        match self.format {
            Format::Table => self.say(format_args!("\n{HEAD}")),
            Format::Json => Ok(()),
        }
    }

    pub(crate) fn row(&mut self, row: Row) -> io::Result<()> {
        if let Err(failure) = &row.outcome {
            writeln!(
                io::stderr(),
                "pelton-bench: {} against {}: {}",
                row.case.name,
                row.case.against,
                failure.in_full()
            )?;
        }
        match self.format {
            Format::Table => writeln!(io::stdout(), "{}", row.line())?,
            Format::Json => {
                if let Some(line) = row.json() {
                    writeln!(io::stdout(), "{line}")?;
                }
            }
        }
        if let Ok(outcome) = &row.outcome {
            self.unsteady_rows += u32::from(outcome.unsteady > 0);
            let (subject, limit) = (outcome.subject.elsewhere_cost, outcome.limit.elsewhere_cost);
            if subject > 0.0 || limit > 0.0 {
                let (name, against) = (&row.case.name, row.case.against);
                let (subject, limit) = (subject * 1e9, limit * 1e9);
                self.elsewhere.push(format!("{name}: {subject:.2}, {against}: {limit:.2}"));
            }
            self.answers.push((format!("{} against {}", row.case.name, row.case.against), outcome.answers));
        }
        Ok(())
    }

    pub(crate) fn gauge(
        &mut self,
        case: &GaugeCase,
        seed: u64,
        outcome: Result<Gauge, Failure>,
    ) -> io::Result<()> {
        let gauge = match outcome {
            Ok(gauge) => gauge,
            Err(failure) => {
                writeln!(io::stderr(), "pelton-bench: {}: {}", case.name, failure.in_full())?;
                if self.format == Format::Table {
                    writeln!(io::stdout(), "{:<24} {:<13} failed", case.name, case.against)?;
                }
                return Ok(());
            }
        };
        match self.format {
            Format::Table => writeln!(io::stdout(), "{}", gauge.line(case)),
            Format::Json => writeln!(io::stdout(), "{}", gauge.json(case, seed)),
        }
    }

    pub(crate) fn foot(&self) -> io::Result<()> {
        if self.format == Format::Table {
            self.say(format_args!("\n{LEGEND}"))?;
        }
        if self.unsteady_rows > 0 {
            self.say(
                "verdict with ~: some runs were interrupted, or memory was slow to come, again and again.",
            )?;
        }
        if !self.elsewhere.is_empty() {
            self.say("\ns/GB of the other process, which the table does not count:")?;
        }
        for line in &self.elsewhere {
            self.say(format_args!("  {line}"))?;
        }
        if !self.answers.is_empty() {
            self.say("\nchecksums of the answers, right in every run:")?;
        }
        for (name, answers) in &self.answers {
            if answers.limit == answers.subject {
                self.say(format_args!("  {name}: {:016x} on both sides", answers.limit))?;
            } else {
                self.say(format_args!(
                    "  {name}: limit {:016x}, subject {:016x}",
                    answers.limit, answers.subject
                ))?;
            }
        }
        Ok(())
    }
}

impl Row {
    /// At most 100 columns.
    fn line(&self) -> String {
        let Case { name, against, goal, .. } = &self.case;
        let Ok(outcome) = &self.outcome else {
            return format!("{name:<24} {against:<13} failed");
        };
        let spread = format!("{:.2}-{:.2}", outcome.ratio.min, outcome.ratio.max);
        let goal_text = goal.map_or(String::from("-"), |goal| format!("{goal:.2}"));
        let verdict = match goal {
            None => "-",
            Some(goal) if outcome.ratio.median >= *goal => "met",
            Some(_) => "short",
        };
        let mark = if outcome.unsteady > 0 { "~" } else { "" };
        let (subject, limit) = (outcome.subject, outcome.limit);
        format!(
            "{name:<24} {against:<13} {:>6.2} {:>4.2} {:>6.2} {:>4.2} {:>6.3} {spread:<9} {goal_text:>4} {verdict}{mark}",
            subject.rate / 1e9,
            subject.processor_cost * 1e9,
            limit.rate / 1e9,
            limit.processor_cost * 1e9,
            outcome.ratio.median,
        )
    }

    /// Nothing for a case that failed: scripts see the exit code, and no figure that they could take for one.
    fn json(&self) -> Option<String> {
        let outcome = self.outcome.as_ref().ok()?;
        let line = JsonLine {
            bench: self.case.bench,
            case: &self.case.name,
            value: outcome.subject.rate / 1e9,
            unit: "GB/s",
            against: self.case.against,
            ratio: outcome.ratio.median,
            runs: self.runs,
            seed: self.seed,
            goal: self.case.goal,
            spread: [outcome.ratio.min, outcome.ratio.max],
            limit_value: outcome.limit.rate / 1e9,
            cpu_seconds_per_gb: outcome.subject.processor_cost * 1e9,
            limit_cpu_seconds_per_gb: outcome.limit.processor_cost * 1e9,
            other_process_seconds_per_gb: outcome.subject.elsewhere_cost * 1e9,
            limit_other_process_seconds_per_gb: outcome.limit.elsewhere_cost * 1e9,
            answer: format!("{:016x}", outcome.answers.subject),
            limit_answer: format!("{:016x}", outcome.answers.limit),
            unsteady_runs: outcome.unsteady,
        };
        Some(serde_json::to_string(&line).expect("numbers and text have a JSON form"))
    }
}

/// The first eight fields, in this order, are the same for every benchmark ever. `spread` is
/// [lowest, highest].
#[derive(Serialize)]
struct JsonLine<'a> {
    bench: &'a str,
    case: &'a str,
    value: f64,
    unit: &'a str,
    against: &'a str,
    ratio: f64,
    runs: u32,
    seed: u64,
    goal: Option<f64>,
    spread: [f64; 2],
    limit_value: f64,
    cpu_seconds_per_gb: f64,
    limit_cpu_seconds_per_gb: f64,
    /// Nothing where there is one process.
    #[serde(skip_serializing_if = "is_nothing")]
    other_process_seconds_per_gb: f64,
    #[serde(skip_serializing_if = "is_nothing")]
    limit_other_process_seconds_per_gb: f64,
    answer: String,
    limit_answer: String,
    unsteady_runs: u32,
}

fn is_nothing(seconds: &f64) -> bool {
    *seconds == 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::pairs::SideFigures;
    use crate::frame::statistics::Summary;

    fn row(goal: Option<f64>) -> Row {
        Row {
            case: Case {
                bench: "region",
                name: "iterate 128 to 384 bytes".to_owned(),
                against: "plain u64 sum",
                goal,
                fresh_bytes: 0,
                is_one_busy_thread: true,
            },
            seed: 7,
            runs: 5,
            outcome: Ok(Outcome {
                limit: SideFigures { rate: 128e9, processor_cost: 0.01e-9, elsewhere_cost: 0.0 },
                subject: SideFigures { rate: 64e9, processor_cost: 0.02e-9, elsewhere_cost: 0.0 },
                ratio: Summary { median: 0.5, min: 0.25, max: 0.75 },
                answers: Answers { limit: 1, subject: 2 },
                unsteady: 0,
            }),
        }
    }

    #[test]
    fn rows_stand_under_their_heads_within_100_columns() {
        let line = row(Some(0.5)).line();
        assert_eq!(
            line,
            "iterate 128 to 384 bytes plain u64 sum  64.00 0.02 128.00 0.01  0.500 0.25-0.75 0.50 met",
        );
        assert!(HEAD.lines().chain(LEGEND.lines()).all(|line| line.chars().count() <= 100));
        let (head, rule) = HEAD.split_once('\n').unwrap();
        assert_eq!(rule.rfind(' '), head.find(" verdict"));
        assert_eq!(line.find(" met"), head.find(" verdict"));
    }

    #[test]
    fn a_row_says_plainly_what_is_short_unsteady_failed_or_without_a_goal() {
        assert!(row(Some(0.51)).line().ends_with(" 0.51 short"));
        assert!(row(None).line().ends_with("    - -"));
        let mut unsteady = row(Some(0.51));
        unsteady.outcome.as_mut().unwrap().unsteady = 1;
        assert!(unsteady.line().ends_with(" short~"));
        let failed = Row { outcome: Err(Failure::because("gone")), ..row(None) };
        assert!(failed.line().ends_with(" failed"));
        assert_eq!(failed.json(), None);
    }

    /// Scripts depend on these bytes.
    #[test]
    fn json_lines_begin_with_the_agreed_fields() {
        let line = row(Some(0.9)).json().unwrap();
        assert!(
            line.starts_with(
                "{\"bench\":\"region\",\"case\":\"iterate 128 to 384 bytes\",\"value\":64.0,\"unit\":\"GB/s\",\
                 \"against\":\"plain u64 sum\",\"ratio\":0.5,\"runs\":5,\"seed\":7,\
                 \"goal\":0.9,\"spread\":[0.25,0.75],"
            ),
            "{line}",
        );
        assert!(!line.contains('\n'));
    }
}

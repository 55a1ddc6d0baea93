//! `pelton evict`, `flush`, `erase`, `pin`, `unpin` and `warm`: what is done to many slices at once.

use std::sync::Arc;

use clap::Args;
use pelton::nexus::node::{Operated, OperatedOutcome};
use pelton::units::{Size, count, parse_size};
use pelton::{KeyPattern, Operation, Residence};
use serde::Serialize;

use super::choice::{Choice, filter_help};
use super::ls::json;
use super::place::How;
use super::table::Table;
use crate::failure::{Failure, one_line};
use crate::progress::Progress;
use crate::stdout::Stdout;

/// The command line of `evict`.
#[derive(Args)]
#[command(after_long_help = filter_help())]
pub(crate) struct Evict {
    /// Which slices, as domain/view@clock#slice; a part that is left out, or is *, means all [default: *]
    pattern: Option<KeyPattern>,
    #[command(flatten)]
    choice: Choice,
    /// Leave alone what the page cache holds of the files
    #[arg(long)]
    keep_cache: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// The command line of `flush` and `erase`.
#[derive(Args)]
#[command(after_long_help = filter_help())]
pub(crate) struct Remove {
    /// Which slices, as domain/view@clock#slice; a part that is left out, or is *, means all
    pattern: KeyPattern,
    #[command(flatten)]
    choice: Choice,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do it also if it is more than half of what the cache has
    #[arg(long)]
    yes: bool,
}

/// The command line of `pin` and `unpin`.
#[derive(Args)]
#[command(after_long_help = filter_help())]
pub(crate) struct Pin {
    /// Which slices, as domain/view@clock#slice; a part that is left out, or is *, means all
    pattern: KeyPattern,
    #[command(flatten)]
    choice: Choice,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// The command line of `warm`.
#[derive(Args)]
#[command(after_long_help = filter_help())]
pub(crate) struct Warm {
    /// Which slices, as domain/view@clock#slice; a part that is left out, or is *, means all [default: *]
    pattern: Option<KeyPattern>,
    #[command(flatten)]
    choice: Choice,
    /// How many bytes a second to read at most, like 200MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    rate: Option<u64>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Evict {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let place = self.choice.place("evict", self.choice.config()?)?;
        let selection = self.choice.selection(self.pattern.as_ref());
        let operation = Operation::Evict { keep_cache: self.keep_cache };
        let how = How { dry_run: self.dry_run, ..How::default() };
        tell(operation, &place.operate(&selection, operation, &how)?, self.dry_run, self.choice.json)
    }
}

impl Remove {
    pub(crate) fn run(self, operation: Operation) -> Result<(), Failure> {
        let place = self.choice.place(words(operation).infinitive, self.choice.config()?)?;
        let selection = self.choice.selection(Some(&self.pattern));
        let how = How { dry_run: self.dry_run, confirmed: self.yes, ..How::default() };
        tell(operation, &place.operate(&selection, operation, &how)?, self.dry_run, self.choice.json)
    }
}

impl Pin {
    pub(crate) fn run(self, operation: Operation) -> Result<(), Failure> {
        let place = self.choice.place(words(operation).infinitive, self.choice.config()?)?;
        let selection = self.choice.selection(Some(&self.pattern));
        let how = How { dry_run: self.dry_run, ..How::default() };
        let results = place.operate(&selection, operation, &how)?;
        // It is on the disk before it is told.
        place.close()?;
        tell(operation, &results, self.dry_run, self.choice.json)
    }
}

impl Warm {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut config = self.choice.config()?;
        // Memory of its own would go with this process. What the page cache has stays.
        config.residence = Residence::Map;
        let place = self.choice.place("warm", config)?;
        let selection = self.choice.selection(self.pattern.as_ref());
        let progress = Arc::new(Progress::new("warming", Some(place.file_bytes(&selection)?)));
        let (dry_run, rate) = (self.dry_run, self.rate);
        let how = How { dry_run, rate, progress: Some(progress), ..How::default() };
        let results = place.operate(&selection, Operation::Warm, &how)?;
        drop(how);
        tell(Operation::Warm, &results, self.dry_run, self.choice.json)
    }
}

/// How an operation is called.
struct Words {
    infinitive: &'static str,
    done: &'static str,
}

fn words(operation: Operation) -> Words {
    let (infinitive, done) = match operation {
        Operation::Evict { .. } => ("evict", "evicted"),
        Operation::Flush => ("flush", "flushed"),
        Operation::Erase => ("erase", "erased"),
        Operation::Pin => ("pin", "pinned"),
        Operation::Unpin => ("unpin", "unpinned"),
        Operation::Warm => ("warm", "warmed"),
        Operation::Verify => ("verify", "verified"),
        _ => ("change", "changed"),
    };
    Words { infinitive, done }
}

/// Says what came of it: a line for each slice, and one for all.
fn tell(operation: Operation, results: &[Operated], dry_run: bool, as_json: bool) -> Result<(), Failure> {
    let mut stdout = Stdout::open()?;
    let Words { done, .. } = words(operation);
    let mut sums = Sums::default();
    let mut table = Table::new(&["slice", ">bytes", "outcome"]);
    for result in results {
        let told = Told::of(result, dry_run);
        sums.add(&told);
        if as_json {
            stdout.line(json(&told))?;
            continue;
        }
        let text = match (told.outcome, &told.why) {
            ("done", _) if dry_run => format!("would be {done}"),
            ("done", _) => done.to_owned(),
            ("leaving", _) => "goes with its last lease".to_owned(),
            ("nothing", _) => "nothing to do".to_owned(),
            (_, why) => format!("not {done}: {}", short(result).or(why.clone()).unwrap_or_default()),
        };
        table.row(vec![told.key, Size(told.bytes).to_string(), text]);
    }
    if !as_json {
        if !results.is_empty() {
            table.lines().try_for_each(|line| stdout.line(line))?;
        }
        let slices = count(results.len() as u64, "slice");
        let would_be = if dry_run { "would be " } else { "" };
        let (number, bytes) = (sums.done, Size(sums.done_bytes));
        stdout.line(match results.len() {
            0 => format!("nothing matches, so nothing was {done}"),
            _ if number == 0 => format!("{slices}: none {would_be}{done}"),
            _ => format!("{slices}: {number} {would_be}{done}, {bytes}"),
        })?;
    }
    stdout.flush()?;
    match sums.not_done {
        0 => Ok(()),
        number => Err(Failure::Cache(format!(
            "{number} of {} {} {done}",
            count(results.len() as u64, "slice"),
            match (number, dry_run) {
                (_, true) => "would not be",
                (1, false) => "was not",
                (_, false) => "were not",
            }
        ))),
    }
}

/// What is said shorter in a line that has the bytes already.
fn short(result: &Operated) -> Option<String> {
    result.free_bytes.map(|free| format!("no room, {} are free", Size(free)))
}

#[derive(Default)]
struct Sums {
    done: u64,
    done_bytes: u64,
    not_done: u64,
}

impl Sums {
    fn add(&mut self, told: &Told) {
        match told.outcome {
            "done" | "leaving" => {
                self.done += 1;
                self.done_bytes += told.bytes;
            }
            "nothing" => {}
            _ => self.not_done += 1,
        }
    }
}

/// What came of it for one slice, as it stands in the JSON.
#[derive(Serialize)]
struct Told {
    key: String,
    outcome: &'static str,
    why: Option<String>,
    bytes: u64,
    seconds: f64,
    dry_run: bool,
}

impl Told {
    fn of(result: &Operated, dry_run: bool) -> Told {
        let outcome = match result.outcome {
            OperatedOutcome::Done => "done",
            OperatedOutcome::Leaving => "leaving",
            OperatedOutcome::Nothing => "nothing",
            OperatedOutcome::Refused => "refused",
            OperatedOutcome::Failed | OperatedOutcome::Damaged => "failed",
            _ => "other",
        };
        let why = result.why.as_deref().map(one_line);
        let (bytes, seconds) = (result.bytes, result.took.as_secs_f64());
        Told { key: one_line(&result.key), outcome, why, bytes, seconds, dry_run }
    }
}

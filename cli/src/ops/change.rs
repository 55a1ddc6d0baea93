//! `pelton evict`, `flush`, `erase`, `pin`, `unpin` and `warm`: what is done to many slices at once.

use std::sync::Arc;

use clap::Args;
use pelton::units::{Size, count, parse_size};
use pelton::{
    Cache, KeyPattern, OnProgress, Operation, OperationOptions, OperationOutcome, OperationRefusal,
    OperationResult, Residence, Selected, Selection,
};
use serde::Serialize;

use super::choice::{Choice, filter_help};
use super::ls::json;
use super::table::Table;
use crate::failure::Failure;
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
        let cache = self.choice.open(self.choice.config()?)?;
        let selection = self.choice.selection(self.pattern.as_ref());
        let operation = Operation::Evict { keep_cache: self.keep_cache };
        let mut options = OperationOptions::default();
        options.dry_run = self.dry_run;
        tell(operation, &cache.operate(&selection, operation, &options), self.dry_run, self.choice.json)
    }
}

impl Remove {
    pub(crate) fn run(self, operation: Operation) -> Result<(), Failure> {
        let cache = self.choice.open(self.choice.config()?)?;
        let selection = self.choice.selection(Some(&self.pattern));
        if !self.yes && !self.dry_run {
            check_half(&cache, &selection, operation)?;
        }
        let mut options = OperationOptions::default();
        options.dry_run = self.dry_run;
        tell(operation, &cache.operate(&selection, operation, &options), self.dry_run, self.choice.json)
    }
}

impl Pin {
    pub(crate) fn run(self, operation: Operation) -> Result<(), Failure> {
        let cache = self.choice.open(self.choice.config()?)?;
        let selection = self.choice.selection(Some(&self.pattern));
        let mut options = OperationOptions::default();
        options.dry_run = self.dry_run;
        let results = cache.operate(&selection, operation, &options);
        // It is on the disk before it is told.
        cache.close(None).map_err(|error| Failure::cache(&error))?;
        tell(operation, &results, self.dry_run, self.choice.json)
    }
}

/// Refuses to remove more than half of what there is: that is more often a slip than a wish.
fn check_half(cache: &Cache, selection: &Selection, operation: Operation) -> Result<(), Failure> {
    let sum = |found: &[Selected]| {
        let bytes = |snap: &pelton::SnapStatus| snap.file_bytes.max(snap.memory_bytes);
        found.iter().flat_map(|one| &one.snaps).map(bytes).sum::<u64>()
    };
    let found = cache.select(selection);
    let (part, whole) = (sum(&found), sum(&cache.select(&Selection::new(KeyPattern::ALL))));
    if part <= whole / 2 {
        return Ok(());
    }
    let slices = found.iter().map(|one| one.snaps.len()).sum::<usize>();
    Err(Failure::Cache(format!(
        "that would {} {}, {} of the {} in the cache: give --yes to do so, or --dry-run to see which",
        words(operation).infinitive,
        count(slices as u64, "slice"),
        Size(part),
        Size(whole),
    )))
}

impl Warm {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut config = self.choice.config()?;
        // Memory of its own would go with this process. What the page cache has stays.
        config.residence = Residence::Map;
        let cache = self.choice.open(config)?;
        let selection = self.choice.selection(self.pattern.as_ref());
        let bytes_total = cache.select(&selection).iter().map(Selected::file_bytes).sum();
        let progress = Arc::new(Progress::new("warming", Some(bytes_total)));
        let mut options = OperationOptions::default();
        (options.dry_run, options.rate) = (self.dry_run, self.rate);
        options.on_progress = Some(follow(&progress));
        let results = cache.operate(&selection, Operation::Warm, &options);
        drop((options, progress));
        tell(Operation::Warm, &results, self.dry_run, self.choice.json)
    }
}

/// Moves a bar.
pub(super) fn follow(progress: &Arc<Progress>) -> OnProgress {
    let progress = progress.clone();
    OnProgress::new(move |bytes| progress.advance(usize::try_from(bytes).unwrap_or(usize::MAX)))
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
fn tell(
    operation: Operation,
    results: &[OperationResult],
    dry_run: bool,
    as_json: bool,
) -> Result<(), Failure> {
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
            (_, why) => format!("not {done}: {}", short(&result.outcome).or(why.clone()).unwrap_or_default()),
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
fn short(outcome: &OperationOutcome) -> Option<String> {
    match outcome {
        OperationOutcome::Refused(OperationRefusal::NoRoom { free, .. }) => {
            Some(format!("no room, {} are free", Size(*free)))
        }
        _ => None,
    }
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
    fn of(result: &OperationResult, dry_run: bool) -> Told {
        let (outcome, why) = match &result.outcome {
            OperationOutcome::Done => ("done", None),
            OperationOutcome::Leaving => ("leaving", None),
            OperationOutcome::Nothing => ("nothing", None),
            OperationOutcome::Refused(why) => ("refused", Some(why.to_string())),
            OperationOutcome::Failed(error) => ("failed", Some(Failure::cache(error).to_string())),
            _ => ("other", None),
        };
        let (bytes, seconds) = (result.bytes, result.took.as_secs_f64());
        Told { key: result.key.to_string(), outcome, why, bytes, seconds, dry_run }
    }
}

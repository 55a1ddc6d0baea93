//! `pelton verify`: whether every byte of the cache's files is as it was written.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use pelton::nexus::node::{Damage, Operated, OperatedOutcome};
use pelton::units::{Size, count, parse_size};
use pelton::{KeyPattern, Operation};
use serde::Serialize;

use super::choice::{Choice, dropped, filter_help, key_of};
use super::ls::json;
use super::place::{How, Place};
use super::table::Table;
use crate::failure::{Failure, one_line, shown};
use crate::progress::Progress;
use crate::say;
use crate::stdout::Stdout;

/// The command line of `verify`.
#[derive(Args)]
#[command(after_long_help = filter_help())]
pub(crate) struct Verify {
    /// Which slices, as domain/view@clock#slice; a part that is left out, or is *, means all [default: *]
    pattern: Option<KeyPattern>,
    #[command(flatten)]
    choice: Choice,
    /// How many bytes a second to read at most, like 200MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    rate: Option<u64>,
}

impl Verify {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let place = self.choice.place("verify", self.choice.config()?)?;
        let selection = self.choice.selection(self.pattern.as_ref());
        let progress = Arc::new(Progress::new("verifying", Some(place.file_bytes(&selection)?)));
        let how = How { rate: self.rate, progress: Some(progress), ..How::default() };
        let results = place.operate(&selection, Operation::Verify, &how)?;
        drop(how);
        let mut told: Vec<Told> = results.iter().map(Told::of).collect();
        // A node has told it when it started, and may have loaded the slices again since.
        if let Place::Here(cache) = &place {
            told.extend(dropped(cache, &selection.pattern).map(|(path, why)| Told::dropped(path, why)));
        }
        self.tell(&told)
    }

    fn tell(&self, told: &[Told]) -> Result<(), Failure> {
        let mut stdout = Stdout::open()?;
        match self.choice.json {
            true => told.iter().try_for_each(|one| stdout.line(json(one)))?,
            false => {
                let mut table = Table::new(&["slice", ">bytes", "outcome"]);
                for one in told {
                    let key = one.key.clone().unwrap_or_else(|| "?".to_owned());
                    table.row(vec![key, Size(one.bytes).to_string(), one.outcome.to_owned()]);
                }
                if !told.is_empty() {
                    table.lines().try_for_each(|line| stdout.line(line))?;
                }
                let whole: Vec<&Told> = told.iter().filter(|one| one.outcome == "whole").collect();
                let bytes = Size(whole.iter().map(|one| one.bytes).sum());
                let slices = count(told.len() as u64, "slice");
                stdout.line(format_args!("{slices}: {} whole, {bytes} checked", whole.len()))?;
            }
        }
        let flushed = stdout.flush();
        for one in told {
            // What was dropped at the start was said then.
            if one.outcome == "damaged" || one.outcome == "failed" {
                one.say();
            }
        }
        let is_bad = |one: &&Told| !matches!(one.outcome, "whole" | "nothing");
        let bad = told.iter().filter(is_bad).count();
        match (flushed, bad) {
            // Whoever closed the pipe has seen enough. Damage that was found was found.
            (Err(Failure::ClosedPipe), 1..) => Err(Failure::Said),
            (flushed, 0) => flushed,
            (flushed, bad) => flushed.and(Err(Failure::Cache(format!(
                "{bad} of {} {} not whole; load what is damaged again",
                count(told.len() as u64, "slice"),
                if bad == 1 { "is" } else { "are" },
            )))),
        }
    }
}

/// What is known of a slice after its files were read; as it stands in the JSON.
#[derive(Serialize)]
struct Told {
    /// `null` if not even the manifest's name tells.
    key: Option<String>,
    outcome: &'static str,
    /// Why it could not be read.
    why: Option<String>,
    files: Vec<Damaged>,
    bytes: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct Damaged {
    file: String,
    block: Option<u64>,
    why: String,
}

impl Told {
    fn of(result: &Operated) -> Told {
        let said = result.why.as_deref().map(one_line);
        let (outcome, why) = match result.outcome {
            OperatedOutcome::Done => ("whole", None),
            OperatedOutcome::Nothing => ("nothing", None),
            // The files say it.
            OperatedOutcome::Damaged => ("damaged", None),
            _ => ("failed", said),
        };
        let (bytes, seconds) = (result.bytes, result.took.as_secs_f64());
        let files = result.damage.iter().map(Damaged::of).collect();
        Told { key: Some(one_line(&result.key)), outcome, why, files, bytes, seconds }
    }

    /// A slice that the start has not found whole.
    fn dropped(manifest: &Path, why: &str) -> Told {
        let files = vec![Damaged { file: shown(manifest), block: None, why: why.to_owned() }];
        let key = key_of(manifest).map(|key| key.to_string());
        Told { key, outcome: "dropped", why: None, files, bytes: 0, seconds: 0.0 }
    }

    fn say(&self) {
        for damaged in &self.files {
            say(&format_args!("{}: {}", damaged.file, damaged.why));
        }
        if let Some(why) = &self.why {
            say(&format_args!("{}: {why}", self.key.as_deref().unwrap_or("?")));
        }
    }
}

impl Damaged {
    fn of(damage: &Damage) -> Damaged {
        Damaged { file: one_line(&damage.file), block: damage.block, why: one_line(&damage.why) }
    }
}

//! `pelton ls`: what the cache has.

use clap::Args;
use pelton::units::{Size, count};
use pelton::{Cache, GenerationState, KeyPattern, Selected, Summary};
use serde::Serialize;

use super::choice::{Choice, filter_help};
use super::table::{Table, age};
use crate::failure::Failure;
use crate::stdout::Stdout;

/// The command line of `ls`.
#[derive(Args)]
#[command(after_long_help = filter_help())]
pub(crate) struct Ls {
    /// Which slices, as domain/view@clock#slice; a part that is left out, or is *, means all [default: *]
    pattern: Option<KeyPattern>,
    /// Who holds which slice in memory, and for how long
    #[arg(long, conflicts_with_all = ["filters", "generations"])]
    leases: bool,
    #[command(flatten)]
    choice: Choice,
}

impl Ls {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let cache = self.choice.open(self.choice.config()?)?;
        let mut stdout = Stdout::open()?;
        if self.leases {
            self.tell_leases(&cache, &mut stdout)?;
            return stdout.flush();
        }
        let found = cache.select(&self.choice.selection(self.pattern.as_ref()));
        match self.choice.json {
            true => found
                .iter()
                .try_for_each(|one| stdout.line(json(&Listed::of(one, self.choice.generations))))?,
            false => self.tell(&found, &mut stdout)?,
        }
        stdout.flush()
    }

    fn tell(&self, found: &[Selected], stdout: &mut Stdout) -> Result<(), Failure> {
        let generations = self.choice.generations;
        if !found.is_empty() {
            let name = if generations { "generation" } else { "slice" };
            let slices = if generations { ">slices" } else { ">" };
            let mut table =
                Table::new(&[name, slices, "state", "durable", ">bytes", ">memory", ">idle", "note"]);
            for one in found {
                table.row(vec![
                    name_of(one, generations),
                    if generations { one.summary.slices.to_string() } else { String::new() },
                    state_name(one.summary.state).to_owned(),
                    if one.is_durable() { "yes" } else { "no" }.to_owned(),
                    short(one.summary.bytes),
                    short(one.memory_bytes()),
                    one.idle().map_or("-".to_owned(), age),
                    note(one),
                ]);
            }
            table.lines().try_for_each(|line| stdout.line(line))?;
        }
        let sum = |of: fn(&Selected) -> u64| found.iter().map(of).sum::<u64>();
        stdout.line(format_args!(
            "{}: {} of blobs, {} of files, {} in memory",
            count(sum(|one| one.summary.slices), "slice"),
            Size(sum(|one| one.summary.bytes)),
            Size(sum(Selected::file_bytes)),
            Size(sum(Selected::memory_bytes)),
        ))
    }

    fn tell_leases(&self, cache: &Cache, stdout: &mut Stdout) -> Result<(), Failure> {
        let pattern = self.pattern.clone().unwrap_or(KeyPattern::ALL);
        let leases: Vec<_> = cache.leases().into_iter().filter(|lease| pattern.matches(&lease.key)).collect();
        let mut table = Table::new(&["slice", ">held", "fingerprint"]);
        for lease in &leases {
            let (key, fingerprint, held) =
                (lease.key.to_string(), lease.fingerprint.to_string(), lease.since.elapsed());
            if self.choice.json {
                stdout.line(json(&Leased { key, fingerprint, held_seconds: held.as_secs_f64() }))?;
            } else {
                table.row(vec![key, age(held), fingerprint]);
            }
        }
        match (self.choice.json, leases.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => stdout.line("no leases"),
            (false, false) => table.lines().try_for_each(|line| stdout.line(line)),
        }
    }
}

/// A size for a column: `5.6 MiB`, and nothing as a dash.
fn short(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        1..1024 => format!("{bytes} B"),
        _ => Size(bytes).to_string(),
    }
}

fn name_of(one: &Selected, generations: bool) -> String {
    let key = &one.snaps[0].key;
    match generations {
        true => format!("{}/{}@{}", key.domain(), key.view(), key.clock()),
        false => key.to_string(),
    }
}

pub(super) fn state_name(state: GenerationState) -> &'static str {
    let known = GenerationState::NAMES.into_iter().find(|(_, named)| *named == state);
    known.map_or("other", |(name, _)| name)
}

/// What is out of the ordinary.
fn note(one: &Selected) -> String {
    let mut notes = Vec::new();
    if one.is_pinned() {
        notes.push("pinned".to_owned());
    }
    if one.leases() > 0 {
        notes.push(count(one.leases() as u64, "lease"));
    }
    if one.snaps.iter().any(|snap| snap.unsaved) {
        notes.push("goes with the process".to_owned());
    }
    if one.summary.invalid {
        notes.push("invalid".to_owned());
    }
    if let Some(failure) = one.snaps.iter().find_map(|snap| snap.failure.as_ref()) {
        notes.push(format!("{}; next try in {}", failure.why, age(failure.again_in)));
    }
    notes.join(", ")
}

/// A slice or a generation as it stands in the JSON.
#[derive(Serialize)]
struct Listed<'a> {
    key: String,
    durable: bool,
    unsaved: bool,
    pinned: bool,
    leases: usize,
    fingerprint: Option<String>,
    file_bytes: u64,
    memory_bytes: u64,
    idle_seconds: Option<f64>,
    again_in_seconds: Option<f64>,
    why: Option<&'a str>,
    /// With its names as the filters have them, but for `-`.
    #[serde(flatten)]
    summary: &'a Summary,
}

#[derive(Serialize)]
struct Leased {
    key: String,
    fingerprint: String,
    held_seconds: f64,
}

impl<'a> Listed<'a> {
    fn of(one: &'a Selected, generations: bool) -> Listed<'a> {
        let failed = one.snaps.iter().find_map(|snap| snap.failure.as_ref());
        Listed {
            key: name_of(one, generations),
            durable: one.is_durable(),
            unsaved: one.snaps.iter().any(|snap| snap.unsaved),
            pinned: one.is_pinned(),
            leases: one.leases(),
            fingerprint: one.fingerprint().map(|fingerprint| fingerprint.to_string()),
            file_bytes: one.file_bytes(),
            memory_bytes: one.memory_bytes(),
            idle_seconds: one.idle().map(|idle| idle.as_secs_f64()),
            again_in_seconds: failed.map(|failure| failure.again_in.as_secs_f64()),
            why: failed.map(|failure| &*failure.why),
            summary: &one.summary,
        }
    }
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("it has nothing that JSON lacks")
}

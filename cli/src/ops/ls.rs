//! `pelton ls`: what the cache has.

use clap::Args;
use pelton::nexus::node::Listed;
use pelton::units::{Size, count};
use pelton::{GenerationState, KeyPattern, Summary};
use serde::Serialize;

use super::choice::{Choice, filter_help};
use super::place::Place;
use super::table::{Table, age};
use crate::failure::{Failure, one_line};
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
        let place = self.choice.place("ls", self.choice.config()?)?;
        let mut stdout = Stdout::open()?;
        if self.leases {
            self.tell_leases(&place, &mut stdout)?;
            return stdout.flush();
        }
        let found = place.select(&self.choice.selection(self.pattern.as_ref()))?;
        match self.choice.json {
            true => found.iter().try_for_each(|one| stdout.line(json(&Line::of(one))))?,
            false => self.tell(&found, &mut stdout)?,
        }
        stdout.flush()
    }

    fn tell(&self, found: &[Listed], stdout: &mut Stdout) -> Result<(), Failure> {
        let generations = self.choice.generations;
        if !found.is_empty() {
            let name = if generations { "generation" } else { "slice" };
            let slices = if generations { ">slices" } else { ">" };
            let mut table =
                Table::new(&[name, slices, "state", "durable", ">bytes", ">memory", ">idle", "note"]);
            for one in found {
                table.row(vec![
                    one_line(&one.key),
                    if generations { one.summary.slices.to_string() } else { String::new() },
                    state_name(one.summary.state).to_owned(),
                    if one.durable { "yes" } else { "no" }.to_owned(),
                    short(one.summary.bytes),
                    short(one.memory_bytes),
                    one.idle.map_or("-".to_owned(), age),
                    note(one),
                ]);
            }
            table.lines().try_for_each(|line| stdout.line(line))?;
        }
        let sum = |of: fn(&Listed) -> u64| found.iter().map(of).sum::<u64>();
        stdout.line(format_args!(
            "{}: {} of blobs, {} of files, {} in memory",
            count(sum(|one| one.summary.slices), "slice"),
            Size(sum(|one| one.summary.bytes)),
            Size(sum(|one| one.file_bytes)),
            Size(sum(|one| one.memory_bytes)),
        ))
    }

    fn tell_leases(&self, place: &Place, stdout: &mut Stdout) -> Result<(), Failure> {
        let pattern = self.pattern.clone().unwrap_or(KeyPattern::ALL);
        let leases = place.leases(&pattern)?;
        let mut table = Table::new(&["slice", ">held", "fingerprint"]);
        let is_empty = leases.is_empty();
        for super::place::Leased { key, fingerprint, held } in leases {
            if self.choice.json {
                stdout.line(json(&Leased { key, fingerprint, held_seconds: held.as_secs_f64() }))?;
            } else {
                table.row(vec![key, age(held), fingerprint]);
            }
        }
        match (self.choice.json, is_empty) {
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

pub(super) fn state_name(state: GenerationState) -> &'static str {
    let known = GenerationState::NAMES.into_iter().find(|(_, named)| *named == state);
    known.map_or("other", |(name, _)| name)
}

/// What is out of the ordinary.
fn note(one: &Listed) -> String {
    let mut notes = Vec::new();
    if one.pinned {
        notes.push("pinned".to_owned());
    }
    if one.leases > 0 {
        notes.push(count(one.leases, "lease"));
    }
    if one.unsaved {
        notes.push("goes with the process".to_owned());
    }
    if one.summary.invalid {
        notes.push("invalid".to_owned());
    }
    if let Some((why, again_in)) = &one.failure {
        notes.push(format!("{}; next try in {}", one_line(why), age(*again_in)));
    }
    notes.join(", ")
}

/// A slice or a generation as it stands in the JSON.
#[derive(Serialize)]
struct Line<'a> {
    key: String,
    durable: bool,
    unsaved: bool,
    pinned: bool,
    leases: u64,
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

impl<'a> Line<'a> {
    fn of(one: &'a Listed) -> Line<'a> {
        let failure = one.failure.as_ref();
        Line {
            key: one.key.clone(),
            durable: one.durable,
            unsaved: one.unsaved,
            pinned: one.pinned,
            leases: one.leases,
            fingerprint: one.fingerprint.map(|fingerprint| fingerprint.to_string()),
            file_bytes: one.file_bytes,
            memory_bytes: one.memory_bytes,
            idle_seconds: one.idle.map(|idle| idle.as_secs_f64()),
            again_in_seconds: failure.map(|(_, again_in)| again_in.as_secs_f64()),
            why: failure.map(|(why, _)| why.as_str()),
            summary: &one.summary,
        }
    }
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("it has nothing that JSON lacks")
}

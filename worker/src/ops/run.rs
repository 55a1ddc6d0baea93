//! Does an operation to all snaps of a selection.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lanes::run_all;
use super::operation::{
    Operation, OperationError, OperationOptions, OperationOutcome, OperationRefusal, OperationResult,
};
use super::select::{Selection, select};
use super::verify::Verifying;
use crate::cache::{CacheCore, Entry, FlushError, Snap, Want, status};
use crate::region::watermark::RegionFault;
use crate::scan::patience::Patience;
use crate::snap::desk::Reply;
use crate::snap::manifest::Manifest;
use crate::snap::state::Answer;
use crate::snap::warm::{WarmError, bytes_in_memory};
use crate::spindle::engine::{DiskError, Op};
use crate::spindle::file::FileMode;
use crate::spindle::identity::SpindleUuid;
use crate::spindle::impeller::Lane;
use crate::spindle::pace::Pace;

/// How long a warming waits until it can be leased: for memory that somebody took meanwhile, or for a sick disk.
const WARM_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long pins wait for a disk: one that takes longer has not saved them.
const PIN_WAIT_MAX: Duration = Duration::from_secs(30);

/// Does it, and says for each snap what came of it, in the order of the keys.
pub(crate) fn operate(
    core: &Arc<CacheCore>,
    selection: &Selection,
    operation: Operation,
    options: &OperationOptions,
    patience: &Patience,
) -> Vec<OperationResult> {
    let mut entries: Vec<Arc<Entry>> =
        select(core, selection, patience).into_iter().flat_map(|(_, entries)| entries).collect();
    if operation == Operation::Warm {
        entries.sort_by_key(|entry| Reverse(entry.key.clock()));
    }
    let mut room = room_in_memory(core);
    // In one go and in order: what is warmed first leaves less room for what comes later.
    let jobs = entries.into_iter().map(|entry| {
        let (outcome, bytes) = operation.forecast(&status(&entry));
        let outcome = match (operation, outcome) {
            (Operation::Warm, OperationOutcome::Done) => take_room(&entry, &mut room),
            (_, outcome) => outcome,
        };
        (lane_of(&entry), Job { entry, forecast: outcome, bytes })
    });
    let run = Run { core, operation, options, patience, pace: Arc::new(Pace::new(options.rate)) };
    let mut results = run_all(jobs.collect(), |job| {
        let result = run.run(job);
        if !run.is_saved_after() {
            run.tell(&result);
        }
        result
    });
    if run.is_saved_after() {
        run.save_pins(&mut results);
        results.iter().for_each(|result| run.tell(result));
    }
    results.sort_by(|one, other| one.key.cmp(&other.key));
    results
}

/// One snap, and what was known when all were looked at.
struct Job {
    entry: Arc<Entry>,
    forecast: OperationOutcome,
    bytes: u64,
}

/// The spindles that a snap's files lie on: what lies on others must not wait for them.
fn lane_of(entry: &Entry) -> Vec<SpindleUuid> {
    entry.manifest().map_or_else(Vec::new, |manifest| manifest.spindles.clone())
}

fn room_in_memory(core: &CacheCore) -> u64 {
    let counts = core.budget.counts();
    counts.residence_max.saturating_sub(counts.images + counts.mapped)
}

fn take_room(entry: &Entry, room: &mut u64) -> OperationOutcome {
    let wanted = entry.manifest().map_or(0, |manifest| bytes_in_memory(&manifest));
    match room.checked_sub(wanted) {
        Some(rest) => {
            *room = rest;
            OperationOutcome::Done
        }
        None => OperationOutcome::Refused(OperationRefusal::NoRoom { wanted, free: *room }),
    }
}

struct Run<'a> {
    core: &'a Arc<CacheCore>,
    operation: Operation,
    options: &'a OperationOptions,
    patience: &'a Patience,
    pace: Arc<Pace>,
}

impl Run<'_> {
    fn run(&self, Job { entry, forecast, bytes }: Job) -> OperationResult {
        let begun = Instant::now();
        let outcome = match forecast {
            OperationOutcome::Done | OperationOutcome::Leaving if self.options.dry_run => forecast,
            OperationOutcome::Done | OperationOutcome::Leaving if self.patience.check().is_err() => {
                OperationOutcome::Failed(OperationError::Late)
            }
            OperationOutcome::Done | OperationOutcome::Leaving => {
                self.act(&entry, bytes).unwrap_or_else(OperationOutcome::Failed)
            }
            // What may not be done, or need not, was not begun.
            other => other,
        };
        OperationResult { key: entry.key.clone(), outcome, bytes, took: begun.elapsed() }
    }

    fn tell(&self, result: &OperationResult) {
        if let Some(on_result) = &self.options.on_result {
            on_result.tell(result);
        }
    }

    /// Whether what was done is brought to the disks in one go, before anybody hears of it.
    fn is_saved_after(&self) -> bool {
        matches!(self.operation, Operation::Pin | Operation::Unpin) && !self.options.dry_run
    }

    /// A pin is told when a restart would know of it.
    fn save_pins(&self, results: &mut [OperationResult]) {
        // Also where nothing was to do: somebody else may have done it a moment ago, or before a disk refused.
        let is_done = |result: &&mut OperationResult| {
            matches!(result.outcome, OperationOutcome::Done | OperationOutcome::Nothing)
        };
        let mut done: Vec<&mut OperationResult> = results.iter_mut().filter(is_done).collect();
        if done.is_empty() {
            return;
        }
        let longest = Instant::now() + PIN_WAIT_MAX;
        self.core.keep_pins(self.patience.deadline.map_or(longest, |deadline| deadline.min(longest)));
        for result in &mut done {
            if let Some(log) = self.core.log_without_pin(&result.key) {
                result.outcome = OperationOutcome::Failed(OperationError::Unsaved { log });
            }
        }
    }

    fn act(&self, entry: &Arc<Entry>, bytes: u64) -> Result<OperationOutcome, OperationError> {
        let snap = Snap::new(self.core.clone(), entry.clone());
        match self.operation {
            Operation::Evict { keep_cache } => self.evict(entry, &snap, keep_cache),
            Operation::Flush => self.flush(&snap),
            Operation::Erase => {
                let flushed = self.flush(&snap)?;
                Ok(match flushed {
                    OperationOutcome::Refused(_) => flushed,
                    _ if snap.erase() => OperationOutcome::Done,
                    _ => OperationOutcome::Refused(OperationRefusal::Busy),
                })
            }
            Operation::Pin => {
                snap.pin();
                Ok(OperationOutcome::Done)
            }
            Operation::Unpin => {
                snap.unpin();
                Ok(OperationOutcome::Done)
            }
            Operation::Warm => {
                entry.facts().pace = Some(self.pace.clone());
                let outcome = self.warm(entry);
                entry.facts().pace = None;
                if let (Some(on_progress), Ok(_)) = (&self.options.on_progress, &outcome) {
                    on_progress.tell(bytes);
                }
                outcome
            }
            Operation::Verify => self.verify(entry),
        }
    }

    fn evict(
        &self,
        entry: &Entry,
        snap: &Snap,
        keep_cache: bool,
    ) -> Result<OperationOutcome, OperationError> {
        Ok(match snap.evict_and_say(keep_cache) {
            Answer::Evicted => OperationOutcome::Done,
            Answer::Leaving => OperationOutcome::Leaving,
            Answer::Pinned => OperationOutcome::Refused(OperationRefusal::Pinned),
            Answer::NotDurable => OperationOutcome::Refused(OperationRefusal::NotDurable),
            Answer::Closed => OperationOutcome::Refused(OperationRefusal::Closed),
            _ => match entry.manifest().filter(|_| !keep_cache) {
                Some(manifest) => {
                    self.drop_page_cache(&manifest)
                        .map_err(|source| OperationError::Disk { source: source.into() })?;
                    OperationOutcome::Done
                }
                None => OperationOutcome::Nothing,
            },
        })
    }

    /// Lets go of what the page cache holds of files that are not in memory of ours.
    fn drop_page_cache(&self, manifest: &Manifest) -> Result<(), DiskError> {
        for record in &manifest.regions {
            let uuid = manifest.spindles[record.spindle as usize];
            let Some(spindle) = self.core.spindles.iter().find(|spindle| spindle.uuid == uuid) else {
                continue;
            };
            let open = Op::OpenFile { path: spindle.folder.join(&record.path), mode: FileMode::Buffered };
            let run = |op| spindle.impellers.run_patiently(Lane::HOUSE, op, self.patience);
            let file = run(open)?.into_file();
            run(Op::DropCache { file: file.clone() })?;
            run(Op::Close { file })?;
        }
        Ok(())
    }

    fn flush(&self, snap: &Snap) -> Result<OperationOutcome, OperationError> {
        match snap.flush_patiently(self.patience) {
            Ok(true) => Ok(OperationOutcome::Done),
            Ok(false) => Ok(OperationOutcome::Nothing),
            Err(FlushError::Pinned { .. }) => Ok(OperationOutcome::Refused(OperationRefusal::Pinned)),
            Err(FlushError::Closed { .. }) => Ok(OperationOutcome::Refused(OperationRefusal::Closed)),
            Err(FlushError::Late { .. }) => Err(OperationError::Late),
            Err(FlushError::Disk { source, .. }) => Err(OperationError::Disk { source }),
        }
    }

    /// Brings all of it into memory. That is no query, so it does not make the slice look used.
    fn warm(&self, entry: &Arc<Entry>) -> Result<OperationOutcome, OperationError> {
        // Others may have taken the room since all were looked at, and nothing goes for a warming.
        let mut room = room_in_memory(self.core);
        if let refused @ OperationOutcome::Refused(_) = take_room(entry, &mut room) {
            return Ok(refused);
        }
        let longest = Instant::now() + WARM_WAIT_MAX;
        let deadline = Some(self.patience.deadline.map_or(longest, |deadline| deadline.min(longest)));
        let (reply, _) = entry.lease(Want::Latest, &Patience { deadline, ..self.patience.clone() });
        let version = match reply {
            Reply::Lease(version, hot) => {
                let came = hot.regions.iter().try_for_each(|region| region.whole(self.patience).map(drop));
                drop(hot);
                came.map_err(|fault| match fault {
                    RegionFault::Impatience(_) => OperationError::Late,
                    RegionFault::Failed(source) => OperationError::Warm { source },
                })
                .map(|()| version)
                .inspect_err(|_| entry.give_back(version))?
            }
            Reply::Other(Answer::Closed) => {
                return Ok(OperationOutcome::Refused(OperationRefusal::Closed));
            }
            Reply::Other(Answer::Late) => return Err(OperationError::Late),
            Reply::Other(Answer::WarmFailed | Answer::WarmRefused | Answer::Damaged) => {
                let error = entry.facts().warm_error.clone();
                return Err(match error {
                    Some(error) => match &*error {
                        WarmError::Memory { source } => OperationError::Memory { source: source.clone() },
                        _ => OperationError::Warm { source: error },
                    },
                    None => OperationError::Late,
                });
            }
            // It was flushed, or has failed, since it was looked at.
            Reply::Other(_) => return Ok(OperationOutcome::Nothing),
        };
        entry.give_back(version);
        Ok(OperationOutcome::Done)
    }

    fn verify(&self, entry: &Entry) -> Result<OperationOutcome, OperationError> {
        let Some(manifest) = entry.manifest() else { return Ok(OperationOutcome::Nothing) };
        let verifying = Verifying {
            core: self.core,
            pace: &self.pace,
            patience: self.patience,
            on_progress: self.options.on_progress.as_ref(),
        };
        match verifying.verify(&manifest) {
            Ok(outcome) => Ok(outcome),
            // Flush and reslice take files away under who reads them: that is no damage.
            Err(_) if !entry.manifest().is_some_and(|now| Arc::ptr_eq(&now, &manifest)) => {
                Ok(OperationOutcome::Nothing)
            }
            Err(error) => Err(error),
        }
    }
}

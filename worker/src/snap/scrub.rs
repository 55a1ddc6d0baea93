//! Reads what lies on the disks again, slowly, and compares it with its checksums.
//!
//! ```text
//! slice that is due the longest ─▶ its manifest ─▶ each region: its ends, then block after block
//!                                                    │
//!                                                    ├─▶ all as it was written: due again in a day
//!                                                    └─▶ damaged: told and dropped, as damage that a scan meets
//! ```
//!
//! A disk forgets in silence, and a slice that nobody asks for is not read: so this finds what would be found too late.
//! It reads past the page cache, in the lane that is served when all others are empty, and no faster than it was told.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pelton_region_format::Key;

use crate::cache::{CacheCore, Entry};
use crate::events::{Event, reason};
use crate::scan::cancel::CancelToken;
use crate::scan::patience::{Impatience, Patience};
use crate::snap::check::{Check, Damage, Pacer, Unproven};
use crate::snap::manifest::{Manifest, RegionRecord};
use crate::snap::warm::WarmError;
use crate::spindle::engine::Op;
use crate::spindle::impeller::Lane;
use crate::spindle::pace::Pace;

#[cfg(test)]
mod tests;

/// What is read at once, unless a checksum block is larger: little, so that whoever comes meanwhile waits shortly.
const READ_BYTES: u64 = 1 << 20;

/// How long a slice is left alone after it was found whole. Disks are checked for what they lose in months.
const AGAIN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The same after it could not be read: by then a disk is back, or somebody has looked at it.
const UNREAD_AGAIN_AFTER: Duration = Duration::from_secs(10 * 60);

/// How often it is looked for slices that are due.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A read that takes longer is given up, since its disk hangs: other disks go on.
const READ_WAIT_MAX: Duration = Duration::from_secs(30);

/// The thread that scrubs one cache. Dropping it ends that at once.
pub(crate) struct Scrubber {
    stop: CancelToken,
    thread: Option<JoinHandle<()>>,
}

impl Scrubber {
    /// Starts it, with so many bytes a second.
    pub(crate) fn start(core: &Arc<CacheCore>, rate: u64) -> io::Result<Scrubber> {
        let stop = core.scrub_stop.clone();
        let mut scrub = Scrub::new(core.clone(), rate);
        let run = move || {
            let patience = Patience { stop: Some(scrub.core.scrub_stop.clone()), ..Patience::default() };
            scrub.core.wait_for_recovery(&patience); // Before, not all slices are known.
            while !scrub.core.scrub_stop.is_cancelled() {
                scrub.round();
                scrub.wait(LOOK_EVERY);
            }
        };
        let thread = std::thread::Builder::new().name("pelton-scrub".to_owned()).spawn(run)?;
        Ok(Scrubber { stop, thread: Some(thread) })
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic of it is a bug that costs nobody his bytes.
        }
    }
}

/// What the thread knows.
pub(crate) struct Scrub {
    core: Arc<CacheCore>,
    pace: Pace,
    /// When each slice is due again, and of which load that is known.
    due: BTreeMap<Key, (u64, Instant)>,
}

/// What came of a slice.
enum Verdict {
    Whole,
    /// It was flushed, erased or replaced meanwhile.
    Gone,
    /// The disk refused, or there was no memory: that says nothing about the bytes.
    Unread(WarmError),
    Damaged(Box<Damage>),
}

impl Scrub {
    pub(crate) fn new(core: Arc<CacheCore>, rate: u64) -> Scrub {
        Scrub { core, pace: Pace::new(Some(rate)), due: BTreeMap::new() }
    }

    /// Verifies all slices that are due now, those first that are due the longest. Ends early when it is stopped.
    pub(crate) fn round(&mut self) {
        for entry in self.entries_due() {
            let Some(manifest) = entry.manifest() else { continue };
            let verdict = self.verify(&entry, &manifest);
            if self.core.scrub_stop.is_cancelled() {
                return;
            }
            let meter = &self.core.events.meter;
            let again_after = match verdict {
                Verdict::Whole => {
                    meter.scrubbed_whole.one();
                    AGAIN_AFTER
                }
                Verdict::Unread(error) => {
                    meter.scrubbed_unread.one();
                    tracing::warn!(key = %entry.key, why = reason(&error), "a slice could not be verified");
                    UNREAD_AGAIN_AFTER
                }
                Verdict::Damaged(damage) => {
                    meter.scrubbed_damaged.one();
                    drop_damaged(&self.core, &entry, &manifest, *damage);
                    continue;
                }
                Verdict::Gone => continue,
            };
            self.due.insert(entry.key.clone(), (manifest.load_number, Instant::now() + again_after));
        }
    }

    /// Waits, unless it is stopped.
    fn wait(&self, span: Duration) {
        if !span.is_zero() {
            let _ = self.core.scrub_stop.line().recv_timeout(span); // It only ever hangs up.
        }
    }

    /// What is not known to have been verified comes first. It begins somewhere else in each process: one that is
    /// restarted often would never come to its last slices.
    fn entries_due(&mut self) -> Vec<Arc<Entry>> {
        let mut known = BTreeMap::new();
        let mut entries = Vec::new();
        let now = Instant::now();
        for entry in self.core.entries_now() {
            let Some(manifest) = entry.manifest() else { continue };
            let due = self.due.get(&entry.key).filter(|(load, _)| *load == manifest.load_number).copied();
            if let Some(due) = due {
                known.insert(entry.key.clone(), due);
            }
            let due_at = due.map(|(_, due_at)| due_at);
            if due_at.is_none_or(|due_at| due_at <= now) {
                entries.push((due_at, scatter(manifest.load_number, self.core.epoch()), entry));
            }
        }
        self.due = known; // Slices that went are forgotten.
        entries.sort_by_key(|(due_at, scattered, _)| (*due_at, *scattered));
        entries.into_iter().map(|(.., entry)| entry).collect()
    }

    fn verify(&self, entry: &Entry, manifest: &Arc<Manifest>) -> Verdict {
        let turn = Turn { scrub: self, entry, manifest };
        let check = Check { core: &self.core, lane: Lane::LAST, read_bytes: READ_BYTES, pacer: &turn };
        let verified = check.manifest(manifest).and_then(|()| {
            let mut regions = manifest.regions.iter();
            regions.try_for_each(|record| {
                self.spare_the_sick(manifest, record).map_err(Unproven::Unread)?;
                check.region(manifest, record)
            })
        });
        match verified {
            // What is not named any more may have been removed under our eyes.
            _ if !turn.goes_on() => Verdict::Gone,
            Ok(()) => Verdict::Whole,
            Err(Unproven::Left | Unproven::Replaced) => Verdict::Gone,
            Err(Unproven::Unread(error)) => Verdict::Unread(error),
            Err(Unproven::Damaged(damage)) => Verdict::Damaged(damage),
        }
    }

    /// A disk that is not well has enough to do with itself.
    fn spare_the_sick(&self, manifest: &Manifest, record: &RegionRecord) -> Result<(), WarmError> {
        let (index, uuid) = (record.index, manifest.spindles[record.spindle as usize]);
        let spindle = self.core.spindles.iter().find(|spindle| spindle.uuid == uuid);
        let spindle = spindle.ok_or(WarmError::NoSpindle { index })?;
        if spindle.watch.state().takes_work() {
            return Ok(());
        }
        let subject = Op::Space { path: spindle.folder.clone() }.subject();
        Err(WarmError::Disk { index, source: subject.late() })
    }
}

/// The slice whose turn it is.
struct Turn<'a> {
    scrub: &'a Scrub,
    entry: &'a Entry,
    manifest: &'a Arc<Manifest>,
}

impl Pacer for Turn<'_> {
    fn pay(&self, bytes: u64) -> Result<(), Impatience> {
        let stop = Some(self.scrub.core.scrub_stop.clone());
        self.scrub.pace.wait(bytes, &Patience { stop, ..Patience::default() })?;
        self.scrub.core.events.meter.scrubbed_bytes.add(bytes);
        Ok(())
    }

    fn patience(&self) -> Patience {
        let stop = Some(self.scrub.core.scrub_stop.clone());
        Patience { stop, ..Patience::until(Some(Instant::now() + READ_WAIT_MAX)) }
    }

    fn compared(&self, _bytes: u64) {}

    fn goes_on(&self) -> bool {
        self.entry.manifest().is_some_and(|now| Arc::ptr_eq(&now, self.manifest))
    }
}

/// Its files go. Nobody gets the slice any more, and whoever can load it may; unless it is whole in memory, where it stays as
/// long as the process.
fn drop_damaged(core: &CacheCore, entry: &Arc<Entry>, manifest: &Manifest, damage: Damage) {
    let Damage { file, block, error } = damage;
    let (key, why) = (|| entry.key.clone(), || reason(&error));
    core.events.tell_trouble(|| Event::Damaged { key: key(), file: file.clone(), block, why: why() });
    entry.files_damaged(manifest.version(), Arc::new(error));
}

/// An order that is another one in each process.
fn scatter(load: u64, epoch: u64) -> u64 {
    // The multiplier of splitmix64: neighbours end up far from each other.
    (load ^ epoch).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

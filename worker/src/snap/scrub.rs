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
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pelton_region_format::{FormatError, Key, Place};

use crate::budget::memory::MemoryUse;
use crate::cache::{CacheCore, Entry};
use crate::events::{Event, reason};
use crate::region::arena::{Paging, PieceBuffer};
use crate::scan::cancel::CancelToken;
use crate::scan::patience::Patience;
use crate::snap::commit::MANIFESTS;
use crate::snap::manifest::{Manifest, ManifestError, RegionRecord};
use crate::snap::recovery::MANIFEST_FILE_BYTES_MAX;
use crate::snap::stream::{StreamRegion, read};
use crate::snap::warm::WarmError;
use crate::spindle::engine::{Op, Outcome};
use crate::spindle::file::{DIRECT_ALIGNMENT, FileMode, SpindleFile};
use crate::spindle::held::Spindle;
use crate::spindle::impeller::{Lane, replies};
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

/// Where the bytes are not what was written.
struct Damage {
    file: PathBuf,
    block: Option<u64>,
    error: WarmError,
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

    fn verify(&mut self, entry: &Entry, manifest: &Arc<Manifest>) -> Verdict {
        let verified = self.verify_manifest(manifest).and_then(|()| {
            let mut regions = manifest.regions.iter();
            regions.try_for_each(|record| self.verify_region(entry, manifest, record))
        });
        let is_there = entry.manifest().is_some_and(|now| Arc::ptr_eq(&now, manifest));
        match verified {
            // What is not named any more may have been removed under our eyes.
            _ if !is_there => Verdict::Gone,
            Ok(()) => Verdict::Whole,
            Err(verdict) => verdict,
        }
    }

    fn verify_manifest(&mut self, manifest: &Manifest) -> Result<(), Verdict> {
        let index = 0; // That of the home spindle.
        let disk = |source| Verdict::Unread(WarmError::Disk { index, source });
        let is_home = |spindle: &&Arc<Spindle>| manifest.spindles.first() == Some(&spindle.uuid);
        let home = self.core.spindles.iter().find(is_home).cloned();
        let home = home.ok_or(Verdict::Unread(WarmError::NoSpindle { index }))?;
        let path = home.folder.join(MANIFESTS).join(Manifest::file_name(&manifest.key));
        let damaged = |why: String| {
            Box::new(Damage { file: path.clone(), block: None, error: WarmError::Manifest { why } })
        };
        let patience = self.patience();
        let run = |op| home.impellers.run_patiently(Lane::LAST, op, &patience);
        let file =
            run(Op::OpenFile { path: path.clone(), mode: FileMode::Direct }).map_err(disk)?.into_file();
        let bytes = run(Op::LengthOf { file: file.clone() }).map(Outcome::into_length).map_err(disk)?;
        if !(1..=MANIFEST_FILE_BYTES_MAX as u64).contains(&bytes) {
            return Err(Verdict::Damaged(damaged(format!("it has {bytes} bytes"))));
        }
        self.pay(bytes);
        let found = read(&home, &file, 0, bytes, Lane::LAST, &self.patience()).map_err(disk)?;
        close(&home, file);
        match Manifest::decode(&found) {
            Ok(found) if found.load_number == manifest.load_number && found.regions == manifest.regions => {
                Ok(())
            }
            Ok(found) => Err(Verdict::Damaged(damaged(format!("it names load {}", found.load_number)))),
            Err(ManifestError::Newer { .. }) => Ok(()), // Not ours to judge: its checksum holds.
            Err(error) => Err(Verdict::Damaged(damaged(error.to_string()))),
        }
    }

    fn verify_region(
        &mut self,
        entry: &Entry,
        manifest: &Arc<Manifest>,
        record: &RegionRecord,
    ) -> Result<(), Verdict> {
        let index = record.index;
        let uuid = manifest.spindles[record.spindle as usize];
        let spindle = self.core.spindles.iter().find(|spindle| spindle.uuid == uuid).cloned();
        let spindle = spindle.ok_or(Verdict::Unread(WarmError::NoSpindle { index }))?;
        if !spindle.watch.state().takes_work() {
            // It has enough to do with itself.
            let subject = Op::Space { path: spindle.folder.clone() }.subject();
            return Err(Verdict::Unread(WarmError::Disk { index, source: subject.late() }));
        }
        let judge = |error: WarmError, block| match error.is_damage() {
            true => {
                Verdict::Damaged(Box::new(Damage { file: spindle.folder.join(&record.path), block, error }))
            }
            false => Verdict::Unread(error),
        };
        self.pay(2 * DIRECT_ALIGNMENT as u64);
        let region = StreamRegion::open(&self.core, manifest, record, Lane::LAST, &self.patience());
        let region = region.map_err(|error| {
            let block = block_of(&error);
            judge(error, block)
        })?;
        let damaged = |source| WarmError::Damaged { index, source };
        let frame = region.frame().map_err(|source| judge(damaged(source), None))?;
        self.pay(frame.trailer().tail_bytes());
        let block_bytes = u64::from(frame.header().block_bytes);
        let blocks_at_once = (READ_BYTES / block_bytes).max(1);
        let mut block = 0;
        while block < frame.block_count() {
            let end = (block + blocks_at_once).min(frame.block_count());
            // Block 0 begins behind the header, and is read with it.
            let (from, to) = (block * block_bytes, frame.block_range(end - 1).end);
            self.pay(to - from);
            let (room, len) = self.read(&region, from, to).map_err(|error| judge(error, None))?;
            for block in block..end {
                let range = frame.block_range(block);
                let (start, end) = ((range.start - from) as usize, (range.end - from) as usize);
                let bytes = &room[start.min(len)..end.min(len)];
                let verified = frame.verify_block(block, bytes);
                verified.map_err(|source| judge(damaged(source), Some(block)))?;
            }
            if !entry.manifest().is_some_and(|now| Arc::ptr_eq(&now, manifest)) {
                return Err(Verdict::Gone);
            }
            block = end;
        }
        Ok(())
    }

    /// Reads a stretch of a region. Its memory is taken for that only: the next stretch may have to wait for its rate for
    /// long, and somebody else may want all that there is.
    fn read(
        &self,
        region: &StreamRegion,
        from: u64,
        to: u64,
    ) -> Result<(Box<PieceBuffer>, usize), WarmError> {
        let (index, patience) = (region.index, self.patience());
        let len = ((to - from) as usize).next_multiple_of(DIRECT_ALIGNMENT);
        let grant = self.core.budget.take_patiently(MemoryUse::Buffers, len as u64, &patience);
        let grant = grant.map_err(|source| WarmError::Memory { source })?;
        let buffer = PieceBuffer::new(len, Paging::Free);
        let buffer = buffer.map_err(|source| WarmError::Map { index, source })?;
        let room = Box::new(buffer.counted(grant));
        let op = Op::Read { file: region.file().clone(), offset: from, room, len };
        let outcome = region.spindle.impellers.run_patiently(Lane::LAST, op, &patience);
        let (room, len) = outcome.map_err(|source| WarmError::Disk { index, source })?.into_read_back();
        Ok((room.into_any().downcast().expect("the room that was sent"), len))
    }

    /// Waits until so many bytes may be read.
    fn pay(&mut self, bytes: u64) {
        let patience = Patience { stop: Some(self.core.scrub_stop.clone()), ..Patience::default() };
        let _ = self.pace.wait(bytes, &patience); // Whoever is stopped finds out at the next step.
        self.core.events.meter.scrubbed_bytes.add(bytes);
    }

    /// For one step.
    fn patience(&self) -> Patience {
        let stop = Some(self.core.scrub_stop.clone());
        Patience { stop, ..Patience::until(Some(Instant::now() + READ_WAIT_MAX)) }
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

/// Closing the last descriptor of a file that was unlinked is the disk's work, too.
fn close(spindle: &Spindle, file: Arc<SpindleFile>) {
    let (replies, _) = replies();
    let close = Op::Close { file };
    let _ = spindle.impellers.submit(Lane::LAST, close, replies.tag(0), Some(Instant::now()));
}

fn block_of(error: &WarmError) -> Option<u64> {
    match error {
        WarmError::Damaged { source: FormatError::Damaged { place: Place::Block(block), .. }, .. } => {
            Some(*block)
        }
        _ => None,
    }
}

/// An order that is another one in each process.
fn scatter(load: u64, epoch: u64) -> u64 {
    // The multiplier of splitmix64: neighbours end up far from each other.
    (load ^ epoch).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

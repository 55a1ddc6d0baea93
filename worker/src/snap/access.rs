//! Facts about snaps that change often, kept beside the manifests: advice, whose loss costs nobody a byte.
//!
//! ```text
//! note ─▶ facts in memory ─save─▶ records appended to the spindle's log      open ─▶ records folded, log made anew
//! ```
//!
//! The bytes are told in `docs/access-log.md`. What the log says is never believed against a manifest: whoever asks for
//! facts has a snap already.

mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pelton_region_format::Key;

use crate::spindle::engine::{DiskError, Op, PageBuffer};
use crate::spindle::file::{FileMode, SpindleFile};
use crate::spindle::held::Spindle;

use record::{Encoder, Ending, Record};

/// The file, and the one that takes its place.
const LOG_FILE: &str = "access-log";
const NEW_FILE: &str = "access-log.new";
/// A million snaps take a tenth.
const LOG_BYTES_MAX: usize = 1 << 30;
/// So much longer than what it says, and it is made anew.
const GROWTH_MAX: u64 = 4;
const GROWTH_MIN: u64 = 1 << 20;

/// What is known of how a snap was used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) pinned: bool,
    /// When somebody last asked for it, in milliseconds since 1970.
    pub(crate) queried_at_ms: Option<u64>,
    pub(crate) leases: u64,
    pub(crate) evicts: u64,
    pub(crate) flushes: u64,
    /// How many loads have failed since the last one that did not.
    pub(crate) failures: u32,
    /// When the next load makes sense, in milliseconds since 1970.
    pub(crate) next_load_at_ms: Option<u64>,
}

/// How long the snaps of a view stay after the last query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ViewTtls {
    pub(crate) evict_ms: u64,
    pub(crate) flush_ms: u64,
    pub(crate) erase_ms: u64,
}

/// Something that has happened to a snap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Queried {
        at_ms: u64,
        leases: u64,
    },
    Pinned(bool),
    Evicted,
    Flushed,
    Loaded,
    LoadFailed {
        next_load_at_ms: Option<u64>,
    },
    /// Nothing is known of it from here on.
    Erased,
}

/// All that a log says. A plain value: records are folded into it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AccessFacts {
    snaps: BTreeMap<Key, Facts>,
    /// By `domain/view`.
    views: BTreeMap<String, ViewTtls>,
}

impl AccessFacts {
    pub(crate) fn snap(&self, key: &Key) -> Option<&Facts> {
        self.snaps.get(key)
    }

    /// Takes in what has happened.
    fn note(&mut self, key: &Key, note: Note) {
        if note == Note::Erased {
            self.snaps.remove(key);
            return;
        }
        if !self.snaps.contains_key(key) {
            self.snaps.insert(key.clone(), Facts::default());
        }
        let facts = self.snaps.get_mut(key).expect("it was just put there");
        match note {
            Note::Queried { at_ms, leases } => {
                // A clock that was set back makes nothing older.
                facts.queried_at_ms = facts.queried_at_ms.max(Some(at_ms));
                facts.leases = facts.leases.saturating_add(leases);
            }
            Note::Pinned(pinned) => facts.pinned = pinned,
            Note::Evicted => facts.evicts = facts.evicts.saturating_add(1),
            Note::Flushed => facts.flushes = facts.flushes.saturating_add(1),
            Note::Loaded => (facts.failures, facts.next_load_at_ms) = (0, None),
            Note::LoadFailed { next_load_at_ms } => {
                facts.failures = facts.failures.saturating_add(1);
                facts.next_load_at_ms = next_load_at_ms;
            }
            Note::Erased => unreachable!("dealt with above"),
        }
    }

    fn fold(&mut self, record: Record) {
        match record {
            Record::Snap(key, facts) => _ = self.snaps.insert(key, facts),
            Record::Erased(key) => _ = self.snaps.remove(&key),
            Record::View(view, Some(ttls)) => _ = self.views.insert(view, ttls),
            Record::View(view, None) => _ = self.views.remove(&view),
        }
    }

    /// The bytes of a whole log, and the checksum that the next record hangs on.
    fn encode(&self) -> Encoder {
        let mut encoder = Encoder::of_a_new_file();
        self.snaps.iter().for_each(|(key, facts)| encoder.push(&Record::Snap(key.clone(), facts.clone())));
        self.views.iter().for_each(|(view, ttls)| encoder.push(&Record::View(view.clone(), Some(*ttls))));
        encoder
    }
}

/// What was found when a log was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// There was none.
    New,
    Whole,
    /// A crash has cut it: what it said before that counts.
    Cut,
    /// What it said up to this offset counts.
    Damaged {
        offset: u64,
    },
    /// A later version has written it. It is left as it is, and nothing is kept.
    Newer {
        found: u32,
    },
}

/// The log of one spindle.
///
/// Noting is memory work; only opening and saving ask the disk.
pub(crate) struct AccessLog {
    spindle: Arc<Spindle>,
    inner: Mutex<Inner>,
    /// Held while it is saved: one after the other.
    saving: Mutex<Option<Tail>>,
    is_kept: bool,
}

#[derive(Default)]
struct Inner {
    facts: AccessFacts,
    /// What was noted since it was last saved.
    snaps: BTreeSet<Key>,
    views: BTreeSet<String>,
}

/// Where the next record goes.
struct Tail {
    file: Arc<SpindleFile>,
    offset: u64,
    crc: u32,
    /// How long the file was when it was made anew.
    compact_bytes: u64,
}

impl AccessLog {
    /// Reads the spindle's log and makes it anew.
    ///
    /// # Errors
    /// The disk refused. Go without: it is only advice.
    pub(crate) fn open(
        spindle: &Arc<Spindle>,
        deadline: Option<Instant>,
    ) -> Result<(AccessLog, Opened), DiskError> {
        let path = spindle.folder.join(LOG_FILE);
        let read = spindle.impellers.run(Op::ReadSmall { path, bytes_max: LOG_BYTES_MAX }, deadline);
        let (facts, opened) = match read {
            Ok(outcome) => decode(&outcome.into_bytes()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (AccessFacts::default(), Opened::New)
            }
            Err(error) => return Err(error),
        };
        let log = AccessLog {
            spindle: spindle.clone(),
            inner: Mutex::new(Inner { facts, ..Inner::default() }),
            saving: Mutex::new(None),
            is_kept: !matches!(opened, Opened::Newer { .. }),
        };
        // An empty log needs no file: a scan of a spindle that nobody notes anything of writes nothing.
        if !matches!(opened, Opened::New | Opened::Newer { .. }) {
            let facts = log.lock().facts.clone();
            *lock(&log.saving) = Some(log.make_anew(&facts, deadline)?);
        }
        Ok((log, opened))
    }

    /// What is known of a snap.
    pub(crate) fn facts(&self, key: &Key) -> Option<Facts> {
        self.lock().facts.snap(key).cloned()
    }

    /// The view's own times to live.
    pub(crate) fn ttls(&self, view: &str) -> Option<ViewTtls> {
        self.lock().facts.views.get(view).copied()
    }

    /// Takes note of something. Asks no disk.
    pub(crate) fn note(&self, key: &Key, note: Note) {
        let mut inner = self.lock();
        inner.facts.note(key, note);
        if !inner.snaps.contains(key) {
            inner.snaps.insert(key.clone());
        }
    }

    /// Gives a view (`domain/view`) times to live of its own, or takes them away. Asks no disk.
    pub(crate) fn set_ttls(&self, view: &str, ttls: Option<ViewTtls>) {
        let mut inner = self.lock();
        inner.facts.fold(Record::View(view.to_owned(), ttls));
        inner.views.insert(view.to_owned());
    }

    /// Brings what was noted to the disk.
    ///
    /// # Errors
    /// The disk refused. What was noted is still known, and the next save writes all of it anew.
    pub(crate) fn save(&self, deadline: Option<Instant>) -> Result<(), DiskError> {
        if !self.is_kept {
            return Ok(());
        }
        let mut saving = lock(&self.saving);
        let tail = saving.take();
        let (records, all) = {
            let mut inner = self.lock();
            let (snaps, views) = (std::mem::take(&mut inner.snaps), std::mem::take(&mut inner.views));
            if snaps.is_empty() && views.is_empty() {
                *saving = tail;
                return Ok(());
            }
            let mut records = Vec::new();
            records.extend(snaps.into_iter().map(|key| match inner.facts.snap(&key) {
                Some(facts) => Record::Snap(key, facts.clone()),
                None => Record::Erased(key),
            }));
            records.extend(views.into_iter().map(|view| {
                let ttls = inner.facts.views.get(&view).copied();
                Record::View(view, ttls)
            }));
            let is_long = |tail: &Tail| tail.offset > GROWTH_MIN.max(GROWTH_MAX * tail.compact_bytes);
            let all = tail.as_ref().is_none_or(is_long).then(|| inner.facts.clone());
            (records, all)
        };
        let saved = match (tail, all) {
            (Some(tail), None) => self.append(tail, &records, deadline),
            (_, all) => self.make_anew(&all.expect("without a tail it is made anew"), deadline),
        };
        match saved {
            Ok(tail) => {
                *saving = Some(tail);
                Ok(())
            }
            Err(error) => {
                let mut inner = self.lock();
                for record in records {
                    match record {
                        Record::Snap(key, _) | Record::Erased(key) => _ = inner.snaps.insert(key),
                        Record::View(view, _) => _ = inner.views.insert(view),
                    }
                }
                Err(error)
            }
        }
    }

    /// A failed sync is final: that file is never written again, so there is no tail then.
    fn append(
        &self,
        mut tail: Tail,
        records: &[Record],
        deadline: Option<Instant>,
    ) -> Result<Tail, DiskError> {
        let mut encoder = Encoder::after(tail.crc);
        records.iter().for_each(|record| encoder.push(record));
        self.write(&tail.file, tail.offset, &encoder.bytes, deadline)?;
        tail.offset += encoder.bytes.len() as u64;
        tail.crc = encoder.crc;
        Ok(tail)
    }

    fn make_anew(&self, facts: &AccessFacts, deadline: Option<Instant>) -> Result<Tail, DiskError> {
        let run = |op| self.spindle.impellers.run(op, deadline);
        let (from, to): (PathBuf, PathBuf) =
            (self.spindle.folder.join(NEW_FILE), self.spindle.folder.join(LOG_FILE));
        let _ = run(Op::Unlink { path: from.clone() }); // One that a crash has left.
        let file = run(Op::CreateFile { path: from.clone(), mode: FileMode::Buffered })?.into_file();
        let encoder = facts.encode();
        self.write(&file, 0, &encoder.bytes, deadline)?;
        run(Op::Rename { from, to })?;
        run(Op::SyncFolder { path: self.spindle.folder.clone() })?;
        let bytes = encoder.bytes.len() as u64;
        Ok(Tail { file, offset: bytes, crc: encoder.crc, compact_bytes: bytes })
    }

    fn write(
        &self,
        file: &Arc<SpindleFile>,
        offset: u64,
        bytes: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), DiskError> {
        let run = |op| self.spindle.impellers.run(op, deadline);
        let (len, bytes) = (bytes.len(), Box::new(PageBuffer::copied(bytes)));
        run(Op::Write { file: file.clone(), offset, bytes, len })?;
        run(Op::SyncData { file: file.clone() }).map(|_| ())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

/// Folds the bytes of a log, as far as they hold.
fn decode(bytes: &[u8]) -> (AccessFacts, Opened) {
    let mut facts = AccessFacts::default();
    let ending = record::decode(bytes, |record| facts.fold(record));
    let opened = match ending {
        Ending::Whole => Opened::Whole,
        Ending::Cut => Opened::Cut,
        Ending::Damaged { offset } => Opened::Damaged { offset },
        Ending::Newer { found } => Opened::Newer { found },
    };
    (facts, opened)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

//! Facts about snaps that change often, kept beside the manifests: advice, whose loss costs nobody a byte.
//!
//! ```text
//! open ─▶ facts of keys ─▶ entries, as they are made
//! entries ─now and then, and at the end─▶ facts that have changed ─save─▶ records appended to the spindle's log
//! ```
//!
//! The bytes are told in `docs/access-log.md`. What the log says is never believed against a manifest: whoever asks for
//! facts has a snap already. Here stands the log of one spindle; those of a cache are in `logs.rs`, and the thread that
//! keeps them is in `keeper.rs`.

pub(crate) mod keeper;
pub(crate) mod logs;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use pelton_region_format::Key;

use crate::spindle::engine::{DiskError, Op, PageBuffer};
use crate::spindle::file::{FileMode, SpindleFile};
use crate::spindle::held::Spindle;

use record::{Encoder, Ending, Record};

/// The file, and the one that takes its place.
const LOG_FILE: &str = "access-log";
pub(crate) const NEW_FILE: &str = "access-log.new";
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
    /// How many milliseconds lie between queries, in the mean; 0 if that is not known.
    pub(crate) gap_ms: u64,
    pub(crate) leases: u64,
    pub(crate) evicts: u64,
    pub(crate) flushes: u64,
    /// How many loads or warmings in a row have failed, if the last one was a short while ago.
    pub(crate) failures: u32,
    /// When the next one makes sense, in milliseconds since 1970.
    pub(crate) next_load_at_ms: Option<u64>,
}

/// All that a log says. A plain value: records are folded into it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AccessFacts {
    snaps: BTreeMap<Key, Facts>,
}

impl AccessFacts {
    pub(crate) fn snap(&self, key: &Key) -> Option<&Facts> {
        self.snaps.get(key)
    }

    fn fold(&mut self, record: Record) {
        match record {
            Record::Snap(key, facts) => _ = self.snaps.insert(key, facts),
            Record::Erased(key) => _ = self.snaps.remove(&key),
        }
    }

    /// The bytes of a whole log, and the checksum that the next record hangs on.
    fn encode(&self) -> Encoder {
        let mut encoder = Encoder::of_a_new_file();
        self.snaps.iter().for_each(|(key, facts)| encoder.push(&Record::Snap(key.clone(), facts.clone())));
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
    /// Whoever saves has its one message: one after the other.
    tail: (Sender<Option<Tail>>, Receiver<Option<Tail>>),
    is_kept: bool,
}

#[derive(Default)]
struct Inner {
    facts: AccessFacts,
    /// What has changed since it was last saved.
    changed: BTreeSet<Key>,
    /// What lies on the disk does not hold to its end: the next save writes all of it anew, whatever has changed.
    is_broken: bool,
    /// Among what has changed are pins: that is what somebody has wished, and must hear of if it can't be kept.
    are_pins_changed: bool,
    /// The same for what a save is at.
    are_pins_on_their_way: bool,
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
    /// Reads the spindle's log. Writes nothing: the first save makes it anew.
    ///
    /// # Errors
    /// The disk refused. Go without what it said: it is only advice.
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
        let is_broken = matches!(opened, Opened::Cut | Opened::Damaged { .. });
        let log = AccessLog {
            inner: Mutex::new(Inner { facts, is_broken, ..Inner::default() }),
            is_kept: !matches!(opened, Opened::Newer { .. }),
            ..AccessLog::empty(spindle)
        };
        Ok((log, opened))
    }

    /// One that says nothing yet.
    fn empty(spindle: &Arc<Spindle>) -> AccessLog {
        let tail = bounded(1);
        tail.0.send(None).expect("there is room for one");
        AccessLog { spindle: spindle.clone(), inner: Mutex::default(), tail, is_kept: true }
    }

    /// One that could not be read: what stands in it may be whole, so nothing is written over it.
    fn left_alone(spindle: &Arc<Spindle>) -> AccessLog {
        AccessLog { is_kept: false, ..AccessLog::empty(spindle) }
    }

    /// What is known of a snap.
    pub(crate) fn facts(&self, key: &Key) -> Option<Facts> {
        self.lock().facts.snap(key).cloned()
    }

    /// The snaps that are pinned.
    pub(crate) fn pinned(&self) -> Vec<Key> {
        let inner = self.lock();
        let pinned = inner.facts.snaps.iter().filter(|(_, facts)| facts.pinned);
        pinned.map(|(key, _)| key.clone()).collect()
    }

    /// Whether there is something to save.
    pub(crate) fn has_changed(&self) -> bool {
        let inner = self.lock();
        self.is_kept && (inner.is_broken || !inner.changed.is_empty())
    }

    /// Whether somebody has pinned or unpinned something, and that is not on the disk: also while it is on its way there.
    pub(crate) fn lacks_pins(&self) -> bool {
        let inner = self.lock();
        inner.are_pins_changed || inner.are_pins_on_their_way
    }

    /// Takes note of what is known of some snaps now. Of the others it forgets those that are not to stay. Asks no disk.
    pub(crate) fn note<'a>(
        &self,
        known: impl Iterator<Item = (&'a Key, Facts)>,
        stays: impl Fn(&Key) -> bool,
    ) {
        let mut inner = self.lock();
        let Inner { facts, changed, are_pins_changed, .. } = &mut *inner;
        let mut count = 0;
        for (key, now) in known {
            count += 1;
            *are_pins_changed |= facts.snap(key).is_some_and(|before| before.pinned) != now.pinned;
            match facts.snaps.get_mut(key) {
                Some(before) if *before == now => {}
                Some(before) => {
                    *before = now;
                    changed.insert(key.clone());
                }
                None => {
                    facts.snaps.insert(key.clone(), now);
                    changed.insert(key.clone());
                }
            }
        }
        if facts.snaps.len() > count {
            facts.snaps.retain(|key, before| {
                let stays = stays(key);
                if !stays {
                    *are_pins_changed |= before.pinned;
                    changed.insert(key.clone());
                }
                stays
            });
        }
    }

    /// Brings what was noted to the disk.
    ///
    /// # Errors
    /// The disk refused. What was noted is still known, and the next save writes all of it anew.
    pub(crate) fn save(&self, deadline: Option<Instant>) -> Result<(), DiskError> {
        if !self.is_kept {
            return Ok(());
        }
        // Also if nothing has changed: what somebody else is saving now is not saved yet.
        let (give, take) = &self.tail;
        let tail = match deadline {
            None => take.recv().ok(),
            Some(deadline) => take.recv_deadline(deadline).ok(),
        };
        let Some(tail) = tail else {
            let path = self.spindle.folder.join(LOG_FILE);
            return Err(Op::ReadSmall { path, bytes_max: LOG_BYTES_MAX }.subject().late());
        };
        let saved = self.save_after(tail, deadline);
        let (tail, saved) = match saved {
            Ok(tail) => (tail, Ok(())),
            Err(error) => (None, Err(error)),
        };
        give.send(tail).expect("there is room for the one that was taken");
        saved
    }

    /// Says where the next record goes.
    fn save_after(&self, tail: Option<Tail>, deadline: Option<Instant>) -> Result<Option<Tail>, DiskError> {
        let (records, all) = {
            let mut inner = self.lock();
            if inner.changed.is_empty() && !inner.is_broken {
                return Ok(tail);
            }
            inner.is_broken = false;
            inner.are_pins_on_their_way = std::mem::take(&mut inner.are_pins_changed);
            let changed = std::mem::take(&mut inner.changed);
            let record = |key: Key| match inner.facts.snap(&key) {
                Some(facts) => Record::Snap(key, facts.clone()),
                None => Record::Erased(key),
            };
            let records: Vec<Record> = changed.into_iter().map(record).collect();
            let is_long = |tail: &Tail| tail.offset > GROWTH_MIN.max(GROWTH_MAX * tail.compact_bytes);
            let all = tail.as_ref().is_none_or(is_long).then(|| inner.facts.clone());
            (records, all)
        };
        let saved = match (tail, all) {
            (Some(tail), None) => self.append(tail, &records, deadline),
            (_, all) => self.make_anew(&all.expect("without a tail it is made anew"), deadline),
        };
        // One save at a time: who has the tail.
        let were_pins_on_their_way = std::mem::take(&mut self.lock().are_pins_on_their_way);
        saved.map(Some).inspect_err(|_| {
            let mut inner = self.lock();
            inner.is_broken = true;
            inner.are_pins_changed |= were_pins_on_their_way;
            inner.changed.extend(records.into_iter().map(|record| match record {
                Record::Snap(key, _) | Record::Erased(key) => key,
            }));
        })
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

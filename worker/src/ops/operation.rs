//! What can be done to snaps, what would come of it, and what came of it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pelton_region_format::Key;

use crate::budget::memory::MemoryRefused;
use crate::cache::SnapStatus;
use crate::snap::state::SnapState;
use crate::snap::warm::WarmError;
use crate::spindle::engine::DiskError;
use crate::units::{Exact, count};

/// Something to be done to snaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Their memory goes, their files stay. What the page cache holds of the files goes too, also where nothing is
    /// in memory, unless it is to be kept.
    Evict {
        /// Whether the page cache is left alone.
        keep_cache: bool,
    },
    /// Memory and files go. Leases keep what they hold.
    Flush,
    /// Memory and files go, and all that is known of them. What is leased stays.
    Erase,
    /// They are not evicted, flushed or erased, until they are unpinned.
    Pin,
    /// They may be again.
    Unpin,
    /// Their files come into memory, the newest generations first, as far as there is room: nothing goes for them.
    Warm,
    /// Every byte of their files is read and compared. What is damaged is told, and stays.
    Verify,
}

/// How an operation is done. The default: really, all that was selected, without a limit of time or rate.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct OperationOptions {
    /// Only say what would come of it.
    pub dry_run: bool,
    /// Until when. What is under way then may still take effect.
    pub deadline: Option<Instant>,
    /// How many bytes a second are read at most, by [`Operation::Verify`] and [`Operation::Warm`]. A slice that somebody
    /// leases while it is warmed comes as fast as it can.
    pub rate: Option<u64>,
    /// Told how many bytes were read since it was last told.
    pub on_progress: Option<OnProgress>,
    /// Told what came of each snap, as soon as it is known.
    pub on_result: Option<OnResult>,
}

/// Listens to how far an operation is. Called on the operation's threads; what it does holds them up.
#[derive(Clone)]
pub struct OnProgress(Arc<dyn Fn(u64) + Send + Sync>);

impl OnProgress {
    /// Calls this with the bytes that were read since the last call.
    pub fn new(listen: impl Fn(u64) + Send + Sync + 'static) -> OnProgress {
        OnProgress(Arc::new(listen))
    }

    pub(crate) fn tell(&self, bytes: u64) {
        (self.0)(bytes);
    }
}

impl fmt::Debug for OnProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnProgress").finish_non_exhaustive()
    }
}

/// Listens to what comes of an operation, snap by snap, in any order. Called on the operation's threads; what it does holds
/// them up.
#[derive(Clone)]
pub struct OnResult(Arc<dyn Fn(&OperationResult) + Send + Sync>);

impl OnResult {
    /// Calls this with each result.
    pub fn new(listen: impl Fn(&OperationResult) + Send + Sync + 'static) -> OnResult {
        OnResult(Arc::new(listen))
    }

    pub(crate) fn tell(&self, result: &OperationResult) {
        (self.0)(result);
    }
}

impl fmt::Debug for OnResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnResult").finish_non_exhaustive()
    }
}

/// What came of an operation on one snap.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OperationResult {
    /// Its slice.
    pub key: Key,
    /// What came of it.
    pub outcome: OperationOutcome,
    /// How many bytes that is about: of memory, or of files where memory does not change.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// What came of an operation, or would come of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum OperationOutcome {
    /// It is done.
    Done,
    /// Of an evict: somebody holds a lease. The memory goes with the last one, unless somebody takes a new one before.
    Leaving,
    /// It was so already, or there is nothing that it could be done to.
    Nothing,
    /// It may not be done now. Nothing has changed.
    Refused(OperationRefusal),
    /// It was begun and did not work.
    Failed(OperationError),
}

/// Why an operation may not be done to a snap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperationRefusal {
    /// Unpin it first.
    #[error("it is pinned")]
    Pinned,
    /// Wait until it is on the disk.
    #[error("it is in memory only")]
    NotDurable,
    /// Wait until the leases are dropped.
    #[error("it is leased")]
    Leased,
    /// A load, or whatever else is under way, has to end first. Its files may be gone already.
    #[error("it is in use")]
    Busy,
    /// Evict something, or configure more memory.
    #[error("no room: it takes {}, and {} are free", Exact(*wanted), Exact(*free))]
    NoRoom {
        /// How much it takes.
        wanted: u64,
        /// How much is free, when those before it are there.
        free: u64,
    },
    /// It has failed, and is not tried again yet.
    #[error("it has failed, and is tried again in {again_in:.1?}")]
    Failed {
        /// When it is worth to ask again.
        again_in: Duration,
    },
    /// The cache is closed.
    #[error("the cache is closed")]
    Closed,
}

/// Why an operation on a snap did not work.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError {
    /// Files are not as they were written. Load the slice again.
    #[error("{}", list(files))]
    Damaged {
        /// Those that are not, each with the first place where it is not.
        files: Vec<DamagedFile>,
    },
    /// The deadline passed, or the operation was cancelled. What had begun may still take effect.
    #[error("it was not done in time")]
    Late,
    /// A disk refused.
    #[error("a disk refused")]
    Disk {
        /// What was tried, where, and why it failed.
        source: Arc<DiskError>,
    },
    /// It could not be read, or brought into memory.
    #[error("it could not be brought into memory")]
    Warm {
        /// Which region, and why.
        source: Arc<WarmError>,
    },
    /// It holds until the process ends: it was not saved. Try again when the disk does.
    #[error("it holds only as long as the cache is open: {} was not saved", log.display())]
    Unsaved {
        /// The access log that lacks it.
        log: PathBuf,
    },
    /// There was no memory to read it with.
    #[error("there was no memory to read it with")]
    Memory {
        /// How much was wanted, and how much there is.
        source: MemoryRefused,
    },
}

/// A file that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DamagedFile {
    /// Which file.
    pub path: PathBuf,
    /// Which of its checksum blocks is the first damaged one, if it is the body.
    pub block: Option<u64>,
    /// What is wrong, and where.
    pub why: String,
}

impl fmt::Display for DamagedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

fn list(files: &[DamagedFile]) -> String {
    match files {
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first}; and {} more", count(rest.len() as u64, "damaged file")),
        [] => "nothing is damaged".to_owned(),
    }
}

impl Operation {
    /// What would come of it, as far as the snap itself knows, and how many bytes that is about.
    pub(crate) fn forecast(self, snap: &SnapStatus) -> (OperationOutcome, u64) {
        use OperationOutcome::{Done, Leaving, Refused};
        let is_in_memory = snap.memory_bytes > 0;
        let outcome = match self {
            Operation::Evict { .. } | Operation::Flush | Operation::Erase
                if snap.pinned && snap.fingerprint.is_some() =>
            {
                Refused(OperationRefusal::Pinned)
            }
            Operation::Erase if snap.pinned => Refused(OperationRefusal::Pinned),
            Operation::Evict { .. } if is_in_memory => match (snap.durable, snap.leases) {
                (false, _) => Refused(OperationRefusal::NotDurable),
                (true, 0) => Done,
                (true, _) => Leaving,
            },
            Operation::Evict { keep_cache } => done_if(!keep_cache && snap.file_bytes > 0),
            Operation::Flush => done_if(snap.fingerprint.is_some()),
            Operation::Erase if snap.leases > 0 => Refused(OperationRefusal::Leased),
            Operation::Erase if snap.state == SnapState::Loading => Refused(OperationRefusal::Busy),
            Operation::Erase => Done,
            Operation::Pin => done_if(!snap.pinned),
            Operation::Unpin => done_if(snap.pinned),
            Operation::Warm => match (snap.state, snap.failure.as_ref().map(|failure| failure.again_in)) {
                (SnapState::Failed, Some(again_in)) => Refused(OperationRefusal::Failed { again_in }),
                _ => done_if(!is_in_memory && snap.file_bytes > 0),
            },
            Operation::Verify if is_in_memory && !snap.durable => Refused(OperationRefusal::NotDurable),
            Operation::Verify => done_if(snap.durable),
        };
        let bytes = match self {
            Operation::Evict { .. } if is_in_memory => snap.memory_bytes,
            Operation::Flush | Operation::Erase => snap.file_bytes.max(snap.memory_bytes),
            _ => snap.file_bytes,
        };
        (outcome, bytes)
    }
}

fn done_if(is_something: bool) -> OperationOutcome {
    if is_something { OperationOutcome::Done } else { OperationOutcome::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::SnapFailure;
    use crate::load::Counts;
    use pelton_region_format::Fingerprint;

    /// Files of 8 bytes, and as much in memory as is told.
    fn snap(state: SnapState, memory_bytes: u64) -> SnapStatus {
        SnapStatus {
            key: "a/b@1#0".parse().unwrap(),
            state,
            durable: true,
            unsaved: false,
            pinned: false,
            leases: 0,
            fingerprint: Some(Fingerprint::from_bytes([1; 32])),
            blob_count: 1,
            blob_bytes: 4,
            file_bytes: 8,
            memory_bytes,
            idle: None,
            counts: Counts::default(),
            failure: None,
        }
    }

    /// What the operations come to, in a word each and in this order: evict, evict with the page cache kept, flush, erase,
    /// pin, unpin, warm, verify.
    fn forecasts(snap: &SnapStatus) -> [String; 8] {
        let all = [
            Operation::Evict { keep_cache: false },
            Operation::Evict { keep_cache: true },
            Operation::Flush,
            Operation::Erase,
            Operation::Pin,
            Operation::Unpin,
            Operation::Warm,
            Operation::Verify,
        ];
        all.map(|operation| match operation.forecast(snap).0 {
            OperationOutcome::Refused(why) => why.to_string(),
            other => format!("{other:?}").to_lowercase(),
        })
    }

    #[test]
    fn what_would_come_of_each_operation_in_each_state() {
        let hot = || snap(SnapState::Hot, 8);
        let warm = || snap(SnapState::Warm, 0);
        let fresh = SnapStatus { durable: false, file_bytes: 0, ..hot() };
        let cold =
            SnapStatus { durable: false, file_bytes: 0, fingerprint: None, ..snap(SnapState::Cold, 0) };
        let empty = SnapStatus { file_bytes: 0, ..snap(SnapState::NoData, 0) };
        let failure = SnapFailure { why: "told".to_owned(), in_a_row: 1, again_in: Duration::from_secs(3) };
        let failed = SnapStatus { failure: Some(failure), ..snap(SnapState::Failed, 0) };
        let loading = SnapStatus { state: SnapState::Loading, ..cold.clone() };
        let (only, no, is_pinned) = ("it is in memory only", "nothing", "it is pinned");
        let again = "it has failed, and is tried again in 3.0s";
        let cases = [
            (hot(), ["done", "done", "done", "done", "done", no, no, "done"]),
            (
                SnapStatus { leases: 1, ..hot() },
                ["leaving", "leaving", "done", "it is leased", "done", no, no, "done"],
            ),
            (
                SnapStatus { pinned: true, ..hot() },
                [is_pinned, is_pinned, is_pinned, is_pinned, no, "done", no, "done"],
            ),
            (fresh, [only, only, "done", "done", "done", no, no, only]),
            (warm(), ["done", no, "done", "done", "done", no, "done", "done"]),
            (empty, [no, no, "done", "done", "done", no, no, "done"]),
            (failed, ["done", no, "done", "done", "done", no, again, "done"]),
            (cold.clone(), [no, no, no, "done", "done", no, no, no]),
            (SnapStatus { pinned: true, ..cold }, [no, no, no, is_pinned, no, "done", no, no]),
            (loading, [no, no, no, "it is in use", "done", no, no, no]),
        ];
        for (snap, expected) in cases {
            assert_eq!(forecasts(&snap), expected, "{snap:?}");
        }
    }

    #[test]
    fn bytes_are_those_that_the_operation_is_about() {
        let bytes = |operation: Operation, memory| operation.forecast(&snap(SnapState::Hot, memory)).1;
        let evict = Operation::Evict { keep_cache: false };
        assert_eq!((bytes(evict, 20), bytes(evict, 0)), (20, 8));
        assert_eq!((bytes(Operation::Flush, 20), bytes(Operation::Flush, 0)), (20, 8));
        assert_eq!((bytes(Operation::Warm, 0), bytes(Operation::Verify, 20)), (8, 8));
    }
}

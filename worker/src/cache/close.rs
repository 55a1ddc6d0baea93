//! What the cache still has to bring to the disks: waiting for it, hearing what failed, and closing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use pelton_region_format::Key;

use crate::scan::patience::Patience;
use crate::side_by_side::side_by_side;
use crate::snap::access::logs::AccessLogs;
use crate::snap::commit::CommitError;
use crate::spindle::held::Spindle;

/// Why slices are not on the disks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// Some are still on their way. Wait again, or look at the disks.
    #[error("{} did not get to the disk in time", Keys(keys))]
    Late {
        /// Their keys.
        keys: Vec<Key>,
    },
    /// Some can be scanned and will not survive the process. Load them again, once the disks are in order.
    #[error("{}", Failures(failures))]
    Failed {
        /// Each key, and what failed on its way to the disk.
        failures: Vec<(Key, CommitError)>,
    },
}

/// What closing had to leave behind. The cache is closed all the same.
#[derive(Debug)]
#[non_exhaustive]
pub struct CloseError {
    /// Slices whose loaders did not end. Nothing of those loads is kept; their threads end with the loaders.
    pub loading: Vec<Key>,
    /// Slices that were still on their way to the disk, or off it after a failed load. The next start does not
    /// find them.
    pub unfinished: Vec<Key>,
    /// Slices that did not get to the disk, and why.
    pub failed: Vec<(Key, CommitError)>,
    /// Threads that a hung disk keeps, each with what it waits for. They end when the disk answers. Until then
    /// their spindle's folder can't be opened again.
    pub abandoned: Vec<String>,
    /// Access logs that could not be saved, so that the next start does not know what was pinned or unpinned.
    pub pins: Vec<PathBuf>,
}

impl std::error::Error for CloseError {}

impl CloseError {
    /// Whether nothing was left behind after all.
    pub(crate) fn is_empty(&self) -> bool {
        let CloseError { loading, unfinished, failed, abandoned, pins } = self;
        let is_done = loading.is_empty() && unfinished.is_empty() && failed.is_empty();
        is_done && abandoned.is_empty() && pins.is_empty()
    }
}

impl fmt::Display for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.loading.is_empty() {
            parts.push(format!("the loader of {} did not end in time", Keys(&self.loading)));
        }
        if !self.unfinished.is_empty() {
            parts.push(format!("{} did not get to the disk in time", Keys(&self.unfinished)));
        }
        if !self.failed.is_empty() {
            parts.push(Failures(&self.failed).to_string());
        }
        if !self.abandoned.is_empty() {
            parts.push(format!("left behind: {}", self.abandoned.join(", ")));
        }
        if !self.pins.is_empty() {
            let logs: Vec<String> = self.pins.iter().map(|log| log.display().to_string()).collect();
            parts.push(format!("what was pinned could not be saved in {}", logs.join(", ")));
        }
        write!(f, "the cache was closed, but {}", parts.join("; "))
    }
}

struct Keys<'a>(&'a [Key]);

impl fmt::Display for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.0.iter().map(Key::to_string).collect();
        f.write_str(&keys.join(", "))
    }
}

struct Failures<'a>(&'a [(Key, CommitError)]);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, error)) in self.0.iter().enumerate() {
            write!(f, "{}{key} did not get to the disk: {error}", if index == 0 { "" } else { "; " })?;
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}

/// The commits that are under way, and those that failed while nobody waited for them. The loads of loaders are counted in
/// the same way, apart.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    under_way: BTreeMap<u64, Key>,
    /// At most one for each key: the last one.
    failed: BTreeMap<Key, CommitError>,
}

/// A commit that is under way as long as this value lives.
#[derive(Debug)]
pub(crate) struct UnderWay {
    commits: Arc<Commits>,
    number: u64,
}

impl Commits {
    /// One more is under way.
    pub(crate) fn begin(self: &Arc<Self>, key: Key) -> UnderWay {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.failed.remove(&key); // What fails or works now is what counts.
        state.under_way.insert(number, key);
        UnderWay { commits: self.clone(), number }
    }

    /// Waits until those that are under way now have ended. At the end of its patience it tells the others.
    pub(crate) fn wait(self: &Arc<Self>, patience: &Patience) -> Vec<Key> {
        let _watches = patience.watch(&Waker::from(self.clone()));
        let mut state = self.lock();
        let until = state.next;
        loop {
            if state.under_way.range(..until).next().is_none() {
                return Vec::new();
            }
            if patience.check().is_err() {
                let keys: BTreeSet<&Key> = state.under_way.range(..until).map(|(_, key)| key).collect();
                return keys.into_iter().cloned().collect();
            }
            state = match patience.deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Those that failed and that nobody has heard of.
    pub(crate) fn take_failed(&self) -> Vec<(Key, CommitError)> {
        std::mem::take(&mut self.lock().failed).into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes those who wait, when one of them is cancelled.
impl Wake for Commits {
    fn wake(self: Arc<Self>) {
        drop(self.lock()); // Whoever has looked, and does not wait yet, waits by now.
        self.changed.notify_all();
    }
}

impl UnderWay {
    /// It failed, and nobody waits for it: the next one who asks is told.
    pub(crate) fn failed(self, error: CommitError) {
        let mut state = self.commits.lock();
        if let Some(key) = state.under_way.get(&self.number).cloned() {
            state.failed.insert(key, error);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.commits.lock().under_way.remove(&self.number);
        self.commits.changed.notify_all();
    }
}

/// Saves what was noted of all slices, ends the threads of all spindles, side by side, and names those that had to be left
/// behind.
pub(crate) fn close_spindles(
    spindles: &[Arc<Spindle>],
    access: &AccessLogs,
    deadline: Instant,
) -> Vec<String> {
    let close = |(number, spindle): &(usize, &Arc<Spindle>)| {
        access.save_on(*number, deadline);
        spindle.impellers.close(deadline).abandoned
    };
    let spindles: Vec<_> = spindles.iter().enumerate().collect();
    side_by_side("pelton-close", &spindles, close)
        .into_iter()
        .flatten()
        .map(|abandoned| abandoned.to_string())
        .collect()
}

/// How long closing without a deadline waits: longer than anybody.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

//! A cache that is in use while its manifests are still being read.
//!
//! ```text
//! open ─▶ list ─▶ pelton-recover reads all manifests ─────────────▶ enters those that nobody has asked for
//!                 lease, flush, ... of a key ─▶ reads that one first, and enters it
//! ```
//!
//! A key that somebody asks for meanwhile is read once, by whoever asks first, and is that one's from then on: what
//! the long reading has seen of it counts no more, since it may have been flushed since.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use pelton_region_format::Key;

use crate::cache::table::SharedTable;
use crate::events::EventHub;
use crate::scan::cancel::CancelToken;
use crate::scan::patience::Patience;
use crate::snap::access::logs::AccessLogs;
use crate::snap::entry::Entry;
use crate::snap::manifest::Manifest;
use crate::snap::recovery::{Listed, Recovered, RecoveryReport, find, leave_behind, recover};
use crate::snap::runner::Runner;
use crate::snap::state::SnapEvent;
use crate::spindle::held::Spindle;

/// How long the end of a cache waits for the reading, which has stopped unless a disk hangs.
const STOP_WAIT_MAX: Duration = Duration::from_secs(2);

/// What a thread is to do.
type Job = Box<dyn FnOnce() + Send>;

/// How far the reading of the manifests is.
#[derive(Default)]
pub(crate) struct Recovering {
    /// Set once, at the end.
    report: OnceLock<RecoveryReport>,
    asked: Mutex<Asked>,
    changed: Condvar,
    /// Cancelled by the cache's end: then nobody waits for the reading any more, nor does that for a disk.
    stop: CancelToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Which keys somebody has asked for before the reading came to them.
#[derive(Default)]
struct Asked {
    /// Whether what the disks have of it was found out.
    keys: HashMap<Key, bool>,
    /// The reading has entered what it found: from here on the table knows all there is.
    is_over: bool,
}

/// What somebody who asks for a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing: the table knows it, if the disks do.
    Known,
    /// Wait: somebody else is reading it.
    Others,
    /// Read it.
    Own,
}

impl Asked {
    fn ask(&mut self, key: &Key) -> Turn {
        match self.keys.get(key) {
            _ if self.is_over => Turn::Known,
            Some(true) => Turn::Known,
            Some(false) => Turn::Others,
            None => {
                self.keys.insert(key.clone(), false);
                Turn::Own
            }
        }
    }

    /// Says whether what was read by whoever had the turn counts. If the long reading has come before, it has entered the key, and
    /// much may have happened to it since.
    fn found(&mut self, key: &Key) -> bool {
        if !self.is_over {
            self.keys.insert(key.clone(), true);
        }
        !self.is_over
    }

    /// Whoever had the turn could not find out. Says whether the key is known all the same.
    fn give_up(&mut self, key: &Key) -> bool {
        self.keys.remove(key);
        self.is_over
    }

    /// Whether the reading enters what it has found of a key: not if somebody was quicker. Who still reads it has touched
    /// nothing, and comes too late.
    fn enters(&self, key: &Key) -> bool {
        self.keys.get(key) != Some(&true)
    }

    fn end(&mut self) {
        self.keys = HashMap::new();
        self.is_over = true;
    }
}

/// What the reading fills. Not the cache itself, which may go meanwhile.
pub(crate) struct Target {
    pub(crate) spindles: Vec<Arc<Spindle>>,
    pub(crate) table: SharedTable,
    pub(crate) runner: Arc<Runner>,
    pub(crate) events: Arc<EventHub>,
    pub(crate) next_load: Arc<AtomicU64>,
    /// Whether the cache was closed.
    pub(crate) closed: Arc<AtomicBool>,
    pub(crate) access: Arc<AccessLogs>,
}

impl Target {
    /// The entry of a slice that was found.
    pub(super) fn entry(&self, manifest: Manifest) -> Arc<Entry> {
        self.entry_of(manifest.key.clone(), Some(manifest))
    }

    /// The entry of a key. To be made under the table's lock: closing looks at all that is entered after it has said so.
    fn entry_of(&self, key: Key, manifest: Option<Manifest>) -> Arc<Entry> {
        let access = self.access.facts(&key, manifest.as_ref());
        let entry = Arc::new(Entry::new(key, manifest, access, self.runner.clone()));
        if self.closed.load(Ordering::Relaxed) {
            entry.report(SnapEvent::Close);
        }
        entry
    }
}

impl Recovering {
    /// Begins to read what was listed, by so many threads. `settle` is run when all that is there is counted.
    pub(crate) fn start(
        self: &Arc<Self>,
        target: Target,
        listed: Listed,
        threads: usize,
        settle: impl FnOnce() + Send + 'static,
    ) {
        let recovering = self.clone();
        let read = move || {
            let _end = End(recovering.clone());
            let urgent = &target.runner.urgent;
            let recovered =
                recover(&target.spindles, listed, threads, &recovering.stop, &|| urgent.let_go_first());
            urgent.end();
            let report = recovering.enter(&target, recovered);
            settle();
            recovering.end(report);
        };
        // Where there are no more threads the caller's does it.
        let job: Arc<Mutex<Option<Job>>> = Arc::new(Mutex::new(Some(Box::new(read))));
        let of_thread = job.clone();
        let run = |job: &Mutex<Option<Job>>| {
            let job = lock(job).take();
            job.into_iter().for_each(|job| job());
        };
        let spawned = thread::Builder::new().name("pelton-recover".to_owned()).spawn(move || run(&of_thread));
        match spawned {
            Ok(thread) => *lock(&self.thread) = Some(thread),
            Err(_) => run(&job),
        }
    }

    /// Whether all manifests were read.
    pub(crate) fn is_over(&self) -> bool {
        self.report.get().is_some()
    }

    /// Waits until they are. Nothing at the end of its patience, or of the cache.
    pub(crate) fn wait(self: &Arc<Self>, patience: &Patience) -> Option<&RecoveryReport> {
        if self.report.get().is_none() {
            let waker = Waker::from(self.clone());
            let _watches = (patience.watch(&waker), self.stop.watch(&waker));
            let mut asked = lock(&self.asked);
            while self.report.get().is_none() {
                patience.check().ok().filter(|()| !self.stop.is_cancelled())?;
                asked = self.wait_for_change(asked, patience);
            }
        }
        self.report.get()
    }

    /// Sees to it that what is on the disks of a key is entered before the reading comes to it, and says whether it is. It
    /// is not at the end of its patience, or of the cache, and where a disk refuses: then the reading may enter it, or the next
    /// one who asks.
    pub(crate) fn look_up(self: &Arc<Self>, target: &Target, key: &Key, patience: &Patience) -> bool {
        debug_assert!(patience.stop.is_none(), "nobody who looks a key up has a stop of its own");
        let patience = &Patience { stop: Some(self.stop.clone()), ..patience.clone() };
        let _watches = patience.watch(&Waker::from(self.clone()));
        let mut asked = lock(&self.asked);
        loop {
            match asked.ask(key) {
                Turn::Known => return true,
                Turn::Others if patience.check().is_err() => return false,
                Turn::Others => asked = self.wait_for_change(asked, patience),
                Turn::Own => break,
            }
        }
        drop(asked);
        let (reading, read) = bounded(0);
        target.runner.urgent.begin(read);
        let found = find(&target.spindles, key, patience);
        drop(reading);
        let mut asked = lock(&self.asked);
        let is_known = match found {
            Some(found) => {
                if asked.found(key)
                    && let Some(manifest) = found.slice
                {
                    found.replaced.iter().for_each(|home| target.runner.leftovers.add(key, *home));
                    target.table.entry(key, || target.entry(manifest));
                }
                true
            }
            None => asked.give_up(key),
        };
        drop(asked);
        self.changed.notify_all();
        is_known
    }

    /// Enters what nobody has asked for.
    pub(super) fn enter(&self, target: &Target, recovered: Option<Recovered>) -> RecoveryReport {
        let Some(recovered) = recovered else { return RecoveryReport::default() };
        target.next_load.fetch_max(recovered.next_load, Ordering::Relaxed);
        target.events.found(recovered.report.kept);
        let mut asked = lock(&self.asked);
        for (key, home) in &recovered.leftovers {
            target.runner.leftovers.add(key, *home);
        }
        // Who has asked for one of them could read it after all, and counts its files.
        for manifest in recovered.waiting.iter().filter(|manifest| asked.enters(&manifest.key)) {
            leave_behind(&target.spindles, manifest);
        }
        let mut table = target.table.write();
        for (key, manifest) in recovered.slices {
            if asked.enters(&key) {
                table.enter(target.entry(manifest));
            }
        }
        // A pin holds also for what is to be loaded yet.
        for key in target.access.pinned() {
            if table.find(&key).is_none() {
                table.enter(target.entry_of(key, None));
            }
        }
        asked.end();
        drop(table);
        target.access.recovered(&recovered.report);
        let logs = target.access.told().to_vec();
        RecoveryReport { logs, ..recovered.report }
    }

    fn end(&self, report: RecoveryReport) {
        let asked = lock(&self.asked);
        let _ = self.report.set(report); // The first one counts.
        drop(asked);
        self.changed.notify_all();
    }

    /// Ends the reading soon, and waits for that a while. Names the thread that it had to leave behind.
    pub(crate) fn stop(&self) -> Option<String> {
        self.stop.cancel();
        let thread = lock(&self.thread).take()?;
        let deadline = Instant::now() + STOP_WAIT_MAX;
        let mut asked = lock(&self.asked);
        while self.report.get().is_none() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            asked = self.changed.wait_timeout(asked, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(asked);
        // A thread that a hung disk keeps ends by itself, if the disk ever answers.
        if self.is_over() {
            let _ = thread.join();
            return None;
        }
        Some(format!("{} (reads manifests, of which a disk does not give one)", thread.thread().name()?))
    }

    fn wait_for_change<'a>(
        &self,
        asked: MutexGuard<'a, Asked>,
        patience: &Patience,
    ) -> MutexGuard<'a, Asked> {
        match patience.deadline {
            None => self.changed.wait(asked).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(asked, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

/// The end of the reading, also if it panics: then nobody waits for what it will never tell. What it had not entered, the next
/// start finds.
struct End(Arc<Recovering>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end(RecoveryReport::default()); // Nothing, if it has told.
    }
}

/// Wakes those who wait, when one of them is cancelled.
impl Wake for Recovering {
    fn wake(self: Arc<Self>) {
        drop(lock(&self.asked)); // Whoever has looked, and does not wait yet, waits by now.
        self.changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        "d/v@1#0".parse().unwrap()
    }

    #[test]
    fn a_key_is_read_once() {
        let mut asked = Asked::default();
        assert_eq!([asked.ask(&key()), asked.ask(&key())], [Turn::Own, Turn::Others]);
        assert!(asked.found(&key()));
        assert_eq!(asked.ask(&key()), Turn::Known);
        assert!(!asked.enters(&key()), "it may have been flushed since");
    }

    #[test]
    fn a_key_that_could_not_be_read_is_read_by_the_next_one() {
        let mut asked = Asked::default();
        assert_eq!(asked.ask(&key()), Turn::Own);
        assert!(!asked.give_up(&key()));
        assert!(asked.enters(&key()));
        assert_eq!(asked.ask(&key()), Turn::Own);
    }

    /// Otherwise nobody would enter it, and the slice would be hidden until the next start.
    #[test]
    fn a_key_that_is_still_being_read_at_the_end_is_entered_by_the_reading() {
        let mut asked = Asked::default();
        assert_eq!(asked.ask(&key()), Turn::Own);
        assert!(asked.enters(&key()));
        asked.end();
        assert_eq!(asked.ask(&key()), Turn::Known);
        assert!(!asked.found(&key()), "what was read early counts no more");
        assert!(asked.give_up(&key()), "who was late finds it in the table");
    }
}

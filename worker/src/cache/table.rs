//! The entries of a cache, by key.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, PoisonError};

use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};
use pelton_region_format::Key;

use crate::snap::entry::Entry;

/// So many entries are never looked through for blank ones.
const SWEEP_MIN: usize = 64;
/// How often the table itself has an entry.
const OWN_SHARES: usize = 2;

/// The table, for all threads: many look, few change it.
///
/// Whoever looks writes a lock of its own thread, up to eight of them, so that threads that look for different snaps do
/// not take cache lines from each other. Whoever changes takes all of the locks.
#[derive(Clone)]
pub(crate) struct SharedTable(Arc<ShardedLock<Table>>);

/// The entry of each key that somebody knows something of, or has asked for lately.
///
/// Whoever asks for a key gets an entry, also if there is nothing to know of it. Those that stay blank and that nobody
/// holds are swept out when the table has doubled: so there are never more than twice as many as are worth keeping,
/// and each is looked at a few times in its life.
pub(crate) struct Table {
    /// In the order of their keys.
    rows: BTreeSet<Row>,
    /// The same, for whoever looks for one: one step, where a tree has one for each level.
    by_key: HashSet<Row>,
    /// With so many entries it is time to sweep.
    full: usize,
}

/// An entry that stands for its key, so that the key is there once.
#[derive(Clone)]
struct Row(Arc<Entry>);

impl SharedTable {
    pub(crate) fn new() -> SharedTable {
        let table = Table { rows: BTreeSet::new(), by_key: HashSet::new(), full: SWEEP_MIN };
        SharedTable(Arc::new(ShardedLock::new(table)))
    }

    pub(crate) fn read(&self) -> ShardedLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> ShardedLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of a key; the one that `new` makes if there is none.
    pub(crate) fn entry(&self, key: &Key, new: impl FnOnce() -> Arc<Entry>) -> Arc<Entry> {
        let found = self.read().find(key).cloned();
        found.unwrap_or_else(|| self.write().entry(key, new))
    }
}

impl Table {
    /// The entry of a key.
    pub(crate) fn find(&self, key: &Key) -> Option<&Arc<Entry>> {
        self.by_key.get(key).map(|row| &row.0)
    }

    fn entry(&mut self, key: &Key, new: impl FnOnce() -> Arc<Entry>) -> Arc<Entry> {
        // Somebody else may have made it since.
        if let Some(entry) = self.find(key) {
            return entry.clone();
        }
        if self.rows.len() >= self.full {
            self.sweep();
        }
        let entry = new();
        self.insert(entry.clone());
        entry
    }

    /// Puts an entry of something that was found, unless there is one that somebody has or that is worth keeping.
    pub(crate) fn enter(&mut self, found: Arc<Entry>) {
        if let Some(entry) = self.find(&found.key) {
            if !is_free(entry) {
                return;
            }
            self.remove(&found.key);
        }
        self.insert(found);
        self.full = self.full.max(2 * self.rows.len());
    }

    /// All of them, in the order of their keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.rows.iter().map(|row| &row.0)
    }

    /// Forgets an entry that was erased. One that has come in its place stays.
    pub(crate) fn forget(&mut self, gone: &Arc<Entry>) {
        if self.find(&gone.key).is_some_and(|entry| Arc::ptr_eq(entry, gone)) {
            self.remove(&gone.key);
        }
    }

    fn sweep(&mut self) {
        self.by_key.retain(|row| {
            let stays = !is_free(&row.0);
            if !stays {
                self.rows.remove(row);
            }
            stays
        });
        self.full = SWEEP_MIN.max(2 * self.rows.len());
    }

    fn insert(&mut self, entry: Arc<Entry>) {
        self.rows.insert(Row(entry.clone()));
        self.by_key.insert(Row(entry));
    }

    fn remove(&mut self, key: &Key) {
        self.rows.remove(key);
        self.by_key.remove(key);
    }
}

/// Whether an entry can be forgotten. Nobody takes one that only the table has while the table is being changed.
fn is_free(entry: &Arc<Entry>) -> bool {
    Arc::strong_count(entry) == OWN_SHARES && entry.is_blank()
}

impl Borrow<Key> for Row {
    fn borrow(&self) -> &Key {
        &self.0.key
    }
}

impl Hash for Row {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Row) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Row {}

impl PartialOrd for Row {
    fn partial_cmp(&self, other: &Row) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Row {
    fn cmp(&self, other: &Row) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

//! The entries of a cache, by key.

use std::collections::BTreeMap;
use std::sync::Arc;

use pelton_region_format::Key;

use crate::snap::entry::Entry;

/// So many entries are never looked through for blank ones.
const SWEEP_MIN: usize = 64;

/// The entry of each key that somebody knows something of, or has asked for lately.
///
/// Whoever asks for a key gets an entry, also if there is nothing to know of it. Those that stay blank and that nobody
/// holds are swept out when the table has doubled: so there are never more than twice as many as are worth keeping,
/// and each is looked at a few times in its life.
pub(crate) struct Table {
    entries: BTreeMap<Key, Arc<Entry>>,
    /// With so many entries it is time to sweep.
    full: usize,
}

impl Table {
    pub(crate) fn new() -> Table {
        Table { entries: BTreeMap::new(), full: SWEEP_MIN }
    }

    /// The entry of a key; the one that `new` makes if there is none.
    pub(crate) fn entry(&mut self, key: &Key, new: impl FnOnce() -> Arc<Entry>) -> Arc<Entry> {
        if let Some(entry) = self.entries.get(key) {
            return entry.clone();
        }
        if self.entries.len() >= self.full {
            // Under the table's lock: an entry that only the table has can't be taken meanwhile.
            self.entries.retain(|_, entry| Arc::strong_count(entry) > 1 || !entry.is_blank());
            self.full = SWEEP_MIN.max(2 * self.entries.len());
        }
        self.entries.entry(key.clone()).or_insert_with(new).clone()
    }

    /// Puts an entry of something that was found, unless there is one that somebody has or that is worth keeping.
    pub(crate) fn enter(&mut self, found: Arc<Entry>) {
        // Under the table's lock: see above.
        let is_free = |entry: &Arc<Entry>| Arc::strong_count(entry) == 1 && entry.is_blank();
        if self.entries.get(&found.key).is_none_or(is_free) {
            self.entries.insert(found.key.clone(), found);
            self.full = self.full.max(2 * self.entries.len());
        }
    }

    /// Whether there is one of this key.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    /// All of them, in the order of their keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// Forgets an entry that was erased. One that has come in its place stays.
    pub(crate) fn forget(&mut self, gone: &Arc<Entry>) {
        if self.entries.get(&gone.key).is_some_and(|entry| Arc::ptr_eq(entry, gone)) {
            self.entries.remove(&gone.key);
        }
    }
}

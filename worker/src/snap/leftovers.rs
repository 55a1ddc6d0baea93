//! Manifests of other loads that may still stand on a disk, beside the one that counts.
//!
//! A slice's manifest stands on the home spindle of its load, and the next load may have another home. Of two manifests the
//! newer one counts: so what could not be removed is harmless as long as that stands, and would come back with the next start if
//! that went alone. A commit that nobody knows the end of may have left a newer one, too. Whoever takes the one that counts
//! off the disks takes these off before.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pelton_region_format::Key;

use crate::spindle::identity::SpindleUuid;

/// By key the spindles where one may stand. There are any only where a disk has refused, or while the disks are still being
/// read; and as long as the cache is open, whatever becomes of the slice's entry.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(Mutex<BTreeMap<Key, Vec<SpindleUuid>>>);

impl Leftovers {
    /// One may stand there.
    pub(crate) fn add(&self, key: &Key, home: SpindleUuid) {
        let mut all = self.lock();
        let homes = all.entry(key.clone()).or_default();
        if !homes.contains(&home) {
            homes.push(home);
        }
    }

    /// None stands there any more.
    pub(crate) fn remove(&self, key: &Key, home: SpindleUuid) {
        let mut all = self.lock();
        if let Some(homes) = all.get_mut(key) {
            homes.retain(|other| *other != home);
            if homes.is_empty() {
                all.remove(key);
            }
        }
    }

    /// Where any may stand.
    pub(crate) fn of(&self, key: &Key) -> Vec<SpindleUuid> {
        self.lock().get(key).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Vec<SpindleUuid>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

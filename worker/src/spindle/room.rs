//! What a spindle has room for: its ledger, and what its disk was last seen to have free.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::budget::ledger::{Reservation, SpindleCounts, SpindleFull, SpindleLedger, Stored};

/// The room of one spindle. Asks no disk: whoever asked tells it what was seen.
#[derive(Debug)]
pub(crate) struct SpindleRoom {
    ledger: SpindleLedger,
    /// What somebody has set while the cache was open: from then on it counts, whatever was settled before.
    capacity_set: Mutex<Option<u64>>,
    /// What the file system had free when it was last asked, without what it gave us since.
    disk_free: Mutex<u64>,
    /// Files that nobody uses any more and that could not be removed. They still take their space.
    left_behind: Mutex<Vec<Arc<Stored>>>,
}

impl SpindleRoom {
    /// Room for nothing, until [`Self::limit`] says more: files that are there can be counted already.
    pub(crate) fn new() -> SpindleRoom {
        SpindleRoom {
            ledger: SpindleLedger::new(0, 0),
            capacity_set: Mutex::new(None),
            disk_free: Mutex::new(0),
            left_behind: Mutex::new(Vec::new()),
        }
    }

    /// Settles how much the spindle may hold, unless somebody has set that, and how much of its file system stays free.
    pub(crate) fn limit(&self, capacity: u64, floor: u64) {
        let set = lock(&self.capacity_set);
        self.ledger.limit(set.unwrap_or(capacity), floor);
    }

    /// Sets how much the spindle may hold.
    pub(crate) fn set_capacity(&self, capacity: u64) {
        let mut set = lock(&self.capacity_set);
        *set = Some(capacity);
        self.ledger.limit(capacity, self.counts().floor);
    }

    /// Takes note of what the file system has free.
    pub(crate) fn saw(&self, disk_free: u64) {
        *lock(&self.disk_free) = disk_free;
    }

    /// Counts a file that was there before.
    pub(crate) fn adopt(&self, file_bytes: u64) -> Arc<Stored> {
        Arc::new(self.ledger.adopt(file_bytes.next_multiple_of(crate::budget::ledger::DISK_PAGE_BYTES)))
    }

    /// Keeps counting a file that could not be removed, for as long as the cache is open.
    pub(crate) fn leave_behind(&self, stored: Arc<Stored>) {
        lock(&self.left_behind).push(stored);
    }

    /// Promises `bytes`.
    ///
    /// # Errors
    /// [`SpindleFull`]
    pub(crate) fn reserve(&self, bytes: u64) -> Result<Reservation, SpindleFull> {
        self.ledger.reserve(bytes, self.disk_free())
    }

    /// Promises `bytes` more.
    ///
    /// # Errors
    /// [`SpindleFull`]
    pub(crate) fn grow(&self, reservation: &mut Reservation, bytes: u64) -> Result<(), SpindleFull> {
        reservation.grow(bytes, self.disk_free())
    }

    /// Says that the file system gave `bytes` of a promise, so that it has so much less.
    pub(crate) fn allocated(&self, reservation: &mut Reservation, bytes: u64) {
        let mut disk_free = lock(&self.disk_free);
        *disk_free = disk_free.saturating_sub(bytes);
        reservation.allocated(bytes);
    }

    /// What is promised and held now.
    pub(crate) fn counts(&self) -> SpindleCounts {
        self.ledger.counts()
    }

    /// How much is used and promised, and how much could be: the capacity, or less where the file system has less.
    pub(crate) fn level(&self) -> (u64, u64) {
        let SpindleCounts { capacity, used, reserved, .. } = self.counts();
        let taken = used + reserved;
        // Beyond a capacity that was made smaller nothing is free, and what is beyond has to go first.
        (taken, capacity.min(taken.saturating_add(self.disk_free_unpromised())))
    }

    /// What a load could still get.
    pub(crate) fn free(&self) -> u64 {
        let SpindleCounts { capacity, used, reserved, .. } = self.counts();
        capacity.saturating_sub(used + reserved).min(self.disk_free_unpromised())
    }

    fn disk_free_unpromised(&self) -> u64 {
        let SpindleCounts { unallocated, floor, .. } = self.counts();
        self.disk_free().saturating_sub(unallocated).saturating_sub(floor)
    }

    fn disk_free(&self) -> u64 {
        *lock(&self.disk_free)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What stands under these locks is changed in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

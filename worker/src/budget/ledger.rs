//! The disk space that a spindle has promised and what it holds.
//!
//! ```text
//! reserve --> Reservation --keep--> Stored --drop--> free again
//!                  |                (when the file is unlinked and its last map is gone)
//!                  +------drop----> free again
//! ```
//!
//! The ledger asks no disk. Who reserves says how much the file system has free; the ledger knows how much of
//! that is promised to others who have not allocated it yet.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::units::Exact;

/// Space is counted in these, because files are.
pub(crate) const DISK_PAGE_BYTES: u64 = 4096;

/// Why space was not reserved. Nothing changed; flush something and try again, or take another spindle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpindleFull {
    /// The spindle holds as much as it may.
    #[error(
        "{wanted} are too much for the spindle: {free} of its {capacity} are left",
        wanted = Exact(*wanted), free = Exact(*free), capacity = Exact(*capacity)
    )]
    Capacity {
        /// How much was to be written.
        wanted: u64,
        /// How much of the capacity is neither used nor promised.
        free: u64,
        /// How much the spindle may hold.
        capacity: u64,
    },
    /// The file system under it is nearly full, by whoever's files.
    #[error(
        "{wanted} are too much for the disk: {free} are free, of which {promised} are promised and {floor} stay free",
        wanted = Exact(*wanted), free = Exact(*free), promised = Exact(*promised), floor = Exact(*floor)
    )]
    Disk {
        /// How much was to be written.
        wanted: u64,
        /// How much the file system has free.
        free: u64,
        /// How much of that is promised to loads under way.
        promised: u64,
        /// How much stays free, whatever the capacity says.
        floor: u64,
    },
}

/// What a spindle has promised and what it holds, at one moment. All are whole pages but the floor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpindleCounts {
    pub(crate) capacity: u64,
    /// In files that exist, unlinked ones too as long as something maps them.
    pub(crate) used: u64,
    /// Promised to loads under way.
    pub(crate) reserved: u64,
    /// The part of `reserved` that the file system has not given yet.
    pub(crate) unallocated: u64,
    /// What the file system keeps free whatever the capacity says.
    pub(crate) floor: u64,
}

/// A spindle's accounts. Cloning it makes another handle of the same ones.
#[derive(Clone, Debug)]
pub(crate) struct SpindleLedger {
    shared: Arc<Mutex<Accounts>>,
}

impl SpindleLedger {
    /// An empty spindle that may hold `capacity` bytes and leaves `floor` bytes free on its file system.
    pub(crate) fn new(capacity: u64, floor: u64) -> SpindleLedger {
        let capacity = capacity - capacity % DISK_PAGE_BYTES;
        let counts = SpindleCounts { capacity, floor, ..SpindleCounts::default() };
        SpindleLedger { shared: Arc::new(Mutex::new(Accounts { counts, beyond: false })) }
    }

    /// Sets other limits. What is promised and held stays, even beyond them.
    ///
    /// Start-up needs it: the default capacity counts what the spindle holds already.
    pub(crate) fn limit(&self, capacity: u64, floor: u64) {
        let mut accounts = self.lock();
        accounts.counts.capacity = capacity - capacity % DISK_PAGE_BYTES;
        accounts.counts.floor = floor;
        accounts.beyond = true;
        accounts.check();
    }

    /// Promises `bytes`, a whole number of pages. `disk_free` is what the file system has free now.
    ///
    /// # Errors
    /// [`SpindleFull`]: nothing is promised then.
    pub(crate) fn reserve(&self, bytes: u64, disk_free: u64) -> Result<Reservation, SpindleFull> {
        self.lock().reserve(bytes, disk_free)?;
        Ok(Reservation { ledger: self.clone(), bytes, unallocated: bytes })
    }

    /// Counts a file that was there before: start-up found it.
    ///
    /// It is counted even beyond the capacity, which may have been made smaller since. Nothing can be reserved
    /// then until enough of it is gone.
    pub(crate) fn adopt(&self, bytes: u64) -> Stored {
        let mut accounts = self.lock();
        assert!(bytes.is_multiple_of(DISK_PAGE_BYTES), "files are whole pages");
        accounts.counts.used += bytes;
        accounts.beyond |= accounts.counts.used + accounts.counts.reserved > accounts.counts.capacity;
        accounts.check();
        Stored { ledger: self.clone(), bytes }
    }

    /// What is promised and held now.
    pub(crate) fn counts(&self) -> SpindleCounts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        // Only a failed assertion of ours poisons it, and a guard that drops meanwhile must not panic again.
        self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Space that was promised. Dropping it takes the promise back: remove what was allocated before.
#[derive(Debug)]
#[must_use = "dropping it takes the promise back"]
pub(crate) struct Reservation {
    ledger: SpindleLedger,
    bytes: u64,
    unallocated: u64,
}

impl Reservation {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Promises `bytes` more.
    ///
    /// # Errors
    /// [`SpindleFull`]: what was promised before still is.
    pub(crate) fn grow(&mut self, bytes: u64, disk_free: u64) -> Result<(), SpindleFull> {
        self.ledger.lock().reserve(bytes, disk_free)?;
        self.bytes += bytes;
        self.unallocated += bytes;
        Ok(())
    }

    /// Cuts a part off, with its share of what is not allocated yet. For one region of a slice.
    pub(crate) fn split(&mut self, bytes: u64) -> Reservation {
        assert!(bytes <= self.bytes, "a part is not larger than the whole");
        assert!(bytes.is_multiple_of(DISK_PAGE_BYTES), "files are whole pages");
        let unallocated = bytes.min(self.unallocated);
        self.bytes -= bytes;
        self.unallocated -= unallocated;
        Reservation { ledger: self.ledger.clone(), bytes, unallocated }
    }

    /// Says that the file system gave `bytes` of it: fallocate returned, or a write did where there is no
    /// fallocate. From then on they are missing in what the file system has free. More than is left is all.
    pub(crate) fn allocated(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unallocated);
        self.unallocated -= bytes;
        let mut accounts = self.ledger.lock();
        accounts.counts.unallocated -= bytes;
        accounts.check();
    }

    /// Turns the promise into a file of `bytes`, and gives back what was promised beyond.
    pub(crate) fn keep(mut self, bytes: u64) -> Stored {
        assert!(bytes <= self.bytes, "nothing is written that was not promised");
        assert!(bytes.is_multiple_of(DISK_PAGE_BYTES), "files are whole pages");
        let mut accounts = self.ledger.lock();
        accounts.counts.reserved -= self.bytes;
        accounts.counts.unallocated -= self.unallocated;
        accounts.counts.used += bytes;
        accounts.check();
        drop(accounts);
        (self.bytes, self.unallocated) = (0, 0);
        Stored { ledger: self.ledger.clone(), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut accounts = self.ledger.lock();
        accounts.counts.reserved -= self.bytes;
        accounts.counts.unallocated -= self.unallocated;
        accounts.check();
    }
}

/// Space that a file takes. Whoever keeps the file or a map of it keeps this: an unlinked file takes its
/// space until its last map is gone.
#[derive(Debug)]
#[must_use = "dropping it counts the space as free"]
pub(crate) struct Stored {
    ledger: SpindleLedger,
    bytes: u64,
}

impl Stored {
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        let mut accounts = self.ledger.lock();
        accounts.counts.used -= self.bytes;
        accounts.check();
    }
}

/// Invariants: `used + reserved <= capacity`, unless there was more when the limit was set; `unallocated <= reserved`;
/// all are whole pages.
#[derive(Debug)]
struct Accounts {
    counts: SpindleCounts,
    /// Whether there is more than fits: start-up found it, or the limit came down. Over when it fits again.
    beyond: bool,
}

impl Accounts {
    fn reserve(&mut self, wanted: u64, disk_free: u64) -> Result<(), SpindleFull> {
        assert!(wanted.is_multiple_of(DISK_PAGE_BYTES), "files are whole pages");
        let SpindleCounts { capacity, used, reserved, unallocated, floor } = self.counts;
        let free = capacity.saturating_sub(used + reserved);
        if wanted > free {
            return Err(SpindleFull::Capacity { wanted, free, capacity });
        }
        if wanted > disk_free.saturating_sub(unallocated).saturating_sub(floor) {
            return Err(SpindleFull::Disk { wanted, free: disk_free, promised: unallocated, floor });
        }
        self.counts.reserved += wanted;
        self.counts.unallocated += wanted;
        self.check();
        Ok(())
    }

    fn check(&mut self) {
        let SpindleCounts { capacity, used, reserved, unallocated, .. } = self.counts;
        let fits = used + reserved <= capacity;
        self.beyond &= !fits;
        assert!(fits || self.beyond, "{:?}", self.counts);
        assert!(unallocated <= reserved, "{:?}", self.counts);
        assert!((used | reserved | unallocated).is_multiple_of(DISK_PAGE_BYTES), "{:?}", self.counts);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = DISK_PAGE_BYTES;
    const PLENTY: u64 = 1 << 40;

    #[test]
    fn a_load_is_promised_then_kept_then_gone() {
        let ledger = SpindleLedger::new(10 * PAGE + 1, 0);
        let mut reservation = ledger.reserve(6 * PAGE, PLENTY).unwrap();
        reservation.grow(2 * PAGE, PLENTY).unwrap();
        let region = reservation.split(3 * PAGE).keep(PAGE);
        let counts = SpindleCounts {
            capacity: 10 * PAGE,
            used: PAGE,
            reserved: 5 * PAGE,
            unallocated: 5 * PAGE,
            floor: 0,
        };
        assert_eq!(ledger.counts(), counts);
        assert_eq!((region.bytes(), reservation.bytes()), (PAGE, 5 * PAGE));
        drop(reservation);
        drop(region);
        assert_eq!(ledger.counts(), SpindleCounts { capacity: 10 * PAGE, ..SpindleCounts::default() });
    }

    #[test]
    fn a_full_spindle_says_how_full() {
        let ledger = SpindleLedger::new(10 * PAGE, 0);
        let mut first = ledger.reserve(8 * PAGE, PLENTY).unwrap();
        let full = SpindleFull::Capacity { wanted: 3 * PAGE, free: 2 * PAGE, capacity: 10 * PAGE };
        assert_eq!(ledger.reserve(3 * PAGE, PLENTY).unwrap_err(), full);
        assert_eq!(first.grow(3 * PAGE, PLENTY).unwrap_err(), full);
        assert_eq!(first.bytes(), 8 * PAGE);
        assert_eq!(
            full.to_string(),
            "12.0 KiB (12,288 bytes) are too much for the spindle: 8.0 KiB (8,192 bytes) of its \
             40.0 KiB (40,960 bytes) are left"
        );
    }

    /// What is promised and not allocated yet is still free for the file system, but not for others.
    #[test]
    fn the_disk_below_keeps_its_floor_and_its_promises() {
        let ledger = SpindleLedger::new(PLENTY, 2 * PAGE);
        let mut first = ledger.reserve(5 * PAGE, 10 * PAGE).unwrap();
        let full =
            SpindleFull::Disk { wanted: 4 * PAGE, free: 10 * PAGE, promised: 5 * PAGE, floor: 2 * PAGE };
        assert_eq!(ledger.reserve(4 * PAGE, 10 * PAGE).unwrap_err(), full);
        drop(ledger.reserve(3 * PAGE, 10 * PAGE).unwrap());
        first.allocated(4 * PAGE);
        assert_eq!(ledger.counts().unallocated, PAGE);
        drop(ledger.reserve(3 * PAGE, 6 * PAGE).unwrap());
        assert!(ledger.reserve(4 * PAGE, 6 * PAGE).is_err());
        first.allocated(PLENTY);
        assert_eq!(ledger.counts().unallocated, 0);
        assert!(ledger.reserve(PAGE, PAGE).is_err(), "the floor is more than what is free");
    }

    #[test]
    fn a_smaller_capacity_keeps_the_files_and_promises_nothing() {
        let ledger = SpindleLedger::new(4 * PAGE, 0);
        let (first, second) = (ledger.adopt(3 * PAGE), ledger.adopt(3 * PAGE));
        let full = SpindleFull::Capacity { wanted: PAGE, free: 0, capacity: 4 * PAGE };
        assert_eq!(ledger.reserve(PAGE, PLENTY).unwrap_err(), full);
        drop(first);
        drop(ledger.reserve(PAGE, PLENTY).unwrap());
        drop(second);
        assert_eq!(ledger.counts().used, 0);
    }

    #[test]
    fn a_new_limit_counts_what_is_there() {
        let ledger = SpindleLedger::new(0, 0);
        let held = ledger.adopt(3 * PAGE);
        ledger.limit(5 * PAGE + 7, PAGE);
        drop(ledger.reserve(2 * PAGE, PLENTY).unwrap());
        assert!(ledger.reserve(3 * PAGE, PLENTY).is_err());
        ledger.limit(2 * PAGE, PAGE);
        assert!(ledger.reserve(PAGE, PLENTY).is_err());
        drop(held);
        drop(ledger.reserve(2 * PAGE, PLENTY).unwrap());
    }

    #[test]
    #[should_panic(expected = "nothing is written that was not promised")]
    fn more_than_was_promised_is_a_bug() {
        let _ = SpindleLedger::new(10 * PAGE, 0).reserve(PAGE, PLENTY).unwrap().keep(2 * PAGE);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve { pages: u64, disk_free: u64 },
        Adopt { pages: u64 },
        Grow { pick: usize, pages: u64 },
        Split { pick: usize, pages: u64 },
        Allocated { pick: usize, pages: u64 },
        Keep { pick: usize, pages: u64 },
        Drop { pick: usize },
        Remove { pick: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        let pick = any::<usize>;
        prop_oneof![
            3 => (0u64..20, 0u64..60).prop_map(|(pages, disk_free)| Step::Reserve { pages, disk_free }),
            1 => (0u64..12).prop_map(|pages| Step::Adopt { pages }),
            2 => (pick(), 0u64..8).prop_map(|(pick, pages)| Step::Grow { pick, pages }),
            1 => (pick(), 0u64..8).prop_map(|(pick, pages)| Step::Split { pick, pages }),
            2 => (pick(), 0u64..8).prop_map(|(pick, pages)| Step::Allocated { pick, pages }),
            2 => (pick(), 0u64..20).prop_map(|(pick, pages)| Step::Keep { pick, pages }),
            1 => pick().prop_map(|pick| Step::Drop { pick }),
            1 => pick().prop_map(|pick| Step::Remove { pick }),
        ]
    }

    proptest! {
        /// Beside a naive model that adds everything up anew after each step.
        #[test]
        fn the_ledger_counts_as_the_model_does(steps in prop::collection::vec(step(), 1..80)) {
            let (capacity, floor) = (40 * PAGE, 3 * PAGE);
            let ledger = SpindleLedger::new(capacity, floor);
            let mut promised: Vec<(Reservation, u64, u64)> = Vec::new(); // with bytes and unallocated
            let mut stored: Vec<(Stored, u64)> = Vec::new();
            for step in steps {
                let reserved: u64 = promised.iter().map(|one| one.1).sum();
                let unallocated: u64 = promised.iter().map(|one| one.2).sum();
                let used: u64 = stored.iter().map(|one| one.1).sum();
                let fits = |bytes: u64, disk_free: u64| {
                    let in_capacity = used + reserved + bytes <= capacity;
                    bytes == 0 || in_capacity && unallocated + bytes + floor <= disk_free
                };
                match step {
                    Step::Reserve { pages, disk_free } => {
                        let (bytes, disk_free) = (pages * PAGE, disk_free * PAGE);
                        let result = ledger.reserve(bytes, disk_free);
                        prop_assert_eq!(result.is_ok(), fits(bytes, disk_free));
                        promised.extend(result.ok().map(|reservation| (reservation, bytes, bytes)));
                    }
                    Step::Adopt { pages } => stored.push((ledger.adopt(pages * PAGE), pages * PAGE)),
                    Step::Grow { pick, pages } if !promised.is_empty() => {
                        let index = pick % promised.len();
                        let result = promised[index].0.grow(pages * PAGE, PLENTY);
                        prop_assert_eq!(result.is_ok(), fits(pages * PAGE, PLENTY));
                        if result.is_ok() {
                            promised[index].1 += pages * PAGE;
                            promised[index].2 += pages * PAGE;
                        }
                    }
                    Step::Split { pick, pages } if !promised.is_empty() => {
                        let index = pick % promised.len();
                        let bytes = (pages * PAGE).min(promised[index].1);
                        let part = promised[index].0.split(bytes);
                        let unallocated = bytes.min(promised[index].2);
                        promised[index].1 -= bytes;
                        promised[index].2 -= unallocated;
                        promised.push((part, bytes, unallocated));
                    }
                    Step::Allocated { pick, pages } if !promised.is_empty() => {
                        let index = pick % promised.len();
                        promised[index].0.allocated(pages * PAGE);
                        promised[index].2 = promised[index].2.saturating_sub(pages * PAGE);
                    }
                    Step::Keep { pick, pages } if !promised.is_empty() => {
                        let (reservation, bytes, _) = promised.remove(pick % promised.len());
                        let kept = (pages * PAGE).min(bytes);
                        stored.push((reservation.keep(kept), kept));
                    }
                    Step::Drop { pick } if !promised.is_empty() => {
                        drop(promised.remove(pick % promised.len()));
                    }
                    Step::Remove { pick } if !stored.is_empty() => drop(stored.remove(pick % stored.len())),
                    _ => {}
                }
                prop_assert_eq!(ledger.counts(), SpindleCounts {
                    capacity,
                    used: stored.iter().map(|one| one.1).sum(),
                    reserved: promised.iter().map(|one| one.1).sum(),
                    unallocated: promised.iter().map(|one| one.2).sum(),
                    floor,
                });
            }
            drop((promised, stored));
            prop_assert_eq!(ledger.counts(), SpindleCounts { capacity, floor, ..SpindleCounts::default() });
        }
    }
}

//! A guard that keeps a slice where it can be scanned, and the ways in that need no scan threads.

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pelton_region_format::{Fingerprint, Frame, Key};

use crate::cache::Want;
use crate::region::watermark::RegionFault;
use crate::scan::blobs::{Blobs, FoldError};
use crate::scan::patience::Patience;
use crate::scan::pool::message_of;
use crate::scan::report::{Measure, RegionReport, Way};
use crate::scan::run::{ScanError, ScanOptions};
use crate::scan::stream::{RegionStream, RingSlot};
use crate::scan::threads::ScanThreads;
use crate::snap::entry::Entry;
use crate::snap::hot::{HotRegion, HotSlice, RegionBytes};
use crate::snap::state::Version;
use crate::snap::stream::{StreamRegion, StreamSlice};
use crate::snap::warm::WarmError;

/// Why a slice can't be leased.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Nothing is known of the slice, and no loader knows it: load it.
    #[error("{key} is not in the cache")]
    NotThere {
        /// The slice.
        key: Key,
    },
    /// It was not in memory in time. The load or warming goes on: try again.
    #[error("{key} was not in memory in time")]
    Deadline {
        /// The slice.
        key: Key,
    },
    /// What is there was loaded with another fingerprint: load it again.
    #[error("{key} is there with fingerprint {found}, not {expected}")]
    OtherFingerprint {
        /// The slice.
        key: Key,
        /// The fingerprint of what is there.
        found: Fingerprint,
        /// The fingerprint that was asked for. Boxed, so that results stay small.
        expected: Box<Fingerprint>,
    },
    /// The slice's loader would load it with another fingerprint: what is wanted can't be had any more, or not yet.
    #[error("{key} would be loaded with fingerprint {planned}, not {expected}")]
    OtherPlan {
        /// The slice.
        key: Key,
        /// The fingerprint of the loader's plan.
        planned: Fingerprint,
        /// The fingerprint that was asked for. Boxed, so that results stay small.
        expected: Box<Fingerprint>,
    },
    /// The load that was waited for has failed, or its loader could not plan it: load it again.
    #[error("the load of {key} has failed: {why}")]
    LoadFailed {
        /// The slice.
        key: Key,
        /// Why, for people.
        why: String,
    },
    /// It has failed a moment ago, and is not tried again yet.
    #[error("{key} has failed before, and is tried again in {again_in:?}: {why}")]
    Failed {
        /// The slice.
        key: Key,
        /// When it is worth to ask again.
        again_in: Duration,
        /// Why it failed, for people.
        why: String,
    },
    /// The cache is closed.
    #[error("{key} can't be leased: the cache is closed")]
    Closed {
        /// The slice.
        key: Key,
    },
    /// Its files could not be brought into memory. A damaged slice is dropped: load it again.
    #[error("{key} could not be brought into memory")]
    Warm {
        /// The slice.
        key: Key,
        /// Which region, and why.
        source: Arc<WarmError>,
    },
}

/// What a lease is for.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LeaseOptions {
    /// Which generation.
    pub want: Want,
    /// How its regions are to be read.
    pub reading: Reading,
    /// How long to wait until they can be.
    pub deadline: Option<Instant>,
    /// Whether the slice's loader is asked although something is there: if it plans another fingerprint now, that is
    /// loaded, and the lease is on that. Only with [`Want::Latest`]; without a loader it changes nothing.
    pub refresh: bool,
}

/// How a lease's regions are to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reading {
    /// From memory if the slice can fit there, else from the disk. The scan's report tells.
    #[default]
    Auto,
    /// From memory, where every scan after the first finds them.
    Memory,
    /// From the disk by each scan, without taking the memory of others: for what is read once. A slice that is
    /// not on the disk yet is read from memory all the same.
    Stream,
}

/// Why there are no bytes to look at.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The regions come from the disk with each scan: scan them, or lease with [`Reading::Memory`].
    #[error("{key} is streamed: its regions lie nowhere in memory")]
    Streamed {
        /// The slice.
        key: Key,
    },
    /// Its bytes were not all in memory in time. They go on coming: try again.
    #[error("region {index} of {key} was not in memory in time")]
    Late {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
    },
    /// It could not be brought into memory, or its file has become shorter.
    #[error("region {index} of {key} could not be brought into memory")]
    Warm {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// Why not.
        source: Arc<WarmError>,
    },
    /// There are not so many.
    #[error("{key} has no region number {n}, since {count} have blobs")]
    NotThere {
        /// The slice.
        key: Key,
        /// Which one was asked for.
        n: usize,
        /// How many there are.
        count: usize,
    },
}

/// Keeps a slice in memory, or its files open, while it lives. Not tied to a thread; clone it freely.
#[derive(Clone, Debug)]
pub struct Lease {
    slice: Leased,
    /// After the slice: what is given back is not held any more.
    held: Arc<Held>,
}

/// Tells the entry when the last clone of a lease is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    entry: Arc<Entry>,
    number: u32,
    /// What it keeps in memory, if it is not streamed.
    version: Option<Version>,
}

impl Held {
    pub(crate) fn new(entry: Arc<Entry>, fingerprint: Fingerprint, version: Option<Version>) -> Arc<Held> {
        let number = entry.hold(fingerprint);
        Arc::new(Held { entry, number, version })
    }

    /// One that was entered already.
    fn entered(entry: Arc<Entry>, number: u32, version: Version) -> Arc<Held> {
        Arc::new(Held { entry, number, version: Some(version) })
    }

    /// Whose it is.
    pub(crate) fn key(&self) -> &Key {
        &self.entry.key
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.entry.release(self.number, self.version);
    }
}

#[derive(Clone, Debug)]
enum Leased {
    Memory(Arc<HotSlice>),
    Stream(Arc<StreamSlice>),
}

/// One region or a part of one, for a thread of the caller's own.
#[derive(Clone, Debug)]
pub struct Partition {
    region: Region,
    key: Key,
    /// Who is told if it is found that the bytes are not what was written. It is not kept by its partitions: they may
    /// outlive their lease on a scan thread, which must not close what it is a part of.
    entry: Weak<Entry>,
    version: Version,
    core: Option<usize>,
    /// Which part of how many.
    part: (u64, u64),
}

#[derive(Clone, Debug)]
enum Region {
    Memory(Arc<HotRegion>),
    Stream(Arc<StreamRegion>),
}

/// One region's bytes, all of them. Keeps them in memory while it lives.
///
/// Where they are mapped and the file is cut by somebody, or its disk fails, an access ends the process or, with
/// [`sigbus_guard`](crate::CacheBuilder::sigbus_guard), finds zeros: the next scan tells. A system call that is given such
/// bytes answers `EFAULT`.
#[derive(Clone, Debug)]
pub struct RegionHandle {
    region: Arc<HotRegion>,
}

impl Lease {
    pub(crate) fn in_memory(slice: Arc<HotSlice>, held: Arc<Held>) -> Lease {
        Lease { slice: Leased::Memory(slice), held }
    }

    pub(crate) fn streamed(slice: Arc<StreamSlice>, held: Arc<Held>) -> Lease {
        Lease { slice: Leased::Stream(slice), held }
    }

    /// One on what is in memory, if it can be had without waiting for anything. Else the entry comes back.
    pub(crate) fn at_once(entry: Arc<Entry>, want: Want) -> Result<Lease, Arc<Entry>> {
        match entry.lease_at_once(want) {
            Some((number, version, slice)) => {
                Ok(Lease::in_memory(slice, Held::entered(entry, number, version)))
            }
            None => Err(entry),
        }
    }

    /// The threads that scan it.
    pub(crate) fn threads(&self) -> &ScanThreads {
        self.held.entry.scan_threads()
    }

    /// The slice.
    pub fn key(&self) -> &Key {
        match &self.slice {
            Leased::Memory(slice) => &slice.key,
            Leased::Stream(slice) => &slice.key,
        }
    }

    /// What decided its blobs.
    pub fn fingerprint(&self) -> Fingerprint {
        match &self.slice {
            Leased::Memory(slice) => slice.fingerprint,
            Leased::Stream(slice) => slice.fingerprint,
        }
    }

    /// How many of its regions have blobs.
    pub fn region_count(&self) -> usize {
        match &self.slice {
            Leased::Memory(slice) => slice.regions.len(),
            Leased::Stream(slice) => slice.regions.len(),
        }
    }

    /// Whether each scan reads the regions from the disk.
    pub fn is_streamed(&self) -> bool {
        matches!(self.slice, Leased::Stream(_))
    }

    /// The bytes of the `n`-th region that has blobs, counted from 0. Waits until all of them are in memory.
    ///
    /// # Errors
    /// [`RegionError`] if there is no such region, if it lies on the disk alone, or could not be brought in.
    pub fn region(&self, n: usize, deadline: Option<Instant>) -> Result<RegionHandle, RegionError> {
        let Leased::Memory(slice) = &self.slice else {
            return Err(RegionError::Streamed { key: self.key().clone() });
        };
        let key = || slice.key.clone();
        let count = slice.regions.len();
        let region = slice.regions.get(n).ok_or_else(|| RegionError::NotThere { key: key(), n, count })?;
        match region.whole(&Patience::until(deadline)) {
            Ok(_) => Ok(RegionHandle { region: region.clone() }),
            Err(RegionFault::Impatience(_)) => Err(RegionError::Late { key: key(), index: region.index }),
            Err(RegionFault::Failed(source)) => {
                Err(RegionError::Warm { key: key(), index: region.index, source })
            }
        }
    }

    /// All regions, one for each thread of the caller's own.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = Partition> + '_ {
        (0..self.region_count()).map(|n| {
            let region = match &self.slice {
                Leased::Memory(slice) => Region::Memory(slice.regions[n].clone()),
                Leased::Stream(slice) => Region::Stream(slice.regions[n].clone()),
            };
            let core = self.threads().core_of(region.index());
            let (key, entry) = (self.key().clone(), Arc::downgrade(&self.held.entry));
            Partition { region, key, entry, version: self.version(), core, part: (0, 1) }
        })
    }

    fn version(&self) -> Version {
        match &self.slice {
            Leased::Memory(slice) => slice.version(),
            Leased::Stream(slice) => slice.version,
        }
    }
}

impl Region {
    fn index(&self) -> u32 {
        match self {
            Region::Memory(region) => region.index,
            Region::Stream(region) => region.index,
        }
    }
}

impl Partition {
    /// Which region of its slice.
    pub fn index(&self) -> u32 {
        self.region.index()
    }

    /// The core whose scan thread the region belongs to, if scan threads are tied to cores: what it has cached of
    /// the region is still there.
    pub fn core(&self) -> Option<usize> {
        self.core
    }

    /// The `n`-th of `k` parts of the region, counted from 0: of about the same size, together every blob once.
    /// Parts may be empty, and where there are no more than `n` the part is.
    #[must_use]
    pub fn part(&self, n: u64, k: u64) -> Partition {
        Partition { part: (n, k), ..self.clone() }
    }

    /// Folds the region's blobs on this thread.
    ///
    /// # Errors
    /// [`ScanError`]; the value is dropped.
    pub fn fold<T, F>(&self, fold: F) -> Result<T, ScanError>
    where
        T: Default,
        F: FnOnce(&mut Blobs<'_>, &mut T) -> Result<(), FoldError>,
    {
        self.fold_with(&ScanOptions::default(), fold).map(|(value, _)| value)
    }

    /// The same with a deadline or a way to cancel it, and how it went.
    ///
    /// # Errors
    /// [`ScanError`]; the value is dropped.
    pub fn fold_with<T, F>(&self, options: &ScanOptions, fold: F) -> Result<(T, RegionReport), ScanError>
    where
        T: Default,
        F: FnOnce(&mut Blobs<'_>, &mut T) -> Result<(), FoldError>,
    {
        self.fold_patiently(fold, &options.patience(), &mut RingSlot::default())
    }

    pub(crate) fn fold_patiently<T, F>(
        &self,
        fold: F,
        patience: &Patience,
        slot: &mut RingSlot,
    ) -> Result<(T, RegionReport), ScanError>
    where
        T: Default,
        F: FnOnce(&mut Blobs<'_>, &mut T) -> Result<(), FoldError>,
    {
        let fault = |fault: FoldError| {
            self.tell(&fault);
            ScanError::of_region(&self.key, self.index(), fault)
        };
        patience.check().map_err(|impatience| fault(impatience.into()))?;
        let (n, k) = self.part;
        let measure = Measure::begin();
        match &self.region {
            Region::Memory(region) => {
                let frame = region.bytes().frame().map_err(|error| fault(error.into()))?;
                let cursor = frame.cursor(region.bytes().bytes(), frame.part(n, k));
                let (bytes, blobs) = self.counts(&frame, region.bytes().len());
                let blobs_in = Blobs::in_memory(cursor, region, patience);
                let (value, waited) = self.run(fold, blobs_in)?;
                if !region.is_whole() {
                    return Err(fault(FoldError::Lost));
                }
                let way = match region.bytes() {
                    RegionBytes::Image(_) => Way::Image,
                    RegionBytes::Map(_) => Way::Map,
                };
                Ok((value, measure.end(region.index, way, bytes, blobs, waited)))
            }
            Region::Stream(region) => {
                let frame = region.frame().map_err(|error| fault(error.into()))?;
                let (bytes, blobs) = self.counts(&frame, region.file_bytes());
                let span = frame.part(n, k);
                let stream = RegionStream::new(region, frame, span, slot, patience).map_err(fault)?;
                let (value, waited) = self.run(fold, Blobs::streamed(stream))?;
                Ok((value, measure.end(region.index, Way::Stream, bytes, blobs, waited)))
            }
        }
    }

    /// Runs the closure, which is not to be trusted.
    fn run<T, F>(&self, fold: F, mut blobs: Blobs<'_>) -> Result<(T, Duration), ScanError>
    where
        T: Default,
        F: FnOnce(&mut Blobs<'_>, &mut T) -> Result<(), FoldError>,
    {
        let fault = |fault: FoldError| ScanError::of_region(&self.key, self.index(), fault);
        let run = AssertUnwindSafe(|| {
            let mut value = T::default();
            fold(&mut blobs, &mut value).map(|()| value)
        });
        let folded = catch_unwind(run); // What it had in hand is dropped if it panics.
        let waited = blobs.waited();
        let own = blobs.into_fault();
        // Whatever the closure makes of it. What the closure says by itself is not asked: it may say anything.
        own.iter().for_each(|fault| self.tell(fault));
        match folded {
            Ok(Ok(value)) => match own {
                None => Ok((value, waited)),
                // The fold has swallowed it: the value is not that of the whole region.
                Some(swallowed) => Err(fault(swallowed)),
            },
            Ok(Err(error)) => Err(fault(error)),
            Err(panic) => Err(ScanError::Panicked {
                key: self.key.clone(),
                index: self.index(),
                message: message_of(panic),
            }),
        }
    }

    /// Takes the slice out of service if its bytes, or its files, are not what was written.
    fn tell(&self, fault: &FoldError) {
        let index = self.index();
        let error = match (&self.region, fault) {
            // Whoever was bringing it in has told.
            (Region::Memory(region), _) if region.watermark().failure().is_some() => return,
            (_, FoldError::Damaged(source)) => WarmError::Damaged { index, source: (**source).clone() },
            (Region::Memory(region), FoldError::Lost) => region.why_lost(),
            (Region::Stream(region), FoldError::Lost) => {
                WarmError::OtherLength { index, expected: region.file_bytes() }
            }
            _ => return,
        };
        let Some(entry) = self.entry.upgrade() else { return };
        match &self.region {
            // Brought in by others meanwhile, or kept from its load.
            Region::Stream(_) if entry.has_whole_image(self.version) => {
                entry.files_damaged(self.version, Arc::new(error));
            }
            _ => entry.warming_failed(self.version, Arc::new(error)),
        }
    }

    /// Bytes and blobs of what is scanned.
    fn counts(&self, frame: &Frame<'_>, file_bytes: u64) -> (u64, u64) {
        match self.part {
            (0, 1) => (file_bytes, frame.trailer().blob_count),
            (n, k) => {
                let span = frame.part(n, k);
                let (range, end) = (span.range(), span.end_number().unwrap_or(span.first_number()));
                (range.end - range.start, end - span.first_number())
            }
        }
    }
}

impl RegionHandle {
    /// Which region of its slice.
    pub fn index(&self) -> u32 {
        self.region.index
    }
}

impl AsRef<[u8]> for RegionHandle {
    fn as_ref(&self) -> &[u8] {
        self.region.bytes().bytes()
    }
}

impl Deref for RegionHandle {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.region.bytes().bytes()
    }
}

#[cfg(test)]
mod tests;

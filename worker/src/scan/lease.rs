//! A guard that keeps a slice in memory, and the ways to read it.

use std::io;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pelton_region_format::{BlobCursor, Fingerprint, FormatError, Key, RegionView};

use crate::scan::pool::{JobPanicked, message_of, on_scan_thread};
use crate::scan::threads::ScanThreads;
use crate::snap::hot::{HotRegion, HotSlice};
use crate::snap::warm::WarmError;

/// Why a slice can't be leased.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Nothing is known of the slice: load it.
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
    /// Its files could not be brought into memory.
    #[error("{key} could not be brought into memory")]
    Warm {
        /// The slice.
        key: Key,
        /// Which region, and why.
        source: Box<WarmError>,
    },
}

/// Why a scan has no result. What it had folded is dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The bytes do not hold what the format promises. Drop the slice and load it again.
    #[error("region {index} of {key} is damaged")]
    Damaged {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// What does not hold.
        source: Box<FormatError>,
    },
    /// The file behind the region became shorter during the scan: what was read may have been zeros.
    #[error("region {index} of {key} lost its file's end during the scan")]
    Lost {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
    },
    /// The caller's closure panicked. Only this scan has failed.
    #[error("the scan of region {index} of {key} panicked: {message}")]
    Panicked {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// What the panic said.
        message: String,
    },
    /// A scan's closure, which runs on a scan thread, has begun another scan. It would wait for its own thread:
    /// fold the partitions there, or scan one after the other.
    #[error("{key} can't be scanned from inside of a scan")]
    Nested {
        /// The slice.
        key: Key,
    },
    /// The scan threads are not there: the system gives no more. Try again, or fold the partitions.
    #[error("there are no threads to scan {key}")]
    Threads {
        /// The slice.
        key: Key,
        /// What the system said.
        source: io::Error,
    },
}

/// Keeps a slice in memory while it lives. Not tied to a thread; clone it freely.
#[derive(Clone, Debug)]
pub struct Lease {
    slice: Arc<HotSlice>,
    threads: Arc<ScanThreads>,
}

/// How a scan went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScanReport {
    /// How many bytes the scanned regions take.
    pub region_bytes: u64,
    /// How many threads scanned.
    pub threads: usize,
    /// How many of them are tied to a core.
    pub threads_pinned: usize,
    /// From the call to the last region's end and merge.
    pub wall: Duration,
    /// How long each region took, in the order of the regions.
    pub regions: Vec<Duration>,
}

/// One region, for a thread of the caller's own.
#[derive(Clone, Debug)]
pub struct Partition {
    region: Arc<HotRegion>,
    key: Key,
}

/// One region's bytes. Keeps them in memory while it lives.
#[derive(Clone, Debug)]
pub struct RegionHandle {
    region: Arc<HotRegion>,
}

impl Lease {
    pub(crate) fn new(slice: Arc<HotSlice>, threads: Arc<ScanThreads>) -> Lease {
        Lease { slice, threads }
    }

    /// The slice.
    pub fn key(&self) -> &Key {
        &self.slice.key
    }

    /// What decided its blobs.
    pub fn fingerprint(&self) -> Fingerprint {
        self.slice.fingerprint
    }

    /// How many of its regions have blobs.
    pub fn region_count(&self) -> usize {
        self.slice.regions.len()
    }

    /// The bytes of the `n`-th region that has blobs, counted from 0.
    pub fn region(&self, n: usize) -> Option<RegionHandle> {
        self.slice.regions.get(n).map(|region| RegionHandle { region: region.clone() })
    }

    /// All regions, one for each thread of the caller's own.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = Partition> + '_ {
        self.slice
            .regions
            .iter()
            .map(|region| Partition { region: region.clone(), key: self.slice.key.clone() })
    }

    /// Folds every region on the scan thread that it belongs to, and merges the results as they arrive.
    ///
    /// A region belongs to one thread for good, so what its core has cached of it is still there for the next
    /// scan. `merge` runs on the calling thread, in the order in which the regions end.
    ///
    /// # Errors
    /// [`ScanError`] of the first region that failed; the others are folded to their end all the same.
    pub fn scan<T, F, M>(&self, fold: F, merge: M) -> Result<T, ScanError>
    where
        T: Default + Send + 'static,
        F: Fn(&mut BlobCursor<'_>, &mut T) -> Result<(), FormatError> + Send + Sync + 'static,
        M: FnMut(T, T) -> T,
    {
        self.scan_reported(fold, merge).map(|(result, _)| result)
    }

    /// The same, and how it went.
    ///
    /// # Errors
    /// [`ScanError`] of the first region that failed; the others are folded to their end all the same.
    pub fn scan_reported<T, F, M>(&self, fold: F, mut merge: M) -> Result<(T, ScanReport), ScanError>
    where
        T: Default + Send + 'static,
        F: Fn(&mut BlobCursor<'_>, &mut T) -> Result<(), FormatError> + Send + Sync + 'static,
        M: FnMut(T, T) -> T,
    {
        let started = Instant::now();
        let key = || self.slice.key.clone();
        if on_scan_thread() {
            return Err(ScanError::Nested { key: key() });
        }
        let no_threads = |source| ScanError::Threads { key: key(), source };
        let pool = self.threads.pool().map_err(no_threads)?;
        let mut seats_used = vec![false; pool.threads()];
        let fold = Arc::new(fold);
        let (tell, results) = crossbeam_channel::unbounded();
        for (n, partition) in self.partitions().enumerate() {
            // The index, not `n`: with regions that have no blobs, the others stay where they would be.
            let thread = partition.index() as usize % pool.threads();
            seats_used[thread] = true;
            let (tell, fold) = (tell.clone(), fold.clone());
            // The job drops its share of region and closure before the answer is told: when the scan has
            // ended, nothing of it is left on the scan threads.
            let job = move |_| {
                let started = Instant::now();
                let folded = partition.fold(&*fold);
                (started.elapsed(), folded)
            };
            let done = move |outcome| drop(tell.send((n, outcome)));
            pool.run_on_then(thread, None, job, done)
                .map_err(|refused| no_threads(io::Error::other(refused)))?;
        }
        drop(tell);
        let mut regions = vec![Duration::ZERO; self.region_count()];
        let mut merged: Option<T> = None;
        let mut failed = None;
        for (n, outcome) in results {
            let folded = match outcome {
                Ok((elapsed, folded)) => {
                    regions[n] = elapsed;
                    folded
                }
                // The fold catches its panics; this one came from what the closure or its value dropped.
                Err(JobPanicked { message, .. }) => {
                    Err(ScanError::Panicked { key: key(), index: self.slice.regions[n].index, message })
                }
            };
            match folded {
                Ok(value) => {
                    merged = Some(match merged.take() {
                        Some(before) => merge(before, value),
                        None => value,
                    });
                }
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let seats = pool.seats().iter().zip(&seats_used).filter(|(_, used)| **used);
        let report = ScanReport {
            region_bytes: self.slice.regions.iter().map(|region| region.bytes.len() as u64).sum(),
            threads: seats.clone().count(),
            threads_pinned: seats.filter(|(seat, _)| seat.core.is_some()).count(),
            wall: started.elapsed(),
            regions,
        };
        Ok((merged.unwrap_or_default(), report))
    }
}

impl Partition {
    /// Which region of its slice.
    pub fn index(&self) -> u32 {
        self.region.index
    }

    /// Folds the region's blobs on this thread.
    ///
    /// # Errors
    /// [`ScanError`]; the value is dropped.
    pub fn fold<T, F>(&self, fold: F) -> Result<T, ScanError>
    where
        T: Default,
        F: Fn(&mut BlobCursor<'_>, &mut T) -> Result<(), FormatError>,
    {
        let (key, index) = (|| self.key.clone(), self.region.index);
        let damaged = |source| ScanError::Damaged { key: key(), index, source: Box::new(source) };
        let view = RegionView::open(&self.region.bytes).map_err(damaged)?;
        let mut value = T::default();
        let run = AssertUnwindSafe(|| fold(&mut view.blobs(), &mut value)); // Dropped if it panics.
        match catch_unwind(run) {
            Ok(folded) => folded.map_err(damaged)?,
            Err(panic) => {
                return Err(ScanError::Panicked { key: key(), index, message: message_of(panic) });
            }
        }
        if !self.region.is_whole() {
            return Err(ScanError::Lost { key: key(), index });
        }
        Ok(value)
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
        &self.region.bytes
    }
}

impl Deref for RegionHandle {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.region.bytes
    }
}

#[cfg(test)]
mod tests;

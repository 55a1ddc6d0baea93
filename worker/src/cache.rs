//! The cache: what an embedder sees first.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pelton_region_format::{Fingerprint, Key, KeyPattern};

use crate::budget::memory::{MemoryBudget, MemoryUse};
use crate::builder::CacheBuilder;
use crate::cache::close::{CloseError, Commits, FOR_EVER, SyncError, UnderWay, close_spindles};
use crate::cache::told::{Told, outcome};
use crate::config::Verify;
use crate::events::{Event, EventHub, Events, reason};
use crate::region::residence::Residence;
use crate::region::smaps::large_page_bytes;
use crate::scan::lease::{Lease, LeaseError, LeaseOptions, Reading};
use crate::scan::patience::{Impatience, Patience};
use crate::scan::threads::ScanThreads;
use crate::slice::build::{BuiltRegion, RegionBuild};
use crate::slice::plan::{LoadPlan, REGIONS_MAX};
use crate::slice::scratch::Scratch;
use crate::slice::writer::{LoadError, SliceWriter, load_error};
use crate::snap::commit::{Commit, CommitError, LoadFolders, remove_manifest, remove_regions};
pub(crate) use crate::snap::entry::Entry;
use crate::snap::entry::{SnapState, State};
use crate::snap::hot::HotSlice;
use crate::snap::manifest::{Manifest, RegionRecord};
use crate::snap::recovery::RecoveryReport;
use crate::snap::stream::{StreamMemory, open_stream};
use crate::snap::warm::{Attempt, WarmError, Warmth, bytes_in_memory, verify_slice};
use crate::spindle::engine::DiskError;
use crate::spindle::health::HealthState;
use crate::spindle::held::{Spindle, share_disk};
use crate::spindle::impeller::Lane;
use crate::spindle::placement::place;
use crate::waits::{Pending, Waits};

pub(crate) mod close;
mod told;

/// How long dropping the last handle waits for slices that are on their way to the disk.
const DROP_WAIT_MAX: Duration = Duration::from_secs(60);

/// Keeps slices on the disks and in the memory of this machine.
///
/// Cloning makes another handle; the cache closes with the last one, snaps and open loads included. Dropping that
/// one waits up to a minute for slices that are still on their way to the disk, and then the folders can be
/// opened again at once. [`Cache::close`] waits to a deadline of your choice and says what went wrong.
#[derive(Clone)]
pub struct Cache {
    core: Arc<CacheCore>,
    _handles: Arc<Handles>,
}

/// What dropping the last handle waits for, though snaps and open loads may live on: operations that were
/// cancelled, and that still have hold of the cache.
struct Handles(Arc<Waits>);

impl Drop for Handles {
    fn drop(&mut self) {
        self.0.settle(Instant::now() + DROP_WAIT_MAX);
    }
}

/// How long an evict waits for the last step of what was on its way into memory.
const EVICT_WAIT_MAX: Duration = Duration::from_secs(2);

/// What all handles, writers and leases share.
pub(crate) struct CacheCore {
    /// Dropped before the spindles: its threads still use them.
    pub(crate) warmth: Warmth,
    pub(crate) spindles: Vec<Arc<Spindle>>,
    /// For regions in memory, and for parcels while they are opened.
    pub(crate) budget: MemoryBudget,
    /// For the pieces of open writers: apart, so that parcels and pieces never wait for each other.
    pub(crate) pieces: MemoryBudget,
    /// For scans that read from the disk.
    pub(crate) streams: StreamMemory,
    pub(crate) verify: Verify,
    /// Room that parcels are inflated into, one after the other.
    pub(crate) scratch: Scratch,
    pub(crate) piece_bytes: usize,
    pub(crate) image_bytes_max: usize,
    pub(crate) regions_default: u32,
    pub(crate) scan_threads: Arc<ScanThreads>,
    entries: Mutex<BTreeMap<Key, Arc<Entry>>>,
    epoch: u64,
    next_load: AtomicU64,
    next_lane: AtomicU64,
    commits: Arc<Commits>,
    /// Set once, by closing; read by whoever opens a load.
    closed: AtomicBool,
    pub(crate) events: Arc<EventHub>,
    /// For operations as futures.
    pub(crate) waits: Arc<Waits>,
    recovery: RecoveryReport,
}

/// A parcel of 4 MiB for each of four producers: more at once are rarely inflated, and cost a little more.
const SCRATCH_BYTES_MAX: u64 = 16 << 20;

/// Which generation of a slice a lease is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Want {
    /// Whatever is there.
    #[default]
    Latest,
    /// Only the slice that was loaded with this fingerprint.
    Fingerprint(Fingerprint),
}

/// One slice's place in the cache.
#[derive(Clone)]
pub struct Snap {
    core: Arc<CacheCore>,
    entry: Arc<Entry>,
}

/// Why a slice was not flushed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// A load, a commit or a warming was under way all the time. Nothing has changed: try again.
    #[error("{key} was not at rest in time to be flushed")]
    Late {
        /// The slice.
        key: Key,
    },
    /// The disk refused, or did not answer in time. If it would not let the manifest go, the slice is still there;
    /// else it is gone, and what is left of its files the next start removes.
    #[error("the files of {key} could not be removed")]
    Disk {
        /// The slice.
        key: Key,
        /// What the disk said.
        source: Box<DiskError>,
    },
}

/// What a snap is and holds, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapStatus {
    /// Its slice.
    pub key: Key,
    /// Its state.
    pub state: SnapState,
    /// Whether it would survive the process.
    pub durable: bool,
    /// The fingerprint of what is there.
    pub fingerprint: Option<Fingerprint>,
    /// How many blobs are on the disk.
    pub blob_count: u64,
    /// How many bytes they have.
    pub blob_bytes: u64,
    /// How many bytes its files take.
    pub file_bytes: u64,
}

impl Cache {
    /// Starts setting one up.
    pub fn builder() -> CacheBuilder {
        CacheBuilder::default()
    }

    pub(crate) fn from_core(core: CacheCore) -> Cache {
        Cache { _handles: Arc::new(Handles(core.waits.clone())), core: Arc::new(core) }
    }

    #[cfg(test)]
    pub(crate) fn core_for_tests(&self) -> &CacheCore {
        &self.core
    }

    /// The snap of a key; a cold one if nothing is known of it.
    pub fn snap(&self, key: &Key) -> Snap {
        let entry = self
            .core
            .lock_entries()
            .entry(key.clone())
            .or_insert_with(|| Arc::new(Entry::new(key.clone(), None)))
            .clone();
        Snap { core: self.core.clone(), entry }
    }

    /// All snaps that the pattern matches and that hold something, in the order of their keys.
    pub fn search(&self, pattern: &KeyPattern) -> Vec<SnapStatus> {
        let entries: Vec<Arc<Entry>> =
            self.core.lock_entries().values().filter(|entry| pattern.matches(&entry.key)).cloned().collect();
        entries.iter().map(|entry| status(entry)).filter(|status| status.state != SnapState::Cold).collect()
    }

    /// Takes a lease on a slice, and brings it into memory if it must.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn lease(&self, key: &Key, want: Want, deadline: Option<Instant>) -> Result<Lease, LeaseError> {
        self.snap(key).lease(want, deadline)
    }

    /// Takes a lease on a slice whose regions are read as the options say.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn lease_with(&self, key: &Key, options: &LeaseOptions) -> Result<Lease, LeaseError> {
        self.snap(key).lease_with(options)
    }

    /// [`Self::lease`] as a future. Dropping it gives the lease back; what is on its way into memory goes on.
    pub fn lease_async(
        &self,
        key: &Key,
        want: Want,
        deadline: Option<Instant>,
    ) -> Pending<Result<Lease, LeaseError>> {
        self.snap(key).lease_async(want, deadline)
    }

    /// [`Self::lease_with`] as a future. Dropping it gives the lease back; what is on its way into memory goes on.
    pub fn lease_async_with(&self, key: &Key, options: &LeaseOptions) -> Pending<Result<Lease, LeaseError>> {
        self.snap(key).lease_async_with(options)
    }

    /// Listens to what happens from now on. The cache waits for no listener: one that does not take its events
    /// loses the oldest beyond 1024, and can ask how many.
    pub fn events(&self) -> Events {
        self.core.events.listen()
    }

    /// What was found on the spindles when the cache was opened.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.core.recovery
    }

    /// The spindles: how each is served, how it does, and what it has room for. Asks no disk.
    pub fn spindles(&self) -> Vec<SpindleStatus> {
        let all = &self.core.spindles;
        let status = |(number, spindle): (usize, &Arc<Spindle>)| {
            let counts = spindle.room.counts();
            let (residence, residence_reason) = self.core.warmth.spindles[number].residence();
            SpindleStatus {
                folder: spindle.folder.clone(),
                engine: spindle.impellers.engine_name(),
                reason: spindle.impellers.engine_reason(),
                state: spindle.watch.state(),
                last_fault: spindle.watch.last_fault(),
                capacity: counts.capacity,
                used: counts.used,
                reserved: counts.reserved,
                free: spindle.room.free(),
                shares_disk_with: all[..number]
                    .iter()
                    .find(|other| share_disk(spindle, other))
                    .map(|other| other.folder.clone()),
                residence,
                residence_reason,
            }
        };
        all.iter().enumerate().map(status).collect()
    }

    /// How much memory the cache may use: what was set, or what fits the machine.
    pub fn memory_max(&self) -> u64 {
        let (memory, pieces) = (self.core.budget.counts(), self.core.pieces.counts());
        let streams = self.core.streams.rings.counts();
        memory.residence_max + memory.buffers_max + pieces.buffers_max + streams.buffers_max
    }

    /// What the cache has in memory now. Asks the kernel about each region: for a look now and then.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn memory(&self) -> std::io::Result<MemoryReport> {
        let entries: Vec<Arc<Entry>> = self.core.lock_entries().values().cloned().collect();
        let hot: Vec<Arc<HotSlice>> = entries.iter().filter_map(|entry| entry.lock().hot.clone()).collect();
        let counts = self.core.budget.counts();
        let (pieces, streams) = (self.core.pieces.counts(), self.core.streams.rings.counts());
        let mut report = MemoryReport {
            images: counts.images,
            mapped: counts.mapped,
            mapped_resident: 0,
            large_page_bytes: 0,
            buffers: counts.buffers + pieces.buffers + streams.buffers,
            max: self.memory_max(),
        };
        let mut ranges = Vec::new();
        for region in hot.iter().flat_map(|slice| &slice.regions) {
            report.mapped_resident += region.bytes().mapped_resident_bytes()?;
            let bytes = region.bytes().bytes().as_ptr_range();
            ranges.push(bytes.start.addr()..bytes.end.addr());
        }
        report.large_page_bytes = large_page_bytes(&ranges)?;
        Ok(report)
    }

    /// Waits until all that was loaded is on the disks, or could not be brought there. Each failure is told
    /// once; those of loads with [`Durability::Wait`](crate::Durability::Wait) were told there.
    ///
    /// # Errors
    /// [`SyncError`]
    pub fn sync(&self, deadline: Option<Instant>) -> Result<(), SyncError> {
        self.core.sync(&Patience::until(deadline))
    }

    /// [`Self::sync`] as a future. Dropping it waits no longer, and nothing has been told.
    pub fn sync_async(&self, deadline: Option<Instant>) -> Pending<Result<(), SyncError>> {
        let core = self.core.clone();
        self.core
            .waits
            .start(move |cancel| core.sync(&Patience { cancel: Some(cancel), ..Patience::until(deadline) }))
    }

    /// Closes the cache, also for other handles: takes no more loads, waits for slices on their way to the disk,
    /// and ends the threads of the spindles; all of it to the deadline, and a tenth of a second beyond. Leases go
    /// on; what is in memory stays there as long as they live.
    ///
    /// # Errors
    /// [`CloseError`] says what did not get to the disk, and which threads a hung disk keeps.
    pub fn close(self, deadline: Option<Instant>) -> Result<(), CloseError> {
        self.core.close(&Patience::until(deadline))
    }

    /// [`Self::close`] as a future. Dropping it waits no longer: no more loads are taken, slices on their way get to
    /// the disk, and the threads of the spindles end with the last handle.
    pub fn close_async(self, deadline: Option<Instant>) -> Pending<Result<(), CloseError>> {
        let core = self.core.clone();
        self.core
            .waits
            .start(move |cancel| core.close(&Patience { cancel: Some(cancel), ..Patience::until(deadline) }))
    }
}

/// What a cache has in memory, at one moment, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryReport {
    /// Regions in memory of the cache's own, and room for those on their way there.
    pub images: u64,
    /// Regions that are mapped. What of them is in memory is the system's choice.
    pub mapped: u64,
    /// How much of the mapped regions that can be leased is in memory now.
    pub mapped_resident: u64,
    /// How much of the regions that can be leased, images and maps, lies in large pages.
    pub large_page_bytes: u64,
    /// Parcels and pieces on their way, and what streams read into.
    pub buffers: u64,
    /// What all of it may take.
    pub max: u64,
}

/// A spindle at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpindleStatus {
    /// Its folder.
    pub folder: PathBuf,
    /// The engine that does its I/O.
    pub engine: &'static str,
    /// Why that is not io_uring, if it is not.
    pub reason: Option<String>,
    /// Whether it can be trusted with new loads. One in quarantine is tried again by the next load that comes
    /// when its time is over.
    pub state: HealthState,
    /// The last thing that went wrong, unless the state is [`HealthState::Ok`].
    pub last_fault: Option<String>,
    /// How many bytes it may hold.
    pub capacity: u64,
    /// How many bytes its files take, those included that have no name any more and are still mapped.
    pub used: u64,
    /// How many bytes are promised to loads under way.
    pub reserved: u64,
    /// How many bytes a load could still get, by the capacity and by what the disk had free when last asked.
    pub free: u64,
    /// An earlier spindle on the same file system. Two give no more space than one, and they fail together.
    pub shares_disk_with: Option<PathBuf>,
    /// Where the bytes of its regions lie when they are in memory; `Auto` as long as nothing was read from it.
    pub residence: Residence,
    /// Why there.
    pub residence_reason: String,
}

impl Snap {
    /// The slice's key.
    pub fn key(&self) -> &Key {
        &self.entry.key
    }

    /// What it is and holds now.
    pub fn status(&self) -> SnapStatus {
        status(&self.entry)
    }

    /// Opens the slice for writing: for one load, by any number of producers. What is there stays, and is
    /// replaced when the load is closed.
    ///
    /// # Errors
    /// [`LoadError::Busy`] if a load is open, [`LoadError::NoSpindle`] if there is no room for what the plan
    /// expects, [`LoadError::Disk`] if its folders can't be made, [`LoadError::Closed`].
    #[doc(alias = "openForWrites")]
    pub fn open_for_writes(&self, plan: LoadPlan) -> Result<SliceWriter, LoadError> {
        let patience = Patience::until(plan.deadline);
        self.open(plan, &patience)
    }

    /// [`Self::open_for_writes`] as a future. Dropping it leaves no load open, and nothing of one.
    pub fn open_for_writes_async(&self, plan: LoadPlan) -> Pending<Result<SliceWriter, LoadError>> {
        let snap = self.clone();
        self.core.waits.start(move |cancel| {
            let patience = Patience { cancel: Some(cancel), ..Patience::until(plan.deadline) };
            snap.open(plan, &patience)
        })
    }

    fn open(&self, plan: LoadPlan, patience: &Patience) -> Result<SliceWriter, LoadError> {
        let key = || self.entry.key.clone();
        if self.core.closed.load(Ordering::Relaxed) {
            return Err(LoadError::Closed { key: key() });
        }
        let regions = plan.regions.unwrap_or(self.core.regions_default);
        if !(1..=REGIONS_MAX).contains(&regions) {
            return Err(LoadError::Regions { key: key(), regions });
        }
        // A slice that is on its way to the disk is waited for: its manifest has the same name.
        let begun = self.entry.wait(patience, |state| match (state.loading, state.committing) {
            (true, _) => Some(false),
            (false, true) => None,
            (false, false) => {
                state.loading = true;
                Some(true)
            }
        });
        if begun != Some(true) {
            return Err(LoadError::Busy { key: key() });
        }
        let load_number = self.core.next_load.fetch_add(1, Ordering::Relaxed);
        let spindles = &self.core.spindles;
        let first = load_number as usize % spindles.len();
        let place = || place(spindles, first, regions, plan.expected_bytes);
        let placed = place().or_else(|_| {
            // Files whose last map has just gone may be on their way out.
            self.core.warmth.reaper.settle();
            place()
        });
        let placed = placed.map_err(|refusals| {
            self.entry.load_failed();
            LoadError::NoSpindle { key: key(), refusals }
        })?;
        let folders = LoadFolders::new(spindles, self.core.epoch, load_number, placed.spindles);
        let deadline = plan.deadline;
        let open = folders
            .create(spindles, patience)
            .map_err(|error| load_error(key(), error.into()))
            .and_then(|()| {
                let (core, entry) = (self.core.clone(), self.entry.clone());
                SliceWriter::new(core, entry, plan, folders.clone(), placed.space, patience)
            });
        open.inspect_err(|_| {
            self.core.remove_load(key(), folders, deadline, Vec::new());
            self.entry.load_failed();
        })
    }

    /// Takes a lease, and brings the slice into memory if it must. One that can't fit there is read from the disk by
    /// each scan.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn lease(&self, want: Want, deadline: Option<Instant>) -> Result<Lease, LeaseError> {
        self.lease_with(&LeaseOptions { want, deadline, ..LeaseOptions::default() })
    }

    /// Takes a lease whose regions are read as the options say.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn lease_with(&self, options: &LeaseOptions) -> Result<Lease, LeaseError> {
        self.lease_patiently(options, &Patience::until(options.deadline))
    }

    /// [`Self::lease`] as a future. Dropping it gives the lease back; what is on its way into memory goes on.
    pub fn lease_async(&self, want: Want, deadline: Option<Instant>) -> Pending<Result<Lease, LeaseError>> {
        self.lease_async_with(&LeaseOptions { want, deadline, ..LeaseOptions::default() })
    }

    /// [`Self::lease_with`] as a future. Dropping it gives the lease back; what is on its way into memory goes on.
    pub fn lease_async_with(&self, options: &LeaseOptions) -> Pending<Result<Lease, LeaseError>> {
        let (snap, options) = (self.clone(), *options);
        self.core.waits.start(move |cancel| {
            let patience = Patience { cancel: Some(cancel), ..Patience::until(options.deadline) };
            snap.lease_patiently(&options, &patience)
        })
    }

    fn lease_patiently(&self, options: &LeaseOptions, patience: &Patience) -> Result<Lease, LeaseError> {
        let (key, deadline) = (|| self.entry.key.clone(), options.deadline);
        let warm_error = |source| LeaseError::Warm { key: key(), source };
        enum Next {
            Scan(Arc<HotSlice>),
            /// Its bytes are verified on their way.
            ScanFresh(Arc<HotSlice>),
            Failed(Arc<WarmError>),
            Reserve(Arc<Manifest>),
            Stream(Arc<Manifest>),
            Nothing,
        }
        let mut waited_for: Option<Arc<Attempt>> = None;
        loop {
            let next = self.entry.wait(patience, |state| {
                // Its own outcome, whatever has become of the slice since.
                match waited_for.as_ref().and_then(|attempt| attempt.outcome()) {
                    Some(Ok(hot)) => return Some(Next::ScanFresh(hot.clone())),
                    Some(Err(error)) => return Some(Next::Failed(error.clone())),
                    None => {}
                }
                if let Some(manifest) = &state.manifest
                    && state.is_durable()
                    && self.core.reads_as_stream(options.reading, manifest, state.hot.is_some())
                {
                    return Some(Next::Stream(manifest.clone()));
                }
                if let Some(hot) = &state.hot {
                    return Some(Next::Scan(hot.clone()));
                }
                if let Some(attempt) = &state.warming {
                    waited_for = Some(attempt.clone());
                    return None;
                }
                if state.reserving || (state.loading && state.manifest.is_none()) {
                    return None;
                }
                Some(match &state.manifest {
                    Some(manifest) => {
                        state.reserving = true;
                        Next::Reserve(manifest.clone())
                    }
                    None => Next::Nothing,
                })
            });
            let threads = self.core.scan_threads.clone();
            let (fingerprint, lease) = match next {
                None => return Err(LeaseError::Deadline { key: key() }),
                Some(Next::Nothing) => return Err(LeaseError::NotThere { key: key() }),
                Some(Next::Failed(error)) => return Err(warm_error(error)),
                Some(Next::ScanFresh(hot)) => (hot.fingerprint, Lease::in_memory(hot, threads)),
                Some(Next::Scan(hot)) => {
                    if self.core.verify == Verify::Always {
                        self.verify_again(&hot, deadline).map_err(warm_error)?;
                    }
                    self.core.events.tell(|| Event::HotLeased { key: key() });
                    (hot.fingerprint, Lease::in_memory(hot, threads))
                }
                Some(Next::Reserve(manifest)) => {
                    let begun = self.begin_warming(manifest, patience);
                    waited_for = Some(begun.map_err(|error| warm_error(Arc::new(error)))?);
                    continue;
                }
                Some(Next::Stream(manifest)) => match open_stream(&self.core, &manifest, deadline) {
                    Ok(slice) => (slice.fingerprint, Lease::streamed(slice, threads)),
                    // Flush and reslice do not wait for who opens files: then it is another slice, or none.
                    Err(_) if !self.entry.lock().is_manifest(&manifest) => continue,
                    Err(error) => return Err(warm_error(Arc::new(error))),
                },
            };
            return match options.want {
                Want::Fingerprint(expected) if fingerprint != expected => Err(LeaseError::OtherFingerprint {
                    key: key(),
                    found: fingerprint,
                    expected: Box::new(expected),
                }),
                _ => Ok(lease),
            };
        }
    }

    /// Compares what is in memory with its checksums. What is damaged there is not leased again.
    fn verify_again(&self, hot: &Arc<HotSlice>, deadline: Option<Instant>) -> Result<(), Arc<WarmError>> {
        verify_slice(hot, self.core.scan_threads.count(), deadline).inspect_err(|error| {
            if matches!(**error, WarmError::Damaged { .. }) {
                let is_it = |state: &mut State| state.hot.take_if(|other| Arc::ptr_eq(other, hot));
                drop(self.entry.change(is_it)); // Outside of the lock: unmapping takes a while.
            }
        })
    }

    /// Takes memory for the slice, and has it filled. Whoever waits for memory does so for itself: when its
    /// deadline passes, the next one waits.
    fn begin_warming(&self, manifest: Arc<Manifest>, patience: &Patience) -> Result<Arc<Attempt>, WarmError> {
        // All of it or none: regions that fit one by one would wait for each other.
        let taken = self.core.budget.take_patiently(MemoryUse::Mapped, bytes_in_memory(&manifest), patience);
        let events = self.core.events.clone();
        let (attempt, hauling) = Attempt::new(self.entry.clone(), manifest.clone(), events);
        let verified_load = self.entry.change(|state| {
            state.reserving = false;
            if taken.is_ok() {
                state.warming = Some(attempt.clone());
            }
            taken.is_ok().then(|| state.verified_load.take()).flatten()
        });
        let grant = taken.map_err(|source| WarmError::Memory { source })?;
        let is_verified = verified_load == Some(manifest.load_number);
        let CacheCore { spindles, warmth, .. } = &*self.core;
        attempt.start(spindles, warmth, &hauling, grant, is_verified, || self.core.next_lane());
        Ok(attempt)
    }

    /// Lets the slice's memory go, once the last lease has dropped, and what the page cache holds of its
    /// files; the files stay. Says whether it did: what is not on the disk yet stays in memory.
    ///
    /// Without leases the memory is free again when this returns, unless a disk hangs.
    pub fn evict(&self) -> bool {
        let hot = self.entry.change(|state| {
            state.verified_load = None;
            if state.is_durable() { state.hot.take() } else { None }
        });
        let Some(hot) = hot else { return false };
        hot.drop_cache_too();
        let bytes = hot.bytes();
        self.let_go(hot);
        self.core.events.tell(|| Event::Evicted { key: self.entry.key.clone(), bytes });
        true
    }

    /// The same, but what the page cache holds of the files stays there, for the system to take back when it
    /// wants memory. A lease that comes before finds the slice without reading or verifying it again.
    pub fn evict_keeping_cache(&self) -> bool {
        let hot = self.entry.change(|state| {
            let hot = if state.is_durable() { state.hot.take() } else { None };
            if let Some(hot) = &hot {
                state.verified_load = hot.is_verified_in_maps().then_some(hot.load_number);
            }
            hot
        });
        let Some(hot) = hot else { return false };
        let bytes = hot.bytes();
        drop(hot); // Outside of the lock. Nobody waits for the unmapping.
        self.core.events.tell(|| Event::Evicted { key: self.entry.key.clone(), bytes });
        true
    }

    /// Lets memory and files go. Says whether there was something. Waits for a load, or whatever else is under
    /// way, to the deadline.
    ///
    /// # Errors
    /// [`FlushError`]. What is still named by a manifest is found again at the next start.
    pub fn flush(&self, deadline: Option<Instant>) -> Result<bool, FlushError> {
        self.flush_patiently(&Patience::until(deadline))
    }

    /// [`Self::flush`] as a future. Dropping it flushes nothing, or all.
    pub fn flush_async(&self, deadline: Option<Instant>) -> Pending<Result<bool, FlushError>> {
        let snap = self.clone();
        self.core.waits.start(move |cancel| {
            snap.flush_patiently(&Patience { cancel: Some(cancel), ..Patience::until(deadline) })
        })
    }

    fn flush_patiently(&self, patience: &Patience) -> Result<bool, FlushError> {
        let key = || self.entry.key.clone();
        let taken = self.entry.wait(patience, |state| {
            let busy = state.loading || state.committing || state.reserving || state.warming.is_some();
            (!busy).then(|| {
                // A load that came meanwhile would commit under the name that is unlinked here: it waits.
                state.committing = state.manifest.is_some();
                (state.hot.take(), state.manifest.take())
            })
        });
        let Some((hot, manifest)) = taken else { return Err(FlushError::Late { key: key() }) };
        let was_there = hot.is_some() || manifest.is_some();
        if let Some(manifest) = &manifest {
            let (spindles, deadline) = (&self.core.spindles, patience.deadline);
            let removed = remove_manifest(spindles, manifest, deadline);
            self.entry.change(|state| {
                state.committing = false;
                if removed.is_err() {
                    // Its files are all there still, and may be found again at the next start.
                    state.manifest = Some(manifest.clone());
                }
            });
            removed
                .and_then(|()| remove_regions(spindles, manifest, deadline))
                .map_err(|source| FlushError::Disk { key: key(), source: Box::new(source) })?;
        }
        if was_there {
            let bytes = manifest.as_ref().map_or(0, |manifest| manifest.file_bytes());
            self.core.events.tell(|| Event::Flushed { key: key(), bytes });
        }
        drop(manifest); // It counts the files.
        if let Some(hot) = hot {
            self.let_go(hot);
        }
        Ok(was_there)
    }

    /// Gives up a slice outside of the entry's lock, since unmapping takes a while. Without leases all of it is gone
    /// when this returns, unless a disk hangs.
    fn let_go(&self, hot: Arc<HotSlice>) {
        HotSlice::give_up(hot, Instant::now() + EVICT_WAIT_MAX);
        self.core.warmth.reaper.settle();
    }
}

fn status(entry: &Entry) -> SnapStatus {
    let state = entry.lock();
    let sum = |of: fn(&RegionRecord) -> u64| {
        state.manifest.as_ref().map_or(0, |manifest| manifest.regions.iter().map(of).sum())
    };
    SnapStatus {
        key: entry.key.clone(),
        state: state.snap_state(),
        durable: state.is_durable(),
        fingerprint: state.fingerprint(),
        blob_count: sum(|region| region.blob_count),
        blob_bytes: sum(|region| region.blob_bytes),
        file_bytes: sum(|region| region.file_bytes),
    }
}

impl CacheCore {
    #[allow(clippy::too_many_arguments, reason = "called once, by the builder")]
    pub(crate) fn new(
        spindles: Vec<Arc<Spindle>>,
        memory: u64,
        buffers: u64,
        streams: u64,
        verify: Verify,
        piece_bytes: usize,
        scan_threads: Arc<ScanThreads>,
        residence: Residence,
        sigbus_guard: bool,
        epoch: u64,
        slices: BTreeMap<Key, Manifest>,
        next_load: u64,
        recovery: RecoveryReport,
    ) -> CacheCore {
        let entry = |(key, manifest): (Key, Manifest)| {
            (key.clone(), Arc::new(Entry::new(key, Some(Arc::new(manifest)))))
        };
        let events = Arc::new(EventHub::new(slices.len()));
        for spindle in &spindles {
            let (events, folder) = (events.clone(), spindle.folder.clone());
            spindle.watch.tell_changes(move |state, fault| {
                events.tell(|| Event::Spindle { folder: folder.clone(), state, fault });
            });
        }
        let pieces = buffers / 2;
        let scratch = (buffers / 8).min(SCRATCH_BYTES_MAX);
        let budget = MemoryBudget::new(memory - pieces - streams - scratch, buffers - pieces);
        CacheCore {
            warmth: Warmth::new(spindles.len(), residence, sigbus_guard, verify),
            spindles,
            pieces: MemoryBudget::new(pieces, pieces),
            scratch: Scratch::new(scratch as usize),
            streams: StreamMemory {
                rings: MemoryBudget::new(streams, streams),
                ring_bytes: streams / scan_threads.count() as u64,
                blobs: budget.clone(),
            },
            verify,
            piece_bytes,
            image_bytes_max: budget.counts().residence_max as usize,
            budget,
            regions_default: scan_threads.count() as u32,
            scan_threads,
            entries: Mutex::new(slices.into_iter().map(entry).collect()),
            epoch,
            next_load: AtomicU64::new(next_load),
            next_lane: AtomicU64::new(0),
            commits: Arc::default(),
            closed: AtomicBool::new(false),
            events,
            waits: Arc::default(),
            recovery,
        }
    }

    /// Whether a slice that is on the disk is read from there by each scan.
    fn reads_as_stream(&self, reading: Reading, manifest: &Manifest, is_hot: bool) -> bool {
        let file_bytes = manifest.file_bytes();
        match reading {
            Reading::Auto => !is_hot && file_bytes > self.budget.counts().residence_max,
            Reading::Memory => false,
            Reading::Stream => !manifest.regions.is_empty(),
        }
    }

    #[cfg(test)]
    pub(crate) fn entry_for_tests(&self, key: &Key) -> Arc<Entry> {
        self.lock_entries()[key].clone()
    }

    fn sync(&self, patience: &Patience) -> Result<(), SyncError> {
        let keys = self.commits.wait(patience);
        if patience.check() == Err(Impatience::Cancelled) {
            return Err(SyncError::Late { keys }); // Nobody hears it.
        }
        let failures = self.commits.take_failed();
        match (failures.is_empty(), keys.is_empty()) {
            (false, _) => Err(SyncError::Failed { failures }),
            (true, false) => Err(SyncError::Late { keys }),
            (true, true) => Ok(()),
        }
    }

    fn close(&self, patience: &Patience) -> Result<(), CloseError> {
        self.closed.store(true, Ordering::Relaxed);
        let unfinished = self.commits.wait(patience);
        if patience.check() == Err(Impatience::Cancelled) {
            // Nobody hears it, and nobody has said how long the disks may take.
            return Err(CloseError { unfinished, failed: Vec::new(), abandoned: Vec::new() });
        }
        let deadline = patience.deadline.unwrap_or_else(|| Instant::now() + FOR_EVER);
        let abandoned = close_spindles(&self.spindles, deadline);
        self.events.stop();
        let failed = self.commits.take_failed();
        if unfinished.is_empty() && failed.is_empty() && abandoned.is_empty() {
            return Ok(());
        }
        Err(CloseError { unfinished, failed, abandoned })
    }

    pub(crate) fn next_lane(&self) -> Lane {
        Lane(self.next_lane.fetch_add(1, Ordering::Relaxed))
    }

    /// Brings a sealed slice to the disk, on a thread of its own: it waits for disks, and disks may hang. If
    /// nobody `waits`, a failure is kept for [`Cache::sync`].
    #[allow(clippy::too_many_arguments, reason = "called once, by closing a load")]
    pub(crate) fn start_commit(
        &self,
        entry: Arc<Entry>,
        fingerprint: Fingerprint,
        region_count: u32,
        folders: LoadFolders,
        built: Vec<BuiltRegion>,
        hot: Option<Arc<HotSlice>>,
        waits: bool,
    ) -> Told {
        entry.change(|state| {
            state.loading = false;
            state.committing = true;
        });
        let in_memory = hot.is_some();
        let commit = Commit { key: entry.key.clone(), fingerprint, region_count, folders, built, hot };
        let (tell, told) = outcome();
        let (spindles, events, begun) = (self.spindles.clone(), self.events.clone(), Instant::now());
        self.aside("pelton-commit", entry.key.clone(), move |under_way| {
            let committed = commit.run(&spindles);
            let ended = end_commit(&spindles, &entry, committed);
            // Before it is told: who was told may drop the cache, and open its folders again.
            drop(spindles);
            let key = entry.key.clone();
            events.tell(|| match &ended {
                Ok(bytes) => Event::Durable { key, fingerprint, bytes: *bytes, took: begun.elapsed() },
                Err(error) => Event::CommitFailed { key, fingerprint, in_memory, why: reason(error) },
            });
            drop(events);
            let unheard = match ended.map(drop) {
                Err(error) if !waits => Some(error),
                ended => tell.tell(ended).err().and_then(Result::err),
            };
            if let Some(error) = unheard {
                under_way.failed(error);
            }
        });
        told
    }

    /// Removes what a load has written, and gives its space back.
    pub(crate) fn remove_load(
        &self,
        key: Key,
        folders: LoadFolders,
        deadline: Option<Instant>,
        builds: Vec<RegionBuild>,
    ) {
        let spindles = self.spindles.clone();
        let remove = move || {
            if !folders.remove_all(&spindles) {
                builds.into_iter().for_each(RegionBuild::leave_behind);
            }
        };
        match deadline {
            None => remove(),
            // Somebody has a deadline, and the disk may be what it passes for.
            Some(_) => self.aside("pelton-remove", key, move |under_way| {
                remove();
                drop(under_way);
            }),
        }
    }

    /// Runs what may wait for a disk on a thread of its own, which the cache's last handle waits for. So `run`
    /// must not hold the cache, and lets go of its spindles before it says that it has ended.
    pub(crate) fn aside(&self, thread: &str, key: Key, run: impl FnOnce(UnderWay) + Send + 'static) {
        let under_way = self.commits.begin(key);
        let job = Arc::new(Mutex::new(Some(move || run(under_way))));
        let of_thread = job.clone();
        let take = |job: &Mutex<Option<_>>| job.lock().unwrap_or_else(PoisonError::into_inner).take();
        let spawned = std::thread::Builder::new().name(thread.to_owned()).spawn(move || {
            let job = take(&of_thread);
            drop(of_thread);
            if let Some(run) = job {
                run();
            }
        });
        // Where the system has no thread to give, this one does it.
        if spawned.is_err()
            && let Some(run) = take(&job)
        {
            run();
        }
    }

    fn lock_entries(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CacheCore {
    fn drop(&mut self) {
        // After a close somebody has waited already, as long as they wished.
        if !*self.closed.get_mut() {
            self.commits.wait(&Patience::until(Some(Instant::now() + DROP_WAIT_MAX)));
        }
        self.events.stop();
    }
}

/// The slice exists on the disks, or not. Says how many bytes it has there.
fn end_commit(
    spindles: &[Arc<Spindle>],
    entry: &Entry,
    committed: Result<Manifest, CommitError>,
) -> Result<u64, CommitError> {
    let manifest = match committed {
        Ok(manifest) => Arc::new(manifest),
        Err(error) => {
            entry.change(|state| state.committing = false);
            return Err(error);
        }
    };
    let before = entry.change(|state| state.manifest.replace(manifest.clone()));
    if let Some(before) = before {
        // The new manifest stands under the same name, unless its home is another spindle. The next load's may
        // stand there again, so that one waits until this is over.
        let same_home = manifest.spindles.first() == before.spindles.first();
        if same_home || remove_manifest(spindles, &before, None).is_ok() {
            let _ = remove_regions(spindles, &before, None);
        }
    }
    entry.change(|state| state.committing = false);
    Ok(manifest.file_bytes())
}

#[cfg(test)]
mod tests;

//! The cache: what an embedder sees first.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use pelton_region_format::{Fingerprint, Key, KeyPattern};

use crate::budget::buffers::Buffers;
use crate::budget::memory::{MemoryBudget, MemoryRefused};
use crate::builder::{CacheBuilder, CacheError};
use crate::cache::close::{CloseError, FOR_EVER, SyncError, close_spindles};
use crate::cache::recovering::{Recovering, Target};
use crate::cache::table::SharedTable;
use crate::config::Verify;
use crate::events::{Event, EventHub, Events, reason};
use crate::load::Counts;
use crate::load::planning::{self, PlanError};
use crate::load::registry::Registry;
use crate::load::running::Offer;
use crate::ops::operation::{Operation, OperationOptions, OperationResult};
use crate::ops::run::operate;
use crate::ops::select::{Selected, Selection, select};
use crate::region::arena::Paging;
use crate::region::residence::Residence;
use crate::region::smaps::large_page_bytes;
use crate::scan::cancel::CancelToken;
use crate::scan::lease::{Held, Lease, LeaseError, LeaseOptions, Reading};
use crate::scan::patience::{Impatience, Patience};
use crate::scan::threads::ScanThreads;
use crate::slice::ahead::Ahead;
use crate::slice::plan::LoadPlan;
use crate::slice::scratch::Scratch;
use crate::slice::sealed::NotASlice;
use crate::slice::writer::{LoadError, SliceWriter, load_error};
use crate::snap::access::keeper::{Keeper, SAVE_WAIT_MAX};
use crate::snap::access::logs::AccessLogs;
use crate::snap::commit::LoadFolders;
use crate::snap::desk::Reply;
pub(crate) use crate::snap::entry::Entry;
use crate::snap::hot::HotSlice;
use crate::snap::manifest::{Manifest, RegionRecord};
use crate::snap::recovery::{Listed, RecoveryReport};
use crate::snap::runner::Runner;
use crate::snap::scrub::Scrubber;
use crate::snap::state::{Answer, Decider, Limits, SnapEvent, SnapState, Version};
use crate::snap::stream::{StreamMemory, open_stream};
use crate::snap::warm::{WarmError, Warmth, verify_slice};
use crate::spindle::engine::DiskError;
use crate::spindle::health::HealthState;
use crate::spindle::held::{Spindle, share_disk};
use crate::spindle::impeller::Lane;
use crate::stats::meter::{Count, Meter};
use crate::stats::recorder::Registrar;
use crate::tender::Reason;
use crate::tender::room::{make_room_in_memory, place_with_room};
use crate::tender::run::Tender;
use crate::tender::thread::TenderThread;
use crate::waits::{Pending, Waits};

pub(crate) mod close;
pub(crate) mod recovering;
mod stats;
mod table;
mod tending;
pub(crate) mod told;

/// How long dropping the last handle waits for slices that are on their way to the disk.
const DROP_WAIT_MAX: Duration = Duration::from_secs(60);

/// Keeps slices on the disks and in the memory of this machine.
///
/// Cloning makes another handle; the cache closes with the last one, snaps and open loads included. Dropping that
/// one waits up to a minute for slices that are still on their way to the disk, and then the folders can be
/// opened again at once. [`Cache::close`] waits to a deadline of your choice and says what went wrong; after it nothing
/// waits any longer.
#[derive(Clone)]
pub struct Cache {
    /// Dropped before the core: what it waits for has hold of that.
    _handles: Arc<Handles>,
    core: Arc<CacheCore>,
}

/// What dropping the last handle ends and waits for, though snaps and open loads may live on: the tender, the keeper, the
/// scrub, what loaders are at, and operations that were cancelled. All have hold of the cache.
struct Handles {
    scrub: Option<Scrubber>,
    core: Weak<CacheCore>,
    runner: Arc<Runner>,
    waits: Arc<Waits>,
    /// Nobody tends what is left after the last handle.
    tender: TenderThread,
    keeper: Keeper,
}

impl Drop for Handles {
    fn drop(&mut self) {
        self.tender.stop();
        self.keeper.stop();
        drop(self.scrub.take());
        if let Some(core) = self.core.upgrade() {
            // Whoever closes says how long that may take, and has stopped all this.
            if core.is_closed() {
                return;
            }
            core.stop_loaders();
        }
        let deadline = Instant::now() + DROP_WAIT_MAX;
        self.runner.loads.wait(&Patience::until(Some(deadline)));
        self.waits.settle(deadline);
    }
}

/// How long an evict waits for the last step of what was on its way into memory.
const EVICT_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a look at the spindles waits for the manifests to be read.
const COUNT_WAIT_MAX: Duration = Duration::from_secs(2);

/// What all handles, writers and leases share.
pub(crate) struct CacheCore {
    /// Dropped before the spindles: its threads still use them.
    pub(crate) warmth: Arc<Warmth>,
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
    /// Memory for the next pieces of images that are being written.
    pub(crate) ahead: Arc<Ahead>,
    pub(crate) piece_bytes: usize,
    pub(crate) regions_default: u32,
    pub(crate) scan_threads: Arc<ScanThreads>,
    table: SharedTable,
    epoch: u64,
    next_load: Arc<AtomicU64>,
    /// How many bytes a second the scrub may read, if there is one.
    scrub_rate: Option<u64>,
    /// Ends the scrub.
    pub(crate) scrub_stop: CancelToken,
    pub(crate) runner: Arc<Runner>,
    /// Which loader fills which slice.
    loaders: Registry,
    pub(crate) tender: Tender,
    /// Set once, by closing; read by whoever opens a load or enters a slice.
    closed: Arc<AtomicBool>,
    /// Set by a close that has waited as long as it was to; read by the end of the cache, which waits itself otherwise.
    waited: AtomicBool,
    pub(crate) events: Arc<EventHub>,
    /// For operations as futures.
    pub(crate) waits: Arc<Waits>,
    recovering: Arc<Recovering>,
    /// How slices were used, for the next start.
    pub(crate) access: Arc<AccessLogs>,
}

/// The counter of where a lease's bytes came from.
type Tier = fn(&Meter) -> &Count;

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

/// Why a slice could not be flushed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// Nobody gets it any more, but its files were not gone in time. They go on going.
    #[error("the files of {key} were not gone in time")]
    Late {
        /// The slice.
        key: Key,
    },
    /// The disk refused. What is still named by a manifest is found again at the next start.
    #[error("the files of {key} could not be removed")]
    Disk {
        /// The slice.
        key: Key,
        /// What the disk said.
        source: Arc<DiskError>,
    },
    /// It is pinned: unpin it first.
    #[error("{key} is pinned")]
    Pinned {
        /// The slice.
        key: Key,
    },
    /// The cache is closed.
    #[error("{key} can't be flushed: the cache is closed")]
    Closed {
        /// The slice.
        key: Key,
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
    /// Whether it could not be brought to the disk, and so goes with the process.
    pub unsaved: bool,
    /// Whether it is kept from being evicted, flushed and erased.
    pub pinned: bool,
    /// How many leases there are, those on replaced slices included.
    pub leases: usize,
    /// The fingerprint of what is there.
    pub fingerprint: Option<Fingerprint>,
    /// How many blobs are on the disk.
    pub blob_count: u64,
    /// How many bytes they have.
    pub blob_bytes: u64,
    /// How many bytes its files take.
    pub file_bytes: u64,
    /// How many bytes it takes in memory. Of maps, the system decides how much of that is there.
    pub memory_bytes: u64,
    /// For how long nobody has asked for it: since the last query, or else since it was loaded, if that is known.
    pub idle: Option<Duration>,
    /// What its source said of its blobs when they were loaded, if a loader did that since the cache was opened.
    pub counts: Counts,
    /// Why it is not tried again yet, if it is so: its load, the plan of that, or its warming has failed.
    pub failure: Option<SnapFailure>,
}

/// What went wrong with a snap, and when it is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapFailure {
    /// Why, for people.
    pub why: String,
    /// How often in a row. Each time doubles the wait, up to five minutes.
    pub in_a_row: u32,
    /// How long it is not tried again.
    pub again_in: Duration,
}

impl Cache {
    /// Starts setting one up.
    pub fn builder() -> CacheBuilder {
        CacheBuilder::default()
    }

    pub(crate) fn from_core(core: CacheCore, tender_every: Duration) -> Result<Cache, CacheError> {
        let core = Arc::new(core);
        core.runner.attach(&core);
        let tender = TenderThread::start(&core, tender_every);
        let keeper = Keeper::start(&core);
        let (runner, waits) = (core.runner.clone(), core.waits.clone());
        let scrub = core.scrub_rate.map(|rate| Scrubber::start(&core, rate)).transpose();
        let scrub = scrub.map_err(|source| CacheError::Threads { source })?;
        let handles = Handles { tender, keeper, scrub, core: Arc::downgrade(&core), runner, waits };
        Ok(Cache { _handles: Arc::new(handles), core })
    }

    /// Begins to read what is on the disks. `settle` is run when it is counted.
    pub(crate) fn start_recovery(&self, listed: Listed, settle: impl FnOnce() + Send + 'static) {
        self.core.start_recovery(listed, settle);
    }

    #[cfg(test)]
    pub(crate) fn core_for_tests(&self) -> &Arc<CacheCore> {
        &self.core
    }

    /// The snap of a key; a cold one if nothing is known of it. While the cache still reads what is on its disks,
    /// this one is read first.
    pub fn snap(&self, key: &Key) -> Snap {
        Snap { core: self.core.clone(), entry: self.core.entry(key) }
    }

    pub(crate) fn snap_within(&self, key: &Key, deadline: Option<Instant>) -> Result<Snap, LeaseError> {
        let entry = self.core.entry_within(key, &Patience::until(deadline));
        let entry = entry.ok_or_else(|| LeaseError::Deadline { key: key.clone() })?;
        Ok(Snap { core: self.core.clone(), entry })
    }

    /// All snaps that the pattern matches and that hold something, in the order of their keys. Just after the cache was
    /// opened it waits until all manifests were read, or the cache is closed.
    pub fn search(&self, pattern: &KeyPattern) -> Vec<SnapStatus> {
        self.core
            .entries(pattern, &Patience::default())
            .iter()
            .map(|entry| status(entry))
            .filter(|status| !matches!(status.state, SnapState::Cold | SnapState::Gone))
            .collect()
    }

    /// What a selection finds now, in the order of the keys: its slices, or its generations. Waits as [`Self::search`] does.
    pub fn select(&self, selection: &Selection) -> Vec<Selected> {
        select(&self.core, selection, &Patience::default())
            .into_iter()
            .map(|(selected, _)| selected)
            .collect()
    }

    /// Does something to all slices that a selection finds, a few at once, and says for each what came of it, in the
    /// order of their keys. A disk that hangs holds up only what lies on it, to the deadline. Just after the cache was opened
    /// it waits until all manifests were read; slices that are not known by the deadline are not among the results.
    pub fn operate(
        &self,
        selection: &Selection,
        operation: Operation,
        options: &OperationOptions,
    ) -> Vec<OperationResult> {
        operate(&self.core, selection, operation, options, &Patience::until(options.deadline))
    }

    /// [`Self::operate`] as a future. Dropping it begins with no further slice.
    pub fn operate_async(
        &self,
        selection: &Selection,
        operation: Operation,
        options: &OperationOptions,
    ) -> Pending<Vec<OperationResult>> {
        let (core, selection, options) = (self.core.clone(), selection.clone(), options.clone());
        self.core.waits.start(move |cancel| {
            let patience = Patience { cancel: Some(cancel), ..Patience::until(options.deadline) };
            operate(&core, &selection, operation, &options, &patience)
        })
    }

    /// Takes a lease on a slice, and brings it into memory if it must.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn lease(&self, key: &Key, want: Want, deadline: Option<Instant>) -> Result<Lease, LeaseError> {
        self.lease_with(key, &LeaseOptions { want, deadline, ..LeaseOptions::default() })
    }

    /// Takes a lease on a slice whose regions are read as the options say.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn lease_with(&self, key: &Key, options: &LeaseOptions) -> Result<Lease, LeaseError> {
        lease_patiently(&self.core, key, options, &Patience::until(options.deadline))
    }

    /// [`Self::lease`] as a future. Dropping it gives the lease back; what is on its way into memory goes on.
    pub fn lease_async(
        &self,
        key: &Key,
        want: Want,
        deadline: Option<Instant>,
    ) -> Pending<Result<Lease, LeaseError>> {
        self.lease_async_with(key, &LeaseOptions { want, deadline, ..LeaseOptions::default() })
    }

    /// [`Self::lease_with`] as a future. Dropping it gives the lease back; what is on its way into memory goes on.
    pub fn lease_async_with(&self, key: &Key, options: &LeaseOptions) -> Pending<Result<Lease, LeaseError>> {
        let (core, key, options) = (self.core.clone(), key.clone(), *options);
        self.core.waits.start(move |cancel| {
            let patience = Patience { cancel: Some(cancel), ..Patience::until(options.deadline) };
            lease_patiently(&core, &key, &options, &patience)
        })
    }

    /// Listens to what happens from now on. The cache waits for no listener: one that does not take its events
    /// loses the oldest beyond 1024, and can ask how many.
    pub fn events(&self) -> Events {
        self.core.events.listen()
    }

    /// What parcels may use: for who takes a parcel's memory before the parcel comes.
    pub fn buffers(&self) -> Buffers {
        Buffers::new(self.core.budget.clone())
    }

    /// What was found on the spindles when the cache was opened. Waits until all of it was read; if the cache is closed
    /// before, it is nothing.
    pub fn recovery(&self) -> &RecoveryReport {
        static NOTHING: LazyLock<RecoveryReport> = LazyLock::new(RecoveryReport::default);
        self.core.wait_for_recovery(&Patience::default()).unwrap_or(&NOTHING)
    }

    /// The spindles: how each is served, how it does, and what it has room for. Asks no disk. Just after the cache was
    /// opened it waits a moment until all that lies there is counted.
    pub fn spindles(&self) -> Vec<SpindleStatus> {
        self.core.wait_for_recovery(&Patience::until(Some(Instant::now() + COUNT_WAIT_MAX)));
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
        let entries = self.core.entries_now();
        let hot: Vec<Arc<HotSlice>> = entries.iter().filter_map(|entry| entry.desk.served()).collect();
        let counts = self.core.budget.counts();
        let (pieces, streams) = (self.core.pieces.counts(), self.core.streams.rings.counts());
        let mut report = MemoryReport {
            images: counts.images,
            mapped: counts.mapped,
            mapped_resident: 0,
            large_page_bytes: 0,
            buffers: counts.buffers + pieces.buffers + streams.buffers,
            spares: counts.spares,
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

    /// All leases, the oldest first. A clone of a lease is the same one.
    pub fn leases(&self) -> Vec<LeaseStatus> {
        let entries = self.core.entries_now();
        let mut leases = Vec::new();
        for entry in entries {
            leases.extend(entry.held().into_iter().map(|(fingerprint, since)| LeaseStatus {
                key: entry.key.clone(),
                fingerprint,
                since,
            }));
        }
        leases.sort_by_key(|lease| lease.since);
        leases
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
    /// and ends the threads of the spindles; all of it to the deadline, and a tenth of a second beyond. Leases
    /// go on: what they hold stays in memory as long as they live, and nobody gets a new one.
    ///
    /// # Errors
    /// [`CloseError`] says what did not get to the disk, and which threads a hung disk keeps.
    pub fn close(self, deadline: Option<Instant>) -> Result<(), CloseError> {
        self.core.close(&Patience::until(deadline))
    }

    /// [`Self::close`] as a future. Dropping it waits no longer: no more loads are taken, slices on their way get to
    /// the disk, and the threads of the spindles end with the last handle, which may be this one, in the background.
    pub fn close_async(self, deadline: Option<Instant>) -> Pending<Result<(), CloseError>> {
        let waits = self.core.waits.clone();
        // With this handle: what the last one does may wait, and must not do so here.
        waits.start(move |cancel| {
            let cache = self; // All of it: a closure takes only what it names.
            cache.core.close(&Patience { cancel: Some(cancel), ..Patience::until(deadline) })
        })
    }
}

/// Looks the key up, which may wait for a disk while the cache has just been opened, and takes the lease.
fn lease_patiently(
    core: &Arc<CacheCore>,
    key: &Key,
    options: &LeaseOptions,
    patience: &Patience,
) -> Result<Lease, LeaseError> {
    let entry = core.entry_within(key, patience);
    let entry = entry.ok_or_else(|| LeaseError::Deadline { key: key.clone() })?;
    // Without a snap's handle on the cache: all who lease something would count on one place.
    match core.lease_at_once(entry, options) {
        Ok(lease) => Ok(lease),
        Err(entry) => Snap { core: core.clone(), entry }.lease_patiently(options, patience),
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
    /// Memory of images that are gone, kept for the next one: for a moment, and only until anything else needs it.
    pub spares: u64,
    /// What all of it may take.
    pub max: u64,
}

/// A lease that somebody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// Its slice.
    pub key: Key,
    /// What decided the blobs of what it holds: maybe a slice that was replaced meanwhile.
    pub fingerprint: Fingerprint,
    /// When it was taken.
    pub since: Instant,
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
    pub(crate) fn new(core: Arc<CacheCore>, entry: Arc<Entry>) -> Snap {
        Snap { core, entry }
    }

    pub(crate) fn core(&self) -> &Arc<CacheCore> {
        &self.core
    }

    pub(crate) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// The slice's key.
    pub fn key(&self) -> &Key {
        &self.entry.key
    }

    /// What it is and holds now.
    pub fn status(&self) -> SnapStatus {
        status(&self.current().entry)
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
        // Its number must be above all that are on the disks, and its room beside all that is there.
        if self.core.wait_for_recovery(patience).is_none() {
            return Err(match self.core.is_closed() {
                true => LoadError::Closed { key: key() },
                false => LoadError::Starting { key: key() },
            });
        }
        plan.check(self.core.regions_default).map_err(|error| match error {
            NotASlice::RegionCount { found } => LoadError::Regions { key: key(), regions: found },
            source => LoadError::NotASlice { key: key(), source },
        })?;
        let version = loop {
            let load = self.core.next_load.fetch_add(1, Ordering::Relaxed);
            let version = Version { load, fingerprint: plan.fingerprint };
            match self.entry.ask(|waiter| SnapEvent::Write { waiter, version }, patience) {
                Reply::Other(Answer::Write(version)) => break version,
                Reply::Other(Answer::Closed) => return Err(LoadError::Closed { key: key() }),
                Reply::Other(Answer::Again) if self.entry.is_gone() => {
                    return self.anew().open(plan, patience);
                }
                Reply::Other(Answer::Again) => {} // A later load has overtaken it.
                _ => return Err(LoadError::Busy { key: key() }),
            }
        };
        self.open_begun(version, plan, patience)
    }

    /// Opens the load that the decider has begun. What it fails with is reported.
    pub(crate) fn open_begun(
        &self,
        version: Version,
        plan: LoadPlan,
        patience: &Patience,
    ) -> Result<SliceWriter, LoadError> {
        let key = || self.entry.key.clone();
        let report = |error: LoadError, event| {
            self.entry.facts().load_error = Some(reason(&error));
            self.entry.report(event);
            error
        };
        if let Some((bytes, bytes_max)) = plan.too_much() {
            let error = LoadError::TooMuch { key: key(), bytes, bytes_max };
            return Err(report(error, SnapEvent::LoadCancelled { version }));
        }
        let sizes = plan.sizes(self.core.regions_default);
        let load_number = version.load;
        let spindles = &self.core.spindles;
        let first = load_number as usize % spindles.len();
        let placed = place_with_room(&self.core, first, &sizes, patience);
        let placed = placed.map_err(|refusals| {
            let error = LoadError::NoSpindle { key: key(), refusals };
            report(error, SnapEvent::LoadCancelled { version }) // It says nothing about the slice.
        })?;
        let folders = LoadFolders::new(spindles, self.core.epoch, load_number, placed.spindles);
        if let Some(bytes) =
            plan.expected_bytes.filter(|bytes| plan.keeps_image(Some(*bytes), &self.core.budget))
        {
            // An image that gets no memory when it comes goes to the disk alone, so nothing is refused here.
            drop(make_room_in_memory(&self.core, bytes, patience));
        }
        let deadline = plan.deadline;
        let open = folders
            .create(spindles, patience)
            .map_err(|error| load_error(key(), error.into()))
            .and_then(|()| {
                let (core, entry) = (self.core.clone(), self.entry.clone());
                SliceWriter::new(core, entry, plan, folders.clone(), placed.space, patience)
            });
        open.map_err(|error| {
            self.core.remove_load(key(), folders, deadline, || {});
            let event = match error {
                LoadError::Disk { .. } => SnapEvent::LoadFailed { version },
                _ => SnapEvent::LoadCancelled { version },
            };
            report(error, event)
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
        if let Ok(lease) = self.core.lease_at_once(self.entry.clone(), options) {
            return Ok(lease);
        }
        let (meter, begun) = (&self.core.events.meter, Instant::now());
        let leased = self.lease_uncounted(options, patience);
        match &leased {
            Ok((_, tier)) => {
                tier(meter).one();
                meter.lease_waits.took(begun.elapsed());
            }
            Err(LeaseError::NotThere { .. } | LeaseError::OtherFingerprint { .. }) => {
                meter.missed_leases.one()
            }
            Err(_) => meter.failed_leases.one(),
        }
        leased.map(|(lease, _)| lease)
    }

    /// A lease, and as what it counts.
    fn lease_uncounted(
        &self,
        options: &LeaseOptions,
        patience: &Patience,
    ) -> Result<(Lease, Tier), LeaseError> {
        let mut options = *options;
        let mut offer = None;
        if options.refresh && !self.core.is_closed() && options.want == Want::Latest {
            offer = self.ask_loader(patience)?;
            if let Some(offer) = &offer {
                options.want = Want::Fingerprint(offer.plan.fingerprint);
            }
        }
        let options = &options;
        loop {
            if let Some(manifest) = self.manifest_to_stream(options) {
                match open_stream(&self.core, &manifest, patience) {
                    Ok(slice) => {
                        let held = Held::new(self.entry.clone(), slice.fingerprint, None);
                        let lease = Lease::streamed(slice, held);
                        return Ok((lease, |meter| &meter.stream_leases));
                    }
                    // Flush and reslice do not wait for who opens files: then it is another slice, or none.
                    Err(_) if !self.is_on_disk(&manifest) => continue,
                    Err(error) => {
                        let (key, source) = (self.entry.key.clone(), Arc::new(error));
                        match source.is_damage() {
                            true if self.entry.has_whole_image(manifest.version()) => {
                                self.entry.files_damaged(manifest.version(), source.clone());
                            }
                            true => self.entry.warming_failed(manifest.version(), source.clone()),
                            false => {}
                        }
                        return Err(LeaseError::Warm { key, source });
                    }
                }
            }
            let (reply, has_waited) = match &offer {
                None => self.entry.lease(options.want, patience),
                Some(offer) => {
                    // Its number must be above all that are on the disks, and its room beside all that is there.
                    if self.core.wait_for_recovery(patience).is_none() {
                        let answer = if self.core.is_closed() { Answer::Closed } else { Answer::Late };
                        return Err(self.lease_error(answer, options.want));
                    }
                    let load = self.core.next_load.fetch_add(1, Ordering::Relaxed);
                    self.entry.lease_or_load(options.want, Offer::clone(offer), load, patience)
                }
            };
            match reply {
                Reply::Lease(version, hot) => {
                    let held = Held::new(self.entry.clone(), version.fingerprint, Some(version));
                    let tier: Tier = match has_waited {
                        false => |meter| &meter.hot_leases,
                        true if hot.was_loaded() => |meter| &meter.cold_leases,
                        true => |meter| &meter.warm_leases,
                    };
                    // What was waited for was verified on its way.
                    if !has_waited {
                        if self.core.verify == Verify::Always {
                            self.verify_again(&hot, patience)?;
                        }
                        self.core.events.tell(|| Event::HotLeased { key: self.entry.key.clone() });
                    }
                    return Ok((Lease::in_memory(hot, held), tier));
                }
                Reply::Other(Answer::Again) if self.entry.is_gone() => {
                    return self.anew().lease_uncounted(options, patience);
                }
                Reply::Other(Answer::Again) if offer.is_some() => {} // A later load has overtaken its number.
                // Another's patience was over, so it asks anew and waits itself. Or it is streamed.
                Reply::Other(Answer::WarmRefused) if self.can_ask_again(options, patience) => {}
                Reply::Other(answer) => {
                    let could_be_loaded =
                        matches!(answer, Answer::NotThere | Answer::OtherFingerprint(_) | Answer::Damaged);
                    if could_be_loaded && offer.is_none() {
                        offer = self.ask_loader(patience)?;
                    }
                    match (&offer, options.want) {
                        (Some(offer), Want::Fingerprint(expected)) if offer.plan.fingerprint != expected => {
                            let (key, planned) = (self.entry.key.clone(), offer.plan.fingerprint);
                            return Err(LeaseError::OtherPlan { key, planned, expected: Box::new(expected) });
                        }
                        (Some(_), _) if could_be_loaded => {}
                        _ => return Err(self.lease_error(answer, options.want)),
                    }
                }
            }
        }
    }

    /// What the slice's loader would load now; nothing if it has none.
    fn ask_loader(&self, patience: &Patience) -> Result<Option<Offer>, LeaseError> {
        let Some(loader) = self.core.loaders.of(&self.entry.key) else { return Ok(None) };
        let key = || self.entry.key.clone();
        match planning::plan(&self.core, &self.entry, loader, patience) {
            Ok(plan) => Ok(Some(Offer { plan, loader: loader.clone() })),
            Err(PlanError::NotThere) => Err(LeaseError::NotThere { key: key() }),
            Err(PlanError::Failed(why)) => Err(LeaseError::LoadFailed { key: key(), why }),
            Err(PlanError::NotYet { until }) => Err(self.failed_until(until)),
            Err(PlanError::Cancelled) if self.core.is_closed() => Err(LeaseError::Closed { key: key() }),
            Err(PlanError::Late | PlanError::Cancelled) => Err(LeaseError::Deadline { key: key() }),
        }
    }

    fn failed_until(&self, until: Duration) -> LeaseError {
        let again_in = until.saturating_sub(self.entry.now());
        LeaseError::Failed { key: self.entry.key.clone(), again_in, why: self.entry.why_failed(until) }
    }

    /// The manifest whose regions a lease reads from the disk, if it does.
    fn manifest_to_stream(&self, options: &LeaseOptions) -> Option<Arc<Manifest>> {
        if options.reading == Reading::Memory || self.core.is_closed() {
            return None;
        }
        let (is_durable, is_hot) = self.entry.desk.look(|snap| (snap.is_durable(), snap.served().is_some()));
        if !is_durable || (is_hot && options.reading == Reading::Auto) {
            return None;
        }
        let manifest = self.entry.manifest()?;
        let is_wanted = match options.want {
            Want::Latest => true,
            Want::Fingerprint(wanted) => wanted == manifest.fingerprint,
        };
        (is_wanted && self.core.reads_as_stream(options.reading, &manifest)).then_some(manifest)
    }

    fn is_on_disk(&self, manifest: &Arc<Manifest>) -> bool {
        self.entry.manifest().is_some_and(|now| Arc::ptr_eq(&now, manifest))
    }

    fn can_ask_again(&self, options: &LeaseOptions, patience: &Patience) -> bool {
        let error = self.entry.facts().warm_error.clone();
        match error.as_deref() {
            Some(WarmError::Memory { source: MemoryRefused::Deadline { .. } }) => patience.check().is_ok(),
            _ => self.manifest_to_stream(options).is_some(),
        }
    }

    fn lease_error(&self, answer: Answer, want: Want) -> LeaseError {
        let key = self.entry.key.clone();
        match (answer, want) {
            (Answer::Closed, _) => LeaseError::Closed { key },
            (Answer::Late, _) => LeaseError::Deadline { key },
            (Answer::OtherFingerprint(found), Want::Fingerprint(expected)) => {
                LeaseError::OtherFingerprint { key, found, expected: Box::new(expected) }
            }
            (Answer::LoadFailed, _) => LeaseError::LoadFailed { key, why: self.entry.why_load_failed() },
            (Answer::Failed { until }, _) => self.failed_until(until),
            (Answer::WarmFailed | Answer::WarmRefused | Answer::Damaged, _) => {
                match self.entry.facts().warm_error.clone() {
                    Some(source) => LeaseError::Warm { key, source },
                    None => LeaseError::Closed { key }, // Only a cache that goes gives no reason.
                }
            }
            _ => LeaseError::NotThere { key },
        }
    }

    /// Compares what is in memory with its checksums. What is damaged is dropped.
    fn verify_again(&self, hot: &Arc<HotSlice>, patience: &Patience) -> Result<(), LeaseError> {
        verify_slice(hot, self.core.scan_threads.count(), patience).map_err(|source| {
            if source.is_damage() {
                self.entry.warming_failed(hot.version(), source.clone());
            }
            LeaseError::Warm { key: self.entry.key.clone(), source }
        })
    }

    /// Lets the slice's memory go, and what the page cache holds of its files; the files stay. Says whether it did:
    /// what is not on the disk yet stays in memory, and so does what is pinned. What is leased goes with the last
    /// lease, unless somebody takes a new one before.
    ///
    /// Without leases the memory is free again when this returns, unless a disk hangs.
    pub fn evict(&self) -> bool {
        is_evicted(self.evict_and_say(false))
    }

    /// The same, but what the page cache holds of the files stays there, for the system to take back when it
    /// wants memory. A lease that comes before finds the slice without reading or verifying it again.
    pub fn evict_keeping_cache(&self) -> bool {
        is_evicted(self.evict_and_say(true))
    }

    /// Evicts, with or without the page cache, and says what came of it.
    pub(crate) fn evict_and_say(&self, keeps_cache: bool) -> Answer {
        let (answer, hot) = self.current().entry.evict(keeps_cache, None, |_| true);
        if let Some(hot) = hot.filter(|_| !keeps_cache) {
            self.let_go(hot); // Nobody waits for the unmapping otherwise.
        }
        answer
    }

    /// Lets memory and files go. Says whether there was something. Nobody gets it from here on; leases keep what
    /// they hold, and a load under way goes on. Waits to the deadline until the files are gone.
    ///
    /// # Errors
    /// [`FlushError`].
    pub fn flush(&self, deadline: Option<Instant>) -> Result<bool, FlushError> {
        self.flush_patiently(&Patience::until(deadline))
    }

    /// [`Self::flush`] as a future. It has begun when this returns or soon after; dropping it only waits no longer.
    pub fn flush_async(&self, deadline: Option<Instant>) -> Pending<Result<bool, FlushError>> {
        let snap = self.clone();
        self.core.waits.start(move |cancel| {
            snap.flush_patiently(&Patience { cancel: Some(cancel), ..Patience::until(deadline) })
        })
    }

    pub(crate) fn flush_patiently(&self, patience: &Patience) -> Result<bool, FlushError> {
        self.current().flush_if(patience, None, |_| true)
    }

    /// Flushes if the decider is as it is wished to be, and tells why.
    pub(crate) fn flush_if(
        &self,
        patience: &Patience,
        why: Option<Reason>,
        condition: impl FnOnce(&Decider) -> bool,
    ) -> Result<bool, FlushError> {
        let key = || self.entry.key.clone();
        let condition = |snap: &Decider| {
            let is_so = condition(snap);
            // Before its files go. The facts' lock is never held while the decider's is waited for.
            if is_so {
                self.entry.facts().flush_reason = why;
            }
            is_so
        };
        let served = self.entry.desk.served();
        // Where files go, whoever removes them tells.
        let has_no_files = self.entry.desk.look(|snap| snap.is_unsaved() && snap.on_disk().is_none());
        let reply = self.entry.ask_if(condition, |waiter| SnapEvent::Flush { waiter }, patience);
        let Some(reply) = reply else { return Ok(false) };
        let flushed = match reply {
            Reply::Other(Answer::Flushed) => Ok(true),
            Reply::Other(Answer::Pinned) => Err(FlushError::Pinned { key: key() }),
            Reply::Other(Answer::Closed) => Err(FlushError::Closed { key: key() }),
            Reply::Other(Answer::Late) => Err(FlushError::Late { key: key() }),
            Reply::Other(Answer::FlushFailed) => match self.entry.facts().removal_error.clone() {
                Some(source) => Err(FlushError::Disk { key: key(), source }),
                None => Err(FlushError::Closed { key: key() }),
            },
            _ => Ok(false),
        };
        if has_no_files && matches!(flushed, Ok(true)) {
            self.entry.flushed(0);
        }
        if let Some(hot) = served {
            self.let_go(hot);
        }
        flushed
    }

    /// Forgets the slice, if it is cold or has failed. Says whether it did: what is used stays.
    pub fn erase(&self) -> bool {
        self.current().erase_if(None, |_| true)
    }

    /// Erases if the decider is as it is wished to be, and tells why.
    pub(crate) fn erase_if(&self, reason: Option<Reason>, condition: impl FnOnce(&Decider) -> bool) -> bool {
        let erase = |waiter| SnapEvent::Erase { waiter };
        let reply = self.entry.ask_if(condition, erase, &Patience::default());
        let is_erased = matches!(reply, Some(Reply::Other(Answer::Erased)));
        if is_erased {
            self.core.events.meter.erasures.one();
            self.core.table.write().forget(&self.entry);
            self.core.events.tell(|| Event::Erased { key: self.entry.key.clone(), reason });
        }
        is_erased
    }

    /// Keeps the slice from being evicted, flushed or erased, until it is unpinned. A load replaces it all the same. The
    /// next start knows of it, unless this process is killed at once.
    pub fn pin(&self) {
        match self.current() {
            // The pin is for what comes.
            snap if snap.entry.is_gone() => return snap.anew().pin(),
            snap => snap.entry.report(SnapEvent::Pin),
        }
        self.core.access.poke();
    }

    /// Lets it be evicted, flushed and erased again.
    pub fn unpin(&self) {
        self.current().entry.report(SnapEvent::Unpin);
        self.core.access.poke();
    }

    /// The snap that stands for the key now: this one, unless it was erased and somebody has asked for the key since.
    pub(crate) fn current(&self) -> Snap {
        let other = || self.core.table.read().find(&self.entry.key).cloned();
        let other = self.entry.is_gone().then(other).flatten();
        Snap { core: self.core.clone(), entry: other.unwrap_or_else(|| self.entry.clone()) }
    }

    /// The snap that stands for the key from now on: this one was erased.
    fn anew(&self) -> Snap {
        self.core.table.write().forget(&self.entry);
        Snap { core: self.core.clone(), entry: self.core.entry(&self.entry.key) }
    }

    /// Gives up a slice that is not served any more, since unmapping takes a while. Without leases all of it is gone
    /// when this returns, unless a disk hangs.
    fn let_go(&self, hot: Arc<HotSlice>) {
        HotSlice::give_up(hot, Instant::now() + EVICT_WAIT_MAX);
        self.core.warmth.reaper.settle();
    }
}

pub(crate) fn is_evicted(answer: Answer) -> bool {
    matches!(answer, Answer::Evicted | Answer::Leaving)
}

pub(crate) fn status(entry: &Entry) -> SnapStatus {
    let now = entry.now();
    let leases = entry.desk.held_count() as usize;
    let (state, durable, unsaved, pinned, version) = entry.desk.look(|snap| {
        (snap.state(now), snap.is_durable(), snap.is_unsaved(), snap.is_pinned(), snap.version())
    });
    let failure = entry.desk.look(|snap| snap.failure(now)).map(|(in_a_row, until)| SnapFailure {
        why: entry.why_failed(until),
        in_a_row,
        again_in: until.saturating_sub(now),
    });
    let manifest = entry.manifest();
    let sum = |of: fn(&RegionRecord) -> u64| {
        manifest.as_ref().map_or(0, |manifest| manifest.regions.iter().map(of).sum())
    };
    SnapStatus {
        key: entry.key.clone(),
        state,
        durable,
        unsaved,
        pinned,
        leases,
        fingerprint: version.map(|version| version.fingerprint),
        blob_count: sum(|region| region.blob_count),
        blob_bytes: sum(|region| region.blob_bytes),
        file_bytes: sum(|region| region.file_bytes),
        memory_bytes: entry.desk.served().map_or(0, |hot| hot.bytes()),
        idle: entry.idle(),
        counts: entry.facts().counts,
        failure,
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
        paging: Paging,
        epoch: u64,
        loaders: Registry,
        limits: Limits,
        scrub_rate: Option<u64>,
        registrar: &Registrar,
        tender: Tender,
    ) -> CacheCore {
        let access = Arc::new(AccessLogs::open(&spindles));
        let meter = Meter::new(registrar, spindles.len());
        let events = Arc::new(EventHub::new(meter));
        for spindle in &spindles {
            let (events, folder) = (events.clone(), spindle.folder.clone());
            spindle.watch.tell_changes(move |state, fault| {
                events.tell_trouble(|| Event::Spindle { folder: folder.clone(), state, fault });
            });
        }
        let pieces = buffers / 2;
        let scratch = (buffers / 8).min(SCRATCH_BYTES_MAX);
        let budget =
            MemoryBudget::new(memory - pieces - streams - scratch, buffers - pieces).with_paging(paging);
        let warmth = Arc::new(Warmth::new(spindles.len(), residence, sigbus_guard, verify, budget.clone()));
        let runner = Arc::new(Runner::new(
            &spindles,
            &warmth,
            budget.clone(),
            events.clone(),
            scan_threads.clone(),
            limits,
        ));
        let (reaper, cores) =
            (warmth.reaper.inbox(), std::thread::available_parallelism().map_or(1, usize::from));
        CacheCore {
            warmth,
            spindles,
            pieces: MemoryBudget::new(pieces, pieces),
            scratch: Scratch::new(scratch as usize),
            ahead: Arc::new(Ahead::new(reaper, cores)),
            streams: StreamMemory {
                rings: MemoryBudget::new(streams, streams).with_paging(paging),
                ring_bytes: streams / scan_threads.count() as u64,
                blobs: budget.clone(),
            },
            verify,
            piece_bytes,
            budget,
            regions_default: scan_threads.count() as u32,
            scan_threads,
            table: SharedTable::new(),
            epoch,
            // Above what earlier starts have given to loads on spindles that are not here: nobody loads a thousand
            // slices a second for years.
            next_load: Arc::new(AtomicU64::new(epoch.max(1))),
            scrub_rate,
            scrub_stop: CancelToken::new(),
            runner,
            loaders,
            tender,
            closed: Arc::default(),
            waited: AtomicBool::new(false),
            events,
            waits: Arc::default(),
            recovering: Arc::default(),
            access,
        }
    }

    /// Begins to read what is on the disks.
    pub(crate) fn start_recovery(&self, listed: Listed, settle: impl FnOnce() + Send + 'static) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        self.recovering.start(self.target(), listed, threads, settle);
    }

    fn target(&self) -> Target {
        Target {
            spindles: self.spindles.clone(),
            table: self.table.clone(),
            runner: self.runner.clone(),
            events: self.events.clone(),
            next_load: self.next_load.clone(),
            closed: self.closed.clone(),
            access: self.access.clone(),
        }
    }

    /// Waits until what is on the disks was read.
    pub(crate) fn wait_for_recovery(&self, patience: &Patience) -> Option<&RecoveryReport> {
        self.recovering.wait(patience)
    }

    /// A lease on what is in memory, if there is nothing else to be done for it; else the entry comes back. It counts as
    /// one that took no time.
    fn lease_at_once(&self, entry: Arc<Entry>, options: &LeaseOptions) -> Result<Lease, Arc<Entry>> {
        if options.refresh || options.reading == Reading::Stream || self.verify == Verify::Always {
            return Err(entry);
        }
        let lease = Lease::at_once(entry, options.want)?;
        self.events.meter.leases_at_once.one();
        self.events.tell(|| Event::HotLeased { key: lease.key().clone() });
        Ok(lease)
    }

    /// Whether a slice that is on the disk is read from there by each scan.
    fn reads_as_stream(&self, reading: Reading, manifest: &Manifest) -> bool {
        match reading {
            Reading::Auto => manifest.file_bytes() > self.budget.counts().residence_max,
            Reading::Memory => false,
            Reading::Stream => !manifest.regions.is_empty(),
        }
    }

    #[cfg(test)]
    pub(crate) fn entry_for_tests(&self, key: &Key) -> Arc<Entry> {
        self.entry(key)
    }

    fn sync(&self, patience: &Patience) -> Result<(), SyncError> {
        let keys = self.runner.commits.wait(patience);
        if patience.check() == Err(Impatience::Cancelled) {
            return Err(SyncError::Late { keys }); // Nobody hears it.
        }
        let failures = self.runner.commits.take_failed();
        match (failures.is_empty(), keys.is_empty()) {
            (false, _) => Err(SyncError::Failed { failures }),
            (true, false) => Err(SyncError::Late { keys }),
            (true, true) => Ok(()),
        }
    }

    fn close(&self, patience: &Patience) -> Result<(), CloseError> {
        self.closed.store(true, Ordering::Relaxed);
        self.scrub_stop.cancel();
        let entries = self.entries_now();
        entries.iter().for_each(|entry| entry.report(SnapEvent::Close));
        let reading = self.recovering.stop();
        self.stop_loaders();
        // Meanwhile commits go on.
        let loading = self.runner.loads.wait(patience);
        let unfinished = self.runner.commits.wait(patience);
        if patience.check() == Err(Impatience::Cancelled) {
            // Nobody hears it, and nobody has said how long the disks may take.
            let (failed, abandoned, pins) = (Vec::new(), Vec::new(), Vec::new());
            return Err(CloseError { loading, unfinished, failed, abandoned, pins });
        }
        self.waited.store(true, Ordering::Relaxed);
        let deadline = patience.deadline.unwrap_or_else(|| Instant::now() + FOR_EVER);
        self.access.note(&self.entries_now());
        let mut abandoned = close_spindles(&self.spindles, &self.access, deadline);
        // It may have ended since: what it waited for was another spindle's.
        abandoned.extend(reading.filter(|_| !self.recovering.is_over()));
        self.events.stop();
        let failed = self.runner.commits.take_failed();
        let error = CloseError { loading, unfinished, failed, abandoned, pins: self.access.without_pins() };
        if error.is_empty() { Ok(()) } else { Err(error) }
    }

    /// Ends what loaders are at, and does not wait for it.
    fn stop_loaders(&self) {
        let entries = self.entries_now();
        entries.iter().for_each(Entry::stop_loaders);
    }

    /// Brings to the disks what is pinned and what is not. Whose log was not saved by then, lacks it.
    pub(crate) fn keep_pins(&self, deadline: Instant) {
        self.access.note(&self.entries_now());
        self.access.save_all(deadline);
    }

    /// The access log that lacks whether a slice is pinned, if there is one that does.
    pub(crate) fn log_without_pin(&self, key: &Key) -> Option<PathBuf> {
        let entry = self.table.read().find(key).cloned();
        self.access.without_pin(entry.and_then(|entry| entry.manifest()).as_deref())
    }

    /// Brings to the disks how slices were used.
    pub(crate) fn keep_access_logs(&self, deadline: Instant) {
        self.access.note(&self.entries_now());
        self.access.save(deadline);
    }

    /// When the cache was opened, in milliseconds since 1970.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// All entries there are now.
    pub(crate) fn entries_now(&self) -> Vec<Arc<Entry>> {
        self.table.read().entries().cloned().collect()
    }

    pub(crate) fn next_lane(&self) -> Lane {
        self.runner.next_lane()
    }

    /// Removes what a load has written, and gives its space back.
    pub(crate) fn remove_load(
        &self,
        key: Key,
        folders: LoadFolders,
        deadline: Option<Instant>,
        leave_behind: impl FnOnce() + Send + 'static,
    ) {
        let spindles = self.spindles.clone();
        let remove = move || {
            if !folders.remove_all(&spindles) {
                leave_behind();
            }
        };
        match deadline {
            None => remove(),
            // Somebody has a deadline, and the disk may be what it passes for.
            Some(_) => self.runner.aside("pelton-remove", key, move |under_way| {
                remove();
                drop(under_way);
            }),
        }
    }

    /// The entry of a key; a cold one if nothing is known of it.
    fn entry(&self, key: &Key) -> Arc<Entry> {
        self.entry_within(key, &Patience::default()).expect("who waits without end gets one")
    }

    /// The same; none if it was not found out in time what the disks have of the key. A cold one in the table would
    /// say that they have nothing.
    fn entry_within(&self, key: &Key, patience: &Patience) -> Option<Arc<Entry>> {
        let is_known = self.recovering.is_over()
            || self.table.read().find(key).is_some()
            || self.recovering.look_up(&self.target(), key, patience);
        // After a close nobody finds it out any more. Nor does it matter: what is asked for is closed.
        if !is_known && self.recovering.wait(patience).is_none() && !self.is_closed() {
            return None;
        }
        let new = || {
            let access = self.access.facts(key, None);
            let entry = Arc::new(Entry::new(key.clone(), None, access, self.runner.clone()));
            // Closing looks at all entries after it has said so, under the same lock.
            if self.is_closed() {
                entry.report(SnapEvent::Close);
            }
            entry
        };
        Some(self.table.entry(key, new))
    }

    /// Whether [`Cache::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// What there is of the keys that match, in their order, once all manifests were read; at the end of its patience what
    /// is known of them by then.
    pub(crate) fn entries(&self, pattern: &KeyPattern, patience: &Patience) -> Vec<Arc<Entry>> {
        self.wait_for_recovery(patience);
        self.table.read().entries().filter(|entry| pattern.matches(&entry.key)).cloned().collect()
    }
}

impl Drop for CacheCore {
    fn drop(&mut self) {
        self.recovering.stop();
        // After a close somebody has waited already, as long as they wished; unless it was dropped.
        if !*self.waited.get_mut() {
            self.runner.commits.wait(&Patience::until(Some(Instant::now() + DROP_WAIT_MAX)));
            self.keep_access_logs(Instant::now() + SAVE_WAIT_MAX);
        }
        self.events.stop();
    }
}

#[cfg(test)]
mod tests;

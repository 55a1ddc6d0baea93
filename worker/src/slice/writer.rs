//! The four loader calls: open_for_writes, queue_parcel, wait_for_writes, close_for_writes.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use pelton_region_format::{Header, Key, PIECE_BYTES_STEP};
use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::budget::buffers::{BufferGrant, Buffers};
use crate::budget::ledger::Reservation;
use crate::budget::memory::{MemoryGrant, MemoryRefused, MemoryUse};
use crate::cache::{CacheCore, Entry};
use crate::events::{Event, reason};
use crate::load::Counts;
use crate::scan::cancel::CancelToken;
use crate::scan::patience::{Impatience, Patience};
use crate::slice::build::{
    Build, BuildError, BuiltRegion, PIECES_PER_REGION, RegionBuild, RegionTake, Site, WriteError,
};
use crate::slice::deal::Dealer;
use crate::slice::parcel::{Parcel, ParcelError};
use crate::slice::plan::{Durability, LoadPlan, REGIONS_MAX};
use crate::slice::sealed::{NotASlice, SealedRegion};
use crate::snap::commit::{Commit, CommitError, LoadFolders};
use crate::snap::hot::{HotRegion, HotSlice};
use crate::snap::metrics::{BlobSizes, LoadFacts};
use crate::snap::reaper::ReaperInbox;
use crate::snap::state::{Decider, SnapEvent, Version};
use crate::spindle::engine::DiskError;
use crate::spindle::held::Spindle;
use crate::spindle::refusal::{Listed, SpindleRefusal};
use crate::units::Exact;
use crate::waits::Pending;

/// Why a load failed. Nothing of it is left: no file, no memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A disk refused. Other spindles go on: look at this one, then load again.
    #[error("the load of {key} failed on a disk")]
    Disk {
        /// The slice.
        key: Key,
        /// What was tried, where, and why it failed.
        source: Box<DiskError>,
    },
    /// The plan deals over no region, or over more than a manifest names. Choose another number.
    #[error("the load of {key} can't be dealt over {regions} regions, allowed is 1 to {REGIONS_MAX}")]
    Regions {
        /// The slice.
        key: Key,
        /// What the plan says.
        regions: u32,
    },
    /// The regions of the plan can't be a slice's. Whoever told of them is wrong.
    #[error("what is to be loaded as {key} is no slice")]
    NotASlice {
        /// The slice.
        key: Key,
        /// What does not fit.
        source: NotASlice,
    },
    /// Its plan is for sealed regions: it takes no parcels. The load goes on.
    #[error("the load of {key} takes sealed regions, and no parcels")]
    TakesRegions {
        /// The slice.
        key: Key,
    },
    /// Its plan has no such sealed region. The load goes on.
    #[error("the load of {key} takes no sealed region {index}")]
    NoRegion {
        /// The slice.
        key: Key,
        /// Which region was to be taken.
        index: u32,
    },
    /// Not all bytes of a sealed region came. The load is over.
    #[error("the load of {key} ended when region {index} had {} of {}", Exact(*arrived), Exact(*file_bytes))]
    Incomplete {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// Up to where it came.
        arrived: u64,
        /// How long it is.
        file_bytes: u64,
    },
    /// Bytes of a sealed region are not what was written, and could not be asked for again. The load is over.
    #[error("the load of {key} got a damaged region {index}")]
    Damaged {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// What does not hold.
        source: Box<pelton_region_format::FormatError>,
    },
    /// The memory budget does not allow it. Evict something, or configure more.
    #[error("the load of {key} got no memory")]
    Memory {
        /// The slice.
        key: Key,
        /// How much was wanted and how much there is.
        source: MemoryRefused,
    },
    /// The system gave no memory although the budget would have.
    #[error("the load of {key} got no memory from the system")]
    System {
        /// The slice.
        key: Key,
        /// What the system said.
        source: std::io::Error,
    },
    /// A parcel is damaged. Send it again; the load goes on.
    #[error("a parcel for {key} can't be taken")]
    Parcel {
        /// The slice.
        key: Key,
        /// What is wrong with it.
        source: ParcelError,
    },
    /// A parcel is larger than what parcels may use. Send smaller ones, or configure more buffers.
    #[error(
        "a parcel for {key} takes {} while it is opened, parcels may use {}",
        Exact(*parcel_bytes), Exact(*buffers_bytes)
    )]
    ParcelTooLarge {
        /// The slice.
        key: Key,
        /// What the parcel takes.
        parcel_bytes: u64,
        /// What parcels may use.
        buffers_bytes: u64,
    },
    /// No spindle has room for it, or none works. Flush something, give the cache more capacity, or look at
    /// the disks.
    #[error("no spindle takes the load of {key}: {}", Listed(refusals))]
    NoSpindle {
        /// The slice.
        key: Key,
        /// What each spindle says; only one when the load was under way.
        refusals: Vec<SpindleRefusal>,
    },
    /// The cache was opened just now, and what is on its disks was not read in time. Try again.
    #[error("{key} can't be loaded yet: the cache still reads what is on its disks")]
    Starting {
        /// The slice.
        key: Key,
    },
    /// The cache is being closed.
    #[error("{key} can't be loaded: the cache is closed")]
    Closed {
        /// The slice.
        key: Key,
    },
    /// More came than the plan allows. The load is over.
    #[error("the load of {key} has {} of blobs, its plan allows {}", Exact(*bytes), Exact(*bytes_max))]
    TooMuch {
        /// The slice.
        key: Key,
        /// What came.
        bytes: u64,
        /// What the plan allows.
        bytes_max: u64,
    },
    /// The plan or a blob can't be written as a region.
    #[error("the load of {key} can't be written")]
    Encode {
        /// The slice.
        key: Key,
        /// What does not fit.
        source: pelton_region_format::EncodeError,
    },
    /// The slice is being loaded by somebody else. Wait for that load.
    #[error("{key} is being loaded already")]
    Busy {
        /// The slice.
        key: Key,
    },
    /// The deadline passed. If it was that of one call, nothing of its parcel was taken: send it again, the load
    /// goes on. If it was the load's, the load is over; a slice that was being closed goes on to the disk.
    #[error("the load of {key} did not get on in time")]
    Late {
        /// The slice.
        key: Key,
    },
    /// An earlier call failed, or the writer was dropped, so the load is over.
    #[error("the load of {key} is over since an earlier call failed or its writer was dropped")]
    Over {
        /// The slice.
        key: Key,
    },
    /// The slice could be scanned but not committed. It goes with the process.
    #[error("{key} is loaded but could not be committed")]
    Commit {
        /// The slice.
        key: Key,
        /// What failed on the way to the disk.
        source: Box<CommitError>,
    },
}

/// Takes parcels for one slice, from any number of threads and tasks.
///
/// Dropping it before [`wait_for_writes`](SliceWriter::wait_for_writes) ends the load, for parcels that are pending too,
/// and removes what it wrote.
pub struct SliceWriter {
    load: Arc<Load>,
}

mod intake;

pub use intake::{IntakeError, RegionIntake};

/// A load, for its writer and for the calls that are under way.
struct Load {
    core: Arc<CacheCore>,
    entry: Arc<Entry>,
    plan: LoadPlan,
    begun: Instant,
    /// Cancelled when the load is over: whoever waits in a call ends.
    over: CancelToken,
    /// Nothing when the load is over, or is being sealed: no call begins any more.
    open: Mutex<Option<Call>>,
    /// Hangs up when `open` is empty and no call is under way.
    calls: Receiver<Infallible>,
    /// Set once: by sealing, or by whoever tells that the load has failed.
    told: AtomicBool,
    /// The draft's.
    failed: Arc<AtomicBool>,
    /// The draft's.
    why: Arc<OnceLock<String>>,
    span: Span,
}

/// Ends a load from outside, unless it is sealed. Keeps nothing of it alive.
#[derive(Clone)]
pub(crate) struct LoadHandle(Weak<Load>);

/// A call that is under way, or the writer that may make more.
#[derive(Clone)]
struct Call {
    draft: Arc<Draft>,
    /// Dropped after the draft, so that whoever hears it hang up has the draft alone.
    _line: Sender<Infallible>,
}

/// What a load has written so far. It is removed when the last call that works at it ends, unless it is sealed.
struct Draft {
    core: Arc<CacheCore>,
    entry: Arc<Entry>,
    folders: LoadFolders,
    version: Version,
    /// Set by the call whose error ends the load, read when the draft drops: a load that nobody wants any more has not
    /// failed. It publishes nothing but itself.
    failed: Arc<AtomicBool>,
    /// Why the load is over, by the first who ends it.
    why: Arc<OnceLock<String>>,
    deadline: Option<Instant>,
    dealer: Mutex<Dealer>,
    regions: Vec<Turn>,
    /// Over how many the blobs are dealt. Of sealed ones, only those with a blob are there.
    region_count: u32,
    /// Those that the regions lie on, each once.
    spindles: Vec<Arc<Spindle>>,
    /// What was dealt, those of a parcel together.
    sizes: Mutex<BlobSizes>,
    /// Whether what is written is somebody else's now: the sealed slice's.
    handed_on: bool,
}

/// A region under construction, in a channel of one: whoever takes it out works at it alone.
struct Turn {
    next: Receiver<Build>,
    back: Sender<Build>,
}

/// A region that one call works at. It goes back by itself; a panic ends the load, which has a part of a parcel then.
struct Taken<'t> {
    build: Option<Build>,
    turn: &'t Turn,
    load: &'t Load,
}

impl SliceWriter {
    pub(crate) fn new(
        core: Arc<CacheCore>,
        entry: Arc<Entry>,
        plan: LoadPlan,
        folders: LoadFolders,
        space: Vec<Reservation>,
        patience: &Patience,
    ) -> Result<SliceWriter, LoadError> {
        let region_count = plan.region_count(core.regions_default);
        let keeps_image = plan.keeps_image(plan.expected_bytes, &core.budget);
        let (piece_bytes, mut reserve) = reserve_pieces(&core, space.len() as u32, patience)
            .map_err(|source| LoadError::Memory { key: entry.key.clone(), source })?;
        let over = CancelToken::new();
        let mut spindles: Vec<Arc<Spindle>> = Vec::new();
        let regions = space.into_iter().enumerate().map(|(turn, space)| {
            let sealed = plan.sealed.as_ref().map(|sealed| sealed[turn].clone());
            let index = sealed.as_ref().map_or(turn as u32, |region| region.index);
            let (spindle, path) = folders.place(&core.spindles, turn, index);
            if !spindles.iter().any(|known| Arc::ptr_eq(known, &spindle)) {
                spindles.push(spindle.clone());
            }
            let site = Site {
                full_path: spindle.folder.join(&path),
                path,
                lane: core.next_lane(),
                spindle,
                budget: core.budget.clone(),
                ahead: core.ahead.clone(),
                piece_bytes,
                image_bytes_max: core.budget.counts().residence_max as usize,
                patience: Patience { stop: Some(over.clone()), ..Patience::until(plan.deadline) },
            };
            let reserve = reserve.split((piece_bytes * PIECES_PER_REGION) as u64);
            if let Some(region) = sealed {
                let take = RegionTake::new(site, region, keeps_image, reserve, space);
                return Turn::new(Build::Taken(Box::new(take)));
            }
            let header = Header {
                alignment: plan.alignment,
                region_index: index,
                region_count,
                writer: *b"pelton worker 1\0",
                key: Some(entry.key.clone()),
                fingerprint: Some(plan.fingerprint),
                ..Header::default()
            };
            let build = RegionBuild::new(site, header, keeps_image, reserve, space);
            Turn::new(Build::Dealt(Box::new(build)))
        });
        let regions: Vec<Turn> = regions.collect();
        let (failed, why) = (Arc::<AtomicBool>::default(), Arc::<OnceLock<String>>::default());
        let draft = Draft {
            core: core.clone(),
            entry: entry.clone(),
            version: Version { load: folders.load_number, fingerprint: plan.fingerprint },
            failed: failed.clone(),
            why: why.clone(),
            folders,
            deadline: plan.deadline,
            dealer: Mutex::new(Dealer::new(plan.deal, regions.len().max(1))),
            regions,
            region_count,
            spindles,
            sizes: Mutex::new(sizes_of(plan.sealed.as_deref().unwrap_or_default())),
            handed_on: false,
        };
        let (line, calls) = bounded(0);
        let open = Mutex::new(Some(Call { draft: Arc::new(draft), _line: line }));
        let (key, fingerprint) = (entry.key.clone(), plan.fingerprint);
        let span = info_span!("load", %key, bytes = Empty, outcome = Empty);
        core.events.meter.begun_loads.one();
        core.events.tell(|| Event::LoadBegan { key, fingerprint });
        Ok(SliceWriter {
            load: Arc::new(Load {
                core,
                entry,
                plan,
                begun: Instant::now(),
                over,
                open,
                calls,
                told: AtomicBool::new(false),
                failed,
                why,
                span,
            }),
        })
    }

    /// For who may end the load, whatever the writer's owner does.
    pub(crate) fn handle(&self) -> LoadHandle {
        LoadHandle(Arc::downgrade(&self.load))
    }

    /// The slice that is loaded.
    pub fn key(&self) -> &Key {
        &self.load.entry.key
    }

    /// Copies a parcel's blobs into the slice's regions. Waits while memory or a disk's queue is used
    /// up: that is what slows a fast producer down.
    ///
    /// # Errors
    /// [`LoadError`]. After `Parcel`, `ParcelTooLarge`, `Memory` and `TakesRegions` the load goes on without that parcel;
    /// after all others it is over.
    #[doc(alias = "queueParcel")]
    pub fn queue_parcel(&self, parcel: Parcel) -> Result<(), LoadError> {
        self.queue_parcel_until(parcel, None)
    }

    /// The same with a deadline for this parcel: until then it waits for its turn, with memory for it and room in
    /// the disks' queues. When its turn has come it is taken as a whole, however long a disk takes.
    ///
    /// # Errors
    /// [`LoadError`]. After `Parcel`, `ParcelTooLarge`, `Memory`, `TakesRegions` and `Late` nothing of the parcel was taken,
    /// and the load goes on, unless its own deadline has passed; after all others it is over.
    pub fn queue_parcel_until(&self, parcel: Parcel, deadline: Option<Instant>) -> Result<(), LoadError> {
        let call = self.load.call()?;
        self.load.queue_parcel(&call, parcel, None, &Patience::until(deadline))
    }

    /// What parcels may use: for who takes a parcel's memory before the parcel comes.
    pub fn buffers(&self) -> Buffers {
        Buffers::new(self.load.core.budget.clone())
    }

    /// [`Self::queue_parcel`] for a parcel whose memory was taken before it came. `paid` is given back when the parcel is
    /// in the slice, or refused. What it lacks is taken as usual.
    ///
    /// # Errors
    /// As [`Self::queue_parcel`].
    pub fn queue_paid(&self, parcel: Parcel, paid: BufferGrant) -> Result<(), LoadError> {
        let call = self.load.call()?;
        self.load.queue_parcel(&call, parcel, Some(paid), &Patience::default())
    }

    /// [`Self::queue_parcel`] as a future. The parcel is under way from this call on, whether it is awaited or not,
    /// and [`Self::wait_for_writes`] waits for it.
    ///
    /// Dropping the future cancels: the slice then has all of the parcel or nothing of it. Which of them, nobody
    /// can tell, unless the load is dropped as well. The load goes on.
    pub fn queue_parcel_async(&self, parcel: Parcel) -> Pending<Result<(), LoadError>> {
        let load = self.load.clone();
        let call = load.call();
        self.load.core.waits.clone().start(move |cancel| {
            let patience = Patience { cancel: Some(cancel), ..Patience::default() };
            load.queue_parcel(&call?, parcel, None, &patience)
        })
    }

    /// All parcels are queued: waits for those that are pending, and seals the regions. From here on the slice can
    /// be scanned.
    ///
    /// # Errors
    /// [`LoadError`], and the load is over.
    #[doc(alias = "waitForWritesToComplete")]
    pub fn wait_for_writes(self) -> Result<SealedSlice, LoadError> {
        self.load.seal(None)
    }

    /// [`Self::wait_for_writes`] as a future. Dropping it ends the load.
    pub fn wait_for_writes_async(self) -> Pending<Result<SealedSlice, LoadError>> {
        let waits = self.load.core.waits.clone();
        waits.start(move |cancel| self.load.seal(Some(cancel)))
    }
}

impl LoadHandle {
    /// Ends the load. Nothing is known against the slice.
    pub(crate) fn cancel(&self) {
        if let Some(load) = self.0.upgrade() {
            load.end(|| "it was cancelled".to_owned());
        }
    }

    /// Ends the load as failed.
    pub(crate) fn fail(&self, why: String) {
        if let Some(load) = self.0.upgrade() {
            load.failed.store(true, Ordering::Relaxed);
            load.end(|| why);
        }
    }
}

impl std::fmt::Debug for SliceWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SliceWriter").field("key", self.key()).finish_non_exhaustive()
    }
}

impl Drop for SliceWriter {
    fn drop(&mut self) {
        self.load.end(|| "its writer was dropped".to_owned());
    }
}

impl Load {
    /// One more call is under way.
    fn call(&self) -> Result<Call, LoadError> {
        lock(&self.open).clone().ok_or_else(|| self.is_over())
    }

    fn queue_parcel(
        &self,
        call: &Call,
        parcel: Parcel,
        paid: Option<BufferGrant>,
        patience: &Patience,
    ) -> Result<(), LoadError> {
        if self.plan.sealed.is_some() {
            return Err(LoadError::TakesRegions { key: self.entry.key.clone() });
        }
        let draft = &*call.draft;
        let deadline = [self.plan.deadline, patience.deadline].into_iter().flatten().min();
        let patience = Patience { deadline, stop: Some(self.over.clone()), ..patience.clone() };
        let key = || self.entry.key.clone();
        let parcel_bytes = parcel.memory_bytes() as u64;
        let lacking = parcel_bytes.saturating_sub(paid.as_ref().map_or(0, BufferGrant::bytes));
        // Who has paid for all of it stands behind nobody.
        let taken = (lacking > 0)
            .then(|| self.core.budget.take_patiently(MemoryUse::Buffers, lacking, &patience))
            .transpose();
        let _grant = taken.map_err(|refused| match refused {
            MemoryRefused::NeverFits { share, .. } => {
                LoadError::ParcelTooLarge { key: key(), parcel_bytes, buffers_bytes: share }
            }
            source => match patience.check() {
                Err(Impatience::Cancelled) => self.is_over(),
                _ => LoadError::Memory { key: key(), source },
            },
        })?;
        let open =
            parcel.open(&self.core.scratch).map_err(|source| LoadError::Parcel { key: key(), source })?;
        for spindle in &draft.spindles {
            // Disks that are closed or broken say so to whoever writes there.
            let _ = spindle.impellers.wait_for_room(&patience);
        }
        match patience.check() {
            Err(Impatience::Cancelled) => return Err(self.is_over()),
            // Where the load's own has passed, whoever waits for a disk can say for which.
            Err(Impatience::Late) if deadline != self.plan.deadline => {
                return Err(LoadError::Late { key: key() });
            }
            _ => {}
        }
        // From here on all of the parcel is taken, or the load is over.
        self.deal(draft, open.blobs()).inspect_err(|error| self.fail(error))
    }

    fn deal<'b>(&self, draft: &Draft, blobs: impl Iterator<Item = &'b [u8]>) -> Result<(), LoadError> {
        let key = || self.entry.key.clone();
        let mut lots: Vec<Vec<&[u8]>> = vec![Vec::new(); draft.regions.len()];
        let mut sizes = BlobSizes::default();
        {
            // Blobs are dealt in the order of parcels; copying them needs no order.
            let mut dealer = lock(&draft.dealer);
            for blob in blobs {
                sizes.add(blob.len() as u64);
                lots[dealer.deal(blob.len())].push(blob);
            }
        }
        let bytes = {
            let mut all = lock(&draft.sizes);
            *all = all.merge(sizes);
            all.bytes()
        };
        if let Some(bytes_max) = self.plan.max_bytes
            && bytes > bytes_max
        {
            return Err(LoadError::TooMuch { key: key(), bytes, bytes_max });
        }
        let patience = Patience { stop: Some(self.over.clone()), ..Patience::until(self.plan.deadline) };
        let _producing = self.core.ahead.producing();
        let mut lots: Vec<(&Turn, Vec<&[u8]>)> =
            draft.regions.iter().zip(lots).filter(|(_, lot)| !lot.is_empty()).collect();
        while !lots.is_empty() {
            // A region at which nobody else works, if there is one: producers need not follow each other.
            let next = lots.iter().position(|(turn, _)| turn.is_free()).unwrap_or(0);
            let (turn, lot) = lots.remove(next);
            let mut region = turn.take(self, &patience).map_err(|impatience| match impatience {
                Impatience::Late => LoadError::Late { key: key() },
                Impatience::Cancelled => self.is_over(),
            })?;
            if let Err(error) = lot.into_iter().try_for_each(|blob| region.build().put(blob)) {
                let error = self.build_error(error);
                // Before the region goes back: it is not whole, and the next call must see that.
                self.fail(&error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits for the calls that are under way, and seals what they have written.
    fn seal(&self, cancel: Option<CancelToken>) -> Result<SealedSlice, LoadError> {
        let call = lock(&self.open).take().ok_or_else(|| self.is_over())?;
        let Call { draft, _line } = call;
        drop(_line);
        let stop = Some(self.over.clone());
        let patience = Patience { deadline: self.plan.deadline, cancel, stop };
        let sealed = match patience.receive(&self.calls) {
            Ok(_) => self.seal_alone(draft, &patience),
            Err(impatience) => {
                let error = match impatience {
                    Impatience::Late => LoadError::Late { key: self.entry.key.clone() },
                    Impatience::Cancelled => self.is_over(),
                };
                self.fail(&error); // Before the draft goes, here or with the last call.
                drop(draft);
                Err(error)
            }
        };
        // Those that are under way need not go on.
        sealed.inspect_err(|error| self.fail(error))
    }

    fn seal_alone(&self, draft: Arc<Draft>, patience: &Patience) -> Result<SealedSlice, LoadError> {
        let draft = Arc::into_inner(draft).ok_or_else(|| self.is_over())?;
        let mut built = Vec::new();
        for turn in &draft.regions {
            // A call may have failed that was under way when this one came.
            if let Err(Impatience::Cancelled) = patience.check() {
                return Err(self.is_over());
            }
            let Ok(build) = turn.next.try_recv() else { return Err(self.is_over()) };
            // What is taken out is not left behind by the draft any more; its folder goes with the draft.
            let region = build.seal(patience).map_err(|error| self.build_error(error));
            // Before the draft goes: it tells how the load has ended.
            built.extend(region.inspect_err(|error| self.fail(error))?);
        }
        let region_count = draft.region_count;
        let facts = LoadFacts::of(*lock(&draft.sizes), built.len() as u64);
        let folders = draft.hand_on();
        self.told.store(true, Ordering::Relaxed);
        let reaper = self.core.warmth.reaper.inbox();
        let (hot, built) = take_images(&self.entry.key, &self.plan, folders.load_number, built, &reaper);
        let sealed = SealedSlice {
            core: self.core.clone(),
            entry: self.entry.clone(),
            region_count,
            plan: self.plan.clone(),
            folders,
            hot,
            built,
            facts,
            begun: self.begun,
            closed: false,
            counts: Counts::default(),
            failed: None,
        };
        let (bytes, took) = (sealed.blob_bytes(), self.begun.elapsed());
        self.span.record("bytes", bytes).record("outcome", "sealed");
        self.core.events.meter.sealed(bytes, took);
        let (key, fingerprint) = (self.entry.key.clone(), self.plan.fingerprint);
        self.core.events.tell(|| Event::LoadSealed { key, fingerprint, bytes, took });
        Ok(sealed)
    }

    /// Ends the load with an error.
    fn fail(&self, error: &LoadError) {
        if !matches!(error, LoadError::Over { .. }) {
            self.failed.store(true, Ordering::Relaxed);
        }
        self.end(|| reason(error));
    }

    /// Ends the load, also for the calls that are under way. What it wrote goes with the last of them.
    fn end(&self, why: impl FnOnce() -> String) {
        let why = self.why.get_or_init(why).clone();
        self.over.cancel();
        let open = lock(&self.open).take();
        drop(open); // Outside of the lock: it may be the last one.
        if !self.told.swap(true, Ordering::Relaxed) {
            let (key, fingerprint) = (self.entry.key.clone(), self.plan.fingerprint);
            let event = || Event::LoadFailed { key, fingerprint, why };
            let events = &self.core.events;
            if self.failed.load(Ordering::Relaxed) {
                self.span.record("outcome", "failed");
                events.meter.failed_loads.one();
                events.tell_trouble(event);
            } else {
                self.span.record("outcome", "cancelled");
                events.meter.cancelled_loads.one();
                events.tell(event);
            }
        }
    }

    fn is_over(&self) -> LoadError {
        LoadError::Over { key: self.entry.key.clone() }
    }

    fn build_error(&self, error: BuildError) -> LoadError {
        // Whoever was woken since the load is over has nothing to tell of its own.
        if self.over.is_cancelled() { self.is_over() } else { load_error(self.entry.key.clone(), error) }
    }
}

impl Draft {
    /// What is written is the sealed slice's from here on.
    fn hand_on(mut self) -> LoadFolders {
        self.handed_on = true;
        self.folders.clone()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.handed_on {
            return;
        }
        // Its disk space is free again when its files are gone.
        let builds: Vec<Build> = self.regions.iter().filter_map(|turn| turn.next.try_recv().ok()).collect();
        let leave_behind = || builds.into_iter().for_each(Build::leave_behind);
        self.core.remove_load(self.entry.key.clone(), self.folders.clone(), self.deadline, leave_behind);
        let version = self.version;
        // Before it is reported: who waits for the load asks why.
        self.entry.facts().load_error = self.why.get().cloned();
        self.entry.report(match self.failed.load(Ordering::Relaxed) {
            true => SnapEvent::LoadFailed { version },
            false => SnapEvent::LoadCancelled { version },
        });
    }
}

impl Turn {
    fn new(build: Build) -> Turn {
        let (back, next) = bounded(1);
        back.send(build).expect("a channel of one has room for the first");
        Turn { next, back }
    }

    /// Whether nobody works at the region. Somebody may the next moment.
    fn is_free(&self) -> bool {
        !self.next.is_empty()
    }

    /// Waits until nobody else works at the region.
    fn take<'t>(&'t self, load: &'t Load, patience: &Patience) -> Result<Taken<'t>, Impatience> {
        let build = patience.receive(&self.next)?.expect("this end of the channel is kept, too");
        let taken = Taken { build: Some(build), turn: self, load };
        // Whoever had it before may have failed in the middle.
        match load.over.is_cancelled() {
            true => Err(Impatience::Cancelled),
            false => Ok(taken),
        }
    }
}

impl Taken<'_> {
    fn build(&mut self) -> &mut RegionBuild {
        match self.build.as_mut().expect("it goes back when this drops") {
            Build::Dealt(build) => build,
            Build::Taken(_) => unreachable!("a load of sealed regions refuses parcels"),
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.load.end(|| "a call panicked".to_owned());
        }
        if let Some(build) = self.build.take() {
            let _ = self.turn.back.send(build); // There is room: it was taken out of there.
        }
    }
}

/// How long opening waits for other loads to end, if memory allows only so many at once.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(60);

/// Takes what a load needs to end, whatever other loads do: its pieces. The smaller the room, the
/// smaller the pieces. What is not there in time, or can never be, is refused with the numbers.
fn reserve_pieces(
    core: &CacheCore,
    region_count: u32,
    patience: &Patience,
) -> Result<(usize, MemoryGrant), MemoryRefused> {
    let bytes = |piece_bytes: usize| (piece_bytes * PIECES_PER_REGION) as u64 * u64::from(region_count);
    for piece_bytes in [core.piece_bytes, PIECE_BYTES_STEP] {
        if let Ok(grant) = core.pieces.try_take(MemoryUse::Buffers, bytes(piece_bytes)) {
            return Ok((piece_bytes, grant));
        }
    }
    let least = bytes(PIECE_BYTES_STEP);
    let grant = core.budget.try_take(MemoryUse::Images, least).or_else(|refused| {
        let longest = Instant::now() + OPEN_WAIT_MAX;
        let deadline = Some(patience.deadline.map_or(longest, |deadline| deadline.min(longest)));
        let patience = Patience { deadline, ..patience.clone() };
        match core.pieces.take_patiently(MemoryUse::Buffers, least, &patience) {
            // More than all pieces together: what regions may use is then the number that counts.
            Err(MemoryRefused::NeverFits { .. }) => Err(refused),
            taken => taken,
        }
    })?;
    Ok((PIECE_BYTES_STEP, grant))
}

/// What is known of the blobs' sizes before any has come.
fn sizes_of(sealed: &[SealedRegion]) -> BlobSizes {
    let sizes = |region: &SealedRegion| BlobSizes::alike(region.blob_count, region.blob_bytes);
    sealed.iter().map(sizes).fold(BlobSizes::default(), BlobSizes::merge)
}

/// Images become the hot slice; what is left of each region is on its way to the disk.
fn take_images(
    key: &Key,
    plan: &LoadPlan,
    load_number: u64,
    built: Vec<BuiltRegion>,
    reaper: &ReaperInbox,
) -> (Option<Arc<HotSlice>>, Vec<BuiltRegion>) {
    if built.iter().any(|region| region.image.is_none()) {
        return (None, built);
    }
    let mut regions = Vec::new();
    let mut rest = Vec::new();
    for mut region in built {
        let image = region.image.take().expect("all of them have one");
        regions.push(Arc::new(HotRegion::loaded(region.index(), image, reaper.clone())));
        rest.push(region);
    }
    (Some(Arc::new(HotSlice::new(key.clone(), plan.fingerprint, load_number, regions, None))), rest)
}

/// A slice whose regions are all sealed: it can be scanned, and is not committed yet.
///
/// Dropping it without closing removes what was written.
pub struct SealedSlice {
    core: Arc<CacheCore>,
    entry: Arc<Entry>,
    plan: LoadPlan,
    folders: LoadFolders,
    region_count: u32,
    hot: Option<Arc<HotSlice>>,
    built: Vec<BuiltRegion>,
    facts: LoadFacts,
    begun: Instant,
    closed: bool,
    /// What the source says of its blobs.
    counts: Counts,
    /// Why it must not become the cache's.
    failed: Option<String>,
}

impl SealedSlice {
    /// The slice.
    pub fn key(&self) -> &Key {
        &self.entry.key
    }

    /// How many blobs it has.
    pub fn blob_count(&self) -> u64 {
        self.built.iter().map(|region| region.sealed.blob_count).sum()
    }

    /// How many bytes its blobs have.
    pub fn blob_bytes(&self) -> u64 {
        self.built.iter().map(|region| region.sealed.blob_bytes).sum()
    }

    /// How many of its regions have blobs.
    pub fn region_count(&self) -> usize {
        self.built.len()
    }

    /// Notes what the source says of its blobs.
    pub fn tell(&mut self, counts: Counts) {
        self.counts = counts;
        let facts = &mut self.facts;
        facts.expected = counts.expected.unwrap_or(facts.expected);
        facts.potential = counts.potential.unwrap_or(facts.potential);
        facts.rejected = counts.rejected.unwrap_or(facts.rejected);
    }

    /// Ends the load as failed, and removes what was written.
    pub(crate) fn fail(mut self, why: String) {
        self.failed = Some(why);
    }

    /// Ends the load: the slice is the cache's now. It can be leased from here on; when it is durable is the
    /// plan's choice. A slice without any blob is NoData.
    ///
    /// # Errors
    /// [`LoadError::Commit`], if the plan says to wait and the slice did not get to the disk; [`LoadError::Late`],
    /// if it was not there at the plan's deadline. It is the cache's all the same, and goes on to the disk:
    /// [`Cache::sync`](crate::Cache::sync) tells what comes of it.
    #[doc(alias = "closeForWrites")]
    pub fn close_for_writes(self) -> Result<(), LoadError> {
        self.close(None)
    }

    /// [`Self::close_for_writes`] as a future. Dropping it takes nothing back: the slice is closed, and nobody
    /// waits for the disk.
    pub fn close_for_writes_async(self) -> Pending<Result<(), LoadError>> {
        let waits = self.core.waits.clone();
        waits.start(move |cancel| self.close(Some(cancel)))
    }

    fn close(mut self, cancel: Option<CancelToken>) -> Result<(), LoadError> {
        self.closed = true;
        let (key, fingerprint) = (|| self.entry.key.clone(), self.plan.fingerprint);
        let built = std::mem::take(&mut self.built);
        let hot = self.hot.take();
        let waits = self.plan.durability == Durability::Wait || hot.is_none();
        let commit = Commit {
            key: key(),
            fingerprint,
            region_count: self.region_count,
            folders: self.folders.clone(),
            built,
            hot,
            metrics: self.entry.loaded(self.facts, self.begun.elapsed()),
        };
        let known = self.entry.desk.look(Decider::version).map(|version| version.fingerprint);
        // Told before what comes of it.
        if let Some(before) = known.filter(|before| *before != fingerprint && !self.core.is_closed()) {
            self.core.events.tell(|| Event::Resliced { key: key(), before, fingerprint });
        }
        self.entry.facts().counts = self.counts;
        let told = self.entry.seal(commit, waits);
        // A closed cache drops it at once, and says so also to who would not wait.
        let patience = match waits {
            true => Patience { deadline: self.plan.deadline, cancel, stop: None },
            false => Patience::until(Some(Instant::now())),
        };
        match told.wait(&patience) {
            Ok(Err(CommitError::Replaced)) if self.core.is_closed() => Err(LoadError::Closed { key: key() }),
            Ok(Err(source)) if waits => Err(LoadError::Commit { key: key(), source: Box::new(source) }),
            Err(_) if waits => Err(LoadError::Late { key: key() }),
            _ => Ok(()),
        }
    }
}

impl Drop for SealedSlice {
    fn drop(&mut self) {
        if !self.closed {
            let built = std::mem::take(&mut self.built);
            let leave_behind = || built.into_iter().for_each(|region| region.writes.leave_behind());
            let (key, folders) = (self.entry.key.clone(), self.folders.clone());
            self.core.remove_load(key, folders, self.plan.deadline, leave_behind);
            let version = Version { load: self.folders.load_number, fingerprint: self.plan.fingerprint };
            let failed = self.failed.take();
            let event = match failed {
                Some(_) => SnapEvent::LoadFailed { version },
                None => SnapEvent::LoadCancelled { version },
            };
            let why = failed.unwrap_or_else(|| "it was dropped before it was closed".to_owned());
            self.entry.facts().load_error = Some(why.clone());
            self.entry.report(event);
            let (key, fingerprint) = (self.entry.key.clone(), self.plan.fingerprint);
            let events = &self.core.events;
            let tell = || Event::LoadFailed { key, fingerprint, why };
            match event {
                SnapEvent::LoadFailed { .. } => {
                    events.meter.failed_loads.one();
                    events.tell_trouble(tell);
                }
                _ => {
                    events.meter.cancelled_loads.one();
                    events.tell(tell);
                }
            }
        }
    }
}

pub(crate) fn load_error(key: Key, error: BuildError) -> LoadError {
    match error {
        BuildError::Write(WriteError::Disk(source)) => LoadError::Disk { key, source: Box::new(source) },
        BuildError::Write(WriteError::NoRoom(refusal)) => {
            LoadError::NoSpindle { key, refusals: vec![refusal] }
        }
        BuildError::Memory(source) => LoadError::Memory { key, source },
        BuildError::Arena(source) => LoadError::System { key, source },
        BuildError::Encode(source) => LoadError::Encode { key, source },
        BuildError::Incomplete { index, arrived, file_bytes } => {
            LoadError::Incomplete { key, index, arrived, file_bytes }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Under these locks stands only what is counted or moved.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use pelton_region_format::Fingerprint;

    use super::*;
    use crate::slice::parcel::ParcelBuilder;
    use crate::snap::state::SnapState;

    #[test]
    fn a_panic_in_the_middle_of_a_parcel_ends_the_load() {
        let folder = tempfile::tempdir().unwrap();
        let cache = crate::Cache::builder().spindle(folder.path().join("spindle"), 1 << 30).open().unwrap();
        let mut events = cache.events();
        let snap = cache.snap(&"test/panic@1#0".parse().unwrap());
        let writer = snap.open_for_writes(LoadPlan::new(Fingerprint::from_bytes([1; 32]))).unwrap();
        let parcel = || {
            let mut parcel = ParcelBuilder::default();
            parcel.push(b"a blob").unwrap();
            parcel.finish()
        };
        writer.queue_parcel(parcel()).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let call = writer.load.call().unwrap();
            let _region = call.draft.regions[0].take(&writer.load, &Patience::default()).unwrap();
            panic!("while it puts a blob");
        }));
        assert!(panicked.is_err());
        assert!(matches!(writer.queue_parcel(parcel()), Err(LoadError::Over { .. })));
        assert_eq!(snap.status().state, SnapState::Cold, "nothing of it is left, though the writer is there");
        let why = std::iter::from_fn(|| events.try_recv()).find_map(|event| match event {
            Event::LoadFailed { why, .. } => Some(why),
            _ => None,
        });
        assert_eq!(why.as_deref(), Some("a call panicked"));
        assert!(matches!(writer.wait_for_writes(), Err(LoadError::Over { .. })));
    }
}

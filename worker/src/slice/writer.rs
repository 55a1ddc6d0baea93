//! The four loader calls: open_for_writes, queue_parcel, wait_for_writes, close_for_writes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pelton_region_format::{Header, Key, PIECE_BYTES_STEP};

use crate::budget::ledger::Reservation;
use crate::budget::memory::{MemoryGrant, MemoryRefused, MemoryUse};
use crate::cache::{CacheCore, Entry};
use crate::slice::build::{BuildError, BuiltRegion, PIECES_PER_REGION, RegionBuild, Site, WriteError};
use crate::slice::deal::Dealer;
use crate::slice::parcel::{Parcel, ParcelError};
use crate::slice::plan::{Durability, LoadPlan, WritePath};
use crate::snap::commit::{CommitError, LoadFolders};
use crate::snap::hot::{HotRegion, HotSlice};
use crate::snap::reaper::ReaperInbox;
use crate::spindle::engine::DiskError;
use crate::spindle::refusal::{Listed, SpindleRefusal};
use crate::units::Exact;

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
    /// An earlier call failed, so the load is over.
    #[error("the load of {key} is over since an earlier call failed")]
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

/// Takes parcels for one slice, from any number of threads.
///
/// Dropping it before [`wait_for_writes`](SliceWriter::wait_for_writes) cancels the load and removes what it wrote.
pub struct SliceWriter {
    core: Arc<CacheCore>,
    entry: Arc<Entry>,
    plan: LoadPlan,
    folders: LoadFolders,
    dealer: Mutex<Dealer>,
    regions: Vec<Mutex<Option<RegionBuild>>>,
    blob_bytes: AtomicU64,
    /// Whether what is written is somebody else's now: the sealed slice's.
    handed_on: bool,
    /// Set once, by whoever ends the load early and removes what it wrote.
    cancelled: AtomicBool,
}

impl SliceWriter {
    pub(crate) fn new(
        core: Arc<CacheCore>,
        entry: Arc<Entry>,
        plan: LoadPlan,
        folders: LoadFolders,
        space: Vec<Reservation>,
    ) -> Result<SliceWriter, LoadError> {
        let region_count = plan.regions.unwrap_or(core.regions_default);
        let keeps_image = match plan.write_path {
            WritePath::Image => true,
            WritePath::Direct => false,
            // Half of what there is: a load that will not fit as images need not begin as one.
            WritePath::Auto => {
                plan.expected_bytes.is_none_or(|bytes| bytes <= core.budget.counts().residence_max / 2)
            }
        };
        let (piece_bytes, mut reserve) = reserve_pieces(&core, region_count)
            .map_err(|source| LoadError::Memory { key: entry.key.clone(), source })?;
        let regions = (0..region_count).zip(space).map(|(index, space)| {
            let header = Header {
                alignment: plan.alignment,
                region_index: index,
                region_count,
                writer: *b"pelton worker 1\0",
                key: Some(entry.key.clone()),
                fingerprint: Some(plan.fingerprint),
                ..Header::default()
            };
            let (spindle, path) = folders.place(&core.spindles, index);
            let site = Site {
                full_path: spindle.folder.join(&path),
                path,
                lane: core.next_lane(),
                spindle,
                budget: core.budget.clone(),
                piece_bytes,
                image_bytes_max: core.image_bytes_max,
                deadline: plan.deadline,
            };
            let reserve = reserve.split((piece_bytes * PIECES_PER_REGION) as u64);
            Mutex::new(Some(RegionBuild::new(site, header, keeps_image, reserve, space)))
        });
        let regions: Vec<_> = regions.collect();
        let dealer = Mutex::new(Dealer::new(plan.deal, regions.len()));
        Ok(SliceWriter {
            core,
            entry,
            plan,
            folders,
            dealer,
            regions,
            blob_bytes: AtomicU64::new(0),
            handed_on: false,
            cancelled: AtomicBool::new(false),
        })
    }

    /// The slice that is loaded.
    pub fn key(&self) -> &Key {
        &self.entry.key
    }

    /// Copies a parcel's blobs into the slice's regions. Waits while memory or a disk's queue is used
    /// up: that is what slows a fast producer down.
    ///
    /// # Errors
    /// [`LoadError`]. After `Parcel` and `ParcelTooLarge` the load goes on without that parcel; after all
    /// others it is over.
    #[doc(alias = "queueParcel")]
    pub fn queue_parcel(&self, parcel: Parcel) -> Result<(), LoadError> {
        let key = || self.entry.key.clone();
        let parcel_bytes = parcel.memory_bytes() as u64;
        let _grant = self.core.budget.take(MemoryUse::Buffers, parcel_bytes, self.plan.deadline).map_err(
            |refused| match refused {
                MemoryRefused::NeverFits { share, .. } => {
                    LoadError::ParcelTooLarge { key: key(), parcel_bytes, buffers_bytes: share }
                }
                source => LoadError::Memory { key: key(), source },
            },
        )?;
        let open =
            parcel.open(&self.core.scratch).map_err(|source| LoadError::Parcel { key: key(), source })?;

        let mut lots: Vec<Vec<&[u8]>> = vec![Vec::new(); self.regions.len()];
        let mut bytes = 0;
        {
            // Blobs are dealt in the order of parcels; copying them needs no order.
            let mut dealer = lock(&self.dealer);
            for blob in open.blobs() {
                bytes += blob.len() as u64;
                lots[dealer.deal(blob.len())].push(blob);
            }
        }
        let bytes = self.blob_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(bytes_max) = self.plan.max_bytes
            && bytes > bytes_max
        {
            self.cancel();
            return Err(LoadError::TooMuch { key: key(), bytes, bytes_max });
        }
        for (region, lot) in self.regions.iter().zip(lots).filter(|(_, lot)| !lot.is_empty()) {
            let mut region = lock(region);
            let Some(build) = region.as_mut() else { return Err(LoadError::Over { key: key() }) };
            if let Err(error) = lot.into_iter().try_for_each(|blob| build.put(blob)) {
                drop(region);
                self.cancel();
                return Err(load_error(key(), error));
            }
        }
        Ok(())
    }

    /// All parcels are queued: seals the regions. From here on the slice can be scanned.
    ///
    /// # Errors
    /// [`LoadError`], and the load is over.
    #[doc(alias = "waitForWritesToComplete")]
    pub fn wait_for_writes(mut self) -> Result<SealedSlice, LoadError> {
        let mut built = Vec::new();
        for region in &self.regions {
            let Some(build) = lock(region).take() else {
                return Err(LoadError::Over { key: self.entry.key.clone() });
            };
            // What is taken out is not removed by `cancel` any more, so the path is kept until it is sealed.
            match build.seal() {
                Ok(region) => built.extend(region),
                Err(error) => {
                    self.folders.remove_all(&self.core.spindles);
                    return Err(load_error(self.entry.key.clone(), error));
                }
            }
        }
        self.handed_on = true;
        let reaper = self.core.warmth.reaper.inbox();
        let (hot, built) = take_images(&self.entry.key, &self.plan, self.folders.load_number, built, &reaper);
        Ok(SealedSlice {
            core: self.core.clone(),
            entry: self.entry.clone(),
            region_count: self.regions.len() as u32,
            plan: self.plan.clone(),
            folders: self.folders.clone(),
            hot,
            built,
            closed: false,
        })
    }

    /// Ends the load, and removes what it wrote. Its disk space is free again when its files are gone.
    fn cancel(&self) {
        if self.cancelled.swap(true, Ordering::Relaxed) {
            return;
        }
        let builds: Vec<RegionBuild> = self.regions.iter().filter_map(|region| lock(region).take()).collect();
        self.core.remove_load(self.entry.key.clone(), self.folders.clone(), self.plan.deadline, builds);
    }
}

impl Drop for SliceWriter {
    fn drop(&mut self) {
        if !self.handed_on {
            self.cancel();
            self.entry.load_failed();
        }
    }
}

/// How long opening waits for other loads to end, if memory allows only so many at once.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(60);

/// Takes what a load needs to end, whatever other loads do: its pieces. The smaller the room, the
/// smaller the pieces. What is not there in time, or can never be, is refused with the numbers.
fn reserve_pieces(core: &CacheCore, region_count: u32) -> Result<(usize, MemoryGrant), MemoryRefused> {
    let bytes = |piece_bytes: usize| (piece_bytes * PIECES_PER_REGION) as u64 * u64::from(region_count);
    for piece_bytes in [core.piece_bytes, PIECE_BYTES_STEP] {
        if let Ok(grant) = core.pieces.try_take(MemoryUse::Buffers, bytes(piece_bytes)) {
            return Ok((piece_bytes, grant));
        }
    }
    let least = bytes(PIECE_BYTES_STEP);
    let grant = core.budget.try_take(MemoryUse::Images, least).or_else(|refused| {
        let deadline = Some(Instant::now() + OPEN_WAIT_MAX);
        match core.pieces.take(MemoryUse::Buffers, least, deadline) {
            // More than all pieces together: what regions may use is then the number that counts.
            Err(MemoryRefused::NeverFits { .. }) => Err(refused),
            taken => taken,
        }
    })?;
    Ok((PIECE_BYTES_STEP, grant))
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
        let (image, grant) = region.image.take().expect("all of them have one");
        regions.push(Arc::new(HotRegion::loaded(region.index(), image, grant, reaper.clone())));
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
    closed: bool,
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

    /// Ends the load: the slice is the cache's now. It can be leased from here on; when it is durable is the
    /// plan's choice. A slice without any blob is NoData.
    ///
    /// # Errors
    /// [`LoadError::Commit`], if the plan says to wait and the slice did not get to the disk.
    #[doc(alias = "closeForWrites")]
    pub fn close_for_writes(mut self) -> Result<(), LoadError> {
        self.closed = true;
        let built = std::mem::take(&mut self.built);
        let hot = self.hot.take();
        let waits = self.plan.durability == Durability::Wait || hot.is_none();
        let before = self.entry.change(|state| std::mem::replace(&mut state.hot, hot.clone()));
        drop(before); // Outside of the lock: its memory goes here, unless a lease still holds it.
        let commit = self.core.start_commit(
            self.entry.clone(),
            self.plan.fingerprint,
            self.region_count,
            self.folders.clone(),
            built,
            hot,
            waits,
        );
        if !waits {
            return Ok(());
        }
        commit
            .wait()
            .map_err(|source| LoadError::Commit { key: self.entry.key.clone(), source: Box::new(source) })
    }
}

impl Drop for SealedSlice {
    fn drop(&mut self) {
        if !self.closed {
            self.folders.remove_all(&self.core.spindles);
            self.entry.load_failed();
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
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A producer that panicked while it held a region leaves it as it was: blobs are whole or not begun.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

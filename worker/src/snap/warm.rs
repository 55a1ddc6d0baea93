//! Brings a slice's files into memory.
//!
//! ```text
//! lease ─▶ memory for all of it ─▶ a look at each region: first and last pages, checked ─▶ the lease is given
//!                                    │
//!                                    └─▶ a haul: step by step from the disk ─▶ verified ─▶ the watermark moves
//! ```
//!
//! Looks and hauls run on the threads of the region's spindle, see [`warmers`](crate::snap::warmers). Whoever
//! waits for a lease may stop waiting at any time; what was begun for it goes on.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use pelton_region_format::{FormatError, Frame, Header, PAGE_BYTES, RegionView, Trailer};
use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::budget::memory::{MemoryBudget, MemoryGrant, MemoryRefused, MemoryUse};
use crate::config::Verify;
use crate::region::arena::{Image, ImageRoom, ImageRooms};
use crate::region::map::{LARGE_PAGE_BYTES, RegionMap, SealedFile};
use crate::region::residence::{Residence, SpindleResidence};
use crate::region::watermark::RegionFault;
use crate::scan::patience::Patience;
use crate::side_by_side::side_by_side;
use crate::snap::entry::Entry;
use crate::snap::hot::{HotRegion, HotSlice, RegionBytes};
use crate::snap::manifest::{FileCount, Manifest, RegionRecord};
use crate::snap::reaper::{Reaper, ReaperInbox};
use crate::snap::state::SnapEvent;
use crate::snap::warmers::{WarmQueue, Warmers};
use crate::spindle::engine::{DiskError, Op, Outcome, PageBuffer};
use crate::spindle::file::{FileMode, SpindleFile};
use crate::spindle::held::Spindle;
use crate::spindle::impeller::{Completion, Lane, Replies, SubmitError, replies};
use crate::spindle::pace::Pace;

/// How much comes from the disk between two moves of the watermark: large enough for large pages.
const STEP_BYTES: usize = 8 << 20;

/// What an image is read in, cut at the file offsets at which it was written, and how many of them are on
/// their way at once.
const READ_BYTES: usize = 4 << 20;
const READS_MAX: usize = 4;

/// How long a haul that keeps a pace looks at nothing else.
const REST_MAX: Duration = Duration::from_millis(10);

/// Why a slice's files could not be brought into memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WarmError {
    /// The disk refused. The file may be fine: try again.
    #[error("region {index} could not be read")]
    Disk {
        /// Which region.
        index: u32,
        /// What the disk said.
        source: DiskError,
    },
    /// The file could not be mapped, brought into memory, or given memory. It may be fine: try again.
    #[error("region {index} could not be brought into memory")]
    Map {
        /// Which region.
        index: u32,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not those that were written. Drop the slice and load it again.
    #[error("region {index} is damaged")]
    Damaged {
        /// Which region.
        index: u32,
        /// What does not hold.
        source: FormatError,
    },
    /// The file is whole, but another one than the manifest names.
    #[error("region {index} is not the one that was committed")]
    OtherRegion {
        /// Which region.
        index: u32,
    },
    /// The file that the manifest names is not there any more. Drop the slice and load it again.
    #[error("the file of region {index} is gone")]
    NoFile {
        /// Which region.
        index: u32,
    },
    /// The file was cut, or has grown, since it was committed. Drop the slice and load it again.
    #[error("the file of region {index} has not the {expected} bytes any more that were committed")]
    OtherLength {
        /// Which region.
        index: u32,
        /// How many bytes the manifest says.
        expected: u64,
    },
    /// The manifest on the disk is not the one that was committed. Drop the slice and load it again.
    #[error("its manifest is not what was written: {why}")]
    Manifest {
        /// What does not hold.
        why: String,
    },
    /// The memory budget does not allow it. Evict something, or configure more.
    #[error("its regions got no memory")]
    Memory {
        /// How much was wanted and how much there is.
        source: MemoryRefused,
    },
    /// The deadline passed while its bytes were compared with their checksums once more: try again.
    #[error("region {index} was not verified in time")]
    Late {
        /// Which region.
        index: u32,
    },
    /// A spindle that holds a region is not here.
    #[error("the spindle of region {index} is not here")]
    NoSpindle {
        /// Which region.
        index: u32,
    },
    /// The system gives no thread to bring it in. Try again.
    #[error("there is no thread to bring region {index} into memory")]
    Threads {
        /// Which region.
        index: u32,
        /// What the system said.
        source: io::Error,
    },
    /// A bug of ours. Other regions go on.
    #[error("region {index} could not be brought into memory: a bug in pelton")]
    Panicked {
        /// Which region.
        index: u32,
    },
}

impl WarmError {
    /// Whether the slice is not what was written.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            WarmError::Damaged { .. }
                | WarmError::OtherRegion { .. }
                | WarmError::Manifest { .. }
                | WarmError::NoFile { .. }
                | WarmError::OtherLength { .. }
        )
    }

    /// What it means that a committed region's file could not be opened.
    pub(crate) fn of_open(index: u32, source: DiskError) -> WarmError {
        match source.kind() {
            io::ErrorKind::NotFound => WarmError::NoFile { index },
            _ => WarmError::Disk { index, source },
        }
    }

    /// What it means that a region's map could not be filled.
    fn of_populate(index: u32, map: &RegionMap, source: io::Error) -> WarmError {
        match map.has_its_length() {
            true => WarmError::Map { index, source },
            false => WarmError::OtherLength { index, expected: map.bytes().len() as u64 },
        }
    }
}

/// What a cache brings regions into memory with.
pub(crate) struct Warmth {
    /// One for each of the cache's spindles, in their order.
    pub(crate) spindles: Vec<SpindleWarmth>,
    pub(crate) reaper: Reaper,
    /// Whether late faults in maps are caught.
    guards_maps: bool,
    verify: Verify,
}

pub(crate) struct SpindleWarmth {
    warmers: Warmers,
    residence: Arc<SpindleResidence>,
}

impl Warmth {
    pub(crate) fn new(
        spindles: usize,
        residence: Residence,
        guards_maps: bool,
        verify: Verify,
        budget: MemoryBudget,
    ) -> Warmth {
        let spindle = |number| SpindleWarmth {
            warmers: Warmers::new(number),
            residence: Arc::new(SpindleResidence::new(residence)),
        };
        Warmth {
            spindles: (0..spindles).map(spindle).collect(),
            reaper: Reaper::new(budget),
            guards_maps,
            verify,
        }
    }

    /// Whether what is brought in is compared with its checksums on its way.
    pub(crate) fn verifies(&self) -> bool {
        self.verify != Verify::Never
    }
}

impl SpindleWarmth {
    /// What the spindle's regions are brought into, and why.
    pub(crate) fn residence(&self) -> (Residence, String) {
        self.residence.known()
    }
}

/// One way of a slice into memory, shared by all who wait for it.
#[derive(Debug)]
pub(crate) struct Attempt {
    entry: Arc<Entry>,
    manifest: Arc<Manifest>,
    /// What the looks have found so far.
    found: Mutex<Found>,
    /// Hangs up when the last haul has ended.
    hauled: Receiver<Infallible>,
    begun: Instant,
    /// How fast the hauls may read.
    pace: Option<Arc<Pace>>,
    span: Span,
    /// Set by whoever tells first that not all of it comes: its end, or one of its hauls. Publishes nothing else.
    failed: Arc<AtomicBool>,
}

/// Held by each haul of an attempt: when the last one is dropped, whoever waits for that is told.
#[derive(Clone)]
pub(crate) struct Hauling(#[allow(dead_code, reason = "it is dropped, never sent on")] Sender<Infallible>);

#[derive(Debug, Default)]
struct Found {
    regions: BTreeMap<u32, Arc<HotRegion>>,
    error: Option<WarmError>,
    looks_left: usize,
}

/// How much memory a slice takes when it is brought in: whole pages.
pub(crate) fn bytes_in_memory(manifest: &Manifest) -> u64 {
    manifest.regions.iter().map(region_bytes_in_memory).sum()
}

fn region_bytes_in_memory(record: &RegionRecord) -> u64 {
    record.file_bytes.next_multiple_of(PAGE_BYTES as u64)
}

impl Attempt {
    /// The attempt, and what its hauls hold until they end.
    pub(crate) fn new(
        entry: Arc<Entry>,
        manifest: Arc<Manifest>,
        pace: Option<Arc<Pace>>,
    ) -> (Arc<Attempt>, Hauling) {
        let looks_left = manifest.regions.len();
        let found = Mutex::new(Found { looks_left, ..Found::default() });
        let span = info_span!("warm", key = %entry.key, bytes = Empty, outcome = Empty);
        let (hauling, hauled) = bounded(0);
        (
            Arc::new(Attempt {
                entry,
                manifest,
                found,
                hauled,
                begun: Instant::now(),
                pace,
                span,
                failed: Arc::default(),
            }),
            Hauling(hauling),
        )
    }

    /// Hangs up when the last haul has ended.
    pub(crate) fn hauled(&self) -> &Receiver<Infallible> {
        &self.hauled
    }

    /// Hands the looks to the spindles' threads. `grant` is memory for [`bytes_in_memory`]; `is_verified` says
    /// that what is in the page cache was verified since it came from the disk.
    pub(crate) fn start(
        self: &Arc<Self>,
        spindles: &[Arc<Spindle>],
        warmth: &Warmth,
        hauling: &Hauling,
        mut grant: MemoryGrant,
        is_verified: bool,
        mut next_lane: impl FnMut() -> Lane,
    ) {
        if self.manifest.regions.is_empty() {
            return self.end();
        }
        for record in &self.manifest.regions {
            let index = record.index;
            let answer = Answer { attempt: self.clone(), index, given: false };
            let uuid = self.manifest.spindles[record.spindle as usize];
            let Some(number) = spindles.iter().position(|spindle| spindle.uuid == uuid) else {
                answer.give(Err(WarmError::NoSpindle { index }));
                continue;
            };
            let warmers = &warmth.spindles[number].warmers;
            if let Err(source) = warmers.start() {
                answer.give(Err(WarmError::Threads { index, source }));
                continue;
            }
            let look = Look {
                record: record.clone(),
                spindle: spindles[number].clone(),
                residence: warmth.spindles[number].residence.clone(),
                grant: grant.split(region_bytes_in_memory(record)),
                reaper: warmth.reaper.inbox(),
                guards_maps: warmth.guards_maps,
                is_verified,
                lane: next_lane(),
            };
            let (hauling, verify) = (hauling.clone(), warmth.verifies());
            let job = move |queue: &WarmQueue| match look.run() {
                Ok((region, way)) => {
                    let region = Arc::new(region);
                    // Not the attempt: it holds what comes of it, and a haul ends when nobody else holds that.
                    let Attempt { entry, failed, pace, .. } = &*answer.attempt;
                    let (entry, failed, pace) = (entry.clone(), failed.clone(), pace.clone());
                    let is_urgent = pace.is_none();
                    let haul =
                        Haul { region: region.clone(), entry, failed, way, verify, pace, _hauling: hauling };
                    queue.haul(is_urgent, move |queue| haul.run(queue));
                    answer.give(Ok(region));
                }
                Err(error) => answer.give(Err(error)),
            };
            warmers.look(job);
        }
    }

    fn answer(&self, index: u32, look: Result<Arc<HotRegion>, WarmError>) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match look {
            Ok(region) => _ = found.regions.insert(index, region),
            Err(error) => _ = found.error.get_or_insert(error),
        }
        found.looks_left -= 1;
        if found.looks_left == 0 {
            drop(found);
            self.end();
        }
    }

    /// Makes the slice hot, or tells why it is not.
    fn end(&self) {
        let found = std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner));
        let version = self.manifest.version();
        if let Some(error) = found.error {
            self.span.record("outcome", "failed");
            return self.entry.warming_failed(version, Arc::new(error));
        }
        let regions: Vec<_> = found.regions.into_values().collect();
        let hauled = Some(self.hauled.clone());
        let Manifest { key, .. } = &*self.manifest;
        let slice = HotSlice::new(key.clone(), version.fingerprint, version.load, regions.clone(), hauled);
        let (bytes, took) = (self.manifest.file_bytes(), self.begun.elapsed());
        self.span.record("bytes", bytes).record("outcome", "warmed");
        self.entry.warmed(bytes, took);
        self.entry.report_memory(SnapEvent::Warmed { version }, Arc::new(slice));
        // A haul that failed before did not find the slice served: it tells its region first, so it is seen here.
        if let Some(error) = regions.iter().find_map(|region| region.watermark().failure())
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            self.entry.warming_failed(version, error);
        }
    }
}

/// The answer that a look owes to its attempt: given when it is dropped, if not before.
struct Answer {
    attempt: Arc<Attempt>,
    index: u32,
    given: bool,
}

impl Answer {
    fn give(mut self, look: Result<Arc<HotRegion>, WarmError>) {
        self.given = true;
        self.attempt.answer(self.index, look);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.given {
            self.attempt.answer(self.index, Err(WarmError::Panicked { index: self.index }));
        }
    }
}

/// Compares a slice that is in memory, or will be, with its checksums, on as many threads as scan.
pub(crate) fn verify_slice(
    slice: &HotSlice,
    threads: usize,
    patience: &Patience,
) -> Result<(), Arc<WarmError>> {
    for batch in slice.regions.chunks(threads) {
        side_by_side("pelton-verify", batch, |region| verify_region(region, patience))
            .into_iter()
            .collect::<Result<(), _>>()?;
    }
    Ok(())
}

fn verify_region(region: &HotRegion, patience: &Patience) -> Result<(), Arc<WarmError>> {
    let index = region.index;
    let late = || Arc::new(WarmError::Late { index });
    let damaged = |source| Arc::new(WarmError::Damaged { index, source });
    let bytes = region.whole(patience).map_err(|fault| match fault {
        RegionFault::Impatience(_) => late(),
        RegionFault::Failed(why) => why,
    })?;
    let view = RegionView::open(bytes).map_err(damaged)?;
    for block in 0..view.block_count() {
        patience.check().map_err(|_| late())?;
        view.verify_block(block).map_err(damaged)?;
    }
    Ok(())
}

/// Opens a region's file, and reads and checks all of it but its body.
struct Look {
    record: RegionRecord,
    spindle: Arc<Spindle>,
    residence: Arc<SpindleResidence>,
    grant: MemoryGrant,
    reaper: ReaperInbox,
    guards_maps: bool,
    is_verified: bool,
    lane: Lane,
}

/// How the rest comes in.
enum Way {
    /// The kernel brings it in. `is_there`: it is in memory and verified already.
    Map { is_there: bool },
    /// We read it.
    Image {
        rooms: ImageRooms,
        file: Arc<SpindleFile>,
        /// What the file takes of the disk as long as it is open.
        space: FileCount,
        spindle: Arc<Spindle>,
        lane: Lane,
    },
}

impl Look {
    fn run(self) -> Result<(HotRegion, Way), WarmError> {
        let index = self.record.index;
        let content_id = self.record.content_id();
        let maps = self.residence.maps(&self.spindle);
        let mode = if maps { FileMode::Buffered } else { FileMode::Direct };
        let open = Op::OpenFile { path: self.spindle.folder.join(&self.record.path), mode };
        let opened = self.spindle.impellers.run_in(self.lane, open, None);
        let file = opened.map_err(|source| WarmError::of_open(index, source))?.into_file();
        let (bytes, way) = if maps { self.map(file)? } else { self.image(file)? };
        let frame = bytes.frame().map_err(|source| WarmError::Damaged { index, source })?;
        if frame.trailer().content_id != content_id {
            return Err(WarmError::OtherRegion { index });
        }
        let is_there = matches!(way, Way::Map { is_there: true });
        let grant = if maps { self.grant } else { self.grant.turn_into(MemoryUse::Images) };
        let space = if maps { self.record.space.clone() } else { FileCount::default() };
        let spindle = Arc::downgrade(&self.spindle);
        Ok((HotRegion::from_file(index, bytes, is_there, grant, space, self.reaper, spindle), way))
    }

    fn map(&self, file: Arc<SpindleFile>) -> Result<(RegionBytes, Way), WarmError> {
        let (index, expected) = (self.record.index, self.record.file_bytes);
        let sealed = SealedFile::committed(file, expected).map_err(|source| self.no_map(source))?;
        let sealed = sealed.ok_or(WarmError::OtherLength { index, expected })?;
        let map = RegionMap::new(sealed, self.guards_maps).map_err(|source| self.no_map(source))?;
        let look = || {
            let len = map.bytes().len();
            // Before anything is brought in: only what is there has been verified.
            let is_there = self.is_verified && map.resident_bytes()? == len as u64;
            map.expect_front_to_back()?;
            let last = len.saturating_sub(PAGE_BYTES);
            map.populate(0..len.min(LARGE_PAGE_BYTES))?;
            map.populate(last - last % LARGE_PAGE_BYTES..len)?;
            if let Ok(body_end) = body_end(&map) {
                map.populate(body_end - body_end % LARGE_PAGE_BYTES..len)?;
            }
            Ok(is_there)
        };
        let is_there = look().map_err(|source| WarmError::of_populate(index, &map, source))?;
        Ok((RegionBytes::Map(map), Way::Map { is_there }))
    }

    fn image(&self, file: Arc<SpindleFile>) -> Result<(RegionBytes, Way), WarmError> {
        let index = self.record.index;
        let damaged = |source| WarmError::Damaged { index, source };
        let bytes = self.record.file_bytes;
        let found = self.disk(Op::LengthOf { file: file.clone() })?.into_length();
        if found != bytes {
            return Err(WarmError::OtherLength { index, expected: bytes });
        }
        let len = usize::try_from(bytes).expect("addresses have 64 bits");
        let (mut image, mut rooms) = Image::to_fill(len, self.grant.spares(), self.grant.paging())
            .map_err(|source| self.no_map(source))?;
        if let Some(first) = rooms.next_room(PAGE_BYTES) {
            image.accept(self.read(&file, first)?);
        }
        let header = Header::decode(&image.bytes()[..len.min(PAGE_BYTES)]).map_err(damaged)?;
        // Read apart: only the last page says where the tail begins, and room is handed out once.
        let trailer_at = len.saturating_sub(PAGE_BYTES);
        let last_at = trailer_at - trailer_at % PAGE_BYTES;
        let room = Box::new(PageBuffer::zeroed((len - last_at).next_multiple_of(PAGE_BYTES)));
        let room_bytes = AsRef::<[u8]>::as_ref(&*room).len();
        let read = Op::Read { file: file.clone(), offset: last_at as u64, room, len: room_bytes };
        let (room, _) = self.disk(read)?.into_read_back();
        let room = room.into_any().downcast::<PageBuffer>().expect("what was handed in");
        let last_page = &AsRef::<[u8]>::as_ref(&*room)[trailer_at - last_at..len - last_at];
        let trailer = Trailer::decode(last_page, &header, bytes).map_err(damaged)?;
        let tail = rooms.tail_room((trailer.body_end as usize).max(PAGE_BYTES));
        image.accept_tail(self.read(&file, tail)?);
        let (space, spindle) = (self.record.space.clone(), self.spindle.clone());
        let way = Way::Image { rooms, file, space, spindle, lane: self.lane };
        Ok((RegionBytes::Image(image), way))
    }

    /// Fills one room and waits for it.
    fn read(&self, file: &Arc<SpindleFile>, room: ImageRoom) -> Result<ImageRoom, WarmError> {
        let (op, wanted) = read_into(file, room, self.record.file_bytes);
        filled(self.record.index, self.disk(op)?, wanted, self.record.file_bytes)
    }

    fn disk(&self, op: Op) -> Result<Outcome, WarmError> {
        let index = self.record.index;
        // Without a deadline: this is a thread of the spindle's own, and nobody waits for it without one.
        self.spindle.impellers.run_in(self.lane, op, None).map_err(|source| WarmError::Disk { index, source })
    }

    fn no_map(&self, source: io::Error) -> WarmError {
        WarmError::Map { index: self.record.index, source }
    }
}

/// Where the body ends, from the first and the last page.
fn body_end(map: &RegionMap) -> Result<usize, FormatError> {
    let bytes = map.bytes();
    let header = Header::decode(&bytes[..bytes.len().min(PAGE_BYTES)])?;
    let last_page = &bytes[bytes.len().saturating_sub(PAGE_BYTES)..];
    Ok(Trailer::decode(last_page, &header, bytes.len() as u64)?.body_end as usize)
}

/// The operation that fills a room, and how many bytes of it the file has.
fn read_into(file: &Arc<SpindleFile>, room: ImageRoom, file_bytes: u64) -> (Op, usize) {
    let (offset, len) = (room.offset() as u64, room.len());
    let wanted = (file_bytes - offset).min(len as u64) as usize;
    (Op::Read { file: file.clone(), offset, room: Box::new(room), len }, wanted)
}

/// The filled room, if all that the file should have came.
fn filled(index: u32, outcome: Outcome, wanted: usize, expected: u64) -> Result<ImageRoom, WarmError> {
    let (room, len) = outcome.into_read_back();
    let room = *room.into_any().downcast::<ImageRoom>().expect("what was handed in");
    if len < wanted {
        return Err(WarmError::OtherLength { index, expected }); // Cut since the look.
    }
    Ok(room)
}

/// Brings in what a look has left.
struct Haul {
    region: Arc<HotRegion>,
    entry: Arc<Entry>,
    /// The attempt's.
    failed: Arc<AtomicBool>,
    way: Way,
    verify: bool,
    /// How fast it may read, all hauls with the same one together.
    pace: Option<Arc<Pace>>,
    /// Dropped after the region.
    _hauling: Hauling,
}

/// Why a haul ended before the region was there.
enum Stop {
    /// Everybody who wanted the region has gone.
    Unwanted,
    Failed(WarmError),
}

impl Haul {
    fn run(self, queue: &WarmQueue) {
        let mut failure =
            FailOnDrop { region: &self.region, entry: &self.entry, failed: &self.failed, error: None };
        failure.error = Some(WarmError::Panicked { index: self.region.index });
        let steps = Steps { queue, region: &self.region, entry: &self.entry, pace: self.pace.as_deref() };
        failure.error = match bring(&self.region, self.way, self.verify, &steps) {
            Ok(()) | Err(Stop::Unwanted) => None,
            Err(Stop::Failed(error)) => Some(error),
        };
    }
}

/// What a haul does between two of its steps.
struct Steps<'a> {
    queue: &'a WarmQueue,
    region: &'a Arc<HotRegion>,
    entry: &'a Arc<Entry>,
    pace: Option<&'a Pace>,
}

impl Steps<'_> {
    /// So many bytes have come. Does the looks that wait; and if there is a pace, keeps it, and meanwhile brings in what
    /// somebody waits for. Whoever leases the slice itself ends the rest.
    fn rest(&self, bytes: u64) {
        self.queue.do_looks();
        let Some(turn) = self.pace.and_then(|pace| pace.turn(bytes)) else { return };
        loop {
            let left = turn.saturating_duration_since(Instant::now());
            let is_over = left.is_zero() || self.entry.is_held() || is_unwanted(self.region);
            if is_over || !self.queue.wait_for_urgent(left.min(REST_MAX)) {
                return;
            }
        }
    }
}

/// Tells why the region will not be there, also after a panic: scans wait for it.
struct FailOnDrop<'a> {
    region: &'a Arc<HotRegion>,
    entry: &'a Arc<Entry>,
    failed: &'a AtomicBool,
    error: Option<WarmError>,
}

impl Drop for FailOnDrop<'_> {
    fn drop(&mut self) {
        let Some(error) = self.error.take() else { return };
        let error = Arc::new(error);
        self.region.watermark().fail(error.clone());
        // Nobody new gets it; those there are keep what they have.
        let served = self.entry.desk.served();
        let is_ours = |hot: &Arc<HotSlice>| hot.regions.iter().any(|one| Arc::ptr_eq(one, self.region));
        if let Some(version) = served.filter(is_ours).map(|hot| hot.version())
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            self.entry.warming_failed(version, error);
        }
    }
}

fn bring(region: &Arc<HotRegion>, way: Way, verify: bool, steps: &Steps<'_>) -> Result<(), Stop> {
    let index = region.index;
    if region.watermark().is_complete() {
        return haul(region, way, steps, &mut |_| Ok(())); // All there; only the page tables are filled.
    }
    if !verify {
        return haul(region, way, steps, &mut |reached| {
            region.watermark().publish(reached);
            Ok(())
        });
    }
    let frame = region.bytes().frame();
    let frame = frame.map_err(|source| Stop::Failed(WarmError::Damaged { index, source }))?;
    let mut verifier = Verifier { region, frame, next_block: 0 };
    if region.bytes().len() <= STEP_BYTES as u64 {
        return haul(region, way, steps, &mut |reached| verifier.follow(reached));
    }
    // Sums are a core's work, and the disk must not wait for them.
    std::thread::scope(|scope| {
        let (tell, reached) = unbounded();
        let name = format!("pelton-verify-{index}");
        let spawned = std::thread::Builder::new().name(name).spawn_scoped(scope, {
            let reached: Receiver<u64> = reached.clone();
            move || follow_all(verifier, &reached)
        });
        let Ok(thread) = spawned else {
            drop(reached);
            return Err(Stop::Failed(WarmError::Threads { index, source: spawned.unwrap_err() }));
        };
        drop(reached);
        // A verifier that has found damage has gone: then there is nothing to go on for.
        let hauled = haul(region, way, steps, &mut |reached| tell.send(reached).map_err(|_| Stop::Unwanted));
        drop(tell);
        match thread.join() {
            Ok(verified) => verified.and(hauled),
            Err(_) => Err(Stop::Failed(WarmError::Panicked { index })),
        }
    })
}

fn follow_all(mut verifier: Verifier<'_>, reached: &Receiver<u64>) -> Result<(), Stop> {
    while let Ok(first) = reached.recv() {
        let latest = reached.try_iter().last().unwrap_or(first);
        verifier.follow(latest)?;
    }
    Ok(())
}

/// Compares what has come with its checksums, and lets scans have it.
struct Verifier<'a> {
    region: &'a HotRegion,
    frame: Frame<'a>,
    next_block: u64,
}

impl Verifier<'_> {
    /// Verifies the blocks that end before `reached`, and moves the watermark behind them.
    fn follow(&mut self, reached: u64) -> Result<(), Stop> {
        let index = self.region.index;
        let (bytes, len) = (self.region.bytes().bytes(), self.region.bytes().len());
        let mut verified = None;
        while self.next_block < self.frame.block_count() {
            let block = self.frame.block_range(self.next_block);
            if block.end > reached {
                break;
            }
            self.frame
                .verify_block(self.next_block, &bytes[block.start as usize..block.end as usize])
                .map_err(|source| Stop::Failed(WarmError::Damaged { index, source }))?;
            self.next_block += 1;
            verified = Some(block.end);
        }
        // What follows the body was checked by the look.
        if reached == len && self.next_block == self.frame.block_count() {
            verified = Some(len);
        }
        if let Some(verified) = verified {
            self.region.watermark().publish(verified);
        }
        Ok(())
    }
}

/// Brings the bytes in and tells how far they are. Ends early when nobody wants them any more.
fn haul(
    region: &Arc<HotRegion>,
    way: Way,
    steps: &Steps<'_>,
    tell: &mut dyn FnMut(u64) -> Result<(), Stop>,
) -> Result<(), Stop> {
    match (region.bytes(), way) {
        (RegionBytes::Map(map), Way::Map { .. }) => populate(region, map, steps, tell),
        (RegionBytes::Image(image), Way::Image { rooms, file, space: _space, spindle, lane }) => {
            let mut reads = Reads::new(region, image, rooms, file);
            let result = reads.run(&spindle, lane, steps, tell);
            // Also after an error: what a disk may still write to stays counted until it has answered.
            reads.drain();
            result
        }
        _ => unreachable!("a look makes both"),
    }
}

/// Whether only the haul itself holds the region: then nobody can come to want it.
fn is_unwanted(region: &Arc<HotRegion>) -> bool {
    Arc::strong_count(region) == 1
}

fn populate(
    region: &Arc<HotRegion>,
    map: &RegionMap,
    steps: &Steps<'_>,
    tell: &mut dyn FnMut(u64) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let failed = |source| Stop::Failed(WarmError::of_populate(region.index, map, source));
    let len = map.bytes().len();
    let mut at = 0;
    while at < len {
        if is_unwanted(region) {
            return Err(Stop::Unwanted);
        }
        let end = (at + STEP_BYTES).min(len);
        map.populate(at..end).map_err(failed)?;
        let came = (end - at) as u64;
        at = end;
        tell(at as u64)?;
        steps.rest(came);
    }
    Ok(())
}

/// The reads of one image: several on their way, taken in in their order.
struct Reads<'a> {
    region: &'a Arc<HotRegion>,
    image: &'a Image,
    rooms: ImageRooms,
    file: Arc<SpindleFile>,
    replies: Replies,
    completions: Receiver<Completion>,
    in_flight: usize,
    /// Came before one that stands before it in the file, by offset.
    early: BTreeMap<usize, ImageRoom>,
}

impl<'a> Reads<'a> {
    fn new(
        region: &'a Arc<HotRegion>,
        image: &'a Image,
        rooms: ImageRooms,
        file: Arc<SpindleFile>,
    ) -> Reads<'a> {
        let (replies, completions) = replies();
        Reads { region, image, rooms, file, replies, completions, in_flight: 0, early: BTreeMap::new() }
    }

    fn run(
        &mut self,
        spindle: &Spindle,
        lane: Lane,
        steps: &Steps<'_>,
        tell: &mut dyn FnMut(u64) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let (index, len) = (self.region.index, self.image.len() as u64);
        let mut reached = self.image.bytes().len() as u64;
        if reached == len {
            return tell(len); // So small that the look has read it all.
        }
        loop {
            while self.in_flight < READS_MAX
                && !is_unwanted(self.region)
                && let Some(room) = self.rooms.next_room(READ_BYTES)
            {
                let (op, wanted) = read_into(&self.file, room, len);
                let submitted = spindle.impellers.submit(lane, op, self.replies.tag(wanted as u64), None);
                if let Err(SubmitError { op, .. }) = submitted {
                    let source = op.subject().cancelled();
                    return Err(Stop::Failed(WarmError::Disk { index, source }));
                }
                self.in_flight += 1;
            }
            if reached == len {
                return Ok(());
            }
            if self.in_flight == 0 {
                return Err(Stop::Unwanted);
            }
            let room = self.next_filled()?;
            let before = reached;
            self.early.insert(room.offset(), room);
            while let Some(room) = self.early.remove(&(reached as usize)) {
                reached = self.image.accept(room) as u64;
            }
            tell(reached)?;
            steps.rest(reached - before);
        }
    }

    fn next_filled(&mut self) -> Result<ImageRoom, Stop> {
        let (index, expected) = (self.region.index, self.image.len() as u64);
        let completion = self.completions.recv().expect("each read is answered, and `replies` lives");
        self.in_flight -= 1;
        completion
            .result
            .map_err(|source| WarmError::Disk { index, source })
            .and_then(|outcome| filled(index, outcome, completion.tag as usize, expected))
            .map_err(Stop::Failed)
    }

    /// Waits for what is still on its way.
    fn drain(&mut self) {
        while self.in_flight > 0 {
            let _ = self.next_filled();
        }
    }
}

#[cfg(test)]
mod tests;

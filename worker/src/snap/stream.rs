//! A slice that is read from the disk by each scan: what leases hold of it instead of its bytes.

use std::fmt;
use std::sync::Arc;

use pelton_region_format::{Fingerprint, FormatError, Frame, Header, Key, PAGE_BYTES, Place, Trailer};

use crate::budget::memory::{MemoryBudget, MemoryGrant, MemoryUse};
use crate::cache::CacheCore;
use crate::config::Verify;
use crate::region::arena::{Paging, PieceBuffer};
use crate::scan::patience::Patience;
use crate::snap::manifest::{FileCount, Manifest, RegionRecord};
use crate::snap::state::Version;
use crate::snap::warm::WarmError;
use crate::spindle::engine::{DiskError, Op, Outcome};
use crate::spindle::file::{DIRECT_ALIGNMENT, FileMode, SpindleFile};
use crate::spindle::held::Spindle;
use crate::spindle::impeller::{Lane, replies};

/// All regions of a slice as open files. Flush and reslice unlink them; what is open can be read to the end.
#[derive(Debug)]
pub(crate) struct StreamSlice {
    pub(crate) key: Key,
    pub(crate) fingerprint: Fingerprint,
    /// What the decider calls it.
    pub(crate) version: Version,
    pub(crate) regions: Vec<Arc<StreamRegion>>,
}

/// One region as an open file, and its frame in memory.
pub(crate) struct StreamRegion {
    /// Which region of its slice.
    pub(crate) index: u32,
    pub(crate) spindle: Arc<Spindle>,
    /// There until it is dropped.
    file: Option<Arc<SpindleFile>>,
    /// Its turn in the spindle's queue.
    pub(crate) lane: Lane,
    pub(crate) verify: Verify,
    pub(crate) memory: StreamMemory,
    header: Header,
    trailer: Trailer,
    /// What stands behind the body.
    tail: Vec<u8>,
    /// What the tail takes of the memory budget.
    _grant: MemoryGrant,
    /// What the file takes of the disk, also when it has no name any more.
    _space: FileCount,
}

/// Where streams take their memory from.
#[derive(Clone, Debug)]
pub(crate) struct StreamMemory {
    /// For rings. Apart, so that a scan whose closure loads another slice does not wait for itself.
    pub(crate) rings: MemoryBudget,
    /// How much of it one thread's ring should take, so that all scan threads have one.
    pub(crate) ring_bytes: u64,
    /// For a blob that is larger than a ring's buffer.
    pub(crate) blobs: MemoryBudget,
}

/// Opens all regions of a slice, and reads and checks their frames.
pub(crate) fn open_stream(
    core: &CacheCore,
    manifest: &Manifest,
    patience: &Patience,
) -> Result<Arc<StreamSlice>, WarmError> {
    let open = |record| {
        let lane = core.next_lane();
        StreamRegion::open(core, manifest, record, lane, FileMode::Direct, patience).map(Arc::new)
    };
    let regions = manifest.regions.iter().map(open).collect::<Result<_, _>>()?;
    let (key, version) = (manifest.key.clone(), manifest.version());
    Ok(Arc::new(StreamSlice { key, fingerprint: version.fingerprint, version, regions }))
}

impl StreamRegion {
    /// Opens one region's file, and reads and checks its frame; all of it in this lane, past the page cache or through it.
    pub(crate) fn open(
        core: &CacheCore,
        manifest: &Manifest,
        record: &RegionRecord,
        lane: Lane,
        mode: FileMode,
        patience: &Patience,
    ) -> Result<StreamRegion, WarmError> {
        let (index, file_bytes) = (record.index, record.file_bytes);
        let disk = |source| WarmError::Disk { index, source };
        let damaged = |source| WarmError::Damaged { index, source };
        let uuid = manifest.spindles[record.spindle as usize];
        let spindle = core
            .spindles
            .iter()
            .find(|spindle| spindle.uuid == uuid)
            .ok_or(WarmError::NoSpindle { index })?;
        let open = Op::OpenFile { path: spindle.folder.join(&record.path), mode };
        let opened = spindle.impellers.run_patiently(lane, open, patience);
        let file = opened.map_err(|source| WarmError::of_open(index, source))?.into_file();
        let read = |from: u64, to: u64| read(spindle, &file, from, to, lane, patience).map_err(disk);
        let cut = |place, offset, found: &[u8], expected| {
            let found = found.len() as u64;
            damaged(FormatError::Truncated { place, offset, found, expected })
        };
        let page = read(0, PAGE_BYTES as u64)?;
        let header = Header::decode(&page).map_err(damaged)?;
        let page_at = file_bytes.saturating_sub(PAGE_BYTES as u64);
        let page = read(page_at, file_bytes)?;
        if page.len() < PAGE_BYTES {
            return Err(cut(Place::Trailer, page_at, &page, PAGE_BYTES as u64));
        }
        let trailer = Trailer::decode(&page, &header, file_bytes).map_err(damaged)?;
        if trailer.content_id != record.content_id() {
            return Err(WarmError::OtherRegion { index });
        }
        let take = core.budget.take_patiently(MemoryUse::Images, trailer.tail_bytes(), patience);
        let grant = take.map_err(|source| WarmError::Memory { source })?;
        let tail = read(trailer.body_end, file_bytes)?;
        if (tail.len() as u64) < trailer.tail_bytes() {
            return Err(cut(Place::SectionTable, trailer.body_end, &tail, trailer.tail_bytes()));
        }
        Frame::open(header.clone(), trailer.clone(), &tail).map_err(damaged)?;
        Ok(StreamRegion {
            index,
            spindle: spindle.clone(),
            file: Some(file),
            lane,
            verify: core.verify,
            memory: core.streams.clone(),
            header,
            trailer,
            tail,
            _grant: grant,
            _space: record.space.clone(),
        })
    }

    pub(crate) fn file(&self) -> &Arc<SpindleFile> {
        self.file.as_ref().expect("it goes when the region is dropped")
    }

    /// Reads a stretch, less only where the file ends.
    pub(crate) fn read(&self, from: u64, to: u64, patience: &Patience) -> Result<Vec<u8>, DiskError> {
        read(&self.spindle, self.file(), from, to, self.lane, patience)
    }

    /// How long the file is.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.trailer.file_bytes
    }

    /// Header, trailer and sections.
    pub(crate) fn frame(&self) -> Result<Frame<'_>, FormatError> {
        Frame::open(self.header.clone(), self.trailer.clone(), &self.tail)
    }
}

impl Drop for StreamRegion {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            close(&self.spindle, file, Lane::HOUSE);
        }
    }
}

impl fmt::Debug for StreamRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamRegion")
            .field("index", &self.index)
            .field("file", self.file())
            .finish_non_exhaustive()
    }
}

/// Closes a file without waiting for it. If its name is gone, that frees its blocks, which is the disk's work, not a scan
/// thread's.
pub(crate) fn close(spindle: &Spindle, file: Arc<SpindleFile>, lane: Lane) {
    let (replies, _) = replies();
    let close = Op::Close { file };
    let _ = spindle.impellers.submit_at_once(lane, close, replies.tag(0), None); // Closed here, if the spindle is.
}

/// Reads a stretch of a file, less only where the file ends.
pub(crate) fn read(
    spindle: &Spindle,
    file: &Arc<SpindleFile>,
    from: u64,
    to: u64,
    lane: Lane,
    patience: &Patience,
) -> Result<Vec<u8>, DiskError> {
    // What O_DIRECT wants, around what is wanted.
    let start = from - from % DIRECT_ALIGNMENT as u64;
    let len = (to - start).next_multiple_of(DIRECT_ALIGNMENT as u64);
    let len = usize::try_from(len).expect("addresses have 64 bits");
    let failed = |source| DiskError::Failed { verb: "read", path: file.path().to_owned(), source };
    let room = Box::new(PieceBuffer::new(len, Paging::Free).map_err(failed)?);
    let op = Op::Read { file: file.clone(), offset: start, room, len };
    match spindle.impellers.run_patiently(lane, op, patience)? {
        Outcome::ReadBack { room, len } => {
            let buffer = room.into_any().downcast::<PieceBuffer>().expect("the room that was sent");
            let end = len.min((to - start) as usize);
            Ok(buffer[end.min((from - start) as usize)..end].to_vec())
        }
        other => unreachable!("a read answers with what was read, not {other:?}"),
    }
}

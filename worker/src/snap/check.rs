//! Compares every byte of a slice's files with what was written.
//!
//! The disk is read past the page cache, so that nobody's memory goes for it, and so that it is the disk that is
//! compared. Nothing is changed. Whoever asks for it decides how fast, in which lane, and for how long.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pelton_region_format::{FormatError, Place, RegionDecoder};

use crate::budget::memory::MemoryUse;
use crate::cache::CacheCore;
use crate::region::arena::{Paging, PieceBuffer};
use crate::scan::patience::{Impatience, Patience};
use crate::snap::commit::MANIFESTS;
use crate::snap::manifest::{Manifest, ManifestError, RegionRecord};
use crate::snap::recovery::MANIFEST_FILE_BYTES_MAX;
use crate::snap::stream::{StreamRegion, close, read};
use crate::snap::warm::WarmError;
use crate::spindle::engine::{DiskError, Op};
use crate::spindle::file::{DIRECT_ALIGNMENT, FileMode, SpindleFile};
use crate::spindle::held::Spindle;
use crate::spindle::impeller::Lane;

/// Reads a slice's files and compares them.
pub(crate) struct Check<'a> {
    pub(crate) core: &'a CacheCore,
    /// Where it waits for its turn at the disks.
    pub(crate) lane: Lane,
    /// What is read of a body at once, where there is memory for it.
    pub(crate) read_bytes: u64,
    pub(crate) pacer: &'a dyn Pacer,
}

/// Who says how fast files are read, and whether at all.
pub(crate) trait Pacer {
    /// Waits until so many bytes may be read.
    fn pay(&self, bytes: u64) -> Result<(), Impatience>;

    /// How long the next step may take.
    fn patience(&self) -> Patience;

    /// So many bytes of a region's body were compared.
    fn compared(&self, bytes: u64);

    /// Whether anybody still wants to know.
    fn goes_on(&self) -> bool;
}

/// Why a file is not known to be whole.
pub(crate) enum Unproven {
    Damaged(Box<Damage>),
    /// The disk refused, or there was no memory: that says nothing about the bytes.
    Unread(WarmError),
    /// There was no time, or nobody wants to know any more.
    Left,
    /// The disk names a later load already: what was asked about goes.
    Replaced,
}

/// Where the bytes are not what was written.
pub(crate) struct Damage {
    pub(crate) file: PathBuf,
    /// Which checksum block, if it is one.
    pub(crate) block: Option<u64>,
    pub(crate) error: WarmError,
}

impl From<Impatience> for Unproven {
    fn from(_: Impatience) -> Unproven {
        Unproven::Left
    }
}

impl Unproven {
    fn of(file: &Path, error: WarmError) -> Unproven {
        match error {
            error if error.is_damage() => {
                let block = block_of(&error);
                Unproven::Damaged(Box::new(Damage { file: file.to_owned(), block, error }))
            }
            error => Unproven::Unread(error),
        }
    }
}

impl Check<'_> {
    /// Compares what the disk has of a manifest with what was read when the cache was opened.
    pub(crate) fn manifest(&self, manifest: &Manifest) -> Result<(), Unproven> {
        let index = 0; // That of the home spindle.
        let Some(home) = manifest.spindles.first() else { return Ok(()) };
        let home = self.core.spindles.iter().find(|spindle| spindle.uuid == *home);
        let home = home.ok_or(Unproven::Unread(WarmError::NoSpindle { index }))?;
        let path = home.folder.join(MANIFESTS).join(Manifest::file_name(&manifest.key));
        let damaged = |why: String| Unproven::of(&path, WarmError::Manifest { why });
        let failed = |source: DiskError| match source.kind() {
            io::ErrorKind::NotFound => damaged("it is gone".to_owned()),
            _ => Unproven::Unread(WarmError::Disk { index, source }),
        };
        let open = Op::OpenFile { path: path.clone(), mode: FileMode::Direct };
        let opened = home.impellers.run_patiently(self.lane, open, &self.pacer.patience());
        let file = opened.map_err(failed)?.into_file();
        let found = self.manifest_bytes(home, &file);
        close(home, file, self.lane);
        match Manifest::decode(&found?.map_err(failed)?) {
            Ok(found) if found.is_of_the_same_load(manifest) => Ok(()),
            // Renamed into its place, and not told yet.
            Ok(found) if found.load_number > manifest.load_number => Err(Unproven::Replaced),
            Ok(found) => Err(damaged(format!("it names load {}", found.load_number))),
            Err(ManifestError::Newer { .. }) => Ok(()), // Not ours to judge: its checksum holds.
            Err(error) => Err(damaged(error.to_string())),
        }
    }

    /// No more of it than a manifest may have: a longer one is not whole then.
    fn manifest_bytes(
        &self,
        home: &Spindle,
        file: &Arc<SpindleFile>,
    ) -> Result<Result<Vec<u8>, DiskError>, Impatience> {
        let length = Op::LengthOf { file: file.clone() };
        let bytes = match home.impellers.run_patiently(self.lane, length, &self.pacer.patience()) {
            Ok(outcome) => outcome.into_length().min(MANIFEST_FILE_BYTES_MAX as u64),
            Err(error) => return Ok(Err(error)),
        };
        if bytes == 0 {
            return Ok(Ok(Vec::new())); // A disk has no read of nothing.
        }
        self.pacer.pay(bytes)?;
        Ok(read(home, file, 0, bytes, self.lane, &self.pacer.patience()))
    }

    /// Compares a region's file, from its header to its trailer.
    pub(crate) fn region(&self, manifest: &Manifest, record: &RegionRecord) -> Result<(), Unproven> {
        let file = self.file_of(manifest, record);
        let unproven = |error| Unproven::of(&file, error);
        let damaged = |source| unproven(WarmError::Damaged { index: record.index, source });
        self.pacer.pay(2 * DIRECT_ALIGNMENT as u64)?;
        let region = StreamRegion::open(
            self.core,
            manifest,
            record,
            self.lane,
            FileMode::Direct,
            &self.pacer.patience(),
        );
        let region = region.map_err(unproven)?;
        let frame = region.frame().map_err(damaged)?;
        self.pacer.pay(frame.trailer().tail_bytes())?;
        let mut decoder = RegionDecoder::over(&frame, frame.whole());
        let (mut at, until) = (decoder.feed_from(), decoder.feed_until());
        // Parcels on their way need buffers, too.
        let fitting = self.core.budget.counts().buffers_max / 4;
        let block_bytes = u64::from(frame.header().block_bytes);
        let read_bytes = (self.read_bytes.min(fitting) / block_bytes).max(1) * block_bytes;
        while at < until {
            let end = (at + read_bytes - at % read_bytes).min(until);
            self.pacer.pay(end - at)?;
            let (room, len) = self.stretch(&region, at, end).map_err(unproven)?;
            decoder.feed::<FormatError>(&room[..len], &mut |_| Ok(())).map_err(damaged)?;
            if (len as u64) < end - at {
                let (offset, found, expected) = (at, len as u64, end - at);
                return Err(damaged(FormatError::Truncated { place: Place::Body, offset, found, expected }));
            }
            self.pacer.compared(end - at);
            if !self.pacer.goes_on() {
                return Err(Unproven::Left);
            }
            at = end;
        }
        decoder.finish().map(drop).map_err(damaged)
    }

    /// Where a region lies.
    pub(crate) fn file_of(&self, manifest: &Manifest, record: &RegionRecord) -> PathBuf {
        let uuid = manifest.spindles[record.spindle as usize];
        let spindle = self.core.spindles.iter().find(|spindle| spindle.uuid == uuid);
        spindle.map_or_else(PathBuf::new, |spindle| spindle.folder.clone()).join(&record.path)
    }

    /// Reads a stretch of a region that begins at a page, less only where the file ends. Its memory is taken for that only:
    /// the next stretch may have to wait for its rate for long, and somebody else may want all that there is.
    fn stretch(
        &self,
        region: &StreamRegion,
        from: u64,
        to: u64,
    ) -> Result<(Box<PieceBuffer>, usize), WarmError> {
        let (index, patience) = (region.index, self.pacer.patience());
        let wanted = (to - from) as usize;
        let len = wanted.next_multiple_of(DIRECT_ALIGNMENT);
        let grant = self.core.budget.take_patiently(MemoryUse::Buffers, len as u64, &patience);
        let grant = grant.map_err(|source| WarmError::Memory { source })?;
        let buffer = PieceBuffer::new(len, Paging::Free);
        let buffer = buffer.map_err(|source| WarmError::Map { index, source })?;
        let room = Box::new(buffer.counted(grant));
        let op = Op::Read { file: region.file().clone(), offset: from, room, len };
        let outcome = region.spindle.impellers.run_patiently(self.lane, op, &patience);
        let (room, len) = outcome.map_err(|source| WarmError::Disk { index, source })?.into_read_back();
        Ok((room.into_any().downcast().expect("the room that was sent"), len.min(wanted)))
    }
}

fn block_of(error: &WarmError) -> Option<u64> {
    match error {
        WarmError::Damaged { source: FormatError::Damaged { place: Place::Block(block), .. }, .. } => {
            Some(*block)
        }
        _ => None,
    }
}

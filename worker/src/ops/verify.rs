//! Compares every byte of a slice's files with what was written.
//!
//! The disk is read past the page cache, so that nobody's memory goes for it, and so that it is the disk that is
//! compared. Nothing is changed.

use std::path::PathBuf;

use pelton_region_format::{FormatError, Place, RegionDecoder};

use super::operation::{DamagedFile, OnProgress, OperationError};
use crate::budget::memory::MemoryUse;
use crate::cache::CacheCore;
use crate::scan::patience::Patience;
use crate::snap::commit::MANIFESTS;
use crate::snap::manifest::{Manifest, RegionRecord};
use crate::snap::stream::StreamRegion;
use crate::snap::warm::WarmError;
use crate::spindle::engine::{DiskError, Op};
use crate::spindle::file::FileMode;
use crate::spindle::impeller::Lane;
use crate::spindle::pace::Pace;

/// What is read at once, where there is memory for it.
const READ_BYTES: u64 = 4 << 20;
/// More than any manifest.
const MANIFEST_BYTES_MAX: usize = 5 << 20;

/// Reads all of a slice's files.
pub(super) struct Verifying<'a> {
    pub(super) core: &'a CacheCore,
    pub(super) pace: &'a Pace,
    pub(super) patience: &'a Patience,
    pub(super) on_progress: Option<&'a OnProgress>,
}

/// Why a region is not known to be whole.
enum Problem {
    Damaged(FormatError),
    OtherRegion,
    NoFile,
    /// Nobody knows how it is.
    Unread(OperationError),
}

impl From<FormatError> for Problem {
    fn from(error: FormatError) -> Problem {
        Problem::Damaged(error)
    }
}

impl From<DiskError> for Problem {
    fn from(error: DiskError) -> Problem {
        Problem::Unread(disk(error))
    }
}

fn disk(error: DiskError) -> OperationError {
    match error {
        DiskError::Late { .. } => OperationError::Late,
        error => OperationError::Disk { source: error.into() },
    }
}

impl Verifying<'_> {
    /// # Errors
    /// [`OperationError`]. All files are looked at, also behind a damaged one.
    pub(super) fn verify(&self, manifest: &Manifest) -> Result<(), OperationError> {
        let mut files = Vec::new();
        files.extend(self.manifest_damage(manifest)?);
        for record in &manifest.regions {
            let (block, why) = match self.verify_region(manifest, record) {
                Ok(()) => continue,
                Err(Problem::Unread(error)) => return Err(error),
                Err(Problem::OtherRegion) => (None, "it is not the region that was committed".to_owned()),
                Err(Problem::NoFile) => (None, "it is gone".to_owned()),
                Err(Problem::Damaged(error)) => (block_of(&error), error.to_string()),
            };
            files.push(DamagedFile { path: self.path(manifest, record), block, why });
        }
        if files.is_empty() { Ok(()) } else { Err(OperationError::Damaged { files }) }
    }

    /// What is wrong with the manifest's file, if anything is.
    fn manifest_damage(&self, manifest: &Manifest) -> Result<Option<DamagedFile>, OperationError> {
        let home = manifest.spindles.first();
        let spindle = self.core.spindles.iter().find(|spindle| Some(&spindle.uuid) == home);
        let Some(spindle) = spindle else { return Ok(None) }; // Without regions it may name none.
        let path = spindle.folder.join(MANIFESTS).join(Manifest::file_name(&manifest.key));
        let read = Op::ReadSmall { path: path.clone(), bytes_max: MANIFEST_BYTES_MAX };
        let bytes =
            spindle.impellers.run_patiently(Lane::HOUSE, read, self.patience).map_err(disk)?.into_bytes();
        let why = match Manifest::decode(&bytes) {
            Ok(found) if found.is_of_the_same_load(manifest) => return Ok(None),
            Ok(_) => "the manifest is another one than was read before".to_owned(),
            Err(error) => error.to_string(),
        };
        Ok(Some(DamagedFile { path, block: None, why }))
    }

    fn verify_region(&self, manifest: &Manifest, record: &RegionRecord) -> Result<(), Problem> {
        let opened = StreamRegion::open(
            self.core,
            manifest,
            record,
            self.core.next_lane(),
            FileMode::Direct,
            self.patience,
        );
        let region = opened.map_err(|error| match error {
            WarmError::Damaged { source, .. } => Problem::Damaged(source),
            WarmError::OtherRegion { .. } => Problem::OtherRegion,
            WarmError::NoFile { .. } => Problem::NoFile,
            WarmError::Disk { source, .. } => source.into(),
            WarmError::Memory { source } => Problem::Unread(OperationError::Memory { source }),
            error => Problem::Unread(OperationError::Warm { source: error.into() }),
        })?;
        let frame = region.frame()?;
        let block_bytes = u64::from(frame.header().block_bytes);
        // Parcels on their way need buffers, too.
        let fitting = self.core.budget.counts().buffers_max / 4;
        let read_bytes = (READ_BYTES.min(fitting) / block_bytes).max(1) * block_bytes;
        // What the disk writes to, and what of it is handed on.
        let taken = self.core.budget.take_patiently(MemoryUse::Buffers, 2 * read_bytes, self.patience);
        let _grant = taken.map_err(|source| Problem::Unread(OperationError::Memory { source }))?;
        let mut decoder = RegionDecoder::over(&frame, frame.whole());
        let (mut at, until) = (decoder.feed_from(), decoder.feed_until());
        while at < until {
            let end = (at + read_bytes - at % read_bytes).min(until);
            self.pace.wait(end - at, self.patience).map_err(|_| Problem::Unread(OperationError::Late))?;
            let bytes = region.read(at, end, self.patience)?;
            decoder.feed::<FormatError>(&bytes, &mut |_| Ok(()))?;
            if (bytes.len() as u64) < end - at {
                let (offset, found, expected) = (at, bytes.len() as u64, end - at);
                return Err(FormatError::Truncated { place: Place::Body, offset, found, expected }.into());
            }
            if let Some(on_progress) = self.on_progress {
                on_progress.tell(end - at);
            }
            at = end;
        }
        decoder.finish()?;
        Ok(())
    }

    fn path(&self, manifest: &Manifest, record: &RegionRecord) -> PathBuf {
        let uuid = manifest.spindles[record.spindle as usize];
        let spindle = self.core.spindles.iter().find(|spindle| spindle.uuid == uuid);
        spindle.map_or_else(PathBuf::new, |spindle| spindle.folder.clone()).join(&record.path)
    }
}

/// Which block is damaged, if the error says so.
fn block_of(error: &FormatError) -> Option<u64> {
    match error {
        FormatError::Damaged { place: Place::Block(block), .. } => Some(*block),
        _ => None,
    }
}

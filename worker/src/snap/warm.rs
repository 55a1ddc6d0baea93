//! Brings a slice's files into memory.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use pelton_region_format::{FormatError, RegionView};

use crate::budget::memory::{MemoryGrant, MemoryRefused, MemoryUse};
use crate::cache::CacheCore;
use crate::config::Verify;
use crate::region::map::{RegionMap, SealedFile};
use crate::scan::patience::Patience;
use crate::snap::hot::{HotRegion, HotSlice};
use crate::snap::manifest::{Manifest, RegionRecord};
use crate::spindle::engine::{DiskError, Op};
use crate::spindle::file::FileMode;
use crate::spindle::held::Spindle;

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
    /// The disk refused while the file was mapped or populated.
    #[error("region {index} could not be mapped")]
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
}

/// Maps, populates and verifies all regions of a slice, each on a thread of its own.
pub(crate) fn warm(
    core: &CacheCore,
    manifest: &Manifest,
    deadline: Option<Instant>,
) -> Result<Arc<HotSlice>, WarmError> {
    // All of it or none: regions that fit one by one would wait for each other.
    let file_bytes = manifest.regions.iter().map(|region| region.file_bytes).sum();
    let mut grant = core
        .budget
        .take(MemoryUse::Mapped, file_bytes, deadline)
        .map_err(|source| WarmError::Memory { source })?;
    // As many at a time as there are cores: populating and verifying are their work, waiting is the disk's.
    let mut regions = Vec::with_capacity(manifest.regions.len());
    for batch in manifest.regions.chunks(core.scan_threads.count()) {
        let warmed: Vec<Result<Arc<HotRegion>, WarmError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = batch
                .iter()
                .map(|record| (record, grant.split(record.file_bytes)))
                .map(|(record, grant)| {
                    scope.spawn(move || warm_region(core, manifest, record, grant, deadline))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("warming does not panic")).collect()
        });
        for region in warmed {
            regions.push(region?);
        }
    }
    Ok(Arc::new(HotSlice::new(manifest.key.clone(), manifest.fingerprint, manifest.load_number, regions)))
}

/// Compares a slice that is in memory with its checksums, on as many threads as scan.
pub(crate) fn verify_slice(
    slice: &HotSlice,
    threads: usize,
    deadline: Option<Instant>,
) -> Result<(), WarmError> {
    let patience = Patience::until(deadline);
    for batch in slice.regions.chunks(threads) {
        std::thread::scope(|scope| {
            let patience = &patience;
            let verify = |region| scope.spawn(move || verify_region(region, patience));
            let threads: Vec<_> = batch.iter().map(|region| verify(&**region)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("comparing does not panic"))
        })?;
    }
    Ok(())
}

fn verify_region(region: &HotRegion, patience: &Patience) -> Result<(), WarmError> {
    let index = region.index;
    let damaged = |source| WarmError::Damaged { index, source };
    let view = RegionView::open(&region.bytes).map_err(damaged)?;
    for block in 0..view.block_count() {
        patience.check().map_err(|_| WarmError::Late { index })?;
        view.verify_block(block).map_err(damaged)?;
    }
    Ok(())
}

fn warm_region(
    core: &CacheCore,
    manifest: &Manifest,
    record: &RegionRecord,
    grant: MemoryGrant,
    deadline: Option<Instant>,
) -> Result<Arc<HotRegion>, WarmError> {
    let index = record.index;
    let uuid = manifest.spindles[record.spindle as usize];
    let spindle =
        core.spindles.iter().find(|spindle| spindle.uuid == uuid).ok_or(WarmError::NoSpindle { index })?;
    let map = map_region(spindle, record, deadline)?;
    let view = RegionView::open(&map).map_err(|source| WarmError::Damaged { index, source })?;
    if view.frame().map(|frame| frame.trailer().content_id) != Some(record.content_id()) {
        return Err(WarmError::OtherRegion { index });
    }
    let mut verified = 0;
    let mut damage = None;
    map.populate(|reached| {
        // A block is looked at while it is in the cache of this core: right after it was read.
        while core.verify != Verify::Never
            && damage.is_none()
            && verified < view.block_count()
            && view.frame().is_some_and(|frame| frame.block_range(verified).end <= reached as u64)
        {
            damage = view.verify_block(verified).err();
            verified += 1;
        }
    })
    .map_err(|source| WarmError::Map { index, source })?;
    if let Some(source) = damage {
        return Err(WarmError::Damaged { index, source });
    }
    Ok(Arc::new(HotRegion::mapped(index, map, grant, record.space.clone())))
}

fn map_region(
    spindle: &Spindle,
    record: &RegionRecord,
    deadline: Option<Instant>,
) -> Result<RegionMap, WarmError> {
    let index = record.index;
    let open = Op::OpenFile { path: spindle.folder.join(&record.path), mode: FileMode::Buffered };
    let file = spindle
        .impellers
        .run(open, deadline)
        .map_err(|source| WarmError::Disk { index, source })?
        .into_file();
    let map = || {
        let file = File::from(file.as_fd().try_clone_to_owned()?);
        RegionMap::new(SealedFile::committed(file, record.file_bytes)?)
    };
    map().map_err(|source| WarmError::Map { index, source })
}

//! A slice in memory: what leases hold and scans read.

use std::ops::Deref;
use std::sync::Arc;

use pelton_region_format::{Fingerprint, FormatError, Key};

use crate::budget::memory::MemoryGrant;
use crate::region::arena::Image;
use crate::region::map::RegionMap;
use crate::scan::patience::{Impatience, Patience};
use crate::snap::manifest::FileCount;
use crate::spindle::engine::DiskError;

/// Where a hot region's bytes lie.
#[derive(Debug)]
pub(crate) enum RegionBytes {
    /// In our own memory: just loaded, or read by the cache.
    Image(Image),
    /// In the page cache: a sealed file, mapped.
    Map(RegionMap),
}

impl Deref for RegionBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            RegionBytes::Image(image) => image,
            RegionBytes::Map(map) => map,
        }
    }
}

/// Why a region's bytes can't be read on.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "so far a lease is given when all bytes are there")]
pub(crate) enum RegionFault {
    /// Whoever asked waits no longer.
    Impatience(Impatience),
    Damaged(Box<FormatError>),
    Disk(Arc<DiskError>),
    /// The file behind it became shorter.
    Lost,
}

/// One region in memory.
#[derive(Debug)]
pub(crate) struct HotRegion {
    /// Which region of its slice.
    pub(crate) index: u32,
    pub(crate) bytes: RegionBytes,
    /// What it takes of the memory budget. Dropped after the bytes.
    _grant: MemoryGrant,
    /// What its file takes of the disk, if it is mapped: also when the file has no name any more.
    _space: FileCount,
}

impl HotRegion {
    pub(crate) fn new(index: u32, bytes: RegionBytes, grant: MemoryGrant) -> HotRegion {
        HotRegion { index, bytes, _grant: grant, _space: FileCount::default() }
    }

    /// One that is mapped.
    pub(crate) fn mapped(index: u32, map: RegionMap, grant: MemoryGrant, space: FileCount) -> HotRegion {
        HotRegion { index, bytes: RegionBytes::Map(map), _grant: grant, _space: space }
    }

    /// Up to which file offset bytes may be read now. Waits until that is beyond `from`.
    pub(crate) fn readable(&self, _from: u64, _patience: &Patience) -> Result<u64, RegionFault> {
        Ok(self.bytes.len() as u64) // A lease is given when all bytes are there.
    }

    /// Whether the bytes can still be trusted after they were read: a map that lost its file's end shows zeros.
    pub(crate) fn is_whole(&self) -> bool {
        match &self.bytes {
            RegionBytes::Image(_) => true,
            RegionBytes::Map(map) => map.is_whole(),
        }
    }
}

/// All regions of a slice in memory. Leases share it; its memory goes with the last of them.
#[derive(Debug)]
pub(crate) struct HotSlice {
    pub(crate) key: Key,
    pub(crate) fingerprint: Fingerprint,
    /// Which load it came from: tells it from what another load has brought to the disk.
    pub(crate) load_number: u64,
    pub(crate) regions: Vec<Arc<HotRegion>>,
}

impl HotSlice {
    pub(crate) fn new(
        key: Key,
        fingerprint: Fingerprint,
        load_number: u64,
        regions: Vec<Arc<HotRegion>>,
    ) -> HotSlice {
        HotSlice { key, fingerprint, load_number, regions }
    }
}

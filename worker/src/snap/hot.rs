//! A slice in memory: what leases hold and scans read.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use crossbeam_channel::Receiver;
use pelton_region_format::{Fingerprint, FormatError, Frame, Header, Key, PAGE_BYTES, Trailer};

use crate::budget::memory::MemoryGrant;
use crate::region::arena::Image;
use crate::region::map::RegionMap;
use crate::region::watermark::{RegionFault, Watermark};
use crate::scan::patience::Patience;
use crate::snap::manifest::FileCount;
use crate::snap::reaper::{ReaperInbox, Remains};
use crate::snap::state::Version;
use crate::snap::warm::WarmError;
use crate::spindle::held::Spindle;

/// Where a hot region's bytes lie.
#[derive(Debug)]
pub(crate) enum RegionBytes {
    /// In our own memory: just loaded, or read by the cache.
    Image(Image),
    /// In the page cache: a sealed file, mapped.
    Map(RegionMap),
}

impl RegionBytes {
    /// How many bytes it has when all are there.
    pub(crate) fn len(&self) -> u64 {
        match self {
            RegionBytes::Image(image) => image.len() as u64,
            RegionBytes::Map(map) => map.bytes().len() as u64,
        }
    }

    /// Its bytes from the start: of an image, those that have come from the disk.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            RegionBytes::Image(image) => image.bytes(),
            RegionBytes::Map(map) => map.bytes(),
        }
    }

    /// How much of it is in the page cache, if it is mapped.
    pub(crate) fn mapped_resident_bytes(&self) -> io::Result<u64> {
        match self {
            RegionBytes::Image(_) => Ok(0),
            RegionBytes::Map(map) => map.resident_bytes(),
        }
    }

    /// Header, trailer and sections, which are there before the body is.
    pub(crate) fn frame(&self) -> Result<Frame<'_>, FormatError> {
        let first = self.bytes();
        let header = Header::decode(&first[..first.len().min(PAGE_BYTES)])?;
        let len = self.len();
        let tail = |offset: u64| match self {
            RegionBytes::Image(image) => image.bytes_from(offset as usize),
            RegionBytes::Map(map) => &map.bytes()[offset as usize..],
        };
        // A file that is too short for a trailer is told from the empty page that it is taken for.
        let last_page = len.checked_sub(PAGE_BYTES as u64).map_or(&[][..], tail);
        let trailer = Trailer::decode(last_page, &header, len)?;
        let body_end = trailer.body_end;
        Frame::open(header, trailer, tail(body_end))
    }
}

/// One region in memory, or on its way there.
#[derive(Debug)]
pub(crate) struct HotRegion {
    /// Which region of its slice.
    pub(crate) index: u32,
    /// Always there; taken when it is dropped.
    bytes: Option<RegionBytes>,
    watermark: Watermark,
    /// What a map takes of the memory budget. Given back after the bytes are unmapped. An image has its own.
    grant: Option<MemoryGrant>,
    /// What its file takes of the disk, if it is mapped: also when the file has no name any more.
    space: FileCount,
    reaper: ReaperInbox,
    /// Where its file lies, if it came from one.
    spindle: Weak<Spindle>,
    /// Set by an evict, read when the last lease has dropped.
    drops_cache: AtomicBool,
}

impl HotRegion {
    /// A region that is whole: just loaded.
    pub(crate) fn loaded(index: u32, image: Image, reaper: ReaperInbox) -> HotRegion {
        let bytes = RegionBytes::Image(image);
        HotRegion {
            index,
            watermark: Watermark::complete(bytes.len()),
            bytes: Some(bytes),
            grant: None,
            space: FileCount::default(),
            reaper,
            spindle: Weak::new(),
            drops_cache: AtomicBool::new(false),
        }
    }

    /// A region whose frame was read and checked. The rest is to come, unless it is known to be there.
    pub(crate) fn from_file(
        index: u32,
        bytes: RegionBytes,
        is_there: bool,
        grant: MemoryGrant,
        space: FileCount,
        reaper: ReaperInbox,
        spindle: Weak<Spindle>,
    ) -> HotRegion {
        let len = bytes.len();
        let grant = match &bytes {
            RegionBytes::Image(image) => {
                image.pay(grant);
                None
            }
            RegionBytes::Map(_) => Some(grant),
        };
        HotRegion {
            index,
            watermark: if is_there { Watermark::complete(len) } else { Watermark::new(len) },
            bytes: Some(bytes),
            grant,
            space,
            reaper,
            spindle,
            drops_cache: AtomicBool::new(false),
        }
    }

    pub(crate) fn bytes(&self) -> &RegionBytes {
        self.bytes.as_ref().expect("taken only when the region is dropped")
    }

    /// How far it is.
    pub(crate) fn watermark(&self) -> &Watermark {
        &self.watermark
    }

    /// The file offset up to which bytes may be read now, once it is beyond `from`; at the end it is the length.
    ///
    /// # Errors
    /// [`RegionFault`]; what was readable before stays so.
    pub(crate) fn readable(&self, from: u64, patience: &Patience) -> Result<u64, RegionFault> {
        self.watermark.readable(from, patience)
    }

    /// All its bytes, once they are there.
    ///
    /// # Errors
    /// [`RegionFault`].
    pub(crate) fn whole(&self, patience: &Patience) -> Result<&[u8], RegionFault> {
        let mut at = 0;
        while at < self.bytes().len() {
            at = self.readable(at, patience)?;
        }
        Ok(self.bytes().bytes())
    }

    /// Why its bytes can't be trusted any more, if [`is_whole`](HotRegion::is_whole) says so.
    pub(crate) fn why_lost(&self) -> WarmError {
        let (index, expected) = (self.index, self.bytes().len());
        match self.bytes() {
            RegionBytes::Map(map) if map.has_its_length() => {
                let source = io::Error::other("the disk could not be read while it was scanned");
                WarmError::Map { index, source }
            }
            _ => WarmError::OtherLength { index, expected },
        }
    }

    /// Whether the bytes can still be trusted after they were read: a map that lost its file's end shows zeros.
    pub(crate) fn is_whole(&self) -> bool {
        match self.bytes() {
            RegionBytes::Image(_) => true,
            RegionBytes::Map(map) => map.is_whole(),
        }
    }
}

impl Drop for HotRegion {
    fn drop(&mut self) {
        let bytes = self.bytes.take().expect("it is dropped once");
        let dropped = match &bytes {
            RegionBytes::Map(map) if *self.drops_cache.get_mut() => {
                Some((self.spindle.clone(), map.file().clone()))
            }
            _ => None,
        };
        let space = std::mem::take(&mut self.space);
        self.reaper.bury(Remains { bytes, grant: self.grant.take(), space, dropped });
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
    /// Hangs up when nothing of it is on its way into memory any more. None if it was loaded.
    hauled: Option<Receiver<Infallible>>,
}

impl HotSlice {
    pub(crate) fn new(
        key: Key,
        fingerprint: Fingerprint,
        load_number: u64,
        regions: Vec<Arc<HotRegion>>,
        hauled: Option<Receiver<Infallible>>,
    ) -> HotSlice {
        HotSlice { key, fingerprint, load_number, regions, hauled }
    }

    /// Whether it came from its source, and not from the disk.
    pub(crate) fn was_loaded(&self) -> bool {
        self.hauled.is_none()
    }

    /// Whether all of it is in memory of our own: nothing that happens to its files reaches it.
    pub(crate) fn is_whole_image(&self) -> bool {
        let is_image = |region: &HotRegion| matches!(region.bytes(), RegionBytes::Image(_));
        self.regions.iter().all(|region| is_image(region) && region.watermark().is_complete())
    }

    /// What the decider calls it.
    pub(crate) fn version(&self) -> Version {
        Version { load: self.load_number, fingerprint: self.fingerprint }
    }

    /// How many bytes its regions have.
    pub(crate) fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes().len()).sum()
    }

    /// Gives up one share. If it was the last one, what is on its way into memory ends within a step: waits for
    /// that, to the deadline.
    pub(crate) fn give_up(slice: Arc<HotSlice>, deadline: Instant) {
        let hauled = slice.hauled.clone();
        if Arc::into_inner(slice).is_some()
            && let Some(hauled) = hauled
        {
            let _ = hauled.recv_deadline(deadline);
        }
    }

    /// Whether the page cache of its files goes with its memory.
    pub(crate) fn drop_cache_too(&self, drops: bool) {
        for region in &self.regions {
            region.drops_cache.store(drops, Ordering::Relaxed); // Read after the last share is gone.
        }
    }

    /// Whether all of it lies in maps whose bytes were verified since they came from the disk.
    pub(crate) fn is_verified_in_maps(&self) -> bool {
        let is_verified = |region: &Arc<HotRegion>| {
            matches!(region.bytes(), RegionBytes::Map(_)) && region.watermark.is_complete()
        };
        self.regions.iter().all(is_verified)
    }
}

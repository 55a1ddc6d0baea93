//! A sealed slice as who copies it sees it: its regions' files, open, and what they have to be.
//!
//! Regions that lie in memory of the cache's own are given from there: their files may not be in the page cache. All
//! others are given as open files, for `sendfile` and the like. Nothing is brought into memory for it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use pelton_region_format::{Fingerprint, Key};

use crate::cache::{Cache, CacheCore, Entry, Snap, Want};
use crate::scan::lease::{Held, LeaseError};
use crate::scan::patience::Patience;
use crate::slice::sealed::SealedRegion;
use crate::snap::desk::Reply;
use crate::snap::hot::{HotRegion, HotSlice, RegionBytes};
use crate::snap::manifest::Manifest;
use crate::snap::state::{Decider, SnapEvent};
use crate::snap::stream::StreamRegion;
use crate::snap::warm::WarmError;
use crate::spindle::file::FileMode;

/// A sealed slice, to be copied elsewhere.
///
/// As long as it lives it counts as leased: nothing takes it from the disk to make room. Who flushes or replaces it does not
/// wait for that; regions that are [open](SliceOutlet::region) can be read to their end all the same.
#[derive(Clone)]
pub struct SliceOutlet {
    core: Arc<CacheCore>,
    entry: Arc<Entry>,
    fingerprint: Fingerprint,
    region_count: u32,
    hot: Option<Arc<HotSlice>>,
    manifest: Option<Arc<Manifest>>,
    held: Arc<Held>,
}

/// One region of a slice that is copied: what it is, and where its bytes are to be had.
#[derive(Clone)]
pub struct RegionOutlet {
    region: SealedRegion,
    block_checksums: Arc<[u32]>,
    bytes: Bytes,
    /// Keeps the slice leased.
    held: Arc<Held>,
}

#[derive(Clone)]
enum Bytes {
    Memory(Arc<HotRegion>),
    File(Arc<StreamRegion>),
}

/// Why a region can't be had for a copy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutletError {
    /// The slice has no such region: it got no blob, or there is none of that number.
    #[error("{key} has no file of region {index}")]
    NoRegion {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
    },
    /// The slice was flushed or replaced since: ask for it anew.
    #[error("{key} is gone, or another one by now")]
    Gone {
        /// The slice.
        key: Key,
    },
    /// Its file could not be read, or is damaged.
    #[error("a region of {key} could not be read")]
    Read {
        /// The slice.
        key: Key,
        /// Which region, and why.
        source: Box<WarmError>,
    },
}

impl Cache {
    /// A slice that is here, to be copied elsewhere. Loads nothing, and brings nothing into memory.
    ///
    /// # Errors
    /// [`LeaseError::NotThere`], also of one that is still being loaded; [`LeaseError::OtherFingerprint`],
    /// [`LeaseError::Closed`], [`LeaseError::Deadline`].
    pub fn outlet(
        &self,
        key: &Key,
        want: Want,
        deadline: Option<Instant>,
    ) -> Result<SliceOutlet, LeaseError> {
        self.snap_within(key, deadline)?.outlet(want)
    }
}

impl Snap {
    /// What is here of the slice, to be copied elsewhere, as [`Cache::outlet`].
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn outlet(&self, want: Want) -> Result<SliceOutlet, LeaseError> {
        let snap = self.current();
        let (core, entry) = (snap.core(), snap.entry());
        let key = || entry.key.clone();
        if core.is_closed() {
            return Err(LeaseError::Closed { key: key() });
        }
        // From one look to the next all may change; then the next tells.
        let hot = snap.lease_what_is_hot(want);
        let manifest = entry.manifest().filter(|manifest| match &hot {
            Some((hot, _)) => manifest.load_number == hot.load_number,
            None => is(want, manifest.fingerprint),
        });
        let found = || entry.desk.look(Decider::version).map(|version| version.fingerprint);
        let (fingerprint, held) = match (&hot, &manifest) {
            (Some((hot, held)), _) => (hot.fingerprint, held.clone()),
            (None, Some(manifest)) => {
                let fingerprint = manifest.fingerprint;
                (fingerprint, Held::new(entry.clone(), fingerprint, None))
            }
            (None, None) => {
                return Err(match (want, found()) {
                    (Want::Fingerprint(expected), Some(found)) if found != expected => {
                        LeaseError::OtherFingerprint { key: key(), found, expected: Box::new(expected) }
                    }
                    _ => LeaseError::NotThere { key: key() },
                });
            }
        };
        let hot = hot.map(|(hot, _)| hot);
        let of_header = || {
            let frame = hot.as_ref()?.regions.first()?.bytes().frame().ok()?;
            Some(frame.header().region_count)
        };
        let region_count = manifest.as_ref().map(|manifest| manifest.region_count).or_else(of_header);
        Ok(SliceOutlet {
            core: core.clone(),
            entry: entry.clone(),
            fingerprint,
            region_count: region_count.unwrap_or(1), // Without any blob they may have been dealt over any number.
            hot,
            manifest,
            held,
        })
    }

    /// A lease on what is in memory now, if it is wanted. Waits for nothing.
    fn lease_what_is_hot(&self, want: Want) -> Option<(Arc<HotSlice>, Arc<Held>)> {
        let entry = self.entry();
        let is_served = |snap: &Decider| snap.served().is_some_and(|version| is(want, version.fingerprint));
        let lease = |waiter| SnapEvent::Lease { waiter, want, offer: None };
        let now = Patience::until(Some(Instant::now()));
        match entry.ask_if(is_served, lease, &now)? {
            Reply::Lease(version, hot) => {
                let held = Held::new(entry.clone(), version.fingerprint, Some(version));
                Some((hot, held))
            }
            Reply::Other(_) => None,
        }
    }
}

impl SliceOutlet {
    /// The slice.
    pub fn key(&self) -> &Key {
        &self.entry.key
    }

    /// What decided its blobs.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Over how many regions its blobs are dealt.
    pub fn region_count(&self) -> u32 {
        self.region_count
    }

    /// Which of them have a file, in their order.
    pub fn region_indexes(&self) -> Vec<u32> {
        match (&self.hot, &self.manifest) {
            (Some(hot), _) => hot.regions.iter().map(|region| region.index).collect(),
            (None, Some(manifest)) => manifest.regions.iter().map(|region| region.index).collect(),
            (None, None) => Vec::new(),
        }
    }

    /// Opens one region, and reads and checks what says how its blocks have to be. The blocks are not read.
    ///
    /// # Errors
    /// [`OutletError`].
    pub fn region(&self, index: u32, deadline: Option<Instant>) -> Result<RegionOutlet, OutletError> {
        let key = || self.key().clone();
        let read = |source| OutletError::Read { key: key(), source: Box::new(source) };
        let damaged = |source| read(WarmError::Damaged { index, source });
        let hot = self.hot.as_ref().and_then(|hot| hot.regions.iter().find(|region| region.index == index));
        let is_image = |region: &&Arc<HotRegion>| {
            matches!(region.bytes(), RegionBytes::Image(_)) && region.watermark().is_complete()
        };
        if let Some(region) = hot.filter(is_image) {
            let frame = region.bytes().frame().map_err(damaged)?;
            return Ok(RegionOutlet {
                region: SealedRegion::of(index, &frame),
                block_checksums: frame.block_checksums().collect(),
                bytes: Bytes::Memory(region.clone()),
                held: self.held.clone(),
            });
        }
        let Some(manifest) = &self.manifest else {
            return Err(match hot {
                None => OutletError::NoRegion { key: key(), index },
                Some(_) => OutletError::Gone { key: key() }, // Its files were another load's when they were looked for.
            });
        };
        let record = manifest.regions.binary_search_by_key(&index, |record| record.index);
        let record = record.map_err(|_| OutletError::NoRegion { key: key(), index })?;
        let patience = Patience::until(deadline);
        let lane = self.core.next_lane();
        let record = &manifest.regions[record];
        // Through the page cache: that is what `sendfile` sends from.
        let opened = StreamRegion::open(&self.core, manifest, record, lane, FileMode::Buffered, &patience);
        let file = opened.map_err(|source| {
            let is_there = self.entry.manifest().is_some_and(|now| Arc::ptr_eq(&now, manifest));
            if is_there { read(source) } else { OutletError::Gone { key: key() } }
        })?;
        let frame = file.frame().map_err(damaged)?;
        Ok(RegionOutlet {
            region: SealedRegion::of(index, &frame),
            block_checksums: frame.block_checksums().collect(),
            bytes: Bytes::File(Arc::new(file)),
            held: self.held.clone(),
        })
    }
}

impl RegionOutlet {
    /// What it is.
    pub fn region(&self) -> &SealedRegion {
        &self.region
    }

    /// The CRC-32C of each block of the body, in order. Header and end are checked, the body is not.
    pub fn block_checksums(&self) -> &[u32] {
        &self.block_checksums
    }

    /// The whole file's bytes, if they lie in the cache's memory.
    pub fn memory(&self) -> Option<&[u8]> {
        match &self.bytes {
            Bytes::Memory(region) => Some(region.bytes().bytes()),
            Bytes::File(_) => None,
        }
    }

    /// The open file, if its bytes are to be had from there. It is read-only and never changes; a read may wait for the
    /// disk.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.bytes {
            Bytes::Memory(_) => None,
            Bytes::File(file) => Some(file.file().as_fd()),
        }
    }

    /// Copies a stretch of the file's bytes, from wherever they are; fewer only where the file ends. A disk is waited for
    /// to the deadline, by its own threads.
    ///
    /// # Errors
    /// [`OutletError::Read`].
    pub fn read(&self, from: u64, to: u64, deadline: Option<Instant>) -> Result<Vec<u8>, OutletError> {
        let (from, to) = (from.min(self.region.file_bytes), to.min(self.region.file_bytes));
        match &self.bytes {
            Bytes::Memory(region) => {
                Ok(region.bytes().bytes()[from as usize..to.max(from) as usize].to_vec())
            }
            Bytes::File(_) if to <= from => Ok(Vec::new()),
            Bytes::File(file) => file.read(from, to, &Patience::until(deadline)).map_err(|source| {
                let source = Box::new(WarmError::Disk { index: self.region.index, source });
                OutletError::Read { key: self.held.key().clone(), source }
            }),
        }
    }
}

impl std::fmt::Debug for SliceOutlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SliceOutlet")
            .field("key", self.key())
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RegionOutlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegionOutlet").field("region", &self.region).finish_non_exhaustive()
    }
}

/// Whether a version is what somebody wants.
fn is(want: Want, fingerprint: Fingerprint) -> bool {
    match want {
        Want::Latest => true,
        Want::Fingerprint(wanted) => wanted == fingerprint,
    }
}

#[cfg(test)]
mod tests;

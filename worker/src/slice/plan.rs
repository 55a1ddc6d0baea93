//! What a loader wants of a load.

use std::sync::Arc;
use std::time::Instant;

use pelton_region_format::{ALIGNMENT_DEFAULT, Fingerprint};

use crate::budget::memory::MemoryBudget;
use crate::slice::deal::Deal;
use crate::slice::sealed::{self, NotASlice, SealedRegion};
use crate::spindle::placement::RegionSizes;

/// Over how many regions a slice may be dealt: a manifest that names them all stays below a MiB.
pub(crate) const REGIONS_MAX: u32 = 4096;

/// When closing a load returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// At once: the slice can be scanned, and goes to the disk meanwhile.
    #[default]
    Background,
    /// When it would survive a power cut.
    Wait,
}

/// How a load goes to memory and disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WritePath {
    /// As images where the memory budget allows, else directly.
    #[default]
    Auto,
    /// The regions stay in memory while they are written, and can be scanned the moment they are sealed. One
    /// that the memory budget has no room for goes directly all the same.
    Image,
    /// A few pieces are used again and again, and no region stays in memory.
    Direct,
}

/// What becomes of a load that a [`Loader`](crate::Loader) is at when nobody waits for it any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unwanted {
    /// It goes on: whoever asks next finds the slice, or waits for the same load.
    #[default]
    GoOn,
    /// It is cancelled.
    Cancel,
}

/// What a loader wants of a load.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadPlan {
    /// What decides the slice's blobs. Part of the slice's identity.
    pub fingerprint: Fingerprint,
    /// Over how many regions the blobs are dealt. By default one for each scan thread.
    pub regions: Option<u32>,
    /// How they are dealt.
    pub deal: Deal,
    /// Every blob begins at a multiple of this.
    pub alignment: u32,
    /// When closing returns.
    pub durability: Durability,
    /// How the load goes to memory and disk.
    pub write_path: WritePath,
    /// About how many bytes of blobs will come. So much disk space is taken when the load is opened, or the load
    /// is refused; more is taken as it comes. By it `WritePath::Auto` decides, too, whether to begin with images.
    pub expected_bytes: Option<u64>,
    /// How many bytes of blobs may come: the load fails when more do. Of finished files it is known before, and such a load is
    /// refused.
    pub max_bytes: Option<u64>,
    /// Until when the load waits as a whole, from opening to closing: for other loads, memory and disks. By default
    /// as long as it takes.
    pub deadline: Option<Instant>,
    /// What becomes of the load when nobody waits for it any more. A load through the four calls has an owner, and so
    /// goes on.
    pub unwanted: Unwanted,
    /// Whether a load fails of which another number of blobs arrives than [`Counts::expected`](crate::Counts) says.
    /// Otherwise that is told, and the slice is served.
    pub strict_counts: bool,
    /// The regions, if they come as finished files and not as blobs: then the load takes their bytes
    /// ([`SliceWriter::region_intake`](crate::SliceWriter::region_intake)) and no parcels, and disk space for exactly them.
    pub sealed: Option<Arc<[SealedRegion]>>,
}

impl LoadPlan {
    /// A plan with nothing but the fingerprint chosen.
    pub fn new(fingerprint: Fingerprint) -> LoadPlan {
        LoadPlan {
            fingerprint,
            regions: None,
            deal: Deal::default(),
            alignment: ALIGNMENT_DEFAULT,
            durability: Durability::default(),
            write_path: WritePath::default(),
            expected_bytes: None,
            max_bytes: None,
            deadline: None,
            unwanted: Unwanted::default(),
            strict_counts: false,
            sealed: None,
        }
    }

    /// A plan for regions that come as finished files: those of a slice that is dealt over `region_count`, where a region
    /// without a blob has no file.
    pub fn of_sealed(fingerprint: Fingerprint, region_count: u32, sealed: Vec<SealedRegion>) -> LoadPlan {
        let bytes = sealed.iter().fold(0, |sum: u64, region| sum.saturating_add(region.file_bytes));
        LoadPlan {
            regions: Some(region_count),
            expected_bytes: Some(bytes),
            sealed: Some(sealed.into()),
            ..LoadPlan::new(fingerprint)
        }
    }

    /// Whether it can be a slice's.
    pub(crate) fn check(&self, regions_default: u32) -> Result<(), NotASlice> {
        sealed::check(self.region_count(regions_default), self.sealed.as_deref().unwrap_or_default())
    }

    /// How many bytes of blobs finished files have, if that is more than may come.
    pub(crate) fn too_much(&self) -> Option<(u64, u64)> {
        let sealed = self.sealed.as_deref()?;
        let bytes = sealed.iter().fold(0, |sum: u64, region| sum.saturating_add(region.blob_bytes));
        self.max_bytes.filter(|bytes_max| bytes > *bytes_max).map(|bytes_max| (bytes, bytes_max))
    }

    /// Over how many regions the blobs are dealt.
    pub(crate) fn region_count(&self, regions_default: u32) -> u32 {
        self.regions.unwrap_or(regions_default)
    }

    /// How much disk space its regions are promised.
    pub(crate) fn sizes(&self, regions_default: u32) -> RegionSizes {
        match &self.sealed {
            Some(sealed) => RegionSizes::exactly(sealed.iter().map(|region| region.file_bytes)),
            None => RegionSizes::dealt(self.region_count(regions_default), self.expected_bytes),
        }
    }

    /// Whether the load begins with images, when so much is expected.
    pub(crate) fn keeps_image(&self, expected_bytes: Option<u64>, budget: &MemoryBudget) -> bool {
        match self.write_path {
            WritePath::Image => true,
            WritePath::Direct => false,
            // Half of what there is: a load that will not fit as images need not begin as one.
            WritePath::Auto => expected_bytes.is_none_or(|bytes| bytes <= budget.counts().residence_max / 2),
        }
    }
}

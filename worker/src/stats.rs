//! What a cache has done since it was opened, and what it holds now, as a plain value.
//!
//! ```text
//! whatever happens ──▶ meter (relaxed counters) ──▶ CacheStats, on request
//!                        └──▶ the recorder of the `metrics` facade, if there is one
//! ```
//!
//! Each figure is right by itself. They are not taken at one moment: two that belong together may be one event apart.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::spindle::engine::OpKind;
use crate::spindle::health::HealthState;
use crate::stats::wait_times::WaitTimes;

pub(crate) mod meter;
pub(crate) mod recorder;
pub(crate) mod spread;
#[cfg(test)]
mod tests;
pub(crate) mod wait_times;

/// What a cache has done since it was opened, and what it holds now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CacheStats {
    /// Leases, by where their bytes came from.
    pub leases: LeaseStats,
    /// Loads from the source.
    pub loads: LoadStats,
    /// Slices on their way to the disk.
    pub commits: WayStats,
    /// Slices on their way from the disk into memory.
    pub warmings: WayStats,
    /// Slices that left memory.
    pub evictions: LeftStats,
    /// Slices that left the disks.
    pub flushes: LeftStats,
    /// Snaps that were forgotten.
    pub erasures: u64,
    /// How often bytes from a disk were not what was written, the scrub's finds included.
    pub verification_failures: u64,
    /// What the scrub has done.
    pub scrub: ScrubStats,
    /// Memory that is taken now.
    pub memory: MemoryStats,
    /// The spindles, in their order.
    pub spindles: Vec<SpindleStats>,
    /// How long things took.
    pub waits: WaitStats,
    /// How many events listeners lost, since they did not take them in time.
    pub events_lost: u64,
}

/// Leases, by where their bytes came from: each is counted once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeaseStats {
    /// They were in memory.
    pub hot: u64,
    /// They were brought from the disk into memory first.
    pub warm: u64,
    /// Each scan reads them from the disk.
    pub stream: u64,
    /// A load was waited for.
    pub cold: u64,
    /// Nothing was known of the slice, or only another fingerprint was there.
    pub missed: u64,
    /// There was no lease for another reason: a deadline, a disk, memory.
    pub failed: u64,
}

/// Loads from the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LoadStats {
    /// They were opened.
    pub begun: u64,
    /// All of it had come.
    pub sealed: u64,
    /// They ended with an error.
    pub failed: u64,
    /// Their writer was dropped, or what it had sealed.
    pub cancelled: u64,
    /// Bytes of blobs in those that were sealed.
    pub bytes: u64,
}

/// Slices on their way between memory and disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WayStats {
    /// They got there.
    pub done: u64,
    /// They did not.
    pub failed: u64,
    /// Bytes of the files of those that got there.
    pub bytes: u64,
}

/// Slices that left a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeftStats {
    /// How many.
    pub slices: u64,
    /// What they had there.
    pub bytes: u64,
}

/// What the scrub has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ScrubStats {
    /// How many bytes a second it may read; nothing if it is off.
    pub rate: Option<u64>,
    /// Slices whose files it found as they were written.
    pub whole: u64,
    /// Slices that it found damaged, and dropped.
    pub damaged: u64,
    /// Slices that it could not read to the end: it tries them again.
    pub unread: u64,
    /// What it has read.
    pub bytes: u64,
}

/// Memory that is taken now, of the budget. What is resident of maps [`Cache::memory`](crate::Cache::memory) asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryStats {
    /// In memory of the cache's own.
    pub images: u64,
    /// In maps.
    pub mapped: u64,
    /// In parcels and pieces on their way, and in scans that read from the disk.
    pub buffers: u64,
    /// What all of it may be together.
    pub max: u64,
}

/// One spindle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SpindleStats {
    /// Which one, in the order in which they were given.
    pub number: usize,
    /// Its folder.
    #[serde(serialize_with = "as_text")]
    pub folder: PathBuf,
    /// Whether it can be trusted.
    pub state: HealthState,
    /// How many bytes it may hold.
    pub capacity: u64,
    /// How many bytes its files take.
    pub used: u64,
    /// How many bytes are promised to loads under way.
    pub reserved: u64,
    /// Operations that wait for an impeller.
    pub queued: u64,
    /// Operations that the disk has.
    pub under_way: u64,
    /// What its impellers have done, one for each kind.
    pub ops: Vec<OpStats>,
}

/// Operations of one kind on one spindle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OpStats {
    /// Which kind.
    pub op: OpKind,
    /// How many the disk did.
    pub done: u64,
    /// How many it refused.
    pub failed: u64,
    /// How many bytes were read or written by those that were done.
    pub bytes: u64,
}

/// How long things took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WaitStats {
    /// From the asking for a lease until it was given. One that found its slice in memory counts as no time.
    pub lease: WaitTimes,
    /// From the opening of a load until it was sealed.
    pub load: WaitTimes,
    /// From the first look at the files until the slice could be leased.
    pub warm: WaitTimes,
    /// From the closing of a load until it was on the disk.
    pub commit: WaitTimes,
}

/// A folder's name need not be a text; a figure's name must be.
fn as_text<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

//! How a scan went.

use std::time::{Duration, Instant};

use crate::sys::ThreadUsage;

/// Where a region's bytes were when it was scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Way {
    /// In memory of our own: just loaded, or read there.
    Image,
    /// In the page cache: the mapped file.
    Map,
    /// On the disk: read by the scan, and not kept.
    Stream,
}

/// How the scan of one region went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionReport {
    /// Which region of its slice.
    pub index: u32,
    /// Where its bytes were.
    pub way: Way,
    /// How many bytes it takes, or the part of it that was scanned.
    pub bytes: u64,
    /// How many blobs it has, or the part of it that was scanned.
    pub blobs: u64,
    /// From the first look to the end.
    pub wall: Duration,
    /// What its thread computed meanwhile.
    pub cpu: Duration,
    /// How long it waited for bytes, or for memory to read them into.
    pub waited: Duration,
    /// How often its thread waited for the disk where it should have found memory.
    pub faults_major: u64,
    /// How often its thread found memory that its core did not know yet.
    pub faults_minor: u64,
}

/// How a scan went.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ScanReport {
    /// How many bytes the scanned regions take.
    pub region_bytes: u64,
    /// How many blobs they have.
    pub blobs: u64,
    /// How many threads scanned.
    pub threads: usize,
    /// How many of them are tied to a core.
    pub threads_pinned: usize,
    /// From the call to the last region's end and merge.
    pub wall: Duration,
    /// What the scan threads computed, all together.
    pub cpu: Duration,
    /// How long the scan threads waited for bytes, all together.
    pub waited: Duration,
    /// How often a scan thread waited for the disk where it should have found memory.
    pub faults_major: u64,
    /// How often a scan thread found memory that its core did not know yet.
    pub faults_minor: u64,
    /// How it went for each region, in the order of the regions.
    pub regions: Vec<RegionReport>,
}

impl ScanReport {
    pub(crate) fn new(
        regions: Vec<RegionReport>,
        threads: usize,
        threads_pinned: usize,
        wall: Duration,
    ) -> ScanReport {
        let sum = |of: fn(&RegionReport) -> u64| regions.iter().map(of).sum();
        ScanReport {
            region_bytes: sum(|region| region.bytes),
            blobs: sum(|region| region.blobs),
            threads,
            threads_pinned,
            wall,
            cpu: regions.iter().map(|region| region.cpu).sum(),
            waited: regions.iter().map(|region| region.waited).sum(),
            faults_major: sum(|region| region.faults_major),
            faults_minor: sum(|region| region.faults_minor),
            regions,
        }
    }

    /// How much longer the slowest region took than they did on average: 1 is even. 0 without a region.
    pub fn skew(&self) -> f64 {
        let longest = self.regions.iter().map(|region| region.wall).max().unwrap_or_default();
        let all: Duration = self.regions.iter().map(|region| region.wall).sum();
        match all.is_zero() {
            true => 0.0,
            false => longest.as_secs_f64() * self.regions.len() as f64 / all.as_secs_f64(),
        }
    }

    /// How many bytes were read in this way.
    pub fn bytes_by(&self, way: Way) -> u64 {
        self.regions.iter().filter(|region| region.way == way).map(|region| region.bytes).sum()
    }
}

/// Measures one region's scan on the thread that does it.
pub(crate) struct Measure {
    begun: Instant,
    before: ThreadUsage,
}

impl Measure {
    pub(crate) fn begin() -> Measure {
        Measure { begun: Instant::now(), before: ThreadUsage::now() }
    }

    pub(crate) fn end(self, index: u32, way: Way, bytes: u64, blobs: u64, waited: Duration) -> RegionReport {
        let usage = ThreadUsage::now().since(self.before);
        RegionReport {
            index,
            way,
            bytes,
            blobs,
            wall: self.begun.elapsed(),
            cpu: usage.cpu,
            waited,
            faults_major: usage.faults_major,
            faults_minor: usage.faults_minor,
        }
    }
}

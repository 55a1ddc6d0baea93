//! Scans of a slice that is in memory, against the plain loop.

use std::path::Path;

use pelton::{Durability, Lease, RegionHandle, Residence, WritePath};

use super::GIB;
use super::crew::Crew;
use crate::disk::{Blobs, Store, sum_blobs};
use crate::frame::{Answers, Failure, Pair, Stopwatch};
use crate::words::sum_words;

/// Where the slice's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// In our own memory, as the load left them.
    Image,
    /// In mapped files, after an eviction.
    Map,
}

/// A lease that is held, so that nothing but the scan is timed.
pub(super) struct WarmScan {
    lease: Lease,
    regions: Vec<RegionHandle>,
    crew: Crew,
    expected: Answers,
}

impl WarmScan {
    pub(super) fn new(folder: &Path, blobs: Blobs, from: From) -> Result<WarmScan, Failure> {
        let store =
            Store::open_with(folder, 2 * blobs.bytes() + GIB, |builder| builder.residence(Residence::Map))?;
        let subject = store.load(Store::plan(WritePath::Image, Durability::Wait), &blobs)?;
        if from == From::Map {
            store.evict()?;
        }
        let lease = store.lease()?;
        let regions =
            (0..lease.region_count()).map(|n| lease.region(n, None)).collect::<Result<Vec<_>, _>>()?;
        // The plain loop sums headers, lengths and padding too: one thread finds once what many should find.
        let limit = regions.iter().fold(0u64, |sum, region| sum.wrapping_add(sum_words(region)));
        Ok(WarmScan { lease, regions, crew: Crew::new(), expected: Answers { limit, subject } })
    }
}

impl Pair for WarmScan {
    fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.len() as u64).sum()
    }

    fn expected(&self) -> Answers {
        self.expected
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let regions = self.regions.clone();
        Ok(stopwatch.time(|| {
            let work = regions.into_iter().map(|region| {
                let sum = move || sum_words(&region);
                Box::new(sum) as Box<dyn FnOnce() -> u64 + Send>
            });
            self.crew.sum(work.collect())
        }))
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        stopwatch.time(|| sum_blobs(&self.lease))
    }
}

//! The first scan after a load, against one of a slice that was scanned before.

use std::path::Path;

use pelton::{Durability, Lease, WritePath};

use super::GIB;
use crate::disk::{Blobs, Store, sum_blobs};
use crate::frame::{Answers, Failure, Pair, Stopwatch};

/// One slice that stays, and one that is loaded anew for each run.
pub(super) struct FirstScan {
    warm: Lease,
    fresh: Store,
    blobs: Blobs,
    write_path: WritePath,
    sum: u64,
}

impl FirstScan {
    pub(super) fn new(folder: &Path, blobs: Blobs, write_path: WritePath) -> Result<FirstScan, Failure> {
        let memory = 2 * blobs.bytes() + GIB;
        let store = Store::open(&folder.join("warm"), memory)?;
        let sum = store.load(Store::plan(write_path, Durability::Wait), &blobs)?;
        let warm = store.lease()?;
        sum_blobs(&warm)?;
        let fresh = Store::open(&folder.join("fresh"), memory)?;
        Ok(FirstScan { warm, fresh, blobs, write_path, sum })
    }
}

impl Pair for FirstScan {
    fn bytes(&self) -> u64 {
        self.blobs.bytes()
    }

    fn expected(&self) -> Answers {
        Answers { limit: self.sum, subject: self.sum }
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        stopwatch.time(|| sum_blobs(&self.warm))
    }

    /// The writes may still be on their way: a scan need not wait for them.
    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        self.fresh.load(Store::plan(self.write_path, Durability::Background), &self.blobs)?;
        let sum = stopwatch.time(|| sum_blobs(&self.fresh.lease()?))?;
        self.fresh.flush()?;
        Ok(sum)
    }
}

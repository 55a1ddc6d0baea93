//! Scans by threads that are tied to cores, against threads that are not.

use std::path::Path;

use pelton::{Durability, Lease, WritePath};

use super::GIB;
use crate::disk::{Blobs, Store, sum_blobs};
use crate::frame::{Answers, Failure, Pair, Stopwatch};

/// Two caches with the same slice.
pub(super) struct Pinned {
    free: Lease,
    pinned: Lease,
    bytes: u64,
    sum: u64,
}

impl Pinned {
    pub(super) fn new(folder: &Path, blobs: Blobs) -> Result<Pinned, Failure> {
        let lease = |pin: bool| {
            let name = if pin { "pinned" } else { "free" };
            let store =
                Store::open_with(&folder.join(name), 2 * blobs.bytes() + GIB, |builder| builder.pin(pin))?;
            let sum = store.load(Store::plan(WritePath::Image, Durability::Wait), &blobs)?;
            Ok::<_, Failure>((store.lease()?, sum))
        };
        let (free, _) = lease(false)?;
        let (pinned, sum) = lease(true)?;
        Ok(Pinned { free, pinned, bytes: blobs.bytes(), sum })
    }
}

impl Pair for Pinned {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn expected(&self) -> Answers {
        Answers { limit: self.sum, subject: self.sum }
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        stopwatch.time(|| sum_blobs(&self.free))
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        stopwatch.time(|| sum_blobs(&self.pinned))
    }
}

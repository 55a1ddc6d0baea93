//! What may be set for a feed, at either end.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use pelton_nexus_proto::feed::{Profile, Timing};
use pelton_nexus_proto::{Limits, PackerOptions};
use pelton_worker::Buffers;

use super::credit::CreditLine;
use crate::limits::NodeLimits;

/// What may be set for a feed, at either end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FeedOptions {
    /// What this end can do. Its limits are those of `limits`.
    pub profile: Profile,
    /// How patient it is.
    pub timing: Timing,
    /// How a sender packs parcels. The codec is the receiver's choice, of those that both speak.
    pub packing: PackerOptions,
    /// How much a receiver lets a sender send ahead, as far as the cache's memory for parcels allows.
    pub window_bytes: u64,
    /// What all streams of this process together may do.
    pub limits: NodeLimits,
}

impl FeedOptions {
    /// The defaults, with these limits.
    pub fn with_limits(limits: Limits) -> FeedOptions {
        FeedOptions::sharing(NodeLimits::new(limits))
    }

    /// The defaults, counting where the node does whose limits these are.
    pub fn sharing(limits: NodeLimits) -> FeedOptions {
        FeedOptions {
            profile: Profile { lane: true, limits: limits.limits().clone(), ..Profile::default() },
            timing: Timing::default(),
            packing: PackerOptions::default(),
            // A few parcels: one that is put into the slice, one that is on its way, and the credit for the next.
            window_bytes: 8 << 20,
            limits,
        }
    }

    /// Where a stream into this memory has its credit from.
    pub(super) fn credit_line(&self, buffers: Buffers) -> CreditLine {
        CreditLine::new(buffers, self.limits.clone(), self.window_bytes, self.timing.stall_max)
    }
}

impl Default for FeedOptions {
    fn default() -> FeedOptions {
        FeedOptions::with_limits(Limits::default())
    }
}

/// How often, and after which pauses, a stream that broke is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// For one load, over all of its sources.
    pub count_max: u32,
    /// Before the first; twice as long before each further one, more or less at random.
    pub pause_min: Duration,
    /// No pause is longer.
    pub pause_max: Duration,
}

impl Default for Retries {
    fn default() -> Retries {
        Retries { count_max: 5, pause_min: Duration::from_millis(100), pause_max: Duration::from_secs(10) }
    }
}

impl Retries {
    /// The pause before the n-th retry: from half of its length to all of it, so that those who were cut off together do not
    /// come back together.
    pub(super) fn pause(&self, retry: u32) -> Duration {
        let whole = self.pause_min.saturating_mul(1 << retry.min(20)).min(self.pause_max);
        let chance = RandomState::new().hash_one(retry) % 1024;
        whole / 2 + whole / 2 * u32::try_from(chance).unwrap_or(0) / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_their_limit_and_differ() {
        let retries = Retries::default();
        for retry in 0..64 {
            let whole = Duration::from_millis(100 << retry.min(10)).min(retries.pause_max);
            let pauses: Vec<Duration> = (0..50).map(|_| retries.pause(retry)).collect();
            assert!(pauses.iter().all(|pause| (whole / 2..=whole).contains(pause)), "{retry}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{retry}");
        }
    }
}

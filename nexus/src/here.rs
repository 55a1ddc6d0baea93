//! Whether a slice is here, for whoever is about to bring it.

use std::time::Duration;

use pelton_region_format::{Fingerprint, Key};
use pelton_worker::{Cache, Durability, SnapState};

/// How often it is looked again while a commit is under way.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Whether a slice is here in that version, and stays: if it has to be durable and its commit is under way, when that has
/// ended. One whose commit has failed goes with the process, and counts as absent.
///
/// Looks on a thread that may wait: just after the start, what lies on the disks is still read.
pub(crate) async fn is_here(
    cache: &Cache,
    key: &Key,
    fingerprint: Fingerprint,
    durability: Durability,
) -> bool {
    loop {
        let (cache, key) = (cache.clone(), key.clone());
        let looked = tokio::task::spawn_blocking(move || cache.snap(&key).status()).await;
        // Without an answer the runtime is ending.
        let Ok(status) = looked else { return false };
        let is_there = status.fingerprint == Some(fingerprint)
            && !status.unsaved
            && matches!(status.state, SnapState::Warm | SnapState::Hot | SnapState::NoData);
        if !is_there || status.durable || durability != Durability::Wait {
            return is_there;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

//! The cache entry that owns a slice: what it is, where it lies, who holds it.

pub(crate) mod commit;
pub(crate) mod desk;
pub(crate) mod entry;
pub(crate) mod hot;
pub(crate) mod manifest;
#[expect(unreachable_pub, reason = "becomes public with the operations")]
#[cfg_attr(not(test), expect(dead_code, reason = "snaps do not keep metrics yet"))]
pub(crate) mod metrics;
pub(crate) mod reaper;
pub(crate) mod recovery;
pub(crate) mod runner;
pub(crate) mod state;
pub(crate) mod stream;
pub(crate) mod warm;
pub(crate) mod warmers;

use crate::sync;

#[cfg(test)]
mod power_loss;
#[cfg(test)]
mod schedules;

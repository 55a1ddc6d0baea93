//! The cache entry that owns a slice: what it is, where it lies, who holds it.

pub(crate) mod access;
pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod desk;
pub(crate) mod entry;
pub(crate) mod holders;
pub(crate) mod hot;
pub(crate) mod leftovers;
pub(crate) mod manifest;
#[expect(unreachable_pub, reason = "of what is folded only the summary is public")]
pub(crate) mod metrics;
pub(crate) mod outlet;
pub(crate) mod reaper;
pub(crate) mod recovery;
pub(crate) mod runner;
pub(crate) mod scrub;
pub(crate) mod state;
pub(crate) mod stream;
pub(crate) mod urgent;
pub(crate) mod warm;
pub(crate) mod warmers;

use crate::sync;

#[cfg(test)]
mod power_loss;
#[cfg(test)]
mod schedules;

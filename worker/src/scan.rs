//! Scans: one region, one core.

pub(crate) mod affinity;
pub(crate) mod lease;
pub(crate) mod pool;
pub(crate) mod threads;

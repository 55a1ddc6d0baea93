//! Scans: one region, one core.

pub(crate) mod affinity;
pub(crate) mod blobs;
pub(crate) mod cancel;
pub(crate) mod lease;
pub(crate) mod patience;
pub(crate) mod pool;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod stream;
pub(crate) mod threads;

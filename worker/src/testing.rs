//! For the tests of who embeds the cache: a disk and a loader that fail as told.
//!
//! With the feature `testing` only. What is here may fail on purpose and forget everything: it is no part of a service.

mod disk;
mod loader;

pub use disk::{DiskFault, FaultyDisk, When, open_on};
pub use loader::{FaultyLoader, LoaderFault};

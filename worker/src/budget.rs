//! Memory and disk space, counted in bytes and taken before the work.
//!
//! What is taken is a guard: it gives back when it drops, whatever went wrong in between.

pub(crate) mod buffers;
pub(crate) mod ledger;
pub(crate) mod memory;

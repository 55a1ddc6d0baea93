//! Memory and disk space, counted in bytes and taken before the work.
//!
//! What is taken is a guard: it gives back when it drops, whatever went wrong in between.

#[allow(dead_code, reason = "loads do not reserve disk space yet")]
pub(crate) mod ledger;
pub(crate) mod memory;

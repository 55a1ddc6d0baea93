//! What people do to many snaps at once, by pattern and filters.
//!
//! ```text
//! pattern, filters ─▶ select ─▶ for each snap: what would come of it ─▶ run, a few at once ─▶ what came of it
//! ```

pub(crate) mod filter;
pub(crate) mod lanes;
pub(crate) mod operation;
pub(crate) mod run;
pub(crate) mod select;
mod verify;

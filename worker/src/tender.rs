//! What leaves memory and disks, and when: the decisions, as plain values.
//!
//! ```text
//! Snapshot (all snaps) + Budgets + now ──decide──▶ commands: evict, flush, erase, each with its reason
//!                                    └──make_room─▶ the same for one load, or why it can't fit
//! ```
//!
//! Nothing here has a clock, a disk, a lock or a thread. So one may also ask what other budgets would do.

mod order;
mod policy;
#[cfg(test)]
mod replay;

pub use order::History;
pub use policy::{
    Action, Budgets, Candidate, Command, Decision, Holds, Level, Marks, MarksError, NoRoom, Place, Reason,
    Snapshot, Ttls, ViewNumber, Wanted, decide, make_room,
};

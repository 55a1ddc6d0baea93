//! What leaves memory and disks, and when.
//!
//! ```text
//! Snapshot (all snaps) + Budgets + now ──decide──▶ commands: evict, flush, erase, each with its reason
//!                                    └──make_room─▶ the same for one load, or why it can't fit
//! ```
//!
//! What is public here decides, as plain values without a clock, a disk, a lock or a thread. So one may also ask what
//! other budgets would do. Beside it stands what a cache does with the decisions, on a thread of its own and for loads.

pub(crate) mod look;
mod order;
mod policy;
#[cfg(test)]
mod replay;
pub(crate) mod room;
pub(crate) mod rules;
pub(crate) mod run;
pub(crate) mod status;
#[cfg(test)]
mod tests;
pub(crate) mod thread;

pub use order::History;
pub use policy::{
    Action, Budgets, Candidate, Command, Decision, Holds, Level, Marks, MarksError, NoRoom, Place, Reason,
    Snapshot, Ttls, ViewNumber, Wanted, decide, make_room,
};
pub use rules::MarksPercent;
pub use status::{TenderRound, TenderStatus, TenderSums};

//! A spindle: a folder on one disk that holds region files, and the threads that do its I/O.
//!
//! ```text
//! callers ──submit──▶ queue (bounded in bytes, lanes in turn) ──▶ impellers ──▶ engine ──▶ disk
//!    ▲                                                                │
//!    └────────────────────────── completions ◀────────────────────────┘
//! ```
//!
//! Every system call on a spindle's folder runs on one of its impellers, so a disk that hangs takes
//! nobody with it: callers wait with a deadline, and memory that the disk may still touch stays owned
//! by the operation. Start at [`impeller`].

pub(crate) mod device;
pub(crate) mod engine;
pub(crate) mod file;
pub(crate) mod health;
pub(crate) mod held;
pub(crate) mod identity;
pub(crate) mod impeller;
pub(crate) mod pace;
pub(crate) mod placement;
pub(crate) mod refusal;
pub(crate) mod room;
pub(crate) mod watch;

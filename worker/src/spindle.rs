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
#[allow(
    dead_code,
    unused_imports,
    reason = "the cache neither reserves nor streams yet: some operations, and the buffers to read into, are asked for \
              by tests only"
)]
pub(crate) mod engine;
pub(crate) mod file;
#[allow(dead_code, reason = "spindles are not watched yet")]
pub(crate) mod health;
pub(crate) mod held;
pub(crate) mod identity;
#[allow(dead_code, reason = "the cache has no close with a deadline yet, and watches no spindle")]
pub(crate) mod impeller;

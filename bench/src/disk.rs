//! What the benchmarks with files share: a folder, a cache with one slice, and the raw limits of the disk.
//!
//! ```text
//! Blobs ─parcels─▶ Store (our cache)      the subject
//!       └─the same bytes─▶ Raw            the limit: O_DIRECT by a few threads, or plain buffered writes
//! ```
//!
//! Nothing here is timed by itself; the cases decide what counts.
mod blobs;
mod cold;
mod folder;
mod raw;
mod store;

pub(crate) use blobs::{Blobs, PackedParcel, Texture};
pub(crate) use cold::{Cold, drop_cache};
pub(crate) use folder::Folder;
pub(crate) use raw::{
    Marks, PLAIN_BYTES, Raw, Shape, open_direct, open_direct_to_write, plain_write, preallocate,
};
pub(crate) use store::{Store, sum_blobs, sum_blobs_reported};

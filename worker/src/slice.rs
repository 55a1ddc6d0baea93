//! How a slice comes to be: parcels in, dealt blobs, sealed regions out.
//!
//! ```text
//! parcel ─open─▶ blobs ─deal─▶ region under construction ─pieces─▶ impellers
//!                                        │
//!                                        └─seal─▶ image: can be scanned now, durable later
//! ```
//!
//! What is sealed already, and comes from another worker, takes the same way from the pieces on:
//!
//! ```text
//! bytes of a region file ─▶ compared, block by block, where they lie ─pieces─▶ impellers
//! ```

pub(crate) mod ahead;
pub(crate) mod build;
pub(crate) mod deal;
pub(crate) mod parcel;
pub(crate) mod plan;
pub(crate) mod scratch;
pub(crate) mod sealed;
pub(crate) mod space;
pub(crate) mod writer;

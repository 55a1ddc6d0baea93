//! Sealed slices from worker to worker, as the bytes of their region files.
//!
//! ```text
//!   the fetcher                                      the holder
//!   load, opened for exactly these regions ◀──────── manifest           by gRPC
//!   image or piece ◀─ compared, block by block ◀──── ranges             by a lane, or by gRPC
//! ```
//!
//! - To give: [`PeerService`], a gRPC service over a cache.
//! - To take: [`Holder`], another worker that has slices; [`PeerLoader`], so that leases are filled from there.

mod error;
mod fetch;
mod lane;
mod line;
mod loader;
mod manifest;
mod range;
mod repair;
mod serve;

pub use error::FetchError;
pub use fetch::{FetchOptions, FetchProgress, Fetched, Holder};
pub use loader::PeerLoader;
pub use manifest::PeerManifest;
pub use repair::Repaired;
pub use serve::{PeerOptions, PeerService};

#[cfg(test)]
mod tests;

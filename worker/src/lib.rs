//! The cache: slices on spindles and in memory, loaded by parcels and scanned in place.
//!
//! ```text
//! loader ─parcels─▶ slice/ ─pieces─▶ spindle/ ─▶ disk
//!                     │ images          │ sealed files, found again by snap/
//!                     ▼                 ▼
//!                   scan/ ◀──leases── region/ (images and maps)
//! ```
//!
//! Start at [`Cache`].
mod budget;
mod builder;
mod cache;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "capacities and files of settings are taken in when disks have budgets"
)]
mod config;
mod ops;
mod region;
mod scan;
mod slice;
mod snap;
mod spindle;
mod sync;
mod sys;
pub mod tender;
pub mod units;

pub use budget::memory::{MemoryRefused, MemoryUse};
pub use builder::{CacheBuilder, CacheError};
pub use cache::{Cache, Snap, SnapStatus, SpindleStatus, Want};
pub use config::{ConfigError, IoEngine, Verify};
pub use scan::blobs::{Blobs, FoldError};
pub use scan::cancel::CancelToken;
pub use scan::lease::{Lease, LeaseError, LeaseOptions, Partition, Reading, RegionError, RegionHandle};
pub use scan::report::{RegionReport, ScanReport, Way};
pub use scan::run::{ScanError, ScanOptions};
pub use slice::deal::Deal;
pub use slice::parcel::{Codec, Parcel, ParcelBuilder, ParcelError};
pub use slice::plan::{Durability, LoadPlan, WritePath};
pub use slice::writer::{LoadError, SealedSlice, SliceWriter};
pub use snap::commit::CommitError;
pub use snap::entry::SnapState;
pub use snap::recovery::RecoveryReport;
pub use snap::warm::WarmError;
pub use spindle::engine::DiskError;

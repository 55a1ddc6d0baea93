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
mod config;
mod doctor;
mod events;
mod load;
mod ops;
mod region;
mod scan;
mod side_by_side;
mod slice;
mod snap;
mod spindle;
mod stats;
mod sync;
mod sys;
pub mod tender;
#[cfg(feature = "testing")]
pub mod testing;
pub mod units;
mod waits;

pub use budget::buffers::{BufferGrant, Buffers};
pub use budget::ledger::SpindleFull;
pub use budget::memory::{MemoryRefused, MemoryUse};
pub use builder::{CacheBuilder, CacheError};
pub use cache::close::{CloseError, SyncError};
pub use cache::{
    Cache, FlushError, LeaseStatus, MemoryReport, Snap, SnapFailure, SnapStatus, SpindleStatus, Want,
};
pub use config::host::{MemoryLimit, MemorySource, PressureSource};
pub use config::loaders::{FilesConfig, LoadersConfig};
pub use config::view::View;
pub use config::{Config, ConfigError, IoEngine, ScrubConfig, SpindleConfig, Verify};
pub use doctor::{Diagnosis, Finding, SpindleDiagnosis, Verdict, doctor};
pub use events::{Event, Events, NoEvent};
pub use load::files;
pub use load::fill::{Fill, Packer};
pub use load::{AsyncLoader, Counts, Loader, LoaderError};
pub use ops::filter::{FilterError, FilterProblem, Filters};
pub use ops::operation::{
    DamagedFile, OnProgress, OnResult, Operation, OperationError, OperationOptions, OperationOutcome,
    OperationRefusal, OperationResult,
};
pub use ops::select::{By, Selected, Selection};
pub use region::residence::Residence;
pub use scan::blobs::{Blobs, FoldError};
pub use scan::cancel::CancelToken;
pub use scan::lease::{Lease, LeaseError, LeaseOptions, Partition, Reading, RegionError, RegionHandle};
pub use scan::report::{RegionReport, ScanReport, Way};
pub use scan::run::{ScanError, ScanOptions};
pub use slice::build::WriteError;
pub use slice::deal::Deal;
pub use slice::parcel::{Codec, Parcel, ParcelBuilder, ParcelError};
pub use slice::plan::{Durability, LoadPlan, Unwanted, WritePath};
pub use slice::sealed::{NotASlice, SealedRegion};
pub use slice::writer::{IntakeError, LoadError, RegionIntake, SealedSlice, SliceWriter};
pub use snap::commit::CommitError;
pub use snap::metrics::{GenerationState, Summary};
pub use snap::outlet::{OutletError, RegionOutlet, SliceOutlet};
pub use snap::recovery::RecoveryReport;
pub use snap::state::SnapState;
pub use snap::warm::WarmError;
pub use spindle::engine::{DiskError, OpKind};
pub use spindle::health::HealthState;
pub use spindle::refusal::{RefusalReason, SpindleRefusal};
pub use stats::wait_times::WaitTimes;
pub use stats::{
    CacheStats, LeaseStats, LeftStats, LoadStats, MemoryStats, OpStats, ScrubStats, SpindleStats, WaitStats,
    WayStats,
};
pub use waits::Pending;

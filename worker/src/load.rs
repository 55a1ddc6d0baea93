//! Loaders: what fills a slice when somebody leases it and it is not there.
//!
//! ```text
//! lease ─▶ nothing there ─▶ plan ─▶ the decider: one load for all who wait ─▶ fill ─parcels─▶ slice/
//!             registry.rs    planning.rs                      running.rs, fill.rs
//! ```
//!
//! A loader is a value with two operations. It opens no slice and closes none: that is the cache's, which also decides
//! when to ask it, for how many, and when to try again. `docs/loaders.md` is the page for who writes one.

pub mod files;
pub(crate) mod fill;
pub(crate) mod planning;
pub(crate) mod registry;
pub(crate) mod running;

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::pin;

use pelton_region_format::Key;

use crate::scan::patience::{Impatience, Patience};
use crate::slice::parcel::ParcelError;
use crate::slice::plan::LoadPlan;
use crate::slice::writer::LoadError;
use fill::Fill;

/// Brings slices from where they come from.
///
/// Both operations may block: each runs on a thread of its own, where it holds up nobody but those who wait for that
/// slice, and those only to their deadlines. A panic is a failure of that load. It must not own a handle of the cache
/// that it loads for: that cache would never be dropped.
pub trait Loader: Send + Sync + 'static {
    /// What a load of this slice would be now. Its fingerprint decides whether what is there will do, so it must change
    /// when the blobs would.
    ///
    /// Asked when somebody wants a slice that is not there, or whether a newer one is. Should be quick.
    ///
    /// # Errors
    /// [`LoaderError::NotThere`] is an answer. All others are failures: nobody asks again for a while.
    fn plan(&self, key: &Key) -> Result<LoadPlan, LoaderError>;

    /// Sends the slice's blobs, from as many threads as it likes, and ends when all were taken.
    ///
    /// Runs at most once at a time for a slice, for all who wait for it.
    ///
    /// # Errors
    /// Any [`LoaderError`]: nothing of the load is left, and it is tried again after a while.
    fn fill(&self, fill: &Fill) -> Result<Counts, LoaderError>;
}

/// A [`Loader`] whose operations are futures.
///
/// They are polled on a thread of their own, without any runtime around them: what needs one must bring it. At a cancel
/// and at the plan's deadline they are dropped. They need not be `Send`.
pub trait AsyncLoader: Send + Sync + 'static {
    /// As [`Loader::plan`].
    fn plan(&self, key: &Key) -> impl Future<Output = Result<LoadPlan, LoaderError>>;

    /// As [`Loader::fill`].
    fn fill(&self, fill: &Fill) -> impl Future<Output = Result<Counts, LoaderError>>;
}

/// What a source says of the blobs that it sent. `None` is for one that does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// How many it meant to send, after sampling and caps. If another number arrives the load is invalid, which is told;
    /// with [`LoadPlan::strict_counts`] it fails.
    pub expected: Option<u64>,
    /// How many there would be without sampling and caps.
    pub potential: Option<u64>,
    /// How many it refused to send, because they broke a limit.
    pub rejected: Option<u64>,
}

/// Why a loader did not plan or fill.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoaderError {
    /// The source has no such slice. Whoever asked is told that; the next one asks anew.
    #[error("its source has no such slice")]
    NotThere,
    /// The source can't be asked, or what it sends is not right. It is tried again after a while.
    #[error(transparent)]
    Failed(Box<dyn Error + Send + Sync>),
    /// The cache did not take what it was sent. `?` makes this of what [`Fill::queue_parcel`] answers.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It saw that its [`Fill`] is cancelled, and ended early.
    #[error("it was cancelled")]
    Cancelled,
    /// It was not done at the plan's deadline.
    #[error("it was not done at its deadline")]
    Late,
}

impl LoaderError {
    /// Any error of the source.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> LoaderError {
        LoaderError::Failed(error.into())
    }
}

impl From<io::Error> for LoaderError {
    fn from(error: io::Error) -> LoaderError {
        LoaderError::failed(error)
    }
}

impl From<ParcelError> for LoaderError {
    fn from(error: ParcelError) -> LoaderError {
        LoaderError::failed(error)
    }
}

impl From<Impatience> for LoaderError {
    fn from(impatience: Impatience) -> LoaderError {
        match impatience {
            Impatience::Late => LoaderError::Late,
            Impatience::Cancelled => LoaderError::Cancelled,
        }
    }
}

/// A loader of either kind, as the cache runs it.
pub(crate) trait AnyLoader: Send + Sync {
    fn plan(&self, key: &Key, patience: &Patience) -> Result<LoadPlan, LoaderError>;
    fn fill(&self, fill: &Fill) -> Result<Counts, LoaderError>;
}

pub(crate) struct Blocking<L>(pub(crate) L);

pub(crate) struct Polled<L>(pub(crate) L);

impl<L: Loader> AnyLoader for Blocking<L> {
    fn plan(&self, key: &Key, _patience: &Patience) -> Result<LoadPlan, LoaderError> {
        self.0.plan(key)
    }

    fn fill(&self, fill: &Fill) -> Result<Counts, LoaderError> {
        self.0.fill(fill)
    }
}

impl<L: AsyncLoader> AnyLoader for Polled<L> {
    fn plan(&self, key: &Key, patience: &Patience) -> Result<LoadPlan, LoaderError> {
        patience.wait(pin!(self.0.plan(key)))?
    }

    fn fill(&self, fill: &Fill) -> Result<Counts, LoaderError> {
        fill.patience().wait(pin!(self.0.fill(fill)))?
    }
}

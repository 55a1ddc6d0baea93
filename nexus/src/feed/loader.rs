//! The loader that pulls what is leased.

use pelton_region_format::Key;
use pelton_worker::{Counts, Fill, LoadPlan, Loader, LoaderError};

use super::intake::Target;
use super::pull::{FeedFrom, Pull, Puller};

/// Knows where slices come from: what a [`NexusLoader`] asks.
pub trait Sources: Send + Sync + 'static {
    /// What a load of this slice would be now, as of [`Loader::plan`]. Its fingerprint goes to the sources, which send
    /// exactly what it stands for, or nothing.
    ///
    /// # Errors
    /// [`LoaderError::NotThere`] is an answer; all others are failures.
    fn plan(&self, key: &Key) -> Result<LoadPlan, LoaderError>;

    /// Where it comes from: each source has a part of it, and all parts together are the slice.
    ///
    /// # Errors
    /// [`LoaderError`]
    fn sources(&self, key: &Key, plan: &LoadPlan) -> Result<Vec<FeedFrom>, LoaderError>;
}

/// Loads slices from sources that speak Feed.
///
/// A cache asks it when somebody leases a slice that is not there. It blocks the thread that fills the slice, and one
/// more for each further source; sockets are served by the puller's runtime.
pub struct NexusLoader<S> {
    puller: Puller,
    sources: S,
}

impl<S: Sources> NexusLoader<S> {
    /// Pulls what `sources` tells.
    pub fn new(puller: Puller, sources: S) -> NexusLoader<S> {
        NexusLoader { puller, sources }
    }
}

impl<S: Sources> Loader for NexusLoader<S> {
    fn plan(&self, key: &Key) -> Result<LoadPlan, LoaderError> {
        self.sources.plan(key)
    }

    fn fill(&self, fill: &Fill) -> Result<Counts, LoaderError> {
        let sources = self.sources.sources(fill.key(), fill.plan())?;
        let pull = Pull {
            key: fill.key(),
            fingerprint: fill.plan().fingerprint,
            target: Target::Fill(fill),
            deadline: fill.deadline(),
            cancel: fill.cancel(),
        };
        Ok(self.puller.run(&pull, &sources)?)
    }
}

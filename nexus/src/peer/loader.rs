//! A loader that has slices from another worker.

use pelton_region_format::Key;
use pelton_worker::{Counts, Fill, LoadPlan, Loader, LoaderError};
use tokio::runtime::Handle;

use super::error::FetchError;
use super::fetch::{Holder, Session};

/// Fills slices from another worker, as they are there.
///
/// Its plan is what the peer has now, so another generation there is another fingerprint here.
#[derive(Clone, Debug)]
pub struct PeerLoader {
    holder: Holder,
    runtime: Handle,
}

impl PeerLoader {
    /// From this holder. Needs a runtime that goes on while loads do, and whose own threads drive it: one of several
    /// threads, or one that somebody blocks on.
    pub fn new(holder: Holder, runtime: Handle) -> PeerLoader {
        PeerLoader { holder, runtime }
    }

    fn take(&self, fill: &Fill) -> Result<(), FetchError> {
        let mut holder = self.holder.clone();
        holder.options.deadline = [fill.deadline(), holder.options.deadline].into_iter().flatten().min();
        let session = self.runtime.block_on(holder.session(fill.key(), fill.cancel().clone()))?;
        let (fingerprint, planned) = (fill.plan().fingerprint, fill.plan().sealed.as_deref());
        let planned = planned.unwrap_or_default();
        let open = |index| fill.region_intake(index);
        let take = || session.take_all(fingerprint, planned, &open, &Session::take);
        match take() {
            Err(changed @ FetchError::Changed { .. }) => {
                // It may have the same again: the load goes on where it was.
                let now = self.runtime.block_on(session.manifest(Some(fingerprint)))?;
                if now.regions() == planned { take() } else { Err(changed) }
            }
            taken => taken,
        }
    }
}

impl Loader for PeerLoader {
    fn plan(&self, key: &Key) -> Result<LoadPlan, LoaderError> {
        let manifest = self.runtime.block_on(self.holder.manifest(key, None)).map_err(loader_error)?;
        let mut plan = manifest.plan();
        plan.durability = self.holder.options.durability;
        plan.write_path = self.holder.options.write_path;
        plan.deadline = self.holder.options.deadline;
        Ok(plan)
    }

    fn fill(&self, fill: &Fill) -> Result<Counts, LoaderError> {
        self.take(fill).map_err(loader_error)?;
        Ok(Counts::default())
    }
}

fn loader_error(error: FetchError) -> LoaderError {
    match error {
        FetchError::NotFound { .. } => LoaderError::NotThere,
        FetchError::Cancelled { .. } => LoaderError::Cancelled,
        FetchError::Late { .. } => LoaderError::Late,
        FetchError::Load { source, .. } => LoaderError::Load(*source),
        error => LoaderError::failed(error),
    }
}

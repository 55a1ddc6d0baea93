//! A spindle that this cache holds.

use std::path::{Path, PathBuf};

use crate::config::depth_on;
use crate::spindle::device::Device;
use crate::spindle::engine::EngineKind;
use crate::spindle::identity::{Identity, IdentityError, NetworkFolders, SpindleUuid};
use crate::spindle::impeller::{ImpellerPlan, Impellers, StartError};

/// A folder that is ours while this value lives, and the threads that serve it.
pub(crate) struct Spindle {
    pub(crate) uuid: SpindleUuid,
    uuid_text: String,
    pub(crate) folder: PathBuf,
    pub(crate) impellers: Impellers,
    /// Holds the lock. Dropped last: nobody else may come in while an impeller works.
    _identity: Identity,
}

/// How a spindle's impellers are set up.
#[derive(Clone, Debug)]
pub(crate) struct SpindlePlan {
    pub(crate) impellers: usize,
    /// How many operations the disk gets at once; `None`: what fits the disk.
    pub(crate) depth: Option<usize>,
    pub(crate) queue_bytes_max: u64,
    pub(crate) engine: EngineKind,
    pub(crate) network: NetworkFolders,
}

/// Why a folder can't serve as a spindle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OpenError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Spindle {
    /// Claims the folder and starts its impellers. `number` counts the cache's spindles.
    pub(crate) fn open(number: usize, folder: &Path, plan: &SpindlePlan) -> Result<Spindle, OpenError> {
        let identity = Identity::claim(folder, plan.network)?;
        // Where the disk can't be told, the default for one that does not turn is right: it only wants more.
        let rotational = Device::of(folder).ok().and_then(|device| device.rotational);
        let impellers = Impellers::start(ImpellerPlan {
            name: format!("spindle-{number}"),
            count: plan.impellers,
            depth: plan.depth.unwrap_or_else(|| depth_on(rotational)),
            queue_bytes_max: plan.queue_bytes_max,
            engine: plan.engine.clone(),
            watch: None,
        })?;
        let uuid = identity.uuid();
        Ok(Spindle {
            uuid,
            uuid_text: uuid.to_string(),
            folder: folder.to_owned(),
            impellers,
            _identity: identity,
        })
    }

    /// The spindle's name as it stands in the names of load folders.
    pub(crate) fn uuid_text(&self) -> &str {
        &self.uuid_text
    }
}

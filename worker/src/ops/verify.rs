//! Compares a slice's files with what was written, and tells of all that are damaged.

use super::operation::{DamagedFile, OnProgress, OperationError, OperationOutcome};
use crate::cache::CacheCore;
use crate::events::reason;
use crate::scan::patience::{Impatience, Patience};
use crate::snap::check::{Check, Damage, Pacer, Unproven};
use crate::snap::manifest::Manifest;
use crate::snap::warm::WarmError;
use crate::spindle::engine::DiskError;
use crate::spindle::pace::Pace;

/// What is read at once, where there is memory for it.
const READ_BYTES: u64 = 4 << 20;

/// For whom files are read.
pub(super) struct Verifying<'a> {
    pub(super) core: &'a CacheCore,
    pub(super) pace: &'a Pace,
    pub(super) patience: &'a Patience,
    pub(super) on_progress: Option<&'a OnProgress>,
}

impl Verifying<'_> {
    /// There is nothing to verify any more if another load has replaced it.
    ///
    /// # Errors
    /// [`OperationError`]. All files are looked at, also behind a damaged one.
    pub(super) fn verify(&self, manifest: &Manifest) -> Result<OperationOutcome, OperationError> {
        let lane = self.core.next_lane();
        let check = Check { core: self.core, lane, read_bytes: READ_BYTES, pacer: self };
        let regions = manifest.regions.iter().map(|record| check.region(manifest, record));
        let mut files = Vec::new();
        for verdict in std::iter::once_with(|| check.manifest(manifest)).chain(regions) {
            match verdict {
                Ok(()) => {}
                Err(Unproven::Damaged(damage)) => files.push(told(*damage)),
                Err(Unproven::Replaced) => return Ok(OperationOutcome::Nothing),
                Err(Unproven::Left) => return Err(OperationError::Late),
                Err(Unproven::Unread(error)) => return Err(unread(error)),
            }
        }
        if files.is_empty() { Ok(OperationOutcome::Done) } else { Err(OperationError::Damaged { files }) }
    }
}

impl Pacer for Verifying<'_> {
    fn pay(&self, bytes: u64) -> Result<(), Impatience> {
        self.pace.wait(bytes, self.patience)
    }

    fn patience(&self) -> Patience {
        self.patience.clone()
    }

    fn compared(&self, bytes: u64) {
        if let Some(on_progress) = self.on_progress {
            on_progress.tell(bytes);
        }
    }

    fn goes_on(&self) -> bool {
        true
    }
}

fn told(Damage { file, block, error }: Damage) -> DamagedFile {
    let why = match error {
        WarmError::Damaged { source, .. } => source.to_string(),
        WarmError::OtherRegion { .. } => "it is not the region that was committed".to_owned(),
        WarmError::NoFile { .. } => "it is gone".to_owned(),
        WarmError::Manifest { why } => why,
        error => reason(&error),
    };
    DamagedFile { path: file, block, why }
}

fn unread(error: WarmError) -> OperationError {
    match error {
        WarmError::Disk { source: DiskError::Late { .. }, .. } => OperationError::Late,
        WarmError::Disk { source, .. } => OperationError::Disk { source: source.into() },
        WarmError::Memory { source } => OperationError::Memory { source },
        error => OperationError::Warm { source: error.into() },
    }
}

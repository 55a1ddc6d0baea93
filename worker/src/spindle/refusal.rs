//! Why a spindle does not take a load.

use std::fmt;
use std::path::PathBuf;

use crate::budget::ledger::SpindleFull;
use crate::spindle::engine::DiskError;
use crate::tender::NoRoom;

/// A spindle that does not take a load, or no more of it.
#[derive(Debug, thiserror::Error)]
#[error("spindle {}: {reason}", folder.display())]
#[non_exhaustive]
pub struct SpindleRefusal {
    /// The spindle's folder.
    pub folder: PathBuf,
    /// Why not.
    pub reason: RefusalReason,
}

/// Why a spindle does not take a load.
#[derive(Debug)]
#[non_exhaustive]
pub enum RefusalReason {
    /// There is no room. Flush something, or give it more capacity.
    Full(SpindleFull),
    /// There is none, and not enough could go for it. Wait for leases to end, unpin something, or give it more capacity.
    NoRoom(NoRoom),
    /// It has failed, and is tried again from time to time. Look at its disk.
    Quarantined {
        /// The last thing that went wrong.
        last_fault: Option<String>,
    },
    /// It does not answer now.
    Unreachable(Box<DiskError>),
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RefusalReason::Full(full) => full.fmt(f),
            RefusalReason::NoRoom(no_room) => no_room.fmt(f),
            RefusalReason::Quarantined { last_fault: None } => f.write_str("in quarantine"),
            RefusalReason::Quarantined { last_fault: Some(fault) } => {
                write!(f, "in quarantine, since it {fault}")
            }
            RefusalReason::Unreachable(error) => match std::error::Error::source(error) {
                Some(cause) => write!(f, "{error}: {cause}"),
                None => error.fmt(f),
            },
        }
    }
}

/// Several refusals in one line.
pub(crate) struct Listed<'a>(pub(crate) &'a [SpindleRefusal]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            write!(f, "{}{refusal}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

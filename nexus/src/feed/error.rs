//! Why a slice did not come, or did not go.

use pelton_nexus_proto::feed::StreamError;
use pelton_nexus_proto::messages::Reason;
use pelton_region_format::Key;
use pelton_worker::{LoadError, LoaderError};

use crate::dial::DialError;

/// Why a slice did not come, or did not go. Nothing is left of a load that was begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// The other end can't be reached. Look at the address, or try later.
    #[error("the feed of {key} could not begin, tried {} times", tries)]
    Dial {
        /// The slice.
        key: Key,
        /// How often it was tried.
        tries: u32,
        /// What is wrong, and where.
        source: DialError,
    },
    /// The stream broke, and could not be taken up again. [`StreamError::reason`] says what helps.
    #[error("the feed of {key} with {peer} failed, tried {} times", tries)]
    Stream {
        /// The slice.
        key: Key,
        /// The other end.
        peer: String,
        /// How often it was tried.
        tries: u32,
        /// How many parcels of it were in the slice by then.
        parcels: u64,
        /// How the last stream ended.
        source: StreamError,
    },
    /// The cache does not take it.
    #[error("the cache does not take the feed of {key}")]
    Load {
        /// The slice.
        key: Key,
        /// Why.
        source: LoadError,
    },
    /// It was cancelled, or the deadline has passed.
    #[error("the feed of {key} was ended from outside")]
    Stopped {
        /// The slice.
        key: Key,
    },
    /// There is no source to pull from, or one without an address. Name one.
    #[error("the feed of {key} has nowhere to come from")]
    NoSource {
        /// The slice.
        key: Key,
    },
    /// The runtime is being shut down, or the program has a fault.
    #[error("the feed of {key} was dropped by its runtime: {text}")]
    Runtime {
        /// The slice.
        key: Key,
        /// What the runtime says.
        text: String,
    },
}

impl FeedError {
    /// Whether the same load may go better when it is begun anew, with another writer: its stream broke in the middle, and
    /// its source can't go on where it was. As long as nothing was in the slice, it was tried again already.
    pub fn helps_anew(&self) -> bool {
        matches!(self, FeedError::Stream { parcels: 1.., source, .. } if helps(source))
    }
}

/// Whether a stream may go better when it is tried again.
pub(super) fn helps(error: &StreamError) -> bool {
    match error.reason() {
        Reason::Cancelled | Reason::Forbidden | Reason::Invalid | Reason::Version | Reason::Protocol => false,
        Reason::Deadline => !matches!(error, StreamError::Deadline),
        _ => true,
    }
}

impl From<FeedError> for LoaderError {
    fn from(error: FeedError) -> LoaderError {
        match error {
            FeedError::Load { source, .. } => LoaderError::Load(source),
            FeedError::Stopped { .. } => LoaderError::Cancelled,
            FeedError::Stream { ref source, .. } if source.reason() == Reason::NotFound => {
                LoaderError::NotThere
            }
            FeedError::Stream { source: StreamError::Deadline, .. } => LoaderError::Late,
            error => LoaderError::failed(error),
        }
    }
}

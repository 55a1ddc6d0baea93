//! Why a slice did not come from a peer.

use std::time::Duration;

use pelton_nexus_proto::plain;
use pelton_region_format::{FormatError, Key};
use pelton_worker::{LeaseError, LoadError};
use tonic::Status;

use crate::dial::DialError;

/// Why a slice did not come from a peer. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The peer can't be reached: try another.
    #[error("{key} can't be had from its peer")]
    Dial {
        /// The slice.
        key: Key,
        /// Where, and why.
        source: Box<DialError>,
    },
    /// The peer does not have it, or with another fingerprint: ask another.
    #[error("{peer} does not have {key}: {text}")]
    NotFound {
        /// Who was asked.
        peer: Box<str>,
        /// The slice.
        key: Key,
        /// What it says.
        text: String,
    },
    /// The peer refuses: what it says tells whether another time, another certificate or another version helps.
    #[error("{peer} does not give {key}: {status}")]
    Refused {
        /// Who was asked.
        peer: Box<str>,
        /// The slice.
        key: Key,
        /// What it says.
        status: Status,
    },
    /// The slice was replaced at the peer while it was fetched: ask for the manifest again.
    #[error("{peer} has another {key} by now, told at region {region}: {text}")]
    Changed {
        /// Who was asked.
        peer: Box<str>,
        /// The slice.
        key: Key,
        /// Which region.
        region: u32,
        /// What it says.
        text: String,
    },
    /// What the peer tells of the slice can't be: go elsewhere.
    #[error("what {peer} tells of {key} can't be: {text}")]
    Manifest {
        /// Who was asked.
        peer: Box<str>,
        /// The slice.
        key: Key,
        /// What is wrong with it.
        text: String,
    },
    /// The peer's bytes are not what the content id stands for, each time they were asked for: go elsewhere, and have the
    /// peer look at its disk.
    #[error("{peer} sends {key} damaged: region {region}, at offset {offset}")]
    Damaged {
        /// Who was asked.
        peer: Box<str>,
        /// The slice.
        key: Key,
        /// Which region.
        region: u32,
        /// Where in its file.
        offset: u64,
        /// What does not hold; nothing if it is whole, but another region's.
        source: Option<Box<FormatError>>,
    },
    /// The peer breaks the rules: another offset than the next, too much, too little.
    #[error("{peer} sends what was not asked for, of {key}, region {region}, at offset {offset}: {text}")]
    Protocol {
        /// Who was asked.
        peer: Box<str>,
        /// The slice.
        key: Key,
        /// Which region.
        region: u32,
        /// Where in its file.
        offset: u64,
        /// What it did.
        text: String,
    },
    /// The peer says nothing any more: go elsewhere.
    #[error("{peer} has sent nothing for {waited:?}, of {key}, region {region}, at offset {offset}")]
    Idle {
        /// Who was asked.
        peer: Box<str>,
        /// The slice.
        key: Key,
        /// Which region.
        region: u32,
        /// Where in its file.
        offset: u64,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The connection broke, or the peer could not go on: try again, or elsewhere.
    #[error("{peer} has broken off, of {key}, region {region}, at offset {offset}: {text}")]
    Lost {
        /// Who was asked.
        peer: Box<str>,
        /// The slice.
        key: Key,
        /// Which region.
        region: u32,
        /// Where in its file.
        offset: u64,
        /// Why, if it is known.
        text: String,
    },
    /// The deadline passed.
    #[error("{key} did not come from {peer} in time")]
    Late {
        /// Who was asked.
        peer: Box<str>,
        /// The slice.
        key: Key,
    },
    /// Nobody wants it any more.
    #[error("the fetch of {key} from {peer} was cancelled")]
    Cancelled {
        /// Who was asked.
        peer: Box<str>,
        /// The slice.
        key: Key,
    },
    /// The cache does not take it.
    #[error("what comes from {peer} can't be taken")]
    Load {
        /// Who was asked.
        peer: Box<str>,
        /// Which slice, and why.
        source: Box<LoadError>,
    },
    /// There is nothing here to repair.
    #[error("there is nothing here to repair from {peer}")]
    NothingHere {
        /// Who was to be asked.
        peer: Box<str>,
        /// Which slice, and why.
        source: Box<LeaseError>,
    },
}

/// What a fetch is about, for errors.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) peer: Box<str>,
    pub(super) key: Key,
}

impl Subject {
    pub(super) fn load(&self, source: LoadError) -> FetchError {
        match source {
            LoadError::NotASlice { source, .. } => self.manifest(&source),
            error @ LoadError::Regions { .. } => self.manifest(&error),
            LoadError::Late { .. } => self.late(),
            source => FetchError::Load { peer: self.peer.clone(), source: Box::new(source) },
        }
    }

    pub(super) fn late(&self) -> FetchError {
        FetchError::Late { peer: self.peer.clone(), key: self.key.clone() }
    }

    pub(super) fn cancelled(&self) -> FetchError {
        FetchError::Cancelled { peer: self.peer.clone(), key: self.key.clone() }
    }

    pub(super) fn refused(&self, status: Status) -> FetchError {
        let Subject { peer, key } = self.clone();
        match status.code() {
            tonic::Code::NotFound => FetchError::NotFound { peer, key, text: plain(status.message()) },
            _ => FetchError::Refused { peer, key, status },
        }
    }

    fn manifest(&self, error: &dyn std::error::Error) -> FetchError {
        let Subject { peer, key } = self.clone();
        FetchError::Manifest { peer, key, text: error.to_string() }
    }
}

//! Where a feed's data comes from.

use std::error::Error;

use pelton_nexus_proto::ParcelError;
use pelton_nexus_proto::feed::Tally;
use pelton_nexus_proto::messages::{Reason, SliceRequest};

use super::outlet::Outlet;

/// Has slices to give: what a source implements. Both steps may block; they run on threads that are made for that.
///
/// ```
/// use pelton_nexus::feed::{Offering, Source, SourceError, SliceRequest};
///
/// /// Counts to as many as its slice's number.
/// struct Counting;
///
/// impl Source for Counting {
///     fn open(&self, request: &SliceRequest) -> Result<Offering, SourceError> {
///         let count: u64 = request.key.rsplit('#').next().and_then(|slice| slice.parse().ok()).unwrap_or(0);
///         let send = move |outlet: &Outlet| {
///             for number in 0..count {
///                 outlet.push(&number.to_le_bytes())?;
///             }
///             Ok(outlet.tally())
///         };
///         Ok(Offering::new(send).items_expected(count).replayable(b"counting 1"))
///     }
/// }
/// # use pelton_nexus::feed::Outlet;
/// ```
pub trait Source: Send + Sync + 'static {
    /// Looks whether it has what is asked for, and says how it would send it. Filter, sampling and properties are in the
    /// source's own words; `request.caps` it keeps itself.
    ///
    /// # Errors
    /// [`SourceError`]: the other end is told.
    fn open(&self, request: &SliceRequest) -> Result<Offering, SourceError>;
}

type SendData = Box<dyn FnOnce(&Outlet) -> Result<Tally, SourceError> + Send>;

/// What a source will send for one request.
#[must_use = "nothing is sent before it is given to a stream"]
pub struct Offering {
    pub(super) send: SendData,
    pub(super) replayable: bool,
    pub(super) resume_token: Vec<u8>,
    pub(super) items_expected: u64,
    pub(super) bytes_expected: u64,
}

impl Offering {
    /// Data that `send` pushes, of which nothing else is known. It ends with what it has to tell of its items;
    /// [`Outlet::tally`] does for a source that sends all it has.
    pub fn new(send: impl FnOnce(&Outlet) -> Result<Tally, SourceError> + Send + 'static) -> Offering {
        Offering {
            send: Box::new(send),
            replayable: false,
            resume_token: Vec::new(),
            items_expected: 0,
            bytes_expected: 0,
        }
    }

    /// It would push the same blobs again, in the same order, from one thread. Then a broken stream goes on where it
    /// broke: blobs that have arrived are pushed again and not sent. `token` stands for this version of the data; who
    /// comes back with another one is sent away.
    ///
    /// Its parcels go when they are full, however long that takes: one that fills none (1 MiB, unless set otherwise) within
    /// the other end's [`Timing::stall_max`](super::Timing::stall_max) is given up, also while it makes again what has arrived.
    pub fn replayable(self, token: impl Into<Vec<u8>>) -> Offering {
        Offering { replayable: true, resume_token: token.into(), ..self }
    }

    /// How many items will come, for the other end's progress. Nothing is checked against it.
    pub fn items_expected(self, items: u64) -> Offering {
        Offering { items_expected: items, ..self }
    }

    /// How many bytes will come, for the other end's progress. Nothing is checked against it.
    pub fn bytes_expected(self, bytes: u64) -> Offering {
        Offering { bytes_expected: bytes, ..self }
    }
}

/// Why a source does not send, or does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It has no such slice, or not with that fingerprint. Another source may.
    #[error("the source has no such slice")]
    NotFound,
    /// What is asked for makes no sense to it: a filter, a property.
    #[error("the source does not understand the request: {0}")]
    Invalid(String),
    /// It can't serve now. Another one may.
    #[error("the source is not available: {0}")]
    Unavailable(String),
    /// It failed.
    #[error(transparent)]
    Failed(Box<dyn Error + Send + Sync>),
    /// A blob can't be sent, for its size. Count it as rejected and go on, or end with this.
    #[error("a blob can't be sent")]
    Blob(#[source] ParcelError),
    /// What it makes now is not what it made before, so a broken stream can't go on.
    #[error("the source makes other data than before")]
    NotReplayable,
    /// The stream is over: nobody takes what it pushes any more. End with it.
    #[error("the stream is over")]
    Stopped,
}

impl SourceError {
    /// Any error of the source.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> SourceError {
        SourceError::Failed(error.into())
    }

    /// As the other end is told it.
    pub(super) fn reason(&self) -> Reason {
        match self {
            SourceError::NotFound => Reason::NotFound,
            SourceError::Invalid(_) => Reason::Invalid,
            SourceError::Unavailable(_) => Reason::Unavailable,
            SourceError::NotReplayable => Reason::NotReplayable,
            SourceError::Blob(ParcelError::Limit(_)) => Reason::ResourceExhausted,
            SourceError::Failed(_) | SourceError::Blob(_) | SourceError::Stopped => Reason::Source,
        }
    }
}

impl From<std::io::Error> for SourceError {
    fn from(error: std::io::Error) -> SourceError {
        SourceError::failed(error)
    }
}

//! How a stream ends if not whole.

use std::fmt;
use std::time::Duration;

use pelton_region_format::KeyError;

use super::kind_name;
use crate::limits::{LimitExceeded, Limits};
use crate::messages::feed_message::Kind;
use crate::messages::{Abort, FeedMessage, Reason};
use crate::parcel::ParcelError;
use crate::text::plain;

/// Why a stream ended before it was whole. [`StreamError::reason`] says it in the wire's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The connection is gone. Resume or start anew.
    #[error("the connection was lost")]
    Lost,
    /// Nothing was heard for too long. Resume or start anew, best elsewhere.
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    /// The peer lives but does not go on. Start anew after a pause.
    #[error("no progress for {0:?}")]
    Stalled(Duration),
    /// The stream took longer than it may.
    #[error("the stream's deadline has passed")]
    Deadline,
    /// One side ended it: see `by`, `reason` and `limit` for what to do.
    #[error("aborted by {by}: {reason:?}{}{}: {text}", if .limit.is_empty() { "" } else { " of " }, .limit)]
    Aborted {
        /// Who.
        by: Side,
        /// Why.
        reason: Reason,
        /// Which limit, if it was one.
        limit: String,
        /// In words.
        text: String,
    },
    /// The two ends have no version in common. One of them must be updated.
    #[error("versions {theirs} were offered, {ours} is spoken here")]
    Version {
        /// What this end speaks.
        ours: String,
        /// What the peer offered or chose.
        theirs: String,
    },
    /// A limit was passed. Less at a time may work, or a higher limit.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// What is asked for is not well formed.
    #[error("the request's {field} is wrong: {text}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        text: String,
    },
    /// The peer answered for another slice.
    #[error("asked for {expected}, the peer answers for {found}")]
    OtherSlice {
        /// What was asked for.
        expected: String,
        /// What the peer named.
        found: String,
    },
    /// The source can't go on from where the receiver is. Start anew.
    #[error("can't resume at parcel {parcels}: the source is not replayable")]
    NotReplayable {
        /// Where the receiver wanted to go on.
        parcels: u64,
    },
    /// A message came when it must not.
    #[error("{found} came while {state}")]
    Unexpected {
        /// The message.
        found: &'static str,
        /// What this end was doing.
        state: &'static str,
    },
    /// A parcel names a codec that was not agreed on.
    #[error("parcel {sequence} has codec {found}, which was not agreed on")]
    Codec {
        /// Which parcel.
        sequence: u64,
        /// The codec's number.
        found: i32,
    },
    /// A parcel is missing, or came twice. Resume or start anew.
    #[error("parcel {found} came, {expected} was expected: {}", if found < expected { "it is a duplicate" } else { "some are missing" })]
    Sequence {
        /// Its number.
        found: u64,
        /// The number that was next.
        expected: u64,
    },
    /// A frame of a blob is missing, came twice, or something came between. Resume or start anew.
    #[error("the frame of parcel {sequence} at byte {found} does not continue it at byte {expected}")]
    Frame {
        /// Which parcel.
        sequence: u64,
        /// Where the frame stands; 0 if it was no frame.
        found: u64,
        /// Where it should.
        expected: u64,
    },
    /// Frames of one blob disagree about it, or a frame is empty or reaches past its end.
    #[error("a frame of parcel {sequence} has an impossible {field}")]
    FrameHead {
        /// Which parcel.
        sequence: u64,
        /// Which field.
        field: &'static str,
    },
    /// The bytes do not have their checksum. Resume or start anew.
    #[error("parcel {sequence}, bytes from {offset}: checksum {found:#010x}, declared {expected:#010x}")]
    Damaged {
        /// Which parcel.
        sequence: u64,
        /// Where in its packed body.
        offset: u64,
        /// The checksum of the bytes.
        found: u32,
        /// The checksum that came with them.
        expected: u32,
    },
    /// A parcel's sizes can't be true.
    #[error("parcel {sequence}: {source}")]
    Parcel {
        /// Which parcel.
        sequence: u64,
        /// What is wrong with it.
        source: ParcelError,
    },
    /// More came than credit was given for.
    #[error("parcel {sequence} costs {cost}, {credit} of credit were left")]
    Credit {
        /// Which parcel.
        sequence: u64,
        /// What it costs.
        cost: u64,
        /// What was left.
        credit: u64,
    },
    /// The two ends have counted differently. Start anew.
    #[error("{found} {counted} were counted here, {expected} by the peer")]
    Counts {
        /// What was counted.
        counted: Counted,
        /// How many, here.
        found: u64,
        /// How many, by the peer.
        expected: u64,
    },
    /// The source contradicts itself.
    #[error("{rejected} items were rejected of only {potential} potential ones")]
    Tally {
        /// Rejected items.
        rejected: u64,
        /// Potential items.
        potential: u64,
    },
}

/// One end, as an error tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This end.
    Here,
    /// The peer.
    Peer,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Here => "this end",
            Side::Peer => "the peer",
        })
    }
}

/// What is counted on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Parcels and framed blobs.
    Parcels,
    /// Blobs.
    Items,
    /// Bytes inflated, lengths included.
    Bytes,
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Counted::Parcels => "parcels",
            Counted::Items => "items",
            Counted::Bytes => "bytes",
        })
    }
}

impl StreamError {
    /// The reason that an Abort gives for it.
    pub fn reason(&self) -> Reason {
        match self {
            StreamError::Lost => Reason::Unavailable,
            StreamError::Silent(_) | StreamError::Stalled(_) => Reason::Idle,
            StreamError::Deadline => Reason::Deadline,
            StreamError::Aborted { reason, .. } => *reason,
            StreamError::Version { .. } => Reason::Version,
            StreamError::Limit(_) => Reason::ResourceExhausted,
            StreamError::Invalid { .. } => Reason::Invalid,
            StreamError::NotReplayable { .. } => Reason::NotReplayable,
            StreamError::OtherSlice { .. } | StreamError::Unexpected { .. } => Reason::Protocol,
            StreamError::Codec { .. } | StreamError::FrameHead { .. } => Reason::Protocol,
            StreamError::Sequence { .. } | StreamError::Frame { .. } => Reason::Sequence,
            StreamError::Damaged { .. } | StreamError::Parcel { .. } => Reason::Damaged,
            StreamError::Credit { .. } => Reason::Credit,
            StreamError::Counts { .. } | StreamError::Tally { .. } => Reason::Counts,
        }
    }

    /// Whether it is the wire's fault, so that a replayable stream can go on where it broke.
    pub fn is_resumable(&self) -> bool {
        match self {
            StreamError::Lost | StreamError::Silent(_) => true,
            StreamError::Aborted { reason, .. } => {
                matches!(reason, Reason::Damaged | Reason::Sequence | Reason::Unavailable)
            }
            error => matches!(error.reason(), Reason::Damaged | Reason::Sequence),
        }
    }

    /// What the peer is told, unless it is gone or has said it itself.
    pub fn to_abort(&self, limits: &Limits) -> Option<Abort> {
        let (text, limit) = match self {
            StreamError::Lost | StreamError::Aborted { by: Side::Peer, .. } => return None,
            StreamError::Aborted { text, limit, .. } => (text.clone(), limit.clone()),
            StreamError::Limit(error) => (self.to_string(), error.limit.name().to_owned()),
            _ => (self.to_string(), String::new()),
        };
        Some(Abort { reason: self.reason().into(), text: cut(text, limits), limit })
    }

    /// What the peer said when it ended the stream, if this is such a message; else that it broke a rule.
    pub fn of_message(message: FeedMessage, limits: &Limits) -> StreamError {
        match message.kind {
            Some(Kind::Abort(abort)) => StreamError::of_abort(abort, limits),
            Some(kind) => StreamError::Unexpected { found: kind_name(&kind), state: "an Abort is awaited" },
            None => StreamError::Unexpected { found: "an unknown message", state: "an Abort is awaited" },
        }
    }

    pub(super) fn of_abort(abort: Abort, limits: &Limits) -> StreamError {
        StreamError::Aborted {
            by: Side::Peer,
            // A reason of a later version is none we could act on.
            reason: Reason::try_from(abort.reason).unwrap_or(Reason::Internal),
            limit: plain(&cut(abort.limit, limits)),
            text: plain(&cut(abort.text, limits)),
        }
    }
}

impl From<KeyError> for StreamError {
    fn from(error: KeyError) -> StreamError {
        StreamError::Invalid { field: "key", text: error.to_string() }
    }
}

/// A text within `text_bytes_max`, cut between characters.
fn cut(mut text: String, limits: &Limits) -> String {
    text.truncate(text.floor_char_boundary(usize::try_from(limits.text_bytes_max).unwrap_or(usize::MAX)));
    text
}

#[cfg(feature = "grpc")]
impl From<&StreamError> for tonic::Status {
    fn from(error: &StreamError) -> tonic::Status {
        use tonic::Code;
        let code = match error.reason() {
            Reason::Cancelled => Code::Cancelled,
            Reason::Version | Reason::NotReplayable => Code::FailedPrecondition,
            Reason::Protocol | Reason::Invalid => Code::InvalidArgument,
            Reason::NotFound => Code::NotFound,
            Reason::Forbidden => Code::PermissionDenied,
            Reason::ResourceExhausted | Reason::Credit => Code::ResourceExhausted,
            Reason::Damaged | Reason::Sequence | Reason::Counts => Code::DataLoss,
            Reason::Idle | Reason::Unavailable => Code::Unavailable,
            Reason::Deadline => Code::DeadlineExceeded,
            Reason::Unspecified | Reason::Source | Reason::Internal => Code::Internal,
        };
        tonic::Status::new(code, error.to_string())
    }
}

#[cfg(all(test, feature = "grpc"))]
mod tests {
    use super::*;

    /// The page that foreign implementers read tells the same gRPC status for each reason.
    #[test]
    fn the_documented_status_of_each_reason_is_this_one() {
        let page = include_str!("../../../docs/nexus.md");
        let rows = page.split("| reason | gRPC status |").nth(1).unwrap().split("### 1.9").next().unwrap();
        for reason in (0..).map_while(|number| Reason::try_from(number).ok()) {
            let error =
                StreamError::Aborted { by: Side::Here, reason, limit: String::new(), text: String::new() };
            let code = format!("{:?}", tonic::Status::from(&error).code());
            let name = reason.as_str_name().strip_prefix("REASON_").unwrap();
            let told = rows.lines().find(|row| {
                let reasons = row.split('|').nth(1).unwrap_or_default();
                reasons.split(',').any(|told| told.trim() == name)
            });
            let status = told.unwrap_or_else(|| panic!("{name} is not told")).split('|').nth(2).unwrap();
            assert_eq!(status.trim().replace('_', "").to_lowercase(), code.to_lowercase(), "{name}");
        }
    }
}

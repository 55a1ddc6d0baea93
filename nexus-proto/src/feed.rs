//! One stream of Feed, seen from either end, as plain values: events in, commands out.
//!
//! - [`Receiver`] is the end that wants data, [`Sender`] the end that has it. Either may have opened the stream.
//! - [`answer`] is what the end that did not open does with the first message.
//! - [`StreamError`] is how a stream ends if not whole.
//!
//! Whoever drives one gives it every message, says when time has passed ([`Receiver::next_wake`]), when
//! memory became free and when the connection is lost, and runs the commands in their order. All that a peer
//! says is checked here but for what is inside a parcel, which [`crate::Parcel::open`] checks.

mod error;
mod hello;
mod pulse;
mod receiver;
mod request;
mod sender;

use std::time::{Duration, Instant};

pub use error::{Counted, Side, StreamError};
pub use hello::{Answer, Asked, Profile, Terms, VERSION, answer};
pub use receiver::{Receiver, ReceiverCommand, ReceiverEvent};
pub use sender::{Sender, SenderCommand, SenderEvent};

use crate::messages::FeedMessage;
use crate::messages::feed_message::Kind;

/// How long one end is patient, and how often it gives a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// After so long without another message, a heartbeat is sent.
    pub heartbeat_every: Duration,
    /// After so long without any message from the peer, the stream ends.
    pub silence_max: Duration,
    /// After so long without progress that the peer could have made, the stream ends.
    pub stall_max: Duration,
    /// When the stream ends at the latest.
    pub deadline: Option<Instant>,
}

impl Default for Timing {
    /// Six heartbeats may be lost before a peer is given up.
    fn default() -> Timing {
        Timing {
            heartbeat_every: Duration::from_secs(5),
            silence_max: Duration::from_secs(30),
            stall_max: Duration::from_secs(5 * 60),
            deadline: None,
        }
    }
}

/// What went through a stream, from the start of the slice. Both ends count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Parcels and framed blobs.
    pub parcels: u64,
    /// Blobs.
    pub items: u64,
    /// Bytes inflated, lengths included.
    pub bytes: u64,
}

impl Totals {
    fn add(&mut self, items: u32, bytes: u64) {
        self.parcels += 1;
        self.items = self.items.saturating_add(items.into());
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether the peer has counted the same.
    fn compare(&self, declared: Totals) -> Result<(), StreamError> {
        let pairs = [
            (Counted::Parcels, self.parcels, declared.parcels),
            (Counted::Items, self.items, declared.items),
            (Counted::Bytes, self.bytes, declared.bytes),
        ];
        match pairs.into_iter().find(|(_, found, expected)| found != expected) {
            Some((counted, found, expected)) => Err(StreamError::Counts { counted, found, expected }),
            None => Ok(()),
        }
    }
}

/// What a source says about its items beside those it sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many it meant to send.
    pub expected: u64,
    /// How many there are without sampling and caps.
    pub potential: u64,
    /// How many it left out because they were faulty or too large.
    pub rejected: u64,
}

/// A message of this kind.
pub fn message(kind: impl Into<Kind>) -> FeedMessage {
    FeedMessage { kind: Some(kind.into()) }
}

/// Every message of a stream is a kind, and every kind has one name.
macro_rules! kinds {
    ($($kind:ident)*) => {
        $(impl From<crate::messages::$kind> for Kind {
            fn from(message: crate::messages::$kind) -> Kind {
                Kind::$kind(message)
            }
        })*

        fn kind_name(kind: &Kind) -> &'static str {
            match kind {
                Kind::Request(_) => "SliceRequest",
                $(Kind::$kind(_) => stringify!($kind),)*
            }
        }
    };
}

kinds!(Hello Welcome Accept Credit Want Parcel BlobFrame Heartbeat Complete Done Abort);

impl From<crate::messages::SliceRequest> for Kind {
    fn from(message: crate::messages::SliceRequest) -> Kind {
        Kind::Request(message)
    }
}

#[cfg(test)]
mod tests;

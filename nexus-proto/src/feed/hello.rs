//! The first two messages: which version, which codecs, who is who.

use prost::Message;

use super::request::check_slice;
use super::{StreamError, kind_name, message};
use crate::limits::{Limit, Limits};
use crate::messages::feed_message::Kind;
use crate::messages::{Codec as WireCodec, FeedMessage, Hello, Lane, Offer, Role, Welcome};
use crate::parcel::Codec;
use crate::text::plain;

/// The version that `docs/nexus.md` tells.
pub const VERSION: u32 = 1;

/// What one end can do.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Every version it speaks.
    pub versions: Vec<u32>,
    /// Every codec it speaks, the preferred one first. [`Codec::None`] is always among them, said or not.
    pub codecs: Vec<Codec>,
    /// Name and version of the program, for the peer's log.
    pub software: String,
    /// Whether it can open a lane.
    pub lane: bool,
    /// What it allows.
    pub limits: Limits,
}

impl Default for Profile {
    fn default() -> Profile {
        Profile {
            versions: vec![VERSION],
            codecs: Codec::BUILT_IN.to_vec(),
            software: concat!("pelton ", env!("CARGO_PKG_VERSION")).to_owned(),
            lane: false,
            limits: Limits::default(),
        }
    }
}

/// What both ends have agreed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// The highest version that both speak.
    pub version: u32,
    /// The codecs that both speak, in the opener's order; [`Codec::None`] is among them.
    pub codecs: Vec<Codec>,
    /// The largest parcel that both take.
    pub parcel_bytes_max: u64,
    /// What the peer says it is.
    pub peer_software: String,
    /// The lane that the acceptor offers.
    pub lane: Option<Lane>,
}

impl Terms {
    /// The first codec that both speak, which is what the opener prefers.
    pub fn codec(&self) -> Codec {
        self.codecs.first().copied().unwrap_or_default()
    }

    /// The codec of this number, if it was agreed on.
    pub(super) fn agreed(&self, number: i32) -> Option<Codec> {
        let codec = from_wire(number)?;
        self.codecs.contains(&codec).then_some(codec)
    }
}

/// What an acceptor makes of a Hello.
#[derive(Clone, Debug)]
pub struct Answer {
    /// To be sent before anything else.
    pub welcome: FeedMessage,
    /// What holds from now on.
    pub terms: Terms,
    /// What the opener wants: this decides which end the acceptor is.
    pub asked: Asked,
}

/// What the opener of a stream wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// Data: the acceptor is the [`super::Sender`].
    Pull,
    /// To give data: the acceptor is the [`super::Receiver`].
    Push(Offer),
}

/// Answers the first message of a stream that somebody else has opened.
///
/// If it does not come within [`super::Timing::silence_max`], end the stream without an answer. `lane` is
/// called if the opener can open one and all else is right; nothing means that there is none.
///
/// # Errors
/// [`StreamError`] if there is no common version, or the message is not a proper Hello. Answer with its
/// [`StreamError::to_abort`], and the stream is over.
pub fn answer(
    first: FeedMessage,
    profile: &Profile,
    lane: impl FnOnce() -> Option<Lane>,
) -> Result<Answer, StreamError> {
    let hello = match first.kind {
        Some(Kind::Hello(hello)) => hello,
        Some(Kind::Abort(abort)) => return Err(StreamError::of_abort(abort, &profile.limits)),
        Some(other) => {
            return Err(StreamError::Unexpected { found: kind_name(&other), state: "Hello is awaited" });
        }
        None => {
            return Err(StreamError::Unexpected { found: "an unknown message", state: "Hello is awaited" });
        }
    };
    profile.limits.check(Limit::HelloBytes, hello.encoded_len() as u64)?;
    let common = hello.versions.iter().filter(|version| profile.versions.contains(version)).max();
    let Some(&version) = common else {
        return Err(StreamError::Version { ours: list(&profile.versions), theirs: list(&hello.versions) });
    };
    let asked = match (Role::try_from(hello.role), hello.offer) {
        (Ok(Role::Receiver), None) => Asked::Pull,
        (Ok(Role::Sender), Some(offer)) => {
            check_slice(&offer.key, &offer.fingerprint)?;
            Asked::Push(offer)
        }
        (Ok(Role::Receiver), Some(_)) => return Err(invalid_role("a receiver has nothing to offer")),
        (Ok(Role::Sender), None) => return Err(invalid_role("a sender must say what it offers")),
        _ => return Err(invalid_role("it must say receiver or sender")),
    };
    let terms = Terms {
        version,
        codecs: common_codecs(&hello.codecs, profile),
        parcel_bytes_max: smaller(hello.parcel_bytes_max, &profile.limits),
        peer_software: plain(&hello.software),
        lane: if hello.lane { lane() } else { None },
    };
    let welcome = Welcome {
        version,
        codecs: terms.codecs.iter().map(|&codec| to_wire(codec)).collect(),
        software: profile.software.clone(),
        parcel_bytes_max: profile.limits.parcel_bytes_max,
        lane: terms.lane.clone(),
    };
    Ok(Answer { welcome: message(welcome), terms, asked })
}

/// The opener's first message.
pub(super) fn hello(profile: &Profile, offer: Option<Offer>) -> Hello {
    Hello {
        versions: profile.versions.clone(),
        role: if offer.is_some() { Role::Sender } else { Role::Receiver }.into(),
        codecs: profile.codecs.iter().map(|&codec| to_wire(codec)).collect(),
        software: profile.software.clone(),
        parcel_bytes_max: profile.limits.parcel_bytes_max,
        offer,
        lane: profile.lane,
    }
}

/// What the opener makes of the answer.
pub(super) fn settle(welcome: Welcome, profile: &Profile) -> Result<Terms, StreamError> {
    profile.limits.check(Limit::HelloBytes, welcome.encoded_len() as u64)?;
    if !profile.versions.contains(&welcome.version) {
        return Err(StreamError::Version {
            ours: list(&profile.versions),
            theirs: welcome.version.to_string(),
        });
    }
    Ok(Terms {
        version: welcome.version,
        codecs: common_codecs(&welcome.codecs, profile),
        parcel_bytes_max: smaller(welcome.parcel_bytes_max, &profile.limits),
        peer_software: plain(&welcome.software),
        // A lane that was not asked for is not opened.
        lane: welcome.lane.filter(|_| profile.lane),
    })
}

/// Those of the peer's codecs that this end speaks too, in the peer's order, none at the end if not before.
fn common_codecs(theirs: &[i32], profile: &Profile) -> Vec<Codec> {
    let mut codecs: Vec<Codec> = Vec::new();
    for codec in theirs.iter().filter_map(|&number| from_wire(number)).chain([Codec::None]) {
        let spoken = codec == Codec::None || profile.codecs.contains(&codec);
        if spoken && !codecs.contains(&codec) {
            codecs.push(codec);
        }
    }
    codecs
}

fn smaller(theirs: u64, limits: &Limits) -> u64 {
    let theirs = if theirs == 0 { Limits::default().parcel_bytes_max } else { theirs };
    theirs.min(limits.parcel_bytes_max)
}

/// The number that stands for a codec on the wire.
pub(super) fn to_wire(codec: Codec) -> i32 {
    let codec = match codec {
        Codec::None => WireCodec::None,
        Codec::Lz4 => WireCodec::Lz4,
        Codec::Zstd => WireCodec::Zstd,
    };
    codec.into()
}

fn from_wire(number: i32) -> Option<Codec> {
    match WireCodec::try_from(number) {
        Ok(WireCodec::None) => Some(Codec::None),
        Ok(WireCodec::Lz4) => Some(Codec::Lz4),
        Ok(WireCodec::Zstd) => Some(Codec::Zstd),
        Err(_) => None,
    }
}

fn invalid_role(text: &str) -> StreamError {
    StreamError::Invalid { field: "role", text: text.to_owned() }
}

/// Versions for people, and no more of them than fit a line.
fn list(versions: &[u32]) -> String {
    if versions.is_empty() {
        return "none".to_owned();
    }
    let texts: Vec<String> = versions.iter().take(16).map(u32::to_string).collect();
    texts.join(", ")
}

//! What Pelton's processes say to each other: messages, parcels, and what each end of a stream decides.
//!
//! ```text
//!   source ──▶ ParcelPacker ──▶ Sender ──▶ messages, or frames of a lane ──▶ Receiver ──▶ parcels
//!                                 ▲                                             │
//!                                 └──────────── credit, in bytes ───────────────┘
//! ```
//!
//! This crate opens no socket, starts no thread and asks no clock: events go in, commands come out, and
//! whoever holds the sockets runs them. It believes nothing that a peer says. The same, for other languages,
//! is told in `docs/nexus.md`.
//!
//! - To pack and unpack: [`ParcelPacker`], [`Parcel`]. That is all without the feature `messages`.
//! - To run a stream: [`feed::Receiver`] and [`feed::Sender`].
//! - For bulk bytes beside gRPC: [`lane`].
//! - What bounds everything: [`Limits`].
#![forbid(unsafe_code)]

#[cfg(feature = "messages")]
pub mod feed;
#[cfg(feature = "messages")]
pub mod lane;
mod limits;
#[cfg(feature = "messages")]
pub mod messages;
mod parcel;
mod text;

pub use limits::{Limit, LimitExceeded, LimitRefused, Limits};
pub use parcel::{
    Blobs, Codec, LENGTH_BYTES, OpenParcel, PARCEL_COST_BYTES, PackerOptions, Parcel, ParcelError,
    ParcelPacker, Rooms,
};
pub use text::plain;

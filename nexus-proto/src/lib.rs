//! temporary
#![forbid(unsafe_code)]
mod limits;
mod parcel;
pub use limits::{Limit, LimitExceeded, Limits};
pub use parcel::{Blobs, Codec, LENGTH_BYTES, OpenParcel, PackerOptions, Parcel, ParcelError, ParcelPacker, cost};
#[cfg(feature = "messages")]
pub mod messages;

//! What can be wrong with a parcel.

use pelton_region_format::BLOB_BYTES_MAX;

use super::Codec;
use crate::limits::LimitExceeded;

/// Why a parcel can't be taken or made. Nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParcelError {
    /// It is larger than allowed. Smaller parcels, or a higher limit, may work.
    #[error(transparent)]
    Limit(LimitExceeded),
    /// The body does not inflate, or this build does not have the codec.
    #[error("the parcel's body can't be packed or unpacked as {codec}: {text}")]
    Codec {
        /// The codec that was named.
        codec: Codec,
        /// What the codec says.
        text: String,
    },
    /// Its packed size is impossible for its codec.
    #[error("a parcel of codec {codec} can't have {packed_bytes} bytes packed and {inflated_bytes} inflated")]
    PackedBytes {
        /// The codec.
        codec: Codec,
        /// Its size packed.
        packed_bytes: u64,
        /// Its declared size inflated.
        inflated_bytes: u64,
    },
    /// The body inflates to another size than was declared.
    #[error("the parcel inflates to {found} bytes, it declares {expected}")]
    InflatedBytes {
        /// Its size.
        found: u64,
        /// The declared size.
        expected: u64,
    },
    /// It has no blob: such a parcel is not sent.
    #[error("the parcel declares no blob")]
    NoBlob,
    /// Even empty blobs would not fit.
    #[error(
        "the parcel declares {blob_count} blobs, their lengths alone are more than its {inflated_bytes} bytes"
    )]
    Lengths {
        /// The declared number.
        blob_count: u32,
        /// The declared size.
        inflated_bytes: u64,
    },
    /// A blob reaches past the body's end.
    #[error("blob {blob} of the parcel, at byte {offset}, needs {found} bytes, {room} are left")]
    Blob {
        /// Which blob of the parcel.
        blob: u32,
        /// Where its length stands.
        offset: u64,
        /// What it needs.
        found: u64,
        /// What is left.
        room: u64,
    },
    /// There is more than the declared blobs.
    #[error("the parcel declares {blob_count} blobs, {bytes} bytes follow them")]
    Rest {
        /// The declared number.
        blob_count: u32,
        /// What follows.
        bytes: u64,
    },
    /// No blob is that long.
    #[error("a blob has {found} bytes, at most {BLOB_BYTES_MAX} are possible")]
    BlobTooLong {
        /// Its length.
        found: u64,
    },
}

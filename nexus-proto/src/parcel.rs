//! Parcels: batches of blobs on their way, packed by a codec.
//!
//! Inflated, a parcel's body is each blob's length, a u32 in little-endian, and its bytes, one after the
//! other. That is what the cache queues, so what arrives is never packed anew.

mod body;
mod codec;
mod error;
mod packer;
mod rooms;

use bytes::Bytes;
use pelton_region_format::{BLOB_BYTES_MAX, crc32c};

pub use body::Blobs;
pub use codec::Codec;
pub use error::ParcelError;
pub use packer::{PackerOptions, ParcelPacker};
pub use rooms::Rooms;

use crate::limits::{Limit, LimitExceeded, Limits};

/// The bytes in front of each blob: its length.
pub const LENGTH_BYTES: usize = 4;

/// What a parcel costs beside its bytes: what it takes in queues, so that tiny ones are bounded too.
pub const PARCEL_COST_BYTES: u64 = 256;

/// A batch of blobs: inflated, or deflated by a [`Codec`].
///
/// Whoever packed it may lie: nothing of it is believed before [`Parcel::open`] has checked it.
#[derive(Clone, Debug)]
pub struct Parcel {
    codec: Codec,
    blob_count: u32,
    inflated_bytes: u64,
    body: Bytes,
    /// The body's checksum, if whoever made it has summed it.
    crc32c: Option<u32>,
}

impl PartialEq for Parcel {
    /// What it is, not what is known of it.
    fn eq(&self, other: &Parcel) -> bool {
        (self.codec, self.blob_count, self.inflated_bytes)
            == (other.codec, other.blob_count, other.inflated_bytes)
            && self.body == other.body
    }
}

impl Eq for Parcel {}

impl Parcel {
    /// Takes a body that somebody else has packed.
    pub fn packed(codec: Codec, blob_count: u32, inflated_bytes: u64, body: impl Into<Bytes>) -> Parcel {
        Parcel { codec, blob_count, inflated_bytes, body: body.into(), crc32c: None }
    }

    /// Packs an inflated body, or leaves it as it is if the codec does not make it smaller.
    ///
    /// # Errors
    /// [`ParcelError::Codec`] if this build does not have the codec, or the codec refuses, which it does
    /// only for want of memory.
    pub fn deflate(codec: Codec, blob_count: u32, body: Vec<u8>) -> Result<Parcel, ParcelError> {
        let inflated_bytes = body.len() as u64;
        Ok(match codec.deflate(&body)? {
            Some(packed) => Parcel::packed(codec, blob_count, inflated_bytes, packed),
            None => Parcel::packed(Codec::None, blob_count, inflated_bytes, body),
        })
    }

    /// The same with a body in a room, which comes back to where it is from. `crc32c` is the body's, if it is known.
    fn deflate_in(
        codec: Codec,
        blob_count: u32,
        body: Vec<u8>,
        crc32c: Option<u32>,
        rooms: &Rooms,
    ) -> Result<Parcel, ParcelError> {
        let inflated_bytes = body.len() as u64;
        Ok(match codec.deflate(&body)? {
            Some(packed) => {
                rooms.give_back(body);
                Parcel::packed(codec, blob_count, inflated_bytes, packed)
            }
            None => {
                let parcel = Parcel::packed(Codec::None, blob_count, inflated_bytes, rooms.filled(body));
                Parcel { crc32c, ..parcel }
            }
        })
    }

    /// A parcel of this one blob.
    ///
    /// # Errors
    /// [`ParcelError::BlobTooLong`], and as [`Parcel::deflate`].
    pub fn of_blob(codec: Codec, blob: &[u8]) -> Result<Parcel, ParcelError> {
        let mut body = Vec::with_capacity(LENGTH_BYTES + blob.len());
        body::push_blob(&mut body, blob)?;
        Parcel::deflate(codec, 1, body)
    }

    /// How the body is packed.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// How many blobs it says it has.
    pub fn blob_count(&self) -> u32 {
        self.blob_count
    }

    /// How many bytes its body says it has inflated, lengths included.
    pub fn inflated_bytes(&self) -> u64 {
        self.inflated_bytes
    }

    /// How many bytes its body takes as it is.
    pub fn packed_bytes(&self) -> u64 {
        self.body.len() as u64
    }

    /// The packed body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The packed body, to keep.
    pub fn into_body(self) -> Bytes {
        self.body
    }

    /// What it costs in credit, which is the memory it takes while it is opened.
    pub fn cost(&self) -> u64 {
        cost(self.codec, self.packed_bytes(), self.inflated_bytes)
    }

    /// The CRC-32C of the packed body.
    pub fn crc32c(&self) -> u32 {
        self.crc32c.unwrap_or_else(|| crc32c(&self.body))
    }

    /// Whether its declared sizes can be true and are allowed. Costs nothing; [`Parcel::open`] does it too.
    ///
    /// # Errors
    /// [`ParcelError::Limit`] for `parcel_bytes_max`, and the variants of sizes that cannot be.
    pub fn check_sizes(&self, limits: &Limits) -> Result<(), ParcelError> {
        check_sizes(self.codec, self.blob_count, self.packed_bytes(), self.inflated_bytes, limits)
    }

    /// The parcel inflated, with all its lengths checked: as many blobs as it says, each within the body.
    ///
    /// Takes memory for what it declares to have inflated, once that is within `parcel_bytes_max`; none if the
    /// codec is none.
    ///
    /// # Errors
    /// [`ParcelError`]: it is not what it says. Nothing of it can be used.
    pub fn open(&self, limits: &Limits) -> Result<OpenParcel, ParcelError> {
        self.check_sizes(limits)?;
        let body = match self.codec {
            Codec::None => self.body.clone(),
            codec => codec.inflate(&self.body, self.inflated_bytes)?.into(),
        };
        body::check_blobs(&body, self.blob_count)?;
        Ok(OpenParcel { blob_count: self.blob_count, body })
    }
}

/// What a parcel of these sizes costs in credit.
pub(crate) fn cost(codec: Codec, packed_bytes: u64, inflated_bytes: u64) -> u64 {
    let opened = match codec {
        Codec::None => 0,
        _ => inflated_bytes,
    };
    PARCEL_COST_BYTES.saturating_add(packed_bytes).saturating_add(opened)
}

/// What a parcel costs at most, if neither packed nor inflated it may have more bytes.
#[cfg(feature = "messages")]
pub(crate) fn cost_max(parcel_bytes_max: u64) -> u64 {
    PARCEL_COST_BYTES.saturating_add(parcel_bytes_max.saturating_mul(2))
}

/// Whether declared sizes can be true and are allowed, before any memory is taken for them.
///
/// # Errors
/// As [`Parcel::check_sizes`].
pub(crate) fn check_sizes(
    codec: Codec,
    blob_count: u32,
    packed_bytes: u64,
    inflated_bytes: u64,
    limits: &Limits,
) -> Result<(), ParcelError> {
    limits.check(Limit::ParcelBytes, packed_bytes)?;
    limits.check(Limit::ParcelBytes, inflated_bytes)?;
    if blob_count == 0 {
        return Err(ParcelError::NoBlob);
    }
    if u64::from(blob_count) * LENGTH_BYTES as u64 > inflated_bytes {
        return Err(ParcelError::Lengths { blob_count, inflated_bytes });
    }
    let packed_wrongly = match codec {
        Codec::None => packed_bytes != inflated_bytes,
        // A codec that does not make it smaller is not used.
        _ => packed_bytes >= inflated_bytes,
    };
    if packed_wrongly {
        return Err(ParcelError::PackedBytes { codec, packed_bytes, inflated_bytes });
    }
    Ok(())
}

/// A parcel whose body is inflated and checked.
#[derive(Clone, Debug)]
pub struct OpenParcel {
    blob_count: u32,
    body: Bytes,
}

impl OpenParcel {
    /// How many blobs it has.
    pub fn blob_count(&self) -> u32 {
        self.blob_count
    }

    /// The inflated body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The blobs, in order.
    pub fn blobs(&self) -> Blobs<'_> {
        Blobs::of_checked(&self.body)
    }
}

impl From<LimitExceeded> for ParcelError {
    fn from(error: LimitExceeded) -> ParcelError {
        ParcelError::Limit(error)
    }
}

const _: () =
    assert!(BLOB_BYTES_MAX == i32::MAX as u32, "docs/nexus.md, 1.3, tells blobs of at most 2^31 - 1 bytes");

#[cfg(test)]
mod tests;

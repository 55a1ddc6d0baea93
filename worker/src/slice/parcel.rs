//! A batch of blobs on its way into a slice.

use std::ops::Deref;

use bytes::Bytes;
use pelton_region_format::BLOB_BYTES_MAX;

use crate::slice::scratch::{Room, Scratch};

/// How a parcel's body is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// Inflated: the blobs as they are.
    #[default]
    None,
    /// LZ4, one block.
    Lz4,
    /// Zstandard, one frame.
    #[cfg(feature = "zstd")]
    Zstd,
}

/// A batch of blobs: inflated, or deflated by a [`Codec`].
///
/// Inflated, the body is each blob's length, a u32 in little-endian, and its bytes, one after the other.
#[derive(Clone, Debug)]
pub struct Parcel {
    codec: Codec,
    blob_count: u32,
    inflated_bytes: usize,
    body: Bytes,
}

impl Parcel {
    /// Takes a body that somebody else has packed, for example one that came over a wire. Nothing of
    /// it is believed: what it says is checked when it is opened. Neither a `Vec` nor `Bytes` is copied.
    pub fn packed(codec: Codec, blob_count: u32, inflated_bytes: usize, body: impl Into<Bytes>) -> Parcel {
        Parcel { codec, blob_count, inflated_bytes, body: body.into() }
    }

    /// How many blobs it says it has.
    pub fn blob_count(&self) -> u32 {
        self.blob_count
    }

    /// How many bytes its body takes as it is.
    pub fn packed_bytes(&self) -> usize {
        self.body.len()
    }

    /// How many bytes its body takes inflated, lengths included.
    pub fn inflated_bytes(&self) -> usize {
        self.inflated_bytes
    }

    /// How much memory it takes while it is opened.
    pub(crate) fn memory_bytes(&self) -> usize {
        match self.codec {
            Codec::None => self.body.len(),
            // Whoever made the parcel says how much it inflates to: the sum may be beyond all numbers.
            _ => self.body.len().saturating_add(self.inflated_bytes),
        }
    }

    /// The blobs, inflated and checked: as many as it says, each within the body.
    pub(crate) fn open<'a>(&'a self, scratch: &'a Scratch) -> Result<OpenParcel<'a>, ParcelError> {
        let body = match self.codec {
            Codec::None => Body::Inflated(&self.body),
            Codec::Lz4 => self.inflate(scratch, |room| {
                lz4_flex::block::decompress_into(&self.body, room)
                    .map_err(|error| ParcelError::Codec { codec: "lz4", text: error.to_string() })
            })?,
            #[cfg(feature = "zstd")]
            Codec::Zstd => self.inflate(scratch, |room| {
                zstd::bulk::decompress_to_buffer(&self.body, room)
                    .map_err(|error| ParcelError::Codec { codec: "zstd", text: error.to_string() })
            })?,
        };
        self.check_length(body.len())?;
        check_blobs(&body, self.blob_count)?;
        Ok(OpenParcel { body })
    }

    /// The room holds what an earlier parcel left there. So it is filled to its last byte, or the parcel is refused.
    fn inflate<'a>(
        &self,
        scratch: &'a Scratch,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, ParcelError>,
    ) -> Result<Body<'a>, ParcelError> {
        let mut room = scratch.room(self.inflated_bytes);
        let len = fill(room.bytes_mut())?;
        self.check_length(len)?;
        Ok(Body::InRoom(room))
    }

    fn check_length(&self, found: usize) -> Result<(), ParcelError> {
        match found == self.inflated_bytes {
            true => Ok(()),
            false => Err(ParcelError::InflatedBytes { found, expected: self.inflated_bytes }),
        }
    }
}

/// Walks all lengths before any blob is taken: a bad parcel leaves nothing behind.
fn check_blobs(body: &[u8], blob_count: u32) -> Result<(), ParcelError> {
    let mut rest = body;
    for blob in 0..blob_count {
        let offset = body.len() - rest.len();
        let Some((length, after)) = rest.split_first_chunk() else {
            return Err(ParcelError::Blob { blob, offset, found: 4, room: rest.len() });
        };
        let len = u32::from_le_bytes(*length);
        if len > BLOB_BYTES_MAX || len as usize > after.len() {
            return Err(ParcelError::Blob { blob, offset, found: len as usize, room: after.len() });
        }
        rest = &after[len as usize..];
    }
    if !rest.is_empty() {
        return Err(ParcelError::Rest { blob_count, bytes: rest.len() });
    }
    Ok(())
}

/// A parcel whose body is inflated and checked.
pub(crate) struct OpenParcel<'a> {
    body: Body<'a>,
}

enum Body<'a> {
    /// As it came.
    Inflated(&'a [u8]),
    /// Inflated by us.
    InRoom(Room<'a>),
}

impl Deref for Body<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Body::Inflated(bytes) => bytes,
            Body::InRoom(room) => room,
        }
    }
}

impl OpenParcel<'_> {
    pub(crate) fn blobs(&self) -> Blobs<'_> {
        Blobs { rest: &self.body }
    }
}

/// The blobs of an open parcel, in order.
#[derive(Clone)]
pub(crate) struct Blobs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Blobs<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, after) = self.rest.split_first_chunk()?;
        let (blob, rest) = after.split_at(u32::from_le_bytes(*length) as usize);
        self.rest = rest;
        Some(blob)
    }
}

/// Collects blobs into a parcel.
#[derive(Clone, Debug, Default)]
pub struct ParcelBuilder {
    blob_count: u32,
    body: Vec<u8>,
}

impl ParcelBuilder {
    /// Starts an empty one, with room for this many bytes.
    pub fn with_capacity(bytes: usize) -> ParcelBuilder {
        ParcelBuilder { blob_count: 0, body: Vec::with_capacity(bytes) }
    }

    /// Adds a blob.
    ///
    /// # Errors
    /// [`ParcelError::BlobTooLong`]: a blob has at most 2^31 - 1 bytes.
    pub fn push(&mut self, blob: &[u8]) -> Result<(), ParcelError> {
        if blob.len() > BLOB_BYTES_MAX as usize {
            return Err(ParcelError::BlobTooLong { found: blob.len() });
        }
        self.body.extend_from_slice(&(blob.len() as u32).to_le_bytes());
        self.body.extend_from_slice(blob);
        self.blob_count += 1;
        Ok(())
    }

    /// How many bytes are collected, lengths included.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// Whether nothing is collected.
    pub fn is_empty(&self) -> bool {
        self.blob_count == 0
    }

    /// The parcel, inflated.
    pub fn finish(self) -> Parcel {
        let ParcelBuilder { blob_count, body } = self;
        Parcel { codec: Codec::None, blob_count, inflated_bytes: body.len(), body: body.into() }
    }

    /// The parcel, deflated.
    ///
    /// # Errors
    /// [`ParcelError::Codec`] if the codec refuses, which it does only for want of memory.
    pub fn deflate(self, codec: Codec) -> Result<Parcel, ParcelError> {
        let packed = match codec {
            Codec::None => return Ok(self.finish()),
            Codec::Lz4 => lz4_flex::block::compress(&self.body),
            #[cfg(feature = "zstd")]
            Codec::Zstd => zstd::bulk::compress(&self.body, 1)
                .map_err(|error| ParcelError::Codec { codec: "zstd", text: error.to_string() })?,
        };
        let ParcelBuilder { blob_count, body } = self;
        Ok(Parcel { codec, blob_count, inflated_bytes: body.len(), body: packed.into() })
    }
}

/// Why a parcel can't be taken. Nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParcelError {
    /// The body does not inflate.
    #[error("the parcel's body is no {codec}: {text}")]
    Codec {
        /// The codec that was named.
        codec: &'static str,
        /// What the codec says.
        text: String,
    },
    /// The body has another size than was declared.
    #[error("the parcel inflates to {found} bytes, it declares {expected}")]
    InflatedBytes {
        /// Its size.
        found: usize,
        /// The declared size.
        expected: usize,
    },
    /// A blob reaches past the body's end.
    #[error("blob {blob} of the parcel, at byte {offset}, needs {found} bytes, {room} are left")]
    Blob {
        /// Which blob of the parcel.
        blob: u32,
        /// Where its length stands.
        offset: usize,
        /// What it needs.
        found: usize,
        /// What is left.
        room: usize,
    },
    /// There is more than the declared blobs.
    #[error("the parcel declares {blob_count} blobs, {bytes} bytes follow them")]
    Rest {
        /// The declared number.
        blob_count: u32,
        /// What follows.
        bytes: usize,
    },
    /// No blob is that long.
    #[error("a blob has {found} bytes, at most {BLOB_BYTES_MAX} are possible")]
    BlobTooLong {
        /// Its length.
        found: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ParcelBuilder {
        let mut builder = ParcelBuilder::default();
        for blob in [&b"hello"[..], b"", &[7; 5000]] {
            builder.push(blob).unwrap();
        }
        builder
    }

    fn codecs() -> Vec<Codec> {
        vec![
            Codec::None,
            Codec::Lz4,
            #[cfg(feature = "zstd")]
            Codec::Zstd,
        ]
    }

    #[test]
    fn what_was_pushed_comes_out_whatever_the_codec() {
        for codec in codecs() {
            let parcel = sample().deflate(codec).unwrap();
            let scratch = Scratch::default();
            let open = parcel.open(&scratch).unwrap();
            let blobs: Vec<&[u8]> = open.blobs().collect();
            assert_eq!(blobs, [&b"hello"[..], b"", &[7; 5000]], "{codec:?}");
            assert_eq!(parcel.inflated_bytes(), 5 + 5000 + 3 * 4);
        }
    }

    /// Every byte changed, every length cut: an error or other bytes, never a panic, never more memory.
    #[test]
    fn a_damaged_parcel_is_refused_or_stays_within_its_size() {
        let scratch = Scratch::new(1 << 20);
        for codec in codecs() {
            let parcel = sample().deflate(codec).unwrap();
            for at in 0..parcel.body.len().min(300) {
                for change in [1u8, 0x80, 0xFF] {
                    let mut body = parcel.body.to_vec();
                    body[at] ^= change;
                    let damaged = Parcel::packed(codec, 3, parcel.inflated_bytes, body);
                    if let Ok(open) = damaged.open(&scratch) {
                        assert_eq!(open.blobs().count(), 3);
                    }
                    let cut = Parcel::packed(codec, 3, parcel.inflated_bytes, parcel.body.slice(..at));
                    assert!(cut.open(&scratch).is_err());
                }
            }
        }
    }

    #[test]
    fn counts_and_sizes_that_lie_are_refused() {
        let body = sample().finish().body;
        let bytes = body.len();
        for (count, inflated) in
            [(2, bytes), (4, bytes), (3, bytes - 1), (3, bytes + 1), (0, bytes), (u32::MAX, bytes)]
        {
            assert!(
                Parcel::packed(Codec::None, count, inflated, body.clone()).open(&Scratch::default()).is_err(),
                "{count} {inflated}"
            );
        }
        assert!(Parcel::packed(Codec::None, 0, 0, vec![]).open(&Scratch::default()).is_ok());
    }

    /// A parcel that says it is longer than it is gets nothing of the parcel before it.
    #[test]
    fn what_an_earlier_parcel_left_is_never_seen() {
        let scratch = Scratch::new(1 << 20);
        for codec in codecs().into_iter().filter(|codec| *codec != Codec::None) {
            let mut secret = ParcelBuilder::default();
            secret.push(&[0; 6000]).unwrap();
            drop(secret.deflate(codec).unwrap().open(&scratch).unwrap());
            let parcel = sample().deflate(codec).unwrap();
            // What is left reads as blobs of no bytes: counts and lengths would be right.
            let longer = Parcel::packed(codec, 4, parcel.inflated_bytes + 4, parcel.body.clone());
            assert!(matches!(longer.open(&scratch), Err(ParcelError::InflatedBytes { .. })), "{codec:?}");
        }
    }
}

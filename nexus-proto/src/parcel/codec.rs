//! How a parcel's body is packed, and the bounds of unpacking.

use std::fmt;

use super::ParcelError;

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
    Zstd,
}

impl Codec {
    /// Those that this build can pack and unpack, the preferred one first: it costs the least time.
    pub const BUILT_IN: &[Codec] = &[
        Codec::Lz4,
        #[cfg(feature = "zstd")]
        Codec::Zstd,
        Codec::None,
    ];

    /// Its one name.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }

    /// The packed body, or nothing if it would not be smaller. The output has room for the codec's worst case.
    pub(super) fn deflate(self, body: &[u8]) -> Result<Option<Vec<u8>>, ParcelError> {
        let packed = match self {
            Codec::None => return Ok(None),
            Codec::Lz4 => lz4_flex::block::compress(body),
            #[cfg(feature = "zstd")]
            Codec::Zstd => zstd::bulk::compress(body, 1).map_err(|error| self.refusal(error))?,
            #[cfg(not(feature = "zstd"))]
            Codec::Zstd => return Err(self.missing()),
        };
        Ok((packed.len() < body.len()).then_some(packed))
    }

    /// The body, which must have exactly this many bytes. More are never written.
    ///
    /// The caller has checked that so much memory may be taken.
    pub(super) fn inflate(self, packed: &[u8], inflated_bytes: u64) -> Result<Vec<u8>, ParcelError> {
        let expected = usize::try_from(inflated_bytes).map_err(|error| self.refusal(error))?;
        let mut body = vec![0; expected];
        let found = match self {
            Codec::None => return Err(self.refusal("it is not packed")),
            Codec::Lz4 => {
                lz4_flex::block::decompress_into(packed, &mut body).map_err(|error| self.refusal(error))?
            }
            #[cfg(feature = "zstd")]
            Codec::Zstd => zstd::bulk::decompress_to_buffer(packed, &mut body[..])
                .map_err(|error| self.refusal(error))?,
            #[cfg(not(feature = "zstd"))]
            Codec::Zstd => return Err(self.missing()),
        };
        if found != expected {
            return Err(ParcelError::InflatedBytes { found: found as u64, expected: inflated_bytes });
        }
        Ok(body)
    }

    fn refusal(self, error: impl fmt::Display) -> ParcelError {
        ParcelError::Codec { codec: self, text: error.to_string() }
    }

    #[cfg(not(feature = "zstd"))]
    fn missing(self) -> ParcelError {
        self.refusal("this build was made without the feature zstd")
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

//! The framed lane: bulk bytes on a plain connection beside gRPC, as `docs/nexus.md`, section 3, tells them.
//!
//! ```text
//!   opener:   | header (64) |                       the side with the data:  | frame | frame | ..
//!   other:    | answer (16) |                       a frame:  | header (24) | head | body |
//! ```
//!
//! All of it is bytes in, values out: read [`FrameHeader::BYTES`], decode them, then read the head and, into the
//! memory where it shall stay, the body.

mod frame;
mod opening;

pub use frame::{Frame, FrameHeader, FrameKind};
pub use opening::{LaneAnswer, LaneOpening, TOKEN_BYTES};

use crate::limits::LimitExceeded;

/// The version of the lane's bytes.
pub const LANE_VERSION: u32 = 1;

/// Why bytes are not those of a lane. Close the connection: there is no way to find the next frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// It does not begin as it must: somebody else's connection.
    #[error("{part} does not begin with its signature")]
    Signature {
        /// Which part.
        part: &'static str,
    },
    /// Bytes do not have their checksum.
    #[error("{part}: checksum {found:#010x}, declared {expected:#010x}")]
    Checksum {
        /// Which part.
        part: &'static str,
        /// The checksum of the bytes.
        found: u32,
        /// The checksum that came with them.
        expected: u32,
    },
    /// The opener speaks another version, or needs a feature that is not known. Answer so, then close.
    #[error(
        "lane version {version} with features {features:#x} is not spoken here, version {LANE_VERSION} is"
    )]
    Version {
        /// Its version.
        version: u32,
        /// Its features.
        features: u32,
    },
    /// A field has a value that this version does not know.
    #[error("{field} is {found}, which version {LANE_VERSION} does not know")]
    Field {
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u32,
    },
    /// A frame is larger than allowed.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// A head is no message of its kind.
    #[error("the head of a {kind:?} does not decode: {text}")]
    Head {
        /// The frame's kind.
        kind: FrameKind,
        /// What the decoder says.
        text: String,
    },
    /// A message does not go by the lane.
    #[error("{found} does not go by the lane")]
    Message {
        /// Its name.
        found: &'static str,
    },
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let field = bytes[offset..].first_chunk().expect("offsets are those of a layout of fixed size");
    u32::from_le_bytes(*field)
}

fn check_sum(part: &'static str, bytes: &[u8], expected: u32) -> Result<(), LaneError> {
    let found = pelton_region_format::crc32c(bytes);
    if found == expected { Ok(()) } else { Err(LaneError::Checksum { part, found, expected }) }
}

#[cfg(test)]
mod tests;

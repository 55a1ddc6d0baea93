//! The first bytes of a lane: the opener's header, and the answer.

use std::fmt;

use pelton_region_format::crc32c;

use super::{LANE_VERSION, LaneError, check_sum, u32_at};

/// How long a token is.
pub const TOKEN_BYTES: usize = 32;

const OPENING_SIGNATURE: &[u8; 8] = b"pelton L";
const ANSWER_SIGNATURE: &[u8; 8] = b"pelton l";

/// What the opener of a lane sends first.
///
/// Does not print its token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LaneOpening {
    /// What gRPC gave. Compare it in a time that does not depend on where it differs.
    pub token: [u8; TOKEN_BYTES],
}

impl LaneOpening {
    /// How long it is.
    pub const BYTES: usize = 64;

    /// Its bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(OPENING_SIGNATURE);
        bytes[8..12].copy_from_slice(&LANE_VERSION.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.token);
        let crc = crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What these bytes say.
    ///
    /// # Errors
    /// [`LaneError::Version`] deserves the answer [`LaneAnswer::Version`]; others deserve none.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<LaneOpening, LaneError> {
        const PART: &str = "the opener's header";
        if !bytes.starts_with(OPENING_SIGNATURE) {
            return Err(LaneError::Signature { part: PART });
        }
        check_sum(PART, &bytes[..60], u32_at(bytes, 60))?;
        let (version, features) = (u32_at(bytes, 8), u32_at(bytes, 12));
        if version != LANE_VERSION || features != 0 {
            return Err(LaneError::Version { version, features });
        }
        if bytes[48..60] != [0; 12] {
            return Err(LaneError::Field { field: "the header's end", found: u32_at(bytes, 48) });
        }
        let token = bytes[16..48].try_into().expect("32 bytes of a layout of fixed size");
        Ok(LaneOpening { token })
    }

    /// Whether this is the token, in a time that depends on neither.
    pub fn has_token(&self, token: &[u8; TOKEN_BYTES]) -> bool {
        let pairs = self.token.iter().zip(token);
        std::hint::black_box(pairs.fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
    }
}

impl fmt::Debug for LaneOpening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LaneOpening { token: .. }")
    }
}

/// What the opener of a lane is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LaneAnswer {
    /// Frames may follow.
    Taken,
    /// The token is unknown, used or expired. Do without the lane, or ask for another token.
    Token,
    /// The version or a feature is not spoken. Do without the lane.
    Version,
    /// There are too many lanes. Do without, or try later.
    Full,
}

impl LaneAnswer {
    /// How long it is.
    pub const BYTES: usize = 16;

    /// Its bytes.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let status: u32 = match self {
            LaneAnswer::Taken => 0,
            LaneAnswer::Token => 1,
            LaneAnswer::Version => 2,
            LaneAnswer::Full => 3,
        };
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(ANSWER_SIGNATURE);
        bytes[8..12].copy_from_slice(&status.to_le_bytes());
        let crc = crc32c(&bytes[..12]);
        bytes[12..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What these bytes say.
    ///
    /// # Errors
    /// [`LaneError`]: it is no answer of a lane. Close the connection and do without.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<LaneAnswer, LaneError> {
        const PART: &str = "the answer";
        if !bytes.starts_with(ANSWER_SIGNATURE) {
            return Err(LaneError::Signature { part: PART });
        }
        check_sum(PART, &bytes[..12], u32_at(bytes, 12))?;
        match u32_at(bytes, 8) {
            0 => Ok(LaneAnswer::Taken),
            1 => Ok(LaneAnswer::Token),
            2 => Ok(LaneAnswer::Version),
            3 => Ok(LaneAnswer::Full),
            found => Err(LaneError::Field { field: "the answer", found }),
        }
    }
}

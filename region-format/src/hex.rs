//! 32 bytes as text: 64 hexadecimal digits.

use std::fmt;

pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8; 32]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

pub(crate) fn parse_hex(text: &str) -> Result<[u8; 32], HexError> {
    let refuse = || HexError { found: text.to_owned() };
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return Err(refuse());
    }
    let digit = |byte: u8| (byte as char).to_digit(16);
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = (digit(pair[0]).ok_or_else(refuse)?, digit(pair[1]).ok_or_else(refuse)?);
        *byte = (high << 4 | low) as u8;
    }
    Ok(bytes)
}

/// The text is not 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 hexadecimal digits, not {found:?}")]
#[non_exhaustive]
pub struct HexError {
    /// What was given instead.
    pub found: String,
}

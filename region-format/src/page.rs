//! What header and trailer share: a page whose last four bytes are the CRC-32C of the others.

use crate::checksum::crc32c;
use crate::error::{FormatError, Place, Value, damaged};
use crate::limits::PAGE_BYTES;

/// Where the page's checksum stands.
pub(crate) const CRC_OFFSET: usize = PAGE_BYTES - 4;

/// The page with its checksum put in.
pub(crate) fn seal(page: &[u8]) -> [u8; PAGE_BYTES] {
    let mut sealed: [u8; PAGE_BYTES] = page.try_into().expect("a page is one page");
    let crc = crc32c(&sealed[..CRC_OFFSET]);
    sealed[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
    sealed
}

/// Compares a page, which begins at this offset, with its checksum.
pub(crate) fn check_crc(place: Place, offset: u64, page: &[u8]) -> Result<(), FormatError> {
    let (covered, told) = page.split_last_chunk().expect("a page is one page");
    let (found, expected) = (crc32c(covered), u32::from_le_bytes(*told));
    if found == expected {
        return Ok(());
    }
    Err(damaged(place, "checksum", offset + CRC_OFFSET as u64, Value::Crc(found), Value::Crc(expected)))
}

/// Bytes that have no meaning yet are zero.
pub(crate) fn check_zero(place: Place, offset: u64, bytes: &[u8]) -> Result<(), FormatError> {
    // A plain fold, not a search: padding is short, and almost always right.
    if bytes.iter().fold(0, |any, byte| any | byte) == 0 {
        return Ok(());
    }
    let index = bytes.iter().position(|&byte| byte != 0).expect("one of them is not zero");
    Err(damaged(place, "padding", offset + index as u64, u64::from(bytes[index]), 0u64))
}

/// Bytes as errors show them.
pub(crate) fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_vec())
}

//! The layout of an inflated body: each blob's length and bytes.

use pelton_region_format::BLOB_BYTES_MAX;

use super::{LENGTH_BYTES, ParcelError};

/// Adds a blob at the end.
pub(super) fn push_blob(body: &mut Vec<u8>, blob: &[u8]) -> Result<(), ParcelError> {
    if blob.len() > BLOB_BYTES_MAX as usize {
        return Err(ParcelError::BlobTooLong { found: blob.len() as u64 });
    }
    body.extend_from_slice(&(blob.len() as u32).to_le_bytes());
    body.extend_from_slice(blob);
    Ok(())
}

/// Walks all lengths before any blob is taken: a bad parcel leaves nothing behind.
pub(super) fn check_blobs(body: &[u8], blob_count: u32) -> Result<(), ParcelError> {
    let mut rest = body;
    for blob in 0..blob_count {
        let offset = (body.len() - rest.len()) as u64;
        let room = rest.len() as u64;
        let Some((length, after)) = rest.split_first_chunk() else {
            return Err(ParcelError::Blob { blob, offset, found: LENGTH_BYTES as u64, room });
        };
        let len = u32::from_le_bytes(*length);
        if len > BLOB_BYTES_MAX || len as usize > after.len() {
            return Err(ParcelError::Blob { blob, offset, found: len.into(), room: after.len() as u64 });
        }
        rest = &after[len as usize..];
    }
    if !rest.is_empty() {
        return Err(ParcelError::Rest { blob_count, bytes: rest.len() as u64 });
    }
    Ok(())
}

/// The blobs of an open parcel, in order.
#[derive(Clone, Debug)]
pub struct Blobs<'a> {
    rest: &'a [u8],
}

impl<'a> Blobs<'a> {
    /// Of a body that [`check_blobs`] has found right.
    pub(super) fn of_checked(body: &'a [u8]) -> Blobs<'a> {
        Blobs { rest: body }
    }
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

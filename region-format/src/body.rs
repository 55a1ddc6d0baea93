//! How blobs lie in the body: one arithmetic for the encoder, the cursor and the decoder.
//!
//! A cell is padding, a u32 length, and the blob's bytes. The blob's first byte stands at a multiple
//! of the alignment, its length in the four bytes before. Version 1 is the same with alignment 1.

use std::ops::Range;

use crate::error::{FormatError, Place, Value, damaged};
use crate::header::Header;
use crate::limits::{BLOB_BYTES_MAX, FILE_BYTES_MAX, PAGE_BYTES};

/// A length takes four bytes.
pub(crate) const LENGTH_BYTES: u64 = 4;
/// Where the version 2 body starts.
pub(crate) const BODY_START: u64 = PAGE_BYTES as u64;
/// Where the version 1 body starts: after magic and version.
pub(crate) const V1_BODY_START: u64 = 2;
/// Stands where the next length would, after the last blob. No length can be that long.
pub(crate) const END_MARK: u32 = u32::MAX;

const _: () = assert!(END_MARK > BLOB_BYTES_MAX, "the end mark is no length");
const _: () = assert!(usize::BITS == 64, "file offsets are used as memory offsets");

/// Where a blob begins if the one before (or what precedes the body) ends at `end`.
#[inline]
pub(crate) fn first_after(end: u64, alignment: u64) -> u64 {
    (end + LENGTH_BYTES + (alignment - 1)) & !(alignment - 1)
}

/// A run of blobs that lie one after the other: the whole body, a part of it, or one step of the index.
///
/// A region can be entered only at the start of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The number of the first blob.
    pub(crate) first_number: u64,
    /// The number after the last blob; version 1 does not tell.
    pub(crate) end_number: Option<u64>,
    /// The offset of the first blob's first byte; `end` if there is none.
    pub(crate) start: u64,
    /// Where the blob after the last one would begin. Every blob ends at least four bytes before,
    /// since the next length (or the end mark) stands there.
    pub(crate) end: u64,
    pub(crate) alignment: u64,
}

impl Span {
    /// The number of the first blob.
    pub fn first_number(&self) -> u64 {
        self.first_number
    }

    /// The number after the last blob, if the format tells: version 1 does not.
    pub fn end_number(&self) -> Option<u64> {
        self.end_number
    }

    /// Whether there is no blob in it, as far as the offsets tell.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Where it lies in the file, the first length left out.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// All of a version 1 file. The end is virtual: no length follows the last blob.
    pub(crate) fn whole_v1(file_bytes: u64) -> Span {
        Span {
            first_number: 0,
            end_number: None,
            start: V1_BODY_START + LENGTH_BYTES,
            end: file_bytes.saturating_add(LENGTH_BYTES),
            alignment: 1,
        }
    }

    /// All of a version 2 file whose end is not known yet.
    pub(crate) fn unknown_v2(header: &Header) -> Span {
        let alignment = header.alignment.into();
        let start = first_after(BODY_START, alignment);
        Span { first_number: 0, end_number: None, start, end: FILE_BYTES_MAX, alignment }
    }

    /// Nothing, at the end of this span.
    pub(crate) fn nothing(self) -> Span {
        Span { first_number: self.end_number.unwrap_or(0), start: self.end, ..self }
    }
}

/// Compares a length with the room there is for it. `first` is the offset of the blob's first byte.
#[cold]
pub(crate) fn bad_length(number: u64, first: u64, len: u32, room: u64) -> FormatError {
    let most = room.min(BLOB_BYTES_MAX.into());
    damaged(Place::Blob(number), "length", first - LENGTH_BYTES, len, Value::AtMost(most))
}

/// After the last blob of a span, the next one would begin exactly at the span's end, and as many
/// were seen as were told.
#[cold]
pub(crate) fn check_span_end(span: &Span, next_first: u64, next_number: u64) -> Result<(), FormatError> {
    if next_first != span.end {
        return Err(damaged(Place::Body, "end of the last blob", next_first, next_first, span.end));
    }
    match span.end_number {
        Some(expected) if expected != next_number => {
            Err(damaged(Place::Body, "number of blobs", span.end, next_number, expected))
        }
        _ => Ok(()),
    }
}

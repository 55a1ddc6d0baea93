//! Goes from blob to blob by file offset, wherever the bytes are.

use std::ops::Range;

use crate::body::{LENGTH_BYTES, Span, bad_length, check_span_end, first_after};
use crate::error::FormatError;
use crate::limits::BLOB_BYTES_MAX;

/// Says where a span's blobs lie, to a reader that holds the bytes in buffers of its own.
///
/// The reader fetches the four bytes at [`length_at`](Cells::length_at), gives them to [`next`](Cells::next), and
/// fetches the blob from the range it gets. No length is trusted. After damage it stays there.
#[derive(Clone, Debug)]
pub struct Cells {
    span: Span,
    /// Where the next blob begins, if there is one.
    next_first: u64,
    next_number: u64,
}

impl Cells {
    /// The blobs of a span of version 2.
    pub fn over(span: Span) -> Cells {
        Cells { span, next_first: span.start, next_number: span.first_number }
    }

    /// Where the length of the next blob stands, as a little-endian u32; nothing after the last blob.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] if the blobs did not end where they should, or were not as many as were told.
    #[inline]
    pub fn length_at(&self) -> Result<Option<Range<u64>>, FormatError> {
        if self.next_first >= self.span.end {
            check_span_end(&self.span, self.next_first, self.next_number)?;
            return Ok(None);
        }
        Ok(Some(self.next_first - LENGTH_BYTES..self.next_first))
    }

    /// Where the blob lies whose length was read, and goes on behind it.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] if the length does not fit.
    #[inline]
    pub fn next(&mut self, length: [u8; 4]) -> Result<Range<u64>, FormatError> {
        let (first, len) = (self.next_first, u32::from_le_bytes(length));
        let room = self.span.end.saturating_sub(first).saturating_sub(LENGTH_BYTES);
        if len > BLOB_BYTES_MAX || u64::from(len) > room {
            return Err(bad_length(self.next_number, first, len, room));
        }
        let end = first + u64::from(len);
        self.next_first = first_after(end, self.span.alignment);
        self.next_number += 1;
        Ok(first..end)
    }

    /// The number of the blob that comes next.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }
}

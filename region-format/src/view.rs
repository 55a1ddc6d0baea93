//! A region that lies in memory: mapped, read or just written.

use crate::body::{BODY_START, Span, V1_BODY_START};
use crate::cursor::BlobCursor;
use crate::decoder::{RegionDecoder, Verified};
use crate::error::FormatError;
use crate::frame::Frame;
use crate::header::{Header, Version};
use crate::limits::PAGE_BYTES;
use crate::trailer::{Trailer, check_file_bytes};

/// A whole region file in memory, of either version.
///
/// Opening reads header, trailer and sections, never the body: it takes a fraction of a millisecond for a
/// gibibyte, most of it for the index.
/// What the body holds is checked as it is reached, or all at once by [`verify`](RegionView::verify).
#[derive(Clone, Debug)]
pub struct RegionView<'a> {
    bytes: &'a [u8],
    frame: Option<Frame<'a>>,
}

impl<'a> RegionView<'a> {
    /// Takes the bytes of a whole file.
    ///
    /// # Errors
    /// Any of [`FormatError`]. Only `Truncated` and `Damaged` speak against the file.
    pub fn open(bytes: &'a [u8]) -> Result<RegionView<'a>, FormatError> {
        let frame = match Version::of(bytes)? {
            Version::V1 => None,
            Version::V2 => {
                let header = Header::decode(bytes)?;
                check_file_bytes(bytes.len() as u64)?;
                let trailer =
                    Trailer::decode(&bytes[bytes.len() - PAGE_BYTES..], &header, bytes.len() as u64)?;
                let tail = &bytes[trailer.body_end as usize..];
                Some(Frame::open(header, trailer, tail)?)
            }
        };
        Ok(RegionView { bytes, frame })
    }

    /// Which format the bytes are in.
    pub fn version(&self) -> Version {
        if self.frame.is_some() { Version::V2 } else { Version::V1 }
    }

    /// Header, trailer and sections; version 1 has none.
    pub fn frame(&self) -> Option<&Frame<'a>> {
        self.frame.as_ref()
    }

    /// How many blobs there are; version 1 does not tell.
    pub fn blob_count(&self) -> Option<u64> {
        self.frame().map(|frame| frame.trailer().blob_count)
    }

    /// All blobs in order.
    pub fn blobs(&self) -> BlobCursor<'a> {
        BlobCursor::new(self.bytes, self.whole())
    }

    /// The blobs of the `n`-th of `k` parts, in order. Version 1 has everything in part 0.
    pub fn part(&self, n: u64, k: u64) -> BlobCursor<'a> {
        let span = match &self.frame {
            Some(frame) => frame.part(n, k),
            None if n == 0 && k > 0 => self.whole(),
            None => self.whole().nothing(),
        };
        BlobCursor::new(self.bytes, span)
    }

    /// One blob by its number, counted from 0. Walks at most one step of the index; in version 1,
    /// everything before.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] if a length on the way does not fit.
    pub fn blob(&self, number: u64) -> Result<Option<&'a [u8]>, FormatError> {
        let span = match &self.frame {
            Some(frame) => frame.around(number),
            None => Some(self.whole()),
        };
        let Some(span) = span else { return Ok(None) };
        let mut cursor = BlobCursor::new(self.bytes, span);
        cursor.skip_to(number)?;
        cursor.next()
    }

    /// How many checksum blocks the body is cut in; version 1 has none.
    pub fn block_count(&self) -> u64 {
        self.frame().map_or(0, Frame::block_count)
    }

    /// Compares one block with its checksum.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] if they differ.
    ///
    /// # Panics
    /// If there is no such block; version 1 has none.
    pub fn verify_block(&self, index: u64) -> Result<(), FormatError> {
        let frame = self.frame.as_ref().expect("version 1 has no blocks");
        let range = frame.block_range(index);
        frame.verify_block(index, &self.bytes[range.start as usize..range.end as usize])
    }

    /// Checks everything that can be checked. For version 1 that is only that the lengths lead from
    /// the start to the end: see [`Verified::blocks`].
    ///
    /// # Errors
    /// The first damage, if there is any.
    pub fn verify(&self) -> Result<Verified, FormatError> {
        let nothing = &mut |_: crate::BlobFragment<'_>| Ok::<(), FormatError>(());
        match &self.frame {
            Some(frame) => {
                let mut decoder = RegionDecoder::over(frame, frame.whole());
                let body = BODY_START as usize..frame.trailer().body_end as usize;
                decoder.feed(&self.bytes[body], nothing)?;
                decoder.finish()
            }
            None => {
                let mut decoder = RegionDecoder::stream();
                decoder.feed(self.bytes, nothing)?;
                decoder.finish()
            }
        }
    }

    fn whole(&self) -> Span {
        match &self.frame {
            Some(frame) => frame.whole(),
            None => Span::whole_v1(self.bytes.len() as u64),
        }
    }
}

const _: () = assert!(V1_BODY_START == 2, "a version 1 file that has a version has a body");

//! Everything of a version 2 file but its body.

use std::ops::Range;

use zerocopy::FromBytes;
use zerocopy::byteorder::little_endian::U32;

use crate::body::{BODY_START, LENGTH_BYTES, Span, first_after};
use crate::checksum::{crc32c, crc32c_from_memory};
use crate::cursor::BlobCursor;
use crate::error::{FormatError, Place, Value, damaged};
use crate::header::Header;
use crate::limits::{METADATA_BYTES_MAX, PAGE_BYTES};
use crate::page::bytes;
use crate::sections::{BlobIndex, LengthHistogram, Section, SectionKind, Sections};
use crate::trailer::{ContentId, Trailer};

/// Header, trailer and sections of one file, checked: what a reader holds while it reads the body,
/// in place or in a stream.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    header: Header,
    trailer: Trailer,
    sections: Sections<'a>,
    block_checksums: &'a [U32],
    index: Option<BlobIndex<'a>>,
    histogram: Option<LengthHistogram>,
}

impl<'a> Frame<'a> {
    /// Checks all that can be checked without the body.
    ///
    /// `tail` is the file from [`Trailer::body_end`] to its end.
    ///
    /// # Errors
    /// Any of [`FormatError`].
    pub fn open(header: Header, trailer: Trailer, tail: &'a [u8]) -> Result<Frame<'a>, FormatError> {
        // Both are usually just decoded; but anybody can change a field, and this must not panic.
        header.check_ranges()?;
        trailer.check(&header)?;
        if tail.len() as u64 != trailer.tail_bytes() {
            return Err(FormatError::Truncated {
                place: Place::SectionTable,
                offset: trailer.body_end,
                found: tail.len() as u64,
                expected: trailer.tail_bytes(),
            });
        }
        let sections = Sections::decode(
            &tail[..tail.len() - PAGE_BYTES],
            trailer.body_end,
            trailer.table_offset,
            trailer.section_count,
            trailer.table_crc,
        )?;
        let mut frame =
            Frame { header, trailer, sections, block_checksums: &[], index: None, histogram: None };
        frame.block_checksums = frame.decode_block_checksums()?;
        if let Some(section) = frame.sections.find(SectionKind::BLOB_INDEX) {
            let Trailer { blob_count, body_end, .. } = frame.trailer;
            frame.index = Some(BlobIndex::decode(section, blob_count, body_end, frame.alignment())?);
        }
        if let Some(section) = frame.sections.find(SectionKind::LENGTH_HISTOGRAM) {
            frame.histogram = Some(LengthHistogram::decode(section, frame.trailer.blob_count)?);
        }
        if let Some(section) = frame.sections.find(SectionKind::METADATA)
            && section.bytes.len() > METADATA_BYTES_MAX
        {
            let (found, most) = (section.bytes.len() as u64, METADATA_BYTES_MAX as u64);
            let place = Place::Section(SectionKind::METADATA.0);
            return Err(damaged(place, "length", section.offset, found, Value::AtMost(most)));
        }
        Ok(frame)
    }

    /// What the first page says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What the last page says.
    pub fn trailer(&self) -> &Trailer {
        &self.trailer
    }

    /// All sections, also those of unknown kind, in the order of the file.
    pub fn sections(&self) -> impl Iterator<Item = Section<'a>> + '_ {
        self.sections.iter()
    }

    /// The section of this kind, if there is one.
    pub fn section(&self, kind: SectionKind) -> Option<Section<'a>> {
        self.sections.find(kind)
    }

    /// How many blobs have which length, if the writer counted.
    pub fn histogram(&self) -> Option<&LengthHistogram> {
        self.histogram.as_ref()
    }

    /// The user's own bytes, if there are any.
    pub fn metadata(&self) -> Option<&'a [u8]> {
        self.sections.find(SectionKind::METADATA).map(|section| section.bytes)
    }

    /// How far apart indexed blobs are at least, if there is an index.
    pub fn index_stride(&self) -> Option<u32> {
        self.index.map(|index| index.stride)
    }

    /// How many blobs are in the index.
    pub fn index_len(&self) -> usize {
        self.index.map_or(0, |index| index.entries.len())
    }

    /// The blobs of a span, in the file's bytes as far as they are there. Where that is not all of them, keep it
    /// before those that are missing, by its [`limit`](BlobCursor::limit); they are taken for a file that was cut.
    pub fn cursor<'b>(&self, bytes: &'b [u8], span: Span) -> BlobCursor<'b> {
        BlobCursor::new(bytes, span)
    }

    /// How many checksum blocks the body is cut in.
    pub fn block_count(&self) -> u64 {
        self.block_checksums.len() as u64
    }

    /// The checksums of the blocks, in order.
    pub fn block_checksums(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.block_checksums.iter().map(|crc| crc.get())
    }

    /// Where a block lies in the file; empty past the last one.
    pub fn block_range(&self, index: u64) -> Range<u64> {
        block_range(index, self.header.block_bytes, self.trailer.body_end)
    }

    /// The blocks in which this span of the file lies, with the lengths of its blobs.
    pub fn blocks_of(&self, span: &Span) -> Range<u64> {
        let block_bytes = u64::from(self.header.block_bytes);
        let first = span.start.saturating_sub(LENGTH_BYTES).max(BODY_START) / block_bytes;
        if span.is_empty() {
            return first..first;
        }
        first..(span.end.min(self.trailer.body_end)).div_ceil(block_bytes)
    }

    /// Compares the bytes of one block, `block_range(index)` of the file, with its checksum.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] if they differ.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn verify_block(&self, index: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let expected = self.block_checksum(index).expect("there is a block of this number");
        let range = self.block_range(index);
        let len = range.end - range.start;
        if bytes.len() as u64 != len {
            return Err(damaged(Place::Block(index), "length", range.start, bytes.len() as u64, len));
        }
        check_block(index, range.start, crc32c_from_memory(bytes), expected)
    }

    /// All blobs.
    pub fn whole(&self) -> Span {
        Span {
            first_number: 0,
            end_number: Some(self.trailer.blob_count),
            start: first_after(BODY_START, self.alignment()),
            end: self.trailer.body_end,
            alignment: self.alignment(),
        }
    }

    /// The `n`-th of `k` parts of about the same size, counted from 0. Parts may be empty; together
    /// they are every blob once. A file without an index has everything in part 0.
    pub fn part(&self, n: u64, k: u64) -> Span {
        let whole = self.whole();
        let Some(index) = self.index else {
            return if n == 0 && k > 0 { whole } else { whole.nothing() };
        };
        if n >= k {
            return whole.nothing();
        }
        let body_bytes = u128::from(self.trailer.body_end - BODY_START);
        let entry_at = |n: u64| {
            let target = BODY_START + (u128::from(n) * body_bytes / u128::from(k)) as u64;
            index.entries.partition_point(|entry| entry.offset.get() < target)
        };
        self.between(index, entry_at(n), entry_at(n + 1))
    }

    /// The step of the index that holds this blob: a short span to search it in.
    pub fn around(&self, number: u64) -> Option<Span> {
        if number >= self.trailer.blob_count {
            return None;
        }
        let Some(index) = self.index else { return Some(self.whole()) };
        let after = index.entries.partition_point(|entry| entry.number.get() <= number);
        Some(self.between(index, after - 1, after)) // Entry 0 is blob 0, so `after` is at least 1.
    }

    /// The blobs from one entry of the index up to another.
    fn between(&self, index: BlobIndex<'_>, entry: usize, entry_end: usize) -> Span {
        let whole = self.whole();
        let place = |entry: usize| match index.entries.get(entry) {
            Some(entry) => (entry.number.get(), entry.offset.get()),
            None => (self.trailer.blob_count, whole.end),
        };
        let ((first_number, start), (end_number, end)) = (place(entry), place(entry_end));
        Span { first_number, end_number: Some(end_number), start, end, ..whole }
    }

    pub(crate) fn alignment(&self) -> u64 {
        self.header.alignment.into()
    }

    pub(crate) fn index(&self) -> Option<BlobIndex<'a>> {
        self.index
    }

    pub(crate) fn block_checksum(&self, index: u64) -> Option<u32> {
        self.block_checksums.get(usize::try_from(index).ok()?).map(|crc| crc.get())
    }

    fn decode_block_checksums(&self) -> Result<&'a [U32], FormatError> {
        const PLACE: Place = Place::Section(SectionKind::BLOCK_CHECKSUMS.0);
        let Trailer { body_end, table_offset, .. } = self.trailer;
        let Some(section) = self.sections.find(SectionKind::BLOCK_CHECKSUMS) else {
            return Err(damaged(Place::SectionTable, "block checksums", table_offset, "missing", "there"));
        };
        let expected = 4 * body_end.div_ceil(self.header.block_bytes.into());
        if section.bytes.len() as u64 != expected {
            return Err(damaged(PLACE, "length", section.offset, section.bytes.len() as u64, expected));
        }
        let content_id = ContentId::of(&self.header, &self.trailer.counts(), body_end, section.bytes);
        if content_id != self.trailer.content_id {
            let (found, expected) = (bytes(content_id.as_bytes()), bytes(self.trailer.content_id.as_bytes()));
            return Err(damaged(
                Place::Trailer,
                "content id",
                self.trailer.file_bytes - 4032,
                found,
                expected,
            ));
        }
        let checksums = <[U32]>::ref_from_bytes(section.bytes).expect("the length is a multiple of 4");
        // A block as small as the header holds nothing of the body, so no walk comes by it.
        if self.block_range(0).is_empty() {
            check_block(0, BODY_START, crc32c(&[]), checksums[0].get())?;
        }
        Ok(checksums)
    }
}

/// Where a block of the body lies. Block 0 begins after the header.
pub(crate) fn block_range(index: u64, block_bytes: u32, body_end: u64) -> Range<u64> {
    let block_bytes = u64::from(block_bytes);
    let start = index.saturating_mul(block_bytes).max(BODY_START);
    let end = index.saturating_add(1).saturating_mul(block_bytes).min(body_end);
    start.min(end)..end
}

pub(crate) fn check_block(index: u64, offset: u64, found: u32, expected: u32) -> Result<(), FormatError> {
    if found == expected {
        return Ok(());
    }
    Err(damaged(Place::Block(index), "checksum", offset, Value::Crc(found), Value::Crc(expected)))
}

const _: () = assert!(PAGE_BYTES - 64 == 4032, "the content id stands at offset 64 of the trailer");

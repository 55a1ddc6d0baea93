//! The last page: written last, it seals the file.

use std::fmt;
use std::str::FromStr;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::body::{BODY_START, LENGTH_BYTES, first_after};
use crate::error::{FormatError, Place, Value, damaged};
use crate::header::{Header, MAGIC, Version};
use crate::hex::{HexError, parse_hex, write_hex};
use crate::limits::*;
use crate::page::{CRC_OFFSET, bytes, check_crc, check_zero, seal};
use crate::seal::Sealed;
use crate::sections::trailer_offset;

const SIGNATURE: [u8; 6] = *b"sealed";
/// Header, at least four bytes of end mark with their padding, table and trailer: three pages.
pub(crate) const FILE_BYTES_MIN: u64 = 3 * PAGE_BYTES as u64;

/// Says which body this is: equal bodies have equal ids.
///
/// It is made of block checksums, counts and lengths. So different bodies can have the same id, by a
/// forger's work or, among many bodies of one block and equal counts, by chance (1 in 2^32 for each pair): it
/// finds that a file is not the one that was meant, and proves nothing more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId([u8; 32]);

impl ContentId {
    /// Takes 32 bytes as they stand in a trailer or a manifest.
    pub const fn from_bytes(bytes: [u8; 32]) -> ContentId {
        ContentId(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn of(header: &Header, counts: &Counts, body_end: u64, block_checksums: &[u8]) -> ContentId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header.alignment.to_le_bytes());
        hasher.update(&header.block_bytes.to_le_bytes());
        hasher.update(&counts.blobs.to_le_bytes());
        hasher.update(&counts.bytes.to_le_bytes());
        hasher.update(&body_end.to_le_bytes());
        hasher.update(block_checksums);
        ContentId(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl FromStr for ContentId {
    type Err = HexError;

    fn from_str(text: &str) -> Result<ContentId, HexError> {
        parse_hex(text).map(ContentId)
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentId({self})")
    }
}

/// What a region counts about its blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
    pub(crate) shortest: u32,
    pub(crate) longest: u32,
}

impl Counts {
    #[inline]
    pub(crate) fn add(&mut self, len: u32) {
        self.shortest = if self.blobs == 0 { len } else { self.shortest.min(len) };
        self.longest = self.longest.max(len);
        self.blobs += 1;
        self.bytes += u64::from(len);
    }
}

/// What the trailer page says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trailer {
    /// The length of the file.
    pub file_bytes: u64,
    /// How many blobs there are.
    pub blob_count: u64,
    /// The sum of their lengths.
    pub blob_bytes: u64,
    /// Where the body ends and the sections begin.
    pub body_end: u64,
    /// Where the section table begins.
    pub table_offset: u64,
    /// How many sections there are.
    pub section_count: u32,
    /// The smallest length of a blob, 0 if there is none.
    pub shortest: u32,
    /// The largest length of a blob, 0 if there is none.
    pub longest: u32,
    /// Which body this is.
    pub content_id: ContentId,
    pub(crate) table_crc: u32,
}

impl TrailerPage {
    /// The last page of a file of this length, once its signature, checksum and length are right.
    fn sealed(page: &[u8], file_bytes: u64) -> Result<&TrailerPage, FormatError> {
        check_file_bytes(file_bytes)?;
        let trailer_at = file_bytes - PAGE_BYTES as u64;
        let Ok(page) = TrailerPage::ref_from_bytes(page) else {
            let (found, expected) = (page.len() as u64, PAGE_BYTES as u64);
            return Err(FormatError::Truncated {
                place: Place::Trailer,
                offset: trailer_at,
                found,
                expected,
            });
        };
        let wrong = |what, field_offset: u64, found: Value, expected: Value| {
            Err(damaged(Place::Trailer, what, trailer_at + field_offset, found, expected))
        };
        let start = [
            MAGIC,
            Version::V2.number(),
            SIGNATURE[0],
            SIGNATURE[1],
            SIGNATURE[2],
            SIGNATURE[3],
            SIGNATURE[4],
            SIGNATURE[5],
        ];
        if page.start != start {
            return wrong("signature", 0, bytes(&page.start), bytes(&start));
        }
        check_crc(Place::Trailer, trailer_at, page.as_bytes())?;
        if page.file_bytes != file_bytes {
            return wrong("file length", 8, page.file_bytes.get().into(), file_bytes.into());
        }
        Ok(page)
    }
}

impl Trailer {
    /// Reads which body a version 2 file of this length holds, by its last page alone: what start-up asks of each
    /// of many files. Signature, checksum and length are checked; what only the header can tell is not.
    ///
    /// # Errors
    /// Any of [`FormatError`]. [`FormatError::Unsupported`]: a later version has written it; leave it alone.
    pub fn content_id(page: &[u8], file_bytes: u64) -> Result<ContentId, FormatError> {
        if let [MAGIC, version, signature @ ..] = page
            && *version > Version::V2.number()
            && signature.starts_with(&SIGNATURE)
        {
            let found = u64::from(*version);
            return Err(FormatError::Unsupported { place: Place::Trailer, what: "version", found });
        }
        Ok(ContentId(TrailerPage::sealed(page, file_bytes)?.content_id))
    }

    /// Reads and checks the last page of a version 2 file of this length.
    ///
    /// # Errors
    /// Any of [`FormatError`]. A file without a valid trailer does not exist: drop it.
    pub fn decode(page: &[u8], header: &Header, file_bytes: u64) -> Result<Trailer, FormatError> {
        header.check_ranges()?;
        let page = TrailerPage::sealed(page, file_bytes)?;
        let trailer_at = file_bytes - PAGE_BYTES as u64;
        check_zero(Place::Trailer, trailer_at + 96, &page.zero)?;

        let trailer = Trailer {
            file_bytes,
            blob_count: page.blob_count.get(),
            blob_bytes: page.blob_bytes.get(),
            body_end: page.body_end.get(),
            table_offset: page.table_offset.get(),
            section_count: page.section_count.get(),
            shortest: page.shortest.get(),
            longest: page.longest.get(),
            content_id: ContentId(page.content_id),
            table_crc: page.table_crc.get(),
        };
        trailer.check(header)?;
        Ok(trailer)
    }

    pub(crate) fn encode(&self) -> [u8; PAGE_BYTES] {
        let mut page = TrailerPage::new_zeroed();
        page.start[..2].copy_from_slice(&[MAGIC, Version::V2.number()]);
        page.start[2..].copy_from_slice(&SIGNATURE);
        page.file_bytes = self.file_bytes.into();
        page.blob_count = self.blob_count.into();
        page.blob_bytes = self.blob_bytes.into();
        page.body_end = self.body_end.into();
        page.table_offset = self.table_offset.into();
        page.section_count = self.section_count.into();
        page.table_crc = self.table_crc.into();
        page.shortest = self.shortest.into();
        page.longest = self.longest.into();
        page.content_id = self.content_id.0;
        seal(page.as_bytes())
    }

    /// How many bytes stand after the body: what a reader needs to read before anything else.
    pub fn tail_bytes(&self) -> u64 {
        self.file_bytes - self.body_end
    }

    /// What the file is, in short.
    pub fn sealed(&self) -> Sealed {
        Sealed {
            version: Version::V2,
            file_bytes: self.file_bytes,
            blob_count: self.blob_count,
            blob_bytes: self.blob_bytes,
            content_id: Some(self.content_id),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            blobs: self.blob_count,
            bytes: self.blob_bytes,
            shortest: self.shortest,
            longest: self.longest,
        }
    }

    /// Body, sections, table and trailer stand one after the other, and the body has room for the blobs.
    pub(crate) fn check(&self, header: &Header) -> Result<(), FormatError> {
        check_file_bytes(self.file_bytes)?;
        let trailer_at = self.file_bytes - PAGE_BYTES as u64;
        self.check_places(trailer_at, header.alignment.into())?;
        self.check_counts(trailer_at, header.alignment.into())
    }

    fn check_places(&self, trailer_at: u64, alignment: u64) -> Result<(), FormatError> {
        let wrong = |what, field_offset: u64, found: u64, expected: Value| {
            Err(damaged(Place::Trailer, what, trailer_at + field_offset, found, expected))
        };
        let body_end_min = first_after(BODY_START, alignment);
        if self.body_end < body_end_min {
            return wrong("body end", 32, self.body_end, Value::AtLeast(body_end_min));
        }
        if self.body_end & (alignment - 1) != 0 {
            return wrong("body end", 32, self.body_end, "a multiple of the alignment".into());
        }
        if self.table_offset < self.body_end {
            return wrong("table offset", 40, self.table_offset, Value::AtLeast(self.body_end));
        }
        if !(1..=SECTIONS_MAX).contains(&self.section_count) {
            return wrong("number of sections", 48, self.section_count.into(), "1 to 1024".into());
        }
        // The section table checks that sections are multiples of 8 and end where the table begins.
        if trailer_offset(self.table_offset, self.section_count) != Some(trailer_at) {
            let expected =
                format!("an offset after which {} entries reach to the trailer", self.section_count);
            return wrong("table offset", 40, self.table_offset, Value::Text(expected));
        }
        if self.tail_bytes() > TAIL_BYTES_MAX {
            return wrong("body end", 32, self.body_end, Value::AtLeast(self.file_bytes - TAIL_BYTES_MAX));
        }
        Ok(())
    }

    /// The body is large enough for what is counted.
    fn check_counts(&self, trailer_at: u64, alignment: u64) -> Result<(), FormatError> {
        let wrong = |what, field_offset: u64, found: u64, expected: u64| {
            Err(damaged(Place::Trailer, what, trailer_at + field_offset, found, Value::AtMost(expected)))
        };
        let blob_count_max = (self.body_end - first_after(BODY_START, alignment)) / alignment;
        if self.blob_count > blob_count_max {
            return wrong("number of blobs", 16, self.blob_count, blob_count_max);
        }
        // Does not wrap: a cell has at least eight bytes, so the lengths are at most half of the body.
        let blob_bytes_max = self.body_end - BODY_START - LENGTH_BYTES * (self.blob_count + 1);
        if self.blob_bytes > blob_bytes_max {
            return wrong("bytes of blobs", 24, self.blob_bytes, blob_bytes_max);
        }
        let longest_max = if self.blob_count == 0 { 0 } else { BLOB_BYTES_MAX };
        if self.longest > longest_max {
            return wrong("longest blob", 60, self.longest.into(), longest_max.into());
        }
        if self.shortest > self.longest {
            return wrong("shortest blob", 56, self.shortest.into(), self.longest.into());
        }
        Ok(())
    }
}

/// The length of a file that can have a trailer.
pub(crate) fn check_file_bytes(file_bytes: u64) -> Result<(), FormatError> {
    if file_bytes < FILE_BYTES_MIN {
        let (found, expected) = (file_bytes, FILE_BYTES_MIN);
        return Err(FormatError::Truncated { place: Place::File, offset: 0, found, expected });
    }
    let whole = file_bytes - file_bytes % PAGE_BYTES as u64;
    if whole != file_bytes {
        let (found, expected) = (file_bytes - whole, PAGE_BYTES as u64);
        return Err(FormatError::Truncated { place: Place::Trailer, offset: whole, found, expected });
    }
    if file_bytes > FILE_BYTES_MAX {
        return Err(damaged(Place::File, "length", 0, file_bytes, Value::AtMost(FILE_BYTES_MAX)));
    }
    Ok(())
}

/// The page as it stands in the file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TrailerPage {
    start: [u8; 8],
    file_bytes: U64,
    blob_count: U64,
    blob_bytes: U64,
    body_end: U64,
    table_offset: U64,
    section_count: U32,
    table_crc: U32,
    shortest: U32,
    longest: U32,
    content_id: [u8; 32],
    zero: [u8; 3996],
    crc: U32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<TrailerPage>() == PAGE_BYTES);
    assert!(offset_of!(TrailerPage, body_end) == 32);
    assert!(offset_of!(TrailerPage, section_count) == 48);
    assert!(offset_of!(TrailerPage, content_id) == 64);
    assert!(offset_of!(TrailerPage, zero) == 96);
    assert!(offset_of!(TrailerPage, crc) == CRC_OFFSET);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Trailer {
        Trailer {
            file_bytes: 16_384,
            blob_count: 1,
            blob_bytes: 5,
            body_end: 4120,
            table_offset: 8192,
            section_count: 4,
            shortest: 5,
            longest: 5,
            content_id: ContentId([7; 32]),
            table_crc: 0,
        }
    }

    fn refused(trailer: &Trailer) -> &'static str {
        match trailer.check(&Header::default()).unwrap_err() {
            FormatError::Damaged { what, .. } => what,
            other => panic!("{other}"),
        }
    }

    /// Files that large can't be made in a test; their trailers can.
    #[test]
    fn limits_of_size_are_checked() {
        assert_eq!(sample().check(&Header::default()), Ok(()));
        let at = |body_end: u64, tail: u64| {
            let file_bytes = body_end + tail;
            Trailer { file_bytes, body_end, table_offset: file_bytes - 8192, ..sample() }
        };
        assert_eq!(at(8 << 30, TAIL_BYTES_MAX).check(&Header::default()), Ok(()));
        assert_eq!(refused(&at(8 << 30, TAIL_BYTES_MAX + 4096)), "body end");
        let most = FILE_BYTES_MAX - FILE_BYTES_MAX % 4096;
        assert_eq!(at(most - 16_384, 16_384).check(&Header::default()), Ok(()));
        assert_eq!(refused(&at(most - 12_288, 16_384)), "length");
    }

    #[test]
    fn counts_that_cannot_be_are_refused() {
        assert_eq!(refused(&Trailer { blob_count: 0, blob_bytes: 0, ..sample() }), "longest blob");
        assert_eq!(refused(&Trailer { shortest: 6, ..sample() }), "shortest blob");
        assert_eq!(refused(&Trailer { blob_count: 3, ..sample() }), "number of blobs");
        assert_eq!(refused(&Trailer { blob_bytes: 17, ..sample() }), "bytes of blobs");
    }

    #[test]
    fn a_content_id_reads_back_from_its_text() {
        let id = ContentId(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("12".parse::<ContentId>().is_err());
    }
}

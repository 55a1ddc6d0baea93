//! The sparse blob index: where the body can be entered in the middle.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::body::{BODY_START, first_after};
use crate::error::{FormatError, Place, Value, damaged};
use crate::sections::{Section, SectionKind};

const PLACE: Place = Place::Section(SectionKind::BLOB_INDEX.0);

/// A blob at which the body can be entered, as it stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct IndexEntry {
    pub(crate) number: U64,
    pub(crate) offset: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct IndexHead {
    stride: U32,
    zero: U32,
}

const HEAD_BYTES: usize = size_of::<IndexHead>();
const ENTRY_BYTES: usize = size_of::<IndexEntry>();
const _: () = assert!(HEAD_BYTES == 8 && ENTRY_BYTES == 16);

/// The index of one file. Entries rise strictly in number and offset, and lie in the body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlobIndex<'a> {
    pub(crate) stride: u32,
    pub(crate) entries: &'a [IndexEntry],
}

impl<'a> BlobIndex<'a> {
    pub(crate) fn decode(
        section: Section<'a>,
        blob_count: u64,
        body_end: u64,
        alignment: u64,
    ) -> Result<BlobIndex<'a>, FormatError> {
        let bytes = section.bytes;
        let Ok((head, entries)) = IndexHead::ref_from_prefix(bytes) else {
            return Err(damaged(PLACE, "length", section.offset, bytes.len() as u64, Value::AtLeast(8)));
        };
        let Ok(entries) = <[IndexEntry]>::ref_from_bytes(entries) else {
            return Err(damaged(
                PLACE,
                "length",
                section.offset,
                bytes.len() as u64,
                "8 and a multiple of 16",
            ));
        };
        if head.stride == 0 {
            return Err(damaged(PLACE, "stride", section.offset, 0u64, Value::AtLeast(1)));
        }
        if head.zero != 0 {
            return Err(damaged(PLACE, "padding", section.offset + 4, head.zero.get(), 0u32));
        }
        if entries.is_empty() != (blob_count == 0) {
            let expected = if blob_count == 0 { Value::Number(0) } else { Value::AtLeast(1) };
            return Err(damaged(PLACE, "number of entries", section.offset, entries.len() as u64, expected));
        }
        let mut at = section.offset + HEAD_BYTES as u64;
        let mut least = (0, first_after(BODY_START, alignment));
        for (i, entry) in entries.iter().enumerate() {
            let (number, offset) = (entry.number.get(), entry.offset.get());
            let (number_least, offset_least) = least;
            let exact = i == 0; // Blob 0 always has the first entry, and its place is known.
            if number < number_least || (exact && number != 0) {
                return Err(damaged(PLACE, "blob number", at, number, Value::AtLeast(number_least)));
            }
            if number >= blob_count {
                return Err(damaged(PLACE, "blob number", at, number, Value::AtMost(blob_count - 1)));
            }
            if offset < offset_least || (exact && offset != offset_least) {
                return Err(damaged(PLACE, "blob offset", at + 8, offset, Value::AtLeast(offset_least)));
            }
            if offset >= body_end {
                return Err(damaged(
                    PLACE,
                    "blob offset",
                    at + 8,
                    offset,
                    Value::AtMost(body_end - alignment),
                ));
            }
            if offset & (alignment - 1) != 0 {
                return Err(damaged(PLACE, "blob offset", at + 8, offset, "a multiple of the alignment"));
            }
            least = (number + 1, offset + alignment);
            at += ENTRY_BYTES as u64;
        }
        Ok(BlobIndex { stride: head.stride.get(), entries })
    }
}

/// Decides which blobs have an entry; the encoder collects them, `verify` compares with them.
#[derive(Clone, Debug)]
pub(crate) struct IndexRule {
    stride: u64,
    next_least: u64,
}

impl IndexRule {
    pub(crate) fn new(stride: u32) -> IndexRule {
        IndexRule { stride: stride.into(), next_least: 0 }
    }

    /// Whether the blob that begins here has an entry.
    #[inline]
    pub(crate) fn takes(&mut self, first: u64) -> bool {
        let takes = first >= self.next_least;
        if takes {
            self.next_least = first + self.stride;
        }
        takes
    }
}

/// Collects the index while blobs are written, as the section's bytes: it can be large, and is not copied.
#[derive(Debug)]
pub(crate) struct IndexBuilder {
    rule: IndexRule,
    bytes: Vec<u8>,
}

impl IndexBuilder {
    pub(crate) fn new(stride: u32) -> IndexBuilder {
        let head = IndexHead { stride: stride.into(), zero: 0.into() };
        IndexBuilder { rule: IndexRule::new(stride), bytes: head.as_bytes().to_vec() }
    }

    #[inline]
    pub(crate) fn add(&mut self, number: u64, first: u64) {
        if self.rule.takes(first) {
            let entry = IndexEntry { number: number.into(), offset: first.into() };
            self.bytes.extend_from_slice(entry.as_bytes());
        }
    }

    pub(crate) fn len(&self) -> usize {
        (self.bytes.len() - HEAD_BYTES) / ENTRY_BYTES
    }

    /// An index of so many blobs, of which nothing else is true.
    #[cfg(test)]
    pub(crate) fn with_entries(entries: usize) -> IndexBuilder {
        // Zeros, which the system does not even back with memory.
        IndexBuilder { rule: IndexRule::new(1), bytes: vec![0; HEAD_BYTES + entries * ENTRY_BYTES] }
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        self.bytes
    }
}

/// Compares a file's index with the blobs as they pass by.
#[derive(Clone, Debug)]
pub(crate) struct IndexCheck<'a> {
    rule: IndexRule,
    rest: &'a [IndexEntry],
}

impl<'a> IndexCheck<'a> {
    /// Starts at the entry for this offset, which begins a span.
    pub(crate) fn new(index: BlobIndex<'a>, start: u64) -> IndexCheck<'a> {
        let skip = index.entries.partition_point(|entry| entry.offset.get() < start);
        IndexCheck { rule: IndexRule::new(index.stride), rest: &index.entries[skip..] }
    }

    /// A blob passes by.
    #[inline]
    pub(crate) fn pass(&mut self, number: u64, first: u64) -> Result<(), FormatError> {
        let told = self.rest.first().is_some_and(|entry| entry.offset == first);
        if told != self.rule.takes(first) {
            let (found, expected) = if told { ("an entry", "none") } else { ("no entry", "one") };
            return Err(damaged(PLACE, "what the index has for this blob's offset", first, found, expected));
        }
        if told {
            let entry = self.rest[0];
            self.rest = &self.rest[1..];
            if entry.number != number {
                return Err(damaged(PLACE, "blob number at this offset", first, entry.number.get(), number));
            }
        }
        Ok(())
    }

    /// The body ended; so must the index.
    pub(crate) fn finish(&self) -> Result<(), FormatError> {
        match self.rest.first() {
            None => Ok(()),
            Some(entry) => Err(damaged(
                PLACE,
                "entry",
                entry.offset.get(),
                entry.offset.get(),
                "an offset at which a blob begins",
            )),
        }
    }
}

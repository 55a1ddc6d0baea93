//! What stands between body and trailer: the sections and the table that names them.

mod histogram;
mod index;

use std::collections::VecDeque;
use std::fmt;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::crc32c;
use crate::error::{FormatError, Place, Value, damaged};
use crate::limits::{PAGE_BYTES, SECTIONS_MAX};
use crate::page::check_zero;

pub use histogram::LengthHistogram;
pub(crate) use index::{BlobIndex, IndexBuilder, IndexCheck};

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionKind(pub u32);

impl SectionKind {
    /// One CRC-32C for each block of the body. Every region has it.
    pub const BLOCK_CHECKSUMS: SectionKind = SectionKind(1);
    /// Numbers and offsets of blobs at which the body can be entered.
    pub const BLOB_INDEX: SectionKind = SectionKind(2);
    /// How many blobs have which length.
    pub const LENGTH_HISTOGRAM: SectionKind = SectionKind(3);
    /// The user's own bytes.
    pub const METADATA: SectionKind = SectionKind(4);

    fn is_known(self) -> bool {
        (1..=4).contains(&self.0)
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            SectionKind::BLOCK_CHECKSUMS => f.write_str("block checksums"),
            SectionKind::BLOB_INDEX => f.write_str("blob index"),
            SectionKind::LENGTH_HISTOGRAM => f.write_str("length histogram"),
            SectionKind::METADATA => f.write_str("user metadata"),
            SectionKind(kind) => write!(f, "kind {kind}"),
        }
    }
}

/// One section of a region file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Section<'a> {
    /// What it holds.
    pub kind: SectionKind,
    /// Whether a reader that does not know the kind must refuse the file.
    pub required: bool,
    /// The offset of its first byte.
    pub offset: u64,
    /// Its bytes, without padding.
    pub bytes: &'a [u8],
    /// The CRC-32C of its bytes and padding.
    pub crc: u32,
}

/// Sections begin at multiples of this.
const SECTION_ALIGNMENT: usize = 8;
const FLAG_REQUIRED: u32 = 1;

/// An entry of the section table as it stands in the file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TableEntry {
    kind: U32,
    flags: U32,
    offset: U64,
    len: U64,
    crc: U32,
    zero: U32,
}

const ENTRY_BYTES: usize = size_of::<TableEntry>();
const _: () = assert!(ENTRY_BYTES == 32);

/// Where the trailer begins if the table begins here.
pub(crate) fn trailer_offset(table_offset: u64, section_count: u32) -> Option<u64> {
    let table_end = table_offset.checked_add(u64::from(section_count) * ENTRY_BYTES as u64)?;
    table_end.checked_next_multiple_of(PAGE_BYTES as u64)
}

/// The sections of one file, checked.
#[derive(Clone, Debug)]
pub(crate) struct Sections<'a> {
    all: Vec<Section<'a>>,
}

impl<'a> Sections<'a> {
    /// Reads the table and checks every section's CRC.
    ///
    /// `tail` is the file from `body_end` up to the trailer.
    pub(crate) fn decode(
        tail: &'a [u8],
        body_end: u64,
        table_offset: u64,
        section_count: u32,
        table_crc: u32,
    ) -> Result<Sections<'a>, FormatError> {
        const TABLE: Place = Place::SectionTable;
        assert!(section_count <= SECTIONS_MAX, "the trailer is checked");
        let (sections_bytes, table_bytes) = tail.split_at((table_offset - body_end) as usize);
        let crc = crc32c(table_bytes);
        if crc != table_crc {
            return Err(damaged(TABLE, "checksum", table_offset, Value::Crc(crc), Value::Crc(table_crc)));
        }
        let (entries, zeros) =
            <[TableEntry]>::ref_from_prefix_with_elems(table_bytes, section_count as usize)
                .expect("the trailer is checked: the table fits");
        check_zero(TABLE, table_offset + (entries.len() * ENTRY_BYTES) as u64, zeros)?;

        let mut all: Vec<Section<'a>> = Vec::with_capacity(entries.len());
        let mut rest = sections_bytes;
        let mut offset = body_end;
        for (index, entry) in entries.iter().enumerate() {
            let entry_offset = table_offset + (index * ENTRY_BYTES) as u64;
            let field = |what, field_offset: u64, found: u64, expected: Value| {
                damaged(TABLE, what, entry_offset + field_offset, found, expected)
            };
            let kind = SectionKind(entry.kind.get());
            if entry.offset != offset {
                return Err(field("section offset", 8, entry.offset.get(), offset.into()));
            }
            let len = entry.len.get();
            let padded = len.checked_next_multiple_of(SECTION_ALIGNMENT as u64).unwrap_or(u64::MAX);
            if padded > rest.len() as u64 {
                return Err(field("section length", 16, len, Value::AtMost(rest.len() as u64)));
            }
            if entry.zero != 0 {
                return Err(field("padding", 28, entry.zero.get().into(), 0u64.into()));
            }
            if kind.is_known() && all.iter().any(|section| section.kind == kind) {
                return Err(field("section kind", 0, kind.0.into(), "a kind that is not there yet".into()));
            }
            let (extent, after) = rest.split_at(padded as usize);
            let place = Place::Section(kind.0);
            let crc = crc32c(extent);
            if crc != entry.crc.get() {
                return Err(damaged(place, "checksum", offset, Value::Crc(crc), Value::Crc(entry.crc.get())));
            }
            let (bytes, zeros) = extent.split_at(len as usize);
            check_zero(place, offset + len, zeros)?;
            let required = entry.flags.get() & FLAG_REQUIRED != 0;
            if required && !kind.is_known() {
                return Err(FormatError::Unsupported {
                    place: TABLE,
                    what: "section kind",
                    found: kind.0.into(),
                });
            }
            all.push(Section { kind, required, offset, bytes, crc });
            offset += padded;
            rest = after;
        }
        if offset != table_offset {
            return Err(damaged(TABLE, "end of the last section", table_offset, offset, table_offset));
        }
        Ok(Sections { all })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Section<'a>> + '_ {
        self.all.iter().copied()
    }

    pub(crate) fn find(&self, kind: SectionKind) -> Option<Section<'a>> {
        self.iter().find(|section| section.kind == kind)
    }
}

/// Lays out sections, table and zeros, up to the trailer. Takes the sections' bytes over, without a copy.
pub(crate) struct TailBuilder {
    end: u64,
    chunks: VecDeque<Vec<u8>>,
    entries: Vec<TableEntry>,
}

/// What the trailer says of the table.
pub(crate) struct TableFacts {
    pub(crate) offset: u64,
    pub(crate) section_count: u32,
    pub(crate) crc: u32,
    /// Where the trailer begins.
    pub(crate) end: u64,
}

impl TailBuilder {
    pub(crate) fn new(body_end: u64) -> TailBuilder {
        TailBuilder { end: body_end, chunks: VecDeque::new(), entries: Vec::new() }
    }

    pub(crate) fn add(&mut self, kind: SectionKind, mut bytes: Vec<u8>) {
        let len = bytes.len() as u64;
        bytes.resize(bytes.len().next_multiple_of(SECTION_ALIGNMENT), 0);
        let required = kind == SectionKind::BLOCK_CHECKSUMS;
        self.entries.push(TableEntry {
            kind: kind.0.into(),
            flags: if required { FLAG_REQUIRED } else { 0 }.into(),
            offset: self.end.into(),
            len: len.into(),
            crc: crc32c(&bytes).into(),
            zero: 0.into(),
        });
        self.end += bytes.len() as u64;
        self.chunks.push_back(bytes);
    }

    /// The bytes between body and trailer, in chunks.
    pub(crate) fn finish(mut self) -> (VecDeque<Vec<u8>>, TableFacts) {
        let (offset, section_count) = (self.end, self.entries.len() as u32);
        let end = trailer_offset(offset, section_count).expect("the encoder keeps files short enough");
        let mut table = self.entries.as_bytes().to_vec();
        table.resize((end - offset) as usize, 0);
        let crc = crc32c(&table);
        self.chunks.push_back(table);
        (self.chunks, TableFacts { offset, section_count, crc, end })
    }
}

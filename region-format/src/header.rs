//! The first page: what a reader must know before it can read on, and where the region was born.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{EncodeError, FormatError, NotARegion, Place, Value, damaged};
use crate::fingerprint::Fingerprint;
use crate::key::Key;
use crate::limits::*;
use crate::page::{CRC_OFFSET, bytes, check_crc, check_zero, seal};

pub(crate) const MAGIC: u8 = 0x55;
const SIGNATURE: [u8; 6] = *b"pelton";

/// Which of the formats a file is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Version {
    /// Lengths and bytes, without checksums. Read for the sake of files that exist.
    V1,
    /// Aligned, checksummed, indexed, sealed.
    V2,
}

impl Version {
    /// Tells the version by a file's first bytes; two are enough.
    ///
    /// # Errors
    /// [`FormatError::NotARegion`] or [`FormatError::Unsupported`]: leave the file alone.
    pub fn of(start: &[u8]) -> Result<Version, FormatError> {
        match *start {
            [MAGIC, 1, ..] => Ok(Version::V1),
            [MAGIC, 2, ..] => Ok(Version::V2),
            [MAGIC, found, ..] => Err(unsupported("version", found.into())),
            [found, _, ..] => Err(FormatError::NotARegion { what: NotARegion::OtherMagic { found } }),
            _ => Err(FormatError::NotARegion { what: NotARegion::TooShort { bytes: start.len() } }),
        }
    }

    /// The number that stands in the file's second byte.
    pub fn number(self) -> u8 {
        match self {
            Version::V1 => 1,
            Version::V2 => 2,
        }
    }
}

fn unsupported(what: &'static str, found: u64) -> FormatError {
    FormatError::Unsupported { place: Place::Header, what, found }
}

/// What the header page says.
///
/// It tells how the body is laid out and where the region was born. Which slice a region belongs to
/// is for the keeper of the file to say, by its [`ContentId`](crate::ContentId).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Every blob begins at a multiple of this file offset.
    pub alignment: u32,
    /// The body is cut in checksum blocks of this size.
    pub block_bytes: u32,
    /// Which of the slice's regions this is.
    pub region_index: u32,
    /// Over how many regions the slice's blobs were dealt.
    pub region_count: u32,
    /// Who wrote it: a name padded with zeros, or a UUID. Zeros: not told.
    pub writer: [u8; 16],
    /// Which slice it was written for.
    pub key: Option<Key>,
    /// What decided the slice's blobs.
    pub fingerprint: Option<Fingerprint>,
    /// Bits that a reader may ignore. None has a meaning yet, so only 0 can be written.
    pub optional_features: u32,
}

impl Default for Header {
    fn default() -> Header {
        Header {
            alignment: ALIGNMENT_DEFAULT,
            block_bytes: BLOCK_BYTES_DEFAULT,
            region_index: 0,
            region_count: 1,
            writer: [0; 16],
            key: None,
            fingerprint: None,
            optional_features: 0,
        }
    }
}

impl Header {
    /// The page that says this.
    ///
    /// # Errors
    /// [`EncodeError::Field`] if a field is out of its range.
    pub fn encode(&self) -> Result<[u8; PAGE_BYTES], EncodeError> {
        if let Err(range) = self.check() {
            return Err(EncodeError::Field {
                field: range.field,
                found: range.found,
                expected: range.expected,
            });
        }
        if self.optional_features != 0 {
            let found = self.optional_features.into();
            return Err(EncodeError::Field { field: "optional features", found, expected: "0" });
        }
        let mut page = HeaderPage::new_zeroed();
        page.magic = MAGIC;
        page.version = Version::V2.number();
        page.signature = SIGNATURE;
        page.alignment = self.alignment.into();
        page.block_bytes = self.block_bytes.into();
        page.region_index = self.region_index.into();
        page.region_count = self.region_count.into();
        page.writer = self.writer;
        if let Some(fingerprint) = &self.fingerprint {
            page.fingerprint = *fingerprint.as_bytes();
            page.fingerprint_present = 1;
        }
        if let Some(key) = &self.key {
            let text = key.to_string();
            page.key[..text.len()].copy_from_slice(text.as_bytes());
            page.key_bytes = (text.len() as u16).into();
        }
        Ok(seal(page.as_bytes()))
    }

    /// Reads and checks the first page of a version 2 file.
    ///
    /// # Errors
    /// Any of [`FormatError`]; only damage and truncation speak against the file.
    pub fn decode(start: &[u8]) -> Result<Header, FormatError> {
        match Version::of(start)? {
            Version::V2 => {}
            version => return Err(unsupported("version", version.number().into())),
        }
        let Ok((page, _)) = HeaderPage::ref_from_prefix(start) else {
            let (found, expected) = (start.len() as u64, PAGE_BYTES as u64);
            return Err(FormatError::Truncated { place: Place::Header, offset: 0, found, expected });
        };
        if page.signature != SIGNATURE {
            return Err(damaged(Place::Header, "signature", 2, bytes(&page.signature), bytes(&SIGNATURE)));
        }
        check_crc(Place::Header, 0, page.as_bytes())?;
        if page.required_features != 0 {
            return Err(unsupported("required features", page.required_features.get().into()));
        }
        let header = Header {
            alignment: page.alignment.get(),
            block_bytes: page.block_bytes.get(),
            region_index: page.region_index.get(),
            region_count: page.region_count.get(),
            writer: page.writer,
            key: page.key()?,
            fingerprint: page.fingerprint()?,
            optional_features: page.optional_features.get(),
        };
        header.check_ranges()?;
        page.check_zeros()?;
        Ok(header)
    }

    /// Refuses a header that no file can have: one that was read, or that a caller made up.
    pub(crate) fn check_ranges(&self) -> Result<(), FormatError> {
        self.check()
            .map_err(|range| damaged(Place::Header, range.field, range.offset, range.found, range.expected))
    }

    /// The ranges of the fields that are numbers; the same going out and coming in.
    fn check(&self) -> Result<(), OutOfRange> {
        let power_in = |x: u32, min, max| x.is_power_of_two() && (min..=max).contains(&x);
        let refuse = |field, found: u32, offset, expected| {
            Err(OutOfRange { field, found: found.into(), offset, expected })
        };
        if !power_in(self.alignment, ALIGNMENT_MIN, ALIGNMENT_MAX) {
            return refuse("alignment", self.alignment, 16, "a power of two, 8 to 4096");
        }
        if !power_in(self.block_bytes, BLOCK_BYTES_MIN, BLOCK_BYTES_MAX) {
            return refuse("block bytes", self.block_bytes, 20, "a power of two, 4 KiB to 64 MiB");
        }
        if self.region_count == 0 {
            return refuse("region count", self.region_count, 28, "at least 1");
        }
        if self.region_index >= self.region_count {
            return refuse("region index", self.region_index, 24, "below region count");
        }
        Ok(())
    }
}

struct OutOfRange {
    field: &'static str,
    found: u64,
    offset: u64,
    expected: &'static str,
}

/// The page as it stands in the file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderPage {
    magic: u8,
    version: u8,
    signature: [u8; 6],
    required_features: U32,
    optional_features: U32,
    alignment: U32,
    block_bytes: U32,
    region_index: U32,
    region_count: U32,
    writer: [u8; 16],
    fingerprint: [u8; 32],
    fingerprint_present: u8,
    zero_1: u8,
    key_bytes: U16,
    zero_2: [u8; 12],
    key: [u8; KEY_ROOM],
    zero_3: [u8; 3484],
    crc: U32,
}

const KEY_ROOM: usize = 512;
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<HeaderPage>() == PAGE_BYTES);
    assert!(offset_of!(HeaderPage, required_features) == 8);
    assert!(offset_of!(HeaderPage, alignment) == 16);
    assert!(offset_of!(HeaderPage, writer) == 32);
    assert!(offset_of!(HeaderPage, fingerprint) == 48);
    assert!(offset_of!(HeaderPage, key_bytes) == 82);
    assert!(offset_of!(HeaderPage, key) == 96);
    assert!(offset_of!(HeaderPage, crc) == CRC_OFFSET);
    assert!(crate::key::KEY_BYTES_MAX <= KEY_ROOM, "every key fits");
};

impl HeaderPage {
    fn key(&self) -> Result<Option<Key>, FormatError> {
        let len = usize::from(self.key_bytes.get());
        if len > KEY_ROOM {
            return Err(damaged(Place::Header, "key bytes", 82, len as u64, Value::AtMost(KEY_ROOM as u64)));
        }
        let (text, rest) = self.key.split_at(len);
        check_zero(Place::Header, 96 + len as u64, rest)?;
        if len == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(text);
        let refuse = |error| {
            damaged(
                Place::Header,
                "key",
                96,
                Value::Text(format!("{text:?}")),
                Value::Text(format!("a key: {error}")),
            )
        };
        text.parse().map(Some).map_err(refuse)
    }

    fn fingerprint(&self) -> Result<Option<Fingerprint>, FormatError> {
        match self.fingerprint_present {
            0 => check_zero(Place::Header, 48, &self.fingerprint).map(|()| None),
            1 => Ok(Some(Fingerprint::from_bytes(self.fingerprint))),
            found => Err(damaged(Place::Header, "fingerprint present", 80, u64::from(found), "0 or 1")),
        }
    }

    fn check_zeros(&self) -> Result<(), FormatError> {
        check_zero(Place::Header, 81, &[self.zero_1])?;
        check_zero(Place::Header, 84, &self.zero_2)?;
        check_zero(Place::Header, 608, &self.zero_3)
    }
}

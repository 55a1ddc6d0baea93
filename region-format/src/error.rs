//! What can be wrong with bytes, and with what a writer was asked to write.

use std::fmt;

/// Why bytes are not a whole region.
///
/// Each variant is something else to do next. All but the first two name the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The first bytes are not ours. Leave the file alone: it is somebody else's.
    #[error("not a region file: it {what}")]
    NotARegion {
        /// What the file is instead.
        what: NotARegion,
    },
    /// Written by something newer. Leave the file alone and read it with a newer reader.
    #[error("{place} needs {what} {found}, which this reader does not know: a newer one wrote it")]
    Unsupported {
        /// Where the unknown thing stands.
        place: Place,
        /// What kind of thing it is.
        what: &'static str,
        /// The unknown value.
        found: u64,
    },
    /// The bytes end too early. The file was cut, or never finished: fetch it again.
    #[error("{place} is cut off at offset {offset}: found {found} bytes, expected at least {expected}")]
    Truncated {
        /// What is incomplete.
        place: Place,
        /// Where the missing thing starts.
        offset: u64,
        /// How many bytes are there from the offset on.
        found: u64,
        /// How many there should be at least.
        expected: u64,
    },
    /// A byte is not what it must be. Nothing from this file can be trusted: fetch it again.
    #[error("{place} is damaged at offset {offset}: {what} is {found}, expected {expected}")]
    Damaged {
        /// Where the damage shows.
        place: Place,
        /// Which property does not hold.
        what: &'static str,
        /// The file offset of the field or bytes that do not hold.
        offset: u64,
        /// What stands there.
        found: Value,
        /// What should stand there.
        expected: Value,
    },
    /// The decoder's caller wanted no more, so nothing is known of the rest. Nothing speaks against the file.
    #[error("the decoder was stopped before the end")]
    Stopped,
    /// Sound so far, but the reader was told to take no more memory than this.
    #[error("{place} at offset {offset} needs more than the {limit} bytes that this reader may hold")]
    TooLarge {
        /// What is too large.
        place: Place,
        /// Where it starts.
        offset: u64,
        /// The reader's limit in bytes.
        limit: u64,
    },
}

/// What a file is, when it is not a region file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotARegion {
    /// It ends before the two bytes that every version has.
    TooShort {
        /// All the bytes there are.
        bytes: usize,
    },
    /// It begins with another byte.
    OtherMagic {
        /// That byte.
        found: u8,
    },
}

impl fmt::Display for NotARegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotARegion::TooShort { bytes } => write!(f, "has {bytes} bytes, a region has at least 2"),
            NotARegion::OtherMagic { found } => {
                write!(f, "begins with 0x{found:02X}, a region begins with 0x55")
            }
        }
    }
}

impl FormatError {
    /// Where in the file it is, if the file is ours at all.
    pub fn offset(&self) -> Option<u64> {
        match self {
            FormatError::NotARegion { .. } | FormatError::Unsupported { .. } | FormatError::Stopped => None,
            FormatError::Truncated { offset, .. }
            | FormatError::Damaged { offset, .. }
            | FormatError::TooLarge { offset, .. } => Some(*offset),
        }
    }
}

/// A stretch of a region file, as errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The file as a whole.
    File,
    /// The first page.
    Header,
    /// All blobs together.
    Body,
    /// A checksum block, by number.
    Block(u64),
    /// A blob with its length and padding, by number.
    Blob(u64),
    /// The table that names the sections.
    SectionTable,
    /// A section, by kind.
    Section(u32),
    /// The last page.
    Trailer,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File => f.write_str("file"),
            Place::Header => f.write_str("header"),
            Place::Body => f.write_str("body"),
            Place::Block(index) => write!(f, "block {index}"),
            Place::Blob(number) => write!(f, "blob {number}"),
            Place::SectionTable => f.write_str("section table"),
            Place::Section(kind) => write!(f, "section \"{}\"", crate::sections::SectionKind(*kind)),
            Place::Trailer => f.write_str("trailer"),
        }
    }
}

/// A value that was found or expected, in the form people compare it in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// Exactly this number.
    Number(u64),
    /// This number or less.
    AtMost(u64),
    /// This number or more.
    AtLeast(u64),
    /// A CRC-32C.
    Crc(u32),
    /// A hash or other bytes that are compared whole.
    Bytes(Vec<u8>),
    /// A sentence, where no number says it.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => write!(f, "{number}"),
            Value::AtMost(number) => write!(f, "at most {number}"),
            Value::AtLeast(number) => write!(f, "at least {number}"),
            Value::Crc(crc) => write!(f, "0x{crc:08X}"),
            Value::Bytes(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Value::Text(text) => f.write_str(text),
        }
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Value {
        Value::Number(number.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

/// Shorthand for the most common error; cold, so that checks stay small where they are.
#[cold]
pub(crate) fn damaged(
    place: Place,
    what: &'static str,
    offset: u64,
    found: impl Into<Value>,
    expected: impl Into<Value>,
) -> FormatError {
    FormatError::Damaged { place, what, offset, found: found.into(), expected: expected.into() }
}

/// Why a region could not be written as asked. The encoder stays as it was before the call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A field of the header is out of its range. Ask for something else.
    #[error("{field} is {found}, expected {expected}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What was asked for.
        found: u64,
        /// What may be asked for.
        expected: &'static str,
    },
    /// The blob is longer than any blob can be. Cut it.
    #[error("blob {number} has {bytes} bytes, a blob has at most {}", crate::BLOB_BYTES_MAX)]
    BlobTooLong {
        /// The blob's number.
        number: u64,
        /// Its length.
        bytes: u64,
    },
    /// Version 1 has no place for metadata. Leave it out, or write version 2.
    #[error("version 1 has no place for metadata")]
    NoMetadata,
    /// More metadata than fits. Keep it elsewhere.
    #[error("metadata has {bytes} bytes, a region holds at most {}", crate::METADATA_BYTES_MAX)]
    MetadataTooLong {
        /// Its length.
        bytes: u64,
    },
    /// The file would pass a limit. Seal it and go on in another region.
    #[error("blob {number} does not fit: the region would pass {limit} {what}")]
    RegionFull {
        /// The first blob that does not fit.
        number: u64,
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A caller's mistake: the piece has another size than was agreed.
    #[error("the piece has {found} bytes, the encoder was made for {expected}")]
    PieceBytes {
        /// The size of the piece that was passed.
        found: usize,
        /// The size that was agreed.
        expected: usize,
    },
    /// A caller's mistake: a blob's bytes do not add up to the length it was begun with.
    #[error("blob {number} was begun with {declared} bytes; {given}")]
    BlobBytes {
        /// The blob's number.
        number: u64,
        /// The length it was begun with.
        declared: u32,
        /// What was given instead.
        given: &'static str,
    },
}

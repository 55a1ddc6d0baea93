//! The bytes of a region file: what they mean, how to write them and how to check them.
//!
//! A region holds blobs. It is written once, front to back. The trailer goes last and *seals* it: to
//! a reader, a file without a valid trailer does not exist.
//!
//! ```text
//! | header (1 page) | blob 0 | blob 1 | ... | end mark | sections | table | trailer (1 page) |
//! ```
//!
//! This crate opens no file, starts no thread, and does not panic on any bytes. The same bytes, for
//! readers in other languages, are told in `docs/region-format.md`.
//!
//! - To write: [`RegionEncoder`], then [`RegionSeal`].
//! - To read what lies in memory: [`RegionView`] and its [`BlobCursor`].
//! - To read a stream, or a file larger than memory: [`Frame`] and [`RegionDecoder`]; or [`Cells`], from buffers of
//!   the reader's own.
//! - To check a file that comes from somewhere while it comes: [`BlockCheck`].
//! - To name a slice: [`Key`], [`KeyPattern`], [`Fingerprint`].
#![forbid(unsafe_code)]

mod block_check;
mod body;
mod cells;
mod checksum;
mod cursor;
mod decoder;
mod encoder;
mod error;
mod fingerprint;
mod frame;
mod header;
mod hex;
mod key;
mod limits;
mod page;
mod pattern;
mod seal;
mod sections;
mod trailer;
mod view;
mod walker;

pub use block_check::BlockCheck;
pub use body::Span;
pub use cells::Cells;
pub use checksum::{BlockChecksum, Crc32c, crc32c};
pub use cursor::{BlobCursor, BlobIter};
pub use decoder::{BlobFragment, RegionDecoder, Verified};
pub use encoder::{Put, RegionEncoder};
pub use error::{EncodeError, FormatError, NotARegion, Place, Value};
pub use fingerprint::{Fingerprint, FingerprintBuilder};
pub use frame::Frame;
pub use header::{Header, Version};
pub use hex::HexError;
pub use key::{Key, KeyError, KeyProblem, NAME_BYTES_MAX};
pub use limits::{
    ALIGNMENT_DEFAULT, ALIGNMENT_MAX, ALIGNMENT_MIN, BLOB_BYTES_MAX, BLOCK_BYTES_DEFAULT, BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN, FILE_BYTES_MAX, INDEX_STRIDE_DEFAULT, METADATA_BYTES_MAX, PAGE_BYTES, PIECE_BYTES_STEP,
    SECTIONS_MAX, TAIL_BYTES_MAX, V1_FILE_BYTES_MAX,
};
pub use pattern::KeyPattern;
pub use seal::{RegionSeal, Sealed, encode_to_vec, encode_v1_to_vec};
pub use sections::{LengthHistogram, Section, SectionKind};
pub use trailer::{ContentId, Trailer};
pub use view::RegionView;

/// Views, cursors, encoders and decoders may go to other threads.
const _: () = {
    const fn everywhere<T: Send + Sync>() {}
    everywhere::<RegionView<'static>>();
    everywhere::<BlobCursor<'static>>();
    everywhere::<Frame<'static>>();
    everywhere::<RegionDecoder<'static>>();
    everywhere::<RegionEncoder>();
    everywhere::<RegionSeal>();
    everywhere::<BlockCheck>();
    everywhere::<FormatError>();
};

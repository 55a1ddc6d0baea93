//! Opening region files and reading them with plain reads, whatever their size.
//!
//! Nothing is mapped: a file that somebody cuts while it is read must end in a message, not in a
//! signal.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pelton::{
    BlobFragment, FormatError, Frame, Header, PAGE_BYTES, RegionDecoder, Span, TAIL_BYTES_MAX, Trailer,
    Verified, Version,
};
use rustix::fs::{Advice, OFlags};

use crate::failure::Failure;
use crate::file_kind::other_kind;
use crate::progress::Progress;

/// What one read takes at least: enough for a disk to be busy, little enough to stay in a cache.
pub(crate) const CHUNK_BYTES_MIN: u64 = 2 << 20;

/// An open region file of either version. So far only its first bytes were looked at.
pub(crate) struct RegionInput {
    path: PathBuf,
    file: File,
    file_bytes: u64,
    version: Version,
}

/// All of a version 2 file but its body, as bytes. [`frame`](Ends::frame) tells what they say.
pub(crate) struct Ends {
    header: Header,
    trailer: Trailer,
    tail: Vec<u8>,
}

impl Ends {
    pub(crate) fn frame(&self) -> Result<Frame<'_>, FormatError> {
        Frame::open(self.header.clone(), self.trailer.clone(), &self.tail)
    }
}

impl RegionInput {
    /// Opens a region file.
    pub(crate) fn open(path: &Path) -> Result<RegionInput, Failure> {
        let (file, file_bytes) = open_regular(path)?;
        let mut start = [0; 2];
        let len = file_bytes.min(2) as usize;
        read_at(path, &file, 0, &mut start[..len])?;
        let version = Version::of(&start[..len]).map_err(|error| Failure::format(path, &error))?;
        // Only a hint, so it may fail.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
        Ok(RegionInput { path: path.to_owned(), file, file_bytes, version })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// This file's failure for bytes that are not as they must be.
    pub(crate) fn damaged(&self, error: &FormatError) -> Failure {
        Failure::format(&self.path, error)
    }

    /// Reads header, trailer and what stands between body and trailer of a version 2 file.
    pub(crate) fn ends(&self) -> Result<Ends, ReadError> {
        let mut page = [0; PAGE_BYTES];
        let len = self.file_bytes.min(PAGE_BYTES as u64) as usize;
        self.read_at(0, &mut page[..len])?;
        let header = Header::decode(&page[..len])?;
        let trailer_offset = self.file_bytes.saturating_sub(PAGE_BYTES as u64);
        self.read_at(trailer_offset, &mut page[..len])?;
        let trailer = Trailer::decode(&page[..len], &header, self.file_bytes)?;
        // The trailer is checked: the tail is a part of the file and not too large.
        let tail_bytes = trailer.tail_bytes();
        assert!(tail_bytes <= TAIL_BYTES_MAX.min(self.file_bytes));
        let mut tail = vec![0; tail_bytes as usize];
        self.read_at(trailer.body_end, &mut tail)?;
        Ok(Ends { header, trailer, tail })
    }

    /// The [`ends`](RegionInput::ends) of a version 2 file; a version 1 file has none.
    pub(crate) fn ends_if_any(&self) -> Result<Option<Ends>, Failure> {
        match self.version {
            Version::V1 => Ok(None),
            _ => self.ends().map(Some).map_err(|error| match error {
                ReadError::Unread(failure) => failure,
                ReadError::Damaged(error) => self.damaged(&error),
            }),
        }
    }

    /// What the ends say, if there are any.
    pub(crate) fn frame<'a>(&self, ends: &'a Option<Ends>) -> Result<Option<Frame<'a>>, Failure> {
        ends.as_ref().map(Ends::frame).transpose().map_err(|error| self.damaged(&error))
    }

    /// Hands on every blob of the file in parts, in order. In version 2, whose `frame` is given, each
    /// part is verified before.
    pub(crate) fn walk<E: From<Failure>>(
        &self,
        frame: Option<&Frame<'_>>,
        progress: Progress,
        sink: impl FnMut(BlobFragment<'_>) -> Result<(), E>,
    ) -> Result<Verified, E> {
        match frame {
            Some(frame) => self.walk_span(frame, frame.whole(), progress, sink),
            None => self.drive(RegionDecoder::stream(), 0..self.file_bytes, CHUNK_BYTES_MIN, progress, sink),
        }
    }

    /// Hands on the blobs of a span, and reads no more of the body than it must.
    pub(crate) fn walk_span<E: From<Failure>>(
        &self,
        frame: &Frame<'_>,
        span: Span,
        progress: Progress,
        sink: impl FnMut(BlobFragment<'_>) -> Result<(), E>,
    ) -> Result<Verified, E> {
        let decoder = RegionDecoder::over(frame, span);
        let range = decoder.feed_from()..decoder.feed_until();
        self.drive(decoder, range, chunk_bytes(frame), progress, sink)
    }

    fn drive<E: From<Failure>>(
        &self,
        mut decoder: RegionDecoder<'_>,
        range: Range<u64>,
        chunk_bytes: u64,
        progress: Progress,
        mut sink: impl FnMut(BlobFragment<'_>) -> Result<(), E>,
    ) -> Result<Verified, E> {
        let mut sink = |part: BlobFragment<'_>| sink(part).map_err(FeedError::Sink);
        self.chunks(range, chunk_bytes, |_, chunk| {
            progress.advance(chunk.len());
            decoder.feed(chunk, &mut sink).map_err(|error| match error {
                FeedError::Sink(error) => error,
                FeedError::Format(error) => self.damaged(&error).into(),
            })
        })?;
        Ok(decoder.finish().map_err(|error| self.damaged(&error))?)
    }

    /// Reads a range of the file in steps that end at multiples of `chunk_bytes`.
    pub(crate) fn chunks<E: From<Failure>>(
        &self,
        range: Range<u64>,
        chunk_bytes: u64,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let room = chunk_bytes.min(range.end.saturating_sub(range.start));
        let mut chunk = vec![0; room as usize];
        let mut offset = range.start;
        while offset < range.end {
            let end = (offset + chunk_bytes - offset % chunk_bytes).min(range.end);
            let chunk = &mut chunk[..(end - offset) as usize];
            self.read_at(offset, chunk)?;
            take(offset, chunk)?;
            offset = end;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        read_at(&self.path, &self.file, offset, bytes)
    }
}

/// How much is read at once: whole checksum blocks, so that the decoder need not gather them.
pub(crate) fn chunk_bytes(frame: &Frame<'_>) -> u64 {
    CHUNK_BYTES_MIN.max(frame.header().block_bytes.into())
}

/// Why a part of a file is not known, for those who go on with what they have.
pub(crate) enum ReadError {
    /// It could not be read.
    Unread(Failure),
    /// It is damaged.
    Damaged(FormatError),
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> ReadError {
        ReadError::Unread(failure)
    }
}

impl From<FormatError> for ReadError {
    fn from(error: FormatError) -> ReadError {
        ReadError::Damaged(error)
    }
}

/// Why feeding ended early: the bytes, or who takes the blobs.
enum FeedError<E> {
    Format(FormatError),
    Sink(E),
}

impl<E> From<FormatError> for FeedError<E> {
    fn from(error: FormatError) -> FeedError<E> {
        FeedError::Format(error)
    }
}

/// Opens a file that can be read at any offset, and tells its length.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64), Failure> {
    let refuse = |kind| Err(Failure::file(path, format!("is {kind}, expected a regular file")));
    // Looked at before it is opened, because opening a device may do something.
    let metadata = fs::metadata(path).map_err(|error| Failure::io(path, "read", &error))?;
    if let Some(kind) = other_kind(&metadata) {
        return refuse(kind);
    }
    // Not waiting matters if it has become a pipe by now; for files it changes nothing.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| Failure::io(path, "read", &error))?;
    let metadata = file.metadata().map_err(|error| Failure::io(path, "read", &error))?;
    match other_kind(&metadata) {
        Some(kind) => refuse(kind),
        None => Ok((file, metadata.len())),
    }
}

fn read_at(path: &Path, file: &File, offset: u64, bytes: &mut [u8]) -> Result<(), Failure> {
    file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Failure::file(path, "became shorter while it was read"),
        _ => Failure::io(path, "read", &error),
    })
}

//! How blobs stand in an input, and how they are cut out of it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::str::FromStr;

use pelton_region_format::{BLOB_BYTES_MAX, BlobFragment, FormatError, RegionDecoder};

use super::FileError;
use super::input::Input;
use crate::units::{count, grouped};

/// What one read takes.
const BUFFER_BYTES: usize = 1 << 20;

/// How blobs stand in an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum FileFormat {
    /// Each blob is a line; the line feed at its end does not belong to it.
    Lines,
    /// Each blob is a length, a u32 in little-endian, and its bytes.
    Framed,
    /// Each input is one blob.
    Raw,
    /// Each input is a region file, of either version.
    Region,
}

impl FileFormat {
    /// All of them.
    pub const ALL: [FileFormat; 4] =
        [FileFormat::Lines, FileFormat::Framed, FileFormat::Raw, FileFormat::Region];

    /// As it is called on the command line, in configurations and in fingerprints.
    pub fn name(self) -> &'static str {
        match self {
            FileFormat::Lines => "lines",
            FileFormat::Framed => "framed",
            FileFormat::Raw => "raw",
            FileFormat::Region => "region",
        }
    }

    /// Hands on every blob of an input, in order, and tells `seen` every byte that it reads, in order and to the end.
    ///
    /// Only when it returns is it known that the input was whole: what was handed on before must not be used if it was not.
    ///
    /// # Errors
    /// [`FileError`], as the caller's error; and what `sink` returns.
    pub fn walk<E: From<FileError>>(
        self,
        input: &Input,
        seen: &mut dyn FnMut(&[u8]),
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let seen = Seen { file: input.open()?, seen };
        let mut stream = Stream { input, reader: BufReader::with_capacity(BUFFER_BYTES, seen) };
        match self {
            FileFormat::Lines => stream.lines(sink),
            FileFormat::Framed => stream.frames(sink),
            FileFormat::Raw => stream.whole(sink),
            FileFormat::Region => stream.region(sink),
        }
    }
}

/// Why a text is not the name of a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no format \"{found}\", allowed are lines, framed, raw and region")]
pub struct UnknownFormat {
    /// The text.
    pub found: String,
}

impl FromStr for FileFormat {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<FileFormat, UnknownFormat> {
        let found = FileFormat::ALL.into_iter().find(|format| format.name() == text);
        found.ok_or_else(|| UnknownFormat { found: text.to_owned() })
    }
}

/// A file that tells what is read from it.
struct Seen<'a> {
    file: File,
    seen: &'a mut dyn FnMut(&[u8]),
}

impl Read for Seen<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(bytes)?;
        (self.seen)(&bytes[..len]);
        Ok(len)
    }
}

type Sink<'a, E> = dyn FnMut(&[u8]) -> Result<(), E> + 'a;

/// An input that is read once, from its start to its end.
struct Stream<'a> {
    input: &'a Input,
    reader: BufReader<Seen<'a>>,
}

impl Stream<'_> {
    fn lines<E: From<FileError>>(&mut self, sink: &mut Sink<'_, E>) -> Result<(), E> {
        let mut line = Vec::new();
        let mut number = 0;
        loop {
            line.clear();
            // One byte more than a blob has, for the line feed.
            let len = self
                .reader
                .by_ref()
                .take(u64::from(BLOB_BYTES_MAX) + 1)
                .read_until(b'\n', &mut line)
                .map_err(|error| self.unread(error))?;
            if len == 0 {
                return Ok(());
            }
            number += 1;
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            if line.len() > BLOB_BYTES_MAX as usize {
                let (number, most) = (grouped(number), grouped(BLOB_BYTES_MAX.into()));
                return Err(self
                    .failure(format!(
                        "line {number} is too long for a blob: at most {most} bytes; \
                     raw and framed input may hold line feeds"
                    ))
                    .into());
            }
            sink(&line)?;
        }
    }

    fn frames<E: From<FileError>>(&mut self, sink: &mut Sink<'_, E>) -> Result<(), E> {
        let (mut blob, mut number, mut offset) = (Vec::new(), 0, 0u64);
        loop {
            self.read(4, &mut blob)?;
            let Ok(length) = <[u8; 4]>::try_from(&blob[..]) else {
                if blob.is_empty() {
                    return Ok(());
                }
                let (number, found) = (grouped(number), count(blob.len() as u64, "byte"));
                return Err(self
                    .failure(format!(
                        "frame {number} at offset {offset} is cut off: {found} of its length, expected 4"
                    ))
                    .into());
            };
            let len = u32::from_le_bytes(length);
            if len > BLOB_BYTES_MAX {
                let (number, len, most) =
                    (grouped(number), grouped(len.into()), grouped(BLOB_BYTES_MAX.into()));
                return Err(self
                    .failure(format!(
                        "frame {number} at offset {offset} claims {len} bytes, a blob has at most {most}: \
                     is this framed input?"
                    ))
                    .into());
            }
            // The memory grows with what comes, not with what the frame claims.
            self.read(len.into(), &mut blob)?;
            if blob.len() < len as usize {
                let missing = count(u64::from(len) - blob.len() as u64, "byte");
                let number = grouped(number);
                return Err(self
                    .failure(format!("frame {number} is cut off: the input ends {missing} early"))
                    .into());
            }
            sink(&blob)?;
            number += 1;
            offset += 4 + u64::from(len);
        }
    }

    fn whole<E: From<FileError>>(&mut self, sink: &mut Sink<'_, E>) -> Result<(), E> {
        let mut blob = Vec::new();
        self.read(u64::from(BLOB_BYTES_MAX) + 1, &mut blob)?;
        if blob.len() > BLOB_BYTES_MAX as usize {
            let most = grouped(BLOB_BYTES_MAX.into());
            return Err(self
                .failure(format!(
                    "is too long for one blob: at most {most} bytes; cut it, and load it as lines or frames"
                ))
                .into());
        }
        sink(&blob)
    }

    /// Blobs come as they are read; whether all was right is known at the end.
    fn region<E: From<FileError>>(&mut self, sink: &mut Sink<'_, E>) -> Result<(), E> {
        let path = self.input.path().to_owned();
        let mut decoder = RegionDecoder::stream();
        let mut blob = Vec::new();
        let mut take = |part: BlobFragment<'_>| {
            // A blob that comes in one part needs no gathering.
            if part.is_first() && part.is_last() {
                return sink(part.bytes).map_err(Stopped::Sink);
            }
            if part.is_first() {
                blob.clear();
            }
            blob.extend_from_slice(part.bytes);
            if part.is_last() { sink(&blob).map_err(Stopped::Sink) } else { Ok(()) }
        };
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(FileError::io(&path, error).into()),
            };
            let len = chunk.len();
            if len == 0 {
                break;
            }
            decoder.feed(chunk, &mut take).map_err(|stopped| match stopped {
                Stopped::Sink(error) => error,
                Stopped::Format(source) => {
                    FileError::Region { path: path.clone(), source: Box::new(source) }.into()
                }
            })?;
            self.reader.consume(len);
        }
        decoder.finish().map_err(|source| FileError::Region { path, source: Box::new(source) })?;
        Ok(())
    }

    /// Reads so many bytes, or fewer at the end.
    fn read(&mut self, len: u64, bytes: &mut Vec<u8>) -> Result<(), FileError> {
        bytes.clear();
        let read = self.reader.by_ref().take(len).read_to_end(bytes);
        read.map(drop).map_err(|error| self.unread(error))
    }

    fn unread(&self, error: io::Error) -> FileError {
        FileError::io(self.input.path(), error)
    }

    fn failure(&self, message: String) -> FileError {
        FileError::content(self.input.path(), message)
    }
}

/// Why a region was not read to its end: its bytes, or who takes the blobs.
enum Stopped<E> {
    Format(FormatError),
    Sink(E),
}

impl<E> From<FormatError> for Stopped<E> {
    fn from(error: FormatError) -> Stopped<E> {
        Stopped::Format(error)
    }
}

//! How blobs stand in an input, and how they are cut out of it.

use std::io::{self, BufRead, BufReader, Read};

use clap::ValueEnum;
use pelton::{BLOB_BYTES_MAX, BlobFragment};

use crate::failure::Failure;
use crate::input::RegionInput;
use crate::load::input::Input;
use crate::progress::Progress;
use pelton::units::{count, grouped};

/// What one read takes.
const BUFFER_BYTES: usize = 1 << 20;

/// How blobs stand in an input.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Each blob is a line; the line feed at its end does not belong to it
    Lines,
    /// Each blob is a length (u32, little-endian) and its bytes
    Framed,
    /// Each file is one blob
    Raw,
    /// Each file is a region file, of either version
    Region,
}

/// Who takes blobs, one by one.
pub(super) type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), Failure> + 'a;

impl Format {
    /// As it is called on the command line and in fingerprints.
    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Lines => "lines",
            Format::Framed => "framed",
            Format::Raw => "raw",
            Format::Region => "region",
        }
    }

    /// Hands on every blob of an input, in order.
    pub(super) fn walk(self, input: &Input, progress: &Progress, sink: &mut Sink<'_>) -> Result<(), Failure> {
        if self == Format::Region {
            return walk_region(input, progress, sink);
        }
        let mut stream = Stream::open(input)?;
        match self {
            Format::Lines => stream.lines(progress, sink),
            Format::Framed => stream.frames(progress, sink),
            Format::Raw => stream.whole(progress, sink),
            Format::Region => unreachable!("regions are no streams, and were walked above"),
        }
    }
}

/// An input that is read once, from its start to its end.
struct Stream<'a> {
    input: &'a Input,
    reader: BufReader<std::fs::File>,
}

impl<'a> Stream<'a> {
    fn open(input: &'a Input) -> Result<Stream<'a>, Failure> {
        Ok(Stream { input, reader: BufReader::with_capacity(BUFFER_BYTES, input.open()?) })
    }

    fn lines(&mut self, progress: &Progress, sink: &mut Sink<'_>) -> Result<(), Failure> {
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
                .map_err(|error| self.unread(&error))?;
            if len == 0 {
                return Ok(());
            }
            number += 1;
            progress.advance(len);
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            if line.len() > BLOB_BYTES_MAX as usize {
                let (number, most) = (grouped(number), grouped(BLOB_BYTES_MAX.into()));
                return Err(self.failure(format!(
                    "line {number} is too long for a blob: at most {most} bytes; \
                     raw and framed input may hold line feeds"
                )));
            }
            sink(&line)?;
        }
    }

    fn frames(&mut self, progress: &Progress, sink: &mut Sink<'_>) -> Result<(), Failure> {
        let (mut blob, mut number, mut offset) = (Vec::new(), 0, 0u64);
        loop {
            self.read(4, &mut blob)?;
            let Ok(length) = <[u8; 4]>::try_from(&blob[..]) else {
                if blob.is_empty() {
                    return Ok(());
                }
                let (number, found) = (grouped(number), count(blob.len() as u64, "byte"));
                return Err(self.failure(format!(
                    "frame {number} at offset {offset} is cut off: {found} of its length, expected 4"
                )));
            };
            let len = u32::from_le_bytes(length);
            if len > BLOB_BYTES_MAX {
                let (number, len, most) =
                    (grouped(number), grouped(len.into()), grouped(BLOB_BYTES_MAX.into()));
                return Err(self.failure(format!(
                    "frame {number} at offset {offset} claims {len} bytes, a blob has at most {most}: \
                     is this framed input?"
                )));
            }
            // The memory grows with what comes, not with what the frame claims.
            self.read(len.into(), &mut blob)?;
            if blob.len() < len as usize {
                let missing = count(u64::from(len) - blob.len() as u64, "byte");
                let number = grouped(number);
                return Err(
                    self.failure(format!("frame {number} is cut off: the input ends {missing} early"))
                );
            }
            progress.advance(4 + blob.len());
            sink(&blob)?;
            number += 1;
            offset += 4 + u64::from(len);
        }
    }

    fn whole(&mut self, progress: &Progress, sink: &mut Sink<'_>) -> Result<(), Failure> {
        let mut blob = Vec::new();
        self.read(u64::from(BLOB_BYTES_MAX) + 1, &mut blob)?;
        if blob.len() > BLOB_BYTES_MAX as usize {
            let most = grouped(BLOB_BYTES_MAX.into());
            return Err(self.failure(format!(
                "is too long for one blob: at most {most} bytes; cut it, and load it as lines or frames"
            )));
        }
        progress.advance(blob.len());
        sink(&blob)
    }

    /// Reads so many bytes, or fewer at the end.
    fn read(&mut self, len: u64, bytes: &mut Vec<u8>) -> Result<(), Failure> {
        bytes.clear();
        let read = self.reader.by_ref().take(len).read_to_end(bytes);
        read.map(drop).map_err(|error| self.unread(&error))
    }

    fn unread(&self, error: &io::Error) -> Failure {
        Failure::io(&self.input.path, "read", error)
    }

    fn failure(&self, message: String) -> Failure {
        Failure::file(&self.input.path, message)
    }
}

/// Region files are read from both ends, and verified before a blob is handed on.
fn walk_region(input: &Input, progress: &Progress, sink: &mut Sink<'_>) -> Result<(), Failure> {
    let region = RegionInput::open(&input.path)?;
    let ends = region.ends_if_any()?;
    let frame = region.frame(&ends)?;
    let mut blob = Vec::new();
    region.walk(frame.as_ref(), Progress::none(), |part: BlobFragment<'_>| {
        progress.advance(part.bytes.len());
        // A blob that comes in one part needs no gathering.
        if part.is_first() && part.is_last() {
            return sink(part.bytes);
        }
        if part.is_first() {
            blob.clear();
        }
        blob.extend_from_slice(part.bytes);
        if part.is_last() { sink(&blob) } else { Ok(()) }
    })?;
    Ok(())
}

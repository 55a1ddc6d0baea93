//! `pelton region pack`: a region file made of lines, of frames, or of one whole input.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use pelton::BLOB_BYTES_MAX;

use crate::failure::Failure;
use crate::file_kind::other_kind;
use crate::output::Output;
use crate::progress::Progress;
use crate::region::draft::RegionDraft;
use crate::region::labels::Labels;
use crate::region::{Format, file_name};
use crate::spool::Spool;
use crate::stdout::Stdout;
use pelton::units::{count, grouped};

/// What one read takes.
const CHUNK_BYTES: usize = 2 << 20;

/// The command line of `pack`.
#[derive(Args)]
pub(crate) struct Pack {
    /// The region file to make; it appears whole or not at all
    #[arg(value_parser = file_name())]
    out: PathBuf,
    /// Where the blobs come from: a file, a pipe, or - for standard input
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// How they stand there
    #[arg(long, value_enum)]
    format: Format,
    #[command(flatten)]
    labels: Labels,
}

impl Pack {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut source = Source::open(&self.from)?;
        let metadata = self.labels.metadata()?;
        let output = Output::create(&self.out)?;
        let (header, stride) = (self.labels.new_header(), self.labels.stride(None));
        let mut draft = match header.fingerprint {
            Some(_) => RegionDraft::v2(output, &header, stride)?,
            None => RegionDraft::v2_to_fingerprint(output, header, stride)?,
        };
        match self.format {
            Format::Framed => pack_frames(&mut source, &mut draft)?,
            Format::Lines => pack_lines(&mut source, &mut draft)?,
            Format::Raw => pack_whole(&mut source, &mut draft)?,
        }
        drop(source);
        let published = draft.publish(metadata.as_deref())?;
        let mut stdout = Stdout::open()?;
        stdout.line(published)?;
        stdout.flush()
    }
}

/// What is packed: anything that can be read to its end.
struct Source {
    name: PathBuf,
    file: File,
    /// How much there is to read, if it is a file that says so. Those under /proc say 0 and are not empty.
    bytes_known: Option<u64>,
    /// How much was read.
    offset: u64,
    progress: Progress,
}

impl Source {
    fn open(path: &Path) -> Result<Source, Failure> {
        let (name, file) = if path == Path::new("-") {
            let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
            (PathBuf::from("standard input"), stdin)
        } else {
            // Looked at first: opening a socket would fail with an obscure message.
            let kind = fs::metadata(path).map_err(|error| Failure::io(path, "read", &error))?;
            if let Some(kind @ ("a folder" | "a socket")) = other_kind(&kind) {
                return Err(Failure::file(path, format!("is {kind}, expected a file or a pipe")));
            }
            (path.to_owned(), File::open(path))
        };
        let mut file = file.map_err(|error| Failure::io(&name, "read", &error))?;
        let metadata = file.metadata().map_err(|error| Failure::io(&name, "read", &error))?;
        let bytes_known = match metadata.is_file() {
            // Somebody may have read a part of standard input already.
            true => file
                .stream_position()
                .ok()
                .and_then(|at| metadata.len().checked_sub(at))
                .filter(|len| *len > 0),
            false => None,
        };
        Ok(Source { name, file, bytes_known, offset: 0, progress: Progress::new("packing", bytes_known) })
    }

    /// Reads what there is now; nothing only at the end.
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Failure> {
        loop {
            match self.file.read(bytes) {
                Ok(len) => {
                    self.offset += len as u64;
                    self.progress.advance(len);
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::io(&self.name, "read", &error)),
            }
        }
    }

    fn failure(&self, message: String) -> Failure {
        Failure::file(&self.name, message)
    }
}

/// The whole input is one blob.
fn pack_whole(source: &mut Source, draft: &mut RegionDraft) -> Result<(), Failure> {
    let too_long = |source: &Source| {
        let most = grouped(BLOB_BYTES_MAX.into());
        source.failure(format!(
            "is too long for one blob: at most {most} bytes; cut it, and pack it as lines or frames"
        ))
    };
    let mut chunk = vec![0; CHUNK_BYTES];
    let Some(bytes_known) = source.bytes_known else {
        // A blob's length stands before its bytes, and a pipe tells it last.
        let mut spool = Spool::beside(draft.output());
        loop {
            let len = source.read(&mut chunk)?;
            if len == 0 {
                return put_spooled(&mut spool, draft);
            }
            spool.push(&chunk[..len])?;
            if spool.len() > BLOB_BYTES_MAX.into() {
                return Err(too_long(source));
            }
        }
    };
    let Some(len) = u32::try_from(bytes_known).ok().filter(|len| *len <= BLOB_BYTES_MAX) else {
        return Err(too_long(source));
    };
    draft.begin(len)?;
    while source.offset < bytes_known {
        let room = chunk.len().min((bytes_known - source.offset) as usize);
        match source.read(&mut chunk[..room])? {
            0 => return Err(source.failure("became shorter while it was read".to_owned())),
            len => draft.append(&chunk[..len])?,
        }
    }
    match source.read(&mut chunk[..1])? {
        0 => Ok(()),
        _ => Err(source.failure("became longer while it was read".to_owned())),
    }
}

/// Each line is a blob. A line ends at a line feed, which is not kept; the last one may lack it.
fn pack_lines(source: &mut Source, draft: &mut RegionDraft) -> Result<(), Failure> {
    let mut chunk = vec![0; CHUNK_BYTES];
    // A line that did not end where the chunk did. Its length must be known before it is written.
    let mut begun = Spool::beside(draft.output());
    let mut line_number = 1;
    let mut line_offset = 0;
    loop {
        let len = source.read(&mut chunk)?;
        if len == 0 {
            break;
        }
        let mut rest = &chunk[..len];
        while !rest.is_empty() {
            let (line, ended, after) = split_line(rest);
            if begun.len() + line.len() as u64 > BLOB_BYTES_MAX.into() {
                let (line_number, most) = (grouped(line_number), grouped(BLOB_BYTES_MAX.into()));
                return Err(source.failure(format!(
                    "line {line_number}, which begins at offset {line_offset}, is too long for a blob: at most {most} \
                     bytes; raw and framed input may hold line feeds"
                )));
            }
            match ended {
                true if begun.is_empty() => draft.put(line)?,
                true => {
                    begun.push(line)?;
                    put_spooled(&mut begun, draft)?;
                }
                false => begun.push(line)?,
            }
            if ended {
                line_number += 1;
                line_offset = source.offset - after.len() as u64;
            }
            rest = after;
        }
    }
    if begun.is_empty() { Ok(()) } else { put_spooled(&mut begun, draft) }
}

/// The first line of some bytes, whether it ends there, and the bytes behind it.
fn split_line(bytes: &[u8]) -> (&[u8], bool, &[u8]) {
    let mut after = bytes;
    // Searches with the processor's widest steps, unlike an iterator.
    let taken = after.skip_until(b'\n').expect("memory can be read");
    match bytes[..taken].split_last() {
        Some((b'\n', line)) => (line, true, after),
        _ => (&bytes[..taken], false, after),
    }
}

/// Each blob is a length and its bytes.
fn pack_frames(source: &mut Source, draft: &mut RegionDraft) -> Result<(), Failure> {
    let mut buffer = vec![0; CHUNK_BYTES];
    // What is read and not yet packed: `buffer[start..end]`.
    let (mut start, mut end) = (0, 0);
    // What the frame that was begun still lacks.
    let mut missing = 0;
    let mut number: u64 = 0;
    loop {
        // Everything there is for the frame that was begun.
        let taken = (end - start).min(missing as usize);
        draft.append(&buffer[start..start + taken])?;
        start += taken;
        missing -= taken as u32;
        // The next frame, if its length is here.
        if missing == 0 && end - start >= 4 {
            let len = u32::from_le_bytes(buffer[start..start + 4].try_into().expect("four bytes"));
            let offset = source.offset - (end - start) as u64;
            if len > BLOB_BYTES_MAX {
                let (number, len, most) =
                    (grouped(number), grouped(len.into()), grouped(BLOB_BYTES_MAX.into()));
                return Err(source.failure(format!(
                    "frame {number} at offset {offset} claims {len} bytes, a blob has at most {most}: is this framed input?"
                )));
            }
            draft.begin(len)?;
            (missing, number, start) = (len, number + 1, start + 4);
            continue;
        }
        // Neither: read on. Of a length that is cut, up to three bytes remain.
        buffer.copy_within(start..end, 0);
        (start, end) = (0, end - start);
        let len = source.read(&mut buffer[end..])?;
        end += len;
        if len > 0 {
            continue;
        }
        if missing > 0 {
            let (missing, frame) = (count(missing.into(), "byte"), grouped(number - 1));
            return Err(source.failure(format!("frame {frame} is cut off: the input ends {missing} early")));
        }
        if end > 0 {
            let offset = source.offset - end as u64;
            let (number, found) = (grouped(number), count(end as u64, "byte"));
            return Err(source.failure(format!(
                "frame {number} at offset {offset} is cut off: {found} of its length, expected 4"
            )));
        }
        return Ok(());
    }
}

fn put_spooled(spool: &mut Spool, draft: &mut RegionDraft) -> Result<(), Failure> {
    let len = u32::try_from(spool.len()).expect("callers stop before a blob is too long");
    draft.begin(len)?;
    spool.drain(|bytes| draft.append(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_at_its_line_feed() {
        assert_eq!(split_line(b"a\nb"), (&b"a"[..], true, &b"b"[..]));
        assert_eq!(split_line(b"\n"), (&b""[..], true, &b""[..]));
        assert_eq!(split_line(b"a\r\n"), (&b"a\r"[..], true, &b""[..]));
        assert_eq!(split_line(b"ab"), (&b"ab"[..], false, &b""[..]));
    }
}

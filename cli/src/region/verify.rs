//! `pelton region verify`: whether every byte of a region file is as it was written.

use std::path::{Path, PathBuf};

use clap::Args;
use pelton::{FormatError, Frame, Place, RegionDecoder, Verified, Version};
use serde::Serialize;

use crate::failure::{AFTER_DAMAGE, Failure, shown, with_next};
use crate::input::{CHUNK_BYTES_MIN, ReadError, RegionInput, chunk_bytes};
use crate::progress::Progress;
use crate::region::file_name;
use crate::region::json::FileName;
use crate::stdout::Stdout;
use pelton::units::{Size, count, grouped};

/// How many damaged blocks are listed. More of them say nothing new.
const LISTED_MAX: usize = 20;

/// The command line of `verify`.
#[derive(Args)]
pub(crate) struct Verify {
    /// The region files
    #[arg(required = true, value_name = "FILE", value_parser = file_name())]
    files: Vec<PathBuf>,
    /// One line of JSON for each file
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut stdout = Stdout::open()?;
        let mut all_whole = true;
        for file in &self.files {
            let report = Report::of(file);
            all_whole &= report.whole;
            let told = if self.json { report.tell_json(&mut stdout) } else { report.tell(file, &mut stdout) };
            // Each file's result is there before the next one is read, and before its line of error.
            let told = told.and_then(|()| stdout.flush());
            if let Some(error) = &report.error {
                crate::say(&format_args!("{}: {error}", shown(file)));
            }
            match told {
                // Whoever closed the pipe has seen enough. Damage that was found was found.
                Err(Failure::ClosedPipe) if !all_whole => return Err(Failure::Said),
                told => told?,
            }
        }
        if all_whole { Ok(()) } else { Err(Failure::Said) }
    }
}

/// What is known about one file after it was read; as it stands in the JSON.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    file: FileName,
    whole: bool,
    /// What is wrong, in a line.
    error: Option<String>,
    /// Where in the file it is, if it is at one place.
    error_offset: Option<u64>,
    version: Option<u8>,
    /// Whether there are checksums to compare: not in version 1. Unknown as long as the version is.
    checksums: Option<bool>,
    file_bytes: Option<u64>,
    blobs: Option<u64>,
    blob_bytes: Option<u64>,
    blocks: Option<u64>,
    damaged_blocks: u64,
    /// The first of them.
    damaged_blocks_listed: Vec<DamagedBlock>,
}

/// A block whose bytes do not have their checksum.
#[derive(Serialize)]
struct DamagedBlock {
    block: u64,
    offset: u64,
    end: u64,
    #[serde(skip)]
    error: FormatError,
}

impl Report {
    fn of(path: &Path) -> Report {
        let mut report = Report {
            file: FileName::of(path),
            whole: false,
            error: None,
            error_offset: None,
            version: None,
            checksums: None,
            file_bytes: None,
            blobs: None,
            blob_bytes: None,
            blocks: None,
            damaged_blocks: 0,
            damaged_blocks_listed: Vec::new(),
        };
        match report.check(path) {
            Ok(verified) => {
                report.whole = true;
                report.blobs = Some(verified.blob_count);
                report.blob_bytes = Some(verified.blob_bytes);
                report.blocks = (report.checksums == Some(true)).then_some(verified.blocks);
            }
            Err(ReadError::Unread(Failure::File { message, .. })) => report.error = Some(message),
            Err(ReadError::Unread(other)) => report.error = Some(other.to_string()),
            Err(ReadError::Damaged(error)) => {
                report.error = Some(report.damage(&error));
                report.error_offset = error.offset();
            }
        }
        report
    }

    /// Reads the file, and fills in what becomes known on the way.
    fn check(&mut self, path: &Path) -> Result<Verified, ReadError> {
        let input = RegionInput::open(path)?;
        self.version = Some(input.version().number());
        self.file_bytes = Some(input.file_bytes());
        let checksums = input.version() != Version::V1;
        self.checksums = Some(checksums);
        let progress = Progress::new("verifying", Some(input.file_bytes()));
        if !checksums {
            let decoder = RegionDecoder::stream();
            return feed(&input, decoder, 0..input.file_bytes(), CHUNK_BYTES_MIN, &progress)
                .map_err(|stop| stop.error);
        }
        let ends = input.ends()?;
        let frame = ends.frame()?;
        self.blocks = Some(frame.block_count());
        let decoder = RegionDecoder::over(&frame, frame.whole());
        let range = decoder.feed_from()..decoder.feed_until();
        feed(&input, decoder, range, chunk_bytes(&frame), &progress).or_else(|stop| {
            // The blobs can be followed no further, but each block can be told by itself.
            self.list_damage(&input, &frame, stop.offset, &progress)?;
            Err(stop.error)
        })
    }

    /// Compares each block from an offset on with its checksum.
    fn list_damage(
        &mut self,
        input: &RegionInput,
        frame: &Frame<'_>,
        offset: u64,
        progress: &Progress,
    ) -> Result<(), ReadError> {
        let body_end = frame.trailer().body_end;
        let mut block = offset / u64::from(frame.header().block_bytes);
        input.chunks(offset..body_end, chunk_bytes(frame), |offset, chunk| {
            progress.advance(chunk.len());
            let end = offset + chunk.len() as u64;
            loop {
                let range = frame.block_range(block);
                if range.is_empty() || range.end > end {
                    return Ok(());
                }
                let bytes = &chunk[(range.start - offset) as usize..(range.end - offset) as usize];
                if let Err(error) = frame.verify_block(block, bytes) {
                    self.damaged_blocks += 1;
                    if self.damaged_blocks_listed.len() < LISTED_MAX {
                        self.damaged_blocks_listed.push(DamagedBlock {
                            block,
                            offset: range.start,
                            end: range.end,
                            error,
                        });
                    }
                }
                block += 1;
            }
        })
    }

    /// Damage in one line: how much there is, and where it begins.
    fn damage(&self, error: &FormatError) -> String {
        let Some(first) = self.damaged_blocks_listed.first() else {
            return with_next(error);
        };
        let (damaged, blocks) = (self.damaged_blocks, self.blocks.unwrap_or_default());
        let is = if damaged == 1 { "is" } else { "are" };
        let mut text = format!("{} of {} {is} damaged", grouped(damaged), count(blocks, "block"));
        if is_checksum(error) {
            text += &format!(", the first at offset {}", first.offset);
        } else {
            // Not a consequence of a damaged block: the walk got to it before.
            text += &format!(", the first at offset {}, and before that {error}", first.offset);
        }
        format!("{text}; {AFTER_DAMAGE}")
    }

    fn tell_json(&self, stdout: &mut Stdout) -> Result<(), Failure> {
        stdout.line(serde_json::to_string(self).expect("a report is plain data"))
    }

    fn tell(&self, path: &Path, stdout: &mut Stdout) -> Result<(), Failure> {
        let file = shown(path);
        if self.whole {
            let (blobs, bytes) =
                (count(self.blobs.unwrap_or_default(), "blob"), Size(self.blob_bytes.unwrap_or_default()));
            return match self.blocks {
                Some(blocks) => {
                    let blocks = count(blocks, "block");
                    stdout.line(format_args!("{file}: whole: version 2, {blobs}, {bytes}, {blocks} checked"))
                }
                None => stdout.line(format_args!(
                    "{file}: whole as far as version 1 can tell: {blobs}, {bytes}, lengths walked; it has no checksums"
                )),
            };
        }
        for damaged in &self.damaged_blocks_listed {
            stdout.line(format_args!("{file}: {}", damaged.error))?;
        }
        match self.damaged_blocks - self.damaged_blocks_listed.len() as u64 {
            0 => Ok(()),
            more => stdout.line(format_args!("{file}: and {} more", count(more, "damaged block"))),
        }
    }
}

/// Where reading stopped, and why.
struct Stop {
    /// Everything before is checked.
    offset: u64,
    error: ReadError,
}

/// Decodes a range of a file for the checks alone.
fn feed(
    input: &RegionInput,
    mut decoder: RegionDecoder<'_>,
    range: std::ops::Range<u64>,
    chunk_bytes: u64,
    progress: &Progress,
) -> Result<Verified, Stop> {
    let mut checked = range.start;
    let fed = input.chunks(range, chunk_bytes, |offset, chunk| {
        progress.advance(chunk.len());
        decoder.feed::<ReadError>(chunk, &mut |_| Ok(()))?;
        checked = offset + chunk.len() as u64;
        Ok(())
    });
    let verified = fed.and_then(|()| Ok(decoder.finish()?));
    verified.map_err(|error| Stop { offset: checked, error })
}

fn is_checksum(error: &FormatError) -> bool {
    matches!(error, FormatError::Damaged { place: Place::Block(_), .. })
}

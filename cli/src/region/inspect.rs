//! `pelton region inspect`: what a region file says about itself.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use pelton::{Frame, LengthHistogram, Verified};
use serde::Serialize;

use crate::failure::{Failure, shown};
use crate::input::RegionInput;
use crate::progress::Progress;
use crate::region::file_name;
use crate::region::json::{FileName, hex};
use crate::stdout::Stdout;
use pelton::units::{Exact, Unrounded, count, grouped};

/// The longest bar of the histogram: what 80 columns leave.
const BAR_COLUMNS: u64 = 36;
/// Metadata is shown if it is a short text.
const METADATA_COLUMNS: usize = 60;
/// Sections that are shown by name. A file may have a thousand.
const SECTIONS_SHOWN: usize = 32;

/// The command line of `inspect`.
#[derive(Args)]
pub(crate) struct Inspect {
    /// The region file
    #[arg(value_parser = file_name())]
    file: PathBuf,
    /// One line of JSON with everything there is
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let input = RegionInput::open(&self.file)?;
        let ends = input.ends_if_any()?;
        let about = match input.frame(&ends)? {
            Some(frame) => About::of_frame(&input, &frame),
            None => About::of_walk(&input)?,
        };
        let mut stdout = Stdout::open()?;
        if self.json {
            stdout.line(serde_json::to_string(&about).expect("plain data"))?;
        } else {
            stdout.write(about.text(&self.file).as_bytes())?;
        }
        stdout.flush()
    }
}

/// What is known of a region file; as it stands in the JSON.
#[derive(Serialize)]
struct About {
    #[serde(flatten)]
    file: FileName,
    version: u8,
    file_bytes: u64,
    /// Whether all of the file was read to know this: version 1 counts nothing.
    walked: bool,
    blobs: u64,
    blob_bytes: u64,
    shortest: Option<u32>,
    longest: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<AboutHeader>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trailer: Option<AboutTrailer>,
    sections: Vec<AboutSection>,
    index: Option<AboutIndex>,
    metadata: Option<AboutMetadata>,
    /// Only counters that are not 0.
    histogram: Option<Vec<Counter>>,
}

#[derive(Serialize)]
struct AboutHeader {
    key: Option<String>,
    fingerprint: Option<String>,
    writer: String,
    alignment: u32,
    block_bytes: u32,
    region_index: u32,
    region_count: u32,
    optional_features: u32,
}

#[derive(Serialize)]
struct AboutTrailer {
    body_end: u64,
    table_offset: u64,
    blocks: u64,
    content_id: String,
}

#[derive(Serialize)]
struct AboutSection {
    kind: u32,
    name: String,
    required: bool,
    offset: u64,
    bytes: u64,
    crc32c: u32,
}

#[derive(Serialize)]
struct AboutIndex {
    stride: u32,
    entries: u64,
}

/// The text, or hexadecimal digits if it is none.
#[derive(Serialize)]
struct AboutMetadata {
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

/// How many blobs have a length in this range, both ends included.
#[derive(Serialize)]
struct Counter {
    from: u32,
    to: u32,
    blobs: u64,
}

impl About {
    fn of_frame(input: &RegionInput, frame: &Frame<'_>) -> About {
        let (header, trailer) = (frame.header(), frame.trailer());
        let some_blobs = trailer.blob_count > 0;
        let sections = frame.sections().map(|section| AboutSection {
            kind: section.kind.0,
            name: section.kind.to_string(),
            required: section.required,
            offset: section.offset,
            bytes: section.bytes.len() as u64,
            crc32c: section.crc,
        });
        About {
            file: FileName::of(input.path()),
            version: input.version().number(),
            file_bytes: input.file_bytes(),
            walked: false,
            blobs: trailer.blob_count,
            blob_bytes: trailer.blob_bytes,
            shortest: some_blobs.then_some(trailer.shortest),
            longest: some_blobs.then_some(trailer.longest),
            header: Some(AboutHeader {
                key: header.key.as_ref().map(ToString::to_string),
                fingerprint: header.fingerprint.map(|fingerprint| fingerprint.to_string()),
                writer: writer(&header.writer),
                alignment: header.alignment,
                block_bytes: header.block_bytes,
                region_index: header.region_index,
                region_count: header.region_count,
                optional_features: header.optional_features,
            }),
            trailer: Some(AboutTrailer {
                body_end: trailer.body_end,
                table_offset: trailer.table_offset,
                blocks: frame.block_count(),
                content_id: trailer.content_id.to_string(),
            }),
            sections: sections.collect(),
            index: frame
                .index_stride()
                .map(|stride| AboutIndex { stride, entries: frame.index_len() as u64 }),
            metadata: frame.metadata().map(AboutMetadata::of),
            histogram: frame.histogram().map(counters),
        }
    }

    /// Version 1 says nothing about itself, so all of it is read.
    fn of_walk(input: &RegionInput) -> Result<About, Failure> {
        let mut histogram = LengthHistogram::default();
        let mut range: Option<(u32, u32)> = None;
        let progress = Progress::new("counting", Some(input.file_bytes()));
        let verified: Verified = input.walk(None, progress, |part| {
            if part.is_first() {
                histogram.add(part.len);
                let (shortest, longest) = range.unwrap_or((part.len, part.len));
                range = Some((shortest.min(part.len), longest.max(part.len)));
            }
            Ok::<(), Failure>(())
        })?;
        Ok(About {
            file: FileName::of(input.path()),
            version: input.version().number(),
            file_bytes: input.file_bytes(),
            walked: true,
            blobs: verified.blob_count,
            blob_bytes: verified.blob_bytes,
            shortest: range.map(|(shortest, _)| shortest),
            longest: range.map(|(_, longest)| longest),
            header: None,
            trailer: None,
            sections: Vec::new(),
            index: None,
            metadata: None,
            histogram: Some(counters(&histogram)),
        })
    }

    /// The same for people.
    fn text(&self, path: &Path) -> String {
        let mut text = Text(String::new());
        text.line(format_args!("{}", shown(path)));
        let how = if self.walked { ", all of it read to count" } else { "" };
        text.field("version", format_args!("{}{how}", self.version));
        text.field("file", Exact(self.file_bytes));
        text.field("blobs", format_args!("{} of {} together", grouped(self.blobs), Exact(self.blob_bytes)));
        if let (Some(shortest), Some(longest)) = (self.shortest, self.longest) {
            text.field("shortest", Exact(shortest.into()));
            text.field("longest", Exact(longest.into()));
        }
        match (&self.header, &self.trailer) {
            (Some(header), Some(trailer)) => self.text_v2(&mut text, header, trailer),
            _ => text.field("checksums", "version 1 has none"),
        }
        if let Some(histogram) = &self.histogram
            && !histogram.is_empty()
        {
            text.histogram(histogram);
        }
        text.0
    }

    fn text_v2(&self, text: &mut Text, header: &AboutHeader, trailer: &AboutTrailer) {
        let told = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
        text.field("key", told(&header.key));
        text.field("fingerprint", told(&header.fingerprint));
        text.field("content id", &trailer.content_id);
        text.field("region", format_args!("number {} of {}", header.region_index, header.region_count));
        text.field("written by", if header.writer.is_empty() { "not told" } else { &header.writer });
        text.field("alignment", Exact(header.alignment.into()));
        let blocks = count(trailer.blocks, "block");
        text.field("checksums", format_args!("{blocks} of {}", Unrounded(header.block_bytes.into())));
        match &self.index {
            Some(AboutIndex { stride, entries }) => {
                let stride = Unrounded((*stride).into());
                text.field("index", format_args!("every {stride}: {} of the blobs", grouped(*entries)));
            }
            None => text.field("index", "none"),
        }
        match &self.metadata {
            Some(metadata) => text.field("metadata", metadata.short()),
            None => text.field("metadata", "none"),
        }
        if header.optional_features != 0 {
            text.field(
                "features",
                format_args!("optional 0x{:08X}, not known here", header.optional_features),
            );
        }
        text.line("");
        text.line("section                        offset           bytes     CRC-32C");
        text.section("header", 0, pelton::PAGE_BYTES as u64, None);
        text.section("body", pelton::PAGE_BYTES as u64, trailer.body_end - pelton::PAGE_BYTES as u64, None);
        for section in self.sections.iter().take(SECTIONS_SHOWN) {
            text.section(&section.name, section.offset, section.bytes, Some(section.crc32c));
        }
        if self.sections.len() > SECTIONS_SHOWN {
            text.line(format_args!("and {} more", self.sections.len() - SECTIONS_SHOWN));
        }
        let trailer_offset = self.file_bytes - pelton::PAGE_BYTES as u64;
        text.section("section table", trailer.table_offset, trailer_offset - trailer.table_offset, None);
        text.section("trailer", trailer_offset, pelton::PAGE_BYTES as u64, None);
    }
}

/// A writer's name without the zeros behind it, or its digits if it has none.
fn writer(writer: &[u8; 16]) -> String {
    let end = writer.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    match std::str::from_utf8(&writer[..end]) {
        Ok(name) if !name.contains(char::is_control) => name.to_owned(),
        _ => hex(writer),
    }
}

fn counters(histogram: &LengthHistogram) -> Vec<Counter> {
    let counts = histogram.counts().into_iter().enumerate();
    let counter = |(counter, blobs)| {
        let (from, to) = LengthHistogram::lengths(counter).into_inner();
        Counter { from, to, blobs }
    };
    counts.filter(|(_, blobs)| *blobs > 0).map(counter).collect()
}

impl AboutMetadata {
    fn of(bytes: &[u8]) -> AboutMetadata {
        let (text, hex) = match std::str::from_utf8(bytes) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(hex(bytes))),
        };
        AboutMetadata { bytes: bytes.len() as u64, text, hex }
    }

    fn short(&self) -> String {
        let bytes = Exact(self.bytes);
        match &self.text {
            Some(text) if text.chars().count() <= METADATA_COLUMNS && !text.contains(char::is_control) => {
                format!("{bytes}: {text}")
            }
            _ => format!("{bytes}; --json has it"),
        }
    }
}

/// Text in columns that fit into 80.
struct Text(String);

impl Text {
    fn line(&mut self, line: impl std::fmt::Display) {
        writeln!(self.0, "{line}").expect("a string takes everything");
    }

    fn field(&mut self, name: &str, value: impl std::fmt::Display) {
        self.line(format_args!("  {name:<12} {value}"));
    }

    fn section(&mut self, name: &str, offset: u64, bytes: u64, crc: Option<u32>) {
        let crc = crc.map(|crc| format!("  0x{crc:08X}")).unwrap_or_default();
        self.line(format_args!("  {name:<16} {:>18} {:>15}{crc}", grouped(offset), grouped(bytes)));
    }

    /// A bar for each counter, also for those in between that are 0.
    fn histogram(&mut self, counters: &[Counter]) {
        let (Some(first), Some(last)) = (counters.first(), counters.last()) else { return };
        let most = counters.iter().map(|counter| counter.blobs).max().unwrap_or(1);
        self.line("");
        self.line("length, from    to less than        blobs");
        for range in (0..32).map(LengthHistogram::lengths) {
            let (from, to) = range.into_inner();
            if from < first.from || from > last.from {
                continue;
            }
            let blobs =
                counters.iter().find(|counter| counter.from == from).map_or(0, |counter| counter.blobs);
            // In 128 bits: a region may count anything. What is there at all is seen.
            let columns = (u128::from(blobs) * u128::from(BAR_COLUMNS)).div_ceil(u128::from(most)) as usize;
            let bar = "#".repeat(columns);
            let (from, to) = (Unrounded(from.into()), Unrounded(u64::from(to) + 1));
            self.line(
                format_args!("  {from:>10} {to:>15} {:>12} {bar}", grouped(blobs)).to_string().trim_end(),
            );
        }
    }
}

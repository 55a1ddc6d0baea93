//! `pelton region convert`: the blobs of one region file in a new one, of the same or another version.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use pelton::{BlobFragment, Frame, SectionKind, V1_FILE_BYTES_MAX};

use crate::failure::Failure;
use crate::input::RegionInput;
use crate::output::Output;
use crate::progress::Progress;
use crate::region::draft::RegionDraft;
use crate::region::labels::Labels;
use crate::region::{file_name, usage};
use crate::stdout::Stdout;
use pelton::units::{Size, count, grouped};

/// The command line of `convert`.
#[derive(Args)]
pub(crate) struct Convert {
    /// The region file to read
    #[arg(value_name = "IN", value_parser = file_name())]
    source: PathBuf,
    /// The region file to make; it appears whole or not at all, and may be the same
    #[arg(value_name = "OUT", value_parser = file_name())]
    target: PathBuf,
    /// The version to write
    #[arg(long, value_enum)]
    to: Target,
    #[command(flatten)]
    labels: Labels,
}

/// A version that can be written.
#[derive(Clone, Copy, ValueEnum)]
enum Target {
    /// Bare lengths and bytes, for systems that read nothing else
    V1,
    /// Aligned, checksummed, indexed, sealed
    V2,
}

impl Convert {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let (Target::V1, Some(option)) = (self.to, self.labels.any()) {
            return Err(usage(
                "convert",
                format!("{option} has no place in version 1; leave it out, or use --to v2"),
            ));
        }
        let input = RegionInput::open(&self.source)?;
        let ends = input.ends_if_any()?;
        let frame = input.frame(&ends)?;
        if let (Target::V1, Some(frame)) = (self.to, &frame) {
            check_room_in_v1(&self.target, frame)?;
        }
        let mut metadata = self.labels.metadata()?;
        let output = Output::create(&self.target)?;
        let (mut draft, lost) = match (self.to, &frame) {
            (Target::V1, frame) => (RegionDraft::v1(output)?, frame.as_ref().map(lost_in_v1)),
            (Target::V2, None) => {
                let (header, stride) = (self.labels.new_header(), self.labels.stride(None));
                let draft = match header.fingerprint {
                    Some(_) => RegionDraft::v2(output, &header, stride)?,
                    None => RegionDraft::v2_to_fingerprint(output, header, stride)?,
                };
                (draft, None)
            }
            (Target::V2, Some(frame)) => {
                let header = self.labels.header(frame.header());
                metadata = metadata.or_else(|| frame.metadata().map(<[u8]>::to_vec));
                let draft = RegionDraft::v2(output, &header, self.labels.stride(frame.index_stride()))?;
                (draft, lost_in_v2(frame))
            }
        };
        let progress = Progress::new("converting", Some(input.file_bytes()));
        input.walk(frame.as_ref(), progress, |part: BlobFragment<'_>| {
            if part.is_first() {
                draft.begin(part.len)?;
            }
            draft.append(part.bytes)
        })?;
        let published = draft.publish(metadata.as_deref())?;
        // Only now: what was not made has lost nothing.
        if let Some(lost) = lost {
            crate::say(&format_args!("{}: left out {lost}", crate::failure::shown(&self.target)));
        }
        let mut stdout = Stdout::open()?;
        stdout.line(published)?;
        stdout.flush()
    }
}

/// Refuses what would be refused anyway, but before gigabytes are written.
fn check_room_in_v1(target: &Path, frame: &Frame<'_>) -> Result<(), Failure> {
    let trailer = frame.trailer();
    let file_bytes = 2 + u128::from(trailer.blob_bytes) + 4 * u128::from(trailer.blob_count);
    if file_bytes <= V1_FILE_BYTES_MAX.into() {
        return Ok(());
    }
    let (file_bytes, most) =
        (Size(u64::try_from(file_bytes).unwrap_or(u64::MAX)), grouped(V1_FILE_BYTES_MAX));
    Err(Failure::file(target, format!("would have {file_bytes}: a version 1 file has at most {most} bytes")))
}

/// What a version 2 file says that version 1 has no place for.
fn lost_in_v1(frame: &Frame<'_>) -> String {
    let header = frame.header();
    let mut lost = vec!["checksums".to_owned(), "index".to_owned()];
    lost.extend(header.key.as_ref().map(|key| format!("key {key}")));
    lost.extend(header.fingerprint.map(|_| "fingerprint".to_owned()));
    if header.region_count > 1 {
        lost.push(format!("region number {} of {}", header.region_index, header.region_count));
    }
    lost.extend(frame.metadata().map(|metadata| format!("user metadata ({})", Size(metadata.len() as u64))));
    lost.extend(unknown_sections(frame));
    format!("what version 1 has no place for: {}", lost.join(", "))
}

/// What a version 2 file says that is not for us to say again.
fn lost_in_v2(frame: &Frame<'_>) -> Option<String> {
    let mut lost: Vec<String> = unknown_sections(frame).collect();
    let features = frame.header().optional_features;
    if features != 0 {
        lost.push(format!("optional features 0x{features:08X}"));
    }
    (!lost.is_empty()).then(|| format!("what this version does not know: {}", lost.join(", ")))
}

fn unknown_sections(frame: &Frame<'_>) -> impl Iterator<Item = String> {
    let known = [
        SectionKind::BLOCK_CHECKSUMS,
        SectionKind::BLOB_INDEX,
        SectionKind::LENGTH_HISTOGRAM,
        SectionKind::METADATA,
    ];
    // A file may have a thousand of them, and the message is one line.
    let unknown: Vec<_> = frame.sections().filter(|section| !known.contains(&section.kind)).collect();
    let text = match unknown.as_slice() {
        [] => None,
        [one] => Some(format!("section of {} ({})", one.kind, Size(one.bytes.len() as u64))),
        many => Some(format!("{} of unknown kind", count(many.len() as u64, "section"))),
    };
    text.into_iter()
}

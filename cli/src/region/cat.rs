//! `pelton region cat`: the blobs of a file on standard output.

use std::path::PathBuf;

use clap::Args;
use pelton::BlobFragment;

use crate::failure::Failure;
use crate::input::RegionInput;
use crate::progress::Progress;
use crate::region::{Format, file_name};
use crate::stdout::Stdout;
use pelton::units::{count, grouped};

/// The command line of `cat`.
#[derive(Args)]
pub(crate) struct Cat {
    /// The region file
    #[arg(value_parser = file_name())]
    file: PathBuf,
    /// Only this blob; the first one is 0
    #[arg(long, value_name = "N")]
    blob: Option<u64>,
    /// How blobs are written
    #[arg(long, value_enum, default_value_t = Format::Framed)]
    format: Format,
}

impl Cat {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let input = RegionInput::open(&self.file)?;
        let mut sink = Sink { stdout: Stdout::open()?, format: self.format };
        match self.blob {
            Some(number) => one(&input, number, &mut sink)?,
            None => all(&input, &mut sink)?,
        }
        sink.stdout.flush()
    }
}

fn all(input: &RegionInput, sink: &mut Sink) -> Result<(), Failure> {
    let ends = input.ends_if_any()?;
    let frame = input.frame(&ends)?;
    input.walk(frame.as_ref(), Progress::none(), |part| sink.take(part))?;
    Ok(())
}

fn one(input: &RegionInput, number: u64, sink: &mut Sink) -> Result<(), Failure> {
    let ends = input.ends_if_any()?;
    let frame = input.frame(&ends)?;
    let none = |blob_count: u64| {
        let numbers = match blob_count {
            0 => String::new(),
            1 => ", number 0".to_owned(),
            _ => format!(", numbers 0 to {}", grouped(blob_count - 1)),
        };
        let (number, there_are) = (grouped(number), count(blob_count, "blob"));
        Failure::file(input.path(), format!("there is no blob {number}: the file has {there_are}{numbers}"))
    };
    if let Some(frame) = &frame {
        let Some(span) = frame.around(number) else { return Err(none(frame.trailer().blob_count)) };
        input.walk_span(frame, span, Progress::none(), |part| match part.number == number {
            true => sink.take(part),
            false => Ok(()),
        })?;
        return Ok(());
    }
    // Version 1 has no index: the way leads past all the blobs before, but not past those behind.
    let walked = input.walk(None, Progress::none(), |part| {
        if part.number == number {
            sink.take(part)?;
            if part.is_last() {
                return Err(Stop::Found);
            }
        }
        Ok(())
    });
    match walked {
        Err(Stop::Found) => Ok(()),
        Err(Stop::Failed(failure)) => Err(failure),
        Ok(verified) => Err(none(verified.blob_count)),
    }
}

/// Why a walk ends before the end of the file.
enum Stop {
    Found,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

/// Writes blobs, part by part.
struct Sink {
    stdout: Stdout,
    format: Format,
}

impl Sink {
    fn take(&mut self, part: BlobFragment<'_>) -> Result<(), Failure> {
        if part.is_first() && matches!(self.format, Format::Framed) {
            self.stdout.write(&part.len.to_le_bytes())?;
        }
        self.stdout.write(part.bytes)?;
        if part.is_last() && matches!(self.format, Format::Lines) {
            self.stdout.write(b"\n")?;
        }
        Ok(())
    }
}

//! Standard output, for bytes and for text.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;

use serde::Serialize;

use crate::failure::Failure;

/// What is gathered before a write. Larger writes go straight through.
const BUFFER_BYTES: usize = 256 << 10;

/// Standard output, written in large steps.
///
/// The standard library's own looks for line ends in everything it is given. This one is made for
/// blobs, so it does not; call [`flush`](Stdout::flush) where somebody may be waiting.
pub(crate) struct Stdout(BufWriter<File>);

impl Stdout {
    pub(crate) fn open() -> Result<Stdout, Failure> {
        let file = io::stdout().as_fd().try_clone_to_owned().map_err(|error| failure(&error))?;
        Ok(Stdout(BufWriter::with_capacity(BUFFER_BYTES, file.into())))
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).map_err(|error| failure(&error))
    }

    pub(crate) fn line(&mut self, text: impl Display) -> Result<(), Failure> {
        writeln!(self.0, "{text}").map_err(|error| failure(&error))
    }

    /// Hands on all that was written. Without it, what could not be written at the end goes unnoticed.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.0.flush().map_err(|error| failure(&error))
    }
}

/// A closed pipe is how a reader says that it has enough.
fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
        _ => Failure::io(Path::new("standard output"), "written", error),
    }
}

/// Says what came of a command: in words, or as one line of JSON.
pub(crate) fn tell(outcome: &(impl Display + Serialize), as_json: bool) -> Result<(), Failure> {
    let mut stdout = Stdout::open()?;
    match as_json {
        true => stdout.line(serde_json::to_string(outcome).expect("it has nothing that JSON lacks"))?,
        false => stdout.line(outcome)?,
    }
    stdout.flush()
}

//! Standard output, for bytes and for text.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;

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

    pub(crate) fn line(&mut self, text: impl fmt::Display) -> Result<(), Failure> {
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

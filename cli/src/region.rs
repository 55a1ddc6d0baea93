//! `pelton region`: looks at region files, checks them, converts them and makes them.
//!
//! Every command reads and writes in a stream: how large a file may be does not depend on memory.

mod cat;
mod convert;
mod draft;
mod inspect;
mod json;
mod labels;
mod pack;
mod verify;

pub(crate) use labels::alignment;

use std::path::{Path, PathBuf};

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Subcommand, ValueEnum};

use crate::failure::Failure;

/// What can be done with region files.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Tells what a region file says about itself
    Inspect(inspect::Inspect),
    /// Checks every byte of region files; exit code 0 only if all are whole
    Verify(verify::Verify),
    /// Writes the blobs of a region file to standard output
    Cat(cat::Cat),
    /// Writes the blobs of a region file into a new one
    Convert(convert::Convert),
    /// Makes a region file from lines, frames or one whole input
    Pack(pack::Pack),
}

impl Command {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Command::Inspect(inspect) => inspect.run(),
            Command::Verify(verify) => verify.run(),
            Command::Cat(cat) => cat.run(),
            Command::Convert(convert) => convert.run(),
            Command::Pack(pack) => pack.run(),
        }
    }
}

/// How blobs stand in a stream of bytes.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// Each blob is a length (u32, little-endian) and its bytes
    Framed,
    /// Each blob is a line; the line feed at its end does not belong to it
    Lines,
    /// pack: the whole input is one blob. cat: the bytes of all blobs, nothing between
    Raw,
}

/// Reads the name of a file. Standard input and output are called - elsewhere; a region file is read
/// from both ends and appears whole, so it is neither.
fn file_name() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path == Path::new("-") {
        true => Err("only --from takes - for a stream; a file of that name is ./-"),
        false => Ok(path),
    })
}

/// Says that the options of a command make no sense together, as clap would.
fn usage(command: &str, message: String) -> Failure {
    crate::usage::usage(&["region", command], message)
}

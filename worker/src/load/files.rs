//! Blobs that lie in files: finding the files, cutting them into blobs, and the loader that does it.
//!
//! ```text
//! input.rs ─▶ format.rs ─▶ blobs
//!     └─▶ fingerprint.rs: what decides them
//! ```

mod fingerprint;
mod format;
mod input;
mod loader;

use std::io;
use std::path::{Path, PathBuf};

use pelton_region_format::FormatError;

pub use fingerprint::{Content, fingerprint};
pub use format::{FileFormat, UnknownFormat};
pub use input::{Input, find};
pub use loader::FilesLoader;

/// Why a file's blobs can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system refused.
    #[error("{}: could not be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody has written to it meanwhile. Load it again.
    #[error("{}: was changed while it was loaded; load it again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// It holds something else than was said.
    #[error("{}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What stands where, and what was expected.
        message: String,
    },
    /// It is no whole region file.
    #[error("{}: is no whole region", path.display())]
    Region {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<FormatError>,
    },
}

impl FileError {
    fn io(path: &Path, source: io::Error) -> FileError {
        FileError::Io { path: path.to_owned(), source }
    }

    fn content(path: &Path, message: impl Into<String>) -> FileError {
        FileError::Content { path: path.to_owned(), message: message.into() }
    }
}

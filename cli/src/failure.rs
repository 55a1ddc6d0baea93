//! Why a command ends early, and the one line that says so.

use std::error::Error;
use std::io;
use std::path::Path;

use pelton::FormatError;
use pelton::files::FileError;

/// Why a command ends early.
///
/// Each variant is something else for `main` to do. What went wrong in detail nobody but a person
/// needs, so it is text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Nobody reads our output any more. End quietly and with success.
    #[error("nobody reads the output")]
    ClosedPipe,
    /// Everything has been said already. Only the exit code is left: 1.
    #[error("said already")]
    Said,
    /// What was asked for makes no sense. Say it as clap says such things: exit code 2.
    #[error("{0}")]
    Usage(clap::Error),
    /// A file is not as it must be. Say it in one line: exit code 1.
    #[error("{subject}: {message}")]
    File {
        /// The file's name, as people can read it.
        subject: String,
        /// What is wrong, where, and what to do next.
        message: String,
    },
    /// The cache could not do it. Say it with all its causes in one line: exit code 1.
    #[error("{0}")]
    Cache(String),
}

impl Failure {
    /// Anything about a file.
    pub(crate) fn file(path: &Path, message: impl Into<String>) -> Failure {
        Failure::File { subject: shown(path), message: message.into() }
    }

    /// An error and what caused it, down to the first cause.
    pub(crate) fn cache(error: &dyn Error) -> Failure {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let told = error.to_string();
            // Some say their cause themselves.
            if !text.ends_with(&told) {
                text.push_str(": ");
                text.push_str(&told);
            }
            cause = error.source();
        }
        Failure::Cache(one_line(&text))
    }

    /// The system refused. `done` is what was to be done with the file: "read", "written".
    pub(crate) fn io(path: &Path, done: &str, error: &io::Error) -> Failure {
        Failure::file(path, format!("could not be {done}: {}", reason(error)))
    }

    /// The bytes are not a whole region.
    pub(crate) fn format(path: &Path, error: &FormatError) -> Failure {
        Failure::file(path, with_next(error))
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Failure {
        match &error {
            FileError::Io { path, source } => Failure::io(path, "read", source),
            FileError::Changed { path } => {
                Failure::file(path, "was changed while it was loaded; load it again")
            }
            FileError::Content { path, message } => Failure::file(path, message),
            FileError::Region { path, source } => Failure::format(path, source),
            other => Failure::cache(other),
        }
    }
}

/// What to do about damage.
pub(crate) const AFTER_DAMAGE: &str = "fetch or make the file again";

/// What is wrong with bytes, and what to do next if there is something.
pub(crate) fn with_next(error: &FormatError) -> String {
    match error {
        FormatError::NotARegion { .. } => format!("{error}; \"pelton region pack\" makes one of other files"),
        FormatError::Truncated { .. } | FormatError::Damaged { .. } => format!("{error}; {AFTER_DAMAGE}"),
        _ => error.to_string(),
    }
}

/// A path as people can read it, on one line whatever it is made of.
pub(crate) fn shown(path: &Path) -> String {
    one_line(&path.to_string_lossy())
}

/// A text without anything that would end its line or move the terminal's cursor.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// What the system said, without its number.
pub(crate) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        io::ErrorKind::StorageFull => "no space is left on its disk".to_owned(),
        _ => {
            let text = error.to_string();
            match text.find(" (os error") {
                Some(end) => text[..end].to_owned(),
                None => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_whatever_the_file_is_called() {
        let failure = Failure::file(Path::new("a\nb\x1b[31m"), "is odd");
        assert_eq!(failure.to_string(), "a\\nb\\u{1b}[31m: is odd");
    }

    #[test]
    fn a_cache_error_is_told_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("the load failed")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("the disk\nis gone"));
        assert_eq!(Failure::cache(&error).to_string(), "the load failed: the disk\\nis gone");
        #[derive(Debug, thiserror::Error)]
        #[error("the node is away: {0}")]
        struct Telling(#[source] io::Error);
        let error = Telling(io::Error::other("refused"));
        assert_eq!(Failure::cache(&error).to_string(), "the node is away: refused");
    }

    #[test]
    fn system_errors_are_told_without_their_number() {
        let error = io::Error::from_raw_os_error(rustix::io::Errno::NOTDIR.raw_os_error());
        assert_eq!(reason(&error), "Not a directory");
        let error = io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error());
        assert_eq!(reason(&error), "there is no such file");
    }
}

//! What the JSON of the commands has in common.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

/// A file's name in JSON, which has no place for names that are not UTF-8.
#[derive(Serialize)]
pub(super) struct FileName {
    /// As people can read it.
    file: String,
    /// Its bytes, if `file` is not the name itself.
    file_hex: Option<String>,
}

impl FileName {
    pub(super) fn of(path: &Path) -> FileName {
        let bytes = path.as_os_str().as_bytes();
        match path.to_str() {
            Some(name) => FileName { file: name.to_owned(), file_hex: None },
            None => FileName { file: path.to_string_lossy().into_owned(), file_hex: Some(hex(bytes)) },
        }
    }
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

//! What a path leads to, in words.

use std::fs::Metadata;
use std::os::unix::fs::FileTypeExt;

/// What something is, if it is not a regular file.
pub(crate) fn other_kind(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return None;
    }
    if kind.is_dir() {
        return Some("a folder");
    }
    if kind.is_fifo() {
        return Some("a pipe");
    }
    if kind.is_socket() {
        return Some("a socket");
    }
    Some("a device")
}

//! An open file on a spindle, and whether its bytes pass by the page cache.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// What the memory, the offset and the length of an operation on a [`FileMode::Direct`] file must be
/// multiples of. Every disk in use takes 4 KiB; asking each for less would win nothing, since pieces
/// are whole pages anyway.
pub(crate) const DIRECT_ALIGNMENT: usize = 4096;

/// Ours alone: a cache holds somebody's data, and no other user of the machine was invited.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// How bytes travel between memory and the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileMode {
    /// `O_DIRECT`: past the page cache. Memory, offset and length are multiples of [`DIRECT_ALIGNMENT`].
    Direct,
    /// Through the page cache.
    Buffered,
}

/// An open file on a spindle. Dropping it closes the descriptor.
///
/// The last close of an unlinked file frees its blocks, which can take a while: where that matters, let
/// an impeller do it with [`Op::Close`](super::engine::Op::Close).
#[derive(Debug)]
pub(crate) struct SpindleFile {
    fd: OwnedFd,
    path: PathBuf,
    mode: FileMode,
}

impl SpindleFile {
    /// Takes over a descriptor. The simulated disk does this with its memfds.
    pub(crate) fn new(fd: OwnedFd, path: PathBuf, mode: FileMode) -> SpindleFile {
        SpindleFile { fd, path, mode }
    }

    /// Makes a file that is not there yet, for reading and writing.
    ///
    /// Where the file system refuses `O_DIRECT` the file is [`FileMode::Buffered`]; ask [`Self::mode`].
    pub(crate) fn create(path: PathBuf, mode: FileMode) -> io::Result<SpindleFile> {
        SpindleFile::open_with(path, mode, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    /// Opens a file for reading only: what is sealed is never written again.
    pub(crate) fn open(path: PathBuf, mode: FileMode) -> io::Result<SpindleFile> {
        SpindleFile::open_with(path, mode, OFlags::RDONLY)
    }

    /// The name it was opened by. A rename does not change it: it is for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file system granted, which may be less than what was asked.
    pub(crate) fn mode(&self) -> FileMode {
        self.mode
    }

    fn open_with(path: PathBuf, mode: FileMode, flags: OFlags) -> io::Result<SpindleFile> {
        // A link in the cache's folder is not ours, and what it points to even less.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if mode == FileMode::Direct {
            match rustix::fs::open(&path, flags | OFlags::DIRECT, FILE_MODE) {
                Ok(fd) => return Ok(SpindleFile { fd, path, mode }),
                Err(rustix::io::Errno::INVAL) => {
                    // Some kernels make the file before they look at O_DIRECT. What has bytes is no such
                    // file, whoever made it.
                    let is_fresh = |file: fs::Metadata| file.is_file() && file.len() == 0;
                    if flags.contains(OFlags::EXCL) && fs::symlink_metadata(&path).is_ok_and(is_fresh) {
                        fs::remove_file(&path)?;
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        let fd = rustix::fs::open(&path, flags, FILE_MODE)?;
        Ok(SpindleFile { fd, path, mode: FileMode::Buffered })
    }
}

impl AsFd for SpindleFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for SpindleFile {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second create of the same name is refused: nothing is ever rewritten.
    #[test]
    fn create_never_takes_a_file_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        SpindleFile::create(path.clone(), FileMode::Direct).unwrap();
        let error = SpindleFile::create(path.clone(), FileMode::Direct).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(path.exists());
    }

    /// A symbolic link is refused instead of followed out of the folder.
    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        fs::write(&target, b"not ours").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(SpindleFile::open(link, FileMode::Buffered).is_err());
    }
}

//! The engine of plain system calls: one operation after the other, on the impeller's own thread.
//!
//! More than one at a time is had by more impeller threads on the same queue, not by helpers in here:
//! a thread that hangs is then an impeller with a name, and shutdown has one kind of thread to end.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{Bell, DiskError, Engine, Entry, EntryKind, Finished, Look, Op, Outcome, Part, Space};
use crate::spindle::file::{DIRECT_ALIGNMENT, FileMode, SpindleFile};

/// See the module.
#[derive(Default)]
pub(crate) struct ThreadsEngine {
    finished: VecDeque<Finished>,
}

impl ThreadsEngine {
    pub(crate) fn new() -> ThreadsEngine {
        ThreadsEngine::default()
    }
}

impl Engine for ThreadsEngine {
    fn start(&mut self, token: u64, op: Op) {
        let result = perform(op);
        self.finished.push_back((token, result));
    }

    fn poll(&mut self, _wait: bool, done: &mut Vec<Finished>) {
        done.extend(self.finished.drain(..));
    }

    fn in_flight(&self) -> usize {
        self.finished.len()
    }

    fn has_finished(&self) -> bool {
        !self.finished.is_empty()
    }

    fn bell(&self) -> Option<Bell> {
        None // Everything is finished by the time `start` returns.
    }
}

/// Does an operation here and now.
pub(super) fn perform(op: Op) -> Result<Outcome, DiskError> {
    let subject = op.subject();
    carry_out(op).map_err(|source| subject.failed(source))
}

fn carry_out(op: Op) -> io::Result<Outcome> {
    match op {
        Op::CreateFolder { path } => {
            rustix::fs::mkdir(&path, Mode::RWXU)?; // Ours alone, as the files are.
            Ok(Outcome::Done)
        }
        Op::SyncFolder { path } => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = rustix::fs::open(&path, flags, Mode::empty())?;
            rustix::fs::fsync(&folder)?;
            Ok(Outcome::Done)
        }
        Op::RemoveFolder { path } => {
            rustix::fs::unlinkat(CWD, &path, AtFlags::REMOVEDIR)?;
            Ok(Outcome::Done)
        }
        Op::List { path } => Ok(Outcome::Entries(list(&path)?)),
        Op::CreateFile { path, mode } => Ok(Outcome::File(Arc::new(SpindleFile::create(path, mode)?))),
        Op::OpenFile { path, mode } => Ok(Outcome::File(Arc::new(SpindleFile::open(path, mode)?))),
        Op::Allocate { file, bytes } => {
            allocate(&file, bytes)?;
            Ok(Outcome::Done)
        }
        Op::SetLength { file, bytes } => {
            rustix::fs::ftruncate(&*file, bytes)?;
            Ok(Outcome::Done)
        }
        Op::Write { file, offset, bytes, len } => {
            write_all(&file, &bytes.bytes()[..len], offset)?;
            Ok(Outcome::Written(bytes))
        }
        Op::Read { file, offset, mut room, len } => {
            let len = read_up_to(&file, &mut room.room()[..len], offset)?;
            Ok(Outcome::ReadBack { room, len })
        }
        Op::SyncData { file } => {
            // Never repeated, not even after EINTR: the first answer is the only true one.
            rustix::fs::fdatasync(&*file)?;
            Ok(Outcome::Done)
        }
        Op::Rename { from, to } => {
            fs::rename(from, to)?;
            Ok(Outcome::Done)
        }
        Op::Unlink { path } => {
            rustix::fs::unlink(&path)?;
            Ok(Outcome::Done)
        }
        Op::Length { path } => Ok(Outcome::Length(fs::symlink_metadata(path)?.len())),
        Op::LengthOf { file } => Ok(Outcome::Length(length_of(&file)?)),
        Op::ReadSmall { path, bytes_max } => Ok(Outcome::Bytes(read_small(&path, bytes_max)?)),
        Op::Look { folder, names, part } => {
            Ok(Outcome::Looks(names.iter().map(|name| look_at(&folder.join(name), part)).collect()))
        }
        Op::WriteSmall { path, bytes } => {
            write_small(&path, &bytes)?;
            Ok(Outcome::Done)
        }
        Op::DropCache { file } => {
            rustix::fs::fadvise(&*file, 0, None, Advice::DontNeed)?;
            Ok(Outcome::Done)
        }
        Op::Space { path } => {
            let stat = rustix::fs::statvfs(&path)?;
            Ok(Outcome::Space(Space {
                bytes_total: stat.f_blocks.saturating_mul(stat.f_frsize),
                bytes_free: stat.f_bavail.saturating_mul(stat.f_frsize),
            }))
        }
        Op::Lock { path } => {
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fd = rustix::fs::open(&path, flags, Mode::empty())?;
            rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
            Ok(Outcome::File(Arc::new(SpindleFile::new(fd, path, FileMode::Buffered))))
        }
        Op::Close { file } => {
            drop(file);
            Ok(Outcome::Done)
        }
    }
}

fn list(path: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let kind = if kind.is_file() {
            EntryKind::File
        } else if kind.is_dir() {
            EntryKind::Folder
        } else {
            EntryKind::Other
        };
        entries.push(Entry { name: entry.file_name(), kind });
    }
    entries.sort();
    Ok(entries)
}

fn length_of(file: &SpindleFile) -> io::Result<u64> {
    Ok(rustix::fs::fstat(file)?.st_size as u64) // A file's size is never negative.
}

fn allocate(file: &SpindleFile, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(()); // The kernel calls an empty range an error.
    }
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// How much of a transfer counts, of what the kernel says it did.
///
/// A direct transfer that stops within a block is taken up again at that block's start, since the next
/// one must be aligned again.
pub(super) fn aligned_progress(mode: FileMode, done: usize, len: usize) -> usize {
    match mode {
        FileMode::Direct if done < len => done - done % DIRECT_ALIGNMENT,
        FileMode::Direct | FileMode::Buffered => done,
    }
}

/// The error of a write that gets nowhere although nothing is said to be wrong.
pub(super) fn write_zero() -> io::Error {
    io::Error::new(io::ErrorKind::WriteZero, "the disk takes no more bytes and does not say why")
}

/// Writes all bytes, however many calls that takes.
pub(super) fn write_all(file: &SpindleFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::pwrite(file.as_fd(), &bytes[written..], offset + written as u64) {
            Ok(count) => {
                let reached = aligned_progress(file.mode(), written + count, bytes.len());
                if reached <= written {
                    return Err(write_zero());
                }
                written = reached;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Reads until the room is full or the file ends, and says how much that was.
pub(super) fn read_up_to(file: &SpindleFile, room: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < room.len() {
        match rustix::io::pread(file.as_fd(), &mut room[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(count) => {
                read += count;
                if aligned_progress(file.mode(), read, room.len()) < read {
                    break; // A direct read ends within a block only where the file does.
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(read)
}

fn read_small(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let file = SpindleFile::open(path.to_owned(), FileMode::Buffered)?;
    let length = length_of(&file)?;
    if length > bytes_max as u64 {
        let message = format!("it has {length} bytes, and at most {bytes_max} are expected");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    let mut bytes = vec![0; length as usize]; // At most bytes_max, which is a usize.
    let read = read_up_to(&file, &mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn look_at(path: &Path, part: Part) -> io::Result<Look> {
    let file = SpindleFile::open(path.to_owned(), FileMode::Buffered)?;
    let length = length_of(&file)?;
    let range = part.range(length)?;
    if range.start > 0 {
        // Only what is asked for: small pages at the end of a file stay in the way of large ones.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
    }
    let mut bytes = vec![0; (range.end - range.start) as usize]; // As many as the caller has named.
    let read = read_up_to(&file, &mut bytes, range.start)?;
    bytes.truncate(read);
    Ok(Look { length, bytes })
}

fn write_small(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = SpindleFile::create(path.to_owned(), FileMode::Buffered)?;
    let written = write_all(&file, bytes, 0).and_then(|()| Ok(rustix::fs::fsync(&file)?));
    if written.is_err() {
        let _ = fs::remove_file(path); // The error that counts is the one on its way up.
    }
    written
}

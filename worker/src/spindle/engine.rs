//! What a disk can be asked, and the engines that ask it.
//!
//! One small contract, three engines: [`uring`] keeps many reads and writes on their way from one
//! thread, [`threads`] does one after the other with plain system calls, [`sim`] is a disk that fails
//! as told. An engine belongs to one impeller thread, is made on it and never leaves it. All of them
//! pass the suite in `engine/tests.rs`.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::file::{FileMode, SpindleFile};

#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "tests of our own use more of it"))]
pub(crate) mod sim;
pub(crate) mod threads;
pub(crate) mod uring;

#[cfg(test)]
mod tests;

pub(crate) use uring::{IoBytes, IoRoom, PageBuffer};

/// Something to be done on a spindle.
///
/// Operations have no order among each other: two that are submitted one after the other may be done
/// together or the other way round. Whoever needs an order waits for the first one's completion.
pub(crate) enum Op {
    /// Makes a folder. Its parent must be there; the folder must not.
    CreateFolder { path: PathBuf },
    /// Makes the entries of a folder durable: what was created, renamed or unlinked in it.
    SyncFolder { path: PathBuf },
    /// Removes an empty folder.
    RemoveFolder { path: PathBuf },
    /// Names what is in a folder, sorted. Answers [`Outcome::Entries`].
    List { path: PathBuf },
    /// Makes a file that is not there yet, to read and write. Answers [`Outcome::File`], whose mode says
    /// whether `O_DIRECT` was granted.
    CreateFile { path: PathBuf, mode: FileMode },
    /// Opens a file to read. Answers [`Outcome::File`].
    OpenFile { path: PathBuf, mode: FileMode },
    /// Takes the space for a file's first `bytes` from the disk now. Its length stays, so that writes behind its
    /// end stay as fast as without; setting the length gives back what lies beyond. A file system that cannot
    /// take space ahead answers `Unsupported`; then go on without.
    Allocate { file: Arc<SpindleFile>, bytes: u64 },
    /// Gives a file exactly this length.
    SetLength { file: Arc<SpindleFile>, bytes: u64 },
    /// Writes the first `len` of the bytes, all or with an error. Answers [`Outcome::Written`]. After an
    /// error any part of them may have been written; the bytes are dropped.
    Write { file: Arc<SpindleFile>, offset: u64, bytes: Box<dyn IoBytes>, len: usize },
    /// Reads `len` bytes, fewer only at the end of the file. Answers [`Outcome::ReadBack`].
    Read { file: Arc<SpindleFile>, offset: u64, room: Box<dyn IoRoom>, len: usize },
    /// Makes a file's bytes and length durable. **The first error is final**: the kernel then forgets
    /// what it could not write, and a second call answers that all is well.
    SyncData { file: Arc<SpindleFile> },
    /// Gives a file another name on the same disk, in place of whatever had it.
    Rename { from: PathBuf, to: PathBuf },
    /// Removes a file's name. The bytes go when nobody has it open or mapped.
    Unlink { path: PathBuf },
    /// How long a file is, by name. Answers [`Outcome::Length`].
    #[cfg_attr(not(test), allow(dead_code, reason = "so far only tests ask"))]
    Length { path: PathBuf },
    /// How long an open file is. Answers [`Outcome::Length`].
    LengthOf { file: Arc<SpindleFile> },
    /// Reads a small file whole. A larger one than `bytes_max` is the error `FileTooLarge`. Answers
    /// [`Outcome::Bytes`].
    ReadSmall { path: PathBuf, bytes_max: usize },
    /// Reads from each of these files, below a folder, and says how long it is: one operation for many files that
    /// are looked at once. What is wrong with one is no error of the others. Answers [`Outcome::Looks`].
    Look { folder: PathBuf, names: Vec<PathBuf>, part: Part },
    /// Makes a small file that is not there yet and makes its bytes durable, but not its name. After an
    /// error the file is gone again.
    WriteSmall { path: PathBuf, bytes: Vec<u8> },
    /// Lets go of what the page cache holds of a file. What is mapped or not yet written stays.
    DropCache { file: Arc<SpindleFile> },
    /// How large the disk of a folder is, and how much is free for us. Answers [`Outcome::Space`].
    Space { path: PathBuf },
    /// Opens a file and takes the lock on it. Held by somebody else, also in this process, is the error
    /// `WouldBlock`. Answers [`Outcome::File`]; the lock lives as long as that file.
    #[cfg_attr(not(test), allow(dead_code, reason = "a spindle's own lock is taken before it has impellers"))]
    Lock { path: PathBuf },
    /// Drops a file on the impeller, since closing an unlinked one can take a while.
    Close { file: Arc<SpindleFile> },
}

/// What [`Op::Look`] reads of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it. A larger one than that is the error `FileTooLarge`.
    Whole { bytes_max: usize },
    /// So many bytes at its end, or what there is.
    End { bytes: usize },
}

/// What [`Op::Look`] finds.
#[derive(Debug)]
pub(crate) struct Look {
    /// How long the file is.
    pub(crate) length: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Part {
    /// Where to read in a file of this length.
    fn range(self, length: u64) -> io::Result<std::ops::Range<u64>> {
        match self {
            Part::Whole { bytes_max } if length > bytes_max as u64 => {
                let message = format!("it has {length} bytes, and at most {bytes_max} are expected");
                Err(io::Error::new(io::ErrorKind::FileTooLarge, message))
            }
            Part::Whole { .. } => Ok(0..length),
            Part::End { bytes } => Ok(length.saturating_sub(bytes as u64)..length),
        }
    }
}

/// Kinds of operations, as they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OpKind {
    /// Bytes of regions and manifests are read.
    Read,
    /// Bytes of regions and manifests are written.
    Write,
    /// What was written is made durable: files and folders.
    Sync,
    /// Files are made, opened, locked and closed.
    Open,
    /// Space is taken for a file, and given back.
    Allocate,
    /// A file gets another name.
    Rename,
    /// A file loses its name.
    Unlink,
    /// Folders are made, removed and listed.
    Folder,
    /// Lengths and free space are asked for, and the page cache is let go.
    Ask,
}

impl OpKind {
    /// All of them, in the order in which they are declared.
    pub const ALL: [OpKind; 9] = [
        OpKind::Read,
        OpKind::Write,
        OpKind::Sync,
        OpKind::Open,
        OpKind::Allocate,
        OpKind::Rename,
        OpKind::Unlink,
        OpKind::Folder,
        OpKind::Ask,
    ];

    /// Its name in statistics.
    pub fn name(self) -> &'static str {
        match self {
            OpKind::Read => "read",
            OpKind::Write => "write",
            OpKind::Sync => "sync",
            OpKind::Open => "open",
            OpKind::Allocate => "allocate",
            OpKind::Rename => "rename",
            OpKind::Unlink => "unlink",
            OpKind::Folder => "folder",
            OpKind::Ask => "ask",
        }
    }
}

/// What came of an operation.
pub(crate) enum Outcome {
    /// It is done, and there is nothing to say.
    Done,
    /// The open file.
    File(Arc<SpindleFile>),
    /// All was written; here the bytes are again.
    Written(Box<dyn IoBytes>),
    /// The first `len` bytes of the room are those of the file.
    ReadBack { room: Box<dyn IoRoom>, len: usize },
    /// The folder's entries, by name.
    Entries(Vec<Entry>),
    /// A small file's bytes.
    Bytes(Vec<u8>),
    /// What there is of each file, in their order.
    Looks(Vec<io::Result<Look>>),
    /// A file's length.
    Length(u64),
    /// The disk's space.
    Space(Space),
}

/// One entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) name: OsString,
    pub(crate) kind: EntryKind,
}

/// What an entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EntryKind {
    File,
    Folder,
    /// A link, a socket and the like: never made by us.
    Other,
}

/// How large a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) bytes_total: u64,
    /// What an ordinary user may still write.
    pub(crate) bytes_free: u64,
}

/// Why an operation on a spindle has no outcome.
///
/// The message names what was tried and on what; the source, where there is one, says why not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The disk said no. Tell the spindle's health; the operation may be tried elsewhere.
    #[error("could not {verb} {}", path.display())]
    Failed {
        /// What was tried, as the words after "could not".
        verb: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The deadline passed. The operation may still happen, or not: look before doing it again.
    #[error("could not {verb} {} in time", path.display())]
    Late {
        /// What was tried, as the words after "could not".
        verb: &'static str,
        /// What it was tried on.
        path: PathBuf,
    },
    /// The spindle was closed before the operation's turn came. It did not happen.
    #[error("could not {verb} {}: the spindle is closed", path.display())]
    Cancelled {
        /// What was tried, as the words after "could not".
        verb: &'static str,
        /// What it was tried on.
        path: PathBuf,
    },
    /// A bug of ours. The operation may have happened in part; others go on.
    #[error("could not {verb} {}: a bug in pelton ({message})", path.display())]
    Panicked {
        /// What was tried, as the words after "could not".
        verb: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// What the panic said.
        message: String,
    },
}

/// A token and what came of its operation.
pub(crate) type Finished = (u64, Result<Outcome, DiskError>);

/// Wakes an engine that waits inside [`Engine::poll`]. May be rung from any thread, at any time.
pub(crate) type Bell = Arc<dyn Fn() + Send + Sync>;

/// Does a disk's work for one impeller thread.
///
/// A started operation ends exactly once, in some later [`Engine::poll`], whatever the disk says. Until
/// then the engine owns its memory. Dropping an engine waits for what the disk still holds, or leaks it.
pub(crate) trait Engine {
    /// Takes an operation on. May do it right away, or keep it until [`Engine::poll`].
    fn start(&mut self, token: u64, op: Op);

    /// Hands over what is finished. With `wait` it returns when something is, or when the bell rings.
    fn poll(&mut self, wait: bool, done: &mut Vec<Finished>);

    /// Started, and not handed over yet.
    fn in_flight(&self) -> usize;

    /// Whether something waits to be handed over, so that [`Engine::poll`] returns at once.
    fn has_finished(&self) -> bool;

    /// How to end a waiting [`Engine::poll`] early. None for an engine that never waits there.
    fn bell(&self) -> Option<Bell>;
}

/// Which engine to use.
#[derive(Clone, Debug)]
pub(crate) enum EngineKind {
    /// io_uring where the system allows it, else threads.
    Auto,
    /// io_uring, or an error that says why not.
    Uring,
    /// Plain system calls.
    Threads,
    /// A simulated disk. Paths outside of its folder do not exist for it.
    #[cfg(any(test, feature = "testing"))]
    Sim(sim::SimDisk),
}

/// An engine kind that was looked into: what is to be made on each impeller thread.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    maker: Maker,
    reason: Option<String>,
}

#[derive(Clone, Debug)]
enum Maker {
    Uring,
    Threads,
    #[cfg(any(test, feature = "testing"))]
    Sim(sim::SimDisk),
}

impl EngineKind {
    /// Looks whether the system allows what is wished for.
    ///
    /// # Errors
    /// io_uring was asked for by name; here is why it cannot be used.
    pub(crate) fn choose(&self) -> Result<Choice, String> {
        match self {
            EngineKind::Threads => Ok(Choice::threads()),
            #[cfg(any(test, feature = "testing"))]
            EngineKind::Sim(disk) => Ok(Choice { maker: Maker::Sim(disk.clone()), reason: None }),
            EngineKind::Uring => {
                uring::UringEngine::probe()?;
                Ok(Choice { maker: Maker::Uring, reason: None })
            }
            EngineKind::Auto => Ok(EngineKind::Uring
                .choose()
                .unwrap_or_else(|reason| Choice { reason: Some(reason), ..Choice::threads() })),
        }
    }
}

impl Choice {
    /// Plain system calls, which need nobody's permission.
    pub(crate) fn threads() -> Choice {
        Choice { maker: Maker::Threads, reason: None }
    }

    /// Makes the engine, on the thread it will stay on.
    ///
    /// # Errors
    /// The system refuses it after all; here is why.
    pub(crate) fn make(&self, depth: usize) -> Result<Box<dyn Engine>, String> {
        match &self.maker {
            Maker::Uring => match uring::UringEngine::new(depth) {
                Ok(engine) => Ok(Box::new(engine)),
                Err(error) => Err(format!("the kernel granted no ring of {depth} ({error})")),
            },
            Maker::Threads => Ok(Box::new(threads::ThreadsEngine::new())),
            #[cfg(any(test, feature = "testing"))]
            Maker::Sim(disk) => Ok(Box::new(sim::SimEngine::new(disk.clone()))),
        }
    }

    /// The name of the engine that it makes: `uring`, `threads` or `sim`.
    pub(crate) fn name(&self) -> &'static str {
        match self.maker {
            Maker::Uring => "uring",
            Maker::Threads => "threads",
            #[cfg(any(test, feature = "testing"))]
            Maker::Sim(_) => "sim",
        }
    }

    /// Whether its engines have at most one operation on their way.
    pub(crate) fn one_at_a_time(&self) -> bool {
        matches!(self.maker, Maker::Threads)
    }

    /// Why it is not io_uring, in one line, if that was wished for.
    pub(crate) fn reason(&self) -> Option<String> {
        self.reason.clone()
    }
}

/// What an operation is about, for whoever has to tell of it after the operation was handed on.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    verb: &'static str,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Path(PathBuf),
    // Not a copy of the path: a write per piece should not allocate for an error that never comes.
    File(Arc<SpindleFile>),
}

impl Op {
    /// What it does, as the words after "could not".
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Op::CreateFolder { .. } => "create folder",
            Op::SyncFolder { .. } => "sync folder",
            Op::RemoveFolder { .. } => "remove folder",
            Op::List { .. } => "list",
            Op::CreateFile { .. } => "create",
            Op::OpenFile { .. } => "open",
            Op::Allocate { .. } => "allocate space for",
            Op::SetLength { .. } => "set the length of",
            Op::Write { .. } => "write",
            Op::Read { .. } | Op::ReadSmall { .. } => "read",
            Op::Look { .. } => "look into",
            Op::SyncData { .. } => "sync",
            Op::Rename { .. } => "rename",
            Op::Unlink { .. } => "unlink",
            Op::Length { .. } | Op::LengthOf { .. } => "look at",
            Op::WriteSmall { .. } => "write",
            Op::DropCache { .. } => "drop the cache of",
            Op::Space { .. } => "ask for the space of",
            Op::Lock { .. } => "lock",
            Op::Close { .. } => "close",
        }
    }

    /// What it is counted as.
    pub(crate) fn kind(&self) -> OpKind {
        match self {
            Op::Read { .. } | Op::ReadSmall { .. } | Op::Look { .. } => OpKind::Read,
            Op::Write { .. } | Op::WriteSmall { .. } => OpKind::Write,
            Op::SyncData { .. } | Op::SyncFolder { .. } => OpKind::Sync,
            Op::CreateFile { .. } | Op::OpenFile { .. } | Op::Lock { .. } | Op::Close { .. } => OpKind::Open,
            Op::Allocate { .. } | Op::SetLength { .. } => OpKind::Allocate,
            Op::Rename { .. } => OpKind::Rename,
            Op::Unlink { .. } => OpKind::Unlink,
            Op::CreateFolder { .. } | Op::RemoveFolder { .. } | Op::List { .. } => OpKind::Folder,
            Op::Length { .. } | Op::LengthOf { .. } | Op::Space { .. } | Op::DropCache { .. } => OpKind::Ask,
        }
    }

    /// What it is about. The one made of a rename names the new name, which is what somebody waits for.
    pub(crate) fn subject(&self) -> Subject {
        let what = match self {
            Op::CreateFolder { path }
            | Op::SyncFolder { path }
            | Op::RemoveFolder { path }
            | Op::List { path }
            | Op::CreateFile { path, .. }
            | Op::OpenFile { path, .. }
            | Op::Rename { to: path, .. }
            | Op::Unlink { path }
            | Op::Length { path }
            | Op::ReadSmall { path, .. }
            | Op::WriteSmall { path, .. }
            | Op::Space { path }
            | Op::Lock { path } => What::Path(path.clone()),
            Op::Look { folder, .. } => What::Path(folder.clone()),
            // A subject that held the file would put the close off.
            Op::Close { file } => What::Path(file.path().to_owned()),
            Op::Allocate { file, .. }
            | Op::SetLength { file, .. }
            | Op::Write { file, .. }
            | Op::Read { file, .. }
            | Op::SyncData { file }
            | Op::LengthOf { file }
            | Op::DropCache { file } => What::File(file.clone()),
        };
        Subject { verb: self.verb(), what }
    }

    /// Gives up the operation and its memory, and keeps the file that it is about.
    pub(crate) fn into_file(self) -> Option<Arc<SpindleFile>> {
        match self {
            Op::Allocate { file, .. }
            | Op::SetLength { file, .. }
            | Op::Write { file, .. }
            | Op::Read { file, .. }
            | Op::SyncData { file }
            | Op::LengthOf { file }
            | Op::DropCache { file }
            | Op::Close { file } => Some(file),
            _ => None,
        }
    }

    /// The memory it keeps from others until it is done.
    pub(crate) fn bytes_held(&self) -> u64 {
        match self {
            Op::Write { len, .. } | Op::Read { len, .. } => *len as u64,
            Op::ReadSmall { bytes_max, .. } => *bytes_max as u64,
            // Manifests and trailers are about a page.
            Op::Look { names, .. } => 4096 * names.len() as u64,
            Op::WriteSmall { bytes, .. } => bytes.len() as u64,
            _ => 0,
        }
    }
}

impl Subject {
    pub(crate) fn verb(&self) -> &'static str {
        self.verb
    }

    pub(crate) fn path(&self) -> &Path {
        match &self.what {
            What::Path(path) => path,
            What::File(file) => file.path(),
        }
    }

    pub(crate) fn failed(&self, source: io::Error) -> DiskError {
        DiskError::Failed { verb: self.verb, path: self.path().to_owned(), source }
    }

    pub(crate) fn late(&self) -> DiskError {
        DiskError::Late { verb: self.verb, path: self.path().to_owned() }
    }

    pub(crate) fn cancelled(&self) -> DiskError {
        DiskError::Cancelled { verb: self.verb, path: self.path().to_owned() }
    }

    pub(crate) fn panicked(&self, message: String) -> DiskError {
        DiskError::Panicked { verb: self.verb, path: self.path().to_owned(), message }
    }
}

impl DiskError {
    /// The kind of the disk's own error, or the nearest word for ours.
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            DiskError::Failed { source, .. } => source.kind(),
            DiskError::Late { .. } => io::ErrorKind::TimedOut,
            DiskError::Cancelled { .. } => io::ErrorKind::Interrupted,
            DiskError::Panicked { .. } => io::ErrorKind::Other,
        }
    }

    /// What was tried, as the words after "could not".
    #[cfg(test)]
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            DiskError::Failed { verb, .. }
            | DiskError::Late { verb, .. }
            | DiskError::Cancelled { verb, .. }
            | DiskError::Panicked { verb, .. } => verb,
        }
    }

    /// What it was tried on.
    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        match self {
            DiskError::Failed { path, .. }
            | DiskError::Late { path, .. }
            | DiskError::Cancelled { path, .. }
            | DiskError::Panicked { path, .. } => path,
        }
    }
}

impl Outcome {
    /// Its name, for the assertion of whoever expected another one.
    fn label(&self) -> &'static str {
        match self {
            Outcome::Done => "Done",
            Outcome::File(_) => "File",
            Outcome::Written(_) => "Written",
            Outcome::ReadBack { .. } => "ReadBack",
            Outcome::Entries(_) => "Entries",
            Outcome::Bytes(_) => "Bytes",
            Outcome::Looks(_) => "Looks",
            Outcome::Length(_) => "Length",
            Outcome::Space(_) => "Space",
        }
    }

    // Which outcome an operation has is written at the operation, so another one is our bug.

    pub(crate) fn into_file(self) -> Arc<SpindleFile> {
        match self {
            Outcome::File(file) => file,
            other => unreachable!("expected File, not {}", other.label()),
        }
    }

    #[cfg(test)]
    pub(crate) fn into_written(self) -> Box<dyn IoBytes> {
        match self {
            Outcome::Written(bytes) => bytes,
            other => unreachable!("expected Written, not {}", other.label()),
        }
    }

    pub(crate) fn into_read_back(self) -> (Box<dyn IoRoom>, usize) {
        match self {
            Outcome::ReadBack { room, len } => (room, len),
            other => unreachable!("expected ReadBack, not {}", other.label()),
        }
    }

    pub(crate) fn into_entries(self) -> Vec<Entry> {
        match self {
            Outcome::Entries(entries) => entries,
            other => unreachable!("expected Entries, not {}", other.label()),
        }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        match self {
            Outcome::Bytes(bytes) => bytes,
            other => unreachable!("expected Bytes, not {}", other.label()),
        }
    }

    pub(crate) fn into_looks(self) -> Vec<io::Result<Look>> {
        match self {
            Outcome::Looks(looks) => looks,
            other => unreachable!("expected Looks, not {}", other.label()),
        }
    }

    pub(crate) fn into_length(self) -> u64 {
        match self {
            Outcome::Length(bytes) => bytes,
            other => unreachable!("expected Length, not {}", other.label()),
        }
    }

    pub(crate) fn into_space(self) -> Space {
        match self {
            Outcome::Space(space) => space,
            other => unreachable!("expected Space, not {}", other.label()),
        }
    }
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb(), self.subject().path().display())
    }
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

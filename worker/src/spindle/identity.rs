//! The file that makes a folder a spindle: who it is, and whose.
//!
//! `pelton-spindle` is a text that a person can read. It is written once and never replaced, and locked with
//! flock(2) as long as a process has the spindle open:
//!
//! ```text
//! pelton-spindle 1
//! id 5f0c3c1e9a7b4d21b6a40c1d2e3f4a5b
//! # This folder is a spindle of a Pelton cache. Files in it belong to the cache.
//! ```
//!
//! The first word and number are the format. Lines that begin with `#` are for people. A lock belongs to the
//! open file, not to the process, so it keeps out a second opener in the same process too.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::device::{FileSystem, nearest_existing};

/// What the identity file is called.
pub(crate) const IDENTITY_FILE: &str = "pelton-spindle";
/// The format that this crate writes, and the newest one it reads.
const FORMAT_VERSION: u32 = 1;
/// Ours has 130 bytes; a longer one is not ours.
const IDENTITY_BYTES_MAX: u64 = 4096;
/// What `mkfs` leaves in every new ext file system. Such a folder is still empty.
const LOST_AND_FOUND: &str = "lost+found";

/// The name of a spindle: 16 random bytes, the same wherever the disk is plugged in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SpindleUuid([u8; 16]);

impl SpindleUuid {
    pub(crate) fn new(bytes: [u8; 16]) -> SpindleUuid {
        SpindleUuid(bytes)
    }

    pub(crate) fn bytes(self) -> [u8; 16] {
        self.0
    }

    fn random() -> io::Result<SpindleUuid> {
        let mut bytes = [0; 16];
        // Up to 256 bytes come whole, once the system has gathered randomness at boot.
        let count = getrandom(&mut bytes, GetRandomFlags::empty())?;
        assert_eq!(count, bytes.len(), "getrandom(2) gives so few bytes whole");
        Ok(SpindleUuid(bytes))
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for SpindleUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SpindleUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 32 hexadecimal digits")]
pub(crate) struct NotAUuid;

impl FromStr for SpindleUuid {
    type Err = NotAUuid;

    fn from_str(text: &str) -> Result<SpindleUuid, NotAUuid> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != 32 || !digits {
            return Err(NotAUuid);
        }
        u128::from_str_radix(text, 16).map(|number| SpindleUuid(number.to_be_bytes())).map_err(|_| NotAUuid)
    }
}

/// Whether a folder on another machine's disk will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkFolders {
    /// The default: locks, errors and speed are not those of a disk.
    Refuse,
    Accept,
}

/// Why a folder cannot be a spindle of ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum IdentityError {
    /// Somebody has it open. Close that one, or take another folder.
    #[error("spindle {} is in use by {holder}", folder.display())]
    InUse { folder: PathBuf, holder: Holder },
    /// The path is something else. Take another one.
    #[error("{} is not a folder", path.display())]
    NotAFolder { path: PathBuf },
    /// There are files in it and it is not a spindle. Take another folder: what is there is somebody's.
    #[error("{} is neither empty nor a spindle: it holds {found:?}", folder.display())]
    NotEmpty { folder: PathBuf, found: String },
    /// The disk is another machine's. Take a local one, or ask for it.
    #[error("{} lies on a network file system ({file_system}), which must be asked for", folder.display())]
    Network { folder: PathBuf, file_system: &'static str },
    /// Written by something newer. Leave the folder alone and use that.
    #[error("spindle {} has format {found}, this program knows up to {FORMAT_VERSION}", folder.display())]
    Newer { folder: PathBuf, found: u32 },
    /// The identity file makes no sense. Look at it: if the folder can go, empty it.
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: &'static str },
    /// The disk refused.
    #[error("could not {verb} {}", path.display())]
    Disk { verb: &'static str, path: PathBuf, source: io::Error },
}

/// Who has a spindle open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Another cache in this process.
    ThisProcess,
    Process(u32),
    /// The kernel does not tell, for example because it is in another container.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::ThisProcess => f.write_str("this process already"),
            Holder::Process(pid) => write!(f, "process {pid}"),
            Holder::Unknown => f.write_str("another process"),
        }
    }
}

/// A spindle folder that is ours as long as this value lives.
#[derive(Debug)]
pub(crate) struct Identity {
    folder: PathBuf,
    uuid: SpindleUuid,
    made: bool,
    /// Holds the lock. Opened `O_CLOEXEC`, and never given to a ring, which could keep it open.
    file: File,
}

/// What a folder is to a cache that would open it.
#[derive(Debug)]
pub(crate) enum Standing {
    /// It is not there; the nearest folder above it that is.
    Missing {
        existing: PathBuf,
    },
    Empty,
    /// Held from now on.
    Spindle(Identity),
}

impl Identity {
    /// Looks what a folder is, and takes it only if it is a spindle already, or was about to become one.
    ///
    /// # Errors
    /// [`IdentityError`], whatever [`Self::claim`] would have said but for network file systems.
    pub(crate) fn survey(folder: &Path) -> Result<Standing, IdentityError> {
        let disk = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Disk { verb, path, source }
        };
        let existing = nearest_existing(folder).map_err(disk("look for", folder))?;
        if !fs::metadata(&existing).map_err(disk("look for", &existing))?.is_dir() {
            return Err(IdentityError::NotAFolder { path: existing });
        }
        if existing != folder {
            return Ok(Standing::Missing { existing });
        }
        let path = folder.join(IDENTITY_FILE);
        match fs::symlink_metadata(&path) {
            Ok(_) => Identity::claim(folder, NetworkFolders::Accept).map(Standing::Spindle),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                refuse_unless_empty(folder).map(|()| Standing::Empty)
            }
            Err(error) => Err(disk("look for", &path)(error)),
        }
    }

    /// Takes a folder. One that is missing is made; one that is empty becomes a spindle.
    ///
    /// It asks the disk, so run it on a thread that may hang with it.
    ///
    /// # Errors
    /// [`IdentityError`]. Nothing was changed in a folder that is not ours.
    pub(crate) fn claim(folder: &Path, network: NetworkFolders) -> Result<Identity, IdentityError> {
        let disk = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Disk { verb, path, source }
        };
        if network == NetworkFolders::Refuse {
            // Before it is made: a folder that is refused is not left behind.
            let existing = nearest_existing(folder).map_err(disk("look for", folder))?;
            let found = FileSystem::of(&existing).map_err(disk("ask for the file system of", &existing))?;
            refuse_network(folder, found)?;
        }
        make_folder(folder).map_err(disk("make folder", folder))?;
        if !fs::metadata(folder).map_err(disk("look for", folder))?.is_dir() {
            return Err(IdentityError::NotAFolder { path: folder.to_owned() });
        }
        let path = folder.join(IDENTITY_FILE);
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                refuse_unless_empty(folder)?;
                // Not `create_new`: if two processes get here, the lock decides, not who was first to create.
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(false);
                options.open(&path).map_err(disk("create", &path))?
            }
            Err(error) => return Err(disk("open", &path)(error)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let holder = holder_of(&file);
                return Err(IdentityError::InUse { folder: folder.to_owned(), holder });
            }
            Err(error) => return Err(disk("lock", &path)(error.into())),
        }
        let mut text = Vec::new();
        (&file).take(IDENTITY_BYTES_MAX + 1).read_to_end(&mut text).map_err(disk("read", &path))?;
        let (uuid, made) = match parse(&text) {
            Ok(uuid) => (uuid, false),
            Err(Problem::Newer(found)) => {
                return Err(IdentityError::Newer { folder: folder.to_owned(), found });
            }
            Err(Problem::Damaged(what)) => {
                // A crash while it was written leaves a part of it, and nothing else in the folder.
                if refuse_unless_empty(folder).is_err() {
                    return Err(if text.is_empty() {
                        IdentityError::Damaged { path, what: "it is empty, and the folder is not" }
                    } else {
                        IdentityError::Damaged { path, what }
                    });
                }
                let uuid = SpindleUuid::random().map_err(disk("find a name for", folder))?;
                write_identity(&mut file, uuid).map_err(disk("write", &path))?;
                sync_folder(folder).map_err(disk("sync", folder))?;
                (uuid, true)
            }
        };
        Ok(Identity { folder: folder.to_owned(), uuid, made, file })
    }

    /// The name of the spindle.
    pub(crate) fn uuid(&self) -> SpindleUuid {
        self.uuid
    }

    /// Whether the spindle is new.
    #[allow(dead_code, reason = "the cache does not tell yet which spindles are new")]
    pub(crate) fn made(&self) -> bool {
        self.made
    }

    #[allow(dead_code, reason = "so far only tests ask: who claims a folder knows it")]
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        // Closing would do, were there not children: one made by fork(2) that has not called exec(2) shares the
        // open file, and the lock would stay with it. If this fails, closing is what is left.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// Makes a folder and those above it, durably. One that exists is left as it is.
fn make_folder(folder: &Path) -> io::Result<()> {
    let existing = nearest_existing(folder)?;
    if existing.as_path() == folder {
        return Ok(());
    }
    // What is in the cache is as secret as its source: for the owner and the group, as a server would have it.
    fs::DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    for made in folder.ancestors().skip(1) {
        let made = if made == Path::new("") { Path::new(".") } else { made };
        sync_folder(made)?;
        if made == existing {
            break;
        }
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn refuse_network(folder: &Path, found: FileSystem) -> Result<(), IdentityError> {
    match found.network_name() {
        Some(file_system) => Err(IdentityError::Network { folder: folder.to_owned(), file_system }),
        None => Ok(()),
    }
}

fn refuse_unless_empty(folder: &Path) -> Result<(), IdentityError> {
    let disk = |source| IdentityError::Disk { verb: "list", path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(disk)? {
        let name = entry.map_err(disk)?.file_name();
        if name != IDENTITY_FILE && name != LOST_AND_FOUND {
            let found = name.to_string_lossy().into_owned();
            return Err(IdentityError::NotEmpty { folder: folder.to_owned(), found });
        }
    }
    Ok(())
}

/// Writes the identity into a file of which nothing, or an unfinished beginning, is there.
fn write_identity(file: &mut File, uuid: SpindleUuid) -> io::Result<()> {
    let text = format!(
        "{IDENTITY_FILE} {FORMAT_VERSION}\nid {uuid}\n\
         # This folder is a spindle of a Pelton cache. Files in it belong to the cache.\n"
    );
    file.set_len(0)?;
    io::Seek::rewind(file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// What can be wrong with an identity file.
#[derive(Debug, PartialEq, Eq)]
enum Problem {
    Newer(u32),
    Damaged(&'static str),
}

fn parse(bytes: &[u8]) -> Result<SpindleUuid, Problem> {
    if bytes.len() as u64 > IDENTITY_BYTES_MAX {
        return Err(Problem::Damaged("it is far too long"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Problem::Damaged("it is not text"))?;
    // The last line ends too: an unfinished file is never taken for a whole one.
    let text = text.strip_suffix('\n').ok_or(Problem::Damaged("it is cut off"))?;
    let mut lines = text.split('\n');
    let version = lines.next().and_then(|line| line.strip_prefix(IDENTITY_FILE)?.strip_prefix(' '));
    let version = version.ok_or(Problem::Damaged("it does not begin with its own name"))?;
    match version.parse::<u32>() {
        Ok(FORMAT_VERSION) => {}
        Ok(newer) if newer > FORMAT_VERSION => return Err(Problem::Newer(newer)),
        _ => return Err(Problem::Damaged("its format is not a number from 1 on")),
    }
    let mut lines = lines.filter(|line| !line.starts_with('#'));
    let uuid = lines.next().and_then(|line| line.strip_prefix("id "));
    let uuid = uuid.ok_or(Problem::Damaged("the second line has no id"))?;
    let uuid = uuid.parse().map_err(|_| Problem::Damaged("its id is not 32 hexadecimal digits"))?;
    match lines.next() {
        None => Ok(uuid),
        Some(_) => Err(Problem::Damaged("it has lines that format 1 does not have")),
    }
}

/// Asks the kernel's list of locks who has this file locked.
fn holder_of(file: &File) -> Holder {
    let Ok(metadata) = file.metadata() else { return Holder::Unknown };
    let Ok(locks) = fs::read_to_string("/proc/locks") else { return Holder::Unknown };
    holder_in(&locks, metadata.dev(), metadata.ino(), std::process::id())
}

/// Finds the holder in lines like `1: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF`.
///
/// Best effort: some file systems tell other device numbers there, and a holder in another container is 0.
fn holder_in(locks: &str, device: u64, inode: u64, own_pid: u32) -> Holder {
    let place = format!("{:02x}:{:02x}:{inode}", rustix::fs::major(device), rustix::fs::minor(device));
    for line in locks.lines() {
        let mut words = line.split_whitespace().skip(1);
        // A line with `->` tells who waits for the lock above.
        if words.next() != Some("FLOCK") {
            continue;
        }
        let mut words = words.skip(2);
        if let (Some(pid), Some(found)) = (words.next(), words.next())
            && found == place
        {
            return match pid.parse() {
                Ok(pid) if pid == own_pid => Holder::ThisProcess,
                Ok(pid) if pid > 0 => Holder::Process(pid),
                _ => Holder::Unknown,
            };
        }
    }
    Holder::Unknown
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::process::{Child, ChildStdout, Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn claim(folder: &Path) -> Result<Identity, IdentityError> {
        Identity::claim(folder, NetworkFolders::Refuse)
    }

    #[test]
    fn a_missing_folder_is_made_and_keeps_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("above/spindle");
        let identity = claim(&folder).unwrap();
        let uuid = identity.uuid();
        assert!(identity.made());
        assert_eq!(identity.folder(), folder);
        drop(identity);
        let text = fs::read_to_string(folder.join(IDENTITY_FILE)).unwrap();
        assert!(text.starts_with(&format!("pelton-spindle 1\nid {uuid}\n#")), "{text}");
        fs::write(folder.join("a region"), "of ours").unwrap();
        let again = claim(&folder).unwrap();
        assert_eq!((again.uuid(), again.made()), (uuid, false));
        assert_eq!(fs::read_to_string(folder.join(IDENTITY_FILE)).unwrap(), text, "never replaced");
    }

    #[test]
    fn two_spindles_have_two_names() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_ne!(claim(one.path()).unwrap().uuid(), claim(two.path()).unwrap().uuid());
    }

    #[test]
    fn a_second_opener_in_this_process_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = claim(folder.path()).unwrap();
        let error = claim(folder.path()).unwrap_err();
        // The kernel's list tells the holder on any file system that reports one device number.
        let IdentityError::InUse { holder, .. } = &error else { panic!("{error:?}") };
        assert!(matches!(holder, Holder::ThisProcess | Holder::Unknown), "{holder:?}");
        assert!(error.to_string().starts_with(&format!("spindle {} is in use by", folder.path().display())));
        drop(first);
        claim(folder.path()).unwrap();
    }

    /// The other process of the next test: this test binary again, which comes here because it is told where.
    #[test]
    fn child_holds_the_spindle_it_is_told() {
        let Some(folder) = std::env::var_os("PELTON_TEST_SPINDLE") else { return };
        let identity = claim(Path::new(&folder)).unwrap();
        println!("\nheld {}", identity.uuid());
        // Until the parent closes the pipe, or is gone.
        let _ = io::stdin().read_line(&mut String::new());
    }

    /// Another process that holds a spindle.
    struct OtherProcess {
        child: Child,
        uuid: String,
        /// Kept open: the child still has something to say when its test is over.
        _lines: io::Lines<io::BufReader<ChildStdout>>,
    }

    fn start_other_process(folder: &Path) -> OtherProcess {
        let module = module_path!().split_once("::").expect("below the crate").1;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([&format!("{module}::child_holds_the_spindle_it_is_told"), "--exact", "--nocapture"])
            .env("PELTON_TEST_SPINDLE", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = io::BufReader::new(child.stdout.take().unwrap()).lines();
        let held = lines.find_map(|line| line.unwrap().strip_prefix("held ").map(str::to_owned));
        OtherProcess { child, uuid: held.expect("the child takes the spindle"), _lines: lines }
    }

    #[test]
    fn a_second_opener_in_another_process_is_refused_and_told_who() {
        let folder = tempfile::tempdir().unwrap();
        let mut other = start_other_process(folder.path());
        let error = claim(folder.path()).unwrap_err();
        let IdentityError::InUse { holder, .. } = &error else { panic!("{error:?}") };
        let pid = other.child.id();
        assert!([Holder::Process(pid), Holder::Unknown].contains(holder), "{holder:?}, the child is {pid}");
        drop(other.child.stdin.take());
        assert!(other.child.wait().unwrap().success());
        assert_eq!(claim(folder.path()).unwrap().uuid().to_string(), other.uuid);
    }

    /// A process killed without warning leaves nothing that keeps the next one out.
    #[test]
    fn the_lock_goes_with_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let mut other = start_other_process(folder.path());
        other.child.kill().unwrap();
        other.child.wait().unwrap();
        let identity = claim(folder.path()).unwrap();
        assert_eq!((identity.uuid().to_string(), identity.made()), (other.uuid, false));
    }

    #[test]
    fn somebodys_folder_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "").unwrap();
        let error = claim(folder.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{} is neither empty nor a spindle: it holds \"thesis.tex\"", folder.path().display())
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_fresh_file_system_counts_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(LOST_AND_FOUND)).unwrap();
        assert!(claim(folder.path()).unwrap().made());
    }

    #[test]
    fn a_file_is_not_a_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(claim(file.path()), Err(IdentityError::NotAFolder { .. })));
        let below = file.path().join("below");
        let Err(IdentityError::Disk { path, .. }) = claim(&below) else { panic!() };
        assert_eq!(path, below);
    }

    /// A crash at any byte of the first writing: the next start begins anew. Once there are other files, the
    /// same bytes are damage.
    #[test]
    fn an_unfinished_identity_is_written_anew_in_an_empty_folder_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(IDENTITY_FILE);
        drop(claim(folder.path()).unwrap());
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let last_line_is_missing = whole[..len].ends_with(b"\n") && parse(&whole[..len]).is_ok();
            assert_eq!(claim(folder.path()).unwrap().made(), !last_line_is_missing, "cut at {len}");
        }
        fs::write(folder.path().join("a region"), "").unwrap();
        for bytes in [&b""[..], b"pelton-spindle 1\nid 5f", &[0; 130]] {
            fs::write(&path, bytes).unwrap();
            assert!(matches!(claim(folder.path()), Err(IdentityError::Damaged { .. })), "{bytes:?}");
            assert_eq!(fs::read(&path).unwrap(), bytes, "left as it was");
        }
    }

    #[test]
    fn a_newer_format_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(IDENTITY_FILE), "pelton-spindle 2\nwhatever\n").unwrap();
        let error = claim(folder.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Newer { found: 2, .. }), "{error:?}");
    }

    #[test]
    fn network_file_systems_must_be_asked_for() {
        let error = refuse_network(Path::new("/net/data"), FileSystem::with_magic(0x6969)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/net/data lies on a network file system (NFS), which must be asked for"
        );
        refuse_network(Path::new("/data"), FileSystem::with_magic(0xEF53)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Identity::claim(folder.path(), NetworkFolders::Accept).unwrap();
    }

    #[test]
    fn what_is_not_an_identity_is_told_apart() {
        use Problem::*;
        let id = "0123456789abcdef0123456789abcdef";
        let uuid = id.parse().unwrap();
        let good = format!("pelton-spindle 1\nid {id}\n");
        assert_eq!(parse(good.as_bytes()), Ok(uuid));
        assert_eq!(parse(format!("{good}# more\n").as_bytes()), Ok(uuid));
        let newer = format!("pelton-spindle 7\nid {id}\n");
        assert_eq!(parse(newer.as_bytes()), Err(Newer(7)));
        let damaged = [
            "".to_owned(),
            "\n".to_owned(),
            good.trim_end().to_owned(),
            good.to_uppercase(),
            good.replace('1', "0"),
            good.replace("abc", "xyz"),
            format!("{good}id {id}\n"),
            format!("pelton-spindle 1\n{id}\n"),
            format!("pelton-spindle  1\nid {id}\n"),
            format!("pelton-spindle 1\nid {id}0\n"),
            format!("{good}{}\n", "#".repeat(5000)),
        ];
        for text in damaged {
            assert!(matches!(parse(text.as_bytes()), Err(Damaged(_))), "{text:?}");
        }
    }

    #[test]
    fn the_kernels_list_of_locks_is_read() {
        let device = rustix::fs::makedev(8, 1);
        let locks = "1: POSIX  ADVISORY  WRITE 7 08:01:131 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 08:01:1311 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 99 08:01:131 0 EOF\n";
        assert_eq!(holder_in(locks, device, 131, 1), Holder::Process(1234));
        assert_eq!(holder_in(locks, device, 131, 1234), Holder::ThisProcess);
        assert_eq!(holder_in(locks, device, 132, 1), Holder::Unknown);
        assert_eq!(holder_in(&locks.replace("1234", "0"), device, 131, 1), Holder::Unknown);
        assert_eq!(holder_in("", device, 131, 1), Holder::Unknown);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&bytes).is_err());
        }

        #[test]
        fn a_name_is_read_as_it_is_written(bytes: [u8; 16]) {
            let uuid = SpindleUuid::new(bytes);
            prop_assert_eq!(uuid.to_string().parse(), Ok(uuid));
            prop_assert_eq!(uuid.bytes(), bytes);
        }
    }
}

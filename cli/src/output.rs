//! Output files that appear whole or not at all.
//!
//! A file is written without a name and gets its name when it is finished and on the disk. Whatever
//! ends the command before that, an error, a signal, the power, the folder is as it was.
//!
//! One moment is open. A nameless file can't replace another one at once: it first gets a temporary
//! name, and that is renamed. What ends the command just between leaves both, the old file under its
//! name and the new one, whole, under the temporary one. An error there removes it.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{Failure, reason};
use crate::file_kind::other_kind;

/// As many links as Linux follows for one path.
const LINKS_MAX: usize = 40;
/// How many names are tried beside the output. Only a crash of ours leaves one taken.
const NAMES_MAX: u32 = 1000;
/// What everybody may do with a new file, before the user's umask.
const FOR_ALL: u32 = 0o666;
/// The same for a file that is ours alone, for good or until it takes the place of another one.
const FOR_US: u32 = 0o600;
/// Whether a file's owner may write it.
const OWNER_WRITES: u32 = 0o200;

/// Where an output will be.
#[derive(Clone)]
pub(crate) struct Place {
    /// As the user called it, for messages.
    name: PathBuf,
    /// What the name stands for, after symbolic links.
    target: PathBuf,
}

impl Place {
    /// A file for what is too large for memory, on the same disk. It never gets a name.
    pub(crate) fn nameless_file(&self) -> io::Result<File> {
        // The temporary name, if it must have one, goes at once; the open file stays.
        let (file, _gone) = create_beside(&self.target, FOR_US)?;
        Ok(file)
    }

    pub(crate) fn failure(&self, error: &io::Error) -> Failure {
        Failure::io(&self.name, "written", error)
    }
}

/// A file on its way to a name.
pub(crate) struct Output {
    place: Place,
    file: File,
    /// The name it has meanwhile, where the file system knows no files without one.
    temporary: Option<TemporaryName>,
}

impl Output {
    /// Starts a file that is to be called `path`. What has that name stays until [`publish`](Output::publish).
    pub(crate) fn create(path: &Path) -> Result<Output, Failure> {
        let (target, existing) = resolve(path)?;
        if let Some(existing) = &existing {
            check_writable(path, existing)?;
        }
        let mode = if existing.is_some() { FOR_US } else { FOR_ALL };
        let (file, temporary) = create_beside(&target, mode).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::file(path, "could not be written: its folder does not exist"),
            io::ErrorKind::PermissionDenied => {
                Failure::file(path, "could not be written: its folder does not permit new files")
            }
            _ => Failure::io(path, "written", &error),
        })?;
        let place = Place { name: path.to_owned(), target };
        let output = Output { place, file, temporary };
        if let Some(existing) = existing {
            output.take_after(&existing)?;
        }
        Ok(output)
    }

    /// Makes the file belong to whom the one belongs that it replaces, and opens it to nobody else.
    fn take_after(&self, existing: &Metadata) -> Result<(), Failure> {
        let ours = self.file.metadata().map_err(|error| self.place.failure(&error))?;
        let (owner, group) = (existing.uid(), existing.gid());
        // Some file systems know no owners: there both are the same, and asking would fail.
        if (ours.uid(), ours.gid()) != (owner, group) {
            fchown(&self.file, Some(owner), Some(group)).map_err(|error| {
                let message = format!(
                    "belongs to user {owner} and group {group}, and a new file could not be given to them: {}; \
                     choose another name, or remove it first",
                    reason(&error)
                );
                Failure::file(&self.place.name, message)
            })?;
        }
        // Only now: before, what is for its group would be for ours.
        let permissions = Permissions::from_mode(existing.mode() & 0o777);
        self.file.set_permissions(permissions).map_err(|error| self.place.failure(&error))
    }

    /// As the user called it.
    pub(crate) fn name(&self) -> &Path {
        &self.place.name
    }

    /// Where it will be.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Writes the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| self.place.failure(&error))
    }

    /// Overwrites what stands at an offset. Where the next bytes go does not change.
    pub(crate) fn overwrite(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all_at(bytes, offset).map_err(|error| self.place.failure(&error))
    }

    /// Gives the file its name, once all of it is on the disk.
    pub(crate) fn publish(mut self) -> Result<(), Failure> {
        self.file.sync_all().map_err(|error| self.place.failure(&error))?;
        self.give_name().map_err(|error| self.place.failure(&error))?;
        sync_folder(folder_of(&self.place.target)).map_err(|error| {
            let message =
                format!("is written, but its folder could not be brought to the disk: {}", reason(&error));
            Failure::file(&self.place.name, message)
        })
    }

    fn give_name(&mut self) -> io::Result<()> {
        if let Some(temporary) = self.temporary.take() {
            return temporary.rename(&self.place.target);
        }
        // Without a name yet: straight to the name if it is free, so that there is no moment with
        // another one. A link never replaces a file; a rename does.
        match link(&self.file, &self.place.target) {
            Err(Errno::EXIST) => {
                let file = &self.file;
                let ((), temporary) =
                    TemporaryName::find(folder_of(&self.place.target), |path| Ok(link(file, path)?))?;
                temporary.rename(&self.place.target)
            }
            linked => Ok(linked?),
        }
    }
}

/// A name that is removed again, unless the file under it is renamed.
struct TemporaryName {
    path: PathBuf,
    renamed: bool,
}

impl TemporaryName {
    /// Tries names until `make` finds one free.
    fn find<T>(folder: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(T, TemporaryName)> {
        let process = std::process::id();
        let mut number = 0;
        loop {
            let path = folder.join(format!(".pelton-{process}-{number}.tmp"));
            match make(&path) {
                Ok(made) => return Ok((made, TemporaryName { path, renamed: false })),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < NAMES_MAX => {
                    number += 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn rename(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for TemporaryName {
    fn drop(&mut self) {
        if !self.renamed {
            // It may be gone already, and there is nobody to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What a path stands for after symbolic links, and what is there now: a regular file or nothing.
fn resolve(path: &Path) -> Result<(PathBuf, Option<Metadata>), Failure> {
    let bytes = path.as_os_str().as_bytes();
    let existing = match fs::metadata(path) {
        Ok(metadata) => match other_kind(&metadata) {
            Some(kind) => {
                return Err(Failure::file(path, format!("is {kind}, and would not be replaced by a file")));
            }
            None => Some(metadata),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Failure::io(path, "written", &error)),
    };
    if path.file_name().is_none() || bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        return Err(Failure::file(path, "names a folder, expected a file"));
    }
    // The name of a link stays a link: the file it leads to is replaced, or made.
    let mut target = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&target) {
            Ok(link) => target = folder_of(&target).join(link),
            // Not a link, or not there: this is the place.
            Err(_) => return Ok((target, existing)),
        }
    }
    Err(Failure::file(path, "is a symbolic link that leads nowhere"))
}

/// Refuses what is protected against writing. Replacing it needs no right to the file itself, only to
/// the folder, so nobody else would.
fn check_writable(path: &Path, existing: &Metadata) -> Result<(), Failure> {
    if existing.mode() & OWNER_WRITES != 0 {
        return Ok(());
    }
    Err(Failure::file(
        path,
        "is write-protected, and would not be replaced; choose another name, or chmod u+w it",
    ))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// A new file in the folder of `target`: without a name if the file system can, else with a
/// temporary one. A signal leaves the temporary name behind; that is why it is only the second choice.
/// `mode` holds from the start, so that nobody can open what is not for them.
fn create_beside(target: &Path, mode: u32) -> io::Result<(File, Option<TemporaryName>)> {
    let folder = folder_of(target);
    match create_nameless(folder, mode)? {
        Some(file) => Ok((file, None)),
        None => create_named(folder, mode).map(|(file, name)| (file, Some(name))),
    }
}

fn create_nameless(folder: &Path, mode: u32) -> io::Result<Option<File>> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::from_raw_mode(mode)) {
        Ok(file) => {
            let file = File::from(file);
            // It gets its name by way of /proc, which a bare container may lack.
            Ok(fs::symlink_metadata(descriptor_path(&file)).is_ok().then_some(file))
        }
        // How file systems and old kernels say that they know no files without a name.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn create_named(folder: &Path, mode: u32) -> io::Result<(File, TemporaryName)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(mode);
    TemporaryName::find(folder, |path| options.open(path))
}

/// Linking by descriptor alone needs a capability; by way of /proc anybody may.
fn link(file: &File, path: &Path) -> Result<(), Errno> {
    rustix::fs::linkat(CWD, descriptor_path(file), CWD, path, AtFlags::SYMLINK_FOLLOW)
}

fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Brings a new name to the disk.
fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = match File::open(folder) {
        Ok(folder) => folder,
        // A folder may permit new files and yet no look inside. Its name is then synced with the next
        // commit of the file system, as everybody else's is.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        Err(error) => return Err(error),
    };
    match folder.sync_all() {
        // Some file systems sync files only.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// An output as it is made where the file system knows no files without a name.
    fn named_output(target: &Path) -> Output {
        let (file, temporary) = create_named(folder_of(target), FOR_ALL).unwrap();
        let place = Place { name: target.to_owned(), target: target.to_owned() };
        Output { place, file, temporary: Some(temporary) }
    }

    #[test]
    fn a_file_appears_when_it_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        for make in [|path: &Path| Output::create(path).unwrap(), named_output] {
            let mut output = make(&target);
            output.write(b"half ").unwrap();
            assert!(!target.exists());
            output.write(b"whole").unwrap();
            output.overwrite(0, b"HALF").unwrap();
            output.publish().unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"HALF whole");
            assert_eq!(names(folder.path()), ["out"]);
            fs::remove_file(&target).unwrap();
        }
    }

    #[test]
    fn a_dropped_output_leaves_the_folder_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        fs::write(&target, b"old").unwrap();
        for make in [|path: &Path| Output::create(path).unwrap(), named_output] {
            let mut output = make(&target);
            output.write(b"new").unwrap();
            drop(output);
            assert_eq!(fs::read(&target).unwrap(), b"old");
            assert_eq!(names(folder.path()), ["out"]);
        }
    }

    #[test]
    fn publishing_replaces_and_keeps_who_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        fs::write(&target, b"old").unwrap();
        fs::set_permissions(&target, Permissions::from_mode(0o600)).unwrap();
        let mut output = Output::create(&target).unwrap();
        output.write(b"new").unwrap();
        output.publish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn a_write_protected_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        fs::write(&target, b"old").unwrap();
        // The last one lets everybody write but its owner.
        for mode in [0o400, 0o444, 0o466] {
            fs::set_permissions(&target, Permissions::from_mode(mode)).unwrap();
            let failure = Output::create(&target).err().expect("it is refused").to_string();
            assert!(failure.contains("write-protected"), "{mode:o}: {failure}");
        }
        assert_eq!(names(folder.path()), ["out"]);
    }

    /// Goal: on its way, a file is open to nobody to whom the one it replaces is not.
    #[test]
    fn a_replacement_is_ours_alone_until_it_takes_after_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let mode = |file: &File| file.metadata().unwrap().mode() & 0o777;
        let (named, _name) = create_named(folder.path(), FOR_US).unwrap();
        assert_eq!(mode(&named), 0o600);
        if let Some(nameless) = create_nameless(folder.path(), FOR_US).unwrap() {
            assert_eq!(mode(&nameless), 0o600);
        }
        let new = Output::create(&target).unwrap();
        let spooled = new.place().nameless_file().unwrap();
        assert_eq!(mode(&spooled), 0o600);
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("there")).unwrap();
        let target = folder.path().join("there/out");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("there/out", &link).unwrap();
        // First it dangles, then it leads to a file.
        for text in [b"1", b"2"] {
            let mut output = Output::create(&link).unwrap();
            output.write(text).unwrap();
            output.publish().unwrap();
            assert_eq!(fs::read(&target).unwrap(), text);
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        }
        assert_eq!(names(folder.path()), ["link", "there"]);
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let round = folder.path().join("round");
        std::os::unix::fs::symlink("round", &round).unwrap();
        let missing = folder.path().join("missing/");
        for path in [Path::new("/dev/null"), folder.path(), Path::new("/"), Path::new(".."), &round, &missing]
        {
            assert!(Output::create(path).is_err(), "{path:?}");
        }
        assert_eq!(names(folder.path()), ["round"]);
    }
}

//! The demo's own folder: new, known by a mark, and gone afterwards.
//!
//! Whoever makes one holds a lock on the mark in it. A demo that is killed leaves its folder to a *sweeper*: a
//! second process, out of the terminal's reach, that waits for the first one's end. Where that is killed too, the
//! next demo in the same place finds a mark that nobody holds, and removes the folder.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// What every demo's folder is called, with eight digits behind it.
const NAME: &str = "pelton-demo-";

/// The file that says whose the folder is.
const MARK: &str = "this-is-a-pelton-demo";
const MARK_TEXT: &[u8] = b"The pelton demo made this folder. If no demo is running, it can be removed.\n";

/// Each try takes another name. Only another demo that sweeps at the same moment makes one fail.
const TRIES: usize = 10;

/// A new folder that is removed when this is dropped.
pub(super) struct DemoFolder {
    path: PathBuf,
    /// Holds the lock on the mark.
    _mark: File,
    /// `None` if it could not be started: then a killed demo is cleaned up by the next one.
    sweeper: Option<Child>,
}

impl DemoFolder {
    pub(super) fn make(parent: &Path) -> io::Result<DemoFolder> {
        for _ in 0..TRIES {
            let path = parent.join(format!("{NAME}{:08x}", random()?));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
            let marked = mark(&path).inspect_err(|_| _ = remove(&path))?;
            if let Some(mark) = marked {
                let sweeper = start_sweeper(&path).ok();
                return Ok(DemoFolder { path, _mark: mark, sweeper });
            }
        }
        Err(io::Error::other("other demos remove every folder that is made"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, and says what was in the way. Dropping does the same and tells nobody.
    pub(super) fn remove(self) -> io::Result<()> {
        remove(&self.path)
    }
}

impl Drop for DemoFolder {
    fn drop(&mut self) {
        let _ = remove(&self.path);
        if let Some(mut sweeper) = self.sweeper.take() {
            drop(sweeper.stdin.take()); // Its signal.
            let _ = sweeper.wait();
        }
    }
}

/// Removes what killed demos have left in a folder, and says what that was.
pub(super) fn sweep(parent: &Path) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        if remove_abandoned(&path) {
            removed.push(path);
        }
    }
    removed.sort();
    Ok(removed)
}

/// What the sweeper does: waits until nobody holds the other end of its input, then removes the folder.
pub(super) fn sweep_after_input(folder: &Path) {
    let mut input = io::stdin().lock();
    let mut byte = [0];
    while matches!(input.read(&mut byte), Ok(1)) {}
    remove_abandoned(folder);
}

/// Removes a demo's folder, the mark last: what is left of it if somebody ends us here is still known.
fn remove(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false if entry.file_name() == MARK => {}
            false => fs::remove_file(entry.path())?,
        }
    }
    fs::remove_dir_all(folder)
}

/// Removes a folder if it is a demo's and no demo holds it.
fn remove_abandoned(path: &Path) -> bool {
    let named = path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(NAME));
    if !named || !path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return false;
    }
    match File::open(path.join(MARK)) {
        Ok(mark) => flock(&mark, FlockOperation::NonBlockingLockExclusive).is_ok() && remove(path).is_ok(),
        // Its demo ended before it could mark it. What is not empty is refused here.
        Err(_) => fs::remove_dir(path).is_ok(),
    }
}

/// Marks a folder as ours. `None` if a sweep has found it before it was locked.
fn mark(folder: &Path) -> io::Result<Option<File>> {
    let opened = OpenOptions::new().write(true).create_new(true).open(folder.join(MARK));
    let mut mark = match opened {
        Ok(mark) => mark,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match flock(&mark, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    if mark.metadata()?.nlink() == 0 {
        return Ok(None);
    }
    mark.write_all(MARK_TEXT)?;
    Ok(Some(mark))
}

/// A process of its own, in a group of its own: Ctrl-C goes to the demo's group only.
fn start_sweeper(folder: &Path) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args([OsStr::new("demo"), OsStr::new("--sweep"), fs::canonicalize(folder)?.as_os_str()])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    // So few bytes come whole.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only what a demo has left is removed. Method: a folder that looks like one but has no mark, one whose
    /// mark is held, a file and a link of such a name; and one that is abandoned.
    #[test]
    fn only_marked_folders_that_nobody_holds_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = parent.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let unmarked = make("pelton-demo-letters");
        fs::write(unmarked.join("letter"), "dear").unwrap();
        let held = make("pelton-demo-00000001");
        let lock = mark(&held).unwrap().unwrap();
        let other = make("mine");
        drop(mark(&other).unwrap().unwrap());
        fs::write(parent.path().join("pelton-demo-file"), "x").unwrap();
        std::os::unix::fs::symlink(&other, parent.path().join("pelton-demo-link")).unwrap();
        let abandoned = make("pelton-demo-00000002");
        drop(mark(&abandoned).unwrap().unwrap());
        fs::create_dir_all(abandoned.join("spindle/loads")).unwrap();
        fs::write(abandoned.join("plain"), "x").unwrap();
        let empty = make("pelton-demo-00000003");

        assert_eq!(sweep(parent.path()).unwrap(), [abandoned, empty]);
        assert!(unmarked.exists() && held.exists() && other.join(MARK).exists());
        drop(lock);
        assert_eq!(sweep(parent.path()).unwrap(), [held]);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_folder_that_was_swept_before_it_was_locked_is_given_up() {
        let parent = tempfile::tempdir().unwrap();
        assert!(mark(&parent.path().join("gone")).unwrap().is_none());
    }
}

//! Where benchmarks keep their files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A fresh folder, removed with all in it when it drops.
pub(crate) struct Folder {
    folder: TempDir,
}

impl Folder {
    /// Makes it in `parent`, or beside the running program: that is on a disk where builds are.
    pub(crate) fn new(parent: Option<&Path>) -> io::Result<Folder> {
        let program = std::env::current_exe()?;
        let parent = parent.or(program.parent()).unwrap_or(Path::new("."));
        Ok(Folder { folder: tempfile::Builder::new().prefix("pelton-bench-").tempdir_in(parent)? })
    }

    /// A path in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One line: the folder and its file system.
    pub(crate) fn describe(&self) -> String {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let path = self.folder.path();
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let on = file_system(&mounts, &real).unwrap_or_else(|| String::from("an unknown file system"));
        format!("files in {} on {on}", path.display())
    }
}

/// The file system that holds a path: type and device of the longest mount point above it.
fn file_system(mounts: &str, path: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((fields.next()?, Path::new(fields.next()?), fields.next()?))
    });
    // Of two on one point the later one lies on top.
    let (device, _, kind) = mounts
        .filter(|(_, point, _)| path.starts_with(point))
        .max_by_key(|(_, point, _)| point.components().count())?;
    Some(format!("{kind} ({device})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_above_a_path_counts() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/disk xfs rw 0 0\n";
        let of = |path: &str| file_system(mounts, Path::new(path)).unwrap();
        assert_eq!(of("/home/x"), "ext4 (/dev/a)");
        assert_eq!(of("/tmp/x"), "tmpfs (tmpfs)");
        assert_eq!(of("/tmp/disk/x"), "xfs (/dev/b)");
        assert_eq!(of("/tmp/disks"), "tmpfs (tmpfs)");
    }

    #[test]
    fn a_folder_is_gone_when_it_drops() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::new(Some(parent.path())).unwrap();
        fs::write(folder.join("file"), b"x").unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
        drop(folder);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}

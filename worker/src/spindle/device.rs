//! What lies under a folder: which disk, what kind of file system, how much room.
//!
//! All of it is asked once, when a spindle is opened, and the room now and then. The answers come from system
//! calls that wait for the disk, so ask on a thread that may hang with it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The disk and the file system under a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Equal for folders that share a file system: what fills or breaks one concerns the other.
    pub(crate) id: u64,
    /// Whether it turns. `None` where no single disk can be told: tmpfs, overlays, btrfs.
    pub(crate) rotational: Option<bool>,
    pub(crate) file_system: FileSystem,
    pub(crate) room: Room,
}

impl Device {
    /// Asks about a folder that exists.
    pub(crate) fn of(folder: &Path) -> io::Result<Device> {
        let id = fs::metadata(folder)?.dev();
        Ok(Device {
            id,
            rotational: rotational(Path::new("/sys"), id),
            file_system: FileSystem::of(folder)?,
            room: Room::of(folder)?,
        })
    }
}

/// How large a file system is, and how much of it is free for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) total: u64,
    /// Without what is kept for the administrator.
    pub(crate) free: u64,
}

impl Room {
    /// Asks the file system under `path`.
    pub(crate) fn of(path: &Path) -> io::Result<Room> {
        let found = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Room { total: bytes(found.f_blocks), free: bytes(found.f_bavail) })
    }
}

/// A kind of file system, by the number that it calls itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileSystem {
    magic: u32,
}

/// File systems whose disk is, or may be, another machine's. Their locks and their errors follow other rules.
///
/// FUSE is among them because it does not tell what is behind it, and that is a bucket or an ssh connection
/// often enough. Numbers: `linux/magic.h` and the sources of those that live outside of the kernel.
const NETWORK: [(u32, &str); 17] = [
    (0x0000_517B, "SMB"),
    (0x0000_564C, "NCP"),
    (0x0000_6969, "NFS"),
    (0x00C3_6400, "Ceph"),
    (0x0102_1997, "9p"),
    (0x0116_1970, "GFS2"),
    (0x0BD0_0BD0, "Lustre"),
    (0x1983_0326, "BeeGFS"),
    (0x2003_0528, "OrangeFS"),
    (0x4750_4653, "GPFS"),
    (0x5346_414F, "AFS"),
    (0x6573_5546, "FUSE"),
    (0x6B41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x7461_636F, "OCFS2"),
    (0xFE53_4D42, "SMB2"),
    (0xFF53_4D42, "CIFS"),
];

/// Names for messages only.
const LOCAL: [(u32, &str); 7] = [
    (0x0000_EF53, "ext4"),
    (0x0102_1994, "tmpfs"),
    (0x2FC1_2FC1, "ZFS"),
    (0x5846_5342, "XFS"),
    (0x794C_7630, "overlay"),
    (0x9123_683E, "btrfs"),
    (0xF2F5_2010, "F2FS"),
];

impl FileSystem {
    /// Asks the file system under `path`.
    pub(crate) fn of(path: &Path) -> io::Result<FileSystem> {
        // 32 bits on disk; some systems sign-extend them.
        Ok(FileSystem { magic: rustix::fs::statfs(path)?.f_type as u32 })
    }

    #[cfg(test)]
    pub(crate) fn with_magic(magic: u32) -> FileSystem {
        FileSystem { magic }
    }

    /// What it is called, if its disk is or may be another machine's.
    pub(crate) fn network_name(self) -> Option<&'static str> {
        self.name_in(&NETWORK)
    }

    /// What it is called: `ext4`. For messages.
    pub(crate) fn name(self) -> String {
        let known = self.network_name().or_else(|| self.name_in(&LOCAL));
        known.map_or_else(|| format!("type {:#x}", self.magic), str::to_owned)
    }

    fn name_in(self, names: &[(u32, &'static str)]) -> Option<&'static str> {
        names.iter().find(|(magic, _)| *magic == self.magic).map(|(_, name)| *name)
    }
}

/// The folder itself if it exists, else the nearest one above it that does.
///
/// A folder that is to be made lies on the same file system.
pub(crate) fn nearest_existing(folder: &Path) -> io::Result<PathBuf> {
    // A relative path ends in nothing, which is where the process stands.
    let above = folder.ancestors().map(|path| if path == Path::new("") { Path::new(".") } else { path });
    for path in above {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(path.to_owned()),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Asks sysfs, where it stands, whether the disk with this number turns.
fn rotational(sysfs: &Path, id: u64) -> Option<bool> {
    let device = format!("dev/block/{}:{}", rustix::fs::major(id), rustix::fs::minor(id));
    // A partition has no queue of its own. Its link leads into the folder of its disk, so `..` is the disk.
    for queue in ["queue/rotational", "../queue/rotational"] {
        if let Ok(text) = fs::read_to_string(sysfs.join(&device).join(queue)) {
            return match text.trim() {
                "0" => Some(false),
                "1" => Some(true),
                _ => None,
            };
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn folders_of_one_file_system_share_their_device() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        let (one, two) = (Device::of(&one).unwrap(), Device::of(&two).unwrap());
        assert_eq!(one.id, two.id);
        assert!(one.room.free <= one.room.total && one.room.total > 0, "{one:?}");
        assert_ne!(one.id, Device::of(Path::new("/proc")).unwrap().id);
        assert!(Device::of(&folder.path().join("missing")).is_err());
    }

    /// Method: a sysfs of our own with a disk, its partition, and one that answers nonsense.
    #[test]
    fn a_partition_turns_when_its_disk_does() {
        let folder = tempfile::tempdir().unwrap();
        let sysfs = folder.path();
        fs::create_dir_all(sysfs.join("dev/block")).unwrap();
        for (disk, answer) in [("sda", "1\n"), ("nvme0n1", "0\n"), ("odd", "?\n")] {
            fs::create_dir_all(sysfs.join("devices").join(disk).join("queue")).unwrap();
            fs::write(sysfs.join("devices").join(disk).join("queue/rotational"), answer).unwrap();
        }
        fs::create_dir(sysfs.join("devices/sda/sda1")).unwrap();
        for (number, device) in [("8:0", "sda"), ("8:1", "sda/sda1"), ("259:0", "nvme0n1"), ("7:0", "odd")] {
            symlink(sysfs.join("devices").join(device), sysfs.join("dev/block").join(number)).unwrap();
        }
        let turns = |major, minor| rotational(sysfs, rustix::fs::makedev(major, minor));
        assert_eq!(turns(8, 0), Some(true));
        assert_eq!(turns(8, 1), Some(true));
        assert_eq!(turns(259, 0), Some(false));
        assert_eq!(turns(7, 0), None);
        assert_eq!(turns(0, 42), None, "a file system without a disk");
    }

    #[test]
    fn network_file_systems_are_known_by_name() {
        let nfs = FileSystem { magic: 0x6969 };
        assert_eq!((nfs.network_name(), nfs.name()), (Some("NFS"), "NFS".to_owned()));
        let ext4 = FileSystem { magic: 0xEF53 };
        assert_eq!((ext4.network_name(), ext4.name()), (None, "ext4".to_owned()));
        assert_eq!(FileSystem { magic: 0xABC }.name(), "type 0xabc");
        let proc = FileSystem::of(Path::new("/proc")).unwrap();
        assert_eq!((proc.magic, proc.network_name()), (0x9FA0, None));
    }

    #[test]
    fn the_nearest_folder_that_exists_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(nearest_existing(folder.path()).unwrap(), folder.path());
        assert_eq!(nearest_existing(&folder.path().join("a/b/c")).unwrap(), folder.path());
        assert_eq!(nearest_existing(Path::new("no-such-folder/below")).unwrap(), Path::new("."));
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(nearest_existing(&folder.path().join("file/below")).is_err(), "a file is not a folder");
    }
}

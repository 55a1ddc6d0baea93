//! What several stories need.
#![allow(dead_code, unreachable_pub, reason = "no story needs all of it")]

pub mod slices;

use std::path::{Path, PathBuf};
use std::process::Command;

/// A small ext4, mounted while this value lives.
pub struct SmallDisk {
    pub folder: PathBuf,
}

impl SmallDisk {
    /// Mounts one made in a file of that folder; `None` where that is not allowed, which is then said.
    pub fn mount(within: &Path, bytes: u64) -> Option<SmallDisk> {
        let (image, folder) = (within.join("disk.img"), within.join("disk"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let run = |program: &str, args: &[&str]| {
            Command::new(program).args(args).arg(&image).output().is_ok_and(|output| output.status.success())
        };
        let mounted = run("mkfs.ext4", &["-q", "-F", "-m", "0"])
            && Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, &folder])
                .output()
                .is_ok_and(|output| output.status.success());
        if !mounted {
            println!("SKIPPED: no loop mount here (it needs root and mkfs.ext4)");
            return None;
        }
        Some(SmallDisk { folder })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.folder).status();
    }
}

/// A file system that is frozen while this value lives: whatever writes to it waits.
pub struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    pub fn freeze(mount_point: &'a Path) -> Option<Frozen<'a>> {
        let frozen = Command::new("fsfreeze").arg("-f").arg(mount_point).status();
        if !frozen.is_ok_and(|status| status.success()) {
            println!("SKIPPED: no fsfreeze here");
            return None;
        }
        Some(Frozen(mount_point))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let thawed = Command::new("fsfreeze").arg("-u").arg(self.0).status();
        assert!(thawed.is_ok_and(|status| status.success()), "{} stays frozen", self.0.display());
    }
}

/// An error with all its causes.
pub fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

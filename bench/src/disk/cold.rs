//! Files that are on the disk and nowhere else, and the proof that they were.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rustix::fs::Advice;

use crate::frame::Failure;

/// Lets go of what the page cache holds of the files. Drops nothing of what is mapped: unmap first.
pub(crate) fn drop_cache(files: &[PathBuf]) -> io::Result<()> {
    for path in files {
        let file = File::open(path)?;
        // What is dirty stays, so it must be on the disk first.
        file.sync_data()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// Counts what this process has the disk read, to prove that a cold run was one.
pub(crate) struct Cold {
    before: Option<u64>,
    expected: u64,
}

impl Cold {
    /// Begins counting; `bytes` are to be read.
    pub(crate) fn begin(bytes: u64) -> Cold {
        Cold { before: bytes_read(), expected: bytes }
    }

    /// Ends counting.
    ///
    /// # Errors
    /// Less was read than there is: it came from somebody's memory.
    pub(crate) fn prove(self) -> Result<(), Failure> {
        let (Some(before), Some(after)) = (self.before, bytes_read()) else { return Ok(()) };
        let read = after - before;
        // The frames may have been read before the clock ran.
        if read < self.expected / 100 * 97 {
            let expected = self.expected;
            return Err(Failure::because(format!("of {expected} bytes only {read} came from the disk")));
        }
        Ok(())
    }
}

/// What the kernel has read from disks for this process; `None` where it does not count that.
fn bytes_read() -> Option<u64> {
    let io = fs::read_to_string("/proc/self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).and_then(|count| count.parse().ok())
}

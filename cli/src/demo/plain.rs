//! The same work without a cache: what the demo's rates stand beside.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::demo::dataset::{Dataset, Part, sum_words};
use crate::progress::Progress;

/// What one read takes, and where in memory and file it may begin.
const READ_BYTES: usize = 4 << 20;
const ALIGNMENT: usize = 4096;

/// Adds up all bytes where they lie, by so many threads. Gives the sum, too, so that nobody leaves the work out.
pub(super) fn sum(dataset: &Dataset, threads: usize) -> (Duration, u64) {
    let started = Instant::now();
    let sum = |first: usize| {
        let own = dataset.parts().iter().skip(first).step_by(threads);
        own.map(|part: &Part| sum_words(&part.bytes)).fold(0, u64::wrapping_add)
    };
    let sum = thread::scope(|scope| {
        let summers: Vec<_> = (0..threads).map(|first| scope.spawn(move || sum(first))).collect();
        let sums = summers.into_iter().map(|summer| summer.join().expect("adding does not panic"));
        sums.fold(0, u64::wrapping_add)
    });
    (started.elapsed(), sum)
}

/// Writes parts into a new file, one after the other, and brings them to the disk.
pub(super) fn write(path: &Path, parts: &[Part], progress: &Progress) -> io::Result<Duration> {
    let started = Instant::now();
    let mut file = File::create(path)?;
    for part in parts {
        file.write_all(&part.bytes)?;
        progress.advance(part.bytes.len());
    }
    file.sync_data()?;
    Ok(started.elapsed())
}

/// How a file could be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Past the page cache: from the disk.
    Direct,
    /// Through the page cache, since the file system refuses the other.
    Buffered,
}

/// Reads a file of so many bytes, a stretch by each thread.
pub(super) fn read(
    path: &Path,
    bytes: u64,
    threads: usize,
    progress: &Progress,
) -> io::Result<(Duration, Way)> {
    let (file, way) = open(path)?;
    let started = Instant::now();
    let stretch = bytes.div_ceil(threads as u64).next_multiple_of(READ_BYTES as u64);
    let read = |number: usize| -> io::Result<()> {
        let mut memory = vec![0; READ_BYTES + ALIGNMENT];
        let aligned = memory.as_ptr().align_offset(ALIGNMENT);
        let buffer = &mut memory[aligned..][..READ_BYTES];
        let mut offset = stretch * number as u64;
        let end = (offset + stretch).min(bytes);
        while offset < end {
            let len = (end - offset).min(READ_BYTES as u64) as usize;
            file.read_exact_at(&mut buffer[..len], offset)?;
            progress.advance(len);
            offset += len as u64;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads).map(|number| scope.spawn(move || read(number))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("reading does not panic"))
    })?;
    Ok((started.elapsed(), way))
}

fn open(path: &Path) -> io::Result<(File, Way)> {
    let direct = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path);
    match direct {
        Ok(file) => Ok((file, Way::Direct)),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            Ok((File::open(path)?, Way::Buffered))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_plainly_is_read_plainly() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plain");
        let dataset = Dataset::make(17 << 20, 2);
        write(&path, dataset.parts(), &Progress::none()).unwrap();
        let expected: Vec<u8> = dataset.parts().iter().flat_map(|part| part.bytes.clone()).collect();
        assert!(std::fs::read(&path).unwrap() == expected);
        for threads in [1, 2, 7] {
            read(&path, 17 << 20, threads, &Progress::none()).unwrap();
            assert_eq!(sum(&dataset, threads).1, dataset.sums().words);
        }
        // It is noticed when there is less than there should be.
        let error = read(&path, 18 << 20, 2, &Progress::none()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

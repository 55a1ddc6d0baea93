//! Sealed files, mapped: the page cache is the memory.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use memmap2::{Advice, Mmap, MmapOptions};

use crate::spindle::file::SpindleFile;
use crate::sys::{self, sigbus};

/// The size of large pages.
pub(crate) const LARGE_PAGE_BYTES: usize = 2 << 20;

/// A region file whose bytes no longer change.
///
/// Only [`committed`](SealedFile::committed) makes one, so holding one is the proof that mapping it is
/// sound: a manifest names the file, which is written after the file's last byte and sync, and nobody ever
/// writes or truncates a file after that.
#[derive(Debug)]
pub(crate) struct SealedFile {
    file: Arc<SpindleFile>,
    bytes: u64,
}

impl SealedFile {
    /// A file that a manifest names, if it has the length that the manifest says: one that has not is not the file
    /// that was committed.
    pub(crate) fn committed(file: Arc<SpindleFile>, bytes: u64) -> io::Result<Option<SealedFile>> {
        Ok((length_of(&file)? == bytes).then_some(SealedFile { file, bytes }))
    }
}

fn length_of(file: &SpindleFile) -> io::Result<u64> {
    Ok(rustix::fs::fstat(file)?.st_size as u64) // A file's size is never negative.
}

/// A region file in memory, read-only.
#[derive(Debug)]
pub(crate) struct RegionMap {
    /// If late faults are caught. Dropped before the map.
    watch: Option<sigbus::Watch>,
    map: Mmap,
    file: SealedFile,
}

impl RegionMap {
    /// Maps a file. `guard`: an access to a page that the disk can't give, or that the file has lost, reads zeros
    /// and is remembered, instead of ending the process.
    pub(crate) fn new(file: SealedFile, guard: bool) -> io::Result<RegionMap> {
        let len = usize::try_from(file.bytes).expect("addresses have 64 bits");
        // SAFETY: mapped bytes must not change while a `&[u8]` to them lives.
        // - Nobody writes: a `SealedFile` exists only after the last write, and was opened read-only.
        // - Nobody truncates: removal is unlink, everywhere in this crate, and the cache's folders are ours
        //   alone (docs/architecture.md, assumptions).
        // - The guard, if there is one, puts zeros only where a page could not be read: bytes that nobody has
        //   seen yet. Pages that were seen, and evicted by the kernel since, may become zeros; the region is
        //   poisoned then, and what was folded from it is dropped.
        // - Nobody outlives: `bytes` borrows from `self`, which owns the map.
        let map = unsafe { MmapOptions::new().len(len).map(&*file.file)? };
        // A child of fork(2) has no use for it.
        map.advise(Advice::DontFork)?;
        let start = map.as_ptr().addr();
        // SAFETY: the range is the whole of a mapping that is ours, read-only, and unmapped only when `self`, or
        // what is made here if this fails, is dropped: after the watch, which stands before it.
        let watch = guard.then(|| unsafe { sigbus::Watch::new(start..start + len) }).transpose()?;
        Ok(RegionMap { watch, map, file })
    }

    /// All its bytes. Those that were not brought in yet make who touches them wait for the disk, and a disk
    /// that can't be read then is a signal: see [`RegionMap::populate`].
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Says how it will be read: front to back, and in large pages from the first one on.
    ///
    /// Without the second wish the kernel begins with small pages, and only 40 MiB further it has come to large ones.
    /// With both, a region of 256 MiB lies in large pages as a whole, and is unmapped and mapped again in a tenth
    /// of the time. Not `WILLNEED`, nor `readahead(2)`: both fill the page cache with small pages for good.
    pub(crate) fn expect_front_to_back(&self) -> io::Result<()> {
        // A wish: a kernel without large pages is slower, not wrong.
        let _ = self.map.advise(Advice::HugePage);
        self.map.advise(Advice::Sequential)
    }

    /// Brings a stretch into memory and maps it. Begin it at a multiple of [`LARGE_PAGE_BYTES`]: what is brought in by
    /// small stretches stays in small pages.
    ///
    /// # Errors
    /// A disk that can't be read is an error here, not a signal in the scan.
    pub(crate) fn populate(&self, stretch: Range<usize>) -> io::Result<()> {
        self.map.advise_range(Advice::PopulateRead, stretch.start, stretch.len()).map_err(|error| {
            match error.raw_os_error() {
                // What the kernel says instead of sending the signal.
                Some(libc::EFAULT) => {
                    let why = "the disk could not be read, or the file has become shorter";
                    io::Error::new(io::ErrorKind::UnexpectedEof, why)
                }
                _ => error,
            }
        })
    }

    /// Whether the file still has all its bytes, and gave all that were asked of it: a fold over a map that lost
    /// some must not count.
    pub(crate) fn is_whole(&self) -> bool {
        let has_faulted = self.watch.as_ref().is_some_and(sigbus::Watch::has_faulted);
        !has_faulted && self.has_its_length()
    }

    /// Whether the file is still as long as it was.
    pub(crate) fn has_its_length(&self) -> bool {
        length_of(&self.file.file).is_ok_and(|length| length == self.file.bytes)
    }

    /// How many of its bytes are in memory now.
    pub(crate) fn resident_bytes(&self) -> io::Result<u64> {
        let pages = match sys::pages_cached(self.file.file.as_fd()) {
            Ok(pages) => pages,
            // An older kernel, or a filter that does not know the call.
            Err(_) => sys::pages_resident(&self.map)?,
        };
        Ok((pages * sys::page_bytes()).min(self.file.bytes))
    }

    /// The file that it maps.
    pub(crate) fn file(&self) -> &Arc<SpindleFile> {
        &self.file.file
    }
}

//! Sealed files, mapped: the page cache is the memory.

use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::{Advice, Mmap, MmapOptions};

/// How much is populated between two looks at the watermark: large enough for 2 MiB pages.
const POPULATE_STEP_BYTES: usize = 8 << 20;

/// A region file whose bytes no longer change.
///
/// Only [`committed`](SealedFile::committed) makes one, so holding one is the proof that mapping it is
/// sound: a manifest names the file, which is written after the file's last byte and sync, and nobody ever
/// writes or truncates a file after that.
#[derive(Debug)]
pub(crate) struct SealedFile {
    file: File,
    bytes: u64,
}

impl SealedFile {
    /// A file that a manifest names, of the length that the manifest says.
    ///
    /// # Errors
    /// If its length is another one: then it is not the file that was committed.
    pub(crate) fn committed(file: File, bytes: u64) -> io::Result<SealedFile> {
        let found = file.metadata()?.len();
        if found != bytes {
            let text = format!("the file has {found} bytes, the manifest says {bytes}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(SealedFile { file, bytes })
    }
}

/// A region file in memory, read-only.
#[derive(Debug)]
pub(crate) struct RegionMap {
    map: Mmap,
    file: SealedFile,
}

impl RegionMap {
    pub(crate) fn new(file: SealedFile) -> io::Result<RegionMap> {
        let len = usize::try_from(file.bytes).expect("addresses have 64 bits");
        // SAFETY: mapped bytes must not change while a `&[u8]` to them lives.
        // - Nobody writes: a `SealedFile` exists only after the last write, and was opened read-only.
        // - Nobody truncates: removal is unlink, everywhere in this crate, and the cache's folders are ours
        //   alone (docs/architecture.md, assumptions).
        // - Nobody outlives: `deref` borrows from `self`, which owns the map.
        let map = unsafe { MmapOptions::new().len(len).map(&file.file)? };
        // The scan goes front to back: read far ahead, and let pages behind go first.
        map.advise(Advice::Sequential)?;
        Ok(RegionMap { map, file })
    }

    /// Brings the bytes into memory, step by step, and tells after each step how far it is.
    ///
    /// # Errors
    /// A disk that can't be read is an error here, not a signal in the scan.
    pub(crate) fn populate(&self, mut reached: impl FnMut(usize)) -> io::Result<()> {
        let mut at = 0;
        while at < self.map.len() {
            let step = POPULATE_STEP_BYTES.min(self.map.len() - at);
            self.map.advise_range(Advice::PopulateRead, at, step)?;
            at += step;
            reached(at);
        }
        Ok(())
    }

    /// Whether the file still has all its bytes: a fold over a map that lost some must not count.
    pub(crate) fn is_whole(&self) -> bool {
        self.file.file.metadata().is_ok_and(|metadata| metadata.len() == self.file.bytes)
    }
}

impl Deref for RegionMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

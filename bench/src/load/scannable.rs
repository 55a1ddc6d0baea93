//! Loading until the slice can be scanned, against plain writes of the same bytes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use pelton::{Durability, Parcel, WritePath};

use super::GIB;
use crate::disk::{Blobs, Marks, PLAIN_BYTES, Store, plain_write, preallocate, sum_blobs};
use crate::frame::{Answers, Failure, Memory, Pair, Stopwatch};
use crate::words::Words;

/// As many files as a slice has regions by default.
fn file_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Loads as images; the limit writes through the page cache.
pub(super) struct Scannable {
    store: Store,
    blobs: Blobs,
    producers: usize,
    /// Of the next run. Made before it, so that making them is neither timed nor in the way of fresh memory.
    parcels: Vec<Parcel>,
    source: Memory,
    paths: Vec<PathBuf>,
    expected: Answers,
}

impl Scannable {
    pub(super) fn new(folder: &Path, blobs: Blobs, producers: usize) -> Result<Scannable, Failure> {
        let store = Store::open(&folder.join("store"), 2 * blobs.bytes() + GIB)?;
        let (parcels, subject) = blobs.parcels();
        let mut source = Memory::zeroed(usize::try_from(blobs.bytes()).expect("addresses have 64 bits"))?;
        Words::new(blobs.seed).fill(&mut source);
        let paths: Vec<PathBuf> = (0..file_count()).map(|n| folder.join(format!("plain-{n}"))).collect();
        let file_bytes = file_bytes(&blobs);
        let limit = Marks::of_written(paths.len(), file_bytes, PLAIN_BYTES, &source).0;
        Ok(Scannable {
            store,
            blobs,
            producers,
            parcels,
            source,
            paths,
            expected: Answers { limit, subject },
        })
    }
}

/// Whole pages, since marks are taken at them.
fn file_bytes(blobs: &Blobs) -> u64 {
    (blobs.bytes() / file_count() as u64).next_multiple_of(4096)
}

impl Pair for Scannable {
    fn bytes(&self) -> u64 {
        self.blobs.bytes()
    }

    fn expected(&self) -> Answers {
        self.expected
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let file_bytes = file_bytes(&self.blobs);
        let files: Vec<File> =
            self.paths.iter().map(|path| preallocate(path, file_bytes)).collect::<io::Result<_>>()?;
        stopwatch.time(|| plain_write(&files, file_bytes, &self.source))?;
        let marks = Marks::of(&self.paths)?;
        // What is dirty goes with the names: no write is left to disturb the other side.
        self.paths.iter().try_for_each(fs::remove_file)?;
        Ok(marks.0)
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let plan = Store::plan(WritePath::Image, Durability::Background);
        let parcels = std::mem::take(&mut self.parcels);
        let sealed = stopwatch.time(|| self.store.seal(plan, parcels, self.producers))?;
        sealed.close_for_writes()?;
        let sum = sum_blobs(&self.store.lease()?)?;
        self.store.flush()?;
        (self.parcels, _) = self.blobs.parcels();
        Ok(sum)
    }
}

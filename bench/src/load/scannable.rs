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

/// Which memory a load finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// What the load before it has left to the cache.
    Recycled,
    /// Nothing: the cache is opened anew for each run.
    Fresh,
}

/// Loads as images; the limit writes through the page cache.
pub(super) struct Scannable {
    /// Nothing only while it is opened anew.
    store: Option<Store>,
    folder: PathBuf,
    found: Found,
    blobs: Blobs,
    producers: usize,
    /// Of the next run. Made before it, so that making them is neither timed nor in the way of fresh memory.
    parcels: Vec<Parcel>,
    source: Memory,
    paths: Vec<PathBuf>,
    expected: Answers,
}

impl Scannable {
    pub(super) fn new(
        folder: &Path,
        blobs: Blobs,
        producers: usize,
        found: Found,
    ) -> Result<Scannable, Failure> {
        fs::create_dir_all(folder)?;
        let (parcels, subject) = blobs.parcels();
        let mut source = Memory::zeroed(usize::try_from(blobs.bytes()).expect("addresses have 64 bits"))?;
        Words::new(blobs.seed).fill(&mut source);
        let paths: Vec<PathBuf> = (0..file_count()).map(|n| folder.join(format!("plain-{n}"))).collect();
        let file_bytes = file_bytes(&blobs);
        let limit = Marks::of_written(paths.len(), file_bytes, PLAIN_BYTES, &source).0;
        Ok(Scannable {
            store: None,
            folder: folder.join("store"),
            found,
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
        if self.found == Found::Fresh {
            self.store = None;
        }
        let store = match self.store.take() {
            Some(store) => store,
            None => Store::open(&self.folder, 2 * self.blobs.bytes() + GIB)?,
        };
        let store = self.store.insert(store);
        let sealed = stopwatch.time(|| store.seal(plan, parcels, self.producers))?;
        sealed.close_for_writes()?;
        let sum = sum_blobs(&store.lease()?)?;
        store.flush()?;
        (self.parcels, _) = self.blobs.parcels();
        Ok(sum)
    }
}

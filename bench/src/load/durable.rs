//! Loading until the slice would survive a power cut, against the best raw write and a sync.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pelton::{Durability, Parcel, WritePath};

use super::GIB;
use crate::disk::{Blobs, Marks, Raw, Shape, Store, preallocate, sum_blobs};
use crate::frame::{Answers, Failure, Frame, Memory, Pair, Stopwatch};
use crate::words::Words;

/// The raw source: more than the caches hold. It is used again and again.
const SOURCE_BYTES: u64 = 256 << 20;

/// What is written to find the best shape.
const TRIAL_BYTES: u64 = GIB / 2;

/// How raw writes are cut: found by the first case, the same for both.
#[derive(Default)]
pub(super) struct WriteShape(Cell<Option<Shape>>);

impl WriteShape {
    fn of(&self, paths: &[PathBuf], bytes: u64, source: &[u8]) -> Result<Shape, Failure> {
        if let Some(shape) = self.0.get() {
            return Ok(shape);
        }
        let file_bytes = (bytes.min(TRIAL_BYTES) / paths.len() as u64).next_multiple_of(4096);
        let best = Shape::best(|shape| {
            paths.iter().try_for_each(|path| preallocate(path, file_bytes).map(drop))?;
            Raw::new(shape)?.write(paths, file_bytes, source)?;
            paths.iter().try_for_each(fs::remove_file)?;
            Ok(())
        })?;
        self.0.set(Some(best));
        Ok(best)
    }

    pub(super) fn said(&self, frame: &Frame) -> io::Result<()> {
        match self.0.get() {
            Some(shape) => frame.say(&format!("raw writes: {shape} at once were the fastest")),
            None => Ok(()),
        }
    }
}

/// Loads until `close_for_writes` has waited for the manifest.
pub(super) struct Durable {
    store: Store,
    blobs: Blobs,
    write_path: WritePath,
    /// Of the next run, made before it.
    parcels: Vec<Parcel>,
    source: Memory,
    raw: Raw,
    paths: Vec<PathBuf>,
    file_bytes: u64,
    expected: Answers,
}

impl Durable {
    pub(super) fn new(
        folder: &Path,
        blobs: Blobs,
        write_path: WritePath,
        shape: &WriteShape,
    ) -> Result<Durable, Failure> {
        let store = Store::open(&folder.join("store"), blobs.bytes() + blobs.bytes() / 8 + GIB)?;
        let (parcels, sum) = blobs.parcels();
        let subject = prove(&store, write_path, parcels, sum)?.0;
        let (parcels, _) = blobs.parcels();
        let source_bytes = blobs.bytes().next_multiple_of(4096).clamp(64 << 20, SOURCE_BYTES);
        let mut source = Memory::zeroed(usize::try_from(source_bytes).expect("addresses have 64 bits"))?;
        Words::new(blobs.seed).fill(&mut source);
        let files = std::thread::available_parallelism().map_or(1, usize::from);
        let paths: Vec<PathBuf> = (0..files).map(|n| folder.join(format!("raw-{n}"))).collect();
        let file_bytes = (blobs.bytes() / files as u64).next_multiple_of(4096);
        let shape = shape.of(&paths, blobs.bytes(), &source)?;
        let limit = Marks::of_written(files, file_bytes, shape.bytes, &source).0;
        let expected = Answers { limit, subject };
        let raw = Raw::new(shape)?;
        Ok(Durable { store, blobs, write_path, parcels, source, raw, paths, file_bytes, expected })
    }
}

impl Pair for Durable {
    fn bytes(&self) -> u64 {
        self.blobs.bytes()
    }

    fn expected(&self) -> Answers {
        self.expected
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        self.paths.iter().try_for_each(|path| preallocate(path, self.file_bytes).map(drop))?;
        stopwatch.time(|| self.raw.write(&self.paths, self.file_bytes, &self.source))?;
        let marks = Marks::of(&self.paths)?;
        self.paths.iter().try_for_each(fs::remove_file)?;
        Ok(marks.0)
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let plan = Store::plan(self.write_path, Durability::Wait);
        let parcels = std::mem::take(&mut self.parcels);
        stopwatch.time(|| {
            self.store.seal(plan, parcels, 1)?.close_for_writes()?;
            Ok::<_, Failure>(())
        })?;
        let marks = Marks::of(&self.store.files()?)?;
        self.store.flush()?;
        (self.parcels, _) = self.blobs.parcels();
        Ok(marks.0)
    }
}

/// Loads once and scans it all, to learn the marks of files that are right: looking for marks takes a moment, scanning
/// 8 GiB after each run would take longer than the runs.
fn prove(store: &Store, write_path: WritePath, parcels: Vec<Parcel>, sum: u64) -> Result<Marks, Failure> {
    store.seal(Store::plan(write_path, Durability::Wait), parcels, 1)?.close_for_writes()?;
    if sum_blobs(&store.lease()?)? != sum {
        return Err(Failure::because("what was loaded is not what is scanned"));
    }
    let marks = Marks::of(&store.files()?)?;
    store.flush()?;
    Ok(marks)
}

//! Leasing and scanning a slice that is on the disk only, against the best raw read of its files: one that drops
//! the bytes where they are streamed, one that keeps them where they are brought into memory.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use pelton::{Durability, Reading, Residence, Verify, Way, WritePath};

use crate::disk::{
    Blobs, Cold, Marks, PLAIN_BYTES, Raw, Shape, Store, drop_cache, open_direct, plain_write, preallocate,
    sum_blobs_reported,
};
use crate::frame::{Answers, Failure, Frame, Memory, Pair, Stopwatch};
use crate::words::Words;

/// How raw reads are cut: found by the first case that needs it, the same for all.
#[derive(Default)]
pub(super) struct ReadShape {
    dropping: Cell<Option<Shape>>,
    looking: Cell<Option<Shape>>,
    keeping: Cell<Option<Shape>>,
}

impl ReadShape {
    /// The fastest raw reads of these files, which drop what they read.
    fn dropping(&self, files: &[PathBuf]) -> Result<Raw, Failure> {
        let opened = open_all(&files[..1])?;
        let best = found(&self.dropping, |shape| {
            Raw::new(shape)?.read(&opened)?;
            Ok(())
        })?;
        Ok(Raw::new(best)?)
    }

    /// The fastest ones that look at each byte.
    fn looking(&self, files: &[PathBuf]) -> Result<Raw, Failure> {
        let opened = open_all(&files[..1])?;
        let best = found(&self.looking, |shape| {
            Raw::looking(shape)?.read(&opened)?;
            Ok(())
        })?;
        Ok(Raw::looking(best)?)
    }

    /// The fastest ones that keep it, in memory that was touched before.
    fn keeping(&self, files: &[PathBuf]) -> Result<Raw, Failure> {
        let bytes = bytes_of(files)?;
        let mut memory = Memory::zeroed(usize::try_from(bytes).expect("addresses have 64 bits"))?;
        Words::new(1).fill(&mut memory);
        let opened = open_all(&files[..1])?;
        let mut memory = Some(memory);
        let best = found(&self.keeping, |shape| {
            let mut raw = Raw::keeping(shape, memory.take().expect("it comes back below"))?;
            raw.read(&opened)?;
            memory = raw.into_kept();
            Ok(())
        })?;
        Ok(Raw::keeping(best, memory.expect("no trial keeps it"))?)
    }

    pub(super) fn said(&self, frame: &Frame) -> io::Result<()> {
        for (shape, what) in [
            (&self.dropping, "raw reads"),
            (&self.looking, "raw reads that are looked at"),
            (&self.keeping, "raw reads that are kept"),
        ] {
            if let Some(shape) = shape.get() {
                frame.say(&format!("{what}: {shape} at once were the fastest"))?;
            }
        }
        Ok(())
    }
}

fn found(
    shape: &Cell<Option<Shape>>,
    run: impl FnMut(Shape) -> Result<(), Failure>,
) -> Result<Shape, Failure> {
    if shape.get().is_none() {
        shape.set(Some(Shape::best(run)?));
    }
    Ok(shape.get().expect("it was set a line ago"))
}

/// What is scanned, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct ColdPlan {
    pub(super) blobs: Blobs,
    /// One for each scan thread if nothing is said.
    pub(super) regions: Option<u32>,
    pub(super) memory: u64,
    pub(super) residence: Residence,
    pub(super) reading: Reading,
    pub(super) verify: Verify,
    /// How the scan must have read, by its own report.
    pub(super) way: Way,
}

/// One slice, whose files are dropped from the page cache before each run.
pub(super) struct ColdScan {
    plan: ColdPlan,
    store: Store,
    raw: Raw,
    files: Vec<PathBuf>,
    bytes: u64,
    expected: Answers,
}

impl ColdScan {
    pub(super) fn new(folder: &Path, plan: ColdPlan, shape: &ReadShape) -> Result<ColdScan, Failure> {
        let store = Store::open_with(folder, plan.memory, |builder| {
            builder.verify(plan.verify).residence(plan.residence)
        })?;
        let mut load = Store::plan(WritePath::Direct, Durability::Wait);
        load.regions = plan.regions;
        let subject = store.load(load, &plan.blobs)?;
        let files = store.files()?;
        let expected = Answers { limit: Marks::of(&files)?.0, subject };
        // What is brought into memory can't be had for less than a read that leaves it there.
        let raw = match plan.way {
            Way::Stream => shape.dropping(&files)?,
            _ => shape.keeping(&files)?,
        };
        let bytes = bytes_of(&files)?;
        Ok(ColdScan { plan, store, raw, files, bytes, expected })
    }
}

impl Pair for ColdScan {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn expected(&self) -> Answers {
        self.expected
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        raw_read(&mut self.raw, &self.files, self.bytes, stopwatch)
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        self.store.make_cold()?;
        let cold = Cold::begin(self.bytes);
        // The lease drops after the clock: letting go is nobody's wait.
        let (lease, (sum, report)) = stopwatch.time(|| {
            let lease = self.store.lease_reading(self.plan.reading)?;
            let summed = sum_blobs_reported(&lease)?;
            Ok::<_, Failure>((lease, summed))
        })?;
        drop(lease);
        if let Some(region) = report.regions.iter().find(|region| region.way != self.plan.way) {
            let (found, expected) = (region.way, self.plan.way);
            return Err(Failure::because(format!("a region was read as {found:?}, not {expected:?}")));
        }
        cold.prove()?;
        Ok(sum)
    }
}

/// What somebody must do at least with what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Look,
    Keep,
}

/// A raw read whose bytes are of some use, against one that drops them unseen: what memory and caches alone cost on
/// this machine.
pub(super) struct UsefulRead {
    dropping: Raw,
    useful: Raw,
    files: Vec<PathBuf>,
    bytes: u64,
    marks: Marks,
}

impl UsefulRead {
    pub(super) fn new(folder: &Path, to: Use, bytes: u64, shape: &ReadShape) -> Result<UsefulRead, Failure> {
        std::fs::create_dir_all(folder)?;
        let (files, bytes) = ([folder.join("0"), folder.join("1")].to_vec(), bytes / 8192 * 8192);
        let mut source = Memory::zeroed(PLAIN_BYTES)?;
        Words::new(1).fill(&mut source);
        let made: Vec<File> =
            files.iter().map(|path| preallocate(path, bytes / 2)).collect::<io::Result<_>>()?;
        plain_write(&made, bytes / 2, &source)?;
        made.iter().try_for_each(File::sync_data)?;
        let marks = Marks::of(&files)?;
        drop_cache(&files)?; // The trials are to read the disk.
        let useful = match to {
            Use::Look => shape.looking(&files)?,
            Use::Keep => shape.keeping(&files)?,
        };
        Ok(UsefulRead { dropping: shape.dropping(&files)?, useful, files, bytes, marks })
    }
}

impl Pair for UsefulRead {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn expected(&self) -> Answers {
        Answers { limit: self.marks.0, subject: self.marks.0 }
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        raw_read(&mut self.dropping, &self.files, self.bytes, stopwatch)
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        raw_read(&mut self.useful, &self.files, self.bytes, stopwatch)
    }
}

fn raw_read(raw: &mut Raw, files: &[PathBuf], bytes: u64, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
    drop_cache(files)?;
    let files = open_all(files)?;
    let cold = Cold::begin(bytes);
    let marks = stopwatch.time(|| raw.read(&files))?;
    cold.prove()?;
    Ok(marks.0)
}

fn bytes_of(files: &[PathBuf]) -> io::Result<u64> {
    files.iter().map(|path| Ok(path.metadata()?.len())).sum()
}

fn open_all(files: &[PathBuf]) -> io::Result<Vec<File>> {
    files.iter().map(|path| open_direct(path)).collect()
}

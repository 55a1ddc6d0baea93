//! Leasing and scanning a slice that is on the disk only, against the best raw read of its files.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use pelton::{Durability, Reading, Residence, Verify, Way, WritePath};

use crate::disk::{Blobs, Cold, Marks, Raw, Shape, Store, drop_cache, open_direct, sum_blobs_reported};
use crate::frame::{Answers, Failure, Frame, Pair, Stopwatch};

/// How raw reads are cut: found by the first case that needs it, the same for all.
#[derive(Default)]
pub(super) struct ReadShape(Cell<Option<Shape>>);

impl ReadShape {
    fn of(&self, files: &[PathBuf]) -> Result<Shape, Failure> {
        if let Some(shape) = self.0.get() {
            return Ok(shape);
        }
        let opened = open_all(&files[..1])?;
        let best = Shape::best(|shape| {
            Raw::new(shape)?.read(&opened)?;
            Ok(())
        })?;
        self.0.set(Some(best));
        Ok(best)
    }

    pub(super) fn said(&self, frame: &Frame) -> io::Result<()> {
        match self.0.get() {
            Some(shape) => frame.say(&format!("raw reads: {shape} at once were the fastest")),
            None => Ok(()),
        }
    }
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
        let raw = Raw::new(shape.of(&files)?)?;
        let lens = files.iter().map(|path| Ok(path.metadata()?.len()));
        let bytes = lens.sum::<io::Result<u64>>()?;
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
        drop_cache(&self.files)?;
        let files = open_all(&self.files)?;
        let cold = Cold::begin(self.bytes);
        let marks = stopwatch.time(|| self.raw.read(&files))?;
        cold.prove()?;
        Ok(marks.0)
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

fn open_all(files: &[PathBuf]) -> io::Result<Vec<File>> {
    files.iter().map(|path| open_direct(path)).collect()
}

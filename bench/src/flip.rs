//! Letting go of a mapped slice and taking it up again, while the page cache has its files.
//!
//! | case | limit |
//! |---|---|
//! | evict and lease | unmap, map and populate the same files, by as many threads |
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use memmap2::{Advice, MmapOptions, MmapRaw};
use pelton::{Durability, Lease, Residence, WritePath};

use crate::Bench;
use crate::disk::{Blobs, Folder, Store, sum_blobs};
use crate::frame::{Answers, Case, Failure, Frame, Knobs, Pair, Stopwatch};

const BLOB: usize = 64 << 10;
const GIB: u64 = 1 << 30;

/// One slice.
pub(crate) struct FlipBench {
    folder: Rc<Folder>,
    flip_bytes: u64,
}

impl FlipBench {
    pub(crate) fn new(knobs: &mut Knobs, folder: Rc<Folder>) -> FlipBench {
        FlipBench { folder, flip_bytes: knobs.knob("flip_bytes", (32 << 20, GIB)) }
    }
}

impl Bench for FlipBench {
    fn run(&self, frame: &mut Frame) -> io::Result<()> {
        let blobs = Blobs::filling(frame.seed(), self.flip_bytes, BLOB);
        for regions in [2, 8] {
            let case = Case {
                bench: "flip",
                name: format!("evict, lease: {regions} regions"),
                against: "unmap and map",
                goal: Some(0.85),
                fresh_bytes: 0,
                is_one_busy_thread: false,
            };
            let name = format!("flip-{regions}");
            frame.case(case, || Flip::new(&self.folder.join(&name), blobs, regions))?;
        }
        Ok(())
    }
}

/// Both sides keep the same files mapped and populated between runs.
struct Flip {
    store: Store,
    lease: Option<Lease>,
    files: Vec<PathBuf>,
    maps: Vec<MmapRaw>,
    bytes: u64,
    sum: u64,
}

impl Flip {
    fn new(folder: &std::path::Path, blobs: Blobs, regions: u32) -> Result<Flip, Failure> {
        let store =
            Store::open_with(folder, 2 * blobs.bytes() + GIB, |builder| builder.residence(Residence::Map))?;
        let mut plan = Store::plan(WritePath::Direct, Durability::Wait);
        plan.regions = Some(regions);
        let sum = store.load(plan, &blobs)?;
        let lease = Some(store.lease()?);
        let files = store.files()?;
        let lens = files.iter().map(|path| Ok(path.metadata()?.len()));
        let bytes = lens.sum::<io::Result<u64>>()?;
        let maps = map_all(&files)?;
        Ok(Flip { store, lease, files, maps, bytes, sum })
    }
}

impl Pair for Flip {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn expected(&self) -> Answers {
        Answers { limit: self.bytes, subject: self.sum }
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let before = std::mem::take(&mut self.maps);
        self.maps = stopwatch.time(|| {
            drop(before);
            map_all(&self.files)
        })?;
        Ok(self.maps.iter().map(|map| map.len() as u64).sum())
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let before = self.lease.take();
        let lease = stopwatch.time(|| {
            drop(before);
            self.store.evict()?;
            let lease = self.store.lease()?;
            // A lease is given before all is mapped. A region is handed out when it is.
            (0..lease.region_count()).try_for_each(|n| lease.region(n, None).map(drop))?;
            Ok::<_, Failure>(lease)
        })?;
        let sum = sum_blobs(&lease)?;
        self.lease = Some(lease);
        Ok(sum)
    }
}

/// Maps and populates the files, by as many threads as there are cores.
fn map_all(files: &[PathBuf]) -> io::Result<Vec<MmapRaw>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let map = |path: &PathBuf| {
        let map = MmapOptions::new().map_raw_read_only(&File::open(path)?)?;
        map.advise(Advice::PopulateRead)?;
        io::Result::Ok(map)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = files
            .chunks(files.len().div_ceil(cores))
            .map(|files| scope.spawn(move || files.iter().map(map).collect::<io::Result<Vec<_>>>()))
            .collect();
        let maps = threads.into_iter().map(|thread| thread.join().expect("mapping does not panic"));
        Ok(maps.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

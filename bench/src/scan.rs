//! Scanning a slice by the cache's scan threads, warm and cold.
//!
//! | case | limit |
//! |---|---|
//! | warm, from images or maps | a plain loop with the same sum over the same bytes, by as many pinned threads |
//! | first scan after a load | the same scan of a slice that was scanned before |
//! | pinned | the same scan by threads that are not tied to cores |
//! | cold, lease and scan, into memory | the best raw read of the same files that keeps the bytes |
//! | cold, lease and scan, streamed; also of a slice twice as large as the memory | the best raw read that drops them |
//! | cold, raw reads that look at the bytes, or keep them | the one that drops them unseen |
mod cold;
mod crew;
mod first;
mod pinned;
mod warm;

use std::io;
use std::rc::Rc;

use pelton::{Reading, Residence, Verify, Way, WritePath};

use crate::Bench;
use crate::disk::{Blobs, Folder};
use crate::frame::{Case, Frame, Knobs};
use cold::{ColdPlan, ColdScan, ReadShape, Use, UsefulRead};
use first::FirstScan;
use pinned::Pinned;
use warm::{From, WarmScan};

const BLOB: usize = 64 << 10;
const GIB: u64 = 1 << 30;

/// The least memory that a cache takes.
const MEMORY_MIN: u64 = 64 << 20;

/// Slices of some size, on the benchmark's folder.
pub(crate) struct ScanBench {
    folder: Rc<Folder>,
    slice_bytes: u64,
    /// One region of more than 4 GiB, or nothing where that would take too long.
    large_region_bytes: u64,
}

impl ScanBench {
    pub(crate) fn new(knobs: &mut Knobs, folder: Rc<Folder>) -> ScanBench {
        ScanBench {
            folder,
            slice_bytes: knobs.knob("slice_bytes", (32 << 20, GIB)),
            large_region_bytes: knobs.knob("large_region_bytes", (0, 5 * GIB)),
        }
    }
}

impl Bench for ScanBench {
    fn run(&self, frame: &mut Frame) -> io::Result<()> {
        let seed = frame.seed();
        let blobs = |len| Blobs::filling(seed, self.slice_bytes, len);
        let folder = |name: &str| self.folder.join(&format!("scan-{name}"));

        for (from, place) in [(From::Image, "image"), (From::Map, "map")] {
            for (size, len, goal) in [("64 KiB", BLOB, 0.95), ("4 KiB", 4096, 0.95), ("256 B", 256, 0.9)] {
                let name = format!("warm {place}, {size}");
                let path = folder(&name.replace([' ', ','], "-"));
                frame.case(case(&name, "plain u64 sum", Some(goal), 0), || {
                    WarmScan::new(&path, blobs(len), from)
                })?;
            }
        }
        let fresh_bytes = self.slice_bytes + self.slice_bytes / 16;
        for (write_path, place, fresh) in
            [(WritePath::Image, "image", 0), (WritePath::Direct, "direct", fresh_bytes)]
        {
            // What was never in memory is read first, so there is nothing to hold it to.
            let goal = (write_path == WritePath::Image).then_some(0.9);
            let name = format!("first scan, {place}");
            frame.case(case(&name, "warm scan", goal, fresh), || {
                FirstScan::new(&folder(&format!("first-{place}")), blobs(BLOB), write_path)
            })?;
        }
        frame.case(case("pinned scan", "unpinned", None, 0), || Pinned::new(&folder("pins"), blobs(BLOB)))?;

        self.cold(frame)
    }
}

impl ScanBench {
    fn cold(&self, frame: &mut Frame) -> io::Result<()> {
        let folder = |name: &str| self.folder.join(&format!("scan-{}", name.replace([' ', ',', '>'], "-")));
        let blobs = Blobs::filling(frame.seed(), self.slice_bytes, BLOB);
        let shape = ReadShape::default();
        let plan = ColdPlan {
            blobs,
            regions: None,
            memory: 2 * self.slice_bytes + GIB,
            residence: Residence::Map,
            reading: Reading::Memory,
            verify: Verify::WhenRead,
            way: Way::Map,
        };
        let in_memory = self.slice_bytes + self.slice_bytes / 16;
        let image = ColdPlan { residence: Residence::Image, way: Way::Image, ..plan };
        let stream = ColdPlan { reading: Reading::Stream, way: Way::Stream, ..plan };
        for (name, plan, goal, fresh) in [
            ("cold map, verified", plan, 0.85, in_memory),
            ("cold map, unverified", ColdPlan { verify: Verify::Never, ..plan }, 0.9, in_memory),
            ("cold image, verified", image, 0.85, in_memory),
            ("cold image, unverified", ColdPlan { verify: Verify::Never, ..image }, 0.9, in_memory),
            ("cold stream, verified", stream, 0.85, 0),
            ("cold stream, unverified", ColdPlan { verify: Verify::Never, ..stream }, 0.9, 0),
        ] {
            let limit = if plan.way == Way::Stream { "raw read" } else { "raw read, kept" };
            frame
                .case(case(name, limit, Some(goal), fresh), || ColdScan::new(&folder(name), plan, &shape))?;
        }

        for (name, to) in [("cold raw read, looked at", Use::Look), ("cold raw read, kept", Use::Keep)] {
            frame.case(case(name, "raw read", None, 0), || {
                UsefulRead::new(&folder(name), to, self.slice_bytes, &shape)
            })?;
        }

        let memory = (self.slice_bytes / 2).max(MEMORY_MIN);
        let twice = ColdPlan {
            blobs: Blobs { count: 2 * memory / BLOB as u64, ..blobs },
            memory,
            reading: Reading::Auto,
            ..stream
        };
        let name = "twice the memory budget";
        frame.case(case(name, "raw read", Some(0.8), 0), || ColdScan::new(&folder(name), twice, &shape))?;

        if self.large_region_bytes > 0 {
            let blobs = Blobs::filling(frame.seed(), self.large_region_bytes, BLOB);
            let bytes = self.large_region_bytes;
            let map = ColdPlan { blobs, regions: Some(1), memory: bytes + bytes / 8 + GIB, ..plan };
            let stream = ColdPlan { reading: Reading::Stream, way: Way::Stream, ..map };
            for (name, plan) in [("region > 4 GiB, map", map), ("region > 4 GiB, stream", stream)] {
                let fresh = if plan.way == Way::Map { bytes } else { 0 };
                let limit = if plan.way == Way::Stream { "raw read" } else { "raw read, kept" };
                frame.case(case(name, limit, None, fresh), || ColdScan::new(&folder(name), plan, &shape))?;
            }
        }
        shape.said(frame)
    }
}

fn case(name: &str, against: &'static str, goal: Option<f64>, fresh_bytes: u64) -> Case {
    Case { bench: "scan", name: name.to_owned(), against, goal, fresh_bytes, is_one_busy_thread: false }
}

//! Scanning a slice by the cache's scan threads, warm and cold.
//!
//! | case | limit |
//! |---|---|
//! | warm, from images or maps | a plain loop with the same sum over the same bytes, by as many pinned threads |
//! | first scan after a load | the same scan of a slice that was scanned before |
//! | pinned | the same scan by threads that are not tied to cores |
//! | cold, lease and scan | the best raw read of the same files |
mod cold;
mod crew;
mod first;
mod pinned;
mod warm;

use std::io;
use std::rc::Rc;

use pelton::WritePath;

use crate::Bench;
use crate::disk::{Blobs, Folder};
use crate::frame::{Case, Frame, Knobs};
use cold::{ColdScan, ReadShape};
use first::FirstScan;
use pinned::Pinned;
use warm::{From, WarmScan};

const BLOB: usize = 64 << 10;
const GIB: u64 = 1 << 30;

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

        let shape = ReadShape::default();
        frame.case(case("cold map, verified", "raw read", Some(0.85), fresh_bytes), || {
            ColdScan::new(&folder("cold"), blobs(BLOB), None, &shape)
        })?;
        if self.large_region_bytes > 0 {
            let blobs = Blobs::filling(seed, self.large_region_bytes, BLOB);
            frame
                .case(case("cold map, > 4 GiB region", "raw read", None, self.large_region_bytes), || {
                    ColdScan::new(&folder("large"), blobs, Some(1), &shape)
                })?;
        }
        shape.said(frame)
    }
}

fn case(name: &str, against: &'static str, goal: Option<f64>, fresh_bytes: u64) -> Case {
    Case { bench: "scan", name: name.to_owned(), against, goal, fresh_bytes, is_one_busy_thread: false }
}

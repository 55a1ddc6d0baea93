//! Loading a slice: until it can be scanned, until it is durable, and from deflated parcels.
//!
//! | case | limit |
//! |---|---|
//! | until scannable | plain writes of the same bytes by one thread, through the page cache |
//! | until durable | the best raw write past the page cache, and a sync |
//! | LZ4 parcels | inflating them, by as many threads |
//! | memory while loading | the budget and 64 MiB |
mod durable;
mod lz4;
mod memory;
mod scannable;

use std::io;
use std::rc::Rc;

use pelton::WritePath;

use crate::Bench;
use crate::disk::{Blobs, Folder, Texture};
use crate::frame::{Case, Frame, Knobs};
use durable::{Durable, WriteShape};
use lz4::Lz4;
use scannable::{Found, Scannable};

const BLOB: usize = 64 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Loads of three sizes, on the benchmark's folder.
pub(crate) struct LoadBench {
    folder: Rc<Folder>,
    load_bytes: u64,
    durable_bytes: u64,
    lz4_bytes: u64,
    memory_load_bytes: u64,
}

impl LoadBench {
    pub(crate) fn new(knobs: &mut Knobs, folder: Rc<Folder>) -> LoadBench {
        LoadBench {
            folder,
            load_bytes: knobs.knob("load_bytes", (32 * MIB, 2 * GIB)),
            durable_bytes: knobs.knob("durable_bytes", (32 * MIB, 8 * GIB)),
            lz4_bytes: knobs.knob("lz4_bytes", (32 * MIB, 2 * GIB)),
            memory_load_bytes: knobs.knob("memory_load_bytes", (256 * MIB, 4 * GIB)),
        }
    }
}

impl Bench for LoadBench {
    fn run(&self, frame: &mut Frame) -> io::Result<()> {
        let seed = frame.seed();
        let folder = |name: &str| self.folder.join(&format!("load-{name}"));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);

        let blobs = Blobs::filling(seed, self.load_bytes, BLOB);
        for (producers, found, goal) in [
            (1, Found::Recycled, Some(0.85)),
            (1, Found::Fresh, None),
            (cores, Found::Recycled, None),
            (cores, Found::Fresh, None),
        ] {
            let fresh = if found == Found::Fresh { " anew" } else { "" };
            let name = format!("until scannable, {producers} from{fresh}");
            // Fresh for the limit either way: the page cache.
            let case = case(&name, "plain writes", goal, self.load_bytes);
            frame.case(case, || {
                Scannable::new(&folder(&format!("scannable-{producers}{fresh}")), blobs, producers, found)
            })?;
        }

        let blobs = Blobs::filling(seed, self.durable_bytes, BLOB);
        let shape = WriteShape::default();
        for (write_path, name, goal, fresh) in
            [(WritePath::Direct, "direct", 0.9, 0), (WritePath::Image, "image", 0.85, self.durable_bytes)]
        {
            frame.case(case(&format!("until durable, {name}"), "raw write", Some(goal), fresh), || {
                Durable::new(&folder(&format!("durable-{name}")), blobs, write_path, &shape)
            })?;
        }
        shape.said(frame)?;

        let blobs = Blobs { texture: Texture::Records, ..Blobs::filling(seed, self.lz4_bytes, BLOB) };
        let threads = if cores > 1 { vec![(cores - 1, 0.7), (cores, 0.5)] } else { vec![(1, 0.5)] };
        for (threads, goal) in threads {
            let name = format!("LZ4, {threads} of {cores} cores");
            frame.case(case(&name, "inflating", Some(goal), self.lz4_bytes), || {
                Lz4::new(&folder(&format!("lz4-{threads}")), blobs, threads)
            })?;
        }

        let blobs = Blobs::filling(seed, self.memory_load_bytes, BLOB);
        frame.gauge(memory::CASE, || memory::load(&folder("memory"), blobs))
    }
}

fn case(name: &str, against: &'static str, goal: Option<f64>, fresh_bytes: u64) -> Case {
    Case { bench: "load", name: name.to_owned(), against, goal, fresh_bytes, is_one_busy_thread: false }
}

//! `pelton demo`: all that the cache does, once, beside the same work without it.
//!
//! ```text
//! room.rs: how much?   folder.rs: where?   dataset.rs: of what?
//!        └────────────────────┼────────────────────┘
//!                             ▼
//!      plain.rs, then load, scan, evict, warm, restart, verify  ─▶  table.rs
//! ```

mod dataset;
mod folder;
mod plain;
mod room;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use pelton::{
    Blobs, Cache, Fingerprint, FoldError, IoEngine, Key, Lease, LoadPlan, ParcelBuilder, Snap, Want,
};
use serde::Serialize;

use crate::failure::{Failure, shown};
use crate::progress::Progress;
use crate::stdout::Stdout;
use crate::usage::usage;
use dataset::{Dataset, Sums};
use folder::{DemoFolder, sweep, sweep_after_input};
use pelton::units::{GIB, MIB, Size, count, parse_size};
use plain::Way;
use room::{Room, fit_speed};
use table::{Plain, Row};

const BYTES_DEFAULT: u64 = GIB;

/// What a first write tells the disk's speed by.
const PROBE_BYTES: u64 = 64 * MIB;

/// A scan of memory takes a moment, and other work on the machine may fall into it: the best of a few counts, for
/// the plain sum and for the cache alike.
const SCANS: usize = 5;

/// What takes longer is not written plainly a second time.
const WRITE_AGAIN_MAX: Duration = Duration::from_secs(4);

const PARCEL_BYTES: usize = 1 << 20;

/// No step may wait longer for anything. What takes so long is broken.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The command line of `demo`.
#[derive(Args)]
pub(crate) struct Demo {
    /// How much to load [default: 1 GiB, less if the disk is slow or something is short]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bytes: Option<u64>,
    /// A folder on the disk to try; the demo makes one of its own in it, and removes that again
    #[arg(long, value_name = "DIR", default_value = ".")]
    spindle: PathBuf,
    /// How the disk is asked
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    engine: Engine,
    /// One line of JSON at the end
    #[arg(long)]
    json: bool,
    /// Waits for the end of standard input, then removes a demo's folder. Each demo starts one for itself
    #[arg(long, value_name = "DIR", hide = true)]
    sweep: Option<PathBuf>,
}

/// How the disk is asked.
#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    /// io_uring where the system allows it, else threads
    Auto,
    /// io_uring or not at all
    Uring,
    /// Plain system calls on a few threads
    Threads,
}

impl From<Engine> for IoEngine {
    fn from(engine: Engine) -> IoEngine {
        match engine {
            Engine::Auto => IoEngine::Auto,
            Engine::Uring => IoEngine::Uring,
            Engine::Threads => IoEngine::Threads,
        }
    }
}

impl Demo {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(folder) = &self.sweep {
            sweep_after_input(folder);
            return Ok(());
        }
        if self.bytes == Some(0) {
            return Err(usage(&["demo"], "--bytes is 0, and a demo of nothing shows nothing".to_owned()));
        }
        if self.spindle.join("pelton-spindle").exists() {
            let message =
                "is a spindle, where a cache has its files and nobody else; choose a folder beside it";
            return Err(Failure::file(&self.spindle, message));
        }
        let started = Instant::now();
        let mut told = Told::open(self.json)?;
        let swept = sweep(&self.spindle).map_err(|error| Failure::io(&self.spindle, "read", &error))?;
        let folder =
            DemoFolder::make(&self.spindle).map_err(|error| Failure::io(&self.spindle, "written", &error))?;
        told.line(format_args!("Pelton demo in {}, which is removed at the end", shown(folder.path())))?;
        for path in swept {
            told.note(format!("removed what a killed demo had left: {}", shown(&path)))?;
        }
        let shown = self.show(&folder, &mut told);
        let removing = Instant::now();
        let removed = folder.path().to_owned();
        folder.remove().map_err(|error| Failure::io(&removed, "removed", &error))?;
        let sums = shown?;
        told.row(Row::new("remove", "remove everything", removing.elapsed()))?;
        told.end(sums, started.elapsed())
    }

    /// All steps. The folder is removed by the caller, whatever happens here.
    fn show(&self, folder: &DemoFolder, told: &mut Told) -> Result<Sums, Failure> {
        let spindle = folder.path().join("spindle");
        let cache = self.open(&spindle)?;
        told.threads = thread::available_parallelism().map_or(1, usize::from);
        told.engine = cache.spindles().first().map_or("", |spindle| spindle.engine);
        let bytes = self.size(folder.path(), &cache, told)?;
        let (threads, engine) = (count(told.threads as u64, "thread"), told.engine);
        told.line(format_args!("{} in blobs of 1 to 64 KiB, {threads}, engine {engine}\n", Size(bytes)))?;
        told.line(table::heading())?;

        let started = Instant::now();
        let dataset = Dataset::make(bytes, told.threads);
        told.row(Row::new("make", "make the blobs", started.elapsed()).of(bytes))?;
        let plain = measure_plain(&dataset, &folder.path().join("plain"), told)?;

        let key: Key = "demo/blobs@1#0".parse().expect("it is a key");
        load(&cache, &key, &dataset, &plain, told)?;
        let expected = dataset.sums();
        drop(dataset);

        let scan = scan_best(&lease(&cache, &key)?, expected)?;
        told.row(Row::new("scan", "scan in place", scan).of(bytes).beside(Plain::Memory, &plain.memory))?;

        let evict = Instant::now();
        evict_all(&cache.snap(&key))?;
        told.row(Row::new("evict", "evict it from memory", evict.elapsed()))?;
        let progress = Progress::new("reading", None);
        let warm = Instant::now();
        let lease_again = lease(&cache, &key)?;
        scan_once(&lease_again, expected)?;
        let warm = Row::new("warm", "lease, verify and scan it again", warm.elapsed()).of(bytes);
        drop(progress);
        told.row(warm.beside(Plain::Read, &plain.read))?;
        let scan = scan_best(&lease_again, expected)?;
        let scan = Row::new("scan_again", "scan in place again", scan).of(bytes);
        told.row(scan.beside(Plain::Memory, &plain.memory))?;
        drop(lease_again);

        let restart = Instant::now();
        drop(cache);
        let cache = self.open(&spindle)?;
        told.row(Row::new("restart", "restart, and find it again", restart.elapsed()))?;
        verify(&cache, &key, expected, &plain, told)?;
        Ok(expected)
    }

    fn open(&self, spindle: &Path) -> Result<Cache, Failure> {
        let builder = Cache::builder().spindle(spindle, None).engine(self.engine.into());
        builder.open().map_err(|error| Failure::cache(&error))
    }

    /// How much fits here, with a note if it is less than it would be.
    fn size(&self, folder: &Path, cache: &Cache, told: &mut Told) -> Result<u64, Failure> {
        let failed = |error| Failure::io(folder, "used", &error);
        let wanted = self.bytes.unwrap_or(BYTES_DEFAULT);
        let room = Room::at(folder, cache.memory_max()).map_err(failed)?;
        let (fits, short) = room
            .fit(wanted)
            .map_err(|short| Failure::file(folder, format!("has no room for a demo: {short}")))?;
        if let Some(short) = short {
            told.note(format!("{} instead of {}: {short}", Size(fits), Size(wanted)))?;
        }
        // What somebody asks for is not made smaller to save time.
        if self.bytes.is_some() {
            return Ok(fits);
        }
        let probe = Dataset::make(PROBE_BYTES.min(fits), told.threads);
        let path = folder.join("probe");
        let time = plain::write(&path, probe.parts(), &Progress::none()).map_err(failed)?;
        std::fs::remove_file(&path).map_err(failed)?;
        let rate = probe.sums().bytes as f64 / time.as_secs_f64().max(1e-9);
        let (quick, slow) = fit_speed(fits, rate as u64);
        if let Some(slow) = slow {
            told.note(format!("{} instead of {}: {slow}", Size(quick), Size(fits)))?;
        }
        Ok(quick)
    }
}

/// The plain rows that others stand beside.
struct PlainRows {
    memory: Row,
    write: Row,
    read: Row,
}

fn measure_plain(dataset: &Dataset, path: &Path, told: &mut Told) -> Result<PlainRows, Failure> {
    let failed = |error| Failure::io(path, "used", &error);
    let bytes = dataset.sums().bytes;
    let mut best = Duration::MAX;
    for _ in 0..SCANS {
        let (time, sum) = plain::sum(dataset, told.threads);
        assert_eq!(sum, dataset.sums().words, "memory holds what was written to it");
        best = best.min(time);
    }
    let memory = told.row(Row::new("plain_memory", "plain: add up memory", best).of(bytes))?;

    let progress = Progress::new("writing plainly", None);
    let mut time = plain::write(path, dataset.parts(), &progress).map_err(failed)?;
    // Memory that a virtual machine has never touched makes a first write several times slower than the disk is.
    if time < WRITE_AGAIN_MAX {
        std::fs::remove_file(path).map_err(failed)?;
        time = time.min(plain::write(path, dataset.parts(), &progress).map_err(failed)?);
    }
    drop(progress);
    let write = told.row(Row::new("plain_write", "plain: write and sync a file", time).of(bytes))?;

    let progress = Progress::new("reading plainly", Some(bytes));
    let (time, way) = plain::read(path, bytes, told.threads, &progress).map_err(failed)?;
    drop(progress);
    let title = match way {
        Way::Direct => "plain: read it from the disk",
        Way::Buffered => "plain: read it, cached by the system",
    };
    let read = told.row(Row::new("plain_read", title, time).of(bytes))?;
    // The cache will need the room.
    std::fs::remove_file(path).map_err(failed)?;
    Ok(PlainRows { memory, write, read })
}

/// Loads the dataset as one slice, in parcels, by as many producers as there are cores.
fn load(
    cache: &Cache,
    key: &Key,
    dataset: &Dataset,
    plain: &PlainRows,
    told: &mut Told,
) -> Result<(), Failure> {
    let bytes = dataset.sums().bytes;
    let mut plan =
        LoadPlan::new(Fingerprint::builder().source("pelton demo").number("bytes", bytes).finish());
    plan.expected_bytes = Some(bytes);
    let started = Instant::now();
    let snap = cache.snap(key);
    let writer = snap.open_for_writes(plan).map_err(|error| Failure::cache(&error))?;
    let progress = Progress::new("loading", Some(bytes));
    let produce = |first: usize| -> Result<(), Failure> {
        for part in dataset.parts().iter().skip(first).step_by(told.threads) {
            let mut parcel = ParcelBuilder::with_capacity(PARCEL_BYTES);
            for blob in part.blobs() {
                if !parcel.is_empty() && parcel.bytes() + blob.len() > PARCEL_BYTES {
                    let full = std::mem::replace(&mut parcel, ParcelBuilder::with_capacity(PARCEL_BYTES));
                    progress.advance(full.bytes());
                    writer.queue_parcel(full.finish()).map_err(|error| Failure::cache(&error))?;
                }
                parcel.push(blob).map_err(|error| Failure::cache(&error))?;
            }
            writer.queue_parcel(parcel.finish()).map_err(|error| Failure::cache(&error))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let produce = &produce;
        let producers: Vec<_> = (0..told.threads).map(|first| scope.spawn(move || produce(first))).collect();
        producers.into_iter().try_for_each(|producer| producer.join().expect("producers do not panic"))
    })?;
    let sealed = writer.wait_for_writes().map_err(|error| Failure::cache(&error))?;
    sealed.close_for_writes().map_err(|error| Failure::cache(&error))?;
    let scannable = Row::new("load", "load it until it can be scanned", started.elapsed()).of(bytes);
    told.row(scannable.beside(Plain::Write, &plain.write))?;
    cache.sync(None).map_err(|error| Failure::cache(&error))?;
    let durable = Row::new("durable", "load it until it is durable", started.elapsed()).of(bytes);
    told.row(durable.beside(Plain::Write, &plain.write)).map(drop)
}

fn lease(cache: &Cache, key: &Key) -> Result<Lease, Failure> {
    let deadline = Some(Instant::now() + WAIT_MAX);
    cache.lease(key, Want::Latest, deadline).map_err(|error| Failure::cache(&error))
}

fn evict_all(snap: &Snap) -> Result<(), Failure> {
    match snap.evict() {
        true => Ok(()),
        false => Err(Failure::Cache(format!("{} could not be evicted", snap.key()))),
    }
}

/// Scans a few times and takes the best, as for the plain sum.
fn scan_best(lease: &Lease, expected: Sums) -> Result<Duration, Failure> {
    let mut best = Duration::MAX;
    for _ in 0..SCANS {
        best = best.min(scan_once(lease, expected)?);
    }
    Ok(best)
}

/// Adds up all words of all blobs in place, and checks the sum.
fn scan_once(lease: &Lease, expected: Sums) -> Result<Duration, Failure> {
    let fold = |blobs: &mut Blobs<'_>, sums: &mut Sums| -> Result<(), FoldError> {
        while let Some(blob) = blobs.next()? {
            sums.add_words(blob);
        }
        Ok(())
    };
    let started = Instant::now();
    let found = lease.scan(fold, Sums::merge).map_err(|error| Failure::cache(&error))?;
    let time = started.elapsed();
    check(found, Sums { crc32c: 0, ..expected })?;
    Ok(time)
}

/// Reads what the restarted cache has, and compares every blob's checksum with what was made.
fn verify(
    cache: &Cache,
    key: &Key,
    expected: Sums,
    plain: &PlainRows,
    told: &mut Told,
) -> Result<(), Failure> {
    let progress = Arc::new(Progress::new("verifying", Some(expected.bytes)));
    let advance = progress.clone();
    let fold = move |blobs: &mut Blobs<'_>, sums: &mut Sums| -> Result<(), FoldError> {
        while let Some(blob) = blobs.next()? {
            sums.add(blob);
            advance.advance(blob.len());
        }
        Ok(())
    };
    let started = Instant::now();
    let found = lease(cache, key)?.scan(fold, Sums::merge).map_err(|error| Failure::cache(&error))?;
    let row = Row::new("verify", "lease it, check every blob", started.elapsed()).of(expected.bytes);
    check(found, expected)?;
    drop(progress);
    // Beside memory: the system still has the files in its cache.
    told.row(row.beside(Plain::Memory, &plain.memory)).map(drop)
}

fn check(found: Sums, expected: Sums) -> Result<(), Failure> {
    match found == expected {
        true => Ok(()),
        false => Err(Failure::Cache(format!(
            "the blobs came back changed: expected {expected:?}, found {found:?}; this is a bug of pelton or of \
             the machine: please report it"
        ))),
    }
}

/// What is said, as text at once or as JSON at the end.
struct Told {
    stdout: Stdout,
    json: bool,
    engine: &'static str,
    threads: usize,
    notes: Vec<String>,
    rows: Vec<Row>,
}

/// The JSON.
#[derive(Serialize)]
struct Outcome<'a> {
    bytes: u64,
    count: u64,
    crc32c: u64,
    engine: &'a str,
    threads: usize,
    notes: &'a [String],
    steps: &'a [Row],
    seconds: f64,
}

impl Told {
    fn open(json: bool) -> Result<Told, Failure> {
        let stdout = Stdout::open()?;
        Ok(Told { stdout, json, engine: "", threads: 1, notes: Vec::new(), rows: Vec::new() })
    }

    /// A line for people.
    fn line(&mut self, line: impl std::fmt::Display) -> Result<(), Failure> {
        if self.json {
            return Ok(());
        }
        self.stdout.line(line)?;
        self.stdout.flush()
    }

    /// Something that nobody asked for but should know.
    fn note(&mut self, note: String) -> Result<(), Failure> {
        self.line(&note)?;
        self.notes.push(note);
        Ok(())
    }

    fn row(&mut self, row: Row) -> Result<Row, Failure> {
        self.line(row.line())?;
        self.rows.push(row.clone());
        Ok(row)
    }

    fn end(mut self, sums: Sums, time: Duration) -> Result<(), Failure> {
        let Sums { blobs: count, bytes, crc32c, .. } = sums;
        let seconds = time.as_secs_f64();
        if self.json {
            let Told { engine, threads, .. } = self;
            let (notes, steps) = (&self.notes[..], &self.rows[..]);
            let outcome = Outcome { bytes, count, crc32c, engine, threads, notes, steps, seconds };
            self.stdout.line(serde_json::to_string(&outcome).expect("it has nothing that JSON lacks"))?;
            return self.stdout.flush();
        }
        let blobs = pelton::units::grouped(count);
        self.line(format_args!("\nAll {blobs} blobs came back as they were made, in {seconds:.1} s in all."))
    }
}

//! Opening a cache that holds many slices, the first lease after it, and what leases and idle slices cost.
//!
//! | case | limit |
//! |---|---|
//! | start-up | open, read and close the same manifests; open, look at and read the last page of the same regions; by as many threads |
//! | first lease | read its manifest, then open, map and populate its files |
//! | lease, release | 30 additions to an atomic number that nobody else has |
//! | the same by two threads | two threads that do those, each to its own number |
//! | memory of an idle slice | 2 KiB |
//!
//! The slices are copies of one that was loaded: its manifest with another clock and another load folder.
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, MmapOptions};
use pelton::{
    Cache, CacheBuilder, Durability, Fingerprint, Key, LoadPlan, PAGE_BYTES, ParcelBuilder, Residence, Snap,
    Want, crc32c,
};

use crate::Bench;
use crate::disk::Folder;
use crate::frame::{Answers, Case, Failure, Frame, Gauge, GaugeCase, Knobs, Pair, Stopwatch};

const REGIONS: u32 = 2;
/// What a lease and its release may cost.
const ADDITIONS: u64 = 30;
const MEMORY: GaugeCase = GaugeCase {
    bench: "restart",
    name: "memory of an idle slice",
    unit: "bytes",
    against: "2 KiB",
    ratio_max: 1.0,
};

/// One folder with all slices, for all cases.
pub(crate) struct RestartBench {
    folder: Rc<Folder>,
    slices: u64,
    lease_bytes: u64,
    leases: u64,
}

impl RestartBench {
    pub(crate) fn new(knobs: &mut Knobs, folder: Rc<Folder>) -> RestartBench {
        RestartBench {
            folder,
            slices: knobs.knob("restart_slices", (200, 10_000)),
            lease_bytes: knobs.knob("restart_lease_bytes", (4 << 20, 64 << 20)),
            leases: knobs.knob("restart_leases", (10_000, 1_000_000)),
        }
    }
}

impl Bench for RestartBench {
    fn run(&self, frame: &mut Frame) -> io::Result<()> {
        let spindle = self.folder.join("restart");
        let case = |name: &str, against, goal, is_one_busy_thread| Case {
            bench: "restart",
            name: name.to_owned(),
            against,
            goal: Some(goal),
            fresh_bytes: 0,
            is_one_busy_thread,
        };
        // First, since memory that later cases give back stays with the allocator.
        frame.gauge(MEMORY, || {
            let few = self.folder.join("restart-few");
            fill(&few, (self.slices / 10).max(1), self.lease_bytes)?;
            fill(&spindle, self.slices, self.lease_bytes)?;
            idle_memory(&spindle, &few)
        })?;
        frame.case(case("start-up", "bare reads", 0.5, false), || {
            fill(&spindle, self.slices, self.lease_bytes)?;
            StartUp::new(&spindle)
        })?;
        frame.case(case("first lease", "read and map", 1.0 / 3.0, false), || {
            fill(&spindle, self.slices, self.lease_bytes)?;
            FirstLease::new(&spindle)
        })?;
        let leases = self.folder.join("restart-leases");
        for (name, threads, by_key) in [
            ("lease, release", 1, false),
            ("lease, release: 2 threads", 2, false),
            ("lease by key, release", 1, true),
            ("lease by key, release: 2 threads", 2, true),
        ] {
            let goal = if threads == 1 { 1.0 } else { 0.9 };
            frame.case(case(name, "30 additions", goal, threads == 1), || {
                Leases::new(&leases, self.leases, threads, by_key)
            })?;
        }
        Ok(())
    }
}

fn builder(spindle: &Path) -> CacheBuilder {
    Cache::builder().memory(1 << 30).residence(Residence::Map).spindle(spindle, 1 << 40)
}

fn template() -> Key {
    Key::new("bench", "restart", 1_000_000_000, 0).expect("these are names")
}

fn first() -> Key {
    Key::new("bench", "first", 1, 0).expect("these are names")
}

fn load(cache: &Cache, key: &Key, bytes: u64) -> Result<(), Failure> {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.regions = Some(REGIONS);
    plan.durability = Durability::Wait;
    let writer = cache.snap(key).open_for_writes(plan)?;
    let blob = vec![7; (bytes / 64).clamp(64, 1 << 20) as usize];
    for _ in 0..bytes.div_ceil(blob.len() as u64) {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&blob)?;
        writer.queue_parcel(parcel.finish())?;
    }
    Ok(writer.wait_for_writes()?.close_for_writes()?)
}

/// Makes the folder, if it is not there yet.
fn fill(spindle: &Path, slices: u64, lease_bytes: u64) -> Result<(), Failure> {
    if spindle.exists() {
        return Ok(());
    }
    let cache = builder(spindle).open()?;
    load(&cache, &template(), 4096)?;
    load(&cache, &first(), lease_bytes)?;
    cache.close(None)?;
    let manifests = spindle.join("manifests");
    let original = fs::read(manifests.join(name_of(&template())))?;
    let load = load_folder(spindle, &original)?;
    let (epoch, rest) = load.split_once('-').ok_or_else(|| Failure::because("a load folder's name"))?;
    let epoch: u64 = epoch.parse().map_err(|_| Failure::because("a load folder's epoch"))?;
    for number in 1..slices {
        let key = Key::new("bench", "restart", 1_000_000_000 + number, 0).expect("these are names");
        let copy = format!("{}-{rest}", epoch - number);
        let mut bytes = replaced(&original, &template().to_string(), &key.to_string())?;
        bytes = replaced(&bytes, &load, &copy)?;
        let crc = crc32c(&[&bytes[..16], &bytes[20..]].concat());
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        let (from, to) = (spindle.join("loads").join(&load), spindle.join("loads").join(copy));
        fs::create_dir(&to)?;
        for region in 0..REGIONS {
            let name = format!("{region:04}.region");
            fs::copy(from.join(&name), to.join(name))?;
        }
        fs::write(manifests.join(name_of(&key)), bytes)?;
    }
    Ok(())
}

fn name_of(key: &Key) -> String {
    format!("{}+{}+{}+{}.manifest", key.domain(), key.view(), key.clock(), key.slice())
}

/// The one of the load folders that a manifest names.
fn load_folder(spindle: &Path, manifest: &[u8]) -> Result<String, Failure> {
    for entry in fs::read_dir(spindle.join("loads"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if manifest.windows(name.len()).any(|window| window == name.as_bytes()) {
            return Ok(name);
        }
    }
    Err(Failure::because("no load folder is named"))
}

/// The bytes with a text in place of another one of the same length.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Result<Vec<u8>, Failure> {
    if from.len() != to.len() {
        return Err(Failure::because("names of one length"));
    }
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while at + from.len() <= bytes.len() {
        if &bytes[at..at + from.len()] == from.as_bytes() {
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        }
        at += 1;
    }
    Ok(bytes)
}

/// Manifests and regions of a spindle.
fn files(spindle: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), Failure> {
    let list = |folder: PathBuf| -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let manifests = list(spindle.join("manifests"))?;
    let mut regions = Vec::new();
    for folder in list(spindle.join("loads"))? {
        regions.extend(list(folder)?);
    }
    Ok((manifests, regions))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Both sides find everything in the page cache.
struct StartUp {
    spindle: PathBuf,
    manifests: Vec<PathBuf>,
    regions: Vec<PathBuf>,
    bytes: u64,
}

impl StartUp {
    fn new(spindle: &Path) -> Result<StartUp, Failure> {
        let (manifests, regions) = files(spindle)?;
        let lens = manifests.iter().map(|path| Ok(path.metadata()?.len()));
        let bytes = lens.sum::<io::Result<u64>>()? + (regions.len() * PAGE_BYTES) as u64;
        Ok(StartUp { spindle: spindle.to_owned(), manifests, regions, bytes })
    }
}

impl Pair for StartUp {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn expected(&self) -> Answers {
        Answers { limit: self.bytes, subject: self.manifests.len() as u64 }
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let manifest = |path: &PathBuf| {
            let mut bytes = Vec::new();
            File::open(path)?.read_to_end(&mut bytes)?;
            io::Result::Ok(bytes.len() as u64)
        };
        let region = |path: &PathBuf| {
            let file = File::open(path)?;
            let mut page = [0; PAGE_BYTES];
            file.read_exact_at(&mut page, file.metadata()?.len() - PAGE_BYTES as u64)?;
            io::Result::Ok(page.len() as u64)
        };
        let threads = cores();
        let part = |paths: &[PathBuf], number: usize| {
            let step = paths.len().div_ceil(threads);
            let start = (number * step).min(paths.len());
            start..(start + step).min(paths.len())
        };
        let bytes = stopwatch.time(|| {
            std::thread::scope(|scope| {
                let read = |number| {
                    let manifests = self.manifests[part(&self.manifests, number)].iter().map(manifest);
                    let regions = self.regions[part(&self.regions, number)].iter().map(region);
                    manifests.chain(regions).sum::<io::Result<u64>>()
                };
                let threads: Vec<_> = (0..threads).map(|number| scope.spawn(move || read(number))).collect();
                threads.into_iter().map(|thread| thread.join().expect("reading does not panic")).sum()
            })
        });
        let bytes: io::Result<u64> = bytes;
        Ok(bytes?)
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let cache = stopwatch.time(|| {
            let cache = builder(&self.spindle).open()?;
            cache.recovery();
            Ok::<_, pelton::CacheError>(cache)
        })?;
        Ok(cache.recovery().kept as u64)
    }
}

/// Both sides find everything in the page cache.
struct FirstLease {
    spindle: PathBuf,
    manifest: PathBuf,
    regions: Vec<PathBuf>,
    bytes: u64,
}

impl FirstLease {
    fn new(spindle: &Path) -> Result<FirstLease, Failure> {
        let manifest = spindle.join("manifests").join(name_of(&first()));
        let folder = spindle.join("loads").join(load_folder(spindle, &fs::read(&manifest)?)?);
        let regions: Vec<PathBuf> = (0..REGIONS).map(|n| folder.join(format!("{n:04}.region"))).collect();
        let bytes = regions.iter().map(|path| Ok(path.metadata()?.len())).sum::<io::Result<u64>>()?;
        Ok(FirstLease { spindle: spindle.to_owned(), manifest, regions, bytes })
    }
}

impl Pair for FirstLease {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn expected(&self) -> Answers {
        Answers { limit: self.bytes, subject: self.bytes }
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let maps = stopwatch.time(|| {
            fs::read(&self.manifest)?;
            let map = |path: &PathBuf| {
                let map = MmapOptions::new().map_raw_read_only(&File::open(path)?)?;
                map.advise(Advice::PopulateRead)?;
                io::Result::Ok(map)
            };
            std::thread::scope(|scope| {
                let threads: Vec<_> =
                    self.regions.iter().map(|path| scope.spawn(move || map(path))).collect();
                let maps = threads.into_iter().map(|thread| thread.join().expect("mapping does not panic"));
                maps.collect::<io::Result<Vec<_>>>()
            })
        })?;
        Ok(maps.iter().map(|map| map.len() as u64).sum())
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let cache = builder(&self.spindle).open()?;
        let (lease, regions) = stopwatch.time(|| {
            let lease = cache.lease(&first(), Want::Latest, None)?;
            // A lease is given before all is mapped. A region is handed out when it is.
            let regions = (0..lease.region_count())
                .map(|n| Ok(lease.region(n, None)?))
                .collect::<Result<Vec<_>, Failure>>();
            Ok::<_, Failure>((lease, regions?))
        })?;
        let bytes = regions.iter().map(|region| region.as_ref().len() as u64).sum();
        drop((regions, lease));
        Ok(bytes)
    }
}

/// A number that shares its cache line with nothing.
#[repr(align(128))]
#[derive(Default)]
struct Alone(AtomicU64);

/// Each thread has a snap of its own.
struct Leases {
    cache: Cache,
    snaps: Vec<Snap>,
    count: u64,
    /// Through the cache, not through a snap that was looked up before.
    by_key: bool,
}

impl Leases {
    fn new(folder: &Path, count: u64, threads: u64, by_key: bool) -> Result<Leases, Failure> {
        let cache = builder(folder).open()?;
        let mut snaps = Vec::new();
        for number in 0..threads {
            let key = Key::new("bench", "lease", number, 0).expect("these are names");
            load(&cache, &key, 4096)?;
            snaps.push(cache.snap(&key));
        }
        Ok(Leases { cache, snaps, count, by_key })
    }
}

/// Runs the work once for each of `items`, on threads of their own if there are several.
fn side_by_side<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<u64, Failure> + Sync,
) -> Result<u64, Failure> {
    if let [item] = items {
        return work(item);
    }
    let sums: Vec<Result<u64, String>> = std::thread::scope(|scope| {
        let work = &work;
        let run = |item| scope.spawn(move || work(item).map_err(|failure| failure.in_full()));
        let threads: Vec<_> = items.iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().expect("no work panics")).collect()
    });
    sums.into_iter().map(|sum| sum.map_err(Failure::because)).sum()
}

impl Pair for Leases {
    fn bytes(&self) -> u64 {
        self.count * self.snaps.len() as u64
    }

    fn expected(&self) -> Answers {
        Answers { limit: self.bytes() * ADDITIONS, subject: self.bytes() }
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let numbers: Vec<Alone> = self.snaps.iter().map(|_| Alone::default()).collect();
        stopwatch.time(|| {
            side_by_side(&numbers, |number| {
                for _ in 0..self.count {
                    for _ in 0..ADDITIONS {
                        number.0.fetch_add(1, Ordering::SeqCst);
                    }
                }
                Ok(number.0.load(Ordering::SeqCst))
            })
        })
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        stopwatch.time(|| {
            side_by_side(&self.snaps, |snap| {
                let mut leased = 0;
                for _ in 0..self.count {
                    let lease = match self.by_key {
                        true => self.cache.lease(snap.key(), Want::Latest, None)?,
                        false => snap.lease(Want::Latest, None)?,
                    };
                    leased += u64::from(lease.region_count() > 0);
                    drop(lease);
                }
                Ok(leased)
            })
        })
    }
}

/// What the process takes more with all slices than with a tenth of them, each in a cache of its own: so what a cache
/// takes beside its slices falls out.
fn idle_memory(many: &Path, few: &Path) -> Result<Gauge, Failure> {
    // The first cache of a process takes what later ones find: stacks and arenas of its threads.
    let empty = builder(&many.with_extension("empty")).open()?;
    empty.recovery();
    let opened = |spindle| {
        let before = own_bytes()?;
        let cache = builder(spindle).open()?;
        let kept = cache.recovery().kept as f64;
        Ok::<_, Failure>((own_bytes()?.saturating_sub(before) as f64, kept, cache))
    };
    let (few_bytes, few_kept, few) = opened(few)?;
    let (many_bytes, many_kept, many) = opened(many)?;
    drop((few, many, empty));
    let value = (many_bytes - few_bytes).max(0.0) / (many_kept - few_kept).max(1.0);
    Ok(Gauge { value, limit: 2048.0 })
}

fn own_bytes() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| Failure::because("/proc/self/status does not tell RssAnon"))
}

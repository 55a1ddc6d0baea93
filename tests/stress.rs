//! Everything at once: loads, reslices, leases, scans, evictions, flushes, erasing, pins, syncs and the close, racing.
//!
//! Goal: no scan returns anything but one whole load of its slice, nothing is taken from under a lease, what was loaded
//! last and never flushed is what is leased, nobody waits for ever, and what is left at the end is there after a
//! restart. Method: many threads on few keys, with memory for a part of them. Every blob tells its key, load and
//! number. Every few seconds one thread closes the cache under the others, and it is opened again.
//!
//! `PELTON_STRESS_SECONDS=36000 cargo test --release --test stress -- --nocapture` runs for ten hours,
//! `PELTON_STRESS_SEED=n` with other choices. When a thread has not ended an operation for a minute, all of them are
//! told with what they are doing, and the process is aborted.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pelton::*;

use support::slices::{Rng, check, env, left_over, load, load_of, plan};
use support::text;

const SPINDLES: usize = 2;
/// Slices that are flushed at times, and as many that never are.
const KEYS: u64 = 4;
const THREADS: usize = 8;
const ROUND: Duration = Duration::from_secs(4);
/// How long one operation may take on a busy machine.
const STUCK_AFTER: Duration = Duration::from_secs(60);
const SCAN_THREADS: usize = 2;

fn open(folder: &Path, engine: IoEngine) -> Cache {
    // Images and maps compete for what is left beside the pieces.
    let builder = Cache::builder().memory(96 << 20).buffers(48 << 20).engine(engine).free_floor(0);
    let spindles = spindles(folder);
    let builder = builder.scan_threads(SCAN_THREADS).pin(false);
    spindles.iter().fold(builder, |builder, spindle| builder.spindle(spindle, 1 << 30)).open().unwrap()
}

fn spindles(folder: &Path) -> Vec<PathBuf> {
    (0..SPINDLES).map(|number| folder.join(format!("spindle-{number}"))).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What each thread is doing, and since when.
#[derive(Default)]
struct Watch {
    doing: Mutex<BTreeMap<String, (String, Instant)>>,
    operations: AtomicU64,
}

impl Watch {
    /// This thread is doing that from now on.
    fn now(&self, what: String) {
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        let mut doing = lock(&self.doing);
        doing.insert(name, (what, Instant::now()));
        self.operations.fetch_add(1, Ordering::Relaxed);
    }

    /// This thread is doing nothing any more.
    fn ended(&self) {
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        lock(&self.doing).remove(&name);
    }

    /// Looks until told to stop. Aborts the process if somebody is stuck.
    fn look(&self, stop: &AtomicBool, cache: &Mutex<Option<Cache>>, place: &str) {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(200));
            let doing = lock(&self.doing).clone();
            let Some(longest) = doing.values().map(|(_, since)| since.elapsed()).max() else { continue };
            if longest < STUCK_AFTER {
                continue;
            }
            eprintln!("{place}: nothing has moved for {longest:?}");
            for (thread, (what, since)) in &doing {
                eprintln!("  {thread}: {what}, for {:?}", since.elapsed());
            }
            print_threads();
            let cache = cache.try_lock().ok().and_then(|cache| cache.clone());
            // On a thread of its own: it may be stuck, too.
            if let Some(cache) = cache {
                std::thread::spawn(move || {
                    eprintln!("  {:?}", cache.leases());
                    eprintln!("  {:?}", cache.spindles());
                    eprintln!("  {:?}", cache.search(&"*/*".parse().unwrap()));
                    eprintln!("  {:?}", cache.memory());
                });
                std::thread::sleep(Duration::from_secs(2));
            }
            std::process::abort();
        }
    }
}

/// All threads of this process: where in the kernel each one waits.
fn print_threads() {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return };
    for task in tasks.flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (name, waits_in, call) = (read("comm"), read("wchan"), read("syscall"));
        eprintln!(
            "  thread {} {} waits in {}, system call {}",
            task.file_name().display(),
            name.trim(),
            waits_in.trim(),
            call.split(' ').next().unwrap_or_default().trim()
        );
    }
}

/// What all threads share.
struct Stage<'s> {
    cache: &'s Cache,
    watch: &'s Watch,
    closing: &'s AtomicBool,
    next_load: &'s AtomicU64,
    /// The last load of each key that is never flushed, whose closing has returned.
    last: &'s Mutex<BTreeMap<Key, u64>>,
    /// Held while such a key is loaded, so that its loads have rising numbers. The other keys' loads race.
    loading: &'s Mutex<BTreeSet<Key>>,
    counts: &'s Counts,
}

#[derive(Debug, Default)]
struct Counts {
    loads: AtomicU64,
    scans: AtomicU64,
    streams: AtomicU64,
    evicts: AtomicU64,
    flushes: AtomicU64,
    erases: AtomicU64,
    refusals: AtomicU64,
    closes: AtomicU64,
}

fn one_more(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

fn key(number: u64) -> Key {
    format!("stress/slices@{}#0", number + 1).parse().unwrap()
}

fn is_kept(key: &Key) -> bool {
    key.clock() > KEYS
}

impl Stage<'_> {
    fn last(&self, key: &Key) -> Option<u64> {
        lock(self.last).get(key).copied()
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// An error that a busy cache may answer with. All else ends the test.
    fn excuse(&self, what: &str, error: &dyn std::error::Error, is_excused: bool) {
        one_more(&self.counts.refusals);
        assert!(is_excused || self.is_closing(), "{what}: {}", text(error));
    }

    fn play(&self, mut rng: Rng) {
        while !self.is_closing() {
            let key = key(rng.below(2 * KEYS));
            match rng.below(16) {
                0..4 => self.load(&key, &mut rng),
                4..11 => self.scan(&key, &mut rng),
                11..13 => {
                    self.watch.now(format!("evicts {key}"));
                    let snap = self.cache.snap(&key);
                    let _ = if rng.coin() { snap.evict() } else { snap.evict_keeping_cache() };
                    one_more(&self.counts.evicts);
                }
                13..15 if !is_kept(&key) => {
                    let deadline =
                        rng.coin().then(|| Instant::now() + Duration::from_micros(rng.below(5000)));
                    self.watch.now(format!("flushes {key}, deadline {}", deadline.is_some()));
                    if let Err(error) = self.cache.snap(&key).flush(deadline) {
                        let late = matches!(&error, FlushError::Late { .. })
                            || matches!(&error, FlushError::Disk { source, .. }
                                if matches!(**source, DiskError::Late { .. }));
                        self.excuse("flush", &error, late && deadline.is_some());
                    }
                    one_more(&self.counts.flushes);
                    if rng.coin() {
                        self.watch.now(format!("erases {key}"));
                        let erased = self.cache.snap(&key).erase();
                        self.counts.erases.fetch_add(u64::from(erased), Ordering::Relaxed);
                    }
                }
                13..15 => {
                    // One that is never flushed: neither while it is pinned.
                    self.watch.now(format!("pins {key}"));
                    let snap = self.cache.snap(&key);
                    snap.pin();
                    std::thread::yield_now();
                    snap.unpin();
                }
                _ => {
                    self.watch.now("syncs".to_owned());
                    if let Err(error) = self.cache.sync(None) {
                        self.excuse("sync", &error, false);
                    }
                }
            }
        }
        self.watch.ended();
    }

    fn load(&self, key: &Key, rng: &mut Rng) {
        let alone = is_kept(key);
        if alone && !lock(self.loading).insert(key.clone()) {
            return;
        }
        self.load_now(key, rng);
        if alone {
            lock(self.loading).remove(key);
        }
    }

    fn load_now(&self, key: &Key, rng: &mut Rng) {
        let number = self.next_load.fetch_add(1, Ordering::Relaxed);
        let plan = plan(rng, number);
        self.watch.now(format!("loads {key} as {number}, {:?} {:?}", plan.write_path, plan.durability));
        if rng.below(8) == 0 {
            // Given up before its end: it must leave what was there.
            if let Ok(writer) = self.cache.snap(key).open_for_writes(plan)
                && rng.coin()
            {
                drop(writer.wait_for_writes());
            }
            return;
        }
        match load(self.cache, key, number, plan) {
            Ok(()) => {
                one_more(&self.counts.loads);
                if is_kept(key) {
                    lock(self.last).insert(key.clone(), number);
                }
            }
            Err(error) => {
                let busy = matches!(&error, LoadError::Busy { .. } | LoadError::Memory { .. });
                let gone = matches!(&error, LoadError::Commit { source, .. }
                    if matches!(**source, CommitError::Replaced));
                self.excuse("load", &error, busy || gone && !is_kept(key));
            }
        }
    }

    fn scan(&self, key: &Key, rng: &mut Rng) {
        let last = self.last(key);
        let mut options = LeaseOptions::default();
        options.reading = if rng.below(4) == 0 { Reading::Stream } else { Reading::Auto };
        options.deadline =
            (rng.below(4) == 0).then(|| Instant::now() + Duration::from_micros(rng.below(20_000)));
        self.watch.now(format!(
            "leases {key}, {:?}, deadline {}",
            options.reading,
            options.deadline.is_some()
        ));
        let lease = match self.cache.lease_with(key, &options) {
            Ok(lease) => lease,
            Err(LeaseError::NotThere { .. }) => {
                assert!(last.is_none() || self.is_closing(), "{key} is not there, load {last:?} was");
                return;
            }
            Err(error) => {
                let full = matches!(&error, LeaseError::Warm { source, .. }
                    if matches!(**source, WarmError::Memory { .. }));
                let late = options.deadline.is_some();
                return self.excuse("lease", &error, full || late);
            }
        };
        let load = load_of(lease.fingerprint());
        if let Some(last) = last {
            assert!(load >= last, "{key}: load {load} is leased after {last} was closed");
        }
        if lease.is_streamed() {
            one_more(&self.counts.streams);
        }
        for again in 0..1 + rng.below(3) {
            self.watch.now(format!("scans {key}, load {load}, for the {again}. time under one lease"));
            match check(&lease) {
                Ok(()) => one_more(&self.counts.scans),
                Err(error) => return self.excuse("scan", &error, false),
            }
            std::thread::sleep(Duration::from_micros(rng.below(2000)));
        }
        self.watch.now(format!("gives the lease on {key} back"));
    }
}

#[test]
fn everything_at_once_returns_whole_slices_and_never_hangs() {
    let seconds = env("PELTON_STRESS_SECONDS").unwrap_or(45);
    let seed = env("PELTON_STRESS_SEED").unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(seconds);
    let folder = tempfile::tempdir().unwrap();
    let (watch, counts, next_load) = (Watch::default(), Counts::default(), AtomicU64::new(1));
    let last = Mutex::new(BTreeMap::new());
    let seen = Mutex::new(None);
    let over = AtomicBool::new(false);
    let mut rng = Rng(seed);
    std::thread::scope(|scope| {
        let looking = std::thread::Builder::new().name("watchdog".to_owned());
        looking
            .spawn_scoped(scope, || watch.look(&over, &seen, &format!("PELTON_STRESS_SEED={seed}")))
            .unwrap();
        // A panic must not leave the watchdog behind: it would wait for ever for what does not come.
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut round = 0;
            while Instant::now() < end {
                let engine = if round % 2 == 0 { IoEngine::Auto } else { IoEngine::Threads };
                let cache = open(folder.path(), engine);
                *lock(&seen) = Some(cache.clone());
                let closing = AtomicBool::new(false);
                let stage = Stage {
                    cache: &cache,
                    watch: &watch,
                    closing: &closing,
                    next_load: &next_load,
                    last: &last,
                    loading: &Mutex::default(),
                    counts: &counts,
                };
                run_round(&stage, &mut rng, ROUND.min(end.saturating_duration_since(Instant::now())));
                *lock(&seen) = None;
                drop(cache);
                look_after(folder.path(), &watch, &last);
                round += 1;
            }
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = played {
            eprintln!("PELTON_STRESS_SEED={seed}: {counts:?}");
            std::panic::resume_unwind(panic);
        }
    });
    println!("stress: seed {seed}, {seconds} s, {counts:?}");
}

/// Threads on one cache, until one of them closes it.
fn run_round(stage: &Stage<'_>, rng: &mut Rng, time: Duration) {
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let rng = Rng(rng.next());
            let thread = std::thread::Builder::new().name(format!("stress-{number}"));
            // Whoever panics ends the round for all.
            let play = move || {
                let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stage.play(rng)));
                stage.watch.ended();
                if let Err(panic) = played {
                    stage.closing.store(true, Ordering::Relaxed);
                    std::panic::resume_unwind(panic);
                }
            };
            thread.spawn_scoped(scope, play).unwrap();
        }
        let end = Instant::now() + time;
        while Instant::now() < end && !stage.closing.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // What is not yet on the disk goes with a cache that is closed under its loads.
        stage.closing.store(true, Ordering::Relaxed);
        stage.watch.now("closes".to_owned());
        let closed = stage.cache.clone().close(Some(Instant::now() + Duration::from_secs(50)));
        if let Err(error) = closed {
            assert!(error.abandoned.is_empty(), "{error}");
        }
        one_more(&stage.counts.closes);
        stage.watch.ended();
    });
}

/// Opens again: what is there is whole, and nothing else is there.
fn look_after(folder: &Path, watch: &Watch, last: &Mutex<BTreeMap<Key, u64>>) {
    watch.now("opens again".to_owned());
    let deadline = Instant::now() + Duration::from_secs(20);
    let cache = loop {
        // A lease or future that was dropped last may still have hold of it.
        let builder = Cache::builder().memory(96 << 20).free_floor(0).scan_threads(SCAN_THREADS).pin(false);
        let spindles = spindles(folder);
        match spindles.iter().fold(builder, |builder, spindle| builder.spindle(spindle, 1 << 30)).open() {
            Ok(cache) => break cache,
            Err(error) => assert!(Instant::now() < deadline, "{}", text(&error)),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    for key in (0..2 * KEYS).map(key) {
        watch.now(format!("looks after {key}"));
        let found = match cache.lease(&key, Want::Latest, None) {
            Ok(lease) => {
                check(&lease).unwrap();
                Some(load_of(lease.fingerprint()))
            }
            Err(LeaseError::NotThere { .. }) => None,
            Err(error) => panic!("{}", text(&error)),
        };
        // What was closed under its load may be gone, with what it has not replaced yet still there.
        match found {
            Some(found) if is_kept(&key) => _ = lock(last).insert(key.clone(), found),
            _ => _ = lock(last).remove(&key),
        }
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Some(left) = left_over(&cache, &spindles(folder)) {
        assert!(Instant::now() < deadline, "{left}");
        std::thread::sleep(Duration::from_millis(10));
    }
    cache.close(None).unwrap();
    watch.ended();
}

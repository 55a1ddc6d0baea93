//! A process that is killed at any moment, over and over.
//!
//! Goal: whatever it was doing, the next one opens the folders at once, finds each slice whole or not at all, all that
//! was promised to be there, and nothing else. Method: this program runs itself as a child that loads, reslices,
//! evicts, flushes and scans at full speed and tells through a pipe what it begins and what was promised; it is killed
//! (SIGKILL) after a time drawn by seed, and the next child goes on in the same folders.
//!
//! `PELTON_KILL_ROUNDS=10000 cargo test --release --test kill` kills so many; `PELTON_KILL_SEED=n` begins elsewhere.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pelton::*;

use support::slices::{Promises, Rng, check, env, left_over, load, load_of, plan};

const CHILD: &str = "PELTON_TEST_KILL";
const SPINDLES: usize = 2;
const THREADS: u64 = 2;
const KEYS_PER_THREAD: u64 = 3;

fn spindles(folder: &Path) -> Vec<PathBuf> {
    (0..SPINDLES).map(|number| folder.join(format!("spindle-{number}"))).collect()
}

fn open(folder: &Path, engine: IoEngine) -> Cache {
    let builder = Cache::builder().memory(128 << 20).engine(engine).scan_threads(1).pin(false).free_floor(0);
    let spindles = spindles(folder);
    spindles.iter().fold(builder, |builder, spindle| builder.spindle(spindle, 1 << 30)).open().unwrap()
}

fn engine_named(name: &str) -> IoEngine {
    if name == "threads" { IoEngine::Threads } else { IoEngine::Auto }
}

/// One line for the parent, written as a whole. The parent may be gone.
fn tell(line: &str) {
    let _ = std::io::stdout().lock().write_all(format!("@{line}\n").as_bytes());
}

/// The child: does not end by itself, unless its parent has gone.
#[test]
fn child_works_until_it_is_killed() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let [engine, seed, first_load, folder] = told.splitn(4, ' ').collect::<Vec<_>>()[..] else { panic!() };
    let (seed, first_load): (u64, u64) = (seed.parse().unwrap(), first_load.parse().unwrap());
    let cache = open(Path::new(folder), engine_named(engine));
    let next_load = AtomicU64::new(first_load);
    let mut events = cache.events();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while let Ok(event) = events.recv(None) {
                if let Event::Durable { key, fingerprint, .. } = event {
                    tell(&format!("done {key} {}", load_of(fingerprint)));
                }
            }
        });
        scope.spawn(|| {
            // The end of the pipe: nobody is there to kill us.
            let _ = std::io::stdin().read_line(&mut String::new());
            std::process::exit(0);
        });
        tell("ready");
        for thread in 0..THREADS {
            let (cache, next_load) = (&cache, &next_load);
            scope.spawn(move || work(cache, next_load, thread, Rng(seed.wrapping_mul(7919) + thread)));
        }
    });
}

/// One thread of the child. Its keys are its own, so what it tells is in order.
fn work(cache: &Cache, next_load: &AtomicU64, thread: u64, mut rng: Rng) {
    loop {
        let key: Key = format!("kill/{thread}@{}#0", 1 + rng.below(KEYS_PER_THREAD)).parse().unwrap();
        match rng.below(10) {
            0..5 => {
                let number = next_load.fetch_add(1, Ordering::Relaxed);
                let plan = plan(&mut rng, number);
                let waits = plan.durability == Durability::Wait;
                tell(&format!("begun {key} {number}"));
                load(cache, &key, number, plan).unwrap();
                if waits {
                    tell(&format!("done {key} {number}"));
                }
            }
            5..7 => {
                tell(&format!("begun {key} -"));
                cache.snap(&key).flush(None).unwrap();
                tell(&format!("done {key} -"));
            }
            7 => _ = cache.snap(&key).evict(),
            8 => {
                let plan = plan(&mut rng, u64::MAX);
                let writer = cache.snap(&key).open_for_writes(plan).unwrap();
                if rng.coin() {
                    drop(writer.wait_for_writes().unwrap());
                }
            }
            _ => match cache.lease(&key, Want::Latest, None) {
                Ok(lease) => check(&lease).unwrap(),
                Err(LeaseError::NotThere { .. }) => {}
                Err(error) => panic!("{error:?}"),
            },
        }
    }
}

/// Runs a child for a while, kills it, and answers what it has told.
fn run_child(folder: &Path, engine: &str, seed: u64, first_load: u64, lives: Duration) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_works_until_it_is_killed", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{engine} {seed} {first_load} {}", folder.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _stdin = child.stdin.take();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut lines = Vec::new();
        let mut line = String::new();
        // A line without its end was cut by the kill.
        while out.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
            lines.extend(line.trim_end().split_once('@').map(|(_, told)| told.to_owned()));
            line.clear();
        }
        lines
    });
    std::thread::sleep(lives);
    assert_eq!(child.try_wait().unwrap(), None, "the child (seed {seed}) has ended by itself");
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

fn hear(promises: &mut Promises, line: &str) -> Option<u64> {
    let [what, key, there] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    let (key, there): (Key, _) = (key.parse().unwrap(), there.parse().ok());
    match what {
        "begun" => promises.begun(&key, there),
        _ => promises.done(&key, there),
    }
    there
}

#[test]
fn a_process_killed_at_any_moment_leaves_what_it_promised() {
    let (rounds, seed) = (env("PELTON_KILL_ROUNDS").unwrap_or(120), env("PELTON_KILL_SEED").unwrap_or(1));
    let begun = Instant::now();
    let (mut found_all, mut loads) = (0, 0);
    for engine in ["auto", "threads"] {
        let folder = tempfile::tempdir().unwrap();
        let mut rng = Rng(seed);
        let mut promises = Promises::default();
        let mut next_load = 1;
        for round in 0..rounds / 2 {
            let lives = Duration::from_micros(5_000 + rng.below(250_000));
            let lines = run_child(folder.path(), engine, rng.next(), next_load, lives);
            let heard = lines.iter().filter_map(|line| hear(&mut promises, line)).max();
            loads += heard.map_or(0, |last| last + 1 - next_load);
            next_load = heard.unwrap_or(0).max(next_load) + 100; // Some may not have been told.
            let place = || format!("PELTON_KILL_SEED={seed}, {engine}, round {round}");
            let cache = open(folder.path(), engine_named(engine));
            let mut keys = promises.keys();
            keys.extend(cache.search(&"*/*".parse().unwrap()).into_iter().map(|status| status.key));
            for key in keys {
                let there = match cache.lease(&key, Want::Latest, None) {
                    Err(LeaseError::NotThere { .. }) => None,
                    lease => {
                        let lease = lease.unwrap_or_else(|error| panic!("{}: {error:?}", place()));
                        check(&lease).unwrap_or_else(|error| panic!("{}: {error:?}", place()));
                        found_all += 1;
                        Some(load_of(lease.fingerprint()))
                    }
                };
                let may = promises.of(&key);
                assert!(promises.allow(&key, there), "{}: {key}: found {there:?}, may be {may:?}", place());
                promises.settle(&key, there);
            }
            let deadline = Instant::now() + Duration::from_secs(5);
            while let Some(left) = left_over(&cache, &spindles(folder.path())) {
                assert!(Instant::now() < deadline, "{}: {left}", place());
                std::thread::sleep(Duration::from_millis(10));
            }
            cache.close(None).unwrap();
        }
    }
    println!("kill: {rounds} rounds, {loads} loads, {found_all} slices found whole, {:?}", begun.elapsed());
}

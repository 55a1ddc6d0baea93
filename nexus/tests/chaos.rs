//! A wire that delays, cuts, damages, reorders and swallows what goes over it.
//!
//! Goal: every load ends whole or with an error, in bounded time, and nothing is left of it: no memory, no stream, no
//! file. Method: a proxy between source and cache with one fault in each round, by a seed. `PELTON_SEED` and
//! `PELTON_ROUNDS` change what is run.
#![allow(missing_docs, reason = "a test's name is its claim")]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/feed.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pelton_nexus::Codec;
use pelton_nexus::feed::*;
use pelton_region_format::KeyPattern;
use pelton_worker::{Operation, OperationOptions, Selection};
use proxy::{FAULTS, Plan, Proxy};
use support::*;

/// What is open, by what it is: how many of each.
fn open_files() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        // One that is closed meanwhile is none.
        let Ok(link) = std::fs::read_link(entry.path()) else { continue };
        let link = link.to_string_lossy().into_owned();
        let kind = if link.starts_with("socket:") { "socket".to_owned() } else { link };
        *found.entry(kind).or_default() += 1;
    }
    found
}

/// The threads there are, by name: how many of each.
fn threads() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(name) = std::fs::read_to_string(entry.path().join("comm")) else { continue };
        *found.entry(name.trim_end().to_owned()).or_default() += 1;
    }
    found
}

/// What there is more of than before.
fn more(now: BTreeMap<String, usize>, before: &BTreeMap<String, usize>) -> BTreeMap<String, usize> {
    let is_more = |(name, count): &(String, usize)| *count > before.get(name).copied().unwrap_or(0);
    now.into_iter().filter(is_more).collect()
}

#[test]
fn every_load_over_a_bad_wire_ends_whole_or_with_an_error_and_leaves_nothing() {
    let mut random = Random::new(seed(5));
    let rounds = std::env::var("PELTON_ROUNDS").map_or(200, |text| text.parse().unwrap());
    // What blocking threads the runtime has made go soon, so that what is left can be counted.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_keep_alive(Duration::from_millis(100))
        .enable_all()
        .build()
        .unwrap();
    let mut blobs: Vec<Vec<u8>> = (0..200).map(|_| random.noise(1000)).collect();
    blobs.extend((0..200).map(|_| vec![7; 1000]));
    blobs.push(random.noise(1 << 21));
    let expected = sorted(&blobs);
    let (keeps, forgets) = (Told::replays(&blobs), Told::sends(&blobs));
    let source = Told::new(move |request| match request.key.as_bytes().last().is_some_and(|c| c % 2 == 0) {
        true => keeps.open(request),
        false => forgets.open(request),
    });
    let mut options = options();
    options.timing.heartbeat_every = Duration::from_millis(20);
    options.timing.silence_max = Duration::from_millis(250);
    options.timing.stall_max = Duration::from_millis(500);
    options.packing.target_bytes = 64 << 10;
    let mut of_source = options.clone();
    of_source.limits = pelton_nexus::NodeLimits::default();
    let served = Served::new(&runtime, FeedService::of_source(source).options(of_source.clone()));
    let proxy = Proxy::new(&runtime, served.address.clone());
    let to_proxy = dial(&proxy.address).connect_wait_max(Duration::from_millis(500));
    let make = |codec: Codec, lane: bool| {
        let mut options = options.clone();
        options.profile.codecs = vec![codec];
        options.profile.lane = lane;
        let puller = Puller::new(runtime.handle().clone()).options(options);
        let puller = puller.retries(Retries { count_max: 2, ..quick() });
        Pulling::by(puller, vec![FeedFrom::new(to_proxy.clone())], |_| {})
    };
    let caches = [make(Codec::None, false), make(Codec::Lz4, false), make(Codec::None, true)];
    let quiet = || {
        settles(|| {
            let left: Vec<u64> = caches.iter().map(|cache| cache.cache.memory().unwrap().buffers).collect();
            let (here, there) = (options.limits.in_flight_bytes(), of_source.limits.streams());
            match left.iter().sum::<u64>() + here + there {
                0 => Ok(()),
                _ => Err(format!("buffers {left:?}, {here} in flight, {there} streams")),
            }
        });
    };
    let clear = || {
        for pulling in &caches {
            for status in pulling.cache.search(&"test/feed@*#*".parse().unwrap()) {
                let _ = pulling.cache.snap(&status.key).flush(None);
            }
        }
    };
    for pulling in &caches {
        assert!(pulling.blobs(9999) == expected);
        // A cache opens its access log when it first saves it, and starts threads when it first warms a slice, which may be
        // at any time: have it done now.
        pulling.cache.sync(None).unwrap();
        for operation in
            [Operation::Pin, Operation::Unpin, Operation::Evict { keep_cache: true }, Operation::Warm]
        {
            pulling.cache.operate(&Selection::new(KeyPattern::ALL), operation, &OperationOptions::default());
        }
    }
    quiet();
    clear();
    // Those of the caches stay; the ones of this first round's streams are going, and none of them may count as before.
    let mut before = (open_files(), threads());
    let mut agreed = 0;
    let give_up = Instant::now() + Duration::from_secs(20);
    while agreed < 5 {
        assert!(Instant::now() < give_up, "it does not come to rest: {before:#?}");
        std::thread::sleep(Duration::from_millis(100));
        let now = (open_files(), threads());
        agreed = if now == before { agreed + 1 } else { 0 };
        before = now;
    }
    let (files_before, threads_before) = before;

    let (mut whole, mut broken) = (0, 0);
    for round in 0..rounds {
        let plan = Plan {
            fault: FAULTS[random.below(6) as usize],
            at: [40, 400, 4000, 300_000, 2_400_000][random.below(5) as usize] + random.below(300),
            to_source: random.below(3) == 0,
            connection: random.below(2),
        };
        let pulling = &caches[random.below(3) as usize];
        proxy.begin(plan);
        let begun = Instant::now();
        match pulling.lease(round) {
            Ok(lease) => {
                assert!(scan(&lease) == expected, "round {round}, {plan:?}: other blobs");
                whole += 1;
            }
            Err(error) => {
                let text = told(&error);
                let named =
                    ["the feed of", "its source meant to send"].iter().any(|part| text.contains(part));
                assert!(named, "round {round}, {plan:?}: {text}");
                broken += 1;
            }
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(15), "round {round}, {plan:?}: {took:?}");
    }
    println!("{whole} whole, {broken} broken");
    assert!(whole > rounds / 4, "most faults are ones that a second try gets over");
    proxy.begin(Plan::NONE);
    quiet();
    clear();
    settles(|| {
        let (files, threads) = (more(open_files(), &files_before), more(threads(), &threads_before));
        match files.is_empty() && threads.is_empty() {
            true => Ok(()),
            false => Err(format!("there are more than before: {files:#?} {threads:#?}")),
        }
    });
}

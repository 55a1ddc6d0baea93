//! The tender over real caches in folders of their own. Time is an argument: nothing here waits for it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pelton_region_format::{Fingerprint, Key, KeyPattern};

use super::run::tend;
use super::*;
use crate::cache::CacheCore;
use crate::scan::patience::Patience;
use crate::slice::parcel::ParcelBuilder;
use crate::slice::plan::{Durability, LoadPlan, WritePath};
use crate::units::MIB;
use crate::{
    Cache, CacheBuilder, Event, Events, IoEngine, LoadError, RefusalReason, Residence, SnapState, Want,
};

mod budgets;
mod loads;
mod many;

const MINUTE: u64 = 60 * 1000;
const HOUR: u64 = 60 * MINUTE;

/// A cache whose thread sleeps: tests say when it looks, and what time it is then.
fn builder(folder: &Path) -> CacheBuilder {
    let builder = Cache::builder().spindle(folder.join("spindle-0"), 64 * MIB).free_floor(0);
    builder
        .memory(128 * MIB)
        .scan_threads(2)
        .residence(Residence::Image)
        .tender_every(Duration::from_secs(3600))
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn plan(blobs: usize) -> LoadPlan {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([blobs as u8; 32]));
    (plan.regions, plan.durability) = (Some(1), Durability::Wait);
    plan.expected_bytes = Some((blobs as u64 + 1) * MIB);
    plan
}

/// Loads a slice with so many blobs of a MiB.
fn load_with(cache: &Cache, slice: &str, blobs: usize, plan: LoadPlan) -> Result<(), LoadError> {
    let writer = cache.snap(&key(slice)).open_for_writes(plan)?;
    for number in 0..blobs {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number as u8; MIB as usize]).unwrap();
        writer.queue_parcel(parcel.finish())?;
    }
    writer.wait_for_writes()?.close_for_writes()
}

fn load(cache: &Cache, slice: &str, blobs: usize) {
    load_with(cache, slice, blobs, plan(blobs)).unwrap();
}

fn ask(cache: &Cache, slice: &str) {
    drop(cache.lease(&key(slice), Want::Latest, None).unwrap());
}

/// A round with nothing stalled, so many milliseconds after the cache was opened.
fn tend_at(cache: &Cache, ms: u64) -> TenderSums {
    tend_under(cache, ms, None)
}

fn tend_under(cache: &Cache, ms: u64, stalled_percent: Option<f32>) -> TenderSums {
    tend_at_moment(cache, cache.core_for_tests().epoch() + ms, stalled_percent)
}

fn tend_at_moment(cache: &Cache, now_ms: u64, stalled_percent: Option<f32>) -> TenderSums {
    let core: &Arc<CacheCore> = cache.core_for_tests();
    let patience = Patience::until(Some(Instant::now() + Duration::from_secs(30)));
    tend(core, now_ms, stalled_percent, &patience);
    cache.tender().last.expect("that was one").did
}

/// Rounds until it is so. A change of a budget wakes the cache's own thread, too: which of the two does it is no matter.
fn until(cache: &Cache, done: impl Fn(&Cache) -> bool) {
    let give_up = Instant::now() + Duration::from_secs(30);
    while !done(cache) {
        assert!(Instant::now() < give_up, "{:?}", cache.tender());
        tend_at(cache, 1000);
    }
}

fn sums(evicted: u64, flushed: u64, erased: u64) -> TenderSums {
    TenderSums { evicted, flushed, erased }
}

fn states(cache: &Cache, slices: &[&str]) -> Vec<SnapState> {
    slices.iter().map(|slice| cache.snap(&key(slice)).status().state).collect()
}

fn told(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv()).collect()
}

#[test]
fn what_nobody_asks_for_is_evicted_then_flushed_then_erased_and_it_is_told_why() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    load(&cache, "a/idle@1#0", 2);
    ask(&cache, "a/idle@1#0");
    let mut events = cache.events();
    let state = |cache: &Cache| states(cache, &["a/idle@1#0"])[0];
    assert_eq!(tend_at(&cache, 14 * MINUTE), sums(0, 0, 0));
    assert_eq!(state(&cache), SnapState::Hot);
    assert_eq!(tend_at(&cache, 16 * MINUTE), sums(1, 0, 0));
    assert_eq!(state(&cache), SnapState::Warm);
    assert_eq!(tend_at(&cache, 2 * HOUR + 14 * MINUTE), sums(0, 0, 0));
    assert_eq!(tend_at(&cache, 2 * HOUR + 16 * MINUTE), sums(0, 1, 0));
    assert_eq!(cache.spindles()[0].used, 0);
    assert_eq!(tend_at(&cache, 2 * HOUR + 44 * MINUTE), sums(0, 0, 0));
    assert_eq!(cache.core_for_tests().entries_now().len(), 1, "its name is known");
    assert_eq!(tend_at(&cache, 2 * HOUR + 46 * MINUTE), sums(0, 0, 1));
    assert_eq!(cache.core_for_tests().entries_now().len(), 0);
    let reasons: Vec<(&str, Option<Reason>)> = told(&mut events)
        .into_iter()
        .filter_map(|event| match event {
            Event::Evicted { reason, .. } => Some(("evicted", reason)),
            Event::Flushed { reason, .. } => Some(("flushed", reason)),
            Event::Erased { reason, .. } => Some(("erased", reason)),
            _ => None,
        })
        .collect();
    assert_eq!(reasons.iter().map(|(what, _)| *what).collect::<Vec<_>>(), ["evicted", "flushed", "erased"]);
    assert!(reasons.iter().all(|(_, reason)| matches!(reason, Some(Reason::Idle { .. }))), "{reasons:?}");
    assert_eq!(cache.tender().sums, sums(1, 1, 1));
}

/// Goal: what somebody has just brought is not idle, however old its last query is. Method: ask, and after hours load
/// again; the clock of the round runs ahead of the cache's by those hours.
#[test]
fn time_runs_anew_for_what_is_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    load(&cache, "a/b@1#0", 1);
    let entry = cache.core_for_tests().entry_for_tests(&key("a/b@1#0"));
    let before = entry.usage().arrived_ms;
    while entry.now().as_millis() as u64 <= before {
        std::hint::spin_loop();
    }
    load(&cache, "a/b@1#0", 2);
    let usage = entry.usage();
    assert!(usage.arrived_ms > before, "{usage:?}");
    assert_eq!(usage.history.queries(), 0, "a load is no query");
    let tend = |ms: u64| tend_at_moment(&cache, usage.arrived_ms + ms, None);
    assert_eq!(tend(15 * MINUTE - 1), sums(0, 0, 0));
    assert_eq!(tend(15 * MINUTE), sums(1, 0, 0));
}

/// Goal: a restart makes nothing younger. Method: ask, wait until the clock has moved on, open again, and look to the
/// millisecond when the files go.
#[test]
fn time_goes_on_over_a_restart() {
    for engine in [IoEngine::Threads, IoEngine::Auto] {
        let folder = tempfile::tempdir().unwrap();
        let cache = builder(folder.path()).engine(engine).open().unwrap();
        load(&cache, "a/b@1#0", 1);
        ask(&cache, "a/b@1#0");
        let entry = cache.core_for_tests().entry_for_tests(&key("a/b@1#0"));
        let queried_at_ms = entry.access().queried_at_ms.unwrap();
        while (entry.now().as_millis() as u64) < queried_at_ms + 20 {
            std::thread::yield_now();
        }
        drop(entry);
        cache.close(None).unwrap();
        let cache = builder(folder.path()).engine(engine).open().unwrap();
        assert_eq!(states(&cache, &["a/b@1#0"]), [SnapState::Warm]);
        let idle = cache.snap(&key("a/b@1#0")).status().idle.unwrap();
        assert!(idle >= Duration::from_millis(20), "{idle:?}");
        let flush = 2 * HOUR + 15 * MINUTE;
        assert_eq!(tend_at_moment(&cache, queried_at_ms + flush - 1, None), sums(0, 0, 0));
        assert_eq!(tend_at_moment(&cache, queried_at_ms + flush, None), sums(0, 1, 0));
    }
}

#[test]
fn what_is_leased_pinned_or_being_loaded_stays_however_idle_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    let slices = ["a/leased@1#0", "a/pinned@1#0", "a/loading@1#0", "a/idle@1#0"];
    slices.iter().for_each(|slice| load(&cache, slice, 1));
    let lease = cache.lease(&key(slices[0]), Want::Latest, None).unwrap();
    cache.snap(&key(slices[1])).pin();
    let writer = cache.snap(&key(slices[2])).open_for_writes(plan(1)).unwrap();
    assert_eq!(tend_at(&cache, 16 * MINUTE), sums(1, 0, 0));
    assert_eq!(tend_at(&cache, 100 * HOUR), sums(0, 1, 0));
    let [hot, cold] = [SnapState::Hot, SnapState::Cold];
    assert_eq!(states(&cache, &slices), [hot, hot, hot, cold]);
    drop((lease, writer));
    cache.snap(&key(slices[1])).unpin();
    assert_eq!(tend_at(&cache, 16 * MINUTE), sums(3, 0, 0));
}

/// A lease that reads from the disk needs the files.
#[test]
fn files_that_a_lease_streams_from_stay() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    load_with(&cache, "a/b@1#0", 1, LoadPlan { write_path: WritePath::Direct, ..plan(1) }).unwrap();
    let options = crate::LeaseOptions { reading: crate::Reading::Stream, ..Default::default() };
    let lease = cache.lease_with(&key("a/b@1#0"), &options).unwrap();
    assert_eq!(tend_at(&cache, 100 * HOUR), sums(0, 0, 0));
    drop(lease);
    assert_eq!(tend_at(&cache, 100 * HOUR), sums(0, 1, 0));
}

#[test]
fn each_view_has_ttls_of_its_own_and_they_may_change() {
    let folder = tempfile::tempdir().unwrap();
    let short = Ttls { evict_ms: MINUTE, ..Ttls::default() };
    let cache = builder(folder.path()).ttls("a/*".parse().unwrap(), short).open().unwrap();
    let slices = ["a/short@1#0", "b/default@1#0"];
    slices.iter().for_each(|slice| load(&cache, slice, 1));
    assert_eq!(tend_at(&cache, 2 * MINUTE), sums(1, 0, 0));
    assert_eq!(states(&cache, &slices), [SnapState::Warm, SnapState::Hot]);
    cache.set_ttls(&KeyPattern::ALL, Ttls::NEVER).unwrap();
    assert_eq!(tend_at(&cache, u64::MAX / 2), sums(0, 0, 0));
    let refused = cache.set_ttls(&KeyPattern::ALL, Ttls { evict_ms: 1, ..short }).unwrap_err();
    assert_eq!(refused.to_string(), "evict_after of view */*@*#* is 1 ms, allowed is 1 s to 3650 days");
}

/// The decisions are the embedder's then: not even a load pushes anything out.
#[test]
fn switched_off_nothing_goes_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).tender(false).open().unwrap();
    load(&cache, "a/b@1#0", 30);
    assert!(!cache.tender().running);
    let refused = load_with(&cache, "a/c@1#0", 40, plan(40)).unwrap_err();
    let LoadError::NoSpindle { refusals, .. } = refused else { panic!("{refused}") };
    assert!(matches!(refusals[0].reason, RefusalReason::Full(_)), "{:?}", refusals[0]);
    assert_eq!(states(&cache, &["a/b@1#0"]), [SnapState::Hot]);
}

/// Goal: the thread itself looks, without being told. Method: wait for its event.
#[test]
fn the_thread_looks_by_itself_and_ends_with_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let short = Ttls { evict_ms: 1000, ..Ttls::default() };
    let cache = builder(folder.path()).tender_every(Duration::from_millis(10)).ttls(KeyPattern::ALL, short);
    let cache = cache.open().unwrap();
    assert!(cache.tender().running);
    let mut events = cache.events();
    load(&cache, "a/b@1#0", 1);
    let give_up = Some(Instant::now() + Duration::from_secs(30));
    while !matches!(events.recv(give_up).unwrap(), Event::Evicted { reason: Some(Reason::Idle { .. }), .. }) {
    }
    drop(cache);
    builder(folder.path()).open().expect("nothing has hold of the folder any more");
}

#[test]
fn pressure_is_told_once_and_gives_some_memory_back() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    let slices: Vec<String> = (0..8).map(|n| format!("a/b{n}@1#0")).collect();
    slices.iter().for_each(|slice| load(&cache, slice, 2));
    let mut events = cache.events();
    assert_eq!(tend_under(&cache, 1000, Some(9.9)), sums(0, 0, 0));
    assert_eq!(tend_under(&cache, 1000, Some(10.5)).evicted, 1, "an eighth of eight alike");
    assert!(tend_under(&cache, 1000, Some(11.0)).evicted > 0, "and again");
    tend_under(&cache, 1000, None);
    let pressure: Vec<Event> =
        told(&mut events).into_iter().filter(|event| matches!(event, Event::Pressure { .. })).collect();
    let [Event::Pressure { percent: 10, high: true, .. }, Event::Pressure { percent: 0, high: false, .. }] =
        pressure[..]
    else {
        panic!("{pressure:?}")
    };
}

//! Loads and warmings that need room.

use std::sync::Barrier;

use super::*;
use crate::spindle::engine::sim::{Failure, SimDisk, When};
use crate::spindle::health::HealthLimits;

#[test]
fn a_load_gets_the_disk_it_needs_and_what_was_worth_least_went() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).disk_marks(MarksPercent { low: 100, high: 100 }).open().unwrap();
    let slices = ["a/used@1#0", "a/unused@1#0", "a/pinned@1#0"];
    slices.iter().for_each(|slice| load(&cache, slice, 18));
    cache.snap(&key(slices[2])).pin();
    for _ in 0..3 {
        ask(&cache, slices[0]);
    }
    let mut events = cache.events();
    load(&cache, "a/new@1#0", 18);
    let [hot, cold] = [SnapState::Hot, SnapState::Cold];
    assert_eq!(states(&cache, &slices), [hot, cold, hot]);
    assert!(told(&mut events).iter().any(|event| {
        matches!(event, Event::Flushed { key, reason: Some(Reason::Room), .. } if key.view() == "unused")
    }));
    assert_eq!(cache.tender().sums, sums(0, 1, 0));
}

#[test]
fn a_load_that_can_not_fit_is_refused_with_the_numbers_and_nothing_goes_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    let slices = ["a/free@1#0", "a/pinned@1#0"];
    slices.iter().for_each(|slice| load(&cache, slice, 20));
    cache.snap(&key(slices[1])).pin();
    let refused = load_with(&cache, "a/new@1#0", 50, plan(50)).unwrap_err();
    let LoadError::NoSpindle { refusals, .. } = &refused else { panic!("{refused}") };
    let RefusalReason::NoRoom(no_room) = &refusals[0].reason else { panic!("{refused}") };
    assert_eq!((no_room.place, no_room.capacity), (Place::Spindle(0), 64 * MIB));
    let spindle = &cache.spindles()[0];
    assert_eq!(no_room.free, spindle.free);
    assert!((20 * MIB..21 * MIB).contains(&no_room.freeable), "{no_room}");
    assert_eq!(states(&cache, &slices), [SnapState::Hot, SnapState::Hot]);
    assert_eq!(cache.tender().sums, sums(0, 0, 0));
}

#[test]
fn a_warming_gets_the_memory_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    let slices: Vec<String> = (0..3).map(|n| format!("a/b{n}@1#0")).collect();
    for slice in &slices {
        load_with(&cache, slice, 18, LoadPlan { write_path: WritePath::Direct, ..plan(18) }).unwrap();
    }
    let fixed = cache.memory_max() - cache.tender().memory.marks.capacity();
    cache.set_memory(fixed + 40 * MIB).unwrap();
    let lease = |slice: &str| cache.lease(&key(slice), Want::Latest, None).unwrap();
    let leases: Vec<_> = slices[..2].iter().map(|slice| lease(slice)).collect();
    lease_soon(&cache, &slices[2]).expect_err("both are leased");
    assert_eq!(cache.tender().sums, sums(0, 0, 0));
    drop(leases);
    drop(lease(&slices[2]));
    assert_eq!(cache.tender().sums, sums(1, 0, 0));
}

fn lease_soon(cache: &Cache, slice: &str) -> Result<crate::Lease, crate::LeaseError> {
    cache.lease(&key(slice), Want::Latest, Some(Instant::now() + Duration::from_millis(500)))
}

/// Goal: who waits for memory gets it when a lease ends, though nobody evicts. Method: the tender's thread looks often
/// while somebody waits.
#[test]
fn who_waits_for_memory_gets_it_when_a_lease_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).tender_every(Duration::from_millis(20)).open().unwrap();
    let slices = ["a/b0@1#0", "a/b1@1#0"];
    for slice in slices {
        load_with(&cache, slice, 18, LoadPlan { write_path: WritePath::Direct, ..plan(18) }).unwrap();
    }
    let fixed = cache.memory_max() - cache.tender().memory.marks.capacity();
    cache.set_memory(fixed + 34 * MIB).unwrap();
    let lease = cache.lease(&key(slices[0]), Want::Latest, None).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let deadline = Some(Instant::now() + Duration::from_secs(30));
            cache.lease(&key(slices[1]), Want::Latest, deadline).map(drop)
        });
        let give_up = Instant::now() + Duration::from_secs(30);
        while cache.core_for_tests().budget.counts().residence_waited_for == 0 {
            assert!(Instant::now() < give_up, "it does not wait");
            std::thread::yield_now();
        }
        drop(lease);
        waits.join().unwrap().unwrap();
    });
    assert_eq!(states(&cache, &slices), [SnapState::Warm, SnapState::Hot]);
}

#[test]
fn an_image_gets_the_memory_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    let fixed = cache.memory_max() - cache.tender().memory.marks.capacity();
    cache.set_memory(fixed + 40 * MIB).unwrap();
    let slices = ["a/b0@1#0", "a/b1@1#0", "a/b2@1#0"];
    for slice in slices {
        load_with(&cache, slice, 15, LoadPlan { write_path: WritePath::Image, ..plan(15) }).unwrap();
    }
    let [hot, warm] = [SnapState::Hot, SnapState::Warm];
    assert_eq!(states(&cache, &slices), [warm, hot, hot]);
}

/// Goal: loads that race for the last room all end, and each either has its room or is refused. Method: more of them at
/// once than fit, over and over.
#[test]
fn loads_that_race_for_the_last_room_do_not_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).disk_marks(MarksPercent { low: 100, high: 100 }).open().unwrap();
    load(&cache, "a/old@1#0", 30);
    const LOADS: usize = 4;
    for round in 0..5 {
        let at_once = Barrier::new(LOADS);
        let race = |number: usize| {
            let slice = format!("a/b{number}@{round}#0", round = round + 1);
            at_once.wait();
            let loaded = load_with(&cache, &slice, 20, plan(20));
            match loaded {
                Ok(()) => true,
                Err(LoadError::NoSpindle { .. }) => false,
                Err(other) => panic!("{other}"),
            }
        };
        let loaded = std::thread::scope(|scope| {
            let race = &race;
            let racers: Vec<_> = (0..LOADS).map(|number| scope.spawn(move || race(number))).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).filter(|won| *won).count()
        });
        assert!((1..=LOADS).contains(&loaded), "round {round}: {loaded}");
        let spindle = &cache.spindles()[0];
        assert!(spindle.used + spindle.reserved <= spindle.capacity, "{spindle:?}");
    }
}

/// Goal: what one load leaves over of the room that was made for it does for the next. Method: two loads at once on a disk
/// that is full, each of less than half of the one slice that goes; removing it takes a while.
#[test]
fn loads_at_the_same_time_clear_no_more_than_they_need() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SimDisk::healthy(folder.path().join("spindle-0"), 7).in_real_time();
    let builder = builder(folder.path()).disk_marks(MarksPercent { low: 100, high: 100 });
    let cache = builder.open_on(vec![disk.clone()], HealthLimits::default()).unwrap();
    let slices = ["a/b0@1#0", "a/b1@1#0", "a/b2@1#0"];
    slices.iter().for_each(|slice| load(&cache, slice, 19));
    let _ = disk.with_fault(When::Every("unlink"), Failure::Delay(Duration::from_millis(100)));
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        for slice in ["a/c0@1#0", "a/c1@1#0"] {
            let (cache, barrier) = (&cache, &barrier);
            scope.spawn(move || {
                barrier.wait();
                load(cache, slice, 8);
            });
        }
    });
    assert_eq!(cache.tender().sums, sums(0, 1, 0));
}

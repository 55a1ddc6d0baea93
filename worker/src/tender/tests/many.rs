//! A thousand snaps at once.

use super::*;

const SNAPS: usize = 1000;

/// Goal: what is there fits its budgets and nothing that is leased goes, whatever comes and in whatever order. Method: a
/// thousand tiny snaps are loaded and asked for by a seed, with rounds between them, while a few stay leased.
#[test]
fn a_thousand_snaps_are_tended() {
    let seed: u64 = std::env::var("PELTON_SEED").map_or(7, |seed| seed.parse().expect("a number"));
    println!("PELTON_SEED={seed}");
    let mut state = seed;
    let mut below = |count: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % count
    };
    let folder = tempfile::tempdir().unwrap();
    let marks = MarksPercent { low: 30, high: 40 };
    let cache = builder(folder.path()).disk_marks(marks).memory_marks(marks).open().unwrap();
    let slice = |number: usize| format!("a/b{}@{}#{}", number % 10, 1 + number / 500, number / 10 % 50);
    let mut leases = Vec::new();
    for number in 0..SNAPS {
        let mut plan = plan(0);
        plan.durability = Durability::Background;
        let writer = cache.snap(&key(&slice(number))).open_for_writes(plan).unwrap();
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number as u8; 1 + below(60_000)]).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
        writer.wait_for_writes().unwrap().close_for_writes().unwrap();
        if number % 250 == 0 {
            leases.push(cache.lease(&key(&slice(number)), Want::Latest, None).unwrap());
        }
        // It may have gone: then there is nobody to ask.
        let _ = cache.lease(&key(&slice(below(number + 1))), Want::Latest, Some(Instant::now()));
        if number % 50 == 49 {
            cache.sync(None).unwrap();
            tend_at(&cache, 1000 + number as u64);
        }
    }
    cache.core_for_tests().warmth.reaper.settle();
    let status = cache.tender();
    println!("{status:?}");
    assert!(status.memory.used <= status.memory.marks.high(), "{:?}", status.memory);
    assert!(status.spindles[0].used <= status.spindles[0].marks.high(), "{:?}", status.spindles);
    assert!(status.sums.evicted + status.sums.flushed > 0, "there was something to do");
    for lease in &leases {
        assert_eq!(cache.snap(lease.key()).status().state, SnapState::Hot);
    }
    drop(leases);
    // A warming that its asker did not wait for may still be under way: what it brings goes in a later round.
    let give_up = Instant::now() + Duration::from_secs(30);
    for round in 1.. {
        tend_at(&cache, round * 100 * HOUR);
        let left = cache.core_for_tests().entries_now();
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < give_up, "{} are left, {:?}", left.len(), left[0].key);
    }
    assert_eq!(cache.spindles()[0].used, 0);
}

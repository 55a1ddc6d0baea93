//! Marks, and budgets that change while the cache is open.

use super::*;

#[test]
fn a_spindle_above_its_high_mark_is_flushed_to_the_low_one_and_the_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let builder = builder(folder.path()).spindle(folder.path().join("spindle-1"), 256 * MIB);
    let cache = builder.disk_marks(MarksPercent { low: 40, high: 60 }).open().unwrap();
    // Two regions each, so half of every slice lies on each spindle.
    let slices: Vec<String> = (0..5).map(|n| format!("a/b{n}@1#0")).collect();
    for (slice, written) in slices.iter().zip([14, 14, 14, 14, 14]) {
        let mut plan = plan(written);
        (plan.regions, plan.write_path) = (Some(2), WritePath::Direct);
        load_with(&cache, slice, written, plan).unwrap();
    }
    // 5 x 7 MiB of 64 are below 60 percent.
    assert_eq!(tend_at(&cache, 1000), sums(0, 0, 0));
    let mut plan = plan(14);
    (plan.regions, plan.write_path) = (Some(2), WritePath::Direct);
    load_with(&cache, "a/b5@1#0", 14, plan).unwrap();
    // 6 x 7 are above; 3 x 7 are the most that is below 40.
    assert_eq!(tend_at(&cache, 1000), sums(0, 3, 0));
    let status = cache.tender();
    for level in &status.spindles {
        assert!(level.used <= level.marks.low(), "{level:?}");
    }
    assert_eq!(status.last.unwrap().spindles_short, [0, 0]);
}

#[test]
fn memory_above_its_high_mark_is_evicted_to_the_low_one_the_older_generation_first() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).memory_marks(MarksPercent { low: 25, high: 40 }).open().unwrap();
    // The old generation is asked for again and again, and still goes first: there is a newer one.
    let slices = ["a/b@1#0", "a/b@2#0", "a/other@1#0"];
    for slice in slices {
        load(&cache, slice, 5);
    }
    for _ in 0..5 {
        ask(&cache, "a/b@1#0");
    }
    assert_eq!(tend_at(&cache, 1000), sums(0, 0, 0));
    load(&cache, "a/more@1#0", 12);
    let before = cache.tender().memory;
    assert!(before.used > before.marks.high(), "{before:?}");
    let did = tend_at(&cache, 1000);
    assert!(did.evicted >= 2 && did.flushed == 0, "{did:?}");
    assert_eq!(states(&cache, &["a/b@1#0"]), [SnapState::Warm]);
    cache.core_for_tests().warmth.reaper.settle();
    let after = cache.tender().memory;
    assert!(after.used <= after.marks.low(), "{after:?}");
}

#[test]
fn where_nothing_may_go_the_cache_stays_above_its_mark_and_says_by_how_much() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).memory_marks(MarksPercent { low: 1, high: 2 }).open().unwrap();
    load(&cache, "a/b@1#0", 5);
    let lease = cache.lease(&key("a/b@1#0"), Want::Latest, None).unwrap();
    assert_eq!(tend_at(&cache, 1000), sums(0, 0, 0));
    let memory = cache.tender().memory;
    assert_eq!(cache.tender().last.unwrap().memory_short, memory.used - memory.marks.low());
    drop(lease);
    assert_eq!(tend_at(&cache, 1000), sums(1, 0, 0));
}

/// Goal: a budget holds from the next decision on, both ways. Method: with less memory what is there goes and a warming
/// that can't fit is refused; with more it comes.
#[test]
fn memory_may_become_less_and_more_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    let slices: Vec<String> = (0..4).map(|n| format!("a/b{n}@1#0")).collect();
    slices.iter().for_each(|slice| load(&cache, slice, 12));
    let max = cache.memory_max();
    let fixed = max - cache.tender().memory.marks.capacity();
    cache.set_memory(fixed + 40 * MIB).unwrap();
    assert_eq!(cache.memory_max(), fixed + 40 * MIB);
    until(&cache, |cache| {
        let memory = cache.tender().memory;
        memory.used <= memory.marks.low()
    });
    let hot = |cache: &Cache| {
        slices.iter().filter(|slice| cache.snap(&key(slice)).status().state == SnapState::Hot).count()
    };
    assert!(hot(&cache) <= 2, "each takes four pieces of 4 MiB, and 32 MiB are the low mark");
    cache.set_memory(max).unwrap();
    slices.iter().for_each(|slice| ask(&cache, slice));
    assert_eq!(hot(&cache), 4);

    let refused = cache.set_memory(MIB).unwrap_err();
    assert_eq!((refused.name.as_str(), refused.value.as_str()), ("memory", "1 MiB"));
    assert!(cache.set_memory(u64::MAX).is_err());
    assert_eq!(cache.memory_max(), max);
}

#[test]
fn a_spindles_capacity_may_become_less_and_more_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    let path = folder.path().join("spindle-0");
    let slices: Vec<String> = (0..4).map(|n| format!("a/b{n}@1#0")).collect();
    slices.iter().for_each(|slice| load(&cache, slice, 10));
    cache.set_spindle_capacity(&path, 30 * MIB).unwrap();
    until(&cache, |cache| cache.spindles()[0].used <= 24 * MIB);
    assert_eq!(cache.spindles()[0].capacity, 30 * MIB);
    cache.set_spindle_capacity(&path, 128 * MIB).unwrap();
    for n in 10..16 {
        load(&cache, &format!("a/b{n}@1#0"), 10);
    }
    let refused = cache.set_spindle_capacity(&path, MIB).unwrap_err().to_string();
    assert!(refused.ends_with("is 1 MiB, allowed is 16 MiB to 1 EiB"), "{refused}");
    let refused = cache.set_spindle_capacity("/elsewhere", 64 * MIB).unwrap_err();
    assert_eq!(refused.allowed, format!("one of {}", path.display()));
}

#[test]
fn marks_may_change_and_are_refused_out_of_order() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    load(&cache, "a/b@1#0", 10);
    assert_eq!(tend_at(&cache, 1000), sums(0, 0, 0));
    cache.set_disk_marks(MarksPercent { low: 1, high: 2 }).unwrap();
    until(&cache, |cache| cache.spindles()[0].used == 0);
    assert!(cache.set_disk_marks(MarksPercent { low: 2, high: 1 }).is_err());
    assert!(cache.set_memory_marks(MarksPercent { low: 2, high: 1 }).is_err());
    let marks = cache.tender().spindles[0].marks;
    assert_eq!((marks.low(), marks.high()), (64 * MIB / 100, 64 * MIB / 50));
}

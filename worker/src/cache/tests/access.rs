//! How slices were used is known after a restart.

use super::*;
use crate::spindle::engine::Op;
use crate::{OnResult, Operation, OperationOptions, Selection};

const OTHER: &str = "test/sim@1#1";

fn other() -> Key {
    OTHER.parse().unwrap()
}

/// A slice without blobs.
fn load_empty(cache: &Cache, key: &Key) {
    let writer = cache.snap(key).open_for_writes(plan(WritePath::Auto)).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

/// What a spindle's log is on the disk now.
fn log_of(cache: &Cache, number: usize) -> Option<Vec<u8>> {
    let spindle = &cache.core.spindles[number];
    let path = spindle.folder.join("access-log");
    let read = spindle.impellers.run(Op::ReadSmall { path, bytes_max: 1 << 20 }, None);
    read.ok().map(|outcome| outcome.into_bytes())
}

/// Puts other bytes in the place of a spindle's log.
fn replace_log(cache: &Cache, number: usize, bytes: &[u8]) {
    use crate::spindle::engine::PageBuffer;
    use crate::spindle::file::FileMode;
    let spindle = &cache.core.spindles[number];
    let path = spindle.folder.join("access-log");
    spindle.impellers.run(Op::Unlink { path: path.clone() }, None).unwrap();
    let file = spindle.impellers.run(Op::CreateFile { path, mode: FileMode::Buffered }, None).unwrap();
    let (file, len) = (file.into_file(), bytes.len());
    let bytes = Box::new(PageBuffer::copied(bytes));
    spindle.impellers.run(Op::Write { file, offset: 0, bytes, len }, None).unwrap();
}

/// Goal: what is pinned and how a slice was used is there after a restart, with all its consequences. Method: compare what
/// there is to say before and after; close once, drop once.
#[test]
fn a_restart_knows_what_is_pinned_and_how_slices_were_used() {
    for closes in [true, false] {
        let rig = Rig::new(2);
        let cache = rig.open(HealthLimits::default());
        load(&cache, plan(WritePath::Auto)).unwrap();
        load_empty(&cache, &other());
        let snap = cache.snap(&key());
        drop(snap.lease(Want::Latest, None).unwrap());
        assert!(snap.evict());
        drop(snap.lease(Want::Latest, None).unwrap());
        drop(snap.lease(Want::Latest, None).unwrap());
        snap.pin();
        let before = [key(), other()].map(|key| cache.core.entry_for_tests(&key).access());
        assert_eq!((before[0].pinned, before[0].leases, before[0].evicts), (true, 3, 1));
        drop(snap);
        match closes {
            true => cache.close(None).unwrap(),
            false => drop(cache),
        }
        let cache = rig.open(HealthLimits::default());
        assert_eq!(cache.recovery().logs, []);
        assert_eq!([key(), other()].map(|key| cache.core.entry_for_tests(&key).access()), before);
        let snap = cache.snap(&key());
        assert!(matches!(snap.flush(None), Err(FlushError::Pinned { .. })));
        snap.unpin();
        assert!(snap.flush(None).unwrap());
        drop(snap);
        cache.close(None).unwrap();
        let cache = rig.open(HealthLimits::default());
        assert!(!cache.snap(&key()).status().pinned, "it was unpinned");
        cache.close(None).unwrap();
    }
}

/// Goal: taking a pin back holds, also when nothing else is to be said of the slice. Method: a pin of what nobody has asked for; the
/// next cache takes it back before all manifests are read, and writes that down before they are.
#[test]
fn a_pin_that_is_taken_back_at_once_stays_away() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Auto)).unwrap();
    cache.snap(&key()).pin();
    cache.close(None).unwrap();
    let done = rig.disks[0].ops_of("look into");
    let _ = rig.disks[0].clone().with_fault(When::Nth("look into", done), Failure::Hang);
    let cache = rig.open(HealthLimits::default());
    until_stuck(&cache);
    let snap = cache.snap(&key());
    assert!(snap.status().pinned);
    let before = log_of(&cache, 0);
    snap.unpin();
    let give_up = Instant::now() + Duration::from_secs(60);
    while log_of(&cache, 0) == before {
        assert!(Instant::now() < give_up, "it was left out of the log");
        std::thread::yield_now();
    }
    assert!(cache.core.target().access.pinned().is_empty());
    rig.disks[0].let_go();
}

/// A log that a disk refuses to read once may be whole: nothing is written over it.
#[test]
fn a_log_that_could_not_be_read_keeps_its_pins_for_the_next_start() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Auto)).unwrap();
    cache.snap(&key()).pin();
    cache.close(None).unwrap();
    let is_log = rig.disks[0].ops_of("read");
    let _ = rig.disks[0].clone().with_fault(When::Nth("read", is_log), Failure::Error(Errno::IO));
    let cache = rig.open(HealthLimits::default());
    assert!(cache.recovery().logs[0].1.contains("left alone"), "{:?}", cache.recovery().logs);
    assert!(!cache.snap(&key()).status().pinned, "nobody could know");
    drop(cache.lease(&key(), Want::Latest, None).unwrap());
    cache.close(None).unwrap();
    rig.disks[0].heal();
    assert!(rig.open(HealthLimits::default()).snap(&key()).status().pinned);
}

#[test]
fn a_pin_comes_to_the_disk_soon_and_holds_for_what_is_yet_to_be_loaded() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    cache.recovery();
    cache.snap(&key()).pin();
    let give_up = Instant::now() + Duration::from_secs(60);
    let is_there = |cache: &Cache| {
        log_of(cache, 0).is_some_and(|log| log.windows(12).any(|part| part == b"test/sim@1#0"))
    };
    while !is_there(&cache) {
        assert!(Instant::now() < give_up, "nobody has closed the cache");
        std::thread::yield_now();
    }
    // The keeper has begun to write it: now wait until that has come to its end.
    cache.core.access.save_on(0, give_up);
    // As a process ends that is killed.
    let cut = rig.disks[0].restart();
    drop(cache);
    let rig = Rig { disks: vec![cut], folder: rig.folder };
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Auto)).unwrap();
    assert!(matches!(cache.snap(&key()).flush(None), Err(FlushError::Pinned { .. })));
}

/// Goal: who is told that something is pinned may pull the plug. Method: do so at the moment in which it is told.
#[test]
fn a_pin_is_told_when_a_restart_would_know_of_it() {
    for operation in [Operation::Pin, Operation::Unpin] {
        let rig = Rig::new(1);
        let cache = rig.open(HealthLimits::default());
        load(&cache, plan(WritePath::Auto)).unwrap();
        let is_pinned = operation == Operation::Pin;
        if !is_pinned {
            cache.snap(&key()).pin();
            // The keeper shall not do it meanwhile by chance.
            cache.core.keep_pins(Instant::now() + Duration::from_secs(60));
        }
        let (disk, cut) = (rig.disks[0].clone(), Arc::new(std::sync::Mutex::new(None)));
        let of_disk = cut.clone();
        let options = OperationOptions {
            on_result: Some(OnResult::new(move |result| {
                assert!(matches!(result.outcome, OperationOutcome::Done), "{result:?}");
                *of_disk.lock().unwrap() = Some(disk.restart());
            })),
            ..OperationOptions::default()
        };
        let everything = Selection::new(KeyPattern::ALL);
        assert_eq!(cache.operate(&everything, operation, &options).len(), 1);
        drop(cache);
        let cut = cut.lock().unwrap().take().expect("it was told");
        let rig = Rig { disks: vec![cut], folder: rig.folder };
        let cache = rig.open(HealthLimits::default());
        cache.recovery();
        assert_eq!(cache.snap(&key()).status().pinned, is_pinned);
    }
}

#[test]
fn a_pin_that_can_not_be_saved_is_told_with_its_log() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Auto)).unwrap();
    rig.disks[0].clone().with_fault(When::Every("sync"), Failure::Error(Errno::IO));
    rig.disks[0].clone().with_fault(When::Every("write"), Failure::Error(Errno::IO));
    let everything = Selection::new(KeyPattern::ALL);
    let results = cache.operate(&everything, Operation::Pin, &OperationOptions::default());
    let OperationOutcome::Failed(error) = &results[0].outcome else { panic!("{results:?}") };
    let text = error.to_string();
    assert!(text.contains("only as long as the cache is open") && text.contains("access-log"), "{text}");
    assert!(cache.snap(&key()).status().pinned, "it holds here");
    // Who tries again hears it again, although there is nothing left to do but to save.
    let again = || cache.operate(&everything, Operation::Pin, &OperationOptions::default()).remove(0).outcome;
    assert!(matches!(again(), OperationOutcome::Failed(OperationError::Unsaved { .. })));
    rig.disks[0].heal();
    assert!(matches!(again(), OperationOutcome::Nothing));
}

/// Goal: a damaged log costs advice, and no slice. Method: a bit in every fifth byte of it changed in turn; the slices are there, the
/// report names the file, and the next start finds a log that is whole.
#[test]
fn a_damaged_log_is_told_and_dropped_and_slices_live() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Auto)).unwrap();
    cache.snap(&key()).pin();
    cache.close(None).unwrap();
    let cache = rig.open(HealthLimits::default());
    let whole = log_of(&cache, 0).unwrap();
    drop(cache);
    for at in (0..whole.len()).step_by(5) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        let cache = rig.open(HealthLimits::default());
        replace_log(&cache, 0, &damaged);
        drop(cache); // Nothing has changed, so nothing is saved.
        let cache = rig.open(HealthLimits::default());
        let report = cache.recovery();
        assert_eq!((report.kept, report.logs.len()), (1, 1), "byte {at}: {report:?}");
        assert!(report.logs[0].0.ends_with("access-log"), "byte {at}: {report:?}");
        assert_eq!(scan(&cache).unwrap(), BLOBS, "byte {at}");
        cache.close(None).unwrap();
        let cache = rig.open(HealthLimits::default());
        assert_eq!(cache.recovery().logs, [], "byte {at}: it was written anew");
    }
}

/// Goal: what is known of a slice stays as long as its files may come back. Method: take spindles away and give them
/// back; what they say of a slice that was flushed meanwhile is forgotten.
#[test]
fn pins_come_back_with_their_spindles() {
    let rig = Rig::new(2);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Auto)).unwrap(); // On both.
    cache.snap(&key()).pin();
    drop(cache.lease(&key(), Want::Latest, None).unwrap());
    let before = cache.core.entry_for_tests(&key()).access();
    cache.close(None).unwrap();
    for away in [0, 1] {
        for _ in 0..2 {
            let cache = rig.open_without(away);
            assert_eq!(cache.recovery().kept, 0);
            load_empty(&cache, &other()); // So that there is something to save.
            cache.snap(&other()).flush(None).unwrap();
            cache.close(None).unwrap();
        }
        let cache = rig.open(HealthLimits::default());
        assert_eq!(cache.recovery().kept, 1);
        assert_eq!(cache.core.entry_for_tests(&key()).access(), before, "without {away}");
        cache.close(None).unwrap();
    }
}

#[test]
fn closing_tells_that_a_pin_can_not_be_kept() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Auto)).unwrap();
    let _ = rig.disks[0].clone().with_fault(When::Every("create"), Failure::Error(Errno::NOSPC));
    drop(cache.lease(&key(), Want::Latest, None).unwrap());
    cache.snap(&key()).pin();
    let error = cache.close(None).unwrap_err();
    assert!(error.pins.len() == 1 && error.pins[0].ends_with("access-log"), "{error}");
    // When somebody has asked for it is not worth an error.
    let cache = rig.open(HealthLimits::default());
    drop(cache.lease(&key(), Want::Latest, None).unwrap());
    cache.close(None).unwrap();
}

//! Operations as futures: they wait without a runtime, and dropped ones leave nothing behind.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use super::*;
use crate::budget::memory::{MemoryGrant, MemoryUse};
use crate::slice::writer::SliceWriter;
use crate::spindle::engine::Op;

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Waits for a future on this thread, for a minute.
fn wait<T>(pending: Pending<T>) -> T {
    Patience::until(Some(far())).wait(pin!(pending)).expect("it ends within a minute")
}

fn is_pending<T>(pending: &mut Pending<T>) -> bool {
    use std::future::Future;
    matches!(Pin::new(pending).poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let give_up = far();
    while !done() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::yield_now();
    }
}

/// Waits until what was cancelled has ended.
fn settle(cache: &Cache) {
    let begun = Instant::now();
    cache.core.waits.settle(begun + Duration::from_secs(30));
    assert!(begun.elapsed() < Duration::from_secs(30), "what was cancelled ends");
}

fn parcel(fill: u8, bytes: u64) -> Parcel {
    let mut parcel = ParcelBuilder::default();
    parcel.push(&vec![fill; bytes as usize]).unwrap();
    parcel.finish()
}

/// All memory for parcels.
fn all_buffers(cache: &Cache) -> MemoryGrant {
    let counts = cache.core.budget.counts();
    cache.core.budget.try_take(MemoryUse::Buffers, counts.buffers_max).unwrap()
}

/// Waits until so many bytes are waited for.
fn wait_for_waiting(cache: &Cache, bytes: u64) {
    wait_until("somebody waits for memory", || cache.core.budget.counts().buffers_waited_for == bytes);
}

/// Nothing of a load is left: no memory, no promise of disk space, no folder, no state.
fn assert_nothing_left(cache: &Cache) {
    // Images are unmapped on a thread of their own, and a disk gives back a piece that it is writing when it is done.
    wait_until("all memory is given back", || {
        cache.core.warmth.reaper.settle();
        let (budget, pieces) = (cache.core.budget.counts(), cache.core.pieces.counts());
        (budget.images, budget.mapped, budget.buffers, pieces.buffers) == (0, 0, 0, 0)
    });
    let (budget, pieces) = (cache.core.budget.counts(), cache.core.pieces.counts());
    assert_eq!((budget.buffers_waited_for, pieces.buffers_waited_for), (0, 0));
    for (spindle, status) in cache.core.spindles.iter().zip(cache.spindles()) {
        assert_eq!((status.used, status.reserved), (0, 0), "{status:?}");
        let loads = Op::List { path: spindle.folder.join("loads") };
        let left = spindle.impellers.run(loads, None).unwrap().into_entries();
        assert!(left.is_empty(), "{} load folders are left", left.len());
    }
    assert_eq!(cache.snap(&key()).status().state, SnapState::Cold);
}

fn open(cache: &Cache, write_path: WritePath) -> SliceWriter {
    cache.snap(&key()).open_for_writes(plan(write_path)).unwrap()
}

/// Goal: the whole path, as futures on one thread. Method: eight producers, of which each sends its next parcel when
/// its last one was taken, and an executor that only polls who was woken.
#[test]
fn several_producers_share_a_thread() {
    let rig = Rig::new(2);
    let cache = rig.open(HealthLimits::default());
    let writer = wait(cache.snap(&key()).open_for_writes_async(plan(WritePath::Auto))).unwrap();
    let produce = |producer: u8| {
        let writer = &writer;
        async move {
            for number in 0..10 {
                writer.queue_parcel_async(parcel(producer * 10 + number, MIB)).await?;
            }
            Ok::<(), LoadError>(())
        }
    };
    let taken = run_all((0..8).map(produce).collect());
    assert!(taken.iter().all(Result::is_ok), "{taken:?}");
    let sealed = wait(writer.wait_for_writes_async()).unwrap();
    assert_eq!(sealed.blob_count(), 80);
    wait(sealed.close_for_writes_async()).unwrap();
    wait(cache.sync_async(None)).unwrap();
    let lease = wait(cache.lease_async(&key(), Want::Latest, None)).unwrap();
    let count = |blobs: &mut crate::Blobs<'_>, sums: &mut BTreeMap<u8, u64>| {
        while let Some(blob) = blobs.next()? {
            assert!(blob.iter().all(|byte| *byte == blob[0]), "a blob is one parcel's");
            *sums.entry(blob[0]).or_default() += blob.len() as u64;
        }
        Ok(())
    };
    let join = |mut a: BTreeMap<u8, u64>, b| {
        a.extend(b);
        a
    };
    let sums = Patience::default().wait(pin!(lease.scan_async(count, join))).unwrap().unwrap();
    assert_eq!(sums, (0..80).map(|fill| (fill, MIB)).collect());
    drop(lease);
    wait(cache.snap(&key()).flush_async(None)).unwrap();
    assert_nothing_left(&cache);
    wait(cache.close_async(None)).unwrap();
}

/// Runs futures side by side on this thread; polls only those that were woken.
fn run_all<F: std::future::Future>(futures: Vec<F>) -> Vec<F::Output> {
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;
    struct Woken(AtomicBool, std::thread::Thread);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
            self.1.unpark();
        }
    }
    let woken = |_: &F| Arc::new(Woken(AtomicBool::new(true), std::thread::current()));
    let flags: Vec<Arc<Woken>> = futures.iter().map(woken).collect();
    let mut futures: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    while outputs.iter().any(Option::is_none) {
        let mut polled = false;
        for (number, flag) in flags.iter().enumerate() {
            if outputs[number].is_none() && flag.0.swap(false, Ordering::Acquire) {
                polled = true;
                let waker = Waker::from(flag.clone());
                if let Poll::Ready(output) = futures[number].as_mut().poll(&mut Context::from_waker(&waker)) {
                    outputs[number] = Some(output);
                }
            }
        }
        if !polled {
            std::thread::park();
        }
    }
    outputs.into_iter().flatten().collect()
}

#[test]
fn opening_that_waits_for_memory_can_be_dropped() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    let pieces =
        cache.core.pieces.try_take(MemoryUse::Buffers, cache.core.pieces.counts().buffers_max).unwrap();
    let residence_max = cache.core.budget.counts().residence_max;
    let images = cache.core.budget.try_take(MemoryUse::Images, residence_max).unwrap();
    let mut opening = cache.snap(&key()).open_for_writes_async(plan(WritePath::Direct));
    wait_until("it waits for pieces", || cache.core.pieces.counts().buffers_waited_for > 0);
    assert!(is_pending(&mut opening));
    drop(opening);
    settle(&cache);
    drop((pieces, images));
    assert_nothing_left(&cache);
    load(&cache, plan(WritePath::Direct)).unwrap();
}

/// A load need not wait for the one before, which is on its way to the disk; who syncs or flushes does.
#[test]
fn a_sync_and_a_flush_that_wait_for_a_hung_disk_can_be_dropped() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    rig.disks[0].clone().with_fault(When::Every("sync"), Failure::Hang);
    let writer = cache.snap(&key()).open_for_writes(in_background()).unwrap();
    writer.queue_parcel(parcel(1, MIB)).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    drop(wait(cache.snap(&key()).open_for_writes_async(plan(WritePath::Direct))).unwrap());
    let mut sync = cache.sync_async(None);
    assert!(is_pending(&mut sync));
    drop(sync);
    settle(&cache);
    assert!(matches!(cache.sync(Some(Instant::now())), Err(SyncError::Late { .. })));
    assert_eq!(scan_bytes(&cache), MIB);
    let mut flush = cache.snap(&key()).flush_async(None);
    wait_until("nobody gets it any more", || cache.snap(&key()).status().state == SnapState::Cold);
    assert!(is_pending(&mut flush));
    drop(flush);
    settle(&cache);
    let error = cache.snap(&key()).flush(Some(Instant::now())).unwrap_err();
    assert!(matches!(error, FlushError::Late { .. }), "{error:?}");
    rig.disks[0].let_go();
    assert!(!cache.snap(&key()).flush(Some(far())).unwrap(), "it was flushed before; its files are gone now");
    cache.sync(Some(far())).unwrap();
    assert_nothing_left(&cache);
}

fn in_background() -> LoadPlan {
    let mut plan = plan(WritePath::Image);
    plan.durability = Durability::Background;
    plan
}

/// The bytes of all blobs.
fn scan_bytes(cache: &Cache) -> u64 {
    let lease = cache.lease(&key(), Want::Latest, Some(far())).unwrap();
    let sum = |blobs: &mut crate::Blobs<'_>, sum: &mut u64| {
        while let Some(blob) = blobs.next()? {
            *sum += blob.len() as u64;
        }
        Ok(())
    };
    lease.scan(sum, |a, b| a + b).unwrap()
}

#[test]
fn a_parcel_waits_for_memory_and_a_dropped_one_is_not_taken() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    let writer = open(&cache, WritePath::Image);
    let all = all_buffers(&cache);
    let mut first = writer.queue_parcel_async(parcel(1, MIB));
    wait_for_waiting(&cache, parcel(1, MIB).memory_bytes() as u64);
    let mut second = writer.queue_parcel_async(parcel(2, 2 * MIB));
    wait_for_waiting(&cache, (parcel(1, MIB).memory_bytes() + parcel(2, 2 * MIB).memory_bytes()) as u64);
    assert!(is_pending(&mut first) && is_pending(&mut second));
    drop(first);
    settle(&cache);
    wait_for_waiting(&cache, parcel(2, 2 * MIB).memory_bytes() as u64);
    drop(all);
    wait(second).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    assert_eq!(scan_bytes(&cache), 2 * MIB, "nothing of the dropped one");
    assert!(cache.snap(&key()).flush(None).unwrap());
    assert_nothing_left(&cache);
}

/// Whatever is pending when the writer goes is told so, and the last of it removes what was written.
#[test]
fn dropping_the_writer_ends_the_parcels_that_are_pending() {
    for write_path in [WritePath::Image, WritePath::Direct] {
        let rig = Rig::new(2);
        let cache = rig.open(HealthLimits::default());
        let writer = open(&cache, write_path);
        (0..10).for_each(|fill| writer.queue_parcel(parcel(fill, MIB)).unwrap());
        let all = all_buffers(&cache);
        let pending: Vec<_> = (0..4).map(|fill| writer.queue_parcel_async(parcel(fill, MIB))).collect();
        drop(writer);
        for pending in pending {
            let error = wait(pending).unwrap_err();
            assert!(matches!(error, LoadError::Over { .. }), "{error:?}");
        }
        drop(all);
        wait_until("the last of them is gone", || cache.snap(&key()).status().state == SnapState::Cold);
        assert_nothing_left(&cache);
    }
}

/// A disk that does not answer holds nobody who need not wait for it any more.
#[test]
fn parcels_for_a_hung_disk_end_with_their_writer() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    rig.disks[0].clone().with_fault(When::Every("write"), Failure::Hang);
    let writer = open(&cache, WritePath::Direct);
    // More than the pieces of two regions hold, so that no third one comes.
    let pending: Vec<_> = (0..40).map(|_| writer.queue_parcel_async(parcel(7, 4 * MIB))).collect();
    wait_until("writes are under way", || cache.core.spindles[0].impellers.oldest().is_some());
    drop(writer);
    let answers: Vec<_> = pending.into_iter().map(wait).collect();
    assert!(
        answers.iter().all(|answer| matches!(answer, Ok(()) | Err(LoadError::Over { .. }))),
        "{answers:?}"
    );
    assert!(answers.iter().any(Result::is_err), "not all of them fit");
    rig.disks[0].let_go();
    wait_until("the last of them is gone", || cache.snap(&key()).status().state == SnapState::Cold);
    // What a disk holds counts until it has answered.
    wait_until("the disk has given its pieces back", || cache.core.pieces.counts().buffers == 0);
    assert_nothing_left(&cache);
}

#[test]
fn a_parcels_own_deadline_leaves_the_load_as_it_was() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    let writer = open(&cache, WritePath::Image);
    let all = all_buffers(&cache);
    let error = writer.queue_parcel_until(parcel(1, MIB), Some(Instant::now())).unwrap_err();
    assert!(
        matches!(error, LoadError::Memory { source: crate::MemoryRefused::Deadline { .. }, .. }),
        "{error:?}"
    );
    drop(all);
    let error = writer.queue_parcel_until(parcel(1, MIB), Some(Instant::now())).unwrap_err();
    assert!(matches!(error, LoadError::Late { .. }), "{error:?}");
    writer.queue_parcel_until(parcel(2, 2 * MIB), Some(far())).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    assert_eq!(scan_bytes(&cache), 2 * MIB, "nothing of those that were late");
}

#[test]
fn sealing_waits_for_parcels_that_are_pending() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    let writer = open(&cache, WritePath::Image);
    let all = all_buffers(&cache);
    let mut pending = writer.queue_parcel_async(parcel(1, MIB));
    let mut sealing = writer.wait_for_writes_async();
    wait_for_waiting(&cache, parcel(1, MIB).memory_bytes() as u64);
    assert!(is_pending(&mut pending) && is_pending(&mut sealing));
    drop(all);
    let sealed = wait(sealing).unwrap();
    wait(pending).unwrap();
    assert_eq!(sealed.blob_bytes(), MIB);
    drop(sealed);
    assert_nothing_left(&cache);
}

#[test]
fn dropping_the_sealing_ends_the_load() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    let writer = open(&cache, WritePath::Image);
    writer.queue_parcel(parcel(1, MIB)).unwrap();
    let all = all_buffers(&cache);
    let pending = writer.queue_parcel_async(parcel(1, MIB));
    let mut sealing = writer.wait_for_writes_async();
    assert!(is_pending(&mut sealing));
    drop(sealing);
    let error = wait(pending).unwrap_err();
    assert!(matches!(error, LoadError::Over { .. }), "{error:?}");
    settle(&cache);
    drop(all);
    wait_until("the last of it is gone", || cache.snap(&key()).status().state == SnapState::Cold);
    assert_nothing_left(&cache);
    // One that was sealed already, and that nobody has fetched.
    let writer = open(&cache, WritePath::Image);
    writer.queue_parcel(parcel(1, MIB)).unwrap();
    let sealing = writer.wait_for_writes_async();
    wait_until("it is sealed", || cache.core.waits.is_idle());
    drop(sealing);
    assert_nothing_left(&cache);
}

/// A load that was closed is the cache's, whether somebody waits for the disk or not.
#[test]
fn a_closing_that_is_dropped_or_late_goes_on() {
    for is_late in [false, true] {
        let rig = Rig::new(1);
        let cache = rig.open(HealthLimits::default());
        rig.disks[0].clone().with_fault(When::Every("sync"), Failure::Hang);
        let mut plan = plan(WritePath::Image);
        plan.deadline = is_late.then(|| Instant::now() + Duration::from_secs(3));
        let writer = cache.snap(&key()).open_for_writes(plan).unwrap();
        writer.queue_parcel(parcel(1, MIB)).unwrap();
        let sealed = writer.wait_for_writes().unwrap();
        if is_late {
            let error = sealed.close_for_writes().unwrap_err();
            assert!(matches!(error, LoadError::Late { .. }), "{error:?}");
        } else {
            let mut closing = sealed.close_for_writes_async();
            wait_until("it can be leased", || cache.snap(&key()).status().state == SnapState::Hot);
            assert!(is_pending(&mut closing));
            drop(closing);
            settle(&cache);
        }
        assert_eq!(scan_bytes(&cache), MIB);
        rig.disks[0].let_go();
        cache.sync(Some(far())).unwrap();
        assert!(cache.snap(&key()).status().durable);
    }
}

#[test]
fn a_lease_waits_until_readers_free_memory_and_can_be_dropped() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Direct)).unwrap();
    let residence_max = cache.core.budget.counts().residence_max;
    let all = cache.core.budget.try_take(MemoryUse::Images, residence_max).unwrap();
    let waits = || cache.core.budget.counts().residence_waited_for > 0;
    let mut dropped = cache.lease_async(&key(), Want::Latest, None);
    wait_until("it waits for memory", waits);
    assert!(is_pending(&mut dropped));
    drop(dropped);
    settle(&cache);
    assert!(!waits());
    let late = wait(cache.lease_async(&key(), Want::Latest, Some(Instant::now())));
    assert!(late.is_err(), "{late:?}");
    let mut leasing = cache.lease_async(&key(), Want::Latest, None);
    wait_until("it waits for memory", waits);
    assert!(is_pending(&mut leasing));
    drop(all);
    assert_eq!(wait(leasing).unwrap().region_count(), 2);
    assert!(!waits());
}

#[test]
fn a_lease_waits_elsewhere_for_a_start_that_hangs() {
    let (rig, cache) = opened_and_stuck(0);
    rig.disks[0].clone().with_fault(When::Every("look into"), Failure::Hang);
    let begun = Instant::now();
    let leasing = cache.lease_async(&key(), Want::Latest, Some(begun + Duration::from_secs(3)));
    let dropped = cache.lease_async_with(&key(), &LeaseOptions::default());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    drop(dropped);
    settle(&cache);
    assert!(matches!(wait(leasing), Err(LeaseError::Deadline { .. })));
    rig.disks[0].let_go();
}

#[test]
fn a_lease_that_opens_its_files_can_be_dropped() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Direct)).unwrap();
    let _ = rig.disks[0].clone().with_fault(When::Every("open"), Failure::Hang);
    let streamed = LeaseOptions { reading: Reading::Stream, ..LeaseOptions::default() };
    let mut leasing = cache.lease_async_with(&key(), &streamed);
    let impellers = &cache.core.spindles[0].impellers;
    wait_until("it opens a file", || impellers.oldest().is_some());
    assert!(is_pending(&mut leasing));
    drop(leasing);
    settle(&cache);
    let all = Selection::new(KeyPattern::ALL);
    for operation in [Operation::Verify, Operation::Evict { keep_cache: false }] {
        let mut operating = cache.operate_async(&all, operation, &OperationOptions::default());
        assert!(is_pending(&mut operating), "{operation:?}");
        drop(operating);
        settle(&cache);
    }
    rig.disks[0].let_go();
}

#[test]
fn a_closing_of_the_cache_that_is_dropped_lets_slices_get_to_the_disk() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    rig.disks[0].clone().with_fault(When::Every("sync"), Failure::Hang);
    let other = cache.clone();
    let writer = cache.snap(&key()).open_for_writes(in_background()).unwrap();
    writer.queue_parcel(parcel(1, MIB)).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    let mut closing = cache.close_async(None);
    wait_until("it takes no loads", || other.core.closed.load(Ordering::Relaxed));
    assert!(is_pending(&mut closing));
    drop(closing);
    settle(&other);
    rig.disks[0].let_go();
    other.sync(Some(far())).unwrap();
    assert!(other.snap(&key()).status().durable);
    assert!(matches!(other.snap(&key()).open_for_writes(in_background()), Err(LoadError::Closed { .. })));
}

/// Goal: who drops a closing has not waited, so the last handle does. Method: a commit that takes a while; then the folders
/// can be opened again at once, and the slice is there.
#[test]
fn after_a_closing_that_was_dropped_the_last_handle_waits_for_the_disk() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    let _ = rig.disks[0].clone().in_real_time();
    let slow = Failure::Delay(Duration::from_millis(300));
    let _ = rig.disks[0].clone().with_fault(When::Every("sync"), slow);
    let other = cache.clone();
    let writer = cache.snap(&key()).open_for_writes(in_background()).unwrap();
    writer.queue_parcel(parcel(1, MIB)).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    let mut closing = cache.close_async(None);
    assert!(is_pending(&mut closing));
    drop(closing);
    settle(&other);
    drop(other);
    rig.disks[0].heal();
    assert_eq!(scan_bytes(&rig.open(HealthLimits::default())), MIB);
}

/// Goal: who drops futures, writer and cache can open the folders at once. Method: again and again, with parcels
/// that wait for memory, and with one that may be anywhere.
#[test]
fn folders_are_free_after_pending_operations_were_dropped() {
    let rig = Rig::new(1);
    for round in 0..20 {
        let cache = rig.open(HealthLimits::default());
        let writer = open(&cache, WritePath::Image);
        let anywhere = writer.queue_parcel_async(parcel(1, MIB));
        let all = (round % 2 == 0).then(|| wait_for_all_buffers(&cache));
        let waiting = writer.queue_parcel_async(parcel(2, MIB));
        drop((anywhere, waiting, writer));
        drop(cache);
        drop(all);
    }
    assert_nothing_left(&rig.open(HealthLimits::default()));
}

fn wait_for_all_buffers(cache: &Cache) -> MemoryGrant {
    let counts = cache.core.budget.counts();
    cache.core.budget.take(MemoryUse::Buffers, counts.buffers_max, Some(far())).unwrap()
}

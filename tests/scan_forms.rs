//! What was loaded is what every form of scan returns, from wherever it reads; and every way in which a scan ends
//! early.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use pelton::*;

/// Blobs by what is in them, since dealing changes their order: hashes, as there are many bytes.
type BlobSet = BTreeMap<(usize, [u8; 8], u32), usize>;

fn add(set: &mut BlobSet, blob: &[u8]) {
    let mut first = [0; 8];
    let marked = blob.len().min(8);
    first[..marked].copy_from_slice(&blob[..marked]);
    *set.entry((blob.len(), first, crc32c(blob))).or_default() += 1;
}

fn set_of(blobs: &[Vec<u8>]) -> BlobSet {
    let mut set = BlobSet::new();
    blobs.iter().for_each(|blob| add(&mut set, blob));
    set
}

fn collect(blobs: &mut Blobs<'_>, set: &mut BlobSet) -> Result<(), FoldError> {
    while let Some(blob) = blobs.next()? {
        add(set, blob);
    }
    Ok(())
}

fn join(mut a: BlobSet, b: BlobSet) -> BlobSet {
    b.into_iter().for_each(|(blob, count)| *a.entry(blob).or_default() += count);
    a
}

/// Lengths from nothing to 8 MiB, mixed; contents that tell one blob from another.
fn sample(count: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut large = 1;
    let mut blob = |number: usize| {
        let len = match next() % 60 {
            0..10 => 0,
            10..40 => next() % 300,
            40..58 => next() % 70_000,
            58 => next() % (2 << 20),
            _ => {
                large = if large == 0 { 3 } else { large - 1 };
                if large == 0 { 8 << 20 } else { next() % 5000 }
            }
        };
        let fill = next() as u8;
        let mut blob: Vec<u8> = (0..len).map(|at| fill.wrapping_add((at >> 8) as u8)).collect();
        let mark = (number as u64).to_le_bytes();
        let marked = blob.len().min(8);
        blob[..marked].copy_from_slice(&mark[..marked]);
        blob
    };
    (0..count).map(&mut blob).collect()
}

fn cache_of(
    folder: &Path,
    spindles: usize,
    memory: u64,
    set: impl FnOnce(CacheBuilder) -> CacheBuilder,
) -> Cache {
    let mut builder = Cache::builder().memory(memory).scan_threads(2).residence(Residence::Map);
    for number in 0..spindles {
        builder = builder.spindle(folder.join(format!("spindle-{number}")), None);
    }
    set(builder).open().unwrap()
}

fn load(cache: &Cache, key: &Key, regions: u32, path: WritePath, blobs: &[Vec<u8>]) {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.regions = Some(regions);
    plan.write_path = path;
    plan.durability = Durability::Wait;
    let writer = cache.snap(key).open_for_writes(plan).unwrap();
    // Small blobs go together, large ones alone.
    for batch in blobs.chunk_by(|a, b| a.len().max(b.len()) < 100_000) {
        for batch in batch.chunks(50) {
            let mut parcel = ParcelBuilder::default();
            batch.iter().for_each(|blob| parcel.push(blob).unwrap());
            writer.queue_parcel(parcel.finish()).unwrap();
        }
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

fn lease(cache: &Cache, key: &Key, reading: Reading) -> Lease {
    let mut options = LeaseOptions::default();
    options.reading = reading;
    cache.lease_with(key, &options).unwrap()
}

fn region_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(region_files(&path)) } else { files.push(path) }
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "region"));
    files.sort();
    files
}

/// A waker that counts, and wakes the thread that made it.
struct Count(AtomicUsize, std::thread::Thread);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        self.1.unpark();
    }
}

fn count_wakes() -> Arc<Count> {
    Arc::new(Count(AtomicUsize::new(0), std::thread::current()))
}

fn block_on<F: Future>(mut future: Pin<&mut F>) -> F::Output {
    let waker = Waker::from(count_wakes());
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Every form of scan there is.
fn check_forms(lease: &Lease, expected: &BlobSet, way: Way, named: &str) {
    let (set, report) = lease.scan_with(ScanOptions::default(), collect, join).unwrap();
    assert!(&set == expected, "scan, {named}");
    let blobs: usize = expected.values().sum();
    assert_eq!((report.blobs, report.regions.len()), (blobs as u64, lease.region_count()), "{named}");
    assert_eq!(report.bytes_by(way), report.region_bytes, "{named}: {report:?}");
    assert!(report.threads <= 2 && report.wall > Duration::ZERO && report.skew() >= 1.0, "{report:?}");

    let mut stealing = ScanOptions::default();
    stealing.steal = true;
    assert!(&lease.scan_with(stealing, collect, join).unwrap().0 == expected, "stealing, {named}");
    assert!(&block_on(pin!(lease.scan_async(collect, join))).unwrap() == expected, "async, {named}");

    let mut whole = BlobSet::new();
    for partition in lease.partitions() {
        let region: BlobSet = partition.fold(collect).unwrap();
        for k in [2, 5] {
            let parts = (0..k).map(|n| partition.part(n, k).fold(collect).unwrap());
            assert!(parts.fold(BlobSet::new(), join) == region, "parts of {k}, {named}");
        }
        assert!(partition.part(3, 3).fold::<BlobSet, _>(collect).unwrap().is_empty(), "{named}");
        whole = join(whole, region);
    }
    assert!(&whole == expected, "partitions, {named}");

    if way == Way::Stream {
        assert!(lease.is_streamed() && matches!(lease.region(0, None), Err(RegionError::Streamed { .. })));
        return;
    }
    let mut in_place = BlobSet::new();
    for n in 0..lease.region_count() {
        let region = lease.region(n, None).unwrap();
        let mut cursor = RegionView::open(&region).unwrap().blobs();
        while let Some(blob) = cursor.next().unwrap() {
            add(&mut in_place, blob);
        }
    }
    assert!(&in_place == expected, "region handles, {named}");
    assert!(matches!(lease.region(lease.region_count(), None), Err(RegionError::NotThere { .. })), "{named}");
}

/// From images, from maps, and as a stream; after a flush, too, since a lease keeps what it reads.
#[test]
fn every_form_of_scan_returns_what_was_loaded() {
    let key: Key = "test/forms@1#0".parse().unwrap();
    for (number, (spindles, regions)) in [(1, 1), (2, 5), (7, 33)].into_iter().enumerate() {
        for engine in [IoEngine::Auto, IoEngine::Threads] {
            let seed = 100 + number as u64;
            println!("seed {seed}");
            let named =
                |way| format!("{way:?}, {spindles} spindles, {regions} regions, {engine:?}, seed {seed}");
            let folder = tempfile::tempdir().unwrap();
            let blobs = sample(300, seed);
            let expected = set_of(&blobs);
            let cache = cache_of(folder.path(), spindles, 512 << 20, |builder| builder.engine(engine));
            load(&cache, &key, regions, WritePath::Image, &blobs);
            check_forms(&lease(&cache, &key, Reading::Auto), &expected, Way::Image, &named(Way::Image));
            let stream = lease(&cache, &key, Reading::Stream);
            check_forms(&stream, &expected, Way::Stream, &named(Way::Stream));
            cache.snap(&key).evict();
            let map = lease(&cache, &key, Reading::Auto);
            check_forms(&map, &expected, Way::Map, &named(Way::Map));
            cache.snap(&key).flush(None).unwrap();
            assert_eq!(region_files(folder.path()).len(), 0);
            assert!(stream.scan(collect, join).unwrap() == expected, "flushed, {}", named(Way::Stream));
            assert!(map.scan(collect, join).unwrap() == expected, "flushed, {}", named(Way::Map));
        }
    }
}

/// A cache with the least memory there is, and a slice of a few MiB in it.
fn small(folder: &Path, engine: IoEngine) -> (Cache, Key, Vec<Vec<u8>>) {
    let cache = cache_of(folder, 1, 64 << 20, |builder| builder.engine(engine));
    let key: Key = "test/small@1#0".parse().unwrap();
    let blobs: Vec<Vec<u8>> = (0..40_000u64).map(|n| [&n.to_le_bytes()[..], &[7; 392]].concat()).collect();
    load(&cache, &key, 4, WritePath::Direct, &blobs);
    (cache, key, blobs)
}

const READINGS: [Reading; 2] = [Reading::Memory, Reading::Stream];

/// A closure that stops in the middle of its region until it is let go, and tells that it is there.
#[allow(clippy::type_complexity, reason = "it is the closure's own type")]
fn blocking() -> (
    impl Fn(&mut Blobs<'_>, &mut usize) -> Result<(), FoldError> + Send + Sync + 'static,
    Receiver<()>,
    Sender<()>,
) {
    let ((told, there), (go, gate)) = (channel(), channel::<()>());
    let (told, gate) = (Mutex::new(told), Mutex::new(gate));
    let fold = move |blobs: &mut Blobs<'_>, count: &mut usize| {
        while blobs.next()?.is_some() {
            *count += 1;
            if *count == 100 {
                told.lock().unwrap().send(()).ok();
                gate.lock().unwrap().recv().ok();
            }
        }
        Ok(())
    };
    (fold, there, go)
}

/// Goal: whoever waits for a scan is back at the deadline, whatever its closures do. Method: they wait for
/// something that comes only after the scan has returned.
#[test]
fn a_scan_is_over_at_its_deadline_though_closures_hang() {
    for reading in READINGS {
        let folder = tempfile::tempdir().unwrap();
        let (cache, key, blobs) = small(folder.path(), IoEngine::Auto);
        let lease = lease(&cache, &key, reading);
        let (fold, _there, go) = blocking();
        let mut options = ScanOptions::default();
        options.deadline = Some(Instant::now() + Duration::from_millis(20));
        let error = lease.scan_with(options, fold, |a, b| a + b).unwrap_err();
        assert!(matches!(error, ScanError::Late { .. }), "{error}");
        drop(go);
        assert!(lease.scan(collect, join).unwrap() == set_of(&blobs), "the threads are free again");

        let mut past = ScanOptions::default();
        past.deadline = Some(Instant::now());
        let begun = |_: &mut Blobs<'_>, _: &mut ()| panic!("no closure runs");
        let error = lease.scan_with(past.clone(), begun, |(), ()| ()).unwrap_err();
        assert!(matches!(error, ScanError::Late { .. }), "{error}");
        let partition = lease.partitions().next().unwrap();
        let error = partition.fold_with(&past, begun).unwrap_err();
        assert!(matches!(error, ScanError::Late { .. }), "{error}");
    }
}

/// Goal: a cancel ends the scan at once, what is queued is not begun, and what is under way ends by itself.
#[test]
fn a_cancelled_scan_is_over_and_begins_no_other_region() {
    for reading in READINGS {
        let folder = tempfile::tempdir().unwrap();
        let (cache, key, blobs) = small(folder.path(), IoEngine::Auto);
        let lease = lease(&cache, &key, reading);
        let (fold, there, go) = blocking();
        let begun = Arc::new(AtomicUsize::new(0));
        let counted = begun.clone();
        let fold = move |blobs: &mut Blobs<'_>, count: &mut usize| {
            counted.fetch_add(1, Ordering::SeqCst);
            fold(blobs, count)
        };
        let mut options = ScanOptions::default();
        let token = CancelToken::new();
        options.cancel = Some(token.clone());
        let canceller = std::thread::spawn(move || {
            there.recv().unwrap();
            there.recv().unwrap(); // Both scan threads are in a region.
            token.cancel();
        });
        let error = lease.scan_with(options, fold, |a, b| a + b).unwrap_err();
        assert!(matches!(error, ScanError::Cancelled { .. }), "{error}");
        canceller.join().unwrap();
        drop(go);
        assert!(lease.scan(collect, join).unwrap() == set_of(&blobs));
        assert_eq!(begun.load(Ordering::SeqCst), 2, "of four regions");
    }
}

/// Goal: a closure that is under way is ended by the cursor. Method: it cancels its own scan, and would go on for
/// ever if the cursor let it.
#[test]
fn the_cursor_ends_a_closure_that_is_under_way() {
    for reading in READINGS {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache_of(folder.path(), 1, 64 << 20, |builder| builder);
        let key: Key = "test/long@1#0".parse().unwrap();
        let blobs: Vec<Vec<u8>> = (0..30u8).map(|n| vec![n; 1 << 20]).collect();
        load(&cache, &key, 1, WritePath::Direct, &blobs);
        let lease = lease(&cache, &key, reading);
        let token = CancelToken::new();
        let mut options = ScanOptions::default();
        options.cancel = Some(token.clone());
        let (told, seen) = channel();
        let told = Mutex::new(told);
        let fold = move |blobs: &mut Blobs<'_>, count: &mut usize| {
            while blobs.next().inspect_err(|_| told.lock().unwrap().send(()).unwrap())?.is_some() {
                *count += 1;
                assert!(*count < 20, "stopped long before the end");
                token.cancel();
            }
            Ok(())
        };
        let error = lease.scan_with(options, fold, |a, b| a + b).unwrap_err();
        assert!(matches!(error, ScanError::Cancelled { .. }), "{error}");
        seen.recv_timeout(Duration::from_secs(30)).expect("the cursor has said so");
    }
}

/// Goal: a future does nothing before it is polled, is woken when it is over, and cancels when it is dropped.
#[test]
fn an_async_scan_wakes_and_can_be_dropped() {
    for reading in READINGS {
        let folder = tempfile::tempdir().unwrap();
        let (cache, key, blobs) = small(folder.path(), IoEngine::Auto);
        let lease = lease(&cache, &key, reading);
        drop(lease.scan_async(|_, _: &mut ()| panic!("it was never polled"), |(), ()| ()));

        let (fold, there, go) = blocking();
        let mut scan = Box::pin(lease.scan_async(fold, |a, b| a + b));
        let wakes = count_wakes();
        let waker = Waker::from(wakes.clone());
        assert!(scan.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        there.recv().unwrap();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "nothing has come yet");
        drop(scan);
        drop(go);
        assert!(lease.scan(collect, join).unwrap() == set_of(&blobs), "the threads are free again");

        // A cancel wakes it, though the closures hang.
        let (fold, there, go) = blocking();
        let token = CancelToken::new();
        let mut options = ScanOptions::default();
        options.cancel = Some(token.clone());
        let mut scan = pin!(lease.scan_async_with(options, fold, |a, b| a + b));
        let context = &mut Context::from_waker(&waker);
        assert!(scan.as_mut().poll(context).is_pending());
        there.recv().unwrap();
        let before = wakes.0.load(Ordering::Relaxed);
        token.cancel();
        assert!(wakes.0.load(Ordering::Relaxed) > before);
        let Poll::Ready(Err(error)) = scan.as_mut().poll(context) else { panic!("it is over") };
        assert!(matches!(error, ScanError::Cancelled { .. }), "{error}");
        drop(go);
    }
}

#[derive(Debug, thiserror::Error)]
#[error("enough at {0}")]
struct Enough(usize);

/// The caller's own error comes out as it was; a panic is that scan's; an error that a fold swallows is not lost.
#[test]
fn a_closure_ends_its_scan_with_an_error_of_its_own() {
    for reading in READINGS {
        let folder = tempfile::tempdir().unwrap();
        let (cache, key, blobs) = small(folder.path(), IoEngine::Auto);
        let lease = lease(&cache, &key, reading);
        let fold = |blobs: &mut Blobs<'_>, count: &mut usize| {
            while blobs.next()?.is_some() {
                *count += 1;
                if *count == 3 {
                    return Err(FoldError::caller(Enough(*count)));
                }
            }
            Ok(())
        };
        let error = lease.scan(fold, |a, b| a + b).unwrap_err();
        let ScanError::Fold { source, .. } = &error else { panic!("{error}") };
        assert_eq!(source.downcast_ref::<Enough>().expect("the closure's own").0, 3);
        let error = lease.scan(|_, _: &mut ()| panic!("by the test"), |(), ()| ()).unwrap_err();
        assert!(matches!(&error, ScanError::Panicked { message, .. } if message == "by the test"), "{error}");
        // Leaving early is no error.
        let first = |blobs: &mut Blobs<'_>, found: &mut usize| {
            *found += usize::from(blobs.next()?.is_some());
            Ok(())
        };
        assert_eq!(lease.scan(first, |a, b| a + b).unwrap(), 4);
        assert!(lease.scan(collect, join).unwrap() == set_of(&blobs));
    }
}

fn flip(file: &Path, at: u64, mask: u8) {
    flip_in(&std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap(), at, mask);
}

fn flip_in(file: &std::fs::File, at: u64, mask: u8) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ mask], at).unwrap();
    file.sync_all().unwrap();
}

/// Goal: a byte that changed on the disk is an error before anybody sees its blob, whatever the closure does with
/// the error. Method: flip one in each checksum block in turn. The first one takes the slice out of service, and the lease
/// keeps its files open.
#[test]
fn a_stream_hands_out_nothing_of_a_block_that_was_flipped() {
    for engine in [IoEngine::Auto, IoEngine::Threads] {
        let folder = tempfile::tempdir().unwrap();
        let (cache, key, blobs) = small(folder.path(), engine);
        let expected = set_of(&blobs);
        let file = region_files(folder.path()).remove(0);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
        let file_bytes = file.metadata().unwrap().len();
        let lease = lease(&cache, &key, Reading::Stream);
        for at in (5000..file_bytes - (128 << 10)).step_by(1 << 20) {
            flip_in(&file, at, 4);
            let seen = expected.clone();
            let swallow = move |blobs: &mut Blobs<'_>, _: &mut ()| {
                let mut set = BlobSet::new();
                while let Ok(Some(blob)) = blobs.next() {
                    add(&mut set, blob);
                }
                assert!(set.keys().all(|blob| seen.contains_key(blob)), "only what was loaded is seen");
                Ok(())
            };
            let error = lease.scan(swallow, |(), ()| ()).unwrap_err();
            assert!(matches!(error, ScanError::Damaged { .. }), "byte {at}: {error}");
            assert!(lease.scan(collect, join).is_err(), "byte {at}");
            flip_in(&file, at, 4);
        }
        assert!(lease.scan(collect, join).unwrap() == expected, "{engine:?}");
    }
}

/// A file that is cut while it is streamed, and one that is cut before.
#[test]
fn a_stream_of_a_file_that_was_cut_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, key, _) = small(folder.path(), IoEngine::Auto);
    let file = region_files(folder.path()).remove(0);
    let streamed = lease(&cache, &key, Reading::Stream);
    let bytes = std::fs::metadata(&file).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(bytes / 2).unwrap();
    let error = streamed.scan(collect, join).unwrap_err();
    assert!(matches!(error, ScanError::Lost { .. }), "{error}");
    let mut options = LeaseOptions::default();
    options.reading = Reading::Stream;
    let error = cache.lease_with(&key, &options).unwrap_err();
    assert!(matches!(error, LeaseError::NotThere { .. }), "it was dropped: {error}");
    let (cache, key, _) = small(folder.path().join("another").as_path(), IoEngine::Auto);
    let file = region_files(&folder.path().join("another")).remove(0);
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(bytes / 2).unwrap();
    let error = cache.lease_with(&key, &options).unwrap_err();
    assert!(matches!(error, LeaseError::Warm { .. }), "{error}");
}

/// Verification is a setting: `Never` hands out what is there, `Always` looks again at what is in memory.
#[test]
fn verifying_is_a_setting() {
    let folder = tempfile::tempdir().unwrap();
    drop(small(folder.path(), IoEngine::Auto));
    let key: Key = "test/small@1#0".parse().unwrap();
    let file = region_files(folder.path()).remove(0);
    let open = |verify| cache_of(folder.path(), 1, 64 << 20, |builder| builder.verify(verify));
    let count = |blobs: &mut Blobs<'_>, count: &mut usize| {
        while blobs.next()?.is_some() {
            *count += 1;
        }
        Ok(())
    };
    let at = 4096 + 200; // In the first blob.
    {
        let cache = open(Verify::Always);
        lease(&cache, &key, Reading::Memory).scan(count, |a, b| a + b).unwrap();
        // It is mapped: the file's byte is the memory's.
        flip(&file, at, 1);
        let error = cache.lease(&key, Want::Latest, None).unwrap_err();
        assert!(matches!(error, LeaseError::Warm { .. }), "{error}");
        // It is dropped, though the byte is put back.
        flip(&file, at, 1);
        assert!(matches!(cache.lease(&key, Want::Latest, None), Err(LeaseError::NotThere { .. })));
    }
    drop(small(folder.path(), IoEngine::Auto));
    let file = region_files(folder.path()).remove(0);
    flip(&file, at, 1);
    for reading in READINGS {
        let lease = lease(&open(Verify::Never), &key, reading);
        assert_eq!(lease.scan(count, |a, b| a + b).unwrap(), 40_000, "{reading:?}");
    }
    // Each that finds the damage drops the slice.
    for reading in READINGS {
        let cache = open(Verify::WhenRead);
        assert!(lease(&cache, &key, reading).scan(count, |a, b| a + b).is_err(), "{reading:?}");
        drop(cache);
        drop(small(folder.path(), IoEngine::Auto));
        flip(&region_files(folder.path()).remove(0), at, 1);
    }
}

/// Blobs larger than a ring take memory from the budget; one that has no room there is refused with the numbers.
#[test]
fn a_blob_larger_than_the_ring_is_put_together_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let key: Key = "test/giant@1#0".parse().unwrap();
    let sizes = [1, 30 << 20, 0, 5 << 20, 100, 45 << 20];
    let giant = |(n, len): (usize, &usize)| (0..*len).map(|at| (at >> 7) as u8 ^ n as u8).collect();
    let blobs: Vec<Vec<u8>> = sizes.iter().enumerate().map(giant).collect();
    let cache = cache_of(folder.path(), 1, 1 << 30, |builder| builder);
    load(&cache, &key, 1, WritePath::Direct, &blobs);
    let expected = set_of(&blobs);
    assert!(lease(&cache, &key, Reading::Stream).scan(collect, join).unwrap() == expected);
    drop(cache);
    let cache = cache_of(folder.path(), 1, 64 << 20, |builder| builder);
    let lease = cache.lease(&key, Want::Latest, None).unwrap();
    assert!(lease.is_streamed());
    let error = lease.scan(collect, join).unwrap_err();
    let ScanError::Memory { source: MemoryRefused::NeverFits { wanted, .. }, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(wanted, 45 << 20);
}

/// More scans at once than there is memory for rings: they take turns.
#[test]
fn many_streams_share_a_small_budget() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, key, blobs) = small(folder.path(), IoEngine::Auto);
    let (lease, expected) = (lease(&cache, &key, Reading::Stream), set_of(&blobs));
    std::thread::scope(|scope| {
        for n in 0..12 {
            let (lease, expected) = (&lease, &expected);
            scope.spawn(move || {
                let scanned = match n % 2 {
                    0 => lease.scan(collect, join).unwrap(),
                    _ => {
                        let parts = lease.partitions().map(|partition| partition.fold(collect).unwrap());
                        parts.fold(BlobSet::new(), join)
                    }
                };
                assert!(&scanned == expected, "scan {n}");
            });
        }
    });
}

//! What is done to many slices at once: by pattern and filters, tried before, and told for each.

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use pelton::*;
use support::{Frozen, SmallDisk};

const MIB: usize = 1 << 20;

fn open(folder: &Path) -> Cache {
    let builder = Cache::builder().spindle(folder.join("spindle"), None).memory(128 << 20).scan_threads(2);
    builder.residence(Residence::Image).open().unwrap()
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

/// Loads a slice of one region: so many blobs of a MiB.
fn load(cache: &Cache, slice: &str, blobs: usize) {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([blobs as u8; 32]));
    plan.regions = Some(1);
    plan.durability = Durability::Wait;
    let writer = cache.snap(&key(slice)).open_for_writes(plan).unwrap();
    for number in 0..blobs {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number as u8; MIB]).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

fn all() -> Selection {
    Selection::new(KeyPattern::ALL)
}

fn filtered(filters: &str) -> Selection {
    all().filters(filters.parse().unwrap())
}

fn found(cache: &Cache, selection: &Selection) -> Vec<String> {
    cache.select(selection).iter().map(|found| found.snaps[0].key.to_string()).collect()
}

/// What came of it, for each slice in a word.
fn words(results: &[OperationResult]) -> Vec<&'static str> {
    results.iter().map(|result| word(&result.outcome)).collect()
}

fn word(outcome: &OperationOutcome) -> &'static str {
    match outcome {
        OperationOutcome::Done => "done",
        OperationOutcome::Leaving => "leaving",
        OperationOutcome::Nothing => "nothing",
        OperationOutcome::Refused(OperationRefusal::Pinned) => "pinned",
        OperationOutcome::Refused(OperationRefusal::Leased) => "leased",
        OperationOutcome::Refused(OperationRefusal::NoRoom { .. }) => "no room",
        OperationOutcome::Refused(_) => "refused",
        OperationOutcome::Failed(OperationError::Late) => "late",
        OperationOutcome::Failed(OperationError::Damaged { .. }) => "damaged",
        OperationOutcome::Failed(error) => panic!("{error}"),
        other => panic!("{other:?}"),
    }
}

fn run(cache: &Cache, selection: &Selection, operation: Operation) -> Vec<&'static str> {
    words(&cache.operate(selection, operation, &OperationOptions::default()))
}

const EVICT: Operation = Operation::Evict { keep_cache: false };

/// What users can see of all slices, but for what time alone changes.
fn seen(cache: &Cache) -> Vec<SnapStatus> {
    let mut seen = cache.search(&KeyPattern::ALL);
    seen.iter_mut().for_each(|status| status.idle = None);
    seen
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|its| its == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    file.sync_all().unwrap();
}

fn body_end(region: &[u8]) -> u64 {
    let header = Header::decode(&region[..PAGE_BYTES]).unwrap();
    Trailer::decode(&region[region.len() - PAGE_BYTES..], &header, region.len() as u64).unwrap().body_end
}

#[test]
fn filters_choose_slices_and_one_that_matches_nothing_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    load(&cache, "a/b@1#0", 1);
    load(&cache, "a/b@1#1", 3);
    load(&cache, "a/c@1#0", 5);
    assert_eq!(found(&cache, &filtered("bytes>2MiB")), ["a/b@1#1", "a/c@1#0"]);
    assert_eq!(found(&cache, &filtered("blobs=5,state=hot,durable=true")), ["a/c@1#0"]);
    let pattern: KeyPattern = "a/b".parse().unwrap();
    let in_view = Selection::new(pattern).filters("bytes>2MiB".parse().unwrap());
    assert_eq!(found(&cache, &in_view), ["a/b@1#1"]);
    assert_eq!(found(&cache, &filtered("leased=true")), [""; 0]);
    let before = seen(&cache);
    for operation in [EVICT, Operation::Flush, Operation::Erase, Operation::Pin, Operation::Verify] {
        assert_eq!(run(&cache, &filtered("bytes>1GiB"), operation), [""; 0]);
        assert_eq!(seen(&cache), before);
    }
    assert_eq!(run(&cache, &filtered("bytes>2MiB"), EVICT), ["done", "done"]);
    assert_eq!(found(&cache, &filtered("state=hot")), ["a/b@1#0"]);
}

#[test]
fn a_generation_is_meant_as_a_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    for (slice, blobs) in [("a/b@1#0", 1), ("a/b@1#1", 4), ("a/b@2#0", 2), ("a/c@2#0", 1)] {
        load(&cache, slice, blobs);
    }
    let large = filtered("bytes>3MiB").by(By::Generation);
    let generations = cache.select(&large);
    assert_eq!(generations.len(), 1);
    let summary = &generations[0].summary;
    assert_eq!((summary.slices, summary.blobs, summary.bytes, summary.size_skew), (2, 5, 5 << 20, 3.0));
    assert_eq!((generations[0].fingerprint(), generations[0].is_durable()), (None, true));
    assert_eq!(run(&cache, &large, EVICT), ["done", "done"]);
    assert_eq!(found(&cache, &filtered("state=warm")), ["a/b@1#0", "a/b@1#1"]);
    assert_eq!(found(&cache, &filtered("state=mixed").by(By::Generation)), [""; 0]);
    assert_eq!(run(&cache, &Selection::new(key("a/b@1#0")), Operation::Warm), ["done"]);
    assert_eq!(found(&cache, &filtered("state=mixed").by(By::Generation)), ["a/b@1#0"]);
}

/// Goal: a dry run says what the operation then does, and does nothing. Method: each operation on slices in each state,
/// first dry.
#[test]
fn a_dry_run_changes_nothing_and_tells_the_truth() {
    let all_of_them = [
        Operation::Verify,
        Operation::Pin,
        EVICT,
        Operation::Flush,
        Operation::Unpin,
        Operation::Evict { keep_cache: true },
        EVICT,
        Operation::Warm,
        Operation::Warm,
        Operation::Flush,
        Operation::Flush,
        Operation::Erase,
        Operation::Erase,
    ];
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    load(&cache, "hot/x@1#0", 2);
    load(&cache, "leased/x@1#0", 2);
    load(&cache, "none/x@1#0", 0);
    load(&cache, "warm/x@1#0", 2);
    let lease = cache.lease(&key("leased/x@1#0"), Want::Latest, None).unwrap();
    assert!(cache.snap(&key("warm/x@1#0")).evict());
    for operation in all_of_them {
        let before = seen(&cache);
        let mut options = OperationOptions::default();
        options.dry_run = true;
        let told = cache.operate(&all(), operation, &options);
        assert_eq!(seen(&cache), before, "{operation:?}");
        let done = cache.operate(&all(), operation, &OperationOptions::default());
        assert_eq!(words(&told), words(&done), "{operation:?}");
        let bytes = |results: &[OperationResult]| results.iter().map(|one| one.bytes).collect::<Vec<_>>();
        assert_eq!(bytes(&told), bytes(&done), "{operation:?}");
    }
    drop(lease);
    assert_eq!(run(&cache, &all(), Operation::Erase), ["done"]);
    assert_eq!(found(&cache, &all()), [""; 0]);
}

#[test]
fn each_slice_has_its_own_result_under_leases_and_pins() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    for slice in ["a/free@1#0", "a/leased@1#0", "a/pinned@1#0", "a/warm@1#0"] {
        load(&cache, slice, 2);
    }
    let lease = cache.lease(&key("a/leased@1#0"), Want::Latest, None).unwrap();
    assert_eq!(run(&cache, &Selection::new(key("a/pinned@1#0")), Operation::Pin), ["done"]);
    assert!(cache.snap(&key("a/warm@1#0")).evict());
    let keep_cache = Operation::Evict { keep_cache: true };
    assert_eq!(run(&cache, &all(), keep_cache), ["done", "leaving", "pinned", "nothing"]);
    // The lease holds its bytes, and lets them go at its end.
    assert_eq!(found(&cache, &filtered("memory>0")), ["a/leased@1#0", "a/pinned@1#0"]);
    assert_eq!(run(&cache, &all(), Operation::Erase), ["done", "leased", "pinned", "done"]);
    assert_eq!(found(&cache, &all()), ["a/leased@1#0", "a/pinned@1#0"]);
    assert_eq!(run(&cache, &all(), Operation::Flush), ["done", "pinned"]);
    let count = |blobs: &mut Blobs<'_>, count: &mut u64| {
        while blobs.next()?.is_some() {
            *count += 1;
        }
        Ok(())
    };
    assert_eq!(lease.scan(count, |a, b| a + b).unwrap(), 2, "flushed under the lease");
    assert_eq!(run(&cache, &all(), Operation::Unpin), ["nothing", "done"]);
    drop(lease);
    assert_eq!(run(&cache, &all(), Operation::Erase), ["done", "done"]);
    assert_eq!(found(&cache, &all()), [""; 0]);
}

/// Goal: what does not fit is told with the numbers, and it is the oldest. Method: slices of a fifth of the memory.
#[test]
fn warming_takes_the_newest_generations_as_far_as_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let slices: Vec<String> = (1..=8).map(|clock| format!("a/b@{clock}#0")).collect();
    for slice in &slices {
        load(&cache, slice, 20);
        assert!(cache.snap(&key(slice)).evict());
    }
    let results = cache.operate(&all(), Operation::Warm, &OperationOptions::default());
    let keys: Vec<String> = results.iter().map(|result| result.key.to_string()).collect();
    assert_eq!(keys, slices);
    let refused = results.iter().position(|one| matches!(one.outcome, OperationOutcome::Done)).unwrap();
    assert!((1..8).contains(&refused), "{results:?}");
    for (number, result) in results.iter().enumerate() {
        match &result.outcome {
            OperationOutcome::Done => assert!(number >= refused, "{results:?}"),
            OperationOutcome::Refused(OperationRefusal::NoRoom { wanted, free }) => {
                assert!(number < refused && free < wanted && *wanted > 20 << 20, "{results:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(found(&cache, &filtered("state=hot")), slices[refused..]);
    let memory = cache.memory().unwrap();
    assert!(memory.images <= memory.max);
    assert!(cache.select(&filtered("state=hot")).iter().all(|one| one.summary.warm_count == 1));
    assert!(cache.leases().is_empty());
}

/// Goal: a warming that keeps a rate holds up nobody who queries. Method: a rate by which a slice takes years; a lease
/// scans all of it while it is warmed, and another slice is warmed beside it.
#[test]
fn warming_keeps_its_rate_until_somebody_queries() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    for slice in ["a/b@1#0", "a/b@1#1", "a/b@1#2"] {
        load(&cache, slice, 24);
        assert!(cache.snap(&key(slice)).evict());
    }
    let mut options = OperationOptions::default();
    options.rate = Some(200 << 20);
    let first = Selection::new(key("a/b@1#0"));
    let begun = Instant::now();
    assert_eq!(words(&cache.operate(&first, Operation::Warm, &options)), ["done"]);
    // The two last steps, of 4 MiB, need not have had their time.
    assert!(begun.elapsed() >= Duration::from_millis(80), "{:?}", begun.elapsed());
    assert!(cache.snap(&key("a/b@1#0")).evict());
    options.rate = Some(1);
    let pending = cache.operate_async(&Selection::new(key("a/b@1#1")), Operation::Warm, &options);
    while cache.snap(&key("a/b@1#1")).status().memory_bytes == 0 {
        std::thread::yield_now();
    }
    let count = |blobs: &mut Blobs<'_>, count: &mut u64| {
        while blobs.next()?.is_some() {
            *count += 1;
        }
        Ok(())
    };
    for slice in ["a/b@1#2", "a/b@1#1"] {
        let lease = cache.lease(&key(slice), Want::Latest, None).unwrap();
        assert_eq!(lease.scan(count, |a, b| a + b).unwrap(), 24, "{slice}");
    }
    assert_eq!(words(&block_on(pending)), ["done"]);
}

/// What the cache itself does to a slice does not make it look used.
#[test]
fn idle_counts_from_the_last_query_or_else_from_the_load() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    load(&cache, "a/b@1#0", 1);
    let (snap, loaded) = (cache.snap(&key("a/b@1#0")), Instant::now());
    let idle = || snap.status().idle.unwrap();
    std::thread::sleep(Duration::from_millis(40)); // The time that is measured.
    for operation in [Operation::Verify, EVICT, Operation::Warm, Operation::Pin, Operation::Unpin] {
        assert_eq!(run(&cache, &all(), operation), ["done"]);
        // The load ended before; the time of day is told in whole milliseconds.
        let since = loaded.elapsed();
        assert!(idle() + Duration::from_millis(3) >= since, "{operation:?}");
    }
    let asked = Instant::now();
    drop(snap.lease(Want::Latest, None).unwrap());
    assert!(idle() <= asked.elapsed() + Duration::from_millis(1), "{:?}", idle());
}

#[test]
fn what_loads_told_is_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    load(&cache, "a/b@1#0", 3);
    let before = cache.select(&all()).remove(0).summary;
    assert!(before.load_at_ms.is_some() && before.load_took_ms.is_some());
    assert_eq!((before.blobs, before.bytes, before.expected, before.invalid), (3, 3 << 20, 3, false));
    assert_eq!(run(&cache, &all(), EVICT), ["done"]);
    assert_eq!(run(&cache, &all(), Operation::Warm), ["done"]);
    let now = cache.select(&all()).remove(0).summary;
    assert_eq!((now.evicts, now.warm_count, now.warm_at_ms.is_some()), (1.0, 1, true));
    drop(cache);
    let cache = open(folder.path());
    let after = cache.select(&all()).remove(0).summary;
    assert_eq!(after, Summary { state: GenerationState::Warm, evicts: 1.0, ..before });
    assert_eq!(found(&cache, &filtered("load-at>2020-01-01,evicts=1,idle<1h")), ["a/b@1#0"]);
}

/// Goal: damage anywhere is found, with the file and the block, and nothing is taken away. Method: one bit flipped in
/// each kind of a slice's files, under an open cache; the other slice stays whole.
#[test]
fn verifying_finds_damage_in_every_part_of_every_file() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    load(&cache, "a/b@1#0", 3);
    load(&cache, "a/b@1#1", 3);
    assert_eq!(run(&cache, &all(), Operation::Verify), ["done", "done"]);
    let region = files(folder.path(), "region").remove(0);
    let manifest = files(folder.path(), "manifest").remove(0);
    let bytes = fs::metadata(&region).unwrap().len();
    let body_end = body_end(&fs::read(&region).unwrap());
    let places = [
        (&region, 16, None),                    // header
        (&region, 4200, Some(0)),               // first block
        (&region, 2 * MIB as u64 + 5, Some(2)), // a block in the middle
        (&region, body_end + 1, None),          // sections
        (&region, bytes - 4096 + 24, None),     // trailer
        (&manifest, 40, None),
    ];
    for (path, offset, block) in places {
        flip(path, offset);
        let results = cache.operate(&all(), Operation::Verify, &OperationOptions::default());
        assert_eq!(words(&results), ["damaged", "done"], "{}: {offset}", path.display());
        let OperationOutcome::Failed(OperationError::Damaged { files }) = &results[0].outcome else {
            unreachable!()
        };
        assert_eq!((files.len(), &files[0].path, files[0].block), (1, path, block), "{files:?}");
        flip(path, offset);
        assert_eq!(run(&cache, &all(), Operation::Verify), ["done", "done"]);
    }
    fs::OpenOptions::new().write(true).open(&region).unwrap().set_len(bytes - 4096).unwrap();
    assert_eq!(run(&cache, &all(), Operation::Verify), ["damaged", "done"]);
}

#[test]
fn verifying_keeps_its_rate_tells_how_far_it_is_and_ends_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    load(&cache, "a/b@1#0", 24);
    let read = Arc::new(AtomicU64::new(0));
    let mut options = OperationOptions::default();
    let counter = read.clone();
    options.on_progress = Some(OnProgress::new(move |bytes| {
        counter.fetch_add(bytes, Ordering::Relaxed);
    }));
    options.rate = Some(100 << 20);
    let begun = Instant::now();
    assert_eq!(words(&cache.operate(&all(), Operation::Verify, &options)), ["done"]);
    // The last step, of 4 MiB at most, need not have had its time.
    assert!(begun.elapsed() >= Duration::from_millis(190), "{:?}", begun.elapsed());
    assert!(read.load(Ordering::Relaxed) >= 24 << 20);
    options.rate = Some(1);
    options.deadline = Some(Instant::now() + Duration::from_millis(50));
    assert_eq!(words(&cache.operate(&all(), Operation::Verify, &options)), ["late"]);
}

/// Goal: the future is the operation, and dropping it begins with no further slice. Method: a rate by which the first
/// slice is read at once and the second one after years.
#[test]
fn an_operation_is_a_future_and_dropping_it_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    load(&cache, "a/b@1#0", 1);
    load(&cache, "a/b@1#1", 1);
    let mut options = OperationOptions::default();
    let results = block_on(cache.operate_async(&all(), Operation::Verify, &options));
    assert_eq!(words(&results), ["done", "done"]);
    // The first of the two at once, and the other 16 seconds later.
    options.rate = Some(64 << 10);
    let (tell, told) = std::sync::mpsc::channel();
    options.on_progress = Some(OnProgress::new(move |bytes| tell.send(bytes).unwrap()));
    let pending = cache.operate_async(&all(), Operation::Verify, &options);
    drop(options);
    told.recv().unwrap();
    drop(pending);
    let dropped = Instant::now();
    // The operation lets go of what it told its progress to. Until then this waits.
    while told.recv().is_ok() {}
    assert!(dropped.elapsed() < Duration::from_secs(12), "{:?}", dropped.elapsed());
}

fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

/// Goal: a disk that hangs holds up only what lies on it. Method: of two disks one is frozen; slices on both are
/// flushed.
#[test]
fn a_disk_that_hangs_holds_up_only_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), 200 << 20) else { return };
    let (good, sick) = (folder.path().join("good"), disk.folder.join("spindle"));
    let builder = Cache::builder().spindle(&good, 100 << 20).spindle(&sick, 100 << 20).memory(128 << 20);
    let cache = builder.residence(Residence::Image).open().unwrap();
    let slices: Vec<String> = (0..12).map(|slice| format!("a/b@1#{slice}")).collect();
    slices.iter().for_each(|slice| load(&cache, slice, 1));
    let on_sick = files(&sick, "manifest").len();
    assert!((1..12).contains(&on_sick), "{on_sick}");
    {
        let Some(_frozen) = Frozen::freeze(&disk.folder) else { return };
        let mut options = OperationOptions::default();
        options.deadline = Some(Instant::now() + Duration::from_secs(3));
        let results = words(&cache.operate(&all(), Operation::Flush, &options));
        let late = results.iter().filter(|word| **word == "late").count();
        assert_eq!((late, results.len()), (on_sick, 12), "{results:?}");
        assert_eq!(files(&good, "manifest").len(), 0);
    }
    cache.close(Some(Instant::now() + Duration::from_secs(20))).unwrap();
}

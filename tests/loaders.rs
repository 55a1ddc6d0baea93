//! Slices that loaders fill: when, how often, and what becomes of it when they fail, hang, panic or lie.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use pelton::files::{FileFormat, FilesLoader};
use pelton::testing::{DiskFault, FaultyDisk, FaultyLoader, LoaderFault, When, open_on};
use pelton::*;

const BLOBS: u64 = 100;

fn key() -> Key {
    "test/loaders@1#0".parse().unwrap()
}

/// Longer than any of this takes.
fn later() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(60))
}

/// Failures heal at once, unless a test is about that.
fn builder(folder: &Path, loader: &FaultyLoader) -> CacheBuilder {
    let builder = Cache::builder().spindle(folder.join("spindle"), None).memory(256 << 20).scan_threads(2);
    builder
        .loader("faulty", loader.clone())
        .view(View::new("test/loaders".parse().unwrap()).loader("faulty"))
        .heal_after(Duration::ZERO, Duration::ZERO)
}

fn lease(cache: &Cache) -> Result<Lease, LeaseError> {
    cache.lease(&key(), Want::Latest, later())
}

/// Whether these are all the blobs of a generation, and nothing else.
fn check(lease: &Lease, generation: u64) {
    let gather = |blobs: &mut Blobs<'_>, found: &mut Vec<Vec<u8>>| {
        while let Some(blob) = blobs.next()? {
            found.push(blob.to_vec());
        }
        Ok(())
    };
    let mut found = lease.scan(gather, |a, b| [a, b].concat()).unwrap();
    let mut expected: Vec<_> =
        (0..BLOBS).map(|number| FaultyLoader::blob(lease.key(), generation, number)).collect();
    found.sort();
    expected.sort();
    assert!(found == expected, "{} blobs, expected {BLOBS} of generation {generation}", found.len());
}

fn faulty(fills: impl IntoIterator<Item = LoaderFault>) -> FaultyLoader {
    let loader = FaultyLoader::new(BLOBS);
    loader.fail_fills(fills);
    loader
}

fn loads_told(events: &mut Events) -> (usize, usize) {
    let events: Vec<Event> = std::iter::from_fn(|| events.try_recv()).collect();
    let count = |is_one: fn(&Event) -> bool| events.iter().filter(|event| is_one(event)).count();
    (
        count(|event| matches!(event, Event::LoadBegan { .. })),
        count(|event| matches!(event, Event::LoadFailed { .. })),
    )
}

#[test]
fn leases_of_a_cold_slice_at_the_same_time_share_one_load() {
    let folder = tempfile::tempdir().unwrap();
    let loader = FaultyLoader::new(BLOBS);
    let cache = builder(folder.path(), &loader).open().unwrap();
    let mut events = cache.events();
    let together = Barrier::new(16);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                together.wait();
                check(&lease(&cache).unwrap(), 0);
            });
        }
    });
    assert_eq!((loader.fills(), loads_told(&mut events)), (1, (1, 0)));
    assert!(loader.plans() <= 16);
    check(&lease(&cache).unwrap(), 0);
    assert_eq!(loader.fills(), 1, "it is there");
}

#[test]
fn a_slice_that_no_view_gives_a_loader_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let loader = FaultyLoader::new(BLOBS);
    let cache = builder(folder.path(), &loader).open().unwrap();
    let other = "test/others@1#0".parse().unwrap();
    assert!(matches!(cache.lease(&other, Want::Latest, None), Err(LeaseError::NotThere { .. })));
    assert_eq!(loader.plans(), 0);
    let unknown = View::new("test/*".parse().unwrap()).loader("unknown");
    let error =
        Cache::builder().spindle(folder.path().join("other"), None).view(unknown).open().err().unwrap();
    assert!(error.to_string().contains("\"unknown\""), "{error}");
}

#[test]
fn a_waiter_whose_deadline_passes_leaves_the_load_to_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let loader = faulty([LoaderFault::Hang]);
    let cache = builder(folder.path(), &loader).open().unwrap();
    std::thread::scope(|scope| {
        let patient = [(); 2].map(|()| scope.spawn(|| lease(&cache).unwrap()));
        assert!(loader.wait_for_hangs(1, later().unwrap()));
        let soon = Some(Instant::now() + Duration::from_millis(10));
        assert!(matches!(cache.lease(&key(), Want::Latest, soon), Err(LeaseError::Deadline { .. })));
        assert_eq!(cache.snap(&key()).status().state, SnapState::Loading);
        loader.let_go();
        patient.into_iter().for_each(|thread| check(&thread.join().unwrap(), 0));
    });
    assert_eq!(loader.fills(), 1);
}

#[test]
fn a_load_that_nobody_waits_for_goes_on_unless_its_plan_says_otherwise() {
    for unwanted in [Unwanted::GoOn, Unwanted::Cancel] {
        let folder = tempfile::tempdir().unwrap();
        let loader = faulty([LoaderFault::Hang]);
        let mut plan = LoadPlan::new(FaultyLoader::fingerprint(0));
        plan.unwanted = unwanted;
        loader.set_plan(plan);
        let cache = builder(folder.path(), &loader).open().unwrap();
        let mut events = cache.events();
        // Dropping the future is the end of its patience, too.
        let waiting = cache.lease_async(&key(), Want::Latest, None);
        assert!(loader.wait_for_hangs(1, later().unwrap()));
        drop(waiting);
        if unwanted == Unwanted::Cancel {
            while !matches!(events.recv(later()).unwrap(), Event::LoadFailed { .. }) {}
        }
        loader.let_go();
        check(&lease(&cache).unwrap(), 0);
        assert_eq!(loader.fills(), if unwanted == Unwanted::GoOn { 1 } else { 2 });
    }
}

/// The next answer after what failed has healed.
fn lease_when_healed(cache: &Cache) -> Result<Lease, LeaseError> {
    loop {
        match lease(cache) {
            Err(LeaseError::Failed { again_in, .. }) => std::thread::sleep(again_in),
            answer => return answer,
        }
    }
}

#[test]
fn a_load_that_has_failed_is_not_tried_again_for_a_while_and_says_when() {
    let folder = tempfile::tempdir().unwrap();
    let loader = faulty([LoaderFault::Fail]);
    let wait = Duration::from_secs(60);
    let cache = builder(folder.path(), &loader).heal_after(wait, wait).open().unwrap();
    let told = "the source fails, as told";
    let error = lease(&cache).unwrap_err();
    assert!(matches!(&error, LeaseError::LoadFailed { why, .. } if why == told), "{error}");
    let status = cache.snap(&key()).status();
    let failure = status.failure.expect("it has just failed");
    assert_eq!((status.state, failure.in_a_row, &*failure.why), (SnapState::Failed, 1, told));
    assert!(failure.again_in <= wait && failure.again_in > Duration::ZERO);
    assert_eq!(cache.search(&KeyPattern::ALL).len(), 1, "it is listed");
    match lease(&cache) {
        Err(LeaseError::Failed { again_in, why, .. }) => assert!(again_in <= failure.again_in && why == told),
        other => panic!("{other:?}"),
    }
    assert_eq!((loader.plans(), loader.fills()), (1, 1), "nobody asks the source");
}

#[test]
fn a_load_that_fails_heals_with_time() {
    let folder = tempfile::tempdir().unwrap();
    let loader = faulty([LoaderFault::Fail, LoaderFault::Fail]);
    let min = Duration::from_millis(20);
    let cache = builder(folder.path(), &loader).heal_after(min, Duration::from_secs(10)).open().unwrap();
    let begun = Instant::now();
    for _ in 0..2 {
        assert!(matches!(lease_when_healed(&cache), Err(LeaseError::LoadFailed { .. })));
    }
    check(&lease_when_healed(&cache).unwrap(), 0);
    assert!(begun.elapsed() >= min + 2 * min, "the second failure counts twice: {:?}", begun.elapsed());
    assert_eq!((cache.snap(&key()).status().failure, loader.fills()), (None, 3));
}

#[test]
fn a_plan_that_fails_or_panics_heals_with_time_too() {
    let folder = tempfile::tempdir().unwrap();
    let loader = FaultyLoader::new(BLOBS);
    loader.fail_plans([LoaderFault::Fail, LoaderFault::Panic, LoaderFault::NotThere]);
    let min = Duration::from_millis(20);
    let cache = builder(folder.path(), &loader).heal_after(min, min).open().unwrap();
    for told in ["the source fails, as told", "its loader panicked: the loader panics, as told"] {
        let error = lease_when_healed(&cache).unwrap_err();
        assert!(matches!(&error, LeaseError::LoadFailed { why, .. } if why == told), "{error}");
    }
    assert!(matches!(lease_when_healed(&cache), Err(LeaseError::NotThere { .. })));
    assert_eq!(cache.snap(&key()).status().failure, None, "that is no failure");
    check(&lease(&cache).unwrap(), 0);
    assert_eq!((loader.plans(), loader.fills()), (4, 1));
}

#[test]
fn a_plan_that_has_failed_is_not_asked_for_again_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let loader = FaultyLoader::new(BLOBS);
    loader.fail_plans([LoaderFault::Fail]);
    let wait = Duration::from_secs(60);
    let cache = builder(folder.path(), &loader).heal_after(wait, wait).open().unwrap();
    assert!(matches!(lease(&cache), Err(LeaseError::LoadFailed { .. })));
    assert_eq!(cache.snap(&key()).status().state, SnapState::Failed);
    assert!(matches!(lease(&cache), Err(LeaseError::Failed { .. })));
    let wanted = Want::Fingerprint(FaultyLoader::fingerprint(0));
    assert!(matches!(cache.lease(&key(), wanted, None), Err(LeaseError::Failed { .. })));
    assert_eq!(loader.plans(), 1);
}

#[test]
fn a_panic_fails_that_load_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let loader = faulty([LoaderFault::Panic]);
    let cache = builder(folder.path(), &loader).open().unwrap();
    let error = lease(&cache).unwrap_err();
    let told = "its loader panicked: the loader panics, as told";
    assert!(matches!(&error, LeaseError::LoadFailed { why, .. } if why == told), "{error}");
    check(&lease(&cache).unwrap(), 0);
    cache.close(later()).unwrap();
}

/// Goal: a loader that ends when it is cancelled delays no close, and one that does not is named at the deadline; who waits
/// is told at once. In both cases nothing is left of the load.
#[test]
fn closing_cancels_what_loaders_are_at() {
    for (fault, ends) in [(LoaderFault::Hang, true), (LoaderFault::HangForEver, false)] {
        let folder = tempfile::tempdir().unwrap();
        let loader = faulty([fault]);
        let cache = builder(folder.path(), &loader).open().unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| lease(&cache).unwrap_err());
            assert!(loader.wait_for_hangs(1, later().unwrap()));
            let deadline = if ends { later() } else { Some(Instant::now() + Duration::from_millis(50)) };
            let closed = cache.clone().close(deadline);
            assert!(matches!(waiter.join().unwrap(), LeaseError::Closed { .. }));
            match (closed, ends) {
                (Ok(()), true) => {}
                (Err(error), false) => {
                    assert_eq!(error.loading, [key()]);
                    assert!(error.to_string().contains("loader of test/loaders@1#0"), "{error}");
                }
                (closed, _) => panic!("{closed:?}"),
            }
        });
        loader.let_go();
        drop(cache);
        let cache = builder(folder.path(), &loader).open().unwrap();
        assert_eq!(cache.search(&KeyPattern::ALL), []);
        check(&lease(&cache).unwrap(), 0);
    }
}

/// Goal: a close keeps its deadline also where it drops the last handle, and its future waits for nothing where it is made.
#[test]
fn a_close_of_the_last_handle_waits_for_no_loader_beyond_its_deadline() {
    for is_async in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let loader = faulty([LoaderFault::HangForEver]);
        let cache = builder(folder.path(), &loader).open().unwrap();
        let waiting = cache.lease_async(&key(), Want::Latest, None);
        assert!(loader.wait_for_hangs(1, later().unwrap()));
        let begun = Instant::now();
        let deadline = Some(begun + Duration::from_millis(50));
        if is_async {
            drop(cache.close_async(deadline));
        } else {
            assert_eq!(cache.close(deadline).unwrap_err().loading, [key()]);
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        drop(waiting);
        loader.let_go();
    }
}

#[test]
fn closing_ends_a_plan_that_somebody_waits_for() {
    let folder = tempfile::tempdir().unwrap();
    let loader = FaultyLoader::new(BLOBS);
    loader.fail_plans([LoaderFault::Hang]);
    let cache = builder(folder.path(), &loader).open().unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| lease(&cache).unwrap_err());
        assert!(loader.wait_for_hangs(1, later().unwrap()));
        let soon = Some(Instant::now() + Duration::from_millis(10));
        assert!(matches!(cache.lease(&key(), Want::Latest, soon), Err(LeaseError::Deadline { .. })));
        let closed = cache.clone().close(Some(Instant::now() + Duration::from_millis(50)));
        assert_eq!(closed.unwrap_err().loading, [key()]);
        assert!(matches!(waiter.join().unwrap(), LeaseError::Closed { .. }));
    });
    loader.let_go();
}

#[test]
fn dropping_the_last_handle_cancels_what_loaders_are_at() {
    let folder = tempfile::tempdir().unwrap();
    let loader = faulty([LoaderFault::Hang]);
    let cache = builder(folder.path(), &loader).open().unwrap();
    let waiting = cache.lease_async(&key(), Want::Latest, None);
    assert!(loader.wait_for_hangs(1, later().unwrap()));
    drop(waiting);
    let begun = Instant::now();
    drop(cache);
    assert!(begun.elapsed() < Duration::from_secs(30));
    // The folder can be opened again at once.
    check(&lease(&builder(folder.path(), &loader).open().unwrap()).unwrap(), 0);
}

/// Goal: the plan's deadline ends the load although its loader goes on hanging.
#[test]
fn a_loader_that_hangs_beyond_its_deadline_fails_its_load() {
    let folder = tempfile::tempdir().unwrap();
    let loader = faulty([LoaderFault::HangForEver]);
    let mut plan = LoadPlan::new(FaultyLoader::fingerprint(0));
    plan.deadline = Some(Instant::now() + Duration::from_millis(100));
    loader.set_plan(plan);
    let cache = builder(folder.path(), &loader).open().unwrap();
    let error = lease(&cache).unwrap_err();
    assert!(matches!(&error, LeaseError::LoadFailed { why, .. } if why == "it was not done at its deadline"));
    loader.set_plan(LoadPlan::new(FaultyLoader::fingerprint(0)));
    check(&lease(&cache).unwrap(), 0);
    loader.let_go();
}

#[test]
fn counts_that_differ_are_told_and_a_strict_plan_refuses_them() {
    let folder = tempfile::tempdir().unwrap();
    let loader = faulty([LoaderFault::Lie(5), LoaderFault::Lie(5)]);
    let cache = builder(folder.path(), &loader).open().unwrap();
    let mut events = cache.events();
    check(&lease(&cache).unwrap(), 0);
    let told = std::iter::from_fn(|| events.try_recv()).find_map(|event| match event {
        Event::LoadInvalid { expected, arrived, .. } => Some((expected, arrived)),
        _ => None,
    });
    assert_eq!(told, Some((BLOBS + 5, BLOBS)));
    assert_eq!(cache.snap(&key()).status().counts.expected, Some(BLOBS + 5));
    let invalid = Selection::new(KeyPattern::ALL).filters("invalid=true".parse().unwrap());
    assert_eq!(cache.select(&invalid).len(), 1);
    let mut plan = LoadPlan::new(FaultyLoader::fingerprint(0));
    plan.strict_counts = true;
    loader.set_plan(plan);
    assert!(cache.snap(&key()).flush(later()).unwrap());
    let error = lease(&cache).unwrap_err();
    let told = "its source meant to send 105 blobs, 100 have arrived";
    assert!(matches!(&error, LeaseError::LoadFailed { why, .. } if why == told), "{error}");
    check(&lease(&cache).unwrap(), 0);
}

#[test]
fn a_slice_without_blobs_is_loaded_once_and_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let loader = faulty([LoaderFault::Empty]);
    let cache = builder(folder.path(), &loader).open().unwrap();
    for _ in 0..2 {
        assert_eq!(lease(&cache).unwrap().region_count(), 0);
        assert_eq!(cache.snap(&key()).status().state, SnapState::NoData);
    }
    assert_eq!(loader.fills(), 1);
}

#[test]
fn another_plan_reslices_for_who_asks_for_it_and_leases_keep_what_they_hold() {
    let folder = tempfile::tempdir().unwrap();
    let loader = FaultyLoader::new(BLOBS);
    let cache = builder(folder.path(), &loader).open().unwrap();
    let old = lease(&cache).unwrap();
    loader.set_generation(1);
    check(&lease(&cache).unwrap(), 0);
    assert_eq!(loader.fills(), 1, "what is there will do");

    let wanted = |generation| Want::Fingerprint(FaultyLoader::fingerprint(generation));
    let new = cache.lease(&key(), wanted(1), later()).unwrap();
    check(&new, 1);
    check(&old, 0);
    check(&lease(&cache).unwrap(), 1);
    match cache.lease(&key(), wanted(0), later()) {
        Err(LeaseError::OtherPlan { planned, expected, .. }) => {
            assert_eq!((planned, *expected), (FaultyLoader::fingerprint(1), FaultyLoader::fingerprint(0)));
        }
        other => panic!("{other:?}"),
    }

    loader.set_generation(2);
    let mut options = LeaseOptions::default();
    options.refresh = true;
    check(&cache.lease_with(&key(), &options).unwrap(), 2);
    check(&cache.lease_with(&key(), &options).unwrap(), 2);
    assert_eq!(loader.fills(), 3);
    check(&old, 0);
}

/// Goal: many who want different generations at once all get what they ask for, or hear that it can't be had.
#[test]
fn reslices_race_leases_and_flushes() {
    let folder = tempfile::tempdir().unwrap();
    let loader = FaultyLoader::new(BLOBS);
    let cache = builder(folder.path(), &loader).open().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (cache, loader) = (&cache, &loader);
            scope.spawn(move || {
                for round in 0..25 {
                    let generation = round / 5;
                    match thread {
                        0 => loader.set_generation(generation),
                        1 => drop(cache.snap(&key()).flush(later()).unwrap()),
                        _ => {
                            let want = Want::Fingerprint(FaultyLoader::fingerprint(generation));
                            match cache.lease(&key(), want, later()) {
                                // The loader reads its generation when it fills: it may be ahead of its plan.
                                Ok(lease) => {
                                    assert_eq!(lease.fingerprint(), FaultyLoader::fingerprint(generation))
                                }
                                Err(LeaseError::OtherPlan { .. }) => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                    }
                }
            });
        }
    });
    check(&lease_refreshed(&cache), 4);
    cache.close(later()).unwrap();
}

fn lease_refreshed(cache: &Cache) -> Lease {
    cache.snap(&key()).flush(later()).unwrap();
    lease(cache).unwrap()
}

#[test]
fn a_flushed_slice_is_loaded_anew_and_an_evicted_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let loader = FaultyLoader::new(BLOBS);
    let cache = builder(folder.path(), &loader).open().unwrap();
    drop(lease(&cache).unwrap());
    cache.sync(later()).unwrap();
    assert!(cache.snap(&key()).evict());
    check(&lease(&cache).unwrap(), 0);
    assert_eq!(loader.fills(), 1);
    assert!(cache.snap(&key()).flush(later()).unwrap());
    check(&lease(&cache).unwrap(), 0);
    assert_eq!(loader.fills(), 2);
}

#[test]
fn what_is_on_the_disk_after_a_restart_is_not_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let loader = FaultyLoader::new(BLOBS);
    let cache = builder(folder.path(), &loader).open().unwrap();
    drop(lease(&cache).unwrap());
    cache.close(later()).unwrap();
    let cache = builder(folder.path(), &loader).open().unwrap();
    assert_eq!(cache.snap(&key()).status().state, SnapState::Warm);
    check(&lease(&cache).unwrap(), 0);
    assert_eq!((loader.plans(), loader.fills()), (1, 1));
}

/// Goal: damage is no end of a slice that a loader knows. Method: a byte of a region's header is changed.
#[test]
fn a_damaged_slice_is_loaded_anew_for_who_leases_it() {
    let folder = tempfile::tempdir().unwrap();
    let loader = FaultyLoader::new(BLOBS);
    let cache = builder(folder.path(), &loader).residence(Residence::Image).open().unwrap();
    drop(lease(&cache).unwrap());
    cache.sync(later()).unwrap();
    assert!(cache.snap(&key()).evict());
    let region = region_files(folder.path()).pop().unwrap();
    std::fs::File::options().write(true).open(region).unwrap().write_all_at(&[0xFF], 100).unwrap();
    check(&lease(&cache).unwrap(), 0);
    assert_eq!(loader.fills(), 2);
}

fn region_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { region_files(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "region")).collect()
}

#[test]
fn slices_of_one_generation_are_loaded_each_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let loader = faulty([LoaderFault::Fail]);
    let cache = builder(folder.path(), &loader).heal_after(Duration::from_secs(60), Duration::from_secs(60));
    let cache = cache.open().unwrap();
    let slices: [Key; 2] = ["test/loaders@1#0", "test/loaders@1#1"].map(|key| key.parse().unwrap());
    assert!(cache.lease(&slices[0], Want::Latest, later()).is_err());
    check(&cache.lease(&slices[1], Want::Latest, later()).unwrap(), 0);
    assert!(matches!(cache.lease(&slices[0], Want::Latest, later()), Err(LeaseError::Failed { .. })));
    let states: Vec<SnapState> = cache.search(&KeyPattern::ALL).iter().map(|snap| snap.state).collect();
    assert_eq!(states, [SnapState::Failed, SnapState::Hot]);
}

/// A load by hand shares the key: leases wait for it, and it does not wait out a failure.
#[test]
fn a_load_by_hand_and_a_loader_share_a_slice() {
    let folder = tempfile::tempdir().unwrap();
    let loader = faulty([LoaderFault::Fail]);
    let cache = builder(folder.path(), &loader).heal_after(Duration::from_secs(60), Duration::from_secs(60));
    let cache = cache.open().unwrap();
    assert!(matches!(lease(&cache), Err(LeaseError::LoadFailed { .. })));
    let writer = cache.snap(&key()).open_for_writes(LoadPlan::new(FaultyLoader::fingerprint(7))).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| lease(&cache).unwrap());
        let mut parcel = ParcelBuilder::default();
        (0..BLOBS).for_each(|number| parcel.push(&FaultyLoader::blob(&key(), 7, number)).unwrap());
        writer.queue_parcel(parcel.finish()).unwrap();
        writer.wait_for_writes().unwrap().close_for_writes().unwrap();
        check(&waiter.join().unwrap(), 7);
    });
    assert_eq!(loader.fills(), 1);
}

/// A loader of futures that waits for the cache, and for nothing else.
struct Futures;

impl AsyncLoader for Futures {
    async fn plan(&self, key: &Key) -> Result<LoadPlan, LoaderError> {
        if key.slice() == 9 {
            return Err(LoaderError::NotThere);
        }
        Ok(LoadPlan::new(FaultyLoader::fingerprint(0)))
    }

    async fn fill(&self, fill: &Fill) -> Result<Counts, LoaderError> {
        if fill.key().slice() == 1 {
            std::future::pending::<()>().await;
        }
        for number in 0..BLOBS {
            let mut parcel = ParcelBuilder::default();
            parcel.push(&FaultyLoader::blob(fill.key(), 0, number))?;
            fill.queue_parcel_async(parcel.finish()).await?;
        }
        Ok(Counts::default())
    }
}

#[test]
fn a_loader_of_futures_needs_no_runtime_and_is_dropped_at_a_cancel() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::builder()
        .spindle(folder.path().join("spindle"), None)
        .memory(256 << 20)
        .async_loader("futures", Futures)
        .view(View::new("test/*".parse().unwrap()).loader("futures"))
        .open()
        .unwrap();
    check(&lease(&cache).unwrap(), 0);
    let not_there = "test/loaders@1#9".parse().unwrap();
    assert!(matches!(cache.lease(&not_there, Want::Latest, later()), Err(LeaseError::NotThere { .. })));
    let hanging: Key = "test/loaders@1#1".parse().unwrap();
    let soon = Some(Instant::now() + Duration::from_millis(20));
    assert!(matches!(cache.lease(&hanging, Want::Latest, soon), Err(LeaseError::Deadline { .. })));
    cache.close(later()).unwrap();
}

/// All blobs, sorted.
fn blobs_of(lease: &Lease) -> Vec<Vec<u8>> {
    let gather = |blobs: &mut Blobs<'_>, found: &mut Vec<Vec<u8>>| {
        while let Some(blob) = blobs.next()? {
            found.push(blob.to_vec());
        }
        Ok(())
    };
    let mut found = lease.scan(gather, |a, b| [a, b].concat()).unwrap();
    found.sort();
    found
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn cache_of_files(folder: &Path, format: FileFormat) -> CacheBuilder {
    Cache::builder()
        .spindle(folder.join("spindle"), None)
        .memory(256 << 20)
        .loader("files", FilesLoader::new(folder.join("data"), format))
        .view(View::new("shop/*".parse().unwrap()).loader("files"))
        .heal_after(Duration::ZERO, Duration::ZERO)
}

#[test]
fn files_in_a_tree_are_slices_in_every_format() {
    let framed: Vec<u8> = [&b"pear"[..], b"plum"]
        .iter()
        .flat_map(|blob| [&(blob.len() as u32).to_le_bytes()[..], blob].concat())
        .collect();
    let region = encode_to_vec(&Header::default(), ["pear", "plum"], None).unwrap();
    let cases = [
        (FileFormat::Lines, b"pear\nplum\n".to_vec(), vec!["pear", "plum"]),
        (FileFormat::Framed, framed, vec!["pear", "plum"]),
        (FileFormat::Raw, b"pear\nplum\n".to_vec(), vec!["pear\nplum\n"]),
        (FileFormat::Region, region, vec!["pear", "plum"]),
    ];
    for (format, bytes, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("data/shop/fruit/7/0/a"), &bytes);
        write(&folder.path().join("data/shop/fruit/7/1"), &bytes);
        write(&folder.path().join("data/shop/fruit/7/2/deep/b"), &bytes);
        let cache = cache_of_files(folder.path(), format).open().unwrap();
        for slice in 0..3 {
            let key = Key::new("shop", "fruit", 7, slice).unwrap();
            let lease = cache.lease(&key, Want::Latest, later()).unwrap();
            assert_eq!(blobs_of(&lease), expected.iter().map(|blob| blob.as_bytes()).collect::<Vec<_>>());
        }
        let missing = Key::new("shop", "fruit", 7, 3).unwrap();
        assert!(matches!(cache.lease(&missing, Want::Latest, later()), Err(LeaseError::NotThere { .. })));
        let outside = Key::new("shop", "..", 7, 0).unwrap();
        assert!(matches!(cache.lease(&outside, Want::Latest, later()), Err(LeaseError::NotThere { .. })));
    }
}

#[test]
fn files_that_change_are_loaded_anew_for_who_asks_for_what_is_there_now() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data/shop/fruit/7/0/a");
    write(&file, b"pear\n");
    let cache = cache_of_files(folder.path(), FileFormat::Lines).open().unwrap();
    let key = Key::new("shop", "fruit", 7, 0).unwrap();
    let before = cache.lease(&key, Want::Latest, later()).unwrap();
    write(&file, b"plum\n");
    let same = cache.lease(&key, Want::Latest, later()).unwrap();
    assert_eq!((blobs_of(&same), same.fingerprint()), (vec![b"pear".to_vec()], before.fingerprint()));
    let mut options = LeaseOptions::default();
    options.refresh = true;
    let after = cache.lease_with(&key, &options).unwrap();
    assert_eq!(blobs_of(&after), [b"plum"]);
    assert_ne!(after.fingerprint(), before.fingerprint());
}

#[test]
fn files_that_are_not_what_was_said_fail_their_load_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("data");
    write(&root.join("shop/fruit/7/0/cut"), &[9, 0, 0, 0, 1]);
    let cache = cache_of_files(folder.path(), FileFormat::Framed).open().unwrap();
    let key = Key::new("shop", "fruit", 7, 0).unwrap();
    let error = cache.lease(&key, Want::Latest, later()).unwrap_err().to_string();
    assert!(error.contains("7/0/cut: frame 0 is cut off"), "{error}");
    // A tree that is not mounted is not a tree without the slice.
    std::fs::rename(&root, folder.path().join("elsewhere")).unwrap();
    let error = cache.lease(&key, Want::Latest, later()).unwrap_err();
    assert!(
        matches!(&error, LeaseError::LoadFailed { why, .. } if why.contains("could not be read")),
        "{error}"
    );
}

/// A disk that fails is the loader's error to pass on, and no reason to load for ever.
#[test]
fn a_disk_that_refuses_fails_the_load_and_a_healed_one_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let spindle = folder.path().join("spindle");
    let disk = FaultyDisk::new(&spindle, 7);
    disk.fail(When::Every("create"), DiskFault::Error(5));
    let loader = FaultyLoader::new(BLOBS);
    let builder = Cache::builder()
        .memory(256 << 20)
        .free_floor(0)
        .loader("faulty", loader.clone())
        .view(View::new("test/loaders".parse().unwrap()).loader("faulty"))
        .heal_after(Duration::ZERO, Duration::ZERO);
    let cache = open_on(builder, std::slice::from_ref(&disk)).unwrap();
    let error = lease(&cache).unwrap_err();
    assert!(matches!(error, LeaseError::LoadFailed { .. }), "{error}");
    disk.heal();
    check(&lease(&cache).unwrap(), 0);
    cache.sync(later()).unwrap();
    assert!(disk.ops() > 0);
    drop(cache);
    // What was durable is there when the power has gone.
    let builder = Cache::builder().memory(256 << 20).free_floor(0);
    let cache = open_on(builder, &[disk.after_power_loss()]).unwrap();
    check(&lease(&cache).unwrap(), 0);
}

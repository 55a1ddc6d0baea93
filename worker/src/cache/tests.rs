//! The cache on disks that fail as told.

mod access;
mod events;
mod pending;

use std::path::Path;
use std::time::{Duration, Instant};

use pelton_region_format::Fingerprint;
use rustix::io::Errno;

use super::*;
use crate::ops::operation::{OperationError, OperationOutcome};
use crate::slice::parcel::{Parcel, ParcelBuilder};
use crate::slice::plan::{Durability, WritePath};
use crate::snap::recovery::{Recovered, find};
use crate::spindle::engine::Op;
use crate::spindle::engine::sim::{Failure, SimDisk, When};
use crate::spindle::health::HealthLimits;
use crate::{CommitError, Counts, Fill, Loader, LoaderError, RefusalReason, View, WriteError};

const MIB: u64 = 1 << 20;
const BLOBS: u64 = 10;

/// A cache on simulated disks. Which faults a test makes it says itself.
struct Rig {
    /// Holds the identities of the spindles; all else is in the disks.
    folder: tempfile::TempDir,
    disks: Vec<SimDisk>,
}

impl Rig {
    fn new(disks: usize) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let disks =
            (0..disks).map(|number| SimDisk::healthy(Rig::path(folder.path(), number), 7 + number as u64));
        Rig { disks: disks.collect(), folder }
    }

    fn path(folder: &Path, number: usize) -> std::path::PathBuf {
        folder.join(format!("spindle-{number}"))
    }

    fn open(&self, health: HealthLimits) -> Cache {
        self.open_those(0..self.disks.len(), health)
    }

    /// With one spindle away.
    fn open_without(&self, away: usize) -> Cache {
        let there = (0..self.disks.len()).filter(|number| *number != away);
        self.open_those(there, HealthLimits::default())
    }

    fn open_those(&self, numbers: impl Iterator<Item = usize> + Clone, health: HealthLimits) -> Cache {
        self.try_open(numbers, health).unwrap()
    }

    fn try_open(
        &self,
        numbers: impl Iterator<Item = usize> + Clone,
        health: HealthLimits,
    ) -> Result<Cache, CacheError> {
        let disks = numbers.clone().map(|number| self.disks[number].clone()).collect();
        self.builder(numbers).open_on(disks, health)
    }

    fn builder(&self, numbers: impl Iterator<Item = usize>) -> CacheBuilder {
        let mut config = crate::Config::default();
        // So that a few lost requests do not fill the ring, whatever the real disk is.
        (config.depth, config.scan_threads, config.free_floor) = (Some(64), Some(2), Some(0));
        let builder = CacheBuilder::from_config(config).memory(256 * MIB);
        numbers
            .fold(builder, |builder, number| builder.spindle(Rig::path(self.folder.path(), number), 1 << 30))
    }
}

/// Quick to try again, so that a test need not wait.
fn impatient() -> HealthLimits {
    HealthLimits { probe_wait_min: Duration::ZERO, probe_wait_max: Duration::ZERO, ..HealthLimits::default() }
}

fn key() -> Key {
    "test/sim@1#0".parse().unwrap()
}

fn plan(write_path: WritePath) -> LoadPlan {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.regions = Some(2);
    plan.write_path = write_path;
    plan.durability = Durability::Wait;
    plan
}

fn load(cache: &Cache, plan: LoadPlan) -> Result<(), LoadError> {
    let writer = cache.snap(&key()).open_for_writes(plan)?;
    for number in 0..BLOBS {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number as u8; MIB as usize]).unwrap();
        writer.queue_parcel(parcel.finish())?;
    }
    writer.wait_for_writes()?.close_for_writes()
}

fn scan(cache: &Cache) -> Result<u64, LeaseError> {
    let lease = cache.lease(&key(), Want::Latest, None)?;
    let count = |blobs: &mut crate::Blobs<'_>, n: &mut u64| {
        while let Some(blob) = blobs.next()? {
            assert!(blob.len() as u64 == MIB && blob.iter().all(|byte| *byte == blob[0]));
            *n += 1;
        }
        Ok(())
    };
    Ok(lease.scan(count, |a, b| a + b).unwrap())
}

fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[test]
fn a_healthy_simulated_disk_is_a_disk() {
    for write_path in [WritePath::Image, WritePath::Direct] {
        let rig = Rig::new(2);
        let cache = rig.open(HealthLimits::default());
        load(&cache, plan(write_path)).unwrap();
        assert_eq!(scan(&cache).unwrap(), BLOBS);
        drop(cache);
        let cache = Rig { disks: rig.disks.iter().map(SimDisk::restart).collect(), ..rig }
            .open(HealthLimits::default());
        assert_eq!(scan(&cache).unwrap(), BLOBS, "{write_path:?} after a power cut");
    }
}

/// A rig with one slice on its disk, and a cache that has begun to read its manifest, and hangs there: in the manifest
/// itself or, if `nth` is 1, in its regions.
fn opened_and_stuck(nth: u64) -> (Rig, Cache) {
    opened_by_and_stuck(nth, |builder| builder)
}

fn opened_by_and_stuck(nth: u64, with: impl FnOnce(CacheBuilder) -> CacheBuilder) -> (Rig, Cache) {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    cache.recovery();
    load(&cache, plan(WritePath::Direct)).unwrap();
    cache.close(None).unwrap();
    let _ = rig.disks[0].clone().with_fault(When::Nth("look into", nth), Failure::Hang);
    let cache = with(rig.builder(0..1)).open_on(rig.disks.clone(), HealthLimits::default()).unwrap();
    until_stuck(&cache);
    (rig, cache)
}

/// Waits until the reading of manifests hangs.
fn until_stuck(cache: &Cache) {
    while cache.core.spindles[0].impellers.oldest().is_none_or(|(_, since)| since < Duration::from_millis(50))
    {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_lease_is_served_before_the_last_manifest_is_read() {
    let (rig, cache) = opened_and_stuck(0);
    assert_eq!(scan(&cache).unwrap(), BLOBS);
    assert!(!cache.core.recovering.is_over());
    let mut late = plan(WritePath::Direct);
    late.deadline = Some(Instant::now() + Duration::from_millis(20));
    let refused = cache.snap(&key()).open_for_writes(late).map(drop);
    assert!(matches!(refused, Err(LoadError::Starting { .. })), "{refused:?}");
    let nothing: Key = "test/sim@2#0".parse().unwrap();
    assert!(matches!(cache.lease(&nothing, Want::Latest, None), Err(LeaseError::NotThere { .. })));
    rig.disks[0].let_go();
    assert_eq!((cache.recovery().kept, cache.recovery().dropped.len()), (1, 0));
    assert_eq!(cache.search(&"test".parse().unwrap()).len(), 1);
    assert_eq!(scan(&cache).unwrap(), BLOBS);
    load(&cache, plan(WritePath::Direct)).unwrap();
    let used = cache.spindles()[0].used;
    assert_eq!(used, cache.snap(&key()).status().file_bytes, "nothing is counted twice");
}

#[test]
fn what_is_flushed_while_it_is_read_does_not_come_back() {
    let (rig, cache) = opened_and_stuck(1);
    assert!(cache.snap(&key()).flush(None).unwrap());
    assert!(cache.snap(&key()).erase());
    rig.disks[0].let_go();
    cache.recovery();
    assert_eq!(cache.search(&"test".parse().unwrap()), []);
    assert!(matches!(cache.lease(&key(), Want::Latest, None), Err(LeaseError::NotThere { .. })));
    assert_eq!(cache.spindles()[0].used, 0);
    drop(cache);
    assert_eq!(rig.open(HealthLimits::default()).recovery().kept, 0);
}

/// Fills slices with nothing, and counts them.
struct Empty(Arc<AtomicU64>);

impl Loader for Empty {
    fn plan(&self, _: &Key) -> Result<LoadPlan, LoaderError> {
        Ok(plan(WritePath::Direct))
    }

    fn fill(&self, _: &Fill) -> Result<Counts, LoaderError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Counts::default())
    }
}

/// Its number must be above all that are found, and its files must not be taken for those of what was dropped.
#[test]
fn a_load_by_a_loader_waits_until_all_manifests_are_read() {
    let fills = Arc::new(AtomicU64::new(0));
    let view = View::new("test/other".parse().unwrap()).loader("it");
    let (rig, cache) =
        opened_by_and_stuck(0, |builder| builder.loader("it", Empty(fills.clone())).view(view));
    let other: Key = "test/other@1#0".parse().unwrap();
    let soon = Some(Instant::now() + Duration::from_millis(50));
    let late = cache.lease(&other, Want::Latest, soon).map(drop);
    assert!(matches!(late, Err(LeaseError::Deadline { .. })), "{late:?}");
    assert_eq!(fills.load(Ordering::Relaxed), 0);
    rig.disks[0].let_go();
    cache.lease(&other, Want::Latest, None).map(drop).unwrap();
    assert_eq!((fills.load(Ordering::Relaxed), cache.recovery().kept), (1, 1));
    assert_eq!(scan(&cache).unwrap(), BLOBS);
}

/// Goal: a disk that does not answer when all manifests are read takes no room from itself or others: else the tender would
/// flush what lies there. Method: capacities by default, one slice, and each way in which the first disk may be silent then.
#[test]
fn a_silent_disk_at_the_end_of_a_start_changes_no_capacity() {
    let folder = tempfile::tempdir().unwrap();
    let disks: Vec<SimDisk> =
        (0..2).map(|number| SimDisk::healthy(Rig::path(folder.path(), number), 7 + number as u64)).collect();
    let open = || {
        let mut config = crate::Config::default();
        (config.depth, config.scan_threads, config.free_floor) = (Some(64), Some(2), Some(0));
        config.spindles =
            (0..2).map(|number| crate::SpindleConfig::new(Rig::path(folder.path(), number))).collect();
        let builder = CacheBuilder::from_config(config).memory(256 * MIB);
        let cache = builder.open_on(disks.clone(), HealthLimits::default()).unwrap();
        cache.recovery();
        cache
    };
    let capacities =
        |cache: &Cache| cache.spindles().iter().map(|spindle| spindle.capacity).collect::<Vec<_>>();
    let cache = open();
    load(&cache, plan(WritePath::Direct)).unwrap();
    drop(cache);
    let before = disks[0].ops_of("ask for the space of");
    let expected = capacities(&open());
    let asked = disks[0].ops_of("ask for the space of") - before;
    assert_eq!(asked, 2, "when it opens, and when all is read");
    for failure in [Failure::Error(Errno::IO), Failure::Hang] {
        let second = disks[0].ops_of("ask for the space of") + 1;
        let _ = disks[0].clone().with_fault(When::Nth("ask for the space of", second), failure);
        assert_eq!(capacities(&open()), expected);
        disks[0].heal();
        disks[0].let_go();
    }
}

/// The number of the spindle that the slice's manifest lies on.
fn home(cache: &Cache) -> usize {
    let manifest = cache.snap(&key()).entry.manifest().unwrap();
    cache.core.spindles.iter().position(|spindle| spindle.uuid == manifest.spindles[0]).unwrap()
}

/// Two manifests of one slice: the newer on the second disk, and on the first one what it has replaced, which that disk did not
/// let go.
fn two_generations() -> (Rig, Cache) {
    let rig = Rig::new(2);
    let cache = rig.open(HealthLimits::default());
    cache.recovery();
    let one_region = || LoadPlan { regions: Some(1), ..plan(WritePath::Direct) };
    load(&cache, one_region()).unwrap();
    if home(&cache) == 1 {
        load(&cache, one_region()).unwrap();
    }
    let _ = rig.disks[0].clone().with_fault(When::Every("unlink"), Failure::Error(Errno::IO));
    load(&cache, LoadPlan { fingerprint: Fingerprint::from_bytes([2; 32]), ..one_region() }).unwrap();
    assert_eq!(home(&cache), 1);
    (rig, cache)
}

#[test]
fn what_could_not_be_removed_does_not_come_back_after_a_flush() {
    let (rig, cache) = two_generations();
    let refused = cache.snap(&key()).flush(None);
    assert!(matches!(refused, Err(FlushError::Disk { .. })), "{refused:?}");
    drop(cache);
    // What was left by a flush that was refused is the newer one.
    let cache = rig.open(HealthLimits::default());
    assert_eq!((cache.recovery().kept, cache.recovery().dropped.len()), (1, 1));
    let newer = Some(Fingerprint::from_bytes([2; 32]));
    assert_eq!(cache.snap(&key()).status().fingerprint, newer);
    drop(cache);

    // The start's own removal was refused, too. Once the disk is well again a flush takes both.
    let cache = rig.open(HealthLimits::default());
    cache.recovery();
    rig.disks[0].heal();
    assert!(cache.snap(&key()).flush(None).unwrap());
    drop(cache);
    assert_eq!(rig.open(HealthLimits::default()).recovery().kept, 0);
}

#[test]
fn what_could_not_be_removed_goes_with_what_has_replaced_it() {
    let (rig, cache) = two_generations();
    rig.disks[0].heal();
    assert!(cache.snap(&key()).flush(None).unwrap());
    drop(cache);
    let cache = rig.open(HealthLimits::default());
    assert_eq!((cache.recovery().kept, cache.spindles()[0].used), (0, 0));
}

/// Goal: what has replaced an older load hides it, also when it is worth nothing itself. Method: the newer load's region is gone,
/// and the older load's manifest can't be removed by the start that sees it.
#[test]
fn a_start_that_can_not_remove_an_older_load_leaves_what_hides_it() {
    let (rig, cache) = two_generations();
    let manifest = cache.snap(&key()).entry.manifest().unwrap();
    let path = cache.core.spindles[1].folder.join(&manifest.regions[0].path);
    cache.core.spindles[1].impellers.run(Op::Unlink { path }, None).unwrap();
    drop((cache, manifest));
    for _ in 0..2 {
        let cache = rig.open(HealthLimits::default());
        assert_eq!((cache.recovery().kept, cache.recovery().dropped.len()), (0, 2));
    }
    rig.disks[0].heal();
    assert_eq!(rig.open(HealthLimits::default()).recovery().dropped.len(), 2);
    let report = rig.open(HealthLimits::default()).recovery().clone();
    assert_eq!((report.kept, report.dropped.len()), (0, 0), "{report:?}");
}

/// Goal: a flush while the disks are read takes what the slice has replaced, too. Method: the reading has seen the older
/// manifest and hangs before the newer one; the slice is flushed.
#[test]
fn what_is_flushed_while_it_is_read_takes_older_loads_with_it() {
    let (rig, cache) = two_generations();
    rig.disks[0].heal();
    drop(cache);
    let [older, newer] = [0, 1].map(|number: usize| rig.disks[number].ops_of("look into"));
    let _ = rig.disks[1].clone().with_fault(When::Nth("look into", newer), Failure::Hang);
    let cache = rig.open(HealthLimits::default());
    // Its manifest, and its region.
    while rig.disks[0].ops_of("look into") < older + 2 || rig.disks[1].ops_of("look into") == newer {
        std::thread::yield_now();
    }
    assert!(cache.snap(&key()).flush(None).unwrap());
    rig.disks[1].let_go();
    cache.recovery();
    assert_eq!(cache.search(&KeyPattern::ALL), []);
    drop(cache);
    assert_eq!(rig.open(HealthLimits::default()).recovery().kept, 0);
}

/// Goal: space is counted once. Method: what the reading could not serve, of a key that somebody could look up meanwhile, and
/// of one that nobody has asked for.
#[test]
fn what_was_looked_up_although_the_reading_could_not_serve_it_is_counted_once() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    cache.recovery();
    load(&cache, plan(WritePath::Direct)).unwrap();
    let used = || cache.core.spindles[0].room.counts().used;
    let once = used();
    for is_asked in [true, false] {
        let (target, patience) = (cache.core.target(), Patience::default());
        let waiting = find(&target.spindles, &key(), &patience).unwrap().slice.unwrap();
        assert_eq!(used(), 2 * once);
        let recovering = Arc::new(Recovering::default());
        assert!(!is_asked || recovering.look_up(&target, &key(), &patience));
        recovering.enter(&target, Some(Recovered { waiting: vec![waiting], ..Recovered::default() }));
        assert_eq!(used(), if is_asked { once } else { 2 * once });
    }
}

#[test]
fn a_start_that_panics_keeps_nobody_waiting() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    let recovering = Arc::new(Recovering::default());
    recovering.start(cache.core.target(), Listed::default(), 1, || panic!("a bug, as told"));
    let report = recovering.wait(&Patience::until(Some(Instant::now() + Duration::from_secs(30))));
    assert_eq!(report, Some(&RecoveryReport::default()));
}

/// Goal: the files of a slice go only when the end of its manifest is on the disk, whoever removes them. Method: a flush in
/// the middle of a start can't sync that; the start finds its files unnamed; then the power goes.
#[test]
fn a_start_removes_no_files_whose_manifest_may_come_back() {
    let (mut rig, cache) = opened_and_stuck(0);
    rig.disks[0].clone().with_fault(When::Every("sync folder"), Failure::Error(Errno::IO));
    let flushed = cache.snap(&key()).flush(None);
    assert!(matches!(flushed, Err(FlushError::Disk { .. })), "{flushed:?}");
    rig.disks[0].heal();
    rig.disks[0].let_go();
    assert_eq!((cache.recovery().kept, cache.recovery().cleaned.len()), (0, 1));
    // What may be there is drawn anew for each power cut.
    let cut: Vec<SimDisk> = (0..32).map(|_| rig.disks[0].restart()).collect();
    drop(cache);
    for (number, disk) in cut.into_iter().enumerate() {
        rig.disks = vec![disk];
        let cache = rig.open(HealthLimits::default());
        let report = cache.recovery();
        assert_eq!((report.kept, report.dropped.len()), (0, 0), "cut {number}: {report:?}");
    }
}

/// Goal: whatever waits for the start ends with the cache: the tender's round, a lease and a list without a deadline.
#[test]
fn a_cache_whose_disk_hangs_at_the_start_can_be_closed() {
    for closes in [true, false] {
        let (rig, cache) = opened_and_stuck(0);
        cache.core.tender.poke();
        while Arc::strong_count(&cache.core) < 2 {
            std::thread::yield_now(); // Until the tender is at it.
        }
        let begun = Instant::now();
        if closes {
            let closed = cache.close(Some(Instant::now() + Duration::from_millis(50)));
            let left = closed.unwrap_err().abandoned;
            assert_eq!(left.len(), 2, "the reading, and what does it on the disk: {left:?}");
        } else {
            drop(cache);
        }
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        rig.disks[0].let_go();
    }
}

/// Goal: after a close nothing is served, also of what nobody knew yet. Method: a start that hangs until the cache is
/// closed, for a key that nobody asked for, one that somebody did, and one that the reading finds.
#[test]
fn what_a_start_comes_to_after_the_close_is_closed() {
    let (rig, cache) = opened_and_stuck(0);
    let other = cache.clone();
    let pending = other.snap(&"test/sim@9#0".parse().unwrap());
    let waiting = std::thread::spawn({
        let other = other.clone();
        move || other.search(&KeyPattern::ALL).len()
    });
    cache.close(Some(Instant::now() + Duration::from_millis(50))).unwrap_err();
    assert_eq!(waiting.join().unwrap(), 0);
    assert_eq!(*other.recovery(), RecoveryReport::default());
    assert!(matches!(pending.lease(Want::Latest, None), Err(LeaseError::Closed { .. })));
    assert!(matches!(scan(&other), Err(LeaseError::Closed { .. })));
    let opened = other.snap(&key()).open_for_writes(plan(WritePath::Direct)).map(drop);
    assert!(matches!(opened, Err(LoadError::Closed { .. })), "{opened:?}");
    rig.disks[0].let_go();
}

/// The same for what is found before the close, and entered after it.
#[test]
fn what_is_entered_after_the_close_is_closed() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    cache.recovery();
    load(&cache, plan(WritePath::Direct)).unwrap();
    let manifest = Manifest::clone(&cache.snap(&key()).entry.manifest().unwrap());
    let other = cache.clone();
    let evict = || other.core.target().entry(manifest.clone()).evict(false, None, |_| true).0;
    assert_eq!(evict(), Answer::Nothing);
    cache.close(None).unwrap();
    assert_eq!(evict(), Answer::Closed);
}

#[test]
fn an_operation_keeps_its_deadline_while_the_start_hangs() {
    let (rig, cache) = opened_and_stuck(0);
    assert_eq!(scan(&cache).unwrap(), BLOBS);
    let soon = OperationOptions { deadline: Some(Instant::now()), ..OperationOptions::default() };
    let all = Selection::new(KeyPattern::ALL);
    let results = cache.operate(&all, Operation::Evict { keep_cache: false }, &soon);
    assert!(
        matches!(
            &results[..],
            [OperationResult { outcome: OperationOutcome::Failed(OperationError::Late), .. }]
        ),
        "{results:?}"
    );
    rig.disks[0].let_go();
}

/// Goal: a capacity that somebody sets counts, also while it is not known yet what the spindle holds.
#[test]
fn a_capacity_that_is_set_while_manifests_are_read_stays() {
    let (rig, cache) = opened_and_stuck(0);
    let folder = cache.core.spindles[0].folder.clone();
    cache.set_spindle_capacity(&folder, 64 * MIB).unwrap();
    rig.disks[0].let_go();
    cache.recovery();
    assert_eq!(cache.spindles()[0].capacity, 64 * MIB);
}

/// Goal: who was late while manifests were read has changed nothing for those who come after. Method: the first look at
/// the manifest hangs, and so does that of a lease.
#[test]
fn a_lease_that_is_late_at_the_start_hides_no_slice() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Direct)).unwrap();
    cache.close(None).unwrap();
    let _ = rig.disks[0].clone().with_fault(When::Every("look into"), Failure::Hang);
    let cache = rig.open(HealthLimits::default());
    let soon = Some(Instant::now() + Duration::from_millis(50));
    let late = cache.lease(&key(), Want::Latest, soon).map(drop);
    assert!(matches!(late, Err(LeaseError::Deadline { .. })), "{late:?}");
    assert!(!cache.core.recovering.is_over());
    rig.disks[0].let_go();
    assert_eq!(cache.recovery().kept, 1);
    assert_eq!(scan(&cache).unwrap(), BLOBS);
}

/// Goal: closing names all that it leaves behind. Method: so many manifests that they are read by threads of their own, one
/// of which hangs.
#[test]
fn closing_names_the_reading_that_a_disk_holds_up() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    cache.recovery();
    for number in 0..130 {
        let key = format!("test/sim@1#{number}").parse().unwrap();
        let writer = cache.snap(&key).open_for_writes(plan(WritePath::Auto)).unwrap();
        writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    }
    cache.close(None).unwrap();
    let _ = rig.disks[0].clone().with_fault(When::Nth("look into", 0), Failure::Hang);
    let cache = rig.open(HealthLimits::default());
    let give_up = Instant::now() + Duration::from_secs(60);
    while rig.disks[0].ops_of("look into") == 0 {
        assert!(Instant::now() < give_up, "the reading begins");
        std::thread::yield_now();
    }
    let error = cache.close(Some(Instant::now() + Duration::from_millis(50))).unwrap_err();
    assert!(error.abandoned.iter().any(|thread| thread.starts_with("pelton-recover (")), "{error}");
    rig.disks[0].let_go();
}

#[test]
fn a_manifest_that_can_not_be_read_is_left_alone_and_so_is_all_it_may_name() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    cache.recovery();
    load(&cache, plan(WritePath::Direct)).unwrap();
    drop(cache);
    let _ = rig.disks[0].clone().with_fault(When::Nth("look into", 0), Failure::Error(Errno::IO));
    let cache = rig.open(HealthLimits::default());
    let report = cache.recovery();
    assert_eq!((report.kept, report.left_alone.len(), report.cleaned.len()), (0, 1, 0), "{report:?}");
    drop(cache);
    let cache = rig.open(HealthLimits::default());
    assert_eq!((cache.recovery().kept, scan(&cache).unwrap()), (1, BLOBS));
}

#[test]
fn writes_that_stop_short_are_taken_up_again() {
    let rig = Rig::new(1);
    rig.disks[0].clone().with_fault(When::Every("write"), Failure::Short(12_345));
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Direct)).unwrap();
    assert_eq!(scan(&cache).unwrap(), BLOBS);
    assert_eq!(cache.spindles()[0].state, HealthState::Ok);
}

#[test]
fn a_file_system_that_gives_no_space_ahead_is_written_all_the_same() {
    let rig = Rig::new(1);
    rig.disks[0].clone().with_fault(When::Every("allocate space for"), Failure::Error(Errno::OPNOTSUPP));
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Direct)).unwrap();
    assert_eq!(scan(&cache).unwrap(), BLOBS);
    let status = &cache.spindles()[0];
    assert_eq!((status.state, status.reserved), (HealthState::Ok, 0));
    assert_eq!(status.used, cache.snap(&key()).status().file_bytes);
}

/// Goal: the first failed sync is final, and what it lost is never served. Method: a sync that fails once and
/// forgets what it had, as kernels do; then a power cut.
#[test]
fn a_sync_that_fails_once_sends_the_bytes_to_another_spindle() {
    let rig = Rig::new(2);
    rig.disks[0].clone().with_fault(When::Nth("sync", 0), Failure::Writeback(Errno::IO));
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Image)).unwrap();
    assert!(cache.snap(&key()).status().durable);
    let status = cache.spindles();
    assert_eq!((status[0].used, status[0].state), (0, HealthState::Suspect), "{status:?}");
    assert_eq!(status[1].used, cache.snap(&key()).status().file_bytes);
    drop(cache);
    rig.disks[0].reclaim();
    let after = Rig { disks: rig.disks.iter().map(SimDisk::restart).collect(), ..rig };
    let cache = after.open(HealthLimits::default());
    assert_eq!(scan(&cache).unwrap(), BLOBS);
}

#[test]
fn a_sync_that_fails_without_another_spindle_leaves_the_slice_in_memory_and_marked() {
    let rig = Rig::new(1);
    rig.disks[0].clone().with_fault(When::Nth("sync", 0), Failure::Writeback(Errno::IO));
    let cache = rig.open(HealthLimits::default());
    let error = load(&cache, plan(WritePath::Image)).unwrap_err();
    assert!(
        matches!(&error, LoadError::Commit { source, .. }
        if matches!(**source, CommitError::Region { source: WriteError::Disk(_), .. })),
        "{error:?}"
    );
    assert!(!cache.snap(&key()).status().durable);
    assert_eq!(scan(&cache).unwrap(), BLOBS, "from memory");
    assert!(!cache.snap(&key()).evict(), "it is nowhere else");
    assert_eq!(cache.spindles()[0].used, 0);
    drop(cache);
    rig.disks[0].reclaim();
    let after = Rig { disks: vec![rig.disks[0].restart()], ..rig };
    let cache = after.open(HealthLimits::default());
    assert!(matches!(scan(&cache), Err(LeaseError::NotThere { .. })));
}

/// The name of a manifest that was not replaced still stands for the slice before.
#[test]
fn a_manifest_that_can_not_be_renamed_leaves_the_one_before() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Direct)).unwrap();
    rig.disks[0].clone().with_fault(When::Every("rename"), Failure::Error(Errno::IO));
    let error = load(&cache, plan(WritePath::Direct)).unwrap_err();
    assert!(matches!(error, LoadError::Commit { .. }), "{error:?}");
    assert_eq!(scan(&cache).unwrap(), BLOBS);
    drop(cache);
    let after = Rig { disks: vec![rig.disks[0].restart()], ..rig };
    assert_eq!(scan(&after.open(HealthLimits::default())).unwrap(), BLOBS, "after a power cut");
}

/// Goal: a durable slice is not lost to the commit of a newer one. Method: each sync of a folder fails in turn, the last
/// of them after the manifest was renamed; then a restart, with and without a power cut.
#[test]
fn a_folder_that_can_not_be_synced_leaves_the_slice_before_or_the_new_one() {
    let mut refused = 0;
    for (nth, cut) in (0..).flat_map(|nth| [(nth, false), (nth, true)]) {
        let mut rig = Rig::new(1);
        rig.disks[0].clone().with_fault(When::Nth("sync folder", nth), Failure::Error(Errno::IO));
        let Ok(cache) = rig.try_open(0..1, HealthLimits::default()) else { continue };
        if load(&cache, plan(WritePath::Direct)).is_err() {
            continue;
        }
        let mut other = plan(WritePath::Direct);
        other.fingerprint = Fingerprint::from_bytes([2; 32]);
        let newer = load(&cache, other);
        assert_eq!(scan(&cache).unwrap(), BLOBS, "sync {nth}: {newer:?}");
        drop(cache);
        rig.disks[0].heal();
        // What may be there is drawn anew for each power cut.
        let draws: Vec<SimDisk> = match cut {
            true => (0..8).map(|_| rig.disks[0].restart()).collect(),
            false => vec![rig.disks[0].clone()],
        };
        for (number, disk) in draws.into_iter().enumerate() {
            rig.disks = vec![disk];
            let cache = rig.open(HealthLimits::default());
            assert_eq!(
                scan(&cache).unwrap(),
                BLOBS,
                "sync {nth}, cut {cut}, disk {number}: {:?}",
                cache.recovery()
            );
        }
        match newer {
            Err(_) => refused += 1,
            Ok(()) => break,
        }
    }
    assert!(refused >= 4, "among them the one after the rename, with and without a cut: {refused}");
}

/// Goal: the same where the newer load's manifest goes to another disk than the one it is to replace. Method: each sync of a
/// folder of that disk fails in turn, and the disk lets go of nothing or of what it is told to; then a restart, with and
/// without a power cut. What is left is flushed, and stays away.
#[test]
fn a_commit_in_doubt_on_another_home_leaves_the_slice_before_or_the_new_one() {
    let mut refused = 0;
    for (nth, lets_go, cut) in
        (0..).flat_map(|nth| [(nth, true, false), (nth, false, false), (nth, true, true), (nth, false, true)])
    {
        let mut rig = Rig::new(2);
        let cache = rig.open(HealthLimits::default());
        load(&cache, plan(WritePath::Direct)).unwrap();
        if home(&cache) == 1 {
            load(&cache, plan(WritePath::Direct)).unwrap();
        }
        assert_eq!(home(&cache), 0);
        let done = rig.disks[1].ops_of("sync folder");
        let _ =
            rig.disks[1].clone().with_fault(When::Nth("sync folder", done + nth), Failure::Error(Errno::IO));
        if !lets_go {
            let _ = rig.disks[1].clone().with_fault(When::Every("unlink"), Failure::Error(Errno::IO));
        }
        let other = LoadPlan { fingerprint: Fingerprint::from_bytes([2; 32]), ..plan(WritePath::Direct) };
        let newer = load(&cache, other);
        let case = format!("sync {nth}, lets go: {lets_go}, cut: {cut}, {newer:?}");
        assert_eq!(scan(&cache).unwrap(), BLOBS, "{case}");
        if newer.is_ok() {
            break;
        }
        refused += 1;
        rig.disks.iter().for_each(SimDisk::heal);
        // What may be there is drawn anew for each power cut.
        let draws: Vec<Vec<SimDisk>> = match cut {
            true => (0..8).map(|_| rig.disks.iter().map(SimDisk::restart).collect()).collect(),
            false => vec![rig.disks.clone()],
        };
        drop(cache);
        for (number, disks) in draws.into_iter().enumerate() {
            rig.disks = disks;
            let cache = rig.open(HealthLimits::default());
            let report = cache.recovery().clone();
            assert_eq!(scan(&cache).unwrap(), BLOBS, "{case}, disk {number}: {report:?}");
            assert!(cache.snap(&key()).flush(None).unwrap());
            drop(cache);
            assert_eq!(rig.open(HealthLimits::default()).recovery().kept, 0, "{case}, disk {number}");
        }
    }
    assert!(refused >= 8, "among them the ones after the rename: {refused}");
}

/// A flush in the cache that does not know the end of its commit takes both.
#[test]
fn a_flush_after_a_commit_in_doubt_leaves_nothing_that_comes_back() {
    let rig = Rig::new(2);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Direct)).unwrap();
    if home(&cache) == 1 {
        load(&cache, plan(WritePath::Direct)).unwrap();
    }
    // Its load folder, the folder of load folders, and that of manifests.
    let done = rig.disks[1].ops_of("sync folder");
    let disk = rig.disks[1].clone().with_fault(When::Nth("sync folder", done + 2), Failure::Error(Errno::IO));
    let _ = disk.with_fault(When::Every("unlink"), Failure::Error(Errno::IO));
    let other = LoadPlan { fingerprint: Fingerprint::from_bytes([2; 32]), ..plan(WritePath::Direct) };
    let error = load(&cache, other).unwrap_err();
    assert!(matches!(error, LoadError::Commit { .. }), "{error:?}");
    assert!(matches!(cache.snap(&key()).flush(None), Err(FlushError::Disk { .. })), "the newer one is first");
    rig.disks[1].heal();
    drop(cache);
    let cache = rig.open(HealthLimits::default());
    assert_eq!(cache.recovery().kept, 1);
    assert!(cache.snap(&key()).flush(None).unwrap());
    drop(cache);
    assert_eq!(rig.open(HealthLimits::default()).recovery().kept, 0);
}

#[test]
fn a_failing_spindle_is_quarantined_and_the_others_go_on() {
    let rig = Rig::new(2);
    let patient = HealthLimits { probe_wait_min: Duration::from_secs(3600), ..HealthLimits::default() };
    let cache = rig.open(HealthLimits { faults_max: 1, ..patient });
    rig.disks[0].clone().with_fault(When::Every("create"), Failure::Error(Errno::IO));
    let mut failures = 0;
    for _ in 0..10 {
        failures += usize::from(load(&cache, plan(WritePath::Direct)).is_err());
    }
    let status = cache.spindles();
    assert_eq!((status[0].state, status[1].state), (HealthState::Quarantined, HealthState::Ok));
    assert!(status[0].last_fault.as_ref().unwrap().contains("could not create"), "{status:?}");
    assert_eq!(failures, 1, "then all goes to the other one");
    assert_eq!(scan(&cache).unwrap(), BLOBS);
}

#[test]
fn without_a_working_spindle_each_says_why_and_a_healed_one_is_taken_again() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits { faults_max: 2, ..impatient() });
    rig.disks[0].clone().with_fault(When::Every("create"), Failure::Error(Errno::IO));
    let refused = loop {
        match load(&cache, plan(WritePath::Direct)).unwrap_err() {
            LoadError::NoSpindle { refusals, .. } => break refusals,
            LoadError::Disk { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(refused[0].reason, RefusalReason::Quarantined { .. }), "{refused:?}");
    let said = refused[0].to_string();
    assert!(said.contains("spindle-0") && said.contains("could not create"), "{said}");
    rig.disks[0].heal();
    load(&cache, plan(WritePath::Direct)).unwrap();
    assert_eq!(cache.spindles()[0].state, HealthState::Suspect, "on probation");
    assert_eq!(scan(&cache).unwrap(), BLOBS);
}

/// Goal: whoever waits for a hung disk gets an answer by the deadline, closing too, and hears what hangs.
#[test]
fn a_hung_disk_holds_nobody_beyond_the_deadline_and_closing_names_its_thread() {
    for hang in [Failure::Hang, Failure::HangThread] {
        let rig = Rig::new(1);
        let cache = rig.open(HealthLimits::default());
        rig.disks[0].clone().with_fault(When::Every("write"), hang.clone());
        let begun = Instant::now();
        let mut hung = plan(WritePath::Direct);
        hung.deadline = Some(begun + Duration::from_millis(300));
        let writer = cache.snap(&key()).open_for_writes(hung).unwrap();
        let error = loop {
            let mut parcel = ParcelBuilder::default();
            parcel.push(&vec![1; MIB as usize]).unwrap();
            if let Err(error) = writer.queue_parcel(parcel.finish()) {
                break error;
            }
        };
        assert!(text(&error).contains("in time"), "{}", text(&error));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        drop((writer, error));
        // A commit that hangs: the slice is in memory and can be scanned.
        let mut background = plan(WritePath::Image);
        background.durability = Durability::Background;
        if matches!(hang, Failure::Hang) {
            load(&cache, background).unwrap();
            assert_eq!(scan(&cache).unwrap(), BLOBS);
            let late = cache.sync(Some(Instant::now() + Duration::from_millis(50))).unwrap_err();
            assert!(matches!(&late, SyncError::Late { keys } if keys == &[key()]), "{late}");
        }
        let begun = Instant::now();
        let error = cache.close(Some(begun + Duration::from_millis(300))).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(
            error.abandoned.iter().any(|thread| thread.contains("spindle-0-impeller-0 (waits to write ")),
            "{error}"
        );
        assert_eq!(error.unfinished, [key()], "{error}");
        // The lock stays with the thread that may still write.
        let again = Cache::builder().spindle(Rig::path(rig.folder.path(), 0), 1 << 30).open();
        assert!(text(&again.err().unwrap()).contains("in use"));
        rig.disks[0].let_go();
        let deadline = Instant::now() + Duration::from_secs(30);
        while Cache::builder().spindle(Rig::path(rig.folder.path(), 0), 1 << 30).open().is_err() {
            assert!(Instant::now() < deadline, "the thread ended, and the lock with it");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_closed_cache_takes_no_loads_and_leases_go_on() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Image)).unwrap();
    let other = cache.clone();
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    cache.close(Some(Instant::now() + Duration::from_secs(60))).unwrap();
    assert!(matches!(load(&other, plan(WritePath::Image)), Err(LoadError::Closed { .. })));
    assert_eq!(lease.region_count(), 2);
    assert!(matches!(scan(&other), Err(LeaseError::Closed { .. })));
    assert!(!other.snap(&key()).evict());
    let held = |blobs: &mut crate::Blobs<'_>, n: &mut u64| {
        while blobs.next()?.is_some() {
            *n += 1;
        }
        Ok(())
    };
    assert_eq!(lease.scan(held, |a, b| a + b).unwrap(), BLOBS, "what is leased stays");
}

/// Goal: what was verified need not be verified again, however soon it comes back. Method: look at the note when the evict is
/// decided, and after one that was refused.
#[test]
fn what_stays_verified_is_noted_before_it_leaves_memory() {
    let rig = Rig::new(1);
    // Only maps stay verified without memory of the cache's.
    let builder = Cache::builder().memory(256 * MIB).residence(Residence::Map);
    let builder = builder.spindle(Rig::path(rig.folder.path(), 0), 1 << 30);
    let cache = builder.open_on(rig.disks.clone(), HealthLimits::default()).unwrap();
    load(&cache, plan(WritePath::Direct)).unwrap();
    assert_eq!(scan(&cache).unwrap(), BLOBS);
    let entry = cache.snap(&key()).entry;
    let load = entry.manifest().unwrap().load_number;
    for (goes, expected) in [(false, Answer::Busy), (true, Answer::Evicted)] {
        let noted = |_: &Decider| {
            assert_eq!(entry.facts().verified_load, Some(load));
            goes
        };
        assert_eq!(entry.evict(true, None, noted).0, expected);
        assert_eq!(entry.facts().verified_load, goes.then_some(load));
    }
}

#[test]
fn a_snap_that_was_erased_stands_for_its_key_all_the_same() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    let old = cache.snap(&key());
    assert!(old.erase());
    assert_eq!(old.status().state, SnapState::Gone);
    load(&cache, plan(WritePath::Image)).unwrap();
    assert_eq!(old.status().state, SnapState::Hot);
    old.pin();
    assert!(matches!(cache.snap(&key()).flush(None), Err(FlushError::Pinned { .. })));
    old.unpin();
    assert!(old.evict());
    assert!(old.flush(None).unwrap());
    assert!(old.erase());
    assert_eq!(old.status().state, SnapState::Gone);
    old.pin();
    assert!(cache.snap(&key()).status().pinned, "the pin is for what comes");
}

/// Goal: asking for keys costs no memory for ever. Method: many keys of which nothing is known, a few that matter.
#[test]
fn keys_of_which_nothing_is_known_leave_the_table() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    load(&cache, plan(WritePath::Image)).unwrap();
    let other = |number: u32| format!("test/other@1#{number}").parse().unwrap();
    let (held, pinned) = (cache.snap(&other(0)), cache.snap(&other(1)).entry);
    cache.snap(&other(1)).pin();
    let pinned = Arc::downgrade(&pinned);
    let erased = cache.snap(&other(2));
    assert!(erased.erase());
    for number in 3..1000 {
        let nothing = cache.lease(&other(number), Want::Latest, None);
        assert!(matches!(nothing, Err(LeaseError::NotThere { .. })), "{nothing:?}");
        drop(cache.snap(&other(number)).open_for_writes(plan(WritePath::Direct)).unwrap());
    }
    let count = cache.core.table.read().entries().count();
    assert!(count <= 64, "{count} entries are kept");
    assert!(Arc::ptr_eq(&held.entry, &cache.snap(&other(0)).entry), "somebody holds it");
    assert!(pinned.upgrade().is_some() && cache.snap(&other(1)).status().pinned);
    assert_eq!(erased.status().state, SnapState::Gone);
    assert_eq!(scan(&cache).unwrap(), BLOBS);
}

/// Goal: a disk that a slice's region had to leave takes nothing from the slice. Method: one disk of three can bring
/// nothing to its medium, each in turn; only home is needed, since the manifest is there.
#[test]
fn a_disk_that_stays_broken_loses_no_slice_but_those_that_are_at_home_there() {
    let durable = |broken: usize| {
        let rig = Rig::new(3);
        let cache = rig.open(HealthLimits::default());
        cache.recovery();
        for verb in ["sync", "sync folder"] {
            rig.disks[broken].clone().with_fault(When::Every(verb), Failure::Error(Errno::IO));
        }
        // The load's number decides where it is at home: on the first disk.
        let number = cache.core.next_load.load(Ordering::Relaxed).next_multiple_of(3);
        cache.core.next_load.store(number, Ordering::Relaxed);
        let mut plan = plan(WritePath::Image);
        plan.regions = Some(3);
        let loaded = load(&cache, plan);
        if let Err(error) = loaded {
            assert!(matches!(error, LoadError::Commit { .. }), "{broken}: {error:?}");
            return false;
        }
        drop(cache);
        let after = Rig { disks: rig.disks.iter().map(SimDisk::restart).collect(), ..rig };
        assert_eq!(scan(&after.open(HealthLimits::default())).unwrap(), BLOBS, "{broken}, after a power cut");
        true
    };
    assert_eq!([0, 1, 2].map(durable), [false, true, true]);
}

/// What could not be removed takes its space on.
#[test]
fn a_sealed_slice_that_is_dropped_and_can_not_be_removed_stays_counted() {
    for write_path in [WritePath::Image, WritePath::Direct] {
        let rig = Rig::new(1);
        let cache = rig.open(HealthLimits::default());
        let writer = cache.snap(&key()).open_for_writes(plan(write_path)).unwrap();
        for number in 0..BLOBS {
            let mut parcel = ParcelBuilder::default();
            parcel.push(&vec![number as u8; MIB as usize]).unwrap();
            writer.queue_parcel(parcel.finish()).unwrap();
        }
        let sealed = writer.wait_for_writes().unwrap();
        rig.disks[0].clone().with_fault(When::Every("unlink"), Failure::Error(Errno::IO));
        drop(sealed);
        assert!(cache.spindles()[0].used >= BLOBS * MIB, "{write_path:?}: {:?}", cache.spindles());
    }
}

/// Goal: memory that a disk may still read is counted, whoever has given up on it. Method: writes that hang, and a writer
/// that is dropped.
#[test]
fn pieces_that_a_disk_keeps_stay_counted() {
    let rig = Rig::new(1);
    let cache = rig.open(HealthLimits::default());
    rig.disks[0].clone().with_fault(When::Every("write"), Failure::Hang);
    let writer = cache.snap(&key()).open_for_writes(plan(WritePath::Direct)).unwrap();
    let held = || cache.core.pieces.counts().buffers;
    let reserved = held();
    // More than a piece for each of both regions, and less than two.
    for number in 0..3 * cache.core.piece_bytes as u64 / MIB {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number as u8; MIB as usize]).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    assert_eq!(held(), reserved, "pieces are what was reserved");
    drop(writer);
    let kept = cache.core.spindles[0].impellers.in_flight_bytes();
    assert!(kept > 0 && held() == kept, "{kept} bytes are the disk's, {} counted", held());
    rig.disks[0].let_go();
    let deadline = Instant::now() + Duration::from_secs(60);
    while held() > 0 {
        assert!(Instant::now() < deadline, "{} bytes stay counted", held());
        std::thread::yield_now();
    }
}

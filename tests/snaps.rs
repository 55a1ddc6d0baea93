//! What becomes of a slice when several want something of it at once: leases, reslices, evictions, damage.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use pelton::*;

const BLOBS: u64 = 8;

fn key() -> Key {
    "test/snaps@1#0".parse().unwrap()
}

fn cache(folder: &Path) -> Cache {
    let builder = Cache::builder().spindle(folder.join("spindle"), None).memory(256 << 20).scan_threads(2);
    builder.residence(Residence::Image).open().unwrap()
}

fn load(cache: &Cache, generation: u8) {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([generation; 32]));
    plan.regions = Some(2);
    plan.durability = Durability::Wait;
    let writer = cache.snap(&key()).open_for_writes(plan).unwrap();
    for _ in 0..BLOBS {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![generation; 1 << 20]).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

/// How many blobs there are, all of which must be of one generation.
fn scan(lease: &Lease, generation: u8) -> Result<u64, ScanError> {
    let count = move |blobs: &mut Blobs<'_>, count: &mut u64| {
        while let Some(blob) = blobs.next()? {
            assert!(blob.iter().all(|byte| *byte == generation));
            *count += 1;
        }
        Ok(())
    };
    lease.scan(count, |a, b| a + b)
}

fn region_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(region_files(&path)) } else { files.push(path) }
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "region"));
    files
}

/// Goal: who leases a warm slice at the same time shares one warming. Method: a second one would take memory for the
/// slice twice, which the cache counts.
#[test]
fn leases_of_a_warm_slice_at_the_same_time_share_one_warming() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    load(&cache, 1);
    let snap = cache.snap(&key());
    for _ in 0..20 {
        assert!(snap.evict());
        let together = Barrier::new(4);
        let lease = || {
            together.wait();
            cache.lease(&key(), Want::Latest, None).unwrap()
        };
        let leases = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(lease));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(cache.memory().unwrap().images, snap.status().file_bytes);
        assert_eq!((snap.status().leases, cache.leases().len()), (4, 4));
        for lease in &leases {
            assert_eq!(scan(lease, 1).unwrap(), BLOBS);
        }
        drop(leases);
        assert_eq!(cache.leases(), []);
    }
}

#[test]
fn leases_of_a_slice_that_is_loading_wait_for_that_load_to_their_own_deadlines() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    assert!(matches!(cache.lease(&key(), Want::Latest, None), Err(LeaseError::NotThere { .. })));
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.regions = Some(2);
    let writer = cache.snap(&key()).open_for_writes(plan.clone()).unwrap();
    assert!(matches!(cache.snap(&key()).open_for_writes(plan.clone()), Err(LoadError::Busy { .. })));
    let soon = Some(Instant::now() + Duration::from_millis(20));
    assert!(matches!(cache.lease(&key(), Want::Latest, soon), Err(LeaseError::Deadline { .. })));
    std::thread::scope(|scope| {
        let waiting = [(); 2].map(|()| scope.spawn(|| cache.lease(&key(), Want::Latest, None)));
        let mut parcel = ParcelBuilder::default();
        parcel.push(&[1; 100]).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
        writer.wait_for_writes().unwrap().close_for_writes().unwrap();
        for thread in waiting {
            assert_eq!(scan(&thread.join().unwrap().unwrap(), 1).unwrap(), 1);
        }
    });
}

#[test]
fn a_reslice_under_leases_serves_the_new_and_lets_the_old_go_with_its_last_lease() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    load(&cache, 1);
    let old = cache.lease(&key(), Want::Latest, None).unwrap();
    load(&cache, 2);
    let new = cache.lease(&key(), Want::Latest, None).unwrap();
    assert_eq!((scan(&old, 1).unwrap(), scan(&new, 2).unwrap()), (BLOBS, BLOBS));
    assert_eq!(region_files(folder.path()).len(), 2, "the old files are gone");
    let fingerprints: Vec<Fingerprint> = cache.leases().iter().map(|lease| lease.fingerprint).collect();
    assert_eq!(fingerprints, [Fingerprint::from_bytes([1; 32]), Fingerprint::from_bytes([2; 32])]);
    let wanted = Want::Fingerprint(old.fingerprint());
    assert!(matches!(cache.lease(&key(), wanted, None), Err(LeaseError::OtherFingerprint { .. })));
    assert_eq!(scan(&old.clone(), 1).unwrap(), BLOBS, "to its end");
    drop(old);
    assert_eq!(cache.snap(&key()).status().leases, 1);
}

/// The manifest knows the fingerprint: nothing is brought into memory for who wants another.
#[test]
fn another_fingerprint_is_refused_before_the_slice_is_warmed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    load(&cache, 1);
    let snap = cache.snap(&key());
    assert!(snap.evict());
    let wanted = Want::Fingerprint(Fingerprint::from_bytes([2; 32]));
    assert!(matches!(cache.lease(&key(), wanted, None), Err(LeaseError::OtherFingerprint { .. })));
    assert_eq!((snap.status().state, cache.memory().unwrap().images), (SnapState::Warm, 0));
    let wanted = Want::Fingerprint(Fingerprint::from_bytes([1; 32]));
    assert_eq!(scan(&cache.lease(&key(), wanted, None).unwrap(), 1).unwrap(), BLOBS);
}

#[test]
fn an_evict_under_a_lease_takes_effect_with_the_last_one_unless_a_new_one_comes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    load(&cache, 1);
    let snap = cache.snap(&key());
    let first = cache.lease(&key(), Want::Latest, None).unwrap();
    let clone = first.clone();
    assert!(snap.evict());
    assert_eq!(snap.status().state, SnapState::Hot);
    drop(first);
    assert_eq!(snap.status().state, SnapState::Hot, "a clone is the same lease");
    drop(clone);
    assert_eq!(snap.status().state, SnapState::Warm);
    let before = cache.lease(&key(), Want::Latest, None).unwrap();
    assert!(snap.evict());
    let after = cache.lease(&key(), Want::Latest, None).unwrap();
    drop((before, after));
    assert_eq!(snap.status().state, SnapState::Hot, "somebody wanted it again");
}

/// Goal: damage takes the slice off the disk, and who waited is told. Method: a byte of a region's header is changed.
#[test]
fn a_damaged_slice_is_told_and_dropped_and_can_be_loaded_anew() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    load(&cache, 1);
    let snap = cache.snap(&key());
    assert!(snap.evict());
    let file = std::fs::File::options().write(true).open(&region_files(folder.path())[0]).unwrap();
    file.write_all_at(&[0xFF], 100).unwrap();
    file.sync_all().unwrap();
    let error = cache.lease(&key(), Want::Latest, None).unwrap_err();
    let LeaseError::Warm { source, .. } = error else { panic!("{error}") };
    assert!(matches!(*source, WarmError::Damaged { .. }), "{source}");
    snap.flush(None).unwrap(); // Its removal is waited for.
    assert_eq!((snap.status().state, region_files(folder.path()).len()), (SnapState::Cold, 0));
    assert!(matches!(cache.lease(&key(), Want::Latest, None), Err(LeaseError::NotThere { .. })));
    load(&cache, 2);
    assert_eq!(scan(&cache.lease(&key(), Want::Latest, None).unwrap(), 2).unwrap(), BLOBS);
}

#[test]
fn what_is_pinned_stays_and_what_is_erased_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    load(&cache, 1);
    let snap = cache.snap(&key());
    snap.pin();
    assert!(!snap.evict() && !snap.erase() && snap.status().pinned);
    assert!(matches!(snap.flush(None), Err(FlushError::Pinned { .. })));
    load(&cache, 2); // A reslice it is, all the same.
    snap.unpin();
    assert!(!snap.erase(), "it is used");
    assert!(snap.flush(None).unwrap() && !snap.flush(None).unwrap());
    assert!(snap.erase());
    assert_eq!(snap.status().state, SnapState::Gone);
    // An old handle of it finds the new one.
    assert!(matches!(snap.lease(Want::Latest, None), Err(LeaseError::NotThere { .. })));
    load(&cache, 3);
    assert_eq!(scan(&snap.lease(Want::Latest, None).unwrap(), 3).unwrap(), BLOBS);
}

/// Goal: a spindle that was away brings back nothing older than what was loaded meanwhile. Method: many loads on one
/// spindle, one on another, and then both together.
#[test]
fn what_was_loaded_while_a_spindle_was_away_is_newer_than_what_that_brings_back() {
    let folder = tempfile::tempdir().unwrap();
    let open = |names: &[&str]| {
        let builder = Cache::builder().memory(256 << 20).scan_threads(2);
        let with = |builder: CacheBuilder, name: &&str| builder.spindle(folder.path().join(name), None);
        names.iter().fold(builder, with).open().unwrap()
    };
    let away = open(&["away"]);
    (0..5).for_each(|_| load(&away, 1));
    away.close(None).unwrap();
    let here = open(&["here"]);
    load(&here, 2);
    here.close(None).unwrap();
    for _ in 0..2 {
        let both = open(&["away", "here"]);
        let lease = both.lease(&key(), Want::Latest, None).unwrap();
        assert_eq!(scan(&lease, 2).unwrap(), BLOBS);
        drop(lease);
        both.close(None).unwrap();
    }
}

#[test]
fn a_flushed_slice_leaves_no_file_behind() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    let entries = |of: &str| std::fs::read_dir(folder.path().join("spindle").join(of)).unwrap().count();
    for generation in [1, 2] {
        load(&cache, generation);
        assert_eq!((entries("manifests"), entries("loads")), (1, 1));
    }
    assert!(cache.snap(&key()).flush(None).unwrap());
    assert_eq!((entries("manifests"), entries("loads")), (0, 0));
}

#[test]
fn a_slice_with_fewer_blobs_than_regions_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let opened = cache(folder.path());
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.regions = Some(9);
    let writer = opened.snap(&key()).open_for_writes(plan).unwrap();
    let mut parcel = ParcelBuilder::default();
    (0..4).for_each(|_| parcel.push(&[1; 100]).unwrap());
    writer.queue_parcel(parcel.finish()).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    opened.close(None).unwrap();
    let cache = cache(folder.path());
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    assert_eq!(lease.region_count(), 4);
    assert_eq!(scan(&lease, 1).unwrap(), 4);
}

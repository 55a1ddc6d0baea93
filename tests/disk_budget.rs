//! Spindles hold what they may and no more, and say so before anything is written.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use pelton::*;

const MIB: u64 = 1 << 20;

fn plan(expected_mib: Option<u64>) -> LoadPlan {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.durability = Durability::Wait;
    plan.regions = Some(2);
    plan.expected_bytes = expected_mib.map(|mib| mib * MIB);
    plan
}

fn load(cache: &Cache, key: &str, mib: u64, plan: LoadPlan) -> Result<(), LoadError> {
    let writer = cache.snap(&key.parse().unwrap()).open_for_writes(plan)?;
    for number in 0..mib {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number as u8; MIB as usize]).unwrap();
        writer.queue_parcel(parcel.finish())?;
    }
    writer.wait_for_writes()?.close_for_writes()
}

fn open(folder: &Path, capacities_mib: &[u64]) -> Cache {
    // The tender would make room by flushing what is there.
    let mut builder = Cache::builder().memory(512 * MIB).scan_threads(1).free_floor(0).tender(false);
    builder = builder.residence(Residence::Map);
    for (number, mib) in capacities_mib.iter().enumerate() {
        builder = builder.spindle(folder.join(format!("spindle-{number}")), mib * MIB);
    }
    builder.open().unwrap()
}

fn used(cache: &Cache) -> Vec<u64> {
    cache.spindles().iter().map(|spindle| spindle.used).collect()
}

fn file_bytes(cache: &Cache) -> u64 {
    cache.search(&"*".parse().unwrap()).iter().map(|status| status.file_bytes).sum()
}

#[test]
fn a_load_that_can_not_fit_is_refused_with_the_numbers_before_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), &[64, 32]);
    let error = load(&cache, "test/a@1#0", 0, plan(Some(200))).unwrap_err();
    let LoadError::NoSpindle { refusals, .. } = &error else { panic!("{error:?}") };
    let found: Vec<_> = refusals
        .iter()
        .map(|refusal| match &refusal.reason {
            RefusalReason::Full(SpindleFull::Capacity { wanted, free, capacity }) => {
                assert!(*wanted >= 100 * MIB && free == capacity, "{refusal}");
                (refusal.folder.file_name().unwrap().to_str().unwrap(), capacity / MIB)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(found.len(), 2);
    assert!(found.contains(&("spindle-0", 64)) && found.contains(&("spindle-1", 32)), "{found:?}");
    assert!(error.to_string().contains("spindle-0") && error.to_string().contains("64.0 MiB"), "{error}");
    assert!(cache.spindles().iter().all(|spindle| spindle.reserved == 0 && spindle.used == 0));
    assert!(std::fs::read_dir(folder.path().join("spindle-0/loads")).unwrap().next().is_none());
    // It fits on one of them alone.
    let mut alone = plan(Some(50));
    alone.regions = Some(1);
    load(&cache, "test/a@1#0", 50, alone).unwrap();
    assert_eq!(used(&cache), [file_bytes(&cache), 0]);
}

#[test]
fn what_was_not_announced_is_refused_where_the_capacity_ends() {
    for write_path in [WritePath::Image, WritePath::Direct] {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path(), &[48]);
        let mut plan = plan(None);
        plan.write_path = write_path;
        let error = load(&cache, "test/a@1#0", 60, plan.clone()).unwrap_err();
        let mut said = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            said += &format!(": {cause}");
            source = cause.source();
        }
        assert!(said.contains("spindle-0") && said.contains("of its 48.0 MiB"), "{said}");
        let status = &cache.spindles()[0];
        assert_eq!((status.used, status.reserved, status.state), (0, 0, HealthState::Ok), "{write_path:?}");
        cache.snap(&"test/a@1#0".parse().unwrap()).flush(None).unwrap();
        load(&cache, "test/a@1#0", 40, plan).unwrap();
        assert_eq!(used(&cache), [file_bytes(&cache)], "{write_path:?}");
    }
}

#[test]
fn a_load_that_ends_early_gives_its_promise_back() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), &[64]);
    let writer = cache.snap(&"test/a@1#0".parse().unwrap()).open_for_writes(plan(Some(60))).unwrap();
    assert!(cache.spindles()[0].reserved >= 60 * MIB);
    let error = load(&cache, "test/b@1#0", 1, plan(Some(10))).unwrap_err();
    assert!(matches!(error, LoadError::NoSpindle { .. }), "{error}");
    drop(writer);
    assert_eq!(cache.spindles()[0].reserved, 0);
    load(&cache, "test/b@1#0", 10, plan(Some(10))).unwrap();
}

/// A file takes its space until its name and its last map are gone; the cache counts as the disk does.
#[test]
fn an_unlinked_file_counts_until_its_last_map_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let key: Key = "test/a@1#0".parse().unwrap();
    let cache = open(folder.path(), &[64]);
    load(&cache, "test/a@1#0", 40, plan(None)).unwrap();
    assert!(cache.snap(&key).evict());
    let lease = cache.lease(&key, Want::Latest, None).unwrap();
    let before = used(&cache);
    assert!(cache.snap(&key).flush(None).unwrap());
    assert_eq!(used(&cache), before, "the lease maps it");
    let error = load(&cache, "test/b@1#0", 1, plan(Some(40))).unwrap_err();
    assert!(matches!(error, LoadError::NoSpindle { .. }), "{error}");
    let region = lease.region(0, None).unwrap();
    drop(lease);
    assert!(used(&cache)[0] > 0, "a region is held still");
    drop(region);
    // The last map goes on a thread of its own.
    let begun = Instant::now();
    while used(&cache) != [0] {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never goes");
        std::thread::yield_now();
    }
    load(&cache, "test/b@1#0", 40, plan(Some(40))).unwrap();
}

#[test]
fn a_restart_counts_what_is_there_and_a_smaller_capacity_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let before = {
        let cache = open(folder.path(), &[64]);
        load(&cache, "test/a@1#0", 30, plan(None)).unwrap();
        used(&cache)
    };
    {
        let cache = open(folder.path(), &[64]);
        assert_eq!(used(&cache), before);
        assert!(load(&cache, "test/b@1#0", 1, plan(Some(40))).is_err());
    }
    let cache = open(folder.path(), &[16]);
    assert_eq!((used(&cache), cache.spindles()[0].free), (before, 0));
    assert!(load(&cache, "test/b@1#0", 1, plan(None)).is_err());
    cache.lease(&"test/a@1#0".parse().unwrap(), Want::Latest, None).unwrap();
    cache.snap(&"test/a@1#0".parse().unwrap()).flush(None).unwrap();
    load(&cache, "test/b@1#0", 5, plan(None)).unwrap();
}

#[test]
fn a_floor_keeps_the_disk_free_whatever_the_capacity_says() {
    let folder = tempfile::tempdir().unwrap();
    let builder = Cache::builder().memory(512 * MIB).free_floor(1 << 59);
    let cache = builder.spindle(folder.path().join("s"), 1 << 40).open().unwrap();
    assert_eq!(cache.spindles()[0].free, 0);
    let error = load(&cache, "test/a@1#0", 1, plan(Some(1))).unwrap_err();
    assert!(error.to_string().contains("stay free"), "{error}");
}

/// Space is taken ahead in steps and cut afterwards: nothing of that is left on the disk.
#[test]
fn files_take_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), &[256]);
    load(&cache, "test/a@1#0", 90, plan(Some(200))).unwrap();
    let mut bytes = 0;
    for load in std::fs::read_dir(folder.path().join("spindle-0/loads")).unwrap() {
        for file in std::fs::read_dir(load.unwrap().path()).unwrap() {
            let file = file.unwrap().metadata().unwrap();
            // A few blocks more are the file system's own.
            assert!(
                file.blocks() * 512 <= file.len() + (64 << 10),
                "{} of {}",
                file.blocks() * 512,
                file.len()
            );
            bytes += file.len();
        }
    }
    assert_eq!((bytes, used(&cache)), (file_bytes(&cache), vec![bytes]));
    assert!(bytes < 91 * MIB, "{bytes}");
}

#[test]
fn a_default_capacity_is_half_and_one_disk_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let open = |names: &[&str]| {
        let builder = Cache::builder().memory(512 * MIB);
        names.iter().fold(builder, |builder, name| builder.spindle(folder.path().join(name), None)).open()
    };
    let alone = open(&["a"]).unwrap().spindles()[0].capacity;
    let cache = open(&["a", "b"]).unwrap();
    let shared = cache.spindles();
    // Others use the disk meanwhile, so about.
    assert!(shared.iter().all(|spindle| spindle.capacity.abs_diff(alone / 2) < alone / 10), "{shared:?}");
    assert_eq!(shared[0].shares_disk_with, None);
    assert_eq!(shared[1].shares_disk_with, Some(folder.path().join("a")));
    let twice = open(&["c", "./c"]).err().unwrap().to_string();
    assert!(twice.contains("each folder once"), "{twice}");
}

/// A failed commit in the background is told by the next sync, once.
#[test]
fn a_sync_tells_what_did_not_get_to_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), &[32]);
    let mut plan = plan(None);
    plan.durability = Durability::Background;
    plan.write_path = WritePath::Image;
    load(&cache, "test/a@1#0", 50, plan).unwrap();
    let Err(SyncError::Failed { failures }) = cache.sync(None) else { panic!("it can't have worked") };
    assert_eq!(failures[0].0, "test/a@1#0".parse().unwrap());
    assert!(
        matches!(failures[0].1, CommitError::Region { source: WriteError::NoRoom(_), .. }),
        "{failures:?}"
    );
    cache.sync(None).unwrap();
    assert!(!cache.snap(&"test/a@1#0".parse().unwrap()).status().durable);
    cache.lease(&"test/a@1#0".parse().unwrap(), Want::Latest, None).unwrap();
    cache.close(None).unwrap();
}

/// Dropping the last handle waits for what is on its way, so that the folder can be opened again at once.
#[test]
fn the_last_handle_waits_for_background_commits() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..8u64 {
        let cache = open(folder.path(), &[512]);
        assert_eq!(cache.recovery().kept as u64, round);
        let mut plan = plan(None);
        plan.durability = Durability::Background;
        load(&cache, &format!("test/a@{round}#0"), 8, plan).unwrap();
    }
}

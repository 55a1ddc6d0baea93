//! A disk that is too small, for real: an ext4 on a loop device.
//!
//! Goal: a load that does not fit fails with a clear error and leaves nothing; other spindles and the next
//! load are unharmed. It needs root for the mount, and says so where it was skipped.

mod support;

use std::path::Path;
use std::process::Command;

use pelton::*;

use support::{SmallDisk, text};

fn load(cache: &Cache, key: &Key, mib: u8, write_path: WritePath) -> Result<(), LoadError> {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([mib; 32]));
    plan.durability = Durability::Wait;
    plan.write_path = write_path;
    plan.regions = Some(2);
    let writer = cache.snap(key).open_for_writes(plan)?;
    for number in 0..mib {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number; 1 << 20]).unwrap();
        writer.queue_parcel(parcel.finish())?;
    }
    writer.wait_for_writes()?.close_for_writes()
}

fn regions_below(folder: &Path) -> usize {
    let loads = std::fs::read_dir(folder.join("loads")).unwrap();
    loads.map(|load| std::fs::read_dir(load.unwrap().path()).unwrap().count()).sum()
}

#[test]
fn a_load_that_does_not_fit_on_its_disk_fails_clearly_and_the_next_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), 64 << 20) else { return };
    let spindle = disk.folder.join("spindle");
    let key: Key = "test/full@1#0".parse().unwrap();
    for (write_path, engine) in [
        (WritePath::Image, IoEngine::Auto),
        (WritePath::Direct, IoEngine::Auto),
        (WritePath::Image, IoEngine::Threads),
        (WritePath::Direct, IoEngine::Threads),
    ] {
        let builder = Cache::builder().memory(1 << 30).engine(engine).free_floor(0);
        let cache = builder.spindle(&spindle, 1 << 40).open().unwrap();
        let error = load(&cache, &key, 100, write_path).unwrap_err();
        let said = text(&error);
        assert!(
            said.contains("are too much for the disk") && said.contains(spindle.to_str().unwrap()),
            "{said}"
        );
        assert_eq!(regions_below(&spindle), 0, "{write_path:?}, {engine:?}: nothing is left");
        // What was in memory goes on, marked as not durable, when it was an image.
        let status = cache.snap(&key).status();
        let expected = if write_path == WritePath::Image { SnapState::Hot } else { SnapState::Failed };
        assert_eq!((status.state, status.durable), (expected, false), "{write_path:?}, {engine:?}");
        if status.state == SnapState::Hot {
            let lease = cache.lease(&key, Want::Latest, None).unwrap();
            let blobs: u64 =
                lease.partitions().map(|p| p.fold(|blobs, n: &mut u64| count(blobs, n)).unwrap()).sum();
            assert_eq!(blobs, 100);
        }
        cache.snap(&key).flush(None).unwrap();
        load(&cache, &key, 10, write_path).unwrap();
        assert!(cache.snap(&key).status().durable);
        cache.snap(&key).flush(None).unwrap();
        assert_eq!(regions_below(&spindle), 0);
    }
}

/// Somebody else fills the disk while a load is under way: the disk itself says no, and the load tells it.
#[test]
fn a_disk_that_somebody_else_fills_is_named_with_its_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), 96 << 20) else { return };
    let (spindle, filler) = (disk.folder.join("spindle"), disk.folder.join("filler"));
    let key: Key = "test/filled@1#0".parse().unwrap();
    for engine in [IoEngine::Auto, IoEngine::Threads] {
        let builder = Cache::builder().memory(1 << 30).engine(engine).free_floor(0);
        let cache = builder.spindle(&spindle, 1 << 40).open().unwrap();
        let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
        plan.write_path = WritePath::Direct;
        plan.regions = Some(1);
        // Room is promised for all of it, and then it is not there.
        plan.expected_bytes = Some(60 << 20);
        let writer = cache.snap(&key).open_for_writes(plan).unwrap();
        let filled = Command::new("fallocate").args(["-l", "70MiB"]).arg(&filler).status().unwrap();
        assert!(filled.success());
        let push = || -> Result<(), LoadError> {
            for number in 0..60 {
                let mut parcel = ParcelBuilder::default();
                parcel.push(&vec![number; 1 << 20]).unwrap();
                writer.queue_parcel(parcel.finish())?;
            }
            Ok(())
        };
        let said = text(&push().unwrap_err());
        assert!(said.contains("No space left") && said.contains(spindle.to_str().unwrap()), "{said}");
        drop(writer);
        assert_eq!(regions_below(&spindle), 0);
        std::fs::remove_file(&filler).unwrap();
        load(&cache, &key, 60, WritePath::Direct).unwrap();
        cache.snap(&key).flush(None).unwrap();
        let status = &cache.spindles()[0];
        assert_eq!((status.used, status.reserved, status.state), (0, 0, HealthState::Ok), "{status:?}");
    }
}

/// The same bytes go to the other spindle when the first one fails.
#[test]
fn an_image_whose_disk_fails_is_written_to_another_spindle() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), 48 << 20) else { return };
    let (small, large) = (disk.folder.join("spindle"), folder.path().join("large"));
    let key: Key = "test/other@1#0".parse().unwrap();
    let open = || {
        let builder = Cache::builder().memory(1 << 30).free_floor(0);
        builder.spindle(&small, 1 << 40).spindle(&large, 1 << 40).open().unwrap()
    };
    {
        let cache = open();
        load(&cache, &key, 120, WritePath::Image).unwrap();
        assert!(cache.snap(&key).status().durable);
        assert_eq!((regions_below(&small), regions_below(&large)), (0, 2));
    }
    let cache = open();
    let lease = cache.lease(&key, Want::Latest, None).unwrap();
    let blobs: u64 = lease.partitions().map(|p| p.fold(|blobs, n: &mut u64| count(blobs, n)).unwrap()).sum();
    assert_eq!(blobs, 120);
}

fn count(blobs: &mut Blobs<'_>, n: &mut u64) -> Result<(), FoldError> {
    while let Some(blob) = blobs.next()? {
        assert!(blob.len() == 1 << 20 && blob.iter().all(|&byte| byte == blob[0]));
        *n += 1;
    }
    Ok(())
}

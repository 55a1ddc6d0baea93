//! Disks that hang or break, for real: a frozen ext4, and a loop device whose file can't be written.
//!
//! Goal: whoever waits hears by the deadline what hangs or broke; what is in memory goes on; what was on the disk
//! before is there afterwards. It needs root, and says so where it was skipped.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pelton::*;

use support::{Frozen, SmallDisk, text};

fn load(cache: &Cache, key: &Key, mib: u8, deadline: Option<Instant>) -> Result<(), LoadError> {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([mib; 32]));
    plan.durability = Durability::Wait;
    plan.regions = Some(2);
    plan.deadline = deadline;
    let writer = cache.snap(key).open_for_writes(plan)?;
    for number in 0..mib {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number; 1 << 20]).unwrap();
        writer.queue_parcel(parcel.finish())?;
    }
    writer.wait_for_writes()?.close_for_writes()
}

fn blobs(cache: &Cache, key: &Key) -> u64 {
    let lease = cache.lease(key, Want::Latest, None).unwrap();
    let count = |blobs: &mut Blobs<'_>, n: &mut u64| {
        while let Some(blob) = blobs.next()? {
            assert!(blob.len() == 1 << 20 && blob.iter().all(|&byte| byte == blob[0]));
            *n += 1;
        }
        Ok(())
    };
    lease.scan(count, |a, b| a + b).unwrap()
}

fn open(spindle: &Path) -> Result<Cache, CacheError> {
    Cache::builder().memory(512 << 20).spindle(spindle, 1 << 40).free_floor(0).open()
}

#[test]
fn a_frozen_disk_holds_nobody_beyond_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), 128 << 20) else { return };
    let spindle = disk.folder.join("spindle");
    let (there, other): (Key, Key) = ("test/frozen@1#0".parse().unwrap(), "test/frozen@2#0".parse().unwrap());
    let cache = open(&spindle).unwrap();
    load(&cache, &there, 10, None).unwrap();
    {
        let Some(_frozen) = Frozen::freeze(&disk.folder) else { return };
        let begun = Instant::now();
        let error = load(&cache, &other, 10, Some(begun + Duration::from_millis(500))).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        assert!(text(&error).contains("in time"), "{}", text(&error));
        assert_eq!(blobs(&cache, &there), 10, "from memory");
        let begun = Instant::now();
        let error = cache.close(Some(begun + Duration::from_millis(500))).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        let hangs = error.abandoned.iter().any(|thread| {
            thread.starts_with("spindle-0-impeller-") && thread.contains(spindle.to_str().unwrap())
        });
        assert!(hangs, "{error}");
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let cache = loop {
        match open(&spindle) {
            Ok(cache) => break cache,
            Err(error) => assert!(Instant::now() < deadline, "{}", text(&error)),
        }
        std::thread::yield_now();
    };
    assert_eq!(blobs(&cache, &there), 10);
    assert!(cache.search(&"test/frozen@2".parse().unwrap()).is_empty());
    load(&cache, &other, 10, None).unwrap();
}

/// A disk that has less than it says: the loop device's file lies on a tmpfs that is full.
#[test]
fn a_disk_that_can_not_keep_what_it_promised_is_named_and_what_it_had_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("below");
    std::fs::create_dir(&below).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"]).arg(&below).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no tmpfs mount here (it needs root)");
        return;
    }
    let _below = Unmount(&below);
    // Thin: 256 MiB of disk on 48 MiB of memory.
    let Some(disk) = SmallDisk::mount(&below, 256 << 20) else { return };
    let spindle = disk.folder.join("spindle");
    let (there, large): (Key, Key) = ("test/eio@1#0".parse().unwrap(), "test/eio@2#0".parse().unwrap());
    {
        let cache = open(&spindle).unwrap();
        load(&cache, &there, 4, None).unwrap();
        let error = load(&cache, &large, 120, None).unwrap_err();
        let said = text(&error);
        assert!(said.contains(spindle.to_str().unwrap()), "{said}");
        assert!(!cache.snap(&large).status().durable);
        // Kernels pass the file's error on, or call it an I/O error. That one is the disk's fault.
        let status = &cache.spindles()[0];
        let is_fault = said.contains("Input/output error");
        assert!(is_fault || said.contains("No space left"), "{said}");
        // Of several writes that failed, the one that is told may be another than the one that is counted.
        if is_fault {
            assert!(status.state != HealthState::Ok && status.last_fault.is_some(), "{said}");
        }
        cache.snap(&there).evict();
        assert_eq!(blobs(&cache, &there), 4);
        let _ = cache.close(Some(Instant::now() + Duration::from_secs(30)));
    }
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pelton_region_format::{Fingerprint, Header, KeyPattern, PAGE_BYTES, Trailer};
use rustix::io::Errno;

use super::*;
use crate::cache::{Cache, Want};
use crate::config::Verify;
use crate::events::Events;
use crate::ops::operation::{Operation, OperationOptions, OperationOutcome};
use crate::ops::select::Selection;
use crate::region::residence::Residence;
use crate::scan::blobs::Blobs;
use crate::scan::lease::LeaseError;
use crate::slice::parcel::ParcelBuilder;
use crate::slice::plan::{Durability, LoadPlan};
use crate::snap::state::SnapState;
use crate::spindle::engine::sim::{Failure, SimDisk, When};
use crate::spindle::health::HealthLimits;
use crate::sys;

const MIB: u64 = 1 << 20;
/// More than any disk gives: no wait.
const UNLIMITED: u64 = 1 << 40;
const BLOBS: u64 = 3;

fn key(slice: u32) -> Key {
    format!("test/scrub@1#{slice}").parse().unwrap()
}

fn builder(folder: &Path) -> crate::CacheBuilder {
    let builder = Cache::builder().spindle(folder.join("spindle"), 1 << 30).memory(256 * MIB);
    builder.scan_threads(2).pin(false).residence(Residence::Image)
}

fn load(cache: &Cache, slice: u32) {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([slice as u8; 32]));
    plan.regions = Some(2);
    plan.durability = Durability::Wait;
    let writer = cache.snap(&key(slice)).open_for_writes(plan).unwrap();
    for _ in 0..BLOBS {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![slice as u8; MIB as usize]).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

fn scan(cache: &Cache, slice: u32) -> Result<u64, LeaseError> {
    let lease = cache.lease(&key(slice), Want::Latest, None)?;
    let count = move |blobs: &mut Blobs<'_>, n: &mut u64| {
        while let Some(blob) = blobs.next()? {
            assert!(blob.iter().all(|byte| *byte == slice as u8));
            *n += 1;
        }
        Ok(())
    };
    Ok(lease.scan(count, |a, b| a + b).unwrap())
}

fn scrub(cache: &Cache, rate: u64) -> Scrub {
    Scrub::new(cache.core_for_tests().clone(), rate)
}

fn manifest(cache: &Cache, slice: u32) -> Arc<Manifest> {
    cache.core_for_tests().entry_for_tests(&key(slice)).manifest().unwrap()
}

fn region_file(folder: &Path, cache: &Cache, slice: u32) -> PathBuf {
    folder.join("spindle").join(&manifest(cache, slice).regions[0].path)
}

fn flip(file: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.sync_all().unwrap();
}

fn damage_told(events: &mut Events) -> Vec<(Key, PathBuf, Option<u64>)> {
    let told = std::iter::from_fn(|| events.try_recv()).filter_map(|event| match event {
        Event::Damaged { key, file, block, .. } => Some((key, file, block)),
        _ => None,
    });
    told.collect()
}

/// Where a bit is flipped.
#[derive(Clone, Copy, Debug)]
enum Part {
    Header,
    Body,
    Section,
    Trailer,
    Manifest,
}

/// Goal: damage in any part of what lies on the disk is found, told with its file, and dropped, and no other slice
/// notices. Method: a flipped bit in each part, of a slice in files only and of one in memory.
#[test]
fn a_flipped_bit_in_any_part_is_found_told_and_dropped_and_the_others_live() {
    for is_hot in [false, true] {
        for part in [Part::Header, Part::Body, Part::Section, Part::Trailer, Part::Manifest] {
            let folder = tempfile::tempdir().unwrap();
            let cache = builder(folder.path()).open().unwrap();
            (0..3).for_each(|slice| load(&cache, slice));
            if !is_hot {
                (0..3).for_each(|slice| assert!(cache.snap(&key(slice)).evict()));
            }
            let mut file = region_file(folder.path(), &cache, 1);
            let bytes = fs::read(&file).unwrap();
            let header = Header::decode(&bytes[..PAGE_BYTES]).unwrap();
            let last_page = &bytes[bytes.len() - PAGE_BYTES..];
            let trailer = Trailer::decode(last_page, &header, bytes.len() as u64).unwrap();
            let (at, block) = match part {
                Part::Header => (40, None),
                Part::Body => (MIB + 77, Some(1)),
                Part::Section => (trailer.body_end + 3, None),
                Part::Trailer => (bytes.len() as u64 - 4000, None),
                Part::Manifest => {
                    file = folder.path().join("spindle/manifests").join(Manifest::file_name(&key(1)));
                    (30, None)
                }
            };
            flip(&file, at);
            let mut events = cache.events();
            scrub(&cache, UNLIMITED).round();
            let case = format!("{part:?}, hot: {is_hot}");
            assert_eq!(damage_told(&mut events), [(key(1), file.clone(), block)], "{case}");
            let stats = cache.stats();
            assert_eq!((stats.scrub.whole, stats.scrub.damaged, stats.scrub.unread), (2, 1, 0), "{case}");
            assert_eq!(stats.verification_failures, 1, "{case}");
            match is_hot {
                false => assert!(matches!(scan(&cache, 1), Err(LeaseError::NotThere { .. })), "{case}"),
                // What is in memory never came from the file. It is all that is left.
                true => {
                    assert_eq!(scan(&cache, 1).unwrap(), BLOBS, "{case}");
                    let status = cache.snap(&key(1)).status();
                    assert!(status.unsaved && !status.durable && !cache.snap(&key(1)).evict(), "{case}");
                }
            }
            // Its files go with it, and it can be loaded again.
            cache.snap(&key(1)).flush(None).unwrap();
            assert!(!file.exists(), "{case}");
            load(&cache, 1);
            (0..3).for_each(|slice| assert_eq!(scan(&cache, slice).unwrap(), BLOBS, "{case}"));
        }
    }
}

#[test]
fn an_image_of_a_damaged_file_is_not_served_on() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).verify(Verify::Never).open().unwrap();
    load(&cache, 1);
    assert!(cache.snap(&key(1)).evict());
    flip(&region_file(folder.path(), &cache, 1), MIB + 77);
    drop(cache.lease(&key(1), Want::Latest, None).unwrap()); // Nobody has looked at its checksums.
    scrub(&cache, UNLIMITED).round();
    assert_eq!(cache.stats().scrub.damaged, 1);
    assert!(matches!(scan(&cache, 1), Err(LeaseError::NotThere { .. })));
}

#[test]
fn an_empty_manifest_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    load(&cache, 1);
    let path = folder.path().join("spindle/manifests").join(Manifest::file_name(&key(1)));
    fs::write(&path, []).unwrap();
    let mut events = cache.events();
    scrub(&cache, UNLIMITED).round();
    assert_eq!(damage_told(&mut events), [(key(1), path, None)]);
}

/// Between the rename and the moment when it is told, the disk names the next load already.
#[test]
fn a_manifest_that_was_just_replaced_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    load(&cache, 1);
    let path = folder.path().join("spindle/manifests").join(Manifest::file_name(&key(1)));
    let mut next = Manifest::decode(&fs::read(&path).unwrap()).unwrap();
    next.load_number += 1;
    fs::write(&path, next.encode()).unwrap();
    let mut events = cache.events();
    scrub(&cache, UNLIMITED).round();
    assert_eq!((damage_told(&mut events), cache.stats().scrub.damaged), (vec![], 0));
    let all = Selection::new(KeyPattern::ALL);
    let results = cache.operate(&all, Operation::Verify, &OperationOptions::default());
    assert!(matches!(results[0].outcome, OperationOutcome::Nothing), "{results:?}");
    // One that is gone is.
    fs::remove_file(&path).unwrap();
    scrub(&cache, UNLIMITED).round();
    assert_eq!(damage_told(&mut events), [(key(1), path, None)]);
}

#[test]
fn a_lease_on_what_is_damaged_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    load(&cache, 1);
    let lease = cache.lease(&key(1), Want::Latest, None).unwrap();
    flip(&region_file(folder.path(), &cache, 1), MIB);
    scrub(&cache, UNLIMITED).round();
    assert_eq!(cache.stats().scrub.damaged, 1);
    // What is in memory never came from the file.
    let bytes = lease.region(0, None).unwrap();
    assert!(bytes[MIB as usize..][..100].iter().all(|byte| *byte == 1));
}

#[test]
fn what_is_whole_is_left_alone_for_a_day_and_the_page_cache_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    (0..2).for_each(|slice| load(&cache, slice));
    let cached_pages = || {
        let file = fs::File::open(region_file(folder.path(), &cache, 1)).unwrap();
        sys::pages_cached(file.as_fd())
            .inspect_err(|error| println!("SKIPPED: no cachestat here: {error}"))
            .ok()
    };
    let before = cached_pages();
    let mut scrub = scrub(&cache, UNLIMITED);
    scrub.round();
    let stats = cache.stats().scrub;
    assert_eq!((stats.whole, stats.damaged, stats.unread), (2, 0, 0));
    let file_bytes = manifest(&cache, 0).file_bytes() + manifest(&cache, 1).file_bytes();
    assert!(stats.bytes >= file_bytes - 8 * PAGE_BYTES as u64, "{} of {file_bytes}", stats.bytes);
    assert_eq!(cached_pages(), before);
    scrub.round();
    assert_eq!(cache.stats().scrub, stats, "nothing is due");
    // Another load of the same key is another slice.
    load(&cache, 1);
    scrub.round();
    assert_eq!(cache.stats().scrub.whole, 3);
}

#[test]
fn the_slice_that_is_due_the_longest_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    (0..4).for_each(|slice| load(&cache, slice));
    let mut scrub = scrub(&cache, UNLIMITED);
    let now = Instant::now();
    for (slice, ago) in [(0, 5), (1, 50), (3, 20)] {
        let due_at = now.checked_sub(Duration::from_millis(ago)).unwrap();
        scrub.due.insert(key(slice), (manifest(&cache, slice).load_number, due_at));
    }
    scrub.due.insert("test/gone@1#0".parse().unwrap(), (1, now));
    let order: Vec<Key> = scrub.entries_due().iter().map(|entry| entry.key.clone()).collect();
    assert_eq!(order, [2, 1, 3, 0].map(key), "never verified, then by age");
    assert_eq!(scrub.due.len(), 3, "what went is forgotten");
}

/// Goal: the thread reads no faster than it was told. Method: the time that a known number of bytes takes at least; a
/// slow machine takes longer, and never less.
#[test]
fn a_round_takes_as_long_as_its_bytes_at_the_rate() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    load(&cache, 1);
    let (rate, begun) = (16 * MIB, Instant::now());
    scrub(&cache, rate).round();
    let stats = cache.stats().scrub;
    assert_eq!(stats.whole, 1);
    // The last helping need not be paid off.
    let least = Duration::from_secs_f64((stats.bytes - 2 * MIB) as f64 / rate as f64);
    assert!(begun.elapsed() >= least, "{:?} for {} bytes", begun.elapsed(), stats.bytes);
}

#[test]
fn the_thread_finds_what_was_damaged_between_two_runs() {
    let folder = tempfile::tempdir().unwrap();
    let cache = builder(folder.path()).open().unwrap();
    (0..2).for_each(|slice| load(&cache, slice));
    let file = region_file(folder.path(), &cache, 1);
    drop(cache);
    flip(&file, 5000);
    let cache = builder(folder.path()).scrub(1 << 30).open().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while cache.stats().scrub.whole + cache.stats().scrub.damaged < 2 {
        assert!(Instant::now() < patience, "{:?}", cache.stats().scrub);
        std::thread::yield_now();
    }
    assert_eq!(cache.stats().scrub.damaged, 1);
    cache.snap(&key(1)).flush(None).unwrap();
    assert_eq!(cache.snap(&key(1)).status().state, SnapState::Cold);
    assert_eq!(scan(&cache, 0).unwrap(), BLOBS);
}

/// Goal: neither closing nor dropping waits for a scrub. Method: one so slow that its next read is a quarter of a
/// minute away.
#[test]
fn closing_and_dropping_end_the_scrub_at_once() {
    for closes in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let cache = builder(folder.path()).open().unwrap();
        load(&cache, 1);
        drop(cache);
        let cache = builder(folder.path()).scrub(64 << 10).open().unwrap();
        while cache.stats().scrub.bytes < MIB {
            std::thread::yield_now();
        }
        let begun = Instant::now();
        match closes {
            true => cache.close(None).unwrap(),
            false => drop(cache),
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        builder(folder.path()).open().unwrap();
    }
}

#[test]
fn a_disk_that_refuses_to_read_damages_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SimDisk::healthy(folder.path().join("spindle"), 7);
    let cache = builder(folder.path()).open_on(vec![disk.clone()], HealthLimits::default()).unwrap();
    load(&cache, 1);
    let _sick = disk.clone().with_fault(When::Every("read"), Failure::Error(Errno::IO));
    let mut events = cache.events();
    let mut scrub = scrub(&cache, UNLIMITED);
    scrub.round();
    let stats = cache.stats().scrub;
    assert_eq!((stats.whole, stats.damaged, stats.unread), (0, 0, 1));
    assert_eq!(damage_told(&mut events), []);
    scrub.round();
    assert_eq!(cache.stats().scrub, stats, "it is not tried again at once");
    disk.heal();
    assert!(cache.snap(&key(1)).evict());
    assert_eq!(scan(&cache, 1).unwrap(), BLOBS);
}

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use pelton_region_format::{Fingerprint, Key, crc32c};

use super::*;
use crate::cache::{Cache, Want};
use crate::config::IoEngine;
use crate::scan::blobs::Blobs;
use crate::scan::lease::{Lease, LeaseError, LeaseOptions, Reading};
use crate::scan::patience::Impatience;
use crate::scan::run::ScanError;
use crate::slice::parcel::ParcelBuilder;
use crate::slice::plan::{Durability, LoadPlan};
use crate::snap::state::SnapState;
use crate::spindle::engine::sim::{Failure, SimDisk, When};
use crate::spindle::health::HealthLimits;
use crate::sys;

fn key() -> Key {
    "test/warm@1#0".parse().unwrap()
}

/// A cache on a real folder.
fn cache(folder: &Path, residence: Residence, engine: IoEngine) -> Cache {
    let builder = Cache::builder().spindle(folder.join("spindle"), None).memory(256 << 20).scan_threads(2);
    builder.residence(residence).engine(engine).open().unwrap()
}

/// A cache on a disk that fails as told.
fn sim_cache(folder: &Path, disk: &SimDisk, residence: Residence) -> Cache {
    let builder = Cache::builder().spindle(folder, 1 << 30).memory(256 << 20).scan_threads(2).pin(false);
    builder.residence(residence).open_on(vec![disk.clone()], HealthLimits::default()).unwrap()
}

/// Loads `mib` blobs of a MiB, each filled with its number.
fn load(cache: &Cache, regions: u32, mib: u8) {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.regions = Some(regions);
    plan.durability = Durability::Wait;
    let writer = cache.snap(&key()).open_for_writes(plan).unwrap();
    for number in 0..mib {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number; 1 << 20]).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

type Sums = BTreeMap<u8, u32>;

fn expected(mib: u8) -> Sums {
    (0..mib).map(|number| (number, crc32c(&vec![number; 1 << 20]))).collect()
}

fn scan(lease: &Lease) -> Result<Sums, ScanError> {
    let sum = |blobs: &mut Blobs<'_>, sums: &mut Sums| {
        while let Some(blob) = blobs.next()? {
            sums.insert(blob[0], crc32c(blob));
        }
        Ok(())
    };
    let join = |mut a: Sums, b| {
        a.extend(b);
        a
    };
    lease.scan(sum, join)
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

fn cached_pages(path: &Path) -> Option<u64> {
    let cached = sys::pages_cached(std::fs::File::open(path).unwrap().as_fd());
    cached.inspect_err(|error| eprintln!("skipped, no cachestat here: {error}")).ok()
}

const WAYS: [(Residence, IoEngine); 4] = [
    (Residence::Map, IoEngine::Auto),
    (Residence::Map, IoEngine::Threads),
    (Residence::Image, IoEngine::Auto),
    (Residence::Image, IoEngine::Threads),
];

#[test]
fn a_slice_reads_back_whichever_way_it_comes_into_memory() {
    for (residence, engine) in WAYS.into_iter().chain([(Residence::Auto, IoEngine::Auto)]) {
        for (regions, mib) in [(1, 1), (1, 40), (3, 41), (7, 5)] {
            let folder = tempfile::tempdir().unwrap();
            let cache = cache(folder.path(), residence, engine);
            load(&cache, regions, mib);
            for round in 0..3 {
                assert!(cache.snap(&key()).evict());
                assert_eq!(cache.memory().unwrap().images + cache.memory().unwrap().mapped, 0);
                let lease = cache.lease(&key(), Want::Latest, None).unwrap();
                let named = format!("{residence} {engine:?}, {regions} regions, {mib} MiB, round {round}");
                assert_eq!(scan(&lease).unwrap(), expected(mib), "{named}");
                let memory = cache.memory().unwrap();
                let file_bytes = cache.snap(&key()).status().file_bytes;
                match cache.spindles()[0].residence {
                    Residence::Image => {
                        assert_eq!((memory.images, memory.mapped), (file_bytes, 0), "{named}")
                    }
                    Residence::Map => {
                        assert_eq!((memory.images, memory.mapped), (0, file_bytes), "{named}");
                        assert_eq!(memory.mapped_resident, file_bytes, "{named}");
                    }
                    Residence::Auto => panic!("it was found out: {named}"),
                }
            }
        }
    }
}

#[test]
fn an_evict_empties_the_page_cache_after_the_last_lease_and_a_keeping_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), Residence::Map, IoEngine::Auto);
    load(&cache, 1, 20);
    let snap = cache.snap(&key());
    assert!(snap.evict());
    let file = region_files(folder.path()).remove(0);
    let pages = std::fs::metadata(&file).unwrap().len() / sys::page_bytes();
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    scan(&lease).unwrap();
    let Some(cached) = cached_pages(&file) else { return };
    assert_eq!(cached, pages);
    drop(lease);
    assert!(snap.evict_keeping_cache());
    assert_eq!(cached_pages(&file), Some(pages));

    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    assert!(snap.evict());
    assert_eq!(cached_pages(&file), Some(pages), "what is leased stays");
    assert_eq!(scan(&lease).unwrap(), expected(20));
    drop(lease);
    wait_until_unmapped(&cache);
    assert_eq!(cached_pages(&file), Some(0));
}

/// Goal: what stayed in the page cache is not verified again, and what left it is. Method: a byte is changed
/// in the page cache, where only verifying would find it.
#[test]
fn what_stays_resident_is_not_verified_again_and_what_comes_from_the_disk_is() {
    use std::os::unix::fs::FileExt;

    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), Residence::Map, IoEngine::Auto);
    load(&cache, 1, 20);
    let snap = cache.snap(&key());
    snap.evict();
    scan(&cache.lease(&key(), Want::Latest, None).unwrap()).unwrap();
    assert!(snap.evict_keeping_cache());
    let file = std::fs::OpenOptions::new().write(true).open(region_files(folder.path()).remove(0)).unwrap();
    file.write_all_at(&[0xEE], 10 << 20).unwrap();
    file.sync_all().unwrap();
    let sums = scan(&cache.lease(&key(), Want::Latest, None).unwrap()).unwrap();
    assert_eq!(
        sums.iter().filter(|sum| !expected(20).contains_key(sum.0) || expected(20)[sum.0] != *sum.1).count(),
        1
    );
    // The same once more, but with a part gone: what is mapped would stay.
    assert!(snap.evict_keeping_cache());
    wait_until_unmapped(&cache);
    rustix::fs::fadvise(&file, 4 << 20, std::num::NonZero::new(4 << 20), rustix::fs::Advice::DontNeed)
        .unwrap();
    let error = scan(&cache.lease(&key(), Want::Latest, None).unwrap()).unwrap_err();
    assert!(matches!(error, ScanError::Damaged { .. }), "{error}");
    wait_until_dropped(&cache, folder.path());
}

/// All memory is free only when the last page is unmapped; what comes after that, the reaper does in its turn.
fn wait_until_unmapped(cache: &Cache) {
    let core = cache.core_for_tests();
    drop(core.budget.take(MemoryUse::Images, core.budget.counts().residence_max, None).unwrap());
    core.warmth.reaper.settle();
}

/// The failure is told to the scans first, and to the entry right after. It heals after a second.
fn wait_until_healed(cache: &Cache) {
    let snap = cache.snap(&key());
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut has_failed = false;
    loop {
        match snap.status().state {
            SnapState::Failed => has_failed = true,
            SnapState::Warm if has_failed => return,
            _ => {}
        }
        assert!(Instant::now() < deadline, "it fails, and heals");
        thread::yield_now();
    }
}

/// Damage is told to the scans first, and to the entry right after.
fn wait_until_dropped(cache: &Cache, folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while cache.snap(&key()).status().state != SnapState::Cold {
        assert!(Instant::now() < deadline, "it is dropped");
        thread::yield_now();
    }
    // A flush waits until the files are gone, and finds nothing else to do.
    assert!(!cache.snap(&key()).flush(Some(deadline)).unwrap());
    assert_eq!(region_files(folder), [""; 0].map(PathBuf::from));
}

#[test]
fn damage_is_an_error_of_the_scan_and_the_slice_is_dropped() {
    use std::os::unix::fs::FileExt;

    for (residence, engine) in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), residence, engine);
        load(&cache, 2, 40);
        cache.snap(&key()).evict();
        let path = region_files(folder.path()).remove(1);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 15 << 20).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 15 << 20).unwrap();
        file.sync_all().unwrap();
        let lease = cache.lease(&key(), Want::Latest, None).unwrap();
        let error = scan(&lease).unwrap_err();
        assert!(matches!(error, ScanError::Damaged { index: 1, .. }), "{residence} {engine:?}: {error}");
        wait_until_dropped(&cache, folder.path());
        assert!(matches!(cache.lease(&key(), Want::Latest, None), Err(LeaseError::NotThere { .. })));
        load(&cache, 2, 40);
        let again = cache.lease(&key(), Want::Latest, None).unwrap();
        assert_eq!(scan(&again).unwrap(), expected(40), "{residence} {engine:?}");
        assert!(scan(&lease).is_err(), "the old lease keeps what it got");
    }
}

/// Goal: a lease is given before the bytes are there, and its scan follows them. Method: the first read of the
/// haul hangs; the look needs an open, a length and three reads.
#[test]
fn a_lease_is_given_before_the_bytes_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SimDisk::healthy(folder.path(), 1);
    let cache = sim_cache(folder.path(), &disk, Residence::Image);
    load(&cache, 1, 30);
    cache.snap(&key()).evict();
    let _ = disk.clone().with_fault(When::Op(disk.ops() + 5), Failure::Hang);
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    assert!(cache.snap(&key()).status().state == SnapState::Hot);
    thread::scope(|scope| {
        let scanning = scope.spawn(|| scan(&lease));
        let region = &cache.core_for_tests().entry_for_tests(&key()).desk.served().unwrap().regions[0];
        let impatient = Patience::until(Some(Instant::now()));
        assert!(matches!(region.readable(0, &impatient), Err(RegionFault::Impatience(Impatience::Late))));
        disk.let_go();
        assert_eq!(scanning.join().unwrap().unwrap(), expected(30));
    });
}

#[test]
fn an_error_of_the_disk_reaches_the_scan_and_the_next_lease_tries_again() {
    for at in [0, 2, 4, 5, 9] {
        let folder = tempfile::tempdir().unwrap();
        let disk = SimDisk::healthy(folder.path(), 7 + at);
        let cache = sim_cache(folder.path(), &disk, Residence::Image);
        load(&cache, 1, 30);
        cache.snap(&key()).evict();
        let _ = disk.clone().with_fault(When::Op(disk.ops() + at), Failure::Error(rustix::io::Errno::IO));
        match cache.lease(&key(), Want::Latest, None) {
            Ok(lease) => {
                assert!(at >= 5, "the look needs operation {at}");
                let error = scan(&lease).unwrap_err();
                assert!(matches!(error, ScanError::Warm { index: 0, .. }), "{at}: {error}");
            }
            Err(LeaseError::Warm { source, .. }) => {
                assert!(at < 5, "the look does not need operation {at}");
                assert!(matches!(&*source, WarmError::Disk { index: 0, .. }), "{at}: {source}");
            }
            Err(error) => panic!("{at}: {error}"),
        }
        wait_until_healed(&cache);
        let lease = cache.lease(&key(), Want::Latest, None).unwrap();
        assert_eq!(scan(&lease).unwrap(), expected(30), "{at}");
    }
}

/// Goal: a region that fails before the others were looked at leaves no slice that stays hot and broken. Method: one
/// region's open hangs until the other one, which looks with three reads, has failed at its fourth.
#[test]
fn a_slice_that_failed_before_it_was_hot_does_not_stay_hot() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SimDisk::healthy(folder.path(), 13);
    let disk = disk.with_fault(When::Nth("open", 0), Failure::Hang);
    let disk = disk.with_fault(When::Nth("read", 3), Failure::Error(rustix::io::Errno::IO));
    let cache = sim_cache(folder.path(), &disk, Residence::Image);
    load(&cache, 2, 40);
    cache.snap(&key()).evict();
    let before = disk.ops();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| cache.lease(&key(), Want::Latest, None));
        // Both opens, then a length, three reads, and those that the haul has on their way.
        while disk.ops() < before + 2 + 4 + READS_MAX as u64 {
            thread::yield_now();
        }
        disk.let_go();
        // The lease may have been given before its failure was known.
        match waiting.join().unwrap() {
            Ok(lease) => assert!(matches!(scan(&lease).unwrap_err(), ScanError::Warm { .. })),
            Err(error) => assert!(matches!(error, LeaseError::Warm { .. }), "{error}"),
        }
    });
    wait_until_healed(&cache);
    assert_eq!(scan(&cache.lease(&key(), Want::Latest, None).unwrap()).unwrap(), expected(40));
}

/// Goal: one way into memory for all who wait, and nobody's deadline ends it for others. Method: the file's open
/// hangs; one caller gives up, another one waits.
#[test]
fn a_deadline_ends_the_wait_of_its_caller_only() {
    for residence in [Residence::Map, Residence::Image] {
        let folder = tempfile::tempdir().unwrap();
        let disk = SimDisk::healthy(folder.path(), 3);
        let cache = sim_cache(folder.path(), &disk, residence);
        load(&cache, 2, 20);
        cache.snap(&key()).evict();
        let _ = disk.clone().with_fault(When::Op(disk.ops()), Failure::Hang);
        let soon = Some(Instant::now() + Duration::from_millis(20));
        let error = cache.lease(&key(), Want::Latest, soon).unwrap_err();
        assert!(matches!(error, LeaseError::Deadline { .. }), "{error}");
        let ops = disk.ops();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| cache.lease(&key(), Want::Latest, None));
            disk.let_go();
            assert_eq!(scan(&waiting.join().unwrap().unwrap()).unwrap(), expected(20));
        });
        let opens = if residence == Residence::Map { 2 } else { 2 * 5 + 2 * 4 };
        assert!(disk.ops() <= ops + opens, "it was not begun a second time: {} operations", disk.ops() - ops);
    }
}

#[test]
fn a_lease_outlives_its_cache_while_its_bytes_are_on_their_way() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SimDisk::healthy(folder.path(), 5);
    let cache = sim_cache(folder.path(), &disk, Residence::Image);
    load(&cache, 2, 30);
    cache.snap(&key()).evict();
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    drop(cache);
    assert_eq!(scan(&lease).unwrap(), expected(30));
}

/// Memory is free when the last lease has dropped, also when it drops in the middle of the way.
#[test]
fn what_nobody_wants_any_more_is_not_brought_in() {
    for residence in [Residence::Map, Residence::Image] {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), residence, IoEngine::Auto);
        load(&cache, 2, 60);
        for _ in 0..20 {
            cache.snap(&key()).evict();
            // Fits only once: each lease waits until all memory of the one before is free.
            drop(cache.lease(&key(), Want::Latest, None).unwrap());
        }
        let lease = cache.lease(&key(), Want::Latest, None).unwrap();
        assert_eq!(scan(&lease).unwrap(), expected(60));
    }
}

/// Goal: the choice fits what comes of it. Method: a mapped region, larger than the probe's file, is looked at as the
/// probe looked at its own.
#[test]
fn the_probe_agrees_with_what_regions_get() {
    let large = |residence| {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), residence, IoEngine::Auto);
        load(&cache, 1, 60);
        cache.snap(&key()).evict();
        assert_eq!(cache.spindles()[0].residence, residence);
        let lease = cache.lease(&key(), Want::Latest, None).unwrap();
        scan(&lease).unwrap();
        assert!(
            region_files(folder.path()).len() == 1 && !folder.path().join("spindle/residence-probe").exists()
        );
        (cache.spindles()[0].residence, cache.memory().unwrap().large_page_bytes)
    };
    let (chosen, _) = large(Residence::Auto);
    let (_, large_in_map) = large(Residence::Map);
    assert_eq!(
        chosen == Residence::Map,
        large_in_map >= 30 << 20,
        "{chosen}: {large_in_map} bytes in large pages"
    );
}

#[test]
fn a_spindle_whose_maps_get_no_large_pages_or_that_has_no_room_to_look_reads_images() {
    let folder = tempfile::tempdir().unwrap();
    // A simulated disk's files lie in ordinary shared memory; and this one refuses the probe as well.
    for fault in [false, true] {
        let folder = folder.path().join(fault.to_string());
        let mut disk = SimDisk::healthy(&folder, 11);
        let cache = sim_cache(&folder, &disk, Residence::Auto);
        load(&cache, 1, 3);
        cache.snap(&key()).evict();
        if fault {
            // After the unlink of a probe that a crash has left.
            let full = Failure::Error(rustix::io::Errno::NOSPC);
            disk = disk.clone().with_fault(When::Op(disk.ops() + 1), full);
        }
        assert_eq!(scan(&cache.lease(&key(), Want::Latest, None).unwrap()).unwrap(), expected(3));
        let status = cache.spindles().remove(0);
        assert_eq!(
            status.residence,
            Residence::Image,
            "{}, after {} operations",
            status.residence_reason,
            disk.ops()
        );
    }
}

#[test]
fn memory_is_let_go_by_the_reaper() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), Residence::Map, IoEngine::Auto);
    load(&cache, 2, 20);
    cache.snap(&key()).evict();
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    let core = cache.core_for_tests();
    cache.snap(&key()).evict();
    assert_eq!(core.budget.counts().mapped, cache.snap(&key()).status().file_bytes, "leased still");
    drop(lease);
    wait_until_unmapped(&cache);
    let names = std::fs::read_dir("/proc/self/task").unwrap();
    let mut names = names.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    assert!(names.any(|name| name.trim() == "pelton-reaper"));
}

/// Goal: a disk that does not answer keeps no memory. Method: telling the page cache hangs, for each of many files.
#[test]
fn memory_comes_back_though_the_page_cache_can_not_be_told() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SimDisk::healthy(folder.path(), 1);
    let cache = sim_cache(folder.path(), &disk, Residence::Map);
    load(&cache, 5, 5);
    assert!(cache.snap(&key()).evict());
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    assert_eq!(scan(&lease).unwrap(), expected(5));
    drop(lease);
    let _ = disk.clone().with_fault(When::Every("drop the cache of"), Failure::Hang);
    assert!(cache.snap(&key()).evict());
    assert_eq!(cache.memory().unwrap().mapped, 0);
    disk.heal();
    disk.let_go();
}

/// Goal: memory on other disks does not wait for a disk that has more to do than it takes on. Method: the spindle's queue is
/// filled with writes that hang, then several mapped regions go.
#[test]
fn memory_comes_back_though_the_queue_of_its_disk_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SimDisk::healthy(folder.path(), 1);
    let cache = sim_cache(folder.path(), &disk, Residence::Map);
    load(&cache, 5, 5);
    assert!(cache.snap(&key()).evict());
    drop(cache.lease(&key(), Want::Latest, None).map(|lease| scan(&lease).unwrap()).unwrap());
    let _ = disk.clone().with_fault(When::Every("write"), Failure::Hang);
    let impellers = &cache.core_for_tests().spindles[0].impellers;
    let (replies, _kept) = replies();
    let mut queued = 0;
    loop {
        let op = Op::WriteSmall { path: folder.path().join(format!("{queued}")), bytes: vec![0; 1 << 20] };
        let soon = Instant::now() + Duration::from_millis(300);
        if impellers.submit(Lane(queued), op, replies.tag(queued), Some(soon)).is_err() {
            break;
        }
        queued += 1;
    }
    assert!(queued > 1);
    // An evict waits for two seconds at most; of a second for each region three would be left.
    assert!(cache.snap(&key()).evict());
    assert_eq!(cache.memory().unwrap().mapped, 0);
    disk.heal();
    disk.let_go();
}

fn streamed(cache: &Cache) -> Result<Lease, LeaseError> {
    cache.lease_with(&key(), &LeaseOptions { reading: Reading::Stream, ..LeaseOptions::default() })
}

fn is_not_there(cache: &Cache) -> bool {
    matches!(cache.lease(&key(), Want::Latest, None), Err(LeaseError::NotThere { .. }))
}

/// Whatever the closure makes of the error.
#[test]
fn damage_that_a_stream_finds_takes_the_slice_out_of_service() {
    use std::os::unix::fs::FileExt;

    type Fold = fn(&mut Blobs<'_>, &mut Sums) -> Result<(), crate::scan::blobs::FoldError>;

    let hand_on: Fold = |blobs, _| {
        while blobs.next()?.is_some() {}
        Ok(())
    };
    let swallow: Fold = |blobs, _| {
        while let Ok(Some(_)) = blobs.next() {}
        Ok(())
    };
    let panic: Fold = |blobs, _| {
        while blobs.next().unwrap().is_some() {}
        Ok(())
    };
    for (name, fold) in [("handed on", hand_on), ("swallowed", swallow), ("a panic", panic)] {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), Residence::Map, IoEngine::Auto);
        load(&cache, 2, 40);
        assert!(cache.snap(&key()).evict());
        let path = region_files(folder.path()).remove(1);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 15 << 20).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 15 << 20).unwrap();
        file.sync_all().unwrap();
        let lease = streamed(&cache).unwrap();
        let error = lease.scan(fold, |sums, _| sums).unwrap_err();
        match name {
            "a panic" => assert!(matches!(error, ScanError::Panicked { index: 1, .. }), "{name}: {error}"),
            _ => assert!(matches!(error, ScanError::Damaged { index: 1, .. }), "{name}: {error}"),
        }
        assert_eq!(cache.stats().verification_failures, 1, "{name}");
        assert!(is_not_there(&cache), "{name}");
        wait_until_dropped(&cache, folder.path());
        load(&cache, 2, 40);
        let again = cache.lease(&key(), Want::Latest, None).unwrap();
        assert_eq!(scan(&again).unwrap(), expected(40), "{name}");
    }
}

/// What a closure says by itself is its own matter.
#[test]
fn damage_that_a_closure_makes_up_drops_nothing() {
    use crate::scan::blobs::FoldError;

    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), Residence::Map, IoEngine::Auto);
    load(&cache, 2, 4);
    assert!(cache.snap(&key()).evict());
    let lease = streamed(&cache).unwrap();
    let lie = |_: &mut Blobs<'_>, (): &mut ()| Err(FoldError::Lost);
    assert!(matches!(lease.scan(lie, |(), ()| ()), Err(ScanError::Lost { .. })));
    assert_eq!(scan(&cache.lease(&key(), Want::Latest, None).unwrap()).unwrap(), expected(4));
}

/// A file that has become longer, where it is mapped: touching what is behind a cut would be a signal.
#[test]
fn a_slice_whose_file_changes_its_length_during_a_scan_is_dropped() {
    for reading in [Reading::Memory, Reading::Stream] {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), Residence::Map, IoEngine::Auto);
        load(&cache, 2, 40);
        assert!(cache.snap(&key()).evict());
        let options = LeaseOptions { reading, ..LeaseOptions::default() };
        let lease = cache.lease_with(&key(), &options).unwrap();
        assert_eq!(scan(&lease).unwrap(), expected(40), "{reading:?}");
        let path = region_files(folder.path()).remove(1);
        let bytes = std::fs::metadata(&path).unwrap().len();
        let length = if reading == Reading::Memory { bytes + 1 } else { bytes / 2 };
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        let error = scan(&lease).unwrap_err();
        assert!(matches!(error, ScanError::Lost { index: 1, .. }), "{reading:?}: {error}");
        assert!(is_not_there(&cache), "{reading:?}");
        drop(lease);
        wait_until_dropped(&cache, folder.path());
    }
}

/// Goal: what will never come back is not tried again and again. Method: a committed file is cut, or taken away.
#[test]
fn a_slice_whose_file_was_cut_or_is_gone_is_dropped_by_who_wants_it() {
    let open = |cache: &Cache, streams| match streams {
        false => cache.lease(&key(), Want::Latest, None),
        true => streamed(cache),
    };
    for (residence, engine) in WAYS {
        for (is_cut, streams) in [(true, false), (false, false), (true, true), (false, true)] {
            let folder = tempfile::tempdir().unwrap();
            let cache = cache(folder.path(), residence, engine);
            load(&cache, 2, 4);
            assert!(cache.snap(&key()).evict());
            let path = region_files(folder.path()).remove(1);
            match is_cut {
                true => std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 20).unwrap(),
                false => std::fs::remove_file(path).unwrap(),
            }
            let named = format!("{residence} {engine:?}, cut: {is_cut}, streams: {streams}");
            let Err(LeaseError::Warm { source, .. }) = open(&cache, streams) else { panic!("{named}") };
            assert!(source.is_damage(), "{named}: {source}");
            assert_eq!(matches!(*source, WarmError::NoFile { index: 1 }), !is_cut, "{named}: {source}");
            assert!(is_not_there(&cache), "{named}");
            wait_until_dropped(&cache, folder.path());
        }
    }
}

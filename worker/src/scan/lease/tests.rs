use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use pelton_region_format::RegionView;
use rustix::thread::{CpuSet, sched_getaffinity};

use super::*;
use crate::cache::Cache;
use crate::scan::affinity::tests::{only_core, passes_on_core};
use crate::scan::affinity::{allowed_cores, current_core};
use crate::slice::parcel::ParcelBuilder;
use crate::slice::plan::{Durability, LoadPlan};

const REGIONS: u8 = 5;

/// One blob in each region, whose first byte is the number of its region.
fn lease_of(cache: &Cache) -> Lease {
    let key: Key = "test/pinned@1#0".parse().unwrap();
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.regions = Some(u32::from(REGIONS));
    plan.durability = Durability::Wait;
    let writer = cache.snap(&key).open_for_writes(plan).unwrap();
    let mut parcel = ParcelBuilder::default();
    (0..REGIONS).for_each(|region| parcel.push(&[region; 100]).unwrap());
    writer.queue_parcel(parcel.finish()).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    let lease = cache.lease(&key, Want::Latest, None).unwrap();
    for region in 0..REGIONS {
        let bytes = lease.region(usize::from(region), None).unwrap();
        let mut blobs = RegionView::open(&bytes).unwrap().blobs();
        assert_eq!(blobs.next().unwrap(), Some(&[region; 100][..]), "dealt in turn");
    }
    lease
}

/// Which region was visited, by which thread, on which core, and where that thread may run.
type Visit = (u8, String, usize, Vec<usize>);

fn own_mask() -> Vec<usize> {
    let mask = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|&core| mask.is_set(core)).collect()
}

fn visits(lease: &Lease) -> Vec<Visit> {
    let look = |blobs: &mut Blobs<'_>, visits: &mut Vec<Visit>| {
        let name = thread::current().name().unwrap().to_owned();
        while let Some(blob) = blobs.next()? {
            visits.push((blob[0], name.clone(), current_core(), own_mask()));
        }
        Ok(())
    };
    let join = |mut a: Vec<Visit>, b| {
        a.extend(b);
        a
    };
    let visits = lease.scan(look, join).unwrap();
    assert_eq!(visits.len(), usize::from(REGIONS));
    visits
}

fn check_pinned(threads: usize) {
    let folder = tempfile::tempdir().unwrap();
    let spindle = folder.path().join("spindle");
    let cache = Cache::builder().spindle(spindle, None).memory(64 << 20).scan_threads(threads).pin(true);
    let cache = cache.open().unwrap();
    let mut lease = lease_of(&cache);
    let cores = allowed_cores().unwrap();
    for round in 0..1000 {
        if round == 500 {
            // Other memory, the same threads.
            let key = lease.key().clone();
            drop(lease);
            assert!(cache.snap(&key).evict());
            lease = cache.lease(&key, Want::Latest, None).unwrap();
        }
        for (region, name, core, mask) in visits(&lease) {
            let thread = usize::from(region) % threads;
            let expected = cores[thread % cores.len()];
            assert_eq!(name, format!("pelton-scan-{thread}"), "region {region}, round {round}");
            assert_eq!((core, mask), (expected, vec![expected]), "region {region}, round {round}");
        }
    }
    let (_, report) = lease.scan_with(ScanOptions::default(), |_, _: &mut ()| Ok(()), |(), ()| ()).unwrap();
    let used = threads.min(usize::from(REGIONS));
    assert_eq!((report.threads, report.threads_pinned), (used, used));
}

/// Goal: over 1,000 scans each region is visited by one thread on one core. Method: every fold tells who it is,
/// with fewer threads than regions, as many as there are cores, and more threads than both.
#[test]
fn each_region_is_visited_by_one_thread_on_one_core() {
    for threads in BTreeSet::from([1, 2, 7, allowed_cores().unwrap().len()]) {
        check_pinned(threads);
    }
}

#[test]
fn without_pinning_each_region_keeps_its_thread_which_may_run_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let spindle = folder.path().join("spindle");
    let cache = Cache::builder().spindle(spindle, None).memory(64 << 20).scan_threads(2).pin(false);
    let cache = cache.open().unwrap();
    let lease = lease_of(&cache);
    let cores = allowed_cores().unwrap();
    let mut owners: BTreeMap<u8, BTreeSet<String>> = BTreeMap::new();
    for _ in 0..100 {
        for (region, name, _, mask) in visits(&lease) {
            assert_eq!(mask, cores);
            owners.entry(region).or_default().insert(name);
        }
    }
    assert!(owners.values().all(|names| names.len() == 1), "{owners:?}");
    let (_, report) = lease.scan_with(ScanOptions::default(), |_, _: &mut ()| Ok(()), |(), ()| ()).unwrap();
    assert_eq!((report.threads, report.threads_pinned), (2, 0));
}

#[test]
fn a_scan_inside_of_a_scan_is_refused_and_its_partitions_can_be_folded() {
    let folder = tempfile::tempdir().unwrap();
    let cache =
        Cache::builder().spindle(folder.path().join("spindle"), None).memory(64 << 20).scan_threads(1);
    let cache = cache.open().unwrap();
    let lease = lease_of(&cache);
    let count = |blobs: &mut Blobs<'_>, count: &mut usize| {
        while blobs.next()?.is_some() {
            *count += 1;
        }
        Ok(())
    };
    let inner = lease.clone();
    let nested = move |_: &mut Blobs<'_>, all: &mut usize| {
        assert!(matches!(inner.scan(count, |a, b| a + b), Err(ScanError::Nested { .. })));
        *all += inner.partitions().map(|partition| partition.fold(count).unwrap()).sum::<usize>();
        Ok(())
    };
    assert_eq!(lease.scan(nested, |a, b| a + b).unwrap(), usize::from(REGIONS * REGIONS));
}

/// Goal: a lease is whole without the handle it came from, and nothing of a scan outlives it.
#[test]
fn a_lease_scans_after_its_cache_handle_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let spindle = folder.path().join("spindle");
    let cache = Cache::builder().spindle(&spindle, None).memory(64 << 20).scan_threads(2).open().unwrap();
    let lease = lease_of(&cache);
    drop(cache);
    let shared = Arc::new(());
    let held = shared.clone();
    let fold = move |_: &mut Blobs<'_>, count: &mut usize| {
        *count += Arc::strong_count(&held);
        Ok(())
    };
    assert!(lease.scan(fold, |a, b| a + b).unwrap() >= usize::from(REGIONS));
    assert_eq!(Arc::strong_count(&shared), 1, "the closure is gone");
    drop(lease);
    // The folder is free again: everything that was the cache's has ended.
    Cache::builder().spindle(&spindle, None).memory(64 << 20).open().unwrap();
}

#[test]
fn child_is_pinned_to_the_core_it_is_left() {
    if only_core().is_some() {
        assert_eq!(allowed_cores().unwrap().len(), 1);
        check_pinned(1);
        check_pinned(3);
    }
}

#[test]
fn in_a_cpuset_of_one_core_scans_are_pinned_to_it() {
    for core in allowed_cores().unwrap() {
        let module = module_path!().split_once("::").expect("below the crate").1;
        assert!(passes_on_core(&format!("{module}::child_is_pinned_to_the_core_it_is_left"), core), "{core}");
    }
}

/// A sparse file whose blobs pass 4 GiB, in place of a loaded region: nearly all of it are zeros that no disk holds.
fn put_a_region_beyond_4_gib(spindle: &std::path::Path) -> Vec<u32> {
    use std::os::unix::fs::FileExt;

    use pelton_region_format::{Header, Put, RegionEncoder};

    use crate::snap::manifest::Manifest;

    let manifest_path = std::fs::read_dir(spindle.join("manifests")).unwrap().next().unwrap().unwrap().path();
    let mut manifest = Manifest::decode(&std::fs::read(&manifest_path).unwrap()).unwrap();
    let record = &mut manifest.regions[0];
    let path = spindle.join(&record.path);
    std::fs::remove_file(&path).unwrap();
    let file = std::fs::File::create_new(&path).unwrap();

    let zeros = vec![0; 2 << 20];
    let (mut piece, mut written) = (zeros.clone(), 0);
    let mut keep = |piece: &[u8]| {
        if piece != &zeros[..piece.len()] {
            file.write_all_at(piece, written).unwrap();
        }
        written += piece.len() as u64;
        file.set_len(written).unwrap();
    };
    // 66 x 64 MiB of zeros are more than 4 GiB; then some that tell where they are.
    let lengths: Vec<u32> = [64 << 20; 66].into_iter().chain([1, 5 << 20, 0, 300]).collect();
    let mut encoder = RegionEncoder::v2(&Header::default(), piece.len()).unwrap();
    for (number, &len) in lengths.iter().enumerate() {
        encoder.begin_blob(len).unwrap();
        let mut left = len as usize;
        let fill = vec![if number < 66 { 0 } else { number as u8 }; 2 << 20];
        loop {
            let mut fragment = &fill[..left.min(fill.len())];
            left -= fragment.len();
            while encoder.append(&mut fragment, &mut piece).unwrap() == Put::PieceFull {
                keep(&piece);
            }
            if left == 0 {
                break;
            }
        }
    }
    let mut seal = encoder.seal(None).unwrap();
    while seal.fill(&mut piece).unwrap() == Put::PieceFull {
        keep(&piece);
    }
    keep(&piece[..seal.piece_used()]);
    let sealed = seal.sealed();
    assert!(sealed.file_bytes > 4 << 30);
    record.file_bytes = sealed.file_bytes;
    record.blob_count = lengths.len() as u64;
    record.content_id = *sealed.content_id.expect("version 2 has one").as_bytes();
    std::fs::write(manifest_path, manifest.encode()).unwrap();
    lengths
}

#[test]
fn blobs_beyond_4_gib_are_read_right_from_the_disk_and_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let spindle = folder.path().join("spindle");
    let open = |memory| Cache::builder().spindle(&spindle, None).memory(memory).scan_threads(2).open();
    let key = {
        let cache = open(64 << 20).unwrap();
        let key: Key = "test/far@1#0".parse().unwrap();
        let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
        plan.regions = Some(1);
        plan.durability = Durability::Wait;
        let writer = cache.snap(&key).open_for_writes(plan).unwrap();
        let mut parcel = ParcelBuilder::default();
        parcel.push(b"near").unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
        writer.wait_for_writes().unwrap().close_for_writes().unwrap();
        key
    };
    let lengths = put_a_region_beyond_4_gib(&spindle);
    let look = |blobs: &mut Blobs<'_>, seen: &mut Vec<(u32, u8, u8)>| {
        while let Some(blob) = blobs.next()? {
            let (first, last) = (blob.first(), blob.last());
            seen.push((blob.len() as u32, first.copied().unwrap_or(0), last.copied().unwrap_or(0)));
        }
        Ok(())
    };
    let value = |number: usize, len: u32| if number < 66 || len == 0 { 0 } else { number as u8 };
    let expected: Vec<_> =
        (0..).zip(&lengths).map(|(number, &len)| (len, value(number, len), value(number, len))).collect();
    let join = |mut a: Vec<_>, b| {
        a.extend(b);
        a
    };
    // 64 MiB blobs do not fit a stream's buffers there; the last part, beyond 4 GiB, has small ones.
    let small = open(64 << 20).unwrap();
    let lease = small.lease(&key, Want::Latest, None).unwrap();
    assert!(lease.is_streamed());
    let last = lease.partitions().next().unwrap().part(127, 128);
    let seen = last.fold(look).unwrap();
    assert!(seen.len() >= 3 && expected.ends_with(&seen), "{seen:?}");
    drop((last, lease, small));
    let Ok(large) = open(6 << 30) else {
        println!("SKIPPED mapping 4 GiB: there is less memory here");
        return;
    };
    for reading in [Reading::Stream, Reading::Memory] {
        let lease = large.lease_with(&key, &LeaseOptions { reading, ..LeaseOptions::default() }).unwrap();
        assert_eq!(lease.scan(look, join).unwrap(), expected, "{reading:?}");
    }
}

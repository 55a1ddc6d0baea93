//! One slice through the whole path: four loader calls in, every form of scan out.

use std::collections::BTreeMap;
use std::path::Path;

use pelton::*;

/// A multiset of blobs, since dealing changes their order.
type BlobSet = BTreeMap<Vec<u8>, usize>;

fn multiset(blobs: impl IntoIterator<Item = Vec<u8>>) -> BlobSet {
    let mut set = BlobSet::new();
    blobs.into_iter().for_each(|blob| *set.entry(blob).or_default() += 1);
    set
}

/// Lengths from nothing to 8 MiB, mixed; contents that tell one blob from another.
fn sample(count: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    (0..count)
        .map(|number| {
            let len = match next() % 40 {
                0..8 => 0,
                8..30 => next() % 300,
                30..38 => next() % 70_000,
                38 => next() % (1 << 20),
                _ => 8 << 20,
            };
            let fill = next() as u8;
            let mut blob = vec![fill; len as usize];
            let mark = (number as u64).to_le_bytes();
            let marked = blob.len().min(8);
            blob[..marked].copy_from_slice(&mark[..marked]);
            blob
        })
        .collect()
}

fn cache(folder: &Path, spindles: usize, engine: IoEngine) -> Cache {
    let mut builder = Cache::builder().memory(1 << 30).engine(engine).scan_threads(2);
    for number in 0..spindles {
        builder = builder.spindle(folder.join(format!("spindle-{number}")), None);
    }
    builder.open().unwrap()
}

fn plan(fingerprint: u8, regions: u32, write_path: WritePath) -> LoadPlan {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([fingerprint; 32]));
    plan.regions = Some(regions);
    plan.write_path = write_path;
    plan.durability = Durability::Wait;
    plan
}

fn load(cache: &Cache, key: &Key, plan: LoadPlan, blobs: &[Vec<u8>], codec: Codec) {
    let writer = cache.snap(key).open_for_writes(plan).unwrap();
    for batch in blobs.chunks(7) {
        let mut parcel = ParcelBuilder::default();
        batch.iter().for_each(|blob| parcel.push(blob).unwrap());
        writer.queue_parcel(parcel.deflate(codec).unwrap()).unwrap();
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

fn scan(lease: &Lease) -> BlobSet {
    let collect = |blobs: &mut Blobs<'_>, all: &mut Vec<Vec<u8>>| {
        while let Some(blob) = blobs.next()? {
            all.push(blob.to_vec());
        }
        Ok(())
    };
    let join = |mut a: Vec<Vec<u8>>, b| {
        a.extend(b);
        a
    };
    let scanned = multiset(lease.scan(collect, join).unwrap());
    // The other ways in read the same.
    let parts: Vec<_> = lease.partitions().flat_map(|partition| partition.fold(collect).unwrap()).collect();
    assert!(multiset(parts) == scanned, "partitions");
    let mut in_place = Vec::new();
    if lease.is_streamed() {
        return scanned; // Nothing lies in place.
    }
    for n in 0..lease.region_count() {
        let region = lease.region(n, None).unwrap();
        let mut blobs = RegionView::open(&region).unwrap().blobs();
        while let Some(blob) = blobs.next().unwrap() {
            in_place.push(blob.to_vec());
        }
    }
    assert!(multiset(in_place) == scanned, "regions in place");
    scanned
}

/// What was loaded is what every form of scan returns: from images, from maps, and after a restart.
#[test]
fn what_was_loaded_is_what_every_scan_returns() {
    let key: Key = "test/exact@1#0".parse().unwrap();
    let mut seed = 1;
    for (spindles, regions) in [(1, 1), (1, 4), (2, 3), (2, 33), (7, 5), (7, 33)] {
        for write_path in [WritePath::Image, WritePath::Direct, WritePath::Auto] {
            {
                seed += 1;
                let engine = if seed % 3 == 0 { IoEngine::Threads } else { IoEngine::Auto };
                let folder = tempfile::tempdir().unwrap();
                let blobs = sample(120, seed);
                let expected = multiset(blobs.clone());
                let named = format!(
                    "{spindles} spindles, {regions} regions, {write_path:?}, {engine:?}, seed {seed}"
                );
                {
                    let cache = cache(folder.path(), spindles, engine);
                    let codec = if seed % 2 == 0 { Codec::None } else { Codec::Lz4 };
                    load(&cache, &key, plan(1, regions, write_path), &blobs, codec);
                    let lease = cache.lease(&key, Want::Latest, None).unwrap();
                    assert!(scan(&lease) == expected, "first scan, {named}");
                    drop(lease);
                    cache.snap(&key).evict();
                    let lease = cache.lease(&key, Want::Latest, None).unwrap();
                    assert!(scan(&lease) == expected, "after evict and warm, {named}");
                }
                let cache = cache(folder.path(), spindles, engine);
                assert_eq!(cache.recovery().kept, 1, "{named}");
                let lease = cache.lease(&key, Want::Latest, None).unwrap();
                assert!(scan(&lease) == expected, "after a restart, {named}");
            }
        }
    }
}

#[test]
fn several_producers_load_one_slice() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 2, IoEngine::Auto);
    let key: Key = "test/producers@1#0".parse().unwrap();
    let blobs = sample(400, 77);
    let writer = cache.snap(&key).open_for_writes(plan(1, 3, WritePath::Auto)).unwrap();
    std::thread::scope(|scope| {
        for part in blobs.chunks(100) {
            let writer = &writer;
            scope.spawn(move || {
                for batch in part.chunks(5) {
                    let mut parcel = ParcelBuilder::default();
                    batch.iter().for_each(|blob| parcel.push(blob).unwrap());
                    writer.queue_parcel(parcel.finish()).unwrap();
                }
            });
        }
    });
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    let lease = cache.lease(&key, Want::Latest, None).unwrap();
    assert!(scan(&lease) == multiset(blobs));
    // Dealt one by one: counts differ by at most one.
    let counts: Vec<u64> = (0..3)
        .map(|n| RegionView::open(&lease.region(n, None).unwrap()).unwrap().blob_count().unwrap())
        .collect();
    assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    let own = ["pelton-spindle", "access-log"];
    files.retain(|path| path.file_name().is_none_or(|name| own.iter().all(|own| name != *own)));
    files
}

/// What a plan or a parcel says is not believed: an error, and the slice can be loaded right after.
#[test]
fn plans_and_parcels_that_say_nonsense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 2, IoEngine::Auto);
    let key: Key = "test/nonsense@1#0".parse().unwrap();
    for regions in [0, 4097, u32::MAX] {
        let error = cache.snap(&key).open_for_writes(plan(1, regions, WritePath::Auto)).err().unwrap();
        assert!(matches!(error, LoadError::Regions { .. }), "{error:?}");
    }
    let writer = cache.snap(&key).open_for_writes(plan(1, 3, WritePath::Auto)).unwrap();
    let error = writer.queue_parcel(Parcel::packed(Codec::Lz4, 1, usize::MAX, vec![0; 10])).unwrap_err();
    assert!(matches!(error, LoadError::ParcelTooLarge { .. }), "{error:?}");
    drop(writer);
    load(&cache, &key, plan(1, 3, WritePath::Auto), &sample(20, 6), Codec::None);
}

#[test]
fn a_load_that_is_dropped_leaves_no_file_and_the_next_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 2, IoEngine::Auto);
    let key: Key = "test/dropped@1#0".parse().unwrap();
    for sealed in [false, true] {
        let writer = cache.snap(&key).open_for_writes(plan(1, 3, WritePath::Auto)).unwrap();
        let mut parcel = ParcelBuilder::default();
        sample(50, 5).iter().for_each(|blob| parcel.push(blob).unwrap());
        writer.queue_parcel(parcel.finish()).unwrap();
        assert!(matches!(
            cache.snap(&key).open_for_writes(plan(1, 3, WritePath::Auto)),
            Err(LoadError::Busy { .. })
        ));
        if sealed {
            drop(writer.wait_for_writes().unwrap())
        } else {
            drop(writer)
        }
        assert_eq!(files_below(folder.path()), Vec::<std::path::PathBuf>::new(), "sealed: {sealed}");
        assert_eq!(cache.snap(&key).status().state, SnapState::Cold);
        assert!(matches!(cache.lease(&key, Want::Latest, None), Err(LeaseError::NotThere { .. })));
    }
    let blobs = sample(20, 6);
    load(&cache, &key, plan(1, 3, WritePath::Auto), &blobs, Codec::None);
    assert!(scan(&cache.lease(&key, Want::Latest, None).unwrap()) == multiset(blobs));
}

#[test]
fn a_reslice_replaces_the_slice_while_old_leases_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 2, IoEngine::Auto);
    let key: Key = "test/reslice@1#0".parse().unwrap();
    let (old, new) = (sample(60, 8), sample(70, 9));
    load(&cache, &key, plan(1, 2, WritePath::Image), &old, Codec::None);
    cache.snap(&key).evict();
    let lease = cache.lease(&key, Want::Latest, None).unwrap();
    load(&cache, &key, plan(2, 3, WritePath::Image), &new, Codec::None);
    assert!(
        scan(&lease) == multiset(old),
        "the old lease reads what it leased, though its files are unlinked"
    );
    assert!(scan(&cache.lease(&key, Want::Latest, None).unwrap()) == multiset(new));
    let wanted = Want::Fingerprint(Fingerprint::from_bytes([1; 32]));
    assert!(matches!(cache.lease(&key, wanted, None), Err(LeaseError::OtherFingerprint { .. })));
    // One manifest and the new regions: nothing of the old slice is left on the disks.
    assert_eq!(files_below(folder.path()).len(), 1 + 3);
    cache.snap(&key).flush(None).unwrap();
    assert_eq!(files_below(folder.path()).len(), 0);
}

#[test]
fn no_blob_at_all_is_no_data_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let key: Key = "test/empty@1#0".parse().unwrap();
    {
        let cache = cache(folder.path(), 1, IoEngine::Auto);
        load(&cache, &key, plan(1, 4, WritePath::Auto), &[], Codec::None);
        assert_eq!(cache.snap(&key).status().state, SnapState::NoData);
        assert_eq!(files_below(folder.path()).len(), 1, "only the manifest");
    }
    let cache = cache(folder.path(), 1, IoEngine::Auto);
    assert_eq!(cache.snap(&key).status().state, SnapState::NoData);
    assert_eq!(cache.lease(&key, Want::Latest, None).unwrap().region_count(), 0);
}

#[test]
fn a_panic_in_a_scan_fails_that_scan_only() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1, IoEngine::Auto);
    let key: Key = "test/panic@1#0".parse().unwrap();
    let blobs = sample(30, 10);
    load(&cache, &key, plan(1, 4, WritePath::Image), &blobs, Codec::None);
    let lease = cache.lease(&key, Want::Latest, None).unwrap();
    let error = lease.scan(|_, _: &mut ()| panic!("by the test"), |(), ()| ()).unwrap_err();
    assert!(matches!(&error, ScanError::Panicked { message, .. } if message == "by the test"), "{error}");
    assert!(scan(&lease) == multiset(blobs));
}

#[test]
fn a_flipped_byte_in_a_region_is_an_error_at_warming_and_never_a_wrong_byte() {
    let folder = tempfile::tempdir().unwrap();
    let key: Key = "test/flip@1#0".parse().unwrap();
    load(
        &cache(folder.path(), 1, IoEngine::Auto),
        &key,
        plan(1, 2, WritePath::Image),
        &sample(40, 11),
        Codec::None,
    );
    let file =
        files_below(folder.path()).into_iter().find(|path| path.extension().unwrap() == "region").unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let reopened = cache(folder.path(), 1, IoEngine::Auto);
    // The lease comes before the bytes; no scan gets beyond those that were verified.
    let lease = reopened.lease(&key, Want::Latest, None).unwrap();
    let error = lease
        .scan(
            |blobs, _: &mut ()| {
                while blobs.next()?.is_some() {}
                Ok(())
            },
            |(), ()| (),
        )
        .unwrap_err();
    assert!(matches!(error, ScanError::Damaged { .. }), "{error:?}");
    // The slice is dropped; once it has ceased to be hot, a flush waits until its files are gone.
    while reopened.snap(&key).status().state == SnapState::Hot {
        std::thread::yield_now();
    }
    reopened.snap(&key).flush(None).unwrap();
    assert!(!file.exists());
    assert!(matches!(reopened.lease(&key, Want::Latest, None), Err(LeaseError::NotThere { .. })));
    drop(lease);
    // A file that was cut is found without reading it.
    load(&reopened, &key, plan(1, 2, WritePath::Image), &sample(40, 11), Codec::None);
    drop(reopened);
    let file =
        files_below(folder.path()).into_iter().find(|path| path.extension().unwrap() == "region").unwrap();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 4096]).unwrap();
    let reopened = cache(folder.path(), 1, IoEngine::Auto);
    assert_eq!((reopened.recovery().kept, reopened.recovery().dropped.len()), (0, 1));
}

#[test]
fn a_parcel_that_is_too_large_or_damaged_is_refused_and_the_load_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1, IoEngine::Auto);
    let key: Key = "test/parcel@1#0".parse().unwrap();
    let writer = cache.snap(&key).open_for_writes(plan(1, 2, WritePath::Image)).unwrap();
    let error = writer.queue_parcel(Parcel::packed(Codec::Lz4, 1, 1 << 40, vec![0; 10])).unwrap_err();
    assert!(matches!(error, LoadError::ParcelTooLarge { buffers_bytes: 0x400_0000, .. }), "{error}");
    // Less than all buffers, more than parcels have: it must be refused, not waited for.
    let error = writer.queue_parcel(Parcel::packed(Codec::None, 1, 65 << 20, vec![0; 65 << 20])).unwrap_err();
    assert!(matches!(error, LoadError::ParcelTooLarge { .. }), "{error}");
    let error = writer.queue_parcel(Parcel::packed(Codec::Lz4, 1, 100, vec![0; 10])).unwrap_err();
    assert!(matches!(error, LoadError::Parcel { .. }), "{error}");
    let mut parcel = ParcelBuilder::default();
    parcel.push(b"whole").unwrap();
    writer.queue_parcel(parcel.finish()).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    assert!(scan(&cache.lease(&key, Want::Latest, None).unwrap()) == multiset([b"whole".to_vec()]));
}

#[test]
fn more_than_the_plan_allows_ends_the_load() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1, IoEngine::Auto);
    let key: Key = "test/max@1#0".parse().unwrap();
    let mut plan = plan(1, 2, WritePath::Image);
    plan.max_bytes = Some(1000);
    let writer = cache.snap(&key).open_for_writes(plan).unwrap();
    let mut parcel = ParcelBuilder::default();
    parcel.push(&[1; 1001]).unwrap();
    let error = writer.queue_parcel(parcel.finish()).unwrap_err();
    assert!(matches!(error, LoadError::TooMuch { bytes: 1001, bytes_max: 1000, .. }), "{error}");
    assert!(matches!(writer.wait_for_writes(), Err(LoadError::Over { .. })));
    assert_eq!(files_below(folder.path()).len(), 0);
}

/// Loads larger than the memory budget: as images while they fit, then through reused pieces.
#[test]
fn a_load_larger_than_memory_goes_through_and_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Cache::builder().memory(64 << 20).spindle(folder.path().join("s"), None).open().unwrap();
    let key: Key = "test/large@1#0".parse().unwrap();
    let cache = open();
    let writer = cache.snap(&key).open_for_writes(plan(1, 2, WritePath::Auto)).unwrap();
    for number in 0..100u8 {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number; 1 << 20]).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    let sealed = writer.wait_for_writes().unwrap();
    assert_eq!((sealed.blob_count(), sealed.blob_bytes()), (100, 100 << 20));
    sealed.close_for_writes().unwrap();
    let status = cache.snap(&key).status();
    assert_eq!((status.state, status.durable, status.blob_count), (SnapState::Warm, true, 100));
    // Whole it does not fit the budget: in memory it is refused with the numbers, and else it is streamed.
    let mut memory = LeaseOptions::default();
    memory.reading = Reading::Memory;
    let error = cache.lease_with(&key, &memory).unwrap_err();
    assert!(
        matches!(&error, LeaseError::Warm { source, .. } if matches!(**source, WarmError::Memory { .. })),
        "{error:?}"
    );
    let lease = cache.lease(&key, Want::Latest, None).unwrap();
    assert!(scan(&lease) == multiset((0..100u8).map(|number| vec![number; 1 << 20])));
    // The files are whole.
    for file in files_below(folder.path()).iter().filter(|path| path.extension().unwrap() == "region") {
        RegionView::open(&std::fs::read(file).unwrap()).unwrap().verify().unwrap();
    }
}

#[test]
fn two_caches_on_one_folder_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Cache::builder().memory(1 << 30).spindle(folder.path().join("s"), None).open();
    let first = open().unwrap();
    let error = open().err().expect("the folder is held");
    let said = std::error::Error::source(&error).expect("it says why").to_string();
    assert!(said.contains("in use by this process"), "it names the holder: {said}");
    drop(first);
    assert!(open().is_ok(), "it is free again");
}

/// A slice whose regions fit the memory one by one but not together is scanned all the same, at once: none of them
/// waits for the others, and nothing that is in memory goes.
#[test]
fn a_slice_larger_than_memory_is_streamed_when_leased() {
    let folder = tempfile::tempdir().unwrap();
    let open =
        |memory| Cache::builder().memory(memory).spindle(folder.path().join("s"), None).open().unwrap();
    let key: Key = "test/together@1#0".parse().unwrap();
    let blobs: Vec<Vec<u8>> = (0..80).map(|number| vec![number; 1 << 20]).collect();
    load(&open(1 << 30), &key, plan(1, 4, WritePath::Direct), &blobs, Codec::None);
    let expected = multiset(blobs);
    {
        let small = open(64 << 20);
        let lease = small.lease(&key, Want::Latest, None).unwrap();
        assert!(lease.is_streamed());
        assert!(matches!(lease.region(0, None), Err(RegionError::Streamed { .. })));
        assert!(scan(&lease) == expected);
        assert!(scan(&lease) == expected, "and again");
        assert_eq!(small.snap(&key).status().state, SnapState::Warm);
        // The files may go: what is leased can be read to the end.
        small.snap(&key).flush(None).unwrap();
        assert_eq!(files_below(folder.path()).len(), 0);
        assert!(scan(&lease) == expected, "after a flush");
    }
    load(&open(1 << 30), &key, plan(2, 4, WritePath::Direct), &sample(50, 12), Codec::None);
    let large = open(1 << 30);
    let lease = large.lease(&key, Want::Latest, None).unwrap();
    assert!(!lease.is_streamed());
    assert!(scan(&lease) == multiset(sample(50, 12)));
}

/// Many small loads at once, on a budget that holds the pieces of a few: all of them finish.
#[test]
fn many_loads_at_once_finish_on_a_small_budget() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::builder().memory(64 << 20).spindle(folder.path().join("s"), None).open().unwrap();
    std::thread::scope(|scope| {
        for number in 0..12u32 {
            let cache = &cache;
            scope.spawn(move || {
                let key = Key::new("test", "many", 1, number).unwrap();
                let path = if number % 2 == 0 { WritePath::Auto } else { WritePath::Direct };
                let blobs: Vec<Vec<u8>> =
                    (0..9).map(|blob| vec![number as u8 * 16 + blob; 1 << 20]).collect();
                load(cache, &key, plan(1, 2, path), &blobs, Codec::None);
                cache.snap(&key).evict();
            });
        }
    });
    for number in 0..12u32 {
        let key = Key::new("test", "many", 1, number).unwrap();
        let status = cache.snap(&key).status();
        assert_eq!((status.blob_count, status.blob_bytes, status.durable), (9, 9 << 20, true));
    }
}

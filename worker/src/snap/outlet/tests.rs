//! Slices copied from cache to cache by hand: what a transport does, without one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pelton_region_format::{ContentId, Header, PAGE_BYTES, Trailer, encode_to_vec};

use super::*;
use crate::budget::memory::MemoryUse;
use crate::slice::parcel::ParcelBuilder;
use crate::slice::plan::{Durability, LoadPlan, WritePath};
use crate::slice::writer::{IntakeError, LoadError, SliceWriter};
use crate::snap::state::SnapState;
use crate::spindle::engine::sim::{Failure, SimDisk, When};
use crate::spindle::health::HealthLimits;

const MIB: usize = 1 << 20;
/// More than a piece.
const BLOB_BYTES: usize = 10 * MIB;

fn key() -> Key {
    "test/copy@1#0".parse().unwrap()
}

fn fingerprint() -> Fingerprint {
    Fingerprint::from_bytes([7; 32])
}

fn open(folder: &Path, memory: u64) -> Cache {
    let mut config = crate::Config::default();
    (config.scan_threads, config.free_floor) = (Some(2), Some(0));
    crate::CacheBuilder::from_config(config)
        .memory(memory)
        .spindle(folder.join("a"), 1 << 30)
        .spindle(folder.join("b"), 1 << 30)
        .open()
        .unwrap()
}

/// Two blobs, over three regions of which one stays empty.
fn load(cache: &Cache, write_path: WritePath) {
    load_with(cache, write_path, Durability::Wait);
}

fn load_with(cache: &Cache, write_path: WritePath, durability: Durability) {
    let plan = LoadPlan {
        regions: Some(3),
        write_path,
        durability,
        deal: crate::Deal::RoundRobin,
        ..LoadPlan::new(fingerprint())
    };
    let writer = cache.snap(&key()).open_for_writes(plan).unwrap();
    for number in 0..2usize {
        let mut parcel = ParcelBuilder::default();
        let blob: Vec<u8> =
            (0..BLOB_BYTES + 777 * number).map(|i| (i * 31 + number * 7 + (i >> 9)) as u8).collect();
        parcel.push(&blob).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

fn plan_of(outlet: &SliceOutlet) -> LoadPlan {
    let regions = outlet.region_indexes().into_iter();
    let regions = regions.map(|index| outlet.region(index, None).unwrap().region().clone()).collect();
    LoadPlan {
        durability: Durability::Wait,
        ..LoadPlan::of_sealed(outlet.fingerprint(), outlet.region_count(), regions)
    }
}

fn copy_region(outlet: &SliceOutlet, writer: &SliceWriter, index: u32) -> Result<(), IntakeError> {
    let from = outlet.region(index, None).unwrap();
    let mut intake = writer.region_intake(index)?;
    while let Some(wanted) = intake.wanted() {
        // In steps that end nowhere in particular.
        let end = wanted.end.min(wanted.start + 300_001);
        intake.put(&from.read(wanted.start, end, None).unwrap())?;
    }
    Ok(())
}

fn copy(from: &Cache, to: &Cache, write_path: WritePath) -> Result<(), LoadError> {
    let outlet = from.outlet(&key(), Want::Latest, None).unwrap();
    let writer = to.snap(&key()).open_for_writes(LoadPlan { write_path, ..plan_of(&outlet) })?;
    for index in outlet.region_indexes() {
        copy_region(&outlet, &writer, index).unwrap();
    }
    writer.wait_for_writes()?.close_for_writes()
}

/// All region files under a folder, by name, with their bytes.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "region") {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                found.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn blob_bytes(cache: &Cache) -> u64 {
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    let sum = |blobs: &mut crate::Blobs<'_>, sum: &mut u64| {
        while let Some(blob) = blobs.next()? {
            *sum += blob.len() as u64;
        }
        Ok(())
    };
    lease.scan(sum, |a, b| a + b).unwrap()
}

/// Goal: what arrives is what was there, wherever it lay and wherever it goes. Method: hot as an image, not in memory at
/// all, or mapped; kept as an image, written through pieces, or begun as an image that memory does not suffice for.
#[test]
fn a_slice_is_copied_byte_for_byte() {
    for from_path in [WritePath::Image, WritePath::Direct] {
        for (to_path, is_tight) in
            [(WritePath::Image, false), (WritePath::Direct, false), (WritePath::Image, true)]
        {
            let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let from = open(folders[0].path(), 256 << 20);
            load(&from, from_path);
            if from_path == WritePath::Direct && to_path == WritePath::Image {
                drop(from.lease(&key(), Want::Latest, None).unwrap()); // Warmed.
            }
            let to = open(folders[1].path(), 256 << 20);
            let budget = to.core_for_tests().budget.clone();
            // One region's first piece, and not its second.
            let free = if is_tight { 8 * MIB as u64 } else { budget.counts().residence_max };
            let taken = budget.try_take(MemoryUse::Mapped, budget.counts().residence_max - free).unwrap();
            copy(&from, &to, to_path).unwrap();
            drop(taken);
            let found = files(folders[1].path());
            assert_eq!(found.len(), 2, "of three regions one is empty");
            assert!(found == files(folders[0].path()), "{from_path:?} {to_path:?} {is_tight}");
            assert_eq!(blob_bytes(&to), 2 * BLOB_BYTES as u64 + 777);
            let status = to.snap(&key()).status();
            assert_eq!((status.fingerprint, status.blob_count), (Some(fingerprint()), 2));
            drop(to);
            let to = open(folders[1].path(), 256 << 20);
            assert_eq!(to.recovery().kept, 1);
            assert_eq!(blob_bytes(&to), 2 * BLOB_BYTES as u64 + 777, "after a restart");
        }
    }
}

#[test]
fn a_slice_that_is_not_on_the_disk_yet_is_copied_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let disk = SimDisk::healthy(path.clone(), 7);
    let mut config = crate::Config::default();
    (config.depth, config.scan_threads, config.free_floor) = (Some(64), Some(2), Some(0));
    let builder = crate::CacheBuilder::from_config(config).memory(256 << 20).spindle(path, 1 << 30);
    let from = builder.open_on(vec![disk.clone()], HealthLimits::default()).unwrap();
    from.recovery();
    let synced = disk.ops_of("sync");
    let _ = disk.clone().with_fault(When::Nth("sync", synced), Failure::Hang);
    load_with(&from, WritePath::Image, Durability::Background);
    let outlet = from.outlet(&key(), Want::Latest, None).unwrap();
    let region = outlet.region(0, None).unwrap();
    assert!(region.memory().is_some() && !from.snap(&key()).status().durable);
    assert_eq!(region.memory().unwrap().len() as u64, region.region().file_bytes);
    drop((outlet, region));
    disk.let_go();
    from.sync(None).unwrap();
    assert!(from.snap(&key()).status().durable);
}

#[test]
fn a_slice_in_memory_is_copied_from_there_and_else_from_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let from = open(folder.path(), 256 << 20);
    load(&from, WritePath::Image);
    let outlet = from.outlet(&key(), Want::Latest, None).unwrap();
    let region = outlet.region(0, None).unwrap();
    assert!(region.memory().is_some() && region.file().is_none());
    assert_eq!(region.memory().unwrap().len() as u64, region.region().file_bytes);
    drop((outlet, region));
    from.snap(&key()).evict();
    let region = from.outlet(&key(), Want::Latest, None).unwrap().region(0, None).unwrap();
    assert!(region.memory().is_none() && region.file().is_some());
}

#[test]
fn what_is_open_is_read_to_its_end_though_it_is_flushed() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let from = open(folders[0].path(), 256 << 20);
    load(&from, WritePath::Direct);
    let outlet = from.outlet(&key(), Want::Fingerprint(fingerprint()), None).unwrap();
    let region = outlet.region(0, None).unwrap();
    assert_eq!(from.leases().len(), 1, "it counts as leased");
    assert!(from.snap(&key()).flush(None).unwrap());
    let bytes = region.read(0, u64::MAX, None).unwrap();
    assert_eq!(bytes.len() as u64, region.region().file_bytes);
    assert!(matches!(outlet.region(1, None), Err(OutletError::Gone { .. })));
    assert!(matches!(outlet.region(9, None), Err(OutletError::NoRegion { index: 9, .. })));
    drop((outlet, region));
    let none = from.outlet(&key(), Want::Latest, None);
    assert!(matches!(none, Err(LeaseError::NotThere { .. })));
}

#[test]
fn another_fingerprint_is_told_and_a_closed_cache_gives_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 256 << 20);
    load(&cache, WritePath::Image);
    let other = Want::Fingerprint(Fingerprint::from_bytes([8; 32]));
    assert!(matches!(cache.outlet(&key(), other, None), Err(LeaseError::OtherFingerprint { .. })));
    let snap = cache.snap(&key());
    cache.close(None).unwrap();
    assert!(matches!(snap.outlet(Want::Latest), Err(LeaseError::Closed { .. })));
}

/// A wrong bit in a block: told with its place, and asked for again; the rest need not come again.
#[test]
fn a_wrong_block_is_asked_for_again() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (from, to) = (open(folders[0].path(), 256 << 20), open(folders[1].path(), 256 << 20));
    load(&from, WritePath::Image);
    for write_path in [WritePath::Image, WritePath::Direct] {
        let outlet = from.outlet(&key(), Want::Latest, None).unwrap();
        let writer = to.snap(&key()).open_for_writes(LoadPlan { write_path, ..plan_of(&outlet) }).unwrap();
        copy_region(&outlet, &writer, 1).unwrap();
        let bytes = outlet.region(0, None).unwrap();
        let bytes = bytes.memory().unwrap();
        let mut intake = writer.region_intake(0).unwrap();
        let mut wrong = vec![100, 4100, 9000, 2 * MIB + 5, bytes.len() - 5000];
        let mut told = Vec::new();
        while let Some(wanted) = intake.wanted() {
            let mut stretch = bytes[wanted.start as usize..wanted.end as usize].to_vec();
            let hit = wrong.iter().position(|at| (wanted.start..wanted.end).contains(&(*at as u64)));
            if let Some(hit) = hit {
                stretch[wrong.remove(hit) - wanted.start as usize] ^= 0x10;
            }
            match intake.put(&stretch) {
                Ok(()) => {}
                Err(IntakeError::Block { index: 0, offset, .. }) => told.push(offset),
                Err(IntakeError::Ends { index: 0, .. }) => told.push(0),
                Err(other) => panic!("{other}"),
            }
        }
        // Header and end together; both of the first block, one after the other.
        assert_eq!((told, wrong), (vec![0, 4096, 4096, 2 * MIB as u64], vec![]));
        drop(intake);
        writer.wait_for_writes().unwrap().close_for_writes().unwrap();
        assert!(files(folders[0].path()) == files(folders[1].path()));
    }
}

/// Whole ends of another region, or with other numbers than the plan's: nothing of the body is taken.
#[test]
fn another_region_than_was_told_is_refused() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (from, to) = (open(folders[0].path(), 256 << 20), open(folders[1].path(), 256 << 20));
    load(&from, WritePath::Image);
    let outlet = from.outlet(&key(), Want::Latest, None).unwrap();
    let good = plan_of(&outlet);
    let changes: [fn(&mut SealedRegion); 5] = [
        |region| region.content_id = ContentId::from_bytes([0; 32]),
        |region| region.blob_count += 1,
        |region| region.blob_bytes += 1,
        |region| region.block_bytes *= 2,
        |region| region.body_end -= 8,
    ];
    for change in changes {
        let mut sealed = good.sealed.as_deref().unwrap().to_vec();
        change(&mut sealed[0]);
        let lie = LoadPlan { sealed: Some(sealed.into()), ..good.clone() };
        let writer = to.snap(&key()).open_for_writes(lie).unwrap();
        let error = copy_region(&outlet, &writer, 0).unwrap_err();
        assert!(matches!(error, IntakeError::OtherRegion { index: 0, .. }), "{error}");
        drop(writer);
        assert_eq!(files(folders[1].path()), [], "no file is begun before it is known what it holds");
        assert_eq!(to.snap(&key()).status().state, SnapState::Cold);
    }
}

/// A load that ends anywhere in the middle leaves no file, no promise and no memory.
#[test]
fn what_is_dropped_in_the_middle_leaves_nothing() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (from, to) = (open(folders[0].path(), 256 << 20), open(folders[1].path(), 256 << 20));
    load(&from, WritePath::Image);
    let outlet = from.outlet(&key(), Want::Latest, None).unwrap();
    for write_path in [WritePath::Image, WritePath::Direct] {
        for bytes in [0, 1, 4096, 5000, 100_000, 3 * MIB] {
            let plan = LoadPlan { write_path, ..plan_of(&outlet) };
            let writer = to.snap(&key()).open_for_writes(plan).unwrap();
            let reserved: u64 = to.spindles().iter().map(|spindle| spindle.reserved).sum();
            let planned: u64 = plan_of(&outlet).sealed.unwrap().iter().map(|region| region.file_bytes).sum();
            assert_eq!(reserved, planned, "exactly that is promised");
            let mut intake = writer.region_intake(0).unwrap();
            let mut left = bytes as u64;
            while left > 0 {
                let wanted = intake.wanted().unwrap();
                let end = wanted.end.min(wanted.start + left);
                intake.put(&outlet.region(0, None).unwrap().read(wanted.start, end, None).unwrap()).unwrap();
                left -= end - wanted.start;
            }
            if bytes % 2 == 0 {
                drop(intake);
                match writer.wait_for_writes() {
                    Err(LoadError::Incomplete { index: 0, .. }) => {}
                    other => panic!("{:?}", other.map(drop)),
                }
            } else {
                drop(writer);
                assert!(matches!(intake.room(), Err(LoadError::Over { .. })));
                drop(intake);
            }
            assert_eq!(files(folders[1].path()), [], "{write_path:?} {bytes}");
            let held: u64 = to.spindles().iter().map(|spindle| spindle.reserved + spindle.used).sum();
            assert_eq!(held, 0, "{write_path:?} {bytes}");
            let memory = to.memory().unwrap();
            assert_eq!((memory.images, memory.buffers), (0, 0), "{write_path:?} {bytes}");
        }
    }
}

/// Whoever brings a region may break off anywhere; somebody else goes on there, with others at other regions.
#[test]
fn another_thread_goes_on_where_one_has_broken_off() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (from, to) = (open(folders[0].path(), 256 << 20), open(folders[1].path(), 256 << 20));
    load(&from, WritePath::Direct);
    let outlet = from.outlet(&key(), Want::Latest, None).unwrap();
    let writer = to.snap(&key()).open_for_writes(plan_of(&outlet)).unwrap();
    std::thread::scope(|scope| {
        for index in outlet.region_indexes() {
            for _ in 0..2 {
                let (outlet, writer) = (&outlet, &writer);
                scope.spawn(move || {
                    loop {
                        let from = outlet.region(index, None).unwrap();
                        let mut intake = writer.region_intake(index).unwrap();
                        let Some(wanted) = intake.wanted() else { return };
                        let end = wanted.end.min(wanted.start + 123_456);
                        intake.put(&from.read(wanted.start, end, None).unwrap()).unwrap();
                    }
                });
            }
        }
    });
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    assert!(files(folders[0].path()) == files(folders[1].path()));
}

#[test]
fn a_slice_without_a_blob_is_copied() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (from, to) = (open(folders[0].path(), 256 << 20), open(folders[1].path(), 256 << 20));
    let plan = LoadPlan { regions: Some(5), durability: Durability::Wait, ..LoadPlan::new(fingerprint()) };
    let writer = from.snap(&key()).open_for_writes(plan).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    let outlet = from.outlet(&key(), Want::Latest, None).unwrap();
    assert_eq!((outlet.region_count(), outlet.region_indexes()), (5, vec![]));
    copy(&from, &to, WritePath::Auto).unwrap();
    assert_eq!(to.snap(&key()).status().state, SnapState::NoData);
    drop(to);
    assert_eq!(open(folders[1].path(), 256 << 20).recovery().kept, 1);
}

#[test]
fn plans_and_calls_that_do_not_fit_are_refused() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (from, to) = (open(folders[0].path(), 256 << 20), open(folders[1].path(), 256 << 20));
    load(&from, WritePath::Image);
    let outlet = from.outlet(&key(), Want::Latest, None).unwrap();
    let plan = plan_of(&outlet);
    let snap = to.snap(&key());
    let sealed = plan.sealed.as_deref().unwrap();
    let twice = LoadPlan { sealed: Some(vec![sealed[0].clone(); 2].into()), ..plan.clone() };
    assert!(matches!(snap.open_for_writes(twice), Err(LoadError::NotASlice { .. })));
    let mut large = sealed.to_vec();
    large[0].file_bytes = 1 << 40;
    large[0].body_end = (1 << 40) - (1 << 20);
    let large = LoadPlan { sealed: Some(large.into()), ..plan.clone() };
    assert!(matches!(snap.open_for_writes(large), Err(LoadError::NoSpindle { .. })), "a full disk");
    let bytes: u64 = sealed.iter().map(|region| region.blob_bytes).sum();
    let bounded = |max_bytes| LoadPlan { max_bytes: Some(max_bytes), ..plan.clone() };
    let refused = snap.open_for_writes(bounded(bytes - 1)).unwrap_err();
    let LoadError::TooMuch { bytes: found, bytes_max, .. } = refused else { panic!("{refused:?}") };
    assert_eq!((found, bytes_max), (bytes, bytes - 1));
    assert_eq!((to.spindles()[0].reserved, to.spindles()[0].used), (0, 0), "nothing was taken for it");
    drop(snap.open_for_writes(bounded(bytes)).unwrap());
    let writer = snap.open_for_writes(plan).unwrap();
    assert!(matches!(writer.region_intake(2), Err(LoadError::NoRegion { index: 2, .. })));
    let mut parcel = ParcelBuilder::default();
    parcel.push(b"a blob").unwrap();
    assert!(matches!(writer.queue_parcel(parcel.finish()), Err(LoadError::TakesRegions { .. })));
    assert!(matches!(snap.open_for_writes(plan_of(&outlet)), Err(LoadError::Busy { .. })));
    for index in outlet.region_indexes() {
        copy_region(&outlet, &writer, index).unwrap();
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

/// Blocks of other sizes than ours: smaller than a page's neighbours, and larger than a piece.
#[test]
fn files_of_other_writers_are_taken_whatever_their_blocks() {
    for block_bytes in [4096u32, 64 << 10, 16 << 20] {
        let header = Header { block_bytes, region_count: 1, ..Header::default() };
        let blobs = (0..20u8).map(|blob| vec![blob; MIB + usize::from(blob)]);
        let file = encode_to_vec(&header, blobs, None).unwrap();
        let last_page = &file[file.len() - PAGE_BYTES..];
        let trailer = Trailer::decode(last_page, &header, file.len() as u64).unwrap();
        let region = SealedRegion {
            index: 0,
            file_bytes: trailer.file_bytes,
            blob_count: trailer.blob_count,
            blob_bytes: trailer.blob_bytes,
            content_id: trailer.content_id,
            block_bytes,
            body_end: trailer.body_end,
        };
        let wrong_at = 15 * MIB;
        for is_wrong in [false, true] {
            for write_path in [WritePath::Image, WritePath::Direct] {
                let folder = tempfile::tempdir().unwrap();
                let cache = open(folder.path(), 256 << 20);
                let plan = LoadPlan::of_sealed(fingerprint(), 1, vec![region.clone()]);
                let plan = LoadPlan { write_path, durability: Durability::Wait, ..plan };
                let writer = cache.snap(&key()).open_for_writes(plan).unwrap();
                let mut intake = writer.region_intake(0).unwrap();
                let mut is_wrong = is_wrong;
                let result = loop {
                    let Some(wanted) = intake.wanted() else { break Ok(()) };
                    let mut stretch = file[wanted.start as usize..wanted.end as usize].to_vec();
                    if is_wrong && wanted.end > wrong_at as u64 && wanted.start == 4096 {
                        stretch[wrong_at - 4096] ^= 1;
                        is_wrong = false;
                    }
                    match intake.put(&stretch) {
                        Ok(()) | Err(IntakeError::Block { .. }) => {}
                        Err(error) => break Err(error),
                    }
                };
                drop(intake);
                let was_written = block_bytes as usize > 8 * MIB && !is_wrong && result.is_err();
                if was_written {
                    assert!(matches!(result, Err(IntakeError::Load(LoadError::Damaged { index: 0, .. }))));
                    drop(writer);
                    assert_eq!(files(folder.path()), []);
                    continue;
                }
                result.unwrap();
                writer.wait_for_writes().unwrap().close_for_writes().unwrap();
                assert!(files(folder.path())[0].1 == file, "{block_bytes} {write_path:?}");
            }
        }
    }
}

/// A load whose source hangs ends at its deadline, for who waits in it too.
#[test]
fn a_load_that_nobody_feeds_ends_at_its_deadline() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (from, to) = (open(folders[0].path(), 256 << 20), open(folders[1].path(), 256 << 20));
    load(&from, WritePath::Image);
    let outlet = from.outlet(&key(), Want::Latest, None).unwrap();
    // Long enough to open it beside other tests.
    let deadline = Some(Instant::now() + Duration::from_secs(2));
    let writer = to.snap(&key()).open_for_writes(LoadPlan { deadline, ..plan_of(&outlet) }).unwrap();
    let held = writer.region_intake(0).unwrap();
    assert!(matches!(writer.region_intake(0), Err(LoadError::Late { .. })), "somebody else is at it");
    assert!(matches!(writer.wait_for_writes(), Err(LoadError::Late { .. })));
    drop(held);
    assert_eq!(files(folders[1].path()), []);
}

//! The simulated disk by itself, and impellers on it.

use std::time::Instant;

use super::*;
use crate::spindle::engine::{DiskError, EngineKind, IoRoom, PageBuffer};
use crate::spindle::impeller::{ImpellerPlan, Impellers, Lane, replies};

const ROOT_PATH: &str = "/sim";

fn path(name: &str) -> PathBuf {
    Path::new(ROOT_PATH).join(name)
}

fn disk(seed: u64) -> SimDisk {
    SimDisk::healthy(ROOT_PATH, seed)
}

fn run(disk: &SimDisk, op: Op) -> Result<Outcome, DiskError> {
    let mut engine = SimEngine::new(disk.clone());
    let mut done = Vec::new();
    engine.start(0, op);
    engine.poll(false, &mut done);
    done.pop().expect("it does not hang").1
}

fn create(disk: &SimDisk, name: &str) -> Arc<SpindleFile> {
    run(disk, Op::CreateFile { path: path(name), mode: FileMode::Direct }).unwrap().into_file()
}

fn write(file: &Arc<SpindleFile>, offset: u64, bytes: &[u8]) -> Op {
    let len = bytes.len();
    Op::Write { file: file.clone(), offset, bytes: Box::new(PageBuffer::copied(bytes)), len }
}

fn read_op(file: &Arc<SpindleFile>, len: usize) -> Op {
    Op::Read { file: file.clone(), offset: 0, room: Box::new(PageBuffer::zeroed(len)), len }
}

fn bytes_of((room, len): (Box<dyn IoRoom>, usize)) -> Vec<u8> {
    (*room.into_any().downcast::<PageBuffer>().unwrap()).as_ref()[..len].to_vec()
}

fn read(disk: &SimDisk, name: &str, len: usize) -> Vec<u8> {
    let open = Op::OpenFile { path: path(name), mode: FileMode::Direct };
    let file = run(disk, open).unwrap().into_file();
    bytes_of(run(disk, read_op(&file, len)).unwrap().into_read_back())
}

fn names(disk: &SimDisk, name: &str) -> Vec<String> {
    let entries = run(disk, Op::List { path: path(name) }).unwrap().into_entries();
    entries.into_iter().map(|entry| entry.name.into_string().unwrap()).collect()
}

fn impellers(disk: &SimDisk, depth: usize) -> Impellers {
    let plan = ImpellerPlan {
        name: "sim".to_owned(),
        count: 1,
        depth,
        queue_bytes_max: 1 << 20,
        engine: EngineKind::Sim(disk.clone()),
        watch: None,
    };
    Impellers::start(plan).unwrap()
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(50))
}

/// A step that a careless writer leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Careless {
    No,
    DataSync,
    FolderSync,
    ParentSync,
    LastSync,
}

const REGION_BYTES: usize = 5 * 4096;
const MANIFEST: &[u8] = b"region a/r: 5 pages of 0xab";

/// Writes a region and then the manifest that names it, in the order that survives a power loss.
fn commit(disk: &SimDisk, careless: Careless) -> Result<(), DiskError> {
    run(disk, Op::CreateFolder { path: path("a") })?;
    let create = Op::CreateFile { path: path("a/r"), mode: FileMode::Direct };
    let file = run(disk, create)?.into_file();
    run(disk, Op::Allocate { file: file.clone(), bytes: 1 << 20 })?;
    for page in 0..5 {
        run(disk, write(&file, page * 4096, &[0xab; 4096]))?;
    }
    run(disk, Op::SetLength { file: file.clone(), bytes: REGION_BYTES as u64 })?;
    if careless != Careless::DataSync {
        run(disk, Op::SyncData { file })?;
    }
    if careless != Careless::FolderSync {
        run(disk, Op::SyncFolder { path: path("a") })?;
    }
    if careless != Careless::ParentSync {
        run(disk, Op::SyncFolder { path: path("") })?;
    }
    run(disk, Op::WriteSmall { path: path("manifest.new"), bytes: MANIFEST.to_vec() })?;
    run(disk, Op::Rename { from: path("manifest.new"), to: path("manifest") })?;
    if careless != Careless::LastSync {
        run(disk, Op::SyncFolder { path: path("") })?;
    }
    Ok(())
}

/// What a start finds.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Absent,
    Whole,
    Damaged,
}

fn recover(disk: &SimDisk) -> Found {
    let Ok(manifest) = run(disk, Op::ReadSmall { path: path("manifest"), bytes_max: 100 }) else {
        return Found::Absent;
    };
    if manifest.into_bytes() != MANIFEST {
        return Found::Damaged;
    }
    let Ok(length) = run(disk, Op::Length { path: path("a/r") }) else { return Found::Damaged };
    if length.into_length() != REGION_BYTES as u64 || read(disk, "a/r", REGION_BYTES) != [0xab; REGION_BYTES]
    {
        return Found::Damaged;
    }
    Found::Whole
}

/// Power loss at every operation of a commit, each with many ways to lose what was not synced.
///
/// Goal: a commit is there as a whole or not at all, and is there once its last step was answered.
#[test]
fn power_loss_leaves_a_commit_whole_or_absent() {
    let healthy = disk(0);
    commit(&healthy, Careless::No).unwrap();
    let ops_total = healthy.ops();
    assert_eq!(recover(&healthy.restart()), Found::Whole);
    let mut found_whole_early = false;
    for power_lost_at in 0..ops_total {
        for seed in 0..40 {
            let disk = disk(seed).losing_power_at(power_lost_at);
            assert_eq!(commit(&disk, Careless::No).unwrap_err().kind(), io::Error::from(Errno::IO).kind());
            let found = recover(&disk.restart());
            assert_ne!(found, Found::Damaged, "seed={seed} power_lost_at={power_lost_at}");
            found_whole_early |= found == Found::Whole;
        }
    }
    assert!(found_whole_early, "what was not synced may also have been kept");
    for seed in 0..40 {
        let disk = disk(seed);
        commit(&disk, Careless::No).unwrap();
        assert_eq!(recover(&disk.restart()), Found::Whole, "seed={seed}");
    }
}

/// The detector detects: each forgotten sync shows at some seed.
#[test]
fn each_forgotten_sync_is_found_out() {
    for careless in [Careless::DataSync, Careless::FolderSync, Careless::ParentSync, Careless::LastSync] {
        let worst = |seed| {
            let disk = disk(seed);
            commit(&disk, careless).unwrap();
            recover(&disk.restart())
        };
        // Without the parent's sync its next one, after the manifest, makes up for it: only a power loss
        // between the two shows.
        let between = |seed| {
            let healthy = disk(0);
            commit(&healthy, careless).unwrap();
            let disk = disk(seed).losing_power_at(healthy.ops() - 1);
            commit(&disk, careless).unwrap_err();
            recover(&disk.restart())
        };
        let found: Vec<Found> = (0..200)
            .map(|seed| match careless {
                Careless::ParentSync => between(seed),
                _ => worst(seed),
            })
            .collect();
        let bad = if careless == Careless::LastSync { Found::Absent } else { Found::Damaged };
        assert!(found.contains(&bad), "{careless:?} was not found out");
    }
}

/// A page that was not synced is kept, lost, or torn between sectors, never anything else.
#[test]
fn unsynced_pages_are_kept_lost_or_torn() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let disk = disk(seed);
        let file = create(&disk, "a");
        run(&disk, write(&file, 0, &[1; 4096])).unwrap();
        run(&disk, Op::SyncData { file: file.clone() }).unwrap();
        run(&disk, Op::SyncFolder { path: path("") }).unwrap();
        run(&disk, write(&file, 0, &[2; 4096])).unwrap();
        let bytes = read(&disk.restart(), "a", 4096);
        for sector in bytes.chunks(SECTOR) {
            assert!(sector == [1; SECTOR] || sector == [2; SECTOR], "seed={seed}");
        }
        match bytes.iter().filter(|&&byte| byte == 2).count() {
            0 => lost += 1,
            4096 => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(kept > 20 && lost > 20 && torn > 20, "kept={kept} lost={lost} torn={torn}");
}

/// A rename is lost or kept as a whole: a file that had a durable name has one name afterwards.
#[test]
fn a_rename_is_never_half() {
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let disk = disk(seed);
        run(&disk, Op::WriteSmall { path: path("old"), bytes: b"x".to_vec() }).unwrap();
        run(&disk, Op::SyncFolder { path: path("") }).unwrap();
        run(&disk, Op::Rename { from: path("old"), to: path("new") }).unwrap();
        let names = names(&disk.restart(), "");
        assert_eq!(names.len(), 1, "seed={seed} {names:?}");
        seen.extend(names);
    }
    assert_eq!(seen.len(), 2, "both happen");
}

/// An unlink that was not synced may come back, with its bytes.
#[test]
fn unlinked_names_may_come_back() {
    let mut came_back = 0;
    for seed in 0..50 {
        let disk = disk(seed);
        run(&disk, Op::WriteSmall { path: path("a"), bytes: b"bytes".to_vec() }).unwrap();
        run(&disk, Op::SyncFolder { path: path("") }).unwrap();
        run(&disk, Op::Unlink { path: path("a") }).unwrap();
        let after = disk.restart();
        if let Ok(outcome) = run(&after, Op::ReadSmall { path: path("a"), bytes_max: 9 }) {
            assert_eq!(outcome.into_bytes(), b"bytes");
            came_back += 1;
        }
        let synced = self::disk(seed);
        run(&synced, Op::WriteSmall { path: path("a"), bytes: b"bytes".to_vec() }).unwrap();
        run(&synced, Op::SyncFolder { path: path("") }).unwrap();
        run(&synced, Op::Unlink { path: path("a") }).unwrap();
        run(&synced, Op::SyncFolder { path: path("") }).unwrap();
        assert!(names(&synced.restart(), "").is_empty());
    }
    assert!((1..50).contains(&came_back));
}

/// One seed, one run; another seed, another order.
#[test]
fn the_seed_decides_the_order() {
    let order = |seed| {
        let mut engine = SimEngine::new(disk(seed));
        for token in 0..20 {
            engine.start(token, Op::CreateFolder { path: path(&token.to_string()) });
        }
        let mut done = Vec::new();
        while engine.in_flight() > 0 {
            engine.poll(true, &mut done);
        }
        done.iter().map(|(token, _)| *token).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    assert_ne!(order(1), (0..20).collect::<Vec<_>>());
}

/// Space runs out with an error, and comes back with the last name and descriptor.
#[test]
fn space_runs_out_and_comes_back() {
    let disk = disk(0).with_space(64 << 10);
    let free = || run(&disk, Op::Space { path: path("") }).unwrap().into_space().bytes_free;
    let file = create(&disk, "a");
    let refused = run(&disk, Op::Allocate { file: file.clone(), bytes: 100 << 10 }).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    assert_eq!(free(), 64 << 10);
    run(&disk, Op::Allocate { file: file.clone(), bytes: 40 << 10 }).unwrap();
    run(&disk, write(&file, 0, &[1; 40 << 10])).unwrap();
    assert_eq!(free(), 24 << 10, "what is allocated is not taken twice");
    let refused = run(&disk, write(&file, 40 << 10, &[1; 40 << 10])).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    assert_eq!(free(), 0, "a part was written first, as disks do");
    run(&disk, Op::SetLength { file: file.clone(), bytes: 8192 }).unwrap();
    assert_eq!(free(), 56 << 10);
    run(&disk, Op::Unlink { path: path("a") }).unwrap();
    assert_eq!(free(), 56 << 10, "it is still open");
    run(&disk, Op::Close { file }).unwrap();
    assert_eq!(free(), 64 << 10);
}

/// Errors come where they were put, and change nothing.
#[test]
fn errors_come_where_they_were_put() {
    let disk = disk(0)
        .with_fault(When::Nth("write", 1), Failure::Error(Errno::IO))
        .with_fault(When::Every("unlink"), Failure::Error(Errno::ROFS));
    let file = create(&disk, "a");
    run(&disk, write(&file, 0, &[1; 4096])).unwrap();
    let error = run(&disk, write(&file, 0, &[2; 4096])).unwrap_err();
    let DiskError::Failed { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.raw_os_error(), Some(Errno::IO.raw_os_error()));
    assert_eq!(read(&disk, "a", 4096), [1; 4096]);
    run(&disk, write(&file, 0, &[3; 4096])).unwrap();
    for _ in 0..2 {
        let error = run(&disk, Op::Unlink { path: path("a") }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
    let numbered = self::disk(0).with_fault(When::Op(1), Failure::Error(Errno::IO));
    run(&numbered, Op::List { path: path("") }).unwrap();
    run(&numbered, Op::List { path: path("") }).unwrap_err();
    run(&numbered, Op::List { path: path("") }).unwrap();
}

/// Short transfers are finished, and one that gets nowhere is an error.
#[test]
fn short_transfers_are_finished() {
    let disk = disk(0)
        .with_fault(When::Nth("write", 0), Failure::Short(5000))
        .with_fault(When::Nth("write", 1), Failure::Short(100))
        .with_fault(When::Nth("read", 0), Failure::Short(5000));
    let file = create(&disk, "a");
    let bytes: Vec<u8> = (0..12288u32).map(|at| (at / 100) as u8).collect();
    run(&disk, write(&file, 0, &bytes)).unwrap();
    // Less than a block is no progress for a direct write.
    let error = run(&disk, write(&file, 0, &bytes)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    assert_eq!(read(&disk, "a", 12288), bytes);
}

/// Direct transfers must be aligned here, even where a kernel would let one pass.
#[test]
fn unaligned_direct_transfers_are_refused() {
    let disk = disk(0);
    let file = create(&disk, "a");
    for (offset, len) in [(0, 100), (512, 4096), (4096, 4097)] {
        let error = run(&disk, write(&file, offset, &vec![0; len])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}

/// The first failed sync is the only one that says so.
///
/// Method: as on a kernel, the second sync answers that all is well, the bytes look right until the
/// pages are reclaimed, and then they are gone.
#[test]
fn a_failed_writeback_is_told_once_and_loses_the_bytes() {
    let disk = disk(3).with_fault(When::Nth("sync", 1), Failure::Writeback(Errno::NOSPC));
    let file = create(&disk, "a");
    run(&disk, write(&file, 0, &[1; 4096])).unwrap();
    run(&disk, Op::SyncData { file: file.clone() }).unwrap();
    run(&disk, Op::SyncFolder { path: path("") }).unwrap();
    run(&disk, Op::Allocate { file: file.clone(), bytes: 3 * 4096 }).unwrap();
    let error = {
        run(&disk, write(&file, 4096, &[2; 8192])).unwrap();
        run(&disk, Op::SyncData { file: file.clone() }).unwrap_err()
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    run(&disk, Op::SyncData { file: file.clone() }).unwrap();
    assert_eq!(read(&disk, "a", 12288)[4096..], [2; 8192]);
    disk.reclaim();
    let bytes = read(&disk, "a", 12288);
    assert_eq!(bytes[..4096], [1; 4096]);
    assert!(bytes[4096..].contains(&0), "something was lost");
    assert_eq!(read(&disk.restart(), "a", 12288), bytes);
}

/// Delays pass in virtual time.
#[test]
fn delays_cost_no_time() {
    let hour = Duration::from_secs(3600);
    let disk = disk(0).with_fault(When::Every("list"), Failure::Delay(hour));
    let before = Instant::now();
    run(&disk, Op::List { path: path("") }).unwrap();
    assert!(disk.now() >= hour);
    assert!(before.elapsed() < Duration::from_secs(60));
    // Unless a test wants to see what a slow disk does to others.
    let slow = self::disk(0)
        .with_fault(When::Every("list"), Failure::Delay(Duration::from_millis(30)))
        .in_real_time();
    let before = Instant::now();
    run(&slow, Op::List { path: path("") }).unwrap();
    assert!(before.elapsed() >= Duration::from_millis(30));
}

/// A lock goes with the process, so also with the power.
#[test]
fn locks_do_not_survive() {
    let disk = disk(0);
    run(&disk, Op::WriteSmall { path: path("lock"), bytes: Vec::new() }).unwrap();
    run(&disk, Op::SyncFolder { path: path("") }).unwrap();
    let held = run(&disk, Op::Lock { path: path("lock") }).unwrap().into_file();
    run(&disk, Op::Lock { path: path("lock") }).unwrap_err();
    run(&disk.restart(), Op::Lock { path: path("lock") }).unwrap();
    drop(held);
}

/// An operation that never ends costs its caller the deadline; others go on beside it.
#[test]
fn a_lost_request_leaves_callers_their_deadline() {
    let disk = disk(0).with_fault(When::Nth("sync", 0), Failure::Hang);
    let impellers = impellers(&disk, 4);
    let create = Op::CreateFile { path: path("a"), mode: FileMode::Direct };
    let file = impellers.run(create, None).unwrap().into_file();
    let error = impellers.run(Op::SyncData { file: file.clone() }, soon()).unwrap_err();
    assert!(matches!(error, DiskError::Late { .. }), "{error}");
    for _ in 0..10 {
        // The bell wakes the engine, which waits for the hung one.
        impellers.run(write(&file, 0, &[1; 4096]), None).unwrap();
    }
    assert_eq!(impellers.oldest().unwrap().0.verb(), "sync");
    disk.let_go();
    assert!(impellers.close(Instant::now() + Duration::from_secs(20)).abandoned.is_empty());
}

/// Closing a hung disk returns after its deadline and names the thread; nothing is left waiting.
#[test]
fn close_names_the_thread_whichever_way_it_hangs() {
    for failure in [Failure::Hang, Failure::HangThread] {
        let disk = disk(0).with_fault(When::Nth("sync", 0), failure.clone());
        let impellers = impellers(&disk, 2);
        let create = Op::CreateFile { path: path("a"), mode: FileMode::Direct };
        let file = impellers.run(create, None).unwrap().into_file();
        let (replies, completions) = replies();
        impellers.submit(Lane(0), Op::SyncData { file: file.clone() }, replies.tag(0), None).unwrap();
        while disk.ops() < 2 {
            thread::yield_now();
        }
        let written = impellers.run(write(&file, 0, &[1; 8192]), soon());
        if matches!(failure, Failure::HangThread) {
            assert!(matches!(written, Err(DiskError::Late { .. })));
            // Late for the caller, and still owned: the memory is not free.
            assert_eq!(impellers.in_flight_bytes(), 8192);
        }
        let before = Instant::now();
        let report = impellers.close(before + Duration::from_millis(50));
        assert!((Duration::from_millis(50)..Duration::from_secs(5)).contains(&before.elapsed()));
        assert_eq!(report.abandoned.len(), 1, "{failure:?}");
        assert_eq!(report.abandoned[0].to_string(), "sim-impeller-0 (waits to sync /sim/a)");
        drop(impellers);
        assert!(completions.is_empty(), "it is not answered while the disk has it");
        disk.let_go();
        completions.recv().unwrap().result.unwrap();
    }
}

/// Everything that an impeller does on a disk without power is an error, and closing is quick.
#[test]
fn a_disk_without_power_answers_errors() {
    let disk = disk(0).losing_power_at(3);
    let impellers = impellers(&disk, 4);
    let errors = (0..20)
        .map(|number| Op::CreateFolder { path: path(&number.to_string()) })
        .map(|op| impellers.run(op, None))
        .filter(Result::is_err)
        .count();
    assert_eq!(errors, 17);
    assert!(impellers.close(Instant::now() + Duration::from_secs(20)).abandoned.is_empty());
    assert!(names(&disk.restart(), "").len() <= 4);
}

/// Closing a hung spindle closes no file itself, since that could hang as well.
///
/// Method: the last holder of a file is an operation that is never begun.
#[test]
fn files_of_cancelled_operations_are_closed_by_the_thread_that_was_left() {
    let disk = disk(0).with_fault(When::Nth("sync", 0), Failure::HangThread);
    let impellers = impellers(&disk, 1);
    let create = |name| Op::CreateFile { path: path(name), mode: FileMode::Direct };
    let hung = impellers.run(create("a"), None).unwrap().into_file();
    let cancelled = impellers.run(create("b"), None).unwrap().into_file();
    let refused = impellers.run(create("c"), None).unwrap().into_file();
    let files = [Arc::downgrade(&cancelled), Arc::downgrade(&refused)];
    let (replies, completions) = replies();
    impellers.submit(Lane(0), Op::SyncData { file: hung }, replies.tag(0), None).unwrap();
    while disk.ops() < 4 {
        thread::yield_now();
    }
    impellers.submit(Lane(0), Op::Close { file: cancelled }, replies.tag(1), None).unwrap();
    let report = impellers.close(Instant::now());
    assert_eq!((report.cancelled, report.abandoned.len()), (1, 1));
    assert_eq!(completions.recv().unwrap().tag, 1);
    impellers.run(Op::Close { file: refused }, None).unwrap_err();
    drop(impellers);
    assert!(files.iter().all(|file| file.strong_count() == 1), "nobody closed them here");
    disk.let_go();
    while files.iter().any(|file| file.strong_count() > 0) {
        thread::yield_now();
    }
}

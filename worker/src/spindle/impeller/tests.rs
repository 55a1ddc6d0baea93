//! Impellers on real system calls. A hung disk is a named pipe: opening one waits, inside the kernel,
//! until somebody opens the other end.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FileType, Mode};
use tempfile::TempDir;

use super::*;
use crate::budget::memory::MemoryBudget;
use crate::region::arena::ImageWriter;
use crate::spindle::engine::PageBuffer;
use crate::spindle::file::{FileMode, SpindleFile};

const MIB: u64 = 1 << 20;

fn plan(engine: EngineKind) -> ImpellerPlan {
    ImpellerPlan {
        name: "test".to_owned(),
        count: 1,
        depth: 1,
        queue_bytes_max: 16 * MIB,
        engine,
        watch: None,
    }
}

fn start() -> Impellers {
    Impellers::start(plan(EngineKind::Threads)).unwrap()
}

fn soon(millis: u64) -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(millis))
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// An operation that waits in the kernel until it is let go.
struct Hang {
    path: PathBuf,
}

impl Hang {
    fn new(folder: &TempDir, name: &str) -> Hang {
        let path = folder.path().join(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        Hang { path }
    }

    fn op(&self) -> Op {
        Op::OpenFile { path: self.path.clone(), mode: FileMode::Buffered }
    }

    /// Holds an impeller. Returns when it is really inside.
    fn hold(&self, impellers: &Impellers, replies: &Replies) {
        impellers.submit(Lane::HOUSE, self.op(), replies.tag(u64::MAX), None).unwrap();
        while impellers.oldest().is_none_or(|(subject, _)| subject.path() != self.path) {
            thread::yield_now();
        }
    }

    fn let_go(&self) {
        // Both ends at once never waits, whether or not the other side is there already.
        let ends = OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        thread::sleep(Duration::from_millis(20));
        drop(ends);
    }
}

fn create(impellers: &Impellers, path: &Path) -> Arc<SpindleFile> {
    let op = Op::CreateFile { path: path.to_owned(), mode: FileMode::Direct };
    impellers.run(op, None).unwrap().into_file()
}

fn write(file: &Arc<SpindleFile>, offset: u64, bytes: &[u8]) -> Op {
    let bytes = Box::new(PageBuffer::copied(bytes));
    Op::Write { file: file.clone(), offset, len: bytes.as_ref().as_ref().len(), bytes }
}

/// What is submitted is done, byte for byte, from many threads at once.
#[test]
fn many_producers_write_what_they_meant() {
    let folder = tempfile::tempdir().unwrap();
    for (count, depth) in [(1, 1), (1, 4), (3, 2)] {
        let plan = ImpellerPlan { count, depth, queue_bytes_max: MIB, ..plan(EngineKind::Auto) };
        let impellers = Impellers::start(plan).unwrap();
        thread::scope(|scope| {
            for producer in 0..4u8 {
                let (impellers, folder) = (&impellers, folder.path());
                scope.spawn(move || {
                    let path = folder.join(format!("{count}-{depth}-{producer}"));
                    let file = create(impellers, &path);
                    let (replies, completions) = replies();
                    for piece in 0..16u8 {
                        let op = write(&file, u64::from(piece) * 65536, &[producer * 16 + piece; 65536]);
                        let lane = Lane(u64::from(producer));
                        impellers.submit(lane, op, replies.tag(piece.into()), None).unwrap();
                    }
                    for _ in 0..16 {
                        completions.recv().unwrap().result.unwrap().into_written();
                    }
                    impellers.run(Op::SyncData { file }, None).unwrap();
                    let bytes = fs::read(&path).unwrap();
                    assert_eq!(bytes.len(), 16 * 65536);
                    for (piece, bytes) in bytes.chunks(65536).enumerate() {
                        assert!(bytes.iter().all(|&byte| byte == producer * 16 + piece as u8));
                    }
                });
            }
        });
        assert_eq!(impellers.in_flight_bytes(), 0);
        assert!(impellers.close(later()).abandoned.is_empty());
    }
}

/// Each lane gives one operation and then waits for the others.
#[test]
fn lanes_take_turns() {
    let folder = tempfile::tempdir().unwrap();
    let hang = Hang::new(&folder, "hang");
    let impellers = start();
    let (replies, completions) = replies();
    hang.hold(&impellers, &replies);
    for (lane, tag) in [(1, 10), (1, 11), (1, 12), (1, 13), (2, 20), (2, 21), (3, 30)] {
        let op = Op::Length { path: folder.path().to_owned() };
        impellers.submit(Lane(lane), op, replies.tag(tag), None).unwrap();
    }
    hang.let_go();
    let order: Vec<u64> = (0..8).map(|_| completions.recv().unwrap().tag).collect();
    assert_eq!(order, [u64::MAX, 10, 20, 30, 11, 21, 12, 13]);
}

/// Who waits for a full queue and is cancelled leaves it, and those behind go on.
#[test]
fn a_cancel_ends_the_wait_for_a_full_queue() {
    use crate::scan::cancel::CancelToken;
    use crate::scan::patience::Patience;

    let folder = tempfile::tempdir().unwrap();
    let hang = Hang::new(&folder, "hang");
    let impellers = start();
    let (replies, completions) = replies();
    let file = create(&impellers, &folder.path().join("a"));
    hang.hold(&impellers, &replies);
    let piece = vec![7; 8 << 20];
    impellers.submit(Lane(0), write(&file, 0, &piece), replies.tag(0), None).unwrap();
    let cancel = CancelToken::new();
    let patience = Patience { cancel: Some(cancel.clone()), ..Patience::default() };
    thread::scope(|scope| {
        let first = write(&file, 8 * MIB, &piece);
        let first = scope
            .spawn(|| impellers.submit_patiently(Lane(0), first, replies.tag(1), &patience).unwrap_err());
        while lock(&impellers.shared.queue).waiting.is_empty() {
            thread::yield_now();
        }
        // It would fit where the first one does not.
        let second = scope.spawn(|| impellers.wait_for_room(&Patience::until(Some(later()))));
        while lock(&impellers.shared.queue).waiting.len() < 2 {
            thread::yield_now();
        }
        cancel.cancel();
        assert_eq!(first.join().unwrap().reason, Refusal::Cancelled);
        second.join().unwrap().unwrap();
    });
    hang.let_go();
    for _ in 0..2 {
        completions.recv().unwrap();
    }
}

/// A full queue makes submitters wait, to their deadline, and gives the operation back.
#[test]
fn the_queue_is_bounded_in_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let hang = Hang::new(&folder, "hang");
    let impellers = start();
    let (replies, completions) = replies();
    let file = create(&impellers, &folder.path().join("a"));
    hang.hold(&impellers, &replies);
    let piece = vec![7; 5 << 20];
    for tag in 0..3 {
        impellers.submit(Lane(0), write(&file, tag * 5 * MIB, &piece), replies.tag(tag), None).unwrap();
    }
    assert_eq!(impellers.in_flight_bytes(), 15 * MIB);
    let refused = impellers.submit(Lane(0), write(&file, 0, &piece), replies.tag(9), soon(30)).unwrap_err();
    assert_eq!(refused.reason, Refusal::Late);
    let Op::Write { bytes, .. } = refused.op else { panic!("another operation came back") };
    assert_eq!(bytes.bytes(), piece);
    assert_eq!(impellers.in_flight_bytes(), 15 * MIB);

    thread::scope(|scope| {
        let waiter =
            scope.spawn(|| impellers.submit(Lane(0), write(&file, 15 * MIB, &piece), replies.tag(3), None));
        hang.let_go();
        waiter.join().unwrap().unwrap();
    });
    for _ in 0..5 {
        completions.recv().unwrap();
    }
    assert_eq!(impellers.in_flight_bytes(), 0);
}

/// The memory of an image stays whatever the queue does, so a full queue holds up nobody who writes one: a
/// slice can be scanned when its last blob has come, however far behind its disk is.
#[test]
fn pieces_of_an_image_do_not_wait_for_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let hang = Hang::new(&folder, "hang");
    let impellers = start();
    let (replies, completions) = replies();
    let file = create(&impellers, &folder.path().join("a"));
    hang.hold(&impellers, &replies);
    let piece_bytes = 2 * MIB as usize;
    let budget = MemoryBudget::new(24 * MIB, 0);
    let piece = || budget.try_take_for_image(piece_bytes as u64).unwrap();
    let mut image = ImageWriter::new(piece_bytes, 12 * piece_bytes, piece()).unwrap();
    // More than the queue takes of bytes that come back.
    for tag in 0..10 {
        image.piece().fill(tag as u8);
        let bytes = Box::new(image.next_piece(piece()).unwrap());
        let op = Op::Write { file: file.clone(), offset: tag * 2 * MIB, bytes, len: piece_bytes };
        impellers.submit(Lane(0), op, replies.tag(tag), soon(0)).unwrap();
    }
    assert_eq!(impellers.in_flight_bytes(), 20 * MIB, "they are counted all the same");
    hang.let_go();
    for _ in 0..11 {
        completions.recv().unwrap();
    }
    let written = fs::read(folder.path().join("a")).unwrap();
    assert!(
        written
            .chunks(piece_bytes)
            .enumerate()
            .all(|(tag, bytes)| bytes.iter().all(|&byte| byte == tag as u8))
    );
}

/// A piece larger than the whole queue still gets through, alone.
#[test]
fn an_operation_larger_than_the_queue_goes_alone() {
    let folder = tempfile::tempdir().unwrap();
    let impellers =
        Impellers::start(ImpellerPlan { queue_bytes_max: 4096, ..plan(EngineKind::Threads) }).unwrap();
    let file = create(&impellers, &folder.path().join("a"));
    let outcome = impellers.run(write(&file, 0, &[1; 1 << 20]), soon(20_000)).unwrap();
    assert_eq!(outcome.into_written().bytes().len(), 1 << 20);
}

/// Small operations do not slip past a large one that waits for room.
#[test]
fn waiting_submitters_are_served_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let hang = Hang::new(&folder, "hang");
    let impellers =
        Impellers::start(ImpellerPlan { queue_bytes_max: 64 << 10, ..plan(EngineKind::Threads) }).unwrap();
    let (replies, completions) = replies();
    let file = create(&impellers, &folder.path().join("a"));
    hang.hold(&impellers, &replies);
    impellers.submit(Lane(0), write(&file, 0, &[1; 32 << 10]), replies.tag(0), None).unwrap();
    thread::scope(|scope| {
        let large =
            scope.spawn(|| impellers.submit(Lane(0), write(&file, 0, &[2; 60 << 10]), replies.tag(1), None));
        while lock(&impellers.shared.queue).waiting.is_empty() {
            thread::yield_now();
        }
        // There would be room for this one, but it came later.
        let small = write(&file, 0, &[3; 4096]);
        let refused = impellers.submit(Lane(0), small, replies.tag(2), soon(30));
        hang.let_go();
        large.join().unwrap().unwrap();
        assert_eq!(refused.unwrap_err().reason, Refusal::Late);
    });
    let tags: Vec<u64> = (0..3).map(|_| completions.recv().unwrap().tag).collect();
    assert_eq!(tags, [u64::MAX, 0, 1]);
}

/// A hung disk costs a caller its deadline and nothing more; what it gave stays counted.
#[test]
fn a_hang_leaves_callers_their_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let hang = Hang::new(&folder, "hang");
    let impellers = start();
    let file = create(&impellers, &folder.path().join("a"));
    let before = Instant::now();
    let error = impellers.run(hang.op(), soon(50)).unwrap_err();
    assert!(matches!(error, DiskError::Late { .. }), "{error}");
    let error = impellers.run(write(&file, 0, &[1; 4096]), soon(50)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(before.elapsed() < Duration::from_secs(5));
    assert_eq!(impellers.in_flight_bytes(), 4096);
    let (stuck, age) = impellers.oldest().unwrap();
    assert_eq!((stuck.verb(), stuck.path()), ("open", hang.path.as_path()));
    assert!(age >= Duration::from_millis(50));

    hang.let_go();
    // The next one waits behind both, so they have ended when it has.
    impellers.run(Op::Length { path: folder.path().join("a") }, None).unwrap();
    assert_eq!(impellers.in_flight_bytes(), 0);
    // Its deadline passed before its turn came, so it was not begun.
    assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"");
}

/// Closing finishes what is queued.
#[test]
fn close_finishes_what_is_queued() {
    let folder = tempfile::tempdir().unwrap();
    let impellers = start();
    let file = create(&impellers, &folder.path().join("a"));
    let (replies, completions) = replies();
    for tag in 0..50 {
        impellers
            .submit(Lane(tag % 3), write(&file, tag * 4096, &[1; 4096]), replies.tag(tag), None)
            .unwrap();
    }
    let report = impellers.close(later());
    assert_eq!((report.cancelled, report.abandoned.len()), (0, 0));
    assert!(report.finished <= 50);
    assert!(completions.try_iter().all(|completion| completion.result.is_ok()));
    assert_eq!(fs::read(folder.path().join("a")).unwrap(), [1; 50 * 4096]);
    let again = impellers.close(later());
    assert_eq!((again.finished, again.cancelled, again.abandoned.len()), (0, 0, 0));
}

/// Closing a hung spindle returns after its deadline, answers what was queued, and names the thread.
#[test]
fn close_names_the_thread_of_a_hung_disk() {
    let folder = tempfile::tempdir().unwrap();
    let hang = Hang::new(&folder, "hang");
    let impellers = start();
    let (replies, completions) = replies();
    let file = create(&impellers, &folder.path().join("a"));
    hang.hold(&impellers, &replies);
    for tag in 0..3 {
        impellers.submit(Lane(tag), write(&file, 0, &[1; 4096]), replies.tag(tag), None).unwrap();
    }
    let before = Instant::now();
    let report = impellers.close(before + Duration::from_millis(100));
    assert!(before.elapsed() >= Duration::from_millis(100));
    assert!(before.elapsed() < Duration::from_secs(5));
    assert_eq!((report.finished, report.cancelled), (0, 3));
    assert_eq!(report.abandoned.len(), 1);
    let told = report.abandoned[0].to_string();
    assert_eq!(told, format!("test-impeller-0 (waits to open {})", hang.path.display()));
    for _ in 0..3 {
        let error = completions.recv().unwrap().result.unwrap_err();
        assert!(matches!(error, DiskError::Cancelled { .. }), "{error}");
    }
    let shared = Arc::downgrade(&impellers.shared);
    drop(impellers);
    hang.let_go();
    // The thread that was left behind ends by itself, and answers what it held.
    assert_eq!(completions.recv().unwrap().tag, u64::MAX);
    while shared.upgrade().is_some() {
        thread::yield_now();
    }
}

/// Dropping does not wait for a hung thread for ever, and tells whoever waits.
#[test]
fn drop_cancels_and_returns() {
    let folder = tempfile::tempdir().unwrap();
    let hang = Hang::new(&folder, "hang");
    let impellers = start();
    let (replies, completions) = replies();
    hang.hold(&impellers, &replies);
    impellers.submit(Lane(0), Op::Unlink { path: hang.path.clone() }, replies.tag(1), None).unwrap();
    let before = Instant::now();
    drop(impellers);
    assert!(before.elapsed() < DROP_WAIT_MAX + Duration::from_secs(5));
    assert_eq!(completions.recv().unwrap().result.unwrap_err().kind(), io::ErrorKind::Interrupted);
    hang.let_go();
}

/// A closed spindle takes nothing on, and gives back what it was asked.
#[test]
fn a_closed_spindle_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let impellers = start();
    impellers.close(later());
    let op = Op::Length { path: folder.path().to_owned() };
    let refused = impellers.submit(Lane(0), op, replies().0.tag(0), None).unwrap_err();
    assert_eq!(refused.reason, Refusal::Closed);
    let error = impellers.run(refused.op, None).unwrap_err();
    assert!(matches!(error, DiskError::Cancelled { .. }), "{error}");
}

/// A panic inside is the error of that operation alone.
#[test]
fn a_panic_is_one_operations_error() {
    let folder = tempfile::tempdir().unwrap();
    for (name, engine) in [("threads", EngineKind::Threads), ("auto", EngineKind::Auto)] {
        let impellers = Impellers::start(plan(engine)).unwrap();
        let file = create(&impellers, &folder.path().join(name));
        for _ in 0..3 {
            let bytes = Box::new(PageBuffer::zeroed(4096));
            // More than there is: slicing panics on the impeller.
            let op = Op::Write { file: file.clone(), offset: 0, bytes, len: 8192 };
            let error = impellers.run(op, None).unwrap_err();
            assert!(matches!(error, DiskError::Panicked { .. }), "{name}: {error}");
            impellers.run(write(&file, 0, &[1; 4096]), None).unwrap();
        }
        assert_eq!(impellers.in_flight_bytes(), 0);
        assert_eq!(impellers.close(later()).abandoned.len(), 0);
    }
}

/// An impeller never dies of an I/O error, and the watcher hears of each.
#[test]
fn errors_are_answers() {
    let folder = tempfile::tempdir().unwrap();
    let errors = Arc::new(AtomicU64::new(0));
    let watch: Watch = {
        let errors = errors.clone();
        Arc::new(move |watched| {
            errors.fetch_add(
                u64::from(watched.error.is_some_and(|error| error.kind() == io::ErrorKind::NotFound)),
                Ordering::Relaxed,
            );
            panic!("a watcher with a bug harms nobody");
        })
    };
    let impellers =
        Impellers::start(ImpellerPlan { watch: Some(watch), ..plan(EngineKind::Threads) }).unwrap();
    for _ in 0..10 {
        let path = folder.path().join("missing");
        let error = impellers.run(Op::Unlink { path: path.clone() }, None).unwrap_err();
        assert_eq!((error.kind(), error.path()), (io::ErrorKind::NotFound, path.as_path()));
        assert_eq!(error.to_string(), format!("could not unlink {}", path.display()));
    }
    assert_eq!(errors.load(Ordering::Relaxed), 10);
}

/// Depth without a ring is more threads on one queue.
#[test]
fn depth_on_plain_calls_is_threads() {
    let folder = tempfile::tempdir().unwrap();
    let hang = Hang::new(&folder, "hang");
    let impellers = Impellers::start(ImpellerPlan { depth: 2, ..plan(EngineKind::Threads) }).unwrap();
    assert_eq!(impellers.thread_count(), 2);
    let (replies, _completions) = replies();
    hang.hold(&impellers, &replies);
    // One hangs, the other one works.
    impellers.run(Op::Length { path: folder.path().to_owned() }, soon(20_000)).unwrap();
    hang.let_go();
}

/// A request that the ring never gets an answer to holds up nothing but itself.
///
/// Method: a direct read of an empty pipe, which io_uring keeps until somebody writes.
#[test]
fn a_request_lost_in_the_ring_holds_up_nothing_else() {
    if let Err(reason) = EngineKind::Uring.choose() {
        eprintln!("skipped, io_uring cannot be used here: {reason}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let impellers = Impellers::start(ImpellerPlan { depth: 2, ..plan(EngineKind::Uring) }).unwrap();
    let (pipe, mut other_end) = io::pipe().unwrap();
    let pipe = Arc::new(SpindleFile::new(pipe.into(), "a pipe".into(), FileMode::Direct));
    let (replies, completions) = replies();
    let op = Op::Read { file: pipe, offset: 0, room: Box::new(PageBuffer::zeroed(8192)), len: 8192 };
    impellers.submit(Lane(0), op, replies.tag(0), None).unwrap();
    let file = create(&impellers, &folder.path().join("a"));
    for _ in 0..20 {
        impellers.run(write(&file, 0, &[1; 4096]), None).unwrap().into_written();
        impellers.run(Op::SyncData { file: file.clone() }, None).unwrap();
    }
    assert_eq!(impellers.in_flight_bytes(), 8192);
    let before = Instant::now();
    let report = impellers.close(before + Duration::from_millis(50));
    assert!(before.elapsed() < Duration::from_secs(5));
    assert_eq!(report.abandoned[0].to_string(), "test-impeller-0 (waits to read a pipe)");
    drop(impellers);
    assert!(completions.is_empty());
    // The room is still the ring's: what arrives now lands in it.
    io::Write::write_all(&mut other_end, b"late").unwrap();
    let (room, len) = completions.recv().unwrap().result.unwrap().into_read_back();
    let room = room.into_any().downcast::<PageBuffer>().unwrap();
    assert_eq!((*room).as_ref()[..len], *b"late");
}

/// Goal: what nobody waits for goes behind all else, and is not forgotten. Method: the order in which a queue gives up
/// what stands in several lanes.
#[test]
fn the_last_lane_is_served_when_all_others_are_empty() {
    let (replies, _kept) = replies();
    let shared = Shared::new(16 * MIB, None);
    let mut queue = lock(&shared.queue);
    let mut push = |lane, name: &str| {
        let op = Op::Space { path: PathBuf::from(name) };
        queue.push(lane, Job { op, reply: replies.tag(0), deadline: None });
    };
    push(Lane::LAST, "last 1");
    push(Lane::LAST, "last 2");
    push(Lane(1), "one 1");
    push(Lane(1), "one 2");
    push(Lane::HOUSE, "house");
    let next = |queue: &mut Queue| Some(queue.pop()?.op.subject().path().display().to_string());
    let first: Vec<_> = (0..3).map_while(|_| next(&mut queue)).collect();
    assert_eq!(first, ["one 1", "house", "one 2"]);
    assert_eq!(next(&mut queue).unwrap(), "last 1");
    let late = Job { op: Op::Space { path: "late".into() }, reply: replies.tag(0), deadline: None };
    queue.push(Lane(2), late);
    assert_eq!([next(&mut queue), next(&mut queue)], [Some("late".into()), Some("last 2".into())]);
    assert_eq!(next(&mut queue), None);
}

/// Goal: who has an answer coming does not wait for those behind. Method: on a ring, where opening a file is done right away,
/// two operations and a third one that hangs are queued while the impeller is busy.
#[test]
fn what_is_finished_is_answered_before_the_next_is_begun() {
    if let Err(reason) = EngineKind::Uring.choose() {
        eprintln!("skipped, io_uring cannot be used here: {reason}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (first, last) = (Hang::new(&folder, "first"), Hang::new(&folder, "last"));
    let impellers = Impellers::start(ImpellerPlan { depth: 8, ..plan(EngineKind::Uring) }).unwrap();
    let (replies, completions) = replies();
    first.hold(&impellers, &replies);
    let look = Op::Length { path: folder.path().to_owned() };
    impellers.submit(Lane(1), look, replies.tag(1), None).unwrap();
    impellers.submit(Lane(2), last.op(), replies.tag(2), None).unwrap();
    first.let_go();
    let next = || completions.recv_timeout(Duration::from_secs(20)).map(|answer| answer.tag);
    assert_eq!([next(), next()], [Ok(u64::MAX), Ok(1)]);
    last.let_go();
    assert_eq!(next(), Ok(2));
}

/// What must not wait for room gets in all the same, and is done in its turn.
#[test]
fn a_full_queue_takes_what_does_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let hang = Hang::new(&folder, "hang");
    let impellers = start();
    let (replies, completions) = replies();
    let file = create(&impellers, &folder.path().join("a"));
    hang.hold(&impellers, &replies);
    let rest = vec![7; (16 * MIB - OP_WEIGHT) as usize];
    impellers.submit(Lane(0), write(&file, 0, &rest), replies.tag(0), None).unwrap();
    let look = || Op::Length { path: folder.path().to_owned() };
    let refused = impellers.submit(Lane(1), look(), replies.tag(99), soon(0)).unwrap_err();
    assert_eq!(refused.reason, Refusal::Late);
    impellers.submit_at_once(Lane(1), look(), replies.tag(100), Some(later())).unwrap();
    hang.let_go();
    while completions.recv_timeout(Duration::from_secs(20)).unwrap().tag != 100 {}
    impellers.close(later());
    let refused = impellers.submit_at_once(Lane(1), look(), replies.tag(101), None).unwrap_err();
    assert_eq!(refused.reason, Refusal::Closed);
}

//! The conformance suite: what every engine does the same way.

use std::path::PathBuf;

use super::*;
use crate::spindle::file::DIRECT_ALIGNMENT;

/// An engine and a folder of its own.
struct Rig {
    engine: Box<dyn Engine>,
    root: PathBuf,
    token_next: u64,
    /// Holds the folder, where there really is one.
    _folder: Option<tempfile::TempDir>,
}

const DEPTH: usize = 8;

/// Each case runs on each engine that is allowed here.
macro_rules! suite {
    ($($case:ident),* $(,)?) => {
        mod on_uring {
            $(#[test]
            fn $case() {
                match super::EngineKind::Uring.choose() {
                    Ok(choice) => super::$case(&mut super::Rig::on_disk(choice)),
                    Err(reason) => eprintln!("skipped, io_uring cannot be used here: {reason}"),
                }
            })*
        }

        mod on_sim {
            $(#[test]
            fn $case() {
                for seed in 0..20 {
                    super::$case(&mut super::Rig::simulated(seed));
                }
            })*
        }

        mod on_threads {
            $(#[test]
            fn $case() {
                super::$case(&mut super::Rig::on_disk(super::Choice::threads()));
            })*
        }
    };
}

suite! {
    files_are_made_once,
    written_bytes_come_back,
    many_at_once_come_back,
    reads_end_at_the_end,
    folders_come_and_go,
    renames_replace,
    unlinked_files_stay_readable,
    small_files_come_whole_or_not_at_all,
    lengths_and_space,
    a_lock_is_held_once,
    many_files_are_looked_at_at_once,
    errors_name_verb_and_path,
    closed_files_are_let_go,
}

impl Rig {
    fn on_disk(choice: Choice) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        Rig { engine: choice.make(DEPTH).unwrap(), root, token_next: 0, _folder: Some(folder) }
    }

    fn simulated(seed: u64) -> Rig {
        let root = PathBuf::from("/sim");
        let disk = sim::SimDisk::healthy(&root, seed);
        let choice = EngineKind::Sim(disk).choose().unwrap();
        Rig { engine: choice.make(DEPTH).unwrap(), root, token_next: 0, _folder: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// One operation, from start to end.
    fn run(&mut self, op: Op) -> Result<Outcome, DiskError> {
        let mut finished = self.run_all(vec![op]);
        finished.pop().unwrap()
    }

    /// All of them at once, as far as the depth allows. Results stand in the order of the operations.
    fn run_all(&mut self, ops: Vec<Op>) -> Vec<Result<Outcome, DiskError>> {
        let base = self.token_next;
        let count = ops.len();
        self.token_next += count as u64;
        let mut results: Vec<Option<Result<Outcome, DiskError>>> = (0..count).map(|_| None).collect();
        let mut done = Vec::new();
        let mut ops = ops.into_iter().enumerate();
        let mut left = count;
        while left > 0 {
            while self.engine.in_flight() < DEPTH {
                let Some((index, op)) = ops.next() else { break };
                self.engine.start(base + index as u64, op);
            }
            self.engine.poll(true, &mut done);
            for (token, result) in done.drain(..) {
                let slot = &mut results[(token - base) as usize];
                assert!(slot.is_none(), "an operation ended twice");
                *slot = Some(result);
                left -= 1;
            }
        }
        assert_eq!(self.engine.in_flight(), 0);
        results.into_iter().map(|result| result.unwrap()).collect()
    }

    fn create(&mut self, name: &str, mode: FileMode) -> Arc<SpindleFile> {
        let path = self.path(name);
        self.run(Op::CreateFile { path, mode }).unwrap().into_file()
    }

    fn open(&mut self, name: &str, mode: FileMode) -> Arc<SpindleFile> {
        let path = self.path(name);
        self.run(Op::OpenFile { path, mode }).unwrap().into_file()
    }

    fn read(&mut self, file: &Arc<SpindleFile>, offset: u64, len: usize) -> Vec<u8> {
        let (room, len) = self.run(read(file, offset, len)).unwrap().into_read_back();
        bytes_of(room, len)
    }

    fn names(&mut self, path: PathBuf) -> Vec<String> {
        let entries = self.run(Op::List { path }).unwrap().into_entries();
        entries.into_iter().map(|entry| entry.name.into_string().unwrap()).collect()
    }
}

fn write(file: &Arc<SpindleFile>, offset: u64, bytes: &[u8]) -> Op {
    let len = bytes.len();
    Op::Write { file: file.clone(), offset, bytes: Box::new(PageBuffer::copied(bytes)), len }
}

fn read(file: &Arc<SpindleFile>, offset: u64, len: usize) -> Op {
    Op::Read { file: file.clone(), offset, room: Box::new(PageBuffer::zeroed(len)), len }
}

fn bytes_of(room: Box<dyn IoRoom>, len: usize) -> Vec<u8> {
    let buffer = room.into_any().downcast::<PageBuffer>().unwrap();
    (*buffer).as_ref()[..len].to_vec()
}

/// Bytes that differ from place to place, so that a piece in the wrong one shows.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn files_are_made_once(rig: &mut Rig) {
    rig.create("a", FileMode::Direct);
    let path = rig.path("a");
    for mode in [FileMode::Direct, FileMode::Buffered] {
        let error = rig.run(Op::CreateFile { path: path.clone(), mode }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
    let error = rig.run(Op::OpenFile { path: rig.path("b"), mode: FileMode::Direct }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let error = rig.run(Op::CreateFile { path: rig.path("no/a"), mode: FileMode::Direct }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

fn written_bytes_come_back(rig: &mut Rig) {
    for (name, mode) in [("direct", FileMode::Direct), ("buffered", FileMode::Buffered)] {
        let file = rig.create(name, mode);
        rig.run(Op::Allocate { file: file.clone(), bytes: 1 << 20 }).unwrap();
        let bytes = pattern(1, 3 * DIRECT_ALIGNMENT);
        let written = rig.run(write(&file, 8192, &bytes)).unwrap().into_written();
        assert_eq!(written.bytes(), bytes);
        rig.run(Op::SyncData { file: file.clone() }).unwrap();
        assert_eq!(rig.read(&file, 8192, bytes.len()), bytes);
        assert_eq!(rig.read(&file, 0, 8192), [0; 8192]);
        let sealed = rig.open(name, mode);
        rig.run(Op::DropCache { file: sealed.clone() }).unwrap();
        assert_eq!(rig.read(&sealed, 12288, 4096), bytes[4096..8192]);
        // What was opened is for reading.
        assert!(rig.run(write(&sealed, 0, &bytes)).is_err());
    }
}

fn many_at_once_come_back(rig: &mut Rig) {
    for mode in [FileMode::Direct, FileMode::Buffered] {
        let file = rig.create(&format!("{mode:?}"), mode);
        let len = 64 << 10;
        let pieces: Vec<Vec<u8>> = (0..40).map(|piece| pattern(piece, len)).collect();
        let offset = |piece: usize| (piece * len) as u64;
        let ops = pieces.iter().enumerate().map(|(piece, bytes)| write(&file, offset(piece), bytes));
        for (bytes, result) in pieces.iter().zip(rig.run_all(ops.collect())) {
            assert_eq!(result.unwrap().into_written().bytes(), bytes);
        }
        let ops = (0..pieces.len()).map(|piece| read(&file, offset(piece), len));
        for (bytes, result) in pieces.iter().zip(rig.run_all(ops.collect())) {
            let (room, len) = result.unwrap().into_read_back();
            assert_eq!(&bytes_of(room, len), bytes);
        }
    }
}

fn reads_end_at_the_end(rig: &mut Rig) {
    for mode in [FileMode::Direct, FileMode::Buffered] {
        let file = rig.create(&format!("{mode:?}"), mode);
        let bytes = pattern(5, 8192);
        rig.run(write(&file, 0, &bytes)).unwrap();
        assert_eq!(rig.read(&file, 4096, 16384), bytes[4096..]);
        assert_eq!(rig.read(&file, 8192, 4096), b"");
        assert_eq!(rig.read(&file, 1 << 20, 4096), b"");
        // A file need not end on a page.
        rig.run(Op::SetLength { file: file.clone(), bytes: 5000 }).unwrap();
        assert_eq!(rig.read(&file, 0, 16384), bytes[..5000]);
        rig.run(Op::SetLength { file: file.clone(), bytes: 8192 }).unwrap();
        assert_eq!(rig.read(&file, 4096, 4096)[904..], [0; 4096 - 904]);
    }
}

fn folders_come_and_go(rig: &mut Rig) {
    let folder = rig.path("f");
    rig.run(Op::CreateFolder { path: folder.clone() }).unwrap();
    let error = rig.run(Op::CreateFolder { path: folder.clone() }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    rig.create("f/b", FileMode::Direct);
    rig.create("f/a", FileMode::Buffered);
    rig.run(Op::CreateFolder { path: folder.join("c") }).unwrap();
    rig.run(Op::SyncFolder { path: folder.clone() }).unwrap();
    rig.run(Op::SyncFolder { path: rig.path("") }).unwrap();
    let entries = rig.run(Op::List { path: folder.clone() }).unwrap().into_entries();
    let expected = [("a", EntryKind::File), ("b", EntryKind::File), ("c", EntryKind::Folder)];
    let expected = expected.map(|(name, kind)| Entry { name: name.into(), kind });
    assert_eq!(entries, expected);
    let error = rig.run(Op::RemoveFolder { path: folder.clone() }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::DirectoryNotEmpty);
    rig.run(Op::Unlink { path: folder.join("a") }).unwrap();
    rig.run(Op::Unlink { path: folder.join("b") }).unwrap();
    rig.run(Op::RemoveFolder { path: folder.join("c") }).unwrap();
    rig.run(Op::RemoveFolder { path: folder.clone() }).unwrap();
    for op in [Op::List { path: folder.clone() }, Op::SyncFolder { path: folder }] {
        assert_eq!(rig.run(op).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

fn renames_replace(rig: &mut Rig) {
    rig.run(Op::WriteSmall { path: rig.path("a"), bytes: b"new".to_vec() }).unwrap();
    rig.run(Op::WriteSmall { path: rig.path("b"), bytes: b"old".to_vec() }).unwrap();
    rig.run(Op::Rename { from: rig.path("a"), to: rig.path("b") }).unwrap();
    assert_eq!(rig.names(rig.path("")), ["b"]);
    let bytes = rig.run(Op::ReadSmall { path: rig.path("b"), bytes_max: 100 }).unwrap().into_bytes();
    assert_eq!(bytes, b"new");
    let error = rig.run(Op::Rename { from: rig.path("a"), to: rig.path("b") }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert_eq!(error.path(), rig.path("b"));
    // A folder moves with what is in it.
    rig.run(Op::CreateFolder { path: rig.path("f") }).unwrap();
    rig.create("f/x", FileMode::Buffered);
    rig.run(Op::Rename { from: rig.path("f"), to: rig.path("g") }).unwrap();
    assert_eq!(rig.names(rig.path("g")), ["x"]);
}

fn unlinked_files_stay_readable(rig: &mut Rig) {
    let file = rig.create("a", FileMode::Direct);
    let bytes = pattern(9, 8192);
    rig.run(write(&file, 0, &bytes)).unwrap();
    let path = rig.path("a");
    rig.run(Op::Unlink { path: path.clone() }).unwrap();
    assert_eq!(rig.run(Op::Unlink { path: path.clone() }).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(rig.run(Op::Length { path }).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(rig.read(&file, 0, 8192), bytes);
    // The name is free again, for another file.
    let other = rig.create("a", FileMode::Direct);
    assert_eq!(rig.read(&other, 0, 8192), b"");
    assert_eq!(rig.read(&file, 0, 8192), bytes);
}

fn small_files_come_whole_or_not_at_all(rig: &mut Rig) {
    let path = rig.path("small");
    let bytes = pattern(3, 10_000);
    rig.run(Op::WriteSmall { path: path.clone(), bytes: bytes.clone() }).unwrap();
    let back = rig.run(Op::ReadSmall { path: path.clone(), bytes_max: 10_000 }).unwrap().into_bytes();
    assert_eq!(back, bytes);
    let error = rig.run(Op::ReadSmall { path: path.clone(), bytes_max: 9_999 }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    let error = rig.run(Op::WriteSmall { path: path.clone(), bytes: b"other".to_vec() }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    let back = rig.run(Op::ReadSmall { path, bytes_max: 10_000 }).unwrap().into_bytes();
    assert_eq!(back, bytes);
    let empty = rig.path("empty");
    rig.run(Op::WriteSmall { path: empty.clone(), bytes: Vec::new() }).unwrap();
    assert_eq!(rig.run(Op::ReadSmall { path: empty, bytes_max: 0 }).unwrap().into_bytes(), b"");
}

fn lengths_and_space(rig: &mut Rig) {
    let file = rig.create("a", FileMode::Direct);
    let length = |rig: &mut Rig| {
        let by_name = rig.run(Op::Length { path: rig.path("a") }).unwrap().into_length();
        let by_file = rig.run(Op::LengthOf { file: file.clone() }).unwrap().into_length();
        assert_eq!(by_name, by_file);
        by_name
    };
    assert_eq!(length(rig), 0);
    rig.run(Op::Allocate { file: file.clone(), bytes: 0 }).unwrap();
    rig.run(Op::Allocate { file: file.clone(), bytes: 1 << 20 }).unwrap();
    rig.run(Op::Allocate { file: file.clone(), bytes: 4096 }).unwrap();
    assert_eq!(length(rig), 0, "allocating leaves the length alone");
    rig.run(Op::SetLength { file: file.clone(), bytes: 12288 }).unwrap();
    assert_eq!(length(rig), 12288);
    let space = rig.run(Op::Space { path: rig.path("") }).unwrap().into_space();
    // Some file systems, ramfs for one, know of no size.
    assert!(space.bytes_free > 0 || space.bytes_total == 0);
    assert!(space.bytes_free <= space.bytes_total);
}

fn a_lock_is_held_once(rig: &mut Rig) {
    let path = rig.path("lock");
    let error = rig.run(Op::Lock { path: path.clone() }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    rig.run(Op::WriteSmall { path: path.clone(), bytes: b"x".to_vec() }).unwrap();
    let held = rig.run(Op::Lock { path: path.clone() }).unwrap().into_file();
    let error = rig.run(Op::Lock { path: path.clone() }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    drop(held);
    rig.run(Op::Lock { path }).unwrap().into_file();
}

fn many_files_are_looked_at_at_once(rig: &mut Rig) {
    for (name, bytes) in [("one", &b"first"[..]), ("two", b""), ("three", b"the third")] {
        rig.run(Op::WriteSmall { path: rig.path(name), bytes: bytes.to_vec() }).unwrap();
    }
    let folder = rig.path("");
    let names: Vec<_> = ["one", "two", "missing", "three"].map(Into::into).into();
    let mut look = |part| {
        let op = Op::Look { folder: folder.clone(), names: names.clone(), part };
        let looks = rig.run(op).unwrap().into_looks();
        looks
            .into_iter()
            .map(|look| match look {
                Ok(look) => Ok((look.length, String::from_utf8(look.bytes).unwrap())),
                Err(error) => Err(error.kind()),
            })
            .collect::<Vec<_>>()
    };
    let ok = |length, text: &str| Ok((length, text.to_owned()));
    let missing = Err(io::ErrorKind::NotFound);
    assert_eq!(look(Part::End { bytes: 5 }), [ok(5, "first"), ok(0, ""), missing.clone(), ok(9, "third")]);
    let too_large = Err(io::ErrorKind::FileTooLarge);
    assert_eq!(look(Part::Whole { bytes_max: 8 }), [ok(5, "first"), ok(0, ""), missing, too_large]);
}

fn errors_name_verb_and_path(rig: &mut Rig) {
    let path = rig.path("missing");
    let named = [
        (Op::OpenFile { path: path.clone(), mode: FileMode::Direct }, "open"),
        (Op::Unlink { path: path.clone() }, "unlink"),
        (Op::RemoveFolder { path: path.clone() }, "remove folder"),
        (Op::ReadSmall { path: path.clone(), bytes_max: 1 }, "read"),
        (Op::List { path: path.clone() }, "list"),
        (Op::Space { path: path.clone() }, "ask for the space of"),
    ];
    for (op, verb) in named {
        let error = rig.run(op).unwrap_err();
        assert_eq!((error.verb(), error.path(), error.kind()), (verb, &*path, io::ErrorKind::NotFound));
    }
}

fn closed_files_are_let_go(rig: &mut Rig) {
    let file = rig.create("a", FileMode::Buffered);
    let weak = Arc::downgrade(&file);
    rig.run(Op::Close { file }).unwrap();
    assert!(weak.upgrade().is_none(), "nothing else holds it");
}

/// Set in a child of this test binary in which io_uring is forbidden.
const FORBIDDEN: &str = "PELTON_TEST_WITHOUT_IO_URING";

/// Where io_uring is forbidden the automatic choice is threads, and one line says why.
#[test]
fn auto_takes_what_the_system_allows() {
    let choice = EngineKind::Auto.choose().unwrap();
    match EngineKind::Uring.choose() {
        Ok(_) => {
            assert_eq!((choice.name(), choice.reason()), ("uring", None));
            assert!(std::env::var_os(FORBIDDEN).is_none(), "the filter forbids nothing");
        }
        Err(reason) => {
            assert_eq!(choice.name(), "threads");
            assert_eq!(choice.reason(), Some(reason.clone()));
            assert_eq!(reason.lines().count(), 1);
            if std::env::var_os(FORBIDDEN).is_some() {
                assert!(reason.contains("seccomp"), "{reason}");
            }
        }
    }
}

/// The spindle's tests pass where io_uring is forbidden.
///
/// Method: run them again in a child of this binary, under a seccomp filter that only the child has.
#[test]
fn with_io_uring_forbidden_everything_passes_on_threads() {
    if std::env::var_os(FORBIDDEN).is_some() {
        return; // This is the child. The other tests are what it is for.
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.arg("spindle::").env(FORBIDDEN, "1");
    crate::sys::forbid_io_uring(&mut child);
    let output = child.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("auto_takes_what_the_system_allows ... ok"), "{told}");
}

//! The engine on io_uring, and the memory that a kernel may read and fill on its own.
//!
//! What goes through the ring: direct reads and writes, and syncs. Everything else is a plain system
//! call on the impeller's thread, buffered writes too, since those are slower through a ring than by
//! `pwrite`. What is queued in the ring is submitted first, so that the disk has work meanwhile.
//!
//! Buffers are not registered: the limit on locked memory that ordinary users have holds a single piece.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::event::EventfdFlags;

use super::threads::{aligned_progress, perform, write_zero};
use super::{Bell, Engine, Finished, Op, Outcome, Subject};
use crate::spindle::file::{DIRECT_ALIGNMENT, FileMode, SpindleFile};

/// Stands for the bell among the completions. Operations count from zero and never get here.
const BELL_TOKEN: u64 = u64::MAX;

/// One request's bytes at most: whole pages, and below the kernel's own limit of 2 GiB less a page.
const REQUEST_BYTES_MAX: usize = 1 << 30;

/// How long to wait before asking a kernel again that had no memory for a request.
const RETRY_WAIT: Duration = Duration::from_millis(1);

/// See the module.
///
/// Invariant: whatever the kernel may still touch is owned by `flights`, and leaves it only after the
/// request's completion was seen.
pub(crate) struct UringEngine {
    ring: IoUring,
    flights: HashMap<u64, Flight>,
    finished: VecDeque<Finished>,
    bell: Arc<OwnedFd>,
    /// Whether the ring is watching the bell.
    bell_watched: bool,
    bell_rang: bool,
}

/// An operation that the ring has.
struct Flight {
    file: Arc<SpindleFile>,
    subject: Subject,
    cargo: Cargo,
}

/// The memory of an operation, and how far it is.
enum Cargo {
    Write { bytes: Box<dyn IoBytes>, offset: u64, done: usize, len: usize },
    Read { room: Box<dyn IoRoom>, offset: u64, done: usize, len: usize },
    Sync,
}

/// What a completion means for its operation.
enum Step {
    /// There is more to transfer.
    Again,
    End(io::Result<()>),
}

impl UringEngine {
    /// Makes a ring for this many operations, for the thread that calls.
    pub(crate) fn new(depth: usize) -> io::Result<UringEngine> {
        let entries = u32::try_from(depth + 1).unwrap_or(u32::MAX); // One more for the bell.
        let ring = make_ring(entries)?;
        let bell = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(UringEngine {
            ring,
            flights: HashMap::new(),
            finished: VecDeque::new(),
            bell,
            bell_watched: false,
            bell_rang: false,
        })
    }

    /// Looks whether io_uring can be used here, and says in one line why not.
    pub(crate) fn probe() -> Result<(), String> {
        try_ring().map_err(|error| {
            let why = match error.raw_os_error() {
                Some(libc::ENOSYS) => "this kernel does not have it",
                Some(libc::EPERM | libc::EACCES) if switched_off() => "kernel.io_uring_disabled is set",
                Some(libc::EPERM | libc::EACCES) => "a seccomp filter or another policy forbids it",
                Some(libc::ENOMEM) => "the limit on locked memory is too low",
                _ => "the kernel refuses it",
            };
            format!("{why} ({error})")
        })
    }

    fn launch(&mut self, token: u64, file: Arc<SpindleFile>, subject: Subject, cargo: Cargo) {
        self.flights.insert(token, Flight { file, subject, cargo });
        self.request(token);
    }

    /// Puts the next request of a flight into the ring. The kernel sees it at the next submission.
    fn request(&mut self, token: u64) {
        let flight = self.flights.get_mut(&token).expect("a request belongs to a flight");
        let fd = types::Fd(flight.file.as_raw_fd());
        let entry = match &mut flight.cargo {
            Cargo::Write { bytes, offset, done, len } => {
                let part = &bytes.bytes()[*done..*len];
                let len = part.len().min(REQUEST_BYTES_MAX) as u32; // 2^30 at most.
                opcode::Write::new(fd, part.as_ptr(), len).offset(*offset + *done as u64).build()
            }
            Cargo::Read { room, offset, done, len } => {
                let part = &mut room.room()[*done..*len];
                let len = part.len().min(REQUEST_BYTES_MAX) as u32;
                opcode::Read::new(fd, part.as_mut_ptr(), len).offset(*offset + *done as u64).build()
            }
            Cargo::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        let entry = entry.user_data(token);
        loop {
            // SAFETY: what the entry points to must stay valid until its completion was seen.
            // - The memory: a part of the cargo, which stays mapped, unmoved and untouched by others
            //   for as long as its box lives (the contract of `IoBytes` and `IoRoom`). The box is in
            //   `flights` and leaves it in `complete`, after the completion, or never: `drop` leaks.
            // - The range: `part` was cut with bounds checked, and `len` is at most its length.
            // - The descriptor: `flight.file` keeps it open, in the same flight.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.submit(0); // The submission queue was full; handing it over empties it.
        }
    }

    /// Hands the kernel what is in the submission queue, and waits for this many completions.
    ///
    /// There is no error: a request that the kernel did not take stays in the queue, and its memory
    /// with its flight. Answering it with an error now and submitting it later by accident would let
    /// the kernel write to memory that is somebody else's by then.
    fn submit(&mut self, completions: usize) {
        match self.ring.submit_and_wait(completions) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            // EAGAIN and ENOMEM pass; EBUSY asks to look at completions first, as the caller does.
            Err(_) => thread::sleep(RETRY_WAIT),
        }
    }

    fn watch_bell(&mut self) {
        let entry = opcode::PollAdd::new(types::Fd(self.bell.as_raw_fd()), libc::POLLIN as u32).build();
        let entry = entry.user_data(BELL_TOKEN);
        // SAFETY: the entry points to no memory. The descriptor lives as long as the engine, and a
        // poll of a closed one could do no harm: the kernel holds the file itself.
        self.bell_watched = unsafe { self.ring.submission().push(&entry) }.is_ok();
    }

    fn reap(&mut self) {
        loop {
            // Taken out one by one, since looking at a completion may put a new request in.
            let Some(entry) = self.ring.completion().next() else { return };
            match entry.user_data() {
                BELL_TOKEN => {
                    self.bell_watched = false;
                    self.bell_rang = true;
                    let _ = rustix::io::read(&*self.bell, &mut [0; 8]); // Silences it.
                }
                token => self.complete(token, entry.result()),
            }
        }
    }

    fn complete(&mut self, token: u64, result: i32) {
        let flight = self.flights.get_mut(&token).expect("a completion belongs to a flight");
        match flight.step(result) {
            Step::Again => self.request(token),
            Step::End(end) => {
                let flight = self.flights.remove(&token).expect("it was there a line ago");
                let subject = flight.subject;
                let result = match end {
                    Ok(()) => Ok(flight.cargo.outcome()),
                    Err(source) => Err(subject.failed(source)),
                };
                self.finished.push_back((token, result));
            }
        }
    }
}

impl Engine for UringEngine {
    fn start(&mut self, token: u64, op: Op) {
        assert!(token != BELL_TOKEN, "operations count from zero");
        let subject = op.subject();
        match op {
            Op::Write { file, offset, bytes, len } if file.mode() == FileMode::Direct && len > 0 => {
                assert!(len <= bytes.bytes().len(), "a write has its bytes");
                self.launch(token, file, subject, Cargo::Write { bytes, offset, done: 0, len });
            }
            Op::Read { file, offset, mut room, len } if file.mode() == FileMode::Direct && len > 0 => {
                assert!(len <= room.room().len(), "a read has room for its bytes");
                self.launch(token, file, subject, Cargo::Read { room, offset, done: 0, len });
            }
            Op::SyncData { file } => self.launch(token, file, subject, Cargo::Sync),
            op => {
                self.submit(0); // The disk works on these while this thread is in its system call.
                let result = perform(op);
                self.finished.push_back((token, result));
            }
        }
    }

    fn poll(&mut self, wait: bool, done: &mut Vec<Finished>) {
        self.bell_rang = false;
        self.reap();
        loop {
            let may_wait = wait && self.finished.is_empty() && !self.flights.is_empty() && !self.bell_rang;
            if may_wait && !self.bell_watched {
                self.watch_bell();
            }
            self.submit(usize::from(may_wait));
            self.reap();
            if !wait || !self.finished.is_empty() || self.flights.is_empty() || self.bell_rang {
                break;
            }
        }
        if !self.ring.submission().is_empty() {
            self.submit(0); // The rest of what a short transfer left.
        }
        done.extend(self.finished.drain(..));
    }

    fn in_flight(&self) -> usize {
        self.flights.len() + self.finished.len()
    }

    fn has_finished(&self) -> bool {
        !self.finished.is_empty()
    }

    fn bell(&self) -> Option<Bell> {
        let bell = self.bell.clone();
        Some(Arc::new(move || {
            // It can only fail when it has rung 2^64 times unheard, which is loud enough.
            let _ = rustix::io::write(&*bell, &1u64.to_ne_bytes());
        }))
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        // An impeller ends when nothing is under way, so this is what a bug of ours left. The kernel may
        // touch the memory long after the ring is gone: it is given up instead of given back.
        for (_, flight) in self.flights.drain() {
            mem::forget(flight);
        }
    }
}

impl Flight {
    /// What the kernel's answer means. Negative answers are error numbers.
    fn step(&mut self, result: i32) -> Step {
        let Ok(count) = usize::try_from(result) else {
            let error = io::Error::from_raw_os_error(-result);
            return match (&self.cargo, error.raw_os_error()) {
                // The first answer to a sync is the only true one.
                (Cargo::Sync, _) => Step::End(Err(error)),
                (_, Some(libc::EINTR | libc::EAGAIN)) => Step::Again,
                _ => Step::End(Err(error)),
            };
        };
        let mode = self.file.mode();
        match &mut self.cargo {
            Cargo::Sync => Step::End(Ok(())),
            Cargo::Write { done, len, .. } => {
                let reached = aligned_progress(mode, *done + count, *len);
                if reached <= *done {
                    return Step::End(Err(write_zero()));
                }
                *done = reached;
                if *done < *len { Step::Again } else { Step::End(Ok(())) }
            }
            Cargo::Read { done, len, .. } => {
                *done += count;
                let ended = count == 0 || aligned_progress(mode, *done, *len) < *done;
                if ended || *done == *len { Step::End(Ok(())) } else { Step::Again }
            }
        }
    }
}

impl Cargo {
    fn outcome(self) -> Outcome {
        match self {
            Cargo::Write { bytes, .. } => Outcome::Written(bytes),
            Cargo::Read { room, done, .. } => Outcome::ReadBack { room, len: done },
            Cargo::Sync => Outcome::Done,
        }
    }
}

/// A ring for the thread that calls, with what newer kernels do better where they can.
fn make_ring(entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::<squeue::Entry>::builder();
    builder.setup_clamp().dontfork();
    // One thread submits and reaps, so the kernel need not interrupt it (6.1 and later).
    let newer = builder.clone().setup_single_issuer().setup_defer_taskrun().build(entries);
    match newer {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder.build(entries),
        ring => ring,
    }
}

/// Everything that the engine will ask of a ring, once: a filter may allow one call and not the next.
fn try_ring() -> io::Result<()> {
    let mut ring = make_ring(2)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    for code in [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE, opcode::PollAdd::CODE] {
        if !probe.is_supported(code) {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
    }
    // SAFETY: the entry points to nothing.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.expect("a new ring has room for one");
    ring.submit_and_wait(1)?;
    Ok(())
}

fn switched_off() -> bool {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() != "0")
}

/// Bytes for the disk. The operation owns them until it is done.
///
/// # Safety
///
/// The kernel reads them while no Rust code looks, so until the value is dropped:
///
/// - `bytes` answers with the same address and length every time.
/// - The bytes stay mapped and do not change.
/// - They do not lie inside the value itself: moving the value, or its box, does not touch them.
pub(crate) unsafe trait IoBytes: Send + 'static {
    /// The bytes.
    fn bytes(&self) -> &[u8];

    /// Whether the memory stays when the operation is done, since somebody else has it too and pays for it.
    /// Then a full queue is no reason to hold the submitter up: waiting would free nothing.
    fn stays(&self) -> bool {
        false
    }

    /// Back to the type that its maker knows.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

/// Room for bytes from the disk. The operation owns it until it is done.
///
/// # Safety
///
/// The kernel writes to it while no Rust code looks, so until the value is dropped:
///
/// - `room` answers with the same address and length every time.
/// - The room stays mapped and writable, and nobody else reads or writes it.
/// - It does not lie inside the value itself: moving the value, or its box, does not touch it.
pub(crate) unsafe trait IoRoom: Send + 'static {
    /// The room.
    fn room(&mut self) -> &mut [u8];

    /// Back to the type that its maker knows.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

/// A small piece of ordinary memory on a page boundary, for probes, headers and tests.
///
/// Images and pieces come from the arena and its budget instead.
#[derive(Debug)]
pub(crate) struct PageBuffer {
    // Longer than asked for, so that a page boundary lies in it. Never grown, so never moved.
    memory: Box<[u8]>,
    start: usize,
    len: usize,
}

impl PageBuffer {
    /// Zeros.
    pub(crate) fn zeroed(len: usize) -> PageBuffer {
        let memory = vec![0; len + DIRECT_ALIGNMENT].into_boxed_slice();
        let start = memory.as_ptr().align_offset(DIRECT_ALIGNMENT);
        assert!(start <= DIRECT_ALIGNMENT, "bytes can be stepped over one by one");
        PageBuffer { memory, start, len }
    }

    /// A copy of the bytes.
    pub(crate) fn copied(bytes: &[u8]) -> PageBuffer {
        let mut buffer = PageBuffer::zeroed(bytes.len());
        buffer.as_mut().copy_from_slice(bytes);
        buffer
    }
}

impl AsRef<[u8]> for PageBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..][..self.len]
    }
}

impl AsMut<[u8]> for PageBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.len]
    }
}

// SAFETY:
// - Same address and length: `memory` is never replaced or grown, `start` and `len` never change.
// - Mapped and unchanged: the heap block lives as long as the value, and writing to it takes
//   `&mut PageBuffer`, which nobody has while the operation owns the box.
// - Not inside: the bytes are on the heap, behind a pointer.
unsafe impl IoBytes for PageBuffer {
    fn bytes(&self) -> &[u8] {
        self.as_ref()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

// SAFETY: as for `IoBytes`; and nobody else has the block, since a `PageBuffer` owns it alone.
unsafe impl IoRoom for PageBuffer {
    fn room(&mut self) -> &mut [u8] {
        self.as_mut()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(mode: FileMode, cargo: Cargo) -> Flight {
        let (reader, _) = io::pipe().unwrap();
        let file = Arc::new(SpindleFile::new(reader.into(), "a".into(), mode));
        let subject = Op::SyncData { file: file.clone() }.subject();
        Flight { file, subject, cargo }
    }

    fn write(done: usize) -> Cargo {
        Cargo::Write { bytes: Box::new(PageBuffer::zeroed(16384)), offset: 0, done, len: 16384 }
    }

    fn read(done: usize) -> Cargo {
        Cargo::Read { room: Box::new(PageBuffer::zeroed(16384)), offset: 0, done, len: 16384 }
    }

    /// What an answer leads to: how far the operation is, or how it ended.
    fn step(cargo: Cargo, result: i32) -> Result<usize, Result<(), io::ErrorKind>> {
        let mut flight = flight(FileMode::Direct, cargo);
        match flight.step(result) {
            Step::End(end) => Err(end.map_err(|error| error.kind())),
            Step::Again => match flight.cargo {
                Cargo::Write { done, .. } | Cargo::Read { done, .. } => Ok(done),
                Cargo::Sync => Ok(0),
            },
        }
    }

    /// Kernels rarely write short, so this is told the answers of one that does.
    #[test]
    fn short_transfers_go_on_at_a_block() {
        assert_eq!(step(write(0), 16384), Err(Ok(())));
        assert_eq!(step(write(0), 4096), Ok(4096));
        assert_eq!(step(write(4096), 5000), Ok(8192));
        assert_eq!(step(write(4096), 1000), Err(Err(io::ErrorKind::WriteZero)));
        assert_eq!(step(write(0), 0), Err(Err(io::ErrorKind::WriteZero)));
        assert_eq!(step(read(0), 8192), Ok(8192));
        assert_eq!(step(read(8192), 0), Err(Ok(())), "the end of the file");
        assert_eq!(step(read(0), 5000), Err(Ok(())), "the end of the file, within a block");
        assert_eq!(step(read(8192), 8192), Err(Ok(())));
    }

    /// What passes is tried again, but never a sync: its first error is final.
    #[test]
    fn a_sync_is_never_repeated() {
        assert_eq!(step(write(4096), -libc::EINTR), Ok(4096));
        assert_eq!(step(read(4096), -libc::EAGAIN), Ok(4096));
        assert_eq!(step(write(0), -libc::ENOSPC), Err(Err(io::ErrorKind::StorageFull)));
        assert_eq!(step(Cargo::Sync, -libc::EINTR), Err(Err(io::ErrorKind::Interrupted)));
        assert_eq!(step(Cargo::Sync, 0), Err(Ok(())));
    }

    /// An engine that is dropped with requests under way gives up their memory instead of giving it back.
    #[test]
    fn memory_under_way_is_never_given_back() {
        let Ok(mut engine) = UringEngine::new(2) else {
            eprintln!("skipped, io_uring cannot be used here: {}", UringEngine::probe().unwrap_err());
            return;
        };
        let (reader, mut writer) = io::pipe().unwrap();
        let file = Arc::new(SpindleFile::new(reader.into(), "a pipe".into(), FileMode::Direct));
        let weak = Arc::downgrade(&file);
        let room = Box::new(PageBuffer::zeroed(4096));
        engine.start(0, Op::Read { file, offset: 0, room, len: 4096 });
        engine.poll(false, &mut Vec::new());
        drop(engine);
        assert!(weak.upgrade().is_some(), "the flight is kept for ever");
        let _ = io::Write::write_all(&mut writer, b"nobody reads this");
    }
}

//! A disk that fails as told, for tests.
//!
//! Time is virtual and one seed decides everything else: which of the operations under way ends first,
//! and what is left after the power was lost. Driven by one thread that waits for each operation, or
//! through the engine itself, the same seed gives the same run.
//!
//! What it knows about disks, and tests rely on:
//!
//! - Bytes are safe only after a sync of their file, names only after a sync of their folder. Until then
//!   each page is kept, lost or torn by sectors, and each change of a name is kept or lost, by itself.
//!   A rename is kept or lost as a whole.
//! - A sync that fails does so once. The pages count as clean from then on: the next sync answers that
//!   all is well, what is mapped still looks right, and [`SimDisk::reclaim`] shows what was lost.
//! - Space is taken by allocating and by writing, and given back with the last name and descriptor.
//! - An operation may never end.
//!
//! Each file is backed by a memfd, so that its descriptor can be mapped.
//!
//! What a power loss may leave is derived from [`cut`]s, which an observer gets after each operation: so one
//! run gives as many states as one likes. [`mistakes`] are those that a commit might make.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;

use super::threads::{aligned_progress, write_zero};
use super::{Bell, Engine, Entry, EntryKind, Finished, Look, Op, Outcome, Space};
use crate::spindle::file::{DIRECT_ALIGNMENT, FileMode, SpindleFile};

pub(crate) mod cut;
pub(crate) mod mistakes;

use cut::Observer;
use mistakes::Mistake;

const PAGE: u64 = 4096;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

type PageBytes = Arc<[u8; PAGE as usize]>;
type NodeId = u64;

const ROOT: NodeId = 0;

/// The disk. Clones are the same disk; engines of several threads may share one.
#[derive(Clone)]
pub(crate) struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The disk was let go, or a bell rang.
    changed: Condvar,
}

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) when: When,
    pub(crate) what: Failure,
}

/// Which operations a fault is for. Counts start at zero.
#[derive(Clone, Debug)]
pub(crate) enum When {
    /// The operation with this number, of all that the disk has done.
    Op(u64),
    /// The n-th with this verb (see [`Op::verb`]).
    Nth(&'static str, u64),
    /// All with this verb.
    Every(&'static str),
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The operation is not done and answers this.
    Error(Errno),
    /// The first system call of a read or write transfers this many bytes at most.
    Short(usize),
    /// It takes this much longer.
    Delay(Duration),
    /// It does not end before [`SimDisk::let_go`], while others do: a request lost in a ring.
    Hang,
    /// The thread that does it stands still until [`SimDisk::let_go`], as in a system call.
    HangThread,
    /// Nothing of what is not yet durable gets to the disk; the sync says so, this once.
    Writeback(Errno),
}

struct State {
    root: PathBuf,
    rng: Rng,
    now: Duration,
    in_real_time: bool,
    ops: u64,
    verbs: HashMap<&'static str, u64>,
    faults: Vec<Fault>,
    power_lost_at: Option<u64>,
    powered: bool,
    /// Whether hanging is over.
    let_go: bool,
    bytes_total: u64,
    nodes: BTreeMap<NodeId, Node>,
    node_next: NodeId,
    /// Which node a descriptor belongs to, by the number that its memfd has as a file.
    inodes: HashMap<u64, NodeId>,
    /// Changes of names that no sync has made durable, oldest first.
    changes: Vec<Change>,
    observer: Option<Observer>,
    mistake: Option<Mistake>,
    /// What a mistake has put off.
    put_off: Vec<Op>,
}

enum Node {
    Folder(Folder),
    File(File),
}

#[derive(Default)]
struct Folder {
    live: BTreeMap<OsString, NodeId>,
    durable: BTreeMap<OsString, NodeId>,
}

struct File {
    /// What a running system sees.
    memory: OwnedFd,
    /// What is on the disk, whatever happens. A page that is missing reads zero.
    durable: BTreeMap<u64, PageBytes>,
    durable_length: u64,
    /// Pages that differ from what is durable, or may.
    dirty: BTreeSet<u64>,
    /// Pages that count as clean although the disk never got them.
    lost: BTreeSet<u64>,
    /// Dirty pages as they were when last looked at, unless they have changed since.
    seen: BTreeMap<u64, PageBytes>,
    /// Space: every page before this length, and these beyond.
    allocated: u64,
    pages_beyond: BTreeSet<u64>,
    handles: Vec<Weak<SpindleFile>>,
    lock: Weak<SpindleFile>,
}

/// In which folder, which name, and what it names from then on.
type NameEdit = (NodeId, OsString, Option<NodeId>);

/// Names that change together.
#[derive(Clone)]
struct Change(Vec<NameEdit>);

impl SimDisk {
    /// A disk without faults and with plenty of space, whose folder seems to be at `root`.
    pub(crate) fn healthy(root: impl Into<PathBuf>, seed: u64) -> SimDisk {
        SimDisk::from_state(State {
            root: root.into(),
            rng: Rng(seed),
            now: Duration::ZERO,
            in_real_time: false,
            ops: 0,
            verbs: HashMap::new(),
            faults: Vec::new(),
            power_lost_at: None,
            powered: true,
            let_go: false,
            bytes_total: 1 << 40,
            nodes: BTreeMap::from([(ROOT, Node::Folder(Folder::default()))]),
            node_next: ROOT + 1,
            inodes: HashMap::new(),
            changes: Vec::new(),
            observer: None,
            mistake: None,
            put_off: Vec::new(),
        })
    }

    /// With no more space than this.
    pub(crate) fn with_space(self, bytes_total: u64) -> SimDisk {
        self.state().bytes_total = bytes_total;
        self
    }

    /// With a fault. The first one that fits an operation counts.
    pub(crate) fn with_fault(self, when: When, what: Failure) -> SimDisk {
        self.state().faults.push(Fault { when, what });
        self
    }

    /// Takes all faults away.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }

    /// Losing its power in the middle of operation `op`. From then on everything answers EIO.
    pub(crate) fn losing_power_at(self, op: u64) -> SimDisk {
        self.state().power_lost_at = Some(op);
        self
    }

    /// With virtual time passing for real: for tests of a slow disk.
    pub(crate) fn in_real_time(self) -> SimDisk {
        self.state().in_real_time = true;
        self
    }

    /// How many operations it has begun.
    pub(crate) fn ops(&self) -> u64 {
        self.state().ops
    }

    /// How many with this verb.
    pub(crate) fn ops_of(&self, verb: &str) -> u64 {
        self.state().verbs.get(verb).copied().unwrap_or(0)
    }

    /// The virtual time.
    pub(crate) fn now(&self) -> Duration {
        self.state().now
    }

    /// Ends all hanging, now and later.
    pub(crate) fn let_go(&self) {
        self.state().let_go = true;
        self.shared.changed.notify_all();
    }

    /// Takes all clean pages from memory, as a kernel short of it does: what a failed sync lost shows.
    pub(crate) fn reclaim(&self) {
        for node in self.state().nodes.values_mut() {
            if let Node::File(file) = node {
                file.reclaim();
            }
        }
    }

    /// What is left when the power goes now, or went before: another disk, healthy and without faults.
    pub(crate) fn restart(&self) -> SimDisk {
        SimDisk::from_state(self.state().survivors())
    }

    fn from_state(state: State) -> SimDisk {
        SimDisk { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // After a panic in a test the disk is still good enough to be dropped.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

/// An engine that asks a [`SimDisk`].
pub(crate) struct SimEngine {
    disk: SimDisk,
    /// What ends when. Times are drawn from the seed, so any order is possible.
    pending: BTreeMap<(Duration, u64), Op>,
    hung: Vec<(u64, Op)>,
    finished: VecDeque<Finished>,
    /// Written by whoever rings, read by the engine when it has nothing but hung operations.
    rung: Arc<AtomicBool>,
}

impl SimEngine {
    pub(crate) fn new(disk: SimDisk) -> SimEngine {
        SimEngine {
            disk,
            pending: BTreeMap::new(),
            hung: Vec::new(),
            finished: VecDeque::new(),
            rung: Arc::default(),
        }
    }

    /// Lets time pass until an operation's end, and ends it unless it hangs.
    fn advance(&mut self, (at, token): (Duration, u64), op: Op) {
        let disk = self.disk.clone();
        let mut state = disk.state();
        let failure = state.judge(&op);
        let delay = match failure {
            Some(Failure::Delay(delay)) => delay,
            _ => Duration::ZERO,
        };
        let passed = at.saturating_sub(state.now) + delay;
        state.now += passed;
        if state.in_real_time {
            drop(state);
            thread::sleep(passed);
            state = disk.state();
        }
        match failure {
            Some(Failure::Hang) if !state.let_go => self.hung.push((token, op)),
            Some(Failure::HangThread) => {
                while !state.let_go {
                    state = disk.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                self.end(&mut state, token, op, None);
            }
            failure => self.end(&mut state, token, op, failure),
        }
    }

    fn end(&mut self, state: &mut State, token: u64, mut op: Op, failure: Option<Failure>) {
        let subject = op.subject();
        let result = if state.loses_power_now() {
            // Whatever is under way may have happened, in part or as a whole.
            state.maybe(&mut op);
            for op in self.pending.values_mut() {
                state.maybe(op);
            }
            state.powered = false;
            Err(Errno::IO.into())
        } else if state.powered {
            let result = state.perform_or_blunder(&mut op, failure);
            if cut::changes_the_disk(&op) {
                state.observe(self.pending.values());
            }
            result
        } else {
            Err(Errno::IO.into())
        };
        let result = match result {
            Ok(answer) => Ok(answer.outcome(op)),
            Err(source) => Err(subject.failed(source)),
        };
        self.finished.push_back((token, result));
    }
}

impl Engine for SimEngine {
    fn start(&mut self, token: u64, mut op: Op) {
        match &mut op {
            Op::Write { bytes, len, .. } => assert!(*len <= bytes.bytes().len(), "a write has its bytes"),
            Op::Read { room, len, .. } => assert!(*len <= room.room().len(), "a read has room for its bytes"),
            _ => {}
        }
        let ends_at = self.disk.state().ends_at(&op);
        self.pending.insert((ends_at, token), op);
    }

    fn poll(&mut self, wait: bool, done: &mut Vec<Finished>) {
        while self.finished.is_empty() {
            if let Some((when, op)) = self.pending.pop_first() {
                self.advance(when, op);
                continue;
            }
            if self.hung.is_empty() {
                break;
            }
            let disk = self.disk.clone();
            let mut state = disk.state();
            if state.let_go {
                for (token, op) in std::mem::take(&mut self.hung) {
                    self.end(&mut state, token, op, None);
                }
            } else if self.rung.swap(false, Ordering::Relaxed) || !wait {
                break;
            } else {
                drop(disk.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
            }
        }
        done.extend(self.finished.drain(..));
    }

    fn in_flight(&self) -> usize {
        self.pending.len() + self.hung.len() + self.finished.len()
    }

    fn has_finished(&self) -> bool {
        !self.finished.is_empty()
    }

    fn bell(&self) -> Option<Bell> {
        let (disk, rung) = (self.disk.clone(), self.rung.clone());
        Some(Arc::new(move || {
            let _state = disk.state(); // Not between the engine's look and its wait.
            rung.store(true, Ordering::Relaxed);
            disk.shared.changed.notify_all();
        }))
    }
}

/// What an operation came to, before it gives its memory back.
enum Answer {
    Outcome(Outcome),
    Wrote,
    Read(usize),
}

impl Answer {
    fn outcome(self, op: Op) -> Outcome {
        match (self, op) {
            (Answer::Outcome(outcome), _) => outcome,
            (Answer::Wrote, Op::Write { bytes, .. }) => Outcome::Written(bytes),
            (Answer::Read(len), Op::Read { room, .. }) => Outcome::ReadBack { room, len },
            _ => unreachable!("each operation has its own answer"),
        }
    }
}

impl State {
    /// Draws when an operation that starts now will end: 50 to 150 us, and a gigabyte each second.
    fn ends_at(&mut self, op: &Op) -> Duration {
        let transfer = Duration::from_nanos(op.bytes_held());
        self.now + transfer + Duration::from_micros(50 + self.rng.below(100))
    }

    /// Counts an operation and says what goes wrong with it.
    fn judge(&mut self, op: &Op) -> Option<Failure> {
        let number = self.ops;
        self.ops += 1;
        let of_verb = self.verbs.entry(op.verb()).or_default();
        let nth = *of_verb;
        *of_verb += 1;
        let fault = self.faults.iter().find(|fault| match fault.when {
            When::Op(op) => op == number,
            When::Nth(verb, count) => verb == op.verb() && count == nth,
            When::Every(verb) => verb == op.verb(),
        });
        fault.map(|fault| fault.what.clone())
    }

    fn loses_power_now(&self) -> bool {
        // `judge` has counted the operation already.
        self.powered && self.power_lost_at.is_some_and(|op| self.ops > op)
    }

    /// Does an operation or not, or a part of it, as may be when the power goes.
    fn maybe(&mut self, op: &mut Op) {
        match op {
            // All of it is in the cache then, and the cache's pages are lost one by one.
            Op::Write { .. } => drop(self.perform(op, None)),
            Op::WriteSmall { path, bytes } => {
                let part = self.rng.below(bytes.len() as u64 + 1) as usize;
                let (path, bytes) = (path.clone(), bytes[..part].to_vec());
                let _ = self.create(&path, FileMode::Buffered).and_then(|file| {
                    let id = self.node_of(&file)?;
                    self.write(id, &file, &bytes, 0, None)
                });
            }
            op if self.rng.coin() => drop(self.perform(op, None)),
            _ => {}
        }
    }

    fn perform(&mut self, op: &mut Op, failure: Option<Failure>) -> io::Result<Answer> {
        if let Some(Failure::Error(errno)) = failure {
            return Err(errno.into());
        }
        let short = match failure {
            Some(Failure::Short(bytes)) => Some(bytes),
            _ => None,
        };
        let broken = match failure {
            Some(Failure::Writeback(errno)) => Some(errno),
            _ => None,
        };
        let outcome = match op {
            Op::CreateFolder { path } => {
                let (parent, name) = self.free_name(path)?;
                let id = self.add(Node::Folder(Folder::default()));
                self.change(vec![(parent, name, Some(id))]);
                Outcome::Done
            }
            Op::SyncFolder { path } => {
                let id = self.find_folder(path)?;
                self.sync_folder(id);
                self.forget_unnamed();
                Outcome::Done
            }
            Op::RemoveFolder { path } => {
                let (parent, name) = self.place(path)?;
                let id = self.find_folder(path)?;
                if !self.folder(id)?.live.is_empty() {
                    return Err(Errno::NOTEMPTY.into());
                }
                self.change(vec![(parent, name, None)]);
                Outcome::Done
            }
            Op::List { path } => {
                let id = self.find_folder(path)?;
                let entries = self.folder(id)?.live.iter().map(|(name, id)| Entry {
                    name: name.clone(),
                    kind: match self.nodes[id] {
                        Node::Folder(_) => EntryKind::Folder,
                        Node::File(_) => EntryKind::File,
                    },
                });
                Outcome::Entries(entries.collect())
            }
            Op::CreateFile { path, mode } => Outcome::File(self.create(path, *mode)?),
            Op::OpenFile { path, mode } => {
                let id = self.find_file(path)?;
                Outcome::File(self.handle(id, path, *mode, OFlags::RDONLY)?)
            }
            Op::Allocate { file, bytes } => {
                let id = self.node_of(file)?;
                self.allocate(id, *bytes)?;
                Outcome::Done
            }
            Op::SetLength { file, bytes } => {
                let id = self.node_of(file)?;
                self.file(id)?.set_length(*bytes)?;
                Outcome::Done
            }
            Op::Write { file, offset, bytes, len } => {
                let id = self.node_of(file)?;
                self.write(id, file, &bytes.bytes()[..*len], *offset, short)?;
                return Ok(Answer::Wrote);
            }
            Op::Read { file, offset, room, len } => {
                let len = self.read(file, &mut room.room()[..*len], *offset, short)?;
                return Ok(Answer::Read(len));
            }
            Op::SyncData { file } => {
                let id = self.node_of(file)?;
                self.file(id)?.sync(broken)?;
                Outcome::Done
            }
            Op::Rename { from, to } => {
                let (source, source_name) = self.place(from)?;
                let (target, target_name) = self.place(to)?;
                let id = self.find(from)?;
                if let Ok(replaced) = self.find(to) {
                    match (&self.nodes[&id], &self.nodes[&replaced]) {
                        (Node::File(_), Node::File(_)) => {}
                        (Node::Folder(_), Node::Folder(folder)) if folder.live.is_empty() => {}
                        (Node::Folder(_), Node::Folder(_)) => return Err(Errno::NOTEMPTY.into()),
                        (Node::File(_), Node::Folder(_)) => return Err(Errno::ISDIR.into()),
                        (Node::Folder(_), Node::File(_)) => return Err(Errno::NOTDIR.into()),
                    }
                }
                if (source, &source_name) != (target, &target_name) {
                    self.change(vec![(source, source_name, None), (target, target_name, Some(id))]);
                }
                Outcome::Done
            }
            Op::Unlink { path } => {
                let (parent, name) = self.place(path)?;
                self.find_file(path)?;
                self.change(vec![(parent, name, None)]);
                Outcome::Done
            }
            Op::Length { path } => {
                let id = self.find_file(path)?;
                Outcome::Length(self.file(id)?.length()?)
            }
            Op::LengthOf { file } => {
                let id = self.node_of(file)?;
                Outcome::Length(self.file(id)?.length()?)
            }
            Op::ReadSmall { path, bytes_max } => {
                let id = self.find_file(path)?;
                let length = self.file(id)?.length()?;
                if length > *bytes_max as u64 {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                let file = self.handle(id, path, FileMode::Buffered, OFlags::RDONLY)?;
                let mut bytes = vec![0; length as usize];
                self.read(&file, &mut bytes, 0, short)?;
                Outcome::Bytes(bytes)
            }
            Op::Look { folder, names, part } => {
                let mut look = |name: &PathBuf| {
                    let path = folder.join(name);
                    let id = self.find_file(&path)?;
                    let length = self.file(id)?.length()?;
                    let range = part.range(length)?;
                    let file = self.handle(id, &path, FileMode::Buffered, OFlags::RDONLY)?;
                    let mut bytes = vec![0; (range.end - range.start) as usize];
                    self.read(&file, &mut bytes, range.start, short)?;
                    Ok(Look { length, bytes })
                };
                Outcome::Looks(names.iter().map(&mut look).collect())
            }
            Op::WriteSmall { path, bytes } => {
                let file = self.create(path, FileMode::Buffered)?;
                let id = self.node_of(&file)?;
                let written = self.write(id, &file, bytes, 0, short);
                self.observe([]);
                if let Err(error) = written.and_then(|()| self.file(id)?.sync(broken)) {
                    let (parent, name) = self.place(path)?;
                    self.change(vec![(parent, name, None)]);
                    return Err(error);
                }
                Outcome::Done
            }
            Op::DropCache { file } => {
                let id = self.node_of(file)?;
                self.file(id)?.reclaim();
                Outcome::Done
            }
            Op::Space { path } => {
                self.find(path)?;
                let bytes_free = self.bytes_total.saturating_sub(self.bytes_used());
                Outcome::Space(Space { bytes_total: self.bytes_total, bytes_free })
            }
            Op::Lock { path } => {
                let id = self.find_file(path)?;
                if self.file(id)?.lock.strong_count() > 0 {
                    return Err(Errno::WOULDBLOCK.into());
                }
                let held = self.handle(id, path, FileMode::Buffered, OFlags::RDWR)?;
                self.file(id)?.lock = Arc::downgrade(&held);
                Outcome::File(held)
            }
            Op::Close { file } => {
                // The operation still has the file, and gives it up as soon as it is answered.
                let id = self.node_of(file)?;
                self.file(id)?.handles.retain(|handle| handle.strong_count() > 0);
                Outcome::Done
            }
        };
        Ok(Answer::Outcome(outcome))
    }

    // Names.

    fn find(&self, path: &Path) -> io::Result<NodeId> {
        let inside = path.strip_prefix(&self.root).map_err(|_| io::Error::from(Errno::NOENT))?;
        let mut id = ROOT;
        for component in inside.components() {
            let Component::Normal(name) = component else { return Err(Errno::INVAL.into()) };
            id = *self.folder(id)?.live.get(name).ok_or(Errno::NOENT)?;
        }
        Ok(id)
    }

    fn find_folder(&self, path: &Path) -> io::Result<NodeId> {
        let id = self.find(path)?;
        self.folder(id).map(|_| id)
    }

    fn find_file(&self, path: &Path) -> io::Result<NodeId> {
        let id = self.find(path)?;
        match self.nodes[&id] {
            Node::File(_) => Ok(id),
            Node::Folder(_) => Err(Errno::ISDIR.into()),
        }
    }

    /// The folder that a path is in, and its name there, whether or not it is there.
    fn place(&self, path: &Path) -> io::Result<(NodeId, OsString)> {
        let name = path.file_name().map(OsStr::to_owned).ok_or(Errno::INVAL)?;
        let parent = path.parent().ok_or(Errno::INVAL)?;
        Ok((self.find_folder(parent)?, name))
    }

    fn free_name(&self, path: &Path) -> io::Result<(NodeId, OsString)> {
        let place = self.place(path)?;
        match self.find(path) {
            Ok(_) => Err(Errno::EXIST.into()),
            Err(_) => Ok(place),
        }
    }

    fn folder(&self, id: NodeId) -> io::Result<&Folder> {
        match self.nodes.get(&id) {
            Some(Node::Folder(folder)) => Ok(folder),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    fn change(&mut self, edits: Vec<NameEdit>) {
        for edit in &edits {
            self.apply(edit, |folder| &mut folder.live);
        }
        self.changes.push(Change(edits));
    }

    fn apply(
        &mut self,
        (folder, name, id): &NameEdit,
        names: fn(&mut Folder) -> &mut BTreeMap<OsString, NodeId>,
    ) {
        let Some(Node::Folder(folder)) = self.nodes.get_mut(folder) else { return };
        match id {
            Some(id) => names(folder).insert(name.clone(), *id),
            None => names(folder).remove(name),
        };
    }

    /// Makes the changes in a folder durable, and those before them that were about the same names: a
    /// journal never brings an older change after a newer one.
    fn sync_folder(&mut self, folder: NodeId) {
        let mut names: BTreeSet<(NodeId, OsString)> = BTreeSet::new();
        let (mut due, mut left) = (Vec::new(), Vec::new());
        for change in std::mem::take(&mut self.changes).into_iter().rev() {
            let touches =
                |(at, name, _): &(NodeId, OsString, _)| *at == folder || names.contains(&(*at, name.clone()));
            if change.0.iter().any(touches) {
                names.extend(change.0.iter().map(|(at, name, _)| (*at, name.clone())));
                due.push(change);
            } else {
                left.push(change);
            }
        }
        left.reverse();
        self.changes = left;
        for Change(edits) in due.into_iter().rev() {
            for edit in &edits {
                self.apply(edit, |folder| &mut folder.durable);
            }
        }
    }

    /// Drops the files that have neither a name nor a descriptor any more.
    fn forget_unnamed(&mut self) {
        let mut named: BTreeSet<NodeId> = BTreeSet::new();
        for node in self.nodes.values() {
            if let Node::Folder(folder) = node {
                named.extend(folder.live.values().chain(folder.durable.values()));
            }
        }
        for Change(edits) in &self.changes {
            named.extend(edits.iter().filter_map(|(_, _, id)| *id));
        }
        self.nodes.retain(|id, node| match node {
            Node::Folder(_) => true,
            Node::File(file) => named.contains(id) || file.is_open(),
        });
        self.inodes.retain(|_, id| self.nodes.contains_key(id));
    }

    // Files.

    fn add(&mut self, node: Node) -> NodeId {
        let id = self.node_next;
        self.node_next += 1;
        if let Node::File(file) = &node {
            let stat = rustix::fs::fstat(&file.memory).expect("a memfd can be looked at");
            self.inodes.insert(stat.st_ino, id);
        }
        self.nodes.insert(id, node);
        id
    }

    fn create(&mut self, path: &Path, mode: FileMode) -> io::Result<Arc<SpindleFile>> {
        let (parent, name) = self.free_name(path)?;
        let id = self.add(Node::File(File::empty()?));
        self.change(vec![(parent, name, Some(id))]);
        self.handle(id, path, mode, OFlags::RDWR)
    }

    /// A descriptor of its own, as every open gives one.
    fn handle(
        &mut self,
        id: NodeId,
        path: &Path,
        mode: FileMode,
        flags: OFlags,
    ) -> io::Result<Arc<SpindleFile>> {
        let file = self.file(id)?;
        let memory = format!("/proc/self/fd/{}", file.memory.as_raw_fd());
        let fd = rustix::fs::open(memory, flags | OFlags::CLOEXEC, Mode::empty())?;
        let handle = Arc::new(SpindleFile::new(fd, path.to_owned(), mode));
        file.handles.retain(|handle| handle.strong_count() > 0);
        file.handles.push(Arc::downgrade(&handle));
        Ok(handle)
    }

    fn node_of(&self, file: &SpindleFile) -> io::Result<NodeId> {
        let stat = rustix::fs::fstat(file)?;
        self.inodes.get(&stat.st_ino).copied().ok_or_else(|| Errno::BADF.into())
    }

    fn file(&mut self, id: NodeId) -> io::Result<&mut File> {
        match self.nodes.get_mut(&id) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(Errno::BADF.into()),
        }
    }

    /// The space of all files that have a name or a descriptor.
    fn bytes_used(&self) -> u64 {
        let mut named: BTreeSet<NodeId> = BTreeSet::new();
        for node in self.nodes.values() {
            if let Node::Folder(folder) = node {
                named.extend(folder.live.values());
            }
        }
        let files = self.nodes.iter().filter_map(|(id, node)| match node {
            Node::File(file) if named.contains(id) || file.is_open() => Some(file.space()),
            _ => None,
        });
        files.sum()
    }

    fn allocate(&mut self, id: NodeId, bytes: u64) -> io::Result<()> {
        let free = self.bytes_total.saturating_sub(self.bytes_used());
        let file = self.file(id)?;
        let bytes_paged = bytes.next_multiple_of(PAGE);
        if bytes_paged > file.allocated {
            let had = file.pages_beyond.range(..bytes_paged / PAGE).count() as u64 * PAGE;
            if (bytes_paged - file.allocated).saturating_sub(had) > free {
                return Err(Errno::NOSPC.into());
            }
            file.allocated = bytes_paged;
            file.pages_beyond = file.pages_beyond.split_off(&(bytes_paged / PAGE));
        }
        Ok(())
    }

    /// Writes all bytes, call by call as the other engines do.
    fn write(
        &mut self,
        id: NodeId,
        handle: &SpindleFile,
        bytes: &[u8],
        offset: u64,
        mut short: Option<usize>,
    ) -> io::Result<()> {
        check_aligned(handle, bytes, offset)?;
        let mut written = 0;
        while written < bytes.len() {
            let most = short.take().unwrap_or(usize::MAX).min(bytes.len() - written);
            let count = self.write_call(id, handle, &bytes[written..][..most], offset + written as u64)?;
            let reached = aligned_progress(handle.mode(), written + count, bytes.len());
            if reached <= written {
                return Err(write_zero());
            }
            written = reached;
        }
        Ok(())
    }

    /// One system call: as much as there is space for, or an error if that is nothing.
    fn write_call(
        &mut self,
        id: NodeId,
        handle: &SpindleFile,
        bytes: &[u8],
        offset: u64,
    ) -> io::Result<usize> {
        let mut free = self.bytes_total.saturating_sub(self.bytes_used());
        let file = self.file(id)?;
        let mut fits = bytes.len();
        let pages = offset / PAGE..(offset + bytes.len() as u64).div_ceil(PAGE);
        for page in pages {
            if page * PAGE < file.allocated || file.pages_beyond.contains(&page) {
                continue;
            }
            if free < PAGE {
                fits = (page * PAGE).saturating_sub(offset) as usize;
                break;
            }
            free -= PAGE;
            file.pages_beyond.insert(page);
        }
        if fits == 0 && !bytes.is_empty() {
            return Err(Errno::NOSPC.into());
        }
        let count = rustix::io::pwrite(handle, &bytes[..fits], offset)?;
        for page in offset / PAGE..(offset + count as u64).div_ceil(PAGE) {
            file.dirty.insert(page);
            file.lost.remove(&page);
            file.seen.remove(&page);
        }
        // A kernel writes dirty pages out whenever it likes.
        if self.rng.below(8) == 0 {
            let file = self.file(id)?;
            if let Some(&page) = file.dirty.first() {
                file.write_out(page)?;
            }
        }
        Ok(count)
    }

    fn read(
        &mut self,
        handle: &SpindleFile,
        room: &mut [u8],
        offset: u64,
        mut short: Option<usize>,
    ) -> io::Result<usize> {
        check_aligned(handle, room, offset)?;
        let mut read = 0;
        while read < room.len() {
            let most = short.take().unwrap_or(usize::MAX).min(room.len() - read);
            // A direct read never ends within a block before the end of the file.
            let most = aligned_progress(handle.mode(), read + most, room.len()) - read;
            if most == 0 {
                continue; // Too short to count. The next call is not.
            }
            match rustix::io::pread(handle, &mut room[read..][..most], offset + read as u64)? {
                0 => break,
                count => read += count,
            }
        }
        Ok(read)
    }

    // Without power.

    /// What another system finds on the disk.
    fn survivors(&mut self) -> State {
        for Change(edits) in std::mem::take(&mut self.changes) {
            if self.rng.coin() {
                for edit in &edits {
                    self.apply(edit, |folder| &mut folder.durable);
                }
            }
        }
        let mut fresh = State {
            root: self.root.clone(),
            rng: Rng(self.rng.next()),
            now: self.now,
            in_real_time: self.in_real_time,
            ops: 0,
            verbs: HashMap::new(),
            faults: Vec::new(),
            power_lost_at: None,
            powered: true,
            let_go: false,
            bytes_total: self.bytes_total,
            nodes: BTreeMap::new(),
            node_next: self.node_next,
            inodes: HashMap::new(),
            changes: Vec::new(),
            observer: None,
            mistake: None,
            put_off: Vec::new(),
        };
        let mut reached = vec![ROOT];
        while let Some(id) = reached.pop() {
            let node = match &self.nodes[&id] {
                Node::Folder(folder) => {
                    reached.extend(folder.durable.values());
                    Node::Folder(Folder { live: folder.durable.clone(), durable: folder.durable.clone() })
                }
                Node::File(file) => {
                    let file = file.survivor(&mut self.rng).expect("a memfd can be made and filled");
                    let stat = rustix::fs::fstat(&file.memory).expect("a memfd can be looked at");
                    fresh.inodes.insert(stat.st_ino, id);
                    Node::File(file)
                }
            };
            fresh.nodes.insert(id, node);
        }
        // This disk is gone for whoever still holds it, and what they did later must not count.
        self.powered = false;
        fresh
    }
}

impl File {
    fn empty() -> io::Result<File> {
        Ok(File {
            memory: rustix::fs::memfd_create("pelton-sim", MemfdFlags::CLOEXEC)?,
            durable: BTreeMap::new(),
            durable_length: 0,
            dirty: BTreeSet::new(),
            lost: BTreeSet::new(),
            seen: BTreeMap::new(),
            allocated: 0,
            pages_beyond: BTreeSet::new(),
            handles: Vec::new(),
            lock: Weak::new(),
        })
    }

    fn length(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.memory)?.st_size as u64) // Never negative.
    }

    /// Cutting is no more durable than writing: until the next sync the old end may come back.
    fn set_length(&mut self, bytes: u64) -> io::Result<()> {
        rustix::fs::ftruncate(&self.memory, bytes)?;
        let whole_pages = bytes / PAGE;
        self.seen.retain(|&page, _| page < whole_pages);
        self.dirty.extend(self.durable.range(whole_pages..).map(|(&page, _)| page));
        let pages = bytes.div_ceil(PAGE);
        self.allocated = self.allocated.min(pages * PAGE);
        self.pages_beyond.retain(|&page| page < pages);
        self.lost.retain(|&page| page < pages);
        Ok(())
    }

    fn space(&self) -> u64 {
        self.allocated + self.pages_beyond.len() as u64 * PAGE
    }

    fn is_open(&self) -> bool {
        self.handles.iter().any(|handle| handle.strong_count() > 0)
    }

    fn page(&self, page: u64) -> io::Result<PageBytes> {
        let mut bytes = [0; PAGE as usize];
        rustix::io::pread(&self.memory, &mut bytes[..], page * PAGE)?; // Zeros after the end.
        Ok(Arc::new(bytes))
    }

    /// Brings one page to the disk. Its length comes with the next sync.
    fn write_out(&mut self, page: u64) -> io::Result<()> {
        let bytes = self.page(page)?;
        self.durable.insert(page, bytes);
        self.dirty.remove(&page);
        self.seen.remove(&page);
        Ok(())
    }

    fn sync(&mut self, broken: Option<Errno>) -> io::Result<()> {
        if let Some(errno) = broken {
            self.lost.append(&mut self.dirty);
            return Err(errno.into());
        }
        while let Some(&page) = self.dirty.first() {
            self.write_out(page)?;
        }
        self.durable_length = self.length()?;
        self.durable.split_off(&self.durable_length.div_ceil(PAGE));
        Ok(())
    }

    /// Reads what counts as clean from the disk again.
    fn reclaim(&mut self) {
        let length = self.length().expect("a memfd can be looked at");
        for page in std::mem::take(&mut self.lost) {
            let zeros = [0; PAGE as usize];
            let bytes = self.durable.get(&page).map_or(&zeros[..], |bytes| &bytes[..]);
            let len = length.saturating_sub(page * PAGE).min(PAGE) as usize;
            let written = rustix::io::pwrite(&self.memory, &bytes[..len], page * PAGE);
            assert_eq!(written, Ok(len), "a memfd can be written");
        }
    }

    /// The file as it is after the power was lost.
    fn survivor(&self, rng: &mut Rng) -> io::Result<File> {
        let mut pages = self.durable.clone();
        for &page in &self.dirty {
            let bytes = self.page(page)?;
            match rng.below(3) {
                0 => {}
                1 => drop(pages.insert(page, bytes)),
                _ => {
                    let torn = pages.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize]));
                    for (old, new) in Arc::make_mut(torn).chunks_mut(SECTOR).zip(bytes.chunks(SECTOR)) {
                        if rng.coin() {
                            old.copy_from_slice(new);
                        }
                    }
                }
            }
        }
        let length = if rng.coin() { self.length()? } else { self.durable_length };
        File::durable(&pages, length)
    }

    /// A file that has been on the disk for long.
    fn durable(pages: &BTreeMap<u64, PageBytes>, length: u64) -> io::Result<File> {
        let mut file = File::empty()?;
        rustix::fs::ftruncate(&file.memory, length)?;
        let pages = pages.range(..length.div_ceil(PAGE));
        for (&page, bytes) in pages.clone() {
            let len = (length - page * PAGE).min(PAGE) as usize;
            rustix::io::pwrite(&file.memory, &bytes[..len], page * PAGE)?;
        }
        file.durable = pages.map(|(&page, bytes)| (page, bytes.clone())).collect();
        file.durable_length = length;
        file.allocated = length.next_multiple_of(PAGE);
        Ok(file)
    }
}

/// A direct transfer that is not aligned is refused, as most disks do.
fn check_aligned(handle: &SpindleFile, memory: &[u8], offset: u64) -> io::Result<()> {
    let aligned = (memory.as_ptr() as usize).is_multiple_of(DIRECT_ALIGNMENT)
        && memory.len().is_multiple_of(DIRECT_ALIGNMENT)
        && offset.is_multiple_of(DIRECT_ALIGNMENT as u64);
    match handle.mode() {
        FileMode::Direct if !aligned => Err(Errno::INVAL.into()),
        FileMode::Direct | FileMode::Buffered => Ok(()),
    }
}

/// SplitMix64: small, and good enough to choose what goes wrong.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

#[cfg(test)]
mod tests;

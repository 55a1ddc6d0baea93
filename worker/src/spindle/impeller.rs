//! The threads that do one spindle's I/O, and the queue that all of them serve.
//!
//! What is submitted waits in *lanes*, one per region that is written or read. Lanes are served in
//! turn, one operation each, so a large load does not hold up a small one. The queue is bounded in
//! bytes: when it is full, submitting waits, and that is the back-pressure which slows a producer down
//! to its disk.
//!
//! A disk may hang, and a system call on it then never returns. So nobody but an impeller makes one.
//! Callers wait with a deadline; closing waits with a deadline and then names the threads that it had
//! to leave behind. What a left thread still holds stays alive with it: the memory that a disk may yet
//! write to is never given to anybody else.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::engine::{Bell, Choice, DiskError, Engine, EngineKind, Finished, Op, OpKind, Outcome, Subject};
use super::file::SpindleFile;
use crate::scan::patience::{Impatience, Patience};

/// What an operation without bytes counts in the queue, so that a million of them are bounded as well.
const OP_WEIGHT: u64 = 4096;

/// How long dropping waits for operations that are under way. Closing is the way to wait longer.
const DROP_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long closing waits past its deadline, once nothing is queued any more: a thread in the middle of
/// an ordinary operation ends by then and is not taken for a hung one.
const BUSY_WAIT_MAX: Duration = Duration::from_millis(100);

/// How many threads stand in for the depth of one impeller when an engine does one thing at a time.
/// With pieces of 8 MiB two keep a disk busy; with 2 MiB four moved a third more than two, and eight
/// hardly more than four.
const SYNC_THREADS_MAX: usize = 4;

/// Whose turn an operation takes: usually that of the region it writes or reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lane(pub(crate) u64);

impl Lane {
    /// For what belongs to no region: folders, manifests, probes.
    pub(crate) const HOUSE: Lane = Lane(u64::MAX);
    /// For what nobody waits for: it gets its turn when all other lanes are empty.
    pub(crate) const LAST: Lane = Lane(u64::MAX - 1);
}

/// What to start.
#[derive(Clone)]
pub(crate) struct ImpellerPlan {
    /// Threads are named after it: `<name>-impeller-0`.
    pub(crate) name: String,
    /// How many impellers, at least 1.
    pub(crate) count: usize,
    /// How many operations each may have on their way, at least 1. Where the engine does one at a time
    /// there are up to [`SYNC_THREADS_MAX`] threads for each impeller instead.
    pub(crate) depth: usize,
    /// How many bytes may be queued and under way. One operation larger than this is let in alone.
    pub(crate) queue_bytes_max: u64,
    pub(crate) engine: EngineKind,
    /// Told of each operation that ended.
    pub(crate) watch: Option<Watch>,
}

/// Told of each operation that ended, on the impeller's thread: be quick, and touch no disk.
pub(crate) type Watch = Arc<dyn Fn(&Watched<'_>) + Send + Sync>;

/// An operation that ended, as the spindle's health sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched<'a> {
    pub(crate) kind: OpKind,
    /// The memory that it held.
    pub(crate) bytes: u64,
    /// What it has read or written.
    pub(crate) moved: u64,
    /// From the moment the engine got it. Waiting in the queue is not the disk's fault.
    pub(crate) took: Duration,
    pub(crate) error: Option<&'a DiskError>,
}

/// The threads that do one spindle's I/O.
///
/// Dropping cancels what is queued and waits a short while for what is under way.
pub(crate) struct Impellers {
    shared: Arc<Shared>,
    threads: Mutex<Vec<Option<JoinHandle<()>>>>,
    names: Vec<String>,
    engine_name: &'static str,
}

/// Why no impeller was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum StartError {
    /// io_uring was asked for by name and is not allowed here. Ask for another engine.
    #[error("io_uring cannot be used here: {reason}")]
    NoUring { reason: String },
    /// The system gives no more threads.
    #[error("could not start the thread {name}")]
    Thread { name: String, source: io::Error },
}

/// An operation that was not taken on. It is given back, with its memory.
#[derive(Debug, thiserror::Error)]
#[error("could not {} {}: {reason}", op.verb(), op.subject().path().display())]
pub(crate) struct SubmitError {
    pub(crate) op: Op,
    pub(crate) reason: Refusal,
}

/// Why an operation was not taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Wait longer, or give up.
    #[error("the queue stayed full until the deadline")]
    Late,
    /// Nothing will ever be taken on again.
    #[error("the spindle is closed")]
    Closed,
    /// Whoever submitted it does not want it any more.
    #[error("it was cancelled")]
    Cancelled,
}

impl Refusal {
    /// What it means for an operation.
    pub(crate) fn of(self, subject: &Subject) -> DiskError {
        match self {
            Refusal::Late => subject.late(),
            Refusal::Closed | Refusal::Cancelled => subject.cancelled(),
        }
    }
}

impl From<Impatience> for Refusal {
    fn from(impatience: Impatience) -> Refusal {
        match impatience {
            Impatience::Late => Refusal::Late,
            Impatience::Cancelled => Refusal::Cancelled,
        }
    }
}

/// What came of an operation, for whoever holds the other end of [`replies`].
#[derive(Debug)]
pub(crate) struct Completion {
    /// The number that the submitter gave.
    pub(crate) tag: u64,
    pub(crate) result: Result<Outcome, DiskError>,
}

/// Makes the two ends on which completions come back.
///
/// They never fill up, so no slow receiver can hold up a disk. What is on its way is bounded by the
/// queue, what has come back by its submitter, who looks before submitting more.
pub(crate) fn replies() -> (Replies, Receiver<Completion>) {
    let (to, from) = unbounded();
    (Replies { to }, from)
}

/// The sending end of completions.
#[derive(Clone, Debug)]
pub(crate) struct Replies {
    to: Sender<Completion>,
}

/// Where one operation's completion goes. Each operation that was taken on is answered exactly once.
#[derive(Debug)]
pub(crate) struct Reply {
    to: Sender<Completion>,
    tag: u64,
}

impl Replies {
    /// Where one operation's completion goes, under a number of the submitter's choice.
    pub(crate) fn tag(&self, tag: u64) -> Reply {
        Reply { to: self.to.clone(), tag }
    }
}

impl Reply {
    fn send(self, result: Result<Outcome, DiskError>) {
        // Nobody listens any more when the caller's deadline passed. The result is dropped then, and
        // with it the memory goes back to where it came from.
        let _ = self.to.send(Completion { tag: self.tag, result });
    }
}

/// How closing went.
#[derive(Clone, Debug, Default)]
pub(crate) struct CloseReport {
    /// Operations that ended while closing, well or not.
    #[cfg_attr(not(test), allow(dead_code, reason = "so far only tests ask"))]
    pub(crate) finished: u64,
    /// Operations whose turn never came. Their submitters were told.
    #[cfg_attr(not(test), allow(dead_code, reason = "so far only tests ask"))]
    pub(crate) cancelled: u64,
    /// Threads that a hung disk keeps. They end by themselves if it ever answers.
    pub(crate) abandoned: Vec<Abandoned>,
}

/// A thread that was left behind, and what it is waiting for.
#[derive(Clone, Debug)]
pub(crate) struct Abandoned {
    pub(crate) thread: String,
    /// The oldest operation it has not got an answer to.
    pub(crate) on: Option<Subject>,
}

impl Impellers {
    /// Starts the threads. No file is touched.
    pub(crate) fn start(plan: ImpellerPlan) -> Result<Impellers, StartError> {
        assert!(plan.count >= 1, "a spindle has at least one impeller");
        assert!(plan.depth >= 1, "an impeller does at least one thing at a time");
        let choice = plan.engine.choose().map_err(|reason| StartError::NoUring { reason })?;
        let (count, depth) = match choice.one_at_a_time() {
            true => (plan.count * plan.depth.min(SYNC_THREADS_MAX), 1),
            false => (plan.count, plan.depth),
        };
        let mut impellers = Impellers {
            shared: Arc::new(Shared::new(plan.queue_bytes_max, choice.reason())),
            threads: Mutex::new(Vec::new()),
            names: Vec::new(),
            engine_name: choice.name(),
        };
        for number in 0..count {
            let name = format!("{}-impeller-{number}", plan.name);
            let (shared, choice, watch) = (impellers.shared.clone(), choice.clone(), plan.watch.clone());
            let alive = Alive::new(&shared, number);
            let body = move || {
                let _alive = alive; // Dropped last, so that whoever sees it gone can join at once.
                Impeller::new(shared, number, depth, choice, watch).run();
            };
            let thread = thread::Builder::new().name(name.clone()).spawn(body);
            // After an error, dropping what there is so far ends the threads that were started.
            let thread = thread.map_err(|source| StartError::Thread { name: name.clone(), source })?;
            impellers.names.push(name);
            lock(&impellers.threads).push(Some(thread));
        }
        Ok(impellers)
    }

    /// Queues an operation. Waits while the queue is full, in the order of arrival.
    ///
    /// After the deadline an operation is not taken on, and one that is still queued is not begun: it
    /// is answered with [`DiskError::Late`] when its turn comes. What has begun always ends by itself.
    ///
    /// # Errors
    /// The queue stayed full, or the spindle is closed. The operation comes back with its memory.
    pub(crate) fn submit(
        &self,
        lane: Lane,
        op: Op,
        reply: Reply,
        deadline: Option<Instant>,
    ) -> Result<(), SubmitError> {
        self.submit_patiently(lane, op, reply, &Patience::until(deadline))
    }

    /// The same for an operation that may be cancelled while it waits for room. Once queued it is done.
    pub(crate) fn submit_patiently(
        &self,
        lane: Lane,
        op: Op,
        reply: Reply,
        patience: &Patience,
    ) -> Result<(), SubmitError> {
        self.shared.push(lane, op, reply, patience)
    }

    /// Queues an operation without waiting, also if the queue is full: for what holds no bytes, and is the house's. It is not
    /// begun after the deadline.
    ///
    /// # Errors
    /// The spindle is closed.
    pub(crate) fn submit_at_once(
        &self,
        lane: Lane,
        op: Op,
        reply: Reply,
        deadline: Option<Instant>,
    ) -> Result<(), SubmitError> {
        self.shared.push_at_once(lane, op, reply, deadline)
    }

    /// Waits until the queue is not full, after those who came before. The room is nobody's then: whoever
    /// submits may have to wait all the same, though seldom.
    pub(crate) fn wait_for_room(&self, patience: &Patience) -> Result<(), Refusal> {
        self.shared.wait_for_room(lock(&self.shared.queue), OP_WEIGHT, patience).map(drop)
    }

    /// Does one operation and waits for it, in the lane [`Lane::HOUSE`].
    ///
    /// After the deadline the answer is [`DiskError::Late`]. The operation stays with the impellers, and
    /// its memory stays counted, until the disk has answered.
    pub(crate) fn run(&self, op: Op, deadline: Option<Instant>) -> Result<Outcome, DiskError> {
        self.run_in(Lane::HOUSE, op, deadline)
    }

    /// Does one operation in a lane and waits for it, as [`Self::run`] does.
    pub(crate) fn run_in(&self, lane: Lane, op: Op, deadline: Option<Instant>) -> Result<Outcome, DiskError> {
        self.run_patiently(lane, op, &Patience::until(deadline))
    }

    /// The same for an operation that nobody may want any more. Cancelled in the middle it is as after the
    /// deadline: the disk may have done it.
    pub(crate) fn run_patiently(
        &self,
        lane: Lane,
        op: Op,
        patience: &Patience,
    ) -> Result<Outcome, DiskError> {
        let subject = op.subject();
        let (replies, completions) = replies();
        if let Err(SubmitError { op, reason }) = self.submit_patiently(lane, op, replies.tag(0), patience) {
            lock(&self.shared.queue).leftover.extend(op.into_file());
            return Err(reason.of(&subject));
        }
        drop(replies); // So that a lost reply shows as a closed channel instead of a wait for ever.
        match patience.receive(&completions) {
            Ok(Ok(completion)) => completion.result,
            Ok(Err(_)) => Err(subject.panicked("no answer came".to_owned())),
            Err(impatience) => Err(Refusal::from(impatience).of(&subject)),
        }
    }

    /// Finishes what is queued, then ends the threads; at the deadline cancels what is left, and leaves
    /// behind the threads that still wait for their disk. A second call finds nothing to do.
    pub(crate) fn close(&self, deadline: Instant) -> CloseReport {
        let finished_before = lock(&self.shared.queue).finished;
        self.shared.stop(Phase::Draining);
        self.shared.wait_for_end(deadline);
        let cancelled = self.shared.stop(Phase::Cancelling);
        self.shared.wait_for_end(Instant::now() + BUSY_WAIT_MAX);
        let finished = lock(&self.shared.queue).finished - finished_before;
        CloseReport { finished, cancelled, abandoned: self.join() }
    }

    /// Bytes that are queued or under way: memory that callers cannot have back yet.
    #[cfg(test)]
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        let queue = lock(&self.shared.queue);
        let running = queue.running.values().map(|running| running.bytes).sum::<u64>();
        running + queue.lanes.values().flatten().map(|job| job.op.bytes_held()).sum::<u64>()
    }

    /// How many operations wait for an impeller, and how many the disk has.
    pub(crate) fn depths(&self) -> (u64, u64) {
        let queue = lock(&self.shared.queue);
        let queued: usize = queue.lanes.values().map(VecDeque::len).sum();
        (queued as u64, queue.running.len() as u64)
    }

    /// The operation that has been under way the longest, and for how long: how a hang is noticed.
    pub(crate) fn oldest(&self) -> Option<(Subject, Duration)> {
        let queue = lock(&self.shared.queue);
        let oldest = queue.running.values().min_by_key(|running| running.since)?;
        Some((oldest.subject.clone(), oldest.since.elapsed()))
    }

    /// The engine: `uring`, `threads` or `sim`.
    pub(crate) fn engine_name(&self) -> &'static str {
        self.engine_name
    }

    /// Why it is not io_uring, in one line, if that was wished for.
    pub(crate) fn engine_reason(&self) -> Option<String> {
        lock(&self.shared.queue).engine_reason.clone()
    }

    /// How many threads there are.
    #[cfg(test)]
    pub(crate) fn thread_count(&self) -> usize {
        self.names.len()
    }

    /// Joins the threads that have ended and lets go of the others.
    fn join(&self) -> Vec<Abandoned> {
        let mut abandoned = Vec::new();
        for (number, thread) in lock(&self.threads).iter_mut().enumerate() {
            let Some(thread) = thread.take() else { continue };
            let queue = lock(&self.shared.queue);
            if queue.alive.contains(&number) {
                let mine = queue.running.values().filter(|running| running.impeller == number);
                let on = mine.min_by_key(|running| running.since).map(|running| running.subject.clone());
                abandoned.push(Abandoned { thread: self.names[number].clone(), on });
                continue;
            }
            drop(queue);
            let _ = thread.join(); // A panic was answered where it happened.
        }
        abandoned
    }
}

impl Drop for Impellers {
    fn drop(&mut self) {
        self.shared.stop(Phase::Cancelling);
        if lock(&self.threads).iter().any(Option::is_some) {
            self.shared.wait_for_end(Instant::now() + DROP_WAIT_MAX);
        }
        self.join();
    }
}

/// What runs on one impeller's thread.
struct Impeller {
    shared: Arc<Shared>,
    number: usize,
    depth: usize,
    choice: Choice,
    engine: Box<dyn Engine>,
    watch: Option<Watch>,
}

impl Impeller {
    fn new(
        shared: Arc<Shared>,
        number: usize,
        depth: usize,
        choice: Choice,
        watch: Option<Watch>,
    ) -> Impeller {
        let engine = make_engine(&choice, &shared, depth);
        Impeller { shared, number, depth, choice, engine, watch }
    }

    /// Until the queue is closed and empty, and everything under way has ended.
    fn run(mut self) {
        let mut done = Vec::new();
        loop {
            // What is finished is answered before more is begun: an engine may do the next thing right away, and be at it
            // for long.
            while self.engine.in_flight() < self.depth && !self.engine.has_finished() {
                let busy = self.engine.in_flight() > 0;
                let bell = self.engine.bell();
                match self.shared.next(self.number, busy, bell) {
                    Next::Job(token, op) => self.start(token, op),
                    Next::Nothing => break,
                    Next::End => return,
                }
            }
            self.poll(&mut done);
            for (token, result) in done.drain(..) {
                self.finish(token, result);
            }
        }
    }

    fn start(&mut self, token: u64, op: Op) {
        let engine = &mut self.engine;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| engine.start(token, op))) {
            let message = panic_message(&*panic);
            self.finish_panicked(token, message);
        }
    }

    fn poll(&mut self, done: &mut Vec<Finished>) {
        let engine = &mut self.engine;
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| engine.poll(true, done))) else { return };
        // What the engine was doing is anybody's guess now. Another one takes over; dropping the old
        // one waits for the disk, or leaks the memory that the disk may still touch.
        let message = panic_message(&*panic);
        let fresh = make_engine(&self.choice, &self.shared, self.depth);
        let old = mem::replace(&mut self.engine, fresh);
        let _ = catch_unwind(AssertUnwindSafe(move || drop(old)));
        let answered: Vec<u64> = done.iter().map(|(token, _)| *token).collect();
        for token in self.shared.tokens_of(self.number) {
            if !answered.contains(&token) {
                self.finish_panicked(token, message.clone());
            }
        }
    }

    fn finish_panicked(&self, token: u64, message: String) {
        let Some(subject) = self.shared.subject_of(token) else { return };
        self.finish(token, Err(subject.panicked(message)));
    }

    fn finish(&self, token: u64, result: Result<Outcome, DiskError>) {
        let Some((running, leftover)) = self.shared.release(token) else { return };
        if let Some(watch) = &self.watch {
            let watched = Watched {
                kind: running.kind,
                bytes: running.bytes,
                moved: moved(&running, &result),
                took: running.since.elapsed(),
                error: result.as_ref().err(),
            };
            // The watcher's bug is not the disk's: the operation keeps its own result.
            let _ = catch_unwind(AssertUnwindSafe(|| watch(&watched)));
        }
        running.reply.send(result);
        drop(leftover);
    }
}

/// Makes the engine on the thread it will stay on. A ring that was granted to the probe can still be
/// refused now, by a limit on locked memory for instance; that thread then goes without.
fn make_engine(choice: &Choice, shared: &Shared, depth: usize) -> Box<dyn Engine> {
    choice.make(depth).unwrap_or_else(|reason| {
        lock(&shared.queue).engine_reason = Some(reason);
        Choice::threads().make(1).expect("plain system calls need no permission")
    })
}

/// What callers and impellers share.
struct Shared {
    queue: Mutex<Queue>,
    /// Something was queued, or the queue was closed. Impellers wait here when they have nothing to do.
    work: Condvar,
    /// Something ended, or the queue was closed. Submitters wait here.
    room: Condvar,
    /// A thread ended. Closing waits here.
    ended: Condvar,
}

/// The queue, and what was taken from it and has not ended.
///
/// Invariants: `weight_held` is the sum of the weights in `lanes` and `running`. A lane is in `turns`
/// exactly once if it has something queued, and in neither `turns` nor `lanes` otherwise.
struct Queue {
    phase: Phase,
    lanes: HashMap<Lane, VecDeque<Job>>,
    /// Whose turn it is: the front lane gives one job and goes to the back.
    turns: VecDeque<Lane>,
    running: BTreeMap<u64, Running>,
    weight_held: u64,
    weight_max: u64,
    token_next: u64,
    /// Submitters that wait for room, in the order in which they came.
    waiting: VecDeque<u64>,
    ticket_next: u64,
    /// Impellers that wait at `work`.
    idle: usize,
    /// Impellers that wait inside their engine and could take on more.
    open: BTreeMap<usize, Bell>,
    /// Impellers whose thread has not ended.
    alive: Vec<usize>,
    finished: u64,
    /// Files of operations that were not done. Closing the last descriptor of an unlinked file waits for
    /// its disk, so an impeller does it: after its next operation, or when it ends.
    leftover: Vec<Arc<SpindleFile>>,
    engine_reason: Option<String>,
}

/// Only ever goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    /// Nothing new is taken on; what is queued is done.
    Draining,
    /// What is queued is answered instead of done.
    Cancelling,
}

/// An operation that waits for its turn.
struct Job {
    op: Op,
    reply: Reply,
    deadline: Option<Instant>,
}

/// An operation that an engine has.
struct Running {
    impeller: usize,
    subject: Subject,
    reply: Reply,
    kind: OpKind,
    bytes: u64,
    weight: u64,
    since: Instant,
}

/// What an impeller does next.
enum Next {
    Job(u64, Op),
    /// Look after what is under way.
    Nothing,
    End,
}

impl Shared {
    fn new(weight_max: u64, engine_reason: Option<String>) -> Shared {
        let queue = Queue {
            phase: Phase::Open,
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            running: BTreeMap::new(),
            weight_held: 0,
            weight_max,
            token_next: 0,
            waiting: VecDeque::new(),
            ticket_next: 0,
            idle: 0,
            open: BTreeMap::new(),
            alive: Vec::new(),
            finished: 0,
            leftover: Vec::new(),
            engine_reason,
        };
        Shared { queue: Mutex::new(queue), work: Condvar::new(), room: Condvar::new(), ended: Condvar::new() }
    }

    fn push(
        self: &Arc<Self>,
        lane: Lane,
        op: Op,
        reply: Reply,
        patience: &Patience,
    ) -> Result<(), SubmitError> {
        let queue = match self.wait_for_room(lock(&self.queue), weight_of(&op), patience) {
            Ok(queue) => queue,
            Err(reason) => return Err(SubmitError { op, reason }),
        };
        self.enter(queue, lane, Job { op, reply, deadline: patience.deadline });
        Ok(())
    }

    fn push_at_once(
        &self,
        lane: Lane,
        op: Op,
        reply: Reply,
        deadline: Option<Instant>,
    ) -> Result<(), SubmitError> {
        let queue = lock(&self.queue);
        if queue.phase != Phase::Open {
            return Err(SubmitError { op, reason: Refusal::Closed });
        }
        self.enter(queue, lane, Job { op, reply, deadline });
        Ok(())
    }

    /// Queues it, and wakes an impeller for it.
    fn enter(&self, mut queue: MutexGuard<'_, Queue>, lane: Lane, job: Job) {
        queue.weight_held += weight_of(&job.op);
        queue.push(lane, job);
        if queue.idle > 0 {
            self.work.notify_one();
        } else if let Some((_, bell)) = queue.open.pop_first() {
            drop(queue);
            bell();
        }
    }

    /// Waits until there is room for this much, in the order of arrival.
    fn wait_for_room<'a>(
        self: &'a Arc<Self>,
        mut queue: MutexGuard<'a, Queue>,
        weight: u64,
        patience: &Patience,
    ) -> Result<MutexGuard<'a, Queue>, Refusal> {
        if queue.phase == Phase::Open && !(queue.waiting.is_empty() && queue.has_room(weight)) {
            let ticket = queue.ticket_next;
            queue.ticket_next += 1;
            queue.waiting.push_back(ticket);
            drop(queue); // A cancel that comes while it is being watched for takes the lock.
            let _watches = patience.watch(&Waker::from(self.clone()));
            queue = lock(&self.queue);
            // The front one alone is looked at: a large piece is not overtaken for ever by small ones.
            while queue.phase == Phase::Open
                && !(queue.waiting.front() == Some(&ticket) && queue.has_room(weight))
            {
                if let Err(impatience) = patience.check() {
                    queue.waiting.retain(|&other| other != ticket);
                    self.room.notify_all(); // The one behind may fit where this one did not.
                    return Err(impatience.into());
                }
                queue = wait_at_most(&self.room, queue, patience.deadline);
            }
            queue.waiting.retain(|&other| other != ticket);
            self.room.notify_all();
        }
        match queue.phase {
            Phase::Open => Ok(queue),
            Phase::Draining | Phase::Cancelling => Err(Refusal::Closed),
        }
    }

    /// The next job for an impeller. Waits for one only if it has nothing under way.
    fn next(&self, number: usize, busy: bool, bell: Option<Bell>) -> Next {
        let mut queue = lock(&self.queue);
        queue.open.remove(&number);
        loop {
            if let Some(job) = queue.pop() {
                let subject = job.op.subject();
                if job.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    queue.weight_held -= weight_of(&job.op);
                    queue.finished += 1;
                    drop(queue);
                    self.room.notify_all();
                    let Job { op, reply, .. } = job;
                    drop(op); // The memory goes back before anybody hears of it.
                    reply.send(Err(subject.late()));
                    queue = lock(&self.queue);
                    continue;
                }
                let token = queue.token_next;
                queue.token_next += 1;
                let running = Running {
                    impeller: number,
                    subject,
                    reply: job.reply,
                    kind: job.op.kind(),
                    bytes: job.op.bytes_held(),
                    weight: weight_of(&job.op),
                    since: Instant::now(),
                };
                queue.running.insert(token, running);
                return Next::Job(token, job.op);
            }
            if busy {
                if let (Phase::Open, Some(bell)) = (queue.phase, bell) {
                    queue.open.insert(number, bell);
                }
                return Next::Nothing;
            }
            if queue.phase != Phase::Open {
                return Next::End;
            }
            queue.idle += 1;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    /// Takes note that an operation has ended. What it held is free again before anybody hears of it.
    /// Also gives the impeller the files that it is to close.
    fn release(&self, token: u64) -> Option<(Running, Vec<Arc<SpindleFile>>)> {
        let mut queue = lock(&self.queue);
        let running = queue.running.remove(&token)?;
        queue.weight_held -= running.weight;
        queue.finished += 1;
        if !queue.waiting.is_empty() {
            self.room.notify_all();
        }
        Some((running, mem::take(&mut queue.leftover)))
    }

    fn subject_of(&self, token: u64) -> Option<Subject> {
        lock(&self.queue).running.get(&token).map(|running| running.subject.clone())
    }

    fn tokens_of(&self, number: usize) -> Vec<u64> {
        let queue = lock(&self.queue);
        let mine = queue.running.iter().filter(|(_, running)| running.impeller == number);
        mine.map(|(token, _)| *token).collect()
    }

    /// Goes on to a later phase, wakes everybody, and says how many queued operations it cancelled.
    fn stop(&self, phase: Phase) -> u64 {
        let mut queue = lock(&self.queue);
        queue.phase = queue.phase.max(phase);
        let mut cancelled = Vec::new();
        if queue.phase == Phase::Cancelling {
            while let Some(job) = queue.pop() {
                queue.weight_held -= weight_of(&job.op);
                cancelled.push(job);
            }
        }
        drop(queue);
        self.work.notify_all();
        self.room.notify_all();
        let count = cancelled.len() as u64;
        for Job { op, reply, .. } in cancelled {
            let error = op.subject().cancelled();
            let file = op.into_file(); // The memory goes back before anybody hears of it.
            lock(&self.queue).leftover.extend(file);
            reply.send(Err(error));
        }
        count
    }

    fn wait_for_end(&self, deadline: Instant) {
        let mut queue = lock(&self.queue);
        while !queue.alive.is_empty() && Instant::now() < deadline {
            queue = wait_at_most(&self.ended, queue, Some(deadline));
        }
    }
}

/// Wakes those who wait for room, when one of them is cancelled.
impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        drop(lock(&self.queue)); // Whoever has looked, and does not wait yet, waits by now.
        self.room.notify_all();
    }
}

impl Queue {
    /// Whether there is room for this much more. What is larger than the whole queue gets in alone.
    fn has_room(&self, weight: u64) -> bool {
        self.weight_held == 0 || self.weight_held.saturating_add(weight) <= self.weight_max
    }

    fn push(&mut self, lane: Lane, job: Job) {
        let jobs = self.lanes.entry(lane).or_default();
        if jobs.is_empty() {
            self.turns.push_back(lane);
        }
        jobs.push_back(job);
    }

    fn pop(&mut self) -> Option<Job> {
        let mut lane = self.turns.pop_front()?;
        if lane == Lane::LAST
            && let Some(other) = self.turns.pop_front()
        {
            self.turns.push_back(lane);
            lane = other;
        }
        let jobs = self.lanes.get_mut(&lane).expect("a lane in `turns` has something queued");
        let job = jobs.pop_front().expect("a lane in `turns` has something queued");
        if jobs.is_empty() {
            self.lanes.remove(&lane);
        } else {
            self.turns.push_back(lane);
        }
        Some(job)
    }
}

/// Says that a thread is there for as long as it lives, however it ends.
struct Alive {
    shared: Arc<Shared>,
    number: usize,
}

impl Alive {
    fn new(shared: &Arc<Shared>, number: usize) -> Alive {
        lock(&shared.queue).alive.push(number);
        Alive { shared: shared.clone(), number }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.alive.retain(|&number| number != self.number);
        drop(queue);
        self.shared.ended.notify_all();
    }
}

impl fmt::Display for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.on {
            Some(on) => write!(f, "{} (waits to {} {})", self.thread, on.verb(), on.path().display()),
            None => f.write_str(&self.thread),
        }
    }
}

fn moved(running: &Running, result: &Result<Outcome, DiskError>) -> u64 {
    match (running.kind, result) {
        (_, Err(_)) => 0,
        (_, Ok(Outcome::ReadBack { len, .. })) => *len as u64,
        (_, Ok(Outcome::Bytes(bytes))) => bytes.len() as u64,
        (_, Ok(Outcome::Looks(looks))) => looks.iter().flatten().map(|look| look.bytes.len() as u64).sum(),
        (OpKind::Write, Ok(_)) => running.bytes,
        (_, Ok(_)) => 0,
    }
}

fn weight_of(op: &Op) -> u64 {
    if let Op::Write { bytes, .. } = op
        && bytes.stays()
    {
        return OP_WEIGHT;
    }
    op.bytes_held().max(OP_WEIGHT)
}

/// The guard, also after a panic elsewhere: what stands under these locks is changed by plain
/// arithmetic and moves, which do not stop halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits to be woken, or for the deadline.
fn wait_at_most<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Option<Instant>,
) -> MutexGuard<'a, T> {
    match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
        None => condvar.wait(guard).unwrap_or_else(PoisonError::into_inner),
        Some(left) => condvar.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0,
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(message) = panic.downcast_ref::<&str>() {
        (*message).to_owned()
    } else if let Some(message) = panic.downcast_ref::<String>() {
        message.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

#[cfg(test)]
mod tests;

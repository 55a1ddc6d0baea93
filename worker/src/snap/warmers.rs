//! The threads that bring a spindle's regions into memory.
//!
//! Each spindle has its own few, so a disk that hangs holds up nobody else's regions. They start with the
//! first region that is wanted. Two kinds of jobs wait for them: *looks*, which read the first and last pages
//! of a region and which a lease waits for, and *hauls*, which bring in the rest while a scan follows. Looks go
//! first, also between two steps of a haul. Hauls that nobody waits for come last; while they rest, to keep a pace, their thread does
//! the others.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

/// How many threads each spindle gets: one keeps a disk busy, a second one helps with what is still in the
/// page cache, where populating is work for a core.
const THREADS_PER_SPINDLE: usize = 2;

/// How long dropping waits for what is still being brought in, for leases that outlive their cache.
const DROP_WAIT_MAX: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce(&WarmQueue) + Send>;

/// What waits for a spindle's warming threads.
pub(crate) struct WarmQueue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    looks: VecDeque<Job>,
    /// Each with whether somebody may wait for it.
    hauls: VecDeque<(bool, Job)>,
    closed: bool,
}

/// The warming threads of one spindle.
///
/// Dropping it takes nothing new and lets what is queued end: regions that nobody wants any more end at once,
/// those of leases that outlive the cache are still brought in.
pub(crate) struct Warmers {
    name: String,
    queue: Arc<WarmQueue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Each thread has a clone of the sender: when all have ended, the receiver is told.
    alive: Mutex<Option<Sender<()>>>,
    ended: Receiver<()>,
}

impl Waiting {
    /// The next one that somebody waits for: a look, or else a haul.
    fn next_urgent(&mut self) -> Option<Job> {
        let haul = |waiting: &mut Waiting| {
            let urgent = waiting.hauls.iter().position(|(is_urgent, _)| *is_urgent)?;
            waiting.hauls.remove(urgent).map(|(_, job)| job)
        };
        self.looks.pop_front().or_else(|| haul(self))
    }
}

impl Warmers {
    /// For the spindle of this number. No thread is started.
    pub(crate) fn new(spindle: usize) -> Warmers {
        let (alive, ended) = bounded(0);
        Warmers {
            name: format!("pelton-warm-{spindle}"),
            queue: Arc::new(WarmQueue { waiting: Mutex::default(), changed: Condvar::new() }),
            threads: Mutex::default(),
            alive: Mutex::new(Some(alive)),
            ended,
        }
    }

    /// Queues a look. The threads were started.
    pub(crate) fn look(&self, job: impl FnOnce(&WarmQueue) + Send + 'static) {
        lock(&self.queue.waiting).looks.push_back(Box::new(job));
        self.queue.changed.notify_all();
    }

    /// Sees to it that there are threads.
    ///
    /// # Errors
    /// There is none: the system gives no more.
    pub(crate) fn start(&self) -> io::Result<()> {
        let mut threads = lock(&self.threads);
        let alive = lock(&self.alive).clone();
        while threads.len() < THREADS_PER_SPINDLE {
            let (queue, alive) = (self.queue.clone(), alive.clone());
            let body = move || {
                let _alive = alive;
                queue.serve();
            };
            let name = format!("{}-{}", self.name, threads.len());
            match std::thread::Builder::new().name(name).spawn(body) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(error),
                Err(_) => break, // One does the work of two, later.
            }
        }
        Ok(())
    }
}

impl Drop for Warmers {
    fn drop(&mut self) {
        lock(&self.queue.waiting).closed = true;
        self.queue.changed.notify_all();
        drop(lock(&self.alive).take());
        // Those that a hung disk keeps, or a lease that is still fed, end by themselves.
        if self.ended.recv_timeout(DROP_WAIT_MAX) == Err(RecvTimeoutError::Disconnected) {
            for thread in lock(&self.threads).drain(..) {
                let _ = thread.join(); // A panic was caught where it happened.
            }
        }
    }
}

impl WarmQueue {
    /// Queues a haul. The thread that does so serves the queue, so it will be done.
    pub(crate) fn haul(&self, is_urgent: bool, job: impl FnOnce(&WarmQueue) + Send + 'static) {
        lock(&self.waiting).hauls.push_back((is_urgent, Box::new(job)));
        // All: whoever rests does not take every haul.
        self.changed.notify_all();
    }

    /// Does one look or urgent haul, if one comes in that time. Says no when there is no time to rest any more: the queue
    /// is closed.
    pub(crate) fn wait_for_urgent(&self, longest: Duration) -> bool {
        let mut waiting = lock(&self.waiting);
        if waiting.closed {
            return false;
        }
        let mut job = waiting.next_urgent();
        if job.is_none() {
            let waited = self.changed.wait_timeout(waiting, longest);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
            job = waiting.next_urgent();
        }
        drop(waiting);
        job.into_iter().for_each(|job| self.run(job));
        true
    }

    /// Does the looks that wait now: between two steps of a haul.
    pub(crate) fn do_looks(&self) {
        loop {
            let Some(look) = lock(&self.waiting).looks.pop_front() else { return };
            self.run(look);
        }
    }

    fn serve(&self) {
        loop {
            let mut waiting = lock(&self.waiting);
            let job = loop {
                let any_haul = |waiting: &mut Waiting| waiting.hauls.pop_front().map(|(_, job)| job);
                if let Some(job) = waiting.next_urgent().or_else(|| any_haul(&mut waiting)) {
                    break job;
                }
                if waiting.closed {
                    return;
                }
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            };
            drop(waiting);
            self.run(job);
        }
    }

    fn run(&self, job: Job) {
        // A job tells its own panics to whoever waits for it, by what it drops.
        let _ = catch_unwind(AssertUnwindSafe(|| job(self)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a lease waits for a step at most, not for all that is being brought in. Method: a haul, while it
    /// runs, has a look done that was queued after another haul.
    #[test]
    fn looks_go_before_hauls_and_between_their_steps() {
        let (say, said) = crossbeam_channel::unbounded();
        let queue = WarmQueue { waiting: Mutex::default(), changed: Condvar::new() };
        let told = say.clone();
        queue.haul(true, move |queue| {
            told.send("first haul begins").unwrap();
            let told_by_look = told.clone();
            lock(&queue.waiting).looks.push_back(Box::new(move |_| told_by_look.send("look").unwrap()));
            queue.do_looks();
            told.send("first haul ends").unwrap();
        });
        queue.haul(true, move |_| say.send("second haul").unwrap());
        lock(&queue.waiting).closed = true;
        queue.serve();
        let order: Vec<_> = said.iter().collect();
        assert_eq!(order, ["first haul begins", "look", "first haul ends", "second haul"]);
    }

    /// Goal: what keeps a pace holds up nobody who waits. Method: a haul that rests until an urgent one, which was queued
    /// behind another one like itself, has run.
    #[test]
    fn a_haul_that_rests_does_the_urgent_ones() {
        let (say, said) = crossbeam_channel::unbounded();
        let queue = WarmQueue { waiting: Mutex::default(), changed: Condvar::new() };
        let [first, urgent, last] = [(); 3].map(|()| say.clone());
        queue.haul(false, move |queue| {
            queue.haul(true, move |_| urgent.send("urgent").unwrap());
            assert!(queue.wait_for_urgent(Duration::from_secs(60)));
            first.send("first").unwrap();
            lock(&queue.waiting).closed = true;
            assert!(!queue.wait_for_urgent(Duration::from_secs(60)));
        });
        queue.haul(false, move |_| last.send("last").unwrap());
        queue.serve();
        drop(say);
        assert_eq!(said.iter().collect::<Vec<_>>(), ["urgent", "first", "last"]);
    }

    #[test]
    fn a_panic_ends_its_job_only_and_dropping_ends_what_is_queued() {
        let (say, said) = crossbeam_channel::unbounded();
        let warmers = Warmers::new(0);
        warmers.start().unwrap();
        for number in 0..20 {
            let say = say.clone();
            let job = move |queue: &WarmQueue| {
                assert_ne!(number % 5, 0, "by the test");
                queue.haul(number % 2 == 0, move |_| say.send(number).unwrap());
            };
            warmers.look(job);
        }
        drop(warmers);
        drop(say);
        let mut done: Vec<i32> = said.iter().collect();
        done.sort();
        assert_eq!(done, (0..20).filter(|number| number % 5 != 0).collect::<Vec<_>>());
    }
}

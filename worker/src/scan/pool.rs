//! The threads that scan, one for each core that we may use.
//!
//! Every thread has one inbox and does its jobs one after the other, so what belongs to a thread (a region,
//! and the memory near its core) is never touched by two jobs at once. A job that panics fails alone.
//!
//! Jobs must not hand jobs to a pool and wait: a thread would wait for itself, or two for each other. Whoever
//! would wait asks [`on_scan_thread`] first.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};

use super::affinity::pin_current_thread;

/// How many jobs wait for one thread before who hands in more must wait. A job is a region of a scan, so that is
/// as many scans at once; one takes 100 bytes or so.
const INBOX_JOBS_MAX: usize = 4096;

thread_local! {
    static ON_SCAN_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is one of a pool's, of any cache.
pub(crate) fn on_scan_thread() -> bool {
    ON_SCAN_THREAD.get()
}

/// Where a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    /// Which thread of the pool, from 0.
    pub(crate) thread: usize,
    /// The core that it is tied to, if it is.
    pub(crate) core: Option<usize>,
}

/// A job panicked. The pool and the other jobs go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the scan's code panicked on thread {thread}: {message}")]
pub(crate) struct JobPanicked {
    pub(crate) thread: usize,
    /// What the panic said, if it was a text.
    pub(crate) message: String,
}

/// Why a job was not taken. It was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JobRefused {
    /// The pool is closed. There is nothing to wait for.
    #[error("the scan threads are closed")]
    Closed,
    /// The thread's inbox stayed full. Try again later.
    #[error("scan thread {thread} has {INBOX_JOBS_MAX} jobs waiting and took no more in time")]
    Busy { thread: usize },
}

/// Threads that had not ended when the wait for them was over. They end with their last job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("still running: {}", threads.join(", "))]
pub(crate) struct StillRunning {
    pub(crate) threads: Vec<String>,
}

type Job = Box<dyn FnOnce(Seat) + Send>;

/// The scan threads of one cache.
///
/// Closing it, or dropping it, finishes what is in the inboxes first.
pub(crate) struct ScanPool {
    /// Empty when closed. The lock is held to find an inbox, never while waiting for room in it.
    inboxes: RwLock<Vec<Sender<Job>>>,
    workers: Mutex<Vec<Worker>>,
    seats: Vec<Seat>,
}

struct Worker {
    name: String,
    thread: JoinHandle<()>,
    /// Answers when the thread is about to end: it never sends, it hangs up.
    ended: Receiver<()>,
}

impl ScanPool {
    /// Starts `threads` threads called `{name}-0` and so on.
    ///
    /// With `cores` thread i is tied to the i-th of them, starting again at the first when there are more
    /// threads than cores; without, the kernel places them. A thread that cannot be tied runs free, and
    /// [`ScanPool::seats`] says so.
    ///
    /// # Errors
    /// If the system gives no more threads. Those that had started are stopped.
    pub(crate) fn start(name: &str, threads: usize, cores: &[usize]) -> io::Result<ScanPool> {
        assert!(threads > 0);
        // Dropped on the way out if a later thread fails: the ones before see their inboxes closed.
        let mut pool = ScanPool {
            inboxes: RwLock::default(),
            workers: Mutex::default(),
            seats: Vec::with_capacity(threads),
        };
        for index in 0..threads {
            let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
            let (inbox, jobs) = bounded::<Job>(INBOX_JOBS_MAX);
            let (seated, seat) = bounded(1);
            let (running, ended) = bounded::<()>(0);
            let name = format!("{name}-{index}");
            let thread = thread::Builder::new().name(name.clone()).spawn(move || {
                ON_SCAN_THREAD.set(true);
                let core = core.filter(|&core| pin_current_thread(core));
                let seat = Seat { thread: index, core };
                let _ = seated.send(seat); // The starter waits for it.
                for job in jobs {
                    job(seat);
                }
                drop(running);
            })?;
            pool.inboxes.get_mut().unwrap_or_else(PoisonError::into_inner).push(inbox);
            let workers = pool.workers.get_mut().unwrap_or_else(PoisonError::into_inner);
            workers.push(Worker { name, thread, ended });
            pool.seats.push(seat.recv().expect("a thread that starts takes its seat"));
        }
        Ok(pool)
    }

    /// How many threads there are.
    pub(crate) fn threads(&self) -> usize {
        self.seats.len()
    }

    /// Where each thread runs.
    pub(crate) fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Has thread number `thread` run `job`, after what it was given before, and then `done` with the outcome.
    ///
    /// Both run on that thread. `done` should do no more than pass the outcome on; if it panics, the panic is
    /// dropped. Waits while the inbox is full, until the deadline if there is one.
    ///
    /// # Errors
    /// [`JobRefused`]: neither ran.
    pub(crate) fn run_on_then<T>(
        &self,
        thread: usize,
        deadline: Option<Instant>,
        job: impl FnOnce(Seat) -> T + Send + 'static,
        done: impl FnOnce(Result<T, JobPanicked>) + Send + 'static,
    ) -> Result<(), JobRefused> {
        assert!(thread < self.seats.len(), "there are {} threads", self.seats.len());
        let run: Job = Box::new(move |seat| {
            // Unwind safe: after a panic nobody sees what the job had in hand. It was moved in, and is dropped.
            let outcome = catch_unwind(AssertUnwindSafe(|| job(seat)));
            let outcome = outcome.map_err(|payload| JobPanicked { thread, message: message_of(payload) });
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| done(outcome))) {
                message_of(payload);
            }
        });
        let inbox = {
            let inboxes = self.inboxes.read().unwrap_or_else(PoisonError::into_inner);
            inboxes.get(thread).ok_or(JobRefused::Closed)?.clone()
        };
        match deadline {
            None => inbox.send(run).map_err(|_| JobRefused::Closed),
            Some(deadline) => inbox.send_deadline(run, deadline).map_err(|refused| match refused {
                SendTimeoutError::Timeout(_) => JobRefused::Busy { thread },
                SendTimeoutError::Disconnected(_) => JobRefused::Closed,
            }),
        }
    }

    /// Has thread number `thread` run `job`, after what it was given before.
    ///
    /// # Errors
    /// [`JobRefused`]: it did not run.
    #[cfg(test)]
    pub(crate) fn run_on<T: Send + 'static>(
        &self,
        thread: usize,
        job: impl FnOnce(Seat) -> T + Send + 'static,
    ) -> Result<Running<T>, JobRefused> {
        let (outcome, running) = bounded(1);
        // Whoever dropped the `Running` does not care how it ended.
        self.run_on_then(thread, None, job, move |result| drop(outcome.send(result)))?;
        Ok(Running { outcome: running })
    }

    /// Finishes what was taken, then stops the threads. Doing it twice is harmless.
    ///
    /// # Errors
    /// [`StillRunning`] with the names of those that had not ended at the deadline.
    pub(crate) fn close(&self, deadline: Option<Instant>) -> Result<(), StillRunning> {
        // A thread's loop ends after the last job of its inbox.
        self.inboxes.write().unwrap_or_else(PoisonError::into_inner).clear();
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        let own: ThreadId = thread::current().id();
        let mut running = Vec::new();
        for worker in workers {
            if worker.thread.thread().id() == own {
                // A job held the last handle of the cache. Its thread ends by itself when the job is over.
                continue;
            }
            match deadline.map(|deadline| worker.ended.recv_deadline(deadline)) {
                Some(Err(RecvTimeoutError::Timeout)) => running.push(worker),
                // It has left its loop: joining waits for no job.
                _ => worker.thread.join().expect("jobs catch their panics"),
            }
        }
        if running.is_empty() {
            return Ok(());
        }
        let threads = running.iter().map(|worker| worker.name.clone()).collect();
        // Kept, so that closing again can wait for them again.
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).extend(running);
        Err(StillRunning { threads })
    }
}

impl Drop for ScanPool {
    fn drop(&mut self) {
        let closed = self.close(None);
        debug_assert_eq!(closed, Ok(()), "without a deadline it waits");
    }
}

impl fmt::Debug for ScanPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScanPool").field("seats", &self.seats).finish_non_exhaustive()
    }
}

/// A job that was handed in. Dropping it lets the job run and forgets what comes of it.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Running<T> {
    outcome: Receiver<Result<T, JobPanicked>>,
}

#[cfg(test)]
impl<T> Running<T> {
    /// Waits for the outcome.
    ///
    /// # Errors
    /// [`JobPanicked`] with what it said.
    pub(crate) fn wait(self) -> Result<T, JobPanicked> {
        self.outcome.recv().expect("a job that was taken runs, and its outcome is sent")
    }
}

/// What a panic said. The payload goes, and a panic while it goes is dropped too.
pub(crate) fn message_of(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // Whoever panics while a panic is dropped may do it again: better to leak that one.
        std::mem::forget(second);
    }
    text.unwrap_or_else(|| "(not a text)".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::super::affinity::tests::{only_core, passes_on_core};
    use super::super::affinity::{allowed_cores, current_core};
    use super::*;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(20))
    }

    #[test]
    fn every_job_runs_on_its_thread_and_its_core() {
        let cores = allowed_cores().unwrap();
        let threads = cores.len() * 2;
        let pool = ScanPool::start("test-scan", threads, &cores).unwrap();
        assert_eq!(pool.threads(), threads);
        for round in 0..200 {
            let running: Vec<_> = (0..threads)
                .map(|thread| {
                    let job = move |seat| (seat, current_core(), thread::current().name().map(str::to_owned));
                    pool.run_on(thread, job).unwrap()
                })
                .collect();
            for (thread, running) in running.into_iter().enumerate() {
                let core = cores[thread % cores.len()];
                let seat = Seat { thread, core: Some(core) };
                let name = Some(format!("test-scan-{thread}"));
                assert_eq!(running.wait(), Ok((seat, core, name)), "round {round}");
                assert_eq!(pool.seats()[thread], seat);
            }
        }
    }

    #[test]
    fn without_cores_nothing_is_pinned() {
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        let pool = ScanPool::start("test-free", 2, &[]).unwrap();
        let mask = pool.run_on(1, |_| rustix::thread::sched_getaffinity(None).unwrap()).unwrap();
        assert!(mask.wait().unwrap() == all);
        assert_eq!(pool.seats()[1], Seat { thread: 1, core: None });
    }

    #[test]
    fn a_core_that_went_away_leaves_its_thread_free() {
        let missing = (0..1024).rev().find(|core| !allowed_cores().unwrap().contains(core)).unwrap();
        let pool = ScanPool::start("test-missing", 1, &[missing]).unwrap();
        assert_eq!(pool.seats(), [Seat { thread: 0, core: None }]);
        assert_eq!(pool.run_on(0, |_| 7).unwrap().wait(), Ok(7));
    }

    #[test]
    fn jobs_of_one_thread_run_one_after_the_other_in_order() {
        let pool = ScanPool::start("test-order", 2, &[]).unwrap();
        let (told, order) = crossbeam_channel::unbounded();
        for number in 0..1000 {
            let told = told.clone();
            pool.run_on_then(1, None, move |_| number, move |number| told.send(number).unwrap()).unwrap();
        }
        pool.close(None).unwrap();
        assert!(order.try_iter().eq((0..1000).map(Ok)));
    }

    /// A payload whose drop panics, as nasty as it gets.
    struct Nasty;

    impl Drop for Nasty {
        fn drop(&mut self) {
            panic!("and once more");
        }
    }

    #[test]
    fn a_panic_fails_its_job_and_nothing_else() {
        let pool = ScanPool::start("test-panic", 1, &[]).unwrap();
        let panicked = |message: &str| JobPanicked { thread: 0, message: message.to_owned() };
        let text = pool.run_on(0, |_| -> u64 { panic!("no blob {}", 3) }).unwrap();
        let constant = pool.run_on(0, |_| -> u64 { panic!("constant") }).unwrap();
        let nasty = pool.run_on(0, |_| -> u64 { std::panic::panic_any(Nasty) }).unwrap();
        pool.run_on_then(0, None, |_| (), |_| panic!("in the answer")).unwrap();
        let good = pool.run_on(0, |_| 5).unwrap();
        assert_eq!(text.wait(), Err(panicked("no blob 3")));
        assert_eq!(constant.wait(), Err(panicked("constant")));
        assert_eq!(nasty.wait(), Err(panicked("(not a text)")));
        assert_eq!(good.wait(), Ok(5));
        assert_eq!(pool.close(None), Ok(()));
    }

    #[test]
    fn closing_finishes_what_was_taken_and_takes_no_more() {
        let pool = ScanPool::start("test-close", 2, &[]).unwrap();
        let (go, gate) = bounded::<()>(0);
        let count = Arc::new(AtomicUsize::new(0));
        drop(pool.run_on(0, move |_| gate.recv().is_ok()).unwrap());
        for _ in 0..100 {
            let count = count.clone();
            drop(pool.run_on(0, move |_| count.fetch_add(1, Ordering::Relaxed)).unwrap());
        }
        let at_work = Err(StillRunning { threads: vec!["test-close-0".to_owned()] });
        let give_up = Instant::now() + Duration::from_secs(30);
        // The other thread has nothing to do, and ends as soon as it gets a core.
        while pool.close(soon()) != at_work {
            assert!(Instant::now() < give_up);
        }
        assert_eq!(pool.run_on(1, |_| ()).unwrap_err(), JobRefused::Closed);
        drop(go);
        assert_eq!(pool.close(None), Ok(()));
        assert_eq!(pool.close(None), Ok(()), "twice is harmless");
        assert_eq!(count.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn a_full_inbox_makes_wait_until_the_deadline() {
        let pool = ScanPool::start("test-full", 2, &[]).unwrap();
        let (go, gate) = bounded::<()>(0);
        let (started, start) = bounded(1);
        let first = move |_| {
            started.send(()).unwrap();
            let _ = gate.recv();
        };
        let first = pool.run_on(0, first).unwrap();
        start.recv().unwrap(); // It is out of the inbox now.
        for _ in 0..INBOX_JOBS_MAX {
            drop(pool.run_on(0, |_| ()).unwrap());
        }
        let deadline = soon();
        let refused = pool.run_on_then(0, deadline, |_| (), |_| ());
        assert_eq!(refused, Err(JobRefused::Busy { thread: 0 }));
        assert!(Instant::now() >= deadline.unwrap());
        assert_eq!(pool.run_on(1, |_| 1).unwrap().wait(), Ok(1), "the other thread has room");
        drop(go);
        first.wait().unwrap();
    }

    /// Goal: the cache may be dropped by the last of its scans, on a scan thread. Method: a job holds the last
    /// handle of the pool that runs it.
    #[test]
    fn a_pool_dropped_by_its_own_job_does_not_wait_for_itself() {
        let pool = Arc::new(ScanPool::start("test-own", 2, &[]).unwrap());
        let (go, gate) = bounded::<()>(0);
        let (told, dropped) = bounded(1);
        let own = pool.clone();
        let job = move |_| {
            let _ = gate.recv();
            drop(own);
            told.send(()).unwrap();
        };
        drop(pool.run_on(0, job).unwrap());
        drop(pool);
        drop(go);
        dropped.recv_timeout(Duration::from_secs(30)).expect("the pool dropped itself");
    }

    #[test]
    fn child_scans_on_the_core_it_is_left() {
        let Some(core) = only_core() else { return };
        let cores = allowed_cores().unwrap();
        assert_eq!(cores, [core]);
        let pool = ScanPool::start("test-one", cores.len(), &cores).unwrap();
        for _ in 0..1000 {
            assert_eq!(pool.run_on(0, |_| current_core()).unwrap().wait(), Ok(core));
        }
    }

    #[test]
    fn in_a_cpuset_of_one_core_the_pool_stays_there() {
        for core in allowed_cores().unwrap() {
            let module = module_path!().split_once("::").expect("below the crate").1;
            assert!(
                passes_on_core(&format!("{module}::child_scans_on_the_core_it_is_left"), core),
                "core {core}"
            );
        }
    }
}

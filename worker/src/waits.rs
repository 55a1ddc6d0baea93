//! Operations that wait, for callers that must not: each becomes a future.
//!
//! A pending operation is the same code as its blocking form, on a thread that waits in the caller's place. So
//! there are as many of these threads as operations are pending at once; one that has nothing to do stays for a
//! while, for the next operation, and ends then. There is no limit but the caller's own: with one, operations
//! that wait for each other's memory could fill it and wait for ever.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crate::scan::cancel::CancelToken;

/// How long a thread without work stays.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// The threads that wait in place of async callers. Dropping it lets them end what they are at.
#[derive(Default)]
pub(crate) struct Waits {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is a job, or there will be none any more.
    filled: Condvar,
    /// A job has ended.
    ended: Condvar,
}

/// Invariant: `jobs` is not longer than `idle`, the threads that have been or will be woken for them.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    started: u64,
    /// By their numbers the jobs that have not ended, queued ones too: whether anybody still wants them.
    pending: BTreeMap<u64, CancelToken>,
    next: u64,
    closed: bool,
}

struct Job {
    number: u64,
    run: Box<dyn FnOnce() + Send>,
}

/// An operation that waits on a thread of the cache. Await it; no runtime is needed.
///
/// Dropping it cancels: the operation ends at its next look, and what it got goes (a lease is released, a load
/// removed). One that was nearly done may still take effect.
#[must_use = "dropping it cancels the operation"]
pub struct Pending<T> {
    slot: Arc<Mutex<Slot<T>>>,
    cancel: CancelToken,
}

enum Slot<T> {
    Running(Option<Waker>),
    Done(thread::Result<T>),
    Taken,
}

impl Waits {
    /// Starts an operation. It is given the token that dropping the future cancels.
    pub(crate) fn start<T, F>(&self, operation: F) -> Pending<T>
    where
        T: Send + 'static,
        F: FnOnce(CancelToken) -> T + Send + 'static,
    {
        let cancel = CancelToken::new();
        let slot = Arc::new(Mutex::new(Slot::Running(None)));
        let (given, told) = (cancel.clone(), slot.clone());
        let run = Box::new(move || {
            // Unwind safe: what the operation had in hand was moved in, and is dropped.
            let outcome = catch_unwind(AssertUnwindSafe(|| operation(given)));
            let before = std::mem::replace(&mut *lock(&told), Slot::Done(outcome));
            // Outside of the lock: a waker may run anything.
            if let Slot::Running(Some(waker)) = before {
                waker.wake();
            }
        });
        let number = {
            let mut queue = lock(&self.shared.queue);
            queue.next += 1;
            let number = queue.next;
            queue.pending.insert(number, cancel.clone());
            number
        };
        if let Err(job) = self.hand_over(Job { number, run }) {
            // The system gives no thread: better to keep this caller waiting than to fail.
            self.shared.run(job);
        }
        Pending { slot, cancel }
    }

    /// Waits until the operations that were cancelled hold nothing any more.
    pub(crate) fn settle(&self, deadline: Instant) {
        let mut queue = lock(&self.shared.queue);
        while queue.pending.values().any(CancelToken::is_cancelled) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.shared.ended.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.shared.queue).pending.is_empty()
    }

    /// To an idle thread, or to a new one. Gives the job back if there is neither.
    fn hand_over(&self, job: Job) -> Result<(), Job> {
        let mut queue = lock(&self.shared.queue);
        if queue.jobs.len() < queue.idle {
            queue.jobs.push_back(job);
            drop(queue);
            self.shared.filled.notify_one();
            return Ok(());
        }
        queue.started += 1;
        let name = format!("pelton-wait-{}", queue.started);
        drop(queue);
        let first = Arc::new(Mutex::new(Some(job)));
        let (shared, mine) = (self.shared.clone(), first.clone());
        let run = move || {
            if let Some(job) = take(&mine) {
                shared.run(job);
            }
            shared.serve();
        };
        match thread::Builder::new().name(name).spawn(run) {
            Ok(_) => Ok(()),
            Err(_) => take(&first).map_or(Ok(()), Err),
        }
    }
}

fn take(first: &Mutex<Option<Job>>) -> Option<Job> {
    lock(first).take()
}

impl Drop for Waits {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.filled.notify_all();
    }
}

impl Shared {
    fn run(&self, Job { number, run }: Job) {
        run();
        lock(&self.queue).pending.remove(&number);
        self.ended.notify_all();
    }

    /// Does what comes, until nothing has come for a while.
    fn serve(&self) {
        loop {
            let mut queue = lock(&self.queue);
            queue.idle += 1;
            let job = loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break Some(job);
                }
                if queue.closed {
                    break None;
                }
                let (woken, waited) =
                    self.filled.wait_timeout(queue, IDLE_MAX).unwrap_or_else(PoisonError::into_inner);
                queue = woken;
                if waited.timed_out() && queue.jobs.is_empty() {
                    break None;
                }
            };
            queue.idle -= 1;
            drop(queue);
            match job {
                Some(job) => self.run(job),
                None => return,
            }
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut slot = lock(&self.slot);
        match &mut *slot {
            Slot::Running(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                return Poll::Pending;
            }
            Slot::Done(_) => {}
            Slot::Taken => panic!("polled after it was ready"),
        }
        let Slot::Done(outcome) = std::mem::replace(&mut *slot, Slot::Taken) else {
            unreachable!("it was looked at just now, under the lock")
        };
        drop(slot);
        Poll::Ready(outcome.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        // After it is done nobody looks at the token any more.
        self.cancel.cancel();
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing of others runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::scan::patience::Patience;

    fn wait<T>(pending: Pending<T>) -> T {
        Patience::default().wait(pin!(pending)).expect("it has all the time")
    }

    #[test]
    fn an_operation_runs_elsewhere_and_its_answer_comes_here() {
        let waits = Waits::default();
        let here = thread::current().id();
        let there = wait(waits.start(|_| thread::current().id()));
        assert_ne!(there, here);
    }

    /// Two operations of which each waits for the other need two threads.
    #[test]
    fn operations_that_wait_for_each_other_end() {
        let waits = Waits::default();
        let (to_second, from_first) = channel();
        let (to_first, from_second) = channel();
        let first = waits.start(move |_| {
            to_second.send(1).unwrap();
            from_second.recv().unwrap()
        });
        let second = waits.start(move |_| {
            to_first.send(2).unwrap();
            from_first.recv().unwrap()
        });
        assert_eq!((wait(first), wait(second)), (2, 1));
    }

    #[test]
    fn dropping_the_future_cancels_the_operation() {
        let waits = Waits::default();
        let (tell, told) = channel();
        let pending = waits.start(move |cancel| {
            assert!(cancel.line().recv().is_err(), "the line hangs up at the cancel");
            tell.send(()).unwrap();
        });
        drop(pending);
        told.recv().unwrap();
    }

    #[test]
    fn a_panic_comes_out_where_the_future_is_awaited() {
        let waits = Waits::default();
        let pending: Pending<()> = waits.start(|_| panic!("in the operation"));
        let panic = catch_unwind(AssertUnwindSafe(|| wait(pending))).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the operation"));
        assert_eq!(wait(waits.start(|_| 5)), 5);
    }
}

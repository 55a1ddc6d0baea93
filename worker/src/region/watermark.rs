//! How far a region may be read while it is still being brought into memory.
//!
//! ```text
//! | in memory and verified: scans read here | arrived | on its way from the disk |
//! 0                                    reached                                  end
//! ```
//!
//! One thread moves the mark forward, or says that it will not move any more and why; scans follow it.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::scan::patience::{Impatience, Patience};
use crate::snap::warm::WarmError;

/// Why bytes of a region can't be read.
#[derive(Clone, Debug)]
pub(crate) enum RegionFault {
    /// Whoever asked waits no longer. The bytes may still come.
    Impatience(Impatience),
    /// They will not come.
    Failed(Arc<WarmError>),
}

/// The mark. The value is shared by the one who moves it and all who follow.
#[derive(Debug)]
pub(crate) struct Watermark {
    /// Written by the thread that verifies, read by scans: it publishes the bytes before it.
    reached: AtomicU64,
    end: u64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Why the mark has stopped.
    fault: Option<Arc<WarmError>>,
    wakers: Vec<Waker>,
}

impl Watermark {
    /// For bytes of which none are there yet.
    pub(crate) fn new(end: u64) -> Watermark {
        Watermark { reached: AtomicU64::new(0), end, waiting: Mutex::default() }
    }

    /// For bytes that are all there.
    pub(crate) fn complete(end: u64) -> Watermark {
        let mark = Watermark::new(end);
        mark.reached.store(end, Ordering::Relaxed); // Nobody else has it yet.
        mark
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.reached.load(Ordering::Acquire) == self.end
    }

    /// Why it will not move any more before its end.
    pub(crate) fn failure(&self) -> Option<Arc<WarmError>> {
        self.lock().fault.clone()
    }

    /// Everything before `to` may be read from now on, for good.
    pub(crate) fn publish(&self, to: u64) {
        assert!(to <= self.end, "the mark stays inside of the region");
        let before = self.reached.swap(to, Ordering::Release);
        assert!(before <= to, "the mark only moves forward");
        self.wake(&mut self.lock());
    }

    /// Nothing beyond the mark will ever come. The first reason counts.
    pub(crate) fn fail(&self, why: Arc<WarmError>) {
        let mut waiting = self.lock();
        waiting.fault.get_or_insert(why);
        self.wake(&mut waiting);
    }

    /// Up to where bytes may be read, once that is beyond `from`; at the end it is the end.
    pub(crate) fn readable(&self, from: u64, patience: &Patience) -> Result<u64, RegionFault> {
        match self.enough(from) {
            Some(reached) => Ok(reached),
            None => {
                let beyond = Beyond { mark: self, from, left: None };
                patience.wait(pin!(beyond)).map_err(RegionFault::Impatience)?
            }
        }
    }

    fn enough(&self, from: u64) -> Option<u64> {
        let reached = self.reached.load(Ordering::Acquire);
        (reached > from || reached == self.end).then_some(reached)
    }

    fn wake(&self, waiting: &mut Waiting) {
        // Wakers of threads only: none of them runs anything here.
        waiting.wakers.drain(..).for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ready when the mark is beyond `from`, or will never be.
struct Beyond<'a> {
    mark: &'a Watermark,
    from: u64,
    /// What it has left with the mark.
    left: Option<Waker>,
}

impl Future for Beyond<'_> {
    type Output = Result<u64, RegionFault>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mark = self.mark;
        let mut waiting = mark.lock();
        // Under the lock, which a move takes after it: it is seen here, or finds the waker.
        if let Some(reached) = mark.enough(self.from) {
            return Poll::Ready(Ok(reached));
        }
        if let Some(why) = &waiting.fault {
            return Poll::Ready(Err(RegionFault::Failed(why.clone())));
        }
        if !waiting.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.wakers.push(context.waker().clone());
        }
        self.left = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Beyond<'_> {
    /// A mark that does not move must not gather those who have gone. Nobody else waits with the same waker: each wait
    /// is a thread's own.
    fn drop(&mut self) {
        if let Some(left) = &self.left {
            self.mark.lock().wakers.retain(|waker| !waker.will_wake(left));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::scan::cancel::CancelToken;

    fn no_patience() -> Patience {
        Patience::until(Some(Instant::now()))
    }

    fn is_late(result: Result<u64, RegionFault>) -> bool {
        matches!(result, Err(RegionFault::Impatience(Impatience::Late)))
    }

    #[test]
    fn a_reader_follows_the_mark_to_the_end() {
        let mark = Watermark::new(1000);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut at = 0;
                while at < 1000 {
                    let reached = mark.readable(at, &Patience::default()).unwrap();
                    assert!(reached > at);
                    at = reached;
                }
                mark.readable(at, &Patience::default()).unwrap()
            });
            (1..=100).for_each(|step| mark.publish(step * 10));
            assert_eq!(reader.join().unwrap(), 1000);
        });
        assert!(mark.is_complete());
        assert_eq!(Watermark::complete(7).readable(0, &no_patience()).unwrap(), 7);
    }

    #[test]
    fn a_deadline_ends_the_wait_of_its_reader_only() {
        let mark = Watermark::new(10);
        assert!(is_late(mark.readable(0, &no_patience())));
        assert!(is_late(mark.readable(0, &Patience::until(Some(Instant::now() + Duration::from_millis(2))))));
        mark.publish(5);
        assert_eq!(mark.readable(0, &no_patience()).unwrap(), 5, "what is there is given without patience");
        assert!(is_late(mark.readable(5, &no_patience())));
    }

    #[test]
    fn who_has_waited_in_vain_leaves_nothing_behind() {
        let mark = Watermark::new(10);
        for _ in 0..100 {
            let patience = Patience::until(Some(Instant::now() + Duration::from_micros(10)));
            assert!(is_late(mark.readable(0, &patience)));
        }
        assert_eq!(mark.lock().wakers.len(), 0);
    }

    #[test]
    fn a_failure_wakes_who_waits_and_leaves_what_is_there() {
        let mark = Watermark::new(10);
        mark.publish(4);
        thread::scope(|scope| {
            let reader = scope.spawn(|| mark.readable(4, &Patience::default()));
            mark.fail(Arc::new(WarmError::NoSpindle { index: 3 }));
            let fault = reader.join().unwrap().unwrap_err();
            assert!(
                matches!(&fault, RegionFault::Failed(why) if matches!(**why, WarmError::NoSpindle { .. }))
            );
        });
        assert_eq!(mark.readable(0, &no_patience()).unwrap(), 4);
        assert!(matches!(mark.readable(4, &no_patience()), Err(RegionFault::Failed(_))));
    }

    #[test]
    fn a_cancel_ends_the_wait_of_its_reader_only() {
        let mark = Watermark::new(10);
        let token = CancelToken::new();
        thread::scope(|scope| {
            let cancelled = Patience { cancel: Some(token.clone()), ..Patience::default() };
            let gone = scope.spawn(|| mark.readable(0, &{ cancelled }));
            let stays = scope.spawn(|| mark.readable(0, &Patience::default()));
            token.cancel();
            let fault = gone.join().unwrap().unwrap_err();
            assert!(matches!(fault, RegionFault::Impatience(Impatience::Cancelled)), "{fault:?}");
            mark.publish(10);
            assert_eq!(stays.join().unwrap().unwrap(), 10);
        });
    }
}

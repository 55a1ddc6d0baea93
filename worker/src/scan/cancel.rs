//! A way to end scans from outside.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Ends the scans that were given it, from any thread. Clones are the same token.
///
/// A cancelled token stays so: the next scan takes a new one.
#[derive(Clone)]
pub struct CancelToken {
    shared: Arc<Shared>,
}

struct Shared {
    /// Written once, by the first `cancel`; read at every look. It publishes nothing but itself.
    cancelled: AtomicBool,
    waiting: Mutex<Waiting>,
    /// Hangs up when the token is cancelled: for those who wait at another channel as well.
    line: Receiver<Infallible>,
}

/// Who is to be woken.
struct Waiting {
    line: Option<Sender<Infallible>>,
    wakers: BTreeMap<u64, Waker>,
    next: u64,
}

/// Keeps a waker with a token. Dropping it takes the waker back.
pub(crate) struct Watch<'t> {
    token: &'t CancelToken,
    number: u64,
}

impl CancelToken {
    /// One that nobody has cancelled.
    pub fn new() -> CancelToken {
        let (sender, line) = bounded(0);
        let waiting = Waiting { line: Some(sender), wakers: BTreeMap::new(), next: 0 };
        CancelToken {
            shared: Arc::new(Shared {
                cancelled: AtomicBool::new(false),
                waiting: Mutex::new(waiting),
                line,
            }),
        }
    }

    /// Ends the scans that have it: those that wait at once, the others at the next look, which is never farther
    /// than a few MiB of a region. Doing it twice is harmless.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Release);
        let (line, wakers) = {
            let mut waiting = self.lock();
            (waiting.line.take(), std::mem::take(&mut waiting.wakers))
        };
        // Outside of the lock: a waker may run anything.
        drop(line);
        wakers.into_values().for_each(Waker::wake);
    }

    /// Whether somebody has.
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Acquire)
    }

    /// Ready when somebody has.
    pub async fn cancelled(&self) {
        let mut watch = None;
        std::future::poll_fn(|context| {
            watch = Some(self.watch(context.waker()));
            if self.is_cancelled() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Wakes at the cancel; right now if that has been.
    pub(crate) fn watch(&self, waker: &Waker) -> Watch<'_> {
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.wakers.insert(number, waker.clone());
        drop(waiting);
        // After it was left: a cancel between the two finds it, or is found here.
        if self.is_cancelled() {
            waker.wake_by_ref();
        }
        Watch { token: self, number }
    }

    /// A channel that never has a message, and hangs up at the cancel.
    pub(crate) fn line(&self) -> &Receiver<Infallible> {
        &self.shared.line
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for CancelToken {
    fn default() -> CancelToken {
        CancelToken::new()
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").field("is_cancelled", &self.is_cancelled()).finish_non_exhaustive()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.token.lock().wakers.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_cancel_wakes_who_watches_and_nobody_else() {
        let token = CancelToken::new();
        let counts: Vec<Arc<Count>> = (0..3).map(|_| Arc::default()).collect();
        let wakers: Vec<Waker> = counts.iter().cloned().map(Waker::from).collect();
        let _kept = token.watch(&wakers[0]);
        drop(token.watch(&wakers[1]));
        let line = token.line().clone();
        let waiter = std::thread::spawn(move || line.recv().is_err());
        let other = token.clone();
        assert!(!other.is_cancelled());
        other.cancel();
        other.cancel();
        assert!(token.is_cancelled());
        assert!(waiter.join().unwrap(), "the line hangs up");
        let _late = token.watch(&wakers[2]);
        let woken: Vec<usize> = counts.iter().map(|count| count.0.load(Ordering::Relaxed)).collect();
        assert_eq!(woken, [1, 0, 1], "watching; watched no more; watching after the cancel");
    }
}

//! How long an operation waits, and who may end it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvError, at, never, select};

use crate::scan::cancel::{CancelToken, Watch};

/// How long an operation waits, and who may end it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patience {
    pub(crate) deadline: Option<Instant>,
    /// The caller's.
    pub(crate) cancel: Option<CancelToken>,
    /// The scan's or the load's own: what the end of one part means for the others.
    pub(crate) stop: Option<CancelToken>,
}

/// Why there is no use in waiting on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Impatience {
    Late,
    Cancelled,
}

impl Patience {
    /// One that ends at a deadline, and no other way.
    pub(crate) fn until(deadline: Option<Instant>) -> Patience {
        Patience { deadline, ..Patience::default() }
    }

    /// Whether to go on.
    pub(crate) fn check(&self) -> Result<(), Impatience> {
        if self.tokens().any(CancelToken::is_cancelled) {
            return Err(Impatience::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Impatience::Late),
            _ => Ok(()),
        }
    }

    /// Waits for a message.
    pub(crate) fn receive<T>(&self, from: &Receiver<T>) -> Result<Result<T, RecvError>, Impatience> {
        // What is there already needs no patience.
        if let Ok(message) = from.try_recv() {
            return Ok(Ok(message));
        }
        let (deadline, nobody) = (self.deadline.map_or(never(), at), never());
        let line = |token: &Option<CancelToken>| token.as_ref().map(|token| token.line().clone());
        let (cancel, stop) = (line(&self.cancel), line(&self.stop));
        select! {
            recv(from) -> message => Ok(message),
            recv(cancel.as_ref().unwrap_or(&nobody)) -> _ => Err(Impatience::Cancelled),
            recv(stop.as_ref().unwrap_or(&nobody)) -> _ => Err(Impatience::Cancelled),
            recv(deadline) -> _ => Err(Impatience::Late),
        }
    }

    /// Waits for a future on this thread. Whoever drops the future afterwards ends what it was doing.
    pub(crate) fn wait<F: Future>(&self, mut future: Pin<&mut F>) -> Result<F::Output, Impatience> {
        let waker = Waker::from(Arc::new(Parker(thread::current())));
        let _watches = self.watch(&waker);
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return Ok(output);
            }
            self.check()?;
            match self.deadline {
                None => thread::park(),
                Some(deadline) => thread::park_timeout(deadline.saturating_duration_since(Instant::now())),
            }
        }
    }

    /// Wakes at each cancel, as long as what it returns is kept. What the waker locks must not be locked now.
    pub(crate) fn watch(&self, waker: &Waker) -> Vec<Watch<'_>> {
        self.tokens().map(|token| token.watch(waker)).collect()
    }

    fn tokens(&self) -> impl Iterator<Item = &CancelToken> {
        self.cancel.iter().chain(&self.stop)
    }
}

/// Wakes a thread that waits in [`Patience::wait`].
struct Parker(Thread);

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_there_is_had_without_patience() {
        let past = Patience::until(Some(Instant::now()));
        let (sender, receiver) = crossbeam_channel::unbounded();
        sender.send(7).unwrap();
        assert_eq!(past.receive(&receiver), Ok(Ok(7)));
        assert_eq!(past.wait(pin!(std::future::ready(8))), Ok(8));
        assert_eq!(past.receive(&receiver), Err(Impatience::Late));
        assert_eq!(past.wait(pin!(std::future::pending::<()>())), Err(Impatience::Late));
        assert_eq!(past.check(), Err(Impatience::Late));
    }

    #[test]
    fn a_cancel_ends_every_wait() {
        let far = Some(Instant::now() + Duration::from_secs(60));
        for is_own in [false, true] {
            let token = CancelToken::new();
            let patience = match is_own {
                false => Patience { cancel: Some(token.clone()), ..Patience::default() },
                true => {
                    Patience { deadline: far, stop: Some(token.clone()), cancel: Some(CancelToken::new()) }
                }
            };
            assert_eq!(patience.check(), Ok(()));
            let (_sender, receiver) = crossbeam_channel::unbounded::<()>();
            let waiting = patience.clone();
            let both = thread::spawn(move || {
                let received = waiting.receive(&receiver);
                (received, waiting.wait(pin!(std::future::pending::<()>())))
            });
            token.cancel();
            assert_eq!(both.join().unwrap(), (Err(Impatience::Cancelled), Err(Impatience::Cancelled)));
        }
    }
}

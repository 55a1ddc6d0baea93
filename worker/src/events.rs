//! What happens in a cache, told to whoever listens.
//!
//! ```text
//! loads, commits, leases, disks ──tell──▶ hub ──▶ queue of listener 1 (bounded) ──▶ recv, next
//!                                            └──▶ queue of listener 2 (bounded) ──▶ recv, next
//! ```
//!
//! The cache never waits for a listener: when a queue is full its oldest event goes, and is counted.

use std::collections::VecDeque;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use pelton_region_format::{Fingerprint, Key};

use crate::scan::patience::Patience;
use crate::spindle::health::HealthState;
use crate::stats::meter::{Count, Meter};
use crate::tender::Reason;

/// How many events wait for one listener, at most.
const WAITING_MAX: usize = 1024;

/// What happened in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The cache is open. The first event of every listener, however late it came.
    #[non_exhaustive]
    Started {
        /// When it was opened.
        at: SystemTime,
        /// How many slices it had found on its disks when the listener came.
        slices: usize,
    },
    /// The cache is closed. The last event.
    Stopped,
    /// A load is open.
    #[non_exhaustive]
    LoadBegan {
        /// The slice.
        key: Key,
        /// What decides its blobs.
        fingerprint: Fingerprint,
    },
    /// All of a load has come: its regions are sealed.
    #[non_exhaustive]
    LoadSealed {
        /// The slice.
        key: Key,
        /// What decides its blobs.
        fingerprint: Fingerprint,
        /// How many bytes its blobs have.
        bytes: u64,
        /// How long it was open.
        took: Duration,
    },
    /// A load is over, and has left nothing.
    #[non_exhaustive]
    LoadFailed {
        /// The slice.
        key: Key,
        /// What would have decided its blobs.
        fingerprint: Fingerprint,
        /// Why, for people.
        why: String,
    },
    /// A loader could not plan a load. It is asked again after a while.
    #[non_exhaustive]
    PlanFailed {
        /// The slice.
        key: Key,
        /// Why, for people.
        why: String,
    },
    /// Another number of blobs has arrived than the source meant to send.
    #[non_exhaustive]
    LoadInvalid {
        /// The slice.
        key: Key,
        /// What decides its blobs.
        fingerprint: Fingerprint,
        /// How many blobs the source meant to send.
        expected: u64,
        /// How many there are.
        arrived: u64,
    },
    /// A load has replaced a slice that had another fingerprint.
    #[non_exhaustive]
    Resliced {
        /// The slice.
        key: Key,
        /// What decided its blobs before.
        before: Fingerprint,
        /// What decides them now.
        fingerprint: Fingerprint,
    },
    /// A slice is on the disks: it would survive the process.
    #[non_exhaustive]
    Durable {
        /// The slice.
        key: Key,
        /// What decided its blobs.
        fingerprint: Fingerprint,
        /// How many bytes its files have.
        bytes: u64,
        /// How long that took, from the closing of the load.
        took: Duration,
    },
    /// A slice did not get to the disks. What is in memory of it goes with the process.
    #[non_exhaustive]
    CommitFailed {
        /// The slice.
        key: Key,
        /// What decided its blobs.
        fingerprint: Fingerprint,
        /// Whether it can be scanned, from memory.
        in_memory: bool,
        /// Why, for people.
        why: String,
    },
    /// A slice is being brought from the disks into memory, and can be leased. Scans follow what has arrived.
    #[non_exhaustive]
    Warmed {
        /// The slice.
        key: Key,
        /// How many bytes its files have.
        bytes: u64,
        /// How long it took until it could be leased.
        took: Duration,
    },
    /// A slice could not be brought into memory, or not all of it.
    #[non_exhaustive]
    WarmFailed {
        /// The slice.
        key: Key,
        /// Why, for people.
        why: String,
    },
    /// The scrub found a slice whose files are not what was written. It was dropped: load it again.
    #[non_exhaustive]
    Damaged {
        /// The slice.
        key: Key,
        /// The file.
        file: PathBuf,
        /// Which checksum block of its body, if it is one.
        block: Option<u64>,
        /// What does not hold, for people.
        why: String,
    },
    /// Somebody asked for a slice that was in memory.
    #[non_exhaustive]
    HotLeased {
        /// The slice.
        key: Key,
    },
    /// A slice has left memory; leases go on.
    #[non_exhaustive]
    Evicted {
        /// The slice.
        key: Key,
        /// How many bytes its regions had there.
        bytes: u64,
        /// Why the cache did it by itself, if it did.
        reason: Option<Reason>,
    },
    /// A slice has left the disks, and memory.
    #[non_exhaustive]
    Flushed {
        /// The slice.
        key: Key,
        /// How many bytes its files had.
        bytes: u64,
        /// Why the cache did it by itself, if it did.
        reason: Option<Reason>,
    },
    /// A slice is forgotten.
    #[non_exhaustive]
    Erased {
        /// The slice.
        key: Key,
        /// Why the cache did it by itself, if it did.
        reason: Option<Reason>,
    },
    /// Tasks wait for memory for so much of the time that the cache gives some of its own back; or they do so no
    /// longer.
    #[non_exhaustive]
    Pressure {
        /// In which share of the last ten seconds some task waited, in percent.
        percent: u32,
        /// Whether that is too much.
        high: bool,
    },
    /// A spindle is trusted more or less than before.
    #[non_exhaustive]
    Spindle {
        /// Its folder.
        folder: PathBuf,
        /// Where it stands now.
        state: HealthState,
        /// The last thing that went wrong, unless nothing is wrong any more.
        fault: Option<String>,
    },
}

/// Why there is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoEvent {
    /// None came in time. Wait again.
    #[error("no event came in time")]
    Late,
    /// The cache is closed, and all its events were told.
    #[error("the cache is closed: there are no more events")]
    Stopped,
}

/// One listener's events, in the order in which they happened. Dropping it ends the listening.
#[derive(Debug)]
pub struct Events {
    inbox: Arc<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    state: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    lost: u64,
    stopped: bool,
    waker: Option<Waker>,
}

impl Events {
    /// The next event, if one is there.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.inbox.lock().events.pop_front()
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// [`NoEvent`].
    pub fn recv(&mut self, deadline: Option<Instant>) -> Result<Event, NoEvent> {
        let received = Patience::until(deadline).wait(pin!(self.next()));
        received.map_err(|_| NoEvent::Late)?.ok_or(NoEvent::Stopped)
    }

    /// Waits for the next event, for any runtime; nothing after the last one. Dropping the future loses no event.
    #[allow(clippy::should_implement_trait, reason = "a stream's, and there is none in std")]
    pub fn next(&mut self) -> impl Future<Output = Option<Event>> + Send + '_ {
        poll_fn(|context| self.inbox.poll(context))
    }

    /// How many events were dropped, since the listener did not take them in time.
    pub fn lost(&self) -> u64 {
        self.inbox.lock().lost
    }
}

impl Inbox {
    /// Puts it at the end. Whoever waits for it is to be woken, outside of all locks: a waker may run anything.
    #[must_use]
    fn put(&self, event: Event, lost: &Count) -> Option<Waker> {
        let mut state = self.lock();
        if state.events.len() == WAITING_MAX {
            // What happened last says most about how things are now.
            state.events.pop_front();
            state.lost += 1;
            lost.one();
        }
        state.stopped |= event == Event::Stopped;
        state.events.push_back(event);
        state.waker.take()
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut state = self.lock();
        match state.events.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None if state.stopped => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the cache tells its events, and counts what happens.
pub(crate) struct EventHub {
    pub(crate) meter: Meter,
    opened: SystemTime,
    found: AtomicUsize,
    listeners: Mutex<Listeners>,
    /// Written under the lock, when a listener comes; read without it, so that an event that nobody hears costs
    /// nothing. It publishes nothing but itself.
    heard: AtomicBool,
}

#[derive(Debug, Default)]
struct Listeners {
    inboxes: Vec<Weak<Inbox>>,
    stopped: bool,
}

impl EventHub {
    /// Of a cache that is opened now.
    pub(crate) fn new(meter: Meter) -> EventHub {
        EventHub {
            meter,
            opened: SystemTime::now(),
            found: AtomicUsize::new(0),
            listeners: Mutex::default(),
            heard: AtomicBool::new(false),
        }
    }

    /// So many slices were found on the disks.
    pub(crate) fn found(&self, slices: usize) {
        self.found.store(slices, Ordering::Relaxed);
    }

    /// One more listener.
    pub(crate) fn listen(&self) -> Events {
        let inbox = Arc::new(Inbox::default());
        let put = |event| drop(inbox.put(event, &self.meter.events_lost)); // Nobody waits for it yet.
        put(Event::Started { at: self.opened, slices: self.found.load(Ordering::Relaxed) });
        let mut listeners = self.lock();
        if listeners.stopped {
            put(Event::Stopped);
        }
        listeners.inboxes.push(Arc::downgrade(&inbox));
        self.heard.store(true, Ordering::Relaxed);
        Events { inbox }
    }

    /// Tells all listeners. The event is made only if there is one.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if !self.heard.load(Ordering::Relaxed) {
            return;
        }
        let event = event();
        // Under the lock, so that all hear events in the same order.
        let mut listeners = self.lock();
        if listeners.stopped {
            return;
        }
        listeners.stopped = event == Event::Stopped;
        listeners.inboxes.retain(|inbox| inbox.strong_count() > 0);
        let lost = &self.meter.events_lost;
        let inboxes = listeners.inboxes.iter().filter_map(Weak::upgrade);
        let wakers: Vec<Waker> = inboxes.filter_map(|inbox| inbox.put(event.clone(), lost)).collect();
        drop(listeners);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Tells what somebody should look at: in the log, too.
    pub(crate) fn tell_trouble(&self, event: impl FnOnce() -> Event) {
        if !tracing::enabled!(tracing::Level::WARN) {
            return self.tell(event);
        }
        let event = event();
        log(&event);
        self.tell(|| event);
    }

    /// The last event.
    pub(crate) fn stop(&self) {
        self.tell(|| Event::Stopped);
        self.lock().stopped = true;
    }

    fn lock(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Warns of what heals by itself, or by loading again; an error is what does not.
fn log(event: &Event) {
    match event {
        Event::LoadFailed { key, why, .. } => tracing::warn!(%key, why, "a load has failed"),
        Event::CommitFailed { key, in_memory, why, .. } => {
            tracing::error!(%key, in_memory, why, "a slice did not get to the disk");
        }
        Event::WarmFailed { key, why } => tracing::warn!(%key, why, "a slice did not get into memory"),
        Event::Damaged { key, file, block, why } => {
            tracing::error!(%key, file = %file.display(), block, why, "a slice is damaged and was dropped");
        }
        Event::Spindle { folder, state: HealthState::Ok, .. } => {
            tracing::info!(folder = %folder.display(), "a spindle is trusted again");
        }
        Event::Spindle { folder, state, fault } => {
            tracing::warn!(folder = %folder.display(), ?state, fault, "a spindle is not trusted");
        }
        other => tracing::warn!(?other, "something has happened"),
    }
}

/// An error with all its causes, in one line.
pub(crate) fn reason(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::stats::recorder::Registrar;

    fn hot(slice: u32) -> Event {
        Event::HotLeased { key: format!("test/events@1#{slice}").parse().unwrap() }
    }

    fn hub() -> EventHub {
        EventHub::new(Meter::new(&Registrar::default(), 0))
    }

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(60))
    }

    #[test]
    fn every_listener_hears_what_happens_while_it_listens() {
        let hub = hub();
        hub.found(3);
        hub.tell(|| unreachable!("nobody listens, so nothing is made"));
        let mut first = hub.listen();
        hub.tell(|| hot(1));
        let mut second = hub.listen();
        hub.tell(|| hot(2));
        for (events, expected) in [(&mut first, vec![hot(1), hot(2)]), (&mut second, vec![hot(2)])] {
            assert!(matches!(events.recv(None), Ok(Event::Started { slices: 3, .. })));
            for event in expected {
                assert_eq!(events.recv(soon()), Ok(event));
            }
            assert_eq!(events.try_recv(), None);
            assert_eq!(events.recv(Some(Instant::now())), Err(NoEvent::Late));
        }
        hub.stop();
        hub.tell(|| hot(3));
        let mut late = hub.listen();
        assert!(matches!(late.recv(None), Ok(Event::Started { .. })));
        for events in [&mut first, &mut second, &mut late] {
            assert_eq!(events.recv(None), Ok(Event::Stopped), "the last one");
            assert_eq!(events.recv(None), Err(NoEvent::Stopped));
        }
    }

    #[test]
    fn a_slow_listener_loses_the_oldest_and_can_ask_how_many() {
        let hub = hub();
        let mut events = hub.listen();
        let count = WAITING_MAX as u32 + 10;
        (0..count).for_each(|slice| hub.tell(|| hot(slice)));
        // The first one, too: that the cache was opened.
        assert_eq!((events.lost(), hub.meter.events_lost.value()), (11, 11));
        assert_eq!(events.recv(None), Ok(hot(10)));
        assert_eq!(std::iter::from_fn(|| events.try_recv()).last(), Some(hot(count - 1)));
    }

    #[test]
    fn whoever_waits_is_woken_and_a_listener_that_went_is_forgotten() {
        let hub = Arc::new(hub());
        let mut events = hub.listen();
        drop(hub.listen());
        assert!(matches!(events.try_recv(), Some(Event::Started { .. })));
        let waiter = thread::spawn(move || {
            let patience = Patience::until(soon());
            let next = patience.wait(pin!(events.next())).unwrap();
            (next, events.recv(soon()))
        });
        hub.tell(|| hot(1));
        hub.tell(|| hot(2));
        assert_eq!(waiter.join().unwrap(), (Some(hot(1)), Ok(hot(2))));
        hub.tell(|| hot(3));
        assert_eq!(hub.lock().inboxes.len(), 0);
    }
}

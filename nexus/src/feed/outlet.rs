//! Where a source pushes its blobs: packed into parcels, and no faster than they leave.
//!
//! ```text
//!   source ─push─▶ packer ─▶ ready ─next─▶ the stream
//!     ▲                        │
//!     └──── waits for room ────┘
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pelton_nexus_proto::feed::{Tally, Totals};
use pelton_nexus_proto::messages::Resume;
use pelton_nexus_proto::{Limits, PackerOptions, Parcel, ParcelPacker, Rooms};
use tokio::sync::Notify;

use super::source::SourceError;

/// Parcels that wait for the stream. Two: one that leaves and one that is ready when it has left.
const READY_MAX: usize = 2;

/// Takes a source's blobs for one stream.
pub struct Outlet {
    shared: Arc<Shared>,
}

/// The stream's end of an outlet. Dropping it stops the source at its next push.
pub(super) struct Parcels {
    shared: Arc<Shared>,
}

/// What the stream finds.
pub(super) enum Next {
    Parcel(Parcel),
    Ended(Result<Tally, SourceError>),
}

struct Shared {
    /// Taken before `ready` by who packs, so that parcels are ready in their order; never by the stream, since packing
    /// takes time.
    packing: Mutex<Packing>,
    ready: Mutex<Ready>,
    /// There is room, or there will be none any more.
    room: Condvar,
    /// There is something for the stream.
    news: Notify,
}

struct Packing {
    packer: ParcelPacker,
    made: Vec<Parcel>,
    /// What was pushed and rejected.
    tally: Tally,
    /// What a resumed stream has already: so much is made and not sent.
    skip: Option<Totals>,
    skipped: Totals,
}

#[derive(Default)]
struct Ready {
    parcels: VecDeque<Parcel>,
    /// When what is being collected must go.
    due: Option<Instant>,
    ended: Option<Result<Tally, SourceError>>,
    is_stopped: bool,
}

/// An outlet with its stream's end. A replayable source's parcels are cut by size alone: time would cut them elsewhere
/// the next time.
pub(super) fn outlet(
    mut options: PackerOptions,
    limits: Limits,
    rooms: Rooms,
    replayable: bool,
    resume: Option<&Resume>,
) -> (Outlet, Parcels) {
    if replayable {
        options.wait_max = FOREVER;
    }
    let skip =
        resume.map(|resume| Totals { parcels: resume.parcels, items: resume.items, bytes: resume.bytes });
    let packing = Packing {
        packer: ParcelPacker::new(options, limits).rooms(rooms),
        made: Vec::new(),
        tally: Tally::default(),
        skip: skip.filter(|skip| skip.parcels > 0),
        skipped: Totals::default(),
    };
    let shared = Arc::new(Shared {
        packing: Mutex::new(packing),
        ready: Mutex::default(),
        room: Condvar::new(),
        news: Notify::new(),
    });
    (Outlet { shared: Arc::clone(&shared) }, Parcels { shared })
}

/// Longer than any stream.
const FOREVER: Duration = Duration::from_secs(1 << 32);

impl Outlet {
    /// Sends a blob. Waits while the other end, or the network, is slower: that is what slows a source down.
    ///
    /// # Errors
    /// [`SourceError::Stopped`] if the stream is over; [`SourceError::Blob`] if the blob can't be sent at all: it was
    /// not taken, and others may follow.
    pub fn push(&self, blob: &[u8]) -> Result<(), SourceError> {
        self.wait_for_room()?;
        let mut packing = lock(&self.shared.packing);
        let packing = &mut *packing;
        packing.packer.push(blob, Instant::now(), &mut packing.made).map_err(SourceError::Blob)?;
        packing.tally.expected += 1;
        packing.tally.potential += 1;
        self.shared.hand_on(packing)
    }

    /// Counts an item that the source does not send, since it is faulty or too large.
    pub fn reject(&self) {
        let tally = &mut lock(&self.shared.packing).tally;
        tally.potential += 1;
        tally.rejected += 1;
    }

    /// What was pushed and rejected so far: the tally of a source that has sent all there is.
    pub fn tally(&self) -> Tally {
        lock(&self.shared.packing).tally
    }

    /// Whether the stream is over. A source that waits for something else than this outlet looks at it now and then.
    pub fn is_stopped(&self) -> bool {
        lock(&self.shared.ready).is_stopped
    }

    /// The source is done.
    pub(super) fn end(&self, result: Result<Tally, SourceError>) {
        let result = result.and_then(|tally| {
            let mut packing = lock(&self.shared.packing);
            let packing = &mut *packing;
            packing.packer.finish(&mut packing.made).map_err(SourceError::failed)?;
            self.shared.hand_on(packing)?;
            // It has ended before the place where it was to go on.
            if packing.skip.is_some() { Err(SourceError::NotReplayable) } else { Ok(tally) }
        });
        lock(&self.shared.ready).ended.get_or_insert(result);
        self.shared.news.notify_one();
    }

    fn wait_for_room(&self) -> Result<(), SourceError> {
        let mut ready = lock(&self.shared.ready);
        while ready.parcels.len() >= READY_MAX && !ready.is_stopped {
            ready = self.shared.room.wait(ready).unwrap_or_else(PoisonError::into_inner);
        }
        if ready.is_stopped { Err(SourceError::Stopped) } else { Ok(()) }
    }
}

impl Drop for Outlet {
    /// A source that panicked has told nothing.
    fn drop(&mut self) {
        let panicked = SourceError::failed("the source ended without saying how");
        lock(&self.shared.ready).ended.get_or_insert(Err(panicked));
        self.shared.news.notify_one();
    }
}

impl Shared {
    /// What was packed is ready, but for what a resumed stream has already.
    fn hand_on(&self, packing: &mut Packing) -> Result<(), SourceError> {
        let mut fresh = Vec::new();
        for parcel in packing.made.drain(..) {
            let Some(skip) = packing.skip else {
                fresh.push(parcel);
                continue;
            };
            packing.skipped.parcels += 1;
            packing.skipped.items += u64::from(parcel.blob_count());
            packing.skipped.bytes += parcel.inflated_bytes();
            if packing.skipped.parcels == skip.parcels {
                if packing.skipped != skip {
                    return Err(SourceError::NotReplayable);
                }
                packing.skip = None;
            }
        }
        let mut ready = lock(&self.ready);
        ready.due = packing.packer.due();
        let is_news = !fresh.is_empty() || ready.due.is_some();
        ready.parcels.extend(fresh);
        drop(ready);
        if is_news {
            self.news.notify_one();
        }
        Ok(())
    }
}

impl Parcels {
    /// What comes next. Safe to cancel.
    pub(super) async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            let due = lock(&self.shared.ready).due;
            match due {
                None => self.shared.news.notified().await,
                Some(due) => {
                    tokio::select! {
                        () = self.shared.news.notified() => {}
                        () = tokio::time::sleep_until(due.into()) => self.send_what_is_due().await,
                    }
                }
            }
        }
    }

    fn take(&self) -> Option<Next> {
        let mut ready = lock(&self.shared.ready);
        if let Some(parcel) = ready.parcels.pop_front() {
            drop(ready);
            self.shared.room.notify_all();
            return Some(Next::Parcel(parcel));
        }
        ready.ended.take().map(Next::Ended)
    }

    /// The first blob has waited long enough. Packing takes time, so not here.
    async fn send_what_is_due(&self) {
        let shared = Arc::clone(&self.shared);
        let packed = tokio::task::spawn_blocking(move || {
            let mut packing = lock(&shared.packing);
            let packing = &mut *packing;
            let packed = packing.packer.on_time(Instant::now(), &mut packing.made);
            packed.map_err(SourceError::failed).and_then(|()| shared.hand_on(packing))
        });
        if let Ok(Err(error)) = packed.await {
            lock(&self.shared.ready).ended.get_or_insert(Err(error));
        }
    }
}

impl Drop for Parcels {
    fn drop(&mut self) {
        lock(&self.shared.ready).is_stopped = true;
        self.shared.room.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A source that panicked inside of a push ends its stream: nothing of what is here is sent then.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(target_bytes: usize, wait_ms: u64) -> PackerOptions {
        PackerOptions { target_bytes, wait_max: Duration::from_millis(wait_ms), ..PackerOptions::default() }
    }

    #[tokio::test]
    async fn a_blob_that_waits_long_enough_goes_though_nothing_follows() {
        let (outlet, parcels) =
            outlet(options(1 << 20, 20), Limits::default(), Rooms::default(), false, None);
        outlet.push(b"alone").unwrap();
        let Next::Parcel(parcel) = parcels.next().await else { panic!("it was pushed") };
        assert_eq!((parcel.blob_count(), parcel.inflated_bytes()), (1, 9));
        outlet.end(Ok(outlet.tally()));
        let Next::Ended(Ok(tally)) = parcels.next().await else { panic!("it has ended") };
        assert_eq!(tally, Tally { expected: 1, potential: 1, rejected: 0 });
    }

    #[test]
    fn a_source_waits_for_room_and_is_stopped_when_the_stream_is_over() {
        let (outlet, parcels) =
            outlet(options(1 << 10, 20), Limits::default(), Rooms::default(), false, None);
        let pushing = std::thread::spawn(move || {
            let pushed = (0..1000).take_while(|_| outlet.push(&[7; 1020]).is_ok()).count();
            (pushed, outlet.is_stopped())
        });
        while lock(&parcels.shared.ready).parcels.len() < READY_MAX {
            std::thread::yield_now();
        }
        drop(parcels);
        let (pushed, stopped) = pushing.join().unwrap();
        assert!(stopped);
        assert_eq!(pushed, READY_MAX, "one parcel for each blob, and no more than there is room for");
    }

    #[tokio::test]
    async fn what_a_resumed_stream_has_is_made_again_and_not_sent() {
        for (items, fits) in [(2, true), (3, false)] {
            let resume = Resume { token: Vec::new(), parcels: 2, items, bytes: 2 * 1024 };
            let (outlet, parcels) =
                outlet(options(1 << 10, 20), Limits::default(), Rooms::default(), true, Some(&resume));
            let pushed: Result<Vec<()>, SourceError> =
                [0, 1, 2].into_iter().map(|byte: u8| outlet.push(&[byte; 1020])).collect();
            match fits {
                true => {
                    pushed.unwrap();
                    let Next::Parcel(parcel) = parcels.next().await else { panic!("the third is sent") };
                    assert_eq!(parcel.body()[4], 2);
                }
                false => assert!(matches!(pushed, Err(SourceError::NotReplayable))),
            }
        }
        let resume = Resume { token: Vec::new(), parcels: 2, items: 2, bytes: 2 * 1024 };
        let (outlet, parcels) =
            outlet(options(1 << 10, 20), Limits::default(), Rooms::default(), true, Some(&resume));
        outlet.push(&[0; 1020]).unwrap();
        outlet.end(Ok(outlet.tally()));
        assert!(matches!(parcels.next().await, Next::Ended(Err(SourceError::NotReplayable))));
    }

    #[tokio::test]
    async fn a_source_that_panics_ends_its_stream() {
        let (outlet, parcels) =
            outlet(options(1 << 10, 20), Limits::default(), Rooms::default(), false, None);
        let panicked = std::thread::spawn(move || {
            let _outlet = outlet;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert!(matches!(parcels.next().await, Next::Ended(Err(SourceError::Failed(_)))));
    }
}

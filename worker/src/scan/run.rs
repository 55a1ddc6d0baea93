//! Scans by the cache's own threads: a region belongs to one of them, results are merged as they arrive.
//!
//! ```text
//! scan ──one job each──▶ scan threads: fold region after region ──results──▶ mailbox ──▶ merge, in the caller
//! ```
//!
//! There is one form, a future. The blocking form waits for it.

use std::collections::{BTreeSet, VecDeque};
use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use pelton_region_format::{FormatError, Key};
use tracing::field::Empty;
use tracing::info_span;

use crate::budget::memory::MemoryRefused;
use crate::scan::blobs::{Blobs, FoldError};
use crate::scan::cancel::CancelToken;
use crate::scan::lease::{Lease, Partition};
use crate::scan::patience::{Impatience, Patience};
use crate::scan::pool::{JobPanicked, on_scan_thread};
use crate::scan::report::{RegionReport, ScanReport};
use crate::scan::stream::RingSlot;
use crate::snap::warm::WarmError;
use crate::spindle::engine::DiskError;

/// How a scan is to go.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ScanOptions {
    /// When the scan is to have ended. It is looked at whenever a few MiB were scanned, and in every wait.
    pub deadline: Option<Instant>,
    /// Ends the scan when somebody cancels it.
    pub cancel: Option<CancelToken>,
    /// Whether a scan thread that has done its own regions takes those that others have not begun. Off, since a
    /// region that changes its core leaves what the caches have of it behind.
    pub steal: bool,
}

impl ScanOptions {
    pub(crate) fn patience(&self) -> Patience {
        Patience { deadline: self.deadline, cancel: self.cancel.clone(), stop: None }
    }
}

/// Why a scan has no result. What it had folded is dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The bytes do not hold what the format promises. Drop the slice and load it again.
    #[error("region {index} of {key} is damaged")]
    Damaged {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// What does not hold.
        source: Box<FormatError>,
    },
    /// The disk refused to read. The file may be fine: try again.
    #[error("region {index} of {key} could not be read")]
    Disk {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// What the disk said.
        source: Arc<DiskError>,
    },
    /// The region could not be brought into memory as far as the scan wanted to go. The next lease tries again.
    #[error("region {index} of {key} could not be brought into memory")]
    Warm {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// Why not.
        source: Arc<WarmError>,
    },
    /// The file behind the region became shorter during the scan: what was read may have been zeros.
    #[error("region {index} of {key} lost its file's end during the scan")]
    Lost {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
    },
    /// Reading from the disk takes memory that the budget has no room for: a buffer as large as the blob, if that
    /// is larger than the ring. Evict something, or configure more.
    #[error("the stream of region {index} of {key} got no memory")]
    Memory {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// How much was wanted and how much there is.
        source: MemoryRefused,
    },
    /// The system gave no memory although the budget would have.
    #[error("the stream of region {index} of {key} got no memory from the system")]
    System {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The deadline passed before it had ended. Closures that are under way end at their next look.
    #[error("the scan of {key} did not end in time")]
    Late {
        /// The slice.
        key: Key,
    },
    /// It was cancelled. Closures that are under way end at their next look.
    #[error("the scan of {key} was cancelled")]
    Cancelled {
        /// The slice.
        key: Key,
    },
    /// The caller's closure gave up: with [`FoldError::Caller`], or an error of its own making.
    #[error("the fold of region {index} of {key} failed")]
    Fold {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// What the closure said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The caller's closure panicked. Only this scan has failed.
    #[error("the scan of region {index} of {key} panicked: {message}")]
    Panicked {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// What the panic said.
        message: String,
    },
    /// A scan's closure, which runs on a scan thread, has begun another scan. It would wait for its own thread:
    /// fold the partitions there, or scan one after the other.
    #[error("{key} can't be scanned from inside of a scan")]
    Nested {
        /// The slice.
        key: Key,
    },
    /// The scan threads are not there: the system gives no more. Try again, or fold the partitions.
    #[error("there are no threads to scan {key}")]
    Threads {
        /// The slice.
        key: Key,
        /// What the system said.
        source: io::Error,
    },
}

impl ScanError {
    pub(crate) fn of_region(key: &Key, index: u32, fault: FoldError) -> ScanError {
        let key = key.clone();
        match fault {
            FoldError::Damaged(source) => ScanError::Damaged { key, index, source },
            FoldError::Disk(source) => ScanError::Disk { key, index, source },
            FoldError::Warm(source) => ScanError::Warm { key, index, source },
            FoldError::Lost => ScanError::Lost { key, index },
            FoldError::Memory(source) => ScanError::Memory { key, index, source },
            FoldError::System(source) => ScanError::System { key, index, source },
            FoldError::Late => ScanError::Late { key },
            FoldError::Cancelled => ScanError::Cancelled { key },
            FoldError::Caller(source) => ScanError::Fold { key, index, source },
        }
    }

    fn of_scan(key: &Key, impatience: Impatience) -> ScanError {
        match impatience {
            Impatience::Late => ScanError::Late { key: key.clone() },
            Impatience::Cancelled => ScanError::Cancelled { key: key.clone() },
        }
    }
}

impl Lease {
    /// Folds every region on the scan thread that it belongs to, and merges the results as they arrive.
    ///
    /// A region belongs to one thread for good, so what its core has cached of it is still there for the next
    /// scan. `merge` runs on the calling thread, in the order in which the regions end.
    ///
    /// # Errors
    /// [`ScanError`] of the first region that failed. The others are then left where they are.
    pub fn scan<T, F, M>(&self, fold: F, merge: M) -> Result<T, ScanError>
    where
        T: Default + Send + 'static,
        F: Fn(&mut Blobs<'_>, &mut T) -> Result<(), FoldError> + Send + Sync + 'static,
        M: FnMut(T, T) -> T,
    {
        self.scan_with(ScanOptions::default(), fold, merge).map(|(result, _)| result)
    }

    /// The same with a deadline or a way to cancel it, and how it went.
    ///
    /// When the deadline passes, or somebody cancels, it returns at once: closures that are under way go on to
    /// their next look for a blob, and what they have folded is dropped.
    ///
    /// # Errors
    /// [`ScanError`] of the first region that failed. The others are then left where they are.
    pub fn scan_with<T, F, M>(
        &self,
        options: ScanOptions,
        fold: F,
        merge: M,
    ) -> Result<(T, ScanReport), ScanError>
    where
        T: Default + Send + 'static,
        F: Fn(&mut Blobs<'_>, &mut T) -> Result<(), FoldError> + Send + Sync + 'static,
        M: FnMut(T, T) -> T,
    {
        let patience = options.patience();
        let scanned = patience.wait(pin!(run(self.clone(), options, fold, merge)));
        scanned.map_err(|impatience| ScanError::of_scan(self.key(), impatience))?
    }

    /// The same as a future, for any runtime. It begins with the first poll; `merge` runs in polls; dropping it
    /// cancels.
    ///
    /// # Errors
    /// [`ScanError`] of the first region that failed. The others are then left where they are.
    pub fn scan_async<T, F, M>(
        &self,
        fold: F,
        merge: M,
    ) -> impl Future<Output = Result<T, ScanError>> + Send + use<T, F, M>
    where
        T: Default + Send + 'static,
        F: Fn(&mut Blobs<'_>, &mut T) -> Result<(), FoldError> + Send + Sync + 'static,
        M: FnMut(T, T) -> T + Send,
    {
        let scan = self.scan_async_with(ScanOptions::default(), fold, merge);
        async move { scan.await.map(|(result, _)| result) }
    }

    /// The same with a deadline or a way to cancel it, and how it went.
    ///
    /// No timer runs for the deadline: the scan threads look at it. Where a closure may hang, use the runtime's
    /// timeout, which drops the future.
    ///
    /// # Errors
    /// [`ScanError`] of the first region that failed. The others are then left where they are.
    pub fn scan_async_with<T, F, M>(
        &self,
        options: ScanOptions,
        fold: F,
        merge: M,
    ) -> impl Future<Output = Result<(T, ScanReport), ScanError>> + Send + use<T, F, M>
    where
        T: Default + Send + 'static,
        F: Fn(&mut Blobs<'_>, &mut T) -> Result<(), FoldError> + Send + Sync + 'static,
        M: FnMut(T, T) -> T + Send,
    {
        run(self.clone(), options, fold, merge)
    }
}

/// What comes from the scan threads.
enum Arrival<T> {
    /// A region, by its place in the lease, or why there is no value.
    Region { n: usize, thread: usize, result: Result<(T, RegionReport), ScanError> },
    /// A thread has done its job, and has nothing more of the scan.
    ThreadEnded { thread: usize, panicked: Option<JobPanicked> },
}

/// What the scan threads work from.
struct Shared<T, F> {
    fold: F,
    partitions: Vec<Partition>,
    /// Which were begun. Written by the thread that takes one; a thief looks, too. It publishes nothing but itself.
    taken: Vec<AtomicBool>,
    steal: bool,
    patience: Patience,
    mailbox: Arc<Mailbox<Arrival<T>>>,
}

/// Tells the scan threads when nobody waits for them any more.
struct StopGuard(CancelToken);

impl Drop for StopGuard {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Runs the scan, and records how it went. A dropped one has no outcome.
async fn run<T, F, M>(
    lease: Lease,
    options: ScanOptions,
    fold: F,
    merge: M,
) -> Result<(T, ScanReport), ScanError>
where
    T: Default + Send + 'static,
    F: Fn(&mut Blobs<'_>, &mut T) -> Result<(), FoldError> + Send + Sync + 'static,
    M: FnMut(T, T) -> T,
{
    let span = info_span!("scan", key = %lease.key(), bytes = Empty, outcome = Empty);
    let scanned = scan(lease, options, fold, merge).await;
    match &scanned {
        Ok((_, report)) => span.record("bytes", report.region_bytes).record("outcome", "scanned"),
        Err(ScanError::Cancelled { .. }) => span.record("outcome", "cancelled"),
        Err(ScanError::Late { .. }) => span.record("outcome", "late"),
        Err(_) => span.record("outcome", "failed"),
    };
    scanned
}

async fn scan<T, F, M>(
    lease: Lease,
    options: ScanOptions,
    fold: F,
    mut merge: M,
) -> Result<(T, ScanReport), ScanError>
where
    T: Default + Send + 'static,
    F: Fn(&mut Blobs<'_>, &mut T) -> Result<(), FoldError> + Send + Sync + 'static,
    M: FnMut(T, T) -> T,
{
    let begun = Instant::now();
    let key = lease.key().clone();
    // An executor that waits inside of a fold would keep the scan from its own thread.
    if on_scan_thread() {
        return Err(ScanError::Nested { key });
    }
    let stop = StopGuard(CancelToken::new());
    let patience = Patience { stop: Some(stop.0.clone()), ..options.patience() };
    patience.check().map_err(|impatience| ScanError::of_scan(&key, impatience))?;
    let mailbox = Arc::new(Mailbox::default());
    let partitions: Vec<Partition> = lease.partitions().collect();
    let indexes: Vec<u32> = partitions.iter().map(Partition::index).collect();
    let shared = Shared {
        fold,
        taken: partitions.iter().map(|_| AtomicBool::new(false)).collect(),
        partitions,
        steal: options.steal,
        patience,
        mailbox: mailbox.clone(),
    };
    let mut running = start(&lease, shared)?;

    // So that it ends at once, whatever the closures do.
    let wake = Waker::from(mailbox.clone());
    let _watch = options.cancel.as_ref().map(|cancel| cancel.watch(&wake));
    let is_cancelled = || options.cancel.as_ref().is_some_and(CancelToken::is_cancelled);
    let mut threads_used = BTreeSet::new();
    let mut regions: Vec<Option<RegionReport>> = vec![None; indexes.len()];
    let mut merged: Option<T> = None;
    let mut failed = None;
    while running > 0 {
        let (n, result) = match poll_fn(|context| mailbox.poll(context, is_cancelled)).await {
            None => return Err(ScanError::Cancelled { key }),
            Some(Arrival::Region { n, thread, result }) => {
                threads_used.insert(thread);
                (n, result)
            }
            Some(Arrival::ThreadEnded { thread, panicked }) => {
                running -= 1;
                let Some(JobPanicked { message, .. }) = panicked else { continue };
                // The fold catches its panics; this one came from what the closure or its value dropped.
                let n =
                    (0..indexes.len()).find(|&n| thread_of(indexes[n], lease.threads().count()) == thread);
                let index = n.map_or(0, |n| indexes[n]);
                (0, Err(ScanError::Panicked { key: key.clone(), index, message }))
            }
        };
        match result {
            Ok((value, report)) => {
                regions[n] = Some(report);
                merged = Some(match merged.take() {
                    Some(before) => merge(before, value),
                    None => value,
                });
            }
            // Whoever sets an end to the scan does not wait for closures.
            Err(error @ (ScanError::Late { .. } | ScanError::Cancelled { .. })) if failed.is_none() => {
                return Err(error);
            }
            Err(error) => {
                failed.get_or_insert(error);
                stop.0.cancel();
            }
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let seats = lease.threads().pool().map_or(&[][..], |pool| pool.seats());
    let pinned = threads_used.iter().filter(|&&thread| seats[thread].core.is_some()).count();
    // Every region has one, or the scan has failed.
    let regions = regions.into_iter().flatten().collect();
    let report = ScanReport::new(regions, threads_used.len(), pinned, begun.elapsed());
    Ok((merged.unwrap_or_default(), report))
}

/// Gives each scan thread its job, and says how many have one.
fn start<T, F>(lease: &Lease, shared: Shared<T, F>) -> Result<usize, ScanError>
where
    T: Default + Send + 'static,
    F: Fn(&mut Blobs<'_>, &mut T) -> Result<(), FoldError> + Send + Sync + 'static,
{
    let no_threads = |source| ScanError::Threads { key: lease.key().clone(), source };
    if shared.partitions.is_empty() {
        return Ok(0);
    }
    let pool = lease.threads().pool().map_err(no_threads)?;
    let mut used = vec![shared.steal; pool.threads()];
    for partition in &shared.partitions {
        used[thread_of(partition.index(), pool.threads())] = true;
    }
    let (shared, threads) = (Arc::new(shared), pool.threads());
    let mut started = 0;
    for thread in (0..threads).filter(|&thread| used[thread]) {
        let (mailbox, shared) = (shared.mailbox.clone(), shared.clone());
        // The job drops its share of regions and closure before its end is told: when the scan has ended,
        // nothing of it is left on the scan threads.
        let job = move |_| shared.work(thread, threads);
        let done = move |ended: Result<(), JobPanicked>| {
            mailbox.post(Arrival::ThreadEnded { thread, panicked: ended.err() });
        };
        // What waits in an inbox is bounded by scans, not by regions. A full one is not waited for: this may be a
        // poll, which must not block.
        pool.run_on_then(thread, Some(Instant::now()), job, done)
            .map_err(|refused| no_threads(io::Error::other(refused)))?;
        started += 1;
    }
    Ok(started)
}

/// Which thread a region belongs to. By its index: with regions that have no blobs, the others stay where they
/// would be.
fn thread_of(index: u32, threads: usize) -> usize {
    index as usize % threads
}

impl<T, F> Shared<T, F>
where
    T: Default + Send + 'static,
    F: Fn(&mut Blobs<'_>, &mut T) -> Result<(), FoldError> + Send + Sync + 'static,
{
    /// One scan thread's job: its own regions, then what others have left.
    fn work(&self, thread: usize, threads: usize) {
        let mut slot = RingSlot::default();
        let own = |n: &usize| thread_of(self.partitions[*n].index(), threads) == thread;
        let theirs = (0..self.partitions.len()).rev().filter(|n| self.steal && !own(n));
        for n in (0..self.partitions.len()).filter(own).chain(theirs) {
            if !self.taken[n].swap(true, Ordering::Relaxed) {
                let result = self.partitions[n].fold_patiently(&self.fold, &self.patience, &mut slot);
                self.mailbox.post(Arrival::Region { n, thread, result });
            }
        }
    }
}

/// Holds what arrives until the scan's future looks.
struct Mailbox<M> {
    inside: Mutex<Inside<M>>,
}

struct Inside<M> {
    arrived: VecDeque<M>,
    waker: Option<Waker>,
}

impl<M> Default for Mailbox<M> {
    fn default() -> Mailbox<M> {
        Mailbox { inside: Mutex::new(Inside { arrived: VecDeque::new(), waker: None }) }
    }
}

impl<M> Mailbox<M> {
    fn post(&self, message: M) {
        let waker = {
            let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
            inside.arrived.push_back(message);
            inside.waker.take()
        };
        // Outside of the lock: a waker may run anything.
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The next message; nothing once it is over.
    fn poll(&self, context: &mut Context<'_>, is_over: impl Fn() -> bool) -> Poll<Option<M>> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(message) = inside.arrived.pop_front() {
            return Poll::Ready(Some(message));
        }
        inside.waker = Some(context.waker().clone());
        drop(inside);
        // After the waker was left: what happens from here on wakes it.
        if is_over() { Poll::Ready(None) } else { Poll::Pending }
    }
}

/// Has the scan's future look again, without a message.
impl<M: Send + 'static> Wake for Mailbox<M> {
    fn wake(self: Arc<Self>) {
        let waker = self.inside.lock().unwrap_or_else(PoisonError::into_inner).waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

//! The thread that lets memory go, so that no scan waits while pages are unmapped.
//!
//! ```text
//! last lease drops ─▶ unmap ─▶ the budget gets its bytes back ─▶ the page cache is told to let go, if evicted so
//! ```
//!
//! The memory of an image may be kept for the next one instead of being unmapped: for ten seconds after the last region
//! went, or until anything else needs it. In the same way the thread makes fresh memory ready for a load: see
//! [`ahead`](crate::slice::ahead).
//!
//! The order matters: what is still mapped stays in the page cache whatever it is told, and memory is free
//! only when it is unmapped. The page cache is told by the spindle's own threads, and nobody waits for them: a disk
//! that hangs must not keep the memory of the others.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, bounded, never, select, unbounded};

use crate::budget::memory::{MemoryBudget, MemoryGrant, MemoryUse};
use crate::region::arena::{ImageMemory, ImageWriter};
use crate::snap::hot::RegionBytes;
use crate::snap::manifest::FileCount;
use crate::spindle::engine::Op;
use crate::spindle::file::SpindleFile;
use crate::spindle::held::Spindle;
use crate::spindle::impeller::{Completion, Lane, Replies, replies};

/// How long telling the page cache of one file may take. A disk that hangs keeps it.
const DROP_CACHE_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long [`Reaper::settle`] waits. Unmapping 2 GiB of small pages takes a sixth of a second.
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(2);

/// How many pieces of an image may be ready: one is taken while the other is touched.
const PIECES_AHEAD: u64 = 2;

/// How long memory is kept for the next image after the last region went.
const SPARES_IDLE_MAX: Duration = Duration::from_secs(10);

/// What is left of a region that nobody leases any more.
pub(crate) struct Remains {
    pub(crate) bytes: RegionBytes,
    /// What a map takes of the budget. An image has its own.
    pub(crate) grant: Option<MemoryGrant>,
    /// What a mapped file takes of the disk, until it is unmapped.
    pub(crate) space: FileCount,
    /// Whose page cache goes, too.
    pub(crate) dropped: Option<(Weak<Spindle>, Arc<SpindleFile>)>,
}

enum Order {
    Bury(Box<Remains>),
    /// Touches memory for a piece of an image.
    Prepare(usize),
    /// Answers, by hanging up, when all before it is done.
    Settle(Sender<()>),
}

/// The cache's end of the reaper. Regions hold [`ReaperInbox`]es: the thread ends with the last of all.
pub(crate) struct Reaper {
    inbox: ReaperInbox,
}

/// Where regions go.
#[derive(Clone, Debug)]
pub(crate) struct ReaperInbox {
    orders: Sender<Order>,
    thread: Arc<LazyThread>,
}

/// Started with the first region that goes.
#[derive(Debug)]
struct LazyThread {
    orders: Receiver<Order>,
    /// Where memory of images is kept.
    budget: MemoryBudget,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reaper {
    /// No thread is started.
    pub(crate) fn new(budget: MemoryBudget) -> Reaper {
        let (orders, inbox) = unbounded();
        let thread = Arc::new(LazyThread { orders: inbox, budget, thread: Mutex::new(None) });
        Reaper { inbox: ReaperInbox { orders, thread } }
    }

    pub(crate) fn inbox(&self) -> ReaperInbox {
        self.inbox.clone()
    }

    /// Waits until what has been given up so far is gone, or a disk takes too long over it.
    pub(crate) fn settle(&self) {
        if !self.inbox.thread.has_started() {
            return;
        }
        let (done, wait) = bounded(0);
        if self.inbox.give(Order::Settle(done)).is_ok() {
            let _ = wait.recv_deadline(Instant::now() + SETTLE_WAIT_MAX);
        }
    }
}

impl Drop for Reaper {
    /// The spindles go after this: what was evicted is dropped from the page cache before.
    fn drop(&mut self) {
        self.settle();
    }
}

impl ReaperInbox {
    /// Takes over what is left of a region.
    pub(crate) fn bury(&self, remains: Remains) {
        if let Err(Order::Bury(remains)) = self.give(Order::Bury(Box::new(remains))) {
            // No thread to be had: then here. The page cache is the kernel's to take back.
            drop(bury(*remains));
        }
    }

    /// Wishes that memory for a piece of an image is there before it is wanted.
    pub(crate) fn prepare(&self, piece_bytes: usize) {
        // Without the thread whoever fills the piece touches it.
        let _ = self.give(Order::Prepare(piece_bytes));
    }

    fn give(&self, order: Order) -> Result<(), Order> {
        if !self.thread.is_running() {
            return Err(order);
        }
        self.orders.send(order).map_err(|refused| refused.0)
    }
}

impl LazyThread {
    fn has_started(&self) -> bool {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn is_running(&self) -> bool {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            // Not `self`: the thread ends when the last sender is gone, and must not hold one.
            let (orders, budget) = (self.orders.clone(), self.budget.clone());
            *thread = std::thread::Builder::new()
                .name("pelton-reaper".to_owned())
                .spawn(move || reap(&orders, &budget))
                .ok();
        }
        thread.is_some()
    }
}

fn reap(orders: &Receiver<Order>, budget: &MemoryBudget) {
    let (replies, told) = replies();
    let mut tellings = Tellings { replies, next: 0, under_way: BTreeSet::new(), settling: Vec::new() };
    let mut idle = never();
    loop {
        select! {
            recv(orders) -> order => match order {
                // A panic in one burial must not keep all later memory. What was moved in is dropped with it.
                Ok(Order::Bury(remains)) => {
                    if let Ok(Some(dropped)) = catch_unwind(AssertUnwindSafe(|| bury(*remains))) {
                        tellings.begin(dropped);
                    }
                    idle = after(SPARES_IDLE_MAX);
                }
                Ok(Order::Prepare(piece_bytes)) => {
                    let _ = catch_unwind(AssertUnwindSafe(|| prepare(budget, piece_bytes)));
                    idle = after(SPARES_IDLE_MAX);
                }
                Ok(Order::Settle(done)) => tellings.settle(done),
                Err(_) => return,
            },
            recv(told) -> completion => if let Ok(Completion { tag, .. }) = completion {
                tellings.end(tag);
            },
            recv(idle) -> _ => {
                // No load has followed that would have taken it.
                budget.drop_spares();
                idle = never();
            }
        }
    }
}

/// Touches memory for a piece, and leaves it to the budget as spare pages. Not if there are enough; nor where memory is short,
/// since for a moment it is in the way of others.
fn prepare(budget: &MemoryBudget, piece_bytes: usize) {
    let counts = budget.counts();
    // There may be more than is allowed since a moment ago.
    let free = counts.residence_max.saturating_sub(counts.images + counts.mapped);
    let pieces = |bytes: u64| bytes / piece_bytes as u64;
    if pieces(counts.spares) >= PIECES_AHEAD || pieces(free) < 2 * PIECES_AHEAD {
        return;
    }
    let Ok(grant) = budget.try_take(MemoryUse::Images, piece_bytes as u64) else { return };
    let fresh = ImageMemory { grant, spares: Vec::new() };
    if let Ok(mut piece) = ImageWriter::new(piece_bytes, piece_bytes, fresh) {
        piece.touch();
    }
}

/// The page cache of files that is being told to let go, and who waits for it.
struct Tellings {
    replies: Replies,
    next: u64,
    under_way: BTreeSet<u64>,
    /// Each waits for all that began before a number.
    settling: Vec<(u64, Sender<()>)>,
}

impl Tellings {
    fn begin(&mut self, (spindle, file): (Weak<Spindle>, Arc<SpindleFile>)) {
        // Without the spindle the cache is closed, and its impellers with it. What stays in the page cache is the
        // kernel's to take back.
        let Some(spindle) = spindle.upgrade() else { return };
        let (tag, deadline) = (self.next, Instant::now() + DROP_CACHE_WAIT_MAX);
        self.next += 1;
        let reply = self.replies.tag(tag);
        let op = Op::DropCache { file };
        // However full its queue is: the memory on other disks must not wait behind this one.
        if spindle.impellers.submit_at_once(Lane::HOUSE, op, reply, Some(deadline)).is_ok() {
            self.under_way.insert(tag);
        }
    }

    fn end(&mut self, tag: u64) {
        self.under_way.remove(&tag);
        let first = self.under_way.first().copied().unwrap_or(u64::MAX);
        self.settling.retain(|(before, _)| first < *before);
    }

    fn settle(&mut self, done: Sender<()>) {
        if !self.under_way.is_empty() {
            self.settling.push((self.next, done));
        }
    }
}

/// Lets the memory go, and returns the file whose page cache is to go after it.
fn bury(remains: Remains) -> Option<(Weak<Spindle>, Arc<SpindleFile>)> {
    let Remains { bytes, grant, space, dropped } = remains;
    drop(bytes);
    drop((grant, space));
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More may be in use than is allowed since a moment ago: then there is nothing to spare.
    #[test]
    fn nothing_is_prepared_where_memory_was_made_less_than_is_used() {
        let budget = MemoryBudget::new(64 << 20, 1 << 20);
        let _used = budget.take(MemoryUse::Images, 48 << 20, None).unwrap();
        budget.resize(8 << 20);
        prepare(&budget, 1 << 20);
        assert_eq!(budget.counts().spares, 0);
    }
}

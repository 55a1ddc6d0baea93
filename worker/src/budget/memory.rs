//! The memory that one cache may use, given out in order of arrival.
//!
//! ```text
//! | residence: images, mapped regions                                | buffers: parcels, pieces |
//! |<------------------------------- total ------------------------------------------------------>|
//! ```
//!
//! The two shares are apart, each with its own queue. So a load that holds its images always gets the
//! next buffer in time, however many hot slices fill the rest: no load waits for another one's eviction
//! with its own memory in hand.
//!
//! Memory of images that are gone is kept as spare pages, in what is free of the residence: the next image takes them
//! instead of fresh memory. They are in nobody's way: whoever takes memory takes theirs when nothing else is left, and
//! then they are unmapped first. While anybody waits none are kept.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
#[cfg(test)]
use std::time::Instant;

use crate::region::arena::{ImageMemory, LARGE_PAGE_BYTES, Paging, SparePage};
use crate::scan::patience::Patience;
use crate::units::Exact;

/// What memory is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryUse {
    /// Regions in our own memory.
    Images,
    /// Regions in the page cache, mapped.
    Mapped,
    /// Parcels and pieces on their way.
    Buffers,
}

impl fmt::Display for MemoryUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemoryUse::Images => "images",
            MemoryUse::Mapped => "mapped regions",
            MemoryUse::Buffers => "buffers",
        })
    }
}

/// Why memory was not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryRefused {
    /// More than the whole share. It will never fit: ask for less, or configure more.
    #[error("{wanted} for {purpose} can never fit: the share is {share}", wanted = Exact(*wanted), share = Exact(*share))]
    NeverFits {
        /// What it was for.
        purpose: MemoryUse,
        /// How much was asked for.
        wanted: u64,
        /// How much there is for this use, in all.
        share: u64,
    },
    /// Not given back by others in time. Try again, or evict something first.
    #[error(
        "{wanted} for {purpose} did not become free in time: {free} of {share} are free",
        wanted = Exact(*wanted), free = Exact(*free), share = Exact(*share)
    )]
    Deadline {
        /// What it was for.
        purpose: MemoryUse,
        /// How much was asked for.
        wanted: u64,
        /// How much is free now; others may wait for it.
        free: u64,
        /// How much there is for this use, in all.
        share: u64,
    },
}

/// Spare pages are at most one part in so many of the residence: two generations of a slice that follow each other
/// need no more.
const SPARES_SHARE: u64 = 2;

/// How much is in use, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryCounts {
    pub(crate) images: u64,
    pub(crate) mapped: u64,
    pub(crate) buffers: u64,
    /// Pages that are kept for the next image, beside what is in use.
    pub(crate) spares: u64,
    /// What images and mapped regions may use together.
    pub(crate) residence_max: u64,
    pub(crate) buffers_max: u64,
    /// What is being waited for, beyond what is in use. Someone should evict if it stays.
    pub(crate) residence_waited_for: u64,
    /// The part of that which comes first.
    pub(crate) residence_first_waited_for: u64,
    pub(crate) buffers_waited_for: u64,
}

/// A cache's memory budget. Cloning it makes another handle of the same one.
#[derive(Clone, Debug)]
pub(crate) struct MemoryBudget {
    shared: Arc<Mutex<Shares>>,
    paging: Paging,
}

impl MemoryBudget {
    /// A budget of `total` bytes, `buffers_max` of which are for buffers and the others for regions.
    pub(crate) fn new(total: u64, buffers_max: u64) -> MemoryBudget {
        assert!(buffers_max <= total, "the buffers lie inside of the total");
        let shares = Shares {
            residence: Share::new(total - buffers_max),
            buffers: Share::new(buffers_max),
            images: 0,
            spares: Vec::new(),
            next_ticket: 0,
        };
        MemoryBudget { shared: Arc::new(Mutex::new(shares)), paging: Paging::default() }
    }

    /// Says what the memory is to be like that is taken from here on, by this handle and those made of it.
    pub(crate) fn with_paging(self, paging: Paging) -> MemoryBudget {
        MemoryBudget { paging, ..self }
    }

    /// What the memory is to be like.
    pub(crate) fn paging(&self) -> Paging {
        self.paging
    }

    /// Makes the residence larger or smaller. What is given stays given, also beyond it; then nothing more is given until
    /// enough has come back. Whoever waits for more than there will ever be is refused.
    pub(crate) fn resize(&self, residence_max: u64) {
        let mut shares = self.lock();
        shares.residence.max = residence_max;
        let mut woken: Vec<Option<Waker>> = shares.residence.refuse_what_never_fits();
        let given = shares.residence.grant_in_order();
        for (purpose, bytes, _) in &given {
            shares.count_given(*purpose, *bytes);
        }
        woken.extend(given.into_iter().map(|(_, _, waker)| waker));
        let freed = shares.spares_in_the_way();
        shares.check();
        drop(shares);
        drop(freed);
        woken.into_iter().flatten().for_each(Waker::wake);
    }

    /// Takes memory, after everyone who asked earlier for the same share. Waits until the deadline, if there
    /// is one. What is free is given even when the deadline has passed already.
    ///
    /// # Errors
    /// [`MemoryRefused`], without waiting if it can never fit.
    #[cfg(test)]
    pub(crate) fn take(
        &self,
        purpose: MemoryUse,
        bytes: u64,
        deadline: Option<Instant>,
    ) -> Result<MemoryGrant, MemoryRefused> {
        self.take_patiently(purpose, bytes, &Patience::until(deadline))
    }

    /// The same for somebody who may be told not to wait any more: that is refused as at the deadline.
    ///
    /// # Errors
    /// [`MemoryRefused`], without waiting if it can never fit.
    pub(crate) fn take_patiently(
        &self,
        purpose: MemoryUse,
        bytes: u64,
        patience: &Patience,
    ) -> Result<MemoryGrant, MemoryRefused> {
        let mut taking = self.taking(purpose, bytes)?;
        match patience.wait(Pin::new(&mut taking)) {
            Ok(given) => given,
            // It may have been granted since the last look: leaving the queue is what decides.
            Err(_) => taking.leave(),
        }
    }

    /// The same as a future that takes its place in the queue now. Dropping it leaves the queue.
    ///
    /// # Errors
    /// [`MemoryRefused::NeverFits`], at once.
    pub(crate) fn taking(&self, purpose: MemoryUse, bytes: u64) -> Result<Taking, MemoryRefused> {
        let mut shares = self.lock();
        let share = shares.share(purpose);
        if bytes > share.max {
            return Err(share.never_fits(purpose, bytes));
        }
        if share.waiting.is_empty() && bytes <= share.free() {
            let freed = shares.give(purpose, bytes);
            drop(shares);
            drop(freed); // Unmapped outside of the lock, and before anybody uses what was given for it.
            return Ok(Taking { state: TakingState::Given(self.grant(purpose, bytes)) });
        }
        let ticket = shares.next_ticket;
        shares.next_ticket += 1;
        let waiter = Waiter { ticket, purpose, bytes, turn: Turn::Waiting, waker: None };
        shares.share(purpose).waiting.push_back(waiter);
        let freed = shares.spares_in_the_way();
        drop(shares);
        drop(freed);
        Ok(Taking { state: TakingState::Queued { budget: self.clone(), purpose, bytes, ticket } })
    }

    /// Takes memory if it is free and nobody waits for it.
    ///
    /// # Errors
    /// [`MemoryRefused`] otherwise; `Deadline` means that waiting would help.
    pub(crate) fn try_take(&self, purpose: MemoryUse, bytes: u64) -> Result<MemoryGrant, MemoryRefused> {
        let mut shares = self.lock();
        shares.can_give(purpose, bytes)?;
        let freed = shares.give(purpose, bytes);
        drop(shares);
        drop(freed);
        Ok(self.grant(purpose, bytes))
    }

    /// The same for a piece of an image, with the spare pages that there are for it.
    ///
    /// # Errors
    /// As [`Self::try_take`].
    pub(crate) fn try_take_for_image(&self, bytes: u64) -> Result<ImageMemory, MemoryRefused> {
        let mut shares = self.lock();
        shares.can_give(MemoryUse::Images, bytes)?;
        let spares = shares.take_spares(bytes);
        let freed = shares.give(MemoryUse::Images, bytes);
        drop(shares);
        drop(freed);
        Ok(ImageMemory { grant: self.grant(MemoryUse::Images, bytes), spares })
    }

    /// Unmaps what is kept: nobody has wanted it for a while.
    pub(crate) fn drop_spares(&self) {
        let spares = std::mem::take(&mut self.lock().spares);
        drop(spares); // Outside of the lock.
    }

    /// How much is in use now.
    pub(crate) fn counts(&self) -> MemoryCounts {
        let shares = self.lock();
        MemoryCounts {
            images: shares.images,
            mapped: shares.residence.used - shares.images,
            buffers: shares.buffers.used,
            spares: shares.spares_bytes(),
            residence_max: shares.residence.max,
            buffers_max: shares.buffers.max,
            residence_waited_for: shares.residence.waited_for(),
            residence_first_waited_for: shares.residence.first_waited_for(),
            buffers_waited_for: shares.buffers.waited_for(),
        }
    }

    fn grant(&self, purpose: MemoryUse, bytes: u64) -> MemoryGrant {
        MemoryGrant { budget: self.clone(), purpose, bytes }
    }

    fn give_back(&self, purpose: MemoryUse, bytes: u64) {
        let mut shares = self.lock();
        shares.take_back(purpose, bytes);
        let woken = shares.share(purpose).grant_in_order();
        for &(purpose, bytes, _) in &woken {
            shares.count_given(purpose, bytes);
        }
        shares.check();
        drop(shares);
        // Outside of the lock: a waker may run anything.
        for (_, _, waker) in woken {
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shares> {
        // Nothing of others runs under the lock, so only a failed assertion of ours poisons it. A guard that
        // drops meanwhile must not panic a second time.
        self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Memory that was given. Dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping it gives the memory back"]
pub(crate) struct MemoryGrant {
    budget: MemoryBudget,
    purpose: MemoryUse,
    bytes: u64,
}

impl MemoryGrant {
    /// How much it is.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    #[cfg(test)]
    pub(crate) fn purpose(&self) -> MemoryUse {
        self.purpose
    }

    /// The same memory for another use of the same share.
    pub(crate) fn turn_into(mut self, purpose: MemoryUse) -> MemoryGrant {
        let is_residence = |purpose| matches!(purpose, MemoryUse::Images | MemoryUse::Mapped);
        assert!(is_residence(self.purpose) && is_residence(purpose), "uses of one share");
        let bytes = std::mem::take(&mut self.bytes);
        let mut shares = self.budget.lock();
        match (self.purpose, purpose) {
            (MemoryUse::Mapped, MemoryUse::Images) => shares.images += bytes,
            (MemoryUse::Images, MemoryUse::Mapped) => shares.images -= bytes,
            _ => {}
        }
        shares.check();
        drop(shares);
        self.budget.grant(purpose, bytes)
    }

    /// Cuts a part off, which is then given back on its own.
    pub(crate) fn split(&mut self, bytes: u64) -> MemoryGrant {
        assert!(bytes <= self.bytes, "a part is not larger than the whole");
        self.bytes -= bytes;
        self.budget.grant(self.purpose, bytes)
    }

    /// Gives back what is beyond `bytes`: it turned out to need less.
    #[cfg(test)]
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        assert!(bytes <= self.bytes, "shrinking does not grow");
        drop(self.split(self.bytes - bytes));
    }

    /// What the memory is to be like.
    pub(crate) fn paging(&self) -> Paging {
        self.budget.paging
    }

    /// Spare pages for an image that this memory is for, as far as there are any.
    pub(crate) fn spares(&self) -> Vec<SparePage> {
        self.budget.lock().take_spares(self.bytes)
    }

    /// Gives an image's memory back with its pages. They are kept for the next image as far as that is nobody's loss,
    /// and unmapped else.
    pub(crate) fn give_back_with(mut self, mut spares: Vec<SparePage>) {
        assert!(bytes_of(&spares) <= self.bytes, "what was paid for");
        if self.purpose == MemoryUse::Images {
            let mut shares = self.budget.lock();
            let kept = shares.keep(&mut spares);
            shares.take_back(self.purpose, kept);
            shares.check();
            self.bytes -= kept;
        }
        // First the memory, then what was paid for it.
        drop(spares);
        drop(self);
    }

    /// Takes in another grant of the same budget and use.
    pub(crate) fn join(&mut self, mut other: MemoryGrant) {
        assert!(Arc::ptr_eq(&self.budget.shared, &other.budget.shared), "of one budget");
        assert_eq!(self.purpose, other.purpose);
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for MemoryGrant {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(self.purpose, self.bytes);
        }
    }
}

/// A place in the queue for memory. See [`MemoryBudget::taking`].
#[derive(Debug)]
#[must_use = "a place in the queue is left when it drops"]
pub(crate) struct Taking {
    state: TakingState,
}

#[derive(Debug)]
enum TakingState {
    Given(MemoryGrant),
    Queued { budget: MemoryBudget, purpose: MemoryUse, bytes: u64, ticket: u64 },
    Over,
}

impl Taking {
    /// Gives the place up, unless the memory has been given already.
    fn leave(mut self) -> Result<MemoryGrant, MemoryRefused> {
        match std::mem::replace(&mut self.state, TakingState::Over) {
            TakingState::Given(grant) => Ok(grant),
            TakingState::Queued { budget, purpose, bytes, ticket } => {
                let mut shares = budget.lock();
                let turn = shares.share(purpose).remove(ticket).turn;
                let refused = match turn {
                    Turn::Granted => {
                        drop(shares);
                        return Ok(budget.grant(purpose, bytes));
                    }
                    Turn::NeverFits => shares.share(purpose).never_fits(purpose, bytes),
                    Turn::Waiting => shares.share(purpose).too_late(purpose, bytes),
                };
                drop(shares);
                // Those behind may fit where this one did not.
                budget.give_back(purpose, 0);
                Err(refused)
            }
            TakingState::Over => panic!("polled after it was ready"),
        }
    }
}

impl Future for Taking {
    type Output = Result<MemoryGrant, MemoryRefused>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let TakingState::Queued { budget, purpose, ticket, .. } = &self.state
            && budget.lock().share(*purpose).keep_waiting(*ticket, context.waker())
        {
            return Poll::Pending;
        }
        let state = std::mem::replace(&mut self.state, TakingState::Over);
        Poll::Ready(Taking { state }.leave())
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        if let TakingState::Queued { .. } = self.state {
            let state = std::mem::replace(&mut self.state, TakingState::Over);
            // What was given and not fetched goes back with the grant.
            drop(Taking { state }.leave());
        }
    }
}

/// What is given and who waits.
///
/// Invariants: in each share `used <= max`, unless it was made smaller since; whoever is granted stands before whoever
/// waits; the first that waits does not fit now, but would fit into the empty share; `images <= residence.used`; spare pages lie in what is free of the residence, and there are none
/// while anybody waits for it.
#[derive(Debug)]
struct Shares {
    residence: Share,
    buffers: Share,
    /// How much of the residence are images; the rest is mapped.
    images: u64,
    /// Kept for the next image. The last one is handed out first.
    spares: Vec<SparePage>,
    next_ticket: u64,
}

impl Shares {
    fn share(&mut self, purpose: MemoryUse) -> &mut Share {
        match purpose {
            MemoryUse::Images | MemoryUse::Mapped => &mut self.residence,
            MemoryUse::Buffers => &mut self.buffers,
        }
    }

    fn can_give(&mut self, purpose: MemoryUse, bytes: u64) -> Result<(), MemoryRefused> {
        let share = self.share(purpose);
        if bytes > share.max {
            return Err(share.never_fits(purpose, bytes));
        }
        if !share.waiting.is_empty() || bytes > share.free() {
            return Err(share.too_late(purpose, bytes));
        }
        Ok(())
    }

    /// Gives what is free. Spare pages that lay there are to be dropped before it is used.
    #[must_use = "what is dropped under the lock is unmapped under the lock"]
    fn give(&mut self, purpose: MemoryUse, bytes: u64) -> Vec<SparePage> {
        self.share(purpose).used += bytes;
        self.count_given(purpose, bytes);
        let freed = self.spares_in_the_way();
        self.check();
        freed
    }

    fn spares_bytes(&self) -> u64 {
        bytes_of(&self.spares)
    }

    /// Takes spare pages out that may not be kept any longer.
    fn spares_in_the_way(&mut self) -> Vec<SparePage> {
        let room = if self.residence.is_waited_for() { 0 } else { self.residence.free() };
        let kept = self.spares.len().min(pages_in(room));
        self.spares.split_off(kept)
    }

    /// Takes as many as fit into so many bytes.
    fn take_spares(&mut self, bytes: u64) -> Vec<SparePage> {
        let rest = self.spares.len() - self.spares.len().min(pages_in(bytes));
        let mut spares = self.spares.split_off(rest);
        // They were kept from back to front: this is the order of their addresses, which the kernel likes.
        spares.reverse();
        spares
    }

    /// Keeps the first of these pages, whose bytes are still counted as used. Says how many bytes it keeps.
    fn keep(&mut self, spares: &mut Vec<SparePage>) -> u64 {
        let most = pages_in(self.residence.max / SPARES_SHARE).saturating_sub(self.spares.len());
        // Beyond a budget that was made smaller nothing is free: keeping it would leave the sum where it is.
        let is_beyond = self.residence.used.saturating_add(self.spares_bytes()) > self.residence.max;
        let most = if self.residence.is_waited_for() || is_beyond { 0 } else { most };
        let kept = spares.len().min(most);
        self.spares.extend(spares.drain(..kept).rev());
        kept as u64 * LARGE_PAGE_BYTES as u64
    }

    fn count_given(&mut self, purpose: MemoryUse, bytes: u64) {
        if purpose == MemoryUse::Images {
            self.images += bytes;
        }
    }

    fn take_back(&mut self, purpose: MemoryUse, bytes: u64) {
        let share = self.share(purpose);
        assert!(bytes <= share.used, "what is given back was given");
        share.used -= bytes;
        if purpose == MemoryUse::Images {
            self.images -= bytes;
        }
    }

    fn check(&self) {
        self.residence.check();
        self.buffers.check();
        assert!(self.images <= self.residence.used);
        assert!(self.spares_bytes() <= self.residence.free());
        assert!(self.spares.is_empty() || !self.residence.is_waited_for());
    }
}

fn bytes_of(spares: &[SparePage]) -> u64 {
    spares.len() as u64 * LARGE_PAGE_BYTES as u64
}

/// How many whole pages lie in so many bytes.
fn pages_in(bytes: u64) -> usize {
    usize::try_from(bytes / LARGE_PAGE_BYTES as u64).unwrap_or(usize::MAX)
}

#[derive(Debug)]
struct Share {
    max: u64,
    used: u64,
    /// In order of arrival. Granted ones stay until they are fetched, so that nobody takes theirs.
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    purpose: MemoryUse,
    bytes: u64,
    turn: Turn,
    waker: Option<Waker>,
}

/// What has come of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Waiting,
    Granted,
    /// The share was made smaller than what is waited for.
    NeverFits,
}

impl Share {
    fn new(max: u64) -> Share {
        Share { max, used: 0, waiting: VecDeque::new() }
    }

    fn free(&self) -> u64 {
        self.max.saturating_sub(self.used)
    }

    fn check(&self) {
        let first = self.waiting.iter().find(|waiter| waiter.turn == Turn::Waiting);
        assert!(first.is_none_or(|first| first.bytes <= self.max), "it would wait for ever");
    }

    /// Ends the waiting of whoever the share has become too small for.
    fn refuse_what_never_fits(&mut self) -> Vec<Option<Waker>> {
        let max = self.max;
        let waiting = self.waiting.iter_mut();
        let refused = waiting.filter(|waiter| waiter.turn == Turn::Waiting && waiter.bytes > max);
        refused
            .map(|waiter| {
                waiter.turn = Turn::NeverFits;
                waiter.waker.take()
            })
            .collect()
    }

    /// Grants to the waiting, from the front, as long as there is room. Nobody passes anybody.
    fn grant_in_order(&mut self) -> Vec<(MemoryUse, u64, Option<Waker>)> {
        let mut woken = Vec::new();
        let max = self.max;
        for waiter in self.waiting.iter_mut().filter(|waiter| waiter.turn == Turn::Waiting) {
            if waiter.bytes > max.saturating_sub(self.used) {
                break;
            }
            self.used += waiter.bytes;
            waiter.turn = Turn::Granted;
            woken.push((waiter.purpose, waiter.bytes, waiter.waker.take()));
        }
        woken
    }

    /// Leaves the waker to be called, unless the memory was granted meanwhile.
    fn keep_waiting(&mut self, ticket: u64, waker: &Waker) -> bool {
        let index = self.index_of(ticket);
        let waiter = &mut self.waiting[index];
        let waits = waiter.turn == Turn::Waiting;
        if waits {
            match &mut waiter.waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        waits
    }

    fn remove(&mut self, ticket: u64) -> Waiter {
        let index = self.index_of(ticket);
        self.waiting.remove(index).expect("it was found there")
    }

    fn index_of(&self, ticket: u64) -> usize {
        self.waiting.binary_search_by_key(&ticket, |waiter| waiter.ticket).expect("a place is left only once")
    }

    fn is_waited_for(&self) -> bool {
        self.waiting.iter().any(|waiter| waiter.turn == Turn::Waiting)
    }

    fn waited_for(&self) -> u64 {
        let waiting = self.waiting.iter().filter(|waiter| waiter.turn == Turn::Waiting);
        waiting.fold(0, |sum, waiter| sum.saturating_add(waiter.bytes))
    }

    fn first_waited_for(&self) -> u64 {
        let first = self.waiting.iter().find(|waiter| waiter.turn == Turn::Waiting);
        first.map_or(0, |waiter| waiter.bytes)
    }

    fn never_fits(&self, purpose: MemoryUse, wanted: u64) -> MemoryRefused {
        MemoryRefused::NeverFits { purpose, wanted, share: self.max }
    }

    fn too_late(&self, purpose: MemoryUse, wanted: u64) -> MemoryRefused {
        MemoryRefused::Deadline { purpose, wanted, free: self.free(), share: self.max }
    }
}

#[cfg(test)]
mod tests;

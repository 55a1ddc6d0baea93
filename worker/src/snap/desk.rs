//! Where many threads ask one decider: its lock, who waits for an answer, and the shares of memory.
//!
//! ```text
//!   ask ───▶ ┌───────── lock ─────────┐ ───▶ work for the caller: load, warm, commit, remove
//!   report ─▶│ decider, memory, answers│ ───▶ memory to drop, outside of the lock
//!            └────────────────────────┘ ───▶ answers, to whoever waits for them
//! ```
//!
//! The lock is held for memory work only. What a decision asks for is done by the caller after it, and what memory it
//! lets go is dropped after it, since that may unmap gigabytes. `M` is what a version has in memory: the decider does
//! not know it, the desk only keeps it.
//!
//! A lease on what is in memory is taken and given back under that lock alone, once each, and writes nothing that
//! belongs to another snap: so threads that lease different snaps do not wait for each other's caches.

use std::task::Waker;
use std::time::{Duration, Instant};

use pelton_region_format::Fingerprint;

use super::holders::{Holders, Usage};
use super::state::{Answer, Command, Decider, SnapEvent, Version, WaiterId};
use super::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use crate::cache::Want;
use crate::scan::patience::Patience;
use crate::tender::History;

/// The decider of one snap, for all threads.
pub(crate) struct Desk<M> {
    inner: Mutex<Inner<M>>,
    /// Somebody's answer is there.
    answered: Condvar,
}

struct Inner<M> {
    decider: Decider,
    holders: Holders,
    /// The snap's shares. A version is here from the event that brings its memory to the command that drops it.
    memory: Vec<(Version, Arc<M>)>,
    /// What those who wait have not fetched yet.
    answers: Vec<(WaiterId, Reply<M>)>,
    /// Of those who wait for something else meanwhile.
    wakers: Vec<(WaiterId, Waker)>,
    next_waiter: u64,
}

/// An answer, with what comes with it.
#[derive(Debug)]
pub(crate) enum Reply<M> {
    /// The memory to scan. To be given back by [`Desk::release`].
    Lease(Version, Arc<M>),
    /// Anything else.
    Other(Answer),
}

impl<M> Desk<M> {
    /// A desk for a decider as it begins, at this moment. An empty slice that was found has memory: that of no region.
    pub(crate) fn new(decider: Decider, memory: Option<(Version, Arc<M>)>, now_ms: u64) -> Desk<M> {
        let memory = memory.into_iter().collect();
        let inner = Inner {
            decider,
            holders: Holders::new(now_ms),
            memory,
            answers: Vec::new(),
            wakers: Vec::new(),
            next_waiter: 0,
        };
        Desk { inner: Mutex::new(inner), answered: Condvar::new() }
    }

    /// Takes over when an earlier process was asked.
    pub(crate) fn restore(&self, history: History, arrived_ms: u64) {
        self.lock().holders.restore(history, arrived_ms);
    }

    /// Asks, and does not wait. Whoever is not answered at once waits under a number, or gives up.
    ///
    /// `begin` starts what the decider commands, and does not wait for it: another's patience is not this one's. Work
    /// of two events may begin in any order; what must not is commanded only after the other was reported.
    pub(crate) fn ask_later(
        &self,
        now: Duration,
        ask: impl FnOnce(WaiterId) -> SnapEvent,
        begin: &mut dyn FnMut(Command),
    ) -> Result<Reply<M>, WaiterId> {
        self.ask_later_if(now, |_| true, ask, begin).expect("there is no condition")
    }

    /// The same, if the decider is as it is wished to be: then nothing comes between the look and the event.
    pub(crate) fn ask_later_if(
        &self,
        now: Duration,
        condition: impl FnOnce(&Decider) -> bool,
        ask: impl FnOnce(WaiterId) -> SnapEvent,
        begin: &mut dyn FnMut(Command),
    ) -> Option<Result<Reply<M>, WaiterId>> {
        let mut inner = self.lock();
        if !condition(&inner.decider) {
            return None;
        }
        let waiter = WaiterId(inner.next_waiter);
        inner.next_waiter += 1;
        Some(self.decide(inner, now, ask(waiter), Some(waiter), begin).ok_or(waiter))
    }

    /// Waits for an answer; nothing at the end of its patience. Whoever may be cancelled is [nudged](Desk::nudge) then.
    pub(crate) fn wait(&self, waiter: WaiterId, patience: &Patience) -> Option<Reply<M>> {
        let mut inner = self.lock();
        loop {
            if let Some(reply) = inner.fetch(waiter) {
                return Some(reply);
            }
            patience.check().ok()?;
            inner = match patience.deadline {
                None => self.answered.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    self.answered.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Has those who wait look at their patience again.
    pub(crate) fn nudge(&self) {
        drop(self.lock()); // Whoever has looked, and does not wait yet, waits by now.
        self.answered.notify_all();
    }

    /// Wakes when the answer comes, once; right now if it is there.
    pub(crate) fn watch(&self, waiter: WaiterId, waker: Waker) {
        let mut inner = self.lock();
        match inner.answers.iter().any(|(who, _)| *who == waiter) {
            false => inner.wakers.push((waiter, waker)),
            true => {
                drop(inner);
                waker.wake(); // Outside of the lock: a waker may run anything.
            }
        }
    }

    /// Waits no longer. If an answer was on its way already, it is that one.
    pub(crate) fn give_up(
        &self,
        now: Duration,
        waiter: WaiterId,
        begin: &mut dyn FnMut(Command),
    ) -> Reply<M> {
        let mut inner = self.lock();
        inner.wakers.retain(|(who, _)| *who != waiter);
        let reply = self.decide(inner, now, SnapEvent::GiveUp { waiter }, Some(waiter), begin);
        reply.or_else(|| self.lock().fetch(waiter)).expect("who gives up is answered, now or before")
    }

    /// Tells what has happened.
    pub(crate) fn report(&self, now: Duration, event: SnapEvent, begin: &mut dyn FnMut(Command)) {
        self.decide(self.lock(), now, event, None, begin);
    }

    /// Tells that a version is in memory: sealed or warmed.
    pub(crate) fn report_memory(
        &self,
        now: Duration,
        event: SnapEvent,
        (version, memory): (Version, Arc<M>),
        begin: &mut dyn FnMut(Command),
    ) {
        let mut inner = self.lock();
        debug_assert!(!inner.memory.iter().any(|(known, _)| *known == version), "{version:?} is in memory");
        inner.memory.push((version, memory));
        self.decide(inner, now, event, None, begin);
    }

    /// A lease on what is in memory, if it can be had without waiting for anything. Its number comes with it.
    pub(crate) fn lease_at_once(
        &self,
        want: Want,
        since: Instant,
        now_ms: u64,
    ) -> Option<(u32, Version, Arc<M>)> {
        let mut inner = self.lock();
        let version = inner.decider.lease_at_once(want)?;
        let number = inner.holders.hold(version.fingerprint, since, now_ms);
        Some((number, version, inner.memory_of(version).clone()))
    }

    /// Enters a lease that was had otherwise. The number is for [`Desk::release`].
    pub(crate) fn hold(&self, fingerprint: Fingerprint, since: Instant, now_ms: u64) -> u32 {
        self.lock().holders.hold(fingerprint, since, now_ms)
    }

    /// Gives a lease back, with what it had in memory. What was to be evicted, and goes with it, is returned.
    pub(crate) fn release(
        &self,
        now: impl FnOnce() -> Duration,
        number: u32,
        version: Option<Version>,
    ) -> Option<Arc<M>> {
        let mut inner = self.lock();
        inner.holders.release(number);
        self.give_back_locked(inner, now, version?)
    }

    /// Gives back a lease that was not entered.
    pub(crate) fn give_back(&self, now: impl FnOnce() -> Duration, version: Version) -> Option<Arc<M>> {
        self.give_back_locked(self.lock(), now, version)
    }

    /// The time is asked for only if something follows from it.
    fn give_back_locked(
        &self,
        mut inner: MutexGuard<'_, Inner<M>>,
        now: impl FnOnce() -> Duration,
        version: Version,
    ) -> Option<Arc<M>> {
        if inner.decider.release_at_once(version) {
            return None;
        }
        let evicted = inner.decider.goes_with_last_lease(version).then(|| inner.memory_of(version).clone());
        let nothing = &mut |command| unreachable!("a dropped lease begins nothing: {command:?}");
        self.decide(inner, now(), SnapEvent::Released { version }, None, nothing);
        evicted
    }

    /// All leases, each with the fingerprint of what it holds, and its beginning.
    pub(crate) fn held(&self) -> Vec<(Fingerprint, Instant)> {
        self.lock().holders.held()
    }

    /// How many leases there are.
    pub(crate) fn held_count(&self) -> u32 {
        self.lock().holders.count()
    }

    /// It was loaded or brought into memory.
    pub(crate) fn arrived(&self, now_ms: u64) {
        self.lock().holders.arrived(now_ms);
    }

    /// How much it is used.
    pub(crate) fn usage(&self) -> Usage {
        self.lock().holders.usage()
    }

    /// What is served from memory now. Whoever looks has no lease: it may cease to be served at any time.
    pub(crate) fn served(&self) -> Option<Arc<M>> {
        let inner = self.lock();
        let served = inner.decider.served()?;
        Some(inner.memory_of(served).clone())
    }

    /// Looks at the decider.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Decider) -> T) -> T {
        look(&self.lock().decider)
    }

    /// Gives the decider an event and sees to its commands. Returns the asker's answer, if it has one.
    fn decide(
        &self,
        mut inner: MutexGuard<'_, Inner<M>>,
        now: Duration,
        event: SnapEvent,
        asker: Option<WaiterId>,
        begin: &mut dyn FnMut(Command),
    ) -> Option<Reply<M>> {
        let (mut own, mut others) = (None, false);
        let (mut dropped, mut work, mut woken) = (Vec::new(), Vec::new(), Vec::new());
        let mut commands = Vec::new();
        inner.decider.on(now, event, &mut commands);
        for command in commands {
            match command {
                Command::Answer(waiter, answer) if Some(waiter) == asker => own = Some(inner.reply(answer)),
                Command::Answer(waiter, answer) => {
                    let reply = inner.reply(answer);
                    inner.answers.push((waiter, reply));
                    others = true;
                    if let Some(at) = inner.wakers.iter().position(|(who, _)| *who == waiter) {
                        woken.push(inner.wakers.swap_remove(at).1);
                    }
                }
                Command::DropMemory(version) => dropped.push(inner.take_memory(version)),
                command => work.push(command),
            }
        }
        drop(inner);
        if others {
            self.answered.notify_all(); // A system call, even if nobody waits.
        }
        woken.into_iter().for_each(Waker::wake);
        drop(dropped);
        work.into_iter().for_each(begin);
        own
    }

    fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M> Inner<M> {
    fn reply(&self, answer: Answer) -> Reply<M> {
        let Answer::Lease(version) = answer else { return Reply::Other(answer) };
        Reply::Lease(version, self.memory_of(version).clone())
    }

    fn memory_of(&self, version: Version) -> &Arc<M> {
        let memory = self.memory.iter().find(|(known, _)| *known == version);
        &memory.expect("what is served or leased is in memory").1
    }

    fn take_memory(&mut self, version: Version) -> Arc<M> {
        let index = self.memory.iter().position(|(known, _)| *known == version);
        self.memory.swap_remove(index.expect("what is dropped is in memory")).1
    }

    fn fetch(&mut self, waiter: WaiterId) -> Option<Reply<M>> {
        let index = self.answers.iter().position(|(who, _)| *who == waiter)?;
        Some(self.answers.swap_remove(index).1)
    }
}

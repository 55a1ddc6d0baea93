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

use std::time::{Duration, Instant};

use super::state::{Answer, Command, Decider, Event, Version, WaiterId};
use super::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The decider of one snap, for all threads.
pub(crate) struct Desk<M> {
    inner: Mutex<Inner<M>>,
    /// Somebody's answer is there.
    answered: Condvar,
}

struct Inner<M> {
    decider: Decider,
    /// The snap's shares. A version is here from the event that brings its memory to the command that drops it.
    memory: Vec<(Version, Arc<M>)>,
    /// What those who wait have not fetched yet.
    answers: Vec<(WaiterId, Told<M>)>,
    next_waiter: u64,
    /// Kept, so that an event costs no allocation.
    commands: Vec<Command>,
}

/// An answer, with what comes with it.
#[derive(Debug)]
pub(crate) enum Told<M> {
    /// The memory to scan. To be given back by [`Desk::release`].
    Lease(Version, Arc<M>),
    /// Anything else.
    Other(Answer),
}

impl<M> Desk<M> {
    /// A desk for a decider as it begins. An empty slice that was found has memory: that of no region.
    pub(crate) fn new(decider: Decider, memory: Option<(Version, Arc<M>)>) -> Desk<M> {
        let memory = memory.into_iter().collect();
        let inner = Inner { decider, memory, answers: Vec::new(), next_waiter: 0, commands: Vec::new() };
        Desk { inner: Mutex::new(inner), answered: Condvar::new() }
    }

    /// Asks, has the work begun that follows, and waits for the answer. At the deadline it is `Late`.
    ///
    /// `begin` starts what the decider commands, and does not wait for it: another's deadline is not this one's. Work
    /// of two events may begin in any order; what must not is commanded only after the other was reported.
    pub(crate) fn ask(
        &self,
        now: Duration,
        ask: impl FnOnce(WaiterId) -> Event,
        deadline: Option<Instant>,
        begin: &mut dyn FnMut(Command),
    ) -> Told<M> {
        match self.ask_later(now, ask, begin) {
            Ok(told) => told,
            Err(waiter) => self.wait(waiter, deadline).unwrap_or_else(|| self.give_up(now, waiter, begin)),
        }
    }

    /// Asks, and does not wait. Whoever is not answered at once waits under a number, or gives up.
    pub(crate) fn ask_later(
        &self,
        now: Duration,
        ask: impl FnOnce(WaiterId) -> Event,
        begin: &mut dyn FnMut(Command),
    ) -> Result<Told<M>, WaiterId> {
        let mut inner = self.lock();
        let waiter = WaiterId(inner.next_waiter);
        inner.next_waiter += 1;
        self.decide(inner, now, ask(waiter), Some(waiter), begin).ok_or(waiter)
    }

    /// Waits for an answer; nothing at the deadline.
    pub(crate) fn wait(&self, waiter: WaiterId, deadline: Option<Instant>) -> Option<Told<M>> {
        let mut inner = self.lock();
        loop {
            if let Some(told) = inner.fetch(waiter) {
                return Some(told);
            }
            inner = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.answered.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return None,
                Some(left) => {
                    self.answered.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Waits no longer. If an answer was on its way already, it is that one.
    pub(crate) fn give_up(&self, now: Duration, waiter: WaiterId, begin: &mut dyn FnMut(Command)) -> Told<M> {
        let told = self.decide(self.lock(), now, Event::GiveUp { waiter }, Some(waiter), begin);
        told.or_else(|| self.lock().fetch(waiter)).expect("who gives up is answered, now or before")
    }

    /// Tells what has happened.
    pub(crate) fn report(&self, now: Duration, event: Event, begin: &mut dyn FnMut(Command)) {
        self.decide(self.lock(), now, event, None, begin);
    }

    /// Tells that a version is in memory: sealed or warmed.
    pub(crate) fn report_memory(
        &self,
        now: Duration,
        event: Event,
        (version, memory): (Version, Arc<M>),
        begin: &mut dyn FnMut(Command),
    ) {
        let mut inner = self.lock();
        debug_assert!(!inner.memory.iter().any(|(known, _)| *known == version), "{version:?} is in memory");
        inner.memory.push((version, memory));
        self.decide(inner, now, event, None, begin);
    }

    /// Gives a lease back.
    pub(crate) fn release(&self, now: Duration, version: Version) {
        let nothing = &mut |command| unreachable!("a dropped lease begins nothing: {command:?}");
        self.decide(self.lock(), now, Event::Released { version }, None, nothing);
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
        event: Event,
        asker: Option<WaiterId>,
        begin: &mut dyn FnMut(Command),
    ) -> Option<Told<M>> {
        let (mut own, mut others) = (None, false);
        let (mut dropped, mut work) = (Vec::new(), Vec::new());
        let mut commands = std::mem::take(&mut inner.commands);
        inner.decider.on(now, event, &mut commands);
        for command in commands.drain(..) {
            match command {
                Command::Answer(waiter, answer) if Some(waiter) == asker => own = Some(inner.told(answer)),
                Command::Answer(waiter, answer) => {
                    let told = inner.told(answer);
                    inner.answers.push((waiter, told));
                    others = true;
                }
                Command::DropMemory(version) => dropped.push(inner.take_memory(version)),
                command => work.push(command),
            }
        }
        inner.commands = commands;
        drop(inner);
        if others {
            self.answered.notify_all(); // A system call, even if nobody waits.
        }
        drop(dropped);
        work.into_iter().for_each(begin);
        own
    }

    fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M> Inner<M> {
    fn told(&self, answer: Answer) -> Told<M> {
        let Answer::Lease(version) = answer else { return Told::Other(answer) };
        let memory = self.memory.iter().find(|(known, _)| *known == version);
        Told::Lease(version, memory.expect("what is leased is in memory").1.clone())
    }

    fn take_memory(&mut self, version: Version) -> Arc<M> {
        let index = self.memory.iter().position(|(known, _)| *known == version);
        self.memory.swap_remove(index.expect("what is dropped is in memory")).1
    }

    fn fetch(&mut self, waiter: WaiterId) -> Option<Told<M>> {
        let index = self.answers.iter().position(|(who, _)| *who == waiter)?;
        Some(self.answers.swap_remove(index).1)
    }
}

//! The decider beside a naive model, over long random sequences of events.
//!
//! The model is the world that the decider commands: which bytes are in memory, which files there are, what the
//! manifest names, who waits, who has a lease. It knows no states. It carries the commands out, reports back in any
//! order and with any outcome, and complains when a command or an answer is wrong in that world.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pelton_region_format::Fingerprint;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

use super::{Answer, Command, Decider, Form, Limits, SnapEvent, SnapState, Version, WaiterId};
use crate::cache::Want;

/// What happens next. Numbers choose among what is there, modulo how many there are.
#[derive(Clone, Copy, Debug)]
enum Step {
    Lease { want: u8, offer: u8, stale: bool },
    Write { fingerprint: u8 },
    GiveUp { which: u8 },
    Evict,
    Flush,
    Erase,
    Pin(bool),
    Close,
    FailPlan,
    EndLoad { how: u8 },
    EndCommit { well: bool },
    EndWarming { which: u8, how: u8 },
    EndRemoval { well: bool },
    Release { which: u8 },
    FindDamage { which: u8 },
    FindFileDamage,
    Wait { seconds: u8 },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..4u8, 0..4u8, prop::bool::weighted(0.05))
            .prop_map(|(want, offer, stale)| Step::Lease { want, offer, stale }),
        3 => (0..3u8).prop_map(|fingerprint| Step::Write { fingerprint }),
        3 => any::<u8>().prop_map(|which| Step::GiveUp { which }),
        3 => Just(Step::Evict),
        2 => Just(Step::Flush),
        1 => Just(Step::Erase),
        1 => prop::bool::weighted(0.3).prop_map(Step::Pin),
        1 => Just(Step::FailPlan),
        6 => (0..8u8).prop_map(|how| Step::EndLoad { how }),
        6 => prop::bool::weighted(0.8).prop_map(|well| Step::EndCommit { well }),
        6 => (any::<u8>(), 0..8u8).prop_map(|(which, how)| Step::EndWarming { which, how }),
        4 => prop::bool::weighted(0.8).prop_map(|well| Step::EndRemoval { well }),
        7 => any::<u8>().prop_map(|which| Step::Release { which }),
        1 => any::<u8>().prop_map(|which| Step::FindDamage { which }),
        1 => Just(Step::FindFileDamage),
        2 => (0..20u8).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// Now and then the cache closes: once in some thousand steps, or it would be closed nearly always.
fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    (prop::collection::vec(any_step(), 1..250), prop::option::weighted(0.3, any::<prop::sample::Index>()))
        .prop_map(|(mut steps, close)| {
            if let Some(close) = close {
                let index = close.index(steps.len());
                steps[index] = Step::Close;
            }
            steps
        })
}

/// A mistake in what the decider tells or is told, to see that the model finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// A waiter's deadline ends the load that it waits for.
    DeadlineFailsTheLoad,
    /// Evicting takes the memory from under the leases.
    EvictDropsLeasedMemory,
    /// The old files go when the new load is sealed, not when it is committed.
    FilesGoBeforeTheCommit,
    /// Whoever asks for what is not there begins a load of its own.
    EachAskLoads,
    /// What was warmed is leased, though it was replaced meanwhile.
    ReplacedIsLeased,
    /// Somebody is told twice.
    AnswersTwice,
    /// Somebody is forgotten.
    AnswerIsLost,
    /// A removal does not wait for the commit that is under way.
    RemovesWhileCommitting,
    /// What is not on the disk is evicted.
    EvictsWhatIsNotDurable,
    /// Memory is kept after the last lease.
    MemoryLeaks,
    /// An erased snap comes back to life.
    GoneIsUsed,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Lease { want: Want, offer: Option<Version> },
    Write(Version),
    Evict,
    Flush,
    Erase,
}

/// What is in memory of a version.
#[derive(Clone, Copy, Debug, Default)]
struct InMemory {
    leases: u32,
    empty: bool,
}

struct World {
    decider: Decider,
    mistake: Mistake,
    now: Duration,
    next_load: u64,
    next_waiter: u64,
    begun_last: u64,
    /// The load in flight, and whether a loader runs it.
    load: Option<Version>,
    /// A direct load that is sealed and ends with its commit.
    load_commits: Option<Version>,
    memory: BTreeMap<Version, InMemory>,
    files: BTreeSet<Version>,
    manifest: Option<Version>,
    committing: Option<Version>,
    removing: Option<Version>,
    warming: Vec<Version>,
    /// All loads that came to a slice that can be leased, or warmed and leased, in their order.
    complete: Vec<Version>,
    /// What was flushed or is damaged: never to be leased again.
    condemned: BTreeSet<Version>,
    /// What is damaged on the disk alone: served from memory, and its files go.
    rotten: BTreeSet<Version>,
    unsaved: BTreeSet<Version>,
    waiting: BTreeMap<WaiterId, Asked>,
    failures_until: Duration,
    pinned: bool,
    closed: bool,
    gone: bool,
    answers: u64,
}

type Checked = Result<(), TestCaseError>;

macro_rules! fail_unless {
    ($condition:expr $(,)?) => { prop_assert!($condition, "{}", stringify!($condition)) };
    ($condition:expr, $($message:tt)+) => { prop_assert!($condition, $($message)+) };
}

impl World {
    fn new(found: Option<bool>, mistake: Mistake) -> World {
        let version = version(1, 0);
        let mut world = World {
            decider: Decider::cold(Limits::default()),
            mistake,
            now: Duration::ZERO,
            next_load: 1,
            next_waiter: 0,
            begun_last: 0,
            load: None,
            load_commits: None,
            memory: BTreeMap::new(),
            files: BTreeSet::new(),
            manifest: None,
            committing: None,
            removing: None,
            warming: Vec::new(),
            complete: Vec::new(),
            condemned: BTreeSet::new(),
            rotten: BTreeSet::new(),
            unsaved: BTreeSet::new(),
            waiting: BTreeMap::new(),
            failures_until: Duration::ZERO,
            pinned: false,
            closed: false,
            gone: false,
            answers: 0,
        };
        if let Some(empty) = found {
            world.decider = Decider::found(Limits::default(), version, empty);
            world.next_load = 1;
            world.begun_last = 1;
            world.manifest = Some(version);
            world.files.insert(version);
            world.complete.push(version);
            if empty {
                world.memory.insert(version, InMemory { leases: 0, empty });
            }
        }
        world
    }

    /// What a lease gets, or what is warmed for it: the newest load, if nothing was said against it.
    fn content(&self) -> Option<Version> {
        self.complete.last().copied().filter(|version| !self.condemned.contains(version))
    }

    fn is_durable(&self) -> bool {
        let content = self.content();
        content.is_some_and(|version| self.manifest == content && !self.rotten.contains(&version))
    }

    fn run(&mut self, steps: &[Step]) -> Checked {
        for step in steps {
            self.step(*step)?;
            self.check_state()?;
        }
        self.settle()?;
        self.check_rest()?;
        // And to the end: nothing may be left.
        self.step(Step::Close)?;
        self.settle()?;
        while self.leased().next().is_some() {
            self.step(Step::Release { which: 0 })?;
        }
        self.settle()?;
        fail_unless!(self.memory.is_empty(), "after the close: {:?}", self.memory);
        self.check_rest()
    }

    fn step(&mut self, step: Step) -> Checked {
        match step {
            Step::Lease { want, offer, stale } => {
                let want = match want {
                    0 => Want::Latest,
                    number => Want::Fingerprint(fingerprint(number - 1)),
                };
                let offer = offer.checked_sub(1).map(|number| match stale {
                    true => version(self.next_load.saturating_sub(2), number),
                    false => self.fresh(number),
                });
                let waiter = self.ask(Asked::Lease { want, offer });
                self.feed(SnapEvent::Lease { waiter, want, offer })?;
                let hot = self.content().filter(|version| self.memory.contains_key(version));
                if hot.is_some_and(|version| wants(want, version)) {
                    fail_unless!(!self.waiting.contains_key(&waiter), "what is hot is leased at once");
                }
            }
            Step::Write { fingerprint } => {
                let version = self.fresh(fingerprint);
                let waiter = self.ask(Asked::Write(version));
                self.feed(SnapEvent::Write { waiter, version })?;
                fail_unless!(!self.waiting.contains_key(&waiter), "a writer is told at once");
            }
            Step::GiveUp { which } => {
                // Also one that was answered already: the answer was on its way.
                let chosen = pick(self.waiting.keys().copied(), which).unwrap_or(WaiterId(0));
                self.feed(SnapEvent::GiveUp { waiter: chosen })?;
                fail_unless!(!self.waiting.contains_key(&chosen), "who gives up is told");
            }
            Step::Evict => {
                let waiter = self.ask(Asked::Evict);
                self.feed(SnapEvent::Evict { waiter })?;
                fail_unless!(!self.waiting.contains_key(&waiter), "evict is told at once");
            }
            Step::Flush => {
                let waiter = self.ask(Asked::Flush);
                if !self.closed && !self.gone && !self.pinned {
                    self.condemned.extend(self.complete.iter().copied());
                }
                self.feed(SnapEvent::Flush { waiter })?;
            }
            Step::Erase => {
                let waiter = self.ask(Asked::Erase);
                self.feed(SnapEvent::Erase { waiter })?;
                fail_unless!(!self.waiting.contains_key(&waiter), "erase is told at once");
            }
            Step::Pin(pinned) => {
                self.pinned = pinned;
                self.feed(if pinned { SnapEvent::Pin } else { SnapEvent::Unpin })?;
            }
            Step::Close => {
                self.closed |= !self.gone;
                self.feed(SnapEvent::Close)?;
                fail_unless!(self.waiting.is_empty(), "nobody waits for a closed cache: {:?}", self.waiting);
            }
            Step::FailPlan => {
                self.failures_until = self.now + Limits::default().heal_max;
                self.feed(SnapEvent::PlanFailed)?;
            }
            Step::EndLoad { how } => return self.end_load(how),
            Step::EndCommit { well } => {
                let Some(version) = self.committing.take() else { return Ok(()) };
                if self.load_commits == Some(version) {
                    self.load_commits = None;
                    match well {
                        true => self.complete.push(version),
                        false => self.failures_until = self.now + Limits::default().heal_max,
                    }
                }
                if well {
                    self.manifest = Some(version);
                } else {
                    self.files.remove(&version);
                    self.unsaved.insert(version);
                }
                self.feed(match well {
                    true => SnapEvent::Committed { version },
                    false => SnapEvent::CommitFailed { version },
                })?;
            }
            Step::EndWarming { which, how } => return self.end_warming(which, how),
            Step::EndRemoval { well } => {
                let Some(version) = self.removing.take() else { return Ok(()) };
                if self.manifest == Some(version) {
                    self.manifest = None;
                }
                self.files.remove(&version); // Or left for the next start: not ours any more.
                self.feed(match well {
                    true => SnapEvent::Removed { version },
                    false => SnapEvent::RemoveFailed { version },
                })?;
            }
            Step::Release { which } => {
                let Some(version) = pick(self.leased(), which) else { return Ok(()) };
                self.memory.get_mut(&version).expect("it is leased").leases -= 1;
                self.feed(SnapEvent::Released { version })?;
            }
            Step::FindDamage { which } => {
                let found = self.leased().filter(|version| !self.memory[version].empty);
                let Some(version) = pick(found, which) else { return Ok(()) };
                self.damage(version)?;
            }
            Step::FindFileDamage => {
                let Some(version) = self.manifest.filter(|version| self.removing != Some(*version)) else {
                    return Ok(());
                };
                let is_served = self.content() == Some(version) && self.memory.contains_key(&version);
                if !is_served || self.memory[&version].empty {
                    return self.damage_by(version, SnapEvent::FilesDamaged { version });
                }
                self.rotten.insert(version);
                self.unsaved.insert(version);
                self.feed(SnapEvent::FilesDamaged { version })?;
            }
            Step::Wait { seconds } => self.now += Duration::from_secs(seconds.into()),
        }
        Ok(())
    }

    fn end_load(&mut self, how: u8) -> Checked {
        let Some(version) = self.load.take() else { return Ok(()) };
        let form = match how {
            0..3 => Form::Image,
            3..5 => Form::Direct,
            5 => Form::Empty,
            6 => {
                self.failures_until = self.now + Limits::default().heal_max;
                return self.feed(SnapEvent::LoadFailed { version });
            }
            _ => return self.feed(SnapEvent::LoadCancelled { version }),
        };
        self.files.insert(version);
        match form {
            Form::Direct if !self.closed => self.load_commits = Some(version),
            Form::Direct => {}
            Form::Image | Form::Empty => {
                self.memory.insert(version, InMemory { leases: 0, empty: form == Form::Empty });
                if !self.closed {
                    self.complete.push(version);
                }
            }
        }
        self.feed(SnapEvent::Sealed { version, form })
    }

    fn end_warming(&mut self, which: u8, how: u8) -> Checked {
        if self.warming.is_empty() {
            return Ok(());
        }
        let version = self.warming.swap_remove(which as usize % self.warming.len());
        match how {
            0..5 => {
                let before = self.memory.insert(version, InMemory::default());
                fail_unless!(before.is_none(), "{version:?} was in memory when it was warmed");
                self.feed(SnapEvent::Warmed { version })
            }
            5 => self.feed(SnapEvent::WarmRefused { version }),
            6 => {
                self.failures_until = self.now + Limits::default().heal_max;
                self.feed(SnapEvent::WarmFailed { version })
            }
            _ => self.damage(version),
        }
    }

    fn damage(&mut self, version: Version) -> Checked {
        self.damage_by(version, SnapEvent::Damaged { version })
    }

    fn damage_by(&mut self, version: Version, event: SnapEvent) -> Checked {
        if self.content() == Some(version) {
            self.condemned.extend(self.complete.iter().copied());
        }
        self.condemned.insert(version);
        self.feed(event)
    }

    fn ask(&mut self, asked: Asked) -> WaiterId {
        self.next_waiter += 1;
        let waiter = WaiterId(self.next_waiter);
        self.waiting.insert(waiter, asked);
        waiter
    }

    fn fresh(&mut self, number: u8) -> Version {
        self.next_load += 1;
        version(self.next_load, number)
    }

    fn leased(&self) -> impl Iterator<Item = Version> + '_ {
        self.memory.iter().filter(|(_, memory)| memory.leases > 0).map(|(version, _)| *version)
    }

    /// Gives the decider an event, and carries its commands out.
    fn feed(&mut self, event: SnapEvent) -> Checked {
        let mut commands = Vec::new();
        self.decider.on(self.now, event, &mut commands);
        self.make_mistake(event, &mut commands);
        for command in commands {
            self.carry_out(event, command)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, event: SnapEvent, command: Command) -> Checked {
        match command {
            Command::Answer(waiter, answer) => {
                let asked = self.waiting.remove(&waiter);
                fail_unless!(asked.is_some(), "{waiter:?} is told {answer:?} and does not wait");
                self.answers += 1;
                self.check_answer(event, waiter, asked.expect("checked"), answer)?;
            }
            Command::StartLoad(version) => {
                self.check_load(version)?;
                let same = self.content().is_some_and(|content| content.fingerprint == version.fingerprint);
                fail_unless!(!same, "{version:?} is loaded though its like is there");
            }
            Command::StopLoad(version) => {
                fail_unless!(matches!(event, SnapEvent::Close) && self.load == Some(version));
            }
            Command::StartWarming(version) => {
                fail_unless!(self.content() == Some(version), "{version:?} is warmed and not served");
                fail_unless!(self.manifest == Some(version) && self.removing != Some(version));
                fail_unless!(!self.memory.contains_key(&version), "{version:?} is in memory");
                fail_unless!(!self.warming.contains(&version), "{version:?} is warmed already");
                fail_unless!(!self.closed);
                self.warming.push(version);
            }
            Command::StartCommit(version) => {
                self.check_disk_is_free()?;
                fail_unless!(self.files.contains(&version) && self.manifest != Some(version));
                fail_unless!(!self.condemned.contains(&version), "{version:?} is committed to be removed");
                fail_unless!(!self.unsaved.contains(&version), "{version:?} has failed before");
                let newer = |other: Version| other.load > version.load;
                fail_unless!(!self.manifest.is_some_and(newer), "{version:?} would replace a newer load");
                self.committing = Some(version);
            }
            Command::RemoveFiles(version) => {
                self.check_disk_is_free()?;
                fail_unless!(self.files.contains(&version), "{version:?} has no files");
                let doomed = self.condemned.contains(&version) || self.rotten.contains(&version);
                let named = self.manifest == Some(version) && !doomed;
                fail_unless!(!named, "{version:?} is removed though its manifest stands");
                self.removing = Some(version);
            }
            Command::Discard(version) => {
                fail_unless!(self.manifest != Some(version) && self.committing != Some(version));
                fail_unless!(self.files.remove(&version), "{version:?} has no files");
            }
            Command::DropMemory(version) => {
                let Some(memory) = self.memory.remove(&version) else {
                    return Err(TestCaseError::fail(format!("{version:?} is not in memory")));
                };
                fail_unless!(memory.leases == 0, "{version:?} is dropped under {} leases", memory.leases);
                let lost = self.content() == Some(version) && self.manifest != Some(version);
                fail_unless!(!lost || self.closed, "{version:?} was only in memory");
            }
        }
        Ok(())
    }

    fn check_load(&mut self, version: Version) -> Checked {
        fail_unless!(self.load.is_none() && self.load_commits.is_none(), "two loads: {version:?}");
        fail_unless!(!self.closed && !self.gone, "a load of a snap that is closed or gone");
        fail_unless!(version.load > self.begun_last, "{version:?} has a number that was used");
        self.begun_last = version.load;
        self.load = Some(version);
        Ok(())
    }

    fn check_disk_is_free(&self) -> Checked {
        fail_unless!(self.committing.is_none(), "the disk commits {:?}", self.committing);
        fail_unless!(self.removing.is_none(), "the disk removes {:?}", self.removing);
        Ok(())
    }

    fn check_answer(&mut self, event: SnapEvent, waiter: WaiterId, asked: Asked, answer: Answer) -> Checked {
        let content = self.content();
        let in_memory = content.and_then(|version| self.memory.get(&version).copied());
        let is_durable = self.is_durable();
        fail_unless!((answer == Answer::Closed) == self.closed || answer == Answer::Late, "{answer:?}");
        match (asked, answer) {
            (_, Answer::Late) => {
                fail_unless!(matches!(event, SnapEvent::GiveUp { waiter: who } if who == waiter))
            }
            (_, Answer::Closed) => {}
            (Asked::Lease { want, .. }, Answer::Lease(version)) => {
                fail_unless!(!self.gone, "a lease on a snap that is gone");
                fail_unless!(wants(want, version), "{version:?} was not wanted: {want:?}");
                fail_unless!(content == Some(version), "{version:?} leased, there is {content:?}");
                let memory = self.memory.get_mut(&version);
                fail_unless!(memory.is_some(), "{version:?} is leased and not in memory");
                memory.expect("checked").leases += 1;
            }
            (Asked::Lease { offer, .. }, Answer::Again) => {
                let used = offer.is_some_and(|offer| offer.load <= self.begun_last);
                fail_unless!(self.gone || used, "asked again for nothing");
            }
            (_, Answer::Again) => fail_unless!(self.gone),
            (Asked::Lease { want, offer }, Answer::NotThere) => {
                fail_unless!(content.is_none() && offer.is_none_or(|offer| !wants(want, offer)));
                let coming = self.load.or(self.load_commits).filter(|load| wants(want, *load));
                fail_unless!(coming.is_none(), "{coming:?} is being loaded");
            }
            (Asked::Lease { want, offer }, Answer::OtherFingerprint(found)) => {
                fail_unless!(content.is_some_and(|content| content.fingerprint == found));
                fail_unless!(content.is_some_and(|content| !wants(want, content)));
                fail_unless!(offer.is_none_or(|offer| !wants(want, offer)));
            }
            (Asked::Lease { .. }, Answer::Failed { until }) => {
                fail_unless!(self.now < until && until <= self.failures_until, "{until:?}");
            }
            (Asked::Lease { .. }, Answer::LoadFailed) => fail_unless!(matches!(
                event,
                SnapEvent::LoadFailed { .. }
                    | SnapEvent::LoadCancelled { .. }
                    | SnapEvent::CommitFailed { .. }
            )),
            (Asked::Lease { .. }, Answer::WarmFailed) => {
                fail_unless!(matches!(event, SnapEvent::WarmFailed { .. }));
            }
            (Asked::Lease { .. }, Answer::WarmRefused) => {
                fail_unless!(matches!(event, SnapEvent::WarmRefused { .. }));
            }
            (Asked::Lease { offer, .. }, Answer::Damaged) => {
                let is_damage = matches!(event, SnapEvent::Damaged { .. } | SnapEvent::FilesDamaged { .. });
                fail_unless!(is_damage, "{event:?}");
                fail_unless!(
                    offer.is_none()
                        || !matches!(asked, Asked::Lease { want, .. }
                    if wants(want, offer.expect("checked")))
                );
            }
            (Asked::Write(version), Answer::Write(given)) => {
                fail_unless!(version == given);
                self.check_load(version)?;
            }
            (Asked::Write(_), Answer::Busy) => {
                fail_unless!(self.load.is_some() || self.load_commits.is_some(), "nothing is loaded");
            }
            (Asked::Evict | Asked::Flush | Asked::Erase, Answer::Pinned) => fail_unless!(self.pinned),
            (Asked::Evict, Answer::Evicted) => {
                fail_unless!(!self.pinned && content.is_some() && in_memory.is_none() && is_durable);
            }
            (Asked::Evict, Answer::Leaving) => {
                fail_unless!(!self.pinned && is_durable);
                fail_unless!(in_memory.is_some_and(|memory| memory.leases > 0), "nobody has a lease");
            }
            (Asked::Evict, Answer::NotDurable) => fail_unless!(in_memory.is_some() && !is_durable),
            (Asked::Evict, Answer::Nothing) => fail_unless!(in_memory.is_none_or(|memory| memory.empty)),
            (Asked::Flush, Answer::Flushed | Answer::Nothing) => {
                let stands = self.manifest.is_some_and(|manifest| self.condemned.contains(&manifest));
                fail_unless!(!stands, "flushed, and {:?} is there", self.manifest);
            }
            (Asked::Flush, Answer::FlushFailed) => {
                fail_unless!(matches!(event, SnapEvent::RemoveFailed { .. }));
            }
            (Asked::Erase, Answer::Erased) => {
                let busy = self.committing.or(self.removing).or(self.load).or(self.load_commits);
                fail_unless!(busy.is_none() && self.manifest.is_none() && self.memory.is_empty());
                fail_unless!(self.waiting.is_empty() && !self.pinned);
                self.gone = true;
            }
            (Asked::Erase, Answer::Busy) => {}
            (asked, answer) => {
                return Err(TestCaseError::fail(format!("{asked:?} was answered {answer:?}")));
            }
        }
        Ok(())
    }

    /// What users are shown agrees with the world.
    fn check_state(&self) -> Checked {
        let state = self.decider.state(self.now);
        let content = self.content();
        let memory = content.and_then(|version| self.memory.get(&version));
        let expected = match (content, memory) {
            _ if self.gone => vec![SnapState::Gone],
            // Evicted without a lease, so that no share is left: nothing else takes memory off what is served.
            (Some(_), Some(memory)) if memory.empty => vec![SnapState::NoData],
            (Some(_), Some(_)) => vec![SnapState::Hot],
            _ if self.closed => return Ok(()),
            (Some(_), None) => vec![SnapState::Warm, SnapState::Failed],
            (None, _) if self.load.is_some() || self.load_commits.is_some() => vec![SnapState::Loading],
            (None, _) => vec![SnapState::Cold, SnapState::Failed],
        };
        fail_unless!(expected.contains(&state), "{state:?} is shown, {expected:?} is so: {:?}", self.decider);
        if state == SnapState::Failed {
            fail_unless!(self.now < self.failures_until, "a failure that has healed is shown");
        }
        let durable = self.is_durable() && !self.gone;
        fail_unless!(self.decider.is_durable() == durable, "durable: {durable}");
        fail_unless!(self.decider.leases() == self.memory.values().map(|memory| memory.leases).sum::<u32>());
        Ok(())
    }

    /// Ends whatever is under way.
    fn settle(&mut self) -> Checked {
        for round in 0.. {
            fail_unless!(round < 1000, "it never ends: {:?}", self.decider);
            let busy = self.committing.or(self.removing).or(self.load).or(self.warming.first().copied());
            if busy.is_none() {
                break;
            }
            self.step(Step::EndLoad { how: 6 })?;
            self.step(Step::EndCommit { well: true })?;
            self.step(Step::EndWarming { which: 0, how: 0 })?;
            self.step(Step::EndRemoval { well: true })?;
        }
        Ok(())
    }

    /// When nothing is under way, nobody waits, and there is nothing that nobody can get at.
    fn check_rest(&self) -> Checked {
        fail_unless!(self.waiting.is_empty(), "forgotten: {:?}", self.waiting);
        let named: BTreeSet<Version> = self.manifest.into_iter().collect();
        fail_unless!(self.files == named, "files {:?}, manifest {:?}", self.files, self.manifest);
        let condemned =
            self.manifest.filter(|version| self.condemned.contains(version) || self.rotten.contains(version));
        fail_unless!(condemned.is_none(), "{condemned:?} was to be removed");
        for (version, memory) in &self.memory {
            let kept = memory.leases > 0 || self.content() == Some(*version);
            fail_unless!(kept, "{version:?} is in memory for nobody");
        }
        Ok(())
    }

    fn make_mistake(&mut self, event: SnapEvent, commands: &mut Vec<Command>) {
        let is_answer = |command: &Command| matches!(command, Command::Answer(..));
        let content = self.content();
        match (self.mistake, event) {
            (Mistake::DeadlineFailsTheLoad, SnapEvent::GiveUp { .. }) => {
                if let Some(version) = self.load.filter(|_| commands.iter().any(is_answer)) {
                    self.decider.on(self.now, SnapEvent::LoadFailed { version }, commands);
                }
            }
            (Mistake::EvictDropsLeasedMemory, SnapEvent::Evict { .. }) => {
                let leaves = |command: &Command| matches!(command, Command::Answer(_, Answer::Leaving));
                if commands.iter().any(leaves) {
                    commands.push(Command::DropMemory(content.expect("it leaves")));
                }
            }
            (Mistake::FilesGoBeforeTheCommit, SnapEvent::Sealed { .. }) => {
                if let Some(version) = self.manifest.filter(|_| self.removing.is_none()) {
                    commands.insert(0, Command::RemoveFiles(version));
                }
            }
            (Mistake::EachAskLoads, SnapEvent::Lease { offer: Some(offer), .. }) => {
                let answered = commands.iter().any(is_answer);
                if !answered && !commands.contains(&Command::StartLoad(offer)) {
                    commands.push(Command::StartLoad(offer));
                }
            }
            (Mistake::ReplacedIsLeased, SnapEvent::Warmed { version }) => {
                if commands.contains(&Command::DropMemory(version))
                    && let Some(waiter) = self.waiting.keys().next()
                {
                    commands.insert(0, Command::Answer(*waiter, Answer::Lease(version)));
                }
            }
            (Mistake::AnswersTwice, _) => {
                if let Some(answer) = commands.iter().copied().find(is_answer) {
                    commands.push(answer);
                }
            }
            (Mistake::AnswerIsLost, SnapEvent::LoadFailed { .. }) => commands.retain(|it| !is_answer(it)),
            (Mistake::RemovesWhileCommitting, SnapEvent::Flush { .. }) => {
                if let Some(version) = self.committing.and(self.manifest) {
                    commands.push(Command::RemoveFiles(version));
                }
            }
            (Mistake::EvictsWhatIsNotDurable, SnapEvent::Evict { .. }) => {
                let refused = |command: &Command| matches!(command, Command::Answer(_, Answer::NotDurable));
                if commands.iter().any(refused) {
                    commands.push(Command::DropMemory(content.expect("it is not durable")));
                }
            }
            (Mistake::MemoryLeaks, SnapEvent::Released { .. }) => {
                commands.retain(|command| !matches!(command, Command::DropMemory(_)));
            }
            (Mistake::GoneIsUsed, SnapEvent::Erase { .. }) => {
                let erased = |command: &Command| matches!(command, Command::Answer(_, Answer::Erased));
                if commands.iter().any(erased) {
                    self.decider = Decider::cold(Limits::default());
                }
            }
            _ => {}
        }
    }
}

fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

fn version(load: u64, number: u8) -> Version {
    Version { load, fingerprint: fingerprint(number) }
}

fn wants(want: Want, version: Version) -> bool {
    want == Want::Latest || want == Want::Fingerprint(version.fingerprint)
}

fn pick<T>(from: impl Iterator<Item = T>, which: u8) -> Option<T> {
    let mut all: Vec<T> = from.collect();
    (!all.is_empty()).then(|| all.swap_remove(which as usize % all.len()))
}

fn any_found() -> impl Strategy<Value = Option<bool>> {
    prop::option::of(any::<bool>())
}

/// Runs many sequences of events, and tells what the first one that fails says.
fn run_model(cases: u32, seed: u64, mistake: Mistake) -> Result<u64, String> {
    let config = Config {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let answers = std::cell::Cell::new(0);
    let result = TestRunner::new(config).run(&(any_found(), any_steps()), |(found, steps)| {
        let mut world = World::new(found, mistake);
        let ran = world.run(&steps);
        answers.set(answers.get() + world.answers);
        ran
    });
    result.map(|()| answers.get()).map_err(|error| error.to_string())
}

/// The decider in a world that does anything in any order.
///
/// Goal: never two loads at once, no lease on what is not in memory or not wanted, no memory dropped under a lease,
/// no file removed that a manifest names, nothing durable lost but by flush, reslice or damage, everybody answered
/// exactly once, nothing left behind. Method: random events and outcomes beside the naive world above.
/// `PELTON_CASES` and `PELTON_SEED` set how many sequences and which.
#[test]
fn the_decider_does_what_a_naive_model_allows() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let (cases, seed) = (number("PELTON_CASES", 3000), number("PELTON_SEED", 42));
    println!("seed {seed}, {cases} sequences");
    match run_model(cases as u32, seed, Mistake::None) {
        Ok(answers) => assert!(answers > 10 * cases, "only {answers} answers: the model does nearly nothing"),
        Err(error) => panic!("{error}"),
    }
}

/// The model is worth something: it finds each of these mistakes.
#[test]
fn the_model_finds_mistakes() {
    let mistakes = [
        Mistake::DeadlineFailsTheLoad,
        Mistake::EvictDropsLeasedMemory,
        Mistake::FilesGoBeforeTheCommit,
        Mistake::EachAskLoads,
        Mistake::ReplacedIsLeased,
        Mistake::AnswersTwice,
        Mistake::AnswerIsLost,
        Mistake::RemovesWhileCommitting,
        Mistake::EvictsWhatIsNotDurable,
        Mistake::MemoryLeaks,
        Mistake::GoneIsUsed,
    ];
    for mistake in mistakes {
        assert!(run_model(3000, 42, mistake).is_err(), "{mistake:?} was not found");
    }
}

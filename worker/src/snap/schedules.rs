//! The desk under many schedules: loads, leases, evictions, flushes, reslices and the close, racing.
//!
//! A model checker runs the threads one at a time and switches between them at every lock, as its random numbers say.
//! A deadlock is a failure, too. `PELTON_SCHEDULES=1000000 cargo test -p pelton-worker --lib schedules` tries a million.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex as UnseenMutex, PoisonError};
use std::time::{Duration, Instant};

use pelton_region_format::Fingerprint;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::thread::{self, JoinHandle};

use self::desk::{Desk, Reply};
use self::sync::Arc;
use super::holders;
use super::state::{self, Answer, Command, Decider, Form, Limits, SnapEvent, SnapState, Version, WaiterId};
use crate::cache::Want;
use crate::scan::patience::Patience;

/// What the desk locks with, seen by the model checker.
mod sync {
    pub(crate) use std::sync::PoisonError;

    pub(crate) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
}

#[allow(dead_code, reason = "schedules have no clock, so nobody waits to a deadline")]
#[allow(clippy::duplicate_mod, reason = "the same code over other locks")]
#[path = "desk.rs"]
mod desk;

/// Schedules do not take time.
const NOW: Duration = Duration::ZERO;
/// Switches of each scheduler that tries few but unlikely ones.
const PCT_DEPTH: usize = 3;

/// What a version has in memory.
#[derive(Debug)]
struct Bytes {
    fingerprint: Fingerprint,
    world: std::sync::Arc<Outside>,
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.world.in_memory.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the commands act on. The model checker does not switch here: these are facts, not part of what is tested.
#[derive(Debug, Default)]
struct Outside {
    next_load: AtomicU64,
    in_memory: AtomicI64,
    loads: AtomicI64,
    disk_jobs: AtomicI64,
    disk: UnseenMutex<Disk>,
    running: UnseenMutex<Vec<JoinHandle<()>>>,
    leases: AtomicU64,
}

#[derive(Debug, Default)]
struct Disk {
    files: BTreeSet<Version>,
    manifest: Option<Version>,
}

#[derive(Clone)]
struct World {
    desk: Arc<Desk<Bytes>>,
    outside: std::sync::Arc<Outside>,
}

impl World {
    fn new() -> World {
        let outside = std::sync::Arc::<Outside>::default();
        outside.next_load.store(2, Ordering::Relaxed);
        let found = Version { load: 1, fingerprint: fingerprint(0) };
        let decider = match thread_rng().gen_bool(0.5) {
            true => {
                *unseen(&outside.disk) = Disk { files: BTreeSet::from([found]), manifest: Some(found) };
                Decider::found(Limits::default(), found, false)
            }
            false => Decider::cold(Limits::default()),
        };
        World { desk: Arc::new(Desk::new(decider, None, 0)), outside }
    }

    fn fresh(&self, number: u8) -> Version {
        let load = self.outside.next_load.fetch_add(1, Ordering::Relaxed);
        Version { load, fingerprint: fingerprint(number) }
    }

    fn bytes(&self, version: Version) -> (Version, Arc<Bytes>) {
        self.outside.in_memory.fetch_add(1, Ordering::Relaxed);
        (version, Arc::new(Bytes { fingerprint: version.fingerprint, world: self.outside.clone() }))
    }

    /// Does what the decider commands, each on a thread of its own.
    fn begin(&self, command: Command) {
        let world = self.clone();
        let thread = thread::spawn(move || match command {
            Command::StartLoad(version) => world.load(version),
            Command::StartWarming(version) => world.warm(version),
            Command::StartCommit(version) => world.commit(version),
            Command::RemoveFiles(version) => world.remove(version),
            Command::Discard(version) => {
                assert!(unseen(&world.outside.disk).files.remove(&version), "{version:?} has no files");
            }
            Command::StopLoad(_) => {}
            other => unreachable!("{other:?} is the desk's"),
        });
        unseen(&self.outside.running).push(thread);
    }

    fn report(&self, event: SnapEvent) {
        self.desk.report(NOW, event, &mut |command| self.begin(command));
    }

    fn load(&self, version: Version) {
        assert_eq!(self.outside.loads.fetch_add(1, Ordering::Relaxed), 0, "two loads at once");
        thread::yield_now();
        self.outside.loads.fetch_sub(1, Ordering::Relaxed);
        let form = match thread_rng().gen_range(0..8) {
            0..4 => Form::Image,
            4..6 => Form::Direct,
            6 => return self.report(SnapEvent::LoadFailed { version }),
            _ => return self.report(SnapEvent::LoadCancelled { version }),
        };
        unseen(&self.outside.disk).files.insert(version);
        let event = SnapEvent::Sealed { version, form };
        match form {
            Form::Direct => self.report(event),
            _ => self.report_memory(event, version),
        }
    }

    fn report_memory(&self, event: SnapEvent, version: Version) {
        self.desk.report_memory(NOW, event, self.bytes(version), &mut |command| self.begin(command));
    }

    fn warm(&self, version: Version) {
        thread::yield_now();
        match thread_rng().gen_range(0..8) {
            0 => self.report(SnapEvent::WarmFailed { version }),
            1 => self.report(SnapEvent::WarmRefused { version }),
            2 => self.report(SnapEvent::Damaged { version }),
            _ => self.report_memory(SnapEvent::Warmed { version }, version),
        }
    }

    fn commit(&self, version: Version) {
        self.use_disk(|disk| assert!(disk.files.contains(&version), "{version:?} has no files"));
        if thread_rng().gen_bool(0.2) {
            unseen(&self.outside.disk).files.remove(&version);
            return self.report(SnapEvent::CommitFailed { version });
        }
        unseen(&self.outside.disk).manifest = Some(version);
        self.report(SnapEvent::Committed { version });
    }

    fn remove(&self, version: Version) {
        self.use_disk(|disk| {
            if disk.manifest == Some(version) {
                disk.manifest = None;
            }
            assert!(disk.files.remove(&version), "{version:?} has no files");
        });
        self.report(SnapEvent::Removed { version });
    }

    /// A commit or a removal: never two at a time.
    fn use_disk(&self, change: impl FnOnce(&mut Disk)) {
        assert_eq!(self.outside.disk_jobs.fetch_add(1, Ordering::Relaxed), 0, "two disk jobs at once");
        change(&mut unseen(&self.outside.disk));
        thread::yield_now();
        self.outside.disk_jobs.fetch_sub(1, Ordering::Relaxed);
    }

    /// Somebody who scans: wants one fingerprint or any, may know a loader, may lose patience.
    fn scan(&self) {
        let wanted = thread_rng().gen_range(0..3u8).checked_sub(1);
        let want = wanted.map_or(Want::Latest, |number| Want::Fingerprint(fingerprint(number)));
        let begin = &mut |command| self.begin(command);
        let since = Instant::now();
        if thread_rng().gen_bool(0.5)
            && let Some((number, version, bytes)) = self.desk.lease_at_once(want, since, 0)
        {
            return self.scan_leased(wanted, number, version, bytes);
        }
        loop {
            let offer = thread_rng().gen_bool(0.7).then(|| self.fresh(wanted.unwrap_or(0)));
            let reply = self.desk.ask_later(NOW, |waiter| SnapEvent::Lease { waiter, want, offer }, begin);
            let reply = reply.unwrap_or_else(|waiter| match thread_rng().gen_bool(0.2) {
                true => self.desk.give_up(NOW, waiter, begin),
                false => {
                    self.desk.wait(waiter, &Patience::default()).expect("with all patience the answer comes")
                }
            });
            match reply {
                Reply::Lease(version, bytes) => {
                    let number = self.desk.hold(version.fingerprint, since, 0);
                    return self.scan_leased(wanted, number, version, bytes);
                }
                // Too late with its number: with a new one it goes on. If the snap is gone, another one is asked.
                Reply::Other(Answer::Again) if self.desk.look(|snap| snap.state(NOW)) != SnapState::Gone => {}
                Reply::Other(_) => return,
            }
        }
    }

    fn scan_leased(&self, wanted: Option<u8>, number: u32, version: Version, bytes: Arc<Bytes>) {
        self.outside.leases.fetch_add(1, Ordering::Relaxed);
        assert_eq!(bytes.fingerprint, version.fingerprint);
        assert!(wanted.is_none_or(|number| bytes.fingerprint == fingerprint(number)));
        thread::yield_now();
        assert!(self.desk.held().iter().any(|(held, _)| *held == version.fingerprint));
        if thread_rng().gen_bool(0.1) {
            self.report(SnapEvent::Damaged { version });
        }
        drop(bytes);
        drop(self.desk.release(|| NOW, number, Some(version)));
    }

    fn ask(&self, ask: impl FnOnce(WaiterId) -> SnapEvent) -> Reply<Bytes> {
        let asked = self.desk.ask_later(NOW, ask, &mut |command| self.begin(command));
        asked.unwrap_or_else(|waiter| {
            self.desk.wait(waiter, &Patience::default()).expect("with all patience the answer comes")
        })
    }

    fn operate(&self) {
        for _ in 0..2 {
            let ask: fn(WaiterId) -> SnapEvent = match thread_rng().gen_range(0..6) {
                0..3 => |waiter| SnapEvent::Evict { waiter },
                3..5 => |waiter| SnapEvent::Flush { waiter },
                _ => |waiter| SnapEvent::Erase { waiter },
            };
            let reply = self.ask(ask);
            assert!(matches!(reply, Reply::Other(_)));
        }
    }

    fn write(&self) {
        let version = self.fresh(thread_rng().gen_range(0..2));
        let write = |waiter| SnapEvent::Write { waiter, version };
        let reply = self.ask(write);
        if matches!(reply, Reply::Other(Answer::Write(_))) {
            self.load(version);
        }
    }

    fn join_all(&self) {
        loop {
            let Some(thread) = unseen(&self.outside.running).pop() else { return };
            thread.join().expect("it does not panic");
        }
    }
}

/// One story: everybody at once, then the close, and nothing may be left.
fn race() -> u64 {
    let world = World::new();
    let parts: [fn(&World); 6] =
        [World::scan, World::scan, World::scan, World::operate, World::write, |world: &World| {
            if thread_rng().gen_bool(0.3) {
                world.report(SnapEvent::Close);
            }
        }];
    let threads = parts.map(|part| {
        let world = world.clone();
        thread::spawn(move || part(&world))
    });
    threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    world.join_all();
    {
        let disk = unseen(&world.outside.disk);
        assert!(disk.files.iter().eq(disk.manifest.iter()), "{disk:?}: files and manifest differ");
    }
    world.report(SnapEvent::Close);
    world.join_all();
    assert_eq!((world.desk.look(Decider::leases), world.desk.held_count()), (0, 0));
    assert_eq!(world.outside.in_memory.load(Ordering::Relaxed), 0, "memory is left after the close");
    world.outside.leases.load(Ordering::Relaxed)
}

fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

fn unseen<T>(mutex: &UnseenMutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many leases there were.
fn run(scheduler: impl Scheduler + 'static) -> u64 {
    let leases = std::sync::Arc::new(AtomicU64::new(0));
    let counted = leases.clone();
    let race = move || _ = counted.fetch_add(race(), Ordering::Relaxed);
    shuttle::Runner::new(scheduler, shuttle::Config::default()).run(race);
    leases.load(Ordering::Relaxed)
}

/// Half of the schedules switch at random everywhere, half at few places that are chosen at random.
#[test]
fn many_schedules_end_with_everybody_answered_and_nothing_left() {
    let schedules: usize = std::env::var("PELTON_SCHEDULES")
        .map_or(10_000, |text| text.parse().expect("PELTON_SCHEDULES is a number"));
    let seed = 42;
    let leases = run(RandomScheduler::new_from_seed(seed, schedules / 2))
        + run(PctScheduler::new_from_seed(seed, PCT_DEPTH, schedules / 2));
    println!("{schedules} schedules, seed {seed}: {leases} leases");
    assert!(leases > schedules as u64 / 2, "only {leases} leases: the stories end too early");
}

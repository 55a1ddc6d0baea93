//! Does what a snap's decider commands: each on threads where it may wait for disks.
//!
//! ```text
//! start warming ─▶ memory ─▶ looks, by the spindle's warmers
//! start commit, remove files ─▶ one thread: also for what follows on the disk from that
//! discard ─▶ a thread
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use pelton_region_format::Key;
use tracing::field::Empty;
use tracing::info_span;

use crate::budget::memory::{MemoryBudget, MemoryGrant, MemoryRefused, MemoryUse};
use crate::cache::CacheCore;
use crate::cache::close::{Commits, UnderWay};
use crate::events::{Event, EventHub, reason};
use crate::load::running;
use crate::scan::patience::Patience;
use crate::scan::threads::ScanThreads;
use crate::snap::commit::{CommitError, remove_manifest, remove_regions};
use crate::snap::entry::{Cargo, Debt, Entry};
use crate::snap::leftovers::Leftovers;
use crate::snap::manifest::Manifest;
use crate::snap::recovery::leave_behind;
use crate::snap::state::{Command, Limits, SnapEvent, Version};
use crate::snap::urgent::Urgent;
use crate::snap::warm::{Attempt, WarmError, Warmth, bytes_in_memory};
use crate::spindle::engine::DiskError;
use crate::spindle::held::Spindle;
use crate::spindle::identity::SpindleUuid;
use crate::spindle::impeller::Lane;
use crate::tender::room::make_room_in_memory;

/// What commands act on. Entries hold it, and leases hold entries: so it does not keep spindles or their threads.
pub(crate) struct Runner {
    pub(crate) commits: Arc<Commits>,
    /// Loads that loaders are at, and plans that they are asked for. Their threads keep the cache.
    pub(crate) loads: Arc<Commits>,
    pub(crate) limits: Limits,
    pub(crate) leftovers: Leftovers,
    /// Set once, when the cache is there.
    core: OnceLock<Weak<CacheCore>>,
    pub(crate) events: Arc<EventHub>,
    spindles: Vec<Weak<Spindle>>,
    warmth: Weak<Warmth>,
    budget: MemoryBudget,
    /// Here leases find them, which thereby keep them.
    pub(crate) scan_threads: Arc<ScanThreads>,
    /// What somebody waits for while manifests are still being read.
    pub(crate) urgent: Urgent,
    lanes: AtomicU64,
    /// When it was made, for [`Runner::moment`].
    opened: Instant,
    /// The same as time since 1970.
    epoch: Duration,
}

impl Runner {
    pub(crate) fn new(
        spindles: &[Arc<Spindle>],
        warmth: &Arc<Warmth>,
        budget: MemoryBudget,
        events: Arc<EventHub>,
        scan_threads: Arc<ScanThreads>,
        limits: Limits,
    ) -> Runner {
        Runner {
            commits: Arc::default(),
            loads: Arc::default(),
            limits,
            leftovers: Leftovers::default(),
            core: OnceLock::new(),
            events,
            spindles: spindles.iter().map(Arc::downgrade).collect(),
            warmth: Arc::downgrade(warmth),
            budget,
            scan_threads,
            urgent: Urgent::default(),
            lanes: AtomicU64::new(0),
            opened: Instant::now(),
            epoch: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
        }
    }

    /// Tells where loads are opened.
    pub(crate) fn attach(&self, core: &Arc<CacheCore>) {
        let _ = self.core.set(Arc::downgrade(core)); // Called once, by the cache that is made.
    }

    /// The moment for deciders and histories.
    pub(crate) fn now(&self) -> Duration {
        self.moment(Instant::now())
    }

    /// A moment as time since 1970, so that it can be kept for the next process; by a clock that does not jump while this
    /// one lives.
    pub(crate) fn moment(&self, at: Instant) -> Duration {
        self.epoch + at.saturating_duration_since(self.opened)
    }

    pub(crate) fn next_lane(&self) -> Lane {
        Lane(self.lanes.fetch_add(1, Ordering::Relaxed))
    }

    /// Begins what is commanded, and does not wait for it.
    pub(crate) fn begin(self: &Arc<Self>, entry: &Arc<Entry>, command: Command) {
        match command {
            // If there is no memory now, whoever wants it asks anew, and waits itself.
            Command::StartWarming(version) => {
                self.warm(entry, version, &Patience::until(Some(self.opened)));
            }
            Command::StartCommit(_) | Command::RemoveFiles(_) => self.begin_disk_job(entry, command),
            Command::Discard(version) => self.discard(entry, version),
            // A load by hand ends when its owner ends it; the decider drops what it brings.
            Command::StopLoad(version) => running::stop(entry, version),
            Command::StartLoad(version) => self.load(entry, version),
            Command::Answer(..) | Command::DropMemory(_) => unreachable!("{command:?} is the desk's"),
        }
    }

    /// Has the loader that was offered fill the slice.
    fn load(&self, entry: &Arc<Entry>, version: Version) {
        let offer = entry.facts().offers.remove(&version.load);
        let offer = offer.expect("an offer stays until its load has begun, or can't any more");
        match self.core.get().and_then(Weak::upgrade) {
            Some(core) => running::start(core, entry.clone(), version, offer),
            None => entry.report(SnapEvent::LoadCancelled { version }), // The cache was dropped meanwhile.
        }
    }

    /// Waits for memory as long as it is patient, and has the files brought there.
    pub(crate) fn warm(&self, entry: &Arc<Entry>, version: Version, patience: &Patience) {
        let manifest = entry.facts().manifest(version.load);
        // It may have been flushed since it was commanded.
        let Some(manifest) = manifest else { return entry.report(SnapEvent::WarmRefused { version }) };
        // All of it or none: regions that fit one by one would wait for each other.
        match self.take_memory(bytes_in_memory(&manifest), patience) {
            Ok(grant) => self.start_warming(entry, manifest, grant),
            Err(source) => entry.warming_failed(version, Arc::new(WarmError::Memory { source })),
        }
    }

    /// What is worth least is evicted for it, unless nobody waits for it: whoever wants it asks anew then, and has
    /// hold of the cache.
    fn take_memory(&self, bytes: u64, patience: &Patience) -> Result<MemoryGrant, MemoryRefused> {
        match self.budget.try_take(MemoryUse::Mapped, bytes) {
            Err(MemoryRefused::Deadline { .. }) if patience.check().is_ok() => {}
            taken => return taken,
        }
        if let Some(core) = self.core.get().and_then(Weak::upgrade) {
            let _turn = make_room_in_memory(&core, bytes, patience);
            if let Ok(grant) = self.budget.try_take(MemoryUse::Mapped, bytes) {
                return Ok(grant);
            }
        }
        self.budget.take_patiently(MemoryUse::Mapped, bytes, patience)
    }

    /// Whether what is in memory from the disk was compared with its checksums.
    pub(crate) fn verifies_what_it_warms(&self) -> bool {
        self.warmth.upgrade().is_some_and(|warmth| warmth.verifies())
    }

    fn start_warming(&self, entry: &Arc<Entry>, manifest: Arc<Manifest>, grant: MemoryGrant) {
        let (Some(spindles), Some(warmth)) = (self.spindles(), self.warmth.upgrade()) else {
            // The cache was dropped meanwhile.
            return entry.report(SnapEvent::WarmRefused { version: manifest.version() });
        };
        let (verified_load, pace) = {
            let mut facts = entry.facts();
            let verified_load = facts.verified_load.and_then(|_| facts.verified_load.take());
            (verified_load, facts.pace.clone())
        };
        let is_verified = verified_load == Some(manifest.load_number);
        let is_urgent = pace.is_none();
        let (attempt, hauling) = Attempt::new(entry.clone(), manifest, pace);
        if is_urgent {
            self.urgent.begin(attempt.hauled().clone());
        }
        attempt.start(&spindles, &warmth, &hauling, grant, is_verified, || self.next_lane());
    }

    /// The disk does one thing at a time for a snap, so one thread does what follows from that, too.
    fn begin_disk_job(self: &Arc<Self>, entry: &Arc<Entry>, first: Command) {
        let spindles = self.spindles();
        let (runner, of_thread) = (self.clone(), entry.clone());
        self.aside("pelton-commit", entry.key.clone(), move |under_way| {
            let (mut debts, mut next) = (Vec::new(), Some(first));
            while let Some(command) = next.take() {
                let event = match (command, &spindles) {
                    (Command::StartCommit(version), spindles) => {
                        pay_all(&mut debts); // Who came before does not wait for this one.
                        commit(&of_thread, version, spindles.as_deref(), &runner.leftovers, &mut debts)
                    }
                    (Command::RemoveFiles(version), Some(spindles)) => {
                        remove(&of_thread, version, spindles, &runner.leftovers)
                    }
                    (Command::RemoveFiles(version), None) => SnapEvent::RemoveFailed { version },
                    (other, _) => unreachable!("{other:?} is no work of the disk"),
                };
                of_thread.report_and(event, &mut |command| match command {
                    Command::StartCommit(_) | Command::RemoveFiles(_) => next = Some(command),
                    other => runner.begin(&of_thread, other),
                });
            }
            // Before it is told: who was told may drop the cache, and open its folders again.
            drop(spindles);
            pay_all(&mut debts);
            drop(under_way);
        });
    }

    /// Removes what was sealed, and will not be committed.
    fn discard(self: &Arc<Self>, entry: &Arc<Entry>, version: Version) {
        let cargo = entry.facts().cargo.remove(&version.load).expect("what is discarded was sealed");
        let Some(spindles) = self.spindles() else { return };
        let (key, fingerprint) = (entry.key.clone(), version.fingerprint);
        let why = || reason(&CommitError::Replaced);
        self.events.meter.commits.failed();
        self.events.tell(|| Event::CommitFailed { key, fingerprint, in_memory: false, why: why() });
        let (commit, debt) = (cargo.commit, cargo.debt.cancel(Err(CommitError::Replaced)));
        self.aside("pelton-remove", entry.key.clone(), move |under_way| {
            commit.discard(&spindles);
            drop(spindles);
            drop((debt, under_way));
        });
    }

    fn spindles(&self) -> Option<Vec<Arc<Spindle>>> {
        self.spindles.iter().map(Weak::upgrade).collect()
    }

    /// Runs what may wait for a disk on a thread of its own, which the cache's last handle waits for. So `run`
    /// must not hold the cache, and lets go of its spindles before it says that it has ended.
    pub(crate) fn aside(&self, thread: &str, key: Key, run: impl FnOnce(UnderWay) + Send + 'static) {
        aside(self.commits.begin(key), thread, run);
    }

    /// The same for what ends a load that a loader is at. It may hold the cache.
    pub(crate) fn end_load(&self, key: Key, end: impl FnOnce() + Send + 'static) {
        aside(self.loads.begin(key), "pelton-remove", move |under_way| {
            end();
            drop(under_way);
        });
    }
}

fn aside(under_way: UnderWay, thread: &str, run: impl FnOnce(UnderWay) + Send + 'static) {
    let job = Arc::new(Mutex::new(Some(move || run(under_way))));
    let of_thread = job.clone();
    let take = |job: &Mutex<Option<_>>| job.lock().unwrap_or_else(PoisonError::into_inner).take();
    let spawned = std::thread::Builder::new().name(thread.to_owned()).spawn(move || {
        let job = take(&of_thread);
        drop(of_thread);
        if let Some(run) = job {
            run();
        }
    });
    // Where the system has no thread to give, this one does it.
    if spawned.is_err()
        && let Some(run) = take(&job)
    {
        run();
    }
}

fn commit(
    entry: &Entry,
    version: Version,
    spindles: Option<&[Arc<Spindle>]>,
    leftovers: &Leftovers,
    debts: &mut Vec<(Debt, Result<(), CommitError>)>,
) -> SnapEvent {
    let (Cargo { commit, debt }, older) = {
        let mut facts = entry.facts();
        let cargo = facts.cargo.remove(&version.load).expect("it was sealed");
        (cargo, facts.manifests().to_vec())
    };
    let in_memory = commit.hot.is_some();
    let span = info_span!("commit", key = %entry.key, bytes = Empty, outcome = Empty);
    let committed = span.in_scope(|| match spindles {
        Some(spindles) => commit.run(spindles, &older, leftovers),
        None => Err(CommitError::Closed),
    });
    let meter = &entry.events().meter;
    let (key, fingerprint) = (entry.key.clone(), version.fingerprint);
    match committed {
        Ok(manifest) => {
            let (bytes, took) = (manifest.file_bytes(), debt.since.elapsed());
            span.record("bytes", bytes).record("outcome", "durable");
            meter.commits.done(bytes, took);
            entry.events().tell(|| Event::Durable { key, fingerprint, bytes, took });
            entry.facts().put_manifest(manifest);
            debts.push((debt, Ok(())));
            SnapEvent::Committed { version }
        }
        Err(error) => {
            span.record("outcome", "failed");
            meter.commits.failed();
            let why = || reason(&error);
            entry.events().tell_trouble(|| Event::CommitFailed { key, fingerprint, in_memory, why: why() });
            entry.facts().load_error = Some(reason(&error));
            debts.push((debt, Err(error)));
            SnapEvent::CommitFailed { version }
        }
    }
}

fn pay_all(debts: &mut Vec<(Debt, Result<(), CommitError>)>) {
    debts.drain(..).for_each(|(debt, result)| debt.pay(result));
}

fn remove(entry: &Entry, version: Version, spindles: &[Arc<Spindle>], leftovers: &Leftovers) -> SnapEvent {
    let taken = entry.facts().take_manifest(version.load);
    let (manifest, newer) = taken.expect("what is removed is on the disk");
    let unlinked = remove_manifests(spindles, &manifest, newer.as_deref(), leftovers);
    if unlinked.is_err() {
        leave_behind(spindles, &manifest);
    }
    match unlinked.and_then(|()| remove_regions(spindles, &manifest, None)) {
        Ok(()) => {
            // What was damaged on the disk alone is served on.
            let is_served = entry.desk.served().is_some_and(|hot| hot.version() == version);
            if newer.is_none() && !is_served {
                entry.flushed(manifest.file_bytes());
            }
            SnapEvent::Removed { version }
        }
        Err(error) => {
            // Nobody waits for what was replaced. What a close has kept from going is nothing to look at: a start sees to it.
            if !matches!(error, DiskError::Cancelled { .. }) {
                tracing::warn!(key = %entry.key, why = reason(&error), "files of a slice could not be removed");
            }
            entry.facts().removal_error = Some(Arc::new(error));
            SnapEvent::RemoveFailed { version }
        }
    }
}

/// Takes a manifest off its disk; and if that was the newest, before it all that older loads have left: what counts stands
/// until nothing is hidden by it.
fn remove_manifests(
    spindles: &[Arc<Spindle>],
    manifest: &Manifest,
    newer: Option<&Manifest>,
    leftovers: &Leftovers,
) -> Result<(), DiskError> {
    let key = &manifest.key;
    // A manifest that stands there under the same name is the newer one: its commit has replaced ours.
    let is_own = |home: &SpindleUuid| newer.is_none_or(|newer| newer.spindles.first() != Some(home));
    let own = manifest.spindles.first().copied().filter(is_own);
    let mut homes = if newer.is_none() { leftovers.of(key) } else { Vec::new() };
    homes.retain(|other| Some(*other) != own);
    homes.extend(own);
    own.into_iter().for_each(|home| leftovers.add(key, home));
    for home in homes {
        remove_manifest(spindles, key, home, None)?;
        leftovers.remove(key, home);
    }
    Ok(())
}

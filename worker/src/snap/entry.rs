//! The cache's entry for one key: its decider's desk, and what the decider does not know of its versions.
//!
//! The decider decides with names of versions; here lie what they stand for on the disk: manifests, and sealed loads
//! that wait for their commit. Each is put here before the event that brings it, and taken by the command that ends it.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant, SystemTime};

use pelton_region_format::{Fingerprint, Key};
use tracing::field::Empty;
use tracing::info_span;

use crate::cache::close::UnderWay;
use crate::cache::told::{Outcome, Tell, Told, outcome};
use crate::cache::{Want, is_evicted};
use crate::events::{Event, EventHub, reason};
use crate::load::Counts;
use crate::load::planning::Planning;
use crate::load::running::{self, Offer, Running};
use crate::scan::cancel::CancelToken;
use crate::scan::patience::Patience;
use crate::scan::threads::ScanThreads;
use crate::snap::access;
use crate::snap::commit::Commit;
use crate::snap::desk::{Desk, Reply};
use crate::snap::holders::Usage;
use crate::snap::hot::HotSlice;
use crate::snap::manifest::Manifest;
use crate::snap::metrics::{LoadFacts, SliceMetrics};
use crate::snap::runner::Runner;
use crate::snap::state::{Answer, Command, Decider, Form, SnapEvent, Version, WaiterId};
use crate::snap::warm::WarmError;
use crate::spindle::engine::DiskError;
use crate::spindle::pace::Pace;
use crate::tender::{History, Reason};

/// One key's place in the cache.
///
/// In this order: what each lease writes, the desk, shares no cache line with what comes after the entry in memory. That
/// may be another one's key, which is read by each lookup.
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    runner: Arc<Runner>,
    pub(crate) desk: Desk<HotSlice>,
    facts: Mutex<Facts>,
}

/// What the decider's names stand for, and why things failed.
///
/// There are as many as there are snaps, and of most nothing is known but their files: so the rest is in a box, made
/// when there is something to put into it.
#[derive(Default)]
pub(crate) struct Facts {
    /// What is on the disk: one, or two while a commit replaces the first.
    manifests: Vec<Arc<Manifest>>,
    /// What happened to the slice.
    pub(crate) metrics: SliceMetrics,
    lately: Option<Box<Lately>>,
}

/// What is known of a snap that something is done with, or was done with since the cache was opened.
#[derive(Default)]
pub(crate) struct Lately {
    /// What is sealed, and waits for its commit to begin.
    pub(crate) cargo: BTreeMap<u64, Cargo>,
    /// Plans that loads may be begun by, by the numbers that these would have.
    pub(crate) offers: BTreeMap<u64, Offer>,
    /// The plan that a loader is being asked for.
    pub(crate) planning: Option<Arc<Planning>>,
    /// The load that a loader is at.
    pub(crate) running: Option<Running>,
    /// What the source said of the blobs of the last load that was sealed.
    pub(crate) counts: Counts,
    /// Why the last load failed, or was not planned, for people.
    pub(crate) load_error: Option<String>,
    /// Why the last warming failed.
    pub(crate) warm_error: Option<Arc<WarmError>>,
    /// Why it is being flushed, if the tender does it.
    pub(crate) flush_reason: Option<Reason>,
    /// Why the last removal failed.
    pub(crate) removal_error: Option<Arc<DiskError>>,
    /// The load whose files were verified when they were evicted, and stayed in the page cache: what is still
    /// there need not be verified again. Nobody but us reads the files, so what was dropped meanwhile is missing.
    pub(crate) verified_load: Option<u64>,
    /// How fast a warming may read that begins now: set by an operation that nobody waits for.
    pub(crate) pace: Option<Arc<Pace>>,
}

/// A sealed load on its way to the disk.
pub(crate) struct Cargo {
    pub(crate) commit: Commit,
    pub(crate) debt: Debt,
}

/// What whoever sealed a load is told when it is on the disk. As long as it lives the commit counts as under way.
pub(crate) struct Debt {
    under_way: UnderWay,
    tell: Tell,
    /// Whether somebody waits for that. Otherwise a failure is kept for the next sync.
    waits: bool,
    /// When the load was closed.
    pub(crate) since: Instant,
}

impl Facts {
    /// What is on the disk.
    pub(crate) fn manifests(&self) -> &[Arc<Manifest>] {
        &self.manifests
    }

    /// The manifest of a load that is on the disk.
    pub(crate) fn manifest(&self, load: u64) -> Option<Arc<Manifest>> {
        self.manifests.iter().find(|manifest| manifest.load_number == load).cloned()
    }

    /// A manifest that is on the disk now. Its metrics are those of a moment ago: the entry's go on.
    pub(crate) fn put_manifest(&mut self, mut manifest: Manifest) {
        manifest.metrics = None;
        self.manifests.reserve_exact(1);
        self.manifests.push(Arc::new(manifest));
    }

    /// Takes out the manifest of a load whose files go, and says which one is left.
    pub(crate) fn take_manifest(&mut self, load: u64) -> Option<(Arc<Manifest>, Option<Arc<Manifest>>)> {
        let at = self.manifests.iter().position(|manifest| manifest.load_number == load)?;
        let taken = self.manifests.remove(at);
        Some((taken, self.manifests.first().cloned()))
    }
}

impl Deref for Facts {
    type Target = Lately;

    fn deref(&self) -> &Lately {
        static NOTHING: LazyLock<Lately> = LazyLock::new(Lately::default);
        self.lately.as_deref().unwrap_or_else(|| &NOTHING)
    }
}

/// Whoever changes something makes the box.
impl DerefMut for Facts {
    fn deref_mut(&mut self) -> &mut Lately {
        self.lately.get_or_insert_default()
    }
}

impl Debt {
    /// Tells how the commit ended.
    pub(crate) fn pay(self, ended: Outcome) {
        let unheard = match ended {
            Err(error) if !self.waits => Some(error),
            ended => self.tell.tell(ended).err().and_then(Result::err),
        };
        if let Some(error) = unheard {
            self.under_way.failed(error);
        }
    }

    /// Tells that there will be no commit. That is no failure: nobody wants the slice any more. It stays under way
    /// until what is returned is dropped.
    pub(crate) fn cancel(self, ended: Outcome) -> UnderWay {
        let _ = self.tell.tell(ended);
        self.under_way
    }
}

/// Ends a wait for memory, when what it is for is answered otherwise.
struct Answered(CancelToken);

impl Wake for Answered {
    fn wake(self: Arc<Self>) {
        self.0.cancel();
    }
}

/// Wakes those who wait for answers, when one of them is cancelled.
impl Wake for Entry {
    fn wake(self: Arc<Self>) {
        self.desk.nudge();
    }
}

impl Entry {
    /// A key of which nothing is known, or whose manifest was found; and how it was used so far, if that is known.
    pub(crate) fn new(
        key: Key,
        found: Option<Manifest>,
        access: Option<access::Facts>,
        runner: Arc<Runner>,
    ) -> Entry {
        let mut facts = Facts::default();
        let now_ms = runner.now().as_millis() as u64;
        let desk = match found {
            None => Desk::new(Decider::cold(runner.limits), None, now_ms),
            Some(manifest) => {
                let version = manifest.version();
                let is_empty = manifest.regions.is_empty();
                let slice =
                    || HotSlice::new(key.clone(), version.fingerprint, version.load, Vec::new(), None);
                let memory = is_empty.then(|| (version, Arc::new(slice())));
                facts.metrics = manifest.metrics.as_deref().copied().unwrap_or_default();
                facts.put_manifest(manifest);
                Desk::new(Decider::found(runner.limits, version, is_empty), memory, now_ms)
            }
        };
        if let Some(access) = access {
            if access.pinned {
                let nothing = &mut |command| unreachable!("a pin begins nothing: {command:?}");
                desk.report(runner.now(), SnapEvent::Pin, nothing);
            }
            facts.metrics.restore_counts(access.evicts, access.flushes);
            // A clock that was ahead once does not keep it for years.
            if let Some(queried_at_ms) = access.queried_at_ms.map(|queried_at_ms| queried_at_ms.min(now_ms)) {
                let queries = u32::try_from(access.leases).unwrap_or(u32::MAX).max(1);
                let history = History::restored(queried_at_ms, access.gap_ms, queries);
                // It came before it was asked for, or was loaded since.
                let arrived_ms = facts.metrics.loaded_at_ms().unwrap_or(0).min(now_ms);
                desk.restore(history, arrived_ms);
            }
        }
        Entry { key, runner, desk, facts: Mutex::new(facts) }
    }

    /// What the decider does not know, for a look or a short change.
    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and waits for the answer as long as it is patient.
    pub(crate) fn ask(
        self: &Arc<Self>,
        ask: impl FnOnce(WaiterId) -> SnapEvent,
        patience: &Patience,
    ) -> Reply<HotSlice> {
        let asked = self.desk.ask_later(self.now(), ask, &mut self.beginning());
        asked.unwrap_or_else(|waiter| self.wait(waiter, patience))
    }

    /// The same, if the decider is as it is wished to be at that moment.
    pub(crate) fn ask_if(
        self: &Arc<Self>,
        condition: impl FnOnce(&Decider) -> bool,
        ask: impl FnOnce(WaiterId) -> SnapEvent,
        patience: &Patience,
    ) -> Option<Reply<HotSlice>> {
        let asked = self.desk.ask_later_if(self.now(), condition, ask, &mut self.beginning())?;
        Some(asked.unwrap_or_else(|waiter| self.wait(waiter, patience)))
    }

    /// Asks for a lease, and waits for it. Says whether it had to wait: then the slice has just come into memory.
    ///
    /// Whoever asks first for a slice that is to be warmed waits for the memory, too. At the end of its patience the
    /// others are told that there was none, and the next one asks for itself.
    pub(crate) fn lease(self: &Arc<Self>, want: Want, patience: &Patience) -> (Reply<HotSlice>, bool) {
        self.ask_for_lease(want, None, patience)
    }

    /// The same for somebody who knows a loader. If it is not there, and nobody loads it already, its load begins under
    /// that number.
    pub(crate) fn lease_or_load(
        self: &Arc<Self>,
        want: Want,
        offer: Offer,
        load: u64,
        patience: &Patience,
    ) -> (Reply<HotSlice>, bool) {
        let version = Version { load, fingerprint: offer.plan.fingerprint };
        self.facts().offers.insert(load, offer);
        let leased = self.ask_for_lease(want, Some(version), patience);
        // It has begun, or it can't any more: nobody waits with it.
        if self.desk.look(Decider::loading) != Some(version) {
            self.facts().offers.remove(&load);
        }
        leased
    }

    fn ask_for_lease(
        self: &Arc<Self>,
        want: Want,
        offer: Option<Version>,
        patience: &Patience,
    ) -> (Reply<HotSlice>, bool) {
        let ask = |waiter| SnapEvent::Lease { waiter, want, offer };
        let mut warming = None;
        let asked = self.desk.ask_later(self.now(), ask, &mut |command| match command {
            Command::StartWarming(version) => warming = Some(version),
            other => self.runner.begin(self, other),
        });
        match (asked, warming) {
            (Ok(reply), None) => (reply, false),
            (Ok(reply), Some(version)) => {
                self.runner.begin(self, Command::StartWarming(version));
                (reply, false)
            }
            (Err(waiter), None) => (self.wait(waiter, patience), true),
            (Err(waiter), Some(version)) => {
                let answered = CancelToken::new();
                self.desk.watch(waiter, Waker::from(Arc::new(Answered(answered.clone()))));
                self.runner.warm(self, version, &Patience { stop: Some(answered), ..patience.clone() });
                (self.wait(waiter, patience), true)
            }
        }
    }

    /// Waits for an answer as long as it is patient, and gives up then.
    fn wait(self: &Arc<Self>, waiter: WaiterId, patience: &Patience) -> Reply<HotSlice> {
        let _watches = patience.watch(&Waker::from(self.clone()));
        let waited = self.desk.wait(waiter, patience);
        waited.unwrap_or_else(|| {
            let reply = self.desk.give_up(self.now(), waiter, &mut self.beginning());
            self.stop_unwanted_load();
            reply
        })
    }

    /// Ends the load that a loader is at, if nobody waits for it and it is to end then. Somebody who comes at this moment
    /// begins another one.
    fn stop_unwanted_load(self: &Arc<Self>) {
        let running =
            self.facts().running.as_ref().filter(|load| load.ends_unwanted()).map(|load| load.version);
        if let Some(version) = running.filter(|version| !self.desk.look(|snap| snap.is_awaited(*version))) {
            running::stop(self, version);
        }
    }

    /// Ends what loaders are at: plans and loads.
    pub(crate) fn stop_loaders(self: &Arc<Self>) {
        let (planning, version) = {
            let facts = self.facts();
            (facts.planning.clone(), facts.running.as_ref().map(|running| running.version))
        };
        if let Some(planning) = planning {
            planning.cancel.cancel();
        }
        if let Some(version) = version {
            running::stop(self, version);
        }
    }

    /// Runs what ends a load on a thread of its own, since it may wait for a disk.
    pub(crate) fn end_load(&self, end: impl FnOnce() + Send + 'static) {
        self.runner.end_load(self.key.clone(), end);
    }

    /// Tells what has happened.
    pub(crate) fn report(self: &Arc<Self>, event: SnapEvent) {
        self.report_and(event, &mut self.beginning());
    }

    /// Tells what has happened. What follows from it is the caller's to begin.
    pub(crate) fn report_and(&self, event: SnapEvent, begin: &mut dyn FnMut(Command)) {
        self.desk.report(self.runner.now(), event, begin);
    }

    /// Tells that a version is in memory: sealed or warmed.
    pub(crate) fn report_memory(self: &Arc<Self>, event: SnapEvent, slice: Arc<HotSlice>) {
        let memory = (slice.version(), slice);
        self.desk.report_memory(self.runner.now(), event, memory, &mut self.beginning());
    }

    /// Tells that a version could not be brought into memory, or not all of it, and why.
    pub(crate) fn warming_failed(self: &Arc<Self>, version: Version, error: Arc<WarmError>) {
        let event = match *error {
            _ if error.is_damage() => SnapEvent::Damaged { version },
            WarmError::Memory { .. } => SnapEvent::WarmRefused { version },
            _ => SnapEvent::WarmFailed { version },
        };
        let meter = &self.events().meter;
        if error.is_damage() {
            meter.verification_failures.one();
        }
        // What was flushed or replaced meanwhile fails nobody. Nor does memory: whoever waits for it is told.
        let is_wanted = self.desk.look(|snap| snap.version() == Some(version));
        if is_wanted && !matches!(event, SnapEvent::WarmRefused { .. }) {
            meter.warmings.failed();
            let (key, why) = (|| self.key.clone(), || reason(&*error));
            self.events().tell_trouble(|| Event::WarmFailed { key: key(), why: why() });
        }
        self.facts().warm_error = Some(error);
        self.report(event);
    }

    /// Tells that the files of a version are damaged, which says nothing against what is whole in memory of our own: that is
    /// served on.
    pub(crate) fn files_damaged(self: &Arc<Self>, version: Version, error: Arc<WarmError>) {
        self.events().meter.verification_failures.one();
        self.facts().warm_error = Some(error);
        // What is evicted at this moment is not there any more: the decider knows.
        self.report(match self.has_whole_image(version) {
            true => SnapEvent::FilesDamaged { version },
            false => SnapEvent::Damaged { version },
        });
    }

    /// Whether a version is served from memory of our own, and all of it is there as it was loaded: what came from the
    /// disk without a look at its checksums may be as damaged as what lies there.
    pub(crate) fn has_whole_image(&self, version: Version) -> bool {
        let served = self.desk.served().filter(|hot| hot.version() == version);
        served.is_some_and(|hot| {
            hot.is_whole_image() && (hot.was_loaded() || self.runner.verifies_what_it_warms())
        })
    }

    /// Hands over a load that is sealed. What it is told comes when it is on the disk.
    pub(crate) fn seal(self: &Arc<Self>, commit: Commit, waits: bool) -> Told {
        let (tell, told) = outcome();
        let under_way = self.runner.commits.begin(self.key.clone());
        let debt = Debt { under_way, tell, waits, since: Instant::now() };
        let version = Version { load: commit.folders.load_number, fingerprint: commit.fingerprint };
        let hot = commit.hot.clone();
        self.facts().cargo.insert(version.load, Cargo { commit, debt });
        match hot {
            None => self.report(SnapEvent::Sealed { version, form: Form::Direct }),
            Some(hot) => {
                let form = if hot.regions.is_empty() { Form::Empty } else { Form::Image };
                self.report_memory(SnapEvent::Sealed { version, form }, hot);
            }
        }
        told
    }

    /// A load has all its blobs. Says what is known of the slice from here on.
    pub(crate) fn loaded(&self, load: LoadFacts, took: Duration) -> SliceMetrics {
        self.arrived();
        let mut facts = self.facts();
        facts.metrics.cold_loaded(load, now_ms(), took.as_millis() as u64);
        facts.metrics
    }

    /// The files are on their way into memory, and can be leased.
    pub(crate) fn warmed(&self, bytes: u64, took: Duration) {
        self.arrived();
        self.facts().metrics.warm_loaded(now_ms(), took.as_millis() as u64);
        self.events().meter.warmings.done(bytes, took);
        self.events().tell(|| Event::Warmed { key: self.key.clone(), bytes, took });
    }

    /// Lets the slice's memory go, if the decider is as it is wished to be. What is leaving goes with the last share,
    /// and one is returned.
    pub(crate) fn evict(
        self: &Arc<Self>,
        keeps_cache: bool,
        reason: Option<Reason>,
        condition: impl FnOnce(&Decider) -> bool,
    ) -> (Answer, Option<Arc<HotSlice>>) {
        let span = info_span!("evict", key = %self.key, bytes = Empty, reason = Empty, outcome = Empty);
        let _inside = span.enter();
        reason.iter().for_each(|reason| _ = span.record("reason", tracing::field::debug(reason)));
        let served = self.desk.served();
        let verified = served.as_deref().filter(|hot| keeps_cache && hot.is_verified_in_maps());
        // Before it has left: who brings it back at once looks for it.
        let verified_before = self.note_verified(verified.map(|hot| hot.load_number));
        let evict = |waiter| SnapEvent::Evict { waiter };
        let answer = match self.ask_if(condition, evict, &Patience::default()) {
            Some(Reply::Other(answer)) => answer,
            Some(Reply::Lease(..)) => unreachable!("an evict is answered with no lease"),
            None => Answer::Busy,
        };
        if answer == Answer::Evicted {
            // What is leaving is told when it goes.
            self.evicted(served.as_deref().map_or(0, HotSlice::bytes), reason);
        }
        let hot = served.filter(|_| is_evicted(answer));
        match &hot {
            Some(hot) => hot.drop_cache_too(!keeps_cache),
            None => _ = self.note_verified(verified_before),
        }
        span.record("bytes", hot.as_deref().map_or(0, HotSlice::bytes));
        span.record(
            "outcome",
            match answer {
                Answer::Evicted => "evicted",
                Answer::Leaving => "leaving", // Told when it goes.
                _ => "kept",
            },
        );
        (answer, hot)
    }

    /// Says what was noted before.
    fn note_verified(&self, load: Option<u64>) -> Option<u64> {
        let mut facts = self.facts();
        let before = facts.verified_load;
        if before != load {
            facts.verified_load = load; // Of most snaps there is nothing to note, and no box.
        }
        before
    }

    /// The slice has left memory.
    pub(crate) fn evicted(&self, bytes: u64, reason: Option<Reason>) {
        self.facts().metrics.evicted();
        self.events().meter.evictions.one(bytes);
        self.events().tell(|| Event::Evicted { key: self.key.clone(), bytes, reason });
    }

    /// The slice has left the disks.
    pub(crate) fn flushed(&self, bytes: u64) {
        let reason = {
            let mut facts = self.facts();
            facts.metrics.flushed();
            facts.flush_reason.and_then(|_| facts.flush_reason.take())
        };
        self.events().meter.flushes.one(bytes);
        self.events().tell(|| Event::Flushed { key: self.key.clone(), bytes, reason });
    }

    /// How much it is used.
    pub(crate) fn usage(&self) -> Usage {
        self.desk.usage()
    }

    /// What is to be known of its use after a restart.
    pub(crate) fn access(&self) -> access::Facts {
        let now = self.now();
        let (pinned, failure) = self.desk.look(|snap| (snap.is_pinned(), snap.failure(now)));
        let Usage { history, .. } = self.usage();
        let (evicts, flushes) = self.facts().metrics.counts();
        access::Facts {
            pinned,
            queried_at_ms: history.queried_at_ms(),
            gap_ms: history.gap_ms(),
            leases: history.queries().into(),
            evicts,
            flushes,
            failures: failure.map_or(0, |(in_a_row, _)| in_a_row),
            next_load_at_ms: failure.map(|(_, until)| until.as_millis() as u64),
        }
    }

    fn arrived(&self) {
        self.desk.arrived(self.now().as_millis() as u64);
    }

    /// For how long nobody has asked for it: since the last query, or else since it was loaded. Unknown of what an
    /// earlier process has loaded without saying when.
    pub(crate) fn idle(&self) -> Option<Duration> {
        let Usage { history, .. } = self.usage();
        let idle_ms = history.idle_ms(self.now().as_millis() as u64);
        let since_query = (history.queries() > 0).then_some(Duration::from_millis(idle_ms));
        let loaded_at_ms = self.facts().metrics.loaded_at_ms();
        let since_load = loaded_at_ms.map(|at_ms| Duration::from_millis(now_ms().saturating_sub(at_ms)));
        since_query.into_iter().chain(since_load).min()
    }

    /// Why the load or warming has failed that is not tried again until then, for people.
    pub(crate) fn why_failed(&self, until: Duration) -> String {
        match self.desk.look(|snap| snap.is_warming_failed_until(until)) {
            false => self.why_load_failed(),
            true => match &self.facts().warm_error {
                Some(error) => reason(&**error),
                None => "its files could not be read".to_owned(),
            },
        }
    }

    pub(crate) fn why_load_failed(&self) -> String {
        self.facts().load_error.clone().unwrap_or_else(|| "it was not told why".to_owned())
    }

    /// What the manifest names now, unless it is about to go.
    pub(crate) fn manifest(&self) -> Option<Arc<Manifest>> {
        let version = self.desk.look(Decider::on_disk)?;
        self.facts().manifest(version.load)
    }

    /// Whether it was erased: then the key is looked up anew.
    pub(crate) fn is_gone(&self) -> bool {
        self.desk.look(Decider::is_gone)
    }

    /// Whether it need not be remembered.
    pub(crate) fn is_blank(&self) -> bool {
        let now = self.now();
        self.desk.look(|snap| snap.is_blank(now))
    }

    /// A lease on what is in memory, if it can be had without waiting for anything. Whoever takes it asks for the
    /// time once, and writes nothing but what is the entry's.
    pub(crate) fn lease_at_once(&self, want: Want) -> Option<(u32, Version, Arc<HotSlice>)> {
        let now = Instant::now();
        self.desk.lease_at_once(want, now, self.ms_of(now))
    }

    /// One lease more, that was waited for. The number is for [`release`](Entry::release).
    pub(crate) fn hold(&self, fingerprint: Fingerprint) -> u32 {
        let now = Instant::now();
        self.desk.hold(fingerprint, now, self.ms_of(now))
    }

    /// A lease is given back.
    pub(crate) fn release(&self, number: u32, version: Option<Version>) {
        if let Some(slice) = self.desk.release(|| self.now(), number, version) {
            self.evicted(slice.bytes(), None);
        }
    }

    /// A lease is given back that the cache took for itself: no query, and not one of [`held`](Entry::held).
    pub(crate) fn give_back(&self, version: Version) {
        if let Some(slice) = self.desk.give_back(|| self.now(), version) {
            self.evicted(slice.bytes(), None);
        }
    }

    /// All leases, each with the fingerprint of what it holds, and its beginning.
    pub(crate) fn held(&self) -> Vec<(Fingerprint, Instant)> {
        self.desk.held()
    }

    /// Whether somebody has a lease.
    pub(crate) fn is_held(&self) -> bool {
        self.desk.held_count() > 0
    }

    /// The scan threads of the cache.
    pub(crate) fn scan_threads(&self) -> &Arc<ScanThreads> {
        &self.runner.scan_threads
    }

    fn ms_of(&self, moment: Instant) -> u64 {
        self.runner.moment(moment).as_millis() as u64
    }

    /// The moment for the decider.
    pub(crate) fn now(&self) -> Duration {
        self.runner.now()
    }

    /// Where what happens to it is told.
    pub(crate) fn events(&self) -> &EventHub {
        &self.runner.events
    }

    fn beginning(self: &Arc<Self>) -> impl FnMut(Command) + '_ {
        |command| self.runner.begin(self, command)
    }
}

/// The time of day, in milliseconds since 1970.
fn now_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::snap::state::Limits;

    #[derive(Default)]
    struct Bell(AtomicU32);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_watches_for_an_answer_is_woken_once_when_it_comes_or_is_there() {
        let now = Duration::ZERO;
        let desk = Desk::new(Decider::cold(Limits::default()), None, 0);
        let version = Version { load: 1, fingerprint: Fingerprint::from_bytes([1; 32]) };
        let nothing = &mut |command| assert_eq!(command, Command::StartCommit(version));
        let write = |waiter| SnapEvent::Write { waiter, version };
        assert!(matches!(desk.ask_later(now, write, nothing), Ok(Reply::Other(Answer::Write(_)))));
        let lease = |waiter| SnapEvent::Lease { waiter, want: Want::Latest, offer: None };
        let waiter = desk.ask_later(now, lease, nothing).unwrap_err();
        let bells = [(); 2].map(|()| Arc::new(Bell::default()));
        let rung = || bells.each_ref().map(|bell| bell.0.load(Ordering::Relaxed));
        desk.watch(waiter, Waker::from(bells[0].clone()));
        assert_eq!(rung(), [0, 0]);
        let sealed = SnapEvent::Sealed { version, form: Form::Image };
        desk.report_memory(now, sealed, (version, Arc::new("bytes")), nothing);
        desk.watch(waiter, Waker::from(bells[1].clone()));
        assert_eq!(rung(), [1, 1]);
        let past = Patience::until(Some(Instant::now()));
        assert!(matches!(desk.wait(waiter, &past), Some(Reply::Lease(_, memory)) if *memory == "bytes"));
    }
}

//! Decides what happens to one snap.
//!
//! A plain value: an event goes in with its time, commands come out. It has no clock, no lock, no thread, asks no
//! disk and holds no data: a [`Version`] stands for the bytes of one load, wherever they are. The caller runs the
//! commands in order and reports back with events. `docs/snaps.md` lists every state with every transition, and is
//! made from this file.
//!
//! ```text
//!   asks       lease, write, evict, flush, erase           answers: one for each ask
//!   reports    sealed, committed, warmed, released, ..      commands: load, warm, commit, remove, drop
//! ```
//!
//! Three things change apart, and never wait for each other: what is in memory (`hot`, `warming`), what is on the
//! disk (`named`, `job`), and the one load in flight (`load`). What users call the state is read off them.
//!
//! Whoever asks and can't be answered at once waits in `waiters`. After each event all of them are asked anew what
//! they would get now, first come first served. So nothing is ever decided on a state that was read before.

use std::time::Duration;

use pelton_region_format::Fingerprint;

use crate::cache::Want;

/// The bytes of one load, in memory or on the disk or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Version {
    /// Never used twice. Of two loads of a snap the later one has the higher number.
    pub(crate) load: u64,
    /// What decided its blobs.
    pub(crate) fingerprint: Fingerprint,
}

/// Tells one who waits from the others. Never used twice on a snap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WaiterId(pub(crate) u64);

/// How a load ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// Its bytes are in memory; they are yet to be committed.
    Image,
    /// Its bytes are in files only: it can be warmed when it is committed.
    Direct,
    /// It has no blob.
    Empty,
}

/// What somebody asks, or reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SnapEvent {
    /// Somebody wants to scan. `offer` is the load that may be begun for it, if it knows how to load.
    Lease { waiter: WaiterId, want: Want, offer: Option<Version> },
    /// Somebody wants to load by hand.
    Write { waiter: WaiterId, version: Version },
    /// A waiter's deadline is over, or it is not interested any more. Nobody else notices.
    GiveUp { waiter: WaiterId },
    /// The memory is to go.
    Evict { waiter: WaiterId },
    /// Memory and files are to go.
    Flush { waiter: WaiterId },
    /// The snap is to be forgotten.
    Erase { waiter: WaiterId },
    /// It is not to be evicted, flushed or erased.
    Pin,
    /// It may be again.
    Unpin,
    /// The cache closes: nothing new begins.
    Close,

    /// A load has all its blobs. Its memory, if it has any, and its files are the snap's from here on.
    Sealed { version: Version, form: Form },
    /// A loader did not say what it would load. Nothing was begun.
    PlanFailed,
    /// A load failed, and has removed what it wrote.
    LoadFailed { version: Version },
    /// Whoever loaded has given it up, and has removed what it wrote.
    LoadCancelled { version: Version },
    /// The manifest names this version now, and no other.
    Committed { version: Version },
    /// It could not be brought to the disk, and what was written is removed.
    CommitFailed { version: Version },
    /// It is in memory.
    Warmed { version: Version },
    /// There is no memory for it now, which is not its fault.
    WarmRefused { version: Version },
    /// The disk refused; maybe after it was warm enough to be leased, and was told so.
    WarmFailed { version: Version },
    /// It is not what was written. Found by warming or by a scan.
    Damaged { version: Version },
    /// Its files are not what was written. What is in memory of it did not come from what is damaged, and is whole.
    FilesDamaged { version: Version },
    /// Its files are gone.
    Removed { version: Version },
    /// Its files are still there, or some of them.
    RemoveFailed { version: Version },
    /// A lease was dropped.
    Released { version: Version },
}

/// What the caller is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Command {
    /// Tell who asked. Each ask gets exactly one.
    Answer(WaiterId, Answer),
    /// Run the loader. Ends with `Sealed`, `LoadFailed` or `LoadCancelled`.
    StartLoad(Version),
    /// Make the load end soon: what it brings will be dropped. It still reports its end.
    StopLoad(Version),
    /// Bring the files into memory. Ends with `Warmed`, `WarmRefused`, `WarmFailed` or `Damaged`.
    StartWarming(Version),
    /// Bring the bytes to the disk, the manifest last. Ends with `Committed` or `CommitFailed`.
    StartCommit(Version),
    /// Remove the manifest, if it still names this version, then the files. Ends with `Removed` or `RemoveFailed`.
    RemoveFiles(Version),
    /// Remove the files of a version that no commit was begun for. Nothing is reported.
    Discard(Version),
    /// Let the snap's share of the memory go. Nobody has a lease on it.
    DropMemory(Version),
}

/// What somebody who asked is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    /// Here it is, to be given back with `Released`.
    Lease(Version),
    /// The load is the asker's. It ends with `Sealed`, `LoadFailed` or `LoadCancelled`.
    Write(Version),
    /// The snap is gone, or the load number is no longer the highest: look the key up and ask anew.
    Again,
    /// The cache is closed.
    Closed,
    /// The asker gave up.
    Late,
    /// There is nothing, and the asker knows no loader.
    NotThere,
    /// Only this is there, and the asker knows no loader for what it wants.
    OtherFingerprint(Fingerprint),
    /// The load that the asker waited for has failed.
    LoadFailed,
    /// The warming that the asker waited for has failed.
    WarmFailed,
    /// There was no memory for the warming that the asker waited for.
    WarmRefused,
    /// What the asker waited for is damaged, and dropped.
    Damaged,
    /// It failed before, and is not tried again until then.
    Failed { until: Duration },
    /// A load is in flight, or the snap is in use.
    Busy,
    /// It is pinned.
    Pinned,
    /// It was in memory only.
    NotDurable,
    /// There was nothing to evict or flush.
    Nothing,
    /// The memory is gone.
    Evicted,
    /// The memory goes with the last lease.
    Leaving,
    /// Memory and files are gone; leases keep what they hold.
    Flushed,
    /// The memory is gone, the disk refused to remove the files.
    FlushFailed,
    /// The snap is forgotten.
    Erased,
}

/// What a snap is, in the words that users know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SnapState {
    /// Nothing is known but the name.
    Cold,
    /// A load is under way, and there is nothing to scan meanwhile.
    Loading,
    /// Only files.
    Warm,
    /// In memory, can be scanned.
    Hot,
    /// Loaded, and without any blob.
    NoData,
    /// Loading or warming has failed, and is not tried again yet.
    Failed,
    /// Erased.
    Gone,
}

/// The numbers behind the decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Limits {
    /// After a failure nothing is tried for so long. Each further failure in a row doubles it.
    pub(crate) heal_min: Duration,
    /// But it is never longer than this.
    pub(crate) heal_max: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        // A query that comes again and again must not hammer a source that is down; one that comes after a
        // minute must not find a snap that still refuses because of one lost connection.
        Limits { heal_min: Duration::from_secs(1), heal_max: Duration::from_secs(300) }
    }
}

/// Everything that decides what happens to one snap.
///
/// Invariants: at most one load, one warming and one disk job are under way. What is in `hot` is served; what is in
/// `old` is only leased. `hot` is `Saving::Done` exactly if `named` is the same version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Decider {
    limits: Limits,
    life: Life,
    pinned: bool,
    /// The one load in flight.
    load: Option<Load>,
    /// What is in memory and served.
    hot: Option<Hot>,
    /// What is in memory for its leases only: replaced, flushed or damaged.
    old: Vec<Old>,
    /// What is being brought into memory from its files.
    warming: Option<Version>,
    /// What the manifest names.
    named: Option<OnDisk>,
    /// What the disk does. Commits and removals of one snap change the same manifest: one at a time.
    job: Option<Job>,
    /// Of a load, or of its plan. A load that fails says nothing about the files that are there: each has its own patience.
    /// In boxes, since few snaps have failed.
    load_failure: Option<Box<Failure>>,
    /// Of a warming.
    warm_failure: Option<Box<Failure>>,
    /// Who could not be answered yet, first come first.
    waiters: Vec<Waiter>,
    /// The highest number of a load that was begun.
    load_last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Open,
    Closed,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Load {
    version: Version,
    /// All blobs are in files that no manifest names yet: the load ends with its commit.
    sealed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Hot {
    version: Version,
    empty: bool,
    leases: u32,
    /// It was evicted while it was leased: goes with the last lease, unless somebody takes a new one before.
    leaving: bool,
    /// The rest of it did not come into memory: nobody new gets it, and it goes with the last lease.
    broken: bool,
    saving: Saving,
}

/// How far what is in memory is on its way to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Saving {
    /// The disk is busy with another version of the snap.
    Waiting,
    Running,
    Done,
    /// It stays in memory, and goes with the process.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Old {
    version: Version,
    leases: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct OnDisk {
    version: Version,
    /// Flushed or damaged: nobody gets it any more, and it is removed as soon as the disk is free for it.
    doomed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Job {
    Commit(OnDisk),
    Remove(OnDisk),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Failure {
    what: Tried,
    in_a_row: u32,
    until: Duration,
}

/// A load that fails says nothing about the files that are there, and another fingerprint is another load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Tried {
    /// Nobody knows which load it would be.
    Planning,
    Load(Fingerprint),
    Warming(Version),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Waiter {
    id: WaiterId,
    ask: Ask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ask {
    Lease { want: Wanted, offer: Option<Version>, awaits: Awaits },
    Flush { any: bool },
}

/// [`Want`], as a value that can be told from another.
type Wanted = Option<Fingerprint>;

/// What a waiter waits for: whoever ends that tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Awaits {
    Load(Version),
    Warming(Version),
    /// The end of a load that brings something else.
    Turn,
}

impl Decider {
    /// A snap of which nothing is known but the name.
    pub(crate) fn cold(limits: Limits) -> Decider {
        Decider {
            limits,
            life: Life::Open,
            pinned: false,
            load: None,
            hot: None,
            old: Vec::new(),
            warming: None,
            named: None,
            job: None,
            load_failure: None,
            warm_failure: None,
            waiters: Vec::new(),
            load_last: 0,
        }
    }

    /// A snap whose manifest was found.
    pub(crate) fn found(limits: Limits, version: Version, empty: bool) -> Decider {
        // Without any blob there is nothing to bring into memory.
        let hot = empty.then_some(Hot {
            version,
            empty,
            leases: 0,
            leaving: false,
            broken: false,
            saving: Saving::Done,
        });
        let named = Some(OnDisk { version, doomed: false });
        Decider { hot, named, load_last: version.load, ..Decider::cold(limits) }
    }

    /// Takes in an event. What is to be done is put behind what `commands` holds already.
    ///
    /// Times count from any fixed moment, such as the opening of the cache.
    pub(crate) fn on(&mut self, now: Duration, event: SnapEvent, commands: &mut Vec<Command>) {
        match event {
            SnapEvent::Lease { waiter, want, offer } => self.lease(now, waiter, want, offer, commands),
            SnapEvent::Write { waiter, version } => {
                commands.push(Command::Answer(waiter, self.write(version)))
            }
            SnapEvent::GiveUp { waiter } => self.give_up(waiter, commands),
            SnapEvent::Evict { waiter } => {
                let answer = self.evict(commands);
                commands.push(Command::Answer(waiter, answer));
            }
            SnapEvent::Flush { waiter } => self.flush(waiter, commands),
            SnapEvent::Erase { waiter } => commands.push(Command::Answer(waiter, self.erase())),
            SnapEvent::Pin => self.pin(),
            SnapEvent::Unpin => self.pinned = false,
            SnapEvent::Close => self.close(commands),
            SnapEvent::Sealed { version, form } => self.sealed(version, form, commands),
            SnapEvent::PlanFailed => self.fail(now, Tried::Planning),
            SnapEvent::LoadFailed { version } => self.load_failed(now, version, commands),
            SnapEvent::LoadCancelled { version } => self.load_cancelled(version, commands),
            SnapEvent::Committed { version } => self.committed(version, commands),
            SnapEvent::CommitFailed { version } => self.commit_failed(now, version, commands),
            SnapEvent::Warmed { version } => self.warmed(version, commands),
            SnapEvent::WarmRefused { version } => self.warm_refused(version, commands),
            SnapEvent::WarmFailed { version } => self.warm_failed(now, version, commands),
            SnapEvent::Damaged { version } => self.damaged(version, commands),
            SnapEvent::FilesDamaged { version } => self.files_damaged(version, commands),
            SnapEvent::Removed { version } => self.removed(version),
            SnapEvent::RemoveFailed { version } => self.remove_failed(version, commands),
            SnapEvent::Released { version } => self.released(version, commands),
        }
        self.use_disk(commands);
        self.serve(now, commands);
        self.check();
    }

    /// A lease, if it can be had of what is in memory, with nothing following from it. It does what the event does
    /// then, at a fraction of the cost: this is the way that queries go again and again.
    pub(crate) fn lease_at_once(&mut self, want: Want) -> Option<Version> {
        if self.life != Life::Open {
            return None;
        }
        let want = wanted(want);
        let hot = self.hot.as_mut().filter(|hot| !hot.broken && does(want, hot.version))?;
        hot.leaving = false;
        hot.leases += 1;
        Some(hot.version)
    }

    /// Takes a lease back, if nothing follows from that, and says whether it did. It does what the event does then.
    pub(crate) fn release_at_once(&mut self, version: Version) -> bool {
        let Some(hot) = self.hot.as_mut().filter(|hot| hot.version == version) else { return false };
        let is_last = hot.leases <= 1;
        if is_last && (hot.leaving || hot.broken || self.life != Life::Open) {
            return false;
        }
        hot.leases = hot.leases.checked_sub(1).expect("who releases has a lease");
        true
    }

    /// What it is for users. A failure heals with time.
    pub(crate) fn state(&self, now: Duration) -> SnapState {
        match &self.hot {
            _ if self.life == Life::Gone => SnapState::Gone,
            Some(hot) if hot.empty => SnapState::NoData,
            Some(hot) if hot.broken => SnapState::Failed,
            Some(_) => SnapState::Hot,
            None => match self.on_disk() {
                _ if self.failed_until(now).is_some() => SnapState::Failed,
                Some(_) => SnapState::Warm,
                None if self.load.is_some() => SnapState::Loading,
                None => SnapState::Cold,
            },
        }
    }

    /// The version that users see: the one in memory, or else the one on the disk.
    pub(crate) fn version(&self) -> Option<Version> {
        self.hot.as_ref().map(|hot| hot.version).or(self.on_disk())
    }

    /// What is served from memory.
    pub(crate) fn served(&self) -> Option<Version> {
        self.hot.as_ref().map(|hot| hot.version)
    }

    /// Whether it was erased.
    pub(crate) fn is_gone(&self) -> bool {
        self.life == Life::Gone
    }

    /// Whether nothing is known of it but the name, nothing is under way, and nobody waits: it can be forgotten.
    pub(crate) fn is_blank(&self, now: Duration) -> bool {
        self.is_unused() && !self.pinned && self.failure(now).is_none()
    }

    /// Whether that version was evicted, and goes when its one lease is dropped.
    pub(crate) fn goes_with_last_lease(&self, version: Version) -> bool {
        self.hot.as_ref().is_some_and(|hot| hot.version == version && hot.leaving && hot.leases == 1)
    }

    /// Whether that version would survive the process.
    pub(crate) fn is_durable(&self) -> bool {
        self.version().is_some() && self.version() == self.on_disk()
    }

    /// Whether its commit has failed, so that it goes with the process.
    pub(crate) fn is_unsaved(&self) -> bool {
        self.hot.as_ref().is_some_and(|hot| hot.saving == Saving::Failed)
    }

    /// Whether nothing is under way with it and nobody has hold of it or waits for it, so that the cache itself may let
    /// something of it go. A failure has to heal first. What is in memory alone would be lost, so it has to stay.
    pub(crate) fn may_go(&self, now: Duration) -> bool {
        let is_failed = self.failure(now).is_some();
        let is_used = self.load.is_some() || self.warming.is_some() || !self.waiters.is_empty();
        let is_lost = self.served().is_some() && !self.is_durable();
        let is_open = self.life == Life::Open;
        is_open
            && !is_used
            && !is_failed
            && !is_lost
            && !self.pinned
            && !self.uses_disk()
            && self.leases() == 0
    }

    /// Whether a commit or a removal is under way, or waits for its turn.
    pub(crate) fn uses_disk(&self) -> bool {
        let waits = self.hot.as_ref().is_some_and(|hot| hot.saving == Saving::Waiting);
        self.job.is_some() || waits || self.load.is_some_and(|load| load.sealed)
    }

    /// Until when a failed snap stays so.
    pub(crate) fn failed_until(&self, now: Duration) -> Option<Duration> {
        match (&self.hot, self.on_disk(), self.load) {
            (Some(_), ..) => None,
            (None, Some(version), _) => self.failed(now, |tried| tried == Tried::Warming(version)),
            (None, None, Some(_)) => None,
            (None, None, None) => self.failed(now, |tried| !matches!(tried, Tried::Warming(_))),
        }
    }

    /// Until when no loader is asked what it would load.
    pub(crate) fn plan_failed_until(&self, now: Duration) -> Option<Duration> {
        self.failed(now, |tried| tried == Tried::Planning)
    }

    /// How often in a row it has failed, and until when it is not tried again. Forgotten when it works. Of files that are
    /// there their warming counts first.
    pub(crate) fn failure(&self, now: Duration) -> Option<(u32, Duration)> {
        let failure = self.failures().find(|failure| now < failure.until)?;
        Some((failure.in_a_row, failure.until))
    }

    /// Whether it is a warming that is not tried again until then.
    pub(crate) fn is_warming_failed_until(&self, until: Duration) -> bool {
        self.warm_failure.as_ref().is_some_and(|failure| failure.until == until)
    }

    /// The load in flight.
    pub(crate) fn loading(&self) -> Option<Version> {
        self.load.map(|load| load.version)
    }

    /// Whether somebody waits for that load.
    pub(crate) fn is_awaited(&self, version: Version) -> bool {
        let awaits = Awaits::Load(version);
        self.waiters.iter().any(|waiter| matches!(waiter.ask, Ask::Lease { awaits: it, .. } if it == awaits))
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// How many leases there are, those on replaced versions included.
    pub(crate) fn leases(&self) -> u32 {
        let hot = self.hot.as_ref().map_or(0, |hot| hot.leases);
        self.old.iter().map(|old| old.leases).sum::<u32>() + hot
    }
}

/// What is asked.
impl Decider {
    fn lease(
        &mut self,
        now: Duration,
        id: WaiterId,
        want: Want,
        offer: Option<Version>,
        commands: &mut Vec<Command>,
    ) {
        let want = wanted(want);
        let offer = offer.filter(|offer| does(want, *offer));
        match self.decide(now, want, offer, commands) {
            Ok(answer) => commands.push(Command::Answer(id, answer)),
            Err(awaits) => self.waiters.push(Waiter { id, ask: Ask::Lease { want, offer, awaits } }),
        }
    }

    /// What somebody who wants a lease gets now, or what it must wait for; begins that if nobody has.
    fn decide(
        &mut self,
        now: Duration,
        want: Wanted,
        offer: Option<Version>,
        commands: &mut Vec<Command>,
    ) -> Result<Answer, Awaits> {
        match self.life {
            Life::Open => {}
            Life::Closed => return Ok(Answer::Closed),
            Life::Gone => return Ok(Answer::Again),
        }
        let known = self.version();
        if let Some(version) = known.filter(|version| does(want, *version)) {
            if let Some(hot) = &mut self.hot {
                if hot.broken {
                    return Ok(Answer::WarmFailed);
                }
                hot.leaving = false;
                hot.leases += 1;
                return Ok(Answer::Lease(version));
            }
            if self.warming.is_none() {
                if let Some(until) = self.failed(now, |tried| tried == Tried::Warming(version)) {
                    return Ok(Answer::Failed { until });
                }
                self.warming = Some(version);
                commands.push(Command::StartWarming(version));
            }
            return Err(Awaits::Warming(version));
        }
        // Only a load can bring it.
        if let Some(load) = self.load.filter(|load| does(want, load.version)) {
            return Err(Awaits::Load(load.version));
        }
        let Some(offer) = offer else {
            let failed = self.failed(now, |tried| match tried {
                Tried::Planning => true,
                Tried::Load(fingerprint) => want.is_none_or(|want| want == fingerprint),
                Tried::Warming(_) => false,
            });
            return Ok(match (known, failed) {
                (Some(other), _) => Answer::OtherFingerprint(other.fingerprint),
                (None, Some(until)) => Answer::Failed { until },
                (None, None) => Answer::NotThere,
            });
        };
        if let Some(until) = self.failed(now, |tried| tried == Tried::Load(offer.fingerprint)) {
            return Ok(Answer::Failed { until });
        }
        if self.load.is_some() {
            return Err(Awaits::Turn);
        }
        if offer.load <= self.load_last {
            return Ok(Answer::Again);
        }
        self.begin_load(offer);
        commands.push(Command::StartLoad(offer));
        Err(Awaits::Load(offer))
    }

    fn write(&mut self, version: Version) -> Answer {
        match self.life {
            Life::Closed => Answer::Closed,
            Life::Gone => Answer::Again,
            Life::Open if self.load.is_some() => Answer::Busy,
            Life::Open if version.load <= self.load_last => Answer::Again,
            // Also after a failure: who loads by hand has decided to try.
            Life::Open => {
                self.begin_load(version);
                Answer::Write(version)
            }
        }
    }

    fn give_up(&mut self, waiter: WaiterId, commands: &mut Vec<Command>) {
        let before = self.waiters.len();
        self.waiters.retain(|waiting| waiting.id != waiter);
        if self.waiters.len() < before {
            commands.push(Command::Answer(waiter, Answer::Late));
        }
    }

    fn evict(&mut self, commands: &mut Vec<Command>) -> Answer {
        match &mut self.hot {
            _ if self.life != Life::Open => self.refusal(),
            _ if self.pinned => Answer::Pinned,
            None => Answer::Nothing,
            Some(hot) if hot.empty => Answer::Nothing,
            Some(hot) if hot.saving != Saving::Done => Answer::NotDurable,
            Some(hot) if hot.leases > 0 => {
                hot.leaving = true;
                Answer::Leaving
            }
            Some(_) => {
                self.serve_from_memory(None, commands);
                Answer::Evicted
            }
        }
    }

    /// Takes effect at once for all who ask from here on; a load in flight goes on.
    fn flush(&mut self, id: WaiterId, commands: &mut Vec<Command>) {
        if self.life != Life::Open || self.pinned {
            let answer = if self.life == Life::Open { Answer::Pinned } else { self.refusal() };
            commands.push(Command::Answer(id, answer));
            return;
        }
        let any = self.version().is_some();
        (self.load_failure, self.warm_failure) = (None, None);
        self.serve_from_memory(None, commands);
        self.warming = None;
        self.doom(|_| true);
        self.waiters.push(Waiter { id, ask: Ask::Flush { any } });
    }

    fn erase(&mut self) -> Answer {
        match self.life {
            Life::Closed | Life::Gone => self.refusal(),
            Life::Open if self.pinned => Answer::Pinned,
            Life::Open if !self.is_unused() => Answer::Busy,
            Life::Open => {
                self.life = Life::Gone;
                Answer::Erased
            }
        }
    }

    fn pin(&mut self) {
        self.pinned = true;
        if let Some(hot) = &mut self.hot {
            hot.leaving = false;
        }
    }

    /// What is sealed is still brought to the disk; what is not will be dropped.
    fn close(&mut self, commands: &mut Vec<Command>) {
        if self.life != Life::Open {
            return;
        }
        self.life = Life::Closed;
        self.warming = None;
        if let Some(load) = self.load.filter(|load| !load.sealed) {
            commands.push(Command::StopLoad(load.version));
        }
    }

    /// The answer of a snap that is not open.
    fn refusal(&self) -> Answer {
        if self.life == Life::Gone { Answer::Again } else { Answer::Closed }
    }
}

/// What is reported.
impl Decider {
    fn sealed(&mut self, version: Version, form: Form, commands: &mut Vec<Command>) {
        assert_eq!(self.load, Some(Load { version, sealed: false }), "who seals was told to load");
        if self.life != Life::Open {
            self.load = None;
            commands.push(Command::Discard(version));
            if form != Form::Direct {
                commands.push(Command::DropMemory(version));
            }
            return;
        }
        if form == Form::Direct {
            self.load = Some(Load { version, sealed: true });
            return;
        }
        self.load = None;
        (self.load_failure, self.warm_failure) = (None, None);
        let empty = form == Form::Empty;
        let hot = Hot { version, empty, leases: 0, leaving: false, broken: false, saving: Saving::Waiting };
        self.serve_from_memory(Some(hot), commands);
    }

    fn load_failed(&mut self, now: Duration, version: Version, commands: &mut Vec<Command>) {
        assert!(self.load.is_some_and(|load| load.version == version), "who fails was told to load");
        self.load = None;
        self.fail(now, Tried::Load(version.fingerprint));
        self.tell(Awaits::Load(version), Answer::LoadFailed, commands);
    }

    /// Nothing is known against the slice. Who waited may have a load of its own to offer.
    fn load_cancelled(&mut self, version: Version, commands: &mut Vec<Command>) {
        assert!(self.load.is_some_and(|load| load.version == version), "who cancels was told to load");
        self.load = None;
        // But not the load that has just ended: its number is used up.
        self.answer_where(commands, |ask| match ask {
            Ask::Lease { offer: Some(offer), .. } if *offer == version => Some(Answer::LoadFailed),
            _ => None,
        });
    }

    fn committed(&mut self, version: Version, commands: &mut Vec<Command>) {
        let done = self.end_commit(version);
        let replaced = self.named.replace(done);
        if self.load.is_some_and(|load| load.version == version) {
            self.load = None;
            (self.load_failure, self.warm_failure) = (None, None);
            self.warming = None; // Of what is replaced.
            self.serve_from_memory(None, commands);
        }
        match &mut self.hot {
            Some(hot) if hot.version == version => hot.saving = Saving::Done,
            _ => {}
        }
        // At once: nothing but the new manifest's commit was waited for, and who has a lease keeps what it holds.
        if let Some(replaced) = replaced {
            commands.push(Command::RemoveFiles(replaced.version));
            self.job = Some(Job::Remove(replaced));
        }
    }

    fn commit_failed(&mut self, now: Duration, version: Version, commands: &mut Vec<Command>) {
        self.end_commit(version);
        if self.load.is_some_and(|load| load.version == version) {
            return self.load_failed(now, version, commands);
        }
        match &mut self.hot {
            Some(hot) if hot.version == version => hot.saving = Saving::Failed,
            _ => {}
        }
    }

    fn end_commit(&mut self, version: Version) -> OnDisk {
        match self.job.take() {
            Some(Job::Commit(on_disk)) if on_disk.version == version => on_disk,
            other => panic!("a commit of {version:?} was reported, under way is {other:?}"),
        }
    }

    fn warmed(&mut self, version: Version, commands: &mut Vec<Command>) {
        if self.warming != Some(version) {
            // It was replaced, flushed or closed meanwhile.
            commands.push(Command::DropMemory(version));
            return;
        }
        self.warm_failure = None;
        let hot =
            Hot { version, empty: false, leases: 0, leaving: false, broken: false, saving: Saving::Done };
        self.serve_from_memory(Some(hot), commands);
    }

    fn warm_refused(&mut self, version: Version, commands: &mut Vec<Command>) {
        if self.warming == Some(version) {
            self.warming = None;
            self.tell(Awaits::Warming(version), Answer::WarmRefused, commands);
        }
    }

    fn warm_failed(&mut self, now: Duration, version: Version, commands: &mut Vec<Command>) {
        if self.warming == Some(version) {
            self.warming = None;
            self.fail(now, Tried::Warming(version));
            self.tell(Awaits::Warming(version), Answer::WarmFailed, commands);
            return;
        }
        let is_it = |hot: &&mut Hot| hot.version == version && hot.saving == Saving::Done && !hot.empty;
        let Some(hot) = self.hot.as_mut().filter(is_it) else { return };
        hot.broken = hot.leases > 0;
        if !hot.broken {
            self.serve_from_memory(None, commands);
        }
        self.fail(now, Tried::Warming(version));
    }

    /// Nobody gets it any more, neither from memory nor from its files. Who can load it anew may.
    fn damaged(&mut self, version: Version, commands: &mut Vec<Command>) {
        if self.version() != Some(version) {
            self.doom(|on_disk| on_disk == version);
            return;
        }
        // Nor does anybody get what it has replaced: a snap never goes back to an older load.
        self.serve_from_memory(None, commands);
        self.doom(|_| true);
        if self.warming.take().is_some() {
            self.answer_where(commands, |ask| match ask {
                Ask::Lease { offer: None, awaits, .. } if *awaits == Awaits::Warming(version) => {
                    Some(Answer::Damaged)
                }
                _ => None,
            });
        }
    }

    /// What is in memory is served on, and is all there is of it. Where that has gone meanwhile, nobody gets it any more.
    fn files_damaged(&mut self, version: Version, commands: &mut Vec<Command>) {
        let is_whole = |hot: &&mut Hot| hot.version == version && !hot.empty && !hot.broken;
        let Some(hot) = self.hot.as_mut().filter(is_whole) else { return self.damaged(version, commands) };
        // Otherwise it was told before, and its files wait for the disk to remove them.
        if hot.saving == Saving::Done {
            hot.saving = Saving::Failed;
            hot.leaving = false;
            self.doom(|on_disk| on_disk == version);
        }
    }

    fn removed(&mut self, version: Version) {
        self.end_removal(version);
    }

    /// What is left is found by the next start: as a slice if its manifest stands, else as garbage.
    fn remove_failed(&mut self, version: Version, commands: &mut Vec<Command>) {
        if self.end_removal(version).doomed {
            self.answer_where(commands, |ask| {
                matches!(ask, Ask::Flush { .. }).then_some(Answer::FlushFailed)
            });
        }
    }

    fn end_removal(&mut self, version: Version) -> OnDisk {
        match self.job.take() {
            Some(Job::Remove(on_disk)) if on_disk.version == version => on_disk,
            other => panic!("a removal of {version:?} was reported, under way is {other:?}"),
        }
    }

    fn released(&mut self, version: Version, commands: &mut Vec<Command>) {
        if let Some(hot) = self.hot.as_mut().filter(|hot| hot.version == version) {
            hot.leases = hot.leases.checked_sub(1).expect("who releases has a lease");
            if hot.leases == 0 && (hot.leaving || hot.broken) {
                self.serve_from_memory(None, commands);
            }
            return;
        }
        let index = self.old.iter().position(|old| old.version == version).expect("who releases has a lease");
        self.old[index].leases -= 1;
        if self.old[index].leases == 0 {
            self.old.swap_remove(index);
            commands.push(Command::DropMemory(version));
        }
    }
}

/// What follows from it.
impl Decider {
    fn begin_load(&mut self, version: Version) {
        self.load_last = version.load;
        self.load = Some(Load { version, sealed: false });
    }

    /// Serves this from here on. What was served before goes with its last lease.
    fn serve_from_memory(&mut self, hot: Option<Hot>, commands: &mut Vec<Command>) {
        if hot.is_some() {
            self.warming = None; // It would bring what is not served any more.
        }
        let Some(before) = std::mem::replace(&mut self.hot, hot) else { return };
        if before.saving == Saving::Waiting {
            commands.push(Command::Discard(before.version));
        }
        match before.leases {
            0 => commands.push(Command::DropMemory(before.version)),
            leases => self.old.push(Old { version: before.version, leases }),
        }
    }

    /// What is on the disk, or is being brought there, and is one of these, is to be removed.
    fn doom(&mut self, is_doomed: impl Fn(Version) -> bool) {
        let load = self.load.map(|load| load.version);
        let committing = match &mut self.job {
            // A load that ends with its commit goes on: it is not there yet.
            Some(Job::Commit(on_disk)) if Some(on_disk.version) != load => Some(on_disk),
            _ => None,
        };
        for on_disk in self.named.iter_mut().chain(committing) {
            on_disk.doomed |= is_doomed(on_disk.version);
        }
    }

    /// Gives the disk its next job, if it has none: first removals, then commits in the order of their loads.
    fn use_disk(&mut self, commands: &mut Vec<Command>) {
        if self.life == Life::Closed {
            self.let_go(commands);
        }
        if self.job.is_some() {
            return;
        }
        if let Some(doomed) = self.named.take_if(|named| named.doomed) {
            commands.push(Command::RemoveFiles(doomed.version));
            self.job = Some(Job::Remove(doomed));
            return;
        }
        let version = match (&mut self.hot, self.load) {
            (Some(hot), _) if hot.saving == Saving::Waiting => {
                hot.saving = Saving::Running;
                hot.version
            }
            (_, Some(load)) if load.sealed => load.version,
            _ => return,
        };
        commands.push(Command::StartCommit(version));
        self.job = Some(Job::Commit(OnDisk { version, doomed: false }));
    }

    /// After the cache was closed nobody comes any more: memory goes when it is neither leased nor being saved.
    fn let_go(&mut self, commands: &mut Vec<Command>) {
        let ends = |hot: &Hot| hot.leases == 0 && matches!(hot.saving, Saving::Done | Saving::Failed);
        if self.hot.as_ref().is_some_and(ends) {
            self.serve_from_memory(None, commands);
        }
    }

    /// Asks all who wait anew, in the order in which they came.
    fn serve(&mut self, now: Duration, commands: &mut Vec<Command>) {
        if self.waiters.is_empty() {
            return;
        }
        let mut waiters = std::mem::take(&mut self.waiters);
        waiters.retain_mut(|waiter| {
            let answer = match &mut waiter.ask {
                Ask::Flush { .. } if self.removes() && self.life == Life::Open => return true,
                Ask::Flush { .. } if self.life == Life::Closed => Answer::Closed,
                Ask::Flush { any: true } => Answer::Flushed,
                Ask::Flush { any: false } => Answer::Nothing,
                Ask::Lease { want, offer, awaits } => match self.decide(now, *want, *offer, commands) {
                    Ok(answer) => answer,
                    Err(other) => {
                        *awaits = other;
                        return true;
                    }
                },
            };
            commands.push(Command::Answer(waiter.id, answer));
            false
        });
        self.waiters = waiters;
    }

    /// Tells all who wait for this.
    fn tell(&mut self, what: Awaits, answer: Answer, commands: &mut Vec<Command>) {
        self.answer_where(commands, |ask| match ask {
            Ask::Lease { awaits, .. } if *awaits == what => Some(answer),
            _ => None,
        });
    }

    fn answer_where(&mut self, commands: &mut Vec<Command>, answer: impl Fn(&Ask) -> Option<Answer>) {
        self.waiters.retain(|waiter| match answer(&waiter.ask) {
            Some(answer) => {
                commands.push(Command::Answer(waiter.id, answer));
                false
            }
            None => true,
        });
    }

    /// Whether something that was flushed is still there.
    fn removes(&self) -> bool {
        let named = self.named.is_some_and(|named| named.doomed);
        named || matches!(self.job, Some(Job::Remove(_) | Job::Commit(OnDisk { doomed: true, .. })))
    }

    /// What the manifest names, unless it is about to go.
    pub(crate) fn on_disk(&self) -> Option<Version> {
        self.named.filter(|named| !named.doomed).map(|named| named.version)
    }

    fn is_unused(&self) -> bool {
        let empty = self.version().is_none() && self.named.is_none() && self.job.is_none();
        empty && self.load.is_none() && self.old.is_empty() && self.waiters.is_empty()
    }

    fn fail(&mut self, now: Duration, what: Tried) {
        let slot = match what {
            Tried::Warming(_) => &mut self.warm_failure,
            Tried::Planning | Tried::Load(_) => &mut self.load_failure,
        };
        let before = slot.as_ref().filter(|failure| failure.what == what);
        let in_a_row = before.map_or(0, |failure| failure.in_a_row).saturating_add(1);
        let doubled = self.limits.heal_min.saturating_mul(1 << (in_a_row - 1).min(20));
        let until = now.saturating_add(doubled.min(self.limits.heal_max));
        *slot = Some(Box::new(Failure { what, in_a_row, until }));
    }

    /// Until when one of these is not tried again.
    fn failed(&self, now: Duration, is_one: impl Fn(Tried) -> bool) -> Option<Duration> {
        let failure = self.failures().find(|failure| now < failure.until && is_one(failure.what));
        failure.map(|failure| failure.until)
    }

    fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.warm_failure.iter().chain(&self.load_failure).map(|failure| &**failure)
    }

    fn check(&self) {
        let named = self.on_disk();
        if let Some(hot) = &self.hot {
            debug_assert_eq!(hot.saving == Saving::Done, named == Some(hot.version), "{self:?}");
            debug_assert!(self.warming.is_none(), "{self:?}");
            debug_assert!(!(hot.leaving || hot.broken) || hot.leases > 0, "{self:?}");
        }
        debug_assert!(self.warming.is_none() || self.warming == named, "{self:?}");
        debug_assert!(self.old.iter().all(|old| old.leases > 0), "{self:?}");
        debug_assert!(self.life == Life::Open || self.waiters.is_empty(), "{self:?}");
    }
}

fn wanted(want: Want) -> Wanted {
    match want {
        Want::Latest => None,
        Want::Fingerprint(fingerprint) => Some(fingerprint),
    }
}

/// Whether a version is what somebody wants.
fn does(want: Wanted, version: Version) -> bool {
    want.is_none_or(|fingerprint| fingerprint == version.fingerprint)
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;

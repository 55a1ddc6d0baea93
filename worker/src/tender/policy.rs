//! The tender's decider: which snaps are evicted, flushed and erased, and why.
//!
//! Three steps, each on what the ones before have left: first what was idle for too long; then spindles above
//! their high mark, until below the low one; then memory, in the same way. What must stay true:
//!
//! - A snap that is leased, pinned, busy, or in memory but not yet durable is never named.
//! - No snap is named twice.
//! - Where nothing is above its mark, nothing is named for that reason.

#[cfg(test)]
mod tests;

use super::order::{History, rank};
use crate::units::Exact;

/// While tasks wait for memory, each decision gives back this part of it.
const STALLED_PART: u64 = 8;
/// Which share of time, in percent, is long enough for that. Below it, reclaiming by the kernel is normal.
const STALLED_PERCENT_MIN: f32 = 10.0;

/// Decides; touches nothing. The caller runs the commands in order.
///
/// Budgets are an argument, so a change of them holds from the next decision on.
#[must_use]
pub fn decide(snapshot: &Snapshot, budgets: &Budgets, now_ms: u64) -> Decision {
    let mut draft = Draft::new(snapshot, budgets, now_ms);
    draft.end_what_is_idle();
    let mut spindles_short = vec![0; budgets.spindles.len()];
    for (spindle, short) in spindles_short.iter_mut().enumerate() {
        let Level { used, marks } = draft.spindles[spindle];
        if used > marks.high {
            *short = draft.flush_from(spindle, used - marks.low, Reason::SpindleFull { spindle });
        }
    }
    let mut memory_short = 0;
    let Level { used, marks } = draft.memory;
    let over = if used > marks.high { used - marks.low } else { 0 };
    let given_back = if budgets.is_stalled() { used / STALLED_PART } else { 0 };
    if over >= given_back && over > 0 {
        memory_short = draft.evict(over, Reason::MemoryFull);
    } else if given_back > 0 {
        // Whether all of it can be had is no matter: the next decision gives back again.
        draft.evict(given_back, Reason::Pressure);
    }
    Decision { commands: draft.commands, memory_short, spindles_short }
}

/// Says what must go so that a load fits, all of it or nothing. Nothing must go if it fits already.
///
/// # Errors
/// [`NoRoom`], with the numbers of the first place where it does not fit.
pub fn make_room(
    snapshot: &Snapshot,
    budgets: &Budgets,
    wanted: &Wanted,
    now_ms: u64,
) -> Result<Vec<Command>, NoRoom> {
    let mut draft = Draft::new(snapshot, budgets, now_ms);
    let asked =
        |spindle| wanted.spindles.iter().filter(move |(at, _)| *at == spindle).map(|(_, bytes)| *bytes);
    for spindle in 0..budgets.spindles.len() {
        let wanted = asked(spindle).fold(0, u64::saturating_add);
        let level = draft.spindles[spindle];
        let missing = level.missing(wanted);
        let short = if missing == 0 { 0 } else { draft.flush_from(spindle, missing, Reason::Room) };
        level.refuse(Place::Spindle(spindle), wanted, missing, short)?;
    }
    let level = draft.memory;
    let missing = level.missing(wanted.memory);
    let short = if missing == 0 { 0 } else { draft.evict(missing, Reason::Room) };
    level.refuse(Place::Memory, wanted.memory, missing, short)?;
    Ok(draft.commands)
}

/// All snaps of a cache at one moment, as the tender sees them.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    candidates: Vec<Candidate>,
    /// Where each candidate's bytes lie, those of one after those of the other.
    shares: Vec<Share>,
    /// Where each candidate's shares end.
    ends: Vec<u32>,
    /// The newest clock of each view of which something is there.
    newest: Vec<u64>,
}

/// A view's number in one [`Snapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewNumber(u32);

/// One snap as the tender sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Which view it belongs to.
    pub view: ViewNumber,
    /// Which generation of it.
    pub clock: u64,
    /// What it has.
    pub holds: Holds,
    /// Bytes of images: exact.
    pub image_bytes: u64,
    /// Bytes of mapped regions that are resident: what evicting gives back.
    pub resident_bytes: u64,
    /// When it was asked for.
    pub history: History,
    /// When it was last loaded or brought into memory. Its TTLs count from there if nobody has asked for it since:
    /// what somebody has just brought is not idle yet. For the order it is no use.
    pub arrived_ms: u64,
    /// How long it may be idle.
    pub ttls: Ttls,
    /// Whether what is in memory is on the disk, too.
    pub durable: bool,
    /// Whether somebody holds a lease.
    pub leased: bool,
    /// Whether somebody has pinned it: then neither budgets nor TTLs touch it, until it is unpinned.
    pub pinned: bool,
    /// Whether something goes on with it (a load, a commit, a warming), or it failed and is not to be tried
    /// again yet.
    pub busy: bool,
}

/// What a snap has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Nothing but its name: cold, or failed.
    Nothing,
    /// Files, if only a manifest: warm, or without data.
    Files,
    /// Memory; and files, if it is durable: hot.
    Memory,
}

/// How long a snap may be idle, in milliseconds. One after the other, all counted from the last query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttls {
    /// From the last query to the eviction.
    pub evict_ms: u64,
    /// From there to the flush.
    pub flush_ms: u64,
    /// From there to the erasure.
    pub erase_ms: u64,
}

impl Ttls {
    /// However long nobody asks for it.
    pub const NEVER: Ttls = Ttls { evict_ms: u64::MAX, flush_ms: u64::MAX, erase_ms: u64::MAX };
}

impl Default for Ttls {
    /// 15 minutes, then 2 hours, then 30 minutes.
    fn default() -> Ttls {
        const MINUTE_MS: u64 = 60 * 1000;
        Ttls { evict_ms: 15 * MINUTE_MS, flush_ms: 120 * MINUTE_MS, erase_ms: 30 * MINUTE_MS }
    }
}

#[derive(Clone, Copy, Debug)]
struct Share {
    spindle: u32,
    bytes: u64,
}

impl Snapshot {
    /// An empty one with room for `snaps`.
    pub fn with_capacity(snaps: usize) -> Snapshot {
        Snapshot {
            candidates: Vec::with_capacity(snaps),
            shares: Vec::with_capacity(snaps),
            ends: Vec::with_capacity(snaps),
            newest: Vec::new(),
        }
    }

    /// Begins a view. All its candidates carry the number.
    pub fn view(&mut self) -> ViewNumber {
        self.newest.push(0);
        ViewNumber(self.newest.len() as u32 - 1)
    }

    /// Adds a snap, with the bytes that it has on each spindle, and says its number: they count up from 0.
    pub fn add(&mut self, snap: Candidate, spindles: impl IntoIterator<Item = (usize, u64)>) -> usize {
        // Cold snaps of a new generation do not push out what is there of the old one.
        if snap.holds != Holds::Nothing {
            let newest = &mut self.newest[snap.view.0 as usize];
            *newest = snap.clock.max(*newest);
        }
        let shares = spindles.into_iter().map(|(spindle, bytes)| Share { spindle: spindle as u32, bytes });
        self.shares.extend(shares.filter(|share| share.bytes > 0));
        self.ends.push(
            u32::try_from(self.shares.len()).expect("a snap has at most as many as there are spindles"),
        );
        self.candidates.push(snap);
        self.candidates.len() - 1
    }

    /// All snaps, by their numbers.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    fn shares(&self, snap: usize) -> &[Share] {
        let start = if snap == 0 { 0 } else { self.ends[snap - 1] };
        &self.shares[start as usize..self.ends[snap] as usize]
    }

    /// Whether there is something of a newer generation of the same view.
    fn is_superseded(&self, snap: &Candidate) -> bool {
        snap.clock < self.newest[snap.view.0 as usize]
    }
}

impl Candidate {
    fn memory_bytes(&self) -> u64 {
        self.image_bytes.saturating_add(self.resident_bytes)
    }

    /// How long it lies there for nothing.
    fn idle_ms(&self, now_ms: u64) -> u64 {
        self.history.idle_ms(now_ms).min(now_ms.saturating_sub(self.arrived_ms))
    }

    /// Whether the tender may do anything with it. What is in memory alone would be lost.
    fn is_free(&self) -> bool {
        !self.leased && !self.pinned && !self.busy && (self.durable || self.holds != Holds::Memory)
    }
}

/// How much is used, and how much may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// All that counts, promised and unaccounted bytes too: it may be more than what the snaps have.
    pub used: u64,
    /// The limits.
    pub marks: Marks,
}

impl Level {
    /// How much must go before `wanted` fits. Who wants nothing waits for nothing, however full it is.
    fn missing(&self, wanted: u64) -> u64 {
        if wanted == 0 {
            return 0;
        }
        self.used.saturating_add(wanted).saturating_sub(self.marks.capacity)
    }

    fn refuse(&self, place: Place, wanted: u64, missing: u64, short: u64) -> Result<(), NoRoom> {
        if short == 0 && wanted <= self.marks.capacity {
            return Ok(());
        }
        let free = self.marks.capacity.saturating_sub(self.used);
        Err(NoRoom { place, wanted, capacity: self.marks.capacity, free, freeable: missing - short })
    }
}

/// Where clearing begins and where it ends: `low <= high <= capacity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    low: u64,
    high: u64,
    capacity: u64,
}

/// Marks that are out of order. Correct them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the low mark ({low}) must not be above the high one ({high}), nor that above the capacity ({capacity})",
    low = Exact(*low), high = Exact(*high), capacity = Exact(*capacity)
)]
pub struct MarksError {
    /// The low mark.
    pub low: u64,
    /// The high mark.
    pub high: u64,
    /// The capacity.
    pub capacity: u64,
}

impl Marks {
    /// From nine tenths down to eight.
    #[must_use]
    pub const fn of(capacity: u64) -> Marks {
        Marks { low: capacity / 10 * 8, high: capacity / 10 * 9, capacity }
    }

    /// Other marks.
    ///
    /// # Errors
    /// [`MarksError`] if they are out of order.
    pub const fn new(low: u64, high: u64, capacity: u64) -> Result<Marks, MarksError> {
        if low <= high && high <= capacity {
            Ok(Marks { low, high, capacity })
        } else {
            Err(MarksError { low, high, capacity })
        }
    }

    /// Where clearing ends.
    pub const fn low(&self) -> u64 {
        self.low
    }

    /// Where clearing begins.
    pub const fn high(&self) -> u64 {
        self.high
    }

    /// What may be used at all.
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }
}

/// What may be used, and what is.
#[derive(Clone, Debug)]
pub struct Budgets {
    /// Memory of regions.
    pub memory: Level,
    /// Each spindle, by its number.
    pub spindles: Vec<Level>,
    /// In which share of the last ten seconds, in percent, some task waited for memory: `some avg10` of the
    /// kernel's pressure information. Nothing where there is none.
    pub stalled_percent: Option<f32>,
}

impl Budgets {
    /// Whether tasks wait for memory for too much of the time.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled_percent.is_some_and(|percent| percent >= STALLED_PERCENT_MIN)
    }
}

/// What the caller is to do, in this order, and where it will not be enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub commands: Vec<Command>,
    /// How many bytes of memory stay above the low mark, because nothing more may go.
    pub memory_short: u64,
    /// The same for each spindle.
    pub spindles_short: Vec<u64>,
}

/// What to do with one snap. By the time it is done somebody may have leased the snap: then it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The snap's number in the [`Snapshot`].
    pub snap: usize,
    /// What to do with it.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

/// What may be done with a snap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Its memory goes.
    Evict,
    /// Its files go, and its memory, if it has any.
    Flush,
    /// The snap goes. It has neither memory nor files.
    Erase,
}

/// Why something is done with a snap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nobody has asked for it for so many milliseconds, longer than its TTLs allow.
    Idle {
        /// Since the last query, or since it arrived.
        idle_ms: u64,
    },
    /// Memory is above its high mark.
    MemoryFull,
    /// A spindle is above its high mark.
    SpindleFull {
        /// Which one.
        spindle: usize,
    },
    /// Tasks of this machine wait for memory.
    Pressure,
    /// A load needs the room.
    Room,
}

/// How much a load needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of memory.
    pub memory: u64,
    /// Of spindles, by their numbers.
    pub spindles: Vec<(usize, u64)>,
}

/// Where bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Memory of regions.
    Memory,
    /// A spindle, by its number.
    Spindle(usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Memory => f.write_str("memory"),
            Place::Spindle(number) => write!(f, "spindle {number}"),
        }
    }
}

/// A load does not fit, whatever goes. Wait for leases to end, unpin something, or give the cache more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{wanted} do not fit {place}: of {capacity}, {free} are free and {freeable} can be freed now; \
     the rest is leased, pinned, on its way, or not yet durable",
    wanted = Exact(*wanted), capacity = Exact(*capacity), free = Exact(*free), freeable = Exact(*freeable)
)]
pub struct NoRoom {
    /// Where.
    pub place: Place,
    /// How much was asked for.
    pub wanted: u64,
    /// How much there is in all.
    pub capacity: u64,
    /// How much of it is free.
    pub free: u64,
    /// How much more would be free if everything went that may.
    pub freeable: u64,
}

/// A decision while it is being made.
struct Draft<'a> {
    snapshot: &'a Snapshot,
    now_ms: u64,
    /// What will be used once the commands are done.
    memory: Level,
    spindles: Vec<Level>,
    commands: Vec<Command>,
    /// Where each snap's command stands, or [`NO_COMMAND`].
    command_of: Vec<u32>,
    /// Kept between steps, for its memory.
    choices: Vec<Choice>,
}

const NO_COMMAND: u32 = u32::MAX;

/// A snap that may go for one end, and what that would bring.
#[derive(Clone, Copy, Debug)]
struct Choice {
    rank: u64,
    bytes: u64,
    snap: u32,
}

impl<'a> Draft<'a> {
    fn new(snapshot: &'a Snapshot, budgets: &Budgets, now_ms: u64) -> Draft<'a> {
        Draft {
            snapshot,
            now_ms,
            memory: budgets.memory,
            spindles: budgets.spindles.clone(),
            commands: Vec::new(),
            command_of: vec![NO_COMMAND; snapshot.candidates.len()],
            choices: Vec::new(),
        }
    }

    /// One step for each snap and decision: a hot one that is due for all three goes by and by.
    fn end_what_is_idle(&mut self) {
        for (number, snap) in self.snapshot.candidates.iter().enumerate() {
            let idle_ms = snap.idle_ms(self.now_ms);
            if !snap.is_free() || idle_ms < snap.ttls.evict_ms {
                continue;
            }
            let flush_at = snap.ttls.evict_ms.saturating_add(snap.ttls.flush_ms);
            let erase_at = flush_at.saturating_add(snap.ttls.erase_ms);
            let action = match snap.holds {
                Holds::Nothing if idle_ms >= erase_at => Action::Erase,
                Holds::Files | Holds::Memory if idle_ms >= flush_at => Action::Flush,
                Holds::Memory => Action::Evict,
                _ => continue,
            };
            self.command(number, action, Reason::Idle { idle_ms });
        }
    }

    /// Flushes until `need` bytes of the spindle are free. Says how many are missing then.
    fn flush_from(&mut self, spindle: usize, need: u64, reason: Reason) -> u64 {
        let mut choices = std::mem::take(&mut self.choices);
        choices.clear();
        for (number, snap) in self.snapshot.candidates.iter().enumerate() {
            if !snap.is_free() || snap.holds == Holds::Nothing || self.is_leaving_the_disk(number) {
                continue;
            }
            let shares = self.snapshot.shares(number);
            let there = shares.iter().filter(|share| share.spindle as usize == spindle);
            let bytes = there.map(|share| share.bytes).fold(0, u64::saturating_add);
            if bytes > 0 {
                // All of its bytes must be loaded again, not only those here.
                let size = shares.iter().map(|share| share.bytes).fold(0, u64::saturating_add);
                choices.push(self.choice(number, snap, bytes, size));
            }
        }
        let (chosen, short) = least_worth(&mut choices, need);
        chosen.iter().for_each(|choice| self.command(choice.snap as usize, Action::Flush, reason));
        self.choices = choices;
        short
    }

    /// Evicts until `need` bytes of memory are free. Says how many are missing then.
    fn evict(&mut self, need: u64, reason: Reason) -> u64 {
        let mut choices = std::mem::take(&mut self.choices);
        choices.clear();
        for (number, snap) in self.snapshot.candidates.iter().enumerate() {
            let bytes = snap.memory_bytes();
            let is_leaving = self.command_of[number] != NO_COMMAND;
            if snap.holds == Holds::Memory && bytes > 0 && snap.is_free() && !is_leaving {
                choices.push(self.choice(number, snap, bytes, bytes));
            }
        }
        let (chosen, short) = least_worth(&mut choices, need);
        chosen.iter().for_each(|choice| self.command(choice.snap as usize, Action::Evict, reason));
        self.choices = choices;
        short
    }

    fn choice(&self, number: usize, snap: &Candidate, bytes: u64, size: u64) -> Choice {
        let superseded = self.snapshot.is_superseded(snap);
        Choice { rank: rank(&snap.history, size, superseded, self.now_ms), bytes, snap: number as u32 }
    }

    fn is_leaving_the_disk(&self, number: usize) -> bool {
        let command = self.command_of[number];
        command != NO_COMMAND && self.commands[command as usize].action == Action::Flush
    }

    /// Names a snap. A flush takes the place of an eviction: it does that too.
    fn command(&mut self, number: usize, action: Action, reason: Reason) {
        let snap = &self.snapshot.candidates[number];
        let command = Command { snap: number, action, reason };
        let former = self.command_of[number];
        if former == NO_COMMAND {
            self.command_of[number] = self.commands.len() as u32;
            self.commands.push(command);
            if snap.holds == Holds::Memory {
                self.memory.used = self.memory.used.saturating_sub(snap.memory_bytes());
            }
        } else {
            assert_eq!(self.commands[former as usize].action, Action::Evict, "only an eviction can grow");
            assert_eq!(action, Action::Flush, "it can only grow into a flush");
            self.commands[former as usize] = command;
        }
        if action == Action::Flush {
            for share in self.snapshot.shares(number) {
                if let Some(level) = self.spindles.get_mut(share.spindle as usize) {
                    level.used = level.used.saturating_sub(share.bytes);
                }
            }
        }
    }
}

/// The lowest ranks that bring `need` bytes together, lowest first, and how many bytes are missing even so.
///
/// Only what is chosen is sorted. The rest is put aside half by half, so all of it costs a few looks at each.
fn least_worth(choices: &mut [Choice], need: u64) -> (&[Choice], u64) {
    let order = |choice: &Choice| (choice.rank, choice.snap);
    // Everything before `start` is needed and brings `found`; nothing from `end` on is.
    let (mut start, mut end, mut found) = (0, choices.len(), 0u64);
    while found < need && start < end {
        let middle = (end - start - 1) / 2;
        let open = &mut choices[start..end];
        open.select_nth_unstable_by_key(middle, order);
        let lower = open[..=middle].iter().map(|choice| choice.bytes).fold(0, u64::saturating_add);
        // The very first is needed in any case: that is why the loop still runs.
        if middle == 0 || found.saturating_add(lower) < need {
            found = found.saturating_add(lower);
            start += middle + 1;
        } else {
            end = start + middle + 1;
        }
    }
    choices[..start].sort_unstable_by_key(order);
    (&choices[..start], need.saturating_sub(found))
}

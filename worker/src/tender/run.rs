//! The tender at work: looks at all snaps, decides, does it, and takes note.
//!
//! ```text
//!  each second, or sooner if somebody waits ─▶ look ─▶ decide ────▶ evict, flush, erase ─▶ events, status
//!  a load or a warming finds no room ────────▶ look ─▶ make_room ─▶ evict, flush ─▶ it tries again
//! ```
//!
//! What is leased, pinned or busy by the time of the command stays: the snap's decider looks once more, under its lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::look::{Count, Look};
use super::policy::{Action, Budgets, Command, Level, Marks, NoRoom, Reason, Wanted, decide, make_room};
use super::rules::Rules;
use super::status::{TenderRound, TenderSums};
use crate::cache::{CacheCore, Entry, Snap};
use crate::events::Event;
use crate::ops::lanes::run_all;
use crate::scan::patience::Patience;
use crate::snap::state::Answer;

/// What the tender goes by and what it has done, for its thread and for all who use the cache.
pub(crate) struct Tender {
    /// Otherwise nothing goes by itself, not even for a load that needs the room.
    pub(crate) is_on: bool,
    rules: Mutex<Rules>,
    notes: Mutex<Notes>,
    /// Wakes the thread. One message is as good as many.
    pokes: Sender<()>,
    inbox: Receiver<()>,
    pub(super) memory_turns: Turns,
    pub(super) disk_turns: Turns,
}

/// Lets one after the other make room, each until it has taken what it needs. So nobody clears for itself what another has
/// left over.
pub(super) struct Turns {
    /// Whoever has the one message has the turn.
    give: Sender<()>,
    take: Receiver<()>,
}

/// The turn to make room.
pub(crate) struct Turn<'a>(&'a Sender<()>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_send(()); // There is room for the one that was taken.
    }
}

/// Who waits longer for the turn goes without: a disk that hangs may hold up who has it. Then two may clear a little more
/// than is needed.
const TURN_WAIT_MAX: Duration = Duration::from_secs(2);

impl Turns {
    fn new() -> Turns {
        let (give, take) = bounded(1);
        give.send(()).expect("there is room for one");
        Turns { give, take }
    }

    /// Waits for the turn, but not for long.
    pub(super) fn wait(&self, patience: &Patience) -> Option<Turn<'_>> {
        let longest = Instant::now() + TURN_WAIT_MAX;
        let deadline = Some(patience.deadline.map_or(longest, |deadline| deadline.min(longest)));
        let patience = Patience { deadline, ..patience.clone() };
        patience.receive(&self.take).ok().map(|_| Turn(&self.give))
    }
}

/// What it has done so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    pub(crate) is_running: bool,
    pub(crate) last: Option<TenderRound>,
    pub(crate) sums: TenderSums,
    pub(crate) stalled_percent: Option<f32>,
    is_stalled: bool,
}

impl Tender {
    pub(crate) fn new(is_on: bool, rules: Rules) -> Tender {
        let (pokes, inbox) = bounded(1);
        Tender {
            is_on,
            rules: Mutex::new(rules),
            notes: Mutex::default(),
            pokes,
            inbox,
            memory_turns: Turns::new(),
            disk_turns: Turns::new(),
        }
    }

    /// Changes what it goes by, from the next decision on: that comes at once.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut lock(&self.rules));
        self.poke();
    }

    /// Has it look again now.
    pub(crate) fn poke(&self) {
        let _ = self.pokes.try_send(()); // One that lies there already does as well.
    }

    pub(crate) fn rules(&self) -> Rules {
        lock(&self.rules).clone()
    }

    pub(crate) fn notes(&self) -> MutexGuard<'_, Notes> {
        lock(&self.notes)
    }

    pub(super) fn inbox(&self) -> &Receiver<()> {
        &self.inbox
    }
}

/// One round: what was idle for too long goes, and what is above its mark. `stalled_percent` is what the kernel says of
/// the machine's memory.
pub(crate) fn tend(core: &Arc<CacheCore>, now_ms: u64, stalled_percent: Option<f32>, patience: &Patience) {
    core.warmth.reaper.settle(); // What is on its way out is no reason for more to go.
    let rules = core.tender.rules();
    let mut budgets = budgets(core, &rules);
    budgets.stalled_percent = stalled_percent;
    tell_pressure(core, &budgets);
    // Below the mark by what was granted is below it by what is resident: then the kernel need not be asked.
    let is_asked = budgets.memory.used > budgets.memory.marks.high() || budgets.is_stalled();
    let look = Look::at(core, &rules, if is_asked { Count::Resident } else { Count::Granted }, now_ms);
    budgets.memory.used = budgets.memory.used.saturating_sub(look.not_resident);
    let decision = decide(&look.snapshot, &budgets, now_ms);
    let sums = act(core, &look, &decision.commands, patience);
    core.tender.notes().take(TenderRound {
        at: Instant::now(),
        did: sums,
        memory_short: decision.memory_short,
        spindles_short: decision.spindles_short,
    });
    drop(look);
    // Leases that have ended may have left room for who waits.
    let waited_for = core.budget.counts().residence_first_waited_for;
    if sums == TenderSums::default() && waited_for > 0 {
        // What does not fit now waits on.
        let _ = clear(core, &Wanted { memory: waited_for, spindles: Vec::new() }, now_ms, patience);
    }
}

/// Makes room for a load or a warming, all that it needs or nothing. Says whether something went.
///
/// # Errors
/// It does not fit even then: the numbers.
pub(super) fn clear(
    core: &Arc<CacheCore>,
    wanted: &Wanted,
    now_ms: u64,
    patience: &Patience,
) -> Result<bool, NoRoom> {
    core.warmth.reaper.settle();
    let rules = core.tender.rules();
    let mut budgets = budgets(core, &rules);
    for (level, spindle) in budgets.spindles.iter_mut().zip(&core.spindles) {
        let (used, capacity) = spindle.room.level();
        *level = Level { used, marks: Marks::of(capacity) };
    }
    let look = Look::at(core, &rules, Count::Granted, now_ms);
    let commands = make_room(&look.snapshot, &budgets, wanted, now_ms)?;
    let sums = act(core, &look, &commands, patience);
    core.tender.notes().sums += sums;
    drop(look);
    core.warmth.reaper.settle();
    Ok(sums != TenderSums::default())
}

/// How full everything is, by what was promised.
pub(crate) fn budgets(core: &CacheCore, rules: &Rules) -> Budgets {
    let counts = core.budget.counts();
    let memory = Level { used: counts.images + counts.mapped, marks: rules.memory.of(counts.residence_max) };
    let level = |counts: crate::budget::ledger::SpindleCounts| Level {
        used: counts.used + counts.reserved,
        marks: rules.disks.of(counts.capacity),
    };
    let spindles = core.spindles.iter().map(|spindle| level(spindle.room.counts())).collect();
    Budgets { memory, spindles, stalled_percent: None }
}

/// Does what was decided, and counts what has really gone.
fn act(core: &Arc<CacheCore>, look: &Look, commands: &[Command], patience: &Patience) -> TenderSums {
    let mut sums = TenderSums::default();
    let mut flushes = Vec::new();
    for Command { snap, action, reason } in commands {
        let entry = &look.entries[*snap];
        match action {
            Action::Evict => sums.evicted += u64::from(evict(entry, *reason)),
            Action::Erase => sums.erased += u64::from(erase(core, entry, *reason)),
            Action::Flush => {
                // What lies on other disks must not wait for one that hangs.
                let lane = entry.manifest().map_or_else(Vec::new, |manifest| manifest.spindles.clone());
                flushes.push((lane, (entry, *reason)));
            }
        }
    }
    let flushed = run_all(flushes, |(entry, reason)| flush(core, entry, reason, patience));
    sums.flushed = flushed.into_iter().map(u64::from).sum();
    sums
}

fn evict(entry: &Arc<Entry>, reason: Reason) -> bool {
    let now = entry.now();
    let (answer, _) = entry.evict(false, Some(reason), |snap| snap.may_go(now));
    answer == Answer::Evicted
}

fn flush(core: &Arc<CacheCore>, entry: &Arc<Entry>, reason: Reason, patience: &Patience) -> bool {
    // A lease that reads from the disk is nothing to the decider.
    if entry.usage().leased || patience.check().is_err() {
        return false;
    }
    let now = entry.now();
    // A disk that refuses has been told, and is not asked again before its files are counted out.
    Snap::new(core.clone(), entry.clone())
        .flush_if(patience, Some(reason), |snap| snap.may_go(now))
        .unwrap_or(false)
}

fn erase(core: &Arc<CacheCore>, entry: &Arc<Entry>, reason: Reason) -> bool {
    let now = entry.now();
    Snap::new(core.clone(), entry.clone()).erase_if(Some(reason), |snap| snap.may_go(now))
}

fn tell_pressure(core: &CacheCore, budgets: &Budgets) {
    let (high, was_high) = {
        let mut notes = core.tender.notes();
        notes.stalled_percent = budgets.stalled_percent;
        (budgets.is_stalled(), std::mem::replace(&mut notes.is_stalled, budgets.is_stalled()))
    };
    if high != was_high {
        let percent = budgets.stalled_percent.unwrap_or(0.0) as u32;
        core.events.tell(|| Event::Pressure { percent, high });
    }
}

impl Notes {
    fn take(&mut self, round: TenderRound) {
        self.sums += round.did;
        self.last = Some(round);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What stands under these locks is changed in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

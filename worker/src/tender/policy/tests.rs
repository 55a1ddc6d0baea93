//! Each rule alone, and all of them against a naive model over thousands of snaps.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::units::{GIB, MIB};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

/// A durable hot snap of 100 bytes in memory and on spindle 0, asked for at some moment.
fn hot(view: ViewNumber, asked_ms: u64) -> Candidate {
    let mut history = History::begin(asked_ms);
    history.query(asked_ms);
    Candidate {
        view,
        clock: 1,
        holds: Holds::Memory,
        image_bytes: 100,
        resident_bytes: 0,
        history,
        arrived_ms: asked_ms,
        ttls: Ttls::default(),
        durable: true,
        leased: false,
        pinned: false,
        busy: false,
    }
}

fn snapshot(snaps: impl IntoIterator<Item = Candidate>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.view();
    for snap in snaps {
        let on_disk = if snap.holds == Holds::Nothing { 0 } else { 100 };
        snapshot.add(snap, [(0, on_disk)]);
    }
    snapshot
}

const VIEW: ViewNumber = ViewNumber(0);

fn budgets(memory_used: u64, disk_used: u64) -> Budgets {
    let marks = Marks::new(800, 900, 1000).unwrap();
    let level = |used| Level { used, marks };
    Budgets { memory: level(memory_used), spindles: vec![level(disk_used)], stalled_percent: None }
}

fn actions(decision: &Decision) -> Vec<(usize, Action)> {
    decision.commands.iter().map(|command| (command.snap, command.action)).collect()
}

/// What is not mentioned here stays as it is.
#[test]
fn ttls_follow_each_other_from_the_last_query() {
    let cold = Candidate { holds: Holds::Nothing, image_bytes: 0, ..hot(VIEW, 0) };
    let warm = Candidate { holds: Holds::Files, image_bytes: 0, ..hot(VIEW, 0) };
    let all = snapshot([hot(VIEW, 0), warm, cold]);
    let at = |now_ms| actions(&decide(&all, &budgets(0, 0), now_ms));
    assert_eq!(at(15 * MINUTE - 1), []);
    assert_eq!(at(15 * MINUTE), [(0, Action::Evict)]);
    assert_eq!(at(15 * MINUTE + 2 * HOUR - 1), [(0, Action::Evict)]);
    assert_eq!(at(15 * MINUTE + 2 * HOUR), [(0, Action::Flush), (1, Action::Flush)]);
    let all_three = [(0, Action::Flush), (1, Action::Flush), (2, Action::Erase)];
    assert_eq!(at(15 * MINUTE + 2 * HOUR + 30 * MINUTE - 1), all_three[..2]);
    assert_eq!(at(15 * MINUTE + 2 * HOUR + 30 * MINUTE), all_three);
    assert_eq!(
        decide(&all, &budgets(0, 0), 16 * MINUTE).commands[0].reason,
        Reason::Idle { idle_ms: 16 * MINUTE }
    );
}

#[test]
fn each_snap_has_ttls_of_its_own_and_endless_ones_never_end() {
    let short = Ttls { evict_ms: 10, flush_ms: 10, erase_ms: 10 };
    let endless = Ttls { evict_ms: u64::MAX, flush_ms: u64::MAX, erase_ms: u64::MAX };
    let kept = Ttls { evict_ms: 10, flush_ms: u64::MAX, erase_ms: 10 };
    let with = |ttls| Candidate { ttls, ..hot(VIEW, 0) };
    let all = snapshot([with(short), with(endless), with(kept)]);
    let decision = decide(&all, &budgets(0, 0), 365 * 24 * HOUR);
    assert_eq!(actions(&decision), [(0, Action::Flush), (2, Action::Evict)]);
}

#[test]
fn evicting_and_flushing_do_not_make_a_snap_fresh() {
    // The history is the same value before and after: only a query changes it.
    let mut snap = hot(VIEW, 0);
    let step = |snap, now_ms| actions(&decide(&snapshot([snap]), &budgets(0, 0), now_ms));
    assert_eq!(step(snap, 20 * MINUTE), [(0, Action::Evict)]);
    (snap.holds, snap.image_bytes) = (Holds::Files, 0);
    assert_eq!(step(snap, 15 * MINUTE + 2 * HOUR), [(0, Action::Flush)]);
    snap.holds = Holds::Nothing;
    assert_eq!(step(snap, 45 * MINUTE + 2 * HOUR), [(0, Action::Erase)]);
    snap.history.query(45 * MINUTE + 2 * HOUR);
    assert_eq!(step(snap, 45 * MINUTE + 2 * HOUR), []);
}

#[test]
fn what_is_leased_pinned_busy_or_not_durable_is_never_named() {
    let guarded = [
        Candidate { leased: true, ..hot(VIEW, 0) },
        Candidate { pinned: true, ..hot(VIEW, 0) },
        Candidate { busy: true, ..hot(VIEW, 0) },
        Candidate { durable: false, ..hot(VIEW, 0) },
        Candidate { pinned: true, holds: Holds::Files, image_bytes: 0, ..hot(VIEW, 0) },
        Candidate { busy: true, holds: Holds::Nothing, image_bytes: 0, ..hot(VIEW, 0) },
    ];
    let all = snapshot(guarded);
    let full = Budgets { stalled_percent: Some(90.0), ..budgets(1000, 1000) };
    let decision = decide(&all, &full, 1000 * HOUR);
    assert_eq!(decision, Decision { commands: vec![], memory_short: 200, spindles_short: vec![200] });
    let wanted = Wanted { memory: 1, spindles: vec![] };
    let refused = make_room(&all, &full, &wanted, 1000 * HOUR).unwrap_err();
    assert_eq!((refused.place, refused.free, refused.freeable), (Place::Memory, 0, 0));
}

#[test]
fn memory_is_cleared_from_above_the_high_mark_to_the_low_one() {
    let all = snapshot((0..10).map(|at| hot(VIEW, at)));
    assert_eq!(actions(&decide(&all, &budgets(900, 0), 10)), []);
    let decision = decide(&all, &budgets(901, 0), 10);
    assert_eq!(actions(&decision), [(0, Action::Evict), (1, Action::Evict)]);
    assert!(decision.commands.iter().all(|command| command.reason == Reason::MemoryFull));
    // What leaves because it was idle counts.
    let mut idle = hot(VIEW, 10);
    (idle.ttls.evict_ms, idle.image_bytes) = (0, 101);
    let all = snapshot([hot(VIEW, 0), hot(VIEW, 1), idle]);
    assert_eq!(actions(&decide(&all, &budgets(901, 0), 10)), [(2, Action::Evict)]);
}

#[test]
fn what_frees_nothing_is_not_evicted_for_room() {
    let unmapped = Candidate { image_bytes: 0, resident_bytes: 0, ..hot(VIEW, 0) };
    let resident = Candidate { image_bytes: 0, resident_bytes: 60, ..hot(VIEW, 5) };
    let decision = decide(&snapshot([unmapped, resident]), &budgets(950, 0), 10);
    assert_eq!(actions(&decision), [(1, Action::Evict)]);
    assert_eq!(decision.memory_short, 90);
}

#[test]
fn only_snaps_with_bytes_on_the_full_spindle_are_flushed() {
    let mut all = Snapshot::default();
    let view = all.view();
    let marks = Marks::new(800, 900, 1000).unwrap();
    for (at, spindles) in
        [vec![(0, 100)], vec![(1, 60), (2, 90)], vec![(1, 60)], vec![(2, 100)]].into_iter().enumerate()
    {
        all.add(hot(view, at as u64), spindles);
    }
    let levels = |used: [u64; 3]| Budgets {
        memory: Level { used: 0, marks },
        spindles: used.map(|used| Level { used, marks }).to_vec(),
        stalled_percent: None,
    };
    let decision = decide(&all, &levels([900, 950, 910]), 10);
    // Flushing number 1 brings the third spindle to 820, which is above its low mark but no longer above the high one.
    assert_eq!(actions(&decision), [(1, Action::Flush), (2, Action::Flush)]);
    assert_eq!(decision.commands[0].reason, Reason::SpindleFull { spindle: 1 });
    assert_eq!(decision.spindles_short, [0, 30, 0]);
}

#[test]
fn a_flush_gives_memory_back_too() {
    let all = snapshot((0..10).map(|at| hot(VIEW, at)));
    let decision = decide(&all, &budgets(1000, 1000), 10);
    assert_eq!(actions(&decision), [(0, Action::Flush), (1, Action::Flush)]);
}

#[test]
fn an_eviction_by_ttl_grows_into_a_flush_where_the_disk_is_full() {
    let all = snapshot([hot(VIEW, 0), hot(VIEW, HOUR)]);
    let decision = decide(&all, &budgets(200, 901), HOUR);
    assert_eq!(actions(&decision), [(0, Action::Flush), (1, Action::Flush)]);
    assert_eq!(decision.memory_short, 0);
}

#[test]
fn older_generations_go_first_once_a_newer_one_is_there() {
    let newer = |holds| Candidate { clock: 2, holds, ..hot(VIEW, 5) };
    let busy_old = {
        let mut old = hot(VIEW, 5);
        (6..10).for_each(|moment| old.history.query(moment));
        old
    };
    let with = |other| actions(&decide(&snapshot([busy_old, other]), &budgets(901, 0), 10));
    assert_eq!(with(newer(Holds::Memory))[0], (0, Action::Evict));
    // A newer one that is only a name supersedes nothing, and an older one of another view neither.
    let unloaded = Candidate { image_bytes: 0, ..newer(Holds::Nothing) };
    let current = hot(VIEW, 1);
    let snaps = snapshot([busy_old, unloaded, current]);
    assert_eq!(actions(&decide(&snaps, &budgets(901, 0), 10))[0], (2, Action::Evict));
    let mut two_views = Snapshot::default();
    let (first, second) = (two_views.view(), two_views.view());
    two_views.add(Candidate { view: first, ..busy_old }, []);
    two_views.add(Candidate { clock: 9, ..hot(second, 1) }, []);
    assert_eq!(actions(&decide(&two_views, &budgets(901, 0), 10))[0], (1, Action::Evict));
}

#[test]
fn other_budgets_hold_from_the_next_decision_on() {
    let all = snapshot((0..10).map(|at| hot(VIEW, at)));
    let mut budgets = budgets(900, 900);
    assert_eq!(actions(&decide(&all, &budgets, 10)), []);
    budgets.memory.marks = Marks::new(300, 400, 500).unwrap();
    assert_eq!(decide(&all, &budgets, 10).commands.len(), 6);
    budgets.spindles[0].marks = Marks::of(0);
    let decision = decide(&all, &budgets, 10);
    assert_eq!(decision.commands.len(), 9);
    assert!(decision.commands.iter().all(|command| command.action == Action::Flush));
}

#[test]
fn while_tasks_wait_for_memory_an_eighth_is_given_back() {
    let all = snapshot((0..8).map(|at| hot(VIEW, at)));
    let with = |used, percent| decide(&all, &Budgets { stalled_percent: percent, ..budgets(used, 0) }, 10);
    assert_eq!(with(800, None).commands, []);
    assert_eq!(with(800, Some(9.9)).commands, []);
    assert_eq!(with(800, Some(f32::NAN)).commands, []);
    let decision = with(800, Some(10.0));
    assert_eq!(actions(&decision), [(0, Action::Evict)]);
    assert_eq!(decision.commands[0].reason, Reason::Pressure);
    // Above the high mark the larger of both counts.
    assert_eq!(with(1000, Some(50.0)).commands.len(), 2);
}

#[test]
fn room_is_made_for_what_fits_and_refused_with_numbers_for_what_does_not() {
    let all = snapshot((0..9).map(|at| Candidate { leased: at >= 6, ..hot(VIEW, at) }));
    let room =
        |memory, disk| make_room(&all, &budgets(900, 950), &Wanted { memory, spindles: vec![(0, disk)] }, 10);
    assert_eq!(room(100, 50), Ok(vec![]));
    let commands = room(101, 0).unwrap();
    assert_eq!(commands, [Command { snap: 0, action: Action::Evict, reason: Reason::Room }]);
    // What the disk gives, memory gives too.
    let commands = room(300, 200).unwrap();
    let names: Vec<_> = commands.iter().map(|command| (command.snap, command.action)).collect();
    assert_eq!(names, [(0, Action::Flush), (1, Action::Flush)]);
    assert_eq!(room(700, 0).map(|commands| commands.len()), Ok(6));
    let refused = room(701, 0).unwrap_err();
    assert_eq!(
        refused,
        NoRoom { place: Place::Memory, wanted: 701, capacity: 1000, free: 100, freeable: 600 }
    );
    assert_eq!(room(0, 651).unwrap_err().place, Place::Spindle(0));
    assert_eq!(
        room(5000, 0).unwrap_err().to_string(),
        "4.9 KiB (5,000 bytes) do not fit memory: of 1,000 bytes, 100 bytes are free and 600 bytes can be freed now; \
         the rest is leased, pinned, on its way, or not yet durable"
    );
    // Nothing is asked for: nothing is refused, however full it is.
    assert_eq!(make_room(&all, &budgets(5000, 5000), &Wanted::default(), 10), Ok(vec![]));
}

#[test]
fn marks_out_of_order_are_refused() {
    assert!(Marks::new(5, 4, 10).is_err());
    assert_eq!(
        Marks::new(1, 11, 10).unwrap_err().to_string(),
        "the low mark (1 byte) must not be above the high one (11 bytes), nor that above the capacity (10 bytes)"
    );
    assert_eq!(Marks::of(1000), Marks::new(800, 900, 1000).unwrap());
    assert!(Marks::new(0, 0, 0).is_ok() && Marks::of(u64::MAX).low < Marks::of(u64::MAX).high);
}

/// The rules once more, as slowly and plainly as can be: one victim at a time, found by a look at all.
fn naive(snapshot: &Snapshot, budgets: &Budgets, now_ms: u64) -> BTreeSet<(usize, &'static str)> {
    let mut budgets = budgets.clone();
    let mut fate: Vec<Option<Action>> = vec![None; snapshot.candidates.len()];
    let superseded = |snap: &Candidate| {
        let loaded = |other: &&Candidate| other.view == snap.view && other.holds != Holds::Nothing;
        snapshot.candidates.iter().filter(loaded).any(|other| other.clock > snap.clock)
    };
    let worth = |number: usize, size: u64| {
        let snap = &snapshot.candidates[number];
        (rank(&snap.history, size, superseded(snap), now_ms), number)
    };
    let may_go = |snap: &Candidate| {
        let guarded = snap.leased || snap.pinned || snap.busy;
        !guarded && (snap.durable || snap.holds != Holds::Memory)
    };
    fn apply(
        snapshot: &Snapshot,
        budgets: &mut Budgets,
        fate: &mut [Option<Action>],
        number: usize,
        action: Action,
    ) {
        let snap = &snapshot.candidates[number];
        if fate[number].is_none() && snap.holds == Holds::Memory {
            budgets.memory.used = budgets.memory.used.saturating_sub(snap.memory_bytes());
        }
        if action == Action::Flush {
            for share in snapshot.shares(number) {
                let used = &mut budgets.spindles[share.spindle as usize].used;
                *used = used.saturating_sub(share.bytes);
            }
        }
        fate[number] = Some(action);
    }
    for (number, snap) in snapshot.candidates.iter().enumerate().filter(|(_, snap)| may_go(snap)) {
        let idle = snap.history.idle_ms(now_ms);
        let Ttls { evict_ms, flush_ms, erase_ms } = snap.ttls;
        let action = match snap.holds {
            Holds::Nothing => (idle >= evict_ms + flush_ms + erase_ms).then_some(Action::Erase),
            _ if idle >= evict_ms + flush_ms => Some(Action::Flush),
            Holds::Files => None,
            Holds::Memory => (idle >= evict_ms).then_some(Action::Evict),
        };
        if let Some(action) = action {
            apply(snapshot, &mut budgets, &mut fate, number, action);
        }
    }
    for spindle in 0..budgets.spindles.len() {
        let Marks { low, high, .. } = budgets.spindles[spindle].marks;
        let target = if budgets.spindles[spindle].used > high { low } else { u64::MAX };
        while budgets.spindles[spindle].used > target {
            let on_it =
                |number: usize| snapshot.shares(number).iter().any(|share| share.spindle as usize == spindle);
            let size = |number| snapshot.shares(number).iter().map(|share| share.bytes).sum();
            let there = |number: &usize| {
                let snap = &snapshot.candidates[*number];
                may_go(snap)
                    && snap.holds != Holds::Nothing
                    && fate[*number] != Some(Action::Flush)
                    && on_it(*number)
            };
            let Some(next) = (0..fate.len()).filter(there).min_by_key(|number| worth(*number, size(*number)))
            else {
                break;
            };
            apply(snapshot, &mut budgets, &mut fate, next, Action::Flush);
        }
    }
    let Level { used, marks } = budgets.memory;
    let target = if used > marks.high { marks.low } else { u64::MAX };
    while budgets.memory.used > target {
        let there = |number: &usize| {
            let snap = &snapshot.candidates[*number];
            may_go(snap) && snap.holds == Holds::Memory && snap.memory_bytes() > 0 && fate[*number].is_none()
        };
        let size = |number: usize| snapshot.candidates[number].memory_bytes();
        let Some(next) = (0..fate.len()).filter(there).min_by_key(|number| worth(*number, size(*number)))
        else {
            break;
        };
        apply(snapshot, &mut budgets, &mut fate, next, Action::Evict);
    }
    let name = |action| match action {
        Action::Evict => "evict",
        Action::Flush => "flush",
        Action::Erase => "erase",
    };
    fate.iter().enumerate().filter_map(|(number, fate)| fate.map(|action| (number, name(action)))).collect()
}

const NOW: u64 = 10 * HOUR;

prop_compose! {
    fn any_candidate()(
        view in 0u32..8,
        clock in 0u64..4,
        holds in prop_oneof![1 => Just(Holds::Nothing), 1 => Just(Holds::Files), 4 => Just(Holds::Memory)],
        image_bytes in prop_oneof![Just(0), 1..GIB],
        resident_bytes in prop_oneof![2 => Just(0), 1 => 1..GIB],
        queries in prop::collection::vec(0..NOW, 0..4),
        recent in any::<bool>(),
        guards in prop::array::uniform4(prop::bool::weighted(0.1)),
    ) -> Candidate {
        let mut history = History::begin(if recent { NOW - 10 * MINUTE } else { 0 });
        let mut queries = queries;
        queries.sort_unstable();
        for moment in queries {
            history.query(if recent { NOW - moment % (10 * MINUTE) } else { moment });
        }
        let in_memory = u64::from(holds == Holds::Memory);
        let [undurable, leased, pinned, busy] = guards;
        Candidate {
            view: ViewNumber(view),
            clock,
            holds,
            image_bytes: image_bytes * in_memory,
            resident_bytes: resident_bytes * in_memory,
            history,
            arrived_ms: 0,
            ttls: Ttls::default(),
            durable: !undurable,
            leased,
            pinned,
            busy,
        }
    }
}

const SPINDLES: usize = 3;

prop_compose! {
    fn any_snapshot(snaps_max: usize)(
        snaps in prop::collection::vec((any_candidate(), prop::array::uniform3(prop_oneof![Just(0), 1..GIB])), 0..snaps_max),
    ) -> Snapshot {
        let mut snapshot = Snapshot::default();
        (0..8).for_each(|_| { snapshot.view(); });
        for (snap, bytes) in snaps {
            let has_files = u64::from(snap.holds != Holds::Nothing);
            snapshot.add(snap, bytes.into_iter().enumerate().map(|(spindle, bytes)| (spindle, bytes * has_files)));
        }
        snapshot
    }
}

/// Budgets in permille of what is there; used is what is there, and a little that nobody accounts for.
fn budgets_of(snapshot: &Snapshot, memory: u64, disks: [u64; SPINDLES]) -> Budgets {
    let level =
        |used: u64, permille: u64| Level { used: used + MIB, marks: Marks::of(used / 1000 * permille) };
    let memory_used = snapshot.candidates.iter().map(Candidate::memory_bytes).sum();
    let disk_used = |spindle| {
        snapshot
            .shares
            .iter()
            .filter(|share| share.spindle as usize == spindle)
            .map(|share| share.bytes)
            .sum()
    };
    let mut number = 0;
    let spindles = disks.map(|permille| {
        number += 1;
        level(disk_used(number - 1), permille)
    });
    Budgets { memory: level(memory_used, memory), spindles: spindles.to_vec(), stalled_percent: None }
}

/// What must hold of any decision, seen from the outside.
fn check(snapshot: &Snapshot, budgets: &Budgets, decision: &Decision) -> Result<(), TestCaseError> {
    let mut memory = budgets.memory.used;
    let mut disks: Vec<u64> = budgets.spindles.iter().map(|level| level.used).collect();
    let mut named = BTreeSet::new();
    for command in &decision.commands {
        let snap = &snapshot.candidates[command.snap];
        prop_assert!(named.insert(command.snap), "{} is named twice", command.snap);
        prop_assert!(!snap.leased && !snap.pinned && !snap.busy, "{command:?} {snap:?}");
        let allowed = match snap.holds {
            Holds::Nothing => vec![Action::Erase],
            Holds::Files => vec![Action::Flush],
            Holds::Memory if snap.durable => vec![Action::Evict, Action::Flush],
            Holds::Memory => vec![],
        };
        prop_assert!(allowed.contains(&command.action), "{command:?} {snap:?}");
        memory = memory.saturating_sub(snap.memory_bytes());
        if command.action == Action::Flush {
            snapshot.shares(command.snap).iter().for_each(|share| {
                disks[share.spindle as usize] = disks[share.spindle as usize].saturating_sub(share.bytes);
            });
        }
    }
    let was_full = |level: &Level| level.used > level.marks.high;
    if was_full(&budgets.memory) && memory > budgets.memory.marks.high {
        prop_assert_eq!(decision.memory_short, memory - budgets.memory.marks.low);
    }
    for (spindle, level) in budgets.spindles.iter().enumerate() {
        if was_full(level) && disks[spindle] > level.marks.high {
            prop_assert_eq!(decision.spindles_short[spindle], disks[spindle] - level.marks.low);
        }
        if !was_full(level) {
            let full = Reason::SpindleFull { spindle };
            prop_assert!(decision.commands.iter().all(|command| command.reason != full));
        }
    }
    if !was_full(&budgets.memory) {
        prop_assert!(decision.commands.iter().all(|command| command.reason != Reason::MemoryFull));
    }
    Ok(())
}

proptest! {
    #[test]
    fn decisions_are_those_of_the_naive_model(
        snapshot in any_snapshot(60),
        memory in 0u64..1300,
        disks in prop::array::uniform3(0u64..1300),
    ) {
        let budgets = budgets_of(&snapshot, memory, disks);
        let decision = decide(&snapshot, &budgets, NOW);
        check(&snapshot, &budgets, &decision)?;
        let name = |command: &Command| match command.action {
            Action::Evict => "evict",
            Action::Flush => "flush",
            Action::Erase => "erase",
        };
        let ours: BTreeSet<_> = decision.commands.iter().map(|command| (command.snap, name(command))).collect();
        prop_assert_eq!(ours, naive(&snapshot, &budgets, NOW));
    }

    #[test]
    fn room_is_made_exactly_or_refused_truly(
        snapshot in any_snapshot(60),
        memory in 0u64..1300,
        disks in prop::array::uniform3(0u64..1300),
        wanted in 1..20 * GIB,
    ) {
        let budgets = budgets_of(&snapshot, memory, disks);
        let evictable: u64 = snapshot.candidates.iter()
            .filter(|snap| snap.is_free() && snap.holds == Holds::Memory).map(Candidate::memory_bytes).sum();
        let Level { used, marks } = budgets.memory;
        let least = used - evictable.min(used);
        match make_room(&snapshot, &budgets, &Wanted { memory: wanted, spindles: vec![] }, NOW) {
            Ok(commands) => {
                let sizes: Vec<u64> =
                    commands.iter().map(|command| snapshot.candidates[command.snap].memory_bytes()).collect();
                let freed: u64 = sizes.iter().sum();
                prop_assert!(used - freed + wanted <= marks.capacity);
                if let Some(last) = sizes.last() {
                    prop_assert!(used - (freed - last) + wanted > marks.capacity, "the last one was needless");
                }
            }
            Err(refused) => {
                prop_assert!(least + wanted > marks.capacity);
                prop_assert_eq!(refused.freeable, evictable);
            }
        }
    }

    #[test]
    fn the_least_worth_are_those_of_a_full_sort(
        choices in prop::collection::vec((0u64..20, 0u64..50), 0..200),
        need in 0u64..6000,
    ) {
        let mut choices: Vec<Choice> = choices.into_iter().enumerate()
            .map(|(snap, (rank, bytes))| Choice { rank, bytes, snap: snap as u32 }).collect();
        let mut sorted = choices.clone();
        sorted.sort_by_key(|choice| (choice.rank, choice.snap));
        let mut found = 0;
        let count = sorted.iter().take_while(|choice| {
            let needed = found < need;
            found += if needed { choice.bytes } else { 0 };
            needed
        }).count();
        let (chosen, short) = least_worth(&mut choices, need);
        let snaps = |choices: &[Choice]| choices.iter().map(|choice| choice.snap).collect::<Vec<_>>();
        prop_assert_eq!(snaps(chosen), snaps(&sorted[..count]));
        prop_assert_eq!(short, need.saturating_sub(found));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// A cache lives for two days: snaps are loaded and asked for, the tender tends.
    ///
    /// Goal: the budgets hold after every decision, and nothing is left in the end but what is guarded. Method:
    /// thousands of snaps; commands are done as they come; what is guarded changes by the hour.
    #[test]
    fn thousands_of_snaps_stay_within_their_budgets(seed in any::<u64>()) {
        const SNAPS: usize = 4000;
        let mut state = seed;
        let mut draw = move |end: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % end
        };
        let disk_bytes: Vec<[u64; SPINDLES]> = (0..SNAPS).map(|_| [(); SPINDLES].map(|()| draw(MIB))).collect();
        let cold = Candidate { holds: Holds::Nothing, image_bytes: 0, ..hot(VIEW, 0) };
        let mut snaps: Vec<Option<Candidate>> = vec![None; SNAPS];
        let (memory_marks, disk_marks) = (Marks::of(600 * MIB), Marks::of(400 * MIB));
        for minute in 0..2 * 24 * 60 {
            let now_ms = minute * MINUTE;
            let asked = if minute < 24 * 60 { 40 } else { 0 };
            for _ in 0..asked {
                let number = draw(SNAPS as u64) as usize;
                let snap = snaps[number].get_or_insert(Candidate { history: History::begin(now_ms), clock: draw(3), ..cold });
                snap.history.query(now_ms);
                snap.holds = Holds::Memory;
                snap.image_bytes = disk_bytes[number].iter().sum();
                snap.leased = minute < 24 * 60 && draw(50) == 0;
                snap.durable = minute >= 23 * 60 || draw(50) > 0;
            }
            if minute % 60 == 0 {
                let done = |snap: &mut Option<Candidate>| snap.iter_mut().for_each(|snap| (snap.leased, snap.durable) = (false, true));
                snaps.iter_mut().for_each(done);
            }
            if minute % 5 > 0 {
                continue;
            }
            let mut snapshot = Snapshot::with_capacity(SNAPS);
            let view = snapshot.view();
            let mut numbers = Vec::new();
            let (mut memory, mut disks) = (0, [0; SPINDLES]);
            for (number, snap) in snaps.iter().enumerate().filter_map(|(number, snap)| Some((number, snap.as_ref()?))) {
                let has_files = u64::from(snap.holds != Holds::Nothing);
                let on_disk = disk_bytes[number].map(|bytes| bytes * has_files);
                (0..SPINDLES).for_each(|spindle| disks[spindle] += on_disk[spindle]);
                memory += snap.memory_bytes();
                snapshot.add(Candidate { view, ..*snap }, on_disk.into_iter().enumerate());
                numbers.push(number);
            }
            let level = |used, marks| Level { used, marks };
            let budgets = Budgets {
                memory: level(memory, memory_marks),
                spindles: disks.iter().map(|used| level(*used, disk_marks)).collect(),
                stalled_percent: None,
            };
            let decision = decide(&snapshot, &budgets, now_ms);
            check(&snapshot, &budgets, &decision)?;
            for command in &decision.commands {
                let place = &mut snaps[numbers[command.snap]];
                let snap = place.as_mut().unwrap();
                snap.image_bytes = 0;
                match command.action {
                    Action::Evict => snap.holds = Holds::Files,
                    Action::Flush => snap.holds = Holds::Nothing,
                    Action::Erase => *place = None,
                }
            }
        }
        prop_assert!(snaps.iter().all(Option::is_none), "a day after the last query nothing is left");
    }
}

//! Power loss at every operation of every disk, and every loss of what was not synced.
//!
//! ```text
//! a run of the cache ──▶ tape: cuts of the disks, promises ──▶ what a loss may leave ──▶ start, compare
//! ```
//!
//! The cache runs once; each cut of its disks gives many states, and only the start runs on each of them. Threads
//! make the order of operations vary from run to run, so what is checked holds for any order. All disks of a
//! machine lose their power together.
//!
//! `PELTON_CRASH_STATES=1000000` tries so many states of random runs in each test, `PELTON_CRASH_SEED=n` begins
//! with another seed: `docs/testing.md`.

mod checker;
mod script;
mod tape;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use checker::{Checker, scan_on};
use script::{DIRECT, IMAGE, Player, Step, load};
use tape::{Entry, Machine, Promises, Tape, There};

use crate::spindle::engine::sim::Rng;
use crate::spindle::engine::sim::cut::{Choices, Cut, Odometer, Remnant};
use crate::spindle::engine::sim::mistakes::Mistake;

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    cuts: usize,
    /// Different ones only.
    states: usize,
    /// Cuts with so many states that some were drawn by seed.
    drawn: usize,
}

/// How to go through the states of a cut.
#[derive(Clone, Copy)]
struct Depth {
    /// All, if there are no more than this.
    all: usize,
    /// Else so many, drawn by seed.
    drawn: usize,
    /// At each of so many cuts the process is killed instead, and the power lost while it starts again.
    killed_every: u64,
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs steps on a new machine, and answers what happened.
fn record(machine: &Machine, there: [There; 2], last_load: u8, steps: &[Step]) -> Vec<Entry> {
    let tape = Tape::default();
    let mut player = Player::new(machine, &tape, there, last_load);
    player.play(steps);
    player.finish();
    tape.take()
}

/// What was left at a state that was found good.
type Sample = (Vec<Remnant>, [There; 2]);

/// Starts after each cut of a tape. Answers some of the states, and how many there were.
fn search(
    machine: &Machine,
    tape: &[Entry],
    depth: Depth,
    seed: u64,
) -> Result<(Vec<Sample>, Counts), String> {
    let checker = Checker::new(machine);
    let mut counts = Counts::default();
    let mut samples = Vec::new();
    let mut promises = Promises::default();
    let mut now: Vec<Option<Arc<Cut>>> = vec![None; machine.disks.len()];
    let mut rng = Rng(seed);
    for (number, entry) in tape.iter().enumerate() {
        promises.hear(entry);
        if let Entry::Cut { disk, cut } = entry {
            now[*disk] = Some(cut.clone());
        }
        let Some(cuts) = now.iter().cloned().collect::<Option<Vec<Arc<Cut>>>>() else { continue };
        // A promise is a moment of its own: what was allowed before may be no longer.
        if matches!(entry, Entry::Begun { .. }) {
            continue;
        }
        counts.cuts += 1;
        if matches!(entry, Entry::Cut { .. }) && rng.below(depth.killed_every) == 0 {
            let killed = checker.start_where_killed(&cuts, &promises, rng.next());
            let place = |error| format!("seed {seed}, entry {number} of {}: {error}", tape.len());
            counts.states += killed.map_err(place)?;
        }
        let mut seen: HashSet<u64> = HashSet::new();
        let mut check = |choices: &mut dyn Choices, rng: &mut Rng| {
            let remnants: Vec<Remnant> = cuts.iter().map(|cut| cut.remnant(choices)).collect();
            let mark = remnants.iter().fold(0, |mark: u64, one| mark.rotate_left(7) ^ one.mark());
            if !seen.insert(mark) {
                return Ok(());
            }
            counts.states += 1;
            match checker.start_on(&remnants, &promises, rng.next()) {
                Ok(there) => {
                    if rng.below(512) == 0 {
                        samples.push((remnants, there));
                    }
                    Ok(())
                }
                Err(error) => Err(format!("seed {seed}, entry {number} of {}: {error}", tape.len())),
            }
        };
        let count = combinations(&cuts, depth.all);
        if count <= depth.all {
            let mut odometer = Odometer::default();
            loop {
                check(&mut odometer, &mut rng)?;
                if !odometer.turn() {
                    break;
                }
            }
        } else {
            counts.drawn += 1;
            for _ in 0..depth.drawn {
                let mut choices = Rng(rng.next());
                check(&mut choices, &mut rng)?;
            }
        }
    }
    Ok((samples, counts))
}

/// How many combinations of choices there are; beyond `most` just more.
fn combinations(cuts: &[Arc<Cut>], most: usize) -> usize {
    let mut odometer = Odometer::default();
    for count in 1..=most {
        for cut in cuts {
            let _ = cut.remnant(&mut odometer);
        }
        if !odometer.turn() {
            return count;
        }
    }
    most + 1
}

/// Goal: whatever the loss, a slice is whole or not there, and there as promised. Method: small runs, of which all
/// losses are tried.
#[test]
fn every_loss_of_a_small_run_leaves_slices_whole_or_absent() {
    let begun = Instant::now();
    let runs: [(usize, &[Step]); 6] = [
        (1, &[load(0, IMAGE), Step::Flush { key: 0 }]),
        (1, &[load(0, DIRECT), load(0, IMAGE)]),
        (1, &[load(0, IMAGE), load(0, DIRECT), Step::Flush { key: 0 }, load(0, IMAGE)]),
        (2, &[load(0, IMAGE), load(0, IMAGE), Step::Flush { key: 0 }]),
        (1, &[Step::Abandon { key: 0, sealed: false }, load(1, DIRECT), Step::Evict { key: 1 }]),
        (2, &[load(0, DIRECT), Step::Abandon { key: 0, sealed: true }, Step::Flush { key: 0 }]),
    ];
    let mut all = Counts::default();
    for (number, (disks, steps)) in runs.into_iter().enumerate() {
        let machine = Machine::new(disks, number as u64);
        let tape = record(&machine, [None; 2], 0, steps);
        let depth = Depth { all: 1500, drawn: 300, killed_every: 1 };
        let (_, counts) = search(&machine, &tape, depth, number as u64).unwrap();
        println!("{steps:?}: {counts:?}");
        all = sum(all, counts);
    }
    println!("power loss, small runs: {all:?}, {:?}", begun.elapsed());
}

fn sum(one: Counts, other: Counts) -> Counts {
    Counts { cuts: one.cuts + other.cuts, states: one.states + other.states, drawn: one.drawn + other.drawn }
}

/// The same for long runs as seeds have them. After some of the losses the cache goes on, and loses its power again.
#[test]
fn losses_of_long_runs_leave_slices_whole_or_absent() {
    let states_wanted = env("PELTON_CRASH_STATES").unwrap_or(10_000) as usize;
    let first = env("PELTON_CRASH_SEED").unwrap_or(0);
    let begun = Instant::now();
    let (states, cuts, runs) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let count = |counts: Counts| {
        cuts.fetch_add(counts.cuts, Ordering::Relaxed);
        states.fetch_add(counts.states, Ordering::Relaxed);
    };
    let run = |seed: u64| {
        let machine = Machine::new(1 + seed as usize % 2, seed);
        let steps = script::steps(seed, 14);
        let fail = |error: String| -> ! { panic!("PELTON_CRASH_SEED={seed}, {steps:?}: {error}") };
        let tape = record(&machine, [None; 2], 0, &steps);
        let depth = Depth { all: 8, drawn: 4, killed_every: 6 };
        let (samples, counts) = search(&machine, &tape, depth, seed).unwrap_or_else(|error| fail(error));
        count(counts);
        for (remnants, there) in samples.into_iter().take(2) {
            scan_on(&machine, &remnants, there);
            let next = machine.twin(seed);
            next.become_remnants(&remnants);
            let more = script::steps(!seed, 3);
            let more = [&[Step::Flush { key: 0 }, Step::Flush { key: 1 }][..], &more].concat();
            let tape = record(&next, there, 100, &more);
            let (_, counts) = search(&next, &tape, depth, seed)
                .unwrap_or_else(|error| fail(format!("after a loss, then {more:?}: {error}")));
            count(counts);
        }
    };
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while states.load(Ordering::Relaxed) < states_wanted {
                    run(first + next.fetch_add(1, Ordering::Relaxed) as u64);
                    runs.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!(
        "power loss, long runs: seeds {first}.., {runs:?} runs, {cuts:?} cuts, {states:?} states, {:?}",
        begun.elapsed()
    );
}

/// Each mistake that a commit or a flush might make is found by the same search.
#[test]
fn every_mistake_in_the_order_of_a_commit_is_found() {
    for mistake in Mistake::ALL {
        let machine = Machine::new(1, 3);
        machine.disks[0].with_mistake(mistake);
        let tape = record(&machine, [None; 2], 0, &[load(0, IMAGE), load(0, IMAGE), Step::Flush { key: 0 }]);
        let found = search(&machine, &tape, Depth { all: 200, drawn: 200, killed_every: 1 }, 1);
        let error = found.err().unwrap_or_else(|| panic!("{mistake:?} is not found"));
        println!("{mistake:?}: {error}");
    }
}

//! What the tender's decision over many snaps costs, beside sorting as many pairs of numbers.
//!
//! A decision that sorted all snaps once for each end would cost about as much as the limit for each. Ours looks at all
//! and sorts only what goes.
//!
//! | case | limit |
//! |---|---|
//! | decide, a tenth of the memory must go | sorting as many pairs of u64 |
//! | decide, half of the memory and of a spindle must go | the same |
//! | take the snapshot too, a tenth must go | the same |

use std::hint::black_box;
use std::io;

use pelton::tender::{Budgets, Candidate, Decision, History, Holds, Level, Marks, Snapshot, Ttls, decide};

use crate::Bench;
use crate::frame::{Answers, Case, Failure, Frame, Knobs, Pair, Stopwatch};

/// A decision is over in milliseconds: one run makes several.
const DECISIONS: usize = 8;
const SPINDLES: usize = 4;
const NOW_MS: u64 = 10 * 60 * 1000;

/// Snaps as a cache has them that was in use for ten minutes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TenderBench {
    snaps: usize,
}

impl TenderBench {
    pub(crate) fn new(knobs: &mut Knobs) -> TenderBench {
        let snaps = knobs.knob("tender_snaps", (1_000, 100_000));
        TenderBench { snaps: usize::try_from(snaps).expect("addresses have 64 bits") }
    }
}

impl Bench for TenderBench {
    fn run(&self, frame: &mut Frame) -> io::Result<()> {
        let (seed, snaps) = (frame.seed(), self.snaps);
        for (name, part, spindle_part, filling) in [
            ("decide, a tenth goes", 0.1, 0.0, Filling::Before),
            ("decide, half goes", 0.5, 0.5, Filling::Before),
            ("snapshot and decide, a tenth goes", 0.1, 0.0, Filling::Timed),
        ] {
            let case = Case {
                bench: "tender",
                name: name.to_owned(),
                against: "sorting pairs of u64",
                goal: Some(1.0 / 3.0),
                // Both sides take a few MiB anew in each run, as they do in life.
                fresh_bytes: 0,
                is_one_busy_thread: true,
            };
            frame.case(case, || Deciding::new(seed, snaps, part, spindle_part, filling))?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Filling {
    Before,
    Timed,
}

struct Deciding {
    pairs: Vec<(u64, u64)>,
    world: World,
    snapshot: Option<Snapshot>,
    budgets: Budgets,
    expected: Answers,
}

/// Each snap, and how many bytes it has on which spindle.
struct World {
    view_of: Vec<usize>,
    snaps: Vec<(Bare, [(usize, u64); 2])>,
}

/// A candidate without its view: that is a number of a snapshot.
#[derive(Clone, Copy)]
struct Bare {
    clock: u64,
    bytes: u64,
    history: History,
    leased: bool,
}

impl Deciding {
    fn new(
        seed: u64,
        count: usize,
        part: f64,
        spindle_part: f64,
        filling: Filling,
    ) -> Result<Deciding, Failure> {
        let mut state = seed;
        let mut draw = move |end: u64| {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) % end
        };
        let mut world = World { view_of: Vec::with_capacity(count), snaps: Vec::with_capacity(count) };
        let pairs = (0..count).map(|_| (draw(u64::MAX), draw(u64::MAX))).collect();
        for number in 0..count {
            let mut history = History::begin(draw(NOW_MS));
            (0..draw(4)).for_each(|_| history.query(draw(NOW_MS)));
            let bytes = (1 << 20) + draw(1 << 30);
            let spindle = draw(SPINDLES as u64) as usize;
            // Slices of a generation stand one after the other, and so do generations of a view.
            world.view_of.push(number / 64);
            let snap = Bare { clock: (number / 16 % 4) as u64, bytes, history, leased: draw(20) == 0 };
            world.snaps.push((snap, [(spindle, bytes / 2), ((spindle + 1) % SPINDLES, bytes - bytes / 2)]));
        }
        let snapshot = world.snapshot();
        let used: u64 = world.snaps.iter().map(|(snap, _)| snap.bytes).sum();
        let spindle_used: u64 = world
            .snaps
            .iter()
            .flat_map(|(_, shares)| shares)
            .filter(|(spindle, _)| *spindle == 0)
            .map(|(_, bytes)| *bytes)
            .sum();
        let roomy = |used| Level { used, marks: Marks::of(2 * used) };
        let tight = |used: u64, part: f64| {
            let low = used - (used as f64 * part) as u64;
            Level { used, marks: Marks::new(low, low, used).expect("they are in order") }
        };
        let mut spindles = vec![roomy(used); SPINDLES];
        if spindle_part > 0.0 {
            spindles[0] = tight(spindle_used, spindle_part);
        }
        let budgets = Budgets { memory: tight(used, part), spindles, stalled_percent: None };

        let mut deciding = Deciding {
            pairs,
            world,
            snapshot: (filling == Filling::Before).then_some(snapshot),
            budgets,
            expected: Answers { limit: 0, subject: 0 },
        };
        deciding.check()?;
        Ok(deciding)
    }

    /// Finds the answers on other roads: the pairs by their sum, the decision by what it must bring.
    fn check(&mut self) -> Result<(), Failure> {
        let decision = decide(&self.world.snapshot(), &self.budgets, NOW_MS);
        let freed: u64 = decision.commands.iter().map(|command| self.world.snaps[command.snap].0.bytes).sum();
        let Level { used, .. } = self.budgets.memory;
        if decision.memory_short > 0 || decision.commands.is_empty() || freed >= used {
            return Err(Failure::because("the decision does not free what it should"));
        }
        if decision.commands.iter().any(|command| self.world.snaps[command.snap].0.leased) {
            return Err(Failure::because("the decision takes what is leased"));
        }
        let smallest = self.pairs.iter().min().map_or(0, |pair| pair.0);
        let largest = self.pairs.iter().max().map_or(0, |pair| pair.0);
        let times = |answer: u64| answer.wrapping_mul(DECISIONS as u64);
        self.expected = Answers { limit: times(smallest ^ largest), subject: times(answer(&decision)) };
        Ok(())
    }
}

fn answer(decision: &Decision) -> u64 {
    decision.commands.iter().map(|command| command.snap as u64 + 1).sum()
}

impl World {
    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::with_capacity(self.snaps.len());
        let mut view = snapshot.view();
        for (number, (snap, shares)) in self.snaps.iter().enumerate() {
            if number > 0 && self.view_of[number] != self.view_of[number - 1] {
                view = snapshot.view();
            }
            let candidate = Candidate {
                view,
                clock: snap.clock,
                holds: Holds::Memory,
                image_bytes: snap.bytes,
                resident_bytes: 0,
                history: snap.history,
                arrived_ms: 0,
                ttls: Ttls::default(),
                durable: true,
                leased: snap.leased,
                pinned: false,
                busy: false,
            };
            snapshot.add(candidate, *shares);
        }
        snapshot
    }
}

impl Pair for Deciding {
    fn bytes(&self) -> u64 {
        (DECISIONS * self.pairs.len() * size_of::<(u64, u64)>()) as u64
    }

    fn expected(&self) -> Answers {
        self.expected
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let mut sum = 0u64;
        for _ in 0..DECISIONS {
            let mut pairs = black_box(self.pairs.clone());
            stopwatch.time(|| pairs.sort_unstable());
            if let (Some(first), Some(last)) = (pairs.first(), pairs.last()) {
                sum = sum.wrapping_add(first.0 ^ last.0);
            }
        }
        Ok(sum)
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let mut sum = 0u64;
        for _ in 0..DECISIONS {
            let decision = match &self.snapshot {
                Some(snapshot) => stopwatch.time(|| decide(black_box(snapshot), &self.budgets, NOW_MS)),
                None => stopwatch.time(|| decide(&black_box(&self.world).snapshot(), &self.budgets, NOW_MS)),
            };
            sum = sum.wrapping_add(answer(&decision));
        }
        Ok(sum)
    }
}

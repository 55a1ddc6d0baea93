//! Which order of eviction saves the most waiting: replay of traces, ours beside known ones.
//!
//! Five traces of queries, made from a seed, over snaps of 1 MiB to 1 GiB; each with a memory of five sizes. A query
//! of a snap that is not in memory brings it in; when memory is above its high mark, the order says what
//! goes until it is below the low one. Counted is how many queries found their snap in memory, and how much of
//! the waiting for reloads that saves, where a reload takes 10 ms and 1 ms for each MiB. To see the table:
//!
//! ```sh
//! PELTON_SEED=7 cargo test -p pelton-worker tender::replay -- --nocapture
//! ```

use std::collections::VecDeque;

use super::order::{History, rank};
use crate::units::MIB;

const SNAPS: usize = 1000;
const QUERIES: usize = 40_000;
const MEMORY_PERCENT: [u64; 5] = [5, 10, 20, 40, 80];

/// What the order is chosen for.
///
/// Goal: it saves the most waiting of all that don't know the future, in the mean of all traces and sizes, and
/// nowhere noticeably less than LRU. Method: replay.
#[test]
fn our_order_saves_the_most_waiting_in_the_mean_and_nowhere_less_than_lru() {
    let seed = std::env::var("PELTON_SEED").map_or(7, |seed| seed.parse().expect("PELTON_SEED is a number"));
    println!("seed {seed}, {SNAPS} snaps, {QUERIES} queries; hits % / waiting saved %");
    let mut saved_in_all = [0.0; RIVALS.len()];
    for trace in traces(seed) {
        let memory = MEMORY_PERCENT.map(|percent| format!("{percent:>4} %     "));
        println!("\n{:<10}{}", trace.name, memory.concat());
        let mut saved_by_lru = [0.0; MEMORY_PERCENT.len()];
        for (rival, (name, make)) in RIVALS.into_iter().enumerate() {
            print!("{name:<10}");
            for (size, percent) in MEMORY_PERCENT.into_iter().enumerate() {
                let high = trace.bytes() * percent / 100;
                let outcome = replay(&trace, high, &mut *make(&trace, high));
                print!("{:4.1} / {:4.1} ", 100.0 * outcome.hits, 100.0 * outcome.saved);
                saved_in_all[rival] += outcome.saved;
                match name {
                    "LRU" => saved_by_lru[size] = outcome.saved,
                    "ours" => assert!(
                        outcome.saved > saved_by_lru[size] - 0.005,
                        "{} with {percent} % of memory: ours {}, LRU {}",
                        trace.name,
                        outcome.saved,
                        saved_by_lru[size],
                    ),
                    _ => (),
                }
            }
            println!();
        }
    }
    let cells = 5.0 * MEMORY_PERCENT.len() as f64;
    println!("\nwaiting saved, mean of all:");
    for (rival, (name, _)) in RIVALS.into_iter().enumerate() {
        println!("{name:<10}{:4.1}", 100.0 * saved_in_all[rival] / cells);
    }
    let (ours, rivals) = (saved_in_all[OURS], saved_in_all.iter().zip(RIVALS).enumerate());
    for (_, (saved, (name, _))) in rivals.filter(|(rival, _)| ![OURS, FORESIGHT].contains(rival)) {
        assert!(ours > *saved, "{name} saves more than ours");
    }
}

type Make = fn(&Trace, u64) -> Box<dyn Order>;

const OURS: usize = 1;
const FORESIGHT: usize = 6;
/// LRU runs first: ours is compared with it.
const RIVALS: [(&str, Make); 7] = [
    ("LRU", |trace, _| Box::new(Lru(vec![0; trace.bytes_of.len()]))),
    ("ours", |trace, _| Box::new(Ours(vec![History::begin(0); trace.bytes_of.len()]))),
    ("LRU-2", |trace, _| Box::new(Lru2(vec![(0, 0); trace.bytes_of.len()]))),
    ("SIEVE", |_, _| Box::new(Sieve::default())),
    ("S3-FIFO", |trace, high| Box::new(S3Fifo::new(trace, high))),
    ("GDSF", |trace, _| Box::new(Gdsf { of: vec![(0.0, 0.0); trace.bytes_of.len()], clock: 0.0 })),
    ("foresight", |trace, _| Box::new(Foresight::new(trace))),
];

struct Outcome {
    hits: f64,
    saved: f64,
}

/// Runs a trace through a memory with a high mark, and a low mark at nine tenths of it.
fn replay(trace: &Trace, high: u64, order: &mut dyn Order) -> Outcome {
    let low = high / 10 * 9;
    let mut resident: Vec<usize> = Vec::new();
    let mut place_of = vec![None; trace.bytes_of.len()];
    let (mut used, mut hits, mut waited, mut waited_without) = (0, 0, 0.0, 0.0);
    for &(now_ms, snap) in &trace.queries {
        let bytes = trace.bytes_of[snap];
        let hit = place_of[snap].is_some();
        waited_without += reload_ms(bytes);
        if hit {
            hits += 1;
        } else {
            waited += reload_ms(bytes);
            place_of[snap] = Some(resident.len());
            resident.push(snap);
            used += bytes;
        }
        order.query(snap, bytes, hit, now_ms);
        // What is being scanned is leased.
        let keep = if used > high { low } else { high };
        while used > keep && resident.len() > 1 {
            let gone = order.first_to_go(&resident, &trace.bytes_of, snap, now_ms);
            let place = place_of[gone].take().expect("only what is there can go");
            resident.swap_remove(place);
            if let Some(moved) = resident.get(place) {
                place_of[*moved] = Some(place);
            }
            used -= trace.bytes_of[gone];
        }
    }
    Outcome { hits: f64::from(hits) / trace.queries.len() as f64, saved: 1.0 - waited / waited_without }
}

fn reload_ms(bytes: u64) -> f64 {
    10.0 + bytes as f64 / MIB as f64
}

/// Decides what goes. Most do it by a worth: the least goes.
trait Order {
    fn query(&mut self, snap: usize, bytes: u64, hit: bool, now_ms: u64);

    fn worth(&self, _snap: usize, _bytes: u64, _now_ms: u64) -> f64 {
        unreachable!("only those by worth ask")
    }

    fn gone(&mut self, _worth: f64) {}

    fn first_to_go(&mut self, resident: &[usize], bytes_of: &[u64], leased: usize, now_ms: u64) -> usize {
        let worths = resident.iter().filter(|snap| **snap != leased);
        let worths = worths.map(|snap| (self.worth(*snap, bytes_of[*snap], now_ms), *snap));
        let (worth, snap) = worths.min_by(|a, b| a.0.total_cmp(&b.0)).expect("the leased one is not alone");
        self.gone(worth);
        snap
    }
}

struct Ours(Vec<History>);

impl Order for Ours {
    fn query(&mut self, snap: usize, _: u64, _: bool, now_ms: u64) {
        self.0[snap].query(now_ms);
    }

    fn worth(&self, snap: usize, bytes: u64, now_ms: u64) -> f64 {
        f64::from_bits(rank(&self.0[snap], bytes, true, now_ms))
    }
}

/// The last query counts.
struct Lru(Vec<u64>);

impl Order for Lru {
    fn query(&mut self, snap: usize, _: u64, _: bool, now_ms: u64) {
        self.0[snap] = now_ms;
    }

    fn worth(&self, snap: usize, _: u64, _: u64) -> f64 {
        self.0[snap] as f64
    }
}

/// The last query but one counts, remembered also for what is gone; where there is none, the last.
struct Lru2(Vec<(u64, u64)>);

impl Order for Lru2 {
    fn query(&mut self, snap: usize, _: u64, _: bool, now_ms: u64) {
        self.0[snap] = (now_ms, self.0[snap].0);
    }

    fn worth(&self, snap: usize, _: u64, now_ms: u64) -> f64 {
        let (last, last_but_one) = self.0[snap];
        last_but_one as f64 + last as f64 / (now_ms + 1) as f64
    }
}

/// A queue by arrival; a hand goes round, and takes the first that was not asked for since it came by.
#[derive(Default)]
struct Sieve {
    queue: Vec<(usize, bool)>,
    hand: usize,
}

impl Order for Sieve {
    fn query(&mut self, snap: usize, _: u64, hit: bool, _: u64) {
        if hit {
            self.queue.iter_mut().filter(|entry| entry.0 == snap).for_each(|entry| entry.1 = true);
        } else {
            self.queue.push((snap, false));
        }
    }

    fn first_to_go(&mut self, _: &[usize], _: &[u64], leased: usize, _: u64) -> usize {
        loop {
            if self.hand >= self.queue.len() {
                self.hand = 0;
            }
            let (snap, visited) = &mut self.queue[self.hand];
            if *snap != leased && !*visited {
                return self.queue.remove(self.hand).0;
            }
            *visited &= *snap == leased;
            self.hand += 1;
        }
    }
}

/// A small queue for what is new, a main one for what was asked for again, and the names of what went.
struct S3Fifo {
    bytes_of: Vec<u64>,
    high: u64,
    small: VecDeque<usize>,
    small_bytes: u64,
    main: VecDeque<usize>,
    ghosts: VecDeque<usize>,
    ghost_bytes: u64,
    asked: Vec<u8>,
}

impl S3Fifo {
    fn new(trace: &Trace, high: u64) -> S3Fifo {
        S3Fifo {
            bytes_of: trace.bytes_of.clone(),
            high,
            small: VecDeque::new(),
            small_bytes: 0,
            main: VecDeque::new(),
            ghosts: VecDeque::new(),
            ghost_bytes: 0,
            asked: vec![0; trace.bytes_of.len()],
        }
    }
}

impl Order for S3Fifo {
    fn query(&mut self, snap: usize, bytes: u64, hit: bool, _: u64) {
        if hit {
            self.asked[snap] = 3.min(self.asked[snap] + 1);
            return;
        }
        self.asked[snap] = 0;
        if let Some(place) = self.ghosts.iter().position(|ghost| *ghost == snap) {
            self.ghosts.remove(place);
            self.ghost_bytes -= bytes;
            self.main.push_back(snap);
        } else {
            self.small.push_back(snap);
            self.small_bytes += bytes;
        }
    }

    fn first_to_go(&mut self, _: &[usize], _: &[u64], leased: usize, _: u64) -> usize {
        let others = |queue: &VecDeque<usize>| queue.iter().any(|snap| *snap != leased);
        loop {
            let from_small = self.small_bytes > self.high / 10 || !others(&self.main);
            if from_small && others(&self.small) {
                let snap = self.small.pop_front().expect("there are others");
                if snap == leased {
                    self.small.push_back(snap);
                    continue;
                }
                self.small_bytes -= self.bytes_of[snap];
                if self.asked[snap] > 1 {
                    self.asked[snap] = 0;
                    self.main.push_back(snap);
                    continue;
                }
                self.ghosts.push_back(snap);
                self.ghost_bytes += self.bytes_of[snap];
                while self.ghost_bytes > self.high / 10 * 9 {
                    let forgotten = self.ghosts.pop_front().expect("bytes are of ghosts");
                    self.ghost_bytes -= self.bytes_of[forgotten];
                }
                return snap;
            }
            let snap = self.main.pop_front().expect("the leased one is not alone");
            if snap == leased || self.asked[snap] > 0 {
                self.asked[snap] = self.asked[snap].saturating_sub(1);
                self.main.push_back(snap);
            } else {
                return snap;
            }
        }
    }
}

/// Queries times cost over size, on a clock that moves on with what goes.
struct Gdsf {
    of: Vec<(f64, f64)>,
    clock: f64,
}

impl Order for Gdsf {
    fn query(&mut self, snap: usize, bytes: u64, hit: bool, _: u64) {
        let (queries, worth) = &mut self.of[snap];
        *queries = if hit { *queries + 1.0 } else { 1.0 };
        *worth = self.clock + *queries * reload_ms(bytes) / bytes as f64;
    }

    fn worth(&self, snap: usize, _: u64, _: u64) -> f64 {
        self.of[snap].1
    }

    fn gone(&mut self, worth: f64) {
        self.clock = worth;
    }
}

/// Knows when the next query comes: what nobody can reach. Not the very best possible, as sizes differ.
struct Foresight {
    moments: Vec<VecDeque<u64>>,
}

impl Foresight {
    fn new(trace: &Trace) -> Foresight {
        let mut moments = vec![VecDeque::new(); trace.bytes_of.len()];
        trace.queries.iter().for_each(|(now_ms, snap)| moments[*snap].push_back(*now_ms));
        Foresight { moments }
    }
}

impl Order for Foresight {
    fn query(&mut self, snap: usize, _: u64, _: bool, _: u64) {
        self.moments[snap].pop_front();
    }

    fn worth(&self, snap: usize, bytes: u64, now_ms: u64) -> f64 {
        let wait = self.moments[snap].front().map_or(f64::INFINITY, |next| (next - now_ms) as f64);
        reload_ms(bytes) / bytes as f64 / (wait + 1.0)
    }
}

/// Queries in order of time, about one a second, and the size of each snap.
struct Trace {
    name: &'static str,
    bytes_of: Vec<u64>,
    queries: Vec<(u64, usize)>,
}

impl Trace {
    /// Of all that is asked for at some time.
    fn bytes(&self) -> u64 {
        let mut is_asked = vec![false; self.bytes_of.len()];
        self.queries.iter().for_each(|(_, snap)| is_asked[*snap] = true);
        self.bytes_of.iter().zip(is_asked).filter(|(_, asked)| *asked).map(|(bytes, _)| *bytes).sum()
    }
}

fn traces(seed: u64) -> [Trace; 5] {
    let mut dice = Dice(seed);
    let popularity = Popularity::new(SNAPS, 0.9);
    let mut trace = |name, snaps, draw: fn(&mut Dice, &Popularity) -> Vec<usize>| {
        // Sizes over ten powers of two, each power as likely as the other.
        let bytes_of = (0..snaps).map(|_| (MIB as f64 * 2f64.powf(10.0 * dice.unit())) as u64).collect();
        let mut drawn = draw(&mut dice, &popularity);
        drawn.truncate(QUERIES);
        let mut now_ms = 0;
        let queries = drawn.into_iter().map(|snap| {
            now_ms += 1 + (-1000.0 * (1.0 - dice.unit()).ln()) as u64;
            (now_ms, snap)
        });
        Trace { name, bytes_of, queries: queries.collect() }
    };
    [
        // Few are asked for often.
        trace("Zipf", SNAPS, |dice, popularity| {
            let names = dice.shuffled(SNAPS);
            (0..QUERIES).map(|_| names[popularity.draw(dice)]).collect()
        }),
        // All in turn, again and again.
        trace("loop", SNAPS, |dice, _| {
            let names = dice.shuffled(SNAPS);
            (0..QUERIES).map(|turn| names[turn % SNAPS]).collect()
        }),
        // Few are asked for often; now and then somebody reads 700 others, one after the other.
        trace("scan-mix", 3 * SNAPS, |dice, popularity| {
            let names = dice.shuffled(SNAPS);
            let mut queries = Vec::new();
            let mut others = (SNAPS..3 * SNAPS).cycle();
            while queries.len() < QUERIES {
                queries.extend((0..3000).map(|_| names[popularity.draw(dice)]));
                queries.extend(others.by_ref().take(700));
            }
            queries
        }),
        // Few are asked for often, and every 8000 queries it is others.
        trace("shift", SNAPS, |dice, popularity| {
            let mut queries = Vec::new();
            while queries.len() < QUERIES {
                let names = dice.shuffled(SNAPS);
                queries.extend((0..8000).map(|_| names[popularity.draw(dice)]));
            }
            queries
        }),
        // Who asks for one asks for it one to six times in a row.
        trace("bursts", SNAPS, |dice, popularity| {
            let names = dice.shuffled(SNAPS);
            let mut queries = Vec::new();
            while queries.len() < QUERIES {
                let snap = names[popularity.draw(dice)];
                queries.extend(std::iter::repeat_n(snap, 1 + dice.below(6)));
            }
            queries
        }),
    ]
}

/// The n-th is asked for as often as 1 over a power of n.
struct Popularity {
    sums: Vec<f64>,
}

impl Popularity {
    fn new(count: usize, power: f64) -> Popularity {
        let mut sum = 0.0;
        let sums = (1..=count).map(|n| {
            sum += (n as f64).powf(-power);
            sum
        });
        Popularity { sums: sums.collect() }
    }

    fn draw(&self, dice: &mut Dice) -> usize {
        let drawn = dice.unit() * self.sums[self.sums.len() - 1];
        self.sums.partition_point(|sum| *sum <= drawn).min(self.sums.len() - 1)
    }
}

/// SplitMix64: the same numbers everywhere for a seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to less than 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }

    fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            numbers.swap(last, self.below(last + 1));
        }
        numbers
    }
}

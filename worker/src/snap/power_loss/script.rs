//! What a cache is made to do while its disks are watched.

use std::time::Duration;

use pelton_region_format::{Fingerprint, Key};

use super::tape::{Entry, Machine, Tape, There};
use crate::cache::{Cache, Want};
use crate::events::{Event, Events};
use crate::slice::parcel::ParcelBuilder;
use crate::slice::plan::{Durability, LoadPlan, WritePath};
use crate::spindle::engine::sim::Rng;

/// One thing to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Loads a slice anew, with its next fingerprint.
    Load {
        key: usize,
        path: WritePath,
        durability: Durability,
    },
    /// The same for both keys at once.
    LoadBoth,
    /// Begins a load and drops it, before it is sealed or after.
    Abandon {
        key: usize,
        sealed: bool,
    },
    Flush {
        key: usize,
    },
    Evict {
        key: usize,
    },
    /// Brings it into memory, and compares.
    Scan {
        key: usize,
    },
    Sync,
}

pub(super) const IMAGE: WritePath = WritePath::Image;
pub(super) const DIRECT: WritePath = WritePath::Direct;

/// A load that is waited for.
pub(super) fn load(key: usize, path: WritePath) -> Step {
    Step::Load { key, path, durability: Durability::Wait }
}

/// Steps as a seed has them.
pub(super) fn steps(seed: u64, count: usize) -> Vec<Step> {
    let mut rng = Rng(seed);
    let step = |_| {
        let key = rng.below(2) as usize;
        let path = if rng.coin() { IMAGE } else { DIRECT };
        match rng.below(16) {
            0..4 => load(key, path),
            4..7 => Step::Load { key, path, durability: Durability::Background },
            7 => Step::LoadBoth,
            8 => Step::Abandon { key, sealed: rng.coin() },
            9..12 => Step::Flush { key },
            12 => Step::Evict { key },
            13..15 => Step::Scan { key },
            _ => Step::Sync,
        }
    };
    (0..count).map(step).collect()
}

pub(super) fn key(number: usize) -> Key {
    format!("power/loss@{}#0", number + 1).parse().unwrap()
}

pub(super) fn fingerprint(load: u8) -> Fingerprint {
    Fingerprint::from_bytes([load; 32])
}

/// Blobs that tell whose they are, in the order in which they are loaded. Some loads have none.
pub(super) fn blobs(key: &Key, load: u8) -> Vec<Vec<u8>> {
    let mut rng = Rng(u64::from(load));
    let count = if load % 9 == 7 { 0 } else { 1 + rng.below(3) };
    let blob = |number| {
        let mark = format!("{key} load {load} blob {number} ").into_bytes();
        let length = 20 + rng.below(if load.is_multiple_of(3) { 6000 } else { 300 });
        mark.into_iter().cycle().take(length as usize).collect()
    };
    (0..count).map(blob).collect()
}

/// A cache that tells a tape what it promises.
pub(super) struct Player {
    cache: Cache,
    events: Events,
    tape: Tape,
    /// The last load, of all keys: fingerprints are never used twice.
    last_load: u8,
    /// What a scan must find.
    there: [There; 2],
}

impl Player {
    /// Opens the machine's disks, on which these slices are.
    pub(super) fn new(machine: &Machine, tape: &Tape, there: [There; 2], last_load: u8) -> Player {
        for (number, there) in there.iter().enumerate() {
            tape.note(Entry::Begun { key: key(number), there: *there });
            tape.note(Entry::Done { key: key(number), there: *there });
        }
        machine.record(tape);
        let cache = machine.open();
        Player { events: cache.events(), cache, tape: tape.clone(), last_load, there }
    }

    pub(super) fn play(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(*step);
            self.listen();
        }
    }

    /// Ends all, and waits for what is on its way.
    pub(super) fn finish(mut self) {
        self.cache.sync(None).unwrap();
        self.listen();
        self.cache.close(None).unwrap();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Load { key, path, durability } => {
                let load = self.begin(key);
                run_load(&self.cache, key, load, path, durability);
                // Without an image somebody must wait; without any blob there is nothing to have an image of.
                let waits = path == DIRECT && !blobs(&self::key(key), load).is_empty();
                if durability == Durability::Wait || waits {
                    self.done(key, Some(load));
                }
                self.there[key] = Some(load);
            }
            Step::LoadBoth => {
                let loads = [self.begin(0), self.begin(1)];
                std::thread::scope(|scope| {
                    for (key, load) in loads.into_iter().enumerate() {
                        let player = &*self;
                        scope.spawn(move || {
                            run_load(&player.cache, key, load, IMAGE, Durability::Wait);
                            player.done(key, Some(load));
                        });
                    }
                });
                self.there = loads.map(Some);
            }
            Step::Abandon { key, sealed } => {
                let load = self.begin(key);
                let writer = open_load(&self.cache, key, load, IMAGE, Durability::Wait);
                if sealed {
                    drop(writer.wait_for_writes().unwrap());
                } else {
                    drop(writer);
                }
                self.tape.note(Entry::Failed { key: self::key(key), there: Some(load) });
            }
            Step::Flush { key } => {
                self.tape.note(Entry::Begun { key: self::key(key), there: None });
                self.cache.snap(&self::key(key)).flush(None).unwrap();
                self.done(key, None);
                self.there[key] = None;
            }
            Step::Evict { key } => drop(self.cache.snap(&self::key(key)).evict()),
            Step::Scan { key } => assert_there(&self.cache, key, self.there[key]),
            Step::Sync => self.cache.sync(Some(std::time::Instant::now() + Duration::from_secs(60))).unwrap(),
        }
        if let Step::Sync = step {
            for number in 0..2 {
                self.done(number, self.there[number]);
            }
        }
    }

    fn begin(&mut self, key: usize) -> u8 {
        self.last_load += 1;
        self.tape.note(Entry::Begun { key: self::key(key), there: Some(self.last_load) });
        self.last_load
    }

    fn done(&self, key: usize, there: There) {
        self.tape.note(Entry::Done { key: self::key(key), there });
    }

    /// Notes the promises that come as events, those that another has overtaken excepted.
    fn listen(&mut self) {
        while let Some(event) = self.events.try_recv() {
            if let Event::Durable { key, fingerprint: found, .. } = event {
                let is_it = |number: &usize| {
                    self::key(*number) == key
                        && self.there[*number].is_some_and(|load| fingerprint(load) == found)
                };
                if let Some(number) = (0..2).find(is_it) {
                    self.done(number, self.there[number]);
                }
            }
        }
    }
}

fn open_load(
    cache: &Cache,
    key: usize,
    load: u8,
    path: WritePath,
    durability: Durability,
) -> crate::SliceWriter {
    let key = self::key(key);
    let mut plan = LoadPlan::new(fingerprint(load));
    plan.regions = Some(1 + u32::from(load % 2));
    (plan.write_path, plan.durability) = (path, durability);
    let writer = cache.snap(&key).open_for_writes(plan).unwrap();
    for blob in blobs(&key, load) {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&blob).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    writer
}

fn run_load(cache: &Cache, key: usize, load: u8, path: WritePath, durability: Durability) {
    let writer = open_load(cache, key, load, path, durability);
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

/// Leases and scans a slice: it must be this one.
pub(super) fn assert_there(cache: &Cache, number: usize, there: There) {
    let key = key(number);
    let lease = cache.lease(&key, Want::Latest, None);
    let Some(load) = there else {
        assert!(matches!(lease, Err(crate::LeaseError::NotThere { .. })), "{key} is there");
        return;
    };
    let lease = lease.unwrap();
    let collect = |blobs: &mut crate::Blobs<'_>, all: &mut Vec<Vec<u8>>| {
        while let Some(blob) = blobs.next()? {
            all.push(blob.to_vec());
        }
        Ok(())
    };
    let join = |mut all: Vec<Vec<u8>>, more| {
        all.extend(more);
        all
    };
    let mut found = lease.scan(collect, join).unwrap();
    let mut expected = blobs(&key, load);
    found.sort();
    expected.sort();
    assert!(found == expected, "{key} is not load {load}");
}

//! What a run of the cache did to its disks, and what it promised meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pelton_region_format::Key;

use crate::builder::CacheBuilder;
use crate::cache::Cache;
use crate::spindle::engine::sim::SimDisk;
use crate::spindle::engine::sim::cut::{Cut, Remnant};
use crate::spindle::health::HealthLimits;
use crate::spindle::identity::IDENTITY_FILE;

/// What is there of a key: the slice of this load, or nothing.
pub(super) type There = Option<u8>;

/// One thing that happened, in the order of all threads and disks.
pub(super) enum Entry {
    /// A disk has changed.
    Cut { disk: usize, cut: Arc<Cut> },
    /// From here on this may be there, beside what might be there before.
    Begun { key: Key, there: There },
    /// This was promised to be there, until something else begins.
    Done { key: Key, there: There },
    /// This will not come any more.
    Failed { key: Key, there: There },
}

/// Everything that happened.
#[derive(Clone, Default)]
pub(super) struct Tape(Arc<Mutex<Vec<Entry>>>);

impl Tape {
    pub(super) fn note(&self, entry: Entry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    pub(super) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What may be there of each key, by the promises so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Promises {
    /// For each key what may be there, and when that was begun.
    may: BTreeMap<Key, BTreeMap<There, usize>>,
    entries: usize,
}

impl Promises {
    pub(super) fn hear(&mut self, entry: &Entry) {
        self.entries += 1;
        let nothing = || BTreeMap::from([(None, 0)]);
        match entry {
            Entry::Cut { .. } => {}
            Entry::Begun { key, there } => {
                self.may.entry(key.clone()).or_insert_with(nothing).insert(*there, self.entries);
            }
            Entry::Done { key, there } => {
                let may = self.may.get_mut(key).expect("what is done was begun");
                let since = *may.get(there).expect("what is done was begun");
                may.retain(|_, begun| *begun >= since);
            }
            Entry::Failed { key, there } => {
                self.may.get_mut(key).expect("what fails was begun").remove(there);
            }
        }
    }

    /// Nothing but these from here on.
    pub(super) fn settle(&mut self, there: impl Iterator<Item = (Key, There)>) {
        self.may = there.map(|(key, there)| (key, BTreeMap::from([(there, 0)]))).collect();
    }

    /// Whether this is what may be there.
    pub(super) fn allow(&self, key: &Key, there: There) -> bool {
        self.may.get(key).map_or(there.is_none(), |may| may.contains_key(&there))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.may.keys()
    }

    pub(super) fn of(&self, key: &Key) -> Vec<There> {
        self.may.get(key).map(|may| may.keys().copied().collect()).unwrap_or_default()
    }
}

/// Disks, and the folders that hold the identities of their spindles. All else is in the disks.
pub(super) struct Machine {
    folder: tempfile::TempDir,
    pub(super) disks: Vec<SimDisk>,
}

impl Machine {
    pub(super) fn new(disks: usize, seed: u64) -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let disks = (0..disks).map(|disk| {
            SimDisk::healthy(Machine::path(folder.path(), disk), seed.wrapping_mul(31) + disk as u64)
        });
        Machine { disks: disks.collect(), folder }
    }

    /// Another machine that takes this one's disks to be its own.
    pub(super) fn twin(&self, seed: u64) -> Machine {
        let twin = Machine::new(self.disks.len(), seed);
        for disk in 0..self.disks.len() {
            let folder = Machine::path(twin.folder.path(), disk);
            std::fs::create_dir(&folder).unwrap();
            let identity = Machine::path(self.folder.path(), disk).join(IDENTITY_FILE);
            std::fs::copy(identity, folder.join(IDENTITY_FILE)).unwrap();
        }
        twin
    }

    pub(super) fn become_remnants(&self, remnants: &[Remnant]) {
        self.disks.iter().zip(remnants).for_each(|(disk, remnant)| disk.become_remnant(remnant));
    }

    pub(super) fn spindle(&self, disk: usize) -> PathBuf {
        Machine::path(self.folder.path(), disk)
    }

    fn path(folder: &Path, disk: usize) -> PathBuf {
        folder.join(format!("spindle-{disk}"))
    }

    /// Tells the tape each cut from now on.
    pub(super) fn record(&self, tape: &Tape) {
        for (disk, sim) in self.disks.iter().enumerate() {
            tape.note(Entry::Cut { disk, cut: Arc::new(sim.cut()) });
            let tape = tape.clone();
            let observer = move |cut| tape.note(Entry::Cut { disk, cut: Arc::new(cut) });
            sim.observed_by(Some(Arc::new(observer)));
        }
    }

    pub(super) fn stop_recording(&self) {
        self.disks.iter().for_each(|disk| disk.observed_by(None));
    }

    pub(super) fn open(&self) -> Cache {
        let mut config = crate::Config::default();
        (config.scan_threads, config.pin, config.free_floor) = (Some(1), Some(false), Some(0));
        config.depth = Some(8);
        let builder = CacheBuilder::from_config(config).memory(256 << 20);
        let spindles = 0..self.disks.len();
        let builder = spindles.fold(builder, |builder, disk| builder.spindle(self.spindle(disk), 1 << 30));
        builder.open_on(self.disks.clone(), HealthLimits::default()).unwrap()
    }
}

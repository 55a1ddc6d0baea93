//! Starts on what a power loss has left, and compares what it finds with what was promised.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pelton_region_format::{Key, RegionView};

use super::script::{assert_there, blobs, fingerprint, key};
use super::tape::{Entry, Machine, Promises, Tape, There};
use crate::snap::commit::{LOADS, MANIFESTS};
use crate::snap::manifest::Manifest;
use crate::snap::recovery::start;
use crate::spindle::engine::EngineKind;
use crate::spindle::engine::sim::Rng;
use crate::spindle::engine::sim::cut::{Cut, Remnant};
use crate::spindle::health::HealthLimits;
use crate::spindle::held::{Spindle, SpindlePlan};
use crate::spindle::identity::NetworkFolders;

/// A machine that starts again and again.
pub(super) struct Checker {
    machine: Machine,
    spindles: Vec<Arc<Spindle>>,
}

impl Checker {
    pub(super) fn new(of: &Machine) -> Checker {
        let machine = of.twin(1);
        let plan = |disk: usize| SpindlePlan {
            impellers: 1,
            depth: Some(8),
            queue_bytes_max: 1 << 20,
            engine: EngineKind::Sim(machine.disks[disk].clone()),
            network: NetworkFolders::Refuse,
            health: HealthLimits::default(),
            registrar: crate::stats::recorder::Registrar::default(),
        };
        let open = |disk| Arc::new(Spindle::open(disk, &machine.spindle(disk), &plan(disk)).unwrap());
        let spindles = (0..machine.disks.len()).map(open).collect();
        Checker { machine, spindles }
    }

    /// Starts, and answers what is there, or what is wrong. Then loses the power once more.
    pub(super) fn start_on(
        &self,
        remnants: &[Remnant],
        promises: &Promises,
        seed: u64,
    ) -> Result<[There; 2], String> {
        self.machine.become_remnants(remnants);
        let slices = self.start()?;
        self.compare(&slices, promises)?;
        // What the start itself has removed may come back, and must change nothing.
        let mut rng = Rng(seed);
        let again: Vec<Remnant> =
            self.machine.disks.iter().map(|disk| disk.cut().remnant(&mut rng)).collect();
        self.machine.become_remnants(&again);
        let slices_again = self.start().map_err(|error| format!("at the second start: {error}"))?;
        if slices != slices_again {
            return Err("another start finds other slices".to_owned());
        }
        self.nothing_is_left_over(&slices).map_err(|error| format!("at the second start: {error}"))?;
        let load = |manifest: &Manifest| manifest.fingerprint.as_bytes()[0];
        Ok([0, 1].map(|number| slices.get(&key(number)).map(load)))
    }

    /// Starts where a process was killed at these cuts, and loses the power at each operation of that start, and
    /// after it. Answers at how many states.
    pub(super) fn start_where_killed(
        &self,
        cuts: &[Arc<Cut>],
        promises: &Promises,
        seed: u64,
    ) -> Result<usize, String> {
        self.machine.disks.iter().zip(cuts).for_each(|(disk, cut)| disk.become_cut(cut));
        let tape = Tape::default();
        self.machine.record(&tape);
        let slices = self.start();
        self.machine.stop_recording();
        let slices = slices?;
        self.compare(&slices, promises).map_err(|error| format!("where it was killed: {error}"))?;
        let (mut promises, mut rng, mut states) = (promises.clone(), Rng(seed), 0);
        let mut now: Vec<Option<Arc<Cut>>> = vec![None; cuts.len()];
        let tape = tape.take();
        for (number, entry) in tape.iter().enumerate() {
            let Entry::Cut { disk, cut } = entry else { continue };
            now[*disk] = Some(cut.clone());
            let Some(cuts) = now.iter().cloned().collect::<Option<Vec<Arc<Cut>>>>() else { continue };
            if number + 1 == tape.len() {
                // What a start has told is there stays there.
                let keys: Vec<Key> = promises.keys().cloned().collect();
                let load = |manifest: &Manifest| manifest.fingerprint.as_bytes()[0];
                promises.settle(keys.into_iter().map(|key| {
                    let there = slices.get(&key).map(load);
                    (key, there)
                }));
            }
            for _ in 0..2 {
                let remnants: Vec<Remnant> = cuts.iter().map(|cut| cut.remnant(&mut rng)).collect();
                let place = |error| format!("killed, power lost at operation {number} of the start: {error}");
                self.start_on(&remnants, &promises, rng.next()).map_err(place)?;
                states += 1;
            }
        }
        Ok(states)
    }

    fn compare(&self, slices: &BTreeMap<Key, Manifest>, promises: &Promises) -> Result<(), String> {
        if let Some(key) = slices.keys().find(|key| !promises.keys().any(|known| known == *key)) {
            return Err(format!("{key} was never loaded"));
        }
        for key in promises.keys() {
            let there = match slices.get(key) {
                None => None,
                Some(manifest) => Some(self.load_of(manifest)?),
            };
            if !promises.allow(key, there) {
                let may = promises.of(key);
                return Err(format!("{key}: found {there:?}, may be {may:?} (None is nothing)"));
            }
        }
        self.nothing_is_left_over(slices)
    }

    fn start(&self) -> Result<BTreeMap<Key, Manifest>, String> {
        let recovered = start(&self.spindles).map_err(|error| format!("the start fails: {error}"))?;
        // What was never finished, or was replaced, is dropped. A manifest whose regions are not there is a commit or
        // a flush in the wrong order, also if the start can put that right.
        let report = recovered.report;
        let is_expected = |why: &str| why == "it was never finished" || why.ends_with("has replaced it");
        if let Some((path, why)) = report.dropped.iter().find(|(_, why)| !is_expected(why)) {
            return Err(format!("{} is dropped: {why}", path.display()));
        }
        if let Some((path, why)) = report.left_alone.first() {
            return Err(format!("{} is left alone: {why}", path.display()));
        }
        Ok(recovered.slices)
    }

    /// Reads all of a slice: which load it is.
    fn load_of(&self, manifest: &Manifest) -> Result<u8, String> {
        let key = &manifest.key;
        let load = manifest.fingerprint.as_bytes()[0];
        if manifest.fingerprint != fingerprint(load) {
            return Err(format!("{key} has a fingerprint of no load"));
        }
        let mut found = Vec::new();
        for region in &manifest.regions {
            let damaged = |what: String| format!("{key}, load {load}, {}: {what}", region.path);
            let uuid = manifest.spindles[region.spindle as usize];
            let disk = self.spindles.iter().position(|spindle| spindle.uuid == uuid);
            let disk = &self.machine.disks[disk.ok_or_else(|| damaged("no such spindle".to_owned()))?];
            let bytes = disk.bytes_of(&region.path).ok_or_else(|| damaged("it is not there".to_owned()))?;
            let view = RegionView::open(&bytes).map_err(|error| damaged(error.to_string()))?;
            view.verify().map_err(|error| damaged(error.to_string()))?;
            let header = view.frame().expect("ours are of version 2").header();
            if header.key.as_ref() != Some(key) || header.fingerprint != Some(manifest.fingerprint) {
                return Err(damaged("it is another slice's".to_owned()));
            }
            let mut cursor = view.blobs();
            while let Some(blob) = cursor.next().map_err(|error| damaged(error.to_string()))? {
                found.push(blob.to_vec());
            }
        }
        let mut expected = blobs(key, load);
        found.sort();
        expected.sort();
        if found != expected {
            return Err(format!("{key}, load {load}: it has other blobs"));
        }
        Ok(load)
    }

    fn nothing_is_left_over(&self, slices: &BTreeMap<Key, Manifest>) -> Result<(), String> {
        for (disk, spindle) in self.machine.disks.iter().zip(&self.spindles) {
            let mut named: BTreeSet<PathBuf> = [MANIFESTS, LOADS].map(PathBuf::from).into();
            for (key, manifest) in slices {
                if manifest.spindles[0] == spindle.uuid {
                    named.insert(Path::new(MANIFESTS).join(Manifest::file_name(key)));
                }
                for region in &manifest.regions {
                    if manifest.spindles[region.spindle as usize] == spindle.uuid {
                        let path = PathBuf::from(&region.path);
                        named.insert(path.parent().unwrap().to_owned());
                        named.insert(path);
                    }
                }
            }
            // Advice, which may be there or not.
            let log = PathBuf::from("access-log");
            let there: BTreeSet<PathBuf> = disk.tree().into_iter().filter(|path| *path != log).collect();
            if there != named {
                let left: Vec<_> = there.difference(&named).collect();
                let missing: Vec<_> = named.difference(&there).collect();
                return Err(format!("left over: {left:?}; missing: {missing:?}"));
            }
        }
        Ok(())
    }
}

/// Opens the whole cache there, and scans.
pub(super) fn scan_on(machine: &Machine, remnants: &[Remnant], there: [There; 2]) {
    let machine = machine.twin(2);
    machine.become_remnants(remnants);
    let cache = machine.open();
    for (number, there) in there.into_iter().enumerate() {
        assert_there(&cache, number, there);
    }
    cache.close(None).unwrap();
}

//! Takes all snaps of a cache down for the decider.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::policy::{Candidate, Holds, Snapshot, ViewNumber};
use super::rules::Rules;
use crate::budget::ledger::DISK_PAGE_BYTES;
use crate::cache::{CacheCore, Entry};
use crate::snap::hot::{HotSlice, RegionBytes};
use crate::snap::manifest::Manifest;
use crate::spindle::identity::SpindleUuid;

/// What of a mapped region counts as memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// What was taken of the budget for it: all of it. That is what comes free for a load.
    Granted,
    /// What of it is in memory, by the kernel: that is what the machine lacks. Costs a system call for each region.
    Resident,
}

/// All snaps, and what their numbers stand for.
pub(super) struct Look {
    pub(super) snapshot: Snapshot,
    /// By the snapshot's numbers.
    pub(super) entries: Vec<Arc<Entry>>,
    /// By how much the mapped regions that are served take less memory than was granted for them.
    pub(super) not_resident: u64,
}

impl Look {
    /// Looks at every entry in turn, under its own locks: what one does meanwhile, the others don't see.
    pub(super) fn at(core: &CacheCore, rules: &Rules, count: Count, now_ms: u64) -> Look {
        let entries = core.entries_now();
        let numbers: BTreeMap<SpindleUuid, usize> =
            core.spindles.iter().enumerate().map(|(number, spindle)| (spindle.uuid, number)).collect();
        let mut look =
            Look { snapshot: Snapshot::with_capacity(entries.len()), entries: Vec::new(), not_resident: 0 };
        let mut view: Option<(ViewNumber, &Arc<Entry>)> = None;
        // In the order of their keys, so those of one view stand together.
        for entry in &entries {
            let number = match view {
                Some((number, first)) if is_of_one_view(first, entry) => number,
                _ => {
                    let number = look.snapshot.view();
                    view = Some((number, entry));
                    number
                }
            };
            let manifest = entry.manifest();
            let snap = look.candidate(entry, number, manifest.as_deref(), rules, count, now_ms);
            let shares = manifest.as_deref().map(|manifest| shares(manifest, &numbers));
            look.snapshot.add(snap, shares.unwrap_or_default());
        }
        look.entries = entries;
        look
    }

    fn candidate(
        &mut self,
        entry: &Entry,
        view: ViewNumber,
        manifest: Option<&Manifest>,
        rules: &Rules,
        count: Count,
        now_ms: u64,
    ) -> Candidate {
        let usage = entry.usage();
        let now = Duration::from_millis(now_ms);
        let (may_go, durable, pinned, leases) =
            entry.desk.look(|snap| (snap.may_go(now), snap.is_durable(), snap.is_pinned(), snap.leases()));
        let served = entry.desk.served().filter(|hot| !hot.regions.is_empty());
        let (image_bytes, mapped) = served.as_deref().map_or((0, 0), sizes);
        let resident_bytes = match (count, served.as_deref()) {
            (Count::Resident, Some(hot)) => resident(hot).min(mapped),
            _ => mapped,
        };
        self.not_resident += mapped - resident_bytes;
        let leased = leases > 0 || usage.leased;
        Candidate {
            view,
            clock: entry.key.clock(),
            holds: match (&served, manifest) {
                (Some(_), _) => Holds::Memory,
                (None, Some(_)) => Holds::Files,
                (None, None) => Holds::Nothing,
            },
            image_bytes,
            resident_bytes,
            history: usage.history,
            arrived_ms: usage.arrived_ms,
            ttls: rules.ttls_of(&entry.key),
            durable,
            leased,
            pinned,
            busy: !may_go && !leased && !pinned,
        }
    }
}

fn is_of_one_view(one: &Entry, other: &Entry) -> bool {
    one.key.domain() == other.key.domain() && one.key.view() == other.key.view()
}

/// What images have of the budget, and the bytes of mapped regions.
fn sizes(hot: &HotSlice) -> (u64, u64) {
    hot.regions.iter().fold((0, 0), |(images, mapped), region| match region.bytes() {
        RegionBytes::Image(image) => (images + image.paid(), mapped),
        RegionBytes::Map(map) => (images, mapped + map.bytes().len() as u64),
    })
}

/// Where the kernel does not tell, all of it is taken to be there.
fn resident(hot: &HotSlice) -> u64 {
    hot.regions
        .iter()
        .map(|region| match region.bytes() {
            RegionBytes::Image(_) => 0,
            RegionBytes::Map(map) => map.resident_bytes().unwrap_or(map.bytes().len() as u64),
        })
        .sum()
}

/// How much of each spindle a slice's files take.
fn shares(manifest: &Manifest, numbers: &BTreeMap<SpindleUuid, usize>) -> Vec<(usize, u64)> {
    let mut shares: Vec<(usize, u64)> = Vec::new();
    for region in &manifest.regions {
        let Some(&number) = numbers.get(&manifest.spindles[region.spindle as usize]) else { continue };
        let bytes = region.file_bytes.next_multiple_of(DISK_PAGE_BYTES);
        match shares.iter_mut().find(|(spindle, _)| *spindle == number) {
            Some((_, sum)) => *sum += bytes,
            None => shares.push((number, bytes)),
        }
    }
    shares
}

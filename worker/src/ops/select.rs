//! Which snaps are meant, and what is known of them.

use std::sync::Arc;
use std::time::Duration;

use pelton_region_format::{Fingerprint, KeyPattern};

use crate::cache::{CacheCore, Entry, SnapStatus, status};
use crate::ops::filter::{Facts, Filters};
use crate::scan::patience::Patience;
use crate::snap::metrics::{GenerationMetrics, GenerationState, MetricsLimits, SliceMetrics, Summary};
use crate::snap::state::SnapState;

/// Which snaps are meant: by their keys, and by what is known of them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Selection {
    /// Their keys.
    pub pattern: KeyPattern,
    /// What must hold for each of them, or for each generation. Without any, all of the pattern are meant.
    pub filters: Filters,
    /// What the filters are asked about.
    pub by: By,
}

/// What filters are asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum By {
    /// Each slice by itself.
    #[default]
    Slice,
    /// All slices of a generation together, as far as the pattern matches them: all of them are meant or none.
    Generation,
}

impl Selection {
    /// All slices of a pattern.
    pub fn new(pattern: impl Into<KeyPattern>) -> Selection {
        Selection { pattern: pattern.into(), filters: Filters::default(), by: By::Slice }
    }

    /// Only those that match these filters, too.
    #[must_use]
    pub fn filters(mut self, filters: Filters) -> Selection {
        self.filters = self.filters.and(filters);
        self
    }

    /// Asks the filters about slices, or about generations.
    #[must_use]
    pub fn by(mut self, by: By) -> Selection {
        self.by = by;
        self
    }
}

/// A slice or a generation that was found, at one moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Selected {
    /// The slice, or the slices of the generation in the order of their keys. Never empty.
    pub snaps: Vec<SnapStatus>,
    /// Every figure of them together.
    pub summary: Summary,
}

impl Selected {
    /// Bytes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.snaps.iter().map(|snap| snap.memory_bytes).sum()
    }

    /// Bytes of files.
    pub fn file_bytes(&self) -> u64 {
        self.snaps.iter().map(|snap| snap.file_bytes).sum()
    }

    /// For how long nobody has asked for any of them, if that is known.
    pub fn idle(&self) -> Option<Duration> {
        self.snaps.iter().filter_map(|snap| snap.idle).min()
    }

    /// What decided the blobs, if it is the same for all of them.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        let first = self.snaps.first()?.fingerprint;
        first.filter(|_| self.snaps.iter().all(|snap| snap.fingerprint == first))
    }

    /// Whether all of them would survive the process.
    pub fn is_durable(&self) -> bool {
        self.snaps.iter().all(|snap| snap.durable)
    }

    /// Whether any of them is pinned.
    pub fn is_pinned(&self) -> bool {
        self.snaps.iter().any(|snap| snap.pinned)
    }

    /// How many leases there are on them.
    pub fn leases(&self) -> usize {
        self.snaps.iter().map(|snap| snap.leases).sum()
    }

    fn matches(&self, filters: &Filters) -> bool {
        filters.matches(&Facts {
            summary: &self.summary,
            idle_ms: self.idle().map(|idle| idle.as_millis() as u64),
            fingerprint: self.fingerprint(),
            memory_bytes: self.memory_bytes(),
            disk_bytes: self.file_bytes(),
            durable: self.is_durable(),
            leased: self.leases() > 0,
            pinned: self.is_pinned(),
        })
    }
}

/// What a selection finds, with the entries in the order of the statuses.
pub(crate) fn select(
    core: &CacheCore,
    selection: &Selection,
    patience: &Patience,
) -> Vec<(Selected, Vec<Arc<Entry>>)> {
    let mut groups: Vec<(Selected, GenerationMetrics, Vec<Arc<Entry>>)> = Vec::new();
    for entry in core.entries(&selection.pattern, patience) {
        let (status, metrics) = (status(&entry), entry.facts().metrics);
        if is_nothing(&status, &metrics) {
            continue;
        }
        let folded = GenerationMetrics::of(&metrics, generation_state(status.state));
        // Keys are in order, so the slices of a generation stand together.
        let joins = |(group, ..): &&mut (Selected, _, _)| {
            let (key, last) = (&status.key, &group.snaps[0].key);
            let same_view = key.domain() == last.domain() && key.view() == last.view();
            selection.by == By::Generation && same_view && key.clock() == last.clock()
        };
        match groups.last_mut().filter(joins) {
            Some((group, metrics, entries)) => {
                group.snaps.push(status);
                *metrics = metrics.merge(folded);
                entries.push(entry);
            }
            None => {
                let summary = folded.summary(&MetricsLimits::default());
                groups.push((Selected { snaps: vec![status], summary }, folded, vec![entry]));
            }
        }
    }
    let summed = groups.into_iter().map(|(group, metrics, entries)| {
        let summary = metrics.summary(&MetricsLimits::default());
        (Selected { summary, ..group }, entries)
    });
    summed.filter(|(group, _)| group.matches(&selection.filters)).collect()
}

/// Whether nothing is known but the name.
fn is_nothing(status: &SnapStatus, metrics: &SliceMetrics) -> bool {
    match status.state {
        SnapState::Gone => true,
        SnapState::Cold => !status.pinned && *metrics == SliceMetrics::default(),
        _ => false,
    }
}

fn generation_state(state: SnapState) -> GenerationState {
    match state {
        SnapState::Cold | SnapState::Gone => GenerationState::Cold,
        SnapState::Loading => GenerationState::Loading,
        SnapState::Warm => GenerationState::Warm,
        SnapState::Hot => GenerationState::Hot,
        SnapState::NoData => GenerationState::NoData,
        SnapState::Failed => GenerationState::Failed,
    }
}

//! What is known about a slice's loads, and the same of all slices of a generation.
//!
//! ```text
//! SliceMetrics ──fold──▶ GenerationMetrics ──merge──▶ GenerationMetrics ──summary──▶ Summary
//! one slice, stored       sums and extremes            in any order, any grouping     every figure, as people read it
//! ```
//!
//! What is stored and merged are whole numbers only. Ratios are made at the end, in [`GenerationMetrics::summary`],
//! and none of them is ever NaN or infinite.

pub(crate) mod record;
#[cfg(test)]
mod tests;

use serde::Serialize;

const HOUR_MS: u64 = 60 * 60 * 1000;

/// What happened to one slice. Kept by its snap, stored beside its files.
///
/// Moments are milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SliceMetrics {
    load: LoadFacts,
    cold: Option<Moment>,
    warm: Option<Moment>,
    warm_count: u64,
    evict_count: u64,
    flush_count: u64,
}

/// What came with a cold load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadFacts {
    /// Blobs that arrived.
    pub blobs: BlobSizes,
    /// Over how many regions they were dealt.
    pub regions: u64,
    /// How many blobs the source refused to send, because they broke a limit.
    pub rejected: u64,
    /// How many it meant to send, after sampling and caps. Another number than arrived means an invalid load.
    pub expected: u64,
    /// How many there would be without sampling and caps.
    pub potential: u64,
}

impl LoadFacts {
    /// Those of a source that tells nothing: what arrived is what was meant, and all there is.
    pub fn of(blobs: BlobSizes, regions: u64) -> LoadFacts {
        LoadFacts { blobs, regions, rejected: 0, expected: blobs.count, potential: blobs.count }
    }

    fn is_invalid(&self) -> bool {
        self.expected != self.blobs.count
    }
}

/// How many blobs there are, how many bytes they have, and how those vary. Exact, in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlobSizes {
    count: u64,
    bytes: u64,
    /// The sum of the squares of their lengths.
    squares: u128,
}

impl BlobSizes {
    /// So many blobs of so many bytes together, as if all were alike.
    pub fn alike(count: u64, bytes: u64) -> BlobSizes {
        let squares = (u128::from(bytes) * u128::from(bytes)).checked_div(u128::from(count)).unwrap_or(0);
        BlobSizes { count, bytes, squares }
    }

    /// How many bytes they have.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One blob more.
    pub fn add(&mut self, bytes: u64) {
        let one = BlobSizes { count: 1, bytes, squares: u128::from(bytes) * u128::from(bytes) };
        *self = self.merge(one);
    }

    /// Those of both.
    #[must_use]
    pub fn merge(self, other: BlobSizes) -> BlobSizes {
        BlobSizes {
            count: self.count.saturating_add(other.count),
            bytes: self.bytes.saturating_add(other.bytes),
            squares: self.squares.saturating_add(other.squares),
        }
    }

    /// Bytes of a blob in the mean; 0 without blobs.
    pub fn mean(&self) -> f64 {
        ratio(self.bytes as f64, self.count as f64)
    }

    /// Standard deviation over mean: 0 if all are alike, or none has a byte.
    pub fn variation(&self) -> f64 {
        // n * squares - bytes * bytes is exact while it fits, where floats would lose all of a small difference.
        let count = u128::from(self.count);
        let sum_squared = u128::from(self.bytes) * u128::from(self.bytes);
        let spread = match count.checked_mul(self.squares) {
            Some(scaled) => scaled.saturating_sub(sum_squared) as f64,
            None => (count as f64 * self.squares as f64 - sum_squared as f64).max(0.0),
        };
        ratio(spread.sqrt(), self.bytes as f64)
    }
}

/// When a load ended and how long it took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moment {
    at_ms: u64,
    took_ms: u64,
}

impl SliceMetrics {
    /// Those of a slice that is there, and of whose load nobody knows when it was.
    pub fn of_unknown_load(facts: LoadFacts) -> SliceMetrics {
        SliceMetrics { load: facts, ..SliceMetrics::default() }
    }

    /// A load from the source has ended. What was known of an earlier one is forgotten, also if this one brought
    /// nothing. Counts of what happened to the slice go on.
    pub fn cold_loaded(&mut self, facts: LoadFacts, at_ms: u64, took_ms: u64) {
        self.load = facts;
        self.cold = Some(Moment { at_ms, took_ms });
    }

    /// The slice was brought from the disk into memory.
    pub fn warm_loaded(&mut self, at_ms: u64, took_ms: u64) {
        self.warm = Some(Moment { at_ms, took_ms });
        self.warm_count = self.warm_count.saturating_add(1);
    }

    /// Its memory was given back.
    pub fn evicted(&mut self) {
        self.evict_count = self.evict_count.saturating_add(1);
    }

    /// Its files were removed.
    pub fn flushed(&mut self) {
        self.flush_count = self.flush_count.saturating_add(1);
    }

    /// How often it was evicted and flushed, also by earlier caches.
    pub(crate) fn restore_counts(&mut self, evicts: u64, flushes: u64) {
        (self.evict_count, self.flush_count) = (evicts, flushes);
    }

    /// How often it was evicted, and flushed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.evict_count, self.flush_count)
    }

    /// When the last load from the source ended, in milliseconds since 1970.
    pub fn loaded_at_ms(&self) -> Option<u64> {
        self.cold.map(|moment| moment.at_ms)
    }
}

/// What a snap is, or all snaps of a generation together are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GenerationState {
    /// Nothing but names.
    Cold,
    /// A load is under way.
    Loading,
    /// Files only.
    Warm,
    /// In memory.
    Hot,
    /// Loaded, and without any blob.
    NoData,
    /// A load failed.
    Failed,
    /// Some this, some that.
    Mixed,
}

impl GenerationState {
    /// All of them, with the names that people write.
    pub const NAMES: [(&'static str, GenerationState); 7] = [
        ("cold", GenerationState::Cold),
        ("loading", GenerationState::Loading),
        ("warm", GenerationState::Warm),
        ("hot", GenerationState::Hot),
        ("no-data", GenerationState::NoData),
        ("failed", GenerationState::Failed),
        ("mixed", GenerationState::Mixed),
    ];
}

/// The slices of a generation, folded: [`GenerationMetrics::default`] is that of no slice.
///
/// Merging is associative and knows no order, so slices may be folded where they are, and the rest elsewhere. Sums
/// end at the largest number instead of beginning anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationMetrics {
    slices: u64,
    states: StateCounts,
    blobs: BlobSizes,
    regions: u64,
    rejected: u64,
    expected: u64,
    potential: u64,
    invalid_slices: u64,
    slice_bytes: Option<Extremes>,
    cold_at: Option<Extremes>,
    cold_took: Option<Extremes>,
    warm_at: Option<Extremes>,
    warm_took: Option<Extremes>,
    warm_count: Option<Extremes>,
    evicts: u64,
    flushes: u64,
}

/// How many slices are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct StateCounts {
    cold: u64,
    loading: u64,
    warm: u64,
    hot: u64,
    no_data: u64,
    failed: u64,
    mixed: u64,
}

impl StateCounts {
    fn of(state: GenerationState) -> StateCounts {
        let mut counts = StateCounts::default();
        let count = match state {
            GenerationState::Cold => &mut counts.cold,
            GenerationState::Loading => &mut counts.loading,
            GenerationState::Warm => &mut counts.warm,
            GenerationState::Hot => &mut counts.hot,
            GenerationState::NoData => &mut counts.no_data,
            GenerationState::Failed => &mut counts.failed,
            GenerationState::Mixed => &mut counts.mixed,
        };
        *count = 1;
        counts
    }

    fn merge(self, other: StateCounts) -> StateCounts {
        StateCounts {
            cold: self.cold.saturating_add(other.cold),
            loading: self.loading.saturating_add(other.loading),
            warm: self.warm.saturating_add(other.warm),
            hot: self.hot.saturating_add(other.hot),
            no_data: self.no_data.saturating_add(other.no_data),
            failed: self.failed.saturating_add(other.failed),
            mixed: self.mixed.saturating_add(other.mixed),
        }
    }

    /// One failed slice fails all; slices without data say nothing beside others; else all must be the same.
    fn state(&self) -> GenerationState {
        if self.failed > 0 {
            return GenerationState::Failed;
        }
        let others = [
            (self.cold, GenerationState::Cold),
            (self.loading, GenerationState::Loading),
            (self.warm, GenerationState::Warm),
            (self.hot, GenerationState::Hot),
            (self.mixed, GenerationState::Mixed),
        ];
        let mut found = others.into_iter().filter(|(count, _)| *count > 0).map(|(_, state)| state);
        match (found.next(), found.next()) {
            (None, _) => GenerationState::NoData,
            (Some(state), None) => state,
            (Some(_), Some(_)) => GenerationState::Mixed,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extremes {
    min: u64,
    max: u64,
}

impl Extremes {
    fn of(value: u64) -> Extremes {
        Extremes { min: value, max: value }
    }

    fn merge(one: Option<Extremes>, other: Option<Extremes>) -> Option<Extremes> {
        match (one, other) {
            (Some(one), Some(other)) => {
                Some(Extremes { min: one.min.min(other.min), max: one.max.max(other.max) })
            }
            (one, other) => one.or(other),
        }
    }

    /// By how much the largest exceeds the smallest, in parts of the smallest. Beside nothing, everything is 1.
    fn skew(extremes: Option<Extremes>) -> f64 {
        match extremes {
            Some(Extremes { min, max }) if min == max => 0.0,
            Some(Extremes { min: 0, .. }) => 1.0,
            Some(Extremes { min, max }) => (max - min) as f64 / min as f64,
            None => 0.0,
        }
    }
}

impl GenerationMetrics {
    /// Those of one slice.
    pub fn of(slice: &SliceMetrics, state: GenerationState) -> GenerationMetrics {
        let at = |moment: Option<Moment>| moment.map(|moment| Extremes::of(moment.at_ms));
        let took = |moment: Option<Moment>| moment.map(|moment| Extremes::of(moment.took_ms));
        GenerationMetrics {
            slices: 1,
            states: StateCounts::of(state),
            blobs: slice.load.blobs,
            regions: slice.load.regions,
            rejected: slice.load.rejected,
            expected: slice.load.expected,
            potential: slice.load.potential,
            invalid_slices: u64::from(slice.load.is_invalid()),
            slice_bytes: Some(Extremes::of(slice.load.blobs.bytes)),
            cold_at: at(slice.cold),
            cold_took: took(slice.cold),
            warm_at: at(slice.warm),
            warm_took: took(slice.warm),
            warm_count: Some(Extremes::of(slice.warm_count)),
            evicts: slice.evict_count,
            flushes: slice.flush_count,
        }
    }

    /// Those of both. Each slice must be in one of them only.
    #[must_use]
    pub fn merge(self, other: GenerationMetrics) -> GenerationMetrics {
        GenerationMetrics {
            slices: self.slices.saturating_add(other.slices),
            states: self.states.merge(other.states),
            blobs: self.blobs.merge(other.blobs),
            regions: self.regions.saturating_add(other.regions),
            rejected: self.rejected.saturating_add(other.rejected),
            expected: self.expected.saturating_add(other.expected),
            potential: self.potential.saturating_add(other.potential),
            invalid_slices: self.invalid_slices.saturating_add(other.invalid_slices),
            slice_bytes: Extremes::merge(self.slice_bytes, other.slice_bytes),
            cold_at: Extremes::merge(self.cold_at, other.cold_at),
            cold_took: Extremes::merge(self.cold_took, other.cold_took),
            warm_at: Extremes::merge(self.warm_at, other.warm_at),
            warm_took: Extremes::merge(self.warm_took, other.warm_took),
            warm_count: Extremes::merge(self.warm_count, other.warm_count),
            evicts: self.evicts.saturating_add(other.evicts),
            flushes: self.flushes.saturating_add(other.flushes),
        }
    }

    /// Every figure, as people read it.
    pub fn summary(&self, limits: &MetricsLimits) -> Summary {
        let bytes = self.blobs.bytes;
        let max = |extremes: Option<Extremes>| extremes.map(|extremes| extremes.max);
        let cold_at_ms = max(self.cold_at);
        // The rate of this load, and less if it was too large. A source without potential had nothing to sample.
        let rate = if self.potential == 0 { 1.0 } else { self.blobs.count as f64 / self.potential as f64 };
        let fitting = if bytes == 0 { 1.0 } else { limits.generation_bytes_max as f64 / bytes as f64 };
        Summary {
            state: self.states.state(),
            bytes,
            blobs: self.blobs.count,
            slices: self.slices,
            regions: self.regions,
            load_at_ms: cold_at_ms,
            load_took_ms: max(self.cold_took),
            warm_at_ms: max(self.warm_at),
            warm_took_ms: max(self.warm_took),
            warm_count: max(self.warm_count).unwrap_or(0),
            size_skew: Extremes::skew(self.slice_bytes),
            time_skew: Extremes::skew(self.cold_took),
            blob_size: self.blobs.mean(),
            blob_variation: self.blobs.variation(),
            // Slice by slice: too many here must not make up for too few there.
            invalid: self.invalid_slices > 0 || bytes > limits.generation_bytes_max,
            next_load_at_ms: cold_at_ms.map(|at_ms| at_ms.saturating_add(limits.stale_after_ms)),
            evicts: ratio(self.evicts as f64, self.slices as f64),
            flushes: ratio(self.flushes as f64, self.slices as f64),
            rejected: self.rejected,
            expected: self.expected,
            potential: self.potential,
            sample_rate: (fitting.min(1.0) * rate).clamp(0.0, 1.0),
            suggested_slices: self.slices.max(bytes.div_ceil(limits.slice_bytes_max.max(1))),
        }
    }
}

/// What loads are held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsLimits {
    /// A generation with more bytes is invalid.
    pub generation_bytes_max: u64,
    /// How large a slice should be at most: by it more slices are suggested.
    pub slice_bytes_max: u64,
    /// How long after a load the next one makes sense.
    pub stale_after_ms: u64,
}

impl Default for MetricsLimits {
    /// 100 GiB, any size of a slice, and a day.
    fn default() -> MetricsLimits {
        MetricsLimits {
            generation_bytes_max: 100 * crate::units::GIB,
            slice_bytes_max: u64::MAX,
            stale_after_ms: 24 * HOUR_MS,
        }
    }
}

/// Every figure of a generation, or of one slice. What never happened is absent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Of all slices together.
    pub state: GenerationState,
    /// Of all blobs.
    pub bytes: u64,
    /// How many blobs.
    pub blobs: u64,
    /// How many slices.
    pub slices: u64,
    /// Of all slices.
    pub regions: u64,
    /// When the last load of a slice from the source ended.
    pub load_at_ms: Option<u64>,
    /// How long the longest took.
    pub load_took_ms: Option<u64>,
    /// When a slice was last brought from disk into memory.
    pub warm_at_ms: Option<u64>,
    /// How long the longest of those took, of the last one of each slice.
    pub warm_took_ms: Option<u64>,
    /// How often the slice was that had it most often.
    pub warm_count: u64,
    /// By how much the largest slice exceeds the smallest, in parts of the smallest.
    pub size_skew: f64,
    /// The same of the time of their loads.
    pub time_skew: f64,
    /// Bytes of a blob in the mean.
    pub blob_size: f64,
    /// Standard deviation of that over the mean.
    pub blob_variation: f64,
    /// Whether a slice got another number of blobs than was expected, or all are too large together.
    pub invalid: bool,
    /// When the next load makes sense.
    pub next_load_at_ms: Option<u64>,
    /// Evictions of a slice in the mean.
    pub evicts: f64,
    /// Flushes of a slice in the mean.
    pub flushes: f64,
    /// Blobs that the source refused to send.
    pub rejected: u64,
    /// Blobs that it meant to send.
    pub expected: u64,
    /// Blobs that there would be without sampling and caps.
    pub potential: u64,
    /// At which rate the next load fits: 0 to 1.
    pub sample_rate: f64,
    /// Over how many slices the next load should be dealt.
    pub suggested_slices: u64,
}

/// 0 over 0 is 0 here: of nothing there is nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

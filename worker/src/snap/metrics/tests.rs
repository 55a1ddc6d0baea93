//! A test for each figure, then what holds for all of them.

use proptest::prelude::*;

use super::record::MetricsError;
use super::*;
use crate::units::{GIB, MIB};

fn blobs(sizes: &[u64]) -> BlobSizes {
    let mut blobs = BlobSizes::default();
    sizes.iter().for_each(|bytes| blobs.add(*bytes));
    blobs
}

/// A slice of blobs in 2 regions, loaded at 1000 in 10.
fn slice(sizes: &[u64]) -> SliceMetrics {
    let mut slice = SliceMetrics::default();
    slice.cold_loaded(LoadFacts::of(blobs(sizes), 2), 1000, 10);
    slice
}

fn fold(slices: &[SliceMetrics]) -> GenerationMetrics {
    let slices = slices.iter().map(|slice| GenerationMetrics::of(slice, GenerationState::Hot));
    slices.fold(GenerationMetrics::default(), GenerationMetrics::merge)
}

fn summary(slices: &[SliceMetrics]) -> Summary {
    fold(slices).summary(&MetricsLimits::default())
}

/// A slice whose load said `expected` and `potential`.
fn told(sizes: &[u64], expected: u64, potential: u64) -> SliceMetrics {
    let mut slice = SliceMetrics::default();
    let facts = LoadFacts { expected, potential, rejected: 3, ..LoadFacts::of(blobs(sizes), 1) };
    slice.cold_loaded(facts, 1000, 10);
    slice
}

#[test]
fn bytes_blobs_slices_and_regions_are_sums() {
    let found = summary(&[slice(&[10, 20]), slice(&[30])]);
    assert_eq!((found.bytes, found.blobs, found.slices, found.regions), (60, 3, 2, 4));
    assert_eq!(summary(&[slice(&[10, 20])]).bytes, 30);
}

#[test]
fn load_at_and_took_are_the_latest_and_the_longest() {
    let (mut early, mut late) = (slice(&[1]), slice(&[1]));
    early.cold_loaded(LoadFacts::default(), 500, 90);
    late.cold_loaded(LoadFacts::default(), 700, 20);
    let found = summary(&[early, late]);
    assert_eq!((found.load_at_ms, found.load_took_ms), (Some(700), Some(90)));
    assert_eq!(summary(&[SliceMetrics::default()]).load_at_ms, None);
}

#[test]
fn warm_at_took_and_count_are_the_latest_the_longest_and_the_most() {
    let (mut often, mut once) = (slice(&[1]), slice(&[1]));
    often.warm_loaded(2000, 7);
    often.warm_loaded(3000, 5);
    once.warm_loaded(2500, 6);
    let found = summary(&[often, once, slice(&[1])]);
    assert_eq!((found.warm_at_ms, found.warm_took_ms, found.warm_count), (Some(3000), Some(6), 2));
    let found = summary(&[slice(&[1])]);
    assert_eq!((found.warm_at_ms, found.warm_took_ms, found.warm_count), (None, None, 0));
}

#[test]
fn size_skew_is_the_excess_of_the_largest_slice() {
    assert_eq!(summary(&[slice(&[20]), slice(&[50]), slice(&[30])]).size_skew, 1.5);
    assert_eq!(summary(&[slice(&[20]), slice(&[20])]).size_skew, 0.0);
    assert_eq!(summary(&[slice(&[]), slice(&[20])]).size_skew, 1.0);
    assert_eq!(summary(&[slice(&[]), slice(&[])]).size_skew, 0.0);
    assert_eq!(summary(&[]).size_skew, 0.0);
}

#[test]
fn time_skew_is_that_of_the_cold_loads() {
    let mut slow = slice(&[1]);
    slow.cold_loaded(LoadFacts::default(), 1000, 40);
    assert_eq!(summary(&[slice(&[1]), slow]).time_skew, 3.0);
    // A slice that was never loaded took no time: it says nothing, rather than 0.
    assert_eq!(summary(&[slice(&[1]), SliceMetrics::default()]).time_skew, 0.0);
}

#[test]
fn blob_size_is_the_mean() {
    assert_eq!(summary(&[slice(&[10, 20]), slice(&[60])]).blob_size, 30.0);
    assert_eq!(summary(&[slice(&[])]).blob_size, 0.0);
}

#[test]
fn blob_variation_is_computed_over_all_blobs_of_all_slices() {
    // 2, 4, 4, 4, 5, 5, 7, 9: mean 5, standard deviation 2.
    assert_eq!(summary(&[slice(&[2, 4, 4, 4]), slice(&[5, 5, 7, 9])]).blob_variation, 0.4);
    assert_eq!(summary(&[slice(&[7, 7]), slice(&[7])]).blob_variation, 0.0);
    assert_eq!(summary(&[slice(&[0, 0])]).blob_variation, 0.0);
    // One byte of difference among large blobs is not lost.
    let found = summary(&[slice(&[GIB, GIB + 1])]).blob_variation;
    assert!((found * GIB as f64 - 0.5).abs() < 1e-6, "{found}");
}

#[test]
fn a_load_is_invalid_if_any_slice_lacks_blobs_or_all_are_too_large() {
    assert!(!summary(&[told(&[1, 1], 2, 9)]).invalid);
    assert!(summary(&[told(&[1, 1], 3, 9)]).invalid);
    // One too many and one too few together are the number that was expected.
    assert!(summary(&[told(&[1, 1], 1, 9), told(&[1], 2, 9)]).invalid);
    let limits = MetricsLimits { generation_bytes_max: 59, ..MetricsLimits::default() };
    assert!(fold(&[slice(&[60])]).summary(&limits).invalid);
    assert!(!fold(&[slice(&[59])]).summary(&limits).invalid);
}

#[test]
fn the_next_load_makes_sense_a_day_after_the_last() {
    assert_eq!(summary(&[slice(&[1])]).next_load_at_ms, Some(1000 + 24 * HOUR_MS));
    let limits = MetricsLimits { stale_after_ms: u64::MAX, ..MetricsLimits::default() };
    assert_eq!(fold(&[slice(&[1])]).summary(&limits).next_load_at_ms, Some(u64::MAX));
    assert_eq!(summary(&[SliceMetrics::default()]).next_load_at_ms, None);
}

#[test]
fn evicts_and_flushes_are_means_over_the_slices() {
    let mut twice = slice(&[1]);
    twice.evicted();
    twice.evicted();
    twice.evicted();
    twice.flushed();
    let found = summary(&[twice, slice(&[1])]);
    assert_eq!((found.evicts, found.flushes), (1.5, 0.5));
    assert_eq!((summary(&[]).evicts, summary(&[]).flushes), (0.0, 0.0));
}

#[test]
fn rejected_expected_and_potential_are_sums() {
    let found = summary(&[told(&[1], 5, 10), told(&[1], 6, 20)]);
    assert_eq!((found.rejected, found.expected, found.potential), (6, 11, 30));
}

#[test]
fn a_load_that_brings_nothing_forgets_what_was_expected_before() {
    let mut slice = told(&[1, 2], 2, 10);
    slice.evicted();
    slice.cold_loaded(LoadFacts::default(), 2000, 1);
    let found = summary(&[slice]);
    assert_eq!((found.blobs, found.expected, found.potential, found.rejected), (0, 0, 0, 0));
    assert!(!found.invalid);
    assert_eq!(found.evicts, 1.0);
}

#[test]
fn the_sample_rate_is_that_of_this_load_made_to_fit() {
    let limits = |generation_bytes_max| MetricsLimits { generation_bytes_max, ..MetricsLimits::default() };
    let half = fold(&[told(&[10, 10], 2, 4)]);
    assert_eq!(half.summary(&limits(20)).sample_rate, 0.5);
    assert_eq!(half.summary(&limits(10)).sample_rate, 0.25);
    // Nothing potential, nothing there, more than potential: still a rate.
    assert_eq!(fold(&[told(&[10], 1, 0)]).summary(&limits(20)).sample_rate, 1.0);
    assert_eq!(fold(&[told(&[], 0, 0)]).summary(&limits(20)).sample_rate, 1.0);
    assert_eq!(fold(&[told(&[], 0, 8)]).summary(&limits(20)).sample_rate, 0.0);
    assert_eq!(fold(&[told(&[1, 1, 1], 3, 2)]).summary(&limits(20)).sample_rate, 1.0);
}

#[test]
fn more_slices_are_suggested_where_they_are_too_large() {
    let limits = |slice_bytes_max| MetricsLimits { slice_bytes_max, ..MetricsLimits::default() };
    let two = fold(&[slice(&[MIB]), slice(&[MIB])]);
    assert_eq!(two.summary(&MetricsLimits::default()).suggested_slices, 2);
    assert_eq!(two.summary(&limits(MIB / 2)).suggested_slices, 4);
    assert_eq!(two.summary(&limits(MIB / 2 - 1)).suggested_slices, 5);
    assert_eq!(two.summary(&limits(0)).suggested_slices, 2 * MIB);
}

#[test]
fn states_fold_by_what_matters_most() {
    use GenerationState::*;
    let cases = [
        (vec![], NoData),
        (vec![NoData, NoData], NoData),
        (vec![Hot, NoData, Hot], Hot),
        (vec![Warm, NoData], Warm),
        (vec![Cold, Cold], Cold),
        (vec![Loading], Loading),
        (vec![Hot, Warm], Mixed),
        (vec![Cold, Hot], Mixed),
        (vec![Mixed], Mixed),
        (vec![Hot, Failed, Cold], Failed),
    ];
    for (states, expected) in cases {
        let folded = states
            .iter()
            .map(|state| GenerationMetrics::of(&SliceMetrics::default(), *state))
            .fold(GenerationMetrics::default(), GenerationMetrics::merge);
        assert_eq!(folded.summary(&MetricsLimits::default()).state, expected, "{states:?}");
    }
}

fn sample() -> SliceMetrics {
    let mut slice = told(&[100, 3000], 5, 7);
    slice.warm_loaded(1_719_878_400_000, 42);
    slice.evicted();
    slice.flushed();
    slice.flushed();
    slice
}

/// These bytes are on disks we cannot reach. If this fails, write version 2 beside version 1.
#[test]
fn slice_metrics_v1_bytes() {
    let golden = include_bytes!("golden/slice_metrics_v1.bin");
    assert_eq!(sample().encode(), golden);
    assert_eq!(SliceMetrics::decode(golden), Ok(sample()));
}

#[test]
fn what_is_newer_or_damaged_is_told_apart() {
    let mut bytes = sample().encode();
    for len in 0..bytes.len() {
        assert!(matches!(SliceMetrics::decode(&bytes[..len]), Err(MetricsError::Damaged { .. })), "{len}");
    }
    bytes.push(0);
    assert!(matches!(SliceMetrics::decode(&bytes), Err(MetricsError::Damaged { .. })));
    bytes[0] = 2;
    assert_eq!(SliceMetrics::decode(&bytes), Err(MetricsError::Newer { found: 2 }));
    bytes[0] = 0;
    assert!(matches!(SliceMetrics::decode(&bytes), Err(MetricsError::Damaged { .. })));
}

#[test]
fn a_summary_is_json_that_names_every_figure() {
    let json = serde_json::to_value(summary(&[sample()])).unwrap();
    let names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names.len(), 23);
    assert_eq!(json["state"], "hot");
    assert_eq!(json["bytes"], 3100);
    assert_eq!(json["load_took_ms"], 10);
    assert_eq!(serde_json::to_value(GenerationState::NoData).unwrap(), "no-data");
}

prop_compose! {
    fn any_slice()(
        squares in any::<u128>(),
        counts in prop::array::uniform6(prop_oneof![0u64..3, any::<u64>()]),
        cold in prop::option::of(any::<(u64, u64)>()),
        warm in prop::option::of(any::<(u64, u64)>()),
        happened in prop::array::uniform3(any::<u64>()),
    ) -> SliceMetrics {
        let [count, bytes, regions, rejected, expected, potential] = counts;
        let [warm_count, evict_count, flush_count] = happened;
        let moment = |(at_ms, took_ms)| Moment { at_ms, took_ms };
        let blobs = BlobSizes { count, bytes, squares };
        SliceMetrics {
            load: LoadFacts { blobs, regions, rejected, expected, potential },
            cold: cold.map(moment),
            warm: warm.map(moment),
            warm_count,
            evict_count,
            flush_count,
        }
    }
}

fn any_state() -> impl Strategy<Value = GenerationState> {
    prop::sample::select(GenerationState::NAMES.map(|(_, state)| state).to_vec())
}

proptest! {
    #[test]
    fn merging_is_associative_and_knows_no_order(
        slices in prop::collection::vec((any_slice(), any_state()), 0..12),
        cuts in prop::array::uniform2(0usize..12),
    ) {
        let one: Vec<_> = slices.iter().map(|(slice, state)| GenerationMetrics::of(slice, *state)).collect();
        let all = |parts: &[GenerationMetrics]| parts.iter().copied().fold(GenerationMetrics::default(), GenerationMetrics::merge);
        let straight = all(&one);
        let mut reversed = one.clone();
        reversed.reverse();
        prop_assert_eq!(all(&reversed), straight);
        let [first, second] = cuts.map(|cut| cut.min(one.len()));
        let (first, second) = (first.min(second), first.max(second));
        let (a, b, c) = (all(&one[..first]), all(&one[first..second]), all(&one[second..]));
        prop_assert_eq!(a.merge(b).merge(c), straight);
        prop_assert_eq!(a.merge(b.merge(c)), straight);
        prop_assert_eq!(c.merge(a).merge(b), straight);
    }

    #[test]
    fn no_figure_is_ever_nan_or_infinite(
        slices in prop::collection::vec((any_slice(), any_state()), 0..4),
        limits in prop::array::uniform3(any::<u64>()),
    ) {
        let [generation_bytes_max, slice_bytes_max, stale_after_ms] = limits;
        let folded = slices.iter().map(|(slice, state)| GenerationMetrics::of(slice, *state))
            .fold(GenerationMetrics::default(), GenerationMetrics::merge);
        let found = folded.summary(&MetricsLimits { generation_bytes_max, slice_bytes_max, stale_after_ms });
        let ratios = [found.size_skew, found.time_skew, found.blob_size, found.blob_variation,
            found.evicts, found.flushes, found.sample_rate];
        prop_assert!(ratios.iter().all(|ratio| ratio.is_finite() && *ratio >= 0.0), "{:?}", found);
        prop_assert!(found.sample_rate <= 1.0);
    }

    #[test]
    fn what_is_stored_reads_back(slice in any_slice()) {
        prop_assert_eq!(SliceMetrics::decode(&slice.encode()), Ok(slice));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = SliceMetrics::decode(&bytes);
    }

    #[test]
    fn variation_is_that_of_the_plain_formula(sizes in prop::collection::vec(0u64..1 << 31, 1..50)) {
        let mean = sizes.iter().sum::<u64>() as f64 / sizes.len() as f64;
        let variance = sizes.iter().map(|bytes| (*bytes as f64 - mean).powi(2)).sum::<f64>() / sizes.len() as f64;
        let expected = if mean > 0.0 { variance.sqrt() / mean } else { 0.0 };
        prop_assert!((blobs(&sizes).variation() - expected).abs() < 1e-6);
    }
}

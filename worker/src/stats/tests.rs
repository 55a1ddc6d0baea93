use pelton_region_format::{Fingerprint, Key};

use super::*;
use crate::cache::{Cache, Want};
use crate::region::residence::Residence;
use crate::scan::lease::{LeaseError, LeaseOptions, Reading};
use crate::slice::parcel::ParcelBuilder;
use crate::slice::plan::{Durability, LoadPlan};

const MIB: u64 = 1 << 20;

fn key() -> Key {
    "test/stats@1#0".parse().unwrap()
}

fn plan() -> LoadPlan {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.regions = Some(2);
    plan.durability = Durability::Wait;
    plan
}

fn load(cache: &Cache) {
    let writer = cache.snap(&key()).open_for_writes(plan()).unwrap();
    for number in 0..4 {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number; MIB as usize]).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

fn op(stats: &CacheStats, op: OpKind) -> &OpStats {
    stats.spindles[0].ops.iter().find(|of| of.op == op).unwrap()
}

/// Does one of each thing that is counted, and returns the figures.
fn one_of_each(cache: &Cache) -> CacheStats {
    assert!(matches!(cache.lease(&key(), Want::Latest, None), Err(LeaseError::NotThere { .. })));
    load(cache);
    drop(cache.lease(&key(), Want::Latest, None).unwrap());
    let streamed = LeaseOptions { reading: Reading::Stream, ..LeaseOptions::default() };
    drop(cache.lease_with(&key(), &streamed).unwrap());
    let snap = cache.snap(&key());
    assert!(snap.evict());
    drop(cache.lease(&key(), Want::Latest, None).unwrap().region(1, None).unwrap());
    drop(snap.open_for_writes(plan()).unwrap());
    assert!(snap.flush(None).unwrap());
    assert!(snap.erase());
    cache.stats()
}

#[test]
fn each_thing_that_happens_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let builder = Cache::builder().spindle(folder.path().join("spindle"), 1 << 30).memory(256 * MIB);
    let cache = builder.scan_threads(2).pin(false).residence(Residence::Image).open().unwrap();
    let stats = one_of_each(&cache);
    let leases = LeaseStats { hot: 1, warm: 1, stream: 1, cold: 0, missed: 1, failed: 0 };
    assert_eq!(stats.leases, leases);
    let loads = LoadStats { begun: 2, sealed: 1, failed: 0, cancelled: 1, bytes: 4 * MIB };
    assert_eq!(stats.loads, loads);
    assert_eq!((stats.commits.done, stats.commits.failed), (1, 0));
    let file_bytes = stats.commits.bytes;
    assert!((4 * MIB..5 * MIB).contains(&file_bytes), "{file_bytes}");
    assert_eq!(stats.warmings, WayStats { done: 1, failed: 0, bytes: file_bytes });
    assert_eq!(stats.evictions, LeftStats { slices: 1, bytes: file_bytes });
    assert_eq!(stats.flushes, LeftStats { slices: 1, bytes: file_bytes });
    assert_eq!((stats.erasures, stats.verification_failures, stats.events_lost), (1, 0, 0));
    assert_eq!(stats.scrub, ScrubStats { rate: None, whole: 0, damaged: 0, unread: 0, bytes: 0 });
    let waits = [&stats.waits.lease, &stats.waits.load, &stats.waits.warm, &stats.waits.commit];
    assert_eq!(waits.map(|waits| waits.count), [3, 1, 1, 1]);
    assert_eq!((stats.memory.images, stats.memory.mapped), (0, 0));
    assert_eq!(stats.memory.max, cache.memory_max());

    let spindle = &stats.spindles[0];
    assert_eq!((spindle.number, spindle.capacity, spindle.reserved), (0, 1 << 30, 0));
    assert_eq!((spindle.used, spindle.state), (0, HealthState::Ok));
    // Regions are written in whole pages; the manifest is small, and so is what recovery reads.
    let (written, read) = (op(&stats, OpKind::Write), op(&stats, OpKind::Read));
    assert!((file_bytes..file_bytes + MIB).contains(&written.bytes), "{written:?}");
    assert!((file_bytes..file_bytes + MIB).contains(&read.bytes), "{read:?}");
    assert!(op(&stats, OpKind::Sync).done >= 2 && op(&stats, OpKind::Unlink).done >= 3);
    assert_eq!(op(&stats, OpKind::Write).failed, 0);
}

#[test]
fn the_figures_are_written_under_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let cache =
        Cache::builder().spindle(folder.path().join("spindle"), 1 << 30).memory(64 * MIB).open().unwrap();
    let json = serde_json::to_value(cache.stats()).unwrap();
    for (pointer, expected) in [
        ("/leases/hot", serde_json::json!(0)),
        ("/scrub/rate", serde_json::Value::Null),
        ("/memory/max", serde_json::json!(cache.memory_max())),
        ("/spindles/0/state", serde_json::json!("ok")),
        ("/spindles/0/ops/0/op", serde_json::json!("read")),
        ("/waits/warm/steps", serde_json::json!([])),
    ] {
        assert_eq!(json.pointer(pointer), Some(&expected), "{pointer}");
    }
    for (number, kind) in OpKind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, number);
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}

#[cfg(feature = "metrics")]
mod metrics_facade {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, KeyName, Metadata, Recorder,
        SharedString, Unit,
    };

    use super::*;

    /// Keeps what it is told.
    #[derive(Default)]
    struct Kept {
        figures: Mutex<BTreeMap<(&'static str, String), Arc<Number>>>,
    }

    #[derive(Default)]
    struct Number(AtomicU64);

    impl Kept {
        fn keep(&self, kind: &'static str, key: &metrics::Key) -> Arc<Number> {
            let mut labels: Vec<String> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            labels.sort();
            let name = format!("{}{{{}}}", key.name(), labels.join(","));
            self.figures.lock().unwrap().entry((kind, name)).or_default().clone()
        }

        fn value(&self, kind: &'static str, name: &str) -> u64 {
            let figures = self.figures.lock().unwrap();
            let number = figures.get(&(kind, name.to_owned())).unwrap_or_else(|| panic!("no {kind} {name}"));
            number.0.load(Ordering::Relaxed)
        }
    }

    impl CounterFn for Number {
        fn increment(&self, value: u64) {
            self.0.fetch_add(value, Ordering::Relaxed);
        }

        fn absolute(&self, value: u64) {
            self.0.store(value, Ordering::Relaxed);
        }
    }

    impl GaugeFn for Number {
        fn increment(&self, _: f64) {
            unreachable!("levels are set");
        }

        fn decrement(&self, _: f64) {
            unreachable!("levels are set");
        }

        fn set(&self, value: f64) {
            self.0.store(value as u64, Ordering::Relaxed);
        }
    }

    impl HistogramFn for Number {
        fn record(&self, _: f64) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Recorder for Kept {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, key: &metrics::Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.keep("counter", key))
        }

        fn register_gauge(&self, key: &metrics::Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.keep("gauge", key))
        }

        fn register_histogram(&self, key: &metrics::Key, _: &Metadata<'_>) -> Histogram {
            Histogram::from_arc(self.keep("histogram", key))
        }
    }

    #[test]
    fn a_recorder_is_told_what_the_statistics_say() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Arc::new(Kept::default());
        let builder = Cache::builder().spindle(folder.path().join("spindle"), 1 << 30).memory(256 * MIB);
        let cache = builder.scan_threads(2).pin(false).recorder(kept.clone()).open().unwrap();
        // Another cache of the process has another recorder: none.
        let other = tempfile::tempdir().unwrap();
        let other =
            Cache::builder().spindle(other.path().join("spindle"), 1 << 30).memory(64 * MIB).open().unwrap();
        load(&other);
        let stats = one_of_each(&cache);
        for (name, value) in [
            ("pelton_leases_total{tier=hot}", stats.leases.hot),
            ("pelton_leases_total{tier=warm}", stats.leases.warm),
            ("pelton_leases_total{tier=stream}", stats.leases.stream),
            ("pelton_leases_refused_total{outcome=missed}", stats.leases.missed),
            ("pelton_loads_total{outcome=sealed}", 1),
            ("pelton_loaded_bytes_total{}", 4 * MIB),
            ("pelton_committed_bytes_total{}", stats.commits.bytes),
            ("pelton_evicted_bytes_total{}", stats.evictions.bytes),
            ("pelton_erasures_total{}", 1),
            ("pelton_spindle_bytes_total{op=write,spindle=0}", op(&stats, OpKind::Write).bytes),
            ("pelton_spindle_ops_total{op=sync,outcome=done,spindle=0}", op(&stats, OpKind::Sync).done),
        ] {
            assert_eq!(kept.value("counter", name), value, "{name}");
        }
        assert_eq!(kept.value("gauge", "pelton_spindle_capacity_bytes{spindle=0}"), 1 << 30);
        assert_eq!(kept.value("gauge", "pelton_memory_max_bytes{}"), stats.memory.max);
        assert_eq!(kept.value("histogram", "pelton_lease_wait_seconds{}"), 3);
    }

    /// Goal: the page lists what is emitted, and nothing else. Method: the names, kinds, labels and values that a cache
    /// registers, beside those in the page's table.
    #[test]
    fn the_page_lists_every_figure_with_its_labels() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Arc::new(Kept::default());
        let builder = Cache::builder().spindle(folder.path().join("spindle"), 1 << 30).memory(64 * MIB);
        let _cache = builder.recorder(kept.clone()).open().unwrap();
        let mut emitted: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
        for (kind, name) in kept.figures.lock().unwrap().keys() {
            let (name, labels) = name.trim_end_matches('}').split_once('{').unwrap();
            let labels = labels.split(',').filter(|label| !label.is_empty()).map(|label| match label {
                "spindle=0" => "spindle=number".to_owned(),
                label => label.to_owned(),
            });
            let of = emitted.entry(name.to_owned()).or_insert((kind.to_string(), BTreeSet::new()));
            of.1.extend(labels);
        }
        let page = include_str!("../../../docs/operations.md");
        let rows = page.lines().filter(|line| line.starts_with("| `pelton_"));
        let listed: BTreeMap<String, (String, BTreeSet<String>)> = rows.map(read_row).collect();
        assert_eq!(listed, emitted);
    }

    /// A row: name, kind, labels as `name`: value, value; `name`: ..
    fn read_row(row: &str) -> (String, (String, BTreeSet<String>)) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let mut labels = BTreeSet::new();
        for label in cells[2].split(';').filter(|label| !label.is_empty()) {
            let (name, values) = label.trim().split_once(':').unwrap_or_else(|| panic!("{row}"));
            for value in values.split(',') {
                labels.insert(format!("{}={}", name.trim().trim_matches('`'), value.trim()));
            }
        }
        (cells[0].trim_matches('`').to_owned(), (cells[1].to_owned(), labels))
    }
}

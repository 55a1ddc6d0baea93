//! The counters of one cache. Relaxed: each is right by itself, and none publishes anything but itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::spindle::engine::OpKind;
use crate::spindle::health::HealthState;
use crate::stats::recorder::{Figure, Kind, Registrar};
use crate::stats::spread::SpreadSum;
use crate::stats::wait_times::WaitMeter;
use crate::stats::{
    CacheStats, LeaseStats, LeftStats, LoadStats, MemoryStats, OpStats, ScrubStats, SpindleStats, WaitStats,
    WayStats,
};

/// A number that only grows.
pub(crate) struct Count {
    pub(super) value: AtomicU64,
    #[cfg(feature = "metrics")]
    pub(super) twin: metrics::Counter,
}

impl Default for Count {
    fn default() -> Count {
        Count {
            value: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            twin: metrics::Counter::noop(),
        }
    }
}

impl Count {
    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, count: u64) {
        self.value.fetch_add(count, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.twin.increment(count);
    }

    pub(crate) fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// Hot leases that took no time: counted as often as queries come, so each thread has a place of its own for it.
pub(crate) struct AtOnce {
    sum: SpreadSum,
    /// As leases, and as times: those of the others.
    #[cfg(feature = "metrics")]
    twins: (metrics::Counter, metrics::Histogram),
}

impl AtOnce {
    fn beside(leases: &Count, waits: &WaitMeter) -> AtOnce {
        #[cfg(not(feature = "metrics"))]
        let _ = (leases, waits);
        AtOnce {
            sum: SpreadSum::default(),
            #[cfg(feature = "metrics")]
            twins: (leases.twin.clone(), waits.twin.clone()),
        }
    }

    pub(crate) fn one(&self) {
        self.sum.add(1);
        #[cfg(feature = "metrics")]
        {
            self.twins.0.increment(1);
            self.twins.1.record(0.0);
        }
    }
}

/// A number that goes up and down. It stands elsewhere, and is only told to the recorder.
pub(crate) struct Level {
    #[cfg(feature = "metrics")]
    pub(super) twin: metrics::Gauge,
}

impl Level {
    fn set(&self, value: u64) {
        #[cfg(feature = "metrics")]
        self.twin.set(value as f64);
        let _ = value;
    }
}

/// What happened on a way between memory and disk.
pub(crate) struct Way {
    done: Count,
    failed: Count,
    bytes: Count,
    took: WaitMeter,
}

impl Way {
    pub(crate) fn done(&self, bytes: u64, took: Duration) {
        self.done.one();
        self.bytes.add(bytes);
        self.took.took(took);
    }

    pub(crate) fn failed(&self) {
        self.failed.one();
    }

    fn stats(&self) -> WayStats {
        WayStats { done: self.done.value(), failed: self.failed.value(), bytes: self.bytes.value() }
    }
}

/// What left a place.
pub(crate) struct Left {
    slices: Count,
    bytes: Count,
}

impl Left {
    pub(crate) fn one(&self, bytes: u64) {
        self.slices.one();
        self.bytes.add(bytes);
    }

    fn stats(&self) -> LeftStats {
        LeftStats { slices: self.slices.value(), bytes: self.bytes.value() }
    }
}

/// The operations of one spindle.
pub(crate) struct OpMeter {
    kinds: Vec<KindMeter>,
}

struct KindMeter {
    done: Count,
    failed: Count,
    bytes: Count,
}

impl OpMeter {
    /// For the spindle of this number.
    pub(crate) fn new(registrar: &Registrar, spindle: usize) -> OpMeter {
        let number = spindle.to_string();
        let kind = |kind: OpKind| {
            let of = |outcome| [("spindle", &*number), ("op", kind.name()), ("outcome", outcome)];
            KindMeter {
                done: registrar.count(&SPINDLE_OPS, &of("done")),
                failed: registrar.count(&SPINDLE_OPS, &of("failed")),
                bytes: registrar.count(&SPINDLE_BYTES, &of("done")[..2]),
            }
        };
        OpMeter { kinds: OpKind::ALL.map(kind).into() }
    }

    /// An operation has ended.
    pub(crate) fn ended(&self, op: OpKind, bytes: u64, is_done: bool) {
        let kind = &self.kinds[op as usize];
        match is_done {
            true => {
                kind.done.one();
                if bytes > 0 {
                    kind.bytes.add(bytes);
                }
            }
            false => kind.failed.one(),
        }
    }

    pub(crate) fn stats(&self) -> Vec<OpStats> {
        let stats = |(op, kind): (OpKind, &KindMeter)| OpStats {
            op,
            done: kind.done.value(),
            failed: kind.failed.value(),
            bytes: kind.bytes.value(),
        };
        OpKind::ALL.into_iter().zip(&self.kinds).map(stats).collect()
    }
}

/// The counters of one cache.
pub(crate) struct Meter {
    pub(crate) leases_at_once: AtOnce,
    /// The other hot ones.
    pub(crate) hot_leases: Count,
    pub(crate) warm_leases: Count,
    pub(crate) stream_leases: Count,
    pub(crate) cold_leases: Count,
    pub(crate) missed_leases: Count,
    pub(crate) failed_leases: Count,
    pub(crate) lease_waits: WaitMeter,
    pub(crate) begun_loads: Count,
    pub(crate) failed_loads: Count,
    pub(crate) cancelled_loads: Count,
    sealed_loads: Count,
    loaded_bytes: Count,
    load_waits: WaitMeter,
    pub(crate) commits: Way,
    pub(crate) warmings: Way,
    pub(crate) evictions: Left,
    pub(crate) flushes: Left,
    pub(crate) erasures: Count,
    pub(crate) verification_failures: Count,
    pub(crate) scrubbed_whole: Count,
    pub(crate) scrubbed_damaged: Count,
    pub(crate) scrubbed_unread: Count,
    pub(crate) scrubbed_bytes: Count,
    pub(crate) events_lost: Count,
    levels: Levels,
}

struct Levels {
    images: Level,
    mapped: Level,
    buffers: Level,
    memory_max: Level,
    spindles: Vec<SpindleLevels>,
}

struct SpindleLevels {
    capacity: Level,
    used: Level,
    reserved: Level,
    queued: Level,
    under_way: Level,
    trusted: Level,
}

impl Meter {
    /// Of a cache with so many spindles.
    pub(crate) fn new(registrar: &Registrar, spindles: usize) -> Meter {
        let count = |figure: &Figure| registrar.count(figure, &[]);
        let tier = |tier| registrar.count(&LEASES, &[("tier", tier)]);
        let outcome = |figure: &Figure, outcome| registrar.count(figure, &[("outcome", outcome)]);
        let way = |all: &Figure, bytes: &Figure, took: &Figure| Way {
            done: outcome(all, "done"),
            failed: outcome(all, "failed"),
            bytes: count(bytes),
            took: registrar.waits(took),
        };
        let left = |slices: &Figure, bytes: &Figure| Left { slices: count(slices), bytes: count(bytes) };
        let (hot_leases, lease_waits) = (tier("hot"), registrar.waits(&LEASE_WAIT));
        Meter {
            leases_at_once: AtOnce::beside(&hot_leases, &lease_waits),
            hot_leases,
            warm_leases: tier("warm"),
            stream_leases: tier("stream"),
            cold_leases: tier("cold"),
            missed_leases: outcome(&LEASES_REFUSED, "missed"),
            failed_leases: outcome(&LEASES_REFUSED, "failed"),
            lease_waits,
            begun_loads: count(&LOADS_BEGUN),
            failed_loads: outcome(&LOADS, "failed"),
            cancelled_loads: outcome(&LOADS, "cancelled"),
            sealed_loads: outcome(&LOADS, "sealed"),
            loaded_bytes: count(&LOADED_BYTES),
            load_waits: registrar.waits(&LOAD_WAIT),
            commits: way(&COMMITS, &COMMITTED_BYTES, &COMMIT_WAIT),
            warmings: way(&WARMINGS, &WARMED_BYTES, &WARM_WAIT),
            evictions: left(&EVICTIONS, &EVICTED_BYTES),
            flushes: left(&FLUSHES, &FLUSHED_BYTES),
            erasures: count(&ERASURES),
            verification_failures: count(&VERIFICATION_FAILURES),
            scrubbed_whole: outcome(&SCRUBBED, "whole"),
            scrubbed_damaged: outcome(&SCRUBBED, "damaged"),
            scrubbed_unread: outcome(&SCRUBBED, "unread"),
            scrubbed_bytes: count(&SCRUBBED_BYTES),
            events_lost: count(&EVENTS_LOST),
            levels: Levels::new(registrar, spindles),
        }
    }

    /// All of a load has come.
    pub(crate) fn sealed(&self, bytes: u64, took: Duration) {
        self.sealed_loads.one();
        self.loaded_bytes.add(bytes);
        self.load_waits.took(took);
    }

    /// All that is counted, with what stands elsewhere. What goes up and down is told to the recorder.
    pub(crate) fn stats(
        &self,
        scrub_rate: Option<u64>,
        memory: MemoryStats,
        spindles: Vec<SpindleStats>,
    ) -> CacheStats {
        self.levels.tell(&memory, &spindles);
        let at_once = self.leases_at_once.sum.value();
        CacheStats {
            leases: LeaseStats {
                hot: at_once + self.hot_leases.value(),
                warm: self.warm_leases.value(),
                stream: self.stream_leases.value(),
                cold: self.cold_leases.value(),
                missed: self.missed_leases.value(),
                failed: self.failed_leases.value(),
            },
            loads: LoadStats {
                begun: self.begun_loads.value(),
                sealed: self.sealed_loads.value(),
                failed: self.failed_loads.value(),
                cancelled: self.cancelled_loads.value(),
                bytes: self.loaded_bytes.value(),
            },
            commits: self.commits.stats(),
            warmings: self.warmings.stats(),
            evictions: self.evictions.stats(),
            flushes: self.flushes.stats(),
            erasures: self.erasures.value(),
            verification_failures: self.verification_failures.value(),
            scrub: ScrubStats {
                rate: scrub_rate,
                whole: self.scrubbed_whole.value(),
                damaged: self.scrubbed_damaged.value(),
                unread: self.scrubbed_unread.value(),
                bytes: self.scrubbed_bytes.value(),
            },
            memory,
            spindles,
            waits: WaitStats {
                lease: self.lease_waits.times().with_instant(at_once),
                load: self.load_waits.times(),
                warm: self.warmings.took.times(),
                commit: self.commits.took.times(),
            },
            events_lost: self.events_lost.value(),
        }
    }
}

impl Levels {
    fn new(registrar: &Registrar, spindles: usize) -> Levels {
        let level = |figure: &Figure| registrar.level(figure, &[]);
        let spindle = |number: usize| {
            let number = number.to_string();
            let level = |figure: &Figure| registrar.level(figure, &[("spindle", &number)]);
            SpindleLevels {
                capacity: level(&SPINDLE_CAPACITY),
                used: level(&SPINDLE_USED),
                reserved: level(&SPINDLE_RESERVED),
                queued: level(&SPINDLE_QUEUED),
                under_way: level(&SPINDLE_UNDER_WAY),
                trusted: level(&SPINDLE_TRUSTED),
            }
        };
        Levels {
            images: level(&IMAGES_BYTES),
            mapped: level(&MAPPED_BYTES),
            buffers: level(&BUFFERS_BYTES),
            memory_max: level(&MEMORY_MAX_BYTES),
            spindles: (0..spindles).map(spindle).collect(),
        }
    }

    fn tell(&self, memory: &MemoryStats, spindles: &[SpindleStats]) {
        self.images.set(memory.images);
        self.mapped.set(memory.mapped);
        self.buffers.set(memory.buffers);
        self.memory_max.set(memory.max);
        for (levels, spindle) in self.spindles.iter().zip(spindles) {
            levels.capacity.set(spindle.capacity);
            levels.used.set(spindle.used);
            levels.reserved.set(spindle.reserved);
            levels.queued.set(spindle.queued);
            levels.under_way.set(spindle.under_way);
            levels.trusted.set(u64::from(matches!(spindle.state, HealthState::Ok | HealthState::Suspect)));
        }
    }
}

const fn counter(name: &'static str) -> Figure {
    Figure { name, kind: Kind::Counter }
}

const fn gauge(name: &'static str) -> Figure {
    Figure { name, kind: Kind::Gauge }
}

const fn histogram(name: &'static str) -> Figure {
    Figure { name, kind: Kind::Histogram }
}

static LEASES: Figure = counter("pelton_leases_total");
static LEASES_REFUSED: Figure = counter("pelton_leases_refused_total");
static LEASE_WAIT: Figure = histogram("pelton_lease_wait_seconds");
static LOADS_BEGUN: Figure = counter("pelton_loads_begun_total");
static LOADS: Figure = counter("pelton_loads_total");
static LOADED_BYTES: Figure = counter("pelton_loaded_bytes_total");
static LOAD_WAIT: Figure = histogram("pelton_load_wait_seconds");
static COMMITS: Figure = counter("pelton_commits_total");
static COMMITTED_BYTES: Figure = counter("pelton_committed_bytes_total");
static COMMIT_WAIT: Figure = histogram("pelton_commit_wait_seconds");
static WARMINGS: Figure = counter("pelton_warmings_total");
static WARMED_BYTES: Figure = counter("pelton_warmed_bytes_total");
static WARM_WAIT: Figure = histogram("pelton_warm_wait_seconds");
static EVICTIONS: Figure = counter("pelton_evictions_total");
static EVICTED_BYTES: Figure = counter("pelton_evicted_bytes_total");
static FLUSHES: Figure = counter("pelton_flushes_total");
static FLUSHED_BYTES: Figure = counter("pelton_flushed_bytes_total");
static ERASURES: Figure = counter("pelton_erasures_total");
static VERIFICATION_FAILURES: Figure = counter("pelton_verification_failures_total");
static SCRUBBED: Figure = counter("pelton_scrubbed_slices_total");
static SCRUBBED_BYTES: Figure = counter("pelton_scrubbed_bytes_total");
static EVENTS_LOST: Figure = counter("pelton_events_lost_total");
static SPINDLE_OPS: Figure = counter("pelton_spindle_ops_total");
static SPINDLE_BYTES: Figure = counter("pelton_spindle_bytes_total");
static IMAGES_BYTES: Figure = gauge("pelton_images_bytes");
static MAPPED_BYTES: Figure = gauge("pelton_mapped_bytes");
static BUFFERS_BYTES: Figure = gauge("pelton_buffers_bytes");
static MEMORY_MAX_BYTES: Figure = gauge("pelton_memory_max_bytes");
static SPINDLE_CAPACITY: Figure = gauge("pelton_spindle_capacity_bytes");
static SPINDLE_USED: Figure = gauge("pelton_spindle_used_bytes");
static SPINDLE_RESERVED: Figure = gauge("pelton_spindle_reserved_bytes");
static SPINDLE_QUEUED: Figure = gauge("pelton_spindle_queued_ops");
static SPINDLE_UNDER_WAY: Figure = gauge("pelton_spindle_under_way_ops");
static SPINDLE_TRUSTED: Figure = gauge("pelton_spindle_trusted");

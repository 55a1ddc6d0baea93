//! How much memory a load takes that is far larger than its budget.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pelton::{Durability, WritePath};

use super::MIB;
use crate::disk::{Blobs, Store};
use crate::frame::{Failure, Gauge, GaugeCase};

/// The least that a cache takes.
const BUDGET_BYTES: u64 = 64 * MIB;

/// What the budget does not count: code, stacks, the program itself.
const BESIDE_BYTES: u64 = 64 * MIB;

/// Between two looks.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);

pub(super) const CASE: GaugeCase = GaugeCase {
    bench: "load",
    name: "memory while loading",
    unit: "MiB",
    against: "budget+64 MiB",
    ratio_max: 1.0,
};

/// Loads with a small budget, as fast as one producer can, and looks every 10 ms.
pub(super) fn load(folder: &Path, blobs: Blobs) -> Result<Gauge, Failure> {
    let store = Store::open(folder, BUDGET_BYTES)?;
    let before = own_bytes()?;
    let done = AtomicBool::new(false);
    let peak = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Acquire) {
                peak = peak.max(own_bytes()?);
                std::thread::sleep(SAMPLE_EVERY);
            }
            Ok::<_, Failure>(peak)
        });
        let loaded = store.load(Store::plan(WritePath::Auto, Durability::Wait), &blobs);
        done.store(true, Ordering::Release);
        let peak = watch.join().expect("looking does not panic");
        loaded.and(peak)
    })?;
    store.flush()?;
    // Earlier benchmarks may have left something with the allocator: that is theirs.
    let used = peak.saturating_sub(before) as f64 / MIB as f64;
    Ok(Gauge { value: used, limit: (BUDGET_BYTES + BESIDE_BYTES) as f64 / MIB as f64 })
}

/// What of the process lies in memory and is no file's: anonymous and shared pages.
fn own_bytes() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    match (kib("RssAnon:"), kib("RssShmem:")) {
        (Some(anon), Some(shared)) => Ok((anon + shared) * 1024),
        _ => Err(Failure::because("/proc/self/status does not tell RssAnon and RssShmem")),
    }
}

//! How much memory a load takes that is far larger than its budget.

use std::path::Path;

use pelton::{Durability, WritePath};

use super::MIB;
use crate::disk::{Blobs, Store};
use crate::frame::{Failure, Gauge, GaugeCase, watch_memory};

/// The least that a cache takes.
const BUDGET_BYTES: u64 = 64 * MIB;

/// What the budget does not count: code, stacks, the program itself.
const BESIDE_BYTES: u64 = 64 * MIB;

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
    let used = watch_memory(|| {
        store.load(Store::plan(WritePath::Auto, Durability::Wait), &blobs)?;
        Ok(())
    })?;
    store.flush()?;
    Ok(Gauge { value: used as f64 / MIB as f64, limit: (BUDGET_BYTES + BESIDE_BYTES) as f64 / MIB as f64 })
}

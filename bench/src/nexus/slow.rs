//! How much memory a node takes while many streams come slowly, and together are more than its budget.

use std::path::Path;

use pelton::nexus::feed::{FeedOptions, Puller};
use pelton::nexus::{ClientSecurity, Codec, Dial};
use pelton::{CancelToken, Durability, WritePath};

use super::MIB;
use super::certificates::Certificates;
use super::feed::sources;
use super::source::{BLOB_BYTES, SLOWLY, SourceProcess};
use crate::disk::{Store, Texture};
use crate::frame::{Failure, Gauge, GaugeCase, watch_memory};

/// The least that a cache takes.
const BUDGET_BYTES: u64 = 64 * MIB;

/// What the budget does not count: code, stacks, connections, the program itself.
const BESIDE_BYTES: u64 = 64 * MIB;

const STREAMS: u64 = 32;

pub(super) const CASE: GaugeCase = GaugeCase {
    bench: "nexus",
    name: "memory, 32 slow streams",
    unit: "MiB",
    against: "budget+64 MiB",
    ratio_max: 1.0,
};

/// Pulls by 32 lanes into one slice, and looks every 10 ms.
pub(super) fn pull(folder: &Path, seed: u64, bytes: u64) -> Result<Gauge, Failure> {
    Certificates::make(&folder.join("certificates"))?;
    let source = SourceProcess::start(seed, Texture::Noise, &folder.join("certificates"))?;
    let dial = Dial::new(&source.feed, ClientSecurity::Plain)?;
    let store = Store::open(&folder.join("spindle"), BUDGET_BYTES)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut options = FeedOptions::default();
    options.profile.codecs = vec![Codec::None];
    let puller = Puller::new(runtime.handle().clone()).options(options);
    let sources = sources(&dial, STREAMS, (bytes / STREAMS / BLOB_BYTES as u64).max(1), SLOWLY);
    let used = watch_memory(|| {
        let writer = store.writer(Store::plan(WritePath::Auto, Durability::Wait))?;
        puller.pull(&writer, store.fingerprint(), &sources, None, &CancelToken::new())?;
        writer.wait_for_writes()?.close_for_writes()?;
        Ok(())
    })?;
    store.flush()?;
    Ok(Gauge { value: used as f64 / MIB as f64, limit: (BUDGET_BYTES + BESIDE_BYTES) as f64 / MIB as f64 })
}

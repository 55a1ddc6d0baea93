//! A cache's figures, brought together from where they stand.

use std::sync::Arc;

use crate::cache::Cache;
use crate::spindle::held::Spindle;
use crate::stats::{CacheStats, MemoryStats, SpindleStats};

impl Cache {
    /// What it has done since it was opened, and what it holds now. Asks no disk and no kernel, so it may be called
    /// often. What goes up and down is told to the recorder of the `metrics` facade by this call.
    pub fn stats(&self) -> CacheStats {
        let counts = self.core.budget.counts();
        let (pieces, streams) = (self.core.pieces.counts(), self.core.streams.rings.counts());
        let memory = MemoryStats {
            images: counts.images,
            mapped: counts.mapped,
            buffers: counts.buffers + pieces.buffers + streams.buffers,
            max: self.memory_max(),
        };
        let spindles = self.core.spindles.iter().enumerate().map(spindle_stats).collect();
        self.core.events.meter.stats(self.core.scrub_rate, memory, spindles)
    }
}

fn spindle_stats((number, spindle): (usize, &Arc<Spindle>)) -> SpindleStats {
    let counts = spindle.room.counts();
    let (queued, under_way) = spindle.impellers.depths();
    SpindleStats {
        number,
        folder: spindle.folder.clone(),
        state: spindle.watch.state(),
        capacity: counts.capacity,
        used: counts.used,
        reserved: counts.reserved,
        queued,
        under_way,
        ops: spindle.watch.ops.stats(),
    }
}

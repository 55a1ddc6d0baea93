//! What the tender goes by, and what it has done: for people who wonder.

use std::ops::AddAssign;
use std::time::Instant;

use super::policy::Level;
use crate::config::host::{MemoryLimit, PressureSource};

/// How a cache is tended, at one moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TenderStatus {
    /// Whether it is: not if that was switched off, if the system gave no thread, or after the cache was closed.
    pub running: bool,
    /// Images and mapped regions. Mapped ones count as what was taken of the budget for them; the tender itself counts
    /// what of them is in memory.
    pub memory: Level,
    /// How much memory there is for this process, and who says so. Nothing where it can't be told.
    pub memory_limit: Option<MemoryLimit>,
    /// Each spindle, in their order.
    pub spindles: Vec<Level>,
    /// Who tells how much tasks wait for memory.
    pub pressure_source: PressureSource,
    /// In which share of the last ten seconds, in percent, some task did, when the tender last looked.
    pub stalled_percent: Option<f32>,
    /// The last round.
    pub last: Option<TenderRound>,
    /// All that has gone by itself since the cache was opened.
    pub sums: TenderSums,
}

/// One round of the tender.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TenderRound {
    /// When it was over.
    pub at: Instant,
    /// What went.
    pub did: TenderSums,
    /// How many bytes of memory stay above the low mark, because nothing more may go.
    pub memory_short: u64,
    /// The same for each spindle.
    pub spindles_short: Vec<u64>,
}

/// How many snaps went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TenderSums {
    /// From memory.
    pub evicted: u64,
    /// From the disks, and from memory.
    pub flushed: u64,
    /// Altogether.
    pub erased: u64,
}

impl AddAssign for TenderSums {
    fn add_assign(&mut self, more: TenderSums) {
        self.evicted += more.evicted;
        self.flushed += more.flushed;
        self.erased += more.erased;
    }
}

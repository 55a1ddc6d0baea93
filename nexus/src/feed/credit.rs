//! Leave to send, and the memory behind it.

use pelton_nexus_proto::{LimitExceeded, Rooms};
use pelton_worker::{BufferGrant, Buffers, MemoryRefused};
use tokio::sync::OwnedSemaphorePermit;

use crate::limits::NodeLimits;

/// Where a stream's credit comes from: the cache's memory for parcels, within what the node allows.
///
/// There are two ways to it. Up to the window a stream is given what others do not need, at once or not at all. What a
/// sender says it needs is waited for, by one stream at a time.
#[derive(Clone, Debug)]
pub(crate) struct CreditLine {
    buffers: Buffers,
    limits: NodeLimits,
    window: u64,
}

/// Credit that was taken. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Credit {
    memory: BufferGrant,
    place: OwnedSemaphorePermit,
}

/// Why there will never be so much credit.
#[derive(Debug)]
pub(crate) enum CreditRefused {
    Limit(LimitExceeded),
    Memory(MemoryRefused),
}

impl CreditLine {
    pub(crate) fn new(buffers: Buffers, limits: NodeLimits, window: u64) -> CreditLine {
        // Several streams side by side, each with several parcels on their way.
        let window = window.min(buffers.share() / 4);
        CreditLine { buffers, limits, window }
    }

    /// Where what comes is received.
    pub(crate) fn rooms(&self) -> &Rooms {
        self.limits.rooms()
    }

    /// How much a stream is given ahead.
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// So much, if nobody else needs it.
    pub(crate) fn spare(&self, bytes: u64) -> Option<Credit> {
        let place = self.limits.spare(bytes)?;
        let memory = self.buffers.spare(bytes, self.buffers.share() / 4)?;
        Some(Credit { memory, place })
    }

    /// So much, when it is free.
    pub(crate) async fn need(self, bytes: u64) -> Result<Credit, CreditRefused> {
        let _turn = self.limits.turn().await;
        let place = self.limits.need(bytes).await.map_err(CreditRefused::Limit)?;
        let memory = self.buffers.take(bytes).await.map_err(CreditRefused::Memory)?;
        Ok(Credit { memory, place })
    }
}

impl Credit {
    pub(crate) fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Cuts a part off.
    pub(crate) fn split(&mut self, bytes: u64) -> Credit {
        let permits = usize::try_from(bytes).expect("it is a part of what is in memory");
        let place = self.place.split(permits).expect("a part is not larger than the whole");
        Credit { memory: self.memory.split(bytes), place }
    }

    /// Takes another one in.
    pub(crate) fn join(&mut self, other: Credit) {
        self.memory.join(other.memory);
        self.place.merge(other.place);
    }

    /// The memory alone: what is handed on is not in flight any more.
    pub(crate) fn into_memory(self) -> BufferGrant {
        self.memory
    }
}

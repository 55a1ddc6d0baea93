//! Leave to send, and the memory behind it.

use std::time::Duration;

use pelton_nexus_proto::{LimitExceeded, Rooms};
use pelton_worker::{BufferGrant, Buffers, MemoryRefused};
use tokio::sync::OwnedSemaphorePermit;

use crate::limits::NodeLimits;

/// Where a stream's credit comes from: the cache's memory for parcels, within what the node allows.
///
/// There are two ways to it. Up to the window a stream is given what others do not need, at once or not at all. What a
/// sender says it needs is waited for, by one stream at a time, and not for ever.
///
/// Windows take a half of the memory at most, all together, and a need no more than the other half. Credit can't be called
/// back: if a need could want what windows have, its stream and one with a rest of a window would wait for each other.
#[derive(Clone, Debug)]
pub(crate) struct CreditLine {
    buffers: Buffers,
    limits: NodeLimits,
    window: u64,
    need_wait_max: Duration,
}

/// Credit that was taken. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Credit {
    memory: BufferGrant,
    place: OwnedSemaphorePermit,
}

/// Why there is not so much credit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreditRefused {
    #[error(transparent)]
    Limit(LimitExceeded),
    #[error(transparent)]
    Memory(MemoryRefused),
    #[error(
        "a parcel that costs {wanted} bytes is more than the {max} that one may take of the memory for parcels"
    )]
    Share { wanted: u64, max: u64 },
    #[error("no memory for a parcel became free for {0:?}")]
    Late(Duration),
}

impl CreditLine {
    pub(crate) fn new(
        buffers: Buffers,
        limits: NodeLimits,
        window: u64,
        need_wait_max: Duration,
    ) -> CreditLine {
        // Several streams side by side, each with several parcels on their way.
        let window = window.min(buffers.share() / 4);
        CreditLine { buffers, limits, window, need_wait_max }
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
        let memory = self.buffers.spare(bytes, self.buffers.share() / 2)?;
        Some(Credit { memory, place })
    }

    /// So much, when it is free.
    pub(crate) async fn need(self, bytes: u64) -> Result<Credit, CreditRefused> {
        let max = self.buffers.share() - self.buffers.share() / 2;
        if bytes > max {
            return Err(CreditRefused::Share { wanted: bytes, max });
        }
        let needing = async {
            let _turn = self.limits.turn().await;
            let place = self.limits.need(bytes).await.map_err(CreditRefused::Limit)?;
            let memory = self.buffers.take(bytes).await.map_err(CreditRefused::Memory)?;
            Ok(Credit { memory, place })
        };
        let late = CreditRefused::Late(self.need_wait_max);
        tokio::time::timeout(self.need_wait_max, needing).await.unwrap_or(Err(late))
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

#[cfg(test)]
mod tests {
    use pelton_nexus_proto::Limits;
    use pelton_worker::Cache;

    use super::*;

    fn line(wait: Duration) -> (tempfile::TempDir, Cache, CreditLine) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::builder().spindle(folder.path().join("spindle"), 1 << 30).memory(256 << 20);
        let cache = cache.open().unwrap();
        let line = CreditLine::new(cache.buffers(), NodeLimits::new(Limits::default()), 8 << 20, wait);
        (folder, cache, line)
    }

    /// Windows that nobody uses up would otherwise make the one who needs more wait, and the others behind it.
    #[tokio::test]
    async fn what_one_parcel_may_need_is_there_whatever_windows_are_out() {
        let (_folder, _cache, line) = line(Duration::from_secs(600));
        let (share, window) = (line.buffers.share(), line.window());
        let mut windows = Vec::new();
        while let Some(credit) = line.spare(window) {
            windows.push(credit);
        }
        assert_eq!(windows.iter().map(Credit::bytes).sum::<u64>(), share / 2);
        let needed = line.clone().need(share / 2).await.unwrap();
        assert_eq!(needed.bytes(), share / 2);
        let refused = line.clone().need(share / 2 + 1).await.unwrap_err();
        let text = format!("costs {} bytes is more than the {}", share / 2 + 1, share / 2);
        assert!(refused.to_string().contains(&text), "{refused}");
    }

    #[tokio::test]
    async fn a_need_waits_for_so_long_and_no_longer() {
        let (_folder, _cache, line) = line(Duration::from_millis(50));
        let all = line.buffers.take(line.buffers.share()).await.unwrap();
        assert!(matches!(line.clone().need(1).await, Err(CreditRefused::Late(_))));
        drop(all);
        assert!(line.clone().need(1).await.is_ok(), "nobody has the turn");
    }
}

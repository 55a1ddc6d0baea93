//! What a node allows at once: connections, streams, and the bytes that they have leave to send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pelton_nexus_proto::{Limit, LimitExceeded, Limits, Rooms};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::places::Places;

/// What a node allows at once, over all that it serves. Clones are the same: a node counts in one place, which its door
/// and its services share.
#[derive(Clone, Debug)]
pub struct NodeLimits {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    connections: Places,
    /// One permit for each byte.
    in_flight: Arc<Semaphore>,
    in_flight_max: u64,
    /// Held by the one stream that waits for credit: see [`NodeLimits::need`].
    turn: tokio::sync::Mutex<()>,
    streams: Mutex<Streams>,
    /// Where bodies are packed and received.
    rooms: Rooms,
}

#[derive(Debug, Default)]
struct Streams {
    all: u64,
    by_peer: HashMap<String, u64>,
}

/// One stream's place among those of the node. Given back when dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the place back"]
pub struct StreamPlace {
    shared: Arc<Shared>,
    peer: String,
}

impl NodeLimits {
    /// Allows so much.
    pub fn new(limits: Limits) -> NodeLimits {
        let in_flight_max = limits.in_flight_bytes_max.min(Semaphore::MAX_PERMITS as u64);
        let in_flight = Arc::new(Semaphore::new(in_flight_max as usize));
        let (turn, streams) = (tokio::sync::Mutex::default(), Mutex::default());
        let connections = Places::new(&limits);
        let rooms = Rooms::default();
        let shared = Shared { limits, connections, in_flight, in_flight_max, turn, streams, rooms };
        NodeLimits { shared: Arc::new(shared) }
    }

    /// All limits.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Where connections are counted.
    pub(crate) fn connections(&self) -> &Places {
        &self.shared.connections
    }

    /// The rooms of all streams.
    pub(crate) fn rooms(&self) -> &Rooms {
        &self.shared.rooms
    }

    /// Begins a stream of a peer.
    ///
    /// # Errors
    /// [`LimitExceeded`] for `streams_max` or `peer_streams_max`. Nothing was taken.
    pub fn stream(&self, peer: &str) -> Result<StreamPlace, LimitExceeded> {
        let mut streams = self.shared.lock();
        let of_peer = streams.by_peer.get(peer).copied().unwrap_or(0);
        self.shared.limits.check(Limit::Streams, streams.all + 1)?;
        self.shared.limits.check(Limit::PeerStreams, of_peer + 1)?;
        streams.all += 1;
        streams.by_peer.insert(peer.to_owned(), of_peer + 1);
        Ok(StreamPlace { shared: Arc::clone(&self.shared), peer: peer.to_owned() })
    }

    /// How many streams there are.
    pub fn streams(&self) -> u64 {
        self.shared.lock().all
    }

    /// How many bytes streams have leave to send, or have sent and not handed on.
    pub fn in_flight_bytes(&self) -> u64 {
        self.shared.in_flight_max - self.shared.in_flight.available_permits() as u64
    }

    /// Leave for so many bytes if a half of all is left afterwards: for what is good to have, not needed.
    pub(crate) fn spare(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let free = self.shared.in_flight.available_permits() as u64;
        if bytes.saturating_add(self.shared.in_flight_max / 2) > free {
            return None;
        }
        Arc::clone(&self.shared.in_flight).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }

    /// Leave for so many bytes, when they are free.
    ///
    /// # Errors
    /// [`LimitExceeded`] if it is more than a half of all: the other half may be out with streams that use it up only
    /// after this.
    pub(crate) async fn need(&self, bytes: u64) -> Result<OwnedSemaphorePermit, LimitExceeded> {
        // A parcel's credit is taken by one call, so what can't be told to one can't be given.
        let max = (self.shared.in_flight_max - self.shared.in_flight_max / 2).min(u32::MAX.into());
        let refused = LimitExceeded { limit: Limit::InFlightBytes, found: bytes, max };
        let permits = u32::try_from(bytes).ok().filter(|_| bytes <= max).ok_or(refused)?;
        let taken = Arc::clone(&self.shared.in_flight).acquire_many_owned(permits).await;
        Ok(taken.expect("nobody closes it"))
    }

    /// The turn to wait for credit. One stream at a time has it: two that each hold a half of what both need would
    /// wait for ever. What streams were given unasked makes nobody wait so: see [`NodeLimits::spare`].
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.shared.turn.lock().await
    }
}

impl Default for NodeLimits {
    fn default() -> NodeLimits {
        NodeLimits::new(Limits::default())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Streams> {
        // Each change is one step: what a panic left is whole.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut streams = self.shared.lock();
        streams.all -= 1;
        if let Some(count) = streams.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                streams.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(set: &[(Limit, u64)]) -> NodeLimits {
        let mut limits = Limits::default();
        set.iter().for_each(|&(limit, max)| limits.set(limit, max));
        NodeLimits::new(limits)
    }

    #[test]
    fn streams_are_taken_to_the_edge_and_the_next_is_told_which_limit_it_was() {
        let limits = limited(&[(Limit::Streams, 3), (Limit::PeerStreams, 2)]);
        let first = limits.stream("a").unwrap();
        let _second = limits.stream("a").unwrap();
        let error = limits.stream("a").unwrap_err();
        assert_eq!(error, LimitExceeded { limit: Limit::PeerStreams, found: 3, max: 2 });
        let _third = limits.stream("b").unwrap();
        let error = limits.stream("c").unwrap_err();
        assert_eq!(error, LimitExceeded { limit: Limit::Streams, found: 4, max: 3 });
        drop(first);
        assert_eq!(limits.streams(), 2);
        let _again = limits.stream("a").unwrap();
    }

    #[tokio::test]
    async fn bytes_in_flight_are_given_to_the_edge_and_beyond_it_is_an_error() {
        let limits = limited(&[(Limit::InFlightBytes, 1000)]);
        let half = limits.need(500).await.unwrap();
        assert_eq!(limits.in_flight_bytes(), 500);
        let error = limits.need(501).await.unwrap_err();
        assert_eq!(error, LimitExceeded { limit: Limit::InFlightBytes, found: 501, max: 500 });
        assert!(limits.spare(1).is_none());
        drop(half);
        let window = limits.spare(500).expect("a half is left");
        assert!(limits.spare(1).is_none());
        drop((limits.need(500).await.unwrap(), window));
        assert_eq!(limits.in_flight_bytes(), 0);
    }
}

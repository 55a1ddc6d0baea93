//! How many connections there are, in all and of each peer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pelton_nexus_proto::{Limit, LimitExceeded, Limits};

/// Connections beyond the limit that are told so at once. Those beyond are closed without a word.
const REFUSALS_MAX: u64 = 16;

/// The places of one node.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    connections: u64,
    refusals: u64,
    by_peer: HashMap<String, u64>,
}

/// One connection's place, given back when dropped.
pub(crate) struct Place {
    shared: Arc<Shared>,
}

/// One connection's place among those of its peer, given back when dropped.
pub(crate) struct PeerPlace {
    peer: String,
    place: Place,
}

/// The place of a connection that is refused, given back when dropped.
pub(crate) struct Refusal {
    shared: Arc<Shared>,
}

impl Places {
    pub(crate) fn new(limits: &Limits) -> Places {
        Places { shared: Arc::new(Shared { limits: limits.clone(), table: Mutex::default() }) }
    }

    /// A place for a connection of which nothing is known yet; or why there is none, and a place to say so if there is one.
    pub(crate) fn take(&self) -> Result<Place, Option<(Refusal, LimitExceeded)>> {
        let shared = Arc::clone(&self.shared);
        let mut table = self.shared.lock();
        match self.shared.limits.check(Limit::Connections, table.connections + 1) {
            Ok(()) => {
                table.connections += 1;
                Ok(Place { shared })
            }
            Err(_) if table.refusals >= REFUSALS_MAX => Err(None),
            Err(error) => {
                table.refusals += 1;
                Err(Some((Refusal { shared }, error)))
            }
        }
    }

    /// A place among those of a peer.
    pub(crate) fn take_of_peer(&self, peer: &str, place: Place) -> Result<PeerPlace, LimitExceeded> {
        let mut table = self.shared.lock();
        let count = table.by_peer.get(peer).copied().unwrap_or(0) + 1;
        let checked = self.shared.limits.check(Limit::PeerConnections, count);
        if checked.is_ok() {
            table.by_peer.insert(peer.to_owned(), count);
        }
        // A place that is dropped here takes the lock, too.
        drop(table);
        checked.map(|()| PeerPlace { peer: peer.to_owned(), place })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.lock().connections -= 1;
    }
}

impl Drop for PeerPlace {
    fn drop(&mut self) {
        let mut table = self.place.shared.lock();
        let Some(count) = table.by_peer.get_mut(&self.peer) else { return };
        *count -= 1;
        if *count == 0 {
            table.by_peer.remove(&self.peer);
        }
    }
}

impl Drop for Refusal {
    fn drop(&mut self) {
        self.shared.lock().refusals -= 1;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each change is one step: what a panic left is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_gives_its_last_place_and_no_more_until_one_is_given_back() {
        let mut limits = Limits::default();
        limits.set(Limit::Connections, 3);
        limits.set(Limit::PeerConnections, 2);
        let places = Places::new(&limits);
        let take = || places.take().map_err(|refused| refused.expect("few are refused").1.to_string());
        let (one, two) = (take().unwrap(), take().unwrap());
        let third = take().unwrap();
        assert_eq!(take().err().unwrap(), "connections_max: 4 is more than the 3 that are allowed");

        let one = places.take_of_peer("a", one).ok().unwrap();
        let _two = places.take_of_peer("a", two).ok().unwrap();
        let error = places.take_of_peer("a", third).err().unwrap().to_string();
        assert_eq!(error, "peer_connections_max: 3 is more than the 2 that are allowed");
        // The third was dropped with its refusal.
        let third = take().unwrap();
        let _third = places.take_of_peer("b", third).ok().unwrap();
        assert!(take().is_err());
        drop(one);
        let again = take().unwrap();
        assert!(places.take_of_peer("a", again).is_ok());
        assert_eq!(places.shared.lock().by_peer.len(), 2);
    }

    #[test]
    fn only_so_many_refusals_are_told_at_once() {
        let mut limits = Limits::default();
        limits.set(Limit::Connections, 0);
        let places = Places::new(&limits);
        let told: Vec<_> = (0..REFUSALS_MAX).map(|_| places.take().err().unwrap().unwrap()).collect();
        assert!(places.take().err().unwrap().is_none());
        drop(told);
        assert!(places.take().err().unwrap().is_some());
    }
}

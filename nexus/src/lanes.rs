//! Lanes that were offered and wait for their connection.
//!
//! A token is good for one connection and a short time. Who offered the lane waits for it; whoever connects with the
//! token is handed over. A token that nobody used in time, or whose waiter has gone, is forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pelton_nexus_proto::Limits;
use pelton_nexus_proto::lane::{LaneAnswer, LaneOpening};
use pelton_nexus_proto::messages::Lane;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::stream::Stream;

type Token = [u8; 32];

/// How long it may take from a token that is taken to its connection: an answer is written meanwhile.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);

/// How long a token is good, and how many may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// How long a token is good.
    pub token_wait_max: Duration,
    /// Lanes of one peer at once, tokens that are not used yet included.
    pub peer_lanes_max: u64,
}

impl LaneLimits {
    /// What a node with these limits allows.
    pub fn of(limits: &Limits) -> LaneLimits {
        LaneLimits { token_wait_max: Duration::from_secs(10), peer_lanes_max: limits.peer_lanes_max }
    }
}

impl Default for LaneLimits {
    fn default() -> LaneLimits {
        LaneLimits::of(&Limits::default())
    }
}

/// The lanes of one door.
#[derive(Clone)]
pub struct Lanes {
    shared: Arc<Shared>,
}

struct Shared {
    port: u16,
    tls: bool,
    limits: LaneLimits,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    waiting: HashMap<Token, Waiting>,
    /// By peer: how many it has, waiting or connected.
    counts: HashMap<String, u64>,
}

struct Waiting {
    connected: oneshot::Sender<Stream>,
    until: Instant,
}

/// One offered lane. Dropped, the token is worth nothing and the peer may have another.
pub struct OfferedLane {
    shared: Arc<Shared>,
    peer: String,
    token: Token,
    until: Instant,
    connection: oneshot::Receiver<Stream>,
    lane: Lane,
}

/// The place that a connected lane takes among those of its peer, given back when dropped.
pub struct LanePlace {
    shared: Arc<Shared>,
    peer: String,
}

impl Lanes {
    pub(crate) fn new(port: u16, tls: bool, limits: LaneLimits) -> Lanes {
        Lanes { shared: Arc::new(Shared { port, tls, limits, table: Mutex::default() }) }
    }

    /// Offers a lane to a peer. Nothing if it has as many as it may, or the system gives no random bytes.
    pub fn offer(&self, peer: &str) -> Option<OfferedLane> {
        let mut token = [0; 32];
        fill_random(&mut token)?;
        let (connected, connection) = oneshot::channel();
        let until = Instant::now() + self.shared.limits.token_wait_max;
        let mut table = self.shared.lock();
        let count = table.counts.entry(peer.to_owned()).or_default();
        if *count >= self.shared.limits.peer_lanes_max {
            return None;
        }
        *count += 1;
        table.waiting.insert(token, Waiting { connected, until });
        drop(table);
        let lane = Lane {
            host: String::new(),
            port: self.shared.port.into(),
            token: token.to_vec(),
            expires_in_ms: u32::try_from(self.shared.limits.token_wait_max.as_millis()).unwrap_or(u32::MAX),
            version: 1,
            tls: self.shared.tls,
        };
        let shared = Arc::clone(&self.shared);
        Some(OfferedLane { shared, peer: peer.to_owned(), token, until, connection, lane })
    }

    /// What a connection that opened with this is answered, and who waits for it.
    pub(crate) fn take(&self, opening: &LaneOpening) -> Result<LaneTaker, LaneAnswer> {
        let waiting = self.shared.lock().waiting.remove(&opening.token);
        match waiting.filter(|waiting| Instant::now() < waiting.until) {
            Some(Waiting { connected, .. }) => Ok(LaneTaker { connected }),
            None => Err(LaneAnswer::Token),
        }
    }
}

/// Who waits for a lane's connection.
pub(crate) struct LaneTaker {
    connected: oneshot::Sender<Stream>,
}

impl LaneTaker {
    /// Hands the connection over. If nobody waits any more it is closed.
    pub(crate) fn hand_over(self, stream: Stream) {
        let _ = self.connected.send(stream);
    }
}

impl OfferedLane {
    /// What to tell the peer.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// The connection, when the peer has opened it; nothing if it did not in time.
    pub async fn connected(mut self) -> Option<(Stream, LanePlace)> {
        let connection = match tokio::time::timeout_at(self.until, &mut self.connection).await {
            Ok(connection) => connection.ok()?,
            // Who has taken the token in its last moment was told so, and believes in the lane.
            Err(_) if self.shared.lock().waiting.remove(&self.token).is_none() => {
                tokio::time::timeout(HAND_OVER_MAX, &mut self.connection).await.ok()?.ok()?
            }
            Err(_) => return None,
        };
        let place = LanePlace { shared: Arc::clone(&self.shared), peer: self.peer.clone() };
        // The place goes on with the connection.
        *self.shared.lock().counts.entry(self.peer.clone()).or_default() += 1;
        Some((connection, place))
    }
}

impl Drop for OfferedLane {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.token);
        self.shared.give_back(&self.peer);
    }
}

impl Drop for LanePlace {
    fn drop(&mut self) {
        self.shared.give_back(&self.peer);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        // Each change is one step: what a panic left is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, peer: &str) {
        let mut table = self.lock();
        if let Some(count) = table.counts.get_mut(peer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.counts.remove(peer);
            }
        }
    }
}

fn fill_random(bytes: &mut [u8]) -> Option<()> {
    rustls::crypto::ring::default_provider().secure_random.fill(bytes).ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn lane(wait: Duration) -> (OfferedLane, Lanes, LaneOpening, Stream) {
        let limits = LaneLimits { token_wait_max: wait, ..LaneLimits::default() };
        let lanes = Lanes::new(1, false, limits);
        let offered = lanes.offer("peer").unwrap();
        let opening = LaneOpening { token: offered.lane().token.as_slice().try_into().unwrap() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (offered, lanes, opening, Stream::Plain(stream))
    }

    /// Between the two, the opener was told that the lane is taken.
    #[tokio::test]
    async fn a_token_that_was_taken_in_time_brings_its_connection_though_that_is_late() {
        let (offered, lanes, opening, stream) = lane(Duration::from_millis(50)).await;
        let taker = lanes.take(&opening).unwrap_or_else(|_| panic!("it is good"));
        let until = offered.until;
        let connected = tokio::spawn(offered.connected());
        tokio::time::sleep_until(until + Duration::from_millis(100)).await;
        taker.hand_over(stream);
        let (_stream, place) = connected.await.unwrap().expect("it was taken in time");
        assert_eq!(lanes.shared.lock().counts["peer"], 1);
        drop(place);
        assert!(lanes.shared.lock().counts.is_empty());
    }

    #[tokio::test]
    async fn a_token_that_nobody_takes_is_worth_nothing_afterwards() {
        let (offered, lanes, opening, _) = lane(Duration::from_millis(10)).await;
        assert!(offered.connected().await.is_none());
        assert!(matches!(lanes.take(&opening), Err(LaneAnswer::Token)));
        assert!(lanes.shared.lock().counts.is_empty());
    }
}

//! Connections that streams to the same place share.
//!
//! A node lets one peer have few connections and many streams. What begins while others are under way goes by theirs; a
//! connection ends with its last user, so none is kept that nobody needs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OnceCell;
use tonic::transport::Channel;

use crate::dial::{Dial, DialError};

/// Connections to one place. Several, since one has all its bytes pass one task at either end; and far fewer than a node
/// allows one peer.
const CONNECTIONS_MAX: usize = 4;

/// Connections, by where they go. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Channels {
    open: Arc<Mutex<Vec<Weak<Shared>>>>,
}

struct Shared {
    dial: Dial,
    channel: OnceCell<Channel>,
    /// Nobody else shall use it. Written by who finds that out, read by who looks for one; publishes nothing.
    is_lost: AtomicBool,
}

/// A connection in use.
pub(crate) struct SharedChannel {
    shared: Arc<Shared>,
    channel: Channel,
}

impl Channels {
    /// A connection to there: one that stands, if there are as many as may be, else a new one.
    ///
    /// # Errors
    /// [`DialError`]
    pub(crate) async fn to(&self, dial: &Dial) -> Result<SharedChannel, DialError> {
        let shared = self.least_used(dial);
        let dialled = shared.channel.get_or_try_init(|| async {
            if shared.is_lost.load(Ordering::Relaxed) {
                return Err(None);
            }
            dial.channel().await.map_err(|error| {
                shared.is_lost.store(true, Ordering::Relaxed);
                Some(error)
            })
        });
        let channel = match dialled.await {
            Ok(channel) => channel.clone(),
            Err(Some(error)) => return Err(error),
            // Who was before has tried in vain. Side by side, since one behind the other the last would wait long.
            Err(None) => dial.channel().await?,
        };
        Ok(SharedChannel { shared, channel })
    }

    fn least_used(&self, dial: &Dial) -> Arc<Shared> {
        // Each change is one step: what a panic left is whole.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|shared| shared.strong_count() > 0);
        let is_fit =
            |shared: &Arc<Shared>| !shared.is_lost.load(Ordering::Relaxed) && shared.dial.is_same(dial);
        let fit: Vec<Arc<Shared>> = open.iter().filter_map(Weak::upgrade).filter(is_fit).collect();
        if fit.len() >= CONNECTIONS_MAX
            && let Some(least) = fit.iter().min_by_key(|shared| Arc::strong_count(shared))
        {
            return Arc::clone(least);
        }
        let (dial, channel, is_lost) = (dial.clone(), OnceCell::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { dial, channel, is_lost });
        open.push(Arc::downgrade(&shared));
        shared
    }
}

impl SharedChannel {
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// It is silent or broken: who comes next dials anew.
    pub(crate) fn lose(&self) {
        self.shared.is_lost.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tls::ClientSecurity;

    /// Takes connections, and counts them.
    async fn port() -> (Dial, Arc<std::sync::atomic::AtomicUsize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let incoming = tokio_stream::once(Ok::<_, std::io::Error>(stream));
                let health = crate::node::health_of("test");
                tokio::spawn(async move {
                    let server = tonic::transport::Server::builder().add_service(health.0);
                    let never = std::future::pending::<()>();
                    let _ = server.serve_with_incoming_shutdown(incoming, never).await;
                    drop(health.1);
                });
            }
        });
        (Dial::new(&address, ClientSecurity::Plain).unwrap(), count)
    }

    #[tokio::test]
    async fn a_few_connections_are_shared_and_end_with_their_users() {
        let (dial, count) = port().await;
        let channels = Channels::default();
        let mut used = Vec::new();
        for _ in 0..40 {
            used.push(channels.clone().to(&dial).await.unwrap());
        }
        assert_eq!(count.load(Ordering::Relaxed), CONNECTIONS_MAX);
        let users = |used: &[SharedChannel]| used.iter().map(|one| Arc::strong_count(&one.shared)).max();
        assert_eq!(users(&used), Some(40 / CONNECTIONS_MAX), "evenly");
        used[0].lose();
        used.push(channels.to(&dial).await.unwrap());
        assert_eq!(count.load(Ordering::Relaxed), CONNECTIONS_MAX + 1, "not a lost one");
        let other = dial.clone().connect_wait_max(Duration::from_secs(7));
        used.push(channels.to(&other).await.unwrap());
        assert_eq!(count.load(Ordering::Relaxed), CONNECTIONS_MAX + 2, "not one that was dialled otherwise");
        drop(used);
        let again = channels.to(&dial).await.unwrap();
        assert_eq!(count.load(Ordering::Relaxed), CONNECTIONS_MAX + 3);
        assert_eq!(channels.open.lock().unwrap().len(), 1);
        drop(again);
    }

    #[tokio::test]
    async fn all_who_wait_for_one_that_does_not_come_are_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // Takes connections, and says nothing.
        let dial = Dial::new(&address, ClientSecurity::Plain).unwrap();
        let dial = dial.connect_wait_max(Duration::from_secs(1));
        let channels = Channels::default();
        let begun = std::time::Instant::now();
        let tries: Vec<_> = (0..40)
            .map(|_| {
                let (channels, dial) = (channels.clone(), dial.clone());
                tokio::spawn(async move { channels.to(&dial).await.map(drop) })
            })
            .collect();
        for one in tries {
            assert!(matches!(one.await.unwrap(), Err(DialError::Timeout { .. })));
        }
        // One behind the other they would take ten seconds on each connection.
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    }
}

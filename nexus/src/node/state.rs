//! Whether the node serves, drains or has ended, and what is under way.

use std::sync::Arc;
use std::time::Duration;

use pelton_worker::Cache;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long calls that were cut off may take to notice it.
const CUT_WAIT_MAX: Duration = Duration::from_secs(2);

/// What all parts of a node share.
pub(super) struct State {
    now: watch::Sender<Now>,
}

/// A node at one moment.
#[derive(Clone, Debug, Default)]
struct Now {
    /// Whether all that lies on the disks is known.
    ready: bool,
    /// How long a drain waits if whoever drains does not say.
    drain_wait: Duration,
    /// Until when what is under way may go on, once the node drains.
    drains_until: Option<Instant>,
    /// Whether what is still under way is cut off.
    cut: bool,
    calls: u64,
    calls_cut: u64,
    drained: Option<Drained>,
}

/// What came of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Calls that were cut off, since they did not end in time.
    pub calls_cut: u64,
    /// Leases that somebody in this process still held.
    pub leases_left: u64,
}

/// A hand on a node that runs.
#[derive(Clone)]
pub struct NodeHandle {
    state: Arc<State>,
}

/// A call that is under way, until it is dropped.
pub(super) struct Call {
    state: Arc<State>,
}

impl NodeHandle {
    pub(super) fn new(state: Arc<State>) -> NodeHandle {
        NodeHandle { state }
    }

    /// Whether it serves: all that lies on the disks is known, and it does not drain.
    pub fn is_serving(&self) -> bool {
        self.state.is_serving()
    }

    /// Takes nothing new, waits so long for what is under way (without a time: as the node was set up), cuts off the rest,
    /// and ends the node. Who drains a node that drains already can only make it faster.
    pub async fn drain(&self, wait: Option<Duration>) -> Drained {
        self.state.drain(wait).await
    }
}

impl State {
    pub(super) fn new(drain_wait: Duration) -> State {
        State { now: watch::Sender::new(Now { drain_wait, ..Now::default() }) }
    }

    pub(super) fn set_drain_wait(&self, wait: Duration) {
        self.now.send_modify(|now| now.drain_wait = wait);
    }

    pub(super) fn set_ready(&self) {
        self.now.send_modify(|now| now.ready = true);
    }

    pub(super) fn is_serving(&self) -> bool {
        self.now.borrow().is_serving()
    }

    /// Tells each time that the node begins or ceases to serve; nothing when it has ended.
    pub(super) fn watch(&self) -> Watch {
        Watch { now: self.now.subscribe() }
    }

    /// Takes a call in, unless the node drains.
    pub(super) fn begin(self: &Arc<State>) -> Option<Call> {
        let mut taken = false;
        self.now.send_if_modified(|now| {
            taken = now.drains_until.is_none();
            now.calls += u64::from(taken);
            false // Nobody waits for more calls.
        });
        taken.then(|| Call { state: Arc::clone(self) })
    }

    pub(super) async fn drain(&self, wait: Option<Duration>) -> Drained {
        self.now.send_modify(|now| {
            let until = Instant::now() + wait.unwrap_or(now.drain_wait);
            now.drains_until = Some(now.drains_until.map_or(until, |before| before.min(until)));
        });
        self.wait_until_drained().await
    }

    pub(super) async fn wait_until_drained(&self) -> Drained {
        let mut now = self.now.subscribe();
        let drained = now.wait_for(|now| now.drained.is_some()).await;
        let drained = drained.expect("the sender lives as long as self").drained;
        drained.expect("it was waited for")
    }

    /// It has ended, so.
    pub(super) fn end(&self, drained: Drained) {
        self.now.send_modify(|now| now.drained = Some(drained));
    }

    #[cfg(test)]
    fn has_begun_to_drain(&self) -> bool {
        self.now.borrow().drains_until.is_some()
    }
}

impl Now {
    fn is_serving(&self) -> bool {
        self.ready && self.drains_until.is_none()
    }
}

/// Waits until somebody drains the node, and then for what is under way.
pub(super) async fn run_drain(cache: Cache, state: Arc<State>) -> Drained {
    let mut now = state.now.subscribe();
    let _ = now.wait_for(|now| now.drains_until.is_some()).await;
    tracing::info!(calls = now.borrow().calls, "the node drains");
    loop {
        let (calls, until) = {
            let now = now.borrow_and_update();
            (now.calls, now.drains_until.unwrap_or_else(Instant::now))
        };
        if calls == 0 {
            break;
        }
        // Somebody may shorten the time while it is waited for.
        if let Ok(changed) = tokio::time::timeout_at(until, now.changed()).await {
            let _ = changed;
            continue;
        }
        state.now.send_modify(|now| now.cut = true);
        let _ = tokio::time::timeout(CUT_WAIT_MAX, now.wait_for(|now| now.calls == 0)).await;
        break;
    }
    let leases = tokio::task::spawn_blocking(move || cache.leases().len() as u64);
    let leases_left = leases.await.unwrap_or(0);
    let calls_cut = state.now.borrow().calls_cut;
    let drained = Drained { calls_cut, leases_left };
    state.end(drained);
    tracing::info!(calls_cut, leases_left, "the node is drained");
    drained
}

impl Call {
    /// Ends when the call is to be cut off. Until then it pends, also if the node drains.
    pub(super) fn cut(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut now = self.state.now.subscribe();
        async move {
            if now.wait_for(|now| now.cut).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// It was cut off.
    pub(super) fn count_cut(&self) {
        self.state.now.send_modify(|now| now.calls_cut += 1);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.state.now.send_if_modified(|now| {
            now.calls -= 1;
            // Only a drain waits for this.
            now.drains_until.is_some()
        });
    }
}

/// Follows whether a node serves.
pub(super) struct Watch {
    now: watch::Receiver<Now>,
}

impl Watch {
    pub(super) fn is_serving(&mut self) -> bool {
        self.now.borrow_and_update().is_serving()
    }

    /// The next answer that is not `before`. Nothing when the node has ended.
    pub(super) async fn next(&mut self, before: bool) -> Option<bool> {
        let is_news = |now: &Now| now.drained.is_some() || now.is_serving() != before;
        let now = self.now.wait_for(is_news).await.ok()?;
        if now.drained.is_some() { None } else { Some(now.is_serving()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::builder().spindle(folder.path().join("spindle"), None).open().unwrap();
        (folder, cache)
    }

    #[tokio::test]
    async fn a_drain_waits_for_what_is_under_way_and_takes_nothing_new() {
        let (_folder, cache) = open();
        let state = Arc::new(State::new(Duration::from_secs(600)));
        assert!(!state.is_serving());
        state.set_ready();
        let call = state.begin().unwrap();
        assert!(state.is_serving());
        let running = tokio::spawn(run_drain(cache, Arc::clone(&state)));
        let handle = NodeHandle::new(Arc::clone(&state));
        let draining = tokio::spawn(async move { handle.drain(None).await });
        while !state.has_begun_to_drain() {
            tokio::task::yield_now().await;
        }
        assert!(!state.is_serving() && state.begin().is_none() && !draining.is_finished());
        drop(call);
        let drained = Drained { calls_cut: 0, leases_left: 0 };
        assert_eq!((draining.await.unwrap(), running.await.unwrap()), (drained, drained));
    }

    #[tokio::test]
    async fn what_does_not_end_in_time_is_cut_and_counted_and_a_later_drain_can_hurry() {
        let (_folder, cache) = open();
        let state = Arc::new(State::new(Duration::from_secs(600)));
        let calls = [state.begin().unwrap(), state.begin().unwrap()];
        for call in calls {
            tokio::spawn(async move {
                call.cut().await;
                call.count_cut();
            });
        }
        tokio::spawn(run_drain(cache, Arc::clone(&state)));
        let patient = {
            let state = Arc::clone(&state);
            tokio::spawn(async move { state.drain(None).await })
        };
        let hurried = state.drain(Some(Duration::ZERO)).await;
        assert_eq!(hurried, Drained { calls_cut: 2, leases_left: 0 });
        assert_eq!(patient.await.unwrap(), hurried);
    }
}

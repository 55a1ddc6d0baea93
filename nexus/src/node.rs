//! A cache that serves: sources push into it, workers fetch from it, operators ask it.
//!
//! ```text
//!   door ──▶ gate ──▶ Feed, Peer, Admin, Health ──▶ the cache
//!              │
//!              └─ who may, whether it drains, what is under way
//! ```
//!
//! Everything that comes in passes the gate: it knows who calls and what that needs, it takes nothing new while the node
//! drains, and it counts what is under way, so that a drain can wait for it and cut it off when its time is over.

mod admin;
mod client;
mod gate;
mod health;
mod state;
mod wire;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use pelton_nexus_proto::Limits;
use pelton_nexus_proto::messages::admin_server::AdminServer;
use pelton_nexus_proto::messages::health::health_server::HealthServer;
use pelton_worker::Cache;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::service::RoutesBuilder;
use tonic::transport::Server;

use crate::door::Door;
use state::State;

pub use admin::more_than_half;
pub use client::{AskError, NodeClient};
pub use state::{Drained, NodeHandle};
pub use wire::{Damage, Listed, Operated, OperatedOutcome, Progressed, RemoteOptions};

/// How long a drain waits for what is under way, unless told otherwise.
const DRAIN_WAIT: Duration = Duration::from_secs(30);
/// How long connections may take to close when all calls are over.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often an idle connection is asked whether it lives, and how long it may take to answer.
const ALIVE_EVERY: Duration = Duration::from_secs(20);

/// A node that is being set up, and then runs.
///
/// It does not close the cache: when [`serve`](Node::serve) has ended, nobody from outside uses it any more.
pub struct Node {
    cache: Cache,
    door: Door,
    state: Arc<State>,
    limits: Limits,
    routes: RoutesBuilder,
    /// What health is asked about, beside the node as a whole.
    services: Vec<&'static str>,
}

/// Why a node has ended other than by a drain.
#[derive(Debug, thiserror::Error)]
#[error("the node can't serve any more")]
pub struct NodeError {
    source: tonic::transport::Error,
}

impl Node {
    /// Serves a cache at a door. Admin and health are there; what else is served comes by [`Node::service`].
    pub fn new(cache: Cache, door: Door) -> Node {
        Node {
            cache,
            door,
            state: Arc::new(State::new(DRAIN_WAIT)),
            limits: Limits::default(),
            routes: RoutesBuilder::default(),
            services: Vec::new(),
        }
    }

    /// Serves this, too, to whom the gate's table allows it.
    pub fn service<S>(mut self, service: S) -> Node
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.routes.add_service(service);
        self.services.push(S::NAME);
        self
    }

    /// Bounds what comes in.
    pub fn limits(mut self, limits: Limits) -> Node {
        self.door.limits(&limits);
        self.limits = limits;
        self
    }

    /// Sets how long a drain waits for what is under way, if whoever drains does not say.
    pub fn drain_wait(self, wait: Duration) -> Node {
        self.state.set_drain_wait(wait);
        self
    }

    /// To look at it and to drain it from outside.
    pub fn handle(&self) -> NodeHandle {
        NodeHandle::new(Arc::clone(&self.state))
    }

    /// Serves until it is drained, by [`NodeHandle::drain`] or by whoever has the role for it.
    ///
    /// # Errors
    /// [`NodeError`] if the runtime takes connections no more.
    pub async fn serve(self) -> Result<Drained, NodeError> {
        let Node { cache, door, state, limits, mut routes, mut services } = self;
        let message_bytes_max = usize::try_from(limits.message_bytes_max).unwrap_or(usize::MAX);
        let admin = AdminServer::new(admin::Operators::new(cache.clone(), Arc::clone(&state)))
            .max_decoding_message_size(message_bytes_max)
            .max_encoding_message_size(message_bytes_max);
        services.push(<AdminServer<admin::Operators> as NamedService>::NAME);
        routes.add_service(admin);
        routes.add_service(HealthServer::new(health::Checkers::new(Arc::clone(&state), services)));

        watch_recovery(cache.clone(), Arc::clone(&state));
        let drained = state::run_drain(cache, Arc::clone(&state));
        let drained = async move {
            drained.await;
        };
        let serving = Server::builder()
            .initial_connection_window_size(crate::dial::STREAM_WINDOW_BYTES)
            .initial_stream_window_size(crate::dial::STREAM_WINDOW_BYTES)
            .max_frame_size(crate::dial::MESSAGE_FRAME_BYTES)
            .http2_keepalive_interval(Some(ALIVE_EVERY))
            .http2_keepalive_timeout(Some(ALIVE_EVERY))
            .layer(gate::GateLayer::new(Arc::clone(&state), &limits))
            .add_routes(routes.routes())
            .serve_with_incoming_shutdown(door.incoming(), drained);
        let over = async {
            state.wait_until_drained().await;
            tokio::time::sleep(CLOSE_WAIT_MAX).await;
        };
        tokio::select! {
            served = serving => served.map_err(|source| NodeError { source })?,
            // Whoever does not close a connection on which nothing goes any more is left behind.
            () = over => {}
        }
        Ok(state.wait_until_drained().await)
    }
}

/// The node is ready when all that lies on its disks is known.
fn watch_recovery(cache: Cache, state: Arc<State>) {
    tokio::spawn(async move {
        let read = tokio::task::spawn_blocking(move || {
            cache.recovery();
        });
        if read.await.is_ok() {
            state.set_ready();
        }
    });
}

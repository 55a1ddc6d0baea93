//! `pelton serve`: a cache that others use by the network.

mod page;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use metrics_exporter_prometheus::PrometheusBuilder;
use pelton::nexus::feed::{FeedOptions, FeedService};
use pelton::nexus::node::{Node, NodeHandle};
use pelton::nexus::peer::{PeerOptions, PeerService};
use pelton::nexus::{Door, LaneLimits, NodeLimits};
use pelton::units::count;
use pelton::{Cache, CacheBuilder};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

use crate::cache::{self, CacheOptions};
use crate::failure::{Failure, reason};
use crate::say;
use crate::stdout::Stdout;
use crate::tls::TlsOptions;

/// How long slices on their way to the disk may take at the end.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(60);

/// The command line of `serve`.
#[derive(Args)]
pub(crate) struct Serve {
    /// Where to listen, like 0.0.0.0:7461; port 0 has the system pick one
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    #[command(flatten)]
    tls: TlsOptions,
    #[command(flatten)]
    cache: CacheOptions,
    /// Where to serve /metrics, /ready and /live by HTTP, without TLS
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// How many seconds SIGTERM waits for what is under way
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_wait: u64,
    /// What is allowed at once, like streams_max=512 or in_flight_bytes_max=2GiB; give it once for each. docs/nexus.md
    /// has the names
    #[arg(long = "limit", value_name = "NAME=VALUE", value_parser = cache::parse_limit)]
    limits: Vec<(String, u64)>,
}

impl Serve {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let security = self.tls.server(&["serve"])?;
        // What happens goes to standard error, warnings and what an operator wants to read later.
        let log = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_ansi(false);
        log.with_writer(io::stderr).init();

        let buckets = PrometheusBuilder::new().set_buckets(&buckets());
        let recorder = buckets.expect("there are some").build_recorder();
        let page = recorder.handle();
        let limits = NodeLimits::new(self.cache.node_limits(&self.limits)?);
        let builder = CacheBuilder::from_config(self.cache.config()?);
        let cache = cache::open_with(builder.recorder(Arc::new(recorder)))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("pelton-serve")
            .enable_all()
            .build()
            .map_err(|error| Failure::Cache(format!("no threads to serve with: {}", reason(&error))))?;
        let served = runtime.block_on(async {
            let door = Door::open(self.listen, security, LaneLimits::of(limits.limits())).await;
            let door = door.map_err(|error| no_listening(self.listen, &error))?;
            let address = door.address();
            // Holders and sources offer lanes at the same port.
            let lanes = door.lanes().clone();
            let mut peer_options = PeerOptions::default();
            peer_options.limits = limits.clone();
            let peer = PeerService::new(cache.clone(), Some(lanes.clone()), peer_options);
            let feed_options = FeedOptions::sharing(limits.clone());
            let feed = FeedService::into_cache(cache.clone()).options(feed_options).lanes(lanes);
            let node = Node::new(cache.clone(), door)
                .limits(limits)
                .service(peer.into_server())
                .service(feed.into_server())
                .drain_wait(Duration::from_secs(self.drain_wait));
            let handle = node.handle();
            let mut stdout = Stdout::open()?;
            stdout.line(format_args!("listening on {address}"))?;
            if let Some(address) = self.metrics {
                let listener = TcpListener::bind(address).await;
                let listener = listener.map_err(|error| no_listening(address, &error))?;
                let address = listener.local_addr().map_err(|error| no_listening(address, &error))?;
                stdout.line(format_args!("metrics on http://{address}/metrics"))?;
                tokio::spawn(page::serve(listener, cache.clone(), page, handle.clone()));
            }
            stdout.flush()?;
            tokio::spawn(end_by_signal(handle, signals()?));
            node.serve().await.map_err(|error| Failure::cache(&error))
        });
        // What a client or a disk keeps is left behind.
        runtime.shutdown_background();
        let closed = close(cache);
        let drained = served?;
        let (calls, leases) = (count(drained.calls_cut, "call"), count(drained.leases_left, "lease"));
        say(&format_args!("ended; {calls} cut off, {leases} left"));
        closed
    }
}

/// Where the counts of waiting times end, in seconds: from 62.5 us on they double, to about two minutes. Two nodes' can be added
/// up, which summaries can't.
fn buckets() -> Vec<f64> {
    (-4..=17).map(|power| 0.001 * 2f64.powi(power)).collect()
}

fn close(cache: Cache) -> Result<(), Failure> {
    cache.close(Some(Instant::now() + CLOSE_WAIT_MAX)).map_err(|error| Failure::cache(&error))
}

/// SIGTERM, and Ctrl-C for whoever tries it.
fn signals() -> Result<[Signal; 2], Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| Failure::Cache(format!("can't listen to signals: {}", reason(&error))))
    };
    Ok([listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?])
}

/// The first signal drains, the second cuts off what is still under way.
async fn end_by_signal(handle: NodeHandle, [mut terminate, mut interrupt]: [Signal; 2]) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    tokio::select! {
        _ = handle.drain(None) => {}
        () = next() => {
            handle.drain(Some(Duration::ZERO)).await;
        }
    }
}

fn no_listening(address: SocketAddr, error: &io::Error) -> Failure {
    Failure::Cache(format!("can't listen on {address}: {}", reason(error)))
}

//! Feed: a slice streams from a source to a cache.
//!
//! ```text
//!   Source ─blobs─▶ outlet ─▶ send ══ gRPC, or a lane ══▶ receive ─parcels─▶ intake ─▶ the slice
//!                              ▲                             │                  │
//!                              └────────── credit ◀──────────┴── the cache's memory for parcels
//! ```
//!
//! What either end decides is `pelton-nexus-proto`'s; here its commands are run. Sockets are served on the runtime's
//! threads; blobs are packed, inflated and put into the slice on others.
//!
//! - To have data: [`Source`], served by [`FeedService`], or given to a node by [`push`].
//! - To want data: [`NexusLoader`] when somebody leases, [`Puller`] by hand.

mod accept;
mod bulk;
mod credit;
mod error;
mod intake;
mod loader;
mod options;
mod outlet;
mod pull;
mod push;
mod receive;
mod send;
mod service;
mod source;
mod wire;

use std::time::Duration;

use tokio_stream::StreamExt;

pub use error::FeedError;
pub use loader::{NexusLoader, Sources};
pub use options::{FeedOptions, Retries};
pub use outlet::Outlet;
pub use pelton_nexus_proto::feed::{Counted, Side, StreamError, Tally, Timing, Totals};
pub use pelton_nexus_proto::messages::{Caps, Locus, Property, Reason, SliceRequest};
pub use pull::{FeedFrom, Puller};
pub use push::{Pushed, push};
pub use service::FeedService;
pub use source::{Offering, Source, SourceError};

use wire::Wire;

/// How long the end of a stream waits for the other end to have heard of it.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// Ends a stream's connection. Who may not hear any more what was said last is not waited for.
async fn end(wire: Wire, result: &Result<Totals, StreamError>) {
    let ending = ending(wire, LINGER_MAX);
    match result {
        Err(StreamError::Lost | StreamError::Silent(_) | StreamError::Deadline) => drop(tokio::spawn(ending)),
        _ => ending.await,
    }
}

/// Ends this direction, and listens until the other one has ended: closed earlier, what was said last might not arrive.
async fn ending(wire: Wire, linger_max: Duration) {
    let Wire { mut incoming, outgoing } = wire;
    drop(outgoing);
    let listening = async { while let Some(Ok(_)) = incoming.next().await {} };
    let _ = tokio::time::timeout(linger_max, listening).await;
}

//! Slices over the wire: sources stream in, workers serve each other, operators ask a node.
//!
//! ```text
//!   a source ──Feed──▶ ┐                      ┌ ◀──Admin── pelton ls --node
//!                      ├─ door ─▶ the cache ──┤
//!   a worker ◀──Peer── ┘                      └ ──Feed, Peer──▶ dial ─▶ another door
//! ```
//!
//! What is said, and what each end decides, is `pelton-nexus-proto`'s; here are the sockets. Everything runs on a
//! tokio runtime that the caller brings.
//!
//! - To listen: [`Door`]. To connect: [`Dial`]. What secures both: [`ServerTls`], [`ClientTls`]. What is allowed at once: [`NodeLimits`].
//! - Slices from sources, and to nodes: [`feed`]. Slices from worker to worker: [`peer`].
//! - To serve a cache: [`node::Node`]. To ask one that serves: [`node::NodeClient`].
#![forbid(unsafe_code)]

mod channels;
mod dial;
mod door;
pub mod feed;
mod here;
mod lanes;
mod limits;
pub mod node;
pub mod peer;
mod places;
mod role;
mod server;
mod stream;
mod tls;
mod told;

pub use dial::{Dial, DialError};
pub use door::{Caller, Connection, Door, Incoming};
pub use lanes::{LaneLimits, LanePlace, Lanes, OfferedLane};
pub use limits::{NodeLimits, StreamPlace};
pub use pelton_nexus_proto::messages;
pub use pelton_nexus_proto::{Codec, Limit, LimitExceeded, LimitRefused, Limits, PackerOptions};
pub use role::{Identity, Role};
pub use stream::Stream;
pub use tls::{ClientSecurity, ClientTls, ServerSecurity, ServerTls, TlsFileError};

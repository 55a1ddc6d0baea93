//! The gRPC server behind a door, set up alike wherever one is.

use pelton_nexus_proto::Limits;
use tonic::transport::Server;

use crate::dial::{ALIVE_EVERY, CONNECTION_WINDOW_BYTES, MESSAGE_FRAME_BYTES, STREAM_WINDOW_BYTES};

/// Calls of one connection beyond `peer_streams_max`: they hear the limit's name, and health is answered.
const CALLS_BEYOND: u32 = 16;

/// A server that gives up connections whose other end has gone without a word, and takes so many calls of each.
pub(crate) fn server(limits: &Limits) -> Server {
    let calls = u32::try_from(limits.peer_streams_max).unwrap_or(u32::MAX).saturating_add(CALLS_BEYOND);
    Server::builder()
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_frame_size(MESSAGE_FRAME_BYTES)
        .max_concurrent_streams(calls)
        .http2_keepalive_interval(Some(ALIVE_EVERY))
        .http2_keepalive_timeout(Some(ALIVE_EVERY))
}

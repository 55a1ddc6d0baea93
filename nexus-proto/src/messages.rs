//! The messages of `proto/pelton/nexus/v1`, and with the feature `grpc` their clients and servers.
//!
//! Generated; `codegen/` says how. What a message alone does not tell stands in `docs/nexus.md`.
#![allow(
    clippy::all,
    missing_docs,
    unreachable_pub,
    reason = "generated; its comments are those of the .proto files"
)]

include!("generated/pelton.nexus.v1.rs");

/// The health service of gRPC.
pub mod health {
    include!("generated/grpc.health.v1.rs");
}

//! Gives a slice to a node.

use std::sync::Arc;
use std::time::Instant;

use pelton_nexus_proto::feed::{Sender, SenderCommand, Totals};
use pelton_nexus_proto::messages::Offer;
use pelton_region_format::{Fingerprint, Key};
use pelton_worker::CancelToken;

use super::bulk::LaneWay;
use super::error::FeedError;
use super::options::FeedOptions;
use super::pull::open_feed;
use super::send::Sending;
use super::source::Source;
use super::wire::{Wire, outgoing};
use crate::dial::Dial;

/// What has come of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The node has taken it.
    Sent(Totals),
    /// The node had it. Nothing was sent.
    WasThere,
}

/// Gives a slice to the node at `dial`. When it returns well the node has the slice.
///
/// # Errors
/// [`FeedError`]. If the connection was lost the node may have it all the same: pushing again finds out.
pub async fn push(
    dial: &Dial,
    key: &Key,
    fingerprint: Fingerprint,
    source: Arc<dyn Source>,
    options: &FeedOptions,
    cancel: &CancelToken,
) -> Result<Pushed, FeedError> {
    let failed = |source| {
        let (key, peer) = (key.clone(), dial.address());
        FeedError::Stream { key, peer, tries: 1, parcels: 0, source }
    };
    let limits = options.limits.limits().clone();
    let offer = Offer { key: key.to_string(), fingerprint: fingerprint.as_bytes().to_vec() };
    let (way_out, leaving) = outgoing();
    let mut commands = Vec::new();
    let (profile, timing) = (options.profile.clone(), options.timing.clone());
    let machine =
        Sender::push(profile, offer, timing.clone(), Instant::now(), &mut commands).map_err(failed)?;
    for command in commands.drain(..) {
        if let SenderCommand::Send(message) = command {
            way_out.say(message);
        }
    }
    let opening = async {
        let dialled = dial.channel().await;
        let channel = dialled.map_err(|source| FeedError::Dial { key: key.clone(), tries: 1, source })?;
        open_feed(channel, options, &options.timing, leaving).await.map_err(failed)
    };
    let incoming = tokio::select! {
        incoming = opening => incoming?,
        () = cancel.cancelled() => return Err(FeedError::Stopped { key: key.clone() }),
    };
    let sending = Sending {
        machine,
        timing,
        commands,
        terms: None,
        wire: Wire { incoming, outgoing: way_out },
        lane: if options.profile.lane { LaneWay::Dial(dial.clone()) } else { LaneWay::None },
        source,
        packing: options.packing.clone(),
        limits,
        rooms: options.limits.rooms().clone(),
        stop: cancel.clone(),
    };
    let (is_asked, result) = sending.run().await;
    match result {
        Ok(totals) if is_asked => Ok(Pushed::Sent(totals)),
        Ok(_) => Ok(Pushed::WasThere),
        Err(_) if cancel.is_cancelled() => Err(FeedError::Stopped { key: key.clone() }),
        Err(error) => Err(failed(error)),
    }
}

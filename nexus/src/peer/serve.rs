//! The holder's side: a cache's sealed slices as the service `Peer`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::mpsc::TrySendError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pelton_nexus_proto::lane::LANE_VERSION;
use pelton_nexus_proto::messages::peer_server::{Peer, PeerServer};
use pelton_nexus_proto::messages::range_message::Kind;
use pelton_nexus_proto::messages::{
    FetchRangeRequest, GetManifestRequest, Lane, Manifest, OpenLaneRequest, RangeChunk, RangeEnd,
    RangeMessage,
};
use pelton_region_format::{Fingerprint, Key, crc32c};
use pelton_worker::{Cache, LeaseError, OutletError, RegionOutlet, SliceOutlet, Want};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::lane::{LaneJob, LaneJobs, LaneToken, run_lane};
use super::manifest::{PEER_VERSION, message_of};
use super::range::blocks_within;
use crate::door::Caller;
use crate::lanes::{Lanes, OfferedLane};
use crate::limits::{NodeLimits, StreamPlace};
use crate::told::told;

/// Chunks of one range that are ready and not sent yet.
const READY_CHUNKS_MAX: usize = 4;

/// How a holder serves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerOptions {
    /// How long a fetcher may take nothing, and a disk give nothing, until a range ends.
    pub idle_wait_max: Duration,
    /// Sizes that bound what is sent, and how many manifests and ranges may be on their way: each is a stream.
    pub limits: NodeLimits,
}

impl Default for PeerOptions {
    fn default() -> PeerOptions {
        PeerOptions { idle_wait_max: Duration::from_secs(30), limits: NodeLimits::default() }
    }
}

/// The service over a cache.
///
/// It lets a slice count as leased while bytes of it are on their way, not between.
#[derive(Clone)]
pub struct PeerService {
    shared: Arc<Shared>,
}

struct Shared {
    cache: Cache,
    /// Without a door of its own there are no lanes.
    lanes: Option<Lanes>,
    options: PeerOptions,
    /// Shared with the lanes' threads, which do not keep the cache.
    connected: Arc<Mutex<HashMap<LaneToken, LaneJobs>>>,
}

impl PeerService {
    /// Serves what this cache holds. Lanes are offered at the door they are of; without any all goes by gRPC.
    pub fn new(cache: Cache, lanes: Option<Lanes>, options: PeerOptions) -> PeerService {
        PeerService { shared: Arc::new(Shared { cache, lanes, options, connected: Arc::default() }) }
    }

    #[cfg(test)]
    pub(super) fn lanes_connected(&self) -> usize {
        lock(&self.shared.connected).len()
    }

    /// As a service for tonic's server.
    pub fn into_server(self) -> PeerServer<PeerService> {
        let message_bytes_max = self.shared.options.limits.limits().message_bytes_max as usize;
        PeerServer::new(self).max_decoding_message_size(message_bytes_max)
    }

    /// Opens what is asked for, where it may wait for disks.
    async fn open<T: Send + 'static>(
        &self,
        open: impl FnOnce(&Cache, Instant) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let shared = self.shared.clone();
        let deadline = Instant::now() + shared.options.idle_wait_max;
        let opened = tokio::task::spawn_blocking(move || open(&shared.cache, deadline)).await;
        opened.map_err(|_| Status::internal("a bug in pelton: what opens slices panicked"))?
    }

    /// Waits for the lane's connection, and serves it then.
    fn expect_lane(&self, offered: OfferedLane) {
        let token: LaneToken = offered.lane().token.clone();
        let (connected, options) = (self.shared.connected.clone(), self.shared.options.clone());
        tokio::spawn(async move {
            let Some((stream, place)) = offered.connected().await else { return };
            let (jobs, inbox) = super::lane::jobs();
            lock(&connected).insert(token.clone(), jobs);
            let runtime = tokio::runtime::Handle::current();
            let (of_thread, its_token) = (connected.clone(), token.clone());
            let run = move || {
                run_lane(stream, &inbox, &runtime, options.limits.limits(), options.idle_wait_max);
                lock(&of_thread).remove(&its_token);
                drop(place);
            };
            if let Err(error) = std::thread::Builder::new().name("pelton-lane".to_owned()).spawn(run) {
                tracing::warn!(%error, "there is no thread for a lane");
                lock(&connected).remove(&token);
            }
        });
    }

    /// The jobs of a lane that is connected. Its connection may be a moment behind the fetcher, who knows already that it
    /// was taken.
    async fn lane(&self, token: &LaneToken) -> Result<LaneJobs, Status> {
        let give_up = Instant::now() + LANE_WAIT_MAX;
        loop {
            if let Some(jobs) = lock(&self.shared.connected).get(token) {
                return Ok(jobs.clone());
            }
            if Instant::now() >= give_up {
                // It was idle for too long, say. The range can go by gRPC.
                return Err(Status::unavailable("lane_token: there is no such lane any more"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// How long a call may be ahead of its lane's connection.
const LANE_WAIT_MAX: Duration = Duration::from_secs(1);

#[tonic::async_trait]
impl Peer for PeerService {
    async fn get_manifest(&self, request: Request<GetManifestRequest>) -> Result<Response<Manifest>, Status> {
        let _place = self.shared.options.limits.stream(&peer_of(&request))?;
        let GetManifestRequest { versions, key, fingerprint } = request.into_inner();
        if !versions.contains(&PEER_VERSION) {
            let text = format!("versions {versions:?} were offered, {PEER_VERSION} is spoken here");
            return Err(Status::failed_precondition(text));
        }
        let (key, want) = (key_of(&key)?, want_of(&fingerprint)?);
        let manifest = self.open(move |cache, deadline| {
            let outlet = outlet_of(cache, &key, want, deadline).map_err(|error| not_leased(&error))?;
            let indexes = outlet.region_indexes().into_iter();
            let regions: Result<Vec<_>, _> = indexes
                .map(|index| outlet.region(index, Some(deadline)).map(|region| region.region().clone()))
                .collect();
            let regions = regions.map_err(|error| match error {
                OutletError::Gone { .. } => Status::not_found(error.to_string()),
                error => not_read(&error),
            })?;
            Ok(message_of(&key, outlet.fingerprint(), outlet.region_count(), &regions))
        });
        Ok(Response::new(manifest.await?))
    }

    type FetchRangeStream = ReceiverStream<Result<RangeMessage, Status>>;

    async fn fetch_range(
        &self,
        request: Request<FetchRangeRequest>,
    ) -> Result<Response<Self::FetchRangeStream>, Status> {
        let place = self.shared.options.limits.stream(&peer_of(&request))?;
        let request = request.into_inner();
        let (key, want) = (key_of(&request.key)?, want_of(&request.fingerprint)?);
        let (index, content_id) = (request.region, request.content_id);
        let region = self.open(move |cache, deadline| {
            let changed = |why: String| Status::aborted(why);
            let outlet = outlet_of(cache, &key, want, deadline).map_err(|error| match error {
                LeaseError::NotThere { .. } | LeaseError::OtherFingerprint { .. } => {
                    changed(error.to_string())
                }
                error => not_leased(&error),
            })?;
            let region = outlet.region(index, Some(deadline)).map_err(|error| match error {
                OutletError::NoRegion { .. } | OutletError::Gone { .. } => changed(error.to_string()),
                error => not_read(&error),
            })?;
            match region.region().content_id.as_bytes()[..] == content_id[..] {
                true => Ok(region),
                false => Err(changed(format!("region {index} of {key} is another one by now"))),
            }
        });
        let region = region.await?;
        let file_bytes = region.region().file_bytes;
        let end = request.offset.checked_add(request.len).filter(|end| *end <= file_bytes);
        let Some(end) = end else {
            let (offset, len) = (request.offset, request.len);
            let text =
                format!("offset: {len} bytes from {offset} on are beyond the {file_bytes} of the file");
            return Err(Status::invalid_argument(text));
        };
        let (range, range_id) = (request.offset..end, request.range_id);
        let (to, messages) = mpsc::channel(READY_CHUNKS_MAX);
        if request.lane_token.is_empty() {
            tokio::spawn(send_chunks(region, range, range_id, self.shared.options.clone(), to, place));
        } else {
            let lane = self.lane(&request.lane_token).await?;
            let (done, ended) = oneshot::channel();
            lane.try_send(LaneJob { region, range, range_id, done }).map_err(|error| match error {
                TrySendError::Full(_) => {
                    Status::resource_exhausted("peer_streams_max: too many ranges wait for that lane")
                }
                TrySendError::Disconnected(_) => Status::unavailable("the lane has ended"),
            })?;
            tokio::spawn(async move {
                let ended = ended.await.unwrap_or_else(|_| Err(Status::unavailable("the lane has ended")));
                let end = |bytes| RangeMessage { kind: Some(Kind::End(RangeEnd { range_id, bytes })) };
                let _ = to.send(ended.map(end)).await; // Who asked may have gone.
                drop(place);
            });
        }
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn open_lane(&self, request: Request<OpenLaneRequest>) -> Result<Response<Lane>, Status> {
        let Some(lanes) = &self.shared.lanes else {
            return Err(Status::unimplemented("there are no lanes here"));
        };
        let peer = peer_of(&request);
        if !request.get_ref().versions.contains(&LANE_VERSION) {
            let text = format!("lane version {LANE_VERSION} is spoken here");
            return Err(Status::failed_precondition(text));
        }
        let offered = lanes.offer(&peer);
        let offered = offered.ok_or_else(|| {
            Status::resource_exhausted("peer_lanes_max: this peer has as many lanes as it may")
        })?;
        let lane = offered.lane().clone();
        self.expect_lane(offered);
        Ok(Response::new(lane))
    }
}

/// Sends a range by gRPC, until all is sent or whoever asked takes no more.
async fn send_chunks(
    region: RegionOutlet,
    range: Range<u64>,
    range_id: u64,
    options: PeerOptions,
    to: mpsc::Sender<Result<RangeMessage, Status>>,
    _place: StreamPlace,
) {
    let (wait_max, step) = (options.idle_wait_max, options.limits.limits().chunk_bytes_max.max(1));
    let mut offset = range.start;
    loop {
        // Cut where blocks of the usual size end.
        let end = (offset - offset % step).saturating_add(step).min(range.end);
        let message = if offset == range.end {
            let end = RangeEnd { range_id, bytes: range.end - range.start };
            Ok(RangeMessage { kind: Some(Kind::End(end)) })
        } else {
            let region = region.clone();
            let chunk = move || chunk_of(&region, offset..end, range_id, Instant::now() + wait_max);
            let chunk = tokio::task::spawn_blocking(chunk).await;
            let chunk = chunk.unwrap_or_else(|_| Err(Status::internal("a bug in pelton: a read panicked")));
            chunk.map(|chunk| RangeMessage { kind: Some(Kind::Chunk(chunk)) })
        };
        let is_last = message.is_err() || offset == range.end;
        match tokio::time::timeout(wait_max, to.send(message)).await {
            Ok(Ok(())) if !is_last => offset = end,
            // All is sent, or nobody takes it.
            _ => return,
        }
    }
}

fn chunk_of(
    region: &RegionOutlet,
    range: Range<u64>,
    range_id: u64,
    deadline: Instant,
) -> Result<RangeChunk, Status> {
    let bytes = bytes_of(region, range.clone(), deadline).map_err(|error| not_read(&error))?;
    let blocks = blocks_within(region.region(), region.block_checksums(), range.clone());
    Ok(RangeChunk { range_id, offset: range.start, crc32c: Some(crc32c(&bytes)), blocks, bytes })
}

/// A stretch of a region; not copied if it lies in memory.
pub(super) fn bytes_of(
    region: &RegionOutlet,
    range: Range<u64>,
    deadline: Instant,
) -> Result<Bytes, OutletError> {
    struct Stretch(RegionOutlet, Range<usize>);
    impl AsRef<[u8]> for Stretch {
        fn as_ref(&self) -> &[u8] {
            self.0.memory().map_or(&[], |bytes| &bytes[self.1.clone()])
        }
    }
    if region.memory().is_some() {
        let range = range.start as usize..range.end as usize;
        return Ok(Bytes::from_owner(Stretch(region.clone(), range)));
    }
    region.read(range.start, range.end, Some(deadline)).map(Bytes::from)
}

/// Who calls: ranges and lanes are counted by it.
fn peer_of<T>(request: &Request<T>) -> String {
    request.extensions().get::<Caller>().map_or_else(String::new, Caller::name)
}

fn outlet_of(cache: &Cache, key: &Key, want: Want, deadline: Instant) -> Result<SliceOutlet, LeaseError> {
    cache.outlet(key, want, Some(deadline))
}

fn key_of(text: &str) -> Result<Key, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("key: {error}")))
}

fn want_of(fingerprint: &[u8]) -> Result<Want, Status> {
    match <[u8; 32]>::try_from(fingerprint) {
        Ok(bytes) => Ok(Want::Fingerprint(Fingerprint::from_bytes(bytes))),
        Err(_) if fingerprint.is_empty() => Ok(Want::Latest),
        Err(_) => {
            let text = format!("fingerprint: it has {} bytes, expected 32 or none", fingerprint.len());
            Err(Status::invalid_argument(text))
        }
    }
}

fn not_leased(error: &LeaseError) -> Status {
    let text = told(error);
    match error {
        LeaseError::NotThere { .. } | LeaseError::OtherFingerprint { .. } => Status::not_found(text),
        LeaseError::Deadline { .. } => Status::deadline_exceeded(text),
        LeaseError::Closed { .. } => Status::unavailable(text),
        _ => Status::internal(text),
    }
}

pub(super) fn not_read(error: &OutletError) -> Status {
    match error {
        OutletError::Read { source, .. } if source.is_damage() => Status::data_loss(told(error)),
        error => Status::internal(told(error)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // Each change is one step.
}

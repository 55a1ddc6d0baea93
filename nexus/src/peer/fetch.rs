//! The fetcher's side: takes a sealed slice from another worker into a cache.
//!
//! Bytes are received on threads of their own, straight to where they stay: taking them may wait for memory and disks, and
//! a runtime's threads must not. What goes by gRPC is asked for from there.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pelton_nexus_proto::messages::GetManifestRequest;
use pelton_nexus_proto::messages::peer_client::PeerClient;
use pelton_nexus_proto::{Limit, Limits};
use pelton_region_format::{Fingerprint, Key};
use pelton_worker::{Cache, CancelToken, Durability, LoadError, RegionIntake, SealedRegion, WritePath};
use tokio::runtime::Handle;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::error::{FetchError, Subject};
use super::line::Line;
use super::manifest::{PEER_VERSION, PeerManifest};
use crate::channels::{Channels, SharedChannel};
use crate::dial::Dial;
use crate::here::is_here;

/// How often somebody who waits looks whether anybody still wants it.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often the same stretch is asked for, when it comes damaged or breaks off.
const TRIES_MAX: usize = 3;
/// How many faults one region may have, wherever: a peer could make some for ever.
const FAULTS_MAX: usize = 16;

/// How a slice is fetched.
#[derive(Clone)]
#[non_exhaustive]
pub struct FetchOptions {
    /// How many regions come at once, each by a connection of its own.
    pub streams: usize,
    /// Whether lanes are asked for. Without, all comes by gRPC.
    pub lanes: bool,
    /// How long a peer may say nothing.
    pub idle_wait_max: Duration,
    /// Until when all of it must be here.
    pub deadline: Option<Instant>,
    /// When a fetch is done.
    pub durability: Durability,
    /// How it goes to memory and disk.
    pub write_path: WritePath,
    /// Told as bytes come, often: be quick.
    pub on_progress: Option<Arc<dyn Fn(FetchProgress) + Send + Sync>>,
    /// What bounds what a peer may send.
    pub limits: Limits,
}

impl Default for FetchOptions {
    fn default() -> FetchOptions {
        FetchOptions {
            streams: 4,
            lanes: true,
            idle_wait_max: Duration::from_secs(30),
            deadline: None,
            durability: Durability::Background,
            write_path: WritePath::Auto,
            on_progress: None,
            limits: Limits::default(),
        }
    }
}

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FetchProgress {
    /// How many bytes of the files are here. A block that comes twice counts twice.
    pub bytes: u64,
    /// How many there will be.
    pub bytes_total: u64,
}

/// What a fetch has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fetched {
    /// What the peer has.
    pub manifest: PeerManifest,
    /// Whether it was here already, with this fingerprint: then nothing came.
    pub was_here: bool,
    /// How many bytes came.
    pub bytes: u64,
}

/// Another worker that has slices.
#[derive(Clone)]
pub struct Holder {
    pub(super) dial: Dial,
    pub(super) options: FetchOptions,
    channels: Channels,
}

impl Holder {
    /// The one that listens there.
    pub fn new(dial: Dial, options: FetchOptions) -> Holder {
        Holder { dial, options, channels: Channels::default() }
    }

    /// What it has of a slice.
    ///
    /// # Errors
    /// [`FetchError`]
    pub async fn manifest(
        &self,
        key: &Key,
        fingerprint: Option<Fingerprint>,
    ) -> Result<PeerManifest, FetchError> {
        self.session(key, CancelToken::new()).await?.manifest(fingerprint).await
    }

    /// Takes a slice into the cache; nothing if it is there with that fingerprint. Somebody else's load of it is waited
    /// for. If the slice is replaced at the peer meanwhile, begins anew once.
    ///
    /// Dropping the future ends the load, and leaves nothing, unless all of it has come.
    ///
    /// # Errors
    /// [`FetchError`]
    pub async fn fetch(
        &self,
        cache: &Cache,
        key: &Key,
        fingerprint: Option<Fingerprint>,
    ) -> Result<Fetched, FetchError> {
        let cancel = CancelToken::new();
        let _cancels = CancelOnDrop(cancel.clone());
        let session = Arc::new(self.session(key, cancel).await?);
        let mut has_changed = false;
        loop {
            let manifest = session.manifest(fingerprint).await?;
            if session.is_here(cache, manifest.fingerprint()).await? {
                return Ok(Fetched { manifest, was_here: true, bytes: 0 });
            }
            match session.clone().load(cache.clone(), manifest).await {
                Ok(fetched) => return Ok(fetched),
                Err(FetchError::Changed { .. }) if !has_changed => has_changed = true,
                Err(FetchError::Load { source, .. }) if matches!(*source, LoadError::Busy { .. }) => {
                    // Told by opening alone: with an older version there, nothing else tells that somebody loads.
                    session.check()?;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What one slice's fetch needs, with a connection that others may share. To be made on a runtime, which its threads
    /// use.
    pub(super) async fn session(&self, key: &Key, cancel: CancelToken) -> Result<Session, FetchError> {
        let subject = Subject { peer: self.dial.address().into(), key: key.clone() };
        let dialled = self.channels.to(&self.dial).await;
        let channel =
            dialled.map_err(|source| FetchError::Dial { key: key.clone(), source: Box::new(source) })?;
        let message_bytes_max = self.options.limits.message_bytes_max as usize;
        let client = PeerClient::new(channel.channel()).max_decoding_message_size(message_bytes_max);
        Ok(Session {
            subject,
            dial: self.dial.clone(),
            channel,
            client,
            options: self.options.clone(),
            cancel,
            has_failed: AtomicBool::new(false),
            runtime: Handle::current(),
            received: AtomicU64::new(0),
            expected: AtomicU64::new(0),
            next_range: AtomicU64::new(1),
        })
    }
}

impl std::fmt::Debug for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Holder").field("address", &self.dial.address()).finish_non_exhaustive()
    }
}

/// Cancels when whoever wants it has gone.
pub(super) struct CancelOnDrop(pub(super) CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// One slice's fetch: shared by the threads that take its regions.
pub(super) struct Session {
    pub(super) subject: Subject,
    pub(super) dial: Dial,
    /// The client's, shared with other sessions.
    channel: SharedChannel,
    pub(super) client: PeerClient<Channel>,
    pub(super) options: FetchOptions,
    cancel: CancelToken,
    /// Set by the first thread that fails, read by the others. Publishes nothing.
    has_failed: AtomicBool,
    pub(super) runtime: Handle,
    received: AtomicU64,
    expected: AtomicU64,
    next_range: AtomicU64,
}

impl Session {
    pub(super) async fn manifest(
        &self,
        fingerprint: Option<Fingerprint>,
    ) -> Result<PeerManifest, FetchError> {
        let key = &self.subject.key;
        let request = GetManifestRequest {
            versions: vec![PEER_VERSION],
            key: key.to_string(),
            fingerprint: fingerprint.map(|fingerprint| fingerprint.as_bytes().to_vec()).unwrap_or_default(),
        };
        let asked = self.ask((0, 0), || {
            let (mut client, request) = (self.client.clone(), request.clone());
            async move { client.get_manifest(request).await }
        });
        let message = asked.await?.map_err(|status| self.subject.refused(status))?.into_inner();
        PeerManifest::of_message(key, fingerprint, message, &self.options.limits).map_err(|text| {
            let Subject { peer, key } = self.subject.clone();
            FetchError::Manifest { peer, key, text }
        })
    }

    /// Whether the slice is in the cache already, as this fetch would leave it.
    async fn is_here(&self, cache: &Cache, fingerprint: Fingerprint) -> Result<bool, FetchError> {
        let mut looking = pin!(is_here(cache, &self.subject.key, fingerprint, self.options.durability));
        loop {
            match tokio::time::timeout(LOOK_EVERY, &mut looking).await {
                Ok(is_here) => return Ok(is_here),
                Err(_) => self.check()?,
            }
        }
    }

    /// Takes all of it into the cache, on a thread that may wait.
    async fn load(self: Arc<Self>, cache: Cache, manifest: PeerManifest) -> Result<Fetched, FetchError> {
        let subject = self.subject.clone();
        let load = move || {
            let mut plan = manifest.plan();
            plan.durability = self.options.durability;
            plan.write_path = self.options.write_path;
            plan.deadline = self.options.deadline;
            let refuse = |error| self.subject.load(error);
            let writer = cache.snap(manifest.key()).open_for_writes(plan).map_err(refuse)?;
            let before = self.received.load(Ordering::Relaxed);
            let open = |index| writer.region_intake(index);
            self.take_all(manifest.fingerprint(), manifest.regions(), &open, &Session::take)?;
            self.check()?;
            writer.wait_for_writes().and_then(|sealed| sealed.close_for_writes()).map_err(refuse)?;
            let bytes = self.received.load(Ordering::Relaxed) - before;
            Ok(Fetched { manifest, was_here: false, bytes })
        };
        let loaded = tokio::task::spawn_blocking(load).await;
        loaded.unwrap_or_else(|_| {
            let Subject { peer, key } = subject;
            let text = "a bug in pelton: the fetch panicked".to_owned();
            Err(FetchError::Lost { peer, key, region: 0, offset: 0, text })
        })
    }

    /// Takes all regions, several at once. Not for a runtime's threads.
    pub(super) fn take_all(
        &self,
        fingerprint: Fingerprint,
        regions: &[SealedRegion],
        open: &(dyn Fn(u32) -> Result<RegionIntake, LoadError> + Sync),
        take: &(dyn Fn(&Session, &mut Line<'_>, &mut RegionIntake) -> Result<(), FetchError> + Sync),
    ) -> Result<(), FetchError> {
        let total = regions.iter().fold(0, |sum: u64, region| sum.saturating_add(region.file_bytes));
        self.expected.store(self.received.load(Ordering::Relaxed) + total, Ordering::Relaxed);
        self.has_failed.store(false, Ordering::Relaxed);
        let next = AtomicUsize::new(0);
        let first_error = Mutex::new(None);
        let work = || {
            let mut line = Line::new(self, fingerprint);
            while let Some(region) = regions.get(next.fetch_add(1, Ordering::Relaxed)) {
                let intake = open(region.index).map_err(|error| self.subject.load(error));
                if let Err(error) = intake.and_then(|mut intake| take(self, &mut line, &mut intake)) {
                    let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert(error);
                    // From here on the others meet that they are stopped.
                    self.has_failed.store(true, Ordering::Relaxed);
                    return;
                }
            }
        };
        let streams = self.options.streams.clamp(1, regions.len().max(1));
        std::thread::scope(|scope| {
            for _ in 1..streams {
                // Without threads all comes by this one.
                let _ = std::thread::Builder::new().name("pelton-fetch".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
        let first = first_error.into_inner().unwrap_or_else(PoisonError::into_inner);
        first.map_or(Ok(()), Err)
    }

    /// Takes one region, from the peer alone.
    pub(super) fn take(&self, line: &mut Line<'_>, intake: &mut RegionIntake) -> Result<(), FetchError> {
        let (mut faults, mut tries, mut stuck_at) = (0, 0, None);
        while let Some(wanted) = intake.wanted() {
            self.check()?;
            let start = wanted.start;
            let fetched = match stuck_at {
                None => line.fetch(intake, wanted),
                // What came damaged is asked for alone. And what had one fault goes on without a lane, which is one thing
                // less that may have others.
                Some(at) => {
                    let end = if at == start { block_end(intake.region(), start) } else { u64::MAX };
                    line.fetch_by_grpc(intake, start..end.min(wanted.end))
                }
            };
            let Err(error) = fetched else { continue };
            let at = intake.wanted().map_or(0, |wanted| wanted.start);
            tries = if stuck_at == Some(at) { tries + 1 } else { 1 };
            (faults, stuck_at) = (faults + 1, Some(at));
            let may_try = matches!(error, FetchError::Damaged { .. } | FetchError::Lost { .. });
            if !may_try || tries >= TRIES_MAX || faults >= FAULTS_MAX {
                return Err(error);
            }
            tracing::debug!(%error, "a stretch is asked for again");
        }
        Ok(())
    }

    /// Whether to go on.
    pub(super) fn check(&self) -> Result<(), FetchError> {
        if self.cancel.is_cancelled() || self.has_failed.load(Ordering::Relaxed) {
            return Err(self.subject.cancelled());
        }
        match self.options.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(self.subject.late()),
            _ => Ok(()),
        }
    }

    /// Asks the peer, again and again while it has too much to do: as long as it may say nothing.
    pub(super) async fn ask<T, F>(
        &self,
        place: (u32, u64),
        ask: impl Fn() -> F,
    ) -> Result<Result<T, Status>, FetchError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let begun = Instant::now();
        loop {
            match self.wait(place, ask()).await? {
                Err(status) if is_busy(&status) && begun.elapsed() < self.options.idle_wait_max => {
                    self.check()?;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                asked => return Ok(asked),
            }
        }
    }

    /// Waits for something that comes from the peer, while somebody wants it and the peer is not silent for too long. The
    /// place is for the error: region and offset.
    pub(super) async fn wait<T>(
        &self,
        place: (u32, u64),
        future: impl Future<Output = T>,
    ) -> Result<T, FetchError> {
        let mut future = pin!(future);
        let begun = Instant::now();
        loop {
            match tokio::time::timeout(LOOK_EVERY, &mut future).await {
                Ok(come) => return Ok(come),
                Err(_) => self.check_silence(place, begun)?,
            }
        }
    }

    /// Whether to wait on, when nothing has come since then.
    pub(super) fn check_silence(
        &self,
        (region, offset): (u32, u64),
        since: Instant,
    ) -> Result<(), FetchError> {
        self.check()?;
        let waited = self.options.idle_wait_max;
        if since.elapsed() < waited {
            return Ok(());
        }
        self.channel.lose();
        let Subject { peer, key } = self.subject.clone();
        Err(FetchError::Idle { peer, key, region, offset, waited })
    }

    /// A number that no other range of this fetch has.
    pub(super) fn next_range(&self) -> u64 {
        self.next_range.fetch_add(1, Ordering::Relaxed)
    }

    /// So many bytes have come.
    pub(super) fn received(&self, bytes: u64) {
        let bytes = self.received.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(tell) = &self.options.on_progress {
            tell(FetchProgress { bytes, bytes_total: self.expected.load(Ordering::Relaxed) });
        }
    }
}

/// Whether a peer refuses only since it serves as much as it may.
fn is_busy(status: &Status) -> bool {
    let limits = [Limit::Streams, Limit::PeerStreams];
    status.code() == Code::ResourceExhausted
        && limits.iter().any(|limit| status.message().starts_with(limit.name()))
}

/// Where the block of an offset ends; outside of the body, what is wanted is not cut.
pub(super) fn block_end(region: &SealedRegion, offset: u64) -> u64 {
    let header_bytes = pelton_region_format::PAGE_BYTES as u64;
    match (header_bytes..region.body_end).contains(&offset) {
        true => {
            let block = u64::from(region.block_bytes);
            (offset / block + 1).saturating_mul(block).min(region.body_end)
        }
        false => u64::MAX,
    }
}

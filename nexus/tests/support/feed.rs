//! Sources, nodes and caches for the tests of feeds, all on loopback.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pelton_nexus::feed::*;
use pelton_nexus::{ClientSecurity, Dial, Door, LaneLimits, ServerSecurity};
use pelton_region_format::{Fingerprint, Key};
use pelton_worker::{Cache, Lease, LoadPlan, LoaderError, View, Want};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// Small numbers that look random and are the same each time.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Bytes that no codec makes smaller.
    pub(crate) fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

pub(crate) fn seed(default: u64) -> u64 {
    let seed =
        std::env::var("PELTON_SEED").map_or(default, |text| text.parse().expect("PELTON_SEED is a number"));
    println!("seed {seed}");
    seed
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub(crate) fn key(slice: u32) -> Key {
    format!("test/feed@1#{slice}").parse().unwrap()
}

pub(crate) fn fingerprint(byte: u8) -> Fingerprint {
    Fingerprint::from_bytes([byte; 32])
}

/// Short, so that no test waits long for what must not come.
pub(crate) fn timing() -> Timing {
    Timing {
        heartbeat_every: Duration::from_millis(50),
        silence_max: Duration::from_secs(2),
        stall_max: Duration::from_secs(5),
        deadline: None,
    }
}

pub(crate) fn options() -> FeedOptions {
    let mut options = FeedOptions::default();
    options.timing = timing();
    options
}

pub(crate) fn without_lane(mut options: FeedOptions) -> FeedOptions {
    options.profile.lane = false;
    options
}

/// A port where Feed is served.
pub(crate) struct Served {
    pub(crate) address: String,
    stop: Option<oneshot::Sender<()>>,
}

impl Served {
    pub(crate) fn new(runtime: &Runtime, service: FeedService) -> Served {
        Served::secured(runtime, service, ServerSecurity::Plain)
    }

    pub(crate) fn secured(
        runtime: &Runtime,
        service: FeedService,
        security: impl Into<ServerSecurity>,
    ) -> Served {
        Served::with_lanes(runtime, service, security, LaneLimits::default())
    }

    pub(crate) fn with_lanes(
        runtime: &Runtime,
        service: FeedService,
        security: impl Into<ServerSecurity>,
        lanes: LaneLimits,
    ) -> Served {
        runtime.block_on(async {
            let any = "127.0.0.1:0".parse().unwrap();
            let door = Door::open(any, security.into(), lanes).await.unwrap();
            let address = door.address().to_string();
            let service = service.lanes(door.lanes().clone());
            let (stop, stopped) = oneshot::channel();
            tokio::spawn(service.serve_behind(door, async {
                let _ = stopped.await;
            }));
            Served { address, stop: Some(stop) }
        })
    }

    pub(crate) fn dial(&self) -> Dial {
        dial(&self.address)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
    }
}

pub(crate) fn dial(address: &str) -> Dial {
    secured_dial(address, ClientSecurity::Plain)
}

pub(crate) fn secured_dial(address: &str, security: impl Into<ClientSecurity>) -> Dial {
    Dial::new(address, security.into()).unwrap().connect_wait_max(Duration::from_secs(2))
}

/// What a test's source does for one request.
type Answer = dyn Fn(&SliceRequest) -> Result<Offering, SourceError> + Send + Sync;

/// A source that does as it is told, and remembers what it was asked.
#[derive(Clone)]
pub(crate) struct Told {
    answer: Arc<Answer>,
    pub(crate) asked: Arc<Mutex<Vec<SliceRequest>>>,
}

impl Told {
    pub(crate) fn new(
        answer: impl Fn(&SliceRequest) -> Result<Offering, SourceError> + Send + Sync + 'static,
    ) -> Told {
        Told { answer: Arc::new(answer), asked: Arc::default() }
    }

    /// Sends these, again and again if asked.
    pub(crate) fn sends(blobs: &[Vec<u8>]) -> Told {
        let blobs = Arc::new(blobs.to_vec());
        Told::new(move |_| Ok(offering(blobs.clone())))
    }

    /// The same, and a broken stream may go on.
    pub(crate) fn replays(blobs: &[Vec<u8>]) -> Told {
        let blobs = Arc::new(blobs.to_vec());
        Told::new(move |_| Ok(offering(blobs.clone()).replayable(b"v1")))
    }

    pub(crate) fn times_asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

pub(crate) fn offering(blobs: Arc<Vec<Vec<u8>>>) -> Offering {
    Offering::new(move |outlet: &Outlet| {
        blobs.iter().try_for_each(|blob| outlet.push(blob))?;
        Ok(outlet.tally())
    })
}

impl Source for Told {
    fn open(&self, request: &SliceRequest) -> Result<Offering, SourceError> {
        self.asked.lock().unwrap().push(request.clone());
        (self.answer)(request)
    }
}

/// Where a test's slices come from: the same for each of them.
pub(crate) struct From {
    pub(crate) plan: LoadPlan,
    pub(crate) sources: Vec<FeedFrom>,
}

impl Sources for From {
    fn plan(&self, _: &Key) -> Result<LoadPlan, LoaderError> {
        Ok(self.plan.clone())
    }

    fn sources(&self, _: &Key, _: &LoadPlan) -> Result<Vec<FeedFrom>, LoaderError> {
        Ok(self.sources.clone())
    }
}

/// A cache that loads what is leased from sources.
pub(crate) struct Pulling {
    pub(crate) cache: Cache,
    _folder: TempDir,
}

impl Pulling {
    pub(crate) fn new(runtime: &Runtime, sources: Vec<FeedFrom>) -> Pulling {
        Pulling::with(runtime, sources, options(), |_| {})
    }

    pub(crate) fn with(
        runtime: &Runtime,
        sources: Vec<FeedFrom>,
        options: FeedOptions,
        change: impl FnOnce(&mut LoadPlan),
    ) -> Pulling {
        let puller = Puller::new(runtime.handle().clone()).options(options).retries(quick());
        Pulling::by(puller, sources, change)
    }

    pub(crate) fn by(puller: Puller, sources: Vec<FeedFrom>, change: impl FnOnce(&mut LoadPlan)) -> Pulling {
        let mut plan = LoadPlan::new(fingerprint(7));
        plan.regions = Some(2);
        plan.strict_counts = true;
        change(&mut plan);
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::builder()
            .spindle(folder.path().join("spindle"), 2 << 30)
            .memory(512 << 20)
            .scan_threads(2)
            .loader("nexus", NexusLoader::new(puller, From { plan, sources }))
            .view(View::new("test/feed".parse().unwrap()).loader("nexus"))
            .open()
            .unwrap();
        Pulling { cache, _folder: folder }
    }

    /// All blobs of a slice, in no order.
    pub(crate) fn blobs(&self, slice: u32) -> Vec<Vec<u8>> {
        let lease = self.lease(slice).unwrap_or_else(|error| panic!("{}", told(&error)));
        scan(&lease)
    }

    pub(crate) fn lease(&self, slice: u32) -> Result<Lease, pelton_worker::LeaseError> {
        self.cache.lease(&key(slice), Want::Latest, Some(Instant::now() + Duration::from_secs(60)))
    }

    /// Why a slice does not come, in words.
    pub(crate) fn failure(&self, slice: u32) -> String {
        told(&self.lease(slice).expect_err("it must not come"))
    }

    /// Waits until nothing is left of loads that have ended.
    pub(crate) fn settles(&self) {
        settles(|| {
            let memory = self.cache.memory().unwrap();
            (memory.buffers == 0).then_some(()).ok_or_else(|| format!("{memory:?}"))
        });
    }
}

pub(crate) fn quick() -> Retries {
    Retries {
        pause_min: Duration::from_millis(5),
        pause_max: Duration::from_millis(50),
        ..Retries::default()
    }
}

pub(crate) fn scan(lease: &Lease) -> Vec<Vec<u8>> {
    let mut found = lease
        .scan(
            |blobs, found: &mut Vec<Vec<u8>>| {
                while let Some(blob) = blobs.next()? {
                    found.push(blob.to_vec());
                }
                Ok(())
            },
            |mut a, b| {
                a.extend(b);
                a
            },
        )
        .unwrap();
    found.sort();
    found
}

pub(crate) fn sorted(blobs: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut blobs = blobs.to_vec();
    blobs.sort();
    blobs
}

/// An error with its causes.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Waits for what must come soon, and says what was there instead if it does not.
pub(crate) fn settles(look: impl Fn() -> Result<(), String>) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match look() {
            Ok(()) => return,
            Err(text) => assert!(Instant::now() < until, "it does not settle: {text}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Counts, for closures.
#[derive(Clone, Default)]
pub(crate) struct Counter(Arc<AtomicU64>);

impl Counter {
    pub(crate) fn one(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

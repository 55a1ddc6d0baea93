//! The role of a source: has blobs in memory, and gives them by Feed or as bare bytes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pelton::nexus::feed::{FeedService, Offering, Outlet, SliceRequest, Source, SourceError};
use pelton::nexus::{Door, LaneLimits, Limits, NodeLimits, ServerSecurity};

use super::bare::send_bare;
use super::certificates::Certificates;
use super::other::{OtherProcess, obey};
use crate::disk::Texture;
use crate::frame::Failure;
use crate::words::Words;

/// Blobs that differ. Together they fit into no core's cache.
const BLOBS: usize = 1024;
pub(super) const BLOB_BYTES: usize = 64 << 10;

/// As many connections and lanes of one peer as the benchmark opens: a door's defaults are for peers that are several.
const PEER_CONNECTIONS_MAX: u64 = 64;

/// What a request's filter says to have its blobs slowly: a pause of [`PAUSE`] behind every eighth of a MiB.
pub(super) const SLOWLY: &[u8] = b"slowly";
const PAUSE: Duration = Duration::from_millis(5);

/// The process, as the benchmark has it.
pub(super) struct SourceProcess {
    other: OtherProcess,
    pub(super) bare: String,
    pub(super) bare_tls: String,
    pub(super) feed: String,
    pub(super) feed_tls: String,
}

impl SourceProcess {
    /// Starts it, with certificates in a folder.
    pub(super) fn start(seed: u64, texture: Texture, certificates: &Path) -> Result<SourceProcess, Failure> {
        let folder = certificates.to_str().ok_or_else(|| Failure::because("the folder's name is no text"))?;
        let texture = if texture == Texture::Records { "records" } else { "noise" };
        let (other, words) = OtherProcess::start(&["source", &seed.to_string(), texture, folder])?;
        match <[String; 4]>::try_from(words) {
            Ok([bare, bare_tls, feed, feed_tls]) => {
                Ok(SourceProcess { other, bare, bare_tls, feed, feed_tls })
            }
            Err(words) => Err(Failure::because(format!("the other process says {words:?}"))),
        }
    }

    /// Its number, to count its processor time.
    pub(super) fn id(&self) -> u32 {
        self.other.id()
    }
}

/// One blob of a source, and what its words add up to.
pub(super) fn blob(seed: u64, texture: Texture, number: u64, bytes: &mut [u8]) -> u64 {
    texture.fill(&mut Words::new(seed.wrapping_add(number % BLOBS as u64)), bytes)
}

/// Serves until its standard input ends.
pub(super) fn serve(seed: &str, texture: &str, certificates: &str) -> Result<(), Failure> {
    let seed = seed.parse().map_err(|_| Failure::because("the seed is no number"))?;
    let texture = if texture == "records" { Texture::Records } else { Texture::Noise };
    let certificates = Certificates::of(Path::new(certificates));
    let mut all = vec![0; BLOBS * BLOB_BYTES];
    for (number, bytes) in all.chunks_exact_mut(BLOB_BYTES).enumerate() {
        blob(seed, texture, number as u64, bytes);
    }
    let all = Arc::new(all);
    let mut ready =
        vec![send_bare(all.clone(), None)?, send_bare(all.clone(), Some(certificates.bare_server()?))?];
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for security in [ServerSecurity::Plain, ServerSecurity::Tls(certificates.server()?)] {
        let any = "127.0.0.1:0".parse().expect("it is an address");
        let lanes = LaneLimits { peer_lanes_max: PEER_CONNECTIONS_MAX, ..LaneLimits::default() };
        let mut door = runtime.block_on(Door::open(any, security, lanes))?;
        let mut limits = Limits::default();
        limits.peer_connections_max = 2 * PEER_CONNECTIONS_MAX;
        door.limits(&NodeLimits::new(limits));
        ready.push(door.address().to_string());
        let service = FeedService::of_source(Blobs(all.clone())).lanes(door.lanes().clone());
        runtime.spawn(service.serve_behind(door, std::future::pending()));
    }
    obey(&ready, |_| Ok(()))
}

/// As many blobs as the caps say.
struct Blobs(Arc<Vec<u8>>);

impl Source for Blobs {
    fn open(&self, request: &SliceRequest) -> Result<Offering, SourceError> {
        let (all, count) = (self.0.clone(), request.caps.map_or(0, |caps| caps.items_max));
        let is_slow = request.filter == SLOWLY;
        Ok(Offering::new(move |outlet: &Outlet| {
            let blobs = all.chunks_exact(BLOB_BYTES).cycle();
            for (number, blob) in (1..=count).zip(blobs) {
                outlet.push(blob)?;
                if is_slow && number.is_multiple_of((128 << 10) / BLOB_BYTES as u64) {
                    std::thread::sleep(PAUSE);
                }
            }
            Ok(outlet.tally())
        }))
    }
}

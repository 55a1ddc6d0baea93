//! A feed into a loading slice, against bare streams of the same bytes, or against inflating them.

use std::path::Path;
use std::sync::Arc;

use pelton::nexus::feed::{Caps, FeedFrom, FeedOptions, Puller};
use pelton::nexus::{ClientSecurity, Codec, Dial};
use pelton::{CancelToken, Durability, WritePath};
use rustls::ClientConfig;
use tokio::runtime::Runtime;

use super::GIB;
use super::bare::receive_bare;
use super::certificates::Certificates;
use super::source::{BLOB_BYTES, SourceProcess, blob};
use crate::disk::{Blobs, Store, Texture, sum_blobs};
use crate::frame::{Answers, Failure, Memory, Pair, Stopwatch};

/// How the bytes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// By a lane, or by gRPC alone.
    pub(super) lane: bool,
    pub(super) tls: bool,
    /// Packed by the source as they go.
    pub(super) lz4: bool,
}

/// So many streams into one slice, side by side.
pub(super) struct FeedPair {
    source: SourceProcess,
    store: Store,
    runtime: Runtime,
    options: FeedOptions,
    dial: Dial,
    /// Of each stream.
    blobs: u64,
    streams: u64,
    limit: Limit,
    expected: Answers,
}

enum Limit {
    Bare {
        address: String,
        tls: Option<Arc<ClientConfig>>,
    },
    /// The packed bodies, and room for one, inflated.
    Inflate {
        packed: Vec<(Vec<u8>, usize)>,
        room: Memory,
    },
}

impl FeedPair {
    pub(super) fn new(
        folder: &Path,
        seed: u64,
        bytes: u64,
        streams: u64,
        way: Way,
    ) -> Result<FeedPair, Failure> {
        let blobs = bytes / streams / BLOB_BYTES as u64;
        let mut options = FeedOptions::default();
        options.profile.lane = way.lane;
        options.profile.codecs = vec![if way.lz4 { Codec::Lz4 } else { Codec::None }];
        let texture = if way.lz4 { Texture::Records } else { Texture::Noise };
        let mut one = vec![0; BLOB_BYTES];
        let sum =
            (0..blobs).fold(0u64, |sum, number| sum.wrapping_add(blob(seed, texture, number, &mut one)));

        let certificates = Certificates::make(&folder.join("certificates"))?;
        let source = SourceProcess::start(seed, texture, &folder.join("certificates"))?;
        let (dial, limit) = match way {
            Way { lz4: true, .. } => {
                (Dial::new(&source.feed, ClientSecurity::Plain)?, inflating(seed, bytes)?)
            }
            Way { tls: true, .. } => {
                let security = ClientSecurity::Tls(certificates.client()?);
                let (address, tls) = (source.bare_tls.clone(), Some(certificates.bare_client()?));
                (Dial::new(&source.feed_tls, security)?, Limit::Bare { address, tls })
            }
            _ => {
                let address = source.bare.clone();
                (Dial::new(&source.feed, ClientSecurity::Plain)?, Limit::Bare { address, tls: None })
            }
        };
        let answer = blobs * streams * BLOB_BYTES as u64;
        Ok(FeedPair {
            source,
            store: Store::open(&folder.join("spindle"), 2 * bytes + GIB)?,
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
            options,
            dial,
            blobs,
            streams,
            limit,
            expected: Answers { limit: answer, subject: sum.wrapping_mul(streams) },
        })
    }
}

/// Parcels of what a source would send, as long as a feed's, packed.
fn inflating(seed: u64, bytes: u64) -> Result<Limit, Failure> {
    let one = Blobs { texture: Texture::Records, ..Blobs::filling(seed, bytes, BLOB_BYTES) };
    let (parcels, _) = one.packed_parcels();
    let packed: Vec<_> = parcels.into_iter().map(|parcel| (parcel.body, parcel.inflated_bytes)).collect();
    let largest = packed.iter().map(|(_, inflated_bytes)| *inflated_bytes).max().unwrap_or(0);
    Ok(Limit::Inflate { packed, room: Memory::zeroed(largest)? })
}

impl Pair for FeedPair {
    fn bytes(&self) -> u64 {
        self.expected.limit
    }

    fn expected(&self) -> Answers {
        self.expected
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        stopwatch.beside(self.source.id());
        let (bytes, streams) = (self.expected.limit / self.streams, self.streams);
        match &mut self.limit {
            Limit::Bare { address, tls } => stopwatch.time(|| {
                std::thread::scope(|scope| {
                    let receive = || receive_bare(address, bytes, tls.clone());
                    let threads: Vec<_> = (0..streams).map(|_| scope.spawn(receive)).collect();
                    threads.into_iter().map(|thread| thread.join().expect("receiving does not panic")).sum()
                })
            }),
            Limit::Inflate { packed, room } => {
                let inflated = stopwatch.time(|| {
                    packed.iter().try_fold(0, |sum, (body, _)| {
                        let len = lz4_flex::block::decompress_into(body, room)
                            .map_err(|error| Failure::because(error.to_string()))?;
                        Ok::<_, Failure>(sum + len as u64)
                    })
                })?;
                // Lengths stand in the parcels, and are no blobs.
                Ok(inflated - 4 * (self.expected.limit / BLOB_BYTES as u64))
            }
        }
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        stopwatch.beside(self.source.id());
        let sources = sources(&self.dial, self.streams, self.blobs, b"");
        let puller = Puller::new(self.runtime.handle().clone()).options(self.options.clone());
        let plan = Store::plan(WritePath::Image, Durability::Background);
        let sealed = stopwatch.time(|| {
            let writer = self.store.writer(plan)?;
            puller.pull(&writer, self.store.fingerprint(), &sources, None, &CancelToken::new())?;
            Ok::<_, Failure>(writer.wait_for_writes()?)
        })?;
        sealed.close_for_writes()?;
        let sum = sum_blobs(&self.store.lease()?)?;
        self.store.flush()?;
        Ok(sum)
    }
}

/// So many streams, of so many blobs each.
pub(super) fn sources(dial: &Dial, streams: u64, blobs: u64, filter: &[u8]) -> Vec<FeedFrom> {
    let caps = Some(Caps { items_max: blobs, bytes_max: 0 });
    let from = FeedFrom { caps, filter: filter.to_vec(), ..FeedFrom::new(dial.clone()) };
    vec![from; usize::try_from(streams).expect("there are few")]
}

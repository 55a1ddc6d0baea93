//! A feed into a loading slice, against bare TCP streams of the same bytes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use pelton::nexus::feed::{Caps, FeedFrom, FeedOptions, Puller};
use pelton::nexus::{ClientSecurity, Codec, Dial};
use pelton::{CancelToken, Durability, WritePath};
use tokio::runtime::Runtime;

use super::GIB;
use super::source::{BLOB_BYTES, SourceProcess, blob};
use crate::disk::{Store, sum_blobs};
use crate::frame::{Answers, Failure, Pair, Stopwatch};

/// So many streams into one slice, side by side.
pub(super) struct FeedPair {
    source: SourceProcess,
    store: Store,
    runtime: Runtime,
    options: FeedOptions,
    /// Of each stream.
    blobs: u64,
    streams: u64,
    expected: Answers,
}

impl FeedPair {
    pub(super) fn new(
        folder: &Path,
        seed: u64,
        bytes: u64,
        streams: u64,
        lane: bool,
    ) -> Result<FeedPair, Failure> {
        let blobs = bytes / streams / BLOB_BYTES as u64;
        let mut options = FeedOptions::default();
        options.profile.lane = lane;
        options.profile.codecs = vec![Codec::None];
        let mut one = vec![0; BLOB_BYTES];
        let sum = (0..blobs).fold(0u64, |sum, number| sum.wrapping_add(blob(seed, number, &mut one)));
        let limit = blobs * streams * BLOB_BYTES as u64;
        Ok(FeedPair {
            source: SourceProcess::start(seed)?,
            store: Store::open(folder, 2 * bytes + GIB)?,
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
            options,
            blobs,
            streams,
            expected: Answers { limit, subject: sum.wrapping_mul(streams) },
        })
    }
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
        let bytes = self.bytes() / self.streams;
        let address = &self.source.bare;
        stopwatch.time(|| {
            std::thread::scope(|scope| {
                let receive = || receive_bare(address, bytes);
                let threads: Vec<_> = (0..self.streams).map(|_| scope.spawn(receive)).collect();
                threads.into_iter().map(|thread| thread.join().expect("receiving does not panic")).sum()
            })
        })
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        stopwatch.beside(self.source.id());
        let dial = Dial::new(&self.source.feed, ClientSecurity::Plain)?;
        let caps = Some(Caps { items_max: self.blobs, bytes_max: 0 });
        let from = FeedFrom { caps, ..FeedFrom::new(dial) };
        let sources = vec![from; usize::try_from(self.streams).expect("there are few")];
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

/// Takes so many bytes, and looks at none.
fn receive_bare(address: &str, bytes: u64) -> Result<u64, Failure> {
    let mut source = TcpStream::connect(address)?;
    source.write_all(&bytes.to_le_bytes())?;
    let (mut room, mut received) = (vec![0; 1 << 20], 0);
    while received < bytes {
        match source.read(&mut room)? {
            0 => return Err(Failure::because("the other process has hung up")),
            len => received += len as u64,
        }
    }
    Ok(received)
}

//! The holder's end of a lane: one thread that sends ranges of region files, one after the other.
//!
//! On a plain connection the bytes of a file go by `sendfile`, from the page cache to the socket; those that lie in the
//! cache's memory go from there. Under TLS they pass through a buffer. Whatever goes wrong closes the lane, since a frame
//! that is cut off can't be told from the next.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use pelton_nexus_proto::Limits;
use pelton_nexus_proto::lane::Frame;
use pelton_nexus_proto::messages::RangeChunk;
use pelton_region_format::crc32c;
use pelton_worker::RegionOutlet;
use rustix::net::RecvFlags;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tonic::Status;

use super::range::{blocks_within, whole_blocks};
use super::serve::{bytes_of, not_read};
use crate::stream::Stream;

/// What a lane is known by.
pub(super) type LaneToken = Vec<u8>;
/// Where a lane's ranges are queued.
pub(super) type LaneJobs = SyncSender<LaneJob>;

/// Ranges that wait for one lane.
const JOBS_MAX: usize = 8;
/// The body of one frame: large enough that its header costs nothing.
const FRAME_BYTES: u64 = 16 << 20;
/// Blocks that one frame tells: their checksums stay far below what a head may have.
const FRAME_BLOCKS_MAX: u64 = 2048;
/// What is copied at once where something is.
const COPY_BYTES: u64 = 1 << 20;
/// How often it is looked whether the fetcher has gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One range that is to be sent.
pub(super) struct LaneJob {
    pub(super) region: RegionOutlet,
    pub(super) range: Range<u64>,
    pub(super) range_id: u64,
    /// Told how many bytes were sent, or why not all.
    pub(super) done: oneshot::Sender<Result<u64, Status>>,
}

/// The queue of one lane.
pub(super) fn jobs() -> (LaneJobs, Receiver<LaneJob>) {
    sync_channel(JOBS_MAX)
}

/// Sends what is queued, until the fetcher goes, takes nothing for so long, or asks for nothing for so long.
pub(super) fn run_lane(
    stream: Stream,
    jobs: &Receiver<LaneJob>,
    runtime: &Handle,
    limits: &Limits,
    idle_wait_max: Duration,
) {
    let mut lane = match Lane::new(stream, runtime, limits, idle_wait_max) {
        Ok(lane) => lane,
        Err(error) => return tracing::warn!(%error, "a lane could not be set up"),
    };
    let mut quiet_since = Instant::now();
    loop {
        match jobs.recv_timeout(LOOK_EVERY) {
            Ok(LaneJob { region, range, range_id, done }) => {
                let len = range.end - range.start;
                match lane.send_range(&region, range, range_id) {
                    Ok(()) => _ = done.send(Ok(len)),
                    Err(status) => {
                        tracing::debug!(%status, "a lane ends in the middle of a range");
                        // The connection first: whoever reads it looks for the reason then.
                        drop(lane);
                        _ = done.send(Err(status));
                        return;
                    }
                }
                quiet_since = Instant::now();
            }
            Err(RecvTimeoutError::Timeout) if !lane.has_ended() && quiet_since.elapsed() < idle_wait_max => {}
            Err(_) => return,
        }
    }
}

struct Lane<'a> {
    to: Connection<'a>,
    limits: &'a Limits,
    idle_wait_max: Duration,
}

enum Connection<'a> {
    Plain(TcpStream),
    Tls(Box<Stream>, &'a Handle, Duration),
}

impl<'a> Lane<'a> {
    fn new(
        stream: Stream,
        runtime: &'a Handle,
        limits: &'a Limits,
        idle_wait_max: Duration,
    ) -> io::Result<Lane<'a>> {
        let to = match stream {
            Stream::Plain(tcp) => {
                let tcp = tcp.into_std()?;
                tcp.set_nonblocking(false)?;
                tcp.set_write_timeout(Some(idle_wait_max))?;
                Connection::Plain(tcp)
            }
            tls => Connection::Tls(Box::new(tls), runtime, idle_wait_max),
        };
        Ok(Lane { to, limits, idle_wait_max })
    }

    /// Frames of whole blocks tell their checksums and are sent without a look at them; what is left at either side, or
    /// lies outside of the body, has a checksum of its own.
    fn send_range(&mut self, region: &RegionOutlet, range: Range<u64>, range_id: u64) -> Result<(), Status> {
        let whole = whole_blocks(region.region(), range.clone());
        let block_bytes = u64::from(region.region().block_bytes);
        let frame_bytes =
            FRAME_BYTES.min(self.limits.lane_body_bytes_max).min(block_bytes * FRAME_BLOCKS_MAX);
        let mut offset = range.start;
        while offset < range.end {
            // A frame with whole blocks ends with one; where none fits, each part has a checksum of its own.
            let mut end = (offset - offset % frame_bytes).saturating_add(frame_bytes).min(whole.end);
            let is_bare = whole.contains(&offset) && frame_bytes >= block_bytes;
            if !is_bare {
                let limit = if offset < whole.start { whole.start } else { range.end };
                let step = COPY_BYTES.min(self.limits.lane_body_bytes_max);
                end = offset.saturating_add(step).min(limit).min(range.end);
            }
            let mut chunk = RangeChunk {
                range_id,
                offset,
                blocks: blocks_within(region.region(), region.block_checksums(), offset..end),
                ..RangeChunk::default()
            };
            let read = |range| bytes_of(region, range, Instant::now() + self.idle_wait_max);
            let body = match is_bare {
                true => None,
                false => Some(read(offset..end).map_err(|error| not_read(&error))?),
            };
            chunk.crc32c = body.as_ref().map(|body| crc32c(body));
            let (header, head) = Frame::of_range(chunk, end - offset, self.limits)
                .map_err(|error| Status::internal(format!("a frame could not be made: {error}")))?;
            let begun = [&header.encode()[..], &head].concat();
            self.to.write(&begun).map_err(|error| not_sent(&error))?;
            match body {
                Some(body) => self.to.write(&body).map_err(|error| not_sent(&error))?,
                None => self.send_body(region, offset..end)?,
            }
            offset = end;
        }
        self.to.flush().map_err(|error| not_sent(&error))
    }

    fn send_body(&mut self, region: &RegionOutlet, range: Range<u64>) -> Result<(), Status> {
        if let (Connection::Plain(tcp), Some(file)) = (&self.to, region.file()) {
            let (mut offset, mut left) = (range.start, (range.end - range.start) as usize);
            while left > 0 {
                match rustix::fs::sendfile(tcp, file, Some(&mut offset), left) {
                    Ok(0) => return Err(Status::data_loss("the file of the region has become shorter")),
                    Ok(sent) => left -= sent,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(errno) => return Err(not_sent(&errno.into())),
                }
            }
            return Ok(());
        }
        if let Some(bytes) = region.memory() {
            let bytes = &bytes[range.start as usize..range.end as usize];
            return self.to.write(bytes).map_err(|error| not_sent(&error));
        }
        let mut offset = range.start;
        while offset < range.end {
            let end = (offset + COPY_BYTES).min(range.end);
            let bytes = bytes_of(region, offset..end, Instant::now() + self.idle_wait_max);
            let bytes = bytes.map_err(|error| not_read(&error))?;
            self.to.write(&bytes).map_err(|error| not_sent(&error))?;
            offset = end;
        }
        Ok(())
    }

    /// Whether the fetcher has closed its end. It never says anything.
    fn has_ended(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let look = |tcp: &dyn std::os::fd::AsFd| rustix::net::recv(tcp.as_fd(), &mut [0u8; 1], flags);
        match &self.to {
            Connection::Plain(tcp) => !matches!(look(tcp), Err(rustix::io::Errno::AGAIN)),
            Connection::Tls(stream, ..) => match &**stream {
                Stream::Plain(tcp) => !matches!(look(tcp), Err(rustix::io::Errno::AGAIN)),
                // What TLS says by itself is no end.
                Stream::Tls(tls) => matches!(look(tls.get_ref().0), Ok((0, _))),
            },
        }
    }
}

impl Connection<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Connection::Plain(tcp) => tcp.write_all(bytes),
            Connection::Tls(stream, runtime, wait_max) => {
                for step in bytes.chunks(COPY_BYTES as usize) {
                    let write = async { tokio::time::timeout(*wait_max, stream.write_all(step)).await };
                    runtime.block_on(write).map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
                }
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Connection::Plain(_) => Ok(()),
            Connection::Tls(stream, runtime, wait_max) => {
                let flush = async { tokio::time::timeout(*wait_max, stream.flush()).await };
                runtime.block_on(flush).map_err(|_| io::Error::from(ErrorKind::TimedOut))?
            }
        }
    }
}

fn not_sent(error: &io::Error) -> Status {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            Status::unavailable("the fetcher has taken nothing for too long")
        }
        _ => Status::unavailable(format!("the lane has broken: {error}")),
    }
}

//! How one thread of a fetcher gets ranges: by a lane if the peer gives one, else by gRPC.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Instant;

use pelton_nexus_proto::lane::{FrameHeader, LANE_VERSION, LaneError};
use pelton_nexus_proto::messages::range_message::Kind;
use pelton_nexus_proto::messages::{FetchRangeRequest, OpenLaneRequest, RangeChunk, RangeEnd, RangeMessage};
use pelton_nexus_proto::{Limit, lane::TOKEN_BYTES, plain};
use pelton_region_format::{Fingerprint, crc32c};
use pelton_worker::{IntakeError, RegionIntake};
use tokio::io::AsyncReadExt;
use tonic::{Code, Status, Streaming};

use super::error::{FetchError, Subject};
use super::fetch::{LOOK_EVERY, Session};
use crate::stream::Stream;
use crate::told::told;

/// One thread's way to a peer.
pub(super) struct Line<'s> {
    session: &'s Session,
    fingerprint: Fingerprint,
    lane: Option<OpenLane>,
    /// Whether it is worth to ask for a lane.
    may_have_lane: bool,
}

struct OpenLane {
    token: Vec<u8>,
    from: Connection,
}

enum Connection {
    Plain(TcpStream),
    Tls(Box<Stream>),
}

impl<'s> Line<'s> {
    pub(super) fn new(session: &'s Session, fingerprint: Fingerprint) -> Line<'s> {
        Line { session, fingerprint, lane: None, may_have_lane: session.options.lanes }
    }

    /// Gets a stretch of what the intake wants, from its start on.
    pub(super) fn fetch(&mut self, intake: &mut RegionIntake, range: Range<u64>) -> Result<(), FetchError> {
        if self.lane.is_none() && self.may_have_lane {
            self.lane = self.open_lane()?;
            self.may_have_lane = self.lane.is_some();
        }
        // Whatever goes wrong leaves the lane in the middle of something: then it is closed with this.
        let Some(mut lane) = self.lane.take() else { return self.fetch_by_grpc(intake, range) };
        self.fetch_by_lane(&mut lane, intake, range)?;
        self.lane = Some(lane);
        Ok(())
    }

    pub(super) fn fetch_by_grpc(
        &mut self,
        intake: &mut RegionIntake,
        range: Range<u64>,
    ) -> Result<(), FetchError> {
        let (mut messages, range_id) = self.ask(intake, &range, Vec::new())?;
        let limits = &self.session.options.limits;
        let mut place = Place { line: self, index: intake.region().index, offset: range.start };
        loop {
            let end = match place.next_message(&mut messages)? {
                Kind::Chunk(chunk) => {
                    place.check_chunk(&chunk, range_id, chunk.bytes.len() as u64, range.end)?;
                    let checked = limits.check(Limit::ChunkBytes, chunk.bytes.len() as u64);
                    checked.map_err(|error| place.protocol(error.to_string()))?;
                    if chunk.crc32c != Some(crc32c(&chunk.bytes)) {
                        return Err(place.lost("a chunk has another checksum than was told".to_owned()));
                    }
                    intake.put(&chunk.bytes).map_err(|error| place.not_taken(error))?;
                    place.advance(chunk.bytes.len() as u64);
                    continue;
                }
                Kind::End(end) => end,
            };
            return place.check_end(end, range_id, &range);
        }
    }

    fn fetch_by_lane(
        &self,
        lane: &mut OpenLane,
        intake: &mut RegionIntake,
        range: Range<u64>,
    ) -> Result<(), FetchError> {
        let (mut messages, range_id) = self.ask(intake, &range, lane.token.clone())?;
        let mut place = Place { line: self, index: intake.region().index, offset: range.start };
        while place.offset < range.end {
            if let Err(error) = place.take_frame(&mut lane.from, intake, range_id, range.end) {
                // A holder that can't go on closes the lane, and says why here.
                return Err(place.reason_of(error, &mut messages));
            }
        }
        match place.next_message(&mut messages)? {
            Kind::End(end) => place.check_end(end, range_id, &range),
            Kind::Chunk(_) => Err(place.protocol("a chunk came by gRPC and not by the lane".to_owned())),
        }
    }

    /// Asks for a range. Says under which number.
    fn ask(
        &self,
        intake: &RegionIntake,
        range: &Range<u64>,
        lane_token: Vec<u8>,
    ) -> Result<(Streaming<RangeMessage>, u64), FetchError> {
        let (session, region) = (self.session, intake.region());
        let range_id = session.next_range();
        let request = FetchRangeRequest {
            key: session.subject.key.to_string(),
            fingerprint: self.fingerprint.as_bytes().to_vec(),
            region: region.index,
            content_id: region.content_id.as_bytes().to_vec(),
            offset: range.start,
            len: range.end - range.start,
            lane_token,
            range_id,
        };
        let place = Place { line: self, index: region.index, offset: range.start };
        let asking = session.ask((region.index, range.start), || {
            let (mut client, request) = (session.client.clone(), request.clone());
            async move { client.fetch_range(request).await }
        });
        let asked = session.runtime.block_on(asking)?;
        Ok((asked.map_err(|status| place.refused(status))?.into_inner(), range_id))
    }

    /// A lane, if the peer gives one.
    fn open_lane(&self) -> Result<Option<OpenLane>, FetchError> {
        let session = self.session;
        let mut client = session.client.clone();
        let request = OpenLaneRequest { versions: vec![LANE_VERSION] };
        let asked = session.runtime.block_on(session.wait((0, 0), client.open_lane(request)))?;
        // Whatever it says: a lane is never needed.
        let Ok(lane) = asked else { return Ok(None) };
        let lane = lane.into_inner();
        if lane.token.len() != TOKEN_BYTES {
            return Ok(None);
        }
        let opening = session.wait((0, 0), session.dial.lane(&lane));
        let from = match session.runtime.block_on(opening)? {
            Ok(Stream::Plain(tcp)) => {
                let blocking = tcp.into_std().and_then(|tcp| {
                    tcp.set_nonblocking(false)?;
                    tcp.set_read_timeout(Some(LOOK_EVERY))?;
                    Ok(tcp)
                });
                match blocking {
                    Ok(tcp) => Connection::Plain(tcp),
                    Err(_) => return Ok(None),
                }
            }
            Ok(tls) => Connection::Tls(Box::new(tls)),
            Err(error) => {
                tracing::debug!(error = told(&error), "a lane that was offered can't be opened");
                return Ok(None);
            }
        };
        Ok(Some(OpenLane { token: lane.token, from }))
    }
}

/// Where a range is, for checks and errors.
struct Place<'l, 's> {
    line: &'l Line<'s>,
    index: u32,
    offset: u64,
}

impl Place<'_, '_> {
    fn advance(&mut self, bytes: u64) {
        self.offset += bytes;
        self.line.session.received(bytes);
    }

    /// The next message of a range that is not over.
    fn next_message(&self, messages: &mut Streaming<RangeMessage>) -> Result<Kind, FetchError> {
        let session = self.line.session;
        loop {
            let next = session.wait((self.index, self.offset), messages.message());
            match session.runtime.block_on(next)? {
                Ok(Some(RangeMessage { kind: Some(kind) })) => return Ok(kind),
                Ok(Some(RangeMessage { kind: None })) => {} // Of a later version.
                Ok(None) => return Err(self.lost("the stream ended before the range did".to_owned())),
                Err(status) => return Err(self.refused(status)),
            }
        }
    }

    /// Receives one frame, its body straight to where it stays.
    fn take_frame(
        &mut self,
        from: &mut Connection,
        intake: &mut RegionIntake,
        range_id: u64,
        end: u64,
    ) -> Result<(), FetchError> {
        let mut header = [0; FrameHeader::BYTES];
        self.read_exact(from, &mut header)?;
        let broken = |place: &Self, error: LaneError| match error {
            // On its way, maybe: the stretch is asked for again.
            LaneError::Checksum { .. } => place.lost(error.to_string()),
            error => place.protocol(error.to_string()),
        };
        let limits = &self.line.session.options.limits;
        let header = FrameHeader::decode(&header, limits).map_err(|error| broken(self, error))?;
        let mut head = vec![0; header.head_bytes()];
        self.read_exact(from, &mut head)?;
        let chunk = header.range_chunk(&head).map_err(|error| broken(self, error))?;
        let mut left = header.body_bytes();
        self.check_chunk(&chunk, range_id, left as u64, end)?;
        // The checksum of a body is not looked at here: the intake compares every byte with what it has to be.
        while left > 0 {
            let room = intake.room().map_err(|error| self.line.session.subject.load(error))?;
            let len = room.len().min(left);
            let came = self.read(from, &mut room[..len])?;
            intake.filled(came).map_err(|error| self.not_taken(error))?;
            self.advance(came as u64);
            left -= came;
        }
        Ok(())
    }

    fn read_exact(&self, from: &mut Connection, mut bytes: &mut [u8]) -> Result<(), FetchError> {
        while !bytes.is_empty() {
            let came = self.read(from, bytes)?;
            bytes = &mut bytes[came..];
        }
        Ok(())
    }

    /// Reads something.
    fn read(&self, from: &mut Connection, bytes: &mut [u8]) -> Result<usize, FetchError> {
        let session = self.line.session;
        let begun = Instant::now();
        loop {
            let read = match from {
                Connection::Plain(tcp) => tcp.read(bytes),
                Connection::Tls(stream) => {
                    let read = async { tokio::time::timeout(LOOK_EVERY, stream.read(bytes)).await };
                    session.runtime.block_on(read).unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
                }
            };
            match read {
                Ok(0) => return Err(self.lost("the lane was closed".to_owned())),
                Ok(came) => return Ok(came),
                Err(error) if is_pause(&error) => session.check_silence((self.index, self.offset), begun)?,
                Err(error) => return Err(self.lost(format!("the lane has broken: {error}"))),
            }
        }
    }

    /// Why a lane has ended, if the peer says it by gRPC.
    fn reason_of(&self, error: FetchError, messages: &mut Streaming<RangeMessage>) -> FetchError {
        if !matches!(error, FetchError::Lost { .. }) {
            return error;
        }
        match self.next_message(messages) {
            Err(reason) => reason,
            Ok(_) => error,
        }
    }

    fn check_chunk(&self, chunk: &RangeChunk, range_id: u64, len: u64, end: u64) -> Result<(), FetchError> {
        let text = if chunk.range_id != range_id {
            format!("a chunk of range {}, asked for was {range_id}", chunk.range_id)
        } else if chunk.offset != self.offset {
            format!("a chunk of offset {}", chunk.offset)
        } else if len == 0 {
            "a chunk without bytes".to_owned()
        } else if len > end - self.offset {
            format!("{len} bytes, asked for are {} more", end - self.offset)
        } else {
            return Ok(());
        };
        Err(self.protocol(text))
    }

    fn check_end(&self, end: RangeEnd, range_id: u64, range: &Range<u64>) -> Result<(), FetchError> {
        let asked = range.end - range.start;
        if end.range_id != range_id {
            return Err(self.protocol(format!("the end of range {}, asked for was {range_id}", end.range_id)));
        }
        if self.offset != range.end || end.bytes != asked {
            let came = self.offset - range.start;
            let text = format!(
                "the range ended with {} bytes told and {came} here, asked for were {asked}",
                end.bytes
            );
            return Err(self.protocol(text));
        }
        Ok(())
    }

    fn not_taken(&self, error: IntakeError) -> FetchError {
        let Subject { peer, key } = self.line.session.subject.clone();
        let damaged = |offset, source| FetchError::Damaged { peer, key, region: self.index, offset, source };
        match error {
            IntakeError::Block { offset, source, .. } => damaged(offset, Some(source)),
            IntakeError::Ends { source, .. } => damaged(0, Some(source)),
            IntakeError::Load(error) => self.line.session.subject.load(error),
            // Another region's header and end.
            _ => damaged(0, None),
        }
    }

    fn refused(&self, status: Status) -> FetchError {
        let Subject { peer, key } = self.line.session.subject.clone();
        let text = plain(status.message());
        match status.code() {
            Code::Aborted => FetchError::Changed { peer, key, region: self.index, text },
            Code::Unavailable | Code::Unknown | Code::Cancelled => self.lost(text),
            _ => self.line.session.subject.refused(status),
        }
    }

    fn protocol(&self, text: String) -> FetchError {
        let Subject { peer, key } = self.line.session.subject.clone();
        FetchError::Protocol { peer, key, region: self.index, offset: self.offset, text }
    }

    fn lost(&self, text: String) -> FetchError {
        let Subject { peer, key } = self.line.session.subject.clone();
        FetchError::Lost { peer, key, region: self.index, offset: self.offset, text }
    }
}

/// Whether a read has only waited for a while.
fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

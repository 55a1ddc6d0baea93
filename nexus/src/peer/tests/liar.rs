//! A peer that lies: it asks an honest one, and changes what it says.

use std::io::{Read, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use pelton_nexus_proto::Limits;
use pelton_nexus_proto::lane::{Frame, LaneAnswer, LaneOpening};
use pelton_nexus_proto::messages::peer_server::{Peer, PeerServer};
use pelton_nexus_proto::messages::range_message::Kind;
use pelton_nexus_proto::messages::{
    FetchRangeRequest, GetManifestRequest, Lane, Manifest, OpenLaneRequest, RangeChunk, RangeEnd,
    RangeMessage,
};
use pelton_region_format::crc32c;
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::super::PeerService;

/// What is changed in a manifest.
pub(super) type ChangeManifest = fn(&mut Manifest);

/// What a peer does wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lie {
    /// Nothing.
    Nothing,
    Manifest(ChangeManifest),
    /// A bit, with a checksum that fits it: each time, or once.
    Flip {
        region: u32,
        offset: u64,
    },
    FlipOnce {
        region: u32,
        offset: u64,
    },
    WrongChecksumOnce,
    OtherOffset,
    OtherRange,
    TooMuch,
    TooLittle,
    NoBytes,
    OtherEnd,
    /// The stream ends well, without an end.
    NoEnd,
    /// The stream ends in an error, in the middle of a body.
    BreakOff,
    /// Says nothing any more, in the middle of a body.
    Hang,
    /// Each range fails with this.
    Always(Code),
    /// Its lanes are not what they should be.
    Lane(LaneLie),
}

/// What a lane does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneLie {
    Closed,
    Refused,
    Garbage,
    CutFrame,
    OtherOffset,
    TooMuch,
    Hang,
}

impl PartialEq for Lie {
    fn eq(&self, other: &Lie) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

/// The peer.
#[derive(Clone)]
pub(super) struct Liar {
    honest: PeerService,
    lie: Lie,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    has_lied: AtomicBool,
    hangs: Notify,
    ranges: Mutex<Vec<(u32, Range<u64>)>>,
    after_manifest: Mutex<Option<Box<dyn Fn() + Send>>>,
    /// The range that was asked for last by a lane: number, offset, length.
    by_lane: Mutex<Option<(u64, u64, u64)>>,
    asked: Condvar,
}

impl Liar {
    pub(super) fn new(honest: PeerService, lie: Lie) -> Liar {
        Liar { honest, lie, state: Arc::default() }
    }

    pub(super) fn into_server(self) -> PeerServer<Liar> {
        PeerServer::new(self)
    }

    /// What was asked for so far.
    pub(super) fn ranges(&self) -> Vec<(u32, Range<u64>)> {
        self.state.ranges.lock().unwrap().clone()
    }

    /// Waits until it hangs.
    pub(super) async fn hangs(&self) {
        self.state.hangs.notified().await;
    }

    /// Runs between a manifest and what follows it.
    pub(super) fn after_manifest(&self, run: impl Fn() + Send + 'static) {
        *self.state.after_manifest.lock().unwrap() = Some(Box::new(run));
    }

    /// Whether it is to lie now, of what it does once.
    fn is_first(&self) -> bool {
        !self.state.has_lied.swap(true, Ordering::Relaxed)
    }

    /// What it says instead of a chunk. Nothing: the stream ends.
    fn chunk(&self, region: u32, mut chunk: RangeChunk) -> Vec<Result<RangeMessage, Status>> {
        let in_body = chunk.offset >= 1 << 20;
        let message = |chunk| Ok(RangeMessage { kind: Some(Kind::Chunk(chunk)) });
        match self.lie {
            Lie::Flip { region: r, offset } | Lie::FlipOnce { region: r, offset } => {
                let end = chunk.offset + chunk.bytes.len() as u64;
                let is_hit = region == r && (chunk.offset..end).contains(&offset);
                if is_hit && (matches!(self.lie, Lie::Flip { .. }) || self.is_first()) {
                    let mut bytes = chunk.bytes.to_vec();
                    bytes[(offset - chunk.offset) as usize] ^= 1;
                    chunk.crc32c = Some(crc32c(&bytes));
                    chunk.bytes = bytes.into();
                }
            }
            Lie::WrongChecksumOnce if in_body && self.is_first() => {
                chunk.crc32c = chunk.crc32c.map(|crc| !crc);
            }
            Lie::OtherOffset if in_body => chunk.offset += 4096,
            Lie::OtherRange if in_body => chunk.range_id += 1,
            Lie::NoBytes if in_body => chunk.bytes = Bytes::new(),
            Lie::NoEnd if in_body => return vec![],
            Lie::BreakOff if in_body => return vec![Err(Status::unavailable("the peer goes down"))],
            _ => {}
        }
        vec![message(chunk)]
    }

    fn end(&self, mut end: RangeEnd, offset: u64) -> Vec<Result<RangeMessage, Status>> {
        let mut messages = Vec::new();
        match self.lie {
            Lie::OtherEnd => end.bytes += 1,
            Lie::TooMuch => {
                let bytes = Bytes::from_static(b"more");
                let crc32c = Some(crc32c(&bytes));
                let chunk = RangeChunk { range_id: end.range_id, offset, crc32c, blocks: vec![], bytes };
                messages.push(Ok(RangeMessage { kind: Some(Kind::Chunk(chunk)) }));
            }
            _ => {}
        }
        messages.push(Ok(RangeMessage { kind: Some(Kind::End(end)) }));
        messages
    }
}

#[tonic::async_trait]
impl Peer for Liar {
    async fn get_manifest(&self, request: Request<GetManifestRequest>) -> Result<Response<Manifest>, Status> {
        let mut manifest = self.honest.get_manifest(request).await?;
        if let Lie::Manifest(change) = self.lie {
            change(manifest.get_mut());
        }
        let state = self.state.clone();
        let run = move || {
            if let Some(run) = state.after_manifest.lock().unwrap().as_ref() {
                run();
            }
        };
        tokio::task::spawn_blocking(run).await.unwrap();
        Ok(manifest)
    }

    type FetchRangeStream = ReceiverStream<Result<RangeMessage, Status>>;

    async fn fetch_range(
        &self,
        request: Request<FetchRangeRequest>,
    ) -> Result<Response<Self::FetchRangeStream>, Status> {
        let asked = request.get_ref().clone();
        let (region, range) = (asked.region, asked.offset..asked.offset + asked.len);
        self.state.ranges.lock().unwrap().push((region, range));
        if let Lie::Always(code) = self.lie {
            return Err(Status::new(code, "it says so each time"));
        }
        let (to, messages) = mpsc::channel(1);
        if !asked.lane_token.is_empty() && matches!(self.lie, Lie::Lane(_)) {
            *self.state.by_lane.lock().unwrap() = Some((asked.range_id, asked.offset, asked.len));
            self.state.asked.notify_all();
            let end = RangeEnd { range_id: asked.range_id, bytes: asked.len };
            let is_over = matches!(self.lie, Lie::Lane(LaneLie::Hang));
            tokio::spawn(async move {
                if is_over {
                    to.closed().await;
                }
                let _ = to.send(Ok(RangeMessage { kind: Some(Kind::End(end)) })).await;
            });
            return Ok(Response::new(ReceiverStream::new(messages)));
        }
        let mut honest = self.honest.fetch_range(request).await?.into_inner();
        let liar = self.clone();
        tokio::spawn(async move {
            let mut offset = asked.offset;
            while let Some(message) = honest.next().await {
                let said = match message {
                    Ok(RangeMessage { kind: Some(Kind::Chunk(chunk)) }) => {
                        let in_body = chunk.offset >= 1 << 20;
                        if in_body && liar.lie == Lie::Hang {
                            liar.state.hangs.notify_one();
                            return to.closed().await;
                        }
                        if in_body && liar.lie == Lie::TooLittle {
                            let end = RangeEnd { range_id: asked.range_id, bytes: asked.len };
                            vec![Ok(RangeMessage { kind: Some(Kind::End(end)) })]
                        } else {
                            offset = chunk.offset + chunk.bytes.len() as u64;
                            liar.chunk(region, chunk)
                        }
                    }
                    Ok(RangeMessage { kind: Some(Kind::End(end)) }) => liar.end(end, offset),
                    other => vec![other],
                };
                let is_over = said.is_empty() || said.iter().any(Result::is_err);
                for message in said {
                    if to.send(message).await.is_err() {
                        return;
                    }
                }
                if is_over {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn open_lane(&self, request: Request<OpenLaneRequest>) -> Result<Response<Lane>, Status> {
        let Lie::Lane(lie) = self.lie else { return self.honest.open_lane(request).await };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = self.state.clone();
        std::thread::spawn(move || lie_by_lane(&listener, lie, &state));
        let lane = Lane {
            port: port.into(),
            token: vec![7; 32],
            expires_in_ms: 10_000,
            version: 1,
            ..Lane::default()
        };
        Ok(Response::new(lane))
    }
}

fn lie_by_lane(listener: &std::net::TcpListener, lie: LaneLie, state: &State) {
    let Ok((mut tcp, _)) = listener.accept() else { return };
    let mut opening = [0; LaneOpening::BYTES];
    if tcp.read_exact(&mut opening).is_err() {
        return;
    }
    let answer = if lie == LaneLie::Refused { LaneAnswer::Token } else { LaneAnswer::Taken };
    let _ = tcp.write_all(&answer.encode());
    if matches!(lie, LaneLie::Closed | LaneLie::Refused) {
        return;
    }
    let by_lane = state.by_lane.lock().unwrap();
    let wait_max = Duration::from_secs(20);
    let (mut by_lane, _) =
        state.asked.wait_timeout_while(by_lane, wait_max, |asked| asked.is_none()).unwrap();
    let Some((range_id, offset, len)) = by_lane.take() else { return };
    drop(by_lane);
    let frame = |offset, len: u64| {
        let body = vec![0; len as usize];
        let crc32c = Some(crc32c(&body));
        let chunk = RangeChunk { range_id, offset, crc32c, ..RangeChunk::default() };
        let (header, head) = Frame::of_range(chunk, len, &Limits::default()).unwrap();
        [&header.encode()[..], &head, &body].concat()
    };
    let bytes = match lie {
        LaneLie::Closed | LaneLie::Refused | LaneLie::Hang => vec![],
        LaneLie::Garbage => vec![0x5A; 4096],
        LaneLie::CutFrame => {
            let _ = tcp.write_all(&frame(offset, len)[..len as usize / 2]);
            return;
        }
        LaneLie::OtherOffset => frame(offset + 4096, len),
        LaneLie::TooMuch => frame(offset, len + 1),
    };
    let _ = tcp.write_all(&bytes);
    let _ = tcp.read(&mut [0]); // Until the fetcher goes.
}

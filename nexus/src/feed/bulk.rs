//! The lane of one stream: frames of a connection beside gRPC.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use pelton_nexus_proto::feed::Terms;
use pelton_nexus_proto::lane::{Frame, FrameHeader, LaneError};
use pelton_nexus_proto::messages::FeedMessage;
use pelton_nexus_proto::{Limit, Limits, Rooms};
use pelton_region_format::{BlockChecksum, Crc32c};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::dial::Dial;
use crate::lanes::{LanePlace, OfferedLane};
use crate::stream::Stream;
use crate::told::told;

/// How a stream may come by a lane.
pub(crate) enum LaneWay {
    None,
    /// This end has offered it, and waits for the other one.
    Offered(OfferedLane),
    /// This end opens what the other one offers.
    Dial(Dial),
}

/// A lane that stands.
pub(crate) struct OpenLane {
    stream: Stream,
    /// Its place among the peer's lanes, at the end that offered it.
    _place: Option<LanePlace>,
}

/// What came by a lane.
pub(crate) struct LaneFrame {
    pub(crate) message: FeedMessage,
    /// The checksum of its bytes.
    pub(crate) found: u32,
}

/// A lane on its way. Nothing if the stream does without.
pub(crate) type LaneOpening = Pin<Box<dyn Future<Output = Option<OpenLane>> + Send>>;

impl LaneWay {
    /// Waits for the lane that was offered.
    pub(crate) fn accept(&mut self) -> Option<LaneOpening> {
        match std::mem::replace(self, LaneWay::None) {
            LaneWay::Offered(offered) => Some(Box::pin(async {
                let (stream, place) = offered.connected().await?;
                Some(OpenLane { stream, _place: Some(place) })
            })),
            other => {
                *self = other;
                None
            }
        }
    }

    /// Opens the lane that was agreed on.
    pub(crate) fn open(&mut self, terms: &Terms) -> Option<LaneOpening> {
        let LaneWay::Dial(dial) = self else { return None };
        let (dial, lane) = (dial.clone(), terms.lane.clone()?);
        Some(Box::pin(async move {
            match dial.lane(&lane).await {
                Ok(stream) => Some(OpenLane { stream, _place: None }),
                Err(error) => {
                    tracing::debug!(error = told(&error), "a feed does without its lane");
                    None
                }
            }
        }))
    }
}

impl OpenLane {
    /// Hands on each frame as a message. The channel ends with the connection, or at the first frame that is none.
    pub(crate) fn read(self, limits: Limits, rooms: Rooms) -> mpsc::Receiver<LaneFrame> {
        // One: what was read ahead is memory that no credit stands for yet.
        let (messages, read) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut lane = self;
            loop {
                let next = tokio::select! {
                    next = read_frame(&mut lane.stream, &limits, &rooms) => next,
                    () = messages.closed() => return,
                };
                match next {
                    Ok(Some(frame)) => {
                        if messages.send(frame).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => return,
                    Err(error) => return tracing::debug!(%error, "a lane is given up"),
                }
            }
        });
        read
    }

    /// Sends each message as a frame. Messages are refused when the connection is gone, or takes longer than this for
    /// a frame: whoever reads no lane keeps no task and no place.
    pub(crate) fn write(self, limits: Limits, full_wait_max: Duration) -> mpsc::Sender<FeedMessage> {
        let (messages, mut write) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut lane = self;
            while let Some(message) = write.recv().await {
                let writing = write_frame(&mut lane.stream, message, &limits);
                let written = tokio::time::timeout(full_wait_max, writing).await;
                if let Err(error) = written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    return tracing::debug!(%error, "a lane is given up");
                }
            }
            let _ = tokio::time::timeout(full_wait_max, lane.stream.shutdown()).await;
        });
        messages
    }
}

/// The next frame's message; nothing where the other end has closed the lane between two.
async fn read_frame(stream: &mut Stream, limits: &Limits, rooms: &Rooms) -> io::Result<Option<LaneFrame>> {
    let mut header = [0; FrameHeader::BYTES];
    match stream.read_exact(&mut header).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let header = FrameHeader::decode(&header, limits).map_err(refused)?;
    // A feed's frames are no larger than its messages would be, whatever other lanes may carry.
    limits.check(Limit::MessageBytes, header.body_bytes() as u64).map_err(|error| refused(error.into()))?;
    let mut head = vec![0; header.head_bytes()];
    stream.read_exact(&mut head).await?;
    let (body, found) = read_body(stream, rooms.take(header.body_bytes()), header.body_bytes()).await?;
    let message = header.feed_message(&head, rooms.filled(body)).map_err(refused)?;
    Ok(Some(LaneFrame { message, found }))
}

/// A body, and its checksum. It is summed as it comes: a moment later it has left the processor's cache.
async fn read_body(stream: &mut Stream, mut bytes: Vec<u8>, len: usize) -> io::Result<(Vec<u8>, u32)> {
    let mut sum = Crc32c::default();
    let mut rest = stream.take(len as u64);
    while bytes.len() < len {
        let before = bytes.len();
        if rest.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sum.update(&bytes[before..]);
    }
    Ok((bytes, sum.take()))
}

async fn write_frame(stream: &mut Stream, message: FeedMessage, limits: &Limits) -> io::Result<()> {
    let frame = Frame::of_feed(message, limits).map_err(refused)?;
    let mut front = Vec::with_capacity(FrameHeader::BYTES + frame.head.len());
    front.extend_from_slice(&frame.header.encode());
    front.extend_from_slice(&frame.head);
    let mut all = bytes::Buf::chain(&front[..], frame.body);
    stream.write_all_buf(&mut all).await?;
    stream.flush().await
}

fn refused(error: LaneError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use pelton_nexus_proto::feed::message;
    use pelton_nexus_proto::messages::Parcel;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_lane_that_nobody_reads_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let reader = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stream = Stream::Plain(listener.accept().await.unwrap().0);
        let lane = OpenLane { stream, _place: None };
        let messages = lane.write(Limits::default(), Duration::from_millis(100));
        let bytes = vec![1; 1 << 20];
        let parcel =
            Parcel { blob_count: 1, inflated_bytes: 1 << 20, bytes: bytes.into(), ..Parcel::default() };
        // Until the buffers of both ends are full.
        while messages.send(message(parcel.clone())).await.is_ok() {}
        messages.closed().await;
        drop(reader);
    }
}

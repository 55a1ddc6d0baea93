//! Frames: a header of fixed size, a head that says what the body is, and the body.

use bytes::Bytes;
use pelton_region_format::crc32c;
use prost::Message;

use super::{LaneError, check_sum, u32_at};
use crate::feed::message;
use crate::limits::{Limit, LimitExceeded, Limits};
use crate::messages::feed_message::Kind;
use crate::messages::{BlobFrame, Complete, FeedMessage, Parcel, RangeChunk};

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameKind {
    /// A [`Parcel`].
    Parcel,
    /// A [`BlobFrame`].
    BlobFrame,
    /// A [`Complete`], without a body.
    Complete,
    /// A [`RangeChunk`].
    RangeChunk,
}

impl FrameKind {
    const ALL: [FrameKind; 4] =
        [FrameKind::Parcel, FrameKind::BlobFrame, FrameKind::Complete, FrameKind::RangeChunk];

    const fn number(self) -> u8 {
        match self {
            FrameKind::Parcel => 1,
            FrameKind::BlobFrame => 2,
            FrameKind::Complete => 3,
            FrameKind::RangeChunk => 4,
        }
    }
}

/// The first 24 bytes of a frame.
///
/// Only [`FrameHeader::decode`] makes one of foreign bytes, so its sizes are within the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    kind: FrameKind,
    head_bytes: u32,
    body_bytes: u32,
    head_crc32c: u32,
    body_crc32c: Option<u32>,
}

/// Flag: the body has no checksum of its own.
const BARE: u8 = 1;

impl FrameHeader {
    /// How long it is.
    pub const BYTES: usize = 24;

    /// What the frame holds.
    pub fn kind(&self) -> FrameKind {
        self.kind
    }

    /// How many bytes of head follow.
    pub fn head_bytes(&self) -> usize {
        self.head_bytes as usize
    }

    /// How many bytes of body follow the head.
    pub fn body_bytes(&self) -> usize {
        self.body_bytes as usize
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.kind.number();
        bytes[1] = if self.body_crc32c.is_none() { BARE } else { 0 };
        let fields = [self.head_bytes, self.body_bytes, self.head_crc32c, self.body_crc32c.unwrap_or(0)];
        for (target, field) in bytes[4..20].chunks_exact_mut(4).zip(fields) {
            target.copy_from_slice(&field.to_le_bytes());
        }
        let crc = crc32c(&bytes[..20]);
        bytes[20..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What these bytes say. No memory is taken.
    ///
    /// # Errors
    /// [`LaneError`], with [`LaneError::Limit`] if head or body would be larger than allowed.
    pub fn decode(bytes: &[u8; Self::BYTES], limits: &Limits) -> Result<FrameHeader, LaneError> {
        check_sum("a frame's header", &bytes[..20], u32_at(bytes, 20))?;
        let [number, flags, zero_0, zero_1, ..] = *bytes;
        let kind = FrameKind::ALL.into_iter().find(|kind| kind.number() == number);
        let kind = kind.ok_or(LaneError::Field { field: "a frame's kind", found: number.into() })?;
        let bare = flags == BARE && kind == FrameKind::RangeChunk;
        if flags != 0 && !bare {
            return Err(LaneError::Field { field: "a frame's flags", found: flags.into() });
        }
        if (zero_0, zero_1) != (0, 0) {
            let found = u32::from_le_bytes([zero_0, zero_1, 0, 0]);
            return Err(LaneError::Field { field: "bytes 2 and 3 of a frame", found });
        }
        let (head_bytes, body_bytes) = (u32_at(bytes, 4), u32_at(bytes, 8));
        limits.check(Limit::LaneHeadBytes, head_bytes.into())?;
        limits.check(Limit::LaneBodyBytes, body_bytes.into())?;
        if kind == FrameKind::Complete && body_bytes != 0 {
            return Err(LaneError::Field { field: "the body of a Complete", found: body_bytes });
        }
        let body_crc32c = u32_at(bytes, 16);
        if bare && body_crc32c != 0 {
            return Err(LaneError::Field { field: "the checksum of a body without one", found: body_crc32c });
        }
        Ok(FrameHeader {
            kind,
            head_bytes,
            body_bytes,
            head_crc32c: u32_at(bytes, 12),
            body_crc32c: (!bare).then_some(body_crc32c),
        })
    }

    /// The message of a Feed that head and body make. The body's checksum goes along with it: the receiver
    /// compares it as it does with one from gRPC.
    ///
    /// # Errors
    /// [`LaneError`]: the head is damaged or no such message, or this is no frame of a Feed.
    ///
    /// # Panics
    /// If `head` or `body` are not as long as the header says.
    pub fn feed_message(&self, head: &[u8], body: Bytes) -> Result<FeedMessage, LaneError> {
        self.check_head(head, body.len())?;
        let crc32c = self.body_crc32c.unwrap_or(0);
        Ok(match self.kind {
            FrameKind::Parcel => message(Parcel { crc32c, bytes: body, ..self.decode_head(head)? }),
            FrameKind::BlobFrame => message(BlobFrame { crc32c, bytes: body, ..self.decode_head(head)? }),
            FrameKind::Complete => message(self.decode_head::<Complete>(head)?),
            FrameKind::RangeChunk => return Err(LaneError::Message { found: "a RangeChunk in a Feed" }),
        })
    }

    /// The chunk that the head tells of, without its bytes: `body_bytes` of them follow, to be received where
    /// they shall stay. Its `crc32c` is absent if only the blocks' checksums cover them.
    ///
    /// # Errors
    /// [`LaneError`]: the head is damaged or no chunk, or this is a frame of a Feed.
    ///
    /// # Panics
    /// If `head` is not as long as the header says.
    pub fn range_chunk(&self, head: &[u8]) -> Result<RangeChunk, LaneError> {
        self.check_head(head, self.body_bytes())?;
        match self.kind {
            FrameKind::RangeChunk => Ok(RangeChunk { crc32c: self.body_crc32c, ..self.decode_head(head)? }),
            _ => Err(LaneError::Message { found: "a frame of a Feed in a range" }),
        }
    }

    fn check_head(&self, head: &[u8], body_bytes: usize) -> Result<(), LaneError> {
        assert_eq!(
            head.len(),
            self.head_bytes(),
            "the caller reads as many bytes of head as the header says"
        );
        assert_eq!(
            body_bytes,
            self.body_bytes(),
            "the caller reads as many bytes of body as the header says"
        );
        check_sum("a frame's head", head, self.head_crc32c)
    }

    fn decode_head<M: Message + Default>(&self, head: &[u8]) -> Result<M, LaneError> {
        M::decode(head).map_err(|error| LaneError::Head { kind: self.kind, text: error.to_string() })
    }
}

/// A frame to be sent: header, head, body, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The first bytes.
    pub header: FrameHeader,
    /// Follows the header.
    pub head: Vec<u8>,
    /// Follows the head. Not copied from the message.
    pub body: Bytes,
}

impl Frame {
    /// The frame of a message that carries data of a Feed.
    ///
    /// # Errors
    /// [`LaneError::Message`] if it goes by gRPC, [`LaneError::Limit`] if it is too large for a frame.
    pub fn of_feed(message: FeedMessage, limits: &Limits) -> Result<Frame, LaneError> {
        let (kind, head, crc32c, body) = match message.kind {
            Some(Kind::Parcel(mut parcel)) => {
                let (crc, body) = (std::mem::take(&mut parcel.crc32c), std::mem::take(&mut parcel.bytes));
                (FrameKind::Parcel, parcel.encode_to_vec(), crc, body)
            }
            Some(Kind::BlobFrame(mut frame)) => {
                let (crc, body) = (std::mem::take(&mut frame.crc32c), std::mem::take(&mut frame.bytes));
                (FrameKind::BlobFrame, frame.encode_to_vec(), crc, body)
            }
            Some(Kind::Complete(complete)) => {
                (FrameKind::Complete, complete.encode_to_vec(), 0, Bytes::new())
            }
            _ => return Err(LaneError::Message { found: "a message without data" }),
        };
        let header = header_of(kind, &head, body.len() as u64, Some(crc32c), limits)?;
        Ok(Frame { header, head, body })
    }

    /// Header and head of a chunk whose `body_bytes` bytes are sent from elsewhere, as by sendfile. `chunk.bytes`
    /// is not looked at. Without `chunk.crc32c` the blocks' checksums must cover all of them.
    ///
    /// # Errors
    /// [`LaneError::Limit`] if it is too large for a frame.
    pub fn of_range(
        mut chunk: RangeChunk,
        body_bytes: u64,
        limits: &Limits,
    ) -> Result<(FrameHeader, Vec<u8>), LaneError> {
        chunk.bytes = Bytes::new();
        let crc32c = chunk.crc32c.take();
        let head = chunk.encode_to_vec();
        Ok((header_of(FrameKind::RangeChunk, &head, body_bytes, crc32c, limits)?, head))
    }
}

fn header_of(
    kind: FrameKind,
    head: &[u8],
    body_bytes: u64,
    body_crc32c: Option<u32>,
    limits: &Limits,
) -> Result<FrameHeader, LaneError> {
    Ok(FrameHeader {
        kind,
        head_bytes: field_of(head.len() as u64, Limit::LaneHeadBytes, limits)?,
        body_bytes: field_of(body_bytes, Limit::LaneBodyBytes, limits)?,
        head_crc32c: crc32c(head),
        body_crc32c,
    })
}

/// A size as a header's field says it. A limit may be set beyond what the field can say.
fn field_of(found: u64, limit: Limit, limits: &Limits) -> Result<u32, LaneError> {
    limits.check(limit, found)?;
    u32::try_from(found).map_err(|_| LimitExceeded { limit, found, max: u32::MAX.into() }.into())
}

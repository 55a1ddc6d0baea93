//! Reads a region as its bytes come by: for streams, and for files larger than memory.

use crate::body::{BODY_START, Span, V1_BODY_START};
use crate::checksum::{BlockSums, Crc32c};
use crate::error::{FormatError, Place, damaged};
use crate::frame::{Frame, block_range, check_block};
use crate::header::{Header, Version};
use crate::limits::PAGE_BYTES;
use crate::trailer::Trailer;
use crate::walker::{Halt, SpanEnd, Walker};

/// A stretch of one blob's bytes. An empty blob has one fragment, without bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlobFragment<'a> {
    /// The blob's number.
    pub number: u64,
    /// The length of the whole blob.
    pub len: u32,
    /// Where in the blob this fragment begins.
    pub offset: u32,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl BlobFragment<'_> {
    /// Whether the blob begins here.
    pub fn is_first(&self) -> bool {
        self.offset == 0
    }

    /// Whether the blob ends here.
    pub fn is_last(&self) -> bool {
        self.offset as usize + self.bytes.len() == self.len as usize
    }
}

/// What was checked, when all was well. A stream can't check the blob index; all else is checked by every
/// way of reading a whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// The format the bytes are in.
    pub version: Version,
    /// The length of the file.
    pub file_bytes: u64,
    /// How many blobs came by.
    pub blob_count: u64,
    /// The sum of their lengths.
    pub blob_bytes: u64,
    /// How many checksum blocks were compared. 0 in version 1, which has none: that its bytes are
    /// those that were written can't be told.
    pub blocks: u64,
}

/// Decodes a region from chunks of any size, fed in order, in bounded memory.
///
/// [`over`](RegionDecoder::over) is for files: with the [`Frame`] read first, each block is verified
/// before a byte of it is handed out. [`stream`](RegionDecoder::stream) is for what can be read only
/// once: blobs come as they arrive, and only [`finish`](RegionDecoder::finish) tells whether they
/// were whole.
#[derive(Debug)]
pub struct RegionDecoder<'f> {
    mode: Mode<'f>,
    tail_bytes_max: u64,
    stopped: Option<Stop>,
}

/// Why nothing more comes.
#[derive(Debug)]
enum Stop {
    Format(FormatError),
    /// Whoever takes the blobs wanted no more.
    Sink,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one for each region that is read")]
enum Mode<'f> {
    /// A stream whose first page is not all there.
    Start {
        bytes: Vec<u8>,
    },
    V1 {
        walker: Walker<'static>,
    },
    /// A version 2 stream in its body.
    Body {
        header: Header,
        walker: Walker<'static>,
        sums: BlockSums<Crc32c>,
    },
    /// A version 2 stream behind its body.
    Tail {
        header: Header,
        walker: Walker<'static>,
        checksums: Vec<u32>,
        tail: Vec<u8>,
    },
    /// Blocks of a file whose frame is known.
    Framed {
        frame: &'f Frame<'f>,
        span: Span,
        walker: Walker<'f>,
        next_block: u64,
        blocks: u64,
        buffer: Vec<u8>,
    },
}

impl<'f> RegionDecoder<'f> {
    /// Decodes a whole file of either version, front to back, without knowing anything of it.
    ///
    /// It compares everything but the blob index, which comes when the blobs are gone. It keeps four bytes
    /// for each block, and what stands behind the body: each 64 MiB at most, enough for 200 GiB, unless [`tail_bytes_max`](RegionDecoder::tail_bytes_max) says otherwise.
    pub fn stream() -> RegionDecoder<'f> {
        RegionDecoder { mode: Mode::Start { bytes: Vec::new() }, tail_bytes_max: 64 << 20, stopped: None }
    }

    /// Decodes a span of a file whose frame is known, in one buffer of a block at most.
    ///
    /// Feed it the file's bytes from [`feed_from`](RegionDecoder::feed_from) to
    /// [`feed_until`](RegionDecoder::feed_until). Chunks cut at multiples of the block size are not copied.
    pub fn over(frame: &'f Frame<'f>, span: Span) -> RegionDecoder<'f> {
        let whole = frame.whole();
        let end = if span.end == whole.end { SpanEnd::Body } else { SpanEnd::Within };
        let at = if span == whole { BODY_START } else { span.start.saturating_sub(4) };
        let walker = Walker::new(span, at, end).with_index(frame.index());
        let next_block = at / u64::from(frame.header().block_bytes);
        let mode = Mode::Framed { frame, span, walker, next_block, blocks: 0, buffer: Vec::new() };
        RegionDecoder { mode, tail_bytes_max: 0, stopped: None }
    }

    /// Sets how much memory a stream may take for what stands behind its body.
    #[must_use]
    pub fn tail_bytes_max(self, tail_bytes_max: u64) -> Self {
        RegionDecoder { tail_bytes_max, ..self }
    }

    /// The file offset of the first byte it wants to be fed.
    pub fn feed_from(&self) -> u64 {
        match &self.mode {
            Mode::Framed { frame, next_block, buffer, .. } => {
                frame.block_range(*next_block).start + buffer.len() as u64
            }
            Mode::Start { bytes } => bytes.len() as u64,
            Mode::V1 { walker } | Mode::Body { walker, .. } => walker.at(),
            Mode::Tail { walker, tail, .. } => walker.at() + tail.len() as u64,
        }
    }

    /// The file offset after the last byte it needs; the end of the file if that is not known.
    pub fn feed_until(&self) -> u64 {
        match &self.mode {
            Mode::Framed { span, .. } if span.is_empty() && span.first_number() > 0 => self.feed_from(),
            Mode::Framed { frame, span, .. } => {
                let block_bytes = u64::from(frame.header().block_bytes);
                block_range(
                    (span.end - 1) / block_bytes,
                    frame.header().block_bytes,
                    frame.trailer().body_end,
                )
                .end
            }
            _ => u64::MAX,
        }
    }

    /// Takes the next bytes and hands out the parts of blobs in them.
    ///
    /// After an error nothing more comes: feeding on does nothing, and `finish` says what it was.
    ///
    /// # Errors
    /// [`FormatError`], as the caller's error; and what `sink` returns.
    pub fn feed<E: From<FormatError>>(
        &mut self,
        chunk: &[u8],
        sink: &mut impl FnMut(BlobFragment<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.stopped.is_some() {
            return Ok(());
        }
        match self.take(chunk, sink) {
            Ok(()) => Ok(()),
            Err(Halt::Format(error)) => {
                self.stopped = Some(Stop::Format(error.clone()));
                Err(error.into())
            }
            Err(Halt::Sink(error)) => {
                self.stopped = Some(Stop::Sink);
                Err(error)
            }
        }
    }

    /// All bytes were fed. Checks what can be checked only now.
    ///
    /// # Errors
    /// [`FormatError`]: what came out is not whole, and must not be used if it came from a stream.
    pub fn finish(self) -> Result<Verified, FormatError> {
        match self.stopped {
            Some(Stop::Format(error)) => return Err(error),
            Some(Stop::Sink) => return Err(FormatError::Stopped),
            None => {}
        }
        match self.mode {
            Mode::Start { bytes } => {
                Version::of(&bytes)?;
                let (found, expected) = (bytes.len() as u64, PAGE_BYTES as u64);
                Err(FormatError::Truncated { place: Place::Header, offset: 0, found, expected })
            }
            Mode::V1 { walker } => {
                if !walker.is_between_blobs() {
                    return Err(walker.cut());
                }
                Ok(walker.verified(Version::V1, walker.at(), 0))
            }
            Mode::Body { walker, .. } => Err(walker.cut()),
            Mode::Tail { header, walker, checksums, tail } => {
                finish_stream(header, walker, &checksums, &tail)
            }
            Mode::Framed { frame, span, walker, blocks, .. } => {
                if !walker.is_ended() {
                    return Err(walker.cut());
                }
                let mut blocks = blocks;
                if span == frame.whole() {
                    walker.check_counts(frame)?;
                    blocks = frame.block_count(); // An empty first one too, which `Frame::open` has checked.
                }
                Ok(walker.verified(Version::V2, frame.trailer().file_bytes, blocks))
            }
        }
    }

    fn take<E>(
        &mut self,
        mut chunk: &[u8],
        sink: &mut impl FnMut(BlobFragment<'_>) -> Result<(), E>,
    ) -> Result<(), Halt<E>> {
        while !chunk.is_empty() {
            match &mut self.mode {
                Mode::Start { bytes } => {
                    let taken = chunk.len().min(PAGE_BYTES - bytes.len());
                    bytes.extend_from_slice(&chunk[..taken]);
                    chunk = &chunk[taken..];
                    self.leave_start(sink)?;
                }
                Mode::V1 { walker } => {
                    walker.walk(chunk, sink)?;
                    return Ok(());
                }
                Mode::Body { walker, sums, .. } => {
                    let taken = walker.walk(chunk, sink)?;
                    sums.add(&chunk[..taken]);
                    // As many checksums must stand in the tail, which may not be longer than this.
                    if sums.len() as u64 * 4 > self.tail_bytes_max {
                        let limit = self.tail_bytes_max;
                        return Err(
                            FormatError::TooLarge { place: Place::Body, offset: walker.at(), limit }.into()
                        );
                    }
                    chunk = &chunk[taken..];
                    self.leave_body();
                }
                Mode::Tail { walker, tail, .. } => {
                    if (tail.len() + chunk.len()) as u64 > self.tail_bytes_max {
                        let (offset, limit) = (walker.at(), self.tail_bytes_max);
                        return Err(
                            FormatError::TooLarge { place: Place::SectionTable, offset, limit }.into()
                        );
                    }
                    tail.extend_from_slice(chunk);
                    return Ok(());
                }
                Mode::Framed { frame, walker, next_block, blocks, buffer, .. } => {
                    let range = frame.block_range(*next_block);
                    let len = (range.end - range.start) as usize;
                    if walker.is_ended() || *next_block >= frame.block_count() {
                        return Ok(()); // What stands behind the body is in the frame.
                    }
                    let (bytes, rest) = chunk.split_at(chunk.len().min(len - buffer.len()));
                    chunk = rest;
                    if bytes.len() < len {
                        buffer.extend_from_slice(bytes);
                        if buffer.len() < len {
                            return Ok(());
                        }
                    }
                    let block = if buffer.is_empty() { bytes } else { buffer.as_slice() };
                    frame.verify_block(*next_block, block)?;
                    // The span may begin within this block.
                    let skip = walker.at().saturating_sub(range.start) as usize;
                    walker.walk(&block[skip.min(block.len())..], sink)?;
                    buffer.clear();
                    *next_block += 1;
                    *blocks += 1;
                }
            }
        }
        Ok(())
    }

    /// Goes on to the body once enough of the start is there.
    fn leave_start<E>(
        &mut self,
        sink: &mut impl FnMut(BlobFragment<'_>) -> Result<(), E>,
    ) -> Result<(), Halt<E>> {
        let Mode::Start { bytes } = &mut self.mode else { return Ok(()) };
        if bytes.len() < V1_BODY_START as usize {
            return Ok(());
        }
        match Version::of(bytes)? {
            Version::V1 => {
                let rest = bytes.split_off(V1_BODY_START as usize);
                let walker = Walker::new(Span::whole_v1(u64::MAX), V1_BODY_START, SpanEnd::Open);
                self.mode = Mode::V1 { walker };
                self.take(&rest, sink)?;
            }
            Version::V2 if bytes.len() < PAGE_BYTES => {}
            Version::V2 => {
                let header = Header::decode(bytes)?;
                let sums = BlockSums::new(header.block_bytes);
                let walker = Walker::new(Span::unknown_v2(&header), BODY_START, SpanEnd::Mark);
                self.mode = Mode::Body { header, walker, sums };
            }
        }
        Ok(())
    }

    /// Goes on to the tail once the end mark came by.
    fn leave_body(&mut self) {
        if !matches!(&self.mode, Mode::Body { walker, .. } if walker.is_ended()) {
            return;
        }
        let start = Mode::Start { bytes: Vec::new() };
        if let Mode::Body { header, walker, sums } = std::mem::replace(&mut self.mode, start) {
            self.mode = Mode::Tail { header, walker, checksums: sums.finish(), tail: Vec::new() };
        }
    }
}

/// Compares what came by with what the tail says.
fn finish_stream(
    header: Header,
    walker: Walker<'_>,
    checksums: &[u32],
    tail: &[u8],
) -> Result<Verified, FormatError> {
    let body_end = walker.at();
    let file_bytes = body_end + tail.len() as u64;
    let Some(page_at) = tail.len().checked_sub(PAGE_BYTES) else {
        let (found, expected) = (tail.len() as u64, PAGE_BYTES as u64);
        return Err(FormatError::Truncated { place: Place::Trailer, offset: body_end, found, expected });
    };
    let block_bytes = header.block_bytes;
    let trailer = Trailer::decode(&tail[page_at..], &header, file_bytes)?;
    if trailer.body_end != body_end {
        let offset = file_bytes - PAGE_BYTES as u64 + 32;
        return Err(damaged(Place::Trailer, "body end", offset, trailer.body_end, body_end));
    }
    let frame = Frame::open(header, trailer, tail)?;
    for (index, &found) in (0..).zip(checksums) {
        let expected =
            frame.block_checksum(index).expect("as many blocks, since the body ends at the same offset");
        check_block(index, block_range(index, block_bytes, body_end).start, found, expected)?;
    }
    walker.check_counts(&frame)?;
    Ok(walker.verified(Version::V2, file_bytes, checksums.len() as u64))
}

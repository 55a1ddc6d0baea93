//! Reads a region's blobs from the disk as a scan comes to them, through a small ring of buffers.
//!
//! ```text
//! file:   ...| verified, blobs handed out | arrived | on its way | on its way |...
//! ring:      |<------- front buffer --------------->|  buffer 2  |  buffer 3  |
//! ```
//!
//! Reads go ahead of the scan, as far as there are buffers. Each checksum block is compared right before its first
//! blob is handed out, so that the scan finds it in the core's cache. A blob that lies in two buffers is copied
//! together in a side buffer.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use pelton_region_format::{Cells, Frame, Span};

use crate::budget::memory::{MemoryGrant, MemoryUse};
use crate::config::Verify;
use crate::region::arena::{Paging, PieceBuffer};
use crate::scan::blobs::FoldError;
use crate::scan::patience::Patience;
use crate::snap::stream::{StreamMemory, StreamRegion};
use crate::spindle::engine::{DiskError, Op, Outcome};
use crate::spindle::file::DIRECT_ALIGNMENT;
use crate::spindle::impeller::{Completion, Refusal, Replies, replies};

/// One read at most: what has arrived is still in a cache, and it lies on one large page. With half of it threads
/// wake twice as often, and buffers lie on small pages, which costs a disk more than it gives.
const BUFFER_BYTES_MAX: u64 = 2 << 20;
/// One that is scanned and two on their way: the disk has work while a scan thread wakes. More is slower: what a
/// disk fills in turn should fit a cache (`docs/performance.md`).
const BUFFERS_MAX: u64 = 3;
/// One that is scanned, one on its way.
const BUFFERS_MIN: u64 = 2;
/// What a ring takes when there is enough: its buffers, and one for blobs that lie in two of them.
pub(crate) const RING_BYTES_MAX: u64 = (BUFFERS_MAX + 1) * BUFFER_BYTES_MAX;

/// The buffers of one thread that scans streams, for one region after the other.
pub(crate) struct Ring {
    buffer_bytes: usize,
    /// How many there are, here or on their way.
    buffers: usize,
    free: Vec<PieceBuffer>,
    side: Side,
    replies: Replies,
    completions: Receiver<Completion>,
    next_tag: u64,
}

/// Where blobs are put together that lie in several buffers.
struct Side {
    buffer: Option<PieceBuffer>,
    /// How long a blob may be until more memory must be asked for.
    bytes: usize,
    /// What a larger one takes of the memory budget.
    grant: Option<MemoryGrant>,
}

impl Ring {
    /// Takes the memory for regions with blocks of this size. Waits for it if others have it.
    pub(crate) fn new(
        memory: &StreamMemory,
        block_bytes: u32,
        patience: &Patience,
    ) -> Result<Ring, FoldError> {
        let shape = Shape::of(memory.ring_bytes, u64::from(block_bytes));
        let taking = memory.rings.taking(MemoryUse::Buffers, shape.bytes());
        let taking = std::pin::pin!(taking.map_err(FoldError::Memory)?);
        let mut grant = patience.wait(taking)?.map_err(FoldError::Memory)?;
        let mut free = Vec::new();
        for _ in 0..shape.buffers {
            let part = grant.split(shape.buffer_bytes);
            // A buffer may outlive its ring: the disk may still be filling it. So each has its own share.
            free.push(new_buffer(shape.buffer_bytes as usize, part.paging())?.counted(part));
        }
        let bytes = shape.buffer_bytes as usize;
        let side =
            Side { buffer: Some(new_buffer(bytes, grant.paging())?.counted(grant)), bytes, grant: None };
        let (replies, completions) = replies();
        let buffers = shape.buffers as usize;
        Ok(Ring { buffer_bytes: bytes, buffers, free, side, replies, completions, next_tag: 0 })
    }

    /// Whether it can serve regions with blocks of this size. A read that fails takes its buffer with it.
    fn serves(&self, block_bytes: u32) -> bool {
        self.buffer_bytes.is_multiple_of(block_bytes as usize) && self.buffers as u64 >= BUFFERS_MIN
    }
}

/// How a ring divides its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    buffer_bytes: u64,
    buffers: u64,
}

impl Shape {
    /// What fits into `bytes`, but never less than whole blocks and two buffers: a block is compared as a whole.
    fn of(bytes: u64, block_bytes: u64) -> Shape {
        let mut buffer_bytes = BUFFER_BYTES_MAX.max(block_bytes);
        while buffer_bytes > block_bytes.max(DIRECT_ALIGNMENT as u64)
            && buffer_bytes * (BUFFERS_MAX + 1) > bytes
        {
            buffer_bytes /= 2;
        }
        let buffers = (bytes / buffer_bytes).saturating_sub(1).clamp(BUFFERS_MIN, BUFFERS_MAX);
        Shape { buffer_bytes, buffers }
    }

    /// With the side buffer.
    fn bytes(self) -> u64 {
        self.buffer_bytes * (self.buffers + 1)
    }
}

/// A thread's ring, once it has needed one.
#[derive(Default)]
pub(crate) struct RingSlot {
    ring: Option<Ring>,
}

impl RingSlot {
    fn for_blocks(
        &mut self,
        memory: &StreamMemory,
        block_bytes: u32,
        patience: &Patience,
    ) -> Result<&mut Ring, FoldError> {
        // The old one goes first: its memory may be what the new one waits for.
        self.ring = self.ring.take().filter(|ring| ring.serves(block_bytes));
        match &mut self.ring {
            Some(ring) => Ok(ring),
            none => Ok(none.insert(Ring::new(memory, block_bytes, patience)?)),
        }
    }
}

/// A span of a region, on its way from the disk.
pub(crate) struct RegionStream<'a> {
    region: &'a StreamRegion,
    frame: Frame<'a>,
    cells: Cells,
    ring: &'a mut Ring,
    patience: &'a Patience,
    /// What was asked for, in the order of the file, without the front.
    asked: VecDeque<Asked>,
    /// The tag of the first in `asked`.
    asked_tag: u64,
    /// The file offset of what is asked for next, and where the span's last block ends.
    ask_at: u64,
    ask_end: u64,
    front: Option<PieceBuffer>,
    /// The stretch of the file that is in the front buffer.
    front_range: Range<u64>,
    /// Up to where the front may be handed out.
    verified: u64,
    next_block: u64,
    waited: Duration,
}

/// A stretch of the file that the disk was asked for.
struct Asked {
    range: Range<u64>,
    arrived: Option<Result<(PieceBuffer, usize), DiskError>>,
}

/// Where bytes of the file are now.
enum At {
    Front(Range<usize>),
    Side(usize),
}

impl<'a> RegionStream<'a> {
    /// Asks for the first bytes of the span, which is one of the frame's, which is the region's.
    pub(crate) fn new(
        region: &'a StreamRegion,
        frame: Frame<'a>,
        span: Span,
        slot: &'a mut RingSlot,
        patience: &'a Patience,
    ) -> Result<RegionStream<'a>, FoldError> {
        let begun = Instant::now();
        let ring = slot.for_blocks(&region.memory, frame.header().block_bytes, patience)?;
        let waited = begun.elapsed();
        let blocks = frame.blocks_of(&span);
        // Block 0 begins behind the header; the read begins with it.
        let start = blocks.start * u64::from(frame.header().block_bytes);
        let ask_end = match blocks.is_empty() {
            true => start,
            false => frame.block_range(blocks.end - 1).end,
        };
        let mut stream = RegionStream {
            region,
            cells: Cells::over(span),
            asked: VecDeque::with_capacity(ring.buffers),
            asked_tag: ring.next_tag,
            ask_at: start,
            ask_end,
            front: None,
            front_range: start..start,
            verified: start,
            next_block: blocks.start,
            waited,
            frame,
            ring,
            patience,
        };
        stream.ask()?;
        Ok(stream)
    }

    /// How long it has waited for memory and the disk.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// The next blob, or nothing after the last one. After an error it says nothing sensible any more.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, FoldError> {
        let Some(length) = self.cells.length_at()? else { return Ok(None) };
        let at = self.reach(length)?;
        let length = self.bytes(at).try_into().expect("a length has four bytes");
        let blob = self.cells.next(length)?;
        let at = self.reach(blob)?;
        Ok(Some(self.bytes(at)))
    }

    #[inline]
    fn bytes(&self, at: At) -> &[u8] {
        match (at, &self.front, &self.ring.side.buffer) {
            (At::Front(range), Some(front), _) => &front[range],
            (At::Side(len), _, Some(side)) => &side[..len],
            _ => unreachable!("what was reached is there"),
        }
    }

    /// Brings a stretch of the file to where it can be looked at. Stretches come in the order of the file.
    #[inline]
    fn reach(&mut self, range: Range<u64>) -> Result<At, FoldError> {
        if range.end > self.verified || range.start < self.front_range.start {
            return self.reach_farther(range);
        }
        Ok(self.in_front(range))
    }

    fn in_front(&self, range: Range<u64>) -> At {
        let start = self.front_range.start;
        At::Front((range.start - start) as usize..(range.end - start) as usize)
    }

    #[cold]
    fn reach_farther(&mut self, range: Range<u64>) -> Result<At, FoldError> {
        if range.is_empty() {
            return Ok(At::Side(0));
        }
        while range.start >= self.front_range.end {
            self.next_front()?;
        }
        if range.end <= self.front_range.end {
            self.verify_to(range.end)?;
            return Ok(self.in_front(range));
        }
        let len = usize::try_from(range.end - range.start).expect("addresses have 64 bits");
        self.ring.side.make_room(len, &self.region.memory)?;
        let mut at = range.start;
        while at < range.end {
            if at >= self.front_range.end {
                self.next_front()?;
            }
            let end = range.end.min(self.front_range.end);
            self.verify_to(end)?;
            let (front, side) = (self.front.as_ref(), self.ring.side.buffer.as_mut());
            let (front, side) = front.zip(side).expect("both were made");
            let start = self.front_range.start;
            side[(at - range.start) as usize..(end - range.start) as usize]
                .copy_from_slice(&front[(at - start) as usize..(end - start) as usize]);
            at = end;
        }
        Ok(At::Side(len))
    }

    /// Compares the blocks of the front up to this offset with their checksums.
    fn verify_to(&mut self, offset: u64) -> Result<(), FoldError> {
        if matches!(self.region.verify, Verify::Never) {
            self.verified = self.front_range.end;
            return Ok(());
        }
        while self.verified < offset {
            let range = self.frame.block_range(self.next_block);
            let front = self.front.as_ref().expect("there is a front to verify in");
            let start = self.front_range.start;
            let block = &front[(range.start - start) as usize..(range.end - start) as usize];
            self.frame.verify_block(self.next_block, block)?;
            self.next_block += 1;
            self.verified = range.end;
        }
        Ok(())
    }

    /// Goes on to the next buffer: waits for it, and sends the one before for more.
    fn next_front(&mut self) -> Result<(), FoldError> {
        self.ring.free.extend(self.front.take());
        self.ask()?;
        self.patience.check()?;
        let begun = Instant::now();
        // At first nothing may be asked for yet, if all buffers are still on their way for the region before.
        while self.asked.front().is_none_or(|asked| asked.arrived.is_none()) {
            self.receive()?;
            self.ask()?;
        }
        self.waited += begun.elapsed();
        let Some(Asked { range, arrived: Some(arrived) }) = self.asked.pop_front() else {
            unreachable!("the loop ends when it is so");
        };
        self.asked_tag += 1;
        let (buffer, len) = arrived.map_err(read_failed)?;
        self.front = Some(buffer);
        if (len as u64) < range.end - range.start {
            return Err(FoldError::Lost);
        }
        self.verified = range.start;
        self.front_range = range;
        Ok(())
    }

    /// Asks for as much as there are buffers.
    fn ask(&mut self) -> Result<(), FoldError> {
        while self.ask_at < self.ask_end {
            let Some(buffer) = self.ring.free.pop() else { break };
            let step = self.ring.buffer_bytes as u64;
            // Cut at multiples of a buffer, so that blocks are whole, whichever part of the region it is.
            let end = (self.ask_at / step + 1).saturating_mul(step).min(self.ask_end);
            let range = self.ask_at..end;
            let len = (range.end - range.start).next_multiple_of(DIRECT_ALIGNMENT as u64) as usize;
            let (file, offset) = (self.region.file().clone(), range.start);
            let op = Op::Read { file, offset, room: Box::new(buffer), len };
            let reply = self.ring.replies.tag(self.ring.next_tag);
            let impellers = &self.region.spindle.impellers;
            if let Err(refused) = impellers.submit_patiently(self.region.lane, op, reply, self.patience) {
                self.ring.buffers -= 1;
                return Err(match refused.reason {
                    Refusal::Cancelled => FoldError::Cancelled,
                    reason => read_failed(reason.of(&refused.op.subject())),
                });
            }
            self.ring.next_tag += 1;
            self.ask_at = range.end;
            self.asked.push_back(Asked { range, arrived: None });
        }
        Ok(())
    }

    /// Waits for an answer of the disk.
    fn receive(&mut self) -> Result<(), FoldError> {
        let completion = self.patience.receive(&self.ring.completions)?.expect("the ring holds a sender");
        let arrived = match completion.result {
            Ok(Outcome::ReadBack { room, len }) => {
                let buffer = room.into_any().downcast::<PieceBuffer>().expect("the room that was sent");
                Ok((*buffer, len))
            }
            Ok(other) => unreachable!("a read answers with what was read, not {other:?}"),
            Err(error) => {
                self.ring.buffers -= 1;
                Err(error)
            }
        };
        match completion.tag.checked_sub(self.asked_tag) {
            Some(n) => self.asked[n as usize].arrived = Some(arrived),
            // Of a region that was left early: only the buffer matters.
            None => match arrived {
                Ok((buffer, _)) => self.ring.free.push(buffer),
                Err(error) if self.ring.buffers == 0 => return Err(read_failed(error)),
                Err(_) => {}
            },
        }
        Ok(())
    }
}

impl Drop for RegionStream<'_> {
    fn drop(&mut self) {
        // What is still on its way comes back to the next region's stream, or is dropped with the ring.
        let arrived = self.asked.drain(..).filter_map(|asked| asked.arrived?.ok()).map(|(buffer, _)| buffer);
        self.ring.free.extend(self.front.take().into_iter().chain(arrived));
    }
}

impl Side {
    fn make_room(&mut self, len: usize, memory: &StreamMemory) -> Result<(), FoldError> {
        if len <= self.bytes {
            return Ok(());
        }
        // Not waited for: whoever has it may be waiting for what this ring holds.
        self.buffer = None;
        self.bytes = 0;
        self.grant = None;
        let grant = memory.blobs.try_take(MemoryUse::Images, len as u64).map_err(FoldError::Memory)?;
        self.buffer = Some(new_buffer(len, grant.paging())?);
        self.grant = Some(grant);
        self.bytes = len;
        Ok(())
    }
}

fn new_buffer(bytes: usize, paging: Paging) -> Result<PieceBuffer, FoldError> {
    PieceBuffer::new(bytes, paging).map_err(|source| FoldError::System(Arc::new(source)))
}

fn read_failed(error: DiskError) -> FoldError {
    match error {
        DiskError::Late { .. } => FoldError::Late, // Its turn came after the scan's deadline.
        error => FoldError::Disk(Arc::new(error)),
    }
}

#[cfg(test)]
mod tests;

//! A whole region in memory, and what is known of it without reading it.

use std::ops::{Range, RangeInclusive};

use pelton::{Header, PAGE_BYTES, Put, RegionEncoder, RegionView};

use crate::frame::{Failure, Memory};
use crate::words::Words;

/// A sealed region as it would lie in a map or an image: page-aligned, warm.
pub(super) struct Sample {
    memory: Memory,
    file_bytes: usize,
    body: Range<usize>,
    /// What the blobs' words add up to, as their maker knows.
    pub(super) blobs_sum: u64,
    blob_bytes: u64,
}

impl Sample {
    /// Encodes blobs whose lengths are spread evenly over `lengths`, until the body has `region_bytes`.
    pub(super) fn build(
        seed: u64,
        region_bytes: usize,
        piece_bytes: usize,
        lengths: RangeInclusive<u32>,
    ) -> Result<Sample, Failure> {
        if region_bytes <= PAGE_BYTES {
            return Err(Failure::because("a region of this size has no blobs"));
        }
        let mut encoder = RegionEncoder::v2(&Header::default(), piece_bytes)?;
        // Twice as much as will be used: the last blob and the tail may pass `region_bytes`, and what
        // nobody touches costs nothing.
        let room = region_bytes.saturating_mul(2).saturating_add(piece_bytes) / piece_bytes + 1;
        let mut memory = Memory::zeroed(room.saturating_mul(piece_bytes))?;
        let mut pieces = memory.chunks_exact_mut(piece_bytes);
        let mut next_piece =
            || pieces.next().ok_or_else(|| Failure::because("the region outgrew its memory"));
        let mut piece = next_piece()?;

        let mut words = Words::new(seed);
        let mut blob = vec![0; *lengths.end() as usize];
        let mut blobs_sum = 0u64;
        while encoder.file_offset() < region_bytes as u64 {
            let spread = u64::from(lengths.end() - lengths.start()) + 1;
            let len = *lengths.start() as usize + (words.next() % spread) as usize;
            blobs_sum = blobs_sum.wrapping_add(words.fill(&mut blob[..len]));
            while encoder.put(&blob[..len], piece)? == Put::PieceFull {
                piece = next_piece()?;
            }
        }
        let mut seal = encoder.seal(None)?;
        while seal.fill(piece)? == Put::PieceFull {
            piece = next_piece()?;
        }
        let sealed = seal.sealed();
        let file_bytes = sealed.file_bytes as usize;

        let view = RegionView::open(&memory[..file_bytes])?;
        let frame = view.frame().expect("the encoder wrote version 2");
        let body = PAGE_BYTES..frame.trailer().body_end as usize;
        Ok(Sample { memory, file_bytes, body, blobs_sum, blob_bytes: sealed.blob_bytes })
    }

    pub(super) fn view(&self) -> Result<RegionView<'_>, Failure> {
        Ok(RegionView::open(&self.memory[..self.file_bytes])?)
    }

    /// The file. For damaging it.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.file_bytes]
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[..self.file_bytes]
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.memory[self.body.clone()]
    }

    /// What the body's words add up to: found without looking at it.
    ///
    /// At alignment 8 a blob begins at a word. So its bytes count in the body as they count alone,
    /// its length fills the upper half of the word before it, as the end mark does at the end, and
    /// all else is zeros.
    pub(super) fn body_sum(&self) -> u64 {
        const END_MARK: u64 = 0xFFFF_FFFF;
        self.blobs_sum.wrapping_add(self.blob_bytes << 32).wrapping_add(END_MARK << 32)
    }
}

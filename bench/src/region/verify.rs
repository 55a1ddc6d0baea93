//! Verifying all blocks of a warm region, against one look at the same bytes.

use std::hint::black_box;
use std::marker::PhantomData;
use std::ops::Range;

use pelton::SectionKind;

use super::sample::Sample;
use crate::frame::{Answers, Failure, Pair, Stopwatch};
use crate::words::sum_words;

/// Calls `verify_block` for one block after the other.
///
/// The answer is made from the checksums that the file keeps, of those blocks that were found whole.
pub(super) struct Verify<L> {
    sample: Sample,
    blocks: Vec<Range<usize>>,
    stored: Vec<u32>,
    expected: Answers,
    limit: PhantomData<L>,
}

/// What is done with each block's bytes instead.
pub(super) trait Limit {
    /// Takes one block into the answer.
    fn take(answer: u64, block: &[u8]) -> u64;

    /// The right answer, known without a look at the bytes.
    fn expected(sample: &Sample, stored: &[u32]) -> u64;
}

/// The raw checksum, by the same cuts.
pub(super) struct AgainstRaw;

/// A plain sum, by the same cuts: as fast as the bytes come by.
pub(super) struct AgainstSum;

impl Limit for AgainstRaw {
    fn take(answer: u64, block: &[u8]) -> u64 {
        join(answer, crc_fast::crc32_iscsi(block))
    }

    fn expected(_: &Sample, stored: &[u32]) -> u64 {
        stored.iter().fold(0, |answer, checksum| join(answer, *checksum))
    }
}

impl Limit for AgainstSum {
    fn take(answer: u64, block: &[u8]) -> u64 {
        answer.wrapping_add(sum_words(block))
    }

    fn expected(sample: &Sample, _: &[u32]) -> u64 {
        sample.body_sum()
    }
}

impl<L: Limit> Verify<L> {
    pub(super) fn new(mut sample: Sample) -> Result<Verify<L>, Failure> {
        prove_that_damage_is_found(&mut sample)?;
        let view = sample.view()?;
        let frame = view.frame().expect("samples are version 2");
        let blocks = (0..frame.block_count())
            .map(|index| {
                let range = frame.block_range(index);
                range.start as usize..range.end as usize
            })
            .collect();
        let section = frame
            .sections()
            .find(|section| section.kind == SectionKind::BLOCK_CHECKSUMS)
            .ok_or_else(|| Failure::because("the sample has no checksums"))?;
        let (checksums, _) = section.bytes.as_chunks::<4>();
        let stored: Vec<u32> = checksums.iter().map(|checksum| u32::from_le_bytes(*checksum)).collect();
        let expected = Answers {
            limit: L::expected(&sample, &stored),
            subject: stored.iter().fold(0, |answer, checksum| join(answer, *checksum)),
        };
        Ok(Verify { sample, blocks, stored, expected, limit: PhantomData })
    }
}

impl<L: Limit> Pair for Verify<L> {
    fn bytes(&self) -> u64 {
        self.sample.body().len() as u64
    }

    fn expected(&self) -> Answers {
        self.expected
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let bytes = black_box(self.sample.bytes());
        Ok(stopwatch
            .time(|| self.blocks.iter().fold(0, |answer, block| L::take(answer, &bytes[block.clone()]))))
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        let view = black_box(self.sample.view()?);
        stopwatch.time(|| {
            let mut answer = 0;
            for (index, stored) in (0..view.block_count()).zip(&self.stored) {
                view.verify_block(index)?;
                answer = join(answer, *stored);
            }
            Ok(answer)
        })
    }
}

fn join(answer: u64, checksum: u32) -> u64 {
    answer.rotate_left(5) ^ u64::from(checksum)
}

/// A `verify_block` that always says yes would be very fast.
fn prove_that_damage_is_found(sample: &mut Sample) -> Result<(), Failure> {
    let offset = sample.bytes().len() / 2;
    sample.bytes_mut()[offset] ^= 1;
    let view = sample.view()?;
    let frame = view.frame().expect("samples are version 2");
    let index = offset as u64 / u64::from(frame.header().block_bytes);
    let is_found = view.verify_block(index).is_err();
    sample.bytes_mut()[offset] ^= 1;
    if !is_found {
        return Err(Failure::because(format!("a flipped bit in block {index} went unnoticed")));
    }
    Ok(())
}

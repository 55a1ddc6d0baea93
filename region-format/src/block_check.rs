//! Compares a body with its block checksums while it comes.

use std::ops::Range;

use crate::body::BODY_START;
use crate::checksum::{BlockChecksum, Crc32c};
use crate::error::FormatError;
use crate::frame::{Frame, block_range, check_block};

/// Compares a body's bytes with the checksums of their blocks, in order, as they come.
///
/// For who takes a file from somewhere: header and tail come first and make a [`Frame`], which says what each block has
/// to be. A block that is wrong is told with its last byte, and is expected once more then, from its start.
#[derive(Debug)]
pub struct BlockCheck {
    block_bytes: u32,
    body_end: u64,
    checksums: Vec<u32>,
    at: u64,
    running: Crc32c,
}

impl BlockCheck {
    /// For the body that this frame is of.
    pub fn new(frame: &Frame<'_>) -> BlockCheck {
        BlockCheck {
            block_bytes: frame.header().block_bytes,
            body_end: frame.trailer().body_end,
            checksums: frame.block_checksums().collect(),
            at: BODY_START,
            running: Crc32c::default(),
        }
    }

    /// The file offset of the next byte.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Whether the whole body came, and was right.
    pub fn is_done(&self) -> bool {
        self.at == self.body_end
    }

    /// What is still to come of the block that is under way, in file offsets. Empty at the end of the body.
    pub fn rest_of_block(&self) -> Range<u64> {
        self.at..self.block().1.end.max(self.at)
    }

    /// Takes the next bytes of the body: no more than are left of the block that is under way.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] if they end a block that is not what was written. All of that block is expected again.
    ///
    /// # Panics
    /// If there are more bytes than the rest of the block.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let (index, block) = self.block();
        assert!(bytes.len() as u64 <= block.end.saturating_sub(self.at), "bytes of one block");
        if bytes.is_empty() {
            return Ok(());
        }
        self.running.update(bytes);
        self.at += bytes.len() as u64;
        if self.at < block.end {
            return Ok(());
        }
        let checked = check_block(index, block.start, self.running.take(), self.checksums[index as usize]);
        if checked.is_err() {
            self.at = block.start;
        }
        checked
    }

    fn block(&self) -> (u64, Range<u64>) {
        let index = self.at / u64::from(self.block_bytes);
        // At the end of a body that ends with a block there is no further one.
        (index, block_range(index, self.block_bytes, self.body_end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, PAGE_BYTES, Trailer, encode_to_vec};

    fn sample(block_bytes: u32) -> Vec<u8> {
        let header = Header { block_bytes, ..Header::default() };
        let blobs = (0..200u32).map(|blob| vec![blob as u8; 37 * blob as usize]);
        encode_to_vec(&header, blobs, None).unwrap()
    }

    fn check_of(file: &[u8]) -> BlockCheck {
        let header = Header::decode(file).unwrap();
        let trailer = Trailer::decode(&file[file.len() - PAGE_BYTES..], &header, file.len() as u64).unwrap();
        let tail = &file[trailer.body_end as usize..];
        BlockCheck::new(&Frame::open(header, trailer.clone(), tail).unwrap())
    }

    /// Feeds the body in steps; each step ends at a block's end at the latest.
    fn feed_all(check: &mut BlockCheck, file: &[u8], step: u64) -> Result<(), FormatError> {
        while !check.is_done() {
            let rest = check.rest_of_block();
            check.feed(&file[rest.start as usize..rest.end.min(rest.start + step) as usize])?;
        }
        Ok(())
    }

    #[test]
    fn a_body_that_is_right_passes_in_steps_of_any_size() {
        for block_bytes in [4096, 16 << 10, 1 << 20] {
            let file = sample(block_bytes);
            for step in [1 << 30, 4096, 1000, 7] {
                let mut check = check_of(&file);
                feed_all(&mut check, &file, step).unwrap();
                assert!(check.is_done() && check.rest_of_block().is_empty());
                check.feed(&[]).unwrap();
            }
        }
    }

    /// Whichever bit of the body: its block is named, and what was right before it need not come again.
    #[test]
    fn a_wrong_block_is_named_and_expected_again() {
        let file = sample(16 << 10);
        for at in [4096, 5000, 16 << 10, 40_000, check_of(&file).body_end as usize - 1] {
            let mut wrong = file.clone();
            wrong[at] ^= 4;
            let mut check = check_of(&file);
            let error = feed_all(&mut check, &wrong, 3000).unwrap_err();
            assert!(error.to_string().contains(&format!("block {}", at >> 14)), "{at}: {error}");
            assert_eq!(check.at(), (at as u64 & !0x3FFF).max(4096), "{at}");
            feed_all(&mut check, &file, 3000).unwrap();
        }
    }
}

//! What a range tells of the blocks within it.

use std::ops::Range;

use pelton_nexus_proto::messages::BlockChecksum;
use pelton_worker::SealedRegion;

/// The checksums of the blocks whose last byte of the body lies in the range.
pub(super) fn blocks_within(
    region: &SealedRegion,
    checksums: &[u32],
    range: Range<u64>,
) -> Vec<BlockChecksum> {
    let block_bytes = u64::from(region.block_bytes);
    let first = range.start / block_bytes;
    let ends = (first..checksums.len() as u64).map(|index| (index, block_end(region, index)));
    ends.take_while(|(_, end)| *end <= range.end)
        // One that ends with the header page has nothing of the body.
        .filter(|(_, end)| *end > range.start && *end > BODY_START)
        .map(|(index, _)| BlockChecksum { index, crc32c: checksums[index as usize] })
        .collect()
}

/// Where the whole blocks within a range begin and end: what lies between is covered by their checksums. Empty if there
/// is none.
pub(super) fn whole_blocks(region: &SealedRegion, range: Range<u64>) -> Range<u64> {
    let block_bytes = u64::from(region.block_bytes);
    // The first block begins behind the header page, which has a checksum of its own.
    let start = match range.start <= BODY_START {
        true => BODY_START,
        false => range.start.next_multiple_of(block_bytes),
    };
    let end =
        if range.end >= region.body_end { region.body_end } else { range.end - range.end % block_bytes };
    start..end.max(start)
}

/// Where the body begins.
const BODY_START: u64 = pelton_region_format::PAGE_BYTES as u64;

fn block_end(region: &SealedRegion, index: u64) -> u64 {
    (index + 1).saturating_mul(region.block_bytes.into()).min(region.body_end)
}

#[cfg(test)]
mod tests {
    use pelton_region_format::ContentId;

    use super::*;

    fn region(block_bytes: u32) -> SealedRegion {
        SealedRegion {
            index: 0,
            file_bytes: 64 << 10,
            blob_count: 1,
            blob_bytes: 1,
            content_id: ContentId::from_bytes([0; 32]),
            block_bytes,
            body_end: 50_000,
        }
    }

    #[test]
    fn blocks_are_told_with_their_last_byte() {
        let region = region(16 << 10);
        let checksums = [10, 11, 12, 13];
        let told = |range| -> Vec<u64> {
            blocks_within(&region, &checksums, range).iter().map(|block| block.index).collect()
        };
        assert_eq!(told(0..64 << 10), [0, 1, 2, 3]);
        assert_eq!(told(0..16 << 10), [0]);
        assert_eq!(told(0..(16 << 10) - 1), []);
        assert_eq!(told(16 << 10..49_152), [1, 2]);
        assert_eq!(told(49_152..49_999), []);
        assert_eq!(told(49_999..50_000), [3]);
        assert_eq!(told(50_000..64 << 10), []);
    }

    #[test]
    fn a_block_of_the_header_page_alone_is_not_told() {
        let region = region(4096);
        let checksums = [0; 13];
        assert_eq!(blocks_within(&region, &checksums, 0..8192).len(), 1);
    }

    #[test]
    fn whole_blocks_are_those_that_lie_within() {
        let (region, k) = (region(16 << 10), 1024);
        assert_eq!(whole_blocks(&region, 4096..50_000), 4096..50_000, "the whole body");
        assert_eq!(whole_blocks(&region, 4097..50_000), 16 * k..50_000);
        assert_eq!(whole_blocks(&region, 16 * k..49_999), 16 * k..48 * k);
        assert_eq!(whole_blocks(&region, 20 * k..30 * k), 32 * k..32 * k, "none");
        assert_eq!(whole_blocks(&region, 0..20 * k), 4096..16 * k, "the header page is in no block");
        assert!(whole_blocks(&region, 0..4096).is_empty());
        assert!(whole_blocks(&region, 50_000..64 << 10).is_empty());
    }
}

//! What is known of a sealed region before its bytes are there: what a holder tells and a taker plans by.

use pelton_region_format::{
    BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, ContentId, FILE_BYTES_MAX, Frame, PAGE_BYTES, TAIL_BYTES_MAX,
};

use crate::slice::plan::REGIONS_MAX;

/// One sealed region file: how large it is, and which.
///
/// What the file is wins over what is told here: whoever takes one in compares all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedRegion {
    /// Which region of its slice, below the slice's region count.
    pub index: u32,
    /// The length of its file.
    pub file_bytes: u64,
    /// How many blobs it has.
    pub blob_count: u64,
    /// How many bytes they have.
    pub blob_bytes: u64,
    /// Which body it is.
    pub content_id: ContentId,
    /// How its file is cut into blocks that can be checked alone.
    pub block_bytes: u32,
    /// Where its body ends, and what has checksums of its own begins.
    pub body_end: u64,
}

/// Regions that can't be a slice's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotASlice {
    /// They are dealt over none, or over more than a manifest names.
    #[error("its blobs are dealt over {found} regions, allowed is 1 to {REGIONS_MAX}")]
    RegionCount {
        /// Over how many.
        found: u32,
    },
    /// One is there twice, out of order, or beyond the region count.
    #[error("region {index} is there twice, out of order, or not below the count of {region_count}")]
    Order {
        /// Which region.
        index: u32,
        /// Over how many regions the blobs are dealt.
        region_count: u32,
    },
    /// A number that no region file can have.
    #[error("region {index} can't have {found} as its {what}")]
    Number {
        /// Which region.
        index: u32,
        /// Which number.
        what: &'static str,
        /// What it is.
        found: u64,
    },
    /// No disk is that large.
    #[error("its files have {found} bytes together")]
    TooLarge {
        /// How much they would have.
        found: u128,
    },
}

impl SealedRegion {
    /// What a file is, by its header, trailer and sections.
    pub(crate) fn of(index: u32, frame: &Frame<'_>) -> SealedRegion {
        let (header, trailer) = (frame.header(), frame.trailer());
        SealedRegion {
            index,
            file_bytes: trailer.file_bytes,
            blob_count: trailer.blob_count,
            blob_bytes: trailer.blob_bytes,
            content_id: trailer.content_id,
            block_bytes: header.block_bytes,
            body_end: trailer.body_end,
        }
    }

    /// How many bytes stand behind its body.
    pub(crate) fn tail_bytes(&self) -> u64 {
        self.file_bytes - self.body_end
    }

    fn check(&self) -> Result<(), NotASlice> {
        const PAGE: u64 = PAGE_BYTES as u64;
        let wrong = |what, found| Err(NotASlice::Number { index: self.index, what, found });
        let SealedRegion { file_bytes, body_end, block_bytes, .. } = *self;
        if !(3 * PAGE..=FILE_BYTES_MAX).contains(&file_bytes) || !file_bytes.is_multiple_of(PAGE) {
            return wrong("length", file_bytes);
        }
        if !(PAGE + 1..=file_bytes - PAGE).contains(&body_end) || file_bytes - body_end > TAIL_BYTES_MAX {
            return wrong("end of the body", body_end);
        }
        if !block_bytes.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes) {
            return wrong("block size", block_bytes.into());
        }
        Ok(())
    }
}

/// Checks what somebody tells of a slice, before anything is taken for it.
///
/// # Errors
/// [`NotASlice`].
pub(crate) fn check(region_count: u32, regions: &[SealedRegion]) -> Result<(), NotASlice> {
    if !(1..=REGIONS_MAX).contains(&region_count) {
        return Err(NotASlice::RegionCount { found: region_count });
    }
    let mut next = 0;
    for region in regions {
        if !(next..region_count).contains(&region.index) {
            return Err(NotASlice::Order { index: region.index, region_count });
        }
        next = region.index + 1;
        region.check()?;
    }
    let found: u128 = regions.iter().map(|region| u128::from(region.file_bytes)).sum();
    if found > u128::from(FILE_BYTES_MAX / 2) {
        return Err(NotASlice::TooLarge { found });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(index: u32) -> SealedRegion {
        SealedRegion {
            index,
            file_bytes: 5 * 4096,
            blob_count: 1,
            blob_bytes: 1,
            content_id: ContentId::from_bytes([1; 32]),
            block_bytes: 1 << 20,
            body_end: 5000,
        }
    }

    #[test]
    fn only_what_can_be_a_slice_passes() {
        assert_eq!(check(4, &[region(0), region(1), region(3)]), Ok(()));
        assert_eq!(check(1, &[]), Ok(()), "without any blob");
        for (count, regions) in [
            (0, vec![]),
            (REGIONS_MAX + 1, vec![]),
            (2, vec![region(2)]),
            (4, vec![region(1), region(1)]),
            (4, vec![region(2), region(1)]),
            (1, vec![SealedRegion { file_bytes: 2 * 4096, ..region(0) }]),
            (1, vec![SealedRegion { file_bytes: 5 * 4096 + 1, ..region(0) }]),
            (1, vec![SealedRegion { file_bytes: u64::MAX - 4095, ..region(0) }]),
            (1, vec![SealedRegion { body_end: 4096, ..region(0) }]),
            (1, vec![SealedRegion { body_end: 4 * 4096 + 1, ..region(0) }]),
            (1, vec![SealedRegion { file_bytes: 4096 << 20, ..region(0) }]),
            (1, vec![SealedRegion { block_bytes: 3 << 20, ..region(0) }]),
            (1, vec![SealedRegion { block_bytes: 2048, ..region(0) }]),
            (
                4,
                (0..4)
                    .map(|index| SealedRegion {
                        file_bytes: 1 << 61,
                        body_end: (1 << 61) - 8192,
                        ..region(index)
                    })
                    .collect(),
            ),
        ] {
            assert!(check(count, &regions).is_err(), "{count} {regions:?}");
        }
    }
}

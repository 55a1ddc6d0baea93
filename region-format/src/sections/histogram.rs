//! How many blobs have which length, by powers of two.

use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{FormatError, Part, damaged};
use crate::sections::{Section, SectionKind};

/// Counts blobs by length: counter 0 those of 0 bytes, counter `i` those of `2^(i-1)` up to `2^i - 1`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct LengthHistogram([U64; 32]);

impl LengthHistogram {
    /// Counts one more blob.
    #[inline]
    pub fn add(&mut self, len: u32) {
        // A blob has less than 2^31 bytes, so the highest counter is 31.
        let counter = &mut self.0[(u32::BITS - len.leading_zeros()).min(31) as usize];
        *counter += 1;
    }

    /// The counters.
    pub fn counts(&self) -> [u64; 32] {
        self.0.map(U64::get)
    }

    /// The lengths that a counter counts.
    pub fn lengths(counter: usize) -> std::ops::RangeInclusive<u32> {
        match counter {
            0 => 0..=0,
            1..32 => 1 << (counter - 1)..=(1u64 << counter).saturating_sub(1).min(u32::MAX.into()) as u32,
            _ => panic!("there are 32 counters"),
        }
    }

    pub(crate) fn decode(section: Section<'_>, blob_count: u64) -> Result<LengthHistogram, FormatError> {
        let part = Part::Section(SectionKind::LENGTH_HISTOGRAM.0);
        let Ok(histogram) = LengthHistogram::read_from_bytes(section.bytes) else {
            let expected = size_of::<LengthHistogram>() as u64;
            return Err(damaged(part, "length", section.offset, section.bytes.len() as u64, expected));
        };
        let sum = histogram.counts().iter().try_fold(0u64, |sum, &count| sum.checked_add(count));
        if sum != Some(blob_count) {
            return Err(damaged(
                part,
                "sum of counters",
                section.offset,
                sum.unwrap_or(u64::MAX),
                blob_count,
            ));
        }
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_counted_where_the_range_says() {
        for len in [0, 1, 2, 3, 4, 255, 256, 65_535, 65_536, crate::BLOB_BYTES_MAX] {
            let mut histogram = LengthHistogram::default();
            histogram.add(len);
            let counter = histogram.counts().iter().position(|&count| count == 1).unwrap();
            assert!(LengthHistogram::lengths(counter).contains(&len), "{len} in counter {counter}");
        }
    }
}

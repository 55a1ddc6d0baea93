//! How many blobs have which length, by powers of two.

use zerocopy::FromBytes;
use zerocopy::byteorder::little_endian::U64;

use crate::error::{FormatError, Place, damaged};
use crate::sections::{Section, SectionKind};

/// Counts blobs by length: counter 0 those of 0 bytes, counter `i` those of `2^(i-1)` up to `2^i - 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LengthHistogram([u64; 32]);

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
        self.0
    }

    /// The lengths that a counter counts.
    ///
    /// # Panics
    /// If there is no such counter: there are 32.
    pub fn lengths(counter: usize) -> std::ops::RangeInclusive<u32> {
        match counter {
            0 => 0..=0,
            1..32 => 1 << (counter - 1)..=(1u64 << counter).saturating_sub(1).min(u32::MAX.into()) as u32,
            _ => panic!("there are 32 counters"),
        }
    }

    /// The section's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        self.0.iter().flat_map(|count| count.to_le_bytes()).collect()
    }

    pub(crate) fn decode(section: Section<'_>, blob_count: u64) -> Result<LengthHistogram, FormatError> {
        let place = Place::Section(SectionKind::LENGTH_HISTOGRAM.0);
        let Ok(counts) = <[U64; 32]>::read_from_bytes(section.bytes) else {
            let (found, expected) = (section.bytes.len() as u64, 32 * 8u64);
            return Err(damaged(place, "length", section.offset, found, expected));
        };
        let histogram = LengthHistogram(counts.map(U64::get));
        let sum = histogram.0.iter().try_fold(0u64, |sum, &count| sum.checked_add(count));
        if sum != Some(blob_count) {
            return Err(damaged(
                place,
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

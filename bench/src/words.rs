//! Bytes from a seed, and the sum that stands for scanning them.

/// An endless row of distinct words: splitmix64.
pub(crate) struct Words {
    state: u64,
}

impl Words {
    pub(crate) fn new(seed: u64) -> Words {
        Words { state: seed }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// Fills the bytes and gives what [`sum_words`] should find in them, known from the words themselves.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> u64 {
        let mut sum = 0u64;
        for chunk in bytes.chunks_mut(8) {
            let word = self.next();
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
            sum = sum.wrapping_add(word & (u64::MAX >> (64 - 8 * chunk.len())));
        }
        sum
    }
}

/// Bytes of one turn of the sum's loop.
///
/// A processor foresees the end of a loop only if it turns a few times: with 64 bytes a turn, each
/// 4 KiB blob cost a wrong guess, and 0.09 of the speed, even without a look at its length. The
/// bare sum is as fast either way.
const TURN_BYTES: usize = 512;

/// Adds the bytes up as little-endian words; the last one is filled up with zeros.
///
/// Limit and subject share it, so what differs between them is only how they come by the bytes. The
/// compiler makes vector instructions of it.
#[inline]
pub(crate) fn sum_words(bytes: &[u8]) -> u64 {
    let (turns, rest) = bytes.as_chunks::<TURN_BYTES>();
    if turns.is_empty() {
        return sum_few_words(rest);
    }
    let mut lanes = [0u64; 8];
    for turn in turns {
        for line in turn.as_chunks::<64>().0 {
            for (lane, word) in lanes.iter_mut().zip(line.as_chunks::<8>().0) {
                *lane = lane.wrapping_add(u64::from_le_bytes(*word));
            }
        }
    }
    let sum = lanes.into_iter().fold(0, u64::wrapping_add);
    sum.wrapping_add(sum_few_words(rest))
}

#[inline]
fn sum_few_words(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    if rest.is_empty() {
        return sum;
    }
    let last = rest.iter().rev().fold(0, |last, byte| last << 8 | u64::from(*byte));
    sum.wrapping_add(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_know_their_sum_whatever_the_length() {
        for len in (0..100).chain(500..530).chain(4090..4100) {
            let mut bytes = vec![0xAA; len];
            let expected = Words::new(7).fill(&mut bytes);
            assert_eq!(sum_words(&bytes), expected, "{len} bytes");
            let slow = bytes.iter().enumerate().map(|(index, byte)| u64::from(*byte) << (8 * (index % 8)));
            assert_eq!(slow.fold(0, u64::wrapping_add), expected, "{len} bytes");
        }
    }

    /// The first words of splitmix64 from seed 1234567, as its author's code gives them.
    #[test]
    fn words_are_splitmix64() {
        let mut words = Words::new(1_234_567);
        assert_eq!([words.next(), words.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}

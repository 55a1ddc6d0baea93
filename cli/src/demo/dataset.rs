//! The demo's blobs: the same in every run, and known by their sums.

use std::thread;

use pelton::crc32c;

/// All demos have the same blobs, up to where they end.
const SEED: u64 = 0x5045_4C54_4F4E;

/// What one thread makes at a time.
const PART_BYTES: u64 = 8 << 20;

/// Lengths are drawn from this range. All are whole words, so that a plain sum over all bytes and a sum blob by
/// blob have the same result.
const BLOB_BYTES_MIN: u64 = 1 << 10;
const BLOB_BYTES_MAX: u64 = 64 << 10;
const WORD_BYTES: u64 = 8;

/// Blobs in memory, as whoever feeds a cache has them.
pub(super) struct Dataset {
    parts: Vec<Part>,
    sums: Sums,
}

/// Some megabytes of blobs that lie one after the other.
pub(super) struct Part {
    pub(super) bytes: Vec<u8>,
    lens: Vec<u32>,
}

/// What is known of blobs without their order: how they were dealt makes no difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) blobs: u64,
    pub(super) bytes: u64,
    /// The sum of the blobs' CRC-32Cs.
    pub(super) crc32c: u64,
    /// The sum of all bytes as little-endian words.
    pub(super) words: u64,
}

impl Sums {
    pub(super) fn merge(a: Sums, b: Sums) -> Sums {
        Sums {
            blobs: a.blobs + b.blobs,
            bytes: a.bytes + b.bytes,
            crc32c: a.crc32c.wrapping_add(b.crc32c),
            words: a.words.wrapping_add(b.words),
        }
    }

    /// Adds a blob with all that is known of it.
    pub(super) fn add(&mut self, blob: &[u8]) {
        self.add_words(blob);
        self.crc32c = self.crc32c.wrapping_add(crc32c(blob).into());
    }

    /// Adds a blob without its checksum: next to no work beside reading it.
    #[inline]
    pub(super) fn add_words(&mut self, blob: &[u8]) {
        self.blobs += 1;
        self.bytes += blob.len() as u64;
        self.words = self.words.wrapping_add(sum_words(blob));
    }
}

impl Dataset {
    /// Makes the blobs, by so many threads.
    pub(super) fn make(bytes: u64, threads: usize) -> Dataset {
        let count = bytes.div_ceil(PART_BYTES);
        let make = |first: usize| {
            let own = (first as u64..count).step_by(threads);
            let part = |number| (number, Part::make(number, PART_BYTES.min(bytes - number * PART_BYTES)));
            own.map(part).collect::<Vec<_>>()
        };
        let mut parts: Vec<(u64, (Part, Sums))> = thread::scope(|scope| {
            let makers: Vec<_> = (0..threads).map(|first| scope.spawn(move || make(first))).collect();
            makers.into_iter().flat_map(|maker| maker.join().expect("making blobs does not panic")).collect()
        });
        parts.sort_by_key(|(number, _)| *number);
        let sums = parts.iter().map(|(_, (_, sums))| *sums).fold(Sums::default(), Sums::merge);
        Dataset { parts: parts.into_iter().map(|(_, (part, _))| part).collect(), sums }
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// What a reader should find.
    pub(super) fn sums(&self) -> Sums {
        self.sums
    }
}

impl Part {
    fn make(number: u64, bytes: u64) -> (Part, Sums) {
        let mut words = Words { state: SEED.wrapping_add(number << 32) };
        let mut part = Part { bytes: vec![0; bytes as usize], lens: Vec::new() };
        for word in part.bytes.chunks_exact_mut(WORD_BYTES as usize) {
            word.copy_from_slice(&words.next().to_le_bytes());
        }
        let mut left = bytes;
        while left > 0 {
            let words_max = (BLOB_BYTES_MAX - BLOB_BYTES_MIN) / WORD_BYTES;
            let len = (BLOB_BYTES_MIN + words.next() % (words_max + 1) * WORD_BYTES).min(left);
            part.lens.push(len as u32);
            left -= len;
        }
        let mut sums = Sums::default();
        part.blobs().for_each(|blob| sums.add(blob));
        (part, sums)
    }

    pub(super) fn blobs(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        self.lens.iter().map(move |&len| {
            let (blob, after) = rest.split_at(len as usize);
            rest = after;
            blob
        })
    }
}

/// Bytes of one turn of the sum's loop: a processor foresees the end of a loop only if it turns a few times.
const TURN_BYTES: usize = 512;

/// Adds the bytes up as little-endian words; the last one is filled up with zeros.
#[inline]
pub(super) fn sum_words(bytes: &[u8]) -> u64 {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("a chunk is a word"));
    let (turns, rest) = bytes.as_chunks::<TURN_BYTES>();
    let mut sum = 0u64;
    for turn in turns {
        for chunk in turn.chunks_exact(WORD_BYTES as usize) {
            sum = sum.wrapping_add(word(chunk));
        }
    }
    let chunks = rest.chunks_exact(WORD_BYTES as usize);
    let tail = chunks.remainder();
    for chunk in chunks {
        sum = sum.wrapping_add(word(chunk));
    }
    let mut last = [0; WORD_BYTES as usize];
    last[..tail.len()].copy_from_slice(tail);
    sum.wrapping_add(u64::from_le_bytes(last))
}

/// An endless row of distinct words: splitmix64.
struct Words {
    state: u64,
}

impl Words {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_the_same_however_many_threads_make_them() {
        let bytes = 2 * PART_BYTES + (1 << 20);
        let (one, three) = (Dataset::make(bytes, 1), Dataset::make(bytes, 3));
        assert_eq!(one.sums(), three.sums());
        assert_eq!(one.sums().bytes, bytes);
        let blobs = |dataset: &Dataset| -> Vec<Vec<u8>> {
            dataset.parts().iter().flat_map(Part::blobs).map(<[u8]>::to_vec).collect()
        };
        assert!(blobs(&one) == blobs(&three));
        // They are no copies of each other.
        assert!(one.parts()[0].bytes != one.parts()[1].bytes);
    }

    #[test]
    fn the_sum_of_words_is_the_same_blob_by_blob_and_at_once() {
        let dataset = Dataset::make(PART_BYTES, 1);
        let at_once = dataset.parts().iter().map(|part| sum_words(&part.bytes)).fold(0, u64::wrapping_add);
        assert_eq!(dataset.sums().words, at_once);
        let mut plain = 0u64;
        let bytes = &dataset.parts()[0].bytes[..1021];
        for word in bytes.chunks(8) {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            plain = plain.wrapping_add(u64::from_le_bytes(whole));
        }
        assert_eq!(sum_words(bytes), plain);
    }

    #[test]
    fn a_changed_byte_changes_the_sums() {
        let mut dataset = Dataset::make(1 << 20, 1);
        let before = dataset.sums();
        dataset.parts[0].bytes[777] ^= 1;
        let mut after = Sums::default();
        dataset.parts()[0].blobs().for_each(|blob| after.add(blob));
        assert_ne!((before.crc32c, before.words), (after.crc32c, after.words));
        assert_ne!(before.crc32c, after.crc32c);
    }
}

//! Which blobs a slice is made of, and the parcels they come in.

use std::sync::atomic::{AtomicU64, Ordering};

use pelton::{Codec, Parcel};

use crate::frame::Failure;
use crate::words::Words;

/// Parcels have about this many bytes: the middle of what a feed sends.
const PARCEL_BYTES: usize = 2 << 20;

/// Blobs of one length, whose words come from a seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blobs {
    pub(crate) seed: u64,
    pub(crate) count: u64,
    pub(crate) len: usize,
    pub(crate) texture: Texture,
}

/// What blobs look like to a codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Texture {
    /// Distinct words: no codec makes them smaller.
    Noise,
    /// Records of 64 bytes, of which three words differ and five are the same in all: about a half is left.
    Records,
}

impl Texture {
    /// Fills a blob, and gives what its words add up to.
    pub(crate) fn fill(self, words: &mut Words, blob: &mut [u8]) -> u64 {
        match self {
            Texture::Noise => words.fill(blob),
            Texture::Records => fill_records(words, blob),
        }
    }
}

/// A packed parcel's parts, kept apart so that a limit may inflate the same body.
pub(crate) struct PackedParcel {
    pub(crate) blob_count: u32,
    pub(crate) inflated_bytes: usize,
    pub(crate) body: Vec<u8>,
}

impl Blobs {
    /// As many as fill `bytes`, at least one.
    pub(crate) fn filling(seed: u64, bytes: u64, len: usize) -> Blobs {
        Blobs { seed, count: (bytes / len as u64).max(1), len, texture: Texture::Noise }
    }

    /// Their bytes, without lengths.
    pub(crate) fn bytes(&self) -> u64 {
        self.count * self.len as u64
    }

    /// How many parcels they come in.
    pub(crate) fn parcel_count(&self) -> u64 {
        self.count.div_ceil(self.per_parcel())
    }

    /// One parcel's body, inflated, its count of blobs, and what their words add up to.
    pub(crate) fn body(&self, parcel: u64) -> (Vec<u8>, u32, u64) {
        let first = parcel * self.per_parcel();
        let count = self.per_parcel().min(self.count - first);
        let mut words = Words::new(self.seed.wrapping_add(parcel.wrapping_mul(0xD1B5_4A32_D192_ED03)));
        let mut body = vec![0; count as usize * (4 + self.len)];
        let mut sum = 0u64;
        for cell in body.chunks_exact_mut(4 + self.len) {
            let (length, blob) = cell.split_at_mut(4);
            length.copy_from_slice(&(self.len as u32).to_le_bytes());
            sum = sum.wrapping_add(self.texture.fill(&mut words, blob));
        }
        (body, count as u32, sum)
    }

    /// One parcel, inflated, and its sum.
    pub(crate) fn parcel(&self, parcel: u64) -> (Parcel, u64) {
        let (body, count, sum) = self.body(parcel);
        (Parcel::packed(Codec::None, count, body.len(), body), sum)
    }

    /// All parcels, made by all cores, and the sum of all blobs.
    pub(crate) fn parcels(&self) -> (Vec<Parcel>, u64) {
        self.make(|parcel| self.parcel(parcel))
    }

    /// All parcels, deflated by LZ4, and the sum of all blobs.
    pub(crate) fn packed_parcels(&self) -> (Vec<PackedParcel>, u64) {
        self.make(|parcel| {
            let (inflated, blob_count, sum) = self.body(parcel);
            let body = lz4_flex::block::compress(&inflated);
            (PackedParcel { blob_count, inflated_bytes: inflated.len(), body }, sum)
        })
    }

    fn make<T: Send>(&self, one: impl Fn(u64) -> (T, u64) + Sync) -> (Vec<T>, u64) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicU64::new(0);
        let mut made: Vec<(u64, T, u64)> = std::thread::scope(|scope| {
            let work = || {
                let mut mine = Vec::new();
                loop {
                    let parcel = next.fetch_add(1, Ordering::Relaxed);
                    if parcel >= self.parcel_count() {
                        return mine;
                    }
                    let (value, sum) = one(parcel);
                    mine.push((parcel, value, sum));
                }
            };
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().expect("making parcels does not panic"))
                .collect()
        });
        made.sort_by_key(|(parcel, ..)| *parcel);
        let sum = made.iter().fold(0u64, |sum, (.., more)| sum.wrapping_add(*more));
        (made.into_iter().map(|(_, value, _)| value).collect(), sum)
    }

    fn per_parcel(&self) -> u64 {
        (PARCEL_BYTES / (4 + self.len)).max(1) as u64
    }
}

impl PackedParcel {
    /// The parcel as a loader would hand it over. The body is copied.
    pub(crate) fn parcel(&self) -> Parcel {
        Parcel::packed(Codec::Lz4, self.blob_count, self.inflated_bytes, self.body.clone())
    }

    /// Inflates it, and nothing else.
    pub(crate) fn inflate(&self, room: &mut [u8]) -> Result<usize, Failure> {
        lz4_flex::block::decompress_into(&self.body, room)
            .map_err(|error| Failure::because(error.to_string()))
    }
}

/// Fills the bytes with records, and gives what their words add up to.
fn fill_records(words: &mut Words, bytes: &mut [u8]) -> u64 {
    const SAME: [u64; 5] = [1, 0x0000_FFFF_0000_FFFF, 0x2020_2020_2020_2020, 17, 0x3A2F_2F73_7074_7468];
    let (records, rest) = bytes.as_chunks_mut::<64>();
    let mut sum = words.fill(rest);
    for record in records {
        let own = [words.next(), words.next(), words.next()];
        for (place, word) in record.as_chunks_mut::<8>().0.iter_mut().zip(own.into_iter().chain(SAME)) {
            *place = word.to_le_bytes();
            sum = sum.wrapping_add(word);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::sum_words;

    #[test]
    fn parcels_hold_all_blobs_and_know_their_sum() {
        for texture in [Texture::Noise, Texture::Records] {
            for len in [256, 4096, 100_001] {
                let blobs = Blobs { texture, ..Blobs::filling(7, 5 << 20, len) };
                let (parcels, sum) = blobs.parcels();
                assert_eq!(
                    parcels.iter().map(|parcel| u64::from(parcel.blob_count())).sum::<u64>(),
                    blobs.count
                );
                let mut found = 0u64;
                for parcel in 0..blobs.parcel_count() {
                    let (body, ..) = blobs.body(parcel);
                    for cell in body.chunks_exact(4 + len) {
                        found = found.wrapping_add(sum_words(&cell[4..]));
                    }
                }
                assert_eq!(found, sum, "{texture:?}, {len}");
            }
        }
    }

    #[test]
    fn records_become_about_half_and_noise_does_not() {
        let blobs = Blobs { texture: Texture::Records, ..Blobs::filling(7, 4 << 20, 65_536) };
        let share = |blobs: Blobs| {
            let (packed, _) = blobs.packed_parcels();
            let bytes: usize = packed.iter().map(|parcel| parcel.body.len()).sum();
            bytes as f64 / blobs.bytes() as f64
        };
        let records = share(blobs);
        assert!((0.4..0.6).contains(&records), "{records}");
        assert!(share(Blobs { texture: Texture::Noise, ..blobs }) > 0.99);
        let (packed, _) = blobs.packed_parcels();
        let mut room = vec![0; packed[0].inflated_bytes];
        assert_eq!(packed[0].inflate(&mut room).unwrap(), room.len());
        assert_eq!(room, blobs.body(0).0);
    }
}

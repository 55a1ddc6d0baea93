//! What the tests of this crate share: sample regions, a seeded generator, and a forger.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use pelton_region_format::*;

/// A small generator with a seed, so that every run is the same (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// The blobs of the golden files: some text, an empty one, one of every byte, one longer than a page.
pub fn sample_blobs() -> Vec<Vec<u8>> {
    vec![b"hello".to_vec(), vec![], (0..=255).collect(), b"pelton ".repeat(600), vec![], b"last".to_vec()]
}

/// The header of the golden file: nothing left at its default.
pub fn sample_header() -> Header {
    Header {
        alignment: 64,
        block_bytes: 4096,
        region_index: 2,
        region_count: 7,
        writer: *b"golden 1\0\0\0\0\0\0\0\0",
        key: Some("shop/orders@1719878400000#3".parse().unwrap()),
        fingerprint: Some(Fingerprint::from_bytes(std::array::from_fn(|i| i as u8))),
        ..Header::default()
    }
}

pub const SAMPLE_METADATA: &[u8] = b"{\"columns\": [\"id\", \"price\"]}";

/// The golden version 2 file, made anew.
pub fn sample_v2() -> Vec<u8> {
    encode_to_vec(&sample_header(), sample_blobs(), Some(SAMPLE_METADATA)).unwrap()
}

/// All blobs as a cursor gives them.
pub fn collect(mut cursor: BlobCursor<'_>) -> Result<Vec<Vec<u8>>, FormatError> {
    let mut blobs = Vec::new();
    while let Some(blob) = cursor.next()? {
        blobs.push(blob.to_vec());
    }
    Ok(blobs)
}

/// All blobs as a decoder gives them, fed by chunks of these sizes, again and again.
pub fn decode(
    mut decoder: RegionDecoder<'_>,
    file: &[u8],
    chunk_sizes: &[usize],
) -> Result<Vec<Vec<u8>>, FormatError> {
    let until = decoder.feed_until().min(file.len() as u64) as usize;
    let from = (decoder.feed_from() as usize).min(until);
    let mut blobs: Vec<Vec<u8>> = Vec::new();
    let mut rest = &file[from..until];
    let mut sizes = chunk_sizes.iter().cycle();
    while !rest.is_empty() {
        let size = (*sizes.next().unwrap()).clamp(1, rest.len());
        let (chunk, after) = rest.split_at(size);
        rest = after;
        decoder.feed(chunk, &mut |fragment: BlobFragment<'_>| {
            if fragment.is_first() {
                blobs.push(Vec::new());
            }
            let blob = blobs.last_mut().expect("a first fragment came before");
            assert_eq!(blob.len(), fragment.offset as usize, "fragments come in order");
            blob.extend_from_slice(fragment.bytes);
            assert_eq!(fragment.is_last(), blob.len() == fragment.len as usize);
            Ok::<(), FormatError>(())
        })?;
    }
    decoder.finish()?;
    Ok(blobs)
}

pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// Changes a version 2 file and makes all its checksums right again, as a faulty writer would: what
/// is then still refused is refused by its rule, not by a checksum.
///
/// Written from `docs/region-format.md`, on purpose not with the crate's own code.
pub struct Forger {
    pub bytes: Vec<u8>,
}

impl Forger {
    pub fn of(bytes: &[u8]) -> Forger {
        Forger { bytes: bytes.to_vec() }
    }

    /// The trailer's offset.
    pub fn trailer(&self) -> usize {
        self.bytes.len() - 4096
    }

    pub fn body_end(&self) -> usize {
        u64_at(&self.bytes, self.trailer() + 32) as usize
    }

    pub fn table(&self) -> usize {
        u64_at(&self.bytes, self.trailer() + 40) as usize
    }

    /// The offset of the table entry of the section of this kind.
    pub fn entry(&self, kind: u32) -> usize {
        let count = u32_at(&self.bytes, self.trailer() + 48) as usize;
        (0..count).map(|i| self.table() + 32 * i).find(|&entry| u32_at(&self.bytes, entry) == kind).unwrap()
    }

    /// The offset of the section of this kind.
    pub fn section(&self, kind: u32) -> usize {
        u64_at(&self.bytes, self.entry(kind) + 8) as usize
    }

    pub fn put(&mut self, offset: usize, bytes: &[u8]) -> &mut Forger {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn put_u32(&mut self, offset: usize, number: u32) -> &mut Forger {
        self.put(offset, &number.to_le_bytes())
    }

    pub fn put_u64(&mut self, offset: usize, number: u64) -> &mut Forger {
        self.put(offset, &number.to_le_bytes())
    }

    /// Makes the header's checksum right.
    pub fn seal_header(&mut self) -> &mut Forger {
        let crc = crc32c(&self.bytes[..4092]);
        self.put_u32(4092, crc)
    }

    /// Makes the trailer's checksum right.
    pub fn seal_trailer(&mut self) -> &mut Forger {
        let trailer = self.trailer();
        let crc = crc32c(&self.bytes[trailer..trailer + 4092]);
        self.put_u32(trailer + 4092, crc)
    }

    /// Makes the table's checksum right, and the trailer's.
    pub fn seal_table(&mut self) -> &mut Forger {
        let (table, trailer) = (self.table(), self.trailer());
        let crc = crc32c(&self.bytes[table..trailer]);
        self.put_u32(trailer + 52, crc).seal_trailer()
    }

    /// Makes the sections' checksums right, and what follows from them.
    pub fn seal_sections(&mut self) -> &mut Forger {
        let (table, trailer) = (self.table(), self.trailer());
        for i in 0..u32_at(&self.bytes, trailer + 48) as usize {
            let entry = table + 32 * i;
            let start = u64_at(&self.bytes, entry + 8) as usize;
            let end = start + (u64_at(&self.bytes, entry + 16) as usize).next_multiple_of(8);
            let crc = crc32c(&self.bytes[start..end]);
            self.put_u32(entry + 24, crc);
        }
        self.seal_table()
    }

    /// Makes the content id right, and what follows from it.
    pub fn seal_content(&mut self) -> &mut Forger {
        let (trailer, sums) = (self.trailer(), self.section(1));
        let len = u64_at(&self.bytes, self.entry(1) + 16) as usize;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.bytes[16..24]);
        hasher.update(&self.bytes[trailer + 16..trailer + 40]);
        hasher.update(&self.bytes[sums..sums + len]);
        let id = *hasher.finalize().as_bytes();
        self.put(trailer + 64, &id).seal_sections()
    }

    /// Makes everything right that a checksum covers.
    pub fn seal_all(&mut self) -> &mut Forger {
        let (block_bytes, body_end, sums) =
            (u32_at(&self.bytes, 20) as usize, self.body_end(), self.section(1));
        for block in 0..body_end.div_ceil(block_bytes) {
            let start = (block * block_bytes).max(4096);
            let end = ((block + 1) * block_bytes).min(body_end).max(start);
            let crc = crc32c(&self.bytes[start..end]);
            self.put_u32(sums + 4 * block, crc);
        }
        self.seal_header().seal_content()
    }

    /// What a reader says of it: to open, or else to verify.
    pub fn verdict(&self) -> Result<Verified, FormatError> {
        RegionView::open(&self.bytes)?.verify()
    }
}

//! Encoding blobs into pieces, against copying them.

use std::hint::black_box;
use std::marker::PhantomData;

use pelton::{BlobFragment, Header, Put, RegionDecoder, RegionEncoder};
// The facade leaves it out: nobody but a benchmark has another checksum.
use pelton_region_format::BlockChecksum;

use super::BLOB_BYTES;
use crate::frame::{Answers, Failure, Memory, Pair, Stopwatch};
use crate::words::{Words, sum_words};

const BLOB: usize = BLOB_BYTES as usize;

/// Leaves the checksums out, to see what the rest costs. It lives here, so that no file can be
/// written with it.
#[derive(Default)]
pub(super) struct NoChecksum;

impl BlockChecksum for NoChecksum {
    fn update(&mut self, _: &[u8]) {}

    fn take(&mut self) -> u32 {
        0
    }
}

/// A source larger than the caches, and one piece that is filled again and again, as an impeller's is.
///
/// The answer of a run is what the piece holds afterwards. That everything before was right as well is
/// proved once, before the first run, by the same code with a reader behind it.
pub(super) struct Encode<C> {
    source: Memory,
    piece: Memory,
    expected: Answers,
    checksum: PhantomData<C>,
}

impl<C: BlockChecksum> Encode<C> {
    pub(super) fn new(seed: u64, region_bytes: usize, piece_bytes: usize) -> Result<Encode<C>, Failure> {
        if region_bytes == 0 {
            return Err(Failure::because("a region of this size has no blobs"));
        }
        let mut source = Memory::zeroed(region_bytes.next_multiple_of(BLOB))?;
        Words::new(seed).fill(&mut source);
        let mut piece = Memory::zeroed(piece_bytes)?;
        let expected = Answers {
            subject: prove_encoding::<C>(&source, &mut piece)?,
            limit: prove_copying(&source, &mut piece)?,
        };
        Ok(Encode { source, piece, expected, checksum: PhantomData })
    }
}

impl<C: BlockChecksum> Pair for Encode<C> {
    fn bytes(&self) -> u64 {
        self.source.len() as u64
    }

    fn expected(&self) -> Answers {
        self.expected
    }

    fn limit(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        stopwatch.time(|| copy(&self.source, &mut self.piece, pass_on))?;
        Ok(sum_words(&self.piece))
    }

    fn subject(&mut self, stopwatch: &mut Stopwatch) -> Result<u64, Failure> {
        stopwatch.time(|| encode::<C>(&self.source, &mut self.piece, pass_on))?;
        Ok(sum_words(&self.piece))
    }
}

/// Copies blob after blob into the piece; from its start again when it is full.
fn copy(
    source: &[u8],
    piece: &mut [u8],
    mut full: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut offset = 0;
    for blob in source.chunks_exact(BLOB) {
        if offset == piece.len() {
            full(piece)?;
            offset = 0;
        }
        piece[offset..][..BLOB].copy_from_slice(blob);
        offset += BLOB;
    }
    full(&piece[..offset])
}

/// Encodes blob after blob into the piece. Without the seal, which would add a few KiB: only a real
/// checksum has one.
fn encode<C: BlockChecksum>(
    source: &[u8],
    piece: &mut [u8],
    mut full: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut encoder = RegionEncoder::<C>::with_checksum(&Header::default(), piece.len())?;
    for blob in source.chunks_exact(BLOB) {
        while encoder.put(blob, piece)? == Put::PieceFull {
            full(piece)?;
        }
    }
    let used = match encoder.file_offset() % piece.len() as u64 {
        0 => piece.len(),
        used => used as usize,
    };
    full(&piece[..used])
}

/// Where a full piece goes when the clock runs: out of the compiler's sight.
fn pass_on(piece: &[u8]) -> Result<(), Failure> {
    black_box(piece);
    Ok(())
}

/// Copies everything, comparing, and sums up what is in the piece at the end.
fn prove_copying(source: &[u8], piece: &mut [u8]) -> Result<u64, Failure> {
    let mut copied = 0;
    copy(source, piece, |bytes| {
        if source[copied..][..bytes.len()] != *bytes {
            return Err(Failure::because("the copies are not the source"));
        }
        copied += bytes.len();
        Ok(())
    })?;
    expect_all(copied, source)?;
    Ok(sum_words(piece))
}

/// Encodes everything, decodes it and compares the blobs, and sums up what is in the piece at the end.
fn prove_encoding<C: BlockChecksum>(source: &[u8], piece: &mut [u8]) -> Result<u64, Failure> {
    let mut decoder = RegionDecoder::stream();
    let mut decoded = 0;
    encode::<C>(source, piece, |bytes| {
        decoder.feed(bytes, &mut |part: BlobFragment<'_>| {
            let offset = part.number as usize * BLOB + part.offset as usize;
            if source[offset..][..part.bytes.len()] != *part.bytes {
                return Err(Failure::because(format!("blob {} is not what was put in", part.number)));
            }
            decoded += part.bytes.len();
            Ok(())
        })
    })?;
    expect_all(decoded, source)?;
    Ok(sum_words(piece))
}

fn expect_all(found: usize, source: &[u8]) -> Result<(), Failure> {
    if found != source.len() {
        return Err(Failure::because(format!("{found} bytes came out, {} went in", source.len())));
    }
    Ok(())
}

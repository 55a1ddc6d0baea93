//! Ends a region: the end mark, the sections, the trailer.

use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::U32;

use crate::checksum::{BlockSums, Crc32c};
use crate::encoder::{CellHead, Layout, LayoutV2, PieceOutput, Put, RegionEncoder};
use crate::error::EncodeError;
use crate::header::{Header, Version};
use crate::limits::METADATA_BYTES_MAX;
use crate::sections::{SectionKind, TailBuilder};
use crate::trailer::{ContentId, Counts, Trailer};

/// Writes what comes after the last blob.
///
/// Call [`fill`](RegionSeal::fill) until it is done; then the last piece, of which
/// [`piece_used`](RegionSeal::piece_used) bytes count, seals the file.
pub struct RegionSeal {
    output: PieceOutput,
    layout: Layout<Crc32c>,
    counts: Counts,
    metadata: Option<Vec<u8>>,
    step: Step,
}

enum Step {
    /// The end mark is not whole yet. Version 1 has none.
    Body { end_mark: Option<CellHead> },
    /// The tail is laid out, and this much of it written.
    Tail { bytes: Vec<u8>, done: usize, content_id: Option<ContentId> },
}

/// What a sealed region is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sealed {
    /// The format it is in.
    pub version: Version,
    /// The length of the file.
    pub file_bytes: u64,
    /// How many blobs there are.
    pub blob_count: u64,
    /// The sum of their lengths.
    pub blob_bytes: u64,
    /// Which body this is; version 1 does not tell.
    pub content_id: Option<ContentId>,
}

impl RegionSeal {
    pub(crate) fn new(encoder: RegionEncoder, metadata: Option<&[u8]>) -> Result<RegionSeal, EncodeError> {
        let metadata = metadata.filter(|_| matches!(encoder.layout, Layout::V2(_)));
        if let Some(metadata) = metadata
            && metadata.len() > METADATA_BYTES_MAX
        {
            return Err(EncodeError::MetadataTooLong { bytes: metadata.len() as u64 });
        }
        let RegionEncoder { output, layout, counts, .. } = encoder;
        let end_mark = match &layout {
            Layout::V1 => None,
            Layout::V2(layout) => {
                Some(CellHead::end_mark(output.next_offset(), layout.header.alignment.into()))
            }
        };
        let metadata = metadata.map(<[u8]>::to_vec);
        Ok(RegionSeal { output, layout, counts, metadata, step: Step::Body { end_mark } })
    }

    /// Writes on into the piece that was being filled, then into further ones.
    ///
    /// # Errors
    /// [`EncodeError::PieceBytes`] if the piece has another size than was agreed.
    pub fn fill(&mut self, piece: &mut [u8]) -> Result<Put, EncodeError> {
        self.output.check(piece)?;
        let whole = self.fill_body(piece) && self.fill_tail(piece);
        if whole {
            return Ok(Put::Done);
        }
        self.output.next_piece();
        Ok(Put::PieceFull)
    }

    /// How many bytes of the last piece belong to the file.
    pub fn piece_used(&self) -> usize {
        self.output.used()
    }

    /// What the region is, now that [`fill`](RegionSeal::fill) has said `Done`.
    ///
    /// # Panics
    /// If it has not.
    pub fn sealed(&self) -> Sealed {
        let Step::Tail { bytes, done, content_id } = &self.step else {
            panic!("sealed is for after the last fill");
        };
        assert!(*done == bytes.len(), "sealed is for after the last fill");
        Sealed {
            version: if content_id.is_some() { Version::V2 } else { Version::V1 },
            file_bytes: self.output.at,
            blob_count: self.counts.blobs,
            blob_bytes: self.counts.bytes,
            content_id: *content_id,
        }
    }

    /// Writes the end mark, and lays out the tail once it is whole.
    fn fill_body(&mut self, piece: &mut [u8]) -> bool {
        let Step::Body { end_mark } = self.step else { return true };
        self.output.put_start(piece);
        let whole = end_mark.is_none_or(|end_mark| self.output.put_head(end_mark, piece));
        self.layout.sum(&self.output, piece, 1);
        if whole {
            let (bytes, content_id) = match &mut self.layout {
                Layout::V1 => (Vec::new(), None),
                Layout::V2(layout) => {
                    let (bytes, id) = layout.tail(&self.counts, self.output.at, self.metadata.as_deref());
                    (bytes, Some(id))
                }
            };
            self.step = Step::Tail { bytes, done: 0, content_id };
        }
        whole
    }

    fn fill_tail(&mut self, piece: &mut [u8]) -> bool {
        let Step::Tail { bytes, done, .. } = &mut self.step else { return false };
        *done += self.output.put_bytes(&bytes[*done..], piece);
        *done == bytes.len()
    }
}

impl LayoutV2<Crc32c> {
    /// Sections, table and trailer.
    fn tail(&mut self, counts: &Counts, body_end: u64, metadata: Option<&[u8]>) -> (Vec<u8>, ContentId) {
        let sums = std::mem::replace(&mut self.sums, BlockSums::new(self.header.block_bytes));
        let sums: Vec<U32> = sums.finish().into_iter().map(U32::new).collect();
        let content_id = ContentId::of(&self.header, counts, body_end, sums.as_bytes());

        let mut tail = TailBuilder::new(body_end);
        tail.add(SectionKind::BLOCK_CHECKSUMS, sums.as_bytes());
        tail.add(SectionKind::BLOB_INDEX, &self.index.encode());
        tail.add(SectionKind::LENGTH_HISTOGRAM, self.histogram.as_bytes());
        if let Some(metadata) = metadata {
            tail.add(SectionKind::METADATA, metadata);
        }
        let (mut bytes, table) = tail.finish();
        let file_bytes = body_end + bytes.len() as u64 + crate::PAGE_BYTES as u64;
        let trailer = Trailer {
            file_bytes,
            blob_count: counts.blobs,
            blob_bytes: counts.bytes,
            body_end,
            table_offset: table.offset,
            section_count: table.section_count,
            shortest: counts.shortest,
            longest: counts.longest,
            content_id,
            table_crc: table.crc,
        };
        bytes.extend_from_slice(&trailer.encode());
        (bytes, content_id)
    }
}

/// A version 2 file of these blobs, whole in memory.
///
/// # Errors
/// [`EncodeError`] if the header, a blob or the metadata is out of range.
pub fn encode_to_vec<B: AsRef<[u8]>>(
    header: &Header,
    blobs: impl IntoIterator<Item = B>,
    metadata: Option<&[u8]>,
) -> Result<Vec<u8>, EncodeError> {
    encode_all(RegionEncoder::v2(header, crate::PIECE_BYTES_STEP)?, blobs, metadata)
}

/// A version 1 file of these blobs, whole in memory.
///
/// # Errors
/// [`EncodeError`] if a blob or the file is too long.
pub fn encode_v1_to_vec<B: AsRef<[u8]>>(blobs: impl IntoIterator<Item = B>) -> Result<Vec<u8>, EncodeError> {
    encode_all(RegionEncoder::v1(crate::PIECE_BYTES_STEP)?, blobs, None)
}

fn encode_all<B: AsRef<[u8]>>(
    mut encoder: RegionEncoder,
    blobs: impl IntoIterator<Item = B>,
    metadata: Option<&[u8]>,
) -> Result<Vec<u8>, EncodeError> {
    let mut file = Vec::new();
    let mut piece = vec![0; crate::PIECE_BYTES_STEP];
    for blob in blobs {
        while encoder.put(blob.as_ref(), &mut piece)? == Put::PieceFull {
            file.extend_from_slice(&piece);
        }
    }
    let mut seal = encoder.seal(metadata)?;
    while seal.fill(&mut piece)? == Put::PieceFull {
        file.extend_from_slice(&piece);
    }
    file.extend_from_slice(&piece[..seal.piece_used()]);
    Ok(file)
}

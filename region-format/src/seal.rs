//! Ends a region: the end mark, the sections, the trailer.

use std::collections::VecDeque;

use crate::checksum::Crc32c;
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
#[derive(Debug)]
pub struct RegionSeal {
    output: PieceOutput,
    layout: Layout<Crc32c>,
    counts: Counts,
    metadata: Option<Vec<u8>>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// The end mark is not whole yet. Version 1 has none.
    Body { end_mark: Option<CellHead> },
    /// What is left of the tail, of the first chunk without what is `done`.
    Tail { chunks: VecDeque<Vec<u8>>, done: usize, content_id: Option<ContentId> },
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
        if metadata.is_some() && matches!(encoder.layout, Layout::V1) {
            return Err(EncodeError::NoMetadata);
        }
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
        let Step::Tail { chunks, content_id, .. } = &self.step else {
            panic!("sealed is for after the last fill");
        };
        assert!(chunks.is_empty(), "sealed is for after the last fill");
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
            self.step = match std::mem::replace(&mut self.layout, Layout::V1) {
                Layout::V1 => Step::Tail { chunks: VecDeque::new(), done: 0, content_id: None },
                Layout::V2(layout) => {
                    let (chunks, id) = layout.tail(&self.counts, self.output.at, self.metadata.take());
                    Step::Tail { chunks, done: 0, content_id: Some(id) }
                }
            };
        }
        whole
    }

    fn fill_tail(&mut self, piece: &mut [u8]) -> bool {
        let Step::Tail { chunks, done, .. } = &mut self.step else { return false };
        while let Some(chunk) = chunks.front() {
            *done += self.output.put_bytes(&chunk[*done..], piece);
            if *done < chunk.len() {
                return false;
            }
            chunks.pop_front(); // Its memory goes as soon as it is written.
            *done = 0;
        }
        true
    }
}

impl LayoutV2<Crc32c> {
    /// Sections, table and trailer.
    fn tail(
        self,
        counts: &Counts,
        body_end: u64,
        metadata: Option<Vec<u8>>,
    ) -> (VecDeque<Vec<u8>>, ContentId) {
        let sums: Vec<u8> = self.sums.finish().into_iter().flat_map(u32::to_le_bytes).collect();
        let content_id = ContentId::of(&self.header, counts, body_end, &sums);

        let mut tail = TailBuilder::new(body_end);
        tail.add(SectionKind::BLOCK_CHECKSUMS, sums);
        tail.add(SectionKind::BLOB_INDEX, self.index.encode());
        tail.add(SectionKind::LENGTH_HISTOGRAM, self.histogram.encode());
        if let Some(metadata) = metadata {
            tail.add(SectionKind::METADATA, metadata);
        }
        let (mut chunks, table) = tail.finish();
        let trailer = Trailer {
            file_bytes: table.end + crate::PAGE_BYTES as u64,
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
        chunks.push_back(trailer.encode().to_vec());
        (chunks, content_id)
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

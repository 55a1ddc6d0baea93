//! Writes a region front to back, into pieces that the caller gives.

use crate::body::{BODY_START, END_MARK, LENGTH_BYTES, V1_BODY_START, first_after};
use crate::checksum::{BlockChecksum, BlockSums, Crc32c};
use crate::error::EncodeError;
use crate::header::{Header, MAGIC, Version};
use crate::limits::*;
use crate::seal::RegionSeal;
use crate::sections::{IndexBuilder, LengthHistogram};
use crate::trailer::Counts;

/// What a call did with the piece it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Put {
    /// All of it is written. The piece may be exactly full; then the next call says so.
    Done,
    /// The piece is full and there is more: hand it on, then call again, the same, with the next piece.
    PieceFull,
}

/// Writes blobs one after the other into pieces of a fixed size.
///
/// Piece `k` is the file's bytes `[k * piece_bytes, (k + 1) * piece_bytes)`, and nothing in a full
/// piece ever changes, so it can be on its way to the disk while the next one is filled. Pieces may
/// be stretches of one large buffer or the same small one again and again.
///
/// ```
/// # use pelton_region_format::*;
/// let mut piece = vec![0; PIECE_BYTES_STEP];
/// let mut file = Vec::new();
/// let mut encoder = RegionEncoder::v2(&Header::default(), piece.len())?;
/// for blob in ["hello", "", "world"] {
///     while encoder.put(blob.as_bytes(), &mut piece)? == Put::PieceFull {
///         file.extend_from_slice(&piece);
///     }
/// }
/// let mut seal = encoder.seal(None)?;
/// while seal.fill(&mut piece)? == Put::PieceFull {
///     file.extend_from_slice(&piece);
/// }
/// file.extend_from_slice(&piece[..seal.piece_used()]);
/// assert_eq!(file.len() as u64, seal.sealed().file_bytes);
/// assert_eq!(RegionView::open(&file)?.blob(2)?, Some("world".as_bytes()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RegionEncoder<C: BlockChecksum = Crc32c> {
    pub(crate) output: PieceOutput,
    pub(crate) layout: Layout<C>,
    pub(crate) counts: Counts,
    open: Option<OpenBlob>,
}

/// What differs between the versions.
#[derive(Debug)]
pub(crate) enum Layout<C> {
    V1,
    V2(Box<LayoutV2<C>>),
}

#[derive(Debug)]
pub(crate) struct LayoutV2<C> {
    pub(crate) header: Header,
    pub(crate) sums: BlockSums<C>,
    pub(crate) index: IndexBuilder,
    pub(crate) histogram: LengthHistogram,
}

/// A blob that is begun and not yet whole.
#[derive(Debug)]
struct OpenBlob {
    number: u64,
    len: u32,
    head: CellHead,
    /// How many of its bytes are written.
    done: u32,
}

impl RegionEncoder {
    /// Starts a version 2 file.
    ///
    /// # Errors
    /// [`EncodeError::Field`] if the header says what no file may, or `piece_bytes` is no multiple of 2 MiB.
    pub fn v2(header: &Header, piece_bytes: usize) -> Result<RegionEncoder, EncodeError> {
        RegionEncoder::with_checksum(header, piece_bytes)
    }

    /// Starts a version 1 file, for systems that read no other: without checksums, and of at most 2^31 - 1 bytes.
    ///
    /// # Errors
    /// [`EncodeError::Field`] if `piece_bytes` is no multiple of 2 MiB.
    pub fn v1(piece_bytes: usize) -> Result<RegionEncoder, EncodeError> {
        let output = PieceOutput::new(piece_bytes, &[MAGIC, Version::V1.number()])?;
        Ok(RegionEncoder { output, layout: Layout::V1, counts: Counts::default(), open: None })
    }

    /// Ends the body. What is still to be written comes out of [`RegionSeal::fill`].
    ///
    /// Metadata is the user's own.
    ///
    /// # Errors
    /// [`EncodeError::BlobBytes`] if a blob is not whole, [`EncodeError::MetadataTooLong`],
    /// [`EncodeError::NoMetadata`] in version 1.
    pub fn seal(self, metadata: Option<&[u8]>) -> Result<RegionSeal, EncodeError> {
        if let Some(open) = &self.open {
            return Err(open.bytes_error("the region was sealed before they were all there"));
        }
        RegionSeal::new(self, metadata)
    }
}

impl<C: BlockChecksum> RegionEncoder<C> {
    /// Starts a version 2 file with another checksum, which can't be sealed: for benchmarks.
    ///
    /// # Errors
    /// As [`v2`](RegionEncoder::v2).
    pub fn with_checksum(header: &Header, piece_bytes: usize) -> Result<RegionEncoder<C>, EncodeError> {
        let output = PieceOutput::new(piece_bytes, &header.encode()?)?;
        let layout = LayoutV2 {
            header: header.clone(),
            sums: BlockSums::new(header.block_bytes),
            index: IndexBuilder::new(INDEX_STRIDE_DEFAULT),
            histogram: LengthHistogram::default(),
        };
        Ok(RegionEncoder {
            output,
            layout: Layout::V2(Box::new(layout)),
            counts: Counts::default(),
            open: None,
        })
    }

    /// Puts the blobs of the index further apart, for regions of terabytes. Only before the first blob.
    ///
    /// # Errors
    /// [`EncodeError::Field`] if it is 0, if a blob is begun already, or in version 1, which has no index.
    pub fn index_stride(mut self, stride: u32) -> Result<Self, EncodeError> {
        let refuse =
            |expected| Err(EncodeError::Field { field: "index stride", found: stride.into(), expected });
        match &mut self.layout {
            Layout::V1 => refuse("none: version 1 has no index"),
            Layout::V2(_) if self.counts.blobs > 0 => refuse("to be set before the first blob"),
            Layout::V2(_) if stride == 0 => refuse("at least 1"),
            Layout::V2(layout) => {
                layout.index = IndexBuilder::new(stride);
                Ok(self)
            }
        }
    }

    /// Where the next byte will stand in the file.
    pub fn file_offset(&self) -> u64 {
        self.output.at
    }

    /// How many blobs are begun.
    pub fn blob_count(&self) -> u64 {
        self.counts.blobs
    }

    /// Writes one blob.
    ///
    /// # Errors
    /// [`EncodeError`], before anything of the blob is written.
    pub fn put(&mut self, blob: &[u8], piece: &mut [u8]) -> Result<Put, EncodeError> {
        if self.open.is_none() {
            let Ok(len) = u32::try_from(blob.len()) else {
                return Err(EncodeError::BlobTooLong { number: self.counts.blobs, bytes: blob.len() as u64 });
            };
            self.output.check(piece)?;
            self.begin_blob(len)?;
        }
        let open = self.open.as_ref().expect("it was begun just now, or in the last call");
        if blob.len() != open.len as usize {
            return Err(open.bytes_error("another blob followed before they were all there"));
        }
        let mut rest = &blob[open.done as usize..];
        self.append(&mut rest, piece)
    }

    /// Begins a blob whose bytes come in fragments.
    ///
    /// # Errors
    /// [`EncodeError`] if it does not fit, or if the blob before is not whole.
    pub fn begin_blob(&mut self, len: u32) -> Result<(), EncodeError> {
        if let Some(open) = &self.open {
            return Err(open.bytes_error("another blob followed before they were all there"));
        }
        let number = self.counts.blobs;
        if len > BLOB_BYTES_MAX {
            return Err(EncodeError::BlobTooLong { number, bytes: len.into() });
        }
        let full = |what, limit| Err(EncodeError::RegionFull { number, what, limit });
        let at = self.output.next_offset();
        let first = match &mut self.layout {
            Layout::V1 => {
                let first = at + LENGTH_BYTES;
                if first + u64::from(len) > V1_FILE_BYTES_MAX {
                    return full("bytes in version 1", V1_FILE_BYTES_MAX);
                }
                first
            }
            Layout::V2(layout) => {
                let first = first_after(at, layout.header.alignment.into());
                let end_max = first + u64::from(len) + u64::from(ALIGNMENT_MAX);
                if end_max > FILE_BYTES_MAX - TAIL_BYTES_MAX {
                    return full("bytes", FILE_BYTES_MAX - TAIL_BYTES_MAX);
                }
                if end_max / u64::from(layout.header.block_bytes) >= BLOCKS_MAX as u64 {
                    return full("blocks; larger blocks make room", BLOCKS_MAX as u64);
                }
                if layout.index.len() >= INDEX_ENTRIES_MAX {
                    return full("blobs in the index; a larger stride makes room", INDEX_ENTRIES_MAX as u64);
                }
                layout.index.add(number, first);
                layout.histogram.add(len);
                first
            }
        };
        self.counts.add(len);
        self.open = Some(OpenBlob { number, len, head: CellHead { first, word: len }, done: 0 });
        Ok(())
    }

    /// Writes bytes of the blob that was begun, and takes what it has written off `bytes`. The blob
    /// ends with its last byte; an empty one needs a call too.
    ///
    /// # Errors
    /// [`EncodeError::BlobBytes`] if no blob is begun, or if these are more bytes than it has left.
    pub fn append(&mut self, bytes: &mut &[u8], piece: &mut [u8]) -> Result<Put, EncodeError> {
        self.output.check(piece)?;
        let Some(open) = &mut self.open else {
            return Err(EncodeError::BlobBytes {
                number: self.counts.blobs,
                declared: 0,
                given: "it was not begun",
            });
        };
        if bytes.len() > (open.len - open.done) as usize {
            return Err(open.bytes_error("more were given"));
        }
        let output = &mut self.output;
        output.put_start(piece);
        let put = if !output.put_head(open.head, piece) {
            Put::PieceFull
        } else {
            loop {
                // In steps that stay in the nearest cache until they are summed.
                let step = bytes.len().min(SUM_STEP_BYTES);
                let taken = output.put_bytes(&bytes[..step], piece);
                *bytes = &bytes[taken..];
                open.done += taken as u32;
                if taken < step {
                    break Put::PieceFull;
                }
                if bytes.is_empty() {
                    break Put::Done;
                }
                self.layout.sum(output, piece, SUM_STEP_BYTES);
            }
        };
        if put == Put::Done && open.done == open.len {
            self.open = None;
        }
        // What is in a full piece must be summed now; the rest may wait until it is worth the call.
        let least = if put == Put::PieceFull { 1 } else { SUM_STEP_BYTES };
        self.layout.sum(&self.output, piece, least);
        if put == Put::PieceFull {
            self.output.next_piece();
        }
        Ok(put)
    }
}

/// Bytes are summed soon after they are written, while they are in the nearest caches, and not in
/// smaller steps, since a call costs as much as a kilobyte.
const SUM_STEP_BYTES: usize = 32 << 10;

impl<C: BlockChecksum> Layout<C> {
    /// Sums what has been written since the last time, if it is at least this much.
    pub(crate) fn sum(&mut self, output: &PieceOutput, piece: &[u8], least: usize) {
        let Layout::V2(layout) = self else { return };
        let from = layout.sums.at();
        if output.at >= from + least as u64 {
            // All since the last time is in this piece: every full piece was summed to its end.
            let from = (from - output.piece_start) as usize;
            layout.sums.add(&piece[from..output.used()]);
        }
    }
}

impl OpenBlob {
    fn bytes_error(&self, given: &'static str) -> EncodeError {
        EncodeError::BlobBytes { number: self.number, declared: self.len, given }
    }
}

/// What stands before a blob: zeros and its length; or before the body's end: zeros and the end mark.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CellHead {
    /// The offset after it.
    pub(crate) first: u64,
    /// The length, or the end mark.
    pub(crate) word: u32,
}

impl CellHead {
    pub(crate) fn end_mark(at: u64, alignment: u64) -> CellHead {
        CellHead { first: first_after(at, alignment), word: END_MARK }
    }
}

/// Where the next byte goes: the offset in the file, and the place in the caller's piece.
#[derive(Debug)]
pub(crate) struct PieceOutput {
    /// The first bytes of the file; empty once they are written.
    start: Vec<u8>,
    piece_bytes: usize,
    /// The file offset at which the current piece begins. `piece_start <= at <= piece_start + piece_bytes`.
    piece_start: u64,
    pub(crate) at: u64,
}

impl PieceOutput {
    fn new(piece_bytes: usize, start: &[u8]) -> Result<PieceOutput, EncodeError> {
        if piece_bytes == 0 || !piece_bytes.is_multiple_of(PIECE_BYTES_STEP) {
            let found = piece_bytes as u64;
            return Err(EncodeError::Field { field: "piece bytes", found, expected: "a multiple of 2 MiB" });
        }
        Ok(PieceOutput { start: start.to_vec(), piece_bytes, piece_start: 0, at: 0 })
    }

    pub(crate) fn check(&self, piece: &[u8]) -> Result<(), EncodeError> {
        if piece.len() != self.piece_bytes {
            return Err(EncodeError::PieceBytes { found: piece.len(), expected: self.piece_bytes });
        }
        Ok(())
    }

    /// How many bytes of the current piece are written.
    pub(crate) fn used(&self) -> usize {
        (self.at - self.piece_start) as usize
    }

    pub(crate) fn next_piece(&mut self) {
        assert!(self.used() == self.piece_bytes, "only a full piece is followed by another");
        self.piece_start = self.at;
    }

    /// Where the next byte after the start goes.
    pub(crate) fn next_offset(&self) -> u64 {
        self.at + self.start.len() as u64
    }

    /// Writes the first bytes of the file, if they are not written.
    pub(crate) fn put_start(&mut self, piece: &mut [u8]) {
        let start = std::mem::take(&mut self.start);
        let taken = self.put_bytes(&start, piece);
        assert!(taken == start.len(), "the first piece holds the start");
    }

    /// Writes what is missing of a cell's head. Says whether it is whole.
    pub(crate) fn put_head(&mut self, head: CellHead, piece: &mut [u8]) -> bool {
        let zeros_end = head.first - LENGTH_BYTES;
        if self.at < zeros_end {
            let used = self.used();
            let zeros = ((zeros_end - self.at) as usize).min(piece.len() - used);
            piece[used..used + zeros].fill(0);
            self.at += zeros as u64;
        }
        if (zeros_end..head.first).contains(&self.at) {
            let done = (self.at - zeros_end) as usize;
            self.put_bytes(&head.word.to_le_bytes()[done..], piece);
        }
        self.at >= head.first
    }

    /// Writes as much as there is room for, and says how much.
    #[inline]
    pub(crate) fn put_bytes(&mut self, bytes: &[u8], piece: &mut [u8]) -> usize {
        let room = &mut piece[self.used()..];
        let taken = bytes.len().min(room.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.at += taken as u64;
        taken
    }
}

const _: () =
    assert!(BODY_START + V1_BODY_START <= PIECE_BYTES_STEP as u64, "the start fits the first piece");
const _: () = assert!(PIECE_BYTES_STEP.is_multiple_of(PAGE_BYTES), "a page never spans two pieces");

#[cfg(test)]
mod tests {
    use super::*;

    /// An encoder that has come this far: files that large can't be written in a test.
    fn encoder_at(at: u64, header: Header) -> RegionEncoder {
        let mut encoder = RegionEncoder::v2(&header, PIECE_BYTES_STEP).unwrap();
        encoder.output.start.clear();
        encoder.output.at = at;
        encoder
    }

    fn refused(mut encoder: RegionEncoder, len: u32) -> Option<&'static str> {
        let counts = encoder.counts;
        match encoder.begin_blob(len) {
            Ok(()) => None,
            Err(EncodeError::RegionFull { what, .. }) => {
                assert_eq!(encoder.counts, counts, "what is refused changes nothing");
                Some(what)
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_region_ends_before_its_limits() {
        let huge = Header { block_bytes: BLOCK_BYTES_MAX, ..Header::default() };
        let blocks = u64::from(BLOCK_BYTES_MAX) * BLOCKS_MAX as u64;
        assert_eq!(refused(encoder_at(blocks - 10_000, huge.clone()), 100), None);
        assert_eq!(
            refused(encoder_at(blocks - 5_000, huge.clone()), 1000),
            Some("blocks; larger blocks make room")
        );
        assert_eq!(refused(encoder_at(FILE_BYTES_MAX - TAIL_BYTES_MAX - 5_000, huge), 1000), Some("bytes"));
    }

    #[test]
    fn an_index_ends_before_a_reader_refuses_it() {
        let mut encoder = encoder_at(4096, Header::default());
        let Layout::V2(layout) = &mut encoder.layout else { unreachable!("version 2") };
        layout.index = IndexBuilder::with_entries(INDEX_ENTRIES_MAX - 1);
        encoder.begin_blob(0).unwrap();
        encoder.open = None;
        assert_eq!(refused(encoder, 0), Some("blobs in the index; a larger stride makes room"));
    }
}

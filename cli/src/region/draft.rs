//! A region file while it is made, for `pack` and `convert`.

use std::fmt;

use pelton::{EncodeError, Fingerprint, Header, PIECE_BYTES_STEP, Put, RegionEncoder, Sealed};

use crate::failure::Failure;
use crate::output::Output;
use pelton::units::{Size, count};

/// What one write takes.
const PIECE_BYTES: usize = 2 * PIECE_BYTES_STEP;

/// A region file that nobody sees yet: an encoder and the output its pieces go to.
///
/// Blobs come in parts, so that a blob never has to be in memory as a whole.
pub(super) struct RegionDraft {
    output: Output,
    encoder: RegionEncoder,
    piece: Vec<u8>,
    late_header: Option<LateHeader>,
}

/// A header whose fingerprint is that of all blobs, and so known at the end. Until then its page is
/// written without one. That page is not bound to the rest of the file, so it may be replaced.
struct LateHeader {
    header: Header,
    hasher: blake3::Hasher,
}

impl RegionDraft {
    /// Begins a version 2 file with this header as it is. Blobs of the index are `stride` bytes apart.
    pub(super) fn v2(output: Output, header: &Header, stride: u32) -> Result<RegionDraft, Failure> {
        let encoder = RegionEncoder::v2(header, PIECE_BYTES).and_then(|encoder| encoder.index_stride(stride));
        let encoder = encoder.map_err(|error| failure(&output, &error))?;
        Ok(RegionDraft::new(output, encoder))
    }

    /// Begins a version 2 file whose fingerprint is to be made of its blobs.
    pub(super) fn v2_to_fingerprint(
        output: Output,
        header: Header,
        stride: u32,
    ) -> Result<RegionDraft, Failure> {
        let mut draft = RegionDraft::v2(output, &header, stride)?;
        draft.late_header = Some(LateHeader { header, hasher: blake3::Hasher::new() });
        Ok(draft)
    }

    /// Begins a version 1 file.
    pub(super) fn v1(output: Output) -> Result<RegionDraft, Failure> {
        let encoder = RegionEncoder::v1(PIECE_BYTES).map_err(|error| failure(&output, &error))?;
        Ok(RegionDraft::new(output, encoder))
    }

    fn new(output: Output, encoder: RegionEncoder) -> RegionDraft {
        RegionDraft { output, encoder, piece: vec![0; PIECE_BYTES], late_header: None }
    }

    /// The file that it will be.
    pub(super) fn output(&self) -> &Output {
        &self.output
    }

    /// Adds a blob that is in memory.
    pub(super) fn put(&mut self, blob: &[u8]) -> Result<(), Failure> {
        // Longer ones than any blob can be are refused below.
        self.begin(u32::try_from(blob.len()).unwrap_or(u32::MAX))?;
        self.append(blob)
    }

    /// Begins a blob of this length. It ends by itself when that many bytes are appended.
    pub(super) fn begin(&mut self, len: u32) -> Result<(), Failure> {
        if let Some(late) = &mut self.late_header {
            late.hasher.update(&len.to_le_bytes());
        }
        self.encoder.begin_blob(len).map_err(|error| failure(&self.output, &error))?;
        if len == 0 {
            self.encode(&[])?;
        }
        Ok(())
    }

    /// Adds bytes of the blob that was begun.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        // Nothing is also what an empty blob gets; `begin` has ended that already.
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(late) = &mut self.late_header {
            late.hasher.update(bytes);
        }
        self.encode(bytes)
    }

    fn encode(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        loop {
            match self.encoder.append(&mut bytes, &mut self.piece) {
                Ok(Put::Done) => return Ok(()),
                Ok(Put::PieceFull) => self.output.write(&self.piece)?,
                Err(error) => return Err(failure(&self.output, &error)),
            }
        }
    }

    /// Seals the file, and gives it its name.
    pub(super) fn publish(self, metadata: Option<&[u8]>) -> Result<Published, Failure> {
        let RegionDraft { mut output, encoder, mut piece, late_header } = self;
        let mut seal = encoder.seal(metadata).map_err(|error| failure(&output, &error))?;
        while seal.fill(&mut piece).map_err(|error| failure(&output, &error))? == Put::PieceFull {
            output.write(&piece)?;
        }
        output.write(&piece[..seal.piece_used()])?;
        if let Some(LateHeader { mut header, hasher }) = late_header {
            header.fingerprint = Some(Fingerprint::from_bytes(*hasher.finalize().as_bytes()));
            let page = header.encode().map_err(|error| failure(&output, &error))?;
            output.overwrite(0, &page)?;
        }
        let name = crate::failure::shown(output.name());
        output.publish()?;
        Ok(Published { name, sealed: seal.sealed() })
    }
}

/// A region file that everybody sees.
pub(super) struct Published {
    name: String,
    sealed: Sealed,
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Published { name, sealed } = self;
        let (version, blobs) = (sealed.version.number(), count(sealed.blob_count, "blob"));
        write!(f, "{name}: version {version}, {blobs}, {}", Size(sealed.blob_bytes))?;
        write!(f, ", file of {}", Size(sealed.file_bytes))
    }
}

/// What the encoder refuses, it refuses for the file that is made.
fn failure(output: &Output, error: &EncodeError) -> Failure {
    Failure::file(output.name(), error.to_string())
}

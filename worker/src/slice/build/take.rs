//! One region of a slice while its finished file comes from somewhere else.
//!
//! ```text
//! header, tail ─▶ what every block has to be ─▶ body, block by block, each compared ─▶ the tail again, behind it
//! ```
//!
//! The ends come first: they lead to the content id, which is known, so nothing of the body is believed. The bytes go
//! where they stay, an image or a piece for the disk, and are compared there.

use std::ops::Range;

use pelton_region_format::{BlockCheck, FormatError, Frame, Header, PAGE_BYTES, Sealed, Trailer};

use super::{BuildError, BuiltRegion, PieceMemory, Site, Writes};
use crate::budget::ledger::Reservation;
use crate::budget::memory::{MemoryGrant, MemoryUse};
use crate::scan::patience::Patience;
use crate::slice::sealed::SealedRegion;
use crate::slice::space::FileSpace;
use crate::spindle::engine::Op;
use crate::spindle::file::FileMode;

/// Where the body begins.
const BODY_START: u64 = PAGE_BYTES as u64;

/// Why the bytes that came can't be taken.
#[derive(Debug)]
pub(crate) enum TakeError {
    /// Header, trailer or sections are not whole. They are expected again, all of them.
    Ends(Box<FormatError>),
    /// They are whole, and another region's. They are expected again.
    OtherRegion,
    /// A block is not what was written. It is expected again, from its start.
    Block { offset: u64, source: Box<FormatError> },
    /// A block is not what was written, and a part of it is on its way to the disk already: the load is over.
    BlockWritten { source: Box<FormatError> },
    /// The load is over.
    Build(BuildError),
}

impl From<BuildError> for TakeError {
    fn from(error: BuildError) -> TakeError {
        TakeError::Build(error)
    }
}

/// A region whose file comes as it is.
pub(crate) struct RegionTake {
    site: Site,
    region: SealedRegion,
    keeps_image: bool,
    /// What its pieces may use, whoever else wants memory.
    reserve: Option<MemoryGrant>,
    /// What its spindle has promised to its file, until there is one.
    space: Option<Reservation>,
    ends: Option<Ends>,
    body: Option<Body>,
}

/// The header page, and behind it what stands behind the body.
struct Ends {
    bytes: Vec<u8>,
    filled: usize,
    /// What they take of the memory budget.
    _grant: MemoryGrant,
}

struct Body {
    check: BlockCheck,
    sealed: Sealed,
    memory: PieceMemory,
    writes: Writes,
    /// The file offset of the piece that is being filled, and how much of it is.
    piece_start: u64,
    piece_used: usize,
    is_whole: bool,
}

impl RegionTake {
    /// `reserve` is what [`super::PIECES_PER_REGION`] pieces take, `space` what the spindle has promised.
    pub(crate) fn new(
        site: Site,
        region: SealedRegion,
        keeps_image: bool,
        reserve: MemoryGrant,
        space: Reservation,
    ) -> RegionTake {
        let (reserve, space) = (Some(reserve), Some(space));
        RegionTake { site, region, keeps_image, reserve, space, ends: None, body: None }
    }

    /// What was planned.
    pub(crate) fn region(&self) -> &SealedRegion {
        &self.region
    }

    /// The stretch of the file that is wanted next, front to back; nothing when all of it is there.
    pub(crate) fn wanted(&self) -> Option<Range<u64>> {
        let SealedRegion { file_bytes, body_end, .. } = self.region;
        let filled = self.ends.as_ref().map_or(0, |ends| ends.filled as u64);
        match &self.body {
            Some(body) if body.is_whole => None,
            Some(body) => Some(body.check.at()..body_end),
            None if filled < BODY_START => Some(filled..BODY_START),
            None => Some(body_end + (filled - BODY_START)..file_bytes),
        }
    }

    /// Where the next bytes of what is wanted belong: some of them, and none at the end. Waits while memory or the
    /// spindle's queue is used up.
    pub(crate) fn room(&mut self) -> Result<&mut [u8], BuildError> {
        if self.body.is_none() {
            if self.ends.is_none() {
                self.ends = Some(Ends::new(&self.site, &self.region)?);
            }
            let Ends { bytes, filled, .. } = self.ends.as_mut().expect("made just now");
            let end = if *filled < PAGE_BYTES { PAGE_BYTES } else { bytes.len() };
            return Ok(&mut bytes[*filled..end]);
        }
        let body = self.body.as_mut().expect("it has begun");
        let rest = body.check.rest_of_block();
        if body.is_whole || rest.is_empty() {
            return Ok(&mut []);
        }
        body.next_piece_if_full(&self.site)?;
        let len = (rest.end - rest.start).min((self.site.piece_bytes - body.piece_used) as u64) as usize;
        Ok(&mut body.memory.piece()[body.piece_used..][..len])
    }

    /// The first `len` bytes of the room have come.
    ///
    /// # Panics
    /// If the room was smaller.
    pub(crate) fn filled(&mut self, len: usize) -> Result<(), TakeError> {
        if let Some(body) = &mut self.body {
            body.take(len)?;
            if body.check.is_done() && !body.is_whole {
                let tail = &self.ends.as_ref().expect("they stay until the end").bytes[PAGE_BYTES..];
                body.append(&self.site, tail)?;
                body.is_whole = true;
                self.ends = None;
            }
            return Ok(());
        }
        let ends = self.ends.as_mut().expect("what is filled was asked for");
        ends.filled += len;
        assert!(ends.filled <= ends.bytes.len(), "no more than the room");
        if ends.filled < ends.bytes.len() {
            return Ok(());
        }
        match ends.open(&self.region) {
            Ok((check, sealed)) => {
                self.body = Some(self.begin(check, sealed)?);
                Ok(())
            }
            Err(error) => {
                ends.filled = 0;
                Err(error)
            }
        }
    }

    /// Ends a region that is whole.
    pub(crate) fn seal(mut self, patience: &Patience) -> Result<BuiltRegion, BuildError> {
        self.site.patience = patience.clone();
        let Some(body) = self.body.take_if(|body| body.is_whole) else {
            let arrived = self.wanted().map_or(0, |wanted| wanted.start);
            let SealedRegion { index, file_bytes, .. } = self.region;
            return Err(BuildError::Incomplete { index, arrived, file_bytes });
        };
        let Body { memory, mut writes, sealed, piece_used, .. } = body;
        let image = memory.finish(&self.site, &mut writes, piece_used)?;
        Ok(BuiltRegion {
            // The load's deadline and end are not those of its way to the disk.
            site: Site { patience: Patience::default(), ..self.site },
            sealed,
            image,
            writes,
            index: self.region.index,
        })
    }

    /// Its file could not be removed: its space stays counted.
    pub(crate) fn leave_behind(self) {
        if let Some(body) = self.body {
            body.writes.leave_behind();
        }
    }

    fn begin(&mut self, check: BlockCheck, sealed: Sealed) -> Result<Body, BuildError> {
        let site = &self.site;
        let mut memory = PieceMemory::begin(site, self.keeps_image, &mut self.reserve)?;
        let create = Op::CreateFile { path: site.full_path.clone(), mode: FileMode::Direct };
        let file = site.spindle.impellers.run_patiently(site.lane, create, &site.patience)?.into_file();
        let space = self.space.take().expect("a region is begun once");
        let header = &self.ends.as_ref().expect("they are there").bytes[..PAGE_BYTES];
        memory.piece()[..PAGE_BYTES].copy_from_slice(header);
        let space = FileSpace::new(site.spindle.clone(), space);
        let writes = Writes::new(file, space, self.reserve.take());
        Ok(Body { check, sealed, memory, writes, piece_start: 0, piece_used: PAGE_BYTES, is_whole: false })
    }
}

impl Ends {
    fn new(site: &Site, region: &SealedRegion) -> Result<Ends, BuildError> {
        let bytes = PAGE_BYTES as u64 + region.tail_bytes();
        let grant = site.budget.take_patiently(MemoryUse::Buffers, bytes, &site.patience)?;
        Ok(Ends { bytes: vec![0; bytes as usize], filled: 0, _grant: grant })
    }

    /// Checks all that can be checked without the body, and that it is the region that was planned.
    fn open(&self, planned: &SealedRegion) -> Result<(BlockCheck, Sealed), TakeError> {
        let ends = |source| TakeError::Ends(Box::new(source));
        let (page, tail) = self.bytes.split_at(PAGE_BYTES);
        let header = Header::decode(page).map_err(ends)?;
        let last_page = &tail[tail.len() - PAGE_BYTES..];
        let trailer = Trailer::decode(last_page, &header, planned.file_bytes).map_err(ends)?;
        if trailer.body_end != planned.body_end {
            return Err(TakeError::OtherRegion); // Then this is not its tail either.
        }
        let frame = Frame::open(header, trailer, tail).map_err(ends)?;
        if SealedRegion::of(planned.index, &frame) != *planned {
            return Err(TakeError::OtherRegion);
        }
        Ok((BlockCheck::new(&frame), frame.trailer().sealed()))
    }
}

impl Body {
    /// The first `len` bytes of the rest of the piece have come.
    fn take(&mut self, len: usize) -> Result<(), TakeError> {
        let came = &self.memory.piece()[self.piece_used..][..len];
        let Err(source) = self.check.feed(came) else {
            self.piece_used += len;
            return Ok(());
        };
        let source = Box::new(source);
        let offset = self.check.at(); // The start of the block, once more.
        if offset < self.piece_start {
            return Err(TakeError::BlockWritten { source });
        }
        self.piece_used = (offset - self.piece_start) as usize;
        Err(TakeError::Block { offset, source })
    }

    /// Copies what stands behind the body.
    fn append(&mut self, site: &Site, mut bytes: &[u8]) -> Result<(), BuildError> {
        while !bytes.is_empty() {
            self.next_piece_if_full(site)?;
            let room = &mut self.memory.piece()[self.piece_used..];
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.piece_used += now.len();
            bytes = later;
        }
        Ok(())
    }

    fn next_piece_if_full(&mut self, site: &Site) -> Result<(), BuildError> {
        if self.piece_used == site.piece_bytes {
            self.memory.advance(site, &mut self.writes)?;
            self.piece_start += site.piece_bytes as u64;
            self.piece_used = 0;
        }
        Ok(())
    }
}

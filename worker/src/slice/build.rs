//! One region of a slice while it is written: the encoder, its memory, and the pieces on their way.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;
use pelton_region_format::{EncodeError, Header, Put, RegionEncoder, RegionSeal, Sealed};

use crate::budget::ledger::{Reservation, Stored};
use crate::budget::memory::{MemoryBudget, MemoryGrant, MemoryRefused};
use crate::region::arena::{FrozenBytes, Image, ImageWriter, PieceBuffer};
use crate::scan::patience::Patience;
use crate::slice::ahead::Ahead;
use crate::slice::space::FileSpace;
use crate::spindle::engine::{DiskError, IoBytes, Op, Outcome};
use crate::spindle::file::{FileMode, SpindleFile};
use crate::spindle::held::Spindle;
use crate::spindle::impeller::{Completion, Lane, Refusal, Replies, Reply, replies};
use crate::spindle::refusal::SpindleRefusal;

/// Why a load can't go on. Whatever it had written is removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BuildError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Memory(#[from] MemoryRefused),
    #[error("could not get memory for a region")]
    Arena(#[source] std::io::Error),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl From<DiskError> for BuildError {
    fn from(error: DiskError) -> BuildError {
        BuildError::Write(WriteError::Disk(error))
    }
}

/// Why bytes did not get to a spindle.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[non_exhaustive]
pub enum WriteError {
    /// The disk refused: look at it.
    Disk(#[from] DiskError),
    /// The spindle has no room for more: flush something.
    NoRoom(#[from] SpindleRefusal),
}

/// Where the region goes, and what it may use.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) spindle: Arc<Spindle>,
    /// In the spindle's folder, and the whole of it.
    pub(crate) path: String,
    pub(crate) full_path: PathBuf,
    pub(crate) lane: Lane,
    pub(crate) budget: MemoryBudget,
    pub(crate) ahead: Arc<Ahead>,
    pub(crate) piece_bytes: usize,
    pub(crate) image_bytes_max: usize,
    /// How long its load waits: to the load's deadline or end.
    pub(crate) patience: Patience,
}

/// A region that blobs are put into.
///
/// It makes its file with its first blob, so a region without one leaves none.
pub(crate) struct RegionBuild {
    site: Site,
    header: Header,
    keeps_image: bool,
    /// What its pieces may use, whoever else wants memory: so every load that is open can end. Its writes have it once
    /// it is begun.
    reserve: Option<MemoryGrant>,
    /// What its spindle has promised to its file, until there is one.
    space: Option<Reservation>,
    begun: Option<Begun>,
}

/// How many pieces a region without an image has: one is filled while the other is on its way.
pub(crate) const PIECES_PER_REGION: usize = 2;

struct Begun {
    encoder: RegionEncoder,
    memory: PieceMemory,
    writes: Writes,
}

/// Where pieces come from.
enum PieceMemory {
    /// They are stretches of an image, which stays.
    Image { image: Box<ImageWriter> },
    /// They are used again and again.
    Reused { current: Option<PieceBuffer> },
}

/// A region that is sealed: its bytes are on their way to the disk, or there.
pub(crate) struct BuiltRegion {
    pub(crate) site: Site,
    pub(crate) sealed: Sealed,
    pub(crate) image: Option<Image>,
    pub(crate) writes: Writes,
    index: u32,
}

impl BuiltRegion {
    /// Which region of its slice.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

impl RegionBuild {
    /// `reserve` is what [`PIECES_PER_REGION`] pieces take, `space` what the spindle has promised.
    pub(crate) fn new(
        site: Site,
        header: Header,
        keeps_image: bool,
        reserve: MemoryGrant,
        space: Reservation,
    ) -> RegionBuild {
        RegionBuild { site, header, keeps_image, reserve: Some(reserve), space: Some(space), begun: None }
    }

    /// Copies one blob into the region. Waits while memory or the spindle's queue is used up.
    pub(crate) fn put(&mut self, blob: &[u8]) -> Result<(), BuildError> {
        if self.begun.is_none() {
            self.begun = Some(self.begin()?);
        }
        let begun = self.begun.as_mut().expect("it was begun just now");
        loop {
            let put = begun.encoder.put(blob, begun.memory.piece())?;
            if put == Put::Done {
                return Ok(());
            }
            begun.memory.advance(&self.site, &mut begun.writes)?;
        }
    }

    /// Writes what comes after the last blob. Nothing for a region that never got one.
    pub(crate) fn seal(mut self, patience: &Patience) -> Result<Option<BuiltRegion>, BuildError> {
        self.site.patience = patience.clone();
        let Some(Begun { encoder, mut memory, mut writes }) = self.begun.take() else { return Ok(None) };
        let mut seal: RegionSeal = encoder.seal(None)?;
        while seal.fill(memory.piece())? == Put::PieceFull {
            memory.advance(&self.site, &mut writes)?;
        }
        let image = memory.finish(&self.site, &mut writes, seal.piece_used())?;
        Ok(Some(BuiltRegion {
            // The load's deadline and end are not those of its way to the disk.
            site: Site { patience: Patience::default(), ..self.site.clone() },
            sealed: seal.sealed(),
            image,
            writes,
            index: self.header.region_index,
        }))
    }

    /// Its file could not be removed: its space stays counted.
    pub(crate) fn leave_behind(self) {
        if let Some(begun) = self.begun {
            begun.writes.leave_behind();
        }
    }

    fn begin(&mut self) -> Result<Begun, BuildError> {
        let site = &self.site;
        let encoder = RegionEncoder::v2(&self.header, site.piece_bytes)?;
        let create = Op::CreateFile { path: site.full_path.clone(), mode: FileMode::Direct };
        let file = site.spindle.impellers.run_patiently(site.lane, create, &site.patience)?.into_file();
        let memory = PieceMemory::begin(site, self.keeps_image, &mut self.reserve)?;
        let space = self.space.take().expect("a region is begun once");
        let space = FileSpace::new(site.spindle.clone(), space);
        Ok(Begun { encoder, memory, writes: Writes::new(file, space, self.reserve.take()) })
    }
}

impl PieceMemory {
    /// As an image if that is wanted and the budget has room now; else through the reserved pieces.
    fn begin(
        site: &Site,
        keeps_image: bool,
        reserve: &mut Option<MemoryGrant>,
    ) -> Result<PieceMemory, BuildError> {
        if keeps_image && let Ok(first) = site.budget.try_take_for_image(site.piece_bytes as u64) {
            let image =
                ImageWriter::new(site.piece_bytes, site.image_bytes_max, first).map_err(BuildError::Arena)?;
            return Ok(PieceMemory::Image { image: Box::new(image) });
        }
        Ok(PieceMemory::Reused { current: Some(reserved_piece(site, reserve)?) })
    }

    fn piece(&mut self) -> &mut [u8] {
        match self {
            PieceMemory::Image { image } => image.piece(),
            PieceMemory::Reused { current } => current.as_mut().expect("there is always a current piece"),
        }
    }

    /// The piece is full: it goes to the disk, and another one comes.
    fn advance(&mut self, site: &Site, writes: &mut Writes) -> Result<(), BuildError> {
        match self {
            PieceMemory::Image { image } => {
                let Ok(more) = site.budget.try_take_for_image(site.piece_bytes as u64) else {
                    return self.give_up_image(site, writes);
                };
                // The system has no more of it for us: what there is can still be written.
                let Ok(full) = image.next_piece(more) else { return self.give_up_image(site, writes) };
                site.ahead.piece_begun(site.piece_bytes);
                let len = full.len();
                writes.submit(site, Box::new(full), len, false)?;
                // What failed meanwhile does not stop an image: it can be scanned, and written elsewhere.
                writes.collect_ready();
            }
            PieceMemory::Reused { current } => {
                let full = current.take().expect("there is always a current piece");
                let len = full.len();
                writes.submit(site, Box::new(full), len, false)?;
                *current = Some(writes.free_piece(site)?);
            }
        }
        Ok(())
    }

    /// The budget does not allow the image to grow: what it has goes to the disk, and its memory back.
    fn give_up_image(&mut self, site: &Site, writes: &mut Writes) -> Result<(), BuildError> {
        let next = PieceMemory::begin(site, false, &mut writes.reserve)?;
        let PieceMemory::Image { image } = std::mem::replace(self, next) else {
            unreachable!("only an image is given up")
        };
        let (full, image) = image.seal(site.piece_bytes);
        let len = full.len();
        writes.submit(site, Box::new(full), len, false)?;
        drop(image);
        writes.drain(&site.patience)?;
        Ok(())
    }

    /// The last piece, of which `used` bytes count.
    fn finish(self, site: &Site, writes: &mut Writes, used: usize) -> Result<Option<Image>, BuildError> {
        match self {
            PieceMemory::Image { image } => {
                let (last, image) = image.seal(used);
                writes.submit(site, Box::new(last), used, true)?;
                Ok(Some(image))
            }
            PieceMemory::Reused { current } => {
                let last = current.expect("there is always a current piece");
                writes.submit(site, Box::new(last), used, true)?;
                Ok(None)
            }
        }
    }
}

/// A piece of the reserve. It keeps its share of it wherever it goes: a disk may hold it longer than its load.
fn reserved_piece(site: &Site, reserve: &mut Option<MemoryGrant>) -> Result<PieceBuffer, BuildError> {
    let piece = PieceBuffer::new(site.piece_bytes, site.budget.paging()).map_err(BuildError::Arena)?;
    let reserve = reserve.as_mut().expect("the reserve goes when nothing more is written");
    Ok(piece.counted(reserve.split(site.piece_bytes as u64)))
}

/// Marks the reply to a request for space; the other bits say how much.
const SPACE_TAG: u64 = 1 << 63;

/// The writes of one region file: what is on its way, what came back, and the first failure.
pub(crate) struct Writes {
    file: Arc<SpindleFile>,
    replies: Replies,
    completions: Receiver<Completion>,
    in_flight: usize,
    offset: u64,
    pieces: usize,
    failed: Option<WriteError>,
    free: Vec<PieceBuffer>,
    /// What pieces that are not made yet may take of the budget; given back when nothing is on its way.
    reserve: Option<MemoryGrant>,
    space: FileSpace,
}

impl Writes {
    fn new(file: Arc<SpindleFile>, space: FileSpace, reserve: Option<MemoryGrant>) -> Writes {
        let (replies, completions) = replies();
        Writes {
            file,
            replies,
            completions,
            in_flight: 0,
            offset: 0,
            pieces: 1,
            failed: None,
            free: Vec::new(),
            reserve,
            space,
        }
    }

    /// Queues the next bytes of the file. Waits while the spindle's queue is full. After a failure there is
    /// nothing more to be written: whoever waits is told.
    fn submit(
        &mut self,
        site: &Site,
        bytes: Box<dyn IoBytes>,
        len: usize,
        last: bool,
    ) -> Result<(), BuildError> {
        if len == 0 {
            return Ok(());
        }
        let end = self.offset + len as u64;
        if self.failed.is_none() {
            let before = self.space.asked();
            match self.space.cover(end, last) {
                Ok(None) => {}
                Ok(Some(target)) => {
                    // Nobody waits for it: a write that comes first takes its space itself.
                    let op = Op::Allocate { file: self.file.clone(), bytes: target };
                    self.send(site, op, self.replies.tag(SPACE_TAG | (target - before)))?;
                }
                Err(refusal) => self.failed = Some(refusal.into()),
            }
        }
        if self.failed.is_none() {
            let op = Op::Write { file: self.file.clone(), offset: self.offset, bytes, len };
            self.send(site, op, self.replies.tag(self.offset))?;
        }
        self.offset = end;
        Ok(())
    }

    fn send(&mut self, site: &Site, op: Op, reply: Reply) -> Result<(), BuildError> {
        let subject = op.subject();
        let submitted = site.spindle.impellers.submit_patiently(site.lane, op, reply, &site.patience);
        submitted.map_err(|refused| refused.reason.of(&subject))?;
        self.in_flight += 1;
        Ok(())
    }

    fn collect(&mut self, completion: Completion) {
        self.in_flight -= 1;
        match completion.result {
            Ok(Outcome::Written(bytes)) => {
                if let Ok(piece) = bytes.into_any().downcast::<PieceBuffer>() {
                    self.free.push(*piece);
                }
            }
            Ok(_) => self.space.allocated(completion.tag & !SPACE_TAG),
            Err(error)
                if completion.tag & SPACE_TAG != 0 && error.kind() == std::io::ErrorKind::Unsupported =>
            {
                // This file system gives space only to what is written.
                self.space.not_ahead();
            }
            // The first one says what happened; those after it are the same disk.
            Err(error) => _ = self.failed.get_or_insert(error.into()),
        }
    }

    fn collect_ready(&mut self) {
        while let Ok(completion) = self.completions.try_recv() {
            self.collect(completion);
        }
    }

    /// A piece to fill: a new one while there may be more, else the next that comes back.
    fn free_piece(&mut self, site: &Site) -> Result<PieceBuffer, BuildError> {
        self.collect_ready();
        loop {
            if let Some(error) = self.failed.take() {
                return Err(error.into());
            }
            if let Some(piece) = self.free.pop() {
                return Ok(piece);
            }
            if self.pieces < PIECES_PER_REGION {
                self.pieces += 1;
                return reserved_piece(site, &mut self.reserve);
            }
            self.wait_for_one(&site.patience)?;
        }
    }

    fn wait_for_one(&mut self, patience: &Patience) -> Result<(), DiskError> {
        assert!(self.in_flight > 0, "a piece that is not free is on its way");
        match patience.receive(&self.completions) {
            Ok(completion) => {
                self.collect(completion.expect("this end of the channel is kept, too"));
                Ok(())
            }
            Err(impatience) => {
                let subject = Op::SyncData { file: self.file.clone() }.subject();
                Err(Refusal::from(impatience).of(&subject))
            }
        }
    }

    /// Waits until nothing is on its way.
    fn drain(&mut self, patience: &Patience) -> Result<(), DiskError> {
        while self.in_flight > 0 {
            self.wait_for_one(patience)?;
        }
        Ok(())
    }

    /// Waits until nothing is on its way, and brings the file to the disk, with the length of what was written.
    ///
    /// # Errors
    /// The first failure. It is final: the file must not be synced again, nor trusted.
    pub(crate) fn sync(&mut self, site: &Site, deadline: Option<Instant>) -> Result<(), WriteError> {
        self.drain(&Patience::until(deadline))?;
        self.free.clear();
        self.reserve = None;
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let run = |op| site.spindle.impellers.run_in(site.lane, op, deadline);
        if self.space.asked() > self.offset {
            // Gives back what was taken beyond: the length is this one already.
            run(Op::SetLength { file: self.file.clone(), bytes: self.offset })?;
        }
        run(Op::SyncData { file: self.file.clone() })?;
        Ok(())
    }

    /// The file is one of a slice that exists now.
    pub(crate) fn keep(self) -> Arc<Stored> {
        self.space.keep(self.offset)
    }

    /// The file could not be removed: its space stays counted.
    pub(crate) fn leave_behind(self) {
        self.space.leave_behind();
    }

    /// Starts over in another file, from the image: after its spindle has failed.
    pub(crate) fn again(
        site: &Site,
        image: &Image,
        space: Reservation,
        deadline: Option<Instant>,
    ) -> Result<Writes, BuildError> {
        let create = Op::CreateFile { path: site.full_path.clone(), mode: FileMode::Direct };
        let file = site.spindle.impellers.run_in(site.lane, create, deadline)?.into_file();
        let mut writes = Writes::new(file, FileSpace::new(site.spindle.clone(), space), None);
        let mut at = 0;
        while at < image.len() {
            let len = site.piece_bytes.min(image.len() - at);
            let stretch: FrozenBytes = image.stretch(at, len);
            at += len;
            writes.submit(site, Box::new(stretch), len, at == image.len())?;
        }
        Ok(writes)
    }
}

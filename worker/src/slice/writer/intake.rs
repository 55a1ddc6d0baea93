//! Taking in one region as the bytes of its finished file.

use std::ops::Range;
use std::sync::Arc;

use pelton_region_format::{FormatError, Key};

use super::{Call, Load, LoadError, SliceWriter};
use crate::scan::patience::{Impatience, Patience};
use crate::slice::build::{Build, RegionTake, TakeError};
use crate::slice::sealed::SealedRegion;

/// Takes one sealed region's bytes: from one thread at a time, while others take other regions.
///
/// It says which bytes of the file it [wants](RegionIntake::wanted) next and gives the memory where they stay; whoever
/// transports them puts them there. The header and what stands behind the body come first: they say what every block of
/// the body has to be, so that each is compared as it arrives, and nobody needs to be trusted.
///
/// ```no_run
/// # use std::io::Read;
/// # fn example(writer: &pelton_worker::SliceWriter, mut open: impl FnMut(std::ops::Range<u64>) -> std::fs::File)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// let mut intake = writer.region_intake(0)?;
/// while let Some(range) = intake.wanted() {
///     let mut source = open(range.clone());
///     while intake.wanted().is_some_and(|wanted| wanted.end == range.end) {
///         let came = source.read(intake.room()?)?;
///         intake.filled(came)?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// Dropping it lets another thread go on where it was. [`SliceWriter::wait_for_writes`] waits for those that are not
/// dropped.
pub struct RegionIntake {
    load: Arc<Load>,
    /// Keeps the load from being sealed.
    call: Call,
    /// Which of the load's files.
    turn: usize,
    /// There until it is dropped.
    take: Option<Box<RegionTake>>,
}

/// Why bytes of a region were not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IntakeError {
    /// A block is not what was written: get it again, here or elsewhere. It is what is wanted next.
    #[error("region {index} of {key} came with a damaged block at offset {offset}")]
    Block {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// Where the block begins.
        offset: u64,
        /// Which block, and its checksums.
        source: Box<FormatError>,
    },
    /// The header, or what stands behind the body, is not whole: get both again, here or elsewhere.
    #[error("region {index} of {key} came with a damaged header or end")]
    Ends {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
        /// What does not hold.
        source: Box<FormatError>,
    },
    /// The header and the end are whole, but another region's than the plan says. Ask again what there is.
    #[error("region {index} of {key} is another one than was told")]
    OtherRegion {
        /// The slice.
        key: Key,
        /// Which region.
        index: u32,
    },
    /// The load is over.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl SliceWriter {
    /// Takes in one of the plan's [sealed](crate::LoadPlan::sealed) regions. Waits while somebody else is at it.
    ///
    /// # Errors
    /// [`LoadError::NoRegion`] if the plan does not have it; others if the load is over.
    pub fn region_intake(&self, index: u32) -> Result<RegionIntake, LoadError> {
        let (load, key) = (self.load.clone(), || self.key().clone());
        let sealed = load.plan.sealed.as_deref().unwrap_or_default();
        let turn = sealed.binary_search_by_key(&index, |region| region.index);
        let turn = turn.map_err(|_| LoadError::NoRegion { key: key(), index })?;
        let call = load.call()?;
        let patience = Patience { stop: Some(load.over.clone()), ..Patience::until(load.plan.deadline) };
        let build =
            patience.receive(&call.draft.regions[turn].next).map_err(|impatience| match impatience {
                Impatience::Late => LoadError::Late { key: key() },
                Impatience::Cancelled => load.is_over(),
            })?;
        match build.expect("this end of the channel is kept, too") {
            Build::Taken(take) => Ok(RegionIntake { load, call, turn, take: Some(take) }),
            Build::Dealt(_) => unreachable!("a plan with sealed regions makes these"),
        }
    }
}

impl RegionIntake {
    /// What the plan says of it.
    pub fn region(&self) -> &SealedRegion {
        self.take.as_ref().expect("there until it is dropped").region()
    }

    /// The stretch of the file that is wanted next, in file offsets: its bytes are to come in order. Nothing when all of
    /// the region is there.
    ///
    /// It shrinks from the front as bytes come. A file comes in three stretches: header, end, body.
    pub fn wanted(&self) -> Option<Range<u64>> {
        self.take.as_ref().expect("there until it is dropped").wanted()
    }

    /// Where the next bytes of what is wanted belong; empty when nothing is. Waits while memory or the disk's queue is
    /// used up. What is written there counts only when [`Self::filled`] says so.
    ///
    /// # Errors
    /// [`LoadError`], and the load is over.
    pub fn room(&mut self) -> Result<&mut [u8], LoadError> {
        if self.load.over.is_cancelled() {
            return Err(self.load.is_over());
        }
        let take = self.take.as_mut().expect("there until it is dropped");
        let load = &self.load;
        take.room().map_err(|error| load.build_error(error)).inspect_err(|error| load.fail(error))
    }

    /// The first `bytes` of the room have come.
    ///
    /// # Errors
    /// [`IntakeError`]. After all but `Load` the region goes on: [`Self::wanted`] says with what.
    ///
    /// # Panics
    /// If the room was smaller.
    pub fn filled(&mut self, bytes: usize) -> Result<(), IntakeError> {
        let take = self.take.as_mut().expect("there until it is dropped");
        let Err(error) = take.filled(bytes) else { return Ok(()) };
        let (key, index) = (self.load.entry.key.clone(), take.region().index);
        let error = match error {
            TakeError::Block { offset, source } => {
                return Err(IntakeError::Block { key, index, offset, source });
            }
            TakeError::Ends(source) => return Err(IntakeError::Ends { key, index, source }),
            TakeError::OtherRegion => return Err(IntakeError::OtherRegion { key, index }),
            TakeError::BlockWritten { source } => LoadError::Damaged { key, index, source },
            TakeError::Build(error) => self.load.build_error(error),
        };
        self.load.fail(&error);
        Err(error.into())
    }

    /// Copies the next bytes of what is wanted, for a transport that has them elsewhere. They must not reach beyond it.
    ///
    /// # Errors
    /// As [`Self::filled`]. Nothing behind a wrong block is taken.
    ///
    /// # Panics
    /// If they reach beyond what is wanted.
    pub fn put(&mut self, mut bytes: &[u8]) -> Result<(), IntakeError> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            assert!(!now.is_empty(), "no more than is wanted");
            room[..now.len()].copy_from_slice(now);
            self.filled(now.len())?;
            bytes = later;
        }
        Ok(())
    }
}

impl Drop for RegionIntake {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.load.end(|| "a call panicked".to_owned());
        }
        if let Some(take) = self.take.take() {
            let _ = self.call.draft.regions[self.turn].back.send(Build::Taken(take)); // It was taken out of there.
        }
    }
}

impl std::fmt::Debug for RegionIntake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegionIntake")
            .field("key", &self.load.entry.key)
            .field("region", &self.region().index)
            .field("wanted", &self.wanted())
            .finish_non_exhaustive()
    }
}

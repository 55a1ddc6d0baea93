//! The cursor that a fold gets: a region's blobs, whether they lie in memory or come from the disk.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pelton_region_format::{BlobCursor, FormatError};

use crate::budget::memory::MemoryRefused;
use crate::region::watermark::RegionFault;
use crate::scan::patience::{Impatience, Patience};
use crate::scan::stream::RegionStream;
use crate::snap::hot::HotRegion;
use crate::snap::warm::WarmError;
use crate::spindle::engine::DiskError;

/// How far a scan of bytes in memory goes between two looks at whether it should go on: 1/2 ms or so.
const STRETCH_BYTES: u64 = 4 << 20;

/// The blobs of one region, or of a part of one, in order.
///
/// Each blob can be looked at until the next is asked for: then its memory may be used for others. Where the
/// region lies in memory blobs are seen in place; where it comes from the disk, in a buffer.
pub struct Blobs<'a> {
    /// Over the bytes in memory, held before those that may not be read yet; over nothing for a stream.
    cursor: BlobCursor<'a>,
    source: Source<'a>,
    waited: Duration,
    /// What ended it early. It says so again whenever it is asked.
    fault: Option<FoldError>,
}

#[allow(clippy::large_enum_variant, reason = "there is one for each region that is scanned")]
enum Source<'a> {
    Memory { region: &'a HotRegion, patience: &'a Patience },
    Stream(RegionStream<'a>),
}

/// Why a fold ended early. Hand it on by `?`: the scan then fails and says why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FoldError {
    /// The bytes do not hold what the format promises.
    #[error("the region is damaged")]
    Damaged(#[source] Box<FormatError>),
    /// The disk refused to read.
    #[error("the region could not be read")]
    Disk(#[source] Arc<DiskError>),
    /// The region could not be brought into memory as far as the scan wanted to go.
    #[error("the region could not be brought into memory")]
    Warm(#[source] Arc<WarmError>),
    /// The region's file became shorter under the scan.
    #[error("the region lost its file's end")]
    Lost,
    /// The memory budget has no room for a blob that is larger than a stream's buffers, or for the buffers.
    #[error("the stream of the region got no memory")]
    Memory(#[source] MemoryRefused),
    /// The system gave no memory although the budget did.
    #[error("the stream of the region got no memory from the system")]
    System(#[source] Arc<std::io::Error>),
    /// The scan's deadline passed.
    #[error("the scan's deadline passed")]
    Late,
    /// Somebody cancelled the scan, or another region of it failed.
    #[error("the scan was cancelled")]
    Cancelled,
    /// The caller's own reason.
    #[error("the scan's own code failed")]
    Caller(#[source] Box<dyn Error + Send + Sync>),
}

impl<'a> Blobs<'a> {
    pub(crate) fn in_memory(
        mut cursor: BlobCursor<'a>,
        region: &'a HotRegion,
        patience: &'a Patience,
    ) -> Blobs<'a> {
        cursor.limit(0); // Nothing before the first look.
        let source = Source::Memory { region, patience };
        Blobs { cursor, source, waited: Duration::ZERO, fault: None }
    }

    pub(crate) fn streamed(stream: RegionStream<'a>) -> Blobs<'a> {
        let source = Source::Stream(stream);
        Blobs { cursor: BlobCursor::default(), source, waited: Duration::ZERO, fault: None }
    }

    /// The next blob, or nothing after the last one.
    ///
    /// # Errors
    /// [`FoldError`]. It stays: a fold that swallows it fails all the same.
    #[inline]
    #[allow(clippy::should_implement_trait, reason = "a blob is lent until the next call")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, FoldError> {
        match self.cursor.next() {
            Ok(Some(blob)) => Ok(Some(blob)),
            Ok(None) => self.next_slowly(),
            Err(error) => Err(self.fail(error.into())),
        }
    }

    /// How long it has waited for bytes.
    pub(crate) fn waited(&self) -> Duration {
        match &self.source {
            Source::Memory { .. } => self.waited,
            Source::Stream(stream) => stream.waited(),
        }
    }

    /// What ended it early, if something did.
    pub(crate) fn into_fault(self) -> Option<FoldError> {
        self.fault
    }

    /// At the end of a stretch of memory; and every blob of a stream.
    #[inline(never)]
    fn next_slowly(&mut self) -> Result<Option<&[u8]>, FoldError> {
        if let Some(fault) = &self.fault {
            return Err(fault.again());
        }
        let next = match &mut self.source {
            Source::Memory { region, patience } => {
                next_in_memory(&mut self.cursor, region, patience, &mut self.waited)
            }
            Source::Stream(stream) => stream.next(),
        };
        next.inspect_err(|fault| self.fault = Some(fault.again()))
    }

    #[cold]
    fn fail(&mut self, fault: FoldError) -> FoldError {
        self.fault = Some(fault.again());
        fault
    }
}

/// Goes on to the next stretch, as far as it may be read.
fn next_in_memory<'a>(
    cursor: &mut BlobCursor<'a>,
    region: &'a HotRegion,
    patience: &Patience,
    waited: &mut Duration,
) -> Result<Option<&'a [u8]>, FoldError> {
    while let Some(wanted) = cursor.wanted() {
        patience.check()?;
        let begun = Instant::now();
        let readable = region.readable(wanted - 1, patience)?;
        *waited += begun.elapsed();
        let stretch_end = wanted.saturating_add(STRETCH_BYTES);
        // Where the file ends the format decides, not the limit.
        let all = readable >= region.bytes().len() && stretch_end >= readable;
        cursor.extend(region.bytes().bytes());
        cursor.limit(if all { u64::MAX } else { readable.min(stretch_end) });
        if let Some(blob) = cursor.next()? {
            return Ok(Some(blob));
        }
    }
    Ok(None)
}

impl FoldError {
    /// A reason of the caller's own, which the scan's error then carries.
    pub fn caller(error: impl Into<Box<dyn Error + Send + Sync>>) -> FoldError {
        FoldError::Caller(error.into())
    }

    /// The same once more.
    fn again(&self) -> FoldError {
        match self {
            FoldError::Damaged(error) => FoldError::Damaged(error.clone()),
            FoldError::Disk(error) => FoldError::Disk(error.clone()),
            FoldError::Warm(error) => FoldError::Warm(error.clone()),
            FoldError::Lost => FoldError::Lost,
            FoldError::Memory(refused) => FoldError::Memory(refused.clone()),
            FoldError::System(error) => FoldError::System(error.clone()),
            FoldError::Late => FoldError::Late,
            FoldError::Cancelled => FoldError::Cancelled,
            FoldError::Caller(error) => FoldError::Caller(error.to_string().into()),
        }
    }
}

impl From<FormatError> for FoldError {
    #[cold]
    fn from(error: FormatError) -> FoldError {
        FoldError::Damaged(Box::new(error))
    }
}

impl From<Box<dyn Error + Send + Sync>> for FoldError {
    fn from(error: Box<dyn Error + Send + Sync>) -> FoldError {
        FoldError::Caller(error)
    }
}

impl From<Impatience> for FoldError {
    fn from(impatience: Impatience) -> FoldError {
        match impatience {
            Impatience::Late => FoldError::Late,
            Impatience::Cancelled => FoldError::Cancelled,
        }
    }
}

impl From<RegionFault> for FoldError {
    fn from(fault: RegionFault) -> FoldError {
        match fault {
            RegionFault::Impatience(impatience) => impatience.into(),
            RegionFault::Failed(why) => match &*why {
                WarmError::Damaged { source, .. } => source.clone().into(),
                _ => FoldError::Warm(why),
            },
        }
    }
}

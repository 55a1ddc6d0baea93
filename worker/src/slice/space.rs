//! The disk space of one region file: promised by its spindle, taken from the disk ahead of the writes, kept.

use std::sync::Arc;

use crate::budget::ledger::{DISK_PAGE_BYTES, Reservation, Stored};
use crate::spindle::held::Spindle;
use crate::spindle::refusal::SpindleRefusal;

/// How much is taken at once, at most.
const STEP_BYTES_MAX: u64 = 64 << 20;
/// And by how much of itself a file grows at once. So much it may hold beyond what it will need, until it is
/// sealed, while other loads are refused: doubling was too much.
const STEP_SHARE: u64 = 16;

/// The space of one region file while it is written.
///
/// It grows with the file, in steps of at least a piece: a small file takes little that others may need, and a
/// large one asks rarely. Invariant: `asked <= reservation`.
pub(crate) struct FileSpace {
    spindle: Arc<Spindle>,
    reservation: Reservation,
    /// Up to where the disk was asked for space.
    asked: u64,
    /// Whether the file system can be asked ahead of the writes.
    ahead: bool,
}

impl FileSpace {
    /// Of a file that is not begun, with what is promised to it.
    pub(crate) fn new(spindle: Arc<Spindle>, reservation: Reservation) -> FileSpace {
        FileSpace { spindle, reservation, asked: 0, ahead: true }
    }

    /// Makes sure that a write up to `end` is promised, and something beyond if it is not the last one. Says up
    /// to where the disk is to be asked for space before that write, if it is.
    ///
    /// # Errors
    /// The spindle is full.
    pub(crate) fn cover(&mut self, end: u64, last: bool) -> Result<Option<u64>, SpindleRefusal> {
        if end <= self.asked {
            return Ok(None);
        }
        let needed = end.next_multiple_of(DISK_PAGE_BYTES);
        let promised = self.reservation.bytes();
        let step = match (last, needed <= promised) {
            (true, _) => 0,
            (false, true) => STEP_BYTES_MAX,
            (false, false) => (self.asked / STEP_SHARE).min(STEP_BYTES_MAX),
        };
        let wished = needed.max((self.asked + step).next_multiple_of(DISK_PAGE_BYTES));
        let mut target = wished;
        if wished > promised {
            if needed <= promised {
                // First all that was promised: most files end there.
                target = promised;
            } else if self.spindle.grow(&mut self.reservation, wished - promised).is_err() {
                self.spindle.grow(&mut self.reservation, needed - promised)?;
                target = needed;
            }
        }
        let before = std::mem::replace(&mut self.asked, target);
        if !self.ahead {
            self.allocated(target - before); // By the write itself, as nearly as can be told.
            return Ok(None);
        }
        Ok(Some(target))
    }

    /// The disk gave so many bytes.
    pub(crate) fn allocated(&mut self, bytes: u64) {
        self.spindle.room.allocated(&mut self.reservation, bytes);
    }

    /// This file system gives no space ahead of the writes.
    pub(crate) fn not_ahead(&mut self) {
        self.ahead = false;
    }

    /// Up to where the disk may have given space.
    pub(crate) fn asked(&self) -> u64 {
        self.asked
    }

    /// The file is written and has this length. What was promised beyond is free again.
    pub(crate) fn keep(self, file_bytes: u64) -> Arc<Stored> {
        Arc::new(self.reservation.keep(file_bytes.next_multiple_of(DISK_PAGE_BYTES)))
    }

    /// The file could not be removed: it counts until the cache is closed.
    pub(crate) fn leave_behind(self) {
        let bytes = self.reservation.bytes();
        self.spindle.room.leave_behind(Arc::new(self.reservation.keep(bytes)));
    }
}

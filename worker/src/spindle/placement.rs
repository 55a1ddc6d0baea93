//! Which spindles a load goes to.

use std::sync::Arc;

use crate::budget::ledger::{DISK_PAGE_BYTES, Reservation};
use crate::spindle::health::HealthState;
use crate::spindle::held::Spindle;
use crate::spindle::refusal::SpindleRefusal;

/// What a region takes beyond its blobs when it has few: header, sections, trailer.
const REGION_FRAME_BYTES: u64 = 4 * DISK_PAGE_BYTES;

/// Where nobody said how much will come: a spindle with so much less room than the roomiest gets no region.
const ROOM_SHARE_MIN: u64 = 8;

/// How much disk space a load's regions are promised, each in its place.
#[derive(Clone, Debug)]
pub(crate) struct RegionSizes {
    each: Vec<u64>,
    /// Whether more may come than anybody said.
    is_open: bool,
}

impl RegionSizes {
    /// For a load that is dealt evenly, of about so many bytes if somebody said so.
    pub(crate) fn dealt(region_count: u32, expected_bytes: Option<u64>) -> RegionSizes {
        let regions = u64::from(region_count.max(1));
        let region_bytes = expected_bytes.unwrap_or(0).div_ceil(regions).min(u64::MAX / 4 / regions);
        let region_bytes = region_bytes.next_multiple_of(DISK_PAGE_BYTES) + REGION_FRAME_BYTES;
        RegionSizes { each: vec![region_bytes; region_count as usize], is_open: expected_bytes.is_none() }
    }

    /// For files that are known.
    pub(crate) fn exactly(file_bytes: impl Iterator<Item = u64>) -> RegionSizes {
        RegionSizes { each: file_bytes.collect(), is_open: false }
    }

    /// Which of the candidates are taken, in their order, and how much each is to promise.
    pub(crate) fn shares(&self, candidates: &[usize]) -> Vec<(usize, u64)> {
        let count = candidates.len().min(self.each.len().max(1));
        let on = |place: usize| self.each.iter().skip(place).step_by(count);
        let share = |place: usize| on(place).fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        candidates[..count].iter().enumerate().map(|(place, &number)| (number, share(place))).collect()
    }
}

/// Where a load goes, and what was promised to it there.
pub(crate) struct Placement {
    /// The numbers of its spindles. Region n goes to the n-th of them, counted around.
    pub(crate) spindles: Vec<usize>,
    /// For each region.
    pub(crate) space: Vec<Reservation>,
}

/// Deals a load's regions over the spindles that have room and work, from `first` on, and takes the room.
///
/// # Errors
/// No spindle takes it; each says why.
pub(crate) fn place(
    all: &[Arc<Spindle>],
    first: usize,
    sizes: &RegionSizes,
) -> Result<Placement, Vec<SpindleRefusal>> {
    let mut refusals = Vec::new();
    let mut candidates = Vec::new();
    for number in (0..all.len()).map(|i| (first + i) % all.len()) {
        match all[number].takes_work() {
            Ok(()) => candidates.push(number),
            Err(refusal) => refusals.push(refusal),
        }
    }
    if sizes.is_open {
        let most = candidates.iter().map(|&number| all[number].room.free()).max().unwrap_or(0);
        candidates.retain(|&number| all[number].room.free() >= most / ROOM_SHARE_MIN);
    }
    // Those that had faults lately only where the others do not suffice.
    let trusted = candidates.iter().copied().filter(|&n| all[n].watch.state() == HealthState::Ok).collect();
    deal(all, trusted, sizes).or_else(|_| deal(all, candidates, sizes)).map_err(|full| {
        refusals.extend(full);
        refusals
    })
}

/// Over all of the candidates; without the one that refuses; and so on.
fn deal(
    all: &[Arc<Spindle>],
    mut candidates: Vec<usize>,
    sizes: &RegionSizes,
) -> Result<Placement, Vec<SpindleRefusal>> {
    let mut refusals = Vec::new();
    while !candidates.is_empty() {
        let shares = sizes.shares(&candidates);
        let reserve = |(place, &(number, bytes)): (usize, &(usize, u64))| {
            all[number].reserve(bytes).map_err(|refusal| (place, refusal))
        };
        match shares.iter().enumerate().map(reserve).collect::<Result<Vec<Reservation>, _>>() {
            Ok(mut promised) => {
                let spindles: Vec<usize> = shares.iter().map(|(number, _)| *number).collect();
                let split = |(region, bytes): (usize, &u64)| promised[region % spindles.len()].split(*bytes);
                let space = sizes.each.iter().enumerate().map(split).collect();
                return Ok(Placement { spindles, space });
            }
            Err((place, refusal)) => {
                candidates.remove(place);
                refusals.push(refusal);
            }
        }
    }
    Err(refusals)
}

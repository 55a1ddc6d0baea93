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
    region_count: u32,
    expected_bytes: Option<u64>,
) -> Result<Placement, Vec<SpindleRefusal>> {
    let mut refusals = Vec::new();
    let mut candidates = Vec::new();
    for number in (0..all.len()).map(|i| (first + i) % all.len()) {
        match all[number].takes_work() {
            Ok(()) => candidates.push(number),
            Err(refusal) => refusals.push(refusal),
        }
    }
    if expected_bytes.is_none() {
        let most = candidates.iter().map(|&number| all[number].room.free()).max().unwrap_or(0);
        candidates.retain(|&number| all[number].room.free() >= most / ROOM_SHARE_MIN);
    }
    let region_bytes = region_bytes(region_count, expected_bytes);
    // Those that had faults lately only where the others do not suffice.
    let trusted = candidates.iter().copied().filter(|&n| all[n].watch.state() == HealthState::Ok).collect();
    deal(all, trusted, region_count, region_bytes)
        .or_else(|_| deal(all, candidates, region_count, region_bytes))
        .map_err(|full| {
            refusals.extend(full);
            refusals
        })
}

/// How much is promised to each region.
pub(crate) fn region_bytes(region_count: u32, expected_bytes: Option<u64>) -> u64 {
    let regions = u64::from(region_count.max(1));
    let region_bytes = expected_bytes.unwrap_or(0).div_ceil(regions).min(u64::MAX / 4 / regions);
    region_bytes.next_multiple_of(DISK_PAGE_BYTES) + REGION_FRAME_BYTES
}

/// Which of the candidates are taken, in their order, and how much each is to promise.
pub(crate) fn shares(candidates: &[usize], region_count: u32, region_bytes: u64) -> Vec<(usize, u64)> {
    let spindles = &candidates[..candidates.len().min(region_count.max(1) as usize)];
    let count_on = |place: usize| (place..region_count as usize).step_by(spindles.len()).count() as u64;
    spindles.iter().enumerate().map(|(place, &number)| (number, count_on(place) * region_bytes)).collect()
}

/// Over all of the candidates; without the one that refuses; and so on.
fn deal(
    all: &[Arc<Spindle>],
    mut candidates: Vec<usize>,
    region_count: u32,
    region_bytes: u64,
) -> Result<Placement, Vec<SpindleRefusal>> {
    let mut refusals = Vec::new();
    while !candidates.is_empty() {
        let shares = shares(&candidates, region_count, region_bytes);
        let reserve = |(place, &(number, bytes)): (usize, &(usize, u64))| {
            all[number].reserve(bytes).map_err(|refusal| (place, refusal))
        };
        match shares.iter().enumerate().map(reserve).collect::<Result<Vec<Reservation>, _>>() {
            Ok(mut promised) => {
                let spindles: Vec<usize> = shares.iter().map(|(number, _)| *number).collect();
                let space = (0..region_count as usize)
                    .map(|region| promised[region % spindles.len()].split(region_bytes))
                    .collect();
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

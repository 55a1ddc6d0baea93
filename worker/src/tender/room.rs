//! Room for loads and warmings that find none: what is worth least goes for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::policy::{NoRoom, Place, Wanted};
use super::run::{Turn, clear};
use crate::cache::CacheCore;
use crate::scan::patience::Patience;
use crate::spindle::placement::{Placement, place, region_bytes, shares};
use crate::spindle::refusal::{RefusalReason, SpindleRefusal};

/// How often room is made anew that somebody else has taken meanwhile.
const TRIES_MAX: usize = 3;

/// How long whoever needs the room waits until files are gone. Removing a file takes milliseconds, unless its disk hangs.
const CLEAR_WAIT_MAX: Duration = Duration::from_secs(10);

/// Makes room for so many bytes in memory, if there is none and enough may go. Whoever takes the memory while it has the
/// turn finds it there; unless somebody was quicker who asks nobody, and then it waits or is refused as ever.
pub(crate) fn make_room_in_memory<'a>(
    core: &'a Arc<CacheCore>,
    bytes: u64,
    patience: &Patience,
) -> Option<Turn<'a>> {
    if !core.tender.is_on {
        return None;
    }
    let patience = &shortened(patience);
    let turn = core.tender.memory_turns.wait(patience);
    for _ in 0..TRIES_MAX {
        let counts = core.budget.counts();
        // Whoever waits already comes first.
        let wanted = counts.residence_waited_for.saturating_add(bytes);
        let free = counts.residence_max.saturating_sub(counts.images + counts.mapped);
        if wanted <= free || patience.check().is_err() {
            break;
        }
        let wanted = Wanted { memory: wanted, spindles: Vec::new() };
        if !matches!(clear(core, &wanted, now_ms(core), patience), Ok(true)) {
            break;
        }
    }
    turn
}

/// Places a load's regions. Where no spindle has room for them, flushes what is worth least, if that is enough.
///
/// # Errors
/// No spindle takes it even then; each says why.
pub(crate) fn place_with_room(
    core: &Arc<CacheCore>,
    first: usize,
    region_count: u32,
    expected_bytes: Option<u64>,
    patience: &Patience,
) -> Result<Placement, Vec<SpindleRefusal>> {
    let patience = &shortened(patience);
    let mut placed = place(&core.spindles, first, region_count, expected_bytes);
    if placed.is_err() {
        // Files whose last map has just gone may be on their way out.
        core.warmth.reaper.settle();
        placed = place(&core.spindles, first, region_count, expected_bytes);
    }
    if placed.is_ok() || !core.tender.is_on {
        return placed;
    }
    let turn = core.tender.disk_turns.wait(patience);
    if turn.is_some() {
        placed = place(&core.spindles, first, region_count, expected_bytes);
    }
    for _ in 0..TRIES_MAX {
        let Err(refusals) = &mut placed else { break };
        if patience.check().is_err() {
            break;
        }
        if !clear_disks(core, first, region_count, expected_bytes, refusals, patience) {
            break;
        }
        placed = place(&core.spindles, first, region_count, expected_bytes);
    }
    placed
}

/// Flushes for a load that was refused. Says whether something went; otherwise the refusals say how much more could.
fn clear_disks(
    core: &Arc<CacheCore>,
    first: usize,
    region_count: u32,
    expected_bytes: Option<u64>,
    refusals: &mut [SpindleRefusal],
    patience: &Patience,
) -> bool {
    let spindles = &core.spindles;
    let is_out = |number: &usize| {
        let of = |refusal: &&SpindleRefusal| refusal.folder == spindles[*number].folder;
        !refusals.iter().find(of).is_none_or(|refusal| matches!(refusal.reason, RefusalReason::Full(_)))
    };
    let in_turn = (0..spindles.len()).map(|i| (first + i) % spindles.len());
    let mut candidates: Vec<usize> = in_turn.filter(|number| !is_out(number)).collect();
    let bytes = region_bytes(region_count, expected_bytes);
    // Over all of them; without the one that can't; and so on. As placing does.
    while !candidates.is_empty() {
        let dealt = shares(&candidates, region_count, bytes);
        let wanted = Wanted { memory: 0, spindles: dealt };
        match clear(core, &wanted, now_ms(core), patience) {
            Ok(went) => return went,
            Err(no_room) => {
                let Place::Spindle(full) = no_room.place else { return false };
                candidates.retain(|number| *number != full);
                say_how_much(&mut *refusals, spindles[full].folder.as_path(), no_room);
            }
        }
    }
    false
}

fn say_how_much(refusals: &mut [SpindleRefusal], folder: &std::path::Path, no_room: NoRoom) {
    // Where nothing may go, what the ledger says is all there is to say.
    if let Some(refusal) = refusals.iter_mut().find(|refusal| refusal.folder == folder)
        && no_room.freeable > 0
    {
        refusal.reason = RefusalReason::NoRoom(no_room);
    }
}

fn shortened(patience: &Patience) -> Patience {
    let longest = Instant::now() + CLEAR_WAIT_MAX;
    let deadline = Some(patience.deadline.map_or(longest, |deadline| deadline.min(longest)));
    Patience { deadline, ..patience.clone() }
}

fn now_ms(core: &CacheCore) -> u64 {
    core.runner.now().as_millis() as u64
}

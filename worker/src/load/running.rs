//! A load by a loader, from the command to its end.
//!
//! ```text
//! start load ─▶ open ─▶ fill, by the loader ─▶ seal ─▶ close      the decider hears how it ended
//!                 └──────────┴── cancel, deadline, error, panic ─▶ nothing is left
//! ```

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, bounded};

use crate::cache::{CacheCore, Entry, Snap};
use crate::events::{Event, reason};
use crate::load::fill::Fill;
use crate::load::{AnyLoader, Counts, LoaderError};
use crate::scan::cancel::CancelToken;
use crate::scan::patience::{Impatience, Patience};
use crate::scan::pool::message_of;
use crate::slice::plan::{LoadPlan, Unwanted};
use crate::slice::writer::LoadHandle;
use crate::snap::state::{SnapEvent, Version};

/// A load that the decider may have begun.
#[derive(Clone)]
pub(crate) struct Offer {
    pub(crate) plan: Arc<LoadPlan>,
    pub(crate) loader: Arc<dyn AnyLoader>,
}

/// The load of a snap that its loader is at.
pub(crate) struct Running {
    pub(crate) version: Version,
    cancel: CancelToken,
    unwanted: Unwanted,
    /// There when it is open.
    handle: Option<LoadHandle>,
    /// Whether it is to end: then whoever opens it ends it.
    is_stopped: bool,
}

impl Running {
    /// Whether it ends when nobody waits for it.
    pub(crate) fn ends_unwanted(&self) -> bool {
        self.unwanted == Unwanted::Cancel
    }
}

/// Begins what the decider commands.
pub(crate) fn start(core: Arc<CacheCore>, entry: Arc<Entry>, version: Version, offer: Offer) {
    let cancel = CancelToken::new();
    let running = Running {
        version,
        cancel: cancel.clone(),
        unwanted: offer.plan.unwanted,
        handle: None,
        is_stopped: false,
    };
    entry.facts().running = Some(running);
    if core.is_closed() {
        stop(&entry, version); // Whoever closed may have looked before.
    }
    let under_way = core.runner.loads.begin(entry.key.clone());
    let of_thread = entry.clone();
    let run = move || {
        run(&core, &of_thread, version, &offer, &cancel);
        forget(&of_thread, version);
        drop((core, offer)); // Before it is told: they may be the last ones.
        drop(under_way);
    };
    let spawned = thread::Builder::new().name("pelton-load".to_owned()).spawn(run);
    if let Err(error) = spawned {
        forget(&entry, version);
        entry.facts().load_error = Some(format!("the system gave no thread: {error}"));
        entry.report(SnapEvent::LoadFailed { version });
    }
}

/// Ends a load soon: at once for what it has written, and for its loader when that looks.
pub(crate) fn stop(entry: &Arc<Entry>, version: Version) {
    let (cancel, handle) = {
        let mut facts = entry.facts();
        let Some(running) = facts.running.as_mut().filter(|running| running.version == version) else {
            return;
        };
        running.is_stopped = true;
        (running.cancel.clone(), running.handle.take())
    };
    cancel.cancel(); // Outside of the lock: it wakes whoever watches.
    if let Some(handle) = handle {
        // What it has written goes with it, and that may wait for a disk.
        entry.end_load(move || handle.cancel());
    }
}

fn forget(entry: &Entry, version: Version) {
    let mut facts = entry.facts();
    if facts.running.as_ref().is_some_and(|running| running.version == version) {
        facts.running = None;
    }
}

fn run(core: &Arc<CacheCore>, entry: &Arc<Entry>, version: Version, offer: &Offer, cancel: &CancelToken) {
    let patience = Patience { cancel: Some(cancel.clone()), ..Patience::until(offer.plan.deadline) };
    let plan = LoadPlan::clone(&offer.plan);
    let snap = Snap::new(core.clone(), entry.clone());
    // What it failed with is noted and reported there.
    let Ok(writer) = snap.open_begun(version, plan.clone(), &patience) else { return };
    let handle = writer.handle();
    if !hand_over(entry, version, &handle) {
        return handle.cancel();
    }
    let fill = Fill::new(writer, plan, cancel.clone());
    let (ended, end) = bounded(0);
    watch_deadline(&fill, handle.clone(), end);
    let filled = catch_unwind(AssertUnwindSafe(|| offer.loader.fill(&fill)));
    drop(ended);
    let counts = match filled {
        // Nothing is known against the slice: its end came from outside.
        _ if cancel.is_cancelled() => return handle.cancel(),
        Ok(Ok(counts)) => counts,
        Ok(Err(error)) => return handle.fail(reason(&error)),
        Err(panic) => return handle.fail(format!("its loader panicked: {}", message_of(panic))),
    };
    seal(entry, fill, counts);
}

/// Lets others end a load that is open. Says whether it is still to go on.
fn hand_over(entry: &Entry, version: Version, handle: &LoadHandle) -> bool {
    let mut facts = entry.facts();
    match facts.running.as_mut().filter(|running| running.version == version) {
        Some(running) if !running.is_stopped => {
            running.handle = Some(handle.clone());
            true
        }
        _ => false,
    }
}

/// Ends the load at its deadline, also if its loader hangs.
fn watch_deadline(fill: &Fill, handle: LoadHandle, end: Receiver<Infallible>) {
    let Some(deadline) = fill.deadline() else { return };
    let cancel = fill.cancel().clone();
    let watch = move || {
        if let Err(Impatience::Late) = Patience::until(Some(deadline)).receive(&end) {
            handle.fail(reason(&LoaderError::Late));
            cancel.cancel();
        }
    };
    // Without a thread the deadline holds for all but a loader that hangs.
    let _ = thread::Builder::new().name("pelton-load-clock".to_owned()).spawn(watch);
}

/// All has come: seals it, compares the counts, and hands it to the cache.
fn seal(entry: &Arc<Entry>, fill: Fill, counts: Counts) {
    let plan = fill.plan().clone();
    // What fails is noted and reported by the load itself.
    let Ok(mut sealed) = fill.into_writer().wait_for_writes() else { return };
    let arrived = sealed.blob_count();
    if let Some(expected) = counts.expected.filter(|expected| *expected != arrived) {
        let (key, fingerprint) = (entry.key.clone(), plan.fingerprint);
        entry.events().tell(|| Event::LoadInvalid { key, fingerprint, expected, arrived });
        if plan.strict_counts {
            return sealed.fail(format!("its source meant to send {expected} blobs, {arrived} have arrived"));
        }
    }
    sealed.tell(counts);
    // Who waits for it to be durable is told by the cache; who leases it need not wait for that.
    let _ = sealed.close_for_writes();
}

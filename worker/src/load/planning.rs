//! Asking a loader for its plan: once, for all who want it at the same time.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::cache::{CacheCore, Entry};
use crate::events::{Event, reason};
use crate::load::{AnyLoader, LoaderError};
use crate::scan::cancel::CancelToken;
use crate::scan::patience::{Impatience, Patience};
use crate::scan::pool::message_of;
use crate::slice::plan::{LoadPlan, REGIONS_MAX};
use crate::slice::sealed::NotASlice;
use crate::snap::state::SnapEvent;

/// A plan that is being asked for.
pub(crate) struct Planning {
    /// Written once, by the thread that asks, before it hangs up.
    answer: OnceLock<Result<Arc<LoadPlan>, PlanError>>,
    /// Hangs up when the answer is there.
    ended: Receiver<Infallible>,
    /// Cancelled when the cache closes: then nobody waits for it any more.
    pub(crate) cancel: CancelToken,
}

/// Why there is no plan.
#[derive(Clone, Debug)]
pub(crate) enum PlanError {
    /// The source has no such slice.
    NotThere,
    /// The loader has failed, and why.
    Failed(String),
    /// It has failed before, and is not asked until then.
    NotYet { until: Duration },
    /// The asker's own deadline.
    Late,
    /// The asker does not want it any more, or the cache is closed.
    Cancelled,
}

/// The loader's plan for a slice, as soon as it is there.
pub(crate) fn plan(
    core: &Arc<CacheCore>,
    entry: &Arc<Entry>,
    loader: &Arc<dyn AnyLoader>,
    patience: &Patience,
) -> Result<Arc<LoadPlan>, PlanError> {
    if let Some(until) = entry.desk.look(|snap| snap.plan_failed_until(entry.now())) {
        return Err(PlanError::NotYet { until });
    }
    let (planning, line) = join_or_begin(entry);
    if core.is_closed() {
        // Whoever closed may have looked before this one began.
        planning.cancel.cancel();
    }
    if let Some(line) = line {
        ask(core, entry, loader.clone(), planning.clone(), line);
    }
    let patience = Patience { stop: Some(planning.cancel.clone()), ..patience.clone() };
    match patience.receive(&planning.ended) {
        Err(Impatience::Late) => Err(PlanError::Late),
        Err(Impatience::Cancelled) => Err(PlanError::Cancelled),
        Ok(_) => planning.answer.get().cloned().unwrap_or(Err(PlanError::Cancelled)),
    }
}

/// What is being asked already; else a new one, with the line that hangs up at its end.
fn join_or_begin(entry: &Entry) -> (Arc<Planning>, Option<Sender<Infallible>>) {
    let mut facts = entry.facts();
    if let Some(planning) = &facts.planning {
        return (planning.clone(), None);
    }
    let (line, ended) = bounded(0);
    let planning = Planning { answer: OnceLock::new(), ended, cancel: CancelToken::new() };
    let planning = facts.planning.insert(Arc::new(planning)).clone();
    (planning, Some(line))
}

/// Asks on a thread of its own: the loader may take longer than who waits.
fn ask(
    core: &Arc<CacheCore>,
    entry: &Arc<Entry>,
    loader: Arc<dyn AnyLoader>,
    planning: Arc<Planning>,
    line: Sender<Infallible>,
) {
    let under_way = core.runner.loads.begin(entry.key.clone());
    // Hangs up only when the answer is there, also if there is no thread.
    let _line = line.clone();
    let (of_thread, shared) = (entry.clone(), planning.clone());
    let run = move || {
        let patience = Patience { stop: Some(shared.cancel.clone()), ..Patience::default() };
        let planned = catch_unwind(AssertUnwindSafe(|| loader.plan(&of_thread.key, &patience)));
        let planned = match planned {
            Ok(Ok(plan)) => check(plan).map(Arc::new),
            Ok(Err(LoaderError::NotThere)) => Err(PlanError::NotThere),
            Ok(Err(LoaderError::Cancelled)) if shared.cancel.is_cancelled() => Err(PlanError::Cancelled),
            Ok(Err(error)) => Err(PlanError::Failed(reason(&error))),
            Err(panic) => Err(PlanError::Failed(format!("its loader panicked: {}", message_of(panic)))),
        };
        drop(loader); // Before it is told: it may be the last one, and own anything.
        end(&of_thread, &shared, planned);
        drop(line);
        drop(under_way);
    };
    let spawned = thread::Builder::new().name("pelton-plan".to_owned()).spawn(run);
    if let Err(error) = spawned {
        end(entry, &planning, Err(PlanError::Failed(format!("the system gave no thread: {error}"))));
    }
}

fn check(plan: LoadPlan) -> Result<LoadPlan, PlanError> {
    // What the cache's own default is, is fine.
    match plan.check(1) {
        Err(NotASlice::RegionCount { found }) => Err(PlanError::Failed(format!(
            "its plan deals over {found} regions, allowed is 1 to {REGIONS_MAX}"
        ))),
        Err(error) => Err(PlanError::Failed(format!("its plan is no slice: {error}"))),
        Ok(()) => Ok(plan),
    }
}

/// Notes the answer, for who waits; and who asks from here on asks anew, or not yet.
fn end(entry: &Arc<Entry>, planning: &Planning, planned: Result<Arc<LoadPlan>, PlanError>) {
    if let Err(PlanError::Failed(why)) = &planned {
        entry.facts().load_error = Some(why.clone());
        entry.report(SnapEvent::PlanFailed);
        entry.events().tell(|| Event::PlanFailed { key: entry.key.clone(), why: why.clone() });
    }
    let _ = planning.answer.set(planned); // Nobody else sets it.
    entry.facts().planning = None;
}

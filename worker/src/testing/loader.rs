//! A loader that fails as told.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pelton_region_format::{Fingerprint, Key};

use crate::load::fill::Fill;
use crate::load::{Counts, Loader, LoaderError};
use crate::scan::patience::Patience;
use crate::slice::plan::LoadPlan;

/// What goes wrong with one plan or fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoaderFault {
    /// It answers an error; a fill after half of its blobs.
    Fail,
    /// It panics; a fill after half of its blobs.
    Panic,
    /// It says that there is no such slice.
    NotThere,
    /// It waits until it is cancelled or let go; a fill after half of its blobs.
    Hang,
    /// It waits until it is let go, cancelled or not.
    HangForEver,
    /// It works, but takes so long, unless it is cancelled.
    Slow(Duration),
    /// A fill sends its blobs, and says that it meant to send so many more.
    Lie(u64),
    /// A fill sends nothing.
    Empty,
}

/// A loader of made-up slices that fails as told. Clones are the same loader.
///
/// Every slice has so many blobs, which tell their key, generation and number: see [`FaultyLoader::blob`]. Each plan and
/// each fill takes its next fault, if one is left; without any it works.
#[derive(Clone, Debug)]
pub struct FaultyLoader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    blob_count: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    plan: Option<LoadPlan>,
    plan_faults: VecDeque<LoaderFault>,
    fill_faults: VecDeque<LoaderFault>,
    plans: u64,
    fills: u64,
    hangs: u64,
    let_go: bool,
}

impl FaultyLoader {
    /// One whose slices have so many blobs, of generation 0.
    pub fn new(blob_count: u64) -> FaultyLoader {
        FaultyLoader {
            shared: Arc::new(Shared { blob_count, state: Mutex::default(), changed: Condvar::new() }),
        }
    }

    /// From here on the slices are of that generation: another fingerprint, and other blobs.
    pub fn set_generation(&self, generation: u64) {
        self.lock().generation = generation;
    }

    /// From here on plans are like this one, but for the fingerprint.
    pub fn set_plan(&self, plan: LoadPlan) {
        self.lock().plan = Some(plan);
    }

    /// What goes wrong with the next plans, one after the other.
    pub fn fail_plans(&self, faults: impl IntoIterator<Item = LoaderFault>) {
        self.lock().plan_faults.extend(faults);
    }

    /// What goes wrong with the next fills, one after the other.
    pub fn fail_fills(&self, faults: impl IntoIterator<Item = LoaderFault>) {
        self.lock().fill_faults.extend(faults);
    }

    /// Ends all hanging, now and later.
    pub fn let_go(&self) {
        self.lock().let_go = true;
        self.shared.changed.notify_all();
    }

    /// How often it was asked for a plan.
    pub fn plans(&self) -> u64 {
        self.lock().plans
    }

    /// How often it has begun to fill.
    pub fn fills(&self) -> u64 {
        self.lock().fills
    }

    /// Waits until so many of its plans and fills have begun to hang. Says whether they have, in time.
    pub fn wait_for_hangs(&self, hangs: u64, deadline: Instant) -> bool {
        let mut state = self.lock();
        while state.hangs < hangs {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// A blob of a slice.
    pub fn blob(key: &Key, generation: u64, number: u64) -> Vec<u8> {
        format!("{key} of generation {generation}: blob {number}").into_bytes()
    }

    /// The fingerprint of a generation.
    pub fn fingerprint(generation: u64) -> Fingerprint {
        Fingerprint::builder().format("made up").number("generation", generation).finish()
    }

    fn send(&self, fill: &Fill, generation: u64, numbers: std::ops::Range<u64>) -> Result<(), LoaderError> {
        let mut packer = fill.packer();
        for number in numbers {
            packer.push(&FaultyLoader::blob(fill.key(), generation, number))?;
        }
        packer.finish()
    }

    fn hang(&self, fault: Option<LoaderFault>, patience: &Patience) -> Result<(), LoaderError> {
        match fault {
            Some(LoaderFault::Fail) => Err(LoaderError::failed("the source fails, as told")),
            Some(LoaderFault::Panic) => panic!("the loader panics, as told"),
            Some(LoaderFault::NotThere) => Err(LoaderError::NotThere),
            Some(LoaderFault::Slow(time)) => {
                let patience = Patience { deadline: Some(Instant::now() + time), ..patience.clone() };
                match patience.receive(&crossbeam_channel::never::<()>()) {
                    Err(crate::scan::patience::Impatience::Cancelled) => Err(LoaderError::Cancelled),
                    _ => Ok(()),
                }
            }
            Some(fault @ (LoaderFault::Hang | LoaderFault::HangForEver)) => {
                self.wait_to_be_let_go(fault, patience)
            }
            _ => Ok(()),
        }
    }

    fn wait_to_be_let_go(&self, fault: LoaderFault, patience: &Patience) -> Result<(), LoaderError> {
        let waker = std::task::Waker::from(self.shared.clone());
        let _watches = patience.watch(&waker);
        let mut state = self.lock();
        state.hangs += 1;
        self.shared.changed.notify_all();
        loop {
            if fault == LoaderFault::Hang && patience.check().is_err() {
                return Err(LoaderError::Cancelled);
            }
            if state.let_go {
                return Ok(());
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::task::Wake for Shared {
    fn wake(self: Arc<Self>) {
        drop(self.state.lock()); // Whoever has looked, and does not wait yet, waits by now.
        self.changed.notify_all();
    }
}

impl Loader for FaultyLoader {
    fn plan(&self, _: &Key) -> Result<LoadPlan, LoaderError> {
        let (plan, fault) = {
            let mut state = self.lock();
            state.plans += 1;
            let fingerprint = FaultyLoader::fingerprint(state.generation);
            let plan = state.plan.clone().unwrap_or_else(|| LoadPlan::new(fingerprint));
            (LoadPlan { fingerprint, ..plan }, state.plan_faults.pop_front())
        };
        // Nobody cancels a plan: only one that is let go ends.
        self.hang(fault, &Patience::default())?;
        Ok(plan)
    }

    fn fill(&self, fill: &Fill) -> Result<Counts, LoaderError> {
        let (generation, fault) = {
            let mut state = self.lock();
            state.fills += 1;
            (state.generation, state.fill_faults.pop_front())
        };
        let all = if fault == Some(LoaderFault::Empty) { 0 } else { self.shared.blob_count };
        self.send(fill, generation, 0..all / 2)?;
        let patience = Patience { cancel: Some(fill.cancel().clone()), ..Patience::default() };
        self.hang(fault, &patience)?;
        self.send(fill, generation, all / 2..all)?;
        let more = if let Some(LoaderFault::Lie(more)) = fault { more } else { 0 };
        Ok(Counts { expected: Some(all + more), ..Counts::default() })
    }
}

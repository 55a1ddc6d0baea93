//! The health of a spindle while it is in use: what its operations came to, and when it is to be probed.

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::spindle::engine::DiskError;
use crate::spindle::health::{Health, HealthEvent, HealthLimits, HealthState, is_disk_fault};
use crate::spindle::impeller::Watched;
use crate::stats::meter::OpMeter;

/// Told by the impellers of all that ends, which it also counts; asked by whoever wants to place a load.
pub(crate) struct SpindleWatch {
    opened: Instant,
    pub(crate) hung_after: Duration,
    pub(crate) ops: OpMeter,
    watched: Mutex<State>,
    /// Set once, by the cache; hears of each change after it.
    hears: OnceLock<Hears>,
}

/// Told of each new state, with the last fault unless nothing is wrong.
type Hears = Box<dyn Fn(HealthState, Option<String>) + Send + Sync>;

#[derive(Debug)]
struct State {
    health: Health,
    /// The last thing that went wrong, for people.
    last_fault: Option<String>,
    /// Somebody is finding out whether the disk works again.
    probed: bool,
}

impl State {
    fn fault(&self) -> Option<String> {
        (self.health.state() != HealthState::Ok).then(|| self.last_fault.clone()).flatten()
    }
}

impl SpindleWatch {
    pub(crate) fn new(limits: HealthLimits, ops: OpMeter) -> SpindleWatch {
        SpindleWatch {
            ops,
            opened: Instant::now(),
            hung_after: limits.hung_after,
            watched: Mutex::new(State { health: Health::new(limits), last_fault: None, probed: false }),
            hears: OnceLock::new(),
        }
    }

    /// From here on each new state is told, on the thread that brings it about.
    pub(crate) fn tell_changes(&self, hears: impl Fn(HealthState, Option<String>) + Send + Sync + 'static) {
        let first = self.hears.set(Box::new(hears)).is_ok();
        assert!(first, "a spindle is one cache's");
    }

    /// Takes in an operation that ended.
    pub(crate) fn ended(&self, watched: &Watched<'_>) {
        self.ops.ended(watched.kind, watched.moved, watched.error.is_none());
        let event = match watched.error {
            None => HealthEvent::Done { bytes: watched.bytes, took: watched.took },
            Some(error @ DiskError::Failed { source, .. }) if is_disk_fault(source) => {
                return self.fault(HealthEvent::Failed, error);
            }
            // It says nothing about the disk.
            Some(_) => return,
        };
        self.change(|state| _ = state.health.on(self.opened.elapsed(), event));
    }

    /// Takes in that something went wrong.
    pub(crate) fn fault(&self, event: HealthEvent, error: &DiskError) {
        // Outside of the lock.
        let text = match error.source() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        self.change(|state| {
            state.last_fault = Some(text);
            state.health.on(self.opened.elapsed(), event);
        });
    }

    /// Where the spindle stands.
    pub(crate) fn state(&self) -> HealthState {
        self.change(|state| {
            // A quarantine ends with a probe, and this caller makes none.
            if state.health.state().takes_work() {
                state.health.on(self.opened.elapsed(), HealthEvent::Tick);
            }
            state.health.state()
        })
    }

    /// The last thing that went wrong, while the spindle is not trusted for it.
    pub(crate) fn last_fault(&self) -> Option<String> {
        self.lock().fault()
    }

    /// Whether new loads may go there. Where a probe is due the caller's is asked, and its answer counts.
    pub(crate) fn takes_work(&self, probe: impl FnOnce() -> Result<(), DiskError>) -> bool {
        let known = self.change(|state| {
            state.health.on(self.opened.elapsed(), HealthEvent::Tick);
            if state.health.state() != HealthState::Probing || state.probed {
                return Some(state.health.state().takes_work());
            }
            state.probed = true;
            None
        });
        if let Some(known) = known {
            return known;
        }
        let result = probe();
        self.change(|state| {
            state.probed = false;
            if let Err(error) = &result {
                state.last_fault = Some(error.to_string());
            }
            state.health.on(self.opened.elapsed(), HealthEvent::Probed { ok: result.is_ok() });
            state.health.state().takes_work()
        })
    }

    /// Changes what is known, and tells the new state outside of the lock, if it is another one.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let before = state.health.state();
        let result = change(&mut state);
        let now = state.health.state();
        let fault = (now != before).then(|| state.fault());
        drop(state);
        if let (Some(fault), Some(hears)) = (fault, self.hears.get()) {
            hears(now, fault);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the impellers call: it keeps `held` as long as one of their threads lives.
pub(crate) fn watch_of<T: Send + Sync + 'static>(
    watch: &Arc<SpindleWatch>,
    held: Arc<T>,
) -> crate::spindle::impeller::Watch {
    let watch = watch.clone();
    Arc::new(move |watched| {
        let _held = &held;
        watch.ended(watched);
    })
}

//! The thread that tends a cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use super::run::tend;
use crate::cache::CacheCore;
use crate::config::host::PressureGauge;
use crate::scan::cancel::CancelToken;
use crate::scan::patience::Patience;

/// How often it looks while somebody waits for memory: the leases that hold it may end at any time, and tell nobody.
const WAITED_FOR_EVERY: Duration = Duration::from_millis(50);

/// How long a round waits for files to go. A disk that takes longer goes on by itself.
const ROUND_WAIT_MAX: Duration = Duration::from_secs(10);

/// The thread that tends a cache, while somebody has a handle of it.
pub(crate) struct TenderThread {
    stop: CancelToken,
    thread: Option<JoinHandle<()>>,
}

impl TenderThread {
    /// Starts it, if the cache is to be tended. Where the system has no thread to give nothing goes by itself, as the
    /// status tells.
    pub(crate) fn start(core: &Arc<CacheCore>, every: Duration) -> TenderThread {
        let stop = CancelToken::new();
        if !core.tender.is_on {
            return TenderThread { stop, thread: None };
        }
        let (of_thread, inbox) = (stop.clone(), core.tender.inbox().clone());
        let weak = Arc::downgrade(core);
        let run = move || serve(&weak, &inbox, every, &of_thread);
        let thread = std::thread::Builder::new().name("pelton-tender".to_owned()).spawn(run).ok();
        core.tender.notes().is_running = thread.is_some();
        TenderThread { stop, thread }
    }

    /// Ends it: what it waits for now goes on by itself. It has hold of the cache no more when this returns.
    pub(crate) fn stop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic was caught where it happened.
        }
    }
}

fn serve(core: &Weak<CacheCore>, inbox: &Receiver<()>, every: Duration, stop: &CancelToken) {
    let gauge = PressureGauge::find();
    let mut wait = every;
    loop {
        select! {
            recv(stop.line()) -> _ => return,
            recv(inbox) -> _ => {} // Also if the cache is gone.
            default(wait) => {}
        }
        let Some(core) = core.upgrade() else { return };
        if core.is_closed() {
            core.tender.notes().is_running = false;
            return;
        }
        let deadline = Some(Instant::now() + ROUND_WAIT_MAX);
        let patience = Patience { deadline, stop: Some(stop.clone()), ..Patience::default() };
        // Until all slices are known. If a disk hangs memory is tended all the same, and files stay: for these there is no
        // time left then.
        core.wait_for_recovery(&patience);
        let now_ms = core.runner.now().as_millis() as u64;
        // A bug of ours must not end all tending: the next round may do better.
        let _ = catch_unwind(AssertUnwindSafe(|| tend(&core, now_ms, gauge.stalled_percent(), &patience)));
        let is_waited_for = core.budget.counts().residence_waited_for > 0;
        wait = if is_waited_for { WAITED_FOR_EVERY.min(every) } else { every };
    }
}

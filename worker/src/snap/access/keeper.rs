//! The thread that keeps the access logs of a cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use crate::cache::CacheCore;
use crate::scan::cancel::CancelToken;

/// How much a process that is killed forgets at most. Looking at 100,000 entries takes some 50 ms.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// How long a save waits for a disk. What is late is written by the next one.
pub(crate) const SAVE_WAIT_MAX: Duration = Duration::from_secs(2);

/// Saves now and then, and soon after somebody has pinned something, while there is a handle of the cache.
pub(crate) struct Keeper {
    stop: CancelToken,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts it. Where the system has no thread to give, the logs are saved at the end only.
    pub(crate) fn start(core: &Arc<CacheCore>) -> Keeper {
        let stop = CancelToken::new();
        let (weak, inbox, of_thread) = (Arc::downgrade(core), core.access.inbox().clone(), stop.clone());
        let run = move || serve(&weak, &inbox, &of_thread);
        let thread = std::thread::Builder::new().name("pelton-keeper".to_owned()).spawn(run).ok();
        Keeper { stop, thread }
    }

    /// Ends it. It has hold of the cache no more when this returns.
    pub(crate) fn stop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic was caught where it happened.
        }
    }
}

fn serve(core: &Weak<CacheCore>, inbox: &Receiver<()>, stop: &CancelToken) {
    loop {
        select! {
            recv(stop.line()) -> _ => return,
            recv(inbox) -> _ => {}
            default(SAVE_EVERY) => {}
        }
        let Some(core) = core.upgrade() else { return };
        if core.is_closed() {
            return; // Closing saves, too.
        }
        // A bug of ours costs one save.
        let keep = || core.keep_access_logs(Instant::now() + SAVE_WAIT_MAX);
        let _ = catch_unwind(AssertUnwindSafe(keep));
    }
}

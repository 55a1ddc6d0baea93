//! Whether a spindle can be trusted with work.
//!
//! ```text
//!            fault                    faults_max faults, or a hang
//!    Ok ---------------> Suspect ----------------------------------> Quarantined
//!     ^                  ^     |                                      |       ^
//!     +------------------|-----+                      the wait is over|       | the probe fails:
//!       no fault for a   |                                            v       | wait twice as long
//!       whole window     +-------- the probe succeeds ------------ Probing ---+
//! ```
//!
//! A plain value: what happened goes in with its time, the new state comes out. It has no clock and asks no
//! disk. Times count from any fixed moment, such as the opening of the cache.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use serde::Serialize;

/// Where a spindle stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HealthState {
    /// Nothing is wrong.
    Ok,
    /// There were faults lately. It is used, but others are preferred for new work.
    Suspect,
    /// It gets no new work. What it holds may still be read.
    Quarantined,
    /// As quarantined, and it is being found out whether it works again: write, sync, read back, remove.
    Probing,
}

impl HealthState {
    /// Whether new loads may go there.
    pub(crate) fn takes_work(self) -> bool {
        matches!(self, HealthState::Ok | HealthState::Suspect)
    }
}

/// What happened on a spindle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthEvent {
    /// An operation that moved `bytes` succeeded after `took`.
    Done { bytes: u64, took: Duration },
    /// An operation failed by the disk's fault: see [`is_disk_fault`].
    Failed,
    /// An operation was given up: it is still under way, far beyond its time.
    Hung,
    /// The probe that [`HealthState::Probing`] asked for is over.
    Probed { ok: bool },
    /// Nothing happened, time passed. Due at [`Health::tick_at`].
    Tick,
}

/// The numbers behind the decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealthLimits {
    /// Faults older than this are forgotten.
    pub(crate) window: Duration,
    /// So many faults within the window quarantine. At least 1.
    pub(crate) faults_max: usize,
    /// An operation is slow, which is a fault, beyond this plus the time for its bytes at `slow_bytes_per_second`.
    pub(crate) slow_after: Duration,
    pub(crate) slow_bytes_per_second: u64,
    /// An operation that is under way for so long has hung.
    pub(crate) hung_after: Duration,
    /// How long the first quarantine lasts before the probe, and how long any of them at most.
    pub(crate) probe_wait_min: Duration,
    pub(crate) probe_wait_max: Duration,
}

impl Default for HealthLimits {
    fn default() -> HealthLimits {
        HealthLimits {
            window: Duration::from_secs(60),
            faults_max: 5,
            // A full queue of 64 MiB on a slow turning disk (20 MiB/s) takes 3 s; a healthy one never 5.
            slow_after: Duration::from_secs(5),
            slow_bytes_per_second: 4 << 20,
            hung_after: Duration::from_secs(30),
            probe_wait_min: Duration::from_secs(5),
            probe_wait_max: Duration::from_secs(300),
        }
    }
}

/// The health of one spindle.
///
/// Invariants: `faults` holds fewer than `faults_max` times, oldest first; it is empty when the state is
/// neither `Suspect` nor `Ok`. `Ok` means that it is empty.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    limits: HealthLimits,
    state: HealthState,
    faults: VecDeque<Duration>,
    /// The latest time that an event told. Events of several threads may arrive out of order.
    now: Duration,
    /// When the state was entered.
    since: Duration,
    probe_wait: Duration,
}

impl Health {
    /// A spindle that nothing is known against.
    pub(crate) fn new(limits: HealthLimits) -> Health {
        assert!(limits.faults_max >= 1);
        assert!(limits.slow_bytes_per_second >= 1);
        Health {
            state: HealthState::Ok,
            faults: VecDeque::new(),
            now: Duration::ZERO,
            since: Duration::ZERO,
            probe_wait: limits.probe_wait_min,
            limits,
        }
    }

    /// Takes in what happened, and tells the new state if it is another one.
    pub(crate) fn on(&mut self, at: Duration, event: HealthEvent) -> Option<HealthState> {
        use HealthState::{Probing, Quarantined};
        self.now = self.now.max(at);
        let before = self.state;
        match (before, event) {
            (Probing, HealthEvent::Probed { ok: true }) => self.recover(),
            (Probing, HealthEvent::Probed { ok: false } | HealthEvent::Hung) => {
                self.probe_wait = (self.probe_wait * 2).min(self.limits.probe_wait_max);
                self.enter(Quarantined);
            }
            (Quarantined, _) if self.now >= self.since + self.probe_wait => self.enter(Probing),
            // Operations from before end one by one. They tell nothing that the quarantine does not know.
            (Quarantined | Probing, _) => {}
            (_, HealthEvent::Hung) => self.enter(Quarantined),
            (_, HealthEvent::Failed) => self.fault(),
            (_, HealthEvent::Done { bytes, took }) if self.is_slow(bytes, took) => self.fault(),
            (_, HealthEvent::Done { .. } | HealthEvent::Probed { .. } | HealthEvent::Tick) => self.forget(),
        }
        self.check();
        (self.state != before).then_some(self.state)
    }

    /// Where the spindle stands.
    pub(crate) fn state(&self) -> HealthState {
        self.state
    }

    /// When a [`HealthEvent::Tick`] changes something, if nothing else happens before.
    #[cfg(test)]
    pub(crate) fn tick_at(&self) -> Option<Duration> {
        match self.state {
            HealthState::Ok | HealthState::Probing => None,
            HealthState::Suspect => {
                Some(self.faults.back().copied().unwrap_or(self.since) + self.limits.window)
            }
            HealthState::Quarantined => Some(self.since + self.probe_wait),
        }
    }

    fn is_slow(&self, bytes: u64, took: Duration) -> bool {
        let transfer = Duration::from_millis(bytes.saturating_mul(1000) / self.limits.slow_bytes_per_second);
        took > self.limits.slow_after.saturating_add(transfer)
    }

    fn fault(&mut self) {
        self.forget();
        // On probation a single fault is enough: the disk has not shown a clean window since the probe.
        let on_probation = self.state == HealthState::Suspect && self.probe_wait > self.limits.probe_wait_min;
        self.faults.push_back(self.now);
        if on_probation || self.faults.len() >= self.limits.faults_max {
            self.enter(HealthState::Quarantined);
        } else if self.state == HealthState::Ok {
            self.enter(HealthState::Suspect);
        }
    }

    /// Forgets what is too old to count, and trusts again when nothing is left.
    fn forget(&mut self) {
        let window = self.limits.window;
        while self.faults.front().is_some_and(|fault| *fault + window <= self.now) {
            self.faults.pop_front();
        }
        let clean = self.faults.is_empty() && self.now >= self.since + window;
        if self.state == HealthState::Suspect && clean {
            self.probe_wait = self.limits.probe_wait_min;
            self.enter(HealthState::Ok);
        }
    }

    /// After a good probe: used again, on probation. The next quarantine would be twice as long.
    fn recover(&mut self) {
        self.probe_wait = (self.probe_wait * 2).min(self.limits.probe_wait_max);
        self.enter(HealthState::Suspect);
    }

    fn enter(&mut self, state: HealthState) {
        self.state = state;
        self.since = self.now;
        if !state.takes_work() {
            self.faults.clear();
        }
    }

    fn check(&self) {
        debug_assert!(self.faults.len() < self.limits.faults_max);
        debug_assert!(self.state == HealthState::Suspect || self.faults.is_empty());
        debug_assert!(self.faults.iter().is_sorted());
    }
}

/// Whether an error says something about the disk.
///
/// A full disk, a file that somebody removed, a name that is too long or a process out of descriptors is no reason to distrust it. If the
/// spindle's own folder is what is missing, say [`HealthEvent::Hung`]: nothing there works until it is back.
pub(crate) fn is_disk_fault(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    !matches!(
        error.kind(),
        StorageFull
            | QuotaExceeded
            | FileTooLarge
            | InvalidFilename
            | NotFound
            | AlreadyExists
            | DirectoryNotEmpty
            | WouldBlock
            | InvalidInput
            | Interrupted
            | OutOfMemory
            | Unsupported
    ) && !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::HealthEvent::{Failed, Hung, Probed, Tick};
    use super::HealthState::{Ok, Probing, Quarantined, Suspect};
    use super::*;

    fn limits() -> HealthLimits {
        HealthLimits {
            window: Duration::from_secs(60),
            faults_max: 3,
            slow_after: Duration::from_secs(1),
            slow_bytes_per_second: 1 << 20,
            hung_after: seconds(30),
            probe_wait_min: Duration::from_secs(5),
            probe_wait_max: Duration::from_secs(15),
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn done(bytes: u64, took_millis: u64) -> HealthEvent {
        HealthEvent::Done { bytes, took: Duration::from_millis(took_millis) }
    }

    #[test]
    fn repeated_errors_quarantine_and_a_probe_brings_it_back() {
        let mut health = Health::new(limits());
        assert_eq!(health.on(seconds(10), Failed), Some(Suspect));
        assert_eq!(health.on(seconds(11), Failed), None);
        assert_eq!(health.on(seconds(12), Failed), Some(Quarantined));
        assert!(!health.state().takes_work());
        assert_eq!(health.tick_at(), Some(seconds(17)));
        assert_eq!(health.on(seconds(16), Tick), None);
        assert_eq!(health.on(seconds(17), Tick), Some(Probing));
        assert_eq!(health.on(seconds(18), Probed { ok: true }), Some(Suspect));
        assert!(health.state().takes_work());
        assert_eq!(health.tick_at(), Some(seconds(78)));
        assert_eq!(health.on(seconds(78), Tick), Some(Ok));
        assert_eq!(health.tick_at(), None);
    }

    #[test]
    fn slowness_counts_like_an_error() {
        let mut health = Health::new(limits());
        assert_eq!(health.on(seconds(1), done(4 << 20, 4_900)), None, "4 MiB may take 5 s");
        assert_eq!(health.on(seconds(1), done(4 << 20, 5_100)), Some(Suspect));
        assert_eq!(health.on(seconds(1), Failed), None);
        assert_eq!(health.on(seconds(1), done(0, 1_100)), Some(Quarantined));
    }

    #[test]
    fn a_hang_quarantines_at_once() {
        let mut health = Health::new(limits());
        assert_eq!(health.on(seconds(1), Hung), Some(Quarantined));
        assert_eq!(health.on(seconds(6), Tick), Some(Probing));
        assert_eq!(health.on(seconds(7), Hung), Some(Quarantined), "the probe hangs too");
    }

    #[test]
    fn old_faults_are_forgotten() {
        let mut health = Health::new(limits());
        for at in [0, 30, 61, 91, 122, 152] {
            health.on(seconds(at), Failed);
            assert_eq!(health.state(), Suspect, "never three within a minute, at {at}");
        }
        assert_eq!(health.on(seconds(211), done(1, 1)), None);
        assert_eq!(health.on(seconds(212), done(1, 1)), Some(Ok));
    }

    #[test]
    fn a_failed_probe_waits_twice_as_long_up_to_a_limit() {
        let mut health = Health::new(limits());
        health.on(seconds(0), Hung);
        let mut now = seconds(0);
        for wait in [5, 10, 15, 15] {
            assert_eq!(health.tick_at(), Some(now + seconds(wait)));
            now += seconds(wait);
            assert_eq!(health.on(now, Tick), Some(Probing));
            assert_eq!(health.on(now, Probed { ok: false }), Some(Quarantined));
        }
    }

    #[test]
    fn on_probation_one_fault_is_enough() {
        let mut health = Health::new(limits());
        health.on(seconds(0), Hung);
        health.on(seconds(5), Tick);
        health.on(seconds(5), Probed { ok: true });
        assert_eq!(health.on(seconds(6), Failed), Some(Quarantined));
        assert_eq!(health.tick_at(), Some(seconds(16)), "and the wait is longer");
    }

    #[test]
    fn what_ends_late_does_not_end_a_quarantine_early() {
        let mut health = Health::new(limits());
        health.on(seconds(0), Hung);
        for event in [done(1, 1), Failed, Probed { ok: true }, Hung] {
            assert_eq!(health.on(seconds(1), event), None, "{event:?}");
        }
        assert_eq!(health.tick_at(), Some(seconds(5)));
    }

    #[test]
    fn only_the_disks_own_faults_count() {
        for code in [libc::EIO, libc::EROFS, libc::ENODEV, libc::ENXIO, libc::ETIMEDOUT, libc::ESTALE] {
            assert!(is_disk_fault(&io::Error::from_raw_os_error(code)), "{code}");
        }
        for code in [
            libc::ENOSPC,
            libc::EDQUOT,
            libc::ENOENT,
            libc::EMFILE,
            libc::ENOMEM,
            libc::EINVAL,
            libc::ENOTEMPTY,
            libc::ENAMETOOLONG,
        ] {
            assert!(!is_disk_fault(&io::Error::from_raw_os_error(code)), "{code}");
        }
    }

    fn event() -> impl Strategy<Value = HealthEvent> {
        prop_oneof![
            3 => (0u64..8 << 20, 0u64..10_000).prop_map(|(bytes, millis)| done(bytes, millis)),
            2 => Just(Failed),
            1 => Just(Hung),
            2 => any::<bool>().prop_map(|ok| Probed { ok }),
            2 => Just(Tick),
        ]
    }

    proptest! {
        /// Whatever happened: one who ticks when told and probes when asked gets a disk that works again back.
        #[test]
        fn a_disk_that_works_again_always_comes_back(events in prop::collection::vec((0u64..100, event()), 0..60)) {
            let mut health = Health::new(limits());
            let mut now = seconds(0);
            for (wait, event) in events {
                // Times may step back a little: threads report what they saw in any order.
                now = (now + seconds(wait)).saturating_sub(seconds(3));
                let before = health.state();
                let told = health.on(now, event);
                prop_assert_eq!(told.unwrap_or(before), health.state());
                prop_assert!(told != Some(before));
            }
            for _ in 0..4 {
                match health.state() {
                    Ok => break,
                    Probing => drop(health.on(now, Probed { ok: true })),
                    Suspect | Quarantined => {
                        now = health.tick_at().unwrap();
                        prop_assert!(health.on(now, Tick).is_some(), "a tick in time changes something");
                    }
                }
            }
            prop_assert_eq!(health.state(), Ok);
        }
    }
}

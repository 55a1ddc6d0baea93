//! Signs of life and deadlines of one end.

use std::time::Instant;

use super::{StreamError, Timing};

/// When this end last heard and said something.
#[derive(Debug)]
pub(super) struct Pulse {
    timing: Timing,
    heard: Instant,
    said: Instant,
}

impl Pulse {
    pub(super) fn start(timing: Timing, now: Instant) -> Pulse {
        Pulse { timing, heard: now, said: now }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    pub(super) fn said(&mut self, now: Instant) {
        self.said = now;
    }

    /// Whether the stream may go on.
    pub(super) fn check(&self, now: Instant) -> Result<(), StreamError> {
        if self.timing.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(StreamError::Deadline);
        }
        if now.saturating_duration_since(self.heard) >= self.timing.silence_max {
            return Err(StreamError::Silent(self.timing.silence_max));
        }
        Ok(())
    }

    /// Whether the peer has had so long for something that is its turn.
    pub(super) fn check_stall(&self, since: Instant, now: Instant) -> Result<(), StreamError> {
        if now.saturating_duration_since(since) >= self.timing.stall_max {
            return Err(StreamError::Stalled(self.timing.stall_max));
        }
        Ok(())
    }

    pub(super) fn heartbeat_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.said) >= self.timing.heartbeat_every
    }

    /// When something must be looked at again; `stalled_since` if the peer's turn is being timed.
    pub(super) fn next_wake(&self, stalled_since: Option<Instant>) -> Instant {
        let wakes = [
            self.timing.deadline,
            stalled_since.map(|since| since + self.timing.stall_max),
            Some(self.heard + self.timing.silence_max),
        ];
        wakes.into_iter().flatten().fold(self.said + self.timing.heartbeat_every, Instant::min)
    }
}

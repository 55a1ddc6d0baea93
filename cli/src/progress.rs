//! How far a long command is, for whoever watches.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What takes less than this is over before anybody has read a bar.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// A bar on standard error with rate and time left. It appears after a second of work and only on
/// a terminal, and goes away without a trace, so that it never mixes with results or errors.
pub(crate) struct Progress {
    started: Instant,
    bytes_done: u64,
    /// Counts from the start, so that the rate is right when it is first seen. `None` if nobody watches.
    bar: Option<ProgressBar>,
    drawn: bool,
}

impl Progress {
    /// `bytes_total` is `None` where nobody knows: for pipes.
    pub(crate) fn new(doing: &'static str, bytes_total: Option<u64>) -> Progress {
        let watched = io::stderr().is_terminal();
        let mut progress = Progress::none();
        progress.bar = watched.then(|| hidden_bar(doing, bytes_total));
        progress
    }

    /// For work whose result itself is what people watch.
    pub(crate) fn none() -> Progress {
        Progress { started: Instant::now(), bytes_done: 0, bar: None, drawn: false }
    }

    pub(crate) fn advance(&mut self, bytes: usize) {
        self.bytes_done += bytes as u64;
        let Some(bar) = &self.bar else { return };
        if !self.drawn && self.started.elapsed() >= QUIET_TIME {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            self.drawn = true;
        }
        bar.set_position(self.bytes_done);
    }
}

fn hidden_bar(doing: &'static str, bytes_total: Option<u64>) -> ProgressBar {
    let template = match bytes_total {
        Some(_) => {
            "{msg} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"
        }
        None => "{msg} {spinner} {binary_bytes}, {binary_bytes_per_sec}",
    };
    let style =
        ProgressStyle::with_template(template).expect("the template is a constant that a test parses");
    ProgressBar::with_draw_target(bytes_total, ProgressDrawTarget::hidden())
        .with_style(style.progress_chars("=> "))
        .with_message(doing)
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar
            && self.drawn
        {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bars_can_be_drawn() {
        for bytes_total in [Some(1 << 40), None] {
            let mut progress = Progress::none();
            progress.bar = Some(hidden_bar("packing", bytes_total));
            progress.started -= QUIET_TIME;
            progress.advance(1 << 20);
            assert!(progress.drawn);
        }
    }
}

//! How far a long command is, for whoever watches.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What takes less than this is over before anybody has read a bar.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// How often a bar is drawn anew where nothing moves, so that its time is right.
const REDRAW_TIME: Duration = Duration::from_millis(250);

/// A bar on standard error with rate and time left. It appears after a second of work and only on
/// a terminal, and goes away without a trace, so that it never mixes with results or errors.
///
/// Any number of threads may advance it.
pub(crate) struct Progress {
    /// `None` if nobody watches.
    watched: Option<Watched>,
}

struct Watched {
    /// Counts from the start, so that the rate is right when it is first seen.
    bar: ProgressBar,
    /// Dropped to tell the thread that the work is over.
    over: Option<Sender<()>>,
    /// Shows the bar after the quiet time, also while the work itself waits for a disk.
    shower: Option<JoinHandle<()>>,
}

impl Progress {
    /// `bytes_total` is `None` where nobody knows: for pipes.
    pub(crate) fn new(doing: &'static str, bytes_total: Option<u64>) -> Progress {
        let watched = io::stderr().is_terminal();
        Progress {
            watched: watched
                .then(|| Watched::new(hidden_bar(doing, bytes_total), ProgressDrawTarget::stderr)),
        }
    }

    /// For work whose result itself is what people watch.
    pub(crate) fn none() -> Progress {
        Progress { watched: None }
    }

    pub(crate) fn advance(&self, bytes: usize) {
        if let Some(watched) = &self.watched {
            watched.bar.inc(bytes as u64);
        }
    }
}

impl Watched {
    fn new(bar: ProgressBar, target: fn() -> ProgressDrawTarget) -> Watched {
        let (over, is_over) = channel();
        let shown = bar.clone();
        let show = move || {
            if is_over.recv_timeout(QUIET_TIME) == Err(RecvTimeoutError::Timeout) {
                shown.set_draw_target(target());
                while is_over.recv_timeout(REDRAW_TIME) == Err(RecvTimeoutError::Timeout) {
                    shown.tick();
                }
                shown.finish_and_clear();
            }
        };
        // Without a thread there is no bar. The work goes on.
        let shower = std::thread::Builder::new().name("pelton-progress".to_owned()).spawn(show).ok();
        Watched { bar, over: Some(over), shower }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(shower) = self.shower.take() {
            let _ = shower.join();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bars_count_what_all_threads_do() {
        for bytes_total in [Some(1 << 40), None] {
            let bar = hidden_bar("packing", bytes_total);
            let progress = Progress { watched: Some(Watched::new(bar.clone(), ProgressDrawTarget::hidden)) };
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| progress.advance(1 << 20));
                }
            });
            assert_eq!(bar.position(), 3 << 20);
        }
    }
}

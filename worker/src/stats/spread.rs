//! A number that many threads add to all the time, without taking its cache line from each other.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// So many threads have a line of their own. More of them share lines, which is slower and as right.
const LINES: usize = 64;

/// A sum that each thread adds to in a place of its own. Relaxed: it publishes nothing but itself.
pub(super) struct SpreadSum {
    lines: Box<[Line; LINES]>,
}

/// Two lines of 64 bytes, since processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU64);

/// Numbers the threads of the process in the order in which they count something.
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
}

impl Default for SpreadSum {
    fn default() -> SpreadSum {
        SpreadSum { lines: Box::new([const { Line(AtomicU64::new(0)) }; LINES]) }
    }
}

impl SpreadSum {
    pub(super) fn add(&self, count: u64) {
        self.lines[own_line()].0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn value(&self) -> u64 {
        self.lines.iter().map(|line| line.0.load(Ordering::Relaxed)).sum()
    }
}

fn own_line() -> usize {
    let own = OWN.get();
    if own < LINES {
        return own;
    }
    let own = NEXT.fetch_add(1, Ordering::Relaxed) % LINES;
    OWN.set(own);
    own
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn more_threads_than_lines_add_up() {
        let sum = SpreadSum::default();
        thread::scope(|scope| {
            for _ in 0..LINES + 3 {
                scope.spawn(|| (0..1000).for_each(|_| sum.add(2)));
            }
        });
        assert_eq!(sum.value(), (LINES as u64 + 3) * 2000);
    }
}

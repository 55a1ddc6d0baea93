//! What the demo prints: a row for each step, as soon as it is done.

use std::time::Duration;

use pelton::units::Size;
use serde::Serialize;

/// The plain work that a row stands beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Plain {
    Memory,
    Write,
    Read,
}

impl Plain {
    fn name(self) -> &'static str {
        match self {
            Plain::Memory => "memory",
            Plain::Write => "write",
            Plain::Read => "read",
        }
    }
}

/// One step, measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// Its name, for scripts.
    step: &'static str,
    #[serde(skip)]
    title: &'static str,
    /// `null` where no bytes are moved.
    bytes: Option<u64>,
    seconds: f64,
    bytes_per_second: Option<f64>,
    /// Which plain work it stands beside.
    beside: Option<Plain>,
    /// Its rate as a share of that of the plain work.
    ratio: Option<f64>,
}

impl Row {
    /// A step that moves no bytes.
    pub(super) fn new(step: &'static str, title: &'static str, time: Duration) -> Row {
        let seconds = time.as_secs_f64();
        Row { step, title, bytes: None, seconds, bytes_per_second: None, beside: None, ratio: None }
    }

    pub(super) fn of(mut self, bytes: u64) -> Row {
        self.bytes = Some(bytes);
        // No step is done in less than the clock can tell, but no figure here may be infinite.
        self.bytes_per_second = Some(bytes as f64 / self.seconds.max(1e-9));
        self
    }

    /// Puts the rate beside that of a plain row.
    pub(super) fn beside(mut self, plain: Plain, row: &Row) -> Row {
        self.beside = Some(plain);
        self.ratio = self.bytes_per_second.zip(row.bytes_per_second).map(|(rate, plain)| rate / plain);
        self
    }

    /// The row as a line of at most 80 columns.
    pub(super) fn line(&self) -> String {
        let amount = self.bytes.map(|bytes| Size(bytes).to_string()).unwrap_or_default();
        let rate = self.bytes_per_second.map(|rate| format!("{}/s", Size(rate as u64))).unwrap_or_default();
        let beside = match (self.ratio, self.beside) {
            (Some(ratio), Some(plain)) => format!("{ratio:.2} {}", plain.name()),
            _ => String::new(),
        };
        line(self.title, &amount, &shown_time(self.seconds), &rate, &beside)
    }
}

/// What stands above the rows.
pub(super) fn heading() -> String {
    line("what was done", "amount", "time", "rate", "of plain")
}

fn line(title: &str, amount: &str, time: &str, rate: &str, beside: &str) -> String {
    format!("{title:<34}{amount:>10}{time:>9}{rate:>13}  {beside}").trim_end().to_owned()
}

fn shown_time(seconds: f64) -> String {
    match seconds {
        0.1.. => format!("{seconds:.2} s"),
        _ => format!("{:.1} ms", seconds * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_columns_and_fit_80() {
        let plain = Row::new("plain_memory", "plain: add up bytes in memory", Duration::from_millis(250));
        let plain = plain.of(1 << 30);
        let row = Row::new("scan", "scan in place", Duration::from_millis(500)).of(1 << 30);
        let row = row.beside(Plain::Memory, &plain);
        let expected = [
            "what was done                         amount     time         rate  of plain",
            "plain: add up bytes in memory        1.0 GiB   0.25 s    4.0 GiB/s",
            "scan in place                        1.0 GiB   0.50 s    2.0 GiB/s  0.50 memory",
        ];
        assert_eq!([heading(), plain.line(), row.line()], expected);
        assert!((row.ratio.unwrap() - 0.5).abs() < 1e-9);
        let long = Row::new("x", "123456789012345678901234567890123", Duration::from_secs(3600));
        let long = long.of(1023 << 20).beside(Plain::Memory, &Row::new("y", "", Duration::ZERO).of(1));
        assert!(long.line().chars().count() <= 80, "{}", long.line());
        assert_eq!(shown_time(0.0123), "12.3 ms");
    }
}

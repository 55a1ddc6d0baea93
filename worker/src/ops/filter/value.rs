//! Values of filters, as people write and read them.

use std::cmp::Ordering;
use std::fmt;

use pelton_region_format::Fingerprint;

use super::Relation;
use crate::snap::metrics::GenerationState;
use crate::units::span::{self, DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS};
use crate::units::{Unrounded, parse_size};

/// Of what sort a name's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Size,
    Count,
    Span,
    Moment,
    Ratio,
    Truth,
    State,
    Fingerprint,
}

/// A value, found or wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    Whole(u64),
    /// Finite.
    Ratio(f64),
    /// In milliseconds.
    Span(u64),
    /// In milliseconds since 1970.
    Moment(u64),
    Truth(bool),
    State(GenerationState),
    Fingerprint(Fingerprint),
}

impl Value {
    /// Nothing if the two can't be compared.
    pub(super) fn compare(&self, other: &Value) -> Option<Ordering> {
        match (self, other) {
            (Value::Whole(found), Value::Whole(wanted))
            | (Value::Span(found), Value::Span(wanted))
            | (Value::Moment(found), Value::Moment(wanted)) => Some(found.cmp(wanted)),
            (Value::Ratio(found), Value::Ratio(wanted)) => found.partial_cmp(wanted),
            // A mean against a size.
            (Value::Ratio(found), Value::Whole(wanted)) => found.partial_cmp(&(*wanted as f64)),
            (Value::Truth(found), Value::Truth(wanted)) => Some(found.cmp(wanted)),
            (Value::State(found), Value::State(wanted)) => Some(found.cmp(wanted)),
            (Value::Fingerprint(found), Value::Fingerprint(wanted)) => Some(found.cmp(wanted)),
            _ => None,
        }
    }
}

impl Kind {
    pub(super) fn relations(self) -> &'static [Relation] {
        match self {
            Kind::Truth => &[Relation::Equal],
            Kind::State | Kind::Fingerprint => &[Relation::Equal, Relation::Unequal],
            _ => &Relation::ALL,
        }
    }

    /// For messages, after "which is".
    pub(super) fn allowed(self) -> &'static str {
        match self {
            Kind::Size => "a size such as 4096, 64KiB or 1.5GiB",
            Kind::Count => "a number such as 1000",
            Kind::Span => span::EXPECTED,
            Kind::Moment => "a moment such as 2026-11-21, 2026-11-21T09:30:00Z, or milliseconds since 1970",
            Kind::Ratio => "a number such as 0.5",
            Kind::Truth => "true or false",
            Kind::State => "one of cold, loading, warm, hot, no-data, failed, mixed",
            Kind::Fingerprint => "64 digits of 0-9 a-f",
        }
    }

    /// Nothing if the text is no such value.
    pub(super) fn read(self, text: &str) -> Option<Value> {
        match self {
            Kind::Size => parse_size(text).ok().map(Value::Whole),
            Kind::Count => digits(text).map(Value::Whole),
            Kind::Span => span::read_ms(text).map(Value::Span),
            Kind::Moment => read_moment(text).map(Value::Moment),
            Kind::Ratio => read_ratio(text).map(Value::Ratio),
            Kind::Truth => text.parse().ok().map(Value::Truth),
            Kind::State => {
                let state = GenerationState::NAMES.into_iter().find(|(name, _)| *name == text);
                state.map(|(_, state)| Value::State(state))
            }
            Kind::Fingerprint => text.parse().ok().map(Value::Fingerprint),
        }
    }

    /// Writes a value so that it reads back as the same.
    pub(super) fn write(self, value: &Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match value {
            Value::Whole(bytes) if self == Kind::Size => {
                f.write_str(&Unrounded(*bytes).to_string().replace(' ', ""))
            }
            Value::Whole(count) => write!(f, "{count}"),
            Value::Ratio(ratio) => write!(f, "{ratio}"),
            Value::Span(span_ms) => span::write_ms(*span_ms, f),
            Value::Moment(at_ms) => write_moment(*at_ms, f),
            Value::Truth(truth) => write!(f, "{truth}"),
            Value::State(state) => {
                let name = GenerationState::NAMES.into_iter().find(|(_, named)| named == state);
                f.write_str(name.expect("all states have names").0)
            }
            Value::Fingerprint(fingerprint) => write!(f, "{fingerprint}"),
        }
    }
}

/// A decimal number of digits alone.
fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn read_ratio(text: &str) -> Option<f64> {
    let plain = text.starts_with(|c: char| c.is_ascii_digit())
        && text.ends_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    plain.then(|| text.parse::<f64>().ok()).flatten().filter(|ratio| ratio.is_finite())
}

/// `2026-11-21`, `2026-11-21T09:30:00Z`, `2026-11-21T09:30:00.250Z`, or a number. Times are UTC: a local one
/// would mean another moment elsewhere.
fn read_moment(text: &str) -> Option<u64> {
    if let Some(at_ms) = digits(text) {
        return Some(at_ms);
    }
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, time.strip_suffix('Z')?),
        None => (text, "00:00:00"),
    };
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let (time, thousandths) = match time.split_once('.') {
        Some((time, thousandths)) => (time, numbers(thousandths, '.', [3])?[0]),
        None => (time, 0),
    };
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days_since_1970(year, month, day)?;
    Some(days * DAY_MS + hour * HOUR_MS + minute * MINUTE_MS + second * SECOND_MS + thousandths)
}

/// Numbers of so many digits each, with a mark between them.
fn numbers<const N: usize>(text: &str, mark: char, lengths: [usize; N]) -> Option<[u64; N]> {
    let mut parts = text.split(mark);
    let mut found = [0; N];
    for (number, length) in found.iter_mut().zip(lengths) {
        *number = digits(parts.next().filter(|part| part.len() == length)?)?;
    }
    parts.next().is_none().then_some(found)
}

fn write_moment(at_ms: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Some((year, month, day)) = date_of(at_ms / DAY_MS) else {
        return write!(f, "{at_ms}");
    };
    let time = at_ms % DAY_MS;
    write!(f, "{year:04}-{month:02}-{day:02}")?;
    if time > 0 {
        let (hour, minute) = (time / HOUR_MS, time / MINUTE_MS % 60);
        write!(f, "T{hour:02}:{minute:02}:{:02}", time / SECOND_MS % 60)?;
        if !time.is_multiple_of(SECOND_MS) {
            write!(f, ".{:03}", time % SECOND_MS)?;
        }
        f.write_str("Z")?;
    }
    Ok(())
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// How many days lie between 1970 and the beginning of a year.
fn days_before(year: u64) -> u64 {
    let leap_days = |year: u64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    (year - 1970) * 365 + leap_days(year) - leap_days(1970)
}

fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let exists = year >= 1970 && (1..=12).contains(&month) && (1..=days_of(year, month)).contains(&day);
    let months = || (1..month).map(|month| days_of(year, month)).sum::<u64>();
    exists.then(|| days_before(year) + months() + day - 1)
}

/// Nothing for years of more than four digits.
fn date_of(days: u64) -> Option<(u64, u64, u64)> {
    // At most a year too early: years have 365 days or one more.
    let mut year = 1970 + days / 366;
    while year <= 9999 && days_before(year + 1) <= days {
        year += 1;
    }
    if year > 9999 {
        return None;
    }
    let mut day = days - days_before(year);
    let mut month = 1;
    while day >= days_of(year, month) {
        day -= days_of(year, month);
        month += 1;
    }
    Some((year, month, day + 1))
}

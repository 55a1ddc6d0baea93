//! Spans of time as people write and read them: `250ms`, `10m`, `1h30m`, `30d`.

use std::fmt;
use std::time::Duration;

/// Milliseconds of a second.
pub(crate) const SECOND_MS: u64 = 1000;
/// Those of a minute.
pub(crate) const MINUTE_MS: u64 = 60 * SECOND_MS;
/// Those of an hour.
pub(crate) const HOUR_MS: u64 = 60 * MINUTE_MS;
/// Those of a day.
pub(crate) const DAY_MS: u64 = 24 * HOUR_MS;

/// Largest first, as they follow each other in `1h30m`.
const UNITS: [(&str, u64); 5] =
    [("d", DAY_MS), ("h", HOUR_MS), ("m", MINUTE_MS), ("s", SECOND_MS), ("ms", 1)];

/// What a span looks like, for messages.
pub(crate) const EXPECTED: &str = "a time such as 250ms, 10m or 1h30m (ms, s, m, h, d)";

/// A text is no span. It is to be corrected; the message says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {EXPECTED}")]
pub struct SpanError;

/// Reads a span as people write it: numbers with units, the larger units first.
///
/// # Errors
/// [`SpanError`] for anything else, also for numbers without a unit: they might be seconds or milliseconds.
pub fn parse_span(text: &str) -> Result<Duration, SpanError> {
    read_ms(text.trim()).map(Duration::from_millis).ok_or(SpanError)
}

/// The milliseconds of a span.
pub(crate) fn read_ms(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0u64;
    let mut smaller = UNITS.as_slice();
    while !rest.is_empty() || total == 0 && smaller.len() == UNITS.len() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit())?;
        let unit_end = rest[number_end..].find(|c: char| c.is_ascii_digit());
        let unit_end = unit_end.map_or(rest.len(), |end| number_end + end);
        let unit = smaller.iter().position(|(unit, _)| *unit == &rest[number_end..unit_end])?;
        let number: u64 = rest[..number_end].parse().ok()?;
        total = total.checked_add(number.checked_mul(smaller[unit].1)?)?;
        smaller = &smaller[unit + 1..];
        rest = &rest[unit_end..];
    }
    Some(total)
}

/// Writes a span in the largest unit that needs no rounding: what it prints, [`parse_span`] reads as the same.
pub(crate) fn write_ms(span_ms: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let whole = UNITS.into_iter().find(|(_, length)| span_ms > 0 && span_ms.is_multiple_of(*length));
    let (unit, length) = whole.unwrap_or(("s", SECOND_MS));
    write!(f, "{}{unit}", span_ms / length)
}

/// Lets a configuration give a span as a text: `"10m"`.
#[cfg(feature = "serde")]
pub(crate) mod as_people_write {
    use std::fmt;
    use std::time::Duration;

    use serde::de::{Deserializer, Error, Visitor};

    struct SpanVisitor {
        may_be_never: bool,
    }

    impl Visitor<'_> for SpanVisitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let or_never = if self.may_be_never { ", or never" } else { "" };
            write!(f, "{}{or_never}", super::EXPECTED)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
            if self.may_be_never && text == "never" {
                return Ok(Duration::MAX);
            }
            let or_never = if self.may_be_never { ", or never" } else { "" };
            super::parse_span(text).map_err(|error| E::custom(format_args!("{text:?}: {error}{or_never}")))
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<Duration, D::Error> {
        source.deserialize_any(SpanVisitor { may_be_never: false })
    }

    /// The same, or `"never"`: [`Duration::MAX`].
    pub(crate) fn or_never<'de, D: Deserializer<'de>>(source: D) -> Result<Option<Duration>, D::Error> {
        source.deserialize_any(SpanVisitor { may_be_never: true }).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_people_write_them() {
        for (text, span_ms) in [
            ("250ms", 250),
            ("90s", 90_000),
            ("10m", 10 * MINUTE_MS),
            ("1h30m", 90 * MINUTE_MS),
            (" 30d ", 30 * DAY_MS),
            ("1d2h3m4s5ms", DAY_MS + 2 * HOUR_MS + 3 * MINUTE_MS + 4005),
            ("0s", 0),
        ] {
            assert_eq!(parse_span(text), Ok(Duration::from_millis(span_ms)), "{text}");
        }
        for text in ["", "10", "10 m", "m", "30m1h", "1h1h", "-1s", "1.5h", "1w", "99999999999999999d", "٣s"]
        {
            assert_eq!(parse_span(text), Err(SpanError), "{text}");
        }
        assert_eq!(SpanError.to_string(), "expected a time such as 250ms, 10m or 1h30m (ms, s, m, h, d)");
    }
}

//! Sizes as people write and read them: `64MiB`, `1.5 GiB`, `4096`; and spans of time: `10m`.
//!
//! Units are powers of 1024 and say so in their names. Decimal ones (`kB`, `MB`) are refused, not guessed:
//! half of the people who write `MB` mean the other one.

pub(crate) mod span;

use std::fmt;

pub use span::{SpanError, parse_span};

/// 1024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1024 KiB.
pub const MIB: u64 = 1 << 20;
/// 1024 MiB.
pub const GIB: u64 = 1 << 30;
/// 1024 GiB.
pub const TIB: u64 = 1 << 40;

/// The units, each 1024 times the one before.
const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
/// More digits than any size needs, few enough that the arithmetic fits 128 bits.
const FRACTION_DIGITS_MAX: usize = 15;

/// A number of bytes in the unit that fits it: `3.4 MiB`. Below 1 KiB it is exact: `512 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < KIB {
            return f.pad(&count(self.0, "byte"));
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        // From 1023.95 on it would be written 1024.0: the next unit says it better.
        while value >= 1023.95 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        f.pad(&format!("{value:.1} {}", UNITS[unit]))
    }
}

/// A number of bytes with the exact number beside it: `3.4 MiB (3,567,616 bytes)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exact(pub u64);

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < KIB {
            return Size(self.0).fmt(f);
        }
        f.pad(&format!("{} ({} bytes)", Size(self.0), grouped(self.0)))
    }
}

/// A number of bytes in the largest unit that needs no rounding: `64 KiB`, `1025`.
///
/// For bounds and settings: what it prints, [`parse_size`] reads as the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unrounded(pub u64);

impl fmt::Display for Unrounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0;
        let mut unit = None;
        for next in UNITS {
            if value < 1024 || !value.is_multiple_of(1024) {
                break;
            }
            value /= 1024;
            unit = Some(next);
        }
        match unit {
            Some(unit) => f.pad(&format!("{value} {unit}")),
            None => f.pad(&value.to_string()),
        }
    }
}

/// A number with its digits in groups of three: `3,567,616`.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things: `1 blob`, `12,000 blobs`.
pub fn count(value: u64, thing: &str) -> String {
    let plural = if value == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(value))
}

/// Why a text is not a size. The text is to be corrected; the message says how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// It does not begin with a number.
    #[error("expected a number of bytes, like 4096, 64KiB or 1.5GiB")]
    NotANumber,
    /// The unit is decimal, or looks so.
    #[error("{unit:?} may mean powers of 1000 or of 1024: write {instead}, which is 1024")]
    Decimal {
        /// What was written.
        unit: String,
        /// The unit that says which is meant.
        instead: &'static str,
    },
    /// The unit is unknown.
    #[error("the unit {unit:?} is none of KiB, MiB, GiB, TiB, PiB")]
    Unit {
        /// What was written.
        unit: String,
    },
    /// A fraction that is no number of bytes: it has no unit, or more digits than make sense.
    #[error("a fraction needs a unit, like 1.5GiB, and at most 15 digits")]
    Fraction,
    /// It does not fit 64 bits.
    #[error("too large a number")]
    TooLarge,
}

/// Reads a size as people write it: `4096`, `64K`, `64KiB`, `1.5 GiB`.
///
/// Units are powers of 1024, in any case. A fraction is cut to whole bytes.
///
/// # Errors
/// [`SizeError`] for anything else, also for decimal units such as `kB` and `MB`.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let (whole, rest) = split_digits(text);
    if whole.is_empty() {
        return Err(SizeError::NotANumber);
    }
    let (fraction, unit) = match rest.strip_prefix('.') {
        Some(rest) => {
            let (fraction, unit) = split_digits(rest);
            if fraction.is_empty() || fraction.len() > FRACTION_DIGITS_MAX {
                return Err(SizeError::Fraction);
            }
            (fraction, unit)
        }
        None => ("", rest),
    };
    let power = power_of(unit.trim_start())?;
    if power == 0 && !fraction.is_empty() {
        return Err(SizeError::Fraction);
    }
    let whole: u64 = whole.parse().map_err(|_| SizeError::TooLarge)?;
    let scale = 1u128 << (10 * power);
    let mut bytes = u128::from(whole) * scale; // below 2^64 x 2^60
    if !fraction.is_empty() {
        let tenths: u64 = fraction.parse().expect("at most 15 digits fit 64 bits");
        bytes += u128::from(tenths) * scale / 10u128.pow(fraction.len() as u32);
    }
    u64::try_from(bytes).map_err(|_| SizeError::TooLarge)
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len())
}

/// Which power of 1024 a unit stands for.
fn power_of(unit: &str) -> Result<u32, SizeError> {
    let lower = unit.to_ascii_lowercase();
    if matches!(lower.as_str(), "" | "b" | "byte" | "bytes") {
        return Ok(0);
    }
    for (index, name) in UNITS.into_iter().enumerate() {
        let letter = name[..1].to_ascii_lowercase();
        if lower == letter || lower == name.to_ascii_lowercase() {
            return Ok(index as u32 + 1);
        }
        if lower == format!("{letter}b") {
            return Err(SizeError::Decimal { unit: unit.to_owned(), instead: name });
        }
    }
    Err(SizeError::Unit { unit: unit.to_owned() })
}

/// Lets a configuration give a size as a text (`"64MiB"`) or as a number of bytes.
#[cfg(feature = "serde")]
pub(crate) mod as_people_write {
    use std::fmt;

    use serde::de::{Deserializer, Error, Unexpected, Visitor};

    struct SizeVisitor;

    impl Visitor<'_> for SizeVisitor {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size, like \"64MiB\" or a number of bytes")
        }

        fn visit_u64<E: Error>(self, bytes: u64) -> Result<u64, E> {
            Ok(bytes)
        }

        fn visit_i64<E: Error>(self, bytes: i64) -> Result<u64, E> {
            u64::try_from(bytes).map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
            super::parse_size(text).map_err(|error| E::custom(format_args!("{text:?}: {error}")))
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<Option<u64>, D::Error> {
        source.deserialize_any(SizeVisitor).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_size_takes_the_unit_that_fits() {
        let cases = [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1,023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (MIB - 1, "1.0 MiB"),
            (MIB, "1.0 MiB"),
            (3_567_616, "3.4 MiB"),
            (400 * GIB, "400.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(Size(bytes).to_string(), text, "{bytes}");
        }
    }

    #[test]
    fn the_exact_number_stands_beside_a_rounded_one() {
        assert_eq!(Exact(3_567_616).to_string(), "3.4 MiB (3,567,616 bytes)");
        assert_eq!(Exact(12).to_string(), "12 bytes");
        assert_eq!(format!("{:>8}", Size(12 * KIB)), "12.0 KiB");
    }

    #[test]
    fn bounds_are_never_rounded() {
        for (bytes, text) in [(0, "0"), (512, "512"), (1025, "1025"), (64 * KIB, "64 KiB"), (GIB, "1 GiB")] {
            assert_eq!(Unrounded(bytes).to_string(), text);
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for text in
            ["65536", "64k", "64K", "64KiB", "64 kib", " 64KiB ", "65536b", "65536 bytes", "0.0625MiB"]
        {
            assert_eq!(parse_size(text), Ok(65536), "{text}");
        }
        assert_eq!(parse_size("1.5GiB"), Ok(3 * GIB / 2));
        assert_eq!(parse_size("0.1KiB"), Ok(102));
        assert_eq!(parse_size("15.999999999999999EiB"), Ok(u64::MAX - 1152));
        assert_eq!(parse_size("2T"), Ok(2 * TIB));
    }

    #[test]
    fn what_is_no_size_is_told_why() {
        use SizeError::*;
        let unit = |unit: &str| Unit { unit: unit.to_owned() };
        let decimal = |unit: &str, instead| Decimal { unit: unit.to_owned(), instead };
        let cases = [
            ("", NotANumber),
            ("KiB", NotANumber),
            ("-1", NotANumber),
            (".5GiB", NotANumber),
            ("1.5", Fraction),
            ("1.5 bytes", Fraction),
            ("1.GiB", Fraction),
            ("1.0000000000000000GiB", Fraction),
            ("64kB", decimal("kB", "KiB")),
            ("64 MB", decimal("MB", "MiB")),
            ("1GB", decimal("GB", "GiB")),
            ("1KiBs", unit("KiBs")),
            ("1.5.2GiB", unit(".2GiB")),
            ("1e9", unit("e9")),
            ("٣KiB", NotANumber),
            ("99999999999999999999", TooLarge),
            ("18446744073709551615G", TooLarge),
            ("16EiB", TooLarge),
        ];
        for (text, error) in cases {
            assert_eq!(parse_size(text), Err(error), "{text}");
        }
        assert_eq!(
            parse_size("64MB").unwrap_err().to_string(),
            "\"MB\" may mean powers of 1000 or of 1024: write MiB, which is 1024"
        );
    }

    proptest! {
        /// What is printed unrounded is read as the same number; what is rounded, to a twentieth of a unit.
        #[test]
        fn what_is_printed_can_be_read(bits in any::<u64>(), shift in 0u32..64) {
            let bytes = bits >> shift;
            prop_assert_eq!(parse_size(&Unrounded(bytes).to_string()), Ok(bytes));
            prop_assert_eq!(parse_size(&Unrounded(bytes << (shift / 10 * 10)).to_string()), Ok(bytes << (shift / 10 * 10)));
            if let Ok(read) = parse_size(&Size(bytes).to_string()) && bytes >= KIB {
                prop_assert!(read.abs_diff(bytes) <= bytes / 18, "{} read as {}", bytes, read);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,24}") {
            let _ = parse_size(&text);
        }
    }
}

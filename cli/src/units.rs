//! Sizes as people write and read them.

use std::fmt;

/// The units, each 1024 times the one before.
const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A number of bytes in the unit that fits it: `3.4 MiB`. Below 1 KiB it is exact: `512 bytes`.
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64 / 1024.0;
        if self.0 < 1024 {
            return f.pad(&count(self.0, "byte"));
        }
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
pub(crate) struct Exact(pub(crate) u64);

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1024 {
            return Size(self.0).fmt(f);
        }
        f.pad(&format!("{} ({} bytes)", Size(self.0), grouped(self.0)))
    }
}

/// A power of two as people call it: `64 KiB`, `512`. For bounds, where no rounding may show.
pub(crate) fn power_of_two(value: u64) -> String {
    let mut value = value;
    let mut unit = None;
    for next in UNITS {
        if value < 1024 || !value.is_multiple_of(1024) {
            break;
        }
        value /= 1024;
        unit = Some(next);
    }
    match unit {
        Some(unit) => format!("{value} {unit}"),
        None => value.to_string(),
    }
}

/// A number with its digits in groups of three: `3,567,616`.
pub(crate) fn grouped(value: u64) -> String {
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
pub(crate) fn count(value: u64, thing: &str) -> String {
    let plural = if value == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(value))
}

/// Reads a size as people write it: `4096`, `64K`, `64KiB`, `1 MiB`. Units are always powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| "expected a number of bytes, like 4096 or 64KiB".to_owned())?;
    let power = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 1,
        "m" | "mib" => 2,
        "g" | "gib" => 3,
        _ => return Err(format!("the unit {unit:?} is none of KiB, MiB, GiB")),
    };
    number.checked_mul(1 << (10 * power)).ok_or_else(|| "too large a number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_takes_the_unit_that_fits() {
        let cases = [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1,023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1 << 20, "1.0 MiB"),
            (3_567_616, "3.4 MiB"),
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
    }

    #[test]
    fn bounds_are_never_rounded() {
        assert_eq!(power_of_two(512), "512");
        assert_eq!(power_of_two(1 << 16), "64 KiB");
        assert_eq!(power_of_two(1 << 30), "1 GiB");
        assert_eq!(power_of_two(1025), "1025");
        assert_eq!(power_of_two(0), "0");
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for text in ["65536", "64k", "64K", "64KiB", "64 kib", "65536b"] {
            assert_eq!(parse_size(text), Ok(65536), "{text}");
        }
        for text in ["", "KiB", "-1", "1.5M", "64KB", "99999999999999999999", "18446744073709551615G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}

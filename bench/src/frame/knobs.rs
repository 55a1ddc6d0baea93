//! The numbers that a workload can be changed by.
//!
//! Each knob has two values, small and real. CI runs the small ones, so no benchmark rots; figures
//! that we quote come from the real ones. `--set name=value` overrides either.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Small,
    Real,
}

/// Hands out the knobs of one call, and remembers them for printing.
#[derive(Debug)]
pub(crate) struct Knobs {
    size: Size,
    settings: BTreeMap<String, u64>,
    taken: BTreeMap<&'static str, u64>,
}

impl Knobs {
    /// If a name was set twice, the last one holds.
    pub(crate) fn new(size: Size, settings: impl IntoIterator<Item = Setting>) -> Knobs {
        let settings = settings.into_iter().map(|setting| (setting.name, setting.value)).collect();
        Knobs { size, settings, taken: BTreeMap::new() }
    }

    /// The value of a knob, given its (small, real) pair.
    pub(crate) fn knob(&mut self, name: &'static str, (small, real): (u64, u64)) -> u64 {
        let default = match self.size {
            Size::Small => small,
            Size::Real => real,
        };
        let value = self.settings.get(name).copied().unwrap_or(default);
        let earlier = self.taken.insert(name, value);
        // One name, one value: what is printed is what every benchmark used.
        assert!(earlier.is_none_or(|earlier| earlier == value), "knob {name} has two defaults");
        value
    }

    /// Finds settings that nobody took. Call it after all knobs were taken.
    pub(crate) fn check(&self) -> Result<(), UnknownKnob> {
        match self.settings.keys().find(|name| !self.taken.contains_key(name.as_str())) {
            None => Ok(()),
            Some(name) => Err(UnknownKnob {
                name: name.clone(),
                known: self.taken.keys().copied().collect::<Vec<_>>().join(", "),
            }),
        }
    }
}

impl fmt::Display for Knobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = match self.size {
            Size::Small => "small",
            Size::Real => "real",
        };
        write!(f, "knobs ({size}):")?;
        for (index, (name, value)) in self.taken.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {name}={}", Amount(*value))?;
        }
        Ok(())
    }
}

/// A knob was set that no benchmark of this call has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no knob {name}; there are {known}")]
pub(crate) struct UnknownKnob {
    name: String,
    known: String,
}

/// What `--set name=value` says. The value may end in `KiB`, `MiB` or `GiB`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    name: String,
    value: u64,
}

impl FromStr for Setting {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Setting, SettingError> {
        let (name, value) = text.split_once('=').ok_or(SettingError::Shape)?;
        if name.is_empty() {
            return Err(SettingError::Shape);
        }
        let (digits, unit) = [("KiB", KIB), ("MiB", MIB), ("GiB", GIB)]
            .into_iter()
            .find_map(|(suffix, unit)| Some((value.strip_suffix(suffix)?, unit)))
            .unwrap_or((value, 1));
        let value = digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(unit))
            .ok_or_else(|| SettingError::Value { found: value.to_owned() })?;
        Ok(Setting { name: name.to_owned(), value })
    }
}

/// Why `--set` was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingError {
    #[error("expected NAME=VALUE")]
    Shape,
    #[error("expected a whole number, perhaps with KiB, MiB or GiB, found {found:?}")]
    Value { found: String },
}

/// Prints the way [`Setting`] reads.
struct Amount(u64);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Amount(value) = *self;
        for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if value > 0 && value.is_multiple_of(unit) {
                return write!(f, "{}{name}", value / unit);
            }
        }
        write!(f, "{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knobs(size: Size, settings: &[&str]) -> Knobs {
        Knobs::new(size, settings.iter().map(|text| text.parse().unwrap()))
    }

    #[test]
    fn a_knob_follows_the_size_until_it_is_set() {
        assert_eq!(knobs(Size::Small, &[]).knob("slices", (1, 64)), 1);
        assert_eq!(knobs(Size::Real, &[]).knob("slices", (1, 64)), 64);
        assert_eq!(knobs(Size::Real, &["slices=3", "slices=5"]).knob("slices", (1, 64)), 5);
    }

    #[test]
    fn a_setting_nobody_took_is_found() {
        let mut knobs = knobs(Size::Small, &["slice=3"]);
        knobs.knob("slices", (1, 64));
        let error = knobs.check().unwrap_err();
        assert_eq!(error.to_string(), "there is no knob slice; there are slices");
        knobs.knob("slice", (1, 1));
        assert_eq!(knobs.check(), Ok(()));
    }

    #[test]
    fn settings_take_units() {
        for (text, value) in
            [("a=0", 0), ("a=7", 7), ("a=64KiB", 65_536), ("a=16MiB", 16 << 20), ("a=2GiB", 2 << 30)]
        {
            assert_eq!(text.parse(), Ok(Setting { name: "a".to_owned(), value }), "{text}");
        }
        for text in ["", "a", "=1"] {
            assert_eq!(text.parse::<Setting>(), Err(SettingError::Shape), "{text}");
        }
        for text in ["a=", "a=-1", "a=1.5", "a=1MB", "a=KiB", "a=99999999999GiB"] {
            assert!(matches!(text.parse::<Setting>(), Err(SettingError::Value { .. })), "{text}");
        }
    }

    #[test]
    fn knobs_print_what_settings_read() {
        let mut knobs = knobs(Size::Real, &["odd=1025"]);
        for (name, value) in [("bytes", GIB), ("odd", 1), ("none", 0), ("piece", 8 * MIB)] {
            knobs.knob(name, (value, value));
        }
        assert_eq!(knobs.to_string(), "knobs (real): bytes=1GiB, none=0, odd=1025, piece=8MiB");
    }
}

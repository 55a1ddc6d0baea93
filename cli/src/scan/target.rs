//! Which slices a scan is for.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use pelton::{KeyPattern, SnapStatus};

/// One view, of which clock and slice may be left open.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pattern: KeyPattern,
    /// The view as a whole.
    view: KeyPattern,
    /// Whether the clock is left open.
    newest: bool,
    text: String,
}

impl Target {
    /// All that has to be known to choose: every slice of the view.
    pub(super) fn view(&self) -> &KeyPattern {
        &self.view
    }

    /// Of the slices of the view, those to scan: of the clock that is named, or of the newest complete generation.
    ///
    /// A load commits slice 0 last, so a generation is complete if its slices are numbered from 0 without a gap.
    ///
    /// # Errors
    /// What there is to say if there are none.
    pub(super) fn choose(&self, view: Vec<SnapStatus>) -> Result<Vec<SnapStatus>, String> {
        let matching = |status: &SnapStatus| self.pattern.matches(&status.key);
        if !self.newest {
            let found: Vec<SnapStatus> = view.into_iter().filter(matching).collect();
            return if found.is_empty() { Err("is not in the cache".to_owned()) } else { Ok(found) };
        }
        let mut generations = BTreeMap::<u64, Vec<SnapStatus>>::new();
        for status in view {
            generations.entry(status.key.clock()).or_default().push(status);
        }
        let newest = generations.keys().next_back().copied();
        let complete = generations.into_values().rfind(|slices| is_complete(slices));
        let found: Vec<SnapStatus> = complete.into_iter().flatten().filter(matching).collect();
        match (newest, found.is_empty()) {
            (_, false) => Ok(found),
            (Some(clock), true) => Err(format!(
                "is in no complete generation; the newest has clock {clock}: name a clock to scan what is there"
            )),
            (None, true) => Err("is not in the cache".to_owned()),
        }
    }
}

/// Whether the slices, all of one clock, are numbered from 0 without a gap.
fn is_complete(slices: &[SnapStatus]) -> bool {
    slices.iter().map(|status| status.key.slice()).max().is_some_and(|last| last as usize + 1 == slices.len())
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let parse = |text: &str| text.parse().map_err(|error: pelton::KeyError| error.to_string());
        let pattern: KeyPattern = parse(text)?;
        let view = text.split(['@', '#']).next().unwrap_or_default();
        // Scans over several datasets would have no one answer.
        if !view.contains('/') || view.contains('*') {
            return Err("expected domain/view, domain/view@clock or domain/view@clock#slice".to_owned());
        }
        // A clock that is named is a number.
        let newest = text.split_once('@').is_none_or(|(_, clock)| clock.starts_with('*'));
        Ok(Target { pattern, view: parse(view)?, newest, text: text.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_and_slice_may_be_left_open() {
        for text in ["a/b", "a/b@7", "a/b@7#0", "a/b#0", "a/b@*#0", "a/b@*"] {
            let target: Target = text.parse().unwrap();
            assert!(target.pattern.matches(&"a/b@7#0".parse().unwrap()), "{text}");
            assert_eq!(target.newest, !text.contains('7'), "{text}");
        }
        for text in ["", "a", "*", "*/b", "a/*", "a@1", "a/b@x", "a/b@1#x"] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }
}

//! Which slices a scan is for.

use std::fmt;
use std::str::FromStr;

use pelton::{KeyPattern, SnapStatus};

/// One view, of which clock and slice may be left open.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pattern: KeyPattern,
    text: String,
}

impl Target {
    pub(super) fn pattern(&self) -> &KeyPattern {
        &self.pattern
    }

    /// Of the slices that match, those with the largest clock.
    pub(super) fn newest(&self, mut found: Vec<SnapStatus>) -> Vec<SnapStatus> {
        let newest = found.iter().map(|status| status.key.clock()).max();
        found.retain(|status| Some(status.key.clock()) == newest);
        found
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let pattern = text.parse().map_err(|error: pelton::KeyError| error.to_string())?;
        let view = text.split(['@', '#']).next().unwrap_or_default();
        // Scans over several datasets would have no one answer.
        if !view.contains('/') || view.contains('*') {
            return Err("expected domain/view, domain/view@clock or domain/view@clock#slice".to_owned());
        }
        Ok(Target { pattern, text: text.to_owned() })
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
            assert!(target.pattern().matches(&"a/b@7#0".parse().unwrap()), "{text}");
        }
        for text in ["", "a", "*", "*/b", "a/*", "a@1", "a/b@x", "a/b@1#x"] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }
}

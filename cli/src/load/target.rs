//! Which slices a load is for.

use std::fmt;
use std::str::FromStr;

use pelton::{Key, KeyError, KeyPattern};

/// All slices of a generation, or one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// `domain/view@clock`. The key is that of slice 0.
    Generation(Key),
    /// `domain/view@clock#slice`
    Slice(Key),
}

impl Target {
    /// The keys to load, if there are to be so many slices.
    pub(super) fn keys(&self, slices: u32) -> Vec<Key> {
        match self {
            Target::Slice(key) => vec![key.clone()],
            Target::Generation(key) => (0..slices).map(|slice| slice_of(key, slice)).collect(),
        }
    }

    /// All keys that the load decides about: what it does not make is gone afterwards.
    pub(super) fn pattern(&self) -> KeyPattern {
        match self {
            Target::Slice(key) => key.clone().into(),
            Target::Generation(_) => self.to_string().parse().expect("a key without its slice is a pattern"),
        }
    }
}

fn slice_of(key: &Key, slice: u32) -> Key {
    Key::new(key.domain(), key.view(), key.clock(), slice).expect("its parts are those of a key")
}

impl FromStr for Target {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Target, KeyError> {
        match text.contains('#') {
            true => text.parse().map(Target::Slice),
            false => format!("{text}#0").parse().map(Target::Generation),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Slice(key) => key.fmt(f),
            Target::Generation(key) => write!(f, "{}/{}@{}", key.domain(), key.view(), key.clock()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_slice_means_all_of_them() {
        let target: Target = "a/b@7".parse().unwrap();
        let keys: Vec<String> = target.keys(3).iter().map(Key::to_string).collect();
        assert_eq!(keys, ["a/b@7#0", "a/b@7#1", "a/b@7#2"]);
        assert_eq!(target.to_string(), "a/b@7");
        assert!(target.pattern().matches(&"a/b@7#9".parse().unwrap()));
        assert!(!target.pattern().matches(&"a/b@8#0".parse().unwrap()));
    }

    #[test]
    fn a_key_with_slice_means_that_one() {
        let target: Target = "a/b@7#2".parse().unwrap();
        assert_eq!(target.keys(1), ["a/b@7#2".parse().unwrap()]);
        assert!(!target.pattern().matches(&"a/b@7#0".parse().unwrap()));
    }

    #[test]
    fn domain_view_and_clock_are_needed() {
        for text in ["", "a", "a/b", "a/b@", "a/b@x", "a/b@*", "a/b@1#", "a/b@1#*"] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }
}

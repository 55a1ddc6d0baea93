//! Which keys are meant: a key with parts left open.

use std::fmt;
use std::str::FromStr;

use crate::key::{Key, KeyError, KeyParts, KeyProblem, check_name, parse_number};

/// A key in which `*` or an omitted part matches everything: `shop/*`, `shop/orders@*#3`, `*`.
///
/// Only whole parts can be open: `or*ers` is no pattern. The empty text is none either, so that an
/// unset variable in a script does not mean every key there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyPattern {
    domain: Option<String>,
    view: Option<String>,
    clock: Option<u64>,
    slice: Option<u32>,
}

impl KeyPattern {
    /// The pattern that matches every key: `*`.
    pub const ALL: KeyPattern = KeyPattern { domain: None, view: None, clock: None, slice: None };

    /// Whether the key is one of those meant.
    pub fn matches(&self, key: &Key) -> bool {
        self.domain.as_deref().is_none_or(|domain| domain == key.domain())
            && self.view.as_deref().is_none_or(|view| view == key.view())
            && self.clock.is_none_or(|clock| clock == key.clock())
            && self.slice.is_none_or(|slice| slice == key.slice())
    }
}

impl FromStr for KeyPattern {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<KeyPattern, KeyError> {
        let parts = KeyParts::split(text);
        Ok(KeyPattern {
            domain: open_or("domain", Some(parts.domain), parse_name)?,
            view: open_or("view", parts.view, parse_name)?,
            clock: open_or("clock", parts.clock, parse_number)?,
            slice: open_or("slice", parts.slice, parse_number)?,
        })
    }
}

/// Nothing for a part that is open, the parsed part for one that is told.
fn open_or<T>(
    part: &'static str,
    text: Option<&str>,
    parse: impl FnOnce(&'static str, &str) -> Result<T, KeyError>,
) -> Result<Option<T>, KeyError> {
    match text {
        None | Some("*") => Ok(None),
        Some("") => Err(KeyError { part, problem: KeyProblem::Missing }),
        Some(text) => parse(part, text).map(Some),
    }
}

fn parse_name(part: &'static str, text: &str) -> Result<String, KeyError> {
    check_name(part, text)?;
    Ok(text.to_owned())
}

impl fmt::Display for KeyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = |part: Option<String>| part.unwrap_or_else(|| "*".to_owned());
        write!(
            f,
            "{}/{}@{}#{}",
            star(self.domain.clone()),
            star(self.view.clone()),
            star(self.clock.map(|clock| clock.to_string())),
            star(self.slice.map(|slice| slice.to_string())),
        )
    }
}

impl From<Key> for KeyPattern {
    /// The pattern that matches this key and no other.
    fn from(key: Key) -> KeyPattern {
        KeyPattern {
            domain: Some(key.domain().to_owned()),
            view: Some(key.view().to_owned()),
            clock: Some(key.clock()),
            slice: Some(key.slice()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_parts_match_everything_and_told_parts_only_themselves() {
        let key: Key = "shop/orders@7#3".parse().unwrap();
        for text in [
            "*",
            "shop",
            "shop/orders",
            "shop/*",
            "*/orders",
            "shop/orders@7",
            "shop/orders@*#3",
            "shop/orders#3",
            "shop@7",
            "*/*@*#*",
            "*#3",
            "shop/orders@7#3",
        ] {
            assert!(text.parse::<KeyPattern>().unwrap().matches(&key), "{text}");
        }
        for text in
            ["sho", "shop/order", "*/order", "*@8", "*#30", "shop/orders@70", "shop/orders@7#4", "Shop"]
        {
            assert!(!text.parse::<KeyPattern>().unwrap().matches(&key), "{text}");
        }
    }

    #[test]
    fn a_pattern_reads_back_from_its_text() {
        for (text, full) in [("*", "*/*@*#*"), ("a/b", "a/b@*#*"), ("a#2", "a/*@*#2"), ("a/b@1#2", "a/b@1#2")]
        {
            let pattern: KeyPattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), full);
            assert_eq!(full.parse::<KeyPattern>().unwrap(), pattern);
        }
        assert_eq!("*".parse::<KeyPattern>().unwrap(), KeyPattern::ALL);
    }

    #[test]
    fn nothing_is_not_everything_and_stars_stand_alone() {
        for text in ["", "/", "a/", "@1", "#1", "a/b@", "a/b#", "or*ers", "a/b*", "a/b@1*", "a/b@x", "**"] {
            assert!(text.parse::<KeyPattern>().is_err(), "{text:?} is no pattern");
        }
    }
}

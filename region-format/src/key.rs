//! The name of a slice: `domain/view@clock#slice`.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The longest text of a key: two names, a u64, a u32 and three marks.
pub(crate) const KEY_BYTES_MAX: usize = 2 * NAME_BYTES_MAX + 20 + 10 + 3;
/// The longest domain or view.
pub const NAME_BYTES_MAX: usize = 128;

/// Names one slice of one generation: `shop/orders@1719878400000#3`.
///
/// A key has exactly one spelling, so keys can be compared, sorted and used as names of files by
/// their text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Domain and view in one piece, since there is a key for every slice: half as many allocations, half the room.
    names: Box<str>,
    /// Where the view begins.
    domain_bytes: u8,
    slice: u32,
    clock: u64,
}

const _: () = assert!(NAME_BYTES_MAX <= u8::MAX as usize, "a name's length fits into a byte");

impl Key {
    /// Makes a key of checked parts.
    ///
    /// # Errors
    /// [`KeyError`] if domain or view is not a name: 1 to 128 of `A-Z a-z 0-9 . _ -`.
    pub fn new(
        domain: impl Into<String>,
        view: impl Into<String>,
        clock: u64,
        slice: u32,
    ) -> Result<Key, KeyError> {
        let (mut names, view) = (domain.into(), view.into());
        check_name("domain", &names)?;
        check_name("view", &view)?;
        let domain_bytes = names.len() as u8; // Checked, so it fits.
        names.push_str(&view);
        Ok(Key { names: names.into_boxed_str(), domain_bytes, slice, clock })
    }

    /// Who owns the dataset.
    pub fn domain(&self) -> &str {
        &self.names[..usize::from(self.domain_bytes)]
    }

    /// Which dataset of that owner.
    pub fn view(&self) -> &str {
        &self.names[usize::from(self.domain_bytes)..]
    }

    /// Which version of it, in milliseconds.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// Which share of that version.
    pub fn slice(&self) -> u32 {
        self.slice
    }
}

/// By domain, then view, clock and slice.
impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        let parts = |key: &Key| (key.clock, key.slice);
        let names = self.domain().cmp(other.domain()).then_with(|| self.view().cmp(other.view()));
        names.then_with(|| parts(self).cmp(&parts(other)))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}#{}", self.domain(), self.view(), self.clock, self.slice)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("domain", &self.domain())
            .field("view", &self.view())
            .field("clock", &self.clock)
            .field("slice", &self.slice)
            .finish()
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Key, KeyError> {
        let parts = KeyParts::split(text);
        let missing = |part| KeyError { part, problem: KeyProblem::Missing };
        Key::new(
            parts.domain,
            parts.view.ok_or(missing("view"))?,
            parse_number("clock", parts.clock.ok_or(missing("clock"))?)?,
            parse_number("slice", parts.slice.ok_or(missing("slice"))?)?,
        )
    }
}

/// The text of a key or pattern, cut at `/`, `@` and `#`, unchecked. A part is absent if its mark is.
pub(crate) struct KeyParts<'a> {
    pub(crate) domain: &'a str,
    pub(crate) view: Option<&'a str>,
    pub(crate) clock: Option<&'a str>,
    pub(crate) slice: Option<&'a str>,
}

impl<'a> KeyParts<'a> {
    pub(crate) fn split(text: &'a str) -> KeyParts<'a> {
        let cut = |text: &'a str, mark| match text.split_once(mark) {
            Some((before, after)) => (before, Some(after)),
            None => (text, None),
        };
        let (text, slice) = cut(text, '#');
        let (text, clock) = cut(text, '@');
        let (domain, view) = cut(text, '/');
        KeyParts { domain, view, clock, slice }
    }
}

pub(crate) fn check_name(part: &'static str, name: &str) -> Result<(), KeyError> {
    let refuse = |problem| Err(KeyError { part, problem });
    if name.is_empty() {
        return refuse(KeyProblem::Missing);
    }
    if let Some(found) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c)) {
        return refuse(KeyProblem::Character { found });
    }
    if name.len() > NAME_BYTES_MAX {
        return refuse(KeyProblem::TooLong { found: name.len() });
    }
    Ok(())
}

/// A decimal number with exactly one spelling: digits only, no leading zeros.
pub(crate) fn parse_number<N: FromStr>(part: &'static str, text: &str) -> Result<N, KeyError> {
    let spelled = !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'));
    match text.parse() {
        Ok(number) if spelled => Ok(number),
        _ => Err(KeyError { part, problem: KeyProblem::NotANumber { found: text.to_owned() } }),
    }
}

/// Why a text is not a key or not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part} {problem}; a key is domain/view@clock#slice")]
#[non_exhaustive]
pub struct KeyError {
    /// Which part: domain, view, clock or slice.
    pub part: &'static str,
    /// What is wrong with it.
    pub problem: KeyProblem,
}

/// What is wrong with a part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyProblem {
    /// It is not there, or empty.
    #[error("is missing")]
    Missing,
    /// It has a character that no name has.
    #[error("has {found:?}, a name has only A-Z a-z 0-9 . _ -")]
    Character {
        /// That character.
        found: char,
    },
    /// It is longer than names may be.
    #[error("has {found} characters, a name has at most {NAME_BYTES_MAX}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// It is no number, too large, or spelled with a sign or leading zeros.
    #[error("is {found:?}, not a decimal number that fits and has no leading zeros")]
    NotANumber {
        /// What stands there.
        found: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names lie in one piece: where it is cut must count.
    #[test]
    fn keys_are_ordered_by_domain_view_clock_and_slice() {
        let texts =
            ["a/b@1#0", "a/b@1#1", "a/b@2#0", "a/bc@1#0", "a/c@1#0", "ab/a@1#0", "ab/c@1#0", "abc/a@1#0"];
        let keys = texts.map(|text| text.parse::<Key>().unwrap());
        let mut sorted = keys.to_vec();
        sorted.reverse();
        sorted.sort();
        assert_eq!(sorted, keys);
        let parts = |text: &str| {
            text.parse::<Key>().map(|key| (key.domain().to_owned(), key.view().to_owned())).unwrap()
        };
        assert_eq!(parts("ab/c@1#0"), ("ab".to_owned(), "c".to_owned()));
        assert_ne!(keys[3], keys[6], "the same letters, cut elsewhere");
    }

    #[test]
    fn a_key_reads_back_from_its_text() {
        for text in ["a/b@0#0", "shop/orders@1719878400000#3", "A.b_c-9/..@18446744073709551615#4294967295"] {
            assert_eq!(text.parse::<Key>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_key_has_one_spelling_and_all_its_parts() {
        for text in [
            "",
            "a",
            "a/b",
            "a/b@1",
            "a/b#1",
            "/b@1#1",
            "a/@1#1",
            "a/b@#1",
            "a/b@1#",
            "a/b@01#1",
            "a/b@+1#1",
            "a/b@1#-1",
            "a/b@1#4294967296",
            "a/b@18446744073709551616#0",
            "a b/c@1#1",
            "ä/c@1#1",
            "a/b/c@1#1",
            "a/b@1@2#3",
            "a/b@1#2#3",
            "*/b@1#1",
            "a/b@*#1",
            "a/b@1 #1",
            " a/b@1#1",
        ] {
            assert!(text.parse::<Key>().is_err(), "{text:?} is no key");
        }
    }

    #[test]
    fn a_name_has_at_most_128_characters() {
        let longest = "n".repeat(NAME_BYTES_MAX);
        assert!(Key::new(&longest, &longest, u64::MAX, u32::MAX).is_ok());
        let error = Key::new("d", longest + "n", 0, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "view has 129 characters, a name has at most 128; a key is domain/view@clock#slice"
        );
    }
}

//! 32 bytes that stand for everything that decides a slice's blobs.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::hex::{HexError, parse_hex, write_hex};

/// Fingerprints made with another encoding must never equal ours: the context keeps them apart.
const CONTEXT: &str = "pelton slice fingerprint v1";

/// Stands for everything that decides a slice's blobs: the source's version, the loci, filter,
/// sampling, caps, format. Equal fingerprints mean equal blobs, as a multiset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Takes 32 bytes that somebody else has made.
    pub const fn from_bytes(bytes: [u8; 32]) -> Fingerprint {
        Fingerprint(bytes)
    }

    /// Starts one from named fields.
    pub fn builder() -> FingerprintBuilder {
        FingerprintBuilder::default()
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Fingerprint, HexError> {
        parse_hex(text).map(Fingerprint)
    }
}

/// Collects what decides a slice's blobs.
///
/// The encoding is part of the format (`docs/region-format.md`, section 5): fields in order of their
/// names, equal names in the order given. So `locus` twice is a list, and its order counts: a
/// needless load is only slow, a wrong match is wrong data.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct FingerprintBuilder {
    fields: BTreeMap<String, Vec<FieldValue>>,
}

#[derive(Clone, Debug)]
struct FieldValue {
    kind: u8,
    bytes: Vec<u8>,
}

impl FingerprintBuilder {
    /// The version of the data at its source.
    pub fn source(self, version: impl AsRef<[u8]>) -> Self {
        self.bytes("source", version)
    }

    /// One place that the data comes from; call it for each, in order.
    pub fn locus(self, locus: impl AsRef<[u8]>) -> Self {
        self.bytes("locus", locus)
    }

    /// What is left out, in the loader's own language.
    pub fn filter(self, filter: impl AsRef<[u8]>) -> Self {
        self.bytes("filter", filter)
    }

    /// Which part is taken, in the loader's own language.
    pub fn sampling(self, sampling: impl AsRef<[u8]>) -> Self {
        self.bytes("sampling", sampling)
    }

    /// Where the load stops, in the loader's own language.
    pub fn caps(self, caps: impl AsRef<[u8]>) -> Self {
        self.bytes("caps", caps)
    }

    /// What the bytes of a blob mean, and which version of the loader makes them.
    pub fn format(self, format: impl AsRef<[u8]>) -> Self {
        self.bytes("format", format)
    }

    /// A field of the caller's own, as bytes.
    pub fn bytes(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.field(name, 0, value.as_ref())
    }

    /// A field of the caller's own, as a number.
    pub fn number(self, name: &str, value: u64) -> Self {
        self.field(name, 1, &value.to_le_bytes())
    }

    /// A field of the caller's own, as text.
    pub fn text(self, name: &str, value: &str) -> Self {
        self.field(name, 2, value.as_bytes())
    }

    /// The fingerprint of all that was told.
    pub fn finish(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        for (name, values) in &self.fields {
            for value in values {
                hasher.update(&(name.len() as u64).to_le_bytes());
                hasher.update(name.as_bytes());
                hasher.update(&[value.kind]);
                hasher.update(&(value.bytes.len() as u64).to_le_bytes());
                hasher.update(&value.bytes);
            }
        }
        Fingerprint(*hasher.finalize().as_bytes())
    }

    fn field(mut self, name: &str, kind: u8, value: &[u8]) -> Self {
        let value = FieldValue { kind, bytes: value.to_vec() };
        self.fields.entry(name.to_owned()).or_default().push(value);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_64_hexadecimal_digits() {
        let fingerprint = Fingerprint::from_bytes(std::array::from_fn(|i| i as u8 * 8));
        let text = fingerprint.to_string();
        assert!(text.starts_with("0008101820") && text.len() == 64);
        assert_eq!(text.parse(), Ok(fingerprint));
        assert_eq!(text.to_uppercase().parse(), Ok(fingerprint));
        for bad in ["", &text[1..], &format!("{text}0"), &text.replace('8', "g"), &"é".repeat(32)] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_may_come_in_any_order_and_lists_may_not() {
        let one = Fingerprint::builder().source("v1").locus("a").locus("b").filter("x>1").finish();
        let same = Fingerprint::builder().filter("x>1").locus("a").source("v1").locus("b").finish();
        let turned = Fingerprint::builder().source("v1").locus("b").locus("a").filter("x>1").finish();
        assert_eq!(one, same);
        assert_ne!(one, turned);
    }

    #[test]
    fn no_two_lists_of_fields_encode_alike() {
        let all = [
            Fingerprint::builder().finish(),
            Fingerprint::builder().bytes("", "").finish(),
            Fingerprint::builder().bytes("a", "b").finish(),
            Fingerprint::builder().bytes("ab", "").finish(),
            Fingerprint::builder().bytes("", "ab").finish(),
            Fingerprint::builder().text("a", "b").finish(),
            Fingerprint::builder().locus("ab").finish(),
            Fingerprint::builder().locus("a").locus("b").finish(),
            Fingerprint::builder().number("n", 98).finish(),
            Fingerprint::builder().bytes("n", 98u64.to_le_bytes()).finish(),
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(a, b);
            }
        }
    }

    /// Fingerprints are in manifests on disks we can't reach. If this fails, the context needs a new number.
    #[test]
    fn the_encoding_does_not_change() {
        let fingerprint =
            Fingerprint::builder().source("v1").locus("a").locus("b").number("limit", 10).finish();
        let mut hasher = blake3::Hasher::new_derive_key("pelton slice fingerprint v1");
        let mut field = |name: &str, kind: u8, value: &[u8]| {
            hasher.update(&[name.len() as u8, 0, 0, 0, 0, 0, 0, 0]).update(name.as_bytes()).update(&[kind]);
            hasher.update(&[value.len() as u8, 0, 0, 0, 0, 0, 0, 0]).update(value);
        };
        field("limit", 1, &[10, 0, 0, 0, 0, 0, 0, 0]);
        field("locus", 0, b"a");
        field("locus", 0, b"b");
        field("source", 0, b"v1");
        assert_eq!(fingerprint.as_bytes(), hasher.finalize().as_bytes());
        assert_eq!(fingerprint.to_string(), include_str!("../tests/golden/fingerprint.txt").trim());
    }
}

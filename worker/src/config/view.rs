//! What holds for some of the slices: those whose keys a pattern matches.

use pelton_region_format::KeyPattern;

/// What holds for the slices that a pattern matches.
///
/// Views are asked in their order: of each setting, the first view that matches and has it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct View {
    /// Which slices: `acme/*`, say.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "pattern"))]
    pub pattern: KeyPattern,
    /// The name of the loader that fills them.
    #[cfg_attr(feature = "serde", serde(default))]
    pub loader: Option<String>,
}

impl View {
    /// One that says nothing yet.
    pub fn new(pattern: KeyPattern) -> View {
        View { pattern, loader: None }
    }

    /// Filled by the loader of that name.
    #[must_use]
    pub fn loader(mut self, name: impl Into<String>) -> View {
        self.loader = Some(name.into());
        self
    }
}

#[cfg(feature = "serde")]
fn pattern<'de, D: serde::Deserializer<'de>>(source: D) -> Result<KeyPattern, D::Error> {
    let text: String = serde::Deserialize::deserialize(source)?;
    text.parse().map_err(serde::de::Error::custom)
}

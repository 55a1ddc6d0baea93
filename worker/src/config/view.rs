//! What holds for some of the slices: those whose keys a pattern matches.

use std::time::Duration;

use pelton_region_format::KeyPattern;

use crate::config::ConfigError;
use crate::tender::rules::{PartialTtls, check_ttl};
#[cfg(feature = "serde")]
use crate::units::span::as_people_write;

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
    /// How long after the last query they leave memory; [`Duration::MAX`] is never. By default 15 minutes.
    #[cfg_attr(feature = "serde", serde(default, deserialize_with = "as_people_write::or_never"))]
    pub evict_after: Option<Duration>,
    /// How long after that they leave the disks. By default 2 hours.
    #[cfg_attr(feature = "serde", serde(default, deserialize_with = "as_people_write::or_never"))]
    pub flush_after: Option<Duration>,
    /// How long after that they are forgotten. By default half an hour.
    #[cfg_attr(feature = "serde", serde(default, deserialize_with = "as_people_write::or_never"))]
    pub erase_after: Option<Duration>,
}

impl View {
    /// One that says nothing yet.
    pub fn new(pattern: KeyPattern) -> View {
        View { pattern, loader: None, evict_after: None, flush_after: None, erase_after: None }
    }

    /// Filled by the loader of that name.
    #[must_use]
    pub fn loader(mut self, name: impl Into<String>) -> View {
        self.loader = Some(name.into());
        self
    }

    /// Out of memory so long after the last query; [`Duration::MAX`] is never.
    #[must_use]
    pub fn evict_after(mut self, idle: Duration) -> View {
        self.evict_after = Some(idle);
        self
    }

    /// Off the disks so long after that.
    #[must_use]
    pub fn flush_after(mut self, idle: Duration) -> View {
        self.flush_after = Some(idle);
        self
    }

    /// Forgotten so long after that.
    #[must_use]
    pub fn erase_after(mut self, idle: Duration) -> View {
        self.erase_after = Some(idle);
        self
    }

    /// What it says of how long its slices may be idle.
    pub(crate) fn ttls(&self) -> Result<PartialTtls, ConfigError> {
        let part = |name, idle: Option<Duration>| {
            let ms = |idle| match idle {
                Duration::MAX => u64::MAX,
                idle => u64::try_from(idle.as_millis()).unwrap_or(u64::MAX - 1), // Which is out of range.
            };
            idle.map(|idle| check_ttl(name, &self.pattern, ms(idle))).transpose()
        };
        Ok(PartialTtls {
            evict_ms: part("evict", self.evict_after)?,
            flush_ms: part("flush", self.flush_after)?,
            erase_ms: part("erase", self.erase_after)?,
        })
    }
}

#[cfg(feature = "serde")]
fn pattern<'de, D: serde::Deserializer<'de>>(source: D) -> Result<KeyPattern, D::Error> {
    let text: String = serde::Deserialize::deserialize(source)?;
    text.parse().map_err(serde::de::Error::custom)
}

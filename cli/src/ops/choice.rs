//! Which slices a command is for.

use std::path::{Path, PathBuf};

use clap::Args;
use pelton::{By, Cache, Config, Filters, Key, KeyPattern, Selection};

use super::place::{NodeOptions, Place};
use crate::cache::{self, CacheOptions};
use crate::failure::{Failure, shown};
use crate::say;

/// What chooses among the slices of a pattern, and the cache they are in.
#[derive(Args)]
pub(super) struct Choice {
    /// Only slices of which this is true, like "bytes>1GiB, idle>10m"; all of them must be, if there are several.
    /// --help lists the names
    #[arg(long = "where", value_name = "FILTER")]
    filters: Vec<Filters>,
    /// Ask the filters about all slices of a generation together
    #[arg(long)]
    pub(super) generations: bool,
    #[command(flatten)]
    cache: CacheOptions,
    #[command(flatten)]
    node: NodeOptions,
    /// JSON, one line for each
    #[arg(long)]
    pub(super) json: bool,
}

impl Choice {
    /// Without a pattern, all slices there are.
    pub(super) fn selection(&self, pattern: Option<&KeyPattern>) -> Selection {
        let filters = self.filters.iter().cloned().fold(Filters::default(), Filters::and);
        let by = if self.generations { By::Generation } else { By::Slice };
        Selection::new(pattern.cloned().unwrap_or(KeyPattern::ALL)).filters(filters).by(by)
    }

    /// What the options and the file say of the cache.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        self.cache.config()
    }

    /// Connects to the node that was told, or opens the cache as `config` says. `command` is for messages.
    pub(super) fn place(&self, command: &str, config: Config) -> Result<Place, Failure> {
        match self.node.connect(command)? {
            Some(remote) => Ok(Place::There(Box::new(remote))),
            None => self.open(config).map(Place::Here),
        }
    }

    /// Opens it, and says what was not found whole.
    fn open(&self, config: Config) -> Result<Cache, Failure> {
        let cache = cache::open_existing(config)?;
        for (path, why) in dropped(&cache, &KeyPattern::ALL) {
            say(&format_args!("{}: {why}; the slice was dropped, load it again", shown(path)));
        }
        for (path, why) in &cache.recovery().logs {
            say(&format_args!("{}: {why}; pins and last queries may be lost", shown(path)));
        }
        Ok(cache)
    }
}

/// What the start has not found whole, of the slices that a pattern means: each manifest, and why.
pub(super) fn dropped<'a>(
    cache: &'a Cache,
    pattern: &'a KeyPattern,
) -> impl Iterator<Item = (&'a Path, &'a str)> {
    // A manifest that was never finished is what a killed load leaves. Nothing is lost by that.
    let counts = |path: &Path| path.extension().is_some_and(|extension| extension == "manifest");
    let all = cache.recovery().dropped.iter();
    all.filter(move |(path, _)| counts(path) && key_of(path).is_none_or(|key| pattern.matches(&key)))
        .map(|(path, why): &(PathBuf, String)| (path.as_path(), why.as_str()))
}

/// The key that a manifest's file is named after.
pub(super) fn key_of(manifest: &Path) -> Option<Key> {
    let stem = manifest.file_stem()?.to_str()?;
    let mut parts = stem.split('+');
    let (domain, view, clock, slice) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    format!("{domain}/{view}@{clock}#{slice}").parse().ok()
}

/// All names that filters know, for the end of a help text.
pub(super) fn filter_help() -> String {
    let mut text =
        "Filters: NAME RELATION VALUE, such as bytes>1GiB, with commas between several\n".to_owned();
    let mut examples = Vec::new();
    for (name, values, says) in Filters::names() {
        let kind = values.split(" such as ").next().unwrap_or(values);
        text += &format!("  {name:<16} {says} ({kind})\n");
        if kind != values && !examples.contains(&values) {
            examples.push(values);
        }
    }
    examples.iter().fold(text + "Values:\n", |text, values| text + &format!("  {values}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_named_after_its_key() {
        let key = key_of(Path::new("x/manifests/shop.a+orders@7+1#0"));
        assert_eq!(key, None);
        let key = key_of(Path::new("x/manifests/shop.a+orders+7+12.manifest"));
        assert_eq!(key, "shop.a/orders@7#12".parse().ok());
        assert_eq!(key_of(Path::new("x/manifests/letter.manifest")), None);
    }
}

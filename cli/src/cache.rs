//! What all commands on a cache have in common: where it is, what it may use, and the file that says so.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use pelton::nexus::Limits;
use pelton::tender::Ttls;
use pelton::units::parse_size;
use pelton::{Cache, CacheBuilder, Config, KeyPattern, SpindleConfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::failure::{Failure, shown};
use crate::say;

/// The folder of a cache of which nobody said where it is.
const SPINDLE_DEFAULT: &str = "./pelton-data";

/// The options that say which cache it is. Each overrides what the file says.
#[derive(Args)]
pub(crate) struct CacheOptions {
    /// A folder of the cache on one disk, and how much it may hold, like /mnt/nvme0/cache:400GiB; give it once
    /// for each disk [default: ./pelton-data, and half of what is free]
    #[arg(long = "spindle", value_name = "DIR[:SIZE]")]
    spindles: Vec<SpindleConfig>,
    /// How much memory the cache may use, like 512MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// A TOML file with the cache's settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl CacheOptions {
    /// What the file says, and the options over it.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let mut config = match &self.config {
            Some(path) => read(path)?,
            None => Config::default(),
        };
        if !self.spindles.is_empty() {
            config.spindles = self.spindles.clone();
        } else if config.spindles.is_empty() {
            config.spindles = vec![SpindleConfig::new(SPINDLE_DEFAULT)];
        }
        config.memory = self.memory.or(config.memory);
        Ok(config)
    }

    /// What the file says of a node that serves the cache, and `options`, each a name and a value, over it.
    pub(crate) fn node_limits(&self, options: &[(String, u64)]) -> Result<Limits, Failure> {
        let mut limits = Limits::default();
        if let Some(path) = &self.config {
            let file: NodeFile = read(path)?;
            for (name, written) in file.node.limits {
                let refuse = |why: &dyn fmt::Display| refuse_line(path, written.span(), why);
                let value = match written.get_ref() {
                    Written::Number(value) => *value,
                    Written::Text(text) => parse_size(text).map_err(|error| refuse(&error))?,
                };
                limits.set_named(&name, value).map_err(|error| refuse(&error))?;
            }
        }
        let refuse = |error| Failure::cache(&error);
        options.iter().try_for_each(|(name, value)| limits.set_named(name, *value)).map_err(refuse)?;
        limits.check_together().map_err(refuse)?;
        Ok(limits)
    }
}

/// What is for a node, of a file that has the cache's settings, too.
#[derive(Deserialize)]
struct NodeFile {
    #[serde(default)]
    node: NodeTable,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct NodeTable {
    limits: BTreeMap<String, toml::Spanned<Written>>,
}

/// A size or a count, as people write it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number, or a size like \"64MiB\"")]
enum Written {
    Number(u64),
    Text(String),
}

/// Reads `NAME=VALUE`.
pub(crate) fn parse_limit(text: &str) -> Result<(String, u64), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE, like streams_max=512")?;
    Ok((name.to_owned(), parse_size(value).map_err(|error| error.to_string())?))
}

/// Opens the cache. Folders that are missing are made.
///
/// A command removes nothing for its age: it is over long before anybody could ask, and what was asked for yesterday
/// is what a command is called for today. Room is made as ever.
pub(crate) fn open(mut config: Config) -> Result<Cache, Failure> {
    config.ttls = vec![(KeyPattern::ALL, Ttls::NEVER)];
    open_with(CacheBuilder::from_config(config))
}

/// Opens what was set up.
pub(crate) fn open_with(builder: CacheBuilder) -> Result<Cache, Failure> {
    let cache = builder.open().map_err(|error| Failure::cache(&error))?;
    for spindle in cache.spindles() {
        if let Some(other) = &spindle.shares_disk_with {
            let (folder, other) = (shown(&spindle.folder), shown(other));
            say(&format!(
                "the spindles {folder} and {other} share a file system: they fill and fail together"
            ));
        }
    }
    Ok(cache)
}

/// Opens a cache that is there: a spindle that is missing is not made, since there would be nothing in it.
pub(crate) fn open_existing(config: Config) -> Result<Cache, Failure> {
    match config.spindles.iter().find(|spindle| !spindle.path.exists()) {
        Some(missing) => Err(Failure::file(&missing.path, "there is no such spindle; load something first")),
        None => open(config),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let text = fs::read_to_string(path).map_err(|error| Failure::io(path, "read", &error))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(&text, span.start));
        Failure::file(path, format!("line {line}: {}", error.message()))
    })
}

/// Something that the file was read with, and that makes no sense.
fn refuse_line(path: &Path, at: Range<usize>, why: &dyn fmt::Display) -> Failure {
    let line = fs::read_to_string(path).map_or(1, |text| line_of(&text, at.start));
    Failure::file(path, format!("line {line}: {why}"))
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

//! What all commands on a cache have in common: where it is, what it may use, and the file that says so.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use pelton::tender::Ttls;
use pelton::units::parse_size;
use pelton::{Cache, CacheBuilder, Config, KeyPattern, SpindleConfig};

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
}

/// Opens the cache. Folders that are missing are made.
///
/// A command removes nothing for its age: it is over long before anybody could ask, and what was asked for yesterday
/// is what a command is called for today. Room is made as ever.
pub(crate) fn open(mut config: Config) -> Result<Cache, Failure> {
    config.ttls = vec![(KeyPattern::ALL, Ttls::NEVER)];
    let cache = CacheBuilder::from_config(config).open().map_err(|error| Failure::cache(&error))?;
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

fn read(path: &Path) -> Result<Config, Failure> {
    let text = fs::read_to_string(path).map_err(|error| Failure::io(path, "read", &error))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        Failure::file(path, format!("line {line}: {}", error.message()))
    })
}

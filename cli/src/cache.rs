//! What all commands on a cache have in common: where it is and what memory it may use.

use std::path::PathBuf;

use clap::Args;
use pelton::{Cache, CacheBuilder};

use crate::failure::Failure;
use pelton::units::parse_size;

/// The options that say which cache it is.
#[derive(Args)]
pub(crate) struct CacheOptions {
    /// A folder of the cache on one disk; give it once for each disk
    #[arg(long = "spindle", value_name = "DIR", default_value = "./pelton-data")]
    pub(crate) spindles: Vec<PathBuf>,
    /// How much memory the cache may use, like 512MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory: Option<u64>,
}

impl CacheOptions {
    /// Opens the cache, with what the command itself has to set. Folders that are missing are made.
    pub(crate) fn open(&self, set: impl FnOnce(CacheBuilder) -> CacheBuilder) -> Result<Cache, Failure> {
        let mut builder = Cache::builder();
        for spindle in &self.spindles {
            builder = builder.spindle(spindle);
        }
        if let Some(bytes) = self.memory {
            builder = builder.memory(bytes);
        }
        set(builder).open().map_err(|error| Failure::cache(&error))
    }
}

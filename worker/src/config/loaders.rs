//! The loaders that a configuration can set up: those that come with the cache.

use std::path::PathBuf;

use crate::load::files::{FileFormat, FilesLoader};

/// The loaders that come with the cache, under the names by which views call them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct LoadersConfig {
    /// `files`: slices from a tree of folders.
    pub files: Option<FilesConfig>,
}

/// Where the loader `files` finds slices: see [`FilesLoader`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct FilesConfig {
    /// The root of the tree.
    pub root: PathBuf,
    /// How blobs stand in the files.
    pub format: FileFormat,
}

impl FilesConfig {
    /// The tree at `root`, whose files are of that format.
    pub fn new(root: impl Into<PathBuf>, format: FileFormat) -> FilesConfig {
        FilesConfig { root: root.into(), format }
    }

    pub(crate) fn loader(&self) -> FilesLoader {
        FilesLoader::new(&self.root, self.format)
    }
}

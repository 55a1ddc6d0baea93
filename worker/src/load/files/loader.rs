//! The loader `files`: slices from a tree of folders.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pelton_region_format::Key;

use super::fingerprint::{Content, fingerprint, of_contents};
use super::format::FileFormat;
use super::input::find;
use crate::load::fill::Fill;
use crate::load::{Counts, Loader, LoaderError};
use crate::slice::plan::LoadPlan;

/// What fingerprints of `pelton load` say if nobody chose another codec.
const CODEC: &str = "none";

/// Loads slices from a tree of folders: `domain/view/clock/slice` under a root.
///
/// A slice is all regular files in its folder and the folders below, in the order of their paths, or a single file of that
/// name. All are cut into blobs in one way. Its fingerprint is that of `pelton load` for the same files and one slice: it
/// is made of names, lengths and contents, so that planning reads everything once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesLoader {
    root: PathBuf,
    format: FileFormat,
}

impl FilesLoader {
    /// One for the tree at `root`.
    pub fn new(root: impl Into<PathBuf>, format: FileFormat) -> FilesLoader {
        FilesLoader { root: root.into(), format }
    }

    /// Where a slice's files lie; nothing for names that would lead elsewhere.
    fn folder(&self, key: &Key) -> Option<PathBuf> {
        let is_step = |name: &str| name == "." || name == "..";
        if is_step(key.domain()) || is_step(key.view()) {
            return None;
        }
        let (clock, slice) = (key.clock().to_string(), key.slice().to_string());
        Some(self.root.join(key.domain()).join(key.view()).join(clock).join(slice))
    }

    fn folder_there(&self, key: &Key) -> Result<PathBuf, LoaderError> {
        // A root that is missing is no slice that is missing: a disk may not be mounted.
        fs::metadata(&self.root).map_err(|error| super::FileError::io(&self.root, error))?;
        let folder = self.folder(key).ok_or(LoaderError::NotThere)?;
        match fs::metadata(&folder) {
            Ok(metadata) if metadata.is_dir() || metadata.is_file() => Ok(folder),
            Ok(_) => Err(refuse(&folder, "is neither a folder nor a regular file")),
            Err(error) if is_missing(&error) => Err(LoaderError::NotThere),
            Err(error) => Err(super::FileError::io(&folder, error).into()),
        }
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn refuse(path: &Path, message: &str) -> LoaderError {
    super::FileError::content(path, message).into()
}

impl From<super::FileError> for LoaderError {
    fn from(error: super::FileError) -> LoaderError {
        LoaderError::failed(error)
    }
}

impl Loader for FilesLoader {
    fn plan(&self, key: &Key) -> Result<LoadPlan, LoaderError> {
        let folder = self.folder_there(key)?;
        let inputs = find(&folder)?;
        let made = fingerprint(&inputs, self.format, CODEC, 1, &mut |_| {})?;
        let mut plan = LoadPlan::new(made.ok_or_else(|| refuse(&folder, "was a regular file a moment ago"))?);
        plan.expected_bytes = inputs.iter().map(super::Input::len).sum();
        Ok(plan)
    }

    fn fill(&self, fill: &Fill) -> Result<Counts, LoaderError> {
        let folder = self.folder_there(fill.key())?;
        let inputs = find(&folder)?;
        let mut packer = fill.packer();
        let mut contents = Vec::new();
        for input in &inputs {
            let mut content = Content::default();
            self.format.walk(input, &mut |bytes| content.add(bytes), &mut |blob| packer.push(blob))?;
            contents.push((input.name(), content));
        }
        packer.finish()?;
        // What was sent must be what was planned, whoever has written there meanwhile.
        if of_contents(&contents, self.format, CODEC, 1) != fill.plan().fingerprint {
            return Err(super::FileError::Changed { path: folder }.into());
        }
        Ok(Counts::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_lies_under_its_key_and_no_name_leads_out_of_the_root() {
        let loader = FilesLoader::new("/root", FileFormat::Lines);
        let folder = |key: &str| loader.folder(&key.parse().unwrap());
        assert_eq!(folder("shop/orders@17#3"), Some("/root/shop/orders/17/3".into()));
        for key in ["../etc@1#0", "shop/..@1#0", "./.@1#0"] {
            assert_eq!(folder(key), None, "{key}");
        }
    }
}

//! Mistakes that a commit might make, made by the disk: it does what it would be told by a commit that makes them.
//!
//! So a test can put each of them in, and show that it is found, without a line of it in the code under test.

use std::io;
use std::path::Path;

use super::{Answer, Failure, State};
use crate::snap::manifest::Manifest;
use crate::spindle::engine::{Op, Outcome};

/// A step left out, or taken too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// Region files are not synced.
    RegionsNotSynced,
    /// Region files are synced after the manifest was renamed.
    ManifestBeforeRegions,
    /// The load folder, with the names of the regions, is not synced.
    LoadFolderNotSynced,
    /// The folder that load folders stand in is not synced.
    LoadsNotSynced,
    /// The manifest is renamed before its bytes are synced.
    ManifestNotSynced,
    /// The folder of manifests is not synced after the rename.
    RenameNotSynced,
    /// The manifest is written under its own name, in place of the one before.
    NoTemporaryName,
    /// What is replaced goes before the new manifest has its name.
    OldRegionsFirst,
    /// The folder of manifests is not synced after the unlink of a flush.
    UnlinkNotSynced,
    /// A flush removes the regions, then the manifest.
    FlushRegionsFirst,
}

impl Mistake {
    pub(crate) const ALL: [Mistake; 10] = [
        Mistake::RegionsNotSynced,
        Mistake::ManifestBeforeRegions,
        Mistake::LoadFolderNotSynced,
        Mistake::LoadsNotSynced,
        Mistake::ManifestNotSynced,
        Mistake::RenameNotSynced,
        Mistake::NoTemporaryName,
        Mistake::OldRegionsFirst,
        Mistake::UnlinkNotSynced,
        Mistake::FlushRegionsFirst,
    ];
}

const DONE: io::Result<Answer> = Ok(Answer::Outcome(Outcome::Done));

impl super::SimDisk {
    /// With a mistake in what it is told.
    pub(crate) fn with_mistake(&self, mistake: Mistake) {
        self.state().mistake = Some(mistake);
    }
}

impl State {
    pub(super) fn perform_or_blunder(&mut self, op: &mut Op, failure: Option<Failure>) -> io::Result<Answer> {
        let Some(mistake) = self.mistake else { return self.perform(op, failure) };
        let is_named = |path: &Path, name: &str| path.file_name().is_some_and(|last| last == name);
        let is_in = |path: &Path, name: &str| path.parent().is_some_and(|parent| is_named(parent, name));
        let ends = |path: &Path, end: &str| path.extension().is_some_and(|extension| extension == end);
        match (mistake, &mut *op) {
            (Mistake::RegionsNotSynced, Op::SyncData { file }) if ends(file.path(), "region") => DONE,
            (Mistake::ManifestBeforeRegions, Op::SyncData { file }) if ends(file.path(), "region") => {
                self.put_off.push(Op::SyncData { file: file.clone() });
                DONE
            }
            (Mistake::ManifestBeforeRegions, Op::SyncFolder { path }) if is_named(path, "manifests") => {
                let result = self.perform(op, failure);
                self.catch_up();
                result
            }
            (Mistake::LoadFolderNotSynced, Op::SyncFolder { path }) if is_in(path, "loads") => DONE,
            (Mistake::LoadsNotSynced, Op::SyncFolder { path }) if is_named(path, "loads") => DONE,
            (Mistake::ManifestNotSynced | Mistake::NoTemporaryName, Op::WriteSmall { path, bytes }) => {
                let path = match mistake {
                    Mistake::NoTemporaryName => path.with_extension("").with_extension("manifest"),
                    _ => path.clone(),
                };
                let bytes = bytes.clone();
                let file = match self.find_file(&path) {
                    Ok(id) => {
                        self.file(id)?.set_length(0)?;
                        self.handle(id, &path, super::FileMode::Buffered, super::OFlags::RDWR)?
                    }
                    Err(_) => self.create(&path, super::FileMode::Buffered)?,
                };
                let id = self.node_of(&file)?;
                self.write(id, &file, &bytes, 0, None)?;
                if mistake == Mistake::NoTemporaryName {
                    self.observe([]);
                    self.file(id)?.sync(None)?;
                }
                DONE
            }
            (Mistake::NoTemporaryName, Op::Rename { .. }) => DONE,
            (Mistake::RenameNotSynced, Op::Rename { .. }) => {
                self.put_off.push(Op::SyncFolder { path: self.root.clone() });
                self.perform(op, failure)
            }
            (Mistake::RenameNotSynced, Op::SyncFolder { path })
                if is_named(path, "manifests") && self.put_off.pop().is_some() =>
            {
                DONE
            }
            (Mistake::OldRegionsFirst, Op::WriteSmall { path, .. }) => {
                for path in self.regions_of(&path.with_extension("").with_extension("manifest")) {
                    self.perform(&mut Op::Unlink { path }, None)?;
                    self.observe([]);
                }
                self.perform(op, failure)
            }
            (Mistake::UnlinkNotSynced, Op::Unlink { path }) if ends(path, "manifest") => {
                self.put_off.push(Op::SyncFolder { path: self.root.clone() });
                self.perform(op, failure)
            }
            (Mistake::UnlinkNotSynced, Op::SyncFolder { path })
                if is_named(path, "manifests") && self.put_off.pop().is_some() =>
            {
                DONE
            }
            (Mistake::FlushRegionsFirst, Op::Unlink { path }) if ends(path, "manifest") => {
                self.put_off.push(Op::Unlink { path: path.clone() });
                DONE
            }
            (Mistake::FlushRegionsFirst, Op::SyncFolder { path })
                if is_named(path, "manifests") && !self.put_off.is_empty() =>
            {
                self.put_off.push(Op::SyncFolder { path: path.clone() });
                DONE
            }
            (Mistake::FlushRegionsFirst, Op::RemoveFolder { path }) if is_in(path, "loads") => {
                self.catch_up();
                self.perform(op, failure)
            }
            _ => self.perform(op, failure),
        }
    }

    /// Does what was put off.
    fn catch_up(&mut self) {
        for mut op in std::mem::take(&mut self.put_off) {
            self.observe([]);
            let _ = self.perform(&mut op, None);
        }
    }

    /// The region files that a manifest on this disk names.
    fn regions_of(&mut self, manifest: &Path) -> Vec<std::path::PathBuf> {
        let mut read = Op::ReadSmall { path: manifest.to_owned(), bytes_max: 1 << 20 };
        let Ok(Answer::Outcome(Outcome::Bytes(bytes))) = self.perform(&mut read, None) else {
            return Vec::new();
        };
        let Ok(manifest) = Manifest::decode(&bytes) else { return Vec::new() };
        let here = |path: &std::path::PathBuf| self.find_file(path).is_ok();
        manifest.regions.iter().map(|region| self.root.join(&region.path)).filter(here).collect()
    }
}

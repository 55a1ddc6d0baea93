//! Brings a sealed slice to the disk: regions, folders, and last the manifest that makes it exist.
//!
//! The order is that of `docs/manifest.md`. Whatever fails before the manifest's rename leaves a slice
//! that does not exist on disk.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pelton_region_format::{Fingerprint, Key};

use crate::budget::ledger::Reservation;
use crate::region::arena::Image;
use crate::scan::patience::Patience;
use crate::slice::build::{BuildError, BuiltRegion, Site, WriteError, Writes};
use crate::snap::hot::{HotSlice, RegionBytes};
use crate::snap::leftovers::Leftovers;
use crate::snap::manifest::{FileCount, Manifest, RegionRecord};
use crate::snap::metrics::SliceMetrics;
use crate::spindle::engine::{DiskError, EntryKind, Op};
use crate::spindle::held::Spindle;
use crate::spindle::identity::SpindleUuid;
use crate::spindle::impeller::Lane;

/// The folder of manifests on a spindle.
pub(crate) const MANIFESTS: &str = "manifests";
/// The folder of load folders on a spindle.
pub(crate) const LOADS: &str = "loads";

/// Why a slice did not get to the disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// A region could not be written, and there was no other spindle or no image to write it from again.
    #[error("region {index} could not be written")]
    Region {
        /// Which region.
        index: u32,
        /// What the disk said, or that the spindle is full.
        source: WriteError,
    },
    /// The regions are on the disk, the manifest is not.
    #[error("the manifest could not be written")]
    Manifest {
        /// What the disk said.
        source: DiskError,
    },
    /// A newer load has replaced the slice, it was flushed, or the cache was closed, before its turn on the disk came.
    #[error("the slice was replaced, flushed or closed before it was on the disk")]
    Replaced,
    /// The cache was closed before.
    #[error("the cache was closed before the slice was on the disk")]
    Closed,
}

/// The folders of one load, one on each of its spindles, under a name that is never used twice.
#[derive(Clone, Debug)]
pub(crate) struct LoadFolders {
    name: String,
    pub(crate) load_number: u64,
    /// The numbers of the load's spindles; the first is home.
    spindles: Vec<usize>,
}

impl LoadFolders {
    /// Names the folders of a load whose regions are dealt over these spindles.
    pub(crate) fn new(
        all: &[Arc<Spindle>],
        epoch: u64,
        load_number: u64,
        spindles: Vec<usize>,
    ) -> LoadFolders {
        let name = format!("{epoch}-{load_number}-{}", all[spindles[0]].uuid_text());
        LoadFolders { name, load_number, spindles }
    }

    /// Makes the folders.
    pub(crate) fn create(&self, all: &[Arc<Spindle>], patience: &Patience) -> Result<(), DiskError> {
        for spindle in self.used(all) {
            let create = Op::CreateFolder { path: self.folder(spindle) };
            spindle.impellers.run_patiently(Lane::HOUSE, create, patience)?;
        }
        Ok(())
    }

    /// The spindle of a region, and its path there. `turn` counts the load's files: where regions without a blob are
    /// known, those that follow close up.
    pub(crate) fn place(&self, all: &[Arc<Spindle>], turn: usize, index: u32) -> (Arc<Spindle>, String) {
        let spindle = all[self.spindles[turn % self.spindles.len()]].clone();
        (spindle, format!("{LOADS}/{}/{index:04}.region", self.name))
    }

    /// Another place for a region of `bytes` whose spindle has failed: one of the load's own spindles if it can
    /// be, else any that works and has room.
    fn other_place(
        &mut self,
        all: &[Arc<Spindle>],
        site: &Site,
        index: u32,
        bytes: u64,
    ) -> Option<(Site, Reservation)> {
        let others = (0..all.len()).filter(|number| !self.spindles.contains(number));
        let numbers: Vec<usize> = self.spindles.iter().copied().chain(others).collect();
        for number in numbers {
            let spindle = &all[number];
            if spindle.uuid == site.spindle.uuid || spindle.takes_work().is_err() {
                continue;
            }
            let Ok(space) = spindle.reserve(bytes) else { continue };
            if !self.spindles.contains(&number) {
                let create = Op::CreateFolder { path: self.folder(spindle) };
                if spindle.impellers.run(create, None).is_err() {
                    continue;
                }
                self.spindles.push(number);
            }
            let path = format!("{LOADS}/{}/{index:04}.again.region", self.name);
            let full_path = spindle.folder.join(&path);
            return Some((Site { full_path, path, spindle: spindle.clone(), ..site.clone() }, space));
        }
        None
    }

    /// Removes the folders and all in them, and says whether that worked. What can't be removed now, the next
    /// start's cleaner removes.
    pub(crate) fn remove_all(&self, all: &[Arc<Spindle>]) -> bool {
        let deadline = Some(Instant::now() + REMOVE_WAIT_MAX);
        // All of them, whatever one says.
        let left = |spindle: &&Arc<Spindle>| remove_folder(spindle, self.folder(spindle), deadline).is_err();
        self.used(all).filter(left).count() == 0
    }

    fn used<'a>(&'a self, all: &'a [Arc<Spindle>]) -> impl Iterator<Item = &'a Arc<Spindle>> {
        self.spindles.iter().map(|&number| &all[number])
    }

    fn folder(&self, spindle: &Spindle) -> PathBuf {
        spindle.folder.join(LOADS).join(&self.name)
    }
}

/// How long removing what a load has written waits for a disk.
const REMOVE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Removes a folder of region files, if it is there.
pub(crate) fn remove_folder(
    spindle: &Spindle,
    folder: PathBuf,
    deadline: Option<Instant>,
) -> Result<(), DiskError> {
    let run = |op| spindle.impellers.run(op, deadline);
    let entries = match run(Op::List { path: folder.clone() }) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?.into_entries(),
    };
    for entry in entries.into_iter().filter(|entry| entry.kind == EntryKind::File) {
        run(Op::Unlink { path: folder.join(entry.name) })?;
    }
    run(Op::RemoveFolder { path: folder }).map(|_| ())
}

/// A slice that is to be committed.
pub(crate) struct Commit {
    pub(crate) key: Key,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) region_count: u32,
    pub(crate) folders: LoadFolders,
    pub(crate) built: Vec<BuiltRegion>,
    pub(crate) hot: Option<Arc<HotSlice>>,
    pub(crate) metrics: SliceMetrics,
}

impl Commit {
    /// Does it all, and waits for the disks. On an error nothing is left on them, but for one case: where one of the
    /// `older` manifests is there, and nobody knows whether its own stands on the disk, all that it names stays, and it is
    /// one of the `leftovers`. Its number is the highest, so the next start may find that it counts: then it is whole.
    pub(crate) fn run(
        mut self,
        all: &[Arc<Spindle>],
        older: &[Arc<Manifest>],
        leftovers: &Leftovers,
    ) -> Result<Manifest, CommitError> {
        let mut built = std::mem::take(&mut self.built);
        match self.write_all(all, &mut built, older) {
            Ok(mut manifest) => {
                for (record, region) in manifest.regions.iter_mut().zip(built) {
                    record.space = FileCount(Some(region.writes.keep()));
                }
                Ok(manifest)
            }
            Err(Unfinished { error, may_stand }) => {
                if may_stand {
                    leftovers.add(&self.key, all[self.folders.spindles[0]].uuid);
                }
                if may_stand || !self.folders.remove_all(all) {
                    built.into_iter().for_each(|region| region.writes.leave_behind());
                }
                Err(error)
            }
        }
    }

    /// Removes what was written, since the slice is not to be committed.
    pub(crate) fn discard(self, all: &[Arc<Spindle>]) {
        if !self.folders.remove_all(all) {
            self.built.into_iter().for_each(|region| region.writes.leave_behind());
        }
    }

    fn write_all(
        &mut self,
        all: &[Arc<Spindle>],
        built: &mut [BuiltRegion],
        older: &[Arc<Manifest>],
    ) -> Result<Manifest, Unfinished> {
        let home = all[self.folders.spindles[0]].clone();
        let mut spindles = vec![home.uuid];
        let mut regions = Vec::new();
        for region in built {
            let index = region.index();
            self.make_durable(all, region).map_err(|source| CommitError::Region { index, source })?;
            let uuid = region.site.spindle.uuid;
            let spindle = spindles.iter().position(|known| *known == uuid).unwrap_or_else(|| {
                spindles.push(uuid);
                spindles.len() - 1
            });
            regions.push(RegionRecord {
                index,
                spindle: spindle as u32,
                path: region.site.path.clone(),
                file_bytes: region.sealed.file_bytes,
                blob_count: region.sealed.blob_count,
                blob_bytes: region.sealed.blob_bytes,
                content_id: *region.sealed.content_id.expect("regions of ours have one").as_bytes(),
                space: FileCount::default(),
            });
        }
        let manifest = Manifest {
            key: self.key.clone(),
            fingerprint: self.fingerprint,
            load_number: self.folders.load_number,
            region_count: self.region_count,
            regions,
            spindles,
            metrics: Some(Box::new(self.metrics)),
        };
        self.sync_folders(all, &manifest).map_err(|source| CommitError::Manifest { source })?;
        write_manifest(&home, &manifest, older)?;
        Ok(manifest)
    }

    /// Waits for a region's writes and syncs its file; after a failure once more on another spindle.
    fn make_durable(&mut self, all: &[Arc<Spindle>], region: &mut BuiltRegion) -> Result<(), WriteError> {
        let Err(error) = region.writes.sync(&region.site, None) else { return Ok(()) };
        // The first failure is final: this file is never synced again, and never trusted.
        let unlink = Op::Unlink { path: region.site.full_path.clone() };
        let removed = region.site.spindle.impellers.run(unlink, None).is_ok();
        let hot = self.hot.clone();
        let Some(image) = hot.as_ref().and_then(|hot| image_of(hot, region.index())) else {
            return Err(error);
        };
        let bytes = region.sealed.file_bytes;
        let Some((other, space)) = self.folders.other_place(all, &region.site, region.index(), bytes) else {
            return Err(error);
        };
        match Writes::again(&other, image, space, None) {
            Ok(writes) => {
                let before = std::mem::replace(&mut region.writes, writes);
                if !removed {
                    before.leave_behind();
                }
                region.site = other;
                region.writes.sync(&region.site, None)
            }
            Err(BuildError::Write(error)) => Err(error),
            Err(_) => Err(error),
        }
    }

    /// Only where the manifest says that something is. A disk that a region had to leave may fail once more, and that
    /// takes nothing from the slice.
    fn sync_folders(&self, all: &[Arc<Spindle>], manifest: &Manifest) -> Result<(), DiskError> {
        for spindle in self.folders.used(all).filter(|spindle| manifest.spindles.contains(&spindle.uuid)) {
            spindle.impellers.run(Op::SyncFolder { path: self.folders.folder(spindle) }, None)?;
            spindle.impellers.run(Op::SyncFolder { path: spindle.folder.join(LOADS) }, None)?;
        }
        Ok(())
    }
}

fn image_of(hot: &HotSlice, index: u32) -> Option<&Image> {
    let region = hot.regions.iter().find(|region| region.index == index)?;
    match region.bytes() {
        RegionBytes::Image(image) => Some(image),
        RegionBytes::Map(_) => None,
    }
}

/// A commit that did not come to its end.
struct Unfinished {
    error: CommitError,
    /// Whether its manifest may stand on the disk all the same.
    may_stand: bool,
}

impl From<CommitError> for Unfinished {
    fn from(error: CommitError) -> Unfinished {
        Unfinished { error, may_stand: false }
    }
}

/// The commit point: after the folder's sync the slice exists, before the rename it does not.
fn write_manifest(home: &Spindle, manifest: &Manifest, older: &[Arc<Manifest>]) -> Result<(), Unfinished> {
    let failed = |source| Unfinished::from(CommitError::Manifest { source });
    let folder = home.folder.join(MANIFESTS);
    let path = folder.join(Manifest::file_name(&manifest.key));
    put_in_place(home, &path, manifest).map_err(failed)?;
    if let Err(error) = home.impellers.run(Op::SyncFolder { path: folder }, None) {
        // Nobody knows what is on the disk, and a sync that works after one that did not says nothing.
        let _ = match older.iter().find(|older| older.spindles.first() == Some(&home.uuid)) {
            None => home.impellers.run(Op::Unlink { path }, None).map(drop),
            // As if there had been no commit, if the disk goes on; to unlink it would take what was durable.
            Some(older) => put_in_place(home, &path, older),
        };
        return Err(Unfinished { may_stand: !older.is_empty(), ..failed(error) });
    }
    Ok(())
}

/// Writes a manifest under another name and renames it. Until the folder is synced the disk may have either.
fn put_in_place(home: &Spindle, path: &Path, manifest: &Manifest) -> Result<(), DiskError> {
    let temporary = path.with_extension(format!("{}.tmp", manifest.load_number));
    home.impellers.run(Op::WriteSmall { path: temporary.clone(), bytes: manifest.encode() }, None)?;
    let rename = Op::Rename { from: temporary.clone(), to: path.to_owned() };
    if let Err(error) = home.impellers.run(rename, None) {
        // The name still stands for what was there before, which stays.
        let _ = home.impellers.run(Op::Unlink { path: temporary }, None);
        return Err(error);
    }
    Ok(())
}

/// Takes a slice's manifest off one of its home spindles: from here on the slice does not exist there.
pub(crate) fn remove_manifest(
    all: &[Arc<Spindle>],
    key: &Key,
    home: SpindleUuid,
    deadline: Option<Instant>,
) -> Result<(), DiskError> {
    let Some(home) = all.iter().find(|spindle| spindle.uuid == home) else { return Ok(()) };
    let folder = home.folder.join(MANIFESTS);
    let unlink = Op::Unlink { path: folder.join(Manifest::file_name(key)) };
    match home.impellers.run(unlink, deadline) {
        // One who came too late has unlinked it after all, or could not sync the folder then.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        unlinked => _ = unlinked?,
    }
    home.impellers.run(Op::SyncFolder { path: folder }, deadline)?;
    Ok(())
}

/// Takes the files of a slice that exists no more off the disks. One that can't be removed stays counted, and the
/// next start's cleaner removes it.
pub(crate) fn remove_regions(
    all: &[Arc<Spindle>],
    manifest: &Manifest,
    deadline: Option<Instant>,
) -> Result<(), DiskError> {
    let find = |uuid| all.iter().find(|spindle| spindle.uuid == uuid);
    let mut result = Ok(());
    for region in &manifest.regions {
        let Some(spindle) = find(manifest.spindles[region.spindle as usize]) else { continue };
        let path = spindle.folder.join(&region.path);
        match spindle.impellers.run(Op::Unlink { path: path.clone() }, deadline) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                region.space.0.iter().for_each(|space| spindle.room.leave_behind(space.clone()));
                result = result.and(Err(error));
            }
            _ => {}
        }
        if let Some(folder) = path.parent() {
            // Goes only when its last region has gone.
            let _ = spindle.impellers.run(Op::RemoveFolder { path: folder.to_owned() }, deadline);
        }
    }
    result
}

//! Finds the slices that an earlier process has committed, and clears away what it has not.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use pelton_region_format::Key;

use crate::region::residence::PROBE_NAME;
use crate::snap::commit::{LOADS, MANIFESTS, remove_folder, remove_manifest};
use crate::snap::manifest::{FileCount, Manifest, ManifestError};
use crate::spindle::engine::{DiskError, EntryKind, Op, Outcome};
use crate::spindle::held::{PROBE_FILE, Spindle};

/// A manifest file larger than this is none of ours.
const MANIFEST_FILE_BYTES_MAX: usize = 5 << 20;

/// What was found on the spindles at start.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) slices: BTreeMap<Key, Manifest>,
    /// Slices of which a region is missing: its spindle may come back, so their files stay, and stay counted.
    incomplete: Vec<Manifest>,
    /// Slices of which a later load is here, too.
    superseded: Vec<Manifest>,
    /// The next load's number: above all that were seen.
    pub(crate) next_load: u64,
    pub(crate) report: RecoveryReport,
}

/// What a start kept, and what it dropped and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// How many slices were found whole.
    pub kept: usize,
    /// Manifests that were dropped: the file and the reason.
    pub dropped: Vec<(PathBuf, String)>,
    /// Manifests of a newer format: left alone, and all load folders with them.
    pub newer: Vec<PathBuf>,
    /// Load folders that no manifest names: removed.
    pub cleaned: Vec<PathBuf>,
}

/// Reads the manifests of all spindles. Of the regions only names and lengths are looked at.
pub(crate) fn recover(all: &[Arc<Spindle>]) -> Result<Recovered, DiskError> {
    let mut recovered = Recovered { next_load: 1, ..Recovered::default() };
    for spindle in all {
        for folder in [MANIFESTS, LOADS] {
            let path = spindle.folder.join(folder);
            if let Err(error) = spindle.impellers.run(Op::CreateFolder { path }, None)
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(error);
            }
        }
        spindle.impellers.run(Op::SyncFolder { path: spindle.folder.clone() }, None)?;
        // A process that was killed may have left names that are not on the disk. What is served here, and what is
        // cleared away because of it, must not come to differ by a power loss.
        spindle.impellers.run(Op::SyncFolder { path: spindle.folder.join(MANIFESTS) }, None)?;
        read_manifests(all, spindle, &mut recovered)?;
    }
    recovered.report.kept = recovered.slices.len();
    drop_superseded(all, &mut recovered);
    if recovered.report.newer.is_empty() {
        for spindle in all {
            clean(all, spindle, &mut recovered)?;
        }
    }
    Ok(recovered)
}

fn read_manifests(
    all: &[Arc<Spindle>],
    spindle: &Spindle,
    recovered: &mut Recovered,
) -> Result<(), DiskError> {
    let folder = spindle.folder.join(MANIFESTS);
    let entries = spindle.impellers.run(Op::List { path: folder.clone() }, None)?.into_entries();
    for entry in entries.into_iter().filter(|entry| entry.kind == EntryKind::File) {
        let path = folder.join(&entry.name);
        if path.extension().is_some_and(|extension| extension == "tmp") {
            // Never renamed, so it never counted.
            spindle.impellers.run(Op::Unlink { path: path.clone() }, None)?;
            recovered.report.dropped.push((path, "it was never finished".to_owned()));
            continue;
        }
        let read = Op::ReadSmall { path: path.clone(), bytes_max: MANIFEST_FILE_BYTES_MAX };
        let bytes = spindle.impellers.run(read, None)?.into_bytes();
        match Manifest::decode(&bytes) {
            Ok(mut manifest) => match missing_region(all, &mut manifest) {
                None => keep(manifest, recovered),
                Some(reason) => {
                    recovered.report.dropped.push((path, reason));
                    recovered.next_load = recovered.next_load.max(manifest.load_number + 1);
                    leave_behind(all, &manifest);
                    recovered.incomplete.push(manifest);
                }
            },
            Err(ManifestError::Newer { .. }) => recovered.report.newer.push(path),
            Err(error) => recovered.report.dropped.push((path, error.to_string())),
        }
    }
    Ok(())
}

/// Files that wait for a spindle to come back take their space meanwhile.
fn leave_behind(all: &[Arc<Spindle>], manifest: &Manifest) {
    for region in &manifest.regions {
        let uuid = manifest.spindles[region.spindle as usize];
        if let (Some(space), Some(spindle)) = (&region.space.0, all.iter().find(|s| s.uuid == uuid)) {
            spindle.room.leave_behind(space.clone());
        }
    }
}

/// Of two manifests of one key the higher load number wins.
fn keep(manifest: Manifest, recovered: &mut Recovered) {
    recovered.next_load = recovered.next_load.max(manifest.load_number + 1);
    let known = recovered.slices.get(&manifest.key);
    if known.is_none_or(|known| known.load_number < manifest.load_number) {
        let before = recovered.slices.insert(manifest.key.clone(), manifest);
        recovered.superseded.extend(before);
    } else {
        recovered.superseded.push(manifest);
    }
}

/// Takes those manifests off the disks of whose key a later load is here: it has another home, and the process ended
/// before the one before was removed. For good, before any of their files goes: else one might come back, when the
/// later one has been flushed.
fn drop_superseded(all: &[Arc<Spindle>], recovered: &mut Recovered) {
    let later = |manifest: &Manifest| {
        recovered.slices.get(&manifest.key).is_some_and(|kept| kept.load_number > manifest.load_number)
    };
    let (of_before, incomplete) = std::mem::take(&mut recovered.incomplete).into_iter().partition(later);
    recovered.incomplete = incomplete;
    recovered.superseded.extend::<Vec<Manifest>>(of_before);
    for manifest in recovered.superseded.drain(..) {
        if remove_manifest(all, &manifest, None).is_err() {
            // Its files stay then, so that it is no worse than it was.
            recovered.incomplete.push(manifest);
        }
    }
}

/// Why the slice can't be served, if it can't: a region that is not there, or not whole. The space of those that
/// are there is counted.
fn missing_region(all: &[Arc<Spindle>], manifest: &mut Manifest) -> Option<String> {
    let mut missing = None;
    for region in &mut manifest.regions {
        let uuid = manifest.spindles[region.spindle as usize];
        let Some(spindle) = all.iter().find(|spindle| spindle.uuid == uuid) else {
            missing = missing.or(Some(format!("the spindle of region {} is not here", region.index)));
            continue;
        };
        let path = spindle.folder.join(&region.path);
        let problem = match spindle.impellers.run(Op::Length { path }, None).map(Outcome::into_length) {
            Ok(bytes) => {
                region.space = FileCount(Some(spindle.room.adopt(bytes)));
                let (index, expected) = (region.index, region.file_bytes);
                (bytes != expected)
                    .then(|| format!("region {index} has {bytes} bytes, the manifest says {expected}"))
            }
            Err(error) => Some(format!("region {}: {error}", region.index)),
        };
        missing = missing.or(problem);
    }
    missing
}

/// Removes load folders that nothing names, if their home spindle is here to say so, and what probes have left.
fn clean(all: &[Arc<Spindle>], spindle: &Spindle, recovered: &mut Recovered) -> Result<(), DiskError> {
    let entries = spindle.impellers.run(Op::List { path: spindle.folder.clone() }, None)?.into_entries();
    for entry in entries.into_iter().filter(|entry| entry.name == PROBE_NAME || entry.name == PROBE_FILE) {
        let _ = spindle.impellers.run(Op::Unlink { path: spindle.folder.join(entry.name) }, None);
    }
    let named: HashSet<PathBuf> = recovered
        .slices
        .values()
        .chain(&recovered.incomplete)
        .flat_map(|manifest| manifest.regions.iter().map(move |region| (manifest, region)))
        // A load's folder on a spindle where none of its regions got a blob is empty.
        .filter(|(manifest, region)| manifest.spindles[region.spindle as usize] == spindle.uuid)
        .filter_map(|(_, region)| {
            PathBuf::from(&region.path).parent().map(|folder| spindle.folder.join(folder))
        })
        .collect();
    let folder = spindle.folder.join(LOADS);
    let entries = spindle.impellers.run(Op::List { path: folder.clone() }, None)?.into_entries();
    for entry in entries.into_iter().filter(|entry| entry.kind == EntryKind::Folder) {
        let path = folder.join(&entry.name);
        let name = entry.name.to_string_lossy().into_owned();
        let home_is_here =
            name.rsplit('-').next().is_some_and(|home| all.iter().any(|s| s.uuid_text() == home));
        if home_is_here && !named.contains(&path) {
            // What can't be removed now is in nobody's way, and the next start tries again.
            let _ = remove_folder(spindle, path.clone(), None);
            recovered.report.cleaned.push(path);
        }
    }
    Ok(())
}

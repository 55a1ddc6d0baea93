//! Finds the slices that an earlier process has committed, and clears away what it has not.
//!
//! ```text
//! list ─▶ names ─▶ batches ─▶ manifests ─▶ last pages of their regions ─▶ kept, dropped, left alone ─▶ clean
//!                    └── by as many threads as there are cores, each with an impeller on each spindle
//! ```
//!
//! Of the regions only lengths and last pages are looked at, never the data. Whatever a later version may have
//! written, and whatever may come back with its spindle, is left as it is.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use pelton_region_format::{FormatError, Key, PAGE_BYTES, Trailer};

use crate::region::residence::PROBE_NAME;
use crate::scan::cancel::CancelToken;
use crate::scan::patience::Patience;
use crate::snap::access;
use crate::snap::commit::{LOADS, MANIFESTS, remove_folder};
use crate::snap::manifest::{FileCount, Manifest, ManifestError};
use crate::spindle::engine::{DiskError, EntryKind, Look, Op, Part};
use crate::spindle::held::{PROBE_FILE, Spindle};
use crate::spindle::identity::SpindleUuid;
use crate::spindle::impeller::{Impellers, Lane};

/// A manifest file larger than this is none of ours.
pub(crate) const MANIFEST_FILE_BYTES_MAX: usize = 5 << 20;
/// So many manifests are read in one go: enough that handing the work over costs nothing, few enough that no
/// thread is left with the last ones, nor a lease waits long for the processor.
const BATCH: usize = 32;

/// What lies on the spindles, by name.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// Each with its home spindle's number.
    manifests: Vec<(usize, PathBuf)>,
    /// Manifests that were never renamed, so they never counted.
    unfinished: Vec<(usize, PathBuf)>,
    /// Load folders of earlier caches: those of ours come later.
    loads: Vec<(usize, OsString)>,
}

/// What was found on the spindles at start.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) slices: BTreeMap<Key, Manifest>,
    /// Homes of manifests that were replaced, and that a disk would not let go.
    pub(crate) leftovers: Vec<(Key, SpindleUuid)>,
    /// What can't be served now: its files stay.
    pub(crate) waiting: Vec<Manifest>,
    /// The next load's number: above all that were seen.
    pub(crate) next_load: u64,
    pub(crate) report: RecoveryReport,
}

/// What a start kept, what it dropped, what it left alone, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// How many slices were found whole.
    pub kept: usize,
    /// Manifests that were dropped, and their regions with them: the file and the reason.
    pub dropped: Vec<(PathBuf, String)>,
    /// Manifests that name what can't be served now and may be served another time, so that nothing of them was
    /// touched: one of their spindles is not here, the disk refused, or a later version has written them.
    pub left_alone: Vec<(PathBuf, String)>,
    /// Those of them that a later version has written, and manifests of regions that a later version has.
    pub newer: Vec<PathBuf>,
    /// Load folders that no manifest names: removed.
    pub cleaned: Vec<PathBuf>,
    /// Access logs that were not found whole: the file, and what came of it. No slice is lost by that, only how it was
    /// used lately, and maybe that it was pinned.
    pub logs: Vec<(PathBuf, String)>,
}

/// What came of one manifest file.
#[derive(Debug)]
enum Found {
    /// Whole, with all its regions.
    Whole(Manifest),
    /// It may be served another time.
    Waits(Manifest, String),
    /// The same, because a later version has written a region of it.
    NewerRegion(Manifest, String),
    /// It will never be served.
    Worthless(Option<Manifest>, String),
    /// A later version has written it, so what it names is not known.
    Newer(String),
    /// The disk refused, so what it names is not known.
    Unread(String),
    /// There is none of that name, or none any more.
    Nothing,
}

/// What the disks have of one key.
#[derive(Debug, Default)]
pub(crate) struct OfKey {
    pub(crate) slice: Option<Manifest>,
    /// Homes of manifests that it has replaced.
    pub(crate) replaced: Vec<SpindleUuid>,
}

/// Makes the folders that a spindle has, tells what is in them, and removes what probes and a save of an access log have
/// left.
pub(crate) fn list(all: &[Arc<Spindle>]) -> Result<Listed, DiskError> {
    let mut listed = Listed::default();
    for (number, spindle) in all.iter().enumerate() {
        for folder in [MANIFESTS, LOADS] {
            let path = spindle.folder.join(folder);
            if let Err(error) = spindle.impellers.run(Op::CreateFolder { path }, None)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(error);
            }
        }
        spindle.impellers.run(Op::SyncFolder { path: spindle.folder.clone() }, None)?;
        // A process that was killed may have left names that are not on the disk. What is served here, and what is
        // cleared away because of it, must not come to differ by a power loss.
        spindle.impellers.run(Op::SyncFolder { path: spindle.folder.join(MANIFESTS) }, None)?;
        let entries = |folder| {
            let path = spindle.folder.join(folder);
            Ok::<_, DiskError>(spindle.impellers.run(Op::List { path }, None)?.into_entries())
        };
        let probes = entries("")?.into_iter().filter(|entry| {
            [PROBE_NAME, PROBE_FILE, access::NEW_FILE].iter().any(|name| entry.name == *name)
        });
        // Before the first warming makes one.
        for entry in probes {
            let _ = spindle.impellers.run(Op::Unlink { path: spindle.folder.join(entry.name) }, None);
        }
        for entry in entries(MANIFESTS)?.into_iter().filter(|entry| entry.kind == EntryKind::File) {
            let name = PathBuf::from(entry.name);
            let is_unfinished = name.extension().is_some_and(|extension| extension == "tmp");
            let list = if is_unfinished { &mut listed.unfinished } else { &mut listed.manifests };
            list.push((number, name));
        }
        let folders = entries(LOADS)?.into_iter().filter(|entry| entry.kind == EntryKind::Folder);
        listed.loads.extend(folders.map(|entry| (number, entry.name)));
    }
    Ok(listed)
}

/// Reads what was listed, by up to so many threads, each of which makes a pause between two batches. Nothing if it was
/// stopped before it was through.
pub(crate) fn recover(
    all: &[Arc<Spindle>],
    listed: Listed,
    threads: usize,
    stop: &CancelToken,
    pause: &(dyn Fn() + Sync),
) -> Option<Recovered> {
    let found = read_all(all, &listed, threads, stop, pause)?;
    let mut recovered = Recovered { next_load: 1, ..Recovered::default() };
    let mut named = Named::default();
    sort_out(all, found, &mut recovered, &mut named);
    for (number, name) in &listed.unfinished {
        let path = all[*number].folder.join(MANIFESTS).join(name);
        // What can't be removed now is worth as little at the next start.
        let _ = all[*number].impellers.run(Op::Unlink { path: path.clone() }, None);
        recovered.report.dropped.push((path, "it was never finished".to_owned()));
    }
    remove_worthless(all, &mut named, &mut recovered.leftovers);
    recovered.report.kept = recovered.slices.len();
    clean(all, &listed, &named, stop, &mut recovered.report);
    (!stop.is_cancelled()).then_some(recovered)
}

/// All of it at once, on the caller's thread.
///
/// # Errors
/// What [`list`] says.
#[cfg(test)]
pub(crate) fn start(all: &[Arc<Spindle>]) -> Result<Recovered, DiskError> {
    Ok(recover(all, list(all)?, 1, &CancelToken::new(), &|| {}).expect("nobody stops it"))
}

/// Looks up one slice by the name of its manifest. Nothing is said where a disk refused or was late.
pub(crate) fn find(all: &[Arc<Spindle>], key: &Key, patience: &Patience) -> Option<OfKey> {
    let own: Vec<&Impellers> = all.iter().map(|spindle| &spindle.impellers).collect();
    let name = [PathBuf::from(Manifest::file_name(key))];
    // By load number.
    let mut slices: BTreeMap<u64, Option<Manifest>> = BTreeMap::new();
    for home in 0..all.len() {
        let found = read_batch(all, &own, home, &name, patience).ok()?.pop().expect("one name, one answer");
        match found {
            Found::Whole(manifest) => _ = slices.insert(manifest.load_number, Some(manifest)),
            // Maybe only because the caller has no time.
            Found::Waits(..) | Found::Unread(_) => return None,
            Found::NewerRegion(manifest, _) | Found::Worthless(Some(manifest), _) => {
                slices.insert(manifest.load_number, None);
            }
            Found::Worthless(None, _) | Found::Newer(_) | Found::Nothing => {}
        }
    }
    let Some((_, Some(slice))) = slices.pop_last() else { return Some(OfKey::default()) };
    let replaced = slices.into_values().flatten().filter_map(|older| older.spindles.first().copied());
    Some(OfKey { replaced: replaced.collect(), slice: Some(slice) })
}

/// A manifest file, and what came of it.
type Item = (usize, PathBuf, Found);

fn read_all(
    all: &[Arc<Spindle>],
    listed: &Listed,
    threads: usize,
    stop: &CancelToken,
    pause: &(dyn Fn() + Sync),
) -> Option<Vec<Item>> {
    let batches: Vec<&[(usize, PathBuf)]> = listed
        .manifests
        .chunk_by(|one, other| one.0 == other.0)
        .flat_map(|home| home.chunks(BATCH))
        .collect();
    let threads = threads.min(batches.len());
    // A few are read by the spindles' own impellers; more than that by one on each spindle for each thread.
    let readers: Vec<Option<Impellers>> = all
        .iter()
        .map(|spindle| (threads > 1).then(|| spindle.start_readers(threads).ok()).flatten())
        .collect();
    let impellers: Vec<&Impellers> = readers
        .iter()
        .zip(all)
        .map(|(readers, spindle)| readers.as_ref().unwrap_or(&spindle.impellers))
        .collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(listed.manifests.len())));
    let read = || {
        while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
            pause();
            if stop.is_cancelled() {
                return;
            }
            let home = batch[0].0;
            let names: Vec<PathBuf> = batch.iter().map(|(_, name)| name.clone()).collect();
            let items = match read_batch(all, &impellers, home, &names, &Patience::default()) {
                Ok(items) => items,
                // The disk refused all of them, or the spindle was closed.
                Err(error) => names.iter().map(|_| Found::Unread(chain(&error))).collect(),
            };
            let items = names.into_iter().zip(items).map(|(name, item)| (home, name, item));
            found.lock().unwrap_or_else(PoisonError::into_inner).extend(items);
        }
    };
    thread::scope(|scope| {
        for number in 1..threads {
            // One less reads as well, only later.
            let _ = thread::Builder::new().name(format!("pelton-recover-{number}")).spawn_scoped(scope, read);
        }
        read();
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    (!stop.is_cancelled()).then_some(found)
}

/// Reads manifests of one home spindle, and the last page of each of their regions. Counts the regions' space.
fn read_batch(
    all: &[Arc<Spindle>],
    impellers: &[&Impellers],
    home: usize,
    names: &[PathBuf],
    patience: &Patience,
) -> Result<Vec<Found>, DiskError> {
    let look = |number: usize, folder: PathBuf, names: Vec<PathBuf>, part| {
        let op = Op::Look { folder, names, part };
        Ok::<_, DiskError>(impellers[number].run_patiently(Lane::HOUSE, op, patience)?.into_looks())
    };
    let whole = Part::Whole { bytes_max: MANIFEST_FILE_BYTES_MAX };
    let looks = look(home, all[home].folder.join(MANIFESTS), names.to_vec(), whole)?;
    let mut found: Vec<Found> = looks.into_iter().zip(names).map(|(look, name)| read(look, name)).collect();

    // The regions of all of them, by spindle: again one operation each.
    let mut regions: Vec<Vec<(usize, usize, PathBuf)>> = all.iter().map(|_| Vec::new()).collect();
    for (at, item) in found.iter_mut().enumerate() {
        let Found::Whole(manifest) = item else { continue };
        let mut missing = None;
        for (number, region) in manifest.regions.iter().enumerate() {
            let uuid = manifest.spindles[region.spindle as usize];
            match all.iter().position(|spindle| spindle.uuid == uuid) {
                Some(spindle) => regions[spindle].push((at, number, PathBuf::from(&region.path))),
                None => _ = missing.get_or_insert((region.index, uuid)),
            }
        }
        if let Some((index, uuid)) = missing {
            let reason = format!("the spindle of region {index}, {uuid}, is not here");
            found_worse(item, |manifest| Found::Waits(manifest, reason));
        }
    }
    for (number, regions) in regions.into_iter().enumerate().filter(|(_, regions)| !regions.is_empty()) {
        let paths = regions.iter().map(|(_, _, path)| path.clone()).collect();
        let looks = look(number, all[number].folder.clone(), paths, Part::End { bytes: PAGE_BYTES })?;
        for ((at, region, _), look) in regions.into_iter().zip(looks) {
            check(&all[number], &mut found[at], region, look);
        }
    }
    Ok(found)
}

/// Reads a manifest file's bytes.
fn read(look: io::Result<Look>, name: &Path) -> Found {
    let bytes = match look {
        Ok(look) => look.bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Found::Worthless(None, format!("it is no manifest: {error}"));
        }
        Err(error) => return Found::Unread(format!("it could not be read: {error}")),
    };
    match Manifest::decode(&bytes) {
        // Nobody would find it by its key.
        Ok(manifest) if Path::new(&Manifest::file_name(&manifest.key)) != name => {
            Found::Worthless(None, format!("it is the manifest of {} under another name", manifest.key))
        }
        Ok(manifest) => Found::Whole(manifest),
        Err(error @ ManifestError::Newer { .. }) => Found::Newer(error.to_string()),
        Err(error) => Found::Worthless(None, error.to_string()),
    }
}

/// Takes in the last page of one region.
fn check(spindle: &Spindle, found: &mut Found, number: usize, look: io::Result<Look>) {
    let (Found::Whole(manifest)
    | Found::Waits(manifest, _)
    | Found::NewerRegion(manifest, _)
    | Found::Worthless(Some(manifest), _)) = found
    else {
        unreachable!("only what names regions has any");
    };
    let region = &mut manifest.regions[number];
    let index = region.index;
    let look = match look {
        Ok(look) => look,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = format!("region {index} is not there");
            return found_worse(found, |manifest| Found::Worthless(Some(manifest), reason));
        }
        Err(error) => {
            let reason = format!("region {index} could not be read: {error}");
            return found_worse(found, |manifest| Found::Waits(manifest, reason));
        }
    };
    region.space = FileCount(Some(spindle.room.adopt(look.length)));
    let worthless = |reason: String| |manifest| Found::Worthless(Some(manifest), reason);
    let (length, expected) = (look.length, region.file_bytes);
    match Trailer::content_id(&look.bytes, length) {
        Err(error @ FormatError::Unsupported { .. }) => {
            let reason = format!("region {index}: {error}");
            found_worse(found, |manifest| Found::NewerRegion(manifest, reason));
        }
        _ if length != expected => {
            let reason = format!("region {index} has {length} bytes, the manifest says {expected}");
            found_worse(found, worthless(reason));
        }
        Err(error) => found_worse(found, worthless(format!("region {index}: {error}"))),
        Ok(id) if id != region.content_id() => {
            found_worse(
                found,
                worthless(format!("region {index} holds another body than the manifest says")),
            );
        }
        Ok(_) => {}
    }
}

/// Files that may be served another time outlive those that are worthless; else the first reason counts.
fn found_worse(found: &mut Found, worse: impl FnOnce(Manifest) -> Found) {
    let (was_whole, manifest, before) = match std::mem::replace(found, Found::Nothing) {
        Found::Whole(manifest) => (true, manifest, None),
        Found::Waits(manifest, reason) => {
            *found = Found::Waits(manifest, reason);
            return;
        }
        Found::NewerRegion(manifest, reason) => {
            *found = Found::NewerRegion(manifest, reason);
            return;
        }
        Found::Worthless(Some(manifest), reason) => (false, manifest, Some(reason)),
        other => unreachable!("{other:?} names no regions"),
    };
    *found = match (worse(manifest), before) {
        (Found::Worthless(manifest, _), Some(first)) if !was_whole => Found::Worthless(manifest, first),
        (worse, _) => worse,
    };
}

/// What files on the spindles belong to manifests that were read.
#[derive(Default)]
struct Named {
    /// Load folders, each with the name of its spindle.
    folders: HashSet<PathBuf>,
    /// There are manifests of which nobody knows what they name.
    is_in_doubt: bool,
    worthless: Vec<Worthless>,
}

/// A manifest that is dropped.
struct Worthless {
    home: usize,
    path: PathBuf,
    /// None if it can't be read.
    manifest: Option<Manifest>,
    /// Whether there is a newer one of its key.
    is_replaced: bool,
}

impl Worthless {
    fn name(&self) -> Option<&OsStr> {
        self.path.file_name()
    }
}

impl Named {
    fn add(&mut self, all: &[Arc<Spindle>], manifest: &Manifest) {
        for region in &manifest.regions {
            let uuid = manifest.spindles[region.spindle as usize];
            if let Some(spindle) = all.iter().find(|spindle| spindle.uuid == uuid)
                && let Some(folder) = Path::new(&region.path).parent()
            {
                self.folders.insert(spindle.folder.join(folder));
            }
        }
    }
}

/// Of the manifests of one key the one with the highest load number counts, whatever has become of it: the others
/// were replaced.
fn sort_out(all: &[Arc<Spindle>], mut found: Vec<Item>, recovered: &mut Recovered, named: &mut Named) {
    let load_number = |found: &Found| match found {
        Found::Whole(manifest)
        | Found::Waits(manifest, _)
        | Found::NewerRegion(manifest, _)
        | Found::Worthless(Some(manifest), _) => manifest.load_number,
        _ => 0,
    };
    // The highest first; the name tells the key.
    found.sort_by(|one, other| {
        one.1.cmp(&other.1).then_with(|| load_number(&other.2).cmp(&load_number(&one.2)))
    });
    let mut last: Option<(PathBuf, u64)> = None;
    let Recovered { slices, next_load, report, waiting, .. } = recovered;
    for (home, name, item) in found {
        let path = all[home].folder.join(MANIFESTS).join(&name);
        let number = load_number(&item);
        *next_load = (*next_load).max(number.saturating_add(1));
        let replaced_by = last.as_ref().filter(|(known, _)| *known == name).map(|(_, number)| *number);
        let item = match (item, replaced_by) {
            (Found::Whole(manifest) | Found::Waits(manifest, _), Some(by)) => {
                Found::Worthless(Some(manifest), format!("load {by} has replaced it"))
            }
            (item, _) => item,
        };
        if number > 0 && replaced_by.is_none() {
            last = Some((name, number));
        }
        match item {
            Found::Whole(manifest) => {
                named.add(all, &manifest);
                slices.insert(manifest.key.clone(), manifest);
            }
            Found::Waits(manifest, reason) => {
                named.add(all, &manifest);
                waiting.push(manifest);
                report.left_alone.push((path, reason));
            }
            Found::NewerRegion(manifest, reason) => {
                named.add(all, &manifest);
                leave_behind(all, &manifest);
                report.newer.push(path.clone());
                report.left_alone.push((path, reason));
            }
            Found::Worthless(manifest, reason) => {
                let (path_of, is_replaced) = (path.clone(), replaced_by.is_some());
                named.worthless.push(Worthless { home, path: path_of, manifest, is_replaced });
                report.dropped.push((path, reason));
            }
            Found::Newer(reason) => {
                named.is_in_doubt = true;
                report.newer.push(path.clone());
                report.left_alone.push((path, reason));
            }
            Found::Unread(reason) => {
                named.is_in_doubt = true;
                report.left_alone.push((path, reason));
            }
            Found::Nothing => {}
        }
    }
}

/// Takes manifests that are worth nothing off the disks: for good, before any of their files goes. Else one might come
/// back by a power loss, when what has replaced it has been flushed.
fn remove_worthless(all: &[Arc<Spindle>], named: &mut Named, leftovers: &mut Vec<(Key, SpindleUuid)>) {
    let (replaced, newest): (Vec<_>, Vec<_>) =
        std::mem::take(&mut named.worthless).into_iter().partition(|one| one.is_replaced);
    let mut stuck = unlink(all, replaced, named);
    // What has replaced one that stays must stay, too: else the next start would find the older one alone.
    let hides = |one: &Worthless| stuck.iter().any(|older| older.name() == one.name());
    let (hiding, newest): (Vec<_>, Vec<_>) = newest.into_iter().partition(hides);
    stuck.extend(hiding);
    stuck.extend(unlink(all, newest, named));
    // Their files stay, so that it is no worse than it was.
    for Worthless { home, manifest, is_replaced, .. } in stuck {
        let Some(manifest) = manifest else { continue };
        named.add(all, &manifest);
        leave_behind(all, &manifest);
        if is_replaced {
            leftovers.push((manifest.key, all[home].uuid));
        }
    }
}

/// Takes these off the disks. Returns those that may still be there; the others are named as worthless.
fn unlink(all: &[Arc<Spindle>], worthless: Vec<Worthless>, named: &mut Named) -> Vec<Worthless> {
    let mut stuck = Vec::new();
    let mut unlinked: Vec<Vec<Worthless>> = all.iter().map(|_| Vec::new()).collect();
    for one in worthless {
        match all[one.home].impellers.run(Op::Unlink { path: one.path.clone() }, None) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => stuck.push(one),
            _ => unlinked[one.home].push(one),
        }
    }
    for (spindle, unlinked) in all.iter().zip(unlinked).filter(|(_, unlinked)| !unlinked.is_empty()) {
        let path = spindle.folder.join(MANIFESTS);
        match spindle.impellers.run(Op::SyncFolder { path }, None) {
            Ok(_) => named.worthless.extend(unlinked),
            Err(_) => stuck.extend(unlinked),
        }
    }
    stuck
}

/// Files that stay take their space meanwhile.
pub(crate) fn leave_behind(all: &[Arc<Spindle>], manifest: &Manifest) {
    for region in &manifest.regions {
        let uuid = manifest.spindles[region.spindle as usize];
        if let (Some(space), Some(spindle)) = (&region.space.0, all.iter().find(|s| s.uuid == uuid)) {
            spindle.room.leave_behind(space.clone());
        }
    }
}

/// Removes load folders that nothing names, if their home spindle is here to say so, and every manifest could be
/// read: one that could not may name any of them.
fn clean(
    all: &[Arc<Spindle>],
    listed: &Listed,
    named: &Named,
    stop: &CancelToken,
    report: &mut RecoveryReport,
) {
    if named.is_in_doubt {
        let manifests = named.worthless.iter().filter_map(|one| one.manifest.as_ref());
        manifests.for_each(|manifest| leave_behind(all, manifest));
        return;
    }
    // A manifest that was listed and then not there is one that somebody flushes meanwhile: its name may come back
    // with a power loss as long as its folder was not synced, and its files go only after that.
    let is_synced = |spindle: &Arc<Spindle>| {
        spindle.impellers.run(Op::SyncFolder { path: spindle.folder.join(MANIFESTS) }, None).is_ok()
    };
    if !listed.loads.is_empty() && !all.iter().all(is_synced) {
        return;
    }
    for (number, name) in &listed.loads {
        if stop.is_cancelled() {
            return;
        }
        let path = all[*number].folder.join(LOADS).join(name);
        let name = name.to_string_lossy();
        let home_is_here =
            name.rsplit('-').next().is_some_and(|home| all.iter().any(|s| s.uuid_text() == home));
        if home_is_here && !named.folders.contains(&path) {
            // What can't be removed now the next start tries again.
            let _ = remove_folder(&all[*number], path.clone(), None);
            report.cleaned.push(path);
        }
    }
}

fn chain(error: &DiskError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

//! All that a disk may be after the power went, at one moment of a run.
//!
//! A [`Cut`] is taken after each operation that changes something. What is left is a matter of choices: each
//! change of a name is kept or lost, each page that was not synced is kept, lost or torn, each length is the old
//! or the new one. [`Cut::remnant`] asks for them one by one, so that whoever answers can try all or some.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{
    Change, File, Folder, NameEdit, Node, NodeId, PAGE, PageBytes, ROOT, Rng, SECTOR, SimDisk, State,
};
use crate::spindle::engine::Op;

/// Is given each cut as it is taken, under the disk's lock.
pub(crate) type Observer = Arc<dyn Fn(Cut) + Send + Sync>;

/// What is safe at one moment, and what is not.
pub(crate) struct Cut {
    /// The names that are safe.
    folders: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    /// Those that are not, oldest first.
    changes: Vec<Change>,
    files: BTreeMap<NodeId, FileCut>,
}

struct FileCut {
    durable: BTreeMap<u64, PageBytes>,
    dirty: BTreeMap<u64, PageBytes>,
    length_durable: u64,
    length: u64,
}

/// What another system finds.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Remnant {
    folders: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    files: BTreeMap<NodeId, FileRemnant>,
}

#[derive(Clone)]
struct FileRemnant {
    pages: BTreeMap<u64, (PageBytes, PageMark)>,
    length: u64,
}

/// Tells pages apart without a look at their bytes: where the old and the new one lie, and which sectors are new.
type PageMark = (usize, usize, u8);

impl FileRemnant {
    fn marks(&self) -> impl Iterator<Item = (u64, PageMark)> {
        self.pages.iter().map(|(&page, &(_, mark))| (page, mark))
    }
}

impl PartialEq for FileRemnant {
    fn eq(&self, other: &FileRemnant) -> bool {
        self.length == other.length && self.marks().eq(other.marks())
    }
}

impl Eq for FileRemnant {}

impl Hash for FileRemnant {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.length.hash(state);
        self.marks().for_each(|mark| mark.hash(state));
    }
}

/// Says which of `count` ways something went.
pub(crate) trait Choices {
    fn choose(&mut self, count: u64) -> u64;
}

impl Choices for Rng {
    fn choose(&mut self, count: u64) -> u64 {
        self.below(count)
    }
}

/// All answers to all questions, one combination after the other.
#[derive(Default)]
pub(crate) struct Odometer {
    digits: Vec<(u64, u64)>,
    at: usize,
}

impl Odometer {
    /// Goes on to the next combination, if there is one.
    pub(crate) fn turn(&mut self) -> bool {
        self.at = 0;
        while let Some((digit, count)) = self.digits.pop() {
            if digit + 1 < count {
                self.digits.push((digit + 1, count));
                return true;
            }
        }
        false
    }
}

impl Choices for Odometer {
    fn choose(&mut self, count: u64) -> u64 {
        if self.at == self.digits.len() {
            self.digits.push((0, count));
        }
        self.at += 1;
        self.digits[self.at - 1].0
    }
}

impl Cut {
    /// What is left after these choices. What has no name any more is not asked about.
    pub(crate) fn remnant(&self, choices: &mut dyn Choices) -> Remnant {
        let mut names = self.folders.clone();
        for Change(edits) in &self.changes {
            if choices.choose(2) == 0 {
                continue;
            }
            for (folder, name, id) in edits {
                let names = names.entry(*folder).or_default();
                match id {
                    Some(id) => names.insert(name.clone(), *id),
                    None => names.remove(name),
                };
            }
        }
        let mut remnant = Remnant { folders: BTreeMap::new(), files: BTreeMap::new() };
        let mut reached = vec![ROOT];
        while let Some(id) = reached.pop() {
            match self.files.get(&id) {
                // Two names for a file whose rename was torn out of its order.
                Some(_) if remnant.files.contains_key(&id) => {}
                Some(file) => drop(remnant.files.insert(id, file.remnant(choices))),
                None => {
                    let names = names.remove(&id).unwrap_or_default();
                    reached.extend(names.values());
                    remnant.folders.insert(id, names);
                }
            }
        }
        remnant
    }
}

impl FileCut {
    fn remnant(&self, choices: &mut dyn Choices) -> FileRemnant {
        let lengths = [self.length_durable, self.length];
        let differ = lengths[0] != lengths[1];
        let length = if differ { lengths[choices.choose(2) as usize] } else { lengths[0] };
        let address = |page: &PageBytes| Arc::as_ptr(page) as usize;
        let old = |(&page, bytes): (&u64, &PageBytes)| (page, (bytes.clone(), (address(bytes), 0, 0)));
        let within = ..length.div_ceil(PAGE);
        let mut pages: BTreeMap<_, _> = self.durable.range(within).map(old).collect();
        for (&page, new) in self.dirty.range(within) {
            match choices.choose(3) {
                0 => {}
                1 => drop(pages.insert(page, (new.clone(), (address(new), 0, 0)))),
                _ => {
                    // Each torn page in another way, and the same one always in the same way.
                    let sectors = 0b1001_0110_u8.rotate_left(page as u32);
                    let before = self.durable.get(&page);
                    let mut torn = before.map_or([0; PAGE as usize], |before| **before);
                    let both = torn.chunks_mut(SECTOR).zip(new.chunks(SECTOR)).enumerate();
                    for (_, (old, new)) in both.filter(|(sector, _)| sectors & 1 << sector != 0) {
                        old.copy_from_slice(new);
                    }
                    let mark = (before.map_or(0, address), address(new), sectors);
                    pages.insert(page, (Arc::new(torn), mark));
                }
            }
        }
        FileRemnant { pages, length }
    }
}

impl Remnant {
    /// Tells it from others of the same run.
    pub(crate) fn mark(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// Whether an operation may leave another disk after a power loss.
pub(super) fn changes_the_disk(op: &Op) -> bool {
    !matches!(
        op,
        Op::List { .. }
            | Op::OpenFile { .. }
            | Op::Read { .. }
            | Op::ReadSmall { .. }
            | Op::Length { .. }
            | Op::LengthOf { .. }
            | Op::DropCache { .. }
            | Op::Space { .. }
            | Op::Lock { .. }
            | Op::Close { .. }
    )
}

impl State {
    /// Shows the observer what may be left now. What is `under_way` may have happened.
    pub(super) fn observe<'a>(&mut self, under_way: impl IntoIterator<Item = &'a Op>) {
        if let Some(observer) = self.observer.clone() {
            let cut = self.cut(under_way);
            observer(cut);
        }
    }

    fn cut<'a>(&mut self, under_way: impl IntoIterator<Item = &'a Op>) -> Cut {
        let (mut folders, mut files) = (BTreeMap::new(), BTreeMap::new());
        for (&id, node) in &mut self.nodes {
            match node {
                Node::Folder(folder) => drop(folders.insert(id, folder.durable.clone())),
                Node::File(file) => drop(files.insert(id, file.cut())),
            }
        }
        let mut cut = Cut { folders, changes: self.changes.clone(), files };
        for op in under_way {
            cut.changes.extend(self.edits_of(op).map(Change));
            if let Op::Write { file, offset, bytes, len } = op
                && let Some(file) = self.node_of(file).ok().and_then(|id| cut.files.get_mut(&id))
            {
                for (page, bytes) in (offset / PAGE..).zip(bytes.bytes()[..*len].chunks(PAGE as usize)) {
                    let mut whole = [0; PAGE as usize];
                    whole[..bytes.len()].copy_from_slice(bytes);
                    file.dirty.insert(page, Arc::new(whole));
                }
                file.length = file.length.max(offset + *len as u64);
            }
        }
        cut
    }

    /// Which names an operation would change, of those that take names away.
    fn edits_of(&self, op: &Op) -> Option<Vec<NameEdit>> {
        let gone = |path: &Path| self.place(path).ok().map(|(folder, name)| (folder, name, None));
        match op {
            Op::Unlink { path } => self.find_file(path).ok().and(gone(path)).map(|edit| vec![edit]),
            Op::RemoveFolder { path } => {
                let id = self.find_folder(path).ok()?;
                self.folder(id).ok()?.live.is_empty().then(|| gone(path).map(|edit| vec![edit]))?
            }
            Op::Rename { from, to } => {
                let id = self.find_file(from).ok()?;
                let (folder, name) = self.place(to).ok()?;
                Some(vec![gone(from)?, (folder, name, Some(id))])
            }
            _ => None,
        }
    }
}

impl File {
    fn cut(&mut self) -> FileCut {
        for &page in &self.dirty {
            if !self.seen.contains_key(&page) {
                let bytes = self.page(page).expect("a memfd can be read");
                self.seen.insert(page, bytes);
            }
        }
        FileCut {
            durable: self.durable.clone(),
            dirty: self.dirty.iter().map(|page| (*page, self.seen[page].clone())).collect(),
            length_durable: self.durable_length,
            length: self.length().expect("a memfd can be looked at"),
        }
    }
}

impl SimDisk {
    /// Shows every later cut to `observer`.
    pub(crate) fn observed_by(&self, observer: Option<Observer>) {
        self.state().observer = observer;
    }

    /// What may be left if the power went now.
    pub(crate) fn cut(&self) -> Cut {
        self.state().cut([])
    }

    /// Becomes what another disk was at a cut, with all that was not synced: for a process that was killed there.
    pub(crate) fn become_cut(&self, cut: &Cut) {
        let mut state = self.state();
        state.put_off.clear();
        (state.nodes, state.inodes) = (BTreeMap::new(), HashMap::new());
        for (&id, names) in &cut.folders {
            let folder = Folder { live: names.clone(), durable: names.clone() };
            state.nodes.insert(id, Node::Folder(folder));
        }
        for (&id, file) in &cut.files {
            let mut pages = file.durable.clone();
            pages.extend(file.dirty.iter().map(|(&page, bytes)| (page, bytes.clone())));
            let mut now = File::durable(&pages, file.length).expect("a memfd can be made and filled");
            (now.durable, now.durable_length) = (file.durable.clone(), file.length_durable);
            now.dirty = file.dirty.keys().copied().collect();
            let stat = rustix::fs::fstat(&now.memory).expect("a memfd can be looked at");
            state.inodes.insert(stat.st_ino, id);
            state.nodes.insert(id, Node::File(now));
        }
        for Change(edits) in &cut.changes {
            for edit in edits {
                state.apply(edit, |folder| &mut folder.live);
            }
        }
        state.changes = cut.changes.clone();
        let last = state.nodes.last_key_value().map_or(ROOT, |(&id, _)| id);
        state.node_next = state.node_next.max(last + 1);
    }

    /// Becomes what is left elsewhere. Whoever has a file open keeps what it was.
    pub(crate) fn become_remnant(&self, remnant: &Remnant) {
        let mut state = self.state();
        state.changes.clear();
        state.put_off.clear();
        (state.nodes, state.inodes) = (BTreeMap::new(), HashMap::new());
        state.powered = true;
        for (&id, names) in &remnant.folders {
            let folder = Folder { live: names.clone(), durable: names.clone() };
            state.nodes.insert(id, Node::Folder(folder));
        }
        for (&id, file) in &remnant.files {
            let pages = file.pages.iter().map(|(&page, (bytes, _))| (page, bytes.clone())).collect();
            let file = File::durable(&pages, file.length).expect("a memfd can be made and filled");
            let stat = rustix::fs::fstat(&file.memory).expect("a memfd can be looked at");
            state.inodes.insert(stat.st_ino, id);
            state.nodes.insert(id, Node::File(file));
        }
        let last = state.nodes.last_key_value().map_or(ROOT, |(&id, _)| id);
        state.node_next = state.node_next.max(last + 1);
    }

    /// The path of every file and folder below the disk's own, without that.
    pub(crate) fn tree(&self) -> Vec<PathBuf> {
        let state = self.state();
        let mut paths = Vec::new();
        let mut reached = vec![(PathBuf::new(), ROOT)];
        while let Some((path, id)) = reached.pop() {
            if let Node::Folder(folder) = &state.nodes[&id] {
                reached.extend(folder.live.iter().map(|(name, &id)| (path.join(name), id)));
            }
            if id != ROOT {
                paths.push(path);
            }
        }
        paths.sort();
        paths
    }

    /// A file's bytes as a running system sees them, without an operation of the disk.
    pub(crate) fn bytes_of(&self, path: &str) -> Option<Vec<u8>> {
        let mut state = self.state();
        let path = state.root.join(path);
        let id = state.find_file(&path).ok()?;
        let file = state.file(id).ok()?;
        let mut bytes = vec![0; file.length().ok()? as usize];
        rustix::io::pread(&file.memory, &mut bytes[..], 0).ok()?;
        Some(bytes)
    }
}

//! The access logs of a cache: one for each spindle, of the snaps whose home that is.
//!
//! Nothing is noted as it happens, so that a lease costs nothing more. What there is to say is read off the entries now
//! and then, and only what has changed is written.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use pelton_region_format::Key;

use super::{AccessLog, Facts, LOG_FILE, Opened};
use crate::events::reason;
use crate::side_by_side::side_by_side;
use crate::snap::entry::Entry;
use crate::snap::manifest::Manifest;
use crate::snap::recovery::RecoveryReport;
use crate::spindle::held::Spindle;

/// How long opening a cache waits for advice. A disk that takes longer has none to give.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(10);

/// What all handles and the keeper's thread share.
pub(crate) struct AccessLogs {
    spindles: Vec<Arc<Spindle>>,
    /// One for each spindle, in their order.
    logs: Vec<AccessLog>,
    /// What was not found whole: each file, and what came of it.
    told: Vec<(PathBuf, String)>,
    /// The names of manifests that the start has left alone: what is known of their slices stays. Set when all manifests
    /// were read; before that nothing is forgotten.
    waiting: OnceLock<HashSet<PathBuf>>,
    /// Wakes the keeper. One message is as good as many.
    pokes: Sender<()>,
    inbox: Receiver<()>,
}

impl AccessLogs {
    /// Reads those of all spindles, side by side.
    pub(crate) fn open(spindles: &[Arc<Spindle>]) -> AccessLogs {
        let deadline = Some(Instant::now() + OPEN_WAIT_MAX);
        let opened = side_by_side("pelton-access", spindles, |spindle| AccessLog::open(spindle, deadline));
        let (mut logs, mut told) = (Vec::new(), Vec::new());
        for (spindle, opened) in spindles.iter().zip(opened) {
            let (log, why) = match opened {
                Ok((log, opened)) => (log, why_not_whole(&opened)),
                Err(error) => {
                    let why = format!("not read, and left alone: {}", reason(&error));
                    (AccessLog::left_alone(spindle), Some(why))
                }
            };
            logs.push(log);
            told.extend(why.map(|why| (spindle.folder.join(LOG_FILE), why)));
        }
        let (pokes, inbox) = bounded(1);
        AccessLogs { spindles: spindles.to_vec(), logs, told, waiting: OnceLock::new(), pokes, inbox }
    }

    /// What was not found whole: each file, and what came of it.
    pub(crate) fn told(&self) -> &[(PathBuf, String)] {
        &self.told
    }

    /// What earlier caches have noted of a slice. Its home's log counts, where that says something.
    pub(crate) fn facts(&self, key: &Key, manifest: Option<&Manifest>) -> Option<Facts> {
        let home = manifest.and_then(|manifest| self.home(manifest));
        let of_home = home.and_then(|home| self.logs[home].facts(key));
        of_home.or_else(|| {
            let all = self.logs.iter().filter_map(|log| log.facts(key));
            all.max_by_key(|facts| facts.queried_at_ms)
        })
    }

    /// The slices that are pinned, be they there or not.
    pub(crate) fn pinned(&self) -> Vec<Key> {
        self.logs.iter().flat_map(AccessLog::pinned).collect()
    }

    /// All manifests were read, and their slices entered: from now on nothing is known of what has no entry, unless it
    /// was left alone and may come back.
    pub(crate) fn recovered(&self, report: &RecoveryReport) {
        let name = |(path, _): &(PathBuf, String)| path.file_name().map(PathBuf::from);
        let _ = self.waiting.set(report.left_alone.iter().filter_map(name).collect()); // There is one recovery.
    }

    /// Takes down what is known of all entries there are, in the order of their keys. Asks no disk.
    pub(crate) fn note(&self, entries: &[Arc<Entry>]) {
        let mut known: Vec<Vec<(&Key, Facts)>> = self.logs.iter().map(|_| Vec::new()).collect();
        for entry in entries {
            let (facts, manifest) = (entry.access(), entry.manifest());
            // Of a slice that is on no disk the first spindle says what there is to say.
            let home = manifest.as_deref().and_then(|manifest| self.home(manifest)).unwrap_or(0);
            // Nothing to say is worth saying where the log says something else.
            if facts != Facts::default() || self.logs[home].facts(&entry.key).is_some() {
                known[home].push((&entry.key, facts));
            }
        }
        for (log, known) in self.logs.iter().zip(known) {
            let keys: Vec<&Key> = known.iter().map(|(key, _)| *key).collect();
            let stays = |key: &Key| match self.waiting.get() {
                None => true,
                Some(waiting) => keys.binary_search(&key).is_ok() || is_among(waiting, key),
            };
            log.note(known.iter().map(|(key, facts)| (*key, facts.clone())), stays);
        }
    }

    /// Brings what was noted to the disks, side by side. What a disk refuses is tried again by the next save.
    pub(crate) fn save(&self, deadline: Instant) {
        self.save_those(|log| log.has_changed(), deadline);
    }

    /// The same, and waits for what somebody else is saving now.
    pub(crate) fn save_all(&self, deadline: Instant) {
        self.save_those(|_| true, deadline);
    }

    fn save_those(&self, which: impl Fn(&AccessLog) -> bool, deadline: Instant) {
        let numbers: Vec<usize> = (0..self.logs.len()).filter(|number| which(&self.logs[*number])).collect();
        side_by_side("pelton-access", &numbers, |number| self.save_on(*number, deadline));
    }

    /// The same on one spindle.
    pub(crate) fn save_on(&self, number: usize, deadline: Instant) {
        if let Err(error) = self.logs[number].save(Some(deadline)) {
            let folder = self.spindles[number].folder.display();
            tracing::debug!(%folder, error = %reason(&error), "the access log was not saved");
        }
    }

    /// The logs that lack what somebody has pinned or unpinned.
    pub(crate) fn without_pins(&self) -> Vec<PathBuf> {
        let lacking = self.logs.iter().zip(&self.spindles).filter(|(log, _)| log.lacks_pins());
        lacking.map(|(_, spindle)| spindle.folder.join(LOG_FILE)).collect()
    }

    /// The log that lacks what somebody has pinned or unpinned, if it is this slice's.
    pub(crate) fn without_pin(&self, manifest: Option<&Manifest>) -> Option<PathBuf> {
        let home = manifest.and_then(|manifest| self.home(manifest)).unwrap_or(0);
        self.logs[home].lacks_pins().then(|| self.spindles[home].folder.join(LOG_FILE))
    }

    /// Has the keeper save soon.
    pub(crate) fn poke(&self) {
        let _ = self.pokes.try_send(()); // One that lies there already does as well.
    }

    pub(super) fn inbox(&self) -> &Receiver<()> {
        &self.inbox
    }

    fn home(&self, manifest: &Manifest) -> Option<usize> {
        let home = manifest.spindles.first()?;
        self.spindles.iter().position(|spindle| spindle.uuid == *home)
    }
}

fn is_among(waiting: &HashSet<PathBuf>, key: &Key) -> bool {
    !waiting.is_empty() && waiting.contains(Path::new(&Manifest::file_name(key)))
}

fn why_not_whole(opened: &Opened) -> Option<String> {
    match opened {
        Opened::New | Opened::Whole => None,
        Opened::Cut => Some("cut in the middle of a record: what stood before it counts".to_owned()),
        Opened::Damaged { offset } => {
            Some(format!("damaged at byte {offset}: what stood before it counts, the rest was dropped"))
        }
        Opened::Newer { found } => Some(format!("written in format {found} by a later version: left alone")),
    }
}

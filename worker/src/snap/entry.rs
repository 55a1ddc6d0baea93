//! What the cache knows of one key: loading, in memory, on disk, or nothing.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::Instant;

use pelton_region_format::{Fingerprint, Key};

use crate::scan::patience::Patience;
use crate::snap::hot::HotSlice;
use crate::snap::manifest::Manifest;
use crate::snap::warm::Attempt;

/// One key's place in the cache.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    state: Mutex<State>,
    changed: Condvar,
}

/// What there is of a slice. Memory and disk change apart: a fresh slice is in memory first.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// A writer is open.
    pub(crate) loading: bool,
    /// A sealed slice is on its way to the disk.
    pub(crate) committing: bool,
    /// Somebody waits for memory, to bring the files into it.
    pub(crate) reserving: bool,
    /// The files are on their way into memory, until the slice can be leased.
    pub(crate) warming: Option<Arc<Attempt>>,
    /// The slice in memory.
    pub(crate) hot: Option<Arc<HotSlice>>,
    /// The slice on disk.
    pub(crate) manifest: Option<Arc<Manifest>>,
    /// The load whose files were verified when they were evicted, and stayed in the page cache: what is still
    /// there need not be verified again. Nobody but us reads the files, so what was dropped meanwhile is missing.
    pub(crate) verified_load: Option<u64>,
}

/// What a snap is, in the words that users know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SnapState {
    /// Nothing is known but the name.
    Cold,
    /// A load is under way.
    Loading,
    /// Only files.
    Warm,
    /// In memory, can be scanned.
    Hot,
    /// Loaded, and without any blob.
    NoData,
}

impl State {
    pub(crate) fn snap_state(&self) -> SnapState {
        match (&self.hot, &self.manifest) {
            (Some(hot), _) if hot.regions.is_empty() => SnapState::NoData,
            (Some(_), _) => SnapState::Hot,
            (None, Some(manifest)) if manifest.regions.is_empty() => SnapState::NoData,
            (None, _) if self.loading => SnapState::Loading,
            (None, Some(_)) => SnapState::Warm,
            (None, None) => SnapState::Cold,
        }
    }

    /// Whether this is what is on the disk now.
    pub(crate) fn is_manifest(&self, manifest: &Arc<Manifest>) -> bool {
        self.manifest.as_ref().is_some_and(|now| Arc::ptr_eq(now, manifest))
    }

    /// What decided the blobs of what is there.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        let on_disk = || self.manifest.as_ref().map(|manifest| manifest.fingerprint);
        self.hot.as_ref().map(|hot| hot.fingerprint).or_else(on_disk)
    }

    /// Whether what is in memory is on the disk, too.
    pub(crate) fn is_durable(&self) -> bool {
        match (&self.hot, &self.manifest) {
            (Some(hot), Some(manifest)) => hot.load_number == manifest.load_number,
            (None, manifest) => manifest.is_some(),
            (Some(_), None) => false,
        }
    }
}

/// Wakes those who wait for the state, when one of them is cancelled.
impl Wake for Entry {
    fn wake(self: Arc<Self>) {
        drop(self.lock()); // Whoever has looked, and does not wait yet, waits by now.
        self.changed.notify_all();
    }
}

impl Entry {
    pub(crate) fn new(key: Key, manifest: Option<Arc<Manifest>>) -> Entry {
        let state = State { manifest, ..State::default() };
        Entry { key, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The state, for a look or a short change.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes all who wait for it.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until the state satisfies the caller, who may answer with something; nothing at the end of its
    /// patience.
    pub(crate) fn wait<T>(
        self: &Arc<Self>,
        patience: &Patience,
        mut satisfied: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let _watches = patience.watch(&Waker::from(self.clone()));
        let mut state = self.lock();
        loop {
            if let Some(answer) = satisfied(&mut state) {
                return Some(answer);
            }
            patience.check().ok()?;
            state = match patience.deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// The load is over and left nothing; what was there before stays.
    pub(crate) fn load_failed(&self) {
        self.change(|state| state.loading = false);
    }
}

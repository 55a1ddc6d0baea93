//! A cache on the benchmark's folder, with one slice in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use pelton::{
    Blobs as Cursor, Cache, CacheBuilder, Durability, Fingerprint, FoldError, Key, Lease, LeaseOptions,
    LoadPlan, Parcel, Reading, ScanOptions, ScanReport, SealedSlice, SliceWriter, Want, WritePath,
};

use super::{Blobs, drop_cache};
use crate::frame::Failure;
use crate::words::sum_words;

/// More than any case writes: what the disk has is what counts.
const CAPACITY: u64 = 1 << 40;

/// Our cache, and the key of the slice that the cases load, scan and let go.
pub(crate) struct Store {
    cache: Cache,
    key: Key,
    folder: PathBuf,
}

impl Store {
    /// Opens a cache on a new folder, with as much memory as is said.
    pub(crate) fn open(folder: &Path, memory: u64) -> Result<Store, Failure> {
        Store::open_with(folder, memory, |builder| builder)
    }

    /// The same, set up further.
    pub(crate) fn open_with(
        folder: &Path,
        memory: u64,
        set_up: impl FnOnce(CacheBuilder) -> CacheBuilder,
    ) -> Result<Store, Failure> {
        let builder = Cache::builder().memory(memory).spindle(folder, CAPACITY);
        let cache = set_up(builder).open()?;
        let key = Key::new("bench", "slice", 1, 0).expect("these are names");
        Ok(Store { cache, key, folder: folder.to_owned() })
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// A plan for the slice.
    pub(crate) fn plan(write_path: WritePath, durability: Durability) -> LoadPlan {
        let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
        plan.write_path = write_path;
        plan.durability = durability;
        plan
    }

    /// Opens the slice to be loaded.
    pub(crate) fn writer(&self, plan: LoadPlan) -> Result<SliceWriter, Failure> {
        Ok(self.cache.snap(&self.key).open_for_writes(plan)?)
    }

    /// That of [`Self::plan`].
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::from_bytes([1; 32])
    }

    /// Loads parcels, by this many producers, until the slice can be scanned.
    pub(crate) fn seal(
        &self,
        plan: LoadPlan,
        parcels: Vec<Parcel>,
        producers: usize,
    ) -> Result<SealedSlice, Failure> {
        let writer = self.cache.snap(&self.key).open_for_writes(plan)?;
        if producers == 1 {
            parcels.into_iter().try_for_each(|parcel| writer.queue_parcel(parcel))?;
            return Ok(writer.wait_for_writes()?);
        }
        let parcels = Mutex::new(parcels.into_iter());
        let next = || parcels.lock().expect("nothing panics under it").next();
        std::thread::scope(|scope| {
            let produce = || {
                while let Some(parcel) = next() {
                    writer.queue_parcel(parcel)?;
                }
                Ok(())
            };
            let threads: Vec<_> = (0..producers).map(|_| scope.spawn(produce)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("producers do not panic"))
        })
        .map_err(|error: pelton::LoadError| Failure::from(error))?;
        Ok(writer.wait_for_writes()?)
    }

    /// Loads blobs that are made on the way, and gives their sum. For what is not timed.
    pub(crate) fn load(&self, plan: LoadPlan, blobs: &Blobs) -> Result<u64, Failure> {
        let writer = self.cache.snap(&self.key).open_for_writes(plan)?;
        let mut sum = 0u64;
        for parcel in 0..blobs.parcel_count() {
            let (parcel, more) = blobs.parcel(parcel);
            sum = sum.wrapping_add(more);
            writer.queue_parcel(parcel)?;
        }
        writer.wait_for_writes()?.close_for_writes()?;
        Ok(sum)
    }

    pub(crate) fn lease(&self) -> Result<Lease, Failure> {
        Ok(self.cache.lease(&self.key, Want::Latest, None)?)
    }

    pub(crate) fn lease_reading(&self, reading: Reading) -> Result<Lease, Failure> {
        let mut options = LeaseOptions::default();
        options.reading = reading;
        Ok(self.cache.lease_with(&self.key, &options)?)
    }

    /// Waits for the disk, then lets the slice's memory go, but not what the page cache holds of its files.
    pub(crate) fn evict(&self) -> Result<(), Failure> {
        self.cache.sync(None)?;
        if !self.cache.snap(&self.key).evict_keeping_cache() {
            return Err(Failure::because("the slice could not be evicted: nothing of it was in memory"));
        }
        Ok(())
    }

    /// Lets the slice's memory go if it has some, and the page cache of its files.
    pub(crate) fn make_cold(&self) -> Result<(), Failure> {
        self.cache.sync(None)?;
        self.cache.snap(&self.key).evict();
        Ok(drop_cache(&self.files()?)?)
    }

    /// Lets go of the slice, files and all.
    pub(crate) fn flush(&self) -> Result<(), Failure> {
        self.cache.sync(None)?;
        self.cache.snap(&self.key).flush(None)?;
        Ok(())
    }

    /// The slice's region files, in order.
    pub(crate) fn files(&self) -> io::Result<Vec<PathBuf>> {
        Store::files_in(&self.folder)
    }

    /// Those in the folder of a store.
    pub(crate) fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        collect(folder, &mut files)?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "region"));
        files.sort();
        Ok(files)
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Scans a slice by the cache's threads, with the sum that stands for work.
pub(crate) fn sum_blobs(lease: &Lease) -> Result<u64, Failure> {
    Ok(sum_blobs_reported(lease)?.0)
}

/// The same, and how it went.
pub(crate) fn sum_blobs_reported(lease: &Lease) -> Result<(u64, ScanReport), Failure> {
    let fold = |blobs: &mut Cursor<'_>, sum: &mut u64| -> Result<(), FoldError> {
        while let Some(blob) = blobs.next()? {
            *sum = sum.wrapping_add(sum_words(blob));
        }
        Ok(())
    };
    Ok(lease.scan_with(ScanOptions::default(), fold, u64::wrapping_add)?)
}

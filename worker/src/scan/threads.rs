//! The scan threads of a cache, started when the first scan wants them.

use std::fmt;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::pool::ScanPool;

/// How many scan threads a cache has and where, and the threads once they run.
///
/// An engine that scans with threads of its own never starts them. Leases share it with their cache, so it
/// closes with the last of both.
pub(crate) struct ScanThreads {
    count: usize,
    /// The cores to tie them to; empty if they run free.
    cores: Vec<usize>,
    pool: OnceLock<ScanPool>,
    /// Held while the pool is started, so that it is started once. Whoever waits here needs the pool anyway.
    starting: Mutex<()>,
}

impl ScanThreads {
    pub(crate) fn new(count: usize, cores: Vec<usize>) -> ScanThreads {
        ScanThreads { count, cores, pool: OnceLock::new(), starting: Mutex::new(()) }
    }

    /// How many there are, started or not.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The core that the regions of this index belong to, if threads are tied to cores.
    pub(crate) fn core_of(&self, index: u32) -> Option<usize> {
        let thread = index as usize % self.count;
        (!self.cores.is_empty()).then(|| self.cores[thread % self.cores.len()])
    }

    /// The threads. The first call starts them.
    ///
    /// # Errors
    /// The system gives no more threads. The next call tries again.
    pub(crate) fn pool(&self) -> io::Result<&ScanPool> {
        if let Some(pool) = self.pool.get() {
            return Ok(pool);
        }
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.pool.get().is_none() {
            let pool = ScanPool::start("pelton-scan", self.count, &self.cores)?;
            self.pool.set(pool).expect("only one starts it at a time");
        }
        Ok(self.pool.get().expect("it was started just now, or by who held the lock before"))
    }
}

impl fmt::Debug for ScanThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScanThreads")
            .field("count", &self.count)
            .field("cores", &self.cores)
            .field("pool", &self.pool.get())
            .finish()
    }
}

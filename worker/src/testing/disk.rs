//! A disk in memory that fails as told.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::builder::{CacheBuilder, CacheError};
use crate::cache::Cache;
use crate::spindle::engine::sim::{self, SimDisk};
use crate::spindle::health::HealthLimits;

/// A disk that lies in memory and fails as told. Clones are the same disk.
///
/// It knows what is durable and what is not: [`FaultyDisk::after_power_loss`] is the disk that is left. Its times are
/// virtual, and one seed decides in which order operations end and what a power loss leaves.
#[derive(Clone, Debug)]
pub struct FaultyDisk {
    disk: SimDisk,
    folder: PathBuf,
}

/// Which operations a fault is for. Counts begin at zero.
///
/// Verbs are those of errors: `create`, `open`, `write`, `read`, `sync`, `sync folder`, `rename`, `unlink`, `allocate space
/// for`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum When {
    /// The one with this number, of all that the disk does.
    Op(u64),
    /// The one with this number, of those with this verb.
    Nth(&'static str, u64),
    /// All with this verb.
    Every(&'static str),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiskFault {
    /// It is not done, and answers this number of the system: 5 is EIO, 28 is ENOSPC.
    Error(i32),
    /// A read or write goes only so many bytes far at first.
    Short(usize),
    /// It takes so much longer, in virtual time.
    Delay(Duration),
    /// It does not end before [`FaultyDisk::let_go`].
    Hang,
    /// What is not durable yet never gets there. A sync says so, once, by this number of the system.
    LosesWrites(i32),
}

impl FaultyDisk {
    /// A healthy one, for a spindle in that folder. The folder must be there: who the spindle is stands in it, on the real
    /// disk.
    pub fn new(folder: impl Into<PathBuf>, seed: u64) -> FaultyDisk {
        let folder = folder.into();
        FaultyDisk { disk: SimDisk::healthy(folder.clone(), seed), folder }
    }

    /// The folder of the spindle.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// With no more space than this.
    #[must_use]
    pub fn with_space(self, bytes: u64) -> FaultyDisk {
        FaultyDisk { disk: self.disk.with_space(bytes), folder: self.folder }
    }

    /// One fault more. Of several that are for one operation the first counts.
    pub fn fail(&self, when: When, fault: DiskFault) {
        let when = match when {
            When::Op(number) => sim::When::Op(number),
            When::Nth(verb, number) => sim::When::Nth(verb, number),
            When::Every(verb) => sim::When::Every(verb),
        };
        let fault = match fault {
            DiskFault::Error(number) => sim::Failure::Error(errno(number)),
            DiskFault::Short(bytes) => sim::Failure::Short(bytes),
            DiskFault::Delay(time) => sim::Failure::Delay(time),
            DiskFault::Hang => sim::Failure::Hang,
            DiskFault::LosesWrites(number) => sim::Failure::Writeback(errno(number)),
        };
        drop(self.disk.clone().with_fault(when, fault));
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        self.disk.heal();
    }

    /// Ends all hanging, now and later.
    pub fn let_go(&self) {
        self.disk.let_go();
    }

    /// How many operations it has begun.
    pub fn ops(&self) -> u64 {
        self.disk.ops()
    }

    /// What is left if the power goes now: another disk, healthy.
    #[must_use]
    pub fn after_power_loss(&self) -> FaultyDisk {
        FaultyDisk { disk: self.disk.restart(), folder: self.folder.clone() }
    }
}

fn errno(number: i32) -> Errno {
    Errno::from_io_error(&io::Error::from_raw_os_error(number)).unwrap_or(Errno::IO)
}

/// Opens a cache on such disks. They become its spindles, besides those that the builder has already, which it must not
/// have.
///
/// # Errors
/// [`CacheError`].
pub fn open_on(builder: CacheBuilder, disks: &[FaultyDisk]) -> Result<Cache, CacheError> {
    let with_spindle = |builder: CacheBuilder, disk: &FaultyDisk| builder.spindle(&disk.folder, 64 << 30);
    let builder = disks.iter().fold(builder, with_spindle);
    builder.open_on(disks.iter().map(|disk| disk.disk.clone()).collect(), HealthLimits::default())
}

//! A spindle that this cache holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::budget::ledger::{Reservation, SpindleFull};
use crate::config::{ConfigError, SpindleConfig, depth_on, floor_on};
use crate::spindle::device::Device;
use crate::spindle::engine::{DiskError, EngineKind, Op, Outcome, PageBuffer, Space};
use crate::spindle::file::{DIRECT_ALIGNMENT, FileMode};
use crate::spindle::health::{HealthEvent, HealthLimits};
use crate::spindle::identity::{Identity, IdentityError, NetworkFolders, SpindleUuid};
use crate::spindle::impeller::{ImpellerPlan, Impellers, StartError};
use crate::spindle::refusal::{RefusalReason, SpindleRefusal};
use crate::spindle::room::SpindleRoom;
use crate::spindle::watch::{SpindleWatch, watch_of};
use crate::stats::meter::OpMeter;
use crate::stats::recorder::Registrar;

/// How long whoever places a load waits for a spindle to say how much it has free, or for a probe of one in
/// quarantine. A disk that takes longer is left out.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(2);

/// A few batches of manifests.
const READERS_QUEUE_BYTES_MAX: u64 = 64 << 20;

/// The file that a probe writes and removes.
pub(crate) const PROBE_FILE: &str = "pelton-probe";

/// A folder that is ours while this value lives, and the threads that serve it.
pub(crate) struct Spindle {
    pub(crate) uuid: SpindleUuid,
    uuid_text: String,
    pub(crate) folder: PathBuf,
    pub(crate) impellers: Impellers,
    pub(crate) room: SpindleRoom,
    pub(crate) watch: Arc<SpindleWatch>,
    /// Tells spindles of one file system; `None` where it could not be asked.
    pub(crate) device: Option<u64>,
    number: usize,
    engine: EngineKind,
    identity: Arc<Identity>,
}

/// How a spindle's impellers are set up.
#[derive(Clone, Debug)]
pub(crate) struct SpindlePlan {
    pub(crate) impellers: usize,
    /// How many operations the disk gets at once; `None`: what fits the disk.
    pub(crate) depth: Option<usize>,
    pub(crate) queue_bytes_max: u64,
    pub(crate) engine: EngineKind,
    pub(crate) network: NetworkFolders,
    pub(crate) health: HealthLimits,
    /// Where what it does is counted.
    pub(crate) registrar: Registrar,
}

/// Why a folder can't serve as a spindle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OpenError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Whether two spindles lie on one file system: what fills or breaks one concerns the other.
pub(crate) fn share_disk(one: &Spindle, other: &Spindle) -> bool {
    one.uuid == other.uuid || one.device.is_some() && one.device == other.device
}

impl Spindle {
    /// Claims the folder and starts its impellers. `number` counts the cache's spindles. It has no room yet:
    /// [`Self::limit`] comes when what it holds is known.
    pub(crate) fn open(number: usize, folder: &Path, plan: &SpindlePlan) -> Result<Spindle, OpenError> {
        let identity = Arc::new(Identity::claim(folder, plan.network)?);
        let uuid = identity.uuid();
        // Where the disk can't be told, the default for one that does not turn is right: it only wants more.
        let device = Device::of(folder).ok();
        let rotational = device.as_ref().and_then(|device| device.rotational);
        let watch = Arc::new(SpindleWatch::new(plan.health.clone(), OpMeter::new(&plan.registrar, number)));
        let impellers = Impellers::start(ImpellerPlan {
            name: format!("spindle-{number}"),
            count: plan.impellers,
            depth: plan.depth.unwrap_or_else(|| depth_on(rotational)),
            queue_bytes_max: plan.queue_bytes_max,
            engine: plan.engine.clone(),
            // The threads hold the lock, also one that a hung disk keeps after the cache was closed: nobody
            // else may come in while an impeller may still change something.
            watch: Some(watch_of(&watch, identity.clone())),
        })?;
        Ok(Spindle {
            uuid,
            uuid_text: uuid.to_string(),
            folder: folder.to_owned(),
            impellers,
            room: SpindleRoom::new(),
            watch,
            device: device.map(|device| device.id),
            number,
            engine: plan.engine.clone(),
            identity,
        })
    }

    /// More impellers for a while, each doing one thing at a time: to look at many small files.
    ///
    /// How long each operation takes is not told to the spindle's health: it is for many files.
    pub(crate) fn start_readers(&self, count: usize) -> Result<Impellers, StartError> {
        let identity = self.identity.clone();
        Impellers::start(ImpellerPlan {
            name: format!("spindle-{}-reader", self.number),
            count,
            depth: 1,
            queue_bytes_max: READERS_QUEUE_BYTES_MAX,
            engine: match &self.engine {
                EngineKind::Auto | EngineKind::Uring => EngineKind::Threads,
                other => other.clone(),
            },
            // Holds the lock as long as a thread lives, like those of the spindle.
            watch: Some(Arc::new(move |_| _ = &identity)),
        })
    }

    /// How large its file system is, and what is free there.
    pub(crate) fn space(&self, deadline: Option<Instant>) -> Result<Space, DiskError> {
        self.impellers.run(Op::Space { path: self.folder.clone() }, deadline).map(Outcome::into_space)
    }

    /// Settles how much it may hold, now that what it holds already is counted. `sharers` spindles share its
    /// file system and divide what is free there.
    pub(crate) fn limit(
        &self,
        config: &SpindleConfig,
        floor: Option<u64>,
        sharers: u64,
        space: Space,
    ) -> Result<(), ConfigError> {
        self.room.saw(space.bytes_free);
        let held = self.room.counts().used;
        let capacity = config.capacity_on(space.bytes_free / sharers, held);
        let floor = floor.unwrap_or_else(|| floor_on(space.bytes_total, space.bytes_free, held));
        capacity.map(|capacity| self.room.limit(capacity, floor))
    }

    /// The spindle's name as it stands in the names of load folders.
    pub(crate) fn uuid_text(&self) -> &str {
        &self.uuid_text
    }

    /// Asks whether it takes new loads: it answers, and is not in quarantine. Where a probe is due, makes it.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn takes_work(&self) -> Result<(), SpindleRefusal> {
        if let Some(hung) = self.hung() {
            self.watch.fault(HealthEvent::Hung, &hung);
        }
        let probe = || match self.hung() {
            Some(hung) => Err(hung),
            None => {
                let deadline = Instant::now() + LOOK_WAIT_MAX;
                write_and_read_back(&self.impellers, &self.folder, deadline).map(|_| ())
            }
        };
        if !self.watch.takes_work(probe) {
            let last_fault = self.watch.last_fault();
            return Err(self.refuse(RefusalReason::Quarantined { last_fault }));
        }
        self.look().map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                // The folder itself has gone: nothing works there until it is back.
                self.watch.fault(HealthEvent::Hung, &error);
            }
            self.refuse(RefusalReason::Unreachable(Box::new(error)))
        })
    }

    /// Promises `bytes` of room.
    ///
    /// # Errors
    /// The numbers.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<Reservation, SpindleRefusal> {
        self.room.reserve(bytes).map_err(|full| self.refuse(RefusalReason::Full(full)))
    }

    /// Promises `bytes` more room.
    ///
    /// # Errors
    /// The numbers. What was promised before still is.
    pub(crate) fn grow(&self, reservation: &mut Reservation, bytes: u64) -> Result<(), SpindleRefusal> {
        let grown = match self.room.grow(reservation, bytes) {
            // Somebody may have removed something since the disk was last asked.
            Err(SpindleFull::Disk { .. }) if self.look().is_ok() => self.room.grow(reservation, bytes),
            grown => grown,
        };
        grown.map_err(|full| self.refuse(RefusalReason::Full(full)))
    }

    fn refuse(&self, reason: RefusalReason) -> SpindleRefusal {
        SpindleRefusal { folder: self.folder.clone(), reason }
    }

    /// Looks how much its file system has free.
    fn look(&self) -> Result<(), DiskError> {
        let ask = Op::Space { path: self.folder.clone() };
        let space = self.impellers.run(ask, Some(Instant::now() + LOOK_WAIT_MAX))?.into_space();
        self.room.saw(space.bytes_free);
        Ok(())
    }

    /// What it waits for far too long, if it does.
    fn hung(&self) -> Option<DiskError> {
        let (subject, since) = self.impellers.oldest()?;
        (since >= self.watch.hung_after).then(|| subject.late())
    }
}

/// Finds out whether the disk under a folder works: writes a page, syncs, reads it back, removes it. Says how the file
/// was opened, unless the disk is full: that is no broken one.
pub(crate) fn write_and_read_back(
    impellers: &Impellers,
    folder: &Path,
    deadline: Instant,
) -> Result<Option<FileMode>, DiskError> {
    let run = |op| impellers.run(op, Some(deadline));
    let path = folder.join(PROBE_FILE);
    let _ = run(Op::Unlink { path: path.clone() }); // Of a probe that did not end.
    let write = || {
        let file = run(Op::CreateFile { path: path.clone(), mode: FileMode::Direct })?.into_file();
        let mode = file.mode();
        let written = [0xA5; DIRECT_ALIGNMENT];
        let len = written.len();
        let bytes = Box::new(PageBuffer::copied(&written));
        run(Op::Write { file: file.clone(), offset: 0, bytes, len })?;
        run(Op::SyncData { file: file.clone() })?;
        let room = Box::new(PageBuffer::zeroed(len));
        let subject = Op::LengthOf { file: file.clone() }.subject();
        let (mut room, read) = run(Op::Read { file, offset: 0, room, len })?.into_read_back();
        if room.room()[..read] != written {
            return Err(subject.failed(std::io::Error::other("it reads other bytes than were written")));
        }
        Ok(Some(mode))
    };
    let result = match write() {
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(None),
        result => result,
    };
    let removed = run(Op::Unlink { path });
    result.and_then(|mode| removed.map(|_| mode))
}

//! How a cache is set up and opened.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pelton_region_format::KeyPattern;

use crate::cache::{Cache, CacheCore};
use crate::config::host::Host;
use crate::config::view::View;
use crate::config::{Config, ConfigError, IoEngine, Settings, SpindleConfig, Verify};
use crate::load::registry::{Loaders, Registry};
use crate::load::{AsyncLoader, Blocking, Loader, Polled};
use crate::region::arena::Paging;
use crate::region::residence::Residence;
use crate::scan::threads::ScanThreads;
use crate::side_by_side::side_by_side;
use crate::snap::recovery::list;
use crate::spindle::engine::{EngineKind, Space};
use crate::spindle::health::HealthLimits;
use crate::spindle::held::{Spindle, SpindlePlan, share_disk};
use crate::spindle::identity::NetworkFolders;
use crate::stats::recorder::Registrar;
use crate::tender::run::Tender;
use crate::tender::{MarksPercent, Ttls};

/// Sets up a cache. Everything but the spindles has a default that fits the machine.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct CacheBuilder {
    config: Config,
    loaders: Loaders,
    registrar: Registrar,
}

/// Why a cache can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A setting can't be used: correct it.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// A folder can't serve as a spindle.
    #[error("{} can't be a spindle", folder.display())]
    Spindle {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What lies on a spindle could not be looked at.
    #[error("the spindles could not be read")]
    Recovery {
        /// What the disk said.
        source: crate::DiskError,
    },
    /// The system gives no thread.
    #[error("there is no thread for the scrub")]
    Threads {
        /// What the system said.
        source: std::io::Error,
    },
}

impl CacheBuilder {
    /// With all settings from a [`Config`], which may have come from a file. What is called after it adds to
    /// them or overrides them.
    pub fn from_config(config: Config) -> Self {
        CacheBuilder { config, ..CacheBuilder::default() }
    }

    /// Adds a folder on a disk, and how many bytes it may hold: a number, or `None` for half of what is free
    /// for it when the cache opens. The folder is made if it is missing, and must be empty or a spindle already.
    pub fn spindle(mut self, folder: impl Into<PathBuf>, capacity: impl Into<Option<u64>>) -> Self {
        self.config.spindles.push(SpindleConfig { path: folder.into(), capacity: capacity.into() });
        self
    }

    /// How much every spindle's file system keeps free, whatever the capacity says.
    pub fn free_floor(mut self, bytes: u64) -> Self {
        self.config.free_floor = Some(bytes);
        self
    }

    /// How much memory the cache may use: images, mapped regions, and buffers.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.config.memory = Some(bytes);
        self
    }

    /// Whether images, pieces and what streams read into stay in memory whatever else the machine does (mlock): the system
    /// never takes them to a swap. Mapped regions are the page cache's, and are not locked. Off by default: it needs a
    /// limit for locked memory (`ulimit -l`) of at least [`Self::memory`].
    pub fn lock_memory(mut self, lock: bool) -> Self {
        self.config.lock_memory = lock;
        self
    }

    /// How much of the memory parcels and pieces on their way may use.
    pub fn buffers(mut self, bytes: u64) -> Self {
        self.config.buffers = Some(bytes);
        self
    }

    /// How many threads scan, and over how many regions a slice is dealt unless its plan says otherwise.
    pub fn scan_threads(mut self, count: usize) -> Self {
        self.config.scan_threads = Some(count);
        self
    }

    /// Whether each scan thread is tied to a core.
    pub fn pin(mut self, pin: bool) -> Self {
        self.config.pin = Some(pin);
        self
    }

    /// How many threads serve each spindle.
    pub fn impellers(mut self, count: usize) -> Self {
        self.config.impellers = Some(count);
        self
    }

    /// How the disks are asked.
    pub fn engine(mut self, engine: IoEngine) -> Self {
        self.config.engine = engine;
        self
    }

    /// When bytes are compared with their checksums. By default whenever they were read from a disk.
    pub fn verify(mut self, verify: Verify) -> Self {
        self.config.verify = verify;
        self
    }

    /// Where regions lie when they are brought into memory.
    pub fn residence(mut self, residence: Residence) -> Self {
        self.config.residence = residence;
        self
    }

    /// Whether a mapped file that becomes shorter, or a disk that fails late, is an error of the scan that meets it
    /// instead of the end of the process. Off by default: it installs a handler for SIGBUS, which belongs to the whole
    /// process. Faults elsewhere go to the handler that was there before.
    pub fn sigbus_guard(mut self, guard: bool) -> Self {
        self.config.sigbus_guard = guard;
        self
    }

    /// Registers a loader under a name, by which views call it. It fills nothing that no view says.
    pub fn loader(mut self, name: impl Into<String>, loader: impl Loader) -> Self {
        self.loaders.insert(name.into(), Arc::new(Blocking(loader)));
        self
    }

    /// The same for a loader whose operations are futures.
    pub fn async_loader(mut self, name: impl Into<String>, loader: impl AsyncLoader) -> Self {
        self.loaders.insert(name.into(), Arc::new(Polled(loader)));
        self
    }

    /// Says what holds for some of the slices. Of each setting, the first view that matches a slice and has it counts.
    pub fn view(mut self, view: View) -> Self {
        self.config.views.push(view);
        self
    }

    /// How long a slice whose load or warming has failed is not tried again: this the first time, twice as long after each
    /// further failure in a row, but never longer than `max`. By default a second, and five minutes.
    pub fn heal_after(mut self, min: Duration, max: Duration) -> Self {
        self.config.heal_after = Some((min, max));
        self
    }

    /// Reads what lies on the disks again in the background, so many bytes a second, and compares it with its checksums;
    /// `None`, as by default, does not. It goes behind all other work of the disks and past the page cache, oldest verified
    /// slice first, each once a day. A slice that is damaged is dropped, and [`Event::Damaged`](crate::Event::Damaged) tells.
    pub fn scrub(mut self, bytes_per_second: impl Into<Option<u64>>) -> Self {
        self.config.scrub.rate = bytes_per_second.into();
        self
    }

    /// Where the cache's metrics go. By default to what is installed for the process when the cache is opened.
    #[cfg(feature = "metrics")]
    pub fn recorder(mut self, recorder: Arc<dyn metrics::Recorder + Send + Sync>) -> Self {
        self.registrar = Registrar::of(recorder);
        self
    }

    /// Whether slices leave memory and disks by themselves: when nobody has asked for them for long, and when room is
    /// needed. On by default. Switch it off to decide all of it yourself, maybe with [`tender`](crate::tender).
    pub fn tender(mut self, on: bool) -> Self {
        self.config.tender = Some(on);
        self
    }

    /// How often it is looked what may go. Each second by default.
    pub fn tender_every(mut self, every: Duration) -> Self {
        self.config.tender_every = Some(every);
        self
    }

    /// How long the slices that a pattern matches may be idle. Of several patterns that match, the one that was said
    /// first counts.
    pub fn ttls(mut self, pattern: KeyPattern, ttls: Ttls) -> Self {
        self.config.ttls.push((pattern, ttls));
        self
    }

    /// How full memory may get before slices are evicted, and how far that goes.
    pub fn memory_marks(mut self, marks: MarksPercent) -> Self {
        self.config.memory_marks = marks;
        self
    }

    /// How full a spindle may get before slices are flushed, and how far that goes.
    pub fn disk_marks(mut self, marks: MarksPercent) -> Self {
        self.config.disk_marks = marks;
        self
    }

    /// Opens the cache, and finds what earlier ones have left on the spindles.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(self) -> Result<Cache, CacheError> {
        let settings = self.config.settle(&Host::of_this_process())?;
        let loaders = self.registry()?;
        let engine = match settings.engine {
            IoEngine::Auto => EngineKind::Auto,
            IoEngine::Uring => EngineKind::Uring,
            IoEngine::Threads => EngineKind::Threads,
        };
        let engines = vec![engine; settings.spindles.len()];
        open(&settings, engines, HealthLimits::default(), loaders, &self.registrar)
    }

    /// Which loader fills which slice. One that was registered under the name of one that comes with the cache takes its
    /// place.
    fn registry(&self) -> Result<Registry, ConfigError> {
        let mut loaders = Loaders::default();
        if let Some(files) = &self.config.loaders.files {
            loaders.insert("files".to_owned(), Arc::new(Blocking(files.loader())));
        }
        loaders.extend(self.loaders.clone());
        loaders.settle(&self.config.views)
    }

    /// Opens it on simulated disks, one for each spindle. The identity of a spindle stays on the real one.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn open_on(
        self,
        disks: Vec<crate::spindle::engine::sim::SimDisk>,
        health: HealthLimits,
    ) -> Result<Cache, CacheError> {
        let settings = self.config.settle(&Host::of_this_process())?;
        let loaders = self.registry()?;
        open(&settings, disks.into_iter().map(EngineKind::Sim).collect(), health, loaders, &self.registrar)
    }
}

fn open(
    settings: &Settings,
    engines: Vec<EngineKind>,
    health: HealthLimits,
    loaders: Registry,
    registrar: &Registrar,
) -> Result<Cache, CacheError> {
    let spindles = open_spindles(settings, engines, health, registrar)?;
    let listed = list(&spindles).map_err(|source| CacheError::Recovery { source })?;
    // What the spindles hold is not counted yet, and enlarges what they may hold.
    let spaces = spindles.iter().map(|spindle| spindle.space(None)).collect::<Result<Vec<_>, _>>();
    let spaces = spaces.map_err(|source| CacheError::Recovery { source })?;
    let limited = limit_all(&spindles, settings, &spaces);
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let tender = Tender::new(settings.tender, settings.rules.clone());
    let core = CacheCore::new(
        spindles.clone(),
        settings.memory,
        settings.buffers,
        settings.streams,
        settings.verify,
        usize::try_from(settings.piece_bytes).expect("pieces are a few MiB"),
        Arc::new(ScanThreads::new(settings.scan_threads, settings.scan_cores.clone())),
        settings.residence,
        settings.sigbus_guard,
        if settings.lock_memory { Paging::Locked } else { Paging::Free },
        epoch,
        loaders,
        settings.limits,
        settings.scrub_rate,
        registrar,
        tender,
    );
    let cache = Cache::from_core(core, settings.tender_every)?;
    let (of_recovery, settings_there, told) = (spindles.clone(), settings.clone(), Arc::new(OnceLock::new()));
    let tell = told.clone();
    cache.start_recovery(listed, move || {
        let spaces = spaces_now(&of_recovery, spaces);
        let _ = tell.set(limit_all(&of_recovery, &settings_there, &spaces)); // There is one recovery.
    });
    if limited.is_err() {
        cache.recovery();
        // What it holds has made it large enough, or it is too small.
        told.get().cloned().unwrap_or(limited)?;
    }
    Ok(cache)
}

/// How long a disk has to say once more what is free, when all that lies there was read. Loads wait for that.
const SPACE_WAIT_MAX: Duration = Duration::from_secs(2);

/// What each disk says of itself now. One that is silent has said it before; then nothing was counted yet, and what lies there
/// was not free either.
fn spaces_now(spindles: &[Arc<Spindle>], before: Vec<Space>) -> Vec<Space> {
    let deadline = Some(Instant::now() + SPACE_WAIT_MAX);
    let asked = side_by_side("pelton-space", spindles, |spindle| spindle.space(deadline));
    asked.into_iter().zip(before).map(|(now, before)| now.unwrap_or(before)).collect()
}

/// Settles how much each spindle may hold, by what its file system has free and what was counted so far. What is wrong with
/// one leaves no other without its limits; it is told of the first.
fn limit_all(spindles: &[Arc<Spindle>], settings: &Settings, spaces: &[Space]) -> Result<(), ConfigError> {
    let mut told = Ok(());
    for ((spindle, config), space) in spindles.iter().zip(&settings.spindles).zip(spaces) {
        let sharers = spindles.iter().filter(|other| share_disk(spindle, other)).count() as u64;
        told = told.and(spindle.limit(config, settings.free_floor, sharers.max(1), *space));
    }
    told
}

fn open_spindles(
    settings: &Settings,
    engines: Vec<EngineKind>,
    health: HealthLimits,
    registrar: &Registrar,
) -> Result<Vec<Arc<Spindle>>, CacheError> {
    let mut spindles: Vec<Arc<Spindle>> = Vec::new();
    for (SpindleConfig { path, .. }, engine) in settings.spindles.iter().zip(engines) {
        let plan = SpindlePlan {
            impellers: settings.impellers,
            depth: settings.depth,
            queue_bytes_max: settings.queue_bytes_max,
            engine,
            network: if settings.network_folders { NetworkFolders::Accept } else { NetworkFolders::Refuse },
            health: health.clone(),
            registrar: registrar.clone(),
        };
        match Spindle::open(spindles.len(), path, &plan) {
            Ok(spindle) => spindles.push(Arc::new(spindle)),
            Err(source) => {
                if let Some(first) = spindles.iter().find(|spindle| is_same_folder(&spindle.folder, path)) {
                    return Err(CacheError::Setting(ConfigError::folder_twice(&first.folder, path)));
                }
                return Err(CacheError::Spindle { folder: path.clone(), source: Box::new(source) });
            }
        }
    }
    Ok(spindles)
}

fn is_same_folder(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

//! What can be set, what it is by default, and what is refused.
//!
//! A [`Config`] holds what somebody has said; all else is `None`. [`Config::settle`] fills in what fits the
//! machine and is the one place where values are refused. The capacity of a spindle is settled when its disk
//! is known, by [`SpindleConfig::capacity_on`].

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use pelton_region_format::KeyPattern;

use crate::region::residence::Residence;
use crate::scan::stream::RING_BYTES_MAX;
use crate::snap::state::Limits;
use crate::tender::rules::Rules;
use crate::tender::{MarksPercent, Ttls};
use crate::units::{GIB, KIB, MIB, SizeError, Unrounded, grouped, parse_size};

pub(crate) mod host;
pub(crate) mod loaders;
pub(crate) mod view;

use host::{Host, MemorySource};
use loaders::LoadersConfig;
use view::View;

const MEMORY_MIN: u64 = 64 * MIB;
/// Where nothing tells how much memory there is.
const MEMORY_BLIND: u64 = GIB;
const BUFFERS_MAX_DEFAULT: u64 = 256 * MIB;
/// Fewer pieces at once, and a load waits for the disk after each.
const BUFFERS_PIECES_MIN: u64 = 4;
const PIECE_BYTES_DEFAULT: u64 = 4 * MIB;
const PIECE_BYTES_MAX: u64 = 8 * MIB;
/// Pieces are whole large pages, in memory and in the file.
const PIECE_BYTES_STEP: u64 = 2 * MIB;
const QUEUE_PIECES_DEFAULT: u64 = 8;
const QUEUE_BYTES_MAX: u64 = 4 * GIB;
const SCAN_THREADS_MAX: usize = 1024;
const IMPELLERS_MAX: usize = 16;
const DEPTH_MAX: usize = 256;
const SPINDLES_MAX: usize = 64;
const CAPACITY_MIN: u64 = 16 * MIB;
/// More than any disk, and sums of a few of them still fit 64 bits.
const CAPACITY_MAX: u64 = 1 << 60;
const TENDER_EVERY_DEFAULT: Duration = Duration::from_secs(1);
const TENDER_EVERY: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
const FLOOR_MAX_DEFAULT: u64 = 8 * GIB;
/// A week for 40 GiB: with less, a cache of any size is never verified twice.
const SCRUB_RATE_MIN: u64 = 64 * KIB;
const SCRUB_RATE_MAX: u64 = 64 * GIB;
const DISK_PAGE_BYTES: u64 = 4 * KIB;

/// How disks are spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum IoEngine {
    /// io_uring where the system allows it, else threads.
    #[default]
    Auto,
    /// io_uring, or no cache.
    Uring,
    /// Plain system calls on a few threads.
    Threads,
}

/// When a slice's bytes are compared with their checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Verify {
    /// Not at all: for disks that check by themselves. Header, trailer and sections are compared all the same.
    Never,
    /// Whenever they were read from a disk, before anybody sees them.
    #[default]
    WhenRead,
    /// Then, and at each lease those that are in memory already, too: a scan's worth of time.
    Always,
}

/// What somebody has set. What is `None` gets a default that fits the machine.
///
/// With the feature `serde` it reads itself from a file; sizes may be texts such as `"64MiB"` there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Config {
    /// The folders, at least one.
    #[cfg_attr(feature = "serde", serde(rename = "spindle"))]
    pub spindles: Vec<SpindleConfig>,
    /// How much memory the cache may use, buffers included, and up to an eighth for scans that read from the disk. By default half of the container's limit, or a quarter
    /// of a machine without one.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "crate::units::as_people_write::deserialize"))]
    pub memory: Option<u64>,
    /// Whether images and pieces are kept from a swap: see the builder.
    pub lock_memory: bool,
    /// How much of it parcels and pieces on their way may use. By default an eighth, at most 256 MiB.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "crate::units::as_people_write::deserialize"))]
    pub buffers: Option<u64>,
    /// How many threads scan, and over how many regions a slice is dealt. By default one for each core that we
    /// may use, as far as the CPU quota goes.
    pub scan_threads: Option<usize>,
    /// Whether scan threads are tied to cores. By default yes, unless the CPU quota is smaller than the cores.
    pub pin: Option<bool>,
    /// How many threads serve each spindle. By default 1.
    pub impellers: Option<usize>,
    /// How many operations a spindle's disk is given at once. By default 8, and 2 for disks that turn.
    pub depth: Option<usize>,
    /// How much is handed to a disk in one go: a multiple of 2 MiB. By default 4 MiB.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "crate::units::as_people_write::deserialize"))]
    pub piece: Option<u64>,
    /// How many bytes may wait for one spindle. By default 8 pieces.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "crate::units::as_people_write::deserialize"))]
    pub queue: Option<u64>,
    /// How much every spindle's file system keeps free, whatever the capacity says. By default a twentieth of it,
    /// at most 8 GiB.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "crate::units::as_people_write::deserialize"))]
    pub free_floor: Option<u64>,
    /// How disks are spoken to.
    pub engine: IoEngine,
    /// When bytes are compared with their checksums.
    pub verify: Verify,
    /// Where regions lie when they are brought into memory.
    pub residence: Residence,
    /// Whether faults in mapped files are caught: see the builder.
    pub sigbus_guard: bool,
    /// Whether spindles may lie on network file systems.
    pub network_folders: bool,
    /// What holds for some of the slices, in the order in which it is asked.
    #[cfg_attr(feature = "serde", serde(rename = "view"))]
    pub views: Vec<View>,
    /// The loaders that come with the cache.
    #[cfg_attr(feature = "serde", serde(rename = "loader"))]
    pub loaders: LoadersConfig,
    /// How long what has failed is not tried again, at first and at most. By default a second, and five minutes.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "heal_after"))]
    pub heal_after: Option<(Duration, Duration)>,
    /// Whether what lies on the disks is read again in the background.
    pub scrub: ScrubConfig,
    /// Whether slices leave memory and disks by themselves. By default yes.
    pub tender: Option<bool>,
    /// How full memory may get before slices are evicted, and how far that goes.
    pub memory_marks: MarksPercent,
    /// How full a spindle may get before slices are flushed, and how far that goes.
    pub disk_marks: MarksPercent,
    /// How long slices may be idle: the first pattern that matches one counts.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub ttls: Vec<(KeyPattern, Ttls)>,
    /// How often the tender looks. By default each second.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub tender_every: Option<Duration>,
    /// What the same file says to a node that serves the cache.
    #[cfg(feature = "serde")]
    pub(crate) node: Elsewhere,
}

/// A part of a file that is read elsewhere, and may have anything here.
#[cfg(feature = "serde")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Elsewhere;

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Elsewhere {
    fn deserialize<D: serde::Deserializer<'de>>(source: D) -> Result<Elsewhere, D::Error> {
        serde::de::IgnoredAny::deserialize(source).map(|_| Elsewhere)
    }
}

/// Reads `{ min = "1s", max = "5m" }`, of which either may be left out.
#[cfg(feature = "serde")]
fn heal_after<'de, D: serde::Deserializer<'de>>(source: D) -> Result<Option<(Duration, Duration)>, D::Error> {
    use crate::units::span::as_people_write;

    #[derive(serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct HealAfter {
        #[serde(deserialize_with = "as_people_write::deserialize")]
        min: Duration,
        #[serde(deserialize_with = "as_people_write::deserialize")]
        max: Duration,
    }

    impl Default for HealAfter {
        fn default() -> HealAfter {
            let Limits { heal_min, heal_max } = Limits::default();
            HealAfter { min: heal_min, max: heal_max }
        }
    }

    let HealAfter { min, max } = serde::Deserialize::deserialize(source)?;
    Ok(Some((min, max)))
}

/// How what lies on the disks is read again and compared with its checksums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct ScrubConfig {
    /// How many bytes it may read in a second. By default there is no scrub.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "crate::units::as_people_write::deserialize"))]
    pub rate: Option<u64>,
}

/// One spindle: `DIR` or `DIR:SIZE` on a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(deny_unknown_fields))]
pub struct SpindleConfig {
    /// The folder. It is made if it is missing, and must be empty or a spindle already.
    pub path: PathBuf,
    /// How much it may hold. By default half of what is free for it when the cache opens.
    #[cfg_attr(
        feature = "serde",
        serde(default, deserialize_with = "crate::units::as_people_write::deserialize")
    )]
    pub capacity: Option<u64>,
}

/// A value that cannot be used. Correct it; the message names all there is to know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}, allowed is {allowed}")]
#[non_exhaustive]
pub struct ConfigError {
    /// Which setting: `memory`.
    pub name: String,
    /// What it was set to, or would be by default.
    pub value: String,
    /// What it may be.
    pub allowed: String,
}

impl ConfigError {
    /// Two spellings of one folder.
    pub(crate) fn folder_twice(first: &Path, again: &Path) -> ConfigError {
        let value = format!("{}, which is {} once more", again.display(), first.display());
        refuse("spindle", value, "each folder once".to_owned())
    }
}

/// Settings that fit each other and the machine. Only [`Config::settle`] makes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) spindles: Vec<SpindleConfig>,
    pub(crate) memory: u64,
    pub(crate) lock_memory: bool,
    /// Where the default for `memory` comes from; `None` if it was set.
    pub(crate) memory_source: Option<MemorySource>,
    pub(crate) buffers: u64,
    pub(crate) scan_threads: usize,
    /// The cores to tie scan threads to; empty if they run free.
    pub(crate) scan_cores: Vec<usize>,
    pub(crate) impellers: usize,
    /// `None`: [`depth_on`] decides when the disk is known.
    pub(crate) depth: Option<usize>,
    pub(crate) piece_bytes: u64,
    pub(crate) queue_bytes_max: u64,
    /// `None`: [`floor_on`] decides when the disk is known.
    pub(crate) free_floor: Option<u64>,
    pub(crate) engine: IoEngine,
    pub(crate) verify: Verify,
    /// How much of the memory scans that read from the disk use, apart from `buffers`.
    pub(crate) streams: u64,
    pub(crate) residence: Residence,
    pub(crate) sigbus_guard: bool,
    pub(crate) network_folders: bool,
    pub(crate) limits: Limits,
    pub(crate) scrub_rate: Option<u64>,
    pub(crate) tender: bool,
    pub(crate) tender_every: Duration,
    pub(crate) rules: Rules,
}

impl Config {
    /// Fills in what was not said, and refuses what cannot work. Asks no disk.
    ///
    /// # Errors
    /// [`ConfigError`] for the first value, in the order of the fields, that is out of its range.
    pub(crate) fn settle(&self, host: &Host) -> Result<Settings, ConfigError> {
        self.check_spindles()?;
        let default = host.memory.map_or(MEMORY_BLIND, |memory| match memory.source {
            // What is in the container is ours.
            MemorySource::CgroupV2 | MemorySource::CgroupV1 => memory.bytes / 2,
            // A machine has other things to do.
            MemorySource::Machine => memory.bytes / 4,
        });
        let memory = self.memory.unwrap_or(default.max(MEMORY_MIN));
        check_memory(memory, self.lock_memory, MEMORY_MIN, host)?;

        let piece_bytes = self.piece.unwrap_or(PIECE_BYTES_DEFAULT);
        check_size("piece", piece_bytes, PIECE_BYTES_STEP..=PIECE_BYTES_MAX)?;
        if !piece_bytes.is_multiple_of(PIECE_BYTES_STEP) {
            let allowed = format!("a multiple of {}", Unrounded(PIECE_BYTES_STEP));
            return Err(refuse("piece", Unrounded(piece_bytes), allowed));
        }
        let buffers_min = BUFFERS_PIECES_MIN * piece_bytes;
        let buffers = self.buffers.unwrap_or((memory / 8).clamp(buffers_min, BUFFERS_MAX_DEFAULT));
        check_size("buffers", buffers, buffers_min..=memory / 2)?;

        let quota_threads =
            host.quota_millicores.map_or(usize::MAX, |quota| quota.div_ceil(1000).max(1) as usize);
        let default = host.core_count.min(quota_threads).clamp(1, SCAN_THREADS_MAX);
        let scan_threads = self.scan_threads.unwrap_or(default);
        check_count("scan_threads", scan_threads, 1..=SCAN_THREADS_MAX)?;
        // Below the quota the kernel stops all threads for a while; tied ones would wait for each other then.
        let quota_covers = host.quota_millicores.is_none_or(|quota| quota >= 1000 * host.core_count as u64);
        let pin =
            self.pin.unwrap_or(!host.cores.is_empty() && quota_covers && scan_threads <= host.core_count);
        if pin && host.cores.is_empty() {
            return Err(refuse("pin", pin, "false: this machine does not tell its cores".to_owned()));
        }

        let impellers = self.impellers.unwrap_or(1);
        check_count("impellers", impellers, 1..=IMPELLERS_MAX)?;
        if let Some(depth) = self.depth {
            check_count("depth", depth, 1..=DEPTH_MAX)?;
        }
        let queue_bytes_max = self.queue.unwrap_or(QUEUE_PIECES_DEFAULT * piece_bytes);
        check_size("queue", queue_bytes_max, piece_bytes..=QUEUE_BYTES_MAX)?;
        if let Some(floor) = self.free_floor {
            check_size("free_floor", floor, 0..=CAPACITY_MAX)?;
        }
        if let Some(rate) = self.scrub.rate {
            check_size("scrub.rate", rate, SCRUB_RATE_MIN..=SCRUB_RATE_MAX)?;
        }
        let limits = match self.heal_after {
            None => Limits::default(),
            Some((heal_min, heal_max)) if heal_min <= heal_max => Limits { heal_min, heal_max },
            Some((min, max)) => {
                return Err(refuse(
                    "heal_after",
                    format_args!("{min:?}"),
                    format!("up to {max:?}, its maximum"),
                ));
            }
        };
        let tender_every = self.tender_every.unwrap_or(TENDER_EVERY_DEFAULT);
        if !TENDER_EVERY.contains(&tender_every) {
            return Err(refuse("tender_every", format_args!("{tender_every:?}"), "1ms to 1h".to_owned()));
        }
        let memory_marks = self.memory_marks.check("memory_marks")?;
        let disk_marks = self.disk_marks.check("disk_marks")?;
        let ttls = self.ttls.iter().map(|(pattern, ttls)| Ok((pattern.clone(), ttls.check(pattern)?)));
        let views = self.views.iter().map(|view| Ok((view.pattern.clone(), view.ttls()?)));
        let (ttls, views) =
            (ttls.collect::<Result<_, ConfigError>>()?, views.collect::<Result<_, ConfigError>>()?);
        let rules = Rules::new(memory_marks, disk_marks, ttls, views);
        Ok(Settings {
            spindles: self.spindles.clone(),
            memory,
            lock_memory: self.lock_memory,
            memory_source: match self.memory {
                Some(_) => None,
                None => host.memory.map(|memory| memory.source),
            },
            buffers,
            scan_threads,
            scan_cores: if pin { host.cores.clone() } else { Vec::new() },
            impellers,
            depth: self.depth,
            piece_bytes,
            queue_bytes_max,
            free_floor: self.free_floor,
            engine: self.engine,
            verify: self.verify,
            streams: (scan_threads as u64).saturating_mul(RING_BYTES_MAX).min(memory / 8),
            residence: self.residence,
            sigbus_guard: self.sigbus_guard,
            network_folders: self.network_folders,
            limits,
            scrub_rate: self.scrub.rate,
            tender: self.tender.unwrap_or(true),
            tender_every,
            rules,
        })
    }

    fn check_spindles(&self) -> Result<(), ConfigError> {
        if self.spindles.is_empty() {
            return Err(refuse("spindle", "not set", "at least one folder".to_owned()));
        }
        check_count("number of spindles", self.spindles.len(), 1..=SPINDLES_MAX)?;
        for (index, spindle) in self.spindles.iter().enumerate() {
            let shown = spindle.path.display();
            if spindle.path == Path::new("") {
                return Err(refuse("spindle", "an empty path", "a folder".to_owned()));
            }
            // Other spellings of one folder meet the lock of its identity.
            if self.spindles[..index].iter().any(|other| other.path == spindle.path) {
                return Err(refuse("spindle", format_args!("{shown} twice"), "each folder once".to_owned()));
            }
            if let Some(capacity) = spindle.capacity {
                check_capacity(&spindle.path, capacity)?;
            }
        }
        Ok(())
    }
}

impl SpindleConfig {
    /// A spindle with the default capacity.
    pub fn new(path: impl Into<PathBuf>) -> SpindleConfig {
        SpindleConfig { path: path.into(), capacity: None }
    }

    /// How much the spindle may hold, now that its disk is known: `disk_free` bytes are free there, and `held`
    /// bytes are the cache's own from earlier, so that the default does not shrink with every start.
    ///
    /// # Errors
    /// [`ConfigError`] if the disk has no room for a cache worth the name.
    pub(crate) fn capacity_on(&self, disk_free: u64, held: u64) -> Result<u64, ConfigError> {
        let capacity = self.capacity.unwrap_or(disk_free.saturating_add(held) / 2);
        let capacity = capacity - capacity % DISK_PAGE_BYTES;
        check_capacity(&self.path, capacity)?;
        Ok(capacity)
    }
}

/// Reads `DIR` or `DIR:SIZE`. What follows the last colon is a size if it can be read as one; else it belongs to
/// the path.
impl FromStr for SpindleConfig {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<SpindleConfig, SizeError> {
        let Some((path, size)) = text.rsplit_once(':') else { return Ok(SpindleConfig::new(text)) };
        match parse_size(size) {
            Ok(capacity) => Ok(SpindleConfig { path: path.into(), capacity: Some(capacity) }),
            // Nobody calls a folder that: it is a size, in the wrong unit.
            Err(error @ SizeError::Decimal { .. }) => Err(error),
            Err(_) => Ok(SpindleConfig::new(text)),
        }
    }
}

/// How many operations a disk is given at once if nobody said so.
///
/// A turning disk gains from a second one, and loses its order with many. For others 8 pieces of 4 MiB cover the
/// way there and back at any rate.
pub(crate) fn depth_on(rotational: Option<bool>) -> usize {
    if rotational == Some(true) { 2 } else { 8 }
}

/// How much a file system keeps free if nobody said so. On a disk that is nearly full it is no more than half of
/// what is left for the cache, with the `held` bytes that the cache has there already.
pub(crate) fn floor_on(disk_total: u64, disk_free: u64, held: u64) -> u64 {
    (disk_total / 20).min(FLOOR_MAX_DEFAULT).min(disk_free.saturating_add(held) / 2)
}

/// Refuses what the machine does not have, or may not lock. `least` is how much there must be for what the cache has
/// beside its regions.
pub(crate) fn check_memory(memory: u64, is_locked: bool, least: u64, host: &Host) -> Result<(), ConfigError> {
    let least = least.max(MEMORY_MIN);
    // Where there is less than the least, the least is still allowed: the system may have swap.
    let most = host.memory.map_or(u64::MAX, |memory| memory.bytes).max(least);
    check_size("memory", memory, least..=most)?;
    if let Some(lockable) = host.lockable_bytes.filter(|lockable| is_locked && *lockable < memory) {
        let allowed = format!(
            "false, or a limit for locked memory (ulimit -l) of at least the memory, {}: it is {}",
            Unrounded(memory),
            Unrounded(lockable)
        );
        return Err(refuse("lock_memory", true, allowed));
    }
    Ok(())
}

pub(crate) fn check_capacity(folder: &Path, capacity: u64) -> Result<(), ConfigError> {
    let name = format_args!("capacity of {}", folder.display()).to_string();
    check_size(name, capacity, CAPACITY_MIN..=CAPACITY_MAX)
}

fn check_size(name: impl fmt::Display, value: u64, allowed: RangeInclusive<u64>) -> Result<(), ConfigError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let range = match *allowed.end() {
        u64::MAX => format!("at least {}", Unrounded(*allowed.start())),
        end => format!("{} to {}", Unrounded(*allowed.start()), Unrounded(end)),
    };
    Err(refuse(name, Unrounded(value), range))
}

fn check_count(
    name: impl fmt::Display,
    value: usize,
    allowed: RangeInclusive<usize>,
) -> Result<(), ConfigError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let range = format!("{} to {}", allowed.start(), grouped(*allowed.end() as u64));
    Err(refuse(name, grouped(value as u64), range))
}

pub(crate) fn refuse(name: impl fmt::Display, value: impl fmt::Display, allowed: String) -> ConfigError {
    ConfigError { name: name.to_string(), value: value.to_string(), allowed }
}

#[cfg(test)]
mod tests {
    use super::host::MemoryLimit;
    use super::*;

    fn laptop() -> Host {
        Host {
            memory: Some(MemoryLimit { bytes: 16 * GIB, source: MemorySource::Machine }),
            cores: (0..8).collect(),
            core_count: 8,
            quota_millicores: None,
            lockable_bytes: Some(8 * MIB),
        }
    }

    /// Two and a half CPUs' worth of time and 1 GiB on a machine of 64 cores.
    fn container() -> Host {
        Host {
            memory: Some(MemoryLimit { bytes: GIB, source: MemorySource::CgroupV2 }),
            cores: (0..64).collect(),
            core_count: 64,
            quota_millicores: Some(2500),
            lockable_bytes: None,
        }
    }

    fn one_spindle() -> Config {
        Config { spindles: vec![SpindleConfig::new("data")], ..Config::default() }
    }

    fn refused(config: &Config) -> String {
        config.settle(&laptop()).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_fit_a_laptop() {
        let settings = one_spindle().settle(&laptop()).unwrap();
        assert_eq!((settings.memory, settings.buffers), (4 * GIB, 256 * MIB));
        assert_eq!(settings.memory_source, Some(MemorySource::Machine));
        assert_eq!((settings.scan_threads, settings.scan_cores), (8, (0..8).collect()));
        assert_eq!((settings.piece_bytes, settings.queue_bytes_max), (4 * MIB, 32 * MIB));
        assert_eq!((settings.impellers, settings.depth, settings.engine), (1, None, IoEngine::Auto));
    }

    #[test]
    fn memory_that_may_not_be_locked_is_refused_with_both_numbers() {
        let config = Config { lock_memory: true, memory: Some(96 * MIB), ..one_spindle() };
        assert_eq!(
            refused(&config),
            "lock_memory is true, allowed is false, or a limit for locked memory (ulimit -l) of at least the memory, \
             96 MiB: it is 8 MiB"
        );
        assert!(config.settle(&container()).unwrap().lock_memory, "there is no limit there");
        let enough = Host { lockable_bytes: Some(96 * MIB), ..laptop() };
        assert!(config.settle(&enough).unwrap().lock_memory);
        assert!(!one_spindle().settle(&laptop()).unwrap().lock_memory);
    }

    #[test]
    fn the_defaults_fit_a_container() {
        let settings = one_spindle().settle(&container()).unwrap();
        assert_eq!((settings.memory, settings.buffers), (512 * MIB, 64 * MIB));
        assert_eq!(settings.memory_source, Some(MemorySource::CgroupV2));
        assert_eq!((settings.scan_threads, settings.scan_cores), (3, vec![]), "not pinned under a quota");
        let pinned = Config { pin: Some(true), ..one_spindle() }.settle(&container()).unwrap();
        assert_eq!(pinned.scan_cores.len(), 64, "unless told to");
    }

    #[test]
    fn the_defaults_fit_where_there_is_little_or_nothing_is_known() {
        let tiny = MemoryLimit { bytes: 32 * MIB, source: MemorySource::CgroupV1 };
        let host = Host { memory: Some(tiny), quota_millicores: Some(100), ..container() };
        let settings = one_spindle().settle(&host).unwrap();
        assert_eq!((settings.memory, settings.buffers, settings.scan_threads), (64 * MIB, 16 * MIB, 1));
        let host = Host {
            memory: None,
            cores: vec![],
            core_count: 2000,
            quota_millicores: None,
            lockable_bytes: None,
        };
        let settings = one_spindle().settle(&host).unwrap();
        assert_eq!((settings.memory, settings.memory_source), (GIB, None));
        assert_eq!((settings.scan_threads, settings.scan_cores), (1024, vec![]));
        let error = Config { pin: Some(true), ..one_spindle() }.settle(&host).unwrap_err();
        assert_eq!(error.name, "pin");
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_scrub_has_a_table_of_its_own() {
        let read = |text| serde_json::from_str::<Config>(text);
        assert_eq!(read(r#"{"scrub": {"rate": "20MiB"}}"#).unwrap().scrub.rate, Some(20 * MIB));
        assert_eq!(read(r#"{"scrub": {}}"#).unwrap().scrub, ScrubConfig::default());
        let error = read(r#"{"scrub": {"rat": 1}}"#).unwrap_err().to_string();
        assert!(error.contains("rat") && error.contains("expected `rate`"), "{error}");
    }

    #[test]
    fn what_was_set_is_kept() {
        let config = Config {
            memory: Some(GIB),
            buffers: Some(100 * MIB),
            scan_threads: Some(16),
            pin: Some(true),
            impellers: Some(2),
            depth: Some(4),
            piece: Some(2 * MIB),
            queue: Some(2 * MIB),
            free_floor: Some(0),
            engine: IoEngine::Threads,
            verify: Verify::Always,
            network_folders: true,
            scrub: ScrubConfig { rate: Some(20 * MIB) },
            ..one_spindle()
        };
        let expected = Settings {
            spindles: one_spindle().spindles,
            memory: GIB,
            lock_memory: false,
            memory_source: None,
            buffers: 100 * MIB,
            scan_threads: 16,
            scan_cores: (0..8).collect(),
            impellers: 2,
            depth: Some(4),
            piece_bytes: 2 * MIB,
            queue_bytes_max: 2 * MIB,
            free_floor: Some(0),
            engine: IoEngine::Threads,
            verify: Verify::Always,
            streams: 128 * MIB,
            residence: Residence::Auto,
            sigbus_guard: false,
            network_folders: true,
            limits: Limits::default(),
            scrub_rate: Some(20 * MIB),
            tender: true,
            tender_every: TENDER_EVERY_DEFAULT,
            rules: Rules::default(),
        };
        assert_eq!(config.settle(&laptop()), Ok(expected));
    }

    #[test]
    fn what_cannot_work_is_refused_with_name_value_and_range() {
        let set = one_spindle;
        let spindles = |texts: &[&str]| {
            let spindles = texts.iter().map(|text| text.parse().unwrap()).collect();
            Config { spindles, ..Config::default() }
        };
        let cases = [
            (Config::default(), "spindle is not set, allowed is at least one folder"),
            (spindles(&["a", "b", "a"]), "spindle is a twice, allowed is each folder once"),
            (spindles(&[""]), "spindle is an empty path, allowed is a folder"),
            (spindles(&["a", "b:4KiB"]), "capacity of b is 4 KiB, allowed is 16 MiB to 1 EiB"),
            (Config { memory: Some(MIB), ..set() }, "memory is 1 MiB, allowed is 64 MiB to 16 GiB"),
            (Config { memory: Some(17 * GIB), ..set() }, "memory is 17 GiB, allowed is 64 MiB to 16 GiB"),
            (Config { buffers: Some(3 * GIB), ..set() }, "buffers is 3 GiB, allowed is 16 MiB to 2 GiB"),
            (Config { buffers: Some(0), ..set() }, "buffers is 0, allowed is 16 MiB to 2 GiB"),
            (Config { scan_threads: Some(0), ..set() }, "scan_threads is 0, allowed is 1 to 1,024"),
            (Config { impellers: Some(17), ..set() }, "impellers is 17, allowed is 1 to 16"),
            (Config { depth: Some(0), ..set() }, "depth is 0, allowed is 1 to 256"),
            (Config { piece: Some(MIB), ..set() }, "piece is 1 MiB, allowed is 2 MiB to 8 MiB"),
            (Config { piece: Some(3 * MIB), ..set() }, "piece is 3 MiB, allowed is a multiple of 2 MiB"),
            (Config { queue: Some(MIB), ..set() }, "queue is 1 MiB, allowed is 4 MiB to 4 GiB"),
            (
                Config { heal_after: Some((Duration::from_secs(2), Duration::from_secs(1))), ..set() },
                "heal_after is 2s, allowed is up to 1s, its maximum",
            ),
            (
                Config {
                    views: vec![View::new(KeyPattern::ALL).flush_after(Duration::from_millis(999))],
                    ..set()
                },
                "flush_after of view */*@*#* is 999 ms, allowed is 1 s to 3650 days",
            ),
            (
                Config { free_floor: Some(u64::MAX), ..set() },
                "free_floor is 18446744073709551615, allowed is 0 to 1 EiB",
            ),
            (
                Config { scrub: ScrubConfig { rate: Some(1) }, ..set() },
                "scrub.rate is 1, allowed is 64 KiB to 64 GiB",
            ),
        ];
        for (config, message) in cases {
            assert_eq!(refused(&config), message);
        }
    }

    #[test]
    fn a_capacity_is_half_of_what_is_free_and_does_not_shrink() {
        let spindle = SpindleConfig::new("data");
        assert_eq!(spindle.capacity_on(100 * GIB, 0), Ok(50 * GIB));
        assert_eq!(spindle.capacity_on(60 * GIB, 40 * GIB), Ok(50 * GIB), "the same after a restart");
        assert_eq!(spindle.capacity_on(100 * GIB + 4097, 0), Ok(50 * GIB), "whole pages");
        let set: SpindleConfig = "data:1GiB".parse().unwrap();
        assert_eq!(set.capacity_on(0, 0), Ok(GIB));
        let error = spindle.capacity_on(10 * MIB, 0).unwrap_err();
        assert_eq!(error.to_string(), "capacity of data is 5 MiB, allowed is 16 MiB to 1 EiB");
    }

    #[test]
    fn the_disk_decides_depth_and_floor() {
        assert_eq!((depth_on(Some(true)), depth_on(Some(false)), depth_on(None)), (2, 8, 8));
        assert_eq!((floor_on(20 * GIB, 9 * GIB, 0), floor_on(1 << 50, 1 << 49, 0)), (GIB, 8 * GIB));
        assert_eq!(floor_on(1 << 50, 3 * GIB, GIB), 2 * GIB, "a full disk still takes loads");
    }

    #[test]
    fn a_spindle_is_a_folder_and_perhaps_a_size() {
        let cases = [
            ("data", "data", None),
            ("/mnt/nvme0/cache:400GiB", "/mnt/nvme0/cache", Some(400 * GIB)),
            ("a:b:1.5 GiB", "a:b", Some(3 * GIB / 2)),
            ("a:b", "a:b", None),
            ("data:", "data:", None),
            ("data:4096", "data", Some(4096)),
        ];
        for (text, path, capacity) in cases {
            let expected = SpindleConfig { path: path.into(), capacity };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        let error = "data:400GB".parse::<SpindleConfig>().unwrap_err();
        assert_eq!(error.to_string(), "\"GB\" may mean powers of 1000 or of 1024: write GiB, which is 1024");
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_file_says_the_same() {
        use super::loaders::FilesConfig;
        use crate::load::files::FileFormat;

        let text = r#"{
            "spindle": [{"path": "/a", "capacity": "400GiB"}, {"path": "/b"}],
            "memory": "1.5GiB", "buffers": 67108864, "engine": "threads", "pin": false,
            "view": [
                {"pattern": "acme/*", "loader": "files", "evict_after": "10m", "flush_after": "1d12h"},
                {"pattern": "*", "erase_after": "never"}
            ],
            "heal_after": {"max": "1m"},
            "loader": {"files": {"root": "/data", "format": "lines"}}
        }"#;
        let expected = Config {
            spindles: vec!["/a:400GiB".parse().unwrap(), SpindleConfig::new("/b")],
            memory: Some(3 * GIB / 2),
            buffers: Some(64 * MIB),
            engine: IoEngine::Threads,
            pin: Some(false),
            views: vec![
                View::new("acme/*".parse().unwrap())
                    .loader("files")
                    .evict_after(Duration::from_secs(600))
                    .flush_after(Duration::from_secs(36 * 3600)),
                View::new(KeyPattern::ALL).erase_after(Duration::MAX),
            ],
            heal_after: Some((Duration::from_secs(1), Duration::from_secs(60))),
            loaders: LoadersConfig { files: Some(FilesConfig::new("/data", FileFormat::Lines)) },
            ..Config::default()
        };
        assert_eq!(serde_json::from_str::<Config>(text).unwrap(), expected);
        for (text, told) in [
            (r#"{"memory": "64MB"}"#, "write MiB"),
            (r#"{"memory": -1}"#, "a size, like"),
            (r#"{"memori": 1}"#, "unknown field `memori`"),
            (r#"{"engine": "aio"}"#, "unknown variant `aio`"),
            (r#"{"view": [{"pattern": "a/b@x"}]}"#, "clock"),
            (
                r#"{"view": [{"pattern": "a/b", "evict_after": "10 minutes"}]}"#,
                r#""10 minutes": expected a time such as 250ms, 10m or 1h30m (ms, s, m, h, d), or never"#,
            ),
            (
                r#"{"view": [{"pattern": "a/b", "flush_after": 10}]}"#,
                "invalid type: integer `10`, expected a time such as 250ms, 10m or 1h30m (ms, s, m, h, d), or never",
            ),
            (
                r#"{"heal_after": {"min": "never"}}"#,
                r#""never": expected a time such as 250ms, 10m or 1h30m (ms, s, m, h, d)"#,
            ),
            (r#"{"heal_after": {"most": "1s"}}"#, "unknown field `most`, expected `min` or `max`"),
            (r#"{"loader": {"files": {"root": "/data"}}}"#, "missing field `format`"),
            (r#"{"loader": {"fils": {}}}"#, "unknown field `fils`"),
        ] {
            let error = serde_json::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}

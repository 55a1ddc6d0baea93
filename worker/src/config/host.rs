//! What the machine, or the container, leaves us: memory, cores, CPU time.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::scan::affinity::allowed_cores;

/// Where the memory limit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemorySource {
    /// A control group of version 2.
    CgroupV2,
    /// A control group of version 1.
    CgroupV1,
    /// No container limits it: what the machine has.
    Machine,
}

impl fmt::Display for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemorySource::CgroupV2 => "cgroup v2 limit",
            MemorySource::CgroupV1 => "cgroup v1 limit",
            MemorySource::Machine => "memory of the machine",
        })
    }
}

/// How much memory there is for everything in this process and beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryLimit {
    /// In bytes.
    pub bytes: u64,
    /// Who says so.
    pub source: MemorySource,
}

/// Who tells how much tasks wait for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PressureSource {
    /// Our control group.
    Cgroup,
    /// The machine.
    Machine,
    /// Nobody: the kernel has no pressure information, or keeps it from us.
    Nobody,
}

/// Where the kernel tells how much tasks wait for memory: in our group if it tells, else on the machine.
#[derive(Clone, Debug)]
pub(crate) struct PressureGauge {
    path: PathBuf,
    source: PressureSource,
}

/// What is known of where we run. Plain data: tests make their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// `None` without /proc.
    pub(crate) memory: Option<MemoryLimit>,
    /// The cores that we may run on. Empty if they cannot be told; then only their number is known.
    pub(crate) cores: Vec<usize>,
    pub(crate) core_count: usize,
    /// CPU time that a container gives us, in thousandths of a core.
    pub(crate) quota_millicores: Option<u64>,
    /// How much memory we may lock. `None` without a limit.
    pub(crate) lockable_bytes: Option<u64>,
}

impl Host {
    /// Asks the system. Nothing here fails: what cannot be read is not known.
    pub(crate) fn of_this_process() -> Host {
        let cores = allowed_cores().unwrap_or_default();
        let core_count = match cores.len() {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let root = Path::new("/");
        Host {
            memory: memory_limit(root),
            cores,
            core_count,
            quota_millicores: quota_millicores(root),
            lockable_bytes: lockable_bytes(),
        }
    }
}

impl Host {
    /// How much of the last minute somebody here waited for memory, in hundredths of a percent: in our group if it
    /// tells, else on the machine. `None` without PSI.
    pub(crate) fn memory_pressure(&self) -> Option<u64> {
        memory_pressure(Path::new("/"))
    }
}

impl PressureGauge {
    /// Looks where it is told here. Where is asked once; how much, at each [`Self::stalled_percent`].
    pub(crate) fn find() -> PressureGauge {
        PressureGauge::below(Path::new("/"))
    }

    fn below(root: &Path) -> PressureGauge {
        let of_group = own_group(root, Hierarchy::V2).map(|(_, group)| group.join("memory.pressure"));
        let of_machine = root.join("proc/pressure/memory");
        let places = of_group.map(|path| (path, PressureSource::Cgroup));
        let tells = |(path, _): &(PathBuf, PressureSource)| fs::read_to_string(path).is_ok();
        let found = places.into_iter().chain([(of_machine, PressureSource::Machine)]).find(tells);
        let (path, source) = found.unwrap_or((PathBuf::new(), PressureSource::Nobody));
        PressureGauge { path, source }
    }

    pub(crate) fn source(&self) -> PressureSource {
        self.source
    }

    /// In which share of the last ten seconds some task waited, in percent.
    pub(crate) fn stalled_percent(&self) -> Option<f32> {
        self.average("avg10=").map(|hundredths| hundredths as f32 / 100.0)
    }

    /// An average in hundredths of a percent.
    fn average(&self, name: &str) -> Option<u64> {
        let text = fs::read_to_string(&self.path).ok()?;
        // `some avg10=0.00 avg60=1.25 avg300=0.00 total=0`
        let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
        let value = line.split(' ').find_map(|word| word.strip_prefix(name))?;
        let (whole, hundredths) = value.split_once('.')?;
        whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(hundredths.parse::<u64>().ok()?)
    }
}

fn memory_pressure(root: &Path) -> Option<u64> {
    PressureGauge::below(root).average("avg60=")
}

/// How much memory this process may lock: its limit, unless it has the capability to exceed it.
pub(crate) fn lockable_bytes() -> Option<u64> {
    /// `CAP_IPC_LOCK` of linux/capability.h.
    const CAP_IPC_LOCK: u32 = 14;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    if effective >> CAP_IPC_LOCK & 1 == 1 {
        return None;
    }
    rustix::process::getrlimit(rustix::process::Resource::Memlock).current
}

/// A kind of control group with what it needs to be found.
#[derive(Clone, Copy)]
enum Hierarchy {
    V2,
    /// One controller of version 1 has a mount and a path of its own.
    V1(&'static str),
}

/// The smallest limit that stands between us and the machine's memory.
fn memory_limit(root: &Path) -> Option<MemoryLimit> {
    let number = |folder: &Path, file| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    // Beyond `high` the kernel makes the process crawl: as good as a limit. The word "max" is not a number.
    let v2 = smallest(root, Hierarchy::V2, |folder| {
        number(folder, "memory.max").into_iter().chain(number(folder, "memory.high")).min()
    });
    let v1 = smallest(root, Hierarchy::V1("memory"), |folder| number(folder, "memory.limit_in_bytes"));
    let limits = [
        (machine_memory(root), MemorySource::Machine),
        (v2, MemorySource::CgroupV2),
        // "No limit" is a huge number there, larger than any machine.
        (v1, MemorySource::CgroupV1),
    ];
    let limits = limits.into_iter().filter_map(|(bytes, source)| Some(MemoryLimit { bytes: bytes?, source }));
    // The first of equals: a limit as large as the machine limits nothing.
    limits.min_by_key(|limit| limit.bytes)
}

fn machine_memory(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn quota_millicores(root: &Path) -> Option<u64> {
    let v2 = smallest(root, Hierarchy::V2, |folder| {
        let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
        let (quota, period) = text.trim().split_once(' ')?;
        millicores(quota, period)
    });
    let v1 = smallest(root, Hierarchy::V1("cpu"), |folder| {
        let quota = fs::read_to_string(folder.join("cpu.cfs_quota_us")).ok()?;
        let period = fs::read_to_string(folder.join("cpu.cfs_period_us")).ok()?;
        millicores(quota.trim(), period.trim())
    });
    v2.into_iter().chain(v1).min()
}

/// `None` for "max" and for -1, which both mean no quota.
fn millicores(quota: &str, period: &str) -> Option<u64> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    quota.checked_mul(1000)?.checked_div(period)
}

/// The smallest value that `read` finds in our group and those above it, each of which limits us.
fn smallest(root: &Path, hierarchy: Hierarchy, read: impl Fn(&Path) -> Option<u64>) -> Option<u64> {
    let (mount, group) = own_group(root, hierarchy)?;
    let folders = group.ancestors().take_while(|folder| folder.starts_with(&mount));
    folders.filter_map(read).min()
}

/// Where a hierarchy is mounted, and the folder of our group in it, both below `root`.
fn own_group(root: &Path, hierarchy: Hierarchy) -> Option<(PathBuf, PathBuf)> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    // Lines are `number:controllers:path`; version 2 has number 0 and no controllers.
    let path = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let ours = match hierarchy {
            Hierarchy::V2 => number == "0" && controllers.is_empty(),
            Hierarchy::V1(wanted) => controllers.split(',').any(|controller| controller == wanted),
        };
        ours.then_some(path)
    })?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let (mount_root, mount) = mounts.lines().find_map(|line| {
        // `id parent device root mount options.. - type source options`
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let mut kind = kind.split(' ');
        let (mount_root, mount) = (place.next()?, place.next()?);
        let (kind, options) = (kind.next()?, kind.nth(1)?);
        let ours = match hierarchy {
            Hierarchy::V2 => kind == "cgroup2",
            Hierarchy::V1(wanted) => kind == "cgroup" && options.split(',').any(|option| option == wanted),
        };
        ours.then_some((mount_root, mount))
    })?;
    let mount = root.join(mount.trim_start_matches('/'));
    // In a container the mount often shows only our own part of the tree, while the path is that of the whole.
    // Where the two do not fit, what is mounted is the best that can be known.
    let below = Path::new(path).strip_prefix(mount_root).ok();
    let below = below.filter(|below| !below.components().any(|part| part.as_os_str() == ".."));
    let group = below.map_or_else(|| mount.clone(), |below| mount.join(below));
    Some((mount, group))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GIB, MIB};

    /// A system of our own: the files that matter, below a folder.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n");
    const MOUNT_V2: (&str, &str) = (
        "proc/self/mountinfo",
        "31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
    );

    fn limit(bytes: u64, source: MemorySource) -> Option<MemoryLimit> {
        Some(MemoryLimit { bytes, source })
    }

    #[test]
    fn without_groups_the_machine_is_the_limit() {
        let system = system(&[MEMINFO]);
        assert_eq!(memory_limit(system.path()), limit(16 * GIB, MemorySource::Machine));
        assert_eq!(quota_millicores(system.path()), None);
        assert_eq!(memory_limit(&system.path().join("nothing")), None);
    }

    #[test]
    fn version_2_limits_on_the_way_up_count() {
        let system = system(&[
            MEMINFO,
            MOUNT_V2,
            ("proc/self/cgroup", "0::/app.slice/cache.service\n"),
            ("sys/fs/cgroup/app.slice/cache.service/memory.max", "max\n"),
            ("sys/fs/cgroup/app.slice/cache.service/memory.high", "max\n"),
            ("sys/fs/cgroup/app.slice/cache.service/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/app.slice/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/app.slice/memory.high", "1073741824\n"),
            ("sys/fs/cgroup/app.slice/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(memory_limit(system.path()), limit(GIB, MemorySource::CgroupV2));
        assert_eq!(quota_millicores(system.path()), Some(1500));
    }

    /// In a container without a name space of its own: the path is the host's, the mount shows only our part.
    #[test]
    fn version_1_limits_are_found_in_a_container() {
        let system = system(&[
            MEMINFO,
            (
                "proc/self/cgroup",
                "5:cpuset:/docker/f00\n4:cpu,cpuacct:/docker/f00\n3:memory:/docker/f00\n0::/\n",
            ),
            (
                "proc/self/mountinfo",
                "40 31 0:29 /docker/f00 /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
                 41 31 0:32 /docker/f00 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
                 42 31 0:38 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "250000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(memory_limit(system.path()), limit(512 * MIB, MemorySource::CgroupV1));
        assert_eq!(quota_millicores(system.path()), Some(2500));
    }

    #[test]
    fn version_1_without_limits_limits_nothing() {
        let system = system(&[
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/user/me\n1:cpu:/\n"),
            (
                "proc/self/mountinfo",
                "41 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                 40 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
            ),
            ("sys/fs/cgroup/memory/user/me/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(memory_limit(system.path()), limit(16 * GIB, MemorySource::Machine));
        assert_eq!(quota_millicores(system.path()), None);
    }

    #[test]
    fn a_path_that_leads_out_of_the_mount_stays_at_the_mount() {
        let system = system(&[
            MEMINFO,
            MOUNT_V2,
            ("proc/self/cgroup", "0::/../../other\n"),
            ("sys/fs/cgroup/memory.max", "1073741824\n"),
            ("sys/other/memory.max", "1\n"),
            ("sys/fs/cgroup/cpu.max", "50000 0\n"),
        ]);
        assert_eq!(memory_limit(system.path()), limit(GIB, MemorySource::CgroupV2));
        assert_eq!(quota_millicores(system.path()), None, "a period of nothing is no quota");
    }

    #[test]
    fn pressure_is_read_from_our_group_or_the_machine() {
        let line =
            |value: &str| format!("some avg10=9.00 avg60={value} avg300=0.10 total=7\nfull avg10=0.00\n");
        let (own, all) = (line("1.25"), line("12.50"));
        let machine = ("proc/pressure/memory", all.as_str());
        let group = [
            MOUNT_V2,
            ("proc/self/cgroup", "0::/cache\n"),
            ("sys/fs/cgroup/cache/memory.pressure", own.as_str()),
            machine,
        ];
        assert_eq!(memory_pressure(system(&group).path()), Some(125));
        assert_eq!(memory_pressure(system(&[machine]).path()), Some(1250));
        assert_eq!(memory_pressure(system(&[("proc/pressure/memory", "full\n")]).path()), None);
        assert_eq!(memory_pressure(system(&[]).path()), None);
        let (in_group, alone, nowhere) = (system(&group), system(&[machine]), system(&[]));
        let gauges = [&in_group, &alone, &nowhere].map(|system| PressureGauge::below(system.path()));
        assert_eq!(
            gauges.each_ref().map(PressureGauge::source),
            [PressureSource::Cgroup, PressureSource::Machine, PressureSource::Nobody]
        );
        assert_eq!(gauges.map(|gauge| gauge.stalled_percent()), [Some(9.0), Some(9.0), None]);
    }

    #[test]
    fn this_machine_says_something_sensible() {
        let host = Host::of_this_process();
        assert!(host.core_count >= 1 && host.core_count >= host.cores.len(), "{host:?}");
        assert!(host.memory.is_some_and(|memory| memory.bytes > 16 * MIB), "{host:?}");
    }
}

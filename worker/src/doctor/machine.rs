//! What concerns the machine as a whole: what the kernel allows, limits of the process, clocks.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};

use super::{Finding, chain};
use crate::config::host::{Host, MemorySource};
use crate::config::{Config, ConfigError, IoEngine};
use crate::spindle::engine::EngineKind;
use crate::units::{Size, grouped};

/// Below it a cache with some hundred slices in memory comes to the end of its files.
const FILES_WANTED: u64 = 4096;
/// A cache with a single spindle and a few slices needs about so many.
const FILES_MIN: u64 = 64;
/// What kernels have by default.
const MAPS_WANTED: u64 = 65_530;
/// What the threads, stacks and libraries of a process take, with a few regions.
const MAPS_MIN: u64 = 1024;
/// An earlier wall clock is none: 2024-01-01.
const NOW_MIN: Duration = Duration::from_secs(1_704_067_200);

/// What was seen of the machine. `None` where it does not tell. Plain data: tests make their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// Or why io_uring can't be used.
    pub(super) uring: Result<(), String>,
    /// How many bytes may be locked, `u64::MAX` for any number.
    pub(super) locked_bytes_max: u64,
    /// How many files may be open.
    pub(super) files_max: u64,
    /// How many mappings a process may have.
    pub(super) maps_max: Option<u64>,
    /// When anonymous memory gets large pages: `always`, `madvise` or `never`.
    pub(super) large_pages: Option<String>,
    /// How much of the last minute somebody waited for memory, in hundredths of a percent.
    pub(super) pressure: Option<u64>,
    /// Where the kernel reads the time: `tsc`.
    pub(super) clock_source: Option<String>,
    /// The wall clock.
    pub(super) now: Duration,
}

impl Machine {
    pub(super) fn look(host: &Host) -> Machine {
        let limit = |which| getrlimit(which).current.unwrap_or(u64::MAX);
        let root = Path::new("/");
        Machine {
            uring: EngineKind::Uring.choose().map(|_| ()),
            locked_bytes_max: limit(Resource::Memlock),
            files_max: limit(Resource::Nofile),
            maps_max: word(root, "proc/sys/vm/max_map_count").and_then(|text| text.parse().ok()),
            large_pages: word(root, "sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|text| chosen(&text)),
            pressure: host.memory_pressure(),
            clock_source: word(root, "sys/devices/system/clocksource/clocksource0/current_clocksource"),
            now: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }

    pub(super) fn findings(&self, config: &Config, host: &Host) -> Vec<Finding> {
        vec![
            settings(config, host),
            self.uring(config.engine),
            memory(host),
            self.pressure(),
            cores(host),
            self.large_pages(),
            self.maps(),
            self.files(),
            self.locked(),
            self.clock(),
            self.clock_source(),
        ]
    }

    fn uring(&self, wanted: IoEngine) -> Finding {
        const NAME: &str = "io-uring";
        match (&self.uring, wanted) {
            (_, IoEngine::Threads) => Finding::ok(NAME, "not wanted: the configuration says threads"),
            (Ok(()), _) => Finding::ok(NAME, "can be used"),
            (Err(why), IoEngine::Uring) => Finding::problem(
                NAME,
                format!("can't be used, and the configuration wants nothing else: {why}"),
                "set engine to \"auto\", or allow io_uring (sysctl kernel.io_uring_disabled=0; in a container \
                 a seccomp profile that has it)",
            ),
            (Err(why), _) => Finding::note(
                NAME,
                format!(
                    "can't be used: {why}. Plain system calls on a few threads do the work, with more CPU time"
                ),
                "allow io_uring (sysctl kernel.io_uring_disabled=0; in a container a seccomp profile that has it)",
            ),
        }
    }

    fn pressure(&self) -> Finding {
        const NAME: &str = "memory-pressure";
        match self.pressure {
            None => Finding::note(
                NAME,
                "the kernel does not tell (no PSI): the cache keeps to its budget, but does not see that others \
                 are short of memory",
                "boot with psi=1, if the kernel has it",
            ),
            Some(hundredths) if hundredths >= 1000 => Finding::note(
                NAME,
                format!("somebody waited for memory in {} of the last minute", percent(hundredths)),
                "give the cache less memory, or the machine or container more",
            ),
            Some(hundredths) => Finding::ok(
                NAME,
                format!("told by the kernel (PSI): {} of the last minute", percent(hundredths)),
            ),
        }
    }

    fn large_pages(&self) -> Finding {
        const NAME: &str = "large-pages";
        let advice = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
        match self.large_pages.as_deref() {
            Some("never") => Finding::note(
                NAME,
                "memory of the cache's own gets no 2 MiB pages (transparent huge pages: never): scans of it are slower",
                advice,
            ),
            Some(when) => Finding::ok(NAME, format!("memory of the cache's own gets 2 MiB pages ({when})")),
            None => Finding::note(NAME, "the kernel has no transparent huge pages: scans are slower", advice),
        }
    }

    fn maps(&self) -> Finding {
        const NAME: &str = "mappings";
        let Some(count) = self.maps_max else {
            return Finding::ok(NAME, "how many a process may have is not told");
        };
        let found = format!("a process may have {}; each region in memory takes one or two", grouped(count));
        let advice = "sysctl vm.max_map_count=262144";
        match count {
            0..MAPS_MIN => Finding::problem(NAME, found, advice),
            MAPS_MIN..MAPS_WANTED => Finding::note(NAME, found, advice),
            _ => Finding::ok(NAME, found),
        }
    }

    fn files(&self) -> Finding {
        const NAME: &str = "open-files";
        if self.files_max == u64::MAX {
            return Finding::ok(NAME, "no limit");
        }
        let found = format!("the process may have {}; each mapped region takes one", grouped(self.files_max));
        let advice = "ulimit -n 65536, or LimitNOFILE=65536 in a systemd unit";
        match self.files_max {
            0..FILES_MIN => Finding::problem(NAME, found, advice),
            FILES_MIN..FILES_WANTED => Finding::note(NAME, found, advice),
            _ => Finding::ok(NAME, found),
        }
    }

    /// Whatever it is, the cache runs: it is told for who compares machines, and for kernels before 5.12, where
    /// rings count.
    fn locked(&self) -> Finding {
        let found = match self.locked_bytes_max {
            u64::MAX => "no limit".to_owned(),
            bytes => format!("the process may lock {}", Size(bytes)),
        };
        Finding::ok("locked-memory", found)
    }

    fn clock(&self) -> Finding {
        const NAME: &str = "clock";
        if self.now < NOW_MIN {
            return Finding::note(
                NAME,
                "the wall clock is years behind: moments in statistics and the names of load folders come from it",
                "set the clock, and keep it by NTP",
            );
        }
        Finding::ok(NAME, "the wall clock makes sense")
    }

    fn clock_source(&self) -> Finding {
        const NAME: &str = "clock-source";
        match self.clock_source.as_deref() {
            None => Finding::ok(NAME, "not told"),
            Some(slow @ ("hpet" | "acpi_pm" | "jiffies" | "refined-jiffies" | "pit")) => Finding::note(
                NAME,
                format!("{slow}: each look at the clock is a slow system call, or a coarse one"),
                "boot with clocksource=tsc where the processor's counter is stable; on a virtual machine choose \
                 the clock of its hypervisor",
            ),
            Some(source) => Finding::ok(NAME, format!("{source}: read without a system call")),
        }
    }
}

/// Whether the settings fit each other and the machine.
fn settings(config: &Config, host: &Host) -> Finding {
    const NAME: &str = "settings";
    match config.settle(host) {
        Ok(settings) => Finding::ok(
            NAME,
            format!(
                "{} of memory for the cache, {} of it for buffers; scans on {}",
                Size(settings.memory),
                Size(settings.buffers),
                crate::units::count(settings.scan_threads as u64, "thread"),
            ),
        ),
        Err(error) => Finding::problem(NAME, chain(&error), advice_on(&error)),
    }
}

fn advice_on(error: &ConfigError) -> String {
    format!("set {} to what is allowed", error.name)
}

fn memory(host: &Host) -> Finding {
    const NAME: &str = "memory";
    match host.memory {
        Some(limit) => {
            let found = format!("{}: {}", Size(limit.bytes), limit.source);
            match limit.source {
                // A group whose limit is above the machine's memory limits nothing either.
                MemorySource::Machine => Finding::ok(NAME, format!("{found}; no cgroup limits it")),
                _ => Finding::ok(NAME, found),
            }
        }
        None => Finding::note(
            NAME,
            "how much there is can't be told: the cache takes 1 GiB",
            "mount /proc, or set memory in the configuration",
        ),
    }
}

fn cores(host: &Host) -> Finding {
    const NAME: &str = "cores";
    let count = crate::units::count(host.core_count as u64, "core");
    match host.quota_millicores {
        Some(quota) if quota < 1000 * host.core_count as u64 => Finding::note(
            NAME,
            format!(
                "{count}, and CPU time for {}.{:02} of them: scan threads are not tied to cores",
                quota / 1000,
                quota % 1000 / 10
            ),
            "give the container a set of cores (cpuset) instead of a share of time",
        ),
        _ if host.cores.is_empty() => Finding::note(
            NAME,
            format!("{count}, but which is not told: scan threads are not tied to cores"),
            "allow sched_getaffinity(2)",
        ),
        _ => Finding::ok(NAME, format!("{count} that the process may use")),
    }
}

fn percent(hundredths: u64) -> String {
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
}

fn word(root: &Path, path: &str) -> Option<String> {
    Some(fs::read_to_string(root.join(path)).ok()?.trim().to_owned())
}

/// The word in brackets of a line like `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SpindleConfig;
    use crate::config::host::MemoryLimit;
    use crate::doctor::Verdict::{self, Note, Problem};
    use crate::units::GIB;

    fn host() -> Host {
        Host {
            lockable_bytes: None,
            memory: Some(MemoryLimit { bytes: 16 * GIB, source: MemorySource::Machine }),
            cores: vec![0, 1],
            core_count: 2,
            quota_millicores: None,
        }
    }

    fn machine() -> Machine {
        Machine {
            uring: Ok(()),
            locked_bytes_max: 8 << 20,
            files_max: 65_536,
            maps_max: Some(65_530),
            large_pages: Some("madvise".to_owned()),
            pressure: Some(0),
            clock_source: Some("tsc".to_owned()),
            now: NOW_MIN,
        }
    }

    fn config() -> Config {
        Config { spindles: vec![SpindleConfig::new("s")], ..Config::default() }
    }

    fn verdict(name: &str, machine: &Machine, config: &Config, host: &Host) -> Verdict {
        let findings = machine.findings(config, host);
        let found = findings.iter().find(|finding| finding.name == name).expect(name);
        assert_eq!(
            found.advice.is_some(),
            found.verdict != Verdict::Ok,
            "what is not well says what to do: {found:?}"
        );
        found.verdict
    }

    #[test]
    fn a_good_machine_has_nothing_to_note() {
        for finding in machine().findings(&config(), &host()) {
            assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
        }
    }

    #[test]
    fn what_is_short_is_noted_and_what_stops_a_cache_is_a_problem() {
        let on = |name: &str, change: &dyn Fn(&mut Machine)| {
            let mut machine = machine();
            change(&mut machine);
            verdict(name, &machine, &config(), &host())
        };
        assert_eq!(on("io-uring", &|machine| machine.uring = Err("a filter".into())), Note);
        assert_eq!(on("open-files", &|machine| machine.files_max = 1024), Note);
        assert_eq!(on("open-files", &|machine| machine.files_max = 20), Problem);
        assert_eq!(on("open-files", &|machine| machine.files_max = u64::MAX), Verdict::Ok);
        assert_eq!(on("mappings", &|machine| machine.maps_max = Some(20_000)), Note);
        assert_eq!(on("mappings", &|machine| machine.maps_max = Some(100)), Problem);
        assert_eq!(on("mappings", &|machine| machine.maps_max = None), Verdict::Ok);
        assert_eq!(on("large-pages", &|machine| machine.large_pages = Some("never".into())), Note);
        assert_eq!(on("large-pages", &|machine| machine.large_pages = None), Note);
        assert_eq!(on("memory-pressure", &|machine| machine.pressure = None), Note);
        assert_eq!(on("memory-pressure", &|machine| machine.pressure = Some(1234)), Note);
        assert_eq!(on("clock", &|machine| machine.now = Duration::from_secs(3600)), Note);
        assert_eq!(on("clock-source", &|machine| machine.clock_source = Some("hpet".into())), Note);
        assert_eq!(on("locked-memory", &|machine| machine.locked_bytes_max = 0), Verdict::Ok);
    }

    #[test]
    fn the_configuration_counts() {
        let machine = Machine { uring: Err("a filter".into()), ..machine() };
        let with = |engine| Config { engine, ..config() };
        assert_eq!(verdict("io-uring", &machine, &with(IoEngine::Uring), &host()), Problem);
        assert_eq!(verdict("io-uring", &machine, &with(IoEngine::Threads), &host()), Verdict::Ok);
        let much = Config { memory: Some(32 * GIB), ..config() };
        assert_eq!(verdict("settings", &machine, &much, &host()), Problem);
        assert_eq!(verdict("settings", &machine, &config(), &host()), Verdict::Ok);
    }

    #[test]
    fn a_container_s_share_of_time_is_noted() {
        let quota = |millicores| Host { quota_millicores: Some(millicores), ..host() };
        assert_eq!(verdict("cores", &machine(), &config(), &quota(1500)), Note);
        assert_eq!(verdict("cores", &machine(), &config(), &quota(2000)), Verdict::Ok);
        assert_eq!(verdict("cores", &machine(), &config(), &Host { cores: vec![], ..host() }), Note);
        assert_eq!(verdict("memory", &machine(), &config(), &Host { memory: None, ..host() }), Note);
    }

    #[test]
    fn the_word_in_brackets_is_the_one() {
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(chosen("always"), None);
        assert_eq!(percent(1205), "12.05 %");
    }
}

//! How large the demo may be where it runs.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use pelton::units::{MIB, Size};

/// What the demo works with at least. With less there is nothing to see.
const BYTES_MIN: u64 = MIB;

/// Amounts are whole steps, as O_DIRECT needs it.
const BYTES_STEP: u64 = MIB;

/// How long the plain write may take. Writing and reading the same again a few times must stay below a minute.
const WRITE_SECONDS_MAX: u64 = 5;

/// What there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// What is free on the disk.
    pub(super) disk_free: u64,
    /// What the system could give to anybody. `None` if it does not tell.
    pub(super) memory_free: Option<u64>,
    /// What the cache may use.
    pub(super) memory_max: u64,
}

/// What made the demo smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Short {
    Disk { free: u64 },
    Memory { free: u64 },
    Slow { bytes_per_second: u64 },
}

impl Room {
    pub(super) fn at(folder: &Path, memory_max: u64) -> io::Result<Room> {
        let disk = rustix::fs::statvfs(folder)?;
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Ok(Room { disk_free: disk.f_bavail * disk.f_frsize, memory_free: memory_free(&memory), memory_max })
    }

    /// How much of what is wanted there is room for, and what there is too little of.
    ///
    /// Half of the disk stays free. The memory holds the dataset and the slice; an eighth of what the cache may
    /// use is for buffers, and a load needs a little more than its blobs.
    pub(super) fn fit(&self, wanted: u64) -> Result<(u64, Option<Short>), Short> {
        let mut limits = vec![
            (self.disk_free / 9 * 4, Short::Disk { free: self.disk_free }),
            (self.memory_max / 8 * 5, Short::Memory { free: self.memory_max }),
        ];
        limits.extend(self.memory_free.map(|free| (free / 3, Short::Memory { free })));
        let (most, short) = limits.into_iter().min_by_key(|(most, _)| *most).expect("there are two");
        if most < BYTES_MIN {
            return Err(short);
        }
        Ok(match wanted <= most {
            true => (whole_steps(wanted), None),
            false => (whole_steps(most), Some(short)),
        })
    }
}

/// How much to take on a disk that wrote so fast, if less than what is wanted.
pub(super) fn fit_speed(wanted: u64, bytes_per_second: u64) -> (u64, Option<Short>) {
    match bytes_per_second.saturating_mul(WRITE_SECONDS_MAX) {
        most if wanted <= most => (wanted, None),
        most => (whole_steps(most.max(BYTES_MIN)), Some(Short::Slow { bytes_per_second })),
    }
}

fn whole_steps(bytes: u64) -> u64 {
    (bytes / BYTES_STEP).max(1) * BYTES_STEP
}

fn memory_free(info: &str) -> Option<u64> {
    let kib = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Short::Disk { free } => write!(f, "the disk has only {} free", Size(free)),
            Short::Memory { free } => write!(f, "there is only {} of memory for it", Size(free)),
            Short::Slow { bytes_per_second } => write!(f, "the disk writes {}/s", Size(bytes_per_second)),
        }
    }
}

#[cfg(test)]
mod tests {
    use pelton::units::GIB;

    use super::*;

    const WIDE: Room = Room { disk_free: 100 * GIB, memory_free: Some(20 * GIB), memory_max: 5 * GIB };

    #[test]
    fn what_fits_is_taken_in_whole_steps() {
        assert_eq!(WIDE.fit(GIB), Ok((GIB, None)));
        assert_eq!(WIDE.fit(5 * MIB + 7), Ok((5 * MIB, None)));
        assert_eq!(WIDE.fit(1), Ok((MIB, None)));
    }

    #[test]
    fn the_demo_shrinks_to_what_there_is_and_says_what_was_short() {
        let disk = Room { disk_free: 900 * MIB, ..WIDE };
        assert_eq!(disk.fit(GIB), Ok((400 * MIB, Some(Short::Disk { free: 900 * MIB }))));
        let memory = Room { memory_free: Some(300 * MIB), ..WIDE };
        assert_eq!(memory.fit(GIB), Ok((100 * MIB, Some(Short::Memory { free: 300 * MIB }))));
        let budget = Room { memory_max: 64 * MIB, memory_free: None, ..WIDE };
        assert_eq!(budget.fit(GIB), Ok((40 * MIB, Some(Short::Memory { free: 64 * MIB }))));
        let full = Room { disk_free: MIB, ..WIDE };
        assert_eq!(full.fit(MIB), Err(Short::Disk { free: MIB }));
    }

    #[test]
    fn a_slow_disk_gets_five_seconds_of_work() {
        assert_eq!(fit_speed(GIB, GIB), (GIB, None));
        assert_eq!(fit_speed(GIB, 50 * MIB), (250 * MIB, Some(Short::Slow { bytes_per_second: 50 * MIB })));
        assert_eq!(fit_speed(GIB, 1).0, MIB);
    }

    #[test]
    fn free_memory_is_read_from_what_the_kernel_tells() {
        assert_eq!(memory_free("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), Some(2 * MIB));
        assert_eq!(memory_free(""), None);
    }
}

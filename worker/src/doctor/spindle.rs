//! What concerns one folder: whose it is, what its disk and file system can do, how much room there is.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::{Finding, SpindleDiagnosis, chain};
use crate::config::{Config, IoEngine, SpindleConfig, depth_on, floor_on};
use crate::region::residence::{LARGE_BYTES_MIN, PROBE_BYTES, Residence, large_bytes_mapped};
use crate::spindle::device::{Device, nearest_existing};
use crate::spindle::engine::{EngineKind, Op};
use crate::spindle::file::FileMode;
use crate::spindle::held::write_and_read_back;
use crate::spindle::identity::{Holder, Identity, IdentityError, Standing};
use crate::spindle::impeller::{ImpellerPlan, Impellers};
use crate::units::Size;

/// How long all folders together may take.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long one probe may take, of which there are two.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(3);
/// A disk that takes longer to sync 4 KiB is one to know of.
const SYNC_SLOW: Duration = Duration::from_millis(250);

/// What one folder's thread has found.
struct Examined {
    findings: Vec<Finding>,
    device: Option<Device>,
    /// Whether a cache holds files there already.
    is_spindle: bool,
}

/// Looks at all folders, each on a thread of its own, which a hung disk may keep.
pub(super) fn look_at_all(config: &Config) -> Vec<SpindleDiagnosis> {
    let deadline = Instant::now() + LOOK_WAIT_MAX;
    let answers: Vec<_> = config
        .spindles
        .iter()
        .map(|spindle| {
            let (to, from) = bounded(1);
            let (config, folder) = (config.clone(), spindle.path.clone());
            let look = move || _ = to.send(examine(&config, &folder));
            // Where there are no more threads, the receiver sees its sender gone.
            let _ = thread::Builder::new().name("pelton-doctor".to_owned()).spawn(look);
            from
        })
        .collect();
    let answers: Vec<Option<Examined>> =
        answers.into_iter().map(|answer| answer.recv_deadline(deadline).ok()).collect();
    let device = |number: usize| answers.get(number)?.as_ref()?.device.as_ref();
    let diagnose = |(number, spindle): (usize, &SpindleConfig)| {
        let folder = spindle.path.clone();
        let Some(examined) = &answers[number] else {
            let late = Finding::problem(
                "disk",
                format!("did not answer within {} s", LOOK_WAIT_MAX.as_secs()),
                "look at the disk and the kernel's log",
            );
            return SpindleDiagnosis { folder, findings: vec![late] };
        };
        let mut findings = examined.findings.clone();
        if let Some(own) = device(number) {
            let others: Vec<&Path> = (0..config.spindles.len())
                .filter(|&other| other != number && device(other).is_some_and(|other| other.id == own.id))
                .map(|other| config.spindles[other].path.as_path())
                .collect();
            findings.push(room(
                spindle,
                config.free_floor,
                own,
                others.len() as u64 + 1,
                examined.is_spindle,
            ));
            if let Some(other) = others.first() {
                findings.push(Finding::note(
                    "shared-disk",
                    format!("{} is on the same file system: they fill and fail together", other.display()),
                    "give each disk one spindle",
                ));
            }
        }
        SpindleDiagnosis { folder, findings }
    };
    config.spindles.iter().enumerate().map(diagnose).collect()
}

fn examine(config: &Config, folder: &Path) -> Examined {
    let existing = nearest_existing(folder).unwrap_or_else(|_| folder.to_owned());
    let device = Device::of(&existing).ok();
    let mut findings = Vec::new();
    let standing = Identity::survey(folder);
    findings.push(whose(folder, &standing));
    if let Some(device) = &device {
        findings.push(file_system(device, config.network_folders));
        findings.push(turns(device));
    }
    let is_spindle = matches!(standing, Ok(Standing::Spindle(_)) | Err(IdentityError::InUse { .. }));
    match standing {
        Ok(standing) => {
            let rotational = device.as_ref().and_then(|device| device.rotational);
            findings.extend(probes(config, folder, &existing, standing, rotational));
        }
        Err(IdentityError::InUse { .. }) => findings.push(Finding::ok(
            "disk",
            "not written to, since a cache has it: that one knows how the disk does",
        )),
        Err(_) => {}
    }
    Examined { findings, device, is_spindle }
}

fn whose(folder: &Path, standing: &Result<Standing, IdentityError>) -> Finding {
    const NAME: &str = "folder";
    match standing {
        Ok(Standing::Missing { existing }) => {
            Finding::ok(NAME, format!("does not exist yet; it would be made in {}", existing.display()))
        }
        Ok(Standing::Empty) => Finding::ok(NAME, "is empty; a cache would make it a spindle"),
        Ok(Standing::Spindle(identity)) => Finding::ok(NAME, format!("is spindle {}", identity.uuid())),
        Err(IdentityError::InUse { holder, .. }) => {
            let advice = match holder {
                Holder::ThisProcess => "close that cache if another one is to open the folder".to_owned(),
                Holder::Process(pid) => format!("end process {pid} if another one is to open the folder"),
                Holder::Unknown => "look for the holder outside of this container".to_owned(),
            };
            Finding::note(NAME, format!("is a spindle in use by {holder}"), advice)
        }
        Err(error) => {
            let advice = match error {
                IdentityError::Newer { .. } => "use the newer version, or another folder",
                IdentityError::Damaged { .. } => {
                    "look at the file; if what is in the folder can go, empty it"
                }
                IdentityError::Disk { .. } => "look at the folder's permissions and at the disk",
                _ => "give another folder: an empty one, or one that does not exist",
            };
            let text = chain(error);
            let shown = folder.display().to_string();
            // The folder stands above already.
            let text = text.strip_prefix(&format!("{shown} ")).unwrap_or(&text).to_owned();
            Finding::problem(NAME, text, advice)
        }
    }
}

fn file_system(device: &Device, is_allowed: bool) -> Finding {
    const NAME: &str = "file-system";
    let name = device.file_system.name();
    match device.file_system.network_name() {
        None => Finding::ok(NAME, format!("{name}, on this machine")),
        Some(_) if is_allowed => Finding::note(
            NAME,
            format!(
                "{name}: a network file system, as was asked for; its locks, errors and speed are not a disk's"
            ),
            "take a local disk",
        ),
        Some(_) => Finding::problem(
            NAME,
            format!("{name}: a network file system, which must be asked for"),
            "take a local disk, or set network_folders = true",
        ),
    }
}

fn turns(device: &Device) -> Finding {
    const NAME: &str = "rotational";
    let depth = |turns| format!("{} operations at once", depth_on(turns));
    match device.rotational {
        Some(true) => Finding::note(
            NAME,
            format!("the disk says that it turns: {}", depth(Some(true))),
            "take a solid state disk for fast loads and cold scans. If it is one, as virtual disks often do not \
             know, set depth = 8",
        ),
        Some(false) => Finding::ok(NAME, format!("the disk does not turn: {}", depth(Some(false)))),
        None => Finding::ok(NAME, format!("not told, taken for one that does not turn: {}", depth(None))),
    }
}

/// What writing small files tells. They lie in the spindle, or in a folder that lives as long as this takes.
fn probes(
    config: &Config,
    folder: &Path,
    existing: &Path,
    standing: Standing,
    rotational: Option<bool>,
) -> Vec<Finding> {
    let engine = match config.engine {
        IoEngine::Threads => EngineKind::Threads,
        // Without io_uring the machine's findings have said so.
        _ => EngineKind::Auto,
    };
    let plan = ImpellerPlan {
        name: "doctor".to_owned(),
        count: 1,
        depth: depth_on(rotational),
        queue_bytes_max: 4 * PROBE_BYTES as u64,
        engine,
        watch: None,
    };
    let impellers = match Impellers::start(plan) {
        Ok(impellers) => impellers,
        Err(error) => {
            let advice = "raise the limit on threads (ulimit -u, pids.max)";
            return vec![Finding::problem("disk", chain(&error), advice)];
        }
    };
    match standing {
        // Held until the end: nobody else opens it meanwhile.
        Standing::Spindle(_identity) => probe_in(config, &impellers, folder),
        Standing::Missing { .. } | Standing::Empty => {
            let room = existing.join(format!("pelton-doctor-{}", std::process::id()));
            let deadline = Some(Instant::now() + PROBE_WAIT_MAX);
            if let Err(error) = impellers.run(Op::CreateFolder { path: room.clone() }, deadline) {
                let advice = "give a folder that this user may write to";
                return vec![Finding::problem("disk", chain(&error), advice)];
            }
            let findings = probe_in(config, &impellers, &room);
            let _ = impellers.run(Op::RemoveFolder { path: room }, deadline);
            findings
        }
    }
}

fn probe_in(config: &Config, impellers: &Impellers, folder: &Path) -> Vec<Finding> {
    let start = Instant::now();
    let written = write_and_read_back(impellers, folder, start + PROBE_WAIT_MAX);
    let took = start.elapsed();
    match written {
        Err(error) => {
            let advice = "look at the disk, its permissions and the kernel's log";
            vec![Finding::problem("disk", chain(&error), advice)]
        }
        Ok(mode) => vec![works(took), direct(mode), maps(config.residence, impellers, folder)],
    }
}

fn works(took: Duration) -> Finding {
    const NAME: &str = "disk";
    let found = format!("4 KiB written, synced and read back in {:.1} ms", took.as_secs_f64() * 1000.0);
    if took < SYNC_SLOW {
        Finding::ok(NAME, found)
    } else {
        Finding::note(NAME, found, "see whether others keep the disk busy")
    }
}

fn direct(mode: Option<FileMode>) -> Finding {
    const NAME: &str = "o-direct";
    match mode {
        Some(FileMode::Direct) => Finding::ok(NAME, "granted: loads pass by the page cache"),
        Some(FileMode::Buffered) => Finding::note(
            NAME,
            "refused by the file system: loads go through the page cache, and take more CPU time",
            "take a file system that has O_DIRECT, such as ext4 or XFS",
        ),
        None => Finding::ok(NAME, "not seen, since the disk is full"),
    }
}

fn maps(wanted: Residence, impellers: &Impellers, folder: &Path) -> Finding {
    const NAME: &str = "mapped-large-pages";
    let advice = "nothing must change. XFS, or ext4 of Linux 6.16 and newer, gives files large pages";
    match large_bytes_mapped(impellers, folder) {
        Ok(bytes) => {
            let found = format!(
                "{} of {} of a mapped file lie in 2 MiB pages",
                Size(bytes),
                Size(PROBE_BYTES as u64)
            );
            match (bytes >= LARGE_BYTES_MIN, wanted) {
                (true, _) => Finding::ok(NAME, format!("{found}: regions from disk are mapped")),
                (false, Residence::Map) => Finding::note(
                    NAME,
                    format!("{found}, and the configuration wants maps: scans of them are slower"),
                    "set residence to \"auto\"",
                ),
                (false, _) => Finding::note(
                    NAME,
                    format!(
                        "{found}: regions from disk are read into the cache's own memory, which a restart loses"
                    ),
                    advice,
                ),
            }
        }
        Err(error) => Finding::note(NAME, format!("could not be looked at: {error}"), advice),
    }
}

/// How much there is for loads.
fn room(
    spindle: &SpindleConfig,
    floor: Option<u64>,
    device: &Device,
    sharers: u64,
    is_spindle: bool,
) -> Finding {
    const NAME: &str = "space";
    let free = device.room.free;
    let floor = floor.unwrap_or_else(|| floor_on(device.room.total, free, 0));
    let percent_free = free as u128 * 100 / u128::from(device.room.total.max(1));
    let found = format!(
        "{} of {} are free ({} %), {} of them stay free",
        Size(free),
        Size(device.room.total),
        percent_free,
        Size(floor)
    );
    match spindle.capacity_on(free / sharers, 0) {
        // What a spindle holds counts for it, and can't be told without reading its manifests.
        Err(error) if !is_spindle => {
            Finding::problem(NAME, format!("{found}: {error}"), "free space, or take another disk")
        }
        _ if free <= floor => Finding::note(
            NAME,
            format!("{found}: no load gets room until something goes"),
            "free space, or set a smaller free_floor",
        ),
        Ok(capacity) if !is_spindle || spindle.capacity.is_some() => {
            Finding::ok(NAME, format!("{found}; the cache takes up to {}", Size(capacity)))
        }
        _ => Finding::ok(NAME, found),
    }
}

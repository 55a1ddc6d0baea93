//! Files that become shorter under a map: what a scan makes of it, and what is left of the process.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pelton::*;

const ROLE: &str = "PELTON_TEST_LATE_FAULT";
/// The child's folder: its parent's to remove, since the child may not get to it.
const FOLDER: &str = "PELTON_TEST_FOLDER";
const BLOBS: u8 = 16;

fn key() -> Key {
    "test/late@1#0".parse().unwrap()
}

/// A slice of one mapped region, and its file.
fn mapped(folder: &Path, guard: bool) -> (Cache, Lease, PathBuf) {
    let cache = Cache::builder().spindle(folder.join("spindle"), None).memory(256 << 20);
    let cache = cache.residence(Residence::Map).sigbus_guard(guard).open().unwrap();
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.regions = Some(1);
    plan.durability = Durability::Wait;
    let writer = cache.snap(&key()).open_for_writes(plan).unwrap();
    for number in 0..BLOBS {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![number + 1; 1 << 20]).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    cache.snap(&key()).evict();
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    assert_eq!(sum(&lease).unwrap(), (1..=u64::from(BLOBS)).sum::<u64>() << 20);
    let file = region_file(folder).expect("the slice has a file");
    (cache, lease, file)
}

fn region_file(folder: &Path) -> Option<PathBuf> {
    std::fs::read_dir(folder).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            region_file(&path)
        } else {
            Some(path).filter(|path| path.extension().is_some_and(|extension| extension == "region"))
        }
    })
}

fn sum(lease: &Lease) -> Result<u64, ScanError> {
    let add = |blobs: &mut Blobs<'_>, sum: &mut u64| {
        while let Some(blob) = blobs.next()? {
            *sum += blob.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        }
        Ok(())
    };
    lease.scan(add, |a, b| a + b)
}

fn cut(file: &Path, bytes: u64) {
    File::options().write(true).open(file).unwrap().set_len(bytes).unwrap();
}

/// What is cut within the last page raises nothing: it reads as zeros. The length tells.
#[test]
fn a_file_that_lost_a_part_of_its_last_page_fails_the_scan_without_a_signal() {
    for guard in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (_cache, lease, file) = mapped(folder.path(), guard);
        cut(&file, std::fs::metadata(&file).unwrap().len() - 100);
        let error = sum(&lease).unwrap_err();
        assert!(matches!(error, ScanError::Lost { .. } | ScanError::Damaged { .. }), "{error}");
    }
}

/// Ends by the signal, or with what the scan said: in a process of its own.
#[test]
fn child_scans_a_file_that_is_cut() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let (cache, lease, file) = mapped(&folder, role == "guarded");
    cut(&file, 8 << 20);
    let fails =
        (0..3).all(|_| matches!(sum(&lease), Err(ScanError::Lost { .. } | ScanError::Damaged { .. })));
    // Nothing but that slice has failed: it can be loaded again.
    drop(lease);
    cache.snap(&key()).flush(None).unwrap();
    drop(cache);
    let (_cache, lease, _) = mapped(&folder, true);
    std::process::exit(if fails && sum(&lease).is_ok() { 42 } else { 1 });
}

#[test]
fn with_the_guard_a_scan_of_a_cut_file_is_an_error_and_without_it_the_end_of_the_process() {
    let run = |role: &str| {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child_scans_a_file_that_is_cut", "--nocapture"]);
        child.env(ROLE, role).env(FOLDER, folder.path());
        child.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
    };
    let guarded = run("guarded");
    assert_eq!((guarded.code(), guarded.signal()), (Some(42), None));
    // SIGBUS: proof that the guard was what has caught it.
    assert_eq!(run("bare").signal(), Some(7));
}

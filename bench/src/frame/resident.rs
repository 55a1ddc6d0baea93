//! How much memory of its own the process takes while something goes on.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Failure;

/// Between two looks.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);

/// Does the work, and gives the most that the process had meanwhile, less what it had before: earlier benchmarks may
/// have left something with the allocator, which is theirs.
///
/// # Errors
/// Those of the work, and if the kernel does not tell.
pub(crate) fn watch_memory(work: impl FnOnce() -> Result<(), Failure>) -> Result<u64, Failure> {
    let before = own_bytes()?;
    let done = AtomicBool::new(false);
    let peak = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Acquire) {
                peak = peak.max(own_bytes()?);
                std::thread::sleep(SAMPLE_EVERY);
            }
            Ok::<_, Failure>(peak)
        });
        let worked = work();
        done.store(true, Ordering::Release);
        let peak = watch.join().expect("looking does not panic");
        worked.and(peak)
    })?;
    Ok(peak.saturating_sub(before))
}

/// What of the process lies in memory and is no file's: anonymous and shared pages.
fn own_bytes() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    match (kib("RssAnon:"), kib("RssShmem:")) {
        (Some(anon), Some(shared)) => Ok((anon + shared) * 1024),
        _ => Err(Failure::because("/proc/self/status does not tell RssAnon and RssShmem")),
    }
}

//! Which cores we may use, and how a thread is tied to one.

use core_affinity::CoreId;
use rustix::thread::CpuSet;

/// The cores that the process may run on, in ascending order; never empty.
///
/// That is the mask of the main thread: what a cpuset, `taskset` or a container left us. The mask of the
/// calling thread would be too small where the caller has tied itself to a core.
///
/// `None` on a machine whose cores do not fit the kernel interface's usual mask of 1024: then count them and
/// don't pin.
pub(crate) fn allowed_cores() -> Option<Vec<usize>> {
    let process = rustix::process::getpid();
    // The main thread may have ended before the process. The caller's mask is what is left then.
    let mask =
        rustix::thread::sched_getaffinity(Some(process)).or_else(|_| rustix::thread::sched_getaffinity(None));
    let mask = mask.ok()?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| mask.is_set(core)).collect();
    (!cores.is_empty()).then_some(cores)
}

/// Ties the calling thread to one core. Tells whether it worked: a core may have been taken away meanwhile.
pub(crate) fn pin_current_thread(core: usize) -> bool {
    // The crate would index its mask out of bounds.
    core < CpuSet::MAX_CPU && core_affinity::set_for_current(CoreId { id: core })
}

/// The core that the calling thread runs on at this moment.
#[cfg(test)]
pub(crate) fn current_core() -> usize {
    rustix::thread::sched_getcpu()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;

    /// Runs a test of this binary again in a process that is allowed one core, and tells whether it passed.
    pub(crate) fn passes_on_core(test: &str, core: usize) -> bool {
        // A child has the mask of the thread that makes it, so a thread of its own does.
        let run = move |test: &str| {
            assert!(pin_current_thread(core));
            Command::new(std::env::current_exe().unwrap())
                .args([test, "--exact", "--nocapture"])
                .env("PELTON_TEST_CORE", core.to_string())
                .output()
                .unwrap()
        };
        let output = thread::scope(|scope| scope.spawn(|| run(test)).join().unwrap());
        let told = String::from_utf8_lossy(&output.stdout);
        print!("{told}{}", String::from_utf8_lossy(&output.stderr));
        output.status.success() && told.contains("1 passed")
    }

    /// The core that [`passes_on_core`] tells; `None` in an ordinary run.
    pub(crate) fn only_core() -> Option<usize> {
        std::env::var("PELTON_TEST_CORE").ok().map(|core| core.parse().unwrap())
    }

    #[test]
    fn a_pinned_thread_stays_on_its_core() {
        for core in allowed_cores().unwrap() {
            let seen = thread::spawn(move || {
                assert!(pin_current_thread(core));
                (0..1000).map(|_| current_core()).collect::<Vec<_>>()
            });
            assert!(seen.join().unwrap().iter().all(|&seen| seen == core));
        }
    }

    #[test]
    fn the_process_mask_counts_not_the_callers() {
        let all = allowed_cores().unwrap();
        let seen = thread::spawn({
            let last = *all.last().unwrap();
            move || {
                assert!(pin_current_thread(last));
                allowed_cores().unwrap()
            }
        });
        assert_eq!(seen.join().unwrap(), all);
    }

    #[test]
    fn a_core_that_is_not_there_is_refused() {
        for core in [1023, 1024, usize::MAX] {
            if !allowed_cores().unwrap().contains(&core) {
                assert!(!pin_current_thread(core), "{core}");
            }
        }
    }

    #[test]
    fn child_sees_the_core_it_is_left() {
        let Some(core) = only_core() else { return };
        assert_eq!(allowed_cores().unwrap(), [core]);
        assert_eq!(current_core(), core);
    }

    #[test]
    fn a_mask_of_one_core_is_respected() {
        for core in allowed_cores().unwrap() {
            let module = module_path!().split_once("::").expect("below the crate").1;
            assert!(
                passes_on_core(&format!("{module}::child_sees_the_core_it_is_left"), core),
                "core {core}"
            );
        }
    }
}

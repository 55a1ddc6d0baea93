//! Threads of our own, tied to cores as the cache's are, for the plain loops.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

type Work = Box<dyn FnOnce() -> u64 + Send>;

/// One thread for each core that we may use. They wait for work, so that no run pays for their start.
pub(super) struct Crew {
    inboxes: Vec<SyncSender<Work>>,
    answers: Receiver<u64>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    pub(super) fn new() -> Crew {
        let allowed = sched_getaffinity(None).expect("a thread may ask for its own mask");
        let cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
        let (tell, answers) = sync_channel(CpuSet::MAX_CPU);
        let mut crew = Crew { inboxes: Vec::new(), answers, threads: Vec::new() };
        for core in cores {
            let (inbox, work) = sync_channel::<Work>(1);
            let tell = tell.clone();
            crew.inboxes.push(inbox);
            crew.threads.push(std::thread::spawn(move || {
                let mut only = CpuSet::new();
                only.set(core);
                sched_setaffinity(None, &only).expect("the core is in our mask");
                for work in work {
                    tell.send(work()).expect("the crew waits for every answer");
                }
            }));
        }
        crew
    }

    pub(super) fn len(&self) -> usize {
        self.inboxes.len()
    }

    /// Does all of it, the n-th on the n-th thread modulo their number, and adds the answers up.
    pub(super) fn sum(&self, work: Vec<Work>) -> u64 {
        let count = work.len();
        for (n, work) in work.into_iter().enumerate() {
            self.inboxes[n % self.len()].send(work).expect("the threads live as long as the crew");
        }
        self.answers.iter().take(count).fold(0, u64::wrapping_add)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.inboxes.clear(); // Their loops end.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_work_is_done_and_added_up() {
        let crew = Crew::new();
        for count in [0, 1, crew.len(), 3 * crew.len() + 1] {
            let work = (1..=count as u64).map(|n| Box::new(move || n) as Work).collect();
            let n = count as u64;
            assert_eq!(crew.sum(work), n * (n + 1) / 2);
        }
    }
}

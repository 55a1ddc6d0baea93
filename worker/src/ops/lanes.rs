//! Does many things, a few at once, so that what waits for a disk holds up nobody who uses other disks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many jobs of one lane are done at once.
const AT_ONCE: usize = 2;

/// Does all jobs, and answers in their order. Jobs with the same lane wait for each other, those of others do not.
pub(crate) fn run_all<L, J, R>(jobs: Vec<(L, J)>, run: impl Fn(J) -> R + Sync) -> Vec<R>
where
    L: Ord,
    J: Send,
    R: Send,
{
    let mut lanes: BTreeMap<L, VecDeque<(usize, J)>> = BTreeMap::new();
    let results: Vec<Mutex<Option<R>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    for (index, (lane, job)) in jobs.into_iter().enumerate() {
        lanes.entry(lane).or_default().push_back((index, job));
    }
    let lanes: Vec<Mutex<VecDeque<(usize, J)>>> = lanes.into_values().map(Mutex::new).collect();
    let serve = |lane: &Mutex<VecDeque<(usize, J)>>| {
        loop {
            let next = lock(lane).pop_front();
            let Some((index, job)) = next else { return };
            let result = run(job);
            *lock(&results[index]) = Some(result);
        }
    };
    std::thread::scope(|scope| {
        let serve = &serve;
        for lane in &lanes {
            let threads = lock(lane).len().min(AT_ONCE);
            for number in 0..threads {
                let thread = std::thread::Builder::new().name("pelton-ops".to_owned());
                let spawned = thread.spawn_scoped(scope, move || serve(lane));
                // Where the system has no thread to give, this one does it.
                if spawned.is_err() && number == 0 {
                    serve(lane);
                }
            }
        }
    });
    let done = |result: Mutex<Option<R>>| result.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().map(|result| done(result).expect("each job was done")).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crossbeam_channel::bounded;

    use super::*;

    #[test]
    fn answers_come_in_the_order_of_the_jobs_and_few_run_at_once() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let jobs: Vec<_> = (0..100).map(|job| ("one lane", job)).collect();
        let squares = run_all(jobs, |job| {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            std::thread::yield_now();
            now.fetch_sub(1, Ordering::Relaxed);
            job * job
        });
        assert_eq!(squares, (0..100).map(|job| job * job).collect::<Vec<_>>());
        assert!(most.into_inner() <= AT_ONCE);
    }

    /// Goal: jobs that hang hold up their own lane only. Method: more of them than run at once wait until all jobs of
    /// the other lane are done.
    #[test]
    fn jobs_that_hang_hold_up_nobody_else() {
        let (done, all_done) = bounded(10);
        let hangs = (0..5).map(|_| ("hung", true));
        let works = (0..10).map(|_| ("works", false));
        let order = run_all(hangs.chain(works).collect(), |hangs| match hangs {
            true => {
                while !all_done.is_full() {
                    std::thread::yield_now();
                }
                0
            }
            false => {
                done.send(()).unwrap();
                1
            }
        });
        assert_eq!(order.iter().sum::<i32>(), 10);
    }
}

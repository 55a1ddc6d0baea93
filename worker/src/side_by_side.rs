//! The same work on several things at once, on threads that end before the caller goes on.

use std::thread;

/// Runs `work` on each item, each on a thread of its own, and returns the results in the order of the items. Where
/// the system has no thread to give the caller does the work itself.
///
/// # Panics
/// If `work` does.
pub(crate) fn side_by_side<'a, T, R>(name: &str, items: &'a [T], work: impl Fn(&'a T) -> R + Sync) -> Vec<R>
where
    T: Sync,
    R: Send,
{
    let work = &work;
    thread::scope(|scope| {
        let begin = |item| {
            let thread = thread::Builder::new().name(name.to_owned());
            // The closure is gone when spawning fails, the item is not.
            thread.spawn_scoped(scope, move || work(item)).map_err(|_| item)
        };
        let begun: Vec<_> = items.iter().map(begin).collect();
        let end = |begun: Result<thread::ScopedJoinHandle<'_, R>, &'a T>| match begun {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(item) => work(item),
        };
        begun.into_iter().map(end).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u32> = (0..20).collect();
        let doubled = side_by_side("test", &items, |item| item * 2);
        assert_eq!(doubled, items.iter().map(|item| item * 2).collect::<Vec<_>>());
    }

    #[test]
    #[should_panic(expected = "seven")]
    fn a_panic_goes_on_to_the_caller() {
        side_by_side("test", &[5, 7, 9], |item| assert!(*item != 7, "seven"));
    }
}

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::MemoryUse::{Buffers, Images, Mapped};
use super::*;

/// Polls once and tells whether it is ready.
fn poll(taking: &mut Taking) -> Option<MemoryGrant> {
    match Pin::new(taking).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(given) => Some(given.expect("it fits some day")),
        Poll::Pending => None,
    }
}

/// Lets others run until `done`; a test that hangs says where.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < give_up, "still not: {what}");
        thread::yield_now();
    }
}

#[test]
fn what_can_never_fit_is_refused_with_both_numbers() {
    let budget = MemoryBudget::new(100, 30);
    let refused = MemoryRefused::NeverFits { purpose: Buffers, wanted: 31, share: 30 };
    assert_eq!(budget.take(Buffers, 31, None).unwrap_err(), refused);
    assert_eq!(budget.try_take(Buffers, 31).unwrap_err(), refused);
    assert_eq!(refused.to_string(), "31 bytes for buffers can never fit: the share is 30 bytes");
    assert_eq!(
        budget.taking(Images, 71).unwrap_err(),
        MemoryRefused::NeverFits { purpose: Images, wanted: 71, share: 70 }
    );
    assert_eq!(budget.take(Images, 70, None).unwrap().bytes(), 70);
}

#[test]
fn a_budget_made_larger_gives_to_those_who_wait_and_one_made_smaller_takes_nothing_back() {
    let budget = MemoryBudget::new(100, 30);
    let held = budget.take(Images, 60, None).unwrap();
    let mut waiting = budget.taking(Mapped, 50).unwrap();
    assert!(poll(&mut waiting).is_none());
    budget.resize(110);
    let waited = poll(&mut waiting).expect("50 beside 60");
    budget.resize(55);
    assert_eq!(budget.counts().residence_max, 55);
    assert_eq!((held.bytes(), waited.bytes()), (60, 50), "what is given stays given");
    let late = budget.try_take(Images, 1).unwrap_err();
    assert_eq!(late, MemoryRefused::Deadline { purpose: Images, wanted: 1, free: 0, share: 55 });
    drop(held);
    let free = budget.try_take(Images, 5).expect("50 and 5");
    drop((waited, free));
    assert_eq!(budget.take(Images, 55, None).unwrap().bytes(), 55);
}

/// Goal: nobody waits for more than there will ever be, and those behind get their turn. Method: the first of two who
/// wait is too large for the smaller budget.
#[test]
fn who_waits_for_more_than_a_smaller_budget_has_is_refused() {
    let budget = MemoryBudget::new(100, 30);
    let held = budget.take(Images, 40, None).unwrap();
    let large = budget.taking(Images, 60).unwrap();
    let mut small = budget.taking(Mapped, 10).unwrap();
    assert!(poll(&mut small).is_none(), "the large one is first");
    budget.resize(50);
    assert_eq!(poll(&mut small).expect("10 beside 40").bytes(), 10);
    let refused = Patience::default().wait(std::pin::pin!(large)).expect("it need not wait").unwrap_err();
    assert_eq!(refused, MemoryRefused::NeverFits { purpose: Images, wanted: 60, share: 50 });
    drop(held);
    assert_eq!(
        budget.counts(),
        MemoryCounts { residence_max: 50, buffers_max: 30, ..MemoryCounts::default() }
    );
}

#[test]
fn the_counts_tell_the_uses_apart() {
    let budget = MemoryBudget::new(100, 30);
    let images = budget.take(Images, 20, None).unwrap();
    let mut mapped = budget.take(Mapped, 50, None).unwrap();
    let buffers = budget.take(Buffers, 30, None).unwrap();
    let queued = budget.taking(Images, 5).unwrap();
    let counts = MemoryCounts {
        images: 20,
        mapped: 50,
        buffers: 30,
        spares: 0,
        residence_max: 70,
        buffers_max: 30,
        residence_waited_for: 5,
        residence_first_waited_for: 5,
        buffers_waited_for: 0,
    };
    assert_eq!(budget.counts(), counts);
    mapped.shrink_to(46);
    assert_eq!(budget.counts(), MemoryCounts { mapped: 46, ..counts }, "four bytes are too few for the five");
    mapped.shrink_to(45);
    let given = MemoryCounts { residence_waited_for: 0, residence_first_waited_for: 0, ..counts };
    assert_eq!(budget.counts(), MemoryCounts { images: 25, mapped: 45, ..given });
    drop((images, mapped, buffers, queued));
    let none = MemoryCounts { residence_max: 70, buffers_max: 30, ..MemoryCounts::default() };
    assert_eq!(budget.counts(), none);
}

/// Goal: a large request is not starved by small ones that come later.
#[test]
fn nobody_passes_anybody_in_a_share() {
    let budget = MemoryBudget::new(100, 0);
    let (first, second) = (budget.take(Images, 60, None).unwrap(), budget.take(Images, 30, None).unwrap());
    let mut large = budget.taking(Images, 50).unwrap();
    let mut small = budget.taking(Mapped, 10).unwrap();
    assert!(budget.try_take(Images, 1).is_err(), "there is room, but others wait for it");
    assert!(poll(&mut small).is_none() && poll(&mut large).is_none());
    drop(second);
    assert!(poll(&mut small).is_none(), "40 are free, but the large one is first");
    drop(first);
    let small = poll(&mut small).expect("both fit now");
    let large = poll(&mut large).expect("both fit now");
    assert_eq!((large.bytes(), small.bytes()), (50, 10));
}

#[test]
fn the_shares_do_not_wait_for_each_other() {
    let budget = MemoryBudget::new(100, 30);
    let _images = budget.take(Images, 70, None).unwrap();
    let _waiting = budget.taking(Images, 1).unwrap();
    let _buffers = budget.take(Buffers, 30, None).unwrap();
    let _also_waiting = budget.taking(Buffers, 30).unwrap();
}

#[test]
fn leaving_the_queue_lets_those_behind_in() {
    let budget = MemoryBudget::new(100, 0);
    let _held = budget.take(Images, 60, None).unwrap();
    let large = budget.taking(Images, 50).unwrap();
    let mut small = budget.taking(Images, 40).unwrap();
    assert!(poll(&mut small).is_none());
    drop(large);
    assert_eq!(poll(&mut small).unwrap().bytes(), 40);
}

#[test]
fn what_was_granted_and_not_fetched_goes_back() {
    let budget = MemoryBudget::new(100, 0);
    let held = budget.take(Images, 100, None).unwrap();
    let waiting = budget.taking(Mapped, 70).unwrap();
    drop(held);
    assert_eq!(budget.counts().mapped, 70, "granted, though nobody has looked yet");
    drop(waiting);
    assert_eq!(budget.counts().mapped, 0);
}

#[test]
fn a_passed_deadline_takes_what_is_free_and_waits_for_nothing() {
    let budget = MemoryBudget::new(100, 0);
    let passed = Some(Instant::now());
    let held = budget.take(Images, 90, passed).unwrap();
    let refused = budget.take(Images, 11, passed).unwrap_err();
    assert_eq!(refused, MemoryRefused::Deadline { purpose: Images, wanted: 11, free: 10, share: 100 });
    assert_eq!(
        refused.to_string(),
        "11 bytes for images did not become free in time: 10 bytes of 100 bytes are free"
    );
    assert_eq!(budget.counts().residence_waited_for, 0, "it left no place behind");
    drop(held);
    drop(budget.take(Images, 11, passed).unwrap());
}

#[test]
fn a_deadline_is_waited_for_and_not_passed_early() {
    let budget = MemoryBudget::new(100, 0);
    let _held = budget.take(Images, 100, None).unwrap();
    let deadline = Instant::now() + Duration::from_millis(30);
    assert!(budget.take(Images, 1, Some(deadline)).is_err());
    assert!(Instant::now() >= deadline);
}

#[test]
fn waiting_threads_are_served_in_order() {
    let budget = MemoryBudget::new(10, 0);
    let held = budget.take(Images, 10, None).unwrap();
    let (served, order) = mpsc::channel();
    let threads: Vec<_> = (0..4u64)
        .map(|index| {
            let thread = thread::spawn({
                let (budget, served) = (budget.clone(), served.clone());
                move || {
                    let deadline = index.is_multiple_of(2).then(|| Instant::now() + Duration::from_secs(60));
                    let grant = budget.take(Images, 10, deadline).unwrap();
                    served.send(index).unwrap();
                    drop(grant);
                }
            });
            // The next one starts when this one stands in the queue: that is the order.
            wait_until("in the queue", || budget.counts().residence_waited_for == 10 * (index + 1));
            thread
        })
        .collect();
    drop(held);
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
}

/// Goal: a grant that arrives while its waiter gives up is neither lost nor counted twice. Method: deadlines
/// and releases race for a while; in the end the books are empty.
#[test]
fn giving_up_and_being_given_may_race() {
    let budget = MemoryBudget::new(2, 1);
    thread::scope(|scope| {
        for seed in 0..4u64 {
            let budget = &budget;
            scope.spawn(move || {
                for round in 0..2_000u64 {
                    let purpose = if (round ^ seed) & 4 == 0 { Images } else { Buffers };
                    let wait = Duration::from_nanos((seed * 7 + round * 13) % 40 * 1_000);
                    if let Ok(grant) = budget.take(purpose, 1, Some(Instant::now() + wait)) {
                        assert_eq!(grant.bytes(), 1);
                    }
                }
            });
        }
    });
    let none = MemoryCounts { residence_max: 1, buffers_max: 1, ..MemoryCounts::default() };
    assert_eq!(budget.counts(), none);
}

#[test]
fn grants_split_and_join() {
    let budget = MemoryBudget::new(100, 0);
    let mut whole = budget.take(Images, 90, None).unwrap();
    let part = whole.split(30);
    assert_eq!((whole.bytes(), part.bytes(), part.purpose()), (60, 30, Images));
    drop(whole);
    assert_eq!(budget.counts().images, 30);
    let mut again = budget.take(Images, 5, None).unwrap();
    again.join(part);
    assert_eq!((again.bytes(), budget.counts().images), (35, 35));
    drop(again);
    assert_eq!(budget.counts().images, 0);
}

fn fresh_spares(count: usize) -> Vec<SparePage> {
    (0..count).map(|_| SparePage::fresh()).collect()
}

/// Goal: what is kept keeps memory from nobody.
#[test]
fn spare_pages_go_when_anything_else_wants_their_place() {
    let budget = MemoryBudget::new(10 * PAGE, 0);
    budget.take(Images, 4 * PAGE, None).unwrap().give_back_with(fresh_spares(4));
    let spares = || budget.counts().spares / PAGE;
    assert_eq!(spares(), 4);
    let mapped = budget.try_take(Mapped, 6 * PAGE).unwrap();
    assert_eq!(spares(), 4, "they lie in what is free");
    let more = budget.try_take(Mapped, 1).unwrap();
    assert_eq!(spares(), 3);
    let image = budget.try_take_for_image(2 * PAGE).unwrap();
    assert_eq!((image.spares.len(), spares()), (2, 1));
    let waiting = budget.taking(Mapped, 3 * PAGE).unwrap();
    assert_eq!(spares(), 0, "who waits is not kept waiting by it");
    let ImageMemory { grant, spares: pages } = image;
    grant.give_back_with(pages);
    assert_eq!((spares(), budget.counts().mapped), (0, 9 * PAGE + 1), "it was given instead of kept");
    drop((mapped, more, waiting));
}

#[test]
fn no_more_is_kept_than_half_of_what_regions_may_use() {
    let budget = MemoryBudget::new(12 * PAGE, 2 * PAGE);
    budget.take(Images, 4 * PAGE, None).unwrap().give_back_with(fresh_spares(4));
    budget.take(Images, 4 * PAGE, None).unwrap().give_back_with(fresh_spares(4));
    let counts = budget.counts();
    assert_eq!((counts.spares, counts.images), (5 * PAGE, 0));
    budget.drop_spares();
    assert_eq!(budget.counts().spares, 0);
}

#[derive(Clone, Debug)]
enum Step {
    Ask { purpose: MemoryUse, bytes: u64 },
    Try { purpose: MemoryUse, bytes: u64 },
    Drop { pick: usize },
    Recycle { pick: usize },
    Shrink { pick: usize, bytes: u64 },
}

/// Mostly whole pages.
fn bytes() -> impl Strategy<Value = u64> {
    (0u64..45, 0..2u64).prop_map(|(pages, more)| pages * PAGE + more)
}

fn step() -> impl Strategy<Value = Step> {
    let purpose = || prop_oneof![Just(Images), Just(Mapped), Just(Buffers)];
    prop_oneof![
        4 => (purpose(), bytes()).prop_map(|(purpose, bytes)| Step::Ask { purpose, bytes }),
        1 => (purpose(), bytes()).prop_map(|(purpose, bytes)| Step::Try { purpose, bytes }),
        2 => any::<usize>().prop_map(|pick| Step::Drop { pick }),
        2 => any::<usize>().prop_map(|pick| Step::Recycle { pick }),
        1 => (any::<usize>(), bytes()).prop_map(|(pick, bytes)| Step::Shrink { pick, bytes }),
    ]
}

/// One who asked, as the model sees it: who is given is worked out anew from the order of arrival.
struct Asked {
    purpose: MemoryUse,
    bytes: u64,
    given: bool,
    taking: Option<Taking>,
    grant: Option<MemoryGrant>,
}

const PAGE: u64 = LARGE_PAGE_BYTES as u64;
const TOTAL: u64 = 60 * PAGE;
const BUFFERS: u64 = 20 * PAGE;

fn share_of(purpose: MemoryUse) -> u64 {
    if purpose == Buffers { BUFFERS } else { TOTAL - BUFFERS }
}

fn same_share(left: MemoryUse, right: MemoryUse) -> bool {
    (left == Buffers) == (right == Buffers)
}

fn used(asked: &[Asked], purpose: MemoryUse) -> u64 {
    let given = asked.iter().filter(|one| one.given && same_share(one.purpose, purpose));
    given.map(|one| one.bytes).sum()
}

/// Gives to the waiting in order of arrival, until one does not fit.
fn settle(asked: &mut [Asked]) {
    for share in [Images, Buffers] {
        for index in 0..asked.len() {
            if asked[index].given || !same_share(asked[index].purpose, share) {
                continue;
            }
            if used(asked, share) + asked[index].bytes > share_of(share) {
                break;
            }
            asked[index].given = true;
        }
    }
}

proptest! {
    /// Beside a naive model: the same are given at every step, and the counts agree.
    #[test]
    fn the_budget_gives_as_the_model_does(steps in prop::collection::vec(step(), 1..80)) {
        let budget = MemoryBudget::new(TOTAL, BUFFERS);
        let mut asked: Vec<Asked> = Vec::new();
        for step in steps {
            match step {
                Step::Ask { purpose, bytes } => match budget.taking(purpose, bytes) {
                    Ok(taking) => {
                        asked.push(Asked { purpose, bytes, given: false, taking: Some(taking), grant: None });
                    }
                    Err(_) => prop_assert!(bytes > share_of(purpose)),
                },
                Step::Try { purpose, bytes } => {
                    let waits = asked.iter().any(|one| !one.given && same_share(one.purpose, purpose));
                    let fits = used(&asked, purpose) + bytes <= share_of(purpose);
                    let result = budget.try_take(purpose, bytes);
                    prop_assert_eq!(result.is_ok(), fits && !waits);
                    if let Ok(grant) = result {
                        asked.push(Asked { purpose, bytes, given: true, taking: None, grant: Some(grant) });
                    }
                }
                Step::Drop { pick } if !asked.is_empty() => drop(asked.remove(pick % asked.len())),
                Step::Recycle { pick } if !asked.is_empty() => {
                    let one = asked.remove(pick % asked.len());
                    if let Some(grant) = one.grant {
                        let pages = pages_in(grant.bytes()).min(5);
                        grant.give_back_with((0..pages).map(|_| SparePage::fresh()).collect());
                    }
                }
                Step::Shrink { pick, bytes } if !asked.is_empty() => {
                    let index = pick % asked.len();
                    if let Some(grant) = asked[index].grant.as_mut() && bytes <= grant.bytes() {
                        grant.shrink_to(bytes);
                        asked[index].bytes = bytes;
                    }
                }
                Step::Drop { .. } | Step::Recycle { .. } | Step::Shrink { .. } => {}
            }
            settle(&mut asked);
            for one in &mut asked {
                if let Some(taking) = &mut one.taking {
                    let grant = poll(taking);
                    prop_assert_eq!(grant.is_some(), one.given);
                    if grant.is_some() {
                        one.taking = None;
                        one.grant = grant;
                    }
                }
            }
            let sum = |purpose, given| {
                let of = asked.iter().filter(|one| one.purpose == purpose && one.given == given);
                of.map(|one| one.bytes).sum::<u64>()
            };
            let counts = budget.counts();
            let free = TOTAL - BUFFERS - used(&asked, Images);
            let waits = asked.iter().any(|one| !one.given && one.purpose != Buffers);
            // Nobody is refused for what is kept, which the model knows nothing of; and it lies in what is free.
            let kept_max = if waits { 0 } else { free.min((TOTAL - BUFFERS) / SPARES_SHARE) };
            prop_assert!(counts.spares <= kept_max);
            prop_assert_eq!(counts, MemoryCounts {
                spares: counts.spares,
                images: sum(Images, true),
                mapped: sum(Mapped, true),
                buffers: sum(Buffers, true),
                residence_max: TOTAL - BUFFERS,
                buffers_max: BUFFERS,
                residence_waited_for: sum(Images, false) + sum(Mapped, false),
                residence_first_waited_for: asked
                    .iter()
                    .find(|one| !one.given && one.purpose != Buffers)
                    .map_or(0, |one| one.bytes),
                buffers_waited_for: sum(Buffers, false),
            });
        }
        drop(asked);
        budget.drop_spares();
        prop_assert_eq!(
            budget.counts(),
            MemoryCounts { residence_max: TOTAL - BUFFERS, buffers_max: BUFFERS, ..MemoryCounts::default() }
        );
    }
}

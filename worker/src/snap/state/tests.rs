//! Short stories, one rule each. What holds in all orders is in `model.rs`.

use std::time::Duration;

use pelton_region_format::Fingerprint;

use super::{Answer, Command, Decider, Form, Limits, SnapEvent, SnapState, Version, WaiterId};
use crate::cache::Want;

const A: u8 = 1;
const B: u8 = 2;
const ONE: WaiterId = WaiterId(1);
const TWO: WaiterId = WaiterId(2);
const THREE: WaiterId = WaiterId(3);

/// A decider and the time.
struct Story {
    decider: Decider,
    now: Duration,
}

impl Story {
    fn cold() -> Story {
        Story { decider: Decider::cold(Limits::default()), now: Duration::ZERO }
    }

    /// A snap whose files hold load 1 of A.
    fn warm() -> Story {
        Story { decider: Decider::found(Limits::default(), version(1, A), false), ..Story::cold() }
    }

    /// The same in memory, without a lease.
    fn hot() -> Story {
        let mut story = Story::warm();
        story.lease(ONE, Want::Latest, None);
        story.on(SnapEvent::Warmed { version: version(1, A) });
        story.on(SnapEvent::Released { version: version(1, A) });
        story
    }

    fn on(&mut self, event: SnapEvent) -> Vec<Command> {
        let mut commands = Vec::new();
        self.decider.on(self.now, event, &mut commands);
        commands
    }

    fn lease(&mut self, waiter: WaiterId, want: Want, offer: Option<Version>) -> Vec<Command> {
        self.on(SnapEvent::Lease { waiter, want, offer })
    }

    fn state(&self) -> SnapState {
        self.decider.state(self.now)
    }
}

fn version(load: u64, fingerprint: u8) -> Version {
    Version { load, fingerprint: Fingerprint::from_bytes([fingerprint; 32]) }
}

fn only(fingerprint: u8) -> Want {
    Want::Fingerprint(Fingerprint::from_bytes([fingerprint; 32]))
}

fn answer(waiter: WaiterId, answer: Answer) -> Command {
    Command::Answer(waiter, answer)
}

#[test]
fn all_who_ask_for_one_fingerprint_share_one_load() {
    let mut story = Story::cold();
    let load = version(1, A);
    assert_eq!(story.lease(ONE, only(A), Some(load)), [Command::StartLoad(load)]);
    assert_eq!(story.lease(TWO, only(A), Some(version(2, A))), []);
    assert_eq!(story.lease(THREE, Want::Latest, None), []);
    assert_eq!(story.state(), SnapState::Loading);
    let commands = story.on(SnapEvent::Sealed { version: load, form: Form::Image });
    let expected = [
        Command::StartCommit(load),
        answer(ONE, Answer::Lease(load)),
        answer(TWO, Answer::Lease(load)),
        answer(THREE, Answer::Lease(load)),
    ];
    assert_eq!(commands, expected);
    assert_eq!((story.state(), story.decider.is_durable()), (SnapState::Hot, false));
}

#[test]
fn all_who_ask_share_one_warming() {
    let mut story = Story::warm();
    let kept = version(1, A);
    assert_eq!(story.lease(ONE, Want::Latest, None), [Command::StartWarming(kept)]);
    assert_eq!(story.lease(TWO, only(A), Some(version(2, A))), []);
    let told = [answer(ONE, Answer::Lease(kept)), answer(TWO, Answer::Lease(kept))];
    assert_eq!(story.on(SnapEvent::Warmed { version: kept }), told);
}

#[test]
fn a_deadline_is_the_waiters_own_and_the_load_goes_on() {
    let mut story = Story::cold();
    let load = version(1, A);
    story.lease(ONE, only(A), Some(load));
    story.lease(TWO, only(A), None);
    assert_eq!(story.on(SnapEvent::GiveUp { waiter: ONE }), [answer(ONE, Answer::Late)]);
    assert_eq!(story.on(SnapEvent::GiveUp { waiter: ONE }), [], "it is told once");
    assert_eq!(story.state(), SnapState::Loading);
    let commands = story.on(SnapEvent::Sealed { version: load, form: Form::Image });
    assert_eq!(commands, [Command::StartCommit(load), answer(TWO, Answer::Lease(load))]);
}

/// The old content serves until the new one is there, and its leases to their end; its files go with the commit.
#[test]
fn another_fingerprint_is_loaded_beside_what_is_there() {
    let mut story = Story::hot();
    let (old, new) = (version(1, A), version(2, B));
    assert_eq!(story.lease(ONE, only(B), Some(new)), [Command::StartLoad(new)]);
    assert_eq!(story.lease(TWO, Want::Latest, None), [answer(TWO, Answer::Lease(old))]);
    let commands = story.on(SnapEvent::Sealed { version: new, form: Form::Image });
    assert_eq!(commands, [Command::StartCommit(new), answer(ONE, Answer::Lease(new))]);
    assert_eq!(story.on(SnapEvent::Committed { version: new }), [Command::RemoveFiles(old)]);
    assert_eq!(story.on(SnapEvent::Removed { version: old }), []);
    assert_eq!(story.on(SnapEvent::Released { version: old }), [Command::DropMemory(old)]);
    assert!(story.decider.is_durable());
}

#[test]
fn two_loads_of_one_snap_take_turns() {
    let mut story = Story::cold();
    let (first, second) = (version(1, A), version(2, B));
    story.lease(ONE, only(A), Some(first));
    assert_eq!(story.lease(TWO, only(B), Some(second)), []);
    let commands = story.on(SnapEvent::Sealed { version: first, form: Form::Image });
    let expected =
        [Command::StartCommit(first), answer(ONE, Answer::Lease(first)), Command::StartLoad(second)];
    assert_eq!(commands, expected);
    // The second one is sealed before the first is on the disk: their commits take turns, too.
    let commands = story.on(SnapEvent::Sealed { version: second, form: Form::Image });
    assert_eq!(commands, [answer(TWO, Answer::Lease(second))]);
    assert_eq!(story.on(SnapEvent::Committed { version: first }), [Command::StartCommit(second)]);
    assert_eq!(story.on(SnapEvent::Committed { version: second }), [Command::RemoveFiles(first)]);
}

#[test]
fn an_evicted_snap_goes_with_its_last_lease_unless_somebody_comes_before() {
    let mut story = Story::hot();
    let kept = version(1, A);
    story.lease(ONE, Want::Latest, None);
    assert_eq!(story.on(SnapEvent::Evict { waiter: TWO }), [answer(TWO, Answer::Leaving)]);
    assert_eq!(story.state(), SnapState::Hot);
    assert_eq!(story.lease(THREE, Want::Latest, None), [answer(THREE, Answer::Lease(kept))]);
    story.on(SnapEvent::Released { version: kept });
    assert_eq!(story.on(SnapEvent::Released { version: kept }), [], "it was wanted again");
    story.lease(ONE, Want::Latest, None);
    story.on(SnapEvent::Evict { waiter: TWO });
    assert_eq!(story.on(SnapEvent::Released { version: kept }), [Command::DropMemory(kept)]);
    assert_eq!(story.state(), SnapState::Warm);
}

#[test]
fn what_is_not_on_the_disk_or_pinned_is_not_evicted() {
    let mut story = Story::cold();
    let load = version(1, A);
    story.on(SnapEvent::Write { waiter: ONE, version: load });
    story.on(SnapEvent::Sealed { version: load, form: Form::Image });
    assert_eq!(story.on(SnapEvent::Evict { waiter: ONE }), [answer(ONE, Answer::NotDurable)]);
    story.on(SnapEvent::CommitFailed { version: load });
    assert!(story.decider.is_unsaved());
    assert_eq!(story.on(SnapEvent::Evict { waiter: ONE }), [answer(ONE, Answer::NotDurable)]);
    let mut story = Story::hot();
    story.on(SnapEvent::Pin);
    assert!(story.decider.is_pinned());
    for event in
        [SnapEvent::Evict { waiter: ONE }, SnapEvent::Flush { waiter: ONE }, SnapEvent::Erase { waiter: ONE }]
    {
        assert_eq!(story.on(event), [answer(ONE, Answer::Pinned)]);
    }
    story.on(SnapEvent::Unpin);
    let expected = [Command::DropMemory(version(1, A)), answer(ONE, Answer::Evicted)];
    assert_eq!(story.on(SnapEvent::Evict { waiter: ONE }), expected);
}

/// A flush takes effect at once; what is being committed is removed as soon as it is there.
#[test]
fn a_flush_during_a_commit_waits_for_it_and_nobody_gets_the_slice_meanwhile() {
    let mut story = Story::cold();
    let load = version(1, A);
    story.on(SnapEvent::Write { waiter: ONE, version: load });
    story.on(SnapEvent::Sealed { version: load, form: Form::Image });
    assert_eq!(story.on(SnapEvent::Flush { waiter: TWO }), [Command::DropMemory(load)]);
    assert!(story.decider.uses_disk());
    assert_eq!(story.lease(ONE, Want::Latest, None), [answer(ONE, Answer::NotThere)]);
    assert_eq!(story.on(SnapEvent::Committed { version: load }), [Command::RemoveFiles(load)]);
    assert_eq!(story.on(SnapEvent::Removed { version: load }), [answer(TWO, Answer::Flushed)]);
    assert_eq!(story.state(), SnapState::Cold);
}

#[test]
fn a_flush_leaves_the_leases_and_the_load_alone() {
    let mut story = Story::hot();
    let (old, new) = (version(1, A), version(2, B));
    story.lease(ONE, Want::Latest, None);
    story.on(SnapEvent::Write { waiter: ONE, version: new });
    assert_eq!(story.on(SnapEvent::Flush { waiter: TWO }), [Command::RemoveFiles(old)]);
    assert_eq!(story.state(), SnapState::Loading);
    // The removal is under way, and it has the manifest's name: the commit waits.
    assert_eq!(story.on(SnapEvent::Sealed { version: new, form: Form::Image }), []);
    let commands = story.on(SnapEvent::Removed { version: old });
    assert_eq!(commands, [Command::StartCommit(new), answer(TWO, Answer::Flushed)]);
    assert_eq!(story.on(SnapEvent::Released { version: old }), [Command::DropMemory(old)]);
}

#[test]
fn an_erased_snap_is_never_used_again() {
    let mut story = Story::cold();
    assert_eq!(story.on(SnapEvent::Erase { waiter: ONE }), [answer(ONE, Answer::Erased)]);
    assert_eq!(story.state(), SnapState::Gone);
    assert_eq!(story.lease(ONE, Want::Latest, Some(version(1, A))), [answer(ONE, Answer::Again)]);
    let write = SnapEvent::Write { waiter: ONE, version: version(2, A) };
    assert_eq!(story.on(write), [answer(ONE, Answer::Again)]);
    let mut story = Story::warm();
    assert_eq!(story.on(SnapEvent::Erase { waiter: ONE }), [answer(ONE, Answer::Busy)], "it has files");
}

/// Each failure in a row doubles the wait, up to a cap; another fingerprint and a load by hand do not wait.
#[test]
fn a_failure_heals_later_and_later() {
    let limits = Limits::default();
    let mut story = Story::cold();
    let mut wait = limits.heal_min;
    for load in 1..30 {
        let version = version(load, A);
        assert_eq!(story.lease(ONE, Want::Latest, Some(version)), [Command::StartLoad(version)]);
        assert_eq!(story.on(SnapEvent::LoadFailed { version }), [answer(ONE, Answer::LoadFailed)]);
        assert_eq!(story.state(), SnapState::Failed);
        let until = story.now + wait;
        assert_eq!(story.decider.failed_until(story.now), Some(until));
        let refused = [answer(ONE, Answer::Failed { until })];
        assert_eq!(story.lease(ONE, Want::Latest, Some(self::version(100, A))), refused);
        assert_eq!(story.lease(ONE, Want::Latest, None), refused);
        story.now = until;
        assert_eq!(story.state(), SnapState::Cold);
        wait = (wait * 2).min(limits.heal_max);
    }
    assert_eq!(wait, limits.heal_max);
    story.lease(ONE, Want::Latest, Some(version(100, A)));
    story.on(SnapEvent::LoadFailed { version: version(100, A) });
    let other = version(101, B);
    assert_eq!(story.lease(ONE, Want::Latest, Some(other)), [Command::StartLoad(other)]);
    story.on(SnapEvent::LoadFailed { version: other });
    let by_hand = version(102, B);
    let write = SnapEvent::Write { waiter: ONE, version: by_hand };
    assert_eq!(story.on(write), [answer(ONE, Answer::Write(by_hand))]);
    story.on(SnapEvent::Sealed { version: by_hand, form: Form::Image });
    assert_eq!(story.state(), SnapState::Hot, "and what works is not held against it");
}

#[test]
fn a_failed_load_says_nothing_against_the_files() {
    let mut story = Story::warm();
    let again = version(2, A);
    story.on(SnapEvent::Write { waiter: ONE, version: again });
    story.on(SnapEvent::LoadFailed { version: again });
    assert_eq!(story.state(), SnapState::Warm);
    assert_eq!(story.lease(ONE, Want::Latest, None), [Command::StartWarming(version(1, A))]);
    // No memory is nobody's fault, a disk that refuses is waited for.
    let refused = story.on(SnapEvent::WarmRefused { version: version(1, A) });
    assert_eq!(refused, [answer(ONE, Answer::WarmRefused)]);
    assert_eq!(story.lease(ONE, Want::Latest, None), [Command::StartWarming(version(1, A))]);
    let failed = story.on(SnapEvent::WarmFailed { version: version(1, A) });
    assert_eq!(failed, [answer(ONE, Answer::WarmFailed)]);
    assert_eq!(story.state(), SnapState::Failed);
}

/// A lease is given before all bytes are in memory. If the rest does not come, nobody new gets it.
#[test]
fn a_slice_whose_rest_does_not_come_goes_with_its_leases_and_is_warmed_again_later() {
    let limits = Limits::default();
    let mut story = Story::warm();
    let there = version(1, A);
    story.lease(ONE, Want::Latest, None);
    assert_eq!(story.on(SnapEvent::Warmed { version: there }), [answer(ONE, Answer::Lease(there))]);
    assert_eq!(story.on(SnapEvent::WarmFailed { version: there }), []);
    assert_eq!(story.state(), SnapState::Failed);
    assert_eq!(story.lease(TWO, Want::Latest, None), [answer(TWO, Answer::WarmFailed)]);
    assert_eq!(story.on(SnapEvent::Released { version: there }), [Command::DropMemory(there)]);
    let until = story.now + limits.heal_min;
    assert_eq!(story.lease(TWO, Want::Latest, None), [answer(TWO, Answer::Failed { until })]);
    story.now = until;
    assert_eq!(story.lease(TWO, Want::Latest, None), [Command::StartWarming(there)]);
    story.on(SnapEvent::Warmed { version: there });
    story.on(SnapEvent::Released { version: there });
    assert_eq!(story.on(SnapEvent::WarmFailed { version: there }), [Command::DropMemory(there)]);
}

#[test]
fn a_cancelled_load_leaves_what_was_there_and_others_may_load() {
    let mut story = Story::cold();
    let by_hand = version(1, A);
    story.on(SnapEvent::Write { waiter: ONE, version: by_hand });
    assert_eq!(
        story.on(SnapEvent::Write { waiter: TWO, version: version(2, A) }),
        [answer(TWO, Answer::Busy)]
    );
    story.lease(ONE, only(A), None);
    story.lease(TWO, only(A), Some(version(3, A)));
    let commands = story.on(SnapEvent::LoadCancelled { version: by_hand });
    assert_eq!(commands, [answer(ONE, Answer::NotThere), Command::StartLoad(version(3, A))]);
    // Its own load's number is used up.
    let commands = story.on(SnapEvent::LoadCancelled { version: version(3, A) });
    assert_eq!(commands, [answer(TWO, Answer::LoadFailed)]);
    assert_eq!(story.state(), SnapState::Cold);
}

#[test]
fn a_load_number_that_is_not_the_highest_is_asked_for_anew() {
    let mut story = Story::hot();
    let again = [answer(ONE, Answer::Again)];
    assert_eq!(story.lease(ONE, only(B), Some(version(1, B))), again);
    assert_eq!(story.on(SnapEvent::Write { waiter: ONE, version: version(1, B) }), again);
}

#[test]
fn a_direct_load_is_there_when_it_is_committed() {
    let mut story = Story::hot();
    let (old, new) = (version(1, A), version(2, B));
    story.lease(ONE, only(B), Some(new));
    let sealed = story.on(SnapEvent::Sealed { version: new, form: Form::Direct });
    assert_eq!(sealed, [Command::StartCommit(new)]);
    assert_eq!(story.lease(TWO, Want::Latest, None), [answer(TWO, Answer::Lease(old))]);
    let commands = story.on(SnapEvent::Committed { version: new });
    assert_eq!(commands, [Command::RemoveFiles(old), Command::StartWarming(new)]);
    assert_eq!(story.state(), SnapState::Warm);
    assert_eq!(story.on(SnapEvent::Warmed { version: new }), [answer(ONE, Answer::Lease(new))]);
}

#[test]
fn no_blob_at_all_is_leased_and_committed_and_never_warmed() {
    let mut story = Story::cold();
    let load = version(1, A);
    story.lease(ONE, Want::Latest, Some(load));
    let commands = story.on(SnapEvent::Sealed { version: load, form: Form::Empty });
    assert_eq!(commands, [Command::StartCommit(load), answer(ONE, Answer::Lease(load))]);
    story.on(SnapEvent::Committed { version: load });
    assert_eq!((story.state(), story.decider.is_durable()), (SnapState::NoData, true));
    assert_eq!(story.on(SnapEvent::Evict { waiter: TWO }), [answer(TWO, Answer::Nothing)]);
    let found = Decider::found(Limits::default(), load, true);
    assert_eq!(found.state(Duration::ZERO), SnapState::NoData);
}

#[test]
fn damage_drops_the_slice_and_who_can_load_it_anew_does() {
    let mut story = Story::warm();
    let kept = version(1, A);
    story.lease(ONE, Want::Latest, None);
    story.lease(TWO, only(A), Some(version(2, A)));
    let commands = story.on(SnapEvent::Damaged { version: kept });
    let expected =
        [answer(ONE, Answer::Damaged), Command::RemoveFiles(kept), Command::StartLoad(version(2, A))];
    assert_eq!(commands, expected);
    // Found by a scan: the leases keep what they hold, nobody gets a new one.
    let mut story = Story::hot();
    story.lease(ONE, Want::Latest, None);
    assert_eq!(story.on(SnapEvent::Damaged { version: kept }), [Command::RemoveFiles(kept)]);
    assert_eq!(story.lease(TWO, Want::Latest, None), [answer(TWO, Answer::NotThere)]);
    assert_eq!(story.on(SnapEvent::Released { version: kept }), [Command::DropMemory(kept)]);
}

/// A load of another fingerprint that fails says nothing about the files, nor a warming that works about the load.
#[test]
fn loads_and_warmings_fail_each_for_itself() {
    let mut story = Story::warm();
    let (kept, other) = (version(1, A), version(2, B));
    story.lease(ONE, Want::Latest, None);
    story.on(SnapEvent::WarmFailed { version: kept });
    let failed = story.decider.failed_until(story.now).unwrap();
    story.lease(TWO, only(B), Some(other));
    story.on(SnapEvent::LoadFailed { version: other });
    assert_eq!(story.state(), SnapState::Failed);
    assert_eq!(story.lease(ONE, Want::Latest, None), [answer(ONE, Answer::Failed { until: failed })]);
    let again = version(3, B);
    assert_eq!(story.lease(TWO, only(B), Some(again)), [answer(TWO, Answer::Failed { until: failed })]);
    // The warming is tried after the load has failed again and waits for longer.
    story.now = failed;
    story.lease(TWO, only(B), Some(again));
    story.on(SnapEvent::LoadFailed { version: again });
    assert_eq!(story.lease(ONE, Want::Latest, None), [Command::StartWarming(kept)]);
    story.on(SnapEvent::Warmed { version: kept });
    let refused = story.lease(TWO, only(B), Some(version(4, B)));
    assert!(matches!(refused[..], [Command::Answer(TWO, Answer::Failed { until })] if until > failed));
}

#[test]
fn what_is_whole_in_memory_outlives_its_files() {
    let mut story = Story::hot();
    let kept = version(1, A);
    assert_eq!(story.on(SnapEvent::FilesDamaged { version: kept }), [Command::RemoveFiles(kept)]);
    assert_eq!(story.lease(ONE, Want::Latest, None), [answer(ONE, Answer::Lease(kept))]);
    assert_eq!((story.decider.is_durable(), story.decider.is_unsaved()), (false, true));
    assert_eq!(story.on(SnapEvent::Evict { waiter: TWO }), [answer(TWO, Answer::NotDurable)]);
    assert_eq!(story.on(SnapEvent::Removed { version: kept }), []);
    assert_eq!(story.on(SnapEvent::Released { version: kept }), []);
    assert_eq!(story.state(), SnapState::Hot);
    // Of what is in files only nothing is left.
    let mut story = Story::warm();
    assert_eq!(story.on(SnapEvent::FilesDamaged { version: kept }), [Command::RemoveFiles(kept)]);
    assert_eq!(story.lease(ONE, Want::Latest, None), [answer(ONE, Answer::NotThere)]);
}

/// What is sealed is still saved, what is not is dropped, and everybody who waits is told.
#[test]
fn closing_ends_what_is_not_sealed() {
    let mut story = Story::cold();
    let (first, second) = (version(1, A), version(2, B));
    story.on(SnapEvent::Write { waiter: ONE, version: first });
    story.on(SnapEvent::Sealed { version: first, form: Form::Image });
    story.lease(ONE, only(B), Some(second));
    let commands = story.on(SnapEvent::Close);
    assert_eq!(commands, [Command::StopLoad(second), answer(ONE, Answer::Closed)]);
    let dropped = story.on(SnapEvent::Sealed { version: second, form: Form::Image });
    assert_eq!(dropped, [Command::Discard(second), Command::DropMemory(second)]);
    assert_eq!(story.on(SnapEvent::Committed { version: first }), [Command::DropMemory(first)]);
    assert_eq!(story.lease(ONE, Want::Latest, None), [answer(ONE, Answer::Closed)]);
}

/// What is warmed for nobody any more is dropped, and not taken for what is there now.
#[test]
fn a_warming_that_comes_too_late_changes_nothing() {
    let mut story = Story::warm();
    let (old, new) = (version(1, A), version(2, B));
    story.lease(ONE, Want::Latest, None);
    story.on(SnapEvent::Write { waiter: TWO, version: new });
    let commands = story.on(SnapEvent::Sealed { version: new, form: Form::Image });
    assert_eq!(commands, [Command::StartCommit(new), answer(ONE, Answer::Lease(new))]);
    assert_eq!(story.on(SnapEvent::Warmed { version: old }), [Command::DropMemory(old)]);
    assert_eq!(story.decider.version(), Some(new));
    assert_eq!(story.decider.leases(), 1);
}

/// An idle snap is small: a cache may hold a hundred thousand of them.
#[test]
fn a_decider_is_small() {
    assert!(size_of::<Decider>() <= 640, "{}", size_of::<Decider>());
}

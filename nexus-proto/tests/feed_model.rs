//! Both ends of a feed, joined by a wire that loses, doubles, turns, damages and cuts.
//!
//! Goal: every run ends on both sides, whole or with a typed error, in bounded steps and bounded time; whole
//! means every byte; credit is never passed and always comes back. Method: random plans against the rule
//! above, with shrinking. `PROPTEST_CASES=1000000 cargo test --release -p pelton-nexus-proto --test
//! feed_model` is the long form; `PELTON_SEED` starts elsewhere.
#![cfg(feature = "messages")]

mod support;

use std::time::Duration;

use pelton_nexus_proto::Codec;
use pelton_nexus_proto::feed::StreamError;
use pelton_nexus_proto::messages::Reason;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use support::*;

fn seed() -> u64 {
    let seed = std::env::var("PELTON_SEED").map_or(11, |text| text.parse().expect("PELTON_SEED is a number"));
    println!("seed {seed}");
    seed
}

fn runner(cases: u32) -> TestRunner {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { cases };
    TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed()),
        ..default
    })
}

fn codecs() -> impl Strategy<Value = Codec> {
    proptest::sample::select(Codec::BUILT_IN)
}

/// A rate per mille: mostly never.
fn rate() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0), 1 => 1..100u64]
}

fn plans() -> impl Strategy<Value = Plan> {
    let shape =
        (any::<u64>(), any::<bool>(), 0..150u64, 1..20_000u64, codecs(), any::<bool>(), 1..200_000u64);
    let wire =
        (rate(), rate(), rate(), rate(), prop_oneof![2 => Just(None), 1 => (1..200u64).prop_map(Some)]);
    let source = prop_oneof![
        6 => Just(SourceManner::Good),
        1 => Just(SourceManner::NeverOpens),
        1 => Just(SourceManner::Hangs),
        1 => Just(SourceManner::Fails),
    ];
    let receiver = prop_oneof![
        6 => Just(ReceiverManner::Good),
        1 => Just(ReceiverManner::Starves),
        1 => Just(ReceiverManner::Cancels),
        1 => Just(ReceiverManner::IsSmall),
    ];
    (shape, wire, any::<bool>(), source, receiver).prop_map(
        |(shape, wire, cut_is_one_sided, source, receiver)| {
            let (seed, push, blobs, blob_bytes_max, codec, replayable, window) = shape;
            let (lost, doubled, turned, damaged, cut_at) = wire;
            Plan {
                seed,
                push,
                blobs,
                blob_bytes_max,
                codec,
                replayable,
                window,
                lost,
                doubled,
                turned,
                damaged,
                cut_at,
                cut_is_one_sided,
                source,
                receiver,
            }
        },
    )
}

#[test]
fn every_run_ends_whole_or_with_a_typed_error_on_both_sides() {
    let (mut whole, mut broken) = (0, 0);
    let counts = std::cell::RefCell::new((&mut whole, &mut broken));
    runner(5000)
        .run(&plans(), |plan| {
            let outcome = World::new(plan.clone(), None).run();
            let expected = plan.blobs();
            if let Ok(totals) = &outcome.receiver {
                prop_assert_eq!(&outcome.blobs, &expected, "whole means every byte");
                prop_assert_eq!(totals.items, expected.len() as u64);
                let bytes: u64 = expected.iter().map(|blob| blob.len() as u64 + 4).sum();
                prop_assert_eq!(totals.bytes, bytes);
            } else {
                prop_assert!(expected.starts_with(&outcome.blobs), "what was taken is right all the same");
            }
            match (&outcome.receiver, &outcome.sender) {
                (Ok(received), Ok(sent)) => {
                    prop_assert_eq!(received, sent);
                    *counts.borrow_mut().0 += 1;
                }
                (Err(_), Ok(_)) => {
                    prop_assert!(false, "the sender says whole, the receiver {:?}", outcome.receiver)
                }
                // Only the last message can have been lost.
                (Ok(_), Err(_)) | (Err(_), Err(_)) => {
                    prop_assert!(!plan.is_calm(), "{:?}", outcome);
                    *counts.borrow_mut().1 += 1;
                }
            }
            Ok(())
        })
        .unwrap();
    println!("{whole} runs were whole, {broken} were not");
    assert!(whole > 100 && broken > 100, "both kinds happen");
}

/// A stream that breaks again and again still ends whole, and no parcel comes twice.
#[test]
fn a_replayable_stream_is_resumed_until_it_is_whole() {
    let resumed = std::cell::Cell::new(0u64);
    runner(300)
        .run(&(plans(), 1..40u64), |(plan, cut_every)| {
            let calm = Plan {
                replayable: true,
                lost: 0,
                doubled: 0,
                turned: 0,
                damaged: 0,
                source: SourceManner::Good,
                receiver: ReceiverManner::Good,
                ..plan
            };
            let (mut blobs, mut resume, mut cut_at) = (Vec::new(), None, 8 + cut_every);
            for round in 0.. {
                prop_assert!(round < 1000, "every round gets further");
                let plan = Plan { cut_at: Some(cut_at), ..calm.clone() };
                let outcome = World::new(plan, resume.clone()).run();
                // One that broke before Accept has nothing, and the next goes on where the one before did.
                prop_assert!(
                    outcome.blobs.is_empty() || outcome.resume.is_some() || outcome.receiver.is_ok()
                );
                blobs.extend(outcome.blobs);
                if outcome.receiver.is_ok() {
                    break;
                }
                if outcome.resume.is_some() {
                    resumed.set(resumed.get() + 1);
                    resume = outcome.resume;
                }
                // Time for a longer piece, so that a blob of many frames gets through some day.
                cut_at += 10;
            }
            prop_assert_eq!(blobs, calm.blobs());
            Ok(())
        })
        .unwrap();
    println!("{} resumes", resumed.get());
    assert!(resumed.get() > 100);
}

#[test]
fn a_stream_without_any_blob_is_whole() {
    for push in [false, true] {
        let outcome = World::new(Plan { blobs: 0, push, ..Plan::calm(1) }, None).run();
        assert_eq!(outcome.receiver.unwrap().items, 0);
        assert_eq!(outcome.sender.unwrap().items, 0);
    }
}

fn reason(result: &Result<pelton_nexus_proto::feed::Totals, StreamError>) -> Reason {
    result.as_ref().unwrap_err().reason()
}

/// Heartbeats do not keep a stream that goes nowhere.
#[test]
fn a_source_that_lives_and_does_not_go_on_is_given_up() {
    for source in [SourceManner::NeverOpens, SourceManner::Hangs] {
        let outcome = World::new(Plan { source, ..Plan::calm(2) }, None).run();
        assert!(matches!(outcome.receiver, Err(StreamError::Stalled(_))), "{outcome:?}");
        assert_eq!(reason(&outcome.sender), Reason::Idle, "the sender is told why");
        assert!(outcome.took < Duration::from_secs(6 * 60), "{:?}", outcome.took);
    }
}

#[test]
fn a_receiver_that_gives_no_credit_is_given_up_by_the_sender() {
    let plan = Plan { receiver: ReceiverManner::Starves, window: 5000, ..Plan::calm(3) };
    let outcome = World::new(plan, None).run();
    assert!(matches!(outcome.sender, Err(StreamError::Stalled(_))), "{outcome:?}");
    assert_eq!(reason(&outcome.receiver), Reason::Idle);
}

#[test]
fn an_abort_ends_both_sides_with_its_reason() {
    let failing = World::new(Plan { source: SourceManner::Fails, ..Plan::calm(4) }, None).run();
    assert_eq!((reason(&failing.receiver), reason(&failing.sender)), (Reason::Source, Reason::Source));
    assert!(failing.receiver.unwrap_err().to_string().contains("the file is gone"));
    let cancelled = World::new(Plan { receiver: ReceiverManner::Cancels, ..Plan::calm(4) }, None).run();
    assert_eq!(
        (reason(&cancelled.receiver), reason(&cancelled.sender)),
        (Reason::Cancelled, Reason::Cancelled)
    );
    assert_eq!(cancelled.resume, None, "who does not want it does not resume");
    let plan = Plan { receiver: ReceiverManner::IsSmall, window: 300, ..Plan::calm(4) };
    let refused = World::new(plan, None).run();
    assert_eq!(reason(&refused.sender), Reason::ResourceExhausted);
}

/// Both sides know at once; if only one is told, the other finds out by silence.
#[test]
fn a_lost_connection_ends_both_sides() {
    for cut_at in 1..40 {
        for cut_is_one_sided in [false, true] {
            let plan = Plan { cut_at: Some(cut_at), cut_is_one_sided, ..Plan::calm(5) };
            let outcome = World::new(plan, None).run();
            let (receiver, sender) = (outcome.receiver.unwrap_err(), outcome.sender.unwrap_err());
            let silent = |error: &StreamError| matches!(error, StreamError::Silent(_));
            if cut_is_one_sided {
                assert!(silent(&receiver) || silent(&sender), "cut at {cut_at}: {receiver:?} {sender:?}");
                assert!(outcome.took < Duration::from_secs(40));
            } else {
                assert_eq!((receiver, sender), (StreamError::Lost, StreamError::Lost), "cut at {cut_at}");
                assert!(outcome.took < Duration::from_secs(5));
            }
        }
    }
}

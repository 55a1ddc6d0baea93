//! Garbage and reordered messages into every decoder and both state machines, the same in every run.
//!
//! Goal: no bytes make them panic, hang, or take what was not paid for. Method: whole conversations with
//! messages changed, turned, doubled and made up; frames and headers of the lane likewise; parcels likewise.
//!
//! `PELTON_MUTATIONS=100000000 cargo test --release -p pelton-nexus-proto --test mutations` is the long form;
//! `PELTON_SEED` starts elsewhere.
#![cfg(feature = "messages")]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use pelton_nexus_proto::feed::*;
use pelton_nexus_proto::lane::*;
use pelton_nexus_proto::messages::*;
use pelton_nexus_proto::{Codec, Parcel};
use prost::Message;
use support::*;

fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs each mutation with a seed of its own, and names the one that panics.
fn for_each_mutation(default: u64, run: impl Fn(&mut Random) -> bool) -> u64 {
    let (mutations, seed) = (knob("PELTON_MUTATIONS", default), knob("PELTON_SEED", 1));
    println!("{mutations} mutations, seed {seed}");
    let mut passed = 0;
    for mutation in 0..mutations {
        let mut random = Random(seed.wrapping_mul(0xD129_0D62_5B1C_4E55).wrapping_add(mutation));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&mut random)));
        match outcome {
            Ok(true) => passed += 1,
            Ok(false) => {}
            Err(_) => panic!("mutation {mutation} of seed {seed}"),
        }
    }
    println!("{passed} of them went through");
    passed
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        if bytes.is_empty() {
            bytes.push(random.next() as u8);
        }
        let len = bytes.len() as u64;
        let at = if random.below(3) == 0 { random.below(len) } else { random.below(len.min(40)) } as usize;
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][random.below(5) as usize],
            3 => bytes.truncate(at),
            4 => bytes.insert(at, random.next() as u8),
            _ => {
                let end = (at + random.below(16) as usize).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.extend_from_slice(&copy);
            }
        }
    }
}

fn wire_parcel(sequence: u64, parcel: &Parcel) -> FeedMessage {
    message(pelton_nexus_proto::messages::Parcel {
        sequence,
        blob_count: parcel.blob_count(),
        inflated_bytes: parcel.inflated_bytes(),
        codec: (parcel.codec() != Codec::None).into(),
        crc32c: parcel.crc32c(),
        bytes: parcel.body().clone(),
    })
}

/// What a good sender says.
fn senders_words() -> Vec<FeedMessage> {
    let accept = Accept {
        key: KEY.to_owned(),
        fingerprint: vec![7; 32],
        replayable: true,
        resume_token: vec![1; 9],
        ..Accept::default()
    };
    let small = Parcel::of_blob(Codec::None, b"hello").unwrap();
    let deflated = Parcel::of_blob(Codec::Lz4, &[3; 3000]).unwrap();
    let framed = Parcel::of_blob(Codec::None, &[4; 1500]).unwrap();
    let frame = |from: usize, to: usize| {
        let bytes = framed.body().slice(from..to);
        message(BlobFrame {
            sequence: 2,
            packed_bytes: framed.packed_bytes(),
            inflated_bytes: framed.inflated_bytes(),
            codec: 0,
            offset: from as u64,
            crc32c: pelton_region_format::crc32c(&bytes),
            bytes,
        })
    };
    let bytes = small.inflated_bytes() + deflated.inflated_bytes() + framed.inflated_bytes();
    vec![
        message(Welcome { version: 1, codecs: vec![1, 0], ..Welcome::default() }),
        message(accept),
        wire_parcel(0, &small),
        message(Heartbeat {}),
        wire_parcel(1, &deflated),
        message(Want { bytes: 2000, sequence: 3 }),
        frame(0, 1000),
        frame(1000, 1504),
        message(Complete { parcels: 3, items: 3, bytes, ..Complete::default() }),
    ]
}

/// What a good receiver says.
fn receivers_words() -> Vec<FeedMessage> {
    let hello = Hello { versions: vec![1], role: Role::Receiver.into(), codecs: vec![1], ..Hello::default() };
    vec![
        message(hello),
        message(request()),
        message(Credit { bytes: 300, parcels: 0 }),
        message(Heartbeat {}),
        message(Credit { bytes: 100_000, parcels: 1 }),
        message(Done { parcels: 2, items: 2, bytes: 3013 }),
    ]
}

/// The words in an order that is often a little wrong, with one or two of them changed.
fn garble(words: &[FeedMessage], random: &mut Random) -> Vec<FeedMessage> {
    let mut heard: Vec<FeedMessage> = words.to_vec();
    let len = heard.len() as u64;
    for _ in 0..random.below(3) {
        let (one, other) = (random.below(len) as usize, random.below(len) as usize);
        let last = heard.len() - 1;
        match random.below(3) {
            0 => heard.swap(one.min(last), other.min(last)),
            1 => heard.insert(one.min(last), words[other].clone()),
            _ => _ = heard.remove(one.min(last)),
        }
    }
    for _ in 0..random.below(3) {
        let at = random.below(heard.len() as u64) as usize;
        let mut bytes = if random.below(10) == 0 { random.bytes(50) } else { heard[at].encode_to_vec() };
        mutate(&mut bytes, random);
        if let Ok(message) = FeedMessage::decode(&bytes[..]) {
            heard[at] = message;
        }
    }
    heard
}

#[test]
fn a_receiver_that_hears_garbage_ends_or_goes_on_and_takes_nothing_unpaid() {
    let words = senders_words();
    let mutations = 100_000;
    let whole = for_each_mutation(mutations, |random| {
        let (mut now, mut commands) = (Instant::now(), Vec::new());
        let mut receiver =
            Receiver::pull(profile(), request(), Timing::default(), now, &mut commands).unwrap();
        let (mut lent, mut queued, mut ended, mut whole) = (9000u64, 0, false, false);
        receiver.on(ReceiverEvent::Granted { bytes: lent }, now, &mut commands);
        for word in garble(&words, random) {
            now += Duration::from_millis(random.below(3000));
            receiver.on(ReceiverEvent::Message(word), now, &mut commands);
            let mut events = Vec::new();
            for command in commands.drain(..) {
                assert!(!ended, "the end is the last command");
                match command {
                    ReceiverCommand::HandOver { sequence, parcel } => {
                        assert_eq!(sequence, queued);
                        assert!(parcel.cost() <= lent, "it was paid for");
                        lent -= parcel.cost();
                        match parcel.open(&small_limits()) {
                            Ok(open) => {
                                assert_eq!(open.blobs().count(), parcel.blob_count() as usize);
                                queued += 1;
                                events.push(ReceiverEvent::Queued { parcels: queued });
                            }
                            Err(error) => events.push(ReceiverEvent::Abort {
                                reason: Reason::Damaged,
                                text: error.to_string(),
                            }),
                        }
                    }
                    ReceiverCommand::End { result, credit_unused } => {
                        assert_eq!(credit_unused, lent);
                        (ended, whole) = (true, result.is_ok());
                    }
                    ReceiverCommand::Close { .. } => events.push(ReceiverEvent::Closed),
                    _ => {}
                }
            }
            for event in events {
                receiver.on(event, now, &mut commands);
            }
        }
        // What the last event led to.
        for command in commands.drain(..) {
            match command {
                ReceiverCommand::Close { .. } => whole = true,
                ReceiverCommand::End { result, .. } => (ended, whole) = (true, result.is_ok()),
                _ => {}
            }
        }
        assert_eq!(ended, receiver.next_wake().is_none());
        whole
    });
    assert!(
        whole > 0 && whole < knob("PELTON_MUTATIONS", mutations),
        "mutations reach behind the first checks"
    );
}

#[test]
fn a_sender_that_hears_garbage_ends_or_goes_on_and_sends_nothing_unpaid() {
    let words = receivers_words();
    let mutations = 100_000;
    let whole = for_each_mutation(mutations, |random| {
        let mut now = Instant::now();
        let mut words = garble(&words, random).into_iter();
        let Some(first) = words.next() else { return false };
        let Ok(Answer { terms, asked: Asked::Pull, .. }) = answer(first, &profile(), || None) else {
            return false;
        };
        let mut sender = Sender::pulled(profile(), terms, Timing::default(), now);
        let mut source = [
            Parcel::of_blob(Codec::None, b"hello").unwrap(),
            Parcel::of_blob(Codec::None, &[5; 3000]).unwrap(),
        ]
        .into_iter();
        let (mut commands, mut credit, mut has_completed, mut whole) = (Vec::new(), 0u64, false, false);
        for word in words {
            now += Duration::from_millis(random.below(3000));
            if let Some(feed_message::Kind::Credit(Credit { bytes, .. })) = &word.kind {
                credit = credit.saturating_add(*bytes);
            }
            sender.on(SenderEvent::Message(word), now, &mut commands);
            while !commands.is_empty() {
                for command in std::mem::take(&mut commands) {
                    match command {
                        SenderCommand::Open(_) => {
                            let opened = SenderEvent::Opened {
                                replayable: true,
                                resume_token: vec![],
                                items_expected: 0,
                                bytes_expected: 0,
                            };
                            sender.on(opened, now, &mut commands);
                        }
                        SenderCommand::End(result) => whole = result.is_ok(),
                        _ => {}
                    }
                }
            }
            while sender.has_room() && !has_completed {
                let event = match source.next() {
                    Some(parcel) => SenderEvent::Parcel(parcel),
                    None => {
                        has_completed = true;
                        SenderEvent::Complete(Tally::default())
                    }
                };
                sender.on(event, now, &mut commands);
            }
            while let Some(data) = sender.next_data(now) {
                match data.kind {
                    Some(feed_message::Kind::Parcel(parcel)) => {
                        credit = credit.checked_sub(256 + parcel.bytes.len() as u64).expect("paid for");
                    }
                    Some(feed_message::Kind::BlobFrame(frame)) if frame.offset == 0 => {
                        credit = credit.checked_sub(256 + frame.packed_bytes).expect("paid for");
                    }
                    _ => {}
                }
            }
        }
        whole
    });
    assert!(
        whole > 0 && whole < knob("PELTON_MUTATIONS", mutations),
        "mutations reach behind the first checks"
    );
}

#[test]
fn frames_and_openings_of_a_lane_that_are_garbage_are_refused() {
    let limits = small_limits();
    let frames: Vec<Frame> =
        senders_words().into_iter().filter_map(|word| Frame::of_feed(word, &limits).ok()).collect();
    assert_eq!(frames.len(), 5);
    let mutations = 100_000;
    let taken = for_each_mutation(mutations, |random| {
        let frame = &frames[random.below(frames.len() as u64) as usize];
        let (mut header, mut head) = (frame.header.encode().to_vec(), frame.head.clone());
        if random.below(2) == 0 {
            mutate(&mut header, random)
        } else {
            mutate(&mut head, random)
        }
        header.resize(FrameHeader::BYTES, 0);
        // Often with a right checksum, so that the change gets past it.
        if random.below(2) == 0 {
            let crc = pelton_region_format::crc32c(&head);
            header[12..16].copy_from_slice(&crc.to_le_bytes());
            let crc = pelton_region_format::crc32c(&header[..20]);
            header[20..].copy_from_slice(&crc.to_le_bytes());
        }
        let mut opening = LaneOpening { token: [9; TOKEN_BYTES] }.encode().to_vec();
        mutate(&mut opening, random);
        opening.resize(LaneOpening::BYTES, 0);
        _ = LaneOpening::decode(opening[..].try_into().unwrap());
        _ = LaneAnswer::decode(opening[..16].try_into().unwrap());
        let Ok(decoded) = FrameHeader::decode(header[..].try_into().unwrap(), &limits) else { return false };
        assert!(decoded.head_bytes() as u64 <= limits.lane_head_bytes_max);
        assert!(decoded.body_bytes() as u64 <= limits.lane_body_bytes_max);
        if decoded.head_bytes() != head.len() || decoded.body_bytes() != frame.body.len() {
            return false;
        }
        let read = decoded.feed_message(&head, Bytes::clone(&frame.body)).is_ok();
        read | decoded.range_chunk(&head).is_ok()
    });
    assert!(
        taken > 0 && taken < knob("PELTON_MUTATIONS", mutations),
        "mutations reach behind the first checks"
    );
}

#[test]
fn parcels_that_are_garbage_are_refused_or_stay_within_their_size() {
    let mutations = 100_000;
    let bodies: Vec<Parcel> = Codec::BUILT_IN
        .iter()
        .map(|&codec| Parcel::of_blob(codec, &b"pelton wheel ".repeat(100)).unwrap())
        .collect();
    let opened = for_each_mutation(mutations, |random| {
        let parcel = &bodies[random.below(bodies.len() as u64) as usize];
        let mut body = parcel.body().to_vec();
        mutate(&mut body, random);
        let inflated = match random.below(4) {
            0 => random.next() >> random.below(64),
            1 => body.len() as u64,
            _ => parcel.inflated_bytes(),
        };
        let garbage = Parcel::packed(parcel.codec(), 1 + random.below(2) as u32, inflated, body);
        match garbage.open(&small_limits()) {
            Ok(open) => {
                assert_eq!(open.body().len() as u64, inflated);
                assert_eq!(open.blobs().count(), garbage.blob_count() as usize);
                true
            }
            Err(_) => false,
        }
    });
    assert!(
        opened > 0 && opened < knob("PELTON_MUTATIONS", mutations),
        "mutations reach behind the first checks"
    );
}

//! The edges of both state machines, one by one. Long random runs are in `tests/feed_model.rs`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use pelton_region_format::crc32c;
use prost::Message;

use super::*;
use crate::limits::{Limit, LimitExceeded, Limits};
use crate::messages::*;
use crate::parcel::{Codec, PARCEL_COST_BYTES, Parcel};

const KEY: &str = "shop/orders@1719878400000#3";

fn request() -> SliceRequest {
    SliceRequest { key: KEY.to_owned(), fingerprint: vec![7; 32], ..SliceRequest::default() }
}

fn accept() -> Accept {
    Accept { key: KEY.to_owned(), fingerprint: vec![7; 32], ..Accept::default() }
}

fn welcome() -> Welcome {
    Welcome { version: 1, codecs: vec![1], ..Welcome::default() }
}

/// A receiver with its commands, at one moment.
struct Receiving {
    machine: Receiver,
    now: Instant,
    commands: Vec<ReceiverCommand>,
}

impl Receiving {
    fn greeting(profile: Profile) -> Receiving {
        let (now, mut commands) = (Instant::now(), Vec::new());
        let machine = Receiver::pull(profile, request(), Timing::default(), now, &mut commands).unwrap();
        Receiving { machine, now, commands }
    }

    /// With so much credit given, ready for parcels.
    fn with_credit(profile: Profile, credit: u64) -> Receiving {
        let mut receiving = Receiving::greeting(profile);
        receiving.hear(welcome());
        receiving.on(ReceiverEvent::Granted { bytes: credit });
        receiving.hear(accept());
        receiving.commands.clear();
        receiving
    }

    fn on(&mut self, event: ReceiverEvent) {
        self.machine.on(event, self.now, &mut self.commands);
    }

    fn hear(&mut self, kind: impl Into<Kind>) {
        self.on(ReceiverEvent::Message(message(kind)));
    }

    fn sent(&self) -> Vec<Kind> {
        let sent = |command: &ReceiverCommand| match command {
            ReceiverCommand::Send(FeedMessage { kind }) => kind.clone(),
            _ => None,
        };
        self.commands.iter().filter_map(sent).collect()
    }

    /// How it ended, if it has.
    fn error(&self) -> Option<StreamError> {
        match self.commands.last() {
            Some(ReceiverCommand::End { result, .. }) => result.clone().err(),
            _ => None,
        }
    }

    fn handed_over(&self) -> usize {
        self.commands.iter().filter(|command| matches!(command, ReceiverCommand::HandOver { .. })).count()
    }
}

/// A sender with its commands, at one moment.
struct Sending {
    machine: Sender,
    now: Instant,
    commands: Vec<SenderCommand>,
}

impl Sending {
    fn waiting(profile: Profile) -> Sending {
        let now = Instant::now();
        let hello = message(hello::hello(&Profile::default(), None));
        let Answer { terms, .. } = answer(hello, &profile, || None).unwrap();
        Sending { machine: Sender::pulled(profile, terms, Timing::default(), now), now, commands: Vec::new() }
    }

    fn open(profile: Profile) -> Sending {
        let mut sending = Sending::waiting(profile);
        sending.hear(request());
        sending.on(opened(false, 0));
        sending.commands.clear();
        sending
    }

    fn on(&mut self, event: SenderEvent) {
        self.machine.on(event, self.now, &mut self.commands);
    }

    fn hear(&mut self, kind: impl Into<Kind>) {
        self.on(SenderEvent::Message(message(kind)));
    }

    fn data(&mut self) -> Option<Kind> {
        self.machine.next_data(self.now)?.kind
    }

    fn error(&self) -> Option<StreamError> {
        match self.commands.last() {
            Some(SenderCommand::End(result)) => result.clone().err(),
            _ => None,
        }
    }
}

fn opened(replayable: bool, token_bytes: usize) -> SenderEvent {
    SenderEvent::Opened {
        replayable,
        resume_token: vec![1; token_bytes],
        items_expected: 0,
        bytes_expected: 0,
    }
}

/// A parcel of one blob, whose body has this many bytes.
fn parcel(sequence: u64, body_bytes: usize) -> crate::messages::Parcel {
    let parcel = Parcel::of_blob(Codec::None, &vec![sequence as u8; body_bytes - 4]).unwrap();
    crate::messages::Parcel {
        sequence,
        blob_count: 1,
        inflated_bytes: parcel.inflated_bytes(),
        codec: 0,
        crc32c: parcel.crc32c(),
        bytes: parcel.into_body(),
    }
}

fn frame(sequence: u64, body: &[u8], from: usize, to: usize) -> BlobFrame {
    let bytes = Bytes::copy_from_slice(&body[from..to]);
    BlobFrame {
        sequence,
        packed_bytes: body.len() as u64,
        inflated_bytes: body.len() as u64,
        codec: 0,
        offset: from as u64,
        crc32c: crc32c(&bytes),
        bytes,
    }
}

fn with_limit(limit: Limit, max: u64) -> Profile {
    let mut limits = Limits::default();
    limits.set(limit, max);
    Profile { limits, ..Profile::default() }
}

fn exceeded(error: Option<StreamError>) -> Option<LimitExceeded> {
    match error {
        Some(StreamError::Limit(error)) => Some(error),
        None => None,
        Some(other) => panic!("{other}"),
    }
}

/// Whoever reads a lane sums what comes. Goal: the machine goes by that sum, and looks at no byte again.
#[test]
fn a_frame_is_taken_or_refused_by_the_sum_that_was_found() {
    let sent = parcel(0, 40);
    let declared = sent.crc32c;
    let sent = message(sent);
    let mut receiving = Receiving::with_credit(Profile::default(), 1 << 20);
    receiving.on(ReceiverEvent::Frame { message: sent.clone(), found: declared });
    assert_eq!((receiving.handed_over(), receiving.error()), (1, None));

    let mut receiving = Receiving::with_credit(Profile::default(), 1 << 20);
    receiving.on(ReceiverEvent::Frame { message: sent, found: declared ^ 1 });
    assert_eq!(receiving.handed_over(), 0);
    let damaged = StreamError::Damaged { sequence: 0, offset: 0, found: declared ^ 1, expected: declared };
    assert_eq!(receiving.error(), Some(damaged));
}

#[test]
fn the_documented_pull_of_two_blobs_goes_as_told() {
    let mut receiving = Receiving::greeting(Profile::default());
    assert!(matches!(receiving.sent()[..], [Kind::Hello(_)]));
    receiving.hear(welcome());
    receiving.on(ReceiverEvent::Granted { bytes: 16 << 20 });
    receiving.hear(accept());
    assert!(matches!(
        receiving.sent()[1..],
        [Kind::Request(_), Kind::Credit(Credit { bytes: 16_777_216, .. })]
    ));
    let bytes = Bytes::from_static(b"\x05\0\0\0hello\0\0\0\0");
    let two = crate::messages::Parcel {
        blob_count: 2,
        inflated_bytes: 13,
        crc32c: 0x078C_C537,
        bytes,
        ..parcel(0, 13)
    };
    receiving.hear(two);
    receiving.hear(Complete { parcels: 1, items: 2, bytes: 13, expected: 2, potential: 2, rejected: 0 });
    receiving.commands.clear();
    receiving.on(ReceiverEvent::Queued { parcels: 1 });
    assert!(matches!(receiving.commands[..], [ReceiverCommand::Close { .. }]), "{:?}", receiving.commands);
    receiving.on(ReceiverEvent::Closed);
    assert!(matches!(receiving.sent()[..], [Kind::Done(Done { parcels: 1, items: 2, bytes: 13 })]));
    let end = receiving.commands.last();
    assert!(
        matches!(end, Some(ReceiverCommand::End { result: Ok(_), credit_unused: 16_776_947 })),
        "what docs/nexus.md says is left: {end:?}"
    );
    assert_eq!(receiving.machine.next_wake(), None);
    receiving.commands.clear();
    receiving.hear(Complete::default());
    assert!(receiving.commands.is_empty(), "after the end nothing is decided");
}

#[test]
fn a_parcel_may_use_its_credit_to_the_last_byte_and_not_one_more() {
    let cost = PARCEL_COST_BYTES + 100;
    let mut receiving = Receiving::with_credit(Profile::default(), cost);
    receiving.hear(parcel(0, 100));
    assert_eq!((receiving.handed_over(), receiving.error()), (1, None));

    let mut receiving = Receiving::with_credit(Profile::default(), cost - 1);
    receiving.hear(parcel(0, 100));
    assert_eq!(receiving.error(), Some(StreamError::Credit { sequence: 0, cost, credit: cost - 1 }));
    assert_eq!(receiving.handed_over(), 0);

    let mut sending = Sending::open(Profile::default());
    sending.on(SenderEvent::Parcel(Parcel::of_blob(Codec::None, &[1; 96]).unwrap()));
    sending.hear(Credit { bytes: cost - 1, parcels: 0 });
    assert!(matches!(sending.data(), Some(Kind::Want(Want { bytes, sequence: 0 })) if bytes == cost));
    assert_eq!(sending.data(), None, "it is said once");
    sending.hear(Credit { bytes: 1, parcels: 0 });
    assert!(matches!(sending.data(), Some(Kind::Parcel(_))));
}

#[test]
fn duplicates_gaps_and_other_orders_are_told_apart() {
    let mut twice = Receiving::with_credit(Profile::default(), 1 << 20);
    twice.hear(parcel(0, 10));
    twice.hear(parcel(0, 10));
    assert!(twice.error().unwrap().to_string().contains("duplicate"));
    let mut gap = Receiving::with_credit(Profile::default(), 1 << 20);
    gap.hear(parcel(1, 10));
    let error = gap.error().unwrap();
    assert_eq!(error, StreamError::Sequence { found: 1, expected: 0 });
    assert!(error.to_string().contains("missing") && error.is_resumable());

    let body = Parcel::of_blob(Codec::None, &[5; 2996]).unwrap().into_body();
    let broken: [(&str, &[Kind]); 7] = [
        ("a frame twice", &[frame(0, &body, 0, 1000).into(), frame(0, &body, 0, 1000).into()]),
        ("a frame missing", &[frame(0, &body, 0, 1000).into(), frame(0, &body, 2000, 3000).into()]),
        ("the first missing", &[frame(0, &body, 1000, 2000).into()]),
        ("a parcel between", &[frame(0, &body, 0, 1000).into(), parcel(0, 10).into()]),
        ("another blob between", &[frame(0, &body, 0, 1000).into(), frame(1, &body, 0, 1000).into()]),
        ("an empty one", &[frame(0, &body, 0, 0).into()]),
        (
            "another size",
            &[
                frame(0, &body, 0, 1000).into(),
                BlobFrame { packed_bytes: 3001, inflated_bytes: 3001, ..frame(0, &body, 1000, 2000) }.into(),
            ],
        ),
    ];
    for (what, kinds) in broken {
        let mut receiving = Receiving::with_credit(Profile::default(), 1 << 20);
        kinds.iter().for_each(|kind| receiving.hear(kind.clone()));
        assert!(receiving.error().is_some(), "{what}");
        assert_eq!(receiving.handed_over(), 0, "{what}");
        let ReceiverCommand::End { credit_unused, .. } = receiving.commands.last().unwrap() else {
            unreachable!()
        };
        assert_eq!(*credit_unused, 1 << 20, "{what}: no credit is lost");
    }
    let mut receiving = Receiving::with_credit(Profile::default(), 1 << 20);
    for from in [0, 1000, 2000] {
        receiving.hear(frame(0, &body, from, from + 1000));
    }
    assert_eq!((receiving.handed_over(), receiving.error()), (1, None));
    let mut complete_too_early = Receiving::with_credit(Profile::default(), 1 << 20);
    complete_too_early.hear(frame(0, &body, 0, 1000));
    complete_too_early.hear(Complete { parcels: 1, items: 1, bytes: 3000, ..Complete::default() });
    assert!(matches!(complete_too_early.error(), Some(StreamError::Frame { .. })));
}

/// With a lane, Want comes by gRPC and what it asked for by the lane, which may be faster.
#[test]
fn a_want_that_its_parcel_has_overtaken_does_no_harm() {
    let mut receiving = Receiving::with_credit(Profile::default(), 1 << 20);
    receiving.hear(parcel(0, 10));
    receiving.hear(Complete { parcels: 1, items: 1, bytes: 10, ..Complete::default() });
    receiving.hear(Want { bytes: 1 << 21, sequence: 0 });
    assert_eq!(receiving.error(), None);
    receiving.on(ReceiverEvent::Queued { parcels: 1 });
    receiving.hear(Want { bytes: 1 << 21, sequence: 0 });
    receiving.on(ReceiverEvent::Closed);
    assert!(matches!(receiving.commands.last(), Some(ReceiverCommand::End { result: Ok(_), .. })));
    let asked = receiving.commands.iter().any(|command| matches!(command, ReceiverCommand::Want { .. }));
    assert!(!asked, "memory that nobody needs is not taken");
}

/// The other way round: the parcels before it are still on the lane, and their credit is not spent yet.
#[test]
fn a_want_that_overtakes_the_parcels_before_it_is_kept_for_its_turn() {
    let asked = |receiving: &Receiving| {
        let bytes = |command: &ReceiverCommand| match command {
            ReceiverCommand::Want { bytes } => Some(*bytes),
            _ => None,
        };
        receiving.commands.iter().filter_map(bytes).collect::<Vec<u64>>()
    };
    // Two parcels cost 266 each and leave nothing of the credit for the third.
    let mut receiving = Receiving::with_credit(Profile::default(), 2 * 266);
    receiving.hear(Want { bytes: 300, sequence: 2 });
    receiving.hear(parcel(0, 10));
    assert!(asked(&receiving).is_empty(), "as it seems, there is enough");
    receiving.hear(parcel(1, 10));
    assert_eq!(asked(&receiving), [300]);
    receiving.on(ReceiverEvent::Granted { bytes: 300 });
    receiving.hear(parcel(2, 10));
    assert_eq!((asked(&receiving).len(), receiving.handed_over(), receiving.error()), (1, 3, None));
}

/// A mismatch is an error on both sides, in every single count.
#[test]
fn counts_that_do_not_agree_end_the_stream() {
    let right = Complete { parcels: 1, items: 1, bytes: 10, ..Complete::default() };
    let wrong = [
        Complete { parcels: 2, ..right },
        Complete { parcels: 0, ..right },
        Complete { items: 0, ..right },
        Complete { items: 2, ..right },
        Complete { bytes: 9, ..right },
        Complete { bytes: 11, ..right },
        Complete { potential: 3, rejected: 4, ..right },
    ];
    for complete in wrong {
        let mut receiving = Receiving::with_credit(Profile::default(), 1 << 20);
        receiving.hear(parcel(0, 10));
        receiving.hear(complete);
        assert_eq!(receiving.error().unwrap().reason(), Reason::Counts, "{complete:?}");
        assert!(matches!(receiving.sent()[..], [Kind::Abort(_)]), "the sender is told");
    }
    let mut receiving = Receiving::with_credit(Profile::default(), 1 << 20);
    receiving.hear(parcel(0, 10));
    receiving.hear(right);
    assert_eq!(receiving.error(), None);

    let done = Done { parcels: 1, items: 1, bytes: 10 };
    for (done, whole) in [(done, true), (Done { bytes: 0, ..done }, false), (Done::default(), false)] {
        let mut sending = Sending::open(Profile::default());
        sending.hear(Credit { bytes: 1 << 20, parcels: 0 });
        sending.on(SenderEvent::Parcel(Parcel::of_blob(Codec::None, &[1; 6]).unwrap()));
        sending.on(SenderEvent::Complete(Tally::default()));
        assert!(matches!(sending.data(), Some(Kind::Parcel(_))));
        assert!(matches!(sending.data(), Some(Kind::Complete(_))));
        sending.hear(done);
        assert_eq!(sending.error().is_none(), whole, "{done:?}");
        assert!(matches!(sending.commands.last(), Some(SenderCommand::End(_))));
    }
}

/// Data that waits for credit holds up neither a heartbeat nor an abort.
#[test]
fn nothing_waits_behind_data() {
    let mut sending = Sending::open(Profile::default());
    sending.on(SenderEvent::Parcel(Parcel::of_blob(Codec::None, &[1; 1000]).unwrap()));
    assert!(matches!(sending.data(), Some(Kind::Want(_))));
    sending.now += Timing::default().heartbeat_every;
    sending.on(SenderEvent::Tick);
    let [SenderCommand::Send(FeedMessage { kind: Some(Kind::Heartbeat(_)) })] = &sending.commands[..] else {
        panic!("{:?}", sending.commands);
    };
    sending.on(SenderEvent::Abort { reason: Reason::Source, text: "gone".to_owned() });
    assert!(matches!(&sending.commands[1], SenderCommand::Send(FeedMessage { kind: Some(Kind::Abort(_)) })));
    assert_eq!(sending.data(), None);
}

#[test]
fn silence_and_the_deadline_end_a_stream_at_their_edges() {
    let timing = Timing::default();
    let mut receiving = Receiving::with_credit(Profile::default(), 1000);
    let start = receiving.now;
    receiving.now = start + timing.silence_max - Duration::from_nanos(1);
    receiving.on(ReceiverEvent::Tick);
    assert_eq!(receiving.error(), None);
    receiving.now = start + timing.silence_max;
    receiving.on(ReceiverEvent::Tick);
    assert_eq!(receiving.error(), Some(StreamError::Silent(timing.silence_max)));

    let mut commands = Vec::new();
    let deadline = start + Duration::from_secs(7);
    let timing = Timing { deadline: Some(deadline), ..timing };
    let mut receiver = Receiver::pull(Profile::default(), request(), timing, start, &mut commands).unwrap();
    receiver.on(ReceiverEvent::Tick, deadline - Duration::from_nanos(1), &mut commands);
    assert_eq!(receiver.next_wake(), Some(deadline), "a heartbeat was just sent");
    receiver.on(ReceiverEvent::Tick, deadline, &mut commands);
    let Some(ReceiverCommand::End { result, .. }) = commands.last() else { panic!("{commands:?}") };
    assert_eq!(*result, Err(StreamError::Deadline));
}

#[test]
fn only_a_replayable_stream_resumes_and_only_after_the_wires_fault() {
    for (replayable, damaged, resumes) in [(true, true, true), (false, true, false), (true, false, false)] {
        let mut receiving = Receiving::greeting(Profile::default());
        receiving.hear(welcome());
        receiving.on(ReceiverEvent::Granted { bytes: 1 << 20 });
        receiving.hear(Accept { replayable, resume_token: b"t".to_vec(), ..accept() });
        receiving.hear(parcel(0, 10));
        receiving.hear(parcel(1, 20));
        assert_eq!(receiving.machine.resume(1), None, "not while it lives");
        if damaged {
            receiving.hear(crate::messages::Parcel { crc32c: 1, ..parcel(2, 30) });
        } else {
            receiving.on(ReceiverEvent::Abort { reason: Reason::Cancelled, text: String::new() });
        }
        let resume = Resume { token: b"t".to_vec(), parcels: 1, items: 1, bytes: 10 };
        assert_eq!(receiving.machine.resume(1), resumes.then_some(resume));
    }
    let mut sending = Sending::waiting(Profile::default());
    let resume = Some(Resume { parcels: 4, ..Resume::default() });
    sending.hear(SliceRequest { resume, ..request() });
    sending.on(opened(false, 0));
    assert_eq!(sending.error(), Some(StreamError::NotReplayable { parcels: 4 }));
}

/// A program of a version to come: other versions, unknown fields, unknown codecs, unknown messages.
#[test]
fn the_next_version_and_this_one_work_together_or_part_clearly() {
    let next = Profile { versions: vec![1, 2], ..Profile::default() };
    let mut hello = hello::hello(&next, None);
    hello.codecs.insert(0, 77);
    let mut bytes = message(hello).encode_to_vec();
    // Fields 90 and 91 that nobody knows: a number, and bytes.
    bytes.extend_from_slice(&[0xD0, 0x05, 0x2A, 0xDA, 0x05, 0x02, b'h', b'i']);
    let hello = FeedMessage::decode(&bytes[..]).unwrap();
    let Answer { terms, welcome, asked } =
        answer(hello, &Profile::default(), || panic!("no lane was asked for")).unwrap();
    assert_eq!((terms.version, asked), (1, Asked::Pull));
    assert_eq!(terms.codecs, Profile::default().codecs, "the unknown one is ignored");

    let mut receiving = Receiving::greeting(next);
    receiving.on(ReceiverEvent::Message(welcome));
    let before = receiving.commands.len();
    let unknown_kind = FeedMessage::decode(&[0xDA, 0x05, 0x02, b'h', b'i'][..]).unwrap();
    receiving.on(ReceiverEvent::Message(unknown_kind));
    assert_eq!((receiving.commands.len(), receiving.error()), (before, None), "a sign of life, no more");

    let only_next = Profile { versions: vec![2, 3], ..Profile::default() };
    let hello = message(hello::hello(&only_next, None));
    let error = answer(hello, &Profile::default(), || None).unwrap_err();
    assert_eq!(error.to_string(), "versions 2, 3 were offered, 1 is spoken here");
    let mut parting = Receiving::greeting(only_next);
    parting.hear(error.to_abort(&Limits::default()).unwrap());
    assert_eq!(parting.error().unwrap().reason(), Reason::Version);
    assert!(parting.error().unwrap().to_string().contains("versions 2, 3 were offered"));
    // A faulty acceptor that chooses what was not offered.
    let mut receiving = Receiving::greeting(Profile::default());
    receiving.hear(Welcome { version: 2, ..Welcome::default() });
    assert!(matches!(receiving.error(), Some(StreamError::Version { .. })));
}

#[test]
fn a_hello_without_a_role_or_with_a_wrong_one_is_refused() {
    let offer = Offer { key: KEY.to_owned(), fingerprint: vec![7; 32] };
    let hello = |role: Role, offer: Option<Offer>| {
        let hello = Hello { role: role.into(), offer, ..hello::hello(&Profile::default(), None) };
        answer(message(hello), &Profile::default(), || None)
    };
    assert_eq!(hello(Role::Sender, Some(offer.clone())).unwrap().asked, Asked::Push(offer.clone()));
    let wrong = [
        hello(Role::Unspecified, None),
        hello(Role::Receiver, Some(offer.clone())),
        hello(Role::Sender, None),
        hello(Role::Sender, Some(Offer { key: "no key".to_owned(), ..offer.clone() })),
        hello(Role::Sender, Some(Offer { fingerprint: vec![7; 31], ..offer })),
        answer(message(Heartbeat {}), &Profile::default(), || None),
        answer(FeedMessage { kind: None }, &Profile::default(), || None),
    ];
    for refusal in wrong {
        assert!(refusal.unwrap_err().to_abort(&Limits::default()).is_some());
    }
}

#[test]
fn a_peer_that_speaks_of_another_slice_is_refused() {
    let mut receiving = Receiving::greeting(Profile::default());
    receiving.hear(welcome());
    receiving.hear(Accept { fingerprint: vec![8; 32], ..accept() });
    assert!(matches!(receiving.error(), Some(StreamError::OtherSlice { .. })));
    for request in [
        SliceRequest { key: "shop/orders".to_owned(), ..request() },
        SliceRequest { fingerprint: vec![], ..request() },
    ] {
        let mut sending = Sending::waiting(Profile::default());
        sending.hear(request);
        assert_eq!(sending.error().unwrap().reason(), Reason::Invalid);
    }
}

#[test]
fn a_message_in_the_wrong_state_is_an_error_that_names_both() {
    let mut receiving = Receiving::greeting(Profile::default());
    receiving.hear(parcel(0, 10));
    assert_eq!(receiving.error().unwrap().to_string(), "Parcel came while Welcome is awaited");
    let mut receiving = Receiving::with_credit(Profile::default(), 1000);
    receiving.hear(Done::default());
    assert_eq!(receiving.error().unwrap().to_string(), "Done came while parcels are received");
    let mut sending = Sending::open(Profile::default());
    sending.hear(Done::default());
    assert_eq!(sending.error().unwrap().to_string(), "Done came while parcels are sent");
    let mut sending = Sending::open(Profile::default());
    sending.hear(Credit { bytes: 0, parcels: 1 });
    assert!(matches!(sending.error(), Some(StreamError::Sequence { .. })), "what was never sent is not safe");
}

#[test]
fn a_codec_that_was_not_agreed_on_is_refused_on_both_sides() {
    let mut receiving = Receiving::greeting(Profile::default());
    receiving.hear(Welcome { version: 1, ..Welcome::default() });
    receiving.on(ReceiverEvent::Granted { bytes: 1 << 20 });
    receiving.hear(accept());
    receiving.hear(crate::messages::Parcel { codec: 1, inflated_bytes: 900, ..parcel(0, 10) });
    assert_eq!(receiving.error(), Some(StreamError::Codec { sequence: 0, found: 1 }));
    let mut sending = Sending::open(Profile { codecs: vec![], ..Profile::default() });
    sending.on(SenderEvent::Parcel(Parcel::of_blob(Codec::Lz4, &[1; 5000]).unwrap()));
    assert!(matches!(sending.error(), Some(StreamError::Codec { .. })));
}

/// Each limit that this crate keeps: at its edge all is well, one above it is named.
#[test]
fn each_limit_of_a_stream_holds_at_its_edge() {
    type Try = fn(Profile) -> Option<StreamError>;
    let hello_bytes = hello::hello(&Profile::default(), None).encoded_len() as u64;
    let request_bytes = request().encoded_len() as u64;
    let cases: [(Limit, u64, Try); 9] = [
        (Limit::ParcelBytes, 5000, |profile| {
            let mut receiving = Receiving::with_credit(profile, 1 << 20);
            receiving.hear(parcel(0, 5000));
            receiving.error()
        }),
        (Limit::ParcelBytes, 5000, |profile| {
            let mut sending = Sending::open(profile);
            sending.on(SenderEvent::Parcel(Parcel::of_blob(Codec::None, &[1; 4996]).unwrap()));
            sending.error()
        }),
        (Limit::MessageBytes, 5000, |profile| {
            let mut receiving = Receiving::with_credit(profile, 1 << 20);
            receiving.hear(parcel(0, 5000));
            receiving.error()
        }),
        (Limit::FrameBytes, 1000, |profile| {
            let body = Parcel::of_blob(Codec::None, &[5; 2996]).unwrap().into_body();
            let mut receiving = Receiving::with_credit(profile, 1 << 20);
            receiving.hear(frame(0, &body, 0, 1000));
            receiving.error()
        }),
        (Limit::WantBytes, 7000, |profile| {
            let mut receiving = Receiving::with_credit(profile, 1);
            receiving.hear(Want { bytes: 7000, sequence: 0 });
            receiving.error()
        }),
        (Limit::HelloBytes, hello_bytes, |profile| {
            let hello = message(hello::hello(&Profile::default(), None));
            answer(hello, &profile, || None).err()
        }),
        (Limit::RequestBytes, request_bytes, |profile| {
            let mut sending = Sending::waiting(profile);
            sending.hear(request());
            sending.error()
        }),
        (Limit::Loci, 3, |profile| {
            let mut sending = Sending::waiting(profile);
            sending.hear(SliceRequest { loci: vec![Locus::default(); 3], ..request() });
            sending.error()
        }),
        (Limit::ResumeTokenBytes, 64, |profile| {
            let mut receiving = Receiving::greeting(profile);
            receiving.hear(welcome());
            receiving.hear(Accept { resume_token: vec![1; 64], ..accept() });
            receiving.error()
        }),
    ];
    for (limit, found, attempt) in cases {
        assert_eq!(exceeded(attempt(with_limit(limit, found))), None, "{} at its edge", limit.name());
        let error = attempt(with_limit(limit, found - 1)).unwrap();
        assert_eq!(error.reason(), Reason::ResourceExhausted);
        assert_eq!(exceeded(Some(error)), Some(LimitExceeded { limit, found, max: found - 1 }));
    }
    // A Want is bounded by the parcels that both take, too.
    for (bytes, passes) in [(2 * 5000 + 256, true), (2 * 5000 + 257, false)] {
        let mut receiving = Receiving::with_credit(with_limit(Limit::ParcelBytes, 5000), 1);
        receiving.hear(Want { bytes, sequence: 0 });
        let exceeded = exceeded(receiving.error());
        let expected = LimitExceeded { limit: Limit::WantBytes, found: bytes, max: 2 * 5000 + 256 };
        assert_eq!(exceeded, (!passes).then_some(expected));
    }
    // The peer is told which limit.
    let mut receiving = Receiving::with_credit(with_limit(Limit::WantBytes, 1), 1);
    receiving.hear(Want { bytes: 2, sequence: 0 });
    let [Kind::Abort(abort)] = &receiving.sent()[..] else { panic!("{:?}", receiving.commands) };
    assert_eq!((abort.reason(), abort.limit.as_str()), (Reason::ResourceExhausted, "want_bytes_max"));
}

/// What a peer says stands in logs: it writes no lines of its own there.
#[test]
fn a_peers_words_stay_in_their_line() {
    let mut receiving = Receiving::with_credit(Profile::default(), 1);
    let line = "x\nINFO pelton::audit: erase".to_owned();
    receiving.hear(Abort { reason: Reason::Source.into(), text: line.clone(), limit: line.clone() });
    let text = receiving.error().unwrap().to_string();
    assert!(text.contains(r"x\nINFO pelton::audit: erase") && !text.contains('\n'), "{text}");
    let hello = Hello { software: line, ..hello::hello(&Profile::default(), None) };
    let terms = answer(message(hello), &Profile::default(), || None).unwrap().terms;
    assert_eq!(terms.peer_software, r"x\nINFO pelton::audit: erase");
}

#[test]
fn a_sender_takes_parcels_until_its_queue_is_full() {
    let mut sending = Sending::open(with_limit(Limit::SenderQueueBytes, 2000));
    let kilobyte = Parcel::of_blob(Codec::None, &[1; 996]).unwrap();
    for _ in 0..2 {
        assert!(sending.machine.has_room());
        sending.on(SenderEvent::Parcel(kilobyte.clone()));
    }
    assert!(!sending.machine.has_room(), "it is full");
    sending.hear(Credit { bytes: kilobyte.cost(), parcels: 0 });
    assert!(matches!(sending.data(), Some(Kind::Parcel(_))));
    assert!(sending.machine.has_room());
}

#[test]
fn a_long_text_is_cut_between_characters() {
    let mut sending = Sending::open(with_limit(Limit::TextBytes, 5));
    sending.on(SenderEvent::Abort { reason: Reason::Source, text: "äöüß".to_owned() });
    let SenderCommand::Send(FeedMessage { kind: Some(Kind::Abort(abort)) }) = &sending.commands[0] else {
        panic!("{:?}", sending.commands);
    };
    assert_eq!(abort.text, "äö");
    let mut receiving = Receiving::greeting(with_limit(Limit::TextBytes, 5));
    receiving.hear(Abort { reason: 99, text: "äöüß".to_owned(), limit: String::new() });
    let Some(StreamError::Aborted { by: Side::Peer, reason: Reason::Internal, text, .. }) = receiving.error()
    else {
        panic!("{:?}", receiving.commands);
    };
    assert_eq!(text, "äö");
}

/// The packer's largest target just fits what most gRPC libraries take, with the longest fields around it.
#[test]
fn the_largest_parcel_of_many_blobs_is_a_message_within_4_mib() {
    let body = vec![0; crate::PackerOptions::TARGET_BYTES_MAX];
    let parcel = Parcel::packed(Codec::None, body.len() as u32 / 4, body.len() as u64, body);
    let mut sending = Sending::open(Profile::default());
    sending.hear(Credit { bytes: parcel.cost(), parcels: 0 });
    sending.on(SenderEvent::Parcel(parcel));
    let Some(Kind::Parcel(parcel)) = sending.data() else { panic!("{:?}", sending.error()) };
    let longest =
        crate::messages::Parcel { sequence: u64::MAX, blob_count: u32::MAX, codec: i32::MAX, ..parcel };
    assert!(message(longest).encoded_len() as u64 <= Limits::default().message_bytes_max);
}

/// A parcel that is too large for a message goes in frames, each within its limit, and arrives as it was.
#[test]
fn a_large_blob_goes_in_frames_of_at_most_a_mebibyte() {
    let large = Parcel::of_blob(Codec::None, &vec![9; 5 << 20]).unwrap();
    let mut sending = Sending::open(Profile::default());
    let mut receiving = Receiving::with_credit(Profile::default(), large.cost());
    sending.hear(Credit { bytes: large.cost(), parcels: 0 });
    sending.on(SenderEvent::Parcel(large.clone()));
    let mut frames = 0;
    while let Some(kind) = sending.data() {
        let Kind::BlobFrame(frame) = &kind else { panic!("{}", kind_name(&kind)) };
        assert!(frame.bytes.len() <= 1 << 20);
        frames += 1;
        receiving.hear(kind);
    }
    assert_eq!(frames, 6, "5 MiB and a length");
    let Some(ReceiverCommand::HandOver { sequence: 0, parcel }) = receiving.commands.last() else {
        panic!("{:?}", receiving.error());
    };
    assert_eq!(*parcel, large);
    let many_blobs = Parcel::packed(Codec::None, 2, (4 << 20) + 8, vec![0; (4 << 20) + 8]);
    sending.on(SenderEvent::Parcel(many_blobs));
    assert_eq!(exceeded(sending.error()).unwrap().limit, Limit::MessageBytes);
}

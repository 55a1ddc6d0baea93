//! Both ends of a feed joined by a wire that misbehaves, in a time of its own.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pelton_nexus_proto::feed::*;
use pelton_nexus_proto::messages::{FeedMessage, Offer, Reason, Resume, SliceRequest};
use pelton_nexus_proto::{Codec, Limits, PackerOptions, Parcel, ParcelPacker};
use prost::Message;

/// A small generator with a seed, so that every run is the same (SplitMix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True so many times in a thousand.
    pub fn per_mille(&mut self, rate: u64) -> bool {
        self.below(1000) < rate
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Whether the sender opens the stream.
    pub push: bool,
    pub blobs: u64,
    /// Blobs are shorter than this.
    pub blob_bytes_max: u64,
    pub codec: Codec,
    pub replayable: bool,
    /// What the receiver grants at first, and again as it consumes.
    pub window: u64,
    /// Misdeeds of the wire, each so many times in a thousand messages.
    pub lost: u64,
    pub doubled: u64,
    pub turned: u64,
    pub damaged: u64,
    /// The connection breaks at this message.
    pub cut_at: Option<u64>,
    /// Then only one of the two is told at once.
    pub cut_is_one_sided: bool,
    pub source: SourceManner,
    pub receiver: ReceiverManner,
}

impl Plan {
    /// Nothing goes wrong.
    pub fn calm(seed: u64) -> Plan {
        Plan {
            seed,
            push: false,
            blobs: 100,
            blob_bytes_max: 2000,
            codec: Codec::Lz4,
            replayable: true,
            window: 64 << 10,
            lost: 0,
            doubled: 0,
            turned: 0,
            damaged: 0,
            cut_at: None,
            cut_is_one_sided: false,
            source: SourceManner::Good,
            receiver: ReceiverManner::Good,
        }
    }

    pub fn is_calm(&self) -> bool {
        self.lost + self.doubled + self.turned + self.damaged == 0
            && self.cut_at.is_none()
            && self.source == SourceManner::Good
            && self.receiver == ReceiverManner::Good
    }

    pub fn blobs(&self) -> Vec<Vec<u8>> {
        let mut random = Random(self.seed);
        (0..self.blobs)
            .map(|_| {
                let len = random.below(self.blob_bytes_max) as usize;
                // Half of them can be deflated.
                if random.below(2) == 0 { vec![random.next() as u8; len] } else { random.bytes(len) }
            })
            .collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceManner {
    Good,
    /// Never says that it is open.
    NeverOpens,
    /// Stops in the middle and says nothing.
    Hangs,
    /// Fails in the middle.
    Fails,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiverManner {
    Good,
    /// Gives no credit any more after the first.
    Starves,
    /// Does not want it any more in the middle.
    Cancels,
    /// Takes nothing more than its window.
    IsSmall,
}

/// Limits so small that a few kilobytes reach them.
pub fn small_limits() -> Limits {
    let mut limits = Limits::default();
    limits.frame_bytes_max = 1000;
    limits.sender_queue_bytes_max = 8 << 10;
    limits.parcel_bytes_max = 64 << 10;
    limits
}

pub fn profile() -> Profile {
    Profile { limits: small_limits(), ..Profile::default() }
}

pub const KEY: &str = "shop/orders@1719878400000#3";

pub fn request() -> SliceRequest {
    SliceRequest { key: KEY.to_owned(), fingerprint: vec![7; 32], ..SliceRequest::default() }
}

pub fn offer() -> Offer {
    Offer { key: KEY.to_owned(), fingerprint: vec![7; 32] }
}

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    pub receiver: Result<Totals, StreamError>,
    pub sender: Result<Totals, StreamError>,
    /// What the receiver has safe.
    pub blobs: Vec<Vec<u8>>,
    pub resume: Option<Resume>,
    pub steps: u64,
    pub took: Duration,
    pub messages: u64,
}

enum Delivery {
    Bytes(Vec<u8>),
    Lost,
}

type Wire = VecDeque<(Instant, Delivery)>;

/// What was handed over and is not consumed yet.
struct Held {
    until: Instant,
    cost: u64,
    blobs: Vec<Vec<u8>>,
}

/// Both ends, their drivers and the wire between them.
pub struct World {
    plan: Plan,
    random: Random,
    start: Instant,
    now: Instant,
    receiver: Option<Receiver>,
    sender: Option<Sender>,
    to_receiver: Wire,
    to_sender: Wire,
    messages: u64,
    is_cut: bool,
    // The source.
    parcels: Vec<Parcel>,
    next_parcel: usize,
    opens_at: Option<Instant>,
    has_completed: bool,
    // The receiving driver and its budget: `pool` is free, `lent` is the sender's credit, `held` is in parcels.
    resume: Option<Resume>,
    pool: u64,
    lent: u64,
    held: VecDeque<Held>,
    queued: u64,
    blobs: Vec<Vec<u8>>,
    closes_at: Option<Instant>,
    receiver_end: Option<Result<Totals, StreamError>>,
    sender_end: Option<Result<Totals, StreamError>>,
}

const STEPS_MAX: u64 = 200_000;
const HOUR: Duration = Duration::from_secs(3600);

impl World {
    pub fn new(plan: Plan, resume: Option<Resume>) -> World {
        let options = PackerOptions { target_bytes: 4 << 10, codec: plan.codec, ..PackerOptions::default() };
        let mut packer = ParcelPacker::new(options, small_limits());
        let start = Instant::now();
        let mut parcels = Vec::new();
        for blob in plan.blobs() {
            packer.push(&blob, start, &mut parcels).unwrap();
        }
        packer.finish(&mut parcels).unwrap();
        World {
            random: Random(plan.seed ^ 0xA5A5),
            start,
            now: start,
            receiver: None,
            sender: None,
            to_receiver: Wire::default(),
            to_sender: Wire::default(),
            messages: 0,
            is_cut: false,
            parcels,
            next_parcel: 0,
            opens_at: None,
            has_completed: false,
            queued: resume.as_ref().map_or(0, |resume| resume.parcels),
            resume,
            pool: plan.window,
            lent: 0,
            held: VecDeque::new(),
            blobs: Vec::new(),
            closes_at: None,
            receiver_end: None,
            sender_end: None,
            plan,
        }
    }

    /// Runs until both ends have ended. Panics if that does not happen.
    pub fn run(mut self) -> Outcome {
        self.open();
        let mut steps = 0;
        while self.receiver_end.is_none() || self.sender_end.is_none() {
            steps += 1;
            assert!(steps < STEPS_MAX, "the run does not end");
            self.step();
        }
        let took = self.now - self.start;
        assert!(took <= HOUR, "the deadline ends every stream");
        let queued = self.queued;
        let resume = self.receiver.as_mut().and_then(|receiver| receiver.resume(queued));
        assert_eq!(self.lent, 0, "credit that was not used came back");
        Outcome {
            receiver: self.receiver_end.expect("it has ended"),
            sender: self.sender_end.expect("it has ended"),
            blobs: self.blobs,
            resume,
            steps,
            took,
            messages: self.messages,
        }
    }

    fn timing(&self) -> Timing {
        Timing { deadline: Some(self.start + HOUR), ..Timing::default() }
    }

    fn request(&self) -> SliceRequest {
        SliceRequest { resume: self.resume.clone(), ..request() }
    }

    fn open(&mut self) {
        if self.plan.push {
            let mut commands = Vec::new();
            self.sender =
                Some(Sender::push(profile(), offer(), self.timing(), self.now, &mut commands).unwrap());
            self.run_sender_commands(commands);
        } else {
            let mut commands = Vec::new();
            let pulled = Receiver::pull(profile(), self.request(), self.timing(), self.now, &mut commands);
            self.receiver = Some(pulled.unwrap());
            self.run_receiver_commands(commands);
            self.grant();
        }
    }

    /// Lets the next thing happen.
    fn step(&mut self) {
        let arrival = |wire: &Wire| wire.front().map(|(at, _)| *at);
        // An acceptor without a first message gives up too.
        let first_until = self.start + Timing::default().silence_max;
        let receiver_wake = match &self.receiver {
            Some(receiver) => receiver.next_wake(),
            None => self.receiver_end.is_none().then_some(first_until),
        };
        let sender_wake = match &self.sender {
            Some(sender) => sender.next_wake(),
            None => self.sender_end.is_none().then_some(first_until),
        };
        let held_until = self.held.front().map(|held| held.until);
        let times = [
            arrival(&self.to_receiver),
            arrival(&self.to_sender),
            self.opens_at,
            held_until,
            self.closes_at,
            receiver_wake,
            sender_wake,
        ];
        let (which, at) = times
            .into_iter()
            .enumerate()
            .filter_map(|(which, at)| Some((which, at?)))
            .min_by_key(|&(which, at)| (at, which))
            .expect("an end that has not ended wakes some time");
        self.now = self.now.max(at);
        match which {
            0 => {
                let (_, delivery) = self.to_receiver.pop_front().expect("it has a front");
                self.deliver_to_receiver(delivery);
            }
            1 => {
                let (_, delivery) = self.to_sender.pop_front().expect("it has a front");
                self.deliver_to_sender(delivery);
            }
            2 => {
                self.opens_at = None;
                self.on_sender(SenderEvent::Opened {
                    replayable: self.plan.replayable,
                    resume_token: b"token".to_vec(),
                    items_expected: 0,
                    bytes_expected: 0,
                });
            }
            3 => self.consume(),
            4 => {
                self.closes_at = None;
                self.on_receiver(ReceiverEvent::Closed);
            }
            5 if self.receiver.is_none() => {
                self.end_receiver(Err(StreamError::Silent(Timing::default().silence_max)));
            }
            5 => self.on_receiver(ReceiverEvent::Tick),
            _ if self.sender.is_none() => {
                self.end_sender(Err(StreamError::Silent(Timing::default().silence_max)));
            }
            _ => self.on_sender(SenderEvent::Tick),
        }
    }

    fn deliver_to_receiver(&mut self, delivery: Delivery) {
        if self.receiver_end.is_some() {
            return;
        }
        let message = match delivery {
            Delivery::Lost if self.receiver.is_none() => return self.end_receiver(Err(StreamError::Lost)),
            Delivery::Lost => return self.on_receiver(ReceiverEvent::Lost),
            Delivery::Bytes(bytes) => FeedMessage::decode(&bytes[..]),
        };
        match message {
            Ok(message) if self.receiver.is_none() => match answer(message, &profile(), || None) {
                Ok(Answer { welcome, terms, asked: Asked::Push(offer) }) => {
                    self.transmit(welcome, true);
                    let mut commands = Vec::new();
                    let (request, timing) = (self.request(), self.timing());
                    match Receiver::pushed(profile(), terms, &offer, request, timing, self.now, &mut commands)
                    {
                        Ok(receiver) => {
                            self.receiver = Some(receiver);
                            self.run_receiver_commands(commands);
                            self.grant();
                        }
                        Err(error) => self.end_receiver(Err(error)),
                    }
                }
                Ok(_) => self.end_receiver(Err(StreamError::Lost)),
                Err(error) => {
                    let abort = error.to_abort(&small_limits());
                    abort
                        .into_iter()
                        .for_each(|abort| self.transmit(pelton_nexus_proto::feed::message(abort), true));
                    self.end_receiver(Err(error));
                }
            },
            Ok(message) => self.on_receiver(ReceiverEvent::Message(message)),
            Err(error) if self.receiver.is_some() => {
                self.on_receiver(ReceiverEvent::Abort { reason: Reason::Protocol, text: error.to_string() });
            }
            Err(_) => self.end_receiver(Err(StreamError::Lost)),
        }
    }

    fn deliver_to_sender(&mut self, delivery: Delivery) {
        if self.sender_end.is_some() {
            return;
        }
        let message = match delivery {
            Delivery::Lost if self.sender.is_none() => return self.end_sender(Err(StreamError::Lost)),
            Delivery::Lost => return self.on_sender(SenderEvent::Lost),
            Delivery::Bytes(bytes) => FeedMessage::decode(&bytes[..]),
        };
        match message {
            Ok(message) if self.sender.is_none() => match answer(message, &profile(), || None) {
                Ok(Answer { welcome, terms, asked: Asked::Pull }) => {
                    self.transmit(welcome, false);
                    self.sender = Some(Sender::pulled(profile(), terms, self.timing(), self.now));
                }
                Ok(_) => self.end_sender(Err(StreamError::Lost)),
                Err(error) => {
                    let abort = error.to_abort(&small_limits());
                    abort
                        .into_iter()
                        .for_each(|abort| self.transmit(pelton_nexus_proto::feed::message(abort), false));
                    self.end_sender(Err(error));
                }
            },
            Ok(message) => self.on_sender(SenderEvent::Message(message)),
            Err(error) if self.sender.is_some() => {
                self.on_sender(SenderEvent::Abort { reason: Reason::Protocol, text: error.to_string() });
            }
            Err(_) => self.end_sender(Err(StreamError::Lost)),
        }
    }

    fn on_receiver(&mut self, event: ReceiverEvent) {
        let mut commands = Vec::new();
        self.receiver.as_mut().expect("it has begun").on(event, self.now, &mut commands);
        self.run_receiver_commands(commands);
    }

    fn run_receiver_commands(&mut self, commands: Vec<ReceiverCommand>) {
        for command in commands {
            assert!(self.receiver_end.is_none(), "the end is the last command");
            match command {
                ReceiverCommand::Send(message) => self.transmit(message, true),
                ReceiverCommand::Agreed(_) | ReceiverCommand::Accepted(_) => {}
                ReceiverCommand::Want { bytes } => match self.plan.receiver {
                    ReceiverManner::Starves => {}
                    ReceiverManner::IsSmall => {
                        self.on_receiver(ReceiverEvent::Abort {
                            reason: Reason::ResourceExhausted,
                            text: "there is not so much memory".to_owned(),
                        });
                    }
                    _ => {
                        self.pool += bytes;
                        self.grant();
                    }
                },
                ReceiverCommand::HandOver { sequence, parcel } => self.hold(sequence, &parcel),
                ReceiverCommand::Close { .. } => {
                    assert!(self.held.is_empty(), "all is safe before the load is closed");
                    self.closes_at = Some(self.now + Duration::from_millis(self.random.below(40_000)));
                }
                ReceiverCommand::End { result, credit_unused } => {
                    assert_eq!(credit_unused, self.lent, "all credit is accounted for");
                    self.lent = 0;
                    self.end_receiver(result);
                }
            }
        }
    }

    /// Takes a parcel as a worker would: checks it, and is done with it a while later.
    fn hold(&mut self, sequence: u64, parcel: &Parcel) {
        assert_eq!(sequence, self.queued + self.held.len() as u64, "parcels come in order");
        assert!(parcel.cost() <= self.lent, "nothing comes without credit");
        self.lent -= parcel.cost();
        match parcel.open(&small_limits()) {
            Ok(open) => {
                let blobs = open.blobs().map(<[u8]>::to_vec).collect();
                let last = self.held.back().map_or(self.now, |held| held.until);
                let until = last.max(self.now) + Duration::from_millis(self.random.below(20));
                self.held.push_back(Held { until, cost: parcel.cost(), blobs });
            }
            Err(error) => {
                self.pool += parcel.cost();
                self.on_receiver(ReceiverEvent::Abort { reason: Reason::Damaged, text: error.to_string() });
            }
        }
        if self.plan.receiver == ReceiverManner::Cancels && sequence as usize >= self.parcels.len() / 2 {
            self.on_receiver(ReceiverEvent::Abort { reason: Reason::Cancelled, text: "no more".to_owned() });
        }
    }

    fn consume(&mut self) {
        let held = self.held.pop_front().expect("its time has come");
        self.blobs.extend(held.blobs);
        self.pool += held.cost;
        self.queued += 1;
        self.on_receiver(ReceiverEvent::Queued { parcels: self.queued });
        if self.plan.receiver != ReceiverManner::Starves {
            self.grant();
        }
    }

    fn grant(&mut self) {
        if self.receiver_end.is_none() && self.pool > 0 {
            let bytes = std::mem::take(&mut self.pool);
            self.lent += bytes;
            self.on_receiver(ReceiverEvent::Granted { bytes });
        }
    }

    fn on_sender(&mut self, event: SenderEvent) {
        let mut commands = Vec::new();
        self.sender.as_mut().expect("it has begun").on(event, self.now, &mut commands);
        self.run_sender_commands(commands);
        self.feed();
        while let Some(data) = self.sender.as_mut().and_then(|sender| sender.next_data(self.now)) {
            self.transmit(data, false);
            self.feed();
        }
    }

    /// Gives the sender what its source has.
    fn feed(&mut self) {
        let half = self.parcels.len() / 2;
        while self.sender_end.is_none()
            && !self.has_completed
            && self.sender.as_ref().is_some_and(Sender::has_room)
        {
            let event = match self.plan.source {
                SourceManner::Hangs if self.next_parcel >= half => return,
                SourceManner::Fails if self.next_parcel >= half => {
                    SenderEvent::Abort { reason: Reason::Source, text: "the file is gone".to_owned() }
                }
                _ if self.next_parcel == self.parcels.len() => {
                    self.has_completed = true;
                    SenderEvent::Complete(Tally { expected: 1, potential: 2, rejected: 1 })
                }
                _ => {
                    self.next_parcel += 1;
                    SenderEvent::Parcel(self.parcels[self.next_parcel - 1].clone())
                }
            };
            let mut commands = Vec::new();
            self.sender.as_mut().expect("it has room").on(event, self.now, &mut commands);
            self.run_sender_commands(commands);
        }
    }

    fn run_sender_commands(&mut self, commands: Vec<SenderCommand>) {
        for command in commands {
            assert!(self.sender_end.is_none(), "the end is the last command");
            match command {
                SenderCommand::Send(message) => self.transmit(message, false),
                SenderCommand::Agreed(_) => {}
                SenderCommand::Open(request) => {
                    let from = request.resume.map_or(0, |resume| resume.parcels) as usize;
                    if from > self.parcels.len() {
                        self.on_sender(SenderEvent::Abort {
                            reason: Reason::NotReplayable,
                            text: "there are not so many".to_owned(),
                        });
                        continue;
                    }
                    self.next_parcel = from;
                    if self.plan.source != SourceManner::NeverOpens {
                        self.opens_at = Some(self.now + Duration::from_millis(self.random.below(1000)));
                    }
                }
                SenderCommand::Queued { .. } => {}
                SenderCommand::End(result) => self.end_sender(result),
            }
        }
    }

    fn end_receiver(&mut self, result: Result<Totals, StreamError>) {
        self.receiver_end = Some(result);
        self.closes_at = None;
        self.hang_up(true);
        // What was handed over is safe or dropped: here it is dropped.
        self.pool += self.held.drain(..).map(|held| held.cost).sum::<u64>();
    }

    fn end_sender(&mut self, result: Result<Totals, StreamError>) {
        self.sender_end = Some(result);
        self.opens_at = None;
        self.hang_up(false);
    }

    /// An end that is over closes its connection: the other one learns it after what was sent before.
    fn hang_up(&mut self, by_receiver: bool) {
        if self.is_cut {
            return;
        }
        let at = self.now + Duration::from_millis(1);
        let wire = if by_receiver { &mut self.to_sender } else { &mut self.to_receiver };
        let at = wire.back().map_or(at, |(last, _)| at.max(*last));
        wire.push_back((at, Delivery::Lost));
    }

    /// The wire, with its misdeeds.
    fn transmit(&mut self, message: FeedMessage, by_receiver: bool) {
        self.messages += 1;
        if self.plan.cut_at == Some(self.messages) {
            self.is_cut = true;
            let wake = |wire: &mut Wire, at| {
                wire.clear();
                wire.push_back((at, Delivery::Lost));
            };
            let (now, one_sided) = (self.now, self.plan.cut_is_one_sided);
            if !one_sided || by_receiver {
                wake(&mut self.to_receiver, now);
            }
            if !one_sided || !by_receiver {
                wake(&mut self.to_sender, now);
            }
        }
        if self.is_cut || self.random.per_mille(self.plan.lost) {
            return;
        }
        let mut bytes = message.encode_to_vec();
        assert!(bytes.len() <= 4 << 20, "no message is over 4 MiB");
        if self.random.per_mille(self.plan.damaged) && !bytes.is_empty() {
            // Mostly at the start, where the fields are.
            let end = if self.random.below(2) == 0 { bytes.len().min(24) } else { bytes.len() };
            let at = self.random.below(end as u64) as usize;
            bytes[at] ^= 1 << self.random.below(8);
        }
        let copies = 1 + usize::from(self.random.per_mille(self.plan.doubled));
        let turned = self.random.per_mille(self.plan.turned);
        let at = self.now + Duration::from_micros(self.random.below(5000));
        let wire = if by_receiver { &mut self.to_sender } else { &mut self.to_receiver };
        let at = wire.back().map_or(at, |(last, _)| at.max(*last));
        for _ in 0..copies {
            wire.push_back((at, Delivery::Bytes(bytes.clone())));
        }
        let len = wire.len();
        if turned && len >= 2 && matches!(wire[len - 2].1, Delivery::Bytes(_)) {
            wire.swap(len - 1, len - 2);
            let (last, before) = (wire[len - 1].0, wire[len - 2].0);
            wire[len - 2].0 = last.min(before);
            wire[len - 1].0 = last.max(before);
        }
    }
}

//! The end that wants data.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use pelton_region_format::crc32c;

use super::hello::{hello, settle};
use super::pulse::Pulse;
use super::request::{check_request, check_same_slice, check_token, start_of};
use super::{Profile, Side, StreamError, Tally, Terms, Timing, Totals, kind_name, message};
use crate::limits::{Limit, LimitExceeded, Limits};
use crate::messages::feed_message::Kind;
use crate::messages::{
    Accept, BlobFrame, Complete, Credit, Done, FeedMessage, Heartbeat, Offer, Parcel as ParcelMessage,
    Reason, Resume, SliceRequest, Want,
};
use crate::parcel::{self, Codec, Parcel, ParcelError};

/// Decides for the end that wants data; touches nothing.
///
/// The driver runs the commands in order and reports back as events. It takes credit from its budget before
/// it grants it, and gives a parcel's [`Parcel::cost`] back when the parcel is consumed.
///
/// Invariants: what is handed over was within the credit, had its checksum and the next number;
/// `queued <= next`; after [`ReceiverCommand::End`] nothing more is decided.
#[derive(Debug)]
pub struct Receiver {
    state: State,
    profile: Profile,
    /// Those of the profile, with the parcel size that both ends take.
    limits: Limits,
    terms: Option<Terms>,
    request: SliceRequest,
    pulse: Pulse,
    /// Granted and neither used nor returned.
    credit: u64,
    /// What the sender said it waits for, if that is still to come.
    wanted: Option<Want>,
    /// Since when the sender has had its turn.
    turn_since: Instant,
    /// What was handed over.
    taken: Totals,
    /// What of it is safe.
    queued: Totals,
    /// Items and bytes of each parcel between the two.
    unqueued: VecDeque<(u32, u64)>,
    /// How many parcels the sender knows to be safe.
    told: u64,
    partial: Option<Partial>,
    accept: Option<Accept>,
    tally: Tally,
    resumable: bool,
}

/// What a receiver is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Requesting,
    Receiving,
    /// Complete agrees; parcels are not all safe yet.
    Settling,
    /// The driver finishes the load.
    Closing,
    Ended,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Greeting => "Welcome is awaited",
            State::Requesting => "Accept is awaited",
            State::Receiving => "parcels are received",
            State::Settling | State::Closing => "the stream is complete",
            State::Ended => "the stream is over",
        }
    }
}

/// A blob that comes in frames.
#[derive(Debug)]
struct Partial {
    packed_bytes: u64,
    inflated_bytes: u64,
    codec: Codec,
    body: Vec<u8>,
}

/// What happens to a receiver.
#[derive(Clone, Debug)]
pub enum ReceiverEvent {
    /// A message came, by gRPC.
    Message(FeedMessage),
    /// A message came by the lane.
    Frame {
        /// What came.
        message: FeedMessage,
        /// The checksum of its bytes, as they came: whoever reads them sums them while they are in the processor's cache.
        found: u32,
    },
    /// So many bytes were taken from the budget for this stream.
    Granted {
        /// How many.
        bytes: u64,
    },
    /// So many parcels, from the start of the slice, are checked and safe: they need not come again.
    Queued {
        /// How many. Never falls, and never passes what was handed over.
        parcels: u64,
    },
    /// The answer to [`ReceiverCommand::Close`]: the load has taken it all.
    Closed,
    /// The driver does not want to go on.
    Abort {
        /// Why.
        reason: Reason,
        /// In words.
        text: String,
    },
    /// The same, with an error that has a name: a limit that was passed, say.
    Fail(StreamError),
    /// The connection, or the lane, is gone.
    Lost,
    /// It is [`Receiver::next_wake`], or any other time.
    Tick,
}

/// What a receiver wants done.
#[derive(Clone, Debug)]
pub enum ReceiverCommand {
    /// Send it now. None of it waits behind data: a receiver sends none.
    Send(FeedMessage),
    /// Both ends agree on this. If there is a lane in it, open it or do without.
    Agreed(Terms),
    /// The source has the slice and will send it.
    Accepted(Accept),
    /// The sender waits for more credit than it has. Take at least `bytes` from the budget and grant them, or
    /// abort.
    Want {
        /// How many are missing.
        bytes: u64,
    },
    /// The next parcel. [`Parcel::open`] checks what is inside: abort with [`Reason::Damaged`] if it refuses.
    HandOver {
        /// Its number.
        sequence: u64,
        /// The parcel.
        parcel: Parcel,
    },
    /// All is there, agrees, and is safe. Finish the load, then report [`ReceiverEvent::Closed`].
    Close {
        /// What came.
        totals: Totals,
        /// What the source says about it.
        tally: Tally,
    },
    /// The stream is over. The last command.
    End {
        /// Whole, or why not.
        result: Result<Totals, StreamError>,
        /// Granted bytes that no parcel has used: give them back to the budget.
        credit_unused: u64,
    },
}

type Commands = Vec<ReceiverCommand>;

impl Receiver {
    /// Opens a stream to pull a slice. The first command is to send Hello.
    ///
    /// # Errors
    /// [`StreamError::Invalid`] or [`StreamError::Limit`]: the request can't be sent. Nothing was.
    pub fn pull(
        profile: Profile,
        request: SliceRequest,
        timing: Timing,
        now: Instant,
        commands: &mut Commands,
    ) -> Result<Receiver, StreamError> {
        check_request(&request, &profile.limits)?;
        let mut receiver = Receiver::start(profile, request, timing, now);
        receiver.send(hello(&receiver.profile, None), now, commands);
        Ok(receiver)
    }

    /// Takes what a pusher has offered, after [`super::answer`]. The first command is to send the request.
    ///
    /// # Errors
    /// As [`Receiver::pull`], and [`StreamError::OtherSlice`] if the request is not for what was offered.
    pub fn pushed(
        profile: Profile,
        terms: Terms,
        offer: &Offer,
        request: SliceRequest,
        timing: Timing,
        now: Instant,
        commands: &mut Commands,
    ) -> Result<Receiver, StreamError> {
        check_request(&request, &profile.limits)?;
        check_same_slice((&request.key, &request.fingerprint), (&offer.key, &offer.fingerprint))?;
        let mut receiver = Receiver::start(profile, request, timing, now);
        receiver.begin(terms, now, commands);
        Ok(receiver)
    }

    fn start(profile: Profile, request: SliceRequest, timing: Timing, now: Instant) -> Receiver {
        let start = start_of(&request);
        Receiver {
            state: State::Greeting,
            limits: profile.limits.clone(),
            profile,
            terms: None,
            request,
            pulse: Pulse::start(timing, now),
            credit: 0,
            wanted: None,
            turn_since: now,
            taken: start,
            queued: start,
            unqueued: VecDeque::new(),
            told: start.parcels,
            partial: None,
            accept: None,
            tally: Tally::default(),
            resumable: false,
        }
    }

    /// Decides what follows from an event. After the end nothing does.
    ///
    /// # Panics
    /// If the driver reports what cannot be: more parcels queued than were handed over, or `Closed` unasked.
    pub fn on(&mut self, event: ReceiverEvent, now: Instant, commands: &mut Commands) {
        if self.state == State::Ended {
            return;
        }
        if let Err(error) = self.step(event, now, commands) {
            self.fail(error, now, commands);
        }
        self.check();
    }

    /// When to report [`ReceiverEvent::Tick`] at the latest. Nothing after the end.
    pub fn next_wake(&self) -> Option<Instant> {
        let turn_since = self.is_senders_turn().then_some(self.turn_since);
        (self.state != State::Ended).then(|| self.pulse.next_wake(turn_since))
    }

    /// Whether data may come: between Accept and Complete.
    pub fn is_receiving(&self) -> bool {
        self.state == State::Receiving
    }

    /// What a new stream's request needs to go on where this one broke. Nothing if this one has not ended, or
    /// ended in a way that is not the wire's fault, or the source is not replayable.
    ///
    /// `queued` is how many parcels of those handed over are safe by now. The others must be dropped: they
    /// come again.
    ///
    /// # Panics
    /// As [`ReceiverEvent::Queued`] with that number.
    pub fn resume(&mut self, queued: u64) -> Option<Resume> {
        self.advance(queued);
        let accept = self.accept.as_ref().filter(|accept| accept.replayable && self.resumable)?;
        let Totals { parcels, items, bytes } = self.queued;
        Some(Resume { token: accept.resume_token.clone(), parcels, items, bytes })
    }

    fn step(
        &mut self,
        event: ReceiverEvent,
        now: Instant,
        commands: &mut Commands,
    ) -> Result<(), StreamError> {
        match event {
            ReceiverEvent::Message(message) => {
                self.pulse.heard(now);
                self.receive(message, None, now, commands)?;
            }
            ReceiverEvent::Frame { message, found } => {
                self.pulse.heard(now);
                self.receive(message, Some(found), now, commands)?;
            }
            ReceiverEvent::Granted { bytes } => self.grant(bytes, now, commands),
            ReceiverEvent::Queued { parcels } => {
                self.advance(parcels);
                self.close_if_settled(commands);
            }
            ReceiverEvent::Closed => {
                assert!(self.state == State::Closing, "Closed answers Close");
                let Totals { parcels, items, bytes } = self.taken;
                self.send(Done { parcels, items, bytes }, now, commands);
                self.end(Ok(self.taken), commands);
                return Ok(());
            }
            ReceiverEvent::Abort { reason, text } => {
                return Err(StreamError::Aborted { by: Side::Here, reason, limit: String::new(), text });
            }
            ReceiverEvent::Fail(error) => return Err(error),
            ReceiverEvent::Lost => return Err(StreamError::Lost),
            ReceiverEvent::Tick => {}
        }
        self.pulse.check(now)?;
        if self.is_senders_turn() {
            self.pulse.check_stall(self.turn_since, now)?;
        }
        if self.pulse.heartbeat_due(now) {
            let news = self.told < self.queued.parcels && self.state == State::Receiving;
            match news {
                true => self.tell_credit(0, now, commands),
                false => self.send(Heartbeat {}, now, commands),
            }
        }
        Ok(())
    }

    fn receive(
        &mut self,
        message: FeedMessage,
        found: Option<u32>,
        now: Instant,
        commands: &mut Commands,
    ) -> Result<(), StreamError> {
        // A kind of a later version is a sign of life, no more.
        let Some(kind) = message.kind else { return Ok(()) };
        match (self.state, kind) {
            (_, Kind::Heartbeat(_)) => Ok(()),
            (_, Kind::Abort(abort)) => Err(StreamError::of_abort(abort, &self.limits)),
            (State::Greeting, Kind::Welcome(welcome)) => {
                let terms = settle(welcome, &self.profile)?;
                commands.push(ReceiverCommand::Agreed(terms.clone()));
                self.begin(terms, now, commands);
                Ok(())
            }
            (State::Requesting, Kind::Accept(accept)) => self.accepted(accept, now, commands),
            (State::Receiving, Kind::Parcel(parcel)) => self.take_parcel(parcel, found, now, commands),
            (State::Receiving, Kind::BlobFrame(frame)) => self.take_frame(frame, found, now, commands),
            (State::Receiving, Kind::Want(want)) => self.want(&want, now, commands),
            // On a lane the parcels overtake what gRPC carries: it has its credit by now.
            (State::Settling | State::Closing, Kind::Want(_)) => Ok(()),
            (State::Receiving, Kind::Complete(complete)) => self.complete(&complete, commands),
            (state, kind) => Err(StreamError::Unexpected { found: kind_name(&kind), state: state.name() }),
        }
    }

    fn begin(&mut self, terms: Terms, now: Instant, commands: &mut Commands) {
        self.limits.parcel_bytes_max = terms.parcel_bytes_max;
        self.terms = Some(terms);
        self.state = State::Requesting;
        self.turn_since = now;
        self.send(self.request.clone(), now, commands);
        if self.credit > 0 {
            self.tell_credit(self.credit, now, commands);
        }
    }

    fn accepted(&mut self, accept: Accept, now: Instant, commands: &mut Commands) -> Result<(), StreamError> {
        check_token(&accept.resume_token, &self.limits)?;
        let expected = (self.request.key.as_str(), &self.request.fingerprint[..]);
        check_same_slice(expected, (&accept.key, &accept.fingerprint))?;
        self.state = State::Receiving;
        self.turn_since = now;
        self.accept = Some(accept.clone());
        commands.push(ReceiverCommand::Accepted(accept));
        Ok(())
    }

    fn grant(&mut self, bytes: u64, now: Instant, commands: &mut Commands) {
        let was_senders_turn = self.is_senders_turn();
        self.credit = self.credit.checked_add(bytes).expect("a budget has less than 2^64 bytes");
        if !was_senders_turn {
            self.turn_since = now;
        }
        match self.state {
            State::Requesting | State::Receiving => self.tell_credit(bytes, now, commands),
            // It goes with the request, or back to the budget at the end.
            State::Greeting | State::Settling | State::Closing | State::Ended => {}
        }
    }

    fn want(&mut self, want: &Want, now: Instant, commands: &mut Commands) -> Result<(), StreamError> {
        self.limits.check(Limit::WantBytes, want.bytes)?;
        // No parcel that both take costs more.
        let max = parcel::cost_max(self.limits.parcel_bytes_max);
        if want.bytes > max {
            return Err(LimitExceeded { limit: Limit::WantBytes, found: want.bytes, max }.into());
        }
        self.turn_since = now;
        // What it has asked for may have come already, by a lane.
        if want.sequence >= self.taken.parcels {
            self.wanted = Some(*want);
            self.ask_if_wanted(commands);
        }
        Ok(())
    }

    /// Asks for what the sender lacks when the parcel that waits is the next one. Before, what it has left is not known.
    fn ask_if_wanted(&self, commands: &mut Commands) {
        if let Some(bytes) = self.wanted_now()
            // Otherwise the credit was on its way when the sender asked.
            && bytes > self.credit
        {
            commands.push(ReceiverCommand::Want { bytes: bytes - self.credit });
        }
    }

    /// What the next parcel costs, if the sender has said that it waits.
    fn wanted_now(&self) -> Option<u64> {
        self.wanted.filter(|want| want.sequence == self.taken.parcels).map(|want| want.bytes)
    }

    fn take_parcel(
        &mut self,
        message: ParcelMessage,
        found: Option<u32>,
        now: Instant,
        commands: &mut Commands,
    ) -> Result<(), StreamError> {
        let ParcelMessage { sequence, blob_count, inflated_bytes, codec, crc32c: declared, bytes } = message;
        self.check_next(sequence)?;
        if let Some(partial) = &self.partial {
            return Err(StreamError::Frame { sequence, found: 0, expected: partial.body.len() as u64 });
        }
        self.limits.check(Limit::MessageBytes, bytes.len() as u64)?;
        let codec = self.agreed_codec(sequence, codec)?;
        let parcel = Parcel::packed(codec, blob_count, inflated_bytes, bytes);
        parcel.check_sizes(&self.limits).map_err(|error| of_parcel(sequence, error))?;
        check_crc(sequence, 0, found.unwrap_or_else(|| parcel.crc32c()), declared)?;
        // Last: what is refused has used no credit.
        self.spend(sequence, parcel.cost())?;
        self.hand_over(parcel, now, commands);
        Ok(())
    }

    fn take_frame(
        &mut self,
        frame: BlobFrame,
        found: Option<u32>,
        now: Instant,
        commands: &mut Commands,
    ) -> Result<(), StreamError> {
        let BlobFrame { sequence, packed_bytes, inflated_bytes, codec, offset, crc32c: declared, bytes } =
            frame;
        self.check_next(sequence)?;
        self.limits.check(Limit::FrameBytes, bytes.len() as u64)?;
        let expected = self.partial.as_ref().map_or(0, |partial| partial.body.len() as u64);
        if offset != expected {
            return Err(StreamError::Frame { sequence, found: offset, expected });
        }
        let codec = self.agreed_codec(sequence, codec)?;
        match &self.partial {
            None => {
                parcel::check_sizes(codec, 1, packed_bytes, inflated_bytes, &self.limits)
                    .map_err(|error| of_parcel(sequence, error))?;
            }
            Some(partial) => {
                let same = [
                    ("packed_bytes", partial.packed_bytes == packed_bytes),
                    ("inflated_bytes", partial.inflated_bytes == inflated_bytes),
                    ("codec", partial.codec == codec),
                ];
                if let Some((field, _)) = same.into_iter().find(|(_, same)| !same) {
                    return Err(StreamError::FrameHead { sequence, field });
                }
            }
        }
        if bytes.is_empty() || bytes.len() as u64 > packed_bytes - offset {
            return Err(StreamError::FrameHead { sequence, field: "length" });
        }
        check_crc(sequence, offset, found.unwrap_or_else(|| crc32c(&bytes)), declared)?;
        if self.partial.is_none() {
            self.spend(sequence, parcel::cost(codec, packed_bytes, inflated_bytes))?;
            // The size is within parcel_bytes_max, and its memory is paid for.
            let body = Vec::with_capacity(packed_bytes as usize);
            self.partial = Some(Partial { packed_bytes, inflated_bytes, codec, body });
        }
        let partial = self.partial.as_mut().expect("the first frame has made it");
        partial.body.extend_from_slice(&bytes);
        self.turn_since = now;
        if partial.body.len() as u64 == packed_bytes
            && let Some(Partial { body, .. }) = self.partial.take()
        {
            self.hand_over(Parcel::packed(codec, 1, inflated_bytes, Bytes::from(body)), now, commands);
        }
        Ok(())
    }

    fn hand_over(&mut self, parcel: Parcel, now: Instant, commands: &mut Commands) {
        let sequence = self.taken.parcels;
        self.taken.add(parcel.blob_count(), parcel.inflated_bytes());
        self.unqueued.push_back((parcel.blob_count(), parcel.inflated_bytes()));
        self.turn_since = now;
        commands.push(ReceiverCommand::HandOver { sequence, parcel });
        self.wanted = self.wanted.filter(|want| want.sequence >= self.taken.parcels);
        self.ask_if_wanted(commands);
    }

    fn complete(&mut self, complete: &Complete, commands: &mut Commands) -> Result<(), StreamError> {
        if let Some(partial) = &self.partial {
            let (sequence, expected) = (self.taken.parcels, partial.body.len() as u64);
            return Err(StreamError::Frame { sequence, found: 0, expected });
        }
        let &Complete { parcels, items, bytes, .. } = complete;
        self.taken.compare(Totals { parcels, items, bytes })?;
        let &Complete { expected, potential, rejected, .. } = complete;
        if potential > 0 && rejected > potential {
            return Err(StreamError::Tally { rejected, potential });
        }
        self.tally = Tally { expected, potential, rejected };
        self.state = State::Settling;
        self.close_if_settled(commands);
        Ok(())
    }

    fn close_if_settled(&mut self, commands: &mut Commands) {
        if self.state == State::Settling && self.queued == self.taken {
            self.state = State::Closing;
            commands.push(ReceiverCommand::Close { totals: self.taken, tally: self.tally });
        }
    }

    /// So many parcels are safe.
    fn advance(&mut self, parcels: u64) {
        assert!(parcels <= self.taken.parcels, "what is queued was handed over");
        assert!(parcels >= self.queued.parcels, "what is queued stays queued");
        while self.queued.parcels < parcels {
            let (items, bytes) =
                self.unqueued.pop_front().expect("one for each parcel between queued and taken");
            self.queued.add(items, bytes);
        }
    }

    fn check_next(&self, sequence: u64) -> Result<(), StreamError> {
        let expected = self.taken.parcels;
        if sequence == expected { Ok(()) } else { Err(StreamError::Sequence { found: sequence, expected }) }
    }

    fn agreed_codec(&self, sequence: u64, found: i32) -> Result<Codec, StreamError> {
        let terms = self.terms.as_ref().expect("parcels come after Welcome");
        terms.agreed(found).ok_or(StreamError::Codec { sequence, found })
    }

    fn spend(&mut self, sequence: u64, cost: u64) -> Result<(), StreamError> {
        match self.credit.checked_sub(cost) {
            Some(rest) => self.credit = rest,
            None => return Err(StreamError::Credit { sequence, cost, credit: self.credit }),
        }
        Ok(())
    }

    /// Whether the sender could do something and does not: only then time runs against it.
    fn is_senders_turn(&self) -> bool {
        match self.state {
            State::Requesting => true,
            State::Receiving => {
                self.partial.is_some() || (self.credit > 0 && self.credit >= self.wanted_now().unwrap_or(0))
            }
            State::Greeting | State::Settling | State::Closing | State::Ended => false,
        }
    }

    fn tell_credit(&mut self, bytes: u64, now: Instant, commands: &mut Commands) {
        self.told = self.queued.parcels;
        self.send(Credit { bytes, parcels: self.told }, now, commands);
    }

    fn send(&mut self, kind: impl Into<Kind>, now: Instant, commands: &mut Commands) {
        self.pulse.said(now);
        commands.push(ReceiverCommand::Send(message(kind)));
    }

    fn fail(&mut self, error: StreamError, now: Instant, commands: &mut Commands) {
        self.resumable = error.is_resumable();
        if let Some(abort) = error.to_abort(&self.limits) {
            self.send(abort, now, commands);
        }
        self.end(Err(error), commands);
    }

    fn end(&mut self, result: Result<Totals, StreamError>, commands: &mut Commands) {
        self.state = State::Ended;
        let partial = self.partial.take();
        let partial_cost = partial.map_or(0, |p| parcel::cost(p.codec, p.packed_bytes, p.inflated_bytes));
        let credit_unused = std::mem::take(&mut self.credit) + partial_cost;
        commands.push(ReceiverCommand::End { result, credit_unused });
    }

    fn check(&self) {
        debug_assert!(self.queued.parcels <= self.taken.parcels);
        debug_assert!(self.unqueued.len() as u64 == self.taken.parcels - self.queued.parcels);
        debug_assert!(self.told <= self.queued.parcels);
    }
}

/// A limit stays a limit, whoever found it passed.
fn of_parcel(sequence: u64, error: ParcelError) -> StreamError {
    match error {
        ParcelError::Limit(error) => StreamError::Limit(error),
        source => StreamError::Parcel { sequence, source },
    }
}

fn check_crc(sequence: u64, offset: u64, found: u32, expected: u32) -> Result<(), StreamError> {
    if found == expected { Ok(()) } else { Err(StreamError::Damaged { sequence, offset, found, expected }) }
}

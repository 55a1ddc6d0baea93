//! The end that has data.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use pelton_region_format::crc32c;

use super::hello::{hello, settle, to_wire};
use super::pulse::Pulse;
use super::request::{check_request, check_same_slice, check_slice, check_token, start_of};
use super::{Profile, Side, StreamError, Tally, Terms, Timing, Totals, kind_name, message};
use crate::limits::{Limit, Limits};
use crate::messages::feed_message::Kind;
use crate::messages::{
    Accept, BlobFrame, Complete, Credit, Done, FeedMessage, Heartbeat, Offer, Parcel as ParcelMessage,
    Reason, SliceRequest, Want,
};
use crate::parcel::{Parcel, ParcelError};

/// Decides for the end that has data; touches nothing.
///
/// Data is asked for, all else is told: [`Sender::next_data`] gives the next message of the data when the
/// connection takes one, commands are run at once. So a heartbeat or an abort never waits behind data.
///
/// Invariants: no more is sent than credit was given for; parcels are numbered without a gap; after
/// [`SenderCommand::End`] nothing more is decided.
#[derive(Debug)]
pub struct Sender {
    state: State,
    profile: Profile,
    /// Those of the profile, with the parcel size that both ends take.
    limits: Limits,
    terms: Option<Terms>,
    /// What a push has offered.
    offer: Option<Offer>,
    request: Option<SliceRequest>,
    pulse: Pulse,
    credit: u64,
    /// Parcels that wait for credit.
    waiting: VecDeque<Parcel>,
    waiting_bytes: u64,
    /// A parcel that is under way in frames, and how far it is.
    framed: Option<(Parcel, u64)>,
    /// Since when the first parcel waits for credit. The receiver was told that it does.
    blocked_since: Option<Instant>,
    sent: Totals,
    queued: u64,
    tally: Tally,
}

/// What a sender is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Waiting,
    /// The driver opens the data.
    Opening,
    Sending,
    /// The source has ended, its last parcels are on their way.
    Draining,
    /// Complete is sent.
    Completed,
    Ended,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Greeting => "Welcome is awaited",
            State::Waiting => "a SliceRequest is awaited",
            State::Opening => "the data is being opened",
            State::Sending | State::Draining => "parcels are sent",
            State::Completed => "Done is awaited",
            State::Ended => "the stream is over",
        }
    }
}

/// What happens to a sender.
#[derive(Clone, Debug)]
pub enum SenderEvent {
    /// A message came.
    Message(FeedMessage),
    /// The answer to [`SenderCommand::Open`]: the data will come.
    Opened {
        /// Whether the same parcels could be made again.
        replayable: bool,
        /// What a resuming request must show.
        resume_token: Vec<u8>,
        /// How many items will come, 0 if not known.
        items_expected: u64,
        /// How many bytes will come, 0 if not known.
        bytes_expected: u64,
    },
    /// The next parcel. Only when [`Sender::has_room`].
    Parcel(Parcel),
    /// There are no more.
    Complete(Tally),
    /// The driver does not want to go on, or its source failed.
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
    /// It is [`Sender::next_wake`], or any other time.
    Tick,
}

/// What a sender wants done.
#[derive(Clone, Debug)]
pub enum SenderCommand {
    /// Send it now, before any data that waits.
    Send(FeedMessage),
    /// Both ends agree on this. If there is a lane in it and this end opened the stream, open it or do without.
    Agreed(Terms),
    /// Open the data that this asks for and report [`SenderEvent::Opened`], or abort. If it has `resume`, begin
    /// with that parcel, or abort with [`Reason::NotReplayable`].
    Open(SliceRequest),
    /// So many parcels, from the start of the slice, are safe with the receiver.
    Queued {
        /// How many.
        parcels: u64,
    },
    /// The stream is over. The last command.
    End(Result<Totals, StreamError>),
}

type Commands = Vec<SenderCommand>;

impl Sender {
    /// Opens a stream to push a slice. The first command is to send Hello.
    ///
    /// # Errors
    /// [`StreamError::Invalid`] if the offer is not well formed. Nothing was sent.
    pub fn push(
        profile: Profile,
        offer: Offer,
        timing: Timing,
        now: Instant,
        commands: &mut Commands,
    ) -> Result<Sender, StreamError> {
        check_slice(&offer.key, &offer.fingerprint)?;
        let mut sender = Sender::start(profile, timing, now);
        sender.offer = Some(offer.clone());
        sender.send(hello(&sender.profile, Some(offer)), now, commands);
        Ok(sender)
    }

    /// Serves whoever pulls, after [`super::answer`]. It waits for the request.
    pub fn pulled(profile: Profile, terms: Terms, timing: Timing, now: Instant) -> Sender {
        let mut sender = Sender::start(profile, timing, now);
        sender.begin(terms);
        sender
    }

    fn start(profile: Profile, timing: Timing, now: Instant) -> Sender {
        Sender {
            state: State::Greeting,
            limits: profile.limits.clone(),
            profile,
            terms: None,
            offer: None,
            request: None,
            pulse: Pulse::start(timing, now),
            credit: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            framed: None,
            blocked_since: None,
            sent: Totals::default(),
            queued: 0,
            tally: Tally::default(),
        }
    }

    /// Decides what follows from an event. After the end nothing does.
    ///
    /// # Panics
    /// If the driver reports what cannot be: `Opened` unasked, a parcel without room, anything after `Complete`.
    pub fn on(&mut self, event: SenderEvent, now: Instant, commands: &mut Commands) {
        if self.state == State::Ended {
            return;
        }
        if let Err(error) = self.step(event, now, commands) {
            if let Some(abort) = error.to_abort(&self.limits) {
                self.send(abort, now, commands);
            }
            self.end(Err(error), commands);
        }
    }

    /// The next message of the data: a parcel, a frame, Complete, or that a parcel waits for credit. Nothing if
    /// there is none now. Ask again after each event, and after each message that was sent.
    pub fn next_data(&mut self, now: Instant) -> Option<FeedMessage> {
        if !matches!(self.state, State::Sending | State::Draining) {
            return None;
        }
        let data = self.next_frame().or_else(|| self.next_parcel(now)).or_else(|| self.complete())?;
        self.pulse.said(now);
        Some(data)
    }

    /// Whether another parcel may be given. One always may if none waits, whatever its size.
    pub fn has_room(&self) -> bool {
        let full = self.waiting_bytes >= self.limits.sender_queue_bytes_max;
        self.state == State::Sending && (self.waiting.is_empty() || !full)
    }

    /// When to report [`SenderEvent::Tick`] at the latest. Nothing after the end.
    pub fn next_wake(&self) -> Option<Instant> {
        (self.state != State::Ended).then(|| self.pulse.next_wake(self.blocked_since))
    }

    fn step(&mut self, event: SenderEvent, now: Instant, commands: &mut Commands) -> Result<(), StreamError> {
        match event {
            SenderEvent::Message(message) => {
                self.pulse.heard(now);
                if self.receive(message, now, commands)? == Flow::Over {
                    return Ok(());
                }
            }
            SenderEvent::Opened { replayable, resume_token, items_expected, bytes_expected } => {
                assert!(self.state == State::Opening, "Opened answers Open");
                self.opened(replayable, resume_token, items_expected, bytes_expected, now, commands)?;
            }
            SenderEvent::Parcel(parcel) => {
                assert!(self.has_room(), "a parcel is given when there is room, before Complete");
                self.check_parcel(&parcel)?;
                self.waiting_bytes += parcel.packed_bytes();
                self.waiting.push_back(parcel);
            }
            SenderEvent::Complete(tally) => {
                assert!(self.state == State::Sending, "there is one Complete, after Opened");
                self.tally = tally;
                self.state = State::Draining;
            }
            SenderEvent::Abort { reason, text } => {
                return Err(StreamError::Aborted { by: Side::Here, reason, limit: String::new(), text });
            }
            SenderEvent::Fail(error) => return Err(error),
            SenderEvent::Lost => return Err(StreamError::Lost),
            SenderEvent::Tick => {}
        }
        self.pulse.check(now)?;
        if let Some(since) = self.blocked_since {
            self.pulse.check_stall(since, now)?;
        }
        if self.pulse.heartbeat_due(now) {
            self.send(Heartbeat {}, now, commands);
        }
        Ok(())
    }

    fn receive(
        &mut self,
        message: FeedMessage,
        now: Instant,
        commands: &mut Commands,
    ) -> Result<Flow, StreamError> {
        // A kind of a later version is a sign of life, no more.
        let Some(kind) = message.kind else { return Ok(Flow::On) };
        match (self.state, kind) {
            (_, Kind::Heartbeat(_)) => {}
            (_, Kind::Abort(abort)) => return Err(StreamError::of_abort(abort, &self.limits)),
            (State::Greeting, Kind::Welcome(welcome)) => {
                let terms = settle(welcome, &self.profile)?;
                self.begin(terms.clone());
                commands.push(SenderCommand::Agreed(terms));
            }
            (State::Waiting, Kind::Request(request)) => self.requested(request, commands)?,
            // What was offered is there already: nothing is sent.
            (State::Waiting, Kind::Done(_)) if self.offer.is_some() => {
                self.end(Ok(self.sent), commands);
                return Ok(Flow::Over);
            }
            (
                State::Opening | State::Sending | State::Draining | State::Completed,
                Kind::Credit(Credit { bytes, parcels }),
            ) => self.credited(bytes, parcels, now, commands)?,
            (State::Completed, Kind::Done(Done { parcels, items, bytes })) => {
                self.sent.compare(Totals { parcels, items, bytes })?;
                self.end(Ok(self.sent), commands);
                return Ok(Flow::Over);
            }
            (state, kind) => {
                return Err(StreamError::Unexpected { found: kind_name(&kind), state: state.name() });
            }
        }
        Ok(Flow::On)
    }

    fn begin(&mut self, terms: Terms) {
        self.limits.parcel_bytes_max = terms.parcel_bytes_max;
        self.terms = Some(terms);
        self.state = State::Waiting;
    }

    fn requested(&mut self, request: SliceRequest, commands: &mut Commands) -> Result<(), StreamError> {
        check_request(&request, &self.limits)?;
        if let Some(offer) = &self.offer {
            let offered = (offer.key.as_str(), &offer.fingerprint[..]);
            check_same_slice(offered, (&request.key, &request.fingerprint))?;
        }
        self.sent = start_of(&request);
        self.queued = self.sent.parcels;
        self.request = Some(request.clone());
        self.state = State::Opening;
        commands.push(SenderCommand::Open(request));
        Ok(())
    }

    fn opened(
        &mut self,
        replayable: bool,
        resume_token: Vec<u8>,
        items_expected: u64,
        bytes_expected: u64,
        now: Instant,
        commands: &mut Commands,
    ) -> Result<(), StreamError> {
        check_token(&resume_token, &self.limits)?;
        let request = self.request.take().expect("Open was commanded with it");
        if let (Some(resume), false) = (&request.resume, replayable) {
            return Err(StreamError::NotReplayable { parcels: resume.parcels });
        }
        self.state = State::Sending;
        let SliceRequest { key, fingerprint, .. } = request;
        let accept = Accept { key, fingerprint, replayable, resume_token, items_expected, bytes_expected };
        self.send(accept, now, commands);
        Ok(())
    }

    fn credited(
        &mut self,
        bytes: u64,
        parcels: u64,
        now: Instant,
        commands: &mut Commands,
    ) -> Result<(), StreamError> {
        if parcels > self.sent.parcels {
            // What was never sent can't be safe.
            return Err(StreamError::Sequence { found: parcels, expected: self.sent.parcels });
        }
        // All that there is could be sent then: more makes no difference.
        self.credit = self.credit.saturating_add(bytes);
        if bytes > 0 && self.blocked_since.is_some() {
            self.blocked_since = Some(now);
        }
        if parcels > self.queued {
            self.queued = parcels;
            commands.push(SenderCommand::Queued { parcels });
        }
        Ok(())
    }

    /// Whether the receiver could take it.
    fn check_parcel(&self, parcel: &Parcel) -> Result<(), StreamError> {
        let sequence = self.sent.parcels + self.waiting.len() as u64;
        parcel.check_sizes(&self.limits).map_err(|error| match error {
            ParcelError::Limit(error) => StreamError::Limit(error),
            source => StreamError::Parcel { sequence, source },
        })?;
        let terms = self.terms.as_ref().expect("data is opened after Welcome");
        if !terms.codecs.contains(&parcel.codec()) {
            return Err(StreamError::Codec { sequence, found: to_wire(parcel.codec()) });
        }
        if !self.goes_in_frames(parcel) {
            self.limits.check(Limit::MessageBytes, parcel.packed_bytes() + MESSAGE_HEAD_BYTES)?;
        }
        Ok(())
    }

    fn goes_in_frames(&self, parcel: &Parcel) -> bool {
        parcel.blob_count() == 1 && parcel.packed_bytes() > self.limits.frame_bytes_max
    }

    fn next_frame(&mut self) -> Option<FeedMessage> {
        let (parcel, offset) = self.framed.as_mut()?;
        let from = *offset as usize;
        let to = parcel.body().len().min(from + self.limits.frame_bytes_max.max(1) as usize);
        let bytes: Bytes = parcel.body().slice(from..to);
        *offset = to as u64;
        let frame = BlobFrame {
            sequence: self.sent.parcels,
            packed_bytes: parcel.packed_bytes(),
            inflated_bytes: parcel.inflated_bytes(),
            codec: to_wire(parcel.codec()),
            offset: from as u64,
            crc32c: crc32c(&bytes),
            bytes,
        };
        if *offset == parcel.packed_bytes() {
            self.sent.add(parcel.blob_count(), parcel.inflated_bytes());
            self.framed = None;
        }
        Some(message(frame))
    }

    fn next_parcel(&mut self, now: Instant) -> Option<FeedMessage> {
        let cost = self.waiting.front()?.cost();
        if cost > self.credit {
            // The receiver is told once for a parcel.
            let told = self.blocked_since.replace(self.blocked_since.unwrap_or(now)).is_some();
            return (!told).then(|| message(Want { bytes: cost, sequence: self.sent.parcels }));
        }
        let parcel = self.waiting.pop_front()?;
        self.blocked_since = None;
        self.credit -= cost;
        self.waiting_bytes -= parcel.packed_bytes();
        if self.goes_in_frames(&parcel) {
            self.framed = Some((parcel, 0));
            return self.next_frame();
        }
        let sequence = self.sent.parcels;
        self.sent.add(parcel.blob_count(), parcel.inflated_bytes());
        Some(message(ParcelMessage {
            sequence,
            blob_count: parcel.blob_count(),
            inflated_bytes: parcel.inflated_bytes(),
            codec: to_wire(parcel.codec()),
            crc32c: parcel.crc32c(),
            bytes: parcel.into_body(),
        }))
    }

    fn complete(&mut self) -> Option<FeedMessage> {
        if self.state != State::Draining || !self.waiting.is_empty() {
            return None;
        }
        self.state = State::Completed;
        let Totals { parcels, items, bytes } = self.sent;
        let Tally { expected, potential, rejected } = self.tally;
        Some(message(Complete { parcels, items, bytes, expected, potential, rejected }))
    }

    fn send(&mut self, kind: impl Into<Kind>, now: Instant, commands: &mut Commands) {
        self.pulse.said(now);
        commands.push(SenderCommand::Send(message(kind)));
    }

    fn end(&mut self, result: Result<Totals, StreamError>, commands: &mut Commands) {
        self.state = State::Ended;
        // What waited is dropped here: its memory is the driver's to count again.
        self.waiting.clear();
        self.framed = None;
        commands.push(SenderCommand::End(result));
    }
}

/// Whether the stream goes on after a message.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Over,
}

/// What stands around a parcel's body in a message, rounded up well.
const MESSAGE_HEAD_BYTES: u64 = 4 << 10;

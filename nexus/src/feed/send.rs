//! Drives the end that has data: a [`Sender`] between a source and a wire.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use pelton_nexus_proto::feed::{Sender, SenderCommand, SenderEvent, StreamError, Terms, Timing, Totals};
use pelton_nexus_proto::messages::feed_message::Kind;
use pelton_nexus_proto::messages::{FeedMessage, Reason, SliceRequest};
use pelton_nexus_proto::{Limits, PackerOptions, Rooms};
use pelton_worker::CancelToken;
use tokio::sync::mpsc;

use super::bulk::{LaneOpening, LaneWay, OpenLane};
use super::end;
use super::outlet::{Next, Parcels, outlet};
use super::receive::ready;
use super::source::{Offering, Source, SourceError};
use super::wire::{Heard, Wire};
use crate::told::told;

/// A sender with all that it needs to run.
pub(crate) struct Sending {
    pub(crate) machine: Sender,
    /// The machine's, for what it does not see: whether the connection takes anything.
    pub(crate) timing: Timing,
    /// What the machine has decided already.
    pub(crate) commands: Vec<SenderCommand>,
    /// What the acceptor of a stream has agreed to.
    pub(crate) terms: Option<Terms>,
    pub(crate) wire: Wire,
    pub(crate) lane: LaneWay,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) packing: PackerOptions,
    pub(crate) limits: Limits,
    pub(crate) rooms: Rooms,
    /// Ends the stream.
    pub(crate) stop: CancelToken,
}

/// What was opened for which request; if not, for which key, and why.
type Opened = Result<(SliceRequest, Offering), (String, SourceError)>;
type Opening = Pin<Box<dyn Future<Output = Opened> + Send>>;

/// What runs beside the machine.
struct Beside {
    opening: Option<Opening>,
    /// Opened, and not yet said: a lane is waited for first.
    opened: Option<(SliceRequest, Offering)>,
    parcels: Option<Parcels>,
    lane_opening: Option<LaneOpening>,
    /// Where data goes: gRPC, or the lane.
    data: mpsc::Sender<FeedMessage>,
    is_lane: bool,
    /// The connection takes a message.
    permit: Option<mpsc::OwnedPermit<FeedMessage>>,
    /// Since when it takes none.
    full_since: Instant,
    is_asked: bool,
    ended: Option<Result<Totals, StreamError>>,
}

enum Event {
    Heard(Heard),
    Opened(Opened),
    Lane(Option<OpenLane>),
    Next(Next),
    Permit(Option<mpsc::OwnedPermit<FeedMessage>>),
    Full,
    Stopped,
    Wake,
}

impl Sending {
    /// Runs the stream to its end. Says also whether anything was asked for: if not, the other end had it.
    pub(crate) async fn run(mut self) -> (bool, Result<Totals, StreamError>) {
        let mut beside = Beside {
            opening: None,
            opened: None,
            parcels: None,
            lane_opening: self.lane.accept(),
            data: self.wire.outgoing.data.clone(),
            is_lane: false,
            permit: None,
            full_since: Instant::now(),
            is_asked: false,
            ended: None,
        };
        loop {
            self.obey(&mut beside);
            if let Some(result) = beside.ended.take() {
                let is_asked = beside.is_asked;
                // The source stops, and what is on the lane goes off before the lane closes.
                drop(beside);
                end(self.wire, &result).await;
                return (is_asked, result);
            }
            self.send_data(&mut beside);
            let event = self.next(&mut beside).await;
            self.on(event, &mut beside);
        }
    }

    async fn next(&mut self, beside: &mut Beside) -> Event {
        let wake = self.machine.next_wake().expect("it has not ended");
        let has_room = self.machine.has_room() && beside.parcels.is_some();
        let wants_permit = beside.permit.is_none() && beside.parcels.is_some();
        // The machine's clocks run while credit is missing. A peer that gives credit and takes no bytes has this one.
        let full_until = beside.full_since + self.timing.stall_max;
        tokio::select! {
            heard = self.wire.hear(&self.limits) => Event::Heard(heard),
            opened = ready(&mut beside.opening) => Event::Opened(opened),
            lane = ready(&mut beside.lane_opening) => Event::Lane(lane),
            next = next(&beside.parcels), if has_room => Event::Next(next),
            permit = beside.data.clone().reserve_owned(), if wants_permit => Event::Permit(permit.ok()),
            () = tokio::time::sleep_until(full_until.into()), if wants_permit => Event::Full,
            () = self.stop.cancelled() => Event::Stopped,
            () = tokio::time::sleep_until(wake.into()) => Event::Wake,
        }
    }

    fn on(&mut self, event: Event, beside: &mut Beside) {
        match event {
            Event::Heard(Heard::Message(message)) => self.tell(SenderEvent::Message(message)),
            Event::Heard(Heard::Refused(error)) => self.tell(SenderEvent::Fail(error)),
            Event::Heard(Heard::Lost) => self.tell(SenderEvent::Lost),
            Event::Opened(Ok(opened)) => {
                beside.opening = None;
                beside.opened = Some(opened);
                self.accept(beside);
            }
            Event::Opened(Err((key, error))) => {
                beside.opening = None;
                let text = format!("{key}: {}", told(&error));
                self.tell(SenderEvent::Abort { reason: error.reason(), text });
            }
            Event::Lane(lane) => {
                beside.lane_opening = None;
                if let Some(lane) = lane {
                    beside.data = lane.write(self.limits.clone(), self.timing.silence_max);
                    beside.is_lane = true;
                }
                self.accept(beside);
            }
            Event::Next(Next::Parcel(parcel)) => self.tell(SenderEvent::Parcel(parcel)),
            Event::Next(Next::Ended(Ok(tally))) => self.tell(SenderEvent::Complete(tally)),
            Event::Next(Next::Ended(Err(error))) => self.fail(&error),
            Event::Permit(Some(permit)) => beside.permit = Some(permit),
            Event::Permit(None) => self.tell(SenderEvent::Lost),
            Event::Full => self.tell(SenderEvent::Fail(StreamError::Stalled(self.timing.stall_max))),
            Event::Stopped => {
                let text = "the sender was told to stop".to_owned();
                self.tell(SenderEvent::Abort { reason: Reason::Cancelled, text });
            }
            Event::Wake => self.tell(SenderEvent::Tick),
        }
    }

    fn obey(&mut self, beside: &mut Beside) {
        for command in std::mem::take(&mut self.commands) {
            match command {
                SenderCommand::Send(message) => self.wire.outgoing.say(message),
                SenderCommand::Agreed(terms) => {
                    beside.lane_opening = self.lane.open(&terms);
                    self.terms = Some(terms);
                }
                SenderCommand::Open(request) => {
                    beside.is_asked = true;
                    beside.opening = Some(open(Arc::clone(&self.source), request));
                }
                // A source can't forget what was sent: it would be asked for again only in another stream.
                SenderCommand::Queued { .. } => {}
                SenderCommand::End(result) => beside.ended = Some(result),
            }
        }
    }

    /// Says that the data will come, when it is open and it is clear by which way.
    fn accept(&mut self, beside: &mut Beside) {
        if beside.lane_opening.is_some() {
            return;
        }
        let Some((request, offering)) = beside.opened.take() else { return };
        let resume = request.resume.as_ref();
        if offering.replayable && resume.is_some_and(|resume| resume.token != offering.resume_token) {
            return self.fail(&SourceError::NotReplayable);
        }
        let Offering { send, replayable, resume_token, items_expected, bytes_expected } = offering;
        self.tell(SenderEvent::Opened { replayable, resume_token, items_expected, bytes_expected });
        let terms = self.terms.as_ref().expect("data is opened after Welcome");
        let packing = PackerOptions { codec: terms.codec(), ..self.packing.clone() };
        let mut limits = self.limits.clone();
        limits.parcel_bytes_max = terms.parcel_bytes_max;
        let (outlet, parcels) = outlet(packing, limits, self.rooms.clone(), replayable, resume);
        beside.parcels = Some(parcels);
        beside.full_since = Instant::now();
        tokio::task::spawn_blocking(move || {
            let result = send(&outlet);
            outlet.end(result);
        });
    }

    /// Gives the connection what it takes.
    fn send_data(&mut self, beside: &mut Beside) {
        while beside.permit.is_some()
            && let Some(message) = self.machine.next_data(Instant::now())
        {
            // On a lane there is only what is data.
            if beside.is_lane && matches!(message.kind, Some(Kind::Want(_))) {
                self.wire.outgoing.say(message);
                continue;
            }
            if let Some(permit) = beside.permit.take() {
                permit.send(message);
                beside.full_since = Instant::now();
            }
        }
    }

    fn fail(&mut self, error: &SourceError) {
        self.tell(SenderEvent::Abort { reason: error.reason(), text: told(error) });
    }

    fn tell(&mut self, event: SenderEvent) {
        self.machine.on(event, Instant::now(), &mut self.commands);
    }
}

fn open(source: Arc<dyn Source>, request: SliceRequest) -> Opening {
    let key = request.key.clone();
    let opening = tokio::task::spawn_blocking(move || match source.open(&request) {
        Ok(offering) => Ok((request, offering)),
        Err(error) => Err((request.key, error)),
    });
    Box::pin(async move {
        match opening.await {
            Ok(opened) => opened,
            Err(error) => Err((key, SourceError::failed(format!("the source failed to open: {error}")))),
        }
    })
}

async fn next(parcels: &Option<Parcels>) -> Next {
    match parcels {
        Some(parcels) => parcels.next().await,
        None => std::future::pending().await,
    }
}

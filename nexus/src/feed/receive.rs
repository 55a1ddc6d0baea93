//! Drives the end that wants data: a [`Receiver`] between a wire and a slice.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use pelton_nexus_proto::feed::{Receiver, ReceiverCommand, ReceiverEvent, StreamError, Totals};
use pelton_nexus_proto::messages::Reason;
use pelton_nexus_proto::{Limits, Rooms};
use pelton_worker::CancelToken;
use tokio::sync::mpsc;

use super::bulk::{LaneFrame, LaneOpening, LaneWay, OpenLane};
use super::credit::{Credit, CreditLine, CreditRefused};
use super::end;
use super::intake::{Intake, Job, Report};
use super::pull::stopped;
use super::wire::{Heard, Wire};
use crate::told::told;

/// A receiver with all that it needs to run.
pub(crate) struct Receiving {
    pub(crate) machine: Receiver,
    /// What the machine has decided already.
    pub(crate) commands: Vec<ReceiverCommand>,
    pub(crate) wire: Wire,
    pub(crate) lane: LaneWay,
    pub(crate) intake: Intake,
    pub(crate) credit: CreditLine,
    pub(crate) limits: Limits,
    /// Ends the stream: nobody wants the data any more.
    pub(crate) stop: [CancelToken; 2],
}

/// How long a lane that has ended may be explained: a sender that fails says so by gRPC and closes both.
const LANE_WORD_WAIT_MAX: Duration = Duration::from_millis(500);

type Needing = Pin<Box<dyn Future<Output = Result<Credit, CreditRefused>> + Send>>;

/// What runs beside the machine.
#[derive(Default)]
struct Beside {
    /// Granted and not used.
    credit: Option<Credit>,
    /// What handed over parcels cost that are not in the slice yet.
    handed_bytes: u64,
    /// Credit that the sender has said it needs.
    needing: Option<Needing>,
    lane_opening: Option<LaneOpening>,
    /// A lane that is not read yet: that begins with Accept.
    lane: Option<OpenLane>,
    lane_frames: Option<mpsc::Receiver<LaneFrame>>,
    /// The lane has ended in the middle: until then gRPC may tell why.
    lane_lost_until: Option<Instant>,
    is_accepted: bool,
    ended: Option<Result<Totals, StreamError>>,
}

enum Event {
    Heard(Heard),
    Frame(Option<LaneFrame>),
    Lane(Option<OpenLane>),
    Needed(Result<Credit, CreditRefused>),
    Reported(Option<Report>),
    LaneLost,
    Stopped,
    Wake,
}

impl Receiving {
    /// Runs the stream to its end. The machine comes back: it knows where a broken stream could go on.
    pub(crate) async fn run(mut self) -> (Receiver, Result<Totals, StreamError>) {
        let mut beside = Beside { lane_opening: self.lane.accept(), ..Beside::default() };
        loop {
            self.obey(&mut beside);
            if let Some(result) = beside.ended.take() {
                // First the memory, then whoever waits for the end.
                drop(beside);
                let Receiving { machine, wire, intake, .. } = self;
                drop(intake);
                end(wire, &result).await;
                return (machine, result);
            }
            self.give_window(&mut beside);
            if !self.commands.is_empty() {
                continue;
            }
            let event = self.next(&mut beside).await;
            self.on(event, &mut beside);
        }
    }

    async fn next(&mut self, beside: &mut Beside) -> Event {
        let wake = self.machine.next_wake().expect("it has not ended");
        tokio::select! {
            heard = self.wire.hear(&self.limits) => Event::Heard(heard),
            frame = frame(&mut beside.lane_frames) => Event::Frame(frame),
            lane = ready(&mut beside.lane_opening) => Event::Lane(lane),
            needed = ready(&mut beside.needing) => Event::Needed(needed),
            report = self.intake.reports.recv() => Event::Reported(report),
            () = at(beside.lane_lost_until) => Event::LaneLost,
            () = stopped(&self.stop) => Event::Stopped,
            () = tokio::time::sleep_until(wake.into()) => Event::Wake,
        }
    }

    fn on(&mut self, event: Event, beside: &mut Beside) {
        match event {
            Event::Heard(Heard::Message(message)) => self.tell(ReceiverEvent::Message(message)),
            Event::Frame(Some(LaneFrame { message, found })) => {
                self.tell(ReceiverEvent::Frame { message, found });
            }
            Event::Heard(Heard::Refused(error)) => self.tell(ReceiverEvent::Fail(error)),
            Event::Heard(Heard::Lost) => self.tell(ReceiverEvent::Lost),
            Event::Frame(None) => {
                beside.lane_frames = None;
                beside.lane_lost_until = Some(Instant::now() + LANE_WORD_WAIT_MAX);
            }
            Event::Lane(lane) => {
                beside.lane_opening = None;
                beside.lane = lane;
                beside.read_lane(&self.limits, self.credit.rooms());
            }
            Event::Needed(Ok(credit)) => {
                beside.needing = None;
                self.grant(credit, beside);
            }
            Event::Needed(Err(refused)) => {
                beside.needing = None;
                self.tell(refusal(refused));
            }
            Event::Reported(Some(Report::Queued { parcels, cost })) => {
                beside.handed_bytes -= cost;
                self.tell(ReceiverEvent::Queued { parcels });
            }
            Event::Reported(Some(Report::Closed)) => self.tell(ReceiverEvent::Closed),
            Event::Reported(Some(Report::Failed { reason, text })) => {
                self.tell(ReceiverEvent::Abort { reason, text });
            }
            Event::Reported(None) => {
                let text = "whoever puts the parcels into the slice has gone".to_owned();
                self.tell(ReceiverEvent::Abort { reason: Reason::Internal, text });
            }
            Event::Stopped => {
                let text = "the data is not wanted any more".to_owned();
                self.tell(ReceiverEvent::Abort { reason: Reason::Cancelled, text });
            }
            // The sender closes the lane behind Complete; before it, the lane is lost.
            Event::LaneLost => {
                beside.lane_lost_until = None;
                if self.machine.is_receiving() {
                    self.tell(ReceiverEvent::Lost);
                }
            }
            Event::Wake => self.tell(ReceiverEvent::Tick),
        }
    }

    fn obey(&mut self, beside: &mut Beside) {
        for command in std::mem::take(&mut self.commands) {
            match command {
                ReceiverCommand::Send(message) => self.wire.outgoing.say(message),
                ReceiverCommand::Agreed(terms) => beside.lane_opening = self.lane.open(&terms),
                ReceiverCommand::Accepted(_) => {
                    beside.is_accepted = true;
                    beside.read_lane(&self.limits, self.credit.rooms());
                }
                ReceiverCommand::Want { bytes } => {
                    beside.needing = Some(Box::pin(self.credit.clone().need(bytes)));
                }
                ReceiverCommand::HandOver { parcel, .. } => {
                    let cost = parcel.cost();
                    let paid = beside.credit.as_mut().expect("it came within its credit").split(cost);
                    beside.handed_bytes += cost;
                    // If nobody takes it, that is reported.
                    let _ = self.intake.jobs.send(Job::Parcel { parcel, paid });
                }
                ReceiverCommand::Close { totals, tally } => {
                    beside.lane_frames = None;
                    let _ = self.intake.jobs.send(Job::Close { totals, tally });
                }
                ReceiverCommand::End { result, credit_unused } => {
                    let held = beside.credit.take();
                    debug_assert_eq!(credit_unused, held.as_ref().map_or(0, Credit::bytes));
                    beside.ended = Some(result);
                }
            }
        }
    }

    /// Keeps the sender going: what it may send and what is on its way into the slice make up the window. While it
    /// needs more than that, it is given exactly what it has asked for.
    fn give_window(&mut self, beside: &mut Beside) {
        if beside.needing.is_some() {
            return;
        }
        let window = self.credit.window();
        let held = beside.credit.as_ref().map_or(0, Credit::bytes) + beside.handed_bytes;
        let missing = window.saturating_sub(held);
        // A quarter at a time: a message for each parcel would be one too many.
        if missing > 0
            && missing >= window / 4
            && let Some(credit) = self.credit.spare(missing)
        {
            self.grant(credit, beside);
        }
    }

    fn grant(&mut self, credit: Credit, beside: &mut Beside) {
        let bytes = credit.bytes();
        match &mut beside.credit {
            Some(held) => held.join(credit),
            none => *none = Some(credit),
        }
        self.tell(ReceiverEvent::Granted { bytes });
    }

    fn tell(&mut self, event: ReceiverEvent) {
        self.machine.on(event, Instant::now(), &mut self.commands);
    }
}

impl Beside {
    fn read_lane(&mut self, limits: &Limits, rooms: &Rooms) {
        if self.is_accepted
            && let Some(lane) = self.lane.take()
        {
            self.lane_frames = Some(lane.read(limits.clone(), rooms.clone()));
        }
    }
}

/// Credit that is not there, and may never be.
fn refusal(refused: CreditRefused) -> ReceiverEvent {
    let text = match refused {
        CreditRefused::Limit(error) => return ReceiverEvent::Fail(StreamError::Limit(error)),
        CreditRefused::Late(_) => format!("{refused}; try again later"),
        CreditRefused::Memory(_) | CreditRefused::Share { .. } => {
            format!("{}; send smaller parcels, or configure more buffers", told(&refused))
        }
    };
    ReceiverEvent::Abort { reason: Reason::ResourceExhausted, text }
}

/// The next frame of the lane; waits for ever without one.
async fn frame(frames: &mut Option<mpsc::Receiver<LaneFrame>>) -> Option<LaneFrame> {
    match frames {
        Some(frames) => frames.recv().await,
        None => std::future::pending().await,
    }
}

/// That moment; waits for ever without one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// What the future comes to; waits for ever without one. Whoever calls takes it away when it is ready.
pub(super) async fn ready<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

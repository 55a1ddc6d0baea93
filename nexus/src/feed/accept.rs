//! Takes what is pushed into a cache.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use pelton_nexus_proto::feed::{Receiver, Side, StreamError, Tally, Terms, message};
use pelton_nexus_proto::messages::feed_message::Kind;
use pelton_nexus_proto::messages::{Done, FeedMessage, Heartbeat, Offer, Reason, SliceRequest};
use pelton_region_format::{Fingerprint, Key};
use pelton_worker::{Cache, CancelToken, Counts, Durability, LoadError, LoadPlan};

use super::bulk::LaneWay;
use super::intake::{Outtake, Target, intake};
use super::options::FeedOptions;
use super::receive::Receiving;
use super::wire::{Heard, Wire};
use super::{LINGER_MAX, ending};
use crate::here::is_here;

/// Takes pushed slices.
#[derive(Clone)]
pub(super) struct Pushes {
    cache: Cache,
    plan: Arc<PlanPush>,
}

type PlanPush = dyn Fn(&Key, Fingerprint) -> LoadPlan + Send + Sync;

impl Pushes {
    /// A pushed slice is told to be there when it would survive a power cut: who pushed it may forget it then.
    pub(super) fn new(cache: Cache) -> Pushes {
        let plan = |_: &Key, fingerprint| {
            let mut plan = LoadPlan::new(fingerprint);
            plan.durability = Durability::Wait;
            plan
        };
        Pushes { cache, plan: Arc::new(plan) }
    }

    /// Sets how slices are loaded that are pushed.
    pub(super) fn planned(
        self,
        plan: impl Fn(&Key, Fingerprint) -> LoadPlan + Send + Sync + 'static,
    ) -> Pushes {
        Pushes { plan: Arc::new(plan), ..self }
    }

    /// Takes one slice, after Welcome was said.
    pub(super) async fn take(
        &self,
        offer: Offer,
        terms: Terms,
        mut wire: Wire,
        lane: LaneWay,
        options: &FeedOptions,
        stop: CancelToken,
    ) -> Result<(), StreamError> {
        let key: Key = offer.key.parse()?;
        let digits: [u8; 32] = offer.fingerprint.as_slice().try_into().expect("an offer was checked");
        let fingerprint = Fingerprint::from_bytes(digits);
        let mut plan = (self.plan)(&key, fingerprint);
        plan.deadline = [plan.deadline, options.timing.deadline].into_iter().flatten().min();
        match self.was_there(&key, &plan, &mut wire, options, &stop).await {
            Ok(true) => {
                wire.outgoing.say(message(Done::default()));
                ending(wire, LINGER_MAX).await;
                return Ok(());
            }
            Ok(false) => {}
            Err(error) => {
                ending(wire, LINGER_MAX).await;
                return Err(error);
            }
        }
        let request = SliceRequest {
            key: offer.key.clone(),
            fingerprint: offer.fingerprint.clone(),
            ..SliceRequest::default()
        };
        let mut commands = Vec::new();
        let (profile, timing) = (options.profile.clone(), options.timing.clone());
        let machine =
            Receiver::pushed(profile, terms, &offer, request, timing, Instant::now(), &mut commands)?;
        let (intake, outtake) = intake(0);
        let credit = options.credit_line(self.cache.buffers());
        let pushes = self.clone();
        tokio::task::spawn_blocking(move || pushes.load(&key, plan, outtake));
        let limits = options.limits.limits().clone();
        let stop = [stop, CancelToken::new()];
        let receiving = Receiving { machine, commands, wire, lane, intake, credit, limits, stop };
        receiving.run().await.1.map(|_| ())
    }

    /// Whether the slice is there as a push would leave it. A commit that is under way is waited for, with signs of life.
    async fn was_there(
        &self,
        key: &Key,
        plan: &LoadPlan,
        wire: &mut Wire,
        options: &FeedOptions,
        stop: &CancelToken,
    ) -> Result<bool, StreamError> {
        let (limits, timing) = (options.limits.limits(), &options.timing);
        let mut looking = pin!(is_here(&self.cache, key, plan.fingerprint, plan.durability));
        let mut beats = tokio::time::interval(timing.heartbeat_every);
        let stalled = Instant::now() + timing.stall_max;
        let give_up: tokio::time::Instant =
            plan.deadline.map_or(stalled, |deadline| deadline.min(stalled)).into();
        let refuse = |reason, text: &str| {
            let (by, limit) = (Side::Here, String::new());
            Err(StreamError::Aborted { by, reason, limit, text: format!("{key}: {text}") })
        };
        let ended: Result<bool, StreamError> = loop {
            tokio::select! {
                is_here = &mut looking => break Ok(is_here),
                _ = beats.tick() => wire.outgoing.say(message(Heartbeat {})),
                heard = wire.hear(limits) => match heard {
                    Heard::Message(FeedMessage { kind: None | Some(Kind::Heartbeat(_)) }) => {}
                    Heard::Message(other) => break Err(StreamError::of_message(other, limits)),
                    Heard::Refused(error) => break Err(error),
                    Heard::Lost => break Err(StreamError::Lost),
                },
                () = stop.cancelled() => break refuse(Reason::Cancelled, "the node stops"),
                () = tokio::time::sleep_until(give_up) => {
                    break refuse(Reason::Unavailable, "it is on its way to a disk that does not answer");
                }
            }
        };
        if let Err(error) = &ended
            && let Some(abort) = error.to_abort(limits)
        {
            wire.outgoing.say(message(abort));
        }
        ended
    }

    /// One load, from its opening to its end. If the stream breaks off, or anything fails, nothing of it is left.
    fn load(&self, key: &Key, plan: LoadPlan, mut outtake: Outtake) {
        if let Err(error) = self.try_load(key, plan, &mut outtake) {
            outtake.fail(&error);
        }
    }

    fn try_load(&self, key: &Key, plan: LoadPlan, outtake: &mut Outtake) -> Result<(), LoadError> {
        let writer = self.cache.snap(key).open_for_writes(plan)?;
        let Some((_, tally)) = outtake.run(Target::Writer(&writer), |_, _| {})? else { return Ok(()) };
        let mut sealed = writer.wait_for_writes()?;
        let Tally { expected, potential, rejected } = tally;
        sealed.tell(Counts {
            expected: Some(expected),
            potential: Some(potential),
            rejected: Some(rejected),
        });
        sealed.close_for_writes()?;
        outtake.closed();
        Ok(())
    }
}

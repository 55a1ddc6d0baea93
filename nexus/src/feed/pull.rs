//! Pulls a slice from its sources.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pelton_nexus_proto::feed::{Receiver, StreamError, Tally, Timing, Totals};
use pelton_nexus_proto::messages::feed_client::FeedClient;
use pelton_nexus_proto::messages::{Caps, FeedMessage, Locus, Property, Reason, Resume, SliceRequest};
use pelton_region_format::{Fingerprint, Key};
use pelton_worker::{CancelToken, Counts, LoadError, SliceWriter};
use tokio::runtime::Handle;
use tonic::Streaming;
use tonic::transport::Channel;

use super::bulk::LaneWay;
use super::credit::CreditLine;
use super::error::{FeedError, helps};
use super::intake::{Intake, Target, intake};
use super::options::{FeedOptions, Retries};
use super::receive::Receiving;
use super::wire::{Heard, Leaving, Wire, heard, outgoing};
use crate::channels::{Channels, SharedChannel};
use crate::dial::{Dial, DialError};
use crate::told::told;

/// One source of a slice: where it is, and what of the slice it has.
#[derive(Clone, Default)]
pub struct FeedFrom {
    /// Where it is. Of several that have the same, the next is asked when one fails.
    pub dials: Vec<Dial>,
    /// Which places its data comes from, in the source's words.
    pub loci: Vec<Locus>,
    /// What is left out, in the source's words.
    pub filter: Vec<u8>,
    /// Which part is taken, in the source's words.
    pub sampling: Vec<u8>,
    /// Anything else.
    pub properties: Vec<Property>,
    /// Where it stops by itself.
    pub caps: Option<Caps>,
}

impl FeedFrom {
    /// All of the slice, from one place.
    pub fn new(dial: Dial) -> FeedFrom {
        FeedFrom { dials: vec![dial], ..FeedFrom::default() }
    }

    fn request(&self, pull: &Pull<'_>, resume: Option<Resume>) -> SliceRequest {
        SliceRequest {
            key: pull.key.to_string(),
            fingerprint: pull.fingerprint.as_bytes().to_vec(),
            loci: self.loci.clone(),
            filter: self.filter.clone(),
            sampling: self.sampling.clone(),
            properties: self.properties.clone(),
            caps: self.caps,
            resume,
        }
    }
}

/// Pulls slices. Blocks: sockets are served by the runtime, all else happens on the calling thread, and on one more for
/// each further source.
#[derive(Clone)]
pub struct Puller {
    runtime: Handle,
    options: FeedOptions,
    retries: Retries,
    on_parcel: Option<Arc<OnParcel>>,
    channels: Channels,
}

/// Told blobs and bytes of each parcel that is in the slice.
type OnParcel = dyn Fn(u64, u64) + Send + Sync;

/// One load.
pub(super) struct Pull<'p> {
    pub(super) key: &'p Key,
    pub(super) fingerprint: Fingerprint,
    pub(super) target: Target<'p>,
    pub(super) deadline: Option<Instant>,
    /// The caller's.
    pub(super) cancel: &'p CancelToken,
}

/// What all sources of one load share.
struct Common {
    /// Cancelled when one of them has failed: the others need not go on.
    stop: CancelToken,
    retries_used: AtomicU32,
}

/// How one try has ended.
enum Tried {
    Whole(Totals, Tally),
    /// The stream is over; the machine knows where it could go on.
    Broken(Box<Receiver>, StreamError),
    Unreached(DialError),
    /// The call was not answered as a stream.
    Refused(StreamError),
}

impl Puller {
    /// Serves its sockets on this runtime, which must run on threads of its own.
    pub fn new(runtime: Handle) -> Puller {
        let (options, retries) = (FeedOptions::default(), Retries::default());
        Puller { runtime, options, retries, on_parcel: None, channels: Channels::default() }
    }

    /// Sets the options.
    pub fn options(self, options: FeedOptions) -> Puller {
        Puller { options, ..self }
    }

    /// Sets how often a broken stream is tried again.
    pub fn retries(self, retries: Retries) -> Puller {
        Puller { retries, ..self }
    }

    /// Is told blobs and bytes of each parcel that is in the slice, from any thread.
    pub fn on_parcel(self, on_parcel: impl Fn(u64, u64) + Send + Sync + 'static) -> Puller {
        Puller { on_parcel: Some(Arc::new(on_parcel)), ..self }
    }

    /// Pulls all of these sources into one slice, side by side. Must not be called on a thread of the runtime.
    ///
    /// A stream that breaks goes on where it broke, if its source can; else it begins anew as long as nothing of it is
    /// in the slice. Blobs are taken out of no slice: otherwise the load has to begin anew, with another writer.
    ///
    /// # Errors
    /// [`FeedError`]: what is in the slice is not whole. Drop the writer; [`FeedError::helps_anew`] tells whether to try with
    /// another one.
    pub fn pull(
        &self,
        into: &SliceWriter,
        fingerprint: Fingerprint,
        sources: &[FeedFrom],
        deadline: Option<Instant>,
        cancel: &CancelToken,
    ) -> Result<Counts, FeedError> {
        let target = Target::Writer(into);
        self.run(&Pull { key: into.key(), fingerprint, target, deadline, cancel }, sources)
    }

    pub(super) fn run(&self, pull: &Pull<'_>, sources: &[FeedFrom]) -> Result<Counts, FeedError> {
        let common = Common { stop: CancelToken::new(), retries_used: AtomicU32::new(0) };
        let one =
            |source: &FeedFrom| self.pull_source(pull, &common, source).inspect_err(|_| common.stop.cancel());
        let Some((first, others)) = sources.split_first() else {
            return Err(FeedError::NoSource { key: pull.key.clone() });
        };
        let ends: Vec<Result<(Totals, Tally), FeedError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = others
                .iter()
                .map(|source| {
                    let thread = std::thread::Builder::new().name("pelton-feed".to_owned());
                    thread.spawn_scoped(scope, || one(source))
                })
                .collect();
            let first = one(first);
            let others = threads.into_iter().map(|thread| {
                let lost = |text: String| FeedError::Runtime { key: pull.key.clone(), text };
                match thread {
                    Ok(thread) => thread.join().unwrap_or_else(|_| Err(lost("a thread panicked".to_owned()))),
                    Err(error) => {
                        common.stop.cancel();
                        Err(lost(format!("the system gave no thread: {error}")))
                    }
                }
            });
            std::iter::once(first).chain(others).collect()
        });
        self.join(pull, ends)
    }

    /// The counts of all, or the error of the first that failed by itself.
    fn join(
        &self,
        pull: &Pull<'_>,
        ends: Vec<Result<(Totals, Tally), FeedError>>,
    ) -> Result<Counts, FeedError> {
        let mut counts = Counts { expected: Some(0), potential: Some(0), rejected: Some(0) };
        let mut failed: Option<FeedError> = None;
        for end in ends {
            match end {
                Ok((totals, tally)) => {
                    let said = |number: u64| (number > 0 || totals.items == 0).then_some(number);
                    counts.expected = counts.expected.zip(said(tally.expected)).map(|(a, b)| a + b);
                    counts.potential = counts.potential.zip(said(tally.potential)).map(|(a, b)| a + b);
                    counts.rejected = counts.rejected.map(|rejected| rejected + tally.rejected);
                }
                Err(error) => {
                    let is_stopped = |error: &FeedError| matches!(error, FeedError::Stopped { .. });
                    if failed.as_ref().is_none_or(is_stopped) {
                        failed = Some(error);
                    }
                }
            }
        }
        match failed {
            None => Ok(counts),
            Some(_) if pull.cancel.is_cancelled() => Err(FeedError::Stopped { key: pull.key.clone() }),
            Some(error) => Err(error),
        }
    }

    fn pull_source(
        &self,
        pull: &Pull<'_>,
        common: &Common,
        source: &FeedFrom,
    ) -> Result<(Totals, Tally), FeedError> {
        let (mut tries, mut at) = (0, 0);
        let mut resume: Option<Resume> = None;
        loop {
            if pull.cancel.is_cancelled() || common.stop.is_cancelled() {
                return Err(FeedError::Stopped { key: pull.key.clone() });
            }
            let Some(dial) = source.dials.get(at % source.dials.len().max(1)) else {
                return Err(FeedError::NoSource { key: pull.key.clone() });
            };
            tries += 1;
            let had = resume.as_ref().map_or(0, |resume| resume.parcels);
            let request = source.request(pull, resume.clone());
            let (tried, parcels) = self.try_once(pull, common, dial, request, had)?;
            let (error, again) = match tried {
                Tried::Whole(totals, tally) => return Ok((totals, tally)),
                Tried::Unreached(error) => {
                    (FeedError::Dial { key: pull.key.clone(), tries, source: error }, true)
                }
                Tried::Refused(error) => {
                    let again = helps(&error);
                    (self.broken(pull, dial, (tries, parcels), error), again)
                }
                Tried::Broken(mut machine, error) => {
                    let further = machine.resume(parcels);
                    // What is in the slice can't be taken out again, so who can't go on with it is of no use.
                    let is_stuck = parcels > 0 && error.reason() == Reason::NotReplayable;
                    let again = further.is_some() || (parcels == had && helps(&error) && !is_stuck);
                    // With nothing in the slice it begins anew: a token would bind it to one source for nothing.
                    resume = further.or(resume).filter(|resume| resume.parcels > 0);
                    (self.broken(pull, dial, (tries, parcels), error), again)
                }
            };
            let retry = common.retries_used.fetch_add(1, Ordering::Relaxed);
            let late = pull.deadline.is_some_and(|deadline| deadline <= Instant::now());
            if !again || late || retry >= self.retries.count_max {
                return Err(error);
            }
            let (peer, error) = (dial.address(), told(&error));
            tracing::info!(key = %pull.key, peer, error, "a feed is tried again");
            // Whoever has the rest of a stream goes on with it; what begins anew may begin elsewhere.
            if resume.is_none() {
                at += 1;
            }
            self.pause(pull, common, self.retries.pause(retry));
        }
    }

    /// One stream. Says also how many parcels of the source are in the slice now.
    fn try_once(
        &self,
        pull: &Pull<'_>,
        common: &Common,
        dial: &Dial,
        request: SliceRequest,
        had: u64,
    ) -> Result<(Tried, u64), FeedError> {
        let (intake, mut outtake) = intake(had);
        let credit = self.options.credit_line(pull.target.buffers());
        let stop = [pull.cancel.clone(), common.stop.clone()];
        let timing = self.timing(pull);
        let way = (self.channels.clone(), dial.clone());
        let stream = stream(way, self.options.clone(), timing, request, intake, credit, stop);
        let stream = self.runtime.spawn(stream);
        let taken = outtake.run(pull.target, |blobs, bytes| {
            if let Some(on_parcel) = &self.on_parcel {
                on_parcel(blobs, bytes);
            }
        });
        if let Ok(Some(_)) = taken {
            outtake.closed();
        }
        let ended = self.runtime.block_on(stream);
        let ended =
            ended.map_err(|error| FeedError::Runtime { key: pull.key.clone(), text: error.to_string() })?;
        let tally = match taken {
            Ok(closed) => closed.map(|(_, tally)| tally),
            // The sender may repeat a parcel that came damaged.
            Err(LoadError::Parcel { .. }) => None,
            Err(source) => return Err(FeedError::Load { key: pull.key.clone(), source }),
        };
        let tried = match ended {
            Ok((machine, Ok(totals))) => match tally {
                Some(tally) => Tried::Whole(totals, tally),
                None => Tried::Broken(Box::new(machine), StreamError::Lost),
            },
            Ok((machine, Err(error))) => Tried::Broken(Box::new(machine), error),
            Err(tried) => tried,
        };
        Ok((tried, outtake.parcels()))
    }

    fn timing(&self, pull: &Pull<'_>) -> Timing {
        let deadline = [self.options.timing.deadline, pull.deadline].into_iter().flatten().min();
        Timing { deadline, ..self.options.timing.clone() }
    }

    fn pause(&self, pull: &Pull<'_>, common: &Common, pause: Duration) {
        let left = pull.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let pause = left.map_or(pause, |left| left.min(pause));
        self.runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = pull.cancel.cancelled() => {}
                () = common.stop.cancelled() => {}
            }
        });
    }

    fn broken(
        &self,
        pull: &Pull<'_>,
        dial: &Dial,
        (tries, parcels): (u32, u64),
        source: StreamError,
    ) -> FeedError {
        if matches!(source.reason(), Reason::Cancelled) && pull.cancel.is_cancelled() {
            return FeedError::Stopped { key: pull.key.clone() };
        }
        FeedError::Stream { key: pull.key.clone(), peer: dial.address(), tries, parcels, source }
    }
}

/// One stream, on the runtime.
async fn stream(
    (channels, dial): (Channels, Dial),
    options: FeedOptions,
    timing: Timing,
    request: SliceRequest,
    intake: Intake,
    credit: CreditLine,
    stop: [CancelToken; 2],
) -> Result<(Receiver, Result<Totals, StreamError>), Tried> {
    let mut commands = Vec::new();
    let limits = options.limits.limits().clone();
    let (way_out, leaving) = outgoing();
    let connecting = call(&channels, &dial, &options, &timing, leaving);
    // The first command is Hello. It is said before the call is answered: not everybody answers a call before it has heard
    // something.
    let machine =
        Receiver::pull(options.profile.clone(), request, timing.clone(), Instant::now(), &mut commands)
            .map_err(Tried::Refused)?;
    for command in commands.drain(..) {
        if let pelton_nexus_proto::feed::ReceiverCommand::Send(message) = command {
            way_out.say(message);
        }
    }
    let (channel, incoming) = tokio::select! {
        connected = connecting => connected?,
        () = stopped(&stop) => {
            let (by, reason) = (pelton_nexus_proto::feed::Side::Here, Reason::Cancelled);
            let (limit, text) = (String::new(), "the data is not wanted any more".to_owned());
            return Err(Tried::Refused(StreamError::Aborted { by, reason, limit, text }));
        }
    };
    let wire = Wire { incoming, outgoing: way_out };
    let lane = if options.profile.lane { LaneWay::Dial(dial) } else { LaneWay::None };
    let receiving = Receiving { machine, commands, wire, lane, intake, credit, limits, stop };
    let (machine, result) = receiving.run().await;
    if matches!(result, Err(StreamError::Lost | StreamError::Silent(_))) {
        channel.lose();
    }
    Ok((machine, result))
}

/// Ready when one of them is cancelled.
pub(super) async fn stopped(stop: &[CancelToken; 2]) {
    tokio::select! {
        () = stop[0].cancelled() => {}
        () = stop[1].cancelled() => {}
    }
}

/// Connects, and calls Feed.Open.
async fn call(
    channels: &Channels,
    dial: &Dial,
    options: &FeedOptions,
    timing: &Timing,
    leaving: Leaving,
) -> Result<(SharedChannel, Streaming<FeedMessage>), Tried> {
    let channel = channels.to(dial).await.map_err(Tried::Unreached)?;
    match open_feed(channel.channel(), options, timing, leaving).await {
        Ok(incoming) => Ok((channel, incoming)),
        Err(error) => {
            if matches!(error, StreamError::Lost | StreamError::Silent(_)) {
                channel.lose();
            }
            Err(Tried::Refused(error))
        }
    }
}

/// Calls Feed.Open, within the time that a silent peer has.
pub(super) async fn open_feed(
    channel: Channel,
    options: &FeedOptions,
    timing: &Timing,
    leaving: Leaving,
) -> Result<Streaming<FeedMessage>, StreamError> {
    let limits = options.limits.limits();
    let size = usize::try_from(limits.message_bytes_max).unwrap_or(usize::MAX);
    let mut client = FeedClient::new(channel).max_decoding_message_size(size);
    let left = timing.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let wait = left.map_or(timing.silence_max, |left| left.min(timing.silence_max));
    match tokio::time::timeout(wait, client.open(leaving)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(match heard(&status, limits) {
            Heard::Message(message) => StreamError::of_message(message, limits),
            Heard::Refused(error) => error,
            Heard::Lost => StreamError::Lost,
        }),
        Err(_) if left.is_some_and(|left| left <= timing.silence_max) => Err(StreamError::Deadline),
        Err(_) => Err(StreamError::Silent(timing.silence_max)),
    }
}

//! Serves Feed: to who pulls from a source, and to who pushes into a cache.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use pelton_nexus_proto::feed::{Asked, Sender, Side, StreamError, answer, message};
use pelton_nexus_proto::messages::feed_server::{Feed, FeedServer};
use pelton_nexus_proto::messages::{FeedMessage, Reason};
use pelton_region_format::{Fingerprint, Key};
use pelton_worker::{Cache, CancelToken, LoadPlan};
use tokio_stream::{Stream, StreamExt};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::accept::Pushes;
use super::bulk::LaneWay;
use super::options::FeedOptions;
use super::send::Sending;
use super::source::Source;
use super::wire::{Heard, Leaving, Wire, answering};
use super::{LINGER_MAX, ending};
use crate::door::{Caller, Door};
use crate::lanes::Lanes;
use crate::node::health_of;
use crate::role::{Role, permit};
use crate::server::server;

/// Serves Feed: to who pulls from a source, and to who pushes into a cache. Clones are the same.
#[derive(Clone)]
pub struct FeedService {
    source: Option<Arc<dyn Source>>,
    pushes: Option<Pushes>,
    options: FeedOptions,
    lanes: Option<Lanes>,
    stop: CancelToken,
}

impl FeedService {
    /// Gives what a source has.
    pub fn of_source(source: impl Source) -> FeedService {
        FeedService::new(Some(Arc::new(source)), None)
    }

    /// Takes what is pushed into a cache. It keeps a handle of it.
    pub fn into_cache(cache: Cache) -> FeedService {
        FeedService::new(None, Some(Pushes::new(cache)))
    }

    fn new(source: Option<Arc<dyn Source>>, pushes: Option<Pushes>) -> FeedService {
        let (options, stop) = (FeedOptions::default(), CancelToken::new());
        FeedService { source, pushes, options, lanes: None, stop }
    }

    /// Sets the options.
    pub fn options(self, options: FeedOptions) -> FeedService {
        FeedService { options, ..self }
    }

    /// Offers lanes of this door, which must be the one that the service is behind.
    pub fn lanes(self, lanes: Lanes) -> FeedService {
        FeedService { lanes: Some(lanes), ..self }
    }

    /// Sets how slices are loaded that are pushed. By default they are durable when the pusher is told that they are
    /// there. Asked on a thread of the runtime: `plan` must not wait.
    pub fn push_plan(
        self,
        plan: impl Fn(&Key, Fingerprint) -> LoadPlan + Send + Sync + 'static,
    ) -> FeedService {
        FeedService { pushes: self.pushes.map(|pushes| pushes.planned(plan)), ..self }
    }

    /// Ends all streams when the token is cancelled.
    pub fn stop(self, stop: CancelToken) -> FeedService {
        FeedService { stop, ..self }
    }

    /// For tonic's router. It must know who calls, and with which role: behind a [`Door`] it does; behind another listener
    /// an interceptor has to put a [`Caller`] into each request.
    pub fn into_server(self) -> FeedServer<FeedService> {
        let size = usize::try_from(self.options.limits.limits().message_bytes_max).unwrap_or(usize::MAX);
        FeedServer::new(self).max_decoding_message_size(size)
    }

    /// Serves it, and health, behind this door until `until` is ready. A process that serves more adds
    /// [`Self::into_server`] to a router of its own.
    ///
    /// # Errors
    /// What the transport says.
    pub async fn serve_behind(self, door: Door, until: impl Future<Output = ()>) -> std::io::Result<()> {
        let (health, serving) = health_of(FeedServer::<FeedService>::NAME);
        let until = async move {
            until.await;
            drop(serving);
        };
        let server = server(self.options.limits.limits()).add_service(health).add_service(self.into_server());
        server.serve_with_incoming_shutdown(door.incoming(), until).await.map_err(std::io::Error::other)
    }

    /// Runs one stream to its end.
    async fn serve(self, caller: Option<Caller>, mut wire: Wire) {
        // Streams and lanes are counted by it.
        let peer = caller.as_ref().map_or_else(String::new, Caller::name);
        let place = match self.options.limits.stream(&peer) {
            Ok(place) => place,
            Err(error) => return self.refuse(wire, error.into()).await,
        };
        let limits = self.options.limits.limits();
        let silence_max = self.options.timing.silence_max;
        let first = match tokio::time::timeout(silence_max, wire.hear(limits)).await {
            Ok(Heard::Message(first)) => first,
            Ok(Heard::Refused(error)) => return self.refuse(wire, error).await,
            Ok(Heard::Lost) | Err(_) => return,
        };
        let mut lane = LaneWay::None;
        let offer_lane = || {
            let offered = self.lanes.as_ref()?.offer(&peer)?;
            let told = offered.lane().clone();
            lane = LaneWay::Offered(offered);
            Some(told)
        };
        let answered = match answer(first, &self.options.profile, offer_lane) {
            Ok(answered) => answered,
            Err(error) => return self.refuse(wire, error).await,
        };
        if let Err(error) = permitted(caller.as_ref(), &answered.asked) {
            return self.refuse(wire, error).await;
        }
        let terms = answered.terms;
        tracing::debug!(%peer, software = %terms.peer_software, asked = ?answered.asked, "a feed begins");
        let ended = match (answered.asked, &self.source, &self.pushes) {
            (Asked::Pull, Some(source), _) => {
                wire.outgoing.say(answered.welcome);
                let (profile, timing) = (self.options.profile.clone(), self.options.timing.clone());
                let sending = Sending {
                    machine: Sender::pulled(profile, terms.clone(), timing.clone(), Instant::now()),
                    timing,
                    commands: Vec::new(),
                    terms: Some(terms),
                    wire,
                    lane,
                    source: Arc::clone(source),
                    packing: self.options.packing.clone(),
                    limits: limits.clone(),
                    rooms: self.options.limits.rooms().clone(),
                    stop: self.stop.clone(),
                };
                sending.run().await.1.map(|_| ())
            }
            (Asked::Push(offer), _, Some(pushes)) => {
                wire.outgoing.say(answered.welcome);
                pushes.take(offer, terms, wire, lane, &self.options, self.stop.clone()).await
            }
            (Asked::Pull, None, _) => return self.refuse(wire, unserved("nothing is given")).await,
            (Asked::Push(_), _, None) => return self.refuse(wire, unserved("nothing is taken")).await,
        };
        match ended {
            Ok(()) => tracing::debug!(%peer, "a feed has ended whole"),
            Err(error) => tracing::info!(%peer, %error, "a feed has ended"),
        }
        drop(place);
    }

    /// Says why not, and nothing else.
    async fn refuse(&self, wire: Wire, error: StreamError) {
        if let Some(abort) = error.to_abort(self.options.limits.limits()) {
            wire.outgoing.say(message(abort));
        }
        ending(wire, LINGER_MAX).await;
    }
}

/// Who takes data away needs less than who brings it.
fn permitted(caller: Option<&Caller>, asked: &Asked) -> Result<(), StreamError> {
    let permitted = match asked {
        Asked::Pull => permit(caller, Role::Reader, "a pull"),
        Asked::Push(_) => permit(caller, Role::Loader, "a push"),
    };
    permitted.map_err(forbidden)
}

fn unserved(what: &str) -> StreamError {
    forbidden(format!("{what} here by Feed"))
}

fn forbidden(text: String) -> StreamError {
    StreamError::Aborted { by: Side::Here, reason: Reason::Forbidden, limit: String::new(), text }
}

#[tonic::async_trait]
impl Feed for FeedService {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<FeedMessage, Status>> + Send>>;

    async fn open(
        &self,
        request: Request<Streaming<FeedMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let (way_out, leaving): (_, Leaving) = answering();
        let wire = Wire { incoming: request.into_inner(), outgoing: way_out };
        tokio::spawn(self.clone().serve(caller, wire));
        Ok(Response::new(Box::pin(leaving.map(Ok))))
    }
}

//! Whether the node serves, for load balancers and whoever starts it: `grpc.health.v1`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pelton_nexus_proto::messages::health::health_check_response::ServingStatus;
use pelton_nexus_proto::messages::health::health_server::{Health, HealthServer};
use pelton_nexus_proto::messages::health::{HealthCheckRequest, HealthCheckResponse};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::state::{Drained, State};

/// Health of a process that serves one thing. It serves until what comes with it is dropped; then who watches is told no
/// more.
pub(crate) fn health_of(service: &'static str) -> (HealthServer<Checkers>, Serving) {
    let state = Arc::new(State::new(Duration::ZERO));
    state.set_ready();
    let health = HealthServer::new(Checkers::new(Arc::clone(&state), vec![service]));
    (health, Serving { state })
}

/// Somebody serves.
pub(crate) struct Serving {
    state: Arc<State>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.state.end(Drained { calls_cut: 0, leases_left: 0 });
    }
}

/// Answers for the node as a whole (the empty name) and for each service. They begin and end together.
pub(crate) struct Checkers {
    state: Arc<State>,
    services: Vec<&'static str>,
}

impl Checkers {
    pub(super) fn new(state: Arc<State>, services: Vec<&'static str>) -> Checkers {
        Checkers { state, services }
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(&service)
    }
}

#[tonic::async_trait]
impl Health for Checkers {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !self.knows(&service) {
            return Err(Status::not_found(format!("{service:?} is not served here")));
        }
        Ok(Response::new(answer(self.state.is_serving())))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !self.knows(&request.into_inner().service) {
            // What is not served now may be later, says the protocol: so the stream stays, and here nothing comes.
            let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
            return Ok(Response::new(Box::pin(tokio_stream::once(Ok(unknown)))));
        }
        let mut watch = self.state.watch();
        let (sender, answers) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut serves = watch.is_serving();
            loop {
                if sender.send(Ok(answer(serves))).await.is_err() {
                    return;
                }
                let next = tokio::select! {
                    next = watch.next(serves) => next,
                    () = sender.closed() => return,
                };
                match next {
                    Some(next) => serves = next,
                    None => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

fn answer(serves: bool) -> HealthCheckResponse {
    let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

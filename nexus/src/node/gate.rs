//! What every call passes: who may, whether the node drains, and the end of calls that take too long for a drain or for
//! who asked.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use pelton_nexus_proto::Limits;
use pelton_nexus_proto::messages::Operation;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::{Code, Status};
use tower::Layer;

use super::state::{Call, State};
use crate::door::Caller;
use crate::role::{self, Role};

/// What a call needs: a role, or nothing.
type Needs = Option<Role>;

/// Who may call what, by the beginnings of paths. What is not here needs the highest role.
const TABLE: [(&str, Needs); 5] = [
    ("/grpc.health.v1.Health/", None),
    ("/pelton.nexus.v1.Peer/", Some(Role::Reader)),
    // And what its direction needs.
    ("/pelton.nexus.v1.Feed/", Some(Role::Reader)),
    // And what its operation needs.
    ("/pelton.nexus.v1.Admin/Operate", Some(Role::Reader)),
    ("/pelton.nexus.v1.Admin/ListLeases", Some(Role::Reader)),
];
const NEEDED_ELSE: Needs = Some(Role::Admin);

/// What an operation needs.
pub(super) fn needed_by(operation: Operation) -> Role {
    match operation {
        Operation::Search => Role::Reader,
        Operation::Pin | Operation::Unpin | Operation::Warm => Role::Loader,
        _ => Role::Admin,
    }
}

/// Refuses whoever has not the role that `what` needs.
pub(super) fn permit(caller: Option<&Caller>, needed: Role, what: &str) -> Result<(), Status> {
    role::permit(caller, needed, what).map_err(Status::permission_denied)
}

fn needs(path: &str) -> Needs {
    let found = TABLE.iter().find(|(begin, _)| path.starts_with(begin));
    found.map_or(NEEDED_ELSE, |(_, needs)| *needs)
}

/// Whether a call is part of what a drain waits for, and refused while it lasts. Who looks at the node, or stops it,
/// goes on.
fn is_work(path: &str) -> bool {
    needs(path).is_some() && path != "/pelton.nexus.v1.Admin/Drain"
}

/// Puts the gate before services.
#[derive(Clone)]
pub(super) struct GateLayer {
    state: Arc<State>,
    message_bytes_max: u64,
}

impl GateLayer {
    pub(super) fn new(state: Arc<State>, limits: &Limits) -> GateLayer {
        GateLayer { state, message_bytes_max: limits.message_bytes_max }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, state: Arc::clone(&self.state), message_bytes_max: self.message_bytes_max }
    }
}

/// Services behind the gate.
#[derive(Clone)]
pub(super) struct Gate<S> {
    inner: S,
    state: Arc<State>,
    message_bytes_max: u64,
}

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let allowed = match needs(path) {
            Some(role) => permit(request.extensions().get::<Caller>(), role, path),
            None => Ok(()),
        };
        if let Err(status) = allowed {
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let call = match is_work(path) {
            true => self.state.begin().map(Some),
            false => Some(None),
        };
        let Some(call) = call else {
            let status = Status::unavailable("the node drains and takes nothing new; ask another");
            return Box::pin(std::future::ready(Ok(status.into_http())));
        };
        // Before whoever else looks at it may begin to count.
        let until = wait_max(request.headers()).map(|wait| Instant::now() + wait);
        let (answering, message_bytes_max) = (self.inner.call(request), self.message_bytes_max);
        Box::pin(async move {
            let mut end: EarlyEnd = Box::pin(early_end(call.as_ref().map(Call::cut), until));
            tokio::select! {
                // First, so that an answer that is there is given.
                biased;
                answer = answering => {
                    let hold = |body| Body::new(Held { body, end, call, is_over: false });
                    answer.map(|answer| match is_too_large(&answer) {
                        true => too_large(message_bytes_max).into_http(),
                        false => answer.map(hold),
                    })
                }
                early = &mut end => Ok(early.status(call.as_ref()).into_http()),
            }
        })
    }
}

/// Whether the request's message was not even read: the codec says so by a status that nothing else here uses.
fn is_too_large(answer: &http::Response<Body>) -> bool {
    let status = answer.headers().get("grpc-status").and_then(|status| status.to_str().ok());
    status.and_then(|status| status.parse().ok()) == Some(Code::OutOfRange as i32)
}

fn too_large(max: u64) -> Status {
    Status::resource_exhausted(format!(
        "message_bytes_max: a message has more than the {max} bytes that are allowed"
    ))
}

/// Why a call ends before it is done.
enum Early {
    /// A drain waits no longer.
    Cut,
    /// Who asked waits no longer.
    Late,
}

type EarlyEnd = Pin<Box<dyn Future<Output = Early> + Send>>;

/// Pends until one of them comes.
async fn early_end(cut: Option<impl Future<Output = ()>>, until: Option<Instant>) -> Early {
    let cut = async {
        match cut {
            Some(cut) => cut.await,
            None => std::future::pending().await,
        }
    };
    let late = async {
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = cut => Early::Cut,
        () = late => Early::Late,
    }
}

impl Early {
    /// As who asked is told it. What was cut is counted.
    fn status(&self, call: Option<&Call>) -> Status {
        match self {
            Early::Cut => {
                call.into_iter().for_each(Call::count_cut);
                Status::unavailable("the node has ended before this was done; ask another")
            }
            Early::Late => Status::deadline_exceeded("this was not done in the time that was given for it"),
        }
    }
}

/// How long who asks will wait: gRPC's own header, a number of at most eight digits and a unit. What is none counts as
/// none.
fn wait_max(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > 8 || !number.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(3600 * number),
        "M" => Duration::from_secs(60 * number),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// An answer on its way. Its call, if it is work, is under way until all of it was sent.
struct Held {
    body: Body,
    end: EarlyEnd,
    call: Option<Call>,
    is_over: bool,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(early) = self.end.as_mut().poll(context) {
            let status = early.status(self.call.as_ref());
            self.is_over = true;
            // Dropped first: whoever made this answer notices, and only then is the call over.
            self.body = Body::empty();
            self.call = None;
            let mut trailers = http::HeaderMap::new();
            return Poll::Ready(Some(match status.add_header(&mut trailers) {
                Ok(()) => Ok(Frame::trailers(trailers)),
                Err(status) => Err(status),
            }));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(None) = polled {
            self.is_over = true;
            self.call = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_as_grpc_writes_it_and_nothing_else_is_one() {
        let read = |text: &str| {
            wait_max(&[("grpc-timeout".parse().unwrap(), text.parse().unwrap())].into_iter().collect())
        };
        for (text, wait) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("300m", Duration::from_millis(300)),
            ("0u", Duration::ZERO),
            ("5n", Duration::from_nanos(5)),
        ] {
            assert_eq!(read(text), Some(wait), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "100000000S", " 1S"] {
            assert_eq!(read(text), None, "{text:?}");
        }
        assert_eq!(wait_max(&http::HeaderMap::new()), None);
    }

    #[test]
    fn every_call_needs_what_the_documents_say() {
        let page = include_str!("../../../docs/nexus.md");
        for (path, needed) in [
            ("/grpc.health.v1.Health/Check", None),
            ("/grpc.health.v1.Health/Watch", None),
            ("/pelton.nexus.v1.Peer/GetManifest", Some(Role::Reader)),
            ("/pelton.nexus.v1.Peer/FetchRange", Some(Role::Reader)),
            ("/pelton.nexus.v1.Peer/OpenLane", Some(Role::Reader)),
            ("/pelton.nexus.v1.Feed/Open", Some(Role::Reader)),
            ("/pelton.nexus.v1.Admin/Operate", Some(Role::Reader)),
            ("/pelton.nexus.v1.Admin/ListLeases", Some(Role::Reader)),
            ("/pelton.nexus.v1.Admin/Drain", Some(Role::Admin)),
            ("/pelton.nexus.v2.Other/Any", Some(Role::Admin)),
            ("/", Some(Role::Admin)),
        ] {
            assert_eq!(needs(path), needed, "{path}");
        }
        let row = |role: Role| {
            page.lines()
                .find(|line| line.starts_with(&format!("| role {role} |")))
                .expect("each role has a row")
        };
        use Operation::{Erase, Evict, Flush, Pin, Search, Unpin, Verify, Warm};
        for operation in [Search, Pin, Unpin, Warm] {
            let name = operation.as_str_name().trim_start_matches("OPERATION_");
            assert!(row(needed_by(operation)).contains(name), "{name}");
        }
        for operation in [Evict, Flush, Erase, Verify, Operation::Unspecified] {
            assert_eq!(needed_by(operation), Role::Admin);
        }
    }
}

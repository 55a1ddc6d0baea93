//! The messages of one stream on their way: gRPC, and the lane beside it.

use std::pin::Pin;
use std::task::{Context, Poll};

use pelton_nexus_proto::feed::{Side, StreamError, message};
use pelton_nexus_proto::messages::feed_message::Kind;
use pelton_nexus_proto::messages::{Abort, FeedMessage, Reason};
use pelton_nexus_proto::{Limit, Limits, plain};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Status, Streaming};

/// Data that gRPC has taken and not sent. One: what waits is the machine's, where an abort passes it.
const DATA_QUEUED_MAX: usize = 1;

/// One end of a stream's gRPC side.
pub(crate) struct Wire {
    pub(crate) incoming: Streaming<FeedMessage>,
    pub(crate) outgoing: Outgoing,
}

/// Where messages leave. Dropping it ends this end's direction when all is sent.
pub(crate) struct Outgoing {
    /// Few and small, and at once.
    pub(crate) control: mpsc::UnboundedSender<FeedMessage>,
    /// One at a time, when the connection takes one.
    pub(crate) data: mpsc::Sender<FeedMessage>,
    /// Whether these are the answers to a call.
    is_answer: bool,
}

/// What leaves, control before data. Nothing comes after an Abort.
pub(crate) struct Leaving {
    control: mpsc::UnboundedReceiver<FeedMessage>,
    data: mpsc::Receiver<FeedMessage>,
    is_over: bool,
}

/// Both ends of the way out of a call.
pub(crate) fn outgoing() -> (Outgoing, Leaving) {
    way_out(false)
}

/// Both ends of the way out of its answer.
pub(crate) fn answering() -> (Outgoing, Leaving) {
    way_out(true)
}

fn way_out(is_answer: bool) -> (Outgoing, Leaving) {
    let (control, leaving_control) = mpsc::unbounded_channel();
    let (data, leaving_data) = mpsc::channel(DATA_QUEUED_MAX);
    (
        Outgoing { control, data, is_answer },
        Leaving { control: leaving_control, data: leaving_data, is_over: false },
    )
}

impl Outgoing {
    /// Sends it before any data that waits. If the connection is gone, the other direction says so.
    pub(crate) fn say(&self, message: FeedMessage) {
        let _ = self.control.send(message);
    }

    /// Ready when nobody takes answers any more: the call was cut off, or has gone. What a call itself says may end
    /// before its answer does.
    async fn gone(&self) {
        match self.is_answer {
            true => self.control.closed().await,
            false => std::future::pending().await,
        }
    }
}

impl Stream for Leaving {
    type Item = FeedMessage;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<FeedMessage>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let control = self.control.poll_recv(context);
        if let Poll::Ready(Some(message)) = control {
            self.is_over = matches!(message.kind, Some(Kind::Abort(_)));
            return Poll::Ready(Some(message));
        }
        match self.data.poll_recv(context) {
            Poll::Ready(None) if control.is_pending() => Poll::Pending,
            data => data,
        }
    }
}

/// What has come of listening to the peer.
pub(crate) enum Heard {
    Message(FeedMessage),
    /// The connection stands, and what came on it can't be taken.
    Refused(StreamError),
    Lost,
}

impl Wire {
    /// The next message.
    pub(crate) async fn hear(&mut self, limits: &Limits) -> Heard {
        let next = tokio::select! {
            // First what the peer has said, which may be why it has gone.
            biased;
            next = self.incoming.next() => next,
            () = self.outgoing.gone() => None,
        };
        match next {
            Some(Ok(message)) => Heard::Message(message),
            Some(Err(status)) => heard(&status, limits),
            None => Heard::Lost,
        }
    }
}

/// What a status says, which gRPC sends or makes in place of messages.
pub(crate) fn heard(status: &Status, limits: &Limits) -> Heard {
    let text = status.message().to_owned();
    let reason = match status.code() {
        // Our own decoder: a message larger than it may be.
        Code::OutOfRange => {
            let limit = Limit::MessageBytes.name().to_owned();
            let text = format!("more than {}: {}", limits.message_bytes_max, plain(&text));
            let by = Side::Here;
            return Heard::Refused(StreamError::Aborted {
                by,
                reason: Reason::ResourceExhausted,
                limit,
                text,
            });
        }
        Code::PermissionDenied | Code::Unauthenticated => Reason::Forbidden,
        Code::ResourceExhausted => Reason::ResourceExhausted,
        Code::Unimplemented => Reason::Protocol,
        Code::InvalidArgument => Reason::Invalid,
        Code::NotFound => Reason::NotFound,
        // All others are how gRPC tells that a connection, or a stream of it, is gone.
        _ => return Heard::Lost,
    };
    let limit = match (reason, text.split_once(": ")) {
        (Reason::ResourceExhausted, Some((limit, _))) => limit.to_owned(),
        _ => String::new(),
    };
    Heard::Message(message(Abort { reason: reason.into(), text, limit }))
}

#[cfg(test)]
mod tests {
    use pelton_nexus_proto::messages::{Complete, Heartbeat};

    use super::*;

    #[tokio::test]
    async fn control_passes_data_and_nothing_follows_an_abort() {
        let (out, mut leaving) = outgoing();
        out.data.send(message(Complete::default())).await.unwrap();
        out.say(message(Heartbeat {}));
        assert!(matches!(leaving.next().await.unwrap().kind, Some(Kind::Heartbeat(_))));
        out.say(message(Abort::default()));
        assert!(matches!(leaving.next().await.unwrap().kind, Some(Kind::Abort(_))));
        assert!(leaving.next().await.is_none(), "the data that waited is not sent");
    }

    #[tokio::test]
    async fn it_ends_when_all_is_sent() {
        let (out, mut leaving) = outgoing();
        out.data.send(message(Complete::default())).await.unwrap();
        drop(out);
        assert!(matches!(leaving.next().await.unwrap().kind, Some(Kind::Complete(_))));
        assert!(leaving.next().await.is_none());
    }

    #[test]
    fn a_status_names_the_limit_that_was_passed() {
        let status = Status::resource_exhausted("streams_max: 257 is more than the 256 that are allowed");
        let Heard::Message(message) = heard(&status, &Limits::default()) else { panic!("it is an abort") };
        let Some(Kind::Abort(abort)) = message.kind else { panic!("it is an abort") };
        assert_eq!((abort.reason(), abort.limit.as_str()), (Reason::ResourceExhausted, "streams_max"));
        assert!(matches!(heard(&Status::unavailable("gone"), &Limits::default()), Heard::Lost));
    }
}

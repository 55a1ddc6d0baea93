//! Ends that do not keep to the rules.
#![allow(missing_docs, reason = "a test's name is its claim")]

#[path = "support/feed.rs"]
mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pelton_nexus::feed::*;
use pelton_nexus_proto::Parcel as Packed;
use pelton_nexus_proto::feed::message;
use pelton_nexus_proto::messages::feed_client::FeedClient;
use pelton_nexus_proto::messages::feed_message::Kind;
use pelton_nexus_proto::messages::feed_server::{Feed, FeedServer};
use pelton_nexus_proto::messages::{
    Accept, BlobFrame, Complete, Credit, FeedMessage, Heartbeat, Hello, Parcel, Role, Welcome,
};
use support::*;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// What a source says after it was asked.
type Script = dyn Fn(&SliceRequest) -> Vec<FeedMessage> + Send + Sync;

/// A source that says what it is told to, whatever the rules.
struct Rude(Arc<Script>);

#[tonic::async_trait]
impl Feed for Rude {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<FeedMessage, Status>> + Send>>;

    async fn open(
        &self,
        request: Request<Streaming<FeedMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let (says, said) = tokio::sync::mpsc::unbounded_channel();
        let (script, mut heard) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            let _ = says.send(message(Welcome { version: 1, codecs: vec![1], ..Welcome::default() }));
            while let Some(Ok(next)) = heard.next().await {
                if let Some(Kind::Request(request)) = next.kind {
                    // Credit comes right behind it.
                    let _ = heard.next().await;
                    script(&request).into_iter().for_each(|next| drop(says.send(next)));
                }
            }
        });
        Ok(Response::new(Box::pin(Said(said).map(Ok))))
    }
}

/// What was said, as a stream.
struct Said(tokio::sync::mpsc::UnboundedReceiver<FeedMessage>);

impl Stream for Said {
    type Item = FeedMessage;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<FeedMessage>> {
        self.0.poll_recv(context)
    }
}

fn accept(request: &SliceRequest) -> FeedMessage {
    message(Accept {
        key: request.key.clone(),
        fingerprint: request.fingerprint.clone(),
        ..Accept::default()
    })
}

fn parcel(sequence: u64, blob: &[u8]) -> Parcel {
    let packed = Packed::of_blob(Default::default(), blob).unwrap();
    Parcel {
        sequence,
        blob_count: 1,
        inflated_bytes: packed.inflated_bytes(),
        codec: 0,
        crc32c: packed.crc32c(),
        bytes: packed.into_body(),
    }
}

fn complete(parcels: u64) -> FeedMessage {
    message(Complete { parcels, items: parcels, bytes: parcels * 7, ..Complete::default() })
}

fn frame(offset: u64, bytes: &'static [u8]) -> FeedMessage {
    let crc32c = pelton_region_format::crc32c(bytes);
    let bytes = Bytes::from_static(bytes);
    message(BlobFrame {
        sequence: 0,
        packed_bytes: 100,
        inflated_bytes: 100,
        codec: 0,
        offset,
        crc32c,
        bytes,
    })
}

#[test]
fn a_source_that_breaks_a_rule_fails_the_load_and_the_rule_is_named() {
    let cases: Vec<(&str, Box<Script>)> = vec![
        (
            "it is a duplicate",
            Box::new(|r| {
                vec![accept(r), message(parcel(0, b"abc")), message(parcel(0, b"abc")), complete(2)]
            }),
        ),
        ("some are missing", Box::new(|r| vec![accept(r), message(parcel(1, b"abc")), complete(1)])),
        (
            "1 parcels were counted here, 2 by the peer",
            Box::new(|r| vec![accept(r), message(parcel(0, b"abc")), complete(2)]),
        ),
        ("checksum", Box::new(|r| vec![accept(r), message(Parcel { crc32c: 1, ..parcel(0, b"abc") })])),
        (
            "blob 1 of the parcel",
            Box::new(|r| vec![accept(r), message(Parcel { blob_count: 2, ..parcel(0, b"abcdefgh") })]),
        ),
        ("of credit were left", Box::new(|r| vec![accept(r), message(parcel(0, &vec![1; 3 << 20]))])),
        (
            "parcel_bytes_max",
            Box::new(|r| {
                vec![accept(r), message(Parcel { inflated_bytes: 1 << 40, codec: 1, ..parcel(0, b"abc") })]
            }),
        ),
        (
            "message_bytes_max",
            Box::new(|r| {
                vec![accept(r), message(Parcel { bytes: vec![0; 5 << 20].into(), ..parcel(0, b"abc") })]
            }),
        ),
        (
            "which was not agreed on",
            Box::new(|r| vec![accept(r), message(Parcel { codec: 77, ..parcel(0, b"a") })]),
        ),
        ("does not continue it at byte", Box::new(|r| vec![accept(r), frame(0, b"one"), frame(5, b"two")])),
        ("came while Accept is awaited", Box::new(|_| vec![message(parcel(0, b"abc"))])),
        (
            "the peer answers for",
            Box::new(|r| vec![accept(&SliceRequest { key: "other/view@1#0".to_owned(), ..r.clone() })]),
        ),
    ];
    let runtime = runtime();
    for (expected, script) in cases {
        let address = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let rude = FeedServer::new(Rude(script.into())).max_encoding_message_size(64 << 20);
            tokio::spawn(tonic::transport::Server::builder().add_service(rude).serve_with_incoming(incoming));
            address
        });
        let mut options = options();
        options.window_bytes = 1 << 20;
        let puller = Puller::new(runtime.handle().clone()).options(options);
        let puller = puller.retries(Retries { count_max: 1, ..quick() });
        let pulling = Pulling::by(puller, vec![FeedFrom::new(dial(&address))], |_| {});
        let text = pulling.failure(0);
        assert!(text.contains(expected), "{text:?} lacks {expected:?}");
        pulling.settles();
    }
}

/// Goal: who gives credit and reads nothing holds no place for ever, however it lives. Method: credit without end,
/// heartbeats, and no look at what comes.
#[test]
fn a_puller_that_takes_nothing_is_given_up_though_it_gives_credit_and_signs_of_life() {
    let runtime = runtime();
    let mut options = options();
    options.timing.stall_max = Duration::from_millis(500);
    options.timing.silence_max = Duration::from_secs(600);
    let limits = options.limits.clone();
    let blobs = vec![vec![7; 1 << 20]; 64];
    let served = Served::new(&runtime, FeedService::of_source(Told::sends(&blobs)).options(options));
    let dial = served.dial();
    let (says, said) = tokio::sync::mpsc::unbounded_channel();
    let hello = Hello { versions: vec![1], role: Role::Receiver.into(), ..Hello::default() };
    let request =
        SliceRequest { key: key(0).to_string(), fingerprint: vec![7; 32], ..SliceRequest::default() };
    let credit = Credit { bytes: 1 << 40, parcels: 0 };
    [message(hello), message(request), message(credit)].into_iter().for_each(|one| says.send(one).unwrap());
    let heard = runtime.block_on(async move {
        let mut client = FeedClient::new(dial.channel().await.unwrap());
        client.open(Said(said)).await.unwrap().into_inner()
    });
    settles(|| {
        let _ = says.send(message(Heartbeat {}));
        match limits.streams() {
            0 => Ok(()),
            streams => Err(format!("{streams} streams")),
        }
    });
    drop(heard);
}

//! Ends of the next version, made up: they speak this one too or not, and what they say has fields, kinds and codecs that
//! nobody knows yet.
#![allow(missing_docs, reason = "a test's name is its claim")]

#[path = "support/feed.rs"]
mod support;

use std::convert::Infallible;
use std::io::{Read, Write};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut};
use pelton_nexus::feed::*;
use pelton_nexus::node::Node;
use pelton_nexus::peer::{PeerOptions, PeerService};
use pelton_nexus::{ClientSecurity, Dial, Door, LaneLimits, ServerSecurity};
use pelton_nexus_proto::feed::message;
use pelton_nexus_proto::lane::LaneOpening;
use pelton_nexus_proto::messages::feed_message::Kind;
use pelton_nexus_proto::messages::health::{HealthCheckRequest, HealthCheckResponse};
use pelton_nexus_proto::messages::{
    Accept, Complete, Credit, Done, FeedMessage, FetchRangeRequest, GetManifestRequest, Hello, Lane,
    ListLeasesRequest, Manifest, Offer, OpenLaneRequest, OperateMessage, OperateRequest, Operation, Parcel,
    RangeMessage, Role, Welcome, operate_message, range_message,
};
use pelton_region_format::crc32c;
use pelton_worker::{Cache, Want};
use prost::Message;
use prost::encoding::{self, DecodeContext, WireType};
use support::*;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// Which fields of a message are messages, and so on.
struct Nested(u32, &'static [Nested]);

const PROPERTIES: &[Nested] = &[];
/// Of FeedMessage: all kinds there are.
const FEED: &[Nested] = &[
    Nested(1, &[Nested(6, &[])]),
    Nested(2, &[Nested(5, &[])]),
    Nested(3, &[Nested(3, &[Nested(2, PROPERTIES)]), Nested(6, PROPERTIES), Nested(7, &[]), Nested(8, &[])]),
    Nested(4, &[]),
    Nested(5, &[]),
    Nested(6, &[]),
    Nested(7, &[]),
    Nested(8, &[]),
    Nested(9, &[]),
    Nested(10, &[]),
    Nested(11, &[]),
    Nested(12, &[]),
];
/// Of OperateRequest: its filters.
const OPERATE: &[Nested] = &[Nested(3, &[])];

/// A message as the next version has it: with fields of each kind more, and so has each message in it.
fn extended(mut bytes: &[u8], nested: &[Nested]) -> Vec<u8> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let field = bytes;
        let (tag, wire_type) = encoding::decode_key(&mut bytes).unwrap();
        let inner = nested.iter().find(|nested| nested.0 == tag);
        match inner {
            Some(Nested(_, nested)) => {
                let len = encoding::decode_varint(&mut bytes).unwrap() as usize;
                let (content, rest) = bytes.split_at(len);
                encoding::bytes::encode(tag, &extended(content, nested), &mut out);
                bytes = rest;
            }
            None => {
                encoding::skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).unwrap();
                out.extend(&field[..field.len() - bytes.len()]);
            }
        }
    }
    encoding::uint64::encode(1000, &7, &mut out);
    encoding::string::encode(1001, &"news".to_owned(), &mut out);
    encoding::fixed64::encode(1002, &1, &mut out);
    encoding::fixed32::encode(1003, &2, &mut out);
    out
}

fn next(message: &FeedMessage) -> Vec<u8> {
    extended(&message.encode_to_vec(), FEED)
}

/// A message of a kind that this version does not have.
fn unknown_kind() -> Vec<u8> {
    let mut out = Vec::new();
    encoding::encode_key(77, WireType::LengthDelimited, &mut out);
    encoding::encode_varint(3, &mut out);
    out.extend(b"\x08\x96\x01");
    out
}

/// Messages as the bytes that they are.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; bytes.remaining()];
        bytes.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// A client of the next version, in one stream of Feed.
struct NextClient {
    says: mpsc::UnboundedSender<Vec<u8>>,
    heard: Streaming<Vec<u8>>,
}

impl NextClient {
    async fn open(address: &str) -> NextClient {
        let channel = dial(address).channel().await.unwrap();
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.unwrap();
        let (says, said) = mpsc::unbounded_channel();
        let said = Request::new(UnboundedReceiverStream::new(said));
        let path = "/pelton.nexus.v1.Feed/Open".parse().unwrap();
        let heard = grpc.streaming(said, path, Raw).await.unwrap().into_inner();
        NextClient { says, heard }
    }

    /// Each message goes before one that nobody knows.
    fn says(&self, message: FeedMessage) {
        // What comes behind the end finds nobody.
        let _ = self.says.send(next(&message));
        let _ = self.says.send(unknown_kind());
    }

    /// What comes next that is no sign of life.
    async fn hears(&mut self) -> Option<Kind> {
        loop {
            let bytes = tokio::time::timeout(Duration::from_secs(20), self.heard.next()).await;
            let bytes = bytes.expect("something comes, or the end")?.unwrap();
            match FeedMessage::decode(&*bytes).unwrap().kind.expect("this version says what it knows") {
                Kind::Heartbeat(_) => {}
                kind => return Some(kind),
            }
        }
    }
}

fn hello(versions: &[u32], role: Role, offer: Option<Offer>) -> FeedMessage {
    let (versions, codecs) = (versions.to_vec(), vec![99, 1]);
    message(Hello { versions, role: role.into(), codecs, offer, ..Hello::default() })
}

fn request() -> SliceRequest {
    SliceRequest {
        key: key(0).to_string(),
        fingerprint: vec![7; 32],
        loci: vec![Locus {
            name: "somewhere".to_owned(),
            properties: vec![Property { name: "a".to_owned(), ..Property::default() }],
        }],
        properties: vec![Property::default()],
        caps: Some(Caps { items_max: 5, ..Caps::default() }),
        ..SliceRequest::default()
    }
}

fn done(complete: &Complete) -> FeedMessage {
    let Complete { parcels, items, bytes, .. } = *complete;
    message(Done { parcels, items, bytes })
}

fn parcel(blob: &[u8]) -> Parcel {
    let packed = pelton_nexus_proto::Parcel::of_blob(Default::default(), blob).unwrap();
    let (inflated_bytes, crc32c) = (packed.inflated_bytes(), packed.crc32c());
    Parcel { sequence: 0, blob_count: 1, inflated_bytes, codec: 0, crc32c, bytes: packed.into_body() }
}

fn complete(blob: &[u8]) -> Complete {
    Complete { parcels: 1, items: 1, bytes: blob.len() as u64 + 4, expected: 1, potential: 1, rejected: 0 }
}

#[test]
fn a_client_of_the_next_version_pulls_from_a_source_of_this_one() {
    let runtime = runtime();
    let source = Told::sends(&[b"abc".to_vec()]);
    let options = options();
    let served = Served::new(&runtime, FeedService::of_source(source.clone()).options(options.clone()));
    runtime.block_on(async {
        let mut client = NextClient::open(&served.address).await;
        client.says(hello(&[2, 1], Role::Receiver, None));
        let welcome = client.hears().await;
        let Some(Kind::Welcome(Welcome { version: 1, codecs, .. })) = &welcome else { panic!("{welcome:?}") };
        assert!(codecs.contains(&1) && !codecs.contains(&99), "{codecs:?}");
        client.says(message(request()));
        client.says(message(Credit { bytes: 1 << 20, parcels: 0 }));
        let accept = client.hears().await;
        assert!(
            matches!(&accept, Some(Kind::Accept(accept)) if accept.key == key(0).to_string()),
            "{accept:?}"
        );
        let parcel = client.hears().await;
        assert!(matches!(&parcel, Some(Kind::Parcel(parcel)) if parcel.blob_count == 1), "{parcel:?}");
        let complete = client.hears().await;
        let Some(Kind::Complete(complete)) = &complete else { panic!("{complete:?}") };
        client.says(done(complete));
        assert_eq!(client.hears().await, None, "it is whole, and over");
    });
    let mut asked = source.asked.lock().unwrap();
    assert_eq!(asked.pop(), Some(request()), "what is known of the request came through");
    settles(|| if options.limits.streams() == 0 { Ok(()) } else { Err("a stream".to_owned()) });
}

#[test]
fn a_client_of_the_next_version_pushes_into_a_node_of_this_one() {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let builder = Cache::builder().spindle(folder.path().join("spindle"), 1 << 30).memory(256 << 20);
    let cache = builder.scan_threads(2).open().unwrap();
    let served = Served::new(&runtime, FeedService::into_cache(cache.clone()).options(options()));
    runtime.block_on(async {
        let mut client = NextClient::open(&served.address).await;
        let offer = Offer { key: key(0).to_string(), fingerprint: vec![7; 32] };
        client.says(hello(&[1, 2, 3], Role::Sender, Some(offer.clone())));
        assert!(matches!(client.hears().await, Some(Kind::Welcome(Welcome { version: 1, .. }))));
        let asked = client.hears().await;
        assert!(matches!(&asked, Some(Kind::Request(request)) if request.key == offer.key), "{asked:?}");
        assert!(matches!(client.hears().await, Some(Kind::Credit(_))));
        let Offer { key, fingerprint } = offer;
        client.says(message(Accept { key, fingerprint, ..Accept::default() }));
        client.says(message(parcel(b"abc")));
        client.says(message(complete(b"abc")));
        loop {
            match client.hears().await {
                Some(Kind::Credit(_)) => {}
                Some(Kind::Done(done)) => break assert_eq!((done.parcels, done.items), (1, 1)),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(scan(&cache.lease(&key(0), Want::Latest, None).unwrap()), [b"abc"]);
}

#[test]
fn who_speaks_the_next_version_alone_is_told_both_lists() {
    let runtime = runtime();
    let source = Told::sends(&[]);
    let served = Served::new(&runtime, FeedService::of_source(source.clone()).options(options()));
    runtime.block_on(async {
        let mut client = NextClient::open(&served.address).await;
        client.says(hello(&[2, 3], Role::Receiver, None));
        let abort = client.hears().await;
        let Some(Kind::Abort(abort)) = &abort else { panic!("{abort:?}") };
        assert_eq!(
            (abort.reason(), abort.text.as_str()),
            (Reason::Version, "versions 2, 3 were offered, 1 is spoken here")
        );
        assert_eq!(client.hears().await, None);
    });
    assert_eq!(source.times_asked(), 0);
}

/// A source of the next version, which answers Hello with `version`.
#[derive(Clone)]
struct NextSource {
    version: u32,
}

impl NamedService for NextSource {
    const NAME: &'static str = "pelton.nexus.v1.Feed";
}

impl Service<http::Request<Body>> for NextSource {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: http::Request<Body>) -> Self::Future {
        let version = self.version;
        let serve = tower::service_fn(move |heard: Request<Streaming<Vec<u8>>>| async move {
            let (says, said) = mpsc::unbounded_channel();
            tokio::spawn(speak(version, heard.into_inner(), says));
            Ok::<_, Status>(Response::new(UnboundedReceiverStream::new(said)))
        });
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).streaming(serve, call).await) })
    }
}

/// Gives one blob, as this version wants it, among much that it does not know.
async fn speak(
    version: u32,
    mut heard: Streaming<Vec<u8>>,
    says: mpsc::UnboundedSender<Result<Vec<u8>, Status>>,
) {
    let say = |message: FeedMessage| {
        let _ = says.send(Ok(unknown_kind()));
        let _ = says.send(Ok(next(&message)));
    };
    while let Some(Ok(bytes)) = heard.next().await {
        match FeedMessage::decode(&*bytes).unwrap().kind {
            Some(Kind::Hello(_)) => {
                let lane = Lane { port: 1, token: vec![1; 32], version: 2, ..Lane::default() };
                let (codecs, lane) = (vec![99], Some(lane));
                say(message(Welcome { version, codecs, lane, ..Welcome::default() }));
            }
            Some(Kind::Request(SliceRequest { key, fingerprint, .. })) => {
                say(message(Accept { key, fingerprint, ..Accept::default() }));
                say(message(parcel(b"of the next")));
                say(message(complete(b"of the next")));
            }
            _ => {}
        }
    }
}

fn pull_from_next(runtime: &Runtime, version: u32) -> Pulling {
    let address = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder().add_service(NextSource { version });
        tokio::spawn(server.serve_with_incoming(incoming));
        address
    });
    Pulling::new(runtime, vec![FeedFrom::new(dial(&address))])
}

#[test]
fn a_source_of_the_next_version_gives_to_a_cache_of_this_one() {
    let runtime = runtime();
    let pulling = pull_from_next(&runtime, 1);
    assert_eq!(pulling.blobs(0), [b"of the next"]);
    pulling.settles();
}

#[test]
fn a_source_that_chooses_a_version_that_was_not_offered_is_left_in_words() {
    let runtime = runtime();
    let pulling = pull_from_next(&runtime, 2);
    let text = pulling.failure(0);
    assert!(text.contains("versions 2 were offered, 1 is spoken here"), "{text}");
    assert!(text.contains("tried 1 times"), "another try would not help: {text}");
    pulling.settles();
}

#[test]
fn a_lane_of_the_next_version_is_refused_by_its_number() {
    let runtime = runtime();
    let served = Served::new(&runtime, FeedService::of_source(Told::sends(&[])).options(options()));
    let mut header = LaneOpening { token: [5; 32] }.encode();
    header[8] = 2;
    let crc = crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    let mut tcp = std::net::TcpStream::connect(&served.address).unwrap();
    tcp.write_all(&header).unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).unwrap();
    assert_eq!(
        (answer.len(), &answer[..12]),
        (16, &b"pelton l\x02\0\0\0"[..]),
        "version or features are not spoken"
    );
}

/// Calls a method with a message as the next version has it.
async fn call<A: Message + Default>(
    channel: &Channel,
    path: &'static str,
    message: &impl Message,
    nested: &[Nested],
) -> Result<A, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let asked = Request::new(extended(&message.encode_to_vec(), nested));
    let path = http::uri::PathAndQuery::from_static(path);
    // What answers with one message is a stream of one.
    let mut heard = grpc.server_streaming(asked, path, Raw).await?.into_inner();
    let bytes = heard.message().await?.expect("there is an answer");
    Ok(A::decode(&*bytes).unwrap())
}

/// Goal: Peer, Admin and Health pass over what they do not know, and name what they can't pass over. Method: every call of
/// theirs, with more fields in each message, versions and operations.
#[tokio::test]
async fn a_node_serves_clients_of_the_next_version() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::builder().spindle(folder.path().join("spindle"), 1 << 30).open().unwrap();
    let plan = pelton_worker::LoadPlan::new(fingerprint(7));
    let writer = cache.snap(&key(0)).open_for_writes(plan).unwrap();
    let mut blob = pelton_worker::ParcelBuilder::default();
    blob.push(b"abc").unwrap();
    writer.queue_parcel(blob.finish()).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    cache.sync(None).unwrap();

    let door = Door::open("127.0.0.1:0".parse().unwrap(), ServerSecurity::Plain, LaneLimits::default());
    let door = door.await.unwrap();
    let dial = Dial::new(&door.address().to_string(), ClientSecurity::Plain).unwrap();
    let lanes = door.lanes().clone();
    let peer = PeerService::new(cache.clone(), Some(lanes), PeerOptions::default());
    let node = Node::new(cache, door).service(peer.into_server());
    let handle = node.handle();
    let ended = tokio::spawn(async { node.serve().await.unwrap() });
    let channel = dial.channel().await.unwrap();

    let path = "/pelton.nexus.v1.Peer/GetManifest";
    let mut asked = GetManifestRequest { versions: vec![3, 1], key: key(0).to_string(), fingerprint: vec![] };
    let manifest: Manifest = call(&channel, path, &asked, &[]).await.unwrap();
    asked.versions = vec![2, 3];
    let refused = call::<Manifest>(&channel, path, &asked, &[]).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "versions [2, 3] were offered, 1 is spoken here")
    );
    let region = &manifest.regions[0];
    let range = FetchRangeRequest {
        key: key(0).to_string(),
        fingerprint: manifest.fingerprint.clone(),
        region: region.index,
        content_id: region.content_id.clone(),
        len: 4096,
        ..FetchRangeRequest::default()
    };
    let chunk: RangeMessage = call(&channel, "/pelton.nexus.v1.Peer/FetchRange", &range, &[]).await.unwrap();
    assert!(
        matches!(&chunk.kind, Some(range_message::Kind::Chunk(chunk)) if chunk.bytes.len() == 4096),
        "{chunk:?}"
    );
    let path = "/pelton.nexus.v1.Peer/OpenLane";
    let lane: Lane = call(&channel, path, &OpenLaneRequest { versions: vec![2, 1] }, &[]).await.unwrap();
    assert_eq!((lane.version, lane.token.len()), (1, 32));
    let refused =
        call::<Lane>(&channel, path, &OpenLaneRequest { versions: vec![2] }, &[]).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "lane version 1 is spoken here")
    );

    let path = "/pelton.nexus.v1.Admin/Operate";
    let filter = pelton_nexus_proto::messages::Filter {
        name: "blobs".to_owned(),
        relation: pelton_nexus_proto::messages::Relation::Equal.into(),
        value: Some(pelton_nexus_proto::messages::filter::Value::Whole(1)),
    };
    let mut asked = OperateRequest {
        operation: Operation::Search.into(),
        filters: vec![filter],
        ..OperateRequest::default()
    };
    let found: OperateMessage = call(&channel, path, &asked, OPERATE).await.unwrap();
    assert!(
        matches!(&found.kind, Some(operate_message::Kind::Snap(snap)) if snap.key == key(0).to_string()),
        "{found:?}"
    );
    asked.operation = 99;
    let refused = call::<OperateMessage>(&channel, path, &asked, OPERATE).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "operation 99 is not known here")
    );
    let path = "/pelton.nexus.v1.Admin/ListLeases";
    let asked = ListLeasesRequest { pattern: "?".to_owned() };
    let refused = call::<OperateMessage>(&channel, path, &asked, &[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "what is known was read");
    let path = "/grpc.health.v1.Health/Check";
    let health: HealthCheckResponse =
        call(&channel, path, &HealthCheckRequest::default(), &[]).await.unwrap();
    assert!(health.status > 0);
    let unknown =
        call::<Manifest>(&channel, "/pelton.nexus.v2.Peer/Anything", &range, &[]).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    handle.drain(None).await;
    ended.await.unwrap();
}

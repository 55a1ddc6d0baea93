//! A node that serves: who may do what, what operators are told, and how it ends.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use pelton_nexus::feed::{FeedOptions, FeedService};
use pelton_nexus::node::{AskError, Drained, Node, NodeClient, NodeHandle, OperatedOutcome, RemoteOptions};
use pelton_nexus::peer::{PeerOptions, PeerService};
use pelton_nexus::{ClientSecurity, Dial, DialError, Door, LaneLimits, NodeLimits, ServerSecurity};
use pelton_nexus_proto::feed::message;
use pelton_nexus_proto::messages::admin_client::AdminClient;
use pelton_nexus_proto::messages::feed_client::FeedClient;
use pelton_nexus_proto::messages::health::HealthCheckRequest;
use pelton_nexus_proto::messages::health::health_check_response::ServingStatus;
use pelton_nexus_proto::messages::health::health_client::HealthClient;
use pelton_nexus_proto::messages::operate_message::Kind;
use pelton_nexus_proto::messages::peer_client::PeerClient;
use pelton_nexus_proto::messages::{
    FeedMessage, FetchRangeRequest, GetManifestRequest, Heartbeat, Hello, Offer, OperateRequest, Role,
};
use pelton_nexus_proto::{Limit, Limits};
use pelton_region_format::{Fingerprint, Key, KeyPattern};
use pelton_worker::{Cache, GenerationState, LoadPlan, Operation, ParcelBuilder, Selection, SnapState, Want};
use support::certificates::Authority;
use support::log::Log;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Request};

/// Waits until it is so.
async fn until(is_so: impl Fn() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looking).await.expect("it comes to be so");
}

/// A node over a cache with two slices of 1 MiB and one of 4 MiB.
struct Running {
    _folder: TempDir,
    cache: Cache,
    address: SocketAddr,
    handle: NodeHandle,
    ended: JoinHandle<Drained>,
}

const SMALL: [&str; 2] = ["shop/a@1#0", "shop/a@1#1"];
const LARGE: &str = "shop/b@7#0";

async fn run(security: impl Into<ServerSecurity>) -> Running {
    run_with(security, Limits::default()).await
}

async fn run_with(security: impl Into<ServerSecurity>, limits: Limits) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::builder().spindle(folder.path().join("spindle"), None).open().unwrap();
    for (key, blobs) in [(SMALL[0], 1), (SMALL[1], 1), (LARGE, 4)] {
        load(&cache, key, blobs);
    }
    cache.sync(None).unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let door = Door::open(address, security.into(), LaneLimits::default()).await.unwrap();
    let address = door.address();
    let node = Node::new(cache.clone(), door).limits(NodeLimits::new(limits));
    let handle = node.handle();
    let ended = tokio::spawn(async { node.serve().await.unwrap() });
    // Until then it is not said to serve.
    until(|| handle.is_serving()).await;
    Running { _folder: folder, cache, address, handle, ended }
}

fn load(cache: &Cache, key: &str, blobs: usize) {
    let key: Key = key.parse().unwrap();
    let plan = LoadPlan::new(Fingerprint::builder().source(key.to_string()).finish());
    let writer = cache.snap(&key).open_for_writes(plan).unwrap();
    let mut parcel = ParcelBuilder::default();
    for _ in 0..blobs {
        parcel.push(&vec![7; 1 << 20]).unwrap();
    }
    writer.queue_parcel(parcel.finish()).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

impl Running {
    fn dial(&self, security: impl Into<ClientSecurity>) -> Dial {
        Dial::new(&format!("localhost:{}", self.address.port()), security.into()).unwrap()
    }

    async fn ask(&self, security: impl Into<ClientSecurity>) -> NodeClient {
        NodeClient::connect(&self.dial(security)).await.unwrap()
    }

    async fn channel(&self, security: impl Into<ClientSecurity>) -> Channel {
        self.dial(security).channel().await.unwrap()
    }

    async fn drain(self) -> Drained {
        let drained = self.handle.drain(Some(Duration::from_secs(60))).await;
        assert_eq!(self.ended.await.unwrap(), drained);
        drained
    }
}

fn selection(pattern: &str) -> Selection {
    Selection::new(pattern.parse::<KeyPattern>().unwrap())
}

const WHOLE: Drained = Drained { calls_cut: 0, leases_left: 0 };

#[tokio::test]
async fn what_is_listed_is_what_the_cache_itself_finds() {
    let node = run(ServerSecurity::Plain).await;
    let client = node.ask(ClientSecurity::Plain).await;
    for selection in [selection("*"), selection("shop/a"), selection("none")] {
        let mut there = client.select(&selection).await.unwrap();
        let mut here: Vec<_> =
            node.cache.select(&selection).iter().map(pelton_nexus::node::Listed::from).collect();
        // Time goes on between the two, and is told in milliseconds.
        there.iter_mut().chain(&mut here).for_each(|one| one.idle = None);
        assert_eq!(there, here);
    }
    let filtered = selection("*").filters("bytes>2MiB,state=hot".parse().unwrap());
    let found = client.select(&filtered).await.unwrap();
    assert_eq!(found.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(), [LARGE]);
    let generations = client.select(&selection("*").by(pelton_worker::By::Generation)).await.unwrap();
    let told: Vec<_> = generations.iter().map(|one| (one.key.as_str(), one.summary.slices)).collect();
    assert_eq!(told, [("shop/a@1", 2), ("shop/b@7", 1)]);

    let lease = node.cache.lease(&LARGE.parse().unwrap(), Want::Latest, None).unwrap();
    let leases = client.leases(&KeyPattern::ALL).await.unwrap();
    assert_eq!(leases.len(), 1);
    assert_eq!(
        (leases[0].key.as_str(), &leases[0].fingerprint[..]),
        (LARGE, &lease.fingerprint().as_bytes()[..])
    );
    assert!(leases[0].memory_bytes >= 4 << 20);
    assert!(client.leases(&"shop/a".parse().unwrap()).await.unwrap().is_empty());
    drop(lease);
    assert_eq!(node.drain().await, WHOLE);
}

#[tokio::test]
async fn every_operation_does_on_a_node_what_it_does_here() {
    let node = run(ServerSecurity::Plain).await;
    let client = node.ask(ClientSecurity::Plain).await;
    let operate = async |pattern: &str, operation, options: &RemoteOptions| {
        let results = client.operate(&selection(pattern), operation, options, |_| {}).await;
        let mut outcomes: Vec<_> = results.unwrap().into_iter().map(|one| (one.key, one.outcome)).collect();
        outcomes.sort_by(|one, other| one.0.cmp(&other.0));
        outcomes.into_iter().map(|(_, outcome)| outcome).collect::<Vec<_>>()
    };
    use OperatedOutcome::{Done, Leaving, Nothing, Refused};
    let plain = RemoteOptions::default();
    let mut dry = RemoteOptions::default();
    dry.dry_run = true;
    let evict = Operation::Evict { keep_cache: false };
    let lease = node.cache.lease(&SMALL[0].parse().unwrap(), Want::Latest, None).unwrap();
    assert_eq!(operate("shop/a", evict, &dry).await, [Leaving, Done]);
    assert_eq!(operate("shop/a", evict, &plain).await, [Leaving, Done]);
    drop(lease);
    assert_eq!(operate("shop/b", Operation::Pin, &plain).await, [Done]);
    assert_eq!(operate("*", Operation::Unpin, &plain).await, [Nothing, Nothing, Done]);
    assert_eq!(operate("*", Operation::Verify, &plain).await, [Done, Done, Done]);
    assert_eq!(operate("shop/a#1", Operation::Warm, &plain).await, [Done]);
    assert_eq!(operate("shop/b", Operation::Pin, &plain).await, [Done]);
    let mut confirmed = RemoteOptions::default();
    confirmed.confirmed = true;
    assert_eq!(operate("*", Operation::Flush, &confirmed).await, [Done, Done, Refused]);
    assert_eq!(operate("shop/a", Operation::Erase, &confirmed).await, [Done, Done]);
    let left = client.select(&selection("*")).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].key.as_str(), left[0].summary.state), (LARGE, GenerationState::Hot));
}

#[tokio::test]
async fn more_than_half_is_removed_only_when_confirmed_and_leaves_a_line_that_says_who() {
    let log = Log::listen();
    let node = run(ServerSecurity::Plain).await;
    let client = node.ask(ClientSecurity::Plain).await;
    let mut options = RemoteOptions::default();
    let refused = client.operate(&selection("shop/b"), Operation::Flush, &options, |_| {}).await;
    match refused {
        Err(AskError::Unconfirmed { why }) => {
            assert!(
                why.starts_with("that would flush 1 slice, 4") && why.ends_with(" in the cache"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    // The smaller half goes without.
    client.operate(&selection("shop/a#0"), Operation::Flush, &options, |_| {}).await.unwrap();
    log.assert_has("INFO pelton::audit: flush who=127.0.0.1 from=127.0.0.1:");
    log.assert_has("pattern=shop/a@*#0 filters= matched=1 done=1 unchanged=0 refused=0 failed=0 bytes=");
    options.dry_run = true;
    client.operate(&selection("shop/b"), Operation::Erase, &options, |_| {}).await.unwrap();
    options.dry_run = false;
    let audited = || log.lines().iter().filter(|line| line.contains("pelton::audit")).count();
    assert_eq!(audited(), 1, "{:#?}", log.lines());
    options.confirmed = true;
    client.operate(&selection("shop/b"), Operation::Erase, &options, |_| {}).await.unwrap();
    log.assert_has("INFO pelton::audit: erase who=127.0.0.1");
    client.drain(Some(Duration::from_secs(9))).await.unwrap();
    log.assert_has("INFO pelton::audit: drain who=127.0.0.1");
    assert_eq!(audited(), 3);
    assert_eq!(node.ended.await.unwrap(), WHOLE);
}

/// Goal: the table of docs/nexus.md 5 holds. Method: each role tries what each of the roles may do.
#[tokio::test]
async fn each_role_may_do_what_is_its_own_and_no_more() {
    let ca = Authority::new("ours");
    let node = run(ca.server(&ca.sign("node", &["localhost"], &[]))).await;
    let nobody = ca.sign("nobody", &["localhost"], &[]);
    let certificates = [nobody, ca.with_role("reader"), ca.with_role("loader"), ca.with_role("admin")];
    let evict = Operation::Evict { keep_cache: true };
    for (rank, pair) in certificates.iter().enumerate() {
        let security = || ca.client(Some(pair));
        let channel = node.channel(security()).await;
        let status = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
        assert_eq!(status.into_inner().status(), ServingStatus::Serving);

        let client = node.ask(security()).await;
        let select = client.select(&selection("*")).await.map(|_| ());
        let leases = client.leases(&KeyPattern::ALL).await.map(|_| ());
        let [pin, erase, evict] = [Operation::Unpin, Operation::Erase, evict].map(|operation| {
            let client = client.clone();
            async move {
                let options = RemoteOptions::default();
                client.operate(&selection("none/there"), operation, &options, |_| {}).await.map(|_| ())
            }
        });
        for (needed, answer) in [(1, select), (1, leases), (2, pin.await), (3, evict.await), (3, erase.await)]
        {
            match answer {
                Ok(()) => assert!(rank >= needed, "{rank} may do what needs {needed}"),
                Err(AskError::Forbidden { why, .. }) => {
                    assert!(rank < needed, "{rank}: {why}");
                    // Without any role nobody hears what an operation needs.
                    let role = ["", "reader", "loader", "admin"][if rank == 0 { 1 } else { needed }];
                    assert!(why.contains(&format!("needs the role {role}, and ")), "{why}");
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        // Not served here, which only they hear who may ask.
        let peer = PeerClient::new(channel.clone()).get_manifest(GetManifestRequest::default()).await;
        let refused = Code::PermissionDenied;
        let unknown = Code::Unimplemented;
        assert_eq!(peer.unwrap_err().code(), if rank >= 1 { unknown } else { refused });
        let feed = FeedClient::new(channel).open(tokio_stream::empty()).await;
        assert_eq!(feed.unwrap_err().code(), if rank >= 1 { unknown } else { refused });
        if rank < 3 {
            assert!(matches!(client.drain(None).await, Err(AskError::Forbidden { .. })));
        }
    }
    let admin = node.ask(ca.client(Some(&certificates[3]))).await;
    assert_eq!(admin.drain(Some(Duration::from_secs(60))).await.unwrap(), WHOLE);
    assert_eq!(node.ended.await.unwrap(), WHOLE);
}

#[tokio::test]
async fn health_is_told_of_the_node_and_of_each_service_and_follows_a_drain() {
    let node = run(ServerSecurity::Plain).await;
    let mut health = HealthClient::new(node.channel(ClientSecurity::Plain).await);
    let asked = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let mut watch = health.watch(asked("pelton.nexus.v1.Admin")).await.unwrap().into_inner();
    let mut seen = watch.message().await.unwrap().unwrap().status();
    while seen == ServingStatus::NotServing {
        seen = watch.message().await.unwrap().unwrap().status();
    }
    assert_eq!(seen, ServingStatus::Serving);
    for service in ["", "pelton.nexus.v1.Admin"] {
        let status = health.check(asked(service)).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    assert_eq!(health.check(asked("other")).await.unwrap_err().code(), Code::NotFound);
    let mut unknown = health.watch(asked("other")).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    assert!(node.handle.is_serving());

    node.handle.drain(None).await;
    assert!(!node.handle.is_serving());
    // It is told before the end, or the end itself tells.
    let last = watch.message().await;
    assert!(matches!(&last, Ok(None)) || last.unwrap().unwrap().status() == ServingStatus::NotServing);
    assert_eq!(node.ended.await.unwrap(), WHOLE);
}

/// Goal: a drain lets what is under way go on, takes nothing new, cuts at its deadline and counts what it cut. Method: a
/// verify at a rate that would take hours, a drain that waits, a call in between, then a drain that does not wait.
#[tokio::test]
async fn a_drain_waits_refuses_and_in_the_end_cuts() {
    let log = Log::listen();
    let node = run(ServerSecurity::Plain).await;
    let (slow, other) = (node.ask(ClientSecurity::Plain).await, node.ask(ClientSecurity::Plain).await);
    let mut options = RemoteOptions::default();
    options.rate = Some(1);
    let (seen, mut progress) = tokio::sync::mpsc::unbounded_channel();
    let verifying = tokio::spawn(async move {
        let tell = |progress| _ = seen.send(progress);
        slow.operate(&selection("*"), Operation::Verify, &options, tell).await
    });
    // It is under way when it says how far it is.
    assert!(progress.recv().await.unwrap().bytes_total >= 6 << 20);
    let patient = tokio::spawn({
        let handle = node.handle.clone();
        async move { handle.drain(Some(Duration::from_secs(3600))).await }
    });
    until(|| !node.handle.is_serving()).await;
    match other.select(&selection("*")).await {
        Err(AskError::Unavailable { why, .. }) => assert!(why.contains("takes nothing new"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(!patient.is_finished() && !verifying.is_finished());
    let cut = other.drain(Some(Duration::from_millis(1))).await.unwrap();
    assert_eq!(cut, Drained { calls_cut: 1, leases_left: 0 });
    assert_eq!((patient.await.unwrap(), node.ended.await.unwrap()), (cut, cut));
    match verifying.await.unwrap() {
        Err(AskError::Broken { why, .. }) => assert!(why.contains("has ended before"), "{why}"),
        other => panic!("{other:?}"),
    }
    log.assert_has("the node is drained calls_cut=1 leases_left=0");
}

/// Goal: who asks says how long it waits, for an answer and for all of it. Method: a verify at a rate that would take
/// hours, and a drain behind it; each ends by itself, and the node counts nothing as under way any more.
#[tokio::test]
async fn a_call_ends_when_who_asked_waits_no_longer() {
    let log = Log::listen();
    let node = run(ServerSecurity::Plain).await;
    let mut admin = AdminClient::new(node.channel(ClientSecurity::Plain).await);
    let mut verify = OperateRequest {
        operation: pelton_nexus_proto::messages::Operation::Verify.into(),
        pattern: "*".to_owned(),
        bytes_per_second_max: 1,
        ..OperateRequest::default()
    };
    let mut request = Request::new(verify.clone());
    request.set_timeout(Duration::from_millis(300));
    let mut answers = admin.operate(request).await.unwrap().into_inner();
    let late = loop {
        match answers.message().await {
            Ok(Some(message)) => assert!(!matches!(message.kind, Some(Kind::Summary(_))), "{message:?}"),
            Ok(None) => panic!("it has no end, and no error"),
            Err(status) => break status,
        }
    };
    let says = "this was not done in the time that was given for it";
    assert_eq!((late.code(), late.message()), (Code::DeadlineExceeded, says));

    // Erasing nothing is done at once, so it has its end, and a line that says so.
    (verify.operation, verify.pattern) =
        (pelton_nexus_proto::messages::Operation::Erase.into(), "none/there".to_owned());
    let mut request = Request::new(verify);
    request.set_timeout(Duration::from_secs(60));
    let mut answers = admin.operate(request).await.unwrap().into_inner();
    while let Some(message) = answers.message().await.unwrap() {
        assert!(matches!(message.kind, Some(Kind::Summary(_))), "{message:?}");
    }
    log.assert_has("pelton::audit: erase");
    log.assert_has("ended=true");
    // What was late is under way no more, so nothing is cut.
    assert_eq!(node.drain().await, WHOLE);
}

#[tokio::test]
async fn connections_beyond_a_limit_hear_its_name_and_find_room_again() {
    for (limit, name) in
        [(Limit::Connections, "connections_max"), (Limit::PeerConnections, "peer_connections_max")]
    {
        let mut limits = Limits::default();
        limits.set(limit, 2);
        let node = run_with(ServerSecurity::Plain, limits).await;
        let first = node.channel(ClientSecurity::Plain).await;
        let second = node.channel(ClientSecurity::Plain).await;
        let refused = node.dial(ClientSecurity::Plain).channel().await;
        match refused {
            Err(DialError::Refused { why, .. }) => {
                assert_eq!(why, format!("{name}: 3 is more than the 2 that are allowed"));
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        // The node hears of it a little later.
        let again = tokio::time::timeout(Duration::from_secs(20), async {
            while node.dial(ClientSecurity::Plain).channel().await.is_err() {
                tokio::task::yield_now().await;
            }
        });
        again.await.expect("a place was given back");
        drop(second);
    }
}

#[tokio::test]
async fn connections_are_counted_by_certificate() {
    let ca = Authority::new("ours");
    let mut limits = Limits::default();
    limits.set(Limit::PeerConnections, 1);
    let node = run_with(ca.server(&ca.sign("node", &["localhost"], &[])), limits).await;
    let named = |name: &str| ca.sign(name, &[], &[&format!("spiffe://test/{name}/pelton/role/reader")]);
    // All of them come from one address.
    let pairs = [named("a"), named("b"), ca.sign("nameless", &[], &[]), ca.sign("other", &[], &[])];
    let mut open = Vec::new();
    for pair in &pairs {
        open.push(node.channel(ca.client(Some(pair))).await);
    }
    for pair in &pairs {
        let refused = node.dial(ca.client(Some(pair))).channel().await;
        assert!(
            format!("{refused:?}").contains("peer_connections_max: 2 is more than the 1 that are allowed"),
            "{refused:?}"
        );
    }
}

/// Goal: what the services of a node have under way counts together. Method: a push takes the only stream; then a
/// range is asked for.
#[tokio::test]
async fn a_node_counts_the_streams_of_all_its_services_in_one_place() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::builder().spindle(folder.path().join("spindle"), None).open().unwrap();
    load(&cache, LARGE, 4);
    let mut limits = Limits::default();
    limits.set(Limit::Streams, 1);
    let limits = NodeLimits::new(limits);
    let door = Door::open("127.0.0.1:0".parse().unwrap(), ServerSecurity::Plain, LaneLimits::default());
    let door = door.await.unwrap();
    let dial = Dial::new(&door.address().to_string(), ClientSecurity::Plain).unwrap();
    let mut peer_options = PeerOptions::default();
    peer_options.limits = limits.clone();
    let feed = FeedService::into_cache(cache.clone()).options(FeedOptions::sharing(limits.clone()));
    let node = Node::new(cache.clone(), door)
        .limits(limits.clone())
        .service(PeerService::new(cache.clone(), None, peer_options).into_server())
        .service(feed.into_server());
    let handle = node.handle();
    let ended = tokio::spawn(async { node.serve().await.unwrap() });

    let channel = dial.channel().await.unwrap();
    let (says, said) = tokio::sync::mpsc::unbounded_channel::<FeedMessage>();
    let pushing = FeedClient::new(channel.clone());
    let said = tokio_stream::wrappers::UnboundedReceiverStream::new(said);
    let pushing = tokio::spawn(async move {
        let mut pushing = pushing;
        pushing.open(said).await.unwrap().into_inner().message().await
    });
    until(|| limits.streams() > 0).await;
    let range = FetchRangeRequest { key: LARGE.to_owned(), len: 1, ..FetchRangeRequest::default() };
    let mut peer = PeerClient::new(channel);
    let refused = peer.fetch_range(range.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(refused.message(), "streams_max: 2 is more than the 1 that are allowed");
    drop(says); // The push has said nothing, and ends so.
    let _ = pushing.await.unwrap();
    until(|| limits.streams() == 0).await;
    // There is room, and the content id is wrong.
    assert_eq!(peer.fetch_range(range).await.unwrap_err().code(), Code::Aborted);
    assert_eq!(handle.drain(None).await, ended.await.unwrap());
}

/// Goal: what a drain cuts off ends at the node, too. Method: a push that does not hear, and goes on with signs of life.
#[tokio::test]
async fn a_push_that_ignores_the_cut_of_a_drain_ends_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::builder().spindle(folder.path().join("spindle"), None).open().unwrap();
    let door = Door::open("127.0.0.1:0".parse().unwrap(), ServerSecurity::Plain, LaneLimits::default());
    let door = door.await.unwrap();
    let dial = Dial::new(&door.address().to_string(), ClientSecurity::Plain).unwrap();
    let mut options = FeedOptions::default();
    options.timing.silence_max = Duration::from_secs(600);
    let limits = options.limits.clone();
    let feed = FeedService::into_cache(cache.clone()).options(options);
    let node = Node::new(cache.clone(), door).service(feed.into_server());
    let handle = node.handle();
    let ended = tokio::spawn(async { node.serve().await.unwrap() });

    let (says, said) = tokio::sync::mpsc::unbounded_channel::<FeedMessage>();
    let offer = Offer { key: LARGE.to_owned(), fingerprint: vec![7; 32] };
    let hello =
        Hello { versions: vec![1], role: Role::Sender.into(), offer: Some(offer), ..Hello::default() };
    says.send(message(hello)).unwrap();
    let said = tokio_stream::wrappers::UnboundedReceiverStream::new(said);
    let answers = FeedClient::new(dial.channel().await.unwrap()).open(said).await.unwrap().into_inner();
    let key: Key = LARGE.parse().unwrap();
    until(|| cache.snap(&key).status().state == SnapState::Loading).await;
    assert_eq!(limits.streams(), 1);
    let drained = handle.drain(Some(Duration::ZERO)).await;
    assert_eq!((drained.calls_cut, ended.await.unwrap()), (1, drained));
    let quiet = tokio::time::timeout(Duration::from_secs(20), async {
        while limits.streams() > 0 || cache.snap(&key).status().state == SnapState::Loading {
            let _ = says.send(message(Heartbeat {}));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    quiet.await.expect("nobody uses the cache any more");
    drop(answers);
}

/// Goal: a node that is gone without a word ends the calls that wait for it. Method: a call that has no answer for a long
/// time, through a wire that passes nothing any more.
#[tokio::test]
async fn a_call_ends_when_the_node_is_gone_without_a_word() {
    let node = run(ServerSecurity::Plain).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dial = Dial::new(&listener.local_addr().unwrap().to_string(), ClientSecurity::Plain).unwrap();
    let (cut, is_cut) = tokio::sync::watch::channel(false);
    let address = node.address;
    tokio::spawn(async move {
        let (mut caller, _) = listener.accept().await.unwrap();
        let mut to = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut is_cut = is_cut;
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut caller, &mut to) => {}
            _ = is_cut.wait_for(|cut| *cut) => {}
        }
        // Both connections stand.
        std::future::pending::<()>().await;
    });
    let channel = dial.alive_every(Duration::from_millis(100)).channel().await.unwrap();
    let mut watching = HealthClient::new(channel);
    let mut answers = watching.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    while answers.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    cut.send(true).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), answers.message()).await;
    assert!(ended.expect("it ends").is_err());
}

/// A source that serves without a node tells whether it does, as a node does; and it ends though somebody watches.
#[tokio::test]
async fn a_source_alone_serves_health_and_ends_while_it_is_watched() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::builder().spindle(folder.path().join("spindle"), None).open().unwrap();
    let door = Door::open("127.0.0.1:0".parse().unwrap(), ServerSecurity::Plain, LaneLimits::default());
    let door = door.await.unwrap();
    let dial = Dial::new(&door.address().to_string(), ClientSecurity::Plain).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = FeedService::into_cache(cache).serve_behind(door, async { _ = stopped.await });
    let serving = tokio::spawn(serving);
    let mut health = HealthClient::new(dial.channel().await.unwrap());
    for service in ["", "pelton.nexus.v1.Feed"] {
        let asked = health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap();
        assert_eq!(asked.into_inner().status(), ServingStatus::Serving, "{service:?}");
    }
    let mut answers = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    stop.send(()).unwrap();
    while let Ok(Some(_)) = answers.message().await {}
    drop((answers, health));
    tokio::time::timeout(Duration::from_secs(20), serving).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_before_it_is_read() {
    let mut limits = Limits::default();
    limits.set(Limit::MessageBytes, 4096);
    let node = run_with(ServerSecurity::Plain, limits).await;
    let channel = node.channel(ClientSecurity::Plain).await;
    let mut admin = AdminClient::new(channel);
    let request = |bytes: usize| {
        Request::new(pelton_nexus_proto::messages::ListLeasesRequest { pattern: "x".repeat(bytes) })
    };
    // The tag and the length of the pattern take three bytes.
    let edge = admin.list_leases(request(4096 - 3)).await.unwrap_err();
    assert_eq!(edge.code(), Code::InvalidArgument, "{edge:?}");
    let above = admin.list_leases(request(4096 - 2)).await.unwrap_err();
    assert_eq!(above.code(), Code::ResourceExhausted, "{above:?}");
    assert!(above.message().starts_with("message_bytes_max: "), "{above:?}");
}

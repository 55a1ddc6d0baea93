//! Whole feeds under TLS: who may, and what each certificate may have.
#![allow(missing_docs, reason = "a test's name is its claim")]

#[allow(dead_code, reason = "not all of it is needed here")]
#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/feed.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use certificates::{Authority, Pair};
use pelton_nexus::feed::*;
use pelton_nexus::{LaneLimits, Limit, Limits, ServerTls};
use pelton_worker::{Cache, CancelToken, Unwanted, Want};
use proxy::{Plan, Proxy};
use support::*;
use tokio::runtime::Runtime;

/// Parcels of both kinds: with many blobs, and one blob in frames.
fn blobs(seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random::new(seed);
    let mut blobs: Vec<Vec<u8>> = (0..3000).map(|n| random.noise(n % 700)).collect();
    blobs.push(random.noise((3 << 20) + 5));
    blobs
}

fn with_lane(lane: bool) -> FeedOptions {
    let mut options = options();
    options.profile.lane = lane;
    options
}

/// A cache that takes what is pushed.
fn taking() -> (tempfile::TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let builder = Cache::builder().spindle(folder.path().join("spindle"), 1 << 30).memory(256 << 20);
    (folder, builder.scan_threads(2).open().unwrap())
}

fn push_to(
    runtime: &Runtime,
    ca: &Authority,
    pair: &Pair,
    address: &str,
    slice: u32,
) -> Result<Pushed, String> {
    let dial = secured_dial(address, ca.client(Some(pair)));
    let source = Arc::new(Told::sends(&blobs(2)));
    let (key, options, stop) = (key(slice), with_lane(slice % 2 == 1), CancelToken::new());
    let pushed = push(&dial, &key, fingerprint(7), source, &options, &stop);
    runtime.block_on(pushed).map_err(|error| told(&error))
}

#[test]
fn a_pull_under_tls_brings_every_byte_by_grpc_and_by_a_lane() {
    let runtime = runtime();
    let ca = Authority::new("ours");
    let blobs = blobs(1);
    let source = FeedService::of_source(Told::sends(&blobs)).options(options());
    let served = Served::secured(&runtime, source, ca.server(&ca.sign("source", &[proxy::HOST], &[])));
    let proxy = Proxy::new(&runtime, served.address.clone());
    for role in ["reader", "loader", "admin"] {
        let pair = ca.with_role(role);
        for lane in [false, true] {
            proxy.begin(Plan::NONE);
            let from = FeedFrom::new(secured_dial(&proxy.address, ca.client(Some(&pair))));
            let pulling = Pulling::with(&runtime, vec![from], with_lane(lane), |_| {});
            assert!(pulling.blobs(0) == sorted(&blobs), "{role}, lane={lane}");
            assert_eq!(proxy.connections(), 1 + u64::from(lane), "a lane is a second connection");
            pulling.settles();
        }
    }
}

#[test]
fn a_push_under_tls_is_taken_from_a_loader_by_grpc_and_by_a_lane() {
    let runtime = runtime();
    let ca = Authority::new("ours");
    let (_folder, cache) = taking();
    let service = FeedService::into_cache(cache.clone()).options(options());
    let served = Served::secured(&runtime, service, ca.server(&ca.sign("node", &[proxy::HOST], &[])));
    let proxy = Proxy::new(&runtime, served.address.clone());
    let loader = ca.with_role("loader");
    for slice in 0..2 {
        proxy.begin(Plan::NONE);
        let pushed = push_to(&runtime, &ca, &loader, &proxy.address, slice).unwrap();
        assert!(matches!(pushed, Pushed::Sent(_)), "{pushed:?}");
        assert_eq!(proxy.connections(), 1 + u64::from(slice), "a lane is a second connection");
        assert!(scan(&cache.lease(&key(slice), Want::Latest, None).unwrap()) == sorted(&blobs(2)));
    }
}

#[test]
fn who_has_not_the_role_is_told_what_it_has_and_the_source_is_not_asked() {
    let runtime = runtime();
    let ca = Authority::new("ours");
    let named = ca.sign("named", &["127.0.0.1"], &["spiffe://test/pelton/role/owner"]);
    let server = ca.sign("source", &["127.0.0.1"], &[]);
    let source = Told::sends(&blobs(1));
    let service = FeedService::of_source(source.clone()).options(options());
    let served = Served::secured(&runtime, service.clone(), ca.server(&server));
    let without_ca = ServerTls::from_files(&server.certificate, &server.key, None).unwrap();
    let open = Served::secured(&runtime, service, without_ca);
    for (address, pair, says) in [
        (
            &served.address,
            Some(&named),
            "a pull needs the role reader, and spiffe://test/pelton/role/owner has none",
        ),
        (&open.address, None, "a pull needs the role reader, and 127.0.0.1 has none"),
    ] {
        let pulling = Pulling::new(&runtime, vec![FeedFrom::new(secured_dial(address, ca.client(pair)))]);
        let text = pulling.failure(0);
        for part in ["tried 1 times", "Forbidden", says] {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        pulling.settles();
    }
    assert_eq!(source.times_asked(), 0);

    let (_folder, cache) = taking();
    let service = FeedService::into_cache(cache.clone()).options(options());
    let served = Served::secured(&runtime, service, ca.server(&server));
    for (pair, says) in [
        (named, "a push needs the role loader, and spiffe://test/pelton/role/owner has none"),
        (
            ca.with_role("reader"),
            "a push needs the role loader, and spiffe://test/reader/pelton/role/reader has the role reader",
        ),
    ] {
        let text = push_to(&runtime, &ca, &pair, &served.address, 0).unwrap_err();
        assert!(text.contains("Forbidden") && text.contains(says), "{text:?} lacks {says:?}");
    }
    assert!(cache.search(&"*".parse().unwrap()).is_empty());
}

/// Sends small blobs as long as somebody takes them.
fn endless() -> Told {
    Told::new(|_| {
        Ok(Offering::new(|outlet: &Outlet| {
            while !outlet.is_stopped() {
                outlet.push(b"on and on")?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(SourceError::Stopped)
        }))
    })
}

/// A certificate of a reader of that name.
fn reader(ca: &Authority, name: &str) -> Pair {
    ca.sign(name, &[], &[&format!("spiffe://test/{name}/pelton/role/reader")])
}

/// Goal: two peers at one address are two peers. Method: both hold as many streams as one may have, and then one of them
/// wants one more.
#[test]
fn streams_are_counted_by_certificate() {
    let runtime = runtime();
    let ca = Authority::new("ours");
    let mut limits = Limits::default();
    limits.set(Limit::PeerStreams, 1);
    let mut of_source = FeedOptions::with_limits(limits);
    of_source.timing = timing();
    let service = FeedService::of_source(endless()).options(of_source.clone());
    let served = Served::secured(&runtime, service, ca.server(&ca.sign("source", &["127.0.0.1"], &[])));
    let mut held = Vec::new();
    for name in ["a", "b"] {
        let pair = reader(&ca, name);
        let from = FeedFrom::new(secured_dial(&served.address, ca.client(Some(&pair))));
        let puller = Puller::new(runtime.handle().clone()).options(options());
        let puller = puller.retries(Retries { count_max: 0, ..quick() });
        let pulling = Pulling::by(puller, vec![from], |plan| plan.unwanted = Unwanted::Cancel);
        let lease = pulling.cache.lease_async(&key(0), Want::Latest, None);
        held.push((lease, pulling));
        let expected = held.len() as u64;
        settles(|| match of_source.limits.streams() {
            streams if streams == expected => Ok(()),
            streams => Err(format!("{streams} streams")),
        });
    }
    for (_, pulling) in &held {
        let text = pulling.failure(1);
        assert!(text.contains("ResourceExhausted of peer_streams_max"), "{text}");
    }
    held.clear();
    settles(|| if of_source.limits.streams() == 0 { Ok(()) } else { Err("no stream".to_owned()) });
}

/// Goal: so are their lanes; who has as many as it may goes on by gRPC. Method: each of two peers has the one lane that one may have, and
/// then one of them pulls another slice.
#[test]
fn lanes_are_counted_by_certificate() {
    let runtime = runtime();
    let ca = Authority::new("ours");
    let lanes = LaneLimits { peer_lanes_max: 1, ..LaneLimits::default() };
    let service = FeedService::of_source(endless()).options(options());
    let server = ca.server(&ca.sign("source", &[proxy::HOST], &[]));
    let served = Served::with_lanes(&runtime, service, server, lanes);
    let proxy = Proxy::new(&runtime, served.address.clone());
    let mut held = Vec::new();
    for (name, connections) in [("a", 2), ("b", 4), ("a", 5)] {
        let from = FeedFrom::new(secured_dial(&proxy.address, ca.client(Some(&reader(&ca, name)))));
        let parcels = Counter::default();
        let of_puller = parcels.clone();
        let puller = Puller::new(runtime.handle().clone()).options(options());
        let puller = puller.on_parcel(move |_, _| _ = of_puller.one());
        let pulling = Pulling::by(puller, vec![from], |plan| plan.unwanted = Unwanted::Cancel);
        let lease = pulling.cache.lease_async(&key(0), Want::Latest, None);
        held.push((lease, pulling));
        // What way it goes is clear when something has come.
        settles(|| if parcels.count() > 0 { Ok(()) } else { Err("a parcel".to_owned()) });
        assert_eq!(proxy.connections(), connections, "{name}");
    }
}

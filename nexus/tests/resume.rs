//! Loads whose connection is lost in the middle.
#![allow(missing_docs, reason = "a test's name is its claim")]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/feed.rs"]
mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pelton_nexus::feed::*;
use pelton_worker::{Cache, Lease, LeaseError, LoadPlan, View, Want};
use proxy::{Fault, Plan, Proxy};
use support::*;

/// Parcels of 64 KiB, so that some are in the slice wherever the connection breaks.
fn small_parcels(lane: bool) -> FeedOptions {
    let mut options = options();
    options.packing.target_bytes = 64 << 10;
    options.profile.lane = lane;
    options
}

fn blobs() -> Vec<Vec<u8>> {
    let mut random = Random::new(seed(11));
    (0..12_000).map(|_| random.noise(1000)).collect()
}

/// The connection that has the data is cut when so much of it has passed.
fn cut_data(lane: bool, at: u64) -> Plan {
    Plan { fault: Fault::Cut, at, to_source: false, connection: u64::from(lane) }
}

/// Goal: a load goes on where it broke, and nothing is sent twice or left out. Method: cut the connection that has the
/// data, gRPC or a lane, early and late; count what was in the slice when the source was asked again.
#[test]
fn a_load_goes_on_behind_the_last_parcel_that_is_in_the_slice() {
    let runtime = runtime();
    let blobs = blobs();
    for (lane, at) in [(false, 1 << 20), (false, 9 << 20), (true, 1 << 20), (true, 9 << 20)] {
        let (source, queued) = (Told::replays(&blobs), Counter::default());
        // How many parcels were in the slice each time that the source was asked.
        let in_slice: Arc<Mutex<Vec<u64>>> = Arc::default();
        let (asked, noted, seen) = (source.clone(), in_slice.clone(), queued.clone());
        let counting = Told::new(move |request| {
            noted.lock().unwrap().push(seen.count());
            asked.open(request)
        });
        let service = FeedService::of_source(counting).options(small_parcels(lane));
        let served = Served::new(&runtime, service);
        let proxy = Proxy::new(&runtime, served.address.clone());
        proxy.begin(cut_data(lane, at));
        let puller = Puller::new(runtime.handle().clone()).options(small_parcels(lane)).retries(quick());
        let puller = puller.on_parcel(move |_, _| _ = queued.one());
        let pulling = Pulling::by(puller, vec![FeedFrom::new(dial(&proxy.address))], |_| {});
        assert!(pulling.blobs(0) == sorted(&blobs), "lane={lane}, cut at {at}");

        let asked = source.asked.lock().unwrap();
        let [first, second] = &asked[..] else { panic!("lane={lane}, cut at {at}: {asked:?}") };
        assert_eq!(first.resume, None);
        // More than the window has passed only if some of it was in the slice. Before, a slow machine may have nothing yet.
        let is_late = at > options().window_bytes;
        let Some(resume) = second.resume.as_ref() else {
            assert!(!is_late && *in_slice.lock().unwrap() == [0, 0], "lane={lane}, cut at {at}");
            continue;
        };
        assert_eq!(resume.token, b"v1");
        assert_eq!(*in_slice.lock().unwrap(), [0, resume.parcels]);
        // A blob with its length.
        assert!(resume.parcels > 0 && resume.bytes == resume.items * 1004, "{resume:?}");
        assert!(resume.items < blobs.len() as u64 && resume.bytes <= at, "{resume:?}");
        drop(asked);
        pulling.settles();
    }
}

/// A source that would send other parcels the next time: what is in the slice can't be gone on with.
#[test]
fn a_load_whose_source_forgets_begins_anew() {
    let runtime = runtime();
    let blobs = blobs();
    for lane in [false, true] {
        let source = Told::sends(&blobs);
        let service = FeedService::of_source(source.clone()).options(small_parcels(lane));
        let served = Served::new(&runtime, service);
        let proxy = Proxy::new(&runtime, served.address.clone());
        proxy.begin(cut_data(lane, 2 << 20));
        let puller = Puller::new(runtime.handle().clone()).options(small_parcels(lane)).retries(quick());
        let folder = tempfile::tempdir().unwrap();
        let mut plan = LoadPlan::new(fingerprint(7));
        plan.strict_counts = true;
        let sources = From { plan, sources: vec![FeedFrom::new(dial(&proxy.address))] };
        let cache = Cache::builder()
            .spindle(folder.path().join("spindle"), 1 << 30)
            .memory(512 << 20)
            .scan_threads(2)
            .heal_after(Duration::from_millis(1), Duration::from_millis(10))
            .loader("nexus", NexusLoader::new(puller, sources))
            .view(View::new("test/feed".parse().unwrap()).loader("nexus"))
            .open()
            .unwrap();
        let lease = lease_again(&cache);
        assert!(scan(&lease) == sorted(&blobs), "lane={lane}");
        let asked = source.asked.lock().unwrap();
        assert_eq!(asked.len(), 2, "{asked:?}");
        assert!(asked.iter().all(|request| request.resume.is_none()), "{asked:?}");
    }
}

/// As somebody does who waits until a slice is there.
fn lease_again(cache: &Cache) -> Lease {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        match cache.lease(&key(0), Want::Latest, Some(give_up)) {
            Ok(lease) => return lease,
            Err(LeaseError::Deadline { .. }) => panic!("it did not come"),
            Err(error) => assert!(told(&error).contains("the feed of"), "{}", told(&error)),
        }
    }
}

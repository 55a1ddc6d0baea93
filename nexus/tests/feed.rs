//! Whole pulls and pushes, and the ways they end early.
#![allow(missing_docs, reason = "a test's name is its claim")]
#![allow(clippy::result_large_err, reason = "a test has few errors, and they may be large")]

#[path = "support/feed.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pelton_nexus::feed::*;
use pelton_nexus::{Codec, Limit, Limits};
use pelton_worker::testing::{DiskFault, FaultyDisk, When, open_on};
use pelton_worker::{Cache, CancelToken, LeaseError, SnapState, Unwanted, Want};
use support::*;

/// Small and large, empty and equal, that shrink and that do not.
fn blobs(seed: u64, noise: bool, sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut random = Random::new(seed);
    sizes
        .iter()
        .map(|&len| match noise {
            true => random.noise(len),
            false => {
                let word = random.noise(16);
                word.iter().copied().cycle().take(len).collect()
            }
        })
        .collect()
}

fn many_sizes(seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let small = (0..20_000).map(|_| random.below(300) as usize).collect::<Vec<_>>();
    [small, vec![0, 1, 1 << 20, (1 << 20) - 4, (4 << 20) + 1, 8 << 20, (9 << 20) + 17, 0]].concat()
}

#[test]
fn a_pull_brings_every_byte_whatever_the_codec_the_data_and_the_way() {
    let runtime = runtime();
    let seed = seed(3);
    for noise in [false, true] {
        let blobs = blobs(seed, noise, &many_sizes(seed));
        let source = Told::sends(&blobs);
        let served = Served::new(&runtime, FeedService::of_source(source).options(options()));
        for codec in [Codec::None, Codec::Lz4] {
            for lane in [false, true] {
                let mut options = options();
                options.profile.codecs = vec![codec];
                options.profile.lane = lane;
                let pulling =
                    Pulling::with(&runtime, vec![FeedFrom::new(served.dial())], options.clone(), |_| {});
                assert!(pulling.blobs(0) == sorted(&blobs), "noise={noise} codec={codec} lane={lane}");
                pulling.settles();
                assert_eq!(options.limits.in_flight_bytes(), 0);
            }
        }
    }
}

#[test]
fn a_slice_without_blobs_comes_and_is_loaded_once() {
    let runtime = runtime();
    let source = Told::sends(&[]);
    let served = Served::new(&runtime, FeedService::of_source(source.clone()).options(options()));
    let pulling = Pulling::new(&runtime, vec![FeedFrom::new(served.dial())]);
    assert!(pulling.blobs(0).is_empty());
    assert!(pulling.blobs(0).is_empty());
    assert_eq!(source.times_asked(), 1);
    assert_eq!(pulling.cache.snap(&key(0)).status().state, SnapState::NoData);
}

#[test]
fn several_sources_fill_one_slice_each_with_its_own_loci() {
    let runtime = runtime();
    let all: Vec<Vec<Vec<u8>>> = (0..5).map(|n| blobs(n, n % 2 == 0, &[700; 3000])).collect();
    let by_locus = all.clone();
    let source = Told::new(move |request| {
        let [locus] = &request.loci[..] else { return Err(SourceError::Invalid("one locus".to_owned())) };
        let at: usize = locus.name.parse().map_err(SourceError::failed)?;
        Ok(offering(Arc::new(by_locus[at].clone())))
    });
    let served = Served::new(&runtime, FeedService::of_source(source.clone()).options(options()));
    let sources = (0..5)
        .map(|at| FeedFrom {
            loci: vec![Locus { name: at.to_string(), properties: Vec::new() }],
            ..FeedFrom::new(served.dial())
        })
        .collect();
    let pulling = Pulling::new(&runtime, sources);
    assert!(pulling.blobs(0) == sorted(&all.concat()));
    assert_eq!(source.times_asked(), 5);
    pulling.settles();
}

#[test]
fn many_streams_at_once_end_whole() {
    let runtime = runtime();
    let few = blobs(1, false, &[50; 50]);
    let many = blobs(2, true, &[1000; 10_000]);
    let (a, b) = (few.clone(), many.clone());
    let source = Told::new(move |request| {
        let large = request.key.ends_with("#0");
        Ok(offering(Arc::new(if large { b.clone() } else { a.clone() })))
    });
    let served = Served::new(&runtime, FeedService::of_source(source).options(options()));
    let pulling = Pulling::new(&runtime, vec![FeedFrom::new(served.dial())]);
    std::thread::scope(|scope| {
        for slice in 0..40 {
            let (pulling, few, many) = (&pulling, &few, &many);
            scope.spawn(move || {
                let expected = if slice == 0 { many } else { few };
                assert!(pulling.blobs(slice) == sorted(expected), "slice {slice}");
            });
        }
    });
    pulling.settles();
}

/// Goal: blobs that take most of the memory for parcels and streams that were given some ahead do not wait for each other.
/// Method: of all slices, blobs nearly as large as may be between many small ones, at once.
#[test]
fn streams_of_blobs_nearly_as_large_as_their_memory_end_whole_side_by_side() {
    let runtime = runtime();
    let large = (16 << 20) - 260;
    let blobs: Vec<Vec<u8>> =
        (0..3).flat_map(|of| [vec![vec![of; large]], vec![vec![of; 100_000]; 30]].concat()).collect();
    let source = FeedService::of_source(Told::sends(&blobs)).options(options());
    let served = Served::new(&runtime, source);
    for lane in [false, true] {
        let mut options = options();
        options.profile.codecs = vec![Codec::None];
        options.profile.lane = lane;
        let puller = Puller::new(runtime.handle().clone()).options(options);
        let puller = puller.retries(Retries { count_max: 0, ..quick() });
        let pulling = Pulling::by(puller, vec![FeedFrom::new(served.dial())], |_| {});
        std::thread::scope(|scope| {
            for slice in 0..4 {
                let (pulling, blobs) = (&pulling, &blobs);
                scope.spawn(move || assert!(pulling.blobs(slice) == sorted(blobs), "lane={lane} {slice}"));
            }
        });
        pulling.settles();
    }
}

#[test]
fn what_a_source_says_at_its_end_is_told_with_peer_key_and_reason() {
    let runtime = runtime();
    type Manner = fn(&Outlet) -> Result<Tally, SourceError>;
    let cases: [(Manner, &str); 4] = [
        (|_| Err(SourceError::failed("the table is gone")), "the peer: Source: the table is gone"),
        (|_| Err(SourceError::Unavailable("it drains".to_owned())), "Unavailable"),
        (|_| panic!("on purpose"), "the source ended without saying how"),
        (|_| Ok(Tally { expected: 1, potential: 1, rejected: 2 }), "2 items were rejected of only 1"),
    ];
    for (manner, expected) in cases {
        let source = Told::new(move |_| Ok(Offering::new(manner)));
        let served = Served::new(&runtime, FeedService::of_source(source).options(options()));
        let pulling = Pulling::new(&runtime, vec![FeedFrom::new(served.dial())]);
        let text = pulling.failure(3);
        for part in ["test/feed@1#3", &served.address, expected] {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        pulling.settles();
    }
}

#[test]
fn a_slice_that_its_source_does_not_have_is_not_tried_for_long() {
    let runtime = runtime();
    let source = Told::new(|_| Err(SourceError::NotFound));
    let served = Served::new(&runtime, FeedService::of_source(source.clone()).options(options()));
    let sources = vec![FeedFrom::new(served.dial())];
    let pulling = Pulling::new(&runtime, sources);
    let text = pulling.failure(0);
    assert!(text.contains("its source has no such slice"), "{text}");
    // Another source might have had it.
    assert_eq!(source.times_asked(), 1 + quick().count_max as usize);
}

#[test]
fn another_source_with_the_same_data_is_asked_when_one_does_not_answer() {
    let runtime = runtime();
    let blobs = blobs(4, true, &[100; 100]);
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let without = Told::new(|_| Err(SourceError::NotFound));
    let without = Served::new(&runtime, FeedService::of_source(without).options(options()));
    let with = Served::new(&runtime, FeedService::of_source(Told::sends(&blobs)).options(options()));
    let dials = vec![dial(&nobody), without.dial(), with.dial()];
    let pulling = Pulling::new(&runtime, vec![FeedFrom { dials, ..FeedFrom::default() }]);
    assert!(pulling.blobs(0) == sorted(&blobs));
}

/// Goal: a source that can't go on where another one broke off is no dead end while nothing is in the slice. Method: the
/// first accepts, with a token of its own, and breaks off before a parcel; the second has another token.
#[test]
fn another_source_begins_anew_when_one_breaks_off_before_its_first_parcel() {
    let runtime = runtime();
    let blobs = blobs(14, true, &[100; 100]);
    let breaks = Told::new(|_| {
        let offering = Offering::new(|_: &Outlet| Err(SourceError::Unavailable("it goes down".to_owned())));
        Ok(offering.replayable(b"of the first"))
    });
    let whole = Told::replays(&blobs);
    let first = Served::new(&runtime, FeedService::of_source(breaks.clone()).options(options()));
    let second = Served::new(&runtime, FeedService::of_source(whole.clone()).options(options()));
    let dials = vec![first.dial(), second.dial()];
    let pulling = Pulling::new(&runtime, vec![FeedFrom { dials, ..FeedFrom::default() }]);
    assert!(pulling.blobs(0) == sorted(&blobs));
    assert_eq!((breaks.times_asked(), whole.times_asked()), (1, 1));
    assert_eq!(whole.asked.lock().unwrap()[0].resume, None);
}

/// With parcels in the slice, a source that makes other ones now is asked once: each further time it would say the same.
#[test]
fn a_source_that_has_changed_in_the_middle_is_not_asked_again_and_again() {
    let runtime = runtime();
    let asked = Counter::default();
    let counted = asked.clone();
    let seen = Counter::default();
    let of_source = seen.clone();
    let source = Told::new(move |_| {
        let (first, seen) = (counted.one() == 0, of_source.clone());
        let offering = Offering::new(move |outlet: &Outlet| {
            (0..100).try_for_each(|_| outlet.push(&[1; 100_000]))?;
            // Not before some of it is in the slice.
            while first && seen.count() == 0 && !outlet.is_stopped() {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(SourceError::Unavailable("it goes down".to_owned()))
        });
        Ok(offering.replayable(if first { b"one" } else { b"two" }))
    });
    let served = Served::new(&runtime, FeedService::of_source(source).options(options()));
    let puller = Puller::new(runtime.handle().clone()).options(options()).retries(quick());
    let puller = puller.on_parcel(move |_, _| _ = seen.one());
    let pulling = Pulling::by(puller, vec![FeedFrom::new(served.dial())], |_| {});
    let text = pulling.failure(0);
    assert!(text.contains("NotReplayable"), "{text}");
    assert_eq!(asked.count(), 2);
    pulling.settles();
}

#[test]
fn a_load_that_nobody_wants_any_more_stops_its_source() {
    let runtime = runtime();
    let (pushed, stopped) = (Counter::default(), Counter::default());
    let (of_source, of_end) = (pushed.clone(), stopped.clone());
    let source = Told::new(move |_| {
        let (pushed, stopped) = (of_source.clone(), of_end.clone());
        Ok(Offering::new(move |outlet: &Outlet| {
            loop {
                if let Err(error) = outlet.push(&[1; 1000]) {
                    stopped.one();
                    return Err(error);
                }
                pushed.one();
                std::thread::sleep(Duration::from_micros(100));
            }
        }))
    });
    let served = Served::new(&runtime, FeedService::of_source(source).options(options()));
    let from = vec![FeedFrom::new(served.dial())];
    let pulling = Pulling::with(&runtime, from, options(), |plan| plan.unwanted = Unwanted::Cancel);
    let deadline = Instant::now() + Duration::from_millis(300);
    let ended = pulling.cache.lease(&key(0), Want::Latest, Some(deadline));
    assert!(matches!(ended, Err(LeaseError::Deadline { .. })), "{ended:?}");
    settles(|| if stopped.count() == 1 { Ok(()) } else { Err(format!("{} blobs", pushed.count())) });
    pulling.settles();
    settles(|| match pulling.cache.snap(&key(0)).status().state {
        SnapState::Cold => Ok(()),
        state => Err(format!("{state:?}")),
    });
}

#[test]
fn a_source_that_hangs_is_given_up_although_its_end_gives_signs_of_life() {
    let runtime = runtime();
    let source = Told::new(|_| {
        Ok(Offering::new(|outlet: &Outlet| {
            outlet.push(b"one")?;
            while !outlet.is_stopped() {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(SourceError::Stopped)
        }))
    });
    let served = Served::new(&runtime, FeedService::of_source(source).options(options()));
    let mut options = options();
    options.timing.stall_max = Duration::from_millis(400);
    let pulling = Pulling::with(&runtime, vec![FeedFrom::new(served.dial())], options, |_| {});
    let text = pulling.failure(0);
    assert!(text.contains("no progress for 400ms"), "{text}");
    pulling.settles();
}

#[test]
fn a_peer_that_says_nothing_is_given_up() {
    let runtime = runtime();
    // Takes connections, and never says a word.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = options();
    options.timing.silence_max = Duration::from_millis(300);
    let from = vec![FeedFrom::new(dial(&mute.local_addr().unwrap().to_string()))];
    let puller = Puller::new(runtime.handle().clone()).options(options);
    let puller = puller.retries(Retries { count_max: 1, ..quick() });
    let pulling = Pulling::by(puller, from, |_| {});
    let text = pulling.failure(0);
    assert!(text.contains("nothing was heard for 300ms") || text.contains("did not answer"), "{text}");
    assert!(text.contains("tried 2 times"), "{text}");
}

#[test]
fn the_deadline_of_the_plan_ends_a_pull() {
    let runtime = runtime();
    let source = Told::new(|_| {
        Ok(Offering::new(|outlet: &Outlet| {
            loop {
                outlet.push(b"slow")?;
                std::thread::sleep(Duration::from_millis(5));
            }
        }))
    });
    let served = Served::new(&runtime, FeedService::of_source(source).options(options()));
    let from = vec![FeedFrom::new(served.dial())];
    let begun = Instant::now();
    let pulling = Pulling::with(&runtime, from, options(), |plan| {
        plan.deadline = Some(Instant::now() + Duration::from_millis(500));
    });
    pulling.failure(0);
    assert!(begun.elapsed() < Duration::from_secs(10));
    pulling.settles();
}

/// Goal: a sender that waits for credit is no dead sender, and credit is what the cache has. Method: all of the cache's
/// memory for parcels is taken, for longer than a silent peer has, and then given back.
#[test]
fn a_feed_waits_for_the_caches_memory_and_its_ends_stay_in_touch() {
    let runtime = runtime();
    let blobs = blobs(5, true, &[100_000; 100]);
    let mut options = options();
    options.timing.silence_max = Duration::from_millis(400);
    let source = FeedService::of_source(Told::sends(&blobs)).options(options.clone());
    let served = Served::new(&runtime, source);
    let pulling = Pulling::with(&runtime, vec![FeedFrom::new(served.dial())], options, |_| {});
    let buffers = pulling.cache.buffers();
    let all = runtime.block_on(buffers.take(buffers.share())).unwrap();
    std::thread::scope(|scope| {
        let leasing = scope.spawn(|| pulling.blobs(0));
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!leasing.is_finished());
        drop(all);
        assert!(leasing.join().unwrap() == sorted(&blobs));
    });
    pulling.settles();
}

#[test]
fn a_blob_beyond_what_parcels_may_use_is_refused_with_the_numbers() {
    let runtime = runtime();
    let served =
        Served::new(&runtime, FeedService::of_source(Told::sends(&[vec![0; 40 << 20]])).options(options()));
    let pulling = Pulling::new(&runtime, vec![FeedFrom::new(served.dial())]);
    // Of 512 MiB an eighth is for buffers, a half of that for parcels.
    let text = pulling.failure(0);
    assert!(text.contains("ResourceExhausted") && text.contains("configure more buffers"), "{text}");
    pulling.settles();
}

fn limited(set: &[(Limit, u64)]) -> FeedOptions {
    let mut limits = Limits::default();
    set.iter().for_each(|&(limit, max)| limits.set(limit, max));
    let mut options = FeedOptions::with_limits(limits);
    options.timing = timing();
    options
}

#[test]
fn each_limit_of_streams_is_told_by_its_name_and_exactly_the_limit_passes() {
    let runtime = runtime();
    let blobs = blobs(6, true, &[2_000_000]);
    // One parcel costs its bytes, its length and 256.
    let exact = 2_000_000 + 4 + 256;
    for (limit, pass, fail) in [
        // One parcel has a half at most: the other is for what streams are given ahead.
        (Limit::InFlightBytes, 2 * exact - 1, 2 * exact - 2),
        (Limit::ParcelBytes, exact - 256, exact - 257),
        (Limit::WantBytes, exact, exact - 1),
    ] {
        for (max, passes) in [(pass, true), (fail, false)] {
            let served =
                Served::new(&runtime, FeedService::of_source(Told::sends(&blobs)).options(options()));
            let from = vec![FeedFrom::new(served.dial())];
            let mut options = limited(&[(limit, max)]);
            // Everything is asked for.
            options.window_bytes = 0;
            let pulling = Pulling::with(&runtime, from, options, |_| {});
            match passes {
                true => assert!(pulling.blobs(0) == blobs, "{}", limit.name()),
                false => {
                    let text = pulling.failure(0);
                    assert!(text.contains(limit.name()), "{text:?} lacks {}", limit.name());
                }
            }
            pulling.settles();
        }
    }
}

#[test]
fn streams_beyond_the_limit_of_a_node_or_of_a_peer_are_refused_by_name() {
    let runtime = runtime();
    for limit in [Limit::Streams, Limit::PeerStreams] {
        let options = limited(&[(limit, 2)]);
        let source = Told::new(|_| {
            Ok(Offering::new(|outlet: &Outlet| {
                while !outlet.is_stopped() {
                    outlet.push(b"on and on")?;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(SourceError::Stopped)
            }))
        });
        let served = Served::new(&runtime, FeedService::of_source(source.clone()).options(options.clone()));
        let puller = Puller::new(runtime.handle().clone()).options(support::options());
        let puller = puller.retries(Retries { count_max: 0, ..quick() });
        let pulling =
            Pulling::by(puller, vec![FeedFrom::new(served.dial())], |plan| plan.unwanted = Unwanted::Cancel);
        let leases: Vec<_> =
            (0..2).map(|slice| pulling.cache.lease_async(&key(slice), Want::Latest, None)).collect();
        settles(|| if options.limits.streams() == 2 { Ok(()) } else { Err("2 streams".to_owned()) });
        let text = pulling.failure(2);
        assert!(text.contains(&format!("ResourceExhausted of {}", limit.name())), "{text}");
        drop(leases);
        settles(|| if options.limits.streams() == 0 { Ok(()) } else { Err("no stream".to_owned()) });
    }
}

/// A cache that takes what is pushed.
struct Taking {
    cache: Cache,
    _folder: tempfile::TempDir,
}

impl Taking {
    fn new() -> Taking {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::builder()
            .spindle(folder.path().join("spindle"), 1 << 30)
            .memory(512 << 20)
            .scan_threads(2)
            .open()
            .unwrap();
        Taking { cache, _folder: folder }
    }

    fn blobs(&self, slice: u32) -> Vec<Vec<u8>> {
        scan(&self.cache.lease(&key(slice), Want::Latest, None).unwrap())
    }
}

#[test]
fn a_pushed_slice_is_there_when_its_pusher_is_told_and_pushing_again_sends_nothing() {
    let runtime = runtime();
    let blobs = blobs(8, true, &many_sizes(8));
    let taking = Taking::new();
    let served = Served::new(&runtime, FeedService::into_cache(taking.cache.clone()).options(options()));
    for (slice, lane) in [(0, false), (1, true)] {
        let mut options = options();
        options.profile.lane = lane;
        let source = Told::sends(&blobs);
        let push_it = || {
            let source = Arc::new(source.clone());
            let stop = CancelToken::new();
            runtime.block_on(push(&served.dial(), &key(slice), fingerprint(7), source, &options, &stop))
        };
        let Pushed::Sent(totals) = push_it().unwrap() else { panic!("it was not there") };
        assert_eq!(totals.items, blobs.len() as u64);
        let status = taking.cache.snap(&key(slice)).status();
        assert!(status.durable && status.fingerprint == Some(fingerprint(7)), "{status:?}");
        assert!(taking.blobs(slice) == sorted(&blobs));
        assert_eq!(push_it().unwrap(), Pushed::WasThere);
        assert_eq!(source.times_asked(), 1);
    }
    settles(|| match taking.cache.memory().unwrap().buffers {
        0 => Ok(()),
        bytes => Err(format!("{bytes} of buffers")),
    });
}

/// A cache on a disk that fails as told, with what is pushed to it.
fn taking_on_a_faulty_disk(
    runtime: &tokio::runtime::Runtime,
) -> (tempfile::TempDir, FaultyDisk, Cache, Served) {
    let folder = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(folder.path(), 7);
    let builder = Cache::builder().memory(512 << 20).scan_threads(2).free_floor(0).tender(false);
    let cache = open_on(builder, std::slice::from_ref(&disk)).unwrap();
    let served = Served::new(runtime, FeedService::into_cache(cache.clone()).options(options()));
    (folder, disk, cache, served)
}

/// Goal: a pusher may forget what it was told to be there. Method: the commit of a push fails, which leaves the slice in
/// memory; push again, while the disk still fails and when it has healed.
#[test]
fn a_push_whose_commit_has_failed_is_not_told_to_be_there() {
    let runtime = runtime();
    let (_folder, disk, cache, served) = taking_on_a_faulty_disk(&runtime);
    let blobs = blobs(12, true, &[1000; 100]);
    let source = Told::sends(&blobs);
    let push_it = || {
        let (source, stop) = (Arc::new(source.clone()), CancelToken::new());
        runtime.block_on(push(&served.dial(), &key(0), fingerprint(7), source, &options(), &stop))
    };
    disk.fail(When::Every("rename"), DiskFault::Error(28));
    assert!(push_it().is_err());
    let status = cache.snap(&key(0)).status();
    assert!(status.fingerprint == Some(fingerprint(7)) && !status.durable, "{status:?}");
    let again = push_it();
    assert!(again.is_err(), "{again:?}");
    disk.heal();
    assert!(matches!(push_it(), Ok(Pushed::Sent(_))));
    assert!(cache.snap(&key(0)).status().durable);
    assert_eq!(push_it().unwrap(), Pushed::WasThere);
    assert_eq!(source.times_asked(), 3);
}

/// Goal: a push that broke off in its commit is not sent anew. Method: the disk hangs in the commit, the pusher goes, and
/// comes again; then the disk goes on.
#[test]
fn a_push_of_what_is_being_committed_waits_for_that() {
    let runtime = runtime();
    let (_folder, disk, cache, served) = taking_on_a_faulty_disk(&runtime);
    let source = Told::sends(&blobs(13, true, &[1000; 100]));
    disk.fail(When::Every("sync"), DiskFault::Hang);
    let push_it = |stop: CancelToken| {
        let (source, dial, runtime) = (Arc::new(source.clone()), served.dial(), runtime.handle().clone());
        std::thread::spawn(move || {
            runtime.block_on(push(&dial, &key(0), fingerprint(7), source, &options(), &stop))
        })
    };
    let stop = CancelToken::new();
    let first = push_it(stop.clone());
    settles(|| match cache.snap(&key(0)).status() {
        status if status.fingerprint == Some(fingerprint(7)) => Ok(()),
        status => Err(format!("{status:?}")),
    });
    stop.cancel();
    assert!(matches!(first.join().unwrap(), Err(FeedError::Stopped { .. })));
    let of_cache = cache.clone();
    let second = push_it(CancelToken::new());
    let told = std::thread::spawn(move || (second.join().unwrap(), of_cache.snap(&key(0)).status().durable));
    // Long enough to hear signs of life, and to be told too early.
    std::thread::sleep(timing().silence_max + Duration::from_millis(500));
    disk.let_go();
    let (pushed, durable) = told.join().unwrap();
    assert_eq!((pushed.unwrap(), durable), (Pushed::WasThere, true));
    assert_eq!(source.times_asked(), 1);
}

#[test]
fn a_push_that_breaks_off_leaves_nothing_and_the_next_one_works() {
    let runtime = runtime();
    let taking = Taking::new();
    let served = Served::new(&runtime, FeedService::into_cache(taking.cache.clone()).options(options()));
    let push_it = |source: Told, stop: &CancelToken| {
        let source = Arc::new(source);
        runtime.block_on(push(&served.dial(), &key(0), fingerprint(1), source, &options(), stop))
    };
    let fails = Told::new(|_| {
        Ok(Offering::new(|outlet: &Outlet| {
            (0..3000).try_for_each(|_| outlet.push(&[3; 1000]))?;
            Err(SourceError::failed("it broke"))
        }))
    });
    let error = push_it(fails, &CancelToken::new()).unwrap_err();
    assert!(told(&error).contains("it broke"), "{}", told(&error));
    let gone = || {
        settles(|| match taking.cache.snap(&key(0)).status().state {
            SnapState::Cold => Ok(()),
            state => Err(format!("{state:?}")),
        });
    };
    gone();
    let stop = CancelToken::new();
    let endless = Told::new(|_| {
        Ok(Offering::new(|outlet: &Outlet| {
            loop {
                outlet.push(&[3; 1000])?
            }
        }))
    });
    let stopping = stop.clone();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        stopping.cancel();
    });
    assert!(matches!(push_it(endless, &stop), Err(FeedError::Stopped { .. })));
    stopper.join().unwrap();
    gone();
    let blobs = blobs(9, false, &[10; 10]);
    assert!(matches!(push_it(Told::sends(&blobs), &CancelToken::new()), Ok(Pushed::Sent(_))));
    assert!(taking.blobs(0) == sorted(&blobs));
}

#[test]
fn what_is_not_served_is_refused_in_words() {
    let runtime = runtime();
    let taking = Taking::new();
    let takes = Served::new(&runtime, FeedService::into_cache(taking.cache.clone()).options(options()));
    let gives = Served::new(&runtime, FeedService::of_source(Told::sends(&[])).options(options()));
    let pulling = Pulling::new(&runtime, vec![FeedFrom::new(takes.dial())]);
    let text = pulling.failure(0);
    assert!(text.contains("Forbidden: nothing is given here by Feed"), "{text}");
    let source = Arc::new(Told::sends(&[]));
    let pushed = runtime.block_on(push(
        &gives.dial(),
        &key(0),
        fingerprint(1),
        source,
        &options(),
        &CancelToken::new(),
    ));
    let text = told(&pushed.unwrap_err());
    assert!(text.contains("Forbidden: nothing is taken here by Feed"), "{text}");
}

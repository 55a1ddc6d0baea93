//! Slices from cache to cache over loopback: as they should be, damaged, and from peers that lie.

mod liar;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pelton_nexus_proto::messages::peer_client::PeerClient;
use pelton_nexus_proto::messages::{FetchRangeRequest, GetManifestRequest};
use pelton_nexus_proto::{Limit, Limits};
use pelton_region_format::{Fingerprint, Key};
use pelton_worker::testing::{DiskFault, FaultyDisk, When, open_on};
use pelton_worker::{
    Cache, Durability, LeaseError, LoadError, LoadPlan, ParcelBuilder, RegionIntake, SnapState, View, Want,
    WritePath,
};
use tokio::runtime::Handle;

use self::liar::{LaneLie, Liar, Lie};
use super::*;
use crate::dial::Dial;
use crate::door::Door;
use crate::lanes::LaneLimits;
use crate::limits::NodeLimits;
use crate::tls::{ClientSecurity, ClientTls, ServerSecurity, ServerTls};

const MIB: usize = 1 << 20;

fn key() -> Key {
    "test/peer@1#0".parse().unwrap()
}

fn fingerprint(of: u8) -> Fingerprint {
    Fingerprint::from_bytes([of; 32])
}

/// A cache in a folder of its own.
struct Place {
    cache: Cache,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let cache = Place::open(folder.path());
        Place { cache, folder }
    }

    fn open(folder: &Path) -> Cache {
        let builder = Cache::builder().memory(256 << 20).scan_threads(2).free_floor(0).tender(false);
        builder.spindle(folder.join("spindle"), 1 << 30).open().unwrap()
    }

    /// Four regions, one of them empty.
    fn load(&self, of: u8, write_path: WritePath) {
        let mut plan = LoadPlan::new(fingerprint(of));
        (plan.regions, plan.write_path, plan.durability) = (Some(4), write_path, Durability::Wait);
        let writer = self.cache.snap(&key()).open_for_writes(plan).unwrap();
        for number in 0..3usize {
            let mut parcel = ParcelBuilder::default();
            let byte = |i: usize| (i * 7 + number * 31 + (i >> 10) + usize::from(of)) as u8;
            parcel.push(&(0..3 * MIB + 1001 * number).map(byte).collect::<Vec<u8>>()).unwrap();
            writer.queue_parcel(parcel.finish()).unwrap();
        }
        writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    }

    /// The region files, by their place in the order of their names.
    fn paths(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            // One that is being removed has nothing any more.
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            for entry in entries.flatten() {
                let path = entry.path();
                match path.is_dir() {
                    true => folders.push(path),
                    false if path.extension().is_some_and(|ending| ending == "region") => found.push(path),
                    false => {}
                }
            }
        }
        found.sort();
        found
    }

    fn files(&self) -> Vec<Vec<u8>> {
        self.paths().iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    fn flip(&self, region: usize, offset: usize) {
        let path = &self.paths()[region];
        let mut bytes = std::fs::read(path).unwrap();
        bytes[offset] ^= 0x20;
        std::fs::write(path, bytes).unwrap();
    }

    fn state(&self) -> SnapState {
        self.cache.snap(&key()).status().state
    }

    /// Once a load that was given up has ended, nothing of it is there. One with a deadline is removed aside.
    fn assert_nothing_is_left(&self) {
        let held = || {
            let spindle = &self.cache.spindles()[0];
            let buffers = self.cache.memory().unwrap().buffers;
            (self.paths().len(), spindle.reserved, spindle.used, buffers)
        };
        let give_up = Instant::now() + Duration::from_secs(20);
        while (self.state() == SnapState::Loading || held() != (0, 0, 0, 0)) && Instant::now() < give_up {
            std::thread::yield_now();
        }
        assert!(matches!(self.state(), SnapState::Cold | SnapState::Failed), "{:?}", self.state());
        assert_eq!(held(), (0, 0, 0, 0), "files, promised, used, buffers");
    }
}

/// Serves a cache; the liar, if there is one, stands before it.
async fn serve(cache: &Cache, security: ServerSecurity, lie: Option<Lie>) -> (SocketAddr, Option<Liar>) {
    let (address, _, liar) = serve_with(cache, security, lie, PeerOptions::default()).await;
    (address, liar)
}

async fn serve_with(
    cache: &Cache,
    security: ServerSecurity,
    lie: Option<Lie>,
    options: PeerOptions,
) -> (SocketAddr, PeerService, Option<Liar>) {
    let address = "127.0.0.1:0".parse().unwrap();
    let door = Door::open(address, security, LaneLimits::default()).await.unwrap();
    let address = door.address();
    let service = PeerService::new(cache.clone(), Some(door.lanes().clone()), options);
    let honest = service.clone();
    let mut server = tonic::transport::Server::builder();
    let liar = lie.map(|lie| Liar::new(service.clone(), lie));
    match liar.clone() {
        None => {
            let server = server.add_service(service.into_server());
            tokio::spawn(server.serve_with_incoming(door.incoming()));
        }
        Some(liar) => {
            let server = server.add_service(liar.into_server());
            tokio::spawn(server.serve_with_incoming(door.incoming()));
        }
    }
    (address, honest, liar)
}

fn holder(address: SocketAddr, lanes: bool) -> Holder {
    let dial = Dial::new(&address.to_string(), ClientSecurity::Plain).unwrap();
    Holder::new(dial, options(lanes))
}

fn options(lanes: bool) -> FetchOptions {
    FetchOptions {
        lanes,
        idle_wait_max: Duration::from_secs(20),
        durability: Durability::Wait,
        ..FetchOptions::default()
    }
}

/// Bytes of all blobs.
fn scanned(cache: &Cache) -> u64 {
    let lease = cache.lease(&key(), Want::Latest, None).unwrap();
    let sum = |blobs: &mut pelton_worker::Blobs<'_>, sum: &mut u64| {
        while let Some(blob) = blobs.next()? {
            *sum += blob.len() as u64;
        }
        Ok(())
    };
    lease.scan(sum, |a, b| a + b).unwrap()
}

/// Goal: what is fetched is what is there, byte for byte. Method: by lane and by gRPC, of what is in memory and of what is
/// not, kept as an image and not; and once more, when it is here already.
#[tokio::test(flavor = "multi_thread")]
async fn a_slice_comes_byte_for_byte() {
    for lanes in [false, true] {
        for write_path in [WritePath::Image, WritePath::Direct] {
            let (from, to) = (Place::new(), Place::new());
            from.load(1, write_path);
            let (address, _) = serve(&from.cache, ServerSecurity::Plain, None).await;
            let told = Arc::new(AtomicU64::new(0));
            let counted = told.clone();
            let mut holder = holder(address, lanes);
            holder.options.write_path = write_path;
            holder.options.on_progress = Some(Arc::new(move |progress| {
                counted.fetch_max(progress.bytes, Ordering::Relaxed);
                assert!(progress.bytes <= progress.bytes_total);
            }));
            let fetched = holder.fetch(&to.cache, &key(), None).await.unwrap();
            assert!(from.files() == to.files(), "lanes={lanes} {write_path:?}");
            let total: usize = to.files().iter().map(Vec::len).sum();
            assert_eq!((fetched.bytes, fetched.was_here), (total as u64, false));
            assert_eq!(told.load(Ordering::Relaxed), total as u64);
            assert_eq!(fetched.manifest.file_bytes(), total as u64);
            assert_eq!(scanned(&to.cache), fetched.manifest.blob_bytes());
            let again = holder.fetch(&to.cache, &key(), Some(fingerprint(1))).await.unwrap();
            assert!(again.was_here && again.bytes == 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_carries_lanes_and_grpc_alike() {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (cert_file, key_file) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert_file, cert.pem()).unwrap();
    std::fs::write(&key_file, signing_key.serialize_pem()).unwrap();
    let server = ServerTls::from_files(&cert_file, &key_file, None).unwrap();
    let client = ClientTls::from_files(None, &cert_file).unwrap();
    for lanes in [false, true] {
        for write_path in [WritePath::Image, WritePath::Direct] {
            let (from, to) = (Place::new(), Place::new());
            from.load(1, write_path);
            let security = ServerSecurity::from(server.clone());
            let (address, _) = serve(&from.cache, security, None).await;
            let dial = Dial::new(&address.to_string(), client.clone().into()).unwrap();
            Holder::new(dial, options(lanes)).fetch(&to.cache, &key(), None).await.unwrap();
            assert!(from.files() == to.files(), "lanes={lanes} {write_path:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_without_a_blob_comes_as_such() {
    let (from, to) = (Place::new(), Place::new());
    let mut plan = LoadPlan::new(fingerprint(1));
    (plan.regions, plan.durability) = (Some(3), Durability::Wait);
    let writer = from.cache.snap(&key()).open_for_writes(plan).unwrap();
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
    let (address, _) = serve(&from.cache, ServerSecurity::Plain, None).await;
    let fetched = holder(address, true).fetch(&to.cache, &key(), None).await.unwrap();
    assert_eq!((fetched.manifest.region_count(), fetched.bytes), (3, 0));
    assert_eq!(to.state(), SnapState::NoData);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_told() {
    let (from, to) = (Place::new(), Place::new());
    let (address, _) = serve(&from.cache, ServerSecurity::Plain, None).await;
    let error = holder(address, true).fetch(&to.cache, &key(), None).await.unwrap_err();
    assert!(matches!(error, FetchError::NotFound { .. }), "{error}");
    from.load(1, WritePath::Image);
    let other = holder(address, true).fetch(&to.cache, &key(), Some(fingerprint(2))).await.unwrap_err();
    assert!(matches!(other, FetchError::NotFound { .. }), "{other}");
    to.assert_nothing_is_left();
}

/// A cache whose leases are filled from a peer: all who ask at once wait for one load.
#[tokio::test(flavor = "multi_thread")]
async fn leases_are_filled_from_a_peer_and_two_at_once_load_once() {
    let from = Place::new();
    from.load(1, WritePath::Image);
    let (address, _) = serve(&from.cache, ServerSecurity::Plain, None).await;
    let folder = tempfile::tempdir().unwrap();
    let loader = PeerLoader::new(holder(address, true), Handle::current());
    let cache = Cache::builder()
        .memory(256 << 20)
        .scan_threads(2)
        .free_floor(0)
        .spindle(folder.path().join("spindle"), 1 << 30)
        .loader("peer", loader)
        .view(View::new("test/peer".parse().unwrap()).loader("peer"))
        .open()
        .unwrap();
    let scans: Vec<_> = (0..4)
        .map(|_| {
            let cache = cache.clone();
            tokio::task::spawn_blocking(move || scanned(&cache))
        })
        .collect();
    for scan in scans {
        assert_eq!(scan.await.unwrap(), 3 * 3 * MIB as u64 + 3003);
    }
    assert_eq!(cache.stats().loads.begun, 1);
    let absent: Key = "test/peer@1#7".parse().unwrap();
    let of_absent = cache.clone();
    let none = tokio::task::spawn_blocking(move || of_absent.lease(&absent, Want::Latest, None).map(drop));
    assert!(matches!(none.await.unwrap(), Err(LeaseError::NotThere { .. })));
    tokio::task::spawn_blocking(move || cache.close(None)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_fetches_of_a_slice_load_it_once() {
    let (from, to) = (Place::new(), Place::new());
    from.load(1, WritePath::Image);
    let (address, _) = serve(&from.cache, ServerSecurity::Plain, None).await;
    let holder = holder(address, true);
    let key = key();
    let (one, two) = tokio::join!(holder.fetch(&to.cache, &key, None), holder.fetch(&to.cache, &key, None));
    let here = [one.unwrap().was_here, two.unwrap().was_here];
    assert_eq!(here.iter().filter(|was_here| **was_here).count(), 1);
    assert!(from.files() == to.files());
}

/// Goal: many slices come from one peer at once. Method: as many sessions as the peer allows streams, which is more than
/// it allows connections.
#[tokio::test(flavor = "multi_thread")]
async fn many_fetches_from_one_peer_share_its_connections() {
    let from = Place::new();
    from.load(1, WritePath::Image);
    let (address, _) = serve(&from.cache, ServerSecurity::Plain, None).await;
    let holder = holder(address, false);
    let asking: Vec<_> = (0..64)
        .map(|_| {
            let holder = holder.clone();
            tokio::spawn(async move {
                let session = holder.session(&key(), pelton_worker::CancelToken::new()).await.unwrap();
                session.manifest(None).await.unwrap();
                session
            })
        })
        .collect();
    let mut sessions = Vec::new();
    for one in asking {
        sessions.push(one.await.unwrap());
    }
    assert_eq!(sessions.len(), 64, "all at once");
}

/// Goal: what nobody takes yet holds up no other range on its connection. Method: five ranges of 3 MiB lie untaken, more than a
/// stream's window; another one comes whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_nobody_takes_holds_up_no_other_on_its_connection() {
    let from = Place::new();
    from.load(1, WritePath::Image);
    let (address, _) = serve(&from.cache, ServerSecurity::Plain, None).await;
    let dial = Dial::new(&address.to_string(), ClientSecurity::Plain).unwrap();
    let mut client = PeerClient::new(dial.channel().await.unwrap());
    let asked = GetManifestRequest { versions: vec![1], key: key().to_string(), fingerprint: Vec::new() };
    let manifest = client.get_manifest(asked).await.unwrap().into_inner();
    let region = manifest.regions[0].clone();
    let request = FetchRangeRequest {
        key: key().to_string(),
        fingerprint: manifest.fingerprint,
        region: region.index,
        content_id: region.content_id,
        offset: 0,
        len: region.file_bytes,
        ..FetchRangeRequest::default()
    };
    let mut untaken = Vec::new();
    for _ in 0..5 {
        untaken.push(client.fetch_range(request.clone()).await.unwrap().into_inner());
    }
    // Whatever they may send by themselves they have sent.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let taking = async {
        let mut range = client.fetch_range(request).await.unwrap().into_inner();
        let mut messages = 0;
        while range.message().await.unwrap().is_some() {
            messages += 1;
        }
        messages
    };
    let messages = tokio::time::timeout(Duration::from_secs(20), taking).await.expect("it comes whole");
    assert!(messages > 3, "{messages} for 3 MiB and its end");
}

/// Goal: a peer serves so many at once, and a fetch waits for its turn. Method: all places but one are taken, so that not
/// even the threads of one fetch have one each; then all of them, for too long.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_beyond_the_limit_of_a_peer_are_refused_by_name_and_waited_for() {
    for lanes in [false, true] {
        let (from, to) = (Place::new(), Place::new());
        from.load(1, WritePath::Image);
        let mut limits = Limits::default();
        limits.set(Limit::PeerStreams, 3);
        let limits = NodeLimits::new(limits);
        let peer_options = PeerOptions { limits: limits.clone(), ..PeerOptions::default() };
        let (address, _, _) = serve_with(&from.cache, ServerSecurity::Plain, None, peer_options).await;
        let others: Vec<_> = (0..2).map(|_| limits.stream("127.0.0.1").unwrap()).collect();
        let mut holder = holder(address, lanes);
        holder.fetch(&to.cache, &key(), None).await.unwrap();
        assert!(from.files() == to.files(), "lanes={lanes}");

        let last = limits.stream("127.0.0.1").unwrap();
        holder.options.idle_wait_max = Duration::from_millis(300);
        match holder.manifest(&key(), None).await {
            Err(FetchError::Refused { status, .. }) => {
                assert_eq!(status.code(), tonic::Code::ResourceExhausted);
                let says = "peer_streams_max: 4 is more than the 3 that are allowed";
                assert_eq!(status.message(), says);
            }
            other => panic!("{other:?}"),
        }
        drop((others, last));
        let mut settled = 0;
        while limits.streams() > 0 && settled < 20_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            settled += 1;
        }
        assert_eq!(limits.streams(), 0, "all places are given back");
    }
}

/// Goal: a fetch that does not use its lane for a while goes on all the same. Method: between two regions it waits until
/// the holder has closed the lane.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_was_idle_for_too_long_is_done_without() {
    let (from, to) = (Place::new(), Place::new());
    from.load(1, WritePath::Image);
    let peer_options = PeerOptions { idle_wait_max: Duration::from_secs(1), ..PeerOptions::default() };
    let (address, service, _) = serve_with(&from.cache, ServerSecurity::Plain, None, peer_options).await;
    let mut holder = holder(address, true);
    holder.options.streams = 1;
    let session = holder.session(&key(), pelton_worker::CancelToken::new()).await.unwrap();
    let manifest = session.manifest(None).await.unwrap();
    let writer = to.cache.snap(&key()).open_for_writes(manifest.plan()).unwrap();
    let fetching = move || {
        let open = |index| writer.region_intake(index);
        let lanes_seen = AtomicU64::new(0);
        let take = |session: &fetch::Session, line: &mut line::Line<'_>, intake: &mut RegionIntake| {
            session.take(line, intake)?;
            lanes_seen.fetch_max(service.lanes_connected() as u64, Ordering::Relaxed);
            let give_up = Instant::now() + Duration::from_secs(20);
            while service.lanes_connected() > 0 && Instant::now() < give_up {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(service.lanes_connected(), 0, "the holder closes it");
            Ok(())
        };
        session.take_all(manifest.fingerprint(), manifest.regions(), &open, &take).unwrap();
        writer.wait_for_writes().unwrap().close_for_writes().unwrap();
        assert_eq!(lanes_seen.into_inner(), 1, "there was one");
    };
    tokio::task::spawn_blocking(fetching).await.unwrap();
    to.cache.sync(None).unwrap();
    assert!(from.files() == to.files());
}

/// Goal: who waits for somebody else's load asks the peer now and then, and keeps to its deadline. Method: a load is open
/// on a key that has an older version, which nothing but opening tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_of_what_somebody_loads_waits_without_haste_and_not_beyond_its_deadline() {
    let (from, to) = (Place::new(), Place::new());
    from.load(2, WritePath::Image);
    to.load(1, WritePath::Image);
    let writer = to.cache.snap(&key()).open_for_writes(LoadPlan::new(fingerprint(3))).unwrap();
    let (address, liar) = serve(&from.cache, ServerSecurity::Plain, Some(Lie::Nothing)).await;
    let asked = Arc::new(AtomicU64::new(0));
    let counted = asked.clone();
    liar.unwrap().after_manifest(move || _ = counted.fetch_add(1, Ordering::Relaxed));
    let mut holder = holder(address, false);
    let begun = Instant::now();
    holder.options.deadline = Some(begun + Duration::from_secs(2));
    let ended = tokio::time::timeout(Duration::from_secs(20), holder.fetch(&to.cache, &key(), None)).await;
    assert!(matches!(ended, Ok(Err(FetchError::Late { .. }))), "{ended:?}");
    let asked = asked.load(Ordering::Relaxed);
    // Ten times a second at most. In a loop without haste there is none.
    let most = 2 + begun.elapsed().as_millis() as u64 / 100;
    assert!((1..=most).contains(&asked), "{asked} manifests in {:?}", begun.elapsed());
    drop(writer);
    holder.options.deadline = None;
    assert!(!holder.fetch(&to.cache, &key(), None).await.unwrap().was_here);
}

/// A slice in memory whose commit has failed goes with the process: who wants it durable fetches it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_and_could_not_be_saved_is_fetched() {
    let from = Place::new();
    from.load(1, WritePath::Image);
    let (address, _) = serve(&from.cache, ServerSecurity::Plain, None).await;
    let folder = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(folder.path(), 7);
    let builder = Cache::builder().memory(256 << 20).scan_threads(2).free_floor(0).tender(false);
    let cache = open_on(builder, std::slice::from_ref(&disk)).unwrap();
    disk.fail(When::Every("rename"), DiskFault::Error(28));
    let holder = holder(address, true);
    assert!(holder.fetch(&cache, &key(), None).await.is_err());
    let status = cache.snap(&key()).status();
    assert!(status.fingerprint == Some(fingerprint(1)) && !status.durable, "{status:?}");
    disk.heal();
    assert!(!holder.fetch(&cache, &key(), None).await.unwrap().was_here);
    assert!(cache.snap(&key()).status().durable);
    assert!(holder.fetch(&cache, &key(), None).await.unwrap().was_here);
}

/// A bit that is wrong on the holder's disk: told with its place, after it was asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_at_the_holder_is_told_with_its_place() {
    for lanes in [false, true] {
        let (from, to) = (Place::new(), Place::new());
        from.load(1, WritePath::Direct);
        from.flip(1, 2 * MIB + 17);
        let (address, _) = serve(&from.cache, ServerSecurity::Plain, None).await;
        let error = holder(address, lanes).fetch(&to.cache, &key(), None).await.unwrap_err();
        match &error {
            FetchError::Damaged { region: 1, offset, source: Some(_), .. } => {
                assert_eq!(*offset, 2 * MIB as u64, "{error}");
            }
            other => panic!("{other}"),
        }
        to.assert_nothing_is_left();
    }
}

/// A holder whose region ends in damage knows it, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_end_at_the_holder_is_refused_by_it() {
    let (from, to) = (Place::new(), Place::new());
    from.load(1, WritePath::Direct);
    let len = from.files()[0].len();
    from.flip(0, len - 4096 - 100);
    let (address, _) = serve(&from.cache, ServerSecurity::Plain, None).await;
    let error = holder(address, true).fetch(&to.cache, &key(), None).await.unwrap_err();
    match error {
        FetchError::Refused { status, .. } => assert_eq!(status.code(), tonic::Code::DataLoss),
        other => panic!("{other}"),
    }
    to.assert_nothing_is_left();
}

/// Peers that lie about what they have: refused before or while it comes, and nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_lies_is_found_out() {
    let lies: [(&str, liar::ChangeManifest); 9] = [
        ("key", |manifest| manifest.key.push('1')),
        ("version", |manifest| manifest.version = 2),
        ("fingerprint", |manifest| manifest.fingerprint.truncate(31)),
        ("sums", |manifest| manifest.blob_count += 1),
        ("region count", |manifest| manifest.region_count = 0),
        ("order", |manifest| manifest.regions.swap(0, 1)),
        ("length", |manifest| manifest.regions[0].file_bytes = u64::MAX),
        ("body", |manifest| manifest.regions[0].body_end = 1),
        ("blocks", |manifest| manifest.regions[0].block_bytes = 3),
    ];
    for (name, change) in lies {
        let (from, to) = (Place::new(), Place::new());
        from.load(1, WritePath::Image);
        let (address, _) = serve(&from.cache, ServerSecurity::Plain, Some(Lie::Manifest(change))).await;
        let error = holder(address, true).fetch(&to.cache, &key(), None).await.unwrap_err();
        assert!(matches!(error, FetchError::Manifest { .. }), "{name}: {error}");
        to.assert_nothing_is_left();
    }
    // Of these only the file tells.
    let lies: [(&str, liar::ChangeManifest); 3] = [
        ("block size", |manifest| manifest.regions[0].block_bytes *= 2),
        ("body", |manifest| manifest.regions[0].body_end -= 8),
        ("more", |manifest| {
            manifest.regions[0].blob_count += 1;
            manifest.blob_count += 1;
        }),
    ];
    for (name, change) in lies {
        let (from, to) = (Place::new(), Place::new());
        from.load(1, WritePath::Image);
        let (address, _) = serve(&from.cache, ServerSecurity::Plain, Some(Lie::Manifest(change))).await;
        let error = holder(address, true).fetch(&to.cache, &key(), None).await.unwrap_err();
        assert!(matches!(error, FetchError::Damaged { offset: 0, .. }), "{name}: {error}");
        to.assert_nothing_is_left();
    }
    let (from, to) = (Place::new(), Place::new());
    from.load(1, WritePath::Image);
    let lie = Lie::Manifest(|manifest| {
        manifest.regions[0].file_bytes = 1 << 50;
        manifest.regions[0].body_end = (1 << 50) - (1 << 20);
    });
    let (address, _) = serve(&from.cache, ServerSecurity::Plain, Some(lie)).await;
    let error = holder(address, true).fetch(&to.cache, &key(), None).await.unwrap_err();
    match &error {
        FetchError::Load { source, .. } => {
            assert!(matches!(**source, LoadError::NoSpindle { .. }), "{error}")
        }
        other => panic!("{other}"),
    }
    to.assert_nothing_is_left();
}

/// Damage on the way, once: the block is asked for again by its range, and the slice comes whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_was_damaged_on_the_way_is_asked_for_again() {
    for lie in [Lie::FlipOnce { region: 0, offset: MIB as u64 + 9 }, Lie::WrongChecksumOnce] {
        let (from, to) = (Place::new(), Place::new());
        from.load(1, WritePath::Image);
        let (address, liar) = serve(&from.cache, ServerSecurity::Plain, Some(lie)).await;
        let mut holder = holder(address, false);
        holder.options.streams = 1;
        holder.fetch(&to.cache, &key(), None).await.unwrap();
        assert!(from.files() == to.files(), "{lie:?}");
        let ranges = liar.unwrap().ranges();
        if let Lie::FlipOnce { .. } = lie {
            let block = MIB as u64;
            assert!(ranges.contains(&(0, block..2 * block)), "the block alone: {ranges:?}");
        }
    }
}

/// Whatever a peer does wrong has a name, and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_breaks_the_rules_is_left() {
    for lie in [
        Lie::Flip { region: 0, offset: MIB as u64 + 9 },
        Lie::OtherOffset,
        Lie::OtherRange,
        Lie::TooMuch,
        Lie::TooLittle,
        Lie::NoBytes,
        Lie::OtherEnd,
        Lie::NoEnd,
        Lie::BreakOff,
        Lie::Hang,
        Lie::Always(tonic::Code::Aborted),
        Lie::Always(tonic::Code::PermissionDenied),
    ] {
        let (from, to) = (Place::new(), Place::new());
        from.load(1, WritePath::Image);
        let (address, _) = serve(&from.cache, ServerSecurity::Plain, Some(lie)).await;
        let mut holder = holder(address, false);
        if lie == Lie::Hang {
            holder.options.idle_wait_max = Duration::from_millis(300);
        }
        let error = holder.fetch(&to.cache, &key(), None).await.unwrap_err();
        let is_right = match lie {
            Lie::Flip { .. } => {
                matches!(error, FetchError::Damaged { region: 0, offset, .. } if offset == MIB as u64)
            }
            Lie::NoEnd | Lie::BreakOff => matches!(error, FetchError::Lost { .. }),
            Lie::Hang => matches!(error, FetchError::Idle { .. }),
            Lie::Always(tonic::Code::Aborted) => matches!(error, FetchError::Changed { .. }),
            Lie::Always(_) => matches!(error, FetchError::Refused { .. }),
            _ => matches!(error, FetchError::Protocol { .. }),
        };
        assert!(is_right, "{lie:?}: {error}");
        to.assert_nothing_is_left();
    }
}

/// The same for lanes. What may be the way's fault is tried again by gRPC, and then the slice comes all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_breaks_the_rules_is_left() {
    for lie in [
        LaneLie::Closed,
        LaneLie::Refused,
        LaneLie::Garbage,
        LaneLie::CutFrame,
        LaneLie::OtherOffset,
        LaneLie::TooMuch,
        LaneLie::Hang,
    ] {
        let (from, to) = (Place::new(), Place::new());
        from.load(1, WritePath::Image);
        let (address, _) = serve(&from.cache, ServerSecurity::Plain, Some(Lie::Lane(lie))).await;
        let mut holder = holder(address, true);
        holder.options.streams = 1;
        if lie == LaneLie::Hang {
            holder.options.idle_wait_max = Duration::from_millis(300);
        }
        let fetched = holder.fetch(&to.cache, &key(), None).await;
        match (lie, fetched) {
            (LaneLie::Closed | LaneLie::Refused | LaneLie::Garbage | LaneLie::CutFrame, Ok(_)) => {
                assert!(from.files() == to.files(), "{lie:?}");
                continue;
            }
            (LaneLie::Hang, Err(FetchError::Idle { .. })) => {}
            (LaneLie::OtherOffset | LaneLie::TooMuch, Err(FetchError::Protocol { .. })) => {}
            (_, other) => panic!("{lie:?}: {other:?}"),
        }
        to.assert_nothing_is_left();
    }
}

/// A slice that is replaced between the manifest and a range: the fetch begins anew, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_changes_meanwhile_is_fetched_anew() {
    for lanes in [false, true] {
        let (from, to) = (Arc::new(Place::new()), Place::new());
        from.load(1, WritePath::Image);
        let at_holder = Mutex::new(Some(from.clone()));
        let (address, liar) = serve(&from.cache, ServerSecurity::Plain, Some(Lie::Nothing)).await;
        liar.unwrap().after_manifest(move || {
            if let Some(from) = at_holder.lock().unwrap().take() {
                from.load(2, WritePath::Image);
            }
        });
        let fetched = holder(address, lanes).fetch(&to.cache, &key(), None).await.unwrap();
        assert_eq!(fetched.manifest.fingerprint(), fingerprint(2));
        assert!(from.files() == to.files());
    }
}

/// Whoever gives up leaves nothing, however far it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_dropped_or_late_leaves_nothing() {
    let (from, to) = (Place::new(), Place::new());
    from.load(1, WritePath::Image);
    let (address, liar) = serve(&from.cache, ServerSecurity::Plain, Some(Lie::Hang)).await;
    let liar = liar.unwrap();
    let mut holder = holder(address, false);
    {
        let key = key();
        let fetch = holder.fetch(&to.cache, &key, None);
        tokio::select! {
            ended = fetch => panic!("{ended:?}"),
            () = liar.hangs() => {}
        }
    }
    to.assert_nothing_is_left();
    holder.options.deadline = Some(Instant::now() + Duration::from_millis(200));
    let error = holder.fetch(&to.cache, &key(), None).await.unwrap_err();
    assert!(matches!(error, FetchError::Late { .. }), "{error}");
    to.assert_nothing_is_left();
}

/// A disk that is full, or breaks, where the slice goes to.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_ends_the_fetch_with_its_name() {
    let from = Place::new();
    from.load(1, WritePath::Direct);
    let (address, _) = serve(&from.cache, ServerSecurity::Plain, None).await;
    for (number, fault) in [(28, "full"), (5, "broken")] {
        let folder = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(folder.path(), 7);
        let builder = Cache::builder().memory(256 << 20).scan_threads(2).free_floor(0).tender(false);
        let cache = open_on(builder, std::slice::from_ref(&disk)).unwrap();
        disk.fail(When::Every("write"), DiskFault::Error(number));
        let mut holder = holder(address, true);
        holder.options.write_path = WritePath::Direct;
        let error = holder.fetch(&cache, &key(), None).await.unwrap_err();
        assert!(matches!(error, FetchError::Load { .. }), "{fault}: {error}");
        disk.heal();
        let free = &cache.spindles()[0];
        assert_eq!((free.reserved, free.used), (0, 0), "{fault}");
    }
}

/// Goal: a slice with damage is whole again, and only the damaged block has come over the wire. Method: flip a bit in a
/// block, in the end of a file, in its header; repair from a peer that has the same slice; compare all files.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_slice_is_repaired_from_a_peer() {
    let (good, bad) = (Place::new(), Place::new());
    good.load(1, WritePath::Direct);
    let (address, _) = serve(&good.cache, ServerSecurity::Plain, None).await;
    holder(address, true).fetch(&bad.cache, &key(), None).await.unwrap();
    let len = bad.files()[1].len();
    bad.cache.snap(&key()).evict();
    let whole = bad.files();
    for (region, offset, bytes) in
        [(1, MIB + 5, MIB), (0, 5000, MIB - 4096), (2, 100, whole[2].len()), (1, len - 50, len)]
    {
        bad.flip(region, offset);
        let before = bad.paths();
        let mut holder = holder(address, true);
        holder.options.write_path = WritePath::Direct;
        let repaired = holder.repair(&bad.cache, &key()).await.unwrap();
        assert_eq!((repaired.stretches, repaired.bytes_fetched), (1, bytes as u64), "{region} {offset}");
        bad.cache.sync(None).unwrap();
        assert!(bad.files() == whole, "{region} {offset}");
        assert!(bad.paths().iter().all(|path| !before.contains(path)), "fresh files");
        assert_eq!(scanned(&bad.cache), 3 * 3 * MIB as u64 + 3003);
        bad.cache.snap(&key()).evict();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_fails_leaves_what_is_there() {
    let (good, bad) = (Place::new(), Place::new());
    good.load(1, WritePath::Direct);
    bad.load(1, WritePath::Direct);
    good.flip(0, MIB + 1);
    bad.flip(0, MIB + 1);
    let before = bad.files();
    let (address, _) = serve(&good.cache, ServerSecurity::Plain, None).await;
    let error = holder(address, true).repair(&bad.cache, &key()).await.unwrap_err();
    assert!(matches!(error, FetchError::Damaged { region: 0, .. }), "{error}");
    assert!(bad.files() == before);
    assert_eq!(bad.state(), SnapState::Warm);
    let empty = Place::new();
    let error = holder(address, true).repair(&empty.cache, &key()).await.unwrap_err();
    assert!(matches!(error, FetchError::NothingHere { .. }), "{error}");
    let other = Place::new();
    other.load(2, WritePath::Direct);
    let error = holder(address, true).repair(&other.cache, &key()).await.unwrap_err();
    assert!(matches!(error, FetchError::NotFound { .. }), "{error}");
}

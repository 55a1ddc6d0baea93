//! `pelton pull`, from a peer in this process.

use std::net::SocketAddr;

use pelton::Cache;
use pelton::nexus::peer::{PeerOptions, PeerService};
use pelton::nexus::{Door, LaneLimits, ServerSecurity};

use super::Story;

/// Serves what the story has loaded, as long as it lives.
struct Served {
    _runtime: tokio::runtime::Runtime,
    address: SocketAddr,
}

fn serve(story: &Story) -> Served {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cache = Cache::builder().spindle(story.path("pelton-data"), None).open().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let door = Door::open(any, ServerSecurity::Plain, LaneLimits::default());
    let door = runtime.block_on(door).unwrap();
    let address = door.address();
    let service = PeerService::new(cache, Some(door.lanes().clone()), PeerOptions::default());
    runtime.spawn(async move {
        let server = tonic::transport::Server::builder().add_service(service.into_server());
        server.serve_with_incoming(door.incoming()).await
    });
    Served { _runtime: runtime, address }
}

#[test]
fn a_pulled_slice_is_scanned_like_the_one_it_came_from() {
    let story = Story::new();
    let blobs: Vec<String> = (0..5000).map(|line| format!("{line} abc")).collect();
    story.write("in", blobs.join("\n") + "\n");
    let loaded = story.load("lines", &["--regions", "3"]);
    let served = serve(&story);
    let peer = served.address.to_string();
    let pull = ["pull", "d/v@1#0", "--peer", &peer, "--insecure", "--spindle", "other"];
    let pulled = story.json(&pull);
    assert_eq!(pulled["state"], "durable", "{pulled}");
    assert_eq!(pulled["regions"], 3, "{pulled}");
    for field in ["count", "bytes", "fingerprint"] {
        assert_eq!(pulled[field], loaded[field], "{field}: {pulled}");
    }
    assert!(pulled["bytes_fetched"].as_u64().unwrap() > 0 && pulled["seconds"].is_f64(), "{pulled}");
    story.holds(&blobs, &["--spindle", "other"]);
    let again = story.json(&pull);
    assert_eq!((&again["state"], &again["bytes_fetched"]), (&"exists".into(), &0.into()), "{again}");
}

#[test]
fn a_pull_that_can_not_be_says_why() {
    let story = Story::new();
    story.write("in", "a\nb\n");
    story.load("lines", &[]);
    let served = serve(&story);
    let peer = served.address.to_string();
    let pull = |key: &str, options: &[&str]| {
        story.run(&[&["pull", key, "--peer", &peer, "--spindle", "other"], options].concat())
    };
    pull("d/v@1#0", &[]).refuses_usage(&["--insecure"]);
    pull("d/v@1", &["--insecure"]).refuses_usage(&["d/v@1"]);
    pull("d/v@1#7", &["--insecure"]).fails_saying(&["does not have d/v@1#7"]);
    let other = "00".repeat(32);
    pull("d/v@1#0", &["--insecure", "--fingerprint", &other]).fails_saying(&["does not have d/v@1#0"]);
    drop(served);
    pull("d/v@1#0", &["--insecure"]).fails_saying(&["can't be reached"]);
}

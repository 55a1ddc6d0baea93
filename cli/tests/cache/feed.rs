//! A source and a load from it, as two processes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pelton::nexus::feed::{FeedService, Offering, Outlet, SliceRequest, Source, SourceError};
use pelton::nexus::{Door, LaneLimits, ServerSecurity};

use crate::node::secured;
use crate::{Run, Story};

/// A `pelton feed` that runs. Dropping it ends it.
struct Feeding {
    child: Child,
    address: String,
}

impl Feeding {
    fn new(story: &Story, format: &str) -> Feeding {
        Feeding::with(story, format, &["--insecure"])
    }

    fn with(story: &Story, format: &str, options: &[&str]) -> Feeding {
        let fixed = ["feed", "--listen", "127.0.0.1:0", "--from", "in", "--format", format];
        let args = [&fixed[..], options].concat();
        let mut child = story.command(&args).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.strip_prefix("feeding at ").and_then(|rest| rest.split(',').next());
        let address = address.unwrap_or_else(|| panic!("it says {line:?}")).to_owned();
        Feeding { child, address }
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_one_process_feeds_another_one_loads_and_scans() {
    let story = Story::new();
    let lines: Vec<String> = (0..50_000).map(|n| format!("line {n} of the input")).collect();
    story.write("in", lines.join("\n"));
    let feeding = Feeding::new(&story, "lines");
    for codec in ["none", "lz4"] {
        let from = ["load", "d/v@1", "--from", &feeding.address, "--insecure", "--codec", codec, "--durable"];
        let loaded = story.json(&from);
        assert_eq!((&loaded["state"], &loaded["count"]), (&"durable".into(), &50_000.into()), "{loaded}");
        story.holds(&lines, &[]);
    }
}

#[test]
fn a_load_with_the_fingerprint_that_is_there_asks_no_source() {
    let story = Story::new();
    story.write("in", "one\ntwo\n");
    let fingerprint = "11".repeat(32);
    let mut args = vec!["load", "d/v@1", "--insecure", "--fingerprint", &fingerprint, "--durable", "--from"];
    let address = {
        let feeding = Feeding::new(&story, "lines");
        assert_eq!(story.json(&[&args[..], &[&feeding.address]].concat())["state"], "durable");
        feeding.address.clone()
    };
    // Nobody listens there any more.
    args.push(&address);
    assert_eq!(story.json(&args)["state"], "exists");
}

#[test]
fn a_load_from_a_source_says_what_is_missing_or_wrong() {
    let story = Story::new();
    story.write("in", "one");
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("nexus://{}", listener.local_addr().unwrap())
    };
    for (args, code, expected) in [
        (vec!["--from", &nobody, "--insecure"], 1, "can't be reached"),
        (vec!["--from", &nobody, "--format", "lines"], 2, "say --insecure"),
        (vec!["--from", &nobody, "--format", "lines", "--insecure"], 2, "leave it out"),
        (vec!["--from", &nobody, "--insecure", "--slices", "2"], 2, "one slice at a time"),
        (vec!["--from", "nexus://nowhere", "--insecure"], 1, "write HOST:PORT"),
        (vec!["--from", "in"], 2, "--format"),
        (vec!["--from", "in", "--insecure"], 2, "is for a source"),
    ] {
        let output = story.command(&[&["load", "d/v@1"], &args[..]].concat()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(expected), "{args:?}: {text:?} lacks {expected:?}");
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    }
}

#[test]
fn a_feed_gives_only_the_slices_that_it_was_told() {
    let story = Story::new();
    story.write("in", "one\ntwo\n");
    let only = ["--insecure", "--key", "shop/orders@7#3", "--key", "shop/items"];
    let feeding = Feeding::with(&story, "lines", &only);
    let load = |key: &str| story.run(&["load", key, "--from", &feeding.address, "--insecure"]);
    for key in ["shop/orders@7#3", "shop/items@1", "shop/items@2#9"] {
        load(key).ok();
    }
    for key in ["shop/orders@7#2", "shop/orders@8#3", "other/items@1#0"] {
        load(key).fails_saying(&["NotFound", &format!("{key}: the source has no such slice")]);
    }
    story.run(&["feed", "--listen", "127.0.0.1:0", "--key", "shop/orders@x"]).refuses_usage(&["--key"]);
}

/// Goal: who has a certificate of the CA and no role gets nothing, and hears why. Method: the same load with each role.
#[test]
fn a_feed_asks_for_the_role_reader() {
    let story = Story::new();
    let lines: Vec<String> = (0..2000).map(|n| format!("line {n} ab")).collect();
    story.write("in", lines.join("\n"));
    story.certificates(&["owner", "reader", "loader"]);
    let with = |begin: &[&str], role: &str| -> Run {
        let options = secured(role);
        story.run(&[begin, &options.each_ref().map(String::as_str)].concat())
    };
    let options = secured("owner");
    let feeding = Feeding::with(&story, "lines", &options.each_ref().map(String::as_str));
    let load = ["load", "d/v@1", "--from", &feeding.address, "--durable"];
    with(&load, "owner").fails_saying(&[
        "Forbidden: a pull needs the role reader, and spiffe://example.org/owner-1/pelton/role/owner has none",
        "tried 1 times",
    ]);
    for role in ["reader", "loader"] {
        with(&load, role).ok();
        story.holds(&lines, &[]);
    }
}

/// Sends a few MiB, fails in the middle the first so many times, and can't go on where it was.
struct Forgetful {
    fails: u32,
    times: Arc<AtomicU32>,
}

impl Source for Forgetful {
    fn open(&self, _: &SliceRequest) -> Result<Offering, SourceError> {
        let fails = self.times.fetch_add(1, Ordering::Relaxed) < self.fails;
        Ok(Offering::new(move |outlet: &Outlet| {
            for number in 0..4000_u32 {
                if fails && number == 3000 {
                    return Err(SourceError::failed("the table went away"));
                }
                outlet.push(&[&number.to_le_bytes()[..], &[b'x'; 1000]].concat())?;
            }
            Ok(outlet.tally())
        }))
    }
}

/// Goal: a source that can't go on is asked for all of it once more, and not for ever. Method: one that fails in the
/// middle, twice and always.
#[test]
fn a_load_whose_source_can_not_go_on_begins_anew() {
    let story = Story::new();
    let blobs: Vec<Vec<u8>> =
        (0..4000_u32).map(|number| [&number.to_le_bytes()[..], &[b'x'; 1000]].concat()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for (fails, asked) in [(2, 3), (u32::MAX, 3)] {
        let times = Arc::new(AtomicU32::new(0));
        let source = Forgetful { fails, times: Arc::clone(&times) };
        let any = "127.0.0.1:0".parse().unwrap();
        let door = Door::open(any, ServerSecurity::Plain, LaneLimits::default());
        let door = runtime.block_on(door).unwrap();
        let from = format!("nexus://{}", door.address());
        let service = FeedService::of_source(source);
        runtime.spawn(service.serve_behind(door, std::future::pending()));
        let run = story.run(&["load", "d/v@1", "--from", &from, "--insecure", "--durable", "--json"]);
        let anew = "the table went away; what has come of it is given up, and it begins anew\n";
        assert_eq!(run.stderr.matches(anew).count(), 2, "{}", run.stderr);
        assert_eq!(times.load(Ordering::Relaxed), asked);
        match fails {
            2 => assert_eq!(run.code, Some(0), "{}", run.stderr),
            _ => {
                assert_eq!(run.code, Some(1), "{}", run.stderr);
                assert!(run.stderr.ends_with("the table went away\n"), "{}", run.stderr);
            }
        }
        // What failed has left the slice from before in place.
        story.holds(&blobs, &[]);
    }
}

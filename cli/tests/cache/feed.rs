//! A source and a load from it, as two processes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::Story;

/// A `pelton feed` that runs. Dropping it ends it.
struct Feeding {
    child: Child,
    address: String,
}

impl Feeding {
    fn new(story: &Story, format: &str) -> Feeding {
        let args = ["feed", "--listen", "127.0.0.1:0", "--from", "in", "--format", format, "--insecure"];
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

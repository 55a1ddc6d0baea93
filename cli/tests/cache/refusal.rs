//! What can't be done is told in a line.

use pelton::Cache;

use crate::{Story, framed, sample_blobs};

#[test]
fn a_spindle_that_somebody_holds_is_refused_by_name() {
    let story = Story::new();
    story.write("in", "one\n");
    story.load("lines", &["--spindle", "held"]);
    let cache = Cache::builder().spindle(story.path("held"), None).open().unwrap();
    let scan = ["scan", "d/v@1", "--spindle", "held"];
    let holder = format!("in use by process {}", std::process::id());
    story.run(&scan).fails_saying(&["held can't be a spindle: ", &holder]);
    let load =
        ["load", "d/v@2", "--from", "in", "--format", "lines", "--spindle", "free", "--spindle", "held"];
    story.run(&load).fails_saying(&["held can't be a spindle: ", &holder]);
    drop(cache);
    story.holds(&["one"], &["--spindle", "held"]);
}

#[test]
fn a_folder_of_other_things_is_no_spindle() {
    let story = Story::new();
    story.write("mine/letter", "dear");
    story.write("in", "one\n");
    let load = ["load", "d/v@1", "--from", "in", "--format", "lines", "--spindle", "mine"];
    story.run(&load).fails_saying(&["mine can't be a spindle: ", "letter"]);
    assert_eq!(std::fs::read_dir(story.path("mine")).unwrap().count(), 1);
}

#[test]
fn a_key_that_is_not_there_is_named() {
    let story = Story::new();
    story.run(&["scan", "d/v@1"]).fails_saying(&["./pelton-data: there is no such spindle"]);
    assert!(!story.path("pelton-data").exists());
    story.write("in", "one\n");
    story.load("lines", &[]);
    for key in ["d/v@2", "d/v@1#1", "d/w"] {
        story.run(&["scan", key]).fails_saying(&[key, "is not in the cache", "./pelton-data"]);
    }
}

#[test]
fn memory_must_be_a_size_and_enough() {
    let story = Story::new();
    story.write("in", "one\n");
    let load = ["load", "d/v@1", "--from", "in", "--format", "lines", "--memory"];
    for size in ["many", "64MB", ""] {
        story.run(&[&load[..], &[size]].concat()).refuses_usage(&["--memory"]);
    }
    story.run(&[&load[..], &["1MiB"]].concat()).fails_saying(&["memory is 1", "64"]);
    let wide = [&load[..], &["64MiB", "--slices", "4", "--regions", "8"]].concat();
    story.run(&wide).fails_saying(&["got no memory", "32.0 MiB", "38.0 MiB"]);
    story.run(&[&load[..], &["64MiB"]].concat()).ok();
    story.holds(&["one"], &["--memory", "64MiB"]);
}

#[test]
fn a_slice_larger_than_the_memory_is_still_loaded_and_scanned() {
    let story = Story::new();
    // 96 MiB through 64 MiB: not as images.
    let blobs: Vec<Vec<u8>> = (0..96u8).map(|n| vec![n; 1 << 20]).collect();
    story.write("in", framed(&blobs));
    let said = story.load("framed", &["--memory", "64MiB", "--regions", "2"]);
    assert_eq!((&said["count"], &said["bytes"]), (&96.into(), &(96u64 << 20).into()));
    story.scan_finds("d/v@1", &blobs, &["--memory", "512MiB"]);
    story.scan_finds("d/v@1", &blobs, &["--memory", "64MiB"]);
    let report = &story.json(&["scan", "d/v@1", "--memory", "64MiB"])["report"];
    assert_eq!(report["stream_bytes"], report["region_bytes"], "it was read as a stream");
}

#[test]
fn keys_and_ops_that_make_no_sense_are_wrong_usage() {
    let story = Story::new();
    let from = ["--from", "in", "--format", "lines"];
    for key in ["d", "d/v", "d/v@x", "d/v@1#x", "d/v@*"] {
        story.run(&[&["load", key], &from[..]].concat()).refuses_usage(&["domain/view@clock#slice"]);
    }
    for key in ["d", "*/v", "d/*@1"] {
        story.run(&["scan", key]).refuses_usage(&["domain/view"]);
    }
    for op in ["sum", "grep:", ""] {
        story.run(&["scan", "d/v", "--op", op]).refuses_usage(&["expected"]);
    }
    story.run(&[&["load", "d/v@1#0", "--slices", "2"], &from[..]].concat()).refuses_usage(&["--slices"]);
    story.run(&[&["load", "d/v@1", "--regions", "0"], &from[..]].concat()).refuses_usage(&["--regions"]);
    story.run(&["scan", "d/v", "--threads", "0"]).refuses_usage(&["--threads"]);
    story
        .run(&["load", "d/v@1", "--from", "-", "--format", "region"])
        .refuses_usage(&["region file", "standard input"]);
    assert!(!story.path("pelton-data").exists());
}

#[test]
fn inputs_that_are_not_what_they_should_be_are_named() {
    let story = Story::new();
    story.write("in", framed(&sample_blobs(10)));
    story.write("cut", [1, 0]);
    let load = |from: &str, format: &str| story.run(&["load", "d/v@1", "--from", from, "--format", format]);
    load("nothing", "lines").fails_saying(&["nothing: ", "there is no such file"]);
    load("in", "region").fails_saying(&["in: "]);
    load("cut", "framed").fails_saying(&["cut: frame 0 at offset 0 is cut off: 2 bytes of its length"]);
    // Nothing of them is left: the key is unknown.
    story.run(&["scan", "d/v@1"]).fails_saying(&["is not in the cache"]);
    load(".", "raw").fails_saying(&["holds the cache's own folder", "pelton-data"]);
}

//! `pelton repair`, between two nodes' folders, with the real binary on both sides.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Story, lines, sample_blobs};

/// The region files below a folder, in the order of their paths.
fn regions(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(regions(&path)),
            false if path.extension().is_some_and(|ending| ending == "region") => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Goal: what verify finds damaged is whole after a repair, from a peer that has the same slice. Method: a slice of two
/// regions is pulled, a bit of the copy's body and one of a header are turned, and it is repaired from where it came.
#[test]
fn a_damaged_slice_is_made_whole_from_a_node_that_has_it() {
    let story = Story::new();
    let blobs = sample_blobs(50_000);
    story.write("in", lines(&blobs));
    story.load("lines", &["--regions", "2", "--durable"]);
    let node = story.serve(&["--insecure"]);
    let there = ["--spindle", "other"];
    let peer = ["--peer", &node.address, "--insecure", "--spindle", "other"];
    story.json(&[&["pull", "d/v@1#0"], &peer[..]].concat());
    let repair = [&["repair", "d/v@1#0"], &peer[..]].concat();
    let whole = story.json(&repair);
    assert_eq!(
        (&whole["state"], &whole["stretches"], &whole["bytes_fetched"]),
        (&"whole".into(), &0.into(), &0.into())
    );
    let bytes_all = whole["bytes_kept"].as_u64().unwrap();

    let files = regions(&story.path("other"));
    assert_eq!(files.len(), 2, "{files:?}");
    flip(&files[0], 5000);
    let verified = story.run(&[&["verify", "--json"], &there[..]].concat());
    assert_eq!(verified.code, Some(1), "{}", verified.stdout);
    let repaired = story.json(&repair);
    assert_eq!((&repaired["state"], &repaired["stretches"]), (&"repaired".into(), &1.into()), "{repaired}");
    let [fetched, kept] = ["bytes_fetched", "bytes_kept"].map(|field| repaired[field].as_u64().unwrap());
    assert!(fetched > 0 && fetched + kept == bytes_all && repaired["seconds"].is_f64(), "{repaired}");
    story.json(&[&["verify"], &there[..]].concat());
    story.holds(&blobs, &there);

    // A header: all of that region comes from the peer. In words this time.
    flip(&regions(&story.path("other"))[1], 20);
    let said = story.run(&repair).ok();
    assert!(said.starts_with("d/v@1#0: repaired after ") && said.contains(": 1 damaged place, "), "{said}");
    story.holds(&blobs, &there);
}

#[test]
fn a_repair_that_can_not_be_says_why_and_leaves_what_is_there() {
    let story = Story::new();
    story.write("in", "a\nb\n");
    story.load("lines", &["--durable"]);
    let node = story.serve(&["--insecure"]);
    let repair = |key: &str, options: &[&str]| {
        story.run(&[&["repair", key, "--peer", &node.address], options].concat())
    };
    repair("d/v@1#0", &[]).refuses_usage(&["--insecure"]);
    repair("d/v@1", &["--insecure"]).refuses_usage(&["d/v@1"]);
    let there = ["--insecure", "--spindle", "other"];
    repair("d/v@1#0", &there).fails_saying(&["other: there is no such spindle"]);
    // The same key, and other blobs: the peer does not have what is here.
    story.write("in", "a\nc\n");
    story
        .run(&["load", "d/v@1", "--from", "in", "--format", "lines", "--durable", "--spindle", "other"])
        .ok();
    repair("d/v@1#0", &there).fails_saying(&["does not have d/v@1#0"]);
    repair("d/v@1#7", &there).fails_saying(&["there is nothing here to repair"]);
    story.holds(&["a", "c"], &["--spindle", "other"]);
}

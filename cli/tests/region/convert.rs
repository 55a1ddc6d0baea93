//! From one version to another and back.

use pelton::RegionView;

use crate::{Story, framed, sample_blobs, sample_region};

#[test]
fn version_1_survives_the_way_through_version_2_to_the_byte() {
    for blobs in [Vec::new(), vec![Vec::new()], vec![vec![7; 3 << 20]], sample_blobs()] {
        let story = Story::new();
        story.write("a", pelton::encode_v1_to_vec(&blobs).unwrap());
        story.ok(&["convert", "a", "b", "--to", "v2"]);
        story.ok(&["verify", "b"]);
        assert!(story.ok(&["cat", "b"]) == framed(&blobs));
        let back = story.run(&["convert", "b", "c", "--to", "v1"]);
        assert_eq!(back.code, Some(0));
        assert!(story.read("a") == story.read("c"), "{} blobs", blobs.len());
        // And version 1 to version 1, which loses nothing and says nothing.
        story.ok(&["convert", "a", "d", "--to", "v1"]);
        assert!(story.read("a") == story.read("d"), "{} blobs", blobs.len());
    }
}

#[test]
fn version_1_gets_the_same_labels_as_packed_input() {
    let story = Story::new();
    story.write("in", framed(&sample_blobs()));
    story.write("v1", pelton::encode_v1_to_vec(sample_blobs()).unwrap());
    story.ok(&["pack", "packed", "--from", "in", "--format", "framed"]);
    story.ok(&["convert", "v1", "converted", "--to", "v2"]);
    assert!(story.read("packed") == story.read("converted"));
    let labels = ["--key", "a/b@1#2", "--align", "512", "--meta", "v1"];
    story.ok(&[&["pack", "packed", "--from", "in", "--format", "framed"][..], &labels].concat());
    story.ok(&[&["convert", "v1", "converted", "--to", "v2"][..], &labels].concat());
    assert!(story.read("packed") == story.read("converted"));
}

#[test]
fn version_2_keeps_what_is_said_of_it() {
    let story = Story::new();
    story.write("a", sample_region());
    story.ok(&["convert", "a", "b", "--to", "v2"]);
    let (a, b) = (story.read("a"), story.read("b"));
    // All but the writer, which is somebody else now, and the checksum of the page that names it.
    assert!(a[..32] == b[..32] && a[48..4092] == b[48..4092] && a[4096..] == b[4096..]);
    assert_eq!(&b[32..39], b"pelton ");
}

#[test]
fn what_is_said_anew_replaces_what_was() {
    let story = Story::new();
    story.write("a", sample_region());
    story.write("meta", "other");
    let fingerprint = "11".repeat(32);
    let args = ["--key", "x/y@1#0", "--fingerprint", &fingerprint, "--align", "64", "--block", "1MiB"];
    story.ok(&[&["convert", "a", "b", "--to", "v2", "--meta", "meta"], &args[..]].concat());
    let b = story.read("b");
    let view = RegionView::open(&b).unwrap();
    view.verify().unwrap();
    let frame = view.frame().unwrap();
    assert_eq!(frame.header().key.as_ref().unwrap().to_string(), "x/y@1#0");
    assert_eq!(frame.header().fingerprint.unwrap().to_string(), fingerprint);
    assert_eq!((frame.header().alignment, frame.header().block_bytes), (64, 1 << 20));
    assert_eq!((frame.header().region_index, frame.header().region_count), (2, 5));
    assert_eq!(frame.metadata(), Some(&b"other"[..]));
    assert!(story.ok(&["cat", "b"]) == framed(&sample_blobs()));
}

#[test]
fn what_version_1_has_no_place_for_is_told() {
    let story = Story::new();
    story.write("a", sample_region());
    let run = story.run(&["convert", "a", "b", "--to", "v1"]);
    assert_eq!(run.code, Some(0));
    assert_eq!(run.stderr.lines().count(), 1);
    for text in
        ["checksums", "shop/orders@1719878400000#3", "fingerprint", "2 of 5", "user metadata (27 bytes)"]
    {
        assert!(run.stderr.contains(text), "{text}: {}", run.stderr);
    }
    assert_eq!(story.read("b"), pelton::encode_v1_to_vec(sample_blobs()).unwrap());
}

#[test]
fn a_file_can_be_converted_onto_itself() {
    let story = Story::new();
    let v1 = pelton::encode_v1_to_vec(sample_blobs()).unwrap();
    story.write("a", &v1);
    story.ok(&["convert", "a", "a", "--to", "v2"]);
    story.ok(&["verify", "a"]);
    assert_eq!(story.json(&["inspect", "a", "--json"])["version"], 2);
    assert_eq!(story.run(&["convert", "a", "./a", "--to", "v1"]).code, Some(0));
    assert!(story.read("a") == v1);
    assert_eq!(story.names(), ["a"]);
}

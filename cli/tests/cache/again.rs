//! Loading what is there already, and loading it anew.

use crate::{Story, framed, sample_blobs};

const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[test]
fn what_is_there_is_not_loaded_again() {
    let blobs = sample_blobs(1_000);
    let story = Story::new();
    story.write("in", framed(&blobs));
    let first = story.load("framed", &[]);
    let second = story.load("framed", &[]);
    assert_eq!((&first["state"], &second["state"]), (&"scannable".into(), &"exists".into()));
    assert_eq!(first["fingerprint"], second["fingerprint"]);
    assert_eq!((&first["count"], &first["bytes"]), (&second["count"], &second["bytes"]));
    assert!(second["seconds"].is_null());
    let text = story.run(&["load", "d/v@1", "--from", "in", "--format", "framed"]).ok();
    assert!(text.starts_with("d/v@1: is there already, nothing was loaded"), "{text}");
    story.holds(&blobs, &[]);
}

#[test]
fn a_given_fingerprint_is_believed() {
    let blobs = sample_blobs(1_000);
    let story = Story::new();
    story.write("in", framed(&blobs));
    assert_eq!(story.load("framed", &["--fingerprint", HEX])["fingerprint"], HEX);
    story.write("in", framed(&blobs[..10]));
    assert_eq!(story.load("framed", &["--fingerprint", HEX])["state"], "exists");
    story.holds(&blobs, &[]);
}

/// Goal: whatever decides the blobs makes another load. Method: change one thing after the other, and
/// look whether it is loaded.
#[test]
fn another_input_name_format_or_codec_is_loaded() {
    let story = Story::new();
    let content = framed(&sample_blobs(50));
    story.write("in", &content);
    story.load("framed", &[]);
    let mut other = content.clone();
    *other.last_mut().unwrap() ^= 1;
    story.write("in", &other);
    assert_eq!(story.load("framed", &[])["state"], "scannable", "other content");
    assert_eq!(story.load("raw", &[])["state"], "scannable", "other format");
    assert_eq!(story.load("raw", &["--codec", "lz4"])["state"], "scannable", "other codec");
    story.write("other", &other);
    let renamed = ["load", "d/v@1", "--from", "other", "--format", "raw", "--codec", "lz4"];
    assert_eq!(story.json(&renamed)["state"], "scannable", "other name");
    assert_eq!(story.json(&renamed)["state"], "exists");
    story.holds(&[other], &[]);
}

#[test]
fn another_fingerprint_replaces_the_blobs() {
    let blobs = sample_blobs(2_000);
    let story = Story::new();
    for count in [2_000, 500, 0, 1_500] {
        story.write("in", framed(&blobs[..count]));
        assert_eq!(story.load("framed", &[])["state"], "scannable");
        story.holds(&blobs[..count], &[]);
    }
}

/// Goal: a generation never has slices of two deals. Method: more slices, then fewer, with the same
/// input, with a made and with a given fingerprint.
#[test]
fn more_or_fewer_slices_deal_all_blobs_anew() {
    let blobs = sample_blobs(1_000);
    for options in [&[][..], &["--fingerprint", HEX]] {
        let story = Story::new();
        story.write("in", framed(&blobs));
        for slices in ["2", "4", "1", "3"] {
            let said = story.load("framed", &[options, &["--slices", slices]].concat());
            assert_eq!(said["state"], "scannable", "{slices} slices");
            story.holds(&blobs, &[]);
            assert_eq!(story.json(&["scan", "d/v@1"])["slices"].to_string(), slices);
        }
    }
}

#[test]
fn a_failed_load_leaves_what_was_there() {
    let blobs = sample_blobs(1_000);
    let story = Story::new();
    story.write("in", framed(&blobs));
    story.load("framed", &["--slices", "2"]);
    let mut cut = framed(&sample_blobs(100_000));
    cut.pop();
    story.write("cut", cut);
    let failed = story.run(&["load", "d/v@1", "--slices", "2", "--from", "cut", "--format", "framed"]);
    failed.fails_saying(&["cut: frame 99,999 is cut off", "1 byte early"]);
    story.holds(&blobs, &[]);
}

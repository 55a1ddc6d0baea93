//! Slices, regions and spindles: however blobs are spread, a scan finds all of them.

use std::fs;
use std::path::Path;

use crate::{Story, framed, sample_blobs};

#[test]
fn blobs_are_dealt_over_slices_one_after_the_other() {
    let blobs = sample_blobs(10_000);
    let story = Story::new();
    story.write("in", framed(&blobs));
    let said = story.load("framed", &["--slices", "3", "--regions", "2", "--durable"]);
    assert_eq!((&said["state"], said["slices"].as_array().unwrap().len()), (&"durable".into(), 3), "{said}");
    story.holds(&blobs, &[]);
    for slice in 0..3 {
        let dealt: Vec<&Vec<u8>> = blobs.iter().skip(slice).step_by(3).collect();
        story.scan_finds(&format!("d/v@1#{slice}"), &dealt, &[]);
        assert_eq!(said["slices"][slice]["count"], dealt.len());
    }
}

#[test]
fn one_slice_may_be_loaded_by_itself() {
    let blobs = sample_blobs(100);
    let story = Story::new();
    story.write("in", framed(&blobs));
    for key in ["d/v@1#4", "d/v@1#9"] {
        story.json(&["load", key, "--from", "in", "--format", "framed"]);
        story.scan_finds(key, &blobs, &[]);
    }
    story.scan_finds("d/v@1", &[&blobs[..], &blobs[..]].concat(), &[]);
}

#[test]
fn regions_lie_on_all_spindles() {
    let blobs = sample_blobs(5_000);
    let story = Story::new();
    story.write("in", framed(&blobs));
    let spindles = ["--spindle", "one", "--spindle", "two", "--spindle", "three"];
    story.load("framed", &[&spindles[..], &["--regions", "5"]].concat());
    for spindle in ["one", "two", "three"] {
        assert!(region_files(&story.path(spindle)) > 0, "{spindle}");
    }
    assert!(!story.path("pelton-data").exists());
    // In any order: a spindle is known by its identity, not by its place on the command line.
    let turned = ["--spindle", "three", "--spindle", "one", "--spindle", "two", "--threads", "3"];
    story.holds(&blobs, &turned);
}

/// How many there are, in all folders below.
fn region_files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => region_files(&entry.path()),
            false => usize::from(entry.path().extension().is_some_and(|extension| extension == "region")),
        })
        .sum()
}

#[test]
fn without_a_clock_the_newest_generation_is_scanned() {
    let blobs = sample_blobs(300);
    let story = Story::new();
    for (clock, count) in [(9, 100), (1000, 200), (20, 300)] {
        story.write("in", framed(&blobs[..count]));
        story.json(&["load", &format!("d/v@{clock}"), "--from", "in", "--format", "framed"]);
    }
    story.scan_finds("d/v", &blobs[..200], &[]);
    story.scan_finds("d/v#0", &blobs[..200], &[]);
    story.scan_finds("d/v@20", &blobs, &[]);
    assert_eq!(story.json(&["scan", "d/v"])["key"], "d/v@1000#0");
}

/// Goal: a generation that lacks a slice is scanned only by its name. Method: a complete one, a newer one with
/// slice 1 alone, and a view that has nothing but slice 3.
#[test]
fn without_a_clock_only_a_complete_generation_is_scanned() {
    let blobs = sample_blobs(200);
    let story = Story::new();
    story.write("in", framed(&blobs));
    story.load("framed", &["--slices", "2"]);
    let load = |key: &str| story.json(&["load", key, "--from", "in", "--format", "framed"]);
    load("d/v@2#1");
    load("d/w@5#3");
    assert_eq!(story.json(&["scan", "d/v"])["key"], "d/v@1");
    assert_eq!(story.json(&["scan", "d/v#1"])["key"], "d/v@1#1");
    story.scan_finds("d/v@2", &blobs, &[]);
    story.run(&["scan", "d/w"]).fails_saying(&["d/w is in no complete generation", "clock 5"]);
    story.run(&["scan", "d/v#7"]).fails_saying(&["d/v#7 is in no complete generation"]);
    // The slice that was missing makes it complete.
    load("d/v@2#0");
    assert_eq!(story.json(&["scan", "d/v"])["key"], "d/v@2");
}

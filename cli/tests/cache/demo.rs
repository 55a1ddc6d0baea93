//! `pelton demo`: what it shows, and that it leaves nothing behind, whatever becomes of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Run, Story};

/// What a killed demo leaves at least.
const MARK: &str = "this-is-a-pelton-demo";

const STEPS: [&str; 13] = [
    "make",
    "plain_memory",
    "plain_write",
    "plain_read",
    "load",
    "durable",
    "scan",
    "evict",
    "warm",
    "scan_again",
    "restart",
    "verify",
    "remove",
];

/// What is in a folder, by name.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The demo's text, and which engine it names. `None` where the system has no io_uring.
fn demo(story: &Story, engine: &str) -> Option<String> {
    let run = story.run(&["demo", "--bytes", "8MiB", "--engine", engine]);
    if engine == "uring" && run.code == Some(1) && run.stderr.contains("io_uring") {
        eprintln!("SKIPPED the demo with io_uring: {}", run.stderr);
        assert_eq!(names(story.folder.path()), [""; 0]);
        return None;
    }
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{}", run.stdout);
    Some(run.stdout)
}

#[test]
fn the_demo_shows_every_step_in_80_columns_and_leaves_nothing() {
    for engine in ["uring", "threads"] {
        let story = Story::new();
        let Some(text) = demo(&story, engine) else { continue };
        assert_eq!(names(story.folder.path()), [""; 0], "{engine}");
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines {
            assert!(line.chars().count() <= 80, "{line}");
            assert!(!line.contains(char::is_control), "{line:?}");
        }
        assert!(lines[0].starts_with("Pelton demo in ./pelton-demo-"), "{text}");
        assert_eq!(lines[1], format!("8.0 MiB in blobs of 1 to 64 KiB, {}, engine {engine}", threads()));
        assert!(lines[3].starts_with("what was done") && lines[3].ends_with("of plain"), "{text}");
        // A row for each step: with an amount and a rate, but for those that move no bytes.
        let rows = &lines[4..4 + STEPS.len()];
        for (row, step) in rows.iter().zip(STEPS) {
            let moves = !["evict", "restart", "remove"].contains(&step);
            assert_eq!((row.contains(" 8.0 MiB "), row.contains("iB/s")), (moves, moves), "{step}: {row}");
            assert_eq!(
                ["memory", "write", "read"].iter().any(|plain| row.ends_with(plain)),
                ["load", "durable", "scan", "warm", "scan_again", "verify"].contains(&step),
                "{step}: {row}"
            );
        }
        assert!(lines.last().unwrap().contains("blobs came back as they were made"), "{text}");
    }
}

fn threads() -> String {
    match thread::available_parallelism().unwrap().get() {
        1 => "1 thread".to_owned(),
        count => format!("{count} threads"),
    }
}

#[test]
fn the_demo_in_json_has_every_step_and_the_same_checksum_on_both_engines() {
    let mut checksums = Vec::new();
    for engine in ["auto", "threads"] {
        let story = Story::new();
        let said = story.json(&["demo", "--bytes", "3MiB", "--engine", engine]);
        assert_eq!(said["bytes"], 3 << 20);
        let steps = said["steps"].as_array().unwrap();
        let found: Vec<&str> = steps.iter().map(|step| step["step"].as_str().unwrap()).collect();
        assert_eq!(found, STEPS);
        for step in steps {
            assert!(step["seconds"].as_f64().unwrap() > 0.0, "{step}");
            assert_eq!(step["ratio"].is_f64(), step["beside"].is_string(), "{step}");
        }
        assert!(said["count"].as_u64().unwrap() >= (3 << 20) / (64 << 10), "{said}");
        assert_eq!(said["notes"].as_array().unwrap().len(), 0, "{said}");
        checksums.push(said["crc32c"].as_u64().unwrap());
        assert_eq!(names(story.folder.path()), [""; 0]);
    }
    assert_eq!(checksums[0], checksums[1]);
}

#[test]
fn what_a_killed_demo_has_left_is_removed_and_told_by_the_next() {
    let story = Story::new();
    story.write(&format!("pelton-demo-0badcafe/{MARK}"), "");
    story.write("pelton-demo-0badcafe/spindle/loads/1/0000.region", "half");
    // Of such a name, but not the demo's.
    story.write("pelton-demo-notes/mine", "dear");
    let text = story.run(&["demo", "--bytes", "1MiB"]);
    assert_eq!((text.code, text.stderr.as_str()), (Some(0), ""));
    let note = "removed what a killed demo had left: ./pelton-demo-0badcafe";
    assert!(text.stdout.lines().any(|line| line == note), "{}", text.stdout);
    assert_eq!(names(story.folder.path()), ["pelton-demo-notes"]);
    assert_eq!(fs::read(story.path("pelton-demo-notes/mine")).unwrap(), b"dear");
}

/// A demo that works, with its first line.
fn start(story: &Story) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = story.command(&["demo", "--bytes", "256MiB"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.starts_with("Pelton demo in ./pelton-demo-"), "{line}");
    assert_eq!(names(story.folder.path()).len(), 1);
    (child, stdout)
}

#[test]
fn a_demo_that_is_ended_from_outside_leaves_nothing() {
    for signal in [Signal::TERM, Signal::KILL] {
        let story = Story::new();
        let (mut child, _stdout) = start(&story);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()));
        // Another process cleans up, which nobody here can wait for but by looking.
        let patience = Instant::now() + Duration::from_secs(60);
        while !names(story.folder.path()).is_empty() {
            assert!(Instant::now() < patience, "{signal:?} left {:?}", names(story.folder.path()));
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_demo_that_nobody_watches_ends_quietly_and_leaves_nothing() {
    let story = Story::new();
    let (child, stdout) = start(&story);
    drop(stdout);
    let run = Run::of(&["demo"], child.wait_with_output().unwrap());
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    assert_eq!(names(story.folder.path()), [""; 0]);
}

#[test]
fn a_demo_has_its_folder_to_itself() {
    let story = Story::new();
    story.run(&["demo", "--spindle", "nothing"]).fails_saying(&["nothing: ", "there is no such file"]);
    story.run(&["demo", "--bytes", "0"]).refuses_usage(&["--bytes is 0"]);
    story.run(&["demo", "--engine", "sim"]).refuses_usage(&["--engine"]);
    assert_eq!(names(story.folder.path()), [""; 0]);
    story.write("in", "one\n");
    story.load("lines", &[]);
    story.run(&["demo", "--spindle", "pelton-data"]).fails_saying(&["pelton-data: is a spindle"]);
    // Beside a cache it does not touch it.
    story.json(&["demo", "--bytes", "1MiB"]);
    assert_eq!(names(story.folder.path()), ["in", "pelton-data"]);
    story.holds(&["one"], &[]);
}

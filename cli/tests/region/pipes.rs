//! Who reads the output may stop at any time.

use std::io::Read;
use std::process::{Command, Stdio};

use crate::{Run, Story, noise, sample_region};

/// A pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_reader_that_has_enough_ends_cat_quietly() {
    let story = Story::new();
    story.write("in", noise(8 << 20, 1));
    story.ok(&["pack", "a", "--from", "in", "--format", "lines"]);
    for format in ["framed", "lines", "raw"] {
        let mut command = story.command(&["cat", "a", "--format", format]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut start = [0; 100];
        child.stdout.take().unwrap().read_exact(&mut start).unwrap();
        // The pipe is closed by now, and holds far less than is still to be written.
        Run::of(&["cat", format], child.wait_with_output().unwrap()).ok();
    }
}

#[test]
fn a_closed_pipe_is_no_error_for_any_command() {
    let story = Story::new();
    story.write("a", sample_region());
    story.write("old", pelton::encode_v1_to_vec(["x"]).unwrap());
    for args in [
        &["inspect", "a"][..],
        &["inspect", "a", "--json"],
        &["inspect", "old"],
        &["verify", "a", "old", "a"],
        &["verify", "--json", "a", "a"],
        &["cat", "a"],
        &["cat", "a", "--blob", "5"],
        &["convert", "a", "b", "--to", "v2"],
        &["pack", "c", "--from", "a", "--format", "raw"],
        &["--help"],
        &["pack", "--help"],
    ] {
        let output = story.command(args).stdout(closed_pipe()).output().unwrap();
        Run::of(args, output).ok();
    }
    assert_eq!(story.names(), ["a", "b", "c", "old"], "what was made is there, also if nobody reads of it");
    story.ok(&["verify", "b", "c"]);
    for args in [&["--help"], &["--version"]] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_pelton")).args(args).stdout(closed_pipe()).output().unwrap();
        Run::of(args, output).ok();
    }
}

#[test]
fn damage_is_still_an_error_when_nobody_reads_the_list() {
    let story = Story::new();
    let mut file = sample_region();
    file[5000] ^= 1;
    story.write("a", file);
    let output = story.command(&["verify", "a"]).stdout(closed_pipe()).output().unwrap();
    Run::of(&["verify"], output).fails_saying(&["a: 1 of "]);
}

#[test]
fn no_room_for_the_output_is_an_error() {
    let story = Story::new();
    story.write("a", sample_region());
    for args in [&["cat", "a"][..], &["inspect", "a"], &["verify", "a"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = story.command(args).stdout(full).output().unwrap();
        Run::of(args, output).fails_saying(&["standard output", "no space"]);
    }
}

#[test]
fn nobody_listening_to_errors_either_changes_no_exit_code() {
    let story = Story::new();
    let status =
        story.command(&["inspect", "missing"]).stdout(closed_pipe()).stderr(closed_pipe()).status().unwrap();
    assert_eq!(status.code(), Some(1));
    let status = story.command(&["nonsense"]).stdout(closed_pipe()).stderr(closed_pipe()).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

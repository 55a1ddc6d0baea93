//! Output files appear whole or not at all.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use crate::{Story, knows_nameless_files, noise, sample_region};

/// However a command is ended, it leaves nothing.
///
/// Goal: no part of an output in the folder. Method: feed far more than a pipe and all buffers hold,
/// so that the command is in the middle of it; then end it without ending its input.
#[test]
fn a_killed_pack_leaves_nothing() {
    if !knows_nameless_files(Story::new().folder.path()) {
        println!("SKIPPED: the file system of the temporary folder knows no files without a name");
        return;
    }
    let bytes = noise(24 << 20, 1);
    for format in ["lines", "raw"] {
        for signal in ["KILL", "TERM"] {
            for existing in [None, Some("old")] {
                let story = Story::new();
                if let Some(existing) = existing {
                    story.write("out", existing);
                }
                let names = story.names();
                let mut command = story.command(&["pack", "out", "--from", "-", "--format", format]);
                let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
                let mut stdin = child.stdin.take().unwrap();
                stdin.write_all(&bytes).unwrap();
                assert_eq!(story.names(), names, "nothing is seen on the way");
                assert!(child.try_wait().unwrap().is_none(), "it waits for more");
                let id = child.id().to_string();
                assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
                assert_eq!(child.wait().unwrap().code(), None, "{format}, {signal}");
                assert_eq!(story.names(), names, "{format}, {signal}");
                if let Some(existing) = existing {
                    assert_eq!(story.read("out"), existing.as_bytes());
                }
            }
        }
    }
}

#[test]
fn a_failed_command_leaves_what_was_there() {
    let story = Story::new();
    let mut damaged = sample_region();
    damaged[4096 * 20] ^= 1;
    story.write("damaged", &damaged);
    story.write("out", "as it was");
    let cut_frame = [&(100u32).to_le_bytes()[..], b"short"].concat();
    story
        .run_with_input(&["pack", "out", "--from", "-", "--format", "framed"], &cut_frame)
        .fails_saying(&["cut off"]);
    story.run(&["convert", "damaged", "out", "--to", "v2"]).fails_saying(&["damaged"]);
    story.run(&["convert", "damaged", "damaged", "--to", "v1"]).fails_saying(&["damaged"]);
    assert_eq!(story.read("out"), b"as it was");
    assert!(story.read("damaged") == damaged);
    assert_eq!(story.names(), ["damaged", "out"]);
}

#[test]
fn what_is_no_file_is_not_replaced_by_one() {
    let story = Story::new();
    fs::create_dir(story.path("folder")).unwrap();
    assert!(Command::new("mkfifo").arg(story.path("pipe")).status().unwrap().success());
    symlink("/dev/null", story.path("link")).unwrap();
    symlink("round", story.path("round")).unwrap();
    let names = story.names();
    for (out, says) in [
        ("/dev/null", "is a device"),
        ("link", "is a device"),
        ("folder", "is a folder"),
        ("folder/", "is a folder"),
        ("pipe", "is a pipe"),
        ("new/", "names a folder"),
        ("missing/out", "its folder does not exist"),
        ("..", "is a folder"),
        ("round", "symbolic link"),
        ("/proc/out", "could not be written"),
    ] {
        let run = story.run_with_input(&["pack", out, "--from", "-", "--format", "raw"], b"x");
        run.fails_saying(&[&format!("pelton: {out}: "), says]);
    }
    assert_eq!(story.names(), names);
}

#[test]
fn a_link_is_followed_to_its_file() {
    let story = Story::new();
    fs::create_dir(story.path("folder")).unwrap();
    story.write("folder/real", "old");
    symlink("folder/real", story.path("link")).unwrap();
    symlink("folder/new", story.path("dangling")).unwrap();
    for link in ["link", "dangling"] {
        story.run_with_input(&["pack", link, "--from", "-", "--format", "raw"], b"x").ok();
        assert!(fs::symlink_metadata(story.path(link)).unwrap().is_symlink());
    }
    story.ok(&["verify", "folder/real", "folder/new", "link"]);
    assert_eq!(story.names(), ["dangling", "folder", "link"]);
}

#[test]
fn a_file_can_be_packed_into_its_own_place() {
    let story = Story::new();
    let bytes = noise(5 << 20, 1);
    story.write("a", &bytes);
    story.ok(&["pack", "a", "--from", "a", "--format", "raw"]);
    assert!(story.ok(&["cat", "a", "--format", "raw"]) == bytes);
    assert_eq!(story.names(), ["a"]);
}

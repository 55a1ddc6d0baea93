//! Output files appear whole or not at all.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::{Run, Story, knows_nameless_files, noise, sample_region};

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

#[test]
fn a_write_protected_file_stays_as_it_is() {
    let story = Story::new();
    story.write("a", sample_region());
    fs::set_permissions(story.path("a"), Permissions::from_mode(0o400)).unwrap();
    for args in [
        &["convert", "a", "a", "--to", "v1"][..],
        &["convert", "a", "a", "--to", "v2"],
        &["pack", "a", "--from", "a", "--format", "raw"],
    ] {
        story.run(args).fails_saying(&["a: is write-protected"]);
    }
    assert!(story.read("a") == sample_region());
    assert_eq!(fs::metadata(story.path("a")).unwrap().mode() & 0o777, 0o400);
    assert_eq!(story.names(), ["a"]);
}

/// Whoever replaces a file does not take it away from those it belongs to.
///
/// Goal: owner, group and permissions are those of the file before; where they can't be, it stays.
/// Method: root replaces somebody else's file, then somebody else tries to replace root's.
#[test]
fn a_replaced_file_stays_with_its_owner() {
    let story = Story::new();
    story.write("a", sample_region());
    let (owner, group) = (65_534, 65_533);
    if chown(story.path("a"), Some(owner), Some(group)).is_err() {
        println!("SKIPPED: this user may not give files away");
        return;
    }
    let whose = |name: &str| {
        let metadata = fs::metadata(story.path(name)).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o777)
    };
    for mode in [0o600, 0o640, 0o664] {
        fs::set_permissions(story.path("a"), Permissions::from_mode(mode)).unwrap();
        story.ok(&["convert", "a", "a", "--to", "v2"]);
        assert_eq!(whose("a"), (owner, group, mode));
    }

    // The folder lets everybody replace the file; still it would be theirs afterwards.
    fs::set_permissions(story.folder.path(), Permissions::from_mode(0o777)).unwrap();
    story.write("roots", sample_region());
    fs::set_permissions(story.path("roots"), Permissions::from_mode(0o644)).unwrap();
    let before = whose("roots");
    let args = ["convert", "roots", "roots", "--to", "v1"];
    let mut command = story.command(&args);
    match command.uid(owner).gid(group).output() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            println!("SKIPPED: nobody else may run the binary of this build");
        }
        output => {
            let says = format!("roots: belongs to user {} and group {}", before.0, before.1);
            Run::of(&args, output.unwrap()).fails_saying(&[&says, "permission denied"]);
        }
    }
    assert!(story.read("roots") == sample_region());
    assert_eq!(whose("roots"), before);
    assert_eq!(story.names(), ["a", "roots"]);
}

#[test]
fn another_hard_link_keeps_the_file_before() {
    let story = Story::new();
    story.write("a", sample_region());
    fs::hard_link(story.path("a"), story.path("b")).unwrap();
    story.run_with_input(&["pack", "a", "--from", "-", "--format", "raw"], b"x").ok();
    assert!(story.read("b") == sample_region());
    assert_eq!(story.ok(&["cat", "a", "--format", "raw"]), b"x");
}

#[test]
fn a_file_called_dash_is_made_only_by_its_path() {
    let story = Story::new();
    let run = story.run_with_input(&["pack", "-", "--from", "-", "--format", "raw"], b"x");
    assert_eq!((run.code, run.stdout.len()), (Some(2), 0));
    assert!(run.stderr.contains("a file of that name is ./-"), "{}", run.stderr);
    assert!(story.names().is_empty());
    story.run_with_input(&["pack", "./-", "--from", "-", "--format", "raw"], b"x").ok();
    assert_eq!(story.names(), ["-"]);
    assert_eq!(story.ok(&["cat", "./-", "--format", "raw"]), b"x");
}

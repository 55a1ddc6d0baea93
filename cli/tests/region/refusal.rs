//! What can't work is refused in one line that says why.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::{Story, noise, sample_region};

/// The commands that read a region file called `name`.
fn readers(name: &str) -> [Vec<&str>; 5] {
    [
        vec!["inspect", name],
        vec!["verify", name],
        vec!["cat", name],
        vec!["cat", name, "--blob", "1"],
        vec!["convert", name, "out", "--to", "v2"],
    ]
}

#[test]
fn what_is_not_a_region_file_is_refused() {
    let story = Story::new();
    fs::create_dir(story.path("folder")).unwrap();
    assert!(Command::new("mkfifo").arg(story.path("pipe")).status().unwrap().success());
    let _listener = UnixListener::bind(story.path("socket")).unwrap();
    story.write("text", "hello, world\n");
    story.write("empty", "");
    story.write("one-byte", "U");
    story.write("newer", b"\x55\x03 and so on");
    story.write("noise", noise(100_000, 1));
    let start_only: Vec<u8> = sample_region()[..4096].to_vec();
    story.write("start-only", start_only);
    std::os::unix::fs::symlink("round", story.path("round")).unwrap();
    let names = story.names();
    for (name, says) in [
        ("missing", "there is no such file"),
        ("folder", "is a folder"),
        ("folder/", "is a folder"),
        ("text/more", "Not a directory"),
        ("pipe", "is a pipe"),
        ("socket", "is a socket"),
        ("/dev/zero", "is a device"),
        ("/dev/null", "is a device"),
        ("text", "not a region file: it begins with 0x68, a region begins with 0x55"),
        ("empty", "not a region file: it has 0 bytes"),
        ("one-byte", "not a region file: it has 1 bytes"),
        ("newer", "version 3"),
        ("noise", "not a region file"),
        ("start-only", "file is cut off"),
        ("/proc/self/mem", "not a region file"),
        ("round", "symbolic link"),
    ] {
        for args in readers(name) {
            story.run(&args).fails_saying(&[&format!("pelton: {name}: "), says]);
        }
    }
    assert_eq!(story.names(), names, "nothing was made");
}

#[test]
fn files_that_may_not_be_read_or_written_are_refused() {
    let story = Story::new();
    story.write("closed", sample_region());
    fs::set_permissions(story.path("closed"), Permissions::from_mode(0o000)).unwrap();
    fs::create_dir(story.path("folder")).unwrap();
    fs::set_permissions(story.path("folder"), Permissions::from_mode(0o555)).unwrap();
    if fs::read(story.path("closed")).is_ok() {
        println!("SKIPPED: this user may read everything");
        return;
    }
    for args in readers("closed") {
        story.run(&args).fails_saying(&["closed: could not be read: permission denied"]);
    }
    let run = story.run_with_input(&["pack", "folder/out", "--from", "-", "--format", "raw"], b"x");
    run.fails_saying(&["folder/out: could not be written", "does not permit"]);
}

#[test]
fn odd_names_are_told_on_one_line() {
    let story = Story::new();
    story.run(&["inspect", "two\nlines\x1b[31m"]).fails_saying(&["two\\nlines\\u{1b}[31m"]);
}

#[test]
fn sources_that_do_not_fit_are_refused() {
    let story = Story::new();
    fs::create_dir(story.path("folder")).unwrap();
    story.write("in", b"hello");
    let huge = fs::File::create(story.path("huge")).unwrap();
    huge.set_len(1 << 31).unwrap(); // Sparse: it takes no room on the disk.
    story.write("meta", noise((1 << 20) + 1, 1));
    story.write("exact-meta", noise(1 << 20, 1));
    let names = story.names();
    let frames = |len: u32, bytes: &[u8]| [&len.to_le_bytes()[..], bytes].concat();
    let cut_length = [frames(1, b"a"), vec![1, 0]].concat();
    let second_cut = [frames(1, b"a"), frames(2, b"b")].concat();
    for (input, format, says) in [
        (frames(5, b"hell"), "framed", "frame 0 is cut off: the input ends 1 byte early"),
        (second_cut, "framed", "frame 1 is cut off: the input ends 1 byte early"),
        (cut_length, "framed", "frame 1 at offset 5 is cut off: 2 bytes of its length, expected 4"),
        (frames(1 << 31, b""), "framed", "frame 0 at offset 0 claims 2,147,483,648 bytes"),
        (b"these are lines\n".to_vec(), "framed", "frame 0"),
    ] {
        let run = story.run_with_input(&["pack", "out", "--from", "-", "--format", format], &input);
        run.fails_saying(&["standard input: ", says]);
    }
    for (source, format, says) in [
        ("missing", "raw", "missing: could not be read: there is no such file"),
        ("folder", "lines", "folder: is a folder"),
        ("huge", "raw", "huge: is too long for one blob: at most 2,147,483,647 bytes"),
    ] {
        story.run(&["pack", "out", "--from", source, "--format", format]).fails_saying(&[says]);
    }
    let pack = ["pack", "out", "--from", "in", "--format", "raw"];
    story.run(&[&pack[..], &["--meta", "meta"]].concat()).fails_saying(&["meta: is too large", "1 MiB"]);
    story.run(&[&pack[..], &["--meta", "missing"]].concat()).fails_saying(&["missing: could not be read"]);
    story.run(&[&pack[..], &["--meta", "folder"]].concat()).fails_saying(&["folder: is a folder"]);
    assert_eq!(story.names(), names, "nothing was made");
    story.ok(&[&pack[..], &["--meta", "exact-meta"]].concat());
    story.ok(&["verify", "out"]);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let story = Story::new();
    story.write("a", sample_region());
    let hex = "a".repeat(63);
    let pack = ["pack", "out", "--from", "a", "--format", "raw"];
    let with = |more: &[&'static str]| [&pack[..], more].concat();
    for args in [
        vec![],
        vec!["nonsense"],
        vec!["inspect"],
        vec!["inspect", ""],
        vec!["pack", "", "--from", "a", "--format", "raw"],
        vec!["inspect", "a", "a"],
        vec!["inspect", "-"],
        vec!["verify", "a", "-"],
        vec!["cat", "-"],
        vec!["convert", "-", "out", "--to", "v2"],
        vec!["convert", "a", "-", "--to", "v2"],
        vec!["pack", "-", "--from", "a", "--format", "raw"],
        vec!["verify"],
        vec!["cat", "a", "--blob", "-1"],
        vec!["cat", "a", "--blob", "x"],
        vec!["cat", "a", "--format", "csv"],
        vec!["convert", "a", "out"],
        vec!["convert", "a", "out", "--to", "v3"],
        vec!["convert", "a", "out", "--to", "v1", "--key", "a/b@1#0"],
        vec!["convert", "a", "out", "--to", "v1", "--meta", "a"],
        vec!["pack", "out", "--from", "a"],
        vec!["pack", "out", "--format", "raw"],
        vec!["pack", "--from", "a", "--format", "raw"],
        with(&["--key", "no key"]),
        with(&["--key", "a/b@01#0"]),
        with(&["--align", "12"]),
        with(&["--align", "8192"]),
        with(&["--block", "1KiB"]),
        with(&["--stride", "0"]),
        with(&["--meta", "-"]),
        [&pack[..], &["--fingerprint", &hex]].concat(),
    ] {
        let run = story.run(&args);
        assert_eq!(run.code, Some(2), "{args:?}: {}", run.stderr);
        assert!(run.stdout.is_empty() && run.stderr.contains("--help"), "{args:?}: {}", run.stderr);
        assert_eq!(story.names(), ["a"], "{args:?}");
    }
}

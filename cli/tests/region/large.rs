//! Files larger than memory.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};

use crate::{Story, shell};

/// More than a command may have of address space here, 400 MB.
const BYTES: u64 = 600 << 20;
const LIMITED: &str = r#"ulimit -v 400000; pelton="$1"; shift; exec "$pelton" region "$@""#;

fn limited(story: &Story, args: &[&str]) {
    let args: Vec<_> = args.iter().map(|arg| arg.as_ref()).collect();
    let output = shell(story, LIMITED, &args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One blob that does not fit into memory, through every command. Sparse input keeps it quick.
#[test]
fn a_blob_larger_than_memory_goes_through_every_command() {
    let story = Story::on_the_build_disk();
    File::create(story.path("in")).unwrap().set_len(BYTES).unwrap();
    limited(&story, &["pack", "a", "--from", "in", "--format", "raw", "--block", "64MiB"]);
    limited(&story, &["verify", "a"]);
    limited(&story, &["inspect", "a"]);
    assert_eq!(cat_length(&story, "a"), BYTES);
    limited(&story, &["convert", "a", "a", "--to", "v1"]);
    limited(&story, &["verify", "a"]);
    limited(&story, &["inspect", "a"]);
    assert_eq!(cat_length(&story, "a"), BYTES);
    limited(&story, &["convert", "a", "a", "--to", "v2"]);
    limited(&story, &["verify", "a"]);
}

/// A pipe does not tell how long its only line, or the whole of it, will be.
#[test]
fn input_larger_than_memory_may_come_from_a_pipe() {
    let story = Story::on_the_build_disk();
    for format in ["raw", "lines"] {
        let script = format!("head -c {BYTES} /dev/zero | ({LIMITED})");
        let args = ["pack", "a", "--from", "-", "--format", format];
        let output = shell(&story, &script, &args.map(|arg| arg.as_ref()));
        assert!(output.status.success(), "{format}: {}", String::from_utf8_lossy(&output.stderr));
        let about = story.json(&["inspect", "a", "--json"]);
        assert_eq!((&about["blobs"], &about["blob_bytes"]), (&1.into(), &BYTES.into()));
    }
    assert_eq!(story.names(), ["a"]);
}

/// How many bytes come out of `cat` under the limit.
fn cat_length(story: &Story, name: &str) -> u64 {
    let mut child = Command::new("sh")
        .args(["-c", LIMITED, "sh", env!("CARGO_BIN_EXE_pelton"), "cat", name, "--format", "raw"])
        .current_dir(story.folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut bytes = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match stdout.read(&mut bytes).unwrap() {
            0 => break,
            len => total += len as u64,
        }
    }
    assert!(child.wait().unwrap().success());
    total
}

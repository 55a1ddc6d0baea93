//! The source in Python, as its page tells to run it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Story;

/// A Python that has grpcio and grpcio-tools: that of PELTON_PYTHON, or the one in the path.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("PELTON_PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
    let mut found = Command::new(&python);
    found.args(["-c", "import grpc, grpc_tools"]).stdout(Stdio::null()).stderr(Stdio::null());
    found.status().is_ok_and(|status| status.success()).then_some(python)
}

#[test]
fn a_source_in_python_is_loaded_from() {
    let Some(python) = python() else {
        println!("SKIPPED: no python3 with grpcio and grpcio-tools; PELTON_PYTHON names one");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let story = Story::new();
    let rows: Vec<String> = (0..60_000).map(|n| format!("{n},order {n},{}", n * 7)).collect();
    story.write("rows.csv", format!("id,name,price\n{}\n", rows.join("\n")));
    let made = Command::new(&python)
        .args(["-m", "grpc_tools.protoc", "-I"])
        .arg(root.join("nexus-proto/proto"))
        .args(["--python_out=.", "--grpc_python_out=."])
        .args(["pelton/nexus/v1/common.proto", "pelton/nexus/v1/feed.proto"])
        .current_dir(story.folder.path())
        .status()
        .unwrap();
    assert!(made.success(), "the messages could not be generated");
    let mut child = Command::new(&python)
        .arg(root.join("docs/examples/python-source/source.py"))
        .arg("rows.csv")
        .env("PYTHONPATH", story.folder.path())
        .current_dir(story.folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut says = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    says.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("feeding at ").unwrap_or_else(|| panic!("it says {line:?}"));
    let loaded = story.json(&["load", "d/v@1", "--from", address, "--insecure", "--durable"]);
    assert_eq!((&loaded["state"], &loaded["count"]), (&"durable".into(), &60_000.into()), "{loaded}");
    story.holds(&rows, &[]);
    line.clear();
    says.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "d/v@1#0: 60000 blobs");
    let _ = child.kill();
    let _ = child.wait();
}

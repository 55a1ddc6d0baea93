//! What `inspect` tells.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::{Run, Story, noise, sample_region};

#[test]
fn everything_is_told_within_80_columns() {
    let story = Story::new();
    story.write("a", sample_region());
    let text = String::from_utf8(story.ok(&["inspect", "a"])).unwrap();
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    for told in [
        "shop/orders@1719878400000#3",
        &"ab".repeat(32),
        "number 2 of 5",
        "somebody else",
        "36 blocks of 4 KiB",
        "what the user wants to keep",
        "block checksums",
        "blob index",
        "length histogram",
        "section table",
        "trailer",
        "####",
        "(151,552 bytes)",
    ] {
        assert!(text.contains(told), "{told} is not in\n{text}");
    }
}

#[test]
fn the_largest_counts_fit_too() {
    let story = Story::new();
    story.write("in", noise(3 << 20, 1));
    story.write("meta", noise(100, 2));
    let key = format!("{}/{}@18446744073709551615#4294967295", "d".repeat(20), "v".repeat(11));
    story.ok(&["pack", "a", "--from", "in", "--format", "raw", "--key", &key, "--meta", "meta"]);
    let text = String::from_utf8(story.ok(&["inspect", "a"])).unwrap();
    assert!(text.contains("100 bytes; --json has it"), "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn json_has_all_of_it() {
    let story = Story::new();
    story.write("a", sample_region());
    let about = story.json(&["inspect", "a", "--json"]);
    assert_eq!(about["file"], "a");
    assert_eq!(about["version"], 2);
    assert_eq!(about["file_bytes"], story.read("a").len());
    assert_eq!(about["walked"], false);
    assert_eq!(about["blobs"], 200);
    assert_eq!(about["header"]["key"], "shop/orders@1719878400000#3");
    assert_eq!(about["header"]["fingerprint"], "ab".repeat(32));
    assert_eq!(about["header"]["writer"], "somebody else");
    assert_eq!(about["header"]["alignment"], 8);
    assert_eq!(about["header"]["block_bytes"], 4096);
    assert_eq!(about["header"]["region_index"], 2);
    assert_eq!(about["header"]["region_count"], 5);
    assert_eq!(about["trailer"]["content_id"].as_str().unwrap().len(), 64);
    assert_eq!(about["trailer"]["blocks"], 36);
    assert_eq!(about["sections"].as_array().unwrap().len(), 4);
    assert_eq!(about["sections"][0]["name"], "block checksums");
    assert_eq!(about["sections"][0]["required"], true);
    assert_eq!(about["index"]["stride"], 65536);
    assert_eq!(about["metadata"]["text"], "what the user wants to keep");
    let counted: u64 =
        about["histogram"].as_array().unwrap().iter().map(|c| c["blobs"].as_u64().unwrap()).sum();
    assert_eq!(counted, 200);
}

#[test]
fn version_1_is_walked_and_says_so() {
    let story = Story::new();
    story.write("a", pelton::encode_v1_to_vec(["", "hello", "worlds", &"x".repeat(1000)]).unwrap());
    let about = story.json(&["inspect", "a", "--json"]);
    assert_eq!((&about["version"], &about["walked"], &about["blobs"]), (&1.into(), &true.into(), &4.into()));
    assert_eq!((&about["shortest"], &about["longest"]), (&0.into(), &1000.into()));
    assert_eq!(about["histogram"][1], serde_json::json!({ "from": 4, "to": 7, "blobs": 2 }));
    let text = String::from_utf8(story.ok(&["inspect", "a"])).unwrap();
    assert!(text.contains("all of it read to count"), "{text}");
    assert!(text.contains("version 1 has none"), "{text}");
}

#[test]
fn an_empty_region_has_no_shortest_blob() {
    let story = Story::new();
    story.run_with_input(&["pack", "a", "--from", "-", "--format", "lines"], b"").ok();
    let about = story.json(&["inspect", "a", "--json"]);
    assert_eq!((&about["blobs"], &about["shortest"]), (&0.into(), &serde_json::Value::Null));
    assert_eq!(about["histogram"], serde_json::json!([]));
    story.ok(&["inspect", "a"]);
}

#[test]
fn a_name_that_is_not_utf8_is_in_the_json_byte_by_byte() {
    let story = Story::new();
    let odd = OsStr::from_bytes(b"a\xFF");
    if fs::write(story.folder.path().join(odd), sample_region()).is_err() {
        println!("SKIPPED: the file system of the temporary folder takes UTF-8 only");
        return;
    }
    story.write("\u{e4}", sample_region());
    for command in ["inspect", "verify"] {
        let output = story.command(&[command, "--json"]).arg(odd).output().unwrap();
        let about: serde_json::Value = serde_json::from_slice(&Run::of(&[command], output).ok()).unwrap();
        assert_eq!((&about["file"], &about["file_hex"]), (&"a\u{fffd}".into(), &"61ff".into()));
        let about = story.json(&[command, "--json", "\u{e4}"]);
        assert_eq!((&about["file"], &about["file_hex"]), (&"\u{e4}".into(), &serde_json::Value::Null));
    }
}

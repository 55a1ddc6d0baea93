//! Many slices at once: listed, chosen, evicted, removed, warmed, verified.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::{Run, Story};

/// Blobs of 1 MiB, two regions for each slice: generation 1 with one blob for each of two slices, generation 2 with
/// three for its one slice, and another view with six.
fn loaded() -> Story {
    let story = Story::new();
    for (key, blobs, slices) in [("shop/a@1", 2, "2"), ("shop/a@2", 3, "1"), ("shop/b@1", 6, "1")] {
        let framed: Vec<u8> = (0..blobs)
            .flat_map(|blob| [&(1u32 << 20).to_le_bytes()[..], &vec![blob; 1 << 20]].concat())
            .collect();
        story.write("in", framed);
        let load = ["load", key, "--from", "in", "--format", "framed", "--regions", "2", "--slices", slices];
        story.run(&load).ok();
    }
    story
}

const ALL: [&str; 4] = ["shop/a@1#0", "shop/a@1#1", "shop/a@2#0", "shop/b@1#0"];

impl Run {
    /// Exit code 0, nothing on standard error, and the lines of standard output.
    fn lines(self) -> Vec<String> {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}: {}", self.args, self.stdout);
        self.stdout.lines().map(str::to_owned).collect()
    }

    fn values(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Story {
    fn keys(&self, options: &[&str]) -> Vec<String> {
        let run = self.run(&[&["ls", "--json"], options].concat());
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
        run.values().iter().map(|one| one["key"].as_str().unwrap().to_owned()).collect()
    }

    /// The files whose names end so, in the order of their paths.
    fn files(&self, extension: &str) -> Vec<PathBuf> {
        fn walk(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, extension, found);
                } else if path.extension().is_some_and(|its| its == extension) {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.path("pelton-data"), extension, &mut found);
        found.sort();
        found
    }
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[test]
fn ls_shows_slices_and_generations_in_columns() {
    let story = loaded();
    let lines = story.run(&["ls"]).lines();
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["slice", "state", "durable", "bytes", "memory", "idle"]
    );
    for (line, key) in lines[1..].iter().zip(ALL) {
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            (cells[0], cells[1], cells[2], cells[4], cells[5]),
            (key, "warm", "yes", "MiB", "-"),
            "{line}"
        );
    }
    assert_eq!(lines[4].split_whitespace().nth(3), Some("6.0"));
    assert!(
        lines[5].starts_with("4 slices: 11.0 MiB of blobs, 11.") && lines[5].ends_with(", 0 bytes in memory"),
        "{}",
        lines[5]
    );
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:?}");
    let lines = story.run(&["ls", "shop/a", "--generations"]).lines();
    let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        (cells(&lines[1])[..2].join(" "), cells(&lines[2])[..2].join(" ")),
        ("shop/a@1 2".into(), "shop/a@2 1".into())
    );
    assert_eq!(story.run(&["ls", "--leases"]).lines(), ["no leases"]);
    assert_eq!(
        story.run(&["ls", "other"]).lines(),
        ["0 slices: 0 bytes of blobs, 0 bytes of files, 0 bytes in memory"]
    );
    let said = &story.run(&["ls", "shop/b", "--json"]).values()[0];
    assert_eq!(
        (&said["key"], &said["state"], &said["blobs"], &said["durable"]),
        (&ALL[3].into(), &"warm".into(), &6.into(), &true.into()),
        "{said}"
    );
    assert!(said["load_at_ms"].is_u64() && said["idle_seconds"].is_f64() && said["why"].is_null(), "{said}");
}

/// A pin is of the slice, not of the process that has made it.
#[test]
fn what_is_pinned_stays_until_it_is_unpinned() {
    let story = loaded();
    let dry = story.run(&["pin", "shop/a", "--dry-run"]).lines();
    assert!(dry.last().unwrap().starts_with("3 slices: 3 would be pinned, "), "{dry:?}");
    story.run(&["flush", "shop/a@2"]).lines();
    assert_eq!(story.keys(&[]), [ALL[0], ALL[1], ALL[3]], "a dry run has pinned nothing");
    let lines = story.run(&["pin", "shop/a@1#0"]).lines();
    assert!(lines.last().unwrap().starts_with("1 slice: 1 pinned, "), "{lines:?}");
    let notes = story.run(&["ls"]).lines();
    let pinned: Vec<&String> = notes.iter().filter(|line| line.contains("pinned")).collect();
    assert!(pinned.len() == 1 && pinned[0].starts_with(ALL[0]), "{notes:?}");
    for command in ["flush", "erase"] {
        let run = story.run(&[command, "*", "--yes", "--where", "bytes<2MiB"]);
        assert_eq!(run.code, Some(1), "{}", run.stdout);
        assert!(run.stdout.contains("pinned"), "{}", run.stdout);
    }
    assert_eq!(story.keys(&[]), [ALL[0], ALL[3]]);
    assert!(story.run(&["unpin", "shop/a", "--json"]).values()[0]["outcome"] == "done");
    story.run(&["flush", "shop/a"]).lines();
    assert_eq!(story.keys(&[]), [ALL[3]]);
    assert_eq!(story.run(&["pin", "shop/a"]).lines(), ["nothing matches, so nothing was pinned"]);
    // A damaged log is told once, and costs no slice.
    flip(&story.path("pelton-data/access-log"), 3);
    let told = story.run(&["ls"]);
    assert!(told.stderr.contains("access-log: damaged at byte 0"), "{}", told.stderr);
    assert_eq!(story.keys(&[]), [ALL[3]]);
}

#[test]
fn filters_choose_and_are_explained() {
    let story = loaded();
    assert_eq!(story.keys(&[]), ALL);
    assert_eq!(story.keys(&["--where", "bytes>2MiB"]), ALL[2..]);
    assert_eq!(story.keys(&["--where", "bytes>2MiB", "--where", "blobs<4"]), ALL[2..3]);
    assert_eq!(story.keys(&["shop/a@*#0", "--where", "bytes>2MiB, state=warm"]), ALL[2..3]);
    assert_eq!(story.keys(&["--where", "slices=2", "--generations"]), ["shop/a@1"]);
    assert_eq!(story.keys(&["--where", "memory>0"]), [""; 0]);
    story.run(&["ls", "--where", "size>1"]).refuses_usage(&[
        "--where",
        "character 1",
        "there is no \"size\"",
        "bytes",
    ]);
    story.run(&["ls", "--where", ""]).refuses_usage(&["--where"]);
    story.run(&["ls", "a//b"]).refuses_usage(&["PATTERN"]);
    let help = story.run(&["ls", "--help"]).stdout;
    for name in ["size-skew", "when the next load makes sense", "2026-11-21"] {
        assert!(help.contains(name), "{name}: {help}");
    }
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_would_be() {
    let story = loaded();
    let files = || (story.files("region"), story.files("manifest"));
    let before = files();
    for command in ["evict", "flush", "erase", "warm"] {
        let lines = story.run(&[command, "*", "--where", "bytes>2MiB", "--dry-run"]).lines();
        let done = ["evicted", "flushed", "erased", "warmed"]
            .iter()
            .find(|word| word.starts_with(&command[..4]))
            .unwrap();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[1].starts_with(ALL[2]) && lines[1].ends_with(&format!("would be {done}")), "{lines:?}");
        assert!(lines[3].starts_with(&format!("2 slices: 2 would be {done}, ")), "{lines:?}");
        for one in story.run(&[command, "shop", "--dry-run", "--json"]).values() {
            assert_eq!((&one["outcome"], &one["dry_run"]), (&"done".into(), &true.into()), "{one}");
        }
        assert_eq!((files(), story.keys(&[])), (before.clone(), ALL.map(str::to_owned).to_vec()));
    }
}

#[test]
fn more_than_half_is_removed_only_on_request() {
    for (command, done) in [("flush", "flushed"), ("erase", "erased")] {
        let story = loaded();
        story.run(&[command]).refuses_usage(&["PATTERN"]);
        story.run(&[command, "shop/b"]).fails_saying(&["1 slice", "6.", "11.", "--yes", "--dry-run"]);
        story.run(&[command, "*"]).fails_saying(&["4 slices", "--yes"]);
        assert_eq!(story.keys(&[]), ALL);
        assert_eq!(
            story.run(&[command, "*", "--where", "bytes>1GiB"]).lines(),
            [format!("nothing matches, so nothing was {done}")]
        );
        let lines = story.run(&[command, "shop/a@2"]).lines();
        assert!(
            lines[1].ends_with(done) && lines[2].starts_with(&format!("1 slice: 1 {done}, 3.")),
            "{lines:?}"
        );
        assert_eq!(story.keys(&[]), [ALL[0], ALL[1], ALL[3]]);
        story.run(&[command, "*", "--yes"]).lines();
        assert_eq!(
            (story.keys(&[]), story.files("region"), story.files("manifest")),
            (vec![], vec![], vec![])
        );
    }
}

/// How many bytes of a file the page cache holds.
fn cached(path: &Path) -> u64 {
    let out = std::process::Command::new("fincore").args(["-n", "-b", "-o", "RES"]).arg(path).output();
    match out {
        Ok(out) if out.status.success() => String::from_utf8(out.stdout).unwrap().trim().parse().unwrap(),
        _ => {
            println!("SKIPPED: no fincore here, the page cache was not looked at");
            u64::MAX
        }
    }
}

/// Goal: in a process of its own `warm` fills the page cache and `evict` empties it. Method: `fincore` tells how much of
/// the files is there.
#[test]
fn warm_fills_the_page_cache_and_evict_empties_it() {
    let story = loaded();
    let lines = story.run(&["evict"]).lines();
    assert!(lines[4].starts_with("shop/b@1#0") && lines[4].ends_with("evicted"), "{lines:?}");
    assert!(lines[5].starts_with("4 slices: 4 evicted, 11."), "{lines:?}");
    let files = story.files("region");
    let resident = || files.iter().map(|file| cached(file)).fold(0, u64::saturating_add);
    if cached(&files[0]) == u64::MAX {
        return;
    }
    // A start looks at the last page of each region, and leaves it there.
    let looked_at = 4096 * files.len() as u64;
    assert!(resident() <= looked_at, "{}", resident());
    let lines = story.run(&["warm", "shop/b"]).lines();
    assert!(lines[1].ends_with("warmed"), "{lines:?}");
    assert!(resident() >= 6 << 20, "{}", resident());
    story.run(&["evict", "--keep-cache"]).lines();
    assert!(resident() >= 6 << 20, "{}", resident());
    story.run(&["evict", "shop/b"]).lines();
    assert!(resident() <= looked_at, "{}", resident());
}

#[test]
fn warm_takes_the_newest_as_far_as_there_is_room_and_says_what_is_left() {
    let story = Story::new();
    story.write("in", [&(1u32 << 20).to_le_bytes()[..], &vec![7; 1 << 20]].concat().repeat(20));
    for clock in 1..=3 {
        let key = format!("d/v@{clock}");
        story.run(&["load", &key, "--from", "in", "--format", "framed", "--regions", "1"]).ok();
    }
    let run = story.run(&["warm", "--memory", "64MiB"]);
    run.says(&["pelton: ", " of 3 slices ", " not warmed"]);
    assert_eq!(run.code, Some(1));
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert!(lines[3].starts_with("d/v@3#0") && lines[3].ends_with("warmed"), "{lines:?}");
    assert!(lines[1].starts_with("d/v@1#0") && lines[1].contains("not warmed: no room, "), "{lines:?}");
    let begun = Instant::now();
    story.run(&["warm", "--rate", "100MiB", "--where", "bytes>1"]).lines();
    // Three of 20 MiB, of which the two last steps of two threads, of 8 MiB at most, need not have had their time.
    assert!(begun.elapsed().as_millis() >= 280, "{:?}", begun.elapsed());
}

/// Goal: damage anywhere ends in exit code 1 and in a line that names the file and the block. Method: one bit flipped in
/// each part of a region; the other slices stay whole.
#[test]
fn verify_names_the_damaged_file_and_block() {
    let story = loaded();
    let lines = story.run(&["verify"]).lines();
    assert!(lines[1].starts_with(ALL[0]) && lines[1].ends_with("whole"), "{lines:?}");
    assert!(lines[5].starts_with("4 slices: 4 whole, 11."), "{lines:?}");
    let b = story.json(&["verify", "shop/b"]);
    assert_eq!(
        (&b["key"], &b["outcome"], &b["files"]),
        (&ALL[3].into(), &"whole".into(), &Value::Array(vec![])),
        "{b}"
    );
    // The largest is a region of the slice with six blobs.
    let region =
        story.files("region").into_iter().max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    let bytes = fs::metadata(&region).unwrap().len();
    let trailer = bytes - 4096;
    let places = [
        (16, None, "header is damaged"),
        (5000, Some(0), "block 0 is damaged at offset 4096"),
        ((2 << 20) + 9, Some(2), "block 2 is damaged at offset 2097152"),
        (trailer - 16, None, " is damaged at offset"),
    ];
    for (offset, block, text) in places {
        flip(&region, offset);
        let run = story.run(&["verify"]);
        assert_eq!(run.code, Some(1), "{text}: {}", run.stderr);
        let path = region.strip_prefix(story.path("")).unwrap().to_str().unwrap();
        run.says(&["pelton: ./", path, text, "pelton: 1 of 4 slices is not whole"]);
        assert_eq!(run.stderr.lines().count(), 2, "{}", run.stderr);
        let whole = run.stdout.lines().filter(|line| line.ends_with("whole")).count();
        let damaged: Vec<&str> = run.stdout.lines().filter(|line| line.ends_with("damaged")).collect();
        assert!(whole == 3 && damaged.len() == 1 && damaged[0].starts_with(ALL[3]), "{}", run.stdout);
        let said = story.run(&["verify", "shop/b", "--json"]).values().remove(0);
        let file = &said["files"][0];
        assert_eq!((&said["outcome"], &file["block"]), (&"damaged".into(), &Value::from(block)), "{said}");
        assert!(file["file"].as_str().unwrap().ends_with(path), "{said}");
        flip(&region, offset);
    }
    story.run(&["verify", "--rate", "1GiB"]).lines();
}

#[test]
fn a_slice_that_the_start_drops_is_told_and_counts_as_damaged() {
    for damage in ["manifest", "region"] {
        let story = loaded();
        let manifest = story.files("manifest").remove(0);
        match damage {
            "manifest" => flip(&manifest, 60),
            _ => {
                let shortest = story
                    .files("region")
                    .into_iter()
                    .min_by_key(|file| fs::metadata(file).unwrap().len())
                    .unwrap();
                let file = OpenOptions::new().write(true).open(&shortest).unwrap();
                file.set_len(5000).unwrap();
            }
        }
        let run = story.run(&["verify"]);
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        run.says(&[
            "pelton: ./pelton-data/manifests/shop+a+1+",
            "dropped",
            "pelton: 1 of 4 slices is not whole",
        ]);
        assert!(run.stdout.contains("dropped"), "{}", run.stdout);
    }
}

#[test]
fn a_cache_that_is_not_there_is_not_made() {
    let story = Story::new();
    let changes = [&["flush", "*"][..], &["erase", "*"], &["pin", "*"], &["unpin", "*"]];
    for command in [&["ls"][..], &["evict"], &["warm"], &["verify"]].into_iter().chain(changes) {
        story.run(command).fails_saying(&["./pelton-data: there is no such spindle"]);
        assert!(!story.path("pelton-data").exists());
    }
}

//! What `pelton doctor` says of a machine and of folders, and that it changes nothing.

use std::fs;

use pelton::Cache;
use serde_json::Value;

use crate::{Run, Story};

/// What stands in a folder: names and bytes of its files, in order.
fn content(story: &Story, folder: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![story.path(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.display().to_string(), fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

impl Run {
    fn diagnosis(self) -> Value {
        assert_eq!(self.stderr, "", "{}", self.args);
        let said: Value = serde_json::from_str(&self.stdout).unwrap();
        let stops = said["verdict"] == "problem";
        assert_eq!(self.code, Some(i32::from(stops)), "{said}");
        said
    }
}

fn finding<'a>(findings: &'a Value, name: &str) -> &'a Value {
    let found = findings.as_array().unwrap().iter().find(|finding| finding["name"] == name);
    let found = found.unwrap_or_else(|| panic!("{name} is not in {findings}"));
    assert_eq!(found["advice"].is_null(), found["verdict"] == "ok", "{found}");
    found
}

#[test]
fn a_folder_that_is_not_there_is_looked_at_and_not_made() {
    let story = Story::new();
    let said = story.run(&["doctor", "--json"]).diagnosis();
    for name in [
        "settings",
        "io-uring",
        "memory",
        "memory-pressure",
        "cores",
        "large-pages",
        "mappings",
        "open-files",
        "locked-memory",
        "clock",
        "clock-source",
    ] {
        assert!(finding(&said["machine"], name)["found"].is_string());
    }
    assert_eq!(said["spindles"][0]["folder"], "./pelton-data");
    let findings = &said["spindles"][0]["findings"];
    for name in ["folder", "file-system", "rotational", "disk", "o-direct", "mapped-large-pages", "space"] {
        assert_ne!(finding(findings, name)["verdict"], "problem", "{findings}");
    }
    assert_eq!(content(&story, "."), [], "nothing is left");
    assert_eq!(fs::read_dir(story.path(".")).unwrap().count(), 0);
}

#[test]
fn a_person_reads_a_line_for_each_finding() {
    let story = Story::new();
    fs::create_dir(story.path("empty")).unwrap();
    let run = story.run(&["doctor", "--spindle", "empty", "--spindle", "not/yet"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{}", run.stdout);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines[0], "machine");
    for line in ["empty", "not/yet"] {
        assert!(lines.contains(&line), "{}", run.stdout);
    }
    assert!(lines.iter().all(|line| line.chars().count() <= 100), "{}", run.stdout);
    assert!(run.stdout.contains("is empty; a cache would make it a spindle"), "{}", run.stdout);
    assert!(run.stdout.contains("they fill and fail together"), "{}", run.stdout);
    assert_eq!(fs::read_dir(story.path("empty")).unwrap().count(), 0);
    assert!(!story.path("not").exists());
}

#[test]
fn a_spindle_stays_as_it_is_held_or_not() {
    let story = Story::new();
    story.write("in", "one\ntwo\n");
    story.load("lines", &[]);
    let before = content(&story, "pelton-data");
    let said = story.run(&["doctor", "--json"]).diagnosis();
    let findings = &said["spindles"][0]["findings"];
    assert!(finding(findings, "folder")["found"].as_str().unwrap().starts_with("is spindle "), "{findings}");
    assert_eq!(finding(findings, "disk")["verdict"], "ok", "{findings}");
    assert_eq!(content(&story, "pelton-data"), before);

    let cache = Cache::builder().spindle(story.path("pelton-data"), None).open().unwrap();
    let held = content(&story, "pelton-data");
    let said = story.run(&["doctor", "--json"]).diagnosis();
    let folder = finding(&said["spindles"][0]["findings"], "folder");
    assert_eq!(folder["verdict"], "note", "a cache that runs is no problem");
    let holder = format!("in use by process {}", std::process::id());
    assert!(folder["found"].as_str().unwrap().contains(&holder), "{folder}");
    assert_eq!(content(&story, "pelton-data"), held);
    drop(cache);
    story.holds(&["one", "two"], &[]);
}

#[test]
fn what_stops_a_cache_is_a_problem_and_the_exit_code() {
    let story = Story::new();
    story.write("mine/letter", "dear");
    story.write("file", "");
    let problem = |args: &[&str], name: &str, text: &str| {
        let said = story.run(&[&["doctor", "--json"], args].concat()).diagnosis();
        assert_eq!(said["verdict"], "problem", "{said}");
        let of_machine = said["machine"].as_array().unwrap();
        let of_spindle = said["spindles"][0]["findings"].as_array().unwrap();
        let all: Value = of_machine.iter().chain(of_spindle).cloned().collect();
        let found = finding(&all, name);
        assert_eq!(found["verdict"], "problem", "{found}");
        assert!(found["found"].as_str().unwrap().contains(text), "{found}");
    };
    problem(&["--spindle", "mine"], "folder", "letter");
    problem(&["--spindle", "file"], "folder", "is not a folder");
    problem(&["--spindle", "file/below"], "folder", "Not a directory");
    problem(&["--memory", "1MiB"], "settings", "memory is 1");
    problem(&["--spindle", "x:1MiB"], "settings", "capacity of x");
    assert_eq!(content(&story, "mine").len(), 1);
    story.run(&["doctor", "--memory", "many"]).refuses_usage(&["--memory"]);
}

//! Where a cache is and how large it may be: options, and the file behind them.

use pelton::Cache;

use crate::Story;

const LOAD: [&str; 6] = ["load", "d/v@1", "--from", "in", "--format", "lines"];

fn capacity(story: &Story, folder: &str) -> u64 {
    let cache = Cache::builder().spindle(story.path(folder), 1 << 30).open().unwrap();
    cache.spindles()[0].used
}

#[test]
fn a_file_says_what_options_override() {
    let story = Story::new();
    story.write("in", "one\n");
    story.write(
        "pelton.toml",
        "memory = \"128MiB\"\nscan_threads = 1\n[[spindle]]\npath = \"of-file\"\ncapacity = \"64MiB\"\n",
    );
    story.run(&[&LOAD[..], &["--config", "pelton.toml"]].concat()).ok();
    story.holds(&["one"], &["--config", "pelton.toml"]);
    assert!(capacity(&story, "of-file") > 0);
    assert!(!story.path("pelton-data").exists());
    // The option replaces the file's spindles, and what it does not name stays as the file says.
    story.run(&[&LOAD[..], &["--config", "pelton.toml", "--spindle", "of-option:32MiB"]].concat()).ok();
    assert!(capacity(&story, "of-option") > 0);
    story
        .run(&[&LOAD[..], &["--config", "pelton.toml", "--memory", "1MiB"]].concat())
        .fails_saying(&["memory is 1 MiB, allowed is 64 MiB to "]);
}

#[test]
fn what_a_file_gets_wrong_is_told_with_its_line() {
    let story = Story::new();
    story.write("in", "one\n");
    let cases = [
        ("memory = 1\nmemori = 2\n", "line 2: unknown field `memori`"),
        ("\n\nmemory = \"64MB\"\n", "line 3: "),
        ("spindle = 3\n", "line 1: "),
        ("engine = \"aio\"\n", "unknown variant `aio`"),
        ("memory = ", "line 1: "),
        (
            "[[view]]\npattern = \"a/b\"\nevict_after = \"10 minutes\"\n",
            "line 3: \"10 minutes\": expected a time such as 250ms, 10m or 1h30m (ms, s, m, h, d), or never",
        ),
        (
            "[[view]]\npattern = \"a/b\"\nflush_after = 10\n",
            "line 3: invalid type: integer `10`, expected a time such as 250ms, 10m or 1h30m (ms, s, m, h, d), or never",
        ),
        (
            "heal_after = { min = \"soon\" }\n",
            "line 1: \"soon\": expected a time such as 250ms, 10m or 1h30m (ms, s, m, h, d)",
        ),
        (
            "[[view]]\npattern = \"a/b\"\nerase_after = \"5ms\"\n",
            "erase_after of view a/b@*#* is 5 ms, allowed is 1 s to 3650 days",
        ),
        ("heal_after = { min = \"10m\" }\n", "heal_after is 600s, allowed is up to 300s, its maximum"),
    ];
    for (text, told) in cases {
        story.write("wrong.toml", text);
        // What the file says is told with the file; what does not go together with its name.
        let names = if told.contains("allowed is") { "" } else { "wrong.toml: " };
        story.run(&[&LOAD[..], &["--config", "wrong.toml"]].concat()).fails_saying(&[names, told]);
    }
    story
        .run(&[&LOAD[..], &["--config", "none.toml"]].concat())
        .fails_saying(&["none.toml: ", "there is no such file"]);
    story.write("wrong.toml", "depth = 0\n");
    story
        .run(&[&LOAD[..], &["--config", "wrong.toml"]].concat())
        .fails_saying(&["depth is 0, allowed is 1 to 256"]);
}

#[test]
fn a_spindle_holds_what_follows_its_last_colon() {
    let story = Story::new();
    let blob = vec![b'x'; 40 << 20];
    story.write("in", &blob);
    story
        .run(&["load", "d/v@1", "--from", "in", "--format", "raw", "--regions", "1", "--spindle", "s:32MiB"])
        .fails_saying(&["no spindle takes the load of d/v@1#0", "s: 40", "are too much", "32.0 MiB"]);
    story
        .run(&["load", "d/v@1", "--from", "in", "--format", "raw", "--regions", "1", "--spindle", "s:48MiB"])
        .ok();
    story.run(&[&LOAD[..], &["--spindle", "t:400GB"]].concat()).refuses_usage(&[
        "--spindle",
        "t:400GB",
        "write GiB",
    ]);
    story
        .run(&[&LOAD[..], &["--spindle", "t:1MiB"]].concat())
        .fails_saying(&["capacity of t is 1 MiB, allowed is 16 MiB to 1 EiB"]);
    assert!(!story.path("t").exists());
}

#[test]
fn spindles_on_one_disk_are_told_and_one_folder_is_not_two() {
    let story = Story::new();
    story.write("in", "one\n");
    let two = story.run(&[&LOAD[..], &["--spindle", "a", "--spindle", "b"]].concat());
    assert_eq!(
        two.warnings,
        "pelton: the spindles b and a share a file system: they fill and fail together\n"
    );
    two.ok();
    for again in ["a", "./a", "b/../a"] {
        story
            .run(&[&LOAD[..], &["--spindle", "a", "--spindle", "b", "--spindle", again]].concat())
            .fails_saying(&["spindle is ", "allowed is each folder once"]);
    }
}

/// A file may have settings for a node beside the cache's: every command reads it, and the node refuses what it can't
/// use before anything is made.
#[test]
fn limits_of_a_node_are_refused_with_name_value_range_and_line() {
    let story = Story::new();
    story.write("in", "one\n");
    story.write("pelton.toml", "memory = \"128MiB\"\n[node.limits]\nstreams_max = 7\n");
    story.run(&[&LOAD[..], &["--config", "pelton.toml", "--spindle", "s"]].concat()).ok();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--insecure"];
    for (text, told) in [
        ("[node.limits]\n\nstreams_max = 0\n", "line 3: streams_max is 0, allowed is 1 to 65536"),
        (
            "[node.limits]\nstreams = 1\n",
            "line 2: there is no limit \"streams\"; there are message_bytes_max, ",
        ),
        ("[node.limits]\nchunk_bytes_max = \"1GB\"\n", "line 2: \"GB\" may mean powers of 1000"),
        ("[node.limits]\nstreams_max = -1\n", "line 2: expected a number, or a size like \"64MiB\""),
        ("[node]\nlimit = 1\n", "line 2: unknown field `limit`, expected `limits`"),
        (
            "[node.limits]\nchunk_bytes_max = \"8MiB\"\n",
            "chunk_bytes_max is 8 MiB, allowed is 4 KiB to 4064 KiB",
        ),
    ] {
        story.write("wrong.toml", text);
        story.run(&[&serve[..], &["--config", "wrong.toml"]].concat()).fails_saying(&[told]);
    }
    let option = |limit: &'static str| story.run(&[&serve[..], &["--limit", limit]].concat());
    option("connections_max=0").fails_saying(&["connections_max is 0, allowed is 1 to 65536"]);
    option("connections_max").refuses_usage(&["expected NAME=VALUE, like streams_max=512"]);
    option("connections_max=many").refuses_usage(&["--limit", "connections_max=many"]);
    assert!(!story.path("pelton-data").exists(), "nothing was made");
}

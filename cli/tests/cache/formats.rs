//! Every form of input comes out as the blobs it holds.

use pelton::Header;

use crate::{Story, framed, lines, sample_blobs};

#[test]
fn lines_are_blobs() {
    let story = Story::new();
    let mut blobs = sample_blobs(20_000);
    blobs.push(b"last ab".to_vec());
    let mut input = lines(&blobs);
    input.pop(); // The last line may lack its line feed.
    story.write("in", input);
    let said = story.load("lines", &[]);
    assert_eq!((&said["state"], &said["count"]), (&"scannable".into(), &blobs.len().into()), "{said}");
    story.holds(&blobs, &[]);
    let text = story.run(&["scan", "d/v@1", "--op", "grep:last"]).ok();
    assert!(text.starts_with("d/v@1#0: 1 slice, 20,001 blobs, ") && text.contains(", 1 with the text;"));
}

#[test]
fn frames_are_blobs() {
    let story = Story::new();
    let mut blobs = sample_blobs(3_000);
    blobs.push(vec![b'\n'; 3 << 20]); // Larger than a parcel.
    blobs.extend([Vec::new(), b"ab".to_vec()]);
    story.write("in", framed(&blobs));
    story.load("framed", &[]);
    story.holds(&blobs, &[]);
}

#[test]
fn a_raw_file_is_one_blob_even_of_nothing() {
    for input in [Vec::new(), b"a\nab".to_vec(), vec![7; (2 << 20) + 1]] {
        let story = Story::new();
        story.write("in", &input);
        story.load("raw", &["--durable"]);
        story.holds(&[input], &[]);
    }
}

#[test]
fn a_region_file_of_either_version_is_its_blobs() {
    // One blob lies across checksum blocks, so it comes in parts.
    let mut blobs = sample_blobs(500);
    blobs.insert(250, [vec![b'x'; 3 << 20], b"ab".to_vec()].concat());
    let header = Header { key: Some("o/p@3#0".parse().unwrap()), ..Header::default() };
    let header = Header { fingerprint: Some("ab".repeat(32).parse().unwrap()), ..header };
    for file in
        [pelton::encode_to_vec(&header, &blobs, None).unwrap(), pelton::encode_v1_to_vec(&blobs).unwrap()]
    {
        let story = Story::new();
        story.write("in", file);
        story.load("region", &[]);
        story.holds(&blobs, &[]);
    }
}

/// Goal: a folder is all its files, in all folders, each cut by itself.
#[test]
fn a_folder_is_all_its_files() {
    let blobs = sample_blobs(90);
    let files = ["z", "sub/a", "sub/deep/b"];
    let story = Story::new();
    for (name, blobs) in files.iter().zip(blobs.chunks(30)) {
        let mut input = lines(blobs);
        input.pop(); // Files do not run into each other.
        story.write(&format!("in/{name}"), input);
    }
    let expected: Vec<Vec<u8>> = blobs
        .chunks(30)
        .flat_map(|blobs| match blobs.last().is_some_and(Vec::is_empty) {
            true => blobs[..29].to_vec(), // An empty line without a line feed is none.
            false => blobs.to_vec(),
        })
        .collect();
    story.load("lines", &[]);
    story.holds(&expected, &[]);

    let story = Story::new();
    for (number, blob) in blobs.iter().enumerate() {
        story.write(&format!("in/{}/{number}", number % 7), blob);
    }
    story.load("raw", &[]);
    story.holds(&blobs, &[]);
}

#[test]
fn standard_input_is_read_once_and_never_taken_for_loaded() {
    let (first, second) = (sample_blobs(5_000), sample_blobs(4_000));
    let story = Story::new();
    let args = ["load", "d/v@1", "--from", "-", "--format", "lines", "--json"];
    let before = story.run_with_input(&args, &lines(&first)).json();
    story.holds(&first, &[]);
    let after = story.run_with_input(&args, &lines(&second)).json();
    assert_ne!(before["fingerprint"], after["fingerprint"]);
    story.holds(&second, &[]);
    let again = story.run_with_input(&args, &lines(&second)).json();
    assert_eq!(again["state"], "scannable");
}

#[test]
fn no_blobs_at_all_are_an_answer_too() {
    let story = Story::new();
    story.write("in", "");
    assert_eq!(story.load("lines", &["--slices", "2"])["count"], 0);
    let said = story.json(&["scan", "d/v@1", "--op", "crc32c"]);
    assert_eq!((&said["slices"], &said["count"], &said["crc32c"]), (&2.into(), &0.into(), &0.into()));
}

#[test]
fn packed_parcels_bring_the_same_blobs() {
    let blobs = sample_blobs(30_000);
    let codecs: &[&str] = if cfg!(feature = "zstd") { &["none", "lz4", "zstd"] } else { &["none", "lz4"] };
    for codec in codecs {
        let story = Story::new();
        story.write("in", framed(&blobs));
        story.load("framed", &["--codec", codec, "--align", "64", "--deal", "least-bytes"]);
        story.holds(&blobs, &[]);
    }
}

//! What is packed comes out again.

use std::fs;
use std::process::Command;

use pelton::RegionView;

use crate::{Story, framed, noise, sample_blobs, sample_region};

#[test]
fn lines_come_back_with_a_line_feed_each() {
    let long = [noise(5 << 20, 1).as_slice(), b"\nshort\n", &noise(9 << 20, 2)].concat();
    let cases: [(&[u8], &[&[u8]]); 9] = [
        (b"", &[]),
        (b"\n", &[b""]),
        (b"\n\n", &[b"", b""]),
        (b"one", &[b"one"]),
        (b"one\n", &[b"one"]),
        (b"one\n\ntwo", &[b"one", b"", b"two"]),
        (b"one\r\ntwo\r\n", &[b"one\r", b"two\r"]),
        (b"\r", &[b"\r"]),
        (b"a\0b\n\xff\xfe\n", &[b"a\0b", b"\xff\xfe"]),
    ];
    for (input, blobs) in cases {
        let story = Story::new();
        story.run_with_input(&["pack", "out", "--from", "-", "--format", "lines"], input).ok();
        assert_eq!(story.ok(&["cat", "out"]), framed(blobs), "{input:?}");
        let mut lines = input.to_vec();
        if !input.is_empty() && !input.ends_with(b"\n") {
            lines.push(b'\n');
        }
        assert_eq!(story.ok(&["cat", "out", "--format", "lines"]), lines, "{input:?}");
        story.ok(&["verify", "out"]);
    }
    // Lines longer than anything that is read at once. Noise has line feeds of its own.
    let story = Story::new();
    let long: Vec<u8> = long
        .iter()
        .enumerate()
        .map(|(at, &byte)| match byte {
            b'\n' if !(5 << 20..(5 << 20) + 7).contains(&at) => b' ',
            byte => byte,
        })
        .collect();
    story.write("in", &long);
    story.ok(&["pack", "out", "--from", "in", "--format", "lines"]);
    assert_eq!(story.json(&["inspect", "out", "--json"])["blobs"], 3);
    assert!(story.ok(&["cat", "out", "--format", "lines"]) == [&long[..], b"\n"].concat());
}

#[test]
fn frames_come_back_to_the_byte() {
    let large = vec![noise(3 << 20, 1), Vec::new(), noise((2 << 20) - 4, 2), noise(1, 3), noise(5 << 20, 4)];
    for blobs in [Vec::new(), vec![Vec::new()], sample_blobs(), large] {
        let input = framed(&blobs);
        for options in
            [&[][..], &["--align", "4096"], &["--align", "64", "--block", "4KiB"], &["--block", "64M"]]
        {
            let story = Story::new();
            story.write("in", &input);
            let args = [&["pack", "out", "--from", "in", "--format", "framed"], options].concat();
            story.ok(&args);
            assert!(story.ok(&["cat", "out"]) == input, "{} blobs, {options:?}", blobs.len());
            story.ok(&["verify", "out"]);
            let file = story.read("out");
            let verified = RegionView::open(&file).unwrap().verify().unwrap();
            assert_eq!(verified.blob_count, blobs.len() as u64);
        }
    }
}

#[test]
fn raw_is_one_blob_even_of_nothing() {
    for input in [Vec::new(), b"a\nb".to_vec(), noise(11 << 20, 5)] {
        let story = Story::new();
        story.write("in", &input);
        story.ok(&["pack", "out", "--from", "in", "--format", "raw"]);
        assert!(story.ok(&["cat", "out", "--format", "raw"]) == input);
        assert!(story.ok(&["cat", "out"]) == framed(&[&input]));
    }
}

#[test]
fn a_file_a_pipe_and_a_fifo_make_the_same_region() {
    let input = noise(7 << 20, 6);
    for (format, input) in
        [("lines", input.clone()), ("raw", input.clone()), ("framed", framed(&[&input, &input]))]
    {
        let story = Story::new();
        story.write("in", &input);
        story.ok(&["pack", "file", "--from", "in", "--format", format]);
        story.run_with_input(&["pack", "pipe", "--from", "-", "--format", format], &input).ok();
        assert!(Command::new("mkfifo").arg(story.path("fifo")).status().unwrap().success());
        let (path, bytes) = (story.path("fifo"), input.clone());
        let writer = std::thread::spawn(move || fs::write(path, bytes).unwrap());
        story.ok(&["pack", "from-fifo", "--from", "fifo", "--format", format]);
        writer.join().unwrap();
        assert!(story.read("file") == story.read("pipe"), "{format}");
        assert!(story.read("file") == story.read("from-fifo"), "{format}");
    }
}

/// Files under /proc say that they are empty, and are not.
#[test]
fn a_file_that_does_not_know_its_length_is_packed_whole() {
    let story = Story::new();
    story.ok(&["pack", "out", "--from", "/proc/version", "--format", "raw"]);
    assert_eq!(story.ok(&["cat", "out", "--format", "raw"]), fs::read("/proc/version").unwrap());
}

#[test]
fn what_is_said_of_a_file_stands_in_it() {
    let story = Story::new();
    story.write("in", "one\ntwo\n");
    story.write("schema", "fields: 2");
    let fingerprint = "0123456789abcdef".repeat(4);
    story.ok(&[
        "pack",
        "out",
        "--from",
        "in",
        "--format",
        "lines",
        "--key",
        "shop/orders@17#4",
        "--fingerprint",
        &fingerprint,
        "--align",
        "64",
        "--block",
        "64KiB",
        "--stride",
        "4KiB",
        "--meta",
        "schema",
    ]);
    let file = story.read("out");
    let view = RegionView::open(&file).unwrap();
    view.verify().unwrap();
    let frame = view.frame().unwrap();
    let header = frame.header();
    assert_eq!(header.key.as_ref().unwrap().to_string(), "shop/orders@17#4");
    assert_eq!(header.fingerprint.unwrap().to_string(), fingerprint);
    assert_eq!((header.alignment, header.block_bytes), (64, 65536));
    assert_eq!(&header.writer[..7], b"pelton ");
    assert_eq!(frame.index_stride(), Some(4096));
    assert_eq!(frame.metadata(), Some(&b"fields: 2"[..]));
    let blob = view.blob(1).unwrap().unwrap();
    assert_eq!((blob.as_ptr() as usize - file.as_ptr() as usize) % 64, 0);
}

#[test]
fn the_fingerprint_is_that_of_lengths_and_bytes_unless_told() {
    for (format, input, blobs) in [
        ("lines", &b"one\n\nthree"[..], framed(&["one", "", "three"])),
        ("raw", b"one\n", framed(&["one\n"])),
        ("framed", b"", Vec::new()),
    ] {
        let story = Story::new();
        story.run_with_input(&["pack", "out", "--from", "-", "--format", format], input).ok();
        let header = story.json(&["inspect", "out", "--json"])["header"].clone();
        assert_eq!(header["fingerprint"], blake3::hash(&blobs).to_hex().as_str(), "{format}");
        assert_eq!(header["key"], "local/file@0#0");
    }
}

#[test]
fn any_blob_can_be_had_alone() {
    let blobs = sample_blobs();
    let story = Story::new();
    story.write("v2", sample_region());
    story.write("v1", pelton::encode_v1_to_vec(&blobs).unwrap());
    for file in ["v1", "v2"] {
        for number in [0, 1, 7, 100, 199] {
            let blob = &blobs[number];
            let number = number.to_string();
            assert!(
                story.ok(&["cat", file, "--blob", &number, "--format", "raw"]) == *blob,
                "{file} {number}"
            );
            assert!(story.ok(&["cat", file, "--blob", &number]) == framed(&[blob]), "{file} {number}");
        }
        let past = story.run(&["cat", file, "--blob", "200"]);
        past.fails_saying(&[file, "no blob 200", "200 blobs", "0 to 199"]);
        story
            .run(&["cat", file, "--blob", "18446744073709551615"])
            .fails_saying(&["no blob 18,446,744,073,709,551,615: the file has 200 blobs"]);
    }
    story.run_with_input(&["pack", "empty", "--from", "-", "--format", "lines"], b"").ok();
    story.run(&["cat", "empty", "--blob", "0"]).fails_saying(&["no blob 0", "0 blobs"]);
}

/// Only the step of the index that holds the blob is read: damage elsewhere does not matter.
#[test]
fn a_blob_is_had_without_reading_the_others() {
    let blobs: Vec<_> = (0..100).map(|index| noise(50_000, index)).collect();
    let story = Story::new();
    story.write("in", framed(&blobs));
    story.ok(&["pack", "out", "--from", "in", "--format", "framed", "--block", "4096"]);
    let mut file = story.read("out");
    file[2_500_000] ^= 1;
    story.write("out", file);
    for number in ["0", "30", "70", "99"] {
        let blob = &blobs[number.parse::<usize>().unwrap()];
        assert!(story.ok(&["cat", "out", "--blob", number, "--format", "raw"]) == *blob, "{number}");
    }
    story.run(&["cat", "out", "--blob", "49"]).fails_saying(&["out", "block 610", "damaged"]);
}

//! Damage is found wherever it is, and its place is told.

use std::ops::Range;

use pelton::{Frame, RegionView, crc32c};

use crate::{Story, framed, sample_blobs, sample_region};

/// The parts of the sample as the messages name them.
fn parts(file: &[u8]) -> Vec<(String, Range<usize>)> {
    let view = RegionView::open(file).unwrap();
    let frame = view.frame().unwrap();
    let (body_end, table) = (frame.trailer().body_end as usize, frame.trailer().table_offset as usize);
    let mut parts = vec![("header".to_owned(), 0..4096), ("block".to_owned(), 4096..body_end)];
    for section in frame.sections() {
        let offset = section.offset as usize;
        parts.push((format!("section \"{}\"", section.kind), offset..offset + section.bytes.len()));
    }
    assert_eq!(parts.len(), 6, "the sample has every section");
    parts.push(("section table".to_owned(), table..file.len() - 4096));
    parts.push(("trailer".to_owned(), file.len() - 4096..file.len()));
    parts
}

#[test]
fn a_changed_byte_is_found_in_every_part() {
    let whole = sample_region();
    let story = Story::new();
    for (part, range) in parts(&whole) {
        // In header and trailer the first bytes say what it is, so a change there is another message.
        let start = if part == "header" { 8 } else { 0 };
        for offset in [range.start + start, range.start + range.len() / 2, range.end - 1] {
            let mut file = whole.clone();
            file[offset] ^= 0x40;
            story.write("a", &file);
            story.run(&["verify", "a"]).fails_saying(&["a: ", &part, "damaged", "offset", "again"]);
            story.run(&["verify", "a", "--json"]).fails_saying(&["damaged"]);
            story
                .run(&["convert", "a", "b", "--to", "v2"])
                .fails_saying(&["a: ", &part, "damaged", "offset"]);
            story.run(&["cat", "a"]).fails_saying(&["a: ", &part, "damaged", "offset"]);
            let inspect = story.run(&["inspect", "a"]);
            // It looks at everything but the body.
            match part.as_str() {
                "block" => drop(inspect.ok()),
                _ => drop(inspect.fails_saying(&["a: ", &part, "damaged", "offset"])),
            }
            assert_eq!(story.names(), ["a"], "no output of a damaged input");
        }
    }
}

#[test]
fn a_cut_file_is_found_wherever_it_is_cut() {
    let whole = sample_region();
    let story = Story::new();
    let cuts = parts(&whole).into_iter().flat_map(|(_, range)| [range.start, range.start + 1, range.end - 1]);
    for len in cuts.chain([2, 4095, 4097, 8192, 12_288]) {
        story.write("a", &whole[..len]);
        for command in
            [&["verify", "a"][..], &["inspect", "a"], &["cat", "a"], &["convert", "a", "b", "--to", "v1"]]
        {
            story.run(command).fails_saying(&["a: "]);
        }
        assert_eq!(story.names(), ["a"]);
    }
    // And one that goes on after its end.
    story.write("a", [&whole[..], &[0; 4096]].concat());
    story.run(&["verify", "a"]).fails_saying(&["a: trailer is damaged"]);
}

#[test]
fn every_damaged_block_is_listed_up_to_twenty() {
    let whole = sample_region();
    let story = Story::new();
    for (damaged_count, listed) in [(1, 1), (3, 3), (20, 20), (25, 20)] {
        let mut file = whole.clone();
        let damaged: Vec<usize> = (1..=damaged_count).map(|index| index + 2).collect();
        for block in &damaged {
            file[block * 4096 + block] ^= 1;
        }
        story.write("a", &file);
        let run = story.run(&["verify", "a"]);
        let stdout = String::from_utf8(run.stdout.clone()).unwrap();
        run.fails_saying(&[&format!("{damaged_count} of "), "the first at offset 12288"]);
        let mut lines = stdout.lines();
        for block in &damaged[..listed] {
            let text = format!("a: block {block} is damaged at offset {}: checksum is 0x", block * 4096);
            assert!(lines.next().unwrap().starts_with(&text), "{stdout}");
        }
        let more = damaged_count - listed;
        assert_eq!(
            lines.next(),
            (more > 0).then_some(format!("a: and {more} damaged blocks more")).as_deref()
        );
        assert_eq!(lines.next(), None);

        let run = story.run(&["verify", "a", "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
        run.fails_saying(&[]);
        assert_eq!((&json["whole"], &json["damaged_blocks"]), (&false.into(), &damaged_count.into()));
        assert_eq!(json["damaged_blocks_listed"].as_array().unwrap().len(), listed);
        assert_eq!(json["damaged_blocks_listed"][0]["offset"], 12_288);
        assert_eq!(json["error_offset"], 12_288);
    }
}

/// Gives a changed body the checksums that fit it, so that only the structure is wrong.
fn reseal(file: &mut [u8]) {
    let original = file.to_vec();
    let view = RegionView::open(&original).unwrap();
    let frame: &Frame<'_> = view.frame().unwrap();
    let (header, trailer) = (frame.header(), frame.trailer());
    let sums = frame.sections().next().unwrap();
    let table = trailer.table_offset as usize;
    let end = file.len() - 4096;
    // The caller changed the body alone, so the frame of the changed file can be read.
    for block in 0..frame.block_count() {
        let range = frame.block_range(block);
        let crc = crc32c(&file[range.start as usize..range.end as usize]);
        let at = sums.offset as usize + 4 * block as usize;
        file[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let padded = sums.bytes.len().next_multiple_of(8);
    let section = file[sums.offset as usize..][..padded].to_vec();
    file[table + 24..table + 28].copy_from_slice(&crc32c(&section).to_le_bytes());
    let table_crc = crc32c(&file[table..end]);
    file[end + 52..end + 56].copy_from_slice(&table_crc.to_le_bytes());
    let mut content_id = blake3::Hasher::new();
    content_id.update(&header.alignment.to_le_bytes()).update(&header.block_bytes.to_le_bytes());
    content_id.update(&trailer.blob_count.to_le_bytes()).update(&trailer.blob_bytes.to_le_bytes());
    content_id.update(&trailer.body_end.to_le_bytes()).update(&section[..sums.bytes.len()]);
    file[end + 64..end + 96].copy_from_slice(content_id.finalize().as_bytes());
    let trailer_crc = crc32c(&file[end..end + 4092]);
    file[end + 4092..].copy_from_slice(&trailer_crc.to_le_bytes());
}

#[test]
fn a_wrong_length_under_right_checksums_is_found() {
    let whole = sample_region();
    let story = Story::new();
    // Blob 1 has 7 bytes; its length stands right before 8-aligned bytes. Now it claims far too many.
    let view = RegionView::open(&whole).unwrap();
    let offset = view.blob(1).unwrap().unwrap().as_ptr() as usize - whole.as_ptr() as usize;
    let mut file = whole.clone();
    file[offset - 4..offset].copy_from_slice(&0x7FFF_0000u32.to_le_bytes());
    reseal(&mut file);
    story.write("a", &file);
    let run = story.run(&["verify", "a"]);
    assert!(run.stdout.is_empty(), "every block has its checksum");
    run.fails_saying(&["blob 1 is damaged", &format!("offset {}", offset - 4)]);
    story.run(&["cat", "a"]).fails_saying(&["blob 1 is damaged"]);
    // With a damaged block behind it, both are told.
    file[5 * 4096] ^= 1;
    story.write("a", &file);
    let run = story.run(&["verify", "a"]);
    assert!(run.stdout.starts_with(b"a: block 5 is damaged at offset 20480: "));
    run.fails_saying(&["1 of ", "the first at offset 20480", "blob 1 is damaged"]);
}

#[test]
fn verify_goes_on_with_the_next_file() {
    let story = Story::new();
    let whole = sample_region();
    let mut damaged = whole.clone();
    damaged[5000] ^= 1;
    story.write("good", &whole);
    story.write("bad", &damaged);
    story.write("old", pelton::encode_v1_to_vec(["x"]).unwrap());
    let run = story.run(&["verify", "bad", "missing", "good", "old"]);
    assert_eq!(run.code, Some(1));
    let errors: Vec<_> = run.stderr.lines().collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].starts_with("pelton: bad: 1 of 36 blocks is damaged"), "{errors:?}");
    assert!(errors[1].starts_with("pelton: missing: could not be read: there is no such file"), "{errors:?}");
    let stdout = String::from_utf8(run.stdout).unwrap();
    let lines: Vec<_> = stdout.lines().collect();
    assert!(lines[0].starts_with("bad: block 1 is damaged at offset 4096: checksum is 0x"), "{lines:?}");
    assert!(lines[1].starts_with("good: whole: version 2, 200 blobs, "), "{lines:?}");
    assert!(lines[1].ends_with(" blocks checked"), "{lines:?}");
    assert!(lines[2].contains("version 1") && lines[2].contains("lengths walked"), "{lines:?}");
    assert!(lines[2].contains("no checksums"), "{lines:?}");
    assert_eq!(lines.len(), 3);

    let run = story.run(&["verify", "--json", "bad", "missing", "good", "old"]);
    let reports: Vec<serde_json::Value> = run
        .stdout
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let whole: Vec<_> = reports.iter().map(|report| report["whole"].as_bool().unwrap()).collect();
    assert_eq!(whole, [false, false, true, true]);
    assert_eq!(reports[2]["blobs"], 200);
    let about_checksums: Vec<_> =
        reports.iter().map(|report| (report["version"].as_u64(), report["checksums"].as_bool())).collect();
    assert_eq!(
        about_checksums,
        [(Some(2), Some(true)), (None, None), (Some(2), Some(true)), (Some(1), Some(false))]
    );
    story.ok(&["verify", "good", "old"]);
}

#[test]
fn whether_there_are_checksums_is_not_told_of_what_is_no_region() {
    let story = Story::new();
    std::fs::create_dir(story.path("folder")).unwrap();
    story.write("text", "hello, world");
    story.write("empty", "");
    story.write("newer", b"\x55\x03 and so on");
    // Here the version is known, and a version 2 file has them.
    story.write("start-only", &sample_region()[..4096]);
    for (name, checksums) in [
        ("missing", None),
        ("folder", None),
        ("text", None),
        ("empty", None),
        ("newer", None),
        ("start-only", Some(true)),
    ] {
        let run = story.run(&["verify", "--json", name]);
        let report: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
        assert_eq!(report["checksums"].as_bool(), checksums, "{name}");
        assert_eq!(report["checksums"].is_null(), checksums.is_none(), "{name}");
        run.fails_saying(&[name]);
    }
}

#[test]
fn no_byte_of_a_damaged_block_is_handed_out() {
    let whole = sample_region();
    let story = Story::new();
    let mut file = whole.clone();
    file[10 * 4096 + 100] ^= 1;
    story.write("a", &file);
    let run = story.run(&["cat", "a"]);
    let good = framed(&sample_blobs());
    assert!(!run.stdout.is_empty() && run.stdout.len() < 10 * 4096);
    assert!(good.starts_with(&run.stdout));
    run.fails_saying(&["block 10 is damaged at offset 40960"]);
}

#[test]
fn version_1_is_found_cut_within_a_blob() {
    let blobs = ["one", "two", "three"];
    let whole = pelton::encode_v1_to_vec(blobs).unwrap();
    let story = Story::new();
    let ends = [2, 2 + 7, 2 + 14, whole.len()];
    for len in 2..=whole.len() {
        story.write("a", &whole[..len]);
        let verify = story.run(&["verify", "a"]);
        // Between two blobs nobody can tell.
        if ends.contains(&len) {
            assert!(String::from_utf8(verify.ok()).unwrap().contains("as far as version 1 can tell"));
            continue;
        }
        verify.fails_saying(&["a: blob", "cut off at offset"]);
        story.run(&["convert", "a", "b", "--to", "v2"]).fails_saying(&["a: blob", "cut off"]);
        story.run(&["inspect", "a"]).fails_saying(&["a: blob", "cut off"]);
        story.run(&["cat", "a"]).fails_saying(&["a: blob", "cut off"]);
    }
    let mut negative = whole.clone();
    negative[5] = 0x80;
    story.write("a", &negative);
    story.run(&["verify", "a"]).fails_saying(&["a: blob 0 is damaged at offset 2"]);
}

//! Each rule of `docs/region-format.md`, broken by a writer that makes all checksums right.
//!
//! Goal: a reader refuses for the reason the page gives, and says where. Method: change one thing,
//! seal again, compare part and property of the error.

mod support;

use pelton_region_format::*;
use support::*;

/// Damages the sample file in one way and says what a reader must answer.
fn refused(change: impl FnOnce(&mut Forger), place: Place, what: &str) {
    let mut forger = Forger::of(&sample_v2());
    change(&mut forger);
    let error = forger.verdict().expect_err(what);
    let FormatError::Damaged { place: found_place, what: found_what, offset, .. } = &error else {
        panic!("expected damage of {place}: {what}, found {error}");
    };
    assert_eq!((*found_place, *found_what), (place, what), "{error}");
    assert!(*offset <= forger.bytes.len() as u64, "{error}");
}

#[test]
fn the_forger_alone_changes_nothing() {
    let mut forger = Forger::of(&sample_v2());
    forger.seal_all();
    assert_eq!(forger.bytes, sample_v2());
    assert!(forger.verdict().is_ok());
}

#[test]
fn header_rules() {
    let header = |offset: usize, number: u32, what: &str| {
        refused(|f| _ = f.put_u32(offset, number).seal_header(), Place::Header, what);
    };
    for alignment in [0, 1, 4, 24, 8192] {
        header(16, alignment, "alignment");
    }
    for block_bytes in [0, 2048, 5000, 128 << 20] {
        header(20, block_bytes, "block bytes");
    }
    header(28, 0, "region count");
    header(24, 7, "region index");
    refused(|f| _ = f.put(80, &[2]).seal_header(), Place::Header, "fingerprint present");
    refused(|f| _ = f.put(80, &[0]).seal_header(), Place::Header, "padding"); // Absent, but not zeros.
    refused(|f| _ = f.put(82, &513u16.to_le_bytes()).seal_header(), Place::Header, "key bytes");
    refused(|f| _ = f.put(96, b"shop?").seal_header(), Place::Header, "key");
    refused(|f| _ = f.put(96 + 27, b"x").seal_header(), Place::Header, "padding");
    for zero in [81, 84, 95, 607, 608, 4091] {
        refused(|f| _ = f.put(zero, &[1]).seal_header(), Place::Header, "padding");
    }
    refused(|f| _ = f.put(2, b"P").seal_header(), Place::Header, "signature");
    refused(|f| _ = f.put(40, b"x"), Place::Header, "checksum");
}

#[test]
fn what_is_newer_is_left_alone_and_not_called_damaged() {
    let unsupported = |change: &dyn Fn(&mut Forger), place: Place, what: &str| {
        let mut forger = Forger::of(&sample_v2());
        change(&mut forger);
        match forger.verdict() {
            Err(FormatError::Unsupported { place: found_place, what: found_what, .. }) => {
                assert_eq!((found_place, found_what), (place, what));
            }
            other => panic!("{other:?}"),
        }
    };
    unsupported(&|f| _ = f.put(1, &[3]), Place::Header, "version");
    unsupported(&|f| _ = f.put_u32(8, 1 << 5).seal_header(), Place::Header, "required features");
    unsupported(
        &|f| {
            let entry = f.entry(4);
            f.put_u32(entry, 77).put_u32(entry + 4, 1).seal_table();
        },
        Place::SectionTable,
        "section kind",
    );
}

#[test]
fn what_is_optional_and_unknown_is_skipped() {
    let mut forger = Forger::of(&sample_v2());
    let entry = forger.entry(4);
    forger.put_u32(12, 0x8000_0001).seal_header();
    forger.put_u32(entry, 0x8000_0007).put_u32(entry + 4, 6).seal_table();
    assert_eq!(forger.verdict().unwrap().blob_count, 6);
    let view = RegionView::open(&forger.bytes).unwrap();
    let frame = view.frame().unwrap();
    assert_eq!((frame.header().optional_features, frame.metadata()), (0x8000_0001, None));
    assert_eq!(collect(view.blobs()).unwrap(), sample_blobs());
}

#[test]
fn a_file_of_something_else_is_not_called_damaged() {
    for bytes in [&b""[..], b"\x55", b"PAR1", &[0; 20_000], b"{\"a\": 1}"] {
        let error = RegionView::open(bytes).unwrap_err();
        assert!(matches!(error, FormatError::NotARegion { .. }), "{error}");
        let error = decode(RegionDecoder::stream(), bytes, &[3]).unwrap_err();
        assert!(matches!(error, FormatError::NotARegion { .. }), "{error}");
    }
}

#[test]
fn trailer_rules() {
    let trailer = |field: usize, number: u64, what: &str| {
        refused(|f| _ = f.put_u64(f.trailer() + field, number).seal_trailer(), Place::Trailer, what);
    };
    let file = Forger::of(&sample_v2());
    let (body_end, table) = (file.body_end() as u64, file.table() as u64);
    trailer(8, sample_v2().len() as u64 + 4096, "file length");
    trailer(16, 1 << 60, "number of blobs");
    trailer(24, 1 << 62, "bytes of blobs");
    trailer(32, 0, "body end");
    trailer(32, 4096, "body end");
    trailer(32, body_end + 8, "body end");
    trailer(32, !63, "table offset");
    trailer(40, body_end - 64, "table offset");
    trailer(40, table + 4096, "table offset");
    trailer(40, u64::MAX, "table offset");
    trailer(64, 0, "content id");
    trailer(96, 1, "padding");
    trailer(4080, 1, "padding");
    let trailer = |field: usize, number: u32, what: &str| {
        refused(|f| _ = f.put_u32(f.trailer() + field, number).seal_trailer(), Place::Trailer, what);
    };
    trailer(0, 0x6570_0255, "signature");
    trailer(48, 0, "number of sections");
    trailer(48, 1025, "number of sections");
    trailer(48, u32::MAX, "number of sections");
    trailer(60, 1 << 31, "longest blob");
    trailer(56, 4201, "shortest blob");
    refused(|f| _ = f.put_u32(f.trailer() + 52, 0).seal_trailer(), Place::SectionTable, "checksum");
    refused(|f| _ = f.put(f.trailer() + 70, b"x"), Place::Trailer, "checksum");
}

/// What start-up asks of a file: its last page alone.
#[test]
fn the_content_id_is_read_from_the_last_page() {
    let file = sample_v2();
    let (start, page) = file.split_at(file.len() - PAGE_BYTES);
    let id = RegionView::open(&file).unwrap().frame().unwrap().trailer().content_id;
    let read = |page: &[u8], bytes: usize| Trailer::content_id(page, bytes as u64);
    assert_eq!(read(page, file.len()), Ok(id));
    assert!(matches!(read(page, file.len() + PAGE_BYTES), Err(FormatError::Damaged { .. })));
    assert!(matches!(read(&page[1..], file.len()), Err(FormatError::Truncated { .. })));
    assert!(read(&start[..PAGE_BYTES], file.len()).is_err(), "a header is no trailer");
    for bit in 0..PAGE_BYTES * 8 {
        let mut page = page.to_vec();
        page[bit / 8] ^= 1 << (bit % 8);
        match read(&page, file.len()).unwrap_err() {
            FormatError::Damaged { .. } => {}
            // A higher version is not called damaged.
            FormatError::Unsupported { .. } => assert_eq!(bit / 8, 1),
            other => panic!("bit {bit}: {other}"),
        }
    }
}

/// Counts that are possible but not true: only the walk can tell.
#[test]
fn counts_that_are_not_true_are_found_by_verify() {
    let counts = |field: usize, number: u64, what: &str| {
        refused(|f| _ = f.put_u64(f.trailer() + field, number).seal_content(), Place::Body, what);
    };
    counts(24, 4464, "bytes of blobs");
    let counts = |field: usize, number: u32, what: &str| {
        refused(|f| _ = f.put_u32(f.trailer() + field, number).seal_content(), Place::Body, what);
    };
    counts(56, 1, "shortest blob");
    counts(60, 4201, "longest blob");
    // The histogram counts blobs too: it must be made to agree before the walk is asked.
    refused(
        |f| {
            let (trailer, histogram) = (f.trailer(), f.section(3));
            f.put_u64(trailer + 16, 7).put_u64(histogram, 3).seal_content();
        },
        Place::Body,
        "number of blobs",
    );
    // As many blobs, but of other lengths.
    refused(
        |f| {
            let histogram = f.section(3);
            f.put_u64(histogram, 1).put_u64(histogram + 8, 1).seal_sections();
        },
        Place::Section(3),
        "a counter",
    );
}

#[test]
fn section_table_rules() {
    let entry = |kind: u32, field: usize, number: u64, what: &str| {
        refused(|f| _ = f.put_u64(f.entry(kind) + field, number).seal_table(), Place::SectionTable, what);
    };
    let sums = Forger::of(&sample_v2()).section(1) as u64;
    entry(1, 8, sums + 8, "section offset");
    entry(2, 8, sums, "section offset");
    entry(4, 16, 1 << 40, "section length");
    entry(4, 16, u64::MAX, "section length");
    refused(
        |f| _ = f.put_u64(f.entry(4) + 16, 8).seal_sections(),
        Place::SectionTable,
        "end of the last section",
    );
    refused(|f| _ = f.put_u32(f.entry(2) + 28, 1).seal_table(), Place::SectionTable, "padding");
    refused(|f| _ = f.put_u32(f.entry(4), 3).seal_table(), Place::SectionTable, "section kind");
    refused(|f| _ = f.put_u64(f.entry(1), 99).seal_table(), Place::SectionTable, "block checksums");
    refused(|f| _ = f.put(f.trailer() - 1, &[1]).seal_table(), Place::SectionTable, "padding");
    refused(|f| _ = f.put(f.trailer() - 1, &[1]), Place::SectionTable, "checksum");
}

#[test]
fn section_rules() {
    let sections = |change: &dyn Fn(&mut Forger), kind: u32, what: &str| {
        refused(
            |f| {
                change(f);
                f.seal_sections();
            },
            Place::Section(kind),
            what,
        );
    };
    // The sections' own bytes.
    let grow = |kind: u32, by: i64| {
        move |f: &mut Forger| {
            let entry = f.entry(kind);
            let len = u64_at(&f.bytes, entry + 16);
            f.put_u64(entry + 16, len.wrapping_add_signed(by));
        }
    };
    sections(&grow(1, 4), 1, "length");
    sections(&grow(2, -1), 2, "length");
    sections(&grow(3, -1), 3, "length");
    sections(&|f| _ = f.put_u32(f.section(2), 0), 2, "stride");
    sections(&|f| _ = f.put_u32(f.section(2) + 4, 1), 2, "padding");
    sections(&|f| _ = f.put_u64(f.section(2) + 8, 1), 2, "blob number");
    sections(&|f| _ = f.put_u64(f.section(2) + 16, 4096), 2, "blob offset");
    sections(&|f| _ = f.put_u64(f.section(2) + 16, 4224), 2, "blob offset");
    sections(&|f| _ = f.put_u64(f.section(3), 3), 3, "sum of counters");
    sections(&|f| _ = f.put_u64(f.section(3) + 8, u64::MAX), 3, "sum of counters");
    // A section's padding.
    sections(&|f| _ = f.put(f.section(4) + SAMPLE_METADATA.len(), &[1]), 4, "padding");
    refused(|f| _ = f.put(f.section(4), b"?"), Place::Section(4), "checksum");
    refused(|f| _ = f.put_u32(f.section(1), 1), Place::Section(1), "checksum");
    refused(|f| _ = f.put_u32(f.section(1), 1).seal_sections(), Place::Trailer, "content id");
}

/// An index of two entries, so that order can be wrong.
#[test]
fn index_rules() {
    let file = RegionEncoderFile { stride: 64 }.write();
    let index = |change: &dyn Fn(&mut Forger, usize), place: Place, what: &str| {
        let mut forger = Forger::of(&file);
        let entry = forger.section(2) + 8;
        change(&mut forger, entry);
        forger.seal_sections();
        let error = forger.verdict().expect_err(what);
        assert!(
            matches!(&error, FormatError::Damaged { place: p, what: w, .. } if (*p, *w) == (place, what)),
            "{what}: {error}"
        );
    };
    let place = Place::Section(2);
    index(&|f, entry| _ = f.put_u64(entry + 16, 0), place, "blob number");
    index(&|f, entry| _ = f.put_u64(entry + 16, 1 << 40), place, "blob number");
    index(&|f, entry| _ = f.put_u64(entry + 24, 4104), place, "blob offset");
    index(&|f, entry| _ = f.put_u64(entry + 24, 1 << 40), place, "blob offset");
    index(&|f, entry| _ = f.put_u64(entry + 24, u64_at(&f.bytes, entry + 24) + 1), place, "blob offset");
    // The last entry, behind which no other rule waits: at the body's end, and not below it.
    let last = u64_at(&file, Forger::of(&file).entry(2) + 16) as usize - 16 - 8;
    let body_end = Forger::of(&file).body_end() as u64;
    index(&|f, entry| _ = f.put_u64(entry + last + 8, body_end), place, "blob offset");
    // Plausible, but not true.
    index(&|f, entry| _ = f.put_u64(entry + 16, 3), place, "blob number at this offset");
    let offset = "what the index has for this blob's offset";
    index(&|f, entry| _ = f.put_u64(entry + 24, u64_at(&f.bytes, entry + 24) + 8), place, offset);
    index(&|f, entry| _ = f.put_u32(entry - 8, 1 << 20), place, offset);
    index(&|f, entry| _ = f.put_u32(entry - 8, 8), place, offset);
}

/// A file without blobs has an index without entries, and the reverse.
#[test]
fn an_index_has_an_entry_if_there_is_a_blob() {
    let mut forger = Forger::of(&encode_to_vec(&Header::default(), [[]; 0], None).unwrap());
    // The histogram moves up to make room: 16 of its zeros become an entry.
    let (index, histogram, table) = (forger.entry(2), forger.entry(3), forger.table());
    let (offset, len) = (u64_at(&forger.bytes, histogram + 8), u64_at(&forger.bytes, index + 16));
    forger.put_u64(index + 16, len + 16).put_u64(histogram + 8, offset + 16).put_u64(histogram + 16, 240);
    assert!(table > 0);
    forger.seal_sections();
    let error = forger.verdict().unwrap_err();
    assert!(
        matches!(error, FormatError::Damaged { place: Place::Section(2), what: "number of entries", .. }),
        "{error}"
    );
}

/// An entry that names no blob, behind the last one that does: only `verify` can tell.
#[test]
fn an_index_entry_too_many_is_found_by_verify() {
    let file = encode_to_vec(&Header::default(), ["hello", "again"], None).unwrap();
    let mut forger = Forger::of(&file);
    let (index, histogram) = (forger.entry(2), forger.entry(3));
    let (offset, len) = (u64_at(&forger.bytes, histogram + 8), u64_at(&forger.bytes, index + 16));
    // Without the histogram there is room for an entry more; it becomes a private section.
    forger.put_u64(index + 16, len + 16).put_u64(histogram + 8, offset + 16).put_u64(histogram + 16, 240);
    forger.put_u32(histogram, 0x8000_0001);
    let entry = forger.section(2) + len as usize;
    forger.put_u64(entry, 1).put_u64(entry + 8, 4112).seal_sections();
    let error = forger.verdict().unwrap_err();
    assert!(matches!(error, FormatError::Damaged { place: Place::Section(2), .. }), "{error}");
    assert!(collect(RegionView::open(&forger.bytes).unwrap().part(0, 1)).is_ok());
}

#[test]
fn metadata_beyond_its_limit_is_refused() {
    let most = vec![1; METADATA_BYTES_MAX];
    let mut forger = Forger::of(&encode_to_vec(&Header::default(), ["a"], Some(&most)).unwrap());
    assert!(forger.verdict().is_ok());
    // One block more of it, taken from the zeros behind the table, which moves on.
    let (table, entries) = (forger.table(), 4 * 32);
    let rows = forger.bytes[table..table + entries].to_vec();
    forger.put(table, &[0; 8]).put(table + 8, &rows);
    let trailer = forger.trailer();
    forger.put_u64(trailer + 40, table as u64 + 8);
    let entry = forger.entry(4);
    forger.put_u64(entry + 16, METADATA_BYTES_MAX as u64 + 1).seal_sections();
    let error = forger.verdict().unwrap_err();
    assert!(
        matches!(error, FormatError::Damaged { place: Place::Section(4), what: "length", .. }),
        "{error}"
    );
}

/// Fields of `Header` and `Trailer` are public: a caller can put anything there.
#[test]
fn a_frame_of_made_up_values_is_an_error_and_not_a_panic() {
    let file = sample_v2();
    let frame = RegionView::open(&file).unwrap().frame().unwrap().clone();
    let (header, trailer) = (frame.header().clone(), frame.trailer().clone());
    let tail = &file[trailer.body_end as usize..];
    let refused = |header: &Header, trailer: &Trailer, tail: &[u8]| {
        assert!(Frame::open(header.clone(), trailer.clone(), tail).is_err(), "{header:?} {trailer:?}");
    };
    for block_bytes in [0, 1, 4095, u32::MAX] {
        refused(&Header { block_bytes, ..header.clone() }, &trailer, tail);
    }
    for alignment in [0, 3, 8192] {
        let header = Header { alignment, ..header.clone() };
        refused(&header, &trailer, tail);
        assert!(Trailer::decode(&file[file.len() - 4096..], &header, file.len() as u64).is_err());
    }
    for number in [0, 1, 4095, 4096, trailer.file_bytes, trailer.file_bytes - 1, u64::MAX] {
        let mut made_up = vec![trailer.clone(); 5];
        made_up[0].file_bytes = number;
        made_up[1].body_end = number;
        made_up[2].table_offset = number;
        made_up[3].blob_count = number;
        made_up[4].blob_bytes = number;
        for made_up in made_up.iter().filter(|made_up| **made_up != trailer) {
            refused(&header, made_up, tail);
            refused(&header, made_up, &[]);
        }
    }
    for section_count in [0, 3, 5, 5000, u32::MAX] {
        let mut made_up = trailer.clone();
        made_up.section_count = section_count;
        refused(&header, &made_up, tail);
    }
    refused(&header, &trailer, &tail[1..]);
}

/// Ten blobs of 50 bytes, alignment 8.
struct RegionEncoderFile {
    stride: u32,
}

impl RegionEncoderFile {
    fn write(&self) -> Vec<u8> {
        let mut piece = vec![0; PIECE_BYTES_STEP];
        let mut encoder =
            RegionEncoder::v2(&Header::default(), piece.len()).unwrap().index_stride(self.stride).unwrap();
        for i in 0..10 {
            assert_eq!(encoder.put(&[i; 50], &mut piece).unwrap(), Put::Done);
        }
        let mut seal = encoder.seal(None).unwrap();
        assert_eq!(seal.fill(&mut piece).unwrap(), Put::Done);
        piece.truncate(seal.piece_used());
        piece
    }
}

#[test]
fn body_rules() {
    // Blob 0 begins at 4160, blob 1 at 4224, blob 2 at 4288.
    refused(|f| _ = f.put(4160, b"x"), Place::Block(1), "checksum");
    // The sample's blocks are as small as the header: block 0 is empty, and its checksum that of nothing.
    refused(|f| _ = f.put_u32(f.section(1), 1).seal_content(), Place::Block(0), "checksum");
    refused(|f| _ = f.put(4096, &[1]).seal_all(), Place::Blob(0), "padding");
    refused(|f| _ = f.put(4165, &[1]).seal_all(), Place::Blob(1), "padding");
    refused(|f| _ = f.put_u32(4284, 1 << 31).seal_all(), Place::Blob(2), "length");
    refused(|f| _ = f.put_u32(4284, 100_000).seal_all(), Place::Blob(2), "length");
    refused(|f| _ = f.put_u32(f.body_end() - 4, 0).seal_all(), Place::Body, "end mark");
    refused(|f| _ = f.put_u32(4284, u32::MAX).seal_all(), Place::Body, "end of the last blob");
}

/// The cursor looks at nothing but lengths, and at each before it uses it.
#[test]
fn a_bad_length_ends_the_iteration_with_an_error_that_stays() {
    for len in [4201u32, 100_000, 1 << 31, u32::MAX] {
        let mut forger = Forger::of(&sample_v2());
        let length_at = (4096..forger.body_end()).find(|&at| u32_at(&forger.bytes, at) == 4200).unwrap();
        forger.put_u32(length_at, len + if len == 4201 { 8000 } else { 0 }).seal_all();
        let view = RegionView::open(&forger.bytes).unwrap();
        let mut cursor = view.blobs();
        for blob in &sample_blobs()[..3] {
            assert_eq!(cursor.next().unwrap(), Some(&blob[..]));
        }
        let error = cursor.next().unwrap_err();
        assert!(
            matches!(error, FormatError::Damaged { place: Place::Blob(3), what: "length", .. }),
            "{error}"
        );
        assert_eq!(error.offset(), Some(length_at as u64));
        assert_eq!(cursor.next().unwrap_err(), error, "it never turns into a quiet end");
    }
}

#[test]
fn a_length_that_leads_past_or_short_of_the_end_is_found_by_the_cursor() {
    // The last blob, 4 bytes, made shorter or longer by a cell: the end is met, the count or place is not.
    let mut forger = Forger::of(&sample_v2());
    let last = forger.body_end() - 64;
    assert_eq!(&forger.bytes[last..last + 4], b"last");
    forger.put_u32(last - 4, 60).seal_all();
    assert!(collect(RegionView::open(&forger.bytes).unwrap().blobs()).is_ok(), "60 bytes fit the same cell");
    forger.put_u32(last - 4, 61).seal_all();
    assert!(collect(RegionView::open(&forger.bytes).unwrap().blobs()).is_err());
    // A blob that swallows the next one: the count is short by one.
    let mut forger = Forger::of(&sample_v2());
    forger.put_u32(4160 - 4, 64).seal_all();
    let error = collect(RegionView::open(&forger.bytes).unwrap().blobs()).unwrap_err();
    assert!(
        matches!(error, FormatError::Damaged { place: Place::Body, what: "number of blobs", .. }),
        "{error}"
    );
}

#[test]
fn version_1_rules() {
    let v1 = |bytes: &[u8]| {
        let view = RegionView::open(bytes).unwrap();
        let in_place = collect(view.blobs()).map(|blobs| blobs.len() as u64);
        let walked = view.verify().map(|verified| verified.blob_count);
        assert_eq!(in_place.is_ok(), walked.is_ok());
        walked
    };
    assert_eq!(v1(b"\x55\x01").unwrap(), 0);
    assert_eq!(v1(b"\x55\x01\0\0\0\0").unwrap(), 1);
    assert_eq!(v1(b"\x55\x01\x01\0\0\0x\0\0\0\0").unwrap(), 2);
    for (bytes, damaged) in [
        (&b"\x55\x01\x01"[..], false),         // a cut length
        (b"\x55\x01\x02\0\0\0x", false),       // a cut blob
        (b"\x55\x01\x01\0\0\0xy", false),      // a stray byte
        (b"\x55\x01\xff\xff\xff\xff", true),   // minus one
        (b"\x55\x01\0\0\0\x80xxxxxxxx", true), // the smallest number
    ] {
        let error = v1(bytes).unwrap_err();
        assert_eq!(matches!(error, FormatError::Damaged { .. }), damaged, "{error}");
    }
}

#[test]
fn errors_say_part_place_found_and_expected() {
    let mut forger = Forger::of(&sample_v2());
    forger.put_u32(4284, 100_000).seal_all();
    assert_eq!(
        forger.verdict().unwrap_err().to_string(),
        "blob 2 is damaged at offset 4284: length is 100000, expected at most 4668",
    );
    let mut forger = Forger::of(&sample_v2());
    forger.put(4160, b"J");
    let text = forger.verdict().unwrap_err().to_string();
    assert!(text.starts_with("block 1 is damaged at offset 4096: checksum is 0x"), "{text}");
    assert_eq!(
        RegionView::open(&sample_v2()[..9000]).unwrap_err().to_string(),
        "file is cut off at offset 0: found 9000 bytes, expected at least 12288",
    );
    assert_eq!(
        RegionView::open(b"PAR1").unwrap_err().to_string(),
        "not a region file: it begins with 0x50, a region begins with 0x55",
    );
}

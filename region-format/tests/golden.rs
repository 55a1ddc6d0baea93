//! The committed files of each version: no change of this crate may change or misread them.

mod support;

use pelton_region_format::*;
use support::*;

const V1: &[u8] = include_bytes!("golden/v1.region");
const V2: &[u8] = include_bytes!("golden/v2.region");
const V2_PLAIN: &[u8] = include_bytes!("golden/v2_plain.region");
const V2_EMPTY: &[u8] = include_bytes!("golden/v2_empty.region");

/// A file's name, its committed bytes, its bytes made anew, and the blobs in it.
type Golden = (&'static str, &'static [u8], Vec<u8>, Vec<Vec<u8>>);

fn golden_files() -> [Golden; 4] {
    [
        ("v1.region", V1, encode_v1_to_vec(sample_blobs()).unwrap(), sample_blobs()),
        ("v2.region", V2, sample_v2(), sample_blobs()),
        (
            "v2_plain.region",
            V2_PLAIN,
            encode_to_vec(&Header::default(), sample_blobs(), None).unwrap(),
            sample_blobs(),
        ),
        ("v2_empty.region", V2_EMPTY, encode_to_vec(&Header::default(), [[]; 0], None).unwrap(), vec![]),
    ]
}

/// These bytes are on disks we cannot reach. If this fails, write version 3 beside version 2.
#[test]
fn the_encoder_writes_the_golden_bytes() {
    for (name, golden, written, _) in golden_files() {
        if golden != written {
            let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
            std::fs::write(&path, &written).unwrap();
            panic!("{name} would be written otherwise now: see {}", path.display());
        }
    }
}

#[test]
fn every_reader_reads_the_golden_files() {
    for (name, golden, _, blobs) in golden_files() {
        let view = RegionView::open(golden).unwrap();
        assert_eq!(collect(view.blobs()).unwrap(), blobs, "{name} in place");
        assert_eq!(decode(RegionDecoder::stream(), golden, &[1000]).unwrap(), blobs, "{name} as a stream");
        if let Some(frame) = view.frame() {
            assert_eq!(
                decode(RegionDecoder::over(frame, frame.whole()), golden, &[5000]).unwrap(),
                blobs,
                "{name}"
            );
        }
        let verified = view.verify().unwrap();
        assert_eq!(verified.blob_count, blobs.len() as u64, "{name}");
        assert_eq!(verified.blob_bytes, blobs.iter().map(|blob| blob.len() as u64).sum::<u64>(), "{name}");
        assert_eq!(verified.file_bytes, golden.len() as u64, "{name}");
    }
}

#[test]
fn the_golden_frame_says_what_was_written() {
    let view = RegionView::open(V2).unwrap();
    let frame = view.frame().unwrap();
    assert_eq!(frame.header(), &sample_header());
    assert_eq!(frame.metadata(), Some(SAMPLE_METADATA));
    assert_eq!(frame.index_stride(), Some(INDEX_STRIDE_DEFAULT));
    let kinds: Vec<u32> = frame.sections().map(|section| section.kind.0).collect();
    assert_eq!(kinds, [1, 2, 3, 4]);
    let trailer = frame.trailer();
    assert_eq!((trailer.blob_count, trailer.shortest, trailer.longest), (6, 0, 4200));
    let counts = frame.histogram().unwrap().counts();
    assert_eq!((counts[0], counts[3], counts[9], counts[13]), (2, 2, 1, 1));
}

/// The example of the specification, section 1.11, byte by byte.
#[test]
fn the_example_of_the_specification_is_true() {
    let file = encode_to_vec(&Header::default(), ["hello"], None).unwrap();
    assert_eq!(file.len(), 12_288);
    assert_eq!(file[..8], *b"\x55\x02pelton");
    assert_eq!(file[4096..4104], [0, 0, 0, 0, 5, 0, 0, 0]);
    assert_eq!(file[4104..4120], *b"hello\0\0\0\0\0\0\0\xFF\xFF\xFF\xFF");
    assert_eq!(u32_at(&file, 4120), crc32c(&file[4096..4120]));
    assert_eq!((u32_at(&file, 4124), u32_at(&file, 4128), u32_at(&file, 4132)), (0, 65_536, 0));
    assert_eq!((u64_at(&file, 4136), u64_at(&file, 4144)), (0, 4104));
    for i in 0..32 {
        assert_eq!(u64_at(&file, 4152 + 8 * i), u64::from(i == 3));
    }
    assert_eq!([u32_at(&file, 4408), u32_at(&file, 4440), u32_at(&file, 4472)], [1, 2, 3]);
    assert!(file[4504..8192].iter().all(|&byte| byte == 0));
    assert_eq!(file[8192..8200], *b"\x55\x02sealed");
    assert_eq!(u64_at(&file, 8200), 12_288);
}

/// Every single-bit flip, every one: a file of three pages and a bit is small enough.
#[test]
fn every_flipped_bit_of_a_version_2_file_is_found() {
    for file in [V2, V2_EMPTY] {
        let mut bytes = file.to_vec();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let verdict = RegionView::open(&bytes).and_then(|view| view.verify());
            assert!(verdict.is_err(), "bit {} of byte {} was flipped and not found", bit % 8, bit / 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(RegionView::open(&bytes).unwrap().verify().is_ok(), "all bits are back");
    }
}

#[test]
fn every_flipped_bit_is_found_in_a_stream() {
    let mut bytes = V2.to_vec();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let verdict = decode(RegionDecoder::stream(), &bytes, &[4096]);
        assert!(verdict.is_err(), "bit {} of byte {} was flipped and not found", bit % 8, bit / 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn every_truncation_of_a_version_2_file_is_found() {
    for file in [V2, V2_PLAIN, V2_EMPTY] {
        for len in 0..file.len() {
            let error = RegionView::open(&file[..len]).err();
            assert!(error.is_some(), "cut to {len} bytes and not found");
            assert!(
                decode(RegionDecoder::stream(), &file[..len], &[777]).is_err(),
                "cut to {len} in a stream"
            );
        }
    }
}

/// Version 1 has no checksums: what can be told is that lengths do not add up to the file.
#[test]
fn a_truncated_version_1_file_is_found_unless_cut_between_blobs() {
    let mut between = vec![2];
    for blob in sample_blobs() {
        between.push(between.last().unwrap() + 4 + blob.len());
    }
    for len in 2..V1.len() {
        let view = RegionView::open(&V1[..len]).unwrap();
        assert_eq!(view.verify().is_ok(), between.contains(&len), "cut to {len} bytes");
        assert_eq!(collect(view.blobs()).is_ok(), between.contains(&len), "cut to {len} bytes, in place");
    }
    assert!(RegionView::open(&V1[..1]).is_err() && RegionView::open(&V1[..0]).is_err());
}

//! What was written is what every way of reading returns.

mod support;

use pelton_region_format::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use support::*;

/// Lengths around everything that matters: nothing, alignments, pages, blocks; mostly short.
fn blob_length() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..40usize, 2 => 0..600usize, 1 => 4050..4150usize, 1 => Just(0), 1 => 0..20_000usize]
}

fn blobs() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let fill = |(len, seed): (usize, u64)| Random(seed).bytes(len);
    prop::collection::vec((blob_length(), any::<u64>()).prop_map(fill), 0..60)
}

fn header() -> impl Strategy<Value = Header> {
    (3..=12u32, 12..=16u32, any::<bool>(), any::<[u8; 32]>()).prop_map(|(alignment, block, told, bytes)| {
        Header {
            alignment: 1 << alignment,
            block_bytes: 1 << block,
            fingerprint: told.then(|| Fingerprint::from_bytes(bytes)),
            key: told.then(|| Key::new("d", "v", u64::from(bytes[0]), 1).unwrap()),
            ..Header::default()
        }
    })
}

/// Writes through fragments of blobs and small strides, as a stream of pieces.
fn write(
    header: &Header,
    blobs: &[Vec<u8>],
    stride: u32,
    fragment: usize,
    metadata: Option<&[u8]>,
) -> Vec<u8> {
    let mut piece = vec![0xEE; PIECE_BYTES_STEP]; // Used before: whatever is not written shows.
    let mut encoder = RegionEncoder::v2(header, piece.len()).unwrap().index_stride(stride).unwrap();
    let mut file = Vec::new();
    for blob in blobs {
        encoder.begin_blob(blob.len() as u32).unwrap();
        let mut fragments: Vec<&[u8]> = blob.chunks(fragment).collect();
        if fragments.is_empty() {
            fragments.push(&[]);
        }
        for mut fragment in fragments {
            while encoder.append(&mut fragment, &mut piece).unwrap() == Put::PieceFull {
                file.extend_from_slice(&piece);
                piece.fill(0xEE);
            }
        }
    }
    let mut seal = encoder.seal(metadata).unwrap();
    while seal.fill(&mut piece).unwrap() == Put::PieceFull {
        file.extend_from_slice(&piece);
        piece.fill(0xEE);
    }
    file.extend_from_slice(&piece[..seal.piece_used()]);
    assert_eq!(seal.sealed().file_bytes, file.len() as u64);
    file
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]

    #[test]
    fn version_2_reads_back_whole_in_parts_and_by_number(
        header in header(),
        blobs in blobs(),
        stride in prop_oneof![Just(1u32), 8..5000u32, Just(65_536)],
        fragment in 1..30_000usize,
        metadata in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
        parts in 1..9u64,
        chunks in prop::collection::vec(1..20_000usize, 1..5),
    ) {
        let file = write(&header, &blobs, stride, fragment, metadata.as_deref());
        let view = RegionView::open(&file).unwrap();
        let frame = view.frame().unwrap();
        prop_assert_eq!(frame.header(), &header);
        prop_assert_eq!(frame.metadata(), metadata.as_deref());

        // In place.
        prop_assert_eq!(&collect(view.blobs()).unwrap(), &blobs);
        let verified = view.verify().unwrap();
        prop_assert_eq!(verified.blob_count, blobs.len() as u64);
        prop_assert_eq!(verified.blocks, frame.block_count());
        for block in 0..view.block_count() {
            view.verify_block(block).unwrap();
        }
        let mut cursor = view.blobs();
        while let Some(blob) = cursor.next().unwrap() {
            prop_assert_eq!((blob.as_ptr() as usize - file.as_ptr() as usize) % header.alignment as usize, 0);
        }
        for (number, blob) in blobs.iter().enumerate() {
            prop_assert_eq!(view.blob(number as u64).unwrap(), Some(&blob[..]));
        }
        prop_assert_eq!(view.blob(blobs.len() as u64).unwrap(), None);
        prop_assert_eq!(view.blob(u64::MAX).unwrap(), None);

        // In parts, which join without gap or overlap.
        let in_place: Vec<_> = (0..parts).flat_map(|n| collect(view.part(n, parts)).unwrap()).collect();
        prop_assert_eq!(&in_place, &blobs);
        let mut decoded = Vec::new();
        for n in 0..parts {
            let span = frame.part(n, parts);
            prop_assert_eq!(span.first_number(), decoded.len() as u64);
            decoded.extend(decode(RegionDecoder::over(frame, span), &file, &chunks).unwrap());
        }
        prop_assert_eq!(&decoded, &blobs);
        prop_assert_eq!(collect(view.part(parts, parts)).unwrap().len(), 0);
        prop_assert_eq!(collect(view.part(0, 0)).unwrap().len(), 0);

        // With limits, as bytes come by: nothing behind a limit is read, so it may hold anything yet.
        for n in 0..parts {
            let mut arrived = vec![0xEE; file.len()];
            let (mut at, mut steps) = (0, chunks.iter().cycle());
            let limited = loop {
                let limit = (at + steps.next().unwrap()).min(file.len());
                arrived[at..limit].copy_from_slice(&file[at..limit]);
                at = limit;
                // The frame is the whole file's; the body is what has arrived.
                let body_end = frame.trailer().body_end as usize;
                let mut bytes = arrived.clone();
                bytes[..4096].copy_from_slice(&file[..4096]);
                bytes[body_end..].copy_from_slice(&file[body_end..]);
                let mut cursor = RegionView::open(&bytes).unwrap().part(n, parts);
                cursor.limit(limit as u64);
                let limited = collect(cursor.clone()).unwrap();
                while cursor.next().unwrap().is_some() {}
                match cursor.wanted() {
                    Some(wanted) => prop_assert!(wanted > limit as u64, "{} at {}", wanted, limit),
                    None => break limited,
                }
                if limit == file.len() {
                    return Err(TestCaseError::fail("all is there and it has not ended"));
                }
            };
            prop_assert_eq!(limited, collect(view.part(n, parts)).unwrap());
        }

        // By the offsets alone, from the blocks in which each part lies.
        for n in 0..parts {
            let span = frame.part(n, parts);
            let blocks = frame.blocks_of(&span);
            let held = frame.block_range(blocks.start).start
                ..frame.block_range(blocks.end.saturating_sub(1).max(blocks.start)).end;
            let mut cells = Cells::over(span);
            let mut stepped = Vec::new();
            let bytes_at = |range: std::ops::Range<u64>| {
                assert!(held.start <= range.start && range.end <= held.end, "{range:?} in {held:?}");
                &file[range.start as usize..range.end as usize]
            };
            while let Some(length) = cells.length_at().unwrap() {
                let blob = cells.next(bytes_at(length).try_into().unwrap()).unwrap();
                stepped.push(bytes_at(blob).to_vec());
            }
            prop_assert_eq!(stepped, collect(view.part(n, parts)).unwrap());
        }

        // Around each blob, as `cat --blob` does.
        for number in 0..blobs.len() as u64 {
            let span = frame.around(number).unwrap();
            let step = decode(RegionDecoder::over(frame, span), &file, &chunks).unwrap();
            let first = span.first_number() as usize;
            prop_assert!(span.first_number() <= number && number < span.end_number().unwrap());
            prop_assert_eq!(&step[..], &blobs[first..first + step.len()]);
        }

        // As a stream, and block by block.
        prop_assert_eq!(&decode(RegionDecoder::stream(), &file, &chunks).unwrap(), &blobs);
        prop_assert_eq!(&decode(RegionDecoder::over(frame, frame.whole()), &file, &chunks).unwrap(), &blobs);

        // Nothing about the way of writing shows in the file.
        if stride == INDEX_STRIDE_DEFAULT {
            prop_assert_eq!(encode_to_vec(&header, &blobs, metadata.as_deref()).unwrap(), file);
        }
    }

    #[test]
    fn version_1_reads_back(blobs in blobs(), chunks in prop::collection::vec(1..20_000usize, 1..5)) {
        let file = encode_v1_to_vec(&blobs).unwrap();
        let plain: Vec<u8> = blobs
            .iter()
            .flat_map(|blob| [&(blob.len() as i32).to_le_bytes(), &blob[..]].concat())
            .collect();
        prop_assert_eq!(&file[2..], &plain[..]);
        let view = RegionView::open(&file).unwrap();
        prop_assert_eq!(view.version(), Version::V1);
        prop_assert_eq!(&collect(view.blobs()).unwrap(), &blobs);
        prop_assert_eq!(&collect(view.part(0, 3)).unwrap(), &blobs);
        prop_assert_eq!(collect(view.part(2, 3)).unwrap().len(), 0);
        prop_assert_eq!(&decode(RegionDecoder::stream(), &file, &chunks).unwrap(), &blobs);
        prop_assert_eq!(view.verify().unwrap().blob_count, blobs.len() as u64);
        prop_assert_eq!(view.verify().unwrap().blocks, 0);
        for (number, blob) in blobs.iter().enumerate() {
            prop_assert_eq!(view.blob(number as u64).unwrap(), Some(&blob[..]));
        }
        prop_assert_eq!(view.blob(blobs.len() as u64).unwrap(), None);
    }
}

/// Blobs and end mark on every side of a piece's edge: the place where a writer has to stop and go on.
#[test]
fn nothing_is_lost_where_pieces_meet() {
    for alignment in [8, 64, 4096] {
        let header = Header { alignment, ..Header::default() };
        for before_edge in (0..80).chain([4090, 4096, 4100]) {
            let first = PIECE_BYTES_STEP - 4096 - 8 - before_edge;
            for second in [0, 1, 8, 70, 5000] {
                let mut random = Random((before_edge * 100 + second) as u64);
                let blobs = [random.bytes(first), random.bytes(second)];
                for count in [1, 2] {
                    let file = encode_to_vec(&header, &blobs[..count], None).unwrap();
                    let view = RegionView::open(&file).unwrap();
                    assert_eq!(view.verify().unwrap().blob_count, count as u64);
                    let last = view.blob(count as u64 - 1).unwrap().unwrap();
                    assert!(last == blobs[count - 1], "{alignment} {before_edge} {second}");
                }
            }
        }
    }
}

/// A region beyond 4 GiB, with the longest blobs there are, through the encoder's pieces straight into
/// a decoder: no offset is 32 bits wide, and neither side needs memory for it.
#[test]
fn a_region_beyond_4_gib_reads_back() {
    let header = Header { block_bytes: 8 << 20, ..Header::default() };
    let mut piece = vec![0; 8 << 20];
    let mut encoder = RegionEncoder::v2(&header, piece.len()).unwrap();
    let mut decoder = RegionDecoder::stream();
    let lengths = [BLOB_BYTES_MAX, 3, BLOB_BYTES_MAX, BLOB_BYTES_MAX - 4096, 0, 9];
    let fill = vec![7u8; 1 << 20];
    let mut seen = Vec::new();
    let mut sink = |fragment: BlobFragment<'_>| {
        if fragment.is_last() {
            seen.push(fragment.len);
        }
        assert!(fragment.bytes.iter().take(10).all(|&byte| byte == 7));
        Ok::<(), FormatError>(())
    };
    let mut file_bytes = 0;
    for len in lengths {
        encoder.begin_blob(len).unwrap();
        let mut left = len as usize;
        loop {
            let mut fragment = &fill[..left.min(fill.len())];
            left -= fragment.len();
            while encoder.append(&mut fragment, &mut piece).unwrap() == Put::PieceFull {
                decoder.feed(&piece, &mut sink).unwrap();
                file_bytes += piece.len() as u64;
            }
            if left == 0 {
                break;
            }
        }
    }
    let mut seal = encoder.seal(None).unwrap();
    while seal.fill(&mut piece).unwrap() == Put::PieceFull {
        decoder.feed(&piece, &mut sink).unwrap();
        file_bytes += piece.len() as u64;
    }
    decoder.feed(&piece[..seal.piece_used()], &mut sink).unwrap();
    file_bytes += seal.piece_used() as u64;
    assert_eq!(decoder.finish().unwrap().file_bytes, file_bytes);
    assert!(file_bytes > 6 << 30);
    assert_eq!(seen, lengths);
}

#[test]
fn what_cannot_be_written_is_refused_with_the_numbers_and_changes_nothing() {
    let mut piece = vec![0; PIECE_BYTES_STEP];
    assert!(matches!(RegionEncoder::v2(&Header::default(), 4096), Err(EncodeError::Field { .. })));
    assert!(matches!(RegionEncoder::v1(0), Err(EncodeError::Field { .. })));
    let odd = Header { alignment: 12, ..Header::default() };
    assert_eq!(
        RegionEncoder::v2(&odd, piece.len()).err().unwrap().to_string(),
        "alignment is 12, expected a power of two, 8 to 4096",
    );
    let mut encoder = RegionEncoder::v2(&Header::default(), piece.len()).unwrap();
    assert!(matches!(encoder.put(b"x", &mut piece[1..]), Err(EncodeError::PieceBytes { .. })));
    assert!(matches!(encoder.begin_blob(1 << 31), Err(EncodeError::BlobTooLong { number: 0, .. })));
    assert!(matches!(encoder.append(&mut &b"x"[..], &mut piece), Err(EncodeError::BlobBytes { .. })));
    encoder.begin_blob(3).unwrap();
    assert!(matches!(encoder.begin_blob(1), Err(EncodeError::BlobBytes { number: 0, declared: 3, .. })));
    assert!(matches!(encoder.append(&mut &b"abcd"[..], &mut piece), Err(EncodeError::BlobBytes { .. })));
    assert_eq!(encoder.append(&mut &b"ab"[..], &mut piece), Ok(Put::Done));
    assert!(matches!(encoder.put(b"other", &mut piece), Err(EncodeError::BlobBytes { .. })));
    assert_eq!(encoder.append(&mut &b"c"[..], &mut piece), Ok(Put::Done));
    assert!(matches!(encoder.begin_blob(1 << 31), Err(EncodeError::BlobTooLong { number: 1, .. })));
    // What was refused left no trace.
    let mut seal = encoder.seal(None).unwrap();
    assert_eq!(seal.fill(&mut piece), Ok(Put::Done));
    assert_eq!(piece[..seal.piece_used()], encode_to_vec(&Header::default(), ["abc"], None).unwrap());

    let mut encoder = RegionEncoder::v2(&Header::default(), piece.len()).unwrap();
    encoder.begin_blob(2).unwrap();
    assert!(matches!(encoder.seal(None).err(), Some(EncodeError::BlobBytes { number: 0, .. })));
    assert_eq!(RegionEncoder::v1(piece.len()).unwrap().seal(Some(b"x")).err(), Some(EncodeError::NoMetadata));
    assert!(RegionEncoder::v1(piece.len()).unwrap().index_stride(8).is_err());
    assert!(RegionEncoder::v2(&Header::default(), piece.len()).unwrap().index_stride(0).is_err());
    let mut encoder = RegionEncoder::v2(&Header::default(), piece.len()).unwrap();
    assert_eq!(encoder.put(b"x", &mut piece), Ok(Put::Done));
    assert!(encoder.index_stride(16).is_err(), "the index has begun");
    let long = vec![0; METADATA_BYTES_MAX + 1];
    let encoder = RegionEncoder::v2(&Header::default(), piece.len()).unwrap();
    assert!(matches!(encoder.seal(Some(&long)).err(), Some(EncodeError::MetadataTooLong { .. })));
    assert!(RegionEncoder::v2(&Header::default(), piece.len()).unwrap().seal(Some(&long[1..])).is_ok());
}

#[test]
fn version_1_ends_where_its_readers_can_still_map_it() {
    let piece = vec![0; PIECE_BYTES_STEP];
    let mut encoder = RegionEncoder::v1(piece.len()).unwrap();
    let most = V1_FILE_BYTES_MAX as u32 - 2 - 4;
    assert!(matches!(encoder.begin_blob(most + 1), Err(EncodeError::RegionFull { number: 0, .. })));
    assert_eq!(encoder.begin_blob(most), Ok(()));
}

#[test]
fn a_stream_takes_no_more_memory_than_it_was_told() {
    let file = sample_v2();
    let decoder = RegionDecoder::stream().tail_bytes_max(4096);
    let error = decode(decoder, &file, &[512]).unwrap_err();
    assert!(matches!(error, FormatError::TooLarge { limit: 4096, .. }), "{error}");
    // A body that never ends has checksums that never end.
    let header = Header { block_bytes: 4096, ..Header::default() };
    let body = encode_to_vec(&header, [vec![0; 5 << 20]], None).unwrap();
    let mut decoder = RegionDecoder::stream().tail_bytes_max(4096);
    let fed = decoder.feed(&body, &mut |_: BlobFragment<'_>| Ok::<(), FormatError>(()));
    assert!(matches!(fed, Err(FormatError::TooLarge { place: Place::Body, limit: 4096, .. })), "{fed:?}");
}

/// Decoders stop when whoever takes the blobs says so, and never call that a whole region.
#[test]
fn a_sink_that_fails_stops_the_decoder() {
    #[derive(Debug, PartialEq)]
    enum Stop {
        Full,
        Format,
    }
    impl From<FormatError> for Stop {
        fn from(_: FormatError) -> Stop {
            Stop::Format
        }
    }
    let first_page = encode_v1_to_vec(["a", "b", "c"]).unwrap();
    for file in [sample_v2(), encode_v1_to_vec(sample_blobs()).unwrap(), first_page] {
        let mut decoder = RegionDecoder::stream();
        let mut calls = 0;
        let mut sink = |_: BlobFragment<'_>| {
            calls += 1;
            if calls == 2 { Err(Stop::Full) } else { Ok(()) }
        };
        assert_eq!(decoder.feed(&file, &mut sink), Err(Stop::Full));
        assert_eq!(decoder.feed(&file, &mut sink), Ok(()));
        assert_eq!(decoder.finish(), Err(FormatError::Stopped));
        assert_eq!(calls, 2);
    }
}

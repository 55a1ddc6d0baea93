use bytes::Bytes;
use pelton_region_format::crc32c;

use super::*;
use crate::feed::message;
use crate::limits::Limits;
use crate::messages::{BlobFrame, BlockChecksum, Complete, Heartbeat, Parcel, RangeChunk};

fn parcel() -> Parcel {
    let bytes = Bytes::from_static(b"\x05\0\0\0hello\0\0\0\0");
    Parcel { sequence: 0, blob_count: 2, inflated_bytes: 13, codec: 0, crc32c: crc32c(&bytes), bytes }
}

/// The frame that `docs/nexus.md` spells out, byte by byte.
#[test]
fn the_documented_frame_is_this_one() {
    let frame = Frame::of_feed(message(parcel()), &Limits::default()).unwrap();
    let mut bytes = frame.header.encode().to_vec();
    bytes.extend_from_slice(&frame.head);
    let mut told = bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>();
    told.insert(24, "|".to_owned());
    let words: String = told.join(" ");
    let page = include_str!("../../../docs/nexus.md");
    let line = page.lines().find(|line| line.starts_with("01 00 00 00")).unwrap();
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(line.starts_with(&words), "\n{line}\n{words}");
    assert!(page.contains(&format!("crc32c: {:#010X}", crc32c(&frame.body)).replace("0X", "0x")));
}

#[test]
fn what_goes_in_comes_out() {
    let limits = Limits::default();
    let bytes = Bytes::from(vec![7; 1000]);
    let frame = BlobFrame {
        sequence: 9,
        packed_bytes: 3000,
        inflated_bytes: 5000,
        codec: 1,
        offset: 1000,
        crc32c: crc32c(&bytes),
        bytes,
    };
    let complete = Complete { parcels: 1, items: 2, bytes: 3, expected: 4, potential: 5, rejected: 6 };
    for sent in [message(parcel()), message(frame), message(complete)] {
        let Frame { header, head, body } = Frame::of_feed(sent.clone(), &limits).unwrap();
        let decoded = FrameHeader::decode(&header.encode(), &limits).unwrap();
        assert_eq!(decoded, header);
        assert_eq!(decoded.feed_message(&head, body).unwrap(), sent);
        assert!(decoded.range_chunk(&head).is_err());
    }
    assert!(Frame::of_feed(message(Heartbeat {}), &limits).is_err());

    for crc32c in [None, Some(17)] {
        let blocks = vec![BlockChecksum { index: 3, crc32c: 5 }];
        let chunk = RangeChunk { range_id: 1, offset: 1 << 40, crc32c, blocks, bytes: Bytes::new() };
        let (header, head) = Frame::of_range(chunk.clone(), 1 << 20, &limits).unwrap();
        let decoded = FrameHeader::decode(&header.encode(), &limits).unwrap();
        assert_eq!((decoded.body_bytes(), decoded.range_chunk(&head).unwrap()), (1 << 20, chunk));
        assert!(decoded.feed_message(&head, Bytes::from(vec![0; 1 << 20])).is_err());
    }

    let opening = LaneOpening { token: [42; TOKEN_BYTES] };
    assert_eq!(LaneOpening::decode(&opening.encode()).unwrap(), opening);
    assert!(opening.has_token(&[42; TOKEN_BYTES]) && !opening.has_token(&[43; TOKEN_BYTES]));
    assert!(!format!("{opening:?}").contains("42"), "a token is a secret");
    for answer in [LaneAnswer::Taken, LaneAnswer::Token, LaneAnswer::Version, LaneAnswer::Full] {
        assert_eq!(LaneAnswer::decode(&answer.encode()).unwrap(), answer);
    }
}

/// CRC-32C finds every single flipped bit.
#[test]
fn every_flipped_bit_of_a_header_is_found() {
    let limits = Limits::default();
    let Frame { header, head, body } = Frame::of_feed(message(parcel()), &limits).unwrap();
    for bit in 0..8 * FrameHeader::BYTES {
        let mut bytes = header.encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(FrameHeader::decode(&bytes, &limits).is_err(), "bit {bit}");
    }
    for bit in 0..8 * head.len() {
        let mut head = head.clone();
        head[bit / 8] ^= 1 << (bit % 8);
        assert!(header.feed_message(&head, body.clone()).is_err(), "bit {bit}");
    }
    for bit in 0..8 * LaneOpening::BYTES {
        let mut bytes = LaneOpening { token: [1; TOKEN_BYTES] }.encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(LaneOpening::decode(&bytes).is_err(), "bit {bit}");
    }
    for bit in 0..8 * LaneAnswer::BYTES {
        let mut bytes = LaneAnswer::Taken.encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(LaneAnswer::decode(&bytes).is_err(), "bit {bit}");
    }
}

/// A header with right checksums but wrong fields, as a faulty or later program would send.
#[test]
fn a_field_that_is_not_known_is_named() {
    let limits = Limits::default();
    let header = Frame::of_feed(message(parcel()), &limits).unwrap().header.encode();
    let cases = [
        (0, 9, "a frame's kind"),
        (1, 1, "a frame's flags"),
        (1, 2, "a frame's flags"),
        (2, 1, "bytes 2 and 3"),
        (7, 1, "lane_head_bytes_max"),
        (11, 5, "lane_body_bytes_max"),
    ];
    for (offset, value, named) in cases {
        let mut bytes = header;
        bytes[offset] = value;
        let crc = crc32c(&bytes[..20]);
        bytes[20..].copy_from_slice(&crc.to_le_bytes());
        let error = FrameHeader::decode(&bytes, &limits).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
    for (offset, field) in [(8, "version 2 "), (12, "features 0x1 ")] {
        let mut bytes = LaneOpening { token: [1; TOKEN_BYTES] }.encode();
        bytes[offset] = if offset == 8 { 2 } else { 1 };
        let crc = crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        let error = LaneOpening::decode(&bytes).unwrap_err();
        assert!(matches!(error, LaneError::Version { .. }) && error.to_string().contains(field), "{error}");
    }
}

#[test]
fn a_frame_at_its_limits_goes_and_one_above_does_not() {
    let mut limits = Limits { lane_body_bytes_max: 13, lane_head_bytes_max: 4, ..Limits::default() };
    let frame = Frame::of_feed(message(parcel()), &limits).unwrap();
    assert_eq!((frame.head.len(), frame.body.len()), (4, 13));
    assert!(FrameHeader::decode(&frame.header.encode(), &limits).is_ok());
    limits.lane_body_bytes_max = 12;
    assert!(matches!(Frame::of_feed(message(parcel()), &limits), Err(LaneError::Limit(_))));
    assert!(matches!(FrameHeader::decode(&frame.header.encode(), &limits), Err(LaneError::Limit(_))));
    limits.lane_body_bytes_max = 13;
    limits.lane_head_bytes_max = 3;
    assert!(matches!(Frame::of_feed(message(parcel()), &limits), Err(LaneError::Limit(_))));
    assert!(matches!(FrameHeader::decode(&frame.header.encode(), &limits), Err(LaneError::Limit(_))));

    limits.lane_body_bytes_max = u64::MAX;
    limits.lane_head_bytes_max = 100;
    let chunk = RangeChunk::default();
    assert!(Frame::of_range(chunk.clone(), u32::MAX.into(), &limits).is_ok());
    assert!(matches!(Frame::of_range(chunk, 1 << 32, &limits), Err(LaneError::Limit(_))));
}

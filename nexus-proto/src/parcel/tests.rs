use std::time::{Duration, Instant};

use super::*;

fn body_of(blobs: &[&[u8]]) -> Vec<u8> {
    let mut body = Vec::new();
    for blob in blobs {
        body::push_blob(&mut body, blob).unwrap();
    }
    body
}

fn sample() -> Vec<u8> {
    body_of(&[b"hello", b"", &[7; 5000]])
}

/// Bytes that no codec makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

#[test]
fn what_was_packed_comes_out_whatever_the_codec() {
    for &codec in Codec::BUILT_IN {
        let parcel = Parcel::deflate(codec, 3, sample()).unwrap();
        assert_eq!(parcel.codec(), codec);
        let open = parcel.open(&Limits::default()).unwrap();
        assert_eq!(open.blobs().collect::<Vec<_>>(), [&b"hello"[..], b"", &[7; 5000]], "{codec}");
        assert_eq!((open.blob_count(), parcel.inflated_bytes()), (3, 5 + 5000 + 3 * 4));
    }
}

/// A packer sums as it collects. Goal: the sum is that of the bytes that leave, for each size, codec and content.
#[test]
fn a_packed_parcel_knows_its_checksum() {
    for &codec in Codec::BUILT_IN {
        for len in [0, 1, 1000, 40_000, 200_000] {
            for blob in [noise(len), vec![7; len]] {
                let mut packer =
                    ParcelPacker::new(PackerOptions { codec, ..PackerOptions::default() }, Limits::default());
                let mut ready = Vec::new();
                for _ in 0..7 {
                    packer.push(&blob, Instant::now(), &mut ready).unwrap();
                }
                packer.finish(&mut ready).unwrap();
                assert!(!ready.is_empty());
                for parcel in ready {
                    assert_eq!(parcel.crc32c(), crc32c(parcel.body()), "{codec}, blobs of {len} bytes");
                }
            }
        }
    }
}

#[test]
fn what_does_not_shrink_goes_as_it_is() {
    for &codec in Codec::BUILT_IN {
        for len in [0, 1, 10, 100, 1 << 20] {
            let parcel = Parcel::of_blob(codec, &noise(len)).unwrap();
            assert_eq!(parcel.codec(), Codec::None, "{codec} {len}");
            assert_eq!(parcel.cost(), PARCEL_COST_BYTES + parcel.packed_bytes());
            assert_eq!(parcel.open(&Limits::default()).unwrap().blobs().next().unwrap(), noise(len));
        }
    }
}

#[cfg(not(feature = "zstd"))]
#[test]
fn a_codec_that_is_not_built_in_is_an_error_that_says_so() {
    let error = Parcel::deflate(Codec::Zstd, 1, sample()).unwrap_err();
    assert!(error.to_string().contains("without the feature zstd"), "{error}");
    let foreign = Parcel::packed(Codec::Zstd, 3, 5017, vec![0; 100]);
    assert!(foreign.open(&Limits::default()).is_err());
}

/// Every byte changed, every length cut: an error or other bytes, never a panic, never more memory.
#[test]
fn a_damaged_parcel_is_refused_or_stays_within_its_size() {
    let limits = Limits::default();
    for &codec in Codec::BUILT_IN {
        let parcel = Parcel::deflate(codec, 3, sample()).unwrap();
        for at in 0..parcel.body().len().min(300) {
            for change in [1u8, 0x80, 0xFF] {
                let mut body = parcel.body().to_vec();
                body[at] ^= change;
                let damaged = Parcel::packed(codec, 3, parcel.inflated_bytes(), body);
                assert_ne!(damaged.crc32c(), parcel.crc32c());
                if let Ok(open) = damaged.open(&limits) {
                    assert_eq!(open.blobs().count(), 3);
                    assert_eq!(open.body().len() as u64, parcel.inflated_bytes());
                }
            }
            let cut = Parcel::packed(codec, 3, parcel.inflated_bytes(), parcel.body().slice(..at));
            assert!(cut.open(&limits).is_err(), "{codec} cut at {at}");
        }
    }
}

#[test]
fn counts_and_sizes_that_lie_are_refused() {
    let limits = Limits::default();
    let bytes = sample().len() as u64;
    for (count, inflated) in
        [(2, bytes), (4, bytes), (3, bytes - 1), (3, bytes + 1), (0, bytes), (u32::MAX, bytes)]
    {
        assert!(
            Parcel::packed(Codec::None, count, inflated, sample()).open(&limits).is_err(),
            "{count} {inflated}"
        );
        let Parcel { body, .. } = Parcel::deflate(Codec::Lz4, 3, sample()).unwrap();
        assert!(
            Parcel::packed(Codec::Lz4, count, inflated, body).open(&limits).is_err(),
            "{count} {inflated}"
        );
    }
    let empty = Parcel::packed(Codec::None, 0, 0, vec![]).open(&limits);
    assert_eq!(empty.unwrap_err(), ParcelError::NoBlob);
    let grown = Parcel::packed(Codec::Lz4, 1, 4, vec![0x40, 0, 0, 0, 0]).open(&limits);
    assert!(matches!(grown, Err(ParcelError::PackedBytes { .. })), "{grown:?}");
}

/// The declared size is compared with the limit before memory is taken: these would need 2^63 bytes.
#[test]
fn a_declared_size_over_the_limit_is_refused_before_memory_is_taken() {
    let mut limits = Limits { parcel_bytes_max: 5017, ..Limits::default() };
    for &codec in Codec::BUILT_IN {
        assert!(Parcel::deflate(codec, 3, sample()).unwrap().open(&limits).is_ok(), "at the edge");
        for declared in [5018, 1 << 63, u64::MAX] {
            let error = Parcel::packed(codec, 3, declared, sample()).open(&limits).unwrap_err();
            assert!(error.to_string().starts_with("parcel_bytes_max: "), "{error}");
        }
    }
    limits.parcel_bytes_max = 5016;
    assert!(Parcel::deflate(Codec::None, 3, sample()).unwrap().open(&limits).is_err(), "one above");
}

struct Packed {
    parcels: Vec<Parcel>,
}

impl Packed {
    fn blobs(&self) -> Vec<Vec<u8>> {
        let open = |parcel: &Parcel| parcel.open(&Limits::default()).unwrap();
        self.parcels
            .iter()
            .flat_map(|parcel| open(parcel).blobs().map(<[u8]>::to_vec).collect::<Vec<_>>())
            .collect()
    }
}

#[test]
fn blobs_come_out_in_order_in_parcels_of_the_target() {
    let options = PackerOptions { target_bytes: 4096, ..PackerOptions::default() };
    for &codec in Codec::BUILT_IN {
        let mut packer = ParcelPacker::new(PackerOptions { codec, ..options.clone() }, Limits::default());
        let now = Instant::now();
        let mut packed = Packed { parcels: Vec::new() };
        let blobs: Vec<Vec<u8>> =
            (0..500usize).map(|i| noise([0, 1, 100, 1000, 4092, 4093, 9000][i % 7])).collect();
        for blob in &blobs {
            packer.push(blob, now, &mut packed.parcels).unwrap();
            assert!(packer.bytes() < 4096, "what is collected stays below the target");
        }
        packer.finish(&mut packed.parcels).unwrap();
        assert_eq!(packed.blobs(), blobs);
        for parcel in &packed.parcels {
            assert!(parcel.inflated_bytes() <= 4096 || parcel.blob_count() == 1);
        }
        let before = packed.parcels.len();
        packer.finish(&mut packed.parcels).unwrap();
        assert_eq!(packed.parcels.len(), before, "there is no empty parcel");
    }
}

/// A small stream does not wait for a full parcel.
#[test]
fn a_parcel_is_ready_when_its_first_blob_has_waited_long_enough() {
    let wait_max = Duration::from_millis(50);
    let mut packer =
        ParcelPacker::new(PackerOptions { wait_max, ..PackerOptions::default() }, Limits::default());
    let start = Instant::now();
    let mut ready = Vec::new();
    assert_eq!(packer.due(), None);
    packer.push(b"first", start, &mut ready).unwrap();
    packer.push(b"second", start + wait_max / 2, &mut ready).unwrap();
    assert_eq!(packer.due(), Some(start + wait_max), "the first blob decides");
    packer.on_time(start + wait_max - Duration::from_nanos(1), &mut ready).unwrap();
    assert!(ready.is_empty());
    packer.on_time(start + wait_max, &mut ready).unwrap();
    assert_eq!((ready.len(), ready[0].blob_count(), packer.due()), (1, 2, None));
}

#[test]
fn a_blob_that_can_not_be_sent_is_refused_and_the_packer_goes_on() {
    let limits = Limits { parcel_bytes_max: 10_004, ..Limits::default() };
    let mut packer =
        ParcelPacker::new(PackerOptions { target_bytes: 2048, ..PackerOptions::default() }, limits);
    let (now, mut ready) = (Instant::now(), Vec::new());
    packer.push(b"before", now, &mut ready).unwrap();
    let error = packer.push(&noise(10_001), now, &mut ready).unwrap_err();
    assert!(error.to_string().starts_with("parcel_bytes_max: 10005 "), "{error}");
    packer.push(&noise(10_000), now, &mut ready).unwrap();
    packer.push(b"after", now, &mut ready).unwrap();
    packer.finish(&mut ready).unwrap();
    let packed = Packed { parcels: ready };
    assert_eq!(packed.blobs(), [b"before".to_vec(), noise(10_000), b"after".to_vec()]);
}

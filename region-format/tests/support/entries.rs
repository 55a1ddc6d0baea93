//! One entry for each decoder of foreign bytes. The mutation run and the fuzzer call the same ones.
//!
//! Each takes any bytes, must return, and checks that the ways of reading agree with each other.

use pelton_region_format::*;

/// A region that lies in memory: open, verify, and every way through the blobs. Says whether it opens.
pub fn view(bytes: &[u8]) -> bool {
    let Ok(view) = RegionView::open(bytes) else { return false };
    let verified = view.verify();
    let mut count = 0u64;
    let mut sum = 0u64;
    let mut cursor = view.blobs();
    let end = loop {
        match cursor.next() {
            Ok(Some(blob)) => {
                count += 1;
                sum += blob.len() as u64;
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if let Ok(verified) = &verified {
        assert!(end.is_ok(), "verify found nothing, the cursor found {end:?}");
        assert_eq!((verified.blob_count, verified.blob_bytes), (count, sum));
        assert!((0..view.block_count()).all(|block| view.verify_block(block).is_ok()));
        let parts: u64 = (0..3).map(|n| count_blobs(view.part(n, 3))).sum();
        assert_eq!(parts, count, "parts are every blob once");
    }
    let _ = view.blob(count / 2);
    let _ = view.blob(u64::MAX);
    for n in 0..3 {
        let _ = count_blobs(view.part(n, 3));
    }
    true
}

/// The same bytes as a stream, in chunks cut by the bytes themselves.
pub fn stream(bytes: &[u8]) {
    let mut decoder = RegionDecoder::stream();
    let mut rest = bytes;
    let mut seed = bytes.len() as u64 * 31 + 7;
    let mut sum = 0u64;
    while !rest.is_empty() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(rest[0]));
        let (chunk, after) = rest.split_at(((seed >> 33) as usize % 9000 + 1).min(rest.len()));
        rest = after;
        let fed = decoder.feed(chunk, &mut |fragment: BlobFragment<'_>| {
            sum += fragment.bytes.len() as u64;
            Ok::<(), FormatError>(())
        });
        if fed.is_err() {
            break;
        }
    }
    let streamed = decoder.finish();
    let verified = RegionView::open(bytes).and_then(|view| view.verify());
    match (streamed, verified) {
        (Ok(streamed), Ok(verified)) => {
            assert_eq!(
                (streamed.blob_count, streamed.blob_bytes),
                (verified.blob_count, verified.blob_bytes)
            );
            assert_eq!(sum, verified.blob_bytes);
        }
        // A stream can't compare the index, which comes after the blobs.
        (Ok(_), Err(FormatError::Damaged { place: Place::Section(2), .. })) | (Err(_), Err(_)) => {}
        (streamed, verified) => panic!("a stream says {streamed:?}, a view says {verified:?}"),
    }
}

/// Texts.
pub fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(key) = text.parse::<Key>() {
        assert_eq!(key.to_string(), text);
        assert!(KeyPattern::from(key.clone()).matches(&key));
    }
    if let Ok(pattern) = text.parse::<KeyPattern>() {
        assert_eq!(pattern.to_string().parse(), Ok(pattern));
    }
    if let Ok(fingerprint) = text.parse::<Fingerprint>() {
        assert_eq!(fingerprint.to_string(), text.to_lowercase());
    }
}

fn count_blobs(mut cursor: BlobCursor<'_>) -> u64 {
    let mut count = 0;
    while let Ok(Some(_)) = cursor.next() {
        count += 1;
    }
    count
}

//! Pelton keeps a dataset's slices where every core scans its own region, in place.
//!
//! A [`Cache`] owns folders on disks, called spindles, and a budget of memory. A loader writes a slice
//! through four calls; then any thread may lease the slice and scan it where it lies:
//!
//! ```
//! use pelton::{Cache, Fingerprint, Key, LoadPlan, ParcelBuilder, Want};
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("spindle");
//! let cache = Cache::builder().spindle(path, None).open()?;
//! let key: Key = "shop/orders@1719878400000#0".parse()?;
//!
//! let plan = LoadPlan::new(Fingerprint::builder().source("v1").finish());
//! let writer = cache.snap(&key).open_for_writes(plan)?;
//! let mut parcel = ParcelBuilder::default();
//! for blob in ["apple", "pear", "plum"] {
//!     parcel.push(blob.as_bytes())?;
//! }
//! writer.queue_parcel(parcel.finish())?;
//! writer.wait_for_writes()?.close_for_writes()?;
//!
//! let lease = cache.lease(&key, Want::Latest, None)?;
//! let bytes = lease.scan(
//!     |blobs, sum: &mut usize| {
//!         while let Some(blob) = blobs.next()? {
//!             *sum += blob.len();
//!         }
//!         Ok(())
//!     },
//!     |a, b| a + b,
//! )?;
//! assert_eq!(bytes, 13);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The bytes of region files stand apart from the cache: [`RegionView`] reads them, [`RegionEncoder`]
//! writes them.
#![forbid(unsafe_code)]

#[cfg(feature = "nexus")]
pub use pelton_nexus as nexus;
pub use pelton_region_format::{
    ALIGNMENT_DEFAULT, ALIGNMENT_MAX, ALIGNMENT_MIN, BLOB_BYTES_MAX, BLOCK_BYTES_DEFAULT, BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN, BlobCursor, BlobFragment, BlobIter, ContentId, EncodeError, FILE_BYTES_MAX, Fingerprint,
    FingerprintBuilder, FormatError, Frame, Header, HexError, INDEX_STRIDE_DEFAULT, Key, KeyError,
    KeyPattern, KeyProblem, LengthHistogram, METADATA_BYTES_MAX, NAME_BYTES_MAX, NotARegion, PAGE_BYTES,
    PIECE_BYTES_STEP, Place, Put, RegionDecoder, RegionEncoder, RegionSeal, RegionView, SECTIONS_MAX, Sealed,
    Section, SectionKind, Span, TAIL_BYTES_MAX, Trailer, V1_FILE_BYTES_MAX, Value, Verified, Version, crc32c,
    encode_to_vec, encode_v1_to_vec,
};
pub use pelton_worker::*;

/// The README's Rust code is compiled with the tests, so that it can't promise what is not there.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

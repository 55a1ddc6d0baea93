use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU8, Ordering};

use pelton_region_format::{Fingerprint, Key};
use rustix::io::Errno;

use super::*;
use crate::cache::{Cache, Want};
use crate::scan::blobs::Blobs;
use crate::scan::lease::{Lease, LeaseOptions, Reading};
use crate::scan::run::ScanError;
use crate::slice::parcel::ParcelBuilder;
use crate::slice::plan::{Durability, LoadPlan};
use crate::spindle::engine::sim::{Failure, SimDisk, When};
use crate::spindle::health::HealthLimits;

const MIB: u64 = 1 << 20;

#[test]
fn a_ring_shrinks_with_its_share_but_never_below_two_blocks() {
    let shape = |bytes, block_bytes| {
        let Shape { buffer_bytes, buffers } = Shape::of(bytes, block_bytes);
        (buffer_bytes, buffers)
    };
    assert_eq!(shape(RING_BYTES_MAX, MIB), (2 * MIB, 3));
    assert_eq!(shape(1 << 40, MIB), (2 * MIB, 3));
    assert_eq!(shape(7 * MIB, MIB), (MIB, 3));
    assert_eq!(shape(4 * MIB, MIB), (MIB, 3));
    assert_eq!(shape(0, MIB), (MIB, 2));
    assert_eq!(shape(RING_BYTES_MAX, 64 * MIB), (64 * MIB, 2));
    assert_eq!(shape(100_000, 4096), (16_384, 3));
    assert_eq!(shape(0, 4096), (4096, 2));
}

/// Blobs of a MiB, each filled with its number, in one region on a disk that fails as told.
struct Rig {
    _folder: tempfile::TempDir,
    disk: SimDisk,
    cache: Cache,
}

const BLOBS: u8 = 40;

impl Rig {
    fn new(seed: u64) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let disk = SimDisk::healthy(folder.path(), seed);
        let builder = Cache::builder().spindle(folder.path(), 1 << 30).memory(256 * MIB).scan_threads(1);
        let cache = builder.pin(false).open_on(vec![disk.clone()], HealthLimits::default()).unwrap();
        let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
        plan.regions = Some(1);
        plan.durability = Durability::Wait;
        let writer = cache.snap(&Rig::key()).open_for_writes(plan).unwrap();
        for number in 0..BLOBS {
            let mut parcel = ParcelBuilder::default();
            parcel.push(&vec![number; MIB as usize]).unwrap();
            writer.queue_parcel(parcel.finish()).unwrap();
        }
        writer.wait_for_writes().unwrap().close_for_writes().unwrap();
        cache.snap(&Rig::key()).evict();
        Rig { _folder: folder, disk, cache }
    }

    fn key() -> Key {
        "test/stream@1#0".parse().unwrap()
    }

    fn lease(&self) -> Lease {
        let options =
            LeaseOptions { reading: Reading::Stream, want: Want::Latest, ..LeaseOptions::default() };
        let lease = self.cache.lease_with(&Rig::key(), &options).unwrap();
        assert!(lease.is_streamed());
        lease
    }
}

/// How many blobs the scan saw, and how it ended. Whatever a scan sees must be right.
fn scan(lease: &Lease) -> (u8, Result<(), ScanError>) {
    let seen = Arc::new(AtomicU8::new(0));
    let look = {
        let seen = seen.clone();
        move |blobs: &mut Blobs<'_>, (): &mut ()| {
            while let Some(blob) = blobs.next()? {
                let number = seen.fetch_add(1, Ordering::Relaxed);
                assert!(blob.len() as u64 == MIB && blob.iter().all(|&byte| byte == number), "blob {number}");
            }
            Ok(())
        }
    };
    let ended = lease.scan(look, |(), ()| ());
    (seen.load(Ordering::Relaxed), ended)
}

/// A disk that can't give one read of a scan.
///
/// Goal: the scan ends with the disk's error, has seen nothing but what stands before that read, and the next scan
/// of the same lease sees everything. Method: fail the n-th read that ends after the lease, for every n that a scan has.
#[test]
fn a_read_that_fails_ends_its_scan_and_not_the_lease() {
    let rig = Rig::new(7);
    let lease = rig.lease();
    let before = rig.disk.ops();
    assert!(matches!(scan(&lease), (BLOBS, Ok(()))));
    let reads = rig.disk.ops() - before;
    assert!(reads >= 10, "{reads} are not many");
    let step = (u64::from(BLOBS) * MIB / reads).next_power_of_two();
    let mut seen_before = BTreeSet::new();
    for n in 0..reads {
        let _ = rig.disk.clone().with_fault(When::Op(rig.disk.ops() + n), Failure::Error(Errno::IO));
        let (seen, ended) = scan(&lease);
        let error = ended.unwrap_err();
        assert!(matches!(error, ScanError::Disk { index: 0, .. }), "read {n}: {error}");
        // Whole reads, whose last blob is shifted into the next one by the header. Which read is the n-th to end is
        // the seed's choice.
        assert!(
            seen < BLOBS && (seen == 0 || (u64::from(seen + 1) * MIB).is_multiple_of(step)),
            "{n}: {seen}"
        );
        seen_before.insert(seen);
        let (seen, ended) = scan(&lease);
        assert!(seen == BLOBS && ended.is_ok(), "after read {n}: {seen} blobs, {ended:?}");
    }
    assert!(seen_before.len() > 2, "reads at several places failed: {seen_before:?}");
}

/// Goal: a disk that gives nothing any more takes no ring with it. Method: more scans that fail than a ring has
/// buffers, then a disk that is well again.
#[test]
fn a_ring_whose_reads_all_fail_is_there_again_for_the_next_scan() {
    let rig = Rig::new(8);
    let lease = rig.lease();
    let used = rig.cache.memory().unwrap();
    let _ = rig.disk.clone().with_fault(When::Every("read"), Failure::Error(Errno::IO));
    for round in 0..50 {
        let (seen, ended) = scan(&lease);
        assert!(seen == 0 && matches!(ended, Err(ScanError::Disk { index: 0, .. })), "{round}: {ended:?}");
    }
    rig.disk.heal();
    assert!(matches!(scan(&lease), (BLOBS, Ok(()))));
    let memory = rig.cache.memory().unwrap();
    assert!(memory.buffers <= used.buffers + RING_BYTES_MAX, "{memory:?}, before {used:?}");
}

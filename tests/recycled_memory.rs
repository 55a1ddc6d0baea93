//! Memory that was another slice's before: nothing of it shows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pelton::*;

const MIB: u64 = 1 << 20;

fn cache(folder: &Path, residence: Residence) -> Cache {
    let builder = Cache::builder().memory(512 * MIB).scan_threads(2).residence(residence);
    builder.spindle(folder, None).open().unwrap()
}

fn load(cache: &Cache, key: &Key, alignment: u32, blobs: &[Vec<u8>]) {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.write_path = WritePath::Image;
    plan.durability = Durability::Wait;
    plan.alignment = alignment;
    let writer = cache.snap(key).open_for_writes(plan).unwrap();
    for batch in blobs.chunks(20) {
        let mut parcel = ParcelBuilder::default();
        batch.iter().for_each(|blob| parcel.push(blob).unwrap());
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

/// Every region file below a folder, by what it is called in it.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "region") {
                found.insert(path.file_name().unwrap().into(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Evicts until the memory of what was hot is kept for the next image. The thread that does it says nothing.
fn evict(cache: &Cache, key: &Key) -> u64 {
    assert!(cache.snap(key).evict());
    let give_up = std::time::Instant::now() + std::time::Duration::from_secs(9);
    loop {
        let memory = cache.memory().unwrap();
        if memory.images == 0 {
            return memory.spares;
        }
        assert!(std::time::Instant::now() < give_up, "an evicted image stays");
        std::thread::yield_now();
    }
}

/// Goal: pages that are full of another slice's bytes change nothing of what is written, padding and unused ends
/// included, nor of what is scanned. Method: the same slice is loaded into fresh memory and into memory that a slice
/// of nothing but 0xEE had before, with blobs of odd lengths at each alignment; files and images are compared byte
/// by byte, and the images that were read back from the files as well.
#[test]
fn what_an_evicted_slice_left_in_memory_is_in_no_file_and_in_no_scan() {
    let key: Key = "test/recycled@1#0".parse().unwrap();
    let poison: Key = "test/poison@1#0".parse().unwrap();
    let blobs: Vec<Vec<u8>> = (0..600u32).map(|n| vec![n as u8; (n * 7919 % 60_013) as usize]).collect();
    let poisonous = vec![vec![0xEE; 1 << 20]; 60];
    for alignment in [8, 64, 4096] {
        let (fresh, used) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        load(&cache(fresh.path(), Residence::Image), &key, alignment, &blobs);
        let expected = files(fresh.path());
        assert!(!expected.is_empty());

        let cache = cache(used.path(), Residence::Image);
        load(&cache, &poison, 8, &poisonous);
        assert!(evict(&cache, &poison) >= 50 * MIB, "its memory is kept");
        cache.snap(&poison).flush(None).unwrap();
        load(&cache, &key, alignment, &blobs);
        assert!(cache.memory().unwrap().spares < 50 * MIB, "it was used");
        assert!(files(used.path()) == expected, "alignment {alignment}");
        for way in ["loaded", "read back"] {
            let lease = cache.lease(&key, Want::Latest, None).unwrap();
            for (index, file) in expected.values().enumerate() {
                let region = lease.region(index, None).unwrap();
                assert!(*region == **file, "alignment {alignment}, region {index}, {way}");
            }
            drop(lease);
            evict(&cache, &key);
        }
    }
}
